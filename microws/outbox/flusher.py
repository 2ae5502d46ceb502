"""At the end of a turn of the event loop, what was published in it leaves: one write for each connection."""

import asyncio
from collections import Counter, deque
from collections.abc import Collection
from typing import final

from microws.outbox.outbox import Outbox
from microws.outbox.published import HELD, MAX_PART_BYTES, Batch, Published

__all__ = ["Flusher"]

# What one turn of the event loop writes, so that others have theirs: some 500 small writes, 3 to 5 ms of work.
_MAX_TURN_BYTES = 2 << 20
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

    __slots__ = ("_due", "_flushed", "_is_fresh", "_large_until", "_loop", "_waited", "sizes")

    def __init__(self) -> None:
        self.sizes: Counter[int] = Counter()
        self._due: deque[Outbox] = deque()
        # The loop that will call ``_flush``.
        self._loop: asyncio.AbstractEventLoop | None = None
        # Whether something was published in this turn, and for how many turns a flush has waited for more.
        self._is_fresh = False
        self._waited = 0
        # How many outboxes were flushed so far, and how many will have been when no large batch waits any more.
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
            elif batch is HELD:
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
        count = len(due)
        last, frames, cost, run = HELD, b"", 0, 0
        try:
            while left > 0 and due:
                outbox = due.popleft()
                batch = outbox.batch
                if batch is None or batch is HELD:
                    continue  # it has left already
                if batch is not last:
                    # Most outboxes have the batch of the one before them.
                    self._count(run, last)
                    last, frames, cost, run = batch, batch.encoded, _WRITE_COST + batch.size, 0
                left -= cost
                run += 1
                sink = outbox.sink
                if sink is not None and sink.is_writable and batch.previous is None:
                    outbox.batch = None
                    sink.write(frames)
                else:
                    outbox.flush()
        finally:
            self._flushed += count - len(due)
            self._count(run, last)
            self._waited = _MAX_WAIT if due else 0
            if due:
                self._schedule()

    def _count(self, writes: int, batch: Batch) -> None:
        if writes:
            self.sizes[batch.count] += writes
