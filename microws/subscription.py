"""Topics read by the app itself: ``app.subscribe`` as a queue to iterate, ``app.stream`` as server-sent events."""

from base64 import b64encode
from collections.abc import Callable
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeAlias

import anyio

from microws.codec import MessageCodec
from microws.errors import Overflow
from microws.hub import FrameCodec, Hub, Outbox, Published, Subscriber, TopicSettings, check_topic
from microws.interfaces import Frame
from microws.sse import GAP, ServerSentEvent, as_chunk, event_codec

__all__ = ["EventName", "Stream", "Subscription"]

EventName: TypeAlias = str | Callable[[str], str | None] | None

_numbers = count(1)


def _marker(gap: bytes) -> Callable[[str, TopicSettings], Published]:
    frame = Frame(gap, is_encoded=True)
    return lambda topic, settings: Published(frame, topic, settings, is_gap=True)


# The gap marker of an event stream; the second one is a chunk of HTTP/1.1.
_MARKERS = (_marker(GAP), _marker(as_chunk(GAP)))


class _Queue:
    """The receiving end of some topics: waits for a frame, and says when one was lost."""

    def __init__(self, hub: Hub, codec: MessageCodec, topics: tuple[str, ...]) -> None:
        self._hub = hub
        self._topics = topics
        self._is_open = False
        self._overflowed = False
        self._arrived: anyio.Event | None = None
        self._outbox = Outbox(marker=_gap, losses=hub.losses)
        self._subscriber = Subscriber(
            id=f"app-{next(_numbers)}", codec=codec, outbox=self._outbox, wake=self._wake, refuse=self._refuse
        )

    def open(self) -> None:
        self._hub.loop.check(
            "anyio.from_thread.run(function), where the `async def` function reads the topics in the app's event loop"
        )
        self._hub.subscribe(self._subscriber, *self._topics)
        self._is_open = True

    def close(self) -> None:
        self._hub.leave(self._subscriber)
        self._outbox.clear()
        self._is_open = self._overflowed = False
        self._wake()

    async def get(self) -> Published | None:
        """``None``: it is not open. Cancelled while it waits, it has taken nothing out."""
        while not self._outbox:
            if not self._is_open:
                return None
            if self._overflowed:
                self._overflowed = False
                self.open()
                raise self._overflow()
            self._arrived = self._arrived or anyio.Event()
            await self._arrived.wait()
        message = self._outbox.pop_published()
        if message.is_gap:
            raise self._overflow()
        return message

    def _overflow(self) -> Overflow:
        return Overflow(f"messages of {', '.join(self._topics)} came faster than they were read; some were lost")

    def _wake(self) -> None:
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None

    def _refuse(self, code: int, reason: str) -> None:
        # What waits is still read; then the reader is told; then it goes on with what is live by then.
        self._overflowed = True
        self._hub.leave(self._subscriber)
        self._wake()


def _gap(topic: str, settings: TopicSettings) -> Published:
    return Published(Frame(""), topic, settings, is_gap=True)


class Subscription:
    """
    Some topics as a bounded queue: what ``app.subscribe`` returns.

    ::

        async with app.subscribe("chat:1") as messages:
            async for message in messages:
                ...

    Messages are what was published: ``str``, ``bytes``, or the value that its JSON holds. Reading raises ``Overflow``
    once where messages were lost because they came faster than they were read, and then goes on. A subscription has one
    reader at a time.

    Attributes:
        topic: The topic of the message that was read last; ``""`` before the first.
    """

    def __init__(self, hub: Hub, codec: MessageCodec, topics: tuple[str, ...]) -> None:
        if not topics:
            raise TypeError("subscribe takes at least one topic")
        self.topic: str = ""
        self._codec = codec
        self._queue = _Queue(hub, codec, topics)

    async def __aenter__(self) -> Self:
        self._queue.open()
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._queue.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        message = await self._queue.get()
        if message is None:
            raise RuntimeError("read a subscription within its block: `async with app.subscribe(topic) as messages:`")
        self.topic = message.topic
        frame = message.frame
        return self._codec.decode(frame.text) if frame.is_text else frame.data


class Stream:
    """
    Some topics as server-sent events: what ``app.stream`` returns and ``EventStream`` takes.

    A text message is sent as it is, ``bytes`` as base64, anything else as JSON. Iterated by the app itself it
    subscribes when iteration begins, and ends where a message was lost.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    __slots__ = ("_codec", "_events", "_hub", "_queue")

    def __init__(self, hub: Hub, codec: MessageCodec, topics: tuple[str, ...], event: EventName) -> None:
        if not topics:
            raise TypeError("stream takes at least one topic")
        for topic in topics:
            check_topic(topic)
        self._events = {topic: _event_name(event, topic) for topic in topics}
        self._hub = hub
        self._codec = codec
        self._queue: _Queue | None = None

    def attach(self, *, is_chunked: bool, wake: Callable[[], None], refuse: Callable[[int, str], None]) -> Subscriber:
        """
        Subscribe a response. Its outbox gets events that are framed already, once for all responses.

        Args:
            is_chunked: Whether each event is also a chunk of HTTP/1.1.
            wake, refuse: See ``Subscriber``.

        Raises:
            RuntimeError: The app does not run, or runs in another event loop.
        """
        hub = self._hub
        hub.loop.check("anyio.from_thread.run(function), where the `async def` function sends the response")
        codecs: dict[str, FrameCodec] = {
            topic: event_codec(event, is_chunked=is_chunked) for topic, event in self._events.items()
        }
        distinct = set(codecs.values())
        subscriber = Subscriber(
            id=f"events-{next(_numbers)}",
            codec=codecs if len(distinct) > 1 else distinct.pop(),
            outbox=Outbox(marker=_MARKERS[is_chunked], losses=hub.losses),
            wake=wake,
            refuse=refuse,
        )
        hub.subscribe(subscriber, *codecs)
        return subscriber

    def detach(self, subscriber: Subscriber) -> None:
        """End what ``attach`` has begun: nothing more is put into the outbox, and what waits there is forgotten."""
        self._hub.leave(subscriber)
        subscriber.outbox.clear()

    def __aiter__(self) -> Self:
        self._queue = self._queue or _Queue(self._hub, self._codec, tuple(self._events))
        self._queue.open()
        return self

    async def __anext__(self) -> ServerSentEvent:
        if self._queue is None:
            raise StopAsyncIteration
        try:
            message = await self._queue.get()
        except Overflow:
            await self.aclose()
            raise StopAsyncIteration from None
        if message is None:
            raise StopAsyncIteration
        frame = message.frame
        data = frame.text if frame.is_text else b64encode(frame.data).decode()
        return ServerSentEvent(data, event=self._events[message.topic])

    async def aclose(self) -> None:
        """End the iteration and its subscription."""
        if self._queue is not None:
            self._queue.close()


def _event_name(event: EventName, topic: str) -> str | None:
    name = event(topic) if callable(event) else event
    if name is not None and not isinstance(name, str):
        raise TypeError(f"expected event=None, a str or a function of the topic that returns one, got {name!r}")
    # It refuses what cannot stand in the line.
    return ServerSentEvent("", event=name).event
