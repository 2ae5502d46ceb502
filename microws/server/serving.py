"""The server on asyncio and uvloop: its sockets, its connections, and how they end."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Final
from weakref import WeakSet

import anyio
from anyio.abc import TaskStatus

from microws.server.acceptor import Acceptor, Share
from microws.server.engines import Engines
from microws.server.http1 import HTTP1, ServerState

__all__ = ["AsyncioServer"]

# Seconds that a client which has only connected is waited for at the end: some round trips.
_FIRST_REQUEST_TIMEOUT: Final = 1.0

# Seconds between two looks at the handshakes of TLS.
_LOOK_INTERVAL: Final = 0.02


class AsyncioServer:
    """
    Serves HTTP/1.1 and WebSockets.

    Args:
        shared: What the connections share.
        engines: Get the WebSockets.
        tls: Speak TLS with it.
        share: Of the connections, if there are other workers.
    """

    def __init__(
        self, shared: ServerState, engines: Engines, *, tls: ssl.SSLContext | None = None, share: Share | None = None
    ) -> None:
        self._shared = shared
        self._engines = engines
        self._tls = tls
        self._acceptor = Acceptor(self._make_protocol, tls=tls, share=share, count_open=lambda: self.open)
        # Those in the handshake of TLS: they have no transport yet, or are dropped without a word.
        self._pending_tls: WeakSet[HTTP1] = WeakSet()
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
        await self._acceptor.start(sockets)
        task_status.started()
        try:
            await self._has_ended.wait()
        finally:
            # Also after a cancellation: at the end of its loop, uvloop waits without limit for a server that is open.
            self._acceptor.close()

    def _make_protocol(self) -> asyncio.Protocol:
        protocol = HTTP1(self._shared)
        if self._tls is not None:
            self._pending_tls.add(protocol)
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
        for exchange in list(self._shared.exchanges):
            exchange.drain()
        await self._engines.drain()

    async def stop_listening(self) -> None:
        """Refuse new connections, and end each open one after the request that it is at."""
        self._has_ended.set()
        self._acceptor.close()
        self._shared.is_stopping = self._shared.is_draining = True
        for connection in list(self._shared.idle):
            connection.close_idle()

    async def wait_closed(self) -> None:
        """Wait until no connection and no app is left. A client that has just connected has a moment."""
        with anyio.move_on_after(_FIRST_REQUEST_TIMEOUT):
            while self._silent or any(not protocol.is_connected for protocol in self._pending_tls):  # noqa: ASYNC110 - no event tells of a failed one
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
    def _silent(self) -> list[HTTP1]:
        """Those whose clients have only connected."""
        return [connection for connection in self._shared.heads if connection.is_idle]

    def disconnect(self) -> None:
        """Drop every connection at once. The apps are told that their clients have left."""
        for connection in list(self._shared.connections):
            connection.abort()
        self._engines.disconnect()

    def cancel(self) -> None:
        """Cancel every app that is still at work for a connection."""
        for exchange, task in self._shared.exchanges.items():
            # A task that is cancelled before its first step runs nothing at all.
            task.add_done_callback(partial(self._shared.ended, exchange))
            task.cancel()
        self._engines.cancel()
