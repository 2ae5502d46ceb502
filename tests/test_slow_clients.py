"""Clients that read slowly, not at all, or disconnect at once: what the server holds for them, and how long."""

import socket
from contextlib import asynccontextmanager

import pytest
from byte_client import upgrade
from http_here import Recording, request, serving
from websocket_server import ASYNCIO_BACKENDS, until
from worker_here import failures, respond

pytestmark = pytest.mark.anyio

# More than the sockets of a connection hold.
LARGE = bytes(range(256)) * (24 << 10)
GET = request()


@pytest.fixture(params=ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
def anyio_backend(request):
    return request.param


@asynccontextmanager
async def connected(app, *, tls, **options):
    async with serving(app, tls=tls, **options) as server:
        connect = server.connect_tls if tls else server.connect
        async with await connect(buffers=64 << 10) as client:
            yield client, server


class Large:
    """An app whose responses are large; ``requests`` counts them."""

    def __init__(self):
        self.requests = 0

    async def __call__(self, scope, receive, send):
        self.requests += 1
        await respond(send, LARGE)


@pytest.mark.parametrize("tls", [False, True])
async def test_the_next_request_waits_until_the_response_was_read(tls):
    app = Large()
    async with connected(app, tls=tls) as (client, _):
        await client.send(GET * 3)
        for count in range(1, 4):
            status, headers = await client.read_head()
            assert app.requests == count
            assert (status, int(headers["content-length"])) == (200, len(LARGE))
            assert await client._take(len(LARGE)) == LARGE


@pytest.mark.parametrize("tls", [False, True])
async def test_a_client_that_reads_nothing_is_reset(tls, caplog):
    app = Large()
    async with connected(app, tls=tls, write_timeout=0.2) as (client, server):
        await client.send(GET * 100)
        if tls:
            # The streams of asyncio read by themselves; so much that the kernel holds the rest.
            await until(lambda: app.requests and not server.state.connections)
        else:
            # Nothing is read to find out (Linux): 1 is ESTABLISHED.
            await until(lambda: client.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != b"\1")
    assert app.requests == 1
    assert failures(caplog) == []


async def test_a_websocket_that_is_reset_at_once_reaches_the_app(caplog):
    app = Recording()
    async with serving(app) as server:
        for _ in range(50):
            client = await server.connect()
            await client.send(upgrade("/"))
            client.reset()
        await until(lambda: len(app.scopes) > 40)
    assert failures(caplog) == []
