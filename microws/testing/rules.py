"""What an app may send, and when: the shape and order of ASGI's events, as strict as the strictest server."""

import re
from typing import Any, TypeVar

from microws.closing import check_close
from microws.interfaces import Event

__all__ = ["LifespanRules", "ResponseRules", "WebSocketRules"]

T = TypeVar("T")
D = TypeVar("D")

# RFC 9110 §5.1 and §5.6.2; ASGI wants names in lower case.
_HEADER_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
# RFC 9110 §5.5: a recipient must reject CR, LF and NUL, and a sender leaves no blank around a value.
_HEADER_VALUE = re.compile(rb"(?:[^\x00\r\n \t](?:[^\x00\r\n]*[^\x00\r\n \t])?)?")


class ResponseRules:
    """
    The rules of one HTTP response, or of a WebSocket's denial response.

    Args:
        prefix: ``http.response`` or ``websocket.http.response``.
        method: The request's method: the body of an answer to HEAD is not counted.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html; RFC 9110 §8.6, §15.3.5, §15.4.5.
    """

    def __init__(self, prefix: str, *, method: str = "GET") -> None:
        self.complete = False
        self._prefix = prefix
        self._method = method
        self._expected = f"{prefix}.start"
        self._remaining: int | None = None
        self._bodiless: int | None = None

    def check(self, event: Event) -> Event:
        """The event with every default filled in. Raises ``RuntimeError`` for one that may not come now."""
        kind = _kind(event, self._expected)
        checked = self._start(event) if kind == f"{self._prefix}.start" else self._body(event)
        return {"type": kind, **checked}

    def _start(self, event: Event) -> dict[str, Any]:
        status = _field(event, "status", int, None)
        if status is None or not 200 <= status <= 599:
            raise RuntimeError(f"expected a status of 200 to 599, the app sent {status}")
        headers = _headers(event)
        if status in (204, 304):
            self._bodiless = status
        elif self._method != "HEAD":
            self._remaining = _content_length(headers)
        self._expected = f"{self._prefix}.body"
        return {"status": status, "headers": headers}

    def _body(self, event: Event) -> dict[str, Any]:
        body = _field(event, "body", bytes, b"")
        more_body = _field(event, "more_body", bool, False)
        if self._bodiless and body:
            raise RuntimeError(f"a response with status {self._bodiless} has no body; the app sent {body[:100]!r}")
        if self._remaining is not None:
            self._remaining -= len(body)
            if self._remaining < 0:
                raise RuntimeError(f"the body is {-self._remaining} bytes longer than its content-length")
            if self._remaining and not more_body:
                raise RuntimeError(f"the body is {self._remaining} bytes shorter than its content-length")
        if not more_body:
            self.complete = True
            self._expected = ""
        return {"body": body, "more_body": more_body}


class WebSocketRules:
    """
    The rules of one WebSocket connection.

    Args:
        subprotocols: What the client offered.
        denial: Whether the server has the ``websocket.http.response`` extension.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket, and its "Websocket Denial Response"
    """

    def __init__(self, *, subprotocols: list[str], denial: bool) -> None:
        self.accepted = False
        self._subprotocols = subprotocols
        self._denial: ResponseRules | None = None
        self._expected = "websocket.accept, websocket.close" + (", websocket.http.response.start" if denial else "")

    def check(self, event: Event) -> Event:
        """The event with every default filled in. Raises ``RuntimeError`` for one that may not come now."""
        if self._denial:
            return self._denial.check(event)
        match kind := _kind(event, self._expected):
            case "websocket.accept":
                checked = self._accept(event)
            case "websocket.send":
                checked = _message(event)
            case "websocket.close":
                checked = self._close(event)
            case _:
                denial = ResponseRules("websocket.http.response")
                checked = dict(denial.check(event))
                self._denial = denial
        return {"type": kind, **checked}

    def _accept(self, event: Event) -> dict[str, Any]:
        subprotocol = _field(event, "subprotocol", str, None)
        if subprotocol is not None and subprotocol not in self._subprotocols:
            raise RuntimeError(f"expected a subprotocol of {self._subprotocols}, the app accepted {subprotocol!r}")
        headers = _headers(event)
        if any(name == b"sec-websocket-protocol" for name, _ in headers):
            raise RuntimeError("the header sec-websocket-protocol is the server's; the app sends subprotocol=")
        self.accepted = True
        self._expected = "websocket.send, websocket.close"
        return {"subprotocol": subprotocol, "headers": headers}

    def _close(self, event: Event) -> dict[str, Any]:
        code = _field(event, "code", int, 1000)
        # The specification allows None.
        reason = _field(event, "reason", str, None) or ""
        try:
            check_close(code, reason)
        except ValueError as error:
            raise RuntimeError(str(error)) from None
        self._expected = ""
        return {"code": code, "reason": reason}


class LifespanRules:
    """
    The rules of the lifespan: one answer to each of startup and shutdown.

    Source: https://asgi.readthedocs.io/en/latest/specs/lifespan.html
    """

    def __init__(self) -> None:
        self._expected = ""

    def ask(self, phase: str) -> None:
        """``startup`` or ``shutdown`` has reached the app: its answer may come."""
        self._expected = f"lifespan.{phase}.complete, lifespan.{phase}.failed"

    def check(self, event: Event) -> Event:
        """The event with every default filled in. Raises ``RuntimeError`` for one that may not come now."""
        kind = _kind(event, self._expected)
        message = _field(event, "message", str, "")
        self._expected = ""
        return {"type": kind, "message": message}


def _kind(event: Event, expected: str) -> str:
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise RuntimeError(f"expected a dict with a 'type', the app sent {event!r}")
    kind: str = event["type"]
    if kind not in expected.split(", "):
        raise RuntimeError(f"expected {expected.replace(', ', ' or ') or 'no event now'}, the app sent {kind}")
    return kind


def _field(event: Event, key: str, kind: type[T], default: D) -> T | D:
    value: object = event.get(key, default)
    # True is an int to isinstance.
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    if value is default:
        return default
    raise RuntimeError(f"expected {key!r} of {event['type']} to be {kind.__name__}, the app sent {value!r}")


def _headers(event: Event) -> list[tuple[bytes, bytes]]:
    headers = []
    for pair in event.get("headers") or ():
        try:
            name, value = pair
        except (TypeError, ValueError):
            raise RuntimeError(f"expected headers as pairs of bytes, the app sent {pair!r}") from None
        if type(name) is not bytes or type(value) is not bytes:
            raise RuntimeError(f"expected headers as pairs of bytes, the app sent {pair!r}")
        if not _HEADER_NAME.fullmatch(name):
            raise RuntimeError(f"expected a header name in lower case, the app sent {name!r}")
        if not _HEADER_VALUE.fullmatch(value):
            raise RuntimeError(f"the value of the header {name!r} may not stand in a header: {value!r}")
        headers.append((name, value))
    return headers


def _content_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    values = {value for name, value in headers if name == b"content-length"}
    if not values:
        return None
    value = values.pop()
    if values or not value.isdigit():
        raise RuntimeError(f"expected one content-length, a number; the app sent {[value, *values]}")
    return int(value)


def _message(event: Event) -> dict[str, Any]:
    text = _field(event, "text", str, None)
    data = _field(event, "bytes", bytes, None)
    if (text is None) == (data is None):
        raise RuntimeError(f"expected either 'text' or 'bytes' in websocket.send, the app sent {dict(event)!r}")
    if text is None:
        return {"bytes": data}
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RuntimeError(f"the text {text[:100]!r} cannot be encoded as UTF-8") from None
    return {"text": text}
