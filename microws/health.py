"""Two routes for load balancers and Kubernetes: is the process alive, and may it get requests."""

import inspect
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import anyio.to_thread

from microws.callables import is_async
from microws.hooks import Hooks, check_hook
from microws.interfaces import Scope
from microws.requests import Request
from microws.responses import Response, TextResponse
from microws.routing import Pattern, Router
from microws.views import HTTPEndpoint

__all__ = ["Health"]

# In the scope: lets the access log tell a probe from other requests.
_IS_PROBE: Final = "microws.is_probe"

_log = logging.getLogger("microws")

# Seconds of a check. Probes give up before it: Kubernetes after 1, HAProxy after 2, AWS after 5.
CHECK_TIMEOUT: Final = 5.0

_NO_STORE: Final = {"cache-control": "no-store"}
# Another worker, or the next one, may be ready then.
_NOT_READY: Final = _NO_STORE | {"retry-after": "1"}


class Health:
    """
    Answers probes. ``App.health`` documents it.

    Args:
        is_serving: Whether the app has started, and its shutdown has not begun.
        check: Must succeed for the app to be ready.
        has_hub: Must return ``True``. Default: the app is ready without its hub.

    Raises:
        TypeError: ``check`` cannot be called without arguments.
    """

    def __init__(
        self,
        is_serving: Callable[[], bool],
        check: Callable[[], Any] | None,
        *,
        has_hub: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        if check is not None:
            check_hook(check, "health")
        self._is_serving = is_serving
        self._check = check
        self._has_hub = has_hub
        self._late: threading.Event | None = None
        self._was_ready = True

    def register(self, router: Router, *, live: str, ready: str) -> None:
        """
        Add both routes. They have no hooks and answer any ``Host``, because probes do not log in, and their ``Host``
        is an address.

        Raises:
            RoutingError: A pattern is invalid, or another route hides it.
        """
        for pattern, view in ((live, self._live), (ready, self._ready)):
            endpoint = HTTPEndpoint(Hooks(), view, Pattern.parse(pattern, router.converters), is_health_check=True)
            router.add(pattern, endpoint, kind="http", methods=("GET",))

    async def _live(self, request: Request) -> Response:
        request.scope[_IS_PROBE] = True
        return TextResponse("alive", headers=_NO_STORE)

    async def _ready(self, request: Request) -> Response:
        request.scope[_IS_PROBE] = True
        # A drain may begin during the check.
        if self._is_open(request.scope) and await self._passes() and self._is_open(request.scope):
            return TextResponse("ready", headers=_NO_STORE)
        return TextResponse("not ready", 503, _NOT_READY)

    def _is_open(self, scope: Scope) -> bool:
        extension = (scope.get("extensions") or {}).get("microws") or {}
        is_draining = extension.get("is_draining")
        return self._is_serving() and not (is_draining and is_draining())

    async def _passes(self) -> bool:
        """Whether nothing keeps the app from being ready. The first failure is logged, and the next success."""
        reason, error = await self._obstacle()
        if self._was_ready and reason:
            _log.warning("not ready: %s", reason, exc_info=error)
        elif not (self._was_ready or reason):
            _log.info("ready again: the %s", "hub answers" if self._check is None else "check of app.health passes")
        self._was_ready = not reason
        return self._was_ready

    async def _obstacle(self) -> tuple[str, Exception | None]:
        if self._has_hub is not None and not await self._has_hub():
            return "the hub does not answer", None
        if self._check is None:
            return "", None
        try:
            with anyio.fail_after(CHECK_TIMEOUT):
                if await self._call(self._check) is False:
                    return "the check of app.health returned False", None
        except Exception as error:
            return "the check of app.health failed", error
        return "", None

    async def _call(self, check: Callable[[], Any]) -> Any:
        if is_async(check):
            return await check()
        # A thread cannot be cancelled. Probes come every second, so only one thread may wait for a slow check.
        if self._late is not None and not self._late.is_set():
            raise TimeoutError("the check has not returned since its time-out")
        ended = threading.Event()

        def run() -> tuple[Any]:
            try:
                return (check(),)  # in a tuple, because trio refuses a thread's function that returns a coroutine
            finally:
                ended.set()

        try:
            (result,) = await anyio.to_thread.run_sync(run, abandon_on_cancel=True)
        finally:
            self._late = ended
        return await result if inspect.isawaitable(result) else result
