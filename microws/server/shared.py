"""What the connections of a worker that speak HTTP/1.1 share: the app, the time they have, and who is open."""

import asyncio
from collections.abc import Callable
from operator import methodcaller
from typing import Any, Final, Protocol

from microws.interfaces import ASGIApplication
from microws.server.deadlines import Deadlines
from microws.server.engines import Engines
from microws.server.exchange import Exchange
from microws.server.logs import AccessLog

__all__ = ["Connection", "Sending", "Shared"]

# Seconds that the rest of a body which the app has not read is discarded for; nginx: 5 s, or 30 s in all.
_DISCARD_TIMEOUT: Final = 1.0
# Seconds that a client has to close a connection that the server has ended.
_CLOSE_TIMEOUT: Final = 5.0
# Seconds between two looks at a connection of TLS that ends.
_FLUSH_INTERVAL: Final = 0.1
# Seconds until a connection is looked at again on which a request may be on its way.
_LAST_LOOK: Final = 0.5


class Sending(Protocol):
    """What is called of one when a time is over in which its client should have taken what it was sent."""

    def check_progress(self) -> None:
        """Drop a client that takes nothing of what it was sent."""
        ...

    def close_taken(self) -> None:
        """Close when the client has taken nearly everything."""
        ...

    def end_linger(self) -> None:
        """Drop a client that has not closed in time, unless it still takes what it was sent."""
        ...


class Connection(Sending, Protocol):
    """One of them: what else is called when a time is over, and what the server asks."""

    @property
    def is_silent(self) -> bool:
        """Whether no request is in progress, and no part of one has come."""
        ...

    def time_out(self) -> None:
        """A head, or the next piece of a body, did not come in time."""
        ...

    def abort(self) -> None:
        """Drop the connection at once."""
        ...

    def close_idle(self) -> None:
        """End a connection that is silent, unless a request has come that is not read yet."""
        ...

    def hang_up(self) -> None:
        """End it: send nothing more."""
        ...


class Shared:
    """
    What the connections of a worker share.

    Args:
        app: Answers each request.
        engines: Get the WebSockets.
        log_access: Called with each answer.
        state: The lifespan's; each request and each WebSocket gets a copy.
        extension: What every scope's ``extensions["microws"]`` says.
        is_secure: Whether the connections speak TLS.
        max_head_size: Bytes of a request's head.
        head_timeout: Seconds that a client has for a head.
        keep_alive: Seconds that a connection is kept without a request.
        body_timeout: Seconds between two pieces of a request's body.
        write_timeout: Seconds in which a client has to take something of what it was sent.

    Attributes:
        connections: Those that are open.
        exchanges: Those whose app is at work, and their tasks.
        is_stopping: No connection is kept beyond its next response.
        is_draining: Nor is one that is idle, and event streams end.
        on_end: Called when a connection or an app has ended.
    """

    def __init__(
        self,
        app: ASGIApplication,
        engines: Engines,
        *,
        log_access: AccessLog,
        state: dict[str, Any],
        extension: dict[str, Any],
        is_secure: bool,
        max_head_size: int,
        head_timeout: float,
        keep_alive: float,
        body_timeout: float,
        write_timeout: float,
    ) -> None:
        self.app = app
        self.engines = engines
        self.log_access = log_access
        self.state = state
        self.extension = extension
        self.scheme = "https" if is_secure else "http"
        self.max_head_size = max_head_size
        self.connections: set[Connection] = set()
        self.exchanges: dict[Exchange, asyncio.Task[None]] = {}
        self.is_stopping = not keep_alive
        self.is_draining = False
        self.on_end: Callable[[], None] | None = None
        self.heads = Deadlines[Connection](head_timeout, methodcaller("time_out"))
        self.idle = Deadlines[Connection](keep_alive, methodcaller("close_idle"))
        self.looks = Deadlines[Connection](_LAST_LOOK, methodcaller("close_idle"))
        self.bodies = Deadlines[Connection](body_timeout, methodcaller("time_out"))
        self.discards = Deadlines[Connection](_DISCARD_TIMEOUT, methodcaller("hang_up"))
        self.writes = Deadlines[Sending](write_timeout, methodcaller("check_progress"))
        self.flushes = Deadlines[Sending](_FLUSH_INTERVAL, methodcaller("close_taken"))
        self.closings = Deadlines[Sending](_CLOSE_TIMEOUT, methodcaller("end_linger"))
        self.all_deadlines: tuple[Deadlines[Any], ...] = (
            self.heads,
            self.idle,
            self.looks,
            self.bodies,
            self.discards,
            self.writes,
            self.flushes,
            self.closings,
        )

    def ended(self, exchange: Exchange, _: asyncio.Task[None] | None = None) -> None:
        """The app has ended."""
        self.exchanges.pop(exchange, None)
        if self.on_end is not None:
            self.on_end()
