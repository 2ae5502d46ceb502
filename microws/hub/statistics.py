"""What a hub counts: in this process, and in all workers."""

from collections import Counter
from typing import NamedTuple

from microws.counters import COUNTERS

__all__ = ["ClusterStatistics", "Losses", "Statistics", "TopicStatistics"]


class Losses(Counter[str]):
    """Messages that subscribers did not get, by reason."""

    def __setitem__(self, reason: str, count: int) -> None:
        if COUNTERS.is_on:
            COUNTERS.drop(reason, count - self[reason])
        super().__setitem__(reason, count)


class Statistics(NamedTuple):
    """
    What ``hub.statistics()`` counts in this process.

    Attributes:
        connections: WebSockets that are open or being opened.
        topics: Topics that have subscribers.
        subscribers: WebSockets, event streams and ``app.subscribe`` blocks with a subscription.
        subscriptions: Pairs of subscriber and topic.
        published: Calls of ``publish`` so far.
        delivered: Messages put into an outbox so far.
        dropped: Messages that were not delivered, by reason: an overflow policy, or ``"unencodable"``.
        queued: Messages pending in outboxes now.
        largest_queue: Messages in the longest outbox now.
        flush_sizes: How many writes had one published message (``"1"``), two (``"2"``), up to four (``"4"``), and so
            on: of WebSockets on this package's own server, and of event streams. Other servers get one message at a
            time.
        history_bytes: Bytes of the log that are in use. 0 if a hub process has the log: see ``cluster_statistics``.
        history_dropped: Messages that made room for others in that log so far.
    """

    connections: int
    topics: int
    subscribers: int
    subscriptions: int
    published: int
    delivered: int
    dropped: dict[str, int]
    queued: int
    largest_queue: int
    flush_sizes: dict[str, int]
    history_bytes: int
    history_dropped: int


class TopicStatistics(NamedTuple):
    """
    What a hub counts of a topic in this process.

    Attributes:
        name: The topic.
        subscribers: Its subscribers.
        messages: Messages that were delivered since it had the first of them.
        overflow: Its policy.
    """

    name: str
    subscribers: int
    messages: int
    overflow: str


class ClusterStatistics(NamedTuple):
    """
    What ``await hub.cluster_statistics()`` counts in all workers.

    Attributes:
        workers: Workers that answered.
        connections: WebSockets that are open or being opened.
        topics: Topics with subscribers, and their number.
        history_bytes: Bytes of the log that are in use, by all topics of all apps; see ``App(history_bytes=…)``.
        history_dropped: Messages that made room for others in the log, since the app or the hub process started.
    """

    workers: int
    connections: int
    topics: dict[str, int]
    history_bytes: int
    history_dropped: int
