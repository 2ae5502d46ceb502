"""The portable transport: one WebSocket connection over ASGI's ``receive`` and ``send``, on any server."""

import asyncio
from collections.abc import Callable
from math import inf

from anyio.abc import TaskGroup

from microws.errors import WebSocketDisconnect
from microws.hub import Outbox
from microws.interfaces import Event, Limits, Receive, Scope, Send
from microws.state import CLOSED, CLOSING, CONNECTING, OPEN, Action, step
from microws.tasks import TICK, AsyncioTasks, GroupTasks, Tasks
from microws.transport.carrying import Carrying
from microws.transport.direct import Wire
from microws.transport.turns import Turns

__all__ = ["PortableTransport"]

_BEING_ANSWERED = "this handshake is being answered already: accept or reject it once"


class PortableTransport(Carrying):
    """
    One connection as ASGI events.

    Args:
        scope, receive, send: ASGI's.
        loop: The running event loop of asyncio; ``None`` on trio.
        group: On trio, a task group that lives as long as the connection.
        limits: Shared by the connections of an app.
        make_outbox: Called once, when the connection first needs a queue.
        wire: This package's own server, where middleware stands between it and the app.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html#websocket
    """

    __slots__ = ("_scope",)

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        loop: asyncio.AbstractEventLoop | None,
        group: TaskGroup | None,
        limits: Limits,
        make_outbox: Callable[[], Outbox],
        wire: Wire | None = None,
    ) -> None:
        # All in one place, not by keywords, and not by super(): each would take longer than what it does.
        if loop is None:
            assert group is not None
            tasks: Tasks = GroupTasks(group, scope, limits.accept_timeout)
        else:
            tasks = AsyncioTasks(loop, scope, limits.accept_timeout, self._tick)
        Turns.__init__(self, tasks, limits, make_outbox)
        self._loop = loop
        self.state = CONNECTING
        self.close_code = None
        self.close_reason = ""
        self._close_due = False
        self._reader = self._sender = None
        self._interrupted = ()
        self._arrived = self._unpaused = self._idle = self._work = None
        self._scope = scope
        self._asgi_receive = receive
        # Four bytes a character is the most that UTF-8 takes.
        self._max_chars = limits.max_message_size // 4
        self._inbox = None
        self._inbox_bytes = 0
        self._is_discarding = False
        self._unwatched_sends = 0
        self._sent_while_paused = False
        self._asgi_send = send
        self.wire = wire
        self._batch = None
        self._has_drainer = False
        self._send_seconds = limits.send_timeout
        self._send_ticks = 0
        if group is not None:
            self.read_ahead()

    async def accept(self, subprotocol: str | None, headers: list[tuple[bytes, bytes]]) -> None:
        """
        Answer the handshake with 101. Cancelled, it may be tried again, or rejected.

        Raises:
            WebSocketDisconnect: The client has gone.
            RuntimeError: Accepted, or rejected, already.
        """
        if self.state is not CONNECTING or self._sender is not None:
            if self._was_ended():
                raise self.unusable("accept")
            step(self.state, Action.ACCEPT)
            raise RuntimeError(_BEING_ANSWERED)
        # Until it has left the state stays: nothing may overtake it.
        await self._transmit_within(inf, {"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})
        if self.close_code is not None:
            raise self.unusable("accept")
        self.state = OPEN
        self.accepted = True
        self.subprotocol = subprotocol
        self.tasks.lift_limit()
        if self._has_drainer:
            self.wake()
        if self.outbox is not None:
            self._release()

    async def reject(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """
        Answer the handshake with an HTTP response; 403 where the server knows no other.

        Raises:
            RuntimeError: Accepted, or rejected, already.

        Source: https://asgi.readthedocs.io/en/latest/extensions.html#websocket-denial-response
        """
        if self._was_ended():
            return
        state = step(self.state, Action.REJECT)
        if self._sender is not None:
            raise RuntimeError(_BEING_ANSWERED)
        self.state = state
        self.learn()
        self.close_code = 3000 + status
        self._forget_frames()
        self.discard()
        self._wake_all()
        self._finish()
        if "websocket.http.response" in (self._scope.get("extensions") or ()):
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

    def _was_ended(self) -> bool:
        """Whether the client has gone or the connection was failed, which the view may not know yet."""
        return self.state is CLOSED or (self.state is CLOSING and not self.has_learned)

    def _tick(self) -> None:
        """Called now and then: somebody has to read, and no send takes for ever."""
        if self._reader is None:
            self.read_ahead()
        if self._sender is not None:
            self._send_ticks += 1
            # The first one may have come at once.
            if self._send_ticks - 1 >= self._send_seconds / TICK:
                self._interrupt(self._sender)
