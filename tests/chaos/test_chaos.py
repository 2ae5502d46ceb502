"""
Everything that can happen to a cluster is a schedule for one checker.

``make servers`` runs a part of each, ``make chaos`` runs the whole and prints the figures. A schedule is seeded:
``CHAOS_SEED`` repeats it, as far as a machine with several processes repeats anything.
"""

import os
import random
import sys

import anyio
import pytest
from checker import cluster, describe

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


async def test_hub_is_killed_under_load(tmp_path, report):
    """No message is lost, doubled or out of order, and nobody is told."""
    rng = random.Random(SEED)
    async with cluster(tmp_path, is_temporary=True, history_bytes=64 * MIB) as made:
        await made.start(NAMES, {"t": 1, "u": 1}, publishers=whole(32, 8), pause=whole(0.0, 0.01))
        kills = []
        for _ in range(whole(20, 4)):
            await anyio.sleep(0.3 + 0.3 * rng.random())
            kills.append(await made.kill_hub())
        await anyio.sleep(0.3)
        found = await made.finish()
    assert found.told == found.resumed == 0
    assert found.acknowledged == found.sent
    assert found.delivered == len(NAMES) * (found.sent + 2)
    times = found.times_to_next(kills)
    report(f"{len(kills)} kills of the hub, {found.sent} messages: next message {describe(times)}")
