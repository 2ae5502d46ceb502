"""Warns of code that blocks the event loop, and so every connection: ``--warn-blocked``."""

import logging
import sys
import threading
import time
from traceback import walk_stack
from typing import Final

import anyio

from microws.server.process_end import blocked_code

__all__ = ["warn_of_blocks"]

_log = logging.getLogger("microws.server")

# Parts of the limit, and seconds at least, between two signs of life of the loop and two looks at them.
_LOOKS: Final = 10
_MIN_INTERVAL: Final = 0.02
# Seconds in which a place is named once, and places that are remembered.
_REPEAT_INTERVAL: Final = 60.0
_MAX_PLACES: Final = 1000

_DEBUGGERS: Final = frozenset({"bdb", "pdb"})


async def warn_of_blocks(limit: float) -> None:
    """
    Warn of each block of the event loop of the main thread for ``limit`` seconds or longer, when it has ended.

    The event loop notes the time a few times in each ``limit``, and a thread looks whether it does. So nothing is added
    to the work of a request. A stop of the whole process is no block: then the loop is not in the app's code.

    Runs until it is cancelled.
    """
    watch = _Watch(limit)
    thread = threading.Thread(target=watch.run, name="microws blocked", daemon=True)
    thread.start()
    try:
        while True:
            watch.seen_at = time.monotonic()
            await anyio.sleep(watch.interval)
    finally:
        watch.has_ended.set()


class _Watch:
    """
    What the loop and the thread share.

    Attributes:
        interval: Seconds between two signs of life.
        seen_at: When the loop gave the last one.
        has_ended: The loop gives no more.
    """

    def __init__(self, limit: float) -> None:
        self.interval: float = max(limit / _LOOKS, _MIN_INTERVAL)
        self.seen_at: float = time.monotonic()
        self.has_ended = threading.Event()
        self._limit = limit
        self._named: dict[str, float] = {}

    def run(self) -> None:
        while not self.has_ended.wait(self.interval):
            seen_at = self.seen_at
            # The block begins up to one interval after the last sign.
            if time.monotonic() - seen_at < self._limit + self.interval:
                continue
            place = None if _is_debugged() else blocked_code()
            while self.seen_at == seen_at and not self.has_ended.wait(self.interval):
                pass
            if place is not None:
                self._warn(place, self.seen_at - seen_at - self.interval)

    def _warn(self, place: str, seconds: float) -> None:
        now = time.monotonic()
        if now < self._named.get(place, 0.0):
            return
        if len(self._named) >= _MAX_PLACES:
            self._named.clear()
        self._named[place] = now + _REPEAT_INTERVAL
        _log.warning("the event loop was blocked for %.1f s, and every connection with it: %s", seconds, place)


def _is_debugged() -> bool:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001
    return frame is not None and any(each.f_globals.get("__name__") in _DEBUGGERS for each, _ in walk_stack(frame))
