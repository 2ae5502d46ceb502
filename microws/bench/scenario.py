"""What echo, fan-out and connects have in common, as far as measuring them goes."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from microws.bench.dialing import Dialer
from microws.bench.handshaking import Handshake
from microws.bench.histogram import Histogram
from microws.bench.plan import Plan
from microws.bench.tally import Tally
from microws.bench.target import Target

__all__ = ["Scenario"]


class Scenario(ABC):
    """
    Makes one kind of load.

    Attributes:
        done: What the rate counts: answers, deliveries or connects.
        latencies: By what was measured; the first one is the main one.
        tally: Of the whole run.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.done = 0
        self.latencies: dict[str, Histogram] = {}
        self.tally = Tally()

    def dialer(self, target: Target) -> Dialer:
        return Dialer(target, insecure=self.plan.insecure, timeout=self.plan.open_timeout)

    def handshake(self, target: Target) -> Handshake:
        return Handshake(target, headers=self.plan.headers, subprotocols=self.plan.subprotocols)

    @abstractmethod
    async def open(self, told: Callable[[int], None]) -> bool:
        """Connect; whether there is anything to measure. ``told`` is called with how many are connected so far."""

    @abstractmethod
    def start(self) -> None:
        """Begin the closed loop."""

    @abstractmethod
    def send(self, due: float) -> bool:
        """Of the open loop: send one message that was due at ``due``; ``False``: it cannot be sent now."""

    @abstractmethod
    def stop(self) -> None:
        """Send nothing more of oneself."""

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Whether nobody is left to measure."""

    @property
    @abstractmethod
    def under_way(self) -> int:
        """What is still waited for."""

    @abstractmethod
    def give_up(self, since: float) -> None:
        """Count as lost what has been waited for since ``since`` or before."""

    @abstractmethod
    async def close(self) -> None:
        """Leave in good order."""
