"""One run, from the first handshake to the last Close frame."""

import asyncio
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import final

from microws.bench.load import Connects, Messaging
from microws.bench.plan import Plan
from microws.bench.report import Result

__all__ = ["measure"]

# Seconds between two checks for messages that are overdue.
STEP = 0.1
# Seconds between two checks for messages that are due, and the most that are sent at each.
PACE = 0.00025
MAX_BURST = 256
# Linux: nanoseconds that the main thread has run, and those that it was ready to run and had no core.
SCHEDULER = Path("/proc/self/schedstat")


async def measure(plan: Plan, status: Callable[[str], None] = lambda text: None) -> Result:
    """
    Run ``plan``. Each wait has a limit: ``plan.timeout`` or ``plan.seconds``.

    Cancelled, as ``asyncio.Runner`` does on Ctrl-C, it returns what was measured until then.

    Args:
        status: Called now and then with a line for the terminal.
    """
    result = Result(plan=plan, loop=type(asyncio.get_running_loop()).__module__.partition(".")[0])
    load = (Connects if plan.mode == "connects" else Messaging)(plan, result)
    pace: _Pace | None = None
    try:
        await load.open(status)
        if load.is_over:
            return result
        # The connections live until the end: the collector need not visit them again and again.
        gc.freeze()
        if plan.rate is not None:
            pace = _Pace(plan.rate, load, result)
        else:
            load.start()
        try:
            await _wait(load, "warming up", plan.warm_up, status)
            await _measure(load, status)
        finally:
            load.is_closed_loop = False
            if pace is not None:
                pace.stop()
        # A connect is a handshake and a closing handshake, each with its own time-out.
        end = perf_counter() + 2 * plan.timeout + STEP
        while load.pending and perf_counter() < end:
            status(f"waiting for {load.pending:,} pending")
            await asyncio.sleep(STEP / 10)
            load.give_up(perf_counter() - plan.timeout)
    except asyncio.CancelledError:
        result.is_interrupted = True
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
    finally:
        gc.unfreeze()
        await load.close()
    return result


async def _measure(load: Connects | Messaging, status: Callable[[str], None]) -> None:
    result = load.result
    for histogram in (*result.latencies.values(), result.lateness):
        histogram.clear()
    load.done = load.sent = 0
    start, cpu, waited = perf_counter(), process_time(), _waited()
    try:
        await _wait(load, "measuring", load.plan.seconds, status)
    finally:
        result.done, result.sent = load.done, load.sent
        result.seconds = perf_counter() - start
        result.cpu = (process_time() - cpu) / result.seconds
        result.waited = (_waited() - waited) / result.seconds


async def _wait(load: Connects | Messaging, phase: str, seconds: float, status: Callable[[str], None]) -> None:
    """Let ``seconds`` pass; give up overdue messages, and show the progress."""
    start = perf_counter()
    while not load.is_over and (left := start + seconds - perf_counter()) > 0:
        status(f"{phase}  {seconds - left:.0f} of {seconds:g} s  {load.done:,} {load.result.counted}")
        await asyncio.sleep(min(left, STEP))
        load.give_up(perf_counter() - load.plan.timeout)


@final
class _Pace:
    """
    The open loop: sends by the clock, whatever comes back. The first message is due now.

    A thread watches the clock, because the timers of event loops count whole milliseconds, which is longer than many
    answers take.
    """

    def __init__(self, rate: float, load: Connects | Messaging, result: Result) -> None:
        self._rate = rate
        self._load = load
        self._result = result
        self._sent = 0
        self._start = perf_counter()
        self._stopped = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._watch, name="microws bench", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send what is due now, and nothing more; count what could not be sent."""
        self._stopped.set()
        self._thread.join()
        self._send_due()
        self._result.counts["unsent"] = self._due - self._sent

    @property
    def _due(self) -> int:
        return int((perf_counter() - self._start) * self._rate) + 1

    def _watch(self) -> None:
        while not self._stopped.wait(max(PACE, self._start + self._sent / self._rate - perf_counter())):
            self._loop.call_soon_threadsafe(self._send_due)

    def _send_due(self) -> None:
        for number in range(self._sent, min(self._due, self._sent + MAX_BURST)):
            due = self._start + number / self._rate
            if not self._load.send(due):
                break
            self._sent += 1
            self._result.lateness.record(perf_counter() - due)


def _waited() -> float:
    try:
        return int(SCHEDULER.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
