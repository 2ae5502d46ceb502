"""`websockets` with its own server, on uvloop: ``python -m bench.apps.websockets_server PORT``."""

import sys
from http import HTTPStatus

import uvloop
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


def answer_json(connection, request):
    if request.path == "/json":
        return connection.respond(HTTPStatus.OK, '{"message":"Hello, World!"}')
    return None


async def echo(ws):
    try:
        async for message in ws:
            await ws.send(message)
    except ConnectionClosed:
        pass


async def main(port):
    async with serve(echo, "127.0.0.1", port, process_request=answer_json) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
