"""SocketConnection: messages in and out, control frames, and every end, over sockets."""

import asyncio
import time
import zlib

import pytest
from byte_client import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame
from virtual_clock import on_virtual_clock
from websocket_server import ASYNCIO_BACKENDS, opened, serving, until, within

from microws.framing.frames import encode_frame
from microws.state import State

pytestmark = pytest.mark.anyio

MIB = 1 << 20


@pytest.fixture(params=ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
def anyio_backend(request):
    return request.param


async def take(connection, count):
    return [await within(connection.receive()) for _ in range(count)]


# Messages in


async def test_messages_arrive_in_order_with_their_type():
    async with opened() as (app, client):
        await client.send(frame("one"), frame(b"two", BINARY), frame(""), frame("th", final=False))
        await client.send(frame("r\u00ebe", CONTINUATION), frame(b"", BINARY))
        assert await take(app.connection, 5) == ["one", b"two", "", "thr\u00ebe", b""]


async def test_a_message_may_arrive_byte_by_byte():
    async with opened() as (app, client):
        for byte in frame("h\u00e9llo"):
            await client.send(bytes([byte]))
        assert await take(app.connection, 1) == ["h\u00e9llo"]


async def test_messages_from_before_the_accept_are_kept():
    async with opened(accept=False, behind=frame("one")) as (app, client):
        await client.send(frame("two"))
        await until(lambda: len(app.connection._unread) == 2 * len(frame("one")))
        await app.send({"type": "websocket.accept"})
        await client.send(frame("three"))
        assert await take(app.connection, 3) == ["one", "two", "three"]


async def test_reading_pauses_before_the_accept_and_loses_nothing():
    messages = [f"{number:01000}" for number in range(2000)]
    async with opened(accept=False) as (app, client):
        sending = asyncio.ensure_future(client.send(*map(frame, messages)))
        await until(lambda: not client.server.is_reading())
        assert 64 << 10 <= len(app.connection._unread) < (64 << 10) + (256 << 10)
        await app.send({"type": "websocket.accept"})
        assert await take(app.connection, len(messages)) == messages
        await within(sending)


async def test_an_invalid_frame_before_the_accept_fails_the_connection_later():
    async with opened(accept=False, behind=b"\x01\x00") as (app, client):
        await app.send({"type": "websocket.accept"})
        assert (await client.read_head())[0] == 101
        assert (await client.read_close())[0] == 1002


@pytest.mark.parametrize("size", [1, 2000, 40_000])
async def test_reading_pauses_while_the_app_does_not_receive(size):
    """At 64 messages or 1 MiB; one read of the event loop, of 256 KiB at most, may go beyond."""
    messages = [f"{number:0{size}}" for number in range(max(300, 4 * MIB // size) if size > 1 else 30_000)]
    async with opened() as (app, client):
        sending = asyncio.ensure_future(client.send(*map(frame, messages)))
        await until(lambda: not app.connection.is_reading)
        assert not client.server.is_reading()
        waiting = len(app.connection._inbox)
        assert waiting * (size + 6) <= MIB + (256 << 10)
        assert waiting >= 64 or waiting * size >= MIB - 2 * size
        for message in messages:
            assert await app.connection.receive() == message
        await within(sending)
        assert app.connection.is_reading


async def test_the_inbox_limits_the_inflated_bytes_of_compressed_messages():
    """One read brings some hundred of them, each of nearly 1 MiB."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = stream.compress(b"x" * (MIB - 1)) + stream.flush(zlib.Z_SYNC_FLUSH)
    message = frame(data[:-4], BINARY, compressed=True)
    async with opened(compression=True, fields=["sec-websocket-extensions: permessage-deflate"]) as (app, client):
        sending = asyncio.ensure_future(client.send(message * 80))
        await until(lambda: not app.connection.is_reading)
        assert sum(map(len, app.connection._inbox)) <= 3 * MIB
        for _ in range(80):
            assert len(await within(app.connection.receive())) == MIB - 1
            assert sum(map(len, app.connection._inbox)) <= 3 * MIB
        await within(sending)


async def test_a_cancelled_receive_loses_no_message():
    async with opened() as (app, client):
        for round_ in range(20):
            receiving = asyncio.ensure_future(app.connection.receive())
            await asyncio.sleep(0)
            if round_ % 2:
                # The message is there, and the task has not run yet.
                app.connection.data_received(frame(f"{round_}"))
            else:
                await client.send(frame(f"{round_}"))
            receiving.cancel()
            await asyncio.wait([receiving])
            if receiving.cancelled():
                assert await take(app.connection, 1) == [f"{round_}"]
            else:
                assert receiving.result() == f"{round_}"


async def test_several_tasks_may_receive_and_each_message_goes_to_one():
    async with opened() as (app, client):
        tasks = [asyncio.ensure_future(app.connection.receive()) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await client.send(*[frame(f"{number}") for number in range(4)])
        assert sorted(await within(asyncio.gather(*tasks[1:]))) == ["0", "1", "2", "3"]
        waiting = [asyncio.ensure_future(app.connection.receive()) for _ in range(3)]
        await asyncio.sleep(0)
        await client.send(close_frame(1000))
        assert await within(asyncio.gather(*waiting)) == [None] * 3


async def test_messages_from_before_the_end_are_received_after_it():
    async with opened() as (app, client):
        await client.send(frame("one"), frame("two"), close_frame(4000, "bye"))
        assert await client.read_close() == (4000, "bye")
        assert await take(app.connection, 4) == ["one", "two", None, None]
        assert (app.connection.close_code, app.connection.close_reason) == (4000, "bye")


# Messages out


@pytest.mark.parametrize("size", [1000, 100_000])
async def test_wait_writable_waits_until_the_client_reads(size):
    async with opened(connection={"buffers": 4096}) as (app, client):
        connection = app.connection
        sent = 0
        while connection.is_writable:
            connection.send_message(b"x" * size)
            sent += 1
        assert client.server.get_write_buffer_size() < 256 << 10
        waiting = [asyncio.ensure_future(connection.wait_writable()) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        assert await client.read_payloads(sent) == [b"x" * size] * sent
        await within(asyncio.gather(*waiting))
        assert connection.is_writable


async def test_compression_needs_an_offer_and_a_setting():
    fields = ["sec-websocket-extensions: permessage-deflate; client_max_window_bits"]
    text = "compress me " * 200
    async with opened(compression=True, fields=fields) as (app, client):
        app.connection.send_message(text)
        app.connection.write(encode_frame(text.encode(), TEXT))
        app.connection.send_message("short")
        received = await client.read_frame()
        assert received.is_compressed
        assert len(received.payload) < 200
        assert zlib.decompressobj(-15).decompress(received.payload + b"\0\0\xff\xff") == text.encode()
        assert await client.read_frame() == (TEXT, text.encode(), False)
        assert await client.read_frame() == (TEXT, b"short", False)
        stream = zlib.compressobj(wbits=-15)
        deflated = stream.compress(text.encode()) + stream.flush(zlib.Z_SYNC_FLUSH)
        await client.send(frame(deflated[:-4], compressed=True), frame("plain"))
        assert await take(app.connection, 2) == [text, "plain"]
    for options in ({"compression": True}, {"fields": fields}):
        async with opened(**options) as (app, client):
            app.connection.send_message(text)
            assert await client.read_frame() == (TEXT, text.encode(), False)
            await client.send(frame(b"\xab", compressed=True))
            assert (await client.read_close())[0] == 1002


async def test_a_decompression_bomb_is_1009():
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = b"".join(stream.compress(bytes(MIB)) for _ in range(30)) + stream.flush(zlib.Z_SYNC_FLUSH)
    async with opened(compression=True, fields=["sec-websocket-extensions: permessage-deflate"]) as (app, client):
        await client.send(frame(data[:-4], BINARY, compressed=True))
        assert (await client.read_close())[0] == 1009
        assert await take(app.connection, 1) == [None]


# Control frames


async def test_a_ping_is_answered_with_its_payload():
    async with opened() as (app, client):
        await client.send(frame("a", PING), frame("message"), frame("", PING), frame("unasked", PONG))
        assert await client.read_frame() == (PONG, b"a", False)
        assert await client.read_frame() == (PONG, b"", False)
        assert await take(app.connection, 1) == ["message"]
        assert app.connection.state is State.OPEN


async def test_a_client_that_does_not_read_gets_one_pong_for_its_latest_ping():
    async with opened(connection={"buffers": 4096}) as (app, client):
        sent = 0
        while app.connection.is_writable:
            app.connection.send_message(b"x" * 1000)
            sent += 1
        before = client.server.get_write_buffer_size()
        await client.send(*[frame(f"{number}", PING) for number in range(50)], frame("done"))
        assert await take(app.connection, 1) == ["done"]
        assert client.server.get_write_buffer_size() == before
        await client.read_payloads(sent)
        assert await client.read_frame() == (PONG, b"49", False)
        await client.send(frame("again", PING))
        assert await client.read_frame() == (PONG, b"again", False)


@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_over_100_control_frames_in_a_second_are_1008(opcode):
    async with opened() as (app, client):
        await client.send(frame("", opcode) * 100, frame("fine"))
        assert await take(app.connection, 1) == ["fine"]
        await client.send(frame("", opcode) * 200, frame("lost"), close_frame(1000))
        assert await client.read_close() == (1008, "over 100 control frames a second")
        assert await take(app.connection, 1) == [None]
        assert app.connection.close_code == 1008


@on_virtual_clock
async def test_100_control_frames_a_second_are_allowed():
    async with opened(limit=1000) as (app, client):
        for _ in range(5):
            await client.send(frame("", PING) * 100, frame("fine"))
            assert await take(app.connection, 1) == ["fine"]
            await asyncio.sleep(1)
        assert app.connection.state is State.OPEN


# The end


@pytest.mark.parametrize(
    ("sent", "told", "answered"),
    [
        (close_frame(1000), (1000, ""), (1000, "")),
        (close_frame(4999, "gr\u00fc\u00df dich"), (4999, "gr\u00fc\u00df dich"), (4999, "gr\u00fc\u00df dich")),
        (frame("", CLOSE), (1005, ""), (None, "")),
    ],
)
async def test_a_close_of_the_client_is_answered_and_reported(sent, told, answered):
    async with opened() as (app, client):
        ends = []
        app.connection.unsubscribe = lambda: ends.append((app.connection.close_code, app.connection.close_reason))
        await client.send(sent, frame("lost"), close_frame(1001), b"\xff\xff")
        assert await client.read_close() == answered
        assert await client.read_rest() == b""
        assert await take(app.connection, 1) == [None]
        assert app.connection.state is State.CLOSED
    assert ends == [told]


@pytest.mark.parametrize("client_closes", [False, True])
async def test_the_app_closes_and_the_client_answers(client_closes):
    async with opened() as (app, client):
        ends = []
        app.connection.unsubscribe = lambda: ends.append((app.connection.close_code, app.connection.close_reason))
        app.connection.send_message("last")
        app.connection.close(4001, "enough")
        assert app.connection.state is State.CLOSING
        app.connection.close(1000, "twice")
        lost = [close_frame(4002, "at the same time")] if client_closes else [frame("lost"), frame("", PING)]
        await client.send(*lost)
        assert await client.read_payloads(1) == [b"last"]
        assert await client.read_close() == (4001, "enough")
        if not client_closes:
            await client.send(close_frame(4001, "its own"))
        assert await client.read_rest() == b""
        assert await take(app.connection, 1) == [None]
    assert ends == [(4001, "enough")]


@pytest.mark.parametrize("how", ["no answer", "close, unread", "half-close, unread"])
@on_virtual_clock
async def test_close_timeout_drops_a_client_after_5_seconds(how):
    loop = asyncio.get_running_loop()
    async with opened(limit=1000, connection={"buffers": 4096}) as (app, client):
        if how == "no answer":
            app.connection.close(1000, "")
            began = loop.time()
            await client.send(frame("going on"))
            assert await client.read_close() == (1000, "")
            await client.read_rest()
        else:
            while app.connection.is_writable:
                app.connection.send_message(b"x" * 1000)
            began = loop.time()
            if how == "close, unread":
                await client.send(close_frame(1000))
            else:
                client.half_close()
            assert await take(app.connection, 1) == [None]
            assert loop.time() == began
            await until(lambda: not client.server.get_write_buffer_size(), step=0.25)
        assert loop.time() - began == 5
        assert app.connection.close_code == (1006 if how == "half-close, unread" else 1000)


async def test_a_close_completes_though_the_app_receives_nothing():
    async with opened() as (app, client):
        await client.send(frame("waiting") * 100)
        await until(lambda: not app.connection.is_reading)
        app.connection.close(1012, "service restart")
        await client.send(frame("more") * 100)
        assert await client.read_close() == (1012, "service restart")
        began = time.monotonic()
        await client.send(close_frame(1012))
        await client.read_rest()
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_reset_connection_is_1006(tcp):
    async with opened(connection={"tcp": tcp}) as (app, client):
        ends = []
        app.connection.unsubscribe = lambda: ends.append(app.connection.close_code)
        client.reset()
        assert await take(app.connection, 1) == [None]
        app.connection.close(1000, "")
        assert (app.connection.state, app.connection.close_code) == (State.CLOSED, 1006)
    assert ends == [1006]


async def test_a_half_closed_connection_is_1006():
    async with opened() as (app, client):
        await client.send(frame("last"), frame("half")[:5])
        client.half_close()
        assert await take(app.connection, 2) == ["last", None]
        assert app.connection.close_code == 1006
        assert await client.read_rest() == b""


@pytest.mark.parametrize("accept", [False, True])
async def test_abort_ends_the_connection_at_once(accept):
    async with opened(accept=accept) as (app, client):
        app.connection.abort()
        assert (app.connection.state, app.connection.close_code) == (State.CLOSED, 1006)
        assert await client.read_rest() == b""


@pytest.mark.parametrize("resets", [False, True])
async def test_a_refusal_of_a_disconnected_client_ends_the_connection(resets):
    async with opened(accept=False, connection={"tcp": True}) as (app, client):
        client.reset() if resets else client.sock.close()
        app.connection.refuse(503, body=b"too late")
        await until(client.server.is_closing)
        assert app.connection.close_code == 1006


async def test_messages_to_a_lost_connection_log_nothing(caplog):
    async with opened(connection={"tcp": True}) as (app, client):
        client.server.abort()
        # asyncio warns of the fifth write.
        for _ in range(8):
            app.connection.send_message("into the void")
        await until(lambda: app.connection.close_code is not None)
        assert app.connection.close_code == 1006
        assert not caplog.records


# Violations

VIOLATIONS = {
    1002: b"\x81\x05hello",
    1007: frame(b"\xff"),
    1008: frame("", final=False) + frame("", CONTINUATION, final=False) * 1024,
    1009: frame(MIB + 1, BINARY),
}


@pytest.mark.parametrize(("code", "tls"), [*((code, False) for code in VIOLATIONS), (1009, True)])
async def test_a_violation_has_its_close_code(code, tls):
    async with opened(tls=tls) as (app, client):
        ends = []
        app.connection.unsubscribe = lambda: ends.append(app.connection.close_code)
        began = time.monotonic()
        await client.send(frame("before"), VIOLATIONS[code], frame("behind"))
        received, reason = await client.read_close()
        assert received == code
        assert await take(app.connection, 2) == ["before", None]
        assert (app.connection.close_code, app.connection.close_reason) == (code, reason)
        await client.read_rest()
        assert time.monotonic() - began < 1
    assert ends == [code]


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_client_that_sends_on_after_its_violation_is_dropped(tcp):
    async with opened(connection={"tcp": tcp}) as (app, client):
        began = time.monotonic()
        await client.send(frame(MIB + 1, BINARY), bytes(10 * MIB))
        assert (await client.read_close())[0] == 1009
        assert app.connection._unread is None
        assert not app.connection._inbox
        assert app.connection._parser is None
        with pytest.raises(ConnectionError):
            await send_until_it_fails(client)
        assert time.monotonic() - began < 1.5


async def send_until_it_fails(client):
    while True:
        await client.send(bytes(MIB))


@on_virtual_clock
async def test_a_client_is_dropped_half_a_second_after_its_violation():
    async with opened(limit=1000) as (_, client):
        loop = asyncio.get_running_loop()
        began = loop.time()
        await client.send(b"\xff\xff")
        await client.read_rest()
        assert loop.time() == began
        await until(client.server.is_closing, step=0.0625)
        assert loop.time() - began == 0.5


async def test_a_violation_during_the_closing_handshake_ends_it():
    async with opened() as (app, client):
        app.connection.close(1000, "")
        await client.send(b"\xff\xff", frame("behind"))
        assert await client.read_close() == (1000, "")
        assert await client.read_rest() == b""
        assert app.connection.close_code == 1000


# Pings of the server, on a virtual clock


@pytest.mark.parametrize("timeout", [20, 0])
@on_virtual_clock
async def test_a_ping_is_sent_every_interval_and_an_answer_keeps_it_open(timeout):
    """A ``ping_timeout`` of 0 needs no answer."""
    async with opened(limit=1000, ping_interval=20, ping_timeout=timeout) as (app, client):
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(1, 6):
            assert await client.read_frame() == (PING, b"", False)
            assert loop.time() - began == 20 * number
            if timeout:
                await client.send(frame("", PONG))
        assert app.connection.state is State.OPEN


@on_virtual_clock
async def test_any_data_counts_as_an_answer_to_a_ping():
    async with opened(limit=1000, ping_interval=20, ping_timeout=20) as (app, client):
        for _ in range(5):
            assert (await client.read_frame()).opcode == PING
            await asyncio.sleep(19)
            await client.send(frame("x")[:1] if app.connection.was_heard else b"\x81")
            await client.send(frame("x")[1:])
        assert len(await take(app.connection, 5)) == 5


@pytest.mark.parametrize(("interval", "timeout"), [(20, 20), (20, 5), (10, 30), (10, 25)])
@pytest.mark.parametrize("answers", [0, 1, 2])
@on_virtual_clock
async def test_a_silent_client_is_1011_one_interval_and_one_timeout_later(interval, timeout, answers):
    async with opened(limit=1000, ping_interval=interval, ping_timeout=timeout) as (app, client):
        loop = asyncio.get_running_loop()
        last = loop.time()
        for _ in range(answers):
            assert (await client.read_frame()).opcode == PING
            await client.send(frame("", PONG))
            last = loop.time()
        assert await within(app.connection.receive(), 1000) is None
        assert loop.time() - last == interval + timeout
        assert (app.connection.close_code, app.connection.close_reason) == (1011, "ping timeout")
        assert await client.read_close() == (1011, "ping timeout")


@on_virtual_clock
async def test_each_connection_has_its_own_pings():
    async with serving(discard, limit=1000, ping_interval=20, ping_timeout=20) as served:
        clients, loop = [], asyncio.get_running_loop()
        for _ in range(5):
            client = await served.connect()
            await client.open()
            clients.append((client, loop.time()))
            await asyncio.sleep(3)
        for number in (1, 2):
            for client, began in clients:
                assert (await client.read_frame()).opcode == PING
                assert loop.time() - began == 20 * number
                await client.send(frame("", PONG))
        for client, _ in clients:
            client.sock.close()


async def discard(scope, receive, send):
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


@on_virtual_clock
async def test_no_ping_times_out_while_reading_is_paused():
    async with opened(limit=1000, ping_interval=20, ping_timeout=15) as (app, client):
        began = asyncio.get_running_loop().time()
        await client.send(frame("x") * 64, frame("", PONG))
        await until(lambda: not app.connection.is_reading, step=0)
        await asyncio.sleep(500)
        assert app.connection.state is State.OPEN

        def receive_all():
            for _ in range(64):
                with pytest.raises(StopIteration, match="x"):
                    app.connection.receive().send(None)

        # Right before an answer is due, in the same turn of the event loop.
        loop = asyncio.get_running_loop()
        loop.call_at(began + 535 - 1e-10, receive_all)
        await asyncio.sleep(45)
        assert app.connection.is_reading
        assert app.connection.state is State.OPEN
