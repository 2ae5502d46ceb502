"""How many messages a client may send: ``rate=`` of a WebSocket route."""

import re
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, TypeAlias, final, get_args

__all__ = ["Bucket", "Rate", "RateExcess", "parse_rate"]

RateExcess: TypeAlias = Literal["wait", "close"]

_RATE: Final = re.compile(r"([1-9][0-9]{0,8})/(s|min)")
# A token is there when as much of it has come back: sums of floats are not exact.
_WHOLE: Final = 1 - 1e-9
_UNITS: Final = {"s": (1, "second"), "min": (60, "minute")}


class Rate(NamedTuple):
    """
    A limit for the messages of one client.

    Attributes:
        burst: Messages that it may send at once, and in each period.
        seconds: The length of the period.
        excess: Whether more messages wait, or close the connection.
        reason: Tells a client that it has sent more.
    """

    burst: int
    seconds: int
    excess: RateExcess
    reason: str


def parse_rate(rate: Any, excess: Any) -> Rate | None:
    """
    The limit for the options ``rate`` and ``rate_excess`` of a route; ``None`` without one.

    Raises:
        TypeError, ValueError: An option is invalid.
    """
    if excess not in get_args(RateExcess):
        raise ValueError(f'expected rate_excess="wait" or "close", got {excess!r}')
    if rate is None:
        if excess != "wait":
            raise ValueError(f'rate_excess={excess!r} needs a rate, such as rate="20/s"')
        return None
    if not isinstance(rate, str):
        raise TypeError(f'rate: expected a number of messages per time, such as "20/s" or "100/min", got {rate!r}')
    parts = _RATE.fullmatch(rate)
    if parts is None:
        raise ValueError(f'rate: expected a whole number, "/", and s or min, such as "20/s" or "100/min", got {rate!r}')
    seconds, unit = _UNITS[parts[2]]
    count = int(parts[1])
    messages = "message" if count == 1 else "messages"
    return Rate(count, seconds, excess, f"over {count} {messages} a {unit}")


@final
class Bucket:
    """
    A token bucket, which is full at first: each message takes a token, and they come back one by one.

    Args:
        rate: Its ``burst`` is the size of the bucket.
        clock: Returns the time in seconds.

    Attributes:
        rate: The same.
        interval: Seconds in which one token comes back.
    """

    __slots__ = ("_clock", "_size", "_time", "_tokens", "interval", "rate")

    def __init__(self, rate: Rate, clock: Callable[[], float]) -> None:
        self.rate: Rate = rate
        self.interval: float = rate.seconds / rate.burst
        self._size = self._tokens = float(rate.burst)
        self._clock = clock
        self._time = clock()

    def take(self) -> float:
        """Take a token. Returns 0, or the seconds until there is one; then none was taken."""
        now = self._clock()
        tokens, size, returned = self._tokens, self._size, (now - self._time) / self.interval
        if tokens < size:
            tokens += returned
            if tokens > size:
                tokens = size
        elif tokens > size:
            # After ``catch_up``. They go as they come.
            tokens = max(tokens - returned, size)
        self._time = now
        if tokens < _WHOLE:
            self._tokens = tokens
            return (1 - tokens) * self.interval
        self._tokens = tokens - 1
        return 0

    def catch_up(self) -> None:
        """
        Nothing was read since the last call of ``take``: all tokens that have come back are there for what the client
        has sent meanwhile, even if they are more than the bucket holds.
        """
        now = self._clock()
        self._tokens += (now - self._time) / self.interval
        self._time = now
