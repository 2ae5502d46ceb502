"""Every open request and WebSocket of a worker: what the access log says of each, and how each ends in a drain."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

import anyio

from microws.closing import DEFAULT_REASONS, CloseCode
from microws.interfaces import ASGIApplication, Event, Receive, Scope, Send
from microws.server.waits import Waits

__all__ = ["CLOSE_TIMEOUT", "Connections"]

_log = logging.getLogger("microws.server")
_access = logging.getLogger("microws.access")

# Seconds that a client has to answer a Close frame, as api.md's close_timeout; `websockets` waits 10.
CLOSE_TIMEOUT: Final = 5.0

_SWITCHING: Final = 101

_RESTART: Final = DEFAULT_REASONS[CloseCode.SERVICE_RESTART]


class Connections:
    """
    An ASGI app around the app that is served. Hypercorn calls it; nothing that the app raises gets further.

    Args:
        app: Gets each request and WebSocket, with ``receive`` and ``send`` watched.
        waits: Makes what a drain interrupts; another for each event loop.
        access_log: Whether to log one line for each request, and one for each beginning and end of a WebSocket.
        extensions: Added to every scope's ``extensions``.
    """

    def __init__(
        self,
        app: ASGIApplication,
        *,
        waits: Callable[[], Waits],
        access_log: bool = True,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        self._app = app
        self._waits = waits
        self._log_access = _log_access if access_log else _log_nothing
        self._extensions = dict(extensions or {})
        self._open: set[_Request | _WebSocket] = set()
        self._is_draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if self._extensions:
            scope["extensions"] = {**scope.get("extensions", {}), **self._extensions}
        kind = _WebSocket if scope["type"] == "websocket" else _Request
        connection = kind(scope, receive, send, waits=self._waits(), log_access=self._log_access)
        connection.is_draining = self._is_draining
        self._open.add(connection)
        try:
            await connection.run(self._app)
        finally:
            self._open.discard(connection)

    def statistics(self) -> tuple[int, int]:
        """How many requests and how many WebSockets are open."""
        websockets = sum(isinstance(connection, _WebSocket) for connection in self._open)
        return len(self._open) - websockets, websockets

    async def drain(self) -> None:
        """
        End what would not end by itself: every WebSocket with 1012, every event stream where it stands.

        The app learns of it at once, from ``receive``. What comes from now on is treated the same way. Waits until
        the system has taken each Close frame: for a client that does not read, as long as its connection stands.
        """
        self._is_draining = True
        async with anyio.create_task_group() as tasks:
            for connection in list(self._open):
                tasks.start_soon(connection.drain)


class _Gone(OSError):
    """
    ``send`` after the server has ended the connection.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html ("a server-specific subclass of OSError").
    """


class _Connection:
    """What a request and a WebSocket have in common."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, waits: Waits, log_access: "_LogAccess") -> None:
        self.is_draining = False
        self._scope = scope
        self._receive = receive
        self._send = send
        self._waits = waits
        self._log_access = log_access
        self._began = time.perf_counter()
        self._status: int | None = None
        self._is_answered = False
        self._has_left = False  # the client
        self._is_cut = False  # by a drain

    async def _call(self, app: ASGIApplication, receive: Receive, send: Send) -> bool:
        """Whether the app returned. What it raised is logged; also that it said nothing. Hypercorn then sends 500."""
        try:
            await app(self._scope, receive, send)
        except Exception as error:
            if not (self._is_cut and _is_gone(error)):
                _log.error("the app raised in %s", _request_line(self._scope), exc_info=error)
                self._status = self._status or 500
            return False
        if self._status is None and not self._has_left:
            _log.error("the app returned without an answer to %s", _request_line(self._scope))
            self._status = 500
        return True

    def _log_answer(self) -> None:
        if not self._is_answered:
            self._is_answered = True
            self._log_access(self._scope, self._status, self._began)


class _Request(_Connection):
    """One HTTP request and its response."""

    _is_event_stream = False

    async def run(self, app: ASGIApplication) -> None:
        try:
            await self._call(app, self.receive, self.send)
            if self._is_cut and not self._is_answered:
                # So that the client sees a stream that has ended, not one that broke.
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._log_answer()

    async def receive(self) -> Event:
        event = None if self._is_cut else await self._waits.run(self._receive)
        if event is None:
            return {"type": "http.disconnect"}
        if event["type"] == "http.disconnect":
            self._has_left = True
        return event

    async def send(self, event: Event) -> None:
        if self._is_cut:
            raise _Gone("the server is stopping: this event stream has ended")
        kind = event["type"]
        if kind == "http.response.start":
            self._status = event["status"]
            self._is_event_stream = _is_event_stream(event)
        await self._send(event)
        if kind == "http.response.body" and not event.get("more_body", False):
            self._log_answer()
        elif self.is_draining:
            await self.drain()

    async def drain(self) -> None:
        self.is_draining = True
        if self._is_event_stream and not self._is_answered:
            self._is_cut = True
            self._waits.interrupt()


class _WebSocket(_Connection):
    """One WebSocket, from its handshake to the end of its app."""

    _code: int | None = None
    _is_told = False

    async def run(self, app: ASGIApplication) -> None:
        self._is_settled = anyio.Event()
        try:
            if self.is_draining:
                await self._refuse()
                return
            returned = await self._call(app, self.receive, self.send)
            if self._status == _SWITCHING and not self._has_left:
                await self._part(CloseCode.NORMAL_CLOSURE if returned else CloseCode.INTERNAL_ERROR)
        finally:
            if self._status == _SWITCHING:
                self._log_access(self._scope, _SWITCHING, self._began, ending=self._ending())
            else:
                self._log_answer()

    async def receive(self) -> Event:
        event = None if self._is_cut else await self._waits.run(self._receive)
        if event is None:
            self._is_told = True
            return {"type": "websocket.disconnect", "code": CloseCode.SERVICE_RESTART.value, "reason": _RESTART}
        self._note(event)
        return event

    async def send(self, event: Event) -> None:
        kind = event["type"]
        if self._is_cut:
            # Where a ``receive`` waits, that one brings the news, and with the right code.
            if kind == "websocket.send" and (self._is_told or not self._waits.pending):
                raise _Gone("the server is stopping: this WebSocket was closed with 1012")
            return
        if kind == "websocket.send":
            await self._send(event)
        elif kind == "websocket.accept":
            self._status = _SWITCHING
            try:
                await self._send(event)
            except Exception:
                self._status = None
                raise
            self._log_answer()
        elif kind == "websocket.close" and self._status == _SWITCHING:
            if self._code is None:
                self._code = event.get("code", CloseCode.NORMAL_CLOSURE)
            await self._send(event)
        else:
            if kind == "websocket.close":
                self._status = 403
            elif kind == "websocket.http.response.start":
                self._status = event["status"]
            await self._send(event)
            if kind == "websocket.close" or (kind == "websocket.http.response.body" and not event.get("more_body")):
                self._log_answer()

    async def drain(self) -> None:
        try:
            if self._has_left or self._is_cut:
                return
            if self._status is None:
                self._is_cut = True
                self._waits.interrupt()
                await self._refuse()
            elif self._status == _SWITCHING and self._code is None:
                self._is_cut = True
                self._waits.interrupt()
                await self._close(CloseCode.SERVICE_RESTART, _RESTART)
        except Exception as error:
            _log.debug("a WebSocket could not be closed", exc_info=error)
        finally:
            self._is_settled.set()

    def _note(self, event: Event) -> None:
        if event["type"] == "websocket.disconnect":
            self._has_left = True
            code = event.get("code", CloseCode.NO_STATUS_RECEIVED)
            # Hypercorn says 1006 of every client, whatever its Close frame said, and also where there was none.
            if self._code is None and code != CloseCode.ABNORMAL_CLOSURE:
                self._code = code

    def _ending(self) -> "_Ending":
        if self._code is None:
            return _Ending("closed by the client")
        return _Ending(f"closed {int(self._code)}", int(self._code))

    async def _refuse(self) -> None:
        self._status = 503
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await self._send({"type": "websocket.http.response.start", "status": self._status, "headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": b""})
        self._log_answer()

    async def _close(self, code: CloseCode, reason: str) -> None:
        self._code = code
        await self._send({"type": "websocket.close", "code": code.value, "reason": reason})

    async def _part(self, code: CloseCode) -> None:
        """
        Close where the app has not, and wait for the client's answer.

        A server that hangs up on a client which is still sending resets the connection, and the Close frame is lost.

        Source: RFC 6455 §7.1.1.
        """
        if self._is_cut:
            await self._is_settled.wait()
        elif self._code is None:
            await self._close(code, DEFAULT_REASONS.get(code, ""))
        with anyio.move_on_after(CLOSE_TIMEOUT):
            while not self._has_left:
                self._note(await self._receive())


class _Ending(NamedTuple):
    """How a WebSocket ended: in words, and its close code where it is known."""

    text: str
    code: int | None = None


class _LogAccess(Protocol):
    def __call__(self, scope: Scope, status: int | None, began: float, *, ending: _Ending | None = None) -> None: ...


def _log_access(scope: Scope, status: int | None, began: float, *, ending: _Ending | None = None) -> None:
    """
    Log the answer to a request or a handshake, or with ``ending`` the end of a WebSocket.

    The path is the one on the wire: percent-encoded, so that no client can write a line of its own.
    """
    if not _access.isEnabledFor(logging.INFO):
        return
    duration_ms = round((time.perf_counter() - began) * 1000, 1)
    client = _client(scope)
    outcome = ending.text if ending is not None else status or "-"
    line = _request_line(scope)
    fields: dict[str, object] = {
        "client": client,
        "method": _method(scope),
        "path": _target(scope),
        "http_version": scope.get("http_version", "1.1"),
        "status": status,
        "duration_ms": duration_ms,
    }
    if ending is not None:
        fields["close_code"] = ending.code
    _access.info('%s "%s" %s %s', client, line, outcome, _duration(duration_ms), extra={"access": fields})


def _log_nothing(scope: Scope, status: int | None, began: float, *, ending: _Ending | None = None) -> None:
    """The access log is off."""


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.1f}ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f}s"


def _request_line(scope: Scope) -> str:
    return f"{_method(scope)} {_target(scope)} HTTP/{scope.get('http_version', '1.1')}"


def _method(scope: Scope) -> str:
    return "WebSocket" if scope["type"] == "websocket" else str(scope["method"])


def _target(scope: Scope) -> str:
    query: bytes = scope["query_string"]
    target: bytes = scope["raw_path"] + (b"?" + query if query else b"")
    text = target.decode("latin-1")
    return text if text.isascii() and text.isprintable() else text.encode("unicode_escape").decode()


def _client(scope: Scope) -> str:
    client = scope.get("client")
    if client is None:
        return "unix"
    host, port = client[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_event_stream(start: Event) -> bool:
    for name, value in start.get("headers", ()):
        if bytes(name).lower() == b"content-type":
            return bytes(value).strip().lower().startswith(b"text/event-stream")
    return False


def _is_gone(error: BaseException | None) -> bool:
    """Whether it comes from ``_Gone``: itself, what a framework made of it, or a group of such."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_gone(inner) for inner in error.exceptions)
    while error is not None and not isinstance(error, _Gone):
        error = error.__cause__ or error.__context__
    return error is not None
