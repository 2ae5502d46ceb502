"""The endpoints of routes, and the response for the value that a view returns."""

import inspect
from collections.abc import AsyncIterable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, TypeAlias, TypedDict, get_args

from microws.callables import describe
from microws.codec import JSON_DEFAULT, Codecs, MessageCodec
from microws.handshake import check_origins_setting
from microws.hooks import Hooks
from microws.interfaces import BYTES_LIKE, ASGIApplication, BoundView, Scope
from microws.responses import JSONResponse, Response
from microws.routing import scope_below

__all__ = [
    "HTTPEndpoint",
    "MountEndpoint",
    "OnInvalid",
    "WebSocketEndpoint",
    "WebSocketRouteOptions",
    "to_response",
]

OnInvalid: TypeAlias = Literal["close", "skip"]

# For isinstance. A tuple, because `dict | list` would be created again by each call.
_SENT_AS_JSON = (dict, list)


class WebSocketRouteOptions(TypedDict, total=False):
    """The options of ``App.websocket_route``, which documents them."""

    value_type: Any
    receive_type: Any
    send_type: Any
    catch_disconnect: bool
    subprotocols: Sequence[str]
    origins: Sequence[str] | None
    subscribe: str | Sequence[str] | None
    gaps: bool
    on_invalid: OnInvalid
    name: str | None


@dataclass(frozen=True, eq=False, slots=True)
class HTTPEndpoint:
    """
    The endpoint of an HTTP route.

    Attributes:
        view: Bound to the pattern.
        function: The registered view.
        is_health_check: Whether ``App.health`` has registered it.
    """

    hooks: Hooks
    view: BoundView
    function: Callable[..., Any]
    is_health_check: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class MountEndpoint:
    """
    The endpoint of a mount.

    Attributes:
        app: The mounted app.
        checks_origin: Whether the origin rule is checked before ``app`` is called.
        gives_origins: Whether an ``App`` without ``origins`` inherits those of the outer app.
        states: The lifespan states of the current runs of ``app``.
    """

    app: ASGIApplication
    checks_origin: bool
    gives_origins: bool
    states: list[dict[str, Any]] = field(default_factory=list)

    def scope_below(self, scope: Scope, prefix: str) -> Scope:
        """The scope of the app. Its ``state`` has the lifespan state of the latest run."""
        below = scope_below(scope, prefix)
        if self.states and self.states[-1]:
            state = below.get("state")
            if state is None:
                state = below["state"] = {}
            state.update(self.states[-1])
        return below


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class WebSocketEndpoint:
    """
    The endpoint of a WebSocket route, with its registered view and the options of ``App.websocket_route``.

    Raises:
        ValueError: An option is invalid.
    """

    hooks: Hooks
    view: BoundView
    function: Callable[..., Any]
    receive_type: Any
    send_type: Any
    subprotocols: Sequence[str]
    origins: Sequence[str] | None
    topics: tuple[str, ...]
    catch_disconnect: bool
    gaps: bool
    on_invalid: OnInvalid

    def __post_init__(self) -> None:
        if self.on_invalid not in get_args(OnInvalid):
            raise ValueError(f'expected on_invalid="close" or "skip", got {self.on_invalid!r}')
        if isinstance(self.subprotocols, str):
            raise ValueError(f"expected a list: subprotocols=[{self.subprotocols!r}]")
        object.__setattr__(self, "origins", check_origins_setting(self.origins))

    def codecs(self, known: Codecs) -> tuple[MessageCodec, MessageCodec]:
        """
        The codecs of received and of sent messages.

        Raises:
            ValueError, FeatureUnavailable: The codec does not exist.
        """
        return known.get(self.receive_type), known.get(self.send_type)


def to_response(value: Any, source: Callable[..., Any]) -> Response:
    """
    The response for the value that a view, hook or error handler returned.

    ``str`` is HTML; ``dict``, ``list`` and dataclasses are JSON; ``bytes`` are ``application/octet-stream``; ``None``
    is 204; ``(body, status)``, ``(body, status, headers)`` and ``(body, headers)`` add these; a ``Response`` is kept.
    Anything else is JSON if the app has a ``json_default``.

    Args:
        value: The returned value.
        source: The function that returned it, for the text of an error.

    Raises:
        TypeError: Any other value.
        ValueError: The status or a header is invalid, or JSON has no form for the value.
    """
    if isinstance(value, Response):
        return value
    try:
        # The most common value.
        if type(value) is dict:
            return JSONResponse(value)
        # A value of a subclass of tuple, such as a row of a database, is a body.
        if type(value) is not tuple:
            return _to_response(value, 204 if value is None else 200, None)
        match value:
            case (body, int(status)) if not isinstance(status, bool):
                return _to_response(body, status, None)
            case (body, int(status), headers) if not isinstance(status, bool):
                return _to_response(body, status, headers)
            case (body, Mapping() | list() as headers):
                return _to_response(body, 204 if body is None else 200, headers)
        raise TypeError(
            "expected a tuple (body, status), (body, status, headers) or (body, headers), got "
            f"({', '.join(type(item).__name__ for item in value)})"
        )
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        # Keeps the traceback of an error in the app's json_default.
        cause = None if JSON_DEFAULT.get() is None else error
        raise kind(f"{describe(source)} returned a value that cannot be sent: {error}") from cause


def _to_response(body: Any, status: int, headers: Any) -> Response:
    if body is None:
        return Response(b"", status, headers)
    if isinstance(body, str):
        return Response(body, status, headers)
    if isinstance(body, BYTES_LIKE):
        response = Response(body, status, headers)
        # Response would set none for an empty body.
        response.headers.add_default("content-type", "application/octet-stream")
        return response
    if isinstance(body, _SENT_AS_JSON) or (is_dataclass(body) and not isinstance(body, type)):
        return JSONResponse(body, status, headers)
    if isinstance(body, Response):
        raise TypeError("a Response has its own status and headers: return it without others")
    hint = _instead_of(body)
    if hint is None and JSON_DEFAULT.get() is not None:
        return JSONResponse(body, status, headers)
    hint = hint or "; return it as dict or list, or convert it with App(json_default=…)"
    raise TypeError(
        f"expected str, bytes, dict, list, a dataclass, None, a tuple or a Response, got {type(body).__name__}{hint}"
    )


def _instead_of(body: Any) -> str | None:
    """Advice on what to return instead of ``body``; ``None`` if ``json_default`` may convert it."""
    if inspect.isawaitable(body):
        return "; write `await` before the call that made it"
    if isinstance(body, AsyncIterable | Iterator):
        return "; to send its values, return StreamingResponse(…) or EventStream(…) around it"
    if isinstance(body, int | float | type):
        return "; return it as str, or in a JSONResponse"
    return None
