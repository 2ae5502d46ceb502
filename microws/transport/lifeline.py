"""The life of a connection over ASGI: its state, its end, and who is waiting inside the server."""

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable
from typing import Any

import anyio

from microws.closing import CloseCode
from microws.state import CLOSED, Action, State, step
from microws.transport.turns import Turns

__all__ = ["Lifeline"]


class Lifeline(Turns):
    """
    What reading and sending share. ``PortableTransport`` makes the attributes of all.

    Attributes:
        state: Where the connection stands.
        close_code, close_reason: Why it has ended, or is ending; ``close_code`` is ``None`` until then.
    """

    __slots__ = (
        "_arrived",
        "_close_due",
        "_idle",
        "_interrupted",
        "_loop",
        "_reader",
        "_sender",
        "_unpaused",
        "_work",
        "close_code",
        "close_reason",
        "state",
    )

    state: State
    close_code: int | None
    close_reason: str
    _loop: asyncio.AbstractEventLoop | None  # None on trio
    _close_due: bool
    # Who is inside ASGI's receive, and who inside its send. A task of the view may be interrupted there.
    _reader: object
    _sender: object
    _interrupted: tuple[asyncio.Task[Any], ...]
    # Each event exists only while somebody waits for it.
    _arrived: anyio.Event | None  # a message, the end, or a turn to read
    _unpaused: anyio.Event | None  # room in the inbox
    _idle: anyio.Event | None  # nobody is inside ASGI's send
    _work: anyio.Event | None  # something for the drainer to send

    @abstractmethod
    def discard(self) -> None:
        """Keep nothing more of what the client sends."""

    @abstractmethod
    def _wake_all(self) -> None:
        """End every wait: the connection is ending."""

    def fail(self, code: int, reason: str) -> None:
        """Close from outside the view: what waits is lost, the view learns of it at its next call. Never waits."""
        if self.close_code is not None:
            return
        self._begin_close(code, reason)
        self._forget_frames()
        self._interrupt(self._sender)
        self.wake()

    def abandon(self) -> None:
        """Take the client for gone. Never waits."""
        self._end(CloseCode.ABNORMAL_CLOSURE, "")

    def end(self) -> Awaitable[None] | None:
        """Take the client for gone, and end the tasks beside the view: what to wait for, if there are any."""
        if self.state is not CLOSED:
            self.abandon()
        return self.tasks.end()

    def _begin_close(self, code: int, reason: str) -> None:
        self.state = step(self.state, Action.CLOSE)
        if self.outbox is not None:
            self.outbox.hold()
        self.close_code, self.close_reason = code, reason
        self._close_due = True
        self.discard()
        self._wake_all()
        self._interrupt(self._reader)
        self._finish()

    def _end(self, code: int, reason: str) -> None:
        """The client has gone. A close of our own keeps its code."""
        if self.state is CLOSED:
            return
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
        self.state = CLOSED
        self._close_due = False
        self._forget_frames()
        self._wake_all()
        if self._reader is not None:
            self._interrupt(self._reader)
        if self._sender is not None:
            self._interrupt(self._sender)
        self._finish()

    def _interrupt(self, task: object) -> None:
        """End the wait of a task inside ASGI's receive or send, if it may be ended and is another one than this."""
        if isinstance(task, anyio.CancelScope):
            task.cancel()
        elif isinstance(task, asyncio.Task) and task is not asyncio.current_task() and task not in self._interrupted:
            self._interrupted = (*self._interrupted, task)
            task.cancel()

    def _was_interrupted(self) -> bool:
        """Whether this task's cancellation came from ``_interrupt`` alone; it then ends here."""
        task = asyncio.current_task()
        if task not in self._interrupted:
            return False
        self._interrupted = tuple(other for other in self._interrupted if other is not task)
        return task.uncancel() == 0

    def _wake(self, name: str) -> None:
        event: anyio.Event | None = getattr(self, name)
        if event is not None:
            setattr(self, name, None)
            event.set()
