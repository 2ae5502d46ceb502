"""
The tree of routes: which one answers a request, which ones conflict, and the way back with ``url_for``.

Routes stand in a tree of segments. A request walks it depth first: at each node the literal segment, then converters in
their order, then a plain ``{name}``, then ``{name:path}``, then a mount. It goes on until a route has the kind and the
method that are asked for. In a tree each node has one way to it, so it is visited at most once per request.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, TypeAlias

from microws.errors import RoutingError
from microws.routing.paths import join_path
from microws.routing.patterns import REFUSED, Converter, Converters, Pattern, nearest

__all__ = ["Kind", "Match", "Miss", "Mounted", "Route", "Router"]

Kind: TypeAlias = Literal["http", "websocket"]

# RFC 9110 §5.6.2, §9.1: a method is a token.
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# In place of a method, which is in upper case.
_WEBSOCKET = "WebSocket"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """
    What was registered.

    Attributes:
        parsed: The pattern, taken apart.
        kind: ``"http"`` or ``"websocket"``.
        methods: In upper case, ``HEAD`` with ``GET``; empty for a WebSocket.
        name: For ``url_for``.
        is_named: Whether ``name`` was given, and is not the default name.
        endpoint: Whatever was registered; the router never looks at it.
    """

    parsed: Pattern
    kind: Kind
    methods: frozenset[str]
    name: str | None
    is_named: bool
    endpoint: Any

    @property
    def pattern(self) -> str:
        """The pattern's text, with the prefix of an inclusion."""
        return self.parsed.text

    @property
    def path(self) -> str:
        """``pattern`` by the name that Starlette gives it, for middleware that labels by route."""
        return self.parsed.text

    @property
    def path_format(self) -> str:
        """``path`` without converters, such as ``/users/{id}``: FastAPI's name."""
        parts = (part if isinstance(part, str) else f"{{{part.name}}}" for part in self.parsed.segments)
        return "/" + "/".join(parts)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the pattern's parameters in order."""
        return self.parsed.parameters


class Match(NamedTuple):
    """A route that answers, and the values of its parameters. Where it has none the dict is the router's own."""

    route: Route
    params: dict[str, Any]


class Mounted(NamedTuple):
    """No route answers, but an app is mounted above the path. ``prefix`` is decoded, ``""`` for the root."""

    endpoint: Any
    prefix: str

    @property
    def path(self) -> str:
        """As of ``Route``: all paths below the mount are one label."""
        return self.prefix or "/"

    @property
    def path_format(self) -> str:
        """As of ``Route``."""
        return self.path


class Miss(NamedTuple):
    """
    Nothing answers.

    Attributes:
        allow: The methods of every HTTP route at this path: for 405, and for the answer to OPTIONS.
        websocket: There is a WebSocket route at this path.
        redirect: The encoded path, without root path, to which HTTP is to be sent: the other slash form. Begins with
            exactly one slash. Only where nothing stands at this path.
    """

    allow: frozenset[str]
    websocket: bool
    redirect: str | None


class _Node:
    """One place in the tree: what may come next, and what stands here."""

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
    The routes and mounts of an app. Registering comes first; ``resolve`` may then be called from anywhere.

    Args:
        redirect_slashes: Whether a path that only exists with, or without, a trailing slash is a ``redirect``.
            Default: true, as in Werkzeug and Starlette.

    Attributes:
        converters: May be added to before the patterns that use them.
        routes: In the order of registration, included ones among them; not to be changed.
        mounts: Likewise.
    """

    def __init__(self, *, redirect_slashes: bool = True) -> None:
        self.redirect_slashes = redirect_slashes
        self.converters = Converters()
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
            endpoint: Given back in ``Match.route``.
            kind: ``"http"`` or ``"websocket"``; a pattern may carry both.
            methods: Of an HTTP route, at least one; ``GET`` brings ``HEAD``. None for a WebSocket.
            name: For ``url_for``. A name may stand for several patterns if their parameters' names differ.
            default_name: The name where ``name`` is not given. It may be shared: only using it is then an error.

        Raises:
            RoutingError: The pattern, a method or the name cannot be, or another route answers the same requests.
        """
        if isinstance(methods, str):
            raise RoutingError(f"methods is a list, such as [{methods!r}], not {methods!r}")
        verbs = frozenset(method.upper() for method in methods)
        for verb in verbs:
            if not _METHOD.fullmatch(verb):
                raise RoutingError(f"pattern {pattern!r}: {verb!r} is no HTTP method")
        if bool(verbs) != (kind == "http"):
            needed = "at least one method" if kind == "http" else "no methods"
            raise RoutingError(f"pattern {pattern!r}: a route of kind {kind!r} takes {needed}")
        if "GET" in verbs:
            verbs |= {"HEAD"}
        route = Route(
            parsed=Pattern.parse(pattern, self.converters),
            kind=kind,
            methods=verbs,
            name=default_name if name is None else name,
            is_named=name is not None,
            endpoint=endpoint,
        )
        self._insert(route)
        return route

    def mount(self, prefix: str, endpoint: Any) -> None:
        """
        Give every request below ``prefix`` that no route there answers to ``endpoint``.

        Args:
            prefix: Literal text such as ``/admin``; ``""`` or ``/`` takes all.
            endpoint: Given back in ``Mounted``.

        Raises:
            RoutingError: The prefix cannot be, has a parameter, or is taken.
        """
        parsed = self._parse_prefix(prefix)
        if parsed is not None and parsed.parameters:
            raise RoutingError(f"mount at {prefix!r}: a prefix has no parameters; write {{rest:path}} in a route")
        node = self._root if parsed is None else self._descend(parsed)
        if node.mount is not None:
            raise RoutingError(f"something is mounted at {prefix!r} already")
        node.mount = Mounted(endpoint, "" if parsed is None else parsed.text)
        self.mounts.append(node.mount)

    def include(self, other: "Router", prefix: str = "") -> None:
        """
        Add the routes and mounts that ``other`` has now, with the converters they use.

        Args:
            other: Left as it is.
            prefix: A pattern, put before each of theirs; its parameters are theirs too. Default: none.

        Raises:
            RoutingError: As ``add`` and ``mount``.
        """
        parsed = self._parse_prefix(prefix)
        for route in list(other.routes):
            self._insert(dataclasses.replace(route, parsed=route.parsed.below(parsed)))
        for mounted in list(other.mounts):
            self.mount(("" if parsed is None else parsed.text) + mounted.prefix, mounted.endpoint)

    def resolve(self, kind: Kind, method: str, path: str, segments: list[str] | None = None) -> Match | Mounted | Miss:
        """
        Find what answers. Takes time in proportion to the path and the patterns; raises only what a converter raises.

        Args:
            kind: ``"http"`` or ``"websocket"``.
            method: In upper case; not looked at for a WebSocket.
            path, segments: From ``path_of``.
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
            if found.prefix.count("/") == len(segments):  # at the prefix itself: its pages lie below the slash
                return Miss(frozenset(), False, join_path([*segments, ""]))
        elif segments and not (found.allow or found.websocket):
            other_form = segments[:-1] if segments[-1] == "" else [*segments, ""]
            if isinstance(self._walk(kind, method, other_form), Match):
                return found._replace(redirect=join_path(other_form))
        return found

    def url_for(self, name: str, /, **params: Any) -> str:
        """
        The percent-encoded path, without root path, of the route of that name that has these parameters.

        Raises:
            RoutingError: There is no such route or there are several, or a parameter is missing, unknown or refused.
        """
        named = self._names.get(name)
        if named is None:
            raise RoutingError(f"no route is called {name!r}{nearest(name, self._names)}")
        candidates = [route for route in named if route.is_named] or named
        patterns = {route.pattern: route.parsed for route in candidates}
        fitting = {text: pattern for text, pattern in patterns.items() if set(pattern.parameters) == params.keys()}
        if len(fitting) > 1:
            raise RoutingError(f"{name!r} may be {' or '.join(fitting)}; register the one that is meant with its name=")
        if not fitting and len(patterns) > 1:
            given = ", ".join(params) or "none"
            raise RoutingError(f"{name!r} takes the parameters of {' or '.join(patterns)}; given: {given}")
        (pattern,) = (fitting or patterns).values()
        return pattern.format(**params)

    def _parse_prefix(self, prefix: str) -> Pattern | None:
        prefix = prefix.removesuffix("/")
        if prefix.endswith("/"):
            raise RoutingError(f"the prefix {prefix + '/'!r} ends with two slashes; write it without")
        return Pattern.parse(prefix, self.converters) if prefix else None

    def _descend(self, pattern: Pattern) -> _Node:
        """The node of ``pattern``, made where it is missing. A node at which nothing stands changes no answer."""
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
        namesakes = [] if route.name is None else self._names.get(route.name, [])
        for other in namesakes:
            is_same = set(other.parameters) == set(route.parameters) and other.pattern != route.pattern
            if is_same and route.is_named and other.is_named:
                raise RoutingError(
                    f"{route.name!r} is the name of {other.pattern!r} already, and {route.pattern!r} has the same "
                    f"parameters, so url_for could not tell them apart; give one another name"
                )
        node = self._descend(route.parsed)
        answers = sorted(route.methods) or [_WEBSOCKET]
        for what in answers:
            if taken := node.answer(route.kind, what):
                raise RoutingError(
                    f"{what} {route.pattern!r} can never be reached: {taken.pattern!r} answers the same requests"
                )
        if not route.parameters:
            self._literal.update(dict.fromkeys([(what, route.pattern) for what in answers], Match(route, {})))
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
        # What is still to be tried, best last: a node, how many segments lead to its parent's, the values so far, and
        # the converter, or the mount, that takes what comes next.
        untried: list[tuple[_Node, int, tuple[Any, ...], Converter | Mounted | None]] = [(self._root, 0, (), None)]
        while untried:
            node, depth, values, taker = untried.pop()
            if taker is not None:
                if isinstance(taker, Mounted):
                    return taker
                if taker.takes_rest:
                    values = (*values, "/".join(segments[depth:]))
                    depth = len(segments)
                else:
                    value = taker.read(segments[depth])
                    if value is REFUSED:
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
                return Match(route, dict(zip(route.parameters, values, strict=True)))
            allow.update(node.http)
            websocket = websocket or node.websocket is not None
            at_prefix = at_prefix or (node.mount if segments else None)
        return at_prefix or Miss(frozenset(allow), websocket, None)
