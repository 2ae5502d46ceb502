"""How log lines look; a log that cannot be written; a shortage of file descriptors."""

import errno
import json
import logging
import os
import re
import sys
from io import FileIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest

from microws.server.logs import (
    JSONFormatter,
    ShortageFilter,
    TextFormatter,
    format_duration,
    log_access,
    logging_to_stderr,
)
from microws.server.settings import Settings

SHORTAGE = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def record(name, message, error, created=1000.0):
    made = logging.LogRecord(name, logging.ERROR, __file__, 1, message, (), (type(error), error, None))
    made.created = created
    return made


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("asyncio", "socket.accept() out of system resource\nsocket: <...>"),
        ("trio.serve_listeners", "accept returned EMFILE (Too many open files); retrying in 0.1 seconds"),
    ],
)
def test_a_shortage_is_logged_once_in_ten_seconds(name, message):
    shortage = ShortageFilter()
    first = record(name, message, SHORTAGE)
    assert shortage.filter(first)
    assert first.getMessage().startswith("cannot accept connections: Too many open files; ")
    assert first.exc_info is None
    assert not shortage.filter(record(name, message, SHORTAGE, 1009.9))
    assert shortage.filter(record(name, message, SHORTAGE, 1010.0))


def test_other_lines_of_an_event_loop_are_unchanged():
    shortage = ShortageFilter()
    other = record("asyncio", "Task exception was never retrieved", SHORTAGE)
    assert shortage.filter(other)
    assert other.getMessage() == "Task exception was never retrieved"
    assert other.exc_info is not None
    assert shortage.filter(logging.LogRecord("asyncio", logging.WARNING, __file__, 1, "slow", (), None))


def test_that_asyncio_cannot_accept_again_is_not_logged():
    message = "Exception in callback BaseSelectorEventLoop._start_serving(<...>)"
    assert not ShortageFilter().filter(record("asyncio", message, ValueError("Invalid file descriptor: -1")))


def test_the_filter_is_removed_with_the_log(capfd):
    logger = logging.getLogger("asyncio")
    before = list(logger.filters)
    with logging_to_stderr(Settings(), process=True):
        assert [type(each) for each in logger.filters] == [ShortageFilter]
        logging.getLogger("microws.server").warning("slow")
    assert logger.filters == before == []
    [line] = capfd.readouterr().err.splitlines()
    assert line.endswith(f" [{os.getpid()}] warning slow")


REQUEST = {
    "type": "http",
    "method": "GET",
    "raw_path": b"/a%20b",
    "query_string": b"q=1&token=x",
    "client": ("127.0.0.1", 4711),
    "http_version": "1.1",
}


@pytest.mark.parametrize(("formatter", "milliseconds"), [(TextFormatter(), ",%03d"), (JSONFormatter(), ".%03d+00:00")])
def test_every_line_has_its_own_second_and_millisecond(formatter, milliseconds):
    for created, second, millisecond in [(1.7e9, "20", 0), (1.7e9 + 0.75, "20", 750), (1.7e9 + 1.5, "21", 500)]:
        line = logging.LogRecord("microws", logging.INFO, __file__, 1, "x", (), None)
        line.created = created
        expected = rf"2023-11-1\d.\d\d:\d\d:{second}{re.escape(milliseconds % millisecond)}"
        assert re.search(expected, formatter.format(line))


def test_a_duration_from_a_second_on_is_in_seconds():
    durations = [format_duration(milliseconds) for milliseconds in (0.04, 999.9, 1000.0, 3600040.0)]
    assert durations == ["0.0ms", "999.9ms", "1.0s", "3600.0s"]


def test_a_line_of_the_access_log_as_text(capfd):
    with logging_to_stderr(Settings()):
        log_access(REQUEST, 200, 0.0)
    [line] = capfd.readouterr().err.splitlines()
    assert re.fullmatch(
        r'[0-9-]{10} [0-9:]{8},\d{3} info 127\.0\.0\.1:4711 "GET /a%20b\?q=1&token=\*\*\* HTTP/1\.1" 200 [0-9.]+s', line
    )


def test_the_access_log_can_be_turned_off(capfd):
    with logging_to_stderr(Settings(access_log=False)):
        log_access(REQUEST, 200, 0.0)
        logging.getLogger("microws.server").info("another line")
    [line] = capfd.readouterr().err.splitlines()
    assert line.endswith("another line")
    assert not logging.getLogger("microws.access").disabled


def test_a_line_of_the_access_log_as_json(capfd):
    with logging_to_stderr(Settings(log_format="json")):
        log_access(REQUEST, 200, 0.0)
    line = json.loads(capfd.readouterr().err)
    assert [*line] == [
        "time", "level", "logger", "message", "client", "method", "path", "http_version", "status", "duration_ms",
    ]  # fmt: skip
    assert (line["logger"], line["path"], line["status"]) == ("microws.access", "/a%20b?q=1&token=***", 200)


class Keeping(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


def keeping_formatter(records):
    class Formatter(logging.Formatter):
        def format(self, record):
            records.append(record)
            return super().format(record)

    return Formatter("%(message)s")


@pytest.mark.parametrize("kind", ["handler", "filter of the logger", "filter of the handler", "formatter"])
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_handlers_and_filters_of_the_app_get_records(kind, log_format, capfd):
    access, handler = logging.getLogger("microws.access"), Keeping()
    with logging_to_stderr(Settings(log_format=log_format)):
        log_access(REQUEST, 200, 0.0)
        [ours] = logging.getLogger("microws").handlers
        if kind == "formatter":
            ours.setFormatter(keeping_formatter(handler.records))
            log_access(REQUEST, 200, 0.0)
        elif kind == "handler":
            access.addHandler(handler)
            log_access(REQUEST, 200, 0.0)
            access.removeHandler(handler)
        else:
            filterer = access if kind == "filter of the logger" else ours
            keep = logging.Filter()
            keep.filter = lambda record: not handler.records.append(record)
            filterer.addFilter(keep)
            log_access(REQUEST, 200, 0.0)
            filterer.removeFilter(keep)
    [record] = handler.records
    assert (record.name, record.levelname) == ("microws.access", "INFO")
    assert record.getMessage().startswith('127.0.0.1:4711 "GET /a%20b?q=1&token=*** HTTP/1.1" 200 ')
    assert record.access | {"duration_ms": 0} == {
        "client": "127.0.0.1:4711",
        "method": "GET",
        "path": "/a%20b?q=1&token=***",
        "http_version": "1.1",
        "status": 200,
        "duration_ms": 0,
    }
    first, second = (
        re.sub(r"\d+:\d\d:\d\d.\d+|[0-9.]+(?=[s}])", "", line) for line in capfd.readouterr().err.splitlines()
    )
    if kind != "formatter":
        assert first == second


@pytest.mark.parametrize("process", [True, False])
@pytest.mark.parametrize(
    ("status", "close_code", "changes"),
    [
        (200, None, {}),
        (None, None, {"query_string": b'"\\=\xe9', "client": None}),
        (101, 1000, {"type": "websocket", "client": ("::1", 0)}),
        (101, 0, {"type": "websocket", "http_version": "2"}),
    ],
)
def test_json_is_the_same_with_and_without_a_record(status, close_code, changes, process, capfd):
    access, other = logging.getLogger("microws.access"), Keeping()
    with logging_to_stderr(Settings(log_format="json"), process=process):
        log_access(REQUEST | changes, status, 0.0, close_code=close_code)
        access.addHandler(other)
        log_access(REQUEST | changes, status, 0.0, close_code=close_code)
        access.removeHandler(other)
    first, second = capfd.readouterr().err.splitlines()
    varying = r'[0-9-]{10}T[0-9:.+]+|[0-9.]+(?=s"|}|, "close)'
    assert re.sub(varying, "", first) == re.sub(varying, "", second)
    assert json.loads(first).keys() == json.loads(second).keys()


def test_a_level_or_a_disabled_logger_of_the_app_is_respected(capfd):
    access = logging.getLogger("microws.access")
    with logging_to_stderr(Settings()):
        [ours] = logging.getLogger("microws").handlers
        ours.setLevel(logging.WARNING)
        log_access(REQUEST, 200, 0.0)
        ours.setLevel(logging.NOTSET)
        access.setLevel(logging.WARNING)
        log_access(REQUEST, 200, 0.0)
        access.setLevel(logging.NOTSET)
        access.disabled = True
        log_access(REQUEST, 200, 0.0)
        access.disabled = False
    assert capfd.readouterr().err == ""


def test_an_exception_follows_its_line(capfd):
    with logging_to_stderr(Settings()):
        try:
            raise ValueError("x")
        except ValueError:
            logging.getLogger("microws").exception("failed")
    first, second, *_, last = capfd.readouterr().err.splitlines()
    assert first.endswith(" error failed")
    assert (second, last) == ("Traceback (most recent call last):", "ValueError: x")


@pytest.mark.parametrize("stream", ["full", "closed", "none"])
def test_a_log_that_cannot_be_written_raises_nothing(stream, monkeypatch):
    # On Linux, a write to /dev/full fails as on a full disk.
    raw = FileIO("/dev/full" if Path("/dev/full").exists() else os.devnull, "w")
    with TextIOWrapper(raw, write_through=True) as output:
        monkeypatch.setattr(sys, "stderr", None if stream == "none" else output)
        with logging_to_stderr(Settings()):
            if stream == "closed":
                output.close()
            log_access(REQUEST, 200, 0.0)
            logging.getLogger("microws").error("failed")


def without_handlers_of_pytest(monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def test_the_log_of_the_app_is_shown(capsys, monkeypatch):
    without_handlers_of_pytest(monkeypatch)
    with logging_to_stderr(Settings(log_level="info")):
        logging.getLogger("chat").info("hello")
        logging.getLogger("chat").debug("not this")
        logging.getLogger("microws.server").info("served")
    assert logging.getLogger("microws").handlers == []
    assert logging.getLogger("microws").propagate
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["info hello", "info served"]


def test_libraries_are_quiet_at_debug(capsys, monkeypatch):
    without_handlers_of_pytest(monkeypatch)
    with logging_to_stderr(Settings(log_level="debug")):
        logging.getLogger("hpack").debug("a header")
        logging.getLogger("chat").debug("hello")
    shown = capsys.readouterr().err
    assert "a header" not in shown
    assert "debug hello" in shown


def test_an_app_with_a_handler_keeps_its_log(capsys):
    own = logging.StreamHandler(StringIO())
    logging.getLogger().addHandler(own)
    try:
        with logging_to_stderr(Settings()):
            logging.getLogger("chat").warning("hello")
            logging.getLogger("microws.server").warning("served")
    finally:
        logging.getLogger().removeHandler(own)
    assert own.stream.getvalue() == "hello\n"
    assert capsys.readouterr().err.endswith(" warning served\n")


def test_json_is_one_object_a_line(capsys, monkeypatch):
    without_handlers_of_pytest(monkeypatch)
    with logging_to_stderr(Settings(log_format="json")):
        logging.getLogger("microws.access").info("%s", "a\nb", extra={"access": {"status": 200}})
        try:
            raise LookupError("gone")
        except LookupError:
            logging.getLogger("chat").exception("failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {"level": "info", "logger": "microws.access", "message": "a\nb", "status": 200}
    assert "LookupError: gone" in second["exception"]
