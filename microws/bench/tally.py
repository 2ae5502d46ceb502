"""What is counted beside durations: above all, whatever goes wrong."""

from collections import Counter
from dataclasses import dataclass, field
from typing import final

__all__ = ["Tally"]


@final
@dataclass(slots=True)
class Tally:
    """
    Counts of a whole run, its warm-up included.

    Attributes:
        handshakes: Accepted.
        refused: Handshakes that failed, by reason.
        closes: Connections that the server ended, or that broke, by code and reason; 1006: without a Close frame.
        unanswered_closes: Close frames of ours that the server did not answer in time, or not by closing.
        sent: Messages, or publishes, that were sent.
        unsent: That were due by ``--rate``, and could not be sent.
        failed_publishes: By reason.
        lost: Messages that did not come in time: answers, or one subscriber's copies.
        late: Of these, those that came when nobody waited for them any more.
        duplicates: Messages that came again, or that nothing was sent for.
        out_of_order: Messages that came behind a later one.
        wrong: Messages that are not what was sent.
        others: Messages that are not of this run.
    """

    handshakes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    closes: Counter[tuple[int, str]] = field(default_factory=Counter)
    unanswered_closes: int = 0
    sent: int = 0
    unsent: int = 0
    failed_publishes: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    late: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    wrong: int = 0
    others: int = 0

    @property
    def errors(self) -> int:
        """All that went wrong."""
        return (
            self.refused.total()
            + self.closes.total()
            + self.unanswered_closes
            + self.unsent
            + self.failed_publishes.total()
            + self.lost
            + self.duplicates
            + self.out_of_order
            + self.wrong
        )
