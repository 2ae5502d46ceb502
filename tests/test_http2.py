"""HTTP/2 at the level of its frames: WebSockets only where they are asked for, and no tunnel; on every event loop."""

import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
from worker_here import echo, failures, read_to_the_end, serving

from microws.server.listening import tls_context

pytestmark = pytest.mark.anyio

TLS = Path(__file__).parent / "tls"
LIMIT = 10

GET = {":method": "GET", ":scheme": "https", ":authority": "x", ":path": "/x"}
TUNNEL = {":method": "CONNECT", ":authority": "x:443"}
WEBSOCKET = {**GET, ":method": "CONNECT", ":protocol": "websocket", "sec-websocket-version": "13"}


class Client:
    """One HTTP/2 connection."""

    def __init__(self, stream):
        self.stream = stream
        self.events = []
        config = h2.config.H2Configuration(
            header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()

    async def send(self):
        await self.stream.send(self.h2.data_to_send())

    async def next_event(self, kind, stream_id=None):
        """The next event of this kind; others are passed over."""
        with anyio.fail_after(LIMIT):
            while True:
                while self.events:
                    event = self.events.pop(0)
                    if isinstance(event, kind) and stream_id in (None, getattr(event, "stream_id", None)):
                        return event
                self.events += self.h2.receive_data(await self.stream.receive())
                await self.send()

    async def status(self, stream_id):
        response = await self.next_event(h2.events.ResponseReceived, stream_id)
        return int(dict(response.headers)[":status"])


@asynccontextmanager
async def connected(served, *, tls=False):
    trusted = None
    if tls:
        trusted = ssl.create_default_context(cafile=TLS / "localhost.pem")
        trusted.set_alpn_protocols(["h2"])
    stream = await anyio.connect_tcp(
        "localhost" if tls else "127.0.0.1", served.port, ssl_context=trusted, tls_standard_compatible=False
    )
    async with stream:
        client = Client(stream)
        await client.send()
        yield client


@pytest.mark.parametrize("tls", [False, True])
async def test_websockets_are_not_offered(tls):
    context = tls_context(str(TLS / "localhost.pem"), str(TLS / "localhost.key")) if tls else None
    async with serving(echo, tls=context) as served, connected(served, tls=tls) as client:
        changed = (await client.next_event(h2.events.RemoteSettingsChanged)).changed_settings
        enabled = changed[h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL].new_value
        assert enabled == 0
        # The others are Hypercorn's.
        assert changed[h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE].new_value == 16 << 10


@pytest.mark.parametrize("headers", [WEBSOCKET, TUNNEL, {**WEBSOCKET, ":protocol": "connect-udp"}])
@pytest.mark.parametrize("ends", [False, True])
async def test_any_other_connect_is_501_and_the_connection_goes_on(headers, ends, caplog):
    async with serving(echo) as served, connected(served) as client:
        client.h2.send_headers(1, headers.items(), end_stream=ends)
        if not ends:
            client.h2.send_data(1, b"for the tunnel")
        client.h2.send_headers(3, GET.items(), end_stream=True)
        await client.send()
        assert await client.status(1) == 501
        assert await client.status(3) == 200
        if not ends:
            # Sent before the client knew.
            client.h2.send_headers(5, GET.items(), end_stream=True)
            await client.send()
            assert await client.status(5) == 200
    assert not failures(caplog)


async def test_a_connect_whose_client_leaves_its_stream_at_once_harms_nobody(caplog):
    async with serving(echo) as served, connected(served) as client:
        client.h2.send_headers(1, WEBSOCKET.items())
        client.h2.reset_stream(1, h2.errors.ErrorCodes.CANCEL)
        client.h2.send_headers(3, GET.items(), end_stream=True)
        await client.send()
        assert await client.status(3) == 200
    assert not failures(caplog)


@pytest.mark.parametrize("parts", [1, 3])
async def test_a_client_that_leaves_amid_a_response_holds_no_app(parts, caplog):
    """Hypercorn waits for room in a buffer that nobody empties any more."""
    has_ended = anyio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(parts):
                await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
            await send({"type": "http.response.body"})
            has_ended.set()

    async with serving(app) as served:
        async with connected(served) as client:
            client.h2.send_headers(1, GET.items(), end_stream=True)
            await client.send()
            await client.next_event(h2.events.DataReceived, 1)
        with anyio.fail_after(LIMIT):
            await has_ended.wait()
    assert not failures(caplog)


async def test_an_upgrade_to_http2_makes_no_tunnel_either(caplog):
    request = (
        b"%b / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
        b"http2-settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    async with serving(echo) as served:
        async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
            await stream.send(request % b"GET")
            assert (await stream.receive()).startswith(b"HTTP/1.1 101 ")
        async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
            await stream.send(request % b"CONNECT")
            await read_to_the_end(stream)
    assert not failures(caplog)
