"""One request and its response, as ASGI on one side and as HTTP/1.1 on the other."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from microws.interfaces import ASGIApplication, Event, Scope, Send, reported_id
from microws.server.failures import is_failure
from microws.server.gone import Gone, is_gone
from microws.server.link import Link
from microws.server.logs import AccessLog, request_line
from microws.server.request_parser import RequestHead
from microws.server.response_head import BODILESS, NO_CONTENT, check_body, check_status, read_fields, response_head
from microws.server.send_file import send_file

__all__ = ["Exchange"]

_log = logging.getLogger("microws.server")

# Bytes of a request's body that wait for the app before reading pauses; asyncio's high-water mark, on the other side.
_MAX_WAITING_BYTES: Final = 64 << 10
# From here on a body is not copied behind the head.
_BIG_BYTES: Final = 64 << 10
# Bytes of a body that are written at once: a TLS transport pauses its protocol at half as many.
_MAX_PIECE: Final = 1 << 20
# Sends in a row that find their client quick: then others have their turn.
_MAX_SENDS: Final = 64

_FAILED: Final = 500
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"


class Exchange:
    """
    One request and its response.

    Args:
        connection: That the request has come on.
        head: Of the request.
        scope: ASGI's, of the request.
        log_access: Called with the answer.

    Attributes:
        is_received: Whether the whole request has come.
        is_answered: Whether the whole response was sent.
        own_send: Besides ``send``, what gives it the body of the response as it is.
        status: Of the response, once it has begun.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html#http
    """

    __slots__ = (
        "_began",
        "_body",
        "_body_size",
        "_change",
        "_expects_continue",
        "_fields",
        "_has_body",
        "_has_hung_up",
        "_has_left",
        "_head",
        "_is_chunked",
        "_is_cut",
        "_is_event_stream",
        "_is_told",
        "_keep_alive",
        "_left",
        "_log_access",
        "_on_end",
        "_refusal",
        "_sends",
        "connection",
        "is_answered",
        "is_received",
        "own_send",
        "scope",
        "status",
    )

    def __init__(self, connection: Link, head: RequestHead, scope: Scope, log_access: AccessLog) -> None:
        self.connection = connection
        self.scope = scope
        self.is_received = head.length == 0
        self.is_answered = False
        self.status: int | None = None
        self.own_send: Send | None = None
        self._on_end: Callable[[], None] | None = None
        self._head = head
        self._log_access = log_access
        self._began = time.perf_counter()
        self._expects_continue = head.expects_continue
        self._body: list[bytes] = []
        self._body_size = 0
        # Of the request: whether the app has got its end.
        self._is_told = False
        self._has_hung_up = False
        self._has_left = False
        self._refusal: int | None = None
        self._is_cut = False
        self._change: asyncio.Event | None = None
        # Of the response: its fields while they wait for the body, and how the body is framed.
        self._fields: bytes | None = None
        self._has_body = True
        self._left: int | None = None
        self._is_chunked = False
        self._keep_alive = head.keep_alive
        self._is_event_stream = False
        self._sends = 0

    async def run(self, app: ASGIApplication, ended: Callable[["Exchange"], None]) -> None:
        """Have ``app`` answer the request; ``ended`` is called when it has ended."""
        returned = False
        try:
            await app(self.scope, self.receive, self.send)
            returned = True
        except BaseException as error:
            if not is_failure(error):
                raise
            if not ((self._has_left or self._is_cut) and is_gone(error)) and not reported_id(error):
                _log.error("the app raised in %s", request_line(self.scope), exc_info=error)
        finally:
            ended(self)
            if not self.is_answered:
                self._settle(returned=returned)
            self.scope.pop("microws.exchange", None)
            self.own_send = self._on_end = None

    def _settle(self, *, returned: bool) -> None:
        """The app has ended, and the response is not complete."""
        if self._has_left:
            self._log_access(self.scope, self._refusal or self.status, self._began)
        elif self._is_cut and not self._left:
            # So that the client sees a stream that has ended, not one that broke.
            self._write_body(b"", is_last=True)
        elif self._is_cut or (returned and self._has_hung_up):
            self._log_access(self.scope, self.status, self._began)
            self.connection.abort()
        elif self.status is None or self._fields is not None:
            if returned:
                _log.error("the app returned without an answer to %s", request_line(self.scope))
            self._fail()
        else:
            if returned:
                _log.error("the app returned before the end of its answer to %s", request_line(self.scope))
            self._log_access(self.scope, self.status, self._began)
            self.connection.abort()

    def _fail(self) -> None:
        self._start({"status": _FAILED, "headers": [(b"content-length", b"0")]})
        self._write_body(b"", is_last=True)

    # The request

    async def receive(self) -> Event:
        """ASGI's ``receive``."""
        if self._expects_continue and not (self.is_received or self._body or self.status or self.connection.is_lost):
            self._expects_continue = False
            self.connection.write(_CONTINUE)
            self.connection.await_body()
        while True:
            if self._body:
                body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
                self._body.clear()
                if self._body_size >= _MAX_WAITING_BYTES:
                    self.connection.resume_body()
                self._body_size = 0
                self._is_told = self.is_received
                return {"type": "http.request", "body": body, "more_body": not self.is_received}
            if self.is_received and not self._is_told:
                self._is_told = True
                return {"type": "http.request", "body": b"", "more_body": False}
            if self._has_hung_up or self._is_cut or self.is_answered or (self._expects_continue and self.status):
                return {"type": "http.disconnect"}
            if self._change is None:
                self._change = asyncio.Event()
            await self._change.wait()

    @property
    def is_waiting(self) -> bool:
        """Whether the app waits for the request's body, or for the client's end."""
        return self._change is not None

    def feed(self, pieces: list[bytes], *, is_last: bool) -> None:
        """Take pieces of the request's body."""
        if not self.is_answered:
            self._body += pieces
            self._body_size += sum(map(len, pieces))
            if self._body_size >= _MAX_WAITING_BYTES and not is_last:
                self.connection.pause_body()
        self.is_received = is_last
        self._tell_change()

    def hang_up(self) -> None:
        """The client sends nothing more. It may still read: a response that is made already is sent."""
        self._has_hung_up = True
        self._tell_end()

    def disconnect(self, refusal: int | None = None) -> None:
        """The client has left; or the server itself has answered, with the status ``refusal``."""
        self._has_left = True
        self._refusal = refusal
        self.hang_up()

    def drain(self) -> None:
        """The server stops: an event stream ends where it stands."""
        if self._is_event_stream and not self.is_answered:
            self._cut()

    def end_stream(self) -> None:
        """End an event stream whose client does not keep up, and its connection: the client comes back."""
        self._keep_alive = False
        self._cut()

    def _cut(self) -> None:
        self._is_cut = True
        self._tell_end()

    def watch_end(self, on_end: Callable[[], None]) -> None:
        """Call ``on_end`` once, when the client has left or the server ends the response; at once where it has."""
        self._on_end = on_end
        if self._has_hung_up or self._is_cut:
            self._tell_end()

    def _tell_end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()
        self._tell_change()

    def _tell_change(self) -> None:
        if self._change is not None:
            self._change.set()
            self._change = None

    # The response

    async def send(self, event: Event) -> None:
        """
        ASGI's ``send``. Waits while the client does not take what is sent.

        Raises:
            OSError: The client has left, or the server has ended this event stream.
            RuntimeError: An event that has no place here.
            TypeError, ValueError: The event has a wrong type or value.
        """
        kind = event["type"]
        if kind == "http.response.body":
            body, is_last = event.get("body", b""), not event.get("more_body", False)
            if type(body) is not bytes:
                body = check_body(body)
            if len(body) > _MAX_PIECE:
                await self._send_pieces(memoryview(body), is_last=is_last)
            else:
                await self._send_piece(body, is_last=is_last)
        elif kind == "http.response.start":
            if self.status is not None:
                raise RuntimeError("expected http.response.body, got a second http.response.start")
            self._start(event)
            if self.connection.is_draining:
                self.drain()
        else:
            raise RuntimeError(f"expected http.response.start or http.response.body, got {kind}")

    @property
    def takes_chunks(self) -> bool:
        """Whether a body without a length is sent in chunks."""
        return self._head.version == "1.1"

    def respond(self, send: Send, start: Event, body: bytes) -> bool:
        """
        Send a whole response at once, in place of two events. Never waits.

        Args:
            send: What the app would send them by.
            start: The first event, with the ``content-length`` of ``body``.

        Returns:
            Whether it was sent. Not where ``send`` is that of middleware, which is to see the events; nor where a send
            waits, fails, or sends pieces.

        Raises:
            TypeError, ValueError: The status or a header has a wrong type or value.
        """
        connection = self.connection
        if send != self.send or self.status is not None or self._has_left or len(body) > _MAX_PIECE:
            return False
        if not connection.is_writable or connection.is_draining or connection.is_lost:
            return False
        self._start(start)
        self._write_body(body, is_last=True)
        return True

    def is_own(self, send: Send) -> bool:
        """Whether this gets the body as it is given to ``send``: no middleware stands between, which is to see it."""
        return send in (self.send, self.own_send)

    async def send_file(self, file: int, offset: int, count: int) -> int:
        """
        Send the whole body, ``count`` bytes of a file, without reading it. Waits while the client does not take it.

        Args:
            file: A descriptor open for reading.
            offset: Of the first byte.

        Returns:
            How many bytes were sent. ``send`` takes the rest.

        Raises:
            OSError: The client has left before.
        """
        await self.send({"type": "http.response.body", "body": b"", "more_body": True})
        if not self._has_body or self._left != count:
            return 0
        sent = await send_file(self.connection, file, offset, count)
        self._left -= sent
        if sent == count:
            await self.send({"type": "http.response.body", "body": b""})
        return sent

    async def _send_pieces(self, body: memoryview, *, is_last: bool) -> None:
        """
        Send a body of more than one piece as the client takes it.

        A TLS transport neither counts one large write nor pauses its protocol for it: a client that does not read could
        not be told from one that does.
        """
        if is_last and self._fields is not None and self._has_body and self._left is None:
            self._fields += self._choose_framing(len(body))
        for start in range(0, len(body), _MAX_PIECE):
            end = start + _MAX_PIECE
            await self._send_piece(body[start:end], is_last=is_last and end >= len(body))

    async def _send_piece(self, body: bytes | memoryview, *, is_last: bool) -> None:
        if self.status is None or self.is_answered:
            when = "before http.response.start" if self.status is None else "after the end of the response"
            raise RuntimeError(f"got http.response.body {when}")
        if self._has_left or self._is_cut or self.connection.is_lost:
            await self._refuse_send()
        self._write_body(body, is_last=is_last)
        self._sends += 1
        if not self.connection.is_writable:
            await self.connection.wait_writable()
        elif self._sends == _MAX_SENDS:
            self._sends = 0
            await asyncio.sleep(0)

    async def _refuse_send(self) -> None:
        # An app that takes no notice, and sends again and again, leaves the others their turn.
        await asyncio.sleep(0)
        if self._is_cut:
            raise Gone("the server is stopping: this event stream has ended")
        raise Gone("the client has left")

    def _start(self, event: Event) -> None:
        status = check_status(event["status"])
        fields, self._left, self._is_event_stream, asks_to_close = read_fields(event.get("headers") or ())
        self._has_body = self._head.method != "HEAD" and status not in BODILESS
        self._keep_alive = self._head.keep_alive and not asks_to_close
        if self._left is not None and status != NO_CONTENT:
            fields += b"content-length: %d\r\n" % self._left
        self._fields = fields
        self.status = status

    def _write_body(self, body: bytes | memoryview, *, is_last: bool) -> None:
        fields = self._fields
        if fields is not None and self._has_body and self._left is None:
            fields += self._choose_framing(len(body) if is_last else None)
        if not self._has_body:
            body = b""
        elif self._left is not None:
            left = self._left - len(body)
            if left < 0 or (left and is_last):
                raise RuntimeError(
                    f"expected a body as long as its content-length, got {'more' if left < 0 else 'fewer'} bytes"
                )
            self._left = left
        elif self._is_chunked:
            if body:
                body = b"".join((b"%x\r\n" % len(body), body, b"\r\n"))
            if is_last:
                body = b"".join((body, _LAST_CHUNK))
        if fields is not None:
            assert self.status is not None
            self._fields = None
            head = response_head(self.status, fields, self._connection_line())
            if len(body) < _BIG_BYTES:
                body = head + body
            else:
                self.connection.write(head)
        if body:
            self.connection.write(body)
        if is_last:
            self.is_answered = True
            self._log_access(self.scope, self.status, self._began)
            self._tell_change()
            self.connection.answered(keep_alive=self._keep_alive)
        elif self.connection.is_draining:
            self.drain()

    def _choose_framing(self, length: int | None) -> bytes:
        """
        Decide how the end of the body is told.

        Source: RFC 9112 §6.3, §7.
        """
        if length is not None:
            self._left = length
            return b"content-length: %d\r\n" % length
        self._is_chunked = self._head.version == "1.1"
        if self._is_chunked:
            return b"transfer-encoding: chunked\r\n"
        self._keep_alive = False
        return b""

    def _connection_line(self) -> bytes:
        # A client that waits for 100 Continue may still send the body, or not: the next request has no known beginning.
        if self._keep_alive and (self._expects_continue or self.connection.is_last):
            self._keep_alive = False
        if self._head.version == "1.1":
            return b"" if self._keep_alive else b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self._keep_alive else b""
