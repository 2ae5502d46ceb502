"""python-socketio, with its Redis manager."""

import os

import socketio
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

sio = socketio.AsyncServer(
    async_mode="asgi", client_manager=socketio.AsyncRedisManager(os.environ["REDIS_URL"]), cors_allowed_origins="*"
)


async def json_view(request):
    return JSONResponse({"message": "Hello, World!"})


async def pub(request):
    await sio.emit("message", await request.json())
    return JSONResponse({}, status_code=202)


app = socketio.ASGIApp(sio, Starlette(routes=[Route("/json", json_view), Route("/json/pub", pub, methods=["POST"])]))
