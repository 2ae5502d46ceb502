"""The scope behind a proxy: client and URL from trusted headers, and the path prefix from ``--root-path``."""

import re
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final, TypeAlias

from microws.interfaces import ASGIApplication, Receive, Scope, Send

__all__ = ["ProxyHeaders", "TrustedProxies", "forwarded"]

IPAddress: TypeAlias = IPv4Address | IPv6Address
# An address and a port; 0 if the port is unknown.
Node: TypeAlias = tuple[IPAddress, int]

_FIELDS: Final = {
    b"forwarded": "forwarded",
    **{b"x-forwarded-" + part.encode(): part for part in ("for", "proto", "host", "port", "prefix")},
}

_SECURE: Final = {"http": "", "ws": "", "https": "s", "wss": "s"}


class TrustedProxies:
    """
    The proxies whose headers are believed.

    Args:
        entries: IP addresses and networks; ``"unix"`` for every peer on a Unix socket; ``"*"`` for every peer.
            ``"*"`` trusts no address in a header: otherwise any client could add some.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._trusts_any_peer = "*" in entries
        self._trusts_unix = "unix" in entries
        self._networks = [ip_network(entry) for entry in entries if entry not in ("*", "unix")]

    def __contains__(self, address: IPAddress) -> bool:
        return any(address in network for network in self._networks)

    def has_peer_of(self, scope: Scope) -> bool:
        """Whether the peer of the scope's connection is a trusted proxy."""
        if self._trusts_any_peer:
            return True
        client = scope.get("client")
        if client is None:
            # A TCP connection may not know its peer, but it knows the server's port. A Unix socket has none.
            server = scope.get("server")
            return self._trusts_unix and (server is None or server[1] is None)
        address = _parse_address(client[0].partition("%")[0])
        return address is not None and address in self


class ProxyHeaders:
    """
    An ASGI app that updates each scope by the proxy's headers, then calls ``app``.

    It changes the scope in place, so that the access log names the client, and ``state`` stays the same object.

    Args:
        app: Called with every scope.
        proxies: The trusted ones.
        root_path: Prefix of every path, without a slash at its end; or empty. Wins over ``X-Forwarded-Prefix``.
    """

    def __init__(self, app: ASGIApplication, proxies: TrustedProxies, *, root_path: str = "") -> None:
        self._app = app
        self._proxies = proxies
        self._root_path = root_path

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request or WebSocket."""
        if self._root_path:
            scope.update(_below(scope, self._root_path))
        if changes := forwarded(scope, self._proxies):
            scope.update(changes)
        return self._app(scope, receive, send)


def forwarded(scope: Scope, proxies: TrustedProxies) -> dict[str, Any]:
    """
    What a trusted proxy's headers change in an HTTP or WebSocket scope: any of its client, scheme, headers and paths.

    The client is the right-most address of the chain that is not a trusted proxy. An invalid element ends the chain,
    because the client may have written it and everything to its left. ``X-Forwarded-Proto``, ``-Host``, ``-Port`` and
    ``-Prefix`` may be lists: the last value counts, which the nearest proxy wrote.

    ``Forwarded`` counts only without ``X-Forwarded-For``, ``-Proto`` and ``-Host``: most proxies set these, and pass on
    a ``Forwarded`` that the client made up.

    Returns:
        New values of the scope's keys; empty if the peer is not trusted. Never raises, whatever the headers hold.

    Source: RFC 7239; https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/X-Forwarded-For
    """
    fields: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in _FIELDS:
            part, text = _FIELDS[name], value.decode("latin-1")
            # RFC 9110 §5.3: repeated fields are one list.
            fields[part] = f"{fields[part]},{text}" if part in fields else text
    if not fields or not proxies.has_peer_of(scope):
        return {}
    if fields.keys() & {"for", "proto", "host"}:
        chain = reversed(fields.get("for", "").split(","))
        client, _, _ = _trusted_part(({"for": element.strip(" \t")} for element in chain), proxies)
        proto, host = _last(fields, "proto"), _last(fields, "host")
    else:
        elements = _elements_from_the_right(fields.get("forwarded", ""))
        client, proto, host = _trusted_part(map(_parse_element, elements), proxies)
    changes: dict[str, Any] = {}
    if client is not None:
        changes["client"] = (str(client[0]), client[1])
    if (secure := _SECURE.get(proto.lower())) is not None:
        changes["scheme"] = ("ws" if scope["type"] == "websocket" else "http") + secure
    if outer := _outer_host(scope, host, _last(fields, "port")):
        address = _parse_address(scope["client"][0]) if scope.get("client") else None
        if address is not None and address.is_loopback:
            # A page in a browser on this machine can send X-Forwarded-Host too: see App(allowed_hosts=…).
            changes["microws.received_host"] = _own_host(scope)
        changes["headers"] = [(b"host", outer), *((name, value) for name, value in scope["headers"] if name != b"host")]
    if not scope.get("root_path") and (prefix := _CLEAN_PREFIX.fullmatch(_last(fields, "prefix"))):
        changes.update(_below(scope, prefix[1]))
    return changes


def _last(fields: dict[str, str], name: str) -> str:
    return fields.get(name, "").rpartition(",")[2].strip(" \t")


def _trusted_part(elements: Iterable[dict[str, str] | None], proxies: TrustedProxies) -> tuple[Node | None, str, str]:
    """
    The client, ``proto`` and ``host`` of a chain, whose elements come from the right.

    Each element was written by the proxy to its right, so the left-most one counts that a trusted proxy wrote.
    """
    client, proto, host = None, "", ""
    for pairs in elements:
        if pairs is None:
            break
        proto, host = pairs.get("proto", proto), pairs.get("host", host)
        # A proxy may hide the address: for=unknown, for=_hidden.
        node = _parse_node(pairs.get("for", ""))
        if node is None:
            break
        client = node
        if client[0] not in proxies:
            break
    return client, proto, host


# An element, read backwards.
_ELEMENT_BACKWARDS: Final = re.compile(r'([^",]*+(?:"[^"]*+"[^",]*+)*+)(?:,|\Z)')


def _elements_from_the_right(value: str) -> Iterator[str]:
    """
    Split at the commas outside of quotes; an open quote ends it.

    From the left, an open quote that a client made up would swallow what the proxies added.
    """
    backwards = value[::-1]
    end = -1
    while end < len(backwards) and (element := _ELEMENT_BACKWARDS.match(backwards, end + 1)):
        yield element[1][::-1].strip(" \t")
        end = element.end(1)


_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE: Final = r'[^\s",;=\\]+|"[^"\\]*"'
_PAIR: Final = re.compile(rf"({_NAME})=({_VALUE})")
_ELEMENT: Final = re.compile(rf"(?:{_NAME}=(?:{_VALUE}))?(?:[ \t]*;[ \t]*(?:{_NAME}=(?:{_VALUE}))?)*")


def _parse_element(element: str) -> dict[str, str] | None:
    """``for=…;proto=…`` with names in lower case; ``None`` if it is malformed or repeats a name."""
    if not _ELEMENT.fullmatch(element):
        return None
    pairs = [(name.lower(), value.strip('"')) for name, value in _PAIR.findall(element)]
    return named if len(named := dict(pairs)) == len(pairs) else None


_NODE: Final = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}|_[0-9A-Za-z._-]+))?|([0-9A-Fa-f:.]+)", re.ASCII
)


def _parse_node(text: str) -> Node | None:
    """
    An address as any proxy writes it: with a port or without, IPv6 in brackets or bare.

    Source: RFC 7239 §6.
    """
    node = _NODE.fullmatch(text)
    if node is None:
        return None
    address = _parse_address(node[1] or node[2] or node[4])
    port = int(node[3]) if node[3] and node[3].isdigit() else 0
    return None if address is None or port > 65535 else (address, port)


def _parse_address(text: str) -> IPAddress | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # A socket for both families writes IPv4 so.
    return (address.version == 6 and address.ipv4_mapped) or address


_HOST_AND_PORT: Final = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~-]+)(:[0-9]{1,5})?")
_PORT_NUMBER: Final = re.compile(r"[1-9][0-9]{0,4}")


def _outer_host(scope: Scope, host: str, port: str) -> bytes | None:
    """The outer ``Host``, with the outer port unless it has one; ``None`` if it stays as it is."""
    outer = host.encode("latin-1")
    if not _HOST_AND_PORT.fullmatch(outer):
        outer = b""
    # Proxies that name port 80 or 443 mean the default, even with the other scheme.
    if _PORT_NUMBER.fullmatch(port) and int(port) <= 65535 and port not in ("80", "443"):
        found = _HOST_AND_PORT.fullmatch(outer or _own_host(scope))
        if found and not found[1]:
            return found[0] + b":" + port.encode()
    return outer or None


def _own_host(scope: Scope) -> bytes:
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    return hosts[0] if len(hosts) == 1 else b""


# A path that stays on its host wherever it is put: not ``//evil.example``, no backslashes, no ``..`` (CWE-601).
_CLEAN_PREFIX: Final = re.compile(r"((?:/(?!\.{1,2}(?:/|\Z))[0-9A-Za-z!$+:=@._~-]+)+)/?")


def _below(scope: Scope, prefix: str) -> dict[str, Any]:
    """
    The paths of a scope below ``prefix``: put back if a proxy has removed it, unchanged if a path begins with it.

    Source: ASGI HTTP specification, ``path`` includes ``root_path``.
    """
    changes: dict[str, Any] = {"root_path": prefix}
    path: str = scope["path"]
    if path.startswith("/") and path != prefix and not path.startswith(f"{prefix}/"):
        changes["path"] = prefix + path
        if scope.get("raw_path"):
            changes["raw_path"] = prefix.encode() + scope["raw_path"]
    return changes
