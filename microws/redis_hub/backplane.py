"""
The ``redis`` backplane in one process: what it has published and not seen answered, and where its topics are.

A message stays here until Redis has answered. After a cut, the topics say up to where they are and get what they
missed, or their subscribers are told; then what was not answered is sent again, and Redis knows what it has.
"""

import json
import logging
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from os import urandom
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
from microws.redis_hub.connection import Connection, connect, is_refusal, tls_context
from microws.redis_hub.scripts import (
    CLAIM,
    EPOCH_SIZE,
    MADE,
    NONCE,
    OPEN,
    PUBLISH,
    READ,
    RECORD,
    STORED,
    Script,
    spec_of,
)

__all__ = ["RedisBackplane"]

# The most messages, and bytes, that one call of the script publishes; and bytes that Redis has not acknowledged, above
# which publishers wait.
_MAX_BATCH: Final = 512
_MAX_BATCH_BYTES: Final = 256 << 10
_MAX_PENDING: Final = 1 << 20
# Redis disconnects a subscriber that has 32 MiB pending (client-output-buffer-limit).
_MAX_MESSAGE: Final = (16 << 20) - 1024
# Seconds after which ``publish`` and the others raise, and between two looks at that.
_TIMEOUT: Final = 2.0
_CHECK_INTERVAL: Final = 0.25
# Looks without anything received: then a probe is sent; then the connection is given up.
_QUIET: Final = 4
_SILENT: Final = 11
# Seconds for which a topic that has no subscribers here is still delivered.
_LINGER: Final = 5.0
# Seconds: until the first connection must succeed; for one attempt; between attempts, at first and at most.
_FIRST_CONNECT: Final = 5.0
_CONNECT_TIMEOUT: Final = 1.0
_RETRY: Final = 0.02
_MAX_RETRY: Final = 0.5
# Topics that are subscribed again with one call.
_MAX_TOPICS: Final = 512
# Such calls that are sent before the first of them is answered. Their answers have about 256 KiB each at most.
_PARTS_AT_ONCE: Final = 3

_LOADS: Final = tuple((b"SCRIPT", b"LOAD", script.text) for script in (PUBLISH, READ, OPEN, CLAIM))
# What ``READ`` says of a topic, besides that all is there.
_LOST: Final = 0
_MORE: Final = 2
# In a record: the nonce of the message before it, and its own.
_BEFORE: Final = slice(24, 40)
_NONCE: Final = slice(40, 56)

_log = logging.getLogger("microws.hub")


@final
class _Message(Pending[int | bytes]):
    """A message that Redis has not answered: with its offset, or with those of the one that has its key."""

    __slots__ = ("head", "name", "number", "size", "skip", "spec", "tail")

    def __init__(self, name: bytes, spec: bytes, head: tuple[int, int, int], tail: bytes, skip: str | None) -> None:
        super().__init__(_TIMEOUT)
        self.name = name
        self.spec = spec
        self.head = head
        self.tail = tail
        self.skip = skip
        self.size = len(name) + len(tail) + MADE.size
        # Once it was sent.
        self.number = 0


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
        topic: "_Topic | None" = None,
        follow: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(_TIMEOUT)
        self.command = command
        self.topic = topic
        self.follow = follow


@final
class _Topic:
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
        self.name = name
        self.encoded = encoded
        self.channel = channel
        self.spec = b""
        self.offset = 0
        self.nonce = b""
        self.is_behind = False


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
        self._id = int.from_bytes(urandom(5), "little") | 1
        self._me = b"%x" % self._id
        self._prefix = f"{address.prefix}:".encode()
        # Databases do not separate what is published.
        separate = self._prefix + b"%d:" % address.db
        self._channels = separate + b"t:"
        self._channel_of_questions = separate + b"ask:" + self._mount
        self._channel_of_replies = self._prefix + b"r:" + self._me
        self._receiver: Receiver
        self._numbers = count(1)
        self._connection: Connection | None = None
        # Whether that has caught up.
        self._is_open = False
        # Looks at it since the last message came.
        self._quiet = 0
        # What Redis is: whether it writes each message to disk first; which run of which server, with which data, and
        # with which data before it was promoted. Its epoch and the count of keys that it evicted; and whether these are
        # as they were at the connection before.
        self._server = (b"0", b"", b"")
        self._known: tuple[bytes, bytes | None] = (b"", None)
        self._is_trusted = False
        # Topics of which messages were lost in the last cut.
        self._lost = 0
        # Why there is no connection, and since when there is none that has caught up.
        self._trouble = ""
        self._cut_at: float | None = None
        # Messages to send; and those that are sent, by number. What was sent before a cut, and is sent again, comes
        # first, with the number that it has.
        self._queue: deque[_Message] = deque()
        self._sent: dict[int, _Message] = {}
        # Calls that publish and are not answered yet; the last number of the newest one; and whether one has failed.
        self._unanswered = self._last_number = 0
        self._has_failed = False
        self._pending_bytes = 0
        self._room: anyio.Event | None = None
        # By number, connections that do not get a message, until it has come.
        self._skips: dict[int, str] = {}
        self._requests: dict[_Request, None] = {}
        self._topics: dict[bytes, _Topic] = {}
        # Topics without subscribers here, and when they are given up; the oldest first.
        self._left: dict[_Topic, float] = {}
        self._replies = Replies()

    def start(self, receiver: Receiver) -> None:
        """See ``Backplane``."""
        self._receiver = receiver

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
                elif connection.is_refused:
                    await anyio.sleep(random() * _MAX_RETRY)
                connection = await self._connect(tls)

    async def _connect(self, tls: ssl.SSLContext | None, *, is_first: bool = False) -> Connection:
        began = monotonic()
        for attempt in count():
            try:
                with anyio.fail_after(_CONNECT_TIMEOUT):
                    return await connect(self._address, tls, self._open)
            except HubUnavailable as error:
                if is_first:
                    raise
                self._trouble = str(error)
            except OSError as error:
                self._trouble = str(error) or f"it does not answer within {_CONNECT_TIMEOUT:g} s"
            if is_first and not attempt:
                _log.warning("waiting for Redis at %s: %s", self._address.shown, self._trouble)
            if is_first and monotonic() - began > _FIRST_CONNECT:
                raise HubUnavailable(f"expected Redis at {self._address.shown}, got: {self._trouble}")
            await anyio.sleep(random() * min(_MAX_RETRY, _RETRY * 2 ** min(attempt, 8)))
        raise AssertionError

    async def _open(self, connection: Connection) -> None:
        """Learn what Redis is, and begin an epoch if its last messages may be lost."""
        info, config, *_ = await connection.converse((b"INFO",), (b"CONFIG", b"GET", b"appendfsync"), *_LOADS)
        server = _fields(info)
        # One that was a replica may have lacked messages when it was promoted. Its files lack them, too.
        was_primary = server.get(b"second_repl_offset") == b"-1"
        is_durable = server.get(b"aof_enabled") == b"1" and config == {b"appendfsync": b"always"} and was_primary
        data, data_before = server[b"master_replid"], server.get(b"master_replid2", b"")
        run = server.get(b"run_id", b"")
        self._server = b"%d" % is_durable, b"%b %b" % (run, data), b"%b %b" % (run, data_before)
        channels = [self._channel_of_replies, *([self._channel_of_questions] if self._serves else [])]
        subscribe = [(b"SUBSCRIBE", channel) for channel in channels]
        *_, epoch = await connection.converse(*subscribe, self._begin_epoch())
        known = epoch, server.get(b"evicted_keys")
        self._is_trusted = self._known == known
        self._known = known

    def _begin_epoch(self) -> tuple[bytes | int, ...]:
        # As the id of a publisher, it is a part of positions.
        return _call(OPEN, self._prefix, urandom(5) + bytes(EPOCH_SIZE - 5), *self._server)

    async def _talk(self, connection: Connection, task_status: "anyio.abc.TaskStatus[None] | None") -> None:
        self._connection, self._quiet = connection, 0
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._catch_up, connection, task_status)
                await connection.run(self._fill, self._take, self._receiver)
                tasks.cancel_scope.cancel()
        finally:
            self._connection, self._is_open = None, False
            self._send_again()

    async def _catch_up(self, connection: Connection, task_status: "anyio.abc.TaskStatus[None] | None") -> None:
        """Subscribe to all topics, and get what was missed. Then go on."""
        known = [topic for topic in self._topics.values() if topic.nonce]
        for topic in known:
            topic.is_behind = True
        parts = iter([known[start : start + _MAX_TOPICS] for start in range(0, len(known), _MAX_TOPICS)])

        async def follow() -> None:
            for part in parts:
                # Some may have been given up meanwhile.
                behind = [topic for topic in part if topic.channel in self._topics]
                while behind and not connection.reason:
                    connection.tell(b"SUBSCRIBE", *(topic.channel for topic in behind))
                    request = _Request(_read(self._prefix, *behind), follow=partial(self._follow_up, behind))
                    self._post(request)
                    try:
                        behind = await request.wait()
                    except HubUnavailable as error:
                        connection.cut(str(error), is_refused=True)

        async with anyio.create_task_group() as tasks:
            for _ in range(_PARTS_AT_ONCE):
                tasks.start_soon(follow)
        if connection.reason:
            return
        if self._lost:
            _log.error(
                "messages were lost: Redis does not have all that followed the last ones of %d topics", self._lost
            )
            self._lost = 0
        if self._cut_at is not None:
            seconds, self._cut_at = monotonic() - self._cut_at, None
            _log.info("connected to Redis at %s again after %.1f s", self._address.shown, seconds)
        self._is_open = True
        for request in self._requests:
            self._post(request)
        connection.wake()
        if task_status is not None:
            task_status.started()

    def _follow_up(self, behind: list[_Topic], answers: list[list[Any]]) -> list[_Topic]:
        """Deliver what was missed of topics, or tell that it is lost. Returns those of which there is more."""
        rest, lost = [], []
        for topic, (status, last, nonce, *records) in zip(behind, answers, strict=True):
            for record in records:
                if RECORD.unpack_from(record)[0] > topic.offset:
                    self._deliver(topic, record)
            if status == _MORE:
                rest.append(topic)
                continue
            topic.is_behind = False
            # Without history Redis forgets where a topic was, if nothing is published for long.
            is_forgotten = self._is_trusted and not (last or topic.spec)
            if status == _LOST and nonce != topic.nonce and not is_forgotten:
                topic.offset, topic.nonce = last, nonce
                lost.append(topic.name)
        if lost:
            self._lost += len(lost)
            self._receiver.lose(lost)
        return rest

    async def _watch(self) -> None:
        """End what waits too long, give up topics without subscribers, and probe a connection that is quiet."""
        while True:
            await anyio.sleep(_CHECK_INTERVAL)
            # The next look would be too late.
            now = monotonic() + _CHECK_INTERVAL
            late = PublishTimeout(
                f"expected an answer of Redis at {self._address.shown} within {_TIMEOUT:g} s, got none"
                + (f" ({self._trouble})" if self._connection is None else "")
            )
            for message in self._late(now):
                message.end(late)
            for request in [request for request in self._requests if request.deadline <= now]:
                del self._requests[request]
                request.end(late)
            for topic, deadline in list(self._left.items()):
                if deadline > now:
                    break
                del self._left[topic], self._topics[topic.channel]
                if self._connection is not None:
                    self._connection.tell(b"UNSUBSCRIBE", topic.channel)
            if self._connection is not None:
                self._probe(self._connection)

    def _late(self, now: float) -> list[_Message]:
        """Forget the messages that were not answered in time."""
        late = [message for message in (*self._sent.values(), *self._queue) if message.deadline <= now]
        if late:
            # Not in order: one that waited for room has waited before it came into the queue.
            self._queue = deque(message for message in self._queue if message.deadline > now)
        for message in late:
            self._sent.pop(message.number, None)
            self._release(message)
        return late

    def _probe(self, connection: Connection) -> None:
        """Have Redis send a message to this process if none comes, the way of all messages; or give the line up."""
        # Looks are counted, not seconds: so one that was late, because this process was blocked, counts once.
        self._quiet = self._quiet + 1 if connection.is_quiet else 0
        connection.is_quiet = True
        if self._quiet == _QUIET:
            connection.post(self._follow_probe, *_call(PUBLISH, self._prefix, self._me, 0, 0, 0, self._channels))
        elif self._quiet >= _SILENT:
            connection.cut("it does not answer")

    def _follow_probe(self, answer: Any) -> None:
        if isinstance(answer, Exception):
            self._recover(answer)

    # Sending

    def _wake(self) -> None:
        if self._connection is not None:
            self._connection.wake()

    def _fill(self) -> None:
        """Publish what is in the queue."""
        if not self._is_open or self._connection is None or self._has_failed:
            return
        while self._queue:
            batch: list[_Message] = []
            arguments: list[bytes] = []
            size = repeated = 0
            while self._queue and len(batch) < _MAX_BATCH and size < _MAX_BATCH_BYTES:
                message = self._queue.popleft()
                repeated += message.number > 0
                number = message.number = message.number or next(self._numbers)
                self._sent[number] = message
                batch.append(message)
                size += message.size
                if message.skip is not None:
                    self._skips[number] = message.skip
                arguments += message.name, message.spec, MADE.pack(self._id, number, *message.head) + message.tail
            before = self._last_number if self._unanswered else 0
            self._last_number = number
            self._unanswered += 1
            command = _call(PUBLISH, self._prefix, self._me, repeated, before, number, self._channels, *arguments)
            self._connection.post(partial(self._follow_batch, batch), *command)

    def _follow_batch(self, batch: list[_Message], answers: Any) -> None:
        sent = self._sent
        self._unanswered -= 1
        if not isinstance(answers, Exception):
            for message, answer in zip(batch, answers, strict=True):
                if sent.pop(message.number, None) is not None:
                    self._release(message)
                    message.resolve(answer)
            if self._skips:
                # The own messages of this batch may come after this answer, those of the batches before it have come.
                for number in [number for number in self._skips if number < batch[0].number]:
                    del self._skips[number]
        elif self._recover(answers):
            self._has_failed = True
        else:
            for message in batch:
                if sent.pop(message.number, None) is not None:
                    self._release(message)
                    message.end(_refusal(answers))
        if self._has_failed and not self._unanswered:
            self._send_again()
            self._wake()

    def _send_again(self) -> None:
        """Queue what was sent and not answered, before everything else. Redis may have executed it."""
        self._queue.extendleft(reversed(self._sent.values()))
        self._sent.clear()
        self._unanswered, self._has_failed = 0, False

    def _release(self, message: _Message) -> None:
        self._pending_bytes -= message.size
        if self._room is not None:
            self._room.set()
            self._room = None

    def _post(self, request: _Request) -> None:
        if self._connection is not None:
            if request.topic is not None:
                self._connection.tell(b"SUBSCRIBE", request.topic.channel)
            self._connection.post(partial(self._follow, request), *request.command)

    def _follow(self, request: _Request, answer: Any) -> None:
        if not isinstance(answer, Exception):
            request.resolve(answer if request.follow is None else request.follow(answer))
        elif not self._recover(answer):
            request.end(_refusal(answer))
        elif self._is_open or request not in self._requests:
            self._post(request)

    def _recover(self, error: Exception) -> bool:
        """Whether what failed may be sent again, now or after the cut."""
        text = str(error)
        if self._connection is None or is_refusal(error):
            return False
        if text.startswith("NOSCRIPT"):
            for load in _LOADS:
                self._connection.post(_ignore, *load)
        elif text.startswith("EPOCH"):
            self._connection.post(self._follow_epoch, *self._begin_epoch())
        elif not text.startswith("BEHIND"):
            self._connection.cut(text)
        return True

    def _follow_epoch(self, epoch: Any) -> None:
        if isinstance(epoch, Exception):
            # A replica that has been emptied, for example. What waits for the epoch would fail again and again.
            if self._connection is not None:
                self._connection.cut(str(epoch))
        elif epoch != self._known[0]:
            self._known = epoch, self._known[1]
            _log.warning("Redis at %s has lost its messages: clients cannot resume", self._address.shown)

    # Receiving

    def _take(self, channel: bytes, data: bytes) -> None:
        """Follow what was published."""
        topic = self._topics.get(channel)
        if topic is not None:
            if not topic.is_behind or data[_BEFORE] == topic.nonce:
                self._deliver(topic, data)
        elif channel == self._channel_of_questions:
            self._reply(data)
        elif channel == self._channel_of_replies and data:
            number, _, reply = data.partition(b" ")
            self._replies.add(int(number), json.loads(reply))

    def _deliver(self, topic: _Topic, data: bytes) -> None:
        offset, time, publisher, number, kind, key_size, conflation_size = RECORD.unpack_from(data)
        if offset <= topic.offset:
            self._receiver.lose((topic.name,))  # another log
        topic.offset = offset
        topic.nonce = data[_NONCE]
        skip = self._skips.pop(number, None) if self._skips and publisher == self._id else None
        start = RECORD.size + key_size
        body = start + conflation_size
        try:
            if topic.spec:
                position = position_of(offset, offset, publisher, number)
                payload = new(Payload, (KINDS[kind], data[body:], topic.name, position))
                self._receiver.deliver(payload, skip, new(Entry, (offset, payload, data[start:body], time)))
            else:
                self._receiver.deliver(new(Payload, (KINDS[kind], data[body:], topic.name, None)), skip)
        except Exception:
            # Of an app of another version. The next messages are none the worse.
            _log.exception("a message of another process cannot be delivered here")

    def _reply(self, question: bytes) -> None:
        asker, number, text = question.split(b" ", 2)
        try:
            answer = json.dumps(self._receiver.answer(json.loads(text))).encode()
        except Exception:
            # Of a program with another version. The next question may be one that this process knows.
            _log.exception("a question of another process cannot be answered")
            return
        if self._connection is not None:
            self._connection.post(_ignore, b"PUBLISH", self._prefix + b"r:" + asker, number + b" " + answer)

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
        """See ``Backplane``. Waits for Redis without history, too."""
        kind, data, topic, _ = payload
        if len(data) > _MAX_MESSAGE:
            raise ValueError(f"expected a message of at most {_MAX_MESSAGE} bytes, got {len(data)}")
        spec = b""
        if has_history:
            settings = self._receiver.settings(topic)
            spec = spec_of(settings.history, settings.ttl, by_key=bool(conflation))
        head = KINDS.index(kind), len(key), len(conflation)
        tail = b"".join((key, conflation, data))
        message = _Message(self._mount + topic.encode(), spec, head, tail, skip)
        if self._pending_bytes and self._pending_bytes + message.size > _MAX_PENDING:
            await self._wait_for_room(message)
        subscribers = self._receiver.reach(topic, skip)
        self._queue.append(message)
        self._pending_bytes += message.size
        self._wake()
        answer = await message.wait()
        if not has_history or not answer:
            return Receipt(subscribers)
        stored = STORED.unpack(answer) if isinstance(answer, bytes) else (answer, self._id, message.number)
        return Receipt(subscribers, position_of(stored[0], *stored))

    async def _wait_for_room(self, message: _Message) -> None:
        with anyio.move_on_after(message.deadline - monotonic()):
            while self._pending_bytes and self._pending_bytes + message.size > _MAX_PENDING:
                self._room = self._room or anyio.Event()
                await self._room.wait()
            return
        raise PublishTimeout(
            f"expected Redis at {self._address.shown} to keep up, got none of its answers for {_TIMEOUT:g} s"
        )

    async def subscribe(self, topic: str) -> Place:
        """See ``Backplane``."""
        encoded = self._mount + topic.encode()
        found = self._topics.get(self._channels + encoded)
        if found is None:
            found = _Topic(topic, encoded, self._channels + encoded)
            self._topics[found.channel] = found
        self._left.pop(found, None)
        settings = self._receiver.settings(topic)
        found.spec = spec_of(settings.history, settings.ttl, by_key=settings.overflow == "latest")
        command = _call(READ, self._prefix, encoded, found.spec, b"", b"")
        [[_, last, nonce]] = await self._ask(_Request(command, found, partial(self._begin, found)))
        return _position(last, nonce), _place(last, nonce)

    @staticmethod
    def _begin(topic: _Topic, answer: Any) -> Any:
        if not topic.nonce:
            _, topic.offset, topic.nonce = answer[0]
        return answer

    def unsubscribe(self, topic: str) -> None:
        """See ``Backplane``. Redis is told some seconds later, because subscribers come and go."""
        found = self._topics.get(self._channels + self._mount + topic.encode())
        if found is not None:
            self._left.pop(found, None)
            self._left[found] = monotonic() + _LINGER

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
        status = _MORE
        while status == _MORE:
            command = _call(READ, self._prefix, encoded, spec, offset, nonce)
            [[status, last, last_nonce, *records]] = await self._ask(_Request(command))
            entries += (_entry(topic, record) for record in records)
            if records:
                offset, nonce = b"%d" % entries[-1].place, records[-1][_NONCE]
        is_recovered = status != _LOST and offset != b""
        position, place = _position(last, last_nonce), _place(last, last_nonce)
        return Replay(tuple(entries) if is_recovered else (), is_recovered, position, place)

    async def position(self, topic: str) -> str:
        """See ``Backplane``."""
        settings = self._receiver.settings(topic)
        spec = spec_of(settings.history, settings.ttl, by_key=False)
        command = _call(READ, self._prefix, self._mount + topic.encode(), spec, b"", b"")
        [[_, last, nonce]] = await self._ask(_Request(command))
        return _position(last, nonce)

    async def claim(self, key: str, ttl: float) -> bool:
        """See ``Backplane``."""
        name = self._prefix + b"c:" + self._mount + key.encode()
        owner = b"%b %d" % (self._me, next(self._numbers))
        return bool(await self._ask(_Request(_call(CLAIM, name, owner, max(1, round(ttl * 1000))))))

    async def ask(self, question: Mapping[str, Any], *, first: bool = False) -> list[Any]:
        """See ``Backplane``."""
        number = next(self._numbers)

        async def ask() -> tuple[int, int]:
            data = b"%b %d %b" % (self._me, number, json.dumps(question).encode())
            return await self._ask(_Request((b"PUBLISH", self._channel_of_questions, data))), 0

        return await self._replies.collect(number, question, ask, first=first, timeout=_TIMEOUT)

    def usage(self) -> LogUsage:
        """See ``Backplane``."""
        return LogUsage(0, 0)

    async def ask_for_usage(self) -> LogUsage:
        """See ``Backplane``. The bytes are those of all data in Redis, and the messages are keys that it evicted."""
        counts = _fields(await self._ask(_Request((b"INFO",))))
        return LogUsage(int(counts[b"used_memory_dataset"]), int(counts[b"evicted_keys"]))

    async def aclose(self) -> None:
        """See ``Backplane``."""
        with anyio.move_on_after(_TIMEOUT):
            while self._pending_bytes:
                self._room = self._room or anyio.Event()
                await self._room.wait()

    async def _ask(self, request: _Request) -> Any:
        self._requests[request] = None
        if self._is_open:
            self._post(request)
        try:
            return await request.wait()
        finally:
            self._requests.pop(request, None)


def _call(script: Script, *arguments: bytes | int) -> tuple[bytes | int, ...]:
    return (b"EVALSHA", script.sha, 0, *arguments)


def _read(prefix: bytes, *topics: _Topic) -> tuple[bytes | int, ...]:
    return _call(
        READ, prefix,
        *(part for topic in topics for part in (topic.encoded, topic.spec, topic.offset, topic.nonce)),
    )  # fmt: skip


def _fields(info: bytes) -> dict[bytes, bytes]:
    return dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)


def _entry(topic: str, record: bytes) -> Entry:
    """The message of a record."""
    offset, time, publisher, number, kind, key_size, conflation_size = RECORD.unpack_from(record)
    start = RECORD.size + key_size
    body = start + conflation_size
    position = position_of(offset, offset, publisher, number)
    return Entry(offset, Payload(KINDS[kind], record[body:], topic, position), record[start:body], time)


def _position(offset: int, nonce: bytes) -> str:
    return position_of(offset, offset, *NONCE.unpack(nonce))


def _place(offset: int, nonce: bytes) -> int:
    """Where a topic is: -1 without a message, whose nonce has the number 0."""
    return offset if NONCE.unpack(nonce)[1] else -1


def _refusal(error: Exception) -> HubUnavailable:
    # Redis 6 says first in which script it was.
    return HubUnavailable(f"Redis refused: {str(error).rpartition(': -')[2]}")


def _ignore(answer: Any) -> None:
    """Of a command whose answer says nothing."""
