"""The same bytes to many sockets with one system call."""

import gc
import platform
import socket
import sys
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microws.connection.aio import AioContext
from microws.connection.bulk_writes import MAX_SOCKETS, BulkWriter

has_call = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
pytestmark = pytest.mark.skipif(not has_call, reason="bulk writes need Linux on x86-64 or AArch64")


@pytest.fixture(scope="module")
def writer():
    """One for all tests: the system takes long to release one."""
    return AioContext(MAX_SOCKETS)


@contextmanager
def pairs(count):
    """Connected pairs of non-blocking sockets."""
    with ExitStack() as stack:
        found = [socket.socketpair() for _ in range(count)]
        for ours, theirs in found:
            stack.enter_context(ours)
            stack.enter_context(theirs)
            ours.setblocking(False)
            theirs.setblocking(False)
        yield found


def descriptors(found):
    return [ours.fileno() for ours, _ in found]


def fill(ours):
    """Write until the socket takes no more. Returns the number of bytes."""
    size = 0
    try:
        while True:
            size += ours.send(b"f" * 1000)
    except BlockingIOError:
        return size


def read(theirs):
    data = b""
    try:
        while more := theirs.recv(1 << 20):
            data += more
    except BlockingIOError:
        pass
    return data


@pytest.mark.parametrize("count", [1, 2, MAX_SOCKETS])
@pytest.mark.parametrize("data", [b"x", b"\x81\x00\x00\xffnull and others", bytes(range(256)) * 200])
def test_each_socket_gets_the_bytes(writer, count, data):
    with pairs(count) as found:
        for _ in range(2):
            assert writer.write(data, descriptors(found)) is None
            assert [read(theirs) for _, theirs in found] == [data] * count


def test_the_bytes_that_each_socket_took_are_returned(writer):
    data = b"0123456789" * 100_000
    with pairs(5) as found:
        fill(found[1][0])
        found[3][1].close()
        taken = writer.write(data, descriptors(found))
        assert taken[1] == taken[3] == 0
        for place in (0, 2, 4):
            assert 0 < taken[place] < len(data)
            assert read(found[place][1]) == data[: taken[place]]


def test_after_an_invalid_descriptor_nothing_is_written(writer):
    with pairs(4) as found:
        sockets = descriptors(found)
        sockets[2] = 1 << 20
        assert writer.write(b"data", sockets) == [4, 4, 0, 0]
        assert [read(theirs) for _, theirs in found] == [b"data", b"data", b"", b""]


def test_a_reused_descriptor_is_the_new_socket(writer):
    for data in (b"first", b"second"):
        with pairs(3) as found:
            assert writer.write(data, descriptors(found)) is None
            assert [read(theirs) for _, theirs in found] == [data] * 3


@given(st.lists(st.tuples(st.integers(1, 60_000), st.sets(st.integers(0, 7), min_size=1)), max_size=30))
def test_writing_the_rest_later_sends_every_byte_in_order(writer, writes):
    with pairs(8) as found:
        sent, received = [b""] * 8, [b""] * 8
        for number, (size, places) in enumerate(writes):
            data = bytes([number]) * size
            sockets = [found[place][0].fileno() for place in sorted(places)]
            taken = writer.write(data, sockets) or [size] * len(sockets)
            for place, count in zip(sorted(places), taken, strict=True):
                sent[place] += data[:count]
                if number % 3 == 0:
                    received[place] += read(found[place][1])
        assert [already + read(theirs) for already, (_, theirs) in zip(received, found, strict=True)] == sent


def test_a_deleted_context_is_released():
    writer = AioContext(MAX_SOCKETS)
    submit, context = writer._submit, writer._context
    assert submit(context, 0, None) == 0
    del writer
    gc.collect()
    assert submit(context, 0, None) == -1


@pytest.mark.parametrize(("name", "value"), [("machine", "riscv64"), ("machine", "AMD64")])
def test_other_systems_are_refused(monkeypatch, name, value):
    monkeypatch.setattr(platform, name, lambda: value)
    with pytest.raises(OSError, match="for Linux on x86_64 and aarch64"):
        AioContext(MAX_SOCKETS)


def test_the_error_of_the_system_is_raised():
    with pytest.raises(OSError, match="io_setup: Invalid argument"):
        AioContext(0)


def test_missing_results_are_an_error(writer, monkeypatch):
    monkeypatch.setattr(writer, "_get_events", lambda *_: 0)
    with pairs(1) as found, pytest.raises(OSError, match="the result of some writes is unknown"):
        writer.write(b"data", descriptors(found))


class Sink:
    def __init__(self, sock):
        self.socket, self.written = sock.fileno(), []

    def buffered(self):
        return 0

    def write(self, frames):
        self.written.append(bytes(frames))


@pytest.mark.parametrize(("variable", "is_bulk"), [("0", False), ("1", True)])
def test_microws_bulk_writes_0_writes_to_each_socket_on_its_own(monkeypatch, variable, is_bulk):
    monkeypatch.setenv("MICROWS_BULK_WRITES", variable)
    with pairs(10) as found:
        sinks = [Sink(ours) for ours, _ in found]
        BulkWriter().write(b"data", sinks)
        assert [read(theirs) for _, theirs in found] == [b"data" if is_bulk else b""] * 10
        assert [sink.written for sink in sinks] == [[] if is_bulk else [b"data"]] * 10
