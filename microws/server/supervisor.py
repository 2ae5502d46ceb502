"""Several workers behind the same sockets: starts them, replaces those that die, and ends or renews them in order."""

import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import Final

from microws.errors import FeatureUnavailable
from microws.server.acceptor import free_share, make_shared_memory
from microws.server.listening import Listener, ListenError
from microws.server.logs import logging_to_stderr
from microws.server.process_end import REACTION_TIMEOUT
from microws.server.renewal import Renewal
from microws.server.settings import Settings
from microws.server.stopping import heard
from microws.server.supervised import Greeting, Stage
from microws.server.worker_process import EXIT_TIMEOUT, WorkerProcess, describe_exit
from microws.version import __version__

__all__ = ["supervise"]

_log = logging.getLogger("microws.server")

# A worker that has served for so many seconds had a good start: whatever ended it, another one is started at once.
_STABLE_AFTER: Final = 5.0

# Seconds between two starts of workers that keep dying, doubled each time.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0

# Starts in a row that may fail while no worker serves.
_MAX_FAILED_STARTS: Final = 5

# Seconds that a worker has for its import beyond the limit of the app's startup.
_IMPORT_TIMEOUT: Final = 60.0

# Seconds after which the supervisor was late, because it was stopped itself or the machine slept.
_LATE: Final = 0.1

# These the worker has explained: the app did not start, a mistake in the command, no app.
_EXPLAINED: Final = (1, 2, 3)


def supervise(settings: Settings, renewal: Renewal) -> int:
    """
    Serve with ``settings.workers`` processes until SIGTERM or SIGINT, then drain. Blocks; in the main thread only.

    The sockets are bound here and shared by all. The first worker is started alone: what keeps it from serving is said
    once, and ends the start. A worker that dies is replaced at once, and with growing pauses where that goes on.
    SIGHUP replaces one worker after the other, so that new code comes into force: each new one serves before an old one
    begins to drain, and where it does not come to serve, the old ones stay. Another SIGHUP meanwhile starts over: a
    worker that does not serve yet is ended, because its code is old by then. At no time are there more than twice as
    many processes as ``settings.workers``, and one.

    A worker that sends nothing for ``settings.worker_timeout`` seconds is killed and replaced: a view blocks its event
    loop, or the worker was stopped. At the end it has ``settings.drain_timeout``, and a little more; after the second
    signal less than a second to react.

    The first signal drains, the second ends all workers at once, the third kills them. With ``settings.stop_delay`` a
    SIGTERM first starts that delay, and the second signal ends it.

    Args:
        settings: How to serve; the workers have their own from the same sources.
        renewal: Its command, with its environment, starts a worker, which calls ``Supervised.from_environment``.

    Returns:
        The exit code: 0 after an orderly end; 1 when no worker could start, or one did not stop well; what the first
        worker exits with, where it never serves. The log says why.

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
    # A fork of a process with threads is not safe.
    with logging_to_stderr(settings, may_start_threads=False) as retry:
        try:
            listeners = renewal.listeners(settings, secure=settings.certfile is not None)
        except ListenError as error:
            _log.error("%s", error)
            return 1
        try:
            return _Supervisor(settings, listeners, renewal, renewal.command, retry).run()
        finally:
            for listener in listeners:
                listener.close()


class _Supervisor:
    """The workers and what is to be done about them. One thread, no event loop, one place that waits."""

    def __init__(
        self,
        settings: Settings,
        listeners: Sequence[Listener],
        renewal: Renewal,
        command: Sequence[str],
        retry_log: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._sockets = [listener.sock.fileno() for listener in listeners]
        self._renewal = renewal
        self._command = command
        self._retry_log = retry_log
        # While workers are renewed there are up to twice as many processes, and one.
        self._memory = make_shared_memory(2 * settings.workers + 1)
        self._selector = selectors.DefaultSelector()
        self._workers: list[WorkerProcess] = []
        self._generation = 0
        self._greeting: Greeting | None = None  # of the first worker that served
        self._is_complete = False  # all workers serve, or have served since the last SIGHUP
        self._early_deaths = 0
        self._failed_starts = 0
        self._next_start = 0.0
        self._stage: int = 0
        self._drain_at = inf  # when the delay ends, as ``time.monotonic`` counts
        self._exit_code = 0

    def run(self) -> int:
        signals: dict[int, Callable[[], None]] = {
            signal.SIGTERM: partial(self._stop, may_delay=self._settings.stop_delay > 0),
            signal.SIGINT: self._stop,
            signal.SIGCHLD: _do_nothing,  # it wakes up
        }
        if self._renewal.handles_hangup:
            signals[signal.SIGHUP] = self._renew
        with self._selector, heard(signals) as wakeup:
            if self._renewal.hangups:
                self._renew()
            self._selector.register(wakeup, selectors.EVENT_READ)
            try:
                self._adjust()
                while self._workers or not self._stage:
                    for key, _ in self._wait():
                        if isinstance(key.data, WorkerProcess):
                            self._hear(key.data)
                        else:
                            for number in _read(wakeup):
                                signals.get(number, _do_nothing)()
                    if time.monotonic() >= self._drain_at:
                        self._enter(Stage.DRAIN)
                    self._look_after()
                    self._adjust()
            finally:
                # Not only at the end: workers whose line is closed drain by themselves.
                for worker in self._workers:
                    worker.line.close()
                os.close(self._memory)
        return self._exit_code

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        asleep_at = time.monotonic()
        patience = self._patience()
        events = self._selector.select(patience)
        self._retry_log()
        if patience is not None and time.monotonic() > asleep_at + patience + _LATE:
            # The workers may have been stopped with the supervisor: they have all their time again.
            for worker in self._workers:
                worker.heard_at = time.monotonic()
        return events

    # What happens

    def _hear(self, worker: WorkerProcess) -> None:
        if not worker.hear():
            # Whether the worker itself has ended, SIGCHLD tells.
            self._selector.unregister(worker.line)
        elif (greeting := worker.greeting()) is not None:
            self._failed_starts = 0
            if self._greeting is None:
                self._greeting = greeting
                self._warn(greeting)
            else:
                _log.info("worker %d serves", worker.pid)

    def _warn(self, greeting: Greeting) -> None:
        if greeting.spans_processes is False:
            _log.warning(
                "%d workers, but the backplane is 'memory': what is published in one worker reaches the connections of "
                "that worker only. An app that publishes needs --workers 1",
                self._settings.workers,
            )

    def _look_after(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            if (code := worker.poll()) is not None:
                self._forget(worker, code)
            elif worker.due(self._settings.worker_timeout) <= now:
                self._end_hard(worker)

    def _end_hard(self, worker: WorkerProcess) -> None:
        if worker.is_aborted:
            worker.kill()
        elif not worker.is_serving:
            _log.error("worker %d does not %s and is killed", worker.pid, "end" if worker.is_ending else "start")
            worker.kill()
        else:
            if worker.is_ending:
                _log.error("worker %d does not end and is killed", worker.pid)
            else:
                text = (
                    "worker %d is killed: nothing heard from it for %g s (--worker-timeout); it is blocked or stopped"
                )
                _log.error(text, worker.pid, self._settings.worker_timeout)
            worker.abort()

    def _forget(self, worker: WorkerProcess, code: int) -> None:
        self._workers.remove(worker)
        if worker.line in self._selector.get_map():
            self._selector.unregister(worker.line)
        worker.line.close()
        if worker.is_ending or self._stage:
            if code != 0 and not (code == -signal.SIGTERM and (worker.is_terminated or not worker.is_serving)):
                _log.error("worker %d %s", worker.pid, describe_exit(code))
                if self._stage:
                    self._exit_code = 1
        elif worker.is_serving:
            is_early = time.monotonic() - worker.since < _STABLE_AFTER
            self._early_deaths = self._early_deaths + 1 if is_early else 0
            self._replace(f"worker {worker.pid} {describe_exit(code)}")
        else:
            self._note_failed_start(f"worker {worker.pid} {describe_exit(code)} before it served", code)

    def _note_failed_start(self, message: str, code: int | None = None) -> None:
        """``code``: what the worker exited with; ``None``: it could not even be started."""
        self._early_deaths += 1
        self._failed_starts += 1
        old = [worker for worker in self._active() if worker.generation < self._generation]
        if self._greeting is None:
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
        self._tell_all(limit=self._longest_drain)

    def _replace(self, message: str) -> None:
        # Each worker may die once and be replaced at once: they may all have been killed together.
        exponent = self._early_deaths - self._settings.workers - 1
        pause = 0.0 if exponent < 0 else min(_FIRST_PAUSE * 2**exponent, _LONGEST_PAUSE)
        self._next_start = max(self._next_start, time.monotonic() + pause)
        _log.error("%s; another one is started%s", message, f" in {pause:g} s" if pause else "")

    # What is asked for

    def _stop(self, *, may_delay: bool = False) -> None:
        if self._stage == Stage.AT_ONCE:
            for worker in self._workers:
                worker.kill()
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
            self._tell_all(limit=delay + self._longest_drain)
        elif stage == Stage.DRAIN:
            _log.info("stopping all workers (Ctrl-C again: at once)")
            for listener in self._listeners:
                listener.close()
            self._tell_all(limit=self._longest_drain)
        else:
            self._tell_all(limit=REACTION_TIMEOUT)

    def _tell_all(self, *, limit: float) -> None:
        for worker in self._workers:
            worker.tell(Stage(self._stage), limit=limit)

    def _renew(self) -> None:
        if self._renewal.terminal_has_ended():
            if not self._stage:  # the system and the shell may both report the end
                self._stop()
        elif self._greeting is not None and not self._stage:
            if self._is_complete or self._generation == 0:
                _log.info("SIGHUP: new workers take the place of the old ones, one after the other")
            self._generation += 1
            self._is_complete = False
            for worker in self._active():
                if not worker.is_serving:
                    worker.tell(Stage.DRAIN, limit=self._longest_drain)

    # What is to be done

    def _adjust(self) -> None:
        """Start and end workers until as many as wanted serve, and all are new; as far as can be done now."""
        if self._stage:
            return
        active = self._active()
        new = [worker for worker in active if worker.generation == self._generation]
        old = [worker for worker in active if worker.generation < self._generation]
        missing = self._settings.workers - len(new)
        if self._greeting is None or old:
            # The first one of a kind shows whether the others will come to serve.
            missing = min(missing, 1 - sum(not worker.is_serving for worker in new))
        if old:
            # Old workers may take long to drain. Each SIGHUP would add as many as there are.
            missing = min(missing, 2 * self._settings.workers + 1 - len(self._workers))
        for _ in range(missing):
            if time.monotonic() >= self._next_start:
                self._start()
        serving = [worker for worker in active if worker.is_serving]
        for worker in old[: max(0, len(serving) - self._settings.workers)]:
            worker.tell(Stage.DRAIN, limit=self._longest_drain)
        if not self._is_complete and not old and len(serving) == self._settings.workers:
            self._is_complete = True
            self._announce()

    def _announce(self) -> None:
        assert self._greeting is not None
        if self._generation:
            _log.info("all %d workers are new", self._settings.workers)
            return
        urls = ", ".join(listener.url for listener in self._listeners)
        text = "microws %s serving %s on %s with %d workers (Ctrl-C stops)"
        _log.info(text, __version__, self._greeting.app, urls, self._settings.workers)

    def _start(self) -> None:
        try:
            worker = WorkerProcess(
                self._command,
                self._renewal.environ,
                self._sockets,
                share=free_share(self._memory, [worker.share for worker in self._workers]),
                generation=self._generation,
                limit=self._settings.startup_timeout + _IMPORT_TIMEOUT,
            )
        except OSError as error:
            self._next_start = time.monotonic() + _FIRST_PAUSE
            self._note_failed_start(f"no worker can be started: {error}")
            return
        self._workers.append(worker)
        self._selector.register(worker.line, selectors.EVENT_READ, worker)

    def _active(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers if not worker.is_ending]

    @property
    def _longest_drain(self) -> float:
        return self._settings.drain_timeout + EXIT_TIMEOUT

    def _patience(self) -> float | None:
        """Seconds until something is to be done though nothing happens."""
        times = [self._drain_at, *(worker.due(self._settings.worker_timeout) for worker in self._workers)]
        if not self._stage and self._next_start > time.monotonic():
            times.append(self._next_start)
        first = min(times, default=inf)
        return None if first == inf else max(0.0, first - time.monotonic())


def _read(wakeup: socket.socket) -> bytes:
    with suppress(BlockingIOError):
        return wakeup.recv(4096)
    return b""


def _do_nothing() -> None:
    pass
