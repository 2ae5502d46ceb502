"""A worker's side of its supervisor: the sockets that it was given, and the line on which the two talk."""

import enum
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import anyio

from microws.server.acceptor import Share
from microws.server.listening import Listener

__all__ = ["SHARED_SIGNALS", "Greeting", "Stage", "Supervised", "environment_of_worker", "parse_greeting"]

# The worker's end of the line (inode and number), the listening sockets, the shared memory, and a place in it, such as
# "90210 7 3,4 5 0".
_VARIABLE: Final = "MICROWS_SUPERVISOR"

# A terminal sends these to the whole process group: they are the supervisor's to understand.
SHARED_SIGNALS: Final = (signal.SIGINT, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGINT,)


class Stage(enum.IntEnum):
    """
    How far a server has come in stopping. Each further signal takes it to the next stage.

    Attributes:
        DELAY: ``/readyz`` says 503, and the server still accepts connections: ``Settings.stop_delay``.
        DRAIN: No new connections; the open ones end in order.
        AT_ONCE: Open connections are dropped.
    """

    DELAY = 1
    DRAIN = 2
    AT_ONCE = 3


class Greeting(NamedTuple):
    """
    What a worker tells its supervisor as soon as it serves.

    Attributes:
        app: What the log calls the app.
        spans_processes: Whether what one worker publishes reaches the connections of the others; ``None``: not known.
    """

    app: str
    spans_processes: bool | None


def environment_of_worker(
    environ: Mapping[str, str], *, line: int, sockets: Sequence[int], share: Share
) -> dict[str, str]:
    """``environ``, and in it what ``Supervised.from_environment`` looks for: the numbers of file descriptors."""
    inode = os.fstat(line).st_ino
    return {**environ, _VARIABLE: f"{inode} {line} {','.join(map(str, sockets))} {share.memory} {share.place}"}


def parse_greeting(data: bytes) -> Greeting:
    """The greeting that came on the line."""
    return Greeting(**json.loads(data))


class Supervised:
    """
    What a worker has from its supervisor.

    Args:
        line: Its end of the line. That of the supervisor closes when the supervisor ends, however it ends.
        sockets: Bound. The supervisor and the other workers have them as well.
        share: This worker's share of the connections. Default: it does not look at the others.

    Attributes:
        share: As above.
    """

    def __init__(self, line: socket.socket, sockets: Sequence[socket.socket], *, share: Share | None = None) -> None:
        self.share = share
        self._line = line
        self._sockets = sockets
        self._has_greeted = False
        line.setblocking(False)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] | None = None) -> "Supervised | None":
        """
        Take over what a supervisor has left for this process; ``None`` where none has started it.

        A supervisor that has ended meanwhile counts: ``commands`` says so.

        From now on Ctrl-C and SIGHUP are the supervisor's business alone. The programs that the app may start learn
        nothing of all this: neither the variable nor the file descriptors reach them.

        Args:
            environ: Default: the process's own.
        """
        environ = os.environ if environ is None else environ
        numbers = environ.pop(_VARIABLE, "").split(" ")
        if len(numbers) != 5 or not _has_file(numbers[1], numbers[0]):
            return None
        _, line, listening, memory, place = numbers
        sockets = [socket.socket(fileno=int(number)) for number in (line, *listening.split(","))]
        share = Share(int(memory), int(place))
        os.close(share.memory)
        for sock in sockets:
            sock.set_inheritable(False)
        for number in SHARED_SIGNALS:
            signal.signal(number, _ignore)
        # The supervisor has held them up until somebody would listen.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SHARED_SIGNALS)
        return cls(sockets[0], sockets[1:], share=share)

    def listeners(self, *, secure: bool) -> list[Listener]:
        """The sockets. Closing them takes nothing from the other workers, nor does it remove a Unix socket's file."""
        return [Listener(sock, secure=secure) for sock in self._sockets]

    def greet(self, greeting: Greeting) -> None:
        """Tell the supervisor that clients can connect."""
        self._say(json.dumps(greeting._asdict()).encode())
        self._has_greeted = True

    def report_limit(self, seconds: float) -> None:
        """Tell the supervisor that the next step of the end has begun, and how long it may take."""
        if self._has_greeted:
            self._say(b"%g" % seconds)

    async def beat(self, interval: float) -> None:
        """Tell the supervisor that the event loop runs, every ``interval`` seconds once this process serves."""
        while True:
            await anyio.sleep(interval)
            if self._has_greeted:
                self._say(b"")

    def _say(self, data: bytes) -> None:
        # The supervisor may have ended: ``commands`` says so. Or it was stopped, and does not read.
        with suppress(OSError):
            self._line.send(data + b"\n")

    async def commands(self) -> AsyncIterator[Stage]:
        """The stages that the supervisor asks for, a digit each. Its own end asks for ``DRAIN``, and is the last."""
        data = b""
        while True:
            await anyio.wait_readable(self._line)
            try:
                data = self._line.recv(1)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                yield Stage.DRAIN
                return
            yield Stage(int(data))

    def close(self) -> None:
        """Close the line."""
        self._line.close()


def _has_file(number: str, inode: str) -> bool:
    """Whether this process has the file. A program that a worker starts may have inherited the variable alone."""
    try:
        return str(os.fstat(int(number)).st_ino) == inode
    except (OSError, ValueError):
        return False


def _ignore(number: int, frame: object) -> None:
    # A function, as SIG_IGN would be inherited by the programs that the app starts.
    pass
