"""The process of ``microws dev`` that loads and serves the app."""

import json
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio

from microws.dev.lines import CountingWebSocket, formatter_of, log_publishes
from microws.dev.middleware import Development
from microws.dev.problem import Problem
from microws.dev.watching import LoadedFiles, files_below
from microws.handshake import check_hosts_setting
from microws.interfaces import ASGIApplication
from microws.server.acceptor import Share
from microws.server.control import ControlSocket
from microws.server.renewal import Renewal
from microws.server.settings import InternetAddress, Settings
from microws.server.websockets import WebSockets
from microws.server.worker import run

__all__ = ["DevOptions", "Load", "ServeApp", "Unloadable", "serve_in_child"]

_LOCALHOST: Final = ("localhost", "*.localhost", "127.0.0.1", "[::1]")

# Seconds that requests have to end when a file has changed.
_DRAIN_TIMEOUT: Final = 0.2

# Seconds that the supervisor has to read a line.
_SEND_TIMEOUT: Final = 5.0

# Serves an app, which has a name. Returns the exit code.
ServeApp = Callable[[str, ASGIApplication], int]
# Loads the app and serves it. Raises ``Unloadable``.
Load = Callable[[ServeApp], int]


class Unloadable(Exception):
    """
    The app cannot be loaded. The text says why.

    Attributes:
        error: What the app's code raised; ``None``: there is no such app.
    """

    def __init__(self, text: str, error: BaseException | None) -> None:
        super().__init__(text)
        self.error = error


class DevOptions(NamedTuple):
    """
    What only ``microws dev`` has.

    Attributes:
        folder: Of the app.
        allow_host: More names and addresses that ``Host`` may have.
        show_locals: Show the variables of each frame of a traceback.
    """

    folder: Path
    allow_host: tuple[str, ...] = ()
    show_locals: bool = False


class _Gate(Share):
    """
    Accepts no connection once a file has changed: it waits for the next process.

    Args:
        is_closed: Called for each connection.
    """

    may_exceed = False

    def __init__(self, is_closed: Callable[[], bool]) -> None:
        self._is_closed = is_closed

    def write(self, count: int, now: float) -> None:
        pass

    def is_exceeded(self, *, since: float = 0.0) -> bool:
        return self._is_closed()

    def leave(self) -> None:
        pass


def serve_in_child(
    settings: Settings,
    options: DevOptions,
    load: Load,
    control: ControlSocket,
    line: socket.socket,
) -> int:
    """
    Load the app, wait until the process before has ended, and serve.

    Args:
        settings: Of the command.
        options: As above.
        load: As above.
        control, line: The sockets to the supervisor.

    Returns:
        The exit code.
    """
    try:
        child = _Child(settings, options, line)
        control.share = _Gate(child.has_changed)
        return child.serve(load, control)
    except EOFError:
        return 0  # the supervisor has ended


class _Child:
    def __init__(self, settings: Settings, options: DevOptions, line: socket.socket) -> None:
        self._settings = copy(settings)
        self._options = options
        self._line = line
        self._unread = b""
        start = json.loads(self._read_line())
        self._crash: str = start["crash"]
        self._loaded = LoadedFiles(options.folder, start["before"], start["since"])
        if self._crash:
            self._loaded.add(path for path, before in start["before"].items() if before is not None)
        self._is_stale = False

    def serve(self, load: Load, control: ControlSocket) -> int:
        folder = self._options.folder
        if self._crash:
            return self._serve("the app", None, Problem(self._crash, None, folder), control)
        try:
            return load(lambda name, app: self._serve(name, app, None, control))
        except Unloadable as failure:
            problem = Problem(str(failure), failure.error, folder)
            return self._serve("the app", None, problem, control, is_mistake=failure.error is None)

    def _serve(
        self,
        name: str,
        app: ASGIApplication | None,
        problem: Problem | None,
        control: ControlSocket,
        *,
        is_mistake: bool = False,
    ) -> int:
        options, settings = self._options, self._settings
        develop: Any = getattr(app, "_develop", None)  # it may be another framework's
        folders, hosts = develop(log_publishes) if develop else ((), ())
        self._loaded.look()
        self._report(problem, folders=list(map(str, folders)), is_mistake=is_mistake)
        self._read_line()
        self._line.setblocking(False)
        logging.getLogger("microws.server").setLevel(logging.WARNING)
        settings.worker_timeout = settings.stop_delay = 0
        settings.drain_timeout = _DRAIN_TIMEOUT
        if settings.hub is None and getattr(app, "hub_url", "memory") == "memory":
            settings.hub = "memory"
        WebSockets.connection_type = CountingWebSocket
        allowed = check_hosts_setting(options.allow_host)
        around = Development(
            app,
            problem,
            hosts=None if allowed is None else (*_LOCALHOST, *_own_addresses(settings), *hosts, *allowed),
            folder=options.folder,
            show_locals=options.show_locals,
            is_stale=self.has_changed,
            on_problem=self._report,
            follow=self._follow,
        )
        return run(
            around, settings, name=name, control=control, renewal=Renewal(None), formatter=formatter_of(settings)
        )

    def has_changed(self) -> bool:
        """Whether a file has changed since it was loaded. Then the supervisor is told, and this process stops."""
        if not self._is_stale:
            if new := self._loaded.look():
                self._send(files=new)
            if self._loaded.changed() is not None:
                self._is_stale = True
                self._send()
                # Not by the supervisor, which may be slow: no further connection is accepted here.
                signal.raise_signal(signal.SIGTERM)
        return self._is_stale

    def _report(self, problem: Problem | None, *, folders: Sequence[str] = (), is_mistake: bool = False) -> None:
        if problem is None:
            self._send(files=self._loaded.files, folders=folders)
            return
        self._loaded.look()
        self._loaded.add({*problem.files, *files_below(str(self._options.folder), (".py",))})
        self._send(files=self._loaded.files, problem=problem.line, is_mistake=is_mistake)

    async def _follow(self, around: Development) -> None:
        """Reload pages when the supervisor says so."""
        while True:
            await anyio.wait_readable(self._line)
            with suppress(BlockingIOError):
                if not self._line.recv(4096):
                    return
                around.reload_pages()

    def _send(self, **values: Any) -> None:
        # Whole lines, which may be longer than the socket's buffer.
        timeout = self._line.gettimeout()
        self._line.settimeout(_SEND_TIMEOUT)
        with suppress(OSError):
            self._line.sendall(json.dumps(values).encode() + b"\n")
        self._line.settimeout(timeout)

    def _read_line(self) -> str:
        while b"\n" not in self._unread:
            data = self._line.recv(1 << 20)
            if not data:
                raise EOFError
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()


def _own_addresses(settings: Settings) -> set[str]:
    """The addresses and names of this machine, if it is bound beyond loopback."""
    hosts = {address.host for address in settings.addresses if isinstance(address, InternetAddress)}
    if hosts <= {"localhost", "127.0.0.1", "::1"}:
        return set()
    name = socket.gethostname()
    found = {name.lower(), f"{name.lower()}.local"}
    with suppress(OSError):
        found |= {str(info[4][0]) for info in socket.getaddrinfo(name, None)}
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        # The address of the default route: nothing is sent.
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            found.add(str(probe.getsockname()[0]))
    return {f"[{host}]" if ":" in host else host for host in found | hosts}
