"""microws in FastAPI, FastAPI and Starlette in microws: their lifespans and state."""

from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI
from fastapi import Request as FastAPIRequest
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from microws import App
from microws.testing import TestClient

pytestmark = pytest.mark.anyio


async def test_an_app_that_fastapi_mounts_runs_in_its_lifespan():
    app, log = App(), []
    app.on_startup(lambda: log.append("up"))
    app.on_shutdown(lambda: log.append("down"))

    @app.lifespan
    async def begin(app):
        yield {"db": "DB"}

    @app.websocket_route("/feed", subscribe="news")
    async def feed(ws):
        async with ws:
            await ws.send(ws.state.db)
            await ws.receive()

    @asynccontextmanager
    async def lifespan(fastapi_app):
        async with app.running() as state:
            yield state

    api = FastAPI(lifespan=lifespan)

    @api.post("/news")
    async def news(request: FastAPIRequest):
        receipt = await app.publish("news", request.state.db)
        return receipt.subscribers

    api.mount("/live", app)
    async with TestClient(api) as client, client.websocket("/live/feed") as ws:
        assert await ws.receive() == "DB"
        assert (await client.post("/news")).json() == 1
        assert await ws.receive() == "DB"
    assert log == ["up", "down"]


async def test_starlette_and_fastapi_start_with_the_app_that_mounts_them():
    app, log = App(), []

    @asynccontextmanager
    async def lifespan(inner):
        log.append("up")
        yield {"db": "DB"}
        log.append("down")

    async def page(request):
        return PlainTextResponse(request.state.db)

    app.mount("/starlette", Starlette(lifespan=lifespan, routes=[Route("/", page)]))
    api = FastAPI(lifespan=lifespan)

    @api.get("/")
    async def root(request: FastAPIRequest):
        return request.state.db

    app.mount("/fastapi", api)
    async with TestClient(app) as client:
        assert (await client.get("/starlette/")).text == "DB"
        assert (await client.get("/fastapi/")).json() == "DB"
    assert log == ["up", "up", "down", "down"]


async def test_middleware_sees_the_state_that_the_view_sets_and_the_other_way_round():
    app, seen = App(), []

    async def dispatch(request, call_next):
        request.state.started = 1
        response = await call_next(request)
        seen.append(request.state.user)
        return response

    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)

    @app.get("/")
    async def page(request):
        request.state.user = "ann"
        return {"started": request.state.started}

    async with TestClient(app) as client:
        assert (await client.get("/")).json() == {"started": 1}
    assert seen == ["ann"]
