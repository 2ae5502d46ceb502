"""Writes to a connection, closes it without losing what was sent, and drops a client that does not read."""

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from microws.connection.deadlines import Deadlines

if sys.platform != "win32":
    import fcntl
    import termios

__all__ = ["Lingering", "SendDeadlines"]

# Whether to linger, and the seconds: closing a socket then resets its connection.
_LINGER_NOT: Final = struct.pack("ii", 1, 0)

_LAST_BYTES: Final = 64 << 10
# Seconds that a client has to close a connection that the server has ended.
_CLOSE_TIMEOUT: Final = 5.0
# Seconds between two looks at a TLS connection that ends.
_FLUSH_INTERVAL: Final = 0.1


class Lingering(asyncio.Protocol):
    """
    The outgoing side of an HTTP/1.1 connection. Of its methods only those that say so wait.

    Args:
        transport: Of the connection.
        deadlines: Shared with the connections of the worker.

    Attributes:
        is_writable: Whether the client reads fast enough. Otherwise what is sent fills the transport's buffer.
        on_writable: Called when ``is_writable`` has become true again.
        buffered: Returns the number of bytes that were sent and that the system has not taken yet.
        socket: Descriptor of the connection's socket; ``None`` over TLS and after the end.
        write: Send encoded bytes. Not after the end.
    """

    def __init__(self, transport: asyncio.Transport, deadlines: "SendDeadlines") -> None:
        self.is_writable: bool = True
        self.on_writable: Callable[[], None] | None = None
        # The transport's own methods: a broadcast calls them for each connection.
        self.write: Callable[[bytes | memoryview], None] = transport.write
        self.buffered: Callable[[], int] = transport.get_write_buffer_size
        self.socket: int | None = None
        self._transport = transport
        self._deadlines = deadlines
        self._is_closing = self._has_ended = False
        self._unread = 0
        # Set when ``is_writable`` or ``_has_ended`` changes.
        self._change: asyncio.Event | None = None

    @property
    def is_lost(self) -> bool:
        """Whether ``connection_lost`` follows. Nothing may be written: asyncio would log a warning."""
        return self._transport.is_closing()

    async def wait_writable(self) -> None:
        """Wait until the client has read most of what was sent, or has disconnected."""
        while not self.is_writable and not self._has_ended:
            self._change = self._change or asyncio.Event()
            await self._change.wait()

    def _report_change(self) -> None:
        if self._change is not None:
            self._change.set()
            self._change = None

    def check_progress(self) -> None:
        """Drop a client that has read nothing since the last check."""
        # The transport buffers nothing of a file, which is sent without it.
        if self.buffered() or not self.is_writable or self._is_closing:
            unread = _unread_bytes(self._transport)
            if unread >= self._unread:
                self.reset()
            else:
                self._unread = unread
                self._deadlines.writes.start(self)

    def end_linger(self) -> None:
        """Drop a client that has not closed in time, unless it still reads."""
        unread = _unread_bytes(self._transport)
        if unread < self._unread:
            self._unread = unread
            self._deadlines.closings.start(self)
        else:
            self.abort()

    def close_when_read(self) -> None:
        """Over TLS, close when the client has read nearly everything: from then on it has a second for the rest."""
        if _unread_bytes(self._transport) <= _LAST_BYTES:
            self._transport.close()
        else:
            self._deadlines.flushes.start(self)

    async def wait_written(self) -> None:
        """Wait until the system has all that was sent, or the client has disconnected. Not over TLS."""
        # With this limit the transport resumes writing when its buffer is empty; a TLS transport never would.
        self._transport.set_write_buffer_limits(high=0)
        await self.wait_writable()
        self._transport.set_write_buffer_limits()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is sent to."""
        self.is_writable = False
        self._watch_progress()

    def resume_writing(self) -> None:
        """The client has read most of what it was sent."""
        self._deadlines.writes.stop(self)
        self.is_writable = True
        self._report_change()
        if self.on_writable is not None:
            self.on_writable()

    def _watch_progress(self) -> None:
        self._unread = _unread_bytes(self._transport)
        self._deadlines.writes.start(self)

    def abort(self) -> None:
        """Drop the connection."""
        self._transport.abort()

    def reset(self) -> None:
        """
        Drop a client that does not read, and what the system has buffered for it: that would stay for minutes.

        Source: nginx's ``reset_timedout_connection``.
        """
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self.abort()

    def _end(self, *, lingers: bool) -> None:
        """
        Close once everything was sent; with ``lingers`` only when the client has closed too, or its time is over.

        A server that closes before it has read everything resets the connection, and the client may lose the response.

        Source: RFC 9112 §9.6.
        """
        self._is_closing = True
        is_secure = not self._transport.can_write_eof()
        if is_secure or self.buffered():
            self._watch_progress()
        if is_secure:
            self.close_when_read()
            return
        if not lingers:
            self._transport.close()
            return
        self._deadlines.writes.stop(self)
        self._unread = _unread_bytes(self._transport)
        self._deadlines.closings.start(self)
        try:
            self._transport.write_eof()
        except OSError:
            # On asyncio: the client has reset the connection, and the event loop has not seen it yet.
            self._transport.abort()


class SendDeadlines:
    """
    When the clients of a worker must have read what they were sent.

    Args:
        write_timeout: Seconds in which a client must read something.
    """

    def __init__(self, write_timeout: float) -> None:
        self.writes: Deadlines[Lingering] = Deadlines(write_timeout, Lingering.check_progress)
        self.flushes: Deadlines[Lingering] = Deadlines(_FLUSH_INTERVAL, Lingering.close_when_read)
        self.closings: Deadlines[Lingering] = Deadlines(_CLOSE_TIMEOUT, Lingering.end_linger)

    def stop(self, connection: Lingering) -> None:
        """Forget a connection."""
        for deadlines in (self.writes, self.flushes, self.closings):
            deadlines.stop(connection)


def _unread_bytes(transport: asyncio.Transport) -> int:
    """
    Bytes that were written to ``transport`` and that the client has not received, in the transport and in the system.

    A transport alone does not show a slow client's progress: Linux asks for more only when a third of its own buffer,
    which may be megabytes, is free.

    Source: tcp(7), ``SIOCOUTQ``, which is ``TIOCOUTQ``.
    """
    size = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sys.platform != "win32" and sock is not None:
        with suppress(OSError):
            size += int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return size
