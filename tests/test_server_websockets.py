"""The server's WebSockets as an ASGI server: events, responses to handshakes, errors of the app, and every end."""

import asyncio
import gc
import logging
import random
import sys
import threading
import time
from collections import Counter

import pytest
from byte_client import BINARY, CLOSE, CONTINUATION, LIMIT, PING, PONG, TEXT, close_frame, frame, upgrade
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_clock import on_virtual_clock
from websocket_server import ASYNCIO_BACKENDS, echo, opened, serving, until, within

from microws.deflate import Deflater
from microws.framing.parser import FrameParser
from microws.server.failures import ClientDisconnected
from microws.server.websockets import ServerWebSocket
from microws.state import State

pytestmark = pytest.mark.anyio

START = "websocket.http.response.start"
BODY = "websocket.http.response.body"
MIB = 1 << 20


@pytest.fixture(params=ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
def anyio_backend(request):
    return request.param


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level(logging.INFO, logger="microws")


def access_lines(caplog):
    """Lines of the access log, without client and duration."""
    records = [record.getMessage() for record in caplog.records if record.name == "microws.access"]
    return [line.split('"', 1)[1].rpartition(" ")[0] for line in records]


def errors(caplog):
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


async def closed_with(client):
    """The Close frame of a client that answers it."""
    code, reason = await client.read_close()
    await client.send(close_frame(code))
    assert await client.read_rest() == b""
    return code, reason


# Events


async def test_the_scope_has_the_handshake_and_the_state():
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await send({"type": "websocket.close"})

    async with serving(app, extension={"answers": 42}) as served:
        served.state = {"database": "open"}
        async with await served.connect(tcp=True) as client:
            await client.refused("/a%20b?c=%20", "sec-websocket-protocol: one , two", "sec-websocket-protocol: three")
            own, theirs = client.sock.getsockname(), client.sock.getpeername()
    [scope] = scopes
    assert (scope["type"], scope["scheme"], scope["http_version"]) == ("websocket", "ws", "1.1")
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.5"}
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"c=%20")
    assert (scope["root_path"], scope["state"]) == ("", {"database": "open"})
    assert (scope["client"], scope["server"]) == (own, theirs)
    assert scope["subprotocols"] == ["one", "two", "three"]
    assert scope["extensions"]["websocket.http.response"] == {}
    assert scope["extensions"]["microws"]["answers"] == 42
    assert (b"host", b"x") in scope["headers"]


async def test_over_tls_the_scheme_is_wss_and_a_unix_socket_has_no_address():
    async with opened(tls=True) as (app, _):
        assert (app.scope["client"], app.scope["server"], app.scope["scheme"]) == (None, None, "wss")


async def test_text_and_bytes_pass_both_ways_even_if_empty():
    async with opened() as (app, client):
        await client.send(frame("h\u00e9"), frame(""), frame(b"\0"[:0], BINARY))
        assert [await app.receive() for _ in range(3)] == [
            {"type": "websocket.receive", "text": "h\u00e9"},
            {"type": "websocket.receive", "text": ""},
            {"type": "websocket.receive", "bytes": b""},
        ]
        for payload in (b"b", bytearray(b"b"), memoryview(b"b")):
            await app.send({"type": "websocket.send", "bytes": payload, "text": None})
            assert await client.read_frame() == (BINARY, b"b", False)
        await app.send({"type": "websocket.send", "bytes": None, "text": ""})
        assert await client.read_frame() == (TEXT, b"", False)


async def test_receive_before_the_accept_waits_for_a_message_or_the_end():
    async with opened(accept=False) as (app, client):
        receiving = [asyncio.ensure_future(app.receive()) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert not any(task.done() for task in receiving)
        await app.send({"type": "websocket.accept"})
        await client.send(frame("one"), frame("two"))
        assert sorted(event["text"] for event in await within(asyncio.gather(*receiving))) == ["one", "two"]
    async with opened(accept=False) as (app, client):
        receiving = asyncio.ensure_future(app.receive())
        await asyncio.sleep(0)
        client.sock.close()
        assert await within(receiving) == {"type": "websocket.disconnect", "code": 1006, "reason": ""}


async def test_after_the_end_receive_repeats_it_and_send_raises():
    async with opened() as (app, client):
        await client.send(close_frame(4000, "bye"))
        for _ in range(3):
            event = await within(app.receive())
            assert event == {"type": "websocket.disconnect", "code": 4000, "reason": "bye"}
            assert type(event["code"]) is int
        assert await client.read_rest() != b""
        for event in ({"type": "websocket.send", "text": "x"}, {"type": "websocket.accept"}, {"type": BODY}):
            with pytest.raises(OSError, match="the WebSocket is closed, with code 4000"):
                await app.send(event)
        await app.send({"type": "websocket.close"})


async def test_after_the_app_s_close_receive_returns_it_and_send_raises():
    async with opened() as (app, client):
        await app.send({"type": "websocket.close", "code": 4001, "reason": "enough"})
        assert await app.receive() == {"type": "websocket.disconnect", "code": 4001, "reason": "enough"}
        with pytest.raises(ClientDisconnected, match="closing, with code 4001"):
            await app.send({"type": "websocket.send", "text": "x"})
        assert await closed_with(client) == (4001, "enough")


@pytest.mark.parametrize("event", [{}, {"code": 1000}, {"reason": None}, {"code": 1000, "reason": ""}])
async def test_a_close_event_is_1000_by_default(event):
    async with opened() as (app, client):
        await app.send({"type": "websocket.close"} | event)
        assert await closed_with(client) == (1000, "")


async def test_send_waits_while_the_client_does_not_read():
    async with opened(connection={"buffers": 4096}) as (app, client):
        sending = [asyncio.ensure_future(send_many(app, f"{number}" * 1000, 100)) for number in range(3)]
        await until(lambda: not app.connection.is_writable)
        assert client.server.get_write_buffer_size() < 128 << 10
        assert not any(task.done() for task in sending)
        sending[0].cancel()
        await asyncio.wait(sending[:1])
        received = []
        while len([payload for payload in received if payload[:1] != b"0"]) < 200:
            received += await client.read_payloads(1)
        await within(asyncio.gather(*sending[1:]))
        assert [received.count(b"%d" % number * 1000) for number in (1, 2)] == [100, 100]
        assert app.connection.state is State.OPEN


async def send_many(app, text, count):
    for _ in range(count):
        await app.send({"type": "websocket.send", "text": text})


async def test_a_send_that_waits_raises_when_the_client_disconnects():
    async with opened(connection={"buffers": 4096}) as (app, client):
        sending = asyncio.ensure_future(send_many(app, "x" * 1000, 1000))
        await until(lambda: not app.connection.is_writable)
        client.sock.close()
        with pytest.raises(ClientDisconnected):
            await within(sending)


@pytest.mark.parametrize(
    ("event", "error", "message"),
    [
        ({"type": "websocket.send"}, TypeError, "got NoneType"),
        ({"type": "websocket.send", "text": 5}, TypeError, "got int"),
        ({"type": "websocket.send", "text": "\ud800"}, ValueError, "surrogates"),
        ({"type": "websocket.close", "code": 1006}, ValueError, "got 1006"),
        ({"type": "websocket.close", "code": "1000"}, TypeError, "expected a number as close code"),
        ({"type": "websocket.close", "reason": "x" * 124}, ValueError, "at most 123"),
        ({"type": "websocket.accept"}, RuntimeError, "accepted already"),
        ({"type": START, "status": 404}, RuntimeError, "accepted already"),
        ({"type": BODY}, RuntimeError, "expected no websocket.http.response.body in"),
        ({"type": "http.response.start"}, RuntimeError, "expected no http.response.start in a WebSocket that is open"),
    ],
)
async def test_an_invalid_event_sends_nothing(event, error, message):
    async with opened() as (app, client):
        with pytest.raises(error, match=message):
            await app.send(event)
        await app.send({"type": "websocket.send", "text": "still here"})
        assert await client.read_payloads(1) == [b"still here"]


# Responses to the handshake


async def test_an_accept_may_have_a_subprotocol_and_headers():
    async with opened(accept=False, fields=["sec-websocket-protocol: a, b"]) as (app, client):
        await app.send({"type": "websocket.accept", "subprotocol": "b", "headers": [(b"X-Y", b"z"), (b"x-y", b"2")]})
        status, headers = await client.read_head()
        assert (status, headers["sec-websocket-protocol"], headers["x-y"]) == (101, "b", "2")


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"type": START, "status": 200, "headers": [(b"x", b"\n")]}, ValueError),
        ({"type": START, "status": 101}, ValueError),
        ({"type": START, "status": 1000}, ValueError),
        ({"type": START, "status": "404"}, TypeError),
        ({"subprotocol": "c"}, ValueError),
        ({"headers": [(b"x-y", b"a\r\nb: c")]}, ValueError),
        ({"headers": [(b"x y", b"")]}, ValueError),
        ({"headers": [(b"sec-websocket-accept", b"x")]}, ValueError),
        ({"headers": [(b"transfer-encoding", b"chunked")]}, ValueError),
        ({"headers": [(1, b"x")]}, TypeError),
        ({"headers": 5}, TypeError),
    ],
)
async def test_an_invalid_answer_to_the_handshake_sends_nothing(event, error):
    async with opened(accept=False, fields=["sec-websocket-protocol: a, b"]) as (app, client):
        with pytest.raises(error):
            await app.send({"type": "websocket.accept"} | event)
        assert app.connection.state is State.CONNECTING
        await app.send({"type": "websocket.accept", "subprotocol": "a"})
        assert (await client.read_head())[0] == 101


@pytest.mark.parametrize("messages", [0, 200])
async def test_a_close_before_the_accept_is_403(messages):
    async with opened(accept=False, connection={"tcp": True}) as (app, client):
        sending = asyncio.ensure_future(client.send(frame(b"x" * 50_000, BINARY) * messages))
        await until(lambda: not messages or not app.connection.is_reading)
        await app.send({"type": "websocket.close", "code": 4000})
        await within(sending, 2)
        status, headers = await client.read_head()
        assert (status, headers["content-length"], headers["connection"]) == (403, "0", "close")
        assert await client.read_rest() == b""


@pytest.mark.parametrize("tls", [False, True])
async def test_a_response_in_several_parts_ends_the_connection(tls):
    async with opened(accept=False, tls=tls, behind=frame("early")) as (app, client):
        await app.send({"type": START, "status": 401, "headers": [(b"www-authenticate", b"Basic"), (b"Date", b"now")]})
        with pytest.raises(RuntimeError, match="accept it before you close or reject it"):
            await app.send({"type": "websocket.accept"})
        for part in (b"who ", b"", b"are "):
            await app.send({"type": BODY, "body": part, "more_body": True})
        status, headers = await client.read_head()
        assert (status, headers["www-authenticate"], headers["date"]) == (401, "Basic", "now")
        await app.send({"type": BODY, "body": b"you?"})
        assert await within(client.read_rest(), 2) == b"who are you?"
        for event in ({"type": BODY}, {"type": START, "status": 500}, {"type": "websocket.accept"}):
            with pytest.raises(ClientDisconnected):
                await app.send(event)


async def test_send_waits_while_the_client_does_not_read_the_body():
    async with opened(accept=False, connection={"buffers": 4096}) as (app, client):
        await app.send({"type": START, "status": 404})

        async def send_body():
            for _ in range(100):
                await app.send({"type": BODY, "body": b"x" * 10_000, "more_body": True})
            await app.send({"type": BODY})

        sending = asyncio.ensure_future(send_body())
        await until(lambda: not app.connection.is_writable)
        assert client.server.get_write_buffer_size() < 256 << 10
        await client.read_head()
        assert len(await client.read_rest()) == 1_000_000
        await within(sending)


async def test_a_response_to_a_disconnected_client_raises():
    async with opened(accept=False) as (app, client):
        await app.send({"type": START, "status": 404})
        client.sock.close()
        await until(lambda: app.connection.state is State.CLOSED)
        with pytest.raises(ClientDisconnected):
            await app.send({"type": BODY, "body": b"x"})


@pytest.mark.parametrize("fails", [False, True])
async def test_an_unfinished_response_ends_the_connection(fails, caplog):
    async def app(scope, receive, send):
        await send({"type": START, "status": 404})
        await send({"type": BODY, "body": b"part", "more_body": True})
        if fails:
            raise LookupError("no more")

    async with serving(app) as served, await served.connect(tcp=True) as client:
        await client.send(upgrade("/"))
        assert (await client.read_head())[0] == 404
        assert await within(client.read_rest(), 2) == b"part"
        await within(served.websockets.wait_closed())
    assert ["the app raised" in record.getMessage() for record in errors(caplog)] == [True] * fails


# Apps that return, raise or are cancelled


async def test_an_app_that_returns_without_answering_is_500(caplog):
    async def app(scope, receive, send):
        await receive()

    async with serving(app) as served, await served.connect() as client:
        assert (await client.refused("/x?y"))[0] == 500
    [record] = errors(caplog)
    assert record.getMessage() == "the app returned without an answer to WebSocket /x?y HTTP/1.1"
    assert access_lines(caplog) == ['WebSocket /x?y HTTP/1.1" 500']


@pytest.mark.parametrize("accepts", [False, True])
@pytest.mark.parametrize("error", [LookupError, SystemExit])
async def test_an_app_that_raises_is_500_or_1011_and_logged(accepts, error, caplog):
    async def app(scope, receive, send):
        if accepts:
            await send({"type": "websocket.accept"})
        raise error("not for the client")

    async with serving(app) as served, await served.connect() as client:
        if accepts:
            await client.open("/x")
            assert await closed_with(client) == (1011, "internal error")
        else:
            status, _, body = await client.refused("/x")
            assert (status, body) == (500, b"")
    [record] = errors(caplog)
    assert record.getMessage() == "the app raised in WebSocket /x HTTP/1.1"
    assert record.exc_info[0] is error


@pytest.mark.parametrize(
    ("wrap", "logged"),
    [
        (lambda error: error, []),
        (lambda error: ExceptionGroup("", [error]), []),
        (lambda error: raised_from(error, RuntimeError("of a framework")), []),
        (lambda _: LookupError(), [LookupError]),
    ],
)
async def test_a_failed_send_to_a_disconnected_client_is_not_logged(wrap, logged, caplog):
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        with pytest.raises(OSError) as caught:  # noqa: PT011
            await send({"type": "websocket.send", "text": "too late"})
        raise wrap(caught.value)

    async with serving(app) as served, await served.connect() as client:
        await client.open()
        await client.send(close_frame(1000))
        await client.read_rest()
        await within(served.websockets.wait_closed())
    assert [record.exc_info[0] for record in errors(caplog)] == logged


def raised_from(cause, error):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("accepts", [False, True])
async def test_a_cancelled_app_is_500_or_1011(accepts):
    async def app(scope, receive, send):
        if accepts:
            await send({"type": "websocket.accept"})
        waiting.set()
        await asyncio.get_running_loop().create_future()

    waiting = asyncio.Event()
    async with serving(app) as served, await served.connect() as client:
        await client.send(upgrade("/"))
        await within(waiting.wait())
        served.websockets.cancel()
        assert (await client.read_head())[0] == (101 if accepts else 500)
        if accepts:
            assert await closed_with(client) == (1011, "internal error")
        client.sock.close()
        await within(served.websockets.wait_closed())


# The access log


async def test_each_handshake_and_each_end_has_an_access_log_line(caplog):
    async with serving(echo) as served:
        async with await served.connect(tcp=True) as client:
            port = client.sock.getsockname()[1]
            await client.open("/a?b")
            await client.send(close_frame(4000))
            await client.read_rest()
        async with await served.connect() as client:
            await client.open("/gone")
        await within(served.websockets.wait_closed())
    assert access_lines(caplog) == [
        'WebSocket /a?b HTTP/1.1" 101',
        'WebSocket /a?b HTTP/1.1" closed 4000',
        'WebSocket /gone HTTP/1.1" 101',
        'WebSocket /gone HTTP/1.1" closed 1006',
    ]
    records = [record for record in caplog.records if record.name == "microws.access"]
    assert records[0].getMessage().startswith(f"127.0.0.1:{port} ")
    assert [record.access.get("close_code") for record in records] == [None, 4000, None, 1006]
    assert [record.access["status"] for record in records] == [101] * 4


async def test_a_refused_or_unanswered_handshake_has_one_access_log_line(caplog):
    async with opened(accept=False) as (app, client):
        await app.send({"type": START, "status": 404})
        await app.send({"type": BODY})
        await client.read_rest()
    assert access_lines(caplog) == ['WebSocket / HTTP/1.1" 404']
    caplog.clear()
    async with opened(accept=False) as (app, client):
        client.sock.close()
        await until(lambda: app.connection.state is State.CLOSED)
        with pytest.raises(ClientDisconnected):
            await app.send({"type": "websocket.accept"})
        with pytest.raises(ClientDisconnected):
            await app.send({"type": "websocket.close"})
        app.release.set()
    assert access_lines(caplog) == ['WebSocket / HTTP/1.1" -']


# Over TLS


async def test_over_tls_reading_and_writing_pause():
    async with opened(tls=True, connection={"buffers": 4096}) as (app, client):
        flooding = asyncio.ensure_future(client.send(frame(b"y" * 1000, BINARY) * 3000))
        await until(lambda: not app.connection.is_reading)
        sending = asyncio.ensure_future(send_many(app, "x" * 1000, 1000))
        await until(lambda: not app.connection.is_writable)
        received = asyncio.ensure_future(client.read_payloads(1000))
        for _ in range(3000):
            assert (await within(app.receive()))["bytes"] == b"y" * 1000
        await within(asyncio.gather(flooding, sending, received))


async def never(scope, receive, send):
    raise AssertionError("the app was called for a refused handshake")


# Which handshakes are accepted


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (upgrade("/", version=8), 426),
        (upgrade("/").replace(b"ZSBub25jZQ==", b""), 400),
        (upgrade("/", "content-length: 1") + b"x", 400),
        (upgrade("/", "transfer-encoding: chunked") + b"0\r\n\r\n", 400),
    ],
)
async def test_an_invalid_handshake_is_refused_without_the_app(request_, status, caplog):
    async with serving(never) as served, await served.connect() as client:
        await client.send(request_)
        received, headers = await client.read_head()
        assert (received, headers["connection"].endswith("close")) == (status, True)
        assert len(await client.read_rest()) == int(headers["content-length"])
    assert [record.access["status"] for record in caplog.records] == [status]


async def test_connections_are_counted_from_their_request_to_their_end():
    async with serving(echo) as served:
        async with await served.connect() as first, await served.connect() as second:
            assert served.websockets.open == 0
            await first.open()
            await second.open()
            assert served.websockets.open == 2
        await within(served.websockets.wait_closed())
        assert served.websockets.open == 0


# How all connections end


async def test_a_drain_closes_with_1012_and_refuses_new_handshakes(caplog):
    async with serving(echo) as served:
        clients = [await served.connect() for _ in range(250)]
        for client in clients:
            await client.open()
        late = await served.connect()
        await within(served.websockets.drain())
        for client in clients:
            assert await client.read_close() == (1012, "service restart")
            await client.send(close_frame(1012))
            assert await client.read_rest() == b""
            client.sock.close()
        status, headers, body = await late.refused()
        assert (status, headers["content-length"], body) == (503, "0", b"")
        late.sock.close()
        await within(served.websockets.wait_closed())
    endings = [record.access["close_code"] for record in caplog.records if "close_code" in record.access]
    assert endings == [1012] * 250
    assert errors(caplog) == []


async def test_a_drain_refuses_handshakes_that_are_not_answered_yet(caplog):
    async with opened(accept=False) as (app, client):
        ends = []
        app.connection.unsubscribe = lambda: ends.append(app.connection.state)
        receiving = asyncio.ensure_future(app.receive())
        await asyncio.sleep(0)
        await app.serving.websockets.drain()
        assert await within(receiving) == {"type": "websocket.disconnect", "code": 1012, "reason": "service restart"}
        for event in ({"type": "websocket.accept"}, {"type": START, "status": 404}, {"type": "websocket.close"}):
            with pytest.raises(ClientDisconnected) as caught:
                await app.send(event)
        app.error = caught.value
        app.release.set()
        assert ends == [State.CLOSED]
        assert (await client.read_head())[0] == 503
        assert await client.read_rest() == b""
    assert errors(caplog) == []
    assert [record.access["status"] for record in caplog.records] == [503]


async def test_a_drain_lets_a_response_finish_that_has_begun():
    async with opened(accept=False) as (app, client):
        await app.send({"type": START, "status": 404})
        await app.serving.websockets.drain()
        await app.send({"type": BODY, "body": b"finished"})
        assert (await client.read_head())[0] == 404
        assert await client.read_rest() == b"finished"


@on_virtual_clock
async def test_a_drain_takes_at_most_close_timeout():
    async with opened(limit=1000, connection={"buffers": 4096}) as (app, _):
        while app.connection.is_writable:
            app.connection.send_message(b"x" * 1000)
        app.release.set()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await app.serving.websockets.drain()
        await app.serving.websockets.wait_closed()
        assert loop.time() - began == 5


@pytest.mark.parametrize("how", ["disconnect", "the client disconnects"])
async def test_wait_closed_waits_for_apps_of_disconnected_clients(how):
    async with opened() as (app, client):
        waiting = asyncio.ensure_future(app.serving.websockets.wait_closed())
        if how == "disconnect":
            app.serving.websockets.disconnect()
            assert await client.read_rest() == b""
        else:
            client.sock.close()
        assert (await within(app.receive()))["code"] == 1006
        await asyncio.sleep(0)
        assert (app.serving.websockets.open, waiting.done()) == (1, False)
        app.release.set()
        await within(waiting)
        assert app.serving.websockets.open == 0


# Pings, and a blocked event loop


async def test_a_blocked_event_loop_closes_no_connection():
    """The client answers while the event loop is blocked for longer than the answer may take."""
    loop = asyncio.get_running_loop()
    is_blocked, answered = threading.Event(), threading.Event()

    def block():
        is_blocked.set()
        assert answered.wait(LIMIT)
        time.sleep(0.3)

    def answer_each(sock, count):
        sock.setblocking(True)
        sock.settimeout(LIMIT)
        for _ in range(count):
            assert sock.recv(2) == b"\x89\0"
            loop.call_soon_threadsafe(block)
            assert is_blocked.wait(LIMIT)
            sock.sendall(frame("", PONG))
            is_blocked.clear()
            answered.set()

    async with opened(ping_interval=0.2, ping_timeout=0.2) as (app, client):
        await within(loop.run_in_executor(None, answer_each, client.sock, 2))
        assert app.connection.state is State.OPEN
        client.sock.setblocking(False)
        # It answers no more.
        assert await within(app.receive()) == {"type": "websocket.disconnect", "code": 1011, "reason": "ping timeout"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports a disconnect while reading is paused")
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("size", [10, 10_000])
async def test_a_disconnect_is_noticed_while_reading_is_paused(tls, size):
    """More messages than the app receives, or more bytes than the kernel buffers."""
    async with opened(tls=tls, ping_interval=0.2, ping_timeout=0.2, connection={"tcp": True}) as (app, client):
        await client.send(frame("x" * size) * 64)
        await until(lambda: not app.connection.is_reading)
        await client.hang_up()
        await until(lambda: app.connection.state is State.CLOSED)


# Nothing is left


ENDS = ["refused", "closed by the client", "closed by the app", "reset", "violation", "waiting", "failed"]


async def _end(served, client, how):
    if how == "refused":
        await client.refused("/?refuse")
        return
    await client.open("/?close" if how == "closed by the app" else "/?fail" if how == "failed" else "/")
    await client.send(frame("one"), frame(b"two", BINARY), frame("", PING))
    while how != "failed" and how != "closed by the app" and (await client.read_frame()).opcode != PING:
        pass
    if how == "reset":
        client.reset()
    elif how == "violation":
        await client.send(b"\xff\xff")
        await client.read_close()
    elif how == "waiting":
        served.websockets.disconnect()
    elif how == "closed by the client":
        await client.send(close_frame(1000))
        await client.read_rest()
    else:
        await client.read_close()
        await client.send(close_frame(1000))
        await client.read_rest()


def _live():
    counts = Counter(map(type, gc.get_objects()))
    return [counts[kind] for kind in (ServerWebSocket, FrameParser, Deflater)]


async def _various(scope, receive, send):
    if scope["query_string"] == b"refuse":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept"})
    if scope["query_string"] == b"fail":
        raise LookupError
    while scope["query_string"] != b"close" and (await receive())["type"] != "websocket.disconnect":
        pass


@pytest.mark.parametrize("compression", [False, True])
async def test_a_closed_connection_is_freed_without_the_garbage_collector(compression, caplog):
    caplog.set_level(logging.CRITICAL, logger="microws.server")  # its record has the traceback
    gc.collect()
    before = _live()  # of tests that ran in this process
    gc.disable()
    try:
        async with serving(_various, compression=compression, ping_interval=0.01, ping_timeout=20) as served:
            for how in ENDS:
                async with await served.connect(tcp=True) as client:
                    await _end(served, client, how)
                    client.server = None
                await within(served.websockets.wait_closed())
                for _ in range(3):
                    await asyncio.sleep(0)
                assert _live() == before, how
    finally:
        gc.enable()


# Random orders of events

CLIENT = {
    "sends text": frame("text"),
    "sends bytes": frame(b"bytes" * 300, BINARY),
    "sends many": frame("many") * 70,
    "sends a part": frame("part", final=False),
    "sends the rest": frame("rest", CONTINUATION),
    "pings": frame("ping", PING),
    "pings too often": frame("ping", PING) * 101,
    "pongs": frame("", PONG),
    "closes": close_frame(4000, "bye"),
    "closes without a code": frame("", CLOSE),
    "closes wrongly": close_frame(1005),
    "sends half a frame": frame("half")[:5],
    "sends rubbish": b"\xff\xff",
    "sends no utf-8": frame(b"\xff"),
    "sends too much": frame(MIB + 1, BINARY) + bytes(5000),
}
APP = {
    "accepts": {"type": "websocket.accept"},
    "accepts wrongly": {"type": "websocket.accept", "subprotocol": "none"},
    "sends": {"type": "websocket.send", "text": "text"},
    "sends much": {"type": "websocket.send", "bytes": bytes(20_000)},
    "sends wrongly": {"type": "websocket.send"},
    "closes": {"type": "websocket.close", "code": 4001},
    "closes wrongly": {"type": "websocket.close", "code": 1005},
    "denies": {"type": START, "status": 404},
    "denies wrongly": {"type": START, "status": 40},
    "sends a part": {"type": BODY, "body": b"part" * 1000, "more_body": True},
    "sends the last part": {"type": BODY, "body": b"last"},
}
OTHERS = ["client reads", "client half-closes", "client goes", "app receives", "app stops receiving", "app returns"]
OTHERS += ["app raises", "server drains", "server disconnects", "server cancels", "time passes", "turn"]
STEPS = [*(f"client {step}" for step in CLIENT), *(f"app {step}" for step in APP), *OTHERS]


class Play:
    """One connection, and the steps of a random test."""

    def __init__(self, app, client, *, seconds):
        self.app = app
        self.client = client
        self.ends = 0
        self._seconds = seconds
        self._tasks = []
        app.connection.unsubscribe = self._end

    def _end(self):
        self.ends += 1

    async def take(self, step):
        who, _, what = step.partition(" ")
        if who == "client" and what in CLIENT:
            self._client_sends(CLIENT[what])
        elif who == "app" and what in APP:
            self._tasks.append(asyncio.ensure_future(self._app_sends(APP[what])))
        else:
            await getattr(self, step.replace(" ", "_").replace("-", "_"))()
        await asyncio.sleep(0)

    def _client_sends(self, data):
        try:
            self.client.sock.send(data)
        except OSError:
            pass  # the client has disconnected, or the server does not read, or has closed

    async def _app_sends(self, event):
        try:
            await self.app.send(event)
        except (OSError, RuntimeError, ValueError, TypeError):
            pass

    async def _app_receives(self):
        while (event := await self.app.receive())["type"] != "websocket.disconnect":
            pass
        assert type(event["code"]) is int
        assert event == await self.app.receive()

    async def client_reads(self):
        try:
            while self.client.sock.recv(1 << 18):
                pass
        except OSError:
            pass

    async def client_half_closes(self):
        try:
            self.client.half_close()
        except OSError:
            pass

    async def client_goes(self):
        self.client.sock.close()

    async def app_receives(self):
        self._tasks.append(asyncio.ensure_future(self._app_receives()))

    async def app_stops_receiving(self):
        for task in self._tasks:
            task.cancel()

    async def app_returns(self):
        self.app.release.set()

    async def app_raises(self):
        self.app.error = LookupError("whatever")
        self.app.release.set()

    async def server_drains(self):
        await self.app.serving.websockets.drain()

    async def server_disconnects(self):
        self.app.serving.websockets.disconnect()

    async def server_cancels(self):
        self.app.serving.websockets.cancel()

    async def time_passes(self):
        await asyncio.sleep(self._seconds)

    async def turn(self):
        pass

    async def finish(self):
        """The app ends; the client may be connected and silent. The connection ends on its own."""
        self.app.release.set()
        await within(self.app.serving.websockets.wait_closed(), 1000)
        assert self.ends == 1
        assert self.app.connection.state is State.CLOSED
        assert (await within(self.app.receive()))["type"] in ("websocket.disconnect", "websocket.receive")
        for task in self._tasks:
            try:
                await within(task)
            except asyncio.CancelledError:
                pass


@given(st.lists(st.sampled_from(STEPS), max_size=15), st.booleans())
@settings(max_examples=200)
def test_in_any_order_of_events_the_connection_ends_with_its_app(steps, accept):
    @on_virtual_clock
    async def play():
        options = {"limit": 1000, "ping_interval": 20, "ping_timeout": 20, "compression": True}
        async with opened(accept=accept, connection={"buffers": 4096}, **options) as (app, client):
            scene = Play(app, client, seconds=7)
            for step in steps:
                await scene.take(step)
            loop = asyncio.get_running_loop()
            began = loop.time()
            await scene.finish()
            assert loop.time() - began <= 10

    play()


@pytest.mark.parametrize("seed", range(8))
async def test_no_random_order_of_events_leaves_anything(seed):
    chance = random.Random(seed)
    for round_ in range(10):
        async with opened(accept=bool(round_ % 3), connection={"tcp": True, "buffers": 4096}) as (app, client):
            scene = Play(app, client, seconds=0.001)
            for step in chance.choices(STEPS, k=15):
                await scene.take(step)
            client.sock.close()
            await scene.finish()
