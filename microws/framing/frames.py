"""The frames of RFC 6455, and the encoding of a server's frames."""

from struct import Struct
from typing import NamedTuple, TypeAlias

from microws.closing import check_close

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "FIN",
    "LENGTH_IN_2_BYTES",
    "LENGTH_IN_8_BYTES",
    "PING",
    "PONG",
    "RSV1",
    "TEXT",
    "Close",
    "Incoming",
    "Ping",
    "Pong",
    "Violation",
    "encode_close",
    "encode_frame",
    "encode_head",
]

# Opcodes. RFC 6455 §5.2.
CONTINUATION = 0x0
TEXT = 0x1
BINARY = 0x2
CLOSE = 0x8
PING = 0x9
PONG = 0xA

# Bits of the first byte of a head, with the opcode.
FIN = 0x80
RSV1 = 0x40
# Values of the 7-bit length that announce a longer field with the real length.
LENGTH_IN_2_BYTES = 126
LENGTH_IN_8_BYTES = 127

# The heads of short frames by opcode and length. Nearly all frames are short; to pack a head takes four times as long.
_SHORT_HEADS = [[bytes((FIN | opcode, length)) for length in range(LENGTH_IN_2_BYTES)] for opcode in range(PONG + 1)]
_pack_medium = Struct("!BBH").pack
_pack_long = Struct("!BBQ").pack


class Ping(NamedTuple):
    """A Ping frame. Its answer is a Pong frame with the same payload."""

    payload: bytes


class Pong(NamedTuple):
    """A Pong frame."""

    payload: bytes


class Close(NamedTuple):
    """
    The client's Close frame.

    Attributes:
        code: A valid close code; ``None`` if the frame has none.
        reason: At most 123 bytes in UTF-8.
    """

    code: int | None
    reason: str


class Violation(NamedTuple):
    """
    What the client did wrong, and with which code to fail the connection.

    Attributes:
        code: 1002, 1007, 1008 or 1009.
        reason: Fits a Close frame.
    """

    code: int
    reason: str


# ``str`` is a whole text message, ``bytes`` a whole binary one.
Incoming: TypeAlias = str | bytes | Ping | Pong | Close | Violation


def encode_head(length: int, opcode: int, *, compressed: bool = False) -> bytes:
    """
    The head of an unfragmented, unmasked frame with a payload of ``length`` bytes.

    Args:
        compressed: Whether the payload is a compressed message.

    Source: RFC 6455 §5.2.
    """
    first = FIN | RSV1 | opcode if compressed else FIN | opcode
    if length < LENGTH_IN_2_BYTES:
        return bytes((first, length))
    if length < 1 << 16:
        return _pack_medium(first, LENGTH_IN_2_BYTES, length)
    return _pack_long(first, LENGTH_IN_8_BYTES, length)


def encode_frame(payload: bytes, opcode: int, *, compressed: bool = False) -> bytes:
    """
    An unfragmented, unmasked frame. It copies the payload: for a big one write ``encode_head`` and the payload.

    Args:
        compressed: Whether ``payload`` is a compressed message.
    """
    length = len(payload)
    if length < LENGTH_IN_2_BYTES and not compressed:
        return _SHORT_HEADS[opcode][length] + payload
    return encode_head(length, opcode, compressed=compressed) + payload


def encode_close(code: int | None, reason: str = "") -> bytes:
    """
    A Close frame; without a code if ``code`` is ``None``.

    Raises:
        ValueError: An invalid code or reason.

    Source: RFC 6455 §5.5.1.
    """
    if code is None:
        return encode_frame(b"", CLOSE)
    check_close(code, reason)
    return encode_frame(code.to_bytes(2) + reason.encode(), CLOSE)
