"""What waits for answers of other processes."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any, Generic, TypeVar

import anyio

from microws.errors import PublishTimeout
from microws.hub.loop import running_loop

__all__ = ["Pending", "Replies"]

T = TypeVar("T")

_log = logging.getLogger("microws.hub")


class Pending(Generic[T]):
    """
    A message, or a question, that one task waits for.

    On asyncio a future is waited for: an event takes three times as long.

    Args:
        timeout: Seconds after which its owner calls ``end``.

    Attributes:
        deadline: That moment.
    """

    __slots__ = ("_answers", "_error", "_waiter", "deadline")

    def __init__(self, timeout: float) -> None:
        self.deadline = monotonic() + timeout
        self._answers: list[T] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | anyio.Event | None = None

    async def wait(self) -> T:
        """Wait for the answer, which does not come in this turn of the event loop."""
        loop = running_loop()
        if loop is None:
            self._waiter = anyio.Event()
            await self._waiter.wait()
        else:
            self._waiter = loop.create_future()
            await self._waiter
        if self._answers:
            return self._answers[0]
        raise self._error or PublishTimeout("expected an answer in time, got none")

    def resolve(self, answer: T) -> None:
        """Let ``wait`` return this, unless it has an answer."""
        if not self._answers:
            self._answers.append(answer)
            self._wake()

    def end(self, error: Exception) -> None:
        """Let ``wait`` raise this, unless it has an answer."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if isinstance(waiter, anyio.Event):
            waiter.set()
        elif waiter is not None and not waiter.done():
            waiter.set_result(None)


class Replies:
    """What other processes have replied to the questions of this one."""

    def __init__(self) -> None:
        self._by_number: dict[int, list[Any]] = {}
        self._arrived = anyio.Event()

    def add(self, number: int, reply: Any) -> None:
        """One has replied to the question of this number. Late replies are ignored."""
        if (replies := self._by_number.get(number)) is not None:
            replies.append(reply)
            self._arrived.set()
            self._arrived = anyio.Event()

    async def collect(
        self,
        number: int,
        question: Mapping[str, Any],
        ask: Callable[[], Awaitable[tuple[int, int]]],
        *,
        first: bool,
        timeout: float,
    ) -> list[Any]:
        """
        Ask a question, and wait for the replies.

        Args:
            number: Of the question.
            question: What is asked. The log names it if some do not reply.
            ask: Asks, and returns how many were asked and how many are left out because they do not read.
            first: Wait for one only.
            timeout: In seconds.
        """
        replies = self._by_number[number] = []
        try:
            asked, left_out = await ask()
            with anyio.move_on_after(timeout):
                while len(replies) < (min(asked, 1) if first else asked):
                    await self._arrived.wait()
            count = asked + left_out
            if len(replies) < count and not first:
                kinds = ", ".join(question)
                text = "%d of %d workers answered within %g s; the others are left out: %s"
                _log.warning(text, len(replies), count, timeout, kinds)
            # One read may bring several.
            return replies[:1] if first else replies
        finally:
            del self._by_number[number]
