"""What a WebSocket view holds: ``ws``."""

import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import count
from math import inf
from os import urandom
from types import GenericAlias, TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NoReturn, Self, overload

import anyio

from microws.answers import report
from microws.closing import CloseCode, check_close
from microws.codec import Codecs, MessageCodec, MessageError
from microws.connection import Connection
from microws.connection.tasks import check_function
from microws.cors import CORS
from microws.errors import InvalidMessage, PayloadTypeError, ReceiveTimeout, WebSocketDisconnect
from microws.handshake import check_accept, choose_subprotocol, explain_no_subprotocol, split_bearer
from microws.hub import (
    LIVE_CODEC,
    SUBPROTOCOL,
    Announce,
    FrameCodec,
    Hub,
    Outbox,
    Published,
    Subscriber,
    Tag,
    check_presence,
    check_tags,
    check_topic,
    gap_announcement,
)
from microws.interfaces import Application, Event, Receipt, Scope, Subscribed
from microws.requests import BaseRequest, Closers, no_secret
from microws.responses import JSONResponse, Response, TextResponse
from microws.state import CONNECTING
from microws.tickets import Ticket, take_ticket

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # Until Python 3.13, `typing` has no defaults.
    In = TypeVar("In", default=Any)
    Out = TypeVar("Out", default=In)
    T = TypeVar("T")
else:
    from typing import TypeVar

    In, Out, T = TypeVar("In"), TypeVar("Out"), TypeVar("T")

__all__ = ["WebSocket", "WebSocketOptions"]

_log = logging.getLogger("microws.websocket")
# To look it up in its class takes longer than the rest of a close.
_NORMAL_CLOSURE: Final = CloseCode.NORMAL_CLOSURE
# A connection that ended with one of these may come back: RFC 6455 §7.4.1, and 1012 to 1014 of IANA's registry.
_BROKEN_OFF: Final = (
    CloseCode.GOING_AWAY, CloseCode.ABNORMAL_CLOSURE, CloseCode.SERVICE_RESTART, CloseCode.TRY_AGAIN_LATER,
)  # fmt: skip
_NO_TAGS: Final[dict[str, Tag]] = {}
_NO_EXPIRY: Final = (0, "")
# Seconds since 1970: the year 33658. Milliseconds of today are more.
_MAX_TIME: Final = 10**12
_numbers = count(1)
# With on_invalid="error": then the connection is closed.
_MAX_INVALID_IN_A_ROW: Final = 100


class _Session(dict[str, Any]):
    """A session that cannot be changed."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "ws.session is read-only, because a WebSocket has no response to set a cookie with: write to "
            "request.session in an HTTP view"
        )

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse


# Without the methods that nothing calls, because creating them takes as long as importing a module.
@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class WebSocketOptions:
    """
    What all connections of one route share.

    Attributes:
        hub, codecs: Those of the app.
        cors: Adds CORS headers to rejections; ``None`` without ``App(origins=…)``.
        make_outbox: Creates the outbox of a connection.
        closing_for: Returns the close code and reason for an exception on a path; ``None`` if an error handler decides.
        receive_codec, send_codec: Those of the route.
        subprotocols: What the route speaks, the preferred one first.
        catch_disconnect, on_invalid: As in ``App.websocket_route``.
        max_subscriptions: As in ``App``.
        topic_codec: Frames what is published.
        announce: See ``Subscriber``.
    """

    hub: Hub
    codecs: Codecs
    cors: CORS | None
    make_outbox: Callable[[], Outbox]
    closing_for: Callable[[str, Exception], tuple[int, str] | None]
    receive_codec: MessageCodec
    send_codec: MessageCodec
    subprotocols: tuple[str, ...]
    catch_disconnect: bool
    on_invalid: Literal["close", "skip", "error"]
    max_subscriptions: int
    topic_codec: FrameCodec
    announce: Announce | None


class WebSocket(BaseRequest, Generic[In, Out]):
    """
    One WebSocket connection, as its view sees it: an async context manager, and an async iterable of messages.

    ``WebSocket[Say | Move, Said]`` is one that receives ``Say`` and ``Move``, and sends ``Said``. ``WebSocket[Say]``
    sends what it receives. ``str``, ``bytes`` and ``str | bytes`` are the frames themselves, all other types are JSON.

    ::

        async with ws:                      # accept; close when the block ends
            async for message in ws:        # until the client disconnects
                await ws.send(message)

    After the end of the connection, every call raises ``WebSocketDisconnect`` immediately. Any number of tasks may use
    one ``ws``. It sends their messages in the order of the calls.

    Attributes:
        subscribed: What ``subscribe`` returned for the topics of the route, with ``since`` from the query; ``None``
            without ``subscribe=`` on the route.
    """

    __slots__ = (
        "_connection",
        "_end_returned",
        "_expiry",
        "_failure",
        "_helpers",
        "_id",
        "_invalid_in_a_row",
        "_is_member",
        "_next",
        "_options",
        "_session",
        "_skipped",
        "_subscriber",
        "_tags",
        "subscribed",
    )

    if not TYPE_CHECKING:

        def __class_getitem__(cls, types):
            return GenericAlias(cls, types)

    def __init__(
        self,
        scope: Scope,
        connection: Connection,
        app: Application,
        path: str,
        path_params: dict[str, Any],
        options: WebSocketOptions,
    ) -> None:
        # Without keyword arguments, with which Python takes twice as long to create an object.
        self.scope = scope
        self.app = app
        self.path = path
        self.path_params = path_params
        self._headers = self._query = self._cookies = self._state = None
        self.closers: Closers = None
        self._options = options
        self._session: Mapping[str, Any] | None = None
        self._id = ""
        self._subscriber: Subscriber | None = None
        self._tags = _NO_TAGS
        self._expiry = _NO_EXPIRY
        self._is_member = False
        self._helpers: set[anyio.CancelScope] | None = None
        self._end_returned = False
        self._skipped = self._invalid_in_a_row = 0
        self._connection = connection
        # The next message for the view.
        self._next: Callable[[], Coroutine[Any, Any, str | bytes | None]] = connection.receive
        self.subscribed: Subscribed | None = None

    # Attributes

    @property
    def id(self) -> str:
        """Unique name of this connection. It has a random part, so that it also differs between processes."""
        if not self._id:
            self._id = f"{_process()}-{next(_numbers)}"
            if not self.closed:
                self._options.hub.disconnects[self._id] = self._disconnect
                self._connection.unsubscribe = self._leave
        return self._id

    @property
    def subprotocols(self) -> list[str]:
        """The subprotocols that the client offers, its preferred one first."""
        return list(self.scope.get("subprotocols") or ())

    @property
    def session(self) -> Mapping[str, Any]:
        """
        ``request.session`` as it was at the handshake, read-only: a WebSocket has no response to set a cookie with.

        Raises:
            RuntimeError: The app has no secret.
        """
        if self._session is None:
            self._session = _Session(self._read_session("ws.session")[1])
        return self._session

    async def take_ticket(self) -> Ticket:
        """
        Take the ticket in ``?ticket=…``, which ``app.ticket`` has issued for this path: before ``accept``, once.

        The ticket is used up, in all workers and on all machines that share the hub.

        Returns:
            ``Ticket(value)``, with the value that ``app.ticket`` was given.

        Raises:
            HTTPException: 401 and always the same text: the ticket is missing, too old, of another path, of an unknown
                secret, changed, or was used before. 503: the hub process or Redis does not answer, or has no room
                for one more ticket that was taken; it may be used up.
            RuntimeError: The handshake was accepted before, or the app has no secret.
        """
        if self.accepted:
            raise RuntimeError("take the ticket before the handshake is accepted: it refuses the client with a 401")
        if self.app.signing is None:
            raise RuntimeError(no_secret("ws.take_ticket"))
        signed = self.query.get("ticket", "")
        return await take_ticket(self.app.signing.ticket, signed, path=self.path, hub=self._options.hub)

    @property
    def accepted(self) -> bool:
        """Whether the handshake was accepted, by the view or by a hook before it."""
        return self._connection.accepted

    @property
    def subprotocol(self) -> str | None:
        """The accepted subprotocol, or ``None``."""
        return self._connection.subprotocol

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, or one of the sides is closing it."""
        return self._connection.close_code is not None

    @property
    def close_code(self) -> int | None:
        """The close code of the side that closed first; ``None`` while the connection is open."""
        return self._connection.close_code

    @property
    def close_reason(self) -> str:
        """The close reason, often empty."""
        return self._connection.close_reason

    # Tags

    @property
    def tags(self) -> Mapping[str, Tag]:
        """What ``tag`` was given."""
        return self._tags

    @property
    def queued(self) -> int:
        """Messages that are pending for the client."""
        outbox = self._connection.outbox
        return 0 if outbox is None else outbox.count

    def tag(self, **tags: Tag | None) -> None:
        """
        Name this connection: ``ws.tag(user="anna")``, before or after ``accept``.

        ``app.connections(user="anna")`` finds it, and ``await app.disconnect(user="anna")`` closes it, in all workers.

        Args:
            tags: ``str`` or ``int``, which replace those of the same name; ``None`` removes one. 1 is another tag than
                ``"1"``.

        Raises:
            TypeError, ValueError: An invalid value, or a name that ``app.disconnect`` has for something else.
            WebSocketDisconnect: The connection has ended.
        """
        if self.closed:
            raise self._connection.unusable("tag")
        check_tags({name: value for name, value in tags.items() if value is not None})
        for name, value in tags.items():
            self._options.hub.open.tag(self, name, value)
            self._tags = {each: old for each, old in self._tags.items() if each != name}
            if value is not None:
                self._tags[name] = value

    # Expiry

    def expire(self, at: float | datetime | None, *, code: int = 4401, reason: str = "expired") -> None:
        """
        Close this connection at a time of the clock, such as the end of the session that let the client in.

        Call it again to prolong or shorten the time. If ``at`` has passed, the connection is closed now. It is closed
        within a second of that time, also if the clock is set or the machine has slept. The view gets
        ``WebSocketDisconnect`` with this code. Before ``accept``, the client gets 403.

        Args:
            at: Unix seconds, as of ``time.time()``, or a ``datetime`` with a time zone; ``None``: never.
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999. Default 4401, after HTTP's 401: the client logs in again.
            reason: At most 123 bytes in UTF-8.

        Raises:
            TypeError, ValueError: ``at``, ``code`` or ``reason`` is invalid, such as a ``datetime`` without time zone.
            WebSocketDisconnect: The connection has ended.
        """
        if self.closed:
            raise self._connection.unusable("expire")
        seconds = inf if at is None else _unix_seconds(at)
        check_close(code, reason)
        self._expiry = (code, reason)
        self._options.hub.open.expire(self, seconds)

    def close_expired(self) -> None:
        """Close at the time of ``expire``. Never waits."""
        if not self.closed:
            self._disconnect(*self._expiry)

    # The handshake and the end

    async def accept(
        self, subprotocol: str | None = None, *, headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None
    ) -> None:
        """
        Accept the handshake.

        Args:
            subprotocol: A subprotocol that the client offers. Default: the first one of the route that it offers.
            headers: More headers for the 101, as a mapping or pairs.

        Raises:
            ValueError: A subprotocol that the client did not offer, or an invalid header; nothing was sent.
            WebSocketDisconnect: The client has disconnected.
            RuntimeError: The handshake was accepted or rejected before.

        Source: RFC 6455 §4.2.2.
        """
        await self._accept(subprotocol, headers)

    def _accept(
        self, subprotocol: str | None, headers: Mapping[str, str] | Iterable[tuple[str, str]] | None
    ) -> Coroutine[Any, Any, None]:
        if subprotocol is None and (offered := self.scope.get("subprotocols")):
            token, choice = split_bearer(offered)
            supported = self._options.subprotocols
            subprotocol = choose_subprotocol(choice, supported if token is None else (*supported, "bearer"))
            if subprotocol is None:
                _log.info("%r: %s", self.path, explain_no_subprotocol(offered, self._options.subprotocols))
        if self._options.topic_codec is LIVE_CODEC and subprotocol != SUBPROTOCOL:
            raise ValueError(
                f"expected the subprotocol {SUBPROTOCOL!r}, which the client offers, got {subprotocol!r}: write "
                f"subprotocols=[{subprotocol!r}] at the route"
            )
        raw = []
        if subprotocol is not None or headers is not None:
            raw = check_accept(subprotocol=subprotocol, offered=self.subprotocols, headers=headers)
        return self._connection.accept(subprotocol, raw)

    async def reject(
        self,
        status: int = 403,
        body: str | bytes | dict[str, Any] | list[Any] = "",
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
    ) -> None:
        """
        Refuse the handshake with an HTTP response.

        A server without ASGI's denial extension answers 403, whatever ``status``.

        Args:
            status: HTTP status, 200 to 599.
            body: A ``str`` is sent as plain text, a ``dict`` or ``list`` as JSON.
            headers: More headers, as a mapping or pairs.

        Raises:
            ValueError: An invalid status or header; nothing was sent.
            RuntimeError: The handshake was accepted or rejected before.

        Source: https://asgi.readthedocs.io/en/latest/extensions.html#websocket-denial-response
        """
        make: Any = TextResponse if isinstance(body, str) else Response if isinstance(body, bytes) else JSONResponse
        await self.reject_with(make(body, status, headers))

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """
        Send what is pending, then close. A second close does nothing. Before ``accept`` it is ``reject(403)``.

        Waits at most ``close_timeout`` seconds.

        Args:
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999 for your own codes.
            reason: At most 123 bytes in UTF-8.

        Raises:
            ValueError: An invalid code or reason.

        Source: RFC 6455 §5.5.1, §7.4.
        """
        check_close(code, reason)
        if self._connection.state is CONNECTING:
            await self.reject(403)
            return
        await self._close(code, reason)

    async def _close(self, code: int, reason: str) -> None:
        connection = self._connection
        connection.mark_close_seen()
        connection.close(code, reason)
        await connection.wait_close_sent()

    def _disconnect(self, code: int, reason: str) -> None:
        """Close for ``Hub.disconnect``. Never waits."""
        connection = self._connection
        (connection.close_now if connection.state is CONNECTING else connection.close)(code, reason)

    def _leave(self) -> None:
        """The connection ends: it is not in the hub any more."""
        hub = self._options.hub
        del hub.disconnects[self._id]
        if self._subscriber is not None:
            if self._is_member:
                hub.presence.leave(self, self._subscriber.topics, lingers=self.close_code in _BROKEN_OFF)
            hub.leave(self._subscriber)

    async def __aenter__(self) -> Self:
        if not self._connection.accepted:
            await self._accept(None, None)
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None:
            # Usually the client has disconnected and the view has seen it: nothing is left to do.
            if not self._connection.close_seen or self._connection.close_code is None:
                await self._close(_NORMAL_CLOSURE, "")
        elif _is_disconnect_of(self._connection, error):
            self._connection.mark_close_seen()
            return self._options.catch_disconnect
        elif isinstance(error, Exception):
            closing = self._options.closing_for(self.path, error)
            if closing is not None:
                await self.close(*closing)
        elif isinstance(error, anyio.get_cancelled_exc_class()):
            self._connection.mark_close_seen()
            if self._connection.state is not CONNECTING:
                self._connection.close(_NORMAL_CLOSURE, "")
        return False

    # Messages in

    @overload
    def receive(self, *, timeout: float | None = None) -> Coroutine[Any, Any, In]: ...

    @overload
    def receive(self, *, timeout: float | None = None, type: type[T]) -> Coroutine[Any, Any, T]: ...

    @overload
    def receive(self, *, timeout: float | None = None, type: Any) -> Coroutine[Any, Any, Any]: ...

    def receive(self, *, timeout: float | None = None, type: Any = None) -> Coroutine[Any, Any, Any]:  # noqa: A002
        """
        The next message, decoded.

        No message is lost if the call is cancelled or times out.

        Args:
            timeout: Seconds to wait; ``None`` waits until the connection ends.
            type: A ``value_type`` for this message, in place of the route's ``receive_type``.

        Raises:
            WebSocketDisconnect: The connection has ended and every message was received.
            TimeoutError: No message came in time. If the view does not catch it, the connection is closed.
            PayloadTypeError: Got a binary frame, expected text, or the reverse. The view may go on receiving.
            InvalidMessage: The message cannot be decoded. The view may go on receiving.
            RuntimeError: The handshake is not accepted yet.
        """
        codec = self._options.receive_codec if type is None else self._options.codecs.get(type)
        return self._receive(codec) if timeout is None else self._receive_within(timeout, codec)

    async def receive_text(self, *, timeout: float | None = None) -> str:
        """``receive`` of a text frame, as ``str``."""
        text: str = await self.receive(timeout=timeout, type="text")
        return text

    async def receive_bytes(self, *, timeout: float | None = None) -> bytes:
        """``receive`` of a binary frame, as ``bytes``."""
        data: bytes = await self.receive(timeout=timeout, type="bytes")
        return data

    async def receive_json(self, *, timeout: float | None = None) -> Any:
        """``receive`` of a text frame, as the value of its JSON."""
        return await self.receive(timeout=timeout, type="json")

    async def receive_event(self) -> Event:
        """
        The next message as a raw ASGI event. At the end it returns the disconnect event, then raises
        ``WebSocketDisconnect``.
        """
        message = await self._next()
        if message is None:
            if self._end_returned:
                raise self._connection.unusable("receive_event")
            self._end_returned = True
            return {"type": "websocket.disconnect", "code": self.close_code, "reason": self.close_reason}
        return {"type": "websocket.receive", "text" if isinstance(message, str) else "bytes": message}

    async def wait_closed(self) -> None:
        """
        Wait until the connection ends: for a view whose client gets published messages and sends none.

        It reads and discards what the client sends. It never raises ``WebSocketDisconnect``, whatever
        ``catch_disconnect``; see ``close_code``.

        Raises:
            RuntimeError: The handshake is not accepted yet.
        """
        if self._connection.state is CONNECTING:
            raise self._connection.unusable("wait_closed")
        while await self._next() is not None:
            pass

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> In:
        options = self._options
        while (message := await self._next()) is not None:
            try:
                value: In = options.receive_codec.decode(message)
            except (PayloadTypeError, InvalidMessage) as error:
                if self._options.on_invalid == "close":
                    raise
                await self._skip(error)
            else:
                self._invalid_in_a_row = 0
                return value
        if options.catch_disconnect:
            raise StopAsyncIteration
        raise self._connection.unusable("receive")

    async def _receive_within(self, seconds: float, codec: MessageCodec) -> Any:
        with anyio.move_on_after(seconds):
            return await self._receive(codec)
        raise ReceiveTimeout(seconds)

    async def _receive(self, codec: MessageCodec) -> Any:
        while (message := await self._next()) is not None:
            try:
                value = codec.decode(message)
            except (PayloadTypeError, InvalidMessage) as error:
                if self._options.on_invalid == "close":
                    raise
                await self._skip(error)
            else:
                self._invalid_in_a_row = 0
                return value
        raise self._connection.unusable("receive")

    async def _skip(self, error: PayloadTypeError | InvalidMessage) -> None:
        """Skip a message that cannot be decoded, or answer it."""
        options = self._options
        if not self._skipped and not isinstance(self.closers, tuple):
            # A line for each message would let a client fill the log.
            event = "skipped a message" if options.on_invalid == "skip" else "answered an invalid message with an error"
            _log.warning("%r: %s: %s; further ones of this connection are counted", self.path, event, error)
            self.on_close(self._report_skipped)
        self._skipped += 1
        if options.on_invalid == "skip":
            return
        self._invalid_in_a_row += 1
        if self._invalid_in_a_row >= _MAX_INVALID_IN_A_ROW:
            await self._close(CloseCode.POLICY_VIOLATION, f"{_MAX_INVALID_IN_A_ROW} invalid messages in a row")
            return
        detail, path = (error.detail, error.path) if isinstance(error, InvalidMessage) else (str(error), "$")
        answer: MessageError = {"type": "error", "detail": detail, "path": path}
        try:
            await self.send(answer, type="msgpack" if options.send_codec.name == "msgpack" else "json")
        except WebSocketDisconnect:
            pass  # the next receive says so

    async def _report_skipped(self) -> None:
        if self._skipped > 1:
            event = "skipped %d" if self._options.on_invalid == "skip" else "got %d invalid"
            _log.warning(f"%r: {event} messages of one connection in all", self.path, self._skipped)

    # Messages out

    @overload
    def send(self, value: Out) -> Coroutine[Any, Any, None]: ...

    @overload
    def send(self, value: Any, *, type: Any) -> Coroutine[Any, Any, None]: ...

    def send(self, value: Any, *, type: Any = None) -> Coroutine[Any, Any, None]:  # noqa: A002
        """
        Send a message, after those that are pending on this connection.

        Waits while the client does not keep up. After ``send_timeout`` seconds the connection is closed with 1013. A
        cancelled call may or may not have sent the message.

        Args:
            value: A value of the route's ``send_type``.
            type: A ``value_type`` for this message, in place of the route's.

        Raises:
            WebSocketDisconnect: The connection has ended.
            TypeError, ValueError: The value cannot be encoded; nothing was sent. Raised by the call, before ``await``.
            RuntimeError: The handshake is not accepted yet.
        """
        codec = self._options.send_codec if type is None else self._options.codecs.get(type)
        return self._connection.send(codec.encode(value))

    async def send_text(self, text: str) -> None:
        """Send ``text`` in a text frame."""
        await self.send(text, type="text")

    async def send_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data`` in a binary frame."""
        await self.send(data, type="bytes")

    async def send_json(self, value: Any) -> None:
        """Send ``value`` as JSON in a text frame."""
        await self.send(value, type="json")

    async def send_event(self, event: Event) -> None:
        """
        Send a raw ASGI event: ``websocket.accept``, ``websocket.send`` or ``websocket.close``.

        Raises:
            ValueError: Any other type of event. To reject, call ``ws.reject``.
        """
        match event["type"]:
            case "websocket.accept":
                pairs = event.get("headers") or ()
                headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs]
                await self.accept(event.get("subprotocol"), headers=headers)
            case "websocket.send":
                text = event.get("text")
                await self.send(event["bytes"] if text is None else text, type="auto")
            case "websocket.close":
                await self.close(event.get("code", 1000), event.get("reason") or "")
            case other:
                raise ValueError(f"send_event takes websocket.accept, .send or .close, not {other!r}; see ws.reject")

    # Topics

    async def subscribe(
        self,
        *topics: str,
        since: str | Mapping[str, str | None] | None = None,
        presence: dict[str, Any] | None = None,
    ) -> Subscribed:
        """
        Get every message that is published to ``topics`` from now on. Before ``accept`` they are kept until then.

        The end of the connection unsubscribes. To subscribe twice to a topic is the same as once.

        With ``since`` the client first gets what was published to a topic with history after that position, as fast as
        it takes it, then what is published from now on, without a gap and without a duplicate. If the history does not
        have all of that any more, it gets only what is published from now on, and ``recovered`` is ``False``.

        Args:
            topics: Each 1 to 255 UTF-8 bytes, without control characters.
            since: A position of the topic: ``Receipt.id``, ``Subscribed.position``, ``app.position(topic)``, or what a
                client sends back. Of several topics a dict. ``"start"``: all of the history. Default: only what is
                published from now on.
            presence: Makes the client a member of ``topics``: see ``App.members``. A dict that JSON supports, at most 4
                KiB of it. ``"id"`` names the member, which may have several connections. Default: it is no member.

        Returns:
            ``Subscribed(recovered, position, lost)``.

        Raises:
            TypeError, ValueError: An invalid topic, ``since`` or ``presence``; no topic is subscribed.
            TooManySubscriptions: More topics than ``App(max_subscriptions=…)``; no topic is subscribed. If the view
                does not catch it, the connection is closed with 1008.
            WebSocketDisconnect: The connection has ended.
        """
        if not topics:
            raise TypeError("subscribe takes at least one topic")
        if presence is not None:
            check_presence(presence)
        subscribed = await self._subscribe(self._ensure_subscriber(), topics, since)
        if presence is not None:
            self._join(topics, presence)
        return subscribed

    def _join(self, topics: Iterable[str], presence: dict[str, Any]) -> None:
        self._is_member = True
        for topic in topics:
            self._options.hub.presence.join(self, topic, presence, self.app.start_soon)

    def tell_members(self, frame: Published) -> None:
        """Does nothing: only a client that speaks ``microws.v1`` is told who is on a topic."""

    def _ensure_subscriber(self) -> Subscriber:
        if self.closed:
            raise self._connection.unusable("subscribe")
        options = self._options
        if self._subscriber is None:
            options.hub.loop.check("anyio.from_thread.run(ws.subscribe, topic)")
            self._subscriber = Subscriber(
                id=self.id,
                codec=options.topic_codec,
                outbox=self._connection.ensure_outbox(),
                wake=self._connection.wake,
                refuse=self._connection.close_now,
                max_topics=options.max_subscriptions,
                announce=options.announce,
            )
        return self._subscriber

    async def _subscribe(
        self,
        subscriber: Subscriber,
        topics: Sequence[str],
        since: str | Mapping[str, str | None] | None,
        announce: Announce | None = None,
    ) -> Subscribed:
        subscribed = await self._options.hub.subscribe(subscriber, *topics, since=since, announce=announce)
        if self.closed:
            raise self._connection.unusable("subscribe")
        return subscribed

    async def unsubscribe(self, *topics: str) -> None:
        """
        Get no more messages of ``topics``. Ignores topics that are not subscribed.

        Raises:
            TypeError, ValueError: An invalid topic.
        """
        for topic in topics:
            check_topic(topic)
        self._unsubscribe(topics)

    def _unsubscribe(self, topics: Sequence[str]) -> None:
        if self._subscriber is not None:
            if self._is_member:
                self._options.hub.presence.leave(self, topics, lingers=False)
            self._options.hub.unsubscribe(self._subscriber, *topics)

    async def publish(self, topic: str, value: Any) -> Receipt:
        """
        ``App.publish`` to every subscriber of ``topic`` except this connection.

        On a topic with history, a client that speaks ``microws.v1`` gets the position of the message, so that it does
        not get the message either when it comes back. Another client may get it then.
        """
        return await self._options.hub.publish(topic, value, skip=self.id)

    # Tasks

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """
        Run ``function(*args)`` as a task beside the view. It is cancelled when the view returns.

        If it raises, the exception is logged, the connection is closed with 1011, and the exception is raised to
        middleware once the view has returned. ``WebSocketDisconnect`` only ends the task.

        Raises:
            RuntimeError: The connection has ended.
            TypeError: ``function`` is not a function but, for example, the coroutine that it returned.
        """
        check_function(function)
        if self._helpers is None:
            self._helpers = set()
            self._failure: Exception | None = None
        scope = anyio.CancelScope()
        self._connection.tasks.start_soon(self._run_helper, scope, function, args)
        self._helpers.add(scope)

    async def _run_helper(
        self, scope: "anyio.CancelScope", function: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...]
    ) -> None:
        assert self._helpers is not None
        with scope:
            try:
                await function(*args)
            except Exception as error:
                if not _is_disconnect_of(self._connection, error):
                    self._failure = self._failure or error
                    event = "a task of ws.start_soon failed and the connection is closed with 1011"
                    error_id = report(error, self.path, event)
                    self._connection.close_now(CloseCode.INTERNAL_ERROR, f"internal error, error id {error_id}")
            finally:
                self._helpers.discard(scope)

    # For the app

    async def log_in(self, check: Callable[["WebSocket", Any], Awaitable[Any]], seconds: float) -> bool:
        """
        Accept, and have ``check`` judge the first message; ``App.websocket_route`` documents it.

        Returns:
            Whether the view may run. Otherwise the connection is closed.
        """
        if self._subscriber is not None:
            raise RuntimeError("subscribe after the login of the route, in its view, and not in a hook before it")
        if not self.accepted:
            await self.accept()
        user = None
        with anyio.move_on_after(seconds) as limit:
            user = await check(self, await self.receive())
        if user:
            self.state.user = user
            return True
        _log.info("%r: no login %s", self.path, "in time" if limit.cancelled_caught else "with the first message")
        await self.close(CloseCode.POLICY_VIOLATION, "log in first")
        return False

    async def subscribe_by_route(self, topics: Sequence[str], since: Mapping[str, str | None] | None) -> None:
        """``subscribe`` to the topics of the route. A client that names positions is told what is lost of them."""
        # Otherwise nothing would tell it. To the view, ``ws.subscribe`` returns it.
        announce = self._options.announce or (None if since is None else gap_announcement)
        self.subscribed = await self._subscribe(self._ensure_subscriber(), topics, since, announce)

    @property
    def failure(self) -> Exception | None:
        """The first exception that a task of ``start_soon`` raised, which was logged."""
        return None if self._helpers is None else self._failure

    async def reject_with(self, response: Response) -> None:
        """``reject`` with a response that has no stream."""
        raw = [*response.headers.raw(), (b"content-length", b"%d" % len(response.body))]
        if (cors := self._options.cors) is not None:
            raw = cors.mark(raw, cors.allow(self.scope["headers"]))
        await self._connection.reject(response.status, raw, response.body)

    async def finish(self) -> None:
        """After the view returns: reject or close, then drain."""
        connection = self._connection
        if connection.state is CONNECTING:
            took_too_long = connection.tasks.was_cancelled
            _log.info("%r: the view %s without accepting", self.path, "was cancelled" if took_too_long else "returned")
            await self.reject(503 if took_too_long else 403)
        elif self.closed:
            await connection.wait_close_sent()
        else:
            await self._close(_NORMAL_CLOSURE, "")
        if self._helpers:
            for scope in list(self._helpers):
                scope.cancel()
        if self.accepted:
            await connection.drain_input()


def _unix_seconds(at: object) -> float:
    if isinstance(at, datetime):
        if at.utcoffset() is None:
            raise ValueError("expected a datetime with a time zone, such as datetime.now(UTC) + timedelta(hours=1)")
        return at.timestamp()
    if isinstance(at, bool) or not isinstance(at, int | float):
        raise TypeError(f"expected Unix seconds or a datetime with a time zone, got {type(at).__name__}")
    if not -_MAX_TIME < at < _MAX_TIME:
        raise ValueError(f"expected Unix seconds, got {at}; divide milliseconds by 1000; write None for never")
    return float(at)


@cache
def _process() -> str:
    """Random name of this process. Not computed at import, because the process may fork after it."""
    return urandom(4).hex()


def _is_disconnect_of(connection: Connection, error: BaseException) -> bool:
    """Whether ``error`` is the connection's own ``WebSocketDisconnect``, or a group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_disconnect_of(connection, inner) for inner in error.exceptions)
    return isinstance(error, WebSocketDisconnect) and error.source is connection
