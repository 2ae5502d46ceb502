"""
The hub: one message to many connections of this process.

``hub`` publishes and delivers; ``topics`` knows their names and settings, ``subscribers`` who gets what is published.
"""

from microws.hub.hub import Hub, Statistics
from microws.hub.subscribers import FrameCodec, Subscriber
from microws.hub.topics import check_topic, topic_marker

__all__ = ["FrameCodec", "Hub", "Statistics", "Subscriber", "check_topic", "topic_marker"]
