#!/usr/bin/env python
"""Compares microws with frameworks on one server, with other servers, or with other fan-outs. See bench/README.md."""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from report import FOREIGN_LIMIT, render
from sampling import Pin, Server, ServerError, Watch, build, finish_loadgen, run_loadgen, start_loadgen, wait_calm
from suites import MEASURES, SUITES

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
ATTEMPTS = 3
WARM_UP = 0.1  # seconds before each sample, for each server that shares the core


class Bench:
    """
    One run.

    Args:
        options: The parsed command line. Each slice of a round measures every contender once. ``together`` puts all
            contenders under load at once, so that a disturbance affects all of them.
        out: Open file for the records, one JSON object a line.
    """

    def __init__(self, options, out):
        self._options = options
        self._known = SUITES[options.suite].contenders
        self._server_pin, self._client_pin = (Pin(core, options.nice) for core in options.cores)
        self._out = out
        self._turns = 0
        self.records = []

    def run(self):
        options = self._options
        self._record(
            type="run",
            suite=options.suite,
            contenders=options.only,
            tests=options.tests,
            rounds=options.rounds,
            slices=options.slices,
            seconds=options.seconds,
            together=options.together,
            time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            versions=versions(self._known[name] for name in options.only),
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            commit=commit(),
        )
        for round_ in range(1, options.rounds + 1):
            with ExitStack() as stack:
                servers = self._start_all(round_, stack)
                for test in options.tests:
                    # The heap that a first sample leaves behind would hide the memory of a second one.
                    measure = MEASURES[test]
                    slices = 1 if measure.kind == "memory" else options.slices * measure.weight
                    for slice_ in range(1, slices + 1):
                        self._measure_all(round_, slice_, test, servers)

    def _start_all(self, round_, stack):
        """Start all contenders; return those that started, by name, and record the errors of the others."""
        servers = {}
        for name in self._options.only:
            directory = self._options.before if name == "before" else HERE.parent
            try:
                server = Server(
                    self._known[name].command,
                    pin=self._server_pin,
                    log_path=RESULTS / f"{name}.log",
                    directory=directory,
                )
                stack.callback(server.stop)
                server.wait_ready()
                server.wait_idle()  # all of its processes have started
            except ServerError as error:
                print(f"{name} does not start: {error}", file=sys.stderr)
                self._record(type="start", round=round_, contender=name, error=str(error))
            else:
                servers[name] = server
        return servers

    def _measure_all(self, round_, slice_, test, servers):
        """Take one sample of each contender; a different one is the first each time."""
        names = [name for name in servers if test in (self._known[name].tests or self._options.tests)]
        if not names:
            return
        measure = MEASURES[test]
        print(f"round {round_}/{self._options.rounds}  {test:<10}{slice_:<2}", end="", flush=True)
        self._wait_calm()
        self._turns += 1
        # The last one of a group has the core for itself for a moment: each contender is last equally often.
        first = self._turns % len(names)
        names = names[first:] + names[:first]
        at_once = self._options.together and measure.kind == "rate"
        for group in [names] if at_once else [[name] for name in names]:
            for name, sample in self._take(measure, group, servers).items():
                figure = f"{sample['figure']:,}" if "figure" in sample else sample["error"]
                mark = "~" if sample["foreign"] > FOREIGN_LIMIT else " "
                print(f"  {name} {mark}{figure}", end="", flush=True)
                self._record(type="sample", round=round_, slice=slice_, measure=test, contender=name, **sample)
        print()

    def _take(self, measure, group, servers):
        """Take one sample of each contender in the group, by name; repeat disturbed ones, keep the least disturbed."""
        if measure.kind == "memory":
            return self._watched(self._memory, measure, group, servers)
        attempts = []
        while len(attempts) < (1 if self._options.no_wait else ATTEMPTS):
            samples = self._watched(self._rates, measure, group, servers)
            foreign = max(sample["foreign"] for sample in samples.values())
            if foreign <= FOREIGN_LIMIT:
                return samples
            attempts.append((any("error" in sample for sample in samples.values()), foreign, samples))
        return min(attempts, key=lambda attempt: attempt[:2])[2]

    def _watched(self, take, measure, group, servers):
        watch = Watch(self._options.cores, servers.values())
        try:
            samples = take(measure, {name: servers[name] for name in group})
        except ServerError as error:
            samples = {name: {"error": str(error)} for name in group}
        foreign = watch.foreign()
        for name in group:
            servers[name].wait_idle()
        return {name: {**sample, "foreign": foreign} for name, sample in samples.items()}

    def _rates(self, measure, group):
        """Measure the group under load at once: rates per second of each server's CPU time, or latencies."""
        pin = self._client_pin
        seconds = measure.seconds or self._options.seconds / self._options.slices
        times = ["-t", seconds * len(group), "-w", WARM_UP * len(group)]
        clients = {}
        for name, server in group.items():
            options = [*self._loadgen_options(name, measure), *times]
            options += [option for pid in server.pids() for option in ("-P", pid)]
            clients[name] = start_loadgen(measure.mode, server, pin=pin, options=options)
        samples = {name: finish_loadgen(client) for name, client in clients.items()}
        for sample in samples.values():
            if "error" not in sample:
                sample["figure"] = figure_of(measure, sample)
        return samples

    def _loadgen_options(self, name, measure):
        """Options of the load generator; if one is given twice, the last one wins."""
        return [*measure.options, *self._known[name].options.get(measure.mode, ())]

    def _memory(self, measure, group):
        """Measure how many KiB the server's resident memory grows per connection, after a warm-up of a few."""
        [(name, server)] = group.items()
        warm_up = ["-u", "/echo", "-c", 8, "-t", 0.3, "-w", 0]
        run_loadgen("connect", server, pin=self._client_pin, options=warm_up)
        before = self._settled_memory(server)
        sample = run_loadgen(
            measure.mode,
            server,
            pin=self._client_pin,
            options=self._loadgen_options(name, measure),
            while_holding=lambda: self._settled_memory(server),
        )
        if "error" not in sample:
            sample["figure"] = round((sample.pop("held") - before) / sample["connections"], 2)
        return {name: sample}

    def _settled_memory(self, server):
        self._wait_calm()
        server.wait_idle()
        return server.resident_kib()

    def _wait_calm(self):
        if not self._options.no_wait:
            wait_calm(self._options.cores)

    def _record(self, **record):
        self.records.append(record)
        self._out.write(json.dumps(record) + "\n")
        self._out.flush()


def figure_of(measure, sample):
    if measure.kind == "latency":
        return round(sample["p99_us"] / 1000, 3)
    return round(sample[measure.counted] * measure.scale / sample["server_cpu_s"], 1)


def versions(contenders):
    found = {platform.python_implementation(): platform.python_version()}
    return found | {package: version_of(package) for contender in contenders for package in contender.packages}


def version_of(package):
    try:
        if package in ("node", "cc"):
            command = [package, "--version"]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            return printed.splitlines()[0].split()[-1]
        if package == "ws":
            return json.loads((HERE / "apps/node_ws/node_modules/ws/package.json").read_text())["version"]
        return version(package)
    except (OSError, PackageNotFoundError):
        return "not installed"


def commit():
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def selection(text, known, on_request):
    """
    The names in ``text``, in the order of ``known``.

    Args:
        text: Comma-separated names; empty: all except ``on_request``.
    """
    if not text:
        return [name for name in known if name not in on_request]
    asked = text.split(",")
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"expected some of {', '.join(known)}, got {', '.join(unknown)}")
    return [name for name in known if name in asked]


def core_pair(text):
    """An argparse type: two different cores that this process may use, such as ``0,1``."""
    usable = sorted(os.sched_getaffinity(0))
    cores = [int(core) for core in text.split(",") if core.isdecimal()]
    if len(cores) != 2 or cores[0] == cores[1] or not set(cores) <= set(usable):
        raise argparse.ArgumentTypeError(f"expected two different cores of {usable}, such as 0,1, got {text}")
    return cores


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--suite", choices=SUITES, default="framework", help="what to compare (%(default)s)")
    add("--rounds", type=int, default=3, help="rounds, each with new servers (%(default)s)")
    add("--slices", type=int, help="samples of each rate in a round; default: by suite")
    add("--seconds", type=float, help="length of all slices of a round together; default: by suite")
    add("--together", action="store_true", help="put all contenders under load at once, as the framework suite does")
    add("--no-wait", action="store_true", help="for a busy machine: do not wait for idle cores, repeat no sample")
    add("--only", metavar="CONTENDER,…", help="default: all of the suite; an unknown name prints them")
    add("--tests", metavar="TEST,…", help="default: all of the suite; an unknown name prints them")
    add("--before", metavar="DIR", type=Path, help="checkout of an earlier commit, of the contender `before`")
    add("--cores", type=core_pair, default="0,1", help="core of the server, core of the client (%(default)s)")
    add("--nice", type=int, default=0, help="niceness of server and client; below 0 needs root (%(default)s)")
    arguments = parser.parse_args()
    suite = SUITES[arguments.suite]
    arguments.slices = arguments.slices or suite.slices
    arguments.seconds = arguments.seconds or suite.seconds
    arguments.together = arguments.together or suite.together
    try:
        arguments.only = selection(arguments.only, suite.contenders, suite.on_request)
        arguments.tests = selection(arguments.tests, suite.tests, suite.on_request)
    except ValueError as error:
        parser.error(str(error))
    if "before" in arguments.only and not arguments.before:
        parser.error("the contender `before` needs --before DIR")
    return arguments


def main():
    if not sys.platform.startswith("linux"):
        sys.exit("bench/run.py needs Linux: it pins processes to cores and reads /proc")
    arguments = parse_arguments()
    build()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # an exception, so that the servers are stopped too
    Pin(arguments.cores[1])()
    sys.path.insert(0, str(HERE.parent))
    RESULTS.mkdir(exist_ok=True)
    for log in RESULTS.glob("*.log"):
        log.unlink()
    path = RESULTS / time.strftime("%Y%m%d-%H%M%S.jsonl")
    with path.open("w") as out:
        bench = Bench(arguments, out)
        bench.run()
    print(f"\n{render(bench.records)}\n\nRaw results: {path}")
    judged = {goal.contender for goal in SUITES[arguments.suite].goals}
    if any("error" in record and record["contender"] in judged for record in bench.records):
        sys.exit(1)


if __name__ == "__main__":
    main()
