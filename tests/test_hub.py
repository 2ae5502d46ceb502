"""The hub through its interface: one frame for many subscribers, in order, with nothing left behind."""

import asyncio
import json
import threading
from decimal import Decimal
from enum import Enum
from fnmatch import fnmatchcase

import anyio
import anyio.to_thread
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from microws import App
from microws.codec import BYTES, JSON, MAX_DEPTH, TEXT, Codecs, dumps_json, loads_json
from microws.connection.bulk_writes import BulkWriter
from microws.hub import Hub, Outbox, Subscriber, TopicSettings, check_topic
from microws.interfaces import Receipt

pytestmark = pytest.mark.anyio


class RunningHub(Hub):
    """A hub that runs in the event loop of the test."""

    def __init__(self, *, codecs=None):
        super().__init__(codecs or Codecs(), write=BulkWriter().write)

    def subscribe(self, subscriber, *topics):
        """In one process, and without history, it never waits."""
        with pytest.raises(StopIteration) as subscribed:
            super().subscribe(subscriber, *topics).send(None)
        return subscribed.value.value

    def configure(self, pattern, **settings):
        super().configure(pattern, TopicSettings(**settings))

    async def publish(self, topic, value, *, skip=None):
        self.loop.attach()
        return await super().publish(topic, value, skip=skip)

    def deliver_value(self, topic, value):
        return self.deliver(Codecs().payload(value, topic))


class Color(Enum):
    RED = "red"


async def coroutine(value):
    return value


class CountingCodec:
    """A codec that counts the frames it made."""

    def __init__(self, codec=JSON):
        self.codec, self.calls = codec, 0

    def frame(self, payload):
        self.calls += 1
        return self.codec.frame(payload)


class FailingCodec:
    def __init__(self, error=ValueError):
        self.error = error

    def frame(self, payload):
        raise self.error("no form for it")


class Reader:
    """A subscriber whose messages stay in its outbox until the test takes them."""

    numbers = iter(range(10**9))

    def __init__(self, hub, *topics, codec=JSON):
        self.hub = hub
        self.outbox = Outbox(losses=hub.losses)
        self.wakes = 0
        self.refusals = []
        self.subscriber = Subscriber(
            id=f"reader-{next(self.numbers)}", codec=codec, outbox=self.outbox, wake=self.wake, refuse=self.refuse
        )
        if topics:
            hub.subscribe(self.subscriber, *topics)

    def wake(self):
        self.wakes += 1

    def refuse(self, code, reason):
        self.refusals.append((code, reason))
        self.hub.leave(self.subscriber)

    def take(self):
        return [self.outbox.pop().text for _ in range(len(self.outbox))]


@pytest.fixture
def hub():
    return RunningHub()


def assert_empty(hub):
    statistics = hub.statistics()
    assert (statistics.topics, statistics.subscribers, statistics.subscriptions, statistics.queued) == (0, 0, 0, 0)
    assert not hub._topics
    assert not hub._subscribers


class TestPublishing:
    async def test_each_subscriber_of_the_topic_gets_the_message(self, hub):
        a, b, other = Reader(hub, "t"), Reader(hub, "t", "u"), Reader(hub, "u")
        assert await hub.publish("t", {"n": 1}) == Receipt(2, None)
        assert (a.take(), b.take(), other.take()) == (['{"n":1}'], ['{"n":1}'], [])
        assert (a.wakes, other.wakes) == (1, 0)

    async def test_a_message_is_framed_once_per_codec(self, hub):
        codec, other = CountingCodec(), CountingCodec(TEXT)
        readers = [Reader(hub, "t", codec=codec) for _ in range(50)]
        texts = [Reader(hub, "t", codec=other) for _ in range(50)]
        assert (await hub.publish("t", "hi")).subscribers == 100
        assert (codec.calls, other.calls) == (1, 1)
        for group, expected in ((readers, '"hi"'), (texts, "hi")):
            frames = {id(frame): frame for frame in (reader.outbox.pop() for reader in group)}
            assert [frame.text for frame in frames.values()] == [expected]

    async def test_skip_leaves_one_subscriber_out(self, hub):
        publisher, other = Reader(hub, "t"), Reader(hub, "t")
        assert (await hub.publish("t", 1, skip=publisher.subscriber.id)).subscribers == 1
        assert (await hub.publish("t", 2, skip="nobody")).subscribers == 2
        assert (publisher.take(), other.take()) == (["2"], ["1", "2"])

    async def test_a_topic_without_subscribers_costs_no_frame_and_leaves_nothing(self, hub):
        codec = CountingCodec()
        Reader(hub, "u", codec=codec)
        assert await hub.publish("t", "x") == Receipt(0, None)
        assert codec.calls == 0
        assert list(hub._topics) == ["u"]

    @pytest.mark.parametrize(
        ("value", "error"), [({1, 2}, TypeError), (float("nan"), ValueError), ("\ud800", ValueError)]
    )
    async def test_a_value_without_a_json_form_raises_and_is_not_delivered(self, hub, value, error):
        readers = [Reader(hub, "t"), Reader(hub, "t", codec=TEXT)]
        with pytest.raises(error):
            await hub.publish("t", value)
        assert [reader.take() for reader in readers] == [[], []]

    async def test_publishes_keep_their_order_for_every_subscriber(self, hub):
        readers = [Reader(hub, "t", "u") for _ in range(3)]
        for n in range(100):
            await hub.publish("tu"[n % 2], n)
        assert [reader.take() for reader in readers] == [[str(n) for n in range(100)]] * 3

    @pytest.mark.parametrize(
        ("queue", "turns", "codec", "value", "count"), [(8, 2, JSON, "x", 500), (256, 1, BYTES, bytes(200_000), 40)]
    )
    async def test_publish_yields_so_that_a_burst_overflows_no_client_that_reads(
        self, hub, queue, turns, codec, value, count
    ):
        hub.configure("t", queue=queue)
        reader, taken = Reader(hub, "t", codec=codec), 0

        async def read_slowly():
            nonlocal taken
            while taken < count:
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                if reader.outbox:
                    reader.outbox.pop()
                    taken += 1

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read_slowly)
                for _ in range(count):
                    await hub.publish("t", value)
        assert reader.refusals == []

    async def test_publish_does_not_wait_for_a_client_that_does_not_read(self, hub):
        hub.configure("t", queue=4, overflow="drop_oldest")
        reader = Reader(hub, "t")
        with anyio.fail_after(10):
            for n in range(1000):
                await hub.publish("t", n)
        assert reader.take() == ["996", "997", "998", "999"]


class TestTopics:
    @pytest.mark.parametrize(
        ("topic", "message"),
        [
            ("", "at least one character"),
            ("x" * 256, "at most 255 UTF-8 bytes, got 256"),
            ("é" * 128, "got 256"),
            ("a\nb", "control characters"),
            ("\x85", "control characters"),
            ("\ud800", "valid Unicode"),
        ],
    )
    async def test_an_invalid_topic_is_refused_everywhere(self, hub, topic, message):
        reader = Reader(hub)
        with pytest.raises(ValueError, match=message):
            hub.subscribe(reader.subscriber, "fine", topic)
        with pytest.raises(ValueError, match=message):
            hub.unsubscribe(reader.subscriber, topic)
        with pytest.raises(ValueError, match=message):
            await hub.publish(topic, 1)
        with pytest.raises(ValueError, match=message):
            hub.configure(topic)
        assert_empty(hub)

    @pytest.mark.parametrize("topic", [None, b"t", 1])
    async def test_a_topic_that_is_not_a_str_is_refused(self, hub, topic):
        with pytest.raises(TypeError, match="expected a topic as str"):
            await hub.publish(topic, 1)

    @given(st.text(max_size=300) | st.sampled_from(["x" * 255, "é" * 127]))
    def test_any_text_of_1_to_255_bytes_without_control_characters_is_a_topic(self, topic):
        try:
            size = len(topic.encode())
        except UnicodeEncodeError:
            size = 0
        is_valid = 1 <= size <= 255 and not any(c < " " or "\x7f" <= c <= "\x9f" for c in topic)
        try:
            check_topic(topic)
        except ValueError:
            assert not is_valid
        else:
            assert is_valid


class TestLeaving:
    def test_subscribing_twice_is_subscribing_once(self, hub):
        reader = Reader(hub, "t", "t")
        hub.subscribe(reader.subscriber, "t")
        assert hub.deliver_value("t", 1) == 1
        hub.unsubscribe(reader.subscriber, "t")
        assert_empty(hub)
        assert reader.subscriber.topics == set()

    def test_unsubscribing_from_another_topic_does_nothing(self, hub):
        reader = Reader(hub)
        hub.unsubscribe(reader.subscriber, "t")
        hub.leave(reader.subscriber)
        Reader(hub, "t")
        hub.unsubscribe(reader.subscriber, "t")
        assert hub.statistics().subscriptions == 1

    async def test_a_subscriber_that_left_may_subscribe_again(self, hub):
        reader = Reader(hub, "t")
        hub.leave(reader.subscriber)
        assert (await hub.publish("t", 1)).subscribers == 0
        hub.subscribe(reader.subscriber, "t")
        await hub.publish("t", 2)
        assert reader.take() == ["2"]

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.sampled_from("tuv")), max_size=30))
    def test_after_any_subscriptions_a_publish_reaches_exactly_the_subscribers(self, steps):
        hub = RunningHub()
        readers = [Reader(hub) for _ in range(4)]
        expected = {topic: set() for topic in "tuv"}
        for joins, number, topic in steps:
            if joins:
                hub.subscribe(readers[number].subscriber, topic)
                expected[topic].add(number)
            else:
                hub.unsubscribe(readers[number].subscriber, topic)
                expected[topic].discard(number)
        for topic, numbers in expected.items():
            assert hub.deliver_value(topic, 1) == len(numbers)
        counts = [sum(number in numbers for numbers in expected.values()) for number in range(4)]
        assert [len(reader.take()) for reader in readers] == counts
        assert hub.statistics().subscribers == sum(count > 0 for count in counts)
        for reader in readers:
            hub.leave(reader.subscriber)
        assert_empty(hub)


class TestSettings:
    def test_a_pattern_of_many_stars_refuses_a_topic_quickly(self, hub):
        hub.configure("*a" * 100 + "*b", queue=7)
        assert hub.settings("a" * 255).queue == 256

    @given(st.text("ab*:/?.[]{(", min_size=1, max_size=8), st.text("ab:/?.[]{(", min_size=1, max_size=10))
    @example("chat:*", "chat:a/b")
    @example("chat:*", "chat:")
    @example("{x}(", "{x}(")
    @example("a*a", "a")
    def test_a_star_matches_any_characters_and_others_match_themselves(self, pattern, topic):
        hub = RunningHub()
        hub.configure(pattern, queue=7)
        in_shell = pattern.replace("[", "[[]").replace("?", "[?]")
        assert (hub.settings(topic).queue == 7) is fnmatchcase(topic, in_shell)

    def test_the_first_pattern_that_matches_wins(self, hub):
        assert hub.settings("t") == TopicSettings(256, "close", None)
        hub.configure("chat:vip", queue=1)
        hub.configure("chat:*", queue=2)
        hub.configure("*", queue=3)
        assert [hub.settings(topic).queue for topic in ("chat:vip", "chat:x", "x")] == [1, 2, 3]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"queue": 0}, "1 or more"),
            ({"queue": True}, "1 or more"),
            ({"queue": 2.5}, "1 or more"),
            ({"overflow": "drop"}, "expected overflow to be one of close, drop_oldest, drop_newest, latest"),
            ({"key": "symbol"}, 'expected key= with overflow="latest" only'),
            ({"overflow": "latest", "key": 7}, "a field's name or a function"),
            ({"overflow": "latest", "key": coroutine}, "a plain function, because"),
            ({"history": -1}, "a number of messages, 0 or more, got -1"),
            ({"history": 2.5}, "a number of messages, 0 or more"),
            ({"history": 1, "ttl": 0}, "a number of seconds greater than 0, got 0"),
            ({"ttl": 300}, r"expected ttl= with history= only"),
        ],
    )
    def test_an_invalid_setting_is_refused(self, hub, options, message):
        with pytest.raises(ValueError, match=message):
            hub.configure("t", **options)


class TestOverflow:
    async def test_close_refuses_only_the_slow_subscriber(self, hub):
        hub.configure("t", queue=2)
        slow, quick = Reader(hub, "t"), Reader(hub, "t")
        got = []
        for n in range(5):
            await hub.publish("t", n)
            got += quick.take()
        assert got == ["0", "1", "2", "3", "4"]
        assert slow.refusals == [(1013, "too slow")]
        assert slow.take() == ["0", "1"]
        assert hub.statistics().dropped == {"close": 1}
        assert hub.statistics().subscriptions == 1

    @pytest.mark.parametrize(
        ("overflow", "reached"), [("latest", [1, 1, 1]), ("drop_oldest", [1, 1, 1]), ("drop_newest", [1, 0, 0])]
    )
    async def test_a_subscriber_is_reached_if_its_outbox_took_the_message(self, hub, overflow, reached):
        hub.configure("t", queue=1, overflow=overflow)
        Reader(hub, "t")
        assert [(await hub.publish("t", number)).subscribers for number in range(3)] == reached
        assert hub.statistics().delivered == sum(reached)

    async def test_latest_conflates_by_a_field_and_a_missing_field_is_one_key(self, hub):
        hub.configure("t", overflow="latest", key="symbol")
        reader = Reader(hub, "t")
        for value in [{"symbol": "a", "n": 1}, {"symbol": "b"}, {"n": 2}, "text", b"", {"symbol": "a", "n": 3}]:
            await hub.publish("t", value)
        expected = [b'{"symbol":"b"}', b"", b'{"symbol":"a","n":3}']
        assert [frame.data for frame in (reader.outbox.pop() for _ in range(3))] == expected

    async def test_a_key_function_gets_the_message_as_it_was_published(self, hub):
        seen = []
        hub.configure("t", overflow="latest", key=lambda value: seen.append(value) or len(seen) % 2)
        reader = Reader(hub, "t")
        for value in ("text", b"bytes", [1, "x"], {"a": None}):
            await hub.publish("t", value)
        assert seen == ["text", b"bytes", [1, "x"], {"a": None}]
        assert reader.take() == ['[1,"x"]', '{"a":null}']

    async def test_a_key_may_be_any_hashable_value(self, hub):
        hub.configure("t", overflow="latest", key=lambda value: (Decimal(value), Color.RED))
        reader = Reader(hub, "t")
        for value in ("1.0", "2", "1", "2.0"):
            await hub.publish("t", value)
        assert reader.take() == ['"1"', '"2.0"']

    @pytest.mark.parametrize("is_dict", [True, False])
    async def test_a_deeply_nested_key_conflates(self, hub, is_dict):
        def deep(innermost):
            for _ in range(MAX_DEPTH - 2):
                innermost = {"a": innermost} if is_dict else [innermost]
            return innermost

        hub.configure("t", overflow="latest", key="symbol")
        a, b = Reader(hub, "t"), Reader(hub, "t")
        for number, innermost in enumerate("xxyx"):
            receipt = await hub.publish("t", {"symbol": deep(innermost), "number": number})
            assert receipt.subscribers == 2
        for reader in a, b:
            assert [loads_json(text)["number"] for text in reader.take()] == [2, 3]

    @pytest.mark.parametrize(
        ("key", "complaint"),
        [
            (lambda value: {1, 2}, "unhashable type: 'set'"),
            (lambda value: [object(), []], "unhashable type: 'list'"),
            (lambda value: float("nan") if value else [float("nan")], "is nan"),
            (lambda value: 1 / 0, "division by zero"),
        ],
    )
    async def test_an_invalid_key_raises_in_publish_before_the_delivery(self, hub, key, complaint):
        hub.configure("t", overflow="latest", key=key)
        readers = [Reader(hub, "t") for _ in range(3)]
        for _ in range(2):
            with pytest.raises((TypeError, ValueError, ArithmeticError), match=complaint):
                await hub.publish("t", [])
        assert [reader.take() for reader in readers] == [[], [], []]

    async def test_a_key_is_looked_up_in_the_apps_own_json(self):
        class Doubling:
            frames = "text"

            def encode(self, value):
                return f"<{value['k']}>"

            def decode(self, data):
                return {"k": data[1:-1]}

        codecs = Codecs()
        codecs.add("json", Doubling())
        hub = RunningHub(codecs=codecs)
        hub.configure("t", overflow="latest", key="k")
        reader = Reader(hub, "t", codec=codecs.get("json"))
        for k in "aba":
            await hub.publish("t", {"k": k})
        assert reader.take() == ["<b>", "<a>"]

    @pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, RecursionError])
    async def test_a_codec_that_fails_closes_only_its_own_subscribers(self, hub, caplog, error):
        codec = FailingCodec(error)
        before, broken, after = Reader(hub, "t"), Reader(hub, "t", codec=codec), Reader(hub, "t")
        publisher = Reader(hub, "t", codec=codec)
        assert (await hub.publish("t", 1, skip=publisher.subscriber.id)).subscribers == 2
        assert (before.take(), after.take()) == (["1"], ["1"])
        assert (broken.refusals, publisher.refusals) == ([(1011, "message cannot be encoded")], [])
        assert hub.statistics().dropped == {"unencodable": 1}
        assert "cannot be encoded for some of its subscribers" in caplog.text
        caplog.clear()
        await hub.publish("t", 1, skip=publisher.subscriber.id)
        assert (publisher.refusals, caplog.text) == ([], "")


class TestStatistics:
    async def test_statistics_count_what_happened_and_what_is_pending(self, hub):
        hub.configure("d", queue=1, overflow="drop_newest")
        a, b = Reader(hub, "t", "d"), Reader(hub, "t")
        before = hub.statistics()
        await hub.publish("t", 1)
        await hub.publish("d", 1)
        await hub.publish("d", 2)
        await hub.publish("nobody", 1)
        assert before.dropped == {}
        assert hub.statistics()._asdict() == {
            "connections": 0,
            "topics": 2,
            "subscribers": 2,
            "subscriptions": 3,
            "published": 4,
            "delivered": 3,
            "dropped": {"drop_newest": 1},
            "queued": 3,
            "largest_queue": 2,
            "flush_sizes": {},
            "history_bytes": 0,
            "history_dropped": 0,
        }
        a.take()
        b.take()
        assert (hub.statistics().queued, hub.statistics().largest_queue) == (0, 0)

    async def test_the_history_in_memory_is_counted(self):
        app = App(history_bytes=1 << 16)
        app.topic("t", history=10)
        async with app.running():
            for _ in range(5):
                await app.publish("t", bytes(1 << 14 - 1))
            statistics, cluster = app.hub.statistics(), await app.hub.cluster_statistics()
        assert (1 << 15) < statistics.history_bytes <= 1 << 16
        assert statistics.history_dropped == 0
        assert (cluster.workers, cluster[-2:]) == (1, (statistics.history_bytes, statistics.history_dropped))

    async def test_writes_are_counted_by_the_next_power_of_two(self, hub):
        hub._flusher.sizes.update({1: 5, 2: 1, 3: 1, 4: 1, 5: 1, 100: 2})
        statistics = hub.statistics()
        assert statistics.flush_sizes == {"1": 5, "2": 1, "4": 2, "8": 1, "128": 2}
        assert json.loads(dumps_json(statistics._asdict())) == statistics._asdict()


class TestPublishingFromAThread:
    async def test_publishing_from_any_thread_runs_in_the_event_loop(self, hub):
        hub.loop.attach()
        reader, receipts, threads, done = Reader(hub, "t"), [], [], anyio.Event()
        reader.subscriber.wake = lambda: threads.append(threading.current_thread())
        token = anyio.lowlevel.current_token()

        def work():
            receipts.append(hub.publish_from_thread("t", 1))
            anyio.from_thread.run_sync(done.set, token=token)

        thread = threading.Thread(target=work)
        thread.start()
        with anyio.fail_after(5):
            await done.wait()
        thread.join(5)
        receipts.append(await anyio.to_thread.run_sync(hub.publish_from_thread, "t", 2))
        assert receipts == [Receipt(1, None)] * 2
        assert reader.take() == ["1", "2"]
        assert threads == [threading.current_thread()] * 2

    async def test_an_error_of_publish_is_raised_in_the_thread(self, hub):
        hub.loop.attach()
        with pytest.raises(ValueError, match="at least one character"):
            await anyio.to_thread.run_sync(hub.publish_from_thread, "", 1)

    async def test_publishing_from_the_event_loops_thread_is_refused(self, hub):
        with pytest.raises(RuntimeError, match="between its start-up and its shutdown"):
            hub.publish_from_thread("t", 1)
        hub.loop.attach()
        with pytest.raises(RuntimeError, match=r"write `await app\.publish\(topic, value\)`"):
            hub.publish_from_thread("t", 1)


def publishing_threads(hub, count, errors):
    """Threads that publish until it is refused."""

    def work():
        try:
            while True:
                hub.publish_from_thread("t", 1)
        except RuntimeError as error:
            errors.append(str(error))

    return [threading.Thread(target=work, daemon=True) for _ in range(count)]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_publishing_from_a_thread_after_the_loop_ended_is_an_error(hub, backend):
    async def main():
        hub.loop.attach()

    anyio.run(main, backend=backend)
    errors = []
    [thread] = publishing_threads(hub, 1, errors)
    thread.start()
    thread.join(5)
    assert len(errors) == 1
    assert "finished" in errors[0]


@pytest.mark.parametrize("use_uvloop", [False, True])
def test_threads_that_publish_while_the_loop_ends_do_not_hang(hub, use_uvloop):
    errors = []
    threads = publishing_threads(hub, 8, errors)

    async def main():
        # What a thread began in the last turn stays undone, and asyncio would log it.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        hub.loop.attach()
        for thread in threads:
            thread.start()
        while hub.statistics().published < 100:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    anyio.run(main, backend_options={"use_uvloop": use_uvloop})
    for thread in threads:
        thread.join(5)
    assert len(errors) == 8
    assert all("finished" in error for error in errors)


def test_one_hub_serves_one_event_loop_after_another(hub):
    async def main():
        hub.loop.attach()
        reader = Reader(hub, "t")
        await anyio.to_thread.run_sync(hub.publish_from_thread, "t", 1)
        assert reader.take() == ["1"]
        hub.leave(reader.subscriber)

    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(main, backend=backend)
    asyncio.run(main())
    assert_empty(hub)
