"""Each connection sends a message, and the server sends it back."""

from collections.abc import Callable
from itertools import takewhile
from time import perf_counter
from typing import final

from microws.bench.connections import ClientConnection, leave_all, open_all
from microws.bench.handshaking import Handshake
from microws.bench.histogram import Histogram
from microws.bench.messages import Messages
from microws.bench.plan import Plan
from microws.bench.scenario import Scenario
from microws.bench.tally import Tally

__all__ = ["Echo"]


@final
class Echo(Scenario):
    """Messages, each answered on its own connection."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.latency = Histogram()
        self.latencies = {"answer": self.latency}
        self.messages = Messages(plan.message, size=plan.size, binary=plan.binary)
        self.is_sending = False
        # Of all connections, so that what goes to a wrong one is seen.
        self.next_number = 0
        self._all: list[_Echoing] = []
        self._open: list[_Echoing] = []
        self._turn = 0

    async def open(self, told: Callable[[int], None]) -> bool:
        handshake = self.handshake(self.plan.target)
        opened = await open_all(
            self.dialer(self.plan.target),
            lambda: _Echoing(handshake, self.tally, self),
            self.plan.connections,
            tally=self.tally,
            told=told,
        )
        self._all = opened
        self._open = [connection for connection in opened if connection.is_open]
        return bool(opened)

    def start(self) -> None:
        self.is_sending = True
        for connection in self._open:
            for _ in range(self.plan.in_flight):
                connection.send(perf_counter())

    def send(self, due: float) -> bool:
        for _ in range(len(self._open)):
            self._turn = (self._turn + 1) % len(self._open)
            connection = self._open[self._turn]
            if connection.is_writable:
                connection.send(due)
                return True
        return False

    def stop(self) -> None:
        self.is_sending = False

    @property
    def is_over(self) -> bool:
        return not self._open

    @property
    def under_way(self) -> int:
        return sum(len(connection.under_way) for connection in self._open)

    def give_up(self, since: float) -> None:
        for connection in self._open:
            connection.give_up(since)

    async def close(self) -> None:
        await leave_all(self._all, timeout=self.plan.timeout, tally=self.tally)

    def forget(self, connection: "_Echoing") -> None:
        """The connection has ended, and with it what it waited for."""
        self.tally.lost += len(connection.under_way)
        if connection in self._open:
            self._open.remove(connection)


@final
class _Echoing(ClientConnection):
    """
    One connection.

    Attributes:
        under_way: When each message that is not answered was sent, or due; the oldest first.
    """

    def __init__(self, handshake: Handshake, tally: Tally, echo: Echo) -> None:
        super().__init__(handshake, tally)
        self.under_way: dict[int, float] = {}
        self._echo = echo
        self._messages = echo.messages
        self._latest = -1
        self._given_up: set[int] = set()

    def send(self, since: float) -> None:
        echo = self._echo
        number = echo.next_number
        echo.next_number = number + 1
        self.under_way[number] = since
        self._tally.sent += 1
        self.write(self._messages.frame(number))

    def messages_received(self, messages: list[bytes]) -> None:
        now = perf_counter()
        echo = self._echo
        for payload in messages:
            if self._messages.is_numbered:
                number = self._messages.number_in(payload)
                if number is None:
                    self._tally.wrong += 1
                    continue
            else:
                number = next(iter(self.under_way), -1)
            since = self.under_way.pop(number, None)
            if since is None:
                if number in self._given_up:
                    self._given_up.discard(number)
                    self._tally.late += 1
                else:
                    self._tally.duplicates += 1
                continue
            if number < self._latest:
                self._tally.out_of_order += 1
            else:
                self._latest = number
            if self._messages.is_numbered and not self._messages.is_whole_in(payload):
                self._tally.wrong += 1
            echo.latency.record(now - since)
            echo.done += 1
            if echo.is_sending:
                self.send(perf_counter())

    def give_up(self, since: float) -> None:
        for number in list(takewhile(lambda number: self.under_way[number] <= since, self.under_way)):
            del self.under_way[number]
            self._given_up.add(number)
            self._tally.lost += 1
            if self._echo.is_sending:
                self.send(perf_counter())

    def connection_ended(self) -> None:
        self._echo.forget(self)
