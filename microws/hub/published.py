"""Messages on their way to many connections: one message, and several that are sent with one write."""

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, TypeAlias, final

from microws.framing.frames import BINARY, TEXT, encode_frame
from microws.interfaces import Frame

__all__ = ["BACKED_UP", "MAX_MESSAGES", "MAX_PART_BYTES", "Batch", "OverflowPolicy", "Published", "TopicSettings"]

OverflowPolicy: TypeAlias = Literal["close", "drop_oldest", "drop_newest", "latest"]

# Precedent: Phoenix Channels and Bun set no limit; 256 messages of a topic are some seconds of a busy chat.
MAX_MESSAGES = 256
# The most that one write sends, unless a single message is larger. Precedent: asyncio's high-water mark, above which a
# transport asks for a pause.
MAX_PART_BYTES = 64 << 10


class TopicSettings(NamedTuple):
    """
    How a topic treats a connection that does not keep up.

    Attributes:
        queue: The most messages of the topic that one outbox holds.
        overflow: What happens to the next one.
        key: For ``"latest"``: a field name, or a function of the message. An outbox keeps only the newest message of
            each key. ``None``: all messages of the topic have the same key.
        history: The most messages that a subscriber may have missed and still gets; with ``"latest"``, the keys whose
            newest message is kept. 0: none.
        ttl: The age in seconds up to which it gets them. ``None``: any.
        value_type: The Python type of what is published. ``None``: any.
    """

    queue: int = MAX_MESSAGES
    overflow: OverflowPolicy = "close"
    key: str | Callable[[Any], Any] | None = None
    history: int = 0
    ttl: float | None = None
    value_type: Any = None


@final
class Published:
    """
    One message, framed for one codec. Many outboxes share it: never change it.

    Args:
        frame: The encoded message.
        topic: Its topic; ``""`` for a message of ``ws.send``.
        settings: The topic's.
        key: What ``"latest"`` compares.
        is_gap: Whether this is a gap marker, which tells the client that messages of ``topic`` were lost here.
        position: The position of the message, on a topic with history.
    """

    __slots__ = ("_encoded", "frame", "is_gap", "key", "position", "settings", "size", "topic")

    def __init__(
        self,
        frame: Frame,
        topic: str,
        settings: TopicSettings,
        *,
        key: Any = None,
        is_gap: bool = False,
        position: str | None = None,
    ) -> None:
        self.frame: Frame = frame
        self.topic: str = topic
        self.settings: TopicSettings = settings
        self.key: Any = key
        self.size: int = frame.size
        self.is_gap: bool = is_gap
        self.position: str | None = position
        self._encoded: bytes | None = None

    @property
    def encoded(self) -> bytes:
        """The bytes that a server sends; encoded at most once."""
        if self._encoded is None:
            frame = self.frame
            self._encoded = (
                frame.data if frame.is_encoded else encode_frame(frame.data, TEXT if frame.is_text else BINARY)
            )
        return self._encoded


@final
class Batch:
    """
    Messages that were published in one turn of the event loop, in a linked list: the last one, and those before it.

    Outboxes that got the same messages share the list and its joined bytes. A batch over ``MAX_PART_BYTES`` consists of
    several parts; each part is sent with one write.

    Args:
        before: The messages before ``message``; ``None`` if there are none.
        message: The last one.

    Attributes:
        message: The last one.
        before: The messages before it in the same part; ``None`` if there are none.
        previous: The part before this one; ``None`` if there is only one part.
        size: Payload bytes of this part.
    """

    __slots__ = ("_encoded", "_length", "before", "message", "previous", "size")

    def __init__(self, before: "Batch | None", message: Published) -> None:
        self.message: Published = message
        self.size: int = message.size
        self.before: Batch | None = None
        self.previous: Batch | None = None
        self._length = 1
        self._encoded: bytes | None = None
        if before is None:
            return
        self._length += len(before)
        if before.size + message.size > MAX_PART_BYTES:
            self.previous = before
        else:
            self.before = before
            self.previous = before.previous
            self.size += before.size

    def __len__(self) -> int:
        """The number of messages in all parts."""
        return self._length

    @property
    def encoded(self) -> bytes:
        """The bytes of this part; joined at most once."""
        if self._encoded is None:
            messages = self.messages
            self._encoded = b"".join([message.encoded for message in messages]) if messages[1:] else messages[0].encoded
        return self._encoded

    @property
    def messages(self) -> list[Published]:
        """The messages of this part, in the order in which they were published."""
        batch: Batch | None = self
        messages = []
        while batch is not None:
            messages.append(batch.message)
            batch = batch.before
        return messages[::-1]

    @property
    def parts(self) -> "list[Batch]":
        """The parts, in the order in which they were published."""
        batch: Batch | None = self
        parts = []
        while batch is not None:
            parts.append(batch)
            batch = batch.previous
        return parts[::-1]


# The batch of an outbox whose messages do not leave in batches. Its length is 0, so that it is false, as ``None`` is.
# An object of the same class, because ``Flusher.put`` tells it from other batches for each delivery.
BACKED_UP: Final = Batch(None, Published(Frame(""), "", TopicSettings()))
BACKED_UP._length = 0  # noqa: SLF001
