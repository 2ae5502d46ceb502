"""Messages published in one turn of the event loop are written at its end, joined and in order."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from microws.connection.bulk_writes import MAX_SOCKETS, BulkWriter
from microws.counters import COUNTERS
from microws.hub import BACKED_UP, MAX_PART_BYTES, Batch, Outbox, Published, TopicSettings
from microws.hub.flush import Flusher
from microws.interfaces import Frame

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Sink:
    """A connection that takes ``room`` writes, and is lost at write number ``lost_at``."""

    socket = None

    def __init__(self, room=10**9, lost_at=10**9):
        self.room = room
        self.lost_at = lost_at
        self.writes = []
        self.closed = None

    @property
    def is_writable(self):
        return len(self.writes) < self.room

    @property
    def is_lost(self):
        return len(self.writes) >= self.lost_at

    def buffered(self):
        return 0

    def write(self, frames):
        assert self.closed is None
        self.writes.append(frames)

    def close(self, code, reason):
        self.closed = (code, reason)


def connection(room=10**9, **options):
    outbox = Outbox(**options)
    outbox.sink = Sink(room)
    outbox.release()
    return outbox


def published(text, **settings):
    return Published(Frame(text), "t", TopicSettings(**settings))


def frames(*texts):
    """What a server sends, RFC 6455 §5.2: FIN and TEXT, the length, the payload."""
    encoded = b""
    for text in texts:
        length = bytes([len(text)]) if len(text) < 126 else b"\x7e" + len(text).to_bytes(2)
        encoded += b"\x81" + length + text.encode()
    return encoded


async def turn():
    await asyncio.sleep(0)


async def test_each_message_that_leaves_is_counted_once_with_its_bytes(monkeypatch):
    monkeypatch.setattr(COUNTERS, "is_on", True)
    counted = []
    monkeypatch.setattr(COUNTERS, "send", lambda messages, size: counted.append((messages, size)))
    flusher = Flusher(BulkWriter().write)
    fast, slow, closing = outboxes = [connection(), connection(room=1), connection()]
    for text in ("a", "bb"):
        flusher.put(published(text), outboxes)
    # Before the end of the turn: by the connection itself, or because it closes.
    slow.flush()
    closing.sink.write(closing.take_all())
    await turn()
    flusher.put(published("ccc"), [fast, slow])
    await turn()
    assert counted == [(2, 7), (2, 7), (0, 0), (2, 7), (1, 5)]
    slow.sink.room = 2
    slow.drain()
    assert counted[5:] == [(1, 5)]


async def test_messages_of_one_turn_are_one_write_of_shared_bytes():
    flusher, outboxes = Flusher(BulkWriter().write), [connection() for _ in range(5)]
    for text in "abc":
        assert flusher.put(published(text), outboxes) == []
    assert [outbox.count for outbox in outboxes] == [3] * 5
    await turn()
    writes = [outbox.sink.writes for outbox in outboxes]
    assert writes == [[frames(*"abc")]] * 5
    assert len({id(write[0]) for write in writes}) == 1
    assert [outbox.count for outbox in outboxes] == [0] * 5
    assert flusher.sizes == {3: 5}


async def test_a_single_message_is_not_joined_with_anything():
    flusher, message, outbox = Flusher(BulkWriter().write), published("a"), connection()
    flusher.put(message, [outbox])
    await turn()
    assert outbox.sink.writes[0] is message.encoded


async def test_each_connection_gets_its_messages_in_order():
    flusher, a, b, c = Flusher(BulkWriter().write), connection(), connection(), connection()
    flusher.put(published("1"), [a, b])
    flusher.put(published("2"), [b, c])
    flusher.put(published("3"), [a, b, c])
    flusher.put(published("4"), [c])
    await turn()
    assert [outbox.sink.writes for outbox in (a, b, c)] == [[frames(*"13")], [frames(*"123")], [frames(*"234")]]


async def test_put_returns_the_outboxes_that_are_backed_up():
    flusher, held, other = Flusher(BulkWriter().write), Outbox(), connection()
    assert flusher.put(published("a"), [held, other]) == [held]
    await turn()
    assert other.sink.writes == [frames("a")]
    assert held.batch is BACKED_UP


async def test_a_batch_that_was_flushed_or_cleared_is_not_written_again():
    flusher, a, b = Flusher(BulkWriter().write), connection(), connection()
    flusher.put(published("1"), [a, b])
    a.flush()
    b.clear()
    assert a.sink.writes == [frames("1")]
    flusher.put(published("2"), [a])
    await turn()
    assert (a.sink.writes, b.sink.writes) == ([frames("1"), frames("2")], [])


@pytest.mark.parametrize("failure", [OSError("what became of some writes is unknown"), MemoryError()])
async def test_connections_of_a_failed_bulk_write_are_closed_with_1011(monkeypatch, caplog, failure):
    class Bulk:
        def __init__(self, size):
            pass

        def write(self, data, sockets):
            if 200 in sockets:
                raise failure

    monkeypatch.setattr("microws.connection.aio.AioContext", Bulk)
    flusher, outboxes = Flusher(BulkWriter().write), [connection() for _ in range(3 * MAX_SOCKETS)]
    for number, outbox in enumerate(outboxes):
        outbox.sink.socket = number
    alone = connection()
    flusher.put(published("1"), [*outboxes, alone])
    while not alone.sink.writes:
        await turn()
    assert [record.exc_info[1] for record in caplog.records] == [failure]
    closed = [outbox.sink.closed for outbox in outboxes]
    assert closed == [None] * MAX_SOCKETS + [(1011, "internal error")] * 2 * MAX_SOCKETS
    assert alone.sink.writes == [frames("1")]


async def test_a_large_broadcast_takes_several_turns_and_keeps_its_order():
    flusher, outboxes = Flusher(BulkWriter().write), [connection() for _ in range(2500)]
    flusher.put(published("1"), outboxes)
    while not outboxes[0].sink.writes:
        await turn()
    turns = []
    while not outboxes[-1].sink.writes:
        turns.append(sum(len(outbox.sink.writes) for outbox in outboxes))
        # Joins what has not left yet, and follows what has.
        flusher.put(published("2"), outboxes)
        await turn()
    assert turns[0] <= 512
    assert turns[0] < turns[1] < turns[-1]
    for _ in range(20):
        await turn()
    texts = [b"".join(outbox.sink.writes) for outbox in outboxes]
    assert set(texts) == {frames("1", *"2" * len(turns))}


async def test_a_write_to_many_waits_while_each_turn_brings_more():
    flusher, outboxes = Flusher(BulkWriter().write), [connection() for _ in range(400)]
    for texts in "abc", "def":
        for text in texts:
            flusher.put(published(text), outboxes)
            await turn()
        await turn()
        await turn()
        assert {outbox.sink.writes.pop() for outbox in outboxes} == {frames(*texts)}
    assert not any(outbox.sink.writes for outbox in outboxes)


async def test_a_write_to_many_waits_for_eight_turns_at_most():
    flusher, outboxes = Flusher(BulkWriter().write), [connection() for _ in range(400)]
    for number in range(20):
        flusher.put(published(str(number)), outboxes)
        await turn()
    assert len(outboxes[0].sink.writes) >= 2


async def test_a_write_to_a_few_does_not_wait():
    flusher, outboxes = Flusher(BulkWriter().write), [connection() for _ in range(50)]
    flusher.put(published("a"), outboxes)
    await turn()
    assert [outbox.sink.writes for outbox in outboxes] == [[frames("a")]] * 50


async def test_large_messages_take_more_turns():
    flusher, outboxes = Flusher(BulkWriter().write), [connection() for _ in range(100)]
    flusher.put(published("x" * (1 << 20)), outboxes)
    assert flusher.is_behind
    while not outboxes[0].sink.writes:
        await turn()
    assert sum(len(outbox.sink.writes) for outbox in outboxes) == 3
    while flusher.is_behind:
        await turn()
    assert [len(outbox.sink.writes) for outbox in outboxes] == [1] * 100
    flusher.put(published("small"), outboxes)
    assert not flusher.is_behind


async def test_what_exceeds_a_turn_leaves_in_the_next_one():
    """Messages that fill the 2.5 MiB of a turn to the byte, with others behind them."""
    flusher = Flusher(BulkWriter().write)
    for size, first in (6000, 265), (6144, 256), (6200, 255):
        large, others = [connection() for _ in range(256)], [connection() for _ in range(100)]
        flusher.put(published("x" * size), large)
        flusher.put(published("y"), others)
        while not large[0].sink.writes:
            await turn()
        assert sum(len(outbox.sink.writes) for outbox in (*large, *others)) == first
        for _ in range(20):
            await turn()
        assert [len(outbox.sink.writes) for outbox in (*large, *others)] == [1] * 356


@pytest.mark.parametrize("parts", [1, 2])
async def test_a_failed_write_to_one_connection_does_not_touch_the_others(caplog, parts):
    def fail(frames):
        raise RuntimeError("write() after write_eof()")

    flusher, outboxes = Flusher(BulkWriter().write), [connection() for _ in range(30)]
    outboxes[7].sink.write = fail
    for _ in range(parts):
        flusher.put(published("x" * MAX_PART_BYTES), outboxes)
    for _ in range(20):
        await turn()
    flusher.put(published("2"), outboxes[:7])
    for _ in range(20):
        await turn()
    assert [str(record.exc_info[1]) for record in caplog.records] == ["write() after write_eof()"]
    assert [len(outbox.sink.writes) for outbox in outboxes] == [parts + 1] * 7 + [0] + [parts] * 22


async def test_the_parts_of_a_large_batch_are_written_one_by_one():
    flusher, outbox = Flusher(BulkWriter().write), connection()
    texts = [str(n % 10) * 20_000 for n in range(10)]
    for text in texts:
        flusher.put(published(text), [outbox])
    assert flusher.is_behind
    await turn()
    assert b"".join(outbox.sink.writes) == frames(*texts)
    assert max(map(len, outbox.sink.writes)) < MAX_PART_BYTES + 100
    assert flusher.sizes == {10: 1}
    assert not flusher.is_behind


async def test_what_the_client_does_not_take_is_queued_by_the_policy():
    flusher, outbox = Flusher(BulkWriter().write), connection(room=1)
    flusher.put(published("1"), [outbox])
    await turn()
    for text in "234":
        flusher.put(published(text, queue=2, overflow="drop_oldest"), [outbox])
    await turn()
    assert flusher.put(published("5"), [outbox]) == [outbox]
    assert (outbox.sink.writes, outbox.sink.closed) == ([frames("1")], None)
    assert outbox.take() == frames(*"34")


def test_a_connection_lost_amid_a_batch_gets_no_more_of_it():
    outbox = connection()
    outbox.sink.lost_at = 2
    for _ in range(3):
        message = published("x" * MAX_PART_BYTES)
        outbox.batch = Batch(outbox.batch, message)
    outbox.flush()
    assert len(outbox.sink.writes) == 2
    assert outbox.count == 0


async def test_parts_that_the_client_does_not_take_are_queued():
    flusher, outbox = Flusher(BulkWriter().write), connection(room=1)
    texts = [str(n) * 40_000 for n in range(4)]
    for text in texts:
        flusher.put(published(text), [outbox])
    await turn()
    assert outbox.sink.writes == [frames(texts[0])]
    assert outbox.take() == frames(*texts[1:])


def test_no_part_overtakes_a_queued_one():
    outbox, answers = connection(), iter([True, False, True])

    class Flickering(Sink):
        is_writable = property(lambda self: next(answers, False))

    outbox.sink = Flickering()
    for text in "123":
        outbox.batch = Batch(outbox.batch, published(text * MAX_PART_BYTES))
    outbox.flush()
    assert (len(outbox.sink.writes), len(outbox)) == (1, 2)


def test_drain_writes_parts_as_far_as_the_client_takes_them():
    outbox = connection(room=1)
    outbox.hold()
    for text in "123":
        outbox.send_nowait(Frame(text * 40_000))
    outbox.drain()
    assert (len(outbox.sink.writes), len(outbox), outbox.batch) == (1, 1, BACKED_UP)
    outbox.sink.room, outbox.sink.lost_at = 9, 1
    outbox.drain()
    assert len(outbox) == 1
    outbox.sink.lost_at = 9
    outbox.drain()
    assert (len(outbox.sink.writes), len(outbox), outbox.batch) == (2, 0, None)


async def test_a_client_that_would_miss_a_message_is_closed_with_1013():
    flusher, outbox = Flusher(BulkWriter().write), connection(room=0)
    for _ in range(3):
        flusher.put(published("x", queue=2), [outbox])
    await turn()
    assert outbox.sink.closed == (1013, "too slow")
    assert (outbox.count, outbox.batch) == (0, BACKED_UP)


async def test_a_released_outbox_sends_in_batches_again():
    flusher, outbox = Flusher(BulkWriter().write), connection(room=0)
    flusher.put(published("1"), [outbox])
    await turn()
    outbox.sink.room = 10
    outbox.sink.write(outbox.take())
    outbox.release()
    flusher.put(published("2"), [outbox])
    await turn()
    assert outbox.sink.writes == [frames("1"), frames("2")]


async def test_take_all_takes_the_queue_and_the_batch():
    flusher, outbox = Flusher(BulkWriter().write), connection()
    outbox.send_nowait(Frame("sent"))
    flusher.put(published("1"), [outbox])
    flusher.put(published("2"), [outbox])
    assert outbox.take_all() == frames("sent", "1", "2")
    await turn()
    assert (outbox.sink.writes, outbox.take_all()) == ([], b"")


def test_a_batch_of_an_ended_event_loop_delays_no_other_loop():
    flusher, outbox, later = Flusher(BulkWriter().write), connection(), connection()

    async def put(text, *outboxes):
        flusher.put(published(text), outboxes)

    async def put_and_turn():
        await put("2", later)
        await turn()

    asyncio.run(put("x" * MAX_PART_BYTES, outbox), debug=False)
    asyncio.run(put_and_turn())
    assert later.sink.writes == [frames("2")]


@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=40))
@example([MAX_PART_BYTES - 1, 1, 1])
def test_a_batch_has_every_message_once_in_parts_of_bounded_size(sizes):
    batch = None
    messages = [published("x" * size) for size in sizes]
    for message in messages:
        batch = Batch(batch, message)
    parts = batch.parts
    assert [message for part in parts for message in part.messages] == messages
    assert len(batch) == len(messages)
    for part in parts:
        assert part.size == sum(message.size for message in part.messages) <= MAX_PART_BYTES
        encoded = part.encoded
        assert encoded == b"".join(message.encoded for message in part.messages)
        assert part.encoded is encoded
    assert all(part.size + later.messages[0].size > MAX_PART_BYTES for part, later in pairwise(parts))


def test_an_encoded_frame_is_sent_unchanged():
    assert Published(Frame(b"x", is_encoded=True), "t", TopicSettings()).encoded == b"x"
