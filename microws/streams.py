"""Responses whose body is made while it is sent: streams, and server-sent events."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Self, TypeAlias

import anyio
from anyio.lowlevel import checkpoint
from anyio.to_thread import run_sync

from microws.handshake import HeadersLike
from microws.interfaces import Event, Receive, Scope, Send
from microws.responses import BODILESS_STATUSES, Response
from microws.sse import KEEPALIVE, ServerSentEvent

__all__ = ["CLOSE_TIMEOUT", "EventStream", "StreamingResponse", "send_until_disconnect"]

# How long a source may clean up after the client has left, in seconds: as long as App(close_timeout=) gives a view.
CLOSE_TIMEOUT = 5.0

_Part: TypeAlias = Callable[[Send], Coroutine[Any, Any, None]]


class StreamingResponse(Response):
    """
    A response whose body is made while it is sent.

    Takes the next chunk when the server took the one before. When the client leaves, the source is cancelled where it
    waits, or closed where it does not, so that its ``finally`` runs; it may clean up for 5 s. An error in the source
    leaves the response without its end, and the server then drops the connection: a client never takes a part for the
    whole.

    Args:
        source: An async iterable of ``str`` or ``bytes``; or a plain iterable, which is run in worker threads.
        status: 200 to 599. With 204 and 304, and for HEAD, the source is closed without having begun.
        headers: A mapping or ``(name, value)`` pairs.
        content_type: By default that of ``headers``, else none.

    Raises:
        TypeError: ``source`` cannot be iterated or is itself ``str`` or ``bytes``; a chunk is neither.
        ValueError: A status or header that cannot be sent.
    """

    def __init__(
        self,
        source: AsyncIterable[Any] | Iterable[Any],
        status: int = 200,
        headers: HeadersLike | None = None,
        *,
        content_type: str | None = None,
    ) -> None:
        super().__init__(b"", status, headers, content_type=content_type)
        name = type(self).__name__
        if isinstance(source, AsyncIterable):
            self._source: AsyncIterable[Any] = source
        elif not isinstance(source, str | bytes | bytearray | memoryview | dict) and isinstance(source, Iterable):
            self._source = _InThreads(source)
        else:
            raise TypeError(f"{name} takes an iterator, such as an async generator, not {type(source).__name__}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response until the source ends or the client leaves. Cancelled, it closes the source."""
        if self.status in BODILESS_STATUSES or scope["method"] == "HEAD":
            await _close(self._source)
            await send(self._start())
            await send({"type": "http.response.body", "body": b""})
            return
        # A source that subscribes to something has done so before the client can know of the response.
        iterator = aiter(self._source)
        try:
            await send(self._start())
        except BaseException:
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + CLOSE_TIMEOUT):
                await _close(iterator)
            raise
        if await self._send_source(iterator, receive, send):
            await send({"type": "http.response.body", "body": b""})

    async def _send_source(self, iterator: AsyncIterator[Any], receive: Receive, send: Send) -> bool:
        return await send_until_disconnect(receive, send, partial(self._send_chunks, iterator))

    async def _send_chunks(self, iterator: AsyncIterator[Any], send: Send) -> None:
        # Entered before any scope that the source holds while it yields, so that it is also left behind those.
        with anyio.CancelScope() as cleaning:
            try:
                # Some servers keep the headers until something follows them.
                await send(_chunk(b""))
                async for item in iterator:
                    await send(_chunk(self._encode(item)))
            finally:
                # Whoever was cancelled, from here on the source is not: it may wait while it cleans up.
                cleaning.shield = True
                cleaning.deadline = anyio.current_time() + CLOSE_TIMEOUT
                await _close(iterator)

    def _encode(self, item: Any) -> bytes:
        if isinstance(item, str):
            return item.encode()
        if isinstance(item, bytes | bytearray | memoryview):
            return bytes(item)
        raise TypeError(
            f"StreamingResponse sends str or bytes, not {type(item).__name__}; EventStream sends JSON values as events"
        )


class EventStream(StreamingResponse):
    """
    Server-sent events, for a browser's ``EventSource``. Ends when the source does; the browser then comes back.

    Holds one item at a time: a slow client slows the source down. A comment in every ``keepalive`` seconds of silence
    keeps proxies from giving up; the source is not disturbed by it. Leaving is as in ``StreamingResponse``.

    Args:
        source: An async iterable of ``ServerSentEvent``, or of what its ``data`` takes; or a plain iterable, which is
            run in worker threads.
        headers: A mapping or ``(name, value)`` pairs.
        keepalive: Seconds. Default 15, as the specification recommends.

    Raises:
        TypeError, ValueError: As ``StreamingResponse`` and ``ServerSentEvent``.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes
    """

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

    async def _send_source(self, iterator: AsyncIterator[Any], receive: Receive, send: Send) -> bool:
        stream = _KeptAlive(self._keepalive)
        return await send_until_disconnect(
            receive,
            send,
            lambda send: self._send_chunks(iterator, partial(stream.send, send)),
            stream.keep_alive,
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
                    await send(_chunk(KEEPALIVE))
                    self._due = anyio.current_time() + self._keepalive


async def send_until_disconnect(
    receive: Receive,
    send: Send,
    function: _Part,
    *beside: _Part,
) -> bool:
    """
    Run ``function(send)``, and other functions beside it, until it ends or the client leaves.

    Then the others are cancelled; when the client leaves, ``function`` too. What ``function`` raises is raised as it
    is, in no group.

    Returns:
        ``False`` when the client has left.
    """
    left = False
    error: Exception | None = None
    async with anyio.create_task_group() as tasks:

        def leave() -> None:
            nonlocal left
            left = True
            tasks.cancel_scope.cancel()

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            leave()

        async def send_or_leave(event: Event) -> None:
            try:
                await send(event)
            except OSError:
                # https://asgi.readthedocs.io/en/latest/specs/www.html#disconnected-client-send-exception
                leave()
            # Some servers' send never waits: a source that does not either would hold up the whole process.
            await checkpoint()

        tasks.start_soon(watch)
        for other in beside:
            tasks.start_soon(other, send_or_leave)
        try:
            await function(send_or_leave)
        except Exception as caught:
            error = caught
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error
    return not left


_END = object()


class _InThreads(AsyncIterator[Any]):
    """A plain iterable as an async one: each step in a worker thread. A step that has begun is waited for."""

    def __init__(self, iterable: Iterable[Any]) -> None:
        self._iterator: Any = iterable

    def __aiter__(self) -> Self:
        self._iterator = iter(self._iterator)
        return self

    async def __anext__(self) -> Any:
        item = await run_sync(next, self._iterator, _END)
        if item is _END:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            await run_sync(close)


async def _close(source: AsyncIterable[Any]) -> None:
    close = getattr(source, "aclose", None)
    if close is None:
        return
    try:
        await close()
    except BaseExceptionGroup as group:
        # A task group in an async generator wraps the GeneratorExit by which it is closed.
        _, others = group.split(GeneratorExit)
        if others is not None:
            raise others from None


def _chunk(body: bytes) -> Event:
    return {"type": "http.response.body", "body": body, "more_body": True}
