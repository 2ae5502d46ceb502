"""What the log makes of a shortage of file descriptors."""

import errno
import logging
import os

import pytest

from microws.server.logs import ShortageFilter, logging_to_stderr
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
def test_a_shortage_is_one_line_in_ten_seconds(name, message):
    shortage = ShortageFilter()
    first = record(name, message, SHORTAGE)
    assert shortage.filter(first)
    assert first.getMessage().startswith("cannot accept connections: Too many open files; ")
    assert first.exc_info is None
    assert not shortage.filter(record(name, message, SHORTAGE, 1009.9))
    assert shortage.filter(record(name, message, SHORTAGE, 1010.0))


def test_what_else_an_event_loop_says_is_left_as_it_is():
    shortage = ShortageFilter()
    other = record("asyncio", "Task exception was never retrieved", SHORTAGE)
    assert shortage.filter(other)
    assert other.getMessage() == "Task exception was never retrieved"
    assert other.exc_info is not None
    assert shortage.filter(logging.LogRecord("asyncio", logging.WARNING, __file__, 1, "slow", (), None))


def test_that_asyncio_cannot_try_again_is_no_news():
    message = "Exception in callback BaseSelectorEventLoop._start_serving(<...>)"
    assert not ShortageFilter().filter(record("asyncio", message, ValueError("Invalid file descriptor: -1")))


def test_the_filter_is_there_as_long_as_the_log(capfd):
    logger = logging.getLogger("asyncio")
    before = list(logger.filters)
    with logging_to_stderr(Settings(), process=True):
        assert [type(each) for each in logger.filters] == [ShortageFilter]
        logging.getLogger("microws.server").warning("slow")
    assert logger.filters == before == []
    [line] = capfd.readouterr().err.splitlines()
    assert line.endswith(f" [{os.getpid()}] warning slow")
