"""The head of an HTTP/1.1 request: what its fields say of the request itself, and why it is refused. No I/O."""

import re
from typing import Final, NamedTuple

__all__ = ["MAX_FIELDS", "Fields", "Refused", "RequestHead", "join_fields", "read_head"]

Fields = list[tuple[bytes, bytes]]

# Precedent: Apache's LimitRequestFields, 100.
MAX_FIELDS: Final = 100

_HOST: Final = b"host"
_LENGTH: Final = b"content-length"
_CODING: Final = b"transfer-encoding"
_CONNECTION: Final = b"connection"
_UPGRADE: Final = b"upgrade"
_EXPECT: Final = b"expect"
_SINGLE: Final = (_HOST, _LENGTH)

# RFC 3986 §3.2.2, §3.2.3, without user information, which RFC 9110 §4.2.4 forbids; not empty (§4.2.1), and without a
# comma, which two fields that a proxy has joined would leave.
_VALID_HOST: Final = re.compile(rb"(?:[\w.~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?", re.ASCII)
_ABSOLUTE: Final = re.compile(rb"(?:http|ws)s?://([^/?#]+)([^#]*)", re.IGNORECASE)


class Refused(Exception):
    """
    A request that is answered by the server itself, and ends its connection.

    Args:
        status: Of the answer.
        detail: One line for the client.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class RequestHead(NamedTuple):
    """
    The head of a request that can be served.

    Attributes:
        method: As it came.
        target: The path, percent-encoded, and the query string; or ``*``.
        version: ``"1.1"`` or ``"1.0"``.
        headers: In their order, the names in lower case.
        fields: By name; the values of several fields of one name are joined by commas.
        keep_alive: Whether the client may send another request on the connection.
        length: Bytes of the body; ``None``: it comes in chunks.
        expects_continue: Whether the client waits for ``100 Continue`` before it sends the body.
        asks_for_websocket: Whether it is the handshake of a WebSocket, right or wrong.
    """

    method: str
    target: bytes
    version: str
    headers: Fields
    fields: dict[bytes, bytes]
    keep_alive: bool
    length: int | None
    expects_continue: bool
    asks_for_websocket: bool


def read_head(method: bytes, target: bytes, version: bytes, headers: Fields) -> RequestHead:
    """
    What a head says, whose syntax a parser has checked already.

    Args:
        version: ``1.1`` or ``1.0``.
        headers: The names in lower case, no blanks around the values.

    Raises:
        Refused: The head is ambiguous or invalid, or asks for something that this server does not do.

    Source: RFC 9112 §3.2 (target, ``Host``), §6.1 and §6.3 (framing), §9.3 (``Connection``); RFC 9110 §7.8
    (``Upgrade``), §10.1.1 (``Expect``).
    """
    if len(headers) > MAX_FIELDS:
        raise Refused(431, f"expected at most {MAX_FIELDS} header fields")
    is_modern = version == b"1.1"
    fields = dict(headers)
    if len(fields) < len(headers):
        fields = join_fields(headers)
    if method == b"CONNECT":
        raise Refused(501, "this server does not tunnel connections")
    host = fields.get(_HOST)
    if host is None:
        if is_modern:
            raise Refused(400, "expected a Host field")
    elif not _VALID_HOST.fullmatch(host):
        raise Refused(400, "expected Host to be a host name, and a port if there is one")
    if not target.startswith(b"/") or b"#" in target:
        target, headers = _origin_form(method, target, headers)
    keep_alive = is_modern
    asks_for_websocket = False
    if _CONNECTION in fields:
        options = _tokens(fields[_CONNECTION])
        keep_alive = b"close" not in options and (is_modern or b"keep-alive" in options)
        if b"upgrade" in options and is_modern and method == b"GET" and _UPGRADE in fields:
            asks_for_websocket = b"websocket" in _tokens(fields[_UPGRADE])
    length: int | None
    if _CODING in fields:
        _check_chunked(fields, is_modern=is_modern)
        length = None
    elif _LENGTH in fields:
        length = _read_length(fields[_LENGTH])
    else:
        length = 0
    expects_continue = False
    if _EXPECT in fields and is_modern:
        if fields[_EXPECT].lower() != b"100-continue":
            raise Refused(417, "the only expectation that this server meets is 100-continue")
        expects_continue = length != 0
    return RequestHead(
        method.decode("ascii"),
        target,
        "1.1" if is_modern else "1.0",
        headers,
        fields,
        keep_alive,
        length,
        expects_continue,
        asks_for_websocket,
    )


def join_fields(headers: Fields) -> dict[bytes, bytes]:
    """
    The values by name: those of several fields of one name are one list.

    Raises:
        Refused: A field that has one value came several times.

    Source: RFC 9110 §5.3.
    """
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in fields:
            if name in _SINGLE:
                raise Refused(400, f"expected one {name.decode()} field, got several")
            value = fields[name] + b"," + value
        fields[name] = value
    return fields


def _origin_form(method: bytes, target: bytes, headers: Fields) -> tuple[bytes, Fields]:
    if target == b"*" and method == b"OPTIONS":
        return target, headers
    found = _ABSOLUTE.fullmatch(target)
    if found is None or not _VALID_HOST.fullmatch(found[1]):
        raise Refused(400, "expected a request target that is a path or an http URL")
    path = found[2]
    # RFC 9112 §3.2.2: the host of the target wins.
    others = [field for field in headers if field[0] != _HOST]
    return path if path.startswith(b"/") else b"/" + path, [(_HOST, found[1]), *others]


def _check_chunked(fields: dict[bytes, bytes], *, is_modern: bool) -> None:
    codings = _tokens(fields[_CODING])
    if _LENGTH in fields or not is_modern or codings[-1] != b"chunked" or codings.count(b"chunked") > 1:
        raise Refused(400, "expected a body framed by Content-Length, or by one Transfer-Encoding: chunked")
    if len(codings) > 1:
        raise Refused(501, "the only transfer coding that this server decodes is chunked")


def _read_length(value: bytes) -> int:
    if not (value.isdigit() and len(value) < 20):
        raise Refused(400, "expected Content-Length to be a number of bytes")
    return int(value)


def _tokens(value: bytes) -> list[bytes]:
    value = value.lower()
    return [token.strip(b" \t") for token in value.split(b",")] if b"," in value else [value]
