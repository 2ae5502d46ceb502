"""Server-sent events as they go on the wire."""

import re
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any, final
from weakref import WeakValueDictionary

from microws.codec import dumps_json
from microws.interfaces import Frame, Payload

__all__ = ["GAP", "KEEPALIVE", "OPENING", "EventCodec", "ServerSentEvent", "as_chunk", "event_codec"]

# https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
_END_OF_LINE = re.compile(r"\r\n|\r|\n")
_END_OF_ENCODED_LINE = re.compile(rb"\r\n|\r|\n")
_UNSAFE_IN_FIELD = re.compile(r"[\x00\r\n]")

# Comments: clients ignore them.
OPENING = b":\n"
KEEPALIVE = b": keepalive\n\n"
# Where an overflow policy has dropped messages.
GAP = b": gap\n\n"


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """
    One event of an ``EventStream``, encoded once however many streams send it.

    Args:
        data: ``str`` as it is; ``bytes`` as text in UTF-8; any other value as JSON. A line end of any kind arrives as
            ``\\n``.
        event: Its type, what ``addEventListener`` names. Default: ``message``.
        id: What a browser sends as ``Last-Event-ID`` when it comes back.
        retry: Milliseconds that a browser waits before it comes back.

    Raises:
        TypeError: ``data`` has no form in JSON.
        ValueError: ``data`` cannot be encoded, a line end or NUL in ``event`` or ``id``, or a negative ``retry``.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    data: Any
    event: str | None = field(default=None, kw_only=True)
    id: str | None = field(default=None, kw_only=True)
    retry: int | None = field(default=None, kw_only=True)
    encoded: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lines = []
        for name, value in (("event", self.event), ("id", self.id)):
            if value is not None:
                if _UNSAFE_IN_FIELD.search(value):
                    raise ValueError(f"an event's {name} has no line end and no NUL; {value!r} has")
                lines.append(f"{name}: {value}")
        if self.retry is not None:
            if self.retry < 0:
                raise ValueError(f"retry is a number of milliseconds, 0 or more, not {self.retry}")
            lines.append(f"retry: {int(self.retry)}")
        if isinstance(self.data, str):
            text = self.data
        else:
            text = (self.data if isinstance(self.data, bytes) else dumps_json(self.data)).decode()
        lines.extend(f"data: {line}" for line in _END_OF_LINE.split(text))
        object.__setattr__(self, "encoded", "\n".join([*lines, "", ""]).encode())


@final
class EventCodec:
    """
    Published values as server-sent events on the wire. See ``event_codec``.

    Args:
        event: Their type; ``None`` sends none.
        is_chunked: Whether each event is also a chunk of a response in HTTP/1.1.
    """

    __slots__ = ("__weakref__", "_head", "is_chunked")

    def __init__(self, event: str | None, *, is_chunked: bool) -> None:
        self._head = b"data: " if event is None else f"event: {event}\ndata: ".encode()
        self.is_chunked: bool = is_chunked

    def frame(self, payload: Payload) -> Frame:
        """A text message as it is, ``bytes`` as base64, anything else as JSON."""
        data = b64encode(payload.data) if payload.kind == "bytes" else payload.data
        if b"\n" in data or b"\r" in data:
            data = _END_OF_ENCODED_LINE.sub(b"\ndata: ", data)
        return self.encoded(self._head + data + b"\n\n")

    def encoded(self, event: bytes) -> Frame:
        """An event, or a comment, as it goes on the wire."""
        return Frame(as_chunk(event) if self.is_chunked else event, is_encoded=True)


_codecs: WeakValueDictionary[tuple[str | None, bool], EventCodec] = WeakValueDictionary()


def event_codec(event: str | None, *, is_chunked: bool) -> EventCodec:
    """The codec of an event's type: one for all streams, so that a published message is framed once for all of them."""
    codec = _codecs.get((event, is_chunked))
    if codec is None:
        codec = _codecs[event, is_chunked] = EventCodec(event, is_chunked=is_chunked)
    return codec


def as_chunk(data: bytes) -> bytes:
    """
    ``data``, which is not empty, as one chunk of a response.

    Source: RFC 9112 §7.1.
    """
    return b"%x\r\n%b\r\n" % (len(data), data)
