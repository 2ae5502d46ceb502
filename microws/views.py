"""A view's signature bound to its pattern, and what it returns as a response."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import is_dataclass
from functools import partial
from inspect import Parameter
from typing import Any, Literal, TypeAlias

import anyio.to_thread

from microws.errors import RoutingError
from microws.responses import JSONResponse, Response

__all__ = ["BoundView", "bind_view", "to_response"]

BoundView: TypeAlias = Callable[[Any, dict[str, Any]], Awaitable[Any]]

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (*_POSITIONAL, Parameter.KEYWORD_ONLY)


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
        return lambda value, params: call(value, **params)
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
    if isinstance(body, str | bytes | bytearray | memoryview):
        return Response(body, status, headers)
    if isinstance(body, dict | list) or (is_dataclass(body) and not isinstance(body, type)):
        return JSONResponse(body, status, headers)
    if isinstance(body, Response):
        raise TypeError("a Response has its own status and headers: return it alone")
    raise TypeError(
        "a view returns str, bytes, dict, list, a dataclass, None, a tuple or a Response, "
        f"not {type(body).__name__}; to send an iterator, return StreamingResponse(…) around it"
    )


def _function(view: Any) -> Any:
    """What runs when ``view`` is called, behind ``functools.partial`` and ``__call__``."""
    while isinstance(view, partial):
        view = view.func
    return view if inspect.isroutine(view) else getattr(view, "__call__", view)  # noqa: B004


def _name(view: Any) -> str:
    return getattr(view, "__name__", None) or repr(view)
