"""What every backplane promises: one suite, run for each of them by its own test file."""

from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from hubs import LIMIT, Process

from microws.hub.log import START, position_before
from microws.interfaces import Payload, Receipt

CONTENTS = [
    ("text", b"hi"),
    ("text", "€ \U0001f600".encode()),
    ("text", b""),
    ("bytes", bytes(range(256))),
    ("bytes", b""),
    ("bytes", bytes(1 << 20)),
    ("json", b'{"a":[1,null,"\\u0000"]}'),
]
TOPICS = ["t", "chat:1/ü *?[]", "x" * 255]
HISTORY = pytest.mark.parametrize("has_history", [False, True], ids=["without history", "with history"])
MALFORMED = [
    "",
    "x",
    "0-",
    "1-0.1",
    "1-0.1.1",
    "g-0.1.1.1",
    "1-0.1.1.1",
    "-1-0.1.1",
    "1" * 300,
    "\x00",
    "€",
    "1-0.1.1\n",
]


def text(value, topic="t"):
    return Payload("text", str(value).encode(), topic)


def texts(replay):
    return [entry.payload.data.decode() for entry in replay.entries]


class BackplaneConformance:
    """
    The suite. A subclass says how its backplane is made, and how many processes it connects.
    """

    pytestmark = pytest.mark.anyio

    processes = 1
    # The largest message that is published with history, in bytes, is smaller than this.
    too_large = 16 << 20

    def connect(self):
        """The backplane of one more process."""
        raise NotImplementedError

    @asynccontextmanager
    async def cluster(self, *topics, keeps=True):
        """Processes that subscribe to the topics, which have history if they are kept."""
        processes = [Process(self.connect(), keeps=keeps) for _ in range(self.processes)]
        async with anyio.create_task_group() as tasks:
            for process in processes:
                process.backplane.start(process)
                with anyio.fail_after(LIMIT):
                    await tasks.start(
                        lambda process=process, *, task_status: process.backplane.run(task_status=task_status)
                    )
                for topic in topics:
                    await process.backplane.subscribe(topic)
            yield processes
            for process in processes:
                await process.backplane.aclose()
            tasks.cancel_scope.cancel()

    @staticmethod
    async def publish(process, values, topic="t", **options):
        """Publish with history; the positions."""
        receipts = [
            await process.backplane.publish(text(value, topic), has_history=True, **options) for value in values
        ]
        return [receipt.id for receipt in receipts]

    @staticmethod
    async def read(process, since, topic="t", *, history=100, ttl=None, by_key=False):
        return await process.backplane.read(topic, since, history=history, ttl=ttl, by_key=by_key)

    # Publishing

    @HISTORY
    @pytest.mark.parametrize("content", CONTENTS, ids=lambda content: f"{content[0]}-{len(content[1])}")
    async def test_a_payload_arrives_unchanged_in_every_process(self, content, has_history):
        async with self.cluster("t", keeps=has_history) as processes:
            receipt = await processes[0].backplane.publish(Payload(*content, "t"), has_history=has_history)
            for process in processes:
                [(payload, skip, entry)] = await process.wait_delivered(1)
                assert payload == (*content, "t", receipt.id)
                assert skip is None
                assert (None if entry is None else entry.payload) == (payload if has_history else None)

    @HISTORY
    @pytest.mark.parametrize("topic", TOPICS, ids=len)
    async def test_any_topic_arrives(self, topic, has_history):
        async with self.cluster(topic) as processes:
            await processes[-1].backplane.publish(text("hi", topic), has_history=has_history)
            for process in processes:
                assert (await process.wait_delivered(1))[0][0].topic == topic

    @HISTORY
    async def test_skip_is_told_to_the_process_of_the_publisher(self, has_history):
        async with self.cluster("t") as processes:
            await processes[0].backplane.publish(text("hi"), skip="connection-1", has_history=has_history)
            for process in processes:
                [(_, skip, _)] = await process.wait_delivered(1)
                assert skip == ("connection-1" if process is processes[0] else None)

    async def test_the_receipt_counts_the_subscribers_of_this_process(self):
        async with self.cluster("t") as processes:
            processes[0].subscribers = 7
            assert await processes[0].backplane.publish(text("hi")) == Receipt(7, None)
            receipt = await processes[0].backplane.publish(text("hi"), has_history=True)
            assert receipt == (7, await processes[-1].backplane.position("t"))

    async def test_a_publish_to_a_topic_without_subscribers_has_a_position(self):
        async with self.cluster() as processes:
            positions = await self.publish(processes[0], range(3))
            assert len(set(positions)) == 3
            assert positions[-1] == await processes[-1].backplane.position("t")

    @HISTORY
    async def test_every_process_gets_the_messages_of_all_once_and_in_one_order(self, has_history):
        async with self.cluster("t", "u") as processes:

            async def publish(name, process):
                for number in range(100):
                    await process.backplane.publish(text(f"{name} {number}", "tu"[number % 2]), has_history=has_history)

            async with anyio.create_task_group() as tasks:
                for index, name in enumerate("abc"):
                    tasks.start_soon(publish, name, processes[index % len(processes)])
            orders = []
            for process in processes:
                await process.wait_delivered(300)
                for name in "abc":
                    assert [each for each in process.texts if each[0] == name] == [f"{name} {n}" for n in range(100)]
                orders.append(
                    [[payload.data for payload, _, _ in process.delivered if payload.topic == topic] for topic in "tu"]
                )
            assert all(order == orders[0] for order in orders)
            if has_history:
                found = await self.read(processes[0], START, history=1000)
                assert [entry.payload.data for entry in found.entries] == orders[0][0]

    async def test_the_log_tells_how_full_it_is(self):
        async with self.cluster() as processes:
            before = await processes[-1].backplane.ask_for_usage()
            await self.publish(processes[0], ["x" * 1_000_000] * 3)
            after = await processes[-1].backplane.ask_for_usage()
            # A Redis counts what it has for its clients, too.
            assert after.bytes - before.bytes > 2_000_000
            assert after.dropped == before.dropped == 0

    async def test_a_message_with_a_key_is_published_once(self):
        async with self.cluster("t", "u") as processes:
            publish = [process.backplane.publish for process in (processes[0], processes[-1])]
            first = await publish[0](text(1), has_history=True, key=b"k")
            await publish[0](text(2), has_history=True, key=b"another")
            assert (await publish[1](text(3), has_history=True, key=b"k")).id == first.id
            assert (await publish[1](text(4, "u"), has_history=True, key=b"k")).id != first.id
            assert (await publish[1](text(5), has_history=True)).id != first.id
            for process in processes:
                await process.wait_delivered(4)
                assert process.texts == ["1", "2", "4", "5"]

    async def test_publishes_with_one_key_at_once_are_one(self):
        async with self.cluster("t") as processes:
            ids = []

            async def publish(process, value):
                ids.append((await process.backplane.publish(text(value), has_history=True, key=b"k")).id)

            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(publish, processes[number % len(processes)], number)
            assert len(ids) == 20
            assert len(set(ids)) == 1
            await self.publish(processes[0], ["end"])
            for process in processes:
                await process.wait_delivered(2)
                assert process.texts[1:] == ["end"]

    async def test_a_message_that_the_log_cannot_take_is_refused(self):
        async with self.cluster("t") as processes:
            with pytest.raises(ValueError, match=r"expected a message of at most \d+ bytes, got 16777216"):
                await processes[0].backplane.publish(Payload("bytes", bytes(self.too_large), "t"), has_history=True)
            await self.publish(processes[0], ["hi"])
            for process in processes:
                await process.wait_delivered(1)
                assert process.texts == ["hi"]

    @HISTORY
    async def test_aclose_sends_what_is_pending(self, has_history):
        async with self.cluster("t") as processes:
            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    publish = partial(processes[0].backplane.publish, has_history=has_history)
                    tasks.start_soon(publish, text(number))
                await anyio.lowlevel.checkpoint()
                await processes[0].backplane.aclose()
            await processes[-1].wait_delivered(50)

    # Subscribing

    async def test_what_is_published_after_subscribing_is_delivered(self):
        async with self.cluster() as processes:
            await self.publish(processes[0], range(3))
            last = await processes[0].backplane.position("t")
            for process in processes:
                assert (await process.backplane.subscribe("t"))[0] == last
                process.delivered.clear()
            positions = await self.publish(processes[0], [3])
            for process in processes:
                [(payload, _, entry)] = await process.wait_delivered(1)
                assert payload == text(3)._replace(position=positions[0])
                assert await process.backplane.subscribe("t") == (positions[0], entry.place)

    async def test_a_second_subscription_changes_nothing(self):
        async with self.cluster("t", "t") as processes:
            for number in range(3):
                await processes[0].backplane.publish(text(number))
            for process in processes:
                await process.wait_delivered(3)
                assert process.texts == ["0", "1", "2"]

    async def test_a_topic_that_is_left_and_subscribed_again_is_delivered_once(self):
        async with self.cluster("t") as processes:
            for number in range(5):
                for process in processes:
                    process.backplane.unsubscribe("t")
                    process.backplane.unsubscribe("never subscribed")
                    await process.backplane.subscribe("t")
                await processes[0].backplane.publish(text(number))
            for process in processes:
                await process.wait_delivered(5)
                assert process.texts == ["0", "1", "2", "3", "4"]

    # Reading

    async def test_each_position_tells_what_followed(self):
        async with self.cluster("t") as processes:
            positions = await self.publish(processes[0], range(5))
            await self.publish(processes[0], range(3), "another")
            for index, position in enumerate(positions):
                found = await self.read(processes[-1], position)
                assert found.recovered
                assert found.position == positions[-1]
                assert texts(found) == [str(number) for number in range(index + 1, 5)]
                assert [entry.payload.position for entry in found.entries] == positions[index + 1 :]
                places = [entry.place for entry in found.entries]
                assert places == sorted(places)
                assert found.place == (await processes[0].backplane.subscribe("t"))[1]
                found = await self.read(processes[-1], position_before(position))
                assert (found.recovered, texts(found)) == (True, [str(number) for number in range(index, 5)])

    async def test_exactly_the_history_may_be_missed(self):
        async with self.cluster("t") as processes:
            positions = await self.publish(processes[0], range(6))
            found = await self.read(processes[-1], positions[1], history=4)
            assert (found.recovered, texts(found)) == (True, ["2", "3", "4", "5"])
            found = await self.read(processes[-1], positions[0], history=4)
            assert found[:3] == ((), False, positions[-1])
            found = await self.read(processes[-1], positions[-1], history=0)
            assert found[:3] == ((), True, positions[-1])

    async def test_start_is_all_of_the_window(self):
        async with self.cluster("t") as processes:
            assert texts(await self.read(processes[0], START)) == []
            positions = await self.publish(processes[0], range(6))
            found = await self.read(processes[-1], START, history=4)
            assert (found.recovered, texts(found), found.position) == (True, ["2", "3", "4", "5"], positions[-1])

    async def test_no_position_reads_nothing(self):
        async with self.cluster("t") as processes:
            positions = await self.publish(processes[0], range(2))
            found = await self.read(processes[-1], None)
            assert found[:3] == ((), False, positions[-1])

    async def test_messages_older_than_ttl_are_lost(self):
        async with self.cluster("t") as processes:
            positions = await self.publish(processes[0], range(3))
            assert texts(await self.read(processes[-1], positions[0], ttl=60)) == ["1", "2"]
            assert not (await self.read(processes[-1], positions[0], ttl=1e-9)).recovered
            # Nothing was missed, however old it is.
            assert (await self.read(processes[-1], positions[-1], ttl=1e-9)).recovered
            assert (await self.read(processes[-1], START, ttl=1e-9))[:3] == ((), True, positions[-1])

    async def test_by_key_the_newest_of_each_is_read(self):
        async with self.cluster("t") as processes:
            positions = []
            for number, key in enumerate(["a", "b", "a", "c", "b"]):
                positions += await self.publish(processes[0], [number], conflation=key.encode())
            read = processes[-1].backplane.read
            for since, history, expected in [
                (START, 9, "234"), (START, 2, "34"), (positions[0], 9, "234"), (positions[2], 9, "34"),
                (positions[2], 1, "4"), (positions[4], 9, ""),
            ]:  # fmt: skip
                found = await read("t", since, history=history, ttl=None, by_key=True)
                assert (found.recovered, texts(found)) == (True, list(expected))

    @pytest.mark.parametrize("position", MALFORMED)
    async def test_a_position_that_names_nothing_is_not_recovered(self, position):
        async with self.cluster("t") as processes:
            positions = await self.publish(processes[0], range(2))
            found = await self.read(processes[-1], position)
            assert found[:3] == ((), False, positions[-1])

    async def test_a_position_of_another_topic_or_log_is_not_recovered(self):
        async with self.cluster("t") as processes:
            positions = await self.publish(processes[0], range(2))
            [foreign] = await self.publish(processes[0], [0], "u")
            offset, _, rest = positions[0].partition("-")
            place, publisher, number = rest.split(".")
            for position in (
                foreign,
                f"{offset}-{place}.{publisher}1.{number}",
                f"{offset}1-{rest}",
                f"0-0.{publisher}",
            ):
                assert not (await self.read(processes[-1], position)).recovered

    async def test_a_topic_without_messages_has_a_position(self):
        async with self.cluster() as processes:
            begin = await processes[0].backplane.position("t")
            await self.publish(processes[0], range(3), "another")
            later, place = await processes[-1].backplane.subscribe("t")
            assert place == -1
            for number in range(3):
                for position in (begin, later):
                    found = await self.read(processes[-1], position)
                    assert (found.recovered, texts(found)) == (True, [str(n) for n in range(number)])
                await self.publish(processes[0], [number])

    # The rest

    async def test_one_caller_of_all_claims_a_key(self):
        async with self.cluster() as processes:
            claims = []

            async def claim(process):
                claims.append(await process.backplane.claim("k", 60))

            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(claim, processes[number % len(processes)])
            assert sorted(claims) == [False] * 19 + [True]
            assert await processes[-1].backplane.claim("another", 60)
            assert not await processes[-1].backplane.claim("k", 60)

    async def test_a_claim_ends_after_its_time(self):
        async with self.cluster() as processes:
            assert await processes[0].backplane.claim("k", 0.05)
            with anyio.fail_after(LIMIT):
                while not await processes[-1].backplane.claim("k", 60):
                    await anyio.lowlevel.checkpoint()
            assert not await processes[0].backplane.claim("k", 60)

    async def test_every_process_answers_a_question(self):
        async with self.cluster() as processes:
            question = {"a": [1, None, "€"]}
            answers = await processes[0].backplane.ask(question)
            expected = [{"name": process.name, "question": question} for process in processes]
            assert sorted(answers, key=lambda answer: answer["name"]) == expected
