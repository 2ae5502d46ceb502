"""Where a hub is: a directory with the socket of the hub process, and with the log if that outlives the process."""

import os
import socket
import stat
import sys
import tempfile
from contextlib import ExitStack, suppress
from mmap import mmap
from pathlib import Path
from typing import Final, final

from microws.hub.log import MAGIC, Log

if sys.platform != "win32":
    import fcntl

__all__ = ["HubDirectory", "HubDirectoryError", "boot_of_machine", "socket_path"]

_SOCKET: Final = "hub.sock"
_LOG: Final = "log"
_BACKLOG: Final = 128
# Of a Unix socket. Source: unix(7) of Linux, 107; macOS has 103.
_MAX_PATH: Final = 103
_OTHER_HAS_IT: Final = "expected {} for this server alone, but another one has it: give each its own directory"


class HubDirectoryError(Exception):
    """The directory cannot be used; the text says why, and what to do."""


def socket_path(directory: str) -> str:
    """The path of the hub process's socket."""
    return str(Path(directory) / _SOCKET)


def boot_of_machine() -> int:
    """A number that names this run of the machine; another one at each call where the system does not tell."""
    with suppress(OSError, ValueError):
        return int(Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "")[:16], 16)
    return int.from_bytes(os.urandom(8), "little")


@final
class HubDirectory:
    """
    The directory of a hub, its listening socket and the memory of its log. One process at a time has it.

    Args:
        path: It is created with mode 0700 if it is missing.
        history_bytes: The size of the ring of a new log.
        is_temporary: It is new, ``close`` removes it, and the log is in memory. Default: no.

    Attributes:
        path: As above.
        history_bytes: As above.
        listener: Listens on the socket.
        log_file: A file descriptor.

    Raises:
        HubDirectoryError: The directory belongs to another user, or another process has it; or its log has another
            size, or is one of another version.
    """

    def __init__(self, path: str, history_bytes: int, *, is_temporary: bool = False) -> None:
        self._is_temporary = is_temporary
        self.history_bytes: int = history_bytes
        self.path: str = str(Path(path).absolute())
        # Once: each process of this hub goes on with the log.
        self._boot = boot_of_machine()
        try:
            with ExitStack() as undo:
                if is_temporary:
                    Path(self.path).mkdir(mode=0o700)
                    undo.callback(Path(self.path).rmdir)
                self.log_file: int = _unnamed_file(self.path) if is_temporary else self._open_log()
                undo.callback(os.close, self.log_file)
                # A new log that does not fit is left empty, so that the next server may set another size.
                undo.callback(os.ftruncate, self.log_file, os.fstat(self.log_file).st_size)
                os.ftruncate(self.log_file, Log.block_size(history_bytes))
                if not is_temporary and hasattr(os, "posix_fallocate"):
                    # Otherwise a full disk would end the hub process, by SIGBUS, when it writes.
                    os.posix_fallocate(self.log_file, 0, Log.block_size(history_bytes))
                self.listener: socket.socket = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                self._listen()
                undo.pop_all()
        except OSError as error:
            raise HubDirectoryError(f"cannot use {self.path} for the hub: {error}") from error

    def log(self) -> Log:
        """The log. For the process that writes it."""
        return Log(mmap(self.log_file, 0), self.history_bytes, boot=self._boot)

    def close(self) -> None:
        """Let another process have the directory. Removes the socket, and a temporary directory."""
        self.listener.close()
        with suppress(OSError):
            Path(socket_path(self.path)).unlink()
        if self._is_temporary:
            with suppress(OSError):
                Path(self.path).rmdir()
        # The lock ends with it.
        os.close(self.log_file)

    def _open_log(self) -> int:
        directory = Path(self.path)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid != os.getuid():
            raise HubDirectoryError(f"expected {directory} to belong to this user, got user {status.st_uid}")
        if mode := stat.S_IMODE(status.st_mode) & 0o077:
            raise HubDirectoryError(
                f"expected {directory} to be closed to other users, got mode {0o700 | mode:o}: chmod 700 {directory}"
            )
        if _is_served(socket_path(self.path)):
            # It may be the temporary directory of another server, which has no file to lock.
            raise HubDirectoryError(_OTHER_HAS_IT.format(directory))
        number = os.open(directory / _LOG, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(number)
            raise HubDirectoryError(_OTHER_HAS_IT.format(directory)) from None
        if int.from_bytes(os.pread(number, 8, 0), sys.byteorder) not in (0, MAGIC):
            os.close(number)
            raise HubDirectoryError(
                f"expected a log of this version of microws in {directory}, got another file: remove the file {_LOG!r} "
                "with the history in it"
            )
        if os.fstat(number).st_size not in (0, Log.block_size(self.history_bytes)):
            os.close(number)
            raise HubDirectoryError(
                f"expected a log for history_bytes={self.history_bytes} in {directory}, got one of another size: set "
                f"history_bytes as before, or remove the file {_LOG!r} with the history in it"
            )
        return number

    def _listen(self) -> None:
        path = socket_path(self.path)
        # Nobody else has the directory, so a file there was left by a process that was killed.
        Path(path).unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self.listener.bind(path)
        except OSError as error:
            if len(os.fsencode(path)) > _MAX_PATH:
                raise HubDirectoryError(
                    f"expected the path of a Unix socket with at most {_MAX_PATH} bytes, got {path}: choose a shorter "
                    "local:PATH, or a shorter TMPDIR"
                ) from error
            raise
        finally:
            os.umask(before)
        self.listener.listen(_BACKLOG)


def _is_served(path: str) -> bool:
    """Whether a process listens on this Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            pass  # it does not accept fast enough
        except OSError:
            return False
    return True


def _unnamed_file(directory: str) -> int:
    """A file in memory, or else one without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("microws-log", os.MFD_CLOEXEC)
    number, path = tempfile.mkstemp(dir=directory)
    Path(path).unlink()
    return number
