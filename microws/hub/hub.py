"""
The hub: one message to many connections of this process.

``publish`` encodes a value once, as its payload; the backplane brings it to ``deliver``; and ``deliver`` puts one
shared message per codec into the outbox of each subscriber: into the batch that leaves at the end of this turn of the
event loop or, if the client does not keep up, into the queue.
"""

import asyncio
import logging
import re
from collections import Counter, deque
from collections.abc import Callable, Collection
from itertools import islice
from math import inf
from threading import get_ident
from typing import Any, NamedTuple, Protocol

import anyio.lowlevel

from microws.codec import Codecs
from microws.errors import TooManySubscriptions
from microws.hub.backplane import open_backplane
from microws.hub.flush import Flusher, WriteMany
from microws.hub.loop import AppLoop, running_loop
from microws.hub.outbox import Outbox, Outcome, close_too_slow
from microws.hub.published import Published, TopicSettings
from microws.hub.topics import check_settings, check_topic, expression_of, key_of
from microws.interfaces import Frame, Payload, Receipt

__all__ = ["FrameCodec", "Hub", "Statistics", "Subscriber"]

# How long ``publish`` yields to outboxes that fill up: at most 32 rounds of four turns of the event loop. A server
# needs some turns to send a message; an outbox from which nothing was taken in a round belongs to a slow client.
_TURNS_PER_ROUND = 4
_MAX_ROUNDS = 32
# Deliveries after which a publisher yields to other tasks, even if it never waits otherwise: one or two milliseconds.
_MAX_DELIVERIES = 1 << 14
# What a publish costs besides its deliveries, in deliveries.
_PUBLISH_COST = 64
# A subscriber that leaves is removed from at most so many topics at once; all that leave, from at most so many in a
# turn of the event loop: one or two milliseconds.
_MAX_LEFT_AT_ONCE = 16
_MAX_LEFT_IN_A_TURN = 1 << 11
_log = logging.getLogger("microws.hub")


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


class FrameCodec(Protocol):
    """What the hub needs of a connection's codec."""

    def frame(self, payload: Payload) -> Frame:
        """Encode a published payload as a frame."""
        ...


class Subscriber:
    """
    One receiver of published messages.

    Args:
        id: Unique in this process; what ``publish(skip=…)`` names.
        codec: Frames each payload; subscribers with the same codec share the frame. A dict has one for each topic.
        outbox: Where messages are put.
        wake: Called after a message was queued.
        refuse: Called with a close code and a reason when the subscriber would miss a message.
        max_topics: The most topics that it may subscribe to. Default: unlimited.

    Attributes:
        topics: Those that it is subscribed to.
        has_left: It gets no more messages, even if some topics still list it.
    """

    __slots__ = ("codec", "has_left", "id", "max_topics", "outbox", "refuse", "topics", "wake")

    def __init__(
        self,
        *,
        id: str,  # noqa: A002
        codec: FrameCodec | dict[str, FrameCodec],
        outbox: Outbox,
        wake: Callable[[], None],
        refuse: Callable[[int, str], None],
        max_topics: float = inf,
    ) -> None:
        self.id: str = id
        self.codec: FrameCodec | dict[str, FrameCodec] = codec
        self.outbox: Outbox = outbox
        self.wake: Callable[[], None] = wake
        self.refuse: Callable[[int, str], None] = refuse
        self.max_topics: float = max_topics
        self.topics: set[str] = set()
        self.has_left: bool = False

    def codec_of(self, topic: str) -> FrameCodec:
        """The codec for ``topic``."""
        codec = self.codec
        return codec[topic] if isinstance(codec, dict) else codec


class _Topic:
    __slots__ = ("groups", "settings")

    def __init__(self, settings: TopicSettings) -> None:
        self.settings = settings
        # Subscribers with one codec share a message. A dict keeps the order of subscribing; adding and removing are
        # O(1).
        self.groups: dict[FrameCodec, dict[Outbox, Subscriber]] = {}


class Hub:
    """
    Topics and their subscribers in this process.

    Not thread-safe: call everything except ``publish_from_thread`` in the event loop's thread.

    Args:
        codecs: The app's codecs.
        url: The backplane; this version has ``"memory"``.
        write: Writes the same bytes to many connections.

    Attributes:
        connections: WebSockets that are open or being opened; the dispatcher counts them.
        loop: The event loop that the app runs in.
        losses: Messages that subscribers did not get, by reason.

    Raises:
        FeatureUnavailable: This version does not have the backplane of ``url``.
        ValueError: There is no such backplane.
    """

    # Whether a publish in one process reaches the subscribers of other processes.
    spans_processes = False

    def __init__(self, codecs: Codecs, url: str = "memory", *, write: WriteMany) -> None:
        self._codecs = codecs
        self._backplane = open_backplane(url, self.deliver)
        self._patterns: list[tuple[re.Pattern[str], TopicSettings]] = []
        self._topics: dict[str, _Topic] = {}
        self._subscribers: dict[str, Subscriber] = {}
        self._published = 0
        self._delivered = 0
        self._flusher = Flusher(write)
        # Deliveries, and what publishing cost, since a publisher last yielded.
        self._deliveries_since_yield = 0
        # Outboxes that fill up, and the settings of the topic that found them so.
        self._crowded: list[tuple[Outbox, TopicSettings]] = []
        self.loop: AppLoop = AppLoop()
        # Subscribers that have left, but are still listed by some topics; and the loop that will remove them.
        self._leaving: deque[Subscriber] = deque()
        self._leaving_loop: asyncio.AbstractEventLoop | None = None
        self.connections = 0
        self.losses: Counter[str] = Counter()

    def configure(self, pattern: str, settings: TopicSettings) -> None:
        """
        Set how the topics that match ``pattern`` treat a slow subscriber. The first pattern that matches wins.

        Args:
            pattern: A topic, in which ``*`` matches any characters.
            settings: Theirs.

        Raises:
            ValueError: An invalid setting.
        """
        check_topic(pattern)
        check_settings(settings)
        self._patterns.append((expression_of(pattern), settings))

    def include(self, other: "Hub") -> None:
        """Add the patterns of ``other`` after those of this hub."""
        self._patterns.extend(other._patterns)  # noqa: SLF001 - of the same class

    def settings(self, topic: str) -> TopicSettings:
        """The settings of the first pattern that matches ``topic``, or the defaults."""
        for pattern, settings in self._patterns:
            if pattern.fullmatch(topic):
                return settings
        return TopicSettings()

    def subscribe(self, subscriber: Subscriber, *topics: str) -> None:
        """
        Deliver what is published to ``topics`` from now on. Subscribing a second time changes nothing.

        Raises:
            TypeError, ValueError: An invalid topic; then no topic is subscribed.
            TooManySubscriptions: More than ``subscriber.max_topics``; then no topic is subscribed.
        """
        for topic in topics:
            check_topic(topic)
        if len(subscriber.topics) + len(topics) > subscriber.max_topics:
            count = len(subscriber.topics.union(topics))
            if count > subscriber.max_topics:
                raise TooManySubscriptions(count, int(subscriber.max_topics))
        if subscriber.has_left:
            self._leave_some(subscriber, len(subscriber.topics))
            subscriber.has_left = False
        for topic in topics:
            entry = self._topics.get(topic)
            if entry is None:
                entry = self._topics[topic] = _Topic(self.settings(topic))
            entry.groups.setdefault(subscriber.codec_of(topic), {})[subscriber.outbox] = subscriber
            subscriber.topics.add(topic)
            self._subscribers[subscriber.id] = subscriber

    def unsubscribe(self, subscriber: Subscriber, *topics: str) -> None:
        """Deliver no more messages of ``topics``. One that was not subscribed is ignored."""
        for topic in topics:
            check_topic(topic)
        for topic in topics:
            self._remove(subscriber, topic)

    def leave(self, subscriber: Subscriber) -> None:
        """
        End every subscription of ``subscriber``: it gets no more messages. Never waits.

        A subscriber of many topics is removed from them later, some in each turn of the event loop: otherwise 100,000
        connections that leave at once would block it for seconds. On trio it is removed at once.
        """
        if subscriber.has_left:
            return
        if len(subscriber.topics) <= _MAX_LEFT_AT_ONCE or (loop := running_loop()) is None:
            self._leave_some(subscriber, len(subscriber.topics))
            return
        subscriber.has_left = True
        subscriber.outbox.retire()
        del self._subscribers[subscriber.id]
        self._leaving.append(subscriber)
        if self._leaving_loop is not loop:
            self._leaving_loop = loop
            loop.call_soon(self._go_on_leaving)

    def _go_on_leaving(self) -> None:
        left = _MAX_LEFT_IN_A_TURN
        while self._leaving and left > 0:
            subscriber = self._leaving[0]
            # One that subscribed again meanwhile was removed from all its topics then.
            if subscriber.has_left:
                left -= self._leave_some(subscriber, left)
            if not (subscriber.has_left and subscriber.topics):
                self._leaving.popleft()
        self._leaving_loop = None
        if self._leaving:
            self._leaving_loop = asyncio.get_running_loop()
            self._leaving_loop.call_soon(self._go_on_leaving)

    def _leave_some(self, subscriber: Subscriber, count: int) -> int:
        topics = list(islice(subscriber.topics, count))
        for topic in topics:
            self._remove(subscriber, topic)
        return len(topics)

    def _remove(self, subscriber: Subscriber, topic: str) -> None:
        if topic not in subscriber.topics:
            return
        subscriber.topics.discard(topic)
        groups = self._topics[topic].groups
        codec = subscriber.codec_of(topic)
        group = groups[codec]
        del group[subscriber.outbox]
        if not group:
            del groups[codec]
            if not groups:
                del self._topics[topic]
        if not subscriber.topics and not subscriber.has_left:
            del self._subscribers[subscriber.id]

    async def publish(self, topic: str, value: Any, *, skip: str | None = None) -> Receipt:
        """
        Send ``value`` to every subscriber of ``topic``. Never waits for a slow client.

        Yields to other tasks after 16,384 deliveries, and when an outbox that it reached is half full: a burst from one
        task neither blocks the others nor overflows the outboxes of clients that keep up. If it is cancelled while it
        yields, the message was published.

        Args:
            topic: 1 to 255 UTF-8 bytes without control characters.
            value: ``str``, ``bytes``, or a value that JSON can represent.
            skip: The id of a connection that does not get it.

        Raises:
            TypeError, ValueError: An invalid topic, or JSON cannot represent the value. Nothing was delivered.
            RuntimeError: The app does not run, or runs in another event loop.
        """
        # Comparing threads takes 30 ns; asking for the running loop is a system call until Python 3.12.
        if get_ident() != self.loop.thread:
            self.loop.check("app.publish_from_thread(topic, value)")
        if type(topic) is not str or topic not in self._topics:
            check_topic(topic)
        payload = self._codecs.payload(value)
        self._published += 1
        self._deliveries_since_yield += _PUBLISH_COST
        receipt = await self._backplane.publish(topic, payload, skip=skip)
        if self._deliveries_since_yield >= _MAX_DELIVERIES or self._flusher.is_behind:
            self._deliveries_since_yield = 0
            await anyio.lowlevel.checkpoint()
            while self._flusher.is_behind:
                await anyio.lowlevel.checkpoint()
        if self._crowded:
            await self._yield_to_crowded()
        return receipt

    async def _yield_to_crowded(self) -> None:
        crowded, self._crowded = self._crowded, []
        for _ in range(_MAX_ROUNDS):
            before = [(outbox, settings, outbox.progress) for outbox, settings in crowded]
            for _ in range(_TURNS_PER_ROUND):
                await anyio.lowlevel.checkpoint()
            # An outbox without progress belongs to a slow client. Its topic's policy rules it, and no publisher yields
            # to it again before it makes progress.
            crowded = []
            for outbox, settings, progress in before:
                if outbox.progress == progress:
                    outbox.progress_at_last_yield = progress
                elif outbox.is_half_full(settings):
                    crowded.append((outbox, settings))
            if not crowded:
                return

    def publish_from_thread(self, topic: str, value: Any) -> Receipt:
        """
        ``publish`` from another thread; blocks that thread until the message is published.

        Raises:
            RuntimeError: Called in the event loop's thread, before the app started, or after its loop ended. If the
                loop ends during the call, the message may or may not have been published.
        """
        return self.loop.publish_from_thread(self.publish, topic, value)

    def deliver(self, topic: str, payload: Payload, skip: str | None = None) -> int:
        """
        Put ``payload`` into the outbox of each subscriber of ``topic``. Never waits.

        This is the only way into the outboxes for a published message: one way means one order.

        Returns:
            The number of outboxes that took it.
        """
        entry = self._topics.get(topic)
        if entry is None:
            return 0
        skipped = self._subscribers.get(skip) if skip is not None else None
        key = self._key(entry.settings, payload)
        reached = 0
        # A copy: a subscriber that is refused is removed from its group.
        for codec, group in tuple(entry.groups.items()):
            outboxes: Collection[Outbox] = group
            if skipped is not None and skipped.outbox in group:
                outboxes = [outbox for outbox in group if outbox is not skipped.outbox]
                if not outboxes:
                    continue
            message = self._frame(codec, topic, payload, entry.settings, key)
            if message is None:
                unreached = [group[outbox] for outbox in outboxes if not group[outbox].has_left]
                self.losses["unencodable"] += len(unreached)
                for subscriber in unreached:
                    subscriber.refuse(1011, "message cannot be encoded")
                continue
            backed_up = self._flusher.put(message, outboxes)
            reached += len(outboxes) - len(backed_up)
            for outbox in backed_up:
                reached += self._queue(message, group[outbox])
        self._delivered += reached
        self._deliveries_since_yield += reached
        return reached

    def _queue(self, message: Published, subscriber: Subscriber) -> bool:
        """Queue ``message`` by the policy of its topic. ``False``: it was lost, and the subscriber was told."""
        if subscriber.has_left:
            return False
        outbox = subscriber.outbox
        outcome = outbox.put_nowait(message)
        if outcome is Outcome.CONFLATED:
            return True
        if outcome is Outcome.REFUSED:
            close_too_slow(subscriber.refuse)
        if outcome is not Outcome.QUEUED:
            return False
        subscriber.wake()
        if outbox.is_half_full(message.settings) and outbox.progress_at_last_yield != outbox.progress:
            self._crowded.append((outbox, message.settings))
        return True

    def statistics(self) -> Statistics:
        """Count what happened in this process so far, and what is pending now. O(subscribers)."""
        queues = [subscriber.outbox.count for subscriber in self._subscribers.values()]
        flush_sizes: Counter[str] = Counter()
        for count, writes in sorted(self._flusher.sizes.items()):
            flush_sizes[str(1 << (count - 1).bit_length())] += writes
        return Statistics(
            connections=self.connections,
            topics=len(self._topics),
            subscribers=len(self._subscribers),
            subscriptions=sum(len(subscriber.topics) for subscriber in self._subscribers.values()),
            published=self._published,
            delivered=self._delivered,
            dropped=dict(self.losses),
            queued=sum(queues),
            largest_queue=max(queues, default=0),
            flush_sizes=dict(flush_sizes),
        )

    def _key(self, settings: TopicSettings, payload: Payload) -> Any:
        """What the message is conflated by; ``None`` for a message without the field."""
        if settings.overflow != "latest" or settings.key is None:
            return None
        value: Any = payload.data
        if payload.kind != "bytes":
            value = payload.data.decode()
        if payload.kind == "json":
            value = self._codecs.get("json").decode(value)
        return key_of(settings, value)

    @staticmethod
    def _frame(codec: FrameCodec, topic: str, payload: Payload, settings: TopicSettings, key: Any) -> Published | None:
        try:
            return Published(codec.frame(payload), topic, settings, key=key)
        except Exception:
            # A codec of the app that cannot encode what JSON can. The publisher did nothing wrong.
            _log.exception("a message on %r cannot be encoded for some of its subscribers; they are closed", topic)
            return None
