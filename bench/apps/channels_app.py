"""Django Channels: a consumer with a group, and a view that sends to it, over each of the layers of channels_redis."""

import json
import os

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from channels.routing import ProtocolTypeRouter
from django.conf import settings

# The module of the layer.
LAYER = os.environ.get("CHANNEL_LAYER", "channels_redis.core.RedisChannelLayer")

settings.configure(CHANNEL_LAYERS={"default": {"BACKEND": LAYER, "CONFIG": {"hosts": [os.environ["REDIS_URL"]]}}})


class Subscriber(AsyncWebsocketConsumer):
    groups = ("fan",)

    async def fan_message(self, event):
        await self.send(text_data=event["text"])


async def http(scope, receive, send):
    """Without Django's views: they would only take time."""
    status, answer = 200, {"message": "Hello, World!"}
    if scope["method"] == "POST":
        body, more = b"", True
        while more:
            event = await receive()
            body += event.get("body", b"")
            more = event.get("more_body", False)
        await get_channel_layer().group_send("fan", {"type": "fan.message", "text": json.dumps(json.loads(body))})
        status, answer = 202, {}
    data = json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


app = ProtocolTypeRouter({"http": http, "websocket": Subscriber.as_asgi()})
