"""The counters of a process, in memory that workers share."""

import pytest

from microws.counters import SLOT_BYTES, Counters, Number, forget_worker


@pytest.fixture
def memory():
    return memoryview(bytearray(3 * SLOT_BYTES))


def counters_in(memory, place):
    counters = Counters()
    counters.use(memory, place, pid=7)
    return counters


def test_each_worker_counts_in_its_slot_and_sees_all(memory):
    first, last = counters_in(memory, 0), counters_in(memory, 2)
    first.send(2, 20)
    last.add(Number.CONNECTIONS)
    last.close(1012)
    last.drop("latest", 3)
    last.drop("of a newer version")
    last.publish(3_000_000)
    assert [slot.place for slot in first.slots()] == [0, 2]
    [one, other] = first.slots()
    assert (one.numbers[Number.SENT], one.numbers[Number.SENT_BYTES], one.closed) == (2, 20, {})
    assert (other.numbers[Number.CONNECTIONS], other.closed) == (1, {1012: 1})
    assert {reason: count for reason, count in other.dropped.items() if count} == {"latest": 3, "other": 1}
    assert (other.numbers[Number.PUBLISHED], other.numbers[Number.PUBLISH_NANOSECONDS]) == (1, 3_000_000)
    assert other.buckets.index(1) == 4
    assert sum(other.buckets) == 1


def test_the_next_worker_goes_on_and_the_numbers_of_the_moment_begin_anew(memory):
    killed = counters_in(memory, 1)
    killed.send(5, 50)
    killed.add(Number.OPEN, 4)
    killed.close(1000)
    forget_worker(memory, 1, is_replaced=True)
    [slot] = killed.slots()
    assert not slot.is_alive
    assert (slot.numbers[Number.SENT], slot.numbers[Number.OPEN], slot.numbers[Number.RESTARTS]) == (5, 0, 1)
    # Its clients were disconnected.
    assert slot.closed == {1000: 1, 1006: 4}
    successor = counters_in(memory, 1)
    successor.send(1, 10)
    [slot] = successor.slots()
    assert slot.is_alive
    assert (slot.numbers[Number.SENT], slot.numbers[Number.SENT_BYTES], slot.numbers[Number.RESTARTS]) == (6, 60, 1)


def test_an_orderly_end_is_no_restart(memory):
    counters_in(memory, 0)
    forget_worker(memory, 0, is_replaced=False)
    assert Counters().slots()[0].numbers[Number.RESTARTS] == 0
    assert not any(memory)


@pytest.mark.parametrize("code", [0, 999, 5000, 65535])
def test_a_code_that_no_websocket_has_is_not_counted(memory, code):
    counters = counters_in(memory, 0)
    counters.close(code)
    assert [slot.closed for slot in counters.slots()] == [{}]
