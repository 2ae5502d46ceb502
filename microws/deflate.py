"""
permessage-deflate (RFC 7692) of a server: the negotiation, and the compression of messages.

Both sides compress each message by itself (no context takeover). So an idle connection keeps no window, which would
take 32 KiB to inflate and 256 KiB to deflate, and a message that compression makes longer is sent uncompressed.
"""

import re
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple, final

from microws.interfaces import TOKEN

__all__ = ["Agreement", "Deflater", "Inflater", "negotiate"]

# RFC 6455 §9.1; tokens and quoted strings are those of RFC 9110 §5.6.
PARAMETER = rf'[ \t]*;[ \t]*({TOKEN})(?:[ \t]*=[ \t]*(?:({TOKEN})|"((?:[^"\\]|\\.)*)"))?'
EXTENSION = re.compile(rf"[ \t]*(?:({TOKEN})((?:{PARAMETER})*))?[ \t]*(?:,|\Z)")
PARAMETERS = {
    "server_no_context_takeover",
    "client_no_context_takeover",
    "server_max_window_bits",
    "client_max_window_bits",
}
WINDOW_BITS = re.compile(r"[89]|1[0-5]")

MAX_WINDOW_BITS = 15
# zlib does not deflate with 8.
MIN_WINDOW_BITS = 9
# Compression takes time of the event loop. Precedent: the level of gorilla/websocket.
LEVEL = 1
# Shorter messages are not compressed. Precedent: `threshold` of Node's ws.
MIN_DEFLATED_SIZE = 1024

# RFC 7692 §7.2.2: the sender removes this tail from each message. After the tail an empty last block has to parse.
TAIL = b"\x00\x00\xff\xff"
LAST_BLOCK = b"\x03\x00"
MAX_PIECE = 1 << 16
# A message may consist of several streams (RFC 7692 §7.2.3.4). Each one takes a new inflater.
MAX_STREAMS = 16


class Agreement(NamedTuple):
    """
    The negotiated compression of a connection.

    Attributes:
        max_window_bits: The largest window that the client inflates, 9 to 15; ``None``: not stated, which means 15.
    """

    max_window_bits: int | None = None

    @property
    def header(self) -> str:
        """The value of ``Sec-WebSocket-Extensions`` in the 101."""
        header = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        return header if self.max_window_bits is None else f"{header}; server_max_window_bits={self.max_window_bits}"

    def inflater(self) -> "Inflater":
        """For messages of the client."""
        return Inflater()

    def deflater(self) -> "Deflater":
        """For messages to the client."""
        return Deflater(max_window_bits=self.max_window_bits or MAX_WINDOW_BITS)


def negotiate(offers: Iterable[str]) -> Agreement | None:
    """
    Accept the first valid offer of permessage-deflate.

    Args:
        offers: Values of the request's ``Sec-WebSocket-Extensions``, each with any number of offers.

    Returns:
        ``None`` for no compression. A malformed value is ignored.

    Source: RFC 7692 §5 and §7.1.
    """
    for value in offers:
        for name, parameters in _extensions(value):
            if name == "permessage-deflate":
                agreement = _accept(parameters)
                if agreement is not None:
                    return agreement
    return None


@final
class Inflater:
    """Inflates the messages of one connection; keeps nothing between them."""

    __slots__ = ("_stream", "_streams")

    def __init__(self) -> None:
        self._stream: zlib._Decompress | None = None
        self._streams = 0

    def inflate(self, payload: bytes, *, is_last: bool) -> Iterator[bytes]:
        """
        The data in the next ``payload`` of a message, in pieces of at most 64 KiB, each inflated when it is asked for.

        Args:
            is_last: Whether the message ends here.

        Raises:
            zlib.error: Invalid deflated data, or a truncated message.

        Source: RFC 7692 §7.2.2.
        """
        if is_last:
            # zlib reads the last block only after it has returned all data before it.
            payload += TAIL + LAST_BLOCK
        while payload:
            stream = self._stream
            if stream is None or stream.eof:
                stream = self._begin_stream()
            piece = stream.decompress(payload, MAX_PIECE)
            payload = stream.unused_data or stream.unconsumed_tail
            yield piece
        if is_last:
            if self._stream is None or not self._stream.eof:
                raise zlib.error("the message is truncated")
            self._stream = None
            self._streams = 0

    def _begin_stream(self) -> "zlib._Decompress":
        self._streams += 1
        if self._streams > MAX_STREAMS:
            raise zlib.error(f"more than {MAX_STREAMS} streams in one message")
        # The largest window also inflates data that was deflated with a smaller one.
        self._stream = zlib.decompressobj(-MAX_WINDOW_BITS)
        return self._stream


@final
class Deflater:
    """Deflates the messages of one connection; keeps nothing between them."""

    __slots__ = ("_max_window_bits",)

    def __init__(self, *, max_window_bits: int) -> None:
        self._max_window_bits = max_window_bits

    def deflate(self, payload: bytes) -> bytes | None:
        """
        ``payload`` as a compressed message; ``None`` if it is short, or would not get shorter.

        Source: RFC 7692 §7.2.1.
        """
        if len(payload) < MIN_DEFLATED_SIZE:
            return None
        stream = zlib.compressobj(LEVEL, zlib.DEFLATED, -self._max_window_bits)
        deflated = stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH)
        return deflated[: -len(TAIL)] if len(deflated) - len(TAIL) < len(payload) else None


def _extensions(value: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """The extensions that a header's value offers, with their parameters; empty if the value is malformed."""
    found = []
    position = 0
    while position < len(value):
        match = EXTENSION.match(value, position)
        if match is None:
            return []
        position = match.end()
        if match[1]:
            found.append((match[1], [_parameter(parameter) for parameter in re.finditer(PARAMETER, match[2])]))
    return found


def _parameter(match: re.Match[str]) -> tuple[str, str | None]:
    name, token, quoted = match.groups()
    return name, token if quoted is None else re.sub(r"\\(.)", r"\1", quoted)


def _accept(parameters: list[tuple[str, str | None]]) -> Agreement | None:
    """The answer to an offer with these parameters; ``None`` declines it."""
    # §7.1: decline an offer with an unknown parameter, an invalid value, or a repeated name.
    given = dict(parameters)
    if len(given) < len(parameters) or not given.keys() <= PARAMETERS:
        return None
    if any(given.get(name) is not None for name in ("server_no_context_takeover", "client_no_context_takeover")):
        return None
    bits = given.get("client_max_window_bits")
    if bits is not None and not WINDOW_BITS.fullmatch(bits):
        return None
    if "server_max_window_bits" not in given:
        return Agreement()
    bits = given["server_max_window_bits"]
    if bits is None or not WINDOW_BITS.fullmatch(bits) or int(bits) < MIN_WINDOW_BITS:
        return None
    return Agreement(int(bits))
