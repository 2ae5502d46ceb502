"""Files on the wire, past the transport: at each pace of the client, and whatever happens to the file."""

import logging
import os
import ssl
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import anyio
import pytest
from byte_client import ByteClient
from engine_here import ASYNCIO_BACKENDS, until
from worker_here import failures, serving

from microws import App, FileResponse

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS),
]

TLS = Path(__file__).parent / "tls"

# More than the buffers of both sockets on loopback, and no multiple of anything.
SIZE = (12 << 20) + 4711


@pytest.fixture(scope="module")
def content():
    return os.urandom(SIZE)


@pytest.fixture
def file(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    return path


def app_for(path):
    app = App()

    @app.get("/file")
    async def file(request):
        return FileResponse(path)

    @app.get("/other")
    async def other(request):
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


def request(path="/file", *fields):
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: x", *fields, "", ""]).encode()


class Client(ByteClient):
    """One whose waits leave the event loop to the server."""

    async def ask(self, *requests):
        await anyio.to_thread.run_sync(self.sock.sendall, b"".join(requests))

    async def response(self):
        """Its status, its fields and its body."""
        return await anyio.to_thread.run_sync(self._response)

    def _response(self):
        while b"\r\n\r\n" not in self._data:
            self._receive()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines)
        while len(self._data) < int(fields["content-length"]):
            self._receive()
        body = self._data[: int(fields["content-length"])]
        self._data = self._data[len(body) :]
        return int(status.split()[1]), fields, body

    def _receive(self):
        data = self.sock.recv(1 << 20)
        if not data:
            raise ConnectionResetError
        self._data += data


async def test_a_file_is_sent_past_the_transport_and_the_connection_goes_on(file, content, sendfile):
    async with serving(app_for(file)) as served:
        with Client(served.port) as client:
            await client.ask(request(), request(), request("/other"))
            for _ in range(2):
                status, fields, body = await client.response()
                assert (status, fields["content-length"]) == (200, str(SIZE))
                assert body == content
            assert (await client.response())[2] == b"other"
    assert sum(sendfile) == 2 * SIZE


@pytest.mark.parametrize(("first", "last"), [(0, 99_999), (5, SIZE - 3), (SIZE - 70_000, SIZE - 1)])
async def test_a_range_is_sent_past_the_transport(file, content, sendfile, first, last):
    async with serving(app_for(file)) as served:
        with Client(served.port) as client:
            await client.ask(request("/file", f"range: bytes={first}-{last}"))
            status, fields, body = await client.response()
    assert (status, fields["content-range"]) == (206, f"bytes {first}-{last}/{SIZE}")
    assert body == content[first : last + 1]
    assert sum(sendfile) == len(body)


async def test_a_file_that_is_not_in_memory_is_sent_by_a_thread(file, content, sendfile, monkeypatch):
    monkeypatch.setattr("microws.server.http1.is_cached", lambda *_: False)
    async with serving(app_for(file)) as served:
        with Client(served.port) as client:
            await client.ask(request())
            assert (await client.response())[2] == content
    assert sum(sendfile) == SIZE


async def test_a_system_that_cannot_send_this_file_so_reads_it(file, content, monkeypatch):
    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", refuse)
    async with serving(app_for(file)) as served:
        with Client(served.port) as client:
            await client.ask(request())
            assert (await client.response())[2] == content


async def test_middleware_around_send_sees_every_byte(file, content, sendfile):
    seen = []
    app = app_for(file)

    def middleware(inner):
        async def wrapped(scope, receive, send):
            async def seeing(event):
                seen.append(len(event.get("body", b"")))
                await send(event)

            await inner(scope, receive, seeing)

        return wrapped

    app.add_middleware(middleware)
    async with serving(app) as served:
        with Client(served.port) as client:
            await client.ask(request())
            assert (await client.response())[2] == content
    assert (sum(seen), sum(sendfile)) == (SIZE, 0)


async def test_over_tls_it_is_read(file, content, sendfile):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(TLS / "localhost.pem", TLS / "localhost.key")
    trusting = ssl.create_default_context(cafile=TLS / "localhost.pem")
    async with serving(app_for(file), tls=context) as served:
        with Client(served.port) as client:
            client.sock = await anyio.to_thread.run_sync(
                partial(trusting.wrap_socket, client.sock, server_hostname="localhost")
            )
            await client.ask(request())
            assert (await client.response())[2] == content
    assert sum(sendfile) == 0


async def test_a_file_that_becomes_shorter_while_it_is_sent_drops_the_connection(file, caplog):
    async with serving(app_for(file)) as served:
        with Client(served.port, receive_buffer=4096) as client:
            await client.ask(request())
            await anyio.to_thread.run_sync(client._receive)  # the response has begun
            os.truncate(file, 100)
            with pytest.raises(ConnectionResetError):
                await client.response()
    [failure] = failures(caplog)
    assert "became shorter while it was sent" in str(failure.exc_info[1])


def ending(app):
    """The app, and a list with an entry for each scope that it has served to the end."""
    ended = []

    async def serve(scope, receive, send):
        try:
            await app(scope, receive, send)
        finally:
            ended.append(scope["type"])

    return serve, ended


@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_a_client_that_leaves_is_no_error_and_leaves_nothing_open(file, caplog, leave):
    app, ended = ending(app_for(file))
    async with serving(app) as served:
        with Client(served.port, receive_buffer=4096) as client:
            await client.ask(request("/other"))
            await client.response()
            before = descriptors()
            await client.ask(request())
            await anyio.to_thread.run_sync(client._receive)
            assert descriptors() > before
            getattr(client.sock if leave == "close" else client, leave)()
            await until(lambda: ended == ["http", "http"])
            assert descriptors() < before
    assert failures(caplog) == []


def descriptors():
    """How many files and sockets this process has open."""
    return len([*Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd").iterdir()])


async def test_clients_that_do_not_read_hold_no_thread(file, content):
    async with serving(app_for(file)) as served:
        with ExitStack() as stack:
            stalled = [
                stack.enter_context(Client(served.port, receive_buffer=4096 if number else None))
                for number in range(60)
            ]
            for client in stalled:
                await client.ask(request())
                await anyio.to_thread.run_sync(client._receive)
            client = stack.enter_context(Client(served.port))
            await client.ask(request())
            assert (await client.response())[2] == content
            assert (await stalled[0].response())[2] == content


async def test_a_client_that_takes_nothing_more_is_dropped_after_the_write_timeout(file, caplog):
    app, ended = ending(app_for(file))
    async with serving(app, write_timeout=0.5) as served:
        with Client(served.port, receive_buffer=4096) as client:
            await client.ask(request())
            await until(lambda: ended)
            with pytest.raises(ConnectionResetError):
                await client.response()
    assert failures(caplog) == []


async def test_a_file_in_progress_is_sent_to_its_end_while_the_server_stops(file, content, caplog):
    caplog.set_level(logging.INFO)
    async with serving(app_for(file)) as served:
        with Client(served.port) as client:
            await client.ask(request())
            await anyio.to_thread.run_sync(client._receive)
            served.shutdown.request()
            await until(lambda: "stopping" in caplog.text)
            assert (await client.response())[2] == content
        await served.ended.wait()
