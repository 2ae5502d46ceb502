"""
The portable transport: one WebSocket connection over ASGI's ``receive`` and ``send``, on any server.

Somebody always reads, so that a disconnect is seen and nothing stays behind in the server: the view while it waits for a
message, and else the pump, a task that is there only for as long. One task at a time is inside ASGI's ``receive``, and
one inside its ``send``: the view, or, where something had to wait its turn, the drainer, which empties the outbox.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import anyio
from anyio.abc import TaskGroup

from microws.closing import CloseCode
from microws.errors import WebSocketDisconnect
from microws.interfaces import Event, Frame, Receive, Send
from microws.outbox import Outbox
from microws.state import Action, State, step
from microws.tasks import TICK, AsyncioTasks, GroupTasks, Tasks

__all__ = ["Limits", "PortableTransport"]

_log = logging.getLogger("microws.websocket")

_MAX_INBOX_BYTES = 1 << 20
# Sends in a row, without a receive, after which somebody else has to watch for the disconnect.
_MAX_UNWATCHED_SENDS = 8


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
        group: A task group that lives as long as the connection; ``None`` on asyncio, which needs none.
        limits: Shared by the connections of an app.
        has_denial: Whether the server takes an HTTP response in place of the handshake.
        make_outbox: Called once, when the connection first needs a queue.
        on_end: Called once, when the client has gone or the connection is closed from outside the view.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket
    """

    __slots__ = (
        "_arrived",
        "_asgi_receive",
        "_asgi_send",
        "_close_due",
        "_has_denial",
        "_has_drainer",
        "_idle",
        "_inbox",
        "_inbox_bytes",
        "_is_discarding",
        "_is_reading",
        "_is_sending",
        "_limits",
        "_make_outbox",
        "_on_end",
        "_reader",
        "_room",
        "_send_ticks",
        "_sender",
        "_sent_while_paused",
        "_unpaused",
        "_unwatched_sends",
        "_work",
        "close_code",
        "close_reason",
        "outbox",
        "state",
        "tasks",
    )

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        group: TaskGroup | None,
        limits: Limits,
        has_denial: bool,
        make_outbox: Callable[[], Outbox],
        on_end: Callable[[], None],
    ) -> None:
        self.state = State.CONNECTING
        self.close_code: int | None = None
        self.close_reason = ""
        self.outbox: Outbox | None = None
        self.tasks: Tasks = AsyncioTasks(self._tick) if group is None else GroupTasks(group)
        self._asgi_receive = receive
        self._asgi_send = send
        self._limits = limits
        self._has_denial = has_denial
        self._make_outbox = make_outbox
        self._on_end = on_end
        self._inbox: deque[str | bytes] | None = None
        self._inbox_bytes = 0
        self._is_discarding = False
        self._is_reading = False
        self._is_sending = False
        self._unwatched_sends = 0
        self._sent_while_paused = False
        self._close_due = False
        self._has_drainer = False
        # On asyncio: the tasks inside ASGI's receive and send that may be interrupted when the connection ends.
        self._reader: asyncio.Task[Any] | None = None
        self._sender: asyncio.Task[Any] | None = None
        self._send_ticks = 0
        # Each event exists only while somebody waits for it.
        self._arrived: anyio.Event | None = None  # a message, the end, or a turn to read
        self._unpaused: anyio.Event | None = None  # room in the inbox
        self._room: anyio.Event | None = None  # room in the outbox
        self._idle: anyio.Event | None = None  # nobody is inside ASGI's send
        self._work: anyio.Event | None = None  # something for the drainer
        if not self.tasks.is_ticking:
            self.read_ahead()

    # Reading

    async def receive(self) -> str | bytes:
        """
        The next message. Cancelled, it has lost nothing, if the server's ``receive`` loses nothing.

        Raises:
            WebSocketDisconnect: The connection has ended and every message was received, or this side has closed it.
        """
        while True:
            if self._inbox:
                return self._take()
            if self.state is not State.OPEN:
                raise self.disconnect()
            if self._is_reading:
                self._arrived = self._arrived or anyio.Event()
                await self._arrived.wait()
                continue
            self._is_reading = True
            self._unwatched_sends = 0
            self._reader = asyncio.current_task()
            try:
                message = self._message_of(await self._asgi_receive())
            except asyncio.CancelledError:
                if not _was_interrupted(self._reader):
                    raise
                raise self.disconnect() from None
            finally:
                self._is_reading = False
                self._reader = None
                if self._arrived is not None:
                    self._wake("_arrived")
            if message is not None:
                return message

    def read_ahead(self) -> None:
        """Have messages read into the inbox until the view receives again. Never waits."""
        if not self._is_reading and self.state is not State.CLOSED:
            self._is_reading = True
            self.tasks.start_soon(self._pump)

    def discard(self) -> None:
        """Keep nothing more of what the client sends: nobody will receive it."""
        self._is_discarding = True
        self._inbox = None
        self._wake("_unpaused")

    async def linger(self) -> None:
        """Read and discard until the client has gone, so that nothing stays behind in the server."""
        self.discard()
        while self.state is not State.CLOSED:
            if self._is_reading:
                self._arrived = self._arrived or anyio.Event()
                await self._arrived.wait()
            else:
                self._is_reading = True
                try:
                    self._message_of(await self._asgi_receive())
                finally:
                    self._is_reading = False

    async def _pump(self) -> None:
        try:
            while self.state is not State.CLOSED:
                message = self._message_of(await self._asgi_receive())
                if message is None:
                    continue
                if self._inbox is None:
                    self._inbox = deque()
                self._inbox.append(message)
                self._inbox_bytes += len(message)
                if self._arrived is not None:
                    self._wake("_arrived")
                    if self.tasks.is_ticking:
                        return
                elif len(self._inbox) >= self._limits.receive_queue or self._inbox_bytes >= _MAX_INBOX_BYTES:
                    await self._pause()
        except Exception:
            _log.exception("the server's receive failed")
            self._end(CloseCode.ABNORMAL_CLOSURE, "")
        finally:
            self._is_reading = False

    async def _pause(self) -> None:
        """Read no further until the view has taken a message."""
        while self._inbox:
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

    def _take(self) -> str | bytes:
        assert self._inbox is not None
        message = self._inbox.popleft()
        self._inbox_bytes -= len(message)
        if self._unpaused is not None:
            self._wake("_unpaused")
        return message

    def _message_of(self, event: Event) -> str | bytes | None:
        """The message in an event, if there is one for the view."""
        if event["type"] == "websocket.receive":
            message: str | bytes | None = event.get("text")
            if message is None:
                message = event["bytes"]
                assert message is not None
            # Four bytes a character is the most that UTF-8 takes; only longer text needs to be measured.
            limit = self._limits.max_message_size
            if len(message) * 4 > limit and _size(message) > limit:
                self.fail(CloseCode.MESSAGE_TOO_BIG, f"message over {limit} bytes")
            return None if self._is_discarding else message
        if event["type"] == "websocket.disconnect":
            code = event.get("code")
            self._end(CloseCode.NO_STATUS_RECEIVED if code is None else code, event.get("reason") or "")
        return None

    # The handshake

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
        self._is_sending = True
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
        self.close_code = 3000 + status
        self.discard()
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

    # Sending

    async def send(self, frame: Frame) -> None:
        """
        Send a frame after everything that waits already.

        Raises:
            WebSocketDisconnect: The connection has ended, or the client took nothing for ``send_timeout`` seconds
                (1013).
        """
        if self.state is not State.OPEN:
            raise self.disconnect()
        if not self._is_reading:
            self._unwatched_sends += 1
            if self._unwatched_sends > _MAX_UNWATCHED_SENDS:
                self.read_ahead()
        elif self._unpaused is not None:
            self._sent_while_paused = True
        if self._is_sending or self.outbox:
            await self._wait_turn(frame)
            return
        self._is_sending = True
        try:
            if not await self._transmit_within(self._limits.send_timeout, _event(frame)):
                self.fail(CloseCode.TRY_AGAIN_LATER, "too slow")
        finally:
            self._release()
        if self.close_code is not None:
            raise self.disconnect()

    async def close(self, code: int, reason: str) -> None:
        """
        Send what waits, then a Close frame; give up after ``close_timeout`` seconds. A second close does nothing.

        Cancelled, it leaves the rest to the drainer.
        """
        if self.state in (State.CLOSED, State.CLOSING):
            return
        self._begin_close(code, reason)
        try:
            await self.flush()
        finally:
            if self._close_due:
                self.wake()

    async def flush(self) -> None:
        """Wait until what is queued, and the Close frame where one is due, has left; ``close_timeout`` at most."""
        if not self._close_due:
            return
        if not self._is_sending and not self.outbox:
            self._is_sending = True
            try:
                await self._transmit_close()
            finally:
                self._release()
            return
        with anyio.move_on_after(self._limits.close_timeout):
            while self._is_sending:
                self._idle = self._idle or anyio.Event()
                await self._idle.wait()
            if self._close_due:
                await self._empty()

    def fail(self, code: int, reason: str) -> None:
        """Close from outside the view: what waits is lost, the view learns of it at its next call. Never waits."""
        if self.state in (State.CLOSED, State.CLOSING):
            return
        self._begin_close(code, reason)
        if self.outbox is not None:
            self.outbox.clear()
        self._interrupt("_sender")
        self._on_end()
        self.wake()

    def disconnect(self) -> WebSocketDisconnect:
        """What a call on an ended connection raises."""
        return WebSocketDisconnect(self.close_code or CloseCode.ABNORMAL_CLOSURE, self.close_reason)

    def ensure_outbox(self) -> Outbox:
        """The connection's queue; made when it is first needed."""
        if self.outbox is None:
            self.outbox = self._make_outbox()
        return self.outbox

    def wake(self) -> None:
        """Something waits to be sent: let the drainer see to it. Never waits."""
        if not self._has_drainer:
            self._has_drainer = True
            self.tasks.start_soon(self._drain)
        elif self._work is not None:
            self._wake("_work")

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
        while self.state is not State.CLOSED:
            if self.state is State.CONNECTING or self._is_sending or not (self.outbox or self._close_due):
                if self.state is State.CLOSING and not self._close_due:
                    return
                self._work = anyio.Event()
                await self._work.wait()
            else:
                await self._empty()

    async def _empty(self) -> None:
        """Send what waits, and the Close frame where one is due."""
        self._is_sending = True
        try:
            while self.outbox:
                await self._transmit(_event(self.outbox.pop()))
                if self._room is not None:
                    self._wake("_room")
            if self._close_due:
                await self._transmit_close()
        except WebSocketDisconnect:
            pass
        finally:
            self._release()

    async def _transmit_close(self) -> None:
        self._close_due = False
        close = {"type": "websocket.close", "code": self.close_code, "reason": self.close_reason}
        try:
            await self._transmit_within(self._limits.close_timeout, close)
        except WebSocketDisconnect:
            pass

    async def _transmit_within(self, seconds: float, event: Event) -> bool:
        """
        Send an event. ``False``: it was given up after ``seconds``, or because the connection has ended.

        On asyncio the clock of all connections interrupts it: a timer for each send would take longer than the send.
        """
        if not self.tasks.is_ticking:
            with anyio.move_on_after(seconds) as waiting:
                await self._transmit(event)
            return not waiting.cancelled_caught
        self._send_ticks = int(seconds / TICK) + 1
        self._sender = asyncio.current_task()
        try:
            await self._transmit(event)
        except asyncio.CancelledError:
            if not _was_interrupted(self._sender):
                raise
            return False
        finally:
            self._sender = None
        return True

    async def _transmit(self, event: Event) -> None:
        try:
            await self._asgi_send(event)
        except OSError:
            # ASGI: "If send is called on a closed connection the server should raise a server-specific subclass of
            # OSError."
            self._end(CloseCode.ABNORMAL_CLOSURE, "")
            raise self.disconnect() from None

    def _release(self) -> None:
        self._is_sending = False
        if self._idle is not None:
            self._wake("_idle")
        if self._work is not None:
            self._wake("_work")

    # The end

    def _begin_close(self, code: int, reason: str) -> None:
        self.state = step(self.state, Action.CLOSE)
        self.close_code, self.close_reason = code, reason
        self._close_due = True
        self.discard()
        self._wake_all()
        self._interrupt("_reader")

    def _end(self, code: int, reason: str) -> None:
        """The client has gone. A close of our own keeps its code."""
        if self.state is State.CLOSED:
            return
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
        self.state = step(self.state, Action.DISCONNECT)
        self._close_due = False
        if self.outbox is not None:
            self.outbox.clear()
        self._wake_all()
        self._interrupt("_reader")
        self._interrupt("_sender")
        self._on_end()

    def _tick(self) -> None:
        """Called now and then: somebody has to read, and no send takes for ever."""
        self.read_ahead()
        if self._sender is not None:
            self._send_ticks -= 1
            if self._send_ticks <= 0:
                self._interrupt("_sender")

    def _interrupt(self, role: str) -> None:
        task: asyncio.Task[Any] | None = getattr(self, role)
        if task is not None and task is not asyncio.current_task():
            setattr(self, role, None)
            task.cancel()

    def _wake(self, name: str) -> None:
        event: anyio.Event | None = getattr(self, name)
        if event is not None:
            setattr(self, name, None)
            event.set()

    def _wake_all(self) -> None:
        for name in ("_arrived", "_unpaused", "_room", "_work"):
            self._wake(name)


def _was_interrupted(remembered: "asyncio.Task[Any] | None") -> bool:
    """Whether this task's cancellation came from ``_interrupt`` alone, which has forgotten the task; it then ends here."""
    current = asyncio.current_task()
    assert current is not None
    return remembered is None and current.uncancel() == 0


def _event(frame: Frame) -> Event:
    if frame.is_text:
        return {"type": "websocket.send", "text": frame.text}
    return {"type": "websocket.send", "bytes": frame.data}


def _size(message: str | bytes) -> int:
    return len(message.encode(errors="surrogatepass")) if isinstance(message, str) else len(message)
