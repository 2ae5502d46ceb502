"""What both event loops share of Hypercorn: its settings, ends in time, and which of its failures matter."""

import logging
from typing import Any, Final

import anyio
import anyio.lowlevel
import h2.exceptions
import h11
import wsproto.utilities
from hypercorn.config import Config

from microws.server.link import Link
from microws.server.settings import DEFAULT_MAX_MESSAGE_SIZE, MAX_HEAD_BYTES, Settings

__all__ = [
    "FIRST_REQUEST_TIMEOUT",
    "HANDSHAKE_TIMEOUT",
    "ConnectionContext",
    "LinkedReads",
    "hypercorn_config",
    "log_failure",
]

_log = logging.getLogger("microws.server")

# Seconds from the TCP connect to the whole request head, and those that an idle connection is kept.
HANDSHAKE_TIMEOUT: Final = 10.0

# Seconds that a client which has only connected is waited for at the end: some round trips.
FIRST_REQUEST_TIMEOUT: Final = 1.0


class _Config(Config):
    http2_websockets = False


def hypercorn_config(settings: Settings, *, max_message_size: int | None = None) -> Config:
    """
    Hypercorn's settings for ours, silent: what is worth a line is logged by this package.

    Args:
        settings: What was asked for.
        max_message_size: The app's own limit in bytes, where ``settings`` name none.
    """
    config = _Config()
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    config.h2_max_header_list_size = MAX_HEAD_BYTES
    config.keep_alive_timeout = HANDSHAKE_TIMEOUT
    config.ssl_handshake_timeout = HANDSHAKE_TIMEOUT
    config.websocket_max_message_size = settings.max_message_size or max_message_size or DEFAULT_MAX_MESSAGE_SIZE
    config.websocket_ping_interval = settings.ping_interval or None
    return config


class _Termination:
    """
    The server's end, as one connection sees it: who has just connected has a moment for the first request.

    Without it a worker that makes room for another would hang up on clients that it has accepted and not heard yet.
    Hypercorn waits for the end of the server while a connection is idle, and then closes it.

    Args:
        terminated: Set when the server stops listening.

    Attributes:
        is_new: No request has come, and Hypercorn has not waited for one.
    """

    def __init__(self, terminated: Any) -> None:
        self._terminated = terminated
        self.is_new = True

    def is_set(self) -> bool:
        """Whether no request after the one in progress is answered."""
        return bool(self._terminated.is_set())

    async def wait(self) -> None:
        """Wait until an idle connection is to be closed."""
        is_new, self.is_new = self.is_new, False
        await self._terminated.wait()
        if is_new:
            await anyio.sleep(FIRST_REQUEST_TIMEOUT)


class ConnectionContext:
    """
    A part of Hypercorn's worker context, before it among the bases: a context for each connection.

    Args:
        link: To the connection.
        terminated: Set when the server stops listening.
    """

    def __init__(self, link: Link, terminated: Any) -> None:
        super().__init__(None)  # type: ignore[call-arg]
        self.link = link
        self.terminated: Any = _Termination(terminated)

    async def mark_request(self) -> None:
        """A request has come. Hypercorn has not waited for it if it came with the connection."""
        self.terminated.is_new = False

    async def sleep(self, wait: float) -> None:
        """
        End with the connection.

        The only user, the task that sends pings, would otherwise hold a connection for up to an interval after its end.
        """
        with anyio.move_on_after(wait):
            await self.link.ended.wait()


class LinkedReads:
    """
    A part of Hypercorn's TCP server, before it among the bases: tells the link of the end, and holds nothing beyond it.
    """

    context: Any
    idle_task: Any

    async def _read_data(self) -> None:
        try:
            await super()._read_data()  # type: ignore[misc]
            # Whoever waits for the disconnect has it before the link's end is told.
            await anyio.lowlevel.checkpoint()
        finally:
            self.context.link.end()
            # Hypercorn would hold the socket until the keep-alive time is over.
            await self.idle_task.stop()

    async def _idle_timeout(self) -> None:
        # An app may end its response when the client has left already.
        if not self.context.link.ended.is_set():
            await super()._idle_timeout()  # type: ignore[misc]


_CLIENTS_FAULTS: Final = (OSError, h11.ProtocolError, h2.exceptions.H2Error, wsproto.utilities.ProtocolError)


def log_failure(error: BaseException, *, also_expected: tuple[type[BaseException], ...] = ()) -> None:
    """
    Log what ended a connection outside the app: a warning, or at debug level what any client can bring about.

    Args:
        error: Perhaps a group.
        also_expected: What the event loop raises when a connection breaks.
    """
    if _is_expected(error, (*_CLIENTS_FAULTS, *also_expected)):
        _log.debug("a connection was given up", exc_info=error)
    else:
        _log.warning("a connection failed: %r", error, exc_info=error if _log.isEnabledFor(logging.DEBUG) else None)


def _is_expected(error: BaseException, expected: tuple[type[BaseException], ...]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_expected(inner, expected) for inner in error.exceptions)
    return isinstance(error, expected)
