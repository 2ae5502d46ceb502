"""
Everything that can happen to a cluster is a schedule for one checker.

``make servers`` runs a part of each, ``make chaos`` runs the whole and prints the figures. A schedule is seeded:
``CHAOS_SEED`` repeats it, as far as a machine with several processes repeats anything.
"""

import os
import random
import signal
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic

import anyio
import pytest
from checker import cluster, describe
from hubs import LIMIT, hub_process

from microws import App
from microws.hub import Outbox, Subscriber
from microws.local import client
from microws.local.client import LocalBackplane

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

WHOLE = os.environ.get("CHAOS") == "whole"
SEED = int(os.environ.get("CHAOS_SEED", "1"))
NAMES = ["a", "b", "c", "d"]
MIB = 1 << 20


@pytest.fixture(params=[("asyncio", {"use_uvloop": False})], ids=["asyncio"])
def anyio_backend(request):
    return request.param


@pytest.fixture
def report(capfd):
    def report(text):
        with capfd.disabled():
            print(f"\n  {text} (load {os.getloadavg()[0]:.1f})", file=sys.stderr)

    return report


def whole(whole, part):
    return whole if WHOLE else part


at_each_load = pytest.mark.parametrize(
    "is_saturated", whole([False, True], [False]), ids=whole(["steady", "saturated"], ["steady"])
)


@at_each_load
async def test_hub_is_killed_under_load(tmp_path, report, is_saturated):
    """No message is lost, doubled or out of order, and no client is told of a loss."""
    rng = random.Random(SEED)
    async with cluster(tmp_path, is_temporary=True, history_bytes=64 * MIB) as made:
        publishers, pause = (32, 0.0) if is_saturated else (8, 0.01)
        await made.start(NAMES, {"t": 1, "u": 1}, publishers=publishers, pause=pause)
        kills, began = [], monotonic()
        for _ in range(whole(20, 4)):
            await anyio.sleep(0.3 + 0.3 * rng.random())
            kills.append(await made.kill_hub())
        await anyio.sleep(1)
        took = monotonic() - began
        found = await made.finish()
    assert found.told == found.resumed == 0
    # A publish may time out on a busy machine: then it reached all processes or none.
    assert is_saturated or found.acknowledged == found.sent
    reached, rest = divmod(found.delivered, len(NAMES))
    assert not rest
    assert found.acknowledged <= reached - 2 <= found.sent
    everywhere, anywhere = found.times_to_next(kills), found.times_to_next(kills, of=min)
    report(
        f"{len(kills)} kills of the hub, {found.sent / took:.0f} messages/s: next message after {describe(anywhere)}; "
        f"in all processes after {describe(everywhere)}"
    )


async def test_readers_leave_and_come_back_while_the_hub_is_killed(tmp_path, report):
    """Each of them gets what it missed; or is told, if that is more than the history."""
    rng = random.Random(SEED)
    for history in (1_000, 5):
        (tmp_path / str(history)).mkdir()
        async with cluster(tmp_path / str(history)) as made:
            options = {"publishers": 2, "pause": 0.02, "stay": 0.2, "history": history}
            await made.start(NAMES[:3], {"t": 4, "u": 4}, **options)
            for _ in range(whole(10, 2)):
                await anyio.sleep(0.2 + 0.4 * rng.random())
                await made.kill_hub()
            await anyio.sleep(0.5)
            found = await made.finish()
        assert found.resumed > 20
        assert (found.recovered == found.resumed) == (history == 1_000)
        report(f"history {history}: {found.recovered} of {found.resumed} readers that came back recovered, in truth")


async def test_a_worker_is_stopped(tmp_path, report):
    """It gets all that it missed, and its readers keep up with that."""
    async with cluster(tmp_path, is_temporary=True, history_bytes=64 * MIB) as made:
        *_, last = await made.start(NAMES, {"t": 1, "u": 1}, publishers=4, pause=0.016)
        last.signal(signal.SIGSTOP)
        await anyio.sleep(whole(10, 1.5))
        last.signal(signal.SIGCONT)
        await anyio.sleep(0.5)
        found = await made.finish()
    assert found.told == found.resumed == 0
    assert found.delivered == len(NAMES) * (found.sent + 2)
    report(f"a worker stopped for {whole(10, 1.5)} s: 0 of {found.sent} messages lost, no client told")


async def test_a_stopped_worker_is_overtaken_by_the_log(tmp_path, report):
    """Its readers are told, and get everything from then on."""
    async with cluster(tmp_path, is_temporary=True, history_bytes=MIB // 2) as made:
        *_, last = await made.start(NAMES[:3], {"t": 3, "u": 3}, publishers=4, pause=0.01, size=2_000)
        for _ in range(whole(5, 1)):
            last.signal(signal.SIGSTOP)
            await anyio.sleep(whole(4, 2.5))
            last.signal(signal.SIGCONT)
            await anyio.sleep(1)
        found = await made.finish()
    assert found.told >= 6
    report(f"a worker overtaken by the log: told {found.told} times, right from then on ({found.sent} messages)")


@at_each_load
async def test_a_worker_is_killed_and_its_clients_come_back_elsewhere(tmp_path, report, is_saturated):
    async with cluster(tmp_path, history_bytes=64 * MIB) as made:
        count = 5 if is_saturated else whole(250, 40)
        readers, history = {"t": count, "u": count}, 100_000
        first, *_ = await made.start(NAMES[:1], readers, publishers=0, history=history)
        publishers, pause = (8, 0.005) if is_saturated else (1, 0.05)
        await made.start(NAMES[1:3], {"t": 1, "u": 1}, publishers=publishers, pause=pause, history=history)
        await first.wait_for("begin", times=2 * count)
        await anyio.sleep(0.5)
        for name in whole("efgh", "e"):
            first.signal(signal.SIGKILL)
            await first.wait()
            await anyio.sleep(0.2)
            began = monotonic()
            [first] = await made.start([name], readers, publishers=0, history=history, back=first.last_positions())
            await first.wait_for("begin", times=2 * count)
            report(f"{2 * count} readers came back within {monotonic() - began:.1f} s")
            await anyio.sleep(0.5)
        found = await made.finish()
    report(f"{found.sent} messages, {found.recovered} of {found.resumed} readers that came back recovered, in truth")
    assert found.recovered == found.resumed == 2 * count * whole(4, 1)


class Counted:
    """Readers in this process: those that came back count what they get."""

    def __init__(self, app, topic, codec):
        self.outbox = Outbox()
        self.got = []
        self.told = 0
        self.subscriber = Subscriber(
            id=str(id(self)), codec=codec, outbox=self.outbox, wake=self.wake, refuse=self.refuse
        )

    def wake(self):
        while self.outbox:
            self.got.append(self.outbox.pop_published().frame)

    def refuse(self, code, reason):
        self.told += 1


@asynccontextmanager
async def serving(hub, **settings):
    """An app in this process, on the hub."""
    app = App()
    app.topic("*", **settings)
    app.hub.use(LocalBackplane(hub.path))
    async with app.running():
        yield app


async def test_all_clients_come_back_at_once(tmp_path, report):
    """The log is read once, and each gets all that it missed, in order."""
    clients, missed = whole(2_000, 200), 500
    with hub_process(tmp_path / "hub") as hub:
        async with serving(hub, history=missed) as app:
            since = (await app.publish("t", "before")).id
            for number in range(missed):
                await app.publish("t", str(number))
            reads = []
            read = app.hub.backplane.read

            async def counted(*arguments, **options):
                reads.append(arguments)
                return await read(*arguments, **options)

            app.hub.backplane.read = counted
            codec = app.hub._codecs.get("text")
            readers = [Counted(app, "t", codec) for _ in range(clients)]
            began = monotonic()

            async def come_back(reader):
                subscribed = await app.hub.subscribe(reader.subscriber, "t", since=since)
                assert subscribed.recovered

            async with anyio.create_task_group() as tasks:
                for reader in readers:
                    tasks.start_soon(come_back, reader)
            await app.publish("t", "live")
            took = monotonic() - began
            for reader in readers:
                reader.wake()
            expected = [*map(str, range(missed)), "live"]
            assert all([frame.text for frame in reader.got] == expected for reader in readers)
            assert sum(reader.told for reader in readers) == 0
            report(f"{clients} clients with {missed} missed messages each: {took:.1f} s, {len(reads)} reads of the log")
            assert len(reads) == 1
            assert took <= 8


def memory_of(pid):
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


def files_of(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process in /proc")
async def test_topics_that_are_left_leave_nothing(tmp_path, report, monkeypatch):
    count = whole(100_000, 5_000)
    monkeypatch.setattr(client, "_LINGER", 0.2)
    with hub_process(tmp_path / "hub", is_temporary=True) as hub:
        async with serving(hub, history=10) as app:
            topics = [f"topic {number}" for number in range(count)]
            backplane, memory = app.hub.backplane, []
            for _ in range(3):
                reader = Counted(app, "", app.hub._codecs.get("text"))
                async with anyio.create_task_group() as tasks:
                    for number in range(0, count, 1_000):
                        tasks.start_soon(partial(app.hub.subscribe, reader.subscriber, *topics[number:][:1_000]))
                assert len(backplane._topics) == count
                most = memory_of(hub.pid)
                app.hub.leave(reader.subscriber)
                with anyio.fail_after(3 * LIMIT):
                    while backplane._topics or app.hub._topics:  # noqa: ASYNC110 - time alone ends it
                        await anyio.sleep(0.05)
                await app.publish("end", 1)
                assert not backplane._left
                assert not backplane._requests
                assert app.hub.statistics().subscriptions == 0
                memory.append(memory_of(hub.pid))
                report(f"{count} topics: {most} KiB in the hub process, {memory[-1]} KiB after they were left")
            assert memory[-1] <= memory[0] * 1.1
            assert files_of(hub.pid) < 12
