"""A hub process as the supervisor forks it, and hubs that record what a backplane delivers to them."""

import os
import signal
import sys
import warnings
from contextlib import contextmanager, suppress
from itertools import count

import anyio

from microws.hub import TopicSettings
from microws.local.client import LocalBackplane
from microws.local.directory import HubDirectory, socket_path
from microws.redis_hub.backplane import RedisBackplane
from microws.server import hub_keeper
from microws.server.hub_keeper import HubKeeper

# Seconds for what ought to take a fraction of one.
LIMIT = 10
HISTORY_BYTES = 8 << 20


def backplane_of(url):
    """The backplane of one more process of the hub ``url``."""
    if not url.startswith("local:"):
        return RedisBackplane(url)
    return LocalBackplane(socket_path(url.removeprefix("local:")))


class HubHere:
    """
    A hub process that this one keeps, as a supervisor does.

    Args:
        path: Of the directory of the hub.
        is_temporary: The log is in memory. Default: in a file.
        run: Called in the forked process with its ``HubProcess``, in place of ``HubProcess.run``.
    """

    def __init__(self, path, *, history_bytes=HISTORY_BYTES, is_temporary=False, run=None):
        self.run = run
        self.starts = 0
        self.directory = HubDirectory(str(path), history_bytes, is_temporary=is_temporary)
        self.url = f"local:{self.directory.path}"
        self.path = socket_path(self.directory.path)
        self.keeper = self._forked(lambda: HubKeeper(self.directory))

    def _forked(self, fork):
        self.starts += 1
        before, hub = hub_keeper.HubProcess, self

        class Process(before):
            def run(self):
                if hub.run is None:
                    super().run()
                else:
                    hub.run(super())

        hub_keeper.HubProcess = Process
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns of threads. The child uses none of them.
                warnings.simplefilter("ignore", DeprecationWarning)
                return fork()
        finally:
            hub_keeper.HubProcess = before

    @property
    def pid(self):
        return self.keeper._pid

    def signal(self, number):
        os.kill(self.pid, number)

    def stop(self):
        """SIGSTOP. It does nothing more."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def end(self):
        """SIGKILL. ``check`` finds it dead."""
        self.signal(signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def check(self):
        """Start the process again if it has ended, however often it has."""
        self.keeper._early_deaths = 0
        before = self.pid
        self._forked(self.keeper.check)
        self.starts -= self.pid == before

    async def keep(self):
        """``check`` until this task is cancelled."""
        while True:
            self.check()
            await anyio.sleep(0.001)

    async def wait_started(self, starts):
        """Wait until the process was started so many times."""
        with anyio.fail_after(LIMIT):
            while self.starts < starts:
                self.check()
                await anyio.sleep(0.001)

    async def kill(self):
        """SIGKILL, and start it again."""
        starts = self.starts
        self.signal(signal.SIGKILL)
        await self.wait_started(starts + 1)

    def close(self):
        with suppress(ProcessLookupError):
            self.signal(signal.SIGCONT)
        self.keeper.close()


@contextmanager
def hub_process(path, **options):
    hub = HubHere(path, **options)
    try:
        yield hub
    finally:
        hub.close()


def kill_at_line(hub_process, line, message, *modules):
    """
    Run a hub process that kills itself.

    Args:
        line: It does so before the n-th line of the modules that it executes after it got the message.
        message: Bytes that the message contains.
    """
    files = {module.__file__ for module in modules}
    left = None

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if left is None:
            if event == "call" and frame.f_code.co_name == "_publish" and message in frame.f_locals["data"]:
                left = line
        elif event == "line":
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    hub_process.run()


class Process:
    """
    One process of those that a backplane connects: its backplane, and what its hub was told.

    ``keeps`` says whether its topics have history.
    """

    _names = count()

    def __init__(self, backplane, *, keeps=True):
        self.backplane = backplane
        self.keeps = keeps
        self.name = next(self._names)
        self.subscribers = 1
        self.delivered = []
        self.losses = []
        self.is_busy = False
        self.relaxed = 0
        self._changed = anyio.Event()

    def deliver(self, payload, skip=None, entry=None):
        self.delivered.append((payload, skip, entry))
        self._change()
        return self.subscribers

    def settings(self, topic):
        return TopicSettings(history=1_000 if self.keeps else 0)

    def reach(self, topic, skip):
        return self.subscribers

    def answer(self, question):
        return {"name": self.name, "question": question}

    def lose(self, topics=None):
        self.losses.append(len(self.delivered))
        self._change()

    async def relax(self):
        self.relaxed += 1
        await anyio.lowlevel.checkpoint()

    def _change(self):
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_until(self, condition):
        """Until this is true of this process; it may become so with each delivery, and each loss."""
        with anyio.fail_after(LIMIT):
            while not condition(self):
                await self._changed.wait()

    async def wait_delivered(self, count):
        """Wait until ``count`` messages have come, and return them."""
        await self.wait_until(lambda self: len(self.delivered) >= count)
        return self.delivered

    @property
    def texts(self):
        """The text of each message."""
        return [payload.data.decode() for payload, _, _ in self.delivered]
