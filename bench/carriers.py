"""How others carry messages between processes through Redis, with the methods of a backplane that the bench uses."""

import asyncio
import contextlib


class _Carrier:
    def __init__(self, url):
        self.url = url

    def start(self, receiver):
        self.receiver = receiver

    async def aclose(self):
        """The process ends, and its connections with it."""


class Litestar(_Carrier):
    """The Pub/Sub backend of Litestar's channels. It keeps no history."""

    async def subscribe(self, topic):
        from litestar.channels.backends.redis import RedisChannelsPubSubBackend
        from redis.asyncio import Redis

        self.backend = RedisChannelsPubSubBackend(redis=Redis.from_url(self.url))
        await self.backend.on_startup()
        await self.backend.subscribe([topic])
        self.task = asyncio.create_task(self._receive())

    async def _receive(self):
        async for _, data in self.backend.stream_events():
            self.receiver.deliver(data)

    async def publish(self, payload, *, has_history):
        await self.backend.publish(payload.data, [payload.topic])


class LitestarStream(Litestar):
    """The backend of Litestar's channels that keeps history."""

    async def subscribe(self, topic):
        from litestar.channels.backends.redis import RedisChannelsStreamBackend
        from redis.asyncio import Redis

        self.backend = RedisChannelsStreamBackend(100_000, redis=Redis.from_url(self.url))
        await self.backend.on_startup()
        await self.backend.subscribe([topic])
        self.task = asyncio.create_task(self._receive())


class Channels(_Carrier):
    """channels_redis' Pub/Sub layer. It keeps no history."""

    async def subscribe(self, topic):
        from channels_redis.pubsub import RedisPubSubChannelLayer

        self.layer = RedisPubSubChannelLayer(hosts=[self.url])
        self.channel = await self.layer.new_channel()
        await self.layer.group_add(topic, self.channel)
        self.task = asyncio.create_task(self._receive())

    async def _receive(self):
        while True:
            self.receiver.deliver(await self.layer.receive(self.channel))

    async def publish(self, payload, *, has_history):
        await self.layer.group_send(payload.topic, {"type": "message", "text": payload.data})


class SocketIO(_Carrier):
    """python-socketio's Redis manager. It keeps no history."""

    async def subscribe(self, topic):
        from socketio import AsyncRedisManager

        async def handle(message):
            self.receiver.deliver(message)

        self.manager = AsyncRedisManager(self.url)
        self.manager._redis_connect()
        self.manager._handle_emit = handle
        await self.manager.pubsub.subscribe(self.manager.channel)
        self.task = asyncio.create_task(self.manager._thread())

    async def publish(self, payload, *, has_history):
        await self.manager.emit("message", payload.data.decode(), room=payload.topic)


class Broadcaster(_Carrier):
    """broadcaster's Redis backend. It keeps no history."""

    async def subscribe(self, topic):
        from broadcaster import Broadcast

        self.stack = contextlib.AsyncExitStack()
        self.broadcast = await self.stack.enter_async_context(Broadcast(self.url))
        subscriber = await self.stack.enter_async_context(self.broadcast.subscribe(topic))
        # Its listener gives up if it looks before Redis has confirmed the subscription.
        self.broadcast._backend._ready.set()
        self.task = asyncio.create_task(self._receive(subscriber))

    async def _receive(self, subscriber):
        async for event in subscriber:
            self.receiver.deliver(event)

    async def publish(self, payload, *, has_history):
        await self.broadcast.publish(payload.topic, payload.data.decode())
