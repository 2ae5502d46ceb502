"""
What is published leaves through middleware that wraps ``send``, on this package's own server.

Middleware sees each message, so it is called once for each connection and message. But no connection has a task for it:
one courier calls it for all of them, step by step, and what the server gets unchanged is written to many at once.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Generator
from contextvars import Context, copy_context
from functools import partial
from inspect import iscoroutinefunction
from math import inf
from types import coroutine
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from microws.connection.bulk_writes import BulkWriter
from microws.errors import WebSocketDisconnect
from microws.hub import BACKED_UP, Batch, Outbox
from microws.state import OPEN
from microws.tasks import AsyncioTasks, current_task
from microws.transport.direct import Wire
from microws.transport.sending import Sending

__all__ = ["Carrying"]

_log = logging.getLogger("microws.websocket")

# Who sends, where it is the courier.
_COURIER = "courier"


class _Item(NamedTuple):
    """
    A message on its way through middleware. The server tells by the payload's identity that it got this one unchanged.
    """

    payload: str | bytes
    encoded: bytes
    key: str


class Carrying(Sending):
    """The outgoing side where middleware wraps the ``send`` of this package's own server, which is ``wire``."""

    __slots__ = ("_batch", "_context", "_courier", "wire")

    wire: Wire | None
    # Of the connection: middleware finds its context variables there.
    _context: Context
    _courier: "_Courier"
    # What the courier has still to send.
    _batch: Batch | None

    def ensure_outbox(self) -> Outbox:
        """The connection's queue. Who puts something in calls ``wake``."""
        if self.outbox is None:
            outbox = super().ensure_outbox()
            if self.wire is not None and iscoroutinefunction(self._asgi_send):
                assert self._loop is not None
                self._context = copy_context()
                self._courier = _courier_of(self._loop)
                outbox.carry = self._leave
                self._release()
        return super().ensure_outbox()

    def take_batch(self) -> Batch | None:
        """What is to be sent; ``None`` where nothing is any more."""
        batch, self._batch = self._batch, None
        return batch

    def carry(self, items: list[_Item]) -> bool | Awaitable[None]:
        """
        Send messages, as far as middleware does not wait.

        Returns:
            ``True`` where the server got all of them unchanged: they are to be written, and then ``carried_out`` is to
            be called. ``False``: that was done. Else what to wait for, in this task, which then is this connection's.
        """
        wire = self.wire
        assert wire is not None
        run, asgi_send = self._context.run, self._asgi_send
        unwritten = wire.unwritten = []
        count = 0
        try:
            for item in items:
                count += 1
                wire.carried = item
                sending: Any = asgi_send({"type": "websocket.send", item.key: item.payload})
                try:
                    waits_for = run(sending.send, None)
                except StopIteration:
                    continue
                self._settle()
                return self._go_on(_resumed(sending, waits_for, self._context), items[count:])
        except OSError:
            self._settle()
            if self.outbox is not None:
                self.outbox.carry = None
            self.tasks.start_soon(self._look_for_the_end)
        except Exception:
            self._settle()
            _log.exception("the server's send failed")
            self.abandon()
        if len(unwritten) == len(items):
            return True
        self._settle()
        self.carried_out()
        return False

    def carried_out(self) -> None:
        """All of it has been sent."""
        self._sender = None
        if self._idle is not None:
            self._wake("_idle")
        self._release()

    def _leave(self) -> None:
        """What was published in this turn of the event loop is to leave."""
        outbox = self.outbox
        assert outbox is not None
        batch = outbox.batch
        if self._sender is not None or self.state is not OPEN or outbox or batch is None or batch.previous is not None:
            outbox.hold()
            self.wake()
            return
        outbox.batch = BACKED_UP
        self._batch = batch
        self._sender = _COURIER
        self._courier.put(self)

    def _release(self) -> None:
        """From now on published messages leave by turns. What waits already leaves first."""
        outbox, wire = self.outbox, self.wire
        if outbox is None or wire is None or self.state is not OPEN or self._sender is not None:
            return
        if outbox:
            self.wake()
        elif outbox.carry is not None and wire.is_writable:
            outbox.release()

    def _settle(self) -> None:
        """The server writes what it has got, and what comes next at once again."""
        wire = self.wire
        if wire is not None and wire.unwritten is not None:
            wire.write_unwritten()
            wire.carried = wire.unwritten = None

    async def _go_on(self, sending: Awaitable[None], rest: list[_Item]) -> None:
        """Wait for middleware, which then does so again: the drainer has this connection from now on."""
        tasks, task, outbox = self.tasks, current_task(self._loop), self.outbox
        assert isinstance(tasks, AsyncioTasks)
        assert task is not None
        assert outbox is not None
        outbox.carry = None
        tasks.adopt(task)
        try:
            await self._transmit_within(inf, {}, sending)
            for item in rest:
                await self._transmit_within(inf, {"type": "websocket.send", item.key: item.payload})
        except WebSocketDisconnect:
            pass
        except Exception:
            _log.exception("the server's send failed")
            self.abandon()
        if outbox:
            self.wake()

    async def _look_for_the_end(self) -> None:
        try:
            await self._lose()
        except WebSocketDisconnect:
            pass

    async def _empty(self) -> None:
        await super()._empty()
        self._release()

    def _forget_frames(self) -> None:
        super()._forget_frames()
        self._batch = None
        if self.outbox is not None:
            # It would hold this object, which holds it.
            self.outbox.carry = None


class _Courier:
    """Calls the ``send`` of many connections, for one event loop. Its task lives as long as something is to be sent."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._create_task = loop.create_task
        self._waiting: deque[Carrying] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writer = BulkWriter()

    def put(self, connection: Carrying) -> None:
        """Have its batch sent soon."""
        self._waiting.append(connection)
        if self._task is None:
            self._task = self._create_task(self._run())

    async def _run(self) -> None:
        waiting = self._waiting
        passed: dict[Batch, list[Carrying]] = {}
        latest: Batch | None = None
        items: list[_Item] = []
        rest: Awaitable[None] | None = None
        while waiting:
            connection = waiting.popleft()
            batch = connection.take_batch()
            if batch is None:
                connection.carried_out()
                continue
            if batch is not latest:
                latest, items = batch, _items_of(batch)
            outcome = connection.carry(items)
            if outcome is True:
                passed.setdefault(batch, []).append(connection)
            elif outcome is not False:
                rest = outcome
                break
        # Before anything else has a turn, so that nothing overtakes it.
        for batch, connections in passed.items():
            wires = []
            for connection in connections:
                wire = connection.wire
                if wire is not None:
                    if wire.unwritten:
                        # Else it was closed meanwhile, and has written them before.
                        wires.append(wire)
                    wire.unwritten = None
            try:
                self._writer.write(batch.encoded, wires)
            except Exception:
                _log.exception("a write to many connections failed; they are closed with 1011")
            for connection in connections:
                connection.carried_out()
        self._task = self._create_task(self._run()) if waiting else None
        if rest is not None:
            # What middleware has begun in this task, such as a time-out, it has to end in this one.
            await rest


_couriers: WeakKeyDictionary[asyncio.AbstractEventLoop, _Courier] = WeakKeyDictionary()


def _courier_of(loop: asyncio.AbstractEventLoop) -> _Courier:
    courier = _couriers.get(loop)
    if courier is None:
        courier = _couriers[loop] = _Courier(loop)
    return courier


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
    """The rest of a coroutine whose first step was taken, and which has waited for ``waits_for`` in it."""
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
