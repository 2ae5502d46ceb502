"""The backplane of one process: a call."""

from collections.abc import Callable

from microws.interfaces import Payload, Receipt

__all__ = ["MemoryBackplane"]


class MemoryBackplane:
    """
    Brings each publish straight to the hub of this process.

    Args:
        deliver: ``Hub.deliver``; returns how many subscribers the payload reached.
    """

    def __init__(self, deliver: Callable[[str, Payload, str | None], int]) -> None:
        self._deliver = deliver

    async def publish(self, topic: str, payload: Payload, *, skip: str | None = None) -> Receipt:
        """Deliver at once; never waits."""
        return Receipt(self._deliver(topic, payload, skip))
