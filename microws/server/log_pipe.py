"""The log's handlers: one write for the access log of a turn of the event loop; no wait for the reader of a pipe."""

import asyncio
import logging
import os
import select
import socket
import stat
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final, TextIO

from microws.server.access_log import Answer, AnswerHandler

__all__ = ["AnswerFormatter", "PipeHandler", "TurnHandler", "is_pipe"]

# Characters of the access log that one turn of the event loop collects; more are written at once.
_MAX_TURN: Final = 1 << 16

# Bytes that wait for a reader. At 150 bytes a line these are some 7,000 lines.
_MAX_BYTES: Final = 1 << 20

# Seconds at the end for a reader that is slow.
_LAST_WORDS: Final = 0.5

# What the system writes to a pipe in one piece, whoever else writes to it: at least 512 bytes, says POSIX.
_ATOMIC: Final = getattr(select, "PIPE_BUF", 512)


def is_pipe(stream: TextIO | None) -> bool:
    """Whether a write to ``stream`` waits for another program. Only on systems where that can be avoided."""
    try:
        mode = os.fstat(stream.fileno()).st_mode  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):
        return False
    return hasattr(select, "poll") and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))


class AnswerFormatter(logging.Formatter):
    """A formatter of records and of answers."""

    @abstractmethod
    def format_answer(self, answer: Answer) -> str:
        """The line of an answer."""


class TurnHandler(AnswerHandler):
    """
    Writes the access log of one turn of asyncio's event loop together, at the end of the turn.

    A write per line costs more than the rest of the line. Every other record is written immediately, and the lines
    before it with it: lines stay in order, and what a view logs is out before the view can block the loop. Outside of
    a loop, in threads and on trio each line is written immediately.
    """

    def __init__(self) -> None:
        super().__init__()
        # Or what formats it when it is written: one after the other takes less time than each after another request.
        self._lines: list[str | Callable[[], str]] = []
        self._size = 0
        # Which will call _end_turn.
        self._loop: asyncio.AbstractEventLoop | None = None
        if hasattr(os, "register_at_fork"):
            # The parent writes them.
            os.register_at_fork(after_in_child=self._lines.clear)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or keep it until the end of the turn."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self._lines.append(line)
        self._size += len(line)
        if "access" not in record.__dict__ or self._size > _MAX_TURN or not self._will_end_turn():
            self._write_lines()

    def takes_answers(self, level: int) -> bool:
        return level >= self.level and not self.filters and isinstance(self.formatter, AnswerFormatter)

    def add_answer(self, answer: Answer) -> None:
        """Write the line of an answer, or keep it until the end of the turn."""
        assert isinstance(self.formatter, AnswerFormatter)
        self.acquire()
        try:
            self._lines.append(partial(self.formatter.format_answer, answer))
            self._size += len(answer.raw_path) + len(answer.query_string)
            if self._size > _MAX_TURN or not self._will_end_turn():
                self._write_lines()
        finally:
            self.release()

    def flush(self) -> None:
        """Write the lines that were kept."""
        self.acquire()
        try:
            self._write_lines()
        finally:
            self.release()

    @abstractmethod
    def write(self, text: str) -> None:
        """Write whole lines. Called with the lock of the handler."""

    def _will_end_turn(self) -> bool:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if self._loop is None:
            loop.call_soon(self._end_turn)
            self._loop = loop
        elif self._loop is not loop:
            # Of another thread, or stopped before it came to the end of its turn.
            self._loop = None
            return False
        return True

    def _end_turn(self) -> None:
        self._loop = None
        if self._lines:
            TurnHandler.flush(self)

    def _write_lines(self) -> None:
        if self._lines:
            text = "\n".join([*(line if isinstance(line, str) else line() for line in self._lines), ""])
            self._lines.clear()
            self._size = 0
            self.write(text)


class PipeHandler(TurnHandler):
    """
    Writes without waiting, or else keeps lines until the reader goes on; beyond 1 MiB they are dropped and counted.

    As soon as there is room again, a record tells how many lines were dropped, where they are missing. Several
    processes may write to the same pipe: a line of at most ``PIPE_BUF`` bytes, 4,096 on Linux, is written in one piece.

    Args:
        stream: Of which ``is_pipe`` holds.
        may_start_threads: A thread writes what was kept, and ends with it. Otherwise ``retry`` has to be called.
    """

    def __init__(self, stream: TextIO, *, may_start_threads: bool) -> None:
        super().__init__()
        self._encoding = stream.encoding
        self._may_start_threads = may_start_threads
        self._thread: threading.Thread | None = None
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self._dropped = 0
        self._socket: socket.socket | None = None
        self._has_own_pipe = False
        self._fd = stream.fileno()
        if stat.S_ISSOCK(os.fstat(self._fd).st_mode):
            self._socket = socket.socket(fileno=os.dup(self._fd))
            self._fd = self._socket.fileno()
        else:
            # O_NONBLOCK is a property of what this process shares with others, such as the shell. So this opens the
            # pipe once more. That fails on other systems than Linux, and if the pipe belongs to another user.
            with suppress(OSError):
                self._fd = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_NONBLOCK)
                self._has_own_pipe = True

    def write(self, text: str) -> None:
        """Write the lines, or keep them. Never waits."""
        data = self._encode(text)
        self._write_kept()
        if self._kept and self._kept_bytes + len(data) > _MAX_BYTES:
            self._dropped += data.count(b"\n")
            return
        self._tell_dropped()
        self._write_or_keep(data)

    def retry(self) -> None:
        """Write what was kept, as far as the reader has gone on. Never waits."""
        self.acquire()
        try:
            self._write_kept()
        finally:
            self.release()

    def flush(self) -> None:
        """Give the reader half a second for what was kept."""
        super().flush()
        end = time.monotonic() + _LAST_WORDS
        while self._kept and (left := end - time.monotonic()) > 0:
            self._wait_for_room(left)
            self.retry()

    def close(self) -> None:
        """Flush, and close what is not the stream's own."""
        self.flush()
        self.acquire()
        try:
            # The thread may be waiting. The next file may have the same number.
            self._kept.clear()
            if self._socket is not None:
                self._socket.close()
            elif self._has_own_pipe:
                os.close(self._fd)
                self._has_own_pipe = False
        finally:
            self.release()
        super().close()

    # With the lock of the handler, which is made anew in the child of a fork

    def _encode(self, text: str) -> bytes:
        return text.encode(self._encoding, "backslashreplace")

    def _write_kept(self) -> None:
        while self._kept:
            piece = self._kept[0]
            rest = self._write(piece)
            self._kept_bytes -= len(piece) - len(rest)
            if rest:
                self._kept[0] = rest
                return
            self._kept.popleft()
            if not self._kept:
                self._tell_dropped()

    def _tell_dropped(self) -> None:
        if not self._dropped:
            return
        text = "log lines dropped, because nobody read them: %d"
        record = logging.LogRecord("microws.server", logging.WARNING, __file__, 0, text, (self._dropped,), None)
        self._dropped = 0
        self._write_or_keep(self._encode(f"{self.format(record)}\n"))

    def _write_or_keep(self, data: bytes) -> None:
        for piece in _pieces(data):
            rest = piece if self._kept else self._write(piece)
            if rest:
                self._kept.append(rest)
                self._kept_bytes += len(rest)
        if self._kept and self._may_start_threads and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="microws log", daemon=True)
            with suppress(RuntimeError):  # too many threads, or the end of the process
                self._thread.start()

    def _write(self, data: bytes) -> bytes:
        """Write now; what is left of ``data``."""
        try:
            if self._socket is not None:
                return data[self._socket.send(data, socket.MSG_DONTWAIT) :]
            if self._has_own_pipe:
                return data[os.write(self._fd, data) :]
            # There is room for so much, unless another process takes it in between.
            return data[os.write(self._fd, data[:_ATOMIC]) :] if self._wait_for_room(0) else data
        except BlockingIOError:
            return data
        except OSError:
            return b""  # nobody will ever read it

    # Without the lock

    def _run(self) -> None:
        while self._wait_for_room(None):
            self.acquire()
            try:
                self._write_kept()
                if not self._kept:
                    self._thread = None
                    return
            finally:
                self.release()

    def _wait_for_room(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(None if timeout is None else timeout * 1000))


def _pieces(data: bytes) -> Iterator[bytes]:
    """Whole lines, as many as the system writes in one piece. A line that is longer alone may be torn."""
    begin = 0
    while len(data) - begin > _ATOMIC:
        end = data.rfind(b"\n", begin, begin + _ATOMIC) + 1 or data.find(b"\n", begin) + 1
        yield data[begin:end]
        begin = end
    if begin < len(data):
        yield data[begin:]
