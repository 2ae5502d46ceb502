"""WebSockets served in this event loop, and their clients."""

import asyncio
import gc
import operator
import socket
import ssl
import struct
from contextlib import asynccontextmanager
from pathlib import Path

import h11
from byte_client import CLOSE, Frame, parse_head, upgrade

from microws.interfaces import Limits
from microws.server.listening import tls_context
from microws.server.request_parser import join_fields
from microws.server.settings import Settings
from microws.server.websockets import WebSockets
from microws.upgrade import Upgrade

__all__ = ["ASYNCIO_BACKENDS", "LIMIT", "Client", "Holding", "echo", "live", "opened", "serving", "until", "within"]

# Of ``anyio_backend``: the server runs on these event loops.
ASYNCIO_BACKENDS = {"asyncio": ("asyncio", {"use_uvloop": False}), "uvloop": ("asyncio", {"use_uvloop": True})}

# Seconds. What a test waits for should take a fraction of one.
LIMIT = 10
# Seconds that a client waits for the server's TLS shutdown. Browsers do not wait.
SHUTDOWN_TIMEOUT = 0.1

TLS = Path(__file__).parent / "tls"

DEFAULTS = {"ping_interval": 0, "ping_timeout": 0}


async def echo(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] != "websocket.disconnect":
        await send(event | {"type": "websocket.send"})


class Holding:
    """
    An app that leaves its connection to the test: ``scope``, ``receive``, ``send``, and the server's ``connection``.
    It returns when ``release`` is set, or raises ``error``.
    """

    def __init__(self):
        self.error = None
        self.called = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, scope, receive, send):
        self.scope, self.receive, self.send = scope, receive, send
        self.connection = scope["microws.connection"]
        self.called.set()
        await self.release.wait()
        if self.error is not None:
            raise self.error


@asynccontextmanager
async def opened(*, accept=True, connection=None, fields=(), behind=b"", **options):
    """
    One connection: the ``Holding`` app, and the client.

    Args:
        accept: Answer the handshake.
        connection: Of ``Serving.connect``.
        fields, behind: Of ``Client.open``.
        options: Of ``serving``.
    """
    app = Holding()
    async with serving(app, **options) as app.serving, await app.serving.connect(**connection or {}) as client:
        await client.send(upgrade("/", *fields), behind)
        async with asyncio.timeout(LIMIT):
            await app.called.wait()
            assert (await app.receive())["type"] == "websocket.connect"
            if accept:
                await app.send({"type": "websocket.accept"})
        if accept:
            assert (await client.read_head())[0] == 101
        yield app, client


async def within(awaitable, seconds=LIMIT):
    return await asyncio.wait_for(awaitable, seconds)


async def until(condition, *, step=0.001):
    """Wait until ``condition()`` is true, which is checked every ``step`` seconds."""
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(step)


def live(kind):
    """Number of existing objects of this class."""
    return operator.countOf(map(type, gc.get_objects()), kind)


class Handshaking(asyncio.Protocol):
    """Reads a request as a server does, and hands its transport to ``take``."""

    def __init__(self, take):
        self._take = take
        self._parser = h11.Connection(h11.SERVER)

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        self._parser.receive_data(data)
        if (request := self._parser.next_event()) is not h11.NEED_DATA:
            headers = list(request.headers)
            upgrade = Upgrade(request.target, headers, join_fields(headers))
            self._take(self._transport, upgrade, self._parser.trailing_data[0])


class Client:
    """
    A client that reads only in its ``read_…`` methods. Leaving its block closes it.

    Attributes:
        sock: Its socket.
        server: The server's transport.
    """

    def __init__(self, sock, limit):
        self.sock = sock
        self.server = None
        self._limit = limit
        self._data = b""

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.sock.close()

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)

    async def hang_up(self):
        """Disconnect like a browser whose tab is closed."""
        self.sock.close()

    def reset(self):
        """Close with a RST in place of a FIN, on TCP."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    async def send(self, *data):
        async with asyncio.timeout(self._limit):
            await asyncio.get_running_loop().sock_sendall(self.sock, b"".join(data))

    async def open(self, path="/", *fields, behind=b""):
        """Open the WebSocket, which must be accepted, with ``behind`` in the same packet. Returns the headers."""
        await self.send(upgrade(path, *fields), behind)
        status, headers = await self.read_head()
        assert status == 101
        return headers

    async def refused(self, path="/", *fields, **options):
        """Status, headers and body of the response to a refused handshake."""
        await self.send(upgrade(path, *fields, **options))
        status, headers = await self.read_head()
        return status, headers, await self.read_rest()

    async def read_head(self):
        while b"\r\n\r\n" not in self._data:
            self._data += await self._read()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        return parse_head(head)

    async def read_frame(self):
        first, second = await self._take(2)
        assert second < 128, "a server must not mask frames"
        length = second
        if length > 125:
            length = int.from_bytes(await self._take(2 if length == 126 else 8))
        return Frame(first & 15, await self._take(length), bool(first & 0x40))

    async def read_payloads(self, count):
        return [(await self.read_frame()).payload for _ in range(count)]

    async def read_close(self):
        """Code and reason of the Close frame. Frames before it are discarded."""
        while (received := await self.read_frame()).opcode != CLOSE:
            pass
        code = int.from_bytes(received.payload[:2]) if received.payload else None
        return code, received.payload[2:].decode()

    async def read_rest(self):
        """All bytes until the server has closed or reset the connection."""
        data, self._data = self._data, b""
        while True:
            try:
                read = await self._receive()
            except (ConnectionError, ssl.SSLError):
                return data
            if not read:
                return data
            data += read

    async def _take(self, size):
        while len(self._data) < size:
            self._data += await self._read()
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    async def _read(self):
        data = await self._receive()
        assert data, f"the server ended the connection after {self._data!r}"
        return data

    async def _receive(self):
        async with asyncio.timeout(self._limit):
            return await asyncio.get_running_loop().sock_recv(self.sock, 1 << 18)


class TlsClient(Client):
    """A client over TLS. It may read ahead."""

    def __init__(self, sock, limit, reader, writer):
        super().__init__(sock, limit)
        self._reader = reader
        self._writer = writer

    async def __aexit__(self, *_):
        self._writer.transport.abort()
        await asyncio.sleep(0)

    async def hang_up(self):
        self._writer.close()

    async def send(self, *data):
        async with asyncio.timeout(self._limit):
            self._writer.write(b"".join(data))
            await self._writer.drain()

    async def _receive(self):
        async with asyncio.timeout(self._limit):
            return await self._reader.read(1 << 18)


class Serving:
    """WebSockets that serve an app, and connections to them."""

    def __init__(self, websockets, *, tls, limit):
        self.websockets = websockets
        self.state = {}
        self._tls = tls
        self._limit = limit

    async def connect(self, *, tcp=False, buffers=None):
        """
        A connection without its handshake.

        Args:
            tcp: Over 127.0.0.1. Otherwise over a pair of sockets, where data arrives at once.
            buffers: Size of the kernel's buffers in bytes.
        """
        ours, theirs = _tcp_pair() if tcp else socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
            if buffers is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        if self._tls:
            return await self._connect_tls(ours, theirs)
        client = Client(theirs, self._limit)
        client.server, _ = await asyncio.get_running_loop().connect_accepted_socket(self._protocol, ours)
        return client

    async def _connect_tls(self, ours, theirs):
        context = tls_context(str(TLS / "localhost.pem"), str(TLS / "localhost.key"))
        trusting = ssl.create_default_context(cafile=TLS / "localhost.pem")
        accepting = asyncio.get_running_loop().connect_accepted_socket(self._protocol, ours, ssl=context)
        async with asyncio.timeout(self._limit), asyncio.TaskGroup() as tasks:
            accepted = tasks.create_task(accepting)
            opened = tasks.create_task(
                asyncio.open_connection(
                    sock=theirs, ssl=trusting, server_hostname="localhost", ssl_shutdown_timeout=SHUTDOWN_TIMEOUT
                )
            )
        client = TlsClient(theirs, self._limit, *opened.result())
        client.server, _ = accepted.result()
        return client

    def _protocol(self):
        return Handshaking(
            lambda transport, upgrade, early: self.websockets.take(transport, upgrade, early, self.state)
        )


@asynccontextmanager
async def serving(app, *, tls=False, limit=LIMIT, **options):
    """
    ``WebSockets`` that serve ``app``. The end of the block drops every client and cancels every app. Then no connection
    may be left, and the event loop's exception handler must not have been called.
    """
    loop = asyncio.get_running_loop()
    failures = []
    loop.set_exception_handler(lambda _, context: failures.append(context))
    limits = Limits(**{name: options.pop(name) for name in Limits._fields if name in options})
    extension = options.pop("extension", {})
    websockets = WebSockets(app, Settings(**(DEFAULTS | options)), limits=limits, extension=extension)
    try:
        yield Serving(websockets, tls=tls, limit=limit)
    finally:
        websockets.disconnect()
        websockets.cancel()
        async with asyncio.timeout(limit):
            await websockets.wait_closed()
        await asyncio.sleep(0)
        loop.set_exception_handler(None)
    assert websockets.open == 0
    assert failures == [], failures


def _tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return ours, theirs
