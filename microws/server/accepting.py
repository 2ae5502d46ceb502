"""Accepting connections on asyncio and uvloop, from sockets that other workers accept from as well."""

import asyncio
import importlib
import socket
import ssl
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio
from anyio.abc import TaskStatus

from microws.server.arrivals import Arrivals
from microws.server.connections import Connections
from microws.server.engines import Engines
from microws.server.hypercorn_setup import FIRST_REQUEST_TIMEOUT, HANDSHAKE_TIMEOUT
from microws.server.listening import BACKLOG
from microws.server.upgrade import Upgrade

__all__ = ["AcceptingServer"]

# Connections that a worker takes in one turn of its event loop: asyncio takes as many as its backlog is, and one worker
# would leave none of a burst for the others. uvloop takes all that there are, and trio one.
_ACCEPTS_PER_TURN: Final = 16

# Seconds until asyncio tries again when there are no file descriptors left. Its own 1 s is as long for a client.
_RETRY_DELAY: Final = 0.25

# Seconds that a client has to answer the end of TLS; browsers do not.
_TLS_SHUTDOWN_TIMEOUT: Final = 1.0


class AcceptingServer(ABC):
    """
    What the servers on asyncio have in common: whoever begins with a handshake gets the engine, others an HTTP server.

    Args:
        app: Called for each request.
        engines: Get the WebSockets.
        state: The lifespan's; each request and each WebSocket gets a copy.
        tls: Speak TLS with it.
    """

    def __init__(
        self, app: Connections, engines: Engines, *, state: dict[str, Any], tls: ssl.SSLContext | None = None
    ) -> None:
        self._app = app
        self._engines = engines
        self._state: Any = state
        self._tls = tls
        self._servers: list[asyncio.Server] = []
        self._arrivals = Arrivals(self._take, self._speak_http, timeout=HANDSHAKE_TIMEOUT)

    @property
    def open(self) -> int:
        """How many connections there are; one whose client has left is one as long as its app is at work."""
        return len(self._arrivals) + self._engines.open

    async def serve(
        self, sockets: Sequence[socket.socket], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on ``sockets`` until ``stop_listening``; ready at ``task_status.started()``."""
        for sock in sockets:
            self._servers.append(await _start_accepting(sock, self._arrivals, tls=self._tls))
        task_status.started()
        try:
            await self._serve_http()
        finally:
            # Cancelled, too: uvloop may wait for ever for a server that nobody has closed, when its loop is closed.
            for server in self._servers:
                server.close()

    def statistics(self) -> tuple[int, int]:
        """How many requests and how many WebSockets are open."""
        requests, websockets = self._app.statistics()
        return requests, websockets + self._engines.open

    async def drain(self) -> None:
        """End what would not end by itself, as ``Connections.drain`` says."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._app.drain)
            tasks.start_soon(self._engines.drain)

    async def stop_listening(self) -> None:
        """Refuse new connections, and end each open one after the request that it is at."""
        for server in self._servers:
            server.close()
        self._arrivals.end()

    async def wait_closed(self) -> None:
        """Wait until no connection and no app is left. Who is in the handshake of TLS has a moment for it."""
        await self._arrivals.wait_met(timeout=FIRST_REQUEST_TIMEOUT)
        await self._wait_http_closed()
        await self._engines.wait_closed()

    def disconnect(self) -> None:
        """Drop every connection at once. The apps are told that their clients have left."""
        self._engines.disconnect()

    def cancel(self) -> None:
        """Cancel every app that is still at work for a connection."""
        self._engines.cancel()

    def _take(self, transport: asyncio.Transport, upgrade: Upgrade, early: bytes) -> None:
        self._engines.take(transport, upgrade, early, dict(self._state))

    @abstractmethod
    async def _serve_http(self) -> None:
        """What HTTP needs while the server listens; ends with it at the latest."""

    @abstractmethod
    async def _wait_http_closed(self) -> None:
        """Wait until no connection speaks HTTP."""

    @abstractmethod
    def _speak_http(self, transport: asyncio.Transport, data: bytes) -> None:
        """Let the HTTP server go on with a connection whose first bytes are ``data``."""


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
