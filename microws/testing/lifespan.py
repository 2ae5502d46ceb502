"""The app's lifespan: startup before the first request, shutdown after the last."""

from typing import Any

import anyio

from microws.interfaces import Event
from microws.testing.calls import AppCall
from microws.testing.rules import LifespanRules

__all__ = ["LifespanCall"]


class LifespanCall(AppCall):
    """
    The app's lifespan.

    Args:
        timeout: Seconds for each of startup and shutdown.
    """

    def __init__(self, *, timeout: float) -> None:
        super().__init__("lifespan", raise_errors=True)
        self.state: dict[str, Any] = {}
        self._timeout = timeout
        self._rules = LifespanRules()
        self._asked: list[str] = []
        self._taken: list[str] = []
        self._answer: Event | None = None

    async def receive(self) -> Event:
        await self.wait_until(lambda: bool(self._asked))
        phase = self._asked.pop(0)
        self._taken.append(phase)
        self._rules.ask(phase)
        return {"type": f"lifespan.{phase}"}

    def check(self, event: Event) -> Event:
        try:
            return self._rules.check(event)
        except RuntimeError as error:
            raise RuntimeError(f"{error}; for an app without a lifespan: TestClient(app, lifespan=False)") from None

    def deliver(self, event: Event) -> None:
        self._answer = event

    async def startup(self) -> None:
        """
        Wait for the app's startup. An app that raises or returns before it takes the event has no lifespan.

        Raises:
            TimeoutError: No answer in time.
            RuntimeError: The app said ``startup.failed``.
            Exception: What left the app, where something did.
        """
        if await self._ask("startup") or self._taken:
            self.raise_error()
        else:
            self.reported = True

    async def shutdown(self) -> None:
        """
        Ask for the app's shutdown, and wait for its end.

        Raises:
            TimeoutError: No answer, or no end, in time.
            RuntimeError: The app said ``shutdown.failed``, or nothing.
            Exception: What left the app, where something did.
        """
        if self.ended:
            self.raise_error()
            return
        answered = await self._ask("shutdown")
        await self.wait_ended(self._timeout)
        if not answered:
            raise RuntimeError("lifespan: the app returned without lifespan.shutdown.complete")

    async def _ask(self, phase: str) -> bool:
        self._answer = None
        self._asked.append(phase)
        self.notify()
        await self.wait(
            lambda: self._answer is not None,
            timeout=self._timeout,
            waiting_for=f"lifespan: no answer to lifespan.{phase}",
        )
        # The checker does not see that another task has set it.
        answer: Event | None = self._answer
        if answer is not None and answer["type"].endswith(".failed"):
            # The app's own exception, which mostly follows, says more than its message.
            with anyio.move_on_after(self._timeout):
                await self.wait_until(lambda: self.ended)
            self.raise_error()
            raise RuntimeError(f"lifespan: the app's {phase} failed: {answer['message']}")
        return answer is not None
