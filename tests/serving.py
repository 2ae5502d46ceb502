"""An app served as its user serves it, by a process of its own; and a browser to open its pages with."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]

# Seconds for what ought to take a fraction of one.
LIMIT = 10

_CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


# Its first group is the URL.
_READY = r"(?:serving .*|[Rr]unning) on (https?://[^\s,]+)"


class Server:
    """A server in another process; ``output`` are the lines that it has printed and logged so far."""

    def __init__(self, process, ready=_READY):
        self.output = []
        self._process = process
        self._printed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        # Several processes may have to start, on a machine that does a lot besides.
        self.url = self.wait_for_line(ready, within=3 * LIMIT)[1]
        self.ws_url = self.url.replace("http", "ws", 1)
        self.port = int(self.url.rpartition(":")[2])

    def _read(self):
        for line in self._process.stdout:
            with self._printed:
                self.output.append(line.rstrip("\n"))
                self._printed.notify_all()
        with self._printed:
            self._ended = True
            self._printed.notify_all()

    def find_lines(self, pattern):
        """The match of each line so far in which the pattern is found."""
        return [match for line in list(self.output) if (match := re.search(pattern, line))]

    def wait_for_line(self, pattern, *, times=1, within=LIMIT):
        """The match of the ``times``-th line in which the pattern is found, already printed or still to come."""
        with self._printed:
            self._printed.wait_for(lambda: len(self.find_lines(pattern)) >= times or self._ended, within)
        found = self.find_lines(pattern)
        if len(found) < times:
            pytest.fail(f"{pattern!r} is in {len(found)} lines, not {times}, of:\n" + "\n".join(self.output))
        return found[times - 1]

    def stop(self):
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def signal(self, number):
        self._process.send_signal(number)

    def wait(self, within=2 * LIMIT):
        """The exit code, of a process that ends within so many seconds."""
        code = self._process.wait(within)
        self._reader.join(LIMIT)
        return code


@contextmanager
def serving(app, *, port=0, **environment):
    """
    ``microws run APP``, for as long as the block lasts; at its end the server stops, and has logged no error.
    """
    command = [sys.executable, "-m", "microws", "run", app, "--port", str(port)]
    with running(command, **environment) as server:
        yield server
        code = server.stop()
        if code != 0 or any(re.search(r"^Traceback| (error|critical) ", line) for line in server.output):
            pytest.fail(f"{app} ended with {code}, and said:\n" + "\n".join(server.output))


@contextmanager
def running(command, *, cwd=ROOT, close_fds=True, ready=_READY, **environment):
    """The server that ``command`` starts, for as long as the block lasts. ``ready`` finds its URL in its output."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        close_fds=close_fds,
    )
    try:
        yield Server(process, ready)
    finally:
        # In this order: closing a pipe waits for whoever reads it.
        process.kill()
        process.wait(LIMIT)
        process.stdout.close()


@contextmanager
def browsing(**options):
    """Chromium without a window. Where there is none the test fails under CI, and is skipped elsewhere."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop("pages are tested in Chromium, which is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(_CHROMIUM_FLAGS), **options)
        yield browser
        browser.close()
