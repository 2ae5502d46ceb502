"""Sending by the clock, whatever comes back: the open loop."""

import asyncio
import threading
from collections.abc import Callable
from time import perf_counter
from typing import final

from microws.bench.histogram import Histogram

__all__ = ["Pace"]

# Seconds between two looks at the clock. The timers of event loops count whole milliseconds, and many an answer takes
# less; so a thread waits.
STEP = 0.00025
# At a time, so that what comes back is read meanwhile.
MAX_BURST = 256


@final
class Pace:
    """
    Calls ``send`` so many times a second.

    Args:
        send: Sends one message that is due at the time it is given; ``False``: not now. It is asked again then, for the
            same one.

    Attributes:
        lateness: How long after the time that it was due each message was sent.
    """

    def __init__(self, rate: float, send: Callable[[float], bool]) -> None:
        self.lateness = Histogram()
        self._rate = rate
        self._send = send
        self._start = 0.0
        self._sent = 0
        self._stopped = threading.Event()
        self._is_asked = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._wait, name="microws bench", daemon=True)

    def start(self) -> None:
        """The first one is due now."""
        self._start = perf_counter()
        self._thread.start()

    def stop(self) -> int:
        """Send no more than what is due now; how many of those could not be sent."""
        self._stopped.set()
        self._thread.join()
        due = self._due()
        self._send_until(due)
        return due - self._sent

    def _due(self) -> int:
        return int((perf_counter() - self._start) * self._rate) + 1

    def _wait(self) -> None:
        step = max(STEP, 1 / self._rate)
        turn = 0
        while True:
            if not self._is_asked:
                self._is_asked = True
                self._loop.call_soon_threadsafe(self._send_due)
            turn = max(turn + 1, int((perf_counter() - self._start) / step))
            if self._stopped.wait(max(0.0, self._start + turn * step - perf_counter())):
                return

    def _send_due(self) -> None:
        self._is_asked = False
        if not self._stopped.is_set():
            self._send_until(self._due())

    def _send_until(self, number: int) -> None:
        for earlier in range(self._sent, min(number, self._sent + MAX_BURST)):
            due = self._start + earlier / self._rate
            if not self._send(due):
                return
            self._sent += 1
            self.lateness.record(perf_counter() - due)
