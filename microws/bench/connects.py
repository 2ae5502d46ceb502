"""Connect, and leave again: handshakes."""

import asyncio
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any, final

from microws.bench.connections import ClientConnection, leave_all
from microws.bench.dialing import Refused
from microws.bench.histogram import Histogram
from microws.bench.plan import Plan
from microws.bench.scenario import Scenario

__all__ = ["Connects"]

# Seconds before the next try, after one that failed.
PAUSE = 0.05


@final
class Connects(Scenario):
    """So many at a time connect, send a Close frame, wait for the server to close, and begin again."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._handshakes = Histogram()
        self._whole = Histogram()
        self.latencies = {"handshake": self._handshakes, "until closed": self._whole}
        self._dialer = self.dialer(plan.target)
        self._handshake = self.handshake(plan.target)
        self._is_sending = False
        self._tasks: set[asyncio.Task[object]] = set()

    async def open(self, told: Callable[[int], None]) -> bool:
        # One alone, so that a wrong URL does not fail for the whole time.
        await self._connect(perf_counter())
        told(self.done)
        return self.done > 0

    def start(self) -> None:
        self._is_sending = True
        for _ in range(self.plan.connections):
            self._spawn(self._connect_again_and_again)

    def send(self, due: float) -> bool:
        if len(self._tasks) >= self.plan.connections:
            return False
        self._spawn(self._connect, due)
        return True

    def stop(self) -> None:
        self._is_sending = False

    @property
    def is_over(self) -> bool:
        return False

    @property
    def under_way(self) -> int:
        return len(self._tasks)

    def give_up(self, since: float) -> None:
        """Every step of a connect has its own limit."""

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, function: Callable[..., Coroutine[Any, Any, object]], *args: float) -> None:
        task = asyncio.get_running_loop().create_task(function(*args))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect_again_and_again(self) -> None:
        while self._is_sending:
            if not await self._connect(perf_counter()):
                await asyncio.sleep(PAUSE)

    async def _connect(self, since: float) -> bool:
        tally = self.tally
        tally.sent += 1
        try:
            connection = await self._dialer.connect(lambda: ClientConnection(self._handshake, tally))
        except Refused as error:
            tally.refused[str(error)] += 1
            return False
        try:
            self._handshakes.record(perf_counter() - since)
            await leave_all([connection], timeout=self.plan.timeout, tally=tally)
        finally:
            connection.abort()
        self._whole.record(perf_counter() - since)
        self.done += 1
        return True
