"""The life of one connection: its state, its end, and who is waiting inside the server."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from math import inf
from typing import Any, NamedTuple

import anyio

from microws.closing import CloseCode
from microws.errors import WebSocketDisconnect
from microws.state import Action, State, step
from microws.tasks import Tasks

__all__ = ["Lifeline", "Limits", "helping"]

# In a task of ws.start_soon: the transport of its connection. What such a task learns, its view does not know yet.
helping: ContextVar[object] = ContextVar("helping", default=None)


class Limits(NamedTuple):
    """
    What one connection may cost. Precedents are named where ``App`` documents each.

    Attributes:
        max_message_size: Payload bytes of one incoming message.
        receive_queue: Incoming messages that wait for the view before reading pauses; 1 MiB of them pauses it too.
        send_timeout: Seconds that one ``ws.send`` waits for a slow client.
        accept_timeout: Seconds from the request to ``accept``.
        close_timeout: Seconds that a close waits for what is queued before it, and that a view has to notice the end.
    """

    max_message_size: int = 1 << 20
    receive_queue: int = 64
    send_timeout: float = 10
    accept_timeout: float = 10
    close_timeout: float = 5


class Lifeline(ABC):
    """
    What reading and sending share. ``PortableTransport`` makes the attributes of all.

    Attributes:
        state: Where the connection stands.
        close_code, close_reason: Why it has ended, or is ending; ``close_code`` is ``None`` until then.
        has_learned: Whether the view knows of the end.
        on_end: Called once, when the client has gone or the connection begins to be closed; then forgotten.
        tasks: Of this connection.
    """

    __slots__ = (
        "_arrived",
        "_close_due",
        "_idle",
        "_interrupted",
        "_limits",
        "_loop",
        "_reader",
        "_sender",
        "_unpaused",
        "_work",
        "close_code",
        "close_reason",
        "has_learned",
        "on_end",
        "state",
        "tasks",
    )

    state: State
    close_code: int | None
    close_reason: str
    has_learned: bool
    on_end: Callable[[], None] | None
    tasks: Tasks
    _loop: asyncio.AbstractEventLoop | None  # None on trio
    _limits: Limits
    _close_due: bool
    # Who is inside ASGI's receive, and who inside its send. A task of the view may be interrupted there.
    _reader: object
    _sender: object
    _interrupted: tuple[asyncio.Task[Any], ...]
    # Each event exists only while somebody waits for it.
    _arrived: anyio.Event | None  # a message, the end, or a turn to read
    _unpaused: anyio.Event | None  # room in the inbox
    _idle: anyio.Event | None  # nobody is inside ASGI's send
    _work: anyio.Event | None  # something for the drainer

    @abstractmethod
    def discard(self) -> None:
        """Keep nothing more of what the client sends."""

    @abstractmethod
    def wake(self) -> None:
        """Something waits to be sent."""

    @abstractmethod
    def _forget_frames(self) -> None:
        """Nothing of what waits to be sent will be."""

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

    def unusable(self, method: str) -> WebSocketDisconnect | RuntimeError:
        """What a call raises when the connection is not open. Whoever gets it knows of the end."""
        if self.state is State.CONNECTING:
            return RuntimeError(
                f"ws.{method}() before the handshake is accepted: write `async with ws:` around it, or call ws.accept()"
            )
        self.learn()
        return self._disconnect()

    def learn(self) -> None:
        """The view knows of the end, or has made it: it may take its time to clean up."""
        if not self.has_learned and helping.get() is not self:
            self.has_learned = True
            self.tasks.limit(inf)

    def abandon(self) -> None:
        """Take the client for gone. Never waits."""
        self._end(CloseCode.ABNORMAL_CLOSURE, "")

    async def end(self) -> None:
        """Take the client for gone, and end the tasks beside the view."""
        if self.state is not State.CLOSED:
            self.abandon()
        await self.tasks.end()

    def _disconnect(self) -> WebSocketDisconnect:
        error = WebSocketDisconnect(self.close_code or CloseCode.ABNORMAL_CLOSURE, self.close_reason)
        error.source = self
        return error

    def _begin_close(self, code: int, reason: str) -> None:
        self.state = step(self.state, Action.CLOSE)
        self.close_code, self.close_reason = code, reason
        self._close_due = True
        self.discard()
        self._wake_all()
        self._interrupt(self._reader)
        self._finish()

    def _end(self, code: int, reason: str) -> None:
        """The client has gone. A close of our own keeps its code."""
        if self.state is State.CLOSED:
            return
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
        self.state = State.CLOSED
        self._close_due = False
        self._forget_frames()
        self._wake_all()
        if self._reader is not None:
            self._interrupt(self._reader)
        if self._sender is not None:
            self._interrupt(self._sender)
        self._finish()

    def _finish(self) -> None:
        if self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end()
        if not self.has_learned:
            self.tasks.limit(self._limits.close_timeout)

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
