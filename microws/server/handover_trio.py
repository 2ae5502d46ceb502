"""Hands each connection over to Hypercorn, on trio: the twin of ``handover``."""

import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import anyio
import anyio.lowlevel
import trio
from anyio.abc import TaskStatus
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext

from microws.server.connections import CLOSE_TIMEOUT, Connections
from microws.server.http2 import OwnProtocols
from microws.server.hypercorn_setup import ConnectionContext, LinkedReads, log_failure
from microws.server.link import Link

__all__ = ["TrioServer"]

# Seconds that a client has to take what is sent at once, as api.md's send_timeout.
_SEND_TIMEOUT: Final = 10.0

# Busy: Hypercorn hangs up while another of its tasks is sending.
_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError)


class TrioServer:
    """
    Accepts connections and lets Hypercorn speak their protocols.

    Args:
        app: Called for each request and WebSocket.
        config: Hypercorn's.
        state: The lifespan's; each request gets a copy.
        tls: Speak TLS with it.
    """

    def __init__(
        self, app: Connections, config: Config, *, state: dict[str, Any], tls: ssl.SSLContext | None = None
    ) -> None:
        self._app = app
        self._config = config
        self._state: Any = state
        self._tls = tls
        self._terminated = WorkerContext.event_class()
        self._accepting = trio.CancelScope()
        self._open: dict[trio.SocketStream, trio.CancelScope] = {}
        self._all_closed = trio.Event()

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._open)

    async def serve(
        self, sockets: Sequence[socket.socket], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on ``sockets``, which do so already, until ``stop_listening`` and the end of every connection."""
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]
        async with trio.open_nursery() as connections:
            with self._accepting:
                task_status.started()
                await trio.serve_listeners(self._handle, listeners, handler_nursery=connections)

    def statistics(self) -> tuple[int, int]:
        """How many requests and how many WebSockets are open."""
        return self._app.statistics()

    async def drain(self) -> None:
        """End what would not end by itself, as ``Connections.drain`` says."""
        await self._app.drain()

    async def stop_listening(self) -> None:
        """Refuse new connections, and end each open one after the request that it is at."""
        self._accepting.cancel()
        await self._terminated.set()

    async def wait_closed(self) -> None:
        """Wait until no connection is left."""
        while self._open:
            self._all_closed = trio.Event()
            await self._all_closed.wait()

    def disconnect(self) -> None:
        """Drop every connection at once. The apps are told that their clients have left."""
        for stream in self._open:
            stream.socket.close()

    def cancel(self) -> None:
        """Cancel every app that is still at work for a connection."""
        for scope in self._open.values():
            scope.cancel()

    async def _handle(self, tcp: trio.SocketStream) -> None:
        stream: Any = tcp
        if self._tls is not None:
            stream = trio.SSLStream(tcp, self._tls, server_side=True, https_compatible=True)
        link = Link(tcp.socket.close)
        app: Any = ASGIWrapper(partial(self._app, link=link))
        context = _Context(link, self._terminated)
        with trio.CancelScope() as scope:
            self._open[tcp] = scope
            try:
                await _Connection(app, self._config, context, self._state, stream)
            except Exception as error:
                log_failure(error, also_expected=_BROKEN)
            finally:
                tcp.socket.close()
                del self._open[tcp]
                if not self._open:
                    self._all_closed.set()


class _Context(ConnectionContext, WorkerContext):
    pass


class _Connection(OwnProtocols, LinkedReads, TCPServer):
    context: _Context

    async def protocol_send(self, event: Event) -> None:
        # Hypercorn shields a send from cancellation, and so waits for a client that does not read: for ever.
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            with trio.move_on_after(_SEND_TIMEOUT, shield=True), suppress(*_BROKEN):
                await self.stream.send_all(event.data)
                return
        self.context.link.abort()
        await self.protocol.handle(Closed())

    async def _close(self) -> None:
        with trio.move_on_after(CLOSE_TIMEOUT):
            await super()._close()
