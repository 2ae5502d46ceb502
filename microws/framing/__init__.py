"""
RFC 6455 frames, without I/O: payloads to frames of a server, and in ``parser`` the bytes of a client to messages.

The parser stands apart because only a server needs it, and the C extension that it unmasks with.
"""

from microws.framing.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Close,
    Incoming,
    Ping,
    Pong,
    Violation,
    encode_close,
    encode_frame,
    encode_head,
)

__all__ = [
    "BINARY",
    "CLOSE",
    "PING",
    "PONG",
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
