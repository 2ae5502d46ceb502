"""Runs the lifespan of an ASGI app: startup before the first client, shutdown after the last."""

import logging
from typing import Any, Final

import anyio

from microws.errors import FeatureUnavailable, HubUnavailable
from microws.interfaces import ASGIApplication, Event
from microws.server.failures import is_failure

__all__ = ["LifespanRunner"]

_log = logging.getLogger("microws.server")

# Seconds that an app which has sent that it failed has to raise the exception as well, which says more.
_RAISE_TIMEOUT: Final = 1.0

_PHASES: Final = ("startup", "shutdown")


class LifespanRunner:
    """
    Calls an app with the lifespan scope. ``run`` is its task, and never raises: each failure is logged once.

    Args:
        app: The app.
        name: What log lines call it.
        extensions: Of the scope.

    Attributes:
        state: What the app stores at startup; every request gets a copy (ASGI's lifespan state).

    Source: https://asgi.readthedocs.io/en/latest/specs/lifespan.html
    """

    def __init__(
        self, app: ASGIApplication, *, name: str = "the app", extensions: dict[str, Any] | None = None
    ) -> None:
        self.state: dict[str, Any] = {}
        self.name = name
        self._app = app
        self._extensions = extensions or {}
        self._asked = {phase: anyio.Event() for phase in _PHASES}
        self._settled = {phase: anyio.Event() for phase in _PHASES}  # answered, or the app has ended
        self._received: list[str] = []  # phases that the app knows of
        self._answers: dict[str, Event] = {}
        self._ended = anyio.Event()
        self._error: BaseException | None = None
        self._is_foreign = False  # the app has answered as if it got a request

    async def run(self) -> None:
        """Call the app with the lifespan scope. Ends when the app does."""
        asgi = {"version": "3.0", "spec_version": "2.0"}
        scope = {"type": "lifespan", "asgi": asgi, "state": self.state, "extensions": self._extensions}
        try:
            await self._app(scope, self._receive, self._send)
        except BaseException as error:
            if not is_failure(error):
                raise
            self._error = error
            if self._has_succeeded("startup") and not self._asked["shutdown"].is_set():
                _log.error("%s's lifespan failed while the app was served", self.name, exc_info=error)
        finally:
            self._ended.set()
            for settled in self._settled.values():
                settled.set()

    async def startup(self, *, timeout: float) -> bool:
        """
        Ask for the startup and wait for its end, ``timeout`` seconds at most.

        An app that returns or raises an ``Exception`` without an answer, or answers as if it got a request, has no
        lifespan, and is served. A warning says so if it raised after it had received ``lifespan.startup``. An app that
        must not be served answers ``lifespan.startup.failed``, or raises ``SystemExit``.

        Source: ASGI lifespan specification, "Scope": if an exception is raised, "the server must continue".

        Returns:
            Whether the app may be served. If not, the log says why.
        """
        if not await self._wait_settled("startup", timeout):
            return False
        if self._has_succeeded("startup"):
            return True
        knows_lifespan = "startup" in self._received and not self._is_foreign
        if "startup" in self._answers or (knows_lifespan and not isinstance(self._error, Exception | None)):
            await self.report_failure("startup")
            return False
        if knows_lifespan and self._error is not None:
            _log.warning(
                "%s raised at lifespan.startup and is served without a lifespan, as ASGI says; "
                "an app that must not be served sends lifespan.startup.failed",
                self.name,
                exc_info=self._error,
            )
        else:
            _log.debug("%s has no lifespan", self.name, exc_info=self._error)
        self._error = None
        return True

    async def shutdown(self, *, timeout: float) -> bool:
        """
        Ask for the shutdown and wait for the end of the app, ``timeout`` seconds at most.

        Returns:
            Whether the lifespan ended well. If not, the log says why.
        """
        if self._ended.is_set():
            return self._error is None
        if not await self._wait_settled("shutdown", timeout):
            return False
        if self._error is None and ("shutdown" not in self._answers or self._has_succeeded("shutdown")):
            return True
        await self.report_failure("shutdown")
        return False

    async def report_failure(self, phase: str) -> None:
        """Log why a phase failed."""
        error, message = await self.failure(phase)
        if error is not None and not isinstance(error, HubUnavailable | FeatureUnavailable):
            _log.error("%s's %s failed", self.name, phase, exc_info=error)
        else:
            _log.error("%s's %s failed:%s%s", self.name, phase, "\n" if "\n" in message else " ", message)

    async def failure(self, phase: str) -> tuple[BaseException | None, str]:
        """The exception that the app raised, if it did, and why a phase failed in the app's words."""
        with anyio.move_on_after(_RAISE_TIMEOUT):
            await self._ended.wait()
        if self._error is not None:
            return self._error, str(self._error)
        return None, str(self._answers[phase].get("message") or "it sent no message").rstrip()

    async def _wait_settled(self, phase: str, timeout: float) -> bool:
        self._asked[phase].set()
        with anyio.move_on_after(timeout) as limit:
            await self._settled[phase].wait()
            if phase == "shutdown" and self._has_succeeded(phase):
                await self._ended.wait()
        if limit.cancelled_caught:
            _log.error("%s's %s did not end within %g s; %s_timeout gives it more", self.name, phase, timeout, phase)
        return not limit.cancelled_caught

    def _has_succeeded(self, phase: str) -> bool:
        return phase in self._answers and self._answers[phase]["type"].endswith(".complete")

    async def _receive(self) -> Event:
        for phase in _PHASES[len(self._received) :]:
            await self._asked[phase].wait()
            self._received.append(phase)
            return {"type": f"lifespan.{phase}"}
        # An app that waits for more has ended what it does.
        self._ended.set()
        while True:
            await anyio.sleep_forever()

    async def _send(self, event: Event) -> None:
        kind = str(event["type"])
        prefix, _, rest = kind.partition(".")
        phase, _, outcome = rest.partition(".")
        if prefix != "lifespan" or phase not in _PHASES or outcome not in ("complete", "failed"):
            self._is_foreign = True
            raise RuntimeError(f"expected lifespan.startup or lifespan.shutdown, .complete or .failed, got {kind!r}")
        self._answers.setdefault(phase, event)
        self._settled[phase].set()
