"""A view's signature, and the topics of its route, bound to a pattern."""

import functools
import threading
import types
import uuid
from contextlib import ContextDecorator
from enum import StrEnum
from typing import Annotated, Any, Literal, NewType, Optional, Protocol, TypeVar

import pytest

from microws import App, Request, RoutingError, WebSocket
from microws.requests import BaseRequest
from microws.routing import Converters, Pattern
from microws.views import bind_view

pytestmark = pytest.mark.anyio


CONNECTION = Request({"type": "http", "method": "GET", "headers": []}, App(), "/", {}, None, None)


def bind(view, pattern, *, kind):
    return bind_view(view, Pattern.parse(pattern, Converters()), kind=kind)


async def bound(view, *, kind="http", **params):
    """What the view makes of a connection."""
    return await bind(view, "/items/{item}", kind=kind)(CONNECTION, params or {"item": 7})


async def first_then_named(request, item):
    return request, item


async def named_then_first(item, request):
    return request, item


async def positional_only(request, /, item):
    return request, item


async def keyword_only(*, item, request):
    return request, item


async def connection_keyword_only(item, *, request):
    return request, item


async def with_default(request, item, flag="default"):
    return request, item if flag == "default" else None


async def parameter_with_default(request, item=1):
    return request, item


async def everything(*args, **kwargs):
    return args[0], kwargs["item"]


async def star_then_named(*args, item):
    return args[0], item


async def first_and_everything(request, **kwargs):
    return request, kwargs["item"]


def plain(request, item):
    return request, item


def collect(function):
    """Quart's tutorial decorator."""

    @functools.wraps(function)
    async def wrapper(*args, **kwargs):
        return await function(*args, extra="extra", **kwargs)

    return wrapper


@collect
async def collected(request, item, extra):
    return request, item if extra == "extra" else None


def plain_decorator(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def async_decorator(function):
    @functools.wraps(function)
    async def wrapper(*args, **kwargs):
        return await function(*args, **kwargs)

    return wrapper


def by_name_alone(function):
    @functools.wraps(function)
    async def wrapper(**kwargs):
        return await function(**kwargs)

    return wrapper


def with_option(function):
    @functools.wraps(function)
    async def wrapper(*args, repeat=False, **kwargs):
        assert repeat is False
        return await function(*args, **kwargs)

    return wrapper


class Timed:
    """A decorator whose result is an object."""

    def __init__(self, function):
        functools.update_wrapper(self, function)
        self._function = function

    def __call__(self, *args, **kwargs):
        return self._function(*args, **kwargs)


class Bindable(Timed):
    """The same, where the object is the method of another, as in async_lru."""

    def __get__(self, instance, owner):
        bound = Timed(functools.partial(self._function, instance))
        bound.__wrapped__ = self._function
        return bound


class Span(ContextDecorator):
    """As those of OpenTelemetry, whose wrapper is a plain function."""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        return None


DECORATORS = [plain_decorator, async_decorator, by_name_alone, with_option, Timed, Span()]


@plain_decorator
async def behind_a_plain_decorator(request, item):
    return request, item


async def with_two_flags(request, item, flag):
    return request, item if flag else None


class Views:
    async def method(self, request, item):
        return request, item

    async def __call__(self, request, item):
        return request, item

    @async_decorator
    async def decorated(self, request, item):
        return request, item

    @Bindable
    async def bindable(self, request, item):
        return request, item

    @Bindable
    async def without_request(self, item):
        return "nothing", item

    @classmethod
    async def class_method(cls, request, item):
        return request, item

    @staticmethod
    async def static_method(request, item):
        return request, item


VIEWS = [
    first_then_named,
    named_then_first,
    positional_only,
    keyword_only,
    connection_keyword_only,
    with_default,
    parameter_with_default,
    everything,
    star_then_named,
    first_and_everything,
    collected,
    functools.partial(with_two_flags, flag=True),
    functools.partial(functools.partial(with_two_flags, flag=False), flag=True),
    behind_a_plain_decorator,
    functools.partial(async_decorator(with_two_flags), flag=True),
    Views().decorated,
    Views().bindable,
    staticmethod(first_then_named),
    Views().method,
    Views(),
    functools.partial(Views()),
    functools.partial(Views.method, None),
    Views.class_method,
    Views.static_method,
]


class TestSignatures:
    @pytest.mark.parametrize("kind", ["http", "websocket"])
    @pytest.mark.parametrize("view", VIEWS, ids=range(len(VIEWS)))
    async def test_the_first_other_parameter_gets_the_connection(self, view, kind):
        assert await bound(view, kind=kind) == (CONNECTION, 7)

    @pytest.mark.parametrize("view", [plain, behind_a_plain_decorator, lambda request, item: (request, item)])
    async def test_an_http_view_may_be_a_plain_function(self, view):
        assert await bound(view) == (CONNECTION, 7)

    async def test_an_http_view_may_omit_the_request(self):
        async def only_its_own(item):
            return item

        async def any_name(**kwargs):
            return kwargs

        assert await bind(lambda: "nothing", "/", kind="http")(CONNECTION, {}) == "nothing"
        assert await bound(only_its_own) == 7
        assert await bound(any_name) == {"item": 7}

    async def test_a_route_parameter_may_have_the_name_request(self):
        async def view(request):
            return request

        assert await bind(view, "/{request}", kind="http")(CONNECTION, {"request": "x"}) == "x"

    async def test_a_plain_function_runs_in_a_worker_thread(self):
        assert await bind(lambda: threading.get_ident(), "/", kind="http")(CONNECTION, {}) != threading.get_ident()


async def without_id(request):
    """Takes no route parameter."""


async def with_another(request, item, other):
    """Asks for more than there is."""


async def all_positional_only(request, item, /):
    """Route parameters go by name."""


async def connection_behind_a_route_parameter(item, request, /):
    """Neither can be passed."""


async def nothing(item):
    return "nothing", item


async def behind(item, request):
    return request, item


async def of_a_name(*, request, item):
    return request, item


class TestDecorators:
    """What ``functools.wraps`` was used in: the function that is wrapped says what is passed."""

    @pytest.mark.parametrize("kind", ["http", "websocket"])
    @pytest.mark.parametrize("decorator", DECORATORS)
    @pytest.mark.parametrize("outer", [None, *DECORATORS])
    async def test_a_view_that_takes_the_connection_gets_it(self, decorator, outer, kind):
        for view in (first_then_named, behind, of_a_name):
            decorated = decorator(view)
            assert await bound(outer(decorated) if outer else decorated, kind=kind) == (CONNECTION, 7)

    @pytest.mark.parametrize("decorator", DECORATORS)
    @pytest.mark.parametrize("outer", [None, *DECORATORS])
    async def test_an_http_view_without_it_is_called_without_it(self, decorator, outer):
        decorated = decorator(nothing)
        for view in (outer(decorated) if outer else decorated, Views().without_request):
            assert await bound(view) == ("nothing", 7)

    async def test_a_decorator_gets_the_parameters_that_it_names(self):
        def with_request(function):
            @functools.wraps(function)
            async def wrapper(request, *args, **kwargs):
                return request, await function(*args, **kwargs)

            return wrapper

        assert await bound(with_request(nothing)) == (CONNECTION, ("nothing", 7))
        assert await bound(async_decorator(with_request(nothing)), kind="websocket") == (CONNECTION, ("nothing", 7))

    async def test_a_decorator_may_remove_and_add_parameters(self):
        def load(function):
            @functools.wraps(function)
            async def wrapper(*args, **kwargs):
                return await function(*args, thing=[kwargs.pop("item")], **kwargs)

            return wrapper

        async def view(request, thing):
            return request, thing

        assert await bound(load(view)) == (CONNECTION, [7])

    @pytest.mark.parametrize("kind", ["http", "websocket"])
    async def test_a_plain_decorator_of_an_async_view_runs_in_its_thread_and_may_answer(self, kind):
        threads = []

        def decorator(function, *answer):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                threads.append(threading.get_ident())
                return answer or function(*args, **kwargs)

            return wrapper

        assert await bound(decorator(first_then_named), kind=kind) == (CONNECTION, 7)
        assert await bound(decorator(first_then_named, "no", 401), kind=kind) == ("no", 401)
        assert set(threads) == {threading.get_ident()}

    async def test_a_cached_plain_view_is_called_once(self):
        calls = []

        @functools.lru_cache
        def view(item):
            calls.append(item)
            return item

        assert [await bound(view), await bound(view)] == [7, 7]
        assert calls == [7]

    @pytest.mark.parametrize("kind", ["http", "websocket"])
    def test_a_cached_async_view_is_refused(self, kind):
        for view in (functools.lru_cache(first_then_named), plain_decorator(functools.cache(first_then_named))):
            with pytest.raises(TypeError, match=r"lru_cache, which would return the same coroutine twice"):
                bind(view, "/items/{item}", kind=kind)

    def test_a_decorator_that_cannot_pass_the_connection_is_an_error(self):
        async def positional(request, /, **kwargs):
            pass

        with pytest.raises(RoutingError, match="does not pass the connection on to 'request' of the wrapped function"):
            bind(by_name_alone(positional), "/items/{item}", kind="http")
        positional.__wrapped__ = positional
        bind(positional, "/items/{item}", kind="http")


UserId = NewType("UserId", int)
AnyRequest = TypeVar("AnyRequest")


class HasHeaders(Protocol):
    headers: Any


class Color(StrEnum):
    red = "red"


class Item:
    """Such as a model that another framework would fill from the body."""


def annotated(annotation, name="value"):
    """A view whose one parameter has the annotation."""

    async def view(value):
        return value

    view.__annotations__[name] = annotation
    return view


class TestAnnotations:
    @pytest.mark.parametrize(
        "annotation",
        [
            Request,
            BaseRequest,
            object,
            Any,
            Request | None,
            Optional["Request"],
            Request | int,
            Annotated[Request, "note"],
            "Request",
            "OnlyForTypeCheckers",
            "not even ( an expression",
            NewType("Own", Request),
            HasHeaders,
            AnyRequest,
            type("Own", (Request,), {}),
        ],
    )
    async def test_the_connection_may_be_annotated_as_any_of_its_types(self, annotation):
        assert await bind(annotated(annotation), "/", kind="http")(CONNECTION, {}) == CONNECTION

    @pytest.mark.parametrize(
        ("annotation", "advice"),
        [
            (str, "take `request` first and read request.query.get('value')"),
            ("str", "take `request` first and read request.query.get('value')"),
            (int | None, "request.query.get('value')"),
            (Annotated[str, "note"], "request.query.get('value')"),
            (Literal["a", "b"], "request.query.get('value')"),
            (UserId, "request.query.get('value')"),
            (uuid.UUID, "request.query.get('value')"),
            (Item, "the query is request.query, the body is await request.json()"),
            (list[int], "the query is request.query, the body is await request.json()"),
            (dict, "the query is request.query, the body is await request.json()"),
            (WebSocket, "write `from microws import Request` and annotate it as Request"),
            (type("Request", (), {}), "write `from microws import Request` and annotate it as Request"),
        ],
    )
    def test_a_request_with_another_annotation_is_an_error(self, annotation, advice):
        with pytest.raises(RoutingError) as caught:
            bind(annotated(annotation), "/", kind="http")
        assert "its parameter 'value' is annotated as" in str(caught.value)
        assert "that is not in the pattern gets the Request; " in str(caught.value)
        assert str(caught.value).endswith(advice)

    @pytest.mark.parametrize("kind", ["http", "websocket"])
    def test_a_first_parameter_with_a_default_is_an_error(self, kind):
        async def page(limit=10): ...
        async def behind(item, limit=10): ...
        async def any_value(limit: Any = 10): ...
        async def keyword(*, limit=""): ...
        async def closure(limit=page): ...

        views = [(view, "/") for view in (page, any_value, keyword, closure, async_decorator(page))]
        connection, name = ("Request", "request") if kind == "http" else ("WebSocket", "ws")
        for view, pattern in [*views, (behind, "/{item}")]:
            with pytest.raises(RoutingError) as caught:
                bind(view, pattern, kind=kind)
            assert str(caught.value).endswith(
                "its parameter 'limit' has a default, but the first parameter that is not in the pattern gets the "
                f"{connection}; take `{name}` before it, or read {name}.query.get('limit')"
            )

    async def test_default_none_or_the_annotation_is_allowed(self):
        async def optional(request=None):
            return request

        async def annotated(request: Request | str = "none"):
            return request

        async def behind(user=Item):
            return user

        for view in (optional, annotated, async_decorator(behind)):
            assert await bind(view, "/", kind="http")(CONNECTION, {}) == CONNECTION

    def test_a_websocket_may_be_annotated_as_any_of_its_types_and_no_other(self):
        for annotation in (WebSocket, BaseRequest, "WebSocket", WebSocket | Request):
            bind(annotated(annotation), "/", kind="websocket")
        for annotation, advice in (
            (str, "gets the WebSocket; take `ws` first and read ws.query.get('value')"),
            (Item, "take `ws` first; the query is ws.query"),
            (Request, "write `from microws import WebSocket` and annotate it as WebSocket"),
        ):
            with pytest.raises(RoutingError) as caught:
                bind(annotated(annotation), "/", kind="websocket")
            assert str(caught.value).endswith(advice)

    @pytest.mark.parametrize(
        ("pattern", "annotation"),
        [
            ("/{value}", str),
            ("/{value:str}", str | None),
            ("/{value:path}", str),
            ("/{value:int}", int),
            ("/{value:int}", float),
            ("/{value:int}", UserId),
            ("/{value:int}", Any),
            ("/{value:int}", "int | None"),
            ("/{value:float}", float),
            ("/{value:uuid}", uuid.UUID),
            ("/{value:uuid}", Annotated[uuid.UUID, "note"]),
            ("/{value}", Literal["a", "b"]),
            ("/{value}", AnyRequest),
            ("/{value}", "OnlyForTypeCheckers"),
        ],
    )
    def test_a_route_parameter_may_have_the_type_of_its_converter(self, pattern, annotation):
        bind(annotated(annotation), pattern, kind="http")

    @pytest.mark.parametrize(
        ("pattern", "annotation", "problem"),
        [
            (
                "/{value:int}",
                str,
                "{value:int} returns int: write {value:str} in the pattern, or change the annotation",
            ),
            ("/{value}", "int | None", "returns str: write {value:int} in the pattern"),
            ("/{value}", UserId, "returns str: write {value:int} in the pattern"),
            ("/{value:float}", int, "{value:float} returns float: write {value:int}"),
            ("/{value:uuid}", str, "{value:uuid} returns UUID: write {value:str}"),
            ("/{value:int}", bool, "returns int: change the annotation, or add a converter with app.add_converter"),
            ("/{value}", Color, "returns str: change the annotation, or add a converter with app.add_converter"),
        ],
    )
    def test_a_route_parameter_with_another_annotation_is_an_error(self, pattern, annotation, problem):
        with pytest.raises(RoutingError) as caught:
            bind(annotated(annotation), pattern, kind="http")
        assert f"does not fit the pattern {pattern!r}: its parameter 'value' is annotated as" in str(caught.value)
        assert problem in str(caught.value)

    def test_an_added_converter_gives_its_class_or_anything(self):
        converters = Converters()
        converters.add("hex", "[0-9a-f]+", lambda text: int(text, 16))
        converters.add("number", "[0-9]+", int)
        for pattern, annotation in (("/{value:hex}", int), ("/{value:hex}", str), ("/{value:number}", int)):
            bind_view(annotated(annotation), Pattern.parse(pattern, converters), kind="http")
        with pytest.raises(RoutingError, match="returns int"):
            bind_view(annotated(str), Pattern.parse("/{value:number}", converters), kind="http")

    def test_a_decorator_may_pass_another_object(self):
        async def view(user: Item, value: Item):
            pass

        bind(async_decorator(view), "/{value}", kind="http")
        bind(async_decorator(view), "/{value}", kind="websocket")
        with pytest.raises(RoutingError, match=r"request\.query\.get"):
            bind(async_decorator(annotated(str)), "/", kind="http")
        with pytest.raises(RoutingError, match=r"write \{value:int\}"):
            bind(async_decorator(annotated(int)), "/{value}", kind="http")

    async def test_a_decorator_may_convert_its_parameters(self):
        def load(function):
            @functools.wraps(function)
            async def wrapper(request, value, **kwargs):
                return await function(request, int(value), **kwargs)

            return wrapper

        async def view(request: Request, value: int):
            return request, value

        assert await bind(load(view), "/{value}", kind="http")(CONNECTION, {"value": "7"}) == (CONNECTION, 7)

    def test_str_annotations_are_evaluated_in_the_views_module(self):
        module = types.ModuleType("elsewhere")
        exec(
            "from __future__ import annotations\n"
            "from microws import Request as R\n"
            "async def good(request: R, value: int): ...\n"
            "async def bad(request: R, value: str): ...\n",
            module.__dict__,
        )
        bind(module.good, "/{value:int}", kind="http")
        with pytest.raises(RoutingError, match="annotated as"):
            bind(module.bad, "/{value:int}", kind="http")


class TestSignaturesThatDoNotFit:
    @pytest.mark.parametrize(
        ("view", "complaint"),
        [
            (without_id, "it has no parameter 'item'"),
            (with_another, "its parameter 'other' gets no value; add {other} to the pattern"),
            (all_positional_only, "'item' is positional-only, but route parameters are passed by name"),
            (connection_behind_a_route_parameter, "'item' is positional-only"),
            (functools.partial(first_then_named, "conn", 7), "it has no parameter 'item'"),
            (Views.method, "it is a method without an object; register a bound method"),
            (Views.decorated, "it is a method without an object; register a bound method"),
        ],
    )
    @pytest.mark.parametrize("kind", ["http", "websocket"])
    def test_the_error_names_the_view_its_signature_and_the_pattern(self, view, complaint, kind):
        with pytest.raises(RoutingError) as caught:
            bind(view, "/items/{item}", kind=kind)
        assert complaint in str(caught.value)
        assert "'/items/{item}'" in str(caught.value)
        assert getattr(view, "__name__", "first_then_named") in str(caught.value)

    def test_a_websocket_view_needs_a_parameter_for_the_websocket(self):
        for view in (nothing, async_decorator(nothing)):
            with pytest.raises(RoutingError, match="write `ws` first"):
                bind(view, "/items/{item}", kind="websocket")

    @pytest.mark.parametrize("view", [plain, plain_decorator(plain), lambda ws, item: None, functools.partial(plain)])
    def test_a_websocket_view_must_be_async(self, view):
        with pytest.raises(TypeError, match=r"'/items/\{item\}' must be `async def`"):
            bind(view, "/items/{item}", kind="websocket")

    @pytest.mark.parametrize("kind", ["http", "websocket"])
    def test_a_view_with_a_yield_is_an_error(self, kind):
        async def numbers(request):
            yield 1

        def plain_numbers(request):
            yield 1

        for view in (numbers, plain_numbers, functools.partial(numbers)):
            with pytest.raises(TypeError, match=r"has a `yield`.*StreamingResponse"):
                bind(view, "/", kind=kind)

    @pytest.mark.parametrize("view", [None, "view", 5, Views, dict])
    @pytest.mark.parametrize("kind", ["http", "websocket"])
    def test_it_must_be_a_function(self, view, kind):
        with pytest.raises(TypeError, match="expected a function"):
            bind(view, "/", kind=kind)

    def test_decorators_raise_at_registration(self):
        app = App()
        for decorator in (app.route, app.websocket_route):
            with pytest.raises(RoutingError, match=r"'/x/\{item\}'"):
                decorator("/x/{item}")(without_id)
        with pytest.raises(RoutingError, match="no route is called"):
            app.url_for("without_id", item=1)
