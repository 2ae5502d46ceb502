"""The server under load, seen from outside: what its process has open, and how much memory and time it takes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from byte_client import LIMIT
from serving import running

__all__ = ["LOOPS", "MB", "PATIENCE", "PYTHONS", "WHOLE", "Endurance", "enduring", "share", "wait_for"]

HERE = Path(__file__).parent

# `make endurance`; without, each test is a twentieth of itself, on a machine that does more than this.
WHOLE = os.environ.get("MICROWS_ENDURANCE") == "whole"
PATIENCE = 1 if WHOLE else 4

LOOPS = ("uvloop", "asyncio") if WHOLE else ("uvloop",)

# A second one, of another version, where one is named; microws must be installed there.
PYTHONS = (sys.executable, *filter(None, [os.environ.get("MICROWS_TEST_PYTHON")]))

MB = 10**6


def share(number):
    """All of it, or a twentieth."""
    return number if WHOLE else number // 20


def wait_for(condition, *, within):
    """Whether the condition is met in time."""
    end = time.monotonic() + within
    while not (is_met := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return is_met


@contextmanager
def enduring(*flags, loop="uvloop", python=sys.executable, app="enduring:app"):
    """``microws run``, in a process of its own."""
    command = [python, "-m", "microws", "run", app, "--port", "0", "--loop", loop, "--no-access-log", *flags]
    # `python` may belong to another environment.
    environment = {"PYTHONPATH": str(HERE.parents[1])}
    with running(command, cwd=HERE, **environment) as server:
        yield Endurance(server)


class Endurance:
    """
    A server and its process.

    Attributes:
        port: Where it listens.
        server: Its output and its end.
    """

    def __init__(self, server):
        self.server = server
        self.port = server.port
        self.pid = self._ask()["pid"]
        self._proc = Path("/proc") / str(self.pid)

    def _ask(self):
        request = urllib.request.Request(f"{self.server.url}/statistics", headers={"connection": "close"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=LIMIT) as response:
            return json.load(response)

    def open(self):
        """Tasks and files, of which the request for it is one."""
        tasks = self._ask()["tasks"]
        return {"tasks": tasks, "files": len(list((self._proc / "fd").iterdir()))}

    def at_rest(self):
        """``open`` as soon as it stays the same for ten looks."""
        seen = []
        end = time.monotonic() + 2 * LIMIT
        while len(seen) < 10:
            assert time.monotonic() < end, f"it does not come to rest: {seen}"
            now = self.open()
            seen = [*seen, now] if now in seen[-1:] else [now]
        return seen[0]

    def seconds_to_rest(self, at_rest, *, within):
        """Until ``open`` is exactly this again."""
        began = time.monotonic()
        assert wait_for(lambda: self.open() == at_rest, within=within), f"{at_rest} before, {self.open()} afterwards"
        return time.monotonic() - began

    @property
    def memory(self):
        """Bytes of resident memory."""
        return self._status("VmRSS")

    def forget_peak(self):
        """Let ``peak_memory`` begin at ``memory``."""
        (self._proc / "clear_refs").write_text("5")

    @property
    def peak_memory(self):
        """The most bytes of resident memory since ``forget_peak``."""
        return self._status("VmHWM")

    def _status(self, name):
        return int(re.search(rf"{name}:\s+(\d+) kB", (self._proc / "status").read_text())[1]) << 10

    @property
    def cpu_time(self):
        """Seconds that the process has worked."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def terminate(self):
        """SIGTERM."""
        self.server.signal(signal.SIGTERM)

    def wait_ended(self, *, within):
        """The exit code."""
        try:
            return self.server.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server still runs after {within} s") from None

    def stop(self):
        """It ends well, and has logged no failure."""
        self.terminate()
        assert self.wait_ended(within=2 * LIMIT) == 0
        failures = Counter(
            match[1] for match in self.server.find_lines(r"((?:^Traceback| warning | error | critical ).*)")
        )
        assert not failures, failures.most_common(5)
