"""One connection that speaks HTTP/1.1, until it becomes a WebSocket."""

import asyncio
import select
from time import perf_counter
from typing import Any, Final
from urllib.parse import unquote

from microws.closing import CloseCode
from microws.interfaces import Receive, Scope, Send
from microws.server.exchange import Exchange
from microws.server.lingering import Lingering
from microws.server.request_parser import Refused, RequestHead, RequestParser
from microws.server.response_head import date_line, response_head
from microws.server.shared import Shared
from microws.server.upgrade import Upgrade
from microws.server.writing import Addresses, addresses_of, is_ready, socket_of

__all__ = ["HTTP1"]

# Bytes of further requests that wait for the answer to the first one before reading pauses.
_MAX_UNREAD_BYTES: Final = 64 << 10
# Bytes of a body that the app has not read before it answered, which are discarded to keep the connection.
_MAX_DISCARDED_BYTES: Final = 1 << 20

_REQUEST_TIMEOUT: Final = 408


class HTTP1(Lingering):
    """
    A connection. One request is read at a time; what comes behind it waits, unread, for the end of its response.

    Args:
        shared: With the connections of the worker.

    Attributes:
        is_met: Whether the client has connected; over TLS, whether its handshake is over.

    Source: RFC 9112.
    """

    __slots__ = (
        "__weakref__",
        "_addresses",
        "_discarded",
        "_exchange",
        "_has_hung_up",
        "_is_over",
        "_is_reading",
        "_parser",
        "_unread",
        "is_met",
    )

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.is_met = False

    def connection_made(self, transport: Any) -> None:
        """A client has connected; over TLS, its handshake is over."""
        shared = self._shared
        super().__init__(transport, shared)
        self.is_met = True
        self._parser = RequestParser(shared.max_head_size)
        self._exchange: Exchange | None = None
        self._unread = b""
        self._is_reading = True
        self._is_over = self._has_hung_up = False
        self._discarded = 0
        # Not before a request has come: a WebSocket has its own.
        self._addresses: Addresses | None = None
        shared.connections.add(self)
        shared.heads.start(self)

    # Reading

    def data_received(self, data: bytes) -> None:
        """Take what the client has sent."""
        exchange = self._exchange
        if self._is_closing:
            return
        if exchange is None or not exchange.is_received:
            self._read(data)
        else:
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        self._unread += data
        if len(self._unread) >= _MAX_UNREAD_BYTES:
            self._pause_reading()

    def _read(self, data: bytes) -> None:
        parser, shared = self._parser, self._shared
        try:
            rest = parser.feed(data)
        except Refused as refusal:
            self._refuse(refusal.status, refusal.detail)
            return
        if self._exchange is None:
            if parser.head is None:
                if self._has_hung_up:
                    self.hang_up()
                elif parser.has_begun and self not in shared.heads:
                    self._stop_waiting()
                    shared.heads.start(self)
                return
            self._stop_waiting()
            if parser.head.asks_for_websocket:
                self._become_websocket(parser.head, rest)
                return
            if self._has_hung_up and not parser.is_complete:
                # The rest of its body will never come.
                self.hang_up()
                return
            self._begin(parser.head)
            if not (parser.is_complete or parser.head.expects_continue):
                shared.bodies.start(self)
        if rest:
            self._keep(rest)
        if parser.head is not None and parser.head.length == 0:
            # The exchange knows from the head that no body comes.
            parser.reset()
        else:
            self._read_body(parser)

    def _read_body(self, parser: RequestParser) -> None:
        exchange = self._exchange
        assert exchange is not None
        if not (parser.body or parser.is_complete):
            return
        if exchange.is_answered:
            self._discarded += sum(map(len, parser.body))
        elif parser.body:
            self._shared.bodies.start(self)
        exchange.feed(parser.body, is_last=parser.is_complete)
        parser.body.clear()
        if parser.is_complete:
            parser.reset()
            self._shared.bodies.stop(self)
            if exchange.is_answered:
                self._shared.discards.stop(self)
                self._next()
        elif self._discarded > _MAX_DISCARDED_BYTES:
            self.hang_up()

    def _begin(self, head: RequestHead) -> None:
        shared = self._shared
        if self._addresses is None:
            self._addresses = addresses_of(self._transport)
            self.socket = socket_of(self._transport)
        exchange = self._exchange = Exchange(self, head, self._scope_of(head), shared.log_access)
        exchange.scope["microws.exchange"] = exchange
        if self._has_hung_up:
            exchange.hang_up()
        app = shared.app if head.target != b"*" else _answer_asterisk
        shared.exchanges[exchange] = asyncio.get_running_loop().create_task(exchange.run(app, shared.ended))

    def _scope_of(self, head: RequestHead) -> Scope:
        """Source: https://asgi.readthedocs.io/en/latest/specs/www.html#http-connection-scope."""
        shared = self._shared
        client, server = self._addresses or (None, None)
        path, _, query = head.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": head.version,
            "method": head.method,
            "scheme": shared.scheme,
            "path": unquote(path.decode("ascii")) if b"%" in path else path.decode("ascii"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": client,
            "server": server,
            "state": shared.state.copy(),
            "extensions": {"microws": shared.extension},
        }

    def _become_websocket(self, head: RequestHead, rest: bytes) -> None:
        self._shared.connections.discard(self)
        if not self._is_reading:
            self._transport.resume_reading()
        shared = self._shared
        shared.engines.take(self._transport, Upgrade(head.target, head.headers, head.fields), rest, shared.state.copy())
        if self._has_hung_up:
            self._transport.abort()

    def _pause_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def await_body(self) -> None:
        """The client has been told to send the body."""
        self._shared.bodies.start(self)

    def pause_body(self) -> None:
        """The app does not keep up with the body."""
        self._shared.bodies.stop(self)
        self._pause_reading()

    def resume_body(self) -> None:
        """It has caught up."""
        if not self._is_reading and not self._is_closing:
            self._shared.bodies.start(self)
            self._resume_reading()

    # Between two requests

    def answered(self, *, keep_alive: bool) -> None:
        """The response is complete: go on with the next request, or end."""
        exchange = self._exchange
        assert exchange is not None
        if not keep_alive:
            self.hang_up()
        elif exchange.is_received:
            self._next()
        else:
            self._discarded = 0
            self._shared.bodies.stop(self)
            self._shared.discards.start(self)
            self._resume_reading()

    def _next(self) -> None:
        if not self.is_writable:
            # `resume_writing` goes on. Otherwise one client that reads nothing has any number of responses made for it.
            return
        self._exchange = None
        if self._unread:
            unread, self._unread = self._unread, b""
            self._resume_reading()
            self._read(unread)
        if self.is_silent and not self._is_closing:
            if self._has_hung_up or self.is_draining:
                self.hang_up()
            else:
                self._shared.idle.start(self)

    def _stop_waiting(self) -> None:
        shared = self._shared
        shared.heads.stop(self)
        shared.idle.stop(self)
        shared.looks.stop(self)

    @property
    def is_last(self) -> bool:
        """Whether no request after this one is answered."""
        return self._shared.is_stopping

    @property
    def is_draining(self) -> bool:
        """Whether the server stops: an event stream ends."""
        return self._shared.is_draining

    def close_idle(self) -> None:
        """End a connection on which no request is in progress, unless one has come that is not read yet."""
        if self._is_closing or not self.is_silent:
            return
        if is_ready(self._transport, select.POLLIN):
            self._shared.looks.start(self)
        else:
            self.hang_up()

    @property
    def is_silent(self) -> bool:
        """Whether no request has come, and no part of one."""
        return self._exchange is None and not self._parser.has_begun

    # The end

    def _refuse(self, status: int, detail: str) -> None:
        """Refuse a request, unless its response has begun. The server reads nothing more from the client."""
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
            scope: Scope = {
                "type": "http",
                "client": addresses_of(self._transport)[0],
                "method": method.decode(),
                "raw_path": path,
            }
            scope["query_string"] = query
            self._shared.log_access(scope, status, perf_counter())
        self.hang_up(has_unread=True)

    def time_out(self) -> None:
        """A head, or the next piece of a body, did not come in time."""
        exchange = self._exchange
        if exchange is not None and exchange.status is not None and not exchange.is_waiting:
            # The app answers without the rest of the body.
            self._shared.bodies.start(self)
        elif self._parser.has_begun:
            self._refuse(_REQUEST_TIMEOUT, "the request did not come in time")
        else:
            self.hang_up()

    def resume_writing(self) -> None:
        """The client has taken most of what was sent."""
        super().resume_writing()
        exchange = self._exchange
        if exchange is not None and exchange.is_answered and exchange.is_received:
            self._next()

    def hang_up(self, *, has_unread: bool = False) -> None:
        """Send nothing more. Where the client may still be sending, discard it until it has closed too."""
        if self._is_closing or self._transport.is_closing():
            return
        exchange, shared = self._exchange, self._shared
        has_unread = has_unread or bool(self._unread) or (exchange is not None and not exchange.is_received)
        self._stop_waiting()
        shared.bodies.stop(self)
        shared.discards.stop(self)
        self._unread = b""
        self._end(lingers=has_unread and not self._has_hung_up)
        if has_unread:
            self._resume_reading()

    def close(self, code: int, reason: str) -> None:
        """End an event stream whose client does not keep up; on another fault of it, drop the client. Never waits."""
        if code == CloseCode.TRY_AGAIN_LATER and self._exchange is not None:
            self._exchange.end_stream()
        else:
            self.abort()

    def eof_received(self) -> bool:
        """The client sends nothing more. It gets the answers to the requests that it has sent in full."""
        self._has_hung_up = True
        exchange = self._exchange
        if self._is_closing or exchange is None:
            return False
        if not (exchange.is_received and self._transport.can_write_eof()):
            # Over TLS no side can end alone: the transport closes itself, and takes nothing more.
            exchange.disconnect()
            return False
        exchange.hang_up()
        return True

    @property
    def _has_ended(self) -> bool:
        return self._is_over

    def connection_lost(self, _: Exception | None) -> None:
        """The transport has ended."""
        self.socket = None
        self._is_over = self._is_closing = True
        self._forget()
        self._tell_change()
        # It has this connection, too, and is not to be left to the garbage collector.
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.disconnect()
        if self._shared.on_end is not None:
            self._shared.on_end()

    def _forget(self) -> None:
        shared = self._shared
        shared.connections.discard(self)
        for deadlines in shared.all_deadlines:
            deadlines.stop(self)


async def _answer_asterisk(scope: Scope, receive: Receive, send: Send) -> None:
    """``OPTIONS *`` asks nothing of any resource (RFC 9110 §9.3.7)."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
