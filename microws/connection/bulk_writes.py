"""The same bytes to many connections, with one system call for many of them where the system has it."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias, final

from microws.closing import DEFAULT_REASONS, CloseCode
from microws.interfaces import Sink

__all__ = ["MAX_SOCKETS", "BulkWriter"]

# ``AioContext.write``.
_Call: TypeAlias = Callable[[bytes, Sequence[int]], list[int] | None]

# More sockets in one call would save next to nothing, and keep the kernel from other work on this core for too long.
MAX_SOCKETS: Final = 128
# For fewer sockets, one write for each is faster.
_MIN_SOCKETS: Final = 8

_log = logging.getLogger("microws.hub")


@final
class BulkWriter:
    """Writes the same bytes to many connections: with one system call for many sockets where the system has it."""

    def __init__(self) -> None:
        self._call: _Call | None = None
        # Opened at the first write, not before: a forked process does not have the context of its parent.
        self._is_open = False

    def write(self, frames: bytes, sinks: Sequence[Sink]) -> None:
        """
        Write ``frames`` to each of ``sinks``. Never waits.

        A failure is logged. If it is unknown what a connection got, that connection is closed with 1011.
        """
        call = self._open() if len(sinks) >= _MIN_SOCKETS else None
        direct: Sequence[Sink] = ()
        others = sinks
        sockets: list[int] = []
        if call is not None:
            # What a transport buffers has to leave first.
            sockets = [socket for sink in sinks if (socket := sink.socket) is not None and not sink.buffered()]
            direct, others = sinks, ()
            if len(sockets) < len(sinks):
                direct = [sink for sink in sinks if sink.socket is not None and not sink.buffered()]
                others = [sink for sink in sinks if sink.socket is None or sink.buffered()]
        for sink in others:
            try:
                sink.write(frames)
            except Exception:
                # A transport that has ended. The other connections get their messages.
                _log.exception("a write to a connection failed")
        if call is None:
            return
        for start in range(0, len(direct), MAX_SOCKETS):
            end = start + MAX_SOCKETS
            try:
                taken = call(frames, sockets[start:end])
                if taken is not None:
                    # The transports send the rest. It shares memory with ``frames``: no copy for each connection.
                    whole = memoryview(frames)
                    for sink, size in zip(direct[start:end], taken, strict=True):
                        if size < len(frames):
                            sink.write(whole[size:])
            except Exception:
                _log.exception("a write to many connections failed; they are closed with 1011")
                # A connection that lost a message must not get a later one.
                for sink in direct[start:]:
                    sink.close(CloseCode.INTERNAL_ERROR, DEFAULT_REASONS[CloseCode.INTERNAL_ERROR])
                return

    def _open(self) -> _Call | None:
        if not self._is_open:
            self._is_open = True
            try:
                if os.environ.get("MICROWS_BULK_WRITES") == "0":
                    raise OSError("MICROWS_BULK_WRITES is 0")
                from microws.connection.aio import AioContext  # here, because few apps need it, and ctypes takes 2 ms

                self._call = AioContext(MAX_SOCKETS).write
            except OSError as error:
                _log.debug("bulk writes are off, each connection is written to on its own: %s", error)
        return self._call
