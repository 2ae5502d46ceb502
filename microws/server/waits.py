"""Waits for a client that the server itself can end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio

from microws.interfaces import Event

__all__ = ["AsyncioWaits", "TrioWaits", "Waits"]


class Waits(Protocol):
    """The calls of ``receive`` that are in progress for one connection."""

    @property
    def pending(self) -> bool:
        """Whether there is one."""
        ...

    async def run(self, receive: Callable[[], Awaitable[Event]]) -> Event | None:
        """``await receive()``; ``None`` where ``interrupt`` ended it, and then no event is lost."""
        ...

    def interrupt(self) -> None:
        """End every wait that is in progress."""
        ...


class AsyncioWaits:
    """
    For asyncio, by cancelling the waiting task and taking the cancellation back: every message of every WebSocket
    comes this way, and a cancel scope or ``asyncio.timeout`` would add a twentieth to what an echo costs.

    Source: https://docs.python.org/3/library/asyncio-task.html#asyncio.Task.uncancel
    """

    __slots__ = ("_interrupted", "_tasks")

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        # Each with the cancellations that it had before ours.
        self._interrupted: dict[asyncio.Task[object], int] = {}

    @property
    def pending(self) -> bool:
        return bool(self._tasks)

    async def run(self, receive: Callable[[], Awaitable[Event]]) -> Event | None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await receive()
        except asyncio.CancelledError:
            # Somebody else may have cancelled the task as well: that one counts.
            if task not in self._interrupted or task.uncancel() > self._interrupted[task]:
                raise
            return None
        finally:
            self._tasks.discard(task)
            self._interrupted.pop(task, None)

    def interrupt(self) -> None:
        for task in self._tasks - self._interrupted.keys():
            self._interrupted[task] = task.cancelling()
            task.cancel()


class TrioWaits:
    """For trio, whose only way to end a wait is a cancel scope."""

    __slots__ = ("_scopes",)

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()

    @property
    def pending(self) -> bool:
        return bool(self._scopes)

    async def run(self, receive: Callable[[], Awaitable[Event]]) -> Event | None:
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                return await receive()
            finally:
                self._scopes.discard(scope)
        return None

    def interrupt(self) -> None:
        for scope in self._scopes:
            scope.cancel()
