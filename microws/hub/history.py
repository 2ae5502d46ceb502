"""
Resuming: what a subscriber missed, then what is published meanwhile, then live.

The outbox paces it: whenever nothing is queued, ``Resume.refill`` queues the next messages, until none is missing. At
that moment, and without waiting, the subscriber joins the live ones: nothing is missing between, nothing comes twice.
"""

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from time import time
from typing import Final, Protocol, final

import anyio

from microws.hub.log import START, Entry, Replay
from microws.hub.outbox import Outbox
from microws.hub.published import MAX_PART_BYTES, Published, TopicSettings
from microws.interfaces import Frame, Payload

__all__ = ["FrameCodec", "Missed", "Resume", "Window", "join_positions", "split_positions"]

_place = attrgetter("place")
# The most messages that are queued at once, so that one slow event loop turn stays short.
_MAX_CHUNK: Final = 256
# Seconds for which a window is kept when nobody resumes: clients that lost a server come back one after the other.
_IDLE: Final = 5.0


class FrameCodec(Protocol):
    """What the hub needs of a connection's codec."""

    def frame(self, payload: Payload) -> Frame:
        """Encode a published payload as a frame."""
        ...


def join_positions(positions: Iterable[str | None]) -> str:
    """One token for the positions of several topics, in the order of the topics."""
    return "_".join(position or "" for position in positions)


def split_positions(topics: Sequence[str], token: str | None) -> dict[str, str | None] | None:
    """The position of each topic from a token of ``join_positions``. One that does not fit names nothing known."""
    if not token:
        return None
    positions = token.split("_")
    if token == START or len(positions) != len(topics):
        return dict.fromkeys(topics, token)
    return {topic: position or None for topic, position in zip(topics, positions, strict=True)}


@final
class _Read:
    """A read of the log that has begun, and what came of it. Neither a replay nor an error: it was cancelled."""

    __slots__ = ("ended", "error", "replay")

    def __init__(self) -> None:
        self.ended = anyio.Event()
        self.replay: Replay | None = None
        self.error: Exception | None = None


@final
class Window:
    """
    The last messages of a topic with history, in this process, while subscribers resume.

    Args:
        settings: The topic's.

    Attributes:
        is_read: It has all that the log had.
        resumes: Subscribers that resume now.
    """

    __slots__ = (
        "_chunks",
        "_entries",
        "_idle_since",
        "_places",
        "_reads",
        "_settings",
        "forgotten",
        "is_read",
        "resumes",
    )

    def __init__(self, settings: TopicSettings) -> None:
        self._settings = settings
        self._entries: list[Entry] = []
        self._places: dict[str, int] = {}
        self._reads: dict[str, _Read] = {}
        # The place of the newest message that is not here any more.
        self.forgotten = -1
        self._idle_since = time()
        # Full chunks, encoded once for all subscribers that are at the same place.
        self._chunks: dict[tuple[FrameCodec, bool, int], tuple[list[Published], int]] = {}
        self.is_read = False
        self.resumes = 0

    def is_idle(self, now: float) -> bool:
        """Whether nobody has resumed for some seconds."""
        return not self.resumes and now - self._idle_since > _IDLE

    def leave(self) -> None:
        """A subscriber does not resume any more."""
        self.resumes -= 1
        self._idle_since = time()

    async def read(self, since: str, read: Callable[[], Awaitable[Replay]]) -> Replay:
        """What ``read`` returns. Subscribers that ask for the same position meanwhile get that, too."""
        while (known := self._reads.get(since)) is not None:
            await known.ended.wait()
            if known.error is not None:
                raise known.error
            if known.replay is not None:
                return known.replay
        mine = self._reads[since] = _Read()
        try:
            mine.replay = await read()
            return mine.replay
        except Exception as error:
            mine.error = error
            raise
        finally:
            del self._reads[since]
            mine.ended.set()

    def fill(self, entries: Sequence[Entry]) -> None:
        """Put what the log had before what was delivered since."""
        first = self._entries[0].place if self._entries else None
        before = [entry for entry in entries if first is None or entry.place < first]
        self._entries[:0] = before
        self._places.update((entry.payload.position or "", entry.place) for entry in before)
        self.is_read = True

    def add(self, entry: Entry) -> None:
        """Add a message that is delivered now."""
        entries = self._entries
        entries.append(entry)
        self._places[entry.payload.position or ""] = entry.place
        limit = self._settings.history + 1
        if len(entries) > 2 * limit:
            for old in entries[:-limit]:
                del self._places[old.payload.position or ""]
            self.forgotten = entries[-limit - 1].place
            del entries[:-limit]
            self._chunks.clear()

    def missed(self, since: str) -> "Missed | None":
        """What follows the message that ``since`` names; ``None`` if that is not here."""
        place = self._places.get(since)
        if since == START:
            place = -1
        if place is None:
            return None
        history, ttl = self._settings.history, self._settings.ttl
        first = bisect_right(self._entries, place, key=_place)
        oldest = 0.0 if ttl is None else time() - ttl
        allowed = max(first, len(self._entries) - history)
        while allowed < len(self._entries) and self._entries[allowed].time < oldest:
            allowed += 1
        if since == START:
            reached = self._entries[allowed - 1].place if allowed else -1
            return Missed(True, max(reached, self.forgotten), since)
        if allowed == first:
            return Missed(True, place, since)
        last = self._entries[-1]
        return Missed(False, last.place, last.payload.position or "")

    def chunk(self, codec: FrameCodec, reached: int, *, is_joined: bool) -> tuple[list[Published], int] | None:
        """
        The messages after the place ``reached``, and the place that they reach: as many as one write may send.

        Args:
            codec: Frames them.
            is_joined: They leave as bytes, so one ``Published`` has them all.

        Returns:
            ``None`` if some of them are not here any more.
        """
        if reached < self.forgotten:
            return None
        known = self._chunks.get((codec, is_joined, reached))
        if known is not None:
            return known
        first = bisect_right(self._entries, reached, key=_place)
        messages, count = encode(codec, self._settings, self._entries, first, is_joined=is_joined)
        if not messages:
            return messages, reached
        last = first + count
        chunk = messages, self._entries[last - 1].place
        if last < len(self._entries):
            self._chunks[codec, is_joined, reached] = chunk
        return chunk


def encode(
    codec: FrameCodec, settings: TopicSettings, entries: Sequence[Entry], first: int, *, is_joined: bool
) -> tuple[list[Published], int]:
    """``entries`` from the index ``first`` on as messages, as many as one write may send; and their number."""
    messages: list[Published] = []
    size = 0
    for entry in entries[first : first + _MAX_CHUNK]:
        payload = entry.payload
        messages.append(Published(codec.frame(payload), payload.topic, settings, position=payload.position))
        size += messages[-1].size
        if size >= MAX_PART_BYTES:
            break
    count = len(messages)
    if is_joined and count > 1:
        joined = Frame(b"".join(message.encoded for message in messages), is_encoded=True)
        messages = [Published(joined, messages[0].topic, settings)]
    return messages, count


@dataclass(slots=True)
class Missed:
    """
    What a subscriber missed of one topic.

    Attributes:
        recovered: Whether all of it is delivered.
        reached: The place in the log after which it gets everything.
        position: The position of that place.
        entries: What it gets before the messages that the window has after ``reached``.
        index: Of the first entry that it has not got.
    """

    recovered: bool
    reached: int
    position: str
    entries: Sequence[Entry] = ()
    index: int = 0


@dataclass(slots=True)
class _Part:
    topic: str
    settings: TopicSettings
    codec: FrameCodec
    window: Window
    missed: Missed


@final
class Resume:
    """
    A subscriber that catches up on some topics.

    Args:
        outbox: The subscriber's.
        join: Called with the topics at the end: from then on the subscriber gets what is published.
        lose: Called with a topic of which the subscriber would miss messages. ``True``: it was told, and goes on.
    """

    __slots__ = ("_join", "_lose", "_outbox", "_parts")

    def __init__(self, outbox: Outbox, *, join: Callable[[Sequence[str]], None], lose: Callable[[str], bool]) -> None:
        self._outbox = outbox
        self._join = join
        self._lose = lose
        self._parts: dict[str, _Part] = {}

    def __contains__(self, topic: object) -> bool:
        return topic in self._parts

    def add(self, topic: str, settings: TopicSettings, codec: FrameCodec, window: Window, missed: Missed) -> None:
        """Catch up on one more topic. Its window has been told."""
        self._parts[topic] = _Part(topic, settings, codec, window, missed)

    def drop(self, topic: str) -> None:
        """Do not catch up on a topic any more."""
        part = self._parts.pop(topic, None)
        if part is not None:
            part.window.leave()

    def begin(self) -> None:
        """Queue the first messages, behind those that are pending."""
        self._outbox.hold()
        self._outbox.refill = self.refill
        if not self._outbox:
            self.refill()

    def refill(self) -> None:
        """Queue the next messages; or, if none is missing, let the subscriber get what is published from now on."""
        outbox = self._outbox
        is_joined = outbox.sink is not None
        for part in list(self._parts.values()):
            missed = part.missed
            if missed.index < len(missed.entries):
                messages, count = encode(part.codec, part.settings, missed.entries, missed.index, is_joined=is_joined)
                missed.index += count
                outbox.feed(messages)
                return
            chunk = part.window.chunk(part.codec, missed.reached, is_joined=is_joined)
            if chunk is None:
                if not self._lose(part.topic):
                    return
                # Told; it goes on with what the window still has.
                missed.reached = part.window.forgotten
                chunk = part.window.chunk(part.codec, missed.reached, is_joined=is_joined) or ([], missed.reached)
            messages, missed.reached = chunk
            if messages:
                outbox.feed(messages)
                return
        outbox.refill = None
        topics = list(self._parts)
        for topic in topics:
            self.drop(topic)
        self._join(topics)
