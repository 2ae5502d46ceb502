"""What subscribers are told when a backplane loses messages, and what they get from then on."""

import anyio
import pytest

from microws import App, Overflow, PublishTimeout
from microws.hub.backplane import MemoryBackplane

pytestmark = pytest.mark.anyio


class Backplane(MemoryBackplane):
    """Calls ``before_answer`` with the answer of each read."""

    async def read(self, *arguments, **options):
        found = await super().read(*arguments, **options)
        await self.before_answer(found)
        return found

    async def before_answer(self, found):
        pass


@pytest.fixture
async def app():
    app = App()
    app.topic("*", history=100)
    app.hub.use(Backplane())
    async with app.running():
        yield app


async def take(source, count):
    with anyio.fail_after(5):
        return [await anext(source) for _ in range(count)]


async def test_a_subscriber_is_told_of_a_loss_and_goes_on(app):
    async with app.subscribe("t") as messages:
        await app.publish("t", 1)
        app.hub.lose()
        await app.publish("t", 2)
        assert await take(messages, 1) == [1]
        with pytest.raises(Overflow):
            await take(messages, 1)
        assert await take(messages, 1) == [2]


async def test_a_loss_of_other_topics_is_not_told(app):
    async with app.subscribe("t") as messages:
        app.hub.lose(["u"])
        await app.publish("t", 1)
        assert await take(messages, 1) == [1]


async def test_a_subscription_after_a_loss_has_a_position(app):
    async with app.subscribe("t"):
        position = (await app.publish("t", 1)).id
        app.hub.lose()
        assert app.hub.known_position("t") is None
        async with app.subscribe("t"):
            assert app.hub.known_position("t") == position


async def test_a_loss_while_a_subscriber_of_others_resumes_leaves_no_hole(app):
    """What is published between its reads of two topics is in the second window."""
    positions = {topic: (await app.publish(topic, 0)).id for topic in "tu"}
    reads = 0

    async def before_answer(found):
        nonlocal reads
        reads += 1
        if reads == 1:
            app.hub.lose()
        await app.publish("t", reads)

    app.hub.backplane.before_answer = before_answer
    async with app.subscribe("t", "u", since=positions) as messages:
        await app.publish("t", "end")
        got = []
        while not got or got[-1] != "end":
            got += await take(messages, 1)
        assert got == [*range(1, reads + 1), "end"]


async def test_subscribers_that_resume_together_share_the_reads_of_the_log(app):
    empty = await app.position("t")
    first = (await app.publish("t", 1)).id
    await app.publish("t", 2)
    gates, reads, got = [anyio.Event() for _ in range(3)], [], []

    async def before_answer(found):
        reads.append(found)
        await gates[len(reads) - 1].wait()

    app.hub.backplane.before_answer = before_answer

    async def read(since):
        async with app.subscribe("t", since=since) as messages:
            got.append(await take(messages, 1 if since == first else 2))

    async with anyio.create_task_group() as tasks:
        for since in [first, empty] * 10:
            tasks.start_soon(read, since)
        # At most three reads, for 20 subscribers. How many depends on their order, which is random on trio.
        for number, gate in zip((2, 2, 3), gates, strict=True):
            await anyio.wait_all_tasks_blocked()
            assert len(reads) <= number
            gate.set()
    assert sorted(got) == [[1, 2]] * 10 + [[2]] * 10
    assert len(reads) <= 3


@pytest.mark.parametrize("fails", [True, False])
async def test_a_read_that_fails_fails_for_all_and_a_cancelled_one_for_none(app, fails):
    since = (await app.publish("t", 1)).id
    await app.publish("t", 2)
    gate, results = anyio.Event(), []

    async def before_answer(found):
        await gate.wait()
        if fails:
            raise PublishTimeout("no answer")

    app.hub.backplane.before_answer = before_answer

    async def read(scope):
        with scope:
            try:
                async with app.subscribe("t", since=since) as messages:
                    results.append(await take(messages, 1))
            except PublishTimeout as error:
                results.append(str(error))

    scopes = [anyio.CancelScope() for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        for scope in scopes:
            tasks.start_soon(read, scope)
            await anyio.wait_all_tasks_blocked()
        if not fails:
            scopes[0].cancel()
            await anyio.wait_all_tasks_blocked()
        gate.set()
    assert results == ["no answer"] * 3 if fails else [[2]] * 2
    assert not app.hub._topics
