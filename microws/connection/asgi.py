"""A WebSocket as ASGI events, on any server: one task reads, one task writes."""

import logging
from collections import deque
from collections.abc import Awaitable
from math import inf

import anyio
import anyio.lowlevel

from microws.closing import CloseCode
from microws.connection.connection import AppCall, Connection, Signal
from microws.errors import WebSocketDisconnect
from microws.interfaces import Event, Frame
from microws.state import CLOSED, CLOSING, CONNECTING, OPEN, Action, step

__all__ = ["ASGIConnection", "connect"]

_log = logging.getLogger("microws.websocket")

_MAX_INBOX_BYTES = 1 << 20
# After so many sends without a wait the view yields, so that the writer and other tasks run.
_MAX_SENDS = 16
# Between a send that fails because the client disconnected and the event that says so.
_MAX_SECONDS_TO_DISCONNECT = 1.0
_BEING_ANSWERED = "this handshake is being answered already: accept or reject it once"


class ASGIConnection(Connection):
    """
    A WebSocket connection over ASGI's ``receive`` and ``send``.

    The reader runs from the handshake on, so that a disconnect is seen at once. It pauses while the inbox is full. The
    view gets what ASGI's ``receive`` raises, for example in middleware, after the messages before it.

    The view's own task sends its message, unless another one is being sent. Then the message goes into the outbox, as
    published messages do. The writer sends what is in the outbox, in its order, and then the Close frame.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket
    """

    def __init__(self, call: AppCall) -> None:
        super().__init__(call.limits)
        self.attach(call)
        self._scope, self._asgi_receive, self._asgi_send = call.scope, call.receive, call.send
        self._inbox: deque[str | bytes] | None = None
        self._inbox_bytes = 0
        # Text that is longer has to be measured: UTF-8 takes up to four bytes a character.
        self._max_chars = call.limits.max_message_size // 4
        self._is_discarding = False
        # What ASGI's receive raised, until the view gets it.
        self._failure: Exception | None = None
        self._sends = 0
        self._sent_while_paused = False
        self._has_writer = False
        self._close_due = False
        # Whether a task is inside ASGI's send, and the scope that ends its wait there.
        self._is_sending = False
        self._send_scope: anyio.CancelScope | None = None
        # For a message or the end, room in the inbox, something to write, the end of a send.
        self._arrived = Signal()
        self._room = Signal()
        self._work = Signal()
        self._idle = Signal()
        call.tasks.start_soon(self._read)

    # The handshake

    async def accept(self, subprotocol: str | None, headers: list[tuple[bytes, bytes]]) -> None:
        if self.state is not CONNECTING or self._is_sending:
            if self._was_ended():
                raise self.unusable("accept")
            step(self.state, Action.ACCEPT)
            raise RuntimeError(_BEING_ANSWERED)
        # The state changes once the event was sent: nothing may overtake it.
        await self._transmit({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})
        if self.close_code is not None:
            raise self.unusable("accept")
        self.state = OPEN
        self.accepted = True
        self.subprotocol = subprotocol
        self.tasks.lift_limit()
        # From here, so that the writer has the view's context variables. Middleware may depend on them.
        self.wake()

    async def reject(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """
        See ``Connection.reject``. On a server without the denial extension the client gets 403, whatever ``status``.

        Source: https://asgi.readthedocs.io/en/latest/extensions.html#websocket-denial-response
        """
        if self._was_ended():
            return
        state = step(self.state, Action.REJECT)
        if self._is_sending:
            raise RuntimeError(_BEING_ANSWERED)
        self.state = state
        self.mark_close_seen()
        self.close_code = 3000 + status
        if self.outbox is not None:
            self.outbox.clear()
        self._report_end()
        if "websocket.http.response" in (self._scope.get("extensions") or ()):
            start = {"type": "websocket.http.response.start", "status": status, "headers": headers}
            events: list[Event] = [start, {"type": "websocket.http.response.body", "body": body}]
        else:
            events = [{"type": "websocket.close", "code": self.close_code, "reason": ""}]
        try:
            for event in events:
                if not await self._transmit(event, seconds=self.limits.close_timeout):
                    self.abandon()
                    return
        except WebSocketDisconnect:
            pass

    def _was_ended(self) -> bool:
        """Whether the connection ended by itself or by ``close_now``, which the view may not know yet."""
        return self.state is CLOSED or (self.state is CLOSING and not self.close_seen)

    # Messages in

    async def receive(self) -> str | bytes | None:
        while not self._inbox or (self._pace is not None and (seconds := self._pace.take())):
            if self._inbox:
                await anyio.sleep(seconds)
                continue
            if self.close_code is not None:
                self.mark_close_seen()
                return None
            if self.state is not OPEN:
                raise self.unusable("receive")
            if self._failure is not None:
                failure, self._failure = self._failure, None
                self._room.set()
                raise failure
            await self._arrived.wait()
        message = self._inbox.popleft()
        self._inbox_bytes -= len(message)
        self._room.set()
        return message

    async def _read(self) -> None:
        """The reader."""
        while self.state is not CLOSED:
            try:
                event = await self._asgi_receive()
                if event["type"] == "websocket.receive":
                    self._put(event)
                elif event["type"] == "websocket.disconnect":
                    code = event.get("code")
                    self._end(CloseCode.NO_STATUS_RECEIVED if code is None else code, event.get("reason") or "")
                    return
                inbox = self._inbox
                if inbox and (len(inbox) >= self.limits.receive_queue or self._inbox_bytes >= _MAX_INBOX_BYTES):
                    await self._pause()
            except Exception as failure:
                if not await self._pass_on(failure):
                    return

    async def _pass_on(self, failure: Exception) -> bool:
        """Have the view's next ``receive`` raise ``failure``. Returns whether it did, within ``close_timeout``."""
        if self.state in (CONNECTING, OPEN):
            self._failure = failure
            self._arrived.set()
            try:
                with anyio.move_on_after(self.limits.close_timeout):
                    while self._failure is failure and self.close_code is None:
                        await self._room.wait()
                    return True
            finally:
                # Its traceback refers to this object.
                self._failure = None
        _log.error("the server's receive failed", exc_info=failure)
        # A Close frame still leaves.
        if self.state is not CLOSING:
            self.abandon()
        return False

    def _put(self, event: Event) -> None:
        message: str | bytes | None = event.get("text")
        if message is None:
            message = event["bytes"]
            assert message is not None
        limit = self.limits.max_message_size
        if len(message) > self._max_chars and _size(message) > limit:
            self.close_now(CloseCode.MESSAGE_TOO_BIG, f"message over {limit} bytes")
        elif self._cap is not None and self._cap.take():
            self.close_now(CloseCode.POLICY_VIOLATION, self._cap.rate.reason)
        if not self._is_discarding:
            if self._inbox is None:
                self._inbox = deque()
            self._inbox.append(message)
            self._inbox_bytes += len(message)
        self._arrived.set()

    async def _pause(self) -> None:
        """Wait until the view has taken a message."""
        seconds = self.limits.send_timeout
        if self._pace is not None:
            # So long a view waits that does receive.
            seconds += self._pace.interval
        while self._inbox:
            self._sent_while_paused = False
            with anyio.move_on_after(seconds):
                await self._room.wait()
                if self._cap is not None:
                    self._cap.catch_up()
                return
            if self._sent_while_paused:
                # The disconnect comes behind the messages that the view does not read: it would never see it.
                _log.warning(
                    "closed with 1008: a view sends, but does not receive what its client sends; if there is nothing "
                    "to receive, call ws.wait_closed()"
                )
                self.close_now(CloseCode.POLICY_VIOLATION, "messages are not read here")

    async def drain_input(self) -> None:
        self._discard_input()
        while self.state is not CLOSED:
            with anyio.move_on_after(self.limits.close_timeout) as waiting:
                await self._arrived.wait()
            if waiting.cancelled_caught:
                self.abandon()

    def _discard_input(self) -> None:
        self._is_discarding = True
        self._inbox = None
        self._room.set()

    # Messages out

    async def send(self, message: str | bytes) -> None:
        outbox = self.outbox
        if self._is_sending or self.state is not OPEN or (outbox is not None and outbox.has_waiting):
            if outbox is not None:
                outbox.hold()
            await self._send_later(Frame(message))
            return
        self._sent_while_paused = True
        event = {"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message}
        if not await self._transmit(event, seconds=self.limits.send_timeout):
            self._close_slow()
        self._sends += 1
        if self._sends == _MAX_SENDS:
            self._sends = 0
            await anyio.lowlevel.checkpoint()
        if self.close_code is not None:
            raise self.unusable("send")

    def wake(self) -> None:
        if not self._has_writer:
            self._has_writer = True
            self.tasks.start_soon(self._write)
        else:
            self._work.set()

    async def _write(self) -> None:
        """The writer."""
        try:
            while self.state is not CLOSED:
                if self._is_sending:
                    await self._idle.wait()
                elif self.state is not CONNECTING and self.outbox:
                    self._sent_while_paused = True
                    await self._transmit(_event(self.outbox.pop()))
                    if self._senders:
                        self._admit_senders()
                elif self._close_due:
                    await self._transmit_close()
                elif self.state is CLOSING:
                    return
                else:
                    self._release()
                    await self._work.wait()
        except WebSocketDisconnect:
            pass
        except Exception:
            _log.exception("the server's send failed")
            self.abandon()

    async def _transmit_close(self) -> None:
        self._close_due = False
        close = {"type": "websocket.close", "code": self.close_code, "reason": self.close_reason}
        if not await self._transmit(close, seconds=self.limits.close_timeout):
            self.abandon()

    async def _transmit(self, event: Event, *, seconds: float = inf, sending: Awaitable[None] | None = None) -> bool:
        """
        Send an event.

        Args:
            event: The event.
            seconds: The time limit.
            sending: A call of ASGI's send that has begun, in place of a new one.

        Returns:
            ``False`` after ``seconds``, or if ``close_now`` ended the wait.

        Raises:
            WebSocketDisconnect: The client has disconnected.
        """
        self._is_sending = True
        scope = self._send_scope = anyio.CancelScope()
        if seconds != inf:
            scope.deadline = anyio.current_time() + seconds
        try:
            with scope:
                await (self._asgi_send(event) if sending is None else sending)
        except OSError:
            await self._lose()
        finally:
            self._stop_sending()
        return not scope.cancelled_caught

    def _stop_sending(self) -> None:
        self._is_sending = False
        self._send_scope = None
        self._idle.set()

    async def _lose(self) -> None:
        """
        A send failed because the client has disconnected: wait for the disconnect event, which has the code.

        Source: ASGI WebSocket specification: on a closed connection ``send`` raises a subclass of ``OSError``.
        """
        with anyio.move_on_after(_MAX_SECONDS_TO_DISCONNECT):
            while self.state is not CLOSED:
                await self._arrived.wait()
        self.abandon()
        self.mark_close_seen()
        raise self._disconnect() from None

    def _release(self) -> None:
        """The writer has sent everything."""

    # The end

    def close(self, code: int, reason: str) -> None:
        if self.close_code is not None:
            return
        self.state = step(self.state, Action.CLOSE)
        if self.outbox is not None:
            self.outbox.hold()
        self.close_code, self.close_reason = code, reason
        self._close_due = True
        self._report_end()
        self.wake()

    def close_now(self, code: int, reason: str) -> None:
        if self.close_code is not None:
            return
        self.close(code, reason)
        self._forget_pending()

    async def wait_close_sent(self) -> None:
        with anyio.move_on_after(self.limits.close_timeout) as waiting:
            while self.state is CLOSING and (self._close_due or self._is_sending):
                await self._idle.wait()
        if waiting.cancelled_caught:
            self.abandon()

    def abandon(self) -> None:
        """Take the client for disconnected. Never waits."""
        self._end(CloseCode.ABNORMAL_CLOSURE, "")

    def detach(self) -> Awaitable[None] | None:
        self.abandon()
        return self.tasks.end()

    def _end(self, code: int, reason: str) -> None:
        """The client has disconnected. A close of this side keeps its code."""
        if self.state is CLOSED:
            return
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
        self.state = CLOSED
        self._close_due = False
        self._forget_pending()
        self._report_end()

    def _forget_pending(self) -> None:
        if self.outbox is not None:
            self.outbox.clear()
        if self._send_scope is not None:
            self._send_scope.cancel()

    def _report_end(self) -> None:
        if self.state is CLOSING:
            self._discard_input()
        for signal in (self._arrived, self._room, self._idle, self._work):
            signal.set()
        super()._report_end()


def connect(call: AppCall) -> Connection:
    """
    The connection for a view: on this package's own server that of the server, on any other one over ASGI events.

    A limit from the server's command line wins.
    """
    extension = (call.scope.get("extensions") or {}).get("microws")
    if extension is not None and (max_message_size := extension.get("max_message_size")) is not None:
        call = call._replace(limits=call.limits._replace(max_message_size=max_message_size))
    own: Connection | None = call.scope.get("microws.connection")
    return ASGIConnection(call) if own is None else own.attach(call)


def _event(frame: Frame) -> Event:
    if frame.is_text:
        return {"type": "websocket.send", "text": frame.text}
    return {"type": "websocket.send", "bytes": frame.data}


def _size(message: str | bytes) -> int:
    return len(message.encode(errors="surrogatepass")) if isinstance(message, str) else len(message)
