"""Hands each connection over to Hypercorn, on asyncio: with ``handover_trio``, the only file that knows its insides."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config

from microws.server.connections import CLOSE_TIMEOUT, Connections
from microws.server.hypercorn_setup import HANDSHAKE_TIMEOUT, EndingPings, LinkedReads, log_failure
from microws.server.link import Link
from microws.server.listening import BACKLOG

__all__ = ["AsyncioServer"]

# Seconds that a client has to answer the end of TLS; browsers do not.
_TLS_SHUTDOWN_TIMEOUT: Final = 1.0


class AsyncioServer:
    """
    Accepts connections and lets Hypercorn speak their protocols.

    Hypercorn's own ``worker_serve`` cannot be stopped while a client does not read, nor, since Python 3.12, while a
    WebSocket is open: so its loop is written here anew, with the transports in our hands.

    Args:
        app: Called for each request and WebSocket.
        config: Hypercorn's.
        state: The lifespan's; each request gets a copy.
        tls: Speak TLS with it.

    Source: Hypercorn 0.18, asyncio/run.py:164-170 and asyncio/tcp_server.py:118-120.
    """

    def __init__(
        self, app: Connections, config: Config, *, state: dict[str, Any], tls: ssl.SSLContext | None = None
    ) -> None:
        self._app = app
        self._config = config
        self._state: Any = state
        self._tls = tls
        self._terminated = WorkerContext.event_class()
        self._servers: list[asyncio.Server] = []
        self._open: dict[asyncio.Task[None], asyncio.WriteTransport] = {}
        self._all_closed = anyio.Event()

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._open)

    async def serve(
        self, sockets: Sequence[socket.socket], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on ``sockets`` until ``stop_listening``; ready at ``task_status.started()``."""
        timeouts: Any = {}
        if self._tls is not None:
            timeouts = {"ssl_handshake_timeout": HANDSHAKE_TIMEOUT, "ssl_shutdown_timeout": _TLS_SHUTDOWN_TIMEOUT}
        for sock in sockets:
            start: Any = asyncio.start_unix_server if sock.family == socket.AF_UNIX else asyncio.start_server
            self._servers.append(await start(self._handle, sock=sock, backlog=BACKLOG, ssl=self._tls, **timeouts))
        task_status.started()
        await self._terminated.wait()

    async def stop_listening(self) -> None:
        """Refuse new connections, and end each open one after the request that it is at."""
        for server in self._servers:
            server.close()
        await self._terminated.set()

    async def wait_closed(self) -> None:
        """Wait until no connection is left."""
        while self._open:
            self._all_closed = anyio.Event()
            await self._all_closed.wait()

    def disconnect(self) -> None:
        """Drop every connection at once. The apps are told that their clients have left."""
        for transport in self._open.values():
            transport.abort()

    def cancel(self) -> None:
        """Cancel every app that is still at work for a connection."""
        for task in self._open:
            task.cancel()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer.transport
        link = Link(writer.transport.abort)
        app: Any = ASGIWrapper(partial(self._app, link=link))
        context = _Context(self._terminated, link)
        loop = asyncio.get_running_loop()
        try:
            await _Connection(app, loop, self._config, context, self._state, reader, writer)
        except asyncio.CancelledError:
            pass  # ``cancel``; asyncio would report that the callback of a connection was cancelled
        except Exception as error:
            log_failure(error)
        finally:
            writer.transport.abort()
            del self._open[task]
            if not self._open:
                self._all_closed.set()


class _Context(EndingPings, WorkerContext):
    def __init__(self, terminated: Any, link: Link) -> None:
        WorkerContext.__init__(self, None)
        EndingPings.__init__(self, link)
        self.terminated = terminated


class _Connection(LinkedReads, TCPServer):
    context: _Context

    async def _close(self) -> None:
        # Hypercorn waits for a client that does not read until what was sent has left: for ever.
        give_up = self.loop.call_later(CLOSE_TIMEOUT, self.writer.transport.abort)
        try:
            await super()._close()
        finally:
            give_up.cancel()
