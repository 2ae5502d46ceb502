"""
Falcon: ``app`` sends to a set of connections in turn, ``queue_app`` has a queue and a task for each, as its tutorial
writes it.
"""

import asyncio

import falcon.asgi
from falcon import WebSocketDisconnected

subscribers = set()
queues = set()


class Json:
    async def on_get(self, request, response):
        response.media = {"message": "Hello, World!"}


class Echo:
    async def on_websocket(self, request, ws):
        await ws.accept()
        try:
            while True:
                await ws.send_text(await ws.receive_text())
        except WebSocketDisconnected:
            pass


class Sub:
    async def on_websocket(self, request, ws):
        await ws.accept()
        subscribers.add(ws)
        try:
            while True:
                await ws.receive_text()
        except WebSocketDisconnected:
            pass
        finally:
            subscribers.discard(ws)


class Pub:
    async def on_websocket(self, request, ws):
        await ws.accept()
        try:
            while True:
                message = await ws.receive_text()
                for subscriber in list(subscribers):
                    try:
                        await subscriber.send_text(message)
                    except WebSocketDisconnected:
                        subscribers.discard(subscriber)
        except WebSocketDisconnected:
            pass


async def send_queue(ws, queue):
    try:
        while True:
            await ws.send_text(await queue.get())
    except WebSocketDisconnected:
        pass


class QueueSub:
    async def on_websocket(self, request, ws):
        await ws.accept()
        queue = asyncio.Queue()
        queues.add(queue)
        sender = asyncio.create_task(send_queue(ws, queue))
        try:
            while True:
                await ws.receive_text()
        except WebSocketDisconnected:
            pass
        finally:
            queues.discard(queue)
            sender.cancel()


class QueuePub:
    async def on_websocket(self, request, ws):
        await ws.accept()
        try:
            while True:
                message = await ws.receive_text()
                for queue in queues:
                    queue.put_nowait(message)
        except WebSocketDisconnected:
            pass


def app_with(**resources):
    made = falcon.asgi.App()
    for name, resource in resources.items():
        made.add_route(f"/{name}", resource)
    return made


app = app_with(json=Json(), echo=Echo(), sub=Sub(), pub=Pub())
queue_app = app_with(json=Json(), sub=QueueSub(), pub=QueuePub())
