"""
Starlette, with the two usual ways to reach many connections: ``app`` sends to a set of them in turn, ``queue_app`` has
a queue and a task for each.
"""

import asyncio

from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from bench.apps.files import BIG_FILE

subscribers = set()
queues = set()


async def json_view(request):
    return JSONResponse({"message": "Hello, World!"})


async def file(request):
    return FileResponse(BIG_FILE)


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


async def queue_events(request):
    async def stream():
        queue = asyncio.Queue()
        queues.add(queue)
        try:
            yield ": open\n\n"  # granian holds the head until the body begins
            while True:
                yield f"data: {await queue.get()}\n\n"
        finally:
            queues.discard(queue)

    return StreamingResponse(stream(), media_type="text/event-stream")


app = Starlette(
    routes=[
        Route("/json", json_view),
        Route("/file", file),
        WebSocketRoute("/echo", echo),
        WebSocketRoute("/sub", sub),
        WebSocketRoute("/pub", pub),
    ]
)
queue_app = Starlette(
    routes=[
        Route("/json", json_view),
        Route("/events", queue_events),
        WebSocketRoute("/sub", queue_sub),
        WebSocketRoute("/pub", queue_pub),
    ]
)
