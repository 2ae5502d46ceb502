"""How a server is told to stop: signals, and what its supervisor sends, become stages of the shutdown."""

import enum
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

import anyio
from anyio.abc import TaskStatus

from microws.server.acceptor import Share
from microws.server.listening import Listener
from microws.server.process_end import REACTION_TIMEOUT, ProcessEnd
from microws.server.renewal import HANGUP, Renewal
from microws.server.settings import Settings

__all__ = [
    "SHARED_SIGNALS",
    "ControlSocket",
    "HubRequest",
    "Ready",
    "Shutdown",
    "Stage",
    "signal_socket",
    "watch_signals",
    "worker_variable",
]

_log = logging.getLogger("microws.server")

# The worker's end of the control socket (inode and number), the listening sockets, the shared memory, and a place in
# it, such as "90210 7 3,4 5 0 /tmp/microws-x".
_VARIABLE: Final = "MICROWS_SUPERVISOR"

# A terminal sends these to the whole process group: the supervisor handles them, and its workers ignore them.
SHARED_SIGNALS: Final = (signal.SIGINT, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGINT,)

# Seconds that each step of the shutdown may take after the second signal.
_FORCED_STEP: Final = 1.0

# SIGBREAK is Ctrl-Break, on Windows.
_STOP_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
)


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


class HubRequest(NamedTuple):
    """
    What a worker sends its supervisor to get a hub process.

    Attributes:
        path: The directory of the hub; ``None`` for the temporary one of the supervisor.
        history_bytes: The size of a new log.
    """

    path: str | None
    history_bytes: int


class Ready(NamedTuple):
    """
    What a worker sends its supervisor as soon as it serves.

    Attributes:
        app: What the log calls the app.
    """

    app: str


def worker_variable(control: int, sockets: Sequence[int], share: Share, hub: str) -> dict[str, str]:
    """The variable by which ``ControlSocket.from_environment`` finds these file descriptors, and the directory."""
    inode = os.fstat(control).st_ino
    return {_VARIABLE: f"{inode} {control} {','.join(map(str, sockets))} {share.memory} {share.place} {hub}"}


class ControlSocket:
    """
    The worker's end of the socket between it and its supervisor.

    The worker sends lines: a ``HubRequest`` as JSON if it needs a hub process, a ``Ready`` as JSON, then empty lines as
    heartbeats, and at the end a number of seconds for each step of the shutdown. The supervisor sends a digit for each
    ``Stage``, and closes its end when it ends, however it ends.

    Args:
        sock: This end.
        listening: The bound sockets. The supervisor and the other workers have them as well.
        share: This worker's share of the connections. Default: it accepts all that it gets.
        hub: The directory of the hub process, if the worker asks for one.

    Attributes:
        share, hub: As above.
    """

    def __init__(
        self, sock: socket.socket, listening: Sequence[socket.socket], *, share: Share | None = None, hub: str = ""
    ) -> None:
        self.share = share
        self.hub: str = hub
        self._has_hub = False
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
        numbers = environ.pop(_VARIABLE, "").split(" ", 5)
        if len(numbers) != 6 or not _has_file(numbers[1], numbers[0]):
            return None
        _, control, listening, memory, place, hub = numbers
        sockets = [socket.socket(fileno=int(number)) for number in (control, *listening.split(","))]
        share = Share(int(memory), int(place))
        os.close(share.memory)
        for sock in sockets:
            sock.set_inheritable(False)
        for number in SHARED_SIGNALS:
            # Not SIG_IGN, which the programs that the app starts would inherit.
            signal.signal(number, lambda *_: None)
        # The supervisor has blocked them until this process handles them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SHARED_SIGNALS)
        return cls(sockets[0], sockets[1:], share=share, hub=hub)

    def listeners(self, *, secure: bool) -> list[Listener]:
        """The sockets. Closing them takes nothing from the other workers, and removes no Unix socket's file."""
        return [Listener(sock, secure=secure) for sock in self._listening]

    def ask_for_hub(self, request: HubRequest) -> str:
        """
        Have the supervisor run a hub process, unless it does.

        Returns:
            Its directory.

        Raises:
            ValueError: This worker has asked for another directory.
        """
        if not self._has_hub:
            self._has_hub = True
            self.hub = request.path or self.hub
            self._send(json.dumps({"hub": request}))
        elif request.path not in (None, self.hub):
            raise ValueError(
                f"expected one hub for all apps, got local:{request.path} besides local:{self.hub}: write hub= at the "
                "outermost app"
            )
        return self.hub

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


class Shutdown:
    """
    How far a worker has come in stopping.

    Args:
        end: Ends the process if a step takes too long. Default: nothing does, as the process is not the server's.
        control: The supervisor is told of each step. Default: there is no supervisor.

    Attributes:
        control: As above.
        requested: Stop: ``/readyz`` says 503 from now on, and the drain begins after ``Settings.stop_delay``.
        draining: The delay has ended, or there is none: drain, then stop.
        forced: Stop immediately.
    """

    def __init__(self, end: ProcessEnd | None = None, control: ControlSocket | None = None) -> None:
        self.requested: anyio.Event = anyio.Event()
        self.draining: anyio.Event = anyio.Event()
        self.forced: anyio.Event = anyio.Event()
        self._end = end
        self.control = control

    def request(self) -> None:
        """Ask for the drain. The second request asks to stop immediately."""
        self.reach(Stage.FORCED if self.draining.is_set() else Stage.DRAIN)

    def reach(self, stage: Stage) -> None:
        """Go on to this stage of the shutdown. A stage that was reached before changes nothing."""
        is_forced = stage == Stage.FORCED and not self.forced.is_set()
        for event in (self.requested, self.draining, self.forced)[:stage]:
            event.set()
        if is_forced:
            self.limit(_FORCED_STEP)

    def limit(self, seconds: float) -> None:
        """
        Begin the next step of the shutdown, which may take so many seconds; one second at most after the second signal.

        The process ends a little later, with exit code 1.
        """
        seconds = min(seconds, _FORCED_STEP) if self.forced.is_set() else seconds
        if self._end is not None:
            self._end.limit(seconds)
        if self.control is not None:
            self.control.send_limit(seconds)

    def finish(self, code: int) -> None:
        """Only the event loop has to end now. If it does not, the process ends all the same, with ``code``."""
        if self._end is not None:
            self._end.finish(code)


async def watch_signals(
    shutdown: Shutdown, end: ProcessEnd, settings: Settings, renewal: Renewal, *, task_status: TaskStatus[None]
) -> None:
    """
    Drain at the first signal, and stop immediately at the second one. The third one kills.

    With ``settings.stop_delay`` the first SIGTERM starts that delay, and the next signal ends it. Ctrl-C drains without
    a delay: a user at a terminal has no load balancer that needs the time.

    Signals count also while the event loop is blocked. The first one then has the log say what blocks the loop, and
    ends the process a little later than it would have ended. The second one ends it within a second.

    SIGHUP drains, and has ``renewal`` run the program again; another signal cancels that. If the terminal that the
    server was started in was closed, SIGHUP stops the server.

    A worker with a supervisor stops at SIGTERM, and ends immediately at SIGABRT, which the supervisor sends to a worker
    that has been silent too long. What a terminal sends to the whole process group is ignored: the supervisor passes it
    on.
    """
    asked = 0
    lines: list[tuple[int, str]] = []  # a signal handler must not log: the interrupted code may hold the log's lock

    def handle(number: int) -> None:
        nonlocal asked
        if shutdown.draining.is_set():
            asked = max(asked, Stage.DRAIN)
        is_renewal = number == HANGUP and not renewal.terminal_has_ended()
        if is_renewal and not asked:
            if reason := renewal.prepare():
                lines.append((logging.WARNING, f"SIGHUP: cannot run the program again, because {reason}; restart it"))
                return
            lines.append((logging.INFO, "SIGHUP: after the drain this process runs its program again"))
        elif renewal.is_due and not is_renewal:
            renewal.cancel()
            lines.append((logging.INFO, "after the drain this process ends: another signal has followed SIGHUP"))
            return
        elif asked and number == HANGUP:
            return  # the system and the shell may both report the end of a terminal
        may_delay = number == signal.SIGTERM and settings.stop_delay > 0
        asked = Stage.DELAY if asked == 0 and may_delay else min(max(asked, Stage.DELAY) + 1, Stage.FORCED)
        if asked <= Stage.DRAIN:
            shutdown.limit(settings.drain_timeout + (settings.stop_delay if asked == Stage.DELAY else 0))
            end.explain_unless((shutdown.requested, shutdown.draining)[asked - 1].is_set)
        else:
            for stop in _STOP_SIGNALS:
                signal.signal(stop, signal.SIG_DFL)
            end.exit_in(REACTION_TIMEOUT)

    def handle_in_worker(number: int) -> None:
        nonlocal asked
        if number == signal.SIGABRT:
            end.exit_in(0)
        elif number == signal.SIGTERM and not asked:
            asked = Stage.DELAY if settings.stop_delay else Stage.DRAIN
            shutdown.limit(settings.stop_delay + settings.drain_timeout)

    signals = [*_STOP_SIGNALS, HANGUP] if renewal.handles_hangup else _STOP_SIGNALS
    if in_worker := shutdown.control is not None:
        signals = [signal.SIGTERM, signal.SIGABRT, *SHARED_SIGNALS]
    with signal_socket(signals, handle_in_worker if in_worker else handle) as received:
        if renewal.hangups and not in_worker:
            signal.raise_signal(HANGUP)
        task_status.started()
        while True:
            await anyio.wait_readable(received)
            with suppress(BlockingIOError):
                received.recv(4096)
            while lines:
                _log.log(*lines.pop(0))
            if asked:
                shutdown.reach(Stage(asked))


@contextmanager
def signal_socket(signals: Iterable[int], handle: Callable[[int], None] | None = None) -> Iterator[socket.socket]:
    """
    A socket that becomes readable when one of the signals arrives, within the block. In the main thread only.

    Works on every system and every event loop. Windows has no ``loop.add_signal_handler``, and a blocked loop would not
    call its callbacks.

    Args:
        signals: Their numbers, one byte each on the socket if there is no event loop.
        handle: Called with the number, also while the main thread is blocked in Python. Afterwards there is a byte 0 on
            the socket.
    """

    def handler(number: int, frame: object) -> None:
        if handle is not None:
            handle(number)
            with suppress(OSError):
                theirs.send(b"\0")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        # Set before the handlers: a signal that arrives between the two would be lost.
        fd_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        if fd_before != -1:
            # The event loop's own wakes it as well, and the app may have handlers that depend on it.
            signal.set_wakeup_fd(fd_before, warn_on_full_buffer=False)
        before = {number: signal.signal(number, handler) for number in signals}
        try:
            yield ours
        finally:
            for number, old in before.items():
                signal.signal(number, signal.SIG_DFL if old is None else old)
            if fd_before == -1 and (fd := signal.set_wakeup_fd(-1)) != theirs.fileno():
                # The app has set another one since, by ``loop.add_signal_handler``.
                signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
