"""
Connections to the server that is measured.

``websockets`` does the handshake and everything that is rare: control frames, fragments and errors. Whole messages,
nearly all of the traffic, are cut out of the data here: its parser takes ten times as long, and a generator that is
slower than the server measures itself.
"""

import asyncio
import json
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast, final

import h11
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidMessage, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.headers import build_host
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from microws.bench.plan import Plan, parse_url
from microws.bench.report import Result
from microws.closing import CloseCode

__all__ = [
    "FAILURES",
    "ClientConnection",
    "Endpoint",
    "HttpConnection",
    "close_all",
    "connect",
    "open_all",
    "reason_of",
]

# Concurrent handshakes, and the failures after which no more are tried: fewer than any server's backlog.
AT_A_TIME = 64
# What a connect or a POST may raise; ``reason_of`` says it in a few words.
FAILURES = (OSError, UnicodeError, h11.RemoteProtocolError)

_DATA = (Opcode.CONT, Opcode.TEXT, Opcode.BINARY)
_NORMAL_CODES = (CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY, CloseCode.NO_STATUS_RECEIVED)


class Refused(OSError):
    """The server refused a handshake or a POST. The text is a short reason."""


@final
class Endpoint:
    """
    Where to connect to, and how.

    Attributes:
        host: A name or an address; after the first connection the address that worked, which saves look-ups.
    """

    def __init__(self, plan: Plan, url: str) -> None:
        self.plan = plan
        self.uri: WebSocketURI = parse_url(url)
        self.host: str = self.uri.host
        self.options: dict[str, Any] = {"port": self.uri.port}
        if self.uri.secure:
            tls = ssl.create_default_context()
            if plan.insecure:
                tls.check_hostname = False
                tls.verify_mode = ssl.CERT_NONE
            self.options |= {"ssl": tls, "server_hostname": self.uri.host}


@final
class ClientConnection(asyncio.Protocol):
    """
    One WebSocket.

    Args:
        result: Counts how the connection ends.

    Attributes:
        opened: Done after the handshake; its result is why that failed, or ``""``.
        ended: Done when the TCP connection is closed.
        is_open: Between the handshake and the first Close frame.
        is_writable: Whether the kernel takes more data.
        on_messages: Called with the messages that arrived together.
        on_end: Called when an open connection ends, but not after ``leave``.
    """

    def __init__(self, endpoint: Endpoint, result: Result) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[str] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.is_open: bool = False
        self.is_leaving: bool = False
        self.is_writable: bool = True
        self.on_messages: Callable[[list[bytes]], None] = lambda messages: None
        self.on_end: Callable[[], None] = lambda: None
        self._result = result
        self._plan = endpoint.plan
        subprotocols = [Subprotocol(name) for name in endpoint.plan.subprotocol] or None
        self._websocket = ClientProtocol(endpoint.uri, subprotocols=subprotocols, max_size=None)
        # Whether ``websockets`` reads everything: the response, and after it if frames arrived together with it.
        self._reads_all = True
        self._rest = b""
        self._fragments: list[bytes] = []
        self._is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, because uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        request = self._websocket.connect()
        for name, value in self._plan.header:
            if name.lower() == "host":
                del request.headers[name]
            request.headers[name] = value
        self._websocket.send_request(request)
        self._flush()

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True

    def data_received(self, data: bytes) -> None:
        messages: list[bytes] = []
        if self._reads_all:
            self._receive(data, messages)
        else:
            self._split(self._rest + data, messages)
        if messages and self.is_open:
            self.on_messages(messages)
        if self._is_over and self.is_open:
            self.is_open = False
            self.on_end()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self._websocket.receive_eof()
            self.opened.set_result(reason_of(error or self._websocket.handshake_exc))
        if self.is_open or (self.is_leaving and not self._is_over):
            self._end(CloseCode.ABNORMAL_CLOSURE, reason_of(error))
        if self.is_open:
            self.is_open = False
            self.on_end()
        self.ended.set_result(None)

    def write(self, data: bytes) -> None:
        """Send ``data``; drop it if the connection has ended."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def leave(self) -> None:
        """Begin the closing handshake."""
        if self.is_open:
            self.is_open = False
            self.is_leaving = True
            self._websocket.send_close(CloseCode.NORMAL_CLOSURE)
            self._flush()

    def abort(self) -> None:
        """Drop the connection, and count nothing more."""
        self.is_open = self.is_leaving = False
        self._transport.abort()

    def _split(self, data: bytes, messages: list[bytes]) -> None:
        """Cut ``data`` into frames; keep an incomplete one."""
        position, end = 0, len(data)
        while end - position >= 2 and not self._is_over:
            length = data[position + 1] & 0x7F
            start = position + 2
            if length > 125:
                start += 2 if length == 126 else 8
                length = int.from_bytes(data[position + 2 : start])
            stop = start + length
            if stop > end:
                break
            if data[position] in (0x81, 0x82) and data[position + 1] < 0x80 and not self._fragments:
                messages.append(data[start:stop])
            else:
                self._receive(data[position:stop], messages)
            position = stop
        self._rest = data[position:]

    def _receive(self, data: bytes, messages: list[bytes]) -> None:
        """Let ``websockets`` read the response, or a frame that is not a whole message."""
        websocket = self._websocket
        websocket.receive_data(data)
        if not self.opened.done():
            if websocket.state is not State.CONNECTING:
                self.is_open = True
                self._result.handshakes += 1
                self._reads_all = data.find(b"\r\n\r\n") != len(data) - 4
                self.opened.set_result("")
            elif websocket.handshake_exc:
                self.opened.set_result(reason_of(websocket.handshake_exc))
        for event in websocket.events_received():
            if isinstance(event, Frame) and event.opcode in _DATA:
                self._fragments.append(bytes(event.data))
                if event.fin:
                    messages.append(b"".join(self._fragments))
                    self._fragments.clear()
        self._flush()
        if websocket.close_rcvd:
            self._end(websocket.close_rcvd.code, websocket.close_rcvd.reason)
        elif websocket.parser_exc:
            self._end(CloseCode.ABNORMAL_CLOSURE, f"protocol error: {websocket.parser_exc}")

    def _end(self, code: int, reason: str) -> None:
        self._is_over = True
        if not self.is_leaving or code not in _NORMAL_CODES:
            self._result.failures["closed"][f"{code:d} {reason or '(no reason)'}"] += 1
        if not self.is_leaving:
            self._transport.close()

    def _flush(self) -> None:
        self.write(b"".join(self._websocket.data_to_send()))


@final
class HttpConnection:
    """An HTTP/1.1 connection that sends one POST at a time, and reconnects when needed."""

    def __init__(self, endpoint: Endpoint) -> None:
        plan, uri = endpoint.plan, endpoint.uri
        self._endpoint = endpoint
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        headers = {"host": build_host(uri.host, uri.port, uri.secure), "content-type": "text/plain; charset=utf-8"}
        with suppress(ValueError):
            json.loads(plan.message)
            headers["content-type"] = "application/json"
        given = {name.lower() for name, _ in plan.header}
        self._headers = [*plan.header, *((name, value) for name, value in headers.items() if name not in given)]
        self._http = h11.Connection(h11.CLIENT)

    async def open(self) -> None:
        """Connect, or reconnect. Raises one of ``FAILURES``."""
        self.close()
        async with asyncio.timeout(self._endpoint.plan.timeout):
            self._streams = await asyncio.open_connection(self._endpoint.host, **self._endpoint.options)
        self._http = h11.Connection(h11.CLIENT)

    async def post(self, body: bytes) -> None:
        """Send a POST and wait for the answer. Raises one of ``FAILURES``."""
        if self._streams is None or self._streams[0].at_eof():
            await self.open()
        assert self._streams is not None
        (reader, writer), http = self._streams, self._http
        headers = [*self._headers, ("content-length", str(len(body)))]
        request = h11.Request(method="POST", target=self._endpoint.uri.resource_name, headers=headers)
        answer, text = h11.Response(status_code=500, headers=[]), b""
        try:
            async with asyncio.timeout(self._endpoint.plan.timeout):
                parts = (request, h11.Data(data=body), h11.EndOfMessage())
                writer.write(b"".join(http.send(part) or b"" for part in parts))
                while not isinstance(event := http.next_event(), h11.EndOfMessage):
                    if event is h11.NEED_DATA:
                        http.receive_data(await reader.read(1 << 16))
                    elif isinstance(event, h11.Response):
                        answer = event
                    elif isinstance(event, h11.Data):
                        text += event.data
            if http.our_state is h11.DONE and http.their_state is h11.DONE:
                http.start_next_cycle()
            else:
                self.close()
        except BaseException:
            self.close()
            raise
        if answer.status_code >= 300:
            raise Refused(_status_reason(answer.status_code, text))

    def close(self) -> None:
        """Drop the connection."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def connect(endpoint: Endpoint, result: Result) -> ClientConnection:
    """Open one WebSocket. Raises one of ``FAILURES``."""
    connection: ClientConnection | None = None
    try:
        async with asyncio.timeout(endpoint.plan.timeout):
            transport, connection = await asyncio.get_running_loop().create_connection(
                lambda: ClientConnection(endpoint, result), endpoint.host, **endpoint.options
            )
            if address := transport.get_extra_info("peername"):
                endpoint.host = address[0]
            if reason := await connection.opened:
                raise Refused(reason)
    except BaseException:
        if connection is not None:
            connection.abort()
        raise
    return connection


async def open_all(endpoint: Endpoint, result: Result, status: Callable[[str], None]) -> list[ClientConnection]:
    """Open as many WebSockets as the plan says; the first one alone, so that a wrong URL fails once."""
    opened: list[ClientConnection] = []
    failed = result.failures["handshakes_failed"]
    left = 1

    async def work() -> None:
        nonlocal left
        while left and failed.total() < AT_A_TIME:
            left -= 1
            try:
                opened.append(await connect(endpoint, result))
            except FAILURES as error:
                failed[reason_of(error)] += 1
            status(f"connecting  {len(opened):,} of {endpoint.plan.connections:,}")

    try:
        await work()
        left = endpoint.plan.connections - 1 if opened else 0
        await asyncio.gather(*[work() for _ in range(min(AT_A_TIME, left))])
    except asyncio.CancelledError:
        for connection in opened:
            connection.abort()
        raise
    return opened


async def close_all(connections: Sequence[ClientConnection], timeout: float, result: Result) -> None:
    """Close all that are open by the closing handshake; abort those that take longer than ``timeout``."""
    pending = [connection for connection in connections if not connection.ended.done()]
    for connection in pending:
        connection.leave()
    if pending:
        await asyncio.wait([connection.ended for connection in pending], timeout=timeout)
    for connection in pending:
        if not connection.ended.done():
            result.counts["closes_unanswered"] += connection.is_leaving
            connection.abort()
            await connection.ended


def reason_of(error: BaseException | None) -> str:
    """Why a connection or a POST failed, in a few words; equal reasons are counted together."""
    match error:
        case InvalidStatus():
            return _status_reason(error.response.status_code, bytes(error.response.body or b""))
        case InvalidMessage() if not isinstance(error.__cause__, EOFError):
            return "invalid HTTP response"
        case None | InvalidMessage():
            return "closed by the server"
        case h11.RemoteProtocolError():
            return "closed before the answer" if "Closed" in str(error) else "invalid HTTP response"
        case TimeoutError(errno=None):
            return "no answer in time"
        case ssl.SSLError():
            return f"TLS failed: {getattr(error, 'verify_message', error.reason)}"
        case OSError(strerror=str(text)):
            return text
        case Refused():
            return str(error)
    return f"{type(error).__name__}: {error}"


def _status_reason(status: int, body: bytes) -> str:
    """A status, with the beginning of the body unless that is HTML."""
    text = " ".join(body[:200].decode(errors="replace").split())
    return f"HTTP {status}, {text!r}" if text and text.isprintable() and "<" not in text else f"HTTP {status}"
