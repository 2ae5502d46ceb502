"""Tickets, each of which lets one client in once: what is signed, and how it is taken."""

import logging
import time
from math import inf
from os import urandom
from typing import Any, Final, NamedTuple, Protocol

from microws.codec import dumps_json, loads_json
from microws.errors import HTTPException, HubUnavailable, PublishTimeout
from microws.hub import Hub
from microws.routing import encode_path

__all__ = ["Ticket", "issue_ticket", "take_ticket"]

_log = logging.getLogger("microws.websocket")

# Seconds by which the clocks of two machines may differ.
_CLOCK_SKEW: Final = 5


class Ticket(NamedTuple):
    """
    A ticket that was taken.

    Attributes:
        value: What ``app.ticket`` was given.
    """

    value: Any


class _Signatures(Protocol):
    def sign(self, data: bytes, *, context: str) -> str: ...
    def verify(self, signed: str, *, context: str) -> bytes | None: ...


def issue_ticket(signatures: _Signatures, value: Any, *, path: Any, ttl: Any, mount: str) -> str:
    """
    Sign a ticket; ``App.ticket`` documents it.

    Args:
        mount: Where the app is mounted, so that no other app takes its tickets.
    """
    if not isinstance(path, str) or not path.startswith("/"):
        raise ValueError(f'ticket: expected the path of a WebSocket, such as "/chat", got {path!r}')
    if not isinstance(ttl, int | float) or isinstance(ttl, bool) or not 0 < ttl < inf:
        raise ValueError(f"ticket: expected a ttl of seconds greater than 0, got {ttl!r}")
    data = dumps_json([round(time.time(), 3), ttl, urandom(12).hex(), value])
    return signatures.sign(data, context=_context(path, mount))


async def take_ticket(signatures: _Signatures, signed: str, *, path: str, hub: Hub) -> Ticket:
    """
    Take a ticket; ``WebSocket.take_ticket`` documents it.

    Args:
        signed: What the client sent; empty if it sent none.
        path: Of the WebSocket, in its app.
        hub: Of the app. Its backplane claims the ticket.

    Raises:
        HTTPException: 401: the ticket is not valid; always with the same text. 503: whether it was used is not known.
    """
    data = signatures.verify(signed, context=_context(path, hub.mount))
    if data is None:
        raise _refused(path, "it was forged, or issued for another path" if signed else "the client sent none")
    issued, ttl, number, value = loads_json(data)
    age = time.time() - issued
    if not -_CLOCK_SKEW <= age <= ttl:
        raise _refused(path, f"it was issued {age:.1f} s ago, for {ttl:g} s")
    try:
        # Until its ttl has passed on each machine, whose clocks may be behind.
        is_first = await hub.backplane.claim(f"ticket:{number}", ttl - age + 2 * _CLOCK_SKEW)
    except (PublishTimeout, HubUnavailable) as error:
        _log.warning("%s: a ticket cannot be checked: %s", encode_path(path), error)
        raise HTTPException(503, "the ticket cannot be checked now: get a new one, and try again") from None
    if not is_first:
        raise _refused(path, "it was used before")
    return Ticket(value)


def _refused(path: str, why: str) -> HTTPException:
    _log.info("%s: a ticket was refused: %s", encode_path(path), why)
    return HTTPException(401, "the ticket is not valid: get a new one")


def _context(path: str, mount: str) -> str:
    return f"{mount}\0{path}"
