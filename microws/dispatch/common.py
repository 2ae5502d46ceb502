"""What both kinds of requests have in common on their way to a view."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import anyio

from microws.answers import report
from microws.callables import describe, is_async
from microws.errors import HTTPException
from microws.handshake import Refusal
from microws.interfaces import Scope, Send
from microws.requests import OVER, Connection
from microws.routing import Mounted, Route, encode_path
from microws.settings import AppSettings
from microws.views import MountEndpoint

__all__ = [
    "NO_NUL",
    "allowed_origins",
    "close_down",
    "has_header",
    "name_route",
    "pass_body",
    "raise_refusal",
    "refused",
    "scope_of_mount",
    "shown",
]

# Refused because C libraries below a view (a file system, a database) would read another path than was checked.
NO_NUL = "a path has no NUL"

# In the scope of a mounted app: its ``_Place``.
_PLACE: Final = "microws.mounted"

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
            name = describe(function)
            _log.warning("%s: %s of on_close did not end within %g s", shown(connection.path), name, seconds)
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


def pass_body(scope: Scope, send: Send, inner: Send) -> None:
    """Tell this package's own server that ``inner`` gives ``send`` the body of the response as it is."""
    exchange = scope.get("microws.exchange")
    if exchange is not None and exchange.is_own(send):
        exchange.own_send = inner


class _Place(NamedTuple):
    """
    Where an app is mounted.

    Attributes:
        prefix: The prefix of its mount, after those of the mounts around that one.
        origins: The list that it takes over if it has none.
        owner: The prefix of the app whose list this is. ``None`` is the outermost app.
    """

    prefix: str
    origins: Sequence[str] | None
    owner: str | None


def scope_of_mount(scope: Scope, found: Mounted, settings: AppSettings) -> Scope:
    """The scope of a mounted app, with the ``origins`` that it takes over. ``settings`` are those of the outer app."""
    mount: MountEndpoint = found.endpoint
    below = mount.scope_below(scope, found.prefix)
    outer: _Place | None = scope.get(_PLACE)
    prefix = found.prefix if outer is None else outer.prefix + found.prefix
    if mount.gives_origins:
        below[_PLACE] = _Place(prefix, allowed_origins(scope, settings), _owner(scope, settings))
    else:
        below[_PLACE] = _Place(prefix, None, prefix)
    return below


def allowed_origins(scope: Scope, settings: AppSettings) -> Sequence[str] | None:
    """The ``origins`` of an app: its own, or else those of the app that mounts it."""
    if settings.origins is None and (place := scope.get(_PLACE)) is not None:
        inherited: Sequence[str] | None = place.origins
        return inherited
    return settings.origins


def raise_refusal(refusal: Refusal | None, path: str, scope: Scope, settings: AppSettings) -> None:
    """Log the refusal of an origin, if there is one, and raise it as ``HTTPException``."""
    if refusal is None:
        return
    owner = _owner(scope, settings)
    if owner is not None:
        refusal = refusal._replace(log=f"{refusal.log} of the app mounted at {owner or '/'}")
    raise refused(refusal, path)


def _owner(scope: Scope, settings: AppSettings) -> str | None:
    """Where the app is mounted whose ``origins`` decide; ``None`` for the outermost app."""
    place: _Place | None = scope.get(_PLACE)
    if place is None:
        return None
    return place.owner if settings.origins is None else place.prefix


def refused(refusal: Refusal, path: str) -> HTTPException:
    """Log a refusal; the exception that answers it."""
    _log.warning("%s: %s", shown(path), refusal.log)
    return HTTPException(refusal.status, refusal.detail)


def shown(path: str) -> str:
    """A path as it may stand in the log."""
    # A path may hold line breaks, and would else write lines of its own into the log.
    return encode_path(path)
