"""
Server-sent events: one event, topics as events, and the response.

``EventStream(app.stream("t"))`` is a response that an outbox feeds. On this package's own server the outbox writes to
the client's connection, as that of a WebSocket does. On other servers, and behind middleware, a task sends what is in
it.
"""

import asyncio
import re
from base64 import b64encode
from collections.abc import AsyncIterable, Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, ClassVar, Final, TypeAlias, final
from weakref import WeakValueDictionary

import anyio

from microws.closing import CloseCode
from microws.codec import MessageCodec, dumps_json
from microws.connection.deadlines import deadlines_of
from microws.datastructures import Headers
from microws.errors import Overflow
from microws.handshake import HeadersLike
from microws.hub import (
    LIVE_CODEC,
    FrameCodec,
    Hub,
    Outbox,
    Published,
    Subscriber,
    TopicSettings,
    check_topic,
    join_positions,
    live_announcement,
    running_loop,
    split_positions,
)
from microws.interfaces import Event, Frame, Payload, Receive, Scope, Send, Sink
from microws.streams import Source, StreamingResponse, body_part, send_until_disconnect
from microws.subscription import TopicQueue

__all__ = ["KEEPALIVE", "EventName", "EventStream", "ServerSentEvent", "Stream", "event_codec"]

EventName: TypeAlias = str | Callable[[str], str | None] | None

# https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
_END_OF_LINE = re.compile(r"\r\n|\r|\n")
_END_OF_ENCODED_LINE = re.compile(rb"\r\n|\r|\n")
_UNSAFE_IN_FIELD = re.compile(r"[\x00\r\n]")

# Comments, which clients ignore. The first one tells the client that the stream is open.
_OPENING = b":\n"
KEEPALIVE = b": keepalive\n\n"

# A position that no log knows.
_UNKNOWN: Final = "?"

_numbers = count(1)


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """
    One event of an ``EventStream``; encoded once, even if many streams send it.

    Args:
        data: ``str`` as it is; ``bytes`` as text in UTF-8; any other value as JSON. A line end of any kind arrives as
            ``\\n``.
        event: Its type, which ``addEventListener`` names. Default: ``message``.
        id: What a browser sends as ``Last-Event-ID`` when it reconnects.
        retry: Milliseconds that a browser waits before it reconnects.

    Raises:
        TypeError: JSON cannot represent ``data``.
        ValueError: ``data`` cannot be encoded; a line end or NUL in ``event`` or ``id``; a negative ``retry``.

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
                    raise ValueError(f"expected an event's {name} without line ends and NUL, got {value!r}")
                lines.append(f"{name}: {value}")
        if self.retry is not None:
            lines.append(_retry_line(self.retry))
        if isinstance(self.data, str):
            text = self.data
        else:
            text = (self.data if isinstance(self.data, bytes) else dumps_json(self.data)).decode()
        lines.extend(f"data: {line}" for line in _END_OF_LINE.split(text))
        object.__setattr__(self, "encoded", "\n".join([*lines, "", ""]).encode())


def _retry_line(retry: int) -> str:
    if retry < 0:
        raise ValueError(f"expected retry to be a number of milliseconds, 0 or more, got {retry}")
    return f"retry: {int(retry)}"


# Published values as events


@final
class _EventCodec:
    """
    Frames published values as events of one type, for a response that is sent in chunks or not.

    ``token`` makes an event's id of the payload, if the stream has several topics. Default: its position. With
    ``has_envelope`` the data are the frames of ``microws.v1``.
    """

    __slots__ = ("__weakref__", "_has_envelope", "_head", "_is_chunked", "_token")

    def __init__(
        self,
        event: str | None,
        *,
        is_chunked: bool,
        token: Callable[[Payload], str] | None = None,
        has_envelope: bool = False,
    ) -> None:
        self._head = b"data: " if event is None else f"event: {event}\ndata: ".encode()
        self._is_chunked = is_chunked
        self._token = token
        self._has_envelope = has_envelope

    def frame(self, payload: Payload) -> Frame:
        """A text message as it is, ``bytes`` as base64, anything else as JSON."""
        if self._has_envelope:
            data = LIVE_CODEC.frame(payload).data
        else:
            data = b64encode(payload.data) if payload.kind == "bytes" else payload.data
        if b"\n" in data or b"\r" in data:
            data = _END_OF_ENCODED_LINE.sub(b"\ndata: ", data)
        event = self._head + data + b"\n\n"
        if payload.position is not None:
            token = payload.position if self._token is None else self._token(payload)
            event = b"id: %b\n%b" % (token.encode(), event)
        return Frame(_as_chunk(event) if self._is_chunked else event, is_encoded=True)


_codecs: WeakValueDictionary[tuple[str | None, bool, Hub | None, tuple[str, ...], bool], _EventCodec] = (
    WeakValueDictionary()
)


def event_codec(
    event: str | None,
    *,
    is_chunked: bool,
    hub: Hub | None = None,
    topics: tuple[str, ...] = (),
    has_envelope: bool = False,
) -> FrameCodec:
    """
    The codec of an event's type: all streams share it, so that a published message is framed once for all.

    Args:
        hub, topics: Those of a stream of several topics with history: an id holds the positions of all. Default: an id
            is the position of the message.
        has_envelope: As of ``Stream``.
    """
    key = event, is_chunked, hub, topics, has_envelope
    codec = _codecs.get(key)
    if codec is None:
        token = None if hub is None else partial(_token, topics, hub.known_position)
        codec = _codecs[key] = _EventCodec(event, is_chunked=is_chunked, token=token, has_envelope=has_envelope)
    return codec


def _token(topics: tuple[str, ...], known: Callable[[str], str | None], payload: Payload) -> str:
    """The id of a message in a stream of several topics, whose other positions are ``known``."""
    return join_positions(payload.position if topic == payload.topic else known(topic) for topic in topics)


def _as_chunk(data: bytes) -> bytes:
    """One chunk of a response in HTTP/1.1. Source: RFC 9112 §7.1."""
    return b"%x\r\n%b\r\n" % (len(data), data)


# As it is and as a chunk: index it with ``is_chunked``.
_KEEPALIVES: Final = (KEEPALIVE, _as_chunk(KEEPALIVE))


def _announcement(
    topics: tuple[str, ...],
    is_chunked: bool,
    has_envelope: bool,
    positions: Mapping[str, str],
    asked: Collection[str],
    lost: Collection[str],
) -> list[Published]:
    """
    What a stream with history begins with; see ``Announce``.

    A client that comes back too late gets an event of the type ``gap``. A new one gets an id alone: it sends that when
    it comes back, even if it has got no event.
    """
    token = join_positions(positions.get(topic) for topic in topics)
    if has_envelope:
        events = [
            ServerSentEvent(each.frame.text, id=token).encoded for each in live_announcement(positions, asked, lost)
        ]
    elif asked:
        events = [_gap_event(topic, token) for topic in lost]
    else:
        events = [f"id: {token}\n\n".encode()]
    frames = [Frame(_as_chunk(event) if is_chunked else event, is_encoded=True) for event in events]
    return [Published(frame, "", TopicSettings(), is_gap=True) for frame in frames]


def _gap_event(topic: str, token: str | None = None) -> bytes:
    return ServerSentEvent({"topic": topic, "gap": True}, event="gap", id=token).encoded


def _gap_marker(topic: str, settings: TopicSettings, *, is_chunked: bool, has_envelope: bool) -> Published:
    event = ServerSentEvent({"topic": topic, "gap": True}).encoded if has_envelope else _gap_event(topic)
    frame = Frame(_as_chunk(event) if is_chunked else event, is_encoded=True)
    return Published(frame, topic, settings, is_gap=True)


class Stream:
    """
    Some topics as server-sent events: what ``app.stream`` returns and ``EventStream`` takes.

    A text message is sent as it is, ``bytes`` as base64, anything else as JSON. If the app itself iterates over it, it
    subscribes when the iteration begins, and the iteration ends where a message was lost. With ``has_envelope``, the
    data of each event is a frame of ``microws.v1``.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    __slots__ = ("_codec", "_events", "_has_envelope", "_hub", "_queue", "since")

    def __init__(
        self,
        hub: Hub,
        codec: MessageCodec,
        topics: tuple[str, ...],
        event: EventName,
        since: str | None = None,
        *,
        has_envelope: bool = False,
    ) -> None:
        if not topics:
            raise TypeError("expected at least one topic, got none: app.stream(topic)")
        for topic in topics:
            check_topic(topic)
        self._events = {topic: _event_name(event, topic) for topic in topics}
        self._hub = hub
        self._codec = codec
        self._queue: TopicQueue | None = None
        self.since: str | None = since
        self._has_envelope = has_envelope

    def subscriber(self, *, is_chunked: bool, refuse: Callable[[int, str], None]) -> Subscriber:
        """
        The subscriber of a response. Its outbox gets encoded events.

        Args:
            is_chunked: Whether each event is also a chunk of HTTP/1.1.
            refuse: See ``Subscriber``.

        Raises:
            RuntimeError: The app does not run, or runs in another event loop.
        """
        hub = self._hub
        hub.loop.check("anyio.from_thread.run(function), where the `async def` function sends the response")
        topics = tuple(self._events)
        has_token = len(topics) > 1 and any(hub.settings(topic).history for topic in topics)
        shared: tuple[Hub | None, tuple[str, ...]] = (hub, topics) if has_token else (None, ())
        codecs = {
            topic: event_codec(
                event, is_chunked=is_chunked, hub=shared[0], topics=shared[1], has_envelope=self._has_envelope
            )
            for topic, event in self._events.items()
        }
        distinct = set(codecs.values())
        marker = partial(_gap_marker, is_chunked=is_chunked, has_envelope=self._has_envelope)
        outbox = Outbox(marker=marker, losses=hub.losses)
        return Subscriber(
            id=f"events-{next(_numbers)}",
            codec=codecs if len(distinct) > 1 else distinct.pop(),
            outbox=outbox,
            wake=outbox.drain,
            refuse=refuse,
            announce=partial(_announcement, topics, is_chunked, self._has_envelope),
        )

    async def attach(
        self,
        subscriber: Subscriber,
        last_event_id: str | None,
        *,
        is_chunked: bool,
        disconnect: Callable[[int, str], None],
    ) -> None:
        """
        Subscribe a response.

        Args:
            last_event_id: What the client has got, if it reconnects. Default: ``since`` of ``app.stream`` counts.
            disconnect: Ends the response for ``Hub.disconnect``.
        """
        topics = tuple(self._events)
        self._hub.disconnects[subscriber.id] = disconnect
        since = split_positions(topics, last_event_id or self.since)
        if since is not None and len(topics) > 1:
            # It was not known what the client had of these topics.
            since |= {topic: _UNKNOWN for topic in topics if not since[topic] and self._hub.settings(topic).history}
            # Until it has all that it missed, its ids have the positions that it has reached.
            reached: dict[str, str | None] = {}
            announce = partial(_announcement, topics, is_chunked, self._has_envelope)

            def begin(positions: Mapping[str, str], asked: Collection[str], lost: Collection[str]) -> list[Published]:
                reached.update(positions)
                return announce(positions, asked, lost)

            def token(payload: Payload) -> str:
                reached[payload.topic] = payload.position
                return _token(topics, reached.get, payload)

            subscriber.announce = begin
            subscriber.replay_codecs = {
                topic: _EventCodec(event, is_chunked=is_chunked, token=token, has_envelope=self._has_envelope)
                for topic, event in self._events.items()
            }
        await self._hub.subscribe(subscriber, *topics, since=since)

    def detach(self, subscriber: Subscriber) -> None:
        """Unsubscribe a response, and forget what is in its outbox."""
        self._hub.disconnects.pop(subscriber.id, None)
        self._hub.leave(subscriber)
        subscriber.outbox.clear()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> ServerSentEvent:
        topics = tuple(self._events)
        if self._queue is None:
            queue = TopicQueue(self._hub, self._codec, topics, is_connection=True)
            try:
                await queue.open(split_positions(topics, self.since))
            except BaseException:
                queue.close()
                raise
            self._queue = queue
        try:
            message = await self._queue.get()
        except Overflow:
            await self.aclose()
            message = None
        if message is None:
            raise StopAsyncIteration
        frame = message.frame
        data = frame.text if frame.is_text else b64encode(frame.data).decode()
        position = message.position if len(topics) == 1 else None
        return ServerSentEvent(data, event=self._events[message.topic], id=position)

    async def aclose(self) -> None:
        """End the iteration and its subscription."""
        self._queue = self._queue or TopicQueue(self._hub, self._codec, tuple(self._events))
        self._queue.close()


def _event_name(event: EventName, topic: str) -> str | None:
    name = event(topic) if callable(event) else event
    if name is not None and not isinstance(name, str):
        raise TypeError(f"expected event=None, a str or a function of the topic that returns one, got {name!r}")
    # It refuses line ends and NUL.
    return ServerSentEvent("", event=name).event


# The response


class EventStream(StreamingResponse):
    """
    Server-sent events, for a browser's ``EventSource``. Ends when the source ends; the browser then reconnects.

    Holds one item at a time: a slow client slows the source down. A comment at the beginning tells the client that the
    stream is open. During silence a comment every ``keepalive`` seconds keeps proxies from closing the connection; it
    does not disturb the source. A client that disconnects is handled as in ``StreamingResponse``.

    With ``app.stream(…)`` as source, a published message is encoded once for all clients, and each client has a queue
    with the limits and the policy of ``app.topic``. The response ends where the client would miss a message. If the
    policy drops messages, an event of the type ``gap`` tells the client before the next one.

    Args:
        source: What ``app.stream`` returns; an async iterable of ``ServerSentEvent``, or of what its ``data`` takes; or
            a plain iterable, which is run in worker threads.
        headers: A mapping or ``(name, value)`` pairs.
        keepalive: Seconds. Default 15, as the specification recommends.
        retry: Milliseconds that a browser waits before it reconnects. Default: what the browser does, such as 3,000.

    Raises:
        TypeError, ValueError: As ``StreamingResponse`` and ``ServerSentEvent``.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes
    """

    can_be_direct: ClassVar[bool] = True
    # Not empty: gunicorn's worker holds the headers back until the first byte of the body.
    _opening = _OPENING

    def __init__(
        self,
        source: AsyncIterable[Any] | Iterable[Any],
        *,
        headers: HeadersLike | None = None,
        keepalive: float = 15.0,
        retry: int | None = None,
    ) -> None:
        if not keepalive > 0:
            raise ValueError(f"expected keepalive to be a number of seconds above 0, got {keepalive}")
        super().__init__(source, 200, headers)
        self.headers.pop("content-type", None)
        self.headers.add_default("content-type", "text/event-stream")
        self.headers.add_default("cache-control", "no-store")
        # Without it nginx collects the events in its buffer.
        self.headers.add_default("x-accel-buffering", "no")
        self._keepalive = keepalive
        if retry is not None:
            self._opening = _OPENING + f"{_retry_line(retry)}\n\n".encode()

    # Not ``async def``: each of many clients would keep one more coroutine.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Send events until the source ends or the client disconnects. If it is cancelled, it closes the source."""
        source = self._source
        if not isinstance(source, Stream) or scope["method"] == "HEAD":
            return super().__call__(scope, receive, send)
        exchange = scope.get("microws.exchange")
        events: _DirectEvents | _PortableEvents
        if exchange is not None and exchange.is_received and exchange.is_own(send):
            events = _DirectEvents(source, self._keepalive, exchange)
        else:
            events = _PortableEvents(source, self._keepalive)
        last_event_id = Headers(scope["headers"]).get("last-event-id")
        return events.send([self._start(), body_part(self._opening)], receive, send, last_event_id)

    async def _send_source(self, source: Source, receive: Receive, send: Send) -> bool:
        lock = anyio.Lock(fast_acquire=True)
        due = anyio.current_time() + self._keepalive

        async def send_event(send: Send, event: Event, *, if_due: bool = False) -> None:
            nonlocal due
            async with lock:
                if not if_due or anyio.current_time() >= due:
                    await send(event)
                    due = anyio.current_time() + self._keepalive

        async def keep_alive(send: Send) -> None:
            while True:
                await anyio.sleep_until(due)
                await send_event(send, body_part(KEEPALIVE), if_due=True)

        return await send_until_disconnect(
            receive,
            send,
            lambda send: self._send_chunks(source, partial(send_event, send)),
            keep_alive,
            leaving=source.leaving,
        )

    def _encode(self, item: Any) -> bytes:
        return (item if isinstance(item, ServerSentEvent) else ServerSentEvent(item)).encoded


class _TopicEvents:
    """
    The events of some topics for one client: what the outbox writes to ``sink``.

    A comment is sent every ``keepalive`` seconds, even if there were events: what is written to many connections at
    once does not pass here.

    Args:
        stream: The topics.
        keepalive: Seconds between two comments.
        sink: The way to the client.
        is_chunked: Whether each event is also a chunk of HTTP/1.1.
    """

    __slots__ = ("__weakref__", "_is_chunked", "_outbox", "_silences", "_sink", "_stream", "_subscriber")

    def __init__(self, stream: Stream, keepalive: float, sink: Sink, *, is_chunked: bool) -> None:
        # ``None`` on trio.
        loop = running_loop()
        self._silences = None if loop is None else deadlines_of(loop, keepalive, _TopicEvents.break_silence)
        self._sink: Sink | None = sink
        self._is_chunked = is_chunked
        self._stream = stream
        subscriber = stream.subscriber(is_chunked=is_chunked, refuse=self._refuse)
        self._subscriber: Subscriber | None = subscriber
        self._outbox = subscriber.outbox

    def break_silence(self) -> None:
        """Send a comment, unless something else is being sent."""
        if self._silences is not None:
            self._silences.start(self)
        sink = self._outbox.sink
        if sink is not None and sink.is_writable and not sink.is_lost and not self._outbox.has_waiting:
            sink.write(_KEEPALIVES[self._is_chunked])

    async def _attach(self, last_event_id: str | None) -> None:
        """Subscribe. Before the head of the response: what is published once the client has it is for the client."""
        assert self._subscriber is not None
        await self._stream.attach(
            self._subscriber, last_event_id, is_chunked=self._is_chunked, disconnect=self._disconnect
        )

    def _start(self) -> None:
        """From now on the outbox writes to the sink."""
        self._outbox.sink = self._sink
        if self._silences is not None:
            self._silences.start(self)
        self._outbox.drain()

    def _refuse(self, code: int, reason: str) -> None:
        """End the response, because the client would miss a message: it reconnects."""
        self._outbox.clear()
        if self._sink is not None:
            self._sink.close(code, reason)

    def _disconnect(self, _code: int, reason: str) -> None:
        """End the response after what was published before. A client of HTTP learns neither code nor reason."""
        if self._sink is not None:
            self._sink.close(CloseCode.TRY_AGAIN_LATER, reason)

    def _detach(self) -> None:
        """Unsubscribe."""
        if self._silences is not None:
            self._silences.stop(self)
        # Subscriber and sink refer to this object: otherwise they would be left to the garbage collector.
        self._sink = self._outbox.sink = None
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is not None:
            self._stream.detach(subscriber)


class _PortableEvents(_TopicEvents):
    """On any server. One task sends the events, this one waits for the client to disconnect. This is also the sink."""

    __slots__ = ("_body", "_has_ended", "_has_left", "_keepalive", "_loop", "_waiter", "is_writable")

    # Of a sink. ``is_writable`` while the sending task waits for something to send.
    socket: int | None = None
    is_lost = False

    def __init__(self, stream: Stream, keepalive: float) -> None:
        # asyncio's; ``None`` on trio.
        self._loop = running_loop()
        self._keepalive = keepalive
        self._waiter: asyncio.Future[None] | anyio.Event | None = None
        # What the sending task sends next; empty at the end.
        self._body = b""
        self.is_writable = self._has_ended = self._has_left = False
        super().__init__(stream, keepalive, self, is_chunked=False)

    async def send(self, head: list[Event], receive: Receive, send: Send, last_event_id: str | None) -> None:
        """Send the response, which begins with ``head``, until the client disconnects or would miss a message."""
        try:
            await self._attach(last_event_id)
            start, opening = head
            await send(start)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send_events, opening, send, tasks.cancel_scope)
                if self._loop is None:
                    tasks.start_soon(self._keep_alive)
                while (await receive())["type"] != "http.disconnect":
                    pass
                self._has_left = True
                if not self.is_writable:
                    # The sending task is within ``send``, which waits for the client. If it waits for events, it is
                    # woken instead: a cancelled wait would leave objects to the garbage collector.
                    tasks.cancel_scope.cancel()
                self._end()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._detach()

    async def _send_events(self, opening: Event, send: Send, response: "anyio.CancelScope") -> None:
        try:
            await send(opening)
            if self._loop is None:
                # On trio there are no batches.
                self._outbox.retire()
            self._start()
            while body := await self._next():
                await send(body_part(body))
            if not self._has_left:
                await send({"type": "http.response.body", "body": b""})
        except OSError:
            # The client disconnected.
            # https://asgi.readthedocs.io/en/latest/specs/www.html#disconnected-client-send-exception
            pass
        response.cancel()

    async def _next(self) -> bytes:
        """Wait for what is to be sent next; empty at the end."""
        if not self._has_ended:
            waiter = self._waiter = anyio.Event() if self._loop is None else self._loop.create_future()
            self.is_writable = True
            try:
                self._outbox.drain()
                await (waiter if isinstance(waiter, asyncio.Future) else waiter.wait())
            finally:
                self.is_writable = False
        body, self._body = self._body, b""
        return body

    async def _keep_alive(self) -> None:
        while True:
            await anyio.sleep(self._keepalive)
            self.break_silence()

    def buffered(self) -> int:
        """Nothing is buffered here."""
        return 0

    def write(self, frames: bytes | memoryview) -> None:
        """Have the sending task, which waits, send ``frames``."""
        self._body = bytes(frames)
        self._resume()

    def close(self, code: int, reason: str) -> None:
        """End the response after what is pending."""
        self._body += self._outbox.take_all()
        self._end()
        self._detach()

    def _end(self) -> None:
        self._has_ended = True
        if self.is_writable:
            self._resume()

    def _resume(self) -> None:
        self.is_writable = False
        waiter = self._waiter
        if isinstance(waiter, anyio.Event):
            waiter.set()
        elif waiter is not None:
            waiter.set_result(None)


class _DirectEvents(_TopicEvents):
    """
    On this package's own server: the outbox writes to the connection, as for a WebSocket. This task only waits.

    ``exchange`` is ``scope["microws.exchange"]``, the ``Exchange`` of ``server.http1``, and nothing in it waits. Its
    ``watch_end(on_end)`` calls ``on_end`` once, when the client disconnects or the server ends the response; at once
    if it has.
    """

    __slots__ = ("_connection", "_end", "_exchange")

    def __init__(self, stream: Stream, keepalive: float, exchange: Any) -> None:
        self._exchange = exchange
        self._connection = exchange.connection
        self._end = asyncio.get_running_loop().create_future()
        super().__init__(stream, keepalive, exchange.connection, is_chunked=exchange.takes_chunks)

    async def send(self, head: list[Event], receive: Receive, send: Send, last_event_id: str | None) -> None:
        """Send the response, which begins with ``head``, until the client disconnects or would miss a message."""
        try:
            await self._attach(last_event_id)
            for event in head:
                await send(event)
            # They would be kept for the whole life of the stream.
            del head, event
            self._connection.on_writable = self._outbox.drain
            self._start()
            self._exchange.watch_end(self._leave)
            await self._end
        except OSError:
            # The client disconnected.
            # https://asgi.readthedocs.io/en/latest/specs/www.html#disconnected-client-send-exception
            pass
        finally:
            self._leave()

    def _leave(self) -> None:
        """The client disconnected, or the server ends the response: first send what was published before."""
        connection, outbox = self._connection, self._outbox
        if outbox.sink is not None:
            connection.on_writable = None
            if not connection.is_lost and (rest := outbox.take_all()):
                connection.write(rest)
        self._detach()
        if not self._end.done():
            self._end.set_result(None)
