"""Cookies: parse a ``Cookie`` header, and quote a value for ``Set-Cookie``, which ``Response.set_cookie`` formats."""

import re
from typing import Literal

__all__ = ["COOKIE_DOMAIN", "COOKIE_PATH", "SameSite", "parse_cookies", "quote_value"]

SameSite = Literal["lax", "strict", "none"]

# RFC 6265 §4.1.1: cookie-name is a token; cookie-octet is neither a control, a blank, a quote, a comma, a semicolon
# nor a backslash.
_OCTETS = re.compile(r"[!#-+\--:<-\[\]-~]*")
COOKIE_DOMAIN = re.compile(r"[A-Za-z0-9.-]+")
COOKIE_PATH = re.compile(r"/[ -:<-~]*")

_TO_ESCAPE = re.compile(rb"[^ !#-+\--:<-\[\]-~]")
_ESCAPED = re.compile(rb"\\(?:([0-3][0-7][0-7])|(.))", re.DOTALL)


def parse_cookies(header: bytes) -> dict[str, str]:
    """
    Parse a ``Cookie`` header.

    Never fails: whatever is not ``name=value`` is ignored, and invalid UTF-8 becomes U+FFFD. Of two with one name the
    first wins, because browsers send the one with the longer path first. A quoted value is unquoted and unescaped.

    Args:
        header: The header's value; several headers are joined with ``; ``.

    Source: RFC 6265 §4.2.1, §5.4.
    """
    cookies: dict[str, str] = {}
    for pair in header.split(b";"):
        name, separator, value = pair.partition(b"=")
        name = name.strip()
        if separator and name:
            cookies.setdefault(name.decode(errors="replace"), _unquote(value.strip()).decode(errors="replace"))
    return cookies


def quote_value(value: str) -> str:
    """
    A cookie's value. One that is not allowed in a cookie is quoted, with each such byte as ``\\ooo`` (octal).

    Python's ``http.cookies`` and Werkzeug do the same, and ``parse_cookies`` undoes it.

    Raises:
        UnicodeEncodeError: ``value`` contains a lone surrogate.

    Source: RFC 6265 §4.1.1.
    """
    if _OCTETS.fullmatch(value):
        return value
    return '"' + _TO_ESCAPE.sub(_escape, value.encode()).decode("ascii") + '"'


def _escape(match: re.Match[bytes]) -> bytes:
    return b"\\%03o" % match[0][0]


def _unquote(value: bytes) -> bytes:
    if len(value) < 2 or not (value.startswith(b'"') and value.endswith(b'"')):
        return value
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]) if match[1] else match[2], value[1:-1])
