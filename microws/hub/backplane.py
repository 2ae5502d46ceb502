"""
Backplanes: what carries a publish to the hub of every process, and keeps the history of topics.

``MemoryBackplane`` serves one process. The others implement the same interface; ``tests/backplanes/conformance.py``
has the tests that all of them pass.
"""

from collections.abc import Iterable, Mapping
from mmap import mmap
from os import urandom
from typing import Any, Protocol, TypeAlias

import anyio

from microws.hub.claims import Claims
from microws.hub.log import Entry, Log, LogUsage, Replay
from microws.hub.published import TopicSettings
from microws.interfaces import Payload, Receipt

__all__ = ["HISTORY_BYTES", "Backplane", "MemoryBackplane", "Place", "Receiver"]

# The size of the log of all topics. Precedent: Centrifugo's memory engine has no limit, which its users regret.
HISTORY_BYTES = 64 << 20

# Where a topic is: the position of its last message, and its place in the log (-1 without one).
Place: TypeAlias = tuple[str, int]


class Receiver(Protocol):
    """The hub, as a backplane calls it."""

    def deliver(self, payload: Payload, skip: str | None = None, entry: Entry | None = None) -> int:
        """Deliver a message to the subscribers of this process, without the one whose id is ``skip``."""
        ...

    def settings(self, topic: str) -> TopicSettings:
        """How ``topic`` is kept. With history, ``deliver`` takes an ``entry`` of it."""
        ...

    def reach(self, topic: str, skip: str | None) -> int:
        """The number of subscribers that ``topic`` has in this process now, without ``skip``."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether to call ``relax`` before more is delivered."""
        ...

    def answer(self, question: Mapping[str, Any]) -> Any:
        """The answer of this process to a question that all processes are asked."""
        ...

    def lose(self, topics: Iterable[str] | None = None) -> None:
        """Tell the subscribers of ``topics``, by default of all, that messages were lost here."""
        ...

    async def relax(self) -> None:
        """Let connections send what was delivered: return once none of those that keep up has a full outbox."""
        ...


class Backplane(Protocol):
    """
    Carries each publish to every process, in the same order per topic everywhere.

    Attributes:
        spans_processes: Whether a publish in one process reaches the subscribers of other processes.
    """

    spans_processes: bool

    def start(self, receiver: Receiver) -> None:
        """Deliver to ``receiver`` from now on. Called once, before anything else."""
        ...

    async def run(self, *, task_status: "anyio.abc.TaskStatus[None] | None" = None) -> None:
        """Carry messages until this task is cancelled. Started as soon as it is ready to."""
        ...

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
        Carry ``payload`` to the subscribers of its topic in every process.

        Args:
            payload: Names its topic.
            skip: The id of a connection of this process that does not get it.
            has_history: Whether the topic has history: then this waits until the message is in the log.
            key: If the history has a message of the topic with this key, this one is not published.
            conflation: The conflation key, on a topic with history.

        Raises:
            PublishTimeout: The message may or may not have been published.
            ValueError: It is larger than the log takes.
        """
        ...

    async def subscribe(self, topic: str) -> Place:
        """
        The first subscriber of ``topic`` in this process: deliver its messages. A second call changes nothing.

        Returns:
            Where the topic is. What is published after it is delivered; what was published before it and is delivered
            at all, was delivered before this returns.
        """
        ...

    def unsubscribe(self, topic: str) -> None:
        """The last subscriber of ``topic`` in this process has left. Never waits."""
        ...

    async def read(self, topic: str, since: str | None, *, history: int, ttl: float | None, by_key: bool) -> Replay:
        """
        What was published to ``topic`` after ``since``; see ``Log.read``.

        If the topic is subscribed, all of that was delivered before this returns, and so was the message that ``since``
        names.
        """
        ...

    async def position(self, topic: str) -> str:
        """The position of the last message of ``topic``."""
        ...

    async def claim(self, key: str, ttl: float) -> bool:
        """
        Claim ``key`` for ``ttl`` seconds: ``True`` for one caller in all processes, ``False`` for the others.

        It holds, whatever is published and whichever process is killed. If the machine ends without a shutdown, claims
        are lost.

        Raises:
            PublishTimeout: The backplane does not answer. The claim may have been made.
            HubUnavailable: Too many claims hold now.
        """
        ...

    async def ask(self, question: Mapping[str, Any], *, first: bool = False) -> list[Any]:
        """
        The answers of all processes to ``question``, which JSON can carry. One that does not answer is left out.

        With ``first`` it returns as soon as one has answered.
        """
        ...

    def usage(self) -> LogUsage:
        """How full the log is that this process has: 0 if another one has it."""
        ...

    async def ask_for_usage(self) -> LogUsage:
        """How full the log is, wherever it is."""
        ...

    async def aclose(self) -> None:
        """Send what is pending, and stop."""
        ...


class MemoryBackplane:
    """
    The backplane of one process: it calls ``deliver``. The log is created when a topic with history needs it.

    Args:
        history_bytes: The size of the log.
    """

    spans_processes = False

    def __init__(self, history_bytes: int = HISTORY_BYTES) -> None:
        self._history_bytes = history_bytes
        self._made: Log | None = None
        self._publisher = int.from_bytes(urandom(5), "little")
        self._number = 0
        self._claims: Claims | None = None

    def start(self, receiver: Receiver) -> None:
        """See ``Backplane``."""
        self._receiver = receiver

    async def run(self, *, task_status: "anyio.abc.TaskStatus[None] | None" = None) -> None:
        """Nothing to carry."""
        if task_status is not None:
            task_status.started()

    async def publish(
        self,
        payload: Payload,
        *,
        skip: str | None = None,
        has_history: bool = False,
        key: bytes = b"",
        conflation: bytes = b"",
    ) -> Receipt:
        """Deliver at once. Never waits."""
        if not has_history:
            return Receipt(self._receiver.deliver(payload, skip))
        log = self._log
        self._number += 1
        place, record = log.append(
            payload.topic.encode(), payload, publisher=self._publisher, number=self._number, key=key,
            conflation=conflation,
        )  # fmt: skip
        log.commit()
        entry = log.entry(place)
        return Receipt(self._receiver.deliver(entry.payload, skip, entry) if record else 0, entry.payload.position)

    async def subscribe(self, topic: str) -> Place:
        """See ``Backplane``."""
        replay = self._log.read(topic.encode(), None, history=0)
        return replay.position, replay.place

    def unsubscribe(self, topic: str) -> None:
        """Nothing to do."""

    async def read(self, topic: str, since: str | None, *, history: int, ttl: float | None, by_key: bool) -> Replay:
        """See ``Backplane``."""
        return self._log.read(topic.encode(), since, history=history, ttl=ttl, by_key=by_key)

    async def position(self, topic: str) -> str:
        """See ``Backplane``."""
        return self._log.position(topic.encode())

    async def claim(self, key: str, ttl: float) -> bool:
        """See ``Backplane``."""
        if self._claims is None:
            self._claims = Claims(memoryview(mmap(-1, Claims.block_size(self._history_bytes))))
        self._number += 1
        return self._claims.claim(key.encode(), ttl, maker=self._publisher, number=self._number)

    async def ask(self, question: Mapping[str, Any], *, first: bool = False) -> list[Any]:
        """See ``Backplane``."""
        return [self._receiver.answer(question)]

    def usage(self) -> LogUsage:
        """See ``Backplane``."""
        return LogUsage(0, 0) if self._made is None else self._made.usage

    async def ask_for_usage(self) -> LogUsage:
        """See ``Backplane``."""
        return self.usage()

    async def aclose(self) -> None:
        """Nothing is pending."""

    @property
    def _log(self) -> Log:
        if self._made is None:
            self._made = Log(mmap(-1, Log.block_size(self._history_bytes)), self._history_bytes)
        return self._made
