"""Messages, bodies and queries with the types of annotations, from the client's side."""

from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import pytest
from msgspec import Meta, Struct

from microws import App, InvalidMessage, Request, RoutingError, WebSocket
from microws.views import HTTPEndpoint, WebSocketEndpoint

pytestmark = pytest.mark.anyio


class Say(Struct, tag="say", tag_field="type"):
    text: Annotated[str, Meta(max_length=500)]


class Move(Struct, tag="move", tag_field="type"):
    x: float
    y: float


class Said(Struct, tag="said", tag_field="type"):
    user: str
    text: str


@dataclass
class Vote:
    choice: int


class Poll(TypedDict):
    votes: int


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


class TestInvalidMessage:
    def test_its_text_ends_with_the_path(self):
        error = InvalidMessage("Expected `int`", path="$.x")
        assert (error.detail, error.path, str(error)) == ("Expected `int`", "$.x", "Expected `int` - at $.x")
