"""
RFC 6455 frames, without I/O: ``frames`` encodes those of a server, ``parser`` decodes those of a client.

Import the parser from its module: only a server needs it and the C extension that it unmasks with.
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
