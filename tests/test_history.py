"""What a subscriber missed, at the hub: contiguous from its position on, or it is told; and nothing is left behind."""

import asyncio
import gc
import json
from collections import Counter
from contextlib import asynccontextmanager
from random import Random

import anyio
import pytest

import microws.hub.subscribers
from microws.codec import Codecs
from microws.errors import PublishTimeout
from microws.hub import Hub, MemoryBackplane, Outbox, Published, Subscriber, TopicSettings
from microws.hub.history import Resume, Window, join_positions, split_positions
from microws.hub.live import LIVE_CODEC
from microws.hub.log import MIN_BYTES
from microws.interfaces import Frame, Subscribed

pytestmark = pytest.mark.anyio

GAP = "gap"


class LineCodec:
    """Frames a value as a line, and counts the frames."""

    def __init__(self):
        self.calls = 0

    def frame(self, payload):
        self.calls += 1
        return Frame(b"%b %b\n" % (payload.topic.encode(), payload.data), is_encoded=True)


CODEC = LineCodec()


class LateBackplane(MemoryBackplane):
    """Of several processes. While ``gate`` is held, its calls wait; then they raise ``error`` or do their work."""

    spans_processes = True

    def __init__(self):
        super().__init__(1 << 20)
        self.calls = Counter()
        self.gate = None
        self.error = None

    def hold(self):
        self.gate = anyio.Event()

    def let(self):
        gate, self.gate = self.gate, None
        gate.set()

    async def _pass(self, name):
        self.calls[name] += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error

    async def publish(self, payload, **options):
        await self._pass("publish")
        return await super().publish(payload, **options)

    async def subscribe(self, topic):
        await self._pass("subscribe")
        return await super().subscribe(topic)

    async def read(self, topic, since, **options):
        await self._pass("read")
        return await super().read(topic, since, **options)

    def unsubscribe(self, topic):
        self.calls["unsubscribe"] += 1

    def forget(self):
        """Lose the log."""
        self._made = None


class Wire:
    """The sink of an outbox: a client that takes ``room`` writes."""

    socket = None
    is_lost = False

    def __init__(self, room, close):
        self.room = room
        self.close = close
        self.written = []

    @property
    def is_writable(self):
        return self.room > 0

    def write(self, frames):
        self.room -= 1
        self.written.append(bytes(frames))

    def buffered(self):
        return 0


class Reader:
    """A subscriber. Without ``room`` its messages are taken from its outbox one by one."""

    numbers = iter(range(10**9))

    def __init__(self, hub, *, room=None, codec=CODEC, marks=False, announce=None):
        self.hub = hub
        self.refusals = []
        self.lines = []
        self.outbox = Outbox(marker=self._mark if marks else None, losses=hub.losses)
        self.wire = None
        if room is not None:
            self.wire = self.outbox.sink = Wire(room, self.refuse)
            self.outbox.release()
        self.subscriber = Subscriber(
            id=f"reader-{next(self.numbers)}",
            codec=codec,
            outbox=self.outbox,
            wake=self.outbox.drain,
            refuse=self.refuse,
            announce=announce,
        )

    @staticmethod
    def _mark(topic, settings):
        return Published(Frame(b"%b gap\n" % topic.encode(), is_encoded=True), topic, settings, is_gap=True)

    def refuse(self, code, reason):
        self.refusals.append(code)
        self.outbox.clear()
        self.hub.leave(self.subscriber)

    async def subscribe(self, *topics, since=None):
        return await self.hub.subscribe(self.subscriber, *topics, since=since)

    def take(self, count=10**9):
        """Let the client take some messages, or writes. All that it has got so far, as ``(topic, value)``."""
        if self.wire is None:
            while self.outbox and count > 0:
                self.lines += self.outbox.pop_published().encoded.decode().splitlines()
                count -= 1
        else:
            self.wire.room += count
            self.outbox.drain()
            self.lines += b"".join(self.wire.written).decode().splitlines()
            self.wire.written.clear()
        return [line.split(" ", 1) for line in self.lines]

    def values(self, topic="t"):
        """Its values of one topic; ``"gap"`` for a gap marker."""
        return [GAP if value == GAP else int(value) for name, value in self.take() if name == topic]


class RunningHub(Hub):
    def __init__(self, backplane=None):
        super().__init__(Codecs(), backplane, write=lambda data, sinks: [sink.write(data) for sink in sinks])
        self.loop.attach()

    def configure(self, pattern, **settings):
        super().configure(pattern, TopicSettings(**settings))

    async def publish_all(self, values, topic="t"):
        """The positions of the messages."""
        return [(await self.publish(topic, value)).id for value in values]


@pytest.fixture
async def hub():
    return RunningHub()


@pytest.fixture
async def late():
    hub = RunningHub(LateBackplane())
    hub.configure("*", history=10)
    return hub


def assert_empty(hub):
    assert hub._topics == hub._subscribers == {}


@asynccontextmanager
async def calling(function, *args, **options):
    """A task that calls ``function``, once it waits. At the end of the block it has ended; ``result`` is of it."""

    class Call:
        scope = anyio.CancelScope()
        result = error = None

    async def run():
        with Call.scope:
            try:
                Call.result = await function(*args, **options)
            except Exception as error:
                Call.error = error

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            yield Call


class TestPositions:
    async def test_since_a_position_what_followed_it_comes_and_then_what_is_published(self, hub):
        hub.configure("t", history=10)
        positions = await hub.publish_all(range(5))
        reader = Reader(hub)
        assert await reader.subscribe("t", since=positions[1]) == Subscribed(True, positions[1], ())
        await hub.publish("t", 5)
        assert reader.values() == [2, 3, 4, 5]

    async def test_exactly_history_messages_may_be_missed(self, hub):
        hub.configure("t", history=3)
        positions = await hub.publish_all(range(10))
        for missed in range(6):
            reader = Reader(hub)
            subscribed = await reader.subscribe("t", since=positions[9 - missed])
            assert subscribed.recovered == (missed <= 3)
            assert subscribed.lost == (() if missed <= 3 else ("t",))
            assert reader.values() == (list(range(10 - missed, 10)) if missed <= 3 else [])
            assert subscribed.position == positions[9 - missed if missed <= 3 else 9]

    @pytest.mark.parametrize("before", [0, 3])
    async def test_since_start_all_of_the_history_comes(self, hub, before):
        hub.configure("t", history=3)
        await hub.publish_all(range(before))
        first = Reader(hub)
        assert (await first.subscribe("t", since="start")).recovered
        await hub.publish_all(range(before, 8))
        second = Reader(hub)
        assert (await second.subscribe("t", since="start")).recovered
        assert (first.values(), second.values()) == (list(range(8)), [5, 6, 7])

    @pytest.mark.parametrize("overflow", ["close", "latest"])
    @pytest.mark.parametrize("is_open", [False, True], ids=["from the log", "from the window"])
    @pytest.mark.parametrize("before", [0, 1, 3, 4, 8])
    async def test_the_position_of_start_brings_the_same_once_more(self, hub, before, is_open, overflow):
        hub.configure("t", history=3, overflow=overflow, key="k" if overflow == "latest" else None)
        for n in range(before):
            await hub.publish("other", n)
            await hub.publish("t", {"k": n})
        first, second = Reader(hub), Reader(hub)
        position = (await first.subscribe("t", since="start")).position
        assert len(first.take()) == min(before, 3)
        if not is_open:
            hub.leave(first.subscriber)
        assert await second.subscribe("t", since=position) == Subscribed(True, position, ())
        assert second.take() == first.take()

    async def test_the_position_of_start_is_before_the_oldest_message_that_is_left(self):
        hub = RunningHub(MemoryBackplane(MIN_BYTES))
        hub.configure("*", history=1000)
        positions = await hub.publish_all(range(8))
        while (await hub.backplane.read("t", "start", history=9, ttl=None, by_key=False)).entries[0].place < 400:
            await hub.publish("o", 0)
        first, second, late = Reader(hub), Reader(hub), Reader(hub)
        position = (await first.subscribe("t", since="start")).position
        assert 0 < len(first.values()) < 8
        assert position not in positions
        hub.leave(first.subscriber)
        assert (await second.subscribe("t", since=position)).recovered
        assert second.values() == first.values()
        hub.leave(second.subscriber)
        await hub.publish_all(["x" * 15_000] * 4, "other")
        assert (await late.subscribe("t", since=position)).lost == ("t",)

    async def test_a_topic_that_gets_its_first_message_meanwhile_has_a_position_before_it(self, late):
        """While another topic is still read."""
        reader = Reader(late)
        late.backplane.hold()
        async with calling(reader.subscribe, "t", "u", since="start") as call:
            while late.backplane.calls["read"] < 2:
                gate, late.backplane.gate = late.backplane.gate, anyio.Event()
                gate.set()
                await anyio.wait_all_tasks_blocked()
            late.backplane.let()
            await late.publish("t", 1)
        position = call.result.position["t"]
        again = Reader(late)
        assert (await again.subscribe("t", since=position)).recovered
        assert reader.values() == again.values() == [1]

    async def test_a_topic_that_was_empty_has_a_position(self, hub):
        hub.configure("t", history=3)
        position = await hub.position("t")
        await hub.publish_all(range(2))
        reader = Reader(hub)
        assert (await reader.subscribe("t", since=position)).recovered
        assert reader.values() == [0, 1]

    @pytest.mark.parametrize("history", [3, 100])
    async def test_a_position_that_the_log_does_not_know_is_lost(self, hub, history):
        hub.configure("*", history=history)
        positions = await hub.publish_all(range(5))
        [other] = await hub.publish_all([0], "other")
        for since in ("x", "0-0", "1-0.1.1", positions[4][:-1], "0" + positions[0] + "1", other, "start_", "€" * 500):
            reader = Reader(hub)
            subscribed = await reader.subscribe("t", since=since)
            assert subscribed == Subscribed(False, positions[4], ("t",))
            await hub.publish("t", 5)
            assert reader.values() == [5]
            hub.leave(reader.subscriber)
            positions[4] = await hub.position("t")

    async def test_what_is_older_than_ttl_is_lost(self, hub):
        hub.configure("t", history=10, ttl=1e-9)
        hub.configure("u", history=10, ttl=60)
        for topic, expected in (("t", []), ("u", [1, 2])):
            positions = await hub.publish_all(range(3), topic)
            readers = Reader(hub), Reader(hub), Reader(hub)
            assert (await readers[0].subscribe(topic, since=positions[0])).recovered == bool(expected)
            assert (await readers[1].subscribe(topic, since=positions[2])).recovered
            assert (await readers[2].subscribe(topic, since="start")).recovered
            assert [reader.values(topic) for reader in readers] == [expected, [], expected and [0, *expected]]

    @pytest.mark.parametrize("since", [5, b"x", ["t"], {"t": 5}, {"t": ["x"]}, True])
    async def test_since_of_another_type_is_refused_before_anything_is_subscribed(self, hub, since):
        hub.configure("t", history=10)
        with pytest.raises(TypeError, match="expected since= as a position, or as a dict"):
            await Reader(hub).subscribe("t", since=since)
        assert_empty(hub)

    async def test_an_empty_position_means_that_nothing_was_missed(self, hub):
        hub.configure("t", history=10)
        positions = await hub.publish_all(range(3))
        for since in (None, "", {}, {"t": None}, {"t": ""}):
            reader = Reader(hub)
            assert await reader.subscribe("t", since=since) == Subscribed(False, positions[2], ())
            assert reader.values() == []

    async def test_topics_without_history_are_lost_but_for_start(self, hub):
        hub.configure("t", history=10)
        [position] = await hub.publish_all([1])
        reader, other = Reader(hub), Reader(hub)
        subscribed = await reader.subscribe("t", "u", since={"t": position, "u": "x"})
        assert subscribed == Subscribed(False, {"t": position, "u": None}, ("u",))
        assert (await other.subscribe("t", "u", since="start")).recovered
        await hub.publish_all([2], "u")
        assert (reader.values("u"), other.values("u"), other.values()) == ([2], [2], [1])

    async def test_subscribing_again_recovers_nothing(self, hub):
        hub.configure("t", history=10)
        [position, _] = await hub.publish_all(range(2))
        reader = Reader(hub)
        await reader.subscribe("t")
        subscribed = await reader.subscribe("t", since=position)
        assert (subscribed.recovered, subscribed.lost, reader.values()) == (False, (), [])

    def test_one_token_has_the_positions_of_several_topics(self):
        topics = ["a", "b", "c"]
        assert split_positions(topics, join_positions(["1", None, "3"])) == {"a": "1", "b": None, "c": "3"}
        assert split_positions(topics, "1_2") == dict.fromkeys(topics, "1_2")
        assert split_positions(topics, "start") == dict.fromkeys(topics, "start")
        assert split_positions(topics, "") is split_positions(topics, None) is None


class TestPace:
    @pytest.mark.parametrize("room", [None, 0])
    async def test_a_slow_client_holds_one_chunk(self, hub, room):
        hub.configure("t", history=2000)
        positions = await hub.publish_all(range(2000))
        reader = Reader(hub, room=room)
        await reader.subscribe("t", since=positions[0])
        assert 0 < reader.outbox.count <= 256
        published = 2000
        with anyio.fail_after(5):
            while len(reader.lines) < published - 1:
                if published < 2100:
                    await hub.publish("t", published)
                    published += 1
                reader.take(7 if room is None else 1)
                assert reader.outbox.count <= 256
                await anyio.lowlevel.checkpoint()
        assert reader.values() == list(range(1, published))
        assert reader.subscriber.resume is None
        hub.leave(reader.subscriber)
        assert_empty(hub)

    @pytest.mark.parametrize("room", [None, 0])
    async def test_a_client_that_falls_out_of_the_window_is_told_in_its_place(self, hub, room):
        hub.configure("t", history=300)
        positions = await hub.publish_all(range(301))
        reader, plain = Reader(hub, room=room, marks=True), Reader(hub, room=room)
        await reader.subscribe("t", since=positions[0])
        await plain.subscribe("t", since=positions[0])
        await hub.publish_all(range(301, 2000))
        values = reader.values()
        gap = values.index(GAP)
        assert values[:gap] == list(range(1, gap + 1))
        assert values[gap + 1 :] == list(range(values[gap + 1], 2000))
        assert plain.values() == values[:gap]
        assert (reader.refusals, plain.refusals) == ([], [1012])
        hub.leave(reader.subscriber)
        assert_empty(hub)

    @pytest.mark.parametrize("room", [None, 0])
    async def test_one_that_publishes_while_it_resumes_does_not_get_its_own(self, hub, room):
        hub.configure("*", history=2000)
        since = {topic: (await hub.publish_all(range(300), topic))[0] for topic in "tu"}
        reader, other = Reader(hub, room=room), Reader(hub, room=room)
        for each in (reader, other):
            await each.subscribe("t", "u", since=since)
        for n in range(300, 900):
            await hub.publish("t", n, skip=reader.subscriber.id)
        await hub.publish("t", 900)
        await hub.publish("t", 901, skip=reader.subscriber.id)
        assert reader.values() == [*range(1, 300), 900]
        assert other.values() == list(range(1, 902))
        assert reader.values("u") == other.values("u") == list(range(1, 300))
        assert reader.subscriber.resume is None

    async def test_one_that_speaks_microws_v1_gets_the_positions_of_its_own(self, hub):
        hub.configure("t", history=2000)
        positions = await hub.publish_all(range(300))
        reader = Reader(hub, codec=LIVE_CODEC)
        await reader.subscribe("t", since=positions[0])
        expected = [{"topic": "t", "id": positions[n], "data": n} for n in range(1, 300)]
        for n in range(300, 500):
            receipt = await hub.publish("t", n, skip=reader.subscriber.id if n % 3 else None)
            expected.append({"topic": "t", "id": receipt.id} | ({} if n % 3 else {"data": n}))
            if n == 400:
                got = [json.loads(reader.outbox.pop().data) for _ in range(len(expected))]
                assert reader.subscriber.resume is None
        got += [json.loads(reader.outbox.pop().data) for _ in range(99)]
        assert (got, len(reader.outbox)) == (expected, 0)

    async def test_a_busy_topic_does_not_keep_another_from_catching_up(self, hub):
        hub.configure("t", history=2000)
        hub.configure("busy", overflow="drop_oldest", queue=10)
        positions = await hub.publish_all(range(1000))
        reader = Reader(hub)
        await reader.subscribe("busy")
        await reader.subscribe("t", since=positions[0])
        for n in range(2000):
            await hub.publish("busy", n)
            assert reader.outbox
            reader.take(1)
        assert reader.subscriber.resume is None
        await hub.publish("t", 1000)
        assert reader.values() == list(range(1, 1001))

    async def test_several_topics_take_turns(self, hub):
        hub.configure("*", history=2000)
        since = {topic: (await hub.publish_all(range(1000), topic))[0] for topic in "tu"}
        reader = Reader(hub)
        await reader.subscribe("t", "u", since=since)
        reader.take(600)
        assert {topic for topic, _ in reader.take(0)} == {"t", "u"}
        assert reader.values("t") == reader.values("u") == list(range(1, 1000))

    async def test_what_leaves_at_the_end_of_a_connection_is_what_was_queued(self, hub):
        hub.configure("t", history=2000)
        positions = await hub.publish_all(range(2000))
        reader = Reader(hub, room=0)
        await reader.subscribe("t", since=positions[0])
        queued = reader.outbox.count
        assert len(reader.outbox.take_all().splitlines()) == 256
        assert queued == 1  # joined
        assert not reader.outbox

    @pytest.mark.parametrize("topics", [1, 40])
    async def test_one_that_leaves_gets_no_more(self, hub, topics):
        hub.configure("*", history=2000)
        since = {f"t{n}": (await hub.publish_all(range(300), f"t{n}"))[0] for n in range(topics)}
        reader = Reader(hub)
        await reader.subscribe(*since, since=since)
        hub.leave(reader.subscriber)
        assert len(reader.take()) <= 256
        assert reader.outbox.refill is None
        with anyio.fail_after(5):
            while hub._topics:
                await anyio.lowlevel.checkpoint()
        assert_empty(hub)

    async def test_one_that_unsubscribes_gets_what_was_queued(self, hub):
        hub.configure("*", history=2000)
        since = {topic: (await hub.publish_all(range(1000), topic))[0] for topic in "tu"}
        reader = Reader(hub)
        await reader.subscribe("t", "u", since=since)
        hub.unsubscribe(reader.subscriber, "t")
        assert reader.values("t") == list(range(1, 257))
        assert reader.values("u") == list(range(1, 1000))

    async def test_a_message_that_cannot_be_encoded_ends_the_connection(self, hub, caplog):
        class Failing(LineCodec):
            def frame(self, payload):
                if payload.data == b"300":
                    raise ValueError("no form for it")
                return super().frame(payload)

        hub.configure("t", history=2000)
        positions = await hub.publish_all(range(1000))
        reader = Reader(hub, codec=Failing())
        await reader.subscribe("t", since=positions[0])
        assert reader.values() == list(range(1, 257))
        assert (reader.refusals, hub.losses) == ([1011], {"unencodable": 1})
        assert "cannot be encoded" in caplog.text
        assert_empty(hub)


class TestSharing:
    async def test_subscribers_at_one_place_share_the_frames(self, hub):
        hub.configure("t", history=2000)
        positions = await hub.publish_all(range(1000))
        await Reader(hub, room=0).subscribe("t", since=positions[0])
        codec = LineCodec()
        readers = [Reader(hub, codec=codec, room=10**9) for _ in range(20)]
        for reader in readers:
            await reader.subscribe("t", since=positions[99])
        assert codec.calls == 900
        assert all(reader.values() == list(range(100, 1000)) for reader in readers)

    async def test_chunks_that_nobody_shares_are_not_kept(self, hub):
        hub.configure("t", history=2000)
        positions = await hub.publish_all(range(1000))
        slow, reader = Reader(hub), Reader(hub)
        for each in (slow, reader):
            each.subscriber.replay_codecs = {"t": LineCodec()}
            await each.subscribe("t", since=positions[0])
        assert reader.values() == list(range(1, 1000))
        assert not hub._topics["t"].window._chunks

    async def test_what_is_kept_for_sharing_is_limited(self, hub):
        hub.configure("t", history=2000)
        positions = await hub.publish_all(range(500))
        await Reader(hub, room=0).subscribe("t", since=positions[0])
        for n, position in enumerate(positions):
            reader = Reader(hub, codec=LineCodec())
            await reader.subscribe("t", since=position)
            assert reader.values() == list(range(n + 1, 500))
        window = hub._topics["t"].window
        kept = sum(message.size for messages, _ in window._chunks.values() for message in messages)
        assert 0 < kept < 5 << 20

    async def test_the_log_is_read_once_for_all_that_come_at_a_time(self, late):
        await late.publish_all(range(20))
        positions = [(await late.backplane.read("t", "start", history=9, ttl=None, by_key=False)).entries[0]]
        since = positions[0].payload.position
        late.backplane.calls.clear()
        late.backplane.hold()
        readers = [Reader(late) for _ in range(50)]
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for reader in readers:
                    tasks.start_soon(lambda reader: reader.subscribe("t", since=since), reader)
                await anyio.wait_all_tasks_blocked()
                late.backplane.let()
        assert late.backplane.calls == {"subscribe": 1, "read": 1}
        # Not for one that comes later; once for all others.
        for position, reads in ((since, 1), ("x", 2), ("1-0.1.1", 2), ("start", 2)):
            await Reader(late).subscribe("t", since=position)
            assert late.backplane.calls == {"subscribe": 1, "read": reads}
        assert all(reader.values() == list(range(12, 20)) for reader in readers)

    @pytest.mark.parametrize("overflow", ["close", "latest"])
    async def test_a_lone_one_reads_what_it_missed_and_no_more(self, late, overflow):
        late._patterns.clear()
        late.configure("*", history=10, overflow=overflow)
        positions = await late.publish_all(range(20))
        reader = Reader(late)
        await reader.subscribe("t", since=positions[17])
        assert len(late._topics["t"].window._entries) == (2 if overflow == "close" else 1)
        # Another one missed more, and another one less.
        others = Reader(late), Reader(late)
        for other, missed in zip(others, (9, 1), strict=True):
            assert (await other.subscribe("t", since=positions[19 - missed])).recovered
        assert late.backplane.calls["read"] == (2 if overflow == "close" else 4)
        if overflow == "close":
            assert reader.values() == [18, 19]
            assert [other.values() for other in others] == [list(range(11, 20)), [19]]
        else:
            assert [each.values() for each in (reader, *others)] == [[19]] * 3

    async def test_a_message_that_is_not_delivered_here_yet_is_known_to_the_log(self, late):
        """The client had it from a process that is ahead of this one."""
        await late.publish_all(range(20))
        await Reader(late).subscribe("t", since="start")
        log = late.backplane._log
        place = log.append(b"t", Codecs().payload(20, "t"), publisher=1, number=1)[0]
        log.commit()
        entry = log.entry(place)
        read = late.backplane.read

        async def deliver_and_read(*arguments, **options):
            late.deliver(entry.payload, None, entry)
            return await read(*arguments, **options)

        late.backplane.read = deliver_and_read
        reader = Reader(late)
        assert (await reader.subscribe("t", since=entry.payload.position)).recovered
        await late.publish("t", 21)
        assert reader.values() == [21]

    async def test_what_is_shared_is_of_the_newest_of_each_key(self, hub):
        hub.configure("t", history=10, overflow="latest", key="k")
        for n, k in enumerate("abc"):
            await hub.publish("t", {"k": k, "n": n})
        slow, codec = Reader(hub, room=0), LineCodec()
        await slow.subscribe("t", since="start")
        for n, expected in ((3, ["2}", "3}"]), (4, ["2}", "4}"])):
            await hub.publish("t", {"k": "a", "n": n})
            await hub.publish("t", {"k": "b", "n": n})
            reader = Reader(hub, codec=codec)
            await reader.subscribe("t", since="start")
            assert [line.rpartition(":")[2] for _, line in reader.take()] == [*expected, f"{n}}}"]

    async def test_if_the_one_that_reads_is_cancelled_another_reads(self, late):
        [since, *_] = await late.publish_all(range(5))
        late.backplane.hold()
        first, second = Reader(late), Reader(late)
        async with (
            calling(first.subscribe, "t", since=since) as one,
            calling(second.subscribe, "t", since=since) as two,
        ):
            one.scope.cancel()
            await anyio.wait_all_tasks_blocked()
            late.backplane.let()
        assert two.result.recovered
        assert second.values() == [1, 2, 3, 4]
        assert len(late._subscribers) == 1

    async def test_if_the_backplane_takes_too_long_all_that_wait_are_told(self, late):
        late.backplane.hold()
        first, second = Reader(late), Reader(late)
        async with calling(first.subscribe, "t") as one, calling(second.subscribe, "t") as two:
            late.backplane.error = PublishTimeout("no answer")
            late.backplane.let()
        assert type(one.error) is type(two.error) is PublishTimeout
        assert late.backplane.calls["subscribe"] == 1
        assert_empty(late)
        late.backplane.error = None
        assert (await first.subscribe("t")).position


class TestWaiting:
    async def test_nothing_comes_before_subscribe_has_returned_and_nothing_is_missing_after(self, late):
        [since, *_] = await late.publish_all(range(3))
        late.backplane.hold()
        reader = Reader(late)
        async with calling(reader.subscribe, "t", since=since) as call:
            await MemoryBackplane.publish(late.backplane, Codecs().payload(3, "t"), has_history=True)
            assert reader.values() == []
            late.backplane.let()
        assert call.result.recovered
        await late.publish("t", 4)
        assert reader.values() == [1, 2, 3, 4]

    @pytest.mark.parametrize("since", [None, "start"])
    @pytest.mark.parametrize("end", ["cancel", "leave", "unsubscribe", "refuse"])
    async def test_one_that_goes_while_it_waits_leaves_nothing(self, late, since, end):
        await late.publish_all(range(3))
        announced = []
        reader = Reader(late, announce=lambda *args: announced.append(args) or [])
        for turns in range(3):
            late.backplane.hold()
            async with calling(reader.subscribe, "t", "u", since=since) as call:
                for _ in range(turns):
                    gate, late.backplane.gate = late.backplane.gate, anyio.Event()
                    gate.set()
                    await anyio.wait_all_tasks_blocked()
                if call.result is not None:
                    break
                if end == "cancel":
                    call.scope.cancel()
                elif end == "leave":
                    late.leave(reader.subscriber)
                elif end == "refuse":
                    reader.refuse(1012, "")
                else:
                    late.unsubscribe(reader.subscriber, "t", "u")
                await anyio.wait_all_tasks_blocked()
                if late.backplane.gate is not None:
                    late.backplane.let()
            if call.result is not None:
                assert not call.result.recovered
            if end in ("leave", "refuse"):
                assert call.result == Subscribed(False, None, ())
            assert reader.outbox.refill is reader.subscriber.resume is reader.subscriber.subscribing is None
            assert not reader.outbox
            assert_empty(late)
            assert not announced
        assert turns

    async def test_a_cancelled_call_ends_no_subscription_of_another(self, late):
        reader = Reader(late)
        late.backplane.hold()
        async with calling(reader.subscribe, "t") as one, calling(reader.subscribe, "t", "u") as two:
            one.scope.cancel()
            await anyio.wait_all_tasks_blocked()
            late.backplane.let()
        assert set(two.result.position) == {"t", "u"}
        assert reader.subscriber.topics == {"t", "u"}
        await late.publish_all([1])
        assert reader.values() == [1]

    async def test_two_calls_at_once_bring_each_topic_once(self, late):
        since = {topic: (await late.publish_all(range(5), topic))[0] for topic in "tu"}
        announced = []
        reader = Reader(late, announce=lambda positions, *_: announced.append(list(positions)) or [])
        late.backplane.hold()
        async with (
            calling(reader.subscribe, "t", since=since["t"]) as one,
            calling(reader.subscribe, "t", "u", since=since) as two,
        ):
            late.backplane.let()
        assert (one.result.recovered, two.result.recovered) == (True, False)
        assert (two.result.lost, announced) == ((), [["t"], ["u"]])
        assert reader.values("t") == reader.values("u") == [1, 2, 3, 4]

    async def test_one_that_left_while_another_call_waited_is_not_subscribed(self, late):
        reader = Reader(late)
        late.backplane.hold()
        async with calling(reader.subscribe, "t"), calling(reader.subscribe, "u") as two:
            late.leave(reader.subscriber)
            late.backplane.let()
        assert two.result == Subscribed(False, None, ())
        assert_empty(late)

    async def test_one_that_comes_back_while_it_waited_is_subscribed_anew(self, late):
        [since, *_] = await late.publish_all(range(3))
        reader = Reader(late)
        late.backplane.hold()
        async with calling(reader.subscribe, "t", since=since) as one:
            late.leave(reader.subscriber)
            async with calling(reader.subscribe, "t") as two:
                late.backplane.let()
        await late.publish("t", 3)
        assert not one.result.recovered
        assert two.result.position == since.replace("1-", "3-", 1) or two.result.position
        assert reader.values() == [3]

    async def test_publishers_at_once_over_a_late_backplane_bring_one_order(self, late):
        [since] = await late.publish_all([0])
        readers = [Reader(late) for _ in range(3)]
        await readers[0].subscribe("t")
        late.backplane.hold()
        receipts = []

        async def publish(value):
            receipts.append((await late.publish("t", value), value))

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for value in range(1, 6):
                    tasks.start_soon(publish, value)
                tasks.start_soon(lambda: readers[1].subscribe("t", since=since))
                await anyio.wait_all_tasks_blocked()
                for value in range(6, 9):
                    tasks.start_soon(publish, value)
                await anyio.wait_all_tasks_blocked()
                late.backplane.let()
        await readers[2].subscribe("t", since=since)
        assert readers[0].values() == readers[1].values() == readers[2].values()
        assert sorted(readers[0].values()) == list(range(1, 9))
        by_offset = sorted((int(receipt.id.split("-")[0], 16), value) for receipt, value in receipts)
        assert [value for _, value in by_offset] == readers[0].values()


class TestLosses:
    async def test_a_loss_during_the_read_is_seen(self, late):
        [since, *_] = await late.publish_all(range(5))
        reader = Reader(late)
        late.backplane.hold()
        async with calling(reader.subscribe, "t", since=since) as call:
            gate, late.backplane.gate = late.backplane.gate, anyio.Event()
            gate.set()
            await anyio.wait_all_tasks_blocked()
            assert late.backplane.calls["read"] == 1
            late.lose()
            late.backplane.forget()
            late.backplane.let()
        assert call.result.lost == ("t",)
        await late.publish("t", 9)
        assert reader.values() == [9]

    async def test_what_was_found_before_a_loss_is_found_again_after_it(self, late):
        """Although the topic is delivered here again by then, because another one subscribed."""
        since = {topic: (await late.publish_all(range(3), topic))[0] for topic in "tu"}
        read, gate = late.backplane.read, anyio.Event()

        async def read_late(topic, *arguments, **options):
            if topic == "u":
                await gate.wait()
            return await read(topic, *arguments, **options)

        late.backplane.read = read_late
        reader = Reader(late)
        async with calling(reader.subscribe, "t", "u", since=since) as call:
            late.lose(["t"])
            await Reader(late).subscribe("t")
            await late.publish("t", 3)
            gate.set()
        assert call.result.recovered
        await late.publish("t", 4)
        assert reader.values("t") == [1, 2, 3, 4]

    async def test_after_a_loss_all_are_told_and_positions_are_known_again(self, late):
        [since, *_] = await late.publish_all(range(5))
        marked, plain, resuming = Reader(late, marks=True), Reader(late), Reader(late)
        await marked.subscribe("t")
        await plain.subscribe("t")
        await resuming.subscribe("t", since=since)
        await late.publish_all(range(5), "other")
        elsewhere, idle = Reader(late), Reader(late, room=9, marks=True)
        await elsewhere.subscribe("other", since="start")
        await idle.subscribe("u")
        late.backplane.forget()
        late.lose(iter(["t", "u"]))
        assert (marked.refusals, plain.refusals, resuming.refusals) == ([], [1012], [1012])
        assert (elsewhere.refusals, late.losses) == ([], {"lost": 4})
        assert idle.wire.written == [b"u gap\n"]
        subscribed = await Reader(late).subscribe("t")
        assert subscribed.position == await late.position("t")
        await late.publish("t", 5)
        assert marked.values() == [GAP, 5]

    @pytest.mark.parametrize("topics", [["t"], ["u"], None])
    async def test_one_that_resumes_is_told_and_goes_on(self, late, topics):
        late._patterns.clear()
        late.configure("*", history=2000)
        since = {topic: (await late.publish_all(range(1000), topic))[0] for topic in "tu"}
        reader = Reader(late, marks=True)
        await reader.subscribe("t", "u", since=since)
        late.lose(topics)
        late.lose(topics)
        for topic in "tu":
            await late.publish_all(range(1000, 1010), topic)
        reader.take()
        for topic in "tu":
            await late.publish_all([1010], topic)
            values = reader.values(topic)
            if topics is not None and topic not in topics:
                assert values == list(range(1, 1011))
            else:
                gap = values.index(GAP)
                assert gap <= 256
                assert values == [*range(1, gap + 1), GAP, 1010]
        assert reader.subscriber.resume is None
        assert reader.refusals == []
        assert late.losses == {"lost": 2 if topics is None else 1}
        late.leave(reader.subscriber)
        assert_empty(late)

    async def test_a_backplane_that_delivers_again_after_a_cut_brings_nothing_twice(self, late):
        await late.publish_all(range(3))
        live, resuming = Reader(late), Reader(late)
        for reader in (live, resuming):
            await reader.subscribe("t", since="start")
        assert live.values() == [0, 1, 2]
        await late.publish("t", 3)
        for entry in (await late.backplane.read("t", "start", history=9, ttl=None, by_key=False)).entries:
            late.deliver(entry.payload, None, entry)
        assert live.values() == resuming.values() == [0, 1, 2, 3]


class TestLatest:
    async def test_the_newest_of_each_key_comes_in_order(self, hub):
        hub.configure("t", history=3, overflow="latest", key="k")
        positions = [(await hub.publish("t", {"k": k, "n": n})).id for n, k in enumerate("abcabd")]
        for since, expected in (("start", [3, 4, 5]), (positions[3], [4, 5]), (positions[0], [3, 4, 5])):
            reader = Reader(hub)
            assert (await reader.subscribe("t", since=since)).recovered
            assert [line.rpartition(":")[2] for _, line in reader.take()] == [f"{n}}}" for n in expected]
        assert not (await Reader(hub).subscribe("t", since="x")).recovered

    async def test_a_slow_client_gets_the_newest_and_is_not_told(self, hub):
        hub.configure("t", history=1, overflow="latest")
        hub.configure("other", history=1000)
        since = {"other": (await hub.publish_all(range(500), "other"))[0], "t": "start"}
        await hub.publish("t", -1)
        reader = Reader(hub)
        await reader.subscribe("other", "t", since=since)
        await hub.publish_all(range(100))
        assert reader.values() == [-1, 99] or reader.values() == [99]
        assert (reader.refusals, hub.losses) == ([], {})

    async def test_what_was_missed_is_not_conflated_with_what_has_no_key(self, hub):
        hub.configure("t", history=10, overflow="latest", key="k")
        hub.configure("other", history=10)
        await hub.publish("t", {"k": 1})
        reader = Reader(hub)
        await reader.subscribe("t", since="start")
        hub.unsubscribe(reader.subscriber, "t")
        await reader.subscribe("t")
        await hub.publish("t", {})
        assert [line for _, line in reader.take()] == ['{"k":1}', "{}"]

    async def test_the_log_is_read_once(self, late):
        late._patterns.clear()
        late.configure("*", history=3, overflow="latest")
        await late.publish_all(range(3))
        readers = [Reader(late) for _ in range(3)]
        for reader in readers:
            await reader.subscribe("t", since="start")
        assert [reader.values() for reader in readers] == [[2]] * 3
        assert late.backplane.calls["read"] == 1


class TestMemory:
    @pytest.mark.parametrize("is_read", [False, True])
    @pytest.mark.parametrize("end", ["cancel", "leave", "unsubscribe"])
    async def test_a_window_ends_after_one_that_went_while_it_waited(self, late, monkeypatch, end, is_read):
        monkeypatch.setattr(microws.hub.subscribers, "_WINDOW_IDLE", 0.01)
        since = {topic: (await late.publish_all(range(3), topic))[0] for topic in "tu"}
        live, reader = Reader(late), Reader(late)
        await live.subscribe("t")
        late.backplane.hold()
        async with calling(reader.subscribe, "t", "u", since=since) as call:
            if is_read:  # and now it waits for the other topic
                gate, late.backplane.gate = late.backplane.gate, anyio.Event()
                gate.set()
                await anyio.wait_all_tasks_blocked()
            assert late._topics["t"].window is not None
            if end == "cancel":
                call.scope.cancel()
            elif end == "leave":
                late.leave(reader.subscriber)
            else:
                late.unsubscribe(reader.subscriber, "t")
            await anyio.wait_all_tasks_blocked()
            late.backplane.let()
        with anyio.fail_after(5):
            while late._topics["t"].window is not None:
                await anyio.lowlevel.checkpoint()
        await late.publish("t", 3)
        assert (live.values(), reader.values()) == ([3], [])

    async def test_a_window_ends_when_nobody_resumes(self, hub, monkeypatch):
        monkeypatch.setattr(microws.hub.subscribers, "_WINDOW_IDLE", 0.01)
        hub.configure("t", history=10)
        await hub.publish_all(range(3))
        reader, slow = Reader(hub), Reader(hub)
        await slow.subscribe("t", since="start")
        await reader.subscribe("t", since="start")
        reader.take()
        assert hub._topics["t"].window is not None
        slow.take()
        with anyio.fail_after(5):
            while hub._topics["t"].window is not None:
                await anyio.lowlevel.checkpoint()
        await hub.publish("t", 3)
        late = Reader(hub)
        await late.subscribe("t", since="start")
        assert late.values() == [0, 1, 2, 3]
        assert reader.values() == [0, 1, 2, 3]

    async def test_the_backplane_is_told_once_the_last_has_left(self, late):
        readers = Reader(late), Reader(late)
        for reader in readers:
            await reader.subscribe("t")
        for told, reader in enumerate(readers):
            assert late.backplane.calls["unsubscribe"] == 0
            late.leave(reader.subscriber)
            assert late.backplane.calls["unsubscribe"] == told

    async def test_nothing_is_kept_after_the_last_has_left(self, hub):
        hub.configure("t", history=10)
        await hub.publish_all(range(3))
        gc.collect()
        gc.disable()
        try:
            readers = [Reader(hub) for _ in range(3)]
            for reader in readers:
                await reader.subscribe("t", since="start")
            readers[0].take()
            assert count_objects() == {Window: 1, Resume: 2}
            for reader in readers:
                hub.leave(reader.subscriber)
            assert count_objects() == {}
        finally:
            gc.enable()
        assert_empty(hub)


def count_objects():
    return Counter(type(item) for item in gc.get_objects() if type(item) in (Window, Resume))


# A search


TOPICS = {
    "a": {"history": 4},
    "b": {"history": 300},
    "c": {"history": 4, "queue": 3, "overflow": "drop_oldest"},
    "d": {"history": 4, "queue": 3, "overflow": "drop_newest"},
    "e": {"history": 4, "queue": 3},
    "f": {"history": 4, "queue": 3, "overflow": "latest"},
}


def draw(random):
    """Some actions, most of them on one topic."""

    def topic():
        return random.choice(["a", "a", "a", *TOPICS])

    def since():
        return random.choice([None, "start", "x", *[random.randrange(9)] * 3])

    arguments = {
        "publish": lambda: (topic(), random.choice([1, 1, 2, 5, 20, 400])),
        "subscribe": lambda: (random.randrange(6), {topic(): since() for _ in range(random.randint(1, 3))}),
        "take": lambda: (random.randrange(6), random.randint(1, 6)),
        "unsubscribe": lambda: (random.randrange(6), topic()),
        "cancel": lambda: (random.randrange(6),),
        "leave": lambda: (random.randrange(6),),
        "hold": tuple,
        "let": tuple,
        "answer": lambda: (random.randrange(4),),
        "cut": lambda: (topic(), random.randrange(7)),
        "deliver_again": lambda: (topic(),),
    }
    names = random.choices(list(arguments), (2, 4, 1, 1, 1, 1, 1, 1, 4, 1, 1), k=random.randint(10, 60))
    return [(name, *arguments[name]()) for name in names]


class SlowBackplane(MemoryBackplane):
    """Of several processes. While it is held, each question waits before and after it reaches the log."""

    spans_processes = True

    def __init__(self):
        super().__init__(1 << 20)
        self.is_held = False
        self.waiting = []

    async def _wait(self):
        if self.is_held:
            self.waiting.append(anyio.Event())
            await self.waiting[-1].wait()

    async def subscribe(self, topic):
        await self._wait()
        place = await super().subscribe(topic)
        await self._wait()
        return place

    async def read(self, topic, since, **options):
        await self._wait()
        replay = await super().read(topic, since, **options)
        await self._wait()
        return replay


class Deaf:
    """What is delivered to it is lost."""

    def deliver(self, payload, skip=None, entry=None):
        return 0


START = object()


class Search:
    """Some readers, and what each of them is owed."""

    def __init__(self):
        self.backplane = SlowBackplane()
        self.hub = RunningHub(self.backplane)
        for topic, settings in TOPICS.items():
            self.hub.configure(topic, **settings)
        self.readers = [self.new_reader(number) for number in range(6)]
        self.tasks = []
        # The place after what was lost.
        self.cut_at = 0
        self.positions = {topic: [] for topic in TOPICS}

    def new_reader(self, number):
        reader = Reader(self.hub, room=None if number < 3 else 0, marks=bool(number % 3))
        reader.calls = []
        # By topic that it ever subscribed to: the number after which it is owed everything, or ``START``. ``None``: it
        # is owed nothing, because it has left.
        reader.owed = {}
        # With ``START``: the first number that it may miss.
        reader.first = {}
        return reader

    async def run(self, actions):
        for topic in TOPICS:
            await self.publish(topic, 9)
        for name, *arguments in actions:
            await getattr(self, name)(*arguments)
        await self.let()
        for ended in await asyncio.gather(*self.tasks, return_exceptions=True):
            if ended is not None and not isinstance(ended, asyncio.CancelledError):
                raise ended
        await self.turn()
        for number in range(len(self.readers)):
            self.judge(self.readers[number])
            await self.leave(number)
        assert_empty(self.hub)

    async def publish(self, topic, count):
        known = self.positions[topic]
        for _ in range(count):
            payload = Codecs().payload(len(known), topic)
            known.append((await self.backplane.publish(payload, has_history=True)).id)

    async def cut(self, topic, count):
        """The process misses messages, and is told."""
        self.backplane.start(Deaf())
        await self.publish(topic, count)
        self.backplane.start(self.hub)
        self.hub.lose()
        self.cut_at = self.backplane._log.end

    async def deliver_again(self, topic):
        """As after a cut of the backplane without a loss."""
        replay = await MemoryBackplane.read(self.backplane, topic, "start", history=3, ttl=None, by_key=False)
        for entry in replay.entries:
            if entry.place >= self.cut_at:
                self.hub.deliver(entry.payload, None, entry)

    async def subscribe(self, number, wanted):
        if self.readers[number].refusals:
            await self.leave(number)
        reader = self.readers[number]
        since = {}
        for topic, back in wanted.items():
            known = self.positions[topic]
            if topic not in reader.owed:
                reader.owed[topic] = None
                since[topic] = known[-1 - back] if isinstance(back, int) else back
        if since:
            reader.calls.append(asyncio.create_task(self._subscribe(reader, since)))
            self.tasks.append(reader.calls[-1])
            await asyncio.sleep(0)  # it begins

    async def _subscribe(self, reader, since):
        counts = {topic: len(self.positions[topic]) for topic in since}
        subscribed = await reader.subscribe(*since, since=since)
        positions = subscribed.position if len(since) > 1 else dict.fromkeys(since, subscribed.position)
        for topic in reader.subscriber.topics.intersection(since):
            self._owe(reader, topic, since[topic], positions[topic], topic in subscribed.lost, counts[topic])

    def _owe(self, reader, topic, since, position, is_lost, count):
        known = self.positions[topic]
        reader.owed[topic] = known.index(position) if position in known else START
        if since in (None, "x"):
            assert is_lost == (since == "x")
            assert reader.owed[topic] >= count - 1
        elif since == "start":
            assert not is_lost
            reader.owed[topic] = START
            reader.first[topic] = max(0, len(known) - TOPICS[topic]["history"])
        else:
            # While it waited, more was published.
            before, history = known.index(since), TOPICS[topic]["history"]
            is_possible = count - 1 - before <= history or topic == "f"
            assert len(known) - 1 - before > history if is_lost else is_possible
            assert is_lost or position == since

    async def take(self, number, count):
        self.readers[number].take(count)

    async def unsubscribe(self, number, topic):
        reader = self.readers[number]
        self.hub.unsubscribe(reader.subscriber, topic)
        if topic in reader.owed:
            reader.owed[topic] = None

    async def cancel(self, number):
        if calls := [task for task in self.readers[number].calls if not task.done()]:
            calls[0].cancel()

    async def leave(self, number):
        """Another reader takes its place."""
        reader = self.readers[number]
        self.hub.leave(reader.subscriber)
        reader.owed = dict.fromkeys(reader.owed)
        self.judge(reader)
        self.readers[number] = self.new_reader(number)

    async def hold(self):
        self.backplane.is_held = True

    async def answer(self, number):
        waiting = self.backplane.waiting
        if waiting:
            waiting.pop(number % len(waiting)).set()
        await self.turn()

    async def let(self):
        self.backplane.is_held = False
        while self.backplane.waiting:
            await self.answer(0)

    async def turn(self):
        for _ in range(20):
            await asyncio.sleep(0)

    def judge(self, reader):
        for topic, settings in TOPICS.items():
            values = reader.values(topic)
            owed = reader.owed.get(topic)
            assert not values or topic in reader.owed
            is_dropping = "drop" in settings.get("overflow", "")
            # A policy that drops tells only those that asked for markers; and of a key only the newest counts.
            is_silent = topic == "f" or (is_dropping and reader.outbox._marker is None)
            last, is_told = (None if owed is START else owed), False
            if owed is START and values and not is_silent:
                assert values[0] == GAP or values[0] <= reader.first[topic]
            for value in values:
                if value == GAP:
                    is_told = True
                    continue
                assert last is None or value == last + 1 or ((is_told or is_silent) and value > last)
                last, is_told = value, False
            if owed is not None and not reader.refusals and not is_told:
                assert last == len(self.positions[topic]) - 1 or is_dropping
            assert GAP not in values or reader.outbox._marker is not None


@pytest.mark.parametrize("seed", range(5))
def test_every_stream_is_contiguous_until_the_subscriber_is_told(seed):
    async def run(actions):
        await Search().run(actions)

    random = Random(seed)
    for _ in range(60):
        asyncio.run(run(draw(random)))
