"""
The portable transport: one WebSocket connection over ASGI's ``receive`` and ``send``, on any server.

Somebody always reads, so that a disconnect is seen and nothing stays behind in the server: the view while it waits for
a message, and else the pump, a task that is there only for as long. One task at a time is inside ASGI's ``receive``,
and one inside its ``send``: the view, or, where something had to wait its turn, the drainer, which empties the outbox.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from math import inf
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from microws.closing import CloseCode
from microws.errors import WebSocketDisconnect
from microws.interfaces import Event, Frame, Receive, Send
from microws.outbox import Outbox
from microws.state import Action, State, step
from microws.tasks import TICK, AsyncioTasks, GroupTasks, Tasks

__all__ = ["Limits", "PortableTransport", "helping"]

_log = logging.getLogger("microws.websocket")

# In a task of ws.start_soon: the transport of its connection. What such a task learns, its view does not know yet.
helping: ContextVar[object] = ContextVar("helping", default=None)

_MAX_INBOX_BYTES = 1 << 20
# Who reads or sends, where it is no task of the view's.
_PUMP, _DRAINER, _HANDSHAKE = "pump", "drainer", "handshake"
# Sends in a row, without a receive, after which somebody else has to watch for the disconnect.
_MAX_UNWATCHED_SENDS = 8
# Between a send that fails because the client has gone and the event that says so.
_MAX_SECONDS_TO_DISCONNECT = 1.0


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
        on_end: Called when the client has gone, and when the connection is being closed.

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
        "_interrupted",
        "_is_discarding",
        "_limits",
        "_loop",
        "_make_outbox",
        "_max_chars",
        "_on_end",
        "_reader",
        "_send_ticks",
        "_sender",
        "_sent_while_paused",
        "_unpaused",
        "_unwatched_sends",
        "_waiting",
        "_work",
        "close_code",
        "close_reason",
        "has_learned",
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
        self.has_learned = False
        self.outbox: Outbox | None = None
        self.tasks: Tasks = AsyncioTasks(self._tick) if group is None else GroupTasks(group)
        self._asgi_receive = receive
        self._asgi_send = send
        self._limits = limits
        # Four bytes a character is the most that UTF-8 takes; only longer text needs to be measured.
        self._max_chars = limits.max_message_size // 4
        self._has_denial = has_denial
        self._make_outbox = make_outbox
        self._on_end = on_end
        self._inbox: deque[str | bytes] | None = None
        self._inbox_bytes = 0
        self._is_discarding = False
        self._unwatched_sends = 0
        self._sent_while_paused = False
        self._close_due = False
        self._has_drainer = False
        self._loop = asyncio.get_running_loop() if group is None else None
        # Who is inside ASGI's receive, and who inside its send. A task of the view may be interrupted there.
        self._reader: object = None
        self._sender: object = None
        self._interrupted: tuple[asyncio.Task[Any], ...] = ()
        self._send_ticks = 0.0
        # The frames that find no room in the outbox, in the order of the calls.
        self._waiting: deque[tuple[Frame, anyio.Event]] | None = None
        # Each event exists only while somebody waits for it.
        self._arrived: anyio.Event | None = None  # a message, the end, or a turn to read
        self._unpaused: anyio.Event | None = None  # room in the inbox
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
            RuntimeError: Not accepted yet.
        """
        while self._reader is not None or self._inbox or self.state is not State.OPEN:
            if self._inbox:
                return self._take()
            if self.state is not State.OPEN:
                raise self.unusable("receive")
            self._arrived = self._arrived or anyio.Event()
            await self._arrived.wait()
        self._unwatched_sends = 0
        self._reader = asyncio.current_task(self._loop)
        try:
            event = await self._asgi_receive()
        except asyncio.CancelledError:
            if not self._was_interrupted():
                raise
            raise self.unusable("receive") from None
        finally:
            self._reader = None
            if self._arrived is not None:
                self._wake("_arrived")
            if self._interrupted:
                self._was_interrupted()
        text: str | None = event.get("text")
        if text is not None and len(text) <= self._max_chars:
            return text
        message = self._message_of(event)
        return await self.receive() if message is None else message

    def read_ahead(self) -> None:
        """Have messages read into the inbox until the view receives again. Never waits."""
        if self._reader is None and self.state is not State.CLOSED:
            self._reader = _PUMP
            self.tasks.start_soon(self._pump)

    def discard(self) -> None:
        """Keep nothing more of what the client sends: nobody will receive it."""
        self._is_discarding = True
        self._inbox = None
        self._wake("_unpaused")

    async def linger(self) -> None:
        """
        Read and discard until the client has gone, so that nothing stays behind in the server.

        A client that neither goes nor says anything for ``close_timeout`` seconds is left to the server.
        """
        self.discard()
        while self.state is not State.CLOSED:
            with anyio.move_on_after(self._limits.close_timeout) as waiting:
                if self._reader is not None:
                    self._arrived = self._arrived or anyio.Event()
                    await self._arrived.wait()
                else:
                    self._reader = _PUMP
                    try:
                        self._message_of(await self._asgi_receive())
                    finally:
                        self._reader = None
            if waiting.cancelled_caught:
                self.abandon()

    def abandon(self) -> None:
        """Take the client for gone. Never waits."""
        self._end(CloseCode.ABNORMAL_CLOSURE, "")

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
            self.abandon()
        finally:
            self._reader = None

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
            limit = self._limits.max_message_size
            if len(message) > self._max_chars and _size(message) > limit:
                self.fail(CloseCode.MESSAGE_TOO_BIG, f"message over {limit} bytes")
            if not self._is_discarding:
                return message
            self._wake("_arrived")
            return None
        if event["type"] == "websocket.disconnect":
            code = event.get("code")
            self._end(CloseCode.NO_STATUS_RECEIVED if code is None else code, event.get("reason") or "")
        return None

    # The handshake

    async def accept(self, subprotocol: str | None, headers: list[tuple[bytes, bytes]]) -> None:
        """
        Answer the handshake with 101. Cancelled, it may be tried again, or rejected.

        Raises:
            WebSocketDisconnect: The client has gone.
            RuntimeError: Accepted, or rejected, already.
        """
        if self.state is State.CLOSED:
            raise self.unusable("accept")
        state = self._answer(Action.ACCEPT)
        # Until it has left the state stays: nothing may overtake it.
        await self._transmit_within(inf, {"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})
        if self.close_code is not None:
            raise self.unusable("accept")
        self.state = state
        self.tasks.limit(inf)

    async def reject(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """
        Answer the handshake with an HTTP response; 403 where the server knows no other.

        Raises:
            RuntimeError: Accepted, or rejected, already.

        Source: https://asgi.readthedocs.io/en/latest/extensions.html#websocket-denial-response
        """
        if self.state is State.CLOSED:
            return
        self.state = self._answer(Action.REJECT)
        self.learn()
        self.close_code = 3000 + status
        self._forget_frames()
        self.discard()
        self._wake_all()
        self._finish()
        if self._has_denial:
            start = {"type": "websocket.http.response.start", "status": status, "headers": headers}
            events: list[Event] = [start, {"type": "websocket.http.response.body", "body": body}]
        else:
            events = [{"type": "websocket.close", "code": self.close_code, "reason": ""}]
        try:
            for event in events:
                if not await self._transmit_within(self._limits.close_timeout, event):
                    self.abandon()
                    return
        except WebSocketDisconnect:
            pass

    def _answer(self, action: Action) -> State:
        state = step(self.state, action)
        if self._sender is not None:
            raise RuntimeError("this handshake is being answered already: accept or reject it once")
        return state

    # Sending

    async def send(self, frame: Frame) -> None:
        """
        Send a frame after everything that waits already.

        Raises:
            WebSocketDisconnect: The connection has ended, or the client took nothing for ``send_timeout`` seconds
                (1013).
            RuntimeError: Not accepted yet.
        """
        if self._sender is not None or self.outbox or self.state is not State.OPEN:
            await self._wait_turn(frame)
            return
        if self._unpaused is not None:
            self._sent_while_paused = True
        if self._loop is None:
            if not await self._transmit_in_scope(self._limits.send_timeout, _event(frame)):
                self.fail(CloseCode.TRY_AGAIN_LATER, "too slow")
        else:
            self._sender = asyncio.current_task(self._loop)
            self._send_ticks = self._limits.send_timeout / TICK + 1
            event = {"type": "websocket.send", "text": frame.text} if frame.is_text else _event(frame)
            try:
                await self._asgi_send(event)
            except asyncio.CancelledError:
                if not self._was_interrupted():
                    raise
                self.fail(CloseCode.TRY_AGAIN_LATER, "too slow")
            except OSError:
                await self._lose()
            finally:
                self._sender = None
                if self._idle is not None or self._work is not None:
                    self._release()
                if self._interrupted:
                    self._was_interrupted()
        self._unwatched_sends += 1
        if self._unwatched_sends > _MAX_UNWATCHED_SENDS:
            # The pump needs a turn, also where the server's send never waits.
            self._unwatched_sends = 0
            self.read_ahead()
            await anyio.lowlevel.checkpoint()
        if self.close_code is not None:
            raise self.unusable("send")

    async def close(self, code: int, reason: str) -> None:
        """
        Send what waits, then a Close frame. A second close does nothing.

        Cancelled, it leaves the rest to the drainer. A client that does not take it all in ``close_timeout`` seconds is
        left to the server.
        """
        self.learn()
        if self.state in (State.CLOSED, State.CLOSING):
            return
        self._begin_close(code, reason)
        try:
            await self.flush()
        finally:
            if self._close_due:
                self.wake()

    def close_soon(self, code: int, reason: str) -> None:
        """``close`` without waiting."""
        self.learn()
        if self.state is State.OPEN:
            self._begin_close(code, reason)
            self.wake()

    async def flush(self) -> None:
        """Wait until the Close frame has left; a client that does not take it is left to the server."""
        if self._close_due and self._sender is None and not self.outbox:
            await self._transmit_close()
            return
        if self._close_due:
            self.wake()
        elif self._sender is None:
            return
        with anyio.move_on_after(self._limits.close_timeout) as waiting:
            while self.state is State.CLOSING and (self._close_due or self._sender is not None):
                self._idle = self._idle or anyio.Event()
                await self._idle.wait()
        if waiting.cancelled_caught:
            self.abandon()

    def fail(self, code: int, reason: str) -> None:
        """Close from outside the view: what waits is lost, the view learns of it at its next call. Never waits."""
        if self.state in (State.CLOSED, State.CLOSING):
            return
        self._begin_close(code, reason)
        self._forget_frames()
        self._interrupt(self._sender)
        self.wake()

    def unusable(self, method: str) -> WebSocketDisconnect | RuntimeError:
        """What a call raises when the connection is not open. Whoever gets it knows of the end."""
        if self.state is State.CONNECTING:
            return RuntimeError(
                f"ws.{method}() before the handshake is accepted: write `async with ws:` around it, or call ws.accept()"
            )
        self.learn()
        return self._disconnect()

    def learn(self) -> None:
        """The view knows of the end, or has made it: it may take its time to clean up."""
        if helping.get() is not self:
            self.has_learned = True
            self.tasks.limit(inf)

    def _disconnect(self) -> WebSocketDisconnect:
        error = WebSocketDisconnect(self.close_code or CloseCode.ABNORMAL_CLOSURE, self.close_reason)
        error.source = self
        return error

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
        if self.state is not State.OPEN:
            raise self.unusable("send")
        outbox = self.ensure_outbox()
        if not self._waiting and outbox.has_room(frame):
            outbox.send_nowait(frame)
            self.wake()
            return
        self._waiting = self._waiting or deque()
        turn = (frame, anyio.Event())
        self._waiting.append(turn)
        try:
            with anyio.move_on_after(self._limits.send_timeout) as waiting:
                await turn[1].wait()
        finally:
            if not turn[1].is_set():
                self._waiting.remove(turn)
        if waiting.cancelled_caught:
            self.fail(CloseCode.TRY_AGAIN_LATER, "too slow")
        if self.close_code is not None:
            raise self.unusable("send")

    def _admit(self) -> None:
        """Queue the frames that wait for room, as far as there is some now."""
        while self._waiting and self.outbox is not None and self.outbox.has_room(self._waiting[0][0]):
            frame, admitted = self._waiting.popleft()
            self.outbox.send_nowait(frame)
            admitted.set()

    async def _drain(self) -> None:
        try:
            while self.state is not State.CLOSED:
                if self.state is State.CONNECTING or self._sender is not None or not (self.outbox or self._close_due):
                    if self.state is State.CLOSING and not self._close_due and self._sender is None:
                        return
                    self._work = anyio.Event()
                    await self._work.wait()
                else:
                    await self._empty()
        except Exception:
            _log.exception("the server's send failed")
            self.abandon()

    async def _empty(self) -> None:
        """
        Send what waits, and the Close frame where one is due.

        Only the drainer does: a frame that was taken out is lost where the task is cancelled.
        """
        try:
            while self.outbox:
                await self._transmit_within(inf, _event(self.outbox.pop()))
                if self._waiting:
                    self._admit()
        except WebSocketDisconnect:
            pass
        if self._close_due:
            await self._transmit_close()

    async def _transmit_close(self) -> None:
        self._close_due = False
        close = {"type": "websocket.close", "code": self.close_code, "reason": self.close_reason}
        try:
            if not await self._transmit_within(self._limits.close_timeout, close):
                self.abandon()
        except WebSocketDisconnect:
            pass
        except anyio.get_cancelled_exc_class():
            # It may not have left: let the drainer send it again.
            self._close_due = self.state is State.CLOSING
            raise

    async def _transmit_within(self, seconds: float, event: Event) -> bool:
        """
        Send an event. ``False``: it was given up after ``seconds``, or because the connection has ended.

        On asyncio the clock of all connections interrupts it: a timer for each send would take longer than the send.
        """
        if self._loop is None:
            return await self._transmit_in_scope(seconds, event)
        self._sender = asyncio.current_task(self._loop)
        # The first tick may come at once.
        self._send_ticks = seconds / TICK + 1
        try:
            await self._asgi_send(event)
        except asyncio.CancelledError:
            if not self._was_interrupted():
                raise
            return False
        except OSError:
            await self._lose()
        finally:
            self._release()
            if self._interrupted:
                self._was_interrupted()
        return True

    async def _transmit_in_scope(self, seconds: float, event: Event) -> bool:
        try:
            with anyio.move_on_after(seconds) as waiting:
                self._sender = waiting
                try:
                    await self._asgi_send(event)
                except OSError:
                    await self._lose()
        finally:
            self._release()
        return not waiting.cancelled_caught

    async def _lose(self) -> None:
        """
        ``send`` has found that the client has gone: look for the disconnect event, which has the code.

        Source: ASGI WebSocket specification: on a closed connection ``send`` raises a subclass of ``OSError``.
        """
        self._sender = _HANDSHAKE
        with anyio.move_on_after(_MAX_SECONDS_TO_DISCONNECT):
            while self.state is not State.CLOSED:
                self.read_ahead()
                self._arrived = self._arrived or anyio.Event()
                await self._arrived.wait()
        self.abandon()
        raise self._disconnect() from None

    def _release(self) -> None:
        self._sender = None
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
        self._interrupt(self._reader)
        self._finish()

    def _end(self, code: int, reason: str) -> None:
        """The client has gone. A close of our own keeps its code."""
        if self.state is State.CLOSED:
            return
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
        self.state = step(self.state, Action.DISCONNECT)
        self._close_due = False
        self._forget_frames()
        self._wake_all()
        self._interrupt(self._reader)
        self._interrupt(self._sender)
        self._finish()

    def _forget_frames(self) -> None:
        if self.outbox is not None:
            self.outbox.clear()

    def _finish(self) -> None:
        self._on_end()
        if not self.has_learned:
            self.tasks.limit(self._limits.close_timeout)

    def _tick(self) -> None:
        """Called now and then: somebody has to read, and no send takes for ever."""
        self.read_ahead()
        if self._sender is not None:
            self._send_ticks -= 1
            if self._send_ticks <= 0:
                self._interrupt(self._sender)

    def _interrupt(self, task: object) -> None:
        """End the wait of a task inside ASGI's receive or send, if it may be ended and is another one than this."""
        if isinstance(task, anyio.CancelScope):
            task.cancel()
        elif isinstance(task, asyncio.Task) and task is not asyncio.current_task() and task not in self._interrupted:
            self._interrupted = (*self._interrupted, task)
            task.cancel()

    def _was_interrupted(self) -> bool:
        """Whether this task's cancellation came from ``_interrupt`` alone; it then ends here."""
        task = asyncio.current_task()
        if task not in self._interrupted:
            return False
        self._interrupted = tuple(other for other in self._interrupted if other is not task)
        return task.uncancel() == 0

    def _wake(self, name: str) -> None:
        event: anyio.Event | None = getattr(self, name)
        if event is not None:
            setattr(self, name, None)
            event.set()

    def _wake_all(self) -> None:
        for name in ("_arrived", "_unpaused", "_idle", "_work"):
            self._wake(name)
        if self._waiting:
            for _, admitted in self._waiting:
                admitted.set()
            self._waiting.clear()


def _event(frame: Frame) -> Event:
    if frame.is_text:
        return {"type": "websocket.send", "text": frame.text}
    return {"type": "websocket.send", "bytes": frame.data}


def _size(message: str | bytes) -> int:
    return len(message.encode(errors="surrogatepass")) if isinstance(message, str) else len(message)
