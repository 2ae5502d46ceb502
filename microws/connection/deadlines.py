"""Deadlines of one length for many connections, on one timer."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import takewhile
from math import inf
from typing import Final, Generic, TypeVar

__all__ = ["Deadlines"]

T = TypeVar("T")

# Seconds. A timer that fires later than this was held up by somebody who blocked the event loop.
_LATE: Final = 0.1
# Seconds that the loop then has to read what has come in the meantime.
_CATCH_UP: Final = 0.05


class Deadlines(Generic[T]):
    """
    Calls ``on_due`` with each item ``seconds`` after it was started: as all have one length, the first is due first.

    An event loop that stood still makes no item late: those that fell due meanwhile are looked at again when it has
    read what its clients have sent. Some event loops call their timers before they read.

    Args:
        seconds: From ``start`` to the deadline; 0 for no deadline at all.
        on_due: Called once for each item that was not stopped.
    """

    def __init__(self, seconds: float, on_due: Callable[[T], None]) -> None:
        self._seconds = seconds
        self._on_due = on_due
        self._due: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __contains__(self, item: T) -> bool:
        return item in self._due

    def __iter__(self) -> Iterator[T]:
        return iter(self._due)

    def __len__(self) -> int:
        return len(self._due)

    def start(self, item: T) -> None:
        """Set the deadline of ``item`` anew."""
        if not self._seconds:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + self._seconds
        self._due.pop(item, None)
        self._due[item] = due
        if self._timer is None:
            self._timer = loop.call_at(due, self._fire, due)

    def stop(self, item: T) -> None:
        """Forget the deadline of ``item``, if it has one. The timer finds out for itself."""
        self._due.pop(item, None)

    def _fire(self, planned: float, known: float = -inf) -> None:
        """
        Args:
            planned: When this was to be called.
            known: The event loop has read since then: who was due by then is due now, however late it is again.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        is_late = now - planned > _LATE
        # The timer may come a little early, by the clock's resolution.
        limit = known if is_late else max(now, planned)
        try:
            for item, _ in list(takewhile(lambda entry: entry[1] <= limit, self._due.items())):
                if self._due.pop(item, None) is not None:
                    self._on_due(item)
        finally:
            # Not before: what was started meanwhile is due behind what was there.
            self._timer = None
            if self._due and is_late:
                self._timer = loop.call_at(now + _CATCH_UP, self._fire, now + _CATCH_UP, now)
            elif self._due:
                due = next(iter(self._due.values()))
                self._timer = loop.call_at(due, self._fire, due)
