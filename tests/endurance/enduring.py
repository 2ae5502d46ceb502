"""What the endurance tests serve: views of the usual kinds, and what the process has open."""

import asyncio
import os
import time

import anyio

from microws import App

app = App()
compressing = App(compression=True)


@app.get("/statistics")
@compressing.get("/statistics")
async def statistics():
    return {"pid": os.getpid(), "tasks": len(asyncio.all_tasks())}


@app.websocket_route("/echo", value_type="auto")
@compressing.websocket_route("/echo", value_type="auto")
async def echo(ws):
    async with ws:
        async for message in ws:
            await ws.send(message)


@app.websocket_route("/later")
async def echo_later(ws):
    await anyio.sleep(0.02)
    async with ws:
        async for message in ws:
            await ws.send(message)


@app.websocket_route("/returns")
async def returns(ws):
    """Ends while messages wait for it."""
    async with ws:
        await anyio.sleep(0.02)


@app.websocket_route("/topic", subscribe="topic")
async def topic(ws):
    async with ws:
        async for message in ws:
            await ws.publish("topic", message)


@app.websocket_route("/ticks")
async def ticks(ws):
    """Only sends, a little at a time."""
    async with ws:
        while True:
            await ws.send("tick")
            await anyio.sleep(0.01)


@app.websocket_route("/pours", value_type="bytes")
async def pours(ws):
    """Only sends, as much as it can."""
    async with ws:
        while True:
            await ws.send(bytes(1 << 16))


@app.websocket_route("/stalls")
async def stalls(ws):
    """Holds the event loop up for as many seconds as it is told."""
    async with ws:
        async for seconds in ws:
            time.sleep(float(seconds))  # noqa: ASYNC251 - that is the point
            await ws.send("done")
