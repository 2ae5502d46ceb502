"""What both kinds of requests have in common on their way to a view."""

import logging
from collections.abc import Callable
from typing import Any

import anyio

from microws.answers import report
from microws.callables import is_async
from microws.errors import HTTPException
from microws.handshake import Refusal
from microws.interfaces import Scope
from microws.requests import OVER, Connection
from microws.routing import Mounted, Route, encode_path

__all__ = ["NO_NUL", "close_down", "has_header", "name_route", "raise_refusal", "refused", "shown"]

# Refused because C libraries below a view (a file system, a database) would read another path than was checked.
NO_NUL = "a path has no NUL"

_log = logging.getLogger("microws")


def has_header(scope: Scope, *names: bytes) -> bool:
    """Whether a request has a header of one of these names."""
    for name, _ in scope["headers"]:  # noqa: SIM110 - each request is asked, and a generator would take twice as long
        if name in names:
            return True
    return False


async def close_down(connection: Connection, *, seconds: float) -> Exception | None:
    """
    Call what ``on_close`` was given, the last one first: whatever becomes of one, the others have their turn.

    Args:
        seconds: That each has.

    Returns:
        The first exception, which was logged.
    """
    failure: Exception | None = None
    interruption: BaseException | None = None
    while connection.closers:
        function, args = connection.closers.pop()
        try:
            with anyio.move_on_after(seconds, shield=True) as limit:
                try:
                    if is_async(function):
                        await function(*args)
                    else:
                        await connection.app.threads.run("hooks", function, *args)
                except Exception as error:
                    report(error, connection.path, "a function of on_close failed")
                    failure = failure or error
        except anyio.get_cancelled_exc_class() as error:
            # By asyncio's Task.cancel, which passes the shield. Raised when the others have had their turn.
            interruption = error
        if limit.cancel_called:
            _log.warning("%s: %r of on_close did not end within %g s", shown(connection.path), function, seconds)
    connection.closers = OVER
    if interruption is not None:
        raise interruption
    return failure


def name_route(scope: Scope, route: Route | Mounted, endpoint: Callable[..., Any], params: dict[str, Any]) -> None:
    """
    Say in ``scope`` what answers, under the names that Starlette and FastAPI use.

    In place: middleware that wraps the app, and labels what it measures by route, reads its own scope afterwards.
    """
    scope["route"] = route
    scope["endpoint"] = endpoint
    outer = scope.get("path_params")
    scope["path_params"] = {**outer, **params} if outer else params


def raise_refusal(refusal: Refusal | None, path: str) -> None:
    """Log a refusal, if there is one, and raise it as ``HTTPException``."""
    if refusal is not None:
        raise refused(refusal, path)


def refused(refusal: Refusal, path: str) -> HTTPException:
    """Log a refusal; the exception that answers it."""
    _log.warning("%s: %s", shown(path), refusal.log)
    return HTTPException(refusal.status, refusal.detail)


def shown(path: str) -> str:
    """A path as it may stand in the log."""
    # A path may hold line breaks, and would else write lines of its own into the log.
    return encode_path(path, keep_slashes=True)
