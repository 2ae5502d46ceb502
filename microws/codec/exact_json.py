"""Exact JSON: refuses every value that JSON would alter. C code does the work, whatever document a client sends."""

import gc
import json
import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import accumulate, chain, compress, repeat
from math import isfinite
from operator import is_
from threading import RLock
from typing import Any, TypeAlias

import orjson

from microws.errors import InvalidMessage
from microws.json_default import Conversion, JSONDefault, is_known

__all__ = ["MAX_DEPTH", "dumps_json", "loads_json"]

# How deep lists and dicts may be nested, for encoding and decoding. orjson decodes 1,024 levels, but encodes only 254.
MAX_DEPTH = 1024


def dumps_json(value: Any, default: JSONDefault | None = None) -> bytes:
    """
    ``value`` as JSON in UTF-8, exactly or not at all.

    Args:
        value: What orjson takes by itself: ``dict`` with ``str`` keys, ``list``, ``tuple``, ``str``, ``int``,
            ``float``, ``bool``, ``None``, dataclasses, enums, dates, times and UUIDs.
        default: Makes such a value of any other, or raises ``TypeError``. Default: that of the app which serves the
            request or WebSocket.

    Raises:
        TypeError: It holds a type that JSON has no form for, or a key that is not a ``str``.
        ValueError: It holds NaN, Infinity, a lone surrogate or an integer beyond the range of a double, or is nested
            deeper than 1,024. Both say where: ``$.a[3] is nan``.

    Source: RFC 8259 §6 (numbers), §8.2 (surrogates), §9 (limits).
    """
    try:
        data = orjson.dumps(value)
    except TypeError:
        # orjson also refuses two things that JSON has a form for: integers beyond 64 bits, and a depth over 254.
        return _dumps_slowly(value, Conversion(default))
    # orjson writes NaN and Infinity as null. (`find`, because `in` takes twice as long on bytes.)
    if data.find(b"null") >= 0 and _holds_non_finite(value, data.count(b"null")):
        _check(value, _NO_CONVERSION)
    return data


def loads_json(data: str | bytes) -> Any:
    """
    The value in ``data``, with integers beyond 64 bits exact.

    Args:
        data: One JSON text, as ``str`` or as UTF-8 without a byte order mark. Of equal keys the last one counts.

    Raises:
        InvalidMessage: Not JSON, or NaN, Infinity, a lone surrogate, a number beyond the range of a double, or nesting
            deeper than 1,024. It has the decoder's words.

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
# For each thread that is within `_undisturbed`: what the settings were. The first has those to restore.
_before: list[tuple[bool, int]] = []


class _Undisturbed:
    """
    Within it ``json`` follows ``MAX_DEPTH`` levels from wherever it is called, and the garbage collector pauses.

    Python 3.11 counts each level as a call, and allows 1,000 calls in all. Later versions count the levels apart and
    allow more. The collector pauses because a MiB may hold 500,000 lists: it would visit all of them several times
    while they are made, which takes two thirds of the time, and it would find no cycle.

    Both settings belong to the process: meanwhile other threads may recurse deeper, and the collector does not run for
    them either. The last thread to leave restores what the first one found. No thread waits for another one, because
    ``json_default`` may run inside, and that may wait for a thread that encodes as well.
    """

    def __enter__(self) -> None:
        with _lock:
            settings = gc.isenabled(), sys.getrecursionlimit()
            if _RAISES_LIMIT and not _before:
                # Where the stack is nearly full, this raises if `__exit__` could not restore the limit.
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


def _dumps_slowly(value: Any, conversion: Conversion) -> bytes:
    """Encode what orjson refused: with orjson if ``conversion`` is all it needs, else with the C code of ``json``."""
    if conversion.default is not None:
        try:
            data = orjson.dumps(value, conversion)
        except TypeError:
            pass
        else:
            if data.find(b"null") >= 0:
                _check(value, conversion)
            return data

    def plain(item: Any) -> Any:
        if isinstance(item, Enum):
            return item.value
        if is_dataclass(item) and not isinstance(item, type):
            return _fields(item)
        return orjson.loads(orjson.dumps(item)) if is_known(item) else conversion(item)

    # It takes long integers and any depth. It also takes values that orjson refuses or writes in another form: `_check`
    # refuses these.
    encoder = json.JSONEncoder(
        ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"), default=plain
    )
    with _undisturbed:
        try:
            data = encoder.encode(value).encode()
        except (TypeError, ValueError, RecursionError) as error:
            if conversion.error is error and not isinstance(error, TypeError):
                raise
            _check(value, conversion, is_encoded=False)
            raise
        _check(value, conversion)
    return data


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that orjson writes."""
    if hasattr(value, "__dict__") and "__slots__" not in type(value).__dict__:
        return {name: member for name, member in value.__dict__.items() if name[0] != "_"}
    return {field.name: getattr(value, field.name) for field in fields(value) if field.name[0] != "_"}


# The checks go through a value level by level, a few calls of C code for each: a MiB may hold 500,000 lists.
_NONE = type(None)
_KEYS = frozenset({str})
_CONTAINERS = frozenset({list, tuple, dict})
_PLAIN = _CONTAINERS | {str, int, float, bool, _NONE}
# An integer of so many bits may be beyond the range of a double.
_DOUBLE_BITS = 1024
_NO_CONVERSION = Conversion(None)
# For each level, from the outermost: its values, and the same values as plain JSON types.
_Levels: TypeAlias = list[tuple[list[Any], list[Any]]]


def _holds_non_finite(value: Any, nulls: int) -> bool:
    """Whether NaN or Infinity is anywhere in ``value``, for which orjson has written ``nulls`` times ``null``."""
    if type(value) is dict and list(map(type, value.values())).count(_NONE) == nulls:
        return False  # the usual case
    level = [value]
    while level:
        level, types, kinds = _plain_level(level, _NO_CONVERSION)
        if _NONE in kinds:
            nulls -= len(list(_of_kind(_NONE, level, types)))
            if nulls == 0:
                return False  # every `null` stands for a None
        if float in kinds and not all(map(isfinite, _of_kind(float, level, types))):
            return True
        level = _members(level, types, kinds)
    return False


def _check(value: Any, conversion: Conversion, *, is_encoded: bool = True) -> None:
    """
    Refuse what JSON has no form for, and what ``json`` writes although orjson refuses it.

    Args:
        value: Anything, even a value that holds itself.
        conversion: What was made of values that JSON has no form for.
        is_encoded: ``json`` or orjson has encoded it, so its size is limited and its strings are valid.

    Raises:
        TypeError, ValueError: As ``dumps_json``.
    """
    try:
        _check_levels(value, conversion, is_encoded, None)
        return
    except (TypeError, ValueError):
        pass
    # The second time it keeps the levels, to say where the value is. That takes twice as long.
    try:
        _check_levels(value, conversion, is_encoded, [])
    except TypeError as error:
        raise error from conversion.error


def _check_levels(value: Any, conversion: Conversion, is_encoded: bool, levels: _Levels | None) -> None:
    level, depth = [value], 0
    while level:
        if not is_encoded:
            # Otherwise the levels of a value that holds itself twice would double in size each time.
            level = list({id(item): item for item in level}.values())
        plain, types, kinds = _plain_level(level, conversion)
        if levels is not None:
            levels.append((level, plain))
        if (
            not is_encoded
            or plain is not level
            or (float in kinds and not all(map(isfinite, _of_kind(float, plain, types))))
            or (int in kinds and max(map(int.bit_length, _of_kind(int, plain, types))) >= _DOUBLE_BITS)
        ):
            for item in plain:
                _check_value(item, levels)
        if dict in kinds:
            dicts = list(_of_kind(dict, plain, types))
            if not is_encoded or not set(map(type, chain.from_iterable(dicts))) <= _KEYS:
                for item in dicts:
                    _check_keys(item, levels)
        if kinds.isdisjoint(_CONTAINERS):
            return
        depth += 1
        if depth > MAX_DEPTH:
            where = _path(levels, next(item for item in plain if type(item) in _CONTAINERS))
            raise ValueError(f"JSON is nested at most {MAX_DEPTH} levels deep; {where} is deeper, or holds itself")
        level = _members(plain, types, kinds)


def _plain_level(level: list[Any], conversion: Conversion) -> tuple[list[Any], list[type], set[type]]:
    """
    The values of a level as plain JSON types: ``level`` itself if all of them are plain. And the type of each of them.

    The list of types is empty where all values have the same one, as on most levels: it would be half of the work.
    """
    kinds = set(map(type, level))
    if not kinds <= _PLAIN:
        level = [_as_plain(item, conversion) for item in level]
        kinds = set(map(type, level))
    return level, list(map(type, level)) if len(kinds) > 1 else [], kinds


def _as_plain(value: Any, conversion: Conversion) -> Any:
    value = conversion.known(value)
    while isinstance(value, Enum) and not isinstance(value, str | int):
        value = value.value
    if type(value) in _PLAIN:
        return value
    if isinstance(value, dict):
        return dict.copy(value)
    if isinstance(value, list):
        return list.copy(value)
    return _fields(value) if is_dataclass(value) and not isinstance(value, type) else value


def _of_kind(kind: type, level: list[Any], types: list[type]) -> Iterable[Any]:
    return compress(level, map(is_, types, repeat(kind))) if types else level


def _members(level: list[Any], types: list[type], kinds: set[type]) -> list[Any]:
    """The next level: all that the lists, tuples and dicts of this one hold."""
    members: list[Any] = []
    for kind in (list, tuple):
        if kind in kinds:
            # It runs in C: `extend` copies a list without making an iterator of it, which `chain` would.
            deque(map(members.extend, _of_kind(kind, level, types)), maxlen=0)
    if dict in kinds:
        members += chain.from_iterable(map(dict.values, _of_kind(dict, level, types)))
    return members


def _check_value(value: Any, levels: _Levels | None) -> None:
    """Refuse a value that is itself invalid, without looking into it."""
    if isinstance(value, float) and not isfinite(value):
        where = _path(levels, value)
        raise ValueError(f"{where} is {float(value)}, which JSON has no form for; send None instead")
    if isinstance(value, int):
        try:
            float(value)
        except OverflowError:
            where = _path(levels, value)
            raise ValueError(f"{where} is an integer of more than 308 digits; send it as str") from None
    elif isinstance(value, str):
        _check_text(value, value, levels)
    elif type(value) not in _PLAIN:
        try:
            orjson.dumps(value)
        except TypeError:
            raise TypeError(
                f"{_path(levels, value)} is of type {type(value).__name__}, which JSON has no form for; "
                "send dict, list, str, int, float, bool or None, or convert it with App(json_default=…)"
            ) from None


def _check_keys(value: dict[Any, Any], levels: _Levels | None) -> None:
    for key in value:
        if not isinstance(key, str):
            where = _path(levels, value)
            raise TypeError(f"{where} has a key of type {type(key).__name__}; a key in JSON is str: use str(key)")
        _check_text(key, value, levels, key)


def _check_text(text: str, target: Any, levels: _Levels | None, *key: str) -> None:
    try:
        str.encode(text)
    except UnicodeEncodeError:
        where = _path(levels, target, *key)
        raise ValueError(f"{where} holds a lone surrogate, which UTF-8 cannot carry") from None


def _path(levels: _Levels | None, target: Any, *more: str) -> str:
    """
    The path to ``target``, one of the plain values of the last level: ``$.a[3]``.

    Of a longer path the last 60 characters, which tell most.
    """
    if levels is None:
        return ""
    keys: list[Any] = [*more]
    for (level, plain), (_, outer) in zip(reversed(levels), reversed(levels[:-1]), strict=False):
        value = level[_position(target, plain)]
        outer, types, kinds = _plain_level(outer, _NO_CONVERSION)
        containers = [item for kind in (list, tuple, dict) if kind in kinds for item in _of_kind(kind, outer, types)]
        position = _position(value, _members(outer, types, kinds))
        ends = list(accumulate(map(len, containers)))
        index = bisect_right(ends, position)
        target = containers[index]
        position -= ends[index] - len(target)
        keys.append(list(target)[position] if type(target) is dict else position)
    steps = []
    for key in reversed(keys):
        if isinstance(key, int):
            steps.append(f"[{key}]")
        else:
            steps.append(f".{key}" if key.isidentifier() else f"[{key[:60]!r}]")
    path = "$" + "".join(steps)
    return path if len(path) <= 60 else f"…{path[-59:]}"


def _position(target: Any, values: list[Any]) -> int:
    return list(map(id, values)).index(id(target))
