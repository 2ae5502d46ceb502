"""Where a worker's log goes, and how a line looks: text for people, JSON for machines."""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from json.encoder import encode_basestring_ascii as quote
from typing import TextIO

from microws.server.access_log import Answer
from microws.server.log_pipe import AnswerFormatter, PipeHandler, TurnHandler, is_pipe
from microws.server.settings import Settings

__all__ = ["JSONFormatter", "ShortageFilter", "TextFormatter", "logging_to_stderr"]

# At "debug" these tell of every header and every selector.
_TALKATIVE = ("asyncio", "hpack")

# These say what kept them from accepting a connection, and how.
_ACCEPTING = {
    "asyncio": (
        "socket.accept() out of system resource",
        "Exception in callback BaseSelectorEventLoop._start_serving(",
    ),
    "trio.serve_listeners": ("accept returned ",),
}

# Seconds between two lines on the same shortage.
_SHORTAGE_INTERVAL = 10.0

# json.dumps() makes an encoder for each call that has a default.
_encode_json = json.JSONEncoder(default=str).encode


_LEVELS = {logging.DEBUG: "debug", logging.INFO: "info"}


class _Formatter(AnswerFormatter):
    """Formats the date and time once a second, and adds the milliseconds."""

    def __init__(self, *, process: bool) -> None:
        super().__init__("%(asctime)s")
        self._names_process = process
        self._second = (-1, "")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return self._format_time(record.created)

    def _format_time(self, created: float) -> str:
        second = int(created)
        if second != self._second[0]:
            self._second = (second, time.strftime(self.default_time_format, self.converter(second)))
        assert self.default_msec_format is not None
        return self.default_msec_format % (self._second[1], (created - second) * 1000)


class TextFormatter(_Formatter):
    """
    ``2026-01-31 12:00:00,123 info message``, a traceback on the lines that follow.

    Args:
        process: Name the process too: ``2026-01-31 12:00:00,123 [4711] info message``.
    """

    def __init__(self, *, process: bool = False) -> None:
        super().__init__(process=process)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return f"{record.asctime} {self._process}{record.levelname.lower()} {record.message}"

    def format_answer(self, answer: Answer) -> str:
        _, _, line = answer.parts()
        return f"{self._format_time(answer.created)} {self._process}{_LEVELS[answer.level]} {line}"

    @property
    def _process(self) -> str:
        return f"[{os.getpid()}] " if self._names_process else ""


class JSONFormatter(_Formatter):
    """
    A JSON object a line: ``time``, ``level``, ``logger``, ``message``, what the access log tells, ``exception``.

    Args:
        process: Name the process too, as ``process``.
    """

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03d+00:00"

    def __init__(self, *, process: bool = False) -> None:
        super().__init__(process=process)

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

    def format_answer(self, answer: Answer) -> str:
        client, target, line = answer.parts()
        process = f'"process": {os.getpid()}, ' if self._names_process else ""
        status = "null" if answer.status is None else answer.status
        end = "" if answer.ending is None else f', "close_code": {_encode_json(answer.ending.code)}'
        # A third of the time that the encoder takes. The test compares the two.
        return (
            f'{{"time": "{self._format_time(answer.created)}", "level": "{_LEVELS[answer.level]}", '
            f'"logger": "microws.access", "message": {quote(line)}, {process}"client": {quote(client)}, '
            f'"method": {quote(answer.method)}, "path": {quote(target)}, "http_version": {quote(answer.http_version)}, '
            f'"status": {status}, "duration_ms": {answer.duration_ms}{end}}}'
        )


class ShortageFilter(logging.Filter):
    """
    Makes one line in ten seconds of what an event loop reports while it cannot accept connections.

    Without file descriptors asyncio reports each of its attempts, sixteen a second, and trio its own, ten a second, all
    with a traceback. Where the socket was closed in the meantime, asyncio also reports that it cannot try again.

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
        record.msg = "cannot accept connections: %s; those that are open go on. More at a time need a higher ulimit -n"
        record.args = (error.strerror,)
        record.exc_info = None
        return True


@contextmanager
def logging_to_stderr(
    settings: Settings, *, process: bool = False, may_start_threads: bool = True
) -> Iterator[Callable[[], None]]:
    """
    Log to stderr within the block, in the format and from the level of ``settings``; with ``process`` each line has
    the number of the process.

    Where stderr is a pipe or a socket, no line waits for its reader. With ``may_start_threads=False`` the function that
    the block is given has to be called now and then: it writes what the reader has left no room for.

    The loggers below ``microws`` always do. So does every other one, the app's own among them, unless the app has
    given the root logger a handler: then it has decided for itself.
    """
    _open_standard_files()
    level = settings.log_level.upper()
    handler: logging.Handler
    if is_pipe(sys.stderr):
        handler = pipe = PipeHandler(sys.stderr, may_start_threads=may_start_threads)
        retry = pipe.retry
    else:
        handler = _StreamHandler(sys.stderr)
        retry = handler.flush
    formatter = JSONFormatter if settings.log_format == "json" else TextFormatter
    handler.setFormatter(formatter(process=process))
    loggers = [logging.getLogger("microws")]
    if not logging.getLogger().handlers:
        loggers.append(logging.getLogger())
    quiet = [logging.getLogger(name) for name in _TALKATIVE]
    before = [(logger, logger.level, logger.propagate) for logger in (*loggers, *quiet)]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    loggers[0].propagate = False
    for logger in quiet:
        logger.setLevel(max(logging.INFO, logger.level))
    shortage = ShortageFilter()
    for name in _ACCEPTING:
        logging.getLogger(name).addFilter(shortage)
    try:
        yield retry
    finally:
        for name in _ACCEPTING:
            logging.getLogger(name).removeFilter(shortage)
        for logger in loggers:
            logger.removeHandler(handler)
        for logger, old_level, propagate in before:
            logger.setLevel(old_level)
            logger.propagate = propagate
        handler.close()


class _StreamHandler(TurnHandler):
    """Writes to a file or a terminal, or to ``None``: nowhere."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> None:
        if self._stream is not None:
            # The disk is full or the stream is closed, and the server has no other place to report it.
            with suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()


def _open_standard_files() -> None:
    # A service may be started without them. A socket would get such a number, and libuv aborts when it closes that.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
