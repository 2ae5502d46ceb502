"""The direct transport: one WebSocket connection on this package's own server, without ASGI events in between."""

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, Final, Protocol

import anyio

from microws.closing import CloseCode
from microws.errors import WebSocketDisconnect
from microws.framing import BINARY, TEXT
from microws.interfaces import Frame
from microws.outbox import Outbox
from microws.state import State
from microws.tasks import AsyncioTasks, Tasks
from microws.transport.lifeline import Limits, helping

__all__ = ["DirectTransport", "Wire"]

# Sends in a row that find their client quick: then others have their turn.
_MAX_SENDS: Final = 64
# Looking it up in its class, for each message, takes longer.
_OPEN: Final = State.OPEN


class Wire(Protocol):
    """The server's side of the connection, ``scope["extensions"]["microws"]["transport"]``. Only what says so waits."""

    on_end: Callable[[], None] | None
    on_writable: Callable[[], None] | None
    on_shutdown: Callable[[int, str], None] | None

    @property
    def state(self) -> State: ...
    @property
    def close_code(self) -> int | None: ...
    @property
    def close_reason(self) -> str: ...
    @property
    def is_writable(self) -> bool: ...

    def accept(self, *, subprotocol: str | None, headers: Any) -> None: ...
    def refuse(self, status: int, headers: Any, body: bytes) -> None: ...
    async def next_message(self) -> str | bytes | None: ...
    def send_message(self, payload: str | bytes) -> None: ...
    def send_frame(self, payload: bytes, opcode: int) -> None: ...
    def close(self, code: int, reason: str) -> None: ...


class DirectTransport:
    """
    One connection of the server's own.

    Args:
        wire: The server's side of it.
        limits: Shared by the connections of an app.
        make_outbox: Called once, when the connection first needs a queue.

    Attributes:
        on_end: Called once, when the client has gone or the connection begins to be closed; then forgotten.
        tasks: Of this connection.
    """

    __slots__ = (
        "_has_learned",
        "_limits",
        "_make_outbox",
        "_outbox",
        "_rejected",
        "_sends",
        "_waiting",
        "_wire",
        "on_end",
        "tasks",
    )

    def __init__(self, wire: Wire, *, limits: Limits, make_outbox: Callable[[], Outbox]) -> None:
        self.on_end: Callable[[], None] | None = None
        self.tasks: Tasks = AsyncioTasks(asyncio.get_running_loop())
        self._wire = wire
        self._limits = limits
        self._make_outbox = make_outbox
        self._outbox: Outbox | None = None
        self._rejected: int | None = None
        self._has_learned = False
        self._sends = 0
        # The frames that find no room in the outbox, in the order of the calls.
        self._waiting: deque[tuple[Frame, anyio.Event]] | None = None
        wire.on_end = self._end
        wire.on_writable = self._empty
        wire.on_shutdown = self._close
        self.tasks.limit(limits.accept_timeout)

    @property
    def state(self) -> State:
        """Where the connection stands."""
        return self._wire.state

    @property
    def close_code(self) -> int | None:
        """Why it has ended, or is ending."""
        return self._wire.close_code if self._rejected is None else self._rejected

    @property
    def close_reason(self) -> str:
        """The reason beside ``close_code``."""
        return self._wire.close_reason

    # The handshake

    async def accept(self, subprotocol: str | None, headers: list[tuple[bytes, bytes]]) -> None:
        """
        Answer the handshake with 101.

        Raises:
            WebSocketDisconnect: The client has gone.
            RuntimeError: Accepted, or rejected, already.
        """
        if self._wire.state is State.CLOSED and self._rejected is None:
            raise self.unusable("accept")
        self._wire.accept(subprotocol=subprotocol, headers=headers)
        self.tasks.limit(inf)
        self.wake()

    async def reject(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """
        Answer the handshake with an HTTP response. Where the client has gone it does nothing.

        Raises:
            RuntimeError: Accepted, or rejected, already.
        """
        if self._wire.state is State.CLOSED and self._rejected is None:
            return
        self._learn()
        self._wire.refuse(status, headers, body)
        self._rejected = 3000 + status

    # Messages

    async def receive(self) -> str | bytes | None:
        """
        The next message; ``None`` when the connection has ended and every message was received. Cancelled, it has lost
        nothing.

        Raises:
            RuntimeError: Not accepted yet.
        """
        message = await self._wire.next_message()
        if message is None:
            if self._wire.state is State.CONNECTING:
                raise self.unusable("receive")
            self._learn()
        return message

    def read_ahead(self) -> None:
        """The server always reads ahead, and a ``receive`` that is cancelled loses nothing."""

    async def send(self, message: str | bytes) -> None:
        """
        Send a message after everything that waits already.

        Raises:
            WebSocketDisconnect: The connection has ended, or the client took nothing for ``send_timeout`` seconds
                (1013).
            RuntimeError: Not accepted yet.
        """
        wire = self._wire
        if wire.state is not _OPEN:
            raise self.unusable("send")
        if not wire.is_writable:
            await self._wait_turn(Frame(message))
            return
        wire.send_message(message)
        self._sends += 1
        if self._sends == _MAX_SENDS:
            self._sends = 0
            await asyncio.sleep(0)

    def ensure_outbox(self) -> Outbox:
        """The connection's queue; made when it is first needed. Who puts something in calls ``wake``."""
        if self._outbox is None:
            self._outbox = self._make_outbox()
        return self._outbox

    def wake(self) -> None:
        """Something waits in the outbox: send as much as the client takes. Never waits."""
        if self._outbox and self._wire.state is State.OPEN:
            self._empty()

    def _empty(self) -> None:
        wire, outbox = self._wire, self._outbox
        while outbox and wire.is_writable:
            frame = outbox.pop()
            wire.send_frame(frame.data, TEXT if frame.is_text else BINARY)
            if self._waiting:
                self._admit(outbox)

    async def _wait_turn(self, frame: Frame) -> None:
        outbox = self.ensure_outbox()
        if not self._waiting and outbox.has_room(frame):
            outbox.send_nowait(frame)
            return
        self._waiting = self._waiting or deque()
        turn = (frame, anyio.Event())
        self._waiting.append(turn)
        try:
            with anyio.move_on_after(self._limits.send_timeout) as waiting:
                await turn[1].wait()
        finally:
            if not turn[1].is_set():
                self._waiting.remove(turn)
        if waiting.cancelled_caught:
            self.fail(CloseCode.TRY_AGAIN_LATER, "too slow")
        if self.close_code is not None:
            raise self.unusable("send")

    def _admit(self, outbox: Outbox) -> None:
        """Queue the frames that wait for room, as far as there is some now."""
        while self._waiting and outbox.has_room(self._waiting[0][0]):
            frame, admitted = self._waiting.popleft()
            outbox.send_nowait(frame)
            admitted.set()

    # The end

    async def close(self, code: int, reason: str) -> None:
        """
        Send what waits, then a Close frame. A second close does nothing.

        Never waits: a client that does not take it all in ``close_timeout`` seconds is dropped by the server.
        """
        self.close_soon(code, reason)

    def close_soon(self, code: int, reason: str) -> None:
        """``close`` without waiting."""
        self._learn()
        self._close(code, reason)

    def fail(self, code: int, reason: str) -> None:
        """Close from outside the view: what waits is lost, the view learns of it at its next call. Never waits."""
        if self._outbox is not None:
            self._outbox.clear()
        self._wire.close(code, reason)

    def unusable(self, method: str) -> WebSocketDisconnect | RuntimeError:
        """What ``ws.method`` raises where the connection is not open. Whoever gets it knows of the end."""
        if self._wire.state is State.CONNECTING:
            return RuntimeError(
                f"ws.{method}() before the handshake is accepted: write `async with ws:` around it, or call ws.accept()"
            )
        self._learn()
        error = WebSocketDisconnect(self.close_code or CloseCode.ABNORMAL_CLOSURE, self.close_reason)
        error.source = self
        return error

    async def flush(self) -> None:
        """The Close frame has left for the server, which sees to the rest."""

    async def linger(self) -> None:
        """The server reads on until the client has gone."""

    async def end(self) -> None:
        """End the tasks beside the view."""
        wire = self._wire
        wire.on_writable = wire.on_end = wire.on_shutdown = None
        if self.on_end is not None:
            self._end()
        await self.tasks.end()

    def _close(self, code: int, reason: str) -> None:
        wire = self._wire
        if self._outbox and wire.state is State.OPEN:
            while self._outbox:
                frame = self._outbox.pop()
                wire.send_frame(frame.data, TEXT if frame.is_text else BINARY)
        wire.close(code, reason)

    def _learn(self) -> None:
        """The view knows of the end, or has made it: it may take its time to clean up."""
        if helping.get() is not self:
            self._has_learned = True
            self.tasks.limit(inf)

    def _end(self) -> None:
        if self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end()
        if self._outbox is not None:
            self._outbox.clear()
        while self._waiting:
            self._waiting.popleft()[1].set()
        if not self._has_learned:
            self.tasks.limit(self._limits.close_timeout)
