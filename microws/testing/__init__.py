"""
An in-memory client for any ASGI app: no port, no thread, and every wait has a limit.

::

    async with TestClient(app) as client:
        response = await client.post("/announce/x", json={"text": "hi"})
        async with client.websocket("/chat/x") as ws:
            assert await ws.receive(timeout=1) == "hi"
"""

from microws.hints import add_hints
from microws.testing.client import ClientOptions, TestClient
from microws.testing.cookies import CookieJar
from microws.testing.scopes import RequestOptions
from microws.testing.streams import ReceivedEvent, TestResponse, TestStream
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
