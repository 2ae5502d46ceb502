"""What an app consists of: its routes, topics and limits, for whoever documents them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from inspect import cleandoc, isroutine
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

from microws.callables import function_of, layers_of
from microws.event_stream import EventStream
from microws.hub import TopicSettings
from microws.routing import Mounted, Parameter, Route, Router
from microws.settings import AppSettings
from microws.views import WebSocketEndpoint

__all__ = ["Description", "RouteDescription", "TopicDescription", "describe"]

RouteKind: TypeAlias = Literal["http", "sse", "websocket", "mount"]
# A name, such as "text", or ``{"schema": …}``, a JSON Schema whose ``$ref`` are names of ``Description.schemas``.
MessageType: TypeAlias = str | dict[str, Any]

_PACKAGE: Final = Path(__file__).parent
_PARAMETERS: Final[dict[Any, dict[str, Any]]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    UUID: {"type": "string", "format": "uuid"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteDescription:
    """
    A route, or a mounted app.

    Attributes:
        kind: ``"sse"`` is an HTTP route whose view returns an ``EventStream``.
        methods: In alphabetical order; none of a WebSocket or mount.
        pattern: With the prefixes of all mounts.
        name: For ``url_for``.
        view: Name of the view, or of the mounted app.
        file, line: Where the view begins; of a directory of files, the directory. ``None``: not known.
        doc: Docstring of the view.
        parameters: Of the path: ``{"name": …, "converter": …, "schema": …}``.
        depth: How many mounts are above.
        receives, sends: The messages of a WebSocket.
        subprotocols, subscribe, on_invalid, gaps: As given to ``App.websocket_route``.
        login: Whether the first message logs in.
    """

    kind: RouteKind
    pattern: str
    methods: tuple[str, ...] = ()
    name: str | None = None
    view: str = ""
    file: str | None = None
    line: int | None = None
    doc: str | None = None
    parameters: tuple[dict[str, Any], ...] = ()
    depth: int = 0
    receives: MessageType | None = None
    sends: MessageType | None = None
    subprotocols: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    on_invalid: str | None = None
    gaps: bool = False
    login: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicDescription:
    """
    What ``App.topic`` sets.

    Attributes:
        pattern: A topic in which ``*`` matches any characters.
        queue, overflow, history, ttl: As of ``App.topic``.
    """

    pattern: str
    queue: int
    overflow: str
    history: int
    ttl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """
    An app.

    Attributes:
        title: Name of the app's directory or module.
        routes: In the order of registration; those of mounted apps after the mount.
        topics: Of ``App.topic``.
        limits: ``max_message_size`` and ``max_body_size``, in bytes.
        schemas: JSON Schemas by name.
    """

    title: str
    routes: tuple[RouteDescription, ...]
    topics: tuple[TopicDescription, ...]
    limits: dict[str, int]
    schemas: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """A dict that JSON can represent, in a stable order, without what a route does not have."""
        return {
            "title": self.title,
            "routes": [_fields(route) for route in self.routes],
            "topics": [_fields(topic) for topic in self.topics],
            "limits": self.limits,
            "schemas": self.schemas,
        }


def _fields(described: RouteDescription | TopicDescription) -> dict[str, Any]:
    values = ((field.name, getattr(described, field.name)) for field in fields(described))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values if value is not None}


def describe(
    title: str, router: Router, *, settings: AppSettings, topics: Iterable[tuple[str, TopicSettings]]
) -> Description:
    """
    Describe an app.

    Args:
        title: Its name.
        router: Its routes.
        settings: Its limits.
        topics: Patterns and their settings.
    """
    limits = settings.limits
    return Description(
        title=title,
        routes=tuple(_routes(router)),
        topics=tuple(
            TopicDescription(
                pattern=pattern, queue=each.queue, overflow=each.overflow, history=each.history, ttl=each.ttl
            )
            for pattern, each in topics
        ),
        limits={"max_message_size": limits.max_message_size, "max_body_size": settings.max_body_size},
        schemas={},
    )


def _routes(router: Router) -> Iterator[RouteDescription]:
    for route in router.routes:
        yield _route(route)
    for mounted in router.mounts:
        yield _mount(mounted)
        below = getattr(mounted.endpoint.app, "_description", None)  # it may be another framework's
        for route in below().routes if below else ():
            yield replace(route, pattern=mounted.prefix + route.pattern, depth=route.depth + 1)


def _route(route: Route) -> RouteDescription:
    view = route.endpoint.function
    name, file, line = _place(view)
    described = RouteDescription(
        kind="http",
        pattern=route.path,
        methods=tuple(sorted(route.methods)),
        name=route.name,
        view=name,
        file=file,
        line=line,
        doc=_doc(view),
        parameters=tuple(_parameter(each) for each in route.parsed.segments if isinstance(each, Parameter)),
    )
    if route.kind == "http":
        return replace(described, kind="sse") if "GET" in route.methods and _is_event_stream(view) else described
    endpoint: WebSocketEndpoint = route.endpoint
    return replace(
        described,
        kind="websocket",
        receives=endpoint.receive_type,
        sends=endpoint.send_type,
        subprotocols=tuple(endpoint.subprotocols),
        subscribe=endpoint.topics,
        on_invalid=endpoint.on_invalid,
        gaps=endpoint.gaps,
        login=endpoint.login is not None,
    )


def _mount(mounted: Mounted) -> RouteDescription:
    app = mounted.endpoint.app
    name, file, line = _place(app) if isroutine(app) else (type(app).__name__, None, None)
    return RouteDescription(kind="mount", pattern=mounted.path, view=name, file=file, line=line)


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema = _PARAMETERS.get(parameter.converter.type, {"type": "string"})
    return {"name": parameter.name, "converter": parameter.converter.name, "schema": schema}


def _place(view: Any) -> tuple[str, str | None, int | None]:
    """The name of a view or an app, and where it is written."""
    code = getattr(function_of(layers_of(view)[-1]), "__code__", None)
    name = getattr(view, "__name__", None) or type(view).__name__
    if code is None:
        return name, None, None
    file = Path(code.co_filename)
    if file.is_relative_to(_PACKAGE):
        directory = getattr(getattr(view, "__self__", None), "directory", None)  # of App.static
        return name.lstrip("_"), directory and str(directory), None
    return name, str(file), code.co_firstlineno


def _doc(view: Any) -> str | None:
    doc = getattr(layers_of(view)[-1], "__doc__", None)
    return cleandoc(doc) if isinstance(doc, str) and isroutine(layers_of(view)[-1]) else None


def _is_event_stream(view: Any) -> bool:
    """Whether a view names ``EventStream``, in its code or as what it returns."""
    function = function_of(layers_of(view)[-1])
    known = getattr(function, "__globals__", {})
    names = getattr(getattr(function, "__code__", None), "co_names", ())
    returned = getattr(function, "__annotations__", {}).get("return")
    return returned in (EventStream, "EventStream") or any(
        name == "EventStream" or known.get(name) is EventStream for name in names
    )
