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
        name: Of the suite in ``SUITES``.
        contenders, tests: Names out of this suite.
        rounds: How often each contender is started anew.
        slices: In how many samples a rate is measured in one round. All have their turn before the next slice.
        seconds: Length of all slices of a round together.
        together: Whether all contenders are under load at once, so that whatever disturbs one disturbs all.
        waits: Whether samples wait until the cores are calm, and are repeated when they were disturbed.
        server_pin, client_pin: Where they run.
        before: The checkout in which the contender ``before`` is started.
        out: Open file for the records, one JSON object a line.
    """

    def __init__(
        self, *, name, contenders, tests, rounds, slices, seconds, together, waits, server_pin, client_pin, before, out
    ):
        self._name = name
        self._known = SUITES[name].contenders
        self._contenders = contenders
        self._tests = tests
        self._rounds = rounds
        self._slices = slices
        self._seconds = seconds
        self._together = together
        self._waits = waits
        self._server_pin = server_pin
        self._client_pin = client_pin
        self._before = before
        self._cores = (server_pin.core, client_pin.core)
        self._out = out
        self._turns = 0
        self.records = []

    def run(self):
        self._record(
            type="run",
            suite=self._name,
            contenders=self._contenders,
            tests=self._tests,
            rounds=self._rounds,
            slices=self._slices,
            seconds=self._seconds,
            together=self._together,
            time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            versions=versions(self._known[name] for name in self._contenders),
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            commit=commit(),
        )
        for round_ in range(1, self._rounds + 1):
            with ExitStack() as stack:
                servers = self._start_all(round_, stack)
                for test in self._tests:
                    # The heap that a first sample leaves behind would hide the memory of a second one.
                    measure = MEASURES[test]
                    slices = 1 if measure.kind == "memory" else self._slices * measure.weight
                    for slice_ in range(1, slices + 1):
                        self._measure_all(round_, slice_, test, servers)

    def _start_all(self, round_, stack):
        """Those that start, by name; the others are recorded."""
        servers = {}
        for name in self._contenders:
            directory = self._before if name == "before" else HERE.parent
            try:
                server = Server(
                    self._known[name].command,
                    pin=self._server_pin,
                    log_path=RESULTS / f"{name}.log",
                    directory=directory,
                )
                stack.callback(server.stop)
                server.wait_ready()
            except ServerError as error:
                print(f"{name} does not start: {error}", file=sys.stderr)
                self._record(type="start", round=round_, contender=name, error=str(error))
            else:
                servers[name] = server
        return servers

    def _measure_all(self, round_, slice_, test, servers):
        """One sample of each contender, who take turns at being the first."""
        names = [name for name in servers if test in (self._known[name].tests or self._tests)]
        if not names:
            return
        measure = MEASURES[test]
        print(f"round {round_}/{self._rounds}  {test:<10}{slice_:<2}", end="", flush=True)
        self._wait_calm()
        self._turns += 1
        # Each comes first as often as last, where for a moment it has the core for itself.
        first = self._turns % len(names)
        names = names[first:] + names[:first]
        at_once = self._together and measure.kind == "rate"
        for group in [names] if at_once else [[name] for name in names]:
            for name, sample in self._take(measure, group, servers).items():
                figure = f"{sample['figure']:,}" if "figure" in sample else sample["error"]
                mark = "~" if sample["foreign"] > FOREIGN_LIMIT else " "
                print(f"  {name} {mark}{figure}", end="", flush=True)
                self._record(type="sample", round=round_, slice=slice_, measure=test, contender=name, **sample)
        print()

    def _take(self, measure, group, servers):
        """One sample of each contender in the group, by its name: an undisturbed one, or else the least disturbed."""
        if measure.kind == "memory":
            return self._watched(self._memory, measure, group, servers)
        attempts = []
        while len(attempts) < (ATTEMPTS if self._waits else 1):
            samples = self._watched(self._rates, measure, group, servers)
            foreign = max(sample["foreign"] for sample in samples.values())
            if foreign <= FOREIGN_LIMIT:
                return samples
            attempts.append((any("error" in sample for sample in samples.values()), foreign, samples))
        return min(attempts, key=lambda attempt: attempt[:2])[2]

    def _watched(self, take, measure, group, servers):
        watch = Watch(self._cores, servers.values())
        try:
            samples = take(measure, {name: servers[name] for name in group})
        except ServerError as error:
            samples = {name: {"error": str(error)} for name in group}
        foreign = watch.foreign()
        for name in group:
            servers[name].wait_idle()
        return {name: {**sample, "foreign": foreign} for name, sample in samples.items()}

    def _rates(self, measure, group):
        """How much each server does in a second of its CPU time, or how long; all of them under load at once."""
        pin = self._client_pin
        seconds = measure.seconds or self._seconds / self._slices
        times = ["-t", seconds * len(group), "-w", WARM_UP * len(group)]
        clients = {}
        for name, server in group.items():
            options = [*self._options(name, measure), *times]
            options += [option for pid in server.pids() for option in ("-P", pid)]
            clients[name] = start_loadgen(measure.mode, server, pin=pin, options=options)
        samples = {name: finish_loadgen(client) for name, client in clients.items()}
        for sample in samples.values():
            if "error" not in sample:
                sample["figure"] = figure_of(measure, sample)
        return samples

    def _options(self, name, measure):
        """For the load generator; of an option that is given twice the last one counts."""
        return [*measure.options, *self._known[name].options.get(measure.mode, ())]

    def _memory(self, measure, group):
        """KiB by which the server's resident memory grows, per connection, once a few have warmed it up."""
        [(name, server)] = group.items()
        warm_up = ["-u", "/echo", "-c", 8, "-t", 0.3, "-w", 0]
        run_loadgen("connect", server, pin=self._client_pin, options=warm_up)
        before = self._settled_memory(server)
        sample = run_loadgen(
            measure.mode,
            server,
            pin=self._client_pin,
            options=self._options(name, measure),
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
        if self._waits:
            wait_calm(self._cores)

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
    What ``text`` asks for, in the order of ``known``.

    Args:
        text: Comma-separated names; without any, all but those of ``on_request``.
    """
    if not text:
        return [name for name in known if name not in on_request]
    asked = text.split(",")
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"expected some of {', '.join(known)}, got {', '.join(unknown)}")
    return [name for name in known if name in asked]


def core_pair(text):
    """An argparse type: two different cores that this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    cores = [int(core) for core in text.split(",") if core.isdecimal()]
    if len(cores) != 2 or cores[0] == cores[1] or not set(cores) <= set(usable):
        raise argparse.ArgumentTypeError(f"expected two different ones of {usable}, such as 0,1, got {text}")
    return cores


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--suite", choices=SUITES, default="framework", help="what is compared (%(default)s)")
    add("--rounds", type=int, default=3, help="each with fresh servers (%(default)s)")
    add("--slices", type=int, help="samples of each rate in a round (6; of servers and peers 2)")
    add("--seconds", type=float, help="all slices of a round together (3; of servers 1, of peers 2)")
    add("--together", action="store_true", help="rates of all contenders at once, as the framework suite always has")
    add("--no-wait", action="store_true", help="for a busy machine: wait for no calm, repeat no sample; rough figures")
    add("--only", metavar="CONTENDER,…", help="of the suite; an unknown one prints them all")
    add("--tests", metavar="TEST,…", help="of the suite; an unknown one prints them all")
    add("--before", metavar="DIR", type=Path, help="checkout of an earlier commit, for the contender `before`")
    add("--cores", type=core_pair, default="0,1", help="the server's and the client's (%(default)s)")
    add("--nice", type=int, default=0, help="of server and client; below 0 needs root (%(default)s)")
    arguments = parser.parse_args()
    suite = SUITES[arguments.suite]
    arguments.slices = arguments.slices or suite.slices
    arguments.seconds = arguments.seconds or suite.seconds
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
    server_core, client_core = arguments.cores
    build()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the servers are stopped, too
    Pin(client_core)()
    sys.path.insert(0, str(HERE.parent))
    RESULTS.mkdir(exist_ok=True)
    for log in RESULTS.glob("*.log"):
        log.unlink()
    path = RESULTS / time.strftime("%Y%m%d-%H%M%S.jsonl")
    with path.open("w") as out:
        bench = Bench(
            name=arguments.suite,
            contenders=arguments.only,
            tests=arguments.tests,
            rounds=arguments.rounds,
            slices=arguments.slices,
            seconds=arguments.seconds,
            server_pin=Pin(server_core, arguments.nice),
            client_pin=Pin(client_core, arguments.nice),
            together=arguments.together or SUITES[arguments.suite].together,
            waits=not arguments.no_wait,
            before=arguments.before,
            out=out,
        )
        bench.run()
    print(f"\n{render(bench.records)}\n\nRaw results: {path}")
    judged = {goal.contender for goal in SUITES[arguments.suite].goals}
    if any("error" in record and record["contender"] in judged for record in bench.records):
        sys.exit(1)


if __name__ == "__main__":
    main()
