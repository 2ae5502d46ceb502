"""One WebSocket connection, seen from both ends."""

from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Protocol, Self

import anyio
from anyio.lowlevel import checkpoint

from microws.closing import CloseCode, check_close
from microws.codec import dumps_json, loads_json
from microws.datastructures import Headers
from microws.errors import PayloadTypeError, WebSocketDisconnect, WebSocketRejected
from microws.interfaces import Event
from microws.testing.calls import AppCall, check_loop, end_block
from microws.testing.rules import WebSocketRules

__all__ = ["FrameCodec", "TestWebSocket", "WebSocketCall"]


class FrameCodec(Protocol):
    """How the values of one direction of a route travel."""

    def encode(self, value: Any, /) -> str | bytes:
        """``value`` as the ``str`` of a text frame or the ``bytes`` of a binary one."""
        ...

    def decode(self, payload: Any, /) -> Any:
        """The value in the ``str`` of a text frame or the ``bytes`` of a binary one."""
        ...


class WebSocketCall(AppCall):
    """
    The app's side of one WebSocket.

    Args:
        name: Kind and path, for error messages.
        subprotocols: What the client offers.
        denial: Whether the extension ``websocket.http.response`` is offered.
        max_queue: How many messages wait for the client before the app's ``send`` waits.
    """

    def __init__(
        self,
        name: str,
        *,
        subprotocols: list[str],
        denial: bool,
        max_queue: int | None,
        raise_errors: bool,
        raise_after_disconnect: bool,
    ) -> None:
        super().__init__(name, raise_errors=raise_errors, raise_after_disconnect=raise_after_disconnect)
        self.accept: Event | None = None
        self.rejection: WebSocketRejected | None = None
        self.close: tuple[int, str] | None = None
        self.messages: deque[Event] = deque()
        self._rules = WebSocketRules(subprotocols=subprotocols, denial=denial)
        self._max_queue = max_queue
        self._inbox: deque[Event] = deque([{"type": "websocket.connect"}])
        self._denial_start: Event | None = None
        self._denial_body = b""
        self._disconnect: Event | None = None

    async def receive(self) -> Event:
        await self.wait_until(lambda: bool(self._inbox) or self._disconnect is not None)
        if self._inbox:
            return self._inbox.popleft()
        assert self._disconnect is not None
        return dict(self._disconnect)

    def check(self, event: Event) -> Event:
        return self._rules.check(event)

    def has_room(self) -> bool:
        return self._max_queue is None or len(self.messages) < self._max_queue

    def deliver(self, event: Event) -> None:
        match event["type"]:
            case "websocket.accept":
                self.accept = event
            case "websocket.send":
                self.messages.append(event)
            case "websocket.close" if self.accept is None:
                # What every server answers to a close before accept.
                self._reject(WebSocketRejected(403, code=event["code"]))
            case "websocket.close":
                self.finished = True
                self.end(event["code"], event["reason"])
            case "websocket.http.response.start":
                self._denial_start = event
            case _:
                self._deny(event)

    def put(self, event: Event) -> None:
        """Hand a message of the client to the app. Raises ``RuntimeError`` in another event loop than the app's."""
        check_loop(self._token)
        self._inbox.append(event)
        self.notify()

    def end(self, code: int, reason: str) -> None:
        """Both sides have closed: the app gets ``websocket.disconnect`` behind what the client had sent."""
        if self._disconnect is None:
            self.close = (code, reason)
            self._disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}

    def leave(self, code: int, reason: str) -> None:
        """The client closes."""
        self.end(code, reason)
        super().disconnect()

    def disconnect(self) -> None:
        self.leave(CloseCode.ABNORMAL_CLOSURE, "")

    async def wait_answered(self, timeout: float) -> None:
        """Wait until the handshake is accepted or refused. Raises what left the app, or ``TimeoutError``."""
        await self.wait(
            lambda: self.accept is not None or self.rejection is not None,
            timeout=timeout,
            waiting_for=f"no answer to the handshake of {self.name}",
        )
        if self.accept is None and self.rejection is None:
            self.raise_error()
            raise RuntimeError(f"{self.name}: the app returned without accepting or refusing the handshake")

    def _deny(self, event: Event) -> None:
        assert self._denial_start is not None
        self._denial_body += event["body"]
        if not event["more_body"]:
            status = self._denial_start["status"]
            headers = Headers(self._denial_start["headers"]).multi_items()
            self._reject(WebSocketRejected(status, headers, self._denial_body, code=3000 + status))

    def _reject(self, rejection: WebSocketRejected) -> None:
        self.finished = True
        self.rejection = rejection
        self.end(CloseCode.ABNORMAL_CLOSURE, "")


class TestWebSocket:
    """
    The client's side of a WebSocket: ``async with client.websocket("/chat/x") as ws``.

    Entering the block is the handshake, and before it every use is a ``RuntimeError``; leaving it closes with 1000 and
    waits for the app's end. Whatever left the app is raised by the next ``receive`` or ``send``, or at the end of the
    block; what the app sent before comes first. With ``raise_errors=False`` the close code is all that shows it.
    Every wait is limited, by the client's ``timeout`` where none is given. A ``receive`` that timed out or was
    cancelled has lost nothing.

    Attributes:
        subprotocol: What the app chose of the subprotocols that were offered, or ``None``.
        accept_headers: The headers of the app's ``accept``.
    """

    __test__ = False

    def __init__(
        self,
        call: WebSocketCall,
        start: Callable[[], Awaitable[None]],
        *,
        codecs: tuple[FrameCodec, FrameCodec] | None,
        timeout: float,
    ) -> None:
        self.subprotocol: str | None = None
        self.accept_headers = Headers()
        self._made_call = call
        self._start = start
        self._codecs = codecs
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        await self._start()
        assert self._call.accept is not None
        self.subprotocol = self._call.accept["subprotocol"]
        self.accept_headers = Headers(self._call.accept["headers"])
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A test that was cancelled vanishes; every other one is polite.
        code = CloseCode.NORMAL_CLOSURE if isinstance(error, Exception | None) else CloseCode.ABNORMAL_CLOSURE
        self._call.leave(code, "")
        if isinstance(error, WebSocketDisconnect) and self._call.finished:
            # Such as a close with 1011: the exception that the app raises after it says why.
            with anyio.move_on_after(self._timeout):
                await self._call.wait_until(self._call.is_over)
            self._call.raise_error()
        await end_block(error, lambda: self._call.wait_ended(self._timeout))

    @property
    def _call(self) -> WebSocketCall:
        return self._made_call.started("websocket")

    @property
    def closed(self) -> bool:
        """Whether the connection has ended; messages that came before may still be received."""
        return self._call.close is not None

    @property
    def close_code(self) -> int | None:
        """The close code once the connection has ended."""
        return self._call.close[0] if self._call.close else None

    @property
    def close_reason(self) -> str | None:
        """The close reason once the connection has ended."""
        return self._call.close[1] if self._call.close else None

    async def send(self, value: Any) -> None:
        """
        Send a value as the route's codec encodes it; without codec ``str`` as text, ``bytes`` as binary, else JSON.

        Raises:
            WebSocketDisconnect: The connection has ended.
        """
        if self._codecs:
            payload = self._codecs[0].encode(value)
            await (self.send_text(payload) if isinstance(payload, str) else self.send_bytes(payload))
        elif isinstance(value, str):
            await self.send_text(value)
        elif isinstance(value, bytes):
            await self.send_bytes(value)
        else:
            await self.send_json(value)

    async def send_text(self, text: str) -> None:
        """Send a text frame. Never waits for the app: what it has not received is kept."""
        await self._send({"type": "websocket.receive", "text": text})

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary frame. Never waits for the app: what it has not received is kept."""
        await self._send({"type": "websocket.receive", "bytes": data})

    async def send_json(self, value: Any) -> None:
        """Send a value as JSON in a text frame."""
        await self.send_text(dumps_json(value).decode())

    async def receive(self, *, timeout: float | None = None) -> Any:
        """
        Wait for a message: decoded by the route's codec; without codec ``str`` or ``bytes`` as it came.

        A frame of a kind that the codec does not read, such as published ``bytes`` on a JSON route, comes as it is.

        Args:
            timeout: Seconds. Default: the client's.

        Raises:
            WebSocketDisconnect: The connection has ended, with the server's code and reason.
            TimeoutError: Nothing came in time.
            InvalidMessage: The app sent what its codec cannot decode.
        """
        event = await self._receive(timeout)
        payload = event["text"] if "text" in event else event["bytes"]
        if self._codecs:
            try:
                return self._codecs[1].decode(payload)
            except PayloadTypeError:
                pass
        return payload

    async def receive_text(self, *, timeout: float | None = None) -> str:
        """Wait for a text frame. Raises ``PayloadTypeError`` for a binary one, and as ``receive`` does."""
        event = await self._receive(timeout)
        if "text" not in event:
            raise PayloadTypeError(f"{self._call.name}: expected a text frame, got binary {event['bytes'][:100]!r}")
        text: str = event["text"]
        return text

    async def receive_bytes(self, *, timeout: float | None = None) -> bytes:
        """Wait for a binary frame. Raises ``PayloadTypeError`` for a text one, and as ``receive`` does."""
        event = await self._receive(timeout)
        if "bytes" not in event:
            raise PayloadTypeError(f"{self._call.name}: expected a binary frame, got text {event['text'][:100]!r}")
        data: bytes = event["bytes"]
        return data

    async def receive_json(self, *, timeout: float | None = None) -> Any:
        """Wait for a text frame and decode it as JSON. Raises ``InvalidMessage``, and as ``receive_text`` does."""
        return loads_json(await self.receive_text(timeout=timeout))

    async def receive_event(self, *, timeout: float | None = None) -> Event:
        """Wait for the app's next ``websocket.send`` event; after its last one a ``websocket.close`` event."""
        try:
            return await self._receive(timeout)
        except WebSocketDisconnect as end:
            return {"type": "websocket.close", "code": end.code, "reason": end.reason}

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except WebSocketDisconnect:
            raise StopAsyncIteration from None

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """
        Close from the client's side; a second close does nothing. What has arrived may still be received.

        Args:
            code: A code that may be sent, or 1005 for a Close frame without one.
            reason: At most 123 UTF-8 bytes.

        Raises:
            ValueError: ``code`` or ``reason`` may not be sent.
        """
        if code != CloseCode.NO_STATUS_RECEIVED or reason:
            check_close(code, reason)
        self._call.leave(int(code), reason)
        await checkpoint()

    def abort(self) -> None:
        """Vanish without a word: the app sees 1006."""
        self._call.disconnect()

    async def wait_closed(self, *, timeout: float | None = None) -> None:
        """
        Wait until the connection has ended, whatever has not been received.

        Raises:
            TimeoutError: It had not ended after ``timeout`` seconds (default: the client's).
            Exception: Whatever left the app.
        """
        await self._call.wait(
            lambda: self.closed,
            timeout=self._timeout if timeout is None else timeout,
            waiting_for=f"{self._call.name}: no close",
        )
        self._call.raise_error()

    async def _send(self, event: Event) -> None:
        await checkpoint()
        if self._call.is_over() or self.closed:
            raise self._end()
        self._call.put(event)

    async def _receive(self, timeout: float | None) -> Event:
        call = self._call
        await call.wait(
            lambda: bool(call.messages) or call.close is not None,
            timeout=self._timeout if timeout is None else timeout,
            waiting_for=f"{call.name}: no message",
        )
        if call.messages:
            event = call.messages.popleft()
            call.notify()
            return event
        raise self._end()

    def _end(self) -> BaseException:
        # What the app raised behind its own close comes behind that close here too: at the end of the block.
        error = None if self._call.finished else self._call.take_error()
        return error or WebSocketDisconnect(*(self._call.close or (CloseCode.ABNORMAL_CLOSURE, "")))
