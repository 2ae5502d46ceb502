"""The direct transport: one WebSocket connection on this package's own server, without ASGI events in between."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from microws.hub import MAX_PART_BYTES, Outbox, Sink
from microws.interfaces import Frame, Limits, Scope
from microws.state import CLOSED, CONNECTING, OPEN, State
from microws.tasks import AsyncioTasks
from microws.transport.turns import Turns

__all__ = ["DirectTransport", "Wire"]

# Sends in a row that find their client quick: then others have their turn.
_MAX_SENDS: Final = 64
_FORBIDDEN: Final = 403
_EMPTY: Final = ((b"content-length", b"0"),)


class Wire(Sink, Protocol):
    """The server's side of the connection, ``scope["extensions"]["microws"]["transport"]``. Only what says so waits."""

    on_end: Callable[[], None] | None
    on_writable: Callable[[], None] | None
    on_shutdown: Callable[[int, str], None] | None
    limits: Limits
    receive_queue: int
    carried: tuple[str | bytes, bytes, str] | None
    unwritten: list[bytes] | None
    close_code: int | None
    close_reason: str

    @property
    def state(self) -> State: ...

    def accept(self, *, subprotocol: str | None, headers: Any) -> None: ...
    def refuse(self, status: int, headers: Any, body: bytes) -> None: ...
    async def next_message(self) -> str | bytes | None: ...
    def send_message(self, payload: str | bytes) -> None: ...
    def write_unwritten(self) -> None: ...


class DirectTransport(Turns):
    """
    One connection of the server's own.

    Args:
        wire: The server's side of it.
        loop: The running one.
        scope: ASGI's, for the log.
        limits: Shared by the connections of an app.
        make_outbox: Called once, when the connection first needs a queue.
    """

    __slots__ = ("_rejected", "_sends", "_wire")

    def __init__(
        self,
        wire: Wire,
        loop: asyncio.AbstractEventLoop,
        scope: Scope,
        limits: Limits,
        make_outbox: Callable[[], Outbox],
    ) -> None:
        super().__init__(AsyncioTasks(loop, scope, limits.accept_timeout), limits, make_outbox)
        self._wire = wire
        self._rejected: int | None = None
        self._sends = 0
        wire.on_end = self._end
        wire.on_writable = self._empty
        wire.on_shutdown = self._close

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
        if self._wire.state is CLOSED and self._rejected is None:
            raise self.unusable("accept")
        self._wire.accept(subprotocol=subprotocol, headers=headers)
        self.accepted = True
        self.subprotocol = subprotocol
        if self._wire.state is OPEN:
            # Else the client has closed behind its handshake already, and the view has a deadline to notice.
            self.tasks.lift_limit()
            self.wake()

    async def reject(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """
        Answer the handshake with an HTTP response. Where the client has gone it does nothing.

        Raises:
            RuntimeError: Accepted, or rejected, already.
        """
        if self._wire.state is CLOSED and self._rejected is None:
            return
        self.learn()
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
            if self._wire.state is CONNECTING:
                raise self.unusable("receive")
            self.learn()
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
        if self.outbox is not None and self.outbox.batch is not None:
            self.outbox.flush()
        if wire.state is not OPEN:
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
        """The connection's queue, out of which the wire takes what it can."""
        if self.outbox is None:
            self.outbox = self._make_outbox()
            self.outbox.sink = self._wire
            self.wake()
        return self.outbox

    def wake(self) -> None:
        """Something waits in the outbox: send as much as the client takes. Never waits."""
        if self.outbox is not None and self._wire.state is OPEN:
            self._empty()

    def _empty(self) -> None:
        wire, outbox = self._wire, self.outbox
        if outbox is None:
            return
        while wire.is_writable and not wire.is_lost:
            if not outbox:
                outbox.release()
                return
            wire.write(outbox.take(MAX_PART_BYTES))
            if self._waiting:
                self._admit()

    # The end

    async def close(self, code: int, reason: str) -> None:
        """
        Send what waits, then a Close frame. A second close does nothing.

        Never waits: a client that does not take it all in ``close_timeout`` seconds is dropped by the server.
        """
        self.close_soon(code, reason)

    def close_soon(self, code: int, reason: str) -> None:
        """``close`` without waiting."""
        self.learn()
        self._close(code, reason)

    def fail(self, code: int, reason: str) -> None:
        """Close from outside the view: what waits is lost, the view learns of it at its next call. Never waits."""
        wire = self._wire
        self._forget_frames()
        if wire.state is CONNECTING:
            # As with ASGI's websocket.close in place of an accept.
            wire.refuse(_FORBIDDEN, _EMPTY, b"")
            wire.close_code, wire.close_reason = code, reason
        else:
            wire.close(code, reason)

    async def flush(self) -> None:
        """The Close frame has left for the server, which sees to the rest."""

    async def linger(self) -> None:
        """The server reads on until the client has gone."""

    def end(self) -> Awaitable[None] | None:
        """End the tasks beside the view: what to wait for, if there are any."""
        wire = self._wire
        wire.on_writable = wire.on_end = wire.on_shutdown = None
        if self.on_end is not None:
            self._end()
        return self.tasks.end()

    def _close(self, code: int, reason: str) -> None:
        wire = self._wire
        if self.outbox is not None and wire.state is OPEN:
            wire.write(self.outbox.take_all())
        wire.close(code, reason)

    def _end(self) -> None:
        self._forget_frames()
        self._release_waiting()
        self._finish()
