"""Server-sent events: lines in, events out."""

from typing import Any, NamedTuple

from microws.codec import loads_json

__all__ = ["EventStreamParser", "ReceivedEvent"]


class ReceivedEvent(NamedTuple):
    """
    One event of a ``text/event-stream``.

    Attributes:
        data: Its ``data`` lines, joined by line feeds.
        event: Its type; ``message`` where the stream names none.
        id: The last id that the stream has given, which a browser would send as ``Last-Event-ID``.
        retry: The last reconnection time that the stream has given, in milliseconds.
    """

    data: str
    event: str = "message"
    id: str = ""
    retry: int | None = None

    def json(self) -> Any:
        """``data`` decoded as JSON. Raises ``InvalidMessage``."""
        return loads_json(self.data)


class EventStreamParser:
    """
    The parser of an event stream, fed line by line.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    def __init__(self) -> None:
        self._data: list[str] = []
        self._event = ""
        self._id = ""
        self._retry: int | None = None

    def feed(self, line: str) -> ReceivedEvent | None:
        """The event that ``line`` (without its end) completes, if it completes one."""
        if not line:
            data, event = self._data, self._event
            self._data, self._event = [], ""
            return ReceivedEvent("\n".join(data), event or "message", self._id, self._retry) if data else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self._retry = int(value)
        return None
