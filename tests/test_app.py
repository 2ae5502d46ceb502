"""The app: what is registered with it, its settings, and apps within apps."""

import inspect
import json
import logging
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_type_hints

import anyio
import anyio.to_thread
import httpx
import pytest
from asking import ask, ask_websocket

from microws import (
    App,
    FeatureUnavailable,
    HTTPException,
    MicrowsError,
    Receipt,
    RoutingError,
)
from microws.server.settings import SETTINGS, RunOptions
from microws.testing import ClientOptions, TestClient

pytestmark = pytest.mark.anyio


async def accepting(ws):
    async with ws:
        pass


async def nothing(request):
    """A view."""


async def wait(ws):
    """A WebSocket view that waits for its client's end."""
    async with ws:
        async for _ in ws:
            pass


class TestSettings:
    @pytest.mark.parametrize(
        "name", ["max_message_size", "max_fragments", "receive_queue", "max_subscriptions", "threads"]
    )
    @pytest.mark.parametrize("value", [0, -1, 1.5, "1", None, True, float("nan")])
    def test_a_number_of_things_is_1_or_more(self, name, value):
        with pytest.raises(ValueError, match=f"{name}: expected a whole number, 1 or more, got {value!r}"):
            App(**{name: value})

    @pytest.mark.parametrize("value", [-1, 0.5, "1", None, True])
    def test_a_body_has_0_bytes_or_more(self, value):
        with pytest.raises(ValueError, match="max_body_size: expected a whole number, 0 or more"):
            App(max_body_size=value)

    @pytest.mark.parametrize("name", ["send_timeout", "accept_timeout", "close_timeout"])
    @pytest.mark.parametrize("value", [0, -1, "1", None, True, float("nan"), float("inf")])
    def test_a_time_out_is_greater_than_0_and_finite(self, name, value):
        with pytest.raises(ValueError, match=f"{name}: expected a number of seconds greater than 0, got {value!r}"):
            App(**{name: value})

    @pytest.mark.parametrize("value", [999, 1004, 1005, 1006, 1015, 2999, 5000, "1011", None, 1011.0])
    def test_the_close_code_of_errors_is_one_that_may_be_sent(self, value):
        with pytest.raises(ValueError, match=r"error_close_code|expected a close code of"):
            App(error_close_code=value)

    @pytest.mark.parametrize("origins", ["https://a.example", ["a.example"], ["https://a.example/path"], ["null"]])
    def test_origins_are_a_list_of_what_browsers_send(self, origins):
        with pytest.raises(ValueError, match="origins"):
            App(origins=origins)
        with pytest.raises(ValueError, match="origins"):
            App().add_websocket_route(wait, "/", origins=origins)

    def test_the_backplane_is_a_known_str(self):
        for hub in ("", "mem", "http://x", "memory://", "local:"):
            with pytest.raises(ValueError, match="expected memory, local, local:PATH, redis://HOST or"):
                App(hub=hub)
        for hub in (None, 5, b"memory"):
            with pytest.raises(TypeError, match='such as "memory"'):
                App(hub=hub)
        with pytest.raises(ValueError, match="history_bytes: expected a multiple of 4096"):
            App(history_bytes=100_001)

    def test_settings_are_known_keywords(self):
        assert App(max_message_size=5).max_message_size == 5
        with pytest.raises(TypeError, match="max_size"):
            App(max_size=1)
        with pytest.raises(TypeError):
            App(1024)


@dataclass
class Point:
    x: int


class TestFeaturesOfLaterVersions:
    """Where one is asked for, a clear error says so."""

    def test_backplanes(self):
        with pytest.raises(FeatureUnavailable, match=r"has no 'nats' backplane; use memory, local"):
            App(hub="nats://localhost")
        with pytest.raises(FeatureUnavailable, match="a Redis Cluster cannot carry a hub: use one Redis or Sentinel"):
            App(hub="redis+cluster://localhost")

    def test_the_error_is_a_not_implemented_error(self):
        assert issubclass(FeatureUnavailable, NotImplementedError)
        assert issubclass(FeatureUnavailable, MicrowsError)


class TestRoutes:
    @pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete"])
    async def test_a_shorthand_routes_one_method(self, method):
        app = App()
        view = getattr(app, method)("/", name="it")(answer_method)
        assert view is answer_method
        assert app.url_for("it") == "/"
        assert (await ask(app, method=method.upper())).text == method.upper()
        for other in {"GET", "POST", "PUT", "PATCH", "DELETE"} - {method.upper()}:
            assert (await ask(app, method=other)).status == 405

    async def test_a_route_is_for_get_by_default(self):
        app = App()
        app.route("/")(answer_method)
        app.route("/many", methods=["post", "PURGE"])(answer_method)
        assert (await ask(app, method="POST")).headers["allow"] == "GET, HEAD, OPTIONS"
        assert (await ask(app, "/many")).headers["allow"] == "OPTIONS, POST, PURGE"

    @pytest.mark.parametrize("decorator", ["route", "get", "post", "put", "patch", "delete", "websocket_route"])
    def test_a_decorator_without_its_parentheses_is_refused(self, decorator):
        with pytest.raises(TypeError, match=r"^expected a pattern in parentheses, .*, got <function nothing"):
            getattr(App(), decorator)(nothing)

    def test_an_error_handler_without_its_parentheses_is_refused(self):
        with pytest.raises(
            TypeError, match=r"^expected an exception class .*, got <function .*; write @app\.error_handler"
        ):
            App().error_handler(nothing)

    def test_add_methods_register_like_the_decorators(self):
        app = App()
        assert app.add_route(nothing, "/a", methods=["POST"], name="a") is None
        assert app.add_websocket_route(wait, "/b", name="b", value_type="json") is None
        assert (app.url_for("a"), app.url_for("b")) == ("/a", "/b")

    async def test_each_request_has_its_own_path_params(self):
        app = App()

        @app.route("/")
        async def page(request):
            request.path_params["seen"] = True
            return request.path_params

        @app.websocket_route("/", value_type="json")
        async def talk(ws):
            ws.path_params["heard"] = True
            async with ws:
                await ws.send(ws.path_params)

        async with app.test_client() as client:
            for _ in range(2):
                assert (await client.get("/")).json() == {"seen": True}
                async with client.websocket("/") as ws:
                    assert await ws.receive() == {"heard": True}

    async def test_an_added_converter_parses_and_formats(self):
        app = App()
        app.add_converter("hex", "[0-9a-f]+", parse=lambda text: int(text, 16), format=lambda value: f"{value:x}")
        app.add_route(lambda color: str(color), "/{color:hex}", name="color")
        assert (await ask(app, "/ff")).text == "255"
        assert app.url_for("color", color=255) == "/ff"
        assert (await ask(app, "/xyz")).status == 404

    def test_url_for_takes_the_name_of_the_view_or_of_the_route(self):
        app = App()
        app.add_route(nothing_of_a, "/a/{a}")
        app.add_route(nothing, "/b", name="other")
        assert app.url_for("nothing_of_a", a="ü/x") == "/a/%C3%BC%2Fx"
        assert app.url_for("other") == "/b"

    async def test_path_is_decoded_and_excludes_root_path(self):
        app = App()
        app.add_route(lambda request, name: [request.path, str(request.url)], "/x/{name}", name="x")
        response = await ask(app, "/api/x/a%20b", client={"root_path": "/api"})
        assert response.json() == ["/x/a b", "http://testserver/api/x/a%20b"]


async def answer_method(request):
    return request.method


async def nothing_of_a(a):
    """A view."""


class TestWebSocketRoutes:
    @pytest.mark.parametrize(
        ("options", "error", "complaint"),
        [
            ({"value_type": "jsn"}, ValueError, "did you mean 'json'"),
            ({"send_type": ""}, ValueError, "no value_type"),
            ({"subprotocols": "chat"}, ValueError, r"subprotocols=\['chat'\]"),
            ({"on_invalid": "ignore"}, ValueError, 'expected on_invalid="close", "skip" or "error"'),
            ({"value_typ": "json"}, TypeError, "value_typ"),
        ],
    )
    def test_invalid_options_are_errors_and_no_route_remains(self, options, error, complaint):
        app = App()
        with pytest.raises(error, match=complaint):
            app.add_websocket_route(wait, "/", **options)
        app.add_websocket_route(wait, "/")

    @pytest.mark.parametrize(
        ("subscribe", "error", "complaint"),
        [
            ("chat:{rom}", RoutingError, r"'chat:\{rom\}' needs 'rom', which the pattern '/\{room\}' does not have"),
            (["ok", "chat:{}"], RoutingError, "needs ''"),
            ("chat:{0}", RoutingError, "needs '0'"),
            ("chat:{room.name}", RoutingError, "needs 'room.name'"),
            ("chat:{room!r}", RoutingError, r"only the parameter's name; write \{room\}"),
            ("chat:{room:path}", RoutingError, r"only the parameter's name; write \{room\}"),
            ("chat:{room", ValueError, "write a brace of the topic twice"),
            ("chat:room}", ValueError, "write a brace of the topic twice"),
            ("chat\n", ValueError, "without control characters"),
            ("", ValueError, "at least one character"),
            ("x" * 255 + "{room}", ValueError, "at most 255"),
            ([5], TypeError, "expected topics such as"),
            (5, TypeError, "expected topics such as"),
            (0, TypeError, "expected topics such as"),
            ([None], TypeError, "expected topics such as"),
        ],
    )
    def test_a_topic_that_the_pattern_cannot_fill_names_both(self, subscribe, error, complaint):
        async def view(ws, room):
            """Takes the room."""

        with pytest.raises(error, match=complaint):
            App().websocket_route("/{room}", subscribe=subscribe)(view)

    async def test_a_double_brace_is_a_brace_of_the_topic(self):
        app = App()
        app.add_websocket_route(wait, "/", subscribe="{{x}}")
        async with app.test_client() as client, client.websocket("/") as ws:
            await app.publish("{x}", "hi")
            assert await ws.receive() == "hi"


class Hex:
    frames = "text"

    def encode(self, value):
        return f"{value:x}"

    def decode(self, data):
        return int(data, 16)


class SortedJSON:
    """Its words are told by their order."""

    frames = "text"

    def encode(self, value):
        return json.dumps(value, sort_keys=True, separators=(" ,", " :"))

    def decode(self, data):
        return json.loads(data)


class TestCodecs:
    async def test_an_added_json_codec_replaces_the_built_in_one(self):
        app = App()

        @app.websocket_route("/", value_type="json", subscribe="news")
        async def view(ws):
            async with ws:
                async for message in ws:
                    await ws.send(message)

        app.add_codec("json", SortedJSON())
        async with app.test_client() as client, client.websocket("/") as ws:
            await ws.send_text('{"b":1,"a":2}')
            assert await ws.receive_text() == '{"a" :2 ,"b" :1}'
            await app.publish("news", {"b": 1, "a": 2})
            assert await ws.receive_text() == '{"a" :2 ,"b" :1}'


class Recorder:
    """ASGI middleware that says when it was passed."""

    def __init__(self, app, *, name, log):
        self.app, self.name, self.log = app, name, log

    async def __call__(self, scope, receive, send):
        self.log.append(f"{self.name} {scope['type']}")
        await self.app(scope, receive, send)


class Rewriter:
    """ASGI middleware that rewrites the path."""

    def __init__(self, app, *, prefix):
        self.app, self.prefix = app, prefix

    async def __call__(self, scope, receive, send):
        if scope["type"] != "lifespan":
            scope = {**scope, "path": scope["path"].removeprefix(self.prefix)}
        await self.app(scope, receive, send)


async def mirror_later(scope, receive, send):
    await mirror(scope, receive, send)


class TestMiddleware:
    async def test_the_first_is_outermost_and_sees_every_scope(self):
        app, log = App(), []
        app.route("/")(nothing)
        app.add_websocket_route(wait, "/")
        for name in ("outer", "inner"):
            app.add_middleware(Recorder, name=name, log=log)
        async with app.test_client() as client:
            await client.get("/")
            async with client.websocket("/"):
                pass
        assert log == [f"{name} {kind}" for kind in ("lifespan", "http", "websocket") for name in ("outer", "inner")]

    async def test_it_runs_before_routing_and_may_rewrite_the_path(self):
        app = App()
        app.add_middleware(Rewriter, prefix="/v1")
        app.add_route(lambda request, name: [request.path, name], "/items/{name}")

        @app.websocket_route("/items/{name}")
        async def view(ws, name):
            async with ws:
                await ws.send(f"{ws.path} {name}")

        assert (await ask(app, "/v1/items/a%20b")).json() == ["/items/a b", "a b"]
        assert await ask_websocket(app, "/v1/items/a%20b") == "/items/a b a b"

    @pytest.mark.parametrize("middleware", [3, mirror_later, Rewriter(None, prefix="")])
    def test_an_invalid_middleware_is_a_type_error(self, middleware):
        with pytest.raises(TypeError, match=r"^expected middleware that is called as middleware\(app"):
            App().add_middleware(middleware)

    async def test_it_must_be_added_before_the_app_serves(self):
        app = App()
        await ask(app)
        with pytest.raises(RuntimeError, match="before the app serves"):
            app.add_middleware(Recorder, name="late", log=[])


async def mirror(scope, receive, send):
    """An ASGI app that answers with its own scope."""
    text = json.dumps([scope["root_path"], scope["path"]])
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": text})
        await send({"type": "websocket.close"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text.encode()})


class TestMount:
    @pytest.mark.parametrize(
        ("mounted", "hint"),
        [
            ("public", r"got 'public'; serve the files of a directory with app\.static\('/m', 'public'\)"),
            (Path("public"), r"with app\.static\('/m', 'public'\)"),
            (App, r"got <class 'microws\.app\.App'>; it is called as app\(scope, receive, send\)"),
            (None, "got None; it is called as"),
        ],
    )
    def test_a_mount_must_be_an_asgi_app(self, mounted, hint):
        with pytest.raises(TypeError, match=hint):
            App().mount("/m", mounted)

    def test_a_mount_has_no_list_of_origins(self):
        for origins in (["https://app.example"], None):
            with pytest.raises(TypeError, match=r"^expected origins=True or False of mount, .*; App\(origins=…\)"):
                App().mount("/m", mirror, origins=origins)

    async def test_a_class_with_awaitable_instances_is_an_asgi_app(self):
        class Page:
            def __init__(self, scope, receive, send):
                self.send = send

            def __await__(self):
                yield from self.send({"type": "http.response.start", "status": 200, "headers": []}).__await__()
                yield from self.send({"type": "http.response.body", "body": b"page"}).__await__()

        app = App()
        app.mount("/m", Page)
        assert (await ask(app, "/m/x")).text == "page"

    @pytest.mark.parametrize(
        ("root", "path", "scope"),
        [
            ("", "/mounted/x/y", ["/mounted", "/mounted/x/y"]),
            ("", "/mounted/", ["/mounted", "/mounted/"]),
            ("/api", "/api/mounted/x", ["/api/mounted", "/api/mounted/x"]),
        ],
    )
    async def test_it_gets_every_path_below_the_prefix_with_its_root_path(self, root, path, scope):
        app = App()
        app.mount("/mounted", mirror)
        client = {"root_path": root}
        assert (await ask(app, path, client=client)).json() == scope
        assert json.loads(await ask_websocket(app, path, client=client)) == scope

    async def test_routes_come_first_and_hooks_do_not_run_for_it(self):
        app, log = App(), []
        app.mount("/m", mirror)
        app.add_route(lambda: "route", "/m/here")
        app.before_request(lambda request: log.append(request.path))
        assert (await ask(app, "/m/here")).text == "route"
        assert (await ask(app, "/m/there")).json() == ["/m", "/m/there"]
        assert log == ["/m/here"]


def blueprint(log=None, *, name="inner"):
    """An app with one of everything, to be included."""
    log = [] if log is None else log
    app = App()
    app.state.inner = name
    app.topic("inner:*", queue=1, overflow="drop_oldest")
    app.add_codec("hex", HEX)
    app.add_converter("even", "[0-9]*[02468]", parse=int)

    @app.get("/items/{number:even}", name=f"{name}_item")
    async def item(request, number):
        return {"number": number, "app": request.app is app, "state": sorted(request.app.state._values)}

    @app.get("/fails/{error}")
    async def fails(error):
        raise {"lookup": LookupError, "value": ValueError, "http": HTTPException(418)}[error]

    @app.websocket_route("/hex", value_type="hex", subscribe="inner:news")
    async def hexadecimal(ws):
        async with ws:
            async for number in ws:
                await ws.send(number + 1)

    app.before_request(lambda request: log.append(f"{name} before"))
    app.after_request(lambda request, response: log.append(f"{name} after"))
    app.before_websocket(lambda ws: log.append(f"{name} before ws"))
    app.after_websocket(lambda ws: log.append(f"{name} after ws"))
    app.on_startup(lambda: log.append(f"{name} up"))
    app.on_shutdown(lambda: log.append(f"{name} down"))
    app.error_handler(LookupError)(lambda connection, error: (f"{name} lookup", 400))

    @app.lifespan
    async def live(app):
        log.append(f"{name} enter")
        yield
        log.append(f"{name} leave")

    return app


HEX = Hex()


class TestInclude:
    def test_include_takes_an_app_and_suggests_mount(self):
        with pytest.raises(TypeError, match=r"^expected an App to include, got <module .*; .* write app\.mount"):
            App().include(json)

    async def test_routes_converters_codecs_and_state_are_included(self):
        app, inner = App(), blueprint()
        app.state.inner = "mine"
        app.include(inner, "/inner")
        assert inner.state.inner == app.state.inner == "mine"
        async with app.test_client() as client:
            response = await client.get("/inner/items/42")
            assert response.json() == {"number": 42, "app": False, "state": ["inner"]}
            assert (await client.get("/inner/items/43")).status == 404
            assert (await client.get("/items/42")).status == 404
            async with client.websocket("/inner/hex") as ws:
                await ws.send(15)
                assert await ws.receive() == 16
        assert app.url_for("inner_item", number=2) == "/inner/items/2"
        assert inner.url_for("inner_item", number=2) == "/inner/items/2"

    async def test_later_hooks_of_the_including_app_are_around_its_own(self):
        log = []

        def register(app, name):
            app.before_request(lambda request: log.append(f"{name} before"))
            app.after_request(lambda request, response: log.append(f"{name} after"))
            app.before_websocket(lambda ws: log.append(f"{name} before"))
            app.after_websocket(lambda ws: log.append(f"{name} after"))

        inner, middle, outer = App(), App(), App()
        inner.get("/")(nothing)
        inner.websocket_route("/")(accepting)
        register(inner, "inner")
        middle.include(inner, "/inner")
        register(middle, "middle 1")
        outer.include(middle)
        async with outer.test_client() as client:
            register(outer, "outer 1")
            register(outer, "outer 2")
            expected = [f"{name} before" for name in ("outer 1", "outer 2", "middle 1", "inner")]
            expected += [f"{name} after" for name in ("inner", "middle 1", "outer 2", "outer 1")]
            await client.get("/inner/")
            assert log == expected
            log.clear()
            async with client.websocket("/inner/"):
                pass
            assert log == expected

    async def test_its_error_handlers_come_before_the_including_apps(self):
        app = App()
        app.get("/own")(fail_with_lookup)
        app.include(blueprint(), "/inner")
        app.error_handler(LookupError)(lambda connection, error: ("outer lookup", 400))
        app.error_handler(ValueError)(lambda connection, error: ("outer value", 400))
        app.error_handler(418)(lambda connection, error: ("outer 418", 418))
        async with app.test_client() as client:
            for path, text in (
                ("/inner/fails/lookup", "inner lookup"),
                ("/inner/fails/value", "outer value"),
                ("/inner/fails/http", "outer 418"),
                ("/own", "outer lookup"),
            ):
                assert (await client.get(path)).text == text

    async def test_its_startup_and_shutdown_run_once_in_order(self):
        app, log = App(), []
        app.on_startup(lambda: log.append("first"))
        app.include(blueprint(log), "/a")
        app.on_startup(lambda: log.append("last"))
        async with app.test_client():
            pass
        assert log == ["inner enter", "first", "inner up", "last", "inner down", "inner leave"]

    async def test_nested_apps_share_topics_and_state(self):
        log = []
        innermost, middle, app = blueprint(log, name="innermost"), App(), App()
        middle.before_request(lambda request: log.append("middle before"))
        middle.add_codec("hex", HEX)
        middle.include(innermost, "/innermost")
        app.before_request(lambda request: log.append("app before"))
        app.include(middle, "/middle")
        async with app.test_client() as client:
            assert log == ["innermost enter", "innermost up"]
            log.clear()
            assert (await client.get("/middle/innermost/items/2")).json()["number"] == 2
            assert log == ["app before", "middle before", "innermost before", "innermost after"]
            async with client.websocket("/middle/innermost/hex") as ws:
                for publisher in (innermost, middle, app):
                    assert (await publisher.publish("inner:news", 1)).subscribers == 1
                    assert await ws.receive() == 1
            innermost.state.x = 1
            assert app.state.x == middle.state.x == 1
            assert app.hub.settings("inner:x").queue == 1
            assert app.hub.settings("other").overflow == "close"
            assert app.hub is middle.hub is innermost.hub
            innermost.start_soon(anyio.sleep, 0)
        assert innermost.url_for("innermost_item", number=2) == "/middle/innermost/items/2"

    async def test_an_app_may_have_two_prefixes(self):
        log, inner, app = [], App(), App()
        inner.get("/{n}")(answer_n)
        inner.on_startup(lambda: log.append("up"))
        inner.before_request(lambda request: log.append("before"))
        app.include(inner, "/a")
        app.include(inner, "/b")
        async with app.test_client() as client:
            assert [(await client.get(path)).text for path in ("/a/x", "/b/y")] == ["x", "y"]
            assert log == ["up", "before", "before"]

    def test_a_conflict_is_an_error(self):
        app, other, codecs = App(), App(), App()
        app.get("/items/{n}")(answer_n)
        other.get("/items/{m}")(answer_m)
        with pytest.raises(RoutingError, match="can never be reached"):
            app.include(other)
        for each in (app, codecs):
            each.add_codec("hex", Hex())
        with pytest.raises(ValueError, match="exists already"):
            app.include(codecs)

    def test_it_is_included_in_one_other_app_only(self):
        app, inner = App(), App()
        app.include(inner)
        for includer, included in ((App(), inner), (app, app), (inner, App())):
            with pytest.raises(RuntimeError, match="include"):
                includer.include(included)

    def test_an_included_app_has_no_middleware(self):
        inner = App()
        inner.add_middleware(Recorder, name="x", log=[])
        with pytest.raises(RuntimeError, match="add it to the including app, or mount"):
            App().include(inner)

    @pytest.mark.parametrize(
        ("settings", "names"),
        [
            ({"allowed_hosts": ["admin.example"]}, "allowed_hosts=…"),
            (
                {"compression": True, "max_message_size": 5, "threads": 2},
                "max_message_size=…, compression=…, threads=…",
            ),
            ({"origins": []}, "origins=…"),
            ({"json_default": str, "redirect_slashes": False}, "json_default=…, redirect_slashes=…"),
        ],
    )
    def test_settings_that_an_include_would_lose_are_errors(self, settings, names):
        inner, middle = App(**settings), App(**settings)
        inner.get("/")(nothing)
        expected = f"got App({names}): give them to the app that includes it, or mount this one"
        with pytest.raises(RuntimeError) as caught:
            App().include(inner)
        assert str(caught.value).endswith(expected)
        middle.include(inner)
        with pytest.raises(RuntimeError) as caught:
            App().include(middle)
        assert str(caught.value).endswith(expected)
        App(**settings).include(middle)

    def test_settings_of_the_including_app_need_not_be_repeated(self):
        App(compression=True, allowed_hosts=["app.example"]).include(App(compression=False, templates="elsewhere"))

    @pytest.mark.parametrize(
        "register",
        [
            lambda app: app.add_route(nothing, "/late"),
            lambda app: app.add_websocket_route(wait, "/late"),
            lambda app: app.mount("/late", mirror),
            lambda app: app.include(App()),
            lambda app: app.static("/late", "."),
            lambda app: app.add_middleware(Recorder),
            lambda app: app.add_converter("late", "x"),
            lambda app: app.add_codec("late", Hex()),
            lambda app: app.before_request(nothing),
            lambda app: app.after_request(nothing),
            lambda app: app.before_websocket(nothing),
            lambda app: app.after_websocket(nothing),
            lambda app: app.error_handler(404)(nothing),
            lambda app: app.on_startup(nothing),
            lambda app: app.on_shutdown(nothing),
            lambda app: app.lifespan(nothing),
            lambda app: app.topic("late"),
        ],
    )
    def test_an_included_app_registers_nothing_more(self, register):
        inner = App()
        App().include(inner)
        with pytest.raises(RuntimeError, match="register before include"):
            register(inner)

    async def test_an_included_app_is_not_served_by_itself(self):
        inner = blueprint()
        App().include(inner)
        with pytest.raises(RuntimeError, match="serve that one"):
            await ask(inner, "/items/2")


async def answer_n(n):
    return n


async def answer_m(m):
    return m


async def fail_with_lookup():
    raise LookupError


class TestStatic:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "files" / "sub").mkdir(parents=True)
        (tmp_path / "files" / "page.html").write_text("page")
        (tmp_path / "files" / "sub" / "index.html").write_text("index")
        (tmp_path / "secret.txt").write_text("secret")
        (tmp_path / "files" / "link.txt").symlink_to(tmp_path / "secret.txt")
        return tmp_path / "files"

    async def test_files_are_served_with_conditions_and_ranges(self, folder):
        app = App()
        app.static("/static", folder)
        async with app.test_client() as client:
            response = await client.get("/static/page.html")
            assert (response.text, response.headers["content-type"]) == ("page", "text/html; charset=utf-8")
            headers = {"if-none-match": response.headers["etag"]}
            assert (await client.get("/static/page.html", headers=headers)).status == 304
            assert (await client.get("/static/page.html", headers={"range": "bytes=1-2"})).text == "ag"
            assert (await client.head("/static/page.html")).headers["content-length"] == "4"
            assert (await client.post("/static/page.html")).status == 405

    async def test_no_file_outside_is_served(self, folder):
        app = App()
        app.static("/static", folder)
        for path in ("absent", "../secret.txt", "..%2fsecret.txt", "link.txt", "/etc/passwd"):
            assert (await ask(app, f"/static/{path}")).status == 404

    async def test_a_directory_is_its_index_and_redirects_to_a_slash(self, folder):
        app = App()
        app.static("/static/", folder)
        client = {"root_path": "/api"}
        assert (await ask(app, "/api/static/sub/", client=client)).text == "index"
        response = await ask(app, "/api/static/sub?x=1", client=client)
        assert (response.status, response.headers["location"]) == (308, "/api/static/sub/?x=1")
        assert app.url_for("static", path="sub/index.html") == "/static/sub/index.html"

    async def test_files_at_the_root_come_after_routes(self, folder):
        app = App()
        app.static("/", folder)
        app.add_route(lambda: "route", "/sub/index.html")
        assert [(await ask(app, path)).text for path in ("/sub/index.html", "/page.html")] == ["route", "page"]

    def test_a_relative_directory_is_relative_to_the_file_that_creates_the_app(self, folder, monkeypatch):
        monkeypatch.chdir("/")
        source = "from microws import App\napp = App()\napp.static('/static', 'files')"
        exec(source, {"__name__": "site", "__file__": str(folder.parent / "site.py")})

    def test_a_missing_directory_is_an_error(self, folder):
        with pytest.raises(ValueError, match="there is no directory"):
            App().static("/static", folder / "absent")


class TestTopics:
    async def test_before_and_after_its_run_an_app_cannot_publish(self):
        app = App()
        uses = [partial(app.publish, "t", 1), app.subscribe("t").__aenter__, lambda: anext(aiter(app.stream("t")))]

        async def check():
            for use in uses:
                with pytest.raises(RuntimeError, match=r"^expected a running app, got one that has not started or has"):
                    await use()
            with pytest.raises(RuntimeError, match="between its start-up and its shutdown"):
                app.publish_from_thread("t", 1)

        await check()
        async with app.test_client():
            assert await app.publish("t", 1) == Receipt(subscribers=0, id=None)
        await check()

    async def test_an_app_runs_while_it_serves_without_a_lifespan(self):
        app, receipts = App(), []

        @app.post("/")
        async def announce():
            receipts.append(await app.publish("t", 1))

        @app.websocket_route("/", subscribe="t", value_type="json")
        async def feed(ws):
            async with ws:
                await ws.receive()

        async with app.test_client(lifespan=False) as client, client.websocket("/") as ws:
            await client.post("/")
            await app.publish("t", 2)
            assert [await ws.receive(), await ws.receive()] == [1, 2]
        assert receipts == [Receipt(1, None)]

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    async def test_a_use_in_another_event_loop_says_what_to_write(self, backend):
        app, errors = App(), []

        @app.websocket_route("/")
        async def feed(ws):
            views.append(ws)
            async with ws:
                await ws.receive()

        async def elsewhere():
            uses = [
                partial(app.publish, "t", 1),
                partial(views[0].publish, "t", 1),
                partial(views[0].subscribe, "t"),
                app.subscribe("t").__aenter__,
                lambda: anext(aiter(app.stream("t"))),
            ]
            for use in uses:
                try:
                    await use()
                except RuntimeError as error:
                    errors.append(str(error))
            try:
                app.start_soon(anyio.sleep, 0)
            except RuntimeError as error:
                errors.append(str(error))
            return await anyio.to_thread.run_sync(app.publish_from_thread, "t", 2)

        views = []
        async with app.test_client() as client, client.websocket("/"), app.subscribe("t") as messages:
            receipt = await anyio.to_thread.run_sync(partial(anyio.run, elsewhere, backend=backend))
            assert receipt.subscribers == 1
            assert await anext(messages) == 2
        begin = "expected the event loop that the app runs in, got another one: in another thread write "
        assert all(error.startswith(begin) for error in errors)
        assert [error.removeprefix(begin).partition(",")[0] for error in errors] == [
            "app.publish_from_thread(topic",
            "app.publish_from_thread(topic",
            "anyio.from_thread.run(ws.subscribe",
            "anyio.from_thread.run(function)",
            "anyio.from_thread.run(function)",
            "anyio.from_thread.run_sync(app.start_soon",
        ]

    async def test_publishing_from_a_thread_works_in_each_loop_that_serves_the_app(self):
        for lifespan in (True, False):
            async with SHARED.test_client(lifespan=lifespan) as client, client.websocket("/") as ws:
                receipt = await anyio.to_thread.run_sync(SHARED.publish_from_thread, "news", "hi")
                assert receipt.subscribers == 1
                assert await ws.receive() == "hi"


SHARED = App()
SHARED.add_websocket_route(wait, "/", subscribe="news")


class TestServing:
    async def test_a_request_has_everything_that_the_client_sent(self):
        app = App()

        @app.put("/items/{number:int}", name="item")
        async def item(request, number):
            request.state.seen = number
            assert request.app is app
            return {
                "method": request.method,
                "path": request.path,
                "url": str(request.url),
                "scheme": request.scheme,
                "header": request.headers["X-Header"],
                "query": request.query.getlist("a"),
                "cookies": request.cookies,
                "client": [request.client.host, request.client.port],
                "path_params": request.path_params,
                "state": request.state.seen,
                "body": (await request.body()).decode(),
                "text": await request.text(),
                "json": await request.json(),
            }

        options = {"headers": {"x-header": "h"}, "cookies": {"c": "d"}, "json": [1]}
        response = await ask(app, "/items/7?a=1&a=2", method="PUT", **options)
        assert response.json() == {
            "method": "PUT",
            "path": "/items/7",
            "url": "http://testserver/items/7?a=1&a=2",
            "scheme": "http",
            "header": "h",
            "query": ["1", "2"],
            "cookies": {"c": "d"},
            "client": ["testclient", 50000],
            "path_params": {"number": 7},
            "state": 7,
            "body": "[1]",
            "text": "[1]",
            "json": [1],
        }

    async def test_an_unknown_scope_type_is_an_error(self):
        with pytest.raises(RuntimeError, match="got 'ftp'"):
            await App()({"type": "ftp"}, None, None)

    async def test_the_test_client_uses_the_codec_of_the_route(self):
        app = App()

        @app.websocket_route("/", value_type="json")
        async def echo(ws):
            async with ws:
                await ws.send(await ws.receive())

        async with app.test_client(root_path="/api") as client, client.websocket("/api/") as ws:
            await ws.send("text")
            assert await ws.receive() == "text"


SCRIPT = """
from microws import App
app = App()
@app.get("/")
async def page():
    return "served"
if {fails}:
    @app.on_startup
    async def fail():
        raise LookupError("no database")
app.run({address}, access_log=False)
"""


def run_script(tmp_path, *, address, fails=False):
    path = tmp_path / "site.py"
    path.write_text(SCRIPT.format(address=address, fails=fails))
    return subprocess.Popen([sys.executable, path], stderr=subprocess.PIPE, text=True)


class TestRun:
    @pytest.mark.parametrize("address", ["'127.0.0.1', 0", "port=0", "bind='127.0.0.1:0'"])
    def test_run_serves_the_app(self, tmp_path, address):
        process = run_script(tmp_path, address=address)
        try:
            line = process.stderr.readline()
            url = next(word for word in line.split() if word.startswith("http://"))
            assert httpx.get(url, trust_env=False).text == "served"
        finally:
            process.terminate()
            process.communicate(timeout=10)
        assert process.returncode == 0

    def test_importing_microws_imports_no_server(self):
        program = "import sys, microws; print({'hypercorn', 'h11', 'wsproto', 'websockets', 'uvloop'} & {*sys.modules})"
        assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"

    def test_a_failed_startup_exits_with_1_and_the_traceback(self, tmp_path):
        with run_script(tmp_path, address="port=0", fails=True) as process:
            _, errors = process.communicate(timeout=10)
        assert process.returncode == 1
        assert "LookupError: no database" in errors

    def test_an_invalid_option_is_an_error(self):
        with pytest.raises(TypeError, match="prot"):
            App().run(prot=8000)
        with pytest.raises(ValueError, match="port"):
            App().run(port=-1)
        with pytest.raises(ValueError, match="expected either bind, or host and port, got both"):
            App().run(port=8000, bind="127.0.0.1:8000")

    def test_run_takes_every_setting_of_a_worker(self):
        assert {"host", "port", *get_type_hints(RunOptions)} == SETTINGS.keys()


def test_test_client_takes_every_option_but_codecs():
    parameters = inspect.signature(TestClient).parameters.keys()
    assert parameters - get_type_hints(ClientOptions).keys() == {"app", "codecs"}
    assert get_type_hints(ClientOptions).keys() <= parameters


def test_nothing_is_logged_by_importing_and_registering(caplog):
    caplog.set_level(logging.DEBUG)
    App().include(blueprint())
    assert not caplog.records
