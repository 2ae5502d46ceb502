"""What an app consists of, for its documents."""

from microws import App, EventStream
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
    assert route(app, "/items/{n:int}").parameters[0]["schema"] == {"type": "integer"}


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
