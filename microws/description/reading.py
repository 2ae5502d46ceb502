"""Read what an app consists of: its routes, topics and limits."""

import dis
from collections.abc import Iterable, Iterator
from dataclasses import replace
from inspect import cleandoc, isroutine
from itertools import pairwise
from pathlib import Path
from string import Formatter
from types import CodeType
from typing import Any, Final
from uuid import UUID

from microws.annotations import statuses_of_return
from microws.callables import function_of, layers_of
from microws.description.model import Credential, Description, MessageType, RouteDescription, TopicDescription
from microws.description.schemas import Schemas
from microws.errors import HTTPException
from microws.event_stream import EventStream
from microws.hooks import Hooks
from microws.hub import TopicSettings, expression_of
from microws.rates import Rate
from microws.responses import Response
from microws.routing import Mounted, Parameter, Route, Router
from microws.settings import AppSettings
from microws.views import HTTPEndpoint, WebSocketEndpoint

__all__ = ["describe"]

_PACKAGE: Final = Path(__file__).parents[1]
# Both converters take digits only.
_PARAMETERS: Final[dict[Any, dict[str, Any]]] = {
    int: {"type": "integer", "minimum": 0},
    float: {"type": "number", "minimum": 0},
    UUID: {"type": "string", "format": "uuid"},
}
# The errors that microws itself responds with.
_STATUSES: Final = (400, 401, 403, 404, 413, 421, 426, 500, 503)
_CREDENTIALS: Final[dict[str, Credential]] = {"bearer": "bearer", "session": "session", "take_ticket": "ticket"}


def describe(
    title: str,
    router: Router,
    *,
    settings: AppSettings,
    topics: Iterable[tuple[str, TopicSettings]],
    schemas: Schemas | None = None,
) -> Description:
    """
    Describe an app.

    Args:
        title: Its name.
        router: Its routes.
        settings: Its limits.
        topics: Patterns and their settings.
        schemas: Those of the app that mounts it.
    """
    schemas = Schemas() if schemas is None else schemas
    described_topics = tuple(_topic(pattern, each, schemas) for pattern, each in topics)
    limits = settings.limits
    return Description(
        title=title,
        routes=tuple(_routes(router, settings, described_topics, schemas)),
        topics=described_topics,
        limits={"max_message_size": limits.max_message_size, "max_body_size": settings.max_body_size},
        schemas=schemas.components,
    )


def _topic(pattern: str, settings: TopicSettings, schemas: Schemas) -> TopicDescription:
    return TopicDescription(
        pattern=pattern,
        queue=settings.queue,
        overflow=settings.overflow,
        history=settings.history,
        ttl=settings.ttl,
        messages=schemas.message(settings.value_type, "sent"),
    )


def _routes(
    router: Router, settings: AppSettings, topics: tuple[TopicDescription, ...], schemas: Schemas
) -> Iterator[RouteDescription]:
    for route in router.routes:
        yield _route(route, settings, topics, schemas)
    checks_host = settings.allowed_hosts is not None
    for mounted in router.mounts:
        yield _mount(mounted)
        below = getattr(mounted.endpoint.app, "_description", None)  # it may be another framework's
        for described in below(schemas).routes if below else ():
            is_outermost = described.kind == "mount" and described.pattern == "/"
            yield replace(
                described,
                pattern=mounted.prefix + ("" if is_outermost else described.pattern) or "/",
                depth=described.depth + 1,
                checks_host=checks_host or described.checks_host,
            )


def _route(
    route: Route, settings: AppSettings, topics: tuple[TopicDescription, ...], schemas: Schemas
) -> RouteDescription:
    endpoint: HTTPEndpoint | WebSocketEndpoint = route.endpoint
    view = endpoint.function
    name, file, line = _place(view)
    described = RouteDescription(
        kind="sse" if "GET" in route.methods and _is_event_stream(view) else "http",
        pattern=route.path,
        methods=tuple(sorted(route.methods)),
        name=route.name,
        view=name,
        file=file,
        line=line,
        doc=_doc(view),
        parameters=tuple(_parameter(each) for each in route.parsed.segments if isinstance(each, Parameter)),
        max_size=settings.max_body_size,
        checks_host=settings.allowed_hosts is not None,
        handled_errors=_handled_errors(endpoint.hooks),
        is_docs=getattr(function_of(view), "__module__", None) == "microws.docs_page",
    )
    if isinstance(endpoint, HTTPEndpoint):
        return replace(
            described,
            credentials=_credentials([*endpoint.hooks.before_request.chain, view], route.parsed.parameters),
            checks_host=described.checks_host and not endpoint.is_health_check,
            body=None if endpoint.body_type is None else schemas.json(endpoint.body_type, "received"),
            query=None if endpoint.query_type is None else schemas.json(endpoint.query_type, "received"),
            returns=schemas.returned(endpoint.return_type),
            statuses=statuses_of_return(layers_of(view), Response),
        )
    login = () if endpoint.login is None else (endpoint.login,)
    return replace(
        described,
        kind="websocket",
        max_size=settings.limits.max_message_size,
        credentials=_credentials([*endpoint.hooks.before_websocket.chain, *login, view], route.parsed.parameters),
        receives=schemas.message(endpoint.receive_type, "received", endpoint.receive_encoding),
        sends=schemas.message(endpoint.send_type, "sent", endpoint.send_encoding),
        delivers=tuple(_delivered(endpoint, topics, schemas)),
        subprotocols=tuple(endpoint.subprotocols),
        subscribe=endpoint.topics,
        on_invalid=endpoint.on_invalid,
        gaps=endpoint.gaps,
        origins=None if endpoint.origins is None else tuple(endpoint.origins),
        rate=endpoint.rate and _rate(endpoint.rate),
        login=endpoint.login is not None,
        error_close_code=settings.error_close_code,
    )


def _rate(rate: Rate) -> str:
    unit = "s" if rate.seconds == 1 else "min"
    return f"{rate.burst}/{unit}" + ("" if rate.excess == "wait" else f" {rate.excess}")


def _handled_errors(hooks: Hooks) -> tuple[int, ...]:
    return tuple(
        status
        for status in _STATUSES
        if hooks.find_handler(Exception() if status == 500 else HTTPException(status)) is not None
    )


def _credentials(functions: Iterable[Any], parameters: tuple[str, ...]) -> tuple[Credential, ...]:
    """What the functions read of their first argument that is not in the pattern, in their own code."""
    found = {name for each in functions for name in _attributes(function_of(layers_of(each)[-1]), parameters)}
    return tuple(credential for name, credential in _CREDENTIALS.items() if name in found)


def _attributes(function: Any, parameters: tuple[str, ...]) -> Iterator[str]:
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return
    first = [name for name in code.co_varnames[: code.co_argcount] if name not in ("self", *parameters)][:1]
    for loaded, used in pairwise(dis.get_instructions(code)):
        # Since Python 3.13, one instruction may load two names.
        names = loaded.argval if isinstance(loaded.argval, tuple) else (loaded.argval,)
        if loaded.opname.startswith("LOAD_") and [*names[-1:]] == first and used.opname.startswith("LOAD_"):
            yield str(used.argval)


def _delivered(
    endpoint: WebSocketEndpoint, topics: tuple[TopicDescription, ...], schemas: Schemas
) -> Iterator[MessageType]:
    fitting = {topic.pattern: topic for written in endpoint.topics for topic in _fitting(written, topics)}
    seen: list[MessageType] = []
    for topic in fitting.values():
        if topic.messages is not None and topic.messages not in seen:
            seen.append(topic.messages)
    yield from seen
    if endpoint.gaps or any(topic.history for topic in fitting.values()):
        yield schemas.gap_marker()
    if endpoint.on_invalid == "error":
        yield schemas.message_error()


def _fitting(subscribed: str, topics: tuple[TopicDescription, ...]) -> Iterator[TopicDescription]:
    """The settings that a topic of ``subscribe`` may have: which they are may depend on the parameters of the path."""
    # A parameter may be any text, and only a `*` fits it with certainty.
    parts = Formatter().parse(subscribed)
    template = "".join(literal + ("" if name is None else "\0") for literal, name, *_ in parts)
    for topic in topics:
        if _may_fit(topic.pattern, template):
            yield topic
        if expression_of(topic.pattern).fullmatch(template):
            break


def _may_fit(pattern: str, template: str) -> bool:
    """Whether one topic fits both: a ``*`` of the pattern and a NUL of the template stand for any text."""
    ends = len(pattern), len(template)
    untried, tried = [(0, 0)], set()
    while untried:
        place = i, j = untried.pop()
        if place == ends:
            return True
        if place in tried:
            continue
        tried.add(place)
        left, right = pattern[i : i + 1], template[j : j + 1]
        if left == "*" or right == "\0":
            untried += [(i + 1, j)] if left else []
            untried += [(i, j + 1)] if right else []
        elif left == right:
            untried.append((i + 1, j + 1))
    return False


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
