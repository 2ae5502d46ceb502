#!/usr/bin/env python
"""Checks the hub with clients that do not read, 10,000 that do, and a fast publisher. See bench/README.md."""

import argparse
import json
import signal
import statistics
import sys
import time
from contextlib import contextmanager

from run import HERE, RESULTS, commit, core_pair
from sampling import Pin, Server, ServerError, build, run_loadgen, wait_calm
from suites import microws_run

# Pings would close a client that does not read before the overflow policy of its topic applies.
COMMAND = [*microws_run("bench.apps.microws_topics:app", "uvloop"), "--ping-interval", "0"]

SUBSCRIBERS, STALLED = 1000, 100
P99_LIMIT = 1.2  # times the control's
GROWTH_LIMIT = 256  # KiB

MANY, MANY_SECONDS = 10_000, 60
MANY_P99_LIMIT = 1.0  # seconds

SLOW, SLOW_BYTES = 100, 20_000  # a second: some 300 of thousands of messages
FLAT_LIMIT = 1.02  # times the maximum of the first half


class Checks:
    """
    The checks of one run, and their verdicts.

    Args:
        options: The parsed command line.
        out: Open file for the records, one JSON object a line.
    """

    def __init__(self, options, out):
        self._seconds = options.seconds
        self._rounds = options.rounds
        self._server_pin, self._client_pin = map(Pin, options.cores)
        self._out = out
        self.verdicts = []

    def stalled(self):
        """One connection in ten does not read and is closed or conflated: measure the others' latency, and memory."""
        cases = {"control": ("close", 0), "close": ("close", STALLED), "latest": ("latest", STALLED)}
        samples = {case: [] for case in cases}
        for _ in range(self._rounds):
            for case, (topic, stalled) in cases.items():
                options = ["-c", SUBSCRIBERS, "-d", 8, "-t", self._seconds, "-x", stalled]
                samples[case].append(self._sample("fan", topic, options))
        for case in ("close", "latest"):
            self._judge_stalled(case, samples[case], samples["control"])

    def _judge_stalled(self, case, samples, controls):
        pairs = list(zip(samples, controls, strict=True))
        slowdown = statistics.median(sample["p99_us"] / control["p99_us"] for sample, control in pairs)
        growth = statistics.median(sample["peak_kib"] - control["peak_kib"] for sample, control in pairs) / STALLED
        ends = {key: sum(sample["stalled"][key] for sample in samples) for key in samples[0]["stalled"]}
        dropped = sum(sample["dropped"] for sample in samples)
        all_of_them = STALLED * len(samples)
        if case == "close":
            closed = ends["closed_1013"] + ends["cut"]
            is_kept = closed == dropped == all_of_them and not ends["lost"]
            words = (
                f"{closed} of {all_of_them} were closed, {dropped} losses counted, {ends['lost']} messages lost before"
            )
        else:
            is_kept = ends["finished"] == all_of_them and ends["lost"] == dropped > 0
            words = (
                f"{ends['finished']} of {all_of_them} got the last message, without {ends['lost']}; {dropped} counted"
            )
        if not dropped:
            words += "; they did not stall long enough"
        title = f'{STALLED} of {SUBSCRIBERS:,} do not read, overflow="{case}"'
        self._judge(slowdown <= P99_LIMIT, f"{title}: the others' p99 is {slowdown:.2f} times the control's")
        self._judge(growth <= GROWTH_LIMIT, f"{title}: the server uses {growth:.0f} KiB more for each of them")
        self._judge(is_kept, f"{title}: {words}")

    def many(self):
        """Ten thousand subscribers, one message a second."""
        sample = self._sample("fan", "close", ["-c", MANY, "-r", 1, "-t", MANY_SECONDS])
        due, p99 = MANY * MANY_SECONDS, sample["p99_us"] / 1e6
        words = f"{MANY:,} subscribers, 1 message/s: {sample['count']:,} of {due:,} in order, p99 {p99:.3f} s"
        self._judge(sample["count"] == due and p99 <= MANY_P99_LIMIT, words)

    def close(self):
        """The publisher is faster than its subscribers; they are closed, and reconnect."""
        sample = self._flood("close")
        ends = sample["closed_1013"] + sample["cut"]
        words = f"{ends} were closed, {sample['closed_1013']} of them with 1013, {sample['dropped']} losses counted"
        is_kept = ends == sample["closed_1013"] == sample["dropped"] > 0 == sample["lost"]
        self._judge(is_kept, f'publisher ahead, overflow="close": {words}, {sample["lost"]} messages lost before')

    def drop_oldest(self):
        """The publisher is faster than its subscribers; they lose the oldest messages and get gap markers."""
        self._judge_drops("drop_oldest")

    def drop_newest(self):
        """The publisher is faster than its subscribers; they lose the newest messages and get gap markers."""
        self._judge_drops("drop_newest")

    def _judge_drops(self, topic):
        sample = self._flood(topic)
        words = f"{sample['lost']:,} messages lost, {sample['dropped']:,} counted, a gap marker in each gap"
        self._judge(sample["lost"] == sample["dropped"] > 0, f'publisher ahead, overflow="{topic}": {words}')

    def _flood(self, topic):
        sample = self._sample("flood", topic, ["-c", SLOW, "-k", SLOW_BYTES, "-t", self._seconds])
        memory = sample["resident_kib"][: int(2 * self._seconds)]  # without the end, where clients read the rest
        half = len(memory) // 2
        growth = max(memory[half:]) / max(memory[:half])
        course = " ".join(f"{kib / 1024:.1f}" for kib in memory[:: max(1, len(memory) // 12)])
        words = f"the maximum resident memory of the second half is {growth:.3f} times that of the first ({course} MiB)"
        self._judge(growth <= FLAT_LIMIT, f'publisher ahead, overflow="{topic}": {words}')
        return sample

    def _sample(self, mode, topic, options):
        """Run the load generator against a new server; return its figures, the hub's statistics and the memory."""
        resident = []
        with self._server() as server:
            sample = run_loadgen(
                mode,
                server,
                pin=self._client_pin,
                options=["-u", f"/{topic}/sub", "-U", f"/{topic}/pub", *options],
                while_running=lambda: resident.append(server.resident_kib()),
            )
            if "error" in sample:
                raise ServerError(f'{mode}, overflow="{topic}": {sample["error"]}')
            counted = server.get_json("/statistics")
            sample |= {"dropped": sum(counted["dropped"].values()), "peak_kib": server.peak_kib()}
        record = {"type": "check", "topic": topic, **sample, "resident_kib": resident, "statistics": counted}
        self._out.write(json.dumps(record) + "\n")
        self._out.flush()
        print(f"{topic}: {json.dumps(sample)}", flush=True)
        return record

    @contextmanager
    def _server(self):
        server = Server(COMMAND, pin=self._server_pin, log_path=RESULTS / "hub.log")
        try:
            server.wait_ready()
            wait_calm((self._server_pin.core, self._client_pin.core))
            yield server
        finally:
            server.stop()

    def _judge(self, is_met, words):
        self.verdicts.append((is_met, words))

    def run(self, name):
        """Run one check; it is missed if the server or the client fails."""
        try:
            getattr(self, name)()
        except ServerError as error:
            self._judge(False, f"{name}: {error}")


CHECKS = ("stalled", "many", "close", "drop_oldest", "drop_newest")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("checks", nargs="*", metavar="CHECK", help=f"some of {', '.join(CHECKS)} (all)")
    add("--seconds", type=float, default=60, help="how long clients stall, or the publisher is faster (%(default)s)")
    add("--rounds", type=int, default=3, help="repetitions of `stalled` (%(default)s)")
    add("--cores", type=core_pair, default="0,1", help="core of the server, core of the client (%(default)s)")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.checks if name not in CHECKS]:
        parser.error(f"expected some of {', '.join(CHECKS)}, got {', '.join(unknown)}")
    build()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # an exception, so that the servers are stopped too
    Pin(arguments.cores[1])()
    sys.path.insert(0, str(HERE.parent))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / time.strftime("hub-%Y%m%d-%H%M%S.jsonl")
    with path.open("w") as out:
        checks = Checks(arguments, out)
        for name in arguments.checks or CHECKS:
            checks.run(name)
    print(f"\nCommit {commit()}\n")
    for is_met, words in checks.verdicts:
        print(f"- {'met' if is_met else '**MISSED**'}: {words}")
    print(f"\nRaw results: {path}")
    if not all(is_met for is_met, _ in checks.verdicts):
        sys.exit(1)


if __name__ == "__main__":
    main()
