"""What is to be measured."""

from dataclasses import dataclass
from typing import Literal, final

from microws.bench.messages import PLACE_OF_TEXT
from microws.bench.target import Target

__all__ = ["Mode", "Plan"]

Mode = Literal["echo", "fan-out", "connects"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """
    One run.

    Attributes:
        mode: ``echo``: each connection sends, and waits for answers. ``fan-out``: there is one publisher, and every
            connection gets what it says. ``connects``: connect, and leave again.
        target: Where the connections go.
        publish: ``fan-out``: where the publisher connects to, or POSTs.
        connections: At a time.
        seconds: Measured.
        warm_up: Seconds before that.
        in_flight: Messages under way: of each connection, or publishes.
        rate: Messages, publishes or connects a second, by the clock; ``None``: the next one when one is done.
        message: What is sent; ``{text}`` stands for the numbered text.
        size: Bytes of that text.
        binary: Binary frames instead of text.
        timeout: Seconds until a message counts as lost, or a Close frame as not answered.
        open_timeout: Seconds for a handshake.
        subprotocols: Offered.
        headers: Sent with every handshake and POST.
        insecure: Take any certificate.
    """

    target: Target
    mode: Mode = "echo"
    publish: Target | None = None
    connections: int = 100
    seconds: float = 10.0
    warm_up: float = 1.0
    in_flight: int = 1
    rate: float | None = None
    message: str = PLACE_OF_TEXT
    size: int = 64
    binary: bool = False
    timeout: float = 5.0
    open_timeout: float = 5.0
    subprotocols: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    insecure: bool = False

    @property
    def is_numbered(self) -> bool:
        """Whether a message can be known by its number."""
        return PLACE_OF_TEXT in self.message

    @property
    def posts(self) -> bool:
        """Whether messages are published by POST."""
        return self.publish is not None and not self.publish.is_websocket

    @property
    def is_ordered(self) -> bool:
        """Whether messages are to come in the order in which they are sent: POSTs at the same time race each other."""
        return not self.posts or (self.rate is None and self.in_flight == 1)
