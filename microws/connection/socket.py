"""A WebSocket on a socket of this package's own server: frames on one side, messages on the other."""

import asyncio
import select
import sys
from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from microws.closing import CloseCode
from microws.connection.connection import Connection
from microws.connection.deadlines import Deadlines
from microws.counters import COUNTERS
from microws.deflate import Deflater, negotiate
from microws.framing.frames import (
    BINARY,
    PING,
    PONG,
    TEXT,
    Close,
    Ping,
    Pong,
    Violation,
    encode_close,
    encode_frame,
    encode_head,
)
from microws.framing.parser import FrameParser
from microws.hub import MAX_PART_BYTES, Outbox
from microws.interfaces import Frame, Limits
from microws.rates import Bucket
from microws.state import CLOSED, CONNECTING, OPEN, Action, step
from microws.upgrade import Upgrade, accept_response

__all__ = [
    "NO_BODY",
    "Addresses",
    "Headers",
    "SharedLimits",
    "SocketConnection",
    "addresses_of",
    "is_ready",
    "socket_of",
]

Addresses: TypeAlias = tuple[tuple[str, int] | None, tuple[str, int] | None]
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

NO_BODY: Final = ((b"content-length", b"0"),)

# Reading pauses when about as many bytes are in the inbox.
_MAX_INBOX_BYTES: Final = 1 << 20
# What a client may send before the accept. RFC 6455 §4.1 has it wait for the 101, so few clients send anything.
_MAX_EARLY_BYTES: Final = 64 << 10
# A connection with compression parses as many bytes at once. Inflated they are at most 1 MiB.
_MAX_DEFLATED_BYTES: Final = 1 << 10
# In a second. nginx and browsers send far fewer. The answers are what makes a flood of pings expensive.
_MAX_CONTROL_FRAMES: Final = 100
# From this size on a payload is not copied behind its head.
_BIG_BYTES: Final = 64 << 10
# After so many sends without a wait the view yields, so that other tasks run.
_MAX_SENDS: Final = 64
_ANSWERED: Final = Upgrade(b"", (), {})
_FORBIDDEN: Final = 403


class SharedLimits(NamedTuple):
    """
    Limits and timers that the WebSockets of a worker share.

    Attributes:
        limits: Limits of a connection whose app sets none.
        pings: When each connection sends its next ping.
        pongs: When the client's answer to a ping is due.
        closings: When a client must have taken what was sent, and answered the Close frame, by ``close_timeout``.
        failures: The same for a client that broke a rule.
    """

    limits: Limits
    pings: "Deadlines[SocketConnection]"
    pongs: "Deadlines[SocketConnection]"
    closings: "dict[float, Deadlines[SocketConnection]]"
    failures: "Deadlines[SocketConnection]"


class SocketConnection(Connection, asyncio.Protocol):
    """
    A WebSocket connection as the protocol of an asyncio transport.

    A view of this process may use it directly. The server's subclass makes ASGI events of it for every other app.

    Args:
        transport: Its connection, on which a request asked for a WebSocket. The new object becomes its protocol.
        upgrade: That request. Dropped at the accept, because a connection may be open for days.
        shared: Limits and timers of the worker.

    Attributes:
        is_writable: Whether the client takes what is sent. Otherwise it piles up in the transport.
        is_reading: Whether data is read from the socket: not while the view does not keep up.
        was_heard: Whether any data came since this was last set to ``False``.
        socket: Descriptor of the socket; ``None`` over TLS and after the end.
        write: Send encoded bytes. Not after the end.
        buffered: Returns the number of bytes that were sent and that the kernel has not taken yet.
        carried: A published message that middleware is passing on: its payload and its frame.
        unwritten: Frames of such messages that came through middleware unchanged, to be written to many connections at
            once. ``None`` unless that is in progress.
    """

    __slots__ = (
        "_change",
        "_controls",
        "_controls_since",
        "_deflater",
        "_inbox",
        "_inbox_bytes",
        "_late_pong",
        "_loop",
        "_parser",
        "_sends",
        "_shared",
        "_transport",
        "_unread",
        "_waiter",
        "_was_rejected",
        "buffered",
        "carried",
        "is_reading",
        "is_writable",
        "socket",
        "unwritten",
        "upgrade",
        "was_heard",
        "write",
    )

    def __init__(self, transport: asyncio.Transport, upgrade: Upgrade, shared: SharedLimits) -> None:
        super().__init__(shared.limits)
        self.is_writable: bool = True
        self.is_reading: bool = True
        self.was_heard: bool = True
        self.upgrade: Upgrade = upgrade
        self.socket = socket_of(transport)
        # The transport's own methods: a broadcast calls them for each connection.
        self.write: Callable[[bytes | memoryview], None] = transport.write
        self.buffered: Callable[[], int] = transport.get_write_buffer_size
        self.carried: tuple[str | bytes, bytes, str] | None = None
        self.unwritten: list[bytes] | None = None
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._shared = shared
        self._parser: FrameParser | None = None
        self._deflater: Deflater | None = None
        # Data that is not parsed yet: from before the accept, or of a compressed connection whose reading pauses.
        self._unread: bytearray | None = None
        self._inbox: deque[str | bytes] | None = None
        self._inbox_bytes = 0
        # Of the task in ``receive``, and of those that wait for ``state`` or ``is_writable`` to change.
        self._waiter: asyncio.Future[None] | None = None
        self._change: asyncio.Event | None = None
        self._sends = 0
        self._late_pong: bytes | None = None
        self._controls = 0
        self._controls_since = 0.0
        self._was_rejected = False
        transport.set_protocol(self)

    # Messages in

    async def receive(self) -> str | bytes | None:
        while not self._inbox or (self._pace is not None and (seconds := self._pace.take())):
            if self._inbox:
                if not self.is_reading and self.state is OPEN and self.has_hung_up:
                    self.abort()
                await asyncio.sleep(seconds)
                continue
            if self.state is not OPEN:
                if self.state is CONNECTING:
                    raise self.unusable("receive")
                self.mark_close_seen()
                return None
            if self._waiter is not None:
                await asyncio.wait((self._waiter,))
                continue
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = self._inbox.popleft()
        if not self._inbox:
            self._inbox_bytes = 0
            if not self.is_reading:
                self._resume_reading()
        return message

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent."""
        self.was_heard = True
        if self._parser is None:
            self._keep_early(data)
            return
        if self._deflater is not None and len(data) > _MAX_DEFLATED_BYTES:
            self._parse_piecemeal(data)
            return
        inbox = self._inbox
        if inbox is None:
            inbox = self._inbox = deque()
        incoming = self._parser.feed(data)
        if COUNTERS.is_on:
            COUNTERS.receive(len(incoming), len(data))
        for item in incoming:
            if not isinstance(item, (str, bytes)):
                self._handle(item)
            elif self.state is OPEN and (self._cap is None or self._is_within(self._cap)):
                inbox.append(item)
        if inbox:
            if self._deflater is None:
                self._inbox_bytes += len(data)
            else:
                self._inbox_bytes = sum(map(len, inbox))
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                # It takes the messages before more data is read.
                waiter.set_result(None)
            elif (
                (len(inbox) >= self.limits.receive_queue or self._inbox_bytes >= _MAX_INBOX_BYTES)
                and self.is_reading
                and self.state is OPEN
            ):
                self._pause_reading()

    def _handle(self, item: Close | Violation | Ping | Pong) -> None:
        if COUNTERS.is_on:
            COUNTERS.receive(-1, 0)  # a control frame is not a message
        match item:
            case Close(code, reason):
                self._receive_close(code, reason)
            case Violation(code, reason):
                self._parser = None
                # The view first gets the messages that came before it, and may answer them.
                self._wake_receiver()
                self._loop.call_soon(self.fail, code, reason)
            case Ping(payload):
                if self._count_control():
                    self._answer_ping(payload)
            case Pong():
                self._count_control()

    def _count_control(self) -> bool:
        """Count a Ping or Pong frame. ``False``: the client sends too many, and the connection was failed."""
        now = self._loop.time()
        if now - self._controls_since >= 1:
            self._controls_since, self._controls = now, 0
        self._controls += 1
        if self._controls > _MAX_CONTROL_FRAMES:
            self.fail(CloseCode.POLICY_VIOLATION, f"over {_MAX_CONTROL_FRAMES} control frames a second")
            return False
        return True

    def _is_within(self, cap: Bucket) -> bool:
        """Count a message. ``False``: the client sends too many, and the connection was failed."""
        if cap.take():
            self.fail(CloseCode.POLICY_VIOLATION, cap.rate.reason)
            return False
        return True

    def _keep_early(self, data: bytes) -> None:
        if self.state is not CONNECTING:
            return  # refused or failed: the rest is discarded
        if self._unread is None:
            self._unread = bytearray()
        self._unread += data
        if len(self._unread) >= _MAX_EARLY_BYTES and self.is_reading:
            self._pause_reading()

    def _parse_piecemeal(self, data: bytes) -> None:
        """Parse in small steps: one read may hold hundreds of messages that are large once they are inflated."""
        for start in range(0, len(data), _MAX_DEFLATED_BYTES):
            if not self.is_reading:
                self._unread = bytearray(data[start:])
                return
            self.data_received(data[start : start + _MAX_DEFLATED_BYTES])

    def _pause_reading(self) -> None:
        self.is_reading = False
        self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._cap is not None and not self.is_reading:
            self._cap.catch_up()
        # What the client has sent meanwhile may be its answer to a ping.
        self.is_reading = self.was_heard = True
        if self._unread:
            unread, self._unread = self._unread, None
            self.data_received(bytes(unread))
        if self.is_reading and not self._transport.is_closing():
            self._transport.resume_reading()

    def _wake_receiver(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def has_hung_up(self) -> bool:
        """Whether the client has ended its side of the connection, which is known even while reading pauses."""
        return sys.platform == "linux" and is_ready(self._transport, select.POLLRDHUP)

    # Messages out

    async def send(self, message: str | bytes) -> None:
        outbox = self.outbox
        if outbox is not None and outbox.batch is not None:
            outbox.flush()
        if self.state is not OPEN:
            raise self.unusable("send")
        if not self.is_writable:
            await self._send_later(Frame(message))
            return
        self.send_message(message)
        self._sends += 1
        if self._sends == _MAX_SENDS:
            self._sends = 0
            await asyncio.sleep(0)

    def send_message(self, message: str | bytes) -> None:
        """Write a message to the transport, whether or not ``is_writable``. Only while the state is ``OPEN``."""
        if self._transport.is_closing():
            return
        if isinstance(message, str):
            payload, opcode = message.encode(), TEXT
        else:
            payload, opcode = message, BINARY
        if self._deflater is not None and (deflated := self._deflater.deflate(payload)) is not None:
            payload = encode_frame(deflated, opcode, compressed=True)
        elif len(payload) < _BIG_BYTES:
            payload = encode_frame(payload, opcode)
        else:
            # Not by ``writelines``: asyncio's before 3.12.9 and 3.13.2 never pauses the protocol, CVE-2024-12254.
            self.write(encode_head(len(payload), opcode))
        if COUNTERS.is_on:
            COUNTERS.send(1, len(payload))
        self.write(payload)

    def takes_carried(self, payload: str | bytes) -> bool:
        """
        Whether ``payload`` is the ``carried`` one, which is written later. Otherwise writes what came before it.
        """
        carried = self.carried
        if carried is not None and payload is carried[0] and self.unwritten is not None:
            self.carried = None
            self.unwritten.append(carried[1])
            if COUNTERS.is_on:
                COUNTERS.send(1, len(carried[1]))
            return True
        self.write_unwritten()
        return False

    def write_unwritten(self) -> None:
        """Write what came through middleware, to this connection alone."""
        if self.unwritten:
            if not self.is_lost:
                self.write(b"".join(self.unwritten))
            self.unwritten.clear()

    def ensure_outbox(self) -> Outbox:
        if self.outbox is None:
            self.outbox = self._make_outbox()
            self.outbox.sink = self
            self.wake()
        return self.outbox

    def wake(self) -> None:
        outbox = self.outbox
        while outbox is not None and self.state is OPEN and self.is_writable and not self.is_lost:
            if not outbox:
                outbox.release()
                return
            data = outbox.take(MAX_PART_BYTES)
            if self.state is not OPEN:
                return  # it was refused, because it would have missed a message behind these
            self.write(data)
            if self._senders:
                self._admit_senders()

    @property
    def is_lost(self) -> bool:
        """Whether ``connection_lost`` follows. Nothing may be written: asyncio would log a warning."""
        return self._transport.is_closing()

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self.is_writable = False

    def resume_writing(self) -> None:
        """The client has taken most of the buffer."""
        if self._late_pong is not None and self.state is OPEN:
            self.write(encode_frame(self._late_pong, PONG))
        self._late_pong = None
        self.is_writable = True
        self._report_change()
        self.wake()

    async def wait_writable(self) -> None:
        """Wait until the client has taken most of what was sent, or has disconnected."""
        while not self.is_writable and self.state is not CLOSED:
            await self._wait_change()

    async def wait_answered(self) -> None:
        """Wait until the handshake was answered, or the client has disconnected."""
        while self.state is CONNECTING:
            await self._wait_change()

    async def _wait_change(self) -> None:
        self._change = self._change or asyncio.Event()
        await self._change.wait()

    def _report_change(self) -> None:
        if self._change is not None:
            self._change.set()
            self._change = None

    def ping(self) -> None:
        """Send a Ping frame."""
        if self.state is OPEN and self.is_writable:
            self.write(encode_frame(b"", PING))

    def _answer_ping(self, payload: bytes) -> None:
        if self.state is not OPEN:
            return
        if self.is_writable:
            self.write(encode_frame(payload, PONG))
        else:
            # RFC 6455 §5.5.3: only the latest ping needs an answer.
            self._late_pong = payload

    # The handshake

    async def accept(self, subprotocol: str | None, headers: list[tuple[bytes, bytes]]) -> None:
        if self.state is CLOSED and not self._was_rejected:
            raise self.unusable("accept")
        self.start(subprotocol, headers)

    async def reject(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        if self.state is CLOSED and not self._was_rejected:
            return
        self.mark_close_seen()
        self.refuse(status, headers, body)
        self._was_rejected = True
        self.close_code = 3000 + status

    def start(self, subprotocol: str | None, headers: Headers) -> None:
        """
        Answer the handshake with 101, and read messages.

        Raises:
            RuntimeError: It was answered before.
        """
        self.state = step(self.state, Action.ACCEPT)
        limits = self.limits
        agreement = None
        if limits.compression and (offers := self.upgrade.fields.get(b"sec-websocket-extensions")) is not None:
            agreement = negotiate([offers.decode("latin-1")])
        if agreement is not None:
            self._deflater = agreement.deflater()
        self._parser = FrameParser(
            max_message_size=limits.max_message_size,
            max_fragments=limits.max_fragments,
            inflater=None if agreement is None else agreement.inflater(),
        )
        extensions = None if agreement is None else agreement.header
        self.write(accept_response(self.upgrade, subprotocol=subprotocol, headers=headers, extensions=extensions))
        self.upgrade = _ANSWERED
        self.accepted = True
        self.subprotocol = subprotocol
        self._shared.pings.start(self)
        self._report_change()
        if self._unread or not self.is_reading:
            self._resume_reading()
        # Unless the client's Close frame came behind its handshake: then the view has a deadline to notice.
        if self.state is OPEN and self._tasks is not None:
            self._tasks.lift_limit()
            self.wake()

    @abstractmethod
    def refuse(self, status: int, headers: Headers = NO_BODY, body: bytes = b"") -> None:
        """
        Answer the handshake with an HTTP response.

        Raises:
            RuntimeError: It was answered before.
        """

    def start_response(self, head: bytes) -> None:
        """
        Refuse the handshake. ``send_body`` and ``end_response`` follow.

        Args:
            head: The encoded head of the HTTP response.
        """
        self.state = step(self.state, Action.REJECT)
        self._unread = None
        self._report_change()
        self.write(head)

    def send_body(self, data: bytes) -> None:
        """Send a part of the response's body."""
        if not self._transport.is_closing():
            self.write(data)

    def end_response(self) -> None:
        """The response is complete."""
        self._end(CloseCode.ABNORMAL_CLOSURE, "")
        self._hang_up(self._closings)
        if not self._transport.can_write_eof():
            # Over TLS only the end of the connection tells the client that the body is complete.
            self._transport.close()

    # The end

    def close(self, code: int, reason: str) -> None:
        if self.state is not OPEN:
            return
        if self.outbox is not None:
            self.write(self.outbox.take_all())
        self._send_close(code, reason)
        self._closings.start(self)
        if not self.is_reading:
            # The client's Close frame comes behind what it sent before.
            self._resume_reading()

    def close_now(self, code: int, reason: str) -> None:
        if self.outbox is not None:
            self.outbox.clear()
        if self.state is CONNECTING:
            # As ASGI's websocket.close before an accept.
            self.refuse(_FORBIDDEN)
            self.close_code, self.close_reason = code, reason
        else:
            self.close(code, reason)

    async def wait_close_sent(self) -> None:
        """Returns at once: the Close frame is in the transport."""

    async def drain_input(self) -> None:
        """Returns at once: the connection reads by itself until the client disconnects."""

    def detach(self) -> Awaitable[None] | None:
        if self.unsubscribe is not None:
            self._report_end()
        return self.tasks.end()

    def fail(self, code: int, reason: str) -> None:
        """
        End a connection whose client broke a rule, and read nothing more.

        Source: RFC 6455 §7.1.7.
        """
        self._parser = None
        if self.state is OPEN:
            self._send_close(code, reason)
        self._hang_up(self._shared.failures)

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()
        self._end(CloseCode.ABNORMAL_CLOSURE, "")

    def eof_received(self) -> None:
        """The client sends nothing more. Without a Close frame that is an end. The transport closes itself."""
        self._end(CloseCode.ABNORMAL_CLOSURE, "")
        self._closings.start(self)

    def connection_lost(self, _: Exception | None) -> None:
        """The transport has ended, and closes its socket."""
        self.socket = None
        shared = self._shared
        # In all of ``closings``: it may have been started before the app set its limits.
        for deadlines in (shared.pongs, shared.failures, *shared.closings.values()):
            deadlines.stop(self)
        self._end(CloseCode.ABNORMAL_CLOSURE, "")

    def _receive_close(self, code: int | None, reason: str) -> None:
        if self.state is OPEN:
            self.write(encode_close(code, reason))
            self._end(CloseCode.NO_STATUS_RECEIVED if code is None else code, reason)
        self._parser = None
        # RFC 6455 §7.1.1: the server is the first to close TCP.
        self._transport.close()
        self._closings.start(self)

    def _send_close(self, code: int, reason: str) -> None:
        self.state = step(self.state, Action.CLOSE)
        self.close_code, self.close_reason = code, reason
        self.write_unwritten()
        self.write(encode_close(code, reason))
        self._report_end()

    def _end(self, code: int, reason: str) -> None:
        if self.state is CLOSED:
            return
        self.state = CLOSED
        self._shared.pings.stop(self)
        self._report_change()
        # Otherwise this side closed first, and has reported it.
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
            self._report_end()

    def _report_end(self) -> None:
        self._wake_receiver()
        if self.outbox is not None:
            self.outbox.clear()
            # It would refer to this object, which refers to it.
            self.outbox.sink = None
        super()._report_end()

    @property
    def _closings(self) -> "Deadlines[SocketConnection]":
        seconds = self.limits.close_timeout
        closings = self._shared.closings.get(seconds)
        if closings is None:
            closings = self._shared.closings[seconds] = Deadlines(seconds, SocketConnection.abort)
        return closings

    def _hang_up(self, deadlines: "Deadlines[SocketConnection]") -> None:
        """
        Send nothing more, and discard input until the client has hung up too.

        A server that closes with unread data resets the connection. The client may then never see what it was sent.

        Source: RFC 9112 §9.6.
        """
        if self._transport.is_closing():
            return
        deadlines.start(self)
        if not self.is_reading:
            self._resume_reading()
        if self._transport.can_write_eof():
            try:
                self._transport.write_eof()
            except OSError:
                # From asyncio: the client has reset the connection, and the event loop has not read that yet.
                self._transport.abort()


def socket_of(transport: asyncio.Transport) -> int | None:
    """Descriptor of the socket that gets the bytes written to ``transport`` unchanged."""
    if transport.get_extra_info("sslcontext") is not None:
        return None
    found = transport.get_extra_info("socket")
    return None if found is None else found.fileno()


def addresses_of(transport: asyncio.Transport) -> Addresses:
    """Host and port of the client and of the server; ``None`` on a Unix socket."""
    return _address(transport.get_extra_info("peername")), _address(transport.get_extra_info("sockname"))


def _address(name: Any) -> tuple[str, int] | None:
    return (name[0], name[1]) if isinstance(name, tuple) else None


def is_ready(transport: asyncio.Transport, event: int) -> bool:
    """Whether the kernel reports ``event``, one of ``select.POLLIN`` and its siblings, for the transport's socket."""
    found = transport.get_extra_info("socket")
    if found is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(found.fileno(), event)
    return bool(poll.poll(0))
