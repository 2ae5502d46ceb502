"""
The parser of a client's frames: RFC 6455, with limits.

One loop reads whole frames of the common kinds, and creates only the message. All others go through ``_advance``, which
checks the head of one frame and then reads its payload piece by piece.
"""

from codecs import utf_8_decode
from collections.abc import Iterator
from typing import Protocol, final
from zlib import error as ZlibError  # noqa: N812

from microws.closing import CloseCode, check_close
from microws.framing.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    LENGTH_IN_2_BYTES,
    LENGTH_IN_8_BYTES,
    PING,
    PONG,
    RSV1,
    TEXT,
    Close,
    Incoming,
    Ping,
    Pong,
    Violation,
)

try:
    from websockets.speedups import apply_mask
except ImportError:

    def apply_mask(data: bytes, mask: bytes) -> bytes:  # type: ignore[misc]
        """``data`` XORed with the bytes of ``mask``, repeated."""
        size = len(data)
        key = int.from_bytes((mask * (size // 4 + 1))[:size])
        return (int.from_bytes(data) ^ key).to_bytes(size)


__all__ = ["MAX_FRAGMENTS", "FrameParser", "Inflater", "apply_mask"]

OPCODES = frozenset((CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))

# More bits of the first byte of a head, and those of the second one.
RSV2_AND_3 = 0x30
OPCODE = 0x0F
CONTROL = 0x08
MASK = 0x80
LENGTH = 0x7F

FINAL_TEXT = FIN | TEXT
FINAL_BINARY = FIN | BINARY
MAX_CONTROL_PAYLOAD = 125
MAX_HEAD = 14
# Where a long length ends in a head. RFC 6455 §5.2.
_LENGTH_ENDS = {LENGTH_IN_2_BYTES: 4, LENGTH_IN_8_BYTES: 10}

# No other server has this limit. With it a message of 1 MiB, the default limit, may come in frames of 1 KiB.
MAX_FRAGMENTS = 1024


# From this size on a piece of a binary message is kept without a copy. Bytes.
_SMALL_PIECE = 4096
# A ``str`` of a few characters takes fifty bytes. So pieces are joined when there are as many.
_MAX_PIECES = 1024


class Inflater(Protocol):
    """Undoes the negotiated compression of one connection."""

    def inflate(self, payload: bytes, *, is_last: bool) -> Iterator[bytes]:
        """
        The data in the next ``payload`` of a message, in small pieces, each inflated when it is asked for.

        Raises:
            zlib.error: ``payload`` is not valid compressed data.
        """
        ...


class _ViolationFound(Exception):
    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(code, reason)
        self.violation = Violation(code, reason)


@final
class FrameParser:
    """
    Parses the frames of one client.

    Args:
        max_message_size: Most bytes of an inflated message. A larger one is a violation with code 1009, as soon as the
            head of a frame announces it.
        max_fragments: Most frames of a message. More are a violation with code 1008.
        inflater: Inflates messages if permessage-deflate was negotiated. Default: a compressed message is a violation
            with code 1002.

    Source: RFC 6455 §5 and §8.1; RFC 7692 §6.
    """

    __slots__ = (
        "_control",
        "_first",
        "_fragments",
        "_head",
        "_in_frame",
        "_inflated",
        "_inflater",
        "_is_compressed",
        "_is_over",
        "_is_plain",
        "_left",
        "_mask",
        "_max_compressed_size",
        "_max_fragments",
        "_max_message_size",
        "_message",
        "_size",
    )

    def __init__(
        self, *, max_message_size: int, max_fragments: int = MAX_FRAGMENTS, inflater: Inflater | None = None
    ) -> None:
        self._max_message_size = max_message_size
        # A message that does not shrink grows: by an eighth with the worst of zlib's settings (its deflateBound).
        self._max_compressed_size = max_message_size + (max_message_size >> 3) + 1024
        self._max_fragments = max_fragments
        self._inflater = inflater
        # Whether neither a frame nor a fragmented message is incomplete.
        self._is_plain = True
        self._is_over = False
        # The bytes of an incomplete head.
        self._head = b""
        # The incomplete frame after its head: its first byte, the number of missing bytes, the mask for the next one.
        self._in_frame = False
        self._first = 0
        self._left = 0
        self._mask = b""
        self._control = b""
        # The incomplete message: its announced payload bytes, its frames, its inflated bytes, all so far.
        self._message: _TextMessage | _BinaryMessage | None = None
        self._is_compressed = False
        self._size = 0
        self._fragments = 0
        self._inflated = 0

    def feed(self, data: bytes) -> list[Incoming]:
        """
        Parse the next bytes of the client.

        Returns:
            The messages and control frames that they complete, in order. After a ``Close`` or a ``Violation`` the
            parser ignores all bytes.
        """
        if self._head:
            data = self._head + data
            self._head = b""
        incoming: list[Incoming] = []
        position = 0
        end = len(data)
        try:
            while position < end:
                while self._is_plain:
                    start = position + 6
                    if start > end:
                        break
                    length = data[position + 1] - MASK
                    if length == LENGTH_IN_2_BYTES:
                        start += 2
                        if start > end:
                            break
                        length = data[position + 2] << 8 | data[position + 3]
                        if length < LENGTH_IN_2_BYTES:
                            break
                    elif not 0 <= length < LENGTH_IN_2_BYTES:
                        break
                    stop = start + length
                    if stop > end or length > self._max_message_size:
                        break
                    first = data[position]
                    if first == FINAL_TEXT:
                        incoming.append(apply_mask(data[start:stop], data[start - 4 : start]).decode())
                    elif first == FINAL_BINARY:
                        incoming.append(apply_mask(data[start:stop], data[start - 4 : start]))
                    else:
                        break
                    if stop == end:
                        return incoming
                    position = stop
                position = self._advance(data, position, incoming)
        except UnicodeDecodeError:
            self._end(incoming, Violation(CloseCode.INVALID_PAYLOAD, "a text message is not UTF-8"))
        except ZlibError:
            # RFC 7692 does not say which code. Node's ws and wsproto use 1007, inconsistent data (RFC 6455 §7.4.1).
            self._end(incoming, Violation(CloseCode.INVALID_PAYLOAD, "a compressed message cannot be inflated"))
        except _ViolationFound as found:
            self._end(incoming, found.violation)
        return incoming

    def _advance(self, data: bytes, position: int, incoming: list[Incoming]) -> int:
        """Parse one frame, as far as ``data`` has it. Returns the position after it."""
        if self._is_over:
            return len(data)
        if not self._in_frame:
            position = self._read_head(data, position)
            if not self._in_frame:
                return position
        payload = data[position : position + self._left]
        position += len(payload)
        self._left -= len(payload)
        unmasked = apply_mask(payload, self._mask)
        if self._left:
            turn = len(payload) % 4
            self._mask = self._mask[turn:] + self._mask[:turn]
        else:
            self._in_frame = False
        if self._first & CONTROL:
            self._read_control(unmasked, incoming)
        else:
            self._read_data(unmasked, incoming)
        self._is_plain = not self._in_frame and self._message is None and not self._is_over
        return position

    def _read_head(self, data: bytes, position: int) -> int:
        """Parse a head, or keep its bytes if it is incomplete. Returns the position after it."""
        head = data[position : position + MAX_HEAD]
        size = 2
        if len(head) >= size:
            first, length = head[0], head[1] & LENGTH
            self._check_kind(first, is_masked=bool(head[1] & MASK), length=length)
            size = _LENGTH_ENDS.get(length, 2)
            if len(head) >= size:
                if size > 2:
                    length = int.from_bytes(head[2:size])
                    if length < LENGTH_IN_2_BYTES or (size == 10 and (length < 1 << 16 or length >> 63)):
                        raise _ViolationFound(
                            CloseCode.PROTOCOL_ERROR, "the length of a frame is not in its shortest form"
                        )
                self._check_room(first, length)
                size += 4
                if len(head) >= size:
                    self._begin_frame(first, length, head[size - 4 : size])
                    return position + size
        self._head = head
        return len(data)

    def _check_kind(self, first: int, *, is_masked: bool, length: int) -> None:
        opcode = first & OPCODE
        if opcode not in OPCODES:
            raise _ViolationFound(CloseCode.PROTOCOL_ERROR, f"opcode {opcode} is reserved")
        if not is_masked:
            # §5.1: "The server MUST close the connection upon receiving a frame that is not masked."
            raise _ViolationFound(CloseCode.PROTOCOL_ERROR, "a frame of a client must be masked")
        # §5.2: "If a nonzero value is received and none of the negotiated extensions defines the meaning [...]".
        # RFC 7692 §6.1: RSV1 is set on the first fragment of a compressed message alone.
        if first & RSV2_AND_3 or (first & RSV1 and (self._inflater is None or opcode not in (TEXT, BINARY))):
            raise _ViolationFound(CloseCode.PROTOCOL_ERROR, "a reserved bit is set that no extension has a meaning for")
        if opcode & CONTROL:
            # §5.5: "All control frames MUST have a payload length of 125 bytes or less and MUST NOT be fragmented."
            if length > MAX_CONTROL_PAYLOAD:
                raise _ViolationFound(CloseCode.PROTOCOL_ERROR, "a control frame has at most 125 bytes")
            if not first & FIN:
                raise _ViolationFound(CloseCode.PROTOCOL_ERROR, "a control frame has no fragments")
        elif opcode == CONTINUATION:
            if self._message is None:
                raise _ViolationFound(CloseCode.PROTOCOL_ERROR, "a continuation frame continues nothing")
            if self._fragments >= self._max_fragments:
                raise _ViolationFound(
                    CloseCode.POLICY_VIOLATION, f"a message of more than {self._max_fragments} frames"
                )
        elif self._message is not None:
            raise _ViolationFound(CloseCode.PROTOCOL_ERROR, "a message begins before the one in fragments has ended")

    def _check_room(self, first: int, length: int) -> None:
        if first & CONTROL:
            return
        is_compressed = bool(first & RSV1)
        size = length
        if not first & OPCODE:
            is_compressed = self._is_compressed
            size += self._size
        if size > (self._max_compressed_size if is_compressed else self._max_message_size):
            raise self._too_big()

    def _too_big(self) -> _ViolationFound:
        return _ViolationFound(CloseCode.MESSAGE_TOO_BIG, f"a message of more than {self._max_message_size} bytes")

    def _begin_frame(self, first: int, length: int, mask: bytes) -> None:
        self._in_frame = True
        self._first = first
        self._left = length
        self._mask = mask
        opcode = first & OPCODE
        if opcode in (TEXT, BINARY):
            self._message = _TextMessage() if opcode == TEXT else _BinaryMessage()
            self._is_compressed = bool(first & RSV1)
            self._size = self._fragments = self._inflated = 0
        if not opcode & CONTROL:
            self._size += length
            self._fragments += 1

    def _read_data(self, payload: bytes, incoming: list[Incoming]) -> None:
        message = self._message
        assert message is not None
        is_last = not self._in_frame and bool(self._first & FIN)
        if self._is_compressed:
            assert self._inflater is not None
            for piece in self._inflater.inflate(payload, is_last=is_last):
                self._inflated += len(piece)
                if self._inflated > self._max_message_size:
                    raise self._too_big()
                message.write(piece)
        else:
            message.write(payload)
        if is_last:
            self._message = None
            incoming.append(message.value())

    def _read_control(self, payload: bytes, incoming: list[Incoming]) -> None:
        self._control += payload
        if self._in_frame:
            return
        payload = self._control
        self._control = b""
        opcode = self._first & OPCODE
        if opcode == PING:
            incoming.append(Ping(payload))
        elif opcode == PONG:
            incoming.append(Pong(payload))
        else:
            self._end(incoming, _read_close(payload))

    def _end(self, incoming: list[Incoming], last: Close | Violation) -> None:
        """Hand out ``last`` and forget everything else."""
        incoming.append(last)
        self._is_over = True
        self._is_plain = False
        self._message = None
        self._head = self._control = b""


def _read_close(payload: bytes) -> Close:
    """Source: RFC 6455 §5.5.1, §7.4."""
    if not payload:
        return Close(None, "")
    code = int.from_bytes(payload[:2])
    try:
        check_close(code, "")
    except ValueError:
        # A payload of one byte too: there is no code below 256.
        raise _ViolationFound(CloseCode.PROTOCOL_ERROR, "a Close frame has a code that may not be sent") from None
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError:
        raise _ViolationFound(CloseCode.INVALID_PAYLOAD, "a close reason is not UTF-8") from None


class _TextMessage:
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
        if len(self._recent) == _MAX_PIECES:
            self._parts.append("".join(self._recent))
            self._recent.clear()

    def value(self) -> str:
        utf_8_decode(self._cut, "strict", True)
        return "".join(self._parts + self._recent)


class _BinaryMessage:
    """
    An incomplete binary message.

    Large pieces are copied once, at the end. A buffer that grows with each piece would be copied again and again.
    """

    __slots__ = ("_large", "_small")

    def __init__(self) -> None:
        self._large: list[bytes] = []
        self._small = bytearray()

    def write(self, payload: bytes) -> None:
        if len(payload) < _SMALL_PIECE:
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
