"""The log's handlers: one write for the access log of a turn; a pipe or a socket whose reader does not read."""

import asyncio
import fcntl
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest
from websocket_server import ASYNCIO_BACKENDS

from microws.server.logs import AccessEntry, PipeHandler, TextFormatter, is_pipe

# Bytes that a pipe takes here without a reader.
SMALL = 4096


class Output:
    """What a handler writes to, and its reader."""

    def __init__(self, kind):
        if kind == "socket":
            ours, theirs = socket.socketpair()
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            self.reader, writer = ours.detach(), theirs.detach()
        else:
            self.reader, writer = os.pipe()
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, SMALL)
        self.stream = os.fdopen(writer, "w", encoding="utf-8")
        self.data = b""

    def read_until(self, pattern):
        """The lines up to the one in which ``pattern`` is found, which is to come."""
        while not re.search(pattern, self.data):
            data = os.read(self.reader, 65536)
            assert data
            self.data += data
        return self.data.decode().splitlines()

    def close(self):
        self.stream.close()
        if self.reader is not None:
            os.close(self.reader)


@pytest.fixture(params=["pipe", "foreign pipe", "socket"])
def output(request, monkeypatch):
    """Three kinds; the second one cannot be opened anew, as on other systems than Linux."""
    if request.param == "foreign pipe":

        def refuse(*_):
            raise PermissionError

        monkeypatch.setattr("microws.server.logs.os.open", refuse)
    output = Output(request.param)
    yield output
    output.close()


def make_handler(output):
    handler = PipeHandler(output.stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


def log(handler, *messages):
    for message in messages:
        handler.handle(logging.LogRecord("microws", logging.INFO, __file__, 1, message, (), None))


def messages(begin, end):
    return [f"{number:06d} {'x' * 300}" for number in range(begin, end)]


def test_lines_arrive_immediately_and_in_order(output):
    handler = make_handler(output)
    log(handler, "first", "sécond", "a traceback\n  of lines")
    assert output.read_until(b"of lines\n") == ["first", "sécond", "a traceback", "  of lines"]
    handler.close()


def test_without_a_reader_lines_are_dropped_and_counted(output):
    handler = make_handler(output)
    log(handler, *messages(0, 5000))
    lines = output.read_until(rb"dropped.*: \d+\n")
    dropped = int(re.fullmatch("log lines dropped, because their reader does not read: ([0-9]+)", lines[-1])[1])
    assert 1000 < dropped < 4000
    assert lines[:-1] == messages(0, 5000 - dropped)
    log(handler, *messages(5000, 5010))
    assert output.read_until(rb"005009 x+\n")[len(lines) :] == messages(5000, 5010)
    handler.close()


def test_without_a_thread_the_next_line_writes_what_was_kept(output, monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    handler = make_handler(output)
    log(handler, *messages(0, 20))
    for number in range(20, 200):
        output.data += os.read(output.reader, 65536)
        log(handler, *messages(number, number + 1))
    lines = output.data.decode().splitlines()
    assert len(lines) > 100
    assert lines == messages(0, len(lines))
    handler.close()


def test_close_waits_only_a_moment(output):
    handler = make_handler(output)
    log(handler, *messages(0, 100))
    began = time.monotonic()
    handler.close()
    assert time.monotonic() - began < 5


def test_close_writes_what_was_kept_to_a_slow_reader(output, monkeypatch):
    monkeypatch.setattr("microws.server.logs._FLUSH_TIMEOUT", 20)
    handler = make_handler(output)
    log(handler, *messages(0, 100))
    reader = threading.Thread(target=output.read_until, args=[rb"000099 x+\n"])
    reader.start()
    handler.close()
    reader.join(10)
    assert output.data.decode().splitlines() == messages(0, 100)


def test_a_reader_that_closed_the_pipe_is_not_an_error(output):
    handler = make_handler(output)
    log(handler, *messages(0, 100))
    os.close(output.reader)
    output.reader = None
    log(handler, *messages(0, 100))
    handler.close()


def test_lines_of_several_writers_are_not_torn(output):
    handlers = [make_handler(output) for _ in range(4)]
    texts = ["short", "y" * 2000, "\n".join(["z" * 900] * 9)]

    def write(handler):
        for _ in range(10):
            log(handler, *texts)

    threads = [threading.Thread(target=write, args=[handler]) for handler in handlers]
    for thread in threads:
        thread.start()
    lines = []
    while len(lines) < 4 * 10 * 11:
        output.data += os.read(output.reader, 700)
        lines = output.data.split(b"\n")[:-1]
    assert {*lines} == {b"short", b"y" * 2000, b"z" * 900}
    for thread in threads:
        thread.join(10)
    for handler in handlers:
        handler.close()


def test_a_record_that_cannot_be_formatted_is_reported(output, capsys):
    handler = make_handler(output)
    handler.handle(logging.LogRecord("microws", logging.INFO, __file__, 1, "%d", ("x",), None))
    assert "--- Logging error ---" in capsys.readouterr().err
    handler.close()


def test_pipes_and_sockets_are_pipes_and_files_are_not(output, tmp_path):
    assert is_pipe(output.stream)
    with (tmp_path / "log").open("w") as file:
        assert not is_pipe(file)
    assert not is_pipe(file)
    assert not is_pipe(None)


def on_asyncio(test):
    return pytest.mark.anyio(
        pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)(test)
    )


class Packets:
    """A handler whose output keeps the borders between its writes."""

    def __init__(self):
        self.reader, self._writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.reader.setblocking(False)
        self.handler = PipeHandler(self._writer.makefile("w", encoding="utf-8"))
        self.handler.setFormatter(logging.Formatter("%(message)s"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handler.close()
        self._writer.close()
        self.reader.close()

    def log(self, *messages):
        log(self.handler, *messages)

    def log_access(self, *messages):
        for message in messages:
            record = logging.LogRecord("microws.access", logging.INFO, __file__, 1, message, (), None)
            record.access = {}
            self.handler.handle(record)

    def read(self):
        """The packets written so far."""
        found = []
        while True:
            try:
                found.append(self.reader.recv(1 << 20).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def packets():
    with Packets() as packets:
        yield packets


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_on_trio_each_line_is_written_immediately(packets):
    packets.log_access("first", "second")
    assert packets.read() == ["first\n", "second\n"]


@on_asyncio
async def test_the_access_log_of_one_turn_is_one_write(packets):
    packets.log_access("first", "second")
    assert packets.read() == []
    await asyncio.sleep(0)
    assert packets.read() == ["first\nsecond\n"]
    packets.log_access("third")
    await asyncio.sleep(0)
    assert packets.read() == ["third\n"]


@on_asyncio
async def test_other_lines_are_written_immediately_with_those_before(packets):
    packets.log_access("first")
    packets.log("before the loop blocks")
    assert packets.read() == ["first\nbefore the loop blocks\n"]
    packets.log_access("second")
    await asyncio.sleep(0)
    assert packets.read() == ["second\n"]


@on_asyncio
async def test_access_entries_and_records_stay_in_order(packets):
    packets.handler.setFormatter(TextFormatter())

    def answer(path):
        return AccessEntry(0.0, logging.INFO, ("::1", 1), "GET", path, b"", "1.1", 200, 1.0, None)

    packets.handler.add_entry(answer(b"/1"))
    packets.log_access("second")
    packets.handler.add_entry(answer(b"/3"))
    assert packets.read() == []
    packets.log("fourth")
    packets.handler.add_entry(answer(b"/5"))
    lines = packets.read()
    await asyncio.sleep(0)
    lines += packets.read()
    assert [re.findall(r"info (.+)", packet) for packet in lines] == [
        ['[::1]:1 "GET /1 HTTP/1.1" 200 1.0ms', "second", '[::1]:1 "GET /3 HTTP/1.1" 200 1.0ms', "fourth"],
        ['[::1]:1 "GET /5 HTTP/1.1" 200 1.0ms'],
    ]


@on_asyncio
async def test_a_turn_with_many_lines_does_not_collect_them_all(packets):
    for number in range(20):
        packets.log_access(f"{number} {'x' * 4000}")
    written = packets.read()
    assert 16 <= len(written) < 20  # a packet of whole lines is at most 4,096 bytes
    await asyncio.sleep(0)
    assert [line.split()[0] for line in [*written, *packets.read()]] == [*map(str, range(20))]


@on_asyncio
async def test_a_thread_writes_immediately_and_in_order(packets):
    packets.log_access("of the loop")
    thread = threading.Thread(target=packets.log_access, args=["of a thread"])
    thread.start()
    thread.join()
    assert packets.read() == ["of the loop\nof a thread\n"]


def test_lines_of_a_stopped_loop_are_written_later():
    async def log_and_stop(message):
        packets.log_access(message)
        asyncio.get_running_loop().stop()
        await asyncio.Event().wait()

    def run(message):
        loop = asyncio.new_event_loop()
        task = loop.create_task(log_and_stop(message))
        loop.run_forever()
        return loop, task

    with Packets() as packets:
        loops = [run("first"), run("second")]
        assert packets.read() == ["first\nsecond\n"]
        loops.append(run("third"))
        assert packets.read() == []
        packets.handler.close()
        assert packets.read() == ["third\n"]
        for loop, task in loops:
            task.cancel()
            loop.run_until_complete(asyncio.wait([task]))
            loop.close()


def test_the_child_of_a_fork_does_not_write_the_lines_of_its_parent(tmp_path):
    program = tmp_path / "forks.py"
    program.write_text(
        """
import asyncio, logging, os, sys
from microws.server.logs import logging_to_stderr
from microws.server.settings import Settings

async def main():
    logging.getLogger("microws.access").info("once", extra={"access": {}})
    child = os.fork()
    if not child:
        logging.getLogger("microws").info("child")
        os._exit(0)
    os.waitpid(child, 0)

with logging_to_stderr(Settings()):
    asyncio.run(main())
"""
    )
    ran = subprocess.run([sys.executable, program], stderr=subprocess.PIPE, check=True, text=True, timeout=30)
    assert [line.split()[-1] for line in ran.stderr.splitlines()] == ["child", "once"]
