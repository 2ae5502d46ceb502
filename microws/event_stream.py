"""Server-sent events as a response: of any source, or of topics."""

import asyncio
from collections.abc import AsyncIterable, Iterable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import anyio

from microws.handshake import HeadersLike
from microws.interfaces import Event, Receive, Scope, Send
from microws.outbox import HELD, MAX_PART_BYTES, Outbox
from microws.server.deadlines import Deadlines
from microws.sse import KEEPALIVE, OPENING, ServerSentEvent
from microws.streams import Source, StreamingResponse, body_part, send_until_disconnect
from microws.subscription import Stream
from microws.tasks import running_loop

__all__ = ["EventStream"]


class EventStream(StreamingResponse):
    """
    Server-sent events, for a browser's ``EventSource``. Ends when the source does; the browser then comes back.

    Holds one item at a time: a slow client slows the source down. A comment at the beginning tells the client that the
    stream is open, and one in every ``keepalive`` seconds of silence keeps proxies from giving up; the source is not
    disturbed by them. Leaving is as in ``StreamingResponse``.

    With ``app.stream(…)`` as source, a published message is framed once for all clients, and each client has a queue
    with the bounds of a WebSocket's. Where the topic's ``overflow`` is ``"close"``, a client that is too slow has its
    stream ended, and comes back; where messages were dropped, the comment ``: gap`` stands before the next one.

    Args:
        source: What ``app.stream`` returns; an async iterable of ``ServerSentEvent``, or of what its ``data`` takes; or
            a plain iterable, which is run in worker threads.
        headers: A mapping or ``(name, value)`` pairs.
        keepalive: Seconds. Default 15, as the specification recommends.

    Raises:
        TypeError, ValueError: As ``StreamingResponse`` and ``ServerSentEvent``.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes
    """

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
        super().__init__(source, 200, headers, content_type="text/event-stream")
        self.headers.setdefault("cache-control", "no-store")
        # nginx would else collect the events in its buffer.
        self.headers.setdefault("x-accel-buffering", "no")
        self._keepalive = keepalive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the source ends or the client leaves. Cancelled, it closes the source."""
        if isinstance(self._source, Stream) and scope["method"] != "HEAD":
            await _Topics(self._source, self._keepalive).send(self._start(), receive, send)
        else:
            await super().__call__(scope, receive, send)

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


class _Topics:
    """
    The events of topics over ASGI: one task sends them, this one waits for the client to leave.

    Args:
        stream: The topics.
        keepalive: Seconds of silence before a comment.
    """

    __slots__ = ("_event", "_has_ended", "_has_left", "_keepalive", "_loop", "_stream", "_subscriber", "_waiter")

    def __init__(self, stream: Stream, keepalive: float) -> None:
        self._stream = stream
        self._keepalive = keepalive
        # asyncio's; ``None`` on trio.
        self._loop = running_loop()
        # What the sending task waits for: on asyncio the next bytes, on trio a sign that there are some.
        self._waiter: asyncio.Future[bytes] | None = None
        self._event: anyio.Event | None = None
        self._has_ended = False
        self._has_left = False

    async def send(self, start: Event, receive: Receive, send: Send) -> None:
        """Send the response, until the client leaves or would miss a message."""
        # Before the client can know of the response.
        self._subscriber = self._stream.attach(is_chunked=False, wake=self._wake, refuse=self._refuse)
        try:
            await send(start)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send_events, send, tasks.cancel_scope)
                while (await receive())["type"] != "http.disconnect":
                    pass
                self._has_left = True
                tasks.cancel_scope.cancel()
            if not self._has_left:
                await send({"type": "http.response.body", "body": b""})
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._stream.detach(self._subscriber)

    async def _send_events(self, send: Send, sending: anyio.CancelScope) -> None:
        outbox = self._subscriber.outbox
        outbox.carry = self._leave
        silences = None if self._loop is None else _silences_of(self._loop, self._keepalive)
        try:
            await send(body_part(OPENING))
            while not self._has_ended:
                if body := outbox.take(MAX_PART_BYTES) or await self._wait(outbox, silences):
                    await send(body_part(body))
        except OSError:
            # https://asgi.readthedocs.io/en/latest/specs/www.html#disconnected-client-send-exception
            self._has_left = True
        finally:
            outbox.carry = None
        sending.cancel()

    async def _wait(self, outbox: Outbox, silences: "Deadlines[_Topics] | None") -> bytes:
        """What is to be sent next; empty where the outbox has it."""
        if silences is None:
            return await self._wait_on_trio()
        assert self._loop is not None
        outbox.release()
        self._waiter = self._loop.create_future()
        silences.start(self)
        try:
            return await self._waiter
        finally:
            self._waiter = None
            silences.stop(self)

    async def _wait_on_trio(self) -> bytes:
        with anyio.move_on_after(self._keepalive):
            self._event = anyio.Event()
            await self._event.wait()
            return b""
        return KEEPALIVE

    def _leave(self) -> None:
        """What was published in this turn of the event loop is to leave: joined once for all clients."""
        outbox = self._subscriber.outbox
        batch, waiter = outbox.batch, self._waiter
        assert batch is not None
        if waiter is None or waiter.done() or outbox or batch.previous is not None:
            outbox.hold()
            self._wake()
            return
        outbox.batch = HELD
        waiter.set_result(batch.encoded)

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()
        self._send_next(b"")

    def _send_next(self, body: bytes) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(body)

    def break_silence(self) -> None:
        """Send a comment."""
        self._send_next(KEEPALIVE)

    def _refuse(self, code: int, reason: str) -> None:
        """The client would miss a message: it comes back."""
        self._has_ended = True
        self._stream.detach(self._subscriber)
        self._wake()


# How long the streams of an event loop have been silent, by their ``keepalive``. The streams hold these, the loop does
# while a timer runs.
_Silences = WeakValueDictionary[float, Deadlines[_Topics]]
_silences: WeakKeyDictionary[asyncio.AbstractEventLoop, _Silences] = WeakKeyDictionary()


def _silences_of(loop: asyncio.AbstractEventLoop, seconds: float) -> Deadlines[_Topics]:
    by_seconds = _silences.setdefault(loop, WeakValueDictionary())
    found = by_seconds.get(seconds)
    if found is None:
        found = by_seconds[seconds] = Deadlines(seconds, _Topics.break_silence)
    return found
