"""Topics read by the app itself: ``app.subscribe``, a bounded queue to iterate."""

from collections.abc import Mapping
from itertools import count
from types import TracebackType
from typing import Any, Self

import anyio

from microws.codec import MessageCodec
from microws.errors import Overflow
from microws.hub import Hub, Outbox, Published, Subscriber, TopicSettings
from microws.interfaces import Frame

__all__ = ["Subscription", "TopicQueue"]

_numbers = count(1)


class TopicQueue:
    """
    The messages of some topics, in a bounded queue with one reader.

    Args:
        hub: Of the topics.
        codec: Frames the messages.
        topics: One or more.
        is_connection: Whether ``Hub.disconnect`` ends it, as if a message was lost. Default: no.
    """

    def __init__(self, hub: Hub, codec: MessageCodec, topics: tuple[str, ...], *, is_connection: bool = False) -> None:
        self._hub = hub
        self._is_connection = is_connection
        self._topics = topics
        self._is_open = False
        self._overflowed = False
        self._has_lost = False
        self._arrived: anyio.Event | None = None
        self._outbox = Outbox(marker=_gap, losses=hub.losses)
        self._subscriber = Subscriber(
            id=f"app-{next(_numbers)}", codec=codec, outbox=self._outbox, wake=self._wake, refuse=self._refuse
        )

    async def open(self, since: str | Mapping[str, str | None] | None = None) -> None:
        """Subscribe; see ``Hub.subscribe``."""
        self._hub.loop.check(
            "anyio.from_thread.run(function), where the `async def` function reads the topics in the app's event loop"
        )
        if self._is_connection:
            self._hub.disconnects[self._subscriber.id] = self._refuse
        subscribed = await self._hub.subscribe(self._subscriber, *self._topics, since=since)
        self._is_open = True
        self._has_lost = bool(subscribed.lost)

    def close(self) -> None:
        """Unsubscribe, and forget what is queued."""
        self._hub.disconnects.pop(self._subscriber.id, None)
        self._hub.leave(self._subscriber)
        self._outbox.clear()
        self._is_open = self._overflowed = False
        self._wake()

    async def get(self) -> Published | None:
        """
        Wait for the next message; ``None`` if the queue is not open. If it is cancelled, no message is lost.

        Raises:
            Overflow: Messages were lost here. The next call goes on behind them.
        """
        if self._has_lost:
            self._has_lost = False
            raise Overflow(f"messages of {', '.join(self._topics)} after since= are not in the history any more")
        while not self._outbox:
            if not self._is_open:
                return None
            if self._overflowed:
                self._overflowed = False
                try:
                    await self.open()
                except BaseException:
                    self._overflowed = True
                    raise
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
        # The reader gets what is queued, then Overflow; then it goes on with what is published from then on.
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

    Messages are what was published: ``str``, ``bytes``, or the value that its JSON holds. If messages come faster than
    they are read, some are lost: then reading raises ``Overflow`` once, and goes on. One task at a time may read.

    Attributes:
        topic: The topic of the message that was read last; ``""`` before the first.
        position: Its position, for ``since=``; ``None`` on a topic without history.
    """

    def __init__(
        self,
        hub: Hub,
        codec: MessageCodec,
        topics: tuple[str, ...],
        since: str | Mapping[str, str | None] | None = None,
    ) -> None:
        if not topics:
            raise TypeError("expected at least one topic, got none: app.subscribe(topic)")
        self.topic: str = ""
        self.position: str | None = None
        self._codec = codec
        self._since = since
        self._queue = TopicQueue(hub, codec, topics)

    async def __aenter__(self) -> Self:
        await self._queue.open(self._since)
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
        self.topic, self.position = message.topic, message.position
        frame = message.frame
        return self._codec.decode(frame.text) if frame.is_text else frame.data
