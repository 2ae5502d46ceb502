"""The hub leaves others their turns, and costs what is asked of it: counted in turns and steps, not in seconds."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import anyio
import pytest

from microws.codec import JSON, TEXT, Codecs
from microws.connection.bulk_writes import BulkWriter
from microws.hub import Hub, Outbox, Subscriber

pytestmark = pytest.mark.anyio

MIB = 1 << 20
# A counter for each of 100,000 outboxes takes seconds.
LOSSES = Counter()


@pytest.fixture
def anyio_backend():
    return "asyncio"


class RunningHub(Hub):
    """A hub that runs in the event loop of whoever publishes."""

    def __init__(self, url="memory"):
        super().__init__(Codecs(), url, write=BulkWriter().write)

    async def publish(self, topic, value, *, skip=None):
        self.loop.attach()
        return await super().publish(topic, value, skip=skip)


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
    """Counts the turns of the event loop: another task beside the publisher, that always has something to do."""

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


# Slices


async def test_a_broadcast_to_10_000_is_cut_in_slices_between_which_others_have_their_turns():
    hub = RunningHub()
    subscribers = audience(hub, 10_000, "t")
    async with counted_turns() as turns:
        receipt = await hub.publish("t", "x")
        assert receipt.subscribers == 10_000
        await turns.until(lambda: not hub._flusher._due)
    assert max(turns.writes) <= 1000
    assert sum(turns.writes) == 10_000
    assert len([writes for writes in turns.writes if writes]) >= 10
    assert all(len(one.outbox.sink.writes) == 1 for one in subscribers)


async def test_each_connection_keeps_its_order_across_the_slices_of_several_broadcasts():
    """Whoever had its slice gets what is published meanwhile in another one, and the rest joined; nobody twice."""
    hub = RunningHub()
    subscribers = audience(hub, 10_000, "t")
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


async def test_large_messages_make_smaller_slices():
    hub = RunningHub()
    audience(hub, 1000, "t")
    async with counted_turns() as turns:
        await hub.publish("t", "x" * 60_000)
        await turns.until(lambda: not hub._flusher._due)
    assert max(turns.writes) * 60_000 <= 4 * MIB
    assert sum(turns.writes) == 1000


@pytest.mark.parametrize(("subscribers", "publishes"), [(0, 100_000), (1, 20_000), (30, 10_000), (1000, 500)])
async def test_a_publisher_in_a_tight_loop_lets_others_have_their_turns(subscribers, publishes):
    """Whomever it reaches: after 16,384 messages put into outboxes or, where they are few, after 256 publishes."""
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


async def test_a_publisher_of_large_messages_is_never_far_ahead():
    """What it has published and nobody has taken is one part of a batch, not the whole burst."""
    hub = RunningHub()
    subscribers = audience(hub, 50, "t")
    for number in range(100):
        await hub.publish("t", "x" * 50_000)
        behind = (number + 1) * 50 - sum(len(one.outbox.sink.writes) for one in subscribers)
        assert behind <= 2 * 50
    assert not hub._flusher.is_behind


async def test_who_leaves_amid_a_broadcast_gets_nothing_more_and_holds_nobody_up():
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


class CountingDict(dict):
    """A dict that counts how often it is asked, and refuses to be gone through."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.steps = 0

    def get(self, *arguments):
        self.steps += 1
        return super().get(*arguments)

    def __getitem__(self, key):
        self.steps += 1
        return super().__getitem__(key)

    def __setitem__(self, key, value):
        self.steps += 1
        super().__setitem__(key, value)

    def __delitem__(self, key):
        self.steps += 1
        super().__delitem__(key)

    def _refuse(self, *_):
        raise AssertionError("all topics are gone through")

    __iter__ = keys = values = items = _refuse


def counting(hub):
    hub._topics = CountingDict(hub._topics)
    hub._subscribers = CountingDict(hub._subscribers)
    return lambda: hub._topics.steps + hub._subscribers.steps


@pytest.mark.parametrize("others", [10, 10_000])
async def test_subscribe_unsubscribe_and_leave_touch_the_topics_of_that_connection_only(others):
    hub = RunningHub()
    crowd = [subscriber(number) for number in range(others)]
    for number, one in enumerate(crowd):
        hub.subscribe(one, f"topic-{number}")
    steps = counting(hub)
    one = subscriber("one")
    hub.subscribe(one, "topic-1", "topic-2", "mine", "mine too")
    assert steps() <= 5 * 4
    hub.unsubscribe(one, "topic-1", "mine")
    assert steps() <= 5 * 6
    before = steps()
    assert (await hub.publish("topic-2", "x")).subscribers == 2
    assert (await hub.publish("nobody", "x")).subscribers == 0
    assert steps() - before <= 2 * 2
    before = steps()
    hub.leave(one)
    assert steps() - before <= 5 * 2
    assert len(hub._topics) == others


async def test_100_000_topics_of_one_subscriber_each_leave_nothing():
    hub = RunningHub()
    crowd = [subscriber(number, has_sink=False) for number in range(100_000)]
    for number, one in enumerate(crowd):
        hub.subscribe(one, f"topic-{number}")
    assert hub.statistics().topics == hub.statistics().subscribers == 100_000
    for number in range(0, 100_000, 1000):
        assert (await hub.publish(f"topic-{number}", "x")).subscribers == 1
    for number, one in enumerate(crowd):
        if number % 2:
            hub.leave(one)
        else:
            hub.unsubscribe(one, f"topic-{number}")
    assert hub._topics == hub._subscribers == {}
    assert not any(one.topics for one in crowd)


async def test_one_subscriber_of_100_000_topics_leaves_nothing():
    hub = RunningHub()
    one, other = subscriber("one"), subscriber("other", JSON)
    hub.subscribe(one, *[f"topic-{number}" for number in range(100_000)])
    hub.subscribe(other, "topic-5")
    hub.leave(one)
    async with counted_turns() as turns:
        await turns.until(lambda: not hub._leaving)
    assert list(hub._topics) == ["topic-5"]
    assert list(hub._topics["topic-5"].groups) == [JSON]
    hub.leave(other)
    assert hub._topics == hub._subscribers == {}


async def test_many_that_leave_many_topics_at_once_do_so_in_turns_and_get_nothing_more():
    hub = RunningHub()
    topics = [f"topic-{number}" for number in range(128)]
    crowd = [subscriber(number) for number in range(200)]
    for one in crowd:
        hub.subscribe(one, *topics)
    stays = subscriber("stays")
    hub.subscribe(stays, "topic-127")
    steps = counting(hub)
    for one in crowd:
        hub.leave(one)
        hub.leave(one)
    assert steps() < 200 * 5
    # All of them have left, though the topics do not know yet.
    assert (await hub.publish("topic-127", "x")).subscribers == 1
    assert (await hub.publish("topic-1", "x", skip="s-7")).subscribers == 0
    for one in crowd:
        one.outbox.release()
    turns = 0
    while hub._leaving:
        before = steps()
        await asyncio.sleep(0)
        assert steps() - before <= 5 * (1 << 11)
        assert (await hub.publish("topic-2", "x")).subscribers == 0
        turns += 1
    assert turns > 10
    assert not any(one.outbox.count or one.topics for one in crowd)
    assert len(hub._topics) == 1
    assert (await hub.publish("topic-127", "y")).subscribers == 1


async def test_one_that_subscribes_again_while_it_leaves_has_what_it_asked_for_last():
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


async def test_a_topic_without_subscribers_costs_no_frame_and_leaves_nothing():
    class Refusing:
        def frame(self, payload):
            raise AssertionError("a frame for nobody")

    hub = RunningHub()
    hub.subscribe(subscriber("elsewhere", Refusing()), "another")
    for number in range(1000):
        assert (await hub.publish(f"nobody-{number}", "x")).subscribers == 0
    assert list(hub._topics) == ["another"]
    assert hub.statistics().queued == 0
    assert not hub._flusher._due
    assert hub._crowded == []


async def test_a_message_is_encoded_once_for_10_000_subscribers_of_two_codecs():
    class Counting:
        def __init__(self, codec):
            self.codec, self.calls = codec, 0

        def frame(self, payload):
            self.calls += 1
            return self.codec.frame(payload)

    hub = RunningHub()
    codecs = [Counting(TEXT), Counting(JSON)]
    subscribers = [subscriber(number, codecs[number % 2]) for number in range(10_000)]
    for one in subscribers:
        hub.subscribe(one, "t")
    await hub.publish("t", "x")
    await hub.publish("t", "y")
    async with counted_turns() as turns:
        await turns.until(lambda: not hub._flusher._due)
    assert [codec.calls for codec in codecs] == [2, 2]
    # Both messages in one write, joined once for each codec.
    assert len({id(write) for one in subscribers for write in one.outbox.sink.writes}) == 2


# One event loop after another


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_an_event_loop_left_behind_at_its_end_holds_no_publisher_in_the_next(backend):
    hub = RunningHub()
    audience(hub, 100, "t")

    async def leave():
        hub.deliver("t", Codecs().payload("x" * MIB))

    async def publish():
        with anyio.fail_after(5):
            await hub.publish("nobody", 1)

    asyncio.run(leave())
    assert 0 < len(hub._flusher._due) < 100
    anyio.run(publish, backend=backend)
