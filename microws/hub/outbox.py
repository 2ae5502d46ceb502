"""
One connection's bounded queue: everything that leaves it, in one order.

Where the client takes frames at once, published messages leave by turns of the event loop, in a batch. Else they wait,
one by one: what ``ws.send`` puts in stays in; published messages are ruled by their topic's overflow policy, which
removes messages of its own topic only.
"""

from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from math import inf
from typing import Final

from microws.closing import DEFAULT_REASONS, CloseCode
from microws.hub.published import BACKED_UP, Batch, Published, TopicSettings, encoded
from microws.interfaces import Frame, Sink

__all__ = ["MAX_BYTES", "Outbox", "Outcome"]

# Precedent: Centrifugo's client_queue_max_size, 1 MiB.
MAX_BYTES = 1 << 20
# Of ws.send. Each topic has its own limit: where a policy drops, it may be reached all the time.
_MAX_FRAMES = 256
# What waits in an outbox that was never behind: a deque of its own takes 600 bytes, which most connections never need.
_NOTHING: Final[deque[Published | Frame]] = deque(maxlen=0)
_NO_TOPICS: Final[frozenset[str]] = frozenset()


class Outcome(Enum):
    """What became of a message that was put into an outbox."""

    QUEUED = "queued"
    CONFLATED = "conflated"
    DROPPED = "dropped"
    REFUSED = "refused"


class Outbox:
    """
    The queue of one connection.

    Args:
        marker: Makes the gap marker of a topic, for a client that asked for them; ``None``: it did not.
        losses: Counts what the policies took away, each under its name; shared by the outboxes of a hub.
        max_bytes: Payload bytes that wait in all; an empty outbox takes one frame of any size. A gap marker is not
            refused.

    Attributes:
        batch: What leaves at the end of this turn of the event loop, after nothing that waits; ``None``: nothing.
            ``BACKED_UP``: nothing leaves by turns now; that is the rule where ``sink`` is ``None``.
        sink: Where batches go.
        carry: Called in place of it: have ``batch`` leave. It never waits.
        progress_at_last_yield: ``progress`` when publishers have last given way to this outbox in vain.

    Source: docs/explanation.md, "A slow client".
    """

    __slots__ = (
        "_bytes",
        "_counts",
        "_frames",
        "_gaps",
        "_is_retired",
        "_items",
        "_losses",
        "_marker",
        "_max_bytes",
        "_taken",
        "batch",
        "carry",
        "progress_at_last_yield",
        "sink",
    )

    def __init__(
        self,
        *,
        marker: Callable[[str, TopicSettings], Published] | None = None,
        losses: Counter[str] | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.batch: Batch | None = BACKED_UP
        self.sink: Sink | None = None
        self.carry: Callable[[], None] | None = None
        self._items = _NOTHING
        # Those of ws.send, and the messages of each topic.
        self._frames = 0
        self._counts: dict[str, int] = {}
        self._gaps = _NO_TOPICS
        self._bytes = 0
        self._is_retired = False
        self._marker = marker
        self._losses: Counter[str] = Counter() if losses is None else losses
        self._max_bytes = max_bytes
        self._taken = 0
        self.progress_at_last_yield: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def size(self) -> int:
        """Payload bytes that wait."""
        return self._bytes

    @property
    def count(self) -> int:
        """Messages that wait, and those that leave at the end of this turn."""
        return len(self._items) + (0 if self.batch is None or self.batch is BACKED_UP else self.batch.count)

    @property
    def has_waiting(self) -> bool:
        """Whether anything is to leave before what is sent now."""
        return bool(self._items) or not (self.batch is None or self.batch is BACKED_UP)

    @property
    def progress(self) -> tuple[int, int]:
        """What changes when the client takes something: how many frames were taken out, and the bytes behind them."""
        return self._taken, 0 if self.sink is None else self.sink.buffered()

    def has_room(self, frame: Frame) -> bool:
        """Whether ``ws.send`` may queue ``frame`` now, or has to wait."""
        if not self._items:
            return True
        return self._frames < _MAX_FRAMES and self._bytes + frame.size <= self._max_bytes

    def is_half_full(self, settings: TopicSettings) -> bool:
        """Whether a topic with these settings may soon find no room."""
        return len(self._items) * 2 >= settings.queue or self._bytes * 2 >= self._max_bytes

    def send_nowait(self, frame: Frame) -> None:
        """Queue a frame of ``ws.send``. Never waits; the caller has waited until there was room for it."""
        items = self._items
        if items is _NOTHING:
            items = self._items = deque()
        items.append(frame)
        self._frames += 1
        self._bytes += frame.size

    def put_nowait(self, message: Published) -> Outcome:
        """
        Queue a published message by the policy of its topic. Never waits.

        Returns:
            ``QUEUED``; ``CONFLATED`` where it has the place of an older one; ``DROPPED`` where the message itself was
            given up; ``REFUSED`` where the connection must now be closed with 1013, because it would otherwise see a
            later message after a lost one.
        """
        settings = message.settings
        if settings.overflow == "latest" and self._counts.get(message.topic) and self._conflate(message):
            return Outcome.CONFLATED
        if not self._takes(message):
            match settings.overflow:
                case "close":
                    self._losses["close"] += 1
                    return Outcome.REFUSED
                case "drop_newest":
                    return self._give_up(message)
                case "drop_oldest" | "latest":
                    while self._counts.get(message.topic) and not self._takes(message):
                        self._drop_oldest(message.topic, settings.overflow)
                    if not self._takes(message):
                        return self._give_up(message)
        if self._marker is not None and message.topic in self._gaps:
            self._gaps -= {message.topic}
            self._append(self._marker(message.topic, settings))
        self._append(message)
        return Outcome.QUEUED

    def pop_published(self) -> Published:
        """Take the oldest message out, where nothing but published ones is put in."""
        item = self._take_oldest()
        assert isinstance(item, Published)
        return item

    def pop(self) -> Frame:
        """Take the oldest frame out."""
        item = self._take_oldest()
        return item if isinstance(item, Frame) else item.frame

    def take(self, max_bytes: float = inf) -> bytes:
        """Take out the oldest frames, as a server sends them, until they are ``max_bytes`` or more."""
        frames = []
        size = 0
        while self._items and size < max_bytes:
            item = self._take_oldest()
            frames.append(encoded(item) if isinstance(item, Frame) else item.encoded)
            size += len(frames[-1])
        return b"".join(frames)

    def take_all(self) -> bytes:
        """Take out everything, the batch too."""
        parts = [] if self.batch is None or self.batch is BACKED_UP else self.batch.parts
        self.batch = BACKED_UP
        return b"".join([self.take(), *[part.encoded for part in parts]])

    def release(self) -> None:
        """
        From now on published messages leave by turns. Only while nothing waits.

        Not while a client has still to be told of a loss: the gap marker goes before the next message of its topic.
        """
        if self.batch is BACKED_UP and not self._gaps and not self._is_retired:
            self.batch = None

    def retire(self) -> None:
        """From now on nothing leaves by turns, whatever ``release`` says: the connection ends."""
        self.batch = BACKED_UP
        self._is_retired = True

    def flush(self) -> None:
        """
        Have the batch leave now, as far as the client takes it. The rest waits by the policies of its topics.

        A connection that would then miss a message is closed with 1013.
        """
        batch, sink = self.batch, self.sink
        if batch is None or batch is BACKED_UP:
            return
        if sink is None:
            if self.carry is not None:
                self.carry()
            return
        self.batch = None
        for part in batch.parts:
            if sink.is_lost:
                return
            if sink.is_writable and not self._items:
                sink.write(part.encoded)
                continue
            self.batch = BACKED_UP
            if any(self.put_nowait(message) is Outcome.REFUSED for message in part.messages):
                self.clear()
                sink.close(CloseCode.TRY_AGAIN_LATER, DEFAULT_REASONS[CloseCode.TRY_AGAIN_LATER])
                return

    def hold(self) -> None:
        """Nothing leaves by turns now. What would have left at the end of this one waits; no policy takes any of it."""
        batch, self.batch = self.batch, BACKED_UP
        if batch is not None and batch is not BACKED_UP:
            for part in batch.parts:
                for message in part.messages:
                    self._append(message)

    def clear(self) -> None:
        """Forget everything that waits, and hold what may still come."""
        self.batch = BACKED_UP
        self._items = _NOTHING
        self._frames = 0
        self._counts.clear()
        self._gaps = _NO_TOPICS
        self._bytes = 0

    def _take_oldest(self) -> Published | Frame:
        item = self._items.popleft()
        self._taken += 1
        if isinstance(item, Frame):
            self._frames -= 1
            self._bytes -= item.size
        else:
            self._forget(item)
        return item

    def _takes(self, message: Published) -> bool:
        if not self._items:
            return True
        return (
            self._counts.get(message.topic, 0) < message.settings.queue
            and self._bytes + message.size <= self._max_bytes
        )

    def _append(self, message: Published) -> None:
        items = self._items
        if items is _NOTHING:
            items = self._items = deque()
        items.append(message)
        self._bytes += message.size
        if not message.is_gap:
            self._counts[message.topic] = self._counts.get(message.topic, 0) + 1

    def _forget(self, message: Published) -> None:
        self._bytes -= message.size
        if not message.is_gap:
            left = self._counts[message.topic] - 1
            if left:
                self._counts[message.topic] = left
            else:
                del self._counts[message.topic]

    def _give_up(self, message: Published) -> Outcome:
        self._losses[message.settings.overflow] += 1
        if self._marker is not None:
            self._gaps |= {message.topic}
        return Outcome.DROPPED

    def _drop_oldest(self, topic: str, reason: str) -> None:
        self._losses[reason] += 1
        marked = False
        for index, item in enumerate(self._items):
            if isinstance(item, Frame) or item.topic != topic:
                continue
            if item.is_gap:
                marked = True
                continue
            self._forget(item)
            if marked or self._marker is None:
                del self._items[index]
            else:
                marker = self._marker(topic, item.settings)
                self._items[index] = marker
                self._bytes += marker.size
            return

    def _conflate(self, message: Published) -> bool:
        """Give up the message of this key that waits. ``True``: it was the last one, and ``message`` has its place."""
        items = self._items
        for index, item in enumerate(items):
            if (
                isinstance(item, Published)
                and item.topic == message.topic
                and not item.is_gap
                and item.key == message.key
            ):
                self._losses["latest"] += 1
                size = self._bytes + message.size - item.size
                if index == len(items) - 1 and (size <= self._max_bytes or not index) and not self._gaps:
                    items[index] = message
                    self._bytes = size
                    return True
                self._forget(item)
                del items[index]
                break
        return False
