"""Deadlines of many connections, all of the same length, on one timer."""

import asyncio
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import takewhile
from math import inf
from typing import Final, Generic, TypeVar

__all__ = ["Deadlines", "deadlines_of"]

T = TypeVar("T")

# Seconds. If a timer fires later than this, something has blocked the event loop.
_LATE: Final = 0.1
# Seconds that the loop then gets to read the data that arrived in the meantime.
_CATCH_UP: Final = 0.05


class Deadlines(Generic[T]):
    """
    Calls ``on_due`` with each item, ``seconds`` after it was started. Items are due in the order of their starts.

    A blocked event loop does not count. Some event loops call their timers before they read. So items that became due
    while the loop was blocked are checked again once the loop has read what the clients sent.

    Args:
        seconds: Time from ``start`` to the deadline; 0 for no deadline.
        on_due: Called once for each item that was not stopped.
    """

    def __init__(self, seconds: float, on_due: Callable[[T], None]) -> None:
        self._seconds = seconds
        self._on_due = on_due
        # The event loop of the first start, because asking for the running one is a system call until Python 3.12.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __contains__(self, item: T) -> bool:
        return item in self._due

    def __iter__(self) -> Iterator[T]:
        return iter(self._due)

    def __len__(self) -> int:
        return len(self._due)

    def start(self, item: T) -> None:
        """Set or reset the deadline of ``item``."""
        if not self._seconds:
            return
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        due = loop.time() + self._seconds
        self._due.pop(item, None)
        self._due[item] = due
        if self._timer is None:
            self._timer = loop.call_at(due, self._fire, due)

    def stop(self, item: T) -> None:
        """Remove the deadline of ``item``, if it has one. The timer keeps running."""
        self._due.pop(item, None)

    def _fire(self, planned: float, known: float = -inf) -> None:
        """
        Args:
            planned: When this should have been called.
            known: The event loop has read data since this time. Items that were due by then are due now.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        is_late = now - planned > _LATE
        # The timer may fire early by the resolution of the clock.
        limit = known if is_late else max(now, planned)
        try:
            for item, _ in list(takewhile(lambda entry: entry[1] <= limit, self._due.items())):
                if self._due.pop(item, None) is not None:
                    self._on_due(item)
        finally:
            # Only now: items that ``on_due`` starts are due after the others.
            self._timer = None
            if self._due and is_late:
                self._timer = loop.call_at(now + _CATCH_UP, self._fire, now + _CATCH_UP, now)
            elif self._due:
                due = next(iter(self._due.values()))
                self._timer = loop.call_at(due, self._fire, due)


# A weak dictionary would take five times as long. Who uses deadlines that this forgets still has them.
@lru_cache(maxsize=16)
def deadlines_of(_: asyncio.AbstractEventLoop, seconds: float, on_due: Callable[[T], None]) -> Deadlines[T]:
    """The deadlines that everything in an event loop with the same ``seconds`` and ``on_due`` shares."""
    return Deadlines(seconds, on_due)
