"""
One connection's bounded queue: everything that leaves it, in one order.

An outbox holds what the transport has not taken yet. What ``ws.send`` puts in stays in; published messages are ruled by
their topic's overflow policy, which removes messages of its own topic only.
"""

from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, NamedTuple, TypeAlias, final

from microws.interfaces import Frame

__all__ = ["MAX_BYTES", "MAX_MESSAGES", "Outbox", "Outcome", "Overflow", "Published", "TopicSettings", "gap_marker"]

Overflow: TypeAlias = Literal["close", "drop_oldest", "drop_newest", "latest"]

# Precedent: Centrifugo's client_queue_max_size, 1 MiB.
MAX_BYTES = 1 << 20
# Precedent: Phoenix Channels and Bun leave it open; 256 messages of a topic are some seconds of a lively chat.
MAX_MESSAGES = 256


class TopicSettings(NamedTuple):
    """
    How a topic treats a connection that does not keep up.

    Attributes:
        queue: Most messages of the topic that one outbox holds.
        overflow: What happens to the next one.
        key: For ``"latest"``: a field name, or a function of the message; of the messages with one key only the newest
            is kept. ``None``: all messages of the topic have the same key.
    """

    queue: int = MAX_MESSAGES
    overflow: Overflow = "close"
    key: str | Callable[[Any], Any] | None = None


@final
class Published:
    """One published message as framed for one codec; shared by every outbox that it stands in."""

    __slots__ = ("frame", "is_gap", "key", "settings", "size", "topic")

    def __init__(
        self, frame: Frame, topic: str, settings: TopicSettings, *, key: Any = None, is_gap: bool = False
    ) -> None:
        self.frame = frame
        self.topic = topic
        self.settings = settings
        self.key = key
        self.size = frame.size
        self.is_gap = is_gap


class Outcome(Enum):
    """What became of a message that was put into an outbox."""

    QUEUED = "queued"
    DROPPED = "dropped"
    REFUSED = "refused"


def gap_marker(topic: str, settings: TopicSettings, frame: Frame) -> Published:
    """The mark that stands where messages of ``topic`` were lost; ``frame`` is what the client sees of it."""
    return Published(frame, topic, settings, is_gap=True)


class Outbox:
    """
    The queue of one connection.

    Args:
        marker: Makes the gap marker of a topic, for a client that asked for them; ``None``: it did not.
        losses: Counts what the policies took away, under ``"drop_oldest"``, ``"drop_newest"``, ``"latest"``; shared by
            the outboxes of a hub.
        max_bytes: Payload bytes that it holds in all; an empty outbox takes one frame of any size. A gap marker is
            not refused.

    Attributes:
        taken: How many frames were taken out so far.

    Source: docs/explanation.md, "A slow client".
    """

    __slots__ = ("_bytes", "_counts", "_gaps", "_items", "_losses", "_marker", "_max_bytes", "taken")

    def __init__(
        self,
        *,
        marker: Callable[[str, TopicSettings], Published] | None = None,
        losses: Counter[str] | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._items: deque[Published | Frame] = deque()
        self._counts: dict[str, int] = {}
        self._gaps: set[str] = set()
        self._bytes = 0
        self._marker = marker
        self._losses: Counter[str] = Counter() if losses is None else losses
        self._max_bytes = max_bytes
        self.taken = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def size(self) -> int:
        """Payload bytes that wait."""
        return self._bytes

    def has_room(self, frame: Frame) -> bool:
        """Whether ``ws.send`` may queue ``frame`` now, or has to wait."""
        if not self._items:
            return True
        return len(self._items) < MAX_MESSAGES and self._bytes + frame.size <= self._max_bytes

    def is_half_full(self, settings: TopicSettings) -> bool:
        """Whether a topic with these settings may soon find no room."""
        return len(self._items) * 2 >= settings.queue or self._bytes * 2 >= self._max_bytes

    def send_nowait(self, frame: Frame) -> None:
        """Queue a frame of ``ws.send``. Never waits; the caller has waited until there was room for it."""
        self._items.append(frame)
        self._bytes += frame.size

    def put_nowait(self, message: Published) -> Outcome:
        """
        Queue a published message by the policy of its topic. Never waits.

        Returns:
            ``QUEUED``; ``DROPPED`` where the message itself was given up; ``REFUSED`` where the connection must now be
            closed with 1013, because it would otherwise see a later message after a lost one.
        """
        settings = message.settings
        if settings.overflow == "latest" and self._counts.get(message.topic):
            self._conflate(message)
        if not self._takes(message):
            match settings.overflow:
                case "close":
                    return Outcome.REFUSED
                case "drop_newest":
                    return self._give_up(message)
                case "drop_oldest" | "latest":
                    while self._counts.get(message.topic) and not self._takes(message):
                        self._drop_oldest(message.topic, settings.overflow)
                    if not self._takes(message):
                        return self._give_up(message)
        if message.topic in self._gaps:
            self._gaps.discard(message.topic)
            if self._marker is not None:
                self._append(self._marker(message.topic, settings))
        self._append(message)
        return Outcome.QUEUED

    def pop(self) -> Frame:
        """Take the oldest frame out."""
        item = self._items.popleft()
        self.taken += 1
        if isinstance(item, Frame):
            self._bytes -= item.size
            return item
        self._forget(item)
        return item.frame

    def clear(self) -> None:
        """Forget everything that waits."""
        self._items.clear()
        self._counts.clear()
        self._gaps.clear()
        self._bytes = 0

    def _takes(self, message: Published) -> bool:
        if not self._items:
            return True
        return (
            self._counts.get(message.topic, 0) < message.settings.queue
            and self._bytes + message.size <= self._max_bytes
        )

    def _append(self, message: Published) -> None:
        self._items.append(message)
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
        self._gaps.add(message.topic)
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

    def _conflate(self, message: Published) -> None:
        for index, item in enumerate(self._items):
            if (
                isinstance(item, Published)
                and item.topic == message.topic
                and not item.is_gap
                and item.key == message.key
            ):
                self._losses["latest"] += 1
                self._forget(item)
                del self._items[index]
                return
