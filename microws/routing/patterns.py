"""Patterns and converters: which paths a route stands for, and the path of given values."""

import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from microws.errors import RoutingError
from microws.hints import did_you_mean
from microws.routing.paths import encode_path

__all__ = ["REFUSED", "Converter", "Converters", "Parameter", "Pattern", "nearest"]

REFUSED: Any = object()
"""What ``Converter.read`` gives in place of a value."""

_PARAMETER = re.compile(r"\{([^{}:]*)(?::([^{}:]*))?\}")
_ANGLE_PARAMETER = re.compile(r"<(?:([^<>:]*):)?([^<>:]*)>")
_PERCENT_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")


class Converter(NamedTuple):
    """
    What one kind of parameter accepts, and how it becomes a value and text again.

    Attributes:
        name: What stands after the colon in ``{n:name}``.
        pattern: Must match the whole decoded segment.
        parse: The segment's value. A ``ValueError`` means that the segment does not match.
        format: The text of a value. ``TypeError``, ``ValueError`` or ``ArithmeticError``: no such value.
        type: The class of the values, or ``None`` if it is unknown.
    """

    name: str
    pattern: re.Pattern[str]
    parse: Callable[[str], Any]
    format: Callable[[Any], str]
    type: type[Any] | None

    @property
    def takes_rest(self) -> bool:
        """Whether it takes the rest of the path, slashes included, in place of one segment."""
        return self is _PATH

    def read(self, segment: str) -> Any:
        """The value of ``segment``, or ``REFUSED``: the empty segment always is."""
        if not segment:
            return REFUSED
        if self is _STR:
            return segment
        if self.pattern.fullmatch(segment) is None:
            return REFUSED
        try:
            return self.parse(segment)
        except ValueError:
            return REFUSED


def _format_float(value: Any) -> str:
    return format(Decimal(repr(float(value))), "f")


# Unsigned and in decimal notation, as in Starlette and Werkzeug. The bound keeps conversions from failing: a number
# below 1e308 is a finite float, and a view may answer with it in JSON, which carries no longer integer either.
_INT = Converter("int", re.compile(r"[0-9]{1,308}"), int, str, int)
_UUID = Converter(
    "uuid", re.compile(r"(?i:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.ASCII), uuid.UUID, str, uuid.UUID
)
_FLOAT = Converter("float", re.compile(r"[0-9]{1,308}(?:\.[0-9]{1,330})?"), float, _format_float, float)
_STR = Converter("str", re.compile(r"(?s:.+)"), str, str, str)
_PATH = Converter("path", re.compile(r"(?s:.*)"), str, str, str)


class Converters:
    """
    The converters of one router. They are tried in the order ``int``, ``uuid``, ``float``, the added ones as they were
    added, ``str`` (which a plain ``{name}`` has), ``path``.
    """

    __slots__ = ("_by_name", "_order")

    def __init__(self) -> None:
        self._order = [_INT, _UUID, _FLOAT, _STR, _PATH]
        self._by_name = {converter.name: converter for converter in self._order}

    def add(
        self,
        name: str,
        pattern: str,
        parse: Callable[[str], Any] = str,
        format: Callable[[Any], str] = str,  # noqa: A002 - the opposite of `parse` has no other name
    ) -> None:
        """
        Let ``{parameter:name}`` stand in later patterns.

        Args:
            name: A Python identifier that is not taken.
            pattern: Regular expression for one whole decoded segment; bounding its running time is the caller's part.
            parse: Segment to value; ``ValueError`` refuses the segment. Default: the text itself.
            format: Value to segment, for ``url_for``. Default: ``str``.

        Raises:
            RoutingError: The name is taken or no identifier, or the pattern is no regular expression.
        """
        if not name.isidentifier():
            raise RoutingError(f"a converter's name is an identifier such as 'hex', not {name!r}")
        if name in self._by_name:
            raise RoutingError(f"there is a converter {name!r} already; choose another name")
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise RoutingError(f"converter {name!r}: {pattern!r} is no regular expression: {error}") from None
        known = parse if isinstance(parse, type) else None
        self._by_name[name] = Converter(name, compiled, parse, format, known)
        self._order.append(self._by_name[name])

    def get(self, name: str) -> Converter:
        """The converter of that name. Raises ``RoutingError``, which names the nearest, where there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            raise RoutingError(f"there is no converter {name!r}{nearest(name, self._by_name)}") from None

    def rank(self, converter: Converter) -> tuple[bool, bool, int]:
        """What converters are sorted by; one of an included router stands behind those that were known before it."""
        if converter not in self._order:
            self._order.append(converter)
        return converter is _PATH, converter is _STR, self._order.index(converter)


class Parameter(NamedTuple):
    """A segment of a pattern that is a parameter."""

    name: str
    converter: Converter


@dataclass(frozen=True, slots=True)
class Pattern:
    """
    A pattern, taken apart.

    Attributes:
        text: As it was written, with the prefix of its inclusion.
        segments: Literal text or a parameter each; the last is ``""`` where the pattern ends with a slash.
        parameters: The parameters' names in order.
    """

    text: str
    segments: tuple[str | Parameter, ...]
    parameters: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = tuple(segment.name for segment in self.segments if isinstance(segment, Parameter))
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise RoutingError(f"pattern {self.text!r}: the parameter {twice!r} stands in it more than once")
        for segment in self.segments[:-1]:
            if isinstance(segment, Parameter) and segment.converter.takes_rest:
                raise RoutingError(
                    f"pattern {self.text!r}: {{{segment.name}:path}} takes the rest of the path; it must stand last"
                )
        object.__setattr__(self, "parameters", names)

    @property
    def converters(self) -> dict[str, Converter]:
        """The converter of each parameter."""
        return {segment.name: segment.converter for segment in self.segments if isinstance(segment, Parameter)}

    @staticmethod
    def check(text: object) -> None:
        """Raise ``TypeError`` where ``text`` is no text, such as the view of a decorator without parentheses."""
        if not isinstance(text, str):
            raise TypeError(f'a pattern is a str, not {text!r}; write it in parentheses, as in @app.route("/chat")')

    @classmethod
    def parse(cls, text: str, converters: Converters) -> "Pattern":
        """
        Take ``text`` apart.

        Raises:
            TypeError: It is no text.
            RoutingError: Says what is wrong with it and what to write.
        """
        cls.check(text)
        if not text.startswith("/"):
            raise RoutingError(f"pattern {text!r} must begin with a slash: write {'/' + text!r}")
        if "//" in text:
            raise RoutingError(f"pattern {text!r} has two slashes in a row; no parameter is empty, so write one slash")
        try:
            segments = tuple(_parse_segment(segment, converters) for segment in text[1:].split("/"))
        except RoutingError as error:
            raise RoutingError(f"pattern {text!r}: {error}") from None
        return cls(text, segments)

    def below(self, prefix: "Pattern | None") -> "Pattern":
        """This pattern below a prefix. Raises ``RoutingError`` where a parameter stands in both."""
        return self if prefix is None else Pattern(prefix.text + self.text, prefix.segments + self.segments)

    def format(self, /, **params: Any) -> str:
        """
        The percent-encoded path for these parameters.

        Returns:
            A path that begins with exactly one slash and that the pattern matches.

        Raises:
            RoutingError: A parameter is missing or unknown, or its converter would not take the value back.
        """
        missing = [name for name in self.parameters if name not in params]
        unknown = [name for name in params if name not in self.parameters]
        if missing or unknown:
            problems = [f"{name!r} is missing" for name in missing]
            problems += [f"{name!r} is not in it{nearest(name, self.parameters)}" for name in unknown]
            raise RoutingError(f"parameters of {self.text!r}: {', '.join(problems)}")
        encoded = [
            encode_path(_format_value(segment, params[segment.name]), keep_slashes=segment.converter.takes_rest)
            if isinstance(segment, Parameter)
            else encode_path(segment)
            for segment in self.segments
        ]
        path = "/" + "/".join(encoded)
        if path.startswith("//"):
            raise RoutingError(f"{path!r} from {self.text!r} would name another host; strip the value's leading slash")
        return path


def _parse_segment(segment: str, converters: Converters) -> str | Parameter:
    if parameter := _PARAMETER.fullmatch(segment):
        name, converter = parameter.groups()
        if not name.isidentifier():
            raise RoutingError(f"a parameter's name is an identifier such as {{room}}, not {segment}")
        return Parameter(name, converters.get("str" if converter is None else converter))
    if "{" in segment or "}" in segment:
        if _PARAMETER.search(segment):
            raise RoutingError(f"a parameter is a whole segment; write {{name}} for {segment} and take the value apart")
        raise RoutingError(f"unbalanced or nested braces in {segment}; a parameter is written {{name}} or {{name:int}}")
    if angle := _ANGLE_PARAMETER.fullmatch(segment):
        converter, name = angle.groups()
        raise RoutingError(f"write {{{name}{':' + converter if converter else ''}}} for {segment}")
    if encoded := _PERCENT_ENCODED.search(segment):
        raise RoutingError(f"patterns are written decoded; write the character itself for {encoded[0]}")
    if problem := _unreachable(segment):
        raise RoutingError(f"the segment {segment!r} is {problem}, which no client can ask for")
    return segment


def _format_value(parameter: Parameter, value: Any) -> str:
    name, converter = parameter
    try:
        text = converter.format(value)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise RoutingError(f"{name!r} is nothing that converter {converter.name!r} can write: {error}") from None
    if value is None or (not converter.takes_rest and converter.read(text) is REFUSED):
        raise RoutingError(f"{name!r} cannot be {_shown(value)}: converter {converter.name!r} would not read it back")
    for segment in text.split("/") if converter.takes_rest else [text]:
        if problem := _unreachable(segment):
            raise RoutingError(f"{name!r} cannot be {_shown(value)}: {segment!r} in a path is {problem}")
    return text


def _unreachable(segment: str) -> str:
    """Why no request can have this segment, or nothing."""
    if segment in (".", ".."):
        return "resolved away by clients (RFC 3986 §5.2.4)"
    if "\0" in segment:
        return "a NUL"
    if any("\ud800" <= character <= "\udfff" for character in segment):
        return "a lone surrogate"
    return ""


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int with more digits than CPython prints
        return f"this {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the name that was probably meant, or those that there are."""
    known = sorted(known)
    return did_you_mean(name, known) or (f"; there is {', '.join(known[:10])}" if known else "")
