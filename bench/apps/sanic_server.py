"""Sanic with its own server, on uvloop: ``python -m bench.apps.sanic_server PORT``."""

import sys

from sanic import Sanic
from sanic.exceptions import WebsocketClosed
from sanic.response import json

app = Sanic("bench", configure_logging=False)

subscribers = set()


@app.get("/json")
async def json_view(request):
    return json({"message": "Hello, World!"})


@app.websocket("/echo")
async def echo(request, ws):
    async for message in ws:
        await ws.send(message)


@app.websocket("/sub")
async def sub(request, ws):
    subscribers.add(ws)
    try:
        async for _ in ws:
            pass
    finally:
        subscribers.discard(ws)


@app.websocket("/pub")
async def pub(request, ws):
    async for message in ws:
        for subscriber in list(subscribers):
            try:
                await subscriber.send(message)
            except WebsocketClosed:
                subscribers.discard(subscriber)


if __name__ == "__main__":
    app.run("127.0.0.1", int(sys.argv[1]), single_process=True, access_log=False, motd=False, backlog=4096)
