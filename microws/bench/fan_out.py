"""One publisher, and many who get what it says."""

import asyncio
from collections.abc import Callable, Iterable
from itertools import takewhile
from time import perf_counter
from typing import final

from microws.bench.connections import ClientConnection, leave_all, open_all
from microws.bench.dialing import Refused
from microws.bench.handshaking import Handshake
from microws.bench.histogram import Histogram
from microws.bench.messages import Messages
from microws.bench.plan import Plan
from microws.bench.publishers import MAX_POSTS, Posts, Publisher, WebSocketPublisher
from microws.bench.scenario import Scenario

__all__ = ["FanOut"]

# Seconds after the last handshake: many an app subscribes a connection when it has accepted it.
SETTLING = 0.3

# Bytes of a chunk that is worth remembering, and how many are.
MAX_CHUNK = 1 << 14
MAX_CHUNKS = 64


@final
class FanOut(Scenario):
    """
    Messages that are published, and come to every subscriber.

    Of the closed loop a publish is done when every subscriber has it, and the POST, if it was one, is answered.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.delivery = Histogram()
        self._last = Histogram()
        self.latencies = {"delivery": self.delivery, "to the last": self._last}
        self.messages = Messages(plan.message, size=plan.size, binary=plan.binary)
        self.under_way_by_number: dict[int, _Publish] = {}
        self.next_number = 0
        # The numbers in chunks that came of late.
        self.known: dict[bytes, list[int]] = {}
        self._is_sending = False
        self._all: list[_Subscriber] = []
        self._subscribers: dict[_Subscriber, None] = {}
        self._publisher = self._make_publisher()

    def _make_publisher(self) -> Publisher:
        plan = self.plan
        assert plan.publish is not None
        dialer = self.dialer(plan.publish)
        if plan.publish.is_websocket:
            handshake = self.handshake(plan.publish)
            return WebSocketPublisher(
                self.messages,
                self._answered,
                dialer=dialer,
                handshake=handshake,
                timeout=plan.timeout,
                tally=self.tally,
            )
        self._answer = self.latencies["POST"] = Histogram()
        at_a_time = plan.in_flight if plan.rate is None else MAX_POSTS
        return Posts(self.messages, self._answered, plan=plan, target=plan.publish, dialer=dialer, at_a_time=at_a_time)

    async def open(self, told: Callable[[int], None]) -> bool:
        plan = self.plan
        try:
            await self._publisher.open()
        except Refused as error:
            self.tally.failed_publishes[str(error)] += 1
            return False
        handshake = self.handshake(plan.target)
        opened = await open_all(
            self.dialer(plan.target),
            lambda: _Subscriber(handshake, self),
            plan.connections,
            tally=self.tally,
            told=told,
        )
        self._all = opened
        self._subscribers = dict.fromkeys(connection for connection in opened if connection.is_open)
        if self._subscribers:
            await asyncio.sleep(SETTLING)
        return bool(opened)

    def start(self) -> None:
        self._is_sending = True
        for _ in range(self.plan.in_flight):
            self._publish(perf_counter())

    def send(self, due: float) -> bool:
        if not self._publisher.can_publish or self.is_over:
            return False
        self._publish(due)
        return True

    def stop(self) -> None:
        self._is_sending = False

    @property
    def is_over(self) -> bool:
        return not self._subscribers or self._publisher.is_over

    @property
    def under_way(self) -> int:
        return len(self.under_way_by_number)

    def give_up(self, since: float) -> None:
        for number, publish in list(takewhile(lambda item: item[1].since <= since, self.under_way_by_number.items())):
            self.tally.lost += publish.to_go
            publish.to_go = 0
            if not self.messages.is_numbered:
                for subscriber in self._subscribers:
                    subscriber.skip(number)
            self._check(number, publish)
        self._publisher.give_up(since)

    async def close(self) -> None:
        await self._publisher.close()
        await leave_all(self._all, timeout=self.plan.timeout, tally=self.tally)

    def learn(self, chunk: bytes, numbers: list[int]) -> None:
        """The numbers of the messages that a chunk consists of, and nothing else."""
        if 0 < len(chunk) <= MAX_CHUNK:
            if len(self.known) >= MAX_CHUNKS:
                self.known.clear()
            self.known[chunk] = numbers

    def reached(self, number: int, publish: "_Publish", now: float) -> None:
        """The last subscriber has it."""
        self._last.record(now - publish.since)
        self._check(number, publish)

    def forget(self, subscriber: "_Subscriber") -> None:
        """The connection has ended, and with it what it waited for."""
        if subscriber not in self._subscribers:
            return
        del self._subscribers[subscriber]
        for number, publish in list(self.under_way_by_number.items()):
            if publish.to_go and not subscriber.has(number):
                publish.to_go -= 1
                self.tally.lost += 1
                self._check(number, publish)

    def _publish(self, since: float) -> None:
        number = self.next_number
        self.next_number += 1
        self.under_way_by_number[number] = _Publish(since, len(self._subscribers))
        self.tally.sent += 1
        self._publisher.publish(number)

    def _answered(self, number: int, failure: str | None) -> None:
        publish = self.under_way_by_number.get(number)
        if failure is not None:
            self.tally.failed_publishes[failure] += 1
        if publish is None:
            return
        publish.is_answered = True
        if failure is not None:
            # Nobody is to get it.
            publish.to_go = 0
        elif self.plan.posts:
            self._answer.record(perf_counter() - publish.since)
        self._check(number, publish)

    def _check(self, number: int, publish: "_Publish") -> None:
        if publish.is_answered and not publish.to_go:
            self.under_way_by_number.pop(number, None)
            if self._is_sending and not self.is_over:
                self._publish(perf_counter())


@final
class _Publish:
    """
    A message on its way.

    Attributes:
        since: When it was sent, or due.
        to_go: Subscribers that do not have it.
        is_answered: Whether the publisher is done with it.
    """

    __slots__ = ("is_answered", "since", "to_go")

    def __init__(self, since: float, to_go: int) -> None:
        self.since = since
        self.to_go = to_go
        self.is_answered = False


@final
class _Subscriber(ClientConnection):
    """One connection that is published to."""

    def __init__(self, handshake: Handshake, fan_out: FanOut) -> None:
        super().__init__(handshake, fan_out.tally)
        self._fan_out = fan_out
        self._expected = 0
        # Numbers below the one expected that have not come.
        self._missing: set[int] = set()
        self._chunk = b""

    def has(self, number: int) -> bool:
        """Whether that message has come."""
        return number < self._expected and number not in self._missing

    def skip(self, number: int) -> None:
        """Do not wait for that message."""
        self._expected = max(self._expected, number + 1)

    def data_received(self, data: bytes) -> None:
        # Subscribers get the same bytes. Those of small messages need not be read for each of them.
        is_between = self._frames.is_between
        if is_between and self.is_open and len(data) <= MAX_CHUNK:
            numbers = self._fan_out.known.get(data)
            if numbers is not None:
                self._deliver(numbers)
                return
        self._chunk = data if is_between else b""
        super().data_received(data)

    def messages_received(self, messages: list[bytes]) -> None:
        fan_out = self._fan_out
        if not fan_out.messages.is_numbered:
            self._count(len(messages))
            return
        numbers = []
        is_plain = self._frames.is_between and not self._frames.pings
        for payload in messages:
            number = fan_out.messages.number_in(payload)
            if number is None:
                is_plain = False
                self._tally.others += 1
            elif number >= fan_out.next_number:
                is_plain = False
                self._tally.wrong += 1
            else:
                numbers.append(number)
                if not fan_out.messages.is_whole_in(payload):
                    is_plain = False
                    self._tally.wrong += 1
        if is_plain:
            fan_out.learn(self._chunk, numbers)
        self._deliver(numbers)

    def _count(self, messages: int) -> None:
        """Messages without numbers: each is taken for the one expected."""
        known = min(messages, self._fan_out.next_number - self._expected)
        self._tally.duplicates += messages - known
        self._deliver(range(self._expected, self._expected + known))

    def _deliver(self, numbers: Iterable[int]) -> None:
        now = perf_counter()
        fan_out = self._fan_out
        under_way = fan_out.under_way_by_number
        record = fan_out.delivery.record
        for number in numbers:
            if number == self._expected:
                self._expected = number + 1
            elif not self._is_new(number):
                continue
            publish = under_way.get(number)
            if publish is None or not publish.to_go:
                self._tally.late += 1
                continue
            record(now - publish.since)
            fan_out.done += 1
            publish.to_go -= 1
            if not publish.to_go:
                fan_out.reached(number, publish, now)

    def connection_ended(self) -> None:
        self._fan_out.forget(self)

    def _is_new(self, number: int) -> bool:
        """Whether a message that is not the one expected comes for the first time."""
        if number > self._expected:
            self._missing.update(range(self._expected, number))
            self._expected = number + 1
        elif number in self._missing:
            self._missing.discard(number)
            if self._fan_out.plan.is_ordered:
                self._tally.out_of_order += 1
        else:
            self._tally.duplicates += 1
            return False
        return True
