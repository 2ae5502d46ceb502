"""Messages that are not complete: their pieces, until the last one arrives."""

from codecs import utf_8_decode

__all__ = ["BinaryMessage", "TextMessage"]

# From this size on a piece of a binary message is kept without a copy. Bytes.
SMALL_PIECE = 4096
# A ``str`` of a few characters takes fifty bytes. So pieces are joined when there are as many.
MAX_PIECES = 1024


class TextMessage:
    """An incomplete text message. It is decoded piece by piece, so that invalid UTF-8 fails at once (RFC 6455 §8.1)."""

    __slots__ = ("_cut", "_parts", "_recent")

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._recent: list[str] = []
        self._cut = b""

    def write(self, payload: bytes) -> None:
        if self._cut:
            payload = self._cut + payload
        text, used = utf_8_decode(payload, "strict", False)
        self._cut = payload[used:]
        self._recent.append(text)
        if len(self._recent) == MAX_PIECES:
            self._parts.append("".join(self._recent))
            self._recent.clear()

    def value(self) -> str:
        utf_8_decode(self._cut, "strict", True)
        return "".join(self._parts + self._recent)


class BinaryMessage:
    """
    An incomplete binary message.

    Large pieces are copied once, at the end. A buffer that grows with each piece would be copied again and again.
    """

    __slots__ = ("_large", "_small")

    def __init__(self) -> None:
        self._large: list[bytes] = []
        self._small = bytearray()

    def write(self, payload: bytes) -> None:
        if len(payload) < SMALL_PIECE:
            self._small += payload
            return
        if self._small:
            self._flush()
        self._large.append(payload)

    def value(self) -> bytes:
        if self._small:
            self._flush()
        return self._large[0] if len(self._large) == 1 else b"".join(self._large)

    def _flush(self) -> None:
        self._large.append(bytes(self._small))
        self._small = bytearray()
