"""
The hub: one message to many connections of this process. It knows no socket and no server.

``hub`` publishes and delivers to ``subscribers``; ``statistics`` is what it counts, and ``topics`` checks names and
settings; ``connections`` finds WebSockets by their tags, and ``expiry`` closes them at their time. ``published`` is a
message for many connections, and a batch of them; ``outbox`` is the queue of one connection, with the policies for one
that does not keep up; ``flush`` decides when batches leave. ``backplane`` carries a publish to other processes,
``gather`` decides when it leaves, and ``pending`` waits for answers. ``log`` keeps what was published, ``claims`` what
is claimed, and ``history`` lets a subscriber resume; ``live`` is ``microws.v1``, and ``presence`` who is on a topic.
``loop`` is the event loop that the app runs in.
"""

from microws.hub.backplane import HISTORY_BYTES, Backplane, MemoryBackplane
from microws.hub.connections import Tag, check_tags
from microws.hub.history import FrameCodec, join_positions, split_positions
from microws.hub.hub import Hub
from microws.hub.live import LIVE_CODEC, SUBPROTOCOL, live_announcement, live_frame
from microws.hub.log import MIN_BYTES, START
from microws.hub.loop import running_loop
from microws.hub.outbox import MAX_BYTES, Outbox, close_too_slow
from microws.hub.presence import check_presence
from microws.hub.published import (
    BACKED_UP,
    MAX_MESSAGES,
    MAX_PART_BYTES,
    Batch,
    OverflowPolicy,
    Published,
    TopicSettings,
)
from microws.hub.statistics import ClusterStatistics, Statistics
from microws.hub.subscribers import Announce, Subscriber
from microws.hub.topics import check_topic, encode_key, expression_of, gap_announcement, topic_marker

__all__ = [
    "BACKED_UP",
    "HISTORY_BYTES",
    "LIVE_CODEC",
    "MAX_BYTES",
    "MAX_MESSAGES",
    "MAX_PART_BYTES",
    "MIN_BYTES",
    "START",
    "SUBPROTOCOL",
    "Announce",
    "Backplane",
    "Batch",
    "ClusterStatistics",
    "FrameCodec",
    "Hub",
    "MemoryBackplane",
    "Outbox",
    "OverflowPolicy",
    "Published",
    "Statistics",
    "Subscriber",
    "Tag",
    "TopicSettings",
    "check_presence",
    "check_tags",
    "check_topic",
    "close_too_slow",
    "encode_key",
    "expression_of",
    "gap_announcement",
    "join_positions",
    "live_announcement",
    "live_frame",
    "running_loop",
    "split_positions",
    "topic_marker",
]
