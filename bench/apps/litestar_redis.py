"""Litestar, with its channels over Redis."""

import json
import os

from litestar import Litestar, Request, WebSocket, get, post, websocket
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.redis import RedisChannelsPubSubBackend
from litestar.exceptions import WebSocketDisconnect
from redis.asyncio import Redis


@get("/json")
async def json_view() -> dict[str, str]:
    return {"message": "Hello, World!"}


@websocket("/json/sub")
async def sub(socket: WebSocket, channels: ChannelsPlugin) -> None:
    await socket.accept()
    async with channels.start_subscription(["fan"]) as subscriber, subscriber.run_in_background(socket.send_text):
        try:
            while True:
                await socket.receive_text()
        except WebSocketDisconnect:
            pass


@post("/json/pub", status_code=202)
async def pub(request: Request, channels: ChannelsPlugin) -> None:
    await channels.wait_published(json.dumps(await request.json()), ["fan"])


app = Litestar(
    [json_view, sub, pub],
    plugins=[
        ChannelsPlugin(
            backend=RedisChannelsPubSubBackend(redis=Redis.from_url(os.environ["REDIS_URL"])), channels=["fan"]
        )
    ],
    openapi_config=None,
)
