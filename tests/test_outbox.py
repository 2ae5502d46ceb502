"""One connection's queue: its order, its bounds, its policies, and no loss that nobody is told of."""

from collections import Counter

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from microws.hub import MAX_BYTES, MAX_MESSAGES, Outbox, Outcome, Published, TopicSettings
from microws.interfaces import Frame


def marker(topic, settings):
    return Published(Frame(f"gap in {topic}"), topic, settings, is_gap=True)


def published(text, settings, *, topic="t", key=None):
    return Published(Frame(text), topic, settings, key=key)


def texts(outbox):
    return [outbox.pop().text for _ in range(len(outbox))]


def filled(settings, *contents, gaps=True, topic="t", **options):
    outbox = Outbox(marker=marker if gaps else None, **options)
    for text in contents:
        outbox.put_nowait(published(text, settings, topic=topic))
    return outbox


def test_frames_leave_in_the_order_in_which_they_came_whoever_sent_them():
    outbox = filled(TopicSettings(), "1")
    outbox.send_nowait(Frame("2"))
    outbox.put_nowait(published("3", TopicSettings(), topic="u"))
    outbox.send_nowait(Frame("4"))
    assert texts(outbox) == ["1", "2", "3", "4"]
    assert not outbox
    assert outbox.size == 0


def test_the_shared_frame_itself_is_queued():
    frame = Frame("x")
    outbox = Outbox()
    outbox.put_nowait(Published(frame, "t", TopicSettings()))
    assert outbox.pop() is frame


def test_a_topic_has_256_messages_in_an_outbox_and_what_it_holds_does_not_count_for_others():
    outbox = filled(TopicSettings(), *["x"] * MAX_MESSAGES)
    assert MAX_MESSAGES == 256
    assert outbox.put_nowait(published("x", TopicSettings())) is Outcome.REFUSED
    assert outbox.put_nowait(published("x", TopicSettings(), topic="u")) is Outcome.QUEUED
    outbox.pop()
    assert outbox.put_nowait(published("x", TopicSettings())) is Outcome.QUEUED


def test_an_outbox_holds_1_mib_of_all_topics_together():
    half = "x" * (MAX_BYTES // 2)
    outbox = filled(TopicSettings(), half)
    assert outbox.put_nowait(published(half, TopicSettings(), topic="u")) is Outcome.QUEUED
    assert outbox.put_nowait(published("x", TopicSettings(), topic="v")) is Outcome.REFUSED
    assert outbox.size == MAX_BYTES == 1 << 20


def test_bytes_are_counted_as_they_travel():
    outbox = filled(TopicSettings(), "€")
    assert outbox.size == 3


def test_an_empty_outbox_takes_one_frame_of_any_size():
    outbox = Outbox(max_bytes=10)
    assert outbox.has_room(Frame("x" * 11))
    assert outbox.put_nowait(published("x" * 11, TopicSettings())) is Outcome.QUEUED
    assert outbox.put_nowait(published("", TopicSettings())) is Outcome.REFUSED
    assert not outbox.has_room(Frame(""))
    assert texts(outbox) == ["x" * 11]


@pytest.mark.parametrize(("waiting", "frame", "has_room"), [(4, "x" * 6, True), (4, "x" * 7, False), (10, "", True)])
def test_a_send_has_room_up_to_the_limit_in_bytes(waiting, frame, has_room):
    outbox = Outbox(max_bytes=10)
    outbox.send_nowait(Frame("x" * waiting))
    assert outbox.has_room(Frame(frame)) is has_room


def test_a_send_has_room_behind_255_others_however_much_was_published():
    outbox = filled(TopicSettings(queue=300), *[""] * 300)
    for _ in range(256):
        assert outbox.has_room(Frame(""))
        outbox.send_nowait(Frame(""))
    assert not outbox.has_room(Frame(""))
    for _ in range(300):
        outbox.pop()
    assert not outbox.has_room(Frame(""))
    outbox.pop()
    assert outbox.has_room(Frame(""))


@pytest.mark.parametrize(
    ("queue", "contents", "is_half_full"),
    [(5, ["", ""], False), (4, ["", ""], True), (256, ["x" * 4], False), (256, ["x" * 5], True), (1, [], False)],
)
def test_half_full_is_half_of_the_messages_or_half_of_the_bytes(queue, contents, is_half_full):
    settings = TopicSettings(queue=queue)
    assert filled(settings, *contents, max_bytes=10).is_half_full(settings) is is_half_full


def test_overflow_close_refuses_and_leaves_what_waits_as_it_is():
    settings = TopicSettings(2, "close")
    outbox = filled(settings, "1", "2")
    assert outbox.put_nowait(published("3", settings)) is Outcome.REFUSED
    assert texts(outbox) == ["1", "2"]


def test_drop_oldest_puts_the_gap_marker_where_the_messages_were():
    settings = TopicSettings(2, "drop_oldest")
    outbox = filled(settings, "1")
    outbox.send_nowait(Frame("sent"))
    for text in "234":
        assert outbox.put_nowait(published(text, settings)) is Outcome.QUEUED
    assert texts(outbox) == ["gap in t", "sent", "3", "4"]


def test_drop_newest_puts_the_gap_marker_before_the_next_message():
    settings = TopicSettings(2, "drop_newest")
    outbox = filled(settings, "1", "2")
    assert outbox.put_nowait(published("3", settings)) is Outcome.DROPPED
    assert outbox.put_nowait(published("4", settings)) is Outcome.DROPPED
    outbox.pop()
    assert outbox.put_nowait(published("5", settings)) is Outcome.QUEUED
    outbox.put_nowait(published("other", TopicSettings(), topic="u"))
    assert texts(outbox) == ["2", "gap in t", "5", "other"]


def test_a_message_that_has_no_room_even_when_its_topic_gives_all_is_marked_too():
    settings = TopicSettings(9, "drop_oldest")
    outbox = Outbox(marker=marker, max_bytes=30)
    outbox.send_nowait(Frame("x" * 29))
    assert outbox.put_nowait(published("12", settings)) is Outcome.DROPPED
    assert outbox.pop().text == "x" * 29
    outbox.put_nowait(published("3", settings))
    assert texts(outbox) == ["gap in t", "3"]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
def test_a_client_that_did_not_ask_for_gap_markers_gets_none(overflow):
    losses = Counter()
    settings = TopicSettings(2, overflow)
    outbox = filled(settings, *"1234", gaps=False, losses=losses)
    outbox.pop()
    outbox.put_nowait(published("5", settings))
    assert all("gap" not in text for text in texts(outbox))
    assert losses == {overflow: 2}


def test_latest_keeps_the_newest_message_of_each_key_in_its_new_place():
    settings = TopicSettings(9, "latest", "symbol")
    losses = Counter()
    outbox = Outbox(marker=marker, losses=losses)
    for text, key in [("a1", "a"), ("b1", "b"), ("a2", "a"), ("c1", "c"), ("b2", "b")]:
        assert outbox.put_nowait(published(text, settings, key=key)) is Outcome.QUEUED
    assert texts(outbox) == ["a2", "c1", "b2"]
    assert losses == {"latest": 2}


def test_latest_tells_when_the_newest_has_the_place_of_the_last_one():
    settings = TopicSettings(9, "latest")
    outbox = filled(settings, "1")
    assert outbox.put_nowait(published("2", settings)) is Outcome.CONFLATED
    assert outbox.size == 1
    outbox.send_nowait(Frame("sent"))
    assert outbox.put_nowait(published("3", settings)) is Outcome.QUEUED
    assert texts(outbox) == ["sent", "3"]


def test_latest_in_the_last_place_keeps_to_the_bytes_as_any_message_does():
    settings = TopicSettings(9, "latest")
    alone = filled(settings, "1", max_bytes=4)
    assert alone.put_nowait(published("12345", settings)) is Outcome.CONFLATED
    behind = Outbox(max_bytes=4)
    behind.send_nowait(Frame("abc"))
    assert behind.put_nowait(published("1", settings)) is Outcome.QUEUED
    assert behind.put_nowait(published("12", settings)) is Outcome.DROPPED
    assert texts(behind) == ["abc"]


def test_latest_without_room_for_one_more_key_drops_the_oldest_and_marks_it():
    settings = TopicSettings(2, "latest", "symbol")
    outbox = Outbox(marker=marker)
    for key in "abc":
        outbox.put_nowait(published(key, settings, key=key))
    assert texts(outbox) == ["gap in t", "b", "c"]


@pytest.mark.parametrize("overflow", ["drop_oldest", "latest"])
def test_a_policy_takes_nothing_of_other_topics_and_nothing_of_send(overflow):
    settings = TopicSettings(1, overflow)
    outbox = Outbox()
    outbox.put_nowait(published("mine", settings))
    outbox.put_nowait(published("other's", settings, topic="u"))
    outbox.send_nowait(Frame("sent"))
    outbox.put_nowait(published("mine again", settings))
    assert texts(outbox) == ["other's", "sent", "mine again"]


def test_clear_forgets_everything():
    settings = TopicSettings(1, "drop_newest")
    outbox = filled(settings, "1", "2")
    outbox.clear()
    assert (len(outbox), outbox.size) == (0, 0)
    assert outbox.put_nowait(published("3", settings)) is Outcome.QUEUED
    assert texts(outbox) == ["3"]


def test_progress_is_what_was_taken_out_and_what_the_client_takes_of_it():
    class Sink:
        size = 5

        def buffered(self):
            return self.size

    outbox = filled(TopicSettings(), "1", "2")
    before = outbox.progress
    texts(outbox)
    between = outbox.progress
    outbox.sink = Sink()
    stuck = outbox.progress
    outbox.sink.size = 4
    assert len({before, between, stuck, outbox.progress}) == 4


TOPICS = {
    "close": TopicSettings(3, "close"),
    "oldest": TopicSettings(3, "drop_oldest"),
    "newest": TopicSettings(2, "drop_newest"),
    "latest": TopicSettings(2, "latest", "key"),
    "last": TopicSettings(1, "latest"),
}
SIZES = st.integers(0, 24)


class Model:
    """The same queue as a plain list of ``(topic, number, size, key)``; topic ``None`` is ``ws.send``."""

    def __init__(self, *, gaps, max_bytes):
        self.items, self.owed, self.lost = [], set(), 0
        self.gaps, self.max_bytes = gaps, max_bytes

    def of(self, topic):
        return [item for item in self.items if item[0] == topic and item[1] != "gap"]

    def size(self):
        return sum(item[2] for item in self.items)

    def fits(self, topic, size):
        if not self.items:
            return True
        return len(self.of(topic)) < TOPICS[topic].queue and self.size() + size <= self.max_bytes

    def gap(self, topic):
        return (topic, "gap", len(f"gap in {topic}"), None)

    def drop(self, item):
        """Let a gap marker stand in its place, unless the one before it says so already."""
        index = self.items.index(item)
        marked = any(earlier[:2] == (item[0], "gap") for earlier in self.items[:index])
        self.items[index : index + 1] = [self.gap(item[0])] if self.gaps and not marked else []
        self.lost += 1

    def put(self, topic, number, size, key):
        overflow = TOPICS[topic].overflow
        if overflow == "latest":
            for item in self.of(topic):
                if item[3] == key:
                    self.items.remove(item)
                    self.lost += 1
        if overflow in ("latest", "drop_oldest"):
            while self.of(topic) and not self.fits(topic, size):
                self.drop(self.of(topic)[0])
        if not self.fits(topic, size):
            if overflow == "close":
                self.lost += 1
                return Outcome.REFUSED
            self.owed.add(topic)
            self.lost += 1
            return Outcome.DROPPED
        if topic in self.owed:
            self.owed.remove(topic)
            if self.gaps:
                self.items.append(self.gap(topic))
        self.items.append((topic, number, size, key))
        return Outcome.QUEUED


class OutboxMachine(RuleBasedStateMachine):
    """Any calls in any order, against the model; what comes out is judged by itself as well."""

    @initialize(gaps=st.booleans(), max_bytes=st.integers(20, 90))
    def start(self, gaps, max_bytes):
        self.losses = Counter()
        self.outbox = Outbox(marker=self.mark if gaps else None, losses=self.losses, max_bytes=max_bytes)
        self.model = Model(gaps=gaps, max_bytes=max_bytes)
        self.names = {}  # of each frame
        self.frames = []
        self.number = 0
        self.clear_books()

    def clear_books(self):
        self.popped = -1
        self.sends = []
        self.missing = {topic: [] for topic in TOPICS}
        self.told = set()

    def mark(self, topic, settings):
        frame = self.frame(f"gap in {topic}", (topic, "gap"))
        return Published(frame, topic, settings, is_gap=True)

    def frame(self, text, name):
        frame = Frame(text)
        self.frames.append(frame)
        self.names[id(frame)] = name
        return frame

    @rule(topic=st.sampled_from(sorted(TOPICS)), size=SIZES, key=st.sampled_from("ab"))
    def put(self, topic, size, key):
        self.number += 1
        key = key if topic == "latest" else None
        frame = self.frame("x" * size, (topic, self.number))
        count = len(self.outbox)
        outcome = self.outbox.put_nowait(Published(frame, topic, TOPICS[topic], key=key))
        expected = self.model.put(topic, self.number, size, key)
        if outcome is Outcome.CONFLATED:
            assert expected is Outcome.QUEUED
            assert topic in ("last", "latest")
            assert len(self.outbox) == count
        else:
            assert outcome is expected
        self.missing[topic].append(self.number)
        if outcome is Outcome.REFUSED:
            # The connection is closed now: what waited is gone, and the client is told by the close.
            self.outbox.clear()
            self.model.items.clear()
            self.model.owed.clear()
            self.clear_books()

    @rule(size=SIZES)
    def send(self, size):
        self.number += 1
        frame = self.frame("x" * size, (None, self.number))
        items = self.model.items
        sent = sum(topic is None for topic, *_ in items)
        expected = not items or (sent < MAX_MESSAGES and self.model.size() + size <= self.model.max_bytes)
        assert self.outbox.has_room(frame) is expected
        if expected:
            self.outbox.send_nowait(frame)
            items.append((None, self.number, size, None))
            self.sends.append(self.number)

    @precondition(lambda self: len(self.outbox))
    @rule(count=st.integers(1, 5))
    def pop(self, count):
        for _ in range(min(count, len(self.outbox))):
            topic, number = self.names[id(self.outbox.pop())]
            assert (topic, number) == self.model.items.pop(0)[:2]
            if number == "gap":
                assert self.model.gaps
                self.told.add(topic)
            elif topic is None:
                assert number == self.sends.pop(0)
                self.popped = number
            else:
                self.judge(topic, number)

    def judge(self, topic, number):
        assert number > self.popped
        self.popped = number
        assert not self.sends or self.sends[0] > number
        lost = [earlier for earlier in self.missing[topic] if earlier < number]
        self.missing[topic] = [later for later in self.missing[topic] if later > number]
        if topic == "close":
            assert not lost
        elif TOPICS[topic].overflow != "latest" and self.model.gaps:
            assert bool(lost) == (topic in self.told)
        self.told.discard(topic)

    @invariant()
    def bounds_hold(self):
        items = self.model.items
        assert len(self.outbox) == len(items)
        assert self.outbox.size == self.model.size()
        assert sum(self.losses.values()) == self.model.lost
        messages = [item for item in items if item[1] != "gap"]
        size = sum(item[2] for item in messages)
        assert size <= self.model.max_bytes or len(messages) == 1
        for topic, settings in TOPICS.items():
            assert len(self.model.of(topic)) <= settings.queue


TestOutboxMachine = OutboxMachine.TestCase
TestOutboxMachine.settings = hypothesis_settings(stateful_step_count=30)
