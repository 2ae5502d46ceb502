"""Responses: whole ones, and those that a test reads while the app sends them."""

import codecs
import io
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from email.message import Message
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

from microws.codec import loads_json
from microws.datastructures import Headers
from microws.testing.calls import AppCall, end_block, time_limit
from microws.testing.cookies import parse_cookie

__all__ = ["EventParser", "ReceivedEvent", "TestResponse", "TestStream", "request"]

T = TypeVar("T")


class TestResponse:
    """
    A whole response.

    Attributes:
        status: HTTP status.
        headers: Its headers.
        body: Its body, as bytes.
    """

    __test__ = False

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def text(self) -> str:
        """The body as text, in the charset of its Content-Type, by default UTF-8. Raises ``UnicodeDecodeError``."""
        content_type = Message()
        content_type["content-type"] = self.headers.get("content-type", "")
        return self.body.decode(content_type.get_content_charset("utf-8"))

    def json(self) -> Any:
        """The body decoded as JSON. Raises ``InvalidMessage``."""
        return loads_json(self.body)

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies that this response sets, by name, whatever their attributes."""
        return dict(parse_cookie(value) for value in self.headers.getlist("set-cookie"))

    def __repr__(self) -> str:
        return f"TestResponse({self.status}, {self.body[:100]!r})"


class ReceivedEvent(NamedTuple):
    """
    One event of a ``text/event-stream``.

    Attributes:
        data: Its ``data`` lines, joined by line feeds.
        event: Its type; ``message`` if the stream names none.
        id: The last id in the stream, which a browser would send as ``Last-Event-ID``.
        retry: The last reconnection time in the stream, in milliseconds.
    """

    data: str
    event: str = "message"
    id: str = ""
    retry: int | None = None

    def json(self) -> Any:
        """``data`` decoded as JSON. Raises ``InvalidMessage``."""
        return loads_json(self.data)


class EventParser:
    """
    Reads the events of a ``text/event-stream``.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    def __init__(self) -> None:
        # Of the event that is being read: its data lines and type. Id and retry are those of the whole stream.
        self._data: list[str] = []
        self._fields = {"event": "", "id": "", "retry": ""}

    def feed(self, line: str) -> ReceivedEvent | None:
        """The event that ends with ``line``, if one does."""
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            data, kind, fields = self._data, self._fields["event"], self._fields
            self._data, fields["event"] = [], ""
            if data:
                retry = int(fields["retry"]) if fields["retry"] else None
                return ReceivedEvent("\n".join(data), kind or "message", fields["id"], retry)
        elif name == "data":
            self._data.append(value)
        elif (
            name == "event"
            or (name == "id" and "\0" not in value)
            or (name == "retry" and value.isascii() and value.isdigit())
        ):
            self._fields[name] = value
        return None


class TestStream:
    """
    A response that a test reads while the app sends it: ``async with client.stream("GET", "/events") as response``.

    Leaving the block disconnects the client: the app receives ``http.disconnect``, and the block waits for the app's
    end. The client's ``timeout`` limits every wait. A cancelled read loses nothing, and after a ``break`` another loop
    continues. Read either ``iter_bytes`` and ``read``, or ``iter_lines`` and ``events``.

    Attributes:
        status: HTTP status.
        headers: Its headers.
    """

    __test__ = False

    def __init__(self, call: AppCall, *, timeout: float) -> None:
        self._made_call = call
        self._timeout = timeout
        self._lines: deque[str] = deque()
        utf8 = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
        self._partial_line = ""
        self._events = EventParser()

    @property
    def _call(self) -> AppCall:
        return self._made_call.started("stream")

    @property
    def status(self) -> int:
        return int((self._call.answer or {})["status"])

    @property
    def headers(self) -> Headers:
        return Headers((self._call.answer or {})["headers"])

    async def __aenter__(self) -> Self:
        self._made_call.start()
        with self._call.disconnect_on_error():
            await self._call.wait_answer(self._timeout)
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call.disconnect()
        await end_block(error, lambda: self._call.wait_ended(self._timeout))

    async def read(self) -> bytes:
        """Wait for the rest of the body; each chunk within the time-out."""
        return b"".join([chunk async for chunk in self.iter_bytes()])

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """The chunks as the app sends them."""
        return _Iteration(lambda: self._call.next_chunk(self._timeout))

    def iter_lines(self) -> AsyncIterator[str]:
        """The lines of a text in UTF-8, without their ends (CR LF, LF or CR)."""
        return _Iteration(self._next_line)

    def events(self) -> AsyncIterator[ReceivedEvent]:
        """
        The events of a ``text/event-stream``.

        Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
        """
        return _Iteration(self._next_event)

    async def _next_line(self) -> str | None:
        while not self._lines:
            chunk = await self._call.next_chunk(self._timeout)
            *lines, rest = (self._partial_line + self._decoder.decode(chunk or b"", final=chunk is None)).split("\n")
            self._lines.extend(lines)
            self._partial_line = rest
            if chunk is None:
                if not rest:
                    return None
                self._lines.append(rest)
                self._partial_line = ""
        return self._lines.popleft()

    async def _next_event(self) -> ReceivedEvent | None:
        while (line := await self._next_line()) is not None:
            if (event := self._events.feed(line)) is not None:
                return event
        return None


class _Iteration(AsyncIterator[T], Generic[T]):
    # Not an async generator: if a test leaves one by `break`, the garbage collector ends it, with a warning.
    def __init__(self, pull: Callable[[], Awaitable[T | None]]) -> None:
        self._pull = pull

    async def __anext__(self) -> T:
        item = await self._pull()
        if item is None:
            raise StopAsyncIteration
        return item


async def request(call: AppCall, timeout: float) -> TestResponse:
    """Start the call of a request; wait ``timeout`` seconds for the whole response and for the app's end."""
    with call.disconnect_on_error(), time_limit(timeout, call.missing):
        call.start()
        start = await call.wait_answer(math.inf)
        chunks = []
        while (chunk := await call.next_chunk(math.inf)) is not None:
            chunks.append(chunk)
        await call.wait_ended(math.inf)
    return TestResponse(start["status"], Headers(start["headers"]), b"".join(chunks))
