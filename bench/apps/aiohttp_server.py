"""aiohttp with its own server, on uvloop: ``python -m bench.apps.aiohttp_server PORT``."""

import sys

import uvloop
from aiohttp import WSMsgType, web

subscribers = set()


async def json_view(request):
    return web.json_response({"message": "Hello, World!"})


async def echo(request):
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        if message.type is WSMsgType.TEXT:
            await ws.send_str(message.data)
    return ws


async def binary(request):
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        if message.type is WSMsgType.BINARY:
            await ws.send_bytes(message.data)
    return ws


async def sub(request):
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    subscribers.add(ws)
    try:
        async for _ in ws:
            pass
    finally:
        subscribers.discard(ws)
    return ws


async def pub(request):
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        for subscriber in list(subscribers):
            try:
                await subscriber.send_str(message.data)
            except ConnectionError:
                subscribers.discard(subscriber)
    return ws


if __name__ == "__main__":
    app = web.Application()
    app.add_routes(
        [
            web.get("/json", json_view),
            web.get("/echo", echo),
            web.get("/binary", binary),
            web.get("/sub", sub),
            web.get("/pub", pub),
        ]
    )
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None, loop=uvloop.new_event_loop())
