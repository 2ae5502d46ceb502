"""A program in a terminal of its own."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from contextlib import contextmanager

__all__ = ["Terminal", "in_terminal"]

LIMIT = 20


def _take_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Shells start background jobs with it ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """
    A program whose three streams are a terminal of 24 lines and 80 columns.

    Attributes:
        shown: Everything that the program has written, with its control sequences.
    """

    def __init__(self, *command, **variables):
        self.shown = ""
        self._seen = 0
        self._fd, self._end = pty.openpty()
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._mode = termios.tcgetattr(self._end)
        self.process = subprocess.Popen(
            command,
            stdin=self._end,
            stdout=self._end,
            stderr=self._end,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env=os.environ | {"TERM": "xterm"} | variables,
        )

    def type(self, text):
        os.write(self._fd, text.encode())

    def until(self, pattern):
        """The match of the next output that fits; keys are echoed, so they are output too."""
        while not (match := re.compile(pattern).search(self.shown, self._seen)):
            assert self._read(LIMIT), f"no {pattern!r} in {self.shown!r}"
        self._seen = match.end()
        return match

    def prompt(self):
        """Wait until the program asks for a line, and reads keys: before that, the kernel would read Ctrl-D."""
        self.until("> ")
        end = time.monotonic() + LIMIT
        while termios.tcgetattr(self._end)[3] & termios.ICANON:
            assert time.monotonic() < end, "no prompt"
            self._read(0.01)

    def ended(self):
        """Wait for the end: the exit code. The terminal is then as it was before."""
        end = time.monotonic() + LIMIT
        while self.process.poll() is None and time.monotonic() < end:
            self._read(0.05)
        while self._read(0):
            pass
        code = self.process.wait(0)
        assert termios.tcgetattr(self._end) == self._mode, self.shown
        return code

    def close(self):
        self.process.kill()
        self.process.wait(LIMIT)
        os.close(self._fd)
        os.close(self._end)

    def _read(self, timeout):
        is_readable = bool(select.select([self._fd], [], [], timeout)[0])
        if is_readable:
            self.shown += os.read(self._fd, 65536).decode()
        return is_readable


@contextmanager
def in_terminal(*command, **variables):
    terminal = Terminal(*command, **variables)
    try:
        yield terminal
    finally:
        terminal.close()
