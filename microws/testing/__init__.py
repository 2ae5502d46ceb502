"""
An in-memory client for any ASGI app: no port, no thread, and no wait without a limit.

::

    async with TestClient(app) as client:
        response = await client.post("/announce/x", json={"text": "hi"})
        async with client.websocket("/chat/x") as ws:
            assert await ws.receive(timeout=1) == "hi"
"""

from microws.hints import add_hints
from microws.testing.client import ClientOptions, RequestOptions, TestClient
from microws.testing.cookies import CookieJar
from microws.testing.http import TestResponse, TestStream
from microws.testing.sse import ReceivedEvent
from microws.testing.websocket import FrameCodec, TestWebSocket

__all__ = [
    "ClientOptions",
    "CookieJar",
    "FrameCodec",
    "ReceivedEvent",
    "RequestOptions",
    "TestClient",
    "TestResponse",
    "TestStream",
    "TestWebSocket",
]

add_hints(TestClient, TestResponse)
