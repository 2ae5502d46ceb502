"""The portable transport: one WebSocket connection over ASGI's ``receive`` and ``send``, on any server."""

import asyncio
from collections.abc import Callable
from math import inf

from anyio.abc import TaskGroup

from microws.errors import WebSocketDisconnect
from microws.interfaces import Event, Receive, Send
from microws.outbox import Outbox
from microws.state import Action, State, step
from microws.tasks import AsyncioTasks, GroupTasks
from microws.transport.lifeline import Limits
from microws.transport.sending import Sending

__all__ = ["PortableTransport"]


class PortableTransport(Sending):
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

    __slots__ = ("_has_denial",)

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
        super().__init__(
            receive,
            send,
            make_outbox=make_outbox,
            tasks=AsyncioTasks(self._tick) if group is None else GroupTasks(group),
            loop=asyncio.get_running_loop() if group is None else None,
            limits=limits,
            on_end=on_end,
        )
        self._has_denial = has_denial
        if not self.tasks.is_ticking:
            self.read_ahead()

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

    def _tick(self) -> None:
        """Called now and then: somebody has to read, and no send takes for ever."""
        self.read_ahead()
        if self._sender is not None:
            self._send_ticks -= 1
            if self._send_ticks <= 0:
                self._interrupt(self._sender)
