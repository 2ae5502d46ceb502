"""What an app consists of, for its documents."""

from microws import App, EventStream, HTTPException
from microws.description import Description, RouteDescription


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
