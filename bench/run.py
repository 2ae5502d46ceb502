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

from report import MEASURES, render
from sampling import Pin, Server, ServerError, Watch, build_loadgen, run_loadgen, wait_calm

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
APPS = {"bare": "bare", "microws": "microws_app", "starlette": "starlette_app", "quart": "quart_app"}
FOREIGN_LIMIT = 0.04  # of a core, taken by others during a sample
ATTEMPTS = 3


class Bench:
    """
    One run.

    Args:
        apps, tests: Names out of ``APPS`` and ``MEASURES``.
        rounds: How often each app is measured; every second round in reverse order.
        seconds: Length of a sample.
        server_pin, client_pin: Where they run.
        out: Open file for the records, one JSON object a line.
    """

    def __init__(self, *, apps, tests, rounds, seconds, server_pin, client_pin, out):
        self._apps = apps
        self._tests = tests
        self._rounds = rounds
        self._seconds = seconds
        self._server_pin = server_pin
        self._client_pin = client_pin
        self._cores = (server_pin.core, client_pin.core)
        self._out = out
        self._done = 0
        self.records = []

    def run(self):
        self._record(
            type="run",
            apps=self._apps,
            tests=self._tests,
            rounds=self._rounds,
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
                    for app in self._apps if round_ % 2 else reversed(self._apps):
                        self._sample(round_, test, app, servers)

    def _start(self, app, stack):
        server = Server(APPS[app], pin=self._server_pin, log_path=RESULTS / f"{app}.log")
        stack.callback(server.stop)
        return server

    def _sample(self, round_, test, app, servers):
        """Measures until nobody disturbs, at most ``ATTEMPTS`` times; the least disturbed sample counts."""
        self._done += 1
        total = self._rounds * len(self._tests) * len(self._apps)
        print(f"[{self._done:>3}/{total}] round {round_}  {test:<8} {app:<10}", end="", flush=True)
        measure = self._memory if MEASURES[test].less_is_better else self._rate
        best = None
        # The heap that a first attempt leaves behind would hide the memory of a second one.
        for _ in range(1 if MEASURES[test].less_is_better else ATTEMPTS):
            wait_calm(self._cores)
            watch = Watch(self._cores, server=servers[app], servers=servers.values())
            sample = measure(MEASURES[test], servers[app])
            sample |= watch.shares()
            print(f"  {describe(sample)}", end="", flush=True)
            if best is None or sample["foreign"] < best["foreign"]:
                best = sample
            if "error" in sample or sample["foreign"] <= FOREIGN_LIMIT:
                break
        print()
        noisy = best["foreign"] > FOREIGN_LIMIT
        self._record(type="sample", round=round_, measure=test, app=app, noisy=noisy, **best)

    def _rate(self, measure, server):
        result = run_loadgen(
            measure.mode, server, pin=self._client_pin, options=[*measure.options, "-t", self._seconds]
        )
        if "error" not in result:
            result["figure"] = result["per_second"]
        return result

    def _memory(self, measure, server):
        """KiB by which the server's resident memory grows, per connection, once a few have warmed it up."""
        run_loadgen("connect", server, pin=self._client_pin, options=["-u", "/echo", "-c", 8, "-t", 0.3, "-w", 0])
        wait_calm(self._cores)
        before = server.resident_kib()

        def resident_kib():
            wait_calm(self._cores)
            return server.resident_kib()

        result = run_loadgen(
            measure.mode, server, pin=self._client_pin, options=measure.options, while_holding=resident_kib
        )
        if "error" not in result:
            result["figure"] = round((result.pop("held") - before) / result["connections"], 2)
        return result

    def _record(self, **record):
        self.records.append(record)
        self._out.write(json.dumps(record) + "\n")
        self._out.flush()


def describe(sample):
    if "error" in sample:
        return f"ERROR {sample['error']}"
    return f"{sample['figure']:>9,.1f} (others {sample['foreign']:.1%} of a core)"


def versions(apps):
    packages = ["hypercorn", "h11", "wsproto", *(app for app in apps if app not in ("bare", "microws"))]
    found = {platform.python_implementation(): platform.python_version()}
    found |= {package: version(package) for package in packages}
    if "microws" in apps:
        import microws

        found["microws"] = microws.__version__
    return found


def commit():
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def choice(what, known, *, default):
    """An argparse type: a comma-separated selection, in the order of ``known``."""

    def parse(text):
        asked = text.split(",")
        if unknown := [name for name in asked if name not in known]:
            raise argparse.ArgumentTypeError(f"no {what} {', '.join(unknown)}; there are {', '.join(known)}")
        return [name for name in known if name in asked]

    return {"type": parse, "default": default, "metavar": "NAME,…"}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    tests = [key for key, measure in MEASURES.items() if measure.in_default]
    parser.add_argument(
        "--rounds", type=int, default=3, help="samples of each; every second round reversed (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=3, help="length of a sample (%(default)s)")
    parser.add_argument("--only", **choice("app", APPS, default=list(APPS)), help=f"apps, of: {', '.join(APPS)} (all)")
    parser.add_argument(
        "--tests", **choice("test", MEASURES, default=tests), help=f"of: {', '.join(MEASURES)} ({', '.join(tests)})"
    )
    parser.add_argument(
        "--nice", type=int, default=0, help="niceness of server and client; below 0 for root (%(default)s)"
    )
    parser.add_argument("--cores", default="0,1", help="the server's core and the client's (%(default)s)")
    arguments = parser.parse_args()
    try:
        server_core, client_core = (int(core) for core in arguments.cores.split(","))
    except ValueError:
        parser.error(f"--cores: expected two numbers such as 0,1, got {arguments.cores}")
    if not sys.platform.startswith("linux"):
        parser.error("needs Linux: it pins processes to cores and reads /proc")
    usable = os.sched_getaffinity(0)
    if server_core == client_core or not {server_core, client_core} <= usable:
        parser.error(f"--cores: two different ones of {sorted(usable)} are needed, got {arguments.cores}")
    return arguments, Pin(server_core, arguments.nice), Pin(client_core, arguments.nice)


def main():
    arguments, server_pin, client_pin = parse_arguments()
    build_loadgen()
    Pin(client_pin.core)()
    sys.path.insert(0, str(HERE.parent))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / time.strftime("%Y%m%d-%H%M%S.jsonl")
    with path.open("w") as out:
        bench = Bench(
            apps=arguments.only,
            tests=arguments.tests,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            server_pin=server_pin,
            client_pin=client_pin,
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
