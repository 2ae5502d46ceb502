"""
One checker for all schedules: a cluster of processes that write down what they are told, and what must be true of it.

- Nothing comes twice to a reader, and everything in the order of the log.
- Every hole is covered by a mark.
- What was acknowledged was delivered to every reader that was there, or the reader was told.
- What was refused was delivered to nobody.
- Each ``recovered`` is true.

A log that lost its end begins an era: what is published then may have the places of what was lost. A reader gets a
message twice only in two eras, and only if it was told between them.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
from bisect import bisect
from collections import defaultdict
from contextlib import asynccontextmanager, closing
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import anyio
from hubs import LIMIT, HubHere, backplane_of
from member import END, PLAIN

from microws import App

MEMBER = Path(__file__).with_name("member.py")
_PLACE = re.compile(r"[0-9a-f]+-([0-9a-f]+)\.")


def place_of(position):
    """Where in the log the message is that a position names; of an empty topic, the log's last one, or -1."""
    return -1 if position.startswith("0-0.") else int(_PLACE.match(position)[1], 16)


class Member:
    """A process of the cluster, and its records."""

    def __init__(self, directory, name, url, topics, **options):
        self.name = name
        self.file = directory / f"{name}.jsonl"
        arguments = json.dumps({"name": name, "url": url, "topics": topics} | options)
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

    async def wait_for(self, kind, *, times=1):
        begin = b'["%b"' % kind.encode()
        with anyio.fail_after(6 * LIMIT):
            while self.file.read_bytes().count(begin) < times:
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
        """By topic: the last position that any of its readers has written down."""
        at = {"begin": 5, "got": 4}
        return {record[2]: record[at[record[0]]] for record in self.records if record[0] in at}

    def logged(self, since=0.0):
        """The lines that it logged since a time: the time, the level and the text of each."""
        return [tuple(record) for kind, *record in self.records if kind == "log" and record[0] >= since]

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()


class Cluster:
    """
    A hub and members.

    Attributes:
        hub: Of the members; it has a ``url``.
        members: Those that were started, by name.
        eras: When the log lost its end, or all.
        began: When the last member had started.
    """

    def __init__(self, directory, hub):
        self.directory = directory
        self.hub = hub
        self.members = {}
        self.topics = set()
        self.eras = []
        self.began = 0.0

    async def start(self, names, topics, **options):
        started = [Member(self.directory, name, self.hub.url, topics, **options) for name in names]
        self.members |= {member.name: member for member in started}
        self.topics |= set(topics)
        for member in started:
            await member.wait_for("begin")
        for member in started:
            member.go_on()
        self.began = monotonic()
        return started

    async def kill_hub(self):
        """The time of the kill."""
        starts, now = self.hub.starts, monotonic()
        self.hub.signal(signal.SIGKILL)
        await self.hub.wait_started(starts + 1)
        return now

    async def begin_era(self):
        """
        Called after the log has ended, before there is another one, with other messages than those that were known.

        Busy members may still have to write down what they had received.
        """
        await anyio.sleep(0.1)
        self.eras.append(monotonic())

    async def finish(self):
        """Let everybody publish what is pending and read to the end; check all; return what was found."""
        living = [member for member in self.members.values() if member.process.poll() is None]
        for member in living:
            member.go_on()
        for member in living:
            await member.wait_for("stopped")
        app = App()
        app.topic(f"{PLAIN}*")
        app.topic("*", history=1_000)
        app.hub.use(backplane_of(self.hub.url))
        async with app.running():
            for topic in sorted(self.topics):
                await app.publish(topic, END)
        for member in living:
            assert await member.wait() == 0, member.name
        records = {name: member.records for name, member in self.members.items()}
        return check(records, {member.name for member in living}, self.eras)

    def close(self):
        for member in self.members.values():
            member.close()


@asynccontextmanager
async def cluster(directory, **options):
    """Members with a hub process that is kept alive."""
    hub = HubHere(directory / "hub", **options)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub.keep)
            with closing(Cluster(directory, hub)) as made:
                yield made
            tasks.cancel_scope.cancel()
    finally:
        hub.close()


class Found(NamedTuple):
    """
    What was checked.

    Attributes:
        sent, acknowledged, delivered, told, resumed, recovered: How many there were.
        repeated: Messages that a reader got again in another era.
        told_plain: As ``told``, of topics without history.
        arrivals: By member: when messages arrived, and when they were published.
        failures: Of publishes: the exception's name, and how many seconds it took.
        lag: By member: the longest time that its event loop did not run, in ms.
        held: By member: the most CPU time between two looks at the clock in its event loop, in ms.
    """

    sent: int
    acknowledged: int
    delivered: int
    told: int
    resumed: int
    recovered: int
    repeated: int
    told_plain: int
    arrivals: dict
    failures: list
    lag: dict
    held: dict

    @property
    def longest_lag(self):
        return max(self.lag.values())

    def times_to_next(self, kills, *, of=max):
        """For each kill: how many ms it took until all members had a message that was published after it."""
        return [
            1000 * of(min(arrived for arrived, sent in each if sent > kill) - kill for each in self.arrivals.values())
            for kill in kills
        ]

    def times_to_live(self, times):
        """For each time: how many ms it took until all members got a message, whenever it was published."""
        return [
            1000 * max(min(arrived for arrived, _ in each if arrived > time) - time for each in self.arrivals.values())
            for time in times
        ]


def check(records_of, living, eras=()):
    """Raise if one of the invariants is not true."""
    log, sent, acknowledged, refused = defaultdict(Messages), {}, {}, set()
    arrivals, failures, lag, held = defaultdict(list), [], {}, {}
    # All that is known of the log: what was delivered anywhere, and what was acknowledged.
    for name, records in records_of.items():
        for kind, *record in records:
            if kind == "sent":
                assert record[1] not in sent
                sent[record[1]] = record[0]
            elif kind == "ack":
                topic, text, position, time = record
                acknowledged[text] = position
                if position is not None:
                    log[topic].add(position, text, bisect(eras, time))
            elif kind == "failed":
                topic, text, error, seconds = record
                failures.append((error, seconds))
                if error == "HubUnavailable":
                    refused.add(text)
            elif kind == "got":
                _, topic, text, position, time = record
                if position is not None:
                    log[topic].add(position, text, bisect(eras, time))
                if text != END:
                    arrivals[name].append((time, float(text.split()[1])))
            elif kind == "lag":
                lag[name], held[name] = record
    orders = {topic: messages.order() for topic, messages in log.items()}
    for topic, order in orders.items():
        assert all(sent.get(text, topic) == topic for text in order.texts)
        assert refused.isdisjoint(order.texts)
    readers = defaultdict(list)
    for name, records in records_of.items():
        for record in records:
            if record[0] in ("begin", "got", "told", "end"):
                readers[name, record[1], record[2]].append(record)
    counts = dict.fromkeys(("delivered", "told", "resumed", "recovered", "repeated", "told_plain"), 0)
    plain = defaultdict(list)
    for (name, reader, topic), records in readers.items():
        if topic.startswith(PLAIN):
            plain[topic].append((reader, records, name in living))
        else:
            _check_reader(reader, records, orders[topic], eras, counts, is_living=name in living)
    for topic, each in plain.items():
        texts = [text for text in acknowledged if sent[text] == topic]
        _check_plain(each, texts, refused, counts, has_eras=bool(eras))
    known = {text for order in orders.values() for text in order.texts}
    missing = [
        text for text, position in acknowledged.items()
        if position is None and text not in known and not sent[text].startswith(PLAIN)
    ]  # fmt: skip
    assert not missing
    return Found(len(sent), len(acknowledged), *counts.values(), dict(arrivals), failures, lag, held)


class Messages:
    """The messages of a topic, by position."""

    def __init__(self):
        self._found = {}

    def add(self, position, text, era):
        before, other = self._found.setdefault(position, (era, text))
        assert other == text, f"two messages at {position}"
        self._found[position] = min(era, before), text

    def order(self):
        return Order(sorted(((era, place_of(at)), text, at) for at, (era, text) in self._found.items()))


class Order:
    """
    The order of the messages of a topic.

    Attributes:
        texts: Theirs.
        numbers: By position: the number in the order.
    """

    def __init__(self, found):
        self._places = [place for place, _, _ in found]
        self.texts = [text for _, text, _ in found]
        self.numbers = {position: number for number, (_, _, position) in enumerate(found)}
        assert len(self._places) == len(set(self._places)), "two messages at one place"
        eras = {(era, text) for (era, _), text, _ in found}
        assert len(eras) == len(found), "a message is twice in the log"
        # Places that a later era uses again: by number.
        self._lost = set()
        newest = float("inf")
        for number in reversed(range(len(found))):
            era, place = self._places[number]
            if number + 1 < len(found) and self._places[number + 1][0] > era:
                newest = self._places[number + 1][1]
            if place >= newest:
                self._lost.add(number)

    def number_at(self, position, era):
        """The number of the last message up to a position that is named in an era."""
        known = self.numbers.get(position)
        return bisect(self._places, (era, place_of(position))) - 1 if known is None else known

    def era_of(self, number):
        return self._places[number][0]

    def is_lost(self, number, era):
        """Whether an era does not have a message of an earlier one."""
        return number in self._lost and self.era_of(number) < era

    def after(self, number, target):
        """The number of the message after another one, in the log that has ``target``."""
        number += 1
        while self.is_lost(number, self.era_of(target)):
            number += 1
        return number


def _check_reader(reader, records, order, eras, counts, *, is_living):
    newest = -1
    # The number up to which the reader has everything, or was told, and in which era that is so; ``None``: it was told,
    # and may miss any.
    has, since_era = None, 0
    texts = set()
    for kind, _, _, *record in records:
        if kind == "begin":
            since, recovered, position, time = record
            counts["resumed"] += since is not None
            counts["recovered"] += bool(recovered)
            since_era = bisect(eras, time)
            has = order.number_at(since if recovered else position, since_era)
            if recovered and since in order.numbers:
                # If that is lost meanwhile, the reader has to be told.
                since_era = order.era_of(has)
        elif kind == "got":
            counts["delivered"] += 1
            text, position, _ = record
            number = order.numbers[position]
            assert number > newest, f"{reader} has {text!r} twice, or out of order"
            if has is None or number > has:
                era = order.era_of(number)
                if has is not None:
                    assert since_era == era or not order.is_lost(has, era), f"{reader} misses a loss before {text!r}"
                    missed = number - order.after(has, number)
                    assert not missed, f"{reader} misses {missed} before {text!r}"
                has, since_era = number, era
            newest = number
            counts["repeated"] += text in texts
            texts.add(text)
        elif kind == "told":
            counts["told"] += 1
            has = None
    if is_living:
        assert order.texts[-1] == END, f"{reader} has not got to the end"
        assert newest == len(order.texts) - 1, f"{reader} has not got to the end"


def _check_plain(readers, acknowledged, refused, counts, *, has_eras):
    """
    Check the readers of a topic without history, whose messages have no positions.

    They have subscribed before the first message. One that was told, or has left, may miss what was published until
    then, or until it is back. Those that live got the last message.
    """
    known = set(acknowledged)
    for _, records, _ in readers:
        known.update(record[3] for record in records if record[0] == "got")
    known.discard(END)
    assert refused.isdisjoint(known)
    published = defaultdict(dict)
    for text in known:
        publisher, number, time = _parts_of(text)
        published[publisher][number] = time
    orders, repeated = [], set()
    for reader, records, is_living in readers:
        # By text: how often the reader had been told.
        seen, told = {}, 0
        newest, excused_until = defaultdict(int), float("-inf")

        def check_missed(publisher, until, reader=reader, newest=newest):
            missed = [
                number for number, time in published[publisher].items()
                if newest[publisher] < number < until and time > excused_until  # noqa: B023
            ]  # fmt: skip
            assert not missed, f"{reader} misses {missed} of {publisher}"

        for kind, *record in records:
            if kind == "told":
                counts["told_plain"] += 1
                told += 1
                excused_until = record[2]
            elif kind == "begin":
                excused_until = record[5]
            elif kind == "got":
                counts["delivered"] += 1
                if record[2] in seen:
                    assert has_eras, f"{reader} has {record[2]!r} twice"
                    assert seen[record[2]] < told, f"{reader} has {record[2]!r} twice, and was not told"
                    counts["repeated"] += 1
                    repeated.add(record[2])
                    continue
                seen[record[2]] = told
                if record[2] == END:
                    for publisher in published:
                        check_missed(publisher, float("inf"))
                    continue
                publisher, number, _ = _parts_of(record[2])
                assert number > newest[publisher], f"{reader} has {record[2]!r} out of order"
                check_missed(publisher, number)
                newest[publisher] = number
        assert not is_living or END in seen, f"{reader} has not got to the end"
        orders.append([*seen])
    for got in orders[1:]:
        shared = set(orders[0]).intersection(got) - repeated
        assert [text for text in got if text in shared] == [text for text in orders[0] if text in shared]


def _parts_of(text):
    """The publisher of a message, its number there, and when it was published."""
    name, time = text.split()[:2]
    publisher, _, number = name.rpartition(".")
    return publisher, int(number), float(time)


def describe(times):
    return f"median {statistics.median(times):.0f} ms, worst {max(times):.0f} ms"
