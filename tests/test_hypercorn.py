"""``--server hypercorn``: its settings, what is added around the app, and the drain; on every event loop."""

import socket
import ssl
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import h2.config
import h2.connection
import h2.events
import httpx
import pytest
from raw_websocket import RawWebSocket, connected
from worker_here import echo, failures, read_to_the_end, requesting, serving

from microws.server.hypercorn import HypercornServer, hypercorn_config
from microws.server.settings import Settings

pytestmark = pytest.mark.anyio

TLS = Path(__file__).parent / "tls"
PEM = {"certfile": str(TLS / "localhost.pem"), "keyfile": str(TLS / "localhost.key")}
LIMIT = 10

# More messages than one of Hypercorn's queues has room for, in one piece.
FLOOD = b"\x81\x81\0\0\0\0x" * 1000

GET = {":method": "GET", ":scheme": "https", ":authority": "x", ":path": "/x"}


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level("INFO")


def on_hypercorn(app, **options):
    return serving(app, server="hypercorn", **options)


def trusted():
    return ssl.create_default_context(cafile=TLS / "localhost.pem")


class HTTP2:
    """One HTTP/2 connection of a client."""

    def __init__(self, stream):
        self.stream = stream
        self._events = []
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))

    async def send(self):
        await self.stream.send(self.h2.data_to_send())

    async def status(self, stream_id):
        with anyio.fail_after(LIMIT):
            while True:
                for event in self._events:
                    if isinstance(event, h2.events.ResponseReceived) and event.stream_id == stream_id:
                        return int(dict(event.headers)[b":status"])
                self._events = self.h2.receive_data(await self.stream.receive())
                await self.send()


@asynccontextmanager
async def http2(served):
    context = trusted()
    context.set_alpn_protocols(["h2"])
    tls = {"ssl_context": context, "tls_standard_compatible": False}
    async with await anyio.connect_tcp("localhost", served.port, **tls) as stream:
        client = HTTP2(stream)
        client.h2.initiate_connection()
        await client.send()
        yield client


def test_the_settings_become_hypercorns():
    settings = Settings(ping_interval=0, max_head_size="8KiB", keep_alive=30, certfile="both.pem")
    config = hypercorn_config(settings, max_message_size=5)
    assert (config.websocket_max_message_size, config.websocket_ping_interval) == (5, None)
    assert (config.h11_max_incomplete_size, config.h2_max_header_list_size) == (8 << 10, 8 << 10)
    assert (config.keep_alive_timeout, config.certfile, config.keyfile) == (30, "both.pem", "both.pem")
    assert config.accesslog is config.errorlog is None
    assert [name for name, _ in config.response_headers("h11")] == [b"date"]


async def test_requests_and_websockets_are_served_and_logged(caplog):
    async with on_hypercorn(echo) as served, httpx.AsyncClient() as client:
        assert (await client.get(f"{served.url}/x?token=secret")).text == "/x"
        async with connected(served.port, "/ws") as ws:
            await ws.send_text("hello")
            await ws.next_event(object)
    assert '"GET /x?token=*** HTTP/1.1" 200 ' in caplog.text
    assert '"WebSocket /ws HTTP/1.1" 101 ' in caplog.text
    # Hypercorn does not tell the client's own code.
    assert '"WebSocket /ws HTTP/1.1" closed by the client ' in caplog.text
    assert not failures(caplog)


async def test_http_2_is_offered_over_tls(caplog):
    async with on_hypercorn(echo, **PEM) as served:
        async with http2(served) as client:
            client.h2.send_headers(1, GET.items(), end_stream=True)
            await client.send()
            assert await client.status(1) == 200
        async with httpx.AsyncClient(verify=trusted()) as old:
            assert (await old.get(f"https://localhost:{served.port}/y")).text == "/y"
    assert '"GET /x HTTP/2" 200 ' in caplog.text
    assert '"GET /y HTTP/1.1" 200 ' in caplog.text


async def test_http_2_without_tls_is_refused_even_after_an_upgrade(caplog):
    """Otherwise a client could bypass the rules of a proxy that forwards ``Upgrade: h2c``."""
    upgrade = (
        b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
        b"http2-settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    async with on_hypercorn(echo) as served:
        for first, stream_id in ((b"", 1), (upgrade, 3)):
            async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
                client = HTTP2(stream)
                if first:
                    await stream.send(first)
                    client.h2.initiate_upgrade_connection()
                    head, _, rest = (await stream.receive()).partition(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 101 ")
                    client._events += client.h2.receive_data(rest) if rest else []
                else:
                    client.h2.initiate_connection()
                client.h2.send_headers(stream_id, GET.items(), end_stream=True)
                await client.send()
                assert await client.status(stream_id) == 505
    assert "HTTP/2" not in caplog.text


@pytest.mark.parametrize("error", [None, LookupError, SystemExit])
async def test_an_app_that_fails_is_logged_once_and_the_client_gets_500(error, caplog):
    async def app(scope, receive, send):
        if scope["type"] != "lifespan" and error is not None:
            raise error("secret")

    async with on_hypercorn(app) as served, httpx.AsyncClient() as client:
        response = await client.get(f"{served.url}/x")
        async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
            assert (await RawWebSocket(stream).handshake("/ws")).status_code == 500
    assert (response.status_code, response.content) == (500, b"")
    failed = "the app returned without an answer to" if error is None else "the app raised in"
    messages = [record.getMessage() for record in failures(caplog)]
    assert messages == [f"{failed} GET /x HTTP/1.1", f"{failed} WebSocket /ws HTTP/1.1"]
    assert '"GET /x HTTP/1.1" 500 ' in caplog.text


async def test_send_raises_after_a_disconnect(caplog):
    raised = anyio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            while (event := await receive())["type"] != "websocket.disconnect":
                pass
            assert await receive() == event
            try:
                await send({"type": "websocket.send", "text": "too late"})
            except OSError:
                raised.set()

    async with on_hypercorn(app) as served:
        async with connected(served.port):
            pass
        with anyio.fail_after(LIMIT):
            await raised.wait()
    assert not failures(caplog)


async def test_a_client_that_floods_an_app_which_returns_is_disconnected():
    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            # Until the queue is full.
            await anyio.wait_all_tasks_blocked()

    async with on_hypercorn(app) as served, connected(served.port) as ws:
        with suppress(anyio.BrokenResourceError):
            await ws.stream.send(FLOOD)
        await read_to_the_end(ws.stream)


async def test_messages_after_the_disconnect_are_taken_from_hypercorn(anyio_backend_name):
    """It puts the disconnect before them if a send fails, and its queue has room for 10."""
    put, take = anyio.create_memory_object_stream(10)
    message = {"type": "websocket.receive", "text": "x", "bytes": None}

    async def app(scope, receive, send):
        while (await receive())["type"] != "websocket.disconnect":
            pass

    scope = {"type": "websocket", "http_version": "1.1", "raw_path": b"/", "query_string": b"", "client": None}
    config = hypercorn_config(Settings(), max_message_size=1)
    server = HypercornServer(app, config, on_trio=anyio_backend_name == "trio", state={}, extension={})
    with put, take, anyio.fail_after(LIMIT), socket.create_server(("127.0.0.1", 0)) as sock:
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.serve, [sock])
            tasks.start_soon(server, scope, take.receive, None)
            for event in [message, {"type": "websocket.disconnect", "code": 1006}, *[message] * 100]:
                await put.send(event)
            server.cancel()


async def test_an_app_that_does_not_end_gets_a_disconnect_then_a_cancellation(caplog):
    seen = []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await receive()
            seen.append((await receive())["type"])
            try:
                await anyio.sleep_forever()
            finally:
                seen.append("cancelled")

    async with on_hypercorn(app, drain_timeout=0.1) as served, requesting(served):
        await wait_for_call(served)
        served.shutdown.request()
        await served.ended.wait()
    assert seen == ["http.disconnect", "cancelled"]
    assert [record.getMessage() for record in failures(caplog)] == [
        "connections that did not end in time and are dropped: 1"
    ]


async def wait_for_call(served):
    """Another request is answered only after the one before it was passed to the app."""
    async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        await stream.send(b"nonsense\r\n\r\n")
        await read_to_the_end(stream)


async def test_a_websocket_delays_the_shutdown_by_a_second_at_most():
    """Hypercorn's next ping is due in 300 s, and it waits for it."""
    with anyio.fail_after(5):
        async with on_hypercorn(echo, ping_interval=300, drain_timeout=300) as served, connected(served.port):
            pass
    assert served.exit_code == 0


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_connection_that_makes_hypercorn_fail_does_not_stop_the_server(caplog):
    """On trio Hypercorn itself ends, for instance after a path with a byte over 0x7f."""
    async with on_hypercorn(echo, **PEM) as served:
        async with http2(served) as client:
            client.h2.send_headers(1, (GET | {":path": b"/\xff"}).items(), end_stream=True)
            await client.send()
            await read_to_the_end(client.stream)
        async with httpx.AsyncClient(verify=trusted()) as client:
            assert (await client.get(f"https://localhost:{served.port}/y")).text == "/y"
    assert served.exit_code == 0
    assert [record.getMessage().partition(": ")[0] for record in failures(caplog)] == [
        "Hypercorn failed and is started again"
    ]
