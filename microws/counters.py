"""
What a process counts for ``app.metrics``, in memory that the workers of a server share.

Only one worker writes each number, in one piece: so no lock is needed, and the numbers of a worker that is blocked or
was killed can be read. The worker after it goes on from them.
"""

from bisect import bisect_left
from enum import IntEnum
from itertools import compress
from typing import Final, NamedTuple

from microws.closing import CloseCode

__all__ = ["BUCKETS", "COUNTERS", "REASONS", "SLOT_BYTES", "Counters", "Number", "Slot", "forget_worker"]


class Number(IntEnum):
    """Where a number is in the slot of a worker. Those from ``PID`` on are of this moment, not counters."""

    RECEIVED = 0
    RECEIVED_BYTES = 1
    SENT = 2
    SENT_BYTES = 3
    CONNECTIONS = 4
    PUBLISHED = 5
    PUBLISH_NANOSECONDS = 6
    DELIVERED = 7
    RESTARTS = 8
    PID = 16
    OPEN = 17
    TOPICS = 18
    SUBSCRIBERS = 19
    SUBSCRIPTIONS = 20
    QUEUED = 21
    LONGEST_QUEUE = 22


# Seconds; the last bucket has all that took longer. Precedent: the client of Prometheus, and two smaller ones.
BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
# Why messages were dropped: what the hub and outboxes count as losses.
REASONS: Final = ("close", "drop_oldest", "drop_newest", "latest", "unencodable", "lost", "other")

_BUCKETS_AT: Final = 32
_REASONS_AT: Final = 48
_CODES_AT: Final = 64
# 1000 to 4999: RFC 6455 §7.4.2.
_FIRST_CODE: Final = 1000
_CODES: Final = 4000
_SLOT: Final = _CODES_AT + _CODES
SLOT_BYTES: Final = 8 * _SLOT
# Plain numbers, because these are used for each message.
_MESSAGES: Final = 4
_RECEIVED, _RECEIVED_BYTES, _SENT, _SENT_BYTES = map(int, list(Number)[:_MESSAGES])


class Counters:
    """
    The counters of this process.

    Attributes:
        is_on: Whether an app shows them; otherwise nothing is counted.
    """

    def __init__(self) -> None:
        self.is_on = False
        self.use(memoryview(bytearray(SLOT_BYTES)), 0, pid=1)

    def use(self, memory: memoryview, place: int, *, pid: int) -> None:
        """Count in a slot of ``memory`` from now on, and go on from what is there."""
        self._memory = memory
        self._place = place
        self._numbers = memory.cast("Q")[place * _SLOT : (place + 1) * _SLOT]
        # Also here, because Python reads an attribute in a fifth of the time.
        self._received, self._received_bytes, self._sent, self._sent_bytes = self._numbers[:_MESSAGES].tolist()
        self._numbers[Number.PID] = pid

    def receive(self, messages: int, size: int) -> None:
        """Count messages of clients."""
        numbers = self._numbers
        numbers[_RECEIVED] = self._received = self._received + messages
        numbers[_RECEIVED_BYTES] = self._received_bytes = self._received_bytes + size

    def send(self, messages: int, size: int) -> None:
        """Count messages to clients, before they leave: so none that a client gets is missing."""
        numbers = self._numbers
        numbers[_SENT] = self._sent = self._sent + messages
        numbers[_SENT_BYTES] = self._sent_bytes = self._sent_bytes + size

    def add(self, number: Number, count: int = 1) -> None:
        """Count something but messages and their bytes; a negative count only for a number of this moment."""
        self._numbers[number] += count

    def set(self, number: Number, value: int) -> None:
        """Set a number of this moment."""
        self._numbers[number] = value

    def publish(self, nanoseconds: int) -> None:
        """Count a publish, and how long it took."""
        self._numbers[Number.PUBLISHED] += 1
        self._numbers[Number.PUBLISH_NANOSECONDS] += nanoseconds
        self._numbers[_BUCKETS_AT + bisect_left(BUCKETS, nanoseconds / 1e9)] += 1

    def drop(self, reason: str, count: int = 1) -> None:
        """Count messages that subscribers did not get."""
        self._numbers[_REASONS_AT + REASONS.index(reason if reason in REASONS else "other")] += count

    def close(self, code: int) -> None:
        """Count the end of a WebSocket, by its close code."""
        if 0 <= code - _FIRST_CODE < _CODES:
            self._numbers[_CODES_AT + code - _FIRST_CODE] += 1

    def slots(self) -> "list[Slot]":
        """What each worker has counted. A place that no worker has had is left out."""
        numbers = self._memory.cast("Q").tolist()
        slots = [Slot(at // _SLOT, numbers[at : at + _SLOT]) for at in range(0, len(numbers), _SLOT)]
        return [slot for slot in slots if any(slot.numbers)]


class Slot(NamedTuple):
    """
    What one worker has counted, and those before it in the same place.

    Attributes:
        place: Of the worker.
        numbers: By ``Number``.
    """

    place: int
    numbers: list[int]

    @property
    def is_alive(self) -> bool:
        """Whether there is a worker: otherwise the numbers of this moment mean nothing."""
        return self.numbers[Number.PID] != 0

    @property
    def buckets(self) -> list[int]:
        """The publishes by what they took: up to each of ``BUCKETS``, and longer."""
        return self.numbers[_BUCKETS_AT : _BUCKETS_AT + len(BUCKETS) + 1]

    @property
    def dropped(self) -> dict[str, int]:
        """The messages that subscribers did not get, by reason."""
        return dict(zip(REASONS, self.numbers[_REASONS_AT:_CODES_AT], strict=False))

    @property
    def closed(self) -> dict[int, int]:
        """The ends of WebSockets, by close code."""
        # compress: nearly all are 0, and a scrape has this for each worker.
        counts = self.numbers[_CODES_AT:]
        return dict(compress(enumerate(counts, start=_FIRST_CODE), counts))


def forget_worker(memory: memoryview, place: int, *, is_replaced: bool) -> None:
    """A worker has ended: keep its counters, forget its numbers of that moment, and count what it had no time to."""
    numbers = memory.cast("Q")[place * _SLOT : (place + 1) * _SLOT]
    numbers[Number.RESTARTS] += is_replaced
    numbers[_CODES_AT + CloseCode.ABNORMAL_CLOSURE - _FIRST_CODE] += numbers[Number.OPEN]
    for number in range(Number.PID, _BUCKETS_AT):
        numbers[number] = 0


# A process serves for one server, whatever apps it has.
COUNTERS: Final = Counters()
