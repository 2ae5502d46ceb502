"""This package's HTTP server in this event loop, and clients that send bytes as they are and read what is answered."""

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from websocket_server import LIMIT, Client, TlsClient, until
from worker_here import respond

from microws.interfaces import Limits
from microws.server.http1 import HTTP1, ServerState
from microws.server.listening import tls_context
from microws.server.proxy import ProxyHeaders, TrustedProxies
from microws.server.settings import Settings

TLS = Path(__file__).parent / "tls"

__all__ = [
    "LIMIT",
    "MARK",
    "Answer",
    "HTTPClient",
    "Recording",
    "Request",
    "Serving",
    "idle",
    "post",
    "read_body",
    "request",
    "serving",
]

# Behind another request, a server that serves this one was deceived about where that ends.
MARK = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


def request(*lines, first="GET / HTTP/1.1", host="x", body=b""):
    """A request. Lines are ``str``, or ``bytes`` for what is not ASCII. ``host=None`` leaves the field out."""
    head = [first, *([] if host is None else [f"Host: {host}"]), *lines]
    return b"".join((line.encode() if isinstance(line, str) else line) + b"\r\n" for line in head) + b"\r\n" + body


def post(*lines, body=b"", first="POST / HTTP/1.1"):
    return request(*lines, first=first, body=body)


async def idle():
    """Let everything in this event loop happen that does not need new data."""
    for _ in range(20):
        await asyncio.sleep(0.001)


class Request(NamedTuple):
    """A request that an app was called for, with its whole body."""

    method: str
    target: bytes
    headers: list
    body: bytes


async def read_body(receive):
    """The whole body; ``None`` when the client disconnects before its end."""
    body = b""
    while (event := await receive())["type"] == "http.request":
        body += event.get("body", b"")
        if not event.get("more_body"):
            return body
    return None


class Recording:
    """An app that answers each request with its method, target and body, and a WebSocket with what it says."""

    def __init__(self):
        self.requests = []
        self.scopes = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "websocket":
            self.scopes.append(scope)
            await receive()
            await send({"type": "websocket.accept"})
            while (event := await receive())["type"] == "websocket.receive":
                await send(event | {"type": "websocket.send"})
        else:
            self.scopes.append(scope)
            body = await read_body(receive)
            if body is None:
                return
            target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
            self.requests.append(Request(scope["method"], target, list(scope["headers"]), body))
            await respond(send, b"%s %s %s" % (scope["method"].encode(), target, body))


class Answer(NamedTuple):
    """A response; header names in lower case."""

    version: str
    status: int
    headers: list
    body: bytes

    def values(self, name):
        """All values of a header."""
        return [value for key, value in self.headers if key == name]

    def value(self, name):
        """The value of a header; ``None`` where it is missing."""
        values = self.values(name)
        assert len(values) < 2, f"{name} is there {len(values)} times"
        return values[0] if values else None


class HTTPClient(Client):
    """One connection. Whatever it waits for in vain for ``LIMIT`` seconds is a failed test."""

    async def read_answer(self, *, method="GET"):
        """
        The next response, a 1xx too, as its own head frames it.

        Args:
            method: Of the request; the answer to ``HEAD`` has no body.

        Raises:
            AssertionError: The connection ended within it.
        """
        head = (await self._read_until(b"\r\n\r\n"))[:-4].decode("latin-1")
        first, *lines = head.split("\r\n")
        version, status, _ = (first + " ").split(" ", 2)
        pairs = (line.partition(":") for line in lines)
        answer = Answer(version, int(status), [(name.lower(), value.strip()) for name, _, value in pairs], b"")
        assert not any(set(line) & set("\r\n\0") for line in lines), head
        if method == "HEAD" or answer.status < 200 or answer.status in (204, 304):
            return answer
        if answer.values("transfer-encoding"):
            assert answer.values("transfer-encoding") == ["chunked"]
            assert not answer.values("content-length")
            return answer._replace(body=await self._read_chunks())
        if (length := answer.value("content-length")) is not None:
            return answer._replace(body=await self._take(int(length)))
        return answer._replace(body=await self.read_to_end())

    async def read_answers(self, *, method="GET"):
        """Every response up to the end of the connection, which must not be a reset."""
        answers = []
        while not await self.at_end():
            answers.append(await self.read_answer(method=method))
        return answers

    async def ask(self, *data, method="GET"):
        """Send, and read one response."""
        await self.send(*data)
        return await self.read_answer(method=method)

    async def ask_all(self, *data):
        """Send, half-close, and read every response up to the end."""
        await self.send(*data)
        self.half_close()
        return await self.read_answers()

    async def at_end(self):
        """Whether the server has ended the connection in order, with no more bytes before that."""
        if not self._data:
            self._data = await self._receive()
        return not self._data

    async def read_to_end(self):
        """The bytes up to the end of the connection, which must not be a reset."""
        data, self._data = self._data, b""
        while piece := await self._receive():
            data += piece
        return data

    async def read_chunk(self):
        """The next chunk of a response whose head was read; empty is its end."""
        size = int((await self._read_until(b"\r\n")).strip(), 16)
        data = await self._take(size)
        assert await self._take(2) == b"\r\n"
        return data

    async def _read_chunks(self):
        body = b""
        while data := await self.read_chunk():
            body += data
        return body

    async def _read_until(self, end):
        while end not in self._data:
            self._data += await self._read()
        taken, _, self._data = self._data.partition(end)
        return taken + end


class Serving:
    """
    A server in this event loop, without a worker around it.

    Attributes:
        state: What its connections share.
        port: Its TCP port; ``None`` on a Unix socket.
    """

    def __init__(self, state, address, *, tls, limit):
        self.state = state
        self.port = None if isinstance(address, str) else address[1]
        self._address = address
        self._tls = tls
        self._limit = limit

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def connect(self, *, buffers=None):
        """
        A connection.

        Args:
            buffers: Bytes that the kernel keeps of what is not sent, and of what is not read.
        """
        sock = socket.socket(socket.AF_UNIX if self.port is None else socket.AF_INET)
        sock.setblocking(False)
        if buffers is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        async with asyncio.timeout(self._limit):
            await asyncio.get_running_loop().sock_connect(sock, self._address)
        return HTTPClient(sock, self._limit)

    async def connect_tls(self, *, buffers=None):
        """The same over TLS."""
        plain = await self.connect(buffers=buffers)
        trusting = ssl.create_default_context(cafile=TLS / "localhost.pem")
        trusting.set_alpn_protocols(["h2", "http/1.1"])
        async with asyncio.timeout(self._limit):
            streams = await asyncio.open_connection(
                sock=plain.sock, ssl=trusting, server_hostname="localhost", limit=1 << 14, ssl_shutdown_timeout=0.1
            )
        return SecureClient(plain.sock, self._limit, *streams)


class SecureClient(TlsClient, HTTPClient):
    """One connection over TLS. It reads ahead 32 KiB."""


@asynccontextmanager
async def serving(app, *, path=None, limit=LIMIT, tls=False, **options):
    """
    Serve ``app``, which gets no lifespan events. At the end, every client is dropped and every app is cancelled: none
    may be left then, and nothing may have been raised into the event loop.

    Args:
        path: Of a Unix socket, for a virtual clock: what one end writes is there for the other at once.
        limit: Seconds for each step of a client.
        options: Of ``Settings``.
    """
    loop = asyncio.get_running_loop()
    failures = []
    loop.set_exception_handler(lambda _, context: failures.append(context))
    settings = Settings(ping_interval=0, **options)
    served = ProxyHeaders(app, TrustedProxies(settings.forwarded_allow_ips), root_path=settings.root_path)
    context = tls_context(str(TLS / "localhost.pem"), str(TLS / "localhost.key")) if tls else None
    extension = {"is_draining": lambda: state.is_draining}
    state = ServerState(served, settings, limits=Limits(), state={}, extension=extension, tls=context)
    websockets = state.websockets
    if path is None:
        server = await loop.create_server(lambda: HTTP1(state), "127.0.0.1", 0, ssl=context)
    else:
        server = await loop.create_unix_server(lambda: HTTP1(state), str(path), ssl=context)
    try:
        yield Serving(state, server.sockets[0].getsockname(), tls=tls, limit=limit)
    finally:
        server.close()
        for connection in list(state.connections):
            connection.abort()
        websockets.disconnect()
        await asyncio.sleep(0.01)
        for task in list(state.exchanges.values()):
            task.cancel()
        websockets.cancel()
        async with asyncio.timeout(limit):
            await websockets.wait_closed()
        await until(lambda: not (state.exchanges or state.connections))
        loop.set_exception_handler(None)
    assert failures == [], failures
