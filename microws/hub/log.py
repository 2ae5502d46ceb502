"""
The log of a hub: the published messages of all topics in one ring of bytes, with an index of topics and the claims
beside it.

All of it is in one block of memory: an anonymous one, a ``memfd``, or a file. A process that is killed at any point
leaves a log that the next process goes on with, without reading it through.

The order of the writes makes that safe. Records are copied behind the end first. Then one store of 8 bytes moves the
end: that commits them. Then the indexes are updated. A word tells how far they are, and the next process updates them
from there. A store of 8 bytes is never done by halves, because ``memoryview`` copies whole words.
"""

import re
import struct
from collections.abc import Callable, Iterator
from functools import partial
from mmap import mmap
from os import urandom
from time import time
from typing import Any, Final, NamedTuple, final
from zlib import crc32

from microws.hub.claims import Claims
from microws.interfaces import Payload

__all__ = [
    "HAS_HISTORY",
    "HEAD",
    "KINDS",
    "MAGIC",
    "MIN_BYTES",
    "POSITION_FORMAT",
    "START",
    "Entry",
    "Log",
    "LogUsage",
    "Replay",
    "new",
    "parse_position",
    "place_of",
    "position_before",
    "position_of",
    "read_record",
]

# Kinds of payloads; a record has the index, and a bit that says whether its topic has history.
KINDS: Final = ("text", "bytes", "json")
HAS_HISTORY: Final = 1 << 8
# What ``since=`` takes for all that the log has of a topic.
START: Final = "start"

# The head of a record: its length, a multiple of 8; its kind; the lengths of the topic, of the key and of the
# conflation key, which follow the head, and of the payload, which follows them; its place in the log; the publisher,
# and the number that it gave the message; the offset in the topic; the place of the topic's record before it plus 1,
# or 0; and the time in Unix seconds.
HEAD: Final = struct.Struct("=IHHHHIQQQQQd")
_HEAD_SIZE: Final = HEAD.size
_KIND_OF_PADDING: Final = 0xFFFF
_PADDING: Final = struct.Struct("=IH")
# By length: what makes the length of a record a multiple of 8.
_FILLERS: Final = tuple(bytes(length) for length in range(8))
# Single fields of the head.
_LENGTH: Final = struct.Struct("=I")
_TOPIC_LENGTH: Final = struct.Struct("=6xH")
_TIME: Final = struct.Struct("=56xd")

# The header: words of 8 bytes. A page of 4,096 bytes.
_WORDS: Final = 512
# At the beginning of the header.
MAGIC: Final = int.from_bytes(b"microws2", "little")
_AT_MAGIC, _AT_SIZE, _AT_ID, _AT_BEGIN, _AT_END, _AT_APPLIED, _AT_LAST, _AT_FLOOR, _AT_BOOT, _AT_CLEAN = range(10)
# Publishers: three words each, the id, the last number, and the place of its record plus 1.
_AT_PUBLISHERS: Final = 16
_PUBLISHERS: Final = (_WORDS - _AT_PUBLISHERS) // 3

# Slots of the index that a name may have, from its hash on.
_PROBES: Final = 16
_MAX_CACHED: Final = 1 << 14
# A smaller ring would hold too few messages to be of use.
MIN_BYTES: Final = 1 << 16
# The most of the ring that one message may take.
_LARGEST: Final = 4

# An f-string takes twice as long.
POSITION_FORMAT: Final = "%x-%x.%x.%x"
_POSITION: Final = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,16})\.([0-9a-f]{1,16})(?:\.([0-9a-f]{1,16}))?")


def position_of(offset: int, place: int, publisher: int, number: int) -> str:
    """The position of a message: its offset, and what only this message has."""
    return POSITION_FORMAT % (offset, place, publisher, number)


def position_before(position: str) -> str:
    """The position before the message that ``position`` names: what is published after it begins with that message."""
    offset, _, message = position.partition("-")
    return f"{int(offset, 16) - 1:x}-{message}"


def parse_position(position: str) -> tuple[int, int, int, int] | None:
    """Offset, place, publisher and number of a position; ``None`` if it names no message."""
    matched = _POSITION.fullmatch(position)
    if matched is None or matched.group(4) is None:
        return None
    offset, place, publisher, number = (int(part, 16) for part in matched.groups())
    return offset, place, publisher, number


def place_of(position: str) -> int:
    """The place that a position names, whether or not the log has it; -1 if the position is malformed."""
    matched = _POSITION.fullmatch(position)
    return -1 if matched is None else int(matched.group(2), 16)


# Makes a named tuple from a tuple of all its fields: its class takes twice as long.
new: Final = tuple.__new__


class Entry(NamedTuple):
    """
    One message of a topic.

    Attributes:
        place: Where it is in the log: later messages have higher places.
        payload: What was published, with its topic and position.
        key: The conflation key; empty without one.
        time: When it was published, in Unix seconds.
    """

    place: int
    payload: Payload
    key: bytes
    time: float


def read_record(data: bytes | memoryview, at: int) -> Entry:
    """The message of the record that begins at ``at``."""
    _, kind, topic, key, conflation, size, place, publisher, number, offset, _, written = HEAD.unpack_from(data, at)
    at += _HEAD_SIZE
    name = str(data[at : at + topic], "utf-8")
    at += topic + key
    body = at + conflation
    position = position_of(offset, place, publisher, number)
    payload = Payload(KINDS[kind & ~HAS_HISTORY], bytes(data[body : body + size]), name, position)
    return Entry(place, payload, bytes(data[at:body]), written)


class LogUsage(NamedTuple):
    """
    How full a log is.

    Attributes:
        bytes: Of the ring, in use.
        dropped: See ``Log``.
    """

    bytes: int
    dropped: int


class Replay(NamedTuple):
    """
    The messages of a topic after a position.

    Attributes:
        entries: The oldest first. Empty if the log does not have all of them.
        recovered: Whether the message that the position names is in the log, with all that followed within the
            topic's history.
        position: The topic's last one.
        place: Of the topic's last message; -1 without one.
    """

    entries: tuple[Any, ...]
    recovered: bool
    position: str
    place: int


@final
class _Topic:
    """The last record of a topic: its place plus 1, or 0, its offset, and its slot once it has one."""

    __slots__ = ("offset", "place", "slot")

    def __init__(self, place: int, offset: int, slot: int | None) -> None:
        self.place = place
        self.offset = offset
        self.slot = slot


@final
class Log:
    """
    A ring of published messages. One process at a time may write it.

    Args:
        memory: A block of ``Log.block_size(history_bytes)`` bytes; zeros, or a log that a process has left.
        history_bytes: The size of the ring, for a new log.
        boot: Names the run of the machine. A log that was not closed before the machine ended is discarded, because the
            file may miss any of its pages. Default: the log does not outlive the machine.

    Attributes:
        claims: See ``Claims``.
        id: Of this log; another one if the log had to be discarded.
        size: Of the ring.
        dropped: Messages that were overwritten to make room, since this object was made.
        end: The place after the last message.

    Raises:
        ValueError: ``memory`` holds a log of another size, or of another version.
    """

    __slots__ = (
        "_dirty",
        "_end",
        "_header",
        "_keys",
        "_largest",
        "_last",
        "_latest",
        "_memory",
        "_new_keys",
        "_numbers",
        "_owners",
        "_publishers",
        "_ring",
        "_ring_at",
        "_slots",
        "_topics",
        "claims",
        "dropped",
        "id",
        "size",
    )  # fmt: skip

    def __init__(self, memory: mmap, history_bytes: int, *, boot: int = 0) -> None:
        self._memory = memory
        view = memoryview(memory)
        header = self._header = view[: _WORDS * 8].cast("Q")
        if header[_AT_MAGIC] and header[_AT_MAGIC] != MAGIC:
            raise ValueError("expected a log of this version of microws, got another file")
        self.size: int = history_bytes
        if header[_AT_SIZE] not in (0, history_bytes):
            raise ValueError(f"expected a log of {history_bytes} bytes, got one of {header[_AT_SIZE]}")
        slots = _slots_for(history_bytes)
        at = _WORDS * 8
        self._slots = view[at : at + slots * 8].cast("Q")
        at += slots * 8
        self._keys = view[at : at + slots * 8].cast("Q")
        at += slots * 8
        claims = Claims.block_size(history_bytes)
        self.claims: Claims = Claims(view[at : at + claims])
        at += claims
        self._ring = view[at : at + history_bytes]
        self._ring_at = at
        if header[_AT_MAGIC] != MAGIC or (not header[_AT_CLEAN] and header[_AT_BOOT] != boot):
            self._discard()
        header[_AT_BOOT] = boot
        header[_AT_CLEAN] = 0
        self.id: int = header[_AT_ID]
        self.dropped: int = 0
        self._end = header[_AT_END]
        self._largest = self.largest(history_bytes)
        # The place after the beginning of the last record, or 0.
        self._last = header[_AT_LAST]
        # Topics whose last record is known, by name and by slot, and what the indexes miss: see ``commit``.
        self._topics: dict[bytes, _Topic] = {}
        self._owners: dict[int, _Topic] = {}
        self._dirty: dict[bytes, _Topic] = {}
        self._new_keys: list[tuple[int, bytes, bytes]] = []
        self._numbers: dict[int, tuple[int, int]] = {}
        self._publishers = {header[at]: at for at in _publisher_words() if header[at]}
        # By topic with conflation keys: the place of the newest message of each, the oldest first.
        self._latest: dict[bytes, dict[bytes, int]] = {}
        self._apply_rest()

    @staticmethod
    def block_size(history_bytes: int) -> int:
        """The size of a log whose ring has ``history_bytes``."""
        return _WORDS * 8 + 2 * 8 * _slots_for(history_bytes) + Claims.block_size(history_bytes) + history_bytes

    @property
    def end(self) -> int:
        """The place after the last committed message."""
        return self._header[_AT_END]

    @property
    def begin(self) -> int:
        """The place of the oldest message."""
        return self._header[_AT_BEGIN]

    @property
    def usage(self) -> LogUsage:
        """How full it is."""
        return LogUsage(self.end - self.begin, self.dropped)

    # Writing

    def append(
        self,
        topic: bytes,
        payload: Payload,
        *,
        publisher: int,
        number: int,
        has_history: bool = True,
        key: bytes = b"",
        conflation: bytes = b"",
    ) -> tuple[int, bytes]:
        """
        Add a message behind the others. ``commit`` makes it last.

        Args:
            topic: In UTF-8.
            payload: What was published.
            publisher, number: Name the message. A publisher counts up; 0 is none.
            has_history: Whether the topic has history; readers of the record are told.
            key: If the log has a message of the topic with this key, nothing is added.
            conflation: The conflation key.

        Returns:
            Its place in the log, and its bytes there; they are empty if the log had the message already.

        Raises:
            ValueError: The message is larger than a quarter of the ring.
        """
        kind = KINDS.index(payload.kind) | (HAS_HISTORY if has_history else 0)
        data = b"".join((topic, key, conflation, payload.data))
        return self.write(publisher, number, kind, topic, len(key), len(conflation), data)

    def write(
        self, publisher: int, number: int, kind: int, topic: bytes, key_size: int, conflation_size: int, data: bytes
    ) -> tuple[int, bytes]:
        """``append`` what is encoded already: ``data`` is topic, key, conflation key and payload, in one piece."""
        sizes = len(topic) + key_size + conflation_size
        key = data[len(topic) : len(topic) + key_size] if key_size else b""
        if key and (found := self._find_key(topic, key)) is not None:
            return found, b""
        length = _HEAD_SIZE + len(data)
        filler = -length % 8
        length += filler
        if length > self._largest:
            raise ValueError(
                f"expected a message of at most {self._largest - _HEAD_SIZE - len(topic)} bytes, got "
                f"{len(data) - sizes}: App(history_bytes=…) sets the size of the log, which holds four of the largest "
                "messages"
            )
        header, size, place = self._header, self.size, self._end
        if place - header[_AT_END] + length > self._largest:
            self.commit()  # it would overwrite what is not committed
        entry = self._topics.get(topic) or self._find_topic(topic)
        at = place % size
        if at + length > size or place + length - size > header[_AT_BEGIN]:
            self._make_room(length)
            place = self._end
            at = place % size
        entry.offset += 1
        head = HEAD.pack(
            length, kind, len(topic), key_size, conflation_size, len(data) - sizes, place, publisher, number,
            entry.offset, entry.place, time(),
        )  # fmt: skip
        record = head + data + _FILLERS[filler]
        # A slice of the memory itself, because a slice of a view makes another view.
        at += self._ring_at
        self._memory[at : at + length] = record
        self._last = entry.place = place + 1
        self._end = place + length
        self._dirty[topic] = entry
        if publisher:
            self._numbers[publisher] = (number, place)
        if key:
            self._new_keys.append((place, topic, key))
        conflation = data[sizes - conflation_size : sizes] if conflation_size else b""
        if conflation and entry.offset == 1:
            self._latest[topic] = {}
        if (latest := self._latest.get(topic)) is not None:
            latest.pop(conflation, None)
            latest[conflation] = place
            oldest = next(iter(latest))
            if latest[oldest] < header[_AT_BEGIN]:
                del latest[oldest]
        return place, record

    def commit(self) -> None:
        """Make what was appended last, whatever happens to this process from now on."""
        if self._end == self._header[_AT_END]:
            return
        self._header[_AT_END] = self._end
        self._update_indexes()

    @staticmethod
    def largest(history_bytes: int) -> int:
        """The size of the largest record, in bytes."""
        return history_bytes // _LARGEST

    def close(self) -> None:
        """Commit, and let the log outlive the machine's run. The memory can be closed then."""
        self.commit()
        self._header[_AT_CLEAN] = 1
        self.claims.close()
        for view in (self._header, self._slots, self._keys, self._ring):
            view.release()

    # Reading; only what is committed

    def number_of(self, publisher: int) -> int:
        """The number of the last message of ``publisher`` that the log knows; 0 without one."""
        at = self._publishers.get(publisher)
        return 0 if at is None else self._header[at + 1]

    def position_at(self, place: int) -> str:
        """The position of the message at ``place``."""
        head = HEAD.unpack_from(self._ring, place % self.size)
        return position_of(head[9], head[6], head[7], head[8])

    def position(self, topic: bytes) -> str:
        """The position of the topic's last message. If it has none: one that names the last message of all."""
        entry = self._topics.get(topic) or self._find_topic(topic)
        if entry.place and entry.place > self.begin:
            return self.position_at(entry.place - 1)
        if not self._last:
            return f"0-0.{self.id:x}"
        return position_of(0, self._last - 1, *self.source(self._last - 1))

    def read(
        self, topic: bytes, since: str | None, *, history: int, ttl: float | None = None, by_key: bool = False
    ) -> Replay:
        """The messages that ``find`` finds."""
        found = self.find(topic, since, history=history, ttl=ttl, by_key=by_key)
        return found._replace(entries=tuple(map(self.entry, found.entries)))

    def find(
        self, topic: bytes, since: str | None, *, history: int, ttl: float | None = None, by_key: bool = False
    ) -> Replay:
        """
        Where that is in the log which was published to ``topic`` after the position ``since``.

        Args:
            topic: In UTF-8.
            since: A position; ``"start"`` for all of the window; ``None`` for nothing but the last position.
            history: The most messages that the window has.
            ttl: The age of its oldest message in seconds. Default: any.
            by_key: The window has only the newest message of each conflation key, of ``history`` keys.

        Returns:
            With places in place of entries.
        """
        known = self._topics.get(topic) or self._find_topic(topic)
        begin = self.begin
        last = known.place if known.place > begin else 0
        nothing = Replay((), False, self.position(topic), last - 1)
        after = 0 if since == START else None if since is None else self._place_of(topic, since)
        if after is None:
            return nothing
        oldest = 0.0 if ttl is None else time() - ttl
        places: list[int] = []
        for place in self._newest_by_key(topic, last) if by_key else self._chain(last):
            if place < after:
                break
            if len(places) >= history or _TIME.unpack_from(self._ring, place % self.size)[0] < oldest:
                if since != START and not by_key:
                    return nothing
                break
            places.append(place)
        else:
            # Before the floor, the index may have forgotten the topic once, and begun another chain.
            is_doubtful = since != START and after < self._header[_AT_FLOOR]
            if is_doubtful and not any(place <= after for place in self._chain(last)):
                return nothing
        return Replay(tuple(reversed(places)), True, nothing.position, nothing.place)

    def entry(self, place: int) -> Entry:
        """The message at ``place``."""
        return read_record(self._ring, place % self.size)

    def records(self, place: int) -> Iterator[tuple[int, int, bytes]]:
        """
        The records from ``place`` on, which is the beginning of one: place, place of the next one, and topic.

        The log must not be written meanwhile.
        """
        ring, size, end = self._ring, self.size, self.end
        while place < end:
            at = place % size
            length, kind = _PADDING.unpack_from(ring, at)
            if kind != _KIND_OF_PADDING:
                topic = at + _HEAD_SIZE
                yield place, place + length, bytes(ring[topic : topic + _TOPIC_LENGTH.unpack_from(ring, at)[0]])
            place += length

    def record(self, place: int) -> memoryview:
        """The bytes of the record at ``place``, as ``append`` returned them. Copy them before the log is written."""
        at = place % self.size
        return self._ring[at : at + _LENGTH.unpack_from(self._ring, at)[0]]

    def source(self, place: int) -> tuple[int, int]:
        """Who published the message at ``place``, and its number."""
        publisher, number = HEAD.unpack_from(self._ring, place % self.size)[7:9]
        return publisher, number

    # Inside

    def _discard(self) -> None:
        header = self._header
        for view in (self._slots, self._keys):
            view.cast("B")[:] = bytes(view.nbytes)
        self.claims.discard()
        header.cast("B")[:] = bytes(header.nbytes)
        header[_AT_SIZE] = self.size
        header[_AT_ID] = int.from_bytes(urandom(5), "little") | 1
        header[_AT_MAGIC] = MAGIC

    def _make_room(self, length: int) -> None:
        """Let ``length`` bytes behind the end be free, in one piece: begin after the records that are there."""
        size, header, ring = self.size, self._header, self._ring
        rest = size - self._end % size
        padding = rest if rest < length else 0
        begin = header[_AT_BEGIN]
        needed = self._end + padding + length - size
        if begin < needed:
            while begin < needed:
                step, kind = _PADDING.unpack_from(ring, begin % size)
                begin += step
                self.dropped += kind != _KIND_OF_PADDING
            header[_AT_BEGIN] = begin
        if padding:
            _PADDING.pack_into(ring, self._end % size, padding, _KIND_OF_PADDING)
            self._end += padding

    def _apply_rest(self) -> None:
        """Update the indexes with what the process before has committed, and did not get to."""
        for place, _, topic in self.records(max(self._header[_AT_APPLIED], self.begin)):
            head = HEAD.unpack_from(self._ring, place % self.size)
            self._last = place + 1
            self._dirty[topic] = _Topic(place + 1, head[9], None)
            if head[7]:
                self._numbers[head[7]] = (head[8], place)
            if head[3]:
                self._new_keys.append((place, topic, self._keys_at(place)[0]))
        self._update_indexes()

    def _update_indexes(self) -> None:
        header, begin = self._header, self.begin
        for topic, entry in self._dirty.items():
            slot = entry.slot
            if slot is None:
                slot = self._take_slot(topic, entry)
            self._slots[slot] = entry.place
        for publisher, (number, place) in self._numbers.items():
            at = self._publishers.get(publisher)
            if at is None:
                at = self._new_publisher(publisher)
            if number > header[at + 1]:
                header[at + 1] = number
            header[at + 2] = place + 1
        for place, topic, key in self._new_keys:
            if place >= begin:
                slot, _, _ = _probe(self._keys, _hash_key(topic, key), begin, lambda _: False)
                self._keys[slot] = place + 1
        self._dirty.clear()
        self._numbers.clear()
        self._new_keys.clear()
        header[_AT_LAST] = self._last
        header[_AT_APPLIED] = self._end
        if len(self._latest) > _MAX_CACHED:
            self._latest.clear()

    def _new_publisher(self, publisher: int) -> int:
        """The words of a new publisher: free ones, or those of the publisher that is silent longest."""
        header = self._header
        at = min(_publisher_words(), key=lambda at: header[at + 2])
        self._publishers.pop(header[at], None)
        header[at] = header[at + 1] = 0
        header[at] = publisher
        self._publishers[publisher] = at
        return at

    def _find_topic(self, topic: bytes) -> _Topic:
        slot, place, _ = _probe(self._slots, crc32(topic), self.begin, partial(self._is_of, topic))
        if place:
            entry = _Topic(place, HEAD.unpack_from(self._ring, (place - 1) % self.size)[9], slot)
        else:
            entry = _Topic(0, 0, None)
        if len(self._topics) >= _MAX_CACHED:
            self._topics = self._dirty.copy()
            self._owners = {entry.slot: entry for entry in self._dirty.values() if entry.slot is not None}
        self._topics[topic] = entry
        if entry.slot is not None:
            self._owners[entry.slot] = entry
        return entry

    def _take_slot(self, topic: bytes, entry: _Topic) -> int:
        """A slot for a topic: its own, a free one, or that of the topic that is silent longest."""
        begin = self.begin
        slot, place, held = _probe(self._slots, crc32(topic), begin, partial(self._is_of, topic))
        if not place and held > begin:
            # That topic is lost, and with it the answer to what was published to it before this place.
            self._header[_AT_FLOOR] = max(self._header[_AT_FLOOR], held)
        if (owner := self._owners.get(slot)) is not None:
            owner.slot = None
        self._owners[slot] = entry
        entry.slot = slot
        return slot

    def _find_key(self, topic: bytes, key: bytes) -> int | None:
        for place, of_topic, known in self._new_keys:
            if known == key and of_topic == topic:
                return place
        matches = partial(self._has_key, topic, key)
        place = _probe(self._keys, _hash_key(topic, key), self.begin, matches)[1]
        return place - 1 if place else None

    def _is_of(self, topic: bytes, place: int) -> bool:
        at = place % self.size
        length: int = _TOPIC_LENGTH.unpack_from(self._ring, at)[0]
        return bytes(self._ring[at + _HEAD_SIZE : at + _HEAD_SIZE + length]) == topic

    def _has_key(self, topic: bytes, key: bytes, place: int) -> bool:
        return self._is_of(topic, place) and self._keys_at(place)[0] == key

    def _keys_at(self, place: int) -> tuple[bytes, bytes]:
        """The key and the conflation key of the message at ``place``."""
        at = place % self.size
        _, _, topic, key, conflation, *_ = HEAD.unpack_from(self._ring, at)
        at += _HEAD_SIZE + topic
        return bytes(self._ring[at : at + key]), bytes(self._ring[at + key : at + key + conflation])

    def _place_of(self, topic: bytes, position: str) -> int | None:
        """The place at which what follows ``position`` begins; ``None`` if the log does not have its message."""
        matched = _POSITION.fullmatch(position)
        if matched is None:
            return None
        offset, place, publisher = (int(part, 16) for part in matched.group(1, 2, 3))
        number = matched.group(4)
        if number is None:
            return 0 if not offset and not place and publisher == self.id and not self.begin else None
        # A client may send any place. Only the record that is meant has these numbers there.
        if not self.begin <= place < self.end or place % 8 or self.size - place % self.size < _HEAD_SIZE:
            return None
        head = HEAD.unpack_from(self._ring, place % self.size)
        if head[6:9] != (place, publisher, int(number, 16)):
            return None
        is_of_topic = self._is_of(topic, place)
        if is_of_topic and head[9] == offset + 1:
            return place  # of ``position_before``
        return place + 1 if not offset or (is_of_topic and head[9] == offset) else None

    def _chain(self, last: int) -> Iterator[int]:
        """The places of a topic's records, from the one at ``last - 1`` back."""
        begin = self.begin
        while last > begin:
            yield last - 1
            last = HEAD.unpack_from(self._ring, (last - 1) % self.size)[10]

    def _newest_by_key(self, topic: bytes, last: int) -> Iterator[int]:
        latest = self._latest.get(topic)
        if latest is None:
            # A process before this one has written them.
            latest = {}
            for place in self._chain(last):
                latest.setdefault(self._keys_at(place)[1], place)
            latest = self._latest[topic] = dict(reversed(latest.items()))
        begin = self.begin
        for key in [key for key, place in latest.items() if place < begin]:
            del latest[key]
        return reversed(latest.values())


def _slots_for(history_bytes: int) -> int:
    return max(1 << 10, 1 << (history_bytes // 256).bit_length())


def _publisher_words() -> range:
    return range(_AT_PUBLISHERS, _AT_PUBLISHERS + 3 * _PUBLISHERS, 3)


def _hash_key(topic: bytes, key: bytes) -> int:
    return crc32(key, crc32(topic))


def _probe(slots: memoryview, hashed: int, begin: int, matches: Callable[[int], bool]) -> tuple[int, int, int]:
    """
    Look a name up in an index, whose slots hold places plus 1.

    Returns:
        A slot, and what it holds, if it is of this name. Otherwise the best slot for it, 0, and what that holds.
    """
    mask = len(slots) - 1
    best, held = -1, 0
    for slot in range(hashed, hashed + _PROBES):
        place = slots[slot & mask]
        if not place:
            return (slot & mask, 0, 0) if best < 0 or held > begin else (best, 0, held)
        if place > begin and matches(place - 1):
            return slot & mask, place, place
        if best < 0 or place < held:
            best, held = slot & mask, place
    return best, 0, held
