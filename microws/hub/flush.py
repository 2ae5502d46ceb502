"""When batches leave: at the end of a turn of the event loop, with one write for each connection."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from operator import length_hint
from typing import TypeAlias, final

from microws.counters import COUNTERS
from microws.hub.outbox import Outbox
from microws.hub.published import BACKED_UP, MAX_PART_BYTES, Batch, Published
from microws.interfaces import Sink

__all__ = ["Flusher", "WriteMany"]

# Writes the same bytes to many connections. Never waits, and never raises: it closes connections whose write failed.
WriteMany: TypeAlias = Callable[[bytes, Sequence[Sink]], None]

# The most that one turn of the event loop writes, so that other tasks get their turn: 3 to 5 ms of work.
_MAX_TURN_WRITES = 512
_MAX_TURN_BYTES = 5 << 19
# While each turn brings more messages, a flush waits for the next turn, so that one write sends them all. It waits one
# turn for each 64 outboxes, because a turn takes some hundredths of what it may save, and at most eight turns.
_OUTBOXES_PER_TURN = 64
_MAX_WAIT = 8
# What a write costs besides its bytes, in bytes.
_WRITE_COST = 4 << 10

_log = logging.getLogger("microws.hub")


@final
class Flusher:
    """
    The outboxes whose batch leaves at the end of this turn of the event loop.

    One callback serves all of them. After some milliseconds of writing it lets other tasks run; messages that are
    published meanwhile join the batches that are still here.

    Args:
        write: Writes the same bytes to many connections.

    Attributes:
        sizes: How many writes had how many messages.
    """

    __slots__ = ("_due", "_flushed", "_has_new", "_large_until", "_loop", "_waited", "_write", "sizes")

    def __init__(self, write: WriteMany) -> None:
        self.sizes: Counter[int] = Counter()
        self._write = write
        self._due: list[Outbox] = []
        # The loop that will call ``_end_turn``.
        self._loop: asyncio.AbstractEventLoop | None = None
        # Whether something was published in this turn, and for how many turns a flush has waited for more.
        self._has_new = False
        self._waited = 0
        # Flush counter, and its value once the last large batch is out.
        self._flushed = self._large_until = 0

    @property
    def is_behind(self) -> bool:
        """Whether a batch is pending that one write cannot send: then publishers should wait."""
        # If the loop has ended, the batch never leaves.
        return self._flushed < self._large_until and self._loop is not None and self._loop.is_running()

    def put(self, message: Published, outboxes: Collection[Outbox]) -> list[Outbox]:
        """
        Add ``message`` to the batch of each of ``outboxes``. Never waits.

        Returns:
            Those that are backed up: ``message`` was not added.
        """
        backed_up: list[Outbox] = []
        alone = Batch(None, message)
        # Outboxes with the same batch get the same longer one.
        longer: dict[Batch, Batch] = {}
        append = self._due.append
        for outbox in outboxes:
            batch = outbox.batch
            if batch is None:
                outbox.batch = alone
                append(outbox)
            elif batch is BACKED_UP:
                backed_up.append(outbox)
            else:
                joined = longer.get(batch)
                if joined is None:
                    joined = longer[batch] = Batch(batch, message)
                outbox.batch = joined
        if len(backed_up) < len(outboxes):
            self._has_new = True
            self._schedule()
            if message.size >= MAX_PART_BYTES or (longer and any(batch.previous for batch in longer.values())):
                self._large_until = self._flushed + len(self._due)
        return backed_up

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._loop = None
        if self._has_new and self._waited < min(len(self._due) // _OUTBOXES_PER_TURN, _MAX_WAIT):
            self._has_new = False
            self._waited += 1
        else:
            self._flush()
            self._waited = _MAX_WAIT if self._due else 0
        if self._due:
            self._schedule()

    def _flush(self) -> None:
        due = self._due[:_MAX_TURN_WRITES]
        sinks_by_batch: dict[Batch, list[Sink]] = {}
        others: list[Batch] = []
        budget = _MAX_TURN_BYTES
        # Of the outbox before: most have the same batch, and this loop runs for each delivery.
        last: Batch | None = None
        sinks: list[Sink] = []
        cost, is_one_part = 0, True
        pending = iter(due)
        for outbox in pending:
            batch = outbox.batch
            if batch is not last or batch is None:
                if batch is None or batch is BACKED_UP:
                    continue  # flushed meanwhile, or listed twice
                last, sinks = batch, sinks_by_batch.setdefault(batch, [])
                cost, is_one_part = _WRITE_COST + batch.size, batch.previous is None
            sink = outbox.sink
            if sink is not None and is_one_part and sink.is_writable:
                outbox.batch = None
                sinks.append(sink)
            else:
                others.append(batch)
                try:
                    outbox.flush()
                except Exception:
                    # A transport that has ended. The other connections get their messages.
                    _log.exception("a write to a connection failed")
            budget -= cost
            if budget <= 0:
                break
        if others:  # to count none takes as long as to put a message
            for batch, writes in Counter(others).items():
                self.sizes[len(batch)] += writes
        for batch, sinks in sinks_by_batch.items():
            if sinks:
                self.sizes[len(batch)] += len(sinks)
                if COUNTERS.is_on:
                    COUNTERS.send(len(batch) * len(sinks), len(batch.encoded) * len(sinks))
                self._write(batch.encoded, sinks)
        flushed = len(due) - length_hint(pending)
        del self._due[:flushed]
        self._flushed += flushed
