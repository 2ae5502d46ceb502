"""What a view returns as a response."""

import functools
import json
import re
from dataclasses import dataclass
from decimal import Decimal
from http import HTTPStatus
from typing import NamedTuple

import pytest
from asking import ask, ask_websocket, refusal_of

from microws import App, EventStream, HTTPException, JSONResponse, Response, ServerSentEvent, WebSocketRejected
from microws.views import to_response

pytestmark = pytest.mark.anyio


class Row(NamedTuple):
    """As a row of a database."""

    id: int
    name: str


@dataclass
class Point:
    x: int
    y: int


def page():
    """The view that has returned."""


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
        response = to_response(value, page)
        assert (response.status, response.headers.get("content-type"), response.body) == (status, content_type, body)

    def test_headers_are_kept_in_number_and_a_response_is_unchanged(self):
        response = to_response(("x", 200, [("set-cookie", "a=1"), ("set-cookie", "b=2")]), page)
        assert response.headers.getlist("set-cookie") == ["a=1", "b=2"]
        assert to_response(response, page) is response

    @pytest.mark.parametrize(
        ("value", "complaint"),
        [
            (5, "got int; return it as str, or in a JSONResponse$"),
            (object(), r"got object; return it as dict or list, or convert it with App\(json_default=…\)$"),
            ({1}, "got set; return it as dict or list, or convert it"),
            (iter([1]), r"return StreamingResponse\(…\) or EventStream\(…\) around it"),
            (App().stream("chat"), r"return StreamingResponse\(…\) or EventStream\(…\) around it"),
            (Point, "got type"),
            ((), r"\(\)"),
            (Row(1, "a"), "got Row; return it as dict or list, or convert it with"),
            (("x",), r"\(str\)"),
            (("x", "200"), r"\(str, str\)"),
            (("x", True), r"\(str, bool\)"),
            (("x", 200, {}, 1), r"\(str, int, dict, int\)"),
            ((Response("x"), 201), "has its own status and headers: return it without others"),
        ],
    )
    def test_anything_else_is_a_type_error_that_says_what_to_return(self, value, complaint):
        with pytest.raises(TypeError, match=complaint):
            to_response(value, page)

    def test_the_error_names_the_view_its_file_and_its_line(self):
        line = page.__code__.co_firstlineno
        for value, problem in (({1}, "expected str"), ({"a": {1}}, "value.a is of type set")):
            with pytest.raises(
                TypeError, match=re.escape(f"page ({__file__}:{line}) returned a value that cannot be sent: {problem}")
            ):
                to_response(value, page)
        with pytest.raises(
            ValueError,
            match=re.escape(f"page ({__file__}:{line}) returned a value that cannot be sent: value[0] is nan"),
        ):
            to_response([float("nan")], functools.partial(page))

    async def test_a_coroutine_is_an_error_that_says_await(self):
        async def text():
            return "x"

        text = text()
        with pytest.raises(TypeError, match=r"got coroutine; write `await` before the call that made it$"):
            to_response(text, page)
        text.close()

    @pytest.mark.parametrize("value", [("x", 99), ("x", 600), ("x", 200, {"a\n": "b"}), ("x", {"a": "b\r\nc: d"})])
    def test_an_invalid_status_or_header_is_a_value_error(self, value):
        with pytest.raises(ValueError, match=r"status|header"):
            to_response(value, page)


@dataclass
class Order:
    """Holds what JSON cannot represent."""

    price: Decimal


class Model:
    """As pydantic's and SQLAlchemy's: none of JSON's types."""

    def __init__(self, **fields):
        self.fields = fields


def to_json(value):
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Model):
        return value.fields
    if isinstance(value, set):
        return sorted(value)
    if isinstance(value, Row):
        return value._asdict()
    raise TypeError(f"no rule for {type(value).__name__}")


MODEL = Model(tags={"b", "a"}, order=Order(Decimal("1.50")))
AS_JSON = '{"tags":["a","b"],"order":{"price":"1.50"}}'


async def failure_of(app, view, *, inside=None):
    """What the app's error handler gets, where the app is perhaps mounted inside another."""
    errors = []
    app.error_handler(Exception)(lambda request, error: errors.append(error))
    app.add_route(view, "/")
    if inside is not None:
        inside.mount("/other", app)
    await ask(inside or app, "/other/" if inside else "/")
    return errors[0]


class TestJSONDefault:
    @pytest.mark.parametrize(
        ("answer", "status"),
        [
            (lambda: MODEL, 200),
            (lambda: (MODEL, 201), 201),
            (lambda: {"tags": {"b", "a"}, "order": Order(Decimal("1.50"))}, 200),
            (lambda: JSONResponse(MODEL, 202), 202),
        ],
    )
    async def test_every_http_answer_uses_json_default(self, answer, status):
        app = App(json_default=to_json)
        app.get("/thread")(answer)
        app.error_handler(LookupError)(lambda request, error: answer())
        app.before_request(lambda request: answer() if request.path == "/before" else None)
        app.after_request(lambda request, response: answer() if request.path == "/after" else None)

        @app.get("/{name}")
        async def view(name):
            if name == "handler":
                raise LookupError
            return answer()

        for place in ("view", "thread", "before", "after", "handler"):
            response = await ask(app, f"/{place}")
            assert (response.status, response.text) == (status, AS_JSON)

    async def test_messages_events_and_rejections_use_json_default(self):
        app = App(json_default=to_json)

        @app.websocket_route("/", value_type="json", subscribe="topic")
        async def view(ws):
            if "refused" in ws.query:
                await ws.reject(403, {"model": MODEL})
            async with ws:
                await ws.send(MODEL)
                await ws.publish("topic", MODEL)
                await app.publish("topic", MODEL)
                await ws.send_json(MODEL)
                await ws.receive()

        @app.get("/events")
        async def events():
            async def source():
                yield MODEL
                yield ServerSentEvent(MODEL)

            return EventStream(source())

        async with app.test_client(raise_errors=False) as client:
            async with client.websocket("/") as ws:
                assert [await ws.receive() for _ in range(3)] == [json.loads(AS_JSON)] * 3
            with pytest.raises(WebSocketRejected) as caught:
                async with client.websocket("/?refused"):
                    pass
            assert caught.value.body.decode() == f'{{"model":{AS_JSON}}}'
            assert (await client.get("/events")).text.count(f"data: {AS_JSON}\n") == 2

    async def test_errors_and_their_handlers_use_it_without_a_route(self):
        app = App(json_default=to_json)
        app.error_handler(404)(lambda connection, error: (MODEL, 404))

        @app.get("/")
        async def view():
            raise HTTPException(409, {"model": MODEL})

        response = await ask(app, "/absent")
        assert (response.status, response.text) == (404, AS_JSON)
        assert (await refusal_of(app, "/absent")).body.decode() == AS_JSON
        assert (await ask(app)).text == f'{{"model":{AS_JSON}}}'

    async def test_a_row_of_a_database_is_a_value(self):
        app = App(json_default=to_json)
        app.add_route(lambda: ([Row(1, "a")], 201), "/")
        assert (await ask(app)).text == '[{"id":1,"name":"a"}]'

    async def test_a_background_task_publishes_with_it(self):
        app = App(json_default=to_json)

        @app.websocket_route("/", subscribe="topic")
        async def view(ws):
            async with ws:
                app.start_soon(app.publish, "topic", MODEL)
                await ws.receive()

        assert await ask_websocket(app) == AS_JSON

    @pytest.mark.parametrize(
        ("value", "problem"),
        [
            ({"a": [object()]}, "value.a[0] is of type object, which JSON cannot represent"),
            ({"x": {float("nan")}}, "value.x[0] is nan"),
            ({Decimal(1): 1}, "value has a key of type Decimal"),
            ((i for i in "ab"), "got generator; to send its values"),
        ],
    )
    async def test_a_value_that_it_does_not_convert_is_an_error(self, value, problem):
        error = await failure_of(App(json_default=to_json), lambda: value)
        assert re.search(r"<lambda> \(.*test_views\.py:\d+\) returned a value that cannot be sent: ", str(error))
        assert problem in str(error)

    @pytest.mark.parametrize("kind", [TypeError, ValueError, LookupError])
    async def test_its_own_error_is_the_cause(self, kind):
        def broken(value):
            raise kind("from within")

        error = await failure_of(App(json_default=broken), lambda: {"a": MODEL})
        causes = [error, error.__cause__, error.__cause__ and error.__cause__.__cause__]
        assert "from within" in [cause and cause.args[0] for cause in causes]

    async def test_a_value_that_never_becomes_json_ends(self):
        error = await failure_of(App(json_default=lambda value: value), lambda: {"a": MODEL})
        assert str(error).endswith("json_default returned Model, which JSON cannot represent either")
        value = [MODEL]
        value.extend([value, value])
        error = await failure_of(App(json_default=to_json), lambda: value)
        assert str(error).endswith("is deeper, or contains itself")

    async def test_a_mounted_app_does_not_use_it(self):
        app = App(json_default=to_json)
        error = await failure_of(App(), lambda: {"a": MODEL}, inside=app)
        assert "value.a is of type Model" in str(error)

    async def test_it_is_called_once_for_each_value(self):
        calls = []

        def default(value):
            calls.append(value)
            return [None, 2**64]

        app = App(json_default=default)
        app.add_route(lambda: {"a": MODEL}, "/")
        assert (await ask(app)).text == '{"a":[null,18446744073709551616]}'
        assert calls == [MODEL]

    @pytest.mark.parametrize("value", ["str", 5])
    def test_json_default_must_be_a_plain_function(self, value):
        async def coroutine(value):
            return value

        for default in (value, coroutine):
            with pytest.raises(TypeError, match="expected a plain function of one value as json_default"):
                App(json_default=default)


class TestThroughTheApp:
    async def test_publish_from_thread_in_the_event_loop_is_an_error(self):
        app = App()

        @app.post("/")
        async def say():
            app.publish_from_thread("topic", "hi")

        app.error_handler(RuntimeError)(lambda request, error: str(error))
        assert "write `await app.publish" in (await ask(app, method="POST")).text
