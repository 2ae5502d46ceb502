"""Apps with drawn routes, types and topics."""

import datetime
import decimal
import uuid
from contextlib import suppress
from dataclasses import make_dataclass
from typing import Annotated, Any, Literal, TypedDict, Union

import msgspec
import pydantic
from hypothesis import strategies as st
from msgspec import Meta

from microws import App, EventStream, Message, Request, RoutingError, WebSocket
from microws.codec import json_type, lists_in

__all__ = ["apps", "exact_types"]

# Those whose schema says all that is checked, and more.
_EXACT = st.sampled_from([
    *(str, int, float, bool, None, Any),
    Annotated[int, Meta(ge=0, lt=100, description="A number.")],
    Annotated[str, Meta(max_length=5, pattern="^[a-z]*$", examples=["abc"])],
    Literal["a", "b"],
    Annotated[float, Meta(gt=0, multiple_of=0.5)],
    Literal[1, None],
])  # fmt: skip
# The formats of JSON Schema are hints, and so is the encoding of bytes.
_SCALARS = _EXACT | st.sampled_from([bytes, uuid.UUID, datetime.datetime, datetime.date, decimal.Decimal])
# Some of them twice, so that names clash.
_NAMES = st.sampled_from(["Item", "Item", "Say", "Error", "GapMarker", "MessageError", "Größe", "GameSends"])
_FIELDS = st.lists(st.sampled_from(["a", "b", "größe", "discriminator", "prefixItems", "x_y"]), unique=True, max_size=3)


def _wider(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        inner.map(lambda each: list[each]),
        inner.map(lambda each: dict[str, each]),
        inner.map(lambda each: each | None if each is not None else each),
        st.tuples(inner, inner).map(lambda pair: tuple[pair]),
        _classes(inner),
    )


@st.composite
def _classes(draw: Any, inner: st.SearchStrategy[Any]) -> type[Any]:
    """A class with fields of drawn types."""
    name, fields = draw(_NAMES), [(field, draw(inner)) for field in draw(_FIELDS)]
    match draw(st.sampled_from(["struct", "array", "dataclass", "dict"])):
        case "struct":
            return msgspec.defstruct(name, fields, forbid_unknown_fields=draw(st.booleans()))
        case "array":
            return msgspec.defstruct(name, fields, array_like=True)
        case "dataclass":
            return make_dataclass(name, fields)
        case _:
            return TypedDict(name, dict(fields))


@st.composite
def _unions(draw: Any, scalars: st.SearchStrategy[Any], least: int = 2) -> Any:
    """A union of messages, which have different names."""
    wanted = st.sampled_from(["Say", "Move", "Item", "UserJoined"])
    names = draw(st.lists(wanted, unique=True, min_size=least, max_size=3))
    text = draw(st.sampled_from(["", "A é."]))
    members = [type(name, (Message,), {"__annotations__": {"a": draw(scalars)}, "__doc__": text}) for name in names]
    return Union[tuple(members)]  # noqa: UP007 - of a tuple


@st.composite
def _models(draw: Any) -> Any:
    """A model of pydantic: with a default, its schema depends on the direction."""
    inner = pydantic.create_model(draw(_NAMES), n=(int, draw(st.sampled_from([0, ...]))))
    outer = pydantic.create_model(draw(_NAMES), inner=(inner, ...), items=(list[inner], []))
    return draw(st.sampled_from([inner, outer, list[outer], inner | outer]))


def _is_accepted(annotation: Any) -> bool:
    try:
        json_type(annotation)
    except TypeError:
        return False  # for example, a union of two dataclasses
    return True


def _types(scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.recursive(scalars, _wider, max_leaves=4), _unions(scalars), _models()).filter(_is_accepted)


exact_types = _types(_EXACT)
_TYPES = _types(_SCALARS)
_MESSAGES = st.one_of(_TYPES, _unions(_SCALARS, 1), st.sampled_from([str, bytes, str | bytes]))
_PARTS = st.sampled_from(["a", "b c", "größe", "a%b", "{x}", "{y:int}", "{z:uuid}", "{straße:float}", "{w:hex}"])


@st.composite
def _patterns(draw: Any) -> tuple[str, list[str]]:
    """A pattern, and the names of its parameters."""
    parts = draw(st.lists(_PARTS, unique=True, max_size=3))
    parts += draw(st.sampled_from([[], [], [""], ["{rest:path}"]]))
    return "/" + "/".join(parts), [part.strip("{}").partition(":")[0] for part in parts if part.startswith("{")]


_BODIES = ("...", "connection.bearer", "connection.session", "await connection.take_ticket()")


def _view(draw: Any, parameters: list[str], **types: Any) -> Any:
    """A view with annotations. ``types``: of the connection, and of what it returns."""
    arguments = ", ".join(["connection: CONNECTION", *parameters])
    name = draw(st.sampled_from(["chat", "game", "größe"]))
    source = f"async def {name}({arguments}) -> RETURNS:\n    {draw(st.sampled_from(_BODIES))}"
    namespace: dict[str, Any] = {"CONNECTION": Any, "RETURNS": Any, **types}
    exec(source, namespace)
    view = namespace[name]
    view.__doc__ = draw(st.sampled_from([None, "One line.", "Two\n\nlines: é*`{"]))
    return view


def _add_http(draw: Any, app: App) -> None:
    pattern, parameters = draw(_patterns())
    methods = draw(st.lists(st.sampled_from(["GET", "HEAD", "POST", "PURGE", "TRACE"]), unique=True, min_size=1))
    connection = draw(st.one_of(st.just(Any), _TYPES.map(lambda each: Request[each])))
    returns = draw(st.one_of(st.sampled_from([Any, str, bytes, EventStream, object]), _TYPES))
    query = draw(st.one_of(st.none(), _classes(_SCALARS)))
    app.add_route(
        _view(draw, parameters, CONNECTION=connection, RETURNS=returns),
        pattern,
        methods=methods,
        query=query if query is not None and _has_fields(query) else None,
        name=draw(st.sampled_from([None, f"{pattern} {len(app._router.routes)}"])),
    )


def _has_fields(annotation: Any) -> bool:
    try:
        lists_in(json_type(annotation))
    except TypeError:
        return False
    return True


def _add_websocket(draw: Any, app: App) -> None:
    pattern, parameters = draw(_patterns())
    types = draw(st.lists(_MESSAGES, max_size=2))
    options: dict[str, Any] = {}
    if types:
        connection = WebSocket[tuple(types)]
    else:
        connection = Any
        options["value_type"] = draw(st.sampled_from(["text", "bytes", "auto", "json", "msgpack"]))
    if draw(st.booleans()):
        options["subscribe"] = draw(st.sampled_from(["a", f"a:{{{parameters[0]}}}" if parameters else "b"]))
    if draw(st.booleans()):
        options |= {"rate": "5/s", "rate_excess": draw(st.sampled_from(["wait", "close"]))}
    app.add_websocket_route(
        _view(draw, parameters, CONNECTION=connection),
        pattern,
        gaps=draw(st.booleans()),
        on_invalid=draw(st.sampled_from(["close", "skip", "error"])),
        login=draw(st.sampled_from([None, _log_in])),
        subprotocols=draw(st.sampled_from([[], ["v1", "v2"]])),
        name=draw(st.sampled_from([None, f"{pattern} {len(app._router.routes)}"])),
        **options,
    )


async def _log_in(ws: Any, message: Any) -> None: ...


@st.composite
def apps(draw: Any, *, depth: int = 1) -> App:
    """An app with routes, topics and, for ``depth``, other apps in it."""
    hosts = draw(st.sampled_from([None, ["a.example"]])) if depth else None
    app = App(allowed_hosts=hosts)
    app.add_converter("hex", "[0-9a-f]+")
    for pattern in draw(st.lists(st.sampled_from(["*", "a", "a:*", "*:1", "b"]), unique=True, max_size=3)):
        app.topic(pattern, value_type=draw(st.one_of(st.none(), _MESSAGES)), history=draw(st.sampled_from([0, 5])))
    if draw(st.booleans()):
        app.error_handler(draw(st.sampled_from([403, Exception])))(_answer)
    for add in draw(st.lists(st.sampled_from([_add_http, _add_websocket]), max_size=5)):
        with suppress(RoutingError):  # another route has the pattern
            add(draw, app)
    if depth and draw(st.booleans()):
        app.mount("/mounted", draw(apps(depth=depth - 1)))
    return app


async def _answer(connection: Any, error: Exception) -> None: ...
