"""Every open request and WebSocket of a worker: what the access log says of each, and how each ends in a drain."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio

from microws.closing import DEFAULT_REASONS, CloseCode
from microws.interfaces import ASGIApplication, Event, Receive, Scope, Send, reported_id
from microws.server.access_log import AccessLog, Ending, log_access, log_nothing, request_line
from microws.server.failures import is_failure
from microws.server.gone import Gone, is_gone
from microws.server.heads import as_last, empty_and_last, head_size, is_event_stream, with_header_list
from microws.server.link import Link
from microws.server.settings import MAX_HEAD_BYTES
from microws.server.waits import Waits

__all__ = ["CLOSE_TIMEOUT", "Connections"]

_log = logging.getLogger("microws.server")

# Seconds that a client has to answer a Close frame, as api.md's close_timeout; `websockets` waits 10.
CLOSE_TIMEOUT: Final = 5.0

# Seconds that an event may be on its way from Hypercorn to the app, at the end of a connection.
_LAST_EVENT_TIMEOUT: Final = 0.1

_SWITCHING: Final = 101
_TOO_LARGE: Final = 431
_FAILED: Final = 500
_UNAVAILABLE: Final = 503

_RESTART: Final = DEFAULT_REASONS[CloseCode.SERVICE_RESTART]


class Connections:
    """
    An ASGI app around the app that is served. Hypercorn calls it; nothing that the app raises gets further.

    A request head over 16 KiB is refused with 431: Hypercorn limits those only that come in pieces.

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
        self._log_access = log_access if access_log else log_nothing
        self._extensions = dict(extensions or {})
        self._open: set[_Request | _WebSocket] = set()
        self._is_draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send, *, link: Link | None = None) -> None:
        """Serve one request or WebSocket, which came on ``link``."""
        if self._extensions:
            scope["extensions"] = {**scope.get("extensions", {}), **self._extensions}
        kind = _WebSocket if scope["type"] == "websocket" else _Request
        # Over HTTP/2 other requests travel on the same link.
        own_link = link if scope["http_version"].startswith("1") else None
        connection = kind(scope, receive, send, link=own_link, waits=self._waits(), log_access=self._log_access)
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


class _Connection(ABC):
    """What a request and a WebSocket have in common."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, link: Link | None, waits: Waits, log_access: AccessLog
    ) -> None:
        self.is_draining = False
        self._link = link
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
        """Whether the app returned. If it raised, or said nothing, that is logged once, and answered by 500."""
        try:
            await app(self._scope, receive, send)
        except BaseException as error:
            if not is_failure(error):
                raise
            if not (self._is_cut and is_gone(error)):
                if not reported_id(error):
                    _log.error("the app raised in %s", request_line(self._scope), exc_info=error)
                if self._status is None:
                    await self._refuse(_FAILED)
            return False
        if self._status is None and not self._has_left:
            _log.error("the app returned without an answer to %s", request_line(self._scope))
            await self._refuse(_FAILED)
        return True

    @abstractmethod
    async def _refuse(self, status: int) -> None:
        """Answer with no more than a status, and close."""

    async def _take_the_rest(self) -> None:
        """
        Discard what was read of a connection that is coming to its end.

        Hypercorn keeps ten events, and waits for the app to take one where there are more: for ever, if it has ended.

        Source: Hypercorn 0.18, asyncio/task_group.py:34 and protocol/ws_stream.py:251,319.
        """
        with anyio.move_on_after(CLOSE_TIMEOUT):
            while self._link is not None and not self._link.ended.is_set():
                await self._waits.run(self._receive)

    def _log_answer(self) -> None:
        if not self._is_answered:
            self._is_answered = True
            self._log_access(self._scope, self._status, self._began)


class _Request(_Connection):
    """One HTTP request and its response."""

    _is_event_stream = False

    _is_body_complete = False

    async def run(self, app: ASGIApplication) -> None:
        try:
            if head_size(self._scope) > MAX_HEAD_BYTES:
                await self._refuse(_TOO_LARGE)
                return
            await self._call(app, self.receive, self.send)
            if self._is_cut and not self._is_answered:
                # So that the client sees a stream that has ended, not one that broke.
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            elif self._link is not None and not self._is_answered and self._has_body_left():
                self._link.on_end = self._waits.interrupt
                self._link.abort()
                await self._take_the_rest()
        finally:
            self._log_answer()

    async def receive(self) -> Event:
        event = None if self._is_cut or self._has_left else await self._waits.run(self._receive)
        if event is None:
            return {"type": "http.disconnect"}
        self._note(event)
        return event

    async def send(self, event: Event) -> None:
        if self._is_cut:
            raise Gone("the server is stopping: this event stream has ended")
        kind = event["type"]
        if kind == "http.response.start":
            event = with_header_list(event)
            self._status = event["status"]
            self._is_event_stream = is_event_stream(event)
            if self.is_draining:
                event = as_last(event, self._scope)
        if kind == "http.response.body" and not event.get("more_body", False):
            await (self._send_and_discard(event) if self._has_body_left() else self._send(event))
            self._log_answer()
            return
        await self._send(event)
        if self.is_draining:
            await self.drain()

    async def drain(self) -> None:
        self.is_draining = True
        if self._is_event_stream and not self._is_answered:
            self._is_cut = True
            self._waits.interrupt()

    def _note(self, event: Event) -> None:
        if event["type"] == "http.disconnect":
            self._has_left = True
        elif not event.get("more_body", False):
            self._is_body_complete = True

    async def _refuse(self, status: int) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": empty_and_last(self._scope)})
        await self.send({"type": "http.response.body", "body": b""})

    def _has_body_left(self) -> bool:
        """Whether the client may be sending a body that the app does not read; over HTTP/2 it need not say so."""
        if self._is_body_complete or self._has_left:
            return False
        if self._scope["method"] not in ("GET", "HEAD"):
            return True
        return any(name in (b"content-length", b"transfer-encoding") for name, _ in self._scope["headers"])

    async def _send_and_discard(self, event: Event) -> None:
        """
        Send the last event, and meanwhile discard what the client still sends.

        Hypercorn keeps ten parts of a body, and lets no response end until the app has taken one where there are more.

        Source: Hypercorn 0.18, asyncio/task_group.py:34 and protocol/http_stream.py:117-127.
        """
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._discard)
                await self._send(event)
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _discard(self) -> None:
        while not self._has_left:
            self._note(await self._receive())
        # The app may wait for that event, which comes only once.
        self._waits.interrupt()


class _WebSocket(_Connection):
    """One WebSocket, from its handshake to the end of its app."""

    _code: int | None = None
    _is_told = False
    _closed_at = 0.0
    _has_ended = False  # the link

    async def run(self, app: ASGIApplication) -> None:
        self._is_settled = anyio.Event()
        if self._link is not None:
            self._link.on_end = self._end
        try:
            if self.is_draining:
                await self._refuse(_UNAVAILABLE)
                return
            if head_size(self._scope) > MAX_HEAD_BYTES:
                await self._refuse(_TOO_LARGE)
                return
            returned = await self._call(app, self.receive, self.send)
            if self._status == _SWITCHING:
                if not self._has_left:
                    await self._part(CloseCode.NORMAL_CLOSURE if returned else CloseCode.INTERNAL_ERROR)
                await self._take_the_rest()
        finally:
            if self._status == _SWITCHING:
                self._log_access(self._scope, _SWITCHING, self._began, ending=self._ending())
            else:
                self._log_answer()

    async def receive(self) -> Event:
        event = None
        if not (self._is_cut or self._has_ended):
            event = await self._waits.run(self._receive)
        if event is None and self._is_cut:
            self._is_told = True
            return {"type": "websocket.disconnect", "code": CloseCode.SERVICE_RESTART.value, "reason": _RESTART}
        if event is None:
            event = await self._last_event()
        self._note(event)
        return event

    async def _last_event(self) -> Event:
        """
        What comes after the link has ended: messages and the disconnect that wait for the app, as a rule.

        But a frame that came before the 101, and a send that was cancelled, have Hypercorn forget to tell of the end.

        Source: Hypercorn 0.18, protocol/ws_stream.py:204,238-240,251.
        """
        event = None
        with anyio.move_on_after(_LAST_EVENT_TIMEOUT):
            event = await self._waits.run(self._receive)
        return event or {"type": "websocket.disconnect", "code": CloseCode.ABNORMAL_CLOSURE.value}

    def _end(self) -> None:
        self._has_ended = True
        self._waits.interrupt()

    async def send(self, event: Event) -> None:
        kind = event["type"]
        if self._is_cut:
            # Where a ``receive`` waits, that one brings the news, and with the right code.
            if kind == "websocket.send" and (self._is_told or not self._waits.pending):
                raise Gone("the server is stopping: this WebSocket was closed with 1012")
            return
        if kind == "websocket.send":
            await self._send(event)
        elif kind == "websocket.accept":
            self._status = _SWITCHING
            try:
                await self._send(with_header_list(event))
            except Exception:
                self._status = None
                raise
            self._log_answer()
        elif kind == "websocket.close" and self._status == _SWITCHING:
            if self._code is None:
                self._code = event.get("code", CloseCode.NORMAL_CLOSURE)
            await self._send(event)
            self._closed_at = anyio.current_time()
        else:
            if kind == "websocket.close":
                self._status = 403
            elif kind == "websocket.http.response.start":
                event = with_header_list(event)
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
                await self._refuse(_UNAVAILABLE)
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

    def _ending(self) -> Ending:
        if self._code is None:
            return Ending("closed by the client")
        return Ending(f"closed {int(self._code)}", int(self._code))

    async def _refuse(self, status: int) -> None:
        self._status = status
        headers = empty_and_last(self._scope)
        await self._send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": b""})
        self._log_answer()

    async def _close(self, code: CloseCode, reason: str) -> None:
        self._code = code
        await self._send({"type": "websocket.close", "code": code.value, "reason": reason})
        self._closed_at = anyio.current_time()

    async def _part(self, code: CloseCode) -> None:
        """
        Close where the app has not, and wait for the client's answer.

        A server that hangs up on a client which is still sending resets the connection, and the Close frame is lost.

        Source: RFC 6455 §7.1.1.
        """
        async with anyio.create_task_group() as tasks:
            # Beside the close: where a send fails, Hypercorn waits for the app to take an event.
            tasks.start_soon(self._wait_left, tasks.cancel_scope)
            if self._is_cut:
                await self._is_settled.wait()
            elif self._code is None:
                await self._close(code, DEFAULT_REASONS.get(code, ""))
            await anyio.sleep(max(0, self._closed_at + CLOSE_TIMEOUT - anyio.current_time()))
            tasks.cancel_scope.cancel()
        if not self._has_left and self._link is not None:
            self._link.abort()

    async def _wait_left(self, waiting: anyio.CancelScope) -> None:
        while not self._has_left:
            event = None if self._has_ended else await self._waits.run(self._receive)
            self._note(event or await self._last_event())
        waiting.cancel()
