"""
Presence: who is on a topic, in all processes.

Each process publishes how its members have changed, at most four times a second, on a topic that only processes
read. A message has the number after the one before, so a process that has missed one asks the others for all of their
members. One that is not heard of any more has died, and its members have left.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from os import urandom
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import anyio

from microws.codec import TEXT, dumps_json, loads_json
from microws.errors import PublishTimeout
from microws.hub.backplane import Backplane
from microws.hub.live import live_frame
from microws.hub.outbox import Outbox
from microws.hub.published import Published, TopicSettings
from microws.hub.subscribers import Subscriber
from microws.hub.topics import check_topic
from microws.interfaces import Frame, Receipt, Subscribed

__all__ = ["PRESENCE_TOPIC", "Info", "Members", "Presence", "Viewer", "check_presence"]

# No client may subscribe to it: see ``TopicHooks``.
PRESENCE_TOPIC: Final = "$presence"
# Bytes of the JSON of one member.
_MAX_BYTES: Final = 4 << 10

# Seconds between two messages of a process, and so between two frames for a client.
_TICK: Final = 0.25
# Seconds between two signs of life, and after which a process without any has died: then its members have left.
_BEAT: Final = 1.0
_DEAD: Final = 4.0
# Messages that are pending for a client from which on it gets no changes, but all members when it has caught up.
_SLOW: Final = 32

Info: TypeAlias = dict[str, Any]
# By id.
Members: TypeAlias = dict[str, Info]


def check_presence(info: object) -> None:
    """
    Refuse an invalid presence.

    Raises:
        TypeError, ValueError: It is not a dict that JSON can carry, or it is too long.
    """
    if not isinstance(info, dict):
        raise TypeError(f"expected a presence as dict, got {type(info).__name__}")
    size = len(dumps_json(info))
    if size > _MAX_BYTES:
        raise ValueError(f"expected a presence of at most {_MAX_BYTES} bytes as JSON, got {size}")


class Viewer(Protocol):
    """A connection that is a member of topics, and may be told who else is."""

    @property
    def id(self) -> str:
        """Unique in all processes."""
        ...

    @property
    def queued(self) -> int:
        """Messages that are pending for it."""
        ...

    def tell_members(self, frame: Published) -> None:
        """Send a frame about members, if the client reads them. Never waits."""
        ...


class _Hub(Protocol):
    """The hub, as presence uses it."""

    backplane: Backplane
    losses: Counter[str]

    async def subscribe(self, subscriber: Subscriber, *topics: str) -> Subscribed:
        """``Hub.subscribe``."""
        ...

    def leave(self, subscriber: Subscriber) -> None:
        """``Hub.leave``."""
        ...

    async def publish(self, topic: str, value: Any) -> Receipt:
        """``Hub.publish``."""
        ...


class _Other:
    """Another process, as far as it is known."""

    def __init__(self, number: int, topics: dict[str, Members], heard: float) -> None:
        self.number = number
        self.topics = topics
        self.heard = heard


class _Lingering(NamedTuple):
    """A member whose connection broke off, and that may come back."""

    info: Info
    until: float


class Presence:
    """
    The members of the topics of a hub.

    Args:
        hub: As above.
        leave_after: Seconds for which a member whose connection broke off stays.
        limit: The most members of a topic that clients are told one by one; of more, they get the number.
    """

    def __init__(self, hub: _Hub, *, leave_after: float = 5.0, limit: int = 256) -> None:
        self._hub = hub
        self.leave_after: float = leave_after
        self.limit: int = limit
        self._is_running = False
        self._process = urandom(8).hex()
        # The number of the last message, and what it has told, by topic.
        self._number = 0
        self._told: dict[str, Members] = {}
        self._own: defaultdict[str, dict[Viewer, tuple[str, Info]]] = defaultdict(dict)
        self._lingering: defaultdict[str, dict[str, _Lingering]] = defaultdict(dict)
        self._others: dict[str, _Other] = {}
        # What the viewers of a topic know; and those who know nothing yet, or were too slow.
        self._shown: dict[str, Members] = {}
        self._new: defaultdict[str, set[Viewer]] = defaultdict(set)
        self._dirty: set[str] = set()
        self._needs_all = True
        self._beaten = 0.0

    def join(self, viewer: Viewer, topic: str, info: Info, start_soon: Callable[..., None]) -> None:
        """
        ``viewer`` becomes a member of ``topic``, or changes what it is known by.

        Args:
            info: What the others see; was checked. ``"id"`` names the member, whichever connections it has. Default:
                the connection.
            start_soon: Starts a task of the app.
        """
        name = str(info.get("id", viewer.id))
        self._own[topic][viewer] = name, info
        self._lingering[topic].pop(name, None)
        self._new[topic].add(viewer)
        self._dirty.add(topic)
        if not self._is_running:
            self._is_running = True
            start_soon(self._run)

    def leave(self, viewer: Viewer, topics: Collection[str], *, lingers: bool) -> None:
        """``viewer`` leaves topics. With ``lingers`` it may come back within ``leave_after`` seconds."""
        for topic in topics:
            found = self._own.get(topic, {}).pop(viewer, None)
            if found is None:
                continue
            self._new[topic].discard(viewer)
            self._dirty.add(topic)
            name, info = found
            if lingers:
                self._lingering[topic][name] = _Lingering(info, anyio.current_time() + self.leave_after)

    def answer(self, topic: str | None) -> dict[str, Any]:
        """The answer of this process to ``{"presence": topic}``; ``None``: all topics."""
        topics = self._topics() if topic is None else {topic}
        members = {each: self._own_members(each) for each in topics}
        return {"process": self._process, "number": self._number, "topics": members}

    async def members(self, topic: str) -> Members:
        """The members of ``topic`` in all processes that answer."""
        check_topic(topic)
        members: Members = {}
        for answer in await self._hub.backplane.ask({"presence": topic}):
            members |= answer["topics"][topic]
        return members

    # Own members

    def _topics(self) -> set[str]:
        return {topic for known in (self._own, self._lingering) for topic, each in known.items() if each}

    def _own_members(self, topic: str) -> Members:
        lingering = {name: each.info for name, each in self._lingering.get(topic, {}).items()}
        return lingering | dict(self._own.get(topic, {}).values())

    def _all_members(self, topic: str) -> Members:
        members: Members = {}
        for other in self._others.values():
            members |= other.topics.get(topic, {})
        return members | self._own_members(topic)

    # The task

    async def _run(self) -> None:
        """Tell the others, and the viewers, as long as there are members."""
        outbox = Outbox(marker=_gap, losses=self._hub.losses)
        subscriber = Subscriber(
            id=f"presence-{self._process}", codec=TEXT, outbox=outbox, wake=lambda: self._read(outbox),
            refuse=self._lose,
        )  # fmt: skip
        try:
            await self._hub.subscribe(subscriber, PRESENCE_TOPIC)
            while self._topics() or self._dirty:
                await self._tick()
                await anyio.sleep(_TICK)
        finally:
            self._is_running = False
            self._needs_all = True
            self._others.clear()
            self._shown.clear()
            self._hub.leave(subscriber)

    async def _tick(self) -> None:
        now = anyio.current_time()
        self._expire(now)
        if self._needs_all:
            self._needs_all = False
            await self._ask(now)
        dirty, self._dirty = self._dirty, set()
        try:
            await self._tell_others(dirty, now)
        except PublishTimeout:
            pass  # they miss a number, and ask
        for topic in dirty | self._new.keys():
            self._tell_viewers(topic)

    def _expire(self, now: float) -> None:
        for topic, lingering in list(self._lingering.items()):
            for name in [name for name, each in lingering.items() if each.until <= now]:
                del lingering[name]
                self._dirty.add(topic)
            if not lingering:
                del self._lingering[topic]
        for process in [process for process, other in self._others.items() if now - other.heard > _DEAD]:
            self._dirty |= self._others.pop(process).topics.keys()

    async def _ask(self, now: float) -> None:
        """Learn all members of the other processes."""
        for answer in await self._hub.backplane.ask({"presence": None}):
            process = answer["process"]
            if process != self._process:
                known = self._others.get(process)
                self._dirty |= answer["topics"].keys() | (known.topics.keys() if known else set())
                self._others[process] = _Other(answer["number"], answer["topics"], now)

    async def _tell_others(self, dirty: set[str], now: float) -> None:
        changes = {}
        for topic in dirty:
            members = self._own_members(topic)
            if any(change := _change(self._told.get(topic, {}), members)):
                changes[topic] = change
                self._told[topic] = members
                if not members:
                    del self._told[topic]
        if changes:
            self._number += 1
        elif not self._told or now - self._beaten < _BEAT:
            return
        self._beaten = now
        message = {"process": self._process, "number": self._number, "changes": changes}
        await self._hub.publish(PRESENCE_TOPIC, dumps_json(message).decode())

    def _read(self, outbox: Outbox) -> None:
        """Take in what other processes tell."""
        while outbox:
            published = outbox.pop_published()
            if published.is_gap:
                self._needs_all = True
                continue
            message = loads_json(published.frame.text)
            process, number, changes = message["process"], message["number"], message["changes"]
            if process == self._process:
                continue
            other = self._others.get(process)
            if other is None or number - other.number != bool(changes):
                self._needs_all = self._needs_all or other is None or number > other.number
                continue
            other.number, other.heard = number, anyio.current_time()
            for topic, (joined, left) in changes.items():
                members = other.topics.setdefault(topic, {})
                members |= joined
                for name in left:
                    members.pop(name, None)
            self._dirty |= changes.keys()

    def _lose(self, code: int, reason: str) -> None:
        self._needs_all = True

    # The viewers

    def _tell_viewers(self, topic: str) -> None:
        viewers = self._own.get(topic)
        new = self._new.pop(topic, set())
        if not viewers:
            self._shown.pop(topic, None)
            self._own.pop(topic, None)
            return
        members, before = self._all_members(topic), self._shown.get(topic, {})
        self._shown[topic] = members
        # Each frame is encoded once for all viewers.
        whole = live_frame({"topic": topic} | self._describe(members))
        change = self._describe_change(before, members)
        changed = whole if change is None else live_frame({"topic": topic} | change)
        slow = set()
        for viewer in list(viewers):
            if viewer not in new and change is None:
                continue
            if viewer.queued > _SLOW:
                slow.add(viewer)
            else:
                viewer.tell_members(whole if viewer in new else changed)
        if slow:
            self._new[topic] |= slow

    def _describe(self, members: Members) -> dict[str, Any]:
        return {"count": len(members)} if len(members) > self.limit else {"members": members}

    def _describe_change(self, before: Members, members: Members) -> dict[str, Any] | None:
        if max(len(members), len(before)) > self.limit:
            return self._describe(members) if len(members) != len(before) else None
        joined, left = _change(before, members)
        return {"join": joined, "leave": left} if joined or left else None


def _change(before: Members, members: Members) -> tuple[Members, list[str]]:
    """Who has joined or changed, and the names of those who have left."""
    joined = {name: info for name, info in members.items() if before.get(name) != info}
    return joined, [name for name in before if name not in members]


def _gap(topic: str, settings: TopicSettings) -> Published:
    return Published(Frame(""), topic, settings, is_gap=True)
