"""The event loop that an app runs in. Publishing and subscribing work there; elsewhere only from another thread."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Final, TypeVar

from anyio.lowlevel import EventLoopToken, current_token

__all__ = ["AppLoop", "running_loop"]

# Seconds between two checks, by a thread that waits for its call, that the event loop is still open: a loop that ends
# does not notify it.
_CHECK_INTERVAL: Final = 0.5

T = TypeVar("T")

# The asyncio event loop that the caller runs in; ``None`` on trio, where asyncio.get_running_loop raises.
running_loop: Callable[[], asyncio.AbstractEventLoop | None] = asyncio._get_running_loop  # noqa: SLF001


class AppLoop:
    """
    The event loop that an app runs in, if it runs.

    Attributes:
        runs: How many lifespans of the app began and have not ended.
        thread: The event loop's thread; ``None`` while the app does not run.
    """

    def __init__(self) -> None:
        self.runs: int = 0
        self.thread: int | None = None
        self._token: EventLoopToken | None = None
        # asyncio's; ``None`` on trio.
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self) -> None:
        """Let the app run in this event loop, unless it runs in another one."""
        loop = self._loop
        # A closed asyncio loop does not keep the app; nor does one that was stopped and has no lifespan left.
        is_taken = self.runs > 0 if loop is None else not loop.is_closed() and (self.runs > 0 or loop.is_running())
        if self._is_here() or is_taken:
            return
        self.runs = 0
        self.thread = get_ident()
        self._token = current_token()
        self._loop = running_loop()

    @contextmanager
    def running(self) -> Iterator[None]:
        """
        A run of the app, from before its start-up until after its shutdown. One event loop may have several at a time.

        Raises:
            RuntimeError: The app runs in another event loop.
        """
        self.attach()
        if not self._is_here():
            raise RuntimeError(
                "expected the event loop that this app runs in already, got another one: end that run first, or let a "
                "function make an App for each event loop"
            )
        token = self._token
        self.runs += 1
        try:
            yield
        finally:
            # If the loop was closed during the run, another loop may have the app now.
            if token == self._token:
                self.runs -= 1
                if not self.runs:
                    self._token = self._loop = self.thread = None

    def check(self, in_thread: str) -> None:
        """
        Make sure that the app runs in this event loop.

        Args:
            in_thread: What to write instead in a thread other than the event loop's, for the error.

        Raises:
            RuntimeError: It does not run, or runs in another one.
        """
        if self._is_here():
            return
        if self._token is None or (self._loop is not None and self._loop.is_closed()):
            raise RuntimeError(
                "expected a running app, got one that has not started or has ended: use it in the process that serves "
                "it, from its start-up until its shutdown; in another framework's lifespan, `async with app.running():`"
            )
        advice = "use the app in the one that started it"
        if get_ident() != self.thread:
            advice = f"in another thread write {in_thread}"
        raise RuntimeError(f"expected the event loop that the app runs in, got another one: {advice}")

    def publish_from_thread(self, publish: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """
        Run ``publish(*args)`` in the event loop and return its result; blocks this thread until then.

        Raises:
            RuntimeError: Called in the event loop's thread, before the app started, or after its loop ended. If the
                loop ends during the call, the message may or may not have been published.
        """
        if self._token is None:
            raise RuntimeError("publish_from_thread needs a running app: call it between its start-up and its shutdown")
        if get_ident() == self.thread:
            raise RuntimeError("publish_from_thread is for other threads; here write `await app.publish(topic, value)`")
        loop = self._loop
        if loop is None:
            from anyio.from_thread import run  # here, because it takes 10 ms to import

            return run(publish, *args, token=self._token)
        publishing = publish(*args)
        try:
            published = asyncio.run_coroutine_threadsafe(publishing, loop)
        except RuntimeError:
            pass  # the loop is closed
        else:
            while not wait((published,), _CHECK_INTERVAL).done and not loop.is_closed():
                pass
            if published.done() and not published.cancelled():
                return published.result()
        publishing.close()
        raise RuntimeError("publish_from_thread needs a running app: its event loop has finished")

    def _is_here(self) -> bool:
        if self._loop is not None:
            return running_loop() is self._loop
        return self._token is not None and current_token() == self._token
