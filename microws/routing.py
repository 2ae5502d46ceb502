"""
Routing: patterns, converters, the tree that finds the route of a path, and ``url_for``. No ``await``, no clock.

Routes are in a tree of segments. A request walks it depth first: at each node the literal segment, then converters in
their order, then a plain ``{name}``, then ``{name:path}``, then a mount. It goes on until a route has the requested
kind and method. In a tree only one way leads to each node, so a request visits it at most once.
"""

import dataclasses
import re
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import quote, unquote_to_bytes

from microws.errors import RoutingError
from microws.hints import did_you_mean
from microws.interfaces import TOKEN, Scope

__all__ = [
    "Converters",
    "Kind",
    "Match",
    "Miss",
    "Mounted",
    "Parameter",
    "Pattern",
    "Route",
    "Router",
    "encode_path",
    "path_of",
    "root_path",
    "scope_below",
]

Kind: TypeAlias = Literal["http", "websocket"]

# Paths

# RFC 3986 §3.3: what may be unencoded in a segment besides the unreserved characters.
_SEGMENT_SAFE = "!$&'()*+,;=:@"
# As a number: asking whether ``bytes`` contain other ``bytes`` takes ten times as long.
_PERCENT = ord("%")


def encode_path(text: str, *, keep_slashes: bool = True) -> str:
    """
    Percent-encode ``text`` for a path, or without ``keep_slashes`` for one segment. A lone surrogate becomes ``?``.

    Source: RFC 3986 §3.3.
    """
    return quote(text, safe=_SEGMENT_SAFE + "/" if keep_slashes else _SEGMENT_SAFE, errors="replace")


def _join(segments: list[str]) -> str:
    return "/" + "/".join(encode_path(segment, keep_slashes=False) for segment in segments)


def path_of(scope: Scope) -> tuple[str, list[str] | None]:
    """
    The path of an HTTP or WebSocket scope, decoded once and without ``root_path``, and its segments.

    ``raw_path`` says which slashes were encoded, if it decodes to ``path``; otherwise middleware has rewritten
    ``path``, which then counts alone. ``root_path`` is removed if ``path`` begins with it: only some servers put it
    there.

    Returns:
        The path, and ``None`` if its slashes divide it into its segments. Otherwise the segments: one has an encoded
        slash, or there are none because it is not a path, such as ``*``.

    Source: ASGI HTTP specification, "HTTP Connection Scope"; RFC 9110 §4.2.3 (an empty path is ``/``).
    """
    path: str = scope["path"] or "/"
    if path[0] != "/":
        return path, []
    raw: bytes | None = scope.get("raw_path")
    segments = _segments_of(raw, path) if raw and _PERCENT in raw and b"%2f" in raw.lower() else None
    if scope.get("root_path") and (root := root_path(scope)):
        all_segments = path.split("/")[1:] if segments is None else segments
        root_segments = root.split("/")[1:]
        if all_segments[: len(root_segments)] == root_segments:
            below = all_segments[len(root_segments) :] or [""]
            return "/" + "/".join(below), None if segments is None else below
    return path, segments


def _segments_of(raw: bytes, path: str) -> list[str] | None:
    """The segments of a raw path, if it decodes to ``path``."""
    try:
        decoded = [unquote_to_bytes(part).decode() for part in raw.partition(b"?")[0].split(b"/")]
    except UnicodeDecodeError:
        return None
    return decoded[1:] if "/".join(decoded) == path else None


def root_path(scope: Scope) -> str:
    """The decoded root path of a scope: empty, or with a slash before it and none after it."""
    root = (scope.get("root_path") or "").strip("/")
    return f"/{root}" if root else ""


def scope_below(scope: Scope, prefix: str) -> Scope:
    """
    A copy of ``scope`` for the app mounted at ``prefix``: ``root_path`` ends with it, and ``path`` begins with both.

    Source: ASGI HTTP specification, ``path`` includes ``root_path``.
    """
    root = root_path(scope)
    below: dict[str, Any] = {**scope, "root_path": root + prefix}
    if root and path_of(scope)[0] == scope["path"]:  # the server left it out
        below["path"] = root + scope["path"]
        if scope.get("raw_path"):
            below["raw_path"] = encode_path(root).encode() + scope["raw_path"]
    return below


# Patterns and converters

_REFUSED: Any = object()
_PARAMETER = re.compile(r"\{([^{}:]*)(?::([^{}:]*))?\}")
_ANGLE_PARAMETER = re.compile(r"<(?:([^<>:]*):)?([^<>:]*)>")
_PERCENT_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")


class Converter(NamedTuple):
    """
    What one kind of parameter accepts, and how it becomes a value and text again.

    Attributes:
        name: What stands after the colon in ``{n:name}``.
        pattern: Must match the whole decoded segment.
        parse: Text to value. ``ValueError``: the segment does not match.
        format: Value to text. ``TypeError``, ``ValueError`` or ``ArithmeticError``: not a value of this converter.
        type: The class of the values, or ``None`` if it is unknown.
    """

    name: str
    pattern: re.Pattern[str]
    parse: Callable[[str], Any]
    format: Callable[[Any], str]
    type: type[Any] | None

    def accepts(self, segment: str) -> bool:
        """Whether ``segment`` has a value; an empty one only as the rest of a path."""
        return self is _PATH or self.read(segment) is not _REFUSED

    def read(self, segment: str) -> Any:
        """The value of ``segment``, or ``_REFUSED``, as for every empty segment."""
        if not segment:
            return _REFUSED
        if self is _STR:
            return segment
        if self.pattern.fullmatch(segment) is None:
            return _REFUSED
        try:
            return self.parse(segment)
        except ValueError:
            return _REFUSED


def _format_float(value: Any) -> str:
    from decimal import Decimal  # here, because it takes 2 ms to import

    return format(Decimal(repr(float(value))), "f")


# Unsigned and in decimal notation, as in Starlette and Werkzeug. The limits keep conversions from failing: a number
# below 1e308 is a finite float, and a view may return it as JSON, which does not carry longer integers either.
_INT = Converter("int", re.compile(r"[0-9]{1,308}"), int, str, int)
_UUID = Converter(
    "uuid", re.compile(r"(?i:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.ASCII), uuid.UUID, str, uuid.UUID
)
_FLOAT = Converter("float", re.compile(r"[0-9]{1,308}(?:\.[0-9]{1,330})?"), float, _format_float, float)
_STR = Converter("str", re.compile(r"(?s:.+)"), str, str, str)
# Takes the rest of the path, slashes included.
_PATH = Converter("path", re.compile(r"(?s:.*)"), str, str, str)


class Converters:
    """
    The converters of one router. They are tried in the order ``int``, ``uuid``, ``float``, then added ones in the order
    of their registration, then ``str`` (which a plain ``{name}`` has), then ``path``.
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
            pattern: Regular expression for one whole decoded segment; the caller has to limit its running time.
            parse: Segment to value; ``ValueError`` refuses the segment. Default: the text itself.
            format: Value to segment, for ``url_for``. Default: ``str``.

        Raises:
            RoutingError: The name is taken or not an identifier, or the pattern is not a regular expression.
        """
        if not name.isidentifier():
            raise RoutingError(f"expected an identifier such as 'hex' as a converter's name, got {name!r}")
        if name in self._by_name:
            raise RoutingError(f"the converter {name!r} exists already; choose another name")
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise RoutingError(
                f"converter {name!r}: expected a regular expression, got {pattern!r} ({error})"
            ) from None
        self._by_name[name] = Converter(name, compiled, parse, format, parse if isinstance(parse, type) else None)
        self._order.append(self._by_name[name])

    def get(self, name: str) -> Converter:
        """The converter of that name. Raises ``RoutingError``, which names the nearest, if it does not exist."""
        if name not in self._by_name:
            raise RoutingError(f"there is no converter {name!r}{_hint(name, self._by_name)}")
        return self._by_name[name]

    def rank(self, converter: Converter) -> tuple[bool, bool, int]:
        """The sort key of a converter; one of an included router comes after those that were known before it."""
        if converter not in self._order:
            self._order.append(converter)
        return converter is _PATH, converter is _STR, self._order.index(converter)


class Parameter(NamedTuple):
    """A segment of a pattern that is a parameter."""

    name: str
    converter: Converter


# Without the methods that nothing calls, because creating them takes as long as importing a module.
@dataclasses.dataclass(slots=True, eq=False, repr=False)
class Pattern:
    """
    A parsed pattern.

    Attributes:
        text: As it was written, with the prefix of its inclusion.
        segments: Literal text or a parameter each; the last is ``""`` if the pattern ends with a slash.
        parameters: The parameters' names in order.
    """

    text: str
    segments: tuple[str | Parameter, ...]
    parameters: tuple[str, ...] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        names = tuple(segment.name for segment in self.segments if isinstance(segment, Parameter))
        self.parameters = names
        for name in names:
            if names.count(name) > 1:
                raise RoutingError(f"pattern {self.text!r} has the parameter {name!r} more than once")
        for segment in self.segments[:-1]:
            if isinstance(segment, Parameter) and segment.converter is _PATH:
                raise RoutingError(
                    f"pattern {self.text!r}: {{{segment.name}:path}} takes the rest of the path, so it must be last"
                )

    @property
    def converters(self) -> dict[str, Converter]:
        """The converter of each parameter."""
        return {segment.name: segment.converter for segment in self.segments if isinstance(segment, Parameter)}

    @staticmethod
    def check(text: object) -> None:
        """Raise ``TypeError`` unless ``text`` is a ``str``: a decorator without parentheses gets the view."""
        if not isinstance(text, str):
            raise TypeError(f'expected a pattern in parentheses, such as @app.route("/chat"), got {text!r}')

    @classmethod
    def parse(cls, text: str, converters: Converters) -> "Pattern":
        """
        Parse ``text``.

        Raises:
            TypeError: It is not a ``str``.
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

    def format(self, /, **params: Any) -> str:
        """
        The percent-encoded path for these parameters.

        Returns:
            A path that begins with exactly one slash and that the pattern matches.

        Raises:
            RoutingError: A parameter is missing or unknown, or its converter would not accept the value back.
        """
        problems = [f"{name!r} is missing" for name in self.parameters if name not in params]
        problems += [
            f"{name!r} is unknown{_hint(name, self.parameters)}" for name in params if name not in self.parameters
        ]
        if problems:
            raise RoutingError(f"parameters of {self.text!r}: {', '.join(problems)}")
        path = "/" + "/".join(
            encode_path(_format_value(segment, params[segment.name]), keep_slashes=segment.converter is _PATH)
            if isinstance(segment, Parameter)
            else encode_path(segment)
            for segment in self.segments
        )
        if path.startswith("//"):
            raise RoutingError(f"{path!r} from {self.text!r} would name another host; strip the value's leading slash")
        return path


def _parse_segment(segment: str, converters: Converters) -> str | Parameter:
    if parameter := _PARAMETER.fullmatch(segment):
        name, converter = parameter.groups()
        if not name.isidentifier():
            raise RoutingError(f"expected an identifier as a parameter's name, such as {{room}}, got {segment}")
        return Parameter(name, converters.get("str" if converter is None else converter))
    if "{" in segment or "}" in segment:
        if _PARAMETER.search(segment):
            raise RoutingError(f"a parameter is a whole segment; write {{name}} for {segment} and split the value")
        raise RoutingError(f"unbalanced or nested braces in {segment}; a parameter is written {{name}} or {{name:int}}")
    if angle := _ANGLE_PARAMETER.fullmatch(segment):
        converter, name = angle.groups()
        raise RoutingError(f"write {{{name}{':' + converter if converter else ''}}} for {segment}")
    if encoded := _PERCENT_ENCODED.search(segment):
        raise RoutingError(f"patterns are written decoded; write the character itself for {encoded[0]}")
    if problem := _unreachable(segment):
        raise RoutingError(f"no client can request the segment {segment!r}: it {problem}")
    return segment


def _format_value(parameter: Parameter, value: Any) -> str:
    name, converter = parameter
    try:
        text = converter.format(value)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise RoutingError(f"expected a value of converter {converter.name!r} as {name!r}: {error}") from None
    try:
        shown = repr(value)[:80]
    except ValueError:  # an int with more digits than CPython prints
        shown = f"this {type(value).__name__}"
    if value is None or not converter.accepts(text):
        raise RoutingError(f"{name!r} cannot be {shown}: converter {converter.name!r} would not accept it back")
    for segment in text.split("/") if converter is _PATH else [text]:
        if problem := _unreachable(segment):
            raise RoutingError(f"{name!r} cannot be {shown}: {segment!r} in a path {problem}")
    return text


def _unreachable(segment: str) -> str:
    """Why no request can have this segment, or nothing."""
    if segment in (".", ".."):
        return "is resolved away by clients (RFC 3986 §5.2.4)"
    if "\0" in segment:
        return "contains NUL"
    return "contains a lone surrogate" if any("\ud800" <= each <= "\udfff" for each in segment) else ""


def _hint(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or else the known names."""
    names = sorted(known)
    shown = ", ".join([*names[:10], "…"] if len(names) > 10 else names)
    return did_you_mean(name, known) or (f"; known: {shown}" if shown else "")


# Routes

# In place of a method, which is in upper case.
_WEBSOCKET = "WebSocket"


@dataclasses.dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Route:
    """
    A registered route.

    Attributes:
        parsed: Its pattern.
        kind: ``"http"`` or ``"websocket"``.
        methods: In upper case, ``HEAD`` with ``GET``; empty for a WebSocket.
        name: For ``url_for``.
        is_named: Whether ``name`` was given, and is not the default name.
        endpoint: Whatever was registered; the router does not look at it.
    """

    parsed: Pattern
    kind: Kind
    methods: frozenset[str]
    name: str | None
    is_named: bool
    endpoint: Any

    @property
    def path(self) -> str:
        """The pattern's text under Starlette's name, for middleware that labels by route."""
        return self.parsed.text

    @property
    def path_format(self) -> str:
        """``path`` without converters, such as ``/users/{id}``: FastAPI's name."""
        parts = (part if isinstance(part, str) else f"{{{part.name}}}" for part in self.parsed.segments)
        return "/" + "/".join(parts)


class Match(NamedTuple):
    """A route that answers, and the values of its parameters. The empty dict is shared: don't change it."""

    route: Route
    params: dict[str, Any]


class Mounted(NamedTuple):
    """An app mounted above a path that no route answers. ``prefix`` is decoded, ``""`` for the root."""

    endpoint: Any
    prefix: str

    @property
    def path(self) -> str:
        """As ``Route.path``: all paths below the mount have one label."""
        return self.prefix or "/"

    @property
    def path_format(self) -> str:
        """As ``Route.path_format``."""
        return self.path


class Miss(NamedTuple):
    """
    No route answers.

    Attributes:
        allow: The methods of all HTTP routes at this path: for 405, and for the answer to OPTIONS.
        websocket: This path has a WebSocket route.
        redirect: The other slash form of the path, encoded and without root path, if only that one has a route.
            Begins with exactly one slash.
    """

    allow: frozenset[str]
    websocket: bool
    redirect: str | None


class _Node:
    """One node of the tree: the next segments, and the routes that end here."""

    __slots__ = ("http", "literal", "mount", "parameters", "websocket")

    def __init__(self) -> None:
        self.literal: dict[str, _Node] = {}
        self.parameters: list[tuple[Converter, _Node]] = []  # in the order in which they are tried
        self.http: dict[str, Route] = {}
        self.websocket: Route | None = None
        self.mount: Mounted | None = None

    def answer(self, kind: Kind, method: str) -> Route | None:
        return self.http.get(method) if kind == "http" else self.websocket


class Router:
    """
    The routes and mounts of an app. Register first; ``resolve`` may then be called from anywhere.

    Args:
        redirect_slashes: Whether a path that exists only with, or only without, a trailing slash is a ``redirect``.
            Default: true, as in Werkzeug and Starlette.

    Attributes:
        converters: May be added to before the patterns that use them.
        routes: In the order of registration, with the included ones; don't change it.
        mounts: Likewise.
    """

    def __init__(self, *, redirect_slashes: bool = True) -> None:
        self.redirect_slashes = redirect_slashes
        self.converters: Converters = Converters()
        self.routes: list[Route] = []
        self.mounts: list[Mounted] = []
        self._root = _Node()
        # Routes without parameters, by method and path: ``_walk`` would try them first, and most requests want them.
        self._literal: dict[tuple[str, str], Match] = {}
        self._names: dict[str, list[Route]] = {}

    def add(
        self,
        pattern: str,
        endpoint: Any,
        *,
        kind: Kind,
        methods: Iterable[str] = (),
        name: str | None = None,
        default_name: str | None = None,
    ) -> Route:
        """
        Register a route.

        Args:
            pattern: Such as ``/chat/{room}``.
            endpoint: Returned in ``Match.route``.
            kind: ``"http"`` or ``"websocket"``; a pattern may have both.
            methods: Of an HTTP route, at least one; ``GET`` brings ``HEAD``. None for a WebSocket.
            name: For ``url_for``. Several patterns may have it if the names of their parameters differ.
            default_name: The name if ``name`` is not given. It may be shared: only using it is then an error.

        Raises:
            RoutingError: The pattern, a method or the name is invalid, or another route answers the same requests.
        """
        if isinstance(methods, str):
            raise RoutingError(f"expected a list of methods, such as [{methods!r}], got {methods!r}")
        verbs = frozenset(method.upper() for method in methods)
        for verb in verbs:
            if not re.fullmatch(TOKEN, verb):  # RFC 9110 §9.1
                raise RoutingError(f"pattern {pattern!r}: expected an HTTP method, got {verb!r}")
        if bool(verbs) != (kind == "http"):
            needed = "at least one method" if kind == "http" else "no methods"
            raise RoutingError(f"pattern {pattern!r}: a route of kind {kind!r} takes {needed}")
        route = Route(
            parsed=Pattern.parse(pattern, self.converters),
            kind=kind,
            methods=verbs | {"HEAD"} if "GET" in verbs else verbs,
            name=default_name if name is None else name,
            is_named=name is not None,
            endpoint=endpoint,
        )
        self._insert(route)
        return route

    def mount(self, prefix: str, endpoint: Any) -> None:
        """
        Let ``endpoint`` answer every request below ``prefix`` that no route answers.

        Args:
            prefix: Literal text such as ``/admin``; ``""`` or ``/`` takes all.
            endpoint: Returned in ``Mounted``.

        Raises:
            RoutingError: The prefix is invalid, has a parameter, or is taken.
        """
        parsed = self._parse_prefix(prefix)
        node = self._descend(parsed)
        if node.mount is not None:
            raise RoutingError(f"an app is mounted at {prefix!r} already")
        node.mount = Mounted(endpoint, parsed.text)
        self.mounts.append(node.mount)

    def include(self, other: "Router", prefix: str = "") -> None:
        """
        Add the current routes and mounts of ``other``, with the converters they use.

        Args:
            other: Stays as it is.
            prefix: Literal text such as ``/admin``, put before each of their patterns. Default: none.

        Raises:
            RoutingError: As ``add`` and ``mount``.
        """
        before = self._parse_prefix(prefix)
        for route in list(other.routes):
            below = Pattern(before.text + route.path, before.segments + route.parsed.segments)
            self._insert(dataclasses.replace(route, parsed=below))
        for mounted in list(other.mounts):
            self.mount(before.text + mounted.prefix, mounted.endpoint)

    def resolve(self, kind: Kind, method: str, path: str, segments: list[str] | None = None) -> Match | Mounted | Miss:
        """
        Find the route or mount of a path. Takes time in proportion to the path and the patterns.

        Args:
            kind: ``"http"`` or ``"websocket"``.
            method: In upper case; ignored for a WebSocket.
            path, segments: From ``path_of``.

        Raises:
            Exception: Only what a converter raises.
        """
        if segments is None:
            literal = self._literal.get((method if kind == "http" else _WEBSOCKET, path))
            if literal is not None:
                return literal
            segments = path.split("/")[1:]
        found = self._walk(kind, method, segments)
        if isinstance(found, Match) or kind == "websocket" or not self.redirect_slashes:
            return found
        if isinstance(found, Mounted):
            if found.prefix.count("/") == len(segments):  # at the prefix itself: its pages are below the slash
                return Miss(frozenset(), False, _join([*segments, ""]))
        elif segments and not (found.allow or found.websocket):
            other_form = segments[:-1] if segments[-1] == "" else [*segments, ""]
            if isinstance(self._walk(kind, method, other_form), Match):
                return found._replace(redirect=_join(other_form))
        return found

    def url_for(self, name: str, /, **params: Any) -> str:
        """
        The percent-encoded path, without root path, of the route with that name and these parameters.

        Raises:
            RoutingError: No route has that name, or several have it, or a parameter is missing, unknown or refused.
        """
        named = self._names.get(name)
        if named is None:
            raise RoutingError(f"no route is called {name!r}{_hint(name, self._names)}")
        candidates = [route for route in named if route.is_named] or named
        patterns = {route.path: route.parsed for route in candidates}
        fitting = {text: pattern for text, pattern in patterns.items() if set(pattern.parameters) == params.keys()}
        if len(fitting) > 1:
            raise RoutingError(f"{name!r} may be {' or '.join(fitting)}; register one of them with its own name=")
        if not fitting and len(patterns) > 1:
            given = ", ".join(params) or "none"
            raise RoutingError(f"{name!r} expects the parameters of {' or '.join(patterns)}, got {given}")
        (pattern,) = (fitting or patterns).values()
        return pattern.format(**params)

    def _parse_prefix(self, prefix: str) -> Pattern:
        prefix = prefix.removesuffix("/")
        if prefix.endswith("/"):
            raise RoutingError(f"the prefix {prefix + '/'!r} ends with two slashes; write it without them")
        parsed = Pattern.parse(prefix, self.converters) if prefix else Pattern("", ())
        if parsed.parameters:
            raise RoutingError(
                f"the prefix {prefix!r} must have no parameters; write them in the pattern of each route"
            )
        return parsed

    def _descend(self, pattern: Pattern) -> _Node:
        """The node of ``pattern``; missing nodes are created. An empty node changes no answer."""
        node = self._root
        for segment in pattern.segments:
            if isinstance(segment, str):
                node = node.literal.setdefault(segment, _Node())
                continue
            child = next((child for converter, child in node.parameters if converter == segment.converter), None)
            if child is None:
                child = _Node()
                node.parameters.append((segment.converter, child))
                node.parameters.sort(key=lambda entry: self.converters.rank(entry[0]))
            node = child
        return node

    def _insert(self, route: Route) -> None:
        names = set(route.parsed.parameters)
        for other in self._names.get(route.name or "", []):
            is_same = set(other.parsed.parameters) == names and other.path != route.path
            if is_same and route.is_named and other.is_named:
                raise RoutingError(
                    f"{route.name!r} is the name of {other.path!r} already, and {route.path!r} has the same "
                    "parameters, so url_for could not tell them apart; give one another name"
                )
        node = self._descend(route.parsed)
        answers = sorted(route.methods) or [_WEBSOCKET]
        for what in answers:
            if taken := node.answer(route.kind, what):
                raise RoutingError(
                    f"{what} {route.path!r} can never be reached: {taken.path!r} answers the same requests"
                )
        if not names:
            self._literal.update(dict.fromkeys([(what, route.path) for what in answers], Match(route, {})))
        if route.kind == "http":
            node.http.update(dict.fromkeys(route.methods, route))
        else:
            node.websocket = route
        if route.name is not None:
            self._names.setdefault(route.name, []).append(route)
        self.routes.append(route)

    def _walk(self, kind: Kind, method: str, segments: list[str]) -> Match | Mounted | Miss:
        allow: set[str] = set()
        websocket = False
        at_prefix: Mounted | None = None
        # What is still to be tried, best last: a node, how many segments lead to its parent, the values so far, and
        # the converter, or the mount, that takes what comes next.
        untried: list[tuple[_Node, int, tuple[Any, ...], Converter | Mounted | None]] = [(self._root, 0, (), None)]
        while untried:
            node, depth, values, taker = untried.pop()
            if taker is not None:
                if isinstance(taker, Mounted):
                    return taker
                if taker is _PATH:
                    values = (*values, "/".join(segments[depth:]))
                    depth = len(segments)
                else:
                    value = taker.read(segments[depth])
                    if value is _REFUSED:
                        continue
                    values = (*values, value)
                    depth += 1
            if depth < len(segments):
                if node.mount is not None:
                    untried.append((node, depth, values, node.mount))
                for converter, child in reversed(node.parameters):
                    untried.append((child, depth, values, converter))
                literal = node.literal.get(segments[depth])
                if literal is not None:
                    untried.append((literal, depth + 1, values, None))
                continue
            route = node.answer(kind, method)
            if route is not None:
                return Match(route, dict(zip(route.parsed.parameters, values, strict=True)))
            allow.update(node.http)
            websocket = websocket or node.websocket is not None
            at_prefix = at_prefix or (node.mount if segments else None)
        return at_prefix or Miss(frozenset(allow), websocket, None)
