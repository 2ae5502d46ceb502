#!/usr/bin/env python
"""
Measures what carries published messages between workers, without their servers. See bench/README.md.

There is a hub process or a Redis server, and processes that subscribe to one topic. One of them publishes.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import carriers
import uvloop
from sampling import Watch, wait_calm

from microws.hub import TopicSettings
from microws.hub.backplane import HISTORY_BYTES
from microws.interfaces import Payload
from microws.local.client import LocalBackplane
from microws.local.directory import HubDirectory, socket_path
from microws.local.hub_process import HubProcess

WORKERS = 4
BURST = 8  # messages after which the publisher yields, as a hub does
TASKS = 64
TIME_LIMIT = 60  # seconds, for one round
# Others over Redis, and how many times their messages per second microws is to carry.
PEERS = {
    "Litestar channels": carriers.Litestar,
    "Litestar channels with history": carriers.LitestarStream,
    "channels_redis": carriers.Channels,
    "python-socketio": carriers.SocketIO,
    "broadcaster": carriers.Broadcaster,
}
AHEAD = 5

# By figure: what it is, and its goal. Of a rate more is better, of all others less.
GOALS = {
    "64 B": {"rate": 80_000, "hub": 4.0, "receiving": 1.5, "publishing": None},
    "1 KiB": {"rate": 40_000, "hub": None, "receiving": None, "publishing": None},
    "acknowledged, 1 task": {"p50": 150},
    f"acknowledged, {TASKS} tasks": {"rate": 50_000, "hub": None, "receiving": None, "publishing": None},
    "Redis": {"rate": 50_000, "hub": 10.0, "receiving": 2.0, "publishing": None},
    "Redis, 1 task": {"p50": None},
    **{name: {"rate": None, "hub": None, "receiving": None, "publishing": None} for name in PEERS},
}
TITLES = {
    "rate": "messages/s",
    "hub": "CPU time of the hub process, or of Redis, per message, µs",
    "receiving": "CPU time of a receiving process per message, µs",
    "publishing": "CPU time of the publishing process per message, µs",
    "p50": "median time of a publish, µs",
}


class Counter:
    """Stands for the hub of a worker."""

    is_busy = False

    def __init__(self, awaited, *, has_history):
        self.count = 0
        self.awaited = awaited
        self.settings = lambda topic: TopicSettings(history=int(has_history))
        self.arrived = asyncio.Event()

    def deliver(self, payload, skip=None, entry=None):
        self.count += 1
        if self.count == self.awaited:
            self.arrived.set()
        return 1

    def reach(self, topic, skip):
        return 1

    def lose(self, topics=None):
        sys.exit("messages were lost")


class Child:
    """A forked process that calls a function with this object."""

    def __init__(self, function):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            self._output = os.fdopen(reader)
            return
        self._input = writer
        try:
            function(self)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(0)

    def tell(self, message):
        """Called in the process."""
        os.write(self._input, json.dumps(message).encode() + b"\n")

    def next_message(self):
        """What the process tells next. Raises if it has ended instead."""
        return json.loads(self._output.readline() or sys.exit("a process ended early"))

    def wait(self):
        self._output.close()
        os.waitpid(self.pid, 0)

    def cpu_seconds(self):
        return cpu_seconds_of(self.pid)


def cpu_seconds_of(pid):
    # Linux makes the clock of a process from its id: clock_getcpuclockid(3).
    return time.clock_gettime(~pid << 3 | 2)


async def work(child, backplane, start, test, *, is_publisher):
    """Subscribe, say so, wait for the end of the pipe ``start``, then publish or not, and receive all messages."""
    receiver = Counter(test.count, has_history=test.has_history)
    backplane.start(receiver)
    async with asyncio.timeout(TIME_LIMIT), asyncio.TaskGroup() as tasks:
        running = None if test.peer else tasks.create_task(backplane.run())
        await backplane.subscribe("topic")
        child.tell("ready")
        os.read(start, 1)
        began, cpu = time.monotonic(), time.process_time()
        payload = Payload("text", b"x" * test.size, "topic")
        more = await test.publish(backplane, payload, test.count) if is_publisher else {}
        await receiver.arrived.wait()
        used = time.process_time() - cpu
        child.tell({"seconds": time.monotonic() - began, "cpu": used / test.count * 1e6, **more})
        await backplane.aclose()
        if running:
            running.cancel()
    if test.peer:
        os._exit(0)  # their tasks run on


class LocalHub:
    """A hub process, with its log in the new directory ``path``."""

    def __init__(self, path):
        self._path = path
        self._directory = HubDirectory(path, HISTORY_BYTES, is_temporary=True)
        self._control, of_hub = socket.socketpair()

        def run(_):
            self.leave()  # so that the hub ends if this process does
            HubProcess(self._directory.listener, self._directory.log(), of_hub).run()

        self._process = Child(run)
        of_hub.close()
        self.cpu_seconds = self._process.cpu_seconds

    def leave(self):
        """Called in a forked process."""
        self._control.close()

    def backplane(self, test):
        return LocalBackplane(socket_path(self._directory.path))

    def close(self):
        self._control.send(b"e")
        self._process.wait()
        self._directory.close()
        self._control.close()


class RedisHub:
    """A Redis server that writes nothing to disk."""

    def __init__(self, path):
        Path(path).mkdir()
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self._port = sock.getsockname()[1]
        options = ("--port", str(self._port), "--save", "", "--dir", path, "--loglevel", "warning")
        self._process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        end = time.monotonic() + TIME_LIMIT
        while True:
            with socket.socket() as sock:
                if not sock.connect_ex(("127.0.0.1", self._port)):
                    break
            if time.monotonic() > end:
                sys.exit("redis-server does not start")
            time.sleep(0.02)
        self._url = f"redis://127.0.0.1:{self._port}"

    def leave(self):
        """Called in a forked process."""

    def backplane(self, test):
        if test.peer:
            return test.peer(self._url)
        from microws.redis_hub.backplane import RedisBackplane

        return RedisBackplane(self._url)

    def cpu_seconds(self):
        return cpu_seconds_of(self._process.pid)

    def close(self):
        self._process.kill()
        self._process.wait()


def measure(test, path, count):
    """Have one of ``count`` processes publish what all get, with a hub that uses ``path``. Returns figures by name."""
    hub = test.hub(path)
    start, end_of_start = os.pipe()

    def run_worker(child, is_publisher):
        hub.leave()
        os.close(end_of_start)
        uvloop.run(work(child, hub.backplane(test), start, test, is_publisher=is_publisher))

    workers = [Child(lambda child, n=n: run_worker(child, n == 0)) for n in range(count)]
    for worker in workers:
        worker.next_message()
    before = hub.cpu_seconds()
    os.close(end_of_start)
    publishing, *receiving = [worker.next_message() for worker in workers]
    in_hub = hub.cpu_seconds() - before
    for worker in workers:
        worker.wait()
    hub.close()
    os.close(start)
    return publishing | {
        "rate": test.count / max(worker["seconds"] for worker in (publishing, *receiving)),
        "hub": in_hub / test.count * 1e6,
        "publishing": publishing["cpu"],
        "receiving": statistics.mean(worker["cpu"] for worker in receiving),
    }


async def publish_all(backplane, payload, count):
    for number in range(count):
        await backplane.publish(payload)
        if number % BURST == BURST - 1:
            await asyncio.sleep(0)
    return {}


async def publish_alone(backplane, payload, count):
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await backplane.publish(payload, has_history=True)
        times.append(time.perf_counter() - began)
    return {"p50": statistics.median(times) * 1e6}


async def publish_from_tasks(backplane, payload, count):
    async def publish():
        for _ in range(count // TASKS):
            await backplane.publish(payload, has_history=True)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(TASKS):
            tasks.create_task(publish())
    return {}


class Test(NamedTuple):
    """
    What is published.

    Attributes:
        publish: An async function with a backplane, a payload and the count. What it returns is added to the figures.
        count: Of the messages.
        size: Of each in bytes.
        has_history: Whether the topic has history.
        hub: A function of a path that starts what carries it.
        peer: What is used in place of microws.
    """

    publish: Callable
    count: int
    size: int = 64
    has_history: bool = False
    hub: Callable = LocalHub
    peer: Callable | None = None


TESTS = {
    "64 B": Test(publish_all, 100_000),
    "1 KiB": Test(publish_all, 50_000, 1024),
    "acknowledged, 1 task": Test(publish_alone, 2_000, has_history=True),
    f"acknowledged, {TASKS} tasks": Test(publish_from_tasks, 50_048, has_history=True),
    "Redis": Test(publish_from_tasks, 50_048, has_history=True, hub=RedisHub),
    "Redis, 1 task": Test(publish_alone, 2_000, has_history=True, hub=RedisHub),
    **{
        name: Test(publish_from_tasks, 6_400, has_history=True, hub=RedisHub, peer=peer) for name, peer in PEERS.items()
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("tests", nargs="*", metavar="TEST", help=f"some of {', '.join(map(repr, TESTS))} (all)")
    add("--rounds", type=int, default=5, help="a figure is the best of so many (%(default)s)")
    add("--workers", type=int, default=WORKERS, metavar="N", help="processes that subscribe, from 2 on (%(default)s)")
    add("--no-wait", action="store_true", help="for a busy machine: do not wait for idle cores")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.tests if name not in TESTS]:
        parser.error(f"expected some of {', '.join(TESTS)}, got {', '.join(unknown)}")
    cores = sorted(os.sched_getaffinity(0))
    is_met = True
    rates = {}
    for name in arguments.tests or TESTS:
        samples, foreign = [], []
        for _ in range(arguments.rounds):
            if not arguments.no_wait:
                wait_calm(cores)
            watch = Watch(cores, [])
            with tempfile.TemporaryDirectory() as parent:
                samples.append(measure(TESTS[name], f"{parent}/hub", arguments.workers))
            foreign.append(watch.foreign())
        for figure, goal in GOALS[name].items():
            is_rate = figure == "rate"
            value = (max if is_rate else min)(sample[figure] for sample in samples)
            verdict = ""
            if is_rate:
                rates[name] = value
                if name in PEERS and "Redis" in rates:
                    goal = rates["Redis"] / AHEAD
            if goal is not None:
                is_good = value >= goal if is_rate and name not in PEERS else value <= goal
                is_met = is_met and is_good
                limit = "at least" if is_rate and name not in PEERS else "at most"
                verdict = f" ({'met' if is_good else '**MISSED**'}: {limit} {goal:,g})"
            digits = 0 if value >= 100 else 2
            print(f"- {name}, {TITLES[figure]}: {value:,.{digits}f}{verdict}", flush=True)
        print(f"  Other processes used {min(foreign):.0%} to {max(foreign):.0%} of a core meanwhile.", flush=True)
    if not is_met:
        sys.exit(1)


if __name__ == "__main__":
    main()
