"""
The hub: one message to many connections of this process.

``hub`` publishes and delivers; ``topics`` knows their names and settings, ``subscribers`` who gets what is published.
``published`` is a message for many connections, and the batch that a turn of the event loop makes of several;
``outbox`` is the queue of one connection, with the policies for one that does not keep up; ``flush`` says when what
leaves. ``backplane`` carries a publish between processes, ``loop`` is the event loop that the app runs in.
"""

from microws.hub.flush import Flusher, WriteMany
from microws.hub.hub import Hub, Statistics
from microws.hub.loop import AppLoop, running_loop
from microws.hub.outbox import MAX_BYTES, Outbox, Outcome
from microws.hub.published import (
    BACKED_UP,
    MAX_MESSAGES,
    MAX_PART_BYTES,
    Batch,
    OverflowPolicy,
    Published,
    TopicSettings,
    gap_marker,
)
from microws.hub.subscribers import FrameCodec, Subscriber
from microws.hub.topics import check_topic, topic_marker
from microws.interfaces import Sink

__all__ = [
    "BACKED_UP",
    "MAX_BYTES",
    "MAX_MESSAGES",
    "MAX_PART_BYTES",
    "AppLoop",
    "Batch",
    "Flusher",
    "FrameCodec",
    "Hub",
    "Outbox",
    "Outcome",
    "OverflowPolicy",
    "Published",
    "Sink",
    "Statistics",
    "Subscriber",
    "TopicSettings",
    "WriteMany",
    "check_topic",
    "gap_marker",
    "running_loop",
    "topic_marker",
]
