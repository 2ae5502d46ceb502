"""Connections that have not said anything yet: the first bytes tell who is to speak with them."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeAlias
from weakref import WeakSet

import anyio

from microws.server.deadlines import Deadlines
from microws.server.upgrade import Upgrade, parse_upgrade

__all__ = ["Arrivals"]

_OnUpgrade: TypeAlias = Callable[[asyncio.Transport, Upgrade, bytes], None]
_OnOther: TypeAlias = Callable[[asyncio.Transport, bytes], None]

# Seconds between two looks at the handshakes of TLS.
_LOOK_INTERVAL: Final = 0.02


class Arrivals:
    """
    Makes the first protocol of each connection, as ``loop.create_server`` asks for it.

    A client that opens a WebSocket sends its whole handshake first, as a rule. Then no HTTP server needs to be set up
    for it, which takes several times as long as the handshake itself.

    Args:
        on_upgrade: Gets the transport of a client whose first bytes are a whole handshake, the handshake, and what came
            behind it.
        on_other: Gets every other one, and its first bytes.
        timeout: Seconds that a client has to say something.
    """

    def __init__(self, on_upgrade: _OnUpgrade, on_other: _OnOther, *, timeout: float) -> None:
        self.on_upgrade = on_upgrade
        self.on_other = on_other
        self.silent: Deadlines[_Arrival] = Deadlines(timeout, _Arrival.close)
        self.is_over = False
        # Those that have no transport yet. Over TLS they get it at the end of its handshake, or are simply dropped.
        self.unmet: WeakSet[_Arrival] = WeakSet()

    def __call__(self) -> asyncio.Protocol:
        """A protocol for a new connection."""
        arrival = _Arrival(self)
        self.unmet.add(arrival)
        return arrival

    def __len__(self) -> int:
        return len(self.silent)

    def end(self) -> None:
        """Leave every connection that has not said anything, and those that still come, to ``on_other``."""
        self.is_over = True
        for arrival in list(self.silent):
            arrival.go_on(b"")

    async def wait_met(self, *, timeout: float) -> None:
        """Wait until no handshake of TLS is under way, ``timeout`` seconds at most."""
        with anyio.move_on_after(timeout):
            while self.unmet:  # noqa: ASYNC110 - nobody tells of one that fails
                await anyio.sleep(_LOOK_INTERVAL)


class _Arrival(asyncio.Protocol):
    __slots__ = ("__weakref__", "_arrivals", "_transport")

    _transport: asyncio.Transport

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._arrivals.unmet.discard(self)
        tls = transport.get_extra_info("ssl_object")
        self._arrivals.silent.start(self)
        if self._arrivals.is_over or (tls is not None and tls.selected_alpn_protocol() == "h2"):
            self.go_on(b"")

    def data_received(self, data: bytes) -> None:
        upgrade = parse_upgrade(data)
        if upgrade is None:
            self.go_on(data)
        else:
            self._arrivals.silent.stop(self)
            self._arrivals.on_upgrade(self._transport, *upgrade)

    def connection_lost(self, _: Exception | None) -> None:
        self._arrivals.silent.stop(self)

    def go_on(self, data: bytes) -> None:
        """Leave the connection to ``on_other``."""
        self._arrivals.silent.stop(self)
        self._arrivals.on_other(self._transport, data)

    def close(self) -> None:
        """Give up a client that says nothing."""
        self._transport.close()
