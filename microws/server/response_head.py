"""The heads of HTTP/1.1 responses. No I/O."""

import re
from collections.abc import Iterable
from email.utils import formatdate
from functools import cache
from http import HTTPStatus
from time import time
from typing import Any, Final

from microws.interfaces import BYTES_LIKE

__all__ = ["BODILESS", "NO_CONTENT", "check_body", "check_status", "date_line", "read_fields", "response_head"]

# RFC 9110 §8.6, §15.4.5; RFC 9112 §6.3: these have no body.
NO_CONTENT: Final = 204
BODILESS: Final = (NO_CONTENT, 304)
# About the connection, of which the app knows nothing (RFC 9110 §7.6.1), and what the server writes.
_DROPPED: Final = frozenset({b"connection", b"transfer-encoding", b"keep-alive", b"content-length"})
_READ: Final = _DROPPED | {b"content-type", b"date", b"upgrade"}
# RFC 9110 §5.1, §5.5: what may stand on the wire.
_FIELD_LINES: Final = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [\t\x20-\x7e\x80-\xff]*\r\n)*")


def response_head(status: int, *fields: bytes) -> bytes:
    """
    The head of a response.

    Args:
        fields: Of one or more whole lines each.

    Source: RFC 9112 §4, §5.
    """
    return b"%b%b\r\n" % (_status_line(status), b"".join(fields))


@cache
def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode())


_date: tuple[int, bytes] = (0, b"")


def date_line() -> bytes:
    """
    The field ``Date``, made anew once a second.

    Source: RFC 9110 §6.6.1.
    """
    global _date
    now = int(time())
    if _date[0] != now:
        _date = now, b"date: %b\r\n" % formatdate(now, usegmt=True).encode()
    return _date[1]


def check_status(status: Any) -> int:
    """
    The status of a response, from an app.

    Raises:
        TypeError, ValueError: No server could send it.
    """
    if not isinstance(status, int):
        raise TypeError(f"expected the status of a response as int, got {status!r}")
    if not 200 <= status <= 599:
        raise ValueError(f"expected a status of 200 to 599, got {status}")
    return int(status)


def check_body(body: object) -> bytes:
    """
    A copy of a piece of a body, from an app: it may change its buffer before that has left, and the items of one may be
    larger than a byte.

    Raises:
        TypeError: The body is not bytes.
    """
    if not isinstance(body, BYTES_LIKE):
        raise TypeError(f"expected the body of a response as bytes, got {type(body).__name__}")
    return bytes(body)


def read_fields(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, int | None, bool, bool]:
    """
    Read and check the fields that an app gives to a response.

    Returns:
        The lines of those that are sent, and of ``Date``, but not of ``Content-Length``; the value of that one;
        whether the type of the content is that of an event stream; and whether ``Connection`` has ``close``.

    Raises:
        ValueError: A name or value that may not stand on the wire, or a length that is not a number.
    """
    lines: list[bytes] = []
    length: int | None = None
    is_event_stream = asks_to_close = has_date = False
    for name, value in headers:
        name = name.lower()
        if name in _READ:
            if name == b"content-length":
                if length is not None or not value.isdigit():
                    raise ValueError(f"expected one content-length, a number, got {value!r}")
                length = int(value)
            elif name == b"content-type":
                is_event_stream = value.strip().lower().startswith(b"text/event-stream")
            elif name == b"date":
                has_date = True
            elif name == b"connection":
                asks_to_close = asks_to_close or b"close" in value.lower()
            elif name == b"upgrade":
                lines.append(b"connection: upgrade\r\n")  # RFC 9110 §7.8; a 426 has it
            if name in _DROPPED:
                continue
        if b":" in name:
            raise ValueError(f"expected the name of a header without a colon, got {name!r}")
        lines.append(b"%b: %b\r\n" % (name, value))
    if not has_date:
        lines.append(date_line())
    fields = b"".join(lines)
    # A line break in a field, or a colon in a name, would make two good fields of one, or another one.
    if not _FIELD_LINES.fullmatch(fields) or fields.count(b"\r\n") != len(lines):
        raise ValueError(
            "expected header names of letters, digits and !#$%&'*+-.^_`|~, and values without control characters"
        )
    return fields, length, is_event_stream, asks_to_close
