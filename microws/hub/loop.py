"""The event loop that an app runs in: publishing and subscribing work there, and elsewhere only from a thread."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Final, TypeVar

import anyio.from_thread
from anyio.lowlevel import EventLoopToken, current_token

__all__ = ["AppLoop", "running_loop"]

# Seconds between two looks of a thread that waits for its call: an event loop that ends tells it nothing.
_LOOK_INTERVAL: Final = 0.5

T = TypeVar("T")

# The asyncio event loop that the caller runs in; ``None`` on trio, where asyncio.get_running_loop raises.
running_loop: Callable[[], asyncio.AbstractEventLoop | None] = asyncio._get_running_loop  # noqa: SLF001


class AppLoop:
    """
    The event loop that an app runs in, if it runs.

    Attributes:
        runs: How many lifespans of the app have begun and not ended.
        thread: The event loop's thread; ``None`` while the app does not run.
    """

    def __init__(self) -> None:
        self.runs = 0
        self.thread: int | None = None
        self._token: EventLoopToken | None = None
        # asyncio's; ``None`` on trio.
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self) -> None:
        """Let the app run in this event loop, unless it runs in another one."""
        if self._is_here() or self._is_elsewhere():
            return
        self.runs = 0
        self.thread = get_ident()
        self._token = current_token()
        self._loop = running_loop()

    @contextmanager
    def running(self) -> Iterator[None]:
        """
        A run of the app, from before its start-up until after its shutdown. There may be several in one event loop.

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
            # A loop that was closed within a run may have been replaced by another.
            if token == self._token:
                self.runs -= 1
                if not self.runs:
                    self._token = self._loop = self.thread = None

    def check(self, in_thread: str) -> None:
        """
        Make sure that the app runs in this event loop.

        Args:
            in_thread: What the error says to write in another thread than the event loop's.

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
        What ``await publish(*args)`` returns in the event loop; blocks this thread until it is done.

        Raises:
            RuntimeError: Called in the event loop's own thread, before the app has started, or when its loop has ended.
                Where the loop ends meanwhile, the message may have been published or not.
        """
        if self._token is None:
            raise RuntimeError("publish_from_thread needs a running app: call it between its start-up and its shutdown")
        if get_ident() == self.thread:
            raise RuntimeError("publish_from_thread is for other threads; here write `await app.publish(topic, value)`")
        if self._loop is None:
            return anyio.from_thread.run(publish, *args, token=self._token)
        return _run_in_loop(self._loop, publish(*args))

    def _is_here(self) -> bool:
        if self._loop is not None:
            return running_loop() is self._loop
        return self._token is not None and current_token() == self._token

    def _is_elsewhere(self) -> bool:
        """Whether another event loop than this one has the app. One that was closed has not."""
        if self._loop is not None:
            return not self._loop.is_closed() and (self.runs > 0 or self._loop.is_running())
        return self.runs > 0


def _run_in_loop(loop: asyncio.AbstractEventLoop, publishing: Coroutine[Any, Any, T]) -> T:
    """Wait in this thread for what ``publishing`` returns in ``loop``, as long as there is a loop."""
    try:
        published = asyncio.run_coroutine_threadsafe(publishing, loop)
    except RuntimeError:
        pass  # it is closed
    else:
        while not wait((published,), _LOOK_INTERVAL).done and not loop.is_closed():
            pass
        if published.done() and not published.cancelled():
            return published.result()
    publishing.close()
    raise RuntimeError("publish_from_thread needs a running app: its event loop has finished")
