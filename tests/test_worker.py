"""A worker in this process, over real sockets, on every event loop."""

import asyncio
import contextlib
import itertools
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
from wsproto.events import RejectConnection

from microws import App
from microws.errors import FeatureUnavailable
from microws.server.listening import tls_context
from microws.server.logs import JSONFormatter, TextFormatter
from microws.server.settings import Settings
from microws.server.worker import choose_loop, run

pytestmark = [pytest.mark.anyio, pytest.mark.sockets]

TLS = Path(__file__).parent / "tls"

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level(logging.INFO, logger="microws")


# Requests and WebSockets


async def test_a_request_is_answered_and_logged(caplog):
    async with serving(echo) as served, httpx.AsyncClient() as client:
        response = await client.get(f"{served.url}/a%0Ab?c=d")
    assert (response.status_code, response.text) == (200, "/a\nb")
    assert "server" not in response.headers
    [record] = [record for record in caplog.records if record.name == "microws.access"]
    client_name, _, rest = record.getMessage().partition(" ")
    assert client_name.startswith("127.0.0.1:")
    assert rest.startswith('"GET /a%0Ab?c=d HTTP/1.1" 200 ')
    assert rest.endswith("ms")
    assert record.access["status"] == 200
    assert served.exit_code == 0


async def test_no_log_line_holds_a_secret_of_the_query(caplog, anyio_backend_name):
    queries = ["token=s3cret", "a=b&Acc%65ss_Token=s3cret", "ticket=%733cret&password=s3cret"]

    async def app(scope, receive, send):
        if scope["type"] != "lifespan" and scope["path"] == "/raises":
            raise LookupError
        if scope["type"] != "lifespan" and scope["path"] == "/echo":
            await echo(scope, receive, send)

    for server in ("hypercorn",) if anyio_backend_name == "trio" else ("microws", "hypercorn"):
        async with serving(app, server=server) as served, httpx.AsyncClient() as client:
            for path, query in itertools.product(("/echo", "/raises", "/is_silent"), queries):
                await client.get(f"{served.url}{path}?{query}")
                async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
                    await RawWebSocket(stream).handshake(f"{path}?{query}")
    access = [record.access["path"] for record in caplog.records if record.name == "microws.access"]
    assert access
    assert all(path.endswith("=***") for path in access)
    for formatter in (TextFormatter(), JSONFormatter()):
        assert "3cret" not in "".join(formatter.format(record) for record in caplog.records)


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
async def test_an_app_may_send_an_upgrade_header():
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


async def test_pings_are_sent_and_do_not_outlive_the_connection():
    async with serving(echo, ping_interval=0.05) as served, connected(served.port) as ws:
        await ws.next_ping()
        await ws.next_ping()
    async with serving(echo, ping_interval=300, drain_timeout=300) as served, connected(served.port):
        pass
    assert served.exit_code == 0


async def test_a_cancelled_worker_stops_listening():
    with pytest.raises(ExceptionGroup):
        async with serving(echo) as served, connected(served.port):
            raise LookupError
    with pytest.raises(OSError, match="connection attempts failed"):
        await anyio.connect_tcp("127.0.0.1", served.port)


async def test_the_message_limit_of_the_settings_is_in_the_scope():
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


# Clients that misbehave


async def test_a_client_that_keeps_sending_does_not_hold_an_app_that_responded():
    """Hypercorn queues ten parts of a body, and its last send waits until the client sends no more."""
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


# TLS, Unix sockets, and the way in


class Pouring:
    """An app that sends until its client has disconnected, and waits for nothing else."""

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


async def test_a_reset_ends_an_app_that_sends(caplog):
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
async def test_a_client_that_breaks_tls_is_not_a_failure_of_the_app(caplog):
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
async def test_a_client_that_ignores_close_notify_is_not_a_failure_of_the_app(caplog):
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


async def test_a_unix_socket_is_served_and_its_file_removed(tmp_path, caplog):
    path = tmp_path / "app.sock"
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with serving(echo, port=None, bind=f"unix:{path}"), httpx.AsyncClient(transport=transport) as client:
        assert (await client.get("http://app/x")).text == "/x"
    assert not path.exists()
    assert f"serving the app on unix:{path} " in caplog.text
    assert 'unix "GET /x HTTP/1.1" 200 ' in caplog.text


async def test_the_path_of_a_unix_socket_is_free_during_the_drain(tmp_path):
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
        while path.exists():  # noqa: ASYNC110 - no event for a removed file
            await anyio.sleep(0.01)
        async with serving(echo, port=None, bind=f"unix:{path}"):
            answered.set()
            answer = b""
            while not answer.endswith(b"late"):
                answer += await stream.receive()
            await served.ended.wait()
            assert path.is_socket()


LOOPS = {"asyncio": "asyncio", "uvloop": "uvloop", "trio": "trio", "auto": "uvloop"}


@pytest.mark.parametrize("loop", LOOPS)
def test_run_serves_until_a_signal_on_the_requested_loop(loop, capfd):
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
    assert stopping.endswith("stopping within 10 s; open requests: 0, WebSockets: 0 (Ctrl-C again stops immediately)")


def test_a_second_signal_ends_run_and_the_handlers_are_restored(capfd):
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


def test_run_logs_a_problem_with_its_address_or_files_in_one_line(capfd, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(echo, port=port) == 1
    assert run(echo, port=0, certfile=str(tmp_path / "none.pem")) == 1
    in_use, no_certificate = capfd.readouterr().err.splitlines()
    assert f"127.0.0.1:{port} is in use" in in_use
    assert f"--port {port + 1}" in in_use
    assert "--certfile" in no_certificate


def test_a_hub_process_for_a_mounted_app_alone_is_refused(capfd):
    app = App()
    app.mount("/live", App(hub="local"))
    assert run(app, port=0) == 1
    assert "expected hub= at the outermost app, got hub='local' at a mounted one" in capfd.readouterr().err


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
        ("use_reloader", "to reload the app when a file changes: microws dev"),
        ("debug", "write App(debug=True)"),
        ("env_file", "only the command has it: microws run"),
        ("zzz", "expected one of bind, host, port, workers,"),
    ],
)
def test_an_unknown_option_of_run_is_one_line_with_a_hint(option, hint):
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
def test_a_loop_that_is_not_installed_is_an_error_with_the_command(loop, monkeypatch):
    monkeypatch.setitem(sys.modules, loop, None)
    with pytest.raises(FeatureUnavailable, match=rf"the loop {loop} is not installed: pip install "):
        choose_loop(Settings(loop=loop))


def test_auto_is_asyncio_without_uvloop(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert choose_loop(Settings()) == "asyncio"
