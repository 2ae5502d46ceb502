"""How a server is told to stop: signals and the supervisor's commands become stages of the shutdown."""

import logging
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import anyio
from anyio.abc import TaskStatus

from microws.server.control import SHARED_SIGNALS, ControlSocket, Stage
from microws.server.process_end import REACTION_TIMEOUT, ProcessEnd
from microws.server.renewal import HANGUP, Renewal
from microws.server.settings import Settings

__all__ = ["Shutdown", "signal_socket", "watch_signals", "watch_signals_in_worker"]

_log = logging.getLogger("microws.server")

# Seconds that each step of the shutdown may take after the second signal.
_FORCED_STEP: Final = 1.0

# SIGBREAK is Ctrl-Break, on Windows.
_STOP_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
)


class Shutdown:
    """
    How far a worker has come in stopping.

    Args:
        end: Ends the process if a step takes too long. Default: nothing does, as the process is not the server's.
        control: The supervisor is told of each step. Default: there is no supervisor.

    Attributes:
        requested: Stop: ``/readyz`` says 503 from now on, and the drain begins after ``Settings.stop_delay``.
        draining: The delay has ended, or there is none: drain, then stop.
        forced: Stop immediately.
    """

    def __init__(self, end: ProcessEnd | None = None, control: ControlSocket | None = None) -> None:
        self.requested: anyio.Event = anyio.Event()
        self.draining: anyio.Event = anyio.Event()
        self.forced: anyio.Event = anyio.Event()
        self._end = end
        self._control = control

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
        if self._control is not None:
            self._control.send_limit(seconds)

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

    signals = [*_STOP_SIGNALS, HANGUP] if renewal.handles_hangup else _STOP_SIGNALS
    with signal_socket(signals, handle) as received:
        if renewal.hangups:
            signal.raise_signal(HANGUP)
        task_status.started()
        while True:
            await _wait_for(received)
            while lines:
                _log.log(*lines.pop(0))
            if asked:
                shutdown.reach(Stage(asked))


async def watch_signals_in_worker(
    shutdown: Shutdown, end: ProcessEnd, settings: Settings, *, task_status: TaskStatus[None]
) -> None:
    """
    Stop at SIGTERM. End immediately at SIGABRT, which the supervisor sends to a worker that has been silent too long.

    What a terminal sends to the whole process group is ignored: the supervisor passes it on.
    """
    is_terminated = False

    def handle(number: int) -> None:
        nonlocal is_terminated
        if number == signal.SIGABRT:
            end.exit_in(0)
        elif number == signal.SIGTERM and not is_terminated:
            is_terminated = True
            shutdown.limit(settings.stop_delay + settings.drain_timeout)

    with signal_socket((signal.SIGTERM, signal.SIGABRT, *SHARED_SIGNALS), handle) as received:
        task_status.started()
        while True:
            await _wait_for(received)
            if is_terminated:
                shutdown.reach(Stage.DELAY if settings.stop_delay else Stage.DRAIN)


async def _wait_for(sock: socket.socket) -> None:
    await anyio.wait_readable(sock)
    with suppress(BlockingIOError):
        sock.recv(4096)


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
