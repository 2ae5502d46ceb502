"""`websockets` with its own server, on uvloop: ``python -m bench.apps.websockets_server PORT``."""

import sys
from http import HTTPStatus

import uvloop
from websockets.asyncio.server import broadcast, serve
from websockets.exceptions import ConnectionClosed

subscribers = set()


def answer_json(connection, request):
    if request.path == "/json":
        return connection.respond(HTTPStatus.OK, '{"message":"Hello, World!"}')
    return None


async def echo(ws):
    async for message in ws:
        await ws.send(message)


async def sub(ws):
    subscribers.add(ws)
    try:
        await ws.wait_closed()
    finally:
        subscribers.discard(ws)


async def pub(ws):
    async for message in ws:
        broadcast(subscribers, message)


VIEWS = {"/echo": echo, "/binary": echo, "/sub": sub, "/pub": pub}


async def view(ws):
    try:
        await VIEWS[ws.request.path](ws)
    except ConnectionClosed:
        pass


async def main(port):
    async with serve(view, "127.0.0.1", port, process_request=answer_json, backlog=4096) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
