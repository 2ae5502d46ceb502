"""Who gets what is published, as the hub knows them."""

from collections.abc import Callable
from math import inf
from typing import Protocol

from microws.hub.outbox import Outbox
from microws.interfaces import Frame, Payload

__all__ = ["FrameCodec", "Subscriber"]


class FrameCodec(Protocol):
    """What the hub needs of a connection's codec."""

    def frame(self, payload: Payload) -> Frame:
        """The frame that this codec makes of a published payload."""
        ...


class Subscriber:
    """
    One receiver of published messages, as the hub knows it.

    Args:
        id: Unique in this process; what ``publish(skip=…)`` names.
        codec: Frames each payload; subscribers with one codec share the frame. A dict has one for each topic.
        outbox: Where messages are put.
        wake: Called after a message was put.
        refuse: Called with a close code and reason when the subscriber cannot go on without a loss.
        max_topics: Topics that it may subscribe. Default: any number.

    Attributes:
        topics: Those that it has subscribed.
        has_left: It gets nothing more, even where some topics still know it.
    """

    __slots__ = ("codec", "has_left", "id", "max_topics", "outbox", "refuse", "topics", "wake")

    def __init__(
        self,
        *,
        id: str,  # noqa: A002
        codec: FrameCodec | dict[str, FrameCodec],
        outbox: Outbox,
        wake: Callable[[], None],
        refuse: Callable[[int, str], None],
        max_topics: float = inf,
    ) -> None:
        self.id = id
        self.codec = codec
        self.outbox = outbox
        self.wake = wake
        self.refuse = refuse
        self.max_topics = max_topics
        self.topics: set[str] = set()
        self.has_left = False

    def codec_of(self, topic: str) -> FrameCodec:
        """What frames the payloads of ``topic``."""
        codec = self.codec
        return codec[topic] if isinstance(codec, dict) else codec
