"""The AsyncAPI and OpenAPI documents of an app, and the JSON Schema of its types."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from microws import App, EventStream, HTTPException, Message, RedirectResponse, Request, Response, WebSocket
from microws.description import write_types


class Say(Message):
    """Something to say."""

    text: str


class Move(Message):
    x: float


class Said(Message):
    user: str


@dataclass
class Filter:
    limit: int
    tags: list[str] | None = None


REF = "#/components/schemas/"


def channel_of(app: App) -> dict[str, Any]:
    (channel,) = app.asyncapi()["channels"].values()
    return channel


def operation_of(app: App, method: str, path: str) -> dict[str, Any]:
    return app.openapi()["paths"][path][method]


def payloads(document: dict[str, Any], operation: str) -> list[Any]:
    """The payloads of the messages of an operation, through all references."""
    keys = [each["$ref"].rpartition("/")[2] for each in document["operations"][operation]["messages"]]
    return [document["components"]["messages"][key]["payload"] for key in keys]


class TestAsyncAPI:
    def test_channel_has_a_message_for_each_class(self):
        app = App()
        app.topic("game:*", value_type=Said, history=10)

        @app.websocket_route("/game/{room:int}", subscribe="game:{room}", on_invalid="error")
        async def game(ws: WebSocket[Say | Move, bytes], room: int) -> None:
            """Play.

            Until somebody wins.
            """

        document = app.asyncapi(title="Game", version="1.2")
        assert document["info"] == {"title": "Game", "version": "1.2"}
        assert payloads(document, "game.receive") == [{"$ref": f"{REF}Say"}, {"$ref": f"{REF}Move"}]
        names = ("Said", "GapMarker", "MessageError")
        assert payloads(document, "game.send")[1:] == [{"$ref": f"{REF}{name}"} for name in names]
        messages = document["components"]["messages"]
        assert messages["bytes"]["contentType"] == "application/octet-stream"
        assert messages["Say"]["contentType"] == "application/json"
        schemas = document["components"]["schemas"]
        assert sorted(schemas) == ["GapMarker", "MessageError", "Move", "Said", "Say"]
        assert schemas["Say"]["properties"]["type"] == {"enum": ["say"]}
        channel = document["channels"]["game"]
        assert channel["address"] == "/game/{room}"
        assert channel["summary"] == "Play."
        assert channel["description"].startswith("Play.\n\nUntil somebody wins.\n\nSends what is published to `game:")
        assert channel["parameters"] == {"room": {"description": "As the converter `int` takes it."}}
        assert channel["bindings"]["ws"]["query"]["properties"] == {"since": {"type": "string"}}

    @pytest.mark.parametrize(
        ("value_type", "names"),
        [("text", ["text"]), ("bytes", ["bytes"]), ("auto", ["text", "bytes"]), ("json", ["json"]), ("own", ["own"])],
    )
    def test_message_without_a_type_has_the_name_of_its_codec(self, value_type, names):
        class Own:
            frames = "any"
            encode = decode = str

        app = App()
        app.add_codec("own", Own())

        @app.websocket_route("/", value_type=value_type)
        async def view(ws): ...

        assert sorted(channel_of(app)["messages"]) == sorted(names)

    def test_typed_messages_of_msgpack_have_their_own_content_type(self):
        app = App()

        @app.websocket_route("/", value_type="msgpack")
        async def view(ws: WebSocket[Say]): ...

        assert app.asyncapi()["components"]["messages"]["Say"]["contentType"] == "application/msgpack"

    def test_schemas_are_those_of_draft_7(self):
        app = App()

        @app.websocket_route("/")
        async def view(ws: WebSocket[tuple[int, Say | Move]]): ...

        messages = app.asyncapi()["components"]["messages"]
        assert list(messages) == ["view.message"]
        assert messages["view.message"]["payload"] == {
            "type": "array",
            "items": [{"type": "integer"}, {"anyOf": [{"$ref": f"{REF}Say"}, {"$ref": f"{REF}Move"}]}],
            "additionalItems": False,
            "minItems": 2,
            "maxItems": 2,
        }

    def test_model_of_pydantic_has_its_name_and_the_route_its_subprotocols(self):
        class Model(BaseModel):
            n: int = 0

        app = App()

        @app.websocket_route("/", subprotocols=["v1", "v2"])
        async def view(ws: WebSocket[Model]): ...

        document = app.asyncapi()
        assert payloads(document, "view.receive") == [{"$ref": f"{REF}Model"}]
        assert document["channels"]["view"]["description"] == "Subprotocols: v1, v2."

    def test_close_codes_and_refusals_are_those_that_may_happen(self):
        app = App(allowed_hosts=["a.example"], max_message_size=5000, error_close_code=4000)

        async def login(ws, message): ...

        @app.websocket_route("/{id:int}", value_type="json", login=login, rate="5/s", rate_excess="close")
        async def view(ws, id):  # noqa: A002
            await ws.take_ticket()

        channel = channel_of(app)
        assert list(channel["x-close-codes"]) == [
            *("1003", "1007", "1008", "1009", "4000", "1012", "1013", "3400-3599"),
        ]
        assert channel["x-close-codes"]["1008"] == (
            "The login failed, or took too long; or the client sends more messages than it may."
        )
        assert channel["x-close-codes"]["1009"] == "A message has more than 5,000 bytes."
        assert sorted(channel["x-handshake-errors"]) == ["400", "401", "403", "404", "421", "426", "500", "503"]

    def test_plain_route_has_no_refusals_and_close_codes_of_features_that_it_does_not_use(self):
        app = App()

        @app.websocket_route("/", value_type="auto")
        async def view(ws): ...

        channel = channel_of(app)
        assert list(channel["x-close-codes"]) == ["1007", "1009", "1011", "1012", "1013", "3400-3599"]
        assert sorted(channel["x-handshake-errors"]) == ["400", "403", "426", "500", "503"]

    def test_security_is_only_what_a_client_must_send(self):
        app = App(secret=b"0" * 32)

        @app.websocket_route("/ticket")
        async def strict(ws):
            await ws.take_ticket()

        @app.websocket_route("/bearer")
        async def optional(ws):
            print(ws.bearer)

        document = app.asyncapi()
        assert document["operations"]["strict.send"]["security"] == [{"$ref": "#/components/securitySchemes/ticket"}]
        assert "security" not in document["operations"]["optional.send"]
        assert sorted(document["components"]["securitySchemes"]) == ["bearer", "ticket"]
        assert "Reads, if the client sends it: bearer." in document["channels"]["optional"]["description"]

    def test_names_that_documents_do_not_allow_are_replaced(self):
        app = App()

        @app.websocket_route("/ä b/{straße}", name="für alle")
        async def first(ws, straße): ...

        @app.websocket_route("/c", name="f_r_alle")
        async def second(ws): ...

        channels = app.asyncapi()["channels"]
        assert list(channels) == ["f_r_alle", "f_r_alle2"]
        assert channels["f_r_alle"]["address"] == "/%C3%A4%20b/{stra_e}"


class TestOpenAPI:
    def test_operation_has_body_query_and_response(self):
        app = App()

        @app.put("/polls/{id:int}")
        async def vote(request: Request[Say, Filter], id: int) -> Said | None:  # noqa: A002
            """Vote.

            Once.
            """

        operation = operation_of(app, "put", "/polls/{id}")
        assert operation["operationId"] == "vote"
        assert (operation["summary"], operation["description"]) == ("Vote.", "Vote.\n\nOnce.")
        assert [(each["name"], each["in"], each["required"]) for each in operation["parameters"]] == [
            ("id", "path", True),
            ("limit", "query", True),
            ("tags", "query", False),
        ]
        assert operation["requestBody"]["content"] == {"application/json": {"schema": {"$ref": f"{REF}Say"}}}
        assert operation["responses"]["200"]["content"] == {"application/json": {"schema": {"$ref": f"{REF}Said"}}}
        assert sorted(operation["responses"]) == ["200", "204", "400", "403", "404", "413", "500"]

    def test_responses_without_a_known_type_have_no_content(self):
        app = App()

        @app.get("/")
        async def page(): ...

        @app.get("/html")
        async def html() -> str: ...

        @app.get("/mixed")
        async def mixed() -> str | Said: ...

        @app.get("/events")
        async def events() -> EventStream: ...

        @app.get("/either")
        async def either() -> str | bytes: ...

        @app.get("/own")
        async def own() -> Exception: ...

        def responses(path: str) -> dict[str, Any]:
            return operation_of(app, "get", path)["responses"]

        assert responses("/") == {
            "default": {"description": "What the view returns."},
            "500": {"$ref": "#/components/responses/Error", "description": "The view failed."},
        }
        assert list(responses("/html")["200"]["content"]) == ["text/html"]
        assert list(responses("/either")["200"]["content"]) == ["text/html", "application/octet-stream"]
        assert "content" not in responses("/mixed")["200"]
        assert "content" not in responses("/own")["200"]
        assert list(responses("/events")["200"]["content"]) == ["text/event-stream"]

    def test_errors_with_a_handler_of_the_app_have_no_content(self):
        app = App()

        @app.error_handler(403)
        async def forbidden(request, error): ...

        @app.post("/")
        async def page(): ...

        assert operation_of(app, "post", "/")["responses"]["403"] == {
            "description": "A page of another site has sent the request."
        }

    def test_websocket_is_a_get_that_switches_protocols(self):
        app = App()

        @app.websocket_route("/{room}", subscribe="chat:{room}")
        async def chat(ws, room): ...

        operation = operation_of(app, "get", "/{room}")
        assert sorted(operation["responses"]) == ["101", "400", "403", "426", "500", "503"]
        assert [each["name"] for each in operation["parameters"]] == ["room", "since"]

    def test_routes_whose_paths_differ_in_converters_only_are_one_path(self):
        app = App()

        @app.get("/users/{id:int}")
        async def by_id(request: Request[Any, Filter], id: int) -> Said:  # noqa: A002
            """By number."""

        @app.get("/users/{name}")
        async def by_name(name: str) -> Say:
            """By name."""

        @app.websocket_route("/users/{user:uuid}")
        async def live(ws, user): ...

        document = app.openapi()
        assert list(document["paths"]) == ["/users/{id}"]
        operation = document["paths"]["/users/{id}"]["get"]
        assert operation["operationId"] == "by_id"
        assert operation["description"] == "By number.\n\nBy name."
        path, limit, tags = operation["parameters"]
        assert path["schema"] == {
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}, {"type": "string", "format": "uuid"}]
        }
        assert [limit["required"], tags["required"]] == [False, False]
        assert operation["responses"]["200"]["content"]["application/json"]["schema"] == {
            "anyOf": [{"$ref": f"{REF}Said"}, {"$ref": f"{REF}Say"}]
        }
        assert sorted(operation["responses"]) == ["101", "200", "400", "403", "426", "500", "503"]

    @pytest.mark.parametrize(
        ("returns", "statuses"),
        [
            (Said, ["200"]),
            (dict[str, int] | None, ["200", "204"]),
            (None, ["204"]),
            (tuple[Said, int], ["2XX"]),
            (Said | RedirectResponse, ["2XX"]),
            (Response, ["default"]),
            (tuple[Any, int], ["default"]),
            (Any, ["default"]),
            ("Unknown", ["default"]),
        ],
    )
    def test_statuses_are_those_that_an_annotation_allows(self, returns, statuses):
        async def view(): ...

        view.__annotations__["return"] = returns
        app = App()
        app.add_route(view, "/")
        assert [each for each in operation_of(app, "get", "/")["responses"] if each != "500"] == statuses

    def test_operation_of_several_routes_takes_what_one_of_them_takes(self):
        app = App()
        app.topic("news", history=5)

        @app.post("/a/{x:int}")
        async def first(request: Request[Say], x: int): ...

        @app.post("/a/{y:path}")
        async def second(request: Request[Move], y: str):
            print(request.bearer)

        @app.post("/a/{z:uuid}")
        async def third(z): ...

        operation = operation_of(app, "post", "/a/{x}")
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert schema == {"anyOf": [{"$ref": f"{REF}Say"}, {"$ref": f"{REF}Move"}]}
        assert operation["requestBody"]["required"] is False
        assert operation["security"] == [{}, {"bearer": []}]
        assert "404" not in operation["responses"]

    def test_security_may_be_left_out_where_a_view_only_reads_it(self):
        app = App(secret=b"0" * 32)

        @app.get("/")
        async def page(request):
            if request.session.get("user") is None:
                raise HTTPException(401)

        assert operation_of(app, "get", "/")["security"] == [{"session": []}, {}]
        assert app.openapi()["components"]["securitySchemes"] == {
            "session": {"type": "apiKey", "name": "session", "in": "cookie"}
        }

    def test_methods_have_operations_of_their_own_without_those_that_openapi_lacks(self):
        app = App()
        app.add_route(lambda: "", "/", methods=["GET", "POST", "PURGE"], name="all")
        app.add_route(lambda: "", "/head", methods=["HEAD"], name="head")
        app.add_route(lambda: "", "/purge", methods=["PURGE"], name="purge")
        paths = app.openapi()["paths"]
        assert {path: sorted(item) for path, item in paths.items()} == {"/": ["get", "post"], "/head": ["head"]}
        assert paths["/"]["post"]["operationId"] == "all_post"

    def test_page_of_the_app_is_in_no_document(self):
        app = App()
        app.docs(public=True)
        assert app.openapi()["paths"] == {}


def test_types_of_routes_have_names():
    app = App()
    app.topic("*", value_type=Said)

    @app.websocket_route("/", name="the game", subscribe="game")
    async def game(ws: WebSocket[Say | Move, Said]): ...

    @app.websocket_route("/plain", value_type="json", subscribe="game")
    async def plain(ws): ...

    document = write_types(app._description())
    assert sorted(document["definitions"]) == ["Move", "Said", "Say", "TheGameReceives", "TheGameSends"]
    assert document["definitions"]["TheGameReceives"] == {
        "title": "TheGameReceives",
        "anyOf": [{"$ref": "#/definitions/Say"}, {"$ref": "#/definitions/Move"}],
    }
    assert document["definitions"]["TheGameSends"] == {
        "title": "TheGameSends",
        "anyOf": [{"$ref": "#/definitions/Said"}],
    }
    assert "/components/" not in json.dumps(document)
