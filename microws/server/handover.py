"""Hands each connection over to Hypercorn, on asyncio: with ``handover_trio``, the only file that knows its insides."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import h11
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol

from microws.server.accepting import AcceptingServer
from microws.server.connections import CLOSE_TIMEOUT, Connections
from microws.server.engines import Engines
from microws.server.http2 import OwnProtocols
from microws.server.hypercorn_setup import ConnectionContext, LinkedReads, log_failure
from microws.server.link import Link
from microws.server.upgrade import Upgrade, asks_for_websocket

__all__ = ["AsyncioServer"]


class AsyncioServer(AcceptingServer):
    """
    Lets Hypercorn speak HTTP on the connections.

    Hypercorn's own ``worker_serve`` cannot be stopped while a client does not read, nor, since Python 3.12, while a
    WebSocket is open: so its loop is written here anew, with the transports in our hands.

    Args:
        app: Called for each request, and for each WebSocket over HTTP/2.
        engines: Get the other WebSockets.
        config: Hypercorn's.
        state: The lifespan's; each request gets a copy.
        tls: Speak TLS with it.

    Source: Hypercorn 0.18, asyncio/run.py:164-170 and asyncio/tcp_server.py:118-120.
    """

    def __init__(
        self,
        app: Connections,
        engines: Engines,
        config: Config,
        *,
        state: dict[str, Any],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(app, engines, state=state, tls=tls)
        self._config = config
        self._terminated = WorkerContext.event_class()
        self._open: dict[asyncio.Task[None], asyncio.WriteTransport] = {}
        self._all_closed = anyio.Event()

    @property
    def open(self) -> int:
        """How many connections there are."""
        return super().open + len(self._open)

    async def stop_listening(self) -> None:
        """Refuse new connections, and end each open one after the request that it is at."""
        await super().stop_listening()
        await self._terminated.set()

    def disconnect(self) -> None:
        """Drop every connection at once. The apps are told that their clients have left."""
        for transport in self._open.values():
            transport.abort()
        super().disconnect()

    def cancel(self) -> None:
        """Cancel every app that is still at work for a connection."""
        for task in self._open:
            task.cancel()
        super().cancel()

    async def _serve_http(self) -> None:
        await self._terminated.wait()

    async def _wait_http_closed(self) -> None:
        while self._open:
            self._all_closed = anyio.Event()
            await self._all_closed.wait()

    def _speak_http(self, transport: asyncio.Transport, data: bytes) -> None:
        streams = _Streams(self._connected)
        transport.set_protocol(streams)
        streams.connection_made(transport)
        if data:
            streams.data_received(data)

    def _connected(self, reader: "_Reader", writer: "_Writer") -> None:
        task = asyncio.get_running_loop().create_task(self._handle(reader, writer))
        self._open[task] = writer.transport
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._open[task]
        if not self._open:
            self._all_closed.set()

    async def _handle(self, reader: "_Reader", writer: "_Writer") -> None:
        transport: Any = writer.transport
        link = Link(transport.abort)
        app: Any = ASGIWrapper(partial(self._app, link=link))
        context = _Context(link, self._terminated)
        loop = asyncio.get_running_loop()
        connection = _Connection(app, loop, self._config, context, self._state, reader, writer)
        try:
            await connection
        except asyncio.CancelledError:
            pass  # ``cancel``; asyncio would report that the callback of a connection was cancelled
        except Exception as error:
            log_failure(error)
        upgrade = context.upgrade
        if upgrade is None or reader.has_ended or transport.is_closing():
            transport.abort()
        else:
            # Without a turn of the event loop in between: nothing that comes now may go to the reader.
            self._take(transport, upgrade, context.early + await reader.rest())


class _Reader(asyncio.StreamReader):
    has_ended = False

    def feed_eof(self) -> None:
        self.has_ended = True
        super().feed_eof()

    async def rest(self) -> bytes:
        """What has come and was not read. Never waits; nothing more can be fed."""
        super().feed_eof()
        return await self.read()


class _Writer(asyncio.StreamWriter):
    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.transport.is_closing():  # asyncio would log each write
            super().write(data)

    async def drain(self) -> None:
        """
        Wait while the client does not read.

        A connection may also break by a time-out of TCP or an error of TLS, which Hypercorn would raise in the app. And
        an app that sends and sends would leave nobody else a turn of the event loop.

        Source: Hypercorn 0.18, asyncio/tcp_server.py:82-86; CPython 3.11, asyncio/streams.py:376-379.
        """
        try:
            await super().drain()
        except OSError as error:
            await asyncio.sleep(0)
            raise ConnectionResetError(*error.args) from error

    def __del__(self) -> None:
        """Since Python 3.11.5 it would close the transport, which may be the engine's by then."""


class _Streams(asyncio.StreamReaderProtocol):
    """What ``asyncio.start_server`` uses, with a reader and a writer that let go of the transport."""

    def __init__(self, connected: Callable[[_Reader, _Writer], None]) -> None:
        loop = asyncio.get_running_loop()
        self._own_reader = _Reader(loop=loop)
        self._connected = connected
        super().__init__(self._own_reader, loop=loop)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        reader = self._own_reader
        self._connected(reader, _Writer(transport, self, reader, asyncio.get_running_loop()))


class _Context(ConnectionContext, WorkerContext):
    upgrade: Upgrade | None = None
    early = b""


class _Upgraded(Exception):
    """Ends Hypercorn's part in a connection that becomes a WebSocket."""


class _H11(H11Protocol):
    context: Any

    async def _create_stream(self, request: h11.Request) -> None:
        headers = list(request.headers)
        if not asks_for_websocket(request.method, request.http_version, headers):
            await super()._create_stream(request)
            return
        self.context.upgrade = Upgrade(request.target, headers)
        self.context.early = self.connection.trailing_data[0]
        raise _Upgraded


class _Connection(OwnProtocols, LinkedReads, TCPServer):
    context: _Context
    http1 = _H11

    async def _read_data(self) -> None:
        try:
            await super()._read_data()
        except _Upgraded:
            pass

    async def _close(self) -> None:
        if self.context.upgrade is not None:
            await self.idle_task.stop()
            return
        # Hypercorn waits for a client that does not read until what was sent has left: for ever.
        give_up = self.loop.call_later(CLOSE_TIMEOUT, self.writer.transport.abort)
        try:
            # A client that does not answer the end of TLS would raise in the app, which sends the last event.
            with suppress(OSError):
                await super()._close()
        finally:
            give_up.cancel()
