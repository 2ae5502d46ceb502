"""What every backplane promises: one suite, run for each of them by its own test file."""

from contextlib import asynccontextmanager

import anyio
import pytest

from microws.interfaces import Payload, Receipt

PAYLOADS = [
    Payload("text", b"hi", "t"),
    Payload("text", "€ \U0001f600".encode(), "t"),
    Payload("text", b"", "t"),
    Payload("bytes", bytes(range(256)), "t"),
    Payload("bytes", b"", "t"),
    Payload("bytes", bytes(1 << 20), "t"),
    Payload("json", b'{"a":[1,null,"\\u0000"]}', "t"),
]
TOPICS = ["t", "chat:1/ü *?[]", "x" * 255]


class Process:
    """One process of those that a backplane connects: what its hub was handed, and how to publish from it."""

    def __init__(self, *, subscribers=1):
        self.delivered = []
        self.publish = None
        self._subscribers = subscribers
        self._changed = anyio.Event()

    def deliver(self, payload, skip=None, entry=None):
        self.delivered.append((payload.topic, payload, skip))
        self._changed.set()
        self._changed = anyio.Event()
        return self._subscribers

    async def wait_delivered(self, count):
        """Wait until ``count`` messages have come, and return them."""
        with anyio.fail_after(5):
            while len(self.delivered) < count:
                await self._changed.wait()
        return self.delivered


class BackplaneConformance:
    """
    The suite. A subclass says how its backplane is made, and how many processes it connects.
    """

    pytestmark = pytest.mark.anyio

    processes = 1

    def connect(self, receiver):
        """An async context manager with the backplane of one process, which delivers to ``receiver``."""
        raise NotImplementedError

    @asynccontextmanager
    async def cluster(self, **options):
        processes = [Process(**options) for _ in range(self.processes)]
        async with anyio.create_task_group() as tasks:
            stop, ready = anyio.Event(), [anyio.Event() for _ in processes]

            async def run(process, is_ready):
                async with self.connect(process) as backplane:
                    process.publish = backplane.publish
                    is_ready.set()
                    await stop.wait()

            for process, is_ready in zip(processes, ready, strict=True):
                tasks.start_soon(run, process, is_ready)
            with anyio.fail_after(5):
                for is_ready in ready:
                    await is_ready.wait()
            yield processes
            stop.set()

    @pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: f"{payload.kind}-{len(payload.data)}")
    async def test_a_payload_arrives_unchanged_in_every_process(self, payload):
        async with self.cluster() as processes:
            await processes[0].publish(payload)
            for process in processes:
                assert await process.wait_delivered(1) == [("t", payload, None)]

    @pytest.mark.parametrize("topic", TOPICS, ids=len)
    async def test_any_topic_arrives(self, topic):
        async with self.cluster() as processes:
            payload = PAYLOADS[0]._replace(topic=topic)
            await processes[-1].publish(payload)
            for process in processes:
                assert await process.wait_delivered(1) == [(topic, payload, None)]

    async def test_skip_arrives_in_every_process(self):
        async with self.cluster() as processes:
            await processes[0].publish(PAYLOADS[0], skip="connection-1")
            for process in processes:
                assert await process.wait_delivered(1) == [("t", PAYLOADS[0], "connection-1")]

    async def test_the_receipt_counts_the_subscribers_of_this_process(self):
        async with self.cluster(subscribers=7) as processes:
            assert await processes[0].publish(PAYLOADS[0]) == Receipt(7, None)

    async def test_messages_of_each_publisher_arrive_once_and_in_order(self):
        async with self.cluster() as processes:

            async def publish(name, process):
                for n in range(200):
                    await process.publish(Payload("text", f"{name} {n}".encode(), "t"))

            async with anyio.create_task_group() as tasks:
                for name in ("a", "b", "c"):
                    tasks.start_soon(publish, name, processes[ord(name) % len(processes)])
            for process in processes:
                texts = [payload.data.decode() for _, payload, _ in await process.wait_delivered(600)]
                for name in ("a", "b", "c"):
                    assert [text for text in texts if text[0] == name] == [f"{name} {n}" for n in range(200)]

    async def test_publishes_one_after_another_are_in_order_across_topics(self):
        async with self.cluster() as processes:
            for n in range(50):
                await processes[0].publish(Payload("json", b"%d" % n, "tu"[n % 2]))
            for process in processes:
                assert [int(payload.data) for _, payload, _ in await process.wait_delivered(50)] == list(range(50))
