"""
The bytes to and from Redis.

On asyncio the event loop itself passes on what it reads: with a stream, and a task that waits for it, a batch of 64
messages takes 20 µs more, and as many for each write.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias, cast

import anyio
import anyio.abc
from anyio.streams.tls import TLSStream

from microws.hub.loop import running_loop

__all__ = ["Line", "open_line"]

# Gets what arrives. ``False``: no more for now.
Take: TypeAlias = Callable[[bytes], bool]

_MAX_READ: Final = 256 << 10


class Line(Protocol):
    """A line to Redis."""

    def write(self, data: bytes) -> None:
        """Send ``data``. Never waits."""
        ...

    async def read(self, take: Take) -> None:
        """
        Pass on what arrives until ``take`` has returned ``False``.

        Raises:
            anyio.EndOfStream, anyio.BrokenResourceError: The line has ended.
        """
        ...

    async def flush(self) -> None:
        """Send what was written before."""
        ...

    async def run(self) -> None:
        """Send what is written, until this is cancelled. Raises as ``read`` does."""
        ...

    async def aclose(self) -> None:
        """Close it. Never waits for Redis."""
        ...


async def open_line(stream: anyio.abc.SocketStream, tls: ssl.SSLContext | None, host: str) -> Line:
    """
    A line that has the socket of ``stream``, with TLS to ``host`` if it has a context.

    Raises:
        OSError: TLS has failed.
    """
    loop = running_loop()
    if loop is None:
        if tls is None:
            return _TrioLine(stream)
        try:
            wrapped = await TLSStream.wrap(stream, hostname=host, ssl_context=tls, standard_compatible=False)
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
        return _TrioLine(wrapped)
    sock = socket.socket(fileno=os.dup(stream.extra(anyio.abc.SocketAttribute.raw_socket).fileno()))
    try:
        await anyio.aclose_forcefully(stream)
        hostname = None if tls is None else host
        _, line = await loop.create_connection(_AsyncioLine, sock=sock, ssl=tls, server_hostname=hostname)
    except BaseException:
        sock.close()
        raise
    return line


class _AsyncioLine(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.Transport
        # Of ``read``; and what has arrived while nobody reads.
        self._take: Take | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._pending: list[bytes] = []
        self._error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        waiter = self._waiter
        if self._take is None or waiter is None or waiter.done():
            self._pending.append(data)
            return
        try:
            if not self._take(data):
                self._wake()
        except Exception as error:
            self._wake(error)

    def connection_lost(self, error: Exception | None) -> None:
        if error is None:
            self._error = anyio.EndOfStream()
        else:
            self._error = anyio.BrokenResourceError()
            self._error.__cause__ = error
        self._wake(self._error)

    def _wake(self, error: Exception | None = None) -> None:
        # Its task may be cancelled, also by ``take``.
        if self._waiter is None or self._waiter.done():
            return
        if error is None:
            self._waiter.set_result(None)
        else:
            self._waiter.set_exception(error)
            self._waiter.exception()  # otherwise asyncio logs it, if the task is cancelled in this turn

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    async def read(self, take: Take) -> None:
        pending, self._pending = self._pending, []
        if pending and not take(b"".join(pending)):
            return
        if self._error is not None:
            raise self._error
        self._take, self._waiter = take, asyncio.get_running_loop().create_future()
        self._transport.resume_reading()
        try:
            await self._waiter
        finally:
            self._take = None
            self._transport.pause_reading()

    async def flush(self) -> None:
        pass

    async def run(self) -> None:
        pass

    async def aclose(self) -> None:
        self._transport.abort()


class _TrioLine:
    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._output: list[bytes] = []
        self._written = anyio.Event()

    def write(self, data: bytes) -> None:
        self._output.append(data)
        self._written.set()

    async def read(self, take: Take) -> None:
        while take(await self._stream.receive(_MAX_READ)):
            pass

    async def flush(self) -> None:
        data = b"".join(self._output)
        self._output.clear()
        await self._stream.send(data)

    async def run(self) -> None:
        while True:
            await self._written.wait()
            self._written = anyio.Event()
            await self.flush()

    async def aclose(self) -> None:
        await anyio.aclose_forcefully(self._stream)
