"""What stands behind a route: a view's signature and topics bound to its pattern; and what it returns as a response."""

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial
from inspect import Parameter
from string import Formatter
from typing import Any, Literal, TypeAlias, TypedDict, get_args

import anyio.to_thread

from microws.codec import Codecs, MessageCodec
from microws.errors import RoutingError
from microws.handshake import check_origins_setting
from microws.hooks import Hooks
from microws.hub import check_topic
from microws.interfaces import BYTES_LIKE, ASGIApplication
from microws.responses import JSONResponse, Response

__all__ = [
    "BoundView",
    "HTTPEndpoint",
    "MountEndpoint",
    "OnInvalid",
    "WebSocketEndpoint",
    "WebSocketRouteOptions",
    "bind_topics",
    "bind_view",
    "to_response",
]

BoundView: TypeAlias = Callable[[Any, dict[str, Any]], Awaitable[Any]]
OnInvalid: TypeAlias = Literal["close", "skip"]

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_SENT_AS_JSON = (dict, list)
_NAMED = (*_POSITIONAL, Parameter.KEYWORD_ONLY)


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
    """What stands behind an HTTP route."""

    hooks: Hooks
    view: BoundView


@dataclass(frozen=True, eq=False, slots=True)
class MountEndpoint:
    """What stands behind a mount: the app, and whether the origin rule is checked before it is called."""

    app: ASGIApplication
    checks_origin: bool


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class WebSocketEndpoint:
    """
    What stands behind a WebSocket route; ``App.websocket_route`` documents it.

    Raises:
        ValueError: An option that cannot be.
    """

    hooks: Hooks
    view: BoundView
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
            raise ValueError(f'on_invalid is "close" or "skip", not {self.on_invalid!r}')
        if isinstance(self.subprotocols, str):
            raise ValueError(f"subprotocols takes a list: subprotocols=[{self.subprotocols!r}]")
        object.__setattr__(self, "origins", check_origins_setting(self.origins))

    def codecs(self, known: Codecs) -> tuple[MessageCodec, MessageCodec]:
        """
        For what is received and for what is sent.

        Raises:
            ValueError, FeatureUnavailable: There is no such codec.
        """
        return known.get(self.receive_type), known.get(self.send_type)


def bind_view(
    view: Callable[..., Any], pattern: str, parameters: tuple[str, ...], *, kind: Literal["http", "websocket"]
) -> BoundView:
    """
    A callable ``(connection, path_params)`` that calls ``view`` as its signature asks.

    The first parameter that is no route parameter gets the connection; an HTTP view may do without. Route parameters
    are passed by name. A plain ``def`` HTTP view runs in a worker thread. What counts is the signature of ``view``
    itself, not that of a function that it wraps.

    Args:
        view: The registered callable.
        pattern: For the error's text.
        parameters: The names of the pattern's parameters.
        kind: A WebSocket view has to be ``async def``.

    Raises:
        TypeError: ``view`` cannot be called, is a generator, or is a WebSocket view that is not ``async def``.
        RoutingError: The signature does not fit the pattern.
    """
    name = _name(view)
    if isinstance(view, type) or not callable(view):
        raise TypeError(f"a view is a function, or an object with __call__; {pattern!r} was given {view!r}")
    function = _function(view)
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(
            f"the view {name} of {pattern!r} has a `yield`: a view returns what it answers; for a stream, return "
            "StreamingResponse(…) or EventStream(…) around a generator"
        )
    is_async = inspect.iscoroutinefunction(function)
    if kind == "websocket" and not is_async:
        raise TypeError(f"the WebSocket view {name} of {pattern!r} must be `async def`: it waits for messages")
    connection = _connection_parameter(view, name, pattern, parameters, kind=kind)
    call = view if is_async else partial(_call_in_thread, view)
    if connection is None:
        return lambda _, params: call(**params)
    if connection == "":
        return (lambda value, params: call(value, **params)) if parameters else (lambda value, _: call(value))
    return lambda value, params: call(**{connection: value}, **params)


def _connection_parameter(
    view: Callable[..., Any], name: str, pattern: str, parameters: tuple[str, ...], *, kind: str
) -> str | None:
    """Which parameter gets the connection: its name, ``""`` for the first positional one, or ``None`` for no one."""
    signature = list(inspect.signature(view, follow_wrapped=False).parameters.values())
    takes_any_name = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in signature)
    known = {parameter.name: parameter for parameter in signature if parameter.kind in _NAMED}

    def refuse(problem: str) -> RoutingError:
        written = f"{name}{inspect.signature(view, follow_wrapped=False)}"
        return RoutingError(f"the view {written} does not fit the pattern {pattern!r}: {problem}")

    for parameter in parameters:
        if parameter in known and known[parameter].kind is Parameter.POSITIONAL_ONLY:
            raise refuse(f"{parameter!r} is positional-only, but route parameters are passed by name")
        if parameter not in known and not takes_any_name:
            raise refuse(f"it has no parameter {parameter!r}")
    others = [parameter for parameter in known.values() if parameter.name not in parameters]
    unfilled = [parameter.name for parameter in others[1:] if parameter.default is Parameter.empty]
    if unfilled:
        raise refuse(f"nothing fills its parameter {unfilled[0]!r}; the pattern could: {{{unfilled[0]}}}")
    if others:
        first = others[0]
        return "" if signature[0] is first and first.kind in _POSITIONAL else first.name
    if any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in signature):
        return ""
    if kind == "websocket":
        raise refuse("it has no parameter for the WebSocket; write `ws` first")
    return None


def bind_topics(subscribe: str | Sequence[str] | None, pattern: str, parameters: tuple[str, ...]) -> tuple[str, ...]:
    """
    The topics of a route, which ``str.format`` fills from its parameters.

    Raises:
        TypeError, ValueError: A topic that cannot be, whatever the parameters.
        RoutingError: A topic needs a parameter that the pattern does not have.
    """
    if subscribe is None:
        return ()
    if not isinstance(subscribe, Iterable):
        raise _no_topic(subscribe)
    topics = (subscribe,) if isinstance(subscribe, str) else tuple(subscribe)
    for topic in topics:
        if not isinstance(topic, str):
            raise _no_topic(topic)
        try:
            fields = [field[1:] for field in Formatter().parse(topic) if field[1] is not None]
        except ValueError as error:
            raise ValueError(f"subscribe={topic!r}: {error}; a brace of the topic's own is written twice") from None
        for name, spec, conversion in fields:
            if name not in parameters:
                raise RoutingError(f"subscribe={topic!r} needs {name!r}, which the pattern {pattern!r} does not have")
            if spec or conversion:
                raise RoutingError(f"subscribe={topic!r}: a topic has its parameters' names alone; write {{{name}}}")
        check_topic(topic.format(**dict.fromkeys(parameters, "x")))
    return topics


def _no_topic(value: object) -> TypeError:
    return TypeError(f'subscribe takes topics such as "chat:{{room}}", not {value!r}')


async def _call_in_thread(view: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    # In a tuple, because trio refuses a coroutine from a thread.
    (result,) = await anyio.to_thread.run_sync(lambda: (view(*args, **kwargs),))
    # A decorator's plain wrapper around an `async def` view.
    return await result if inspect.isawaitable(result) else result


def to_response(value: Any) -> Response:
    """
    What a view returned, as a response.

    ``str`` is HTML; ``dict``, ``list`` and dataclasses are JSON; ``bytes`` are sent as they are; ``None`` is 204;
    ``(body, status)``, ``(body, status, headers)`` and ``(body, headers)`` say more; a ``Response`` is itself.

    Raises:
        TypeError: Anything else.
        ValueError: A bad status or header, or a value that JSON cannot carry.
    """
    if isinstance(value, Response):
        return value
    if not isinstance(value, tuple):
        return _to_response(value, 204 if value is None else 200, None)
    match value:
        case (body, int(status)) if not isinstance(status, bool):
            return _to_response(body, status, None)
        case (body, int(status), headers) if not isinstance(status, bool):
            return _to_response(body, status, headers)
        case (body, Mapping() | list() as headers):
            return _to_response(body, 204 if body is None else 200, headers)
    raise TypeError(
        "a tuple that a view returns is (body, status), (body, status, headers) or (body, headers), not "
        f"({', '.join(type(item).__name__ for item in value)})"
    )


def _to_response(body: Any, status: int, headers: Any) -> Response:
    if body is None:
        return Response(b"", status, headers)
    if isinstance(body, str):
        return Response(body, status, headers)
    if isinstance(body, BYTES_LIKE):
        response = Response(body, status, headers)
        # Also where there are none: an empty file has a type.
        response.headers.add_default("content-type", "application/octet-stream")
        return response
    if isinstance(body, _SENT_AS_JSON) or (is_dataclass(body) and not isinstance(body, type)):
        return JSONResponse(body, status, headers)
    if isinstance(body, Response):
        raise TypeError("a Response has its own status and headers: return it alone")
    raise TypeError(
        "a view returns str, bytes, dict, list, a dataclass, None, a tuple or a Response, "
        f"not {type(body).__name__}{_instead_of(body)}"
    )


def _instead_of(body: Any) -> str:
    if inspect.isawaitable(body):
        return "; write `await` before the call that made it"
    if isinstance(body, AsyncIterable | Iterator):
        return "; to send what it gives, return StreamingResponse(…) or EventStream(…) around it"
    return ""


def _function(view: Any) -> Any:
    """What runs when ``view`` is called, behind ``functools.partial`` and ``__call__``."""
    while isinstance(view, partial):
        view = view.func
    return view if inspect.isroutine(view) else getattr(view, "__call__", view)  # noqa: B004


def _name(view: Any) -> str:
    return getattr(view, "__name__", None) or repr(view)
