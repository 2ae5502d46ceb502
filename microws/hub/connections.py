"""The WebSockets of this process, found by the tags that views give them."""

from collections.abc import Iterator, Mapping
from heapq import nlargest
from math import inf
from operator import itemgetter
from time import time
from typing import Any, Protocol, TypeAlias

from microws.hub.expiry import Expiries
from microws.interfaces import OpenConnection

__all__ = ["Connections", "Tag", "Tagged", "check_tags"]

Tag: TypeAlias = str | int
# What ``App.disconnect`` and ``App.connections`` call something else.
_RESERVED = frozenset({"topic", "id", "code", "reason", "path", "since", "queued"})


class Tagged(Protocol):
    """A WebSocket, as far as it is listed."""

    path: str

    @property
    def id(self) -> str:
        """Unique in all processes."""
        ...

    @property
    def tags(self) -> Mapping[str, Tag]:
        """Those of ``tag``."""
        ...

    @property
    def queued(self) -> int:
        """Messages that are pending for the client."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it has ended, or is being closed."""
        ...

    def close_expired(self) -> None:
        """Close it: its time has come. Never waits."""
        ...


def check_tags(tags: Mapping[str, Any]) -> None:
    """
    Refuse invalid tags.

    Raises:
        ValueError: A name that ``App.disconnect`` has for something else.
        TypeError: A value that is neither ``str`` nor ``int``.
    """
    for name, value in tags.items():
        if name in _RESERVED:
            raise ValueError(f"expected another name for a tag, got {name!r}: app.disconnect or app.connections has it")
        if type(value) is not str and type(value) is not int:
            raise TypeError(f"expected the tag {name!r} as str or int, got {type(value).__name__}; write str(…)")


class Connections:
    """The WebSockets that are open or being opened."""

    def __init__(self) -> None:
        self._since: dict[Tagged, float] = {}
        # By name and value. Dicts keep the order of tagging.
        self._tagged: dict[tuple[str, Tag], dict[Tagged, None]] = {}
        self._expiries: Expiries[Tagged] = Expiries(lambda connection: connection.close_expired())

    def __len__(self) -> int:
        return len(self._since)

    def add(self, connection: Tagged) -> None:
        """A client connects."""
        self._since[connection] = time()

    def remove(self, connection: Tagged) -> None:
        """The connection has ended."""
        del self._since[connection]
        for tag in connection.tags.items():
            self._untag(connection, tag)
        if self._expiries:
            self._expiries.remove(connection)

    def expire(self, connection: Tagged, at: float) -> None:
        """Call ``close_expired`` of ``connection`` at this time, in Unix seconds; ``inf``: never."""
        if at == inf:
            self._expiries.remove(connection)
        else:
            self._expiries.set(connection, at)

    def tag(self, connection: Tagged, name: str, value: Tag | None) -> None:
        """Replace the tag ``name`` of ``connection``, before the connection says so itself; ``None`` removes it."""
        if (before := connection.tags.get(name)) is not None:
            self._untag(connection, (name, before))
        if value is not None:
            self._tagged.setdefault((name, value), {})[connection] = None

    def _untag(self, connection: Tagged, tag: tuple[str, Tag]) -> None:
        tagged = self._tagged[tag]
        del tagged[connection]
        if not tagged:
            del self._tagged[tag]

    def find(self, tags: Mapping[str, Tag]) -> list[Tagged]:
        """The connections that have all of ``tags`` and have not ended."""
        groups = sorted((self._tagged.get(tag, {}) for tag in tags.items()), key=len)
        found = groups[0] if groups else self._since
        return [each for each in found if not each.closed and all(each in group for group in groups[1:])]

    def slowest(self, most: int) -> list[OpenConnection]:
        """Those with the most pending messages, at most ``most``; none without any."""
        queued = ((each, count) for each in self._since if (count := each.queued))
        return [self._describe(each) for each, _ in nlargest(most, queued, key=itemgetter(1))]

    def describe(self, tags: Mapping[str, Tag]) -> Iterator[OpenConnection]:
        """What ``App.connections`` returns."""
        return map(self._describe, self.find(tags))

    def _describe(self, connection: Tagged) -> OpenConnection:
        tags = dict(connection.tags)
        return OpenConnection(connection.id, connection.path, self._since[connection], tags, connection.queued)
