"""What a proxy changes in the scope: the client and the URL, by trusted headers, and the path, by ``--root-path``."""

import re
from collections.abc import Awaitable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final, NamedTuple, TypeAlias

from microws.interfaces import ASGIApplication, Receive, Scope, Send

__all__ = ["ProxyHeaders", "TrustedProxies", "forwarded"]

IPAddress: TypeAlias = IPv4Address | IPv6Address

_FORWARDED: Final = b"forwarded"
_FOR: Final = b"x-forwarded-for"
_PROTO: Final = b"x-forwarded-proto"
_HOST: Final = b"x-forwarded-host"
_PORT: Final = b"x-forwarded-port"
_PREFIX: Final = b"x-forwarded-prefix"
_FIELDS: Final = frozenset({_FORWARDED, _FOR, _PROTO, _HOST, _PORT, _PREFIX})

_IS_SECURE: Final = {"http": False, "ws": False, "https": True, "wss": True}


class TrustedProxies:
    """
    Whose word counts.

    Args:
        entries: IP addresses and networks; ``"unix"``: whoever connects over a Unix socket; ``"*"``: whoever connects.
            But ``"*"`` does not make proxies of the addresses in a header: anybody could then add some of his own.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._has_any_peer = "*" in entries
        self._has_unix = "unix" in entries
        self._networks = [ip_network(entry) for entry in entries if entry not in ("*", "unix")]

    def __contains__(self, address: IPAddress) -> bool:
        return any(address in network for network in self._networks)

    def has_peer_of(self, scope: Scope) -> bool:
        """Whether the other end of the scope's own connection is a trusted proxy."""
        if self._has_any_peer:
            return True
        client = scope.get("client")
        if client is None:
            # Where TCP's peer cannot be told, the server's own address still can.
            server = scope.get("server")
            return self._has_unix and (server is None or server[1] is None)
        address = _parse_address(client[0].partition("%")[0])
        return address is not None and address in self


class ProxyHeaders:
    """
    An ASGI app around the app that is served: brings each scope up to date before the app sees it.

    The scope is changed in place: the access log names the client too, and ``state`` stays the same object.

    Args:
        app: Called with every scope.
        proxies: Whose word counts.
        root_path: The prefix of every path, without a slash at its end; empty where there is none. It wins over
            ``X-Forwarded-Prefix``.
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

    The client is the right-most address of the chain that is no trusted proxy. What cannot be read ends the chain: it
    may be the client's own. Of the lists in ``X-Forwarded-Proto`` and its kin the last value counts, which the nearest
    proxy has written.

    ``Forwarded`` counts only where ``X-Forwarded-For``, ``-Proto`` and ``-Host`` are not there: most proxies set these
    and pass on a ``Forwarded`` that the client has made up.

    Returns:
        New values of the scope's keys. Empty where the peer is not trusted. Never fails, whatever the headers hold.

    Source: RFC 7239; https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/X-Forwarded-For
    """
    fields: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name in _FIELDS:
            text = value.decode("latin-1")
            # RFC 9110 §5.3: several fields of one name are one list.
            fields[name] = f"{fields[name]},{text}" if name in fields else text
    if not fields or not proxies.has_peer_of(scope):
        return {}
    if fields.keys() & {_FOR, _PROTO, _HOST}:
        told = _Told(_client_of(fields.get(_FOR, ""), proxies), _last(fields, _PROTO), _last(fields, _HOST))
    else:
        told = _read_forwarded(fields.get(_FORWARDED, ""), proxies)
    changes: dict[str, Any] = {}
    if told.client is not None:
        changes["client"] = (str(told.client.address), told.client.port)
    is_secure = _IS_SECURE.get(told.proto.lower())
    if is_secure is not None:
        changes["scheme"] = ("ws" if scope["type"] == "websocket" else "http") + "s" * is_secure
    if host := _outer_host(scope, told.host, _last(fields, _PORT)):
        if _is_of_this_machine(scope):
            # A page in a browser on this machine can send X-Forwarded-Host too: see App(allowed_hosts=…).
            changes["microws.received_host"] = _own_host(scope)
        changes["headers"] = [(b"host", host), *((name, value) for name, value in scope["headers"] if name != b"host")]
    if not scope.get("root_path") and (prefix := _clean_prefix(_last(fields, _PREFIX))):
        changes.update(_below(scope, prefix))
    return changes


class _Node(NamedTuple):
    """An address of a chain; port 0 where it is not told."""

    address: IPAddress
    port: int


class _Told(NamedTuple):
    """What the trusted part of a chain says; empty where it says nothing."""

    client: _Node | None
    proto: str
    host: str


def _last(fields: dict[bytes, str], name: bytes) -> str:
    return fields.get(name, "").rpartition(",")[2].strip(" \t")


def _client_of(chain: str, proxies: TrustedProxies) -> _Node | None:
    client = None
    for element in reversed(chain.split(",")):
        node = _parse_node(element.strip(" \t"))
        if node is None:
            break
        client = node
        if node.address not in proxies:
            break
    return client


def _read_forwarded(value: str, proxies: TrustedProxies) -> _Told:
    """
    As ``_client_of``. Each element was written by the proxy to the right of it, and the outermost trusted one counts.
    """
    client, proto, host = None, "", ""
    for element in _elements_from_the_right(value):
        pairs = _parse_element(element)
        if pairs is None:
            break
        proto, host = pairs.get("proto", proto), pairs.get("host", host)
        # A proxy may hide the address: for=unknown, for=_hidden.
        node = _parse_node(pairs.get("for", ""))
        if node is None:
            break
        client = node
        if node.address not in proxies:
            break
    return _Told(client, proto, host)


# An element, read backwards.
_ELEMENT_BACKWARDS: Final = re.compile(r'([^",]*+(?:"[^"]*+"[^",]*+)*+)(?:,|\Z)')


def _elements_from_the_right(value: str) -> Iterator[str]:
    """
    Split at the commas outside of quotes; an open quote ends it.

    From the left, an open quote in what a client has made up would swallow what the proxies have added.
    """
    backwards = value[::-1]
    end = -1
    while end < len(backwards):
        element = _ELEMENT_BACKWARDS.match(backwards, end + 1)
        if element is None:
            return
        yield element[1][::-1].strip(" \t")
        end = element.end(1)


_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE: Final = r'[^\s",;=\\]+|"[^"\\]*"'
_PAIR: Final = re.compile(rf"({_NAME})=({_VALUE})")
_ELEMENT: Final = re.compile(rf"(?:{_NAME}=(?:{_VALUE}))?(?:[ \t]*;[ \t]*(?:{_NAME}=(?:{_VALUE}))?)*")


def _parse_element(element: str) -> dict[str, str] | None:
    """``for=…;proto=…``, names in lower case; ``None`` where it is malformed, or a name stands in it twice."""
    if not _ELEMENT.fullmatch(element):
        return None
    pairs = [(name.lower(), value.strip('"')) for name, value in _PAIR.findall(element)]
    named = dict(pairs)
    return named if len(named) == len(pairs) else None


_NODE: Final = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}|_[0-9A-Za-z._-]+))?|([0-9A-Fa-f:.]+)", re.ASCII
)


def _parse_node(text: str) -> _Node | None:
    """
    An address of a chain, as any proxy writes it: with a port or without, IPv6 in brackets or bare.

    Source: RFC 7239 §6.
    """
    node = _NODE.fullmatch(text)
    if node is None:
        return None
    address = _parse_address(node[1] or node[2] or node[4])
    port = int(node[3]) if node[3] and node[3].isdigit() else 0
    return None if address is None or port > 65535 else _Node(address, port)


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
    """What ``Host`` becomes: the outer one, and the outer port where it names none. ``None``: it may stay."""
    told = host.encode("latin-1")
    if not _HOST_AND_PORT.fullmatch(told):
        told = b""
    # No one serves http on 443 or https on 80; proxies that say so mean the default.
    if _PORT_NUMBER.fullmatch(port) and int(port) <= 65535 and port not in ("80", "443"):
        found = _HOST_AND_PORT.fullmatch(told or _own_host(scope))
        if found and not found[1]:
            return found[0] + b":" + port.encode()
    return told or None


def _own_host(scope: Scope) -> bytes:
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    return hosts[0] if len(hosts) == 1 else b""


def _is_of_this_machine(scope: Scope) -> bool:
    address = _parse_address(scope["client"][0]) if scope.get("client") else None
    return address is not None and address.is_loopback


_SEGMENT: Final = r"/(?!\.{1,2}(?:/|\Z))[0-9A-Za-z!$+:=@._~-]+"
_CLEAN_PREFIX: Final = re.compile(rf"((?:{_SEGMENT})+)/?")


def _clean_prefix(text: str) -> str | None:
    """A path that stays on its host, wherever it is put: ``//evil.example`` and backslashes are none (CWE-601)."""
    prefix = _CLEAN_PREFIX.fullmatch(text)
    return None if prefix is None else prefix[1]


def _below(scope: Scope, prefix: str) -> dict[str, Any]:
    """
    The paths of a scope below ``prefix``. It is put before a path from which a proxy has removed it.

    A path that begins with ``prefix`` is left as it is: that proxy has removed nothing.

    Source: ASGI HTTP specification, ``path`` includes ``root_path``.
    """
    changes: dict[str, Any] = {"root_path": prefix}
    path: str = scope["path"]
    if path.startswith("/") and path != prefix and not path.startswith(f"{prefix}/"):
        changes["path"] = prefix + path
        if scope.get("raw_path"):
            changes["raw_path"] = prefix.encode() + scope["raw_path"]
    return changes
