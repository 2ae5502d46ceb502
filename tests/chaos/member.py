"""
A process of a cluster: publishes, subscribes, leaves and comes back, and writes down all that it is told.

The records are lines of JSON, each with its reader first:

- ``["begin", reader, topic, since, recovered, position, time]``: it subscribes.
- ``["got", reader, topic, text, position, time]``, ``["told", reader, topic, time]``: a message; that some were lost
  here.
- ``["end", reader, topic]``: it leaves.
- ``["sent", topic, text]``, ``["ack", topic, text, position, time]``, ``["failed", topic, text, error, seconds]``: a
  publish, and its answer.
- ``["log", time, level, text]``: a line of the log.
- ``["lag", ms, held]``: the longest time that the event loop did not run, and the most CPU time between two looks at
  the clock.
"""

import json
import logging
import random
import sys
from itertools import count
from time import monotonic, thread_time

import anyio
from hubs import backplane_of

from microws import App, HubUnavailable, PublishTimeout
from microws.hub import Outbox, Published, Subscriber
from microws.interfaces import Frame

# The last message of each topic.
END = "the end"
# The names of topics without history begin so.
PLAIN = "plain"
# Seconds after which the event loop looks at the clock.
TICK = 0.005
# The most seconds that a publisher makes up for.
ARREARS = 1.0


class Member:
    """
    Args:
        name: Of this process.
        url: Of the hub.
        topics: By name: the number of readers.
        publishers: Tasks that publish to random topics.
        pause: Seconds between two messages of a publisher, about.
        back: Of readers: the position that each comes back with, by topic.
        stay: Seconds after which a reader leaves to come back, about. 0: it stays.
        history, queue: The topics'.
        size: Of each message, in bytes, at least.
    """

    def __init__(
        self, name, url, topics, *, publishers=4, pause=0.01, back=None, stay=0.0, history=1_000, queue=256, size=0
    ):
        self.name = name
        self.topics = topics
        self.publishers = publishers
        self.pause = pause
        self.back = back or {}
        self.stay = stay
        self.padding = " " + "x" * size
        self.random = random.Random(name)
        self.app = App()
        self.app.topic(f"{PLAIN}*", queue=queue)
        self.app.topic("*", history=history, queue=queue)
        self.app.hub.use(backplane_of(url))
        self.stopped = anyio.Event()
        self.readers = sum(topics.values())

    def note(self, *record):
        sys.stdout.write(json.dumps(record) + "\n")

    async def run(self):
        logging.basicConfig(level=logging.INFO, handlers=[Log(self)])
        async with self.app.running(), anyio.create_task_group() as tasks:
            tasks.start_soon(self.flush)
            tasks.start_soon(self.tick)
            for topic, count in self.topics.items():
                for number in range(count):
                    tasks.start_soon(Reader(self, f"{self.name}.{topic}.{number}", topic).run, self.back.get(topic))
            async with anyio.create_task_group() as publishing:
                await anyio.to_thread.run_sync(sys.stdin.readline)
                for number in range(self.publishers):
                    publishing.start_soon(self.publish, f"{self.name}-{number}")
                await anyio.to_thread.run_sync(sys.stdin.readline)
                self.stopped.set()
            self.note("stopped")

    async def flush(self):
        """What it has written down outlives a kill."""
        while not self.stopped.is_set() or self.readers:
            sys.stdout.flush()
            await anyio.sleep(0.02)

    async def tick(self):
        """Write down how long the event loop did not run while it published."""
        longest = held = 0.0
        while not self.stopped.is_set():
            before, cpu = monotonic(), thread_time()
            await anyio.sleep(TICK)
            longest = max(longest, monotonic() - before - TICK)
            held = max(held, thread_time() - cpu)
        self.note("lag", 1000 * longest, 1000 * held)

    async def publish(self, name):
        due = monotonic()
        for number in count(1):
            if self.stopped.is_set():
                return
            topic = self.random.choice(list(self.topics))
            began = monotonic()
            text = f"{name}.{number} {began:.6f}"
            self.note("sent", topic, text)
            try:
                receipt = await self.app.publish(topic, text + self.padding)
            except (PublishTimeout, HubUnavailable) as error:
                self.note("failed", topic, text, type(error).__name__, monotonic() - began)
            else:
                self.note("ack", topic, text, receipt.id, monotonic())
            # The pace is kept, whatever an answer takes, and after an outage it is made up for.
            due = max(due + self.pause * 2 * self.random.random(), monotonic() - ARREARS)
            await anyio.sleep(max(0.0, due - monotonic()))


class Log(logging.Handler):
    def __init__(self, member):
        super().__init__()
        self._member = member

    def emit(self, record):
        self._member.note("log", monotonic(), record.levelname, self.format(record))


class Reader:
    def __init__(self, member, name, topic):
        self.member = member
        self.name = name
        self.topic = topic
        self.position = None
        self.is_refused = False
        self.arrived = anyio.Event()

    async def run(self, since):
        member = self.member
        while True:
            outbox = Outbox(marker=_gap if member.random.random() < 0.5 else None)
            subscriber = Subscriber(
                id=self.name,
                codec=member.app.hub._codecs.get("text"),
                outbox=outbox,
                wake=self.wake,
                refuse=self.refuse,
            )
            self.is_refused = False
            try:
                subscribed = await member.app.hub.subscribe(subscriber, self.topic, since=since)
            except PublishTimeout:
                continue
            recovered = subscribed.recovered if since else None
            member.note("begin", self.name, self.topic, since, recovered, subscribed.position, monotonic())
            self.position = since if recovered else subscribed.position
            until = monotonic() + 2 * member.stay * member.random.random() if member.stay else float("inf")
            while not self.is_refused and (monotonic() < until or member.stopped.is_set()):
                if not outbox:
                    with anyio.move_on_after(None if until == float("inf") else 0.05):
                        await self.arrived.wait()
                    continue
                message = outbox.pop_published()
                if message.is_gap:
                    member.note("told", self.name, self.topic, monotonic())
                    continue
                text = " ".join(message.frame.text.split()[:2])
                self.position = message.position
                member.note("got", self.name, self.topic, text, message.position, monotonic())
                if text == END:
                    member.readers -= 1
                    return
            member.app.hub.leave(subscriber)
            if self.is_refused:
                member.note("told", self.name, self.topic, monotonic())
            member.note("end", self.name, self.topic)
            since = self.position
            if member.stay:
                await anyio.sleep(member.stay * member.random.random() / 2)

    def wake(self):
        self.arrived.set()
        self.arrived = anyio.Event()

    def refuse(self, code, reason):
        self.is_refused = True
        self.wake()


def _gap(topic, settings):
    return Published(Frame(""), topic, settings, is_gap=True)


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    anyio.run(Member(**options).run, backend_options={"use_uvloop": options["name"].startswith("u")})
    sys.stdout.flush()
