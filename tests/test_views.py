"""A view's signature bound to its pattern, and what it returns as a response."""

import functools
import threading
from dataclasses import dataclass
from http import HTTPStatus

import pytest
from asking import ask, ask_websocket

from microws import App, JSONResponse, Response, RoutingError
from microws.views import bind_view, to_response

pytestmark = pytest.mark.anyio


async def bound(view, *, parameters=("item",), kind="http", **params):
    """What the view makes of the connection ``"conn"``."""
    return await bind_view(view, "/items/{item}", parameters, kind=kind)("conn", params or {"item": 7})


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
    Views().method,
    Views(),
    functools.partial(Views()),
    Views.class_method,
    Views.static_method,
]


class TestSignatures:
    @pytest.mark.parametrize("kind", ["http", "websocket"])
    @pytest.mark.parametrize("view", VIEWS, ids=range(len(VIEWS)))
    async def test_the_first_other_parameter_gets_the_connection_and_route_parameters_go_by_name(self, view, kind):
        assert await bound(view, kind=kind) == ("conn", 7)

    @pytest.mark.parametrize("view", [plain, behind_a_plain_decorator, lambda request, item: (request, item)])
    async def test_an_http_view_may_be_a_plain_function(self, view):
        assert await bound(view) == ("conn", 7)

    async def test_an_http_view_may_leave_the_request_out(self):
        async def no_parameters():
            return "nothing"

        async def only_its_own(item):
            return item

        async def any_name(**kwargs):
            return kwargs

        assert await bind_view(no_parameters, "/", (), kind="http")("conn", {}) == "nothing"
        assert await bound(only_its_own) == 7
        assert await bound(any_name) == {"item": 7}

    async def test_a_partial_may_fill_the_first_parameter(self):
        async def view(prefix, request, item):
            return prefix, request, item

        assert await bound(functools.partial(view, "prefix")) == ("prefix", "conn", 7)

    async def test_a_route_parameter_may_be_called_like_the_request(self):
        async def view(request):
            return request

        assert await bind_view(view, "/{request}", ("request",), kind="http")("conn", {"request": "x"}) == "x"

    async def test_a_plain_function_runs_in_a_worker_thread(self):
        def view():
            return threading.get_ident()

        assert await bind_view(view, "/", (), kind="http")("conn", {}) != threading.get_ident()


async def without_id(request):
    """Takes no route parameter."""


async def with_another(request, item, other):
    """Asks for more than there is."""


async def all_positional_only(request, item, /):
    """Route parameters go by name."""


async def connection_behind_a_route_parameter(item, request, /):
    """Neither can be passed."""


class TestSignaturesThatDoNotFit:
    @pytest.mark.parametrize(
        ("view", "complaint"),
        [
            (without_id, "it has no parameter 'item'"),
            (with_another, "nothing fills its parameter 'other'; the pattern could: {other}"),
            (all_positional_only, "'item' is positional-only, but route parameters are passed by name"),
            (connection_behind_a_route_parameter, "'item' is positional-only"),
            (functools.partial(first_then_named, "conn", 7), "it has no parameter 'item'"),
        ],
    )
    @pytest.mark.parametrize("kind", ["http", "websocket"])
    def test_the_error_names_the_view_with_its_signature_and_the_pattern(self, view, complaint, kind):
        with pytest.raises(RoutingError) as caught:
            bind_view(view, "/items/{item}", ("item",), kind=kind)
        assert complaint in str(caught.value)
        assert "'/items/{item}'" in str(caught.value)
        assert getattr(view, "__name__", "first_then_named") in str(caught.value)

    def test_a_websocket_view_needs_a_parameter_for_the_websocket(self):
        async def view(item):
            return item

        with pytest.raises(RoutingError, match="write `ws` first"):
            bind_view(view, "/items/{item}", ("item",), kind="websocket")

    @pytest.mark.parametrize("view", [plain, behind_a_plain_decorator, lambda ws, item: None, functools.partial(plain)])
    def test_a_websocket_view_must_be_async(self, view):
        with pytest.raises(TypeError, match=r"'/items/\{item\}' must be `async def`"):
            bind_view(view, "/items/{item}", ("item",), kind="websocket")

    @pytest.mark.parametrize("kind", ["http", "websocket"])
    def test_a_view_with_a_yield_is_refused(self, kind):
        async def numbers(request):
            yield 1

        def plain_numbers(request):
            yield 1

        for view in (numbers, plain_numbers, functools.partial(numbers)):
            with pytest.raises(TypeError, match=r"has a `yield`.*StreamingResponse"):
                bind_view(view, "/", (), kind=kind)

    @pytest.mark.parametrize("view", [None, "view", 5, Views, dict])
    @pytest.mark.parametrize("kind", ["http", "websocket"])
    def test_what_is_no_function_is_refused(self, view, kind):
        with pytest.raises(TypeError, match="a view is a function"):
            bind_view(view, "/", (), kind=kind)

    def test_it_is_an_error_at_registration_both_ways(self):
        app = App()
        with pytest.raises(RoutingError, match=r"'/x/\{item\}'"):
            app.route("/x/{item}")(without_id)
        with pytest.raises(RoutingError, match=r"'/x/\{item\}'"):
            app.websocket_route("/x/{item}")(without_id)
        with pytest.raises(RoutingError, match="no route is called"):
            app.url_for("without_id", item=1)


@dataclass
class Point:
    x: int
    y: int


HTML = "text/html; charset=utf-8"


class TestReturnValues:
    @pytest.mark.parametrize(
        ("value", "status", "content_type", "body"),
        [
            ("<p>ü</p>", 200, HTML, "<p>ü</p>".encode()),
            ("", 200, HTML, b""),
            ({"a": 1}, 200, "application/json", b'{"a":1}'),
            ([1, None], 200, "application/json", b"[1,null]"),
            (Point(1, 2), 200, "application/json", b'{"x":1,"y":2}'),
            (b"\x00\xff", 200, "application/octet-stream", b"\x00\xff"),
            (bytearray(b"ab"), 200, "application/octet-stream", b"ab"),
            (memoryview(b"ab"), 200, "application/octet-stream", b"ab"),
            (b"", 200, "application/octet-stream", b""),
            ((b"", {"content-type": "image/png"}), 200, "image/png", b""),
            (None, 204, None, b""),
            (("made", 201), 201, HTML, b"made"),
            (({"a": 1}, HTTPStatus.ACCEPTED), 202, "application/json", b'{"a":1}'),
            ((None, 202), 202, None, b""),
            (("text", {"content-type": "text/plain"}), 200, "text/plain", b"text"),
            (("text", [("Content-Type", "text/plain")]), 200, "text/plain", b"text"),
            ((b"x", 200, {"content-type": "image/png"}), 200, "image/png", b"x"),
            (("x", 404, None), 404, HTML, b"x"),
            ((None, {"x": "y"}), 204, None, b""),
            (JSONResponse({"a": 1}, 418), 418, "application/json", b'{"a":1}'),
        ],
    )
    def test_each_kind_of_value_has_its_status_and_type(self, value, status, content_type, body):
        response = to_response(value)
        assert (response.status, response.headers.get("content-type"), response.body) == (status, content_type, body)

    def test_headers_are_kept_in_number(self):
        response = to_response(("x", 200, [("set-cookie", "a=1"), ("set-cookie", "b=2")]))
        assert response.headers.getlist("set-cookie") == ["a=1", "b=2"]

    def test_a_response_is_itself(self):
        response = Response("x")
        assert to_response(response) is response

    @pytest.mark.parametrize(
        ("value", "complaint"),
        [
            (5, "not int$"),
            (object(), "not object$"),
            (iter([1]), r"return StreamingResponse\(…\) or EventStream\(…\) around it"),
            (App().stream("chat"), r"return StreamingResponse\(…\) or EventStream\(…\) around it"),
            (Point, "not type"),
            ((), r"\(\)"),
            (("x",), r"\(str\)"),
            (("x", "200"), r"\(str, str\)"),
            (("x", True), r"\(str, bool\)"),
            (("x", 200, {}, 1), r"\(str, int, dict, int\)"),
            ((Response("x"), 201), "has its own status and headers: return it alone"),
        ],
    )
    def test_anything_else_is_a_type_error_that_says_what_to_return(self, value, complaint):
        with pytest.raises(TypeError, match=complaint):
            to_response(value)

    async def test_what_was_not_waited_for_says_so(self):
        async def text():
            return "x"

        text = text()
        with pytest.raises(TypeError, match=r"not coroutine; write `await` before the call that made it$"):
            to_response(text)
        text.close()

    @pytest.mark.parametrize("value", [("x", 99), ("x", 600), ("x", 200, {"a\n": "b"}), ("x", {"a": "b\r\nc: d"})])
    def test_a_bad_status_or_header_is_a_value_error(self, value):
        with pytest.raises(ValueError, match=r"status|header"):
            to_response(value)


class TestThroughTheApp:
    async def test_a_decorator_made_with_wraps_may_pass_more_on(self):
        app = App()
        clients = set()

        def collect_websocket(function):
            @functools.wraps(function)
            async def wrapper(*args, **kwargs):
                clients.add(args[0])
                try:
                    return await function(*args, "queue", **kwargs)
                finally:
                    clients.discard(args[0])

            return wrapper

        @app.websocket_route("/ws/{room}")
        @collect_websocket
        async def view(ws, queue, room):
            async with ws:
                await ws.send(f"{queue} {room} {len(clients)}")

        assert await ask_websocket(app, "/ws/a") == "queue a 1"
        assert not clients
        assert app.url_for("view", room="a") == "/ws/a"

    async def test_a_plain_view_publishes_from_its_thread(self):
        app = App()

        @app.post("/say")
        def say():
            return {"subscribers": app.publish_from_thread("topic", "hi").subscribers}

        @app.websocket_route("/", subscribe="topic")
        async def listen(ws):
            async with ws:
                async for _ in ws:
                    pass

        async with app.test_client() as client, client.websocket("/") as ws:
            assert (await client.post("/say")).json() == {"subscribers": 1}
            assert await ws.receive() == "hi"

    async def test_publishing_from_a_thread_in_the_loops_own_is_refused(self):
        app = App()

        @app.post("/")
        async def say():
            app.publish_from_thread("topic", "hi")

        app.error_handler(RuntimeError)(lambda request, error: str(error))
        assert "write `await app.publish" in (await ask(app, method="POST")).text
