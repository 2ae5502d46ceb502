"""
One question to an app, in memory, and its answer: what most tests of views need.

An answer of 500 or a close with 1011 is an answer too: ``raise_errors`` is off.
"""

import pytest

from microws import WebSocketDisconnect, WebSocketRejected

__all__ = ["ask", "ask_websocket", "ending_of", "refusal_of"]


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
