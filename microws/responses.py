"""Responses whose body is known. Each response is an ASGI app."""

import re
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Self
from urllib.parse import quote

from microws.codec import dumps_json
from microws.cookies import COOKIE_DOMAIN, COOKIE_PATH, SameSite, quote_value
from microws.datastructures import Headers
from microws.handshake import HeadersLike, check_headers
from microws.interfaces import BYTES_LIKE, TOKEN, Event, Receive, Scope, Send

__all__ = ["BODILESS_STATUSES", "JSONResponse", "RedirectResponse", "Response", "ResponseHeaders", "TextResponse"]

# RFC 9110 §15.3.5, §15.4.5: these end with their headers, and a 204 has no Content-Length.
BODILESS_STATUSES = frozenset({204, 304})
# RFC 9112 §6: Response and the server set the framing of the body.
_FRAMING = frozenset({"content-length", "transfer-encoding"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

# RFC 9110 §10.2.2. A path of exactly one slash at its start (two begin a host), or a host after the scheme.
_LOCATION = re.compile(r"(/(?!/)|https?://[^/?#]).*", re.IGNORECASE | re.DOTALL)
# Browsers treat a backslash as a slash, and ignore tabs and newlines.
_UNSAFE_IN_LOCATION = re.compile(r"[\x00-\x1f\x7f\\]")
_URL_CHARACTERS = "/%?#[]@!$&'()*+,;=:"


class ResponseHeaders(Headers, MutableMapping[str, str]):
    """
    The headers of a response: ``Headers`` that can be changed until they are sent. Each change is checked.

    ``headers[name] = value`` replaces every header of that name, ``add`` adds one.

    Args:
        headers: A mapping or ``(name, value)`` pairs.

    Raises:
        ValueError: A header is malformed, or is ``Content-Length`` or ``Transfer-Encoding``, which microws sets.
    """

    __slots__ = ()

    def __init__(self, headers: HeadersLike | None = None) -> None:
        self._items = []
        if headers is not None:
            for name, value in check_headers(headers):
                self.add(name.decode("latin-1"), value.decode("latin-1"))

    def add(self, name: str, value: str) -> None:
        """Add a header and keep those of the same name, as ``Set-Cookie`` requires."""
        [(raw_name, raw_value)] = check_headers([(name, value)])
        name = raw_name.decode("latin-1")
        if name in _FRAMING:
            raise ValueError(f"leave out the header {name}: microws sets it")
        self._items.append((name, raw_value.decode("latin-1")))

    def add_valid(self, name: str, value: str) -> None:
        """``add`` without a check, for a name in lower case."""
        self._items.append((name, value))

    def add_default(self, name: str, value: str) -> None:
        """``add_valid``, unless there is a header of that name."""
        if not self._items or name not in self:
            self._items.append((name, value))

    def __setitem__(self, name: str, value: str) -> None:
        before = [item for item in self._items if item[0] != name.lower()]
        self.add(name, value)
        self._items = [*before, self._items[-1]]

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._items = [item for item in self._items if item[0] != name.lower()]

    def raw(self) -> list[tuple[bytes, bytes]]:
        """The headers as ASGI takes them."""
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self._items]


class Response:
    """
    A response whose body is known: ``await response(scope, receive, send)`` sends it.

    Args:
        body: ``str`` is encoded as UTF-8.
        status: 200 to 599. With 204 and 304, no body is sent.
        headers: A mapping or ``(name, value)`` pairs.
        content_type: Default: that of ``headers``, else ``text/html; charset=utf-8`` for ``str`` and
            ``application/octet-stream`` for ``bytes``.

    Raises:
        TypeError: ``body`` is neither ``str`` nor bytes.
        ValueError: The status or a header is invalid.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html; RFC 9110 §8.6 (Content-Length, also for HEAD).
    """

    # Whether it writes its body to the server's connection itself, where it can.
    can_be_direct: ClassVar[bool] = False

    def __init__(
        self,
        body: str | bytes | bytearray | memoryview = b"",
        status: int = 200,
        headers: HeadersLike | None = None,
        *,
        content_type: str | None = None,
    ) -> None:
        if isinstance(body, str):
            self._begin(body.encode(), status, headers, b"text/html; charset=utf-8")
        elif isinstance(body, BYTES_LIKE):
            self._begin(bytes(body), status, headers, b"application/octet-stream" if body else None)
        else:
            raise TypeError(
                f"expected str or bytes as a response's body, got {type(body).__name__}; use JSONResponse for a value"
            )
        if content_type is not None:
            self.headers["content-type"] = content_type

    def _begin(self, body: bytes, status: int, headers: HeadersLike | None, default_type: bytes | None) -> None:
        # RFC 9110 §15.2: a 1xx comes before the response and does not end the request.
        if not 200 <= status <= 599:
            raise ValueError(f"expected a response's status of 200 to 599, got {status}")
        self.body = body
        self.status: int = int(status)
        self._default_type = default_type
        # Made when they are asked for: most responses have their content type alone.
        self._headers: ResponseHeaders | None = None
        if headers is not None:
            self._headers = self._make_headers(headers)

    def _make_headers(self, headers: HeadersLike | None) -> ResponseHeaders:
        made = ResponseHeaders(headers)
        if self._default_type is not None:
            made.add_default("content-type", self._default_type.decode("ascii"))
        return made

    @property
    def headers(self) -> ResponseHeaders:
        """The headers. You may change them until they are sent."""
        if self._headers is None:
            self._headers = self._make_headers(None)
        return self._headers

    def with_own_headers(self) -> Self:
        """A copy whose headers can be changed without a change of these."""
        # copy.copy takes five times as long.
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        if self._headers is not None:
            twin._headers = ResponseHeaders()
            twin._headers._items = self._headers._items.copy()  # noqa: SLF001
        return twin

    def _raw_headers(self) -> list[tuple[bytes, bytes]]:
        """``headers`` as ASGI takes them."""
        if self._headers is not None:
            return self._headers.raw()
        return [] if self._default_type is None else [(b"content-type", self._default_type)]

    def set_cookie(
        self,
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
    ) -> None:
        """
        Set a cookie in the browser. ``request.cookies`` of later requests has it.

        Args:
            name: Letters, digits and some punctuation.
            value: Any text.
            max_age: Lifetime in seconds. Default: until the browser is closed.
            expires: A time with a time zone; ``max_age`` overrides it.
            path: The browser sends the cookie for paths below this one.
            domain: The host and its subdomains. Default: this host only.
            secure: Send it over TLS only.
            httponly: Hide it from JavaScript.
            samesite: ``"lax"``, ``"strict"``, ``"none"`` (requires ``secure``), or ``None`` for the browser's default.

        Raises:
            ValueError: A browser would reject an argument.

        Source: RFC 6265 §4.1; draft-ietf-httpbis-rfc6265bis §4.1.2.7 (SameSite).
        """
        if not re.fullmatch(TOKEN, name):
            raise ValueError(f"expected letters, digits and !#$%&'*+-.^_`|~ as a cookie's name, got {name!r}")
        parts = [f"{name}={quote_value(value)}"]
        if max_age is not None:
            parts.append(f"Max-Age={int(max_age)}")
        if expires is not None:
            if expires.tzinfo is None:
                raise ValueError(f"expected expires with a time zone, got {expires!r}; write datetime.now(UTC) + …")
            from email.utils import format_datetime  # here, because it takes 5 ms to import

            parts.append(f"Expires={format_datetime(expires.astimezone(UTC), usegmt=True)}")
        if path is not None:
            if not COOKIE_PATH.fullmatch(path):
                raise ValueError(f"expected a cookie's path of a slash and ASCII without semicolons, got {path!r}")
            parts.append(f"Path={path}")
        if domain is not None:
            if not COOKIE_DOMAIN.fullmatch(domain):
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
        self.headers.add("set-cookie", "; ".join(parts))

    def delete_cookie(
        self,
        name: str,
        *,
        path: str | None = "/",
        domain: str | None = None,
        secure: bool = False,
        httponly: bool = False,
        samesite: SameSite | None = "lax",
    ) -> None:
        """Delete a cookie that was set with the same ``path`` and ``domain``."""
        self.set_cookie(
            name,
            "",
            max_age=0,
            expires=datetime.fromtimestamp(0, UTC),
            path=path,
            domain=domain,
            secure=secure,
            httponly=httponly,
            samesite=samesite,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        if self.status in BODILESS_STATUSES:
            await send(self._start())
            await send({"type": "http.response.body", "body": b""})
            return
        start = self._start(content_length=len(self.body))
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return
        # The microws server takes both at once, unless middleware needs to see them: that saves 2 µs.
        exchange = scope.get("microws.exchange")
        if exchange is None or not exchange.respond(send, start, self.body):
            await send(start)
            await send({"type": "http.response.body", "body": self.body})

    def _start(self, *, content_length: int | None = None) -> Event:
        headers = self._raw_headers()
        if content_length is not None:
            headers.append((b"content-length", b"%d" % content_length))
        return {"type": "http.response.start", "status": self.status, "headers": headers}


class TextResponse(Response):
    """
    Plain text.

    Args:
        text: Encoded as UTF-8; a lone surrogate becomes ``?``.
        status: HTTP status.
        headers: A mapping or ``(name, value)`` pairs. The default content type is ``text/plain; charset=utf-8``.

    Raises:
        ValueError: The status or a header is invalid.
    """

    def __init__(self, text: str, status: int = 200, headers: HeadersLike | None = None) -> None:
        self._begin(text.encode(errors="replace"), status, headers, b"text/plain; charset=utf-8")


class JSONResponse(Response):
    """
    A value as JSON.

    Args:
        value: ``dict`` with ``str`` keys, ``list``, ``str``, numbers, ``bool``, ``None``; also dataclasses, enums,
            dates and UUIDs.
        status: HTTP status.
        headers: A mapping or ``(name, value)`` pairs. The default content type is ``application/json``.

    Raises:
        TypeError, ValueError: JSON does not support a value, such as NaN and Infinity. The text says where it is.
    """

    def __init__(self, value: Any, status: int = 200, headers: HeadersLike | None = None) -> None:
        self._begin(dumps_json(value), status, headers, b"application/json")


class RedirectResponse(Response):
    """
    Redirects the client to another location.

    Args:
        location: A path that begins with exactly one slash, or a URL with ``http`` or ``https``. Characters that are
            not allowed in a URL are percent-encoded.
        status: 307 and 308 (permanent) keep the method and body; 303 changes the method to GET, as after a form; with
            301 and 302 the client decides.
        headers: A mapping or ``(name, value)`` pairs.

    Raises:
        ValueError: Another status, or a location that a browser might take for one on another host.

    Source: RFC 9110 §10.2.2, §15.4; https://url.spec.whatwg.org/#url-parsing (backslash, tab and newline); CWE-601.
    """

    def __init__(self, location: str, status: int = 307, headers: HeadersLike | None = None) -> None:
        if status not in _REDIRECTS:
            raise ValueError(f"expected a redirect's status of 301, 302, 303, 307 or 308, got {status}")
        if _UNSAFE_IN_LOCATION.search(location) or not _LOCATION.fullmatch(location):
            raise ValueError(
                "expected a path that begins with exactly one slash, or an http(s):// URL, without backslashes and "
                f"control characters, to redirect to, got {location!r}"
            )
        super().__init__(b"", status, headers)
        self.headers["location"] = quote(location, safe=_URL_CHARACTERS, errors="replace")
