"""The direct transport: an app on the project's own engine, over real sockets, down to the bytes that a client gets."""

import asyncio
import zlib
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from byte_client import BINARY, CLOSE, TEXT
from engine_here import ASYNCIO_BACKENDS, LIMIT, serving, until

from microws import App
from microws.outbox import HELD
from microws.transport.direct import DirectTransport

pytestmark = pytest.mark.anyio

MIB = 1 << 20
# More than a client that does not read is sent with small buffers: what comes behind it waits here.
STALLING = "s" * 300_000
SMALL = {"buffers": 4096}
GAP = '{"topic":"t","gap":true}'


@pytest.fixture(params=ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
def anyio_backend(request):
    return request.param


async def within(awaitable, seconds=LIMIT):
    return await asyncio.wait_for(awaitable, seconds)


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


class Room:
    """
    An app whose connections are in the hand of the test.

    Args:
        topic: Options of the topic "t".
        options: Of ``App``.
        gaps: Of the route.
    """

    def __init__(self, *, topic=None, gaps=False, **options):
        self.app = App(**options)
        if topic is not None:
            self.app.topic("t", **topic)
        self.app.websocket_route("/", gaps=gaps)(self.view)
        self.app.websocket_route("/early", gaps=gaps)(self.early)
        self.arrived = asyncio.Queue()
        self.go = asyncio.Event()
        self.serving = None
        self.clients = AsyncExitStack()

    async def view(self, ws):
        async with ws:
            self.arrived.put_nowait(ws)
            async for _ in ws:
                pass

    async def early(self, ws):
        """Accepts when ``go`` is set."""
        self.arrived.put_nowait(ws)
        await self.go.wait()
        async with ws:
            async for _ in ws:
                pass

    async def connect(self, **connection):
        """A client before its handshake. It leaves with the others."""
        return await self.clients.enter_async_context(await self.serving.connect(**connection))

    async def join(self, *topics, fields=(), **connection):
        """A connection that gets ``topics``: its ``ws`` and its client."""
        client = await self.connect(**connection)
        await client.open("/", *fields)
        ws = await within(self.arrived.get())
        assert isinstance(ws._transport, DirectTransport)
        if topics:
            await ws.subscribe(*topics)
        return ws, client

    async def stall(self, *topics, **options):
        """The same with a client that does not read: the first message that it gets is ``STALLING``."""
        ws, client = await self.join(*topics, **(SMALL | options))
        await ws.send(STALLING)
        await until(lambda: not ws._transport._wire.is_writable)
        return ws, client

    async def publish(self, *values):
        for value in values:
            await self.app.publish("t", value)


@asynccontextmanager
async def served(*, tls=False, compression=False, limit=LIMIT, **options):
    room = Room(**options)
    async with serving(room.app, tls=tls, compression=compression, limit=limit) as room.serving, room.clients:
        yield room
    statistics = room.app.hub.statistics()
    assert (statistics.connections, statistics.topics, statistics.subscribers) == (0, 0, 0)
    assert not room.app.hub._topics


async def read_texts(client, count):
    return [payload.decode() for payload in await client.read_payloads(count)]


async def read_until_close(client):
    """The texts up to the Close frame, its code and its reason."""
    texts = []
    while (received := await client.read_frame()).opcode != CLOSE:
        texts.append(received.payload.decode())
    return texts, (int.from_bytes(received.payload[:2]), received.payload[2:].decode())


def numbers(*arguments):
    return [str(number) for number in range(*arguments)]


# One order


async def test_what_is_sent_and_what_is_published_in_one_turn_leaves_in_the_order_of_the_calls():
    async with served() as room:
        ws, client = await room.join("t")
        for number in range(0, 100, 2):
            await ws.send(str(number))
            await room.publish(str(number + 1))
        assert await read_texts(client, 100) == numbers(100)


async def test_a_send_behind_others_that_wait_keeps_the_order_when_the_client_reads_again():
    async with served() as room:
        ws, client = await room.stall("t")
        for number in range(0, 100, 2):
            await ws.send(str(number))
            await room.publish(str(number + 1))
        assert await read_texts(client, 101) == [STALLING, *numbers(100)]
        await room.publish("live")
        await ws.send("again")
        assert await read_texts(client, 2) == ["live", "again"]


async def test_messages_published_in_one_turn_are_one_write_to_each_on_a_compressed_connection_too():
    offer = "sec-websocket-extensions: permessage-deflate"
    async with served(compression=True) as room:
        plain = await room.join("t")
        packed = await room.join("t", fields=[offer])
        await packed[0].send("x" * 5000)
        await room.publish("x" * 5000, "2")
        await packed[0].send("y" * 5000)
        assert await read_texts(plain[1], 2) == ["x" * 5000, "2"]
        frames = [await packed[1].read_frame() for _ in range(4)]
        assert [received.is_compressed for received in frames] == [True, False, False, True]
        assert [frames[1].payload, frames[2].payload] == [b"x" * 5000, b"2"]
        # What goes uncompressed is not in the window of what comes behind it.
        stream = zlib.decompressobj(-15)
        texts = [stream.decompress(frames[n].payload + b"\x00\x00\xff\xff") for n in (0, 3)]
        assert texts == [b"x" * 5000, b"y" * 5000]
        assert room.app.hub.statistics().flush_sizes == {"2": 1}  # what stands before a ws.send leaves with it


async def test_eight_messages_of_one_turn_are_one_write_over_tls_too():
    for tls in (False, True):
        async with served(tls=tls) as room:
            joined = [await room.join("t") for _ in range(3)]
            await asyncio.gather(*[room.publish(text) for text in numbers(8)])
            for _, client in joined:
                assert await read_texts(client, 8) == numbers(8)
            assert room.app.hub.statistics().flush_sizes == {"8": 3}


@pytest.mark.parametrize("tls", [False, True])
async def test_messages_of_any_size_and_kind_come_as_they_are(tls):
    sizes = [0, 1, 125, 126, 65_535, 65_536, 100_000, MIB + 1]
    async with served(tls=tls) as room:
        _, client = await room.join("t")
        reading = asyncio.ensure_future(client.read_payloads(2 * len(sizes)))
        for size in sizes:
            await room.publish("x" * size, b"\xff" * size)
        expected = [payload for size in sizes for payload in (b"x" * size, b"\xff" * size)]
        assert await within(reading) == expected
        await room.publish("text", b"bytes")
        assert [(await client.read_frame()).opcode for _ in range(2)] == [TEXT, BINARY]


async def test_many_sends_to_a_quick_client_let_others_have_their_turn():
    async with served() as room:
        ws, client = await room.join()
        others = []
        asyncio.get_running_loop().call_soon(others.append, "turn")
        for number in range(200):
            await ws.send(str(number))
        assert others == ["turn"]
        assert await read_texts(client, 200) == numbers(200)


# Before the accept


async def test_what_is_published_before_the_accept_waits_behind_the_101():
    async with served() as room:
        client = await room.connect()
        opening = asyncio.ensure_future(client.open("/early"))
        ws = await within(room.arrived.get())
        with pytest.raises(RuntimeError, match=r"ws\.send\(\) before the handshake is accepted"):
            await ws.send("too early")
        with pytest.raises(RuntimeError, match=r"ws\.receive\(\) before the handshake is accepted"):
            await asyncio.gather(ws.receive(), answer_soon(room))
        await within(opening)


async def answer_soon(room):
    await turns()
    room.go.set()


async def test_subscribed_before_the_accept_a_client_gets_it_all_behind_the_101():
    async with served() as room:
        client = await room.connect()
        opening = asyncio.ensure_future(client.open("/early"))
        ws = await within(room.arrived.get())
        await ws.subscribe("t")
        await room.publish("1", "2")
        await turns()
        assert not opening.done()
        assert ws._transport.outbox.batch is HELD
        room.go.set()
        await within(opening)
        await room.publish("3")
        assert await read_texts(client, 3) == ["1", "2", "3"]


async def test_whose_outbox_overflows_before_the_accept_is_refused_and_sees_nothing_behind_the_loss():
    async with served(topic={"queue": 2}) as room:
        client = await room.connect()
        answer = asyncio.ensure_future(client.refused("/early"))
        ws = await within(room.arrived.get())
        await ws.subscribe("t")
        await room.publish(*numbers(3))
        assert (ws.closed, ws.close_code) == (True, 1013)
        assert room.app.hub.statistics().subscribers == 0
        await room.publish("later")
        assert (await within(answer))[0] == 403
        room.go.set()


async def test_a_helper_that_fails_before_the_accept_has_the_handshake_refused(caplog):
    async def fail():
        raise KeyError

    async with served() as room:
        client = await room.connect()
        answer = asyncio.ensure_future(client.refused("/early"))
        ws = await within(room.arrived.get())
        ws.start_soon(fail)
        assert (await within(answer))[0] == 403
        assert (ws.closed, ws.close_code, ws.close_reason) == (True, 1011, "internal error")
        room.go.set()
    assert "a task of ws.start_soon failed" in caplog.text
