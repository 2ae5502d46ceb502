"""Responses whose body is produced while it is sent."""

import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Generator, Iterable
from functools import partial
from types import AsyncGeneratorType, coroutine
from typing import Any, Self, TypeAlias

import anyio
from anyio.lowlevel import checkpoint

from microws.handshake import HeadersLike
from microws.interfaces import Event, Receive, Scope, Send
from microws.responses import BODILESS_STATUSES, Response
from microws.threads import Threads, threads_of

__all__ = ["Source", "StreamingResponse", "body_part", "send_until_disconnect"]

# Seconds that a source has to clean up if no App sends the response; an App has its own close_timeout.
_CLOSE_TIMEOUT = 5.0

_Part: TypeAlias = Callable[[Send], Coroutine[Any, Any, None]]

_log = logging.getLogger("microws")


class StreamingResponse(Response):
    """
    A response whose body is produced while it is sent.

    Takes the next chunk after the server took the one before. When the client disconnects, the source is cancelled if
    it waits, and closed if it does not, so that its ``finally`` and ``async with`` blocks run. They may wait: nothing
    cancels them for ``App(close_timeout=5)`` seconds. A generator whose client disconnects before the first chunk is
    started nevertheless, and cancelled at its first wait. After an error in the source the response has no end, and the
    server drops the connection: a client never takes a part for the whole.

    Args:
        source: An async iterable of ``str`` or ``bytes``; or a plain iterable, which is run in worker threads.
        status: 200 to 599. With 204 and 304, and for HEAD, the source is closed before it is started, so that the
            ``finally`` of a generator does not run; see ``Request.on_close``.
        headers: A mapping or ``(name, value)`` pairs.
        content_type: Default: that of ``headers``, if there is one.

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
        if isinstance(source, AsyncIterable):
            self._source: AsyncIterable[Any] = source
        elif not isinstance(source, str | bytes | bytearray | memoryview | dict) and isinstance(source, Iterable):
            self._source = _InThreads(source)
        else:
            name = type(self).__name__
            raise TypeError(f"{name} expected an iterator, such as an async generator, got {type(source).__name__}")

    # Sent at once: some servers hold the headers back until something follows them.
    _opening: bytes = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response until the source ends or the client disconnects. Cancelled, it closes the source."""
        seconds: float = getattr(scope.get("app"), "close_timeout", _CLOSE_TIMEOUT)
        if isinstance(self._source, _InThreads):
            self._source.threads = threads_of(scope)
        if self.status in BODILESS_STATUSES or scope["method"] == "HEAD":
            with anyio.move_on_after(seconds, shield=True):
                await _close(self._source)
            await send(self._start())
            await send({"type": "http.response.body", "body": b""})
            return
        # Before the head is sent: what is published once the client has it is for the client.
        source = Source(aiter(self._source), seconds, scope["path"])
        try:
            await send(self._start())
        except BaseException:
            with source.leaving:
                source.leaving.cancel()
                await self._send_chunks(source, _send_nothing)
            raise
        if await self._send_source(source, receive, send):
            await send({"type": "http.response.body", "body": b""})

    async def _send_source(self, source: "Source", receive: Receive, send: Send) -> bool:
        return await send_until_disconnect(receive, send, partial(self._send_chunks, source), leaving=source.leaving)

    async def _send_chunks(self, source: "Source", send: Send) -> None:
        async def send_all() -> None:
            await send(body_part(self._opening))
            async for item in source:
                await send(body_part(self._encode(item)))

        await source.use(send_all)

    def _encode(self, item: Any) -> bytes:
        if isinstance(item, str):
            return item.encode()
        if isinstance(item, bytes | bytearray | memoryview):
            return bytes(item)
        raise TypeError(
            f"StreamingResponse expected str or bytes, got {type(item).__name__}; EventStream sends values as JSON"
        )


class Source:
    """
    The items of an iterator. After its cancellation the iterator has ``seconds`` to clean up, and may wait meanwhile.

    Args:
        iterator: Used once.
        seconds: From the cancellation, or from the end of the response.
        path: For the log.

    Attributes:
        leaving: Cancel it when nothing more can be sent.
    """

    def __init__(self, iterator: AsyncIterator[Any], seconds: float, path: str) -> None:
        self.leaving: anyio.CancelScope = anyio.CancelScope(shield=True)
        self._iterator = iterator
        self._seconds = seconds
        self._path = path
        # Entered before the scopes that the iterator holds while it yields, and left after the iterator was closed.
        self._cleaning = anyio.CancelScope()
        # Closing a generator that was never started would not run its ``finally``.
        self._has_begun = not isinstance(iterator, AsyncGeneratorType | _InThreads)

    async def use(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Call ``function``, which iterates over this, and close the iterator."""
        failure: BaseException | None = None
        try:
            with self._cleaning:
                try:
                    await function()
                except BaseException as error:
                    failure = error
                    raise
                finally:
                    await self._end()
            if failure is not None:
                # ``_cleaning`` swallowed it, because the time to clean up was over.
                raise failure
        finally:
            # The exception refers to this frame: without this both would be left to the garbage collector.
            failure = None

    def __aiter__(self) -> Self:
        return self

    @coroutine
    def __anext__(self) -> Generator[Any, Any, Any]:
        """
        Await the next item. Once it is cancelled, the iterator may wait, to clean up.

        trio and anyio cancel every wait in a cancelled scope, not only the first. So the shield has to be set up after
        the event loop cancels the wait, and before the iterator sees the cancellation: hence this coroutine, which
        passes on each step by hand.
        """
        self._has_begun = True
        step = self._step()
        try:
            waits_for = step.send(None)
            while True:
                try:
                    value = yield waits_for
                except BaseException as error:
                    # asyncio throws the cancellation.
                    self._notice(error)
                    waits_for = step.throw(error)
                else:
                    # trio sends an outcome that holds it.
                    self._notice(getattr(value, "error", None))
                    waits_for = step.send(value)
        except StopIteration as stop:
            item = stop.value
        if self._cleaning.shield:
            raise StopAsyncIteration
        return item

    async def _step(self) -> Any:
        return await anext(self._iterator)

    def _notice(self, error: object) -> None:
        # Otherwise the cancellation is one of the iterator's own, such as a time-out.
        if self.leaving.cancel_called and isinstance(error, anyio.get_cancelled_exc_class()):
            self._clean_up()

    def _clean_up(self) -> None:
        if not self._cleaning.shield:
            self._cleaning.shield = True
            self._cleaning.deadline = anyio.current_time() + self._seconds

    async def _end(self) -> None:
        try:
            if not self._has_begun:
                self.leaving.cancel()
                if isinstance(self._iterator, _InThreads):
                    # The scope would cancel the wait for a free thread, and the iterator would not be started.
                    self._clean_up()
                async for _ in self:
                    break
        finally:
            self._clean_up()
            try:
                await _close(self._iterator)
            finally:
                if self._cleaning.cancel_called:
                    _log.warning("%r: the source of a stream did not clean up within %g s", self._path, self._seconds)


async def send_until_disconnect(
    receive: Receive, send: Send, function: _Part, *beside: _Part, leaving: "anyio.CancelScope | None" = None
) -> bool:
    """
    Run ``function(send)``, and the functions ``beside`` it, until it ends or the client disconnects.

    Then the others are cancelled. If the client disconnects, or this is cancelled, ``function`` is cancelled too. An
    exception of ``function`` is raised as it is, not in a group.

    Args:
        leaving: The scope in which ``function`` runs. It is cancelled in order to cancel ``function``, and shields it
            from other cancellations.

    Returns:
        ``False`` if the client disconnected.
    """
    left = False
    failure: Exception | None = None
    ended = anyio.Event()
    watching = anyio.CancelScope()
    stopping = anyio.CancelScope(shield=True) if leaving is None else leaving

    def leave() -> None:
        nonlocal left
        left = True
        stopping.cancel()

    async def send_or_leave(event: Event) -> None:
        try:
            await send(event)
        except OSError:
            # https://asgi.readthedocs.io/en/latest/specs/www.html#disconnected-client-send-exception
            leave()
        # Some servers' ``send`` never waits. If the source does not wait either, it would block the event loop.
        await checkpoint()

    async def run() -> None:
        nonlocal failure
        try:
            with stopping:
                await function(send_or_leave)
        except Exception as error:
            failure = error
        finally:
            ended.set()
            watching.cancel()

    async with anyio.create_task_group() as tasks:
        for other in beside:
            tasks.start_soon(other, send_or_leave)
        tasks.start_soon(run)
        try:
            with watching:
                while (await receive())["type"] != "http.disconnect":
                    pass
                leave()
        finally:
            stopping.cancel()
            with anyio.CancelScope(shield=True):
                await ended.wait()
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return not left


async def _send_nothing(_: Event) -> None:
    await checkpoint()


_END = object()


class _InThreads(AsyncIterator[Any]):
    """A plain iterable as an async one: each step runs in a worker thread. A step that was started is waited for."""

    threads: Threads

    def __init__(self, iterable: Iterable[Any]) -> None:
        self._iterator: Any = iterable

    def __aiter__(self) -> Self:
        self._iterator = iter(self._iterator)
        return self

    async def __anext__(self) -> Any:
        item = await self.threads.run("generators", next, self._iterator, _END)
        if item is _END:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            await self.threads.run("generators", close)


async def _close(source: AsyncIterable[Any]) -> None:
    close = getattr(source, "aclose", None)
    if close is None:
        return
    try:
        await close()
    except BaseExceptionGroup as group:
        # A task group in an async generator wraps the GeneratorExit that closes the generator.
        _, others = group.split(GeneratorExit)
        if others is not None:
            raise others from None


def body_part(body: bytes) -> Event:
    return {"type": "http.response.body", "body": body, "more_body": True}
