"""SocketConnection with an app: the bytes that clients get over sockets."""

import asyncio
import gc
import platform
import sys
import zlib
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from byte_client import BINARY, CLOSE, TEXT, close_frame, frame, upgrade
from websocket_server import ASYNCIO_BACKENDS, LIMIT, live, serving, until, within

from microws import App, WebSocketDisconnect
from microws.connection.socket import SocketConnection
from microws.hub import BACKED_UP, MAX_BYTES

pytestmark = pytest.mark.anyio

MIB = 1 << 20
# More than small buffers hold, so that messages after it are pending while the client does not read.
STALLING = "s" * 300_000
SMALL = {"buffers": 4096}
GAP = '{"topic":"t","gap":true}'


@pytest.fixture(params=ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
def anyio_backend(request):
    return request.param


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
        assert isinstance(ws._connection, SocketConnection)
        if topics:
            await ws.subscribe(*topics)
        return ws, client

    async def stall(self, *topics, **options):
        """The same with a client that does not read: the first message that it gets is ``STALLING``."""
        ws, client = await self.join(*topics, **(SMALL | options))
        await ws.send(STALLING)
        await until(lambda: not ws._connection.is_writable)
        return ws, client

    async def publish(self, *values):
        for value in values:
            await self.app.publish("t", value)


@asynccontextmanager
async def served(*, server=None, **options):
    """
    A ``Room``, and at the end nothing that is left in its hub.

    Args:
        server: Options of ``serving``.
        options: Of ``Room``.
    """
    room = Room(**options)
    async with serving(room.app, **server or {}) as room.serving, room.clients:
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


@pytest.mark.parametrize("stalls", [False, True])
async def test_ws_send_and_publish_keep_the_order_of_the_calls(stalls):
    async with served() as room:
        ws, client = await (room.stall("t") if stalls else room.join("t"))
        for number in range(0, 100, 2):
            await ws.send(str(number))
            await room.publish(str(number + 1))
        first = [STALLING] if stalls else []
        assert await read_texts(client, 100 + len(first)) == [*first, *numbers(100)]
        await room.publish("live")
        await ws.send("again")
        assert await read_texts(client, 2) == ["live", "again"]


async def test_a_compressed_connection_gets_published_messages_uncompressed():
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
        # Uncompressed messages are not in the compression window of later ones.
        stream = zlib.decompressobj(-15)
        texts = [stream.decompress(frames[n].payload + b"\x00\x00\xff\xff") for n in (0, 3)]
        assert texts == [b"x" * 5000, b"y" * 5000]
        assert room.app.hub.statistics().flush_sizes == {"2": 1}  # what stands before a ws.send leaves with it


@pytest.mark.parametrize("tls", [False, True])
async def test_eight_messages_of_one_turn_are_one_write(tls):
    async with served(server={"tls": tls}) as room:
        joined = [await room.join("t") for _ in range(3)]
        await asyncio.gather(*[room.publish(text) for text in numbers(8)])
        for _, client in joined:
            assert await read_texts(client, 8) == numbers(8)
        assert room.app.hub.statistics().flush_sizes == {"8": 3}


@pytest.mark.parametrize("tls", [False, True])
async def test_messages_of_any_size_and_type_arrive_unchanged(tls):
    sizes = [0, 1, 125, 126, 65_535, 65_536, 100_000, MIB + 1]
    async with served(server={"tls": tls}) as room:
        _, client = await room.join("t")
        reading = asyncio.ensure_future(client.read_payloads(2 * len(sizes)))
        for size in sizes:
            await room.publish("x" * size, b"\xff" * size)
        expected = [payload for size in sizes for payload in (b"x" * size, b"\xff" * size)]
        assert await within(reading) == expected
        await room.publish("text", b"bytes")
        assert [(await client.read_frame()).opcode for _ in range(2)] == [TEXT, BINARY]


async def test_many_sends_to_a_fast_client_yield_to_other_tasks():
    async with served() as room:
        ws, client = await room.join()
        others = []
        asyncio.get_running_loop().call_soon(others.append, "turn")
        for number in range(200):
            await ws.send(str(number))
        assert others == ["turn"]
        assert await read_texts(client, 200) == numbers(200)


# To many at once


@asynccontextmanager
async def crowd(count, *, connection=None, **options):
    """A ``Room`` with so many that get "t", as pairs of ``ws`` and client."""
    async with served(**options) as room:
        yield room, [await room.join("t", **connection or {}) for _ in range(count)]


in_bulk = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="bulk writes need Linux on x86-64 or AArch64",
)


@in_bulk
@pytest.mark.parametrize("tcp", [False, True])
async def test_a_broadcast_bypasses_transports_with_nothing_pending(tcp):
    written = []
    async with crowd(200, connection={"tcp": tcp}) as (room, members):
        for ws, _ in members:
            ws._connection.write = written.append
        await room.publish("1", "2")
        for _, client in members:
            assert await read_texts(client, 2) == ["1", "2"]
    assert written == []


@pytest.mark.parametrize("tls", [False, True])
async def test_messages_to_some_and_published_to_all_keep_their_order(tls):
    async with crowd(20, server={"tls": tls}) as (room, members):
        for number in range(0, 60, 2):
            for ws, _ in members[::3]:
                await ws.send(str(number))
            await room.publish(str(number + 1))
            if number % 3 == 0:
                await turns(number % 5)
        for index, (_, client) in enumerate(members):
            expected = numbers(60) if index % 3 == 0 else numbers(1, 60, 2)
            assert await read_texts(client, len(expected)) == expected


async def test_slow_clients_get_everything_later_and_delay_none_of_the_others():
    texts = [str(number) * 20_000 for number in range(10)]
    async with crowd(12) as (room, members):
        slow = [await room.join("t", **SMALL) for _ in range(3)]
        reading = [asyncio.ensure_future(read_texts(client, 20)) for _, client in members]
        for text in texts:
            await room.publish(text)
            await turns(1)
        await room.publish(*texts)
        assert [await within(texts_read) for texts_read in reading] == [texts * 2] * 12
        for _, client in slow:
            assert await read_texts(client, 20) == texts * 2
        await room.publish("live")
        for _, client in (*members, *slow):
            assert await read_texts(client, 1) == ["live"]


@in_bulk
async def test_slow_clients_share_one_copy_of_a_pending_message():
    async with crowd(0) as (room, _):
        members = [await room.join("t", **SMALL) for _ in range(10)]
        written = []
        for ws, _ in members:
            ws._connection.write = written.append
        await room.publish("x" * 100_000)
        await until(lambda: len(written) == 10)
        assert len({id(rest.obj) for rest in written}) == 1


async def test_clients_that_disconnect_do_not_affect_the_others(caplog):
    async with crowd(30, connection={"tcp": True}) as (room, members):
        for number, (_, client) in enumerate(members[:20]):
            client.reset() if number % 2 else client.sock.close()
            await room.publish(str(number))
            if number % 3 == 0:
                await turns()
        for _, client in members[20:]:
            assert await read_texts(client, 20) == numbers(20)
        await until(lambda: room.app.hub.statistics().subscribers == 10)
    assert caplog.text == ""


async def test_a_reused_descriptor_gets_no_message_of_its_predecessor():
    async with crowd(20) as (room, members):
        sockets = {ws._connection.socket for ws, _ in members}
        new = []
        for number, (_, client) in enumerate(members):
            client.sock.close()
            await room.publish(f"secret {number}")
            await turns(number % 4)
            new.append(await room.join())
            await room.publish("secret too")
        await until(lambda: not room.app.hub._topics)
        assert sockets & {ws._connection.socket for ws, _ in new}
        for ws, client in new:
            await ws.send("for you")
            assert await read_texts(client, 1) == ["for you"]


# Before the accept


async def test_send_and_receive_before_the_accept_raise():
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


async def test_messages_published_before_the_accept_follow_the_101():
    async with served() as room:
        client = await room.connect()
        opening = asyncio.ensure_future(client.open("/early"))
        ws = await within(room.arrived.get())
        await ws.subscribe("t")
        await room.publish("1", "2")
        await turns()
        assert not opening.done()
        assert ws._connection.outbox.batch is BACKED_UP
        room.go.set()
        await within(opening)
        await room.publish("3")
        assert await read_texts(client, 3) == ["1", "2", "3"]


async def test_an_overflow_before_the_accept_refuses_the_handshake():
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


async def test_a_helper_that_fails_before_the_accept_refuses_the_handshake(caplog):
    async def fail():
        raise KeyError

    async with served() as room:
        client = await room.connect()
        answer = asyncio.ensure_future(client.refused("/early"))
        ws = await within(room.arrived.get())
        ws.start_soon(fail)
        assert (await within(answer))[0] == 403
        assert (ws.closed, ws.close_code) == (True, 1011)
        assert ws.close_reason.startswith("internal error, error id ")
        room.go.set()
    assert "a task of ws.start_soon failed" in caplog.text


async def test_accept_raises_and_reject_returns_after_the_client_disconnected():
    async with served() as room:
        client = await room.connect()
        await client.send(upgrade("/early"))
        ws = await within(room.arrived.get())
        client.sock.close()
        await until(lambda: ws.closed)
        with pytest.raises(WebSocketDisconnect) as caught:
            await ws.accept()
        assert caught.value.code == 1006
        await ws.reject(418)
        assert ws.close_code == 1006
        room.go.set()


async def test_a_close_with_the_handshake_cancels_a_view_that_does_not_notice():
    ended = asyncio.Event()
    async with served(close_timeout=0.05) as room:

        @room.app.websocket_route("/deaf", subscribe="t")
        async def deaf(ws):
            try:
                async with ws:
                    await asyncio.Event().wait()
            finally:
                ended.set()

        client = await room.connect()
        await client.open("/deaf", behind=close_frame(1000))
        assert await client.read_close() == (1000, "")
        await within(ended.wait())


async def test_nothing_published_is_sent_around_a_rejection():
    async with served() as room:
        client = await room.connect()
        answer = asyncio.ensure_future(client.refused("/early"))
        ws = await within(room.arrived.get())
        await ws.subscribe("t")
        await room.publish("1")
        await ws.reject(418, "no")
        await room.publish("2")
        status, _, body = await within(answer)
        assert (status, body, ws.close_code) == (418, b"no", 3418)
        with pytest.raises(RuntimeError, match="ended"):
            await ws.accept()
        assert room.app.hub.statistics().subscribers == 0
        room.go.set()


# A client that does not read


async def test_over_256_pending_messages_close_with_1013():
    async with served() as room:
        _, quick = await room.join("t")
        slow, stalled = await room.stall("t")
        reading = asyncio.ensure_future(read_texts(quick, 300))
        for number in range(300):
            await room.publish(str(number))
            await turns(1)
        assert (slow.close_code, slow.close_reason) == (1013, "too slow")
        assert await within(reading) == numbers(300)
        # Nothing is sent after a loss: pending messages are dropped as well.
        assert await read_until_close(stalled) == ([STALLING], (1013, "too slow"))
        assert room.app.hub.statistics().dropped == {"close": 1}
        assert room.app.hub.statistics().subscribers == 1


async def test_256_messages_are_pending_until_the_client_reads_again():
    async with served() as room:
        ws, client = await room.stall("t")
        for number in range(256):
            await room.publish(str(number))
            await turns(1)
        assert len(ws._connection.outbox) == 256
        assert await read_texts(client, 257) == [STALLING, *numbers(256)]
        await until(lambda: ws._connection.outbox.batch is None)
        await room.publish("live")
        assert await read_texts(client, 1) == ["live"]
        assert not ws.closed


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize(
    ("topic", "kept"),
    [
        ({"queue": 3, "overflow": "drop_oldest"}, [GAP, "7", "8", "9"]),
        ({"queue": 3, "overflow": "drop_newest"}, ["0", "1", "2", GAP]),
        ({"overflow": "latest"}, ["9"]),
        ({"queue": 2, "overflow": "latest", "key": lambda value: int(value) % 3}, [GAP, "8", "9"]),
    ],
)
async def test_the_overflow_policy_of_the_topic_and_its_gap_markers(topic, kept, gaps):
    async with served(topic=topic, gaps=gaps) as room:
        ws, client = await room.stall("t")
        await room.publish(*numbers(10))
        await ws.send("sent")
        expected = [STALLING, *[text for text in kept if text != GAP]]
        count = len(expected) + 1
        if gaps and kept[0] == GAP:
            expected.insert(1, GAP)
            count += 1
        assert await read_texts(client, count) == [*expected, "sent"]
        await until(lambda: not ws._connection.outbox)
        await room.publish("10")
        if gaps and kept[-1] == GAP:
            assert await read_texts(client, 1) == [GAP]
        assert await read_texts(client, 1) == ["10"]
        assert ws._connection.outbox.batch is None
        statistics = room.app.hub.statistics()
        lost = 10 - len([text for text in kept if text != GAP])
        assert statistics.dropped == {topic["overflow"]: lost}
        assert not ws.closed


@pytest.mark.parametrize("count", [0, 1])
async def test_a_message_over_1_mib_is_queued_only_if_no_other_is(count):
    async with served() as room:
        ws, client = await room.stall("t")
        await room.publish(*["x"] * count, "x" * (2 * MIB))
        await turns()
        if count:
            assert await read_until_close(client) == ([STALLING], (1013, "too slow"))
        else:
            assert ws._connection.outbox.size == 2 * MIB
            assert await read_texts(client, 2) == [STALLING, "x" * (2 * MIB)]
            assert not ws.closed


@pytest.mark.parametrize("tls", [False, True])
async def test_at_most_1_mib_is_pending_for_a_stalled_client(tls):
    async with served(server={"tls": tls}, topic={"overflow": "drop_oldest"}) as room:
        ws, client = await room.join("t", **SMALL)
        for size in (400_000, 70_000, 1000) * 20:
            await room.publish("x" * size)
            assert ws._connection.outbox.size <= MAX_BYTES
        transport = client.server
        assert transport.get_write_buffer_size() <= transport.get_write_buffer_limits()[1] + 400_000 + (64 << 10)
        assert room.app.hub.statistics().dropped["drop_oldest"] > 20
        assert not ws.closed


# ws.send that waits


async def test_a_send_does_not_wait_for_a_topic_that_stays_full():
    async with served(topic={"queue": 300, "overflow": "drop_oldest"}) as room:
        ws, client = await room.stall("t")
        await room.publish(*numbers(300))
        await within(ws.send("sent"), 1)
        await room.publish("300")
        assert await read_texts(client, 302) == [STALLING, *numbers(1, 300), "sent", "300"]


async def test_a_send_cancelled_while_it_waits_has_sent_nothing():
    texts = [f"{number}" * 400_000 for number in range(4)]
    async with served() as room:
        ws, client = await room.stall()
        sends = [asyncio.ensure_future(ws.send(text)) for text in texts]
        await turns()
        sends[2].cancel()
        await turns()
        assert sends[2].cancelled()
        assert await read_texts(client, 4) == [STALLING, texts[0], texts[1], texts[3]]
        await ws.send("next")
        assert await read_texts(client, 1) == ["next"]


async def test_a_send_that_waits_closes_with_1013_after_send_timeout():
    async with served(send_timeout=0.05) as room:
        ws, client = await room.stall("t")
        await ws.send("x" * MIB)
        with pytest.raises(WebSocketDisconnect) as caught:
            await within(ws.send("no room"))
        assert (caught.value.code, caught.value.reason) == (1013, "too slow")
        assert room.app.hub.statistics().subscribers == 0
        assert await read_until_close(client) == ([STALLING], (1013, "too slow"))


@pytest.mark.parametrize("how", ["client leaves", "another task closes"])
async def test_a_send_that_waits_ends_with_the_connection(how):
    async with served() as room:
        ws, client = await room.stall()
        await ws.send("x" * MIB)
        waiting = asyncio.ensure_future(ws.send("no room"))
        await turns()
        if how == "client leaves":
            await client.send(close_frame(4001, "bye"))
        else:
            await ws.close(4001, "bye")
        with pytest.raises(WebSocketDisconnect) as caught:
            await within(waiting)
        assert (caught.value.code, caught.value.reason) == (4001, "bye")


# The end


@pytest.mark.parametrize("stalls", [False, True])
async def test_the_close_follows_all_that_was_sent_and_published(stalls):
    async with served() as room:
        ws, client = await (room.stall("t") if stalls else room.join("t"))
        await room.publish("1", "2")
        await ws.send("3")
        await room.publish("4")
        await ws.close(4000, "done")
        await ws.close(4001, "too late")
        await room.publish("later")
        texts, end = await read_until_close(client)
        assert texts == [*([STALLING] if stalls else []), "1", "2", "3", "4"]
        assert end == (4000, "done")
        with pytest.raises(WebSocketDisconnect) as caught:
            await ws.send("after the end")
        assert caught.value.code == 4000


@pytest.mark.parametrize("stalls", [False, True])
async def test_a_drain_sends_what_was_published_before_the_1012(stalls):
    async with served() as room:
        ws, client = await (room.stall("t") if stalls else room.join("t"))
        await room.publish("1", "2")
        await room.serving.websockets.drain()
        assert ws.close_code == 1012
        texts, end = await read_until_close(client)
        assert texts == [*([STALLING] if stalls else []), "1", "2"]
        assert end == (1012, "service restart")


async def test_a_failed_helper_closes_with_1011_and_drops_what_is_pending(caplog):
    async def fail():
        raise KeyError

    async with served() as room:
        ws, client = await room.stall("t")
        await room.publish("given up")
        await ws.send("given up")
        ws.start_soon(fail)
        texts, (code, reason) = await read_until_close(client)
        assert (texts, code) == ([STALLING], 1011)
        assert reason.startswith("internal error, error id ")
        ws._connection.close_now(1013, "a second end")
        assert (ws.close_code, ws.close_reason) == (code, reason)
    assert "a task of ws.start_soon failed" in caplog.text


async def test_a_client_gets_nothing_published_after_its_close():
    async with served() as room:
        ws, client = await room.join("t")
        await client.send(close_frame(1000))
        await until(lambda: ws.closed)
        await room.publish("later")
        assert await read_until_close(client) == ([], (1000, ""))
        assert await client.read_rest() == b""
        assert room.app.hub.statistics().subscribers == 0


async def test_a_lost_client_leaves_no_pending_messages():
    async with served() as room:
        ws, client = await room.stall("t", tcp=True)
        await room.publish("1")
        await turns()
        await room.publish("2")
        client.reset()
        await until(lambda: ws.closed)
        assert (len(ws._connection.outbox), ws._connection.outbox.batch) == (0, BACKED_UP)
        assert room.app.hub.statistics().subscribers == 0


async def test_a_view_receives_while_much_is_published():
    got = []
    room = Room()

    async def view(ws):
        async with ws:
            await ws.subscribe("t")
            got.append(await ws.receive(timeout=LIMIT))
            try:
                await ws.receive(timeout=LIMIT)
            except WebSocketDisconnect as end:
                got.append(end.code)
                raise

    room.app.websocket_route("/reads")(view)
    async with serving(room.app) as room.serving, room.clients:
        client = await room.connect()
        await client.open("/reads", behind=frame("said"))
        await until(lambda: got)
        await room.publish(*numbers(100))
        assert await read_texts(client, 100) == numbers(100)
        await client.send(close_frame(4002))
        await until(lambda: len(got) == 2)
    assert got == ["said", 4002]


def change_nothing(app):
    async def call(scope, receive, send):
        async def send_on(event):
            await send(event)

        await app(scope, receive, send_on)

    return call


@pytest.mark.parametrize("how", ["plain", "mounted", "wrapped"])
async def test_a_connection_is_freed_without_the_garbage_collector(how):
    room = Room()
    app = room.app
    if how == "mounted":
        # Its scope is a copy.
        app = App()
        app.mount("/", room.app)
    elif how == "wrapped":
        app.add_middleware(change_nothing)
    gc.collect()
    gc.disable()
    try:
        async with serving(app) as room.serving:
            async with await room.serving.connect(tcp=True) as client:
                await client.open()
                ws = await within(room.arrived.get())
                await ws.subscribe("t")
                await room.publish("1")
                assert await read_texts(client, 1) == ["1"]
                kind = type(ws._connection)
                count = live(kind)
                del ws
                client.server = None
            await until(lambda: live(kind) == count - 1)
    finally:
        gc.enable()


async def test_a_cancelled_view_leaves_the_hub():
    async with served() as room:

        @room.app.websocket_route("/waits", subscribe="t")
        async def view(ws):
            await ws.accept()
            await asyncio.Event().wait()

        client = await room.connect()
        await client.open("/waits")
        room.serving.websockets.cancel()
        assert await read_until_close(client) == ([], (1011, "internal error"))
        await until(lambda: room.app.hub.statistics().connections == 0)


# Which connection


async def test_the_server_s_message_limit_wins():
    async with served(server={"extension": {"max_message_size": 100}, "max_message_size": 100}) as room:
        ws, client = await room.join()
        assert ws._connection.limits.max_message_size == 100
        await client.send(frame("x" * 101))
        assert (await read_until_close(client))[1][0] == 1009


@pytest.mark.parametrize(("count", "size", "options"), [(5000, 0, {}), (3000, 100, SMALL), (3000, 1000, SMALL)])
async def test_a_publisher_that_never_waits_closes_no_reading_client(count, size, options):
    async with served() as room:
        _, client = await room.join("t", **options)
        texts = [str(number).ljust(size) for number in range(count)]
        reading = asyncio.ensure_future(read_texts(client, len(texts)))
        await room.publish(*texts)
        assert await within(reading) == texts
