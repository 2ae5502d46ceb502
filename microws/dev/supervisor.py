"""The supervisor of ``microws dev``: one process at a time serves the app, and the next one takes its place."""

import gc
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib.util import cache_from_source, find_spec
from math import inf
from pathlib import Path
from typing import Any, Final, NoReturn

from microws.dev.lines import formatter_of
from microws.dev.watching import Signature, clock, files_below, has_changed, signature, signatures
from microws.errors import FeatureUnavailable
from microws.server.acceptor import Share, make_shared_memory
from microws.server.control import SHARED_SIGNALS, ControlSocket, HubRequest, Stage, signal_socket, worker_variable
from microws.server.hub_keeper import HubOnDemand, become_child
from microws.server.listening import Listener, ListenError, bind
from microws.server.logs import logging_to_stderr
from microws.server.renewal import this_program
from microws.server.settings import Settings
from microws.version import __version__

__all__ = ["VARIABLE", "Serve", "develop"]

_log = logging.getLogger("microws.server")

# The number of the child's end of the socket to the supervisor, in a process that was not forked.
VARIABLE: Final = "MICROWS_DEV_SOCKET"

# Seconds that the old process has to end its connections and the app. Then it is killed.
_STOP_TIMEOUT: Final = 0.25

# Seconds between two looks at files if the system does not notify of changes, or the code fails: what mends it may be a
# new file in a new folder.
_POLL: Final = 0.25

_NO_APP: Final = 3
_STOP_SIGNALS: Final = (*SHARED_SIGNALS, signal.SIGTERM)

# Serves the app in a child, with the sockets to the supervisor. Returns the exit code.
Serve = Callable[[ControlSocket, socket.socket], int]


def develop(settings: Settings, serve: Serve, *, folder: Path, fork: bool | None = None) -> int:
    """
    Serve an app, and reload it when a file changes, until SIGTERM or SIGINT. Blocks; in the main thread only.

    In a process that a supervisor has started, and not forked, it is the child.

    Args:
        settings: Where to listen, and how to log.
        serve: Called in each child; in one that is not forked, by the program itself.
        folder: Of the app.
        fork: Fork the children. Otherwise each one runs the program again, which takes longer. Default: where it is
            safe: not on macOS, whose libraries fail in a child.

    Returns:
        The exit code: 0 after an orderly end; 1 if an address is not available, or the child ended twice in a row; 3 if
        there is no such app.

    Raises:
        FeatureUnavailable: This system cannot share sockets this way.
        RuntimeError: Called outside the main thread.
    """
    if not hasattr(signal, "pthread_sigmask"):
        raise FeatureUnavailable("microws dev needs a Unix system; write: microws run")
    # For apps without a secret. Each child has the same one, so users stay logged in over a reload.
    os.environ.setdefault("MICROWS_DEV_SECRET", os.urandom(32).hex())
    if (number := os.environ.pop(VARIABLE, None)) is not None:
        control = ControlSocket.from_environment()
        if control is not None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
            return serve(control, socket.socket(fileno=int(number)))
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("reload needs the main thread, which receives signals; write reload=False")
    with ExitStack() as logs:
        logs.enter_context(logging_to_stderr(settings, formatter=formatter_of(settings)))
        try:
            listeners = bind(settings.addresses, secure=settings.certfile is not None, unix_mode=settings.unix_mode)
            for listener in listeners:
                listener.listen()
        except ListenError as error:
            _log.error("%s", error)
            return 1
        with ExitStack() as stack:
            for listener in listeners:
                stack.callback(listener.close)
            fork = sys.platform != "darwin" if fork is None else fork
            return _Supervisor(listeners, serve, folder, logs, fork=fork).run()


@dataclass(eq=False)
class _Child:
    """
    A process that serves the app, or the reason why that cannot be served.

    Attributes:
        pid: The process.
        control: As a worker has it: the hub process, that it serves, stages of the shutdown.
        line: The other socket, for what only ``microws dev`` has.
        began: ``time.monotonic()`` at its start.
        before, since: Signatures from before it loaded the app, and ``clock()``.
        reason: The path whose change started it, or why it serves no app.
        files: Signatures of the files that it has loaded; ``None``: it is still loading.
        may_start: It was told to start the app: the process before it has ended.
        name: What the log calls the app, as soon as it serves.
        problem: Why it serves no app.
        deadline: When it is killed, if it was told to stop.
        code: The exit code, if ``poll`` has seen it.
    """

    pid: int
    control: socket.socket
    line: socket.socket
    began: float
    before: Mapping[str, Signature]
    since: int
    reason: str
    files: dict[str, Signature] | None = None
    may_start: bool = False
    name: str | None = None
    problem: str | None = None
    deadline: float = inf
    code: int | None = None
    unread: dict[socket.socket, bytes] = field(default_factory=dict)

    def poll(self) -> int | None:
        """The exit code; ``None`` while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def kill(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def read(self, sock: socket.socket) -> list[Any] | None:
        """The JSON values that were received; ``None`` at the end of the socket."""
        data = b""
        with suppress(ConnectionError):
            data = sock.recv(1 << 20)
        *lines, self.unread[sock] = (self.unread.get(sock, b"") + data).split(b"\n")
        values = [json.loads(line) for line in lines if line]
        return values if data else None

    def send(self, sock: socket.socket, data: bytes) -> None:
        with suppress(OSError):
            sock.send(data)

    def stop(self) -> None:
        """Tell it to stop. One that is still loading ends at once."""
        if self.deadline == inf:
            self.deadline = time.monotonic() + _STOP_TIMEOUT
            self.send(self.control, b"%d" % Stage.DRAIN)
            if self.name is None:
                self.kill(signal.SIGTERM)

    def close(self) -> None:
        self.control.close()
        self.line.close()


class _Supervisor:
    """The processes and what to do about them. No event loop, no thread, one place that waits."""

    def __init__(
        self, listeners: Sequence[Listener], serve: Serve, folder: Path, logs: ExitStack, *, fork: bool
    ) -> None:
        self._listeners = listeners
        self._serve = serve
        self._folder = folder
        self._logs = logs
        self._fork = fork
        self._command = this_program()
        self._environ = dict(os.environ)
        self._hub = HubOnDemand()
        self._memory = -1 if fork else make_shared_memory(1)
        self._selector = selectors.DefaultSelector()
        self._watcher: subprocess.Popen[bytes] | None = None
        self._watched: list[str] = []
        self._app: _Child | None = None
        self._old: list[_Child] = []
        self._folders: list[str] = []  # whose files are read for each page
        self._pages: dict[str, Signature] = {}
        self._has_served = False
        self._is_stopping = False
        self._exit_code = 0

    def run(self) -> int:
        with self._selector, signal_socket((*_STOP_SIGNALS, signal.SIGCHLD)) as received:
            self._selector.register(received, selectors.EVENT_READ)
            self._start_watcher()
            # A child need not look at what is here when it collects garbage.
            gc.collect()
            gc.freeze()
            try:
                self._start("", {}, clock())
                while self._app is not None or self._old or not self._is_stopping:
                    self._wait(received)
                    self._check_children()
                    self._hub.check()
                    if self._hub.has_failed:
                        self._stop(1)
            finally:
                for child in self._children:
                    child.close()
                if self._watcher is not None:
                    self._watcher.kill()
                    self._watcher.wait()
                self._hub.close()
        return self._exit_code

    @property
    def _children(self) -> list[_Child]:
        return [*self._old, *([] if self._app is None else [self._app])]

    def _wait(self, received: socket.socket) -> None:
        times = [child.deadline for child in self._children]
        app = self._app
        is_polling = self._watcher is None or (app is not None and (app.problem is not None or app.files is None))
        if is_polling and not self._is_stopping:
            times.append(time.monotonic() + _POLL)
        timeout = min(times, default=inf) - time.monotonic()
        may_have_changed = is_polling
        events = self._selector.select(None if timeout == inf else max(0.0, timeout))
        # A child says why it serves no app before it says that it serves.
        for key, _ in sorted(
            events, key=lambda event: isinstance(event[0].data, _Child) and event[0].fileobj is event[0].data.control
        ):
            if isinstance(key.data, _Child):
                may_have_changed = self._read(key.data, key.fileobj) or may_have_changed
            elif key.data == "watcher":
                may_have_changed = True
                if not os.read(key.fd, 4096):
                    self._lose_watcher()
            elif set(received.recv(4096)) & set(_STOP_SIGNALS):
                self._stop(0)
        if may_have_changed and not self._is_stopping:
            self._look()

    # The watcher

    def _start_watcher(self) -> None:
        if find_spec("watchfiles") is None:
            _log.debug("watchfiles is not installed: files are looked at every %g s", _POLL)
            return
        # In a session of its own, which gets no Ctrl-C: it ends when its input does.
        self._watcher = subprocess.Popen(
            [sys.executable, "-m", "microws.dev.watcher"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._watcher.stdout is not None
        self._selector.register(self._watcher.stdout, selectors.EVENT_READ, "watcher")

    def _lose_watcher(self) -> None:
        assert self._watcher is not None
        self._selector.unregister(self._watcher.stdout)  # type: ignore[arg-type]
        self._watcher.wait()
        self._watcher = None
        if not self._is_stopping:
            _log.warning("the system does not notify of changes: files are looked at every %g s", _POLL)

    def _watch(self) -> None:
        """Have the watcher watch the folders of the files that matter now."""
        app = self._app
        if self._watcher is None or app is None or app.files is None:
            return
        paths = [*app.files, *self._pages]
        folders = {str(self._folder), *self._folders, *map(os.path.dirname, paths)}
        watched = sorted(filter(os.path.isdir, folders))
        if watched != self._watched:
            self._watched = watched
            assert self._watcher.stdin is not None
            with suppress(BrokenPipeError):
                self._watcher.stdin.write(json.dumps(watched).encode() + b"\n")
                self._watcher.stdin.flush()

    # Changes

    def _look(self) -> None:
        """Reload the app, or the pages, if a file has changed."""
        app = self._app
        if app is None:
            return
        if (path := self._changed_file(app)) is not None:
            self._restart(path)
        elif self._folders:
            pages = signatures(path for folder in self._folders for path in files_below(folder))
            paths = pages.keys() | self._pages.keys()
            if changed := [path for path in paths if pages.get(path) != self._pages.get(path)]:
                _log.info("%s changed; pages reload", self._short(changed[0]))
                app.send(app.line, b"pages\n")
            self._pages = pages
            if changed:
                self._watch()

    def _changed_file(self, app: _Child) -> str | None:
        if app.files is None:
            # The app is still loading: a file that was removed before that does not count as changed.
            files = app.before
            changed = next((path for path, before in files.items() if signature(path) != before), None)
        else:
            files = app.files
            changed = next((path for path, before in files.items() if has_changed(path, before)), None)
        if changed is None and (app.files is None or app.problem is not None):
            for path in files_below(str(self._folder), (".py",)):
                if path not in files and max((signature(path) or [0])[:2]) >= app.since:
                    return path
        return changed

    def _short(self, path: str) -> str:
        return os.path.relpath(path, self._folder) if Path(path).is_relative_to(self._folder) else path

    # Processes

    def _restart(self, path: str) -> None:
        app, self._app = self._app, None
        if app is not None:
            app.stop()
            self._old.append(app)
        files = signatures((app and (app.files or app.before)) or {})
        for changed in (path, *(each for each, now in files.items() if app and (app.files or app.before)[each] != now)):
            _forget_compiled(changed)
        self._start(path, files, clock())

    def _start(self, reason: str, before: Mapping[str, Signature], since: int, *, crash: str = "") -> None:
        began = time.monotonic()
        with ExitStack() as undo:
            ours, theirs = socket.socketpair()
            our_line, their_line = socket.socketpair()
            for sock in (ours, our_line):
                undo.enter_context(sock)
            with theirs, their_line, ExitStack() as unblock:
                # A signal that the child gets before it handles it would reach the supervisor a second time.
                masked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
                unblock.callback(signal.pthread_sigmask, signal.SIG_SETMASK, masked)
                pid = os.fork()
                if not pid:
                    self._run_child(theirs, their_line)
            undo.pop_all()
        child = self._app = _Child(pid, ours, our_line, began, before, since, reason)
        for sock in (ours, our_line):
            self._selector.register(sock, selectors.EVENT_READ, child)
        # The child reads this before anything else.
        with suppress(OSError):  # it has ended already
            our_line.sendall(json.dumps({"before": before, "since": since, "crash": crash}).encode() + b"\n")
        for sock in (ours, our_line):
            sock.setblocking(False)

    def _run_child(self, control: socket.socket, line: socket.socket) -> NoReturn:
        code = 1
        try:
            sockets = [listener.sock for listener in self._listeners]
            if not self._fork:
                self._run_program(control, line, [sock.fileno() for sock in sockets])
            self._logs.close()
            become_child(keep=tuple(sock.fileno() for sock in (control, line, *sockets)))
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for number in SHARED_SIGNALS:
                # Not SIG_IGN, which the programs that the app starts would inherit.
                signal.signal(number, lambda *_: None)
            code = self._serve(ControlSocket(control, sockets, hub=self._hub.path), line)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            # Nothing of the supervisor's is cleaned up here.
            _end(code)

    def _run_program(self, control: socket.socket, line: socket.socket, sockets: list[int]) -> NoReturn:
        """Run the program again, in this process."""
        assert self._command is not None
        for number in (control.fileno(), line.fileno(), self._memory, *sockets):
            os.set_inheritable(number, True)
        variable = worker_variable(control.fileno(), sockets, Share(self._memory, 0), self._hub.path)
        environ = self._environ | variable | {VARIABLE: str(line.fileno())}
        os.execve(self._command[0], self._command, environ)

    def _read(self, child: _Child, sock: Any) -> bool:
        """Read what a child has sent. Returns whether files may have changed."""
        values = child.read(sock)
        if values is None:
            self._selector.unregister(sock)
            return False
        for value in values:
            if sock is child.control:
                if isinstance(value, dict) and "hub" in value:
                    self._hub.take(HubRequest(*value["hub"]))
                elif isinstance(value, dict):
                    child.name = value["app"]
                    if child is self._app:
                        self._report_ready(child)
            elif child is self._app:
                self._take(child, value)
        return sock is child.line

    def _take(self, child: _Child, value: Mapping[str, Any]) -> None:
        """What a child has loaded, or why it serves no app; or nothing: the child has seen a change."""
        if "files" in value:
            child.files = (child.files or {}) | value["files"]
        if "folders" in value:
            self._folders = value["folders"]
            self._pages = signatures(path for folder in self._folders for path in files_below(folder))
        if "problem" in value:
            child.problem = value["problem"]
            if value["is_mistake"] and not self._has_served:
                _log.error("%s", child.problem)
                self._stop(_NO_APP)
                return
        self._watch()

    def _report_ready(self, child: _Child) -> None:
        if not self._has_served:
            self._has_served = True
            urls = ", ".join(listener.url for listener in self._listeners)
            _log.info("microws %s serving %s on %s, and reloading it (Ctrl-C stops)", __version__, child.name, urls)
        elif child.problem is None:
            seconds = time.monotonic() - child.began
            _log.info("%s changed; reloaded in %.2f s", self._short(child.reason), seconds)
        if child.problem is not None:
            _log.error("%s; 503 until it is mended", child.problem)

    def _check_children(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if (code := child.poll()) is None:
                if child.deadline <= now:
                    child.kill(signal.SIGKILL)
                    child.deadline = inf
                continue
            for sock in (child.control, child.line):
                if sock in self._selector.get_map():
                    self._selector.unregister(sock)
            child.close()
            if child is not self._app:
                self._old.remove(child)
                continue
            self._app = None
            if not self._is_stopping:
                self._handle_crash(child, code)
        app = self._app
        if app is not None and app.files is not None and not app.may_start and not self._old:
            app.may_start = True
            app.send(app.line, b"start\n")

    def _handle_crash(self, child: _Child, code: int) -> None:
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if child.reason == _CRASH:
            _log.critical("the process that says so %s, too", ended)
            self._exit_code, self._is_stopping = 1, True
            return
        self._start(_CRASH, child.files or child.before, child.since, crash=f"the app's process {ended}")

    def _stop(self, code: int) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            self._exit_code = code
        for child in self._children:
            child.stop()


_CRASH: Final = "\0"


def _forget_compiled(path: str) -> None:
    """Python compares whole seconds and the size: a file that was saved twice in a second may look the same to it."""
    with suppress(OSError, NotImplementedError):
        Path(cache_from_source(path)).unlink()


def _end(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)
