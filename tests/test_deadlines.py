"""Deadlines on a virtual clock, and on event loops that are blocked."""

import asyncio
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_clock import on_virtual_clock
from websocket_server import ASYNCIO_BACKENDS, until

from microws.connection.deadlines import Deadlines

pytestmark = pytest.mark.anyio


@pytest.fixture(params=ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
def anyio_backend(request):
    return request.param


class Due:
    """What fell due, and when, in seconds from now on."""

    def __init__(self):
        self.items = []
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()

    def __call__(self, item):
        self.items.append((item, round(self._loop.time() - self._began, 6)))


@on_virtual_clock
async def test_an_item_is_due_exactly_after_its_seconds():
    due = Due()
    none = Deadlines(0, due)
    none.start("a")
    assert "a" not in none
    assert asyncio.get_running_loop().timers() == 0
    deadlines = Deadlines(20, due)
    deadlines.start("a")
    assert "a" in deadlines
    await asyncio.sleep(19.999)
    assert due.items == []
    await asyncio.sleep(1)
    assert due.items == [("a", 20)]
    assert "a" not in deadlines


@on_virtual_clock
async def test_a_restarted_item_is_due_once_and_later():
    due = Due()
    deadlines = Deadlines(20, due)
    deadlines.start("a")
    deadlines.start("b")
    await asyncio.sleep(5)
    deadlines.start("a")
    await asyncio.sleep(60)
    assert due.items == [("b", 20), ("a", 25)]


@on_virtual_clock
async def test_a_stopped_item_is_never_due():
    due = Due()
    deadlines = Deadlines(20, due)
    deadlines.start("a")
    await asyncio.sleep(1)
    deadlines.start("b")
    deadlines.stop("a")
    deadlines.stop("never started")
    await asyncio.sleep(60)
    assert due.items == [("b", 21)]


@on_virtual_clock
async def test_all_items_share_one_timer():
    loop = asyncio.get_running_loop()
    due = Due()
    deadlines = Deadlines(20, due)
    for item in "abc":
        deadlines.start(item)
        await asyncio.sleep(1)
    assert (list(deadlines), len(deadlines), loop.timers()) == (["a", "b", "c"], 3, 1)
    for item in "abc":
        deadlines.stop(item)
    assert (len(deadlines), loop.timers()) == (0, 1)
    deadlines.start("d")
    await asyncio.sleep(60)
    assert (due.items, loop.timers()) == ([("d", 23)], 0)


@on_virtual_clock
async def test_an_item_restarted_when_due_delays_no_other():
    due = Due()

    def again(item):
        due(item)
        deadlines.start(item)

    deadlines = Deadlines(20, again)
    deadlines.start("a")
    await asyncio.sleep(5)
    deadlines.start("b")
    await asyncio.sleep(60)
    assert due.items == [("a", 20), ("b", 25), ("a", 40), ("b", 45), ("a", 60), ("b", 65)]
    assert asyncio.get_running_loop().timers() == 1


@on_virtual_clock
async def test_a_callback_may_stop_another_item_that_is_due():
    due = Due()

    def stop_the_rest(item):
        due(item)
        for other in "abc":
            deadlines.stop(other)

    deadlines = Deadlines(20, stop_the_rest)
    for item in "abc":
        deadlines.start(item)
    await asyncio.sleep(60)
    assert due.items == [("a", 20)]
    assert asyncio.get_running_loop().timers() == 0


@on_virtual_clock
async def test_a_callback_that_raises_delays_no_other():
    due, raised = Due(), []

    def fail(item):
        due(item)
        raise LookupError(item)

    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(str(context["exception"])))
    deadlines = Deadlines(20, fail)
    for item in "abc":
        deadlines.start(item)
    await asyncio.sleep(30)
    deadlines.start("d")
    await asyncio.sleep(30)
    assert due.items == [("a", 20), ("b", 20), ("c", 20), ("d", 50)]
    assert raised == ["a", "b", "c", "d"]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["start", "stop", "wait"]), st.integers(1, 8))))
def test_items_are_due_as_with_a_timer_each(steps):
    @on_virtual_clock
    async def play():
        loop = asyncio.get_running_loop()
        due, expected = Due(), Due()
        deadlines = Deadlines(5, due)
        timers = {}
        for item, step, seconds in steps:
            if step == "wait":
                await asyncio.sleep(seconds + 0.5)
                continue
            if item in timers:
                timers.pop(item).cancel()
            if step == "start":
                timers[item] = loop.call_later(5, expected, item)
                deadlines.start(item)
            else:
                deadlines.stop(item)
        await asyncio.sleep(20)
        assert sorted(due.items) == sorted(expected.items)
        assert loop.timers() == 0

    play()


async def test_a_blocked_event_loop_reads_before_items_are_due():
    """What blocks it is a callback of its reading: some event loops call their timers next."""
    loop = asyncio.get_running_loop()
    order = []
    deadlines = Deadlines(0.2, order.append)
    blocking, blocker = socket.socketpair()
    reading, writer = socket.socketpair()
    with blocking, blocker, reading, writer:

        def block():
            blocking.recv(9)
            writer.send(b"in time")
            time.sleep(0.4)

        def read():
            reading.recv(9)
            order.append("read")
            deadlines.stop("a")

        loop.add_reader(blocking, block)
        loop.add_reader(reading, read)
        deadlines.start("a")
        deadlines.start("b")
        blocker.send(b"now")
        await until(lambda: "b" in order)
        loop.remove_reader(blocking)
        loop.remove_reader(reading)
    assert order == ["read", "b"]


async def test_items_are_due_on_an_event_loop_that_is_always_late():
    """A view that computes is called for one request after the other."""
    loop = asyncio.get_running_loop()
    turns = 0
    due = []
    deadlines = Deadlines(0.05, lambda item: due.append((item, turns)))

    def compute():
        nonlocal turns
        turns += 1
        time.sleep(0.05)
        if turns < 12:
            loop.call_soon(compute)

    deadlines.start("a")
    loop.call_soon(compute)
    await until(lambda: turns == 12)
    [(item, turn)] = due
    assert item == "a"
    assert turn <= 6
