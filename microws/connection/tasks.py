"""
The tasks of one connection: its view, which has a deadline, and the tasks beside it.

On asyncio an idle connection costs only its server's task: no task group, no cancel scope, no timer. All connections of
an event loop share the timers of their deadlines.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import anyio

from microws.connection.deadlines import deadlines_of
from microws.interfaces import Scope

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

__all__ = ["AsyncioTasks", "GroupTasks", "Tasks", "check_function", "current_task", "task_group"]

# Before 3.12 asyncio.current_task is a function in Python, which takes four times as long as this.
current_task: Callable[[asyncio.AbstractEventLoop | None], asyncio.Task[Any] | None] = (
    asyncio.current_task if sys.version_info >= (3, 12) else asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]  # noqa: SLF001
)
_ENDED = "this connection has ended: it cannot start tasks any more"
# Seconds that a view may run after its connection ended before a warning is logged.
_MAX_SECONDS_AFTER_END = 60.0

_log = logging.getLogger("microws.websocket")


class AsyncioTasks:
    """
    The view of a connection and the tasks beside it, on asyncio.

    The view runs inside ``with tasks:``. ``end`` cancels the tasks beside it.

    Args:
        loop: The running event loop.
        scope: Scope of the connection, for the log.
        seconds: Seconds until the view's first deadline.

    Attributes:
        was_cancelled: Whether the view was cancelled at its deadline.
    """

    __slots__ = (
        "_deadlines",
        "_has_ended",
        "_helpers",
        "_is_spared",
        "_loop",
        "_main",
        "_scope",
        "_seconds_to_warning",
        "was_cancelled",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, scope: Scope, seconds: float) -> None:
        self.was_cancelled: bool = False
        self._scope = scope
        # A view that has seen the end, or suppresses a cancellation, is not cancelled any more: it has no deadline.
        self._is_spared = False
        self._has_ended = False
        self._helpers: set[asyncio.Task[None]] | None = None
        self._main: asyncio.Task[Any] | None = None
        self._loop = loop
        # From the deadline that follows the end of the connection; 0 after the warning.
        self._seconds_to_warning = inf
        self._start(seconds, AsyncioTasks._cancel)

    def __enter__(self) -> Self:
        self._main = current_task(self._loop)
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        main, self._main = self._main, None
        if not self.was_cancelled:
            return False
        assert main is not None
        # Only the deadline's own cancellation ends here.
        return main.uncancel() == 0 and error_type is asyncio.CancelledError

    def is_view(self) -> bool:
        """Whether the caller is the view itself, not a task that it started. After the view: ``True``."""
        main = self._main
        if main is None:
            return True
        task = current_task(self._loop)
        return task is main or _waits_for(main, task)

    def lift_limit(self) -> None:
        """Remove the view's first deadline."""
        self._deadlines.stop(self)

    def expire(self, seconds: float) -> None:
        """
        The connection has ended: cancel the view in ``seconds``; ``inf`` for never.

        If the view still runs after a minute, a warning is logged once.
        """
        if self._main is None or not self._seconds_to_warning:
            return
        self._deadlines.stop(self)
        self._is_spared = self._is_spared or seconds == inf
        if self._is_spared:
            self._start(_MAX_SECONDS_AFTER_END, AsyncioTasks._warn)
        else:
            self._seconds_to_warning = max(_MAX_SECONDS_AFTER_END - seconds, 1)
            self._start(seconds, AsyncioTasks._cancel)

    def spare(self) -> None:
        """Do not cancel the view, which has seen the end."""
        self._is_spared = True

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """
        Run ``function(*args)`` beside the view. It must not raise.

        Raises:
            RuntimeError: After ``end``.
        """
        if self._has_ended:
            raise RuntimeError(_ENDED)
        self.adopt(self._loop.create_task(function(*args)))

    def adopt(self, task: asyncio.Task[None]) -> None:
        """Let ``end`` cancel ``task``, which from now on runs for this connection."""
        self._helpers = self._helpers or set()
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)

    def end(self) -> Awaitable[None] | None:
        """Cancel the tasks beside the view. Returns what to wait for, if any of them runs."""
        self._has_ended = True
        if not self._is_spared:
            self._deadlines.stop(self)
        # It may refer to the connection, which refers to this object.
        self._scope = {}
        return self._end_helpers() if self._helpers else None

    async def _end_helpers(self) -> None:
        while self._helpers:
            for task in self._helpers:
                task.cancel()
            await asyncio.wait(self._helpers)

    def _start(self, seconds: float, on_due: "Callable[[AsyncioTasks], None]") -> None:
        self._deadlines = deadlines_of(self._loop, seconds, on_due)
        self._deadlines.start(self)

    def _cancel(self) -> None:
        # After the view its task belongs to the server again.
        if self._main is None:
            return
        if not self._is_spared:
            self._is_spared = self.was_cancelled = True
            self._main.cancel()
        if self._seconds_to_warning < inf:
            self._start(self._seconds_to_warning, AsyncioTasks._warn)

    def _warn(self) -> None:
        if self._main is not None:
            self._seconds_to_warning = 0
            _warn_of_view(self._scope)


class GroupTasks:
    """
    ``AsyncioTasks`` in an anyio task group, for trio.

    Args:
        group: Task group that ends with the connection.
        scope: Scope of the connection, for the log.
        seconds: Seconds until the view's first deadline.
    """

    def __init__(self, group: "TaskGroup", scope: Scope, seconds: float) -> None:
        self._group = group
        self._asgi_scope = scope
        self._has_ended = False
        self._is_spared = False
        self._is_watched = False
        self._running = 0
        self._none_runs: anyio.Event | None = None
        self._view: anyio.TaskInfo | None = None
        self._scope = anyio.CancelScope(deadline=anyio.current_time() + seconds)

    @property
    def was_cancelled(self) -> bool:
        return self._scope.cancelled_caught

    def __enter__(self) -> Self:
        self._view = anyio.get_current_task()
        self._scope.__enter__()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._view = None
        return bool(self._scope.__exit__(error_type, error, traceback))

    def is_view(self) -> bool:
        return self._view is None or self._view == anyio.get_current_task()

    def lift_limit(self) -> None:
        self._scope.deadline = inf

    def expire(self, seconds: float) -> None:
        if self._view is None:
            return
        if not self._is_spared:
            self._scope.deadline = anyio.current_time() + seconds
        if not self._is_watched:
            self._is_watched = True
            self.start_soon(self._watch)

    def spare(self) -> None:
        self._is_spared = True
        self._scope.deadline = inf

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        if self._has_ended:
            raise RuntimeError(_ENDED)
        self._running += 1
        self._group.start_soon(self._run, function, args)

    def end(self) -> Awaitable[None] | None:
        self._has_ended = True
        self._group.cancel_scope.cancel()
        if not self._running:
            return None
        self._none_runs = anyio.Event()
        return self._wait_until_none_runs(self._none_runs)

    @staticmethod
    async def _wait_until_none_runs(event: "anyio.Event") -> None:
        with anyio.CancelScope(shield=True):
            await event.wait()

    async def _run(self, function: Callable[..., Coroutine[Any, Any, None]], args: tuple[Any, ...]) -> None:
        try:
            await function(*args)
        finally:
            self._running -= 1
            if self._none_runs is not None and not self._running:
                self._none_runs.set()

    async def _watch(self) -> None:
        await anyio.sleep(_MAX_SECONDS_AFTER_END)
        if self._view is not None:
            _warn_of_view(self._asgi_scope)


Tasks: TypeAlias = AsyncioTasks | GroupTasks


def _waits_for(main: asyncio.Task[Any], task: Any) -> bool:
    """
    Whether ``main`` is inside an ``asyncio.wait_for`` that runs ``task``.

    Up to Python 3.11 ``wait_for`` runs its coroutine in a new task, and waits for a future that ``_release_waiter``, a
    callback of that task, sets.

    Source: CPython 3.11, asyncio/tasks.py:445-473.
    """
    if sys.version_info >= (3, 12):
        return False
    while task is not None and task is not main:
        task = next((caller for callback in task._callbacks or () if (caller := _caller(*callback)) is not None), None)  # noqa: SLF001
    return task is main


def _caller(callback: Any, _: object) -> Any:
    """The task inside ``asyncio.wait_for`` that waits for the task with this callback."""
    if not isinstance(callback, partial) or callback.func is not asyncio.tasks._release_waiter:  # type: ignore[attr-defined]  # noqa: SLF001
        return None
    wake_up = next(iter(callback.args[0]._callbacks or ()), (None,))[0]  # noqa: SLF001
    return getattr(wake_up, "__self__", None)


def _warn_of_view(scope: Scope) -> None:
    view = scope.get("endpoint")
    _log.warning(
        "%r: the view %s is still running %d s after its connection ended; work that takes longer belongs in "
        "app.start_soon",
        scope["path"],
        getattr(view, "__qualname__", None) or repr(view),
        _MAX_SECONDS_AFTER_END,
    )


def check_function(function: object) -> None:
    """Raise ``TypeError`` if ``start_soon`` got something else than a function, such as a coroutine."""
    if not callable(function):
        raise TypeError(
            "expected a function and its arguments, as in start_soon(tick, 1), not its result, as in "
            f"start_soon(tick(1)); got {type(function).__name__}"
        )


@asynccontextmanager
async def task_group() -> "AsyncIterator[TaskGroup]":
    """A task group that is cancelled at the end of its block, and does not wrap an exception of the block."""
    failure: Exception | SystemExit | None = None
    async with anyio.create_task_group() as group:
        try:
            yield group
        except (Exception, SystemExit) as error:
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
