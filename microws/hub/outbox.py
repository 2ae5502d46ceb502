"""
The bounded queue of one connection: ``ws.send`` and published messages leave it in one order.

While the client keeps up, published messages leave in batches, at the end of a turn of the event loop. When it does
not, they are queued one by one. Messages of ``ws.send`` are never dropped; the overflow policy of a topic drops only
messages of that topic.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from enum import Enum
from math import inf
from typing import Final

from microws.closing import DEFAULT_REASONS, CloseCode
from microws.counters import COUNTERS
from microws.hub.published import BACKED_UP, MAX_PART_BYTES, Batch, Published, TopicSettings
from microws.interfaces import Frame, Sink

__all__ = ["MAX_BYTES", "Outbox", "Outcome", "close_too_slow"]

# The most payload bytes that an outbox queues. An empty one takes a message of any size, and a gap marker is always
# taken. Precedent: Centrifugo's client_queue_max_size, 1 MiB.
MAX_BYTES = 1 << 20
# Messages of ws.send. They have a limit of their own: with a policy that drops, a topic may be at its limit all the
# time.
_MAX_SENT = 256
_NO_TOPIC: Final = ""
_NO_SETTINGS: Final = TopicSettings()
# An empty deque takes 600 bytes, and most connections never need one: they share this.
_NO_ITEMS: Final[deque[Published]] = deque(maxlen=0)
_NO_TOPICS: Final[frozenset[str]] = frozenset()

_log = logging.getLogger("microws.hub")


class Outcome(Enum):
    """What became of a message that was put into an outbox."""

    QUEUED = "queued"
    CONFLATED = "conflated"
    DROPPED = "dropped"
    REFUSED = "refused"


def close_too_slow(close: Callable[[int, str], None]) -> None:
    """
    Close the connection of a client that does not keep up, so that it never gets a later message after a lost one.

    Args:
        close: Closes it with a code and a reason.

    Source: RFC 6455 §7.4; 1013, "Try Again Later", is in the IANA registry of close codes. Precedent: Centrifugo.
    """
    _log.debug("slow client: closed with 1013")
    close(CloseCode.TRY_AGAIN_LATER, DEFAULT_REASONS[CloseCode.TRY_AGAIN_LATER])


class Outbox:
    """
    The queue of one connection.

    Args:
        marker: Makes the gap marker of a topic. Default: the client did not ask for gap markers.
        losses: Counts the messages that policies dropped, by policy; the outboxes of a hub share it.

    Attributes:
        batch: Messages that leave at the end of this turn of the event loop; ``None`` if there are none. ``BACKED_UP``
            if messages do not leave in batches now: they are queued. Without a ``sink`` or ``carry`` that is always so.
        sink: Where batches are written to.
        carry: Called when ``batch`` is to leave and there is no ``sink``. Never waits.
        refill: Called when the last message of ``feed`` was taken out, while the subscriber catches up: queues the
            next ones that it missed.
        progress_at_last_yield: ``progress`` when publishers last yielded for this outbox in vain.
        size: Payload bytes of the queued messages.

    Source: docs/explanation.md, "A slow client".
    """

    __slots__ = (
        "_counts",
        "_fed",
        "_gaps",
        "_is_retired",
        "_items",
        "_losses",
        "_marker",
        "_taken",
        "batch",
        "carry",
        "progress_at_last_yield",
        "refill",
        "sink",
        "size",
    )

    def __init__(
        self,
        *,
        marker: Callable[[str, TopicSettings], Published] | None = None,
        losses: Counter[str] | None = None,
    ) -> None:
        self.batch: Batch | None = BACKED_UP
        self.sink: Sink | None = None
        self.carry: Callable[[], None] | None = None
        self.refill: Callable[[], None] | None = None
        self.progress_at_last_yield: tuple[int, int] | None = None
        self._items = _NO_ITEMS
        # Queued messages by topic, without gap markers.
        self._counts: dict[str, int] = {}
        # Topics whose last message was dropped: their gap marker goes before their next message.
        self._gaps = _NO_TOPICS
        self.size: int = 0
        # The last message of ``feed``, while it is queued.
        self._fed: Published | None = None
        self._taken = 0
        self._is_retired = False
        self._marker = marker
        self._losses: Counter[str] = Counter() if losses is None else losses

    def __len__(self) -> int:
        """The number of queued messages, without those in ``batch``."""
        return len(self._items)

    @property
    def count(self) -> int:
        """The number of queued messages and of those in ``batch``."""
        return len(self._items) + len(self.batch or ())

    @property
    def has_waiting(self) -> bool:
        """Whether messages are pending that have to leave before the next one."""
        return bool(self._items or self.batch)

    @property
    def has_marker(self) -> bool:
        """Whether the client asked for gap markers."""
        return self._marker is not None

    @property
    def progress(self) -> tuple[int, int]:
        """Changes when the client takes something: messages taken out so far, and bytes that the sink still buffers."""
        return self._taken, 0 if self.sink is None else self.sink.buffered()

    def has_room(self, frame: Frame) -> bool:
        """Whether ``ws.send`` may queue ``frame`` now; otherwise it has to wait."""
        if not self._items:
            return True
        return self._counts.get(_NO_TOPIC, 0) < _MAX_SENT and self.size + frame.size <= MAX_BYTES

    def is_half_full(self, settings: TopicSettings) -> bool:
        """Whether a topic with these settings may soon find no room."""
        return len(self._items) * 2 >= settings.queue or self.size * 2 >= MAX_BYTES

    def send_nowait(self, frame: Frame) -> None:
        """Queue a frame of ``ws.send``. Never waits; the caller waited for ``has_room``."""
        self._append(Published(frame, _NO_TOPIC, _NO_SETTINGS))

    @property
    def is_fed(self) -> bool:
        """Whether messages of ``feed`` are queued."""
        return self._fed is not None

    def feed(self, messages: Iterable[Published]) -> None:
        """Queue messages that the subscriber missed. No policy rules them: ``refill`` brings some at a time."""
        for message in messages:
            self._append(message)
            self._fed = message

    def put_gap(self, topic: str, settings: TopicSettings) -> bool:
        """Queue the gap marker of ``topic``. ``False``: the client did not ask for gap markers."""
        if self._marker is None:
            return False
        self.hold()
        self._append(self._marker(topic, settings))
        return True

    def put_nowait(self, message: Published) -> Outcome:
        """
        Queue a published message by the policy of its topic. Never waits.

        Returns:
            ``QUEUED``. ``CONFLATED``: it replaced an older message. ``DROPPED``: the message itself was dropped.
            ``REFUSED``: close the connection with ``close_too_slow``, because this message is lost.
        """
        topic, settings = message.topic, message.settings
        overflow = settings.overflow
        if overflow == "latest" and self._conflate(message):
            return Outcome.CONFLATED
        if overflow in ("drop_oldest", "latest"):
            while self._counts.get(topic) and not self._takes(message):
                self._drop_oldest(topic, overflow)
        if not self._takes(message):
            self._losses[overflow] += 1
            if overflow == "close":
                return Outcome.REFUSED
            if self._marker is not None:
                self._gaps |= {topic}
            return Outcome.DROPPED
        if self._marker is not None and topic in self._gaps:
            self._gaps -= {topic}
            self._append(self._marker(topic, settings))
        self._append(message)
        return Outcome.QUEUED

    def pop_published(self) -> Published:
        """Take the oldest message out."""
        message = self._items.popleft()
        self._taken += 1
        self._uncount(message)
        if self.refill is not None and self._fed is None:
            self.refill()
        return message

    def pop(self) -> Frame:
        """Take the oldest message out, as a frame."""
        return self.pop_published().frame

    def take(self, max_bytes: float = inf) -> bytes:
        """Take the oldest messages out, as a server sends them, until they are ``max_bytes`` or more."""
        frames = []
        size = 0
        while self._items and size < max_bytes:
            frames.append(self.pop_published().encoded)
            size += len(frames[-1])
        if COUNTERS.is_on:
            COUNTERS.send(len(frames), size)
        return b"".join(frames)

    def take_all(self) -> bytes:
        """Take all queued messages out, those in ``batch`` too. The connection ends: ``refill`` brings no more."""
        self.refill = None
        parts = self.batch.parts if self.batch else []
        self.batch = BACKED_UP
        encoded = b"".join([part.encoded for part in parts])
        if COUNTERS.is_on:
            COUNTERS.send(sum(len(part.messages) for part in parts), len(encoded))
        return self.take() + encoded

    def release(self) -> None:
        """
        Let published messages leave in batches from now on. Call it only while nothing is queued.

        It does nothing while the client has to be told of a loss: the gap marker goes before the topic's next message.
        """
        if self.batch is BACKED_UP and not self._gaps and not self._is_retired:
            self.batch = None

    def retire(self) -> None:
        """Let no batch leave from now on, not even after ``release``: the connection ends."""
        self.batch = BACKED_UP
        self._is_retired = True

    def drain(self) -> None:
        """Write queued messages to ``sink``, as far as the client takes them; if it took all, ``release``."""
        sink = self.sink
        while sink is not None and sink.is_writable and not sink.is_lost:
            if not self._items:
                self.release()
                return
            data = self.take(MAX_PART_BYTES)
            if self.sink is not sink or sink.is_lost:
                return  # it was refused, because it would have missed a message behind these
            sink.write(data)

    def flush(self) -> None:
        """
        Send the batch now, as far as the client takes it. The policies of their topics rule the rest.

        If the client would miss a message, the connection is closed with 1013.
        """
        batch, sink = self.batch, self.sink
        if not batch:
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
                if COUNTERS.is_on:
                    COUNTERS.send(len(part.messages), len(part.encoded))
                sink.write(part.encoded)
                continue
            self.batch = BACKED_UP
            if any(self.put_nowait(message) is Outcome.REFUSED for message in part.messages):
                self.clear()
                close_too_slow(sink.close)
                return

    def hold(self) -> None:
        """Let no batch leave from now on. The messages of the present one are queued; no policy drops any of them."""
        batch, self.batch = self.batch, BACKED_UP
        for part in batch.parts if batch else ():
            for message in part.messages:
                self._append(message)

    def clear(self) -> None:
        """Forget all pending messages, and queue what comes later."""
        self.batch = BACKED_UP
        self.refill = self._fed = None
        self._items = _NO_ITEMS
        self._counts.clear()
        self._gaps = _NO_TOPICS
        self.size = 0

    def _takes(self, message: Published) -> bool:
        if not self._items:
            return True
        return self._counts.get(message.topic, 0) < message.settings.queue and self.size + message.size <= MAX_BYTES

    def _append(self, message: Published) -> None:
        if self._items is _NO_ITEMS:
            self._items = deque()
        self._items.append(message)
        self.size += message.size
        if not message.is_gap:
            self._counts[message.topic] = self._counts.get(message.topic, 0) + 1

    def _uncount(self, message: Published) -> None:
        self.size -= message.size
        if message is self._fed:
            self._fed = None
        if not message.is_gap:
            self._counts[message.topic] -= 1
            if not self._counts[message.topic]:
                del self._counts[message.topic]

    def _drop_oldest(self, topic: str, policy: str) -> None:
        """Drop the oldest message of ``topic``. A gap marker takes its place, unless one is there."""
        self._losses[policy] += 1
        is_marked = self._marker is None
        for index, item in enumerate(self._items):
            if item.topic != topic:
                continue
            if item.is_gap:
                is_marked = True
                continue
            self._uncount(item)
            del self._items[index]
            if not is_marked and self._marker is not None:
                marker = self._marker(topic, item.settings)
                self._items.insert(index, marker)
                self.size += marker.size
            return

    def _conflate(self, message: Published) -> bool:
        """Drop the queued message of the same key. ``True``: it was the last one, and ``message`` replaced it."""
        items = self._items
        # Most outboxes have none of the topic.
        for index, item in enumerate(items if self._counts.get(message.topic) else ()):
            if item.topic == message.topic and not item.is_gap and item.key == message.key:
                self._losses["latest"] += 1
                size = self.size + message.size - item.size
                if index == len(items) - 1 and (size <= MAX_BYTES or not index) and not self._gaps:
                    items[index] = message
                    self.size = size
                    return True
                self._uncount(item)
                del items[index]
                break
        return False
