"""The log: where it goes, how a line looks, and the access log. No write waits for the reader of a pipe."""

import asyncio
import json
import logging
import math
import os
import select
import socket
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from json.encoder import encode_basestring_ascii as quote
from typing import Final, NamedTuple, TextIO

from microws.interfaces import Scope
from microws.server.request_line import logged_target, method_of
from microws.server.settings import Settings

__all__ = [
    "AccessEntry",
    "JSONFormatter",
    "PipeHandler",
    "ShortageFilter",
    "TextFormatter",
    "format_duration",
    "is_pipe",
    "log_access",
    "logging_to_stderr",
]

_package = logging.getLogger("microws")
_access = logging.getLogger("microws.access")

# Of a probe, and of the WebSocket by which a page is reloaded.
_SUCCESSES: Final = (200, 101)

# Characters of the access log that one turn of the event loop collects; more are written immediately.
_MAX_TURN: Final = 1 << 16

# Bytes kept for a reader that does not read. At 150 bytes a line these are some 7,000 lines.
_MAX_BYTES: Final = 1 << 20

# Seconds that ``flush`` and ``close`` give a slow reader.
_FLUSH_TIMEOUT: Final = 0.5

# What the system writes to a pipe in one piece even if other processes write to it: POSIX says at least 512 bytes.
_ATOMIC: Final = getattr(select, "PIPE_BUF", 512)

# At "debug" these log every header and every selector.
_VERBOSE: Final = ("asyncio", "hpack")

# These log why they cannot accept a connection, with these words.
_ACCEPTING: Final = {
    "asyncio": (
        "socket.accept() out of system resource",
        "Exception in callback BaseSelectorEventLoop._start_serving(",
    ),
    "trio.serve_listeners": ("accept returned ",),
}

# Seconds between two lines on the same shortage.
_SHORTAGE_INTERVAL: Final = 10.0

_LEVELS: Final = {logging.DEBUG: "debug", logging.INFO: "info"}

# ``json.dumps`` makes an encoder for each call that has a default.
_encode_json = json.JSONEncoder(default=str).encode


class AccessEntry(NamedTuple):
    """
    A line of the access log before it is formatted.

    Attributes:
        created: ``time.time()``.
        level: ``logging.INFO`` or ``DEBUG``.
        client, method, raw_path, query_string, http_version: From the scope; ``WebSocket`` for the method of a
            handshake.
        status: ``None`` if there was no response.
        duration_ms: Milliseconds since the request.
        close_code: Of a WebSocket that ended; 0 if it is unknown.
    """

    created: float
    level: int
    client: tuple[str, int] | None
    method: str
    raw_path: bytes
    query_string: bytes
    http_version: str
    status: int | None
    duration_ms: float
    close_code: int | None

    def parts(self) -> tuple[str, str, str]:
        """The client, the target of the request, and the line."""
        client, target = _client(self.client), logged_target(self.raw_path, self.query_string)
        outcome: object = self.status or "-"
        if self.close_code is not None:
            outcome = f"closed {int(self.close_code)}" if self.close_code else "closed by the client"
        line = f'"{self.method} {target} HTTP/{self.http_version}" {outcome} {format_duration(self.duration_ms)}'
        return client, target, f"{client} {line}"


def log_access(scope: Scope, status: int | None, began: float, *, close_code: int | None = None) -> None:
    """
    Log the response to a request or a handshake, or with ``close_code`` the end of a WebSocket.

    A probe that got 200 is logged at debug level: probes come every second and would hide the other lines.

    The path is logged as received, percent-encoded, so that a client cannot forge a line. Secrets in the query are
    masked, as ``mask_secrets`` says.

    Args:
        scope: The ASGI scope.
        status: The status code; ``None`` if there was no response.
        began: ``time.perf_counter()`` when the request was received.
        close_code: Of a WebSocket that ended; 0 if it is unknown.
    """
    level = logging.DEBUG if status in _SUCCESSES and scope.get("microws.is_probe") else logging.INFO
    if not _access.isEnabledFor(level):
        return
    entry = AccessEntry(
        time.time(),
        level,
        scope.get("client"),
        method_of(scope),
        scope["raw_path"],
        scope["query_string"],
        scope.get("http_version", "1.1"),
        status,
        round((time.perf_counter() - began) * 1000, 1),
        close_code,
    )
    handler = _only_handler(level)
    if handler is not None:
        handler.add_entry(entry)
        return
    client, target, line = entry.parts()
    fields: dict[str, object] = {
        "client": client,
        "method": entry.method,
        "path": target,
        "http_version": entry.http_version,
        "status": status,
        "duration_ms": entry.duration_ms,
    }
    if close_code is not None:
        fields["close_code"] = int(close_code) or None
    # As Logger.info() does, but without looking for the line of code that calls it.
    record = _access.makeRecord(_access.name, level, __file__, 0, "%s", (line,), None, "log_access", {"access": fields})
    _access.handle(record)


def format_duration(milliseconds: float) -> str:
    """``12.3ms``, and from a second on ``4.5s``."""
    return f"{milliseconds:.1f}ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f}s"


def _client(client: tuple[str, int] | None) -> str:
    if client is None:
        return "unix"
    host, port = client[:2]
    if not port:  # a proxy has sent the address alone
        return str(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class TextFormatter(logging.Formatter):
    """
    ``2026-01-31 12:00:00,123 info message``, a traceback on the lines that follow.

    The date and time are formatted once a second; the milliseconds are added for each line.

    Args:
        process: Add the process id: ``2026-01-31 12:00:00,123 [4711] info message``.
    """

    default_msec_format: str = "%s,%03d"

    def __init__(self, *, process: bool = False) -> None:
        super().__init__("%(asctime)s")
        self._names_process = process
        self._second = (-1, "")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return self._format_time(record.created)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return f"{record.asctime} {self._process}{record.levelname.lower()} {record.message}"

    def format_entry(self, entry: AccessEntry) -> str:
        """The line of the access log."""
        return f"{self._format_time(entry.created)} {self._process}{_LEVELS[entry.level]} {entry.parts()[2]}"

    def _format_time(self, created: float) -> str:
        second = int(created)
        if second != self._second[0]:
            self._second = (second, time.strftime(self.default_time_format, self.converter(second)))
        return self.default_msec_format % (self._second[1], (created - second) * 1000)

    @property
    def _process(self) -> str:
        return f"[{os.getpid()}] " if self._names_process else ""


class JSONFormatter(TextFormatter):
    """
    A JSON object a line: ``time``, ``level``, ``logger``, ``message``, the fields of the access log, ``exception``.

    Args:
        process: Add the process id, as ``process``.
    """

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format: str = "%s.%03d+00:00"

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": self._format_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._names_process:
            line["process"] = os.getpid()
        line |= getattr(record, "access", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode_json(line)

    def format_entry(self, entry: AccessEntry) -> str:
        client, target, line = entry.parts()
        process = f'"process": {os.getpid()}, ' if self._names_process else ""
        status = "null" if entry.status is None else entry.status
        end = "" if entry.close_code is None else f', "close_code": {_encode_json(entry.close_code or None)}'
        # A third of the time that the encoder takes. A test compares the two.
        return (
            f'{{"time": "{self._format_time(entry.created)}", "level": "{_LEVELS[entry.level]}", '
            f'"logger": "microws.access", "message": {quote(line)}, {process}"client": {quote(client)}, '
            f'"method": {quote(entry.method)}, "path": {quote(target)}, "http_version": {quote(entry.http_version)}, '
            f'"status": {status}, "duration_ms": {entry.duration_ms}{end}}}'
        )


class _Handler(logging.Handler):
    """
    Writes the access log of one turn of asyncio's event loop together, at the end of the turn.

    A write for each line costs more than the rest of the line. Every other record is written immediately, and the lines
    before it with it: lines stay in order, and what a view logs is written before the view can block the loop. Outside
    of an asyncio loop, in threads and on trio, each line is written immediately.

    An ``AccessEntry`` needs no record, which takes half the time.

    Args:
        stream: A file or a terminal. ``None``: the process has no stderr, and everything is dropped.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream
        assert self.lock is not None
        self._lock = self.lock  # logging makes it anew, in place, in the child of a fork
        # Lines, and functions that format one when it is written: many in a row take less time than each after another
        # request.
        self._lines: list[str | Callable[[], str]] = []
        self._size = 0
        self._loop: asyncio.AbstractEventLoop | None = None  # will call _end_turn
        if hasattr(os, "register_at_fork"):
            # The parent writes these lines.
            os.register_at_fork(after_in_child=self._lines.clear)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or keep it until the end of the turn."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self._add(line, len(line), may_wait="access" in record.__dict__)

    def takes_entries(self, level: int) -> bool:
        """Whether ``add_entry`` writes what ``emit`` would: no filter, no formatter of the app."""
        return level >= self.level and not self.filters and isinstance(self.formatter, TextFormatter)

    def add_entry(self, entry: AccessEntry) -> None:
        """Write a line of the access log, or keep it until the end of the turn."""
        assert isinstance(self.formatter, TextFormatter)
        with self._lock:
            size = len(entry.raw_path) + len(entry.query_string)
            self._add(partial(self.formatter.format_entry, entry), size, may_wait=True)

    def flush(self) -> None:
        """Write the lines that were kept."""
        with self._lock:
            self._write_lines()

    def write(self, text: str) -> None:
        """Write whole lines. Called with the lock of the handler."""
        if self._stream is not None:
            # The disk is full or the stream is closed, and the server has no other place to report it.
            with suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()

    def _add(self, line: str | Callable[[], str], size: int, *, may_wait: bool) -> None:
        self._lines.append(line)
        self._size += size
        if not may_wait or self._size > _MAX_TURN or not self._will_end_turn():
            self._write_lines()

    def _will_end_turn(self) -> bool:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if self._loop is None:
            loop.call_soon(self._end_turn)
            self._loop = loop
        elif self._loop is not loop:
            # The loop of another thread, or one that was stopped before it came to the end of its turn.
            self._loop = None
            return False
        return True

    def _end_turn(self) -> None:
        self._loop = None
        if self._lines:
            _Handler.flush(self)

    def _write_lines(self) -> None:
        if self._lines:
            text = "\n".join([*(line if isinstance(line, str) else line() for line in self._lines), ""])
            self._lines.clear()
            self._size = 0
            self.write(text)


def is_pipe(stream: TextIO | None) -> bool:
    """Whether a write to ``stream`` waits for another program. Only on systems where that can be avoided."""
    try:
        mode = os.fstat(stream.fileno()).st_mode  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):
        return False
    return hasattr(select, "poll") and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))


class PipeHandler(_Handler):
    """
    Writes without waiting, and keeps up to 1 MiB of lines until the reader goes on; more are dropped and counted.

    As soon as there is room again, a record says how many lines were dropped, at the place where they are missing.
    Several processes may write to the same pipe: a line of at most ``PIPE_BUF`` bytes, 4,096 on Linux, is written in
    one piece.

    A thread writes what was kept, and ends with it. The supervisor has one too: ``subprocess`` runs no Python between
    fork and exec, so a lock that the thread holds harms no worker.

    Args:
        stream: ``is_pipe(stream)`` is true.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._encoding = stream.encoding
        self._thread: threading.Thread | None = None
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self._dropped = 0
        self._own = ExitStack()
        self._fd = stream.fileno()
        # Sends a part of the data, and returns its length. Raises ``BlockingIOError`` instead of waiting.
        self._send: Callable[[bytes], int] = self._send_if_room
        if stat.S_ISSOCK(os.fstat(self._fd).st_mode):
            sock = self._own.enter_context(socket.socket(fileno=os.dup(self._fd)))
            self._fd = sock.fileno()
            self._send = lambda data: sock.send(data, socket.MSG_DONTWAIT)
        else:
            # O_NONBLOCK would also change the stream for the processes that share it, such as the shell. So this opens
            # the pipe again. That fails on systems other than Linux, and if the pipe belongs to another user.
            with suppress(OSError):
                self._fd = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_NONBLOCK)
                self._own.callback(os.close, self._fd)
                self._send = partial(os.write, self._fd)

    def write(self, text: str) -> None:
        """Write the lines, or keep them. Never waits."""
        data = self._encode(text)
        self._write_kept()
        if self._kept and self._kept_bytes + len(data) > _MAX_BYTES:
            self._dropped += data.count(b"\n")
            return
        self._report_dropped()
        self._write_or_keep(data)

    def flush(self) -> None:
        """Give the reader half a second for what was kept."""
        super().flush()
        end = time.monotonic() + _FLUSH_TIMEOUT
        while self._kept and (left := end - time.monotonic()) > 0:
            self._wait_for_room(left)
            with self._lock:
                self._write_kept()

    def close(self) -> None:
        """Flush, and close the handler's own file; not the stream."""
        self.flush()
        with self._lock:
            # The thread may still wait for room: it must not write to the next file that gets this number.
            self._kept.clear()
            self._own.close()
        super().close()

    # With the lock

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
                self._report_dropped()

    def _report_dropped(self) -> None:
        if not self._dropped:
            return
        text = "log lines dropped, because their reader does not read: %d"
        record = logging.LogRecord("microws.server", logging.WARNING, __file__, 0, text, (self._dropped,), None)
        self._dropped = 0
        self._write_or_keep(self._encode(f"{self.format(record)}\n"))

    def _write_or_keep(self, data: bytes) -> None:
        for piece in _pieces(data):
            rest = piece if self._kept else self._write(piece)
            if rest:
                self._kept.append(rest)
                self._kept_bytes += len(rest)
        if self._kept and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="microws log", daemon=True)
            with suppress(RuntimeError):  # too many threads, or the process is ending
                self._thread.start()

    def _write(self, data: bytes) -> bytes:
        """Write now; what is left of ``data``."""
        try:
            return data[self._send(data) :]
        except BlockingIOError:
            return data
        except OSError:
            return b""  # the reader has closed the pipe

    def _send_if_room(self, data: bytes) -> int:
        # There is room for so much, unless another process takes it in between.
        return os.write(self._fd, data[:_ATOMIC]) if self._wait_for_room(0) else 0

    # Without the lock

    def _run(self) -> None:
        while self._wait_for_room(None):
            with self._lock:
                self._write_kept()
                if not self._kept:
                    self._thread = None
                    return

    def _wait_for_room(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(None if timeout is None else timeout * 1000))


def _pieces(data: bytes) -> Iterator[bytes]:
    """Whole lines, as many as the system writes in one piece. Only a line that is longer by itself may be torn."""
    begin = 0
    while len(data) - begin > _ATOMIC:
        end = data.rfind(b"\n", begin, begin + _ATOMIC) + 1 or data.find(b"\n", begin) + 1
        yield data[begin:end]
        begin = end
    if begin < len(data):
        yield data[begin:]


def _only_handler(level: int) -> _Handler | None:
    """The handler of this package, if it takes entries, and no other handler and no filter needs a record."""
    if (
        _access.filters
        or _access.handlers
        or not _access.propagate
        or _package.propagate
        or len(_package.handlers) != 1
    ):
        return None
    [handler] = _package.handlers
    return handler if isinstance(handler, _Handler) and handler.takes_entries(level) else None


class ShortageFilter(logging.Filter):
    """
    Reduces what an event loop logs while it cannot accept connections to one line in ten seconds.

    Without file descriptors asyncio logs each of its attempts, sixteen a second, and trio ten a second, all with a
    traceback. If the socket was closed in the meantime, asyncio also logs that it cannot try again.

    Source: CPython 3.11, asyncio/selector_events.py:178-198.
    """

    def __init__(self) -> None:
        super().__init__()
        self._next = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or not record.getMessage().startswith(_ACCEPTING.get(record.name, ())):
            return True
        if not isinstance(error, OSError) or record.created < self._next:
            return False
        self._next = record.created + _SHORTAGE_INTERVAL
        record.msg = "cannot accept connections: %s; open ones continue. Raise ulimit -n to serve more at a time"
        record.args = (error.strerror,)
        record.exc_info = None
        return True


@contextmanager
def logging_to_stderr(
    settings: Settings, *, process: bool = False, formatter: logging.Formatter | None = None
) -> Iterator[None]:
    """
    Log to stderr within the block, in the format and from the level of ``settings``.

    If stderr is a pipe or a socket, no line waits for its reader. The loggers below ``microws`` always log there. So do
    all others, those of the app too, unless the app has given the root logger a handler of its own.

    Args:
        settings: Of these, ``log_level``, ``log_format`` and ``access_log``.
        process: Add the process id to each line.
        formatter: Default: that of ``settings``.
    """
    _open_standard_files()
    handler: _Handler = PipeHandler(sys.stderr) if is_pipe(sys.stderr) else _Handler(sys.stderr)
    default = JSONFormatter if settings.log_format == "json" else TextFormatter
    handler.setFormatter(formatter or default(process=process))
    root = logging.getLogger()
    shortage = ShortageFilter()
    with ExitStack() as undo:
        undo.callback(handler.close)
        for logger in [_package] if root.handlers else [_package, root]:
            undo.callback(logger.setLevel, logger.level)
            undo.callback(logger.removeHandler, handler)
            logger.setLevel(settings.log_level.upper())
            logger.addHandler(handler)
        undo.callback(setattr, _access, "disabled", _access.disabled)
        _access.disabled = not settings.access_log
        undo.callback(setattr, _package, "propagate", _package.propagate)
        _package.propagate = False
        for logger in map(logging.getLogger, _VERBOSE):
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(max(logging.INFO, logger.level))
        for logger in map(logging.getLogger, _ACCEPTING):
            undo.callback(logger.removeFilter, shortage)
            logger.addFilter(shortage)
        yield


def _open_standard_files() -> None:
    # A service may be started without them. Then a socket would get such a number, and libuv aborts when it closes it.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
