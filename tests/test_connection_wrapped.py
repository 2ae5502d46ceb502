"""Published messages pass through middleware that wraps ``send`` and may do anything with each."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar

import pytest
from websocket_server import ASYNCIO_BACKENDS, serving, until

from microws import App
from microws.counters import COUNTERS

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS),
]

# Enough connections for a bulk write, on systems that have one.
MANY = 20


class Room:
    """An app whose connections get the topic "t" through middleware, and its clients."""

    def __init__(self, on_send, **options):
        self.app = App(**options)
        self.app.add_middleware(self.middleware)
        self.app.websocket_route("/", subscribe="t")(self.view)
        self.on_send = on_send
        self.connections = []
        self.clients = []

    def middleware(self, app):
        async def call(scope, receive, send):
            if scope["type"] != "websocket":
                await app(scope, receive, send)
                return

            async def send_on(event):
                if event["type"] == "websocket.send":
                    await self.on_send(event, send, n)
                else:
                    await send(event)

            n = len(self.connections)
            number.set(n)
            await app(scope, receive, send_on)

        return call

    async def view(self, ws):
        async with ws:
            self.connections.append(ws)
            async for _ in ws:
                pass

    async def publish(self, *values):
        for value in values:
            await self.app.publish("t", value)

    async def read(self, count):
        """What each client gets."""
        return [[payload.decode() for payload in await client.read_payloads(count)] for client in self.clients]


number = ContextVar("number", default=None)


@asynccontextmanager
async def opened(on_send, *, count=MANY, connection=None, **options):
    """A ``Room`` with ``count`` clients."""
    room = Room(on_send, **options)
    async with serving(room.app) as served, AsyncExitStack() as stack:
        for joined in range(count):
            client = await stack.enter_async_context(await served.connect(**connection or {}))
            await client.open()
            room.clients.append(client)
            await until(lambda joined=joined: len(room.connections) > joined)
        yield room


async def forward(event, send, n):
    await send(event)


async def test_middleware_sees_each_message_once_per_connection_in_order():
    seen = {}

    async def count(event, send, n):
        seen.setdefault(n, []).append(event["text"])
        await send(event)

    async with opened(count) as room:
        await room.publish("1", "2")
        assert await room.read(2) == [["1", "2"]] * MANY
        await room.publish("3")
        await room.connections[0].send("own")
        await room.publish("4")
        assert await room.clients[0].read_payloads(3) == [b"3", b"own", b"4"]
    assert seen == {0: ["1", "2", "3", "own", "4"]} | {n: ["1", "2", "3", "4"] for n in range(1, MANY)}


async def test_messages_through_middleware_are_counted_once(monkeypatch):
    monkeypatch.setattr(COUNTERS, "is_on", True)
    async with opened(forward) as room:
        counted = []
        monkeypatch.setattr(COUNTERS, "send", lambda messages, size: counted.append((messages, size)))
        await room.publish("1", "2")
        await room.connections[0].send("own")
        await room.read(2)
        assert await room.clients[0].read_payloads(1) == [b"own"]
    assert sorted(counted) == sorted([(1, 3)] * 2 * MANY + [(1, 5)])


async def test_middleware_needs_no_extra_task_per_connection():
    async with opened(forward) as room:
        before = len(asyncio.all_tasks())
        await room.publish("1", "2")
        await room.read(2)
        assert len(asyncio.all_tasks()) == before


@pytest.mark.parametrize("value", ["text", b"bytes"])
async def test_middleware_may_change_a_message(value):
    async def change(event, send, n):
        key = "text" if isinstance(value, str) else "bytes"
        await send({**event, key: event[key][::-1]})

    async with opened(change) as room:
        await room.publish(value)
        assert [await client.read_payloads(1) for client in room.clients] == [
            [value[::-1] if isinstance(value, bytes) else value[::-1].encode()]
        ] * MANY


async def test_middleware_may_drop_repeat_and_add_messages():
    async def treat(event, send, n):
        if event["text"] == "drop":
            return
        if event["text"] == "add":
            await send({"type": "websocket.send", "text": "before"})
        await send(event)
        if event["text"] in ("add", "repeat"):
            await send({"type": "websocket.send", "text": "after"} if event["text"] == "add" else event)

    async with opened(treat) as room:
        await room.publish("1", "drop", "add", "repeat", "2")
        expected = ["1", "before", "add", "after", "repeat", "repeat", "2"]
        assert await room.read(len(expected)) == [expected] * MANY


async def test_middleware_that_waits_delays_only_its_connection():
    go_on = asyncio.Event()

    async def wait(event, send, n):
        if n == 0:
            # It ends in the task in which it began, or would cancel another one.
            async with asyncio.timeout(10):
                await go_on.wait()
        await send(event)

    async with opened(wait) as room:
        await room.publish("1", "2")
        await room.publish("3")
        others = [await client.read_payloads(3) for client in room.clients[1:]]
        assert others == [[b"1", b"2", b"3"]] * (MANY - 1)
        sending = asyncio.create_task(room.connections[0].send("4"))
        await asyncio.sleep(0)
        go_on.set()
        await sending
        await room.publish("5")
        assert await room.clients[0].read_payloads(5) == [b"1", b"2", b"3", b"4", b"5"]


async def test_a_disconnect_ends_middleware_that_waits():
    waiting = asyncio.Event()

    async def wait(event, send, n):
        waiting.set()
        await asyncio.Event().wait()

    async with opened(wait, count=1) as room:
        await room.publish("1")
        await waiting.wait()
        await room.clients[0].hang_up()
        await until(lambda: not room.app.hub.statistics().connections)


async def test_middleware_has_the_context_variables_of_its_connection():
    mark = ContextVar("mark", default=None)
    seen = []

    async def look(event, send, n):
        seen.append((number.get(), mark.get()))
        mark.set(n)
        await send(event)

    async with opened(look, count=3) as room:
        await room.publish("1")
        await room.read(1)
        await room.publish("2")
        await room.read(1)
    assert seen == [(0, None), (1, None), (2, None), (0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("turns", range(4))
async def test_published_messages_are_sent_before_a_later_close(turns):
    async with opened(forward) as room:
        await room.publish("1")
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.TaskGroup() as group:
            for ws in room.connections:
                group.create_task(ws.close(4000))
        for client in room.clients:
            assert await client.read_payloads(1) == [b"1"]
            assert (await client.read_close())[0] == 4000


async def test_a_connection_closed_by_other_middleware_gets_its_pending_messages():
    connections = []

    async def close_all(event, send, n):
        await send(event)
        if n == MANY - 1:
            for connection in connections:
                connection.close(4000, "")

    async with opened(close_all) as room:
        connections += [ws.scope["microws.connection"] for ws in room.connections]
        await room.publish("1")
        for client in room.clients:
            assert await client.read_payloads(1) == [b"1"]
            assert (await client.read_close())[0] == 4000


async def test_middleware_that_fails_ends_its_own_connection(caplog):
    async def fail(event, send, n):
        if n == 0:
            raise KeyError("broken")
        await send(event)

    async with opened(fail) as room:
        await room.publish("1", "2")
        assert [await client.read_payloads(2) for client in room.clients[1:]] == [[b"1", b"2"]] * (MANY - 1)
        await until(lambda: room.app.hub.statistics().connections == MANY - 1)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [KeyError]


async def test_clients_that_disconnect_delay_no_other():
    async with opened(forward) as room:
        for n in range(10):
            room.clients[n].reset()
            await room.publish(str(n))
        for client in room.clients[10:]:
            assert await client.read_payloads(10) == [b"%d" % n for n in range(10)]
        await until(lambda: room.app.hub.statistics().connections == MANY - 10)


async def test_middleware_that_publishes_keeps_the_order():
    async def answer(event, send, n):
        await send(event)
        if event["text"] == "ask" and n == 0:
            await room.app.publish("t", "answer")

    async with opened(answer) as room:
        await room.publish("ask", "2")
        assert await room.read(3) == [["ask", "2", "answer"]] * MANY
