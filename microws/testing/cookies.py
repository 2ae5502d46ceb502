"""The cookies that a client keeps, as a browser would for one host."""

from collections.abc import Iterator, MutableMapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

__all__ = ["CookieJar", "cookie_pair"]


class _Cookie(NamedTuple):
    value: str
    path: str = "/"
    secure: bool = False


class CookieJar(MutableMapping[str, str]):
    """
    The cookies of one host, by name: those that ``Set-Cookie`` brought, and those that the test sets.

    ``Path``, ``Secure`` and the deletion by ``Max-Age`` or ``Expires`` are followed. ``Domain``, ``SameSite`` and a
    later expiry are not; of two cookies of one name the later is kept.

    Source: RFC 6265 §5.
    """

    def __init__(self) -> None:
        self._cookies: dict[str, _Cookie] = {}

    def __getitem__(self, name: str) -> str:
        return self._cookies[name].value

    def __setitem__(self, name: str, value: str) -> None:
        self._cookies[name] = _Cookie(value)

    def __delitem__(self, name: str) -> None:
        del self._cookies[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cookies)

    def __len__(self) -> int:
        return len(self._cookies)

    def __repr__(self) -> str:
        return f"CookieJar({dict(self)!r})"

    def store(self, set_cookie: str, *, request_path: str) -> None:
        """Keep, or delete, the cookie of one ``Set-Cookie`` header."""
        name, value = cookie_pair(set_cookie)
        if not name:
            return
        attributes = {}
        for part in set_cookie.split(";")[1:]:
            key, _, text = part.partition("=")
            attributes[key.strip().lower()] = text.strip()
        path = attributes.get("path", "")
        if not path.startswith("/"):
            path = request_path.rpartition("/")[0] or "/"
        if _has_expired(attributes):
            self._cookies.pop(name, None)
        else:
            self._cookies[name] = _Cookie(value, path, "secure" in attributes)

    def select(self, path: str, *, secure: bool) -> dict[str, str]:
        """The cookies that go with a request for ``path``, over TLS where ``secure``."""
        return {
            name: cookie.value
            for name, cookie in self._cookies.items()
            if _path_matches(path, cookie.path) and (secure or not cookie.secure)
        }


def cookie_pair(set_cookie: str) -> tuple[str, str]:
    """Name and value of a ``Set-Cookie`` header, as they stand there; no name makes it no cookie."""
    name, _, value = set_cookie.partition(";")[0].partition("=")
    return name.strip(), value.strip()


def _path_matches(path: str, cookie_path: str) -> bool:
    # RFC 6265 §5.1.4.
    return path == cookie_path or path.startswith(cookie_path.removesuffix("/") + "/")


def _has_expired(attributes: dict[str, str]) -> bool:
    # RFC 6265 §5.3: Max-Age has precedence over Expires.
    try:
        return int(attributes["max-age"]) <= 0
    except (KeyError, ValueError):
        pass
    try:
        expires = parsedate_to_datetime(attributes["expires"])
    except (KeyError, ValueError):
        return False
    return expires.replace(tzinfo=expires.tzinfo or UTC) <= datetime.now(UTC)
