"""The WebSocket engine: one connection as ASGI."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from microws.closing import DEFAULT_REASONS, CloseCode, check_close
from microws.handshake import check_accept, check_headers
from microws.interfaces import BYTES_LIKE, ASGIApplication, Event, Scope, reported_id
from microws.server.failures import is_failure
from microws.server.gone import Gone, is_gone
from microws.server.logs import AccessLog, Ending, request_line
from microws.server.response_head import check_status
from microws.server.upgrade import Headers, Upgrade
from microws.server.wire import Upkeep, Wire
from microws.state import CLOSED, CLOSING, CONNECTING, OPEN

__all__ = ["Engine"]

_log = logging.getLogger("microws.server")

_SWITCHING: Final = 101
_FORBIDDEN: Final = 403
_FAILED: Final = 500
_EMPTY: Final = ((b"content-length", b"0"),)


class Engine(Wire):
    """
    A ``Wire`` that an app talks to by ASGI events.

    Args:
        transport, upgrade, upkeep: Of ``Wire``.
        log_access: Called with each answer, and with the end.
        on_lost: Called when the transport has ended.

    Attributes:
        scope: The ASGI scope of the handshake, to be set before anything else happens.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket
    """

    __slots__ = ("_began", "_has_connected", "_log_access", "_on_lost", "_status", "scope")

    def __init__(
        self,
        transport: asyncio.Transport,
        upgrade: Upgrade,
        upkeep: Upkeep,
        *,
        log_access: AccessLog,
        on_lost: "Callable[[Engine], None]",
    ) -> None:
        super().__init__(transport, upgrade, upkeep)
        self.scope: Scope = {}
        self._on_lost = on_lost
        self._log_access = log_access
        self._began = time.perf_counter()
        self._has_connected = False
        self._status: int | None = None

    async def run(self, app: ASGIApplication, scope: Scope) -> None:
        """
        Have ``app`` serve the connection. When this returns, the client may not have left yet.

        Args:
            scope: Of the handshake. The engine's own is empty as soon as the client has left, perhaps before the start.
        """
        code = CloseCode.INTERNAL_ERROR
        try:
            await app(scope, self.receive, self.send)
            code = CloseCode.NORMAL_CLOSURE
            if self.state is CONNECTING:
                _log.error("the app returned without an answer to %s", request_line(scope))
        except BaseException as error:
            if not is_failure(error):
                raise
            if not reported_id(error) and (self.state in (CONNECTING, OPEN) or not is_gone(error)):
                _log.error("the app raised in %s", request_line(scope), exc_info=error)
        finally:
            if self.state is CONNECTING:
                self.refuse(_FAILED)
            elif self.state is CLOSING and self._status != _SWITCHING:
                self.abort()  # its response will never be complete
            self.close(code, DEFAULT_REASONS.get(code, ""))
            if self._status is None:
                self._log_access(scope, None, self._began)

    def refuse(self, status: int, headers: Headers = _EMPTY, body: bytes = b"") -> None:
        """AccessEntry the handshake with an HTTP response."""
        self._start_response(status, headers)
        self.send_body(body)
        self.end_response()

    def accept(self, *, subprotocol: str | None, headers: Headers) -> None:
        """AccessEntry the handshake with 101."""
        super().accept(subprotocol=subprotocol, headers=headers)
        self._answered(_SWITCHING)

    def connection_lost(self, error: Exception | None) -> None:
        """The transport has ended."""
        super().connection_lost(error)
        if self._status == _SWITCHING:
            code = int(self.close_code or CloseCode.ABNORMAL_CLOSURE)
            self._log_access(self.scope, _SWITCHING, self._began, ending=Ending(f"closed {code}", code))
        self._on_lost(self)
        # It knows the engine too.
        self.scope = {}

    def _start_response(self, status: int, headers: Headers) -> None:
        self.start_response(status, headers)
        self._answered(status)

    def _answered(self, status: int) -> None:
        self._status = status
        self._log_access(self.scope, status, self._began)

    async def receive(self) -> Event:
        """ASGI's ``receive``."""
        if not self._has_connected:
            self._has_connected = True
            return {"type": "websocket.connect"}
        if self.state is CONNECTING:
            await self.wait_answered()
        message = await self.next_message()
        if message is None:
            code = CloseCode.ABNORMAL_CLOSURE if self.close_code is None else self.close_code
            return {"type": "websocket.disconnect", "code": int(code), "reason": self.close_reason}
        if isinstance(message, str):
            return {"type": "websocket.receive", "text": message}
        return {"type": "websocket.receive", "bytes": message}

    async def send(self, event: Event) -> None:
        """
        ASGI's ``send``. Waits while the client does not take what is sent.

        Raises:
            OSError: The connection has ended.
            RuntimeError: An event that has no place here.
            TypeError, ValueError: An event that cannot be sent; nothing was sent.
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
            raise self._gone()
        match kind:
            case "websocket.accept":
                subprotocol, headers = event.get("subprotocol"), event.get("headers")
                offered = self.scope["subprotocols"]
                checked = check_accept(subprotocol=subprotocol, offered=offered, headers=headers)
                self.accept(subprotocol=subprotocol, headers=checked)
            case "websocket.close" if self.state is CONNECTING:
                self.refuse(_FORBIDDEN)
            case "websocket.close":
                code, reason = event.get("code", CloseCode.NORMAL_CLOSURE), event.get("reason") or ""
                check_close(code, reason)
                self.close(code, reason)
            case "websocket.http.response.start":
                self._start_response(check_status(event["status"]), check_headers(event.get("headers")))
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
            raise self._gone()

    def _gone(self) -> Gone:
        return Gone(f"the WebSocket is {self.state.value}, with code {self.close_code}")


def _checked_bytes(payload: Any) -> bytes:
    if not isinstance(payload, BYTES_LIKE):
        raise TypeError(f'expected websocket.send with "text" as str or "bytes" as bytes, got {type(payload).__name__}')
    return bytes(payload)
