"""An ASGI server with one WebSocket in memory: the test decides what the app receives, and how each send ends."""

import asyncio
from collections import deque
from contextlib import asynccontextmanager

import anyio

DISCONNECT = {"type": "websocket.disconnect", "code": 1001, "reason": "bye"}


class ClientDisconnected(OSError):
    """What ``send`` raises after the client has disconnected."""


class ASGIClient:
    """
    ASGI's ``receive`` and ``send`` for one connection.

    Args:
        path: Path of the handshake.
        denial: Whether the server supports ``websocket.http.response``.
        suspends: Whether ``send`` lets other tasks run. Most servers do not while their buffers have room.

    Attributes:
        sent: Events that the app has sent, in order.
        taken: Number of events that the app has received.
        is_stalled: Whether ``send`` waits.
        raises: Exception that ``send`` raises.
        was_cancelled: Whether a send was cancelled.
    """

    def __init__(self, path="/", *, denial=True, suspends=True):
        self.scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"testserver")],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 80),
            "subprotocols": [],
            "state": {},
            "extensions": {"websocket.http.response": {}} if denial else {},
        }
        self.sent = []
        self.taken = 0
        self.is_stalled = False
        self.raises = None
        self.receive_raises = None
        self.was_cancelled = False
        self.has_ended = False
        self.error = None
        self.inside = 0
        self._suspends = suspends
        self._events = deque([{"type": "websocket.connect"}])
        self._changed = anyio.Event()
        self._scope = anyio.CancelScope()

    async def receive(self):
        await self.until(lambda: self._events or self.receive_raises)
        if self.receive_raises:
            raise self.receive_raises
        self.taken += 1
        self.notify()
        return self._events.popleft()

    async def send(self, event):
        if self.raises:
            raise self.raises
        assert self.inside == 0, "two tasks are inside send at once"
        self.inside += 1
        try:
            if self._suspends:
                await anyio.lowlevel.checkpoint()
            if self.is_stalled:
                await self.until(lambda: not self.is_stalled)
        except BaseException:
            self.was_cancelled = True
            self.notify()
            raise
        finally:
            self.inside -= 1
        self.sent.append(event)
        self.notify()

    def put(self, *events):
        """The client sends texts, bytes or whole events."""
        for event in events:
            if isinstance(event, str):
                event = {"type": "websocket.receive", "text": event}
            elif isinstance(event, bytes):
                event = {"type": "websocket.receive", "bytes": event}
            self._events.append(event)
        self.notify()

    def stall(self):
        self.is_stalled = True

    def resume(self):
        self.is_stalled = False
        self.notify()

    def notify(self):
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def until(self, condition):
        while not condition():
            await self._changed.wait()

    async def wait_for(self, condition):
        with anyio.fail_after(5):
            await self.until(condition)

    async def wait_sent(self, count):
        await self.wait_for(lambda: len(self.sent) >= count)

    async def wait_ended(self):
        await self.wait_for(lambda: self.has_ended)

    def cancel(self):
        """The server cancels the app's task."""
        self._scope.cancel()

    async def run(self, app):
        try:
            with self._scope:
                await app(self.scope, self.receive, self.send)
        except Exception as error:
            self.error = error
        finally:
            self.has_ended = True
            self.notify()

    @property
    def texts(self):
        """What the client got: texts, bytes, and the type of each other event (with the code of a close)."""
        return [self.name_of(event) for event in self.sent]

    @staticmethod
    def name_of(event):
        if event["type"] == "websocket.send":
            return event["text"] if "text" in event else event["bytes"]
        if event["type"] == "websocket.close":
            return f"close {event['code']} {event['reason']}".rstrip()
        if event["type"] == "websocket.http.response.start":
            return event["status"]
        return event["type"].removeprefix("websocket.")


async def settle():
    """
    Wait until every other task is blocked.

    anyio's function sleeps for 0.1 s on asyncio. This one looks at the ready callbacks of asyncio's event loop instead.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        await anyio.wait_all_tasks_blocked()
        return
    is_blocked = False
    while not is_blocked:
        while loop._ready:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)  # for time-outs of 0 seconds
        is_blocked = not loop._ready


@asynccontextmanager
async def connected(app, *clients):
    """``app`` serves these connections. They must end with the block, within 5 s."""
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(client.run, app)
        yield clients[0] if len(clients) == 1 else clients
        for client in clients:
            await client.wait_ended()
