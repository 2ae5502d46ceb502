"""The TCP connection below a request or a WebSocket."""

from collections.abc import Callable

import anyio

__all__ = ["Link"]


class Link:
    """
    What an app's side of Hypercorn has to know of the TCP connection.

    Args:
        abort: Drops it at once.

    Attributes:
        ended: Nothing more will be read from it, and what was read is with the app.
        on_end: Called once, after that.
    """

    __slots__ = ("abort", "ended", "on_end")

    def __init__(self, abort: Callable[[], None]) -> None:
        self.abort = abort
        self.ended = anyio.Event()
        self.on_end: Callable[[], None] | None = None

    def end(self) -> None:
        """It has ended."""
        self.ended.set()
        if self.on_end is not None:
            self.on_end()
