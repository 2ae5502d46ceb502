"""Closes connections at a time of the clock: ``ws.expire``."""

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from time import time
from typing import Final, Generic, TypeVar

__all__ = ["LOOK_INTERVAL", "Expiries"]

T = TypeVar("T")

# Seconds after which the clock is read again: it may be set, and it goes on while the machine sleeps.
LOOK_INTERVAL: Final = 1.0
# Items that are due in one turn of the event loop.
_MOST_AT_ONCE: Final = 256
# Entries of items whose time was changed, beyond those that are valid, before they are removed.
_MOST_STALE: Final = 64


class Expiries(Generic[T]):
    """
    Calls ``on_due`` with each item when the clock has reached its time, with one timer for all.

    Args:
        on_due: Called once for each item. Never waits.
    """

    def __init__(self, on_due: Callable[[T], None]) -> None:
        self._on_due = on_due
        # By time. Setting the time of an item again adds another entry; the number of the valid one is in ``_valid``.
        self._entries: list[tuple[float, int, T]] = []
        self._valid: dict[T, int] = {}
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._valid)

    def set(self, item: T, at: float) -> None:
        """Set or change the time of ``item``, in Unix seconds. Call it in the event loop."""
        number = self._valid[item] = next(self._numbers)
        heappush(self._entries, (at, number, item))
        if len(self._entries) > 2 * len(self._valid) + _MOST_STALE:
            self._entries = [entry for entry in self._entries if self._valid.get(entry[2]) == entry[1]]
            heapify(self._entries)
        if self._timer is None or self._entries[0][1] == number:
            self._start_timer(asyncio.get_running_loop())

    def remove(self, item: T) -> None:
        """``item`` has no time any more."""
        self._valid.pop(item, None)
        if not self._valid:
            self._entries.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _start_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = min(max(self._entries[0][0] - time(), 0.0), LOOK_INTERVAL)
        self._timer = loop.call_later(delay, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = time()
        due = 0
        try:
            while self._entries and self._entries[0][0] <= now and due < _MOST_AT_ONCE:
                _, number, item = heappop(self._entries)
                if self._valid.get(item) == number:
                    del self._valid[item]
                    due += 1
                    self._on_due(item)
        finally:
            # Also after a failure of one: the others still end at their time.
            if not self._valid:
                self._entries.clear()
            elif self._timer is None:
                self._start_timer(loop)
