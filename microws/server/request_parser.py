"""Requests of HTTP/1.1 out of the bytes of a connection, one at a time. No I/O."""

import re
from typing import Any, Final

try:
    import httptools
except ImportError:  # not on CPython
    from microws.server import python_parser as httptools  # type: ignore[no-redef]

from microws.server.request_head import Fields, Refused, RequestHead, read_head

__all__ = ["RequestParser"]

# Bytes of a target.
_MAX_SHOWN: Final = 200
_END: Final = b"\r\n\r\n"
_FRAMING: Final = (b"content-length", b"transfer-encoding")
# RFC 9112 §3, with single spaces. llhttp takes several, and other protocols.
_LINE: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/(1\.[01])\r\n")
# Beside its data, a chunk has a size and two line ends.
_BYTES_PER_CHUNK: Final = 16
_BLANK_LINES: Final = re.compile(rb"(?:\r\n)*")
_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?: |\Z)")

# One object for each name that is common, in whatever case it comes: a connection may keep its fields for days.
_COMMON: Final = (
    "Accept, Accept-Encoding, Accept-Language, Authorization, Cache-Control, Connection, Content-Length, Content-Type, "
    "Cookie, Host, Origin, Pragma, Priority, Referer, Sec-CH-UA, Sec-CH-UA-Mobile, Sec-CH-UA-Platform, Sec-Fetch-Dest, "
    "Sec-Fetch-Mode, Sec-Fetch-Site, Sec-Fetch-User, Sec-GPC, Sec-WebSocket-Extensions, Sec-WebSocket-Key, "
    "Sec-WebSocket-Protocol, Sec-WebSocket-Version, Transfer-Encoding, Upgrade, Upgrade-Insecure-Requests, User-Agent, "
    "X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Port, X-Forwarded-Proto, X-Real-IP, X-Request-ID"
)
_LOWER: Final = {
    name: lower for common in _COMMON.encode().split(b", ") for lower in (common.lower(),) for name in (common, lower)
}


class RequestParser:
    """
    Parses one request after the other.

    llhttp cannot be told to stop behind a request. But a head and a chunked body end with an empty line, and the length
    of another body is known: llhttp gets no more than what goes up to there.

    Args:
        max_head_size: Bytes of a head, and of what stands between two pieces of a chunked body.

    Attributes:
        head: Of the request in progress, once it is complete.
        body: The pieces of its body that have come, for the caller to take out.
        is_complete: Whether its last byte has come.

    Source: RFC 9112; https://llhttp.org.
    """

    __slots__ = (
        "_fields",
        "_has_llhttp_ended",
        "_left",
        "_llhttp",
        "_max_head_size",
        "_raw_head",
        "_size",
        "_tail",
        "body",
        "head",
        "is_complete",
    )

    def __init__(self, max_head_size: int) -> None:
        self._max_head_size = max_head_size
        self.body: list[bytes] = []
        self.reset()

    def reset(self) -> None:
        """Begin with the next request; the last one was complete."""
        self.head: RequestHead | None = None
        self.is_complete = False
        self._fields: Fields = []
        self._raw_head = b""
        # Of a head, or of what stands between two pieces of a chunked body.
        self._size = 0
        # The last three bytes, which an end that is cut in two may begin with.
        self._tail = b""
        # Of the body; below 0 where it comes in chunks.
        self._left = 0
        self._has_llhttp_ended = False
        # A new one for each request: llhttp refuses what comes after "Proxy-Connection: close", or after a trailer
        # "Connection: close". And a connection that waits for a request needs none.
        self._llhttp: Any = None

    @property
    def has_begun(self) -> bool:
        """Whether any byte of a request has come."""
        return self._size > 0 or self.head is not None

    @property
    def line(self) -> tuple[bytes, bytes]:
        """Method and target of a request that was refused, for the log; ``-`` where they are not known."""
        found = _LINE.match(self._raw_head)
        if found is None:
            return b"-", b"-"
        method, target = found[1], found[2]
        return method[:_MAX_SHOWN], target if len(target) <= _MAX_SHOWN else target[:_MAX_SHOWN] + b"..."

    def feed(self, data: bytes) -> bytes:
        """
        Parse what has come. Returns what stands behind the end of the request.

        Raises:
            Refused: The request is not served, and its end is unknown.
        """
        if self.head is None:
            data = self._feed_head(data)
        if not data or self.is_complete:
            return data
        return self._feed_chunks(data) if self._left < 0 else self._feed_body(data)

    def _feed_head(self, data: bytes) -> bytes:
        if not self._size:
            if data[:1] <= b"\r" or self._tail:
                data = self._skip_blank_lines(data)
                if not data:
                    return b""
            self._llhttp = httptools.HttpRequestParser(self)
        end = self._find_end(data)
        piece = data[:end]
        self._raw_head += piece
        self._size += len(piece)
        is_paused = self._feed_llhttp(piece)
        if self._size > self._max_head_size:
            raise Refused(431, f"expected a head of at most {self._max_head_size} bytes")
        if self._tail:
            return b""
        self._read_head(is_paused=is_paused)
        return data[end:]

    def _skip_blank_lines(self, data: bytes) -> bytes:
        """Source: RFC 9112 §2.2."""
        data = self._tail + data
        data = data[_BLANK_LINES.match(data).end() :]  # type: ignore[union-attr]
        self._tail = b""
        if data == b"\r":
            self._tail = data
            return b""
        if b"" < data[:1] <= b"\r":
            raise Refused(400, "expected a request line of HTTP/1.1 or HTTP/1.0")
        return data

    def _read_head(self, *, is_paused: bool) -> None:
        line = _LINE.match(self._raw_head)
        if line is None:
            raise Refused(400, "expected a request line of HTTP/1.1 or HTTP/1.0")
        fields = self._fields
        method, target, version = line.groups()
        head = self.head = read_head(method, target, version, fields)
        self._fields = []
        self._raw_head = b""
        self._size = 0
        self._left = -1 if head.length is None else head.length
        self.is_complete = not self._left or head.asks_for_websocket
        self._has_llhttp_ended = False
        if is_paused and not head.asks_for_websocket:
            # llhttp stops behind an Upgrade of any kind. This one counts for nothing, and the body comes as usual.
            framing = [b"%s: %s\r\n" % field for field in fields if field[0] in _FRAMING]
            self._llhttp = httptools.HttpRequestParser(self)
            self._llhttp.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing))
            self._has_llhttp_ended = False

    def _feed_body(self, data: bytes) -> bytes:
        piece = data[: self._left]
        self._left -= len(piece)
        self.body.append(piece)
        self.is_complete = not self._left
        return data[len(piece) :]

    def _feed_chunks(self, data: bytes) -> bytes:
        view = memoryview(data)
        start = 0
        while start < len(data) and not self.is_complete:
            end = self._find_end(data, start)
            count = len(self.body)
            self._feed_llhttp(view[start:end])
            # Extensions and trailers: some bytes for each chunk, and the limit of a head for what exceeds them.
            pieces = self.body[count:]
            excess = self._size + (end - start) - 2 * sum(map(len, pieces)) - _BYTES_PER_CHUNK * len(pieces)
            self._size = max(0, excess)
            if excess > self._max_head_size:
                raise Refused(400, f"expected at most {self._max_head_size} bytes between two pieces of a body")
            self.is_complete = self._has_llhttp_ended
            start = end
        return data[start:]

    def _find_end(self, data: bytes, start: int = 0) -> int:
        """The index behind the first empty line, or of the end where there is none."""
        tail = self._tail
        self._tail = b""
        if tail and (index := (tail + data[start : start + 3]).find(_END)) >= 0:
            return start + index + len(_END) - len(tail)
        index = data.find(_END, start)
        if index >= 0:
            return index + len(_END)
        self._tail = (tail + data[max(start, len(data) - 3) :])[-3:]
        return len(data)

    def _feed_llhttp(self, data: bytes | memoryview) -> bool:
        """Whether it stops behind this, at an ``Upgrade``."""
        try:
            self._llhttp.feed_data(data)
        except httptools.HttpParserUpgrade:
            return True
        except httptools.HttpParserInvalidMethodError:
            if _METHOD.match(self._raw_head):
                raise Refused(501, "this server does not know the method") from None
            raise Refused(400, "expected a request of HTTP/1.1") from None
        except httptools.HttpParserError as error:
            raise Refused(400, f"invalid request: {error}") from None
        return False

    # What llhttp calls

    def on_header(self, name: bytes, value: bytes) -> None:
        # Those behind a chunked body count for nothing.
        self._fields.append((_LOWER.get(name) or name.lower(), value.rstrip(b" \t")))

    def on_body(self, piece: bytes) -> None:
        self.body.append(piece)

    def on_message_complete(self) -> None:
        self._has_llhttp_ended = True
