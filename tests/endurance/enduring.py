"""What the endurance tests serve: views of the usual kinds, and what the process has open."""

import asyncio
import os
import tempfile
from pathlib import Path

import anyio

from microws import App, EventStream, FileResponse, StreamingResponse

LARGE = bytes(10_000_000)
LARGE_FILE = tempfile.NamedTemporaryFile()  # noqa: SIM115 - as long as the process
LARGE_FILE.write(LARGE)
LARGE_FILE.flush()

app = App()


@app.get("/statistics")
async def statistics():
    return {"pid": os.getpid(), "tasks": len(asyncio.all_tasks()), "files": _open_files()}


def _open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@app.post("/body")
async def body(request):
    return {"size": len(await request.body())}


@app.post("/unread")
async def unread():
    return "not read"


@app.get("/large")
async def large():
    return LARGE


@app.get("/file")
async def file():
    return FileResponse(LARGE_FILE.name)


@app.get("/stream")
async def stream():
    async def pieces():
        for _ in range(1000):
            yield LARGE[:10_000]

    return StreamingResponse(pieces())


@app.get("/events")
async def events():
    return EventStream(app.stream("topic"))


@app.websocket_route("/echo", value_type="auto")
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
