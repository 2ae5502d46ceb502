"""How a process ends where its own code does not let it: a blocked thread, a blocked event loop."""

import _thread
import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise, takewhile
from math import inf
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Final, NoReturn

from microws.server.renewal import Renewal

__all__ = ["REACTION_TIMEOUT", "ProcessEnd"]

_log = logging.getLogger("microws.server")

# Seconds that a step of the end may take beyond its own time-out.
_SLACK: Final = 2.0
# Seconds for threads to end after the server; and for what was registered with atexit, when they did not.
_GRACE: Final = 0.4
_LAST_WORDS: Final = 2.0
# Seconds between two looks at threads.
_TICK: Final = 0.02
# Seconds in which an event loop that is not blocked reacts to a signal, on a machine that does a lot besides; and those
# after which a loop that has not reacted to the second signal is taken for blocked.
_REACTION_TIME: Final = 0.5
REACTION_TIMEOUT: Final = 0.8
# Places that one line of the log names.
_MOST_PLACES: Final = 5

# A thread is in these packages before it comes to a view.
_FRAMEWORKS: Final = frozenset(
    {
        "anyio",
        "asgiref",
        "asyncio",
        "concurrent",
        "contextvars",
        "django",
        "fastapi",
        "hypercorn",
        "microws",
        "outcome",
        "queue",
        "runpy",
        "selectors",
        "starlette",
        "threading",
        "trio",
        "uvloop",
    }
)
# Of these, the ones that run functions of others in threads; and where such a thread waits for the next function.
_POOLS: Final = frozenset({"anyio", "concurrent", "trio"})
_IDLE: Final = frozenset({"_worker", "_work"})
# What a line of the log leaves out, so that it names the app's own code.
_NOT_THE_APP: Final = _FRAMEWORKS | sys.stdlib_module_names


class ProcessEnd:
    """
    Ends this process where its own code does not: neither a blocked thread nor a blocked event loop can be cancelled.

    The seconds are counted in a thread, which starts with the first call of ``limit``. A process that only serves has
    no such thread, because Python warns of each fork of a process with threads.

    Args:
        renewal: Instead of the end, runs the program anew if that is due.
    """

    def __init__(self, renewal: Renewal) -> None:
        self._renewal = renewal
        self._limits: SimpleQueue[tuple[float, int] | None] = SimpleQueue()
        self._is_counting = False
        # What a pool does for the program itself is waited for as always; an idle thread may get a job of a view.
        # anyio's threads belong to another event loop, idle ones too.
        calls = _blocked_calls(loop_has_ended=True)
        self._before = {thread for thread in threading.enumerate() if thread.ident in calls}
        self._drained_by = inf

    def limit(self, seconds: float) -> None:
        """
        The drain or the next step of the end begins. It may take so many seconds, and a little more: after that the
        process ends with exit code 1.

        A signal handler may call this: it takes no lock that the interrupted code may hold.
        """
        deadline = time.monotonic() + seconds
        # Threads have as long as requests have. A second signal shortens that.
        self._drained_by = min(self._drained_by, deadline)
        self._count_until(deadline + _SLACK, 1)

    def finish(self, code: int) -> None:
        """Only the event loop has to end now. It may wait for threads until the end of the drain and a little more."""
        self._count_until(max(time.monotonic() + _SLACK, self._drained_by), code)

    def limit_reaction(self) -> None:
        """End the process within a second, with exit code 1, unless the event loop calls ``limit`` before that."""
        self._count_until(time.monotonic() + REACTION_TIMEOUT, 1)

    def abort(self) -> None:
        """End the process now, with exit code 1."""
        self._count_until(time.monotonic(), 1)

    def explain_unless(self, has_reacted: Callable[[], bool]) -> None:
        """
        Log what blocks the event loop, unless ``has_reacted()`` in a moment. A signal handler may call this.
        """
        with suppress(RuntimeError):  # too many threads
            _thread.start_new_thread(_explain_unless, (has_reacted,))

    def let_go(self, code: int) -> None:
        """
        The event loop has ended. Threads of a pool may go on until the end of the drain.

        Python waits for each thread when the main thread has ended. It will not wait for a thread of a pool that has
        begun its work in the meantime and is still at work then, such as a view's: the process ends with ``code``.
        Where no such thread is left, threads that the app has started itself are waited for, as always.
        """
        if self._is_counting:
            self._limits.put(None)
            self._is_counting = False
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
            threading.Thread(
                target=_end_after_main, args=(_end_of_main(), busy, code, self._renewal), daemon=True
            ).start()

    def _count_until(self, deadline: float, code: int) -> None:
        self._limits.put((deadline, code))
        if not self._is_counting:
            self._is_counting = True
            _thread.start_new_thread(self._count, ())

    def _count(self) -> None:
        limit = self._limits.get()
        while limit is not None:
            deadline, code = limit
            try:
                limit = self._limits.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                _end(code, self._renewal, warn=True)


def _wait_for_pools(threads: Iterable[threading.Thread], *, within: float = _GRACE) -> dict[threading.Thread, str]:
    """Those of the threads that are still at work for a pool after so many seconds, and what they are at."""
    end = time.monotonic() + within
    while True:
        calls = _blocked_calls(loop_has_ended=True)
        busy = {thread: calls[thread.ident] for thread in threads if thread.ident in calls and not thread.daemon}
        if not busy or time.monotonic() >= end:
            return busy
        # A thread that has done its work may stay, idle.
        next(iter(busy)).join(_TICK)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Have SIGINT and SIGTERM raise ``KeyboardInterrupt``, unless the app or a worker has a handler of its own."""
    plain = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, handler in before.items():
            if handler in plain:
                signal.signal(number, signal.default_int_handler)
        yield
    finally:
        for number, handler in before.items():
            if handler in plain:
                signal.signal(number, handler)


def _end_of_main() -> Callable[[], object]:
    """
    A function that waits until the main thread has run all of the program.

    To join the main thread is too late. Before that thread counts as ended, Python calls what was registered by
    ``threading._register_atexit``, the last one first; there ``concurrent.futures`` joins the threads of all pools,
    blocked ones too. The function is not public. It is the same in CPython 3.9 to 3.14.

    Source: ``_shutdown`` in CPython's threading.py, ``_python_exit`` in concurrent/futures/thread.py.
    """
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        ended = threading.Event()
        with suppress(RuntimeError):  # the main thread is past that point: app.run() was called by atexit
            register(ended.set)
            return ended.wait
    return threading.main_thread().join


def _end_after_main(
    wait: Callable[[], object], threads: Iterable[threading.Thread], code: int, renewal: Renewal
) -> None:
    wait()
    if _wait_for_pools(threads):
        # A traceback was printed: the script failed after the server.
        _end(code or int(hasattr(sys, "last_type")), renewal, warn=False)


def _end(code: int, renewal: Renewal, *, warn: bool) -> NoReturn:
    def last_words() -> None:
        if warn:
            calls = _blocked_calls(loop_has_ended=False)
            loop = calls.pop(threading.main_thread().ident, None)
            _warn(_summary(calls.values(), loop=loop) or "a task that ignores its cancellation")
        atexit._run_exitfuncs()  # noqa: SLF001
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()

    # This may be blocked, too: by a pipe that nobody reads.
    thread = threading.Thread(target=last_words, daemon=True)
    with suppress(RuntimeError):
        thread.start()
        thread.join(_LAST_WORDS)
    renewal.execute()
    os._exit(code)


def _warn(blocked: str) -> None:
    _log.warning("still running, and cut off by the end of the process: %s", blocked)


def _explain_unless(has_reacted: Callable[[], bool]) -> None:
    time.sleep(_REACTION_TIME)
    if not has_reacted() and (place := _blocked_calls(loop_has_ended=False).get(threading.main_thread().ident)):
        text = "the event loop does not react to the signal, because it is blocked (Ctrl-C again: at once): %s"
        _log.warning(text, place)


def _summary(places: Iterable[str], *, loop: str | None = None) -> str:
    """A text for the log: where the event loop is, then the places at which most threads are."""
    counts = Counter(places).most_common()
    texts = [] if loop is None else [loop]
    texts += [place if count == 1 else f"{count} × {place}" for place, count in counts[:_MOST_PLACES]]
    if left := sum(count for _, count in counts[_MOST_PLACES:]):
        texts.append(f"and {left} more")
    return "; ".join(texts)


def _blocked_calls(*, loop_has_ended: bool) -> dict[int | None, str]:
    """What the event loop and the threads of pools are at, by the thread's number: the view, and the app's line."""
    calls: dict[int | None, str] = {}
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    for ident, frame in sys._current_frames().items():  # noqa: SLF001
        stack = _stack(frame)
        if ident == main:
            # The frames before this one are the program that has started the server.
            while stack and _module(stack[0]) != "microws.server.worker":
                stack.pop(0)
        outer = list(takewhile(lambda frame: _package(frame) in _FRAMEWORKS, stack))
        inner = stack[len(outer) :]
        if ident != main and not any(_package(frame) in _POOLS for frame in outer):
            continue
        if inner:
            own = [frame for frame in inner if _package(frame) not in _NOT_THE_APP] or inner[:1]
            view, last = own[0], own[-1]
            calls[ident] = _place(view) if view is last else f"{_place(view)}, in {_place(last)}"
        elif ident != main and _is_busy(outer[-1], loop_has_ended=loop_has_ended):
            calls[ident] = _called_by_pool(outer, names.get(ident, ""))
    return calls


def _called_by_pool(stack: list[FrameType], name: str) -> str:
    """A function of the standard library that a thread of this name runs, or one that has no frame."""
    for caller, frame in reversed(list(pairwise(stack))):
        if _package(caller) in _POOLS and _package(frame) not in _POOLS:
            return _place(frame)
    # Each thread has a number, which would make each entry of the log a different one.
    return f"a function that is not written in Python, in a thread of {name.rstrip('0123456789').rstrip('-_ ')}"


def _is_busy(frame: FrameType, *, loop_has_ended: bool) -> bool:
    # It runs a function that is not written in Python. While it waits for one, anyio's is within a queue; anyio has
    # ended those at the end of the event loop, so that any other wait is one of the function.
    if _package(frame) in _POOLS:
        return frame.f_code.co_name not in _IDLE
    return loop_has_ended


def _stack(frame: FrameType | None) -> list[FrameType]:
    """The frames of a thread, the outermost one first."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _package(frame: FrameType) -> str:
    return _module(frame).partition(".")[0]


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_qualname}() at {frame.f_code.co_filename}:{frame.f_lineno}"
