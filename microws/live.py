"""A WebSocket that speaks ``microws.v1``: topics that the client chooses, and messages in an envelope."""

from base64 import b64decode, b64encode
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, Final

import anyio

from microws.answers import report
from microws.closing import truncate_reason
from microws.codec import dumps_json, loads_json
from microws.connection import Connection
from microws.connection.deadlines import Deadlines, deadlines_of
from microws.errors import (
    HTTPException,
    HubUnavailable,
    InvalidMessage,
    MicrowsError,
    PublishTimeout,
    TooManySubscriptions,
)
from microws.hub import Published, encode_key, live_frame, running_loop
from microws.interfaces import Application, Scope
from microws.requests import BaseRequest
from microws.websocket import WebSocket, WebSocketOptions

__all__ = ["BEAT_INTERVAL", "LiveFrame", "LiveWebSocket", "Malformed", "publish_for", "refusal_of"]

# Seconds between two signs of life: a page cannot see the pings of WebSocket. Precedent: Engine.IO's pingInterval.
BEAT_INTERVAL: Final = 25.0

# RFC 6455 §7.4.2, "private use": an HTTP status and 4000.
_CODES: Final = 4000
_MALFORMED: Final = 4400
_TOO_MANY: Final = 4429
_UNAVAILABLE: Final = 4503
_ENDED: Final = 1000
# Numbers that JavaScript has, RFC 8259 §6.
_MAX_NUMBER: Final = 2**53


class LiveWebSocket(WebSocket[Any, Any]):
    """
    ``WebSocket`` for a client that offered ``microws.v1``; docs/live-protocol.md describes the frames.

    Frames of the client that are for the hub are handled while the view receives, one after the other: each waits for
    its hook, and for the hub. So a client that sends without reading is slowed down like any other.
    """

    __slots__ = ("_beats",)

    def __init__(
        self,
        scope: Scope,
        connection: Connection,
        app: Application,
        path: str,
        path_params: dict[str, Any],
        options: WebSocketOptions,
    ) -> None:
        super().__init__(scope, connection, app, path, path_params, options)
        self._next = self._next_message
        self._beats: Deadlines[LiveWebSocket] | None = None
        # Before everything else, as soon as the handshake is accepted.
        self._put({"hello": {"id": self.id, "ping": BEAT_INTERVAL}})

    def _accept(self, *args: Any) -> Coroutine[Any, Any, None]:
        accepted = super()._accept(*args)
        loop = running_loop()
        if loop is None:
            self.start_soon(self._beat_on_trio)
        else:
            self._beats = deadlines_of(loop, BEAT_INTERVAL, LiveWebSocket._beat)
            self._beats.start(self)
        return accepted

    def _leave(self) -> None:
        if self._beats is not None:
            self._beats.stop(self)
        super()._leave()

    # Frames out

    def send(self, value: Any, *, type: Any = None) -> Coroutine[Any, Any, None]:  # noqa: A002
        """``WebSocket.send``, in an envelope."""
        codec = self._options.send_codec if type is None else self._options.codecs.get(type)
        payload = codec.encode(value)
        if isinstance(payload, bytes):
            text = f'{{"base64":"{b64encode(payload).decode()}"}}'
        else:
            text = f'{{"data":{payload if codec.name == "json" else dumps_json(payload).decode()}}}'
        return self._connection.send(text)

    async def unsubscribe(self, *topics: str) -> None:
        """``WebSocket.unsubscribe``; tells the client."""
        before = set() if self._subscriber is None else self._subscriber.topics & set(topics)
        await super().unsubscribe(*topics)
        for topic in topics:
            if topic in before:
                self._put({"topic": topic, "end": _ENDED, "reason": "unsubscribed"})

    def tell_members(self, frame: Published) -> None:
        """Queue a frame that no policy drops. Never waits."""
        outbox = self._connection.ensure_outbox()
        outbox.hold()
        outbox.feed([frame])
        self._connection.wake()

    def _put(self, frame: dict[str, Any]) -> None:
        self.tell_members(live_frame(frame))

    def _beat(self) -> None:
        if self.closed or self._beats is None:
            return
        if not self.queued:  # otherwise the client gets something anyway, when it reads
            self._put({})
        self._beats.start(self)

    async def _beat_on_trio(self) -> None:
        while True:
            await anyio.sleep(BEAT_INTERVAL)
            if not self.queued:
                self._put({})

    # Frames in

    async def _next_message(self) -> str | bytes | None:
        """The next message for the view, without its envelope."""
        while (message := await self._connection.receive()) is not None:
            try:
                frame = LiveFrame(message)
                if frame.verb in ("data", "base64"):
                    return self._payload(frame)
                if frame.verb:
                    await self._serve(frame)
            except Malformed as error:
                self._connection.close(_MALFORMED, truncate_reason(str(error)))
        return None

    def _payload(self, frame: "LiveFrame") -> str | bytes:
        if frame.verb == "base64":
            return frame.binary()
        if self._options.receive_codec.name == "json":
            return dumps_json(frame.values["data"]).decode()
        return frame.text("data")

    async def _serve(self, frame: "LiveFrame") -> None:
        answer: dict[str, Any] | None = {}
        try:
            match frame.verb:
                case "subscribe":
                    answer = await self._subscribe_for(frame)
                case "unsubscribe":
                    topic = frame.text("unsubscribe")
                    self._unsubscribe((topic,))
                case "publish":
                    answer = await publish_for(self, frame)
        except (HTTPException, TooManySubscriptions, PublishTimeout, HubUnavailable, TypeError, ValueError) as error:
            answer = refusal_of(error)
        if answer is not None and (frame.number is not None or frame.verb == "ping"):
            number = {} if frame.number is None else {"n": frame.number}
            await self._connection.send(dumps_json(number | answer).decode())

    async def _subscribe_for(self, frame: "LiveFrame") -> dict[str, Any] | None:
        """Subscribe for the client. ``None``: its answer is in the outbox already, before the messages."""
        topic, since = frame.text("subscribe"), frame.values.get("since")
        if since is not None and not isinstance(since, str):
            raise Malformed("expected since as a string")
        presence = await self.app.topic_hooks.check_subscribe(self, topic)
        # Its first frame goes into the outbox, which takes that in any case.
        await self._connection.wait_room()
        answered = _Answered(frame.number)
        subscribed = await self._subscribe(self._ensure_subscriber(), (topic,), since, answered)
        if presence is not None:
            self._join((topic,), presence)
        if answered.is_done:
            return None
        position = {} if subscribed.position is None else {"id": subscribed.position}
        return {**position, "recovered": False}


async def publish_for(connection: BaseRequest, frame: "LiveFrame") -> dict[str, Any]:
    """
    Publish for a client, and return the answer.

    Raises:
        Malformed: The frame has no data.
        HTTPException: The client may not publish this.
        PublishTimeout, HubUnavailable, TypeError, ValueError: As from ``Hub.publish``.
    """
    topic, key = frame.text("publish"), frame.values.get("key")
    if "base64" in frame.values:
        message: Any = frame.binary()
    elif "data" in frame.values:
        message = frame.values["data"]
    else:
        raise Malformed("expected data or base64 beside publish")
    hub = connection.app.hub
    value = await connection.app.topic_hooks.check_publish(connection, topic, message)
    # Without history, nothing remembers a key.
    settings = hub.settings(topic)
    if key is not None and settings.history:
        encode_key(key, topic, settings)
    try:
        receipt = await hub.publish(topic, value, key=key if settings.history else None)
    except (PublishTimeout, HubUnavailable):
        raise
    except Exception as error:
        # What the client has sent may be invalid. What the app has made of it is the app's mistake.
        if isinstance(error, TypeError | ValueError) and value is message:
            raise
        error_id = report(error, connection.path, f"a message for {topic!r} cannot be published")
        raise HTTPException(500, f"internal error, error id {error_id}") from None
    return {} if receipt.id is None else {"id": receipt.id}


def refusal_of(error: Exception) -> dict[str, Any]:
    """The answer to a question that fails."""
    match error:
        case HTTPException():
            code, reason = _CODES + error.status, str(error.detail)
        case TooManySubscriptions():
            code, reason = _TOO_MANY, str(error)
        case PublishTimeout() | HubUnavailable():
            code, reason = _UNAVAILABLE, "the hub does not answer; try again"
        case _:
            code, reason = _MALFORMED, str(error)
    return {"error": code, "reason": reason}


class _Answered:
    """The answer to a subscription with history, before its first message; see ``Announce``."""

    def __init__(self, number: int | None) -> None:
        self._number = number
        self.is_done = False

    def __call__(self, positions: Mapping[str, str], asked: Collection[str], lost: Collection[str]) -> list[Published]:
        self.is_done = True
        return [
            live_frame(
                ({"topic": topic} if self._number is None else {"n": self._number})
                | {"id": position, "recovered": topic in asked and topic not in lost}
            )
            for topic, position in positions.items()
        ]


class Malformed(MicrowsError):
    """The client does not speak the protocol."""


class LiveFrame:
    """
    A frame of the client.

    Attributes:
        verb: What it asks for; ``""``: nothing that this version knows.
        number: That of the question, if it wants an answer.
        values: All its fields.
    """

    # A publish has data, too.
    VERBS: Final = ("subscribe", "unsubscribe", "publish", "ping", "data", "base64")

    def __init__(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            raise Malformed("expected a text frame, got a binary one")
        try:
            values = loads_json(message)
        except InvalidMessage as error:
            raise Malformed(f"expected JSON: {error}") from None
        if not isinstance(values, dict):
            raise Malformed(f"expected a JSON object, got {type(values).__name__}")
        self.values: dict[str, Any] = values
        self.verb: str = next((verb for verb in self.VERBS if verb in values), "")
        self.number: int | None = values.get("n")
        if self.number is not None and (type(self.number) is not int or not 0 <= self.number < _MAX_NUMBER):
            raise Malformed("expected n as a whole number")

    def text(self, name: str) -> str:
        """A field that must be a string."""
        value = self.values[name]
        if not isinstance(value, str):
            raise Malformed(f"expected {name} as a string")
        return value

    def binary(self) -> bytes:
        """The bytes in ``base64``."""
        try:
            return b64decode(self.text("base64"), validate=True)
        except ValueError:
            raise Malformed("expected base64 as in RFC 4648 §4") from None
