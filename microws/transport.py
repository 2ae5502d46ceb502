"""
The portable transport: one WebSocket connection over ASGI's ``receive`` and ``send``, on any server.

Three things may run at once for a connection: the pump, which always reads, so that a disconnect is seen at once and
nothing stays behind in the server; the view; and, only where something had to wait its turn, the drainer, which empties
the outbox. Of the last two, one at a time is inside ASGI's ``send``.
"""

import asyncio
import logging
import types
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, NamedTuple

import anyio
from anyio.abc import TaskGroup

from microws.closing import CloseCode
from microws.errors import WebSocketDisconnect
from microws.interfaces import Event, Frame, Receive, Send
from microws.outbox import Outbox
from microws.state import Action, State, step

__all__ = ["Limits", "PortableTransport"]

_log = logging.getLogger("microws.websocket")


class Limits(NamedTuple):
    """
    What one connection may cost. Precedents are named where ``App`` documents each.

    Attributes:
        max_message_size: Payload bytes of one incoming message.
        receive_queue: Incoming messages that wait for the view before reading pauses; 1 MiB of them pauses it too.
        send_timeout: Seconds that one ``ws.send`` waits for a slow client.
        accept_timeout: Seconds from the request to ``accept``.
        close_timeout: Seconds that a close waits for what is queued before it, and that a view has to notice the end.
    """

    max_message_size: int = 1 << 20
    receive_queue: int = 64
    send_timeout: float = 10
    accept_timeout: float = 10
    close_timeout: float = 5


class PortableTransport:
    """
    One connection as ASGI events.

    Args:
        receive, send: ASGI's.
        tasks: Lives as long as the connection; the drainer runs in it.
        limits: Shared by the connections of an app.
        has_denial: Whether the server takes an HTTP response in place of the handshake.
        make_outbox: Called once, when the connection first needs a queue.
        on_end: Called once, when the client has gone or the connection is closed from outside the view.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket
    """

    __slots__ = (
        "_arrived",
        "_close_due",
        "_discarding",
        "_draining",
        "_has_denial",
        "_idle",
        "_inbox",
        "_inbox_bytes",
        "_limits",
        "_make_outbox",
        "_on_end",
        "_receive",
        "_room",
        "_send",
        "_send_within",
        "_sending",
        "_sent_while_paused",
        "_tasks",
        "_unpaused",
        "_work",
        "close_code",
        "close_reason",
        "outbox",
        "state",
    )

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        tasks: TaskGroup,
        limits: Limits,
        has_denial: bool,
        make_outbox: Callable[[], Outbox],
        on_end: Callable[[], None],
    ) -> None:
        self.state = State.CONNECTING
        self.close_code: int | None = None
        self.close_reason = ""
        self.outbox: Outbox | None = None
        self._receive = receive
        self._send = send
        self._tasks = tasks
        self._limits = limits
        self._has_denial = has_denial
        self._make_outbox = make_outbox
        self._on_end = on_end
        self._send_within = _within if _on_asyncio() else _within_scope
        self._inbox: deque[str | bytes] | None = None
        self._inbox_bytes = 0
        self._discarding = False
        self._sending = False
        self._sent_while_paused = False
        self._close_due = False
        self._draining = False
        # Each event exists only while somebody waits for it.
        self._arrived: anyio.Event | None = None  # a message, or the end
        self._unpaused: anyio.Event | None = None  # room in the inbox
        self._room: anyio.Event | None = None  # room in the outbox
        self._idle: anyio.Event | None = None  # nobody is inside ASGI's send
        self._work: anyio.Event | None = None  # something for the drainer

    # The pump

    async def pump(self) -> None:
        """Read until the client has gone. A view that has ended does not stop it: it then reads and discards."""
        receive = self._receive
        max_chars = self._limits.max_message_size // 4
        while True:
            event = await receive()
            if event["type"] == "websocket.receive":
                message: str | bytes | None = event.get("text")
                if message is None:
                    message = event["bytes"]
                    assert message is not None
                if self._discarding:
                    continue
                # Four bytes a character is the most that UTF-8 takes; only longer text needs to be measured.
                if len(message) > max_chars and _size(message) > self._limits.max_message_size:
                    self.fail(CloseCode.MESSAGE_TOO_BIG, f"message over {self._limits.max_message_size} bytes")
                    continue
                if self._inbox is None:
                    self._inbox = deque()
                self._inbox.append(message)
                self._inbox_bytes += len(message)
                if (arrived := self._arrived) is not None:
                    self._arrived = None
                    arrived.set()
                elif len(self._inbox) >= self._limits.receive_queue or self._inbox_bytes >= _MAX_INBOX_BYTES:
                    await self._pause()
            elif event["type"] == "websocket.disconnect":
                self._end(event.get("code"), event.get("reason") or "")
                return

    def discard(self) -> None:
        """Keep nothing more of what the client sends: nobody will receive it."""
        self._discarding = True
        self._inbox = None
        self._wake_pump()

    async def _pause(self) -> None:
        """Read no further until the view has taken a message."""
        while self._inbox and not self._discarding:
            self._unpaused = self._unpaused or anyio.Event()
            self._sent_while_paused = False
            with anyio.move_on_after(self._limits.send_timeout):
                await self._unpaused.wait()
                return
            if self._sent_while_paused:
                # A view that only sends would never learn that its client has left, for that stands behind the
                # messages that it does not read.
                _log.warning("a view sends but does not receive what its client sends: closed with 1008")
                self.fail(CloseCode.POLICY_VIOLATION, "messages are not read here")

    def _wake_pump(self) -> None:
        if self._unpaused is not None:
            self._unpaused.set()
            self._unpaused = None

    # For the view

    async def accept(self, subprotocol: str | None, headers: list[tuple[bytes, bytes]]) -> None:
        """
        Answer the handshake with 101.

        Raises:
            WebSocketDisconnect: The client has gone.
            RuntimeError: Accepted, or rejected, already.
        """
        if self.state is State.CLOSED:
            raise self.disconnect()
        self.state = step(self.state, Action.ACCEPT)
        self._sending = True
        try:
            await self._transmit({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})
        finally:
            self._release()

    async def reject(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """
        Answer the handshake with an HTTP response; 403 where the server knows no other.

        Raises:
            RuntimeError: Accepted, or rejected, already.

        Source: https://asgi.readthedocs.io/en/latest/extensions.html#websocket-denial-response
        """
        if self.state is State.CLOSED:
            return
        self.state = step(self.state, Action.REJECT)
        self.close_code, self.close_reason = 3000 + status, ""
        self._wake_all()
        try:
            if self._has_denial:
                start = {"type": "websocket.http.response.start", "status": status, "headers": headers}
                await self._transmit(start)
                await self._transmit({"type": "websocket.http.response.body", "body": body})
            else:
                await self._transmit({"type": "websocket.close", "code": self.close_code, "reason": ""})
        except WebSocketDisconnect:
            pass

    async def receive(self) -> str | bytes:
        """
        The next message. Cancelled, it has lost nothing.

        Raises:
            WebSocketDisconnect: The connection has ended and every message was received, or this side has closed it.
        """
        while not self._inbox:
            if self.state is not State.OPEN:
                raise self.disconnect()
            self._arrived = self._arrived or anyio.Event()
            await self._arrived.wait()
        message = self._inbox.popleft()
        self._inbox_bytes -= len(message)
        if self._unpaused is not None:
            self._wake_pump()
        return message

    async def send(self, frame: Frame) -> None:
        """
        Send a frame after everything that waits already.

        Raises:
            WebSocketDisconnect: The connection has ended, or the client took nothing for ``send_timeout`` seconds
                (1013).
        """
        if self.state is not State.OPEN:
            raise self.disconnect()
        if self._unpaused is not None:
            self._sent_while_paused = True
        if self._sending or self.outbox:
            await self._wait_turn(frame)
            return
        self._sending = True
        try:
            await self._send_within(self._limits.send_timeout, self._send(_event(frame)))
        except _Stalled:
            self.fail(CloseCode.TRY_AGAIN_LATER, "too slow")
            raise self.disconnect() from None
        except OSError:
            self._end(CloseCode.ABNORMAL_CLOSURE, "")
            raise self.disconnect() from None
        finally:
            self._release()
        if self.state is not State.OPEN:
            raise self.disconnect()

    async def close(self, code: int, reason: str) -> None:
        """
        Send what waits, then a Close frame; give up after ``close_timeout`` seconds. A second close does nothing.

        Cancelled, it leaves the rest to the drainer.
        """
        if self.state in (State.CLOSED, State.CLOSING):
            return
        self.state = step(self.state, Action.CLOSE)
        self.close_code, self.close_reason = code, reason
        self._close_due = True
        self.discard()
        self._wake_all()
        try:
            await self.flush()
        finally:
            if self._close_due:
                self.wake()

    async def flush(self) -> None:
        """Wait until what is queued, and the Close frame where one is due, has left; ``close_timeout`` at most."""
        with anyio.move_on_after(self._limits.close_timeout):
            while self._sending:
                self._idle = self._idle or anyio.Event()
                await self._idle.wait()
            if self._close_due or self.outbox:
                await self._flush_now()

    def disconnect(self) -> WebSocketDisconnect:
        """What a call on an ended connection raises."""
        return WebSocketDisconnect(self.close_code or CloseCode.ABNORMAL_CLOSURE, self.close_reason)

    # For the hub

    def ensure_outbox(self) -> Outbox:
        """The connection's queue; made when it is first needed."""
        if self.outbox is None:
            self.outbox = self._make_outbox()
        return self.outbox

    def wake(self) -> None:
        """Something was put into the outbox: let the drainer see to it."""
        if not self._draining:
            self._draining = True
            self._tasks.start_soon(self._drain)
        elif self._work is not None:
            self._work.set()
            self._work = None

    def fail(self, code: int, reason: str) -> None:
        """Close from outside the view: what waits is lost, the view learns of it at its next call. Never waits."""
        if self.state in (State.CLOSED, State.CLOSING):
            return
        self.state = step(self.state, Action.CLOSE)
        self.close_code, self.close_reason = code, reason
        self._close_due = True
        if self.outbox is not None:
            self.outbox.clear()
        self.discard()
        self._wake_all()
        self._on_end()
        self.wake()

    # Inside

    async def _wait_turn(self, frame: Frame) -> None:
        outbox = self.ensure_outbox()
        if outbox.is_full:
            with anyio.move_on_after(self._limits.send_timeout) as waiting:
                while self.close_code is None and outbox.is_full:
                    self._room = self._room or anyio.Event()
                    await self._room.wait()
            if waiting.cancelled_caught:
                self.fail(CloseCode.TRY_AGAIN_LATER, "too slow")
            if self.close_code is not None:
                raise self.disconnect()
        outbox.send_nowait(frame)
        self.wake()

    async def _drain(self) -> None:
        while True:
            ready = self.state is not State.CONNECTING and not self._sending and (self.outbox or self._close_due)
            if ready:
                await self._flush_now()
            if self.state is State.CLOSED or (self.state is State.CLOSING and not self._close_due):
                return
            if not ready:
                self._work = anyio.Event()
                await self._work.wait()

    async def _flush_now(self) -> None:
        self._sending = True
        try:
            while self.outbox:
                await self._transmit(_event(self.outbox.pop()))
                if self._room is not None:
                    self._room.set()
                    self._room = None
            if self._close_due:
                close = {"type": "websocket.close", "code": self.close_code, "reason": self.close_reason}
                await self._transmit(close)
                self._close_due = False
        except WebSocketDisconnect:
            pass
        finally:
            self._release()

    async def _transmit(self, event: Event) -> None:
        try:
            await self._send(event)
        except OSError:
            # ASGI: "If send is called on a closed connection the server should raise a server-specific subclass of
            # OSError."
            self._end(CloseCode.ABNORMAL_CLOSURE, "")
            raise self.disconnect() from None

    def _release(self) -> None:
        self._sending = False
        if self._idle is not None:
            self._idle.set()
            self._idle = None
        if self._work is not None:
            self._work.set()
            self._work = None

    def _end(self, code: int | None, reason: str) -> None:
        """The client has gone. A close of our own keeps its code."""
        if self.state is State.CLOSED:
            return
        if self.state is not State.CLOSING:
            self.close_code = CloseCode.NO_STATUS_RECEIVED if code is None else code
            self.close_reason = reason
        self.state = step(self.state, Action.DISCONNECT)
        self._close_due = False
        if self.outbox is not None:
            self.outbox.clear()
        self._wake_all()
        self._on_end()

    def _wake_all(self) -> None:
        for name in ("_arrived", "_room", "_work"):
            event = getattr(self, name)
            if event is not None:
                setattr(self, name, None)
                event.set()


_MAX_INBOX_BYTES = 1 << 20


class _Stalled(Exception):
    """A send that did not end in time. Not a ``TimeoutError``, which may be a server's own ``OSError``."""


def _event(frame: Frame) -> Event:
    if frame.is_text:
        return {"type": "websocket.send", "text": frame.text}
    return {"type": "websocket.send", "bytes": frame.data}


def _size(message: str | bytes) -> int:
    return len(message.encode(errors="surrogatepass")) if isinstance(message, str) else len(message)


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _within(seconds: float, awaitable: Awaitable[None]) -> None:
    """
    Await for at most ``seconds``. What ends without ever waiting costs no timer: nearly every send.

    For asyncio only: trio's and anyio's cancel scopes must nest, and one that is opened here, when ``awaitable`` has
    begun, would stand inside those that it has opened.
    """
    steps = awaitable.__await__()
    try:
        waited_for = next(steps)
    except StopIteration:
        return
    try:
        async with asyncio.timeout(seconds) as timeout:
            await _finish(steps, waited_for)
    except TimeoutError:
        if timeout.expired():
            raise _Stalled from None
        raise


@types.coroutine
def _finish(steps: Generator[Any, Any, None], waited_for: Any) -> Generator[Any, Any, None]:
    """Go on with an awaitable that has run up to its first wait. Cancellation reaches it as in ``await``."""
    while True:
        try:
            value = yield waited_for
        except BaseException as error:
            resume = partial(steps.throw, error)
        else:
            resume = partial(steps.send, value)
        try:
            waited_for = resume()
        except StopIteration:
            return


async def _within_scope(seconds: float, awaitable: Awaitable[None]) -> None:
    with anyio.move_on_after(seconds) as scope:
        await awaitable
    if scope.cancelled_caught:
        raise _Stalled
