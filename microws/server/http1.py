"""
HTTP/1.1 connections: one request at a time, its response, and the hand-over to a WebSocket.

A GET goes through ``HTTP1.data_received``, ``RequestParser.feed`` and ``Exchange.run``, which calls the app; its
response through ``Exchange.send`` (or ``respond``) to ``transport.write``.
"""

import asyncio
import logging
import os
import select
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from time import perf_counter
from typing import Any, Final
from urllib.parse import unquote
from weakref import WeakSet

if sys.platform != "win32":
    import fcntl
    import termios

from anyio.to_thread import run_sync

from microws.closing import CloseCode
from microws.connection.connection import Signal
from microws.connection.deadlines import Deadlines
from microws.connection.socket import Addresses, addresses_of, is_ready, socket_of
from microws.interfaces import ASGIApplication, Event, Limits, Receive, Scope, Send
from microws.page_cache import is_cached
from microws.server.acceptor import Share
from microws.server.failures import ClientDisconnected, log_failure
from microws.server.logs import log_access
from microws.server.request_line import request_line
from microws.server.request_parser import Refused, RequestHead, RequestParser
from microws.server.response_head import (
    BODILESS,
    NO_CONTENT,
    check_body,
    check_status,
    date_line,
    read_fields,
    response_head,
)
from microws.server.settings import Settings
from microws.server.websockets import WebSockets
from microws.upgrade import Upgrade

__all__ = ["HTTP1", "Exchange", "ServerState"]

_log = logging.getLogger("microws.server")

# Bytes of further requests that are kept before reading pauses.
_MAX_QUEUED_BYTES: Final = 64 << 10
# Bytes that are discarded, to keep the connection, of a body that the app did not read before it answered.
_MAX_DISCARDED_BYTES: Final = 1 << 20
# Bytes of a request body that the app has not read yet before reading pauses; asyncio's high-water mark for writing.
_MAX_UNREAD_BODY: Final = 64 << 10
# From this size on a body is not copied behind the head.
_BIG_BYTES: Final = 64 << 10
# Bytes of a body that are written at once: a TLS transport pauses its protocol at half as many.
_MAX_PIECE: Final = 1 << 20
# After so many sends in a row that need not wait for the client, other tasks run.
_MAX_SENDS: Final = 64
# Bytes of a file that are sent in one call, in some 50 us. Then other tasks run.
_FILE_PIECE: Final = 256 << 10

# Seconds that a client has for a request's head.
_HEAD_TIMEOUT: Final = 10.0
# Seconds in which the rest of a body is discarded that the app did not read; nginx: 5 s, or 30 s in all.
_DISCARD_TIMEOUT: Final = 1.0
# Seconds until an idle connection is closed on which a request was arriving when its time was over.
_RECHECK_INTERVAL: Final = 0.5
# Seconds that a client has to close a connection that the server has ended.
_CLOSE_TIMEOUT: Final = 5.0

# Over TLS, bytes that a client may still have to read when its connection is closed; seconds between two looks at them.
_LAST_BYTES: Final = 64 << 10
_FLUSH_INTERVAL: Final = 0.1

# Whether to linger, and the seconds: closing a socket then resets its connection.
_LINGER_NOT: Final = struct.pack("ii", 1, 0)

_REQUEST_TIMEOUT: Final = 408
_FAILED: Final = 500
# As a number: asking whether ``bytes`` contain other ``bytes`` takes ten times as long.
_PERCENT: Final = ord("%")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"


class HTTP1(asyncio.Protocol):
    """
    A connection. It reads one request at a time and keeps what follows it until the response is complete.

    Args:
        server: State that the connections of the worker share.

    Attributes:
        is_half_closed: Whether the client has closed its side. It gets the responses to complete requests.
        is_writable: Whether the client reads fast enough. Otherwise what is sent fills the transport's buffer.
        on_writable: Called when ``is_writable`` has become true again.
        buffered: Returns the number of bytes that were sent and that the system has not taken yet.
        socket: Descriptor of the connection's socket; ``None`` over TLS and after the end.
        write: Send encoded bytes. Not after the end.

    Source: RFC 9112.
    """

    def __init__(self, server: "ServerState") -> None:
        self.server = server
        if server.tls is not None:
            server.handshakes.add(self)

    def connection_made(self, transport: Any) -> None:
        """The client has connected; over TLS, the handshake is complete."""
        server = self.server
        if server.tls is not None:
            server.handshakes.discard(self)
        self.is_half_closed: bool = False
        self.is_writable: bool = True
        self.on_writable: Callable[[], None] | None = None
        # The transport's own methods: a broadcast calls them for each connection.
        self.write: Callable[[bytes | memoryview], None] = transport.write
        self.buffered: Callable[[], int] = transport.get_write_buffer_size
        self.socket: int | None = None
        self._transport: asyncio.Transport = transport
        self._is_closing = self._has_ended = False
        self._unread = 0
        # Set when ``is_writable`` or ``_has_ended`` changes.
        self._changed = Signal()
        self._parser = RequestParser(server.settings.max_head_size)
        self._exchange: Exchange | None = None
        # Received after the request that is being answered.
        self._queued = b""
        self._is_reading = True
        self._discarded = 0
        # Read for the first HTTP request: a WebSocket reads its own.
        self._addresses: Addresses | None = None
        # The one time-out of the reading side that runs.
        self._timer: Deadlines[HTTP1] | None = None
        server.connections.add(self)
        self.set_timer(server.heads)

    def set_timer(self, timer: "Deadlines[HTTP1] | None") -> None:
        """Replace the time-out of the reading side."""
        if self._timer is not None:
            self._timer.stop(self)
        self._timer = timer
        if timer is not None:
            timer.start(self)

    # Reading

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent."""
        if self._is_closing:
            return
        if self._exchange is None or not self._exchange.is_received:
            self._read(data)
        else:
            self._queue(data)

    def _queue(self, data: bytes) -> None:
        self._queued += data
        if len(self._queued) >= _MAX_QUEUED_BYTES:
            self.pause_reading()

    def _read(self, data: bytes) -> None:
        parser = self._parser
        try:
            rest = parser.feed(data)
        except Refused as refusal:
            self._refuse(refusal.status, refusal.detail)
            return
        head = parser.head
        if self._exchange is None:
            if head is None:
                if self.is_half_closed:
                    self.finish()
                elif parser.has_begun and self._timer is not self.server.heads:
                    self.set_timer(self.server.heads)
                return
            if head.asks_for_websocket:
                self._become_websocket(head, rest)
                return
            if self.is_half_closed and not parser.is_complete:
                self.finish()
                return
            waits_for_body = not (parser.is_complete or head.expects_continue)
            self.set_timer(self.server.bodies if waits_for_body else None)
            self._begin(head)
        if rest:
            self._queue(rest)
        if head is not None and head.length == 0:
            parser.reset()
        elif parser.body or parser.is_complete:
            self._read_body()

    def _begin(self, head: RequestHead) -> None:
        server = self.server
        if self._addresses is None:
            self._addresses = addresses_of(self._transport)
            self.socket = socket_of(self._transport)
        exchange = self._exchange = Exchange(self, head, self._scope_of(head))
        exchange.scope["microws.exchange"] = exchange
        app = server.app if head.target != b"*" else _answer_asterisk
        server.exchanges[exchange] = asyncio.get_running_loop().create_task(exchange.run(app))

    def _scope_of(self, head: RequestHead) -> Scope:
        """Source: https://asgi.readthedocs.io/en/latest/specs/www.html#http-connection-scope."""
        server = self.server
        client, address = self._addresses or (None, None)
        path, _, query = head.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": head.version,
            "method": head.method,
            "scheme": "http" if server.tls is None else "https",
            "path": unquote(path.decode("ascii")) if _PERCENT in path else path.decode("ascii"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": client,
            "server": address,
            "state": server.state.copy(),
            "extensions": {"microws": server.extension},
        }

    def _read_body(self) -> None:
        parser, exchange = self._parser, self._exchange
        assert exchange is not None
        body = b"".join(parser.body)
        parser.body.clear()
        if exchange.is_answered:
            self._discarded += len(body)
        elif body:
            self.set_timer(self.server.bodies)
        exchange.feed(body, is_last=parser.is_complete)
        if parser.is_complete:
            parser.reset()
            self.set_timer(None)
            if exchange.is_answered:
                self._next()
        elif self._discarded > _MAX_DISCARDED_BYTES:
            self.finish()

    def _become_websocket(self, head: RequestHead, rest: bytes) -> None:
        """Hand the transport over: from here on this object gets no more calls."""
        server = self.server
        self.set_timer(None)
        server.connections.discard(self)
        server.websockets.take(
            self._transport, Upgrade(head.target, head.headers, head.fields), rest, server.state.copy()
        )
        if self.is_half_closed:
            self._transport.abort()

    def pause_reading(self) -> None:
        """Leave what the client sends to the system's buffers."""
        if self._is_reading:
            self._is_reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if not self._is_reading:
            self._is_reading = True
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def resume_body(self) -> None:
        """Read on after a pause because the app did not read the body."""
        if not self._is_reading and not self._is_closing:
            self.set_timer(self.server.bodies)
            self.resume_reading()

    # Between two requests

    def answered(self, *, keep_alive: bool) -> None:
        """Go on with the next request after a complete response, or end the connection."""
        assert self._exchange is not None
        if not keep_alive:
            self.finish()
        elif self._exchange.is_received:
            self._next()
        else:
            self._discarded = 0
            self.set_timer(self.server.discards)
            self.resume_reading()

    def _next(self) -> None:
        if not self.is_writable:
            # ``resume_writing`` calls this again. Otherwise responses would pile up for a client that reads none.
            return
        self._exchange = None
        # Paused if the app did not read a body, or if much was queued.
        self.resume_reading()
        if self._queued:
            queued, self._queued = self._queued, b""
            self._read(queued)
            if not self.is_idle:
                return
        if self.is_half_closed or self.server.is_draining:
            self.finish()
        elif not self._is_closing:
            self.set_timer(self.server.idle)

    def close_idle(self) -> None:
        """End a connection without a request, unless one is in the socket's buffer."""
        if self._is_closing or not self.is_idle:
            return
        if is_ready(self._transport, select.POLLIN):
            self.set_timer(self.server.rechecks)
        else:
            self.finish()

    @property
    def is_idle(self) -> bool:
        """Whether no request, and no part of one, has been received and is not answered."""
        return self._exchange is None and not self._parser.has_begun

    # Writing

    @property
    def is_lost(self) -> bool:
        """Whether ``connection_lost`` follows. Nothing may be written: asyncio would log a warning."""
        return self._transport.is_closing()

    async def wait_writable(self) -> None:
        """Wait until the client has read most of what was sent, or has disconnected."""
        while not self.is_writable and not self._has_ended:
            await self._changed.wait()

    async def wait_written(self) -> None:
        """Wait until the system has all that was sent, or the client has disconnected. Not over TLS."""
        # With this limit the transport resumes writing when its buffer is empty; a TLS transport never would.
        self._transport.set_write_buffer_limits(high=0)
        await self.wait_writable()
        self._transport.set_write_buffer_limits()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is sent to."""
        self.is_writable = False
        self._watch_progress(self.server.writes)

    def resume_writing(self) -> None:
        """The client has read most of what it was sent."""
        self.server.writes.stop(self)
        self.is_writable = True
        self._changed.set()
        if self.on_writable is not None:
            self.on_writable()
        exchange = self._exchange
        if exchange is not None and exchange.is_answered and exchange.is_received:
            # Not now: if the connection ends with this response, asyncio would call ``connection_lost`` twice.
            asyncio.get_running_loop().call_soon(self._next_after, exchange)

    def _next_after(self, exchange: "Exchange") -> None:
        if self._exchange is exchange:
            self._next()

    def _watch_progress(self, deadlines: "Deadlines[HTTP1]") -> None:
        self._unread = _unread_bytes(self._transport)
        deadlines.start(self)

    # The end

    def _refuse(self, status: int, detail: str) -> None:
        """Answer in place of the app, unless its response has begun. The server reads nothing more from the client."""
        exchange = self._exchange
        if exchange is not None and exchange.status is not None:
            self.abort()
            return
        body = detail.encode() + b"\n"
        fields = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
        self._transport.write(response_head(status, fields, date_line()) + body)
        if exchange is not None:
            exchange.disconnect(status)
        else:
            method, target = self._parser.line
            path, _, query = target.partition(b"?")
            scope: Scope = {"type": "http", "method": method.decode(), "raw_path": path, "query_string": query}
            scope["client"] = addresses_of(self._transport)[0]
            log_access(scope, status, perf_counter())
        self.finish(has_unread=True)

    def time_out(self) -> None:
        """Refuse a request whose head, or the next piece of its body, was not received in time."""
        exchange = self._exchange
        if exchange is not None and exchange.status is not None and not exchange.is_waiting:
            # The app responds without the rest of the body.
            self.set_timer(self.server.bodies)
        elif self._parser.has_begun:
            self._refuse(_REQUEST_TIMEOUT, "the request did not come in time")
        else:
            self.finish()

    def finish(self, *, has_unread: bool = False) -> None:
        """
        End the connection when all that was sent has left.

        Args:
            has_unread: Whether the client may still be sending. What it sends is discarded until it closes, because
                closing the socket before would reset the connection, and the client might lose the response.

        Source: RFC 9112 §9.6.
        """
        if self._is_closing or self._transport.is_closing():
            return
        self._is_closing = True
        exchange, server, transport = self._exchange, self.server, self._transport
        has_unread = has_unread or bool(self._queued) or (exchange is not None and not exchange.is_received)
        self.set_timer(None)
        self._queued = b""
        if not transport.can_write_eof():  # TLS
            self._watch_progress(server.writes)
            self.close_when_read()
        elif has_unread and not self.is_half_closed:
            server.writes.stop(self)
            self._watch_progress(server.closings)
            try:
                transport.write_eof()
            except OSError:
                # On asyncio: the client has reset the connection, and the event loop has not seen it yet.
                transport.abort()
        else:
            if self.buffered():
                self._watch_progress(server.writes)
            transport.close()
        if has_unread:
            self.resume_reading()

    def check_progress(self) -> None:
        """
        Drop a client that has read nothing since the last check, and what the system has buffered for it: that would
        stay for minutes.

        Source: nginx's ``reset_timedout_connection``.
        """
        # The transport buffers nothing of a file, which is sent without it.
        if (self.buffered() or not self.is_writable or self._is_closing) and not self._progresses(self.server.writes):
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            self.abort()

    def end_linger(self) -> None:
        """Drop a client that has not closed in time, unless it still reads."""
        if not self._progresses(self.server.closings):
            self.abort()

    def _progresses(self, deadlines: "Deadlines[HTTP1]") -> bool:
        """Whether the client has read something since the last look. If so, the next look is after ``deadlines``."""
        before = self._unread
        self._unread = _unread_bytes(self._transport)
        if self._unread < before:
            deadlines.start(self)
        return self._unread < before

    def close_when_read(self) -> None:
        """Over TLS, close when the client has read nearly everything: from then on it has a second for the rest."""
        if _unread_bytes(self._transport) <= _LAST_BYTES:
            self._transport.close()
        else:
            self.server.flushes.start(self)

    def abort(self) -> None:
        """Drop the connection."""
        self._transport.abort()

    def close(self, code: int, reason: str) -> None:
        """End an event stream whose client is too slow (1013); drop the connection for other codes. Never waits."""
        if code == CloseCode.TRY_AGAIN_LATER and self._exchange is not None:
            self._exchange.end_stream()
        else:
            self.abort()

    def eof_received(self) -> bool:
        """The client has closed its side."""
        self.is_half_closed = True
        exchange = self._exchange
        if self._is_closing or exchange is None:
            return False
        if not (exchange.is_received and self._transport.can_write_eof()):
            # A TLS transport closes itself, and sends nothing more.
            exchange.disconnect()
            return False
        exchange.report_end()
        return True

    def connection_lost(self, _: Exception | None) -> None:
        """The transport has ended."""
        self.socket = None
        self._has_ended = self._is_closing = True
        self.set_timer(None)
        for deadlines in (self.server.writes, self.server.flushes, self.server.closings):
            deadlines.stop(self)
        self.server.connections.discard(self)
        self._changed.set()
        # The exchange refers to this object: without this, only the garbage collector would free the two.
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.disconnect()
        if self.server.on_end is not None:
            self.server.on_end()


async def _answer_asterisk(scope: Scope, receive: Receive, send: Send) -> None:
    """``OPTIONS *`` asks for nothing of any resource (RFC 9110 §9.3.7)."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


class Exchange:
    """
    One request and its response: the app's ``receive`` and ``send``. It outlives its turn on the connection if the app
    still runs after its response.

    Args:
        connection: Which received the request.
        head: Of the request.
        scope: The request's ASGI scope.

    Attributes:
        is_received: Whether the whole request was received.
        is_answered: Whether the whole response was sent.
        own_send: Another function, besides ``send``, that passes the response body on unchanged.
        status: Of the response, once it has begun.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html#http
    """

    def __init__(self, connection: HTTP1, head: RequestHead, scope: Scope) -> None:
        self.connection = connection
        self.scope = scope
        self.is_received: bool = head.length == 0
        self.is_answered: bool = False
        self.status: int | None = None
        self.own_send: Send | None = None
        self._server = connection.server
        self._head = head
        self._began = perf_counter()
        self._on_end: Callable[[], None] | None = None
        self._change: asyncio.Event | None = None
        # The request's body: what the app has not read, and whether it has got the end.
        self._expects_continue = head.expects_continue
        self._body: list[bytes] = []
        self._body_size = 0
        self._end_delivered = False
        self._is_disconnected = False
        self._ended_by_server = False
        # The status that the server itself has answered with.
        self._refusal: int | None = None
        # The response: header lines that wait for the body, and how the body is framed.
        self._fields: bytes | None = None
        self._has_body = True
        self._left: int | None = None
        self._is_chunked = False
        self._keep_alive = head.keep_alive
        self._is_event_stream = False
        self._sends = 0

    async def run(self, app: ASGIApplication) -> None:
        """Call ``app`` for the request. Answers with 500 if it fails before its response."""
        returned = False
        try:
            await app(self.scope, self.receive, self.send)
            returned = True
        except BaseException as error:
            log_failure(error, self.scope, has_ended=self._is_disconnected or self._ended_by_server)
        finally:
            self._server.ended(self)
            if not self.is_answered:
                self._settle(returned=returned)
            # The scope refers to this object, which refers to the scope.
            self.scope.pop("microws.exchange", None)
            self.own_send = self._on_end = None

    def _settle(self, *, returned: bool) -> None:
        """The app has ended, and its response is not complete."""
        has_begun = self.status is not None and self._fields is None
        if self._is_disconnected:
            self._log_answer()
        elif self._ended_by_server and not self._left:
            # The client sees a stream that has ended, not a broken one.
            self._write_body(b"", is_last=True)
        elif self._ended_by_server or (returned and self.connection.is_half_closed):
            self._drop()
        else:
            if returned:
                when = "before the end of its answer" if has_begun else "without an answer"
                _log.error("the app returned %s to %s", when, request_line(self.scope))
            if has_begun:
                self._drop()
            else:
                self._start({"status": _FAILED, "headers": [(b"content-length", b"0")]})
                self._write_body(b"", is_last=True)

    def _drop(self) -> None:
        self._log_answer()
        self.connection.abort()

    def _log_answer(self) -> None:
        log_access(self.scope, self._refusal or self.status, self._began)

    # The request

    async def receive(self) -> Event:
        """ASGI's ``receive``."""
        if self._expects_continue and not (self.is_received or self._body or self.status or self.connection.is_lost):
            self._expects_continue = False
            self.connection.write(_CONTINUE)
            self.connection.set_timer(self._server.bodies)
        while True:
            if self._body or (self.is_received and not self._end_delivered):
                body = b"".join(self._body)
                self._body.clear()
                if self._body_size >= _MAX_UNREAD_BODY:
                    self.connection.resume_body()
                self._body_size = 0
                self._end_delivered = self.is_received
                return {"type": "http.request", "body": body, "more_body": not self.is_received}
            if self._has_ended or self.is_answered or (self._expects_continue and self.status):
                return {"type": "http.disconnect"}
            if self._change is None:
                self._change = asyncio.Event()
            await self._change.wait()

    @property
    def is_waiting(self) -> bool:
        """Whether the app waits for the request's body, or for the disconnect."""
        return self._change is not None

    def feed(self, body: bytes, *, is_last: bool) -> None:
        """Take a piece of the request's body."""
        if body and not self.is_answered:
            self._body.append(body)
            self._body_size += len(body)
            if self._body_size >= _MAX_UNREAD_BODY and not is_last:
                self.connection.set_timer(None)
                self.connection.pause_reading()
        self.is_received = is_last
        self._wake()

    @property
    def _has_ended(self) -> bool:
        """Whether the app is told of a disconnect."""
        return self._is_disconnected or self._ended_by_server or self.connection.is_half_closed

    def disconnect(self, refusal: int | None = None) -> None:
        """Nothing more can be sent: the client has left, or the server has answered with the status ``refusal``."""
        self._is_disconnected = True
        self._refusal = refusal
        self.report_end()

    def drain(self) -> None:
        """End an event stream, because the server stops."""
        if self._is_event_stream and not self.is_answered:
            self._ended_by_server = True
            self.report_end()

    def end_stream(self) -> None:
        """End an event stream whose client is too slow, and its connection: the client connects again."""
        self._keep_alive = False
        self._ended_by_server = True
        self.report_end()

    def watch_end(self, on_end: Callable[[], None]) -> None:
        """Call ``on_end`` once, when the client disconnects or the server ends the response; maybe at once."""
        self._on_end = on_end
        if self._has_ended:
            self.report_end()

    def report_end(self) -> None:
        """Tell the app of a disconnect."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()
        self._wake()

    def _wake(self) -> None:
        if self._change is not None:
            self._change.set()
            self._change = None

    # The response

    async def send(self, event: Event) -> None:
        """
        ASGI's ``send``. Waits while the client does not take what is sent.

        Raises:
            OSError: The client has disconnected, or the server has ended this event stream.
            RuntimeError: An event that is not expected now.
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
            if self._server.is_draining:
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
            send: What the app would send the events by.
            start: The first event, with the ``content-length`` of ``body``.

        Returns:
            Whether it was sent. ``False`` if middleware has wrapped ``send`` and must see the events, and if ``send``
            would wait, fail, or send several pieces.

        Raises:
            TypeError, ValueError: The status or a header has a wrong type or value.
        """
        connection = self.connection
        if send != self.send or self.status is not None or self._is_disconnected or len(body) > _MAX_PIECE:
            return False
        if not connection.is_writable or self._server.is_draining or connection.is_lost:
            return False
        self._start(start)
        self._write_body(body, is_last=True)
        return True

    def is_own(self, send: Send) -> bool:
        """Whether ``send`` passes the body on unchanged: no middleware wraps it."""
        return send in (self.send, self.own_send)

    async def send_file(self, file: int, offset: int, count: int) -> int:
        """
        Send ``count`` bytes of a file as the whole body, by ``sendfile(2)``. Waits while the client does not take them.

        Holds neither bytes nor a thread, unless a piece is not in memory: then a worker thread waits for the disk.

        Args:
            file: A descriptor open for reading.
            offset: Of the first byte.

        Returns:
            How many bytes were sent. ``send`` takes the rest. Fewer than ``count`` if the file is shorter, if the
            client disconnects, over TLS, and if the system has no ``sendfile`` for this file.

        Raises:
            OSError: The client disconnected before.

        Source: sendfile(2). CPU time for 1 MB on loopback: 0.12 ms; through the transport 0.3 ms, and 0.8 ms if a
        thread reads each piece.
        """
        await self.send({"type": "http.response.body", "body": b"", "more_body": True})
        connection = self.connection
        if not self._has_body or self._left != count or connection.socket is None or not hasattr(os, "sendfile"):
            return 0
        await connection.wait_written()
        if connection.socket is None:
            return 0
        loop = asyncio.get_running_loop()
        # A duplicate, because no loop lets others watch the descriptor of a transport. uvloop has no sendfile.
        socket = os.dup(connection.socket)
        sent = 0
        try:
            while sent < count and not connection.is_lost:
                piece = (file, offset + sent, min(_FILE_PIECE, count - sent))
                try:
                    if is_cached(*piece):
                        taken = os.sendfile(socket, *piece)
                    else:
                        taken = await run_sync(os.sendfile, socket, *piece)
                except BlockingIOError:
                    loop.add_writer(socket, connection.resume_writing)
                    connection.pause_writing()
                    try:
                        await connection.wait_writable()
                    finally:
                        loop.remove_writer(socket)
                    continue
                except OSError:
                    break
                if not taken:
                    break
                sent += taken
                await asyncio.sleep(0)
        finally:
            os.close(socket)
        self._left -= sent
        if sent == count:
            await self.send({"type": "http.response.body", "body": b""})
        return sent

    async def _send_pieces(self, body: memoryview, *, is_last: bool) -> None:
        """
        Send a body of more than one piece as the client takes it.

        A TLS transport neither counts one large write nor pauses its protocol for it: a client that does not read would
        look like one that does.
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
        if self._is_disconnected or self._ended_by_server or self.connection.is_lost:
            # Let other tasks run, even if the app ignores the error and sends again and again.
            await asyncio.sleep(0)
            if self._ended_by_server:
                raise ClientDisconnected("the server is stopping: this event stream has ended")
            raise ClientDisconnected("the client has left")
        self._write_body(body, is_last=is_last)
        self._sends += 1
        if not self.connection.is_writable:
            await self.connection.wait_writable()
        elif self._sends == _MAX_SENDS:
            self._sends = 0
            await asyncio.sleep(0)

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
            if len(body) < _BIG_BYTES:
                body = response_head(self.status, fields, self._connection_line()) + body
            else:
                self.connection.write(response_head(self.status, fields, self._connection_line()))
        if body:
            self.connection.write(body)
        if is_last:
            self.is_answered = True
            self._log_answer()
            self._wake()
            self.connection.answered(keep_alive=self._keep_alive)
        elif self._server.is_draining:
            self.drain()

    def _choose_framing(self, length: int | None) -> bytes:
        """
        Decide how the client learns of the end of the body, whose length may be unknown.

        Source: RFC 9112 §6.3, §7.
        """
        if length is not None:
            self._left = length
            return b"content-length: %d\r\n" % length
        self._is_chunked = self.takes_chunks
        if self._is_chunked:
            return b"transfer-encoding: chunked\r\n"
        self._keep_alive = False
        return b""

    def _connection_line(self) -> bytes:
        # A client that waits for 100 Continue may send the body or the next request: nothing says which.
        if self._expects_continue or self._server.is_stopping:
            self._keep_alive = False
        if self._head.version == "1.1":
            return b"" if self._keep_alive else b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self._keep_alive else b""


@dataclass(eq=False)
class ServerState:
    """
    What the connections of a worker share.

    Args:
        app: Called for each request and each WebSocket.
        settings: Limits and time-outs of a connection.
        limits: Limits of a WebSocket whose app sets none.
        state: Of the lifespan; each request and each WebSocket gets a copy.
        extension: The value of ``extensions["microws"]`` in each scope.
        tls: For connections that speak TLS.
        share: This worker's share of the connections, if there are other workers.

    Attributes:
        websockets: The WebSockets.
        connections: The open ones of HTTP/1.1.
        handshakes: Connections in the TLS handshake. They have no transport yet, and the event loop may drop them
            without a callback.
        exchanges: Those whose app runs, with their tasks.
        is_stopping: Whether each connection ends with its next response.
        is_draining: Whether idle connections and event streams end, too.
        on_end: Called when a connection or an app has ended.
        heads, bodies, idle: Time-outs of reading: for a head, for a piece of a body, between two requests.
        rechecks: Time-outs of connections on which a request was arriving when ``idle`` was over.
        discards: Time-outs of bodies that are discarded.
        writes, closings: Time-outs of clients that do not take what they are sent, or do not close.
        flushes: Connections over TLS that close when the client has read nearly everything.
    """

    app: ASGIApplication
    settings: Settings
    _: KW_ONLY
    limits: Limits
    state: dict[str, Any]
    extension: dict[str, Any]
    tls: ssl.SSLContext | None = None
    share: Share | None = None

    def __post_init__(self) -> None:
        settings = self.settings
        self.websockets: WebSockets = WebSockets(self.app, settings, limits=self.limits, extension=self.extension)
        self.connections: set[HTTP1] = set()
        self.handshakes: WeakSet[HTTP1] = WeakSet()
        self.exchanges: dict[Exchange, asyncio.Task[None]] = {}
        self.is_stopping: bool = not settings.keep_alive
        self.is_draining: bool = False
        self.on_end: Callable[[], None] | None = None
        self.heads: Deadlines[HTTP1] = Deadlines(_HEAD_TIMEOUT, HTTP1.time_out)
        self.bodies: Deadlines[HTTP1] = Deadlines(settings.body_timeout, HTTP1.time_out)
        self.idle: Deadlines[HTTP1] = Deadlines(settings.keep_alive, HTTP1.close_idle)
        self.rechecks: Deadlines[HTTP1] = Deadlines(_RECHECK_INTERVAL, HTTP1.close_idle)
        self.discards: Deadlines[HTTP1] = Deadlines(_DISCARD_TIMEOUT, HTTP1.finish)
        self.writes: Deadlines[HTTP1] = Deadlines(settings.write_timeout, HTTP1.check_progress)
        self.flushes: Deadlines[HTTP1] = Deadlines(_FLUSH_INTERVAL, HTTP1.close_when_read)
        self.closings: Deadlines[HTTP1] = Deadlines(_CLOSE_TIMEOUT, HTTP1.end_linger)

    def ended(self, exchange: Exchange, _: asyncio.Task[None] | None = None) -> None:
        """The app has ended."""
        self.exchanges.pop(exchange, None)
        if self.on_end is not None:
            self.on_end()


def _unread_bytes(transport: asyncio.Transport) -> int:
    """
    Bytes that were written to ``transport`` and that the client has not received, in the transport and in the system.

    A transport alone does not show a slow client's progress: Linux asks for more only when a third of its own buffer,
    which may be megabytes, is free.

    Source: tcp(7), ``SIOCOUTQ``, which is ``TIOCOUTQ``.
    """
    size = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sys.platform != "win32" and sock is not None:
        with suppress(OSError):
            size += int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return size
