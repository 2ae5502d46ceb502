"""What a server makes of a client's request: an ASGI scope, headers and a body."""

from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any, TypeAlias, TypedDict
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

from microws.codec import dumps_json
from microws.interfaces import Scope

__all__ = ["HeaderTypes", "QueryTypes", "RequestOptions", "ScopeFactory", "encode_body"]

HeaderTypes: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
QueryTypes: TypeAlias = str | Mapping[str, Any] | Iterable[tuple[str, Any]]

_PORTS = {"http": 80, "https": 443}
# "%" is kept, so that nothing is encoded twice.
_SAFE = "/%:@!$&'()*+,;=~"


class RequestOptions(TypedDict, total=False):
    """
    The options of every request. At most one of ``json``, ``data`` and ``content`` is its body.

    Attributes:
        headers: A mapping or ``(name, value)`` pairs; each name replaces the client's headers of that name.
        query: A string, a mapping or pairs; appended to the query in the path.
        cookies: Sent with this request in addition to the client's.
        timeout: Seconds. Default: the client's.
        json: A value, sent as JSON; ``None`` is sent as ``null``.
        data: The fields of a urlencoded form; a list sends a field more than once.
        content: The body itself. The client takes each chunk of an async iterable when the app has received the one
            before.
    """

    headers: HeaderTypes
    query: QueryTypes
    cookies: Mapping[str, str]
    timeout: float
    json: Any
    data: Mapping[str, Any] | Iterable[tuple[str, Any]]
    content: str | bytes | AsyncIterable[bytes]


class ScopeFactory:
    """
    Makes the scopes of one client's connections.

    Args:
        base_url: Scheme (``http`` or ``https``), host and port of the server; no path.
        headers: Headers of every request; each replaces the default of that name.
        client: Address and port that the app sees.
        root_path: Where the app is mounted. Paths include it, as in a browser.
        spec_version: Version of ASGI's HTTP and WebSocket specification.

    Raises:
        ValueError: ``base_url`` is invalid.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: HeaderTypes | None,
        client: tuple[str, int] | None,
        root_path: str,
        spec_version: str,
    ) -> None:
        url: SplitResult = urlsplit(base_url)
        if url.scheme not in _PORTS or not url.hostname or url.path not in ("", "/"):
            raise ValueError(f"expected a base_url such as 'http://testserver', got {base_url!r}")
        self.secure: bool = url.scheme == "https"
        self._fields = {
            "asgi": {"version": "3.0", "spec_version": spec_version},
            "http_version": "1.1",
            "root_path": root_path,
            "client": client,
            "server": (url.hostname, url.port or _PORTS[url.scheme]),
        }
        self._headers = {"host": [url.netloc], "user-agent": ["microws-test-client"], "accept": ["*/*"]}
        self._headers |= _by_name(headers)

    def make(
        self, kind: str, path: str, *, query: QueryTypes | None, headers: Iterable[HeaderTypes], **fields: Any
    ) -> Scope:
        """Return a scope. Of ``headers`` each mapping replaces those before it by name; ``fields`` are added."""
        if not path.startswith("/"):
            raise ValueError(f"expected a path that begins with '/', got {path!r}")
        path, _, query_string = path.partition("#")[0].partition("?")
        raw_path = quote(path, safe=_SAFE)
        query_string = quote(query_string, safe=_SAFE + "?")
        if query is not None:
            more = quote(query, safe=_SAFE + "?") if isinstance(query, str) else _urlencode(query)
            query_string = "&".join(filter(None, [query_string, more]))
        merged = dict(self._headers)
        for group in headers:
            merged |= _by_name(group)
        return {
            "type": kind,
            "scheme": {"http": "http", "websocket": "ws"}[kind] + "s" * self.secure,
            "path": unquote(raw_path),
            "raw_path": raw_path.encode("ascii"),
            "query_string": query_string.encode("ascii"),
            "headers": [(name.encode("ascii"), value.encode("latin-1")) for name in merged for value in merged[name]],
            **self._fields,
            **fields,
        }


def encode_body(method: str, options: RequestOptions) -> tuple[bytes | AsyncIterable[bytes], dict[str, str]]:
    """
    Return the body of a request and the headers that describe it.

    Raises:
        TypeError: ``options`` have an unknown name, or more than one body.
    """
    if unknown := options.keys() - RequestOptions.__annotations__.keys():
        raise TypeError(
            f"a request has no option {min(unknown)!r}; it takes headers, query, cookies, timeout, and one of "
            "json, data and content"
        )
    given = [name for name in ("json", "data", "content") if name in options]
    if len(given) > 1:
        raise TypeError(f"a request has one body; got {', '.join(given)}")
    headers = {}
    body: str | bytes | AsyncIterable[bytes] = options.get("content", b"")
    if "json" in options:
        body = dumps_json(options["json"])
        headers["content-type"] = "application/json"
    elif "data" in options:
        body = _urlencode(options["data"])
        headers["content-type"] = "application/x-www-form-urlencoded"
    if isinstance(body, str):
        body = body.encode()
    if not isinstance(body, bytes):
        headers["transfer-encoding"] = "chunked"
    elif body or given or method in ("POST", "PUT", "PATCH"):
        # RFC 9110 §8.6: a request whose method expects a body announces that it has none.
        headers["content-length"] = str(len(body))
    return body, headers


def _by_name(headers: HeaderTypes | None) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, value in headers.items() if isinstance(headers, Mapping) else headers or ():
        grouped.setdefault(name.lower(), []).append(value)
    return grouped


def _urlencode(fields: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    return urlencode(fields if isinstance(fields, Mapping) else list(fields), doseq=True)
