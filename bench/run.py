#!/usr/bin/env python
"""Measures a bare ASGI app, microws, Starlette and Quart on the same Hypercorn. See README.md beside this file."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from report import FOREIGN_LIMIT, MEASURES, render
from sampling import Pin, Server, ServerError, Watch, build_loadgen, run_loadgen, wait_calm

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
APPS = {"bare": "bare", "microws": "microws_app", "starlette": "starlette_app", "quart": "quart_app"}
ATTEMPTS = 3
WARM_UP = 0.1  # seconds before each sample


class Bench:
    """
    One run.

    Args:
        apps, tests: Names out of ``APPS`` and ``MEASURES``.
        rounds: How often each app gets a fresh server.
        slices: In how many samples a rate is measured in one round. All apps have their turn before the next slice.
        seconds: Length of all slices of a round together.
        server_pin, client_pin: Where they run.
        out: Open file for the records, one JSON object a line.
    """

    def __init__(self, *, apps, tests, rounds, slices, seconds, server_pin, client_pin, out):
        self._apps = apps
        self._tests = tests
        self._rounds = rounds
        self._slices = slices
        self._seconds = seconds
        self._server_pin = server_pin
        self._client_pin = client_pin
        self._cores = (server_pin.core, client_pin.core)
        self._out = out
        self._turns = 0
        self.records = []

    def run(self):
        self._record(
            type="run",
            apps=self._apps,
            tests=self._tests,
            rounds=self._rounds,
            slices=self._slices,
            seconds=self._seconds,
            time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            versions=versions(self._apps),
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            commit=commit(),
        )
        for round_ in range(1, self._rounds + 1):
            with ExitStack() as stack:
                servers = {app: self._start(app, stack) for app in self._apps}
                for server in servers.values():
                    server.wait_ready()
                for test in self._tests:
                    # The heap that a first sample leaves behind would hide the memory of a second one.
                    slices = 1 if MEASURES[test].less_is_better else self._slices
                    for slice_ in range(1, slices + 1):
                        self._measure_all(round_, slice_, test, servers)

    def _start(self, app, stack):
        server = Server(APPS[app], pin=self._server_pin, log_path=RESULTS / f"{app}.log")
        stack.callback(server.stop)
        return server

    def _measure_all(self, round_, slice_, test, servers):
        """One sample of each app; every second time in reverse order."""
        measure = MEASURES[test]
        print(f"round {round_}/{self._rounds}  {test:<8}{slice_:<2}", end="", flush=True)
        wait_calm(self._cores)
        self._turns += 1
        for app in self._apps if self._turns % 2 else self._apps[::-1]:
            if measure.less_is_better:
                sample = self._watched(self._memory, measure, app, servers)
            else:
                sample = self._undisturbed_rate(measure, app, servers)
            figure = f"{sample['figure']:,.1f}" if "figure" in sample else sample["error"]
            mark = "~" if sample["foreign"] > FOREIGN_LIMIT else " "
            print(f"  {app} {mark}{figure}", end="", flush=True)
            self._record(type="sample", round=round_, slice=slice_, measure=test, app=app, **sample)
        print()

    def _undisturbed_rate(self, measure, app, servers):
        """A rate that nobody disturbed; else the least disturbed one of ``ATTEMPTS``."""
        samples = []
        while len(samples) < ATTEMPTS:
            sample = self._watched(self._rate, measure, app, servers)
            if sample["foreign"] <= FOREIGN_LIMIT:
                return sample
            samples.append(sample)
        return min(samples, key=lambda sample: ("error" in sample, sample["foreign"]))

    def _watched(self, take_sample, measure, app, servers):
        watch = Watch(self._cores, servers.values())
        sample = take_sample(measure, servers[app])
        return sample | {"foreign": watch.foreign()}

    def _rate(self, measure, server):
        """How much the server does in a second of its CPU time."""
        options = [*measure.options, "-t", self._seconds / self._slices, "-w", WARM_UP, "-P", server.pid]
        sample = run_loadgen(measure.mode, server, pin=self._client_pin, options=options)
        if "error" not in sample:
            sample["figure"] = round(sample["count"] / sample["server_cpu_s"], 1)
        return sample

    def _memory(self, measure, server):
        """KiB by which the server's resident memory grows, per connection, once a few have warmed it up."""
        warm_up = ["-u", "/echo", "-c", 8, "-t", 0.3, "-w", 0]
        run_loadgen("connect", server, pin=self._client_pin, options=warm_up)
        before = self._settled_memory(server)
        sample = run_loadgen(
            measure.mode,
            server,
            pin=self._client_pin,
            options=measure.options,
            while_holding=lambda: self._settled_memory(server),
        )
        if "error" not in sample:
            sample["figure"] = round((sample.pop("held") - before) / sample["connections"], 2)
        return sample

    def _settled_memory(self, server):
        wait_calm(self._cores)
        return server.resident_kib()

    def _record(self, **record):
        self.records.append(record)
        self._out.write(json.dumps(record) + "\n")
        self._out.flush()


def versions(apps):
    found = {platform.python_implementation(): platform.python_version()}
    for package in ["hypercorn", "h11", "wsproto", *(app for app in apps if app not in ("bare", "microws"))]:
        found[package] = version(package)
    if "microws" in apps:
        import microws

        found["microws"] = microws.__version__
    return found


def commit():
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def selection(known):
    """An argparse type: comma-separated names, returned in the order of ``known``."""

    def parse(text):
        asked = text.split(",")
        if unknown := [name for name in asked if name not in known]:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {', '.join(unknown)}")
        return [name for name in known if name in asked]

    return parse


def core_pair(text):
    """An argparse type: two different cores that this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    cores = [int(core) for core in text.split(",") if core.isdecimal()]
    if len(cores) != 2 or cores[0] == cores[1] or not set(cores) <= set(usable):
        raise argparse.ArgumentTypeError(f"expected two different ones of {usable}, such as 0,1, got {text}")
    return cores


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    default_tests = ",".join(key for key, measure in MEASURES.items() if measure.in_default)
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="each with fresh servers (%(default)s)")
    add("--slices", type=int, default=6, help="samples of each rate in a round (%(default)s)")
    add("--seconds", type=float, default=3, help="all slices of a round together (%(default)s)")
    add("--only", type=selection(APPS), default=",".join(APPS), metavar="APP,…", help="(%(default)s)")
    tests_help = f"of {', '.join(MEASURES)} (%(default)s)"
    add("--tests", type=selection(MEASURES), default=default_tests, metavar="TEST,…", help=tests_help)
    add("--cores", type=core_pair, default="0,1", help="the server's and the client's (%(default)s)")
    add("--nice", type=int, default=0, help="of server and client; below 0 needs root (%(default)s)")
    return parser.parse_args()


def main():
    if not sys.platform.startswith("linux"):
        sys.exit("bench/run.py needs Linux: it pins processes to cores and reads /proc")
    arguments = parse_arguments()
    server_core, client_core = arguments.cores
    build_loadgen()
    Pin(client_core)()
    sys.path.insert(0, str(HERE.parent))
    RESULTS.mkdir(exist_ok=True)
    for log in RESULTS.glob("*.log"):
        log.unlink()
    path = RESULTS / time.strftime("%Y%m%d-%H%M%S.jsonl")
    with path.open("w") as out:
        bench = Bench(
            apps=arguments.only,
            tests=arguments.tests,
            rounds=arguments.rounds,
            slices=arguments.slices,
            seconds=arguments.seconds,
            server_pin=Pin(server_core, arguments.nice),
            client_pin=Pin(client_core, arguments.nice),
            out=out,
        )
        try:
            bench.run()
        except ServerError as error:
            sys.exit(f"\n{error}")
    print(f"\n{render(bench.records)}\n\nRaw results: {path}")
    if any("error" in record for record in bench.records):
        sys.exit(1)


if __name__ == "__main__":
    main()
