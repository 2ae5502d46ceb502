"""The hub leaves others their turns, and costs what is asked of it: counted in turns and steps, not in seconds."""

import asyncio

import anyio
import pytest

from microws.codec import TEXT, Codecs
from microws.hub import Hub, Subscriber
from microws.outbox import Outbox

pytestmark = pytest.mark.anyio

MIB = 1 << 20


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Sink:
    """A client's end that takes everything, and counts the writes to all of them."""

    is_writable = True
    writes_to_all = 0

    def __init__(self):
        self.writes = []

    def write(self, frames):
        self.writes.append(frames)
        Sink.writes_to_all += 1

    def close(self, code, reason):
        raise AssertionError(f"closed with {code} {reason}")


def subscriber(number, codec=TEXT, *, has_sink=True):
    outbox = Outbox()
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


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_an_event_loop_left_behind_at_its_end_holds_no_publisher_in_the_next(backend):
    hub = Hub(Codecs())
    audience(hub, 100, "t")

    async def leave():
        hub.deliver("t", Codecs().payload("x" * MIB))

    async def publish():
        with anyio.fail_after(5):
            await hub.publish("nobody", 1)

    asyncio.run(leave())
    assert 0 < len(hub._flusher._due) < 100
    anyio.run(publish, backend=backend)
