"""The lifespan of an app: startup, background tasks, shutdown. https://asgi.readthedocs.io/en/latest/specs/lifespan.html"""

import inspect
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from math import inf
from typing import TYPE_CHECKING, Any, Final

import anyio

from microws.connection.tasks import check_function, task_group
from microws.errors import FeatureUnavailable, HubUnavailable
from microws.hooks import HookList, call_hook, check_hook
from microws.hub import Hub
from microws.hub_url import OPEN_HUB, redis_address
from microws.interfaces import Receive, Scope, Send
from microws.routing import Mounted, Router
from microws.server.lifespan import LifespanRunner

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus

__all__ = ["Lifespan"]

_NO_TASKS: Final = (
    "app.start_soon needs a running app: call it in @app.on_startup or later, on a server with lifespan; "
    "in another framework's lifespan, write `async with app.running():`"
)

_log = logging.getLogger("microws.lifespan")


class _Run:
    """
    One run of an app, with its background tasks.

    Args:
        report: Called with the exception of a task that fails, after it was logged.

    Attributes:
        is_serving: Whether the app has started, and its shutdown has not begun.
        tasks: The tasks of ``app.start_soon``; ``None`` before the first and after the last.
    """

    def __init__(self, report: Callable[[Exception], None] | None) -> None:
        self.is_serving = False
        self.tasks: TaskGroup | None = None
        self._report = report
        self._ended = anyio.Event()

    async def keep_tasks(self, *, task_status: "TaskStatus[None]") -> None:
        """Run ``tasks`` until ``stop_tasks``."""
        try:
            async with anyio.create_task_group() as self.tasks:
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self.tasks = None
            self._ended.set()

    async def stop_tasks(self) -> None:
        """Cancel the tasks, and wait until the last of them has ended."""
        if self.tasks is not None:
            self.tasks.cancel_scope.cancel()
            self.tasks = None
        await self._ended.wait()

    async def run_task(self, function: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...]) -> None:
        """Call ``function``. A failure is logged, and does not stop other tasks."""
        try:
            await function(*args)
        except Exception as error:
            _log.exception("the background task %s failed", getattr(function, "__qualname__", function))
            if self._report is not None:
                self._report(error)


class Lifespan:
    """
    The startup and shutdown of an app, and its background tasks in between.

    It may run several times at once in one event loop, for example under two test clients. Each run starts and ends
    independently.

    Args:
        hub: The app's; it publishes during a run.
        router: Its mounted apps are run, too.
        hub_url, history_bytes: As in ``App``.
    """

    def __init__(self, hub: Hub, router: Router, *, hub_url: str, history_bytes: int) -> None:
        self.contexts: list[Callable[[Any], AbstractAsyncContextManager[Any]]] = []
        self.on_startup: HookList = HookList("on_startup")
        self.on_shutdown: HookList = HookList("on_shutdown")
        self._hub = hub
        self._router = router
        self._hub_url = hub_url
        self._history_bytes = history_bytes
        self._runs: list[_Run] = []
        self._has_run = False

    @property
    def is_serving(self) -> bool:
        """Whether the app serves: not during startup and shutdown. Without a lifespan it always does."""
        return not self._has_run or any(run.is_serving for run in self._runs)

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """
        Run ``function(*args)`` until it ends or the latest run does.

        Raises:
            RuntimeError: The app is not running, or runs in another event loop.
            TypeError: ``function`` is not a function.
        """
        check_function(function)
        if not self._runs:
            raise RuntimeError(_NO_TASKS)
        self._hub.loop.check("anyio.from_thread.run_sync(app.start_soon, function)")
        run = self._runs[-1]
        if run.tasks is None:
            raise RuntimeError(_NO_TASKS)
        run.tasks.start_soon(run.run_task, function, args)

    def add_context(self, context: Callable[[Any], Any]) -> None:
        """
        Enter ``context(app)`` at startup: an async context manager, or an async generator with one ``yield``.

        Raises:
            TypeError: It is neither.
        """
        check_hook(context, "lifespan", "app")
        if inspect.iscoroutinefunction(context):
            raise TypeError("expected an async generator for @app.lifespan: write a `yield` after the startup")
        self.contexts.append(asynccontextmanager(context) if inspect.isasyncgenfunction(context) else context)

    def include(self, other: "Lifespan") -> None:
        """Add the contexts and hooks of ``other`` after the present ones."""
        self.contexts.extend(other.contexts)
        self.on_startup.extend(other.on_startup)
        self.on_shutdown.extend(other.on_shutdown)

    @asynccontextmanager
    async def run(self, app: Any, scope: Scope) -> AsyncIterator[dict[str, Any]]:
        """
        Start the app on entering, and end it on leaving. Leave in the task that entered.

        Startup enters the contexts in order, calls the hooks in order, then starts the mounted apps in order. Shutdown
        ends the mounted apps in reverse, then the background tasks, calls the shutdown hooks, then leaves the contexts
        in reverse. After a failure everything that was started is ended, and the failure is raised.

        Args:
            app: The argument of the contexts.
            scope: ASGI's, or an empty one. Its ``state`` is updated with the mappings that the contexts yield, and is
                yielded. ``extensions["microws"]["report_error"]`` is called with exceptions of background tasks.
                ``["mount"]`` is where the app is mounted.
        """
        extension = (scope.get("extensions") or {}).get("microws") or {}
        run = _Run(extension.get("report_error"))
        async with AsyncExitStack() as stack:
            stack.enter_context(self._hub.loop.running())
            self._runs.append(run)
            stack.callback(self._runs.remove, run)
            self._has_run = True
            self._hub.mount = extension.get("mount", "")
            hub_url = self._connect_hub(extension.get("hub", self._hub_url))
            group = await stack.enter_async_context(task_group())
            await group.start(self._hub.backplane.run)
            stack.push_async_callback(self._hub.backplane.aclose)
            await group.start(run.keep_tasks)
            try:
                for context in self.contexts:
                    await _enter(stack, context(app), scope.get("state"))
                for hook in self.on_startup:
                    await call_hook(hook)
                for hook in reversed(self.on_shutdown):
                    stack.push_async_callback(call_hook, hook)
                async with AsyncExitStack() as mounted:
                    for mounts in _by_app(app, self._router.mounts):
                        await mounted.enter_async_context(_run_mounted(mounts, scope, hub_url))
                    run.is_serving = True
                    try:
                        yield scope.get("state") or {}
                    finally:
                        run.is_serving = False
            finally:
                await run.stop_tasks()

    async def serve(self, scope: Scope, receive: Receive, send: Send, *, app: Any) -> None:
        """
        Answer ASGI's lifespan events: ``run`` from startup to shutdown.

        A failure is sent to the server with its traceback, and raised.
        """
        await receive()
        phase = "startup"
        try:
            async with self.run(app, scope):
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()
        except (Exception, SystemExit) as failure:
            is_known = isinstance(failure, HubUnavailable | FeatureUnavailable)
            message = str(failure) if is_known else "".join(traceback.format_exception(failure))
            await send({"type": f"lifespan.{phase}.failed", "message": message})
            raise
        await send({"type": "lifespan.shutdown.complete"})

    def _connect_hub(self, url: str) -> str:
        """
        Let the hub use Redis, or the backplane that the server has. Apps that are mounted share it, but no topics.

        Returns:
            The ``hub=`` of apps that are mounted and have none themselves.
        """
        open_hub = OPEN_HUB.get()
        if open_hub is None and url.startswith("local"):
            raise RuntimeError(f"expected the server of microws for hub={url!r}, got another one: use `microws run`")
        path = url if open_hub is None else open_hub(url, self._history_bytes, self._hub.mount, self._hub)
        # Imported here, because an app in one process needs neither.
        if path is not None and redis_address(path) is not None:
            from microws.redis_hub.backplane import RedisBackplane

            self._hub.use(RedisBackplane(path, mount=self._hub.mount))
            return path
        if open_hub is not None and path is not None:
            from microws.local.client import LocalBackplane

            self._hub.use(LocalBackplane(path, mount=self._hub.mount))
        return ""


class _MountedLifespan(LifespanRunner):
    """The lifespan of a mounted app. It raises the failures that the server would log."""

    async def report_failure(self, phase: str) -> None:
        error, message = await self.failure(phase)
        raise RuntimeError(f"{self.name}: its {phase} failed: {message}") from error


def _by_app(outer: Any, mounts: list[Mounted]) -> list[list[Mounted]]:
    """The mounts of each mounted app, because an app that is mounted twice runs once."""
    apps: dict[int, list[Mounted]] = {}
    for mounted in mounts:
        if mounted.endpoint.app is not outer:
            apps.setdefault(id(mounted.endpoint.app), []).append(mounted)
    return list(apps.values())


@asynccontextmanager
async def _run_mounted(mounts: list[Mounted], scope: Scope, hub_url: str) -> AsyncIterator[None]:
    path = mounts[0].path
    name = f"the app mounted at {path}"
    outer = scope.get("extensions") or {}
    extension = outer.get("microws") or {}
    # An app that is mounted at several places runs once, with the first of them as its name in the hub.
    extension = {**extension, "mount": extension.get("mount", "") + (path or "/")}
    extensions = {**outer, "microws": extension | ({"hub": hub_url} if hub_url else {})}
    lifespan = _MountedLifespan(mounts[0].endpoint.app, name=name, extensions=extensions)
    async with task_group() as group:
        group.start_soon(lifespan.run)
        # The server limits the time of the whole lifespan.
        await lifespan.startup(timeout=inf)
        for mounted in mounts:
            mounted.endpoint.states.append(lifespan.state)
        try:
            yield
        finally:
            for mounted in mounts:
                mounted.endpoint.states.remove(lifespan.state)
            if not await lifespan.shutdown(timeout=inf):
                raise RuntimeError(f"{name}: its lifespan failed while it was served; the log says why")


async def _enter(
    stack: AsyncExitStack, context: AbstractAsyncContextManager[Any], state: dict[str, Any] | None
) -> None:
    """Enter a context. A mapping that it yields becomes lifespan state. Source: Starlette, "Lifespan State"."""
    entered = await stack.enter_async_context(context)
    # Many contexts yield themselves, such as a pool of connections.
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
