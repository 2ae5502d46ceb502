"""A worker in this process, over real sockets, on every event loop."""

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import ssl
import sys
import threading
from pathlib import Path

import anyio
import anyio.lowlevel
import httpx
import pytest
from anyio.streams.tls import TLSStream
from raw_websocket import RawWebSocket, connected, reset
from worker_here import (
    echo,
    fails_with_a_short_message,
    failures,
    lifespan,
    on_own_server,
    read_to_the_end,
    respond,
    serving,
)
from wsproto.events import CloseConnection, Message, RejectConnection

from microws import App
from microws.errors import FeatureUnavailable
from microws.interfaces import Limits
from microws.server.listening import tls_context
from microws.server.logs import JSONFormatter, TextFormatter, format_duration
from microws.server.settings import Settings
from microws.server.worker import choose_loop, run

pytestmark = [pytest.mark.anyio, pytest.mark.sockets]

TLS = Path(__file__).parent / "tls"

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
HANDSHAKE = REQUEST.removesuffix(b"\r\n") + (
    b"upgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level(logging.INFO, logger="microws")


# Requests and WebSockets


async def test_a_request_is_answered_and_logged(caplog):
    async with serving(echo) as served, httpx.AsyncClient() as client:
        response = await client.get(f"{served.url}/a%20b?c=d")
    assert (response.status_code, response.text) == (200, "/a b")
    assert "server" not in response.headers
    [record] = [record for record in caplog.records if record.name == "microws.access"]
    client_name, _, rest = record.getMessage().partition(" ")
    assert client_name.startswith("127.0.0.1:")
    assert rest.startswith('"GET /a%20b?c=d HTTP/1.1" 200 ')
    assert rest.endswith("ms")
    assert record.access["status"] == 200
    assert served.exit_code == 0


async def test_a_websocket_is_logged_when_it_opens_and_when_it_closes(caplog, anyio_backend_name):
    async with serving(echo) as served, connected(served.port, "/x?y=z") as ws:
        await ws.send_text("hi")
        assert (await ws.next_event(Message)).data == "hi"
        await ws.send(CloseConnection(code=4001, reason="bye"))
        assert await ws.closed(answer=False) == (4001, "bye")
    records = [record for record in caplog.records if record.name == "microws.access"]
    lines = [record.getMessage().split('"', 1)[1] for record in records]
    # Hypercorn keeps the client's own code for itself.
    ending, code = ("closed by the client", None) if anyio_backend_name == "trio" else ("closed 4001", 4001)
    assert [line.rpartition(" ")[0] for line in lines] == [
        'WebSocket /x?y=z HTTP/1.1" 101',
        f'WebSocket /x?y=z HTTP/1.1" {ending}',
    ]
    assert records[-1].access["close_code"] == code


def test_a_duration_of_a_second_and_more_is_logged_in_seconds():
    assert [format_duration(milliseconds) for milliseconds in (0.04, 999.9, 1000.0, 3600040.0)] == [
        "0.0ms",
        "999.9ms",
        "1.0s",
        "3600.0s",
    ]


async def test_the_access_log_can_be_turned_off(caplog):
    async with serving(echo, access_log=False) as served, httpx.AsyncClient() as client:
        await client.get(served.url)
    assert not [record for record in caplog.records if record.name == "microws.access"]


@pytest.mark.parametrize("query", ["token=s3cret", "a=b&Acc%65ss_Token=s3cret", "ticket=%733cret&password=s3cret"])
async def test_no_line_of_the_log_holds_a_secret_of_the_query(caplog, query, anyio_backend_name):
    async def app(scope, receive, send):
        if scope["type"] != "lifespan" and scope["path"] == "/raises":
            raise LookupError
        if scope["type"] != "lifespan" and scope["path"] == "/echo":
            await echo(scope, receive, send)

    for server in ("hypercorn",) if anyio_backend_name == "trio" else ("microws", "hypercorn"):
        async with serving(app, server=server) as served, httpx.AsyncClient() as client:
            for path in ("/echo", "/raises", "/is_silent"):
                await client.get(f"{served.url}{path}?{query}")
                async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
                    await RawWebSocket(stream).handshake(f"{path}?{query}")
    access = [record.access["path"] for record in caplog.records if record.name == "microws.access"]
    assert access
    assert all(path.endswith("=***") for path in access)
    for formatter in (TextFormatter(), JSONFormatter()):
        assert "3cret" not in "".join(formatter.format(record) for record in caplog.records)


async def test_a_path_cannot_write_a_log_line_of_its_own(caplog):
    async with serving(echo) as served, httpx.AsyncClient() as client:
        await client.get(f"{served.url}/%0Aforged%1B[31m")
    assert '"GET /%0Aforged%1B' in caplog.text


async def test_a_view_may_refuse_a_handshake_with_a_real_response():
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return
        assert "websocket.http.response" in scope["extensions"]
        await send({"type": "websocket.http.response.start", "status": 404, "headers": [(b"content-length", b"7")]})
        await send({"type": "websocket.http.response.body", "body": b"not ", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"here"[:3]})

    async with serving(app) as served, await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        ws = RawWebSocket(stream)
        reject = await ws.handshake()
        assert isinstance(reject, RejectConnection)
        assert await ws.rejection(reject) == (404, b"not her")


async def test_headers_may_be_any_iterable_or_none(anyio_backend_name):
    def pairs(*names):
        return ((name, b"yes") for name in names)

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return
        headers = {"/pairs": pairs(b"x-one", b"x-two"), "/none": None}.get(scope["path"], {b"x-one": b"yes"}.items())
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body"})
        elif scope["query_string"]:
            await send({"type": "websocket.http.response.start", "status": 404, "headers": headers})
            await send({"type": "websocket.http.response.body"})
        else:
            await send({"type": "websocket.accept", "headers": headers})

    for server in ("hypercorn",) if anyio_backend_name == "trio" else ("microws", "hypercorn"):
        async with serving(app, server=server) as served, httpx.AsyncClient() as client:
            for path, expected in ("/pairs", {b"x-one", b"x-two"}), ("/items", {b"x-one"}), ("/none", set()):
                response = await client.get(served.url + path)
                assert {name for name, _ in response.headers.raw if name.startswith(b"x-")} == expected
                for target in (path, f"{path}?denied"):
                    async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
                        answer = await RawWebSocket(stream).handshake(target)
                    headers = answer.headers if isinstance(answer, RejectConnection) else answer.extra_headers
                    assert {name for name, _ in headers if name.startswith(b"x-")} == expected


@on_own_server
async def test_an_app_may_say_to_what_a_client_has_to_upgrade():
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await respond(send, status=426, headers=[(b"upgrade", b"websocket"), (b"connection", b"keep-alive")])

    async with serving(app) as served, httpx.AsyncClient() as client:
        headers = (await client.get(served.url)).headers
    assert (headers["upgrade"], headers.get_list("connection")) == ("websocket", ["upgrade"])


async def test_a_close_before_accept_is_403(caplog):
    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async with serving(app) as served, await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        assert (await RawWebSocket(stream).handshake()).status_code == 403
    assert 'HTTP/1.1" 403 ' in caplog.text
    assert not failures(caplog)


@pytest.mark.parametrize("error", [LookupError, SystemExit])
async def test_an_app_that_raises_is_logged_once_and_answered_with_500(caplog, error):
    async def app(scope, receive, send):
        if scope["type"] != "lifespan":
            raise error("secret")

    async with serving(app) as served, httpx.AsyncClient() as client:
        response = await client.get(f"{served.url}/x")
    assert response.status_code == 500
    assert "secret" not in response.text
    [record] = failures(caplog)
    assert record.getMessage() == "the app raised in GET /x HTTP/1.1"
    assert record.exc_info[0] is error
    assert '"GET /x HTTP/1.1" 500 ' in caplog.text
    assert served.exit_code == 0


async def test_an_app_that_says_nothing_is_answered_with_500(caplog):
    async def app(scope, receive, send):
        pass

    async with serving(app) as served, httpx.AsyncClient() as client:
        assert (await client.get(f"{served.url}/x")).status_code == 500
        async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
            assert (await RawWebSocket(stream).handshake()).status_code == 500
    assert [record.getMessage() for record in failures(caplog)] == [
        "the app returned without an answer to GET /x HTTP/1.1",
        "the app returned without an answer to WebSocket / HTTP/1.1",
    ]


@on_own_server
@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 1000), (LookupError(), 1011), (SystemExit(3), 1011), (BaseExceptionGroup("", [SystemExit(3)]), 1011)],
)
async def test_an_app_that_ends_without_closing_closes(caplog, error, code):
    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            if error is not None:
                raise error

    async with serving(app) as served, connected(served.port) as ws:
        assert (await ws.closed())[0] == code
    assert f"closed {code} " in caplog.text
    assert len(failures(caplog)) == (error is not None)
    assert served.exit_code == 0


async def test_the_close_code_of_the_app_is_logged(caplog):
    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 4000, "reason": "enough"})
            await send({"type": "websocket.close", "code": 4001})

    async with serving(app) as served, connected(served.port) as ws:
        assert await ws.closed() == (4000, "enough")
    assert "closed 4000 " in caplog.text


@on_own_server
async def test_the_close_frame_arrives_even_where_the_client_is_still_sending():
    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await receive()
            await receive()
            await send({"type": "websocket.close", "code": 4000})

    async with serving(app) as served, connected(served.port) as ws:
        for _ in range(50):
            await ws.send_text("x" * 1000)
        assert (await ws.closed())[0] == 4000


async def test_pings_are_sent_and_do_not_outlive_the_connection():
    async with serving(echo, ping_interval=0.05) as served, connected(served.port) as ws:
        await ws.next_ping()
        await ws.next_ping()
    async with serving(echo, ping_interval=300, drain_timeout=300) as served, connected(served.port):
        pass
    assert served.exit_code == 0


async def test_a_worker_that_is_cancelled_listens_no_more():
    with pytest.raises(ExceptionGroup):
        async with serving(echo) as served, connected(served.port):
            raise LookupError
    with pytest.raises(OSError, match="connection attempts failed"):
        await anyio.connect_tcp("127.0.0.1", served.port)


async def test_a_limit_that_was_asked_for_is_in_the_scope():
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await respond(send, repr(scope["extensions"]["microws"].get("max_message_size")).encode())

    async with serving(app, max_message_size="64KiB") as served, httpx.AsyncClient() as client:
        assert (await client.get(served.url)).text == "65536"
    async with serving(app) as served, httpx.AsyncClient() as client:
        assert (await client.get(served.url)).text == "None"


@pytest.mark.parametrize("own", [None, 10])
async def test_a_message_over_the_limit_is_1009(own):
    class App:
        max_message_size = own

        async def __call__(self, scope, receive, send):
            await echo(scope, receive, send)

    async with serving(App(), max_message_size=None if own else 10) as served, connected(served.port) as ws:
        await ws.send_text("x" * 11)
        assert (await ws.closed())[0] == 1009


@on_own_server
async def test_an_app_says_how_many_messages_may_wait_before_reading_pauses():
    """On other servers it is this package that reads, and not the server: see TestReading."""
    app = App(receive_queue=2, close_timeout=0.1)
    wires = []

    @app.add_middleware
    def looking(inner):
        async def look(scope, receive, send):
            if scope["type"] == "websocket":
                wires.append(scope["extensions"]["microws"].get("transport"))
            await inner(scope, receive, send)

        return look

    @app.websocket_route("/")
    async def view(ws):
        async with ws:
            await anyio.sleep_forever()

    async with serving(app, drain_timeout=0.2) as served, connected(served.port) as ws:
        for _ in range(2):
            await ws.send_text("x")
        [wire] = wires
        with anyio.fail_after(5):
            while wire.is_reading:
                await anyio.lowlevel.checkpoint()


# Clients that misbehave


async def test_nonsense_is_400_and_no_noise(caplog):
    async with serving(echo) as served, await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        await stream.send(b"\x16\x03\x01\x02\x00 what is this\r\n\r\n")
        assert (await stream.receive()).startswith(b"HTTP/1.1 400 ")
    assert not failures(caplog)


async def test_a_head_over_16_kib_is_431():
    async with serving(echo) as served, await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        await stream.send(b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 17000)
        assert (await stream.receive()).startswith(b"HTTP/1.1 431 ")


@on_own_server
@pytest.mark.parametrize("handshake", [True, False])
async def test_a_head_over_16_kib_is_431_also_where_it_comes_in_one_piece(handshake, caplog):
    async with serving(echo) as served:
        for size, answer in ((16_000, b"101 " if handshake else b"200 "), (17_000, b"431 ")):
            async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
                field = b"x: " + b"y" * size + b"\r\n\r\n"
                await stream.send((HANDSHAKE if handshake else REQUEST).removesuffix(b"\r\n") + field)
                assert (await stream.receive()).startswith(b"HTTP/1.1 " + answer)
                if size > 16 << 10:
                    await read_to_the_end(stream)
    assert 'HTTP/1.1" 431 ' in caplog.text
    assert not failures(caplog)


async def test_a_client_that_sends_on_and_on_holds_no_app_that_has_answered():
    """Hypercorn has a place for ten parts of a body, and its last send waits for one more."""
    has_answered = anyio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await respond(send, b"enough")
            has_answered.set()
            assert await receive() == {"type": "http.disconnect"}

    async with serving(app) as served, await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        await stream.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(anyio.BrokenResourceError):
            while not has_answered.is_set():
                await stream.send(b"1\r\nx\r\n" * 100)
                await anyio.lowlevel.checkpoint()
        with anyio.fail_after(5):
            await has_answered.wait()


async def test_a_client_that_sends_on_and_on_holds_no_app_that_has_failed(caplog):
    has_failed = anyio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            has_failed.set()
            raise LookupError

    async with serving(app, drain_timeout=1) as served, await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        await stream.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        await has_failed.wait()
        with anyio.fail_after(5), contextlib.suppress(anyio.BrokenResourceError):
            while True:
                await stream.send(b"1\r\nx\r\n" * 100)
    assert [record.getMessage() for record in failures(caplog)] == ["the app raised in POST / HTTP/1.1"]


@on_own_server
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("resets", [True, False])
async def test_a_client_that_floods_and_leaves_leaves_nothing_behind(caplog, reads, resets):
    """Hypercorn may tell of the disconnect before it has handed on what came before, and then waits for the app."""

    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            while reads and (await receive())["type"] != "websocket.disconnect":
                pass

    async with serving(app, drain_timeout=5) as served, anyio.create_task_group() as tasks:

        async def flood(count):
            async with connected(served.port) as ws:
                with contextlib.suppress(anyio.BrokenResourceError), anyio.move_on_after(0.3):
                    for _ in range(count):
                        await ws.stream.send(b"\x81\x81\0\0\0\0x" * 20)
                if resets:
                    await reset(ws.stream)

        for count in (1, 2, 5, 10, 20, 50):
            tasks.start_soon(flood, count)
    assert served.exit_code == 0
    assert not failures(caplog)


@on_own_server
async def test_a_frame_before_the_101_reaches_the_app(caplog):
    received = []
    has_ended = anyio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            received.append(await receive())
            await send({"type": "websocket.accept"})
            # Once more after a disconnect, too: a framework may ask again.
            received.append(await receive())
            received.append(await receive())
            has_ended.set()

    async with serving(app) as served:
        async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
            await stream.send(HANDSHAKE + b"\x81\x81\0\0\0\0x")
            assert (await stream.receive()).startswith(b"HTTP/1.1 101 ")
        with anyio.fail_after(5):
            await has_ended.wait()
    connect, first, second = received
    assert connect == {"type": "websocket.connect"}
    assert first == {"type": "websocket.receive", "text": "x"}
    assert second == {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    assert not failures(caplog)


@on_own_server
async def test_a_client_that_does_not_answer_the_close_is_dropped(caplog):
    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            scope["extensions"]["microws"]["transport"].limits = Limits(close_timeout=0.1)
            await send({"type": "websocket.accept"})

    async with serving(app) as served, connected(served.port) as ws:
        assert (await ws.closed(answer=False))[0] == 1000
        await read_to_the_end(ws.stream)
    assert not failures(caplog)


async def test_an_app_that_waits_for_the_disconnect_while_it_answers_gets_it():
    has_left = anyio.Event()

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return

        async def wait_disconnect():
            while (await receive())["type"] != "http.disconnect":
                pass
            has_left.set()

        async with anyio.create_task_group() as tasks:
            await receive()
            tasks.start_soon(wait_disconnect)
            await respond(send, b"enough")

    async with serving(app) as served, await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        await stream.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nx")
        assert b"200" in await stream.receive()
        with anyio.fail_after(5):
            await has_left.wait()


async def test_an_invalid_frame_is_no_noise(caplog):
    async with serving(echo) as served, connected(served.port) as ws:
        await ws.stream.send(b"\xff\xff\xff\xff")
        await read_to_the_end(ws.stream)
    assert not failures(caplog)


@on_own_server
@pytest.mark.parametrize("handshake", [True, False])
async def test_a_client_that_vanishes_is_no_noise(caplog, handshake):
    begun, left = anyio.Event(), anyio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
        begun.set()
        while (await receive())["type"] not in ("websocket.disconnect", "http.disconnect"):
            pass
        left.set()

    async with serving(app) as served:
        stream = await anyio.connect_tcp("127.0.0.1", served.port)
        await stream.send(HANDSHAKE if handshake else REQUEST)
        await begun.wait()
        await reset(stream)
        await left.wait()
    assert not failures(caplog)


# TLS, Unix sockets, and the way in


@on_own_server
async def test_tls_speaks_http_1(caplog):
    tls = tls_context(str(TLS / "localhost.pem"), str(TLS / "localhost.key"))
    trusted = ssl.create_default_context(cafile=TLS / "localhost.pem")
    async with serving(echo, tls=tls) as served, httpx.AsyncClient(verify=trusted, http2=True) as client:
        response = await client.get(f"https://localhost:{served.port}/x")
        assert (response.text, response.http_version) == ("/x", "HTTP/1.1")
    assert served.exit_code == 0
    assert f"serving the app on https://127.0.0.1:{served.port} " in caplog.text
    assert '"GET /x HTTP/1.1" 200 ' in caplog.text
    assert not failures(caplog)


class Pouring:
    """An app that sends until its client has left, and waits for nothing else."""

    def __init__(self):
        self.left = anyio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return

        async def wait_left():
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_left)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while not self.left.is_set():
                await send({"type": "http.response.body", "body": bytes(64 << 10), "more_body": True})


async def test_an_app_that_sends_to_a_connection_that_was_reset_holds_up_nobody(caplog):
    app = Pouring()
    async with serving(app) as served:
        stream = await anyio.connect_tcp("127.0.0.1", served.port)
        await stream.send(REQUEST)
        await stream.receive()
        await reset(stream)
        with anyio.fail_after(5):
            await app.left.wait()
    assert not failures(caplog)


@on_own_server
async def test_a_client_that_breaks_tls_in_the_middle_of_a_response_is_no_failure_of_the_app(caplog):
    app = Pouring()
    tls = tls_context(str(TLS / "localhost.pem"), str(TLS / "localhost.key"))
    context = ssl.create_default_context(cafile=TLS / "localhost.pem")
    async with (
        serving(app, tls=tls) as served,
        await anyio.connect_tcp("127.0.0.1", served.port) as tcp,
        await TLSStream.wrap(tcp, hostname="localhost", ssl_context=context, standard_compatible=False) as stream,
    ):
        await stream.send(REQUEST)
        await stream.receive()
        await tcp.send(b"this is no TLS" * 10)
        with anyio.fail_after(5):
            await app.left.wait()
    assert not failures(caplog)


@on_own_server
async def test_a_client_that_does_not_answer_the_end_of_tls_is_no_failure_of_the_app(caplog):
    tls = tls_context(str(TLS / "localhost.pem"), str(TLS / "localhost.key"))
    context = ssl.create_default_context(cafile=TLS / "localhost.pem")
    async with (
        serving(echo, tls=tls) as served,
        await anyio.connect_tcp("127.0.0.1", served.port) as tcp,
        await TLSStream.wrap(tcp, hostname="localhost", ssl_context=context, standard_compatible=False) as stream,
    ):
        await stream.send(REQUEST.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        await read_to_the_end(stream)
        await read_to_the_end(tcp)
    assert not failures(caplog)


@on_own_server
async def test_a_websocket_over_tls_gets_1012():
    tls = tls_context(str(TLS / "localhost.pem"), str(TLS / "localhost.key"))
    trusted = ssl.create_default_context(cafile=TLS / "localhost.pem")
    async with serving(echo, tls=tls) as served:
        address = ("localhost", served.port)
        stream = await anyio.connect_tcp(*address, ssl_context=trusted, tls_standard_compatible=False)
        ws = RawWebSocket(stream)
        await ws.handshake()
        served.shutdown.request()
        assert (await ws.closed())[0] == 1012
        with anyio.fail_after(3):
            await served.ended.wait()
        await stream.aclose()


@on_own_server
async def test_a_client_that_speaks_no_tls_is_no_noise(caplog):
    tls = tls_context(str(TLS / "localhost.pem"), str(TLS / "localhost.key"))
    async with serving(echo, tls=tls) as served, await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        await stream.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await stream.receive()).startswith(b"HTTP/1.1 400 ")
    assert not failures(caplog)


async def test_a_unix_socket_is_served_and_its_file_removed(tmp_path, caplog):
    path = tmp_path / "app.sock"
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with serving(echo, port=None, bind=f"unix:{path}"), httpx.AsyncClient(transport=transport) as client:
        assert (await client.get("http://app/x")).text == "/x"
    assert not path.exists()
    assert f"serving the app on unix:{path} " in caplog.text
    assert 'unix "GET /x HTTP/1.1" 200 ' in caplog.text


async def test_the_path_of_a_unix_socket_is_free_as_soon_as_the_drain_begins(tmp_path):
    path = tmp_path / "app.sock"
    asked, answered = anyio.Event(), anyio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            asked.set()
            await answered.wait()
            await respond(send, b"late")

    async with serving(app, port=None, bind=f"unix:{path}") as served, await anyio.connect_unix(path) as stream:
        await stream.send(REQUEST)
        await asked.wait()
        served.shutdown.request()
        while path.exists():  # noqa: ASYNC110 - a file tells nobody that it is removed
            await anyio.sleep(0.01)
        async with serving(echo, port=None, bind=f"unix:{path}"):
            answered.set()
            answer = b""
            while not answer.endswith(b"late"):
                answer += await stream.receive()
            await served.ended.wait()
            assert path.is_socket()


@on_own_server
async def test_an_accept_that_cannot_be_is_the_apps_error_and_500(caplog):
    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept", "subprotocol": "not offered"})

    async with serving(app) as served, await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        assert (await RawWebSocket(stream).handshake()).status_code == 500
    assert [record.getMessage() for record in failures(caplog)] == ["the app raised in WebSocket / HTTP/1.1"]


LOOPS = {"asyncio": "asyncio", "uvloop": "uvloop", "trio": "trio", "auto": "uvloop"}


@pytest.mark.parametrize("loop", LOOPS)
def test_run_serves_until_a_signal_on_the_loop_that_was_asked_for(loop, capfd):
    loops = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        try:
            loops.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])
        except RuntimeError:
            loops.append("trio")
        os.kill(os.getpid(), signal.SIGTERM)
        await receive()

    assert run(app, name="here:app", port=0, loop=loop) == 0
    assert loops == [LOOPS[loop]]
    serving, stopping = capfd.readouterr().err.splitlines()
    assert re.search(r" info microws \S+ serving here:app on http://127\.0\.0\.1:\d+ \(Ctrl-C stops\)$", serving)
    assert stopping.endswith("stopping within 10 s; open requests: 0, WebSockets: 0 (Ctrl-C again: at once)")


def test_a_second_signal_to_run_is_at_once_and_the_handlers_are_put_back(capfd):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        os.kill(os.getpid(), signal.SIGINT)
        await receive()
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep_forever()

    assert run(app, port=0, loop="asyncio") == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_run_works_outside_the_main_thread(capfd):
    codes = []

    def main():
        codes.append(run(fails_with_a_short_message, port=0))

    thread = threading.Thread(target=main)
    thread.start()
    thread.join(10)
    assert codes == [1]
    assert "the app's startup failed: LookupError: no database" in capfd.readouterr().err


def test_run_says_in_one_line_that_an_address_is_in_use(capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(echo, port=port) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert f"127.0.0.1:{port} is in use" in line
    assert f"--port {port + 1}" in line


def test_run_says_in_one_line_that_there_is_no_certificate(capfd, tmp_path):
    assert run(echo, port=0, certfile=str(tmp_path / "none.pem")) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert "--certfile" in line


def test_run_logs_json_one_object_a_line(capfd):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed"})
        raise LookupError("no\ndatabase")

    assert run(app, port=0, log_format="json") == 1
    [line] = map(json.loads, capfd.readouterr().err.splitlines())
    assert line["level"] == "error"
    assert line["message"] == "the app's startup failed"
    assert "LookupError: no\ndatabase" in line["exception"]


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("prot", "did you mean 'port'?"),
        ("Host", "did you mean 'host'?"),
        ("ssl_certfile", "did you mean 'certfile'?"),
        ("reload", "this version does not reload, so start it again after a change"),
        ("debug", "write App(debug=True)"),
        ("env_file", "only the command has it: microws run"),
        ("zzz", "expected one of bind, host, port, workers,"),
    ],
)
def test_an_option_of_run_that_does_not_exist_is_one_line_with_the_right_one(option, hint):
    with pytest.raises(TypeError) as error:
        App().run(**{option: 1})
    assert str(error.value).startswith(f"app.run() has no option {option!r}; {hint}")
    assert "\n" not in str(error.value)


def test_run_takes_settings_or_options():
    with pytest.raises(TypeError, match="got both"):
        run(echo, Settings(), port=1)
    with pytest.raises(ValueError, match="port: expected a port"):
        run(echo, port=-1)


@pytest.mark.parametrize("loop", ["trio", "uvloop"])
def test_a_loop_that_is_not_installed_is_named_with_the_remedy(loop, monkeypatch):
    monkeypatch.setitem(sys.modules, loop, None)
    with pytest.raises(FeatureUnavailable, match=rf"the loop {loop} is not installed: pip install "):
        choose_loop(Settings(loop=loop))


def test_auto_is_asyncio_where_there_is_no_uvloop(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert choose_loop(Settings()) == "asyncio"
