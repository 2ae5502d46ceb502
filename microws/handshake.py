"""The checks of a handshake: its origin, host, subprotocol and headers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any, NamedTuple, TypeAlias

from microws.datastructures import Headers, MultiDict
from microws.interfaces import TOKEN

__all__ = [
    "SAFE_METHODS",
    "HeadersLike",
    "Refusal",
    "check_accept",
    "check_handshake_origin",
    "check_headers",
    "check_host",
    "check_hosts_setting",
    "check_origin",
    "check_origins_setting",
    "check_request_origin",
    "choose_subprotocol",
    "explain_no_subprotocol",
    "is_allowed_origin",
    "parse_bearer",
    "split_bearer",
]

HeadersLike: TypeAlias = Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]


class Refusal(NamedTuple):
    """
    Why a request is refused.

    Attributes:
        status: HTTP status of the response.
        detail: Text for the client, which tells nothing about the app.
        log: Text for the log: what was expected, what came, and the setting that allows it.
    """

    status: int
    detail: str
    log: str


# RFC 9110 §9.2.1: a request with one of these methods does not ask for a change.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


def check_origin(
    *, origin: str | None, host: str | None, allowed: Sequence[str] | None, any_localhost: bool = False
) -> Refusal | None:
    """
    Check whether a page of ``origin`` may connect to ``host``: a page of the host itself may, and those of ``allowed``.

    Schemes are not compared, because a proxy may end TLS. A missing port is the default port of the scheme.

    Args:
        origin: The ``Origin`` header; ``None`` if the request has none. Such a client is not a browser, and passes.
        host: The ``Host`` header; ``None`` if the request has none or more than one.
        allowed: More origins, as ``check_origins_setting`` returns them. ``"*"`` allows everything.
        any_localhost: Also allow every localhost origin, with any port. Default: no.

    Returns:
        The refusal; ``None`` if the page may.

    Source: RFC 6455 §4.2.2, §10.2; RFC 6454 §7.
    """
    if origin is None or is_allowed_origin(origin, allowed, any_localhost=any_localhost):
        return None
    parsed = _parse_origin(origin)
    if parsed is not None and host is not None and _is_own(parsed, host):
        return None
    return _refusal(origin, host)


def is_allowed_origin(origin: str | None, allowed: Sequence[str] | None, *, any_localhost: bool = False) -> bool:
    """Whether ``origin`` is one of ``allowed``, as ``check_origins_setting`` returns them."""
    if allowed and ("*" in allowed or origin in allowed):
        return True
    parsed = None if origin is None else _parse_origin(origin)
    if parsed is None:
        return False
    return (allowed is not None and str(parsed) in allowed) or (any_localhost and _is_localhost(parsed))


def check_handshake_origin(
    headers: Headers, *, allowed: Sequence[str] | None, any_localhost: bool = False
) -> Refusal | None:
    """``check_origin`` for a WebSocket handshake with these headers."""
    return check_origin(origin=_origin(headers), host=_host(headers), allowed=allowed, any_localhost=any_localhost)


def check_request_origin(
    method: str, headers: Headers, *, allowed: Sequence[str] | None, any_localhost: bool = False
) -> Refusal | None:
    """
    Check whether an HTTP request may change anything. A request that a page of another origin sends may not.

    Args:
        method: GET, HEAD, OPTIONS and TRACE always pass.
        headers: Headers of the request. A client that is not a browser sends neither ``Sec-Fetch-Site`` nor ``Origin``,
            and passes.
        allowed: More origins, as ``check_origins_setting`` returns them. ``"*"`` allows everything.
        any_localhost: Also allow every localhost origin, with any port. Default: no.

    Returns:
        The refusal; ``None`` if the page may.

    Source: https://www.w3.org/TR/fetch-metadata/; Go 1.25 ``net/http.CrossOriginProtection``.
    """
    if method in SAFE_METHODS:
        return None
    sites = set(headers.getlist("sec-fetch-site"))
    # The browser compared the origins itself, without a proxy in between. "none": the user started the request.
    if sites and sites <= {"same-origin", "none"}:
        return None
    origin, host = _origin(headers), _host(headers)
    foreign = sites & {"cross-site", "same-site"}
    if foreign and (origin is None or "cross-site" in foreign):
        if is_allowed_origin(origin, allowed, any_localhost=any_localhost):
            return None
        return _refusal(origin, host, site=min(foreign))
    return check_origin(origin=origin, host=host, allowed=allowed, any_localhost=any_localhost)


def check_origins_setting(origins: Sequence[str] | None) -> tuple[str, ...] | None:
    """
    Check ``App(origins=…)``, and return it in the form that the checks compare with: lower case, no default port.

    Args:
        origins: Origins as a browser sends them, ``"https://app.example"``, or ``"*"``; ``None``: the same origin only.

    Raises:
        TypeError: An entry is not a ``str``.
        ValueError: A ``str`` instead of a list, or an entry that is not an origin. The text says what to write.
    """
    if origins is None:
        return None
    if isinstance(origins, str):
        raise ValueError(f"origins takes a list: origins=[{origins!r}]")
    return tuple(origin if origin == "*" else _check_origins_entry(origin) for origin in origins)


def check_host(
    headers: Iterable[tuple[bytes, bytes]], *, allowed: Sequence[str], received: bytes | None = None
) -> Refusal | None:
    """
    Check whether a request asks for one of the app's hosts.

    This protects against DNS rebinding: the owner of ``evil.example`` has that name resolve to this server. Requests of
    its pages have the page's own origin, but the wrong ``Host``.

    Args:
        headers: Headers of the request, as in ASGI. A missing, repeated or malformed ``Host`` is refused.
        allowed: Hosts, as ``check_hosts_setting`` returns them.
        received: The ``Host`` that a client on this machine sent, if ``X-Forwarded-Host`` has replaced it in
            ``headers``. A page can send that header, too. So ``received`` must be allowed as well, unless it is an
            address or a name without a dot, as proxies send them: a page cannot have such a host.

    Returns:
        The refusal; ``None`` if the host is allowed.

    Source: RFC 9110 §7.2, §15.5.20 (421); https://en.wikipedia.org/wiki/DNS_rebinding
    """
    hosts = [value for name, value in headers if name == b"host"]
    host = hosts[0].decode("latin-1") if len(hosts) == 1 else None
    name = None if host is None else _host_name(host)
    if name is not None and _is_allowed_host(name, allowed):
        if received is None:
            return None
        host = received.decode("latin-1")
        name = _host_name(host)
        if name is None or not _is_public(name) or _is_allowed_host(name, allowed):
            return None
    if name is not None:
        log = f'Host {_cut(host)} is not in allowed_hosts; to allow it: App(allowed_hosts=["{name}"])'
    else:
        log = f"expected one Host that is in allowed_hosts, got {', '.join(map(_cut, hosts)) or 'none'}"
    return Refusal(421, "host not allowed", log)


def check_hosts_setting(hosts: Sequence[str] | None) -> tuple[str, ...] | None:
    """
    Check ``App(allowed_hosts=…)``, and return it in the form that ``check_host`` compares with.

    Args:
        hosts: Names and addresses as in ``Host``, without a port; ``"*.app.example"`` for every name below it; ``"*"``.

    Returns:
        ``None`` if every host is allowed.

    Raises:
        TypeError: An entry is not a ``str``.
        ValueError: A ``str`` instead of a list, or an entry that is not a name. The text says what to write.
    """
    if hosts is None:
        return None
    if isinstance(hosts, str):
        raise ValueError(f"allowed_hosts takes a list: allowed_hosts=[{hosts!r}]")
    checked = tuple(entry if entry == "*" else _check_hosts_entry(entry) for entry in hosts)
    return None if "*" in checked else checked


def choose_subprotocol(offered: Sequence[str], supported: Sequence[str]) -> str | None:
    """
    The first of ``supported`` that the client offers.

    Source: RFC 6455 §4.2.2, item 5: the server chooses, by its own preference.
    """
    return next((subprotocol for subprotocol in supported if subprotocol in offered), None)


def split_bearer(offered: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """
    Separate the token of an offer ``bearer, TOKEN`` from the subprotocols, of which it is none.

    Returns:
        The token, ``None`` without exactly one ``bearer`` and a token behind it; and what the server may choose from.

    Source: Kubernetes, for a token among subprotocols: a page cannot set another header.
    """
    if "bearer" not in offered:
        return None, offered
    place = offered.index("bearer") + 1
    before, behind = offered[:place], offered[place:]
    if not behind or "bearer" in behind:
        return None, before
    return (behind[0] if _OFFERED_TOKEN.fullmatch(behind[0]) else None), [*before, *behind[1:]]


def parse_bearer(value: str) -> str | None:
    """
    The token in the value of ``Authorization``; ``None`` if it has another scheme or is malformed.

    Source: RFC 6750 §2.1; RFC 9110 §11.1, for the case of the scheme.
    """
    scheme, _, token = value.partition(" ")
    token = token.strip(" ")
    return token if scheme.lower() == "bearer" and _TOKEN68.fullmatch(token) else None


def explain_no_subprotocol(offered: Sequence[str], supported: Sequence[str]) -> str:
    """
    The log line for a client that offers subprotocols, none of which is accepted. A browser then fails the connection.

    Args:
        offered: Subprotocols of the client. Text after ``bearer`` is masked, because it is a token: a page cannot set
            any other header.
        supported: Subprotocols of the route.

    Source: https://websockets.spec.whatwg.org/#feedback-from-the-protocol; RFC 6455 §4.1.
    """
    return (
        f"accepted without a subprotocol, which browsers refuse; the client offers {_show_subprotocols(offered)}, the "
        f"route has {_show_subprotocols(supported)}: write subprotocols=[…] at the route or ws.accept(subprotocol=…)"
    )


def check_accept(
    *, subprotocol: str | None, offered: Sequence[str], headers: HeadersLike | None = None
) -> list[tuple[bytes, bytes]]:
    """
    Check the response to a handshake before it is sent.

    Args:
        subprotocol: The subprotocol that the view chose, or ``None``.
        offered: Subprotocols of the client's ``Sec-WebSocket-Protocol``.
        headers: More headers of the response, as a mapping or pairs.

    Returns:
        The headers as ASGI takes them, names in lower case.

    Raises:
        TypeError: Names or values that are neither ``str`` nor ``bytes``.
        ValueError: A subprotocol that was not offered or is not a token, a malformed header, or a header that the
            handshake sets itself.

    Source: RFC 6455 §4.2.2; RFC 9110 §5.1, §5.5, §8.6.
    """
    if subprotocol is not None:
        if subprotocol not in offered:
            chosen, choice = _show_subprotocols([subprotocol]), _show_subprotocols(offered)
            raise ValueError(f"expected a subprotocol that the client offers ({choice}), got {chosen}")
        if not _TOKEN.fullmatch(subprotocol.encode(errors="replace")):
            chosen = _shown_subprotocols(offered)[offered.index(subprotocol)]
            raise ValueError(f"expected a subprotocol of letters, digits and !#$%&'*+-.^_`|~, got {chosen}")
        if subprotocol not in split_bearer(offered)[1]:
            raise ValueError("expected a subprotocol that the client offers, got its token; write accept('bearer')")
    checked = check_headers(headers)
    for name, _ in checked:
        if name in _HANDSHAKE_HEADERS or name.startswith(b"sec-websocket-"):
            raise ValueError(
                f"the handshake sets the header {name.decode()} itself; leave it out"
                + ("; use accept(subprotocol=…)" if name == b"sec-websocket-protocol" else "")
            )
    return checked


# RFC 6750 §2.1; and what of it is a token in RFC 9110 §5.6.2, as a subprotocol must be.
_OFFERED_TOKEN = re.compile(r"[A-Za-z0-9._~+-]+")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*")
# As many as fit on a line of the log.
_SHOWN_SUBPROTOCOLS = 10
# As in "bearer, TOKEN" and in "base64url.bearer.authorization.k8s.io.TOKEN".
_BEARER = re.compile("bearer", re.IGNORECASE)


def _show_subprotocols(names: Sequence[str]) -> str:
    shown = _shown_subprotocols(names)
    return ", ".join(shown[:_SHOWN_SUBPROTOCOLS] + ["…"] * (len(shown) > _SHOWN_SUBPROTOCOLS)) or "none"


def _shown_subprotocols(names: Sequence[str]) -> list[str]:
    """The names with everything after ``bearer`` masked."""
    shown: list[str] = []
    is_secret = False
    for name in names:
        found = None if is_secret else _BEARER.search(name)
        if is_secret:
            shown.append("'…'")
        elif found is None:
            shown.append(_cut(name))
        else:
            is_secret = True
            shown.append(_cut(name[: found.end()] + ("…" if name[found.end() :] else "")))
    return shown


def check_headers(headers: HeadersLike | None) -> list[tuple[bytes, bytes]]:
    """
    Check headers, and return them as ASGI has them.

    Args:
        headers: A mapping or ``(name, value)`` pairs of ``str`` or ``bytes``. Spaces around a value are removed.

    Returns:
        The headers in Latin-1, with names in lower case.

    Raises:
        TypeError: Names or values that are neither ``str`` nor ``bytes``.
        ValueError: A name that is not a token, or a value with a control character or one outside Latin-1.

    Source: RFC 9110 §5.1, §5.5, §5.6.2; https://asgi.readthedocs.io/en/latest/specs/www.html
    """
    if headers is None:
        return []
    pairs: Iterable[Any]
    if isinstance(headers, MultiDict):
        pairs = headers.multi_items()
    else:
        pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [_check_header(pair) for pair in pairs]


_TOKEN = re.compile(TOKEN.encode())
# RFC 9110 §5.5: visible characters, space, tab and obs-text.
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")

# RFC 9110 §7.6.1 (about this connection only), §8.6 (a 1xx has no length).
_HANDSHAKE_HEADERS = frozenset(
    {b"connection", b"content-length", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)


def _check_header(pair: Any) -> tuple[bytes, bytes]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"expected headers as a mapping or (name, value) pairs, got {_cut(pair)}")
    name, value = _header_bytes(pair[0], "name"), _header_bytes(pair[1], "value").strip(b" \t")
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"expected a header name of letters, digits and !#$%&'*+-.^_`|~, got {_cut(pair[0])}")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"the value {_cut(pair[1])} of the header {_cut(pair[0])} has a control character")
    return name.lower(), value


def _header_bytes(part: Any, what: str) -> bytes:
    if isinstance(part, bytes):
        return part
    if not isinstance(part, str):
        raise TypeError(f"expected a header {what} as str or bytes, got {type(part).__name__}: {_cut(part)}")
    try:
        return part.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"the header {what} {_cut(part)} is not in Latin-1; percent-encode it") from None


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int | None

    def __str__(self) -> str:
        port = "" if self.port in (None, _DEFAULT_PORTS.get(self.scheme)) else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"


_DEFAULT_PORTS = {"http": 80, "https": 443}
_NETLOC = r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._~-]*)(?::(?P<port>[0-9]{1,5}))?"
_ORIGIN = re.compile(rf"(?P<scheme>[a-z][a-z0-9+.-]*)://{_NETLOC}", re.IGNORECASE | re.ASCII)
_HOST = re.compile(_NETLOC, re.IGNORECASE | re.ASCII)


def _parse_origin(origin: str) -> _Origin | None:
    """``None`` for ``null`` and for a malformed origin. A page of a browser's own scheme may have no host."""
    found = _ORIGIN.fullmatch(origin)
    netloc = _parse_netloc(found)
    if found is None or netloc is None:
        return None
    scheme = found["scheme"].lower()
    if scheme in _DEFAULT_PORTS and not netloc[0]:
        return None
    return _Origin(scheme, netloc[0], _DEFAULT_PORTS.get(scheme) if netloc[1] is None else netloc[1])


def _parse_netloc(found: re.Match[str] | None) -> tuple[str, int | None] | None:
    """Host and port in normal form, so that they can be compared."""
    if found is None:
        return None
    host = found["host"].lower().removesuffix(".")
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1])}]"
        except AddressValueError:
            return None
    port = None if found["port"] is None else int(found["port"])
    return None if port is not None and port > 65535 else (host, port)


def _is_own(origin: _Origin, host: str) -> bool:
    """Whether ``origin`` is the origin of the request's own host. Without a port, Host means the scheme's default."""
    netloc = _parse_netloc(_HOST.fullmatch(host))
    if netloc is None or origin.scheme not in _DEFAULT_PORTS:
        return False
    own_host, own_port = netloc
    return origin.host == own_host and origin.port == (_DEFAULT_PORTS[origin.scheme] if own_port is None else own_port)


def _host_name(host: str) -> str | None:
    """The name or address in a ``Host``, without its port; ``None`` if it is malformed."""
    netloc = _parse_netloc(_HOST.fullmatch(host))
    return (netloc and netloc[0]) or None


def _is_allowed_host(name: str, allowed: Sequence[str]) -> bool:
    return name in allowed or any(entry[0] == "*" and name.endswith(entry[1:]) for entry in allowed)


def _is_public(name: str) -> bool:
    """Whether somebody can own ``name`` and have it resolve to any address. Browsers resolve ``*.localhost``."""
    if "." not in name or name.startswith("[") or name.endswith(".localhost"):
        return False
    try:
        IPv4Address(name)
    except AddressValueError:
        return True
    return False


def _check_hosts_entry(entry: Any) -> str:
    if not isinstance(entry, str):
        raise TypeError(f'allowed_hosts takes str such as "app.example", not {_cut(entry)}')
    try:
        return f"[{IPv6Address(entry)}]"
    except AddressValueError:
        pass
    prefix, name = ("*.", entry[2:]) if entry.startswith("*.") else ("", entry)
    found = _HOST.fullmatch(name)
    if found is not None and found["port"] is None and (host := _host_name(name)) is not None:
        return prefix + host
    bare = re.split("[/?#]", name.rpartition("://")[2])[0]
    raise ValueError(
        "allowed_hosts takes names as in Host, in ASCII, without scheme and port, or *.name for all below one, not "
        f'{_cut(entry)}; write "{prefix}{_host_name(bare) or "app.example"}"'
    )


def _is_localhost(origin: _Origin) -> bool:
    if origin.scheme not in _DEFAULT_PORTS:
        return False
    if origin.host in ("localhost", "[::1]") or origin.host.endswith(".localhost"):
        return True
    try:
        return IPv4Address(origin.host).is_loopback
    except AddressValueError:
        return False


def _check_origins_entry(entry: Any) -> str:
    if not isinstance(entry, str):
        raise TypeError(f'origins takes str such as "https://app.example", not {_cut(entry)}')
    parsed = _parse_origin(entry)
    if parsed is not None:
        return str(parsed)
    if entry == "null":
        raise ValueError('origins cannot allow "null", which every sandboxed page sends; ["*"] turns the check off')
    raise ValueError(
        f"origins takes origins as a browser sends them, scheme://host[:port] in ASCII, not {_cut(entry)}; "
        f'write "{_nearest_origin(entry)}"'
    )


def _nearest_origin(entry: str) -> str:
    """The probable intention: the origin of a URL, a host with a scheme, or an example."""
    scheme, _, rest = (entry if "://" in entry else f"https://{entry}").partition("://")
    parsed = _parse_origin(f"{scheme}://{re.split('[/?#]', rest)[0]}")
    return "https://app.example" if parsed is None else str(parsed)


def _origin(headers: Headers) -> str | None:
    """The header. Several are joined (RFC 9110 §5.3), which makes a malformed one."""
    return ", ".join(headers.getlist("origin")) if "origin" in headers else None


def _host(headers: Headers) -> str | None:
    hosts = headers.getlist("host")
    return hosts[0] if len(hosts) == 1 else None


def _refusal(origin: str | None, host: str | None, *, site: str | None = None) -> Refusal:
    parsed = None if origin is None else _parse_origin(origin)
    came = "a request without Origin" if origin is None else f"Origin {_cut(origin)}"
    browser = f" (Sec-Fetch-Site: {site})" if site else ""
    # At the end of the text, because the log appends which app it is.
    line = f'to allow this origin: App(origins=["{parsed}"])' if parsed else 'to turn the check off: App(origins=["*"])'
    return Refusal(
        403,
        "origin not allowed",
        f"{came}{browser} is not the request's own Host {_cut(host)}; if a proxy changes Host, configure it to "
        f"forward the client's; {line}",
    )


def _cut(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"
