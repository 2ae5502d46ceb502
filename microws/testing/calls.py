"""One call of the app: its task, the events in both directions, its end, and waits that all have a limit."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from traceback import format_exception
from typing import Any, NamedTuple, Self

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import EventLoopToken, checkpoint, current_token

from microws.closing import CloseCode
from microws.interfaces import ASGIApplication, Event, Scope
from microws.testing.cookies import CookieJar
from microws.testing.rules import Rules

__all__ = ["AppCall", "CallSettings", "CallTasks", "ClientDisconnected", "add_note", "end_block", "time_limit"]


class ClientDisconnected(ConnectionError):
    """
    Raised by ``send`` in the app after the client has disconnected.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html#disconnected-client-send-exception
    """


class CallSettings(NamedTuple):
    """
    What all calls of a client share.

    Attributes:
        start: Starts a call in a task of the client.
        cookies: Stores the cookies that the app sets.
        raise_errors: Whether to keep an exception that leaves the app after its last event, or after the client has
            disconnected. An earlier one is always kept.
        raise_after_disconnect: Whether the app's ``send`` raises after the client has disconnected, or does nothing.
    """

    start: Callable[["AppCall"], None]
    cookies: CookieJar
    raise_errors: bool
    raise_after_disconnect: bool


class AppCall:
    """
    One call of the app with a scope, as a server sees it.

    An exception that leaves the app ends only this call. ``error`` keeps it until the test gets it; so does it keep a
    breach of ASGI's rules, which the app's ``send`` raises too.

    Args:
        name: For error messages: ``GET /path``.
        scope: The app's scope.
        rules: What the app may send.
        settings: Those of the client.
        inbox: The first events for the app.
        body: The body of a request in chunks. The app gets each after it has received the one before.
        max_queue: Events of the app that wait for the test before the app's ``send`` waits. ``None``: unlimited.

    Attributes:
        inbox: Events that the app has not received.
        answer: The app's first event: the start of the response, or the answer to the handshake.
        outbox: Chunks and messages of the app that the test has not received.
        disconnect_event: What the app receives after the end of the connection. ``None``: the connection is open.
        client_disconnected: The client has disconnected or closed; the app's events are dropped.
        finished: The app has sent its last event.
        ended: The app has returned, raised, or was cancelled.
        error: What left the app, or its first breach of the rules.
        reported: The test has got ``error``, or the time-out after which it gave up.
    """

    def __init__(
        self,
        name: str,
        scope: Scope,
        rules: Rules,
        settings: CallSettings,
        *,
        inbox: Iterable[Event] = (),
        body: AsyncIterable[bytes] | None = None,
        max_queue: int | None = None,
    ) -> None:
        if max_queue is not None and max_queue < 1:
            raise ValueError(f"expected max_queue of at least 1, or None for no limit, got {max_queue}")
        self.name = name
        self.scope = scope
        self.body = body
        self.inbox: deque[Event] = deque(inbox)
        self.answer: Event | None = None
        self.outbox: deque[Event] = deque()
        self.disconnect_event: Event | None = None
        self.client_disconnected: bool = False
        self.finished: bool = False
        self.ended: bool = False
        self.reported: bool = False
        self._is_started = False
        self.error: BaseException | None = None
        self._rules = rules
        self._settings = settings
        self._max_queue = max_queue
        self._token = current_token()
        self._changed = anyio.Event()
        self._cancel_scope = anyio.CancelScope()
        self._feeding = anyio.CancelScope()

    def start(self) -> None:
        """Start the app."""
        self._settings.start(self)
        self._is_started = True

    def started(self, method: str) -> Self:
        """Return this call. Raises ``RuntimeError`` if the test has not entered the block that starts it."""
        if not self._is_started:
            raise RuntimeError(
                f"expected an entered block, got client.{method}(…) alone, which does nothing: write "
                f"`async with client.{method}(…) as …:`"
            )
        return self

    async def receive(self) -> Event:
        """The app's ``receive``. A WebSocket's app gets every message before the disconnect."""
        await self.wait_until(lambda: bool(self.inbox) or self.disconnect_event is not None)
        if self.disconnect_event is not None and (not self.inbox or self.scope["type"] == "http"):
            return dict(self.disconnect_event)
        event = self.inbox.popleft()
        if event["type"].startswith("lifespan."):
            self._rules.state = event["type"]
        self.notify()
        return event

    async def send(self, event: Event) -> None:
        """The app's ``send``: waits while ``outbox`` is full. Cancelled, it has sent nothing."""
        await checkpoint()
        if self.finished or not self.client_disconnected:
            try:
                event = self._rules.check(event)
            except RuntimeError as error:
                hint = "; for an app without a lifespan: TestClient(app, lifespan=False)"
                breach = RuntimeError(f"{self.name}: {error}{hint * (self.name == 'lifespan')}")
                self._fail(breach)
                raise breach from None
            await self.wait_until(
                lambda: self.client_disconnected or self._max_queue is None or len(self.outbox) < self._max_queue
            )
            if not self.client_disconnected:
                self._deliver(event)
                self.notify()
                return
        if self._settings.raise_after_disconnect:
            raise ClientDisconnected(f"{self.name}: the client has disconnected")

    def _deliver(self, event: Event) -> None:
        for name, value in event.get("headers", ()):
            if name == b"set-cookie":
                self._settings.cookies.store(value.decode("latin-1"), request_path=self.scope["path"])
        if self.answer is None:
            self.answer = event
        elif event["type"] == "websocket.close":
            self._end(event["code"], event["reason"])
        elif event.get("body") != b"":
            self.outbox.append(event)
        if event["type"] == "websocket.close" or not event.get("more_body", True):
            self.finished = True
            self._end()

    async def run(self, app: ASGIApplication) -> None:
        """Call the app and keep its error."""
        try:
            with self._cancel_scope:
                await app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except Exception as error:
            expected = isinstance(error, ExceptionGroup) and error.split(ClientDisconnected)[1] is None
            if not expected and (self._settings.raise_errors or not (self.finished or self.client_disconnected)):
                self._fail(error)
        except BaseException as error:
            # Such as pytest.fail() in a view: on asyncio it would end this task only, and the test would pass.
            if _is_interrupt(error):
                raise
            self._fail(error)
        finally:
            self.ended = True
            self.disconnect()

    async def feed(self) -> None:
        """Send the chunks of ``body``. An exception of the iterable is the call's error, and the client disconnects."""
        assert self.body is not None
        try:
            with self._feeding:
                async for chunk in self.body:
                    if not isinstance(chunk, bytes):
                        raise TypeError(f"expected the chunks of content= as bytes, got {chunk!r}")
                    self.put({"type": "http.request", "body": chunk, "more_body": True})
                    await self.wait_until(lambda: not self.inbox)
                self.put({"type": "http.request", "body": b"", "more_body": False})
        except Exception as error:
            self._fail(error)
            self.disconnect()
        finally:
            if (close := getattr(self.body, "aclose", None)) is not None:
                await close()

    def put(self, event: Event) -> None:
        """Send an event to the app. Raises ``RuntimeError`` in another event loop than the app's."""
        check_loop(self._token)
        self.inbox.append(event)
        self.notify()

    def disconnect(self, code: int = CloseCode.ABNORMAL_CLOSURE, reason: str = "") -> None:
        """Disconnect the client: the app's ``send`` no longer reaches it."""
        self._end(code, reason)
        self.client_disconnected = True
        self._feeding.cancel()
        self.notify()

    def _end(self, code: int = CloseCode.ABNORMAL_CLOSURE, reason: str = "") -> None:
        if self.disconnect_event is None:
            kind = self.scope["type"]
            details = {"code": code, "reason": reason} if kind == "websocket" else {}
            self.disconnect_event = {"type": f"{kind}.disconnect", **details}

    def cancel(self) -> None:
        """Cancel the app."""
        self._cancel_scope.cancel()

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self.notify()

    def raise_error(self) -> None:
        """Raise the call's error in the test, once."""
        if self.error is not None and not self.reported:
            self.reported = True
            raise self.error

    def notify(self) -> None:
        """Let every ``wait_until`` check its condition again."""
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for ``condition``, and let other tasks run at least once. Cancelled, it has changed nothing."""
        await checkpoint()
        while not condition():
            await self._changed.wait()

    async def wait(self, condition: Callable[[], bool], *, timeout: float, waiting_for: str) -> None:
        """
        Wait in the test for ``condition``, or until ``is_over``.

        Raises:
            TimeoutError: Neither came within ``timeout`` seconds; ``waiting_for`` is its text.
            RuntimeError: This is another event loop than the app's.
        """
        check_loop(self._token)
        if condition():
            # So a time-out of 0 takes what has arrived.
            await checkpoint()
            return
        with time_limit(timeout, lambda: waiting_for):
            await self.wait_until(lambda: condition() or self.is_over())

    async def wait_answer(self, timeout: float) -> Event:
        """Wait for the app's first event. Raises as ``wait``, and ``RuntimeError`` if the app returns without it."""
        await self.wait(lambda: self.answer is not None, timeout=timeout, waiting_for=self.missing())
        if self.answer is None:
            self.raise_error()
            raise RuntimeError(f"{self.missing()}: the app returned")
        return self.answer

    async def next_event(self, timeout: float, waiting_for: str) -> Event | None:
        """Wait for the app's next event; ``None`` after the end of the connection or of the app. Raises as ``wait``."""
        await self.wait(
            lambda: bool(self.outbox) or self.disconnect_event is not None, timeout=timeout, waiting_for=waiting_for
        )
        self.notify()
        return self.outbox.popleft() if self.outbox else None

    async def next_chunk(self, timeout: float) -> bytes | None:
        """Wait for a chunk of the body; ``None`` at its end. Raises as ``wait_answer``."""
        event = await self.next_event(timeout, f"no more of the response to {self.name}")
        if event is None and not self.finished:
            self.raise_error()
            raise RuntimeError(f"{self.missing()}: the app returned")
        return event["body"] if event else None

    def is_over(self) -> bool:
        """Whether the app has ended or failed, so that there is nothing more to wait for."""
        return self.ended or self.error is not None

    def missing(self) -> str:
        """What a request or a handshake waits for."""
        if self.answer is None:
            what = "answer to the handshake of" if self.scope["type"] == "websocket" else "response start from"
            return f"no {what} {self.name}"
        if not self.finished:
            return f"no complete response from {self.name}"
        return f"{self.name}: the response is complete, but the app did not end"

    async def wait_ended(self, timeout: float) -> None:
        """Wait for the app's end after the client has disconnected, then ``settle``."""
        with anyio.move_on_after(timeout):
            await self.wait_until(self.is_over)
        self.settle(timeout)

    def settle(self, timeout: float) -> None:
        """
        Raise what the test has not got yet. Cancels an app that is still running after ``timeout`` seconds.

        Raises:
            TimeoutError: It was still running.
            Exception: Whatever left the app.
        """
        if not self.ended:
            self.cancel()
        self.raise_error()
        if not self.ended and not self.reported:
            self.reported = True
            raise TimeoutError(f"{self.name}: the app did not end within {timeout:g} s")

    @contextmanager
    def disconnect_on_error(self) -> Iterator[None]:
        """Disconnect the client when the block fails. The test knows of a time-out of the block."""
        try:
            yield
        except BaseException as error:
            self.reported = self.reported or isinstance(error, TimeoutError)
            self.disconnect()
            raise


class CallTasks:
    """
    The tasks in which a client's calls run. Open and close them in one event loop, in any tasks.

    On asyncio they belong to no task group: test frameworks set up and tear down a fixture in different tasks, and
    the task that entered a task group must leave it. On trio they belong to a nursery of the task that opens.
    """

    def __init__(self) -> None:
        self._token = current_token()
        self._group: TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Call this before ``start_soon``."""
        if asyncio._get_running_loop() is None:  # noqa: SLF001
            self._group = anyio.create_task_group()
            await self._group.__aenter__()

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any, name: str) -> None:
        """
        Run ``function(*args)``, which must not raise, in a task of its own.

        Raises:
            RuntimeError: This is another event loop than the one that opened.
        """
        check_loop(self._token)
        if self._group is not None:
            self._group.start_soon(function, *args, name=name)
            return
        task = asyncio.get_running_loop().create_task(function(*args), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self, error: BaseException | None) -> None:
        """
        Cancel the running tasks and wait for their end, even if the test was cancelled.

        Args:
            error: The exception that leaves the client's block.
        """
        if self._group is not None:
            self._group.cancel_scope.cancel()
            # The task group gets cancellations only: it would wrap any other exception in a group.
            cancellation = error if isinstance(error, anyio.get_cancelled_exc_class()) else None
            await self._group.__aexit__(type(cancellation) if cancellation else None, cancellation, None)
            return
        with anyio.CancelScope(shield=True):
            while self._running:
                for task in self._running:
                    task.cancel()
                await asyncio.wait(self._running)


def check_loop(token: EventLoopToken) -> None:
    """Raise ``RuntimeError`` unless the running event loop is that of ``token``."""
    if current_token() != token:
        raise RuntimeError(
            "expected the event loop that the test client was entered in, got another one: set loop_scope= of "
            "pytest-asyncio to the same scope for the fixture and the test; anyio's plugin does not work together "
            "with asyncio_mode=auto"
        )


def _is_interrupt(error: BaseException) -> bool:
    """Whether ``error`` is, or contains, a cancellation or Ctrl-C."""
    interrupts = (anyio.get_cancelled_exc_class(), KeyboardInterrupt)
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(interrupts) is not None
    return isinstance(error, interrupts)


@contextmanager
def time_limit(timeout: float, waiting_for: Callable[[], str]) -> Iterator[None]:
    """
    Let the block take at most ``timeout`` seconds.

    Raises:
        TimeoutError: It took longer; the text is ``waiting_for()`` at that time.
    """
    with anyio.move_on_after(timeout) as scope:
        yield
    if scope.cancelled_caught:
        raise TimeoutError(f"{waiting_for()} within {timeout:g} s")


async def end_block(error: BaseException | None, finish: Callable[[], Awaitable[None]]) -> None:
    """End an ``async with`` block with ``finish``, whose exception becomes a note on an ``error`` of the block."""
    if error is None:
        await finish()
    elif isinstance(error, Exception):
        try:
            await finish()
        except Exception as second:
            add_note(error, second)


def add_note(error: BaseException, second: Exception) -> None:
    """Add the traceback of ``second`` as a note to ``error``."""
    error.add_note("".join(["also, at the end of the block:\n", *format_exception(second)]))
