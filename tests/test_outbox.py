"""The queue of one connection: its order, its limits and its policies."""

from collections import Counter

import pytest

from microws.hub import BACKED_UP, MAX_BYTES, MAX_MESSAGES, Batch, Outbox, Published, TopicSettings
from microws.hub.outbox import Outcome
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


def test_sent_and_published_messages_leave_in_one_order():
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


def test_a_topic_has_256_messages_in_an_outbox():
    outbox = filled(TopicSettings(), *["x"] * MAX_MESSAGES)
    assert MAX_MESSAGES == 256
    assert outbox.put_nowait(published("x", TopicSettings())) is Outcome.REFUSED
    assert outbox.put_nowait(published("x", TopicSettings(), topic="u")) is Outcome.QUEUED
    outbox.pop()
    assert outbox.put_nowait(published("x", TopicSettings())) is Outcome.QUEUED


def test_an_outbox_holds_1_mib_of_all_topics():
    half = "x" * (MAX_BYTES // 2)
    outbox = filled(TopicSettings(), half)
    assert outbox.put_nowait(published(half, TopicSettings(), topic="u")) is Outcome.QUEUED
    assert outbox.put_nowait(published("x", TopicSettings(), topic="v")) is Outcome.REFUSED
    assert outbox.size == MAX_BYTES == 1 << 20


def test_an_empty_outbox_takes_a_message_of_any_size(monkeypatch):
    monkeypatch.setattr("microws.hub.outbox.MAX_BYTES", 10)
    outbox = Outbox()
    assert outbox.has_room(Frame("x" * 11))
    assert outbox.put_nowait(published("x" * 11, TopicSettings())) is Outcome.QUEUED
    assert outbox.put_nowait(published("", TopicSettings())) is Outcome.REFUSED
    assert not outbox.has_room(Frame(""))
    assert texts(outbox) == ["x" * 11]


@pytest.mark.parametrize(("waiting", "frame", "has_room"), [(4, "x" * 6, True), (4, "x" * 7, False), (10, "", True)])
def test_ws_send_has_room_up_to_the_limit_in_bytes(monkeypatch, waiting, frame, has_room):
    monkeypatch.setattr("microws.hub.outbox.MAX_BYTES", 10)
    assert filled(TopicSettings(), "x" * waiting).has_room(Frame(frame)) is has_room


def test_ws_send_has_room_for_256_messages_of_its_own():
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
def test_half_full_is_half_of_the_messages_or_of_the_bytes(monkeypatch, queue, contents, is_half_full):
    settings = TopicSettings(queue=queue)
    monkeypatch.setattr("microws.hub.outbox.MAX_BYTES", 10)
    assert filled(settings, *contents).is_half_full(settings) is is_half_full


@pytest.mark.parametrize(
    ("settings", "put", "outcomes", "left"),
    [
        (TopicSettings(2, "close"), "123", "QQR", ["1", "2"]),
        (TopicSettings(2, "drop_oldest"), "1s234", "QSQQQ", ["gap in t", "s", "3", "4"]),
        (TopicSettings(2, "drop_newest"), "1234-5", "QQDD-Q", ["1", "2", "gap in t", "5"]),
        (TopicSettings(9, "latest"), "12", "QC", ["2"]),
        (TopicSettings(9, "latest"), "12s3", "QCSQ", ["s", "3"]),
        (TopicSettings(9, "latest", "key"), "abacb", "QQQQQ", ["a", "c", "b"]),
        (TopicSettings(2, "latest", "key"), "abc", "QQQ", ["gap in t", "b", "c"]),
        (TopicSettings(2, "latest", "key"), "abc.", "QQQQ", ["gap in t", "c", "."]),
        (TopicSettings(1, "drop_oldest"), "1os2o", "QOSQO", ["gap in t", "gap in other", "s", "2", "o"]),
        (TopicSettings(1, "latest"), "1os2", "QOSQ", ["o", "s", "2"]),
        (TopicSettings(1, "drop_newest"), "1o2o--3o", "QODO--QO", ["1", "o", "gap in t", "3", "gap in other", "o"]),
        (TopicSettings(2, "drop_newest"), "123--s45", "QQD--SQQ", ["1", "2", "s", "gap in t", "4", "5"]),
    ],
)
@pytest.mark.parametrize("gaps", [True, False])
def test_policies_rule_messages_of_their_own_topic_only(settings, put, outcomes, left, gaps):
    """
    ``s`` is sent by ``ws.send``, ``o`` is published to another topic, ``-`` takes the oldest message out, ``.`` has no
    key.
    """
    names = {"Q": Outcome.QUEUED, "C": Outcome.CONFLATED, "D": Outcome.DROPPED, "R": Outcome.REFUSED}
    losses, taken = Counter(), []
    outbox = Outbox(marker=marker if gaps else None, losses=losses)
    for text, outcome in zip(put, outcomes, strict=True):
        if text == "s":
            outbox.send_nowait(Frame(text))
        elif text == "o":
            outbox.put_nowait(published(text, settings, topic="other"))
        elif text == "-":
            taken.append(outbox.pop().text)
        else:
            key = text if settings.key and text != "." else None
            assert outbox.put_nowait(published(text, settings, key=key)) is names[outcome]
    taken += texts(outbox)
    assert taken == [text for text in left if gaps or "gap" not in text]
    assert (outbox.size, outbox._counts) == (0, {})
    lost = sum(text != "-" for text in put) - sum("gap" not in text for text in taken)
    assert losses == +Counter({settings.overflow: lost})


def test_drop_oldest_makes_room_in_bytes_or_drops_the_message(monkeypatch):
    settings = TopicSettings(9, "drop_oldest")
    monkeypatch.setattr("microws.hub.outbox.MAX_BYTES", 6)
    outbox = filled(settings, "12", "34", "56", gaps=False)
    assert outbox.put_nowait(published("789", settings)) is Outcome.QUEUED
    assert texts(outbox) == ["56", "789"]
    full = filled(TopicSettings(), "123456", topic="other")
    assert full.put_nowait(published("7", settings)) is Outcome.DROPPED
    full.pop()
    full.put_nowait(published("8", settings))
    assert texts(full) == ["gap in t", "8"]


def test_a_conflated_message_respects_the_limit_in_bytes(monkeypatch):
    settings = TopicSettings(9, "latest")
    monkeypatch.setattr("microws.hub.outbox.MAX_BYTES", 4)
    alone = filled(settings, "1")
    assert alone.put_nowait(published("12345", settings)) is Outcome.CONFLATED
    assert alone.size == 5
    behind = Outbox()
    behind.send_nowait(Frame("abc"))
    assert behind.put_nowait(published("1", settings)) is Outcome.QUEUED
    assert behind.put_nowait(published("12", settings)) is Outcome.DROPPED
    assert texts(behind) == ["abc"]


def test_a_conflated_message_follows_the_gap_marker_of_its_topic():
    outbox = filled(TopicSettings(1, "drop_newest"), "1", "2")
    assert outbox.put_nowait(published("3", TopicSettings(1, "latest"))) is Outcome.QUEUED
    assert texts(outbox) == ["gap in t", "3"]


def test_clear_forgets_messages_and_losses():
    settings = TopicSettings(1, "drop_newest")
    outbox = filled(settings, "1", "2")
    outbox.clear()
    assert (len(outbox), outbox.size) == (0, 0)
    outbox.send_nowait(Frame("s"))
    assert outbox.put_nowait(published("3", settings)) is Outcome.QUEUED
    assert texts(outbox) == ["s", "3"]


def test_release_waits_for_the_gap_marker():
    settings = TopicSettings(1, "drop_newest")
    outbox = filled(settings, "1", "2")
    outbox.pop()
    outbox.release()
    assert outbox.batch is BACKED_UP
    outbox.put_nowait(published("3", settings))
    assert texts(outbox) == ["gap in t", "3"]
    outbox.release()
    assert outbox.batch is None


def test_a_retired_outbox_has_no_batch_again():
    outbox = Outbox()
    outbox.batch = Batch(None, published("1", TopicSettings()))
    outbox.retire()
    outbox.release()
    assert outbox.batch is BACKED_UP


def test_hold_queues_the_batch_regardless_of_limits():
    settings, outbox = TopicSettings(1), Outbox()
    outbox.batch = Batch(Batch(None, published("1", settings)), published("2", settings))
    assert (outbox.has_waiting, len(outbox)) == (True, 0)
    outbox.hold()
    assert (outbox.has_waiting, outbox.batch) == (True, BACKED_UP)
    assert texts(outbox) == ["1", "2"]
    assert not outbox.has_waiting


def test_without_a_sink_a_batch_is_carried():
    outbox, carried = Outbox(), []
    outbox.carry = lambda: carried.append(outbox.batch)
    outbox.flush()
    batch = outbox.batch = Batch(None, published("1", TopicSettings()))
    outbox.flush()
    assert carried == [batch]


def test_progress_changes_when_the_client_takes_something():
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
