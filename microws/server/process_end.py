"""Ends a process that a blocked thread or a blocked event loop would keep, and logs what blocks it."""

import _thread
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from math import inf
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Final, NoReturn

from microws.server.renewal import Renewal, run_exit_functions

__all__ = ["REACTION_TIMEOUT", "ProcessEnd", "blocked_code"]

_log = logging.getLogger("microws.server")

# Seconds that a step of the shutdown may take beyond its own time-out.
_SLACK: Final = 2.0
# Seconds for threads to end after the server, and for atexit functions when the threads did not end.
_GRACE: Final = 0.4
_EXIT_FUNCTIONS_TIMEOUT: Final = 2.0
# Seconds between two looks at threads.
_TICK: Final = 0.02
# Seconds in which an event loop that is not blocked reacts to a signal, even on a busy machine; and seconds after which
# a loop that has not reacted to the second signal counts as blocked.
_REACTION_TIME: Final = 0.5
REACTION_TIMEOUT: Final = 0.8
_BLOCKED: Final = "the event loop is blocked, and does not react to the signal (Ctrl-C again stops immediately): %s"
# Places that one line of the log names.
_MOST_PLACES: Final = 5

# Packages that run functions of others in threads, and their functions in which an idle thread waits.
_POOLS: Final = frozenset({"anyio", "concurrent", "trio"})
_IDLE: Final = frozenset({"_worker", "_work"})
# Frames that a line of the log leaves out, so that it names the app's own code.
_NOT_THE_APP: Final = sys.stdlib_module_names | {
    *("anyio", "asgiref", "django", "fastapi", "hypercorn", "microws", "outcome", "starlette", "trio", "uvloop")
}


class ProcessEnd:
    """
    Ends this process if a blocked thread or a blocked event loop keeps it: Python can cancel neither.

    While the event loop runs, a thread watches the time. It starts with the first call of ``limit``: a process that
    only serves does not have it, because Python warns of each fork of a process with threads. ``let_go`` ends that
    thread and waits for it, and everything later happens in the main thread. So no code of this module runs while the
    interpreter finalizes, where a thread that runs Python can crash the process.

    Args:
        renewal: Instead of the end, runs the program again if that is due.
    """

    def __init__(self, renewal: Renewal) -> None:
        self._renewal = renewal
        # A deadline and an exit code; or a function that tells whether the loop has reacted; ``None``: stop watching.
        self._orders: SimpleQueue[tuple[float, int] | Callable[[], bool] | None] = SimpleQueue()
        self._started = _thread.allocate_lock()  # held as soon as the watching thread was started
        self._watching = _thread.allocate_lock()  # held until the watching thread has ended
        self._watching.acquire()
        # Python waits as always for what a pool does for the program itself. Idle threads of these pools do not count:
        # they may get a job from a view. anyio's threads belong to another event loop, the idle ones too.
        calls = _blocked_calls(loop_has_ended=True)
        self._before = {thread for thread in threading.enumerate() if thread.ident in calls}
        self._drained_by = inf

    def limit(self, seconds: float) -> None:
        """
        Begin the next step of the shutdown, which may take so many seconds and a little more: then the process ends
        with exit code 1.

        A signal handler may call this: it takes no lock that the interrupted code may hold.
        """
        deadline = time.monotonic() + seconds
        # Threads have as long as requests have. A second signal shortens that.
        self._drained_by = min(self._drained_by, deadline)
        self._order((deadline + _SLACK, 1))

    def finish(self, code: int) -> None:
        """
        Only the event loop has to end now: it may wait for threads until the end of the drain and a little more, then
        the process ends with ``code``.
        """
        self._order((max(time.monotonic() + _SLACK, self._drained_by), code))

    def exit_in(self, seconds: float) -> None:
        """End the process with exit code 1 after so many seconds, unless the event loop calls ``limit`` before that."""
        self._order((time.monotonic() + seconds, 1))

    def explain_unless(self, has_reacted: Callable[[], bool]) -> None:
        """Log what blocks the event loop, unless ``has_reacted()`` in half a second. A signal handler may call this."""
        self._order(has_reacted)

    def let_go(self, code: int) -> None:
        """
        The event loop has ended: give threads of pools the rest of the drain, in the main thread.

        Python waits for each thread when the main thread has ended. It does not wait for a thread of a pool that began
        its work after this object was made and is still at work after the drain, such as a view's: then the process
        ends with ``code`` as soon as the main thread has run the rest of the program. Threads that the app has started
        itself are waited for, as always, unless such a thread of a pool is left.
        """
        if self._started.locked():
            self._orders.put(None)
            self._watching.acquire()  # forever, if the thread has begun to end the process
        busy = _wait_for_pools(set(threading.enumerate()) - self._before, within=0)
        if not busy:
            return
        try:
            with _interruptible():
                busy = _wait_for_pools(busy)
                if busy and 0 < (seconds := self._drained_by - time.monotonic()) < inf:
                    _log.info("waiting for %.0f s at most (Ctrl-C: at once) for %s", seconds, _summary(busy.values()))
                    busy = _wait_for_pools(busy, within=seconds)
        except KeyboardInterrupt:
            self._renewal.cancel()
        if busy:
            _warn(_summary(busy.values()))
            self._end_after_main(busy, code)

    def _end_after_main(self, threads: Iterable[threading.Thread], code: int) -> None:
        """
        End the process when the main thread has run all of the program, and before Python joins ``threads``.

        ``atexit`` is too late for that: before it, Python calls in the main thread what was registered by
        ``threading._register_atexit``, the last one first. There ``concurrent.futures`` joins the threads of all pools,
        blocked ones too. The function is not public, and the same in CPython 3.9 to 3.14.

        Source: ``_shutdown`` in CPython's threading.py, ``_python_exit`` in concurrent/futures/thread.py.
        """
        exit_process = _prepare_exit(code, self._renewal)

        def end() -> None:
            if _wait_for_pools(threads):
                exit_process("")

        with suppress(RuntimeError):  # the program is past that point: atexit has called app.run()
            threading._register_atexit(end)  # type: ignore[attr-defined] # noqa: SLF001

    def _order(self, order: tuple[float, int] | Callable[[], bool]) -> None:
        self._orders.put(order)
        # Neither a second thread if a signal arrives meanwhile, nor ``threading.Thread``, which takes locks.
        if self._started.acquire(blocking=False):
            try:
                _thread.start_new_thread(self._watch, ())
            except RuntimeError:
                self._started.release()  # too many threads: the next order tries again

    def _watch(self) -> None:
        deadline, code = inf, 1
        explain_at = inf
        has_reacted: Callable[[], bool] = bool
        main = threading.main_thread().ident
        while True:
            next_at = min(deadline, explain_at)
            try:
                order = self._orders.get(timeout=None if next_at == inf else max(0.0, next_at - time.monotonic()))
            except Empty:
                if next_at == deadline:
                    calls = _blocked_calls(loop_has_ended=False)
                    loop = calls.pop(main, None)
                    text = _summary(calls.values(), loop=loop) or "a task that ignores its cancellation"
                    _prepare_exit(code, self._renewal)(text)
                explain_at = inf
                if not has_reacted() and (place := blocked_code()):
                    _log.warning(_BLOCKED, place)
                continue
            if order is None:
                self._watching.release()
                return
            if isinstance(order, tuple):
                deadline, code = order
            else:
                explain_at, has_reacted = time.monotonic() + _REACTION_TIME, order


def blocked_code() -> str | None:
    """The view and the line of the app that the event loop of the main thread is in; ``None`` if it is in neither."""
    return _blocked_calls(loop_has_ended=False).get(threading.main_thread().ident)


def _wait_for_pools(threads: Iterable[threading.Thread], *, within: float = _GRACE) -> dict[threading.Thread, str]:
    """Those of the threads that are still at work for a pool after so many seconds, and what they do."""
    end = time.monotonic() + within
    while True:
        calls = _blocked_calls(loop_has_ended=True)
        busy = {thread: calls[thread.ident] for thread in threads if thread.ident in calls and not thread.daemon}
        if not busy or time.monotonic() >= end:
            return busy
        # Not join() alone: a thread that has done its work may stay, idle.
        next(iter(busy)).join(_TICK)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make SIGINT and SIGTERM raise ``KeyboardInterrupt``, unless the app or a worker has a handler of its own."""
    with ExitStack() as undo:
        for number in (signal.SIGINT, signal.SIGTERM):
            if (handler := signal.getsignal(number)) in (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler):
                undo.callback(signal.signal, number, handler)
                signal.signal(number, signal.default_int_handler)
        yield


def _prepare_exit(code: int, renewal: Renewal) -> Callable[[str], NoReturn]:
    """
    A function that ends the process without Python's finalization, which would wait for the blocked threads. The main
    thread calls it, or another one while the main thread is blocked or waits in ``let_go``, with what to warn of.

    An atexit function may block, and so may a write to stdout or stderr: then a thread ends the process. It starts
    here, because from 3.12 on Python starts no thread at its shutdown, and waits for the call without running Python.
    """
    has_begun = _thread.allocate_lock()
    has_begun.acquire()

    def end() -> NoReturn:
        renewal.execute()
        # ``last_type``: a traceback was printed, so the script failed after the server.
        os._exit(code or int(hasattr(sys, "last_type")))

    def end_later() -> None:
        has_begun.acquire()
        time.sleep(_EXIT_FUNCTIONS_TIMEOUT)
        end()

    def run(blocked: str) -> NoReturn:
        has_begun.release()
        if blocked:
            _warn(blocked)
        run_exit_functions()
        end()

    with suppress(RuntimeError):  # too many threads
        _thread.start_new_thread(end_later, ())
    return run


def _warn(blocked: str) -> None:
    _log.warning("still running, and cut off by the end of the process: %s", blocked)


def _summary(places: Iterable[str], *, loop: str | None = None) -> str:
    """A text for the log: where the event loop is, then the places at which most threads are."""
    counts = Counter(places).most_common()
    texts = [] if loop is None else [loop]
    texts += [place if count == 1 else f"{count} × {place}" for place, count in counts[:_MOST_PLACES]]
    if left := sum(count for _, count in counts[_MOST_PLACES:]):
        texts.append(f"and {left} more")
    return "; ".join(texts)


def _blocked_calls(*, loop_has_ended: bool) -> dict[int | None, str]:
    """What the event loop and the threads of pools do, by thread number: the view, and the app's line."""
    calls: dict[int | None, str] = {}
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    for ident, innermost in sys._current_frames().items():  # noqa: SLF001
        stack = [frame for frame, _ in traceback.walk_stack(innermost)][::-1]  # the outermost one first
        if ident == main:
            # The frames before this one are the program that has started the server.
            while stack and _module(stack[0]) != "microws.server.worker":
                stack.pop(0)
        own = [frame for frame in stack if _package(frame) not in _NOT_THE_APP]
        before = stack[: stack.index(own[0])] if own else stack
        if ident != main and not any(_package(frame) in _POOLS for frame in before):
            continue
        if own:
            calls[ident] = _place(own[0]) if len(own) == 1 else f"{_place(own[0])}, in {_place(own[-1])}"
        elif ident != main and _package(innermost) not in _POOLS:
            # A function of the standard library, or anyio's wait for the next function, which is in ``queue``. anyio
            # ends its idle threads at the end of the event loop.
            if loop_has_ended:
                calls[ident] = _place(innermost)
        elif ident != main and innermost.f_code.co_name not in _IDLE:
            # Without the number of the thread, which would make each entry of the log a different one.
            pool = names.get(ident, "").rstrip("0123456789").rstrip("-_ ")
            calls[ident] = f"a function that is not written in Python, in a thread of {pool}"
    return calls


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _package(frame: FrameType) -> str:
    return _module(frame).partition(".")[0]


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_qualname}() at {frame.f_code.co_filename}:{frame.f_lineno}"
