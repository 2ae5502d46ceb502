"""
The hub: one message to many connections of this process.

``publish`` encodes a value once, as its payload; the backplane brings it to ``deliver``; and ``deliver`` puts one
shared message per codec into the outbox of each subscriber: into the batch that leaves at the end of this turn of the
event loop or, if the client does not keep up, into the queue.
"""

import asyncio
import logging
import re
from base64 import b64decode, b64encode
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from heapq import nlargest
from itertools import islice
from operator import attrgetter
from threading import get_ident
from time import perf_counter_ns
from typing import Any, Final

import anyio
import anyio.lowlevel

from microws.closing import CloseCode, check_close
from microws.codec import Codecs, dumps_json
from microws.counters import COUNTERS, Number
from microws.errors import PublishTimeout, TooManySubscriptions
from microws.hub.backplane import Backplane, MemoryBackplane
from microws.hub.connections import Connections, Tag, check_tags
from microws.hub.flush import Flusher, WriteMany
from microws.hub.history import FrameCodec, Missed, Resume, SharedCalls
from microws.hub.live import skipped_frame
from microws.hub.log import START, Entry
from microws.hub.loop import AppLoop, running_loop
from microws.hub.outbox import Outbox, Outcome, close_too_slow
from microws.hub.presence import Presence
from microws.hub.published import Published, TopicSettings
from microws.hub.statistics import ClusterStatistics, Losses, Statistics, TopicStatistics
from microws.hub.subscribers import Announce, Subscriber, Topic
from microws.hub.topics import (
    MAX_TOPIC_BYTES,
    check_settings,
    check_topic,
    encode_key,
    expression_of,
    key_of,
    settings_from_json,
    settings_to_json,
)
from microws.interfaces import OpenConnection, Payload, Receipt, Subscribed

__all__ = ["Hub"]

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
# Outboxes that are counted in a turn of the event loop: half a millisecond.
_COUNTED_AT_ONCE = 1 << 10
_SUBSCRIBERS = attrgetter("subscribers")
# Seconds that a hub process has to answer a probe. Kubernetes gives its probes 1.
_PROBE_TIMEOUT = 0.5
_log = logging.getLogger("microws.hub")


class Hub:
    """
    Topics and their subscribers in this process.

    Not thread-safe: call everything except ``publish_from_thread`` in the event loop's thread.

    Args:
        codecs: The app's codecs.
        backplane: Carries what is published. Default: to this process alone.
        write: Writes the same bytes to many connections.

    Attributes:
        backplane: As above. It may be replaced until the hub is used.
        open: WebSockets that are open or being opened; the dispatcher adds and removes them.
        presence: The members of topics.
        disconnects: By id, the function that closes a connection with a code and a reason: of each event stream, and of
            each WebSocket whose id was read. Never waits.
        loop: The event loop that the app runs in.
        mount: Where the app is mounted; empty for the outermost one.
        losses: Messages that subscribers did not get, by reason.
        configured: The patterns and settings of this process, in the order of ``configure``.
    """

    def __init__(self, codecs: Codecs, backplane: Backplane | None = None, *, write: WriteMany) -> None:
        self._codecs = codecs
        self.use(backplane or MemoryBackplane())
        self._patterns: list[tuple[re.Pattern[str], TopicSettings]] = []
        self.configured: list[tuple[str, TopicSettings]] = []
        self._topics: dict[str, Topic] = {}
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
        self.open: Connections = Connections()
        self.presence: Presence = Presence(self)
        self.mount = ""
        self.disconnects: dict[str, Callable[[int, str], None]] = {}
        self.losses: Counter[str] = Losses()

    def use(self, backplane: Backplane) -> None:
        """Let ``backplane`` carry what is published. Not while the hub has subscribers."""
        self.backplane = backplane
        backplane.start(self)

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
        self.configured.append((pattern, settings))

    def include(self, other: "Hub") -> None:
        """Add the patterns of ``other`` after those of this hub."""
        self._patterns.extend(other._patterns)  # noqa: SLF001 - of the same class
        self.configured += other.configured

    def learn(self, settings: Iterable[Sequence[Any]]) -> None:
        """Have the patterns of a hub in another process, which ``answer`` gave."""
        self._patterns = [(re.compile(each[0], re.DOTALL), settings_from_json(each[1:])) for each in settings]

    def settings(self, topic: str) -> TopicSettings:
        """The settings of the first pattern that matches ``topic``, or the defaults."""
        known = self._topics.get(topic)
        if known is not None:
            return known.settings
        for pattern, settings in self._patterns:
            if pattern.fullmatch(topic):
                return settings
        return _DEFAULTS

    async def subscribe(
        self,
        subscriber: Subscriber,
        *topics: str,
        since: str | Mapping[str, str | None] | None = None,
        announce: Announce | None = None,
    ) -> Subscribed:
        """
        Deliver what is published to ``topics`` from now on. Subscribing a second time changes nothing.

        It waits until the backplane delivers the topics to this process. What was missed is queued behind what is
        pending, as fast as the client takes it, and before what is published from now on. If the subscriber leaves
        meanwhile, it is not subscribed.

        Args:
            since: The position from which on one topic was missed, or a position for each of several; ``"start"`` for
                all of its history. Default: nothing was missed.
            announce: In place of that of the subscriber.

        Raises:
            TypeError, ValueError: An invalid topic or position; then no topic is subscribed.
            TooManySubscriptions: More than ``subscriber.max_topics``; then no topic is subscribed.
        """
        for topic in topics:
            check_topic(topic)
        positions = _NO_POSITIONS if since is None or since == "" else _positions(topics, since)
        if subscriber.has_left:
            self._leave_some(subscriber, len(subscriber.topics))
            subscriber.has_left = False
        # One call at a time waits: so one that is cancelled ends no subscription of another.
        while subscriber.subscribing is not None:
            await subscriber.subscribing.wait()
            if subscriber.has_left:
                return _NOT_SUBSCRIBED
        if len(subscriber.topics) + len(topics) > subscriber.max_topics:
            count = len(subscriber.topics.union(topics))
            if count > subscriber.max_topics:
                raise TooManySubscriptions(count, int(subscriber.max_topics))
        added = [topic for topic in dict.fromkeys(topics) if topic not in subscriber.topics]
        is_waiting = False
        for topic in added:
            entry = self._topics.get(topic)
            if entry is None:
                settings = self.settings(topic)
                is_confirmed = not (self.backplane.spans_processes or settings.history)
                entry = self._topics[topic] = Topic(settings, is_confirmed=is_confirmed)
            is_waiting = is_waiting or not entry.is_confirmed or (topic in positions and entry.settings.history > 0)
            entry.waiting += 1
            subscriber.topics.add(topic)
            self._subscribers[subscriber.id] = subscriber
        missed = _NO_MISSED
        if is_waiting:
            missed = await self._prepare(subscriber, added, positions)
            if subscriber.has_left:
                return _NOT_SUBSCRIBED
            # Some may have been unsubscribed meanwhile.
            added = [topic for topic in added if topic in subscriber.topics]
        self._join(subscriber, [topic for topic in added if topic not in missed] if missed else added)
        known = {topic: missed[topic].position if topic in missed else self.known_position(topic) for topic in topics}
        asked = [topic for topic in positions if topic in added] if positions else []
        recovered = {topic for topic in missed if missed[topic].recovered}
        lost = tuple(
            topic for topic in asked if topic not in recovered and (topic in missed or positions[topic] != START)
        )
        announce = announce or subscriber.announce
        if announce is not None:
            begun = {topic: position for topic in added if (position := known[topic]) is not None}
            if begun and (messages := announce(begun, asked, lost)):
                subscriber.outbox.hold()
                subscriber.outbox.feed(messages)
                subscriber.wake()
        if missed:
            self._resume(subscriber, missed)
        is_recovered = bool(positions) and len(asked) == len(positions) and not lost
        return Subscribed(is_recovered, known[topics[0]] if len(known) == 1 else known, lost)

    def known_position(self, topic: str) -> str | None:
        """The position of the last message of ``topic`` that was delivered here."""
        entry = self._topics.get(topic)
        return None if entry is None else entry.position

    def _is_ready(self, topic: str, positions: Mapping[str, str], missed: Mapping[str, Missed]) -> bool:
        """Whether a subscriber with ``positions``, of which ``missed`` is known, need not wait for ``topic``."""
        entry = self._topics[topic]
        if not entry.is_confirmed:
            return False
        if topic not in positions or not entry.settings.history:
            return True
        return topic in missed and missed[topic].window is entry.window

    async def _prepare(
        self, subscriber: Subscriber, topics: Sequence[str], positions: Mapping[str, str]
    ) -> dict[str, Missed]:
        """Wait until the backplane delivers ``topics`` to this process, and find what was missed of them."""
        missed: dict[str, Missed] = {}
        done = subscriber.subscribing = anyio.Event()

        def is_waiting_for(topic: str) -> bool:
            return not subscriber.has_left and topic in subscriber.topics

        try:
            # More than once, if messages are lost here meanwhile.
            while unready := [
                topic for topic in topics if is_waiting_for(topic) and not self._is_ready(topic, positions, missed)
            ]:
                for topic in filter(is_waiting_for, unready):
                    entry = self._topics[topic]
                    await self._confirm(topic, entry)
                    if topic in positions and entry.settings.history:
                        missed[topic] = await self._find_missed(topic, entry, positions[topic])
        except BaseException:
            for topic in topics:
                self._remove(subscriber, topic)
            raise
        finally:
            subscriber.subscribing = None
            done.set()
            for topic in [topic for topic in missed if not is_waiting_for(topic)]:
                missed.pop(topic).window.leave()
        return missed

    async def _confirm(self, topic: str, entry: Topic) -> None:
        """Wait until the backplane delivers ``topic`` to this process."""
        if entry.is_confirmed:
            return
        confirming = entry.confirming = entry.confirming or SharedCalls()
        while not entry.is_confirmed:
            losses = entry.losses
            position, place = await confirming.call(str(losses), partial(self.backplane.subscribe, topic))
            if entry.losses == losses:
                entry.is_confirmed = True
                if entry.settings.history and place >= entry.place:
                    entry.position, entry.place = position, place
        entry.confirming = None

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
        if subscriber.resume is not None:
            subscriber.resume.end()
            subscriber.resume = None
        if len(subscriber.topics) <= _MAX_LEFT_AT_ONCE or (loop := running_loop()) is None:
            self._leave_some(subscriber, len(subscriber.topics))
            subscriber.has_left = True
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
        if self._leaving:
            asyncio.get_running_loop().call_soon(self._go_on_leaving)
        else:
            self._leaving_loop = None

    def _leave_some(self, subscriber: Subscriber, count: int) -> int:
        topics = list(islice(subscriber.topics, count))
        for topic in topics:
            self._remove(subscriber, topic)
        return len(topics)

    def _remove(self, subscriber: Subscriber, topic: str) -> None:
        if topic not in subscriber.topics:
            return
        subscriber.topics.discard(topic)
        entry = self._topics[topic]
        codec = subscriber.codec_of(topic)
        group = entry.groups.get(codec)
        if group is not None and subscriber.outbox in group:
            del group[subscriber.outbox]
            if not group:
                del entry.groups[codec]
        else:
            entry.waiting -= 1
            if subscriber.resume is not None:
                subscriber.resume.drop(topic)
        if not entry.groups and not entry.waiting:
            entry.close_window()
            del self._topics[topic]
            self.backplane.unsubscribe(topic)
        if not subscriber.topics and not subscriber.has_left:
            del self._subscribers[subscriber.id]

    # What was missed

    async def _find_missed(self, topic: str, entry: Topic, since: str) -> Missed:
        """
        What a subscriber at ``since`` has missed. The window counts it.

        The first one reads what it missed: most topics have one. If another position comes, all of the history is read,
        once for all.
        """
        settings = entry.settings
        by_key = settings.overflow == "latest"
        window = entry.open_window()
        try:
            if (missed := window.missed(since, entry.position)) is not None:
                return missed
            if since == START or window.first_since not in (None, since):
                if not window.is_read:
                    history = settings.history if by_key else settings.history + 1
                    read = await window.reads.call(
                        START, partial(self.backplane.read, topic, START, history=history, ttl=None, by_key=by_key)
                    )
                    if read.recovered:
                        window.fill(read.entries, is_all=True)
                if (missed := window.missed(since, entry.position)) is not None:
                    return missed
            window.first_since = since
            history, ttl = settings.history, settings.ttl
            read = await window.reads.call(
                since, partial(self.backplane.read, topic, since, history=history, ttl=ttl, by_key=by_key)
            )
        except BaseException:
            window.leave()
            raise
        if not read.recovered:
            return Missed(window, False, read.place, read.position)
        reached = read.entries[0].place - 1 if read.entries else read.place
        window.fill(read.entries)
        window.note(since, reached)
        return Missed(window, True, reached, since)

    def _resume(self, subscriber: Subscriber, missed: Mapping[str, Missed]) -> None:
        """Let ``subscriber`` catch up."""
        resume = subscriber.resume
        if resume is None:
            resume = subscriber.resume = Resume(
                subscriber.outbox,
                join=partial(self._end_resume, subscriber),
                lose=partial(self._lose, subscriber),
                fail=partial(self._fail, subscriber),
            )
        codecs = subscriber.replay_codecs
        for topic, found in missed.items():
            codec = subscriber.codec_of(topic) if codecs is None else codecs[topic]
            resume.add(topic, codec, found, is_shared=codecs is None)
        resume.begin()
        subscriber.wake()

    def _end_resume(self, subscriber: Subscriber, topics: Sequence[str]) -> None:
        subscriber.resume = subscriber.replay_codecs = None
        self._join(subscriber, topics)

    def _join(self, subscriber: Subscriber, topics: Iterable[str]) -> None:
        """Deliver to ``subscriber`` from now on."""
        for topic in topics:
            entry = self._topics[topic]
            entry.waiting -= 1
            entry.groups.setdefault(subscriber.codec_of(topic), {})[subscriber.outbox] = subscriber

    def _fail(self, subscriber: Subscriber, topic: str) -> None:
        _log.exception(_UNENCODABLE, topic)
        self.losses["unencodable"] += 1
        subscriber.refuse(CloseCode.INTERNAL_ERROR, "message cannot be encoded")

    def lose(self, topics: Iterable[str] | None = None) -> None:
        """
        Tell the subscribers of ``topics``, by default of all, that messages were lost here.

        A client that asked for gap markers gets one, and later messages. If it is still getting what it missed, that is
        once it has all of its other topics. The connection of another is closed with 1012, so that it comes back.
        """
        lost = dict.fromkeys(self._topics if topics is None else topics)
        resuming = [each for each in self._subscribers.values() if each.resume is not None]
        for topic in lost:
            entry = self._topics.get(topic)
            if entry is None:
                continue
            entry.forget()
            for group in list(entry.groups.values()):
                for subscriber in list(group.values()):
                    if self._lose(subscriber, topic):
                        subscriber.wake()
            for subscriber in resuming:
                if subscriber.resume is None or topic not in subscriber.resume.topics:
                    continue
                if subscriber.outbox.has_marker:
                    subscriber.resume.lose(topic)
                else:
                    self._lose(subscriber, topic)

    def _lose(self, subscriber: Subscriber, topic: str) -> bool:
        """Tell ``subscriber`` of a loss. ``True``: by a gap marker."""
        self.losses["lost"] += 1
        if not subscriber.outbox.put_gap(topic, self.settings(topic)):
            subscriber.refuse(CloseCode.SERVICE_RESTART, "messages were lost")
            return False
        return True

    async def publish(self, topic: str, value: Any, *, skip: str | None = None, key: str | None = None) -> Receipt:
        """
        Send ``value`` to every subscriber of ``topic``. Never waits for a slow client.

        Yields to other tasks after 16,384 deliveries, and when an outbox that it reached is half full: a burst from one
        task neither blocks the others nor overflows the outboxes of clients that keep up. If it is cancelled while it
        yields, the message was published.

        Args:
            topic: 1 to 255 UTF-8 bytes without control characters.
            value: ``str``, ``bytes``, or a value that JSON can represent.
            skip: The id of a connection that does not get it.
            key: Names the message: if the history has one of the topic with this key, nothing is published. Default:
                each call is another message.

        Raises:
            PublishTimeout: The message may have been published, or may be published later.
            TypeError, ValueError: An invalid topic or key, or JSON cannot represent the value. Nothing was delivered.
            RuntimeError: The app does not run, or runs in another event loop.
        """
        # Comparing threads takes 30 ns; asking for the running loop is a system call until Python 3.12.
        if get_ident() != self.loop.thread:
            self.loop.check("app.publish_from_thread(topic, value)")
        if type(topic) is not str or topic not in self._topics:
            check_topic(topic)
        began = perf_counter_ns() if COUNTERS.is_on else 0
        settings = self.settings(topic)
        payload = self._codecs.payload(value, topic, settings.value_type)
        self._published += 1
        self._deliveries_since_yield += _PUBLISH_COST
        name = b"" if key is None else encode_key(key, topic, settings)
        if settings.history:
            conflation = self._conflation(settings, payload)
            receipt = await self.backplane.publish(
                payload, skip=skip, has_history=True, key=name, conflation=conflation
            )
        else:
            if self.backplane.spans_processes:
                self._key(settings, payload)  # it raises here, and not in other processes
            receipt = await self.backplane.publish(payload, skip=skip)
        if began:
            COUNTERS.publish(perf_counter_ns() - began)
        if self.is_busy:
            await self.relax()
        return receipt

    @property
    def is_busy(self) -> bool:
        """Whether ``relax`` would yield."""
        return bool(self._crowded or self._deliveries_since_yield >= _MAX_DELIVERIES or self._flusher.is_behind)

    async def relax(self) -> None:
        """Yield to other tasks after many deliveries, and to outboxes that fill up though their clients keep up."""
        if self._deliveries_since_yield >= _MAX_DELIVERIES or self._flusher.is_behind:
            self._deliveries_since_yield = 0
            await anyio.lowlevel.checkpoint()
            while self._flusher.is_behind:
                await anyio.lowlevel.checkpoint()
        if self._crowded:
            await self._yield_to_crowded()

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

    def reach(self, topic: str, skip: str | None) -> int:
        """The number of subscribers that ``topic`` has in this process now, without ``skip``."""
        entry = self._topics.get(topic)
        if entry is None:
            return 0
        skipped = self._subscribers.get(skip) if skip is not None else None
        count = entry.waiting + sum(map(len, entry.groups.values()))
        return count - (skipped is not None and topic in skipped.topics)

    def deliver(self, payload: Payload, skip: str | None = None, entry: Entry | None = None) -> int:
        """
        Put ``payload`` into the outbox of each subscriber of its topic. Never waits.

        This is the only way into the outboxes for a published message: one way means one order.

        Args:
            entry: What the log has of it, on a topic with history.

        Returns:
            The number of outboxes that took it.
        """
        topic = self._topics.get(payload.topic)
        if topic is None:
            return 0
        if entry is not None:
            if entry.place <= topic.place:
                return 0  # it was delivered before a cut of the backplane
            topic.note(entry)
        topic.messages += 1
        skipped = self._subscribers.get(skip) if skip is not None else None
        if skipped is not None and skipped.resume is not None and entry is not None:
            skipped.resume.skip(payload.topic, entry.place)
        try:
            key = self._key(topic.settings, payload)
        except Exception:
            if not self.backplane.spans_processes:
                raise
            # The publisher's version of the app has another function.
            _log.exception("a message on %r has no key; no other message takes its place", payload.topic)
            key = object()
        reached = 0
        # A copy: a subscriber that is refused is removed from its group.
        for codec, group in tuple(topic.groups.items()):
            outboxes: Collection[Outbox] = group
            if skipped is not None and skipped.outbox in group:
                outboxes = [outbox for outbox in group if outbox is not skipped.outbox]
                self._skip(skipped, codec, payload, topic.settings)
                if not outboxes:
                    continue
            message = self._frame(codec, payload, topic.settings, key)
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
        if COUNTERS.is_on:
            COUNTERS.add(Number.DELIVERED, reached)
        self._deliveries_since_yield += reached
        return reached

    def _skip(self, subscriber: Subscriber, codec: FrameCodec, payload: Payload, settings: TopicSettings) -> None:
        """Tell a subscriber that does not get a message how far it has the topic, if it can be told."""
        frame = skipped_frame(codec, payload)
        if frame is not None:
            # With a key of its own, it takes the place of no message.
            message = Published(frame, payload.topic, settings, key=object(), position=payload.position)
            for _ in self._flusher.put(message, (subscriber.outbox,)):
                self._queue(message, subscriber)

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

    def answer(self, question: Mapping[str, Any]) -> Any:
        """
        The answer of this process to a question of ``cluster_statistics``, ``disconnect`` or ``connect_hub``.

        Returns:
            Of ``{"statistics": true}``: ``statistics()`` as a dict, with ``"topics"`` as a dict of topics and numbers
            of subscribers. Of ``{"disconnect": …}``: the number of connections that it closed. Of ``{"connections":
            …}``: the ``OpenConnection`` of each that has these tags. Of ``{"settings": true}``: what ``learn`` takes.
            Of ``{"conflation": …}``, the kind, the data in base64 and the topic of a payload: ``{"conflation": …}`` in
            base64, or ``{"error": …}``.
        """
        if "disconnect" in question:
            return self._disconnect(**question["disconnect"])
        if "presence" in question:
            return self.presence.answer(question["presence"])
        if "connections" in question:
            return list(self.open.describe(question["connections"]))
        if "settings" in question:
            return [(pattern.pattern, *settings_to_json(settings)) for pattern, settings in self._patterns]
        if "conflation" in question:
            kind, data, topic = question["conflation"]
            try:
                conflation = self._conflation(self.settings(topic), Payload(kind, b64decode(data), topic))
            except Exception as error:  # of the app's function
                return {"error": f"{type(error).__name__}: {error}"}
            return {"conflation": b64encode(conflation).decode()}
        topics = {topic: self.reach(topic, None) for topic in self._topics}
        return self.statistics()._asdict() | {"topics": topics}

    async def cluster_statistics(self) -> ClusterStatistics:
        """
        What ``statistics`` counts in all workers, in sum.

        A worker that does not answer within 2 seconds is left out, and the log says so.
        """
        answers = await self.backplane.ask({"statistics": True})
        topics: Counter[str] = Counter()
        for answer in answers:
            topics.update(answer["topics"])
        connections = sum(answer["connections"] for answer in answers)
        usage = await self.backplane.ask_for_usage()
        return ClusterStatistics(len(answers), connections, dict(topics), usage.bytes, usage.dropped)

    async def connections(self, **tags: Tag) -> list[OpenConnection]:
        """
        The open WebSockets that have all these tags, in all workers.

        A worker that does not answer within 2 seconds is left out, and the log says so.

        Raises:
            TypeError, ValueError: An invalid tag.
        """
        check_tags(tags)
        answers = await self.backplane.ask({"connections": tags})
        return [OpenConnection(*each) for answer in answers for each in answer]

    async def disconnect(
        self,
        *,
        topic: str | None = None,
        id: str | None = None,  # noqa: A002
        code: int = 1000,
        reason: str = "",
        **tags: Tag,
    ) -> int:
        """
        Close every connection that subscribes to ``topic``, or the one with this id, or with all these tags, in all
        workers.

        Returns:
            How many they were. A worker that does not answer within 2 seconds is left out, and the log says so.

        Raises:
            TypeError, ValueError: An invalid argument.
            RuntimeError: The app does not run, or runs in another event loop.
        """
        self.loop.check("anyio.from_thread.run(function), where the `async def` function calls app.disconnect")
        if (topic is not None) + (id is not None) + bool(tags) != 1:
            raise TypeError("expected one of topic=, id= and tags such as user=")
        check_tags(tags)
        if topic is not None:
            check_topic(topic)
        check_close(code, reason)
        question = {"topic": topic, "id": id, "tags": tags, "code": code, "reason": reason}
        return sum(await self.backplane.ask({"disconnect": question}))

    def _disconnect(
        self,
        topic: str | None,
        id: str | None,  # noqa: A002
        tags: Mapping[str, Tag],
        code: int,
        reason: str,
    ) -> int:
        if topic is not None:
            ids = self._ids_of(topic)
        else:
            ids = [each.id for each in self.open.find(tags)] if id is None else [id]
        # An ``app.subscribe`` block is not a connection.
        found = [disconnect for each in ids if (disconnect := self.disconnects.get(each)) is not None]
        for disconnect in found:
            disconnect(code, reason)
        return len(found)

    def _ids_of(self, topic: str) -> list[str]:
        entry = self._topics.get(topic)
        if entry is None:
            return []
        if entry.waiting:
            return [each.id for each in self._subscribers.values() if topic in each.topics]
        return [each.id for group in entry.groups.values() for each in group.values() if not each.has_left]

    def statistics(self) -> Statistics:
        """Count what happened in this process so far, and what is pending now. O(subscribers)."""
        queues = [subscriber.outbox.count for subscriber in self._subscribers.values()]
        usage = self.backplane.usage()
        flush_sizes: Counter[str] = Counter()
        for count, writes in sorted(self._flusher.sizes.items()):
            flush_sizes[str(1 << (count - 1).bit_length())] += writes
        return Statistics(
            connections=len(self.open),
            topics=len(self._topics),
            subscribers=len(self._subscribers),
            subscriptions=sum(len(subscriber.topics) for subscriber in self._subscribers.values()),
            published=self._published,
            delivered=self._delivered,
            dropped=dict(self.losses),
            queued=sum(queues),
            largest_queue=max(queues, default=0),
            flush_sizes=dict(flush_sizes),
            history_bytes=usage.bytes,
            history_dropped=usage.dropped,
        )

    async def count_pending(self) -> tuple[int, int, int, int, int]:
        """Topics, subscribers, subscriptions, messages that are pending, and those in the longest outbox. Yields."""
        subscriptions = queued = longest = 0
        for number, subscriber in enumerate(list(self._subscribers.values()), start=1):
            count = subscriber.outbox.count
            subscriptions += len(subscriber.topics)
            queued += count
            longest = max(longest, count)
            if number % _COUNTED_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
        return len(self._topics), len(self._subscribers), subscriptions, queued, longest

    async def largest_topics(self, most: int) -> list[TopicStatistics]:
        """The topics with the most subscribers in this process, at most ``most``. Yields."""
        found: list[TopicStatistics] = []
        for number, (name, topic) in enumerate(list(self._topics.items()), start=1):
            subscribers = topic.waiting + sum(map(len, topic.groups.values()))
            found.append(TopicStatistics(name, subscribers, topic.messages, topic.settings.overflow))
            if number % _COUNTED_AT_ONCE == 0:
                found = nlargest(most, found, key=_SUBSCRIBERS)
                await anyio.lowlevel.checkpoint()
        return nlargest(most, found, key=_SUBSCRIBERS)

    def _conflation(self, settings: TopicSettings, payload: Payload) -> bytes:
        """The conflation key as the log has it; empty without one."""
        if settings.overflow != "latest":
            return b""
        key = self._key(settings, payload)
        try:
            encoded = dumps_json(key)
        except (TypeError, ValueError):
            encoded = repr(key).encode()
        return encoded if len(encoded) <= MAX_TOPIC_BYTES else sha256(encoded).digest()

    async def position(self, topic: str) -> str:
        """
        The position of the last message of ``topic``.

        Raises:
            TypeError, ValueError: An invalid topic, or one without history.
        """
        check_topic(topic)
        if not self.settings(topic).history:
            raise ValueError(f"expected a topic with history, got {topic!r}: write app.topic(pattern, history=100)")
        return await self.backplane.position(topic)

    async def is_connected(self) -> bool:
        """Whether the backplane reaches other processes: its hub process answers within half a second."""
        if not self.backplane.spans_processes:
            return True
        with suppress(PublishTimeout), anyio.move_on_after(_PROBE_TIMEOUT):
            await self.backplane.position("health")
            return True
        return False

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
    def _frame(codec: FrameCodec, payload: Payload, settings: TopicSettings, key: Any) -> Published | None:
        try:
            return Published(codec.frame(payload), payload.topic, settings, key=key, position=payload.position)
        except Exception:
            # A codec of the app that cannot encode what JSON can. The publisher did nothing wrong.
            _log.exception(_UNENCODABLE, payload.topic)
            return None


_UNENCODABLE: Final = "a message on %r cannot be encoded for some of its subscribers; they are closed"
_NOT_SUBSCRIBED: Final = Subscribed(recovered=False)
_DEFAULTS: Final = TopicSettings()
_NO_MISSED: Final[Mapping[str, Missed]] = {}
_NO_POSITIONS: Final[Mapping[str, str]] = {}


def _positions(topics: Sequence[str], since: str | Mapping[str, str | None]) -> Mapping[str, str]:
    """The position of each topic of which something was missed."""
    # It may be what a client has sent.
    named = since.values() if isinstance(since, Mapping) else [since]
    if not all(position is None or isinstance(position, str) for position in named):
        raise TypeError(f"expected since= as a position, or as a dict of topics and positions, got {since!r}")
    if isinstance(since, str):
        if since != START and len(topics) > 1:
            raise TypeError(f"expected since= as a dict of {len(topics)} topics and their positions, got a str")
        return dict.fromkeys(topics, since)
    unknown = [topic for topic in since if topic not in topics]
    if unknown:
        raise ValueError(f"expected since= with topics that are subscribed, got {unknown[0]!r}")
    return {topic: position for topic, position in since.items() if position}
