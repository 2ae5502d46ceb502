"""What came of a run."""

from dataclasses import dataclass, field
from typing import final

from microws.bench.histogram import Histogram
from microws.bench.plan import Plan
from microws.bench.tally import Tally

__all__ = ["Result"]

# Of a core: beyond this share the generator may well be what was measured.
BUSY = 0.9
# Of what --rate asked for: below this share something did not keep up.
KEPT_UP = 0.98


@final
@dataclass(kw_only=True, slots=True)
class Result:
    """
    One run.

    Attributes:
        seconds: That were measured; 0: it did not come to that.
        done: In that time: answers, deliveries or connects.
        sent: In that time: messages, publishes or tries.
        latencies: By what was measured, the main one first.
        lateness: With ``--rate``: how late the generator itself sent.
        tally: Of the whole run, its warm-up included.
        cpu: The share of a core that the generator took.
        waited: The share of the time that it was ready to work, and had no core.
        loop: The event loop.
        is_interrupted: Whether somebody stopped it.
        is_cut_short: Whether it ended before its time because nobody was left.
    """

    plan: Plan
    seconds: float = 0.0
    done: int = 0
    sent: int = 0
    latencies: dict[str, Histogram] = field(default_factory=dict)
    lateness: Histogram | None = None
    tally: Tally = field(default_factory=Tally)
    cpu: float = 0.0
    waited: float = 0.0
    loop: str = ""
    is_interrupted: bool = False
    is_cut_short: bool = False

    @property
    def rate(self) -> float:
        """Done a second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def sent_rate(self) -> float:
        """Sent a second."""
        return self.sent / self.seconds if self.seconds else 0.0

    @property
    def is_generator_the_limit(self) -> bool:
        """Whether the generator had its core full."""
        return self.cpu >= BUSY

    @property
    def is_short_of_cores(self) -> bool:
        """Whether the generator would have had its core full, had nobody else been on it."""
        return not self.is_generator_the_limit and self.cpu + self.waited >= BUSY

    @property
    def is_late(self) -> bool:
        """Whether the generator sent so late that this is half of the typical latency."""
        if self.lateness is None or not self.latencies:
            return False
        main = next(iter(self.latencies.values()))
        return self.lateness.percentile(50) > main.percentile(50) / 2

    @property
    def keeps_up(self) -> bool:
        """Whether as much was sent as ``--rate`` asked for."""
        return self.plan.rate is None or self.sent_rate >= KEPT_UP * self.plan.rate
