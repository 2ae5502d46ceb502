"""What is measured: the parts of a URL."""

import string
from dataclasses import dataclass
from typing import final
from urllib.parse import quote, urlsplit

from microws.datastructures import mask_secrets

__all__ = ["Target"]

_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}
_UNCHANGED = string.punctuation


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """
    One URL, taken apart.

    Attributes:
        url: As it was given, with secrets in the query masked.
        scheme: ``ws``, ``wss``, ``http`` or ``https``.
        host: A name or an address, without brackets.
        port: As given, or the scheme's.
        authority: What stands in ``Host``.
        path: With the query, in ASCII.
    """

    url: str
    scheme: str
    host: str
    port: int
    authority: str
    path: str

    @classmethod
    def parse(cls, url: str, *, schemes: tuple[str, ...]) -> "Target":
        """
        Raises:
            ValueError: No URL with a host and one of ``schemes``.
        """
        expected = f"{', '.join(f'{scheme}://' for scheme in schemes[:-1])} or {schemes[-1]}://"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError(f"{url!r} is no URL: {error}") from None
        if parts.scheme not in schemes:
            hint = ""
            if parts.scheme in _PORTS:
                hint = f"; did you mean {parts.scheme.replace('http', 'ws')}://{url.partition('://')[2]} ?"
            elif "://" not in url:
                hint = f"; did you mean {schemes[0]}://{url} ?"
            raise ValueError(f"expected a URL that begins with {expected}, got {url!r}{hint}")
        if not host:
            raise ValueError(f"{url!r} names no host; write {parts.scheme}://127.0.0.1:8000/")
        if parts.username is not None:
            raise ValueError("a name and a password belong into a header: --header 'Authorization: Basic …'")
        if parts.fragment:
            raise ValueError(f"{url!r} has a fragment, which no server gets to see; leave out #{parts.fragment}")
        try:
            name = host if ":" in host else host.encode("idna").decode()
        except UnicodeError:
            raise ValueError(f"{host!r} can be no name of a host") from None
        shown = f"[{name}]" if ":" in name else name
        path = quote(parts.path or "/", safe=_UNCHANGED) + (
            f"?{quote(parts.query, safe=_UNCHANGED)}" if parts.query else ""
        )
        return cls(
            url=mask_secrets(url),
            scheme=parts.scheme,
            host=name,
            port=port or _PORTS[parts.scheme],
            authority=shown if port in (None, _PORTS[parts.scheme]) else f"{shown}:{port}",
            path=path,
        )

    @property
    def is_secure(self) -> bool:
        return self.scheme in ("wss", "https")

    @property
    def is_websocket(self) -> bool:
        return self.scheme in ("ws", "wss")
