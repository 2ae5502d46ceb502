"""Which kind of connection serves a view."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import anyio.abc

from microws.connection.asgi import ASGIConnection
from microws.connection.connection import Connection
from microws.hub import Outbox
from microws.interfaces import Limits, Receive, Scope, Send

__all__ = ["ServerConnection", "connect"]


class ServerConnection(Protocol):
    """What this package's own server puts into a scope as ``"microws.connection"``."""

    def attach(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        make_outbox: Callable[[], Outbox],
    ) -> Connection:
        """The connection for a view: itself if ``receive`` and ``send`` are its own."""
        ...


def connect(
    scope: Scope,
    receive: Receive,
    send: Send,
    loop: asyncio.AbstractEventLoop | None,
    group: "anyio.abc.TaskGroup | None",
    limits: Limits,
    make_outbox: Callable[[], Outbox],
) -> Connection:
    """
    The server's own connection if ``send`` and ``receive`` belong to it. Otherwise one over ASGI events, so that
    middleware in between sees each of them.

    Args:
        scope, receive, send: The three arguments of an ASGI application.
        loop: The running asyncio event loop; ``None`` on trio.
        group: On trio, a task group that lives as long as the connection.
        limits: Limits of the app. A limit from the server's command line wins.
        make_outbox: Called once, when the connection first needs an outbox.
    """
    extension = (scope.get("extensions") or {}).get("microws")
    if extension is not None and (max_message_size := extension.get("max_message_size")) is not None:
        limits = limits._replace(max_message_size=max_message_size)
    own: ServerConnection | None = scope.get("microws.connection")
    if own is None or loop is None:
        return ASGIConnection(scope, receive, send, loop, group, limits, make_outbox)
    return own.attach(scope, receive, send, loop, limits, make_outbox)
