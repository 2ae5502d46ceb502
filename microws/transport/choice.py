"""Which transport a connection gets."""

import asyncio
from collections.abc import Callable

from anyio.abc import TaskGroup

from microws.hub import Outbox
from microws.interfaces import Limits, Receive, Scope, Send
from microws.transport.direct import DirectTransport
from microws.transport.portable import PortableTransport
from microws.transport.surface import Transport

__all__ = ["make_transport"]


def make_transport(
    scope: Scope,
    receive: Receive,
    send: Send,
    loop: asyncio.AbstractEventLoop | None,
    group: TaskGroup | None,
    limits: Limits,
    make_outbox: Callable[[], Outbox],
) -> Transport:
    """
    The direct transport where ``send`` and ``receive`` are the server's own; else some middleware stands between, and
    is to see every event. This package's own server gets the app's limits in both cases: whatever is around the app
    cannot tell it them.

    Args:
        scope, receive, send: ASGI's.
        loop: The running event loop of asyncio; ``None`` on trio.
        group: On trio, a task group that lives as long as the connection.
        limits: The app's. What the server was told on its command line wins.
        make_outbox: Called once, when the connection first needs a queue.
    """
    wire = None
    extension = (scope.get("extensions") or {}).get("microws")
    if extension is not None:
        asked = extension.get("max_message_size")
        if asked is not None:
            limits = limits._replace(max_message_size=asked)
        wire = extension.get("transport") if loop is not None else None
        if wire is not None:
            wire.limits = limits
            wire.receive_queue = limits.receive_queue
            if send == wire.send and receive == wire.receive:
                assert loop is not None
                return DirectTransport(wire, loop, scope, limits, make_outbox)
    return PortableTransport(scope, receive, send, loop, group, limits, make_outbox, wire)
