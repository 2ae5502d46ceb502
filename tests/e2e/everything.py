"""An app that does a little of everything, for every server to serve."""

import asyncio
import threading
from pathlib import Path

import anyio

from microws import App, EventStream, HTTPException

app = App(max_body_size=64 << 10, send_timeout=0.4, accept_timeout=0.3, close_timeout=0.3)
app.topic("kept-*", history=1000)


class Expected(Exception):
    """What views raise here; any other exception in a server's log is a defect."""


class Diary:
    """What views have noted, for tests to read."""

    def __init__(self):
        self._notes = {}
        self._changed = anyio.Event()

    def note(self, name, **values):
        assert name not in self._notes
        self._notes[name] = values
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def read(self, name):
        with anyio.fail_after(10):
            while name not in self._notes:
                await self._changed.wait()
        return self._notes[name]


diary = Diary()


@app.get("/")
async def page():
    return "<h1>hello</h1>"


@app.get("/notes/{name}")
async def note(name):
    return await diary.read(name)


@app.get("/statistics")
async def statistics():
    """What the process has open, as long as this request is answered."""
    try:
        tasks = len(asyncio.all_tasks())
    except RuntimeError:
        import trio

        tasks = trio.lowlevel.current_statistics().tasks_living
    hub = app.hub.statistics()._asdict()
    return {
        "tasks": tasks,
        "files": _open_files(),
        "threads": threading.active_count(),
        **{name: hub[name] for name in ("topics", "subscribers", "subscriptions", "queued")},
    }


def _open_files():
    return len(list(Path("/dev/fd").iterdir()))


@app.on_shutdown
async def end():
    print("everything has ended", flush=True)


# HTTP


@app.post("/body")
async def body(request):
    return {"size": len(await request.body())}


@app.post("/unread")
async def unread():
    return "not read"


@app.get("/fail")
async def fail():
    raise Expected("secret")


@app.post("/publish/{topic}")
async def publish(request, topic):
    receipt = await app.publish(topic, await request.json())
    return {"subscribers": receipt.subscribers}, 202


@app.get("/events/{topic}")
async def events(topic):
    return EventStream(app.stream(topic))


# WebSockets


async def echo(ws):
    async with ws:
        async for message in ws:
            await ws.send(message)


for kind in ("text", "bytes", "json", "auto"):
    app.add_websocket_route(echo, f"/echo/{kind}", value_type=kind, name=f"echo-{kind}")


@app.websocket_route("/same")
async def same_websocket(ws):
    async with ws:
        await ws.send("a WebSocket")


@app.get("/same")
async def same_page():
    return "a page"


@app.websocket_route("/topics/{topic}", value_type="json", subscribe="{topic}")
async def topic(ws, topic):
    """Gets what is published, publishes what it receives."""
    async with ws:
        async for message in ws:
            await ws.publish(topic, message)


@app.websocket_route("/subprotocol", subprotocols=["v2", "v1"])
async def subprotocol(ws):
    async with ws:
        await ws.send(str(ws.subprotocol))


@app.websocket_route("/headers")
async def headers(ws):
    await ws.accept(headers=[("x-greeting", "hello"), ("set-cookie", "a=1"), ("set-cookie", "b=2")])
    async with ws:
        await ws.send(ws.headers["x-question"])


@app.websocket_route("/reject")
async def reject(ws):
    await ws.reject(418, {"error": "a teapot"}, headers={"x-reason": "tea"})


@app.websocket_route("/raise/{status:int}")
async def raises(ws, status):
    raise HTTPException(status, "as you wish")


@app.websocket_route("/raise/{status:int}/later")
async def raises_later(ws, status):
    async with ws:
        raise HTTPException(status, "as you wish")


@app.websocket_route("/fail")
async def fail_before(ws):
    raise Expected("secret")


@app.websocket_route("/fail/later")
async def fail_later(ws):
    async with ws:
        await ws.receive()
        raise Expected("secret")


@app.websocket_route("/silent")
async def silent(ws):
    """Does not answer the handshake."""
    await anyio.sleep_forever()


@app.websocket_route("/accept-subprotocol/{name}")
async def accept_subprotocol(ws, name):
    try:
        await ws.accept("not offered")
    except ValueError as error:
        diary.note(name, error=str(error))
        raise Expected from None


@app.websocket_route("/accept-header/{name}")
async def accept_header(ws, name):
    try:
        await ws.accept(headers={"x-greeting": "hello\r\nx-forged: yes"})
    except ValueError as error:
        diary.note(name, error=str(error))
        raise Expected from None


@app.websocket_route("/close")
async def close(ws):
    """Closes with the code and reason that it is sent."""
    async with ws:
        code, _, reason = (await ws.receive()).partition(" ")
        await ws.close(int(code), reason)


@app.websocket_route("/returns")
async def returns(ws):
    async with ws:
        pass


@app.websocket_route("/receives/{name}")
async def receives(ws, name):
    """Notes the end."""
    async with ws:
        async for _ in ws:
            pass
    diary.note(name, code=ws.close_code, reason=ws.close_reason)


@app.websocket_route("/ticks/{name}")
async def ticks(ws, name):
    """Only sends, a little at a time."""
    try:
        async with ws:
            while True:
                await ws.send("tick")
                await anyio.sleep(0.01)
    finally:
        diary.note(name, code=ws.close_code)


@app.websocket_route("/sleeps/{name}")
async def sleeps(ws, name):
    """Never uses its ws again."""
    async with ws:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            diary.note(name, closed=ws.closed)
            raise


@app.websocket_route("/slow-to-accept")
async def slow_to_accept(ws):
    await anyio.sleep(0.01)
    async with ws:
        async for message in ws:
            await ws.send(message)
