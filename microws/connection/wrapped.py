"""
A WebSocket on this package's own server whose ``send`` is wrapped by middleware.

Middleware sees each message, so its ``send`` is called for each connection and message. A task per connection would
make a broadcast several times slower. Instead one courier per event loop calls the ``send`` of all connections, step by
step. Messages that reach the server unchanged are then written to many sockets at once.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Generator
from contextvars import Context, copy_context
from functools import partial
from inspect import iscoroutinefunction
from types import coroutine
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from microws.connection.asgi import ASGIConnection
from microws.connection.bulk_writes import BulkWriter
from microws.connection.connection import AppCall
from microws.connection.socket import SocketConnection
from microws.connection.tasks import AsyncioTasks
from microws.errors import WebSocketDisconnect
from microws.hub import BACKED_UP, Batch, Outbox
from microws.state import OPEN

__all__ = ["WrappedConnection"]

_log = logging.getLogger("microws.websocket")


class _Item(NamedTuple):
    """A message on its way through middleware. The server recognizes an unchanged payload by its identity."""

    payload: str | bytes
    encoded: bytes
    key: str


class WrappedConnection(ASGIConnection):
    """
    A connection over ASGI events that middleware passes on to a ``SocketConnection``.

    Args:
        socket: That connection.
        call: The call of the app.
    """

    def __init__(self, socket: SocketConnection, call: AppCall) -> None:
        super().__init__(call)
        self.socket: SocketConnection = socket
        # Of the view: middleware finds its context variables there.
        self._context: Context
        self._courier: _Courier
        # What the courier has still to send.
        self._batch: Batch | None = None

    def ensure_outbox(self) -> Outbox:
        if self.outbox is not None:
            return self.outbox
        outbox = super().ensure_outbox()
        if iscoroutinefunction(self._asgi_send):
            self._context = copy_context()
            self._courier = _courier_of(asyncio.get_running_loop())
            outbox.carry = self._queue_batch
            self._release()
        return outbox

    def take_batch(self) -> Batch | None:
        """Take the batch that the courier is to send; ``None`` if the connection has ended."""
        batch, self._batch = self._batch, None
        return batch

    def carry(self, items: list[_Item]) -> bool | Awaitable[None]:
        """
        Send messages through middleware, as long as it does not wait.

        Returns:
            ``True`` if the server got all of them unchanged: write them, then call ``end_carrying``. ``False`` if they
            were written. Otherwise an awaitable for the rest, to be awaited in this task, which from now on belongs to
            this connection.
        """
        socket, run, asgi_send = self.socket, self._context.run, self._asgi_send
        unwritten = socket.unwritten = []
        count = 0
        try:
            for item in items:
                count += 1
                socket.carried = item
                sending: Any = asgi_send({"type": "websocket.send", item.key: item.payload})
                try:
                    waits_for = run(sending.send, None)
                except StopIteration:
                    continue
                self._write_unwritten()
                return self._continue(_resumed(sending, waits_for, self._context), items[count:])
        except OSError:
            self._write_unwritten()
            if self.outbox is not None:
                self.outbox.carry = None
            self.tasks.start_soon(self._lose_quietly)
        except Exception:
            self._write_unwritten()
            _log.exception("the server's send failed")
            self.abandon()
        if len(unwritten) == len(items):
            return True
        self._write_unwritten()
        self.end_carrying()
        return False

    def end_carrying(self) -> None:
        """Everything in the batch was sent."""
        self._stop_sending()
        self._release()

    def _queue_batch(self) -> None:
        """Have the courier send the batch that leaves the outbox at the end of this turn of the event loop."""
        outbox = self.outbox
        assert outbox is not None
        batch = outbox.batch
        if self._is_sending or self.state is not OPEN or outbox or batch is None or batch.previous is not None:
            outbox.hold()
            self.wake()
            return
        outbox.batch = BACKED_UP
        self._batch = batch
        self._is_sending = True
        self._courier.put(self)

    def _release(self) -> None:
        """Let published messages leave in batches, unless others are pending that have to leave first."""
        outbox = self.outbox
        if outbox is None or self.state is not OPEN or self._is_sending:
            return
        if outbox:
            self.wake()
        elif outbox.carry is not None and self.socket.is_writable:
            outbox.release()

    def _write_unwritten(self) -> None:
        """Write what the server got, and let it write further messages at once."""
        if self.socket.unwritten is not None:
            self.socket.write_unwritten()
            self.socket.carried = self.socket.unwritten = None

    async def _continue(self, sending: Awaitable[None], rest: list[_Item]) -> None:
        """Wait for middleware, which will wait again: from now on the writer sends for this connection."""
        tasks, task, outbox = self.tasks, asyncio.current_task(), self.outbox
        assert isinstance(tasks, AsyncioTasks)
        assert task is not None
        assert outbox is not None
        outbox.carry = None
        tasks.adopt(task)
        try:
            await self._transmit({}, sending=sending)
            for item in rest:
                await self._transmit({"type": "websocket.send", item.key: item.payload})
        except WebSocketDisconnect:
            pass
        except Exception:
            _log.exception("the server's send failed")
            self.abandon()
        if outbox:
            self.wake()

    async def _lose_quietly(self) -> None:
        try:
            await self._lose()
        except WebSocketDisconnect:
            pass

    def _forget_pending(self) -> None:
        super()._forget_pending()
        self._batch = None
        if self.outbox is not None:
            # It would refer to this object, which refers to it.
            self.outbox.carry = None


class _Courier:
    """Calls the ``send`` of many connections, for one event loop. Its task lives while there is something to send."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._create_task = loop.create_task
        self._waiting: deque[WrappedConnection] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writer = BulkWriter()

    def put(self, connection: WrappedConnection) -> None:
        """Send the batch of ``connection`` soon."""
        self._waiting.append(connection)
        if self._task is None:
            self._task = self._create_task(self._run())

    async def _run(self) -> None:
        waiting = self._waiting
        passed: dict[Batch, list[WrappedConnection]] = {}
        latest: Batch | None = None
        items: list[_Item] = []
        rest: Awaitable[None] | None = None
        while waiting:
            connection = waiting.popleft()
            batch = connection.take_batch()
            if batch is None:
                connection.end_carrying()
                continue
            if batch is not latest:
                latest, items = batch, _items_of(batch)
            outcome = connection.carry(items)
            if outcome is True:
                passed.setdefault(batch, []).append(connection)
            elif outcome is not False:
                rest = outcome
                break
        # Before any other task runs, so that nothing overtakes these messages.
        for batch, connections in passed.items():
            sockets = []
            for connection in connections:
                socket = connection.socket
                # Empty if the connection was closed in the meantime, which has written them.
                if socket.unwritten:
                    sockets.append(socket)
                socket.unwritten = None
            self._writer.write(batch.encoded, sockets)
            for connection in connections:
                connection.end_carrying()
        self._task = self._create_task(self._run()) if waiting else None
        if rest is not None:
            # What middleware began in this task, such as a time-out, has to end in it.
            await rest


_couriers: WeakKeyDictionary[asyncio.AbstractEventLoop, _Courier] = WeakKeyDictionary()


def _courier_of(loop: asyncio.AbstractEventLoop) -> _Courier:
    return _couriers.get(loop) or _couriers.setdefault(loop, _Courier(loop))


def _items_of(batch: Batch) -> list[_Item]:
    items = []
    for message in batch.messages:
        frame = message.frame
        if frame.is_text:
            items.append(_Item(frame.text, message.encoded, "text"))
        else:
            items.append(_Item(frame.data, message.encoded, "bytes"))
    return items


@coroutine
def _resumed(sending: Any, waits_for: Any, context: Context) -> Generator[Any, Any, None]:
    """The rest of a coroutine whose first step has run, and which waits for ``waits_for``."""
    while True:
        try:
            value = yield waits_for
            step = partial(sending.send, value)
        except BaseException as error:
            step = partial(sending.throw, error)
        try:
            waits_for = context.run(step)
        except StopIteration:
            return
