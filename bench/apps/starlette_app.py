"""Starlette, with the usual set of connections that a publisher sends to in turn."""

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

subscribers = set()


async def json_view(request):
    return JSONResponse({"message": "Hello, World!"})


async def echo(websocket):
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


async def sub(websocket):
    await websocket.accept()
    subscribers.add(websocket)
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        subscribers.discard(websocket)


async def pub(websocket):
    await websocket.accept()
    try:
        while True:
            message = await websocket.receive_text()
            for subscriber in list(subscribers):
                try:
                    await subscriber.send_text(message)
                except (WebSocketDisconnect, RuntimeError):
                    subscribers.discard(subscriber)
    except WebSocketDisconnect:
        pass


app = Starlette(
    routes=[
        Route("/json", json_view),
        WebSocketRoute("/echo", echo),
        WebSocketRoute("/sub", sub),
        WebSocketRoute("/pub", pub),
    ]
)
