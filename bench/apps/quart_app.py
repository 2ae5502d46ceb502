"""Quart, with the broker of its chat tutorial: a queue per connection."""

import asyncio

from quart import Quart, websocket

app = Quart(__name__)

queues = set()


@app.route("/json")
async def json_view():
    return {"message": "Hello, World!"}


@app.websocket("/echo")
async def echo():
    while True:
        await websocket.send(await websocket.receive())


async def ignore_messages():
    while True:
        await websocket.receive()


@app.websocket("/sub")
async def sub():
    queue = asyncio.Queue()
    queues.add(queue)
    reader = asyncio.ensure_future(ignore_messages())
    try:
        while True:
            await websocket.send(await queue.get())
    finally:
        queues.discard(queue)
        reader.cancel()


@app.websocket("/pub")
async def pub():
    while True:
        message = await websocket.receive()
        for queue in queues:
            queue.put_nowait(message)
