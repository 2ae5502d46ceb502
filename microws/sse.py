"""Server-sent events as they go on the wire."""

import re
from dataclasses import dataclass, field
from typing import Any

from microws.codec import dumps_json

__all__ = ["KEEPALIVE", "OPENING", "ServerSentEvent"]

# https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
_END_OF_LINE = re.compile(r"\r\n|\r|\n")
_UNSAFE_IN_FIELD = re.compile(r"[\x00\r\n]")

# Comments: clients ignore them.
OPENING = b":\n"
KEEPALIVE = b": keepalive\n\n"


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
