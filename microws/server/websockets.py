"""The WebSockets of a worker: each one as ASGI events, and what they share."""

import asyncio
import logging
import time
from collections.abc import Mapping
from random import uniform
from typing import Any, ClassVar, Final

from microws.closing import DEFAULT_REASONS, CloseCode, check_close
from microws.connection.connection import AppCall, Connection
from microws.connection.deadlines import Deadlines
from microws.connection.socket import NO_BODY, Headers, SharedLimits, SocketConnection, addresses_of
from microws.connection.wrapped import WrappedConnection
from microws.handshake import check_accept, check_headers
from microws.hub import SUBPROTOCOL
from microws.interfaces import BYTES_LIKE, ASGIApplication, Event, Limits, Scope
from microws.server.failures import ClientDisconnected, log_failure
from microws.server.logs import log_access
from microws.server.request_line import request_line
from microws.server.response_head import check_status, date_line, response_head
from microws.server.settings import Settings
from microws.state import CLOSED, CLOSING, CONNECTING, OPEN
from microws.upgrade import Upgrade, check_upgrade, field_lines, scope_of

__all__ = ["ServerWebSocket", "WebSockets", "final_response"]

_log = logging.getLogger("microws.server")

# Seconds until a client that broke a rule is dropped, in place of the app's ``close_timeout``.
_FAILURE_TIMEOUT: Final = 0.5
# Connections that a drain closes in one turn of the event loop, which takes a few milliseconds.
_DRAIN_BATCH: Final = 100

_SWITCHING: Final = 101
_FORBIDDEN: Final = 403
_FAILED: Final = 500
_UNAVAILABLE: Final = 503
_RESTART: Final = DEFAULT_REASONS[CloseCode.SERVICE_RESTART]


class ServerWebSocket(SocketConnection):
    """
    A connection that an app uses by ASGI events, or takes from ``scope["microws.connection"]`` if it is a microws app.

    Args:
        transport, upgrade: See ``SocketConnection``.
        scope: ASGI scope of the handshake.
        websockets: Those of the worker.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket
    """

    __slots__ = ("_began", "_has_connected", "_status", "_websockets", "scope")

    def __init__(self, transport: asyncio.Transport, upgrade: Upgrade, scope: Scope, websockets: "WebSockets") -> None:
        super().__init__(transport, upgrade, websockets.shared)
        self.scope = scope
        self._websockets = websockets
        self._began = time.perf_counter()
        self._has_connected = False
        self._status: int | None = None

    def attach(self, call: AppCall) -> Connection:
        if call.send == self.asgi_send and call.receive == self.asgi_receive:
            return super().attach(call)
        # Middleware has replaced one of them.
        self.limits = call.limits
        return WrappedConnection(self, call)

    async def run(self, app: ASGIApplication, scope: Scope) -> None:
        """
        Have ``app`` serve the connection. The client may still be connected when this returns.

        Args:
            scope: ASGI scope of the handshake. ``self.scope`` is empty once the client has disconnected, which may be
                before this starts.
        """
        code = CloseCode.INTERNAL_ERROR
        try:
            await app(scope, self.asgi_receive, self.asgi_send)
            code = CloseCode.NORMAL_CLOSURE
            if self.state is CONNECTING:
                _log.error("the app returned without an answer to %s", request_line(scope))
        except BaseException as error:
            log_failure(error, scope, has_ended=self.state not in (CONNECTING, OPEN))
        finally:
            # The scope refers to this object, which refers to the scope.
            scope.pop("microws.connection", None)
            if self.state is CONNECTING:
                self.refuse(_FAILED)
            elif self.state is CLOSING and self._status != _SWITCHING:
                self.abort()  # its response will never be complete
            self.close(code, DEFAULT_REASONS.get(code, ""))
            if self._status is None:
                log_access(scope, None, self._began)

    def start(self, subprotocol: str | None, headers: Headers) -> None:
        super().start(subprotocol, headers)
        self._log_answer(_SWITCHING)

    def refuse(self, status: int, headers: Headers = NO_BODY, body: bytes = b"") -> None:
        self._start_refusal(status, headers)
        self.send_body(body)
        self.end_response()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self._status == _SWITCHING:
            self.log_end(self.close_code or CloseCode.ABNORMAL_CLOSURE)
        self._websockets.forget(self)
        self.scope = {}

    def log_end(self, code: int) -> None:
        """Log the end of the connection."""
        log_access(self.scope, _SWITCHING, self._began, close_code=code)

    def _start_refusal(self, status: int, headers: Headers) -> None:
        self.start_response(final_response(status, headers))
        self._log_answer(status)

    def _log_answer(self, status: int) -> None:
        self._status = status
        log_access(self.scope, status, self._began)

    async def asgi_receive(self) -> Event:
        """ASGI's ``receive``."""
        if not self._has_connected:
            self._has_connected = True
            return {"type": "websocket.connect"}
        if self.state is CONNECTING:
            await self.wait_answered()
        message = await self.receive()
        if message is None:
            code = CloseCode.ABNORMAL_CLOSURE if self.close_code is None else self.close_code
            return {"type": "websocket.disconnect", "code": int(code), "reason": self.close_reason}
        if isinstance(message, str):
            return {"type": "websocket.receive", "text": message}
        return {"type": "websocket.receive", "bytes": message}

    async def asgi_send(self, event: Event) -> None:
        """
        ASGI's ``send``. Waits while the client does not take what is sent.

        Raises:
            OSError: The connection has ended.
            RuntimeError: An event that is not allowed in this state.
            TypeError, ValueError: An invalid event; nothing was sent.
        """
        kind = event["type"]
        if kind != "websocket.send":
            self._send_other(kind, event)
            if kind == "websocket.http.response.body":
                await self.wait_writable()
            return
        if self.state is not OPEN:
            self._check_open()
        text = event.get("text")
        payload = text if isinstance(text, str) else _checked_bytes(event.get("bytes") if text is None else text)
        if self.unwritten is not None and self.takes_carried(payload):
            return
        self.send_message(payload)
        if not self.is_writable:
            await self.wait_writable()
            self._check_open()

    def _send_other(self, kind: str, event: Event) -> None:
        if self.state is CLOSED and not (kind == "websocket.close" and self._status == _SWITCHING):
            raise self._disconnected()
        match kind:
            case "websocket.accept":
                subprotocol, headers = event.get("subprotocol"), event.get("headers")
                offered = self.scope["subprotocols"]
                self.start(subprotocol, check_accept(subprotocol=subprotocol, offered=offered, headers=headers))
            case "websocket.close" if self.state is CONNECTING:
                self.refuse(_FORBIDDEN)
            case "websocket.close":
                code, reason = event.get("code", CloseCode.NORMAL_CLOSURE), event.get("reason") or ""
                check_close(code, reason)
                self.close(code, reason)
            case "websocket.http.response.start":
                self._start_refusal(check_status(event["status"]), check_headers(event.get("headers")))
            case "websocket.http.response.body" if self._status not in (None, _SWITCHING):
                self.send_body(event.get("body") or b"")
                if not event.get("more_body", False):
                    self.end_response()
            case _:
                raise RuntimeError(f"expected no {kind} in a WebSocket that is {self.state.value}")

    def _check_open(self) -> None:
        if self.state is CONNECTING:
            raise RuntimeError("expected websocket.accept first, got websocket.send")
        if self.state is not OPEN:
            raise self._disconnected()

    def _disconnected(self) -> ClientDisconnected:
        return ClientDisconnected(f"the WebSocket is {self.state.value}, with code {self.close_code}")


class WebSockets:
    """
    The WebSockets of one worker, on asyncio.

    Args:
        app: Serves each WebSocket.
        settings: Of these, ``ping_interval``, ``ping_timeout`` and ``drain_spread``.
        limits: Limits of a connection whose app sets none.
        extension: Value of ``extensions["microws"]`` in each scope.

    Attributes:
        shared: Limits and timers of the connections.
        connection_type: The class of the connections.
    """

    connection_type: ClassVar[type[ServerWebSocket]] = ServerWebSocket

    def __init__(
        self, app: ASGIApplication, settings: Settings, *, limits: Limits, extension: Mapping[str, Any]
    ) -> None:
        self._app = app
        self._extension = extension
        self._open: set[ServerWebSocket] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._is_draining = False
        self._drain_spread = settings.drain_spread
        self.shared: SharedLimits = SharedLimits(
            limits,
            pings=Deadlines(settings.ping_interval, self._ping),
            pongs=Deadlines(settings.ping_timeout, self._drop_silent),
            closings={},
            failures=Deadlines(_FAILURE_TIMEOUT, SocketConnection.abort),
        )

    @property
    def open(self) -> int:
        """Number of connections. One whose client has disconnected counts until its app returns."""
        return max(len(self._open), len(self._tasks))

    def take(self, transport: asyncio.Transport, upgrade: Upgrade, early: bytes, state: dict[str, Any]) -> None:
        """
        Serve the WebSocket that a request asked for.

        Args:
            transport: Connection of the request.
            upgrade: The request.
            early: Data that came behind it.
            state: Lifespan state, a copy for this connection.
        """
        client, server = addresses_of(transport)
        scheme = "ws" if transport.get_extra_info("sslcontext") is None else "wss"
        extensions = {"websocket.http.response": {}, "microws": self._extension}
        scope = scope_of(upgrade, scheme=scheme, client=client, server=server, state=state, extensions=extensions)
        connection = scope["microws.connection"] = self.connection_type(transport, upgrade, scope, self)
        self._open.add(connection)
        if early:
            connection.data_received(early)
        refusal = check_upgrade(upgrade)
        if refusal is not None:
            connection.refuse(*refusal)
        elif self._is_draining:
            connection.refuse(_UNAVAILABLE)
        else:
            task = asyncio.get_running_loop().create_task(connection.run(self._app, scope))
            self._tasks.add(task)
            task.add_done_callback(self._app_returned)

    async def drain(self) -> None:
        """Close every WebSocket with 1012. From now on a handshake is refused with 503."""
        self._is_draining = True
        for count, connection in enumerate(list(self._open), 1):
            if connection.state is CONNECTING:
                connection.refuse(_UNAVAILABLE)
                connection.close_code, connection.close_reason = CloseCode.SERVICE_RESTART, _RESTART
            else:
                connection.close(CloseCode.SERVICE_RESTART, self._restart_reason(connection))
            if not count % _DRAIN_BATCH:
                await asyncio.sleep(0)

    def _restart_reason(self, connection: ServerWebSocket) -> str:
        """With a time to wait for a client that reads it, so that not all come back at the same moment."""
        if connection.subprotocol != SUBPROTOCOL or not self._drain_spread:
            return _RESTART
        return f"{_RESTART}; retry={uniform(0, self._drain_spread):.2f}"

    async def wait_closed(self) -> None:
        """Wait until every connection has ended and every app has returned."""
        while self._open or self._tasks:
            self._changed.clear()
            await self._changed.wait()

    def disconnect(self) -> None:
        """Drop every connection at once. The apps are told that their clients have disconnected."""
        for connection in list(self._open):
            connection.abort()

    def cancel(self) -> None:
        """Cancel every app that is still running."""
        for task in self._tasks:
            task.cancel()

    def forget(self, connection: ServerWebSocket) -> None:
        """The connection has ended."""
        self._open.discard(connection)
        self._changed.set()

    def _app_returned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()

    def _ping(self, connection: SocketConnection) -> None:
        connection.ping()
        if connection.was_heard or connection not in self.shared.pongs:
            connection.was_heard = False
            self.shared.pongs.start(connection)
        self.shared.pings.start(connection)

    def _drop_silent(self, connection: SocketConnection) -> None:
        # While reading pauses, an end is not seen. Over TLS what is sent then goes nowhere, without an error.
        if not connection.was_heard and (connection.is_reading or connection.has_hung_up):
            connection.fail(CloseCode.INTERNAL_ERROR, "ping timeout")
            connection.abort()


def final_response(status: int, headers: Headers) -> bytes:
    """
    The head of an HTTP response whose body ends with the connection.

    Args:
        headers: Valid headers.

    Source: RFC 9112 §4, §6.3, §9.6; RFC 9110 §6.6.1 (``Date``).
    """
    names = {name for name, _ in headers}
    kept = [pair for pair in headers if pair[0] not in (b"connection", b"transfer-encoding", b"keep-alive")]
    # RFC 9110 §7.8: a response with ``Upgrade`` names it here too.
    connection = b"connection: upgrade, close\r\n" if b"upgrade" in names else b"connection: close\r\n"
    return response_head(status, field_lines(kept), b"" if b"date" in names else date_line(), connection)


def _checked_bytes(payload: Any) -> bytes:
    if not isinstance(payload, BYTES_LIKE):
        raise TypeError(f'expected websocket.send with "text" as str or "bytes" as bytes, got {type(payload).__name__}')
    return bytes(payload)
