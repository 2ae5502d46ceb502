"""The server on asyncio and uvloop: its sockets, its connections, and how they end."""

import asyncio
import importlib
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final
from weakref import WeakSet

import anyio
from anyio.abc import TaskStatus

from microws.server.engines import Engines
from microws.server.http1 import HTTP1
from microws.server.listening import BACKLOG
from microws.server.shared import Connection, Shared

__all__ = ["HANDSHAKE_TIMEOUT", "AsyncioServer"]

# Seconds for the handshake of TLS, and for a request's head.
HANDSHAKE_TIMEOUT: Final = 10.0

# Seconds that a client which has only connected is waited for at the end: some round trips.
_FIRST_REQUEST_TIMEOUT: Final = 1.0

# Connections that a worker takes in one turn of its event loop: asyncio takes as many as its backlog is, and one worker
# would leave none of a burst for the others. uvloop takes all that there are.
_ACCEPTS_PER_TURN: Final = 16

# Seconds until asyncio tries again when there are no file descriptors left. Its own 1 s is as long for a client.
_RETRY_DELAY: Final = 0.25

# Seconds that a client has to answer the end of TLS; browsers do not.
_TLS_SHUTDOWN_TIMEOUT: Final = 1.0

# Seconds between two looks at the handshakes of TLS.
_LOOK_INTERVAL: Final = 0.02


class AsyncioServer:
    """
    Serves HTTP/1.1 and WebSockets.

    Args:
        shared: What the connections share.
        engines: Get the WebSockets.
        tls: Speak TLS with it.
    """

    def __init__(self, shared: Shared, engines: Engines, *, tls: ssl.SSLContext | None = None) -> None:
        self._shared = shared
        self._engines = engines
        self._tls = tls
        self._servers: list[asyncio.Server] = []
        # Those in the handshake of TLS: they have no transport yet, or are dropped without a word.
        self._unmet: WeakSet[HTTP1] = WeakSet()
        self._has_ended = asyncio.Event()

    @property
    def open(self) -> int:
        """How many connections there are; one whose client has left is one as long as its app is at work."""
        return self._open_http + self._engines.open

    @property
    def _open_http(self) -> int:
        return max(len(self._shared.connections), len(self._shared.exchanges))

    async def serve(
        self, sockets: Sequence[socket.socket], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on ``sockets`` until ``stop_listening``; ready at ``task_status.started()``."""
        for sock in sockets:
            self._servers.append(await _start_accepting(sock, self._make_protocol, tls=self._tls))
        task_status.started()
        try:
            await self._has_ended.wait()
        finally:
            # Cancelled, too: uvloop may wait for ever for a server that nobody has closed, when its loop is closed.
            for server in self._servers:
                server.close()

    def _make_protocol(self) -> asyncio.Protocol:
        protocol = HTTP1(self._shared)
        if self._tls is not None:
            self._unmet.add(protocol)
        return protocol

    def statistics(self) -> tuple[int, int]:
        """How many requests and how many WebSockets are open."""
        return len(self._shared.exchanges), self._engines.open

    def expect_stop(self) -> None:
        """Go on, but keep no connection beyond its next response: ``connection: close`` says so to the client."""
        self._shared.is_stopping = True

    async def drain(self) -> None:
        """
        End what would not end by itself: every WebSocket with 1012, every event stream where it stands.

        The app learns of it at once, from ``receive``. What comes from now on is treated the same way.
        """
        self._shared.is_draining = True
        for exchange in list(self._shared.exchanges.values()):
            exchange.drain()
        await self._engines.drain()

    async def stop_listening(self) -> None:
        """Refuse new connections, and end each open one after the request that it is at."""
        self._has_ended.set()
        for server in self._servers:
            server.close()
        self._shared.is_stopping = self._shared.is_draining = True
        for connection in list(self._shared.idle):
            connection.close_idle()

    async def wait_closed(self) -> None:
        """Wait until no connection and no app is left. A client that has just connected has a moment."""
        with anyio.move_on_after(_FIRST_REQUEST_TIMEOUT):
            while self._silent or any(not protocol.is_met for protocol in self._unmet):  # noqa: ASYNC110 - nobody tells of one that fails
                await anyio.sleep(_LOOK_INTERVAL)
        for connection in self._silent:
            connection.close_idle()
        changed = asyncio.Event()
        self._shared.on_end = changed.set
        while self._open_http:
            changed.clear()
            await changed.wait()
        await self._engines.wait_closed()

    @property
    def _silent(self) -> list[Connection]:
        """Those whose clients have only connected."""
        return [connection for connection in self._shared.heads if connection.is_silent]

    def disconnect(self) -> None:
        """Drop every connection at once. The apps are told that their clients have left."""
        for connection in list(self._shared.connections):
            connection.abort()
        self._engines.disconnect()

    def cancel(self) -> None:
        """Cancel every app that is still at work for a connection."""
        for task in self._shared.exchanges:
            task.cancel()
        self._engines.cancel()


async def _start_accepting(
    sock: socket.socket, protocol_factory: Callable[[], asyncio.BaseProtocol], *, tls: ssl.SSLContext | None
) -> asyncio.Server:
    loop: Any = asyncio.get_running_loop()
    constants: Any = importlib.import_module("asyncio.constants")
    constants.ACCEPT_RETRY_DELAY = _RETRY_DELAY
    options: dict[str, Any] = {"sock": sock, "backlog": _ACCEPTS_PER_TURN, "ssl": tls}
    if tls is not None:
        options |= {"ssl_handshake_timeout": HANDSHAKE_TIMEOUT, "ssl_shutdown_timeout": _TLS_SHUTDOWN_TIMEOUT}
    start = loop.create_server
    if sock.family == getattr(socket, "AF_UNIX", None):
        start = loop.create_unix_server
        if sys.version_info >= (3, 13):
            # The first worker to end would remove the file from under the others.
            options["cleanup_socket"] = False
    server: asyncio.Server = await start(protocol_factory, **options)
    sock.listen(BACKLOG)
    return server
