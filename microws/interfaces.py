"""Shared types: ASGI's, frames and payloads, and the protocols between modules."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeAlias, final

__all__ = [
    "BYTES_LIKE",
    "TOKEN",
    "ASGIApplication",
    "Application",
    "BoundView",
    "Codec",
    "Event",
    "Frame",
    "Limits",
    "Messages",
    "OpenConnection",
    "Payload",
    "Receipt",
    "Receive",
    "Scope",
    "Send",
    "Sink",
    "Subscribed",
    "mark_reported",
    "reported_id",
]

# The regular expression of a token, RFC 9110 §5.6.2: methods, header and cookie names, subprotocols.
TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"

# https://asgi.readthedocs.io/en/latest/specs/main.html
Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
ASGIApplication: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

# A view as a dispatcher calls it: with the request or WebSocket, and the route's parameters.
BoundView: TypeAlias = Callable[[Any, dict[str, Any]], Awaitable[Any]]

# An attribute of an exception that is in the log: its id. In its ``__dict__``, because a class may refuse ``setattr``.
_ERROR_ID = "__microws_error_id__"

# For isinstance. A tuple, because `bytes | bytearray | memoryview` would be created again by each call.
BYTES_LIKE = (bytes, bytearray, memoryview)


class Limits(NamedTuple):
    """
    The limits of one WebSocket: settings of the app that serves it. ``App`` documents them with their precedents.

    Attributes:
        max_message_size: Payload bytes of one incoming message.
        max_fragments: Frames of one incoming message, on the microws server.
        receive_queue: Unread messages at which reading pauses; it also pauses at 1 MiB of them.
        send_timeout: Seconds that one ``ws.send`` waits for a slow client.
        accept_timeout: Seconds from the request to ``accept``.
        close_timeout: Seconds that a close waits for queued messages and for the client's Close frame, and that a view
            has to notice the end.
        compression: Whether to accept an offer of permessage-deflate, on the microws server.
    """

    max_message_size: int = 1 << 20
    max_fragments: int = 1024
    receive_queue: int = 64
    send_timeout: float = 10
    accept_timeout: float = 10
    close_timeout: float = 5
    compression: bool = False


@final
class Frame:
    """
    An encoded message: the payload of a text or binary frame. Outboxes share it; it is never changed.

    Args:
        payload: ``str`` for a text frame. ``bytes`` for a binary frame, or with ``is_text`` for an encoded text frame.
        is_text: Whether ``bytes`` are valid UTF-8 to be sent as text. Default: only ``str`` is text.
        is_encoded: Whether ``bytes`` are written unchanged, without a WebSocket frame around them, such as a
            server-sent event. Default: no.

    Source: RFC 6455 §5.6.
    """

    __slots__ = ("_bytes", "_text", "is_encoded", "is_text")

    def __init__(self, payload: str | bytes, *, is_text: bool = False, is_encoded: bool = False) -> None:
        self.is_encoded: bool = is_encoded
        if isinstance(payload, str):
            self._text: str | None = payload
            self._bytes: bytes | None = None
            self.is_text: bool = True
        else:
            self._text = None
            self._bytes = payload
            self.is_text = is_text

    @property
    def data(self) -> bytes:
        """The payload as bytes; encoded at most once."""
        if self._bytes is None:
            assert self._text is not None
            self._bytes = self._text.encode()
        return self._bytes

    @property
    def text(self) -> str:
        """The payload of a text frame as ``str``; decoded at most once."""
        if self._text is None:
            assert self._bytes is not None
            self._text = self._bytes.decode()
        return self._text

    @property
    def size(self) -> int:
        """Payload bytes."""
        if self._bytes is None and self._text is not None and self._text.isascii():
            return len(self._text)
        return len(self.data)

    def __repr__(self) -> str:
        return f"Frame({self.text!r})" if self.is_text else f"Frame({self.data!r})"


class Payload(NamedTuple):
    """
    A published value in its canonical form, which each process turns into frames.

    Attributes:
        kind: ``"text"``: a ``str`` value in UTF-8. ``"bytes"``: binary. ``"json"``: any other value, as JSON.
        data: The encoded value.
        topic: What it was published to.
        position: Of the message; ``None`` on a topic without history.
    """

    kind: Literal["text", "bytes", "json"]
    data: bytes
    topic: str = ""
    position: str | None = None


class Receipt(NamedTuple):
    """
    The result of ``publish``.

    Attributes:
        subscribers: Subscribers of this process that the message reached; with several workers, those that it had when
            ``publish`` was called.
        id: The position of the message; ``None`` on a topic without history, or if the hub process ended before it told
            the position.
    """

    subscribers: int
    id: str | None = None


class OpenConnection(NamedTuple):
    """
    An open WebSocket, of ``App.connections``.

    Attributes:
        id: ``ws.id``, for ``App.disconnect``.
        path: ``ws.path``.
        since: When the client connected, in Unix seconds.
        tags: Those of ``ws.tag``.
        queued: Messages that are pending for the client.
    """

    id: str
    path: str
    since: float
    tags: dict[str, str | int]
    queued: int


class Subscribed(NamedTuple):
    """
    The result of ``subscribe``.

    Attributes:
        recovered: Whether every message after ``since`` is delivered. ``False`` without ``since``.
        position: What was published after it is delivered, so it is a ``since`` for the next time. It is where the
            topic was when the subscription began; with ``since``, that position; with ``"start"``, the one before the
            oldest message that is delivered. Of several topics, a dict. ``None`` for a topic without history.
        lost: The topics of ``since`` whose missed messages are not all in the history any more. They are delivered from
            ``position`` on.
    """

    recovered: bool
    position: str | dict[str, str | None] | None = None
    lost: tuple[str, ...] = ()


class Codec(Protocol):
    """
    A codec for ``app.add_codec(name, codec)``.

    Attributes:
        frames: The frames that ``decode`` takes: ``"text"`` (it gets ``str``), ``"binary"`` (``bytes``) or ``"any"``.
    """

    # Read-only and not a Literal, so that a class may have `frames = "text"` without an annotation.
    @property
    def frames(self) -> str:
        """The frames that ``decode`` takes."""

    def encode(self, value: Any, /) -> str | bytes:
        """Encode ``value``: ``str`` for a text frame, ``bytes`` for a binary one. May raise ``ValueError``."""

    def decode(self, data: Any, /) -> Any:
        """Decode the ``str`` or ``bytes`` of a frame. The text of a ``ValueError`` becomes the close reason."""


class Sink(Protocol):
    """The way to a client that takes frames at once."""

    @property
    def is_writable(self) -> bool:
        """Whether it takes more: otherwise it piles up there."""

    @property
    def socket(self) -> int | None:
        """
        The descriptor of its socket, where that may be written to directly while nothing is ``buffered``.

        ``None``: what goes over the socket is not what is written here, or the client has gone.
        """

    def buffered(self) -> int:
        """Bytes that it has taken and its socket has not."""

    @property
    def is_lost(self) -> bool:
        """Whether the client has just gone, and ``clear`` comes next."""

    def write(self, frames: bytes | memoryview, /) -> None:
        """Send frames that are encoded already, or the rest of some. Never waits."""

    def close(self, code: int, reason: str) -> None:
        """Close the connection. Never waits."""


class Messages(Protocol):
    """The async iterator of ``async with app.subscribe(…) as messages``."""

    @property
    def topic(self) -> str:
        """The topic of the message that was read last."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Any: ...


class Application(Protocol):
    """The ``app`` of a ``Request`` or ``WebSocket``, as views use it; ``App`` documents it."""

    @property
    def state(self) -> Any:
        """Values that the app's views share."""

    @property
    def hub(self) -> Any:
        """The topics and subscribers of this process."""

    @property
    def threads(self) -> Any:
        """The worker threads of the app."""

    @property
    def topic_hooks(self) -> Any:
        """Who may subscribe and publish."""

    @property
    def session_max_age(self) -> int:
        """Seconds for which a session is valid."""

    @property
    def signing(self) -> Any:
        """Signs and verifies with the secrets of the app; ``None`` if it has none."""

    def url_for(self, name: str, /, **params: Any) -> str:
        """The path of the route of that name."""

    def render(self, template: str, /, **context: Any) -> str:
        """Fill a template of the app's."""

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """Run ``function(*args)`` as a background task of the app."""

    def ticket(self, value: Any, *, path: str, ttl: float = 30) -> str:
        """A ticket for the WebSocket at ``path``."""

    async def publish(self, topic: str, value: Any) -> Receipt:
        """Send ``value`` to every subscriber of ``topic``."""

    def publish_from_thread(self, topic: str, value: Any) -> Receipt:
        """``publish`` from a worker thread."""

    async def disconnect(
        self,
        *,
        topic: str | None = None,
        id: str | None = None,  # noqa: A002
        code: int = 1000,
        reason: str = "",
    ) -> int:
        """Close the connections of a topic, or of an id."""

    def subscribe(self, *topics: str) -> AbstractAsyncContextManager[Messages]:
        """Read topics as a queue."""

    def stream(self, *topics: str, event: str | Callable[[str], str | None] | None = None) -> AsyncIterator[Any]:
        """Topics as server-sent events."""


def mark_reported(error: BaseException, error_id: str) -> None:
    """Mark ``error`` as logged under this id."""
    error.__dict__[_ERROR_ID] = error_id


def reported_id(error: BaseException) -> str:
    """
    The id under which ``error`` was logged; empty if it was not.

    An app logs, marks and answers an unexpected exception, then raises it for middleware and the server, which then
    neither logs nor answers it. A group was logged if all of its exceptions were.
    """
    found: str = error.__dict__.get(_ERROR_ID, "")
    if not found and isinstance(error, BaseExceptionGroup):
        ids = [reported_id(inner) for inner in error.exceptions]
        found = ids[0] if all(ids) else ""
    return found
