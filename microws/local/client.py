"""
The ``local`` backplane in one process: its end of the socket to the hub process.

What is published is kept until the hub process has it in its log. After a cut the client connects again, says up to
where it has the log, gets what it missed, and sends again what was not acknowledged; the log knows what it has already.
"""

import asyncio
import json
import logging
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import count
from os import urandom
from time import monotonic
from typing import Any, Final

import anyio
import anyio.abc
import anyio.lowlevel

from microws.errors import HubUnavailable, PublishTimeout
from microws.hub import running_loop
from microws.hub.backplane import Place, Receiver
from microws.hub.gather import Gatherer
from microws.hub.log import (
    HAS_HISTORY,
    HEAD,
    KINDS,
    MIN_BYTES,
    Entry,
    Log,
    LogUsage,
    Replay,
    new,
    position_of,
    read_record,
)
from microws.hub.pending import Pending, Replies
from microws.interfaces import Payload, Receipt
from microws.local.wire import (
    ACK,
    ANSWER,
    ASK,
    HELLO,
    LENGTH,
    PROTOCOL,
    PROTOCOL_OF,
    PUBLISH,
    READ,
    REQUEST,
    STORED,
    USAGE,
    WELCOME,
    Op,
    frame,
)

__all__ = ["LocalBackplane"]

# For a buffer of 128 KiB or more, malloc maps memory at each read: that takes 13 µs instead of 1.3.
_MAX_READ: Final = 64 << 10
# As numbers: a look at a member of an enum takes five times as long.
_HELLO: Final = int(Op.HELLO)
_PUBLISH: Final = int(Op.PUBLISH)
_WELCOME: Final = int(Op.WELCOME)
# Bytes that the hub process has not acknowledged, above which publishers wait.
_MAX_PENDING: Final = 1 << 20
# Seconds after which ``publish`` and the others raise, and between two looks at that.
_TIMEOUT: Final = 2.0
_CHECK_INTERVAL: Final = 0.25
# Seconds after which a topic that has no subscribers here is not delivered any more.
_LINGER: Final = 5.0
# Seconds between attempts to connect, and until the first one must succeed.
_RETRY: Final = 0.02
_FIRST_CONNECT: Final = 10.0
# Seconds until a process that was refused connects again: it may send the same again.
_PAUSE_AFTER_REFUSAL: Final = 1.0

# Of the head of a record.
_PLACE: Final = struct.Struct("=16xQ")

_log = logging.getLogger("microws.hub")


class _Pending(Pending[tuple[int, bytes]]):
    """
    A message, or a question, whose publisher waits or names a connection to skip. Its answer is a place or count, and
    what follows.

    Args:
        frame: A question.
    """

    __slots__ = ("frame", "skip")

    def __init__(self, frame: bytes = b"", *, skip: str | None = None) -> None:
        super().__init__(_TIMEOUT)
        self.frame = frame
        self.skip = skip

    def give_up(self) -> None:
        """Let ``wait`` raise."""
        self.end(PublishTimeout(f"expected an answer of the hub process within {_TIMEOUT:g} s, got none"))


class _Reader:
    """
    Reads from a socket whenever it is readable.

    On asyncio the event loop itself reads: a task that wakes for each message takes twice as long. The socket stays
    registered. ``anyio.wait_readable`` registers it anew each time, which takes 14 µs.

    Args:
        sock: In non-blocking mode.
        read: Reads once. ``False``: the task that waits has something to do.
    """

    def __init__(self, sock: socket.socket, read: Callable[[], bool]) -> None:
        self._sock = sock
        self._read = read
        self._loop = running_loop()
        self._waiter: asyncio.Future[None] | None = None
        if self._loop is not None:
            self._loop.add_reader(sock, self._call)

    def _call(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            return  # the task is not done with what was read before
        try:
            if not self._read():
                waiter.set_result(None)
        except Exception as error:
            waiter.set_exception(error)

    async def wait(self) -> None:
        """Read until the task has something to do."""
        if self._loop is not None:
            self._waiter = self._loop.create_future()
            # The event loop may have called in vain meanwhile, and uvloop calls for an error only once.
            self._call()
            await self._waiter
            return
        await anyio.wait_readable(self._sock)
        while self._read():
            await anyio.wait_readable(self._sock)

    def close(self) -> None:
        """Before the socket is closed."""
        if self._loop is not None:
            self._loop.remove_reader(self._sock)


def _open(path: str) -> socket.socket:
    with ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.setblocking(False)
        sock.connect(path)
        undo.pop_all()
    return sock


class LocalBackplane:
    """
    Carries what is published through the hub process of this machine.

    Args:
        path: Of the hub process's Unix socket.
        serves: Whether this process serves an app. Otherwise it only publishes and reads, each ``publish`` waits until
            the log has the message, and a missing hub process is an error at once.
        mount: Where the app is mounted, if it is not the outermost one: its topics, claims and questions are separate
            from those of other apps.
    """

    spans_processes = True

    def __init__(self, path: str, *, serves: bool = True, mount: str = "") -> None:
        self._path = path
        self._serves = serves
        # Before each name. A topic has no control characters.
        self._prefix = f"{mount}\0".encode() if mount else b""
        self._id = int.from_bytes(urandom(5), "little") | 1
        self._numbers = count(1)
        self._numbers_of_requests = count(1)
        self._receiver: Receiver
        self._sock: socket.socket | None = None
        # Whether the hub process is of another version; whether it has answered ``HELLO``; and whether it has refused
        # what this process sent.
        self._is_foreign = False
        self._is_welcome = False
        self._is_refused = False
        # What is sent next, and what the socket has not taken.
        self._output: list[bytes] = []
        self._rest = b""
        self._gatherer: Gatherer
        self._blocked = anyio.Event()
        # What has arrived and was not followed, how many bytes are missing of its first frame, and whether no more
        # arrives.
        self._input: list[bytes] = []
        self._missing = 0
        self._has_ended = False
        self._pending_bytes = 0
        # While publishers wait for room.
        self._room: anyio.Event | None = None
        # Numbers and frames; and of those that need more, the rest. Both in the order of their numbers.
        self._unacknowledged: deque[tuple[int, bytes]] = deque()
        self._awaited: dict[int, _Pending] = {}
        self._requests: dict[int, _Pending] = {}
        self._topics: set[str] = set()
        # Topics without subscribers here, and when they are given up; the oldest first.
        self._left: dict[str, float] = {}
        self._replies = Replies()
        # The log that this process knows, the place up to which it has that, and the largest message.
        self._log_id = self._place = self._largest = 0
        # What names stand for: the topic, and whether it has history here.
        self._names: dict[bytes, tuple[str, bool]] = {}

    def start(self, receiver: Receiver) -> None:
        """See ``Backplane``."""
        self._receiver = receiver

    # The connection

    async def run(self, *, task_status: "anyio.abc.TaskStatus[None] | None" = None) -> None:
        """
        See ``Backplane``.

        Raises:
            HubUnavailable: There is no hub process at the path, or one of another version of microws.
        """
        with anyio.move_on_after(_FIRST_CONNECT) as limit:
            sock = await self._connect(is_first=True)
        if limit.cancelled_caught:
            raise HubUnavailable(f"expected a hub process at {self._path}, got none")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            while True:
                reader = _Reader(sock, partial(self._receive, sock))
                try:
                    await self._talk(sock, reader, task_status)
                finally:
                    self._sock, self._is_welcome = None, False
                    reader.close()
                    sock.close()
                if self._is_foreign:
                    tasks.cancel_scope.cancel()
                    break
                if self._log_id:
                    task_status = None
                if self._is_refused:
                    self._is_refused = False
                    _log.error("the hub process refuses what this process sends; connecting again after a while")
                    await anyio.sleep(_PAUSE_AFTER_REFUSAL)
                else:
                    _log.warning("the hub process has ended; connecting again")
                sock = await self._connect()
        raise HubUnavailable(f"expected a hub process of this version of microws at {self._path}, got one of another")

    async def _connect(self, *, is_first: bool = False) -> socket.socket:
        while True:
            try:
                return _open(self._path)
            except OSError as error:
                if is_first and not (self._serves or isinstance(error, BlockingIOError)):
                    raise HubUnavailable(
                        f"expected a server with its hub at {self._path}, got: {error.strerror or error}; the log of "
                        "the server names the path"
                    ) from None
                # No hub process, or it does not accept fast enough; or no descriptor is left here.
                await anyio.sleep(_RETRY)

    async def _talk(
        self, sock: socket.socket, reader: _Reader, task_status: "anyio.abc.TaskStatus[None] | None"
    ) -> None:
        self._sock = sock
        self._rest = b""
        self._output = [
            frame(HELLO, Op.HELLO, PROTOCOL, self._serves, self._id, self._log_id, self._place, tail=self._prefix),
            *(self._request(Op.SUBSCRIBE, 0, topic) for topic in self._topics),
            frame(LENGTH, Op.BEGIN),
        ]
        self._gatherer = Gatherer(self._flush)
        self._blocked = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write, sock)
            self._flush()
            self._input, self._missing, self._has_ended = [], 0, False
            while True:
                await reader.wait()
                # What was read is followed up to a frame after which this task has something to do.
                while True:
                    if self._is_welcome and task_status is not None:
                        task_status.started()
                        task_status = None
                    if self._has_ended or self._is_foreign:
                        tasks.cancel_scope.cancel()
                        return
                    if self._receiver.is_busy:
                        await self._receiver.relax()
                    if self._follow_input():
                        break

    def _receive(self, sock: socket.socket) -> bool:
        """Read once, and follow it. ``False``: the task that runs has something to do."""
        try:
            data = sock.recv(_MAX_READ)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        # A hub process that was killed before it had read everything leaves an error, maybe with data before it. uvloop
        # calls for both only once, so this read is the last one. What it does not bring is in the log.
        self._has_ended = not data or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        self._input.append(data)
        self._missing -= len(data)
        goes_on = self._missing > 0 or self._follow_input()
        return goes_on and not self._has_ended

    def _follow_input(self) -> bool:
        """Follow the frames that have arrived. ``False``: not all of them, the task that runs has something to do."""
        receiver = self._receiver
        data = b"".join(self._input)
        at, size = 0, len(data)
        missing = LENGTH.size
        goes_on = True
        while goes_on and size - at >= LENGTH.size:
            length, op = LENGTH.unpack_from(data, at)
            if size - at < length:
                missing = length
                break
            if op < _HELLO:
                try:
                    self._deliver(data, at)
                except Exception:
                    # Of an app of another version. The next messages are none the worse.
                    _log.exception("a message of another process cannot be delivered here")
                self._place = _PLACE.unpack_from(data, at)[0] + length
                goes_on = not receiver.is_busy
            else:
                self._follow(op, data[at : at + length])
                goes_on = op != _WELCOME
            at += length
        self._input = [data[at:]] if at < size else []
        self._missing = missing - (size - at)
        return goes_on

    def _deliver(self, data: bytes, at: int) -> None:
        (
            _, kind, topic_size, key_size, conflation_size, size, place, publisher, number, offset, _, written
        ) = HEAD.unpack_from(data, at)  # fmt: skip
        pending = self._awaited.get(number) if publisher == self._id else None
        start = at + HEAD.size
        encoded = data[start : start + topic_size]
        known = self._names.get(encoded)
        if known is None:
            if len(self._names) > len(self._topics) + 1024:
                self._names.clear()
            topic = encoded[len(self._prefix) :].decode()
            known = self._names[encoded] = topic, self._receiver.settings(topic).history > 0
        # As this process has it: the publisher may be of another version of the app.
        topic, has_history = known
        start += topic_size + key_size
        body = start + conflation_size
        position = position_of(offset, place, publisher, number) if has_history else None
        payload = new(Payload, (KINDS[kind & ~HAS_HISTORY], data[body : body + size], topic, position))
        entry = new(Entry, (place, payload, data[start:body], written)) if has_history else None
        self._receiver.deliver(payload, None if pending is None else pending.skip, entry)
        if pending is not None and kind & HAS_HISTORY:
            pending.resolve((place, position_of(offset, place, publisher, number).encode()))

    def _follow(self, op: int, data: bytes) -> None:
        """Follow a frame that is not a message."""
        if op == Op.ACK:
            _, _, number, self._place = ACK.unpack(data)
            self._acknowledge(number)
        elif op == Op.STORED:
            pending = self._awaited.get(STORED.unpack_from(data)[2])
            if pending is not None:
                pending.resolve((0, data[STORED.size :]))
        elif op == Op.ANSWER:
            _, _, number, place, reached = ANSWER.unpack_from(data)
            self._place = max(self._place, reached)
            if (request := self._requests.pop(number, None)) is not None:
                request.resolve((place, data[ANSWER.size :]))
        elif op == Op.ASKED:
            try:
                answer = json.dumps(self._receiver.answer(json.loads(data[ASK.size :])))
            except Exception:
                # Of a program with another version. The next question may be one that this process knows.
                _log.exception("a question of another process cannot be answered")
                return
            self._put(frame(ASK, Op.REPLY, *ASK.unpack_from(data)[2:], tail=answer.encode()))
        elif op == Op.REPLY:
            self._replies.add(ASK.unpack_from(data)[3], json.loads(data[ASK.size :]))
        elif op == Op.LOST:
            self._place = REQUEST.unpack_from(data)[3]
            _log.error("messages were lost: this process fell behind the log of the hub, or the log was lost")
            self._receiver.lose()
        elif op == Op.REFUSED:
            self._is_refused = True
        elif op == Op.WELCOME:
            if PROTOCOL_OF.unpack_from(data)[0] != PROTOCOL:
                self._is_foreign = True
                return
            _, _, _, log_id, size, number, place = WELCOME.unpack(data)
            self._log_id, self._largest = log_id, Log.largest(size)
            self._place = place
            self._is_welcome = True
            for sent, message in self._unacknowledged:
                if sent > number:
                    self._put(message)
            for request in self._requests.values():
                self._put(request.frame)

    def _acknowledge(self, number: int) -> None:
        unacknowledged, awaited = self._unacknowledged, self._awaited
        while unacknowledged and unacknowledged[0][0] <= number:
            acknowledged, data = unacknowledged.popleft()
            self._pending_bytes -= len(data)
            if awaited and (pending := awaited.pop(acknowledged, None)) is not None:
                # It is in the log. Its position may have been lost in a cut, or with the ring.
                pending.resolve((0, b""))
        if self._room is not None:
            self._room.set()
            self._room = None

    def _put(self, data: bytes) -> None:
        """Send ``data`` once no more follows at once."""
        if self._is_welcome:  # otherwise it is sent with the others, in their order
            self._output.append(data)
            self._gatherer.put()

    def _flush(self) -> None:
        if self._sock is None:
            return
        data = b"".join([self._rest, *self._output])
        self._output.clear()
        try:
            sent = self._sock.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(data)  # the reader learns of it
        self._rest = data[sent:]
        if self._rest:
            self._blocked.set()

    async def _write(self, sock: socket.socket) -> None:
        """Send what the socket did not take."""
        while True:
            await self._blocked.wait()
            self._blocked = anyio.Event()
            await anyio.wait_writable(sock)
            self._flush()

    async def _watch(self) -> None:
        """End what waits too long, and give up topics without subscribers."""
        while True:
            await anyio.sleep(_CHECK_INTERVAL)
            now = monotonic()
            for number, request in list(self._requests.items()):
                if request.deadline > now:
                    break
                del self._requests[number]
                request.give_up()
            for pending in self._awaited.values():
                if pending.deadline > now:
                    break
                pending.give_up()
            for topic, deadline in list(self._left.items()):
                if deadline > now:
                    break
                del self._left[topic]
                self._topics.discard(topic)
                self._put(self._request(Op.UNSUBSCRIBE, 0, topic))

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
        """See ``Backplane``. Without history it only waits if the hub process does not keep up."""
        kind, data, topic, _ = payload
        encoded = self._prefix + topic.encode()
        kinds = KINDS.index(kind) | (HAS_HISTORY if has_history else 0)
        tail = b"".join((encoded, key, conflation, data))
        size = PUBLISH.size + len(tail)
        length = HEAD.size + len(tail) + 8
        if not self._largest and length > Log.largest(MIN_BYTES):
            # The hub process has not told how large a message may be. It refuses a process that sends a larger one.
            await self.position(topic)
        if self._largest and length > self._largest:
            raise ValueError(
                f"expected a message of at most {self._largest - HEAD.size - len(encoded) - 8} bytes, got {len(data)}: "
                "App(history_bytes=…) sets the size of the log, which holds four of the largest messages"
            )
        if self._pending_bytes and self._pending_bytes + size > _MAX_PENDING:
            await self._wait_for_room(size)
        subscribers = self._receiver.reach(topic, skip)
        number = next(self._numbers)
        data = PUBLISH.pack(size, _PUBLISH, kinds, len(encoded), len(key), len(conflation), number) + tail
        self._unacknowledged.append((number, data))
        self._pending_bytes += size
        self._put(data)
        waits = has_history or not self._serves
        if not waits and skip is None:
            return Receipt(subscribers)
        pending = self._awaited[number] = _Pending(skip=skip)
        if not waits:
            return Receipt(subscribers)
        return Receipt(subscribers, (await pending.wait())[1].decode() or None)

    async def _wait_for_room(self, size: int) -> None:
        with anyio.move_on_after(_TIMEOUT):
            while self._pending_bytes and self._pending_bytes + size > _MAX_PENDING:
                await self._wait_for_acknowledgement()
            return
        raise PublishTimeout(
            f"expected the hub process to keep up, got none of its acknowledgements for {_TIMEOUT:g} s"
        )

    async def _wait_for_acknowledgement(self) -> None:
        self._room = self._room or anyio.Event()
        await self._room.wait()

    async def subscribe(self, topic: str) -> Place:
        """See ``Backplane``."""
        self._left.pop(topic, None)
        self._topics.add(topic)
        self._names.pop(self._prefix + topic.encode(), None)
        place, position = await self._ask_hub(Op.SUBSCRIBE, topic)
        return position.decode(), place

    def unsubscribe(self, topic: str) -> None:
        """See ``Backplane``. The hub process is told some seconds later, because subscribers come and go."""
        if topic in self._topics:
            self._left.pop(topic, None)
            self._left[topic] = monotonic() + _LINGER

    async def read(self, topic: str, since: str | None, *, history: int, ttl: float | None, by_key: bool) -> Replay:
        """See ``Backplane``."""
        encoded = self._prefix + topic.encode()
        number = next(self._numbers_of_requests)
        tail = encoded + (since or "").encode("utf-8", "replace")
        data = frame(READ, Op.READ, len(encoded), number, history, ttl or 0.0, by_key, tail=tail)
        place, answer = await self._wait_for(number, data)
        at = answer.index(b"\0")
        position = answer[:at].decode()
        is_recovered = answer[at + 1 : at + 2] == b"1"
        at += 2
        entries = []
        while at < len(answer):
            entries.append(self._read_record(answer, at))
            at += LENGTH.unpack_from(answer, at)[0]
        return Replay(tuple(entries), is_recovered, position, place)

    async def position(self, topic: str) -> str:
        """See ``Backplane``."""
        return (await self._ask_hub(Op.POSITION, topic))[1].decode()

    async def claim(self, key: str, ttl: float) -> bool:
        """See ``Backplane``."""
        answer, error = await self._ask_hub(Op.CLAIM, key, struct.pack("=d", ttl))
        if error:
            raise HubUnavailable(error.decode())
        return bool(answer)

    async def ask(self, question: Mapping[str, Any], *, first: bool = False) -> list[Any]:
        """See ``Backplane``."""
        number = next(self._numbers_of_requests)

        async def ask() -> tuple[int, int]:
            data = frame(ASK, Op.ASK, self._id, number, tail=json.dumps(question).encode())
            asked, left_out = await self._wait_for(number, data)
            return asked, int(left_out)

        return await self._replies.collect(number, question, ask, first=first, timeout=_TIMEOUT)

    def usage(self) -> LogUsage:
        """See ``Backplane``."""
        return LogUsage(0, 0)

    async def ask_for_usage(self) -> LogUsage:
        """See ``Backplane``."""
        return LogUsage(*USAGE.unpack((await self._ask_hub(Op.USAGE, ""))[1]))

    async def aclose(self) -> None:
        """See ``Backplane``."""
        with anyio.move_on_after(_TIMEOUT):
            while self._unacknowledged:
                await self._wait_for_acknowledgement()

    async def _ask_hub(self, op: Op, name: str, tail: bytes = b"") -> tuple[int, bytes]:
        number = next(self._numbers_of_requests)
        return await self._wait_for(number, self._request(op, number, name, tail))

    async def _wait_for(self, number: int, data: bytes) -> tuple[int, bytes]:
        request = self._requests[number] = _Pending(data)
        self._put(data)
        try:
            return await request.wait()
        finally:
            self._requests.pop(number, None)

    def _request(self, op: Op, number: int, name: str, tail: bytes = b"") -> bytes:
        encoded = self._prefix + name.encode()
        return frame(REQUEST, op, len(encoded), number, tail=encoded + tail)

    def _read_record(self, data: bytes, at: int) -> Entry:
        entry = read_record(data, at)
        if not self._prefix:
            return entry
        topic = entry.payload.topic[len(self._prefix.decode()) :]
        return entry._replace(payload=entry.payload._replace(topic=topic))
