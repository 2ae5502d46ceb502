"""One batch leaves many outboxes."""

import logging
from collections.abc import Sequence
from typing import Final, final

from microws.closing import DEFAULT_REASONS, CloseCode
from microws.outbox.bulk import MAX_SOCKETS, BulkWriter
from microws.outbox.outbox import Outbox, Sink
from microws.outbox.published import Batch

__all__ = ["Writer"]

# Fewer sockets are sooner written to one by one.
_WORTH_BULK: Final = 8
_log = logging.getLogger("microws.hub")


@final
class Writer:
    """Has batches leave, where the system can by one call for many sockets."""

    __slots__ = ("_bulk", "_has_asked")

    def __init__(self) -> None:
        self._bulk: BulkWriter | None = None
        # Only when there is something to write: a process that is forked later has no use for what was opened before.
        self._has_asked = False

    def write(self, batch: Batch, outboxes: Sequence[Outbox]) -> None:
        """Have ``batch`` leave those of ``outboxes`` that still have it, as far as the clients take it. Never waits."""
        frames = batch.encoded
        if len(outboxes) >= _WORTH_BULK and batch.previous is None:
            outboxes = self._write_in_bulk(batch, frames, outboxes)
        for outbox in outboxes:
            if outbox.batch is not batch:
                continue
            sink = outbox.sink
            if sink is not None and sink.is_writable and batch.previous is None:
                outbox.batch = None
                sink.write(frames)
            else:
                outbox.flush()

    def _write_in_bulk(self, batch: Batch, frames: bytes, outboxes: Sequence[Outbox]) -> Sequence[Outbox]:
        """Have it leave to sockets that nothing else waits for. Returns the others."""
        bulk = self._bulk or self._open()
        if bulk is None:
            return outboxes
        others: list[Outbox] = []
        sinks: list[Sink] = []
        sockets: list[int] = []
        for outbox in outboxes:
            if outbox.batch is not batch:
                continue
            sink = outbox.sink
            if sink is None or (socket := sink.socket) is None or sink.buffered():
                others.append(outbox)
            else:
                outbox.batch = None
                sinks.append(sink)
                sockets.append(socket)
        _submit(bulk, frames, sinks, sockets)
        return others

    def write_to(self, frames: bytes, sinks: Sequence[Sink]) -> None:
        """Write the same to many. Never waits."""
        bulk = (self._bulk or self._open()) if len(sinks) >= _WORTH_BULK else None
        ready: list[Sink] = []
        sockets: list[int] = []
        for sink in sinks:
            if bulk is None or (socket := sink.socket) is None or sink.buffered():
                sink.write(frames)
            else:
                ready.append(sink)
                sockets.append(socket)
        if bulk is not None:
            _submit(bulk, frames, ready, sockets)

    def _open(self) -> BulkWriter | None:
        if not self._has_asked:
            self._has_asked = True
            try:
                self._bulk = BulkWriter()
            except OSError as error:
                _log.debug("each connection is written to on its own: %s", error)
        return self._bulk


def _submit(bulk: BulkWriter, frames: bytes, sinks: Sequence[Sink], sockets: Sequence[int]) -> None:
    for start in range(0, len(sinks), MAX_SOCKETS):
        end = start + MAX_SOCKETS
        try:
            taken = bulk.write(frames, sockets[start:end])
            if taken is not None:
                # What they have not taken is still one for all.
                whole = memoryview(frames)
                for sink, size in zip(sinks[start:end], taken, strict=True):
                    if size < len(frames):
                        sink.write(whole[size:])
        except Exception:
            # What they have got is unknown: none of them is to believe that it was everything.
            for sink in sinks[start:]:
                sink.close(CloseCode.INTERNAL_ERROR, DEFAULT_REASONS[CloseCode.INTERNAL_ERROR])
            raise
