"""Several workers behind the same sockets: starts them, replaces those that die, and ends or renews them in order."""

import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final

from microws.counters import forget_worker
from microws.errors import FeatureUnavailable
from microws.server.acceptor import Share, make_shared_memory
from microws.server.control import SHARED_SIGNALS, HubRequest, Ready, Stage, signal_socket, worker_variable
from microws.server.hub_keeper import HubOnDemand
from microws.server.listening import Listener, ListenError
from microws.server.logs import logging_to_stderr
from microws.server.process_end import REACTION_TIMEOUT
from microws.server.renewal import Renewal
from microws.server.settings import Settings
from microws.version import __version__

__all__ = ["supervise"]

_log = logging.getLogger("microws.server")

# A worker that has served for so many seconds had a good start: whatever ended it, it is replaced immediately.
_STABLE_AFTER: Final = 5.0

# Seconds between two starts of workers that keep dying, doubled each time.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0

# Starts in a row that may fail while no worker serves.
_MAX_FAILED_STARTS: Final = 5

# Seconds that a worker has for its import beyond the limit of the app's startup.
_IMPORT_TIMEOUT: Final = 60.0

# Seconds that a worker has for each step of its shutdown beyond the limit of the step.
_EXIT_TIMEOUT: Final = 3.0

# Seconds that a worker has to log where it is blocked.
_ABORT_TIMEOUT: Final = 2.5

# Seconds of delay from which on the supervisor itself was stopped, or the machine slept.
_LATE: Final = 0.1

# Exit codes whose reason the worker has logged: the app did not start, a mistake in the command, no app.
_EXPLAINED: Final = (1, 2, 3)


def supervise(settings: Settings, renewal: Renewal) -> int:
    """
    Serve with ``settings.workers`` processes until SIGTERM or SIGINT, then drain. Blocks; in the main thread only.

    The sockets are bound here and shared by all. The first worker is started alone: if it does not come to serve, the
    reason is logged once, and the supervisor ends. A worker that dies is replaced immediately, and with growing pauses
    if that goes on. SIGHUP replaces one worker after the other, so that new code is loaded: each new one serves before
    an old one begins to drain, and if it does not come to serve, the old ones stay. Another SIGHUP meanwhile starts
    over: a worker that does not serve yet is ended, because its code is old by then. There are never more than
    ``2 * settings.workers + 1`` processes.

    A worker that sends nothing for ``settings.worker_timeout`` seconds is killed and replaced: a view blocks its event
    loop, or the worker was stopped. To stop it has ``settings.drain_timeout``, and a little more; after the second
    signal less than a second to react.

    The first signal drains, the second ends all workers immediately, the third kills them. With
    ``settings.stop_delay`` a SIGTERM first starts that delay, and the second signal ends it.

    Args:
        settings: How to serve; the workers read their own from the same sources.
        renewal: Its command, with its environment, starts a worker, which calls ``ControlSocket.from_environment``.

    Returns:
        The exit code: 0 after an orderly end; 1 if no worker could start, or one did not stop well; the exit code of
        the first worker if that never serves. The log says why.

    Raises:
        FeatureUnavailable: This system cannot share sockets this way.
        ValueError: There is no command, because the program has no file.
        RuntimeError: Called outside the main thread, which does not receive signals.
    """
    if not hasattr(signal, "pthread_sigmask"):
        raise FeatureUnavailable("several workers need a Unix system; write --workers 1")
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("several workers need the main thread, which receives signals; write workers=1")
    if renewal.command is None:
        raise ValueError(
            "several workers start the program again, but it has no file; write microws run APP --workers N"
        )
    with logging_to_stderr(settings):
        try:
            listeners = renewal.listeners(settings, secure=settings.certfile is not None)
        except ListenError as error:
            _log.error("%s", error)
            return 1
        try:
            return _Supervisor(settings, listeners, renewal).run()
        finally:
            for listener in listeners:
                listener.close()


@dataclass(eq=False)
class _Worker:
    """
    A worker's process, and the supervisor's end of the control socket. Times are as ``time.monotonic`` counts.

    Attributes:
        process: Its process.
        control: As above.
        share: Its share of the connections.
        generation: How many SIGHUPs were received before its start.
        deadline: When it is killed, unless it has taken its next step by then; ``None`` while it serves.
        since: When it was started; as soon as it serves, when it began to.
        last_read: When it last sent something.
        ready: What it has sent when it began to serve.
        hub_request: Which hub process it has just asked for, if any.
        is_stopping: It was told to stop.
        is_aborted: It was told by SIGABRT to log where it is blocked, and to end.
    """

    process: subprocess.Popen[bytes]
    control: socket.socket
    share: Share
    generation: int
    deadline: float | None
    since: float
    last_read: float
    ready: Ready | None = None
    hub_request: HubRequest | None = None
    is_stopping: bool = False
    is_aborted: bool = False
    unread: bytes = b""

    @property
    def is_serving(self) -> bool:
        return self.ready is not None

    def read(self) -> bool:
        """Read from the control socket; ``False`` at its end."""
        data = b""
        with suppress(ConnectionError):
            data = self.control.recv(65536)
        self.last_read = time.monotonic()
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in lines:
            if line.startswith(b'{"hub"'):
                self.hub_request = HubRequest(*json.loads(line)["hub"])
            elif self.ready is None:
                self.ready = Ready(**json.loads(line))
                self.since = self.last_read
                if not self.is_stopping:
                    self.deadline = None
            elif line and self.is_stopping and not self.is_aborted:
                self.deadline = self.last_read + float(line) + _EXIT_TIMEOUT
        return bool(data)

    def kill_at(self, timeout: float) -> float:
        """Its deadline, or ``timeout`` seconds after it last sent something, if that is not 0."""
        if self.deadline is not None:
            return self.deadline
        return self.last_read + timeout if timeout else inf

    def stop(self, stage: Stage, *, limit: float) -> None:
        """Tell it to stop within ``limit`` seconds, unless it then sends another limit for its next step."""
        self.is_stopping = True
        self.deadline = time.monotonic() + limit
        with suppress(OSError):
            self.control.send(b"%d" % stage)
        if not self.is_serving:
            # It may still import the app, and does not read.
            self.process.terminate()

    def kill(self) -> None:
        """Kill it; if it serves, give it a moment to log where it is blocked."""
        if self.is_serving and not self.is_aborted:
            self.is_aborted = True
            self.deadline = time.monotonic() + _ABORT_TIMEOUT
            self.process.send_signal(signal.SIGABRT)
        else:
            self.kill_now()

    def kill_now(self) -> None:
        self.deadline = inf
        self.process.kill()


class _Supervisor:
    """The workers and what to do about them. No event loop, one place that waits."""

    def __init__(self, settings: Settings, listeners: Sequence[Listener], renewal: Renewal) -> None:
        self._settings = settings
        self._listeners = listeners
        self._sockets = [listener.sock.fileno() for listener in listeners]
        self._renewal = renewal
        self._max_workers = 2 * settings.workers + 1  # while workers are renewed
        self._hub = HubOnDemand()
        self._memory = make_shared_memory(self._max_workers)
        self._places = set(range(self._max_workers))
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._generation = 0
        self._app: str | None = None  # as the first worker that served has called it
        self._is_complete = False  # all workers serve, or have served since the last SIGHUP
        self._early_deaths = 0
        self._failed_starts = 0
        self._next_start = 0.0
        self._stage: int = 0
        self._drain_at = inf  # when the delay ends
        self._exit_code = 0
        # Of a worker that drains, unless it sends another one.
        self._stop_limit = settings.drain_timeout + _EXIT_TIMEOUT

    def run(self) -> int:
        signals: dict[int, Callable[[], None]] = {
            signal.SIGTERM: partial(self._stop, may_delay=self._settings.stop_delay > 0),
            signal.SIGINT: self._stop,
            signal.SIGCHLD: lambda: None,  # it ends the wait
        }
        if self._renewal.handles_hangup:
            signals[signal.SIGHUP] = self._renew
        with self._selector, signal_socket(signals) as received:
            if self._renewal.hangups:
                self._renew()
            self._selector.register(received, selectors.EVENT_READ)
            try:
                self._start_and_stop()
                while self._workers or not self._stage:
                    for key, _ in self._wait():
                        if isinstance(key.data, _Worker):
                            self._read(key.data)
                        else:
                            for number in received.recv(4096):
                                if number in signals:
                                    signals[number]()
                    if time.monotonic() >= self._drain_at:
                        self._enter(Stage.DRAIN)
                    self._check_hub()
                    self._check_workers()
                    self._start_and_stop()
            finally:
                # After an exception too: workers whose control socket is closed drain by themselves.
                for worker in self._workers:
                    worker.control.close()
                os.close(self._memory)
                self._hub.close()
        return self._exit_code

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait until something happens, or is to be done though nothing happens."""
        began = time.monotonic()
        times = [self._drain_at, *(worker.kill_at(self._settings.worker_timeout) for worker in self._workers)]
        if not self._stage and self._next_start > began:
            times.append(self._next_start)
        timeout = max(0.0, min(times) - began)
        events = self._selector.select(None if timeout == inf else timeout)
        if time.monotonic() > began + timeout + _LATE:
            # The workers may have been stopped with the supervisor: they have all their time again.
            for worker in self._workers:
                worker.last_read = time.monotonic()
        return events

    # What happens

    def _read(self, worker: _Worker) -> None:
        was_serving = worker.is_serving
        if not worker.read():
            # SIGCHLD tells whether the worker itself has ended.
            self._selector.unregister(worker.control)
            return
        if worker.hub_request is not None and not self._stage:
            self._hub.take(worker.hub_request)
            worker.hub_request = None
            if self._hub.has_failed:
                self._give_up(1)
        if worker.ready is not None and not was_serving:
            self._failed_starts = 0
            if self._app is not None:
                _log.info("worker %d serves", worker.process.pid)
            self._app = self._app or worker.ready.app

    def _check_hub(self) -> None:
        if self._hub.has_failed:
            return
        self._hub.check()
        if self._hub.has_failed and not self._stage:
            self._give_up(1)

    def _check_workers(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            if (code := worker.process.poll()) is not None:
                self._forget(worker, code)
            elif worker.kill_at(self._settings.worker_timeout) <= now:
                if worker.is_aborted:
                    pass
                elif worker.is_serving and not worker.is_stopping:
                    text = "worker %d is killed: it sent nothing for %g s (--worker-timeout); it is blocked or stopped"
                    _log.error(text, worker.process.pid, self._settings.worker_timeout)
                else:
                    _log.error(
                        "worker %d does not %s and is killed",
                        worker.process.pid,
                        "end" if worker.is_stopping else "start",
                    )
                worker.kill()

    def _forget(self, worker: _Worker, code: int) -> None:
        worker.share.leave()
        is_replaced = not (worker.is_stopping or self._stage)
        if worker.share.counters is not None:
            forget_worker(worker.share.counters, worker.share.place, is_replaced=is_replaced)
        self._workers.remove(worker)
        if worker.control in self._selector.get_map():
            self._selector.unregister(worker.control)
        worker.control.close()
        exited = f"worker {worker.process.pid} {_describe_exit(code)}"
        if not is_replaced:
            if code not in (0, -signal.SIGTERM):
                _log.error("%s", exited)
                if self._stage:
                    self._exit_code = 1
        elif worker.is_serving:
            is_early = time.monotonic() - worker.since < _STABLE_AFTER
            self._early_deaths = self._early_deaths + 1 if is_early else 0
            self._replace(exited)
        else:
            self._handle_failed_start(f"{exited} before it served", code)

    def _handle_failed_start(self, message: str, code: int | None = None) -> None:
        """``code``: the exit code of the worker; ``None``: it could not even be started."""
        self._early_deaths += 1
        self._failed_starts += 1
        old = [worker for worker in self._active() if worker.generation < self._generation]
        if self._app is None:
            if code not in _EXPLAINED:
                _log.error("%s", message)
            self._give_up(code if code in _EXPLAINED else 1)
        elif old:
            for worker in old:
                worker.generation = self._generation
            self._is_complete = True
            _log.error("%s: the new code does not start, the old workers stay; fix it and send SIGHUP again", message)
        elif self._failed_starts >= _MAX_FAILED_STARTS and not any(worker.is_serving for worker in self._active()):
            _log.critical("%s: %d starts have failed, no worker serves", message, self._failed_starts)
            self._give_up(1)
        else:
            self._replace(message)

    def _give_up(self, code: int) -> None:
        self._exit_code = code
        self._stage = Stage.DRAIN
        self._stop_all(limit=self._stop_limit)

    def _replace(self, message: str) -> None:
        # Each worker may die once and be replaced immediately: they may all have been killed together.
        exponent = self._early_deaths - self._settings.workers - 1
        pause = 0.0 if exponent < 0 else min(_FIRST_PAUSE * 2**exponent, _LONGEST_PAUSE)
        self._next_start = max(self._next_start, time.monotonic() + pause)
        _log.error("%s; another one is started%s", message, f" in {pause:g} s" if pause else "")

    # What signals ask for

    def _stop(self, *, may_delay: bool = False) -> None:
        if self._stage == Stage.FORCED:
            for worker in self._workers:
                worker.kill_now()
        elif self._stage:
            self._enter(Stage(self._stage + 1))
        else:
            self._enter(Stage.DELAY if may_delay else Stage.DRAIN)

    def _enter(self, stage: Stage) -> None:
        self._stage = stage
        self._drain_at = inf
        delay = self._settings.stop_delay
        if stage == Stage.DELAY:
            _log.info("stopping all workers in %g s (--stop-delay), not ready from now on (again: now)", delay)
            self._drain_at = time.monotonic() + delay
            self._stop_all(limit=delay + self._stop_limit)
        elif stage == Stage.DRAIN:
            _log.info("stopping all workers (Ctrl-C again stops immediately)")
            for listener in self._listeners:
                listener.close()
            self._stop_all(limit=self._stop_limit)
        else:
            self._stop_all(limit=REACTION_TIMEOUT)

    def _stop_all(self, *, limit: float) -> None:
        for worker in self._workers:
            worker.stop(Stage(self._stage), limit=limit)

    def _renew(self) -> None:
        if self._renewal.terminal_has_ended():
            if not self._stage:  # the system and the shell may both report the end
                self._stop()
        elif self._app is not None and not self._stage:
            if self._is_complete or self._generation == 0:
                _log.info("SIGHUP: new workers take the place of the old ones, one after the other")
            self._generation += 1
            self._is_complete = False
            for worker in self._active():
                if not worker.is_serving:
                    worker.stop(Stage.DRAIN, limit=self._stop_limit)

    # What is to be done

    def _start_and_stop(self) -> None:
        """Start and stop workers until as many as wanted serve, and all are new; as far as possible now."""
        if self._stage:
            return
        active = self._active()
        new = [worker for worker in active if worker.generation == self._generation]
        old = [worker for worker in active if worker.generation < self._generation]
        missing = self._settings.workers - len(new)
        if self._app is None or old:
            # The first one of a generation shows whether the others will come to serve.
            missing = min(missing, 1 - sum(not worker.is_serving for worker in new))
        if old:
            # Old workers may take long to drain. Each SIGHUP would add as many as there are.
            missing = min(missing, self._max_workers - len(self._workers))
        for _ in range(missing):
            if time.monotonic() >= self._next_start:
                self._start()
        serving = [worker for worker in active if worker.is_serving]
        for worker in old[: max(0, len(serving) - self._settings.workers)]:
            worker.stop(Stage.DRAIN, limit=self._stop_limit)
        if not self._is_complete and not old and len(serving) == self._settings.workers:
            self._is_complete = True
            if self._generation:
                _log.info("all %d workers are new", len(serving))
            else:
                urls = ", ".join(listener.url for listener in self._listeners)
                workers = "1 worker" if len(serving) == 1 else f"{len(serving)} workers"
                _log.info("microws %s serving %s on %s with %s (Ctrl-C stops)", __version__, self._app, urls, workers)

    def _start(self) -> None:
        with ExitStack() as undo:
            try:
                share = Share(self._memory, min(self._places - {worker.share.place for worker in self._workers}))
                ours, theirs = socket.socketpair()
                undo.enter_context(ours).setblocking(False)
                with theirs, ExitStack() as unblock:
                    # Blocked in the worker, until it handles them. Here they are only delayed.
                    before = signal.pthread_sigmask(signal.SIG_BLOCK, SHARED_SIGNALS)
                    unblock.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
                    control = theirs.fileno()
                    process = subprocess.Popen(
                        self._renewal.command or (),
                        env=self._renewal.environ | worker_variable(control, self._sockets, share, self._hub.path),
                        pass_fds=[control, *self._sockets, share.memory],
                    )
            except OSError as error:
                self._next_start = time.monotonic() + _FIRST_PAUSE
                self._handle_failed_start(f"no worker can be started: {error}")
                return
            undo.pop_all()
        now = time.monotonic()
        deadline = now + self._settings.startup_timeout + _IMPORT_TIMEOUT
        worker = _Worker(process, ours, share, self._generation, deadline, since=now, last_read=now)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _active(self) -> list[_Worker]:
        return [worker for worker in self._workers if not worker.is_stopping]


def _describe_exit(code: int) -> str:
    """How a process ended, in words that follow its name."""
    if code >= 0:
        return f"ended with exit code {code}"
    names = {int(number): number.name for number in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"
