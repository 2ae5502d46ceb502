"""The worker threads of an app: plain functions run there, so that one that blocks does not block the event loop."""

import inspect
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from itertools import count
from typing import Any, Literal, TypeAlias

import anyio
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync

from microws.interfaces import Scope

__all__ = ["Threads", "Work", "threads_of"]

Work: TypeAlias = Literal["views", "hooks", "generators"]

_UNSET = object()
_numbers = count(1)


class Threads:
    """
    Worker threads, at most ``size`` at a time for each kind of work, so that blocked generators do not delay a view.

    Args:
        size: For plain ``def`` views, for plain hooks and error handlers, and for plain generators of streams, each.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        # A limiter belongs to one event loop. Some versions of anyio distinguish these variables by their name only.
        self._limiters: RunVar[dict[Work, anyio.CapacityLimiter]] = RunVar(f"microws.threads.{next(_numbers)}")

    async def run(self, work: Work, function: Callable[..., Any], *args: Any) -> Any:
        """
        Call ``function(*args)`` in a worker thread, and await the result if it is awaitable.

        Context variables that it sets are set for the caller too. If it is cancelled, it waits until the thread is
        done.
        """
        changes: list[tuple[ContextVar[Any], Any]] = []

        def call() -> tuple[Any]:
            before = copy_context()
            try:
                # In a tuple: trio refuses a coroutine as a thread's result.
                return (function(*args),)
            finally:
                changes.extend(_changes(before))

        try:
            (result,) = await run_sync(call, limiter=self._limiter(work))
        finally:
            for variable, value in changes:
                variable.set(value)
        return await result if inspect.isawaitable(result) else result

    def _limiter(self, work: Work) -> "anyio.CapacityLimiter":
        limiters = self._limiters.get(None)
        if limiters is None:
            limiters = {}
            self._limiters.set(limiters)
        if work not in limiters:
            limiters[work] = anyio.CapacityLimiter(self._size)
        return limiters[work]


def _changes(before: Context) -> list[tuple[ContextVar[Any], Any]]:
    return [
        (variable, value) for variable, value in copy_context().items() if before.get(variable, _UNSET) is not value
    ]


_DEFAULT = Threads(40)


def threads_of(scope: Scope) -> Threads:
    """The threads of the app that serves ``scope``. Scopes without a microws app share one pool."""
    threads = getattr(scope.get("app"), "threads", None)
    return threads if isinstance(threads, Threads) else _DEFAULT
