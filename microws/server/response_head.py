"""The heads of HTTP/1.1 responses: status line, date, and the header fields that an app gives. No I/O."""

import re
from collections.abc import Iterable
from email.utils import formatdate
from functools import cache, lru_cache
from http import HTTPStatus
from time import time
from typing import Any, Final

from microws.interfaces import BYTES_LIKE

__all__ = ["BODILESS", "NO_CONTENT", "check_body", "check_status", "date_line", "read_fields", "response_head"]

# Statuses without a body: RFC 9110 §8.6, §15.4.5; RFC 9112 §6.3.
NO_CONTENT: Final = 204
BODILESS: Final = (NO_CONTENT, 304)
# Fields that only the server may write: they frame the body or belong to the connection (RFC 9110 §7.6.1).
_DROPPED: Final = (b"connection", b"transfer-encoding", b"keep-alive", b"content-length")
_READ: Final = frozenset((*_DROPPED, b"content-type", b"date", b"upgrade"))
# RFC 9110 §5.1, §5.5.
_FIELD_LINES: Final = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [\t\x20-\x7e\x80-\xff]*\r\n)*")


def response_head(status: int, *fields: bytes) -> bytes:
    """
    The head of a response.

    Args:
        fields: Each of one or more whole lines.

    Source: RFC 9112 §4, §5.
    """
    return b"".join((_status_line(status), *fields, b"\r\n"))


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
    The ``Date`` field, formatted once a second.

    Source: RFC 9110 §6.6.1.
    """
    global _date
    now = int(time())
    if _date[0] != now:
        _date = now, b"date: %b\r\n" % formatdate(now, usegmt=True).encode()
    return _date[1]


def check_status(status: Any) -> int:
    """
    The status of a response, checked.

    Raises:
        TypeError, ValueError: It is not an integer from 200 to 599.
    """
    if not isinstance(status, int):
        raise TypeError(f"expected the status of a response as int, got {status!r}")
    if not 200 <= status <= 599:
        raise ValueError(f"expected a status of 200 to 599, got {status}")
    return int(status)


def check_body(body: object) -> bytes:
    """
    Copy a piece of a body that is not ``bytes``.

    A copy, because the app may change its buffer before that was sent, and a buffer's items may be larger than a byte.

    Raises:
        TypeError: The body is not bytes.
    """
    if not isinstance(body, BYTES_LIKE):
        raise TypeError(f"expected the body of a response as bytes, got {type(body).__name__}")
    return bytes(body)


def read_fields(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, int | None, bool, bool]:
    """
    Check the header fields of a response.

    Returns:
        The lines to send, ``Date`` among them, without ``Content-Length``; the value of ``Content-Length``; whether the
        content type is that of an event stream; whether ``Connection`` says ``close``.

    Raises:
        ValueError: A name or value that must not be sent, or a length that is not a number.
    """
    lines: list[bytes] = []
    content_type = b""
    length: int | None = None
    is_event_stream = asks_to_close = has_date = False
    for name, value in headers:
        name = name.lower()
        if name in _READ:
            if name == b"content-length":
                if length is not None or not value.isdigit():
                    raise ValueError(f"expected one content-length, a number, got {value!r}")
                length = int(value)
            elif name == b"content-type" and not content_type:
                content_type, is_event_stream = _read_content_type(value)
                continue
            elif name == b"date":
                has_date = True
            elif name == b"connection":
                asks_to_close = asks_to_close or b"close" in value.lower()
            elif name == b"upgrade":
                lines.append(b"connection: upgrade\r\n")  # RFC 9110 §7.8, for a 426
            if name in _DROPPED:
                continue
        if b":" in name:
            raise ValueError(f"expected the name of a header without a colon, got {name!r}")
        lines.append(b"%b: %b\r\n" % (name, value))
    fields = content_type
    if lines:
        fields += _check_lines(lines)
    return fields if has_date else fields + date_line(), length, is_event_stream, asks_to_close


# Apps send a few content types, again and again.
@lru_cache(maxsize=64)
def _read_content_type(value: bytes) -> tuple[bytes, bool]:
    line = _check_lines([b"content-type: %b\r\n" % value])
    return line, value.strip().lower().startswith(b"text/event-stream")


def _check_lines(lines: list[bytes]) -> bytes:
    fields = b"".join(lines)
    # A line break in a name or value would add a field: there would be more line breaks than lines.
    if not _FIELD_LINES.fullmatch(fields) or fields.count(b"\r\n") != len(lines):
        raise ValueError(
            "expected header names of letters, digits and !#$%&'*+-.^_`|~, and values without control characters"
        )
    return fields
