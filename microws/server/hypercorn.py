"""Serves an app through Hypercorn's public API: HTTP/2, and the loop trio. WebSockets take the portable path."""

import asyncio
import importlib
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup, TaskStatus
from hypercorn.config import Config

from microws.interfaces import ASGIApplication, Event, Receive, Scope, Send
from microws.server.failures import ClientDisconnected, log_failure
from microws.server.listening import BACKLOG, CIPHERS
from microws.server.logs import log_access
from microws.server.request_line import request_line
from microws.server.settings import Settings

__all__ = ["HypercornServer", "hypercorn_config"]

_log = logging.getLogger("microws.server")

# Seconds for a TLS handshake, and between two starts of Hypercorn if it fails.
_HANDSHAKE_TIMEOUT: Final = 10.0
_RESTART_DELAY: Final = 0.1

# Seconds at the end for written data to reach the client. Hypercorn itself waits until its last ping is due: 20 s.
_LINGER: Final = 1.0
# Seconds without an event after which Hypercorn has none left for an app that has returned.
_SILENCE: Final = 1.0

_ENDED: Final[Event] = {"type": "http.disconnect"}
_RESTART: Final[Event] = {"type": "websocket.disconnect", "code": 1012, "reason": "service restart"}
_LOST: Final[Event] = {"type": "websocket.disconnect", "code": 1006, "reason": ""}


def hypercorn_config(settings: Settings, *, max_message_size: int) -> Config:
    """
    Hypercorn's settings for ours. It logs nothing, because this package does.

    Args:
        settings: How to serve.
        max_message_size: Bytes of an incoming message: the limit of the settings, the app or the server.
    """
    config = Config()
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    config.backlog = BACKLOG
    config.certfile = settings.certfile
    config.keyfile = settings.keyfile or settings.certfile
    config.ciphers = CIPHERS
    config.ssl_handshake_timeout = _HANDSHAKE_TIMEOUT
    config.h11_max_incomplete_size = config.h2_max_header_list_size = settings.max_head_size
    config.keep_alive_timeout = settings.keep_alive
    # On an HTTP/2 connection it silently ignores requests beyond this number.
    config.keep_alive_max_requests = 1 << 60
    # Longer than any drain: the worker ends that.
    config.graceful_timeout = settings.drain_timeout + settings.shutdown_timeout + 10
    config.websocket_max_message_size = max_message_size
    config.websocket_ping_interval = settings.ping_interval or None
    return config


@dataclass(eq=False)
class HypercornServer:
    """
    Lets Hypercorn serve, and adds around the app what plain ASGI allows: access log, error log, drain.

    Hypercorn hides its connections, so ``disconnect`` and ``cancel`` end only the calls of the app. A connection whose
    client does not read may stay open until the process ends.

    Args:
        app: Gets each request and WebSocket.
        config: Hypercorn's settings, without an address.
        on_trio: Whether the event loop is trio's, else asyncio's.
        state: The state of the lifespan, whose startup has ended; each request gets a copy.
        extension: Added to each scope's ``extensions`` as ``"microws"``.
    """

    app: ASGIApplication
    config: Config
    on_trio: bool
    state: Mapping[str, Any]
    extension: Mapping[str, Any]

    def __post_init__(self) -> None:
        self._calls: set[_Call] = set()
        self._serving = anyio.CancelScope()
        self._tasks: TaskGroup
        self.stopping: anyio.Event = anyio.Event()
        self.keeps_connections: bool = True
        self._all_returned = anyio.Event()
        self._ended = anyio.Event()

    @property
    def open(self) -> int:
        """How many requests and WebSockets are open."""
        return len(self._calls)

    async def serve(
        self, sockets: Sequence[socket.socket], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Accept from ``sockets``, which listen already, until ``stop_listening`` and the end of every connection."""
        with self._serving:
            async with anyio.create_task_group() as self._tasks:
                # One Hypercorn for each: since Python 3.12 it closes its second socket only when the connections of the
                # first one have ended.
                for sock in sockets:
                    self._tasks.start_soon(self._serve_one, sock)
                task_status.started()
        self._ended.set()

    async def _serve_one(self, sock: socket.socket) -> None:
        hypercorn = importlib.import_module("hypercorn.trio" if self.on_trio else "hypercorn.asyncio")
        while not self.stopping.is_set():
            config = copy(self.config)
            # Hypercorn closes what it gets.
            config.bind = f"fd://{os.dup(sock.fileno())}"
            try:
                await hypercorn.serve(self, config, shutdown_trigger=self.stopping.wait, mode="asgi")
            except Exception as error:
                # On trio, an exception of one connection ends all.
                if not self.stopping.is_set():
                    _log.error("Hypercorn failed and is started again: %r", error, exc_info=error)
                    await anyio.sleep(_RESTART_DELAY)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app that Hypercorn calls."""
        if scope["type"] == "lifespan":
            scope["state"].update(self.state)
            raise RuntimeError("the lifespan of the app has run already")  # Hypercorn serves without it
        # Hypercorn takes HTTP/2 without TLS, also after ``Upgrade: h2c``: a client would tunnel through a proxy that
        # forwards the upgrade, past its rules. Source: https://bishopfox.com/blog/h2c-smuggling-request
        if scope["http_version"] == "2" and scope["scheme"] in ("http", "ws"):
            kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
            await send({"type": f"{kind}.start", "status": 505, "headers": [(b"content-length", b"0")]})
            await send({"type": f"{kind}.body", "body": b""})
            return
        scope["extensions"] = {**scope.get("extensions", {}), "microws": self.extension}
        call = _Call(self, scope, receive, send)
        self._calls.add(call)
        try:
            await call.run(self.app)
        finally:
            self._calls.discard(call)
            if not self._calls:
                self._all_returned.set()
        # A server that stops ends every connection anyway, and need not wait for this.
        if call.is_websocket and not self.stopping.is_set():
            self._tasks.start_soon(_discard_rest, receive)

    def statistics(self) -> tuple[int, int]:
        """How many requests and how many WebSockets are open."""
        websockets = sum(call.is_websocket for call in self._calls)
        return len(self._calls) - websockets, websockets

    def expect_stop(self) -> None:
        """Close each HTTP/1.1 connection after its next response, and accept new ones; HTTP/2 is not affected."""
        self.keeps_connections = False

    async def drain(self) -> None:
        """Close every WebSocket with 1012, and end every event stream."""
        self.stopping.set()
        async with anyio.create_task_group() as tasks:
            for call in list(self._calls):
                tasks.start_soon(call.drain)

    async def stop_listening(self) -> None:
        """Refuse new connections, and close each open one after its current request."""
        self.stopping.set()
        if not self.on_trio:
            asyncio.get_running_loop().set_exception_handler(_ignore_cancellation)

    async def wait_closed(self) -> None:
        """Wait until no request and no WebSocket is left, and end Hypercorn."""
        while self._calls:
            self._all_returned = anyio.Event()
            await self._all_returned.wait()
        with anyio.move_on_after(_LINGER):
            await self._ended.wait()
        self.cancel()

    def disconnect(self) -> None:
        """Tell the apps that their clients have disconnected."""
        for call in self._calls:
            call.end(_LOST if call.is_websocket else _ENDED)

    def cancel(self) -> None:
        """Cancel every call of the app, and Hypercorn."""
        for call in self._calls:
            call.running.cancel()
        self._serving.cancel()


class _Call:
    """One call of the app: a request, or a WebSocket."""

    def __init__(self, server: HypercornServer, scope: Scope, receive: Receive, send: Send) -> None:
        self.is_websocket = scope["type"] == "websocket"
        self.running = anyio.CancelScope()
        self._server = server
        self._scope = scope
        self._receive = receive
        self._send = send
        self._began = time.perf_counter()
        self._waits: set[anyio.CancelScope] = set()
        self._closing = anyio.Lock()
        self._disconnect: Event | None = None
        self._status: int | None = None
        self._is_answered = False
        self._is_event_stream = False
        self._close_code: int | None = None  # of the server's Close frame

    async def run(self, app: ASGIApplication) -> None:
        with self.running:
            try:
                await app(self._scope, self.receive, self.send)
                if self._status is None and not self._disconnect:
                    _log.error("the app returned without an answer to %s", request_line(self._scope))
            except BaseException as error:
                log_failure(error, self._scope, has_ended=self._disconnect is not None)
            # Hypercorn closes TCP when this call returns, even if the Close frame is not written yet.
            with anyio.move_on_after(_LINGER):
                async with self._closing:
                    pass
        if self._is_event_stream and self._server.stopping.is_set() and not self._is_answered:
            # So that the client sees the end of the stream, not a broken connection.
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        if not self._is_answered:
            # If the app has not started a response, Hypercorn sends one.
            self._answered(500 if self._status is None and not self._disconnect else self._status)
        if self._status == 101:
            log_access(self._scope, self._status, self._began, close_code=self._close_code or 0)

    async def receive(self) -> Event:
        if self._disconnect is None:
            with anyio.CancelScope() as waiting:
                self._waits.add(waiting)
                try:
                    event = await self._receive()
                finally:
                    self._waits.discard(waiting)
                if not event["type"].endswith(".disconnect"):
                    return event
                self._disconnect = event
        assert self._disconnect is not None
        return self._disconnect

    async def send(self, event: Event) -> None:
        kind = event["type"]
        if kind == "websocket.close" and (self._disconnect or self._close_code is not None):
            return
        if self._disconnect is not None:
            raise ClientDisconnected("the client has disconnected, or the server is stopping")
        if "headers" in event or kind.endswith(".start"):
            event = {**event, "headers": list(event.get("headers") or ())}
        is_last = self._server.stopping.is_set() or not self._server.keeps_connections
        if kind == "http.response.start" and is_last and self._scope["http_version"] != "2":
            event["headers"].append((b"connection", b"close"))
        await self._send(event)
        if kind.endswith("response.start"):
            self._status = event["status"]
            fields = {bytes(name).lower(): bytes(value) for name, value in event["headers"]}
            self._is_event_stream = fields.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        elif kind == "websocket.accept":
            self._answered(101)
        elif kind == "websocket.close" and self._status == 101:
            self._close_code = int(event.get("code", 1000))
        elif kind == "websocket.close":
            self._answered(403)
        elif kind.endswith("response.body") and not event.get("more_body", False):
            self._answered(self._status)
        if self._server.stopping.is_set():
            await self.drain()

    async def drain(self) -> None:
        if self._status == 101 and not self._disconnect and self._close_code is None:
            self._close_code = _RESTART["code"]
            self.end(_RESTART)
            async with self._closing:
                with suppress(Exception):  # the client may disconnect at this moment
                    await self._send({**_RESTART, "type": "websocket.close"})
        elif self._is_event_stream and not self._is_answered:
            self.end(_ENDED)

    def end(self, disconnect: Event) -> None:
        """Let the app's ``receive`` return ``disconnect``, even if it waits already."""
        self._disconnect = self._disconnect or disconnect
        for waiting in self._waits:
            waiting.cancel()

    def _answered(self, status: int | None) -> None:
        self._is_answered = True
        self._status = status
        log_access(self._scope, status, self._began)


async def _discard_rest(receive: Receive) -> None:
    """
    Discard what Hypercorn has left for an app that has returned.

    Hypercorn has a queue of 10 events for it. Without this it waits for room in the queue, and never closes the socket:
    after a failed send it puts the disconnect before messages that it has read already, and an app may return before
    the disconnect.
    """
    has_more = True
    while has_more:
        with anyio.move_on_after(_SILENCE) as waiting:
            await receive()
        has_more = not waiting.cancelled_caught


def _ignore_cancellation(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Before Python 3.12 asyncio logs a traceback for each connection that is cancelled at the shutdown.
    if not isinstance(context.get("exception"), asyncio.CancelledError):
        loop.default_exception_handler(context)
