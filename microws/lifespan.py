"""The life of an app: start-up, background tasks, shutdown. https://asgi.readthedocs.io/en/latest/specs/lifespan.html"""

import inspect
import logging
import traceback
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup

from microws.hooks import HookList, call_hook, check_hook
from microws.interfaces import Receive, Send
from microws.tasks import check_function

__all__ = ["BackgroundTasks", "Lifespan"]

_log = logging.getLogger("microws.lifespan")


class BackgroundTasks:
    """The tasks of ``app.start_soon``: they run from start-up to shutdown, and a failing one disturbs nobody."""

    def __init__(self) -> None:
        self._group: TaskGroup | None = None
        self._ended: anyio.Event | None = None

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """
        Run ``function(*args)`` until it ends or the app does.

        Raises:
            RuntimeError: The app has not started, or has ended.
            TypeError: ``function`` is none.
        """
        check_function(function)
        if self._group is None:
            raise RuntimeError(
                "app.start_soon needs a running app: call it in @app.on_startup or later, on a server with lifespan"
            )
        self._group.start_soon(_run_task, function, args)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Keep the tasks until ``stop``."""
        ended = self._ended = anyio.Event()
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._group = None
            ended.set()

    async def stop(self) -> None:
        """Cancel the tasks, and wait until the last of them has ended."""
        if self._group is not None:
            self._group.cancel_scope.cancel()
            self._group = None
        if self._ended is not None:
            await self._ended.wait()


async def _run_task(function: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...]) -> None:
    try:
        await function(*args)
    except Exception:
        _log.exception("the background task %s failed", getattr(function, "__qualname__", function))


class Lifespan:
    """
    What an app does when it starts and when it ends, and its tasks in between.

    Attributes:
        is_serving: Not while the app starts or ends. Where no lifespan is served it always is.
    """

    def __init__(self) -> None:
        self.is_serving = True
        self.contexts: list[Callable[[Any], AbstractAsyncContextManager[Any]]] = []
        self.on_startup = HookList("on_startup")
        self.on_shutdown = HookList("on_shutdown")
        self.tasks = BackgroundTasks()

    def add_context(self, context: Callable[[Any], Any]) -> None:
        """
        Enter ``context(app)`` too: an async context manager, or an async generator with one ``yield``.

        Raises:
            TypeError: It is neither.
        """
        check_hook(context, "lifespan", "app")
        if inspect.iscoroutinefunction(context):
            raise TypeError("@app.lifespan takes an async generator: write a `yield` between start-up and shutdown")
        self.contexts.append(asynccontextmanager(context) if inspect.isasyncgenfunction(context) else context)

    def include(self, other: "Lifespan") -> None:
        """Do what ``other`` would do too, behind what there is."""
        self.contexts.extend(other.contexts)
        self.on_startup.extend(other.on_startup)
        self.on_shutdown.extend(other.on_shutdown)

    async def serve(self, receive: Receive, send: Send, *, app: Any) -> None:
        """
        Answer ASGI's lifespan events.

        Start-up enters the contexts in order, then calls the hooks in order. Shutdown ends the background tasks, calls
        the shutdown hooks, then leaves the contexts in reverse. Whatever has begun is ended, also where something
        fails on the way; a failure is told to the server with its traceback, and raised.

        Args:
            app: What the contexts are made with.
        """
        self.is_serving = False
        await receive()
        phase = "startup"
        failure: Exception | SystemExit | None = None
        async with anyio.create_task_group() as group:
            await group.start(self.tasks.run)
            try:
                async with AsyncExitStack() as stack:
                    try:
                        for context in self.contexts:
                            await stack.enter_async_context(context(app))
                        for hook in self.on_startup:
                            await call_hook(hook)
                        self.is_serving = True
                        await send({"type": "lifespan.startup.complete"})
                        phase = "shutdown"
                        await receive()
                    finally:
                        self.is_serving = False
                        await self.tasks.stop()
                    for hook in reversed(self.on_shutdown):
                        stack.push_async_callback(call_hook, hook)
            except (Exception, SystemExit) as error:
                failure = error
        if failure is not None:
            await send({"type": f"lifespan.{phase}.failed", "message": "".join(traceback.format_exception(failure))})
            raise failure
        await send({"type": "lifespan.shutdown.complete"})
