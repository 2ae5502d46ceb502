"""Two routes for whoever watches over a server: does it live, and may it be sent requests."""

import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import anyio
import anyio.to_thread

from microws.binding import bind_view
from microws.callables import is_async
from microws.hooks import Hooks, check_hook
from microws.interfaces import Scope
from microws.requests import Request
from microws.responses import Response, TextResponse
from microws.routing import Pattern, Router
from microws.views import HTTPEndpoint

__all__ = ["Health"]

_log = logging.getLogger("microws")

# Seconds that a check has; who asks has given up by then: Kubernetes after 1, HAProxy after 2, AWS after 5.
CHECK_TIMEOUT: Final = 5.0

_NO_STORE: Final = {"cache-control": "no-store"}
# Another worker, or the one that comes after this, will do.
_NOT_READY: Final = _NO_STORE | {"retry-after": "1"}


class Health:
    """
    Answers probes. ``App.health`` documents it.

    Args:
        is_serving: Whether the app has started, and has not begun to end.
        check: What else has to be well.

    Raises:
        TypeError: ``check`` cannot be called without arguments.
    """

    def __init__(self, is_serving: Callable[[], bool], check: Callable[[], Any] | None) -> None:
        if check is not None:
            check_hook(check, "health")
        self._is_serving = is_serving
        self._check = check
        self._is_in_thread = not is_async(check)
        self._late: threading.Event | None = None
        self._was_well = True

    def register(self, router: Router, *, live: str, ready: str) -> None:
        """
        Add both routes. No hooks stand around them, and they answer any ``Host``: a probe does not log in, and it asks
        an address.

        Raises:
            RoutingError: A pattern that cannot be or that another route hides.
        """
        for pattern, view in ((live, self._live), (ready, self._ready)):
            parsed = Pattern.parse(pattern, router.converters)
            endpoint = HTTPEndpoint(Hooks(), bind_view(view, parsed, kind="http"), view, is_health_check=True)
            router.add(pattern, endpoint, kind="http", methods=("GET",))

    async def _live(self, request: Request) -> Response:
        _mark(request.scope)
        return TextResponse("alive", headers=_NO_STORE)

    async def _ready(self, request: Request) -> Response:
        _mark(request.scope)
        # A drain may begin while the check is under way.
        if self._is_open(request.scope) and await self._is_well() and self._is_open(request.scope):
            return TextResponse("ready", headers=_NO_STORE)
        return TextResponse("not ready", 503, _NOT_READY)

    def _is_open(self, scope: Scope) -> bool:
        extension = (scope.get("extensions") or {}).get("microws") or {}
        is_draining = extension.get("is_draining")
        return self._is_serving() and not (is_draining and is_draining())

    async def _is_well(self) -> bool:
        """What the check says. Its failures are logged once, until it has passed again."""
        if self._check is None:
            return True
        error: Exception | None = None
        try:
            with anyio.fail_after(CHECK_TIMEOUT):
                is_well = await self._call(self._check) is not False
        except Exception as failure:
            is_well, error = False, failure
        if self._was_well and not is_well:
            _log.warning("not ready: the check of app.health %s", "failed" if error else "said False", exc_info=error)
        elif is_well and not self._was_well:
            _log.info("ready again: the check of app.health passes")
        self._was_well = is_well
        return is_well

    async def _call(self, check: Callable[[], Any]) -> Any:
        if not self._is_in_thread:
            return await check()
        # A thread cannot be cancelled. One that hangs is enough: probes come every second.
        if self._late is not None and not self._late.is_set():
            raise TimeoutError("the check has not returned since its time-out")
        ended = threading.Event()

        def run() -> tuple[Any]:
            try:
                return (check(),)
            finally:
                ended.set()

        try:
            (result,) = await anyio.to_thread.run_sync(run, abandon_on_cancel=True)
        finally:
            self._late = ended
        return await result if inspect.isawaitable(result) else result


def _mark(scope: Scope) -> None:
    # So that the access log can tell a probe from a request.
    scope["microws.is_probe"] = True
