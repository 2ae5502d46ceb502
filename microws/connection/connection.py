"""What a ``ws`` and the hub know of a WebSocket connection, whatever carries it."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple

import anyio

from microws.closing import CloseCode
from microws.connection.tasks import Tasks
from microws.errors import WebSocketDisconnect
from microws.hub import Outbox, close_too_slow, running_loop
from microws.interfaces import Frame, Limits, Receive, Scope, Send
from microws.rates import Bucket, Rate
from microws.state import CONNECTING, OPEN, State

__all__ = ["AppCall", "Connection", "Signal"]

# What ``wait_room`` waits with, in line with the frames of ``send``.
_NO_FRAME: Final = Frame("")


class Signal:
    """Wakes the tasks that are waiting for it."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        # Exists only while a task waits.
        self._event: anyio.Event | None = None

    async def wait(self) -> None:
        """Wait for the next ``set``."""
        self._event = self._event or anyio.Event()
        await self._event.wait()

    def set(self) -> None:
        """Wake every task that is in ``wait`` now."""
        if self._event is not None:
            event, self._event = self._event, None
            event.set()


class AppCall(NamedTuple):
    """
    The call of an app for one WebSocket.

    Attributes:
        scope, receive, send: The three arguments of an ASGI application.
        tasks: The view with its deadline, and the tasks that run beside it.
        limits: Limits of the app. They hold for the server's own connection, too.
        make_outbox: Called once, when an outbox is first needed.
        rate: Limits the messages of the client.
    """

    scope: Scope
    receive: Receive
    send: Send
    tasks: Tasks
    limits: Limits
    make_outbox: Callable[[], Outbox]
    rate: Rate | None = None


@dataclass(slots=True, eq=False, repr=False)
class Connection(ABC):
    """
    One WebSocket connection, from the client's handshake to its end. Any number of tasks may use it.

    ``SocketConnection`` carries it on this package's own server, ``ASGIConnection`` on any other.

    Attributes:
        limits: Limits of this connection.
        state: Position in the life of a WebSocket.
        accepted: Whether the handshake was accepted.
        subprotocol: The accepted subprotocol.
        close_code, close_reason: Why the connection ended or is being closed. ``close_code`` is ``None`` until then.
        close_seen: Whether the view knows that the connection ended.
        outbox: Frames that are pending; created when it is first needed.
        unsubscribe: Called once, when the client disconnects or the connection begins to close.
    """

    limits: Limits
    state: State = CONNECTING
    accepted: bool = False
    subprotocol: str | None = None
    close_code: int | None = None
    close_reason: str = ""
    close_seen: bool = False
    outbox: Outbox | None = None
    unsubscribe: Callable[[], None] | None = None
    _tasks: Tasks | None = None
    _make_outbox: Callable[[], Outbox] = Outbox
    # Frames of ``send`` that wait for room in the outbox, in the order of the calls.
    _senders: "deque[tuple[Frame, anyio.Event]] | None" = None
    # With a rate: either ``receive`` waits for a token, or a message that finds none ends the connection.
    _pace: Bucket | None = None
    _cap: Bucket | None = None

    @property
    def tasks(self) -> Tasks:
        """The view with its deadline, and the tasks that run beside it."""
        assert self._tasks is not None
        return self._tasks

    def attach(self, call: AppCall) -> "Connection":
        """Begin to serve the view. Returns the connection that the view is to use."""
        self._tasks = call.tasks
        self.limits = call.limits
        self._make_outbox = call.make_outbox
        if call.rate is not None:
            loop = running_loop()
            bucket = Bucket(call.rate, anyio.current_time if loop is None else loop.time)
            if call.rate.excess == "wait":
                self._pace = bucket
            else:
                self._cap = bucket
        return self

    # The handshake

    @abstractmethod
    async def accept(self, subprotocol: str | None, headers: list[tuple[bytes, bytes]]) -> None:
        """
        Answer the handshake with 101. After a cancellation it may be accepted again, or rejected.

        Raises:
            WebSocketDisconnect: The client has disconnected.
            RuntimeError: The handshake was accepted or rejected before.
        """

    @abstractmethod
    async def reject(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """
        Answer the handshake with an HTTP response. Does nothing if the client has disconnected.

        Raises:
            RuntimeError: The handshake was accepted or rejected before.
        """

    # Messages

    @abstractmethod
    async def receive(self) -> str | bytes | None:
        """
        Wait for the next message. A cancelled call has lost no message.

        Returns:
            ``None`` once the connection has ended and every message was received.

        Raises:
            RuntimeError: The handshake is not accepted yet.
        """

    @abstractmethod
    async def send(self, message: str | bytes) -> None:
        """
        Send a message after every pending one. Waits while the client does not keep up.

        Raises:
            WebSocketDisconnect: The connection has ended, or the client took nothing for ``send_timeout`` seconds
                (1013).
            RuntimeError: The handshake is not accepted yet.
        """

    @abstractmethod
    def wake(self) -> None:
        """Send what is in the outbox, as far as the client takes it. Never waits."""

    def ensure_outbox(self) -> Outbox:
        """The outbox, which is created at the first call. Call ``wake`` after you put a frame into it."""
        if self.outbox is None:
            self.outbox = self._make_outbox()
        return self.outbox

    # The end

    @abstractmethod
    def close(self, code: int, reason: str) -> None:
        """Begin to close: what is pending leaves, then a Close frame. A second call does nothing. Never waits."""

    @abstractmethod
    def close_now(self, code: int, reason: str) -> None:
        """
        Close without sending what is pending; before the accept, reject with 403. Never waits.

        For a caller that is not the view, which learns of it at its next call.
        """

    @abstractmethod
    async def wait_close_sent(self) -> None:
        """Wait until a Close frame that is due was sent, for at most ``close_timeout`` seconds."""

    @abstractmethod
    async def drain_input(self) -> None:
        """Read and discard until the client disconnects, or was silent for ``close_timeout`` seconds."""

    @abstractmethod
    def detach(self) -> Awaitable[None] | None:
        """The view has returned: end the tasks beside it. Returns what to wait for, if any of them runs."""

    def mark_close_seen(self) -> None:
        """
        The calling task knows of the end. If it is the view, the view may take its time to clean up.

        Another task does not count. The view may be waiting for it, and would never return.
        """
        if not self.close_seen and self._tasks is not None and self._tasks.is_view():
            self.close_seen = True
            if self.state is not OPEN:
                # A view of an open connection has no deadline.
                self._tasks.spare()

    def unusable(self, method: str) -> WebSocketDisconnect | RuntimeError:
        """The exception for ``ws.method()`` on a connection that is not open. Marks the end as seen."""
        if self.state is CONNECTING:
            return RuntimeError(
                f"ws.{method}() before the handshake is accepted: write `async with ws:` around it, or call ws.accept()"
            )
        self.mark_close_seen()
        return self._disconnect()

    def _disconnect(self) -> WebSocketDisconnect:
        error = WebSocketDisconnect(self.close_code or CloseCode.ABNORMAL_CLOSURE, self.close_reason)
        error.source = self
        return error

    def _close_slow(self) -> None:
        """The client took nothing for ``send_timeout`` seconds."""
        close_too_slow(self.close_now)

    async def _send_later(self, frame: Frame) -> None:
        """Queue a frame that cannot be sent at once. If the outbox is full, wait for room in it."""
        if self.state is not OPEN:
            raise self.unusable("send")
        outbox = self.ensure_outbox()
        # Even if there is no room: what is in the outbox may have been held a moment ago.
        self.wake()
        if not self._senders and outbox.has_room(frame):
            outbox.send_nowait(frame)
            return
        await self._wait_in_line(frame)

    async def wait_room(self) -> None:
        """
        Wait until ``send`` would find room in the outbox, for a caller that puts a frame there itself.

        Raises:
            WebSocketDisconnect: As from ``send``.
        """
        if self._senders or (self.outbox is not None and not self.outbox.has_room(_NO_FRAME)):
            self.wake()
            await self._wait_in_line(_NO_FRAME)

    async def _wait_in_line(self, frame: Frame) -> None:
        self._senders = self._senders or deque()
        sender = (frame, anyio.Event())
        self._senders.append(sender)
        try:
            with anyio.move_on_after(self.limits.send_timeout) as waiting:
                await sender[1].wait()
        finally:
            if not sender[1].is_set():
                self._senders.remove(sender)
        if waiting.cancelled_caught:
            self._close_slow()
        if self.close_code is not None:
            raise self.unusable("send")

    def _admit_senders(self) -> None:
        """Move frames of waiting senders into the outbox, as far as there is room."""
        while self._senders and self.outbox is not None and self.outbox.has_room(self._senders[0][0]):
            frame, admitted = self._senders.popleft()
            if frame is not _NO_FRAME:
                self.outbox.send_nowait(frame)
            admitted.set()

    def _report_end(self) -> None:
        """The client has disconnected, or the connection begins to close: nothing more is published to it."""
        while self._senders:
            self._senders.popleft()[1].set()
        if self.unsubscribe is not None:
            unsubscribe, self.unsubscribe = self.unsubscribe, None
            unsubscribe()
        if self._tasks is not None:
            self._tasks.expire(inf if self.close_seen else self.limits.close_timeout)
