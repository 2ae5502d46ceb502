"""Exact JSON: a value is encoded without any change, or refused. Written by C code, whatever a client sends."""

import gc
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import fields
from enum import Enum
from math import isfinite
from threading import RLock
from typing import Any, TypeAlias

import orjson

from microws.errors import InvalidMessage

__all__ = ["JSON_DEFAULT", "MAX_DEPTH", "JSONDefault", "check_json_default", "dumps_json", "loads_json"]

JSONDefault: TypeAlias = Callable[[Any], Any]

# The ``App(json_default=…)`` of the app that serves the current request or WebSocket.
JSON_DEFAULT: ContextVar[JSONDefault | None] = ContextVar("JSON_DEFAULT", default=None)

# How deep lists and dicts may be nested, for encoding and decoding. orjson decodes 1,024 levels, but encodes only 254.
MAX_DEPTH = 1024


def check_json_default(default: Any) -> None:
    """Raise ``TypeError`` unless ``default`` is a plain function."""
    if not callable(default) or inspect.iscoroutinefunction(default):
        raise TypeError(f"expected a plain function of one value as json_default, got {default!r}")


def dumps_json(value: Any, default: JSONDefault | None = None) -> bytes:
    """
    Encode ``value`` as JSON in UTF-8, exactly or not at all.

    Args:
        value: What orjson encodes: ``dict`` with ``str`` keys, ``list``, ``tuple``, ``str``, ``int``, ``float``,
            ``bool``, ``None``, dataclasses, enums, dates, times and UUIDs. Also Structs of msgspec, as msgspec encodes
            them.
        default: Converts a value of any other type to one of these, or raises ``TypeError``. Default: the
            ``json_default`` of the app that serves the current request or WebSocket. What it does not convert, is
            encoded as pydantic does if it is a model.

    Raises:
        TypeError: ``value`` contains a type that JSON cannot represent, or a key that is not a ``str``.
        ValueError: It contains NaN, Infinity, a lone surrogate or an integer beyond the range of a double, or is nested
            deeper than 1,024. Both errors say where: ``$.a[3] is nan``.

    Source: RFC 8259 §6 (numbers), §8.2 (surrogates), §9 (limits).
    """
    try:
        data = orjson.dumps(value, _plain_struct)
    except TypeError:
        # orjson also refuses two things that JSON can represent: integers beyond 64 bits, and a depth over 254.
        return _dumps_slowly(value, _Conversion(default or JSON_DEFAULT.get()))
    # orjson writes NaN and Infinity as null. (`find`, because `in` takes twice as long on bytes.)
    if data.find(b"null") >= 0 and not _is_exact([value], data.count(b"null"), has_structs=True):
        raise _explain(value, {}) or ValueError("expected a value without NaN and Infinity")
    return data


def loads_json(data: str | bytes) -> Any:
    """
    Decode a JSON text. Integers beyond 64 bits are exact.

    Args:
        data: ``str``, or UTF-8 without a byte order mark. Of equal keys the last one wins.

    Raises:
        InvalidMessage: Not JSON, or NaN, Infinity, a lone surrogate, a number beyond the range of a double, or nesting
            deeper than 1,024. The text is the decoder's.

    Source: RFC 8259; RFC 7493 (I-JSON) §2.
    """
    if len(data) >= _LARGE and gc.isenabled():
        with _undisturbed:
            return loads_json(data)
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidMessage(f"invalid JSON: {error}") from None
    # orjson decodes an integer beyond 64 bits as a float. The search for one takes 0.3 µs, or 1 ms on a MiB.
    digits = (data.encode() if isinstance(data, str) else data).translate(_DIGITS)
    if digits.find(_DIGITS_19) >= 0 and (_MINUS_DIGITS_19 in digits or _DIGITS_20 in digits):
        # `json` also takes NaN, lone surrogates and numbers of any length. orjson has refused them above.
        del value
        with _undisturbed:
            return json.loads(data)
    return value


# Each digit becomes "0", "-" stays, the rest becomes blank.
_DIGITS = bytes(ord("0") if chr(i) in "0123456789" else ord("-") if chr(i) == "-" else ord(" ") for i in range(256))
_DIGITS_19 = b"0" * 19
_DIGITS_20 = b"0" * 20
_MINUS_DIGITS_19 = b"-" + _DIGITS_19
# From this many bytes, pausing the garbage collector saves time.
_LARGE = 64 << 10


# Guards the settings that `_undisturbed` changes. A finalizer may enter it while the same thread has the lock.
_lock = RLock()
# For each thread that is inside `_undisturbed`: the settings on entering. The first entry is what is restored.
_before: list[tuple[bool, int]] = []


class _Undisturbed:
    """
    Inside it ``json`` follows ``MAX_DEPTH`` levels from any call depth, and the garbage collector is paused.

    Python 3.11 counts each level as a call, and allows 1,000 calls in all. Later versions count the levels apart and
    allow more. The collector is paused because a MiB may hold 500,000 lists: it would visit all of them several times
    while they are made, which takes two thirds of the time, and it would find no cycle.

    Both settings belong to the process: meanwhile other threads may recurse deeper, and the collector does not run for
    them either. The last thread to leave restores what the first one found. No thread waits for another one, because
    ``json_default`` may run inside, and may wait for a thread that encodes as well.
    """

    def __enter__(self) -> None:
        with _lock:
            settings = gc.isenabled(), sys.getrecursionlimit()
            if _RAISES_LIMIT and not _before:
                # If the stack is nearly full, this raises when `__exit__` could not restore the limit.
                sys.setrecursionlimit(settings[1])
                # The first change: it makes room on the stack for the others, and for `__exit__`.
                sys.setrecursionlimit(settings[1] + 2 * MAX_DEPTH)
            _before.append(settings)
            gc.disable()

    def __exit__(self, *_: object) -> None:
        with _lock:
            collects, limit = _before.pop()
            if not _before:
                if collects:
                    gc.enable()
                if _RAISES_LIMIT:
                    sys.setrecursionlimit(limit)


_undisturbed = _Undisturbed()
_RAISES_LIMIT = sys.version_info < (3, 12)

# By the id of a value: the value itself, so that no other one gets this id, and what json_default made of it.
_Converted: TypeAlias = dict[int, tuple[Any, Any]]


class _Conversion:
    """``default`` for the encoders. It is called once for each value, although a value may be encoded twice."""

    def __init__(self, default: JSONDefault | None) -> None:
        self.default = default
        self.converted: _Converted = {}
        self.error: Exception | None = None

    def __call__(self, value: Any) -> Any:
        if self.error is not None:
            raise self.error
        if id(value) not in self.converted:
            try:
                made = self._convert(value)
            except Exception as error:
                self.error = error
                raise
            self.converted[id(value)] = (value, made)
        return self.converted[id(value)][1]

    def _convert(self, value: Any) -> Any:
        kind = type(value)
        if hasattr(kind, "__struct_fields__"):
            return _plain_struct(value, self)
        model = getattr(kind, "__pydantic_serializer__", None)
        if self.default is not None:
            try:
                made = self.default(value)
            except TypeError:
                if model is None:
                    raise
            else:
                if made is value:
                    raise ValueError(f"json_default returned {kind.__name__}, which JSON cannot represent either")
                return made
        if model is None:
            raise TypeError(kind.__name__)
        return model.to_python(value, mode="json", by_alias=True)

    def for_json(self, value: Any) -> Any:
        """The same for ``json``, which also asks for the types that only orjson knows."""
        plain = value if hasattr(type(value), "__struct_fields__") else _plain(value)
        if plain is not value:
            return plain
        try:
            data = orjson.dumps(value)
        except TypeError:
            return self(value)
        return orjson.loads(data)


def _dumps_slowly(value: Any, conversion: _Conversion) -> bytes:
    """Encode what orjson refused: with orjson if ``conversion`` is all it needs, else with the C code of ``json``."""
    error: Exception = ValueError("expected a value that JSON can represent")
    try:
        data = None
        with suppress(TypeError):
            data = orjson.dumps(value, conversion)
        nulls = None if data is None else data.count(b"null")
        if data is None:
            # It takes long integers and any depth.
            encoder = json.JSONEncoder(
                ensure_ascii=False,
                check_circular=False,
                allow_nan=False,
                separators=(",", ":"),
                default=conversion.for_json,
            )
            with _undisturbed:
                data = encoder.encode(value).encode()
                # Refuses what cannot be decoded again: a depth over 1,024, an integer beyond the range of a double.
                orjson.loads(data)
        if nulls == 0 or _is_exact([value, *(made for _, made in conversion.converted.values())], nulls):
            return data
    except (TypeError, ValueError, RecursionError) as failure:
        if failure is conversion.error and not isinstance(failure, TypeError):
            raise
        error = failure
    raise _explain(value, conversion.converted) or error from conversion.error


_TEXT_KEYS = frozenset({str})
_PLAIN = frozenset({dict, list, tuple, str, int, float, bool, type(None)})


def _is_exact(values: Iterable[Any], nulls: int | None, *, has_structs: bool = False) -> bool:
    """
    Whether values that C code has encoded were written exactly.

    A loop without calls, because a client may have sent a MiB with 500,000 lists: it takes as long as decoding them.

    Args:
        values: The encoded values.
        nulls: How many ``null`` orjson wrote: for ``None``, NaN or Infinity, or within a string. ``None``: ``json``
            wrote the values. It writes no NaN, but keys that are not ``str``, and subclasses of ``float`` and
            ``tuple``, which orjson refuses.
        has_structs: Whether to look into Structs. Default: what was made of them is among ``values``.
    """
    is_by_json, nulls = nulls is None, nulls or 0
    untried = [values]
    while untried:
        for item in untried.pop():
            kind = type(item)
            if kind is str or kind is int or kind is bool:
                continue
            if item is None:
                nulls -= 1
                if nulls == 0:  # each of them stands for a None
                    return True
            elif kind is float:
                if not isfinite(item):
                    return False
            elif kind is list or kind is tuple:
                untried.append(item)
            elif kind is dict:
                if is_by_json and not _TEXT_KEYS.issuperset(map(type, item)) and not all(map(_is_text, item)):
                    return False
                untried.append(item.values())
            elif hasattr(kind, "__dataclass_fields__"):
                untried.append(_plain(item).values())
            elif hasattr(kind, "__struct_fields__"):
                if has_structs:
                    untried.append((_plain(item),))
            elif (plain := _plain(item)) is not item:
                untried.append((plain,))
            elif is_by_json and isinstance(item, float | tuple):
                return False
    return True


def _plain_struct(value: Any, default: JSONDefault | None = None) -> Any:
    """A Struct of msgspec as dicts, lists, and so on."""
    if not hasattr(type(value), "__struct_fields__"):
        raise TypeError(type(value).__name__)
    return sys.modules["msgspec"].to_builtins(value, enc_hook=default)


def _is_text(key: Any) -> bool:
    return isinstance(key, str)


def _plain(value: Any) -> Any:
    """A dataclass, an enum's member or a value of a subclass as the JSON type that it is written as; or ``value``."""
    kind = type(value)
    if hasattr(kind, "__dataclass_fields__"):
        if hasattr(value, "__dict__") and "__slots__" not in kind.__dict__:
            return {name: member for name, member in value.__dict__.items() if name[0] != "_"}
        return {field.name: getattr(value, field.name) for field in fields(value) if field.name[0] != "_"}
    if isinstance(value, Enum) and not isinstance(value, str | int):
        return value.value
    if hasattr(kind, "__struct_fields__"):
        with suppress(TypeError):
            return _plain_struct(value)
    if isinstance(value, dict) and kind is not dict:
        return dict.copy(value)
    return list.copy(value) if isinstance(value, list) and kind is not list else value


# How many values `_explain` looks at, in some 30 ms. A client may have sent many more.
_MAX_EXPLAINED = 50_000


def _explain(value: Any, converted: _Converted) -> TypeError | ValueError | None:
    """The error that says what JSON cannot represent in ``value``, and where; ``None`` if it was not found."""
    # A path is the path of the outer value and the key in it.
    untried: list[tuple[Any, Iterator[tuple[Any, Any]]]] = [((), iter([(None, value)]))]
    for _ in range(_MAX_EXPLAINED):
        outer, members = untried[-1]
        key, item = next(members, (None, _END))
        if item is _END:
            untried.pop()
            if not untried:
                break
            continue
        path = (outer, key)
        while id(item) in converted:
            item = converted[id(item)][1]
        while type(item) not in _PLAIN and (plain := _plain(item)) is not item:
            item = plain
        if (isinstance(key, str) and _has_surrogate(key)) or (isinstance(item, str) and _has_surrogate(item)):
            return ValueError(f"{_text(path)} contains a lone surrogate, which UTF-8 cannot carry")
        if type(item) is dict:
            for other in item:
                if not isinstance(other, str):
                    kind = type(other).__name__
                    return TypeError(f"{_text(path)} has a key of type {kind}; a key in JSON is str: use str(key)")
            untried.append((path, iter(item.items())))
        elif type(item) in (list, tuple):
            untried.append((path, enumerate(item)))
        elif type(item) is float:
            if not isfinite(item):
                return ValueError(f"{_text(path)} is {item}, which JSON cannot represent; send None instead")
        elif isinstance(item, int):
            try:
                float(item)
            except OverflowError:
                return ValueError(f"{_text(path)} is an integer of more than 308 digits; send it as str")
        elif not isinstance(item, str):
            try:
                orjson.dumps(item)
            except TypeError:
                return TypeError(
                    f"{_text(path)} is of type {type(item).__name__}, which JSON cannot represent; "
                    "send dict, list, str, int, float, bool or None, or convert it with App(json_default=…)"
                )
        if len(untried) > MAX_DEPTH + 1:
            where = _text(path)
            return ValueError(f"JSON is nested at most {MAX_DEPTH} levels deep; {where} is deeper, or contains itself")
    return None


_END: Any = object()


def _has_surrogate(text: str) -> bool:
    try:
        str.encode(text)
    except UnicodeEncodeError:
        return True
    return False


def _text(path: Any) -> str:
    """A path as text: ``value.a[3]``. Of a longer one the last 60 characters, which tell most."""
    steps = []
    while path:
        path, key = path
        if key is None:  # the outermost value
            continue
        if isinstance(key, int):
            steps.append(f"[{key}]")
        else:
            steps.append(f".{key}" if key.isidentifier() else f"[{key[:60]!r}]")
    text = "value" + "".join(reversed(steps))
    return text if len(text) <= 60 else f"…{text[-59:]}"
