"""
Resuming: what a subscriber missed, then what is published meanwhile, then live.

The outbox paces it: whenever it has sent what ``Resume.refill`` queued, that queues the next messages, until none is
missing. At that moment, and without waiting, the subscriber joins the live ones: nothing is missing between, nothing
comes twice.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Iterable, KeysView, Sequence, Set
from dataclasses import dataclass, field
from operator import attrgetter
from time import time
from typing import Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, final

import anyio

from microws.hub.live import skipped_frame
from microws.hub.log import START, Entry, Replay, place_of, position_before
from microws.hub.outbox import Outbox
from microws.hub.published import MAX_PART_BYTES, Published, TopicSettings
from microws.interfaces import Frame, Payload

__all__ = ["FrameCodec", "Missed", "Resume", "SharedCalls", "Window", "join_positions", "split_positions"]

T = TypeVar("T")

_place = attrgetter("place")
# The most messages that are queued at once, so that one slow event loop turn stays short.
_MAX_CHUNK: Final = 256
# The most bytes of chunks that a window keeps for the subscribers that come to the same place.
_MAX_CHUNK_BYTES: Final = 4 << 20
# What a chunk takes besides its messages, in bytes.
_CHUNK_COST: Final = 1 << 10
# The conflation key of messages that were missed: it differs from that of every other message.
_REPLAYED: Final = object()


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
class _Running(Generic[T]):
    """A call that has begun, and what came of it. Neither results nor an error: it was cancelled."""

    __slots__ = ("ended", "error", "results")

    def __init__(self) -> None:
        self.ended = anyio.Event()
        self.results: list[T] = []
        self.error: Exception | None = None


@final
class SharedCalls(Generic[T]):
    """Calls that one task makes for all that need the same meanwhile. If it is cancelled, another one calls."""

    __slots__ = ("_running",)

    def __init__(self) -> None:
        self._running: dict[str, _Running[T]] = {}

    async def call(self, key: str, function: Callable[[], Awaitable[T]]) -> T:
        """What ``function`` returns or raises, here or in the task that calls it for ``key`` now."""
        while (running := self._running.get(key)) is not None:
            await running.ended.wait()
            if running.error is not None:
                raise running.error
            if running.results:
                return running.results[0]
        running = self._running[key] = _Running()
        try:
            result = await function()
            running.results.append(result)
            return result
        except Exception as error:
            running.error = error
            raise
        finally:
            del self._running[key]
            running.ended.set()


_Chunk: TypeAlias = tuple[list[Published], int]


@final
class Window:
    """
    The last messages of a topic with history, in this process, while subscribers resume.

    With ``overflow="latest"`` it has the newest message of each conflation key.

    Args:
        settings: The topic's.
        on_idle: Called when the last subscriber does not resume any more.

    Attributes:
        is_by_key: Whether it has only the newest message of each key.
        first_since: The first position that the log was asked for.
        is_read: It has all of the history.
        reads: Of the log, by position.
        resumes: Subscribers that resume now.
        forgotten: The place of the newest message that is not here any more.
    """

    __slots__ = (
        "_chunks",
        "_entries",
        "_newest",
        "_on_idle",
        "_places",
        "_settings",
        "_size",
        "first_since",
        "forgotten",
        "is_by_key",
        "is_read",
        "reads",
        "resumes",
    )

    def __init__(self, settings: TopicSettings, on_idle: Callable[[], None]) -> None:
        self._settings = settings
        self.is_by_key: bool = settings.overflow == "latest"
        self._on_idle = on_idle
        self._entries: list[Entry] = []
        self._places: dict[str, int] = {}
        # By conflation key, with ``overflow="latest"``.
        self._newest: dict[bytes, int] = {}
        # Chunks that were encoded for all subscribers that come to the same place, and their bytes.
        self._chunks: dict[tuple[FrameCodec, bool, int], _Chunk] = {}
        self._size = 0
        self.forgotten: int = -1
        self.first_since: str | None = None
        self.is_read: bool = False
        self.reads: SharedCalls[Replay] = SharedCalls()
        self.resumes: int = 0

    def leave(self) -> None:
        """A subscriber does not resume any more."""
        self.resumes -= 1
        if not self.resumes:
            self._on_idle()

    def note(self, since: str, reached: int) -> None:
        """The log has told the place of a position."""
        self._places[since] = reached

    def fill(self, entries: Sequence[Entry], *, is_all: bool = False) -> None:
        """Put what the log had, or the end of that, before what is here."""
        first = self._entries[0].place if self._entries else None
        before = [
            entry for entry in entries if (first is None or entry.place < first) and entry.key not in self._newest
        ]
        self._entries[:0] = before
        for entry in before:
            self._keep(entry)
        self.is_read = self.is_read or is_all

    def add(self, entry: Entry) -> None:
        """Add a message that is delivered now."""
        entries = self._entries
        if (older := self._newest.get(entry.key)) is not None:
            index = bisect_left(entries, older, key=_place)
            self._forget(index, index + 1)
        entries.append(entry)
        self._keep(entry)
        limit = self._settings.history + 1
        if len(entries) > 2 * limit:
            self.forgotten = entries[-limit - 1].place
            self._forget(0, len(entries) - limit)

    def _keep(self, entry: Entry) -> None:
        self._places[entry.payload.position or ""] = entry.place
        if self.is_by_key:
            self._newest[entry.key] = entry.place

    def _forget(self, start: int, end: int) -> None:
        for old in self._entries[start:end]:
            self._places.pop(old.payload.position or "", None)
            self._newest.pop(old.key, None)
        del self._entries[start:end]
        self._chunks.clear()
        self._size = 0

    def missed(self, since: str, position: str | None) -> "Missed | None":
        """
        What follows the message that ``since`` names; ``None`` if only the log can tell.

        Args:
            position: The topic's.
        """
        entries, history, ttl = self._entries, self._settings.history, self._settings.ttl
        allowed = max(0, len(entries) - history)
        if ttl is not None:
            oldest = time() - ttl
            while allowed < len(entries) and entries[allowed].time < oldest:
                allowed += 1
        # The place before the oldest message that may be delivered.
        begin = max(self.forgotten, entries[allowed - 1].place) if allowed else self.forgotten
        if since == START:
            if not self.is_read:
                return None
            if entries:
                last = entries[max(0, allowed - 1)].payload.position or ""
                position = last if allowed else position_before(last)
            return Missed(self, True, begin, position)
        place = self._places.get(since)
        if self.is_by_key:
            return None if place is None else Missed(self, True, max(place, begin), since)
        if place is not None and allowed <= bisect_right(entries, place, key=_place):
            return Missed(self, True, place, since)
        if place is None and (not self.is_read or len(entries) <= history or place_of(since) > entries[-1].place):
            return None
        return Missed(self, False, entries[-1].place, entries[-1].payload.position or "")

    def has_lost(self, reached: int) -> bool:
        """Whether some messages after the place ``reached`` are not here any more."""
        return reached < self.forgotten and not self.is_by_key

    def chunk(
        self, codec: FrameCodec, reached: int, *, is_joined: bool, is_shared: bool, skipped: Set[int] = frozenset()
    ) -> _Chunk:
        """
        The messages after the place ``reached``, and the place that they reach: as many as one write may send.

        Args:
            codec: Frames them.
            is_joined: They leave as bytes, so one ``Published`` has them all.
            is_shared: Other subscribers have the codec, too.
            skipped: The places of messages that the subscriber does not get.

        Raises:
            Exception: The codec cannot encode one of them.
        """
        entries = self._entries
        if not entries or reached >= entries[-1].place:
            return [], reached
        is_shared = is_shared and not skipped
        known = self._chunks.get((codec, is_joined, reached)) if is_shared else None
        if known is not None:
            return known
        first = bisect_right(entries, reached, key=_place)
        messages, end, size = self._encode(codec, first, skipped)
        if is_joined and len(messages) > 1:
            joined = Frame(b"".join(message.encoded for message in messages), is_encoded=True)
            messages = [Published(joined, messages[0].topic, self._settings, key=_REPLAYED)]
        chunk = messages, entries[end - 1].place
        if is_shared:
            if self._size > _MAX_CHUNK_BYTES:
                self._chunks.clear()
                self._size = 0
            self._size += size + _CHUNK_COST
            self._chunks[codec, is_joined, reached] = chunk
        return chunk

    def _encode(self, codec: FrameCodec, first: int, skipped: Set[int]) -> tuple[list[Published], int, int]:
        """The entries from the index ``first`` on as messages; the index of the next one; and their bytes."""
        settings = self._settings
        messages: list[Published] = []
        size = 0
        end = first
        for entry in self._entries[first : first + _MAX_CHUNK]:
            end += 1
            payload = entry.payload
            frame = skipped_frame(codec, payload) if entry.place in skipped else codec.frame(payload)
            if frame is None:
                continue
            message = Published(frame, payload.topic, settings, key=_REPLAYED, position=payload.position)
            messages.append(message)
            size += message.size
            if size >= MAX_PART_BYTES:
                break
        return messages, end, size


class Missed(NamedTuple):
    """
    What a subscriber missed of one topic.

    Attributes:
        window: Has it.
        recovered: Whether all of it is delivered.
        reached: The place in the log after which it gets everything.
        position: The position of that place.
    """

    window: Window
    recovered: bool
    reached: int
    position: str | None


@dataclass(slots=True)
class _Part:
    topic: str
    codec: FrameCodec
    is_shared: bool
    window: Window
    reached: int
    is_lost: bool = False
    skipped: set[int] = field(default_factory=set)


@final
class Resume:
    """
    A subscriber that catches up on some topics.

    Args:
        outbox: The subscriber's.
        join: Called with the topics at the end: from then on the subscriber gets what is published.
        lose: Called with a topic of which the subscriber would miss messages. ``True``: it was told, and goes on.
        fail: Called with a topic of which a message cannot be encoded.
    """

    __slots__ = ("_fail", "_join", "_lose", "_outbox", "_parts")

    def __init__(
        self,
        outbox: Outbox,
        *,
        join: Callable[[Sequence[str]], None],
        lose: Callable[[str], bool],
        fail: Callable[[str], None],
    ) -> None:
        self._outbox = outbox
        self._join = join
        self._lose = lose
        self._fail = fail
        self._parts: dict[str, _Part] = {}

    @property
    def topics(self) -> KeysView[str]:
        """Those on which it catches up."""
        return self._parts.keys()

    def add(self, topic: str, codec: FrameCodec, missed: Missed, *, is_shared: bool) -> None:
        """
        Catch up on one more topic.

        Args:
            topic: Its window counts this subscriber.
            codec: Frames its messages.
            missed: Of the topic.
            is_shared: Other subscribers have the codec, too.
        """
        self._parts[topic] = _Part(topic, codec, is_shared, missed.window, missed.reached)

    def drop(self, topic: str) -> None:
        """Do not catch up on a topic any more."""
        part = self._parts.pop(topic, None)
        if part is not None:
            part.window.leave()

    def lose(self, topic: str) -> None:
        """Queue no more of a topic: messages were lost. The subscriber, which can be told, is told at the end."""
        self._parts[topic].is_lost = True

    def skip(self, topic: str, place: int) -> None:
        """Leave out the message of a topic at this place."""
        if topic in self._parts:
            self._parts[topic].skipped.add(place)

    def begin(self) -> None:
        """Queue the first messages, behind those that are pending."""
        self._outbox.hold()
        self._outbox.refill = self.refill
        if not self._outbox.is_fed:
            self.refill()

    def end(self) -> None:
        """Queue nothing more."""
        self._outbox.refill = None
        for topic in list(self._parts):
            self.drop(topic)

    def refill(self) -> None:
        """Queue the next messages; or, if none is missing, let the subscriber get what is published from now on."""
        outbox = self._outbox
        for part in [part for part in self._parts.values() if not part.is_lost]:
            reached: int | None = None
            while reached != part.reached:  # all of a chunk may be skipped
                reached = part.reached
                chunk = self._chunk(part)
                if chunk is None:
                    return
                messages, part.reached = chunk
                if messages:
                    # The other topics are next.
                    self._parts[part.topic] = self._parts.pop(part.topic)
                    outbox.feed(messages)
                    return
        topics = list(self._parts)
        for topic in [topic for topic in topics if self._parts[topic].is_lost]:
            self._lose(topic)
        self.end()
        self._join(topics)

    def _chunk(self, part: _Part) -> _Chunk | None:
        """The next messages of a topic. ``None``: the subscriber was refused."""
        window = part.window
        if window.has_lost(part.reached):
            if not self._lose(part.topic):
                return None
            # Told; it goes on with what the window still has.
            part.reached = window.forgotten
        try:
            is_joined = self._outbox.sink is not None
            return window.chunk(
                part.codec, part.reached, is_joined=is_joined, is_shared=part.is_shared, skipped=part.skipped
            )
        except Exception:
            self._fail(part.topic)
            return None
