"""Serves an ASGI app in one process: lifespan, sockets, signals, and an orderly shutdown."""

import asyncio
import gc
import importlib.util
import logging
import os
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

import anyio
from anyio.abc import TaskStatus

from microws.counters import COUNTERS
from microws.errors import FeatureUnavailable
from microws.hub_url import HUB_VARIABLE, INHERITED_VARIABLE, OPEN_HUB, directory_of, redis_address
from microws.interfaces import ASGIApplication, Limits
from microws.local.directory import socket_path
from microws.server.acceptor import Acceptor, Share
from microws.server.blocked import warn_of_blocks
from microws.server.control import ControlSocket, HubRequest, Ready, Shutdown, Stage, watch_signals
from microws.server.http1 import HTTP1, ServerState
from microws.server.lifespan import LifespanRunner
from microws.server.listening import Listener, ListenError, tls_context
from microws.server.logs import logging_to_stderr
from microws.server.process_end import ProcessEnd
from microws.server.proxy import ProxyHeaders, TrustedProxies
from microws.server.renewal import FAILURE, Renewal, this_program
from microws.server.settings import Settings
from microws.server.supervisor import supervise
from microws.version import __version__

__all__ = ["RunWhileLoading", "check_loading", "choose_loop", "loading", "run", "serve"]

_log = logging.getLogger("microws.server")

# Seconds at the end of a drain for the apps to see that their clients were dropped, then to be cancelled; and for the
# app's shutdown after the second signal.
_GRACE: Final = 0.4

# Seconds between two heartbeats of a worker.
_HEARTBEAT_INTERVAL: Final = 5.0

# Seconds from a connection that the system has accepted to one that the server counts.
_ACCEPT_TIMEOUT: Final = 0.05

# Seconds that a client which has only connected has for its first request during the drain: some round trips.
_FIRST_REQUEST_TIMEOUT: Final = 1.0

# Seconds between two looks at the TLS handshakes.
_LOOK_INTERVAL: Final = 0.02

_is_loading: Final = ContextVar("is_loading", default=False)


class RunWhileLoading(RuntimeError):
    """The code that defines an app serves it, while the command loads the app to serve it."""


@contextmanager
def loading() -> Iterator[None]:
    """Within the block the app is loaded: ``run`` raises ``RunWhileLoading``."""
    token = _is_loading.set(True)
    try:
        yield
    finally:
        _is_loading.reset(token)


def check_loading() -> None:
    """
    Raises:
        RunWhileLoading: Within the block of ``loading``.
    """
    if _is_loading.get():
        # The app would be served again after Ctrl-C, with other settings.
        raise RunWhileLoading(
            "app.run() is called while `microws run` loads the app, which would be served twice; write above the call: "
            'if __name__ == "__main__":'
        )


def run(
    app: ASGIApplication,
    settings: Settings | None = None,
    *,
    name: str = "the app",
    control: ControlSocket | None = None,
    renewal: Renewal | None = None,
    formatter: logging.Formatter | None = None,
    **options: Any,
) -> int:
    """
    Serve ``app`` until SIGTERM or SIGINT, then drain. Blocks; not for a thread that runs an event loop already.

    The first signal lets requests finish, the second ends everything immediately, the third kills. With
    ``settings.stop_delay`` a SIGTERM first starts that delay. Outside the main thread, signals do not arrive.

    A view that is blocked in a thread cannot be cancelled. It does not keep the process after the shutdown of the app:
    in the main thread, this call returns, and the process ends with the same exit code as soon as the main thread does.
    If the event loop does not end either, on trio or because it is blocked itself, the process ends within this call,
    after what is registered with ``atexit``. One warning names the views and the lines.

    Each of several workers starts the program of this process again, and serves when it comes to this call.

    Args:
        app: Any ASGI app.
        settings: How to serve; or the same as keywords: ``run(app, host="0.0.0.0", port=8000)``.
        name: What the log calls the app.
        control: What this process has from its supervisor. Default: what it finds.
        renewal: Runs the program again after a SIGHUP. Default: a new one, which does so when the program ends.
        formatter: Of the log. Default: as ``settings`` says.
        options: The fields of ``Settings``, if ``settings`` is omitted.

    Returns:
        The exit code: 0 after an orderly end; 1 if the app did not start or did not stop well, or an address is not
        available. The log says why. If the event loop is still blocked at the end of the drain, this call does not
        return: the process ends with exit code 1.

    Raises:
        TypeError: An option that does not exist; the text suggests the one that was probably meant.
        ValueError: An invalid option.
        RunWhileLoading: The command ``microws run`` is loading the app, which it will serve itself.
        FeatureUnavailable: The loop asked for is not installed.
    """
    check_loading()
    if settings is None:
        settings = Settings(**options)
    elif options:
        raise TypeError(f"expected settings or {', '.join(options)}, got both")
    loop = choose_loop(settings)
    control = control or ControlSocket.from_environment()
    with ExitStack() as stack:
        renewal = renewal or stack.enter_context(closing(Renewal(this_program())))
        if control is not None:
            stack.callback(control.close)
        elif settings.workers > 1 or str(settings.hub or getattr(app, "hub_url", "")).startswith("local"):
            return supervise(settings, renewal)
        stack.enter_context(logging_to_stderr(settings, process=control is not None, formatter=formatter))
        try:
            tls = None if settings.certfile is None else tls_context(settings.certfile, settings.keyfile)
            make_listeners = partial(renewal.listeners, settings) if control is None else control.listeners
            listeners = make_listeners(secure=tls is not None)
        except ListenError as error:
            _log.error("%s", error)
            return 1
        for listener in listeners:
            stack.callback(listener.close)
        is_main = threading.current_thread() is threading.main_thread()
        end = ProcessEnd(renewal) if is_main else None
        # What the imports have made stays: the garbage collector need not look at it again and again.
        gc.collect()
        gc.freeze()

        async def serve_until_signal() -> int:
            shutdown = Shutdown(end, control)
            async with anyio.create_task_group() as tasks:
                if control is not None:
                    tasks.start_soon(control.follow_commands, shutdown.reach)
                    if settings.worker_timeout:
                        tasks.start_soon(control.send_heartbeats, min(settings.worker_timeout / 4, _HEARTBEAT_INTERVAL))
                if end is not None:
                    await tasks.start(partial(watch_signals, shutdown, end, settings, renewal))
                code = await serve(
                    app, settings, listeners=listeners, shutdown=shutdown, tls=tls, control=control, name=name
                )
                tasks.cancel_scope.cancel()
            if renewal.is_renewed and code != 0 and not shutdown.requested.is_set():
                _log.critical("%s", FAILURE)
            return code

        code = 1
        try:
            code = anyio.run(
                serve_until_signal,
                backend="trio" if loop == "trio" else "asyncio",
                backend_options={"use_uvloop": True} if loop == "uvloop" else {},
            )
        finally:
            if end is not None:
                end.let_go(code)
        return code


def choose_loop(settings: Settings) -> Literal["asyncio", "uvloop", "trio"]:
    """
    The event loop that ``settings`` ask for.

    Raises:
        FeatureUnavailable: It is not installed; the text says how to install it.
    """
    if settings.loop == "auto":
        return "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"
    if settings.loop == "trio" and not importlib.util.find_spec("trio"):
        raise FeatureUnavailable("the loop trio is not installed: pip install trio")
    if settings.loop == "uvloop" and not importlib.util.find_spec("uvloop"):
        raise FeatureUnavailable("the loop uvloop is not installed: pip install uvloop, or write --loop asyncio")
    return settings.loop


class _Server(Protocol):
    """What ``AsyncioServer`` and ``HypercornServer`` have in common."""

    @property
    def open(self) -> int: ...
    async def serve(self, sockets: Sequence[Any], *, task_status: TaskStatus[None]) -> None: ...
    def statistics(self) -> tuple[int, int]: ...
    def expect_stop(self) -> None: ...
    async def drain(self) -> None: ...
    async def stop_listening(self) -> None: ...
    async def wait_closed(self) -> None: ...
    def disconnect(self) -> None: ...
    def cancel(self) -> None: ...


async def serve(
    app: ASGIApplication,
    settings: Settings,
    *,
    listeners: Sequence[Listener],
    shutdown: Shutdown,
    tls: ssl.SSLContext | None = None,
    control: ControlSocket | None = None,
    name: str = "the app",
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> int:
    """
    Serve ``app`` in the running event loop, asyncio or trio, until ``shutdown`` is requested; then drain.

    It starts the app, then listens. To stop, it waits for ``stop_delay``, accepts no new connections, closes every
    WebSocket with 1012 and ends every event stream, gives other requests ``drain_timeout`` seconds, drops what is left,
    and shuts the app down.

    Args:
        app: Any ASGI app.
        settings: How to serve.
        listeners: Bound, and not listening yet. The drain closes them first; after an exception the caller does.
        shutdown: Tells when to stop.
        tls: As ``tls_context`` makes it.
        control: Told when clients can connect. It holds this worker's share of them, which Hypercorn ignores. Default:
            the log says when clients can connect.
        name: What the log calls the app.
        task_status: Started as soon as clients can connect.

    Returns:
        The exit code, as from ``run``.
    """
    OPEN_HUB.set(partial(_open_hub, settings, control, {}))
    share = None if control is None else control.share
    if share is not None and share.counters is not None:
        COUNTERS.use(share.counters, share.place, pid=os.getpid())
    lifespan = LifespanRunner(app)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lifespan.run)
        started = await _unless(shutdown.requested, lambda: lifespan.startup(timeout=settings.startup_timeout))
        if not started:
            tasks.cancel_scope.cancel()
            return 0 if started is None else 1
        try:
            for listener in listeners:
                listener.listen()
        except ListenError as error:
            _log.error("%s", error)
            shutdown.requested.set()
            code = 1
        else:
            code = 0
            server = _prepare(app, settings, lifespan.state, tls, share, shutdown)
            await tasks.start(server.serve, [listener.sock for listener in listeners])
            if control is None:
                urls = ", ".join(listener.url for listener in listeners)
                _log.info("microws %s serving %s on %s (Ctrl-C stops)", __version__, name, urls)
            else:
                control.send_ready(Ready(name))
            if settings.warn_blocked and threading.current_thread() is threading.main_thread():
                tasks.start_soon(warn_of_blocks, settings.warn_blocked)
            task_status.started()
            await shutdown.requested.wait()
            await _delay(server, shutdown, settings)
            shutdown.limit(settings.drain_timeout)
            await _drain(server, listeners, shutdown, timeout=settings.drain_timeout)
        shutdown.limit(settings.shutdown_timeout)
        if shutdown.forced.is_set():
            stopped: bool | None = await lifespan.shutdown(timeout=_GRACE)
        else:
            stopped = await _unless(shutdown.forced, lambda: lifespan.shutdown(timeout=settings.shutdown_timeout))
        code = code if stopped else 1
        shutdown.finish(code)
        tasks.cancel_scope.cancel()
    return code


def _open_hub(
    settings: Settings,
    control: ControlSocket | None,
    owners: dict[str, object],
    url: str,
    history_bytes: int,
    name: str,
    owner: object,
) -> str | None:
    """
    Say where an app's Redis is, or have the supervisor run the hub process that it needs. See ``HubOpener``.

    Args:
        owners: By name, those that have asked for it.

    Raises:
        ValueError: A mounted app wants a hub of its own, or two apps have one name.
    """
    chosen = settings.hub or url
    redis = redis_address(chosen)
    if redis is None and (settings.hub == "memory" or (control is None and not url.startswith("local"))):
        return None
    if redis is None and control is None:
        raise ValueError(f"expected hub= at the outermost app, got hub={url!r} at a mounted one")
    if owners.setdefault(name, owner) is not owner:
        raise ValueError(
            "expected one App with app.running() in this process, got two, whose topics would be the same: write "
            'app.running(mount="/live") with another name for each'
        )
    if redis is not None or control is None:
        os.environ[HUB_VARIABLE] = os.environ[INHERITED_VARIABLE] = chosen
        return chosen
    path = directory_of(chosen)
    directory = control.ask_for_hub(HubRequest(None if path is None else str(Path(path).absolute()), history_bytes))
    # For the programs that the app starts.
    os.environ[HUB_VARIABLE] = os.environ[INHERITED_VARIABLE] = f"local:{directory}"
    return socket_path(directory)


def _prepare(
    app: ASGIApplication,
    settings: Settings,
    state: dict[str, Any],
    tls: ssl.SSLContext | None,
    share: Share | None,
    shutdown: Shutdown,
) -> _Server:
    # An App sets its limits itself, unless the scope has a limit that was asked for. Other apps get this server's.
    extension: dict[str, Any] = {"is_draining": shutdown.requested.is_set}
    if settings.max_message_size is not None:
        extension["max_message_size"] = settings.max_message_size
    served = ProxyHeaders(app, TrustedProxies(settings.forwarded_allow_ips), root_path=settings.root_path)
    own_limit = getattr(app, "max_message_size", None)
    limits = Limits()
    limit = settings.max_message_size or (own_limit if isinstance(own_limit, int) else limits.max_message_size)
    if settings.server == "hypercorn" or not _on_asyncio():
        from microws.server.hypercorn import HypercornServer, hypercorn_config

        config = hypercorn_config(settings, max_message_size=limit)
        return HypercornServer(served, config, on_trio=not _on_asyncio(), state=state, extension=extension)
    limits = limits._replace(max_message_size=limit)
    return AsyncioServer(served, settings, limits=limits, state=state, extension=extension, tls=tls, share=share)


class AsyncioServer(ServerState):
    """Serves HTTP/1.1 and WebSockets on asyncio and uvloop."""

    @property
    def open(self) -> int:
        """How many connections are open, those included whose client has disconnected while the app still runs."""
        return max(len(self.connections), len(self.exchanges)) + self.websockets.open

    async def serve(
        self, sockets: Sequence[socket.socket], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on ``sockets`` until ``stop_listening``; ready at ``task_status.started()``."""
        options: dict[str, Any] = {"tls": self.tls, "share": self.share, "count_open": lambda: self.open}
        self._acceptor = Acceptor(partial(HTTP1, self), **options)
        await self._acceptor.start(sockets)
        task_status.started()
        try:
            await anyio.sleep_forever()
        finally:
            # At the end of its loop, uvloop waits without limit for a server that is open.
            self._acceptor.close()

    def statistics(self) -> tuple[int, int]:
        """How many requests and how many WebSockets are open."""
        return len(self.exchanges), self.websockets.open

    def expect_stop(self) -> None:
        """Close each connection after its next response, which has ``connection: close``; accept new ones."""
        self.is_stopping = True

    async def drain(self) -> None:
        """
        Close every WebSocket with 1012, and end every event stream, the ones that are opened from now on too.

        ``receive`` tells the app immediately.
        """
        self.is_draining = True
        for exchange in list(self.exchanges):
            exchange.drain()
        await self.websockets.drain()

    async def stop_listening(self) -> None:
        """Refuse new connections, and close each open one after its current request."""
        self._acceptor.close()
        self.is_stopping = self.is_draining = True
        for connection in list(self.idle):
            connection.close_idle()

    async def wait_closed(self) -> None:
        """
        Wait until every connection is closed and every app has returned. New clients have a second for a request, or a
        quarter of a short ``drain_timeout``.
        """
        with anyio.move_on_after(min(_FIRST_REQUEST_TIMEOUT, self.settings.drain_timeout / 4)):
            while self._silent or self.handshakes:  # noqa: ASYNC110 - no event tells of a failed one
                await anyio.sleep(_LOOK_INTERVAL)
        for connection in self._silent:
            connection.close_idle()
        changed = asyncio.Event()
        self.on_end = changed.set
        while self.connections or self.exchanges:
            changed.clear()
            await changed.wait()
        await self.websockets.wait_closed()

    @property
    def _silent(self) -> list[HTTP1]:
        """The connections on which nothing was received yet."""
        return [connection for connection in self.heads if connection.is_idle]

    def disconnect(self) -> None:
        """Drop every connection. The apps are told that their clients have disconnected."""
        for connection in list(self.connections):
            connection.abort()
        self.websockets.disconnect()

    def cancel(self) -> None:
        """Cancel every app that still runs for a connection."""
        for exchange, task in self.exchanges.items():
            # A task that is cancelled before its first step runs no code, not even a ``finally``.
            task.add_done_callback(partial(self.ended, exchange))
            task.cancel()
        self.websockets.cancel()


async def _delay(server: _Server, shutdown: Shutdown, settings: Settings) -> None:
    if not shutdown.draining.is_set():
        server.expect_stop()
        shutdown.limit(settings.stop_delay + settings.drain_timeout)
        _log.info("not ready; draining in %g s (--stop-delay; a second signal drains now)", settings.stop_delay)
        with anyio.move_on_after(settings.stop_delay):
            await shutdown.draining.wait()
        shutdown.reach(Stage.DRAIN)


async def _drain(server: _Server, listeners: Sequence[Listener], shutdown: Shutdown, *, timeout: float) -> None:
    requests, websockets = server.statistics()
    left = f"requests: {requests}, WebSockets: {websockets}"
    _log.info("stopping within %g s; open %s (Ctrl-C again stops immediately)", timeout, left)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.drain)
        await server.stop_listening()
        # From now on ports and the paths of Unix sockets are free: the next server can start during the drain.
        for listener in listeners:
            listener.close()
        # What was accepted a moment ago counts as open only after some turns of the event loop.
        await anyio.sleep(_ACCEPT_TIMEOUT)
        with anyio.move_on_after(timeout):
            await _unless(shutdown.forced, server.wait_closed)
        if server.open:
            _log.warning("connections that did not end in time and are dropped: %d", server.open)
            # A step of its own: the event loop needs a while to drop thousands of connections.
            shutdown.limit(2 * _GRACE)
            for end_calls in (server.disconnect, server.cancel):
                end_calls()
                with anyio.move_on_after(_GRACE):
                    await server.wait_closed()
        tasks.cancel_scope.cancel()


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


T = TypeVar("T")


async def _unless(event: anyio.Event, function: Callable[[], Awaitable[T]]) -> T | None:
    """``await function()``; cancel it and return ``None`` as soon as ``event`` is set."""
    result: T | None = None

    async def watch() -> None:
        await event.wait()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        result = await function()
        tasks.cancel_scope.cancel()
    return result
