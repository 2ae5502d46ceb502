"""What waits for answers of other processes."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, Mapping
from time import monotonic
from typing import Any, Generic, TypeVar

import anyio

from microws.hub.loop import running_loop

__all__ = ["Pending", "Replies"]

T = TypeVar("T")

_log = logging.getLogger("microws.hub")


class Pending(Generic[T]):
    """
    A message, or a question, that one task waits for.

    Args:
        timeout: Seconds after which its owner calls ``end``.

    Attributes:
        deadline: That moment.
    """

    __slots__ = ("_waiter", "deadline")

    def __init__(self, timeout: float) -> None:
        self.deadline = monotonic() + timeout
        self._waiter: asyncio.Future[T] | _Future[T] | None = None

    def wait(self) -> Awaitable[T]:
        """To be awaited at once: the answer, which does not come in this turn of the event loop."""
        loop = running_loop()
        # An event, and a coroutine that waits for it, take three times as long.
        waiter = self._waiter = _Future[T]() if loop is None else loop.create_future()
        return waiter

    def resolve(self, answer: T) -> None:
        """Let the task go on with this, if it waits."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)

    def end(self, error: Exception) -> None:
        """Let the task raise this, if it waits."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
            waiter.exception()  # otherwise asyncio logs it, if the task is cancelled in this turn


class _Future(Generic[T]):
    """asyncio's, on trio."""

    __slots__ = ("_done", "_error", "_result")

    def __init__(self) -> None:
        self._done = anyio.Event()
        self._result: list[T] = []
        self._error: Exception | None = None

    def done(self) -> bool:
        return self._done.is_set()

    def set_result(self, result: T) -> None:
        self._result.append(result)
        self._done.set()

    def set_exception(self, error: Exception) -> None:
        self._error = error
        self._done.set()

    def exception(self) -> Exception | None:
        return self._error

    def __await__(self) -> Generator[Any, Any, T]:
        yield from self._done.wait().__await__()
        if self._error is not None:
            raise self._error
        return self._result[0]


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
