"""Files by ``sendfile(2)``, past the transport: whatever the client does, and whatever happens to the file."""

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from http_here import request, serving
from websocket_server import ASYNCIO_BACKENDS, until
from worker_here import failures

from microws import App, FileResponse

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS),
]

# More than the buffers of both sockets on loopback, and no multiple of anything.
SIZE = (12 << 20) + 4711
FILE, OTHER = request(first="GET /file HTTP/1.1"), request(first="GET /other HTTP/1.1")


@pytest.fixture(scope="module")
def content():
    return os.urandom(SIZE)


@pytest.fixture
def file(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    return path


@pytest.fixture
def app(file):
    app = App()

    @app.get("/file")
    async def send_file():
        return FileResponse(file)

    @app.get("/other")
    async def other():
        return "other"

    return app


@pytest.fixture
def sendfile(monkeypatch):
    """Counts the bytes that leave past the transport."""
    sent = []
    real = os.sendfile

    def counting(*args):
        taken = real(*args)
        sent.append(taken)
        return taken

    monkeypatch.setattr(os, "sendfile", counting)
    return sent


async def test_a_connection_goes_on_after_a_file(app, content, sendfile):
    async with serving(app) as server, await server.connect() as client:
        await client.send(FILE, FILE, OTHER)
        for _ in range(2):
            answer = await client.read_answer()
            assert (answer.status, answer.value("content-length")) == (200, str(SIZE))
            assert answer.body == content
        assert (await client.read_answer()).body == b"other"
    assert sum(sendfile) == 2 * SIZE


@pytest.mark.parametrize(("first", "last"), [(0, 99_999), (5, SIZE - 3), (SIZE - 70_000, SIZE - 1)])
async def test_a_range_is_sent_past_the_transport(app, content, sendfile, first, last):
    async with serving(app) as server, await server.connect() as client:
        answer = await client.ask(request(f"Range: bytes={first}-{last}", first="GET /file HTTP/1.1"))
    assert (answer.status, answer.value("content-range")) == (206, f"bytes {first}-{last}/{SIZE}")
    assert answer.body == content[first : last + 1]
    assert sum(sendfile) == len(answer.body)


async def test_a_thread_sends_a_file_that_is_not_in_memory(app, content, sendfile, monkeypatch):
    monkeypatch.setattr("microws.server.http1.is_cached", lambda *_: False)
    async with serving(app) as server, await server.connect() as client:
        assert (await client.ask(FILE)).body == content
    assert sum(sendfile) == SIZE


async def test_the_app_reads_the_file_if_the_system_cannot_send_it(app, content, monkeypatch):
    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", refuse)
    async with serving(app) as server, await server.connect() as client:
        assert (await client.ask(FILE)).body == content


async def test_middleware_around_send_sees_every_byte(app, content, sendfile):
    seen = []

    def middleware(inner):
        async def wrapped(scope, receive, send):
            async def seeing(event):
                seen.append(len(event.get("body", b"")))
                await send(event)

            await inner(scope, receive, seeing)

        return wrapped

    app.add_middleware(middleware)
    async with serving(app) as server, await server.connect() as client:
        assert (await client.ask(FILE)).body == content
    assert (sum(seen), sum(sendfile)) == (SIZE, 0)


async def test_over_tls_the_app_reads_the_file(app, content, sendfile):
    async with serving(app, tls=True) as server, await server.connect_tls() as client:
        assert (await client.ask(FILE)).body == content
    assert sum(sendfile) == 0


async def test_a_file_that_becomes_shorter_drops_the_connection(app, file, caplog):
    async with serving(app) as server, await server.connect(buffers=4096) as client:
        await client.send(FILE)
        await client.read_head()
        os.truncate(file, 100)
        assert len(await client.read_rest()) < SIZE
        await until(lambda: failures(caplog))
    [failure] = failures(caplog)
    assert "became shorter while it was sent" in str(failure.exc_info[1])


@pytest.mark.parametrize("leave", ["half_close", "reset"])
async def test_a_disconnect_is_not_an_error_and_closes_the_file(app, caplog, leave):
    async with serving(app) as server, await server.connect(buffers=4096) as client:
        await client.ask(OTHER)
        before = descriptors()
        await client.send(FILE)
        await client.read_head()
        assert descriptors() > before
        getattr(client, leave)()
        if leave == "half_close":
            await client.hang_up()
        await until(lambda: not server.state.exchanges and descriptors() < before)
    assert failures(caplog) == []


def descriptors():
    """How many files and sockets this process has open."""
    return len([*Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd").iterdir()])


async def test_clients_that_do_not_read_hold_no_thread(app, content):
    async with serving(app) as server, AsyncExitStack() as stack:
        stalled = []
        for number in range(60):
            client = await stack.enter_async_context(await server.connect(buffers=4096 if number else None))
            await client.send(FILE)
            stalled.append(client)
        for client in stalled[1:]:
            await client.read_head()
        client = await stack.enter_async_context(await server.connect())
        assert (await client.ask(FILE)).body == content
        assert (await stalled[0].read_answer()).body == content


async def test_a_client_that_reads_nothing_is_dropped_after_write_timeout(app, caplog):
    async with serving(app, write_timeout=0.3) as server, await server.connect(buffers=4096) as client:
        await client.send(FILE)
        await until(lambda: server.state.exchanges)
        await until(lambda: not server.state.exchanges)
        assert len(await client.read_rest()) < SIZE
    assert failures(caplog) == []


async def test_a_file_is_sent_to_its_end_while_the_server_stops(app, content):
    async with serving(app) as server, await server.connect() as client:
        await client.send(FILE)
        await until(lambda: server.state.exchanges)
        await asyncio.sleep(0.01)
        server.state.is_stopping = server.state.is_draining = True
        for exchange in server.state.exchanges:
            exchange.drain()
        assert (await client.read_answer()).body == content
        assert await client.at_end()
