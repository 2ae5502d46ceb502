"""The opening handshake: an HTTP/1.1 request that asks for a WebSocket, and the 101. No I/O."""

import re
from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from hashlib import sha1
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from microws.interfaces import Scope

__all__ = ["Upgrade", "accept_response", "check_upgrade", "scope_of"]

Headers = Sequence[tuple[bytes, bytes]]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION: Final = b"13"
# As a number: asking whether ``bytes`` contain other ``bytes`` takes ten times as long.
_PERCENT: Final = ord("%")
_KEY: Final = b"sec-websocket-key"
_16_BYTES: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")


class Upgrade(NamedTuple):
    """
    A request that asks for a WebSocket.

    Attributes:
        target: Target of the request line: the percent-encoded path, and the query string.
        headers: Headers in their order, with names in lower case.
        fields: The same by name. Values of headers with one name are joined with commas.
    """

    target: bytes
    headers: Headers
    fields: Mapping[bytes, bytes]


class RefusedUpgrade(NamedTuple):
    """The response to a handshake that the server refuses by itself."""

    status: int
    headers: Headers
    body: bytes


def check_upgrade(upgrade: Upgrade) -> RefusedUpgrade | None:
    """
    Check a request that asks for a WebSocket.

    Returns:
        ``None`` if it is valid, otherwise the response.

    Source: RFC 6455 §4.2.1, §4.4; RFC 9112 §6.3 (a body would be taken for frames); RFC 9110 §15.5.22.
    """
    fields = upgrade.fields
    if b"transfer-encoding" in fields or (b"content-length" in fields and fields[b"content-length"].strip(b"0")):
        return _refused(400, b"a WebSocket handshake has no body")
    if fields.get(b"sec-websocket-version") != _VERSION:
        return _refused(
            426, b"expected Sec-WebSocket-Version: 13", (b"upgrade", b"websocket"), (b"sec-websocket-version", _VERSION)
        )
    # Base64 (RFC 4648 §4) of 16 bytes. The last four bits of the last character are not used.
    if not _16_BYTES.fullmatch(fields.get(_KEY, b"")):
        return _refused(400, b"expected one Sec-WebSocket-Key of 16 bytes in Base64")
    return None


def scope_of(
    upgrade: Upgrade,
    *,
    scheme: str,
    client: tuple[str, int] | None,
    server: tuple[str, int | None] | None,
    state: dict[str, Any],
    extensions: dict[str, Any],
) -> Scope:
    """
    The ASGI scope of a handshake.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket-connection-scope
    """
    path, _, query = upgrade.target.partition(b"?")
    offered: list[str] = []
    if b"sec-websocket-protocol" in upgrade.fields:
        value = upgrade.fields[b"sec-websocket-protocol"].decode("latin-1")
        offered = [token for item in value.split(",") if (token := item.strip())]
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "scheme": scheme,
        "path": unquote(path.decode("ascii")) if _PERCENT in path else path.decode("ascii"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": upgrade.headers,
        "client": client,
        "server": server,
        "state": state,
        "subprotocols": offered,
        "extensions": extensions,
    }


def accept_response(upgrade: Upgrade, *, subprotocol: str | None, headers: Headers, extensions: str | None) -> bytes:
    """
    The 101.

    Args:
        headers: Valid headers.
        extensions: Value of ``Sec-WebSocket-Extensions``.

    Source: RFC 6455 §4.2.2.
    """
    key = upgrade.fields[_KEY]
    answer = b2a_base64(sha1(key + _GUID, usedforsecurity=False).digest(), newline=False)
    lines = [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "]
    lines += [answer, b"\r\n"]
    if subprotocol is not None:
        lines += [b"Sec-WebSocket-Protocol: ", subprotocol.encode("latin-1"), b"\r\n"]
    if extensions is not None:
        lines += [b"Sec-WebSocket-Extensions: ", extensions.encode("latin-1"), b"\r\n"]
    lines += [field_lines(headers), b"\r\n"]
    return b"".join(lines)


def field_lines(headers: Headers) -> bytes:
    return b"".join([b"%s: %s\r\n" % pair for pair in headers])


def _refused(status: int, body: bytes, *headers: tuple[bytes, bytes]) -> RefusedUpgrade:
    common = ((b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body)))
    return RefusedUpgrade(status, (*headers, *common), body)
