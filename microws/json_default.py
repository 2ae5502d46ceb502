"""``App(json_default=…)``: values that JSON has no form for, made into values that it has one for."""

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, TypeAlias

import orjson

__all__ = ["JSON_DEFAULT", "Conversion", "JSONDefault", "check_json_default", "is_known"]

JSONDefault: TypeAlias = Callable[[Any], Any]

# Set while an app that has one serves a request or WebSocket, so that responses and events that its views make know it.
JSON_DEFAULT: ContextVar[JSONDefault | None] = ContextVar("JSON_DEFAULT", default=None)

# For one value: what `default` returns may need it again.
_MAX_CALLS = 20


def check_json_default(default: Any) -> None:
    """Raise ``TypeError`` unless ``default`` is a plain function."""
    if not callable(default) or inspect.iscoroutinefunction(default):
        raise TypeError(f"json_default is a plain function of one value, not {default!r}")


class Conversion:
    """
    What the encoder of one value calls for each that JSON has no form for; ``known`` then tells what was made of it.

    Args:
        default: Called once for each such value. ``None``: that of the app, if there is one.

    Attributes:
        default: As given; without it every such value is a ``TypeError``.
        error: The first exception of ``default``.
    """

    def __init__(self, default: JSONDefault | None) -> None:
        self.default = default or JSON_DEFAULT.get()
        self.error: Exception | None = None
        # By its id; with the value itself, so that no other one gets that id.
        self._made: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any) -> Any:
        """
        The value that stands for ``value``.

        Raises:
            TypeError: There is no ``default``, or it raises that.
            ValueError: ``default`` returns one unknown value after the other.
            Exception: Whatever else ``default`` raises.
        """
        if self.error is not None:
            raise self.error
        if id(value) in self._made:
            return self._made[id(value)][1]
        if self.default is None:
            raise TypeError(f"JSON has no form for {type(value).__name__}")
        made = value
        try:
            for _ in range(_MAX_CALLS):
                made = self.default(made)
                if is_known(made):
                    break
            else:
                raise ValueError(f"json_default returned {type(made).__name__}, which JSON has no form for either")
        except Exception as error:
            self.error = error
            raise
        self._made[id(value)] = (value, made)
        return made

    def known(self, value: Any) -> Any:
        """What was made of ``value``; itself where nothing was."""
        return self._made[id(value)][1] if id(value) in self._made else value


def is_known(value: Any) -> bool:
    """Whether JSON has a form for ``value``, whatever it holds."""
    if isinstance(value, dict | list | Enum) or type(value) is tuple:
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
