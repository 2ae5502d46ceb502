"""The topics that this process subscribes to, where they are, and the delivery of what arrives."""

import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any, Final, final

from microws.hub.backplane import Receiver
from microws.hub.log import KINDS, POSITION_FORMAT, Entry, new, position_of
from microws.hub.published import TopicSettings
from microws.interfaces import Payload
from microws.redis_hub.publisher import Publisher
from microws.redis_hub.scripts import RECORD, spec_of

__all__ = ["LOST", "MORE", "Topic", "Topics", "entry_of", "nonce_of"]

# Seconds for which a topic that has no subscribers here is still delivered.
_LINGER: Final = 5.0
# What ``READ`` says of a topic, besides that all is there.
LOST: Final = 0
MORE: Final = 2
# In a record: the nonce of the message before it, and its own.
_BEFORE: Final = slice(24, 40)
_NONCE: Final = slice(40, 56)

_UNREADABLE: Final = "a message of another process cannot be delivered here"

_log = logging.getLogger("microws.hub")


@final
class Topic:
    """
    A topic that this process subscribes to.

    Attributes:
        spec: What it keeps; empty without history.
        offset, nonce: Of the last message that was delivered, or was published before the subscription. ``nonce`` is
            empty until Redis has told it.
        is_behind: Some may be missing, after a cut; until they are there, only a direct successor is delivered.
    """

    __slots__ = ("channel", "encoded", "is_behind", "name", "nonce", "offset", "spec")

    def __init__(self, name: str, encoded: bytes, channel: bytes) -> None:
        self.name: str = name
        self.encoded: bytes = encoded
        self.channel: bytes = channel
        self.spec: bytes = b""
        self.offset: int = 0
        self.nonce: bytes = b""
        self.is_behind: bool = False

    def begin(self, answers: list[list[Any]]) -> list[list[Any]]:
        """Learn from an answer of ``READ`` where the topic is."""
        if not self.nonce:
            _, self.offset, self.nonce = answers[0]
        return answers


@final
class Topics:
    """
    All of them.

    Args:
        channels: The prefix of their channels.
        publisher: What it publishes arrives here, too.
        take_other: Called with the channel and the data of what is published to none of the topics.

    Attributes:
        receiver: Gets what is delivered.
        lost: Of how many topics messages were lost in the last cut.
    """

    def __init__(self, channels: bytes, publisher: Publisher, take_other: Callable[[bytes, bytes], None]) -> None:
        self.receiver: Receiver
        self.lost = 0
        self._channels = channels
        self._publisher = publisher
        self._take_other = take_other
        self._by_channel: dict[bytes, Topic] = {}
        # Without subscribers here, and when they are given up; the oldest first.
        self._left: dict[Topic, float] = {}

    def add(self, name: str, encoded: bytes, settings: TopicSettings) -> Topic:
        """The topic of this name, which has subscribers."""
        channel = self._channels + encoded
        topic = self._by_channel.get(channel)
        if topic is None:
            topic = self._by_channel[channel] = Topic(name, encoded, channel)
        self._left.pop(topic, None)
        topic.spec = spec_of(settings.history, settings.ttl, by_key=settings.overflow == "latest")
        return topic

    def leave(self, encoded: bytes) -> None:
        """A topic has no subscribers any more."""
        topic = self._by_channel.get(self._channels + encoded)
        if topic is not None:
            self._left.pop(topic, None)
            self._left[topic] = monotonic() + _LINGER

    def give_up(self, now: float) -> Iterator[Topic]:
        """Forget those that have had no subscribers for a while."""
        for topic, deadline in list(self._left.items()):
            if deadline > now:
                break
            del self._left[topic], self._by_channel[topic.channel]
            yield topic

    def begin_catch_up(self) -> list[Topic]:
        """Those of which messages may have been missed."""
        known = [topic for topic in self._by_channel.values() if topic.nonce]
        for topic in known:
            topic.is_behind = True
        return known

    def remaining(self, topics: Sequence[Topic]) -> list[Topic]:
        """Those that were not given up meanwhile."""
        return [topic for topic in topics if topic.channel in self._by_channel]

    def catch_up(self, behind: Sequence[Topic], answers: list[list[Any]], *, is_trusted: bool) -> list[Topic]:
        """
        Deliver what was missed of topics, or tell that it is lost.

        Args:
            answers: Of ``READ``.
            is_trusted: See ``Epoch``.

        Returns:
            Those of which there is more.
        """
        rest, lost = [], []
        for topic, (status, last, nonce, *records) in zip(behind, answers, strict=True):
            topic.is_behind = False
            for record in records:
                if RECORD.unpack_from(record)[0] > topic.offset:
                    self.take(topic.channel, record)
            if status == MORE:
                topic.is_behind = True
                rest.append(topic)
                continue
            # Without history Redis forgets where a topic was, if nothing is published for long.
            is_forgotten = is_trusted and not (last or topic.spec)
            if status == LOST and nonce != topic.nonce and not is_forgotten:
                topic.offset, topic.nonce = last, nonce
                lost.append(topic.name)
        if lost:
            self.lost += len(lost)
            self.receiver.lose(lost)
        return rest

    def take(self, channel: bytes, data: bytes) -> None:
        """Deliver what was published."""
        topic = self._by_channel.get(channel)
        if topic is None:
            self._take_other(channel, data)
            return
        if not data:
            self.receiver.lose((topic.name,))
            return
        if topic.is_behind and data[_BEFORE] != topic.nonce:
            return
        try:
            offset, time, publisher, number, kind, key_size, conflation_size = RECORD.unpack_from(data)
        except struct.error:
            _log.exception(_UNREADABLE)
            return
        if offset <= topic.offset:
            self.receiver.lose((topic.name,))  # another log
        topic.offset = offset
        topic.nonce = data[_NONCE]
        skips = self._publisher.skips
        skip = skips.pop(number, None) if skips and publisher == self._publisher.id else None
        start = RECORD.size + key_size
        body = start + conflation_size
        try:
            if topic.spec:
                position = POSITION_FORMAT % (offset, offset, publisher, number)
                payload = new(Payload, (KINDS[kind], data[body:], topic.name, position))
                conflation = data[start:body] if conflation_size else b""
                self.receiver.deliver(payload, skip, new(Entry, (offset, payload, conflation, time)))
            else:
                self.receiver.deliver(new(Payload, (KINDS[kind], data[body:], topic.name, None)), skip)
        except Exception:
            # Of an app of another version. The next messages are none the worse.
            _log.exception(_UNREADABLE)


def entry_of(topic: str, record: bytes) -> Entry:
    """The message of a record."""
    offset, time, publisher, number, kind, key_size, conflation_size = RECORD.unpack_from(record)
    start = RECORD.size + key_size
    body = start + conflation_size
    position = position_of(offset, offset, publisher, number)
    return Entry(offset, Payload(KINDS[kind], record[body:], topic, position), record[start:body], time)


def nonce_of(record: bytes) -> bytes:
    """What only this message has."""
    return record[_NONCE]
