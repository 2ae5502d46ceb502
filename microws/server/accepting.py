"""Accepting connections on asyncio and uvloop, from a socket that other workers accept from as well."""

import asyncio
import importlib
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any, Final

from microws.server.hypercorn_setup import HANDSHAKE_TIMEOUT
from microws.server.listening import BACKLOG

__all__ = ["start_accepting"]

# Connections that a worker takes in one turn of its event loop: asyncio takes as many as its backlog is, and one worker
# would leave none of a burst for the others. uvloop takes all that there are, and trio one.
_ACCEPTS_PER_TURN: Final = 16

# Seconds until asyncio tries again when there are no file descriptors left. Its own 1 s is as long for a client.
_RETRY_DELAY: Final = 0.25

# Seconds that a client has to answer the end of TLS; browsers do not.
_TLS_SHUTDOWN_TIMEOUT: Final = 1.0


async def start_accepting(
    sock: socket.socket, protocol_factory: Callable[[], asyncio.BaseProtocol], *, tls: ssl.SSLContext | None = None
) -> asyncio.Server:
    """
    Give each connection that comes on ``sock`` a protocol, until the server that this returns is closed.

    Args:
        sock: Bound.
        protocol_factory: As of ``loop.create_server``.
        tls: Speak TLS with it.
    """
    loop: Any = asyncio.get_running_loop()
    constants: Any = importlib.import_module("asyncio.constants")
    constants.ACCEPT_RETRY_DELAY = _RETRY_DELAY
    options: dict[str, Any] = {"sock": sock, "backlog": _ACCEPTS_PER_TURN, "ssl": tls}
    if tls is not None:
        options |= {"ssl_handshake_timeout": HANDSHAKE_TIMEOUT, "ssl_shutdown_timeout": _TLS_SHUTDOWN_TIMEOUT}
    start = loop.create_server
    if sock.family == socket.AF_UNIX:
        start = loop.create_unix_server
        if sys.version_info >= (3, 13):
            # The first worker to end would remove the file from under the others.
            options["cleanup_socket"] = False
    server: asyncio.Server = await start(protocol_factory, **options)
    sock.listen(BACKLOG)
    return server
