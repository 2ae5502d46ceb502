"""What waits for an answer of another process."""

import asyncio
from time import monotonic
from typing import Generic, TypeVar

import anyio

from microws.errors import PublishTimeout
from microws.hub.loop import running_loop

__all__ = ["Pending"]

T = TypeVar("T")


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
