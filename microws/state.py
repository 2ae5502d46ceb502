"""
The states of a WebSocket on the server's side, as a transition table.

::

    CONNECTING ──accept──▶ OPEN ──close──▶ CLOSING ──disconnect──▶ CLOSED
        │                   └────────────disconnect──────────────────▲
        ├──reject, close──▶ CLOSING ──────disconnect─────────────────┤
        └──disconnect────────────────────────────────────────────────┘

Source: RFC 6455 §4, §7; https://asgi.readthedocs.io/en/latest/specs/www.html#websocket
"""

from collections.abc import Callable
from enum import Enum
from typing import Final

__all__ = ["CLOSED", "CLOSING", "CONNECTING", "OPEN", "Action", "State", "step"]


class State(Enum):
    """The state of a connection."""

    # Enum's own hash is a call in Python.
    __hash__: Callable[[object], int] = object.__hash__  # type: ignore[assignment]

    CONNECTING = "connecting"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


# As globals: to look a member up in its class takes longer than most that is done with it.
CONNECTING: Final = State.CONNECTING
OPEN: Final = State.OPEN
CLOSING: Final = State.CLOSING
CLOSED: Final = State.CLOSED


class Action(Enum):
    """What happens to a connection: an action of this side, or ``DISCONNECT`` of the client or the network."""

    __hash__: Callable[[object], int] = object.__hash__  # type: ignore[assignment]

    ACCEPT = "accept"
    REJECT = "reject"
    CLOSE = "close"
    DISCONNECT = "disconnect"


_TRANSITIONS = {
    CONNECTING: {Action.ACCEPT: OPEN, Action.REJECT: CLOSING, Action.CLOSE: CLOSING, Action.DISCONNECT: CLOSED},
    OPEN: {Action.CLOSE: CLOSING, Action.DISCONNECT: CLOSED},
    CLOSING: {Action.CLOSE: CLOSING, Action.DISCONNECT: CLOSED},
    CLOSED: {Action.CLOSE: CLOSED, Action.DISCONNECT: CLOSED},
}

_MISUSE = {
    (State.OPEN, Action.ACCEPT): "this WebSocket is accepted already; `async with ws:` accepts only if it is not",
    (State.OPEN, Action.REJECT): "this WebSocket is accepted already: end it with ws.close(code, reason)",
    (State.CLOSING, Action.ACCEPT): "this WebSocket is closed; accept it before you close or reject it",
    (State.CLOSING, Action.REJECT): "this WebSocket is closed or rejected already",
    (State.CLOSED, Action.ACCEPT): "this WebSocket has ended",
    (State.CLOSED, Action.REJECT): "this WebSocket has ended",
}


def step(state: State, action: Action) -> State:
    """
    The state after ``action``.

    Raises:
        RuntimeError: ``action`` is not allowed in ``state``. The text says what to do instead.
    """
    try:
        return _TRANSITIONS[state][action]
    except KeyError:
        raise RuntimeError(_MISUSE[state, action]) from None
