"""What stands behind a route: its view, bound to the pattern, its options, and the response for what it returns."""

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, is_dataclass
from functools import partial
from inspect import Parameter
from string import Formatter
from types import NoneType
from typing import Any, Literal, TypeAlias, TypedDict, get_args
from uuid import UUID

from microws.annotations import allows, arms_of, type_of_return, types_in
from microws.callables import LRU_CACHE, describe, function_of, layers_of, name_of, signature_of
from microws.codec import FRAME_TYPES, JSON_DEFAULT, Codecs, MessageCodec, json_type, lists_in, loads_json, name_of_type
from microws.errors import FeatureUnavailable, HTTPException, InvalidMessage, RoutingError
from microws.handshake import check_origins_setting
from microws.hooks import Hooks, check_hook, in_thread
from microws.hub import check_topic
from microws.interfaces import BYTES_LIKE, ASGIApplication, BoundView
from microws.rates import Rate, RateExcess
from microws.requests import Request
from microws.responses import JSONResponse, Response
from microws.routing import Kind, Pattern
from microws.settings import check_seconds
from microws.websocket import WebSocket

__all__ = [
    "HTTPEndpoint",
    "MountEndpoint",
    "OnInvalid",
    "WebSocketEndpoint",
    "WebSocketRouteOptions",
    "bind_view",
    "to_response",
]

OnInvalid: TypeAlias = Literal["close", "skip", "error"]
_Call: TypeAlias = Callable[[Any, dict[str, Any]], Any]

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (*_POSITIONAL, Parameter.KEYWORD_ONLY)
_CONNECTIONS: dict[str, type[Any]] = {"http": Request, "websocket": WebSocket}
# Types of values in a query or a path. A parameter with such an annotation never gets the request or WebSocket.
_PLAIN = frozenset({str, bytes, int, float, complex, bool, UUID, NoneType})
# For isinstance. A tuple, because `dict | list` would be created again by each call.
_SENT_AS_JSON = (dict, list)


# Endpoints


class WebSocketRouteOptions(TypedDict, total=False):
    """The options of ``App.websocket_route``, which documents them."""

    value_type: Any
    receive_type: Any
    send_type: Any
    catch_disconnect: bool
    subprotocols: Sequence[str]
    origins: Sequence[str] | None
    subscribe: str | Sequence[str] | None
    since: Literal["start"] | None
    gaps: bool
    on_invalid: OnInvalid
    login: Callable[[WebSocket, Any], Any] | None
    login_timeout: float
    rate: str | None
    rate_excess: RateExcess
    name: str | None


# Without the methods that nothing calls, because creating them takes as long as importing a module.
@dataclass(slots=True, eq=False, repr=False)
class HTTPEndpoint:
    """
    The endpoint of an HTTP route.

    Attributes:
        function: The registered view.
        view: The same, bound to the pattern.
        is_health_check: Whether ``App.health`` has registered it.
        query: As in ``App.add_route``; ``query_type`` is the same, or the second type of ``Request[Vote, Filter]``.
        body_type: The type of the request's body: ``Vote`` of ``Request[Vote]``. ``None``: any.
        is_typed: Whether a request must be given types by ``prepare``.
        return_type: The type of what ``view`` returns: ``Poll`` of ``-> tuple[Poll, int]``; without ``None`` and
            responses. ``str`` is HTML, ``bytes`` are bytes, and all others are JSON. ``None``: unknown.
    """

    hooks: Hooks
    function: Callable[..., Any]
    pattern: InitVar[Pattern]
    is_health_check: bool = False
    query: InitVar[Any] = None
    view: BoundView = field(init=False)
    body_type: Any = field(init=False, default=None)
    query_type: Any = field(init=False, default=None)
    return_type: Any = field(init=False, default=None)
    is_typed: bool = field(init=False)
    _lists: frozenset[str] = field(init=False, default=frozenset())

    def __post_init__(self, pattern: Pattern, query: Any) -> None:
        self.view = bind_view(self.function, pattern, kind="http")
        types = [None if each is Any else each for each in _types_of(self.function, pattern, "http")]
        self.body_type, annotated = [*types, None, None][:2]
        if None not in (query, annotated) and query != annotated:
            raise _contradiction(self.function, pattern, "query", query, annotated)
        self.query_type = annotated if query is None else query
        self.is_typed = self.body_type is not None or self.query_type is not None
        self.return_type = type_of_return(layers_of(self.function), Response)
        try:
            if self.body_type is not None:
                json_type(self.body_type)
            if self.query_type is not None:
                self._lists = lists_in(json_type(self.query_type))
        except TypeError as error:
            raise TypeError(f"the view {describe(self.function)} of {pattern.text!r}: {error}") from None

    def prepare(self, request: Request) -> None:
        """
        Give a request the types of the route.

        Raises:
            HTTPException: 400: the query is not of its type; says where.
        """
        request.body_type = self.body_type
        if self.query_type is not None:
            query = request.query
            values = {name: query.getlist(name) if name in self._lists else query[name] for name in query}
            try:
                request.typed_query = json_type(self.query_type).convert(values, is_text=True)
            except InvalidMessage as error:
                raise HTTPException(400, f"invalid query: {error}") from None

    def check_returned(self, value: Any, response: Response) -> None:
        """
        Check what the view returned, and ``response`` was made of.

        Raises:
            TypeError: It is not of ``return_type``; says where.
        """
        body = value[0] if type(value) is tuple else value
        if body is None or isinstance(body, Response):
            return
        try:
            rules = json_type(self.return_type)
        except (TypeError, FeatureUnavailable):
            return  # of a class that only the app's json_default knows, or without msgspec
        plain = (
            loads_json(response.body)
            if isinstance(response, JSONResponse)
            else str(body)
            if isinstance(body, str)
            else bytes(body)
        )
        try:
            rules.check(body, plain)
        except TypeError as error:
            raise TypeError(
                f"{describe(self.function)} returned a value that is not of its annotation: {error}"
            ) from None


@dataclass(slots=True, eq=False, repr=False)
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


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class WebSocketEndpoint:
    """
    The endpoint of a WebSocket route, with its registered view and the options of ``App.websocket_route``.

    Attributes:
        receive_type, send_type: The Python type of the messages, or the name of the codec of untyped ones.
        receive_encoding, send_encoding: The name of the codec: of messages with a type ``"json"`` or ``"msgpack"``.

    Raises:
        TypeError, ValueError, RoutingError: The view or an option is invalid, or does not fit the pattern.
    """

    hooks: Hooks
    function: Callable[..., Any]
    pattern: InitVar[Pattern]
    value_type: InitVar[Any] = None
    receive_type: Any = None
    send_type: Any = None
    subprotocols: Sequence[str] = ()
    origins: Sequence[str] | None = None
    subscribe: InitVar[str | Sequence[str] | None] = None
    since: str | None = None
    catch_disconnect: bool = True
    gaps: bool = False
    on_invalid: OnInvalid = "close"
    login: Callable[[WebSocket, Any], Any] | None = None
    login_timeout: float = 5
    rate: Rate | None = None
    view: BoundView = field(init=False)
    topics: tuple[str, ...] = field(init=False)
    receive_encoding: str = field(init=False)
    send_encoding: str = field(init=False)

    def __post_init__(self, pattern: Pattern, value_type: Any, subscribe: str | Sequence[str] | None) -> None:
        self.view = bind_view(self.function, pattern, kind="websocket")
        annotated = _types_of(self.function, pattern, "websocket")
        for index, name in enumerate(("receive", "send")):
            given = getattr(self, f"{name}_type")
            given = value_type if given is None else given
            try:
                # Without the second type, a view sends what it receives.
                chosen, encoding = _choose_type(given, annotated[min(index, len(annotated) - 1)] if annotated else None)
            except TypeError:
                raise _contradiction(self.function, pattern, f"{name}_type", given, annotated) from None
            setattr(self, f"{name}_type", chosen)
            setattr(self, f"{name}_encoding", encoding)
        self.topics = bind_topics(subscribe, pattern)
        if self.since not in (None, "start"):
            raise ValueError(
                f'expected since=None or "start", got {self.since!r}; a client names a position by ?since='
            )
        if self.since is not None and not self.topics:
            raise ValueError('expected subscribe= too, got since="start" alone')
        if self.on_invalid not in get_args(OnInvalid):
            raise ValueError(f'expected on_invalid="close", "skip" or "error", got {self.on_invalid!r}')
        if self.login is not None:
            check_hook(self.login, "websocket_route(login=…)", "ws", "message")
            self.login = in_thread(self.login)
        check_seconds("login_timeout", self.login_timeout)
        if isinstance(self.subprotocols, str):
            raise ValueError(f"expected a list: subprotocols=[{self.subprotocols!r}]")
        self.origins = check_origins_setting(self.origins)

    def codecs(self, known: Codecs) -> tuple[MessageCodec, MessageCodec]:
        """
        The codecs of received and of sent messages.

        Raises:
            TypeError: JSON cannot carry the type.
            ValueError: The codec does not exist.
            FeatureUnavailable: The type, or ``"msgpack"``, needs msgspec.
        """
        return (
            known.get(self.receive_type, encoding=self.receive_encoding),
            known.get(self.send_type, encoding=self.send_encoding),
        )


# The view


def bind_view(view: Callable[..., Any], pattern: Pattern, *, kind: Kind) -> BoundView:
    """
    Return a callable ``(connection, path_params)`` that calls ``view`` according to its signature.

    The first parameter that is not a route parameter gets the connection: the request or WebSocket. An HTTP view need
    not have one. Route parameters are passed by name. If the signature is a decorator's ``(*args, **kwargs)``, the
    signature of the wrapped function (``__wrapped__``) decides whether the connection is passed, as the first
    positional argument.

    A plain ``def`` HTTP view runs in a worker thread. A plain function that wraps an ``async def`` view only returns
    its coroutine, and is called in the event loop's thread.

    Args:
        view: The registered callable.
        pattern: The pattern of the route.
        kind: A WebSocket view must be ``async def``, or wrap one.

    Raises:
        TypeError: ``view`` cannot be called, is a generator, is a WebSocket view that is not ``async def``, or is an
            ``async def`` view in ``functools.lru_cache``.
        RoutingError: The signature, or an annotation in it, does not fit the pattern.
    """
    name = name_of(view)
    if isinstance(view, type) or not callable(view):
        raise TypeError(f"expected a function or an object with __call__ as the view of {pattern.text!r}, got {view!r}")
    layers = layers_of(view)
    functions = [function_of(layer) for layer in layers]
    if inspect.isasyncgenfunction(functions[0]) or inspect.isgeneratorfunction(functions[0]):
        raise TypeError(
            f"the view {name} of {pattern.text!r} has a `yield`, but a view returns its response; for a stream, return "
            "StreamingResponse(…) or EventStream(…) around a generator"
        )
    is_async = [inspect.iscoroutinefunction(function) for function in functions]
    if kind == "websocket" and not any(is_async):
        raise TypeError(f"the WebSocket view {name} of {pattern.text!r} must be `async def`: it waits for messages")
    if any(is_async) and any(isinstance(function, LRU_CACHE) for function in functions[: is_async.index(True)]):
        raise TypeError(
            f"the view {name} of {pattern.text!r} is an `async def` in functools.lru_cache, which would return the "
            "same coroutine twice: cache the value inside the view"
        )
    call = _bind(view, _connection_parameter(layers, name, pattern, kind), has_parameters=bool(pattern.parameters))
    if is_async[0]:
        return call
    return partial(_call_on_loop, call) if any(is_async) else partial(_call_in_thread, call)


def _bind(view: Callable[..., Any], connection: str | None, *, has_parameters: bool) -> _Call:
    if connection is None:
        return lambda _, params: view(**params)
    if connection == "":
        return (lambda value, params: view(value, **params)) if has_parameters else (lambda value, _: view(value))
    return lambda value, params: view(**{connection: value}, **params)


def _call_on_loop(call: _Call, connection: Any, params: dict[str, Any]) -> Awaitable[Any]:
    # Returns the coroutine of the wrapped view itself, without another one around it; or the wrapper's own result.
    result = call(connection, params)
    return result if inspect.isawaitable(result) else _give(result)


async def _give(value: Any) -> Any:
    return value


async def _call_in_thread(call: _Call, connection: Any, params: dict[str, Any]) -> Any:
    return await connection.app.threads.run("views", call, connection, params)


def _parameters(view: Any) -> list[Parameter]:
    try:
        return list(signature_of(view).parameters.values())
    except ValueError:
        # Some functions that are written in C have no signature; lru_cache passes all arguments on.
        return [Parameter("args", Parameter.VAR_POSITIONAL), Parameter("kwargs", Parameter.VAR_KEYWORD)]


class _Signature:
    """The parameters of one layer: of a decorator's function, or of the function that it wraps."""

    def __init__(self, layer: Any, pattern: Pattern, *, drops_self: bool) -> None:
        parameters = _parameters(layer)
        if drops_self and inspect.isfunction(layer) and parameters and parameters[0].name == "self":
            # A method wrapped by a bound object, such as one of async_lru, which passes `self`.
            del parameters[0]
        kinds = {parameter.kind for parameter in parameters}
        self.takes_any_position = Parameter.VAR_POSITIONAL in kinds
        self.takes_any_name = Parameter.VAR_KEYWORD in kinds
        self.named = {parameter.name: parameter for parameter in parameters if parameter.kind in _NAMED}
        # A keyword-only parameter with a default next to *args is an option of the decorator.
        self.others = [
            parameter
            for parameter in self.named.values()
            if parameter.name not in pattern.parameters
            and not (
                self.takes_any_position
                and parameter.kind is Parameter.KEYWORD_ONLY
                and parameter.default is not Parameter.empty
            )
        ]
        self.begins_with_connection = not parameters or parameters[0].name not in pattern.parameters
        self.layer = layer


def _connection_parameter(layers: list[Any], name: str, pattern: Pattern, kind: Kind) -> str | None:
    """The parameter that gets the connection: its name, ``""`` for the first positional one, or ``None``."""

    def refuse(problem: str) -> RoutingError:
        try:
            written = f"{name}{signature_of(layers[0])}"
        except ValueError:
            written = name
        return RoutingError(f"the view {written} does not fit the pattern {pattern.text!r}: {problem}")

    outer = _Signature(layers[0], pattern, drops_self=False)
    for parameter in pattern.parameters:
        if parameter in outer.named and outer.named[parameter].kind is Parameter.POSITIONAL_ONLY:
            raise refuse(f"{parameter!r} is positional-only, but route parameters are passed by name")
        if parameter not in outer.named and not outer.takes_any_name:
            raise refuse(f"it has no parameter {parameter!r}")
    unfilled = [parameter.name for parameter in outer.others[1:] if parameter.default is Parameter.empty]
    if unfilled and outer.others[0].name != "self":
        raise refuse(
            f"its parameter {unfilled[0]!r} gets no value; add {{{unfilled[0]}}} to the pattern; "
            f"a value of the query is {outer.others[0].name}.query.get({unfilled[0]!r})"
        )
    inner, outside = outer, []
    for depth, layer in enumerate(layers):
        if depth:
            outside.append(inner)
            inner = _Signature(layer, pattern, drops_self=not inspect.isfunction(layers[0]))
        # functools.wraps copies the annotations of the wrapped function to the decorator's.
        is_innermost = depth == len(layers) - 1
        if is_innermost and (problem := _wrong_annotation(inner, pattern, kind, is_wrapped=depth > 0)):
            raise refuse(problem)
        if inner.others or not (inner.takes_any_position or inner.takes_any_name):
            break
    if inner.others:
        first = inner.others[0]
        if first.name == "self":
            raise refuse("it is a method without an object; register a bound method, as in add_route(Views().view, …)")
        goes_first = inner.begins_with_connection and first.kind in _POSITIONAL
        if goes_first and all(each.takes_any_position and each.begins_with_connection for each in outside):
            return ""
        if first.kind is not Parameter.POSITIONAL_ONLY and all(each.takes_any_name for each in outside):
            return first.name
        raise refuse(f"it does not pass the connection on to {first.name!r} of the wrapped function; add *args")
    if all(each.takes_any_position for each in (*outside, inner)):
        return ""
    if kind == "websocket":
        raise refuse("it has no parameter for the WebSocket; write `ws` first")
    return None


# Annotations


def _types_of(view: Any, pattern: Pattern, kind: Kind) -> tuple[Any, ...]:
    """The types of ``WebSocket[Say, Said]`` or ``Request[Vote]``, which a view or the function that it wraps takes."""
    for layer in layers_of(view):
        others = _Signature(layer, pattern, drops_self=True).others
        if others:
            try:
                types = types_in(others[0], _CONNECTIONS[kind], layer)
            except TypeError as error:
                raise RoutingError(f"the view {describe(view)} of {pattern.text!r}: {error}") from None
            if len(types) > 2:
                raise RoutingError(
                    f"the view {describe(view)} of {pattern.text!r}: expected at most two types in "
                    f"{_CONNECTIONS[kind].__name__}[…], got {len(types)}; write a union of the messages: A | B"
                )
            return types
    return ()


def _choose_type(given: Any, annotated: Any) -> tuple[Any, str]:
    """
    The type of messages and the name of their codec, by an option such as ``value_type`` and by the annotation.

    Raises:
        TypeError: They contradict each other.
    """
    frames = FRAME_TYPES.get(annotated)
    if annotated is None or annotated is Any:
        given = ("text" if annotated is None else "json") if given is None else given
    elif given in (None, frames):
        given = frames or annotated
    elif given in ("json", "msgpack") and frames is None:
        return annotated, given
    elif given in ("json", "msgpack", *FRAME_TYPES.values()) or (not isinstance(given, str) and given != annotated):
        raise TypeError
    # The type of the values of a codec that the app has added is for type checkers only.
    given = FRAME_TYPES.get(given, given)
    return given, given if isinstance(given, str) else "json"


def _contradiction(view: Any, pattern: Pattern, name: str, given: Any, annotated: Any) -> RoutingError:
    types = annotated if isinstance(annotated, tuple) else (annotated,)
    return RoutingError(
        f"the view {describe(view)} of {pattern.text!r}: {name}={given if isinstance(given, type) else repr(given)} "
        f"contradicts its annotation [{', '.join(map(name_of_type, types))}]; leave one of them out"
    )


def _wrong_annotation(signature: _Signature, pattern: Pattern, kind: Kind, *, is_wrapped: bool) -> str | None:
    """
    Why an annotation of the connection or of a route parameter, or the connection's default, is wrong; or ``None``.

    Of a wrapped function, only an annotation or default of a type such as ``str`` or ``int`` is checked, because the
    decorator may pass another object instead of the request or parameter.
    """
    for name, converter in pattern.converters.items():
        if name not in signature.named or converter.type is None:
            continue
        arms = arms_of(signature.named[name], signature.layer)
        if not allows(arms, converter.type) and (not is_wrapped or _PLAIN.issuperset(arms)):
            written = inspect.formatannotation(signature.named[name].annotation)
            return (
                f"its parameter {name!r} is annotated as {written}, but {{{name}:{converter.name}}} returns "
                f"{converter.type.__name__}: {_converter_for(name, arms)}"
            )
    if not signature.others:
        return None
    first = signature.others[0]
    arms, connection = arms_of(first, signature.layer), _CONNECTIONS[kind]
    taken = "request" if kind == "http" else "ws"
    fits = [arm for arm in arms if arm is None or issubclass(connection, arm) or issubclass(arm, connection)]
    if fits:
        has_default = first.default is not Parameter.empty and first.default is not None
        is_named = any(arm not in (None, object) for arm in fits)
        if not has_default or is_named or (is_wrapped and type(first.default) not in _PLAIN):
            return None
        return (
            f"its parameter {first.name!r} has a default, but the first parameter that is not in the pattern gets the "
            f"{connection.__name__}; take `{taken}` before it, or read {taken}.query.get({first.name!r})"
        )
    if is_wrapped and not _PLAIN.issuperset(arms):
        return None
    if _PLAIN.issuperset(arms):
        advice = f"take `{taken}` first and read {taken}.query.get({first.name!r})"
    elif any(arm is not None and arm.__name__ in ("Request", "WebSocket") for arm in arms):
        advice = f"write `from microws import {connection.__name__}` and annotate it as {connection.__name__}"
    else:
        body = ", the body is await request.json()" if kind == "http" else ""
        advice = f"take `{taken}` first; the query is {taken}.query{body}"
    return (
        f"its parameter {first.name!r} is annotated as {inspect.formatannotation(first.annotation)}, but the first "
        f"parameter that is not in the pattern gets the {connection.__name__}; {advice}"
    )


def _converter_for(name: str, arms: tuple[type[Any] | None, ...]) -> str:
    for converter, given in {"int": int, "float": float, "uuid": UUID, "str": str}.items():
        if given in arms:
            return f"write {{{name}:{converter}}} in the pattern, or change the annotation"
    return "change the annotation, or add a converter with app.add_converter"


# Topics


def bind_topics(subscribe: str | Sequence[str] | None, pattern: Pattern) -> tuple[str, ...]:
    """
    Check the topics of a route, which ``str.format`` fills with its parameters.

    Raises:
        TypeError, ValueError: A topic is invalid with any parameters.
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
            raise ValueError(f"subscribe={topic!r}: {error}; write a brace of the topic twice") from None
        for name, spec, conversion in fields:
            if name not in pattern.parameters:
                raise RoutingError(
                    f"subscribe={topic!r} needs {name!r}, which the pattern {pattern.text!r} does not have"
                )
            if spec or conversion:
                raise RoutingError(f"subscribe={topic!r}: expected only the parameter's name; write {{{name}}}")
        check_topic(topic.format(**dict.fromkeys(pattern.parameters, "x")))
    return topics


def _no_topic(value: object) -> TypeError:
    return TypeError(f'expected topics such as "chat:{{room}}" for subscribe, got {value!r}')


# The response


def to_response(value: Any, source: Callable[..., Any], return_type: Any = None) -> Response:
    """
    The response for the value that a view, hook or error handler returned.

    ``str`` is HTML; ``dict``, ``list``, dataclasses, Structs and pydantic models are JSON; ``bytes`` are
    ``application/octet-stream``; ``None`` is 204; ``(body, status)``, ``(body, status, headers)`` and ``(body,
    headers)`` add these; a ``Response`` is kept. Anything else is JSON if the app has a ``json_default``.

    Args:
        value: The returned value.
        source: The function that returned it, for the text of an error.
        return_type: Says how to encode what JSON does not support, such as a ``Decimal`` in a dataclass.

    Raises:
        TypeError: Any other value.
        ValueError: The status or a header is invalid, or JSON cannot represent the value.
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
        plain = None if return_type is None else _plain_of(value, return_type)
        if plain is not None:
            return to_response(plain, source)
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
    if _is_json(body):
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


def _is_json(body: Any) -> bool:
    """Whether a body is JSON: a dict, a list, a dataclass, a Struct of msgspec or a model of pydantic."""
    if isinstance(body, _SENT_AS_JSON):
        return True
    kind = type(body)
    return is_dataclass(kind) or hasattr(kind, "__struct_fields__") or hasattr(kind, "__pydantic_serializer__")


def _plain_of(value: Any, return_type: Any) -> Any:
    """A value that a view returned, with its body as the type says; ``None`` if that says nothing of it."""
    body, *rest = value if type(value) is tuple else (value,)
    if not _is_json(body):
        return None
    try:
        plain = json_type(return_type).plain(body, default=JSON_DEFAULT.get())
    except (TypeError, ValueError, FeatureUnavailable):
        return None
    return (plain, *rest) if rest else plain


def _instead_of(body: Any) -> str | None:
    """Advice on what to return instead of ``body``; ``None`` if ``json_default`` may convert it."""
    if inspect.isawaitable(body):
        return "; write `await` before the call that made it"
    if isinstance(body, AsyncIterable | Iterator):
        return "; to send its values, return StreamingResponse(…) or EventStream(…) around it"
    if isinstance(body, int | float | type):
        return "; return it as str, or in a JSONResponse"
    return None
