"""SIGHUP with one worker: runs the program again, in the same process and with the same listening sockets."""

import atexit
import json
import os
import shlex
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from microws.server.listening import Listener, bind
from microws.server.settings import Settings

__all__ = ["FAILURE", "HANGUP", "Renewal", "run_exit_functions", "this_program"]

FAILURE: Final = "SIGHUP: the new code does not start; this process ends, and the server is down"

# The signal; 0 on a system that has none.
HANGUP: Final[int] = getattr(signal, "SIGHUP", 0)

# What a program leaves for the next one in its process, as JSON.
_VARIABLE: Final = "MICROWS_RENEWAL"


def this_program() -> list[str] | None:
    """
    The command that started this process.

    Returns:
        ``None`` if the program has no file: it was typed into an interpreter, or read from standard input.
    """
    if sys.argv[:1] in ([], [""], ["-"]):
        return None
    command = [sys.executable, *sys.orig_argv[1:]]
    main = sys.modules["__main__"]
    script = len(command) - len(sys.argv)
    if main.__spec__ is None and getattr(main, "__file__", None) and command[script:] == sys.argv:
        # A script may have been started by a relative path, and have changed the directory since.
        command[script] = str(main.__file__)
    return command


def run_exit_functions() -> None:
    """Run what is registered with ``atexit``, then flush stdout and stderr, before an end that skips Python's own."""
    atexit._run_exitfuncs()  # noqa: SLF001
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


class Renewal:
    """
    Runs the program of this process again, by ``exec``. Make one at the start of the program, in the main thread.

    The process keeps its number, so that a service manager does not notice, and its listening sockets, so that a client
    that connects meanwhile waits in the backlog. SIGHUP would kill a process that does not handle it: this object
    handles it from the start of the program until its end.

    Args:
        command: Starts the program; ``None`` if that is not possible.

    Attributes:
        command: As above.
        environ: The environment at the start of the program.
        is_renewed: An earlier program of this process has left its sockets.
        is_due: Run the program again as soon as this one has ended.
        hangups: The number of SIGHUPs that arrived while nothing else handled them.
    """

    def __init__(self, command: list[str] | None) -> None:
        left = _take()
        self.is_renewed: bool = left is not None
        self.is_due: bool = False
        self.hangups: int = 0
        self.command = command
        self.environ: dict[str, str] = dict(os.environ)
        self._directory: Path | None = None
        with suppress(OSError):
            self._directory = Path.cwd()
        self._pid = os.getpid()
        self._sockets: list[Any] = left["sockets"] if left else []
        self._listeners: list[Listener] = []
        self._had_terminal: bool = left["had_terminal"] if left else HANGUP != 0 and _has_terminal()
        is_main = threading.current_thread() is threading.main_thread()
        if HANGUP and is_main and signal.getsignal(HANGUP) is signal.SIG_DFL:
            signal.signal(HANGUP, self._note)
            if left:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, (HANGUP,))

    @property
    def handles_hangup(self) -> bool:
        """Whether SIGHUP is this object's. ``nohup`` ignores it, and the app may have a handler of its own."""
        return HANGUP != 0 and signal.getsignal(HANGUP) == self._note

    def terminal_has_ended(self) -> bool:
        """Whether the process had a controlling terminal that was closed: that is what SIGHUP means then."""
        return self._had_terminal and not _has_terminal()

    def listeners(self, settings: Settings, *, secure: bool) -> list[Listener]:
        """
        The sockets that the last program of this process has left, or else new ones.

        Raises:
            ListenError: As from ``bind``.
        """
        if self._sockets:
            self._listeners = [Listener.take_over(left, secure=secure) for left in self._sockets]
        else:
            self._listeners = bind(settings.addresses, secure=secure, unix_mode=settings.unix_mode)
        return self._listeners

    def prepare(self) -> str | None:
        """
        Keep the listening sockets open for the next program, and make that due. A signal handler may call this.

        Returns:
            Why that is not possible, or ``None``.
        """
        if self.command is None:
            return "the program has no file"
        if not os.access(self.command[0], os.X_OK):
            return f"{self.command[0]} is not executable"
        try:
            for listener in self._listeners:
                listener.keep()
        except OSError:
            self.cancel()
            return "the app has closed a listening socket"
        self.is_due = True
        return None

    def cancel(self) -> None:
        """Do not run the program again. A signal handler may call this."""
        self.is_due = False
        for listener in self._listeners:
            listener.drop()

    def close(self) -> None:
        """Stop handling SIGHUP; or, if the next program is due, run it at the end of this one."""
        if self.is_due:
            atexit.register(self._run_last)
        elif self.handles_hangup:
            signal.signal(HANGUP, signal.SIG_DFL)

    def _run_last(self) -> None:
        # atexit calls the function that was registered last first: so this one calls the others before it.
        atexit.unregister(self._run_last)
        run_exit_functions()
        self.execute()

    def execute(self) -> None:
        """Run the program again, if that is due: this call returns only if it is not."""
        # A process that the app has forked since has inherited what was registered with ``atexit``.
        if not self.is_due or self.command is None or os.getpid() != self._pid or self.terminal_has_ended():
            return
        # Until the next program handles it.
        signal.pthread_sigmask(signal.SIG_BLOCK, (HANGUP,))
        left = {
            "process": self._pid,
            "had_terminal": self._had_terminal,
            "sockets": [listener.leave() for listener in self._listeners],
        }
        try:
            if self._directory is not None:
                os.chdir(self._directory)
            os.execve(self.command[0], self.command, self.environ | {_VARIABLE: json.dumps(left)})
        except OSError as error:
            self.cancel()
            # The log has ended by now.
            os.write(2, f"error: SIGHUP: cannot run {shlex.join(self.command)}: {error}\n".encode())
            os._exit(1)

    def _note(self, number: int, frame: object) -> None:
        self.hangups += 1


def _take() -> dict[str, Any] | None:
    with suppress(KeyError, ValueError):
        found: dict[str, Any] = json.loads(os.environ.pop(_VARIABLE))
        # A process that the app has started may have inherited the variable, but not the sockets.
        if found["process"] == os.getpid():
            return found
    return None


def _has_terminal() -> bool:
    """Whether the process has a controlling terminal. Source: credentials(7) and tty(4) of Linux."""
    try:
        number = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return False
    os.close(number)
    return True
