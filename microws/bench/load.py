"""The load: echoes and fan-outs, which are streams of numbered messages, and connects."""

import asyncio
from collections.abc import Callable, Coroutine
from itertools import takewhile
from time import perf_counter
from typing import Any, final

from microws.bench.connection import (
    FAILURES,
    ClientConnection,
    Endpoint,
    HttpConnection,
    close_all,
    connect,
    open_all,
    reason_of,
)
from microws.bench.histogram import Histogram
from microws.bench.plan import Messages, Plan
from microws.bench.report import Result

__all__ = ["Connects", "Messaging"]

# Concurrent POSTs of the open loop.
MAX_POSTS = 64
# Seconds before the next attempt after a failed connect or POST.
PAUSE = 0.05
# Seconds after the last handshake: many apps subscribe a connection after they have accepted it.
SETTLING = 0.3


class _Load:
    """
    What ``measure`` drives.

    Attributes:
        done: Answers, deliveries or connects so far.
        sent: Messages, publishes or connects that were started.
        is_closed_loop: Whether the end of one starts the next one.
    """

    def __init__(self, plan: Plan, result: Result) -> None:
        self.plan = plan
        self.result = result
        self.done = self.sent = 0
        self.is_closed_loop = False
        self.tasks: set[asyncio.Task[None]] = set()

    def start_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        """Close all connections."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@final
class _Pending:
    """A message that has not reached all its receivers."""

    __slots__ = ("is_answered", "remaining", "since")

    def __init__(self, since: float, remaining: int) -> None:
        self.since = since
        self.remaining = remaining
        self.is_answered = False


@final
class _Stream:
    """
    The messages of one sender to its receivers: an echo has one stream for each connection, a fan-out one in all.

    Args:
        sender: ``None``: POSTs.
    """

    def __init__(self, load: "Messaging", index: int, sender: ClientConnection | None) -> None:
        self.load = load
        self.sender = sender
        self.mark = load.messages.mark(index)
        self.receivers: set[_Receiver] = set()
        self.pending: dict[int, _Pending] = {}
        self.next_number = 0
        self.last_payload = b""
        self.last_found: tuple[int | None, bool] = None, False

    @property
    def can_send(self) -> bool:
        return len(self.load.tasks) < MAX_POSTS if self.sender is None else self.sender.is_writable

    def send(self, since: float) -> None:
        number = self.next_number
        self.next_number = number + 1
        pending = self.pending[number] = _Pending(since, len(self.receivers))
        self.load.sent += 1
        payload = self.load.messages.payload(self.mark, number)
        if self.sender is None:
            self.load.start_task(self._post(number, pending, payload))
        else:
            pending.is_answered = True
            self.sender.write(self.load.messages.frame(payload))

    async def _post(self, number: int, pending: _Pending, payload: bytes) -> None:
        idle = self.load.idle
        connection = idle.pop() if idle else HttpConnection(self.load.publish_endpoint)
        try:
            await connection.post(payload)
            self.load.posts.record(perf_counter() - pending.since)
        except FAILURES as error:
            self.load.result.failures["publishes_failed"][reason_of(error)] += 1
            await asyncio.sleep(PAUSE)
            pending.remaining = 0
        finally:
            idle.append(connection)
        pending.is_answered = True
        self.check(number, pending)

    def check(self, number: int, pending: _Pending) -> None:
        """If this message is finished, send the next one of the closed loop."""
        if pending.is_answered and not pending.remaining:
            self.pending.pop(number, None)
            if self.load.is_closed_loop and self.receivers and not self.load.is_over:
                self.send(perf_counter())

    def give_up(self, since: float) -> None:
        """Count as lost what was sent at ``since`` or earlier and has not arrived."""
        for number, pending in list(takewhile(lambda item: item[1].since <= since, self.pending.items())):
            if pending.is_answered:
                self.load.result.counts["lost"] += pending.remaining
                pending.remaining = 0
                if not self.load.plan.is_numbered:
                    for receiver in self.receivers:
                        receiver.expected = max(receiver.expected, number + 1)
                self.check(number, pending)


@final
class _Receiver:
    """
    What one connection has received of its stream.

    Attributes:
        expected: The number after the highest one received.
        missing: Lower numbers that have not arrived.
    """

    def __init__(self, stream: _Stream) -> None:
        self.stream = stream
        self.expected = 0
        self.missing: set[int] = set()

    def receive(self, payloads: list[bytes]) -> None:
        now = perf_counter()
        stream = self.stream
        load, counts = stream.load, stream.load.result.counts
        for payload in payloads:
            number, is_complete = self.expected if self.expected < stream.next_number else None, True
            if load.plan.is_numbered:
                # All receivers of a stream get the same payload, which is cheaper to compare than to search.
                if payload != stream.last_payload:
                    stream.last_payload = payload
                    stream.last_found = load.messages.number_in(payload, stream.mark)
                number, is_complete = stream.last_found
            if number is None or number >= stream.next_number:
                # On a topic it may be another message of the app.
                counts["others" if load.plan.publish else "wrong" if load.plan.is_numbered else "duplicates"] += 1
                continue
            if number == self.expected:
                self.expected = number + 1
            elif number > self.expected:
                self.missing.update(range(self.expected, number))
                self.expected = number + 1
            elif number in self.missing:
                self.missing.discard(number)
                counts["out_of_order"] += load.plan.is_ordered
            else:
                counts["duplicates"] += 1
                continue
            counts["wrong"] += not is_complete
            pending = stream.pending.get(number)
            if pending is not None and pending.remaining:
                load.deliveries.record(now - pending.since)
                load.done += 1
                pending.remaining -= 1
                if not pending.remaining:
                    load.last_deliveries.record(now - pending.since)
                    stream.check(number, pending)

    def end(self) -> None:
        """The connection has ended: nothing more arrives."""
        stream = self.stream
        stream.receivers.discard(self)
        if not stream.receivers:
            stream.load.streams.remove(stream)
        for number, pending in list(stream.pending.items()):
            if pending.remaining and (number >= self.expected or number in self.missing):
                pending.remaining -= 1
                stream.load.result.counts["lost"] += 1
                stream.check(number, pending)


@final
class Messaging(_Load):
    """Echoes or a fan-out."""

    def __init__(self, plan: Plan, result: Result) -> None:
        super().__init__(plan, result)
        self.messages: Messages = Messages(plan)
        self.streams: list[_Stream] = []
        self.deliveries: Histogram = Histogram()
        self.last_deliveries: Histogram = Histogram()
        self.posts: Histogram = Histogram()
        result.latencies = {"answer": self.deliveries}
        if plan.publish:
            result.latencies = {"delivery": self.deliveries, "to the last": self.last_deliveries}
            self.publish_endpoint: Endpoint = Endpoint(plan, plan.publish)
        if plan.posts:
            result.latencies["POST"] = self.posts
        self.idle: list[HttpConnection] = []
        self._publisher: ClientConnection | None = None
        self._connections: list[ClientConnection] = []
        self._turn = 0

    async def open(self, status: Callable[[str], None]) -> None:
        """Connect."""
        plan = self.plan
        try:
            if plan.posts:
                self.idle.append(HttpConnection(self.publish_endpoint))
                await self.idle[0].open()
            elif plan.publish:
                self._publisher = await connect(self.publish_endpoint, self.result)
                self._connections.append(self._publisher)
        except FAILURES as error:
            self.result.failures["publishes_failed"][reason_of(error)] += 1
            return
        opened = await open_all(Endpoint(plan, plan.url), self.result, status)
        self._connections += opened
        for index, connection in enumerate(opened):
            if connection.is_open:
                if not self.streams or not plan.publish:
                    self.streams.append(_Stream(self, index, self._publisher if plan.publish else connection))
                receiver = _Receiver(self.streams[-1])
                self.streams[-1].receivers.add(receiver)
                connection.on_messages, connection.on_end = receiver.receive, receiver.end
        if self.streams and plan.publish:
            await asyncio.sleep(SETTLING)

    def start(self) -> None:
        """Begin the closed loop."""
        self.is_closed_loop = True
        for stream in list(self.streams):
            for _ in range(self.plan.in_flight):
                stream.send(perf_counter())

    def send(self, due: float) -> bool:
        """Open loop: send what was due at ``due``; returns ``False`` if nothing can be sent now."""
        for _ in range(0 if self.is_over else len(self.streams)):
            self._turn = (self._turn + 1) % len(self.streams)
            if self.streams[self._turn].can_send:
                self.streams[self._turn].send(due)
                return True
        return False

    @property
    def is_over(self) -> bool:
        """Whether no connection is left."""
        return not self.streams or (self._publisher is not None and not self._publisher.is_open)

    @property
    def pending(self) -> int:
        """How many are not finished."""
        return sum(len(stream.pending) for stream in self.streams)

    def give_up(self, since: float) -> None:
        """Count as lost what was sent at ``since`` or earlier and has not arrived."""
        for stream in self.streams:
            stream.give_up(since)

    async def close(self) -> None:
        await super().close()
        for connection in self.idle:
            connection.close()
        await close_all(self._connections, self.plan.timeout, self.result)


@final
class Connects(_Load):
    """Connect, send a Close frame, wait until the server closes, repeat."""

    def __init__(self, plan: Plan, result: Result) -> None:
        super().__init__(plan, result)
        self._handshakes, self._closes = Histogram(), Histogram()
        result.latencies = {"handshake": self._handshakes, "until closed": self._closes}
        self._endpoint = Endpoint(plan, plan.url)

    async def open(self, status: Callable[[str], None]) -> None:
        """Connect once, so that a wrong URL fails once."""
        await self._connect(perf_counter())
        self._has_failed = not self.done

    @property
    def is_over(self) -> bool:
        """Whether the first connect failed."""
        return self._has_failed

    def start(self) -> None:
        """Begin the closed loop."""
        self.is_closed_loop = True
        for _ in range(self.plan.connections):
            self.start_task(self._repeat())

    def send(self, due: float) -> bool:
        """Open loop: connect; returns ``False`` if too many connections are open."""
        if len(self.tasks) < self.plan.connections:
            self.start_task(self._connect(due))
            return True
        return False

    @property
    def pending(self) -> int:
        """How many are not finished."""
        return len(self.tasks)

    def give_up(self, since: float) -> None:
        """Do nothing: each step of a connect has its own time-out."""

    async def _repeat(self) -> None:
        while self.is_closed_loop:
            await self._connect(perf_counter())

    async def _connect(self, since: float) -> None:
        self.sent += 1
        try:
            connection = await connect(self._endpoint, self.result)
        except FAILURES as error:
            self.result.failures["handshakes_failed"][reason_of(error)] += 1
            if self.is_closed_loop:
                await asyncio.sleep(PAUSE)
            return
        try:
            self._handshakes.record(perf_counter() - since)
            await close_all([connection], self.plan.timeout, self.result)
        finally:
            connection.abort()
        self._closes.record(perf_counter() - since)
        self.done += 1
