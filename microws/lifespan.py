"""The life of an app: start-up, background tasks, shutdown. https://asgi.readthedocs.io/en/latest/specs/lifespan.html"""

import inspect
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from math import inf
from typing import Any, Final

import anyio
import anyio.abc

from microws.hooks import HookList, call_hook, check_hook
from microws.hub import Hub
from microws.interfaces import Receive, Scope, Send
from microws.routing import Mounted, Router
from microws.server.lifespan import LifespanRunner
from microws.tasks import check_function
from microws.views import MountEndpoint

__all__ = ["BackgroundTasks", "Lifespan"]

_NO_TASKS: Final = (
    "app.start_soon needs a running app: call it in @app.on_startup or later, on a server with lifespan; "
    "in another framework's lifespan, write `async with app.running():`"
)

_log = logging.getLogger("microws.lifespan")


class BackgroundTasks:
    """
    The tasks of ``app.start_soon`` in one run of an app: from start-up to shutdown. A failing one disturbs nobody.

    Args:
        report: Called with the exception of a task that fails, once it is logged.

    Attributes:
        is_serving: Whether the app has started, and has not begun to end.
    """

    def __init__(self, report: Callable[[Exception], None] | None) -> None:
        self.is_serving = False
        self._report = report
        self._group: anyio.abc.TaskGroup | None = None
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
            raise RuntimeError(_NO_TASKS)
        self._group.start_soon(self._run_task, function, args)

    async def run(self, *, task_status: "anyio.abc.TaskStatus[None]") -> None:
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

    async def _run_task(self, function: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...]) -> None:
        try:
            await function(*args)
        except Exception as error:
            _log.exception("the background task %s failed", getattr(function, "__qualname__", function))
            if self._report is not None:
                self._report(error)


class Lifespan:
    """
    What an app does when it starts and when it ends, and its tasks in between.

    It may run several times at once in one event loop, as under two test clients. Each run starts and ends by itself.

    Args:
        hub: The app's; it publishes while there is a run.
        router: Its mounted apps are run too.
    """

    def __init__(self, hub: Hub, router: Router) -> None:
        self.contexts: list[Callable[[Any], AbstractAsyncContextManager[Any]]] = []
        self.on_startup: HookList = HookList("on_startup")
        self.on_shutdown: HookList = HookList("on_shutdown")
        self._hub = hub
        self._router = router
        self._runs: list[BackgroundTasks] = []
        self._has_run = False

    @property
    def is_serving(self) -> bool:
        """Not while the app starts or ends. Where no lifespan is run it always is."""
        return not self._has_run or any(run.is_serving for run in self._runs)

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """
        Run ``function(*args)`` until it ends or the latest run does.

        Raises:
            RuntimeError: The app does not run, or runs in another event loop.
            TypeError: ``function`` is not a function.
        """
        check_function(function)
        if not self._runs:
            raise RuntimeError(_NO_TASKS)
        self._hub.loop.check("anyio.from_thread.run_sync(app.start_soon, function)")
        self._runs[-1].start_soon(function, *args)

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

    @asynccontextmanager
    async def run(self, app: Any, scope: Scope) -> AsyncIterator[dict[str, Any]]:
        """
        Start the app on entering, and end it on leaving; leave in the task that entered.

        Start-up enters the contexts in order, calls the hooks in order, then starts the mounted apps in order. Shutdown
        ends the mounted apps in reverse, then the background tasks, calls the shutdown hooks, then leaves the contexts
        in reverse. Whatever has begun is ended, also where something
        fails on the way; the failure is raised.

        Args:
            app: What the contexts are made with.
            scope: ASGI's, or one without anything. Its ``state`` gets the mappings that the contexts yield, and is
                yielded. ``extensions["microws"]["report_error"]`` is called with what leaves a background task.
        """
        with self._hub.loop.running():
            async with self._run(app, scope):
                yield scope.get("state") or {}

    async def serve(self, scope: Scope, receive: Receive, send: Send, *, app: Any) -> None:
        """
        Answer ASGI's lifespan events: ``run`` from start-up to shutdown.

        A failure is told to the server with its traceback, and raised.
        """
        await receive()
        phase = "startup"
        try:
            async with self.run(app, scope):
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()
        except (Exception, SystemExit) as failure:
            await send({"type": f"lifespan.{phase}.failed", "message": "".join(traceback.format_exception(failure))})
            raise
        await send({"type": "lifespan.shutdown.complete"})

    @asynccontextmanager
    async def _run(self, app: Any, scope: Scope) -> AsyncIterator[None]:
        failure: Exception | SystemExit | None = None
        extension = (scope.get("extensions") or {}).get("microws") or {}
        tasks = BackgroundTasks(extension.get("report_error"))
        self._runs.append(tasks)
        self._has_run = True
        try:
            async with anyio.create_task_group() as group:
                await group.start(tasks.run)
                try:
                    async with AsyncExitStack() as stack:
                        try:
                            for context in self.contexts:
                                await _enter(stack, context(app), scope.get("state"))
                            for hook in self.on_startup:
                                await call_hook(hook)
                            for hook in reversed(self.on_shutdown):
                                stack.push_async_callback(call_hook, hook)
                            async with _mounted(app, self._router.mounts, scope):
                                tasks.is_serving = True
                                try:
                                    yield
                                finally:
                                    tasks.is_serving = False
                        finally:
                            await tasks.stop()
                except (Exception, SystemExit) as error:
                    failure = error
        finally:
            self._runs.remove(tasks)
        # Outside of the task group, which would wrap it.
        if failure is not None:
            raise failure


class _MountedLifespan(LifespanRunner):
    """The lifespan of a mounted app, which raises what the server would log."""

    async def report_failure(self, phase: str) -> None:
        error, message = await self.failure(phase)
        raise RuntimeError(f"{self.name}: its {phase} failed: {message}") from error


@asynccontextmanager
async def _mounted(app: Any, mounts: list[Mounted], scope: Scope) -> AsyncIterator[None]:
    """Run the mounted apps, each once."""
    places: dict[int, list[Mounted]] = {}
    for mounted in mounts:
        if mounted.endpoint.app is not app:
            places.setdefault(id(mounted.endpoint.app), []).append(mounted)
    async with AsyncExitStack() as stack:
        for same in places.values():
            await stack.enter_async_context(_run_mounted([mounted.endpoint for mounted in same], same[0].prefix, scope))
        yield


@asynccontextmanager
async def _run_mounted(endpoints: list[MountEndpoint], prefix: str, scope: Scope) -> AsyncIterator[None]:
    failure: Exception | None = None
    name = f"the app mounted at {prefix or '/'}"
    lifespan = _MountedLifespan(endpoints[0].app, name=name, extensions=scope.get("extensions"))
    async with anyio.create_task_group() as group:
        group.start_soon(lifespan.run)
        try:
            # The server limits the time of all.
            await lifespan.startup(timeout=inf)
            for endpoint in endpoints:
                endpoint.states.append(lifespan.state)
            try:
                yield
            finally:
                for endpoint in endpoints:
                    endpoint.states.remove(lifespan.state)
                if not await lifespan.shutdown(timeout=inf):
                    raise RuntimeError(f"{name}: its lifespan failed while it was served; the log says why")
        except Exception as error:
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _enter(
    stack: AsyncExitStack, context: AbstractAsyncContextManager[Any], state: dict[str, Any] | None
) -> None:
    """Enter a context. A mapping that it yields becomes lifespan state. Source: Starlette, "Lifespan State"."""
    entered = await stack.enter_async_context(context)
    # Many contexts return themselves, such as a pool of connections.
    if entered is None or entered is context:
        return
    if not isinstance(entered, Mapping):
        raise TypeError(
            "expected a mapping or nothing from the lifespan, got "
            f'{type(entered).__name__}: write `yield {{"name": value}}`, which views read as request.state.name'
        )
    if state is None:
        raise RuntimeError(
            "expected a server that keeps the state of a lifespan, got none: set app.state.name and yield nothing"
        )
    state.update(entered)
