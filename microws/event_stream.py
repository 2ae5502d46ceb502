"""Server-sent events as a response: of any source, or of topics."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, ClassVar, Final, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

import anyio

from microws.connection.deadlines import Deadlines
from microws.handshake import HeadersLike
from microws.hub import BACKED_UP, MAX_PART_BYTES, Sink, Subscriber, running_loop
from microws.interfaces import Event, Receive, Scope, Send
from microws.sse import KEEPALIVE, OPENING, ServerSentEvent, as_chunk
from microws.streams import Source, StreamingResponse, body_part, send_until_disconnect
from microws.subscription import Stream

__all__ = ["EventStream"]

# The second one is a chunk of HTTP/1.1.
_COMMENTS: Final = (KEEPALIVE, as_chunk(KEEPALIVE))


class Connection(Sink, Protocol):
    """The connection to a client, on this package's own server."""

    on_writable: Callable[[], None] | None


class Exchange(Protocol):
    """A request and its response, on this package's own server: ``scope["microws.exchange"]``. Nothing waits."""

    @property
    def connection(self) -> Connection: ...

    @property
    def is_received(self) -> bool:
        """Whether the whole request has come."""
        ...

    @property
    def takes_chunks(self) -> bool:
        """Whether a body without a length is sent in chunks."""
        ...

    def is_own(self, send: Send, /) -> bool:
        """Whether the server gets the body as it is given to ``send``: no middleware stands between."""
        ...

    def watch_end(self, on_end: Callable[[], None], /) -> None:
        """Call ``on_end`` once, when the client has left or the server ends the response; at once where it has."""
        ...


class EventStream(StreamingResponse):
    """
    Server-sent events, for a browser's ``EventSource``. Ends when the source does; the browser then comes back.

    Holds one item at a time: a slow client slows the source down. A comment at the beginning tells the client that the
    stream is open, and one in every ``keepalive`` seconds of silence keeps proxies from giving up; the source is not
    disturbed by them. Leaving is as in ``StreamingResponse``.

    With ``app.stream(…)`` as source, a published message is encoded once for all clients, and each client has a queue
    with the same bounds as a WebSocket's. If the topic's ``overflow`` is ``"close"``, the stream of a client that is
    too slow ends, and its browser connects again. The other policies drop messages, and send the comment ``: gap``
    before the next one.

    Args:
        source: What ``app.stream`` returns; an async iterable of ``ServerSentEvent``, or of what its ``data`` takes; or
            a plain iterable, which is run in worker threads.
        headers: A mapping or ``(name, value)`` pairs.
        keepalive: Seconds. Default 15, as the specification recommends.

    Raises:
        TypeError, ValueError: As ``StreamingResponse`` and ``ServerSentEvent``.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes
    """

    can_be_direct: ClassVar[bool] = True
    # Not empty: gunicorn's worker holds the headers until the first byte of the body.
    _opening = OPENING

    def __init__(
        self,
        source: AsyncIterable[Any] | Iterable[Any],
        *,
        headers: HeadersLike | None = None,
        keepalive: float = 15.0,
    ) -> None:
        if not keepalive > 0:
            raise ValueError(f"keepalive is a number of seconds above 0, not {keepalive}")
        super().__init__(source, 200, headers)
        self.headers.pop("content-type", None)
        self.headers.add_default("content-type", "text/event-stream")
        self.headers.add_default("cache-control", "no-store")
        # nginx would else collect the events in its buffer.
        self.headers.add_default("x-accel-buffering", "no")
        self._keepalive = keepalive

    # No coroutine of its own: each of many clients would keep one.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Send events until the source ends or the client leaves. Cancelled, it closes the source."""
        source = self._source
        if not isinstance(source, Stream) or scope["method"] == "HEAD":
            return super().__call__(scope, receive, send)
        exchange: Exchange | None = scope.get("microws.exchange")
        topics: _Topics
        if exchange is not None and exchange.is_received and exchange.is_own(send):
            topics = _Direct(source, self._keepalive, exchange)
        else:
            topics = _Portable(source, self._keepalive)
        return topics.send(self._start(), receive, send)

    async def _send_source(self, source: "Source", receive: Receive, send: Send) -> bool:
        stream = _KeptAlive(self._keepalive)
        return await send_until_disconnect(
            receive,
            send,
            lambda send: self._send_chunks(source, partial(stream.send, send)),
            stream.keep_alive,
            leaving=source.leaving,
        )

    def _encode(self, item: Any) -> bytes:
        return (item if isinstance(item, ServerSentEvent) else ServerSentEvent(item)).encoded


class _KeptAlive:
    """Sends one event at a time, and a comment when there was none for ``keepalive`` seconds."""

    def __init__(self, keepalive: float) -> None:
        self._keepalive = keepalive
        self._lock = anyio.Lock(fast_acquire=True)
        self._due = anyio.current_time() + keepalive

    async def send(self, send: Send, event: Event) -> None:
        async with self._lock:
            await send(event)
            self._due = anyio.current_time() + self._keepalive

    async def keep_alive(self, send: Send) -> None:
        while True:
            await anyio.sleep_until(self._due)
            async with self._lock:
                if anyio.current_time() >= self._due:
                    await send(body_part(KEEPALIVE))
                    self._due = anyio.current_time() + self._keepalive


class _Topics(ABC):
    """
    The response to one client of topics.

    Args:
        stream: The topics.
        is_chunked: Whether each event is also a chunk of HTTP/1.1.
    """

    __slots__ = ("__weakref__", "_outbox", "_stream", "_subscriber")

    def __init__(self, stream: Stream, *, is_chunked: bool) -> None:
        self._stream = stream
        # Before the client can know of the response.
        subscriber = stream.attach(is_chunked=is_chunked, wake=self._wake, refuse=self._refuse)
        self._subscriber: Subscriber | None = subscriber
        self._outbox = subscriber.outbox

    @abstractmethod
    async def send(self, start: Event, receive: Receive, send: Send) -> None:
        """Send the response, until the client leaves or would miss a message."""

    def _detach(self) -> None:
        """Leave the hub, and let go of the subscriber, which holds this object."""
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is not None:
            self._stream.detach(subscriber)

    @abstractmethod
    def break_silence(self) -> None:
        """Send a comment."""

    @abstractmethod
    def _wake(self) -> None:
        """Something waits in the outbox."""

    @abstractmethod
    def _refuse(self, code: int, reason: str) -> None:
        """The client would miss a message: let it come back."""


class _Portable(_Topics):
    """Over ASGI, on any server: one task sends the events, this one waits for the client to leave."""

    __slots__ = ("_event", "_has_ended", "_has_left", "_keepalive", "_loop", "_waiter")

    def __init__(self, stream: Stream, keepalive: float) -> None:
        # asyncio's; ``None`` on trio.
        self._loop = running_loop()
        self._keepalive = keepalive
        # What the sending task waits for: on asyncio the next bytes, on trio a sign that there are some.
        self._waiter: asyncio.Future[bytes] | None = None
        self._event: anyio.Event | None = None
        self._has_ended = False
        self._has_left = False
        super().__init__(stream, is_chunked=False)

    async def send(self, start: Event, receive: Receive, send: Send) -> None:
        try:
            await send(start)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send_events, send, tasks.cancel_scope)
                while (await receive())["type"] != "http.disconnect":
                    pass
                self._has_left = self._has_ended = True
                if self._waiter is None and self._event is None:
                    # The sending task is within ``send``, which waits for the client.
                    tasks.cancel_scope.cancel()
                self._wake()
            if not self._has_left:
                await send({"type": "http.response.body", "body": b""})
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._detach()

    async def _send_events(self, send: Send, sending: anyio.CancelScope) -> None:
        outbox = self._outbox
        outbox.carry = self._leave
        silences = None if self._loop is None else _silences_of(self._loop, self._keepalive)
        try:
            await send(body_part(OPENING))
            while not self._has_ended:
                if body := outbox.take(MAX_PART_BYTES) or await self._wait(silences):
                    await send(body_part(body))
        except OSError:
            # https://asgi.readthedocs.io/en/latest/specs/www.html#disconnected-client-send-exception
            self._has_left = True
            sending.cancel()
        finally:
            outbox.carry = None
        if not self._has_left:
            sending.cancel()

    async def _wait(self, silences: Deadlines[_Topics] | None) -> bytes:
        """What is to be sent next; empty where the outbox has it."""
        if silences is None:
            return await self._wait_on_trio()
        assert self._loop is not None
        self._outbox.release()
        self._waiter = self._loop.create_future()
        silences.start(self)
        try:
            return await self._waiter
        finally:
            self._waiter = None
            silences.stop(self)

    async def _wait_on_trio(self) -> bytes:
        self._event = anyio.Event()
        try:
            with anyio.move_on_after(self._keepalive):
                await self._event.wait()
                return b""
        finally:
            self._event = None
        return KEEPALIVE

    def _leave(self) -> None:
        """What was published in this turn of the event loop is to leave: joined once for all clients."""
        outbox, waiter = self._outbox, self._waiter
        batch = outbox.batch
        assert batch is not None
        if waiter is None or waiter.done() or outbox or batch.previous is not None:
            outbox.hold()
            self._wake()
            return
        outbox.batch = BACKED_UP
        waiter.set_result(batch.encoded)

    def break_silence(self) -> None:
        self._send_next(KEEPALIVE)

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()
        self._send_next(b"")

    def _send_next(self, body: bytes) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(body)

    def _refuse(self, code: int, reason: str) -> None:
        self._has_ended = True
        self._detach()
        self._wake()


class _Direct(_Topics):
    """
    On this package's own server: events go from the outbox to the connection, as a WebSocket's messages do.

    This task only waits for the end. A comment is sent every ``keepalive`` seconds, whether there were events or not:
    a stream is not told what the server writes to many at once.
    """

    __slots__ = ("_connection", "_end", "_exchange", "_keepalive", "_silences")

    def __init__(self, stream: Stream, keepalive: float, exchange: Exchange) -> None:
        self._exchange = exchange
        self._connection = exchange.connection
        loop = asyncio.get_running_loop()
        self._silences = _silences_of(loop, keepalive)
        self._end = loop.create_future()
        super().__init__(stream, is_chunked=exchange.takes_chunks)

    async def send(self, start: Event, receive: Receive, send: Send) -> None:
        try:
            await send(start)
            del start
            await send(body_part(OPENING))
            self._outbox.sink = self._connection
            self._connection.on_writable = self._wake
            self._silences.start(self)
            self._exchange.watch_end(self._leave)
            self._wake()
            await self._end
        except OSError:
            # https://asgi.readthedocs.io/en/latest/specs/www.html#disconnected-client-send-exception
            pass
        finally:
            self._leave()

    def _wake(self) -> None:
        connection, outbox = self._connection, self._outbox
        if outbox.sink is None:
            return
        while connection.is_writable and not connection.is_lost:
            if not outbox:
                outbox.release()
                return
            connection.write(outbox.take(MAX_PART_BYTES))

    def break_silence(self) -> None:
        self._silences.start(self)
        if self._connection.is_writable and not self._connection.is_lost and not self._outbox.has_waiting:
            self._connection.write(_COMMENTS[self._exchange.takes_chunks])

    def _refuse(self, code: int, reason: str) -> None:
        self._outbox.clear()
        self._connection.close(code, reason)

    def _leave(self) -> None:
        """The client has left, or the server ends the stream: what was published before leaves first."""
        self._silences.stop(self)
        connection, outbox = self._connection, self._outbox
        if outbox.sink is not None:
            outbox.sink = connection.on_writable = None
            if not connection.is_lost and (rest := outbox.take_all()):
                connection.write(rest)
        self._detach()
        if not self._end.done():
            self._end.set_result(None)


# How long the streams of an event loop have been silent, by their ``keepalive``. The streams hold these, the loop does
# while a timer runs.
_Silences = WeakValueDictionary[float, Deadlines[_Topics]]
_silences: WeakKeyDictionary[asyncio.AbstractEventLoop, _Silences] = WeakKeyDictionary()


def _silences_of(loop: asyncio.AbstractEventLoop, seconds: float) -> Deadlines[_Topics]:
    by_seconds = _silences.setdefault(loop, WeakValueDictionary())
    found = by_seconds.get(seconds)
    if found is None:
        found = by_seconds[seconds] = Deadlines(seconds, lambda topics: topics.break_silence())
    return found
