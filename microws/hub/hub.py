"""
The hub: one message to many connections of this process.

``publish`` makes the canonical payload, the backplane brings it to ``deliver``, and ``deliver`` puts one shared message
per codec into the outbox of each subscriber: into the batch that leaves at the end of this turn of the event loop or,
where the client does not take it at once, into its queue.
"""

import asyncio
import logging
import re
from collections import Counter, deque
from collections.abc import Callable, Collection
from itertools import islice
from threading import get_ident
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel

from microws.codec import Codecs
from microws.errors import FeatureUnavailable, TooManySubscriptions
from microws.hub.backplane import MemoryBackplane
from microws.hub.flush import Flusher, WriteMany
from microws.hub.loop import AppLoop, running_loop
from microws.hub.outbox import Outbox, Outcome
from microws.hub.published import MAX_MESSAGES, OverflowPolicy, Published, TopicSettings
from microws.hub.subscribers import FrameCodec, Subscriber
from microws.hub.topics import check_topic, expression_of, key_of, settings_of
from microws.interfaces import Backplane, Payload, Receipt

__all__ = ["Hub", "Statistics"]

_BACKPLANES_TO_COME = ("local", "redis", "rediss", "nats")
# How long ``publish`` gives way to outboxes that fill up: turns of the event loop in which nothing is taken from them
# (a server needs some for a frame), and how many times so many.
_IDLE_TURNS = 4
_MAX_ROUNDS = 32
# Messages put into outboxes by publishers that never wait, before other tasks have a turn: one or two milliseconds.
_MAX_PUT = 1 << 14
# What a publish costs beside them, whomever it reaches, in such messages.
_PUBLISH_COST = 64
# A subscriber that leaves is removed from so many topics at once; all that leave from so many in one turn of the loop:
# one or two milliseconds.
_MAX_LEFT_AT_ONCE = 16
_MAX_LEFT_IN_A_TURN = 1 << 11
_log = logging.getLogger("microws.hub")


class Statistics(NamedTuple):
    """
    What ``hub.statistics()`` tells of this process.

    Attributes:
        connections: WebSockets that are open or being opened.
        topics: Topics with a subscriber.
        subscribers: WebSockets, event streams and ``app.subscribe`` blocks with a subscription.
        subscriptions: Pairs of subscriber and topic.
        published: Calls of ``publish`` so far.
        delivered: Messages put into an outbox so far.
        dropped: Messages that were not, by reason: an overflow policy, or ``"unencodable"``.
        queued: Messages waiting in outboxes now.
        largest_queue: The longest outbox now, in messages.
        flush_sizes: How many writes had one published message, ``"1"``, two, ``"2"``, up to four, ``"4"``, and so on.
            Only on this package's own server, and of event streams: other servers' WebSockets are given one message at
            a time.
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


class _Topic:
    __slots__ = ("groups", "settings")

    def __init__(self, settings: TopicSettings) -> None:
        self.settings = settings
        # Those of one codec get one message. A dict keeps the order of subscribing, and adds and removes in one step.
        self.groups: dict[FrameCodec, dict[Outbox, Subscriber]] = {}


class Hub:
    """
    Topics and their subscribers in this process.

    Not thread-safe: everything but ``publish_from_thread`` is called in the event loop's thread.

    Args:
        codecs: The app's codecs; the one called ``"json"`` makes the canonical payload.
        url: The backplane; this version has ``"memory"``.
        write: Writes the same bytes to many connections: ``connection.bulk_writes``.

    Attributes:
        connections: WebSockets that are open or being opened; whoever runs their views counts them.
        loop: Where the app runs.
        losses: Messages that subscribers did not get, by reason.

    Raises:
        FeatureUnavailable: ``url`` names a backplane that this version does not have.
        ValueError: ``url`` names no backplane at all.
    """

    # Whether what is published in one process reaches the subscribers in others.
    spans_processes = False

    def __init__(self, codecs: Codecs, url: str = "memory", *, write: WriteMany) -> None:
        _check_url(url)
        self._codecs = codecs
        self._backplane: Backplane = MemoryBackplane(self.deliver)
        self._patterns: list[tuple[re.Pattern[str], TopicSettings]] = []
        self._topics: dict[str, _Topic] = {}
        self._subscribers: dict[str, Subscriber] = {}
        self._published = 0
        self._delivered = 0
        self._flusher = Flusher(write)
        # Into outboxes, and what publishing cost, since a publisher has last given way.
        self._put = 0
        self._crowded: list[tuple[Outbox, TopicSettings]] = []
        self.loop = AppLoop()
        # Subscribers that have left some topics still to be told so, and the loop that goes on with that.
        self._leaving: deque[Subscriber] = deque()
        self._leaving_loop: asyncio.AbstractEventLoop | None = None
        self.connections = 0
        self.losses: Counter[str] = Counter()

    def configure(
        self,
        pattern: str,
        *,
        queue: int = MAX_MESSAGES,
        overflow: OverflowPolicy = "close",
        key: str | Callable[[Any], Any] | None = None,
    ) -> None:
        """
        Settle how the topics that fit ``pattern`` treat a slow subscriber. The first pattern that fits counts.

        Args:
            pattern: A topic, in which ``*`` stands for any characters.
            queue: Most messages of the topic that wait in one outbox, 1 or more.
            overflow: ``"close"``, ``"drop_oldest"``, ``"drop_newest"`` or ``"latest"``.
            key: With ``"latest"`` only: a field of the message, or a function of it.

        Raises:
            ValueError: A setting that cannot be.
        """
        check_topic(pattern)
        self._patterns.append((expression_of(pattern), settings_of(queue, overflow, key)))

    def include(self, other: "Hub") -> None:
        """Settle what ``other`` settles too, behind what is settled here."""
        self._patterns.extend(other._patterns)  # noqa: SLF001 - of the same class

    def settings(self, topic: str) -> TopicSettings:
        """The settings of the first pattern that fits ``topic``, or the defaults."""
        for pattern, settings in self._patterns:
            if pattern.fullmatch(topic):
                return settings
        return TopicSettings()

    def subscribe(self, subscriber: Subscriber, *topics: str) -> None:
        """
        Deliver what is published to ``topics`` from now on. Subscribing twice is subscribing once.

        Raises:
            TypeError, ValueError: An invalid topic; then none of them is subscribed.
            TooManySubscriptions: More than ``subscriber.max_topics``; then none of them is subscribed.
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
        """Deliver nothing more of ``topics``; one that was not subscribed is passed over."""
        for topic in topics:
            check_topic(topic)
        for topic in topics:
            self._remove(subscriber, topic)

    def leave(self, subscriber: Subscriber) -> None:
        """
        End every subscription of ``subscriber``: it gets nothing more. Never waits.

        Where it has many, the event loop takes it off most of its topics later, so that 100,000 connections that leave
        at once do not keep it for seconds. On trio all is done at once.
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
            # One that has subscribed again meanwhile has left all that it had before.
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
        Send ``value`` to every subscriber of ``topic``. Never waits for a subscriber.

        It gives way to other tasks when much was put into outboxes since somebody did, or one that it reached is half
        full, so that a burst from one task neither stops the others nor overflows the outboxes of clients that do keep
        up. Cancelled there, it has published.

        Args:
            topic: 1 to 255 UTF-8 bytes without control characters.
            value: ``str``, ``bytes``, or anything that JSON carries.
            skip: The id of a connection that is left out.

        Raises:
            TypeError, ValueError: The topic, or a value that JSON cannot carry. Nobody got anything.
            RuntimeError: The app does not run, or runs in another event loop.
        """
        # The thread tells in 30 ns. Asking for the running loop is a system call until Python 3.12.
        if get_ident() != self.loop.thread:
            self.loop.check("app.publish_from_thread(topic, value)")
        if type(topic) is not str or topic not in self._topics:
            check_topic(topic)
        payload = self._codecs.payload(value)
        self._published += 1
        self._put += _PUBLISH_COST
        receipt = await self._backplane.publish(topic, payload, skip=skip)
        if self._put >= _MAX_PUT or self._flusher.is_behind:
            await self._let_leave()
        if self._crowded:
            await self._give_way()
        return receipt

    async def _let_leave(self) -> None:
        self._put = 0
        await anyio.lowlevel.checkpoint()
        while self._flusher.is_behind:
            await anyio.lowlevel.checkpoint()

    async def _give_way(self) -> None:
        crowded, self._crowded = self._crowded, []
        for _ in range(_MAX_ROUNDS):
            before = [(outbox, settings, outbox.progress) for outbox, settings in crowded]
            for _ in range(_IDLE_TURNS):
                await anyio.lowlevel.checkpoint()
            # What nobody takes from belongs to a client that does not keep up: the policy of the topic rules it, and
            # nobody gives way to it again before something was taken.
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
        ``publish`` from another thread; blocks that thread until the event loop has published.

        Raises:
            RuntimeError: Called in the event loop's own thread, before the app has started, or when its loop has ended.
                Where the loop ends meanwhile, the message may have been published or not.
        """
        return self.loop.publish_from_thread(self.publish, topic, value)

    def deliver(self, topic: str, payload: Payload, skip: str | None = None) -> int:
        """
        The only door to the outboxes: put ``payload`` into that of each subscriber of ``topic``. Never waits.

        Returns:
            How many outboxes took it.
        """
        entry = self._topics.get(topic)
        if entry is None:
            return 0
        skipped = self._subscribers.get(skip) if skip is not None else None
        key = self._key(entry.settings, payload)
        reached = 0
        # A subscriber that is refused leaves its group.
        for codec, group in tuple(entry.groups.items()):
            outboxes: Collection[Outbox] = group
            if skipped is not None and skipped.outbox in group:
                outboxes = [outbox for outbox in group if outbox is not skipped.outbox]
                if not outboxes:
                    continue
            message = self._frame(codec, topic, payload, entry.settings, key)
            if message is None:
                self._refuse_all([group[outbox] for outbox in outboxes if not group[outbox].has_left])
                continue
            held = self._flusher.put(message, outboxes)
            reached += len(outboxes) - len(held)
            for outbox in held:
                reached += self._queue(message, group[outbox])
        self._delivered += reached
        self._put += reached
        return reached

    def _queue(self, message: Published, subscriber: Subscriber) -> bool:
        """Put ``message`` into an outbox that holds what it gets. ``False``: it is lost, and that was seen to."""
        if subscriber.has_left:
            return False
        outbox = subscriber.outbox
        outcome = outbox.put_nowait(message)
        if outcome is Outcome.CONFLATED:
            return True
        if outcome is Outcome.REFUSED:
            subscriber.refuse(1013, "too slow")
        if outcome is not Outcome.QUEUED:
            return False
        subscriber.wake()
        if outbox.is_half_full(message.settings) and outbox.progress_at_last_yield != outbox.progress:
            self._crowded.append((outbox, message.settings))
        return True

    def _refuse_all(self, subscribers: list[Subscriber]) -> None:
        self.losses["unencodable"] += len(subscribers)
        for subscriber in subscribers:
            subscriber.refuse(1011, "message cannot be encoded")

    def statistics(self) -> Statistics:
        """What happened in this process so far, and what waits now. O(subscribers)."""
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
        """What the message is conflated by. A message without the field has the key ``None``."""
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
            # An app's own codec that cannot carry what JSON can: no fault of the publisher.
            _log.exception("a message on %r cannot be encoded for some of its subscribers; they are closed", topic)
            return None


def _check_url(url: str) -> None:
    if url == "memory":
        return
    scheme = url.partition(":")[0]
    if scheme in _BACKPLANES_TO_COME:
        raise FeatureUnavailable(f'this version has no {scheme!r} backplane; App(hub="memory") serves one process')
    raise ValueError(f'hub={url!r} names no backplane; this version has "memory"')
