"""Cookies, both ways: a ``Cookie`` header becomes a dict, and a name and value a ``Set-Cookie`` header."""

import re
from datetime import UTC, datetime
from email.utils import format_datetime
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
    The cookies of a ``Cookie`` header.

    Never fails: what is no ``name=value`` is left out, and bytes that are no UTF-8 become U+FFFD. Of two with one name
    the first counts: browsers put the one of the nearer path first. A quoted value loses its quotes and its escapes.

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
    The value of a ``Set-Cookie`` header.

    Args:
        name: A token.
        value: Any text. What a cookie cannot hold as it is goes in quotes, with each such byte as ``\\ooo`` (octal), as
            Python's ``http.cookies`` and Werkzeug do; ``parse_cookies`` undoes it.
        max_age: Seconds; 0 or less removes the cookie. Default: until the browser ends.
        expires: An aware time. ``max_age`` wins over it.
        path: Below which the cookie is sent back; ``None``: the directory of the request's path.
        domain: The host and those below it. Default: this host alone.
        secure: Over TLS only.
        httponly: Out of reach of the page's JavaScript.
        samesite: ``"lax"``, ``"strict"``, ``"none"`` (needs ``secure``), or ``None`` to leave the browser its default.

    Raises:
        ValueError: An argument that no browser would take, or that would end the header early.

    Source: RFC 6265 §4.1; draft-ietf-httpbis-rfc6265bis §4.1.2.7 (SameSite).
    """
    if not re.fullmatch(TOKEN, name):
        raise ValueError(f"a cookie's name is letters, digits and !#$%&'*+-.^_`|~, not {name!r}")
    parts = [f"{name}={_quote(value)}"]
    if max_age is not None:
        parts.append(f"Max-Age={int(max_age)}")
    if expires is not None:
        if expires.tzinfo is None:
            raise ValueError(f"expires needs a time zone: {expires!r} has none; write datetime.now(UTC) + …")
        parts.append(f"Expires={format_datetime(expires.astimezone(UTC), usegmt=True)}")
    if path is not None:
        if not _PATH.fullmatch(path):
            raise ValueError(f"a cookie's path begins with a slash and is ASCII without semicolons, not {path!r}")
        parts.append(f"Path={path}")
    if domain is not None:
        if not _DOMAIN.fullmatch(domain):
            raise ValueError(f'a cookie\'s domain is a host name such as "example.org", not {domain!r}')
        parts.append(f"Domain={domain}")
    if secure:
        parts.append("Secure")
    if httponly:
        parts.append("HttpOnly")
    if samesite is not None:
        if samesite not in ("lax", "strict", "none"):
            raise ValueError(f'samesite is "lax", "strict", "none" or None, not {samesite!r}')
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
