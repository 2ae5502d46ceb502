"""Servers and load generators, pinned to their cores, and how much of these cores other processes used."""

import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from apps.files import BIG_FILE, BIG_FILE_SIZE

__all__ = [
    "Pin",
    "Server",
    "ServerError",
    "Watch",
    "build",
    "finish_loadgen",
    "run_loadgen",
    "start_loadgen",
    "wait_calm",
]

HERE = Path(__file__).resolve().parent
BINARIES = HERE / "bin"
AUTOGROUP = Path("/proc/self/autogroup")
TICKS = os.sysconf("SC_CLK_TCK")


class ServerError(Exception):
    """A server did not start, or gave a wrong answer."""


def build():
    """Compile the load generator and the floor if they are older than their sources, and write the big file."""
    BINARIES.mkdir(exist_ok=True)
    for source in (HERE / "loadgen.c", HERE / "floors" / "floor.c"):
        binary = BINARIES / source.stem
        if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", binary, source], check=True)
    BIG_FILE.write_bytes(bytes(range(250)) * (BIG_FILE_SIZE // 250))


class Pin(NamedTuple):
    """
    The core and the priority of a process. Call it in the child, or in this process.

    Attributes:
        core: The only core that the process uses.
        niceness: As for nice(1); below 0 needs root.
    """

    core: int
    niceness: int = 0

    def __call__(self):
        os.sched_setaffinity(0, {self.core})
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if self.niceness:
            os.setpriority(os.PRIO_PROCESS, 0, self.niceness)
            # Linux may group processes by session (autogroup). Then niceness counts only within the group, which has a
            # niceness of its own.
            if AUTOGROUP.exists():
                AUTOGROUP.write_text(str(self.niceness))


class Server:
    """
    A server with its app, and the processes that it starts.

    Args:
        command: Starts the server; ``{port}`` in it stands for the port.
        directory: The working directory; by default the root of the project.
        pin: Where the server runs.
        log_path: The file that its output is appended to.

    Raises:
        ServerError: The program does not exist.
    """

    def __init__(self, command, *, pin, log_path, directory=HERE.parent):
        self.port = free_port()
        self._log_path = log_path
        with log_path.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    [part.format(port=self.port) for part in command],
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=pin,
                )
            except OSError as error:
                raise ServerError(str(error)) from error

    def wait_ready(self, *, timeout=20):
        """Wait until it answers GET /json. Raises ``ServerError`` with the end of its log if it does not."""
        end = time.monotonic() + timeout
        problem = "no answer"
        while time.monotonic() < end and self._process.poll() is None:
            try:
                answer = self.get_json("/json")
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = repr(error)
                time.sleep(0.05)
                continue
            if answer == {"message": "Hello, World!"}:
                return
            problem = repr(answer)
            break
        raise ServerError(f"{problem} from GET /json\n{self.log_tail()}")

    def get_json(self, path):
        """The decoded answer to a GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def wait_idle(self, *, timeout=10):
        """Wait until it is idle: to close a thousand connections takes a while."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            before = self.cpu_seconds()
            time.sleep(0.1)
            if self.cpu_seconds() - before <= 1 / TICKS:
                return

    def pids(self):
        """The ids of its process and of its child processes."""
        found = [self._process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(child) for child in children.read_text().split()]
        return found

    def cpu_seconds(self):
        ticks = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS

    def resident_kib(self):
        """Its resident memory. Raises ``ServerError`` if one of its processes has ended."""
        return self._memory_kib("VmRSS")

    def peak_kib(self):
        """Its highest resident memory so far. Raises as ``resident_kib`` does."""
        return self._memory_kib("VmHWM")

    def _memory_kib(self, line):
        total = 0
        for pid in self.pids():
            memory = re.search(rf"{line}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
            if not memory:
                raise ServerError(f"a process of the server has ended\n{self.log_tail()}")
            total += int(memory[1])
        return total

    def log_tail(self):
        return self._log_path.read_text(errors="replace")[-2000:].strip()

    def stop(self):
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Watch:
    """Measures how much of ``cores`` other processes use: not this one, its load generators or ``servers``."""

    def __init__(self, cores, servers):
        self._cores = cores
        self._servers = servers
        self._start = self._read()

    def _read(self):
        driver = os.times()
        ours = driver.user + driver.system + driver.children_user + driver.children_system
        ours += sum(server.cpu_seconds() for server in self._servers)
        return time.monotonic(), sum(busy_seconds(core) for core in self._cores) - ours

    def foreign(self):
        """The share of one core that they used since the start."""
        (start, before), (end, after) = self._start, self._read()
        return round(max(0, after - before) / (end - start), 3)


def busy_seconds(core):
    """The seconds that ``core`` spent on processes and interrupts, or that the hypervisor took from it."""
    line = re.search(rf"^cpu{core} (.*)$", Path("/proc/stat").read_text(), re.MULTILINE)[1]
    user, nice, system, _idle, _iowait, irq, softirq, steal = [int(field) for field in line.split()[:8]]
    return (user + nice + system + irq + softirq + steal) / TICKS


def wait_calm(cores, *, timeout=10):
    """Wait until ``cores`` are nearly idle."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        before = sum(busy_seconds(core) for core in cores)
        time.sleep(0.5)
        if sum(busy_seconds(core) for core in cores) - before <= 0.02:
            return


def run_loadgen(mode, server, *, pin, options, while_running=None, while_holding=None):
    """
    Run the load generator against ``server``.

    Args:
        while_running: Called twice a second while it runs.
        while_holding: Called while the connections of ``idle`` are open; its result is ``"held"``.

    Returns:
        The JSON that it printed: counts and latencies, or ``{"error": ...}``.
    """
    client = start_loadgen(mode, server, pin=pin, options=options)
    while while_running and client.poll() is None:
        while_running()
        time.sleep(0.5)
    return finish_loadgen(client, while_holding=while_holding)


def start_loadgen(mode, server, *, pin, options):
    """Start the load generator against ``server``; pass the result to ``finish_loadgen``."""
    return subprocess.Popen(
        [BINARIES / "loadgen", mode, "-p", str(server.port), *(str(option) for option in options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=pin,
    )


def finish_loadgen(client, *, while_holding=None):
    """Wait for the end of a load generator; returns the same as ``run_loadgen``."""
    with client:
        result = json.loads(client.stdout.readline() or '{"error": "the load generator printed nothing"}')
        if while_holding and "error" not in result:
            result["held"] = while_holding()
    return result
