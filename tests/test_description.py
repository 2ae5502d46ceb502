"""What an app consists of, for its documents."""

from dataclasses import dataclass, make_dataclass

import pytest

from microws import App, EventStream, HTTPException, Request, WebSocket
from microws.description import Description, RouteDescription, Schemas


def described(app: App) -> Description:
    return app._description()


def route(app: App, pattern: str) -> RouteDescription:
    return next(each for each in described(app).routes if each.pattern == pattern)


def test_websocket_route_has_its_options():
    app = App()

    @app.websocket_route("/chat/{room}", value_type="json", subscribe="chat:{room}", subprotocols=["v1"], gaps=True)
    async def chat(ws, room):
        """A room.

        With topics.
        """

    found = route(app, "/chat/{room}")
    assert found.kind == "websocket"
    assert (found.receives, found.sends) == ("json", "json")
    assert (found.subscribe, found.subprotocols, found.gaps) == (("chat:{room}",), ("v1",), True)
    assert found.doc == "A room.\n\nWith topics."
    assert (found.file, found.view) == (__file__, "chat")
    assert found.parameters == ({"name": "room", "converter": "str", "schema": {"type": "string"}},)


def test_view_that_names_event_stream_is_server_sent_events():
    app = App()

    @app.get("/prices")
    async def prices():
        return EventStream(app.stream("prices"))

    @app.get("/items/{n:int}")
    async def item(n):
        return {"n": n}

    assert [each.kind for each in described(app).routes] == ["sse", "http"]
    assert route(app, "/items/{n:int}").parameters[0]["schema"] == {"type": "integer", "minimum": 0}


def test_routes_of_included_and_mounted_apps_have_their_prefix():
    inner, outer, included = App(), App(), App()
    inner.add_route(lambda: "", "/in", name="in")
    included.add_route(lambda: "", "/all", name="all")
    outer.include(included, prefix="/part")
    outer.mount("/sub", inner)
    assert [(each.kind, each.pattern, each.depth) for each in described(outer).routes] == [
        ("http", "/part/all", 0),
        ("mount", "/sub", 0),
        ("http", "/sub/in", 1),
    ]
    # What an included app says of itself is what it belongs to.
    assert described(included) == described(outer)


def test_topics_come_in_their_order_with_those_of_included_apps():
    app, included = App(), App()
    app.topic("a:*", history=5, ttl=60)
    included.topic("*", overflow="latest")
    app.include(included)
    assert [(each.pattern, each.history, each.overflow) for each in described(app).topics] == [
        ("a:*", 5, "close"),
        ("*", 0, "latest"),
    ]


def test_title_is_the_name_of_the_file():
    assert described(App()).title == "test_description"


def test_to_json_leaves_out_what_is_not_there():
    app = App()
    app.add_route(lambda: "", "/")
    (found,) = described(app).to_json()["routes"]
    assert found["methods"] == ["GET", "HEAD"]
    assert "receives" not in found
    assert described(app).to_json()["limits"] == {"max_message_size": 1 << 20, "max_body_size": 1 << 20}


def test_credentials_are_those_that_the_code_of_views_and_hooks_reads():
    app = App(secret=b"0" * 32)

    @app.before_request
    def hook(request):
        if request.bearer is None:
            raise HTTPException(401)

    @app.get("/{room}")
    def page_of_room(room, request):
        return [request.session.get("user"), room.take_ticket]

    @app.get("/")
    def page(request):
        pool.session  # noqa: B018, F821 - of another object

    async def login(ws, message):
        return ws.session

    @app.websocket_route("/", login=login)
    async def chat(ws):
        await ws.take_ticket()

    assert [each.credentials for each in described(app).routes] == [
        ("bearer", "session"),
        ("bearer",),
        ("session", "ticket"),
    ]


def test_handled_errors_are_those_with_an_error_handler():
    app = App()
    app.add_route(lambda: "", "/")
    app.error_handler(404)(lambda request, error: "")
    app.error_handler(ValueError)(lambda request, error: "")
    assert route(app, "/").handled_errors == (404,)
    app.error_handler(Exception)(lambda request, error: "")
    assert route(app, "/").handled_errors == (400, 401, 403, 404, 413, 421, 426, 500, 503)


def test_rate_and_origins_are_written_as_in_the_route():
    app = App(origins=["https://app.example"])

    @app.websocket_route("/", rate="20/s", origins=["https://a.example"])
    async def view(ws): ...

    @app.websocket_route("/closing", rate="100/min", rate_excess="close")
    async def closing(ws): ...

    first, second = described(app).routes
    assert (first.rate, first.origins) == ("20/s", ("https://a.example",))
    assert (second.rate, second.origins) == ("100/min close", None)


@dataclass
class Say:
    text: str


@dataclass
class Said:
    user: str
    text: str


def test_types_become_schemas_by_name():
    app = App()
    app.topic("chat:*", value_type=Said)

    @app.websocket_route("/chat/{room}", subscribe="chat:{room}")
    async def chat(ws: WebSocket[Say, bytes], room): ...

    @app.post("/say")
    async def say(request: Request[Say]) -> Said | None: ...

    found = described(app)
    first, second = found.routes
    said = {"schema": {"$ref": "#/components/schemas/Said"}}
    assert (first.receives, first.sends) == ({"schema": {"$ref": "#/components/schemas/Say"}}, "bytes")
    assert first.delivers == (said,)
    assert (second.body, second.query, second.returns) == (first.receives, None, said)
    assert sorted(found.schemas) == ["Said", "Say"]
    assert found.schemas["Say"]["properties"]["text"] == {"type": "string"}


def test_different_types_of_one_name_get_names_of_their_own():
    schemas = Schemas()
    one = make_dataclass("Item", [("inner", make_dataclass("Inner", [("a", int)]))])
    other = make_dataclass("Item", [("inner", make_dataclass("Inner", [("b", int)]))])
    third = make_dataclass("Inner", [("c", int)])
    types = [schemas.json(each, "received") for each in (one, other, third, other, one)]
    names = [each["schema"]["$ref"].rpartition("/")[2] for each in types]
    assert names == ["Item", "Item2", "Inner3", "Item2", "Item"]
    assert sorted(schemas.components) == ["Inner", "Inner2", "Inner3", "Item", "Item2"]
    inner = schemas.components["Item2"]["properties"]["inner"]
    assert inner == {"$ref": "#/components/schemas/Inner2"}


def test_mounted_app_shares_the_names_of_schemas():
    inner, outer = App(), App()
    other = make_dataclass("Say", [("n", int)])

    @inner.websocket_route("/", value_type=other)
    async def numbers(ws): ...

    @outer.websocket_route("/", value_type=Say)
    async def texts(ws): ...

    outer.mount("/in", inner)
    assert sorted(described(outer).schemas) == ["Say", "Say2"]
    assert described(outer).routes[-1].receives == {"schema": {"$ref": "#/components/schemas/Say2"}}


@pytest.mark.parametrize(
    ("topics", "subscribe", "delivered"),
    [
        (["chat:*"], "chat:{a}", [0]),
        (["game:*"], "chat:{a}", []),
        (["chat:vip", "chat:*", "*"], "chat:{a}", [0, 1]),
        (["*:log", "chat:*"], "chat:{a}", [0, 1]),
        (["*:log", "chat:*"], ["chat:{a}:x", "{a}:log"], [1, 0]),
        (["all"], "all", [0]),
        (["*"], "a*{a}{{", [0]),
    ],
)
def test_route_delivers_the_types_of_all_topics_that_it_may_subscribe_to(topics, subscribe, delivered):
    app = App()
    types = [make_dataclass(f"Type{index}", []) for index in range(len(topics))]
    for pattern, each in zip(topics, types, strict=True):
        app.topic(pattern, value_type=each)

    @app.websocket_route("/{a}", subscribe=subscribe)
    async def view(ws, a): ...

    names = [each["schema"]["$ref"].rpartition("/")[2] for each in route(app, "/{a}").delivers]
    assert names == [f"Type{index}" for index in delivered]


def test_outermost_app_checks_the_host_of_all_but_its_own_probes():
    inner, middle, outer = App(), App(), App(allowed_hosts=["a.example"])
    inner.health()
    middle.mount("/", inner)
    outer.health()
    outer.mount("/in", middle)
    assert [
        (each.pattern, each.depth, each.checks_host) for each in described(outer).routes if each.kind == "http"
    ] == [
        ("/healthz", 0, False),
        ("/readyz", 0, False),
        ("/in/healthz", 2, True),
        ("/in/readyz", 2, True),
    ]
    assert [each.pattern for each in described(outer).routes if each.kind == "mount"] == ["/in", "/in"]
