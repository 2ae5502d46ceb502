"""Accepts connections on asyncio and uvloop, so that each of several workers gets its share of them."""

import asyncio
import mmap
import os
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

from microws.counters import SLOT_BYTES
from microws.server.listening import BACKLOG

__all__ = ["Acceptor", "Share", "make_shared_memory"]

# Seconds for the TLS handshake.
_HANDSHAKE_TIMEOUT: Final = 10.0

# Seconds that a client has to answer close_notify; browsers do not.
_TLS_SHUTDOWN_TIMEOUT: Final = 1.0

# Connections that a worker accepts in one turn of its event loop, so that a burst does not delay the open ones.
_ACCEPTS_PER_TURN: Final = 16

# Seconds until a server that has no file descriptors left tries again. asyncio's 1 s is long for a client.
_RETRY_DELAY: Final = 0.25

# A worker pauses if it has more connections than the mean of all workers and these margins: a number, and a part of the
# mean. Without a margin, about every second connection would make a worker pause.
_MARGIN: Final = 1
_RELATIVE_MARGIN: Final = 1 / 32

# Seconds of a pause. Afterwards the worker accepts one connection even beyond its share: a client waits no longer than
# this if the other workers are blocked.
_PAUSE: Final = 0.005

# Pauses, 0.1 s in all. If connections are still pending after them, the workers that accepted nothing in the meantime
# are blocked, and do not count until they accept again: they do not delay a burst. These are pauses and not seconds,
# because it may be this process that got no CPU for 0.1 s.
_MAX_PAUSES: Final = 20

# Of a count and a time.
_PLACE_BYTES: Final = 16


@dataclass(eq=False)
class Acceptor:
    """
    Accepts connections from sockets that other workers may accept from as well.

    The system gives a connection to the worker that asks first, so one of several workers may get most of them. A
    worker with more connections than its share pauses for 5 ms, so that the others accept. Then it accepts one that
    they have left, since they may be blocked. The share counts open connections and those accepted in the last seconds,
    which spreads short ones.

    Measured with 400 connects to 4 workers on 2 cores, in batches of 1, 20 and 100: the worker with the most got 1.02
    to 1.2 times as many as the one with the least, without this 1.1 to 8 times. ``SO_REUSEPORT`` spreads connections
    at random, not at all on Unix sockets, and loses those that are pending for a worker that ends.

    Args:
        protocol_factory: Makes the protocol of each connection.
        tls: For connections that speak TLS.
        share: This worker's share of the connections. Default: it is the only worker, and accepts all.
        count_open: How many connections are open; called at each connect if there is a ``share``.
    """

    protocol_factory: Callable[[], asyncio.BaseProtocol]
    _: KW_ONLY
    tls: ssl.SSLContext | None = None
    share: "Share | None" = None
    count_open: Callable[[], int]

    def __post_init__(self) -> None:
        timeouts = {"ssl_handshake_timeout": _HANDSHAKE_TIMEOUT, "ssl_shutdown_timeout": _TLS_SHUTDOWN_TIMEOUT}
        self._tls_options: dict[str, Any] = {} if self.tls is None else {"ssl": self.tls, **timeouts}
        self._may_exceed = self.share is None or self.share.may_exceed
        self._loop: Any = None
        self._servers: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._connecting: set[asyncio.Task[Any]] = set()  # those that have no protocol yet, most of them in TLS
        self._pauses_left = _MAX_PAUSES
        self._first_pause_at = 0.0  # when the first of these pauses began
        self._recent = 0  # connections accepted, halved each second
        self._second = 0

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accept from ``sockets``, which listen, until ``close``."""
        self._loop = asyncio.get_running_loop()
        # asyncio's own server drops a connection that it accepts in the turn in which it is closed, with a RST.
        accepts = self.share is not None or isinstance(self._loop, asyncio.SelectorEventLoop)
        for sock in sockets:
            if not accepts:
                self._servers.append(await self._create_server(sock))
            else:
                sock.setblocking(False)
                self._sockets.append(sock)
                self._loop.add_reader(sock.fileno(), self._accept, sock)
        self._should_pause()

    def close(self) -> None:
        """Stop accepting, and close the sockets."""
        for server in self._servers:
            server.close()
        while self._sockets:
            sock = self._sockets.pop()
            if (pause := self._pauses.pop(sock, None)) is not None:
                pause.cancel()
            self._loop.remove_reader(sock.fileno())
            sock.close()
        if self.share is not None:
            self.share.leave()

    async def _create_server(self, sock: socket.socket) -> asyncio.Server:
        options = {"sock": sock, "backlog": BACKLOG, **self._tls_options}
        start = self._loop.create_server
        if sock.family == getattr(socket, "AF_UNIX", None):
            start = self._loop.create_unix_server
            if sys.version_info >= (3, 13):
                options["cleanup_socket"] = False  # the listener removes the file
        server: asyncio.Server = await start(self.protocol_factory, **options)
        return server

    def _should_pause(self) -> bool:
        """Tell the other workers the count of connections, and return whether they should accept the next one."""
        if self.share is None:
            return False
        now = self._loop.time()
        self._recent >>= min(int(now) - self._second, 32)
        self._second = int(now)
        self.share.write(self.count_open() + len(self._connecting) + self._recent, now)
        if self._pauses_left == _MAX_PAUSES:
            self._first_pause_at = now
        return self.share.is_exceeded(since=0.0 if self._pauses_left > 0 else self._first_pause_at)

    def _accept(self, sock: socket.socket, *, is_resumed: bool = False) -> None:
        for number in range(_ACCEPTS_PER_TURN):
            if self._should_pause() and not (is_resumed and number == 0 and self._may_exceed):
                self._pauses_left -= 1
                self._pause(sock, _PAUSE)
                return
            try:
                connection = sock.accept()[0]
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                self._pauses_left = _MAX_PAUSES
                return
            except OSError as error:
                # As asyncio does, mostly because there are no file descriptors left.
                self._loop.call_exception_handler(
                    {"message": "socket.accept() out of system resource", "exception": error, "socket": sock}
                )
                self._pause(sock, _RETRY_DELAY)
                return
            connection.setblocking(False)
            self._recent += 1
            task = self._loop.create_task(self._connect(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: socket.socket) -> None:
        # The client may have disconnected or failed in the TLS handshake; then the loop has closed the connection.
        with suppress(OSError):
            await self._loop.connect_accepted_socket(self.protocol_factory, connection, **self._tls_options)

    def _pause(self, sock: socket.socket, seconds: float) -> None:
        self._loop.remove_reader(sock.fileno())
        self._pauses[sock] = self._loop.call_later(seconds, self._resume, sock)

    def _resume(self, sock: socket.socket) -> None:
        del self._pauses[sock]
        self._loop.add_reader(sock.fileno(), self._accept, sock)
        self._accept(sock, is_resumed=True)


class Share:
    """
    One worker's share of the connections: the count of each worker, in memory that they share.

    Only one worker writes each count, in one piece. So no lock is needed, which a killed worker would keep.

    Args:
        memory: A file from ``make_shared_memory``. It may be closed afterwards.
        place: This worker's place in it.

    Attributes:
        memory, place: As above.
        may_exceed: Whether the worker accepts a connection beyond its share if the others leave it for a while.
        counters: What all workers count for ``app.metrics``; ``None`` if this one counts alone.
    """

    may_exceed: bool = True
    counters: memoryview | None = None

    def __init__(self, memory: int, place: int) -> None:
        self.memory = memory
        self.place = place
        mapped = memoryview(mmap.mmap(memory, 0))
        start = len(mapped) // (_PLACE_BYTES + SLOT_BYTES) * _PLACE_BYTES
        # Each place holds a count and the time at which the worker wrote it; the time is 0 if the place has no worker.
        self._numbers = mapped[:start].cast("d")
        self.counters = mapped[start:]

    def write(self, count: int, now: float) -> None:
        """Tell the other workers how many connections this one has."""
        self._numbers[2 * self.place] = count
        self._numbers[2 * self.place + 1] = now

    def is_exceeded(self, *, since: float = 0.0) -> bool:
        """
        Whether this worker has so many connections that another one should accept the next.

        Args:
            since: Workers that have not written since this time do not count.
        """
        numbers = self._numbers.tolist()
        counts = [count for count, written_at in zip(numbers[::2], numbers[1::2], strict=True) if written_at > since]
        mean = sum(counts) / max(1, len(counts))
        return numbers[2 * self.place] > mean + mean * _RELATIVE_MARGIN + _MARGIN

    def leave(self) -> None:
        """Stop counting: the other workers share the connections without this one."""
        self._numbers[2 * self.place + 1] = 0.0


def make_shared_memory(places: int) -> int:
    """
    A file without a path, with the numbers of so many workers; its file descriptor.

    Raises:
        OSError: The system gives no file.
    """
    if sys.platform == "linux":
        file = os.memfd_create("microws")
    else:
        file, path = tempfile.mkstemp()
        os.unlink(path)  # noqa: PTH108
    os.ftruncate(file, (_PLACE_BYTES + SLOT_BYTES) * places)
    return file
