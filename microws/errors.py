"""
Every exception that microws raises, in one tree.

::

    MicrowsError
    ├── HTTPException             a view's answer with a status, raised
    ├── WebSocketDisconnect       the connection has ended
    ├── WebSocketRejected         (test client) the handshake was refused
    ├── ClientDisconnect          an HTTP client left before its body had arrived
    ├── PayloadTypeError          TypeError: a text frame where bytes were due, or the reverse
    ├── InvalidMessage            ValueError: a message that its codec cannot decode
    ├── Overflow                  a subscription was read too slowly
    ├── TooManySubscriptions      a connection would have more than App(max_subscriptions=…)
    ├── PublishTimeout            TimeoutError: unknown whether the message was published
    ├── RoutingError              ValueError: a pattern, a name or two routes that cannot be
    └── FeatureUnavailable        NotImplementedError: this version does not have it

Misuse of the API (a wrong argument, a call in the wrong state) is a plain ``TypeError``, ``ValueError`` or
``RuntimeError``: nothing that a program should catch.
"""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

__all__ = [
    "ClientDisconnect",
    "FeatureUnavailable",
    "HTTPException",
    "InvalidMessage",
    "MicrowsError",
    "Overflow",
    "PayloadTypeError",
    "PublishTimeout",
    "RoutingError",
    "TooManySubscriptions",
    "WebSocketDisconnect",
    "WebSocketRejected",
]


class MicrowsError(Exception):
    """The root of every exception that microws defines."""


class HTTPException(MicrowsError):
    """
    Ends a view with an HTTP status.

    In an HTTP view it becomes that response; in a WebSocket view before ``accept`` a denial with that status, after
    it a close with code 3000 + ``status`` and ``detail`` as reason. The reason of a ``dict`` is its ``"error"``, where
    that is a ``str``; of other JSON it is the JSON, where that fits, and else the status's phrase.

    Args:
        status: HTTP status, 400–599.
        detail: For the client; the status's own phrase by default. A ``dict`` or ``list`` is sent as JSON. A ``str`` is
            sent as plain text, or as ``{"error": detail}`` to a client that sends JSON or prefers it in ``Accept``.
        headers: More response headers, a mapping or ``(name, value)`` pairs. With a ``content-type`` among them a
            ``str`` is sent as it is.

    Raises:
        TypeError: ``status`` is not a number, or ``detail`` is of another type.
        ValueError: ``status`` is not an error status.
    """

    def __init__(
        self,
        status: int,
        detail: str | dict[str, Any] | list[Any] | None = None,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
    ) -> None:
        if not isinstance(status, int):
            raise TypeError(f"HTTPException takes a status first, such as 404, not {status!r}")
        if not 400 <= status <= 599:
            raise ValueError(f"HTTPException takes an error status, 400 to 599, not {status}; return (body, {status})")
        if detail is not None and not isinstance(detail, str | dict | list):
            raise TypeError(f"HTTPException takes a str, dict or list as its detail, not {detail!r}; write str(…)")
        self.status = status
        # Not the union: most apps give text alone, and their handlers then need not ask. FastAPI's is Any too.
        self.detail: Any = _phrase(status) if detail is None else detail
        self.headers: list[tuple[str, str]] = list(headers.items() if isinstance(headers, Mapping) else headers or ())
        super().__init__(f"{status} {self.detail}")


class WebSocketDisconnect(MicrowsError):
    """
    The WebSocket connection has ended: the client left, or this side closed it.

    Attributes:
        code: Close code (RFC 6455 §7.4); 1005 when the peer sent none, 1006 when the connection broke.
        reason: Close reason, often empty.
    """

    # The connection that has ended: ``async with ws`` swallows the end of its own only.
    source: object = None

    def __init__(self, code: int = 1005, reason: str = "") -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{code} {reason}".rstrip())


class WebSocketRejected(MicrowsError):
    """
    The server refused the handshake. Raised by the test client.

    Attributes:
        status: HTTP status of the refusal.
        headers: Its headers as ``(name, value)`` pairs, names in lower case.
        body: Its body.
        code: 3000 + ``status`` for an answer of microws; for a close before accept, that close's code.
    """

    def __init__(
        self, status: int, headers: Iterable[tuple[str, str]] = (), body: bytes = b"", code: int = 1006
    ) -> None:
        self.status = status
        self.headers = list(headers)
        self.body = body
        self.code = code
        super().__init__(f"handshake refused with {status} {_phrase(status)}: {body[:200]!r}")


class ClientDisconnect(MicrowsError):
    """The HTTP client left before its request body had arrived."""


class PayloadTypeError(MicrowsError, TypeError):
    """A text frame came where the view receives bytes, or a binary frame where it receives text."""


class InvalidMessage(MicrowsError, ValueError):
    """A message, or a request's body, that its codec cannot decode. The text says what is wrong with it."""


class Overflow(MicrowsError):
    """A subscription's queue was full when a message came: at least one message was lost."""


class TooManySubscriptions(MicrowsError):
    """
    A connection would have more subscriptions than ``App(max_subscriptions=…)`` allows; none was added.

    A WebSocket view that does not catch it closes with 1008, or answers 403 where it has not accepted yet.

    Args:
        count: What it would have had.
        maximum: What it may have.
    """

    def __init__(self, count: int, maximum: int) -> None:
        self.count = count
        self.maximum = maximum
        super().__init__(
            f"expected at most {maximum} subscriptions of one connection, got {count}; unsubscribe from some, or raise "
            "App(max_subscriptions=…)"
        )


class PublishTimeout(MicrowsError, TimeoutError):
    """The backplane gave no answer in time: the message may or may not have been published."""


class ReceiveTimeout(TimeoutError):
    """
    ``ws.receive(timeout=…)`` got no message: a ``TimeoutError``, and caught as one. The log shows it in one line.

    Attributes:
        seconds: The time-out.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(
            f"ws.receive(timeout={seconds:g}) got no message within {seconds:g} s; catch TimeoutError to go on, or "
            "leave timeout out to wait for as long as the connection lives"
        )


class RoutingError(MicrowsError, ValueError):
    """A pattern that is malformed, a route that another one hides, or a name or parameter that ``url_for`` lacks."""


class FeatureUnavailable(MicrowsError, NotImplementedError):
    """A feature that is described but that this version, or this installation, does not have."""


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
