"""The cookies that a client keeps, as a browser does for one host."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["CookieJar", "parse_cookie"]


class _Cookie(str):
    """A cookie's value, with the requests to which it goes."""

    path = "/"
    secure = False


class CookieJar(dict[str, str]):
    """
    The cookies of one host, by name: those that ``Set-Cookie`` headers set, and those that the test sets.

    ``Path``, ``Secure`` and deletion by ``Max-Age`` or ``Expires`` are honored. ``Domain``, ``SameSite`` and a later
    expiry are not; of two cookies of one name the jar keeps the later one.

    Source: RFC 6265 §5.
    """

    def __repr__(self) -> str:
        return f"CookieJar({super().__repr__()})"

    def store(self, set_cookie: str, *, request_path: str) -> None:
        """Keep, or delete, the cookie of one ``Set-Cookie`` header."""
        name, value = parse_cookie(set_cookie)
        if not name:
            return
        pairs = [part.partition("=") for part in set_cookie.split(";")[1:]]
        attributes = {key.strip().lower(): text.strip() for key, _, text in pairs}
        if _is_expired(attributes):
            self.pop(name, None)
            return
        self[name] = cookie = _Cookie(value)
        cookie.secure = "secure" in attributes
        cookie.path = attributes.get("path", "")
        if not cookie.path.startswith("/"):
            cookie.path = request_path.rpartition("/")[0] or "/"

    def select(self, path: str, *, secure: bool) -> dict[str, str]:
        """Return the cookies of a request for ``path``; those with ``Secure`` only if ``secure``, which is over TLS."""
        cookies = {name: value if isinstance(value, _Cookie) else _Cookie(value) for name, value in self.items()}
        return {
            name: cookie
            for name, cookie in cookies.items()
            # RFC 6265 §5.1.4.
            if (path == cookie.path or path.startswith(cookie.path.removesuffix("/") + "/"))
            and (secure or not cookie.secure)
        }


def parse_cookie(set_cookie: str) -> tuple[str, str]:
    """Return name and value of a ``Set-Cookie`` header, unchanged. Without a name it is not a cookie."""
    name, _, value = set_cookie.partition(";")[0].partition("=")
    return name.strip(), value.strip()


def _is_expired(attributes: dict[str, str]) -> bool:
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
