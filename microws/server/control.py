"""What a worker has from its supervisor: the listening sockets, and the control socket on which the two talk."""

import enum
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import anyio

from microws.server.acceptor import Share
from microws.server.listening import Listener

__all__ = ["SHARED_SIGNALS", "ControlSocket", "Ready", "Stage", "worker_environment"]

# The worker's end of the control socket (inode and number), the listening sockets, the shared memory, and a place in
# it, such as "90210 7 3,4 5 0".
_VARIABLE: Final = "MICROWS_SUPERVISOR"

# A terminal sends these to the whole process group: the supervisor handles them, and its workers ignore them.
SHARED_SIGNALS: Final = (signal.SIGINT, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGINT,)


class Stage(enum.IntEnum):
    """
    How far a server has come in stopping. Each further signal takes it to the next stage.

    Attributes:
        DELAY: ``/readyz`` says 503, and the server still accepts connections: ``Settings.stop_delay``.
        DRAIN: No new connections; the open ones end in order.
        FORCED: Open connections are dropped.
    """

    DELAY = 1
    DRAIN = 2
    FORCED = 3


class Ready(NamedTuple):
    """
    What a worker sends its supervisor as soon as it serves.

    Attributes:
        app: What the log calls the app.
        spans_processes: Whether what one worker publishes reaches the connections of the others; ``None``: unknown.
    """

    app: str
    spans_processes: bool | None


def worker_environment(
    environ: Mapping[str, str], *, control: int, sockets: Sequence[int], share: Share
) -> dict[str, str]:
    """``environ``, and in it the file descriptors that ``ControlSocket.from_environment`` looks for."""
    inode = os.fstat(control).st_ino
    return {**environ, _VARIABLE: f"{inode} {control} {','.join(map(str, sockets))} {share.memory} {share.place}"}


class ControlSocket:
    """
    The worker's end of the socket between it and its supervisor.

    The worker sends lines: a ``Ready`` as JSON, then empty lines as heartbeats, and at the end a number of seconds for
    each step of the shutdown. The supervisor sends a digit for each ``Stage``, and closes its end when it ends, however
    it ends.

    Args:
        sock: This end.
        listening: The bound sockets. The supervisor and the other workers have them as well.
        share: This worker's share of the connections. Default: it accepts all that it gets.

    Attributes:
        share: As above.
    """

    def __init__(self, sock: socket.socket, listening: Sequence[socket.socket], *, share: Share | None = None) -> None:
        self.share = share
        self._sock = sock
        self._listening = listening
        self._is_ready = False
        sock.setblocking(False)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] | None = None) -> "ControlSocket | None":
        """
        Take over what a supervisor has left for this process; ``None`` if no supervisor has started it.

        This works also if the supervisor has ended meanwhile: ``follow_commands`` then asks for the drain.

        From now on this process ignores Ctrl-C and SIGHUP, which the supervisor handles. The programs that the app may
        start inherit neither the variable nor the file descriptors.

        Args:
            environ: Default: the process's own.
        """
        environ = os.environ if environ is None else environ
        numbers = environ.pop(_VARIABLE, "").split(" ")
        if len(numbers) != 5 or not _has_file(numbers[1], numbers[0]):
            return None
        _, control, listening, memory, place = numbers
        sockets = [socket.socket(fileno=int(number)) for number in (control, *listening.split(","))]
        share = Share(int(memory), int(place))
        os.close(share.memory)
        for sock in sockets:
            sock.set_inheritable(False)
        for number in SHARED_SIGNALS:
            # Not SIG_IGN, which the programs that the app starts would inherit.
            signal.signal(number, _ignore)
        # The supervisor has blocked them until this process handles them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SHARED_SIGNALS)
        return cls(sockets[0], sockets[1:], share=share)

    def listeners(self, *, secure: bool) -> list[Listener]:
        """The sockets. Closing them takes nothing from the other workers, and removes no Unix socket's file."""
        return [Listener(sock, secure=secure) for sock in self._listening]

    def send_ready(self, ready: Ready) -> None:
        """Tell the supervisor that clients can connect."""
        self._send(json.dumps(ready._asdict()))
        self._is_ready = True

    def send_limit(self, seconds: float) -> None:
        """Tell the supervisor that the next step of the shutdown has begun, and how long it may take."""
        if self._is_ready:
            self._send(f"{seconds:g}")

    async def send_heartbeats(self, interval: float) -> None:
        """Tell the supervisor every ``interval`` seconds that the event loop runs, as soon as this process is ready."""
        while True:
            await anyio.sleep(interval)
            if self._is_ready:
                self._send("")

    async def follow_commands(self, reach: Callable[[Stage], None]) -> None:
        """Call ``reach`` with each stage that the supervisor asks for. Its end asks for ``DRAIN``, and is the last."""
        while True:
            await anyio.wait_readable(self._sock)
            try:
                data = self._sock.recv(1)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            reach(Stage(int(data)) if data else Stage.DRAIN)
            if not data:
                return

    def close(self) -> None:
        """Close this end."""
        self._sock.close()

    def _send(self, line: str) -> None:
        # The supervisor may have ended, which ``follow_commands`` sees; or it was stopped, and does not read.
        with suppress(OSError):
            self._sock.send(f"{line}\n".encode())


def _has_file(number: str, inode: str) -> bool:
    """Whether this process has the file. A program that a worker starts may have inherited the variable alone."""
    try:
        return str(os.fstat(int(number)).st_ino) == inode
    except (OSError, ValueError):
        return False


def _ignore(number: int, frame: object) -> None:
    pass
