"""What this process has published, in the order of its numbers, until Redis has answered."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from os import urandom
from time import monotonic
from typing import Any, Final, final

import anyio

from microws.errors import PublishTimeout
from microws.hub.gather import Gatherer
from microws.hub.pending import Pending
from microws.redis_hub.connection import Connection
from microws.redis_hub.epoch import refusal
from microws.redis_hub.scripts import KEEP_NUMBER, MADE, PUBLISH, call

__all__ = ["TIMEOUT", "Message", "Publisher"]

# Seconds after which ``publish`` and the others raise.
TIMEOUT: Final = 2.0
# The most messages, and bytes, that one call of the script publishes; and bytes that Redis has not acknowledged, above
# which publishers wait.
_MAX_BATCH: Final = 512
_MAX_BATCH_BYTES: Final = 256 << 10
_MAX_PENDING: Final = 1 << 20
# Seconds for which a message is kept that no publisher waits for. Then it is not known any more whether Redis has it.
_KEEP: Final = KEEP_NUMBER / 1000 - 60

_log = logging.getLogger("microws.hub")


@final
class Message(Pending[int | bytes]):
    """
    A message that Redis has not answered: with its offset, or with those of the one that has its key.

    Attributes:
        number: Once it was sent.
        is_awaited: Whether its publisher waits for the answer.
        is_over: It is sent no more.
    """

    __slots__ = ("head", "is_awaited", "is_over", "name", "number", "size", "skip", "spec", "tail")

    def __init__(self, name: bytes, spec: bytes, head: tuple[int, int, int], tail: bytes, skip: str | None) -> None:
        super().__init__(TIMEOUT)
        self.name: bytes = name
        self.spec: bytes = spec
        self.head: tuple[int, int, int] = head
        self.tail: bytes = tail
        self.skip: str | None = skip
        self.size: int = len(name) + len(tail) + MADE.size
        self.number: int = 0
        self.is_awaited: bool = True
        self.is_over: bool = False


@final
class Publisher:
    """
    Publishes the messages of this process in their order, each once.

    Args:
        prefix: Of Redis' keys.
        channels: The prefix of the channels of topics.
        shown: The URL of Redis for errors.
        recover: Whether what failed may be sent again.

    Attributes:
        id, name: Of this process, as a number and as Redis has it.
        numbers: Of its messages, and of what else is counted.
        connection: One that has caught up; ``None`` without one.
        skips: By number, connections that do not get a message, until it has come.
    """

    def __init__(
        self, prefix: bytes, channels: bytes, shown: str, recover: Callable[[Connection, Exception], bool]
    ) -> None:
        self.id = int.from_bytes(urandom(5), "little") | 1
        self.name = b"%x" % self.id
        self.numbers = count(1)
        self.connection: Connection | None = None
        self.skips: dict[int, str] = {}
        self._prefix = prefix
        self._channels = channels
        self._shown = shown
        self._recover = recover
        # Messages to send. What was sent before, and is sent again, comes first, with the number that it has.
        self._queue: deque[Message] = deque()
        # Those of each call that is not answered yet, and of calls that have failed; and the number of the last one
        # that was sent.
        self._sent: deque[list[Message]] = deque()
        self._failed: list[Message] = []
        self._last_number = 0
        self._gatherer = Gatherer(self._wake)
        self._pending_bytes = 0
        self._room: anyio.Event | None = None
        # Whether Redis has refused the last call, and whether the log says since that messages were lost; topics
        # whose subscribers are to be told so, and whether Redis was asked to tell them.
        self._is_refused = self._is_logged = False
        self._lost: dict[bytes, bool] = {}

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is known that keeps Redis from publishing."""
        return self.connection is not None and not self._is_refused

    def put(self, message: Message) -> None:
        """Publish ``message`` after all others."""
        if not message.is_awaited:
            message.deadline += _KEEP
        self._queue.append(message)
        self._pending_bytes += message.size
        self._gatherer.put()

    def _wake(self) -> None:
        if self.connection is not None:
            self.connection.wake()

    def fill(self) -> None:
        """Send what is in the queue."""
        connection = self.connection
        if connection is None:
            return
        # They are told before they get what follows.
        for name, is_asked in self._lost.items():
            if not is_asked:
                self._lost[name] = True
                connection.post(partial(self._follow_loss, connection, name), b"PUBLISH", self._channels + name, b"")
        if self._failed:
            return  # it is sent first, once all has been answered
        while self._queue:
            batch: list[Message] = []
            arguments: list[bytes] = []
            size = repeated = 0
            while self._queue and len(batch) < _MAX_BATCH and size < _MAX_BATCH_BYTES:
                message = self._queue.popleft()
                repeated += message.number > 0
                number = message.number = message.number or next(self.numbers)
                batch.append(message)
                size += message.size
                if message.skip is not None:
                    self.skips[number] = message.skip
                arguments += message.name, message.spec, MADE.pack(self.id, number, *message.head) + message.tail
            before = self._last_number if self._sent else 0
            self._last_number = number
            self._sent.append(batch)
            connection.post(
                partial(self._follow, connection, batch),
                *call(PUBLISH, self._prefix, self.name, repeated, before, number, self._channels, *arguments),
            )

    def probe(self, connection: Connection) -> None:
        """Have Redis send a message to this process, the way of all messages."""
        connection.post(
            partial(self._follow_probe, connection),
            *call(PUBLISH, self._prefix, self.name, 0, 0, 0, self._channels),
        )

    def _follow_probe(self, connection: Connection, answer: Any) -> None:
        if isinstance(answer, Exception) and not self._recover(connection, answer):
            connection.is_quiet = False  # what it refuses, it has got

    def _follow(self, connection: Connection, batch: list[Message], answers: Any) -> None:
        self._sent.popleft()
        if not isinstance(answers, Exception):
            size = 0
            for message, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Exception):
                    self._end([message], refusal(answer))
                elif not message.is_over:
                    message.is_over = True
                    size += message.size
                    message.resolve(answer)
            self._release(size)
            self._is_refused = self._is_logged = False
            if self.skips:
                # The own messages of this batch may come after this answer, those of the batches before it have come.
                for number in [number for number in self.skips if number < batch[0].number]:
                    del self.skips[number]
        elif self._recover(connection, answers):
            self._failed += batch
        else:
            self._end(batch, refusal(answers))
            self._is_refused = True
        if self._failed and not self._sent:
            self._send_again()
            self._wake()

    def cut(self) -> None:
        """The connection has ended. Redis may have executed what it has not answered: that is sent again."""
        self.connection = None
        self._gatherer = Gatherer(self._wake)
        self._lost = dict.fromkeys(self._lost, False)
        self._send_again()

    def _send_again(self) -> None:
        for batch in self._sent:
            self._failed += batch
        self._queue.extendleft(message for message in reversed(self._failed) if not message.is_over)
        self._sent.clear()
        self._failed = []

    def end_late(self, now: float, error: PublishTimeout) -> None:
        """Let the publishers of messages raise that were not answered in time."""
        self._end([message for message in self._pending() if message.deadline <= now], error)
        # Not in order: one that waited for room has waited before it came into the queue.
        self._queue = deque(message for message in self._queue if not message.is_over)

    def _pending(self) -> Iterator[Message]:
        for batch in (*self._sent, self._failed, self._queue):
            yield from batch

    def _end(self, messages: Iterable[Message], error: Exception) -> None:
        """Tell publishers, or if they do not wait, subscribers, that messages were not published."""
        lost = set()
        for message in messages:
            if message.is_over:
                continue
            message.is_over = True
            self._release(message.size)
            if message.is_awaited:
                message.end(error)
            else:
                lost.add(message.name)
        if lost:
            self._lost |= dict.fromkeys(lost, False)
            if not self._is_logged:
                self._is_logged = True
                _log.error("messages were lost, and their subscribers are told: %s", error)
            self._wake()

    def _follow_loss(self, connection: Connection, name: bytes, answer: Any) -> None:
        if isinstance(answer, Exception) and self._recover(connection, answer):
            self._lost[name] = False
        else:
            self._lost.pop(name, None)

    def _release(self, size: int) -> None:
        self._pending_bytes -= size
        if self._room is not None:
            self._room.set()
            self._room = None

    def is_full(self, message: Message) -> bool:
        """Whether to ``wait_for_room``."""
        return self._pending_bytes > 0 and self._pending_bytes + message.size > _MAX_PENDING

    async def wait_for_room(self, message: Message) -> None:
        """
        Wait until there is room for ``message``.

        Raises:
            PublishTimeout: There is none in time.
        """
        with anyio.move_on_after(message.deadline - monotonic()):
            while self.is_full(message):
                await self._wait_for_answer()
            return
        raise PublishTimeout(f"expected Redis at {self._shown} to keep up, got none of its answers for {TIMEOUT:g} s")

    async def wait_for_all(self) -> None:
        """Wait until nothing is pending, at most as long as a publish waits."""
        with anyio.move_on_after(TIMEOUT):
            while self._pending_bytes:
                await self._wait_for_answer()
            return
        if any(not message.is_awaited for message in self._pending()):
            _log.error("messages were lost: Redis at %s did not answer before this process ended", self._shown)

    async def _wait_for_answer(self) -> None:
        self._room = self._room or anyio.Event()
        await self._room.wait()
