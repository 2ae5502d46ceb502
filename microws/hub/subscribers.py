"""A subscriber of a hub, and a topic with its subscribers."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from math import inf
from typing import Protocol

import anyio

from microws.hub.backplane import Place
from microws.hub.history import FrameCodec, Resume, SharedCalls, Window
from microws.hub.log import Entry
from microws.hub.loop import running_loop
from microws.hub.outbox import Outbox
from microws.hub.published import Published, TopicSettings

__all__ = ["Announce", "Subscriber", "Topic"]

# Seconds for which a window is kept after the last resume: clients that lost a server come back one after the other.
_WINDOW_IDLE = 5.0


class Announce(Protocol):
    """Tells a subscriber of the beginning of its topics with history."""

    def __call__(
        self, positions: Mapping[str, str], asked: Collection[str], lost: Collection[str], /
    ) -> Iterable[Published]:
        """
        The messages to send first.

        Args:
            positions: By topic: what is published after it is delivered.
            asked: The topics of which the subscriber named a position.
            lost: Those of them whose history does not have all that was missed.
        """


class Subscriber:
    """
    One receiver of published messages.

    Args:
        id: Unique in this process; what ``publish(skip=…)`` names.
        codec: Frames each payload; subscribers with the same codec share the frame. A dict has one for each topic.
        outbox: Where messages are put.
        wake: Called after a message was queued.
        refuse: Called with a close code and a reason when the subscriber would miss a message.
        max_topics: The most topics that it may subscribe to. Default: unlimited.
        announce: Makes what is sent before the messages of a topic with history. Default: nothing.

    Attributes:
        topics: Those that it is subscribed to.
        replay_codecs: Those for what it missed, if they are others.
        resume: What it still has to get of topics with history, before it gets what is published.
        subscribing: While a call of ``Hub.subscribe`` waits; set at its end.
        has_left: It gets no more messages, even if some topics still list it.
    """

    __slots__ = (
        "announce",
        "codec",
        "has_left",
        "id",
        "max_topics",
        "outbox",
        "refuse",
        "replay_codecs",
        "resume",
        "subscribing",
        "topics",
        "wake",
    )

    def __init__(
        self,
        *,
        id: str,  # noqa: A002
        codec: FrameCodec | dict[str, FrameCodec],
        outbox: Outbox,
        wake: Callable[[], None],
        refuse: Callable[[int, str], None],
        max_topics: float = inf,
        announce: Announce | None = None,
    ) -> None:
        self.id: str = id
        self.codec: FrameCodec | dict[str, FrameCodec] = codec
        self.outbox: Outbox = outbox
        self.wake: Callable[[], None] = wake
        self.refuse: Callable[[int, str], None] = refuse
        self.max_topics: float = max_topics
        self.announce: Announce | None = announce
        self.topics: set[str] = set()
        self.replay_codecs: Mapping[str, FrameCodec] | None = None
        self.resume: Resume | None = None
        self.subscribing: anyio.Event | None = None
        self.has_left: bool = False

    def codec_of(self, topic: str) -> FrameCodec:
        """The codec for ``topic``."""
        codec = self.codec
        return codec[topic] if isinstance(codec, dict) else codec


class Topic:
    """
    A topic with subscribers in this process.

    Attributes:
        messages: Those that were delivered here since it had subscribers.
        position, place: Of its last message, with history.
    """

    __slots__ = (
        "_timer",
        "confirming",
        "groups",
        "is_confirmed",
        "losses",
        "messages",
        "place",
        "position",
        "settings",
        "waiting",
        "window",
    )

    def __init__(self, settings: TopicSettings, *, is_confirmed: bool) -> None:
        self.settings: TopicSettings = settings
        # Whether the backplane delivers the topic here, and its position is known; and while it is asked to.
        self.is_confirmed: bool = is_confirmed
        self.confirming: SharedCalls[Place] | None = None
        self.losses: int = 0
        self.messages: int = 0
        # By codec, because it makes one message for all. A dict keeps the order of subscribing; adding and removing
        # are O(1).
        self.groups: dict[FrameCodec, dict[Outbox, Subscriber]] = {}
        # Subscribers that wait until they are in a group.
        self.waiting: int = 0
        self.position: str | None = None
        self.place: int = -1
        self.window: Window | None = None
        # Ends the window.
        self._timer: asyncio.TimerHandle | None = None

    def open_window(self) -> Window:
        """The window, for one more subscriber that resumes."""
        self._stop_timer()
        if self.window is None:
            self.window = Window(self.settings, self._close_window_later)
        self.window.resumes += 1
        return self.window

    def _close_window_later(self) -> None:
        """Nobody resumes. On trio the window is closed at once."""
        if self.window is None or self.window.resumes:
            return
        self._stop_timer()
        loop = running_loop()
        if loop is None:
            self.window = None
        else:
            self._timer = loop.call_later(_WINDOW_IDLE, self.close_window)

    def close_window(self) -> None:
        """Keep no messages here any more."""
        self._stop_timer()
        self.window = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def note(self, entry: Entry) -> None:
        """A message with a position is delivered."""
        self.position, self.place = entry.payload.position, entry.place
        if self.window is not None:
            self.window.add(entry)

    def forget(self) -> None:
        """Messages were lost here: the log may be another one."""
        self.close_window()
        self.position, self.place = None, -1
        self.losses += 1
        self.is_confirmed = self.is_confirmed and not self.settings.history
