"""
What leaves one connection, ``ws.send`` and published messages alike, in one order.

``published`` is a message for many connections, and the batch that a turn of the event loop makes of several;
``outbox`` is the queue of one connection, with the policies for one that does not keep up; ``flusher`` says when what
leaves, ``writer`` has it leave many outboxes, ``bulk`` many sockets by one system call.
"""

from microws.outbox.flusher import Flusher
from microws.outbox.outbox import MAX_BYTES, Outbox, Outcome, Sink
from microws.outbox.published import (
    HELD,
    MAX_MESSAGES,
    MAX_PART_BYTES,
    Batch,
    Overflow,
    Published,
    TopicSettings,
    gap_marker,
)
from microws.outbox.writer import Writer

__all__ = [
    "HELD",
    "MAX_BYTES",
    "MAX_MESSAGES",
    "MAX_PART_BYTES",
    "Batch",
    "Flusher",
    "Outbox",
    "Outcome",
    "Overflow",
    "Published",
    "Sink",
    "TopicSettings",
    "Writer",
    "gap_marker",
]
