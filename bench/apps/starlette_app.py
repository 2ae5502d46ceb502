"""
Starlette, with the two usual ways to reach many connections: ``app`` sends to a set of them in turn, ``queue_app`` has
a queue and a task for each.
"""

import asyncio

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

subscribers = set()
queues = set()


async def json_view(request):
    return JSONResponse({"message": "Hello, World!"})


async def echo(websocket: WebSocket):
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


async def sub(websocket: WebSocket):
    await websocket.accept()
    subscribers.add(websocket)
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        subscribers.discard(websocket)


async def pub(websocket: WebSocket):
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


async def send_queue(websocket, queue):
    try:
        while True:
            await websocket.send_text(await queue.get())
    except (WebSocketDisconnect, RuntimeError):
        pass


async def queue_sub(websocket: WebSocket):
    await websocket.accept()
    queue = asyncio.Queue()
    queues.add(queue)
    sender = asyncio.create_task(send_queue(websocket, queue))
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        queues.discard(queue)
        sender.cancel()


async def queue_pub(websocket: WebSocket):
    await websocket.accept()
    try:
        while True:
            message = await websocket.receive_text()
            for queue in queues:
                queue.put_nowait(message)
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
queue_app = Starlette(
    routes=[Route("/json", json_view), WebSocketRoute("/sub", queue_sub), WebSocketRoute("/pub", queue_pub)]
)
