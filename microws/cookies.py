"""Cookies: parse a ``Cookie`` header, and format a ``Set-Cookie`` header."""

import re
from datetime import UTC, datetime
from typing import Literal

from microws.interfaces import TOKEN

__all__ = ["SameSite", "format_cookie", "parse_cookies"]

SameSite = Literal["lax", "strict", "none"]

# RFC 6265 §4.1.1: cookie-name is a token; cookie-octet is neither a control, a blank, a quote, a comma, a semicolon
# nor a backslash.
_OCTETS = re.compile(r"[!#-+\--:<-\[\]-~]*")
_DOMAIN = re.compile(r"[A-Za-z0-9.-]+")
_PATH = re.compile(r"/[ -:<-~]*")

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


def format_cookie(
    name: str,
    value: str,
    *,
    max_age: int | None = None,
    expires: datetime | None = None,
    path: str | None = "/",
    domain: str | None = None,
    secure: bool = False,
    httponly: bool = False,
    samesite: SameSite | None = "lax",
) -> str:
    """
    Format the value of a ``Set-Cookie`` header. ``Response.set_cookie`` documents the arguments.

    A value that is not allowed in a cookie is quoted, with each such byte as ``\\ooo`` (octal), as by Python's
    ``http.cookies`` and Werkzeug. ``parse_cookies`` undoes it.

    Raises:
        ValueError: Browsers would refuse an argument, or it would end the header early.

    Source: RFC 6265 §4.1; draft-ietf-httpbis-rfc6265bis §4.1.2.7 (SameSite).
    """
    if not re.fullmatch(TOKEN, name):
        raise ValueError(f"expected letters, digits and !#$%&'*+-.^_`|~ as a cookie's name, got {name!r}")
    parts = [f"{name}={_quote(value)}"]
    if max_age is not None:
        parts.append(f"Max-Age={int(max_age)}")
    if expires is not None:
        if expires.tzinfo is None:
            raise ValueError(f"expected expires with a time zone, got {expires!r}; write datetime.now(UTC) + …")
        from email.utils import format_datetime  # here, because it takes 5 ms to import

        parts.append(f"Expires={format_datetime(expires.astimezone(UTC), usegmt=True)}")
    if path is not None:
        if not _PATH.fullmatch(path):
            raise ValueError(f"expected a cookie's path of a slash and ASCII without semicolons, got {path!r}")
        parts.append(f"Path={path}")
    if domain is not None:
        if not _DOMAIN.fullmatch(domain):
            raise ValueError(f'expected a host name such as "example.org" as a cookie\'s domain, got {domain!r}')
        parts.append(f"Domain={domain}")
    if secure:
        parts.append("Secure")
    if httponly:
        parts.append("HttpOnly")
    if samesite is not None:
        if samesite not in ("lax", "strict", "none"):
            raise ValueError(f'expected samesite="lax", "strict", "none" or None, got {samesite!r}')
        if samesite == "none" and not secure:
            raise ValueError('browsers refuse samesite="none" without secure=True')
        parts.append(f"SameSite={samesite.capitalize()}")
    return "; ".join(parts)


def _quote(value: str) -> str:
    if _OCTETS.fullmatch(value):
        return value
    return '"' + _TO_ESCAPE.sub(_escape, value.encode()).decode("ascii") + '"'


def _escape(match: re.Match[bytes]) -> bytes:
    return b"\\%03o" % match[0][0]


def _unquote(value: bytes) -> bytes:
    if len(value) < 2 or not (value.startswith(b'"') and value.endswith(b'"')):
        return value
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]) if match[1] else match[2], value[1:-1])
