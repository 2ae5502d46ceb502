"""
One checker for all schedules: a cluster of processes that write down what they are told, and what must be true of it.

- Nothing comes twice to a reader, and everything in the order of the log.
- Every hole is covered by a mark.
- What was acknowledged was delivered to every reader that was there, or the reader was told.
- Each ``recovered`` is true.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections import defaultdict
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import anyio
from hubs import LIMIT, HubHere, Process
from member import END

from microws.interfaces import Payload
from microws.local.client import LocalBackplane

MEMBER = Path(__file__).with_name("member.py")
_PLACE = re.compile(r"[0-9a-f]+-([0-9a-f]+)\.")


def place_of(position):
    """Where in the log the message is that a position names; of an empty topic, the log's last one."""
    return int(_PLACE.match(position)[1], 16) if not re.fullmatch(r"0-0\.[0-9a-f]+", position) else -1


class Member:
    """A process of the cluster, and its records."""

    def __init__(self, directory, name, path, topics, **options):
        self.name = name
        self.file = directory / f"{name}.jsonl"
        arguments = json.dumps({"name": name, "path": path, "topics": topics} | options)
        with self.file.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, MEMBER, arguments],
                stdin=subprocess.PIPE, stdout=output,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip

    @property
    def records(self):
        # The last line of a process that was killed may be incomplete.
        return [json.loads(line) for line in self.file.read_bytes().split(b"\n")[:-1]]

    async def wait_for(self, kind):
        with anyio.fail_after(6 * LIMIT):
            while not any(record[0] == kind for record in self.records):
                assert self.process.poll() is None, self.name
                await anyio.sleep(0.1)

    def signal(self, number):
        self.process.send_signal(number)

    def go_on(self):
        """Let it publish; the second time, let it stop to."""
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    async def wait(self):
        with anyio.fail_after(6 * LIMIT):
            while self.process.poll() is None:  # noqa: ASYNC110 - a process does not signal its end
                await anyio.sleep(0.02)
        return self.process.returncode

    def last_positions(self):
        """By topic: the position of the last message that any of its readers has written down."""
        return {record[2]: record[4] for record in self.records if record[0] == "got"}

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()


class Cluster:
    """
    A hub process and members.

    Attributes:
        hub: Kept alive.
        members: Those that were started, by name.
    """

    def __init__(self, directory, hub, tasks):
        self.directory = directory
        self.hub = hub
        self.members = {}
        self._tasks = tasks
        self.topics = set()

    async def start(self, names, topics, **options):
        started = [Member(self.directory, name, self.hub.path, topics, **options) for name in names]
        self.members |= {member.name: member for member in started}
        self.topics |= set(topics)
        for member in started:
            await member.wait_for("begin")
        for member in started:
            member.go_on()
        return started

    async def kill_hub(self):
        """The time of the kill."""
        starts, now = self.hub.starts, monotonic()
        self.hub.signal(signal.SIGKILL)
        await self.hub.wait_started(starts + 1)
        return now

    async def finish(self):
        """Let everybody publish what is pending and read to the end; check all; return what was found."""
        living = [member for member in self.members.values() if member.process.poll() is None]
        for member in living:
            member.go_on()
        for member in living:
            await member.wait_for("stopped")
        backplane = LocalBackplane(self.hub.path, serves=False)
        backplane.start(Process(backplane))
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: backplane.run(task_status=task_status))
            for topic in sorted(self.topics):
                await backplane.publish(Payload("text", END.encode(), topic), has_history=True)
            tasks.cancel_scope.cancel()
        for member in living:
            assert await member.wait() == 0, member.name
        return check({name: member.records for name, member in self.members.items()}, {m.name for m in living})


@asynccontextmanager
async def cluster(directory, **options):
    hub = HubHere(directory / "hub", **options)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub.keep)
            made = Cluster(directory, hub, tasks)
            try:
                yield made
            finally:
                for member in made.members.values():
                    member.close()
                tasks.cancel_scope.cancel()
    finally:
        hub.close()


class Found(NamedTuple):
    """
    What was checked.

    Attributes:
        sent, acknowledged, delivered, told, resumed, recovered: How many there were.
        arrivals: By member: when messages arrived, and when they were published.
    """

    sent: int
    acknowledged: int
    delivered: int
    told: int
    resumed: int
    recovered: int
    arrivals: dict

    def times_to_next(self, kills, *, of=max):
        """For each kill: how many ms it took until all members had a message that was published after it."""
        return [
            1000 * of(min(arrived for arrived, sent in each if sent > kill) - kill for each in self.arrivals.values())
            for kill in kills
        ]


def check(records_of, living):
    """Raise if one of the invariants is not true."""
    log, sent, acknowledged = defaultdict(dict), {}, {}
    arrivals = defaultdict(list)
    # All that is known of the log: what was delivered anywhere, and what was acknowledged.
    for name, records in records_of.items():
        for kind, *record in records:
            if kind == "sent":
                assert record[1] not in sent
                sent[record[1]] = record[0]
            elif kind == "ack":
                acknowledged[record[1]] = record[2]
                if record[2] is not None:
                    _know(log, record[0], record[2], record[1])
            elif kind == "got":
                _know(log, record[1], record[3], record[2])
                if record[2] != END:
                    arrivals[name].append((record[4], float(record[2].split()[1])))
    for topic, messages in log.items():
        texts = list(messages.values())
        assert len(texts) == len(set(texts)), f"a message is twice in the log of {topic}"
        assert all(sent.get(text, topic) == topic for text in texts)
    missing = [
        text for text, position in acknowledged.items() if position is None and text not in log[sent[text]].values()
    ]
    order = {topic: sorted(messages) for topic, messages in log.items()}
    counts = dict.fromkeys(("delivered", "told", "resumed", "recovered"), 0)
    readers = defaultdict(list)
    for name, records in records_of.items():
        for record in records:
            if record[0] in ("begin", "got", "told", "end"):
                readers[name, record[1], record[2]].append(record)
    for (name, reader, topic), records in readers.items():
        _check_reader(reader, records, order[topic], counts, is_living=name in living)
    assert not missing
    return Found(len(sent), len(acknowledged), *counts.values(), dict(arrivals))


def _know(log, topic, position, text):
    place = place_of(position)
    assert log[topic].setdefault(place, text) == text, f"two messages at {position}"


def _check_reader(reader, records, order, counts, *, is_living):
    index = {place: number for number, place in enumerate(order)}
    newest = -1
    # The number up to which the reader has everything, or was told; ``None``: it was told, and may miss any.
    has = None
    for kind, _, _, *record in records:
        if kind == "begin":
            since, recovered, position = record
            counts["resumed"] += since is not None
            counts["recovered"] += bool(recovered)
            has = _number_at(index, order, place_of(since if recovered else position))
        elif kind == "got":
            counts["delivered"] += 1
            text, position, _ = record
            number = index[place_of(position)]
            assert number > newest, f"{reader} has {text!r} twice, or out of order"
            if has is None or number > has:
                assert has is None or number == has + 1, f"{reader} misses {number - has - 1} before {text!r}"
                has = number
            newest = number
        elif kind == "told":
            counts["told"] += 1
            has = None
    if is_living:
        assert newest == len(order) - 1, f"{reader} has not got to the end"


def _number_at(index, order, place):
    """The number of the last message up to a place."""
    if place in index:
        return index[place]
    return sum(other <= place for other in order) - 1


def describe(times):
    return f"median {statistics.median(times):.0f} ms, worst {max(times):.0f} ms"
