"""One worker as its supervisor sees it: started, heard, told to end, or killed."""

import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import inf
from typing import Final

from microws.server.acceptor import Share
from microws.server.supervised import SHARED_SIGNALS, Greeting, Stage, environment_of_worker, parse_greeting

__all__ = ["EXIT_TIMEOUT", "WorkerProcess", "describe_exit"]

# Seconds that a worker has for each step of its end beyond the limit of the step.
EXIT_TIMEOUT: Final = 3.0
# Seconds to log where it is blocked.
_ABORT_TIMEOUT: Final = 2.5


class WorkerProcess:
    """
    A process, and the supervisor's end of the line to it.

    Args:
        command: Starts it.
        environ: Its environment, but for what it finds its supervisor by.
        sockets: The numbers of the listening sockets.
        share: Its share of the connections.
        generation: See below.
        limit: Seconds until it must serve.

    Raises:
        OSError: It could not be started.

    Attributes:
        share: See above.
        generation: How many SIGHUPs came before its start.
        since: When it was started; when it began to serve, as soon as it does. Seconds, as ``time.monotonic`` counts.
        heard_at: When it last said something.
        deadline: When it is killed, unless it has taken its next step by then; ``None`` while it serves.
        is_serving: It has greeted.
        is_ending: It was told to.
        is_terminated: It was told to by SIGTERM as well, which it may not handle yet.
        is_aborted: It was told by SIGABRT to say where it is blocked, and to end.
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        sockets: Sequence[int],
        *,
        share: Share,
        generation: int,
        limit: float,
    ) -> None:
        self.share = share
        self.generation = generation
        self.since = time.monotonic()
        self.deadline: float | None = self.since + limit
        self.is_serving = False
        self.is_ending = False
        self.is_terminated = False
        self.is_aborted = False
        self.heard_at = self.since
        self._greeting: Greeting | None = None
        self._said = b""
        self.line, theirs = socket.socketpair()
        self.line.setblocking(False)
        try:
            with theirs, _held_up(SHARED_SIGNALS):
                self._process = subprocess.Popen(
                    command,
                    env=environment_of_worker(environ, line=theirs.fileno(), sockets=sockets, share=share),
                    pass_fds=[theirs.fileno(), *sockets, share.memory],
                )
        except OSError:
            self.line.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, once it has ended; that of a signal is negative."""
        code = self._process.poll()
        if code is not None:
            self.share.leave()
        return code

    def hear(self) -> bool:
        """Read from the line; ``False`` at its end."""
        data = b""
        with suppress(ConnectionError):
            data = self.line.recv(65536)
        self.heard_at = time.monotonic()
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            if not self.is_serving:
                self._greeting = parse_greeting(line)
                self.is_serving = True
                self.since = self.heard_at
                if not self.is_ending:
                    self.deadline = None
            elif line and self.is_ending and not self.is_aborted:
                self.deadline = self.heard_at + float(line) + EXIT_TIMEOUT
        return bool(data)

    def greeting(self) -> Greeting | None:
        """What it has said as soon as it served; once."""
        greeting, self._greeting = self._greeting, None
        return greeting

    def due(self, timeout: float) -> float:
        """When it is to be killed: at its deadline, or ``timeout`` seconds after it last said something, if not 0."""
        if self.deadline is not None:
            return self.deadline
        return self.heard_at + timeout if timeout else inf

    def tell(self, stage: Stage, *, limit: float) -> None:
        """Have it stop, in ``limit`` seconds at most, unless it then reports another limit for its next step."""
        self.is_ending = True
        self.deadline = time.monotonic() + limit
        with suppress(OSError):
            self.line.send(b"%d" % stage)
        if not self.is_serving:
            # It may be importing the app still, and listen to nobody.
            self.is_terminated = True
            self._process.terminate()

    def abort(self) -> None:
        """Kill it in a moment, in which it may log where it is blocked."""
        self.is_aborted = True
        self.deadline = time.monotonic() + _ABORT_TIMEOUT
        self._process.send_signal(signal.SIGABRT)

    def kill(self) -> None:
        self.deadline = inf
        self._process.kill()


def describe_exit(code: int) -> str:
    """How a process ended, in words that follow its name."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


@contextmanager
def _held_up(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """A process started within the block gets the signals only when it says so. Here they come a little later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
