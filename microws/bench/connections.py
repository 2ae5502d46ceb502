"""One WebSocket of a client, and many of them at a time."""

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeVar

from microws.bench.dialing import Dialer, Line, Refused, reason_of
from microws.bench.frames import ServerFrames, masked_close, masked_frame
from microws.bench.handshaking import MAX_HEAD, Handshake, Refusal
from microws.bench.tally import Tally
from microws.closing import CloseCode
from microws.framing import PONG, Close

__all__ = ["ClientConnection", "leave_all", "open_all"]

# Handshakes at a time: fewer than any server's backlog.
AT_A_TIME = 64

_C = TypeVar("_C", bound="ClientConnection")


class ClientConnection(Line):
    """
    One WebSocket; what it does with messages is for those who inherit from it.

    Args:
        tally: Where its end is counted, unless it ends by ``leave``.

    Attributes:
        is_open: Between the handshake and the first Close frame, or the end.
        is_leaving: Whether the first Close frame was sent from here.
    """

    def __init__(self, handshake: Handshake, tally: Tally) -> None:
        super().__init__()
        self.is_open = False
        self.is_leaving = False
        self._handshake = handshake
        self._tally = tally
        self._key = b""
        self._head = b""
        self._refusal: Refusal | None = None
        self._frames = ServerFrames()
        self._is_accepted = False
        self._has_end = False

    def messages_received(self, messages: list[bytes]) -> None:
        """Messages that came at once."""

    def connection_ended(self) -> None:
        """The connection was open, and is so no longer; not called after ``leave``."""

    def leave(self) -> None:
        """Send a Close frame; the server is to answer, and to close the TCP connection."""
        if self.is_open:
            self.is_open = False
            self.is_leaving = True
            self.write(masked_close(CloseCode.NORMAL_CLOSURE))

    def abort(self) -> None:
        self.is_open = False
        self._has_end = True
        super().abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        request, self._key = self._handshake.request()
        self.write(request)

    def data_received(self, data: bytes) -> None:
        if not self._is_accepted:
            if not self.opened.done():
                self._read_answer(data)
            return
        if self._frames.end is not None:
            return
        frames = self._frames
        messages = frames.feed(data)
        if messages and self.is_open:
            self.messages_received(messages)
        if frames.pings:
            for payload in frames.pings:
                self.write(masked_frame(payload, PONG))
            frames.pings.clear()
        if frames.end is not None:
            self._read_end()

    def connection_lost(self, error: Exception | None) -> None:
        if self._refusal is not None and (reason := self._refusal.feed(b"")):
            self.refuse(reason)
        if self._is_accepted and not self._has_end:
            self._end(CloseCode.ABNORMAL_CLOSURE, reason_of(error))
        super().connection_lost(error)

    def _read_answer(self, data: bytes) -> None:
        if self._refusal is not None:
            reason = self._refusal.feed(data)
            if reason is not None:
                self.refuse(reason)
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end and len(self._head) < MAX_HEAD:
            return
        if not head.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 101\r")) or not end:
            self._refusal = Refusal()
            self._read_answer(self._head)
            return
        problem = self._handshake.problem_with(head, self._key)
        if problem is not None:
            self.refuse(problem)
            return
        self._head = b""
        self._is_accepted = self.is_open = True
        self._tally.handshakes += 1
        self.opened.set_result(None)
        if rest:
            self.data_received(rest)

    def _read_end(self) -> None:
        end = self._frames.end
        if isinstance(end, Close):
            if not self.is_leaving:
                self.write(masked_close(end.code))
            self._end(CloseCode.NO_STATUS_RECEIVED if end.code is None else end.code, end.reason)
        elif end is not None:
            self.write(masked_close(end.code))
            self._end(CloseCode.ABNORMAL_CLOSURE, f"broken protocol: {end.reason}")
        if not self.is_leaving:
            self.hang_up()

    def _end(self, code: int, reason: str) -> None:
        self._has_end = True
        if self.is_leaving and code in (CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY, CloseCode.NO_STATUS_RECEIVED):
            return
        self._tally.closes[(int(code), reason)] += 1
        if self.is_open:
            self.is_open = False
            self.connection_ended()


async def open_all(
    dialer: Dialer, make: Callable[[], _C], count: int, *, tally: Tally, told: Callable[[int], None]
) -> list[_C]:
    """
    Open so many connections, a few at a time.

    The first one goes alone, so that a wrong URL does not fail a thousand times; and after as many failures in a row as
    are tried at a time no more are tried.

    Args:
        tally: Where the handshakes that fail are counted.
        told: Called with how many are open.

    Returns:
        Those that were opened. Cancelled, it drops them.
    """
    opened: list[_C] = []
    left = count
    failures = 0

    async def work() -> None:
        nonlocal left, failures
        while left and failures < AT_A_TIME:
            left -= 1
            try:
                opened.append(await dialer.connect(make))
                failures = 0
            except Refused as error:
                tally.refused[str(error)] += 1
                failures += 1
            told(len(opened))

    try:
        left = 1
        await work()
        if opened:
            left = count - 1
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(AT_A_TIME, left)):
                    tasks.create_task(work())
    except BaseException:
        for connection in opened:
            connection.abort()
        raise
    return opened


async def leave_all(connections: Iterable[ClientConnection], *, timeout: float, tally: Tally) -> None:
    """Close all that are open, in the order of the protocol; those that take longer than ``timeout`` are dropped."""
    waiting = [connection for connection in connections if not connection.ended.done()]
    for connection in waiting:
        connection.leave()
    if waiting:
        await asyncio.wait([connection.ended for connection in waiting], timeout=timeout)
    late = [connection for connection in waiting if not connection.ended.done()]
    for connection in late:
        tally.unanswered_closes += connection.is_leaving
        connection.abort()
    if late:
        await asyncio.wait([connection.ended for connection in late], timeout=timeout)
