"""The annotations of a view: what classes they name, and the types of messages and bodies in them."""

from collections.abc import Iterable, Iterator, Sequence
from inspect import Parameter, formatannotation
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Final, Literal, NewType, Union, get_args, get_origin, get_type_hints

from microws.callables import function_of, signature_of

__all__ = ["allows", "arms_of", "statuses_of_return", "type_of_return", "types_in"]

# Stands for a missing annotation, and for one that Python cannot evaluate.
_UNKNOWN: Final[tuple[type[Any] | None, ...]] = (None,)


def _namespace_of(layer: Any) -> dict[str, Any]:
    """The names that the annotations of a function may use: of its module, and those around it that it uses itself."""
    function = function_of(layer)
    names: dict[str, Any] = dict(getattr(function, "__globals__", {}))
    code = getattr(function, "__code__", None)
    for name, cell in zip(getattr(code, "co_freevars", ()), getattr(function, "__closure__", None) or (), strict=False):
        try:
            names[name] = cell.cell_contents
        except ValueError:
            pass  # it has no value yet
    return names


def _evaluate(annotation: Any, namespace: dict[str, Any], *, include_extras: bool = False) -> Any:
    holder = SimpleNamespace(__annotations__={"it": annotation})
    # Evaluates the strings of `from __future__ import annotations`, and removes Annotated.
    return get_type_hints(holder, namespace, include_extras=include_extras)["it"]


def arms_of(parameter: Parameter, layer: Any) -> tuple[type[Any] | None, ...]:
    """The classes of an annotation of the function ``layer``, several of a union; ``None`` for an unknown one."""
    if parameter.annotation is Parameter.empty:
        return _UNKNOWN
    try:
        return _flatten(_evaluate(parameter.annotation, _namespace_of(layer)))
    except Exception:
        # For example, the name is imported for type checkers only.
        return _UNKNOWN


def _flatten(annotation: Any) -> tuple[type[Any] | None, ...]:
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return tuple(arm for part in get_args(annotation) for arm in _flatten(part))
    if origin is Literal:
        return tuple(type(value) for value in get_args(annotation))
    if isinstance(annotation, NewType):
        return _flatten(annotation.__supertype__)
    if hasattr(annotation, "__value__"):
        # Python 3.12's `type Name = …`.
        return _flatten(annotation.__value__)
    named = origin or annotation
    is_class = isinstance(named, type) and named is not Any and not getattr(named, "_is_protocol", False)
    return (named if is_class else None,)


def allows(arms: Iterable[type[Any] | None], given: type[Any]) -> bool:
    """Whether a value of the class ``given`` fits an annotation."""
    # PEP 484, "The numeric tower": where float is written, an int may be given.
    wider = {int: (float, complex), float: (complex,)}.get(given, ())
    return any(arm is None or arm in wider or issubclass(given, arm) for arm in arms)


def types_in(parameter: Parameter, generic: type[Any], layer: Any) -> tuple[Any, ...]:
    """
    The types in the brackets of an annotation: ``(Say, Said)`` of ``WebSocket[Say, Said]``.

    Args:
        generic: The class before the brackets.
        layer: The function of the parameter.

    Returns:
        Empty without brackets.

    Raises:
        TypeError: The annotation cannot be evaluated; names the name that does not exist.
    """
    try:
        annotation = _evaluate(parameter.annotation, _namespace_of(layer), include_extras=True)
    except Exception as error:
        annotation = parameter.annotation
        written = annotation if isinstance(annotation, str) else formatannotation(annotation)
        if f"{generic.__name__}[" not in written:
            return ()  # for example, the name is imported for type checkers only
        problem = f"cannot be evaluated: {error}"
        if isinstance(error, NameError):
            problem = (
                f"names {error.name!r}, which does not exist at runtime in the module of the view: define or import it "
                "above the view, and not under `if TYPE_CHECKING`"
            )
        raise TypeError(f"{parameter.name}: {written} {problem}") from None
    # Python 3.12's `type Name = …`.
    annotation = getattr(annotation, "__value__", annotation)
    arms = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((get_args(arm) for arm in arms if get_origin(arm) is generic), ())


def type_of_return(layers: Sequence[Any], response: type[Any]) -> Any:
    """
    The type of the body that a view returns: ``Poll`` of ``-> Poll | None``, ``-> tuple[Poll, int]`` and ``-> Poll |
    RedirectResponse``.

    Args:
        layers: The view, and the functions that it wraps. The first one with an annotation counts.
        response: The class of responses, which have types of their own.

    Returns:
        ``None``: it has none, or it is unknown.
    """
    bodies = [body for body in _bodies(_evaluate_return(layers)) if body is not NoneType]
    bodies = [body for body in bodies if not (isinstance(body, type) and issubclass(body, response))]
    if not bodies or Any in bodies or object in bodies:
        return None
    return Union[tuple(bodies)]  # noqa: UP007 - of a tuple


def statuses_of_return(layers: Sequence[Any], response: type[Any]) -> tuple[int, ...]:
    """
    The statuses of what a view returns: 200 for ``-> Poll``, and 204 besides for ``-> Poll | None``.

    Args:
        layers, response: As of ``type_of_return``.

    Returns:
        Empty: it may return a status of its own, or its annotation is unknown.
    """
    annotation = _evaluate_return(layers)
    arms = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for arm in arms:
        kind = get_origin(arm) or arm
        if not isinstance(kind, type) or kind in (Any, object) or issubclass(kind, (tuple, response)):
            return ()
    return tuple(sorted({204 if arm is NoneType else 200 for arm in arms}))


def _evaluate_return(layers: Sequence[Any]) -> Any:
    """The annotation of what a view returns; ``Any``: it has none, or cannot be evaluated."""
    written = next((each for layer in layers if (each := _return_of(layer)) is not Parameter.empty), Any)
    namespace: dict[str, Any] = {}
    for layer in layers:
        namespace |= _namespace_of(layer)
    try:
        return _evaluate(written, namespace, include_extras=True)
    except Exception:
        return Any  # for example, the name is imported for type checkers only


def _return_of(layer: Any) -> Any:
    try:
        return signature_of(layer).return_annotation
    except ValueError:
        return Parameter.empty  # some functions that are written in C have no signature


def _bodies(annotation: Any) -> Iterator[Any]:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        for part in parts:
            yield from _bodies(part)
    elif origin is tuple:
        # With a status, or headers, or both.
        yield from _bodies(parts[0]) if len(parts) in (2, 3) and parts[1] is not Ellipsis else (Any,)
    elif annotation is tuple:
        yield Any
    else:
        yield annotation
