"""Who publishes in a fan-out: a WebSocket, or POSTs."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import perf_counter
from typing import final

import h11

from microws.bench.connections import ClientConnection, leave_all
from microws.bench.dialing import Dialer, Line, Refused
from microws.bench.handshaking import MAX_HEAD, Handshake, in_few_words
from microws.bench.messages import Messages
from microws.bench.plan import Plan
from microws.bench.tally import Tally
from microws.bench.target import Target

__all__ = ["MAX_POSTS", "Posts", "Publisher", "WebSocketPublisher"]

# Requests at a time when they go by the clock.
MAX_POSTS = 64
# Seconds before the next try, after one for which there was no connection.
PAUSE = 0.05


class Publisher(ABC):
    """
    Publishes messages by their numbers.

    Args:
        answered: Called when a publish is done, as far as the publisher can tell; with a reason when it failed.
    """

    def __init__(self, messages: Messages, answered: Callable[[int, str | None], None]) -> None:
        self._messages = messages
        self._answered = answered

    @abstractmethod
    async def open(self) -> None:
        """
        Connect.

        Raises:
            Refused: It cannot be reached.
        """

    @property
    @abstractmethod
    def can_publish(self) -> bool:
        """Whether a message would go out at once."""

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Whether it will never publish again."""

    @abstractmethod
    def publish(self, number: int) -> None:
        """Send a message."""

    @abstractmethod
    def give_up(self, since: float) -> None:
        """Let what has not been answered since then fail."""

    @abstractmethod
    async def close(self) -> None:
        """Leave in good order."""


@final
class WebSocketPublisher(Publisher):
    """Publishes over one WebSocket. What comes back on it, as in a chat, is read and forgotten."""

    def __init__(
        self,
        messages: Messages,
        answered: Callable[[int, str | None], None],
        *,
        dialer: Dialer,
        handshake: Handshake,
        timeout: float,
        tally: Tally,
    ) -> None:
        super().__init__(messages, answered)
        self._dialer = dialer
        self._timeout = timeout
        self._handshake = handshake
        self._tally = tally
        self._connection: ClientConnection | None = None

    async def open(self) -> None:
        self._connection = await self._dialer.connect(lambda: ClientConnection(self._handshake, self._tally))

    @property
    def can_publish(self) -> bool:
        return self._connection is not None and self._connection.is_open and self._connection.is_writable

    @property
    def is_over(self) -> bool:
        return self._connection is None or not self._connection.is_open

    def publish(self, number: int) -> None:
        if self._connection is not None:
            self._connection.write(self._messages.frame(number))
            self._answered(number, None)

    def give_up(self, since: float) -> None:
        """There are no answers."""

    async def close(self) -> None:
        if self._connection is not None:
            await leave_all([self._connection], timeout=self._timeout, tally=self._tally)


@final
class Posts(Publisher):
    """
    Publishes by POST, each request on a connection that is free, or on a new one.

    Args:
        at_a_time: Requests at a time.
    """

    def __init__(
        self,
        messages: Messages,
        answered: Callable[[int, str | None], None],
        *,
        plan: Plan,
        target: Target,
        dialer: Dialer,
        at_a_time: int,
    ) -> None:
        super().__init__(messages, answered)
        self._target = target
        self._dialer = dialer
        self._at_a_time = at_a_time
        self._timeout = plan.timeout
        self._headers = _headers_of(plan, target, messages)
        self._idle: list[_PostLine] = []
        self._busy: dict[_PostLine, None] = {}
        self._dialing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._idle.append(await self._dialer.connect(lambda: _PostLine(self)))

    @property
    def can_publish(self) -> bool:
        return len(self._busy) + len(self._dialing) < self._at_a_time

    @property
    def is_over(self) -> bool:
        return False

    def publish(self, number: int) -> None:
        if self._idle:
            self._post(self._idle.pop(), number)
            return
        task = asyncio.get_running_loop().create_task(self._dial(number))
        self._dialing.add(task)
        task.add_done_callback(self._dialing.discard)

    async def _dial(self, number: int) -> None:
        try:
            line = await self._dialer.connect(lambda: _PostLine(self))
        except Refused as error:
            await asyncio.sleep(PAUSE)
            self._answered(number, str(error))
        else:
            self._post(line, number)

    def _post(self, line: "_PostLine", number: int) -> None:
        self._busy[line] = None
        line.post(number, self._target.path, self._headers, self._messages.payload(number))

    def over(self, line: "_PostLine", number: int, failure: str | None, *, is_free: bool) -> None:
        """A request has been answered, or has failed."""
        self._busy.pop(line, None)
        if is_free:
            self._idle.append(line)
        else:
            line.hang_up()
        self._answered(number, failure)

    def lost(self, line: "_PostLine") -> None:
        """A connection has ended."""
        if line in self._idle:
            self._idle.remove(line)

    def give_up(self, since: float) -> None:
        for line in list(self._busy):
            if line.since <= since:
                line.fail(f"no answer within {self._timeout:g} s")
                line.abort()

    async def close(self) -> None:
        lines = [*self._idle, *self._busy]
        for task in self._dialing:
            task.cancel()
        await asyncio.gather(*self._dialing, return_exceptions=True)
        for line in lines:
            line.forget()
            line.abort()
        if lines:
            await asyncio.wait([line.ended for line in lines], timeout=self._timeout)


@final
class _PostLine(Line):
    """
    One HTTP/1.1 connection.

    Attributes:
        since: When the request under way was sent.
    """

    def __init__(self, posts: Posts) -> None:
        super().__init__()
        self.since = 0.0
        self._posts = posts
        self._http = h11.Connection(h11.CLIENT)
        self._number: int | None = None
        self._status = 0
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.opened.set_result(None)

    def post(self, number: int, path: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self._number = number
        self._body = b""
        self.since = perf_counter()
        events = h11.Request(method="POST", target=path, headers=headers), h11.Data(data=body), h11.EndOfMessage()
        self.write(b"".join(self._http.send(event) or b"" for event in events))

    def data_received(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            while (event := self._http.next_event()) is not h11.NEED_DATA and event is not h11.PAUSED:
                if isinstance(event, h11.Response):
                    self._status = event.status_code
                elif isinstance(event, h11.Data):
                    self._body += event.data[: MAX_HEAD - len(self._body)]
                elif isinstance(event, h11.EndOfMessage):
                    self._end()
                    return
        except h11.RemoteProtocolError:
            self.fail("no answer in HTTP")
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._posts.lost(self)
        self.fail("closed before the answer")
        super().connection_lost(error)

    def fail(self, reason: str) -> None:
        """The request under way, if there is one, has failed; nothing more is sent here."""
        if self._number is not None:
            number, self._number = self._number, None
            self._posts.over(self, number, reason, is_free=False)

    def forget(self) -> None:
        """Nobody wants to know any more."""
        self._number = None

    def _end(self) -> None:
        assert self._number is not None
        number, self._number = self._number, None
        is_free = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        if is_free:
            self._http.start_next_cycle()
        failure = None if 200 <= self._status < 300 else in_few_words(f"HTTP {self._status}", self._body)
        self._posts.over(self, number, failure, is_free=is_free)


def _headers_of(plan: Plan, target: Target, messages: Messages) -> list[tuple[str, str]]:
    try:
        json.loads(messages.payload(0))
        kind = "application/json"
    except ValueError:
        kind = "text/plain; charset=utf-8"
    headers = {"host": target.authority, "content-type": kind}
    own = {name.lower() for name, _ in plan.headers}
    usual = [(name, value) for name, value in headers.items() if name not in own]
    return [*usual, *plan.headers, ("content-length", str(messages.size))]
