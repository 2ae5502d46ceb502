"""Messages, bodies and queries with the types of annotations, from the client's side."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from decimal import Decimal
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import pytest
from msgspec import Meta, msgpack
from pydantic import BaseModel
from typing_extensions import TypeAliasType

from microws import (
    App,
    InvalidMessage,
    JSONResponse,
    Message,
    RedirectResponse,
    Request,
    RoutingError,
    WebSocket,
    WebSocketDisconnect,
)
from microws.codec import dumps_json, loads_json
from microws.hub import TopicSettings
from microws.hub.topics import settings_from_json, settings_to_json
from microws.views import HTTPEndpoint, WebSocketEndpoint

if TYPE_CHECKING:
    from somewhere import Nowhere

pytestmark = pytest.mark.anyio


class Say(Message):
    text: Annotated[str, Meta(max_length=500)]


class Move(Message):
    x: float
    y: float


class Said(Message):
    user: str
    text: str


@dataclass
class Vote:
    choice: int


Game = WebSocket[Say, Said]
NamedGame = TypeAliasType("NamedGame", WebSocket[Say, Said])


class Poll(TypedDict):
    votes: int


class Model(BaseModel):
    n: int


@dataclass
class Filter:
    limit: int = 10
    tags: list[str] | None = None


def endpoint_of(app: App, kind: str) -> Any:
    [route] = [route for route in app._router.routes if route.kind == kind]
    return route.endpoint


class TestWebSockets:
    async def test_a_view_gets_and_sends_values_of_the_types_of_its_annotation(self):
        app = App()

        @app.websocket_route("/")
        async def game(ws: WebSocket[Say | Move, Said]):
            async with ws:
                async for message in ws:
                    match message:
                        case Say(text):
                            await ws.send(Said("x", text))
                        case Move(x, y):
                            await ws.send(Said("x", f"{x} {y}"))

        async with app.test_client() as client, client.websocket("/") as ws:
            await ws.send_json({"type": "say", "text": "hi"})
            assert await ws.receive_json() == {"type": "said", "user": "x", "text": "hi"}
            await ws.send(Move(1, 2))
            assert await ws.receive() == Said("x", "1.0 2.0")

    @pytest.mark.parametrize(
        ("options", "types", "encodings"),
        [
            ({}, (Say, Said), ("json", "json")),
            ({"value_type": "msgpack"}, (Say, Said), ("msgpack", "msgpack")),
            ({"receive_type": Say, "send_type": "json"}, (Say, Said), ("json", "json")),
        ],
    )
    def test_an_endpoint_has_the_types_and_the_names_of_the_codecs(self, options, types, encodings):
        async def view(ws: WebSocket[Say, Said]):
            """A view."""

        app = App()
        app.add_websocket_route(view, "/", **options)
        endpoint: WebSocketEndpoint = endpoint_of(app, "websocket")
        assert (endpoint.receive_type, endpoint.send_type) == types
        assert (endpoint.receive_encoding, endpoint.send_encoding) == encodings

    @pytest.mark.parametrize("options", [{"value_type": "text"}, {"send_type": Move}, {"receive_type": dict[str, str]}])
    def test_an_option_that_contradicts_the_annotation_is_an_error(self, options):
        async def view(ws: WebSocket[Say, Said]):
            """A view."""

        with pytest.raises(RoutingError, match=r"contradicts its annotation \[Say, Said\]; leave one of them out$"):
            App().add_websocket_route(view, "/", **options)

    def test_a_type_without_a_second_one_is_sent_and_received_and_frames_have_types_too(self):
        async def same(ws: WebSocket[Say]):
            """A view."""

        async def text(ws: WebSocket[str, bytes]):
            """A view."""

        async def both(ws: WebSocket[str | bytes, Any]):
            """A view."""

        app = App()
        expected = {same: (Say, Say), text: ("text", "bytes"), both: ("auto", "json")}
        for number, view in enumerate(expected):
            app.add_websocket_route(view, f"/{number}")
        found = [(route.endpoint.receive_type, route.endpoint.send_type) for route in app._router.routes]
        assert found == list(expected.values())

    def test_types_are_found_behind_decorators_partials_and_in_functions(self):
        class Local(Message):
            a: int

        def logged(view):
            @wraps(view)
            async def wrapper(*args, **kwargs):
                return await view(*args, **kwargs)

            return wrapper

        @logged
        async def wrapped(ws: WebSocket[Say]):
            """A view."""

        async def behind_partial(option, ws: WebSocket[Say]):
            """A view."""

        async def local(room: str, ws: WebSocket[Local] | None):
            assert Local

        app = App()
        for view in (wrapped, partial(behind_partial, 1)):
            app.add_websocket_route(view, f"/{id(view)}", name=str(id(view)))
        app.add_websocket_route(local, "/{room}/x")
        assert [route.endpoint.receive_type for route in app._router.routes] == [Say, Say, Local]

    def test_an_alias_has_types_and_other_annotations_have_none(self):
        async def aliased(ws: Game):
            """A view."""

        async def named(ws: NamedGame):
            """A view."""

        async def unknown(ws: Nowhere):
            """A view."""

        app = App()
        for view in (aliased, named, unknown):
            app.add_websocket_route(view, f"/{view.__name__}")
        assert [route.endpoint.receive_type for route in app._router.routes] == [Say, Say, "text"]

    def test_a_name_that_does_not_exist_at_runtime_is_named(self):
        async def view(ws: WebSocket[Say | Nowhere]):
            """A view."""

        async def attribute(ws: WebSocket[logging.Nowhere]):
            """A view."""

        with pytest.raises(RoutingError, match=r": ws: WebSocket\[logging.Nowhere\] cannot be evaluated: .* 'Nowhere'"):
            App().add_websocket_route(attribute, "/")
        with pytest.raises(
            RoutingError, match=r"view \(.*test_typed.py:\d+\) .* names 'Nowhere', which does not exist"
        ):
            App().add_websocket_route(view, "/")

    def test_too_many_types_and_an_impossible_type_are_refused(self):
        async def many(ws: WebSocket[Say, Move, Said]):
            """A view."""

        async def impossible(ws: WebSocket[dict[int, str]]):
            """A view."""

        with pytest.raises(RoutingError, match=r"expected at most two types .* write a union"):
            App().add_websocket_route(many, "/")
        with pytest.raises(TypeError, match="a key in JSON is str"):
            App().add_websocket_route(impossible, "/")

    async def test_messagepack_and_a_replaced_json_codec_have_types_too(self):
        class Reversed:
            frames = "text"

            def encode(self, value):
                return JSONResponse(value).body.decode()[::-1]

            def decode(self, text):
                return {"type": "say", "text": text}

        async def echo(ws: WebSocket[Say]):
            async with ws:
                async for message in ws:
                    assert type(message) is Say
                    await ws.send(message)

        app = App()
        app.add_websocket_route(echo, "/before", name="before")
        app.add_codec("json", Reversed())
        app.add_websocket_route(echo, "/json")
        app.add_websocket_route(echo, "/msgpack", value_type="msgpack", name="msgpack")
        async with app.test_client() as client:
            for path in ("/before", "/json"):
                async with client.websocket(path) as ws:
                    await ws.send_text("x")
                    assert await ws.receive_text() == '{"type":"say","text":"x"}'[::-1]
            async with client.websocket("/msgpack") as ws:
                await ws.send_bytes(msgpack.encode({"type": "say", "text": "x"}))
                assert msgpack.decode(await ws.receive_bytes()) == {"type": "say", "text": "x"}

    async def test_receive_and_send_take_a_type_for_once(self):
        app = App()

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                say = await ws.receive(type=Say)
                await ws.send(Move(1, 2), type=Move)
                await ws.send_json([say, Model(n=1)])

        async with app.test_client() as client, client.websocket("/") as ws:
            await ws.send_json({"type": "say", "text": "a"})
            assert await ws.receive_json() == {"type": "move", "x": 1, "y": 2}
            assert await ws.receive_json() == [{"type": "say", "text": "a"}, {"n": 1}]

    async def test_the_test_client_finds_a_value_of_another_type_that_is_sent(self):
        app = App()

        @app.websocket_route("/")
        async def view(ws: WebSocket[Say, Said]):
            async with ws:
                await ws.send(Said("a", 1))

        async with app.test_client() as client:
            with pytest.raises(TypeError, match=r"^expected a value of Said, .* got `int` - at `\$.text`"):
                async with client.websocket("/") as ws:
                    await ws.receive()


class TestOnInvalidError:
    @staticmethod
    def app(**options):
        app = App()

        @app.websocket_route("/", on_invalid="error", **options)
        async def view(ws: WebSocket[Say, Said]):
            async with ws:
                async for message in ws:
                    await ws.send(Said("x", message.text))

        return app

    async def test_the_client_is_told_and_the_connection_lives(self, caplog):
        async with self.app().test_client() as client:
            async with client.websocket("/") as ws:
                await ws.send({"type": "say", "text": 1})
                error = {"type": "error", "detail": "Expected `str`, got `int`", "path": "$.text"}
                assert await ws.receive() == error
                await ws.send_bytes(b"x")
                error = {"type": "error", "detail": "expected a text frame, got a binary one", "path": "$"}
                assert await ws.receive_json() == error
                await ws.send(Say("hi"))
                assert await ws.receive() == Said("x", "hi")
            lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        first, last = lines
        assert first.startswith(
            "'/': answered an invalid message with an error: Expected `str`, got `int` - at $.text;"
        )
        assert last == "'/': got 2 invalid messages of one connection in all"

    async def test_over_messagepack_the_client_is_told_in_it(self):
        async with self.app(value_type="msgpack").test_client() as client, client.websocket("/") as ws:
            await ws.send_bytes(b"\xc1")
            error = msgpack.decode(await ws.receive_bytes())
            assert error["type"] == "error"
            assert error["detail"].startswith("invalid MessagePack: ")

    async def test_a_route_of_frames_answers_in_json(self):
        app = App()

        @app.websocket_route("/", value_type="bytes", on_invalid="error")
        async def view(ws):
            async with ws:
                async for message in ws:
                    await ws.send(message)

        async with app.test_client() as client, client.websocket("/") as ws:
            await ws.send_text("text")
            error = {"type": "error", "detail": "expected a binary frame, got a text one", "path": "$"}
            assert await ws.receive_json() == error

    async def test_a_client_that_has_left_ends_the_loop_as_usual(self):
        app = App()
        ended = []

        @app.websocket_route("/", value_type="json", on_invalid="error")
        async def view(ws):
            await ws.accept()
            assert await ws.receive() == "wait"
            async for _ in ws:
                pass
            ended.append(ws.close_code)

        async with app.test_client() as client, client.websocket("/") as ws:
            await ws.send("wait")
            await ws.send_text("not JSON")
            ws.abort()
        assert ended == [1006]

    async def test_a_hundred_in_a_row_close_with_1008(self):
        async with self.app().test_client() as client, client.websocket("/") as ws:
            for _ in range(99):
                await ws.send_text("x")
            await ws.send(Say("x"))
            for _ in range(100):
                await ws.send_text("x")
            for _ in range(199):
                await ws.receive()
            with pytest.raises(WebSocketDisconnect, match=r"1008.*100 invalid messages in a row"):
                await ws.receive()


class TestTopics:
    async def test_a_topic_has_a_type_and_its_values_are_checked_in_tests(self):
        app = App()
        app.topic("game:*", value_type=Said | Move)
        app.topic("text", value_type=str)
        app.topic("models", value_type=Model, history=1)
        assert app.hub.settings("game:1").value_type == Said | Move

        @app.websocket_route("/", subscribe=["game:1", "models"])
        async def view(ws: WebSocket[Say, Said]):
            async with ws:
                await ws.wait_closed()

        async with app.test_client() as client, client.websocket("/") as ws:
            await app.publish("game:1", Said("a", "b"))
            assert await ws.receive() == Said("a", "b")
            # The view never sends a Move.
            await app.publish("game:1", Move(1, 2))
            assert await ws.receive() == {"type": "move", "x": 1, "y": 2}
            await app.publish("models", Model(n=1))
            assert await ws.receive() == {"n": 1}
            await app.publish("text", "text")
            for topic, value in (("game:1", Say("a")), ("game:1", "a"), ("text", b"a"), ("models", {"n": 1})):
                with pytest.raises(TypeError, match=rf"^{topic}: expected (a value of )?(Said|str|Model)"):
                    await app.publish(topic, value)

    async def test_routes_of_several_types_share_the_frame_of_a_message(self):
        app = App()

        @app.websocket_route("/said", subscribe="game")
        async def said(ws: WebSocket[Say, Said]):
            async with ws:
                await ws.wait_closed()

        @app.websocket_route("/json", value_type="json", subscribe="game")
        async def untyped(ws):
            async with ws:
                await ws.wait_closed()

        async with app.test_client() as client, client.websocket("/said") as typed, client.websocket("/json") as json:
            await app.publish("game", Said("a", "b"))
            assert await typed.receive() == Said("a", "b")
            assert await json.receive() == {"type": "said", "user": "a", "text": "b"}
            assert len(app.hub._topics["game"].groups) == 1

    async def test_without_a_check_a_value_of_another_type_is_published(self):
        app = App()
        app.topic("game:*", value_type=Said)
        async with app.running(), app.subscribe("game:1") as messages:
            await app.publish("game:1", Move(1, 2))
            assert await anext(messages) == {"type": "move", "x": 1, "y": 2}

    def test_another_process_is_not_told_the_type(self):
        settings = TopicSettings(history=1, value_type=Said)
        assert settings_from_json(loads_json(dumps_json(settings_to_json(settings)))) == TopicSettings(history=1)

    @pytest.mark.parametrize(
        ("value_type", "problem"), [("json", "expected a type as value_type"), (dict[int, str], "a key in JSON is str")]
    )
    def test_what_is_no_type_of_a_topic_is_refused(self, value_type, problem):
        with pytest.raises(TypeError, match=problem):
            App().topic("a", value_type=value_type)


class TestRequests:
    async def test_a_view_gets_the_body_and_the_query_of_its_types(self):
        app = App()

        @app.post("/", query=Filter)
        async def vote(request: Request[Vote]) -> Poll:
            found = await request.json()
            return {"votes": found.choice + request.typed_query.limit}

        endpoint: HTTPEndpoint = endpoint_of(app, "http")
        assert (endpoint.body_type, endpoint.query_type, endpoint.return_type) == (Vote, Filter, Poll)
        async with app.test_client() as client:
            response = await client.post("/?limit=3&tags=a", json={"choice": 1})
            assert response.json() == {"votes": 4}
            response = await client.post("/", json={"choice": "1"})
            assert (response.status, response.json()) == (400, {"error": "Expected `int`, got `str` - at $.choice"})
            response = await client.post("/?limit=x", json={"choice": 1})
            assert response.json() == {"error": "invalid query: Expected `int`, got `str` - at $.limit"}

    async def test_a_query_has_lists_models_and_types_of_request(self):
        class Page(BaseModel):
            size: int = 10
            of: list[str] = []

        app = App()

        @app.get("/model", query=Page)
        async def model(request):
            return request.typed_query

        @app.get("/filter")
        async def filtered(request: Request[Any, Filter]):
            return [request.typed_query.limit, request.typed_query.tags]

        async with app.test_client() as client:
            assert (await client.get("/model?size=2&of=a&of=b")).json() == {"size": 2, "of": ["a", "b"]}
            response = await client.get("/model?size=x")
            assert (response.status, response.text) == (
                400,
                "invalid query: Input should be a valid integer, unable to parse string as an integer - at $.size",
            )
            assert (await client.get("/filter?tags=a&other=1")).json() == [10, ["a"]]

    @pytest.mark.parametrize("query", [int, list[int], dict[str, int], Move])
    def test_a_query_or_annotation_that_does_not_fit_is_refused(self, query):
        async def view(request: Request[Any, Filter]):
            """A view."""

        async def plain(request):
            """A view."""

        with pytest.raises(RoutingError, match=r"query=.* contradicts its annotation \[Filter\]"):
            App().add_route(view, "/", query=query)
        if query is not Move:
            with pytest.raises(TypeError, match="expected a class with a field for each parameter"):
                App().add_route(plain, "/", query=query)

    @pytest.mark.parametrize(
        ("annotation", "expected"),
        [
            (Poll, Poll),
            (Poll | None, Poll),
            (tuple[Poll, int], Poll),
            (tuple[Poll, int, dict[str, str]], Poll),
            (Poll | RedirectResponse, Poll),
            (Poll | tuple[str, int], Poll | str),
            (RedirectResponse, None),
            (None, None),
            (Any, None),
            (tuple[Poll, ...], None),
            ("Nowhere", None),
        ],
    )
    def test_the_type_of_the_body_is_that_of_the_annotation_of_the_return_value(self, annotation, expected):
        async def view(request):
            """A view."""

        view.__annotations__["return"] = annotation
        app = App()
        app.add_route(view, "/")
        assert endpoint_of(app, "http").return_type == expected

    def test_the_names_of_a_wrapped_view_are_those_of_its_own_module(self):
        elsewhere: dict[str, Any] = {}
        exec(
            "from functools import wraps\n"
            "def decorate(view):\n"
            "    @wraps(view)\n"
            "    async def wrapper(*args, **kwargs): return await view(*args, **kwargs)\n"
            "    return wrapper\n",
            elsewhere,
        )

        @elsewhere["decorate"]
        async def view(request: Request[Vote]) -> Poll:
            """A view."""

        app = App()
        app.add_route(view, "/")
        endpoint: HTTPEndpoint = endpoint_of(app, "http")
        assert (endpoint.body_type, endpoint.return_type) == (Vote, Poll)

    async def test_a_returned_dataclass_is_encoded_as_its_type_says(self):
        @dataclass
        class Price:
            amount: Decimal

        async def view(request):
            return Price(Decimal("1.50")), 201

        async def untyped(request):
            return Price(Decimal("1.50"))

        view.__annotations__["return"] = tuple[Price, int]
        app = App()
        app.add_route(view, "/")
        app.add_route(untyped, "/untyped")
        async with app.test_client() as client:
            response = await client.get("/")
            assert (response.status, response.json()) == (201, {"amount": "1.50"})
            with pytest.raises(TypeError, match=r"value.amount is of type Decimal"):
                await client.get("/untyped")

    @pytest.mark.parametrize(
        ("annotation", "value", "problem"),
        [
            (
                Poll,
                {"votes": "1"},
                r"^.*returned a value that is not of its annotation: expected a value of Poll.* `\$.votes`$",
            ),
            (Poll, ({"votes": "1"}, 201), r"expected a value of Poll"),
            (Vote, "text", "expected a value of Vote, got 'text'"),
            (list[Model], [{"n": 1}], r"expected a value of list\[Model\]"),
            (str, "text", None),
            (Vote | str, "text", None),
            (Said, (Said("a", "b"), 201), None),
            (list[Model], [Model(n=1)], None),
            (Poll | None, None, None),
            (Poll, JSONResponse({}), None),
            (dict[str, object], {"a": 1}, None),
        ],
    )
    async def test_the_test_client_finds_a_returned_value_of_another_type(self, annotation, value, problem):
        async def view(request):
            return value

        view.__annotations__["return"] = annotation
        app = App()
        app.add_route(view, "/")
        async with app.test_client() as client:
            if problem is None:
                assert (await client.get("/")).status < 300
            else:
                with pytest.raises(TypeError, match=problem):
                    await client.get("/")


class TestChecks:
    def test_dev_and_the_test_client_check_mounted_apps_too(self):
        app, inner = App(), App()
        app.mount("/inner", inner)
        assert (app._codecs.checks, inner._codecs.checks) == (False, False)
        app._develop(lambda hub: None)
        assert (app._codecs.checks, inner._codecs.checks) == (True, True)

        app, inner = App(), App()
        app.mount("/inner", inner)
        app.test_client()
        assert (app._codecs.checks, inner._codecs.checks) == (True, True)


class TestInvalidMessage:
    def test_its_text_ends_with_the_path(self):
        error = InvalidMessage("Expected `int`", path="$.x")
        assert (error.detail, error.path, str(error)) == ("Expected `int`", "$.x", "Expected `int` - at $.x")
