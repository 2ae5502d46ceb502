"""What a server makes of a client's words: ASGI scopes, headers and request bodies."""

import secrets
from base64 import b64encode
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any, TypeAlias, TypedDict
from urllib.parse import quote, unquote, urlencode, urlsplit

from microws.codec import dumps_json
from microws.interfaces import Scope

__all__ = ["BodyOptions", "HeaderTypes", "QueryTypes", "ScopeFactory", "encode_body", "websocket_headers"]

HeaderTypes: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
QueryTypes: TypeAlias = str | Mapping[str, Any] | Iterable[tuple[str, Any]]

_PORTS = {"http": 80, "https": 443}


class BodyOptions(TypedDict, total=False):
    """
    A request's body: at most one of these.

    Attributes:
        json: A value sent as JSON; ``None`` is sent as ``null``.
        data: The fields of a urlencoded form; a list gives a field more than once.
        content: The body as it is. Of an async iterable each chunk goes when the app has taken the one before.
    """

    json: Any
    data: Mapping[str, Any] | Iterable[tuple[str, Any]]
    content: str | bytes | AsyncIterable[bytes]


class ScopeFactory:
    """
    Makes the scopes of one client's connections.

    Args:
        base_url: Scheme (``http`` or ``https``), host and port that the client asks; no path.
        headers: Headers that every request carries; each replaces the client's own of that name.
        client: Address and port that the app sees.
        root_path: Where the app is mounted. Paths are given with it, as a browser would ask for them.
        spec_version: Version of ASGI's HTTP and WebSocket specification that the client keeps to.

    Raises:
        ValueError: ``base_url`` is none.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html
    """

    def __init__(
        self,
        *,
        base_url: str,
        headers: HeaderTypes | None,
        client: tuple[str, int] | None,
        root_path: str,
        spec_version: str,
    ) -> None:
        url = urlsplit(base_url)
        if url.scheme not in _PORTS or not url.hostname or url.path not in ("", "/"):
            raise ValueError(f"expected a base_url such as 'http://testserver', got {base_url!r}")
        self.secure = url.scheme == "https"
        self._server = (url.hostname, url.port or _PORTS[url.scheme])
        self._client = client
        self._root_path = root_path
        self._spec_version = spec_version
        self._headers = {"host": [url.netloc], "user-agent": ["microws-test-client"], "accept": ["*/*"]}
        self._headers |= _by_name(headers)

    def http(self, path: str, *, method: str, query: QueryTypes | None, headers: list[HeaderTypes]) -> Scope:
        """The scope of a request; of ``headers`` the later replace the earlier of the same name."""
        scheme = "https" if self.secure else "http"
        return {**self._common("http", scheme, path, query, headers), "method": method, "extensions": {}}

    def websocket(
        self,
        path: str,
        *,
        query: QueryTypes | None,
        headers: list[HeaderTypes],
        subprotocols: list[str],
        denial: bool,
    ) -> Scope:
        """The scope of a WebSocket handshake; ``denial`` offers the extension ``websocket.http.response``."""
        scheme = "wss" if self.secure else "ws"
        extensions: dict[str, Any] = {"websocket.http.response": {}} if denial else {}
        common = self._common("websocket", scheme, path, query, headers)
        return {**common, "subprotocols": list(subprotocols), "extensions": extensions}

    def _common(
        self, kind: str, scheme: str, path: str, query: QueryTypes | None, headers: list[HeaderTypes]
    ) -> dict[str, Any]:
        if not path.startswith("/"):
            raise ValueError(f"expected a path that begins with '/', got {path!r}")
        path, _, query_string = path.partition("#")[0].partition("?")
        # "%" stays: what is encoded already is not encoded twice.
        raw_path = quote(path, safe="/%:@!$&'()*+,;=~")
        query_string = quote(query_string, safe="/%:@!$&'()*+,;=~?")
        if query is not None:
            more = quote(query, safe="/%:@!$&'()*+,;=~?") if isinstance(query, str) else _urlencode(query)
            query_string = "&".join(filter(None, [query_string, more]))
        merged = dict(self._headers)
        for group in headers:
            merged |= _by_name(group)
        return {
            "type": kind,
            "asgi": {"version": "3.0", "spec_version": self._spec_version},
            "http_version": "1.1",
            "scheme": scheme,
            "path": unquote(raw_path),
            "raw_path": raw_path.encode("ascii"),
            "query_string": query_string.encode("ascii"),
            "root_path": self._root_path,
            "headers": [(name.encode("ascii"), value.encode("latin-1")) for name in merged for value in merged[name]],
            "client": self._client,
            "server": self._server,
        }


def websocket_headers(*, subprotocols: list[str], origin: str | None) -> dict[str, str]:
    """The headers that make a request a handshake. Source: RFC 6455 §4.1."""
    headers = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": b64encode(secrets.token_bytes(16)).decode(),
    }
    if subprotocols:
        headers["sec-websocket-protocol"] = ", ".join(subprotocols)
    if origin is not None:
        headers["origin"] = origin
    return headers


def encode_body(method: str, options: BodyOptions) -> tuple[bytes | AsyncIterable[bytes], dict[str, str]]:
    """
    A request's body and the headers that describe it.

    Raises:
        TypeError: More than one body was given, or something else.
    """
    if unknown := options.keys() - BodyOptions.__annotations__.keys():
        raise TypeError(
            f"a request has no option {min(unknown)!r}; it takes headers, query, cookies, timeout, and one of "
            "json, data and content"
        )
    if len(options) > 1:
        raise TypeError(f"a request has one body; got {', '.join(options)}")
    headers = {}
    body: bytes | AsyncIterable[bytes]
    if "json" in options:
        body = dumps_json(options["json"])
        headers["content-type"] = "application/json"
    elif "data" in options:
        body = _urlencode(options["data"]).encode("ascii")
        headers["content-type"] = "application/x-www-form-urlencoded"
    else:
        content = options.get("content", b"")
        body = content.encode() if isinstance(content, str) else content
    if not isinstance(body, bytes):
        headers["transfer-encoding"] = "chunked"
    elif body or options or method in ("POST", "PUT", "PATCH"):
        # RFC 9110 §8.6: a method that expects a body says that there is none.
        headers["content-length"] = str(len(body))
    return body, headers


def _by_name(headers: HeaderTypes | None) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, value in headers.items() if isinstance(headers, Mapping) else headers or ():
        grouped.setdefault(name.lower(), []).append(value)
    return grouped


def _urlencode(fields: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    return urlencode(fields if isinstance(fields, Mapping) else list(fields), doseq=True)
