"""Sending: in one order, one task at a time, and none for ever."""

import asyncio
import logging
from collections.abc import Awaitable
from math import inf

import anyio
import anyio.lowlevel

from microws.closing import CloseCode
from microws.errors import WebSocketDisconnect
from microws.interfaces import Event, Frame, Send
from microws.state import CLOSED, CLOSING, CONNECTING, OPEN
from microws.tasks import current_task
from microws.transport.reading import Reading

__all__ = ["Sending"]

_log = logging.getLogger("microws.websocket")

# Who sends, where it is no task of the view's.
_LOSING = "losing"
# Sends in a row, without a receive, after which somebody else has to watch for the disconnect.
_MAX_UNWATCHED_SENDS = 8
# Between a send that fails because the client has gone and the event that says so.
_MAX_SECONDS_TO_DISCONNECT = 1.0


class Sending(Reading):
    """The outgoing side: the view sends or, where something had to wait its turn, the drainer, from the outbox."""

    __slots__ = ("_asgi_send", "_has_drainer", "_send_seconds", "_send_ticks")

    _asgi_send: Send
    _has_drainer: bool
    # How long the send that is under way may take, a view's if nobody says otherwise, and how many ticks it has taken.
    _send_seconds: float
    _send_ticks: int

    async def send(self, message: str | bytes) -> None:
        """
        Send a message after everything that waits already.

        Raises:
            WebSocketDisconnect: The connection has ended, or the client took nothing for ``send_timeout`` seconds
                (1013).
            RuntimeError: Not accepted yet.
        """
        outbox = self.outbox
        if self._sender is not None or self.state is not OPEN or (outbox is not None and outbox.has_waiting):
            if outbox is not None:
                outbox.hold()
                if outbox:
                    self.wake()
            await self._wait_turn(Frame(message))
            return
        self._sent_while_paused = True
        event = {"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message}
        loop, asgi_send = self._loop, self._asgi_send
        if loop is None:
            if not await self._transmit_in_scope(self._limits.send_timeout, event):
                self.fail(CloseCode.TRY_AGAIN_LATER, "too slow")
        else:
            self._sender = current_task(loop)
            self._send_ticks = 0
            try:
                await asgi_send(event)
            except asyncio.CancelledError:
                if not self._was_interrupted():
                    raise
                self.fail(CloseCode.TRY_AGAIN_LATER, "too slow")
            except OSError:
                await self._lose()
            finally:
                self._sender = None
                if self._idle is not None:
                    self._wake("_idle")
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
        if self.close_code is not None:
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
        if self.state is OPEN:
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
            while self.state is CLOSING and (self._close_due or self._sender is not None):
                self._idle = self._idle or anyio.Event()
                await self._idle.wait()
        if waiting.cancelled_caught:
            self.abandon()

    def wake(self) -> None:
        """Something waits to be sent: let the drainer see to it. Never waits."""
        if not self._has_drainer:
            self._has_drainer = True
            self.tasks.start_soon(self._drain)
        elif self._work is not None:
            self._wake("_work")

    async def _drain(self) -> None:
        try:
            while self.state is not CLOSED:
                if self._sender is not None:
                    self._idle = self._idle or anyio.Event()
                    await self._idle.wait()
                elif self.state is not CONNECTING and (self.outbox or self._close_due):
                    await self._empty()
                elif self.state is CLOSING:
                    return
                else:
                    self._work = anyio.Event()
                    await self._work.wait()
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
                self._sent_while_paused = True
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
            self._close_due = self.state is CLOSING
            raise

    async def _transmit_within(self, seconds: float, event: Event, sending: Awaitable[None] | None = None) -> bool:
        """
        Send an event. ``False``: it was given up after ``seconds``, or because the connection has ended.

        On asyncio the clock of all connections interrupts it: a timer for each send would take longer than the send.

        Args:
            seconds: ``inf`` sets no limit.
            event: What to send.
            sending: In place of it: a send that is under way, on asyncio.
        """
        if self._loop is None:
            return await self._transmit_in_scope(seconds, event)
        self._sender = current_task(self._loop)
        self._send_seconds = seconds
        self._send_ticks = 0
        try:
            await (self._asgi_send(event) if sending is None else sending)
        except asyncio.CancelledError:
            if not self._was_interrupted():
                raise
            return False
        except OSError:
            await self._lose()
        finally:
            self._sender = None
            self._send_seconds = self._limits.send_timeout
            if self._idle is not None:
                self._wake("_idle")
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
            self._sender = None
            self._wake("_idle")
        return not waiting.cancelled_caught

    async def _lose(self) -> None:
        """
        ``send`` has found that the client has gone: look for the disconnect event, which has the code.

        Source: ASGI WebSocket specification: on a closed connection ``send`` raises a subclass of ``OSError``.
        """
        self._sender = _LOSING
        with anyio.move_on_after(_MAX_SECONDS_TO_DISCONNECT):
            while self.state is not CLOSED:
                self.read_ahead()
                self._arrived = self._arrived or anyio.Event()
                await self._arrived.wait()
        self.abandon()
        self.learn()
        raise self._disconnect() from None

    def _wake_all(self) -> None:
        if self._arrived is not None:
            self._wake("_arrived")
        if self._unpaused is not None:
            self._wake("_unpaused")
        if self._idle is not None:
            self._wake("_idle")
        if self._work is not None:
            self._wake("_work")
        if self._waiting:
            self._release_waiting()


def _event(frame: Frame) -> Event:
    if frame.is_text:
        return {"type": "websocket.send", "text": frame.text}
    return {"type": "websocket.send", "bytes": frame.data}
