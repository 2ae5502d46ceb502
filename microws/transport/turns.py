"""What both transports share: who knows of a connection's end, and whose turn it is to send."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from math import inf

import anyio

from microws.closing import CloseCode
from microws.errors import WebSocketDisconnect
from microws.hub import Outbox
from microws.interfaces import Frame, Limits
from microws.state import CONNECTING, OPEN, State
from microws.tasks import Tasks

__all__ = ["Turns"]


class Turns(ABC):
    """
    A transport without a way to the client.

    Attributes:
        accepted: Whether the handshake was accepted.
        subprotocol: The one that was accepted.
        has_learned: Whether the view knows of the end.
        on_end: Called once, when the client has gone or the connection begins to be closed; then forgotten.
        outbox: What waits to be sent; made when it is first needed.
        tasks: Of this connection.
    """

    __slots__ = (
        "_limits",
        "_make_outbox",
        "_waiting",
        "accepted",
        "has_learned",
        "on_end",
        "outbox",
        "subprotocol",
        "tasks",
    )

    def __init__(self, tasks: Tasks, limits: Limits, make_outbox: Callable[[], Outbox]) -> None:
        self.accepted = False
        self.subprotocol: str | None = None
        self.has_learned = False
        self.on_end: Callable[[], None] | None = None
        self.outbox: Outbox | None = None
        self.tasks = tasks
        self._limits = limits
        self._make_outbox = make_outbox
        # Frames without room in the outbox, in the order of the calls.
        self._waiting: deque[tuple[Frame, anyio.Event]] | None = None

    @property
    @abstractmethod
    def state(self) -> State:
        """Where the connection stands."""

    @property
    @abstractmethod
    def close_code(self) -> int | None:
        """Why it has ended, or is ending; ``None`` until then."""

    @property
    @abstractmethod
    def close_reason(self) -> str:
        """The reason beside ``close_code``."""

    @abstractmethod
    def wake(self) -> None:
        """Something waits to be sent: see to it. Never waits."""

    @abstractmethod
    def fail(self, code: int, reason: str) -> None:
        """Close from outside the view: what waits is lost, the view learns of it at its next call. Never waits."""

    def unusable(self, method: str) -> WebSocketDisconnect | RuntimeError:
        """What a call raises when the connection is not open. Whoever gets it knows of the end."""
        if self.state is CONNECTING:
            return RuntimeError(
                f"ws.{method}() before the handshake is accepted: write `async with ws:` around it, or call ws.accept()"
            )
        self.learn()
        return self._disconnect()

    def learn(self) -> None:
        """
        The caller knows of the end, or has made it. A view that does may take its time to clean up.

        Another task that does is no reason to think that the view will: while one of two tasks that it runs has seen
        the end, it may wait for the other one, which never ends.
        """
        if not self.has_learned and self.tasks.is_view():
            self.has_learned = True
            if self.state is not OPEN:
                # An open one has no limit.
                self.tasks.spare()

    def ensure_outbox(self) -> Outbox:
        """The connection's queue. Who puts something in calls ``wake``."""
        if self.outbox is None:
            self.outbox = self._make_outbox()
        return self.outbox

    def _disconnect(self) -> WebSocketDisconnect:
        error = WebSocketDisconnect(self.close_code or CloseCode.ABNORMAL_CLOSURE, self.close_reason)
        error.source = self
        return error

    async def _wait_turn(self, frame: Frame) -> None:
        """Send a frame that cannot leave at once: it waits in the outbox, or its sender for room there."""
        if self.state is not OPEN:
            raise self.unusable("send")
        outbox = self.ensure_outbox()
        if not self._waiting and outbox.has_room(frame):
            outbox.send_nowait(frame)
            self.wake()
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

    def _admit(self) -> None:
        """Queue the frames that wait for room, as far as there is some now."""
        while self._waiting and self.outbox is not None and self.outbox.has_room(self._waiting[0][0]):
            frame, admitted = self._waiting.popleft()
            self.outbox.send_nowait(frame)
            admitted.set()

    def _forget_frames(self) -> None:
        """Nothing of what waits to be sent will be."""
        if self.outbox is not None:
            self.outbox.clear()

    def _release_waiting(self) -> None:
        while self._waiting:
            self._waiting.popleft()[1].set()

    def _finish(self) -> None:
        """Tell of the end."""
        if self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end()
        self.tasks.expire(inf if self.has_learned else self._limits.close_timeout)
