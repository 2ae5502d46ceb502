"""Published messages, and what several of them are to one write."""

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, TypeAlias, final

from microws.framing import BINARY, TEXT, encode_frame
from microws.interfaces import Frame

__all__ = [
    "BACKED_UP",
    "MAX_MESSAGES",
    "MAX_PART_BYTES",
    "Batch",
    "OverflowPolicy",
    "Published",
    "TopicSettings",
    "encoded",
    "gap_marker",
]

OverflowPolicy: TypeAlias = Literal["close", "drop_oldest", "drop_newest", "latest"]

# Precedent: Phoenix Channels and Bun leave it open; 256 messages of a topic are some seconds of a lively chat.
MAX_MESSAGES = 256
# Of what is written at once. Precedent: asyncio's high-water mark, from which on a transport has enough.
MAX_PART_BYTES = 64 << 10


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
    overflow: OverflowPolicy = "close"
    key: str | Callable[[Any], Any] | None = None


def encoded(frame: Frame) -> bytes:
    """``frame`` as a server sends it."""
    if frame.is_encoded:
        return frame.data
    return encode_frame(frame.data, TEXT if frame.is_text else BINARY)


@final
class Published:
    """One published message as framed for one codec; shared by every outbox that it stands in."""

    __slots__ = ("_encoded", "frame", "is_gap", "key", "settings", "size", "topic")

    def __init__(
        self, frame: Frame, topic: str, settings: TopicSettings, *, key: Any = None, is_gap: bool = False
    ) -> None:
        self.frame = frame
        self.topic = topic
        self.settings = settings
        self.key = key
        self.size = frame.size
        self.is_gap = is_gap
        self._encoded: bytes | None = None

    @property
    def encoded(self) -> bytes:
        """The frame as a server sends it; encoded at most once."""
        if self._encoded is None:
            self._encoded = encoded(self.frame)
        return self._encoded


def gap_marker(topic: str, settings: TopicSettings, frame: Frame) -> Published:
    """The mark that stands where messages of ``topic`` were lost; ``frame`` is what the client sees of it."""
    return Published(frame, topic, settings, is_gap=True)


@final
class Batch:
    """
    Messages that were published in one turn of the event loop, up to a last one.

    It is that message and the batch before it, so that outboxes which got the same messages share all of it, the joined
    bytes too. A batch that grows large goes on in a next part: a part is written at once.

    Args:
        before: What was published before ``message``; ``None``: nothing.
        message: What was published last.

    Attributes:
        message: The last one.
        before: The batch of those before it in this part; ``None``: there is none.
        count: Messages, in all parts.
        previous: The last batch of the part before this one; ``None``: there is one part.
        size: Payload bytes of this part.
    """

    __slots__ = ("_encoded", "before", "count", "message", "previous", "size")

    def __init__(self, before: "Batch | None", message: Published) -> None:
        self.message = message
        self._encoded: bytes | None = None
        self.size = message.size
        self.count = 1
        self.previous: Batch | None = None
        self.before: Batch | None = None
        if before is None:
            return
        self.count += before.count
        if before.size + message.size > MAX_PART_BYTES:
            self.previous = before
        else:
            self.before = before
            self.previous = before.previous
            self.size += before.size

    @property
    def encoded(self) -> bytes:
        """The frames of this part; joined at most once."""
        if self._encoded is None:
            messages = self.messages
            self._encoded = b"".join([message.encoded for message in messages]) if messages[1:] else messages[0].encoded
        return self._encoded

    @property
    def messages(self) -> list[Published]:
        """Those of this part, in the order in which they were published."""
        batch: Batch | None = self
        messages = []
        while batch is not None:
            messages.append(batch.message)
            batch = batch.before
        messages.reverse()
        return messages

    @property
    def parts(self) -> "list[Batch]":
        """The parts, in the order in which they were published."""
        batch: Batch | None = self
        parts = []
        while batch is not None:
            parts.append(batch)
            batch = batch.previous
        parts.reverse()
        return parts


# Stands where an outbox has no batch because nothing leaves it by turns.
BACKED_UP: Final = Batch(None, Published(Frame(""), "", TopicSettings()))
