#!/usr/bin/env python
"""
Measures what carries published messages between workers, without their servers. See bench/README.md.

There is a hub process, and four processes that subscribe to one topic. One of them publishes.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import sys
import tempfile
import time

import uvloop
from sampling import Watch, wait_calm

from microws.hub.backplane import HISTORY_BYTES
from microws.interfaces import Payload
from microws.local.client import LocalBackplane
from microws.local.directory import HubDirectory, socket_path
from microws.local.hub_process import HubProcess

WORKERS = 4
BURST = 8  # messages after which the publisher yields, as a hub does
TASKS = 64

# By figure: what it is, and its goal. Of a rate more is better, of all others less.
GOALS = {
    "64 B": {"rate": 80_000, "hub": 4.0, "receiving": 1.5, "publishing": None},
    "1 KiB": {"rate": 40_000, "hub": None, "receiving": None, "publishing": None},
    "acknowledged, 1 task": {"p50": 150},
    f"acknowledged, {TASKS} tasks": {"rate": 50_000, "hub": None, "receiving": None, "publishing": None},
}
TITLES = {
    "rate": "messages/s",
    "hub": "CPU time of the hub process per message, µs",
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
        self.has_history = lambda topic: has_history
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
    """A forked process that runs a function. ``result`` waits for its end."""

    def __init__(self, function, *arguments):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            self._output = os.fdopen(reader)
            return
        try:
            os.write(writer, json.dumps(function(*arguments)).encode())
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(0)

    def result(self):
        with self._output:
            result = self._output.read()
        os.waitpid(self.pid, 0)
        return json.loads(result)

    def cpu_seconds(self):
        # Linux makes the clock of a process from its id: clock_getcpuclockid(3).
        return time.clock_gettime(~self.pid << 3 | 2)


def measure(publish, count, size):
    """
    Have one process publish ``count`` messages, which all receive.

    Args:
        publish: An async function with a backplane, the payload and the count. What it returns is added to the result.

    Returns:
        By name, what was measured.
    """
    directory = HubDirectory(tempfile.mkdtemp(), HISTORY_BYTES, is_temporary=True)
    control, of_hub = socket.socketpair()
    ready, start = os.pipe(), os.pipe()
    hub = Child(lambda: HubProcess(directory.listener, directory.log(), of_hub).run())

    async def work(is_publisher):
        receiver = Counter(count, has_history=publish is not publish_all)
        backplane = LocalBackplane(socket_path(directory.path))
        backplane.start(receiver)
        running = asyncio.create_task(backplane.run())
        await backplane.subscribe("topic")
        os.write(ready[1], b"r")
        os.read(start[0], 1)
        began, cpu = time.monotonic(), time.process_time()
        more = await publish(backplane, Payload("text", b"x" * size, "topic"), count) if is_publisher else {}
        await receiver.arrived.wait()
        figures = {"seconds": time.monotonic() - began, "cpu": (time.process_time() - cpu) / count * 1e6, **more}
        await backplane.aclose()
        running.cancel()
        return figures

    workers = [Child(lambda is_publisher: uvloop.run(work(is_publisher)), n == 0) for n in range(WORKERS)]
    for _ in workers:
        os.read(ready[0], 1)
    before = hub.cpu_seconds()
    os.write(start[1], b"s" * WORKERS)
    publishing, *receiving = [worker.result() for worker in workers]
    in_hub = hub.cpu_seconds() - before
    control.send(b"e")
    hub.result()
    directory.close()
    for end in (*ready, *start):
        os.close(end)
    control.close()
    of_hub.close()
    return publishing | {
        "rate": count / max(worker["seconds"] for worker in (publishing, *receiving)),
        "hub": in_hub / count * 1e6,
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


TESTS = {
    "64 B": (publish_all, 100_000, 64),
    "1 KiB": (publish_all, 50_000, 1024),
    "acknowledged, 1 task": (publish_alone, 2_000, 64),
    f"acknowledged, {TASKS} tasks": (publish_from_tasks, 50_048, 64),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("tests", nargs="*", metavar="TEST", help=f"some of {', '.join(map(repr, TESTS))} (all)")
    add("--rounds", type=int, default=5, help="a figure is the best of so many (%(default)s)")
    add("--no-wait", action="store_true", help="for a busy machine: do not wait for idle cores")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.tests if name not in TESTS]:
        parser.error(f"expected some of {', '.join(TESTS)}, got {', '.join(unknown)}")
    cores = sorted(os.sched_getaffinity(0))
    is_met = True
    for name in arguments.tests or TESTS:
        samples, foreign = [], []
        for _ in range(arguments.rounds):
            if not arguments.no_wait:
                wait_calm(cores)
            watch = Watch(cores, [])
            samples.append(measure(*TESTS[name]))
            foreign.append(watch.foreign())
        for figure, goal in GOALS[name].items():
            is_rate = figure == "rate"
            value = (max if is_rate else min)(sample[figure] for sample in samples)
            verdict = ""
            if goal is not None:
                is_good = value >= goal if is_rate else value <= goal
                is_met = is_met and is_good
                limit = "at least" if is_rate else "at most"
                verdict = f" ({'met' if is_good else '**MISSED**'}: {limit} {goal:,g})"
            digits = 0 if value >= 100 else 2
            print(f"- {name}, {TITLES[figure]}: {value:,.{digits}f}{verdict}", flush=True)
        print(f"  Other processes used {min(foreign):.0%} to {max(foreign):.0%} of a core meanwhile.", flush=True)
    if not is_met:
        sys.exit(1)


if __name__ == "__main__":
    main()
