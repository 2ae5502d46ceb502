"""Clients that do not read, or leave at once: what they can make the server hold, and for how long."""

import socket
import ssl
import time
from pathlib import Path

import anyio
import pytest
from byte_client import LIMIT, ByteClient, upgrade
from engine_here import ASYNCIO_BACKENDS
from raw_websocket import reset
from worker_here import echo, failures, lifespan, respond, serving

from microws.server.listening import tls_context

pytestmark = pytest.mark.anyio

TLS = Path(__file__).parent / "tls"
# More than the sockets of a connection hold.
LARGE = bytes(range(256)) * (24 << 10)
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(params=ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
def anyio_backend(request):
    return request.param


class Large:
    """An app whose responses are large; ``requests`` counts them."""

    def __init__(self):
        self.requests = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            self.requests += 1
            await respond(send, LARGE)


def tls_options(is_secure):
    return {"tls": tls_context(str(TLS / "localhost.pem"), str(TLS / "localhost.key"))} if is_secure else {}


def connected(served, *, is_secure):
    """A client that reads nothing by itself."""
    client = ByteClient(served.port, receive_buffer=64 << 10)
    if is_secure:
        trusting = ssl.create_default_context(cafile=TLS / "localhost.pem")
        client.sock = trusting.wrap_socket(client.sock, server_hostname="localhost")
    return client


@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "tls"])
async def test_a_response_is_made_when_the_client_has_taken_the_one_before(is_secure):
    app = Large()

    def take(served):
        with connected(served, is_secure=is_secure) as client:
            client.send(GET * 3)
            for count in range(1, 4):
                status, headers = client.read_head()
                assert app.requests == count
                assert (status, int(headers["content-length"])) == (200, len(LARGE))
                assert client.read_bytes(len(LARGE)) == LARGE

    async with serving(app, **tls_options(is_secure)) as served:
        await anyio.to_thread.run_sync(take, served)


@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "tls"])
async def test_a_client_that_reads_nothing_of_a_large_response_is_reset(is_secure, caplog):
    app = Large()

    def wait_reset(served):
        with connected(served, is_secure=is_secure) as client:
            client.send(GET * 100)
            end = time.monotonic() + LIMIT
            # Nothing is read to find out (Linux): 1 is ESTABLISHED.
            while client.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\1":
                assert time.monotonic() < end
                time.sleep(0.01)

    async with serving(app, write_timeout=0.2, **tls_options(is_secure)) as served:
        await anyio.to_thread.run_sync(wait_reset, served)
    assert app.requests == 1
    assert failures(caplog) == []


async def test_a_websocket_whose_client_resets_it_at_once_reaches_the_app_with_its_scope(caplog):
    async with serving(echo) as served:
        for _ in range(50):
            stream = await anyio.connect_tcp("127.0.0.1", served.port)
            await stream.send(upgrade("/"))
            await reset(stream)
    assert failures(caplog) == []
