"""Backplanes: what carries a publish to the hub of every process."""

from collections.abc import Callable
from typing import TypeAlias

from microws.errors import FeatureUnavailable
from microws.interfaces import Backplane, Payload, Receipt

__all__ = ["MemoryBackplane", "open_backplane"]

# ``Hub.deliver``: delivers a payload to the subscribers of a topic, without the one of that id; returns their number.
Deliver: TypeAlias = Callable[[str, Payload, str | None], int]


class MemoryBackplane:
    """The backplane of one process: it calls ``deliver``."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver

    async def publish(self, topic: str, payload: Payload, *, skip: str | None = None) -> Receipt:
        """Deliver at once. Never waits."""
        return Receipt(self._deliver(topic, payload, skip))


def open_backplane(url: str, deliver: Deliver) -> Backplane:
    """
    The backplane that ``url`` names.

    Raises:
        FeatureUnavailable: This version does not have it.
        ValueError: There is none of that name.
    """
    if url == "memory":
        return MemoryBackplane(deliver)
    scheme = url.partition(":")[0]
    if scheme in ("local", "redis", "rediss", "nats"):
        raise FeatureUnavailable(f'this version has no {scheme!r} backplane; App(hub="memory") serves one process')
    raise ValueError(f'expected hub="memory", got {url!r}')
