"""
The log of a hub against a model: a plain list of what was committed.

The process that writes may be killed at any line. The next one opens the same memory, and has to find what was
committed, in order, and to know of each position whether it has all that followed.
"""

import sys
from mmap import mmap
from random import Random
from typing import NamedTuple
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microws.hub import log as module
from microws.hub.log import MIN_BYTES, START, Log, position_before, read_record
from microws.interfaces import Payload

ANY = 1 << 30
# Publishers whose last numbers the log keeps.
PUBLISHERS = 165


def names_at(slot, count):
    """Names that want the same slot of the index, which has room for 16 of them."""
    names = (f"n{number}" for number in range(1 << 20))
    found = (name for name in names if crc32(name.encode()) & 1023 == slot)
    return [next(found) for _ in range(count)]


# These share a slot, so that the index forgets some; these have a slot each.
CROWDED = names_at(77, 20)
APART = ["a", "b", "c", "d"]


class Killed(BaseException):
    """The process ends here."""


class KillAt:
    """In the block, ``log.py`` is left at the n-th line that it executes. ``lines`` counts them."""

    def __init__(self, line):
        self.line = line
        self.lines = 0
        self.is_killed = False

    def _trace(self, frame, event, _):
        if frame.f_code.co_filename != module.__file__:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.line:
                raise Killed
        return self._trace

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, kind, *_):
        sys.settrace(self._before)
        self.is_killed = kind is Killed
        return self.is_killed


class Message(NamedTuple):
    topic: str
    size: int = 10
    key: str = ""
    conflation: str = ""
    publisher: int = 1


class Sent(NamedTuple):
    message: Message
    number: int
    place: int
    data: bytes


class Handed(NamedTuple):
    """A position that a client has: it names what is before the ``index``-th message of all."""

    position: str
    topic: str
    index: int


class Model:
    """The log, and what it should hold."""

    def __init__(self):
        self.memory = mmap(-1, Log.block_size(MIN_BYTES))
        self.committed = []
        self.pending = []
        self.handed = []
        self.numbers = {}
        # Of the memory, with the number of messages then.
        self.copy = None
        self.open()

    def open(self):
        """As the next process does."""
        self.log = Log(self.memory, MIN_BYTES)
        end = self.log.end
        self.committed += [sent for sent in self.pending if sent.place < end]
        self.pending.clear()

    def append(self, message, number=None):
        if number is None:
            number = self.numbers[message.publisher] = self.numbers.get(message.publisher, 0) + 1
        data = b"%d.%d " % (message.publisher, number) + b"x" * message.size
        known = [
            sent.place
            for sent in (*self.committed, *self.pending)
            if message.key and sent.place >= self.log.begin and sent.message[:1] == message[:1]
            and sent.message.key == message.key
        ]  # fmt: skip
        sent = Sent(message, number, -1, data)
        self.pending.append(sent)
        place, record = self.log.append(
            message.topic.encode(), Payload("bytes", data), publisher=message.publisher, number=number,
            key=message.key.encode(), conflation=message.conflation.encode(),
        )  # fmt: skip
        self.pending.pop()
        if known:
            assert (place, record) == (known[-1], b"")
            return
        assert record
        entry = read_record(record, 0)
        assert entry.payload[:3] == ("bytes", data, message.topic)
        self.pending.append(sent._replace(place=place))
        self._note_commits()

    def commit(self):
        self.log.commit()
        assert all(sent.place < self.log.end for sent in self.pending)
        self._note_commits()

    def _note_commits(self):
        while self.pending and self.pending[0].place < self.log.end:
            self.committed.append(self.pending.pop(0))

    def kill(self, messages, line, line_of_opening):
        """
        Append and commit as far as the line, then go on in the next process, which gets again what was lost.

        A process that opens the log meanwhile is killed, too.
        """
        sending = []
        for message in messages:
            self.numbers[message.publisher] = self.numbers.get(message.publisher, 0) + 1
            sending.append((message, self.numbers[message.publisher]))
        with KillAt(line) as kill:
            for message, number in sending:
                self.append(message, number)
            self.commit()
        if not kill.is_killed:
            return kill
        with KillAt(line_of_opening):
            Log(self.memory, MIN_BYTES)
        self.recover(sending)
        return kill

    def recover(self, sending):
        """Open the log after a kill: what of ``sending`` is committed is a beginning of it, each one once."""
        log = self.log = Log(self.memory, MIN_BYTES)
        committed = {(sent.message.publisher, sent.number) for sent in self.committed}
        found = [place for place, _, _ in log.records(log.begin)]
        last = self.committed[-1].place if self.committed else -1
        lost = [(sent.message, sent.number) for sent in self.pending]
        lost += [each for each in sending if each not in lost]
        self.pending.clear()
        for place in found:
            if place <= last:
                continue
            while (lost[0][0].publisher, lost[0][1]) in committed or log.source(place) != (
                lost[0][0].publisher,
                lost[0][1],
            ):
                # Only one whose key the log had was passed over.
                assert lost[0][0].key or (lost[0][0].publisher, lost[0][1]) in committed
                lost.pop(0)
            message, number = lost.pop(0)
            self.committed.append(Sent(message, number, place, log.entry(place).payload.data))
        committed = {(sent.message.publisher, sent.number) for sent in self.committed}
        for message, number in lost:
            if (message.publisher, number) not in committed and number > log.number_of(message.publisher):
                self.append(message, number)
        self.commit()

    def hand_out(self, topic):
        self.commit()
        position = self.log.position(topic.encode())
        last = [index for index, sent in enumerate(self.committed) if sent.message.topic == topic]
        is_known = last and f"{self.committed[last[-1]].place:x}." in position
        self.handed.append(Handed(position, topic, last[-1] + 1 if is_known else len(self.committed)))

    def copy_file(self):
        """Somebody copies the file."""
        self.copy = bytes(self.memory), len(self.committed)

    def take_copy(self):
        """And takes the copy instead of the file: the tail is lost, and its places are used again."""
        if self.copy is None:
            return
        self.pending.clear()
        self.memory[:], count = self.copy
        self.handed = [
            # Those of the lost tail name nothing any more.
            handed._replace(index=-1) if handed.index > count else handed for handed in self.handed
        ]  # fmt: skip
        del self.committed[count:]
        self.open()

    def check(self):
        log, begin = self.log, self.log.begin
        here = [sent for sent in self.committed if sent.place >= begin]
        assert [place for place, _, _ in log.records(begin)] == [sent.place for sent in here]
        assert log.end - begin <= log.size
        for sent in here:
            entry = log.entry(sent.place)
            assert entry.payload[:3] == ("bytes", sent.data, sent.message.topic)
            assert log.source(sent.place) == (sent.message.publisher, sent.number)
        last = {sent.message.publisher: sent.number for sent in self.committed}
        assert {publisher: log.number_of(publisher) for publisher in last} == last
        # The index forgets topics only if too many share a slot.
        is_whole = len({sent.message.topic for sent in self.committed} & set(CROWDED)) <= 16
        for topic in {sent.message.topic for sent in self.committed}:
            self._check_topic(topic, [sent for sent in here if sent.message.topic == topic], is_whole)
        for handed in self.handed:
            self._check_position(handed, is_whole)

    def _check_topic(self, topic, here, is_whole):
        found = self.log.read(topic.encode(), START, history=ANY)
        assert found.recovered
        data = [sent.data for sent in here]
        entries = [entry.payload.data for entry in found.entries]
        assert entries == data if is_whole else data[len(data) - len(entries) :] == entries
        if entries:
            assert found.place == here[-1].place
            assert found.position == found.entries[-1].payload.position == self.log.position(topic.encode())
            assert found.entries[-3:] == self.log.read(topic.encode(), START, history=3).entries
            for index in {0, len(entries) - 1}:
                position = position_before(found.entries[index].payload.position)
                before = self.log.read(topic.encode(), position, history=ANY)
                assert (before.recovered, before.entries) == (True, found.entries[index:])
        by_key = self.log.read(topic.encode(), START, history=ANY, by_key=True)
        assert _contents(by_key.entries) == _newest(_contents(found.entries))

    def _check_position(self, handed, is_whole):
        name = handed.topic.encode()
        missed = [
            sent.data for sent in self.committed[handed.index :] if sent.message.topic == handed.topic
        ] if handed.index >= 0 else None  # fmt: skip
        named = self.committed[handed.index - 1].place if handed.index > 0 else 0
        for history in (0, 2, ANY):
            found = self.log.read(name, handed.position, history=history)
            if found.recovered:
                assert [entry.payload.data for entry in found.entries] == missed
                assert len(missed) <= history
            else:
                assert not found.entries
                is_possible = missed is not None and len(missed) <= history and named >= self.log.begin
                assert not (is_possible and is_whole)
        found = self.log.read(name, handed.position, history=ANY, by_key=True)
        if found.recovered:
            assert missed is not None
            whole = [sent for sent in self.committed[handed.index :] if sent.message.topic == handed.topic]
            assert _contents(found.entries) == _newest([(s.message.conflation.encode(), s.data) for s in whole])
        for topic in APART:
            if topic != handed.topic and not handed.position.startswith("0-"):
                assert not self.log.read(topic.encode(), handed.position, history=ANY).recovered


def _contents(entries):
    return [(entry.key, entry.payload.data) for entry in entries]


def _newest(contents):
    """The last one of each key, in order."""
    return [each for index, each in enumerate(contents) if each[0] not in [key for key, _ in contents[index + 1 :]]]


MESSAGES = st.builds(
    Message,
    topic=st.sampled_from(APART) | st.sampled_from(APART + CROWDED),
    size=st.sampled_from([0, 3, 8, 100, 900, 5_000, 16_000]),
    key=st.sampled_from(["", "", "", "k", "l"]),
    conflation=st.sampled_from(["", "x", "y"]),
    publisher=st.integers(1, 3),
)
LINE = st.integers(1, 150)
STEPS = st.one_of(
    st.tuples(st.just("append"), MESSAGES),
    st.tuples(st.just("append"), MESSAGES),
    st.tuples(st.just("fill"), st.integers(0, ANY)),
    st.tuples(st.just("commit")),
    st.tuples(st.just("hand_out"), st.sampled_from(APART + CROWDED)),
    st.tuples(st.just("hand_out"), st.sampled_from(APART)),
    st.tuples(st.just("open")),
    st.tuples(st.just("close")),
    st.tuples(st.just("kill"), st.lists(MESSAGES, min_size=1, max_size=6), st.integers(1, 300), LINE),
    st.tuples(st.just("copy")),
    st.tuples(st.just("take_copy")),
)


def follow(model, steps):
    for name, *arguments in steps:
        if name == "fill":
            random = Random(arguments[0])
            for _ in range(random.randrange(40)):
                model.append(Message(random.choice(APART + CROWDED), size=random.choice([10, 400, 2_000]), publisher=4))
            model.commit()
        elif name == "open":
            model.open()
        elif name == "close":
            model.commit()
            model.log.close()
            model.open()
        elif name == "copy":
            model.commit()
            model.copy_file()
        else:
            getattr(model, name)(*arguments)
            continue
        model.check()
    model.commit()
    model.check()


@given(st.lists(STEPS, max_size=30))
def test_the_log_agrees_with_the_model(steps):
    follow(Model(), steps)


def a_full_ring(random):
    """It has wrapped around, has more topics than one slot has room for, keys, and positions that were handed out."""
    model = Model()
    for number in range(50):
        topic = random.choice(APART + CROWDED)
        size = random.choice([0, 1_000, 5_000])
        model.append(Message(topic, size, random.choice(["", "k"]), random.choice(["", "x"]), number % 3 + 1))
        if number % 4 == 0:
            model.hand_out(topic)
    model.commit()
    return model


def a_batch(random):
    topics = random.sample(APART + CROWDED, 3)
    return [
        Message(topic, random.choice([0, 200, 5_000]), random.choice(["", "k", "new"]), "x", random.randrange(1, 6))
        for topic in topics
    ]


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_any_line_loses_and_doubles_nothing(seed):
    line = 0
    is_killed = True
    while is_killed:
        line += 1
        random = Random(seed)
        model = a_full_ring(random)
        is_killed = model.kill(a_batch(random), line, line * 7 % 100 + 1).is_killed
        if line % 6 == seed:
            model.check()
    assert line > 100


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "not closed"])
def test_a_log_outlives_the_machine_only_if_it_was_closed(is_closed):
    """However far the first process of the machine's next run comes."""
    is_killed, line = True, 0
    while is_killed:
        line += 1
        memory = mmap(-1, Log.block_size(MIN_BYTES))
        log = Log(memory, MIN_BYTES, boot=1)
        log.append(b"a", Payload("text", b"hello"), publisher=1, number=1)
        log.commit()
        positions = log.position(b"a"), log.position(b"b")
        if is_closed:
            log.close()
        with KillAt(line) as kill:
            Log(memory, MIN_BYTES, boot=2)
        is_killed = kill.is_killed
        log = Log(memory, MIN_BYTES, boot=2)
        found = [log.read(b"a", positions[0], history=1), log.read(b"b", positions[1], history=1)]
        found.append(log.read(b"a", START, history=1))
        assert [replay.recovered for replay in found] == [is_closed, is_closed, True]
        assert len(found[2].entries) == is_closed
        assert log.number_of(1) == is_closed
    assert line > 20


def test_a_position_of_an_empty_log_is_known_until_something_is_overwritten():
    log = Log(mmap(-1, Log.block_size(MIN_BYTES)), MIN_BYTES)
    position = log.position(b"a")
    for number in range(1, 4):
        log.append(b"ab"[number % 2 :][:1], Payload("bytes", bytes(16_000)), publisher=1, number=number)
        log.commit()
        assert log.read(b"a", position, history=2).recovered
    assert len(log.read(b"a", position, history=2).entries) == 1
    for number in range(4, 6):
        log.append(b"c", Payload("bytes", bytes(16_000)), publisher=1, number=number)
        log.commit()
    assert log.dropped
    assert not log.read(b"a", position, history=2).recovered


MALFORMED = ["", "x", "0-", "1-0.1.1.1", "1-0.1", "g-0.1.1", "-1-0.1.1", "1-8.1.1", "1-1.1.1", "1-ffffffffffffffff.1.1",
             "1-0.1.2", "2-0.1.1", "1-0.2.1", "٣-0.1.1", "1" * 17 + "-0.1.1", "start ", "0-0.1"]  # fmt: skip


@pytest.mark.parametrize("position", MALFORMED)
def test_a_position_that_names_nothing_is_not_recovered(position):
    log = Log(mmap(-1, Log.block_size(MIN_BYTES)), MIN_BYTES)
    log.append(b"a", Payload("text", b"hello"), publisher=1, number=1)
    log.commit()
    assert log.read(b"a", "1-0.1.1", history=1).recovered
    found = log.read(b"a", position, history=1)
    assert not found.recovered
    assert not found.entries
    assert found.position == "1-0.1.1"


class Written:
    """A log, and the positions of what was written to it."""

    def __init__(self):
        self.memory = mmap(-1, Log.block_size(MIN_BYTES))
        self.log = Log(self.memory, MIN_BYTES)
        self.number = 0

    def write(self, topic, size=0):
        self.number += 1
        payload = Payload("bytes", bytes(size))
        self.log.append(topic.encode(), payload, publisher=1, number=self.number)
        self.log.commit()
        return self.log.position(topic.encode())

    def read(self, topic, since):
        return self.log.read(topic.encode(), since, history=ANY)


def test_the_index_may_forget_a_topic_but_not_that_it_did():
    """Too many topics share its slot. The next process does not find what was published to it before."""
    written = Written()
    topic, *others = CROWDED
    empty = written.log.position(topic.encode())
    positions = [written.write(topic), written.write(topic)]
    for other in others:
        written.write(other)
    written.log = Log(written.memory, MIN_BYTES)
    forgotten = written.log.position(topic.encode())
    assert forgotten.startswith("0-")
    last = written.write(topic)
    assert not any(written.read(topic, position).recovered for position in (empty, *positions))
    assert [len(written.read(topic, position).entries) for position in (forgotten, last)] == [1, 0]
    assert written.read(topic, forgotten).recovered


def test_the_position_of_an_empty_topic_stays_when_the_log_is_opened_again():
    written = Written()
    written.write("a")
    position = written.log.position(b"b")
    written.log.close()
    written.log = Log(written.memory, MIN_BYTES)
    assert written.log.position(b"b") == position
    assert written.read("b", position).recovered


def test_what_is_left_of_a_message_behind_the_beginning_is_not_recovered():
    """The end of the ring is passed over, because the next message does not fit there."""
    written = Written()
    for _ in range(4):
        written.write("b", 16_000)
    positions = [written.write("a") for _ in range(10)]
    for _ in range(5):
        written.write("b", 16_000)
    # They are in the memory, and lost.
    place = int(positions[4].partition("-")[2].partition(".")[0], 16)
    assert read_record(written.memory, place + len(written.memory) - MIN_BYTES).payload.position == positions[4]
    assert not any(written.read("a", position).recovered for position in positions)


def test_the_log_knows_the_numbers_of_the_publishers_that_wrote_last():
    memory = mmap(-1, Log.block_size(MIN_BYTES))
    log = Log(memory, MIN_BYTES)
    for publisher in range(1, PUBLISHERS + 11):
        log.append(b"a", Payload("text", b""), publisher=publisher, number=publisher + 5)
        log.commit()
    log = Log(memory, MIN_BYTES)
    numbers = [log.number_of(publisher) for publisher in range(1, PUBLISHERS + 11)]
    assert numbers == [0] * 10 + [publisher + 5 for publisher in range(11, PUBLISHERS + 11)]


def test_a_message_over_a_quarter_of_the_ring_is_refused():
    log = Log(mmap(-1, Log.block_size(MIN_BYTES)), MIN_BYTES)
    largest = Log.largest(MIN_BYTES) - module.HEAD.size - 1
    assert log.append(b"a", Payload("bytes", bytes(largest)), publisher=1, number=1)[1]
    with pytest.raises(ValueError, match=f"at most {largest} bytes, got {largest + 1}"):
        log.append(b"a", Payload("bytes", bytes(largest + 1)), publisher=1, number=2)


def test_a_log_of_another_size_or_version_is_refused():
    memory = mmap(-1, Log.block_size(MIN_BYTES))
    Log(memory, MIN_BYTES)
    with pytest.raises(ValueError, match="expected a log of 32768 bytes, got one of 65536"):
        Log(memory, MIN_BYTES // 2)
    memory[0] = 0
    with pytest.raises(ValueError, match="expected a log of this version"):
        Log(memory, MIN_BYTES)
