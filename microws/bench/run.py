"""A run from its first handshake to its last Close frame."""

import asyncio
import gc
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import final

from microws.bench.connects import Connects
from microws.bench.echo import Echo
from microws.bench.effort import Effort
from microws.bench.fan_out import FanOut
from microws.bench.pace import Pace
from microws.bench.plan import Plan
from microws.bench.result import Result
from microws.bench.scenario import Scenario

__all__ = ["Progress", "measure"]

# Seconds between two looks at what has been waited for too long, and at the clock.
STEP = 0.1

_SCENARIOS: dict[str, Callable[[Plan], Scenario]] = {"echo": Echo, "fan-out": FanOut, "connects": Connects}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """
    How far a run is.

    Attributes:
        phase: ``connecting``, ``warming up``, ``measuring`` or ``finishing``.
        done: Connections, or seconds.
        total: Of them.
        rate: Answers, deliveries or connects a second, of late.
    """

    phase: str
    done: float
    total: float
    rate: float = 0.0


async def measure(plan: Plan, *, told: Callable[[Progress], None], stop: asyncio.Event) -> Result:
    """
    Measure. Every wait in it has a limit: ``plan.timeout``, or ``plan.seconds``.

    Args:
        told: Called now and then.
        stop: Set it to end the run; what was measured until then is returned.
    """
    return await _Run(plan, told, stop).run()


class _Run:
    def __init__(self, plan: Plan, told: Callable[[Progress], None], stop: asyncio.Event) -> None:
        self._plan = plan
        self._told = told
        self._stop = stop
        self._scenario = _SCENARIOS[plan.mode](plan)
        self._pace = None if plan.rate is None else Pace(plan.rate, self._scenario.send)
        self._result = Result(
            plan=plan,
            latencies=self._scenario.latencies,
            lateness=self._pace and self._pace.lateness,
            tally=self._scenario.tally,
            loop="uvloop" if type(asyncio.get_running_loop()).__module__.startswith("uvloop") else "asyncio",
        )

    async def run(self) -> Result:
        scenario, result = self._scenario, self._result
        try:
            if await self._open():
                self._begin()
                try:
                    await self._pass("warming up", self._plan.warm_up)
                    if not self._is_over:
                        await self._measure()
                finally:
                    self._end()
                await self._finish()
        finally:
            gc.unfreeze()
            await scenario.close()
        result.is_interrupted = self._stop.is_set()
        return result

    async def _open(self) -> bool:
        """Connect, or be stopped."""
        connections = self._plan.connections

        def told(opened: int) -> None:
            self._told(Progress(phase="connecting", done=opened, total=connections))

        opening = asyncio.ensure_future(self._scenario.open(told))
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([opening, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            opening.cancel()
            await asyncio.wait([opening, stopped])
        return not opening.cancelled() and opening.result()

    def _begin(self) -> None:
        # What the connections are made of stays until the end: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        if self._pace is None:
            self._scenario.start()
        else:
            self._pace.start()

    @property
    def _is_over(self) -> bool:
        return self._stop.is_set() or self._scenario.is_over

    async def _measure(self) -> None:
        scenario, result = self._scenario, self._result
        for histogram in scenario.latencies.values():
            histogram.clear()
        if self._pace is not None:
            self._pace.lateness.clear()
        done, sent, start, effort = scenario.done, scenario.tally.sent, perf_counter(), Effort()
        await self._pass("measuring", self._plan.seconds)
        result.seconds = perf_counter() - start
        result.done = scenario.done - done
        result.sent = scenario.tally.sent - sent
        result.cpu, result.waited = effort.shares()
        result.is_cut_short = scenario.is_over

    def _end(self) -> None:
        self._scenario.stop()
        if self._pace is not None:
            self._scenario.tally.unsent = self._pace.stop()

    async def _finish(self) -> None:
        """Wait for what is under way."""
        scenario = self._scenario
        # A connect is a handshake and a Close frame, each with a limit of its own; nothing else takes so long.
        end = perf_counter() + self._plan.open_timeout + self._plan.timeout + STEP
        while scenario.under_way and perf_counter() < end and not self._stop.is_set():
            self._told(Progress(phase="finishing", done=0, total=scenario.under_way))
            await self._pause(STEP / 10)
            scenario.give_up(perf_counter() - self._plan.timeout)

    async def _pass(self, phase: str, seconds: float) -> None:
        """Let time pass, look after what takes too long, and tell how far it is."""
        scenario = self._scenario
        start = before = perf_counter()
        done = scenario.done
        rate = 0.0
        while not self._is_over and (left := start + seconds - perf_counter()) > 0:
            await self._pause(min(left, STEP))
            now = perf_counter()
            scenario.give_up(now - self._plan.timeout)
            if now - before >= 0.5:
                rate = (scenario.done - done) / (now - before)
                before, done = now, scenario.done
            self._told(Progress(phase=phase, done=min(now - start, seconds), total=seconds, rate=rate))

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass
