"""The server on asyncio and uvloop: accepts connections, and closes them at the shutdown."""

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
from microws.server.http1 import HTTP1, ServerState
from microws.server.websockets import WebSockets

__all__ = ["AsyncioServer"]

# Seconds that a client which has only connected has for its first request during the drain: some round trips.
_FIRST_REQUEST_TIMEOUT: Final = 1.0

# Seconds between two looks at the TLS handshakes.
_LOOK_INTERVAL: Final = 0.02


class AsyncioServer:
    """
    Serves HTTP/1.1 and WebSockets.

    Args:
        shared: What the connections share.
        websockets: Get the WebSockets.
        tls: For connections that speak TLS.
        share: This worker's share of the connections, if there are other workers.
    """

    def __init__(
        self,
        shared: ServerState,
        websockets: WebSockets,
        *,
        tls: ssl.SSLContext | None = None,
        share: Share | None = None,
    ) -> None:
        self._shared = shared
        self._engines = websockets
        self._tls = tls
        self._acceptor = Acceptor(self._make_protocol, tls=tls, share=share, count_open=lambda: self.open)
        # In the TLS handshake: they have no transport yet, and the event loop may drop them without a callback.
        self._pending_tls: WeakSet[HTTP1] = WeakSet()
        self._has_ended = asyncio.Event()

    @property
    def open(self) -> int:
        """How many connections are open, those included whose client has disconnected while the app still runs."""
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
        """Close each connection after its next response, which has ``connection: close``; accept new ones."""
        self._shared.is_stopping = True

    async def drain(self) -> None:
        """
        Close every WebSocket with 1012, and end every event stream, the ones that are opened from now on too.

        ``receive`` tells the app immediately.
        """
        self._shared.is_draining = True
        for exchange in list(self._shared.exchanges):
            exchange.drain()
        await self._engines.drain()

    async def stop_listening(self) -> None:
        """Refuse new connections, and close each open one after its current request."""
        self._has_ended.set()
        self._acceptor.close()
        self._shared.is_stopping = self._shared.is_draining = True
        for connection in list(self._shared.idle):
            connection.close_idle()

    async def wait_closed(self) -> None:
        """Wait until every connection is closed and every app has returned. New clients have a second for a request."""
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
        """The connections on which nothing was received yet."""
        return [connection for connection in self._shared.heads if connection.is_idle]

    def disconnect(self) -> None:
        """Drop every connection. The apps are told that their clients have disconnected."""
        for connection in list(self._shared.connections):
            connection.abort()
        self._engines.disconnect()

    def cancel(self) -> None:
        """Cancel every app that still runs for a connection."""
        for exchange, task in self._shared.exchanges.items():
            # A task that is cancelled before its first step runs no code, not even a ``finally``.
            task.add_done_callback(partial(self._shared.ended, exchange))
            task.cancel()
        self._engines.cancel()
