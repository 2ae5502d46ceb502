"""Reading: somebody always does, so that a disconnect is seen and nothing stays behind in the server."""

import asyncio
import logging
from collections import deque

import anyio

from microws.closing import CloseCode
from microws.interfaces import Event, Receive
from microws.state import CLOSED, OPEN
from microws.tasks import current_task
from microws.transport.lifeline import Lifeline

__all__ = ["Reading"]

_log = logging.getLogger("microws.websocket")

_MAX_INBOX_BYTES = 1 << 20
# Who reads, where it is no task of the view's.
_PUMP = "pump"


class Reading(Lifeline):
    """The incoming side: the view reads while it waits for a message, and else the pump, a task only for then."""

    __slots__ = (
        "_asgi_receive",
        "_inbox",
        "_inbox_bytes",
        "_is_discarding",
        "_max_chars",
        "_sent_while_paused",
        "_unwatched_sends",
    )

    _asgi_receive: Receive
    _inbox: deque[str | bytes] | None
    _inbox_bytes: int
    _is_discarding: bool
    _max_chars: int  # Text that is longer has to be measured.
    _sent_while_paused: bool
    _unwatched_sends: int

    async def receive(self) -> str | bytes | None:
        """
        The next message; ``None`` when the connection has ended and every message was received, or this side has
        closed it. Cancelled, it has lost nothing, if the server's ``receive`` loses nothing.

        Raises:
            RuntimeError: Not accepted yet.
        """
        while True:
            while self._reader is not None or self._inbox or self.state is not OPEN:
                if self._inbox:
                    return self._take()
                if self.close_code is not None:
                    self.learn()
                    return None
                if self.state is not OPEN:
                    raise self.unusable("receive")
                self._arrived = self._arrived or anyio.Event()
                await self._arrived.wait()
            self._unwatched_sends = 0
            asgi_receive = self._asgi_receive
            self._reader = current_task(self._loop)
            try:
                event = await asgi_receive()
            except asyncio.CancelledError:
                if not self._was_interrupted():
                    raise
                self.learn()
                return None
            finally:
                self._reader = None
                if self._arrived is not None:
                    self._wake("_arrived")
                if self._interrupted:
                    self._was_interrupted()
            text: str | None = event.get("text")
            if text is not None and len(text) <= self._max_chars:
                return text
            if event["type"] == "websocket.disconnect":
                # Before the end, which else sets the view a deadline.
                self.learn()
                self._disconnected(event)
                return None
            message = self._message_of(event)
            if message is not None:
                return message

    def read_ahead(self) -> None:
        """Have messages read into the inbox until the view receives again. Never waits."""
        if self._reader is None and self.state is not CLOSED:
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
        while self.state is not CLOSED:
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

    async def _pump(self) -> None:
        try:
            while self.state is not CLOSED:
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
                # A view that only sends, or that only subscribes, would never learn that its client has left, for that
                # stands behind the messages that it does not read.
                _log.warning(
                    "closed with 1008: a view sends, but does not receive what its client sends; if there is nothing "
                    "to receive, call ws.wait_closed()"
                )
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
            self._disconnected(event)
        return None

    def _disconnected(self, event: Event) -> None:
        code = event.get("code")
        self._end(CloseCode.NO_STATUS_RECEIVED if code is None else code, event.get("reason") or "")


def _size(message: str | bytes) -> int:
    return len(message.encode(errors="surrogatepass")) if isinstance(message, str) else len(message)
