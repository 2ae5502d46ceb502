"""Which events an app may send, and when: as strict as the strictest server."""

import re
from collections.abc import Sequence
from typing import Any

from microws.closing import check_close
from microws.interfaces import Event

__all__ = ["Rules"]

# RFC 9110 §5.1 and §5.6.2; ASGI requires lower case.
_HEADER_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
# RFC 9110 §5.5: no CR, LF or NUL, and no blank at either end.
_HEADER_VALUE = re.compile(rb"(?:[^\x00\r\n \t](?:[^\x00\r\n]*[^\x00\r\n \t])?)?")

# In each state the events that the app may send, with the state after them. A body stays in its state until the last
# part of it, and then is "complete".
_STATES = {
    "request": {"http.response.start": "response"},
    "response": {"http.response.body": "response"},
    "handshake": {
        "websocket.accept": "open",
        "websocket.close": "complete",
        "websocket.http.response.start": "denial",
    },
    "handshake without denial": {"websocket.accept": "open", "websocket.close": "complete"},
    "denial": {"websocket.http.response.body": "denial"},
    "open": {"websocket.send": "open", "websocket.close": "complete"},
    "lifespan.startup": {"lifespan.startup.complete": "lifespan", "lifespan.startup.failed": "lifespan"},
    "lifespan.shutdown": {"lifespan.shutdown.complete": "lifespan", "lifespan.shutdown.failed": "lifespan"},
    "lifespan": {},
    "complete": {},
}
# The fields of each event, by the last part of its type: their types and defaults.
_FIELDS: dict[str, dict[str, tuple[type, Any]]] = {
    "start": {"status": (int, None)},
    "body": {"body": (bytes, b""), "more_body": (bool, False)},
    "accept": {"subprotocol": (str, None)},
    "send": {"text": (str, None), "bytes": (bytes, None)},
    "close": {"code": (int, 1000), "reason": (str, None)},
    "complete": {"message": (str, "")},
    "failed": {"message": (str, "")},
}


class Rules:
    """
    The shape and the order of what an app sends in one call.

    Args:
        state: ``request``, ``handshake``, ``handshake without denial`` or ``lifespan``.
        method: The request's method: the body of a response to HEAD is discarded.
        subprotocols: What the client offered.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html, "Websocket Denial Response" included, and
    https://asgi.readthedocs.io/en/latest/specs/lifespan.html; RFC 9110 §8.6, §15.3.5, §15.4.5.
    """

    def __init__(self, state: str, *, method: str = "", subprotocols: Sequence[str] = ()) -> None:
        self.state: str = state
        self._method = method
        self._subprotocols = list(subprotocols)
        self._bodiless_status: int | None = None
        self._remaining: int | None = None

    def check(self, event: Event) -> dict[str, Any]:
        """Return the event with every default filled in. Raises ``RuntimeError`` if the app may not send it now."""
        if not isinstance(event, dict) or not isinstance(kind := event.get("type"), str):
            raise RuntimeError(f"expected a dict with a 'type', the app sent {event!r}")
        allowed = _STATES[self.state]
        if kind not in allowed:
            raise RuntimeError(f"expected {' or '.join(allowed) or 'no event now'}, the app sent {kind}")
        name = kind.rpartition(".")[2]
        checked = {"type": kind, **{key: _field(event, key, *field) for key, field in _FIELDS[name].items()}}
        state = allowed[kind]
        match name:
            case "start":
                self._check_start(checked, event)
            case "body":
                self._check_body(checked)
                state = state if checked["more_body"] else "complete"
            case "accept":
                self._check_accept(checked, event)
            case "send":
                _check_message(checked)
            case "close":
                # ASGI allows None.
                checked["reason"] = checked["reason"] or ""
                try:
                    check_close(checked["code"], checked["reason"])
                except ValueError as error:
                    raise RuntimeError(str(error)) from None
        self.state = state
        return checked

    def _check_start(self, checked: dict[str, Any], event: Event) -> None:
        status = checked["status"]
        if status is None or not 200 <= status <= 599:
            raise RuntimeError(f"expected a status of 200 to 599, the app sent {status}")
        checked["headers"] = _headers(event)
        lengths = {value for name, value in checked["headers"] if name == b"content-length"}
        if status in (204, 304):
            self._bodiless_status = status
        elif lengths and self._method != "HEAD":
            if len(lengths) > 1 or not min(lengths).isdigit():
                raise RuntimeError(f"expected one content-length, a number; the app sent {sorted(lengths)}")
            self._remaining = int(lengths.pop())

    def _check_body(self, checked: dict[str, Any]) -> None:
        body = checked["body"]
        if self._bodiless_status and body:
            raise RuntimeError(
                f"a response with status {self._bodiless_status} has no body; the app sent {body[:100]!r}"
            )
        if self._remaining is not None:
            self._remaining -= len(body)
            if self._remaining < 0:
                raise RuntimeError(f"the body is {-self._remaining} bytes longer than its content-length")
            if self._remaining and not checked["more_body"]:
                raise RuntimeError(f"the body is {self._remaining} bytes shorter than its content-length")
        if self._method == "HEAD":
            checked["body"] = b""

    def _check_accept(self, checked: dict[str, Any], event: Event) -> None:
        if checked["subprotocol"] not in (None, *self._subprotocols):
            raise RuntimeError(
                f"expected a subprotocol of {self._subprotocols}, the app accepted {checked['subprotocol']!r}"
            )
        checked["headers"] = _headers(event)
        if any(name == b"sec-websocket-protocol" for name, _ in checked["headers"]):
            raise RuntimeError("the server sends the header sec-websocket-protocol: the app must send subprotocol=")


def _field(event: Event, key: str, kind: type, default: Any) -> Any:
    value = event.get(key, default)
    # True and False are instances of int.
    if value is not default and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise RuntimeError(f"expected {key!r} of {event['type']} to be {kind.__name__}, the app sent {value!r}")
    return value


def _headers(event: Event) -> list[tuple[bytes, bytes]]:
    headers = []
    for pair in event.get("headers") or ():
        try:
            name, value = pair
        except (TypeError, ValueError):
            name = value = None
        if type(name) is not bytes or type(value) is not bytes:
            raise RuntimeError(f"expected headers as pairs of bytes, the app sent {pair!r}")
        if not _HEADER_NAME.fullmatch(name):
            raise RuntimeError(f"expected a header name in lower case, the app sent {name!r}")
        if not _HEADER_VALUE.fullmatch(value):
            raise RuntimeError(f"expected a valid value of the header {name!r}, the app sent {value!r}")
        headers.append((name, value))
    return headers


def _check_message(checked: dict[str, Any]) -> None:
    if (checked["text"] is None) == (checked["bytes"] is None):
        raise RuntimeError(f"expected either 'text' or 'bytes' in websocket.send, the app sent {checked!r}")
    del checked["bytes" if checked["bytes"] is None else "text"]
    try:
        checked.get("text", "").encode()
    except UnicodeEncodeError:
        raise RuntimeError(f"expected text that UTF-8 can encode, the app sent {checked['text'][:100]!r}") from None
