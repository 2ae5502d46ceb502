"""Closes connections at a time of the clock: ``ws.expire``."""

import logging
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from time import time
from typing import Final, Generic, TypeVar

import anyio

from microws.hub.loop import running_loop

__all__ = ["Expiries"]

T = TypeVar("T")

_log = logging.getLogger("microws.websocket")

# Seconds after which the clock is read again: it may be set, and it goes on while the machine sleeps.
_LOOK_INTERVAL: Final = 1.0
# Items that are due in one turn of the event loop.
_MOST_AT_ONCE: Final = 256
# Entries of items that have ended or whose time was changed, beyond those that are valid, before they are removed.
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
        self._stop_timer: Callable[[], object] | None = None

    def __len__(self) -> int:
        return len(self._valid)

    def set(self, item: T, at: float) -> None:
        """Set or change the time of ``item``, in Unix seconds. Call it in the event loop."""
        number = self._valid[item] = next(self._numbers)
        heappush(self._entries, (at, number, item))
        self._remove_stale()
        if self._stop_timer is None or self._entries[0][1] == number:
            self._start_timer()

    def remove(self, item: T) -> None:
        """``item`` has no time any more."""
        self._valid.pop(item, None)
        self._remove_stale()
        if not self._valid:
            self._entries.clear()
            if self._stop_timer is not None:
                self._stop_timer()
                self._stop_timer = None

    def _remove_stale(self) -> None:
        if len(self._entries) > 2 * len(self._valid) + _MOST_STALE:
            self._entries = [entry for entry in self._entries if self._valid.get(entry[2]) == entry[1]]
            heapify(self._entries)

    def _start_timer(self) -> None:
        if self._stop_timer is not None:
            self._stop_timer()
        delay = min(max(self._entries[0][0] - time(), 0.0), _LOOK_INTERVAL)
        if (loop := running_loop()) is not None:
            self._stop_timer = loop.call_later(delay, self._look).cancel
        else:
            from trio.lowlevel import spawn_system_task  # here, because it need not be installed

            scope = anyio.CancelScope()
            self._stop_timer = scope.cancel
            spawn_system_task(self._look_later, delay, scope)

    async def _look_later(self, delay: float, scope: "anyio.CancelScope") -> None:
        """On trio, which has no timers, in a task of the event loop: all connections of the app share it."""
        with scope:
            await anyio.sleep(delay)
            self._look()

    def _look(self) -> None:
        self._stop_timer = None
        now = time()
        due = 0
        while self._entries and self._entries[0][0] <= now and due < _MOST_AT_ONCE:
            _, number, item = heappop(self._entries)
            if self._valid.get(item) == number:
                del self._valid[item]
                due += 1
                try:
                    self._on_due(item)
                except Exception:
                    # The others still end at their time.
                    _log.exception("a connection could not be closed at its time")
        if not self._valid:
            self._entries.clear()
        elif self._stop_timer is None:
            self._start_timer()
