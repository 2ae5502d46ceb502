"""ASGI middleware of others around an app, and in it: Sentry, OpenTelemetry, and what wraps ``send``."""

import inspect
from dataclasses import dataclass

import anyio
import httpx
import pytest
import sentry_sdk
from asgiref.compatibility import guarantee_single_callable, is_double_callable
from asking import ask, ask_websocket, ending_of
from byte_client import CONTINUATION, TEXT, frame
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from sentry_sdk.integrations.asgi import SentryAsgiMiddleware
from sentry_sdk.transport import Transport
from websocket_server import ASYNCIO_BACKENDS, until
from websocket_server import serving as serving_websockets
from worker_here import failures, serving

from microws import App, HTTPException, InvalidMessage, WebSocket
from microws.interfaces import Limits
from microws.state import CLOSING

pytestmark = pytest.mark.anyio


class ForEitherVersion:
    """Middleware that asks asgiref which version of ASGI its app speaks, as ServeStatic does."""

    def __init__(self, app):
        self.app = guarantee_single_callable(app)

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)


def app_with_views():
    app = App()

    @app.get("/users/{number:int}")
    async def user(number):
        return {"number": number}

    @app.websocket_route("/rooms/{room}")
    async def talk(ws, room):
        async with ws:
            await ws.send(room)

    return app


class TestDetection:
    @pytest.mark.parametrize("middleware", [SentryAsgiMiddleware, OpenTelemetryMiddleware, ForEitherVersion])
    async def test_other_middleware_detects_the_app_as_asgi_3(self, middleware):
        app, around = app_with_views(), App()
        app.add_middleware(middleware)
        around.mount("/", middleware(app))
        for each in (app, around):
            assert (await ask(each, "/users/7")).json() == {"number": 7}
            assert await ask_websocket(each, "/rooms/a") == "a"

    async def test_middleware_gets_an_async_function(self):
        app, given = app_with_views(), []

        def around(app):
            given.append(app)
            return app

        app.add_middleware(around)
        await ask(app, "/users/7")
        assert inspect.iscoroutinefunction(given[0])
        assert inspect.isfunction(given[0])
        assert not is_double_callable(given[0])


class Watching:
    """Middleware that keeps what was sent and what was raised, and ends the exceptions that reach it."""

    def __init__(self, app, *, log):
        self.app, self.log = app, log

    async def __call__(self, scope, receive, send):
        async def watched(event):
            self.log.append(event.get("status") or event.get("code") or event["type"])
            await send(event)

        try:
            await self.app(scope, receive, watched if scope["type"] != "lifespan" else send)
        except Exception as error:
            self.log.append(error)


def watched_app():
    app, log = App(), []
    app.add_middleware(Watching, log=log)
    return app, log


@dataclass(frozen=True)
class Frozen(Exception):
    """Its attributes cannot be set."""

    number: int


BODY = "http.response.body"
ERROR = KeyError("secret")


class TestUnexpectedExceptions:
    @staticmethod
    def failing(error):
        """An app whose views raise ``error``, and what its middleware sees."""
        app, log = watched_app()

        @app.get("/")
        async def fails():
            raise error

        @app.websocket_route("/")
        async def fails_too(ws):
            async with ws:
                raise error

        return app, log

    @pytest.mark.parametrize("error", [ERROR, ExceptionGroup("", [ERROR])])
    async def test_an_exception_of_a_view_is_raised_after_the_answer(self, error):
        app, log = self.failing(error)
        assert (await ask(app)).status == 500
        assert (await ending_of(app))[0] == 1011
        assert log == [500, BODY, ERROR, "websocket.accept", 1011, ERROR]

    async def test_an_exception_whose_attributes_cannot_be_set_is_raised_too(self):
        app, log = self.failing(Frozen(3))
        assert (await ask(app)).status == 500
        assert log == [500, BODY, Frozen(3)]

    async def test_the_first_exception_of_hooks_is_raised(self):
        app, log = self.failing(ERROR)

        @app.after_request
        async def fails_too(request, response):
            raise ValueError("second")

        assert (await ask(app)).status == 500
        assert log == [500, BODY, ERROR]

    @pytest.mark.parametrize("error", [HTTPException(404), InvalidMessage("no"), LookupError("expected")])
    async def test_an_exception_that_a_handler_answers_is_not_raised(self, error):
        app, log = self.failing(error)

        @app.error_handler(LookupError)
        @app.error_handler(InvalidMessage)
        async def answer(connection, error):
            if isinstance(connection, WebSocket):
                await connection.close(4000)
            return "expected", 409

        assert (await ask(app)).status in (404, 409)
        await ending_of(app)
        assert not any(isinstance(item, Exception) for item in log)

    async def test_the_handler_of_500_answers_and_the_exception_is_raised(self):
        app, log = self.failing(ERROR)
        app.error_handler(500)(lambda connection, error: ("sorry", 503))
        assert (await ask(app)).text == "sorry"
        await ending_of(app)
        assert log == [503, BODY, ERROR, "websocket.accept", 1011, ERROR]

    async def test_an_exception_of_a_handler_is_raised(self):
        app, log = self.failing(LookupError())

        @app.error_handler(LookupError)
        async def fails_too(request, error):
            raise ERROR

        assert (await ask(app)).status == 500
        assert log == [500, BODY, ERROR]

    @pytest.mark.parametrize("answers", [True, False])
    async def test_an_exception_of_a_mounted_app_passes_unchanged(self, answers):
        app, log = watched_app()

        async def foreign(scope, receive, send):
            if answers:
                await send({"type": "http.response.start", "status": 502, "headers": []})
                await send({"type": BODY})
            raise ERROR

        app.mount("/", foreign)
        assert (await ask(app)).status == (502 if answers else 500)
        assert log == [502 if answers else 500, BODY, ERROR]


class TestUnexpectedExceptionsOnTheServer:
    @pytest.mark.parametrize("server", ["microws", "hypercorn"])
    async def test_an_exception_is_logged_once_and_the_connection_continues(self, server, caplog, anyio_backend_name):
        if server == "microws" and anyio_backend_name == "trio":
            return
        app = App()
        app.get("/works")(lambda: "works")

        @app.get("/fails")
        async def fails():
            raise KeyError("fails")

        answers = []
        async with serving(app, server=server) as served, httpx.AsyncClient(trust_env=False) as client:
            for path in ("fails", "works", "fails"):
                answer = await client.get(f"http://127.0.0.1:{served.port}/{path}")
                connection = answer.extensions["network_stream"].get_extra_info("client_addr")
                answers.append((answer.status_code, connection))
        assert answers == [(status, answers[0][1]) for status in (500, 200, 500)]
        assert [(record.name, record.levelname) for record in failures(caplog)] == [("microws.errors", "ERROR")] * 2


class Kept(Transport):
    """Keeps what Sentry would send."""

    def __init__(self):
        super().__init__()
        self.events = []

    def capture_envelope(self, envelope):
        self.events.append(envelope.get_event())


@pytest.fixture
def sentry():
    kept = Kept()
    client = sentry_sdk.Client("http://key@127.0.0.1:9/1", transport=kept, default_integrations=False)
    sentry_sdk.get_global_scope().set_client(client)
    yield kept.events
    sentry_sdk.get_global_scope().set_client(None)


@pytest.fixture
def tracing():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, lambda: [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    provider.shutdown()


def failing_app():
    app = App()

    @app.get("/users/{number:int}")
    async def fails(number):
        raise KeyError(number)

    @app.websocket_route("/rooms/{room}")
    async def fails_too(ws, room):
        async with ws:
            raise KeyError(room)

    return app


class TestMonitoring:
    async def test_opentelemetry_gets_the_exceptions_of_views_and_a_hook_names_the_span(self, tracing):
        provider, spans = tracing
        app = failing_app()
        app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider)

        @app.before_request
        async def name_span(request):
            trace.get_current_span().update_name(f"{request.method} {request.scope['route'].path}")

        await ask(app, "/users/7")
        await ending_of(app, "/rooms/a")
        assert spans()[0].name == "GET /users/{number:int}"
        assert [span.status.status_code for span in spans()] == [StatusCode.ERROR] * 2
        # It ends an HTTP span with the response.
        assert [event.attributes["exception.type"] for span in spans() for event in span.events] == ["KeyError"]


class Naming:
    """Middleware that looks at its own scope when the app has returned."""

    def __init__(self, app, *, log):
        self.app, self.log = app, log

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)
        if scope["type"] != "lifespan":
            route = scope.get("route")
            self.log.append((route and route.path, scope.get("endpoint"), scope.get("path_params"), scope["app"]))


class TestTheNameOfTheRoute:
    async def test_the_scope_has_route_view_parameters_and_app(self):
        app, inner, log = App(), App(), []
        app.add_middleware(Naming, log=log)
        user = app.get("/users/{number:int}")(lambda number: "a user")
        item = inner.get("/items")(lambda: "an item")
        app.include(inner, "/api")

        @app.websocket_route("/rooms/{room}")
        async def talk(ws, room):
            async with ws:
                await ws.send(room)

        await ask(app, "/users/7")
        await ask_websocket(app, "/rooms/a")
        await ask(app, "/api/items")
        await ask(app, "/nowhere")
        assert log == [
            ("/users/{number:int}", user, {"number": 7}, app),
            ("/rooms/{room}", talk, {"room": "a"}, app),
            ("/api/items", item, {}, app),
            (None, None, None, app),
        ]

    async def test_a_mount_has_its_prefix_and_its_app_its_routes(self):
        app, inner, log, log_of_inner = App(), app_with_views(), [], []
        app.add_middleware(Naming, log=log)
        inner.add_middleware(Naming, log=log_of_inner)
        app.mount("/api", inner)
        await ask(app, "/api/users/7")
        await ask_websocket(app, "/api/rooms/a")
        assert log == [("/api", inner, {}, app)] * 2
        assert [entry[0] for entry in log_of_inner] == ["/users/{number:int}", "/rooms/{room}"]
        assert {entry[3] for entry in log_of_inner} == {inner}

    async def test_path_params_of_an_outer_app_are_kept(self):
        app, log = App(), []
        app.add_middleware(Naming, log=log)
        app.get("/users/{number:int}")(lambda number: "a user")
        around = App()
        around.mount("/", Plain(app, path_params={"tenant": "a"}))
        await ask(around, "/users/7")
        assert log[0][2] == {"tenant": "a", "number": 7}

    async def test_sentry_gets_exceptions_and_names_its_transactions_by_view_or_by_route(self, sentry):
        for style, name in [("endpoint", "test_middleware.failing_app.<locals>.fails"), ("url", "/users/{number:int}")]:
            app = failing_app()
            app.add_middleware(SentryAsgiMiddleware, transaction_style=style)
            await ask(app, "/users/7")
            await ending_of(app, "/rooms/a")
            assert [event["exception"]["values"][0]["type"] for event in sentry] == ["KeyError", "KeyError"]
            assert sentry[0]["transaction"] == name
            sentry.clear()

    async def test_opentelemetry_labels_its_metrics_by_route(self):
        reader = InMemoryMetricReader()
        app = app_with_views()
        app.add_middleware(OpenTelemetryMiddleware, meter_provider=MeterProvider([reader]))
        await ask(app, "/users/7")
        metrics = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        (points,) = (metric.data.data_points for metric in metrics if metric.name == "http.server.duration")
        assert points[0].attributes["http.target"] == "/users/{number}"


class Plain:
    """Middleware that passes everything, with ``more`` in the scope."""

    def __init__(self, app, **more):
        self.app, self.more = app, more

    async def __call__(self, scope, receive, send):
        await self.app({**scope, **self.more}, receive, send)


class AroundSend(Plain):
    """Middleware that gives its app a ``send`` of its own, as most does."""

    async def __call__(self, scope, receive, send):
        async def send_on(event):
            await send(event)

        await self.app(scope, receive, send_on)


def added(app):
    app.add_middleware(AroundSend)
    return app


def mounted(app):
    around = App()
    around.mount("/", app)
    return around


def included(app):
    # Its settings are those of the app that includes it.
    around = App(**SETTINGS)
    around.include(app)
    return around


SETTINGS = {
    "max_message_size": 2 << 20,
    "max_fragments": 3,
    "receive_queue": 2,
    "send_timeout": 0.1,
    "compression": True,
    "close_timeout": 0.1,
}
AROUND = {"nothing": lambda app: app, "added": added, "plain": Plain, "send": AroundSend, "mounted": mounted}


@pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
async def test_accept_timeout_ends_with_the_accept(around):
    app = App(accept_timeout=0.05)

    @app.websocket_route("/")
    async def view(ws):
        async with ws:
            await anyio.sleep(0.1)
            await ws.send("still here")

    async with serving_websockets(around(app)) as served, await served.connect() as client:
        await client.open()
        assert await client.read_payloads(1) == [b"still here"]


@pytest.mark.parametrize("around", [*AROUND.values(), included], ids=[*AROUND, "included"])
@pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
class TestLimits:
    """Those of the app that serves the connection count on the engine, whatever is around it."""

    @pytest.fixture
    async def client(self, around):
        app = App(**(SETTINGS if around is not included else {}))

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                async for message in ws:
                    if message == "close":
                        return
                    await ws.send(str(len(message)))
                    if message == "read no more":
                        await anyio.sleep_forever()
                    while message == "flood":
                        await ws.send("x" * (1 << 20))

        async with serving_websockets(around(app)) as served, await served.connect() as client:
            yield client

    @pytest.mark.parametrize("limit", ["max_message_size", "max_fragments"])
    async def test_max_message_size_and_max_fragments_apply(self, client, limit):
        await client.open()
        if limit == "max_message_size":
            await client.send(frame("x" * (2 << 20)))
            assert await client.read_payloads(1) == [b"2097152"]
            await client.send(frame("x" * ((2 << 20) + 1)))
        else:
            rest = [frame("x", CONTINUATION, final=False) for _ in range(3)]
            await client.send(frame("x", TEXT, final=False), *rest)
        assert (await client.read_close())[0] == (1009 if limit == "max_message_size" else 1008)

    async def test_receive_queue_applies(self, client):
        await client.open()
        await client.send(frame("read no more"))
        assert await client.read_payloads(1) == [b"12"]
        sent = 0
        while client.server.is_reading():
            await client.send(frame("x"))
            await anyio.lowlevel.checkpoint()
            sent += 1
        assert sent < Limits().receive_queue

    async def test_send_timeout_applies(self, client):
        await client.open()
        await client.send(frame("flood"))
        with anyio.fail_after(Limits().send_timeout / 2):
            await until(lambda: client.server.is_closing())

    async def test_compression_applies(self, client):
        headers = await client.open("/", "sec-websocket-extensions: permessage-deflate")
        assert headers["sec-websocket-extensions"].startswith("permessage-deflate")

    async def test_close_timeout_applies(self, client):
        await client.open()
        await client.send(frame("close"))
        assert (await client.read_close())[0] == 1000
        with anyio.fail_after(Limits().close_timeout / 2):
            await client.read_rest()


@pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
async def test_a_slow_client_has_close_timeout_for_queued_messages():
    app, connections = App(close_timeout=30), []

    @app.websocket_route("/")
    async def view(ws):
        async with ws:
            connections.append(ws.scope["microws.connection"])
            await ws.send("x" * (8 << 20))

    async with serving_websockets(app) as served, await served.connect() as client:
        await client.open()
        await until(lambda: connections and connections[0].state is CLOSING)
        assert connections[0] in served.websockets.shared.closings[30]
        assert len((await client.read_frame()).payload) == 8 << 20
        assert (await client.read_close())[0] == 1000
