"""
The part of httptools that requests need, in Python: for interpreters that httptools does not run on.

Names and calls are those of httptools. Nothing stops at an ``Upgrade`` here.
"""

import re
from typing import Any, Final

__all__ = ["HttpParserError", "HttpParserInvalidMethodError", "HttpParserUpgrade", "HttpRequestParser"]

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_FIELD: Final = _TOKEN + rb":[\t -~\x80-\xff]*+\r\n"
# RFC 9112 §3, §5; without what is obsolete, and without controls in values (RFC 9110 §5.5).
_HEAD: Final = re.compile(rb"(%b) [!-~]++ HTTP/1\.[01]\r\n((?:%b)*+)\r\n" % (_TOKEN, _FIELD))
_FIELDS: Final = re.compile(rb"(%b):[ \t]*+([\t -~\x80-\xff]*+)\r\n" % _TOKEN)
# RFC 9112 §7.1, and fewer than 2**64 bytes.
_SIZE: Final = re.compile(
    rb"0*+([0-9A-Fa-f]{0,16}+)(?<=[0-9A-Fa-f])"
    rb"(?:;%b(?:=(?:%b|\"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+\"))?)*+\r\n" % (_TOKEN, _TOKEN)
)
_LINE_FEED: Final = re.compile(rb"(?<!\r)\n")
_TRAILER: Final = re.compile(_FIELD)
_END: Final = b"\r\n"

# Those that llhttp knows.
_METHODS: Final = frozenset(
    b"GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND "
    b"REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE MKCALENDAR LINK "
    b"UNLINK SOURCE QUERY".split()
)

_PIECE: Final = 4 << 10


class HttpParserError(Exception):
    """The bytes are no request."""


class HttpParserInvalidMethodError(HttpParserError):
    """The method is none of those that llhttp knows."""


class HttpParserUpgrade(Exception):
    """Never raised."""


class HttpRequestParser:
    """
    Parses one request: a head, and a body in chunks.

    Args:
        protocol: Has ``on_header``, ``on_body`` and ``on_message_complete``.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._data = b""
        self._step = self._read_head
        self._left = 0

    def feed_data(self, data: bytes | memoryview) -> None:
        """
        Parse what has come, which may end anywhere, but not behind the request.

        Raises:
            HttpParserError: These are no bytes of a request.
        """
        # In pieces, because each chunk copies what stands behind it.
        for start in range(0, len(data), _PIECE):
            self._data += data[start : start + _PIECE]
            while self._data and self._step():
                pass

    def _read_head(self) -> bool:
        if not self._data.endswith(b"\r\n\r\n"):
            if _LINE_FEED.search(self._data):
                raise HttpParserError("expected CR before LF")
            return False
        head = _HEAD.fullmatch(self._data)
        if head is None:
            raise HttpParserError("a head that is not as RFC 9112 says")
        if head[1] not in _METHODS:
            raise HttpParserInvalidMethodError("unknown method")
        for name, value in _FIELDS.findall(head[2]):
            self._protocol.on_header(name, value)
        self._data = b""
        self._step = self._read_size
        return False

    def _read_size(self) -> bool:
        found = self._match(_SIZE)
        if found is None:
            return False
        self._left = int(found[1] or b"0", 16)
        self._step = self._read_chunk if self._left else self._read_trailer
        return True

    def _read_chunk(self) -> bool:
        piece = self._data[: self._left]
        self._data = self._data[len(piece) :]
        self._left -= len(piece)
        self._protocol.on_body(piece)
        if not self._left:
            self._step = self._read_chunk_end
        return True

    def _read_chunk_end(self) -> bool:
        if not _END.startswith(self._data[:2]):
            raise HttpParserError("expected CR and LF behind a chunk")
        if len(self._data) < len(_END):
            return False
        self._data = self._data[len(_END) :]
        self._step = self._read_size
        return True

    def _read_trailer(self) -> bool:
        if self._data.startswith(_END):
            self._data = self._data[len(_END) :]
            self._protocol.on_message_complete()
            return False
        return self._match(_TRAILER) is not None

    def _match(self, line: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """Take a line from the data; ``None`` while it is not whole."""
        found = line.match(self._data)
        if found is not None:
            self._data = self._data[found.end() :]
        elif b"\n" in self._data:
            raise HttpParserError("a line of a chunked body that is not as RFC 9112 says")
        return found
