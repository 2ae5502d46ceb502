"""What HTTP and WebSocket dispatch share: ``on_close``, labels for middleware, and the origin rule of mounted apps."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import anyio

from microws.answers import report
from microws.callables import describe, is_async
from microws.datastructures import Headers
from microws.errors import HTTPException
from microws.handshake import Refusal, check_handshake_origin, check_request_origin
from microws.hooks import Hooks
from microws.interfaces import Application, Scope, Send
from microws.requests import OVER, BaseRequest
from microws.routing import Kind, Match, Miss, Mounted, Route, Router, encode_path, path_of, scope_below
from microws.settings import AppSettings
from microws.views import MountEndpoint

__all__ = ["NO_NUL", "Dispatcher", "close_down", "has_header", "name_route", "pass_body", "refused"]

# Refused because C libraries that a view calls (a file system, a database) would read another path than was checked.
NO_NUL = "expected a path without NUL"

# In the scope of a mounted app: the prefix of its mount, after those of the mounts around it; the ``origins`` that it
# inherits; and the prefix of the app whose setting they are. In place of a prefix the outermost app has ``None``.
_Mount: TypeAlias = tuple[str | None, Sequence[str] | None, str | None]
_MOUNT: Final = "microws.mounted"
_OUTERMOST: Final[_Mount] = (None, None, None)

# It shows paths encoded, because line breaks in them would write lines of their own.
_log = logging.getLogger("microws")


def has_header(scope: Scope, *names: bytes) -> bool:
    """Whether a request has a header with one of these names."""
    for name, _ in scope["headers"]:  # noqa: SIM110 - called for each request; a generator takes twice as long
        if name in names:
            return True
    return False


async def close_down(connection: BaseRequest, *, seconds: float) -> Exception | None:
    """
    Call the functions of ``on_close``, the last one first. A failure or time-out of one does not stop the others.

    Args:
        seconds: Limit of each.

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
            # By asyncio's Task.cancel, which ignores the shield. Raised after the other functions were called.
            interruption = error
        if limit.cancel_called:
            name = describe(function)
            _log.warning("%s: %s of on_close did not end within %g s", encode_path(connection.path), name, seconds)
    connection.closers = OVER
    if interruption is not None:
        raise interruption
    return failure


def name_route(scope: Scope, route: Route | Mounted, endpoint: Callable[..., Any], params: dict[str, Any]) -> None:
    """
    Add the route to ``scope``, under the names that Starlette and FastAPI use.

    It changes ``scope`` in place: middleware that labels requests by route reads its own scope afterwards.
    """
    scope["route"] = route
    scope["endpoint"] = endpoint
    outer = scope.get("path_params")
    scope["path_params"] = {**outer, **params} if outer else params


def pass_body(scope: Scope, send: Send, inner: Send) -> None:
    """Tell the microws server that ``inner`` passes the response body on to ``send`` unchanged."""
    exchange = scope.get("microws.exchange")
    if exchange is not None and exchange.is_own(send):
        exchange.own_send = inner


class Dispatcher:
    """
    Takes the scopes of one kind to their views.

    Args:
        app: The ``app`` of each request or WebSocket.
        router: Its endpoints are those of ``views``.
        hooks: Those of ``app``; its error handlers also answer paths without a route.
        settings: The app's.
    """

    def __init__(self, app: Application, *, router: Router, hooks: Hooks, settings: AppSettings) -> None:
        self._app = app
        self._router = router
        self._hooks = hooks
        self._settings = settings

    def _resolve(self, kind: Kind, method: str, scope: Scope) -> Match | Mounted | Miss | None:
        """What answers a request; ``None`` if a converter fails, which the request itself will report."""
        try:
            return self._router.resolve(kind, method, *path_of(scope))
        except Exception:
            return None

    def _scope_of_mount(self, scope: Scope, found: Mounted) -> Scope:
        """
        The scope of a mounted app, with the ``origins`` that it inherits.

        Its ``state`` has the lifespan state of the latest run.
        """
        mount: MountEndpoint = found.endpoint
        below = scope_below(scope, found.prefix)
        if mount.states and mount.states[-1]:
            if below.get("state") is None:
                below["state"] = {}
            below["state"].update(mount.states[-1])
        outer: _Mount = scope.get(_MOUNT, _OUTERMOST)
        prefix = (outer[0] or "") + found.prefix
        below[_MOUNT] = (prefix, *self._origins_of(scope)) if mount.gives_origins else (prefix, None, prefix)
        return below

    def _origins_of(self, scope: Scope) -> tuple[Sequence[str] | None, str | None]:
        """The ``origins`` of the app, its own or else the inherited ones; and the prefix of the app that sets them."""
        prefix, inherited, owner = scope.get(_MOUNT, _OUTERMOST)
        origins = self._settings.origins
        return (inherited, owner) if origins is None else (origins, prefix)

    def _check_origin(self, scope: Scope, headers: Headers, path: str) -> None:
        """Log a request or handshake from a foreign origin, and refuse it with ``HTTPException``."""
        allowed, owner = self._origins_of(scope)
        any_localhost = self._settings.any_localhost
        if scope["type"] == "websocket":
            refusal = check_handshake_origin(headers, allowed=allowed, any_localhost=any_localhost)
        else:
            refusal = check_request_origin(scope["method"], headers, allowed=allowed, any_localhost=any_localhost)
        if refusal is not None:
            if owner is not None:
                refusal = refusal._replace(log=f"{refusal.log} of the app mounted at {owner or '/'}")
            raise refused(refusal, path)


def refused(refusal: Refusal, path: str) -> HTTPException:
    """Log a refusal; return the exception that answers it."""
    _log.warning("%s: %s", encode_path(path), refusal.log)
    return HTTPException(refusal.status, refusal.detail)
