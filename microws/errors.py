"""
Every exception that microws raises, in one tree.

::

    MicrowsError
    ├── HTTPException             a view's answer with a status, raised
    ├── WebSocketDisconnect       the connection has ended
    ├── WebSocketRejected         (test client) the handshake was refused
    ├── ClientDisconnect          an HTTP client disconnected before its request's body had arrived
    ├── PayloadTypeError          TypeError: a text frame instead of a binary one, or the reverse
    ├── InvalidMessage            ValueError: a codec cannot decode the message
    ├── Overflow                  a subscription was read too slowly
    ├── TooManySubscriptions      a connection would exceed App(max_subscriptions=…)
    ├── PublishTimeout            TimeoutError: the message may or may not have been published
    ├── HubUnavailable            ConnectionError: no hub process or Redis answers where one is expected
    ├── RoutingError              ValueError: an invalid pattern or name, or two routes that conflict
    └── FeatureUnavailable        NotImplementedError: this version does not have the feature

Misuse of the API (a wrong argument, a call in the wrong state) raises a plain ``TypeError``, ``ValueError`` or
``RuntimeError``, which a program should not catch.
"""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "ClientDisconnect",
    "FeatureUnavailable",
    "HTTPException",
    "HubUnavailable",
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

    In an HTTP view it becomes a response with that status. In a WebSocket view it becomes a denial with that status
    before ``accept``, and after it a close with code 3000 + ``status`` and ``detail`` as reason. The reason of a
    ``dict`` is its ``"error"`` if that is a ``str``; of other JSON it is the JSON if it fits, else the status's phrase.

    Args:
        status: HTTP status, 400–599.
        detail: For the client. Default: the status's phrase. A ``dict`` or ``list`` is sent as JSON. A ``str`` is sent
            as plain text, or as ``{"error": detail}`` to a client that sends JSON or prefers it in ``Accept``.
        headers: More response headers, a mapping or ``(name, value)`` pairs. If they have a ``content-type``, a ``str``
            is sent unchanged.

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
            raise TypeError(f"expected a status such as 404 as HTTPException's first argument, got {status!r}")
        if not 400 <= status <= 599:
            raise ValueError(f"expected an error status, 400 to 599, got {status}; return (body, {status}) instead")
        if detail is not None and not isinstance(detail, str | dict | list):
            raise TypeError(f"expected str, dict or list as HTTPException's detail, got {detail!r}; write str(…)")
        self.status = status
        # Any, not the union: most apps only use text, and their handlers need not check. FastAPI's is Any, too.
        self.detail: Any = _phrase(status) if detail is None else detail
        self.headers: list[tuple[str, str]] = list(headers.items() if isinstance(headers, Mapping) else headers or ())
        super().__init__(f"{status} {self.detail}")


class WebSocketDisconnect(MicrowsError):
    """
    The WebSocket connection has ended: the client disconnected, or this side closed it.

    Attributes:
        code: Close code (RFC 6455 §7.4); 1005 if the client sent none, 1006 if the connection broke.
        reason: Close reason, often empty.
    """

    # The connection that has ended: ``async with ws`` only suppresses the end of its own connection.
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
        code: 3000 + ``status`` for a response of microws; for a close before accept, the close code.
    """

    def __init__(
        self, status: int, headers: Iterable[tuple[str, str]] = (), body: bytes = b"", code: int = 1006
    ) -> None:
        self.status = status
        self.headers: list[tuple[str, str]] = list(headers)
        self.body = body
        self.code = code
        super().__init__(f"handshake refused with {status} {_phrase(status)}: {body[:200]!r}")


class ClientDisconnect(MicrowsError):
    """The HTTP client disconnected before its request's body had arrived."""


class PayloadTypeError(MicrowsError, TypeError):
    """The view expected a binary frame and got a text frame, or the reverse."""


class InvalidMessage(MicrowsError, ValueError):
    """
    A codec cannot decode a message or a request's body. The text says what is wrong with it.

    Args:
        detail: What is wrong.
        path: Where: ``$.text``. Default: ``$``, the whole message.
    """

    def __init__(self, detail: str = "", *, path: str = "$") -> None:
        self.detail = detail
        self.path = path
        super().__init__(detail if path == "$" else f"{detail} - at {path}")


class Overflow(MicrowsError):
    """A subscription's queue was full when a message arrived: at least one message was lost."""


class TooManySubscriptions(MicrowsError):
    """
    A connection would have more subscriptions than ``App(max_subscriptions=…)`` allows; none was added.

    If a WebSocket view does not catch it, the connection is closed with 1008, or before accept rejected with 403.

    Args:
        count: Subscriptions that the connection would have had.
        maximum: Subscriptions that it may have.
    """

    def __init__(self, count: int, maximum: int) -> None:
        self.count = count
        self.maximum = maximum
        super().__init__(
            f"expected at most {maximum} subscriptions of one connection, got {count}; unsubscribe from some, or raise "
            "App(max_subscriptions=…)"
        )


class PublishTimeout(MicrowsError, TimeoutError):
    """The hub process or Redis did not answer in time: the message may have been, or may be, published."""


class HubUnavailable(MicrowsError, ConnectionError):
    """
    No hub process is where one is expected, none of its workers answers, or it is of another version of microws.

    With Redis: there is none, it is none that can carry a hub, or it refuses something; the text has its own words.
    Nothing was published. Or the hub has no room for one more ticket that was taken.
    """


class ReceiveTimeout(TimeoutError):
    """
    ``ws.receive(timeout=…)`` got no message. Catch it as ``TimeoutError``. The log shows it in one line.

    Attributes:
        seconds: The time-out.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(
            f"ws.receive(timeout={seconds:g}) got no message within {seconds:g} s; catch TimeoutError to go on, or "
            "leave out timeout to wait until the connection ends"
        )


class RoutingError(MicrowsError, ValueError):
    """A malformed pattern, a route that another one hides, or an unknown name or parameter of ``url_for``."""


class FeatureUnavailable(MicrowsError, NotImplementedError):
    """A documented feature that this version, or this installation, does not have."""


def _phrase(status: int) -> str:
    from http import HTTPStatus  # here, because it takes 1 ms, and an app may raise none

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
