"""A log handler for a pipe or a socket, whose reader may stop reading: the server does not wait for it."""

import logging
import os
import select
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, TextIO

__all__ = ["PipeHandler", "is_pipe"]

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


class PipeHandler(logging.Handler):
    """
    Writes each record at once, or else keeps it until the reader goes on; beyond 1 MiB it is dropped and counted.

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

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or keep it. Never waits."""
        try:
            data = self._encode(record)
        except Exception:
            self.handleError(record)
            return
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

    def _encode(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(self._encoding, "backslashreplace")

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
        self._write_or_keep(self._encode(record))

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
