"""At the end of a turn of the event loop, what was published in it leaves: one write for each connection."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias, final

from microws.hub.outbox import Outbox
from microws.hub.published import BACKED_UP, MAX_PART_BYTES, Batch, Published
from microws.interfaces import Sink

__all__ = ["Flusher", "WriteMany"]

# Writes the same bytes to many connections. Never waits. If one of the writes fails, it makes the others, then raises.
WriteMany: TypeAlias = Callable[[bytes, Sequence[Sink]], None]

# What one turn of the event loop writes, so that others have theirs: 3 to 5 ms of work.
_MAX_TURN_WRITES = 512
_MAX_TURN_BYTES = 5 << 19
# While each turn brings more messages, a flush waits for the next one, so that one write carries them all: a turn for
# so many outboxes, as it takes some hundredths of what it may save, and at most so many turns.
_WORTH_A_TURN = 64
_MAX_WAIT = 8
# What a write costs beside its bytes, in bytes.
_WRITE_COST = 4 << 10


@final
class Flusher:
    """
    The outboxes that something is to leave at the end of this turn of the event loop.

    One callback serves all of them. Where they are many it waits while each turn brings more. After some milliseconds
    of writing it lets others have their turn; what is published meanwhile joins what has not left yet.

    Attributes:
        sizes: How many writes had how many messages.
    """

    __slots__ = ("_due", "_flushed", "_is_fresh", "_large_until", "_loop", "_waited", "_write", "sizes")

    def __init__(self, write: WriteMany) -> None:
        self.sizes: Counter[int] = Counter()
        self._due: list[Outbox] = []
        self._write = write
        # The loop that will call ``_flush``.
        self._loop: asyncio.AbstractEventLoop | None = None
        # Whether something was published in this turn, and for how many turns a flush has waited for more.
        self._is_fresh = False
        self._waited = 0
        # Flush counter, and its value once the last large batch is out.
        self._flushed = self._large_until = 0

    @property
    def is_behind(self) -> bool:
        """Whether somewhere more waits than one write should have: whoever publishes now makes it pile up."""
        if self._flushed >= self._large_until:
            return False
        # A loop that has ended writes no more.
        return self._loop is not None and self._loop.is_running()

    def put(self, message: Published, outboxes: Collection[Outbox]) -> list[Outbox]:
        """
        Have ``message`` leave ``outboxes`` at the end of this turn, behind what leaves them then already. Never waits.

        Returns:
            Those that are held: nothing leaves them by turns now.
        """
        held: list[Outbox] = []
        alone = Batch(None, message)
        behind: dict[Batch, Batch] = {}
        append = self._due.append
        for outbox in outboxes:
            batch = outbox.batch
            if batch is None:
                outbox.batch = alone
                append(outbox)
            elif batch is BACKED_UP:
                held.append(outbox)
            else:
                longer = behind.get(batch)
                if longer is None:
                    longer = behind[batch] = Batch(batch, message)
                outbox.batch = longer
        if len(held) < len(outboxes):
            self._is_fresh = True
            self._schedule()
            if message.size >= MAX_PART_BYTES or (behind and any(batch.previous for batch in behind.values())):
                self._large_until = self._flushed + len(self._due)
        return held

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._loop = None
        if self._is_fresh and self._waited < min(len(self._due) // _WORTH_A_TURN, _MAX_WAIT):
            self._is_fresh = False
            self._waited += 1
            self._schedule()
        else:
            self._flush()

    def _flush(self) -> None:
        due, left = self._due, _MAX_TURN_BYTES
        first = due[:_MAX_TURN_WRITES]
        is_complete = False
        try:
            for batch, outboxes in _by_batch(first).items():
                cost = _WRITE_COST + batch.size
                some = outboxes[: max(0, -(-left // cost))]
                left -= cost * len(some)
                self.sizes[batch.count] += len(some)
                self._flush_batch(batch, some)
            is_complete = left > 0
        finally:
            rest = [] if is_complete else [outbox for outbox in first if outbox.batch not in (None, BACKED_UP)]
            due[: len(first)] = rest
            self._flushed += len(first) - len(rest)
            self._waited = _MAX_WAIT if due else 0
            if due:
                self._schedule()

    def _flush_batch(self, batch: Batch, outboxes: Sequence[Outbox]) -> None:
        is_one_part = batch.previous is None
        sinks = []
        for outbox in outboxes:
            if outbox.batch is not batch:
                # It was flushed and put into again in this turn: it stands here twice.
                continue
            sink = outbox.sink
            if sink is not None and is_one_part and sink.is_writable:
                outbox.batch = None
                sinks.append(sink)
            else:
                outbox.flush()
        if sinks:
            self._write(batch.encoded, sinks)


def _by_batch(outboxes: list[Outbox]) -> dict[Batch, list[Outbox]]:
    """Those that have something to leave, by what it is."""
    found: dict[Batch, list[Outbox]] = {}
    last, same = BACKED_UP, list[Outbox]()
    for outbox in outboxes:
        batch = outbox.batch
        if batch is not last:
            # Most have the batch of the one before them.
            if batch is None or batch is BACKED_UP:
                continue  # it has left already
            last, same = batch, found.setdefault(batch, [])
        same.append(outbox)
    return found
