"""An event loop whose clock stands still while anything happens, and jumps to the next timer when nothing does."""

import asyncio
import functools
import selectors

__all__ = ["VirtualClockLoop", "on_virtual_clock"]


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """
    asyncio's event loop on virtual time: a time-out of an hour takes none, and exactly an hour by ``time()``.

    Its sockets are real. What one end of a connection has written must be there for the other at once, as it is with
    ``socket.socketpair``: the clock does not wait for it. Threads are not waited for either.

    Raises:
        RuntimeError: The tasks wait for something that will never happen.
    """

    def __init__(self):
        self._now = 1000.0
        super().__init__(_Selector(self._advance))

    def time(self):
        return self._now

    def timers(self):
        """How many timers run."""
        return sum(not timer.cancelled() for timer in self._scheduled)

    def _advance(self, seconds):
        if seconds is None:
            raise RuntimeError("every task waits, and there is no timer and no data to wake one")
        self._now += seconds


class _Selector(selectors.DefaultSelector):
    def __init__(self, advance):
        super().__init__()
        self._advance = advance

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready and timeout != 0:
            self._advance(timeout)
        return ready


def on_virtual_clock(test):
    """Run an async test on a ``VirtualClockLoop``."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run
