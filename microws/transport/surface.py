"""What a ``WebSocket`` asks of the transport below it."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from microws.errors import WebSocketDisconnect
from microws.hub import Outbox
from microws.state import State
from microws.tasks import Tasks

__all__ = ["Transport"]


class Transport(Protocol):
    """
    One WebSocket connection below its face.

    Made when the client asks for the connection; ``end`` stands behind everything else. Any number of tasks may use it.
    ``close_code`` is a number from the moment on at which the connection ends or begins to be closed.

    Attributes:
        accepted: Whether the handshake was accepted.
        subprotocol: The one that was accepted.
        has_learned: Whether the view knows of the end.
        on_end: Called once, when the client has gone or the connection begins to be closed; then forgotten.
    """

    accepted: bool
    subprotocol: str | None
    has_learned: bool
    on_end: Callable[[], None] | None

    @property
    def state(self) -> State:
        """Where the connection stands."""
        ...

    @property
    def close_code(self) -> int | None:
        """Why it has ended, or is ending."""
        ...

    @property
    def close_reason(self) -> str:
        """The reason beside ``close_code``."""
        ...

    @property
    def tasks(self) -> Tasks:
        """The view's, with its deadline, and those beside it."""
        ...

    # The handshake

    async def accept(self, subprotocol: str | None, headers: list[tuple[bytes, bytes]]) -> None:
        """
        Answer the handshake with 101. Cancelled, it may be tried again, or rejected.

        Raises:
            WebSocketDisconnect: The client has gone.
            RuntimeError: Accepted, or rejected, already.
        """
        ...

    async def reject(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """
        Answer the handshake with an HTTP response. Where the client has gone it does nothing.

        Raises:
            RuntimeError: Accepted, or rejected, already.
        """
        ...

    # Messages

    async def receive(self) -> str | bytes | None:
        """
        The next message; ``None`` when the connection has ended and every message was received. Cancelled, it has lost
        nothing, if the server loses nothing.

        Raises:
            RuntimeError: Not accepted yet.
        """
        ...

    def read_ahead(self) -> None:
        """Make the next ``receive`` one that loses nothing even if the server's own would. Never waits."""
        ...

    async def send(self, message: str | bytes) -> None:
        """
        Send a message after everything that waits already.

        Raises:
            WebSocketDisconnect: The connection has ended, or the client took nothing for ``send_timeout`` seconds
                (1013).
            RuntimeError: Not accepted yet.
        """
        ...

    def ensure_outbox(self) -> Outbox:
        """The connection's queue; made when it is first needed. Who puts something in calls ``wake``."""
        ...

    def wake(self) -> None:
        """Something waits in the outbox: see to it that it is sent. Never waits."""
        ...

    # The end

    async def close(self, code: int, reason: str) -> None:
        """Send what waits, then a Close frame; ``close_timeout`` seconds at most. A second close does nothing."""
        ...

    def close_soon(self, code: int, reason: str) -> None:
        """``close`` without waiting."""
        ...

    def fail(self, code: int, reason: str) -> None:
        """Close from outside the view: what waits is lost, the view learns of it at its next call. Never waits."""
        ...

    def learn(self) -> None:
        """The caller knows of the end. Only the view's own task counts."""
        ...

    def unusable(self, method: str) -> WebSocketDisconnect | RuntimeError:
        """What ``ws.method`` raises where the connection is not open. Whoever gets it knows of the end."""
        ...

    async def flush(self) -> None:
        """Wait until a Close frame that is due has left, ``close_timeout`` seconds at most."""
        ...

    async def linger(self) -> None:
        """Read and discard until the client has gone, or has been silent for ``close_timeout`` seconds."""
        ...

    def end(self) -> Awaitable[None] | None:
        """Take the client for gone, and end the tasks beside the view: what to wait for, if there are any."""
        ...
