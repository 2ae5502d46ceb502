"""
The ``redis`` backplane in one process.

A message stays here until Redis has answered. After a cut, the topics say up to where they are and get what they
missed, or their subscribers are told; then what was not answered is sent again, and Redis knows what it has.
"""

import json
import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from random import random
from time import monotonic
from typing import Any, Final, final

import anyio
import anyio.abc

from microws.errors import HubUnavailable, PublishTimeout
from microws.hub.backplane import Place, Receiver
from microws.hub.log import KINDS, START, Entry, LogUsage, Replay, new, parse_position, position_of
from microws.hub.pending import Pending, Replies
from microws.hub_url import redis_address
from microws.interfaces import Payload, Receipt
from microws.redis_hub.connection import Connection, advice, connect, tls_context
from microws.redis_hub.epoch import Epoch, fields, ignore, refusal
from microws.redis_hub.publisher import TIMEOUT, Message, Publisher
from microws.redis_hub.scripts import CLAIM, NONCE, READ, STORED, call, spec_of
from microws.redis_hub.topics import LOST, MORE, Topic, Topics, entry_of, nonce_of

__all__ = ["RedisBackplane"]

# Redis disconnects a subscriber that has 32 MiB pending (client-output-buffer-limit).
_MAX_MESSAGE: Final = (16 << 20) - 1024
# Seconds between two looks at what waits too long.
_CHECK_INTERVAL: Final = 0.25
# Looks without anything received: then a probe is sent; then the connection is given up.
_QUIET: Final = 4
_SILENT: Final = 11
# Seconds: until the first connection must succeed; for one attempt; between attempts, at first and at most.
_FIRST_CONNECT: Final = 5.0
_CONNECT_TIMEOUT: Final = 1.0
_RETRY: Final = 0.02
_MAX_RETRY: Final = 0.5
# Topics that are subscribed again with one call.
_MAX_TOPICS: Final = 512
# Such calls that are sent before the first of them is answered, and the bytes of messages after which an answer ends:
# Redis disconnects a subscriber that has much pending. After connections that brought nothing, it is less
# at first.
_PARTS_AT_ONCE: Final = 3
_MAX_ANSWER: Final = 256 << 10
_MIN_ANSWER: Final = 16 << 10
# Connections in a row that brought nothing, after which a line is logged.
_FRUITLESS: Final = 5

_log = logging.getLogger("microws.hub")


@final
class _Request(Pending[Any]):
    """
    A question that Redis has not answered.

    Args:
        command: Which.
        topic: To be subscribed before.
        follow: Called with the answer before anything else arrives; its result is the answer.
    """

    __slots__ = ("command", "follow", "topic")

    def __init__(
        self,
        command: Sequence[bytes | int],
        topic: Topic | None = None,
        follow: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(TIMEOUT)
        self.command = command
        self.topic = topic
        self.follow = follow


class RedisBackplane:
    """
    Carries what is published through Redis, to all processes that use the same one with the same prefix.

    Args:
        url: See ``redis_address``.
        serves: Whether this process serves an app. Otherwise it only publishes and reads, and is asked nothing.
        mount: Where the app is mounted, if it is not the outermost one: its topics, claims and questions are separate
            from those of other apps.
    """

    spans_processes = True

    def __init__(self, url: str, *, serves: bool = True, mount: str = "") -> None:
        address = redis_address(url)
        if address is None:
            raise ValueError(f"expected the URL of a Redis, got {url!r}")
        self._address = address
        self._serves = serves
        # Before each name. A topic has no control characters.
        self._mount = f"{mount}\0".encode() if mount else b""
        self._prefix = f"{address.prefix}:".encode()
        # Databases do not separate what is published.
        separate = self._prefix + b"%d:" % address.db
        channels = separate + b"t:"
        self._epoch = Epoch(self._prefix, address.shown)
        self._publisher = Publisher(self._prefix, channels, address.shown, self._epoch.recover)
        self._topics = Topics(channels, self._publisher, self._take_other)
        self._channel_of_questions = separate + b"ask:" + self._mount
        self._channel_of_replies = self._prefix + b"r:" + self._publisher.name
        self._receiver: Receiver
        self._connection: Connection | None = None
        # Looks at it since the last message came.
        self._quiet = 0
        # Why there is no connection, and since when there is none that has caught up.
        self._trouble = ""
        self._cut_at: float | None = None
        # Connections in a row that ended before Redis had told any of what was missed.
        self._fruitless = 0
        self._requests: dict[_Request, None] = {}
        self._replies = Replies()

    def start(self, receiver: Receiver) -> None:
        """See ``Backplane``."""
        self._receiver = self._topics.receiver = receiver

    # The connection

    async def run(self, *, task_status: "anyio.abc.TaskStatus[None] | None" = None) -> None:
        """
        See ``Backplane``.

        Raises:
            HubUnavailable: There is no Redis that can carry a hub, or it refuses the login.
        """
        tls = None if self._address.tls is None else tls_context(self._address.tls)
        connection = await self._connect(tls, is_first=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            while True:
                try:
                    await self._talk(connection, task_status)
                finally:
                    await connection.aclose()
                task_status, self._trouble = None, connection.reason
                if self._cut_at is None:
                    self._cut_at = monotonic()
                    text = "disconnected from Redis at %s: %s; connecting again"
                    _log.warning(text, self._address.shown, self._trouble)
                else:
                    await self._pause(self._fruitless)
                    self._fruitless += 1
                    if self._fruitless == _FRUITLESS:
                        text = "disconnected from Redis at %s %d times in a row while asking for what was missed: %s"
                        _log.warning(text, self._address.shown, _FRUITLESS, self._trouble)
                connection = await self._connect(tls)

    async def _connect(self, tls: ssl.SSLContext | None, *, is_first: bool = False) -> Connection:
        began = monotonic()
        for attempt in count():
            try:
                with anyio.fail_after(_CONNECT_TIMEOUT):
                    return await connect(self._address, tls, self._open)
            except HubUnavailable as error:
                if is_first:
                    raise HubUnavailable(f"{error} ({self._address.shown})") from None
                self._trouble = str(error)
            except OSError as error:
                self._trouble = str(error) or f"it does not answer within {_CONNECT_TIMEOUT:g} s"
            if is_first and not attempt:
                _log.warning("waiting for Redis at %s: %s", self._address.shown, self._trouble)
            if is_first and monotonic() - began > _FIRST_CONNECT:
                text = f"expected Redis at {self._address.shown}, got: {self._trouble}; {advice(self._address)}"
                raise HubUnavailable(text)
            await self._pause(attempt)
        raise AssertionError

    @staticmethod
    async def _pause(attempt: int) -> None:
        await anyio.sleep(random() * min(_MAX_RETRY, _RETRY * 2 ** min(attempt, 8)))

    async def _open(self, connection: Connection) -> None:
        channels = [self._channel_of_replies, *([self._channel_of_questions] if self._serves else [])]
        await self._epoch.open(connection, channels)

    async def _talk(self, connection: Connection, task_status: "anyio.abc.TaskStatus[None] | None") -> None:
        self._connection, self._quiet = connection, 0
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._catch_up, connection, task_status)
                await connection.run(self._publisher.fill, self._topics.take, self._receiver)
                tasks.cancel_scope.cancel()
        finally:
            self._connection = None
            self._publisher.cut()

    async def _catch_up(self, connection: Connection, task_status: "anyio.abc.TaskStatus[None] | None") -> None:
        """Subscribe to all topics, and get what was missed. Then go on."""
        topics = self._topics
        known = topics.begin_catch_up()
        parts = iter([known[start : start + _MAX_TOPICS] for start in range(0, len(known), _MAX_TOPICS)])
        limit = max(_MIN_ANSWER, _MAX_ANSWER >> 2 * self._fruitless)

        async def follow() -> None:
            nonlocal limit
            for part in parts:
                behind = topics.remaining(part)
                while behind and not connection.reason:
                    connection.tell(b"SUBSCRIBE", *(topic.channel for topic in behind))
                    deliver = partial(topics.catch_up, behind, is_trusted=self._epoch.is_trusted)
                    request = _Request(_read(self._prefix, limit, *behind), follow=deliver)
                    self._post(request)
                    try:
                        behind = await request.wait()
                        self._fruitless = 0
                        limit = min(2 * limit, _MAX_ANSWER)
                    except HubUnavailable as error:
                        connection.cut(str(error))

        async with anyio.create_task_group() as tasks:
            for _ in range(_PARTS_AT_ONCE):
                tasks.start_soon(follow)
        if connection.reason:
            return
        if topics.lost:
            text = "messages were lost: Redis does not have all that followed the last ones of %d topics"
            _log.error(text, topics.lost)
            topics.lost = 0
        if self._cut_at is not None:
            seconds, self._cut_at = monotonic() - self._cut_at, None
            _log.info("connected to Redis at %s again after %.1f s", self._address.shown, seconds)
        self._fruitless = 0
        self._publisher.connection = connection
        for request in self._requests:
            self._post(request)
        connection.wake()
        if task_status is not None:
            task_status.started()

    async def _watch(self) -> None:
        """End what waits too long, give up topics without subscribers, and probe a connection that is quiet."""
        while True:
            await anyio.sleep(_CHECK_INTERVAL)
            # The next look would be too late.
            now = monotonic() + _CHECK_INTERVAL
            late = PublishTimeout(
                f"expected an answer of Redis at {self._address.shown} within {TIMEOUT:g} s, got none"
                + (f" ({self._trouble})" if self._connection is None else "")
            )
            self._publisher.end_late(now, late)
            for request in [request for request in self._requests if request.deadline <= now]:
                del self._requests[request]
                request.end(late)
            for topic in self._topics.give_up(now):
                if self._connection is not None:
                    self._connection.tell(b"UNSUBSCRIBE", topic.channel)
            if self._connection is not None:
                self._probe(self._connection)

    def _probe(self, connection: Connection) -> None:
        """Have Redis send a message to this process if none comes, or give the connection up."""
        # Looks are counted, not seconds: so one that was late, because this process was blocked, counts once.
        self._quiet = self._quiet + 1 if connection.is_quiet else 0
        connection.is_quiet = True
        if self._quiet == _QUIET:
            self._publisher.probe(connection)
        elif self._quiet >= _SILENT:
            connection.cut("it does not answer")

    # Questions

    async def _ask(self, request: _Request) -> Any:
        self._requests[request] = None
        if self._publisher.connection is not None:
            self._post(request)
        try:
            return await request.wait()
        finally:
            self._requests.pop(request, None)

    def _post(self, request: _Request) -> None:
        if self._connection is not None:
            # What was published before may be what it asks about.
            self._publisher.fill()
            if request.topic is not None:
                self._connection.tell(b"SUBSCRIBE", request.topic.channel)
            self._connection.post(partial(self._follow, self._connection, request), *request.command)

    def _follow(self, connection: Connection, request: _Request, answer: Any) -> None:
        if not isinstance(answer, Exception):
            request.resolve(answer if request.follow is None else request.follow(answer))
        elif not self._epoch.recover(connection, answer):
            request.end(refusal(answer))
        elif self._publisher.connection is not None or request not in self._requests:
            self._post(request)

    def _take_other(self, channel: bytes, data: bytes) -> None:
        """Follow what was published, but not to a topic."""
        if channel == self._channel_of_questions:
            self._reply(data)
        elif channel == self._channel_of_replies and data:
            try:
                number, _, reply = data.partition(b" ")
                self._replies.add(int(number), json.loads(reply))
            except ValueError:
                _log.exception("a reply of another process cannot be read")

    def _reply(self, question: bytes) -> None:
        try:
            asker, number, text = question.split(b" ", 2)
            answer = json.dumps(self._receiver.answer(json.loads(text))).encode()
        except Exception:
            # Of a program with another version. The next question may be one that this process knows.
            _log.exception("a question of another process cannot be answered")
            return
        if self._connection is not None:
            self._connection.post(ignore, b"PUBLISH", self._prefix + b"r:" + asker, number + b" " + answer)

    # See ``Backplane``

    async def publish(
        self,
        payload: Payload,
        *,
        skip: str | None = None,
        has_history: bool = False,
        key: bytes = b"",
        conflation: bytes = b"",
    ) -> Receipt:
        """
        See ``Backplane``.

        Without history it does not wait while Redis takes what it gets: the message is kept until Redis has answered,
        also over a cut. If Redis refuses it, its subscribers are told that a message was lost.
        """
        kind, data, topic, _ = payload
        if len(data) > _MAX_MESSAGE:
            raise ValueError(f"expected a message of at most {_MAX_MESSAGE} bytes, got {len(data)}")
        spec = b""
        if has_history:
            settings = self._receiver.settings(topic)
            spec = spec_of(settings.history, settings.ttl, by_key=bool(conflation))
        head = KINDS.index(kind), len(key), len(conflation)
        tail = b"".join((key, conflation, data))
        message = Message(self._mount + topic.encode(), spec, head, tail, skip)
        if self._publisher.is_full(message):
            await self._publisher.wait_for_room(message)
        subscribers = self._receiver.reach(topic, skip)
        message.is_awaited = has_history or not self._serves or not self._publisher.is_healthy
        self._publisher.put(message)
        if not message.is_awaited:
            return Receipt(subscribers)
        answer = await message.wait()
        if not has_history or not answer:
            return Receipt(subscribers)
        stored = STORED.unpack(answer) if isinstance(answer, bytes) else (answer, self._publisher.id, message.number)
        return new(Receipt, (subscribers, position_of(stored[0], *stored)))

    async def subscribe(self, topic: str) -> Place:
        """See ``Backplane``."""
        found = self._topics.add(topic, self._mount + topic.encode(), self._receiver.settings(topic))
        command = call(READ, self._prefix, _MAX_ANSWER, found.encoded, found.spec, b"", b"")
        [[_, last, nonce]] = await self._ask(_Request(command, found, found.begin))
        return _position(last, nonce), _place(last, nonce)

    def unsubscribe(self, topic: str) -> None:
        """See ``Backplane``. Redis is told some seconds later, because subscribers come and go."""
        self._topics.leave(self._mount + topic.encode())

    async def read(self, topic: str, since: str | None, *, history: int, ttl: float | None, by_key: bool) -> Replay:
        """See ``Backplane``."""
        encoded, spec = self._mount + topic.encode(), spec_of(history, ttl, by_key=by_key)
        known = None if since is None else parse_position(since)
        offset, nonce = b"", b""
        if since == START:
            offset = b"-1"
        elif known is not None and known[1] - known[0] in (0, 1):  # see ``position_before``
            offset, nonce = b"%d" % known[0], NONCE.pack(*known[2:])
        entries: list[Entry] = []
        status = MORE
        while status == MORE:
            command = call(READ, self._prefix, _MAX_ANSWER, encoded, spec, offset, nonce)
            [[status, last, last_nonce, *records]] = await self._ask(_Request(command))
            entries += (entry_of(topic, record) for record in records)
            if records:
                offset, nonce = b"%d" % entries[-1].place, nonce_of(records[-1])
        is_recovered = status != LOST and offset != b""
        position, place = _position(last, last_nonce), _place(last, last_nonce)
        return Replay(tuple(entries) if is_recovered else (), is_recovered, position, place)

    async def position(self, topic: str) -> str:
        """See ``Backplane``."""
        settings = self._receiver.settings(topic)
        spec = spec_of(settings.history, settings.ttl, by_key=False)
        command = call(READ, self._prefix, _MAX_ANSWER, self._mount + topic.encode(), spec, b"", b"")
        [[_, last, nonce]] = await self._ask(_Request(command))
        return _position(last, nonce)

    async def claim(self, key: str, ttl: float) -> bool:
        """See ``Backplane``."""
        name = self._prefix + b"c:" + self._mount + key.encode()
        owner = b"%b %d" % (self._publisher.name, next(self._publisher.numbers))
        return bool(await self._ask(_Request(call(CLAIM, name, owner, max(1, round(ttl * 1000))))))

    async def ask(self, question: Mapping[str, Any], *, first: bool = False) -> list[Any]:
        """See ``Backplane``."""
        number = next(self._publisher.numbers)

        async def ask() -> tuple[int, int]:
            data = b"%b %d %b" % (self._publisher.name, number, json.dumps(question).encode())
            return await self._ask(_Request((b"PUBLISH", self._channel_of_questions, data))), 0

        return await self._replies.collect(number, question, ask, first=first, timeout=TIMEOUT)

    def usage(self) -> LogUsage:
        """See ``Backplane``."""
        return LogUsage(0, 0)

    async def ask_for_usage(self) -> LogUsage:
        """See ``Backplane``. The bytes are those of all data in Redis, and the messages are keys that it evicted."""
        counts = fields(await self._ask(_Request((b"INFO",))))
        return LogUsage(int(counts[b"used_memory_dataset"]), int(counts[b"evicted_keys"]))

    async def aclose(self) -> None:
        """See ``Backplane``."""
        await self._publisher.wait_for_all()


def _read(prefix: bytes, limit: int, *topics: Topic) -> tuple[bytes | int, ...]:
    return call(
        READ, prefix, limit,
        *(part for topic in topics for part in (topic.encoded, topic.spec, topic.offset, topic.nonce)),
    )  # fmt: skip


def _position(offset: int, nonce: bytes) -> str:
    return position_of(offset, offset, *NONCE.unpack(nonce))


def _place(offset: int, nonce: bytes) -> int:
    """Where a topic is: -1 without a message, whose nonce has the number 0."""
    return offset if NONCE.unpack(nonce)[1] else -1
