"""Every WebSocket of a worker that the engine serves: what they share, and how they end in a drain."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from microws.closing import DEFAULT_REASONS, CloseCode
from microws.interfaces import ASGIApplication, Limits
from microws.server.deadlines import Deadlines
from microws.server.engine import Engine
from microws.server.logs import log_access, log_nothing
from microws.server.upgrade import Upgrade, check_upgrade, scope_of
from microws.server.wire import Closings, Upkeep, Wire
from microws.server.writing import addresses_of
from microws.state import CONNECTING

__all__ = ["Engines"]

_LIMITS: Final = Limits()
# Seconds that a client which broke a rule has to hang up, in place of the app's ``close_timeout``.
_FAILURE_TIMEOUT: Final = 0.5
# Closed in one turn of the event loop. So many take a few milliseconds.
_DRAIN_BATCH: Final = 100

_UNAVAILABLE: Final = 503
_RESTART: Final = DEFAULT_REASONS[CloseCode.SERVICE_RESTART]


class Engines:
    """
    The engines of one worker, on asyncio.

    Args:
        app: Gets each WebSocket.
        limits: Of a connection whose app names none.
        ping_interval: Seconds between two pings; 0 sends none.
        ping_timeout: Seconds that a client has to answer one.
        extension: What every scope's ``extensions["microws"]`` says, beside the engine itself as ``"transport"``.
        access_log: Whether to log each answer to a handshake, and each end.
    """

    def __init__(
        self,
        app: ASGIApplication,
        *,
        ping_interval: float,
        ping_timeout: float,
        limits: Limits = _LIMITS,
        extension: Mapping[str, Any] | None = None,
        access_log: bool = True,
    ) -> None:
        self._app = app
        self._extension = dict(extension or {})
        self._log_access = log_access if access_log else log_nothing
        self._open: set[Engine] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_closed: asyncio.Future[None] | None = None
        self._is_draining = False
        self._upkeep = Upkeep(
            limits,
            pings=Deadlines(ping_interval, self._ping),
            pongs=Deadlines(ping_timeout, self._give_up),
            closings=Closings(),
            failures=Deadlines(_FAILURE_TIMEOUT, Wire.abort),
        )

    @property
    def open(self) -> int:
        """How many connections there are; one whose client has left is one as long as its app is at work."""
        return max(len(self._open), len(self._tasks))

    def take(self, transport: asyncio.Transport, upgrade: Upgrade, early: bytes, state: dict[str, Any]) -> None:
        """
        Serve the WebSocket that a request has asked for.

        Args:
            transport: Of its connection.
            upgrade: The request.
            early: What came behind it.
            state: The lifespan's, for this connection alone.
        """
        engine = Engine(transport, upgrade, self._upkeep, log_access=self._log_access, on_lost=self._lost)
        self._open.add(engine)
        client, server = addresses_of(transport)
        engine.scope = scope_of(
            upgrade,
            scheme="ws" if transport.get_extra_info("sslcontext") is None else "wss",
            client=client,
            server=server,
            state=state,
            extensions={"websocket.http.response": {}, "microws": {**self._extension, "transport": engine}},
        )
        if early:
            engine.data_received(early)
        refusal = check_upgrade(upgrade)
        if refusal is not None:
            engine.refuse(*refusal)
        elif self._is_draining:
            engine.refuse(_UNAVAILABLE)
        else:
            task = asyncio.get_running_loop().create_task(engine.run(self._app, engine.scope))
            self._tasks.add(task)
            task.add_done_callback(self._returned)

    async def drain(self) -> None:
        """Close every WebSocket with 1012, and refuse those that come from now on with 503."""
        self._is_draining = True
        for count, engine in enumerate(list(self._open), 1):
            if engine.state is CONNECTING:
                engine.refuse(_UNAVAILABLE)
                engine.close_code, engine.close_reason = CloseCode.SERVICE_RESTART, _RESTART
            else:
                engine.shut_down(CloseCode.SERVICE_RESTART, _RESTART)
            if not count % _DRAIN_BATCH:
                await asyncio.sleep(0)

    async def wait_closed(self) -> None:
        """Wait until no connection and no app is left."""
        while self._open or self._tasks:
            self._all_closed = asyncio.get_running_loop().create_future()
            await self._all_closed

    def disconnect(self) -> None:
        """Drop every connection at once. The apps are told that their clients have left."""
        for engine in list(self._open):
            engine.abort()

    def cancel(self) -> None:
        """Cancel every app that is still at work."""
        for task in self._tasks:
            task.cancel()

    def _lost(self, engine: Engine) -> None:
        self._open.discard(engine)
        self._settle()

    def _returned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._settle()

    def _settle(self) -> None:
        if not (self._open or self._tasks) and self._all_closed is not None and not self._all_closed.done():
            self._all_closed.set_result(None)

    def _ping(self, wire: Wire) -> None:
        wire.ping()
        if wire.was_heard or wire not in self._upkeep.pongs:
            wire.was_heard = False
            self._upkeep.pongs.start(wire)
        self._upkeep.pings.start(wire)

    def _give_up(self, wire: Wire) -> None:
        # While nobody reads, an end is not seen; over TLS what is sent then goes nowhere, without an error.
        if not wire.was_heard and (wire.is_reading or wire.has_hung_up):
            wire.fail(CloseCode.INTERNAL_ERROR, "ping timeout")
            wire.abort()
