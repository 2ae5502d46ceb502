"""One WebSocket on a transport: RFC 6455 on one side, messages on the other."""

import asyncio
import select
import sys
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from microws.closing import CloseCode
from microws.deflate import negotiate
from microws.framing import Close, Ping, Pong, Violation, encode_close
from microws.framing.parser import FrameParser
from microws.interfaces import Limits
from microws.server.deadlines import Deadlines
from microws.server.upgrade import Headers, Upgrade, accept_response, final_response
from microws.server.writing import Writing, is_ready
from microws.state import CLOSED, CONNECTING, OPEN, Action, step

__all__ = ["Closings", "Upkeep", "Wire"]

# About as many bytes wait for the app before reading pauses.
_MAX_INBOX_BYTES: Final = 1 << 20
# As many messages, unless the app says otherwise.
_RECEIVE_QUEUE: Final = 64
# What a client may send before the app has accepted. RFC 6455 §4.1 has it wait for the 101, so that few send any.
_MAX_EARLY_BYTES: Final = 64 << 10
# Of what a compressed connection sends, parsed at once: inflated that is 1 MiB at most.
_MAX_DEFLATED_BYTES: Final = 1 << 10
_ANSWERED: Final = Upgrade(b"", (), {})
# In a second. `nginx` and browsers send far fewer; what a flood of pings costs is the answers.
_MAX_CONTROL_FRAMES: Final = 100


class Upkeep(NamedTuple):
    """
    What keeps the time for every WebSocket of a worker.

    Attributes:
        limits: Of a connection whose app names none.
        pings: When the next ping is due.
        pongs: How long a client has to answer one.
        closings: How long a client has to take what was sent, and to answer a Close frame, by the seconds.
        failures: The same for a client that broke a rule.
    """

    limits: Limits
    pings: "Deadlines[Wire]"
    pongs: "Deadlines[Wire]"
    closings: "Closings"
    failures: "Deadlines[Wire]"


class Closings(dict[float, "Deadlines[Wire]"]):
    """One ``Deadlines`` for each ``close_timeout`` of an app, made when it is first asked for."""

    def __missing__(self, seconds: float) -> "Deadlines[Wire]":
        deadlines = self[seconds] = Deadlines(seconds, Wire.abort)
        return deadlines


class Wire(Writing):
    """
    The connection below a WebSocket. Of its methods only those that say so wait.

    Args:
        transport: Of the connection, on which a request has asked for a WebSocket. Its protocol is from now on this.
        upgrade: That request; forgotten with the accept, since a connection may be open for days.
        upkeep: Shared by the connections of a worker.

    Attributes:
        close_code, close_reason: Why it has ended, or is ending.
        was_heard: Whether anything has come since this was last set to ``False``.
        is_reading: Whether what the client sends is taken from the system: not while the app does not keep up.
        limits: The app may set its own until it accepts, and ``receive_queue`` with them.
        receive_queue: Messages that wait for the app before reading pauses.
        on_end: Called once, when the client has gone or one of the sides has closed.
        on_shutdown: Called with a code and a reason in place of ``close`` when the server ends, by ``shut_down``.
    """

    __slots__ = (
        "_controls",
        "_controls_since",
        "_inbox",
        "_inbox_bytes",
        "_loop",
        "_parser",
        "_unread",
        "_upkeep",
        "_waiter",
        "close_code",
        "close_reason",
        "is_reading",
        "limits",
        "on_end",
        "on_shutdown",
        "receive_queue",
        "upgrade",
        "was_heard",
    )

    def __init__(self, transport: asyncio.Transport, upgrade: Upgrade, upkeep: Upkeep) -> None:
        super().__init__(transport)
        self.close_code: int | None = None
        self.close_reason = ""
        self.was_heard = True
        self.on_end: Callable[[], None] | None = None
        self.on_shutdown: Callable[[int, str], None] | None = None
        self.upgrade = upgrade
        self._loop = asyncio.get_running_loop()
        self._upkeep = upkeep
        self._parser: FrameParser | None = None
        # What has come and is not parsed: before the accept, and of a compressed connection that is not read from.
        self._unread: bytearray | None = None
        self._inbox: deque[str | bytes] | None = None
        self._inbox_bytes = 0
        self.is_reading = True
        self.limits = upkeep.limits
        self.receive_queue = _RECEIVE_QUEUE
        self._waiter: asyncio.Future[None] | None = None
        self._controls = 0
        self._controls_since = 0.0
        transport.set_protocol(self)

    # Messages in

    async def next_message(self) -> str | bytes | None:
        """
        Wait for a message, or for the end: ``None``. Cancelled, it has lost nothing; several tasks may wait.
        """
        while not self._inbox:
            if self.state is not OPEN:
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
        """Take what the client has sent."""
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
        for item in self._parser.feed(data):
            if not isinstance(item, (str, bytes)):
                self._handle(item)
            elif self.state is OPEN:
                inbox.append(item)
        if inbox:
            if self._deflater is None:
                self._inbox_bytes += len(data)
            else:
                self._inbox_bytes = sum(map(len, inbox))
            if self._waiter is not None:
                self._wake()
            if (len(inbox) >= self.receive_queue or self._inbox_bytes >= _MAX_INBOX_BYTES) and self.state is OPEN:
                self._pause_reading()

    def _handle(self, item: Close | Violation | Ping | Pong) -> None:
        match item:
            case Close(code, reason):
                self._closed_by_client(code, reason)
            case Violation(code, reason):
                self._parser = None
                # The app has its turn first, for the messages before it, and may answer them.
                self._wake()
                self._loop.call_soon(self.fail, code, reason)
            case Ping(payload):
                if self._count_control():
                    self._answer(payload)
            case Pong():
                self._count_control()

    def _keep_early(self, data: bytes) -> None:
        if self.state is not CONNECTING:
            return  # refused, or failed: nothing more is read
        if self._unread is None:
            self._unread = bytearray()
        self._unread += data
        if len(self._unread) >= _MAX_EARLY_BYTES:
            self._pause_reading()

    def _parse_piecemeal(self, data: bytes) -> None:
        """One read of the system may bring hundreds of messages that are large when they are inflated."""
        for start in range(0, len(data), _MAX_DEFLATED_BYTES):
            if not self.is_reading:
                self._unread = bytearray(data[start:])
                return
            self.data_received(data[start : start + _MAX_DEFLATED_BYTES])

    def _parse_unread(self) -> None:
        if self._unread:
            unread, self._unread = self._unread, None
            self.data_received(bytes(unread))

    def _pause_reading(self) -> None:
        if self.is_reading:
            self.is_reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        # What the client has sent meanwhile may be its answer to a ping.
        self.is_reading = self.was_heard = True
        self._parse_unread()
        if self.is_reading and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def has_hung_up(self) -> bool:
        """Whether the client is known to send nothing more, also while nothing is taken from the system."""
        return sys.platform == "linux" and is_ready(self._transport, select.POLLRDHUP)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Control frames

    def _count_control(self) -> bool:
        """Whether the client sends control frames at a bearable rate; otherwise this ends it."""
        now = self._loop.time()
        if now - self._controls_since >= 1:
            self._controls_since, self._controls = now, 0
        self._controls += 1
        if self._controls > _MAX_CONTROL_FRAMES:
            self.fail(CloseCode.POLICY_VIOLATION, f"over {_MAX_CONTROL_FRAMES} control frames a second")
            return False
        return True

    # The handshake and the end

    async def wait_answered(self) -> None:
        """Wait until the handshake is answered, or the client has gone."""
        while self.state is CONNECTING:
            await self._wait_change()

    def accept(self, *, subprotocol: str | None, headers: Headers) -> None:
        """
        Answer with 101, and read on.

        Raises:
            RuntimeError: It was answered already.
        """
        self.state = step(self.state, Action.ACCEPT)
        limits = self.limits
        agreement = negotiate(self._offers()) if limits.compression else None
        self._deflater = None if agreement is None else agreement.deflater()
        self._parser = FrameParser(
            max_message_size=limits.max_message_size,
            max_fragments=limits.max_fragments,
            inflater=None if agreement is None else agreement.inflater(),
        )
        self._transport.write(
            accept_response(
                self.upgrade,
                subprotocol=subprotocol,
                headers=headers,
                extensions=None if agreement is None else agreement.header,
            )
        )
        self.upgrade = _ANSWERED
        self._upkeep.pings.start(self)
        self._tell_change()
        if self.is_reading:
            self._parse_unread()
        else:
            self._resume_reading()

    def _offers(self) -> list[str]:
        value = self.upgrade.fields.get(b"sec-websocket-extensions")
        return [] if value is None else [value.decode("latin-1")]

    def start_response(self, status: int, headers: Headers) -> None:
        """
        Refuse the handshake with an HTTP response; ``send_body`` and ``end_response`` follow.

        Raises:
            RuntimeError: It was answered already.
        """
        self.state = step(self.state, Action.REJECT)
        self._unread = None
        self._tell_change()
        self._transport.write(final_response(status, headers))

    def send_body(self, data: bytes) -> None:
        """Send a part of the response's body."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def end_response(self) -> None:
        """The response is complete."""
        self._end(CloseCode.ABNORMAL_CLOSURE, "")
        self._hang_up(self._closings)
        if not self._transport.can_write_eof():
            # Over TLS nothing less tells the client that the body is complete.
            self._transport.close()

    def close(self, code: int, reason: str) -> None:
        """Send a Close frame after all that was sent, and wait for the client's. Nothing happens after an end."""
        if self.state is not OPEN:
            return
        self._begin_close(code, reason)
        self._closings.start(self)
        if not self.is_reading:
            # Its answer stands behind what it has sent before.
            self._resume_reading()

    def shut_down(self, code: int, reason: str) -> None:
        """``close`` by whoever has messages of its own to send first, if there is one."""
        (self.on_shutdown or self.close)(code, reason)

    def fail(self, code: int, reason: str) -> None:
        """
        End a connection whose client broke a rule, and read nothing more of it.

        Source: RFC 6455 §7.1.7.
        """
        self._parser = None
        if self.state is OPEN:
            self._begin_close(code, reason)
        self._hang_up(self._upkeep.failures)

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()
        self._end(CloseCode.ABNORMAL_CLOSURE, "")

    def eof_received(self) -> None:
        """The client sends nothing more: without a Close frame that is an end. The transport closes itself."""
        self._end(CloseCode.ABNORMAL_CLOSURE, "")
        self._closings.start(self)

    def connection_lost(self, _: Exception | None) -> None:
        """The transport has ended, and closes its socket."""
        self.socket = None
        upkeep = self._upkeep
        # All closings: one may have been started before the app has set its limits.
        for deadlines in (upkeep.pings, upkeep.pongs, upkeep.failures, *upkeep.closings.values()):
            deadlines.stop(self)
        self._end(CloseCode.ABNORMAL_CLOSURE, "")

    def _begin_close(self, code: int, reason: str) -> None:
        self.state = step(self.state, Action.CLOSE)
        self.close_code, self.close_reason = code, reason
        self.write_unwritten()
        self._transport.write(encode_close(code, reason))
        self._notify_end()

    def _closed_by_client(self, code: int | None, reason: str) -> None:
        if self.state is OPEN:
            self._transport.write(encode_close(code, reason))
            self._end(CloseCode.NO_STATUS_RECEIVED if code is None else code, reason)
        self._parser = None
        # RFC 6455 §7.1.1: the server is the first to close TCP.
        self._transport.close()
        self._closings.start(self)

    @property
    def _closings(self) -> "Deadlines[Wire]":
        return self._upkeep.closings[self.limits.close_timeout]

    def _hang_up(self, deadlines: "Deadlines[Wire]") -> None:
        """
        Send nothing more, and discard what comes until the client has hung up too.

        A server that closes with data unread resets the connection, and the client may never see what it was sent.

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
                # asyncio's: the client has reset the connection, and the event loop has not read it yet.
                self._transport.abort()

    def _end(self, code: int, reason: str) -> None:
        if self.state is CLOSED:
            return
        self.state = CLOSED
        self._upkeep.pings.stop(self)
        self._tell_change()
        # Otherwise this side has closed, and has told it then.
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
            self._notify_end()

    def _notify_end(self) -> None:
        self._wake()
        if self.on_end is not None:
            self.on_end()
