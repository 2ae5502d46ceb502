"""Durations in buckets, and their percentiles."""

import math
from typing import final

__all__ = ["Histogram"]

UNIT = 1e-7
# A bucket keeps the eight highest bits of a duration, so a percentile is at most 1/128 too large.
BITS = 8
HALF = 1 << (BITS - 1)
# Up to 2**48 units, about 325 days.
BUCKETS = (48 - BITS + 2) * HALF


@final
class Histogram:
    """
    Durations, counted in buckets that grow with them.

    Source: HdrHistogram, two significant digits.
    """

    __slots__ = ("_buckets", "_highest", "_total", "count")

    def __init__(self) -> None:
        self.count: int = 0
        self._total = 0.0
        self._highest = 0.0
        self._buckets = [0] * BUCKETS

    def record(self, seconds: float) -> None:
        """Count one duration; a negative one, as clocks of two cores may give, counts as zero."""
        units = int(seconds * 1e7)
        shift = units.bit_length() - BITS
        if shift > 0:
            self._buckets[(shift << 7) + (units >> shift)] += 1
        else:
            self._buckets[units if units > 0 else 0] += 1
        self.count += 1
        self._total += seconds
        if seconds > self._highest:
            self._highest = seconds

    def clear(self) -> None:
        """Remove all durations."""
        self.count = 0
        self._total = self._highest = 0.0
        self._buckets = [0] * BUCKETS

    @property
    def mean(self) -> float:
        """The mean, exact; 0 if there is none."""
        return self._total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """
        The duration, in seconds, that ``percent`` of all do not exceed; at most 1/128 and 0.1 µs too large. 0 if there
        is none.
        """
        rank = max(1, math.ceil(self.count * percent / 100))
        seen = 0
        for index, number in enumerate(self._buckets):
            seen += number
            if seen >= rank:
                return min(self._highest, _end_of(index))
        return 0.0


def _end_of(index: int) -> float:
    """The upper bound of a bucket."""
    shift = max(0, (index >> (BITS - 1)) - 1)
    return ((index - (shift << 7) + 1) << shift) * UNIT
