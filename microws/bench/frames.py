"""
The client's side of RFC 6455 §5: the bytes of a server to messages, and control frames to be sent.

A generator that is slower than the server measures itself, so whole messages, which are nearly all there is, are read
in one short loop. Text is not checked for UTF-8: what comes back is compared, as bytes, with what was sent.
"""

import secrets
from typing import final

from microws.closing import CloseCode, check_close
from microws.framing import BINARY, CLOSE, PING, PONG, TEXT, Close, Violation, encode_frame
from microws.framing.parser import apply_mask

__all__ = ["MAX_MESSAGE", "ServerFrames", "masked_close", "masked_frame"]

# Bytes of a message from the server: beyond this it is taken for nonsense.
MAX_MESSAGE = 1 << 28

FIN = 0x80
RESERVED = 0x70
OPCODE = 0x0F
CONTINUATION = 0x0
MAX_CONTROL_PAYLOAD = 125


def masked_frame(payload: bytes, opcode: int) -> bytes:
    """A frame of a client."""
    mask = secrets.token_bytes(4)
    head = encode_frame(payload, opcode)
    head = head[: len(head) - len(payload)]
    return bytes((head[0], head[1] | 0x80)) + head[2:] + mask + apply_mask(payload, mask)


def masked_close(code: int | None) -> bytes:
    """A client's Close frame; ``None``: without a code."""
    return masked_frame(b"" if code is None else code.to_bytes(2), CLOSE)


@final
class ServerFrames:
    """
    Reads what one server sends.

    Attributes:
        pings: The payloads of pings that are to be answered.
        end: The server's Close frame, or what it did wrong; behind it nothing is read.
    """

    __slots__ = ("_message", "_need", "_parts", "_size", "end", "pings")

    def __init__(self) -> None:
        self.pings: list[bytes] = []
        self.end: Close | Violation | None = None
        # The chunks of a frame that has not come whole, their bytes, and how many it takes to go on.
        self._parts: list[bytes] = []
        self._size = 0
        self._need = 0
        # What there is of a message in fragments.
        self._message: bytearray | None = None

    @property
    def is_between(self) -> bool:
        """Whether nothing is half read, so that equal bytes mean the same."""
        return not self._parts and self._message is None and self.end is None

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes that the server sent; the messages that they complete."""
        if self._parts:
            self._parts.append(data)
            self._size += len(data)
            if self._size < self._need:
                return []
            data = b"".join(self._parts)
            self._parts = []
        messages: list[bytes] = []
        position = 0
        end = len(data)
        need = 2
        while end - position >= 2:
            first = data[position]
            length = data[position + 1]
            start = position + 2
            if length > 125:
                if length > 127:
                    return self._fail(messages, "a frame of a server must not be masked")
                start += 2 if length == 126 else 8
                if start > end:
                    need = start - position
                    break
                shortest = 126 if length == 126 else 1 << 16
                length = int.from_bytes(data[position + 2 : start])
                if length < shortest:
                    return self._fail(messages, "the length of a frame is not in its shortest form")
                if length > MAX_MESSAGE:
                    return self._fail(messages, f"a frame of {length} bytes")
            stop = start + length
            if stop > end:
                need = stop - position
                break
            if (first == 0x81 or first == 0x82) and self._message is None:
                messages.append(data[start:stop])
            elif not self._read(first, data[start:stop], messages):
                return messages
            position = stop
        if position < end:
            self._parts = [data[position:]]
            self._size = end - position
            self._need = need
        return messages

    def _read(self, first: int, payload: bytes, messages: list[bytes]) -> bool:
        """Read what is no whole message in one frame; whether anything may follow."""
        opcode = first & OPCODE
        problem = ""
        if first & RESERVED:
            problem = "a reserved bit is set, and no extension was agreed on"
        elif opcode in (CLOSE, PING, PONG):
            if not first & FIN or len(payload) > MAX_CONTROL_PAYLOAD:
                problem = "a control frame has at most 125 bytes, and no fragments"
            elif opcode == CLOSE:
                self.end = _read_close(payload)
                return False
            elif opcode == PING:
                self.pings.append(payload)
        elif opcode not in (CONTINUATION, TEXT, BINARY):
            problem = f"opcode {opcode} is reserved"
        elif (opcode == CONTINUATION) != (self._message is not None):
            problem = "fragments of messages are mixed up"
        else:
            message = self._message = bytearray() if self._message is None else self._message
            message += payload
            if len(message) > MAX_MESSAGE:
                problem = f"a message of more than {MAX_MESSAGE} bytes"
            elif first & FIN:
                messages.append(bytes(message))
                self._message = None
        if problem:
            self._fail(messages, problem)
        return not problem

    def _fail(self, messages: list[bytes], reason: str) -> list[bytes]:
        self.end = Violation(CloseCode.PROTOCOL_ERROR, reason)
        return messages


def _read_close(payload: bytes) -> Close | Violation:
    """Source: RFC 6455 §5.5.1, §7.4."""
    if not payload:
        return Close(None, "")
    code = int.from_bytes(payload[:2])
    try:
        check_close(code, "")
        return Close(code, payload[2:].decode())
    except ValueError:
        return Violation(CloseCode.PROTOCOL_ERROR, "a Close frame has a code that may not be sent, or no text")
