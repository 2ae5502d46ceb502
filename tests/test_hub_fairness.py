"""The hub lets other tasks run, and its cost is bounded: counted in turns and steps, not in seconds."""

import asyncio
import sys
from collections import Counter
from contextlib import asynccontextmanager

import anyio
import pytest
from test_hub import RunningHub

from microws.codec import JSON, TEXT, Codecs
from microws.hub import Outbox, Subscriber

pytestmark = pytest.mark.anyio

MIB = 1 << 20
# A counter for each of 100,000 outboxes takes seconds.
LOSSES = Counter()


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Sink:
    """A client's end that takes everything, and counts the writes to all of them."""

    is_writable = True
    is_lost = False
    socket = None
    writes_to_all = 0

    def __init__(self):
        self.writes = []

    def buffered(self):
        return 0

    def write(self, frames):
        self.writes.append(frames)
        Sink.writes_to_all += 1

    def close(self, code, reason):
        raise AssertionError(f"closed with {code} {reason}")


def subscriber(number, codec=TEXT, *, has_sink=True):
    outbox = Outbox(losses=LOSSES)
    if has_sink:
        outbox.sink = Sink()
        outbox.release()
    return Subscriber(id=f"s-{number}", codec=codec, outbox=outbox, wake=lambda: None, refuse=refuse)


def refuse(code, reason):
    raise AssertionError(f"refused with {code} {reason}")


def audience(hub, count, *topics):
    subscribers = [subscriber(number) for number in range(count)]
    for one in subscribers:
        hub.subscribe(one, *topics)
    return subscribers


class Turns:
    """Counts the turns of the event loop, with a task that always has something to do."""

    def __init__(self):
        self.count = 0
        # How many writes each of them saw since the one before.
        self.writes = []
        self._last = Sink.writes_to_all
        self._task = asyncio.ensure_future(self._run())

    async def _run(self):
        while True:
            await asyncio.sleep(0)
            self.count += 1
            self.writes.append(Sink.writes_to_all - self._last)
            self._last = Sink.writes_to_all

    async def until(self, condition, limit=10_000):
        while not condition():
            assert self.count < limit
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def stop(self):
        self._task.cancel()
        await asyncio.wait([self._task])


@asynccontextmanager
async def counted_turns():
    turns = Turns()
    await asyncio.sleep(0)
    try:
        yield turns
    finally:
        await turns.stop()


def texts_of(subscriber):
    """The texts, each of at most 125 bytes, that were written to a subscriber."""
    data, texts = b"".join(subscriber.outbox.sink.writes), []
    while data:
        assert data[0] == 0x81
        size = data[1]
        texts.append(data[2 : 2 + size].decode())
        data = data[2 + size :]
    return texts


# Turns


async def test_a_large_broadcast_lets_other_tasks_run_in_between():
    hub = RunningHub()
    subscribers = audience(hub, 3000, "t")
    async with counted_turns() as turns:
        receipt = await hub.publish("t", "x")
        assert receipt.subscribers == 3000
        await turns.until(lambda: not hub._flusher._due)
    assert max(turns.writes) <= 1000
    assert sum(turns.writes) == 3000
    assert len([writes for writes in turns.writes if writes]) >= 3
    assert all(len(one.outbox.sink.writes) == 1 for one in subscribers)


async def test_order_is_kept_across_the_turns_of_several_broadcasts():
    """What is published meanwhile is joined with what has not left yet, and follows what has."""
    hub = RunningHub()
    subscribers = audience(hub, 3000, "t")
    some = subscribers[::3]
    for one in some:
        hub.subscribe(one, "u")
    async with counted_turns() as turns:
        for number in range(20):
            await hub.publish("tu"[number % 2], str(number))
            await asyncio.sleep(0)
        await turns.until(lambda: not hub._flusher._due)
    assert max(turns.writes) <= 1000
    both, even = [str(number) for number in range(20)], [str(number) for number in range(0, 20, 2)]
    assert all(texts_of(one) == (both if number % 3 == 0 else even) for number, one in enumerate(subscribers))
    writes = [len(one.outbox.sink.writes) for one in some]
    assert max(writes) < 20, "what is published while a broadcast is under way is joined"


async def test_a_turn_writes_fewer_large_messages():
    hub = RunningHub()
    audience(hub, 1000, "t")
    async with counted_turns() as turns:
        await hub.publish("t", "x" * 60_000)
        await turns.until(lambda: not hub._flusher._due)
    assert max(turns.writes) * 60_000 <= 4 * MIB
    assert sum(turns.writes) == 1000


@pytest.mark.parametrize(("subscribers", "publishes"), [(0, 2000), (1, 2000), (30, 2000), (1000, 100)])
async def test_a_publisher_in_a_tight_loop_lets_other_tasks_run(subscribers, publishes):
    """After 16,384 deliveries or, if there are few subscribers, after 256 publishes."""
    hub = RunningHub()
    members = audience(hub, subscribers, "t")
    ahead = [0]
    async with counted_turns() as turns:
        before = turns.count
        for number in range(publishes):
            await hub.publish("t", str(number))
            ahead.append(ahead[-1] + 1 if turns.count == before else 0)
            before = turns.count
        await turns.until(lambda: not hub._flusher._due)
    assert max(ahead) <= min(256, 1 + (1 << 14) // max(1, subscribers))
    assert all(texts_of(member) == [str(number) for number in range(publishes)] for member in members[:2])


async def test_a_publisher_of_large_messages_waits_for_writes():
    """At most one part of a batch is pending, not the whole burst."""
    hub = RunningHub()
    subscribers = audience(hub, 50, "t")
    for number in range(100):
        await hub.publish("t", "x" * 50_000)
        behind = (number + 1) * 50 - sum(len(one.outbox.sink.writes) for one in subscribers)
        assert behind <= 2 * 50
    assert not hub._flusher.is_behind


async def test_a_subscriber_that_leaves_during_a_broadcast_delays_no_other():
    hub = RunningHub()
    subscribers = audience(hub, 5000, "t")
    await hub.publish("t", "x")
    await asyncio.sleep(0)
    for one in subscribers[::2]:
        hub.leave(one)
        one.outbox.clear()
    had = [len(one.outbox.sink.writes) for one in subscribers]
    async with counted_turns() as turns:
        await turns.until(lambda: not hub._flusher._due)
    assert [len(one.outbox.sink.writes) for one in subscribers[1::2]] == [1] * 2500
    assert [len(one.outbox.sink.writes) for one in subscribers[::2]] == had[::2]


# Cost


class Unlisted(dict):
    """It cannot be iterated, not even by C code, which has no lines."""

    __iter__ = keys = values = items = None


async def test_the_cost_of_a_subscription_does_not_depend_on_others():
    """Counted in lines of microws."""
    lines, before, payload = Counter(), sys.gettrace(), Codecs().payload("x", "own")

    def trace(frame, *_):
        lines[others] += frame.f_globals["__name__"].startswith("microws.")
        return trace

    for others in 10, 10_000:
        hub, one = RunningHub(), subscriber("one")
        for number in range(others):
            hub.subscribe(subscriber(number, has_sink=False), "all", f"topic-{number}")
        hub._topics, hub._subscribers = Unlisted(hub._topics), Unlisted(hub._subscribers)
        sys.settrace(trace)
        try:
            hub.subscribe(one, "all", "topic-1", "own")
            hub.deliver(payload)
            hub.unsubscribe(one, "all")
            hub.leave(one)
        finally:
            sys.settrace(before)
    assert 0 < lines[10] == lines[10_000]


async def test_a_subscriber_of_many_topics_leaves_nothing():
    hub = RunningHub()
    one, other = subscriber("one"), subscriber("other", JSON)
    hub.subscribe(one, *[f"topic-{number}" for number in range(20_000)])
    hub.subscribe(other, "topic-5")
    hub.leave(one)
    async with counted_turns() as turns:
        await turns.until(lambda: not hub._leaving)
    assert list(hub._topics) == ["topic-5"]
    assert list(hub._topics["topic-5"].groups) == [JSON]
    hub.leave(other)
    assert hub._topics == hub._subscribers == {}


async def test_many_that_leave_many_topics_are_removed_in_turns():
    hub = RunningHub()
    topics = [f"topic-{number}" for number in range(128)]
    crowd = [subscriber(number) for number in range(200)]
    for one in crowd:
        hub.subscribe(one, *topics)
    stays = subscriber("stays")
    hub.subscribe(stays, "topic-127")
    for one in crowd:
        hub.leave(one)
        hub.leave(one)
    assert hub.statistics().topics == 128
    # All of them have left, though the topics do not know yet.
    assert (await hub.publish("topic-127", "x")).subscribers == 1
    assert (await hub.publish("topic-1", "x", skip="s-7")).subscribers == 0
    for one in crowd:
        one.outbox.release()
    turns = 0
    while hub._leaving:
        before = sum(len(one.topics) for one in crowd)
        await asyncio.sleep(0)
        assert before - sum(len(one.topics) for one in crowd) <= 1 << 11
        assert (await hub.publish("topic-2", "x")).subscribers == 0
        turns += 1
    assert turns > 10
    assert not any(one.outbox.count or one.topics for one in crowd)
    assert len(hub._topics) == 1
    assert (await hub.publish("topic-127", "y")).subscribers == 1


async def test_a_subscriber_may_subscribe_again_while_it_is_removed():
    hub = RunningHub()
    one, other = subscriber("one", has_sink=False), subscriber("other", has_sink=False)
    topics = [f"topic-{number}" for number in range(5000)]
    for each in one, other:
        hub.subscribe(each, *topics)
        hub.leave(each)
    hub.subscribe(one, "topic-1", "new")
    async with counted_turns() as turns:
        await turns.until(lambda: not hub._leaving)
    assert one.topics == {"topic-1", "new"}
    assert hub.statistics().subscriptions == len(hub._topics) == 2
    assert (await hub.publish("topic-1", "x")).subscribers == 1
    hub.leave(one)
    assert hub._topics == hub._subscribers == {}


# One event loop after another


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_batches_of_an_ended_event_loop_block_no_later_publisher(backend):
    hub = RunningHub()
    audience(hub, 100, "t")

    async def leave():
        hub.deliver_value("t", "x" * MIB)

    async def publish():
        with anyio.fail_after(5):
            await hub.publish("nobody", 1)

    asyncio.run(leave())
    assert 0 < len(hub._flusher._due) < 100
    anyio.run(publish, backend=backend)
