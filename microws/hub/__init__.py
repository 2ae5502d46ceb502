"""
The hub: one message to many connections of this process. It knows no socket and no server.

``hub`` has the subscribers, publishes and delivers; ``topics`` checks names and settings. ``published`` is a message
for many connections, and a batch of them; ``outbox`` is the queue of one connection, with the policies for one that
does not keep up; ``flush`` decides when batches leave. ``backplane`` carries a publish to other processes; ``loop`` is
the event loop that the app runs in.
"""

from microws.hub.hub import FrameCodec, Hub, Statistics, Subscriber
from microws.hub.loop import running_loop
from microws.hub.outbox import MAX_BYTES, Outbox, close_too_slow
from microws.hub.published import (
    BACKED_UP,
    MAX_MESSAGES,
    MAX_PART_BYTES,
    Batch,
    OverflowPolicy,
    Published,
    TopicSettings,
)
from microws.hub.topics import check_topic, topic_marker

__all__ = [
    "BACKED_UP",
    "MAX_BYTES",
    "MAX_MESSAGES",
    "MAX_PART_BYTES",
    "Batch",
    "FrameCodec",
    "Hub",
    "Outbox",
    "OverflowPolicy",
    "Published",
    "Statistics",
    "Subscriber",
    "TopicSettings",
    "check_topic",
    "close_too_slow",
    "running_loop",
    "topic_marker",
]
