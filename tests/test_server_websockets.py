"""The server's WebSockets as an ASGI server: events, responses to handshakes, and errors of the app."""

import asyncio
import logging

import pytest
from byte_client import BINARY, TEXT, close_frame, frame, upgrade
from websocket_server import ASYNCIO_BACKENDS, echo, opened, serving, until, within

from microws.server.failures import ClientDisconnected
from microws.state import State

pytestmark = pytest.mark.anyio

START = "websocket.http.response.start"
BODY = "websocket.http.response.body"


@pytest.fixture(params=ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
def anyio_backend(request):
    return request.param


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level(logging.INFO, logger="microws")


def access_lines(caplog):
    """What the access log says of each answer and end, without client and duration."""
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


# Answers to the handshake


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


# What becomes of the app


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


async def test_tls_passes_messages_of_any_size_both_ways():
    async with serving(echo, tls=True) as served, await served.connect() as client:
        await client.open("/", behind=frame("early"))
        assert await client.read_payloads(1) == [b"early"]
        for size in (0, 1000, 100_000, 1 << 20):
            sending = asyncio.ensure_future(client.send(frame(b"x" * size, BINARY)))
            assert await client.read_frame() == (BINARY, b"x" * size, False)
            await within(sending)
        await client.send(close_frame(4000, "bye"))
        assert await client.read_close() == (4000, "bye")
        assert await client.read_rest() == b""


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
