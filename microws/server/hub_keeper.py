"""The hub process of a supervisor: forked, and started again with the same log if it ends."""

import logging
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NoReturn, final

from microws.local.directory import HubDirectory, HubDirectoryError
from microws.local.hub_process import HubProcess
from microws.server.control import SHARED_SIGNALS, HubRequest

__all__ = ["HubKeeper", "HubOnDemand", "become_child"]

_log = logging.getLogger("microws.server")

# Deaths in a row, each within so many seconds of its start, after which the hub process is given up.
_MAX_EARLY_DEATHS: Final = 5
_STABLE_AFTER: Final = 5.0
# Names the files that this process has open.
_FILES: Final = "/dev/fd" if sys.platform == "darwin" else "/proc/self/fd"
# Seconds that it has to end.
_EXIT_TIMEOUT: Final = 2.0

# The supervisor handles them: it ends the hub process last.
_SIGNALS: Final = (*SHARED_SIGNALS, signal.SIGTERM)


@final
class HubKeeper:
    """
    Runs the hub process. A fork takes some milliseconds; a new interpreter would take half a second.

    Args:
        directory: Of the hub. The supervisor holds the socket and the log, so that they outlive the process.

    Attributes:
        directory: As above.
        has_failed: It has ended, and is not started again: it ended too often, or the system starts no process.

    Raises:
        OSError: The system starts no process.
    """

    def __init__(self, directory: HubDirectory) -> None:
        self.directory = directory
        self.has_failed: bool = False
        self._early_deaths = 0
        self._fork()

    def _fork(self) -> None:
        self._since = time.monotonic()
        ours, theirs = socket.socketpair()
        with ExitStack() as undo, theirs, ExitStack() as unblock:
            undo.enter_context(ours)
            # A signal that the child gets before it ignores them would reach the supervisor a second time.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            unblock.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
            self._pid = os.fork()
            if not self._pid:
                self._run(theirs)
            undo.pop_all()
        self._control = ours

    def _run(self, supervisor: socket.socket) -> NoReturn:
        """Be the hub process."""
        code = 1
        try:
            become_child(keep=(self.directory.listener.fileno(), self.directory.log_file, supervisor.fileno()))
            process = HubProcess(self.directory.listener, self.directory.log(), supervisor)
            process.run()
            if process.is_orphan:
                self.directory.close()
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            # Nothing else of the supervisor's is cleaned up here.
            os._exit(code)

    def check(self) -> None:
        """Start the process again if it has ended."""
        if self.has_failed:
            return
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if not pid:
            return
        self._control.close()
        is_early = time.monotonic() - self._since < _STABLE_AFTER
        self._early_deaths = self._early_deaths + 1 if is_early else 0
        reason = f"the hub process {pid} ended with {os.waitstatus_to_exitcode(status)}"
        if self._early_deaths >= _MAX_EARLY_DEATHS:
            self.has_failed = True
            _log.critical("%s, %d times in a row soon after its start", reason, self._early_deaths)
            return
        try:
            self._fork()
        except OSError as error:
            self.has_failed = True
            _log.critical("%s, and no other one can be started: %s", reason, error)
            return
        _log.error("%s; another one goes on with its log", reason)

    def close(self) -> None:
        """End the process, after the last worker."""
        if not self.has_failed:
            with suppress(OSError):
                self._control.send(b"e")
            deadline = time.monotonic() + _EXIT_TIMEOUT
            while not os.waitpid(self._pid, os.WNOHANG)[0]:
                if time.monotonic() > deadline:
                    _log.error("the hub process does not end and is killed")
                    os.kill(self._pid, signal.SIGKILL)
                    os.waitpid(self._pid, 0)
                    break
                time.sleep(0.005)
            self._control.close()
        self.directory.close()


@final
class HubOnDemand:
    """
    The hub process of a supervisor, which it starts when a worker asks for it.

    Attributes:
        path: The directory of the hub, unless the app names another one.
        has_failed: It cannot be started, or has ended and is not started again; the log says why.
    """

    def __init__(self) -> None:
        self.path: str = str(_temporary_directory() / f"microws-{os.urandom(6).hex()}")
        self.has_failed: bool = False
        self._keeper: HubKeeper | None = None

    def take(self, request: HubRequest) -> None:
        """Start the process, unless it runs."""
        if self._keeper is None:
            self._start(request)
            return
        directory = self._keeper.directory
        if (request.path or self.path, request.history_bytes) != (directory.path, directory.history_bytes):
            _log.warning(
                "the new code has another hub= or history_bytes=; "
                "until the server is started again, they stay local:%s and %d",
                directory.path,
                directory.history_bytes,
            )

    def _start(self, request: HubRequest) -> None:
        is_temporary = request.path is None
        try:
            directory = HubDirectory(request.path or self.path, request.history_bytes, is_temporary=is_temporary)
        except HubDirectoryError as error:
            _log.error("%s", error)
            self.has_failed = True
            return
        try:
            self._keeper = HubKeeper(directory)
        except OSError as error:
            _log.error("no hub process can be started: %s", error)
            directory.close()
            self.has_failed = True
            return
        _log.info("hub process at local:%s", directory.path)

    def check(self) -> None:
        """Start the process again if it has ended."""
        if self._keeper is not None:
            self._keeper.check()
            self.has_failed = self._keeper.has_failed

    def close(self) -> None:
        """End the process, after the last worker."""
        if self._keeper is not None:
            self._keeper.close()


def _temporary_directory() -> Path:
    """Where temporary files are. If no such directory can be written, only what needs one fails."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Path("/tmp")


def become_child(*, keep: tuple[int, ...]) -> None:
    """Let go of everything that the supervisor has, except these files. Its signals are ignored."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _close_files(keep=keep)


def _close_files(*, keep: tuple[int, ...]) -> None:
    """Close all files but the standard streams and ``keep``."""
    try:
        files = {int(path.name) for path in Path(_FILES).iterdir()}
    except OSError:
        # FreeBSD has closefrom(2).
        begin = 3
        for kept in sorted(keep):
            os.closerange(begin, kept)
            begin = kept + 1
        os.closerange(begin, os.sysconf("SC_OPEN_MAX"))
        return
    # Not ``os.closerange``: without close_range(2) it tries each number up to the limit, which may be 2^30.
    for number in files.difference((0, 1, 2), keep):
        with suppress(OSError):  # that of the directory itself is closed
            os.close(number)
