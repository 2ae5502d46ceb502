"""ASGI middleware of others around an app, and in it: Sentry, OpenTelemetry, and what wraps ``send``."""

import inspect

import pytest
from asgiref.compatibility import guarantee_single_callable, is_double_callable
from asking import ask, ask_websocket
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from sentry_sdk.integrations.asgi import SentryAsgiMiddleware

from microws import App

pytestmark = pytest.mark.anyio


class ForEitherVersion:
    """Middleware that asks asgiref which version of ASGI its app speaks, as ServeStatic does."""

    def __init__(self, app):
        self.app = guarantee_single_callable(app)

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)


def app_with_views():
    app = App()

    @app.get("/users/{id:int}")
    async def user(id):
        return {"id": id}

    @app.websocket_route("/rooms/{room}")
    async def talk(ws, room):
        async with ws:
            await ws.send(room)

    return app


class TestDetection:
    @pytest.mark.parametrize("middleware", [SentryAsgiMiddleware, OpenTelemetryMiddleware, ForEitherVersion])
    async def test_middleware_of_others_takes_the_app_for_asgi_3(self, middleware):
        app = app_with_views()
        app.add_middleware(middleware)
        assert (await ask(app, "/users/7")).json() == {"id": 7}
        assert await ask_websocket(app, "/rooms/a") == "a"

    @pytest.mark.parametrize("middleware", [SentryAsgiMiddleware, OpenTelemetryMiddleware, ForEitherVersion])
    async def test_the_app_itself_is_taken_for_asgi_3(self, middleware):
        app = app_with_views()
        around = App()
        around.mount("/", middleware(app))
        assert (await ask(around, "/users/7")).json() == {"id": 7}
        assert await ask_websocket(around, "/rooms/a") == "a"

    async def test_what_middleware_is_given_is_an_async_function(self):
        app, given = app_with_views(), []

        def around(app):
            given.append(app)
            return app

        app.add_middleware(around)
        await ask(app, "/users/7")
        assert inspect.iscoroutinefunction(given[0])
        assert inspect.isfunction(given[0])
        assert not is_double_callable(given[0])
