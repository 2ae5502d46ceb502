"""The client's side of a WebSocket."""

import math
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self

import anyio
from anyio.lowlevel import checkpoint

from microws.closing import CloseCode, check_close
from microws.codec import dumps_json, loads_json
from microws.datastructures import Headers
from microws.errors import PayloadTypeError, WebSocketDisconnect, WebSocketRejected
from microws.interfaces import Event
from microws.testing.calls import AppCall, end_block, time_limit

__all__ = ["FrameCodec", "TestWebSocket"]


class FrameCodec(Protocol):
    """How a route encodes the values of one direction."""

    def encode(self, value: Any, /) -> str | bytes:
        """Return the ``str`` of a text frame or the ``bytes`` of a binary one."""
        ...

    def decode(self, payload: Any, /) -> Any:
        """Return the value in the ``str`` of a text frame or the ``bytes`` of a binary one."""
        ...


class TestWebSocket:
    """
    The client's side of a WebSocket: ``async with client.websocket("/chat/x") as ws``.

    Entering the block is the handshake; before it every use raises ``RuntimeError``. Leaving it closes with 1000 and
    waits for the app's end. An exception that leaves the app is raised by the next ``receive`` or ``send``, or at the
    end of the block; the messages that the app sent before it come first. With ``raise_errors=False`` only the close
    code shows it. Every wait has a limit, by default the client's ``timeout``. A ``receive`` that timed out or was
    cancelled loses nothing.

    Attributes:
        subprotocol: What the app chose of the offered subprotocols, or ``None``.
        accept_headers: The headers of the app's ``accept``.
    """

    __test__ = False

    def __init__(self, call: AppCall, *, codecs: tuple[FrameCodec, FrameCodec] | None, timeout: float) -> None:
        self.subprotocol: str | None = None
        self.accept_headers: Headers = Headers()
        self._made_call = call
        self._codecs = codecs
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        call = self._made_call
        call.start()
        with call.disconnect_on_error():
            with time_limit(self._timeout, call.missing):
                answer = await call.wait_answer(math.inf)
                body = b""
                if answer["type"] == "websocket.http.response.start":
                    while (chunk := await call.next_chunk(math.inf)) is not None:
                        body += chunk
            if answer["type"] == "websocket.accept":
                self.subprotocol = answer["subprotocol"]
                self.accept_headers = Headers(answer["headers"])
                return self
            await call.wait_ended(self._timeout)
            if answer["type"] == "websocket.close":
                # What every server answers to a close before accept.
                raise WebSocketRejected(403, code=answer["code"])
            status, headers = answer["status"], Headers(answer["headers"]).multi_items()
            raise WebSocketRejected(status, headers, body, code=3000 + status)

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # If the test was cancelled, the client disconnects without a close.
        code = CloseCode.NORMAL_CLOSURE if isinstance(error, Exception | None) else CloseCode.ABNORMAL_CLOSURE
        self._call.disconnect(code)
        if isinstance(error, WebSocketDisconnect) and self._call.finished:
            # Such as a close with 1011: the exception that the app raises after it is its cause.
            with anyio.move_on_after(self._timeout):
                await self._call.wait_until(self._call.is_over)
            self._call.raise_error()
        await end_block(error, lambda: self._call.wait_ended(self._timeout))

    @property
    def _call(self) -> AppCall:
        return self._made_call.started("websocket")

    @property
    def closed(self) -> bool:
        """Whether the connection has ended; messages that arrived before can still be received."""
        return self._call.disconnect_event is not None

    @property
    def close_code(self) -> int | None:
        """The close code after the end of the connection."""
        return (self._call.disconnect_event or {}).get("code")

    @property
    def close_reason(self) -> str | None:
        """The close reason after the end of the connection."""
        return (self._call.disconnect_event or {}).get("reason")

    async def send(self, value: Any) -> None:
        """
        Send a value as the route's codec encodes it; without codec ``str`` as text, ``bytes`` as binary, else as JSON.

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
        """Send a text frame. Does not wait until the app receives it."""
        await self._send({"type": "websocket.receive", "text": text})

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary frame. Does not wait until the app receives it."""
        await self._send({"type": "websocket.receive", "bytes": data})

    async def send_json(self, value: Any) -> None:
        """Send a value as JSON in a text frame."""
        await self.send_text(dumps_json(value).decode())

    async def receive(self, *, timeout: float | None = None) -> Any:
        """
        Wait for a message, decoded by the route's codec; without codec the ``str`` or ``bytes`` of the frame.

        A frame of a kind that the codec does not decode, such as published ``bytes`` on a JSON route, is returned
        unchanged.

        Args:
            timeout: Seconds. Default: the client's.

        Raises:
            WebSocketDisconnect: The connection has ended, with the server's code and reason.
            TimeoutError: No message arrived in time.
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
        Close from the client's side; a second close does nothing. Messages that have arrived can still be received.

        Args:
            code: A valid close code, or 1005 for a Close frame without one.
            reason: At most 123 UTF-8 bytes.

        Raises:
            ValueError: ``code`` or ``reason`` is invalid.
        """
        if code != CloseCode.NO_STATUS_RECEIVED or reason:
            check_close(code, reason)
        self._call.disconnect(int(code), reason)
        await checkpoint()

    def abort(self) -> None:
        """Disconnect without a Close frame: the app gets 1006."""
        self._call.disconnect()

    async def wait_closed(self, *, timeout: float | None = None) -> None:
        """
        Wait for the end of the connection, even if messages have not been received.

        Raises:
            TimeoutError: The connection was open after ``timeout`` seconds (default: the client's).
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
            self._raise_end()
        self._call.put(event)

    async def _receive(self, timeout: float | None) -> Event:
        timeout = self._timeout if timeout is None else timeout
        event = await self._call.next_event(timeout, f"{self._call.name}: no message")
        return event or self._raise_end()

    def _raise_end(self) -> NoReturn:
        # An exception after the app's own close is raised after it here, too: at the end of the block.
        if not self._call.finished:
            self._call.raise_error()
        raise WebSocketDisconnect(self.close_code or CloseCode.ABNORMAL_CLOSURE, self.close_reason or "")
