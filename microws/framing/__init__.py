"""RFC 6455 frames, without I/O: the bytes of a client to messages, and payloads to frames of a server."""

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
from microws.framing.parser import FrameParser, Inflater

__all__ = [
    "BINARY",
    "CLOSE",
    "PING",
    "PONG",
    "TEXT",
    "Close",
    "FrameParser",
    "Incoming",
    "Inflater",
    "Ping",
    "Pong",
    "Violation",
    "encode_close",
    "encode_frame",
    "encode_head",
]
