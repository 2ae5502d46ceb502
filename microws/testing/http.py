"""One HTTP request and its response, seen from both ends."""

import codecs
import io
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from email.message import Message
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio

from microws.codec import loads_json
from microws.datastructures import Headers
from microws.interfaces import Event
from microws.testing.calls import AppCall, end_block
from microws.testing.cookies import cookie_pair
from microws.testing.rules import ResponseRules
from microws.testing.sse import EventStreamParser, ReceivedEvent

__all__ = ["HTTPCall", "TestResponse", "TestStream"]

T = TypeVar("T")


class HTTPCall(AppCall):
    """
    The app's side of one request.

    Args:
        name: Method and path, for error messages.
        method: The request's method.
        body: The request's body; of an iterable each chunk is fetched when the app has taken the one before.
        max_queue: How many chunks of the response wait for the client before the app's ``send`` waits.
    """

    def __init__(
        self,
        name: str,
        *,
        method: str,
        body: bytes | AsyncIterable[bytes],
        max_queue: int | None,
        raise_errors: bool,
        raise_after_disconnect: bool,
    ) -> None:
        super().__init__(name, raise_errors=raise_errors, raise_after_disconnect=raise_after_disconnect)
        self.status = 0
        self.headers = Headers()
        self.chunks: deque[bytes] = deque()
        self._discard_body = method == "HEAD"
        self._rules = ResponseRules("http.response", method=method)
        self._max_queue = max_queue
        self._requests: deque[Event] = deque()
        self._feeding = anyio.CancelScope()
        if isinstance(body, bytes):
            self._requests.append(_request_event(body, more_body=False))

    async def receive(self) -> Event:
        await self.wait_until(lambda: self._leaves() or bool(self._requests))
        if self._leaves():
            return {"type": "http.disconnect"}
        event = self._requests.popleft()
        self.notify()
        return event

    def check(self, event: Event) -> Event:
        return self._rules.check(event)

    def has_room(self) -> bool:
        return self._max_queue is None or len(self.chunks) < self._max_queue

    def deliver(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
            self.headers = Headers(event["headers"])
            return
        if event["body"] and not self._discard_body:
            self.chunks.append(event["body"])
        self.finished = not event["more_body"]

    def disconnect(self) -> None:
        self._feeding.cancel()
        super().disconnect()

    async def feed(self, body: AsyncIterable[bytes]) -> None:
        """Hand a streamed request body over. Its failure is the call's error, and the client leaves."""
        try:
            with self._feeding:
                async for chunk in body:
                    if not isinstance(chunk, bytes):
                        raise TypeError(f"expected the chunks of content= as bytes, got {chunk!r}")
                    self._requests.append(_request_event(chunk, more_body=True))
                    self.notify()
                    await self.wait_until(lambda: not self._requests)
                self._requests.append(_request_event(b"", more_body=False))
                self.notify()
        except Exception as error:
            self.fail(error)
            self.disconnect()
        finally:
            if (close := getattr(body, "aclose", None)) is not None:
                await close()

    async def wait_started(self, timeout: float) -> None:
        """Wait for status and headers. Raises what left the app, or ``TimeoutError``."""
        await self.wait(lambda: self.status > 0, timeout=timeout, waiting_for=self.missing())
        if not self.status:
            self.raise_error()
            raise RuntimeError(f"{self.name}: the app returned without a response")

    async def next_chunk(self, timeout: float) -> bytes | None:
        """Wait for a chunk of the body; ``None`` at its end. Raises what left the app, or ``TimeoutError``."""
        await self.wait(
            lambda: bool(self.chunks) or self.finished,
            timeout=timeout,
            waiting_for=f"no more of the response to {self.name}",
        )
        if self.chunks:
            chunk = self.chunks.popleft()
            self.notify()
            return chunk
        if not self.finished:
            self.raise_error()
            raise RuntimeError(f"{self.name}: the app returned before its response was complete")
        return None

    def missing(self) -> str:
        """What the client is waiting for."""
        if not self.status:
            return f"no response start from {self.name}"
        if not self.finished:
            return f"no complete response from {self.name}"
        return f"{self.name}: the response is complete, but the app did not end"

    def _leaves(self) -> bool:
        return self.gone or self.finished


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
        """The body as text, in the charset that its Content-Type names, else UTF-8. Raises ``UnicodeDecodeError``."""
        content_type = Message()
        content_type["content-type"] = self.headers.get("content-type", "")
        return self.body.decode(content_type.get_content_charset("utf-8"))

    def json(self) -> Any:
        """The body decoded as JSON. Raises ``InvalidMessage``."""
        return loads_json(self.body)

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies that this response sets, by name, whatever their attributes."""
        return dict(cookie_pair(value) for value in self.headers.getlist("set-cookie"))

    def __repr__(self) -> str:
        return f"TestResponse({self.status}, {self.body[:100]!r})"


class TestStream:
    """
    A response that is read while the app sends it: ``async with client.stream("GET", "/events") as response``.

    Leaving the block is the client's leaving: the app gets ``http.disconnect``, and the block waits for its end. Every
    wait is limited by the client's ``timeout``. A cancelled read has lost nothing, and an iteration that was left may
    be taken up again by another. Read either ``iter_bytes`` and ``read``, or ``iter_lines`` and ``events``.

    Attributes:
        status: HTTP status.
        headers: Its headers.
    """

    __test__ = False

    def __init__(self, call: HTTPCall, start: Callable[[], Awaitable[None]], *, timeout: float) -> None:
        self._made_call = call
        self._start = start
        self._timeout = timeout
        self._lines: deque[str] = deque()
        self._partial_line = ""
        utf8 = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
        self._parser = EventStreamParser()

    @property
    def _call(self) -> HTTPCall:
        return self._made_call.started("stream")

    @property
    def status(self) -> int:
        return self._call.status

    @property
    def headers(self) -> Headers:
        return self._call.headers

    async def __aenter__(self) -> Self:
        await self._start()
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
        """The events of a ``text/event-stream``."""
        return _Iteration(self._next_event)

    async def _next_line(self) -> str | None:
        while not self._lines:
            chunk = await self._call.next_chunk(self._timeout)
            *lines, rest = (self._partial_line + self._decoder.decode(chunk or b"", final=chunk is None)).split("\n")
            self._lines.extend(lines)
            self._partial_line = rest
            if chunk is None:
                if not rest:
                    break
                self._lines.append(rest)
                self._partial_line = ""
        return self._lines.popleft() if self._lines else None

    async def _next_event(self) -> ReceivedEvent | None:
        while (line := await self._next_line()) is not None:
            if (event := self._parser.feed(line)) is not None:
                return event
        return None


class _Iteration(AsyncIterator[T]):
    # No async generator: one that a test leaves by ``break`` is finished by the garbage collector, with a warning.
    def __init__(self, pull: Callable[[], Awaitable[T | None]]) -> None:
        self._pull = pull

    async def __anext__(self) -> T:
        item = await self._pull()
        if item is None:
            raise StopAsyncIteration
        return item


def _request_event(body: bytes, *, more_body: bool) -> Event:
    return {"type": "http.request", "body": body, "more_body": more_body}
