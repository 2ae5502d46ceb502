"""One worker as its supervisor sees it: started, heard, told to end, or killed."""

import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from microws.server.supervised import SHARED_SIGNALS, Command, Greeting, environment_of_worker, parse_greeting

__all__ = ["WorkerProcess", "describe_exit"]


class WorkerProcess:
    """
    A process, and the supervisor's end of the line to it.

    Args:
        command: Starts it.
        environ: Its environment, but for what it finds its supervisor by.
        sockets: The numbers of the listening sockets.
        generation: See below.
        limit: Seconds until it must serve.

    Raises:
        OSError: It could not be started.

    Attributes:
        generation: How many SIGHUPs came before its start.
        since: When it was started; when it began to serve, as soon as it does. Seconds, as ``time.monotonic`` counts.
        deadline: When it is killed, unless it has taken its next step by then.
        is_serving: It has greeted.
        is_ending: It was told to.
        is_terminated: It was told to by SIGTERM as well, which it may not handle yet.
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        sockets: Sequence[int],
        *,
        generation: int,
        limit: float,
    ) -> None:
        self.generation = generation
        self.since = time.monotonic()
        self.deadline: float | None = self.since + limit
        self.is_serving = False
        self.is_ending = False
        self.is_terminated = False
        self._said = b""
        self.line, theirs = socket.socketpair()
        self.line.setblocking(False)
        try:
            with theirs, _held_up(SHARED_SIGNALS):
                self._process = subprocess.Popen(
                    command,
                    env=environment_of_worker(environ, line=theirs.fileno(), sockets=sockets),
                    pass_fds=[theirs.fileno(), *sockets],
                )
        except OSError:
            self.line.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, once it has ended; that of a signal is negative."""
        return self._process.poll()

    def hear(self) -> bool:
        """Read from the line; ``False`` at its end."""
        data = b""
        with suppress(ConnectionError):
            data = self.line.recv(65536)
        self._said += data
        return bool(data)

    def greeting(self) -> Greeting | None:
        """What it has said, when that is complete; once. From now on it serves."""
        if self.is_serving or not self._said.endswith(b"\n"):
            return None
        self.is_serving = True
        self.since = time.monotonic()
        if not self.is_ending:
            self.deadline = None
        return parse_greeting(self._said)

    def tell(self, command: Command, *, limit: float) -> None:
        """Have it end, in ``limit`` seconds at most."""
        self.is_ending = True
        self.deadline = time.monotonic() + limit
        with suppress(OSError):
            self.line.send(command.value)
        if not self.is_serving:
            # It may be importing the app still, and listen to nobody.
            self.is_terminated = True
            self._process.terminate()

    def kill(self) -> None:
        self.deadline = None
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
