"""One call of the app: its task, its end, and waits that always end too."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from traceback import format_exception
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import EventLoopToken, checkpoint, current_token

from microws.interfaces import ASGIApplication, Event, Scope

__all__ = ["AppCall", "CallTasks", "ClientGone", "check_loop", "end_block", "note", "time_limit"]


class ClientGone(ConnectionError):
    """
    What ``send`` raises in the app once the client has left.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html#disconnected-client-send-exception
    """


class AppCall(ABC):
    """
    One call of the app with a scope: what a server knows of it.

    An exception that leaves the app ends only the call. It is kept in ``error`` until ``raise_error`` raises it in the
    test; so is a breach of ASGI's rules, which the app's ``send`` raises too.

    Args:
        name: What error messages call it: ``GET /path``.
        raise_errors: Whether an exception is kept that leaves the app when it has said its last word, or the client has
            left. One that leaves the app before is always kept.
        raise_after_disconnect: Whether the app's ``send`` raises once the client has left, or does nothing.

    Attributes:
        is_started: The test has entered the block that starts the call.
        ended: The app has returned, raised, or was cancelled.
        gone: The client has left.
        finished: The app has said its last word: response complete, WebSocket closed or refused.
        error: What left the app, or its first breach of the rules.
        reported: The test has been told of ``error``, or of the time-out that made it give up.
    """

    def __init__(self, name: str, *, raise_errors: bool, raise_after_disconnect: bool = True) -> None:
        self.name = name
        self.is_started = False
        self.ended = False
        self.gone = False
        self.finished = False
        self.error: BaseException | None = None
        self.reported = False
        self._raise_errors = raise_errors
        self._raise_after_disconnect = raise_after_disconnect
        self._token = current_token()
        self._changed = anyio.Event()
        self._cancel_scope = anyio.CancelScope()

    @abstractmethod
    async def receive(self) -> Event:
        """The app's ``receive``."""

    @abstractmethod
    def check(self, event: Event) -> Event:
        """The app's event with its defaults filled in. Raises ``RuntimeError`` for a breach of ASGI's rules."""

    @abstractmethod
    def deliver(self, event: Event) -> None:
        """Let a checked event take effect. Never waits."""

    def has_room(self) -> bool:
        """Whether the client takes one more event now."""
        return True

    def disconnect(self) -> None:
        """The client leaves without a word: ``send`` no longer reaches it."""
        self.gone = True
        self.notify()

    async def send(self, event: Event) -> None:
        """The app's ``send``: waits while the client has no room. Cancelled, it has sent nothing."""
        await checkpoint()
        if self.finished or not self.gone:
            try:
                event = self.check(event)
            except RuntimeError as error:
                breach = RuntimeError(f"{self.name}: {error}")
                self.fail(breach)
                raise breach from None
            await self.wait_until(lambda: self.gone or self.has_room())
            if not self.gone:
                self.deliver(event)
                self.notify()
                return
        if self._raise_after_disconnect:
            raise ClientGone(f"{self.name}: the client has left")

    async def run(self, app: ASGIApplication, scope: Scope) -> None:
        """Call the app and keep what becomes of it."""
        try:
            with self._cancel_scope:
                await app(scope, self.receive, self.send)
        except ClientGone:
            pass
        except Exception as error:
            is_gone = isinstance(error, ExceptionGroup) and error.split(ClientGone)[1] is None
            if not is_gone and (self._raise_errors or not (self.finished or self.gone)):
                self.fail(error)
        except BaseException as error:
            # Such as pytest.fail() in a view. On asyncio it would otherwise end this task only, and the test pass.
            if _is_interrupt(error):
                raise
            self.fail(error)
        finally:
            self.ended = True
            self.disconnect()

    def started(self, method: str) -> Self:
        """
        This call, once it was started.

        Raises:
            RuntimeError: The test has not entered the block.
        """
        if not self.is_started:
            raise RuntimeError(
                f"expected an entered block, got client.{method}(…) alone, which does nothing: write "
                f"`async with client.{method}(…) as …:`"
            )
        return self

    def cancel(self) -> None:
        """Cancel the app, which was given time enough."""
        self._cancel_scope.cancel()

    def fail(self, error: BaseException) -> None:
        """Keep the first error for the test."""
        self.error = self.error or error
        self.notify()

    def take_error(self) -> BaseException | None:
        """The error that the test has not been told of; it counts as told now."""
        error = None if self.reported else self.error
        self.reported = self.reported or error is not None
        return error

    def raise_error(self) -> None:
        """Raise the call's error in the test, once."""
        if (error := self.take_error()) is not None:
            raise error

    def notify(self) -> None:
        """Something has changed: whoever waits looks again."""
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for ``condition``, and let others run at least once. Cancelled, it has changed nothing."""
        await checkpoint()
        while not condition():
            await self._changed.wait()

    async def wait(self, condition: Callable[[], bool], *, timeout: float, waiting_for: str) -> None:
        """
        Wait in the test for ``condition``, or for the call to be over.

        Raises:
            TimeoutError: Neither came within ``timeout`` seconds.
            RuntimeError: This is another event loop than the app's.
        """
        check_loop(self._token)
        if condition():
            # Even a time-out of 0 takes what is there.
            await checkpoint()
            return
        with time_limit(timeout, lambda: waiting_for):
            await self.wait_until(lambda: condition() or self.is_over())

    async def wait_ended(self, timeout: float) -> None:
        """Wait for the app's end after the client has left, then ``settle``."""
        with anyio.move_on_after(timeout):
            await self.wait_until(self.is_over)
        self.settle(timeout)

    def is_over(self) -> bool:
        """Whether nothing more is to be waited for: the app has ended or failed."""
        return self.ended or self.error is not None

    def settle(self, timeout: float) -> None:
        """
        Raise what the test has not been told yet. An app that is still running after ``timeout`` seconds is cancelled.

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
    def leaving_on_error(self) -> Iterator[None]:
        """Let the client leave when the block fails. A time-out of the block counts as reported."""
        try:
            yield
        except BaseException as error:
            self.reported = self.reported or isinstance(error, TimeoutError)
            self.disconnect()
            raise


class CallTasks:
    """
    The tasks in which a client's calls run. Open and close them in one event loop, in whichever tasks.

    On asyncio they belong to no task group: test frameworks set a fixture up and tear it down in different tasks, and
    a task group must be left by the task that entered it. On trio they belong to a nursery of the task that opens.
    """

    def __init__(self) -> None:
        self._token = current_token()
        self._group: TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Let tasks be started."""
        if not _is_asyncio():
            self._group = anyio.create_task_group()
            await self._group.__aenter__()

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any, name: str) -> None:
        """
        Run ``function(*args)``, which raises nothing, in a task of its own.

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
        Cancel what still runs, and wait until it has ended, also where the test was cancelled.

        Args:
            error: What ends the client's block.
        """
        if self._group is not None:
            self._group.cancel_scope.cancel()
            # Only a cancellation concerns the task group: it would wrap any other exception in a group.
            cancellation = error if isinstance(error, anyio.get_cancelled_exc_class()) else None
            await self._group.__aexit__(type(cancellation) if cancellation else None, cancellation, None)
            return
        with anyio.CancelScope(shield=True):
            while self._running:
                for task in self._running:
                    task.cancel()
                await asyncio.wait(self._running)


def check_loop(token: EventLoopToken) -> None:
    """Raise ``RuntimeError`` where another event loop runs than the one of ``token``."""
    if current_token() != token:
        raise RuntimeError(
            "expected the event loop that the test client was entered in, got another one: set loop_scope= of "
            "pytest-asyncio to the same scope for the fixture and the test; anyio's plugin does not work together "
            "with asyncio_mode=auto"
        )


def _is_asyncio() -> bool:
    return asyncio._get_running_loop() is not None  # noqa: SLF001


def _is_interrupt(error: BaseException) -> bool:
    """Whether ``error`` is, or contains, a cancellation or Ctrl-C."""
    interrupts = (anyio.get_cancelled_exc_class(), KeyboardInterrupt)
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(interrupts) is not None
    return isinstance(error, interrupts)


@contextmanager
def time_limit(timeout: float, waiting_for: Callable[[], str]) -> Iterator[None]:
    """
    Let the block take ``timeout`` seconds.

    Raises:
        TimeoutError: It took longer; its text is what ``waiting_for()`` says then.
    """
    with anyio.move_on_after(timeout) as scope:
        yield
    if scope.cancelled_caught:
        raise TimeoutError(f"{waiting_for()} within {timeout:g} s")


async def end_block(error: BaseException | None, finish: Callable[[], Awaitable[None]]) -> None:
    """End an ``async with`` block by ``finish``, whose failure gives way to the ``error`` that is leaving the block."""
    if error is None:
        await finish()
    elif isinstance(error, Exception):
        try:
            await finish()
        except Exception as second:
            note(error, second)


def note(error: BaseException, second: Exception) -> None:
    """Write under ``error`` what else went wrong."""
    error.add_note("".join(["also, at the end of the block:\n", *format_exception(second)]))
