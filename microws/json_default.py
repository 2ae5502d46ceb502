"""``App(json_default=…)``: values that JSON has no form for, made into values that it has one for."""

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, TypeAlias

import orjson

__all__ = ["JSON_DEFAULT", "JSONDefault", "check_json_default", "dump_converted"]

JSONDefault: TypeAlias = Callable[[Any], Any]

# Set while an app that has one serves a request or WebSocket, so that responses and events that its views make know it.
JSON_DEFAULT: ContextVar[JSONDefault | None] = ContextVar("JSON_DEFAULT", default=None)

_PLAIN = frozenset({str, int, float, bool, type(None)})
# As deep as JSON may be nested; so a value that holds itself has an end too.
_MAX_DEPTH = 1024
# For one value: what `default` returns may need it again.
_MAX_CALLS = 20


def check_json_default(default: Any) -> None:
    """Raise ``TypeError`` where ``default`` is no plain function."""
    if not callable(default) or inspect.iscoroutinefunction(default):
        raise TypeError(f"json_default is a plain function of one value, not {default!r}")


def dump_converted(value: Any, default: JSONDefault | None, *, dump: Callable[[Any], bytes]) -> bytes:
    """
    ``dump(value)``, with what ``default`` returns in the place of what JSON has no form for.

    Args:
        value: Any value; it stays as it is.
        default: Called once for each such value. What it returns is converted too. Where it raises ``TypeError`` the
            value is left to ``dump``, which says where it is. ``None``: that of the app, if there is one.
        dump: Makes JSON of a value.

    Raises:
        TypeError: As ``dump``, with that of ``default`` as its cause.
        ValueError: As ``dump``; nested deeper than 1,024; ``default`` returns one unknown value after the other.
        Exception: Whatever else ``default`` raises.
    """
    default = default or JSON_DEFAULT.get()
    if default is None:
        return dump(value)
    converted, refused = _convert(value, default)
    try:
        return dump(converted)
    except TypeError as error:
        raise error from refused


def _convert(value: Any, default: JSONDefault) -> tuple[Any, TypeError | None]:
    """A copy of ``value`` with ``default`` applied, and the first ``TypeError`` of that."""
    outermost = [value]
    refused: TypeError | None = None
    pending: list[tuple[Any, Any, int]] = [(outermost, 0, 0)]
    while pending:
        container, key, depth = pending.pop()
        item = container[key]
        if type(item) in _PLAIN:
            continue
        calls = 0
        while isinstance(item, Enum) or not _is_known(item):
            if isinstance(item, Enum):
                item = item.value
                continue
            if calls == _MAX_CALLS:
                raise ValueError(f"json_default returned {type(item).__name__}, which JSON has no form for either")
            try:
                item = default(item)
            except TypeError as error:
                refused = refused or error
                break
            calls += 1
        if is_dataclass(item) and not isinstance(item, type):
            names = dict.fromkeys([*(field.name for field in fields(item)), *getattr(item, "__dict__", ())])
            item = {name: getattr(item, name) for name in names if name[0] != "_" and hasattr(item, name)}
        elif isinstance(item, dict):
            item = dict(item)
        elif isinstance(item, list) or type(item) is tuple:
            item = list(item)
        container[key] = item
        if isinstance(item, dict | list):
            if depth > _MAX_DEPTH:
                raise ValueError(f"JSON is nested at most {_MAX_DEPTH} levels deep; this is deeper, or holds itself")
            keys = item if isinstance(item, dict) else range(len(item))
            pending.extend((item, each, depth + 1) for each in keys)
    return outermost[0], refused


def _is_known(value: Any) -> bool:
    """Whether JSON has a form for ``value``, whatever it holds."""
    if isinstance(value, dict | list) or type(value) is tuple:
        return True
    if is_dataclass(value) and not isinstance(value, type):
        return True
    if isinstance(value, str | int):
        # The encoder's to say: a lone surrogate, an integer that is too long.
        return True
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True
