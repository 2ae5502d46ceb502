"""The server under load, seen from outside: what its process has open, and how much memory and time it takes."""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, deque
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from byte_client import LIMIT, ByteClient
from serving import running

__all__ = [
    "LOOPS", "MB", "PATIENCE", "PYTHONS", "TLS_FLAGS", "WHOLE", "Endurance", "come_and_go", "encrypt", "enduring",
    "share", "wait_for",
]  # fmt: skip

HERE = Path(__file__).parent

_CERTIFICATE = HERE.parent / "tls" / "localhost.pem"
TLS_FLAGS = ("--certfile", str(_CERTIFICATE), "--keyfile", str(_CERTIFICATE.with_suffix(".key")))
_TRUSTING = ssl.create_default_context(cafile=_CERTIFICATE)

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


def encrypt(client):
    """Start TLS."""
    client.sock = _TRUSTING.wrap_socket(client.sock, server_hostname="localhost")


def come_and_go(port, count, dice, act):
    """Clients that act, and leave at any time after, many of them there at the same time."""
    there = deque()
    for _ in range(count):
        client = ByteClient(port)
        there.append(client)
        with suppress(AssertionError):
            act(client, dice)
        if len(there) > 50:
            leave_at_random(there, dice)
    while there:
        leave_at_random(there, dice)


def leave_at_random(there, dice):
    there.rotate(dice.randrange(len(there)))
    client = there.popleft()
    if dice.random() < 0.5:
        client.reset()
    else:
        client.sock.close()


class Neighbours:
    """
    Clients on kept connections, each of which asks and is answered, over and over.

    Attributes:
        answered: Requests so far.
        longest: Seconds for one answer.
    """

    def __init__(self, clients):
        self.answered = 0
        self.longest = 0
        self.failure = None
        self._clients = clients
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self):
        try:
            while not self._is_over.is_set() or self.answered < 1000:
                for client in self._clients:
                    began = time.monotonic()
                    client.send(b"GET /statistics HTTP/1.1\r\nHost: x\r\n\r\n")
                    status, headers = client.read_head()
                    assert status == 200
                    assert json.loads(client.read_bytes(int(headers["content-length"])))["pid"]
                    self.longest = max(self.longest, time.monotonic() - began)
                    self.answered += 1
        except AssertionError as error:
            self.failure = error

    def end(self):
        """After 1,000 requests at least, each of which was answered."""
        self._is_over.set()
        self._thread.join()
        if self.failure:
            raise self.failure
        assert self.longest <= LIMIT / 2, f"a neighbour was answered after {self.longest:.1f} s"


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
        handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=_TRUSTING)]
        self._opener = urllib.request.build_opener(*handlers)
        self.pid = self._ask()["pid"]
        self._proc = Path("/proc") / str(self.pid)

    def _ask(self):
        url = f"{self.server.url.replace('127.0.0.1', 'localhost')}/statistics"
        request = urllib.request.Request(url, headers={"connection": "close"})
        with self._opener.open(request, timeout=LIMIT) as response:
            return json.load(response)

    def open(self):
        """Tasks and files, as the process counts them while it answers; of each the request for it is one."""
        answer = self._ask()
        return {name: answer[name] for name in ("tasks", "files")}

    def at_rest(self):
        """``open`` as soon as it stays the same for half a second."""
        now, since = self.open(), time.monotonic()
        end = since + 2 * LIMIT
        while time.monotonic() < since + 0.5:
            assert time.monotonic() < end, f"it does not come to rest: {now}"
            before, now = now, self.open()
            since = since if now == before else time.monotonic()
        return now

    def seconds_to_rest(self, at_rest, *, within):
        """Until ``open`` is exactly this again."""
        began = time.monotonic()
        assert wait_for(lambda: self.open() == at_rest, within=within), f"{at_rest} before, {self.open()} afterwards"
        return time.monotonic() - began

    @contextmanager
    def neighbours(self, count, start=lambda client: None):
        """As many ``Neighbours``, as long as the block lasts. ``start`` is called with each connection."""
        with ExitStack() as stack:
            clients = [stack.enter_context(ByteClient(self.port)) for _ in range(count)]
            for client in clients:
                start(client)
            neighbours = Neighbours(clients)
            try:
                yield neighbours
            finally:
                neighbours.end()

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
        assert not failures, "\n".join([*map(str, failures.most_common(5)), *self.server.output[:100]])
