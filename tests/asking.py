"""
One request to an app in memory, and its answer: what most tests of views need.

A 500 or a close with 1011 is an answer, too: ``raise_errors`` is off.
"""

import pytest

from microws import WebSocketDisconnect, WebSocketRejected

__all__ = ["ask", "ask_websocket", "call", "ending_of", "refusal_of"]


async def ask(app, path="/", *, method="GET", client=None, **options):
    """The response to one request."""
    async with app.test_client(**{"raise_errors": False, **(client or {})}) as test_client:
        return await test_client.request(method, path, **options)


async def ask_websocket(app, path="/", *, client=None, **options):
    """The first message on one WebSocket."""
    async with (
        app.test_client(**{"raise_errors": False, **(client or {})}) as test_client,
        test_client.websocket(path, **options) as ws,
    ):
        return await ws.receive()


async def refusal_of(app, path="/", *, client=None, **options):
    """How the handshake is refused."""
    async with app.test_client(**{"raise_errors": False, **(client or {})}) as test_client:
        with pytest.raises(WebSocketRejected) as caught:
            async with test_client.websocket(path, **options):
                pass
    return caught.value


async def ending_of(app, path="/", *, client=None, send=None, **options):
    """The code and reason with which the app closes."""
    async with (
        app.test_client(**{"raise_errors": False, **(client or {})}) as test_client,
        test_client.websocket(path, **options) as ws,
    ):
        if send is not None:
            await ws.send(send)
        with pytest.raises(WebSocketDisconnect) as caught:
            await ws.receive()
    return caught.value.code, caught.value.reason


async def call(app, path="/", *, method="GET", headers=(), receive=None, send=None, **scope):
    """Call the app with a bare scope; return the events that it sends. By default the client sends an empty request."""
    sent = []

    async def empty_request():
        return {"type": "http.request"}

    async def collect(event):
        sent.append(event)

    scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "headers": list(headers), **scope}
    await app(scope, receive or empty_request, send or collect)
    return sent
