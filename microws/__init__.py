"""
The decorator micro-framework for real-time Python.

::

    from microws import App

    app = App()

    @app.websocket_route("/echo")
    async def echo(ws):
        async with ws:
            async for message in ws:
                await ws.send(message)
"""

from typing import TYPE_CHECKING

from microws import habits, testing
from microws.app import App
from microws.closing import CloseCode
from microws.datastructures import URL, Headers, MultiDict, State
from microws.errors import (
    ClientDisconnect,
    FeatureUnavailable,
    HTTPException,
    InvalidMessage,
    MicrowsError,
    Overflow,
    PayloadTypeError,
    PublishTimeout,
    RoutingError,
    TooManySubscriptions,
    WebSocketDisconnect,
    WebSocketRejected,
)
from microws.event_stream import EventStream
from microws.files import FileResponse
from microws.forms import UploadFile
from microws.interfaces import Codec, Receipt
from microws.requests import Request
from microws.responses import JSONResponse, RedirectResponse, Response
from microws.sse import ServerSentEvent
from microws.streams import StreamingResponse
from microws.version import __version__ as __version__
from microws.websocket import WebSocket

__all__ = [
    "URL",
    "App",
    "ClientDisconnect",
    "CloseCode",
    "Codec",
    "EventStream",
    "FeatureUnavailable",
    "FileResponse",
    "HTTPException",
    "Headers",
    "InvalidMessage",
    "JSONResponse",
    "MicrowsError",
    "MultiDict",
    "Overflow",
    "PayloadTypeError",
    "PublishTimeout",
    "Receipt",
    "RedirectResponse",
    "Request",
    "Response",
    "RoutingError",
    "ServerSentEvent",
    "State",
    "StreamingResponse",
    "TooManySubscriptions",
    "UploadFile",
    "WebSocket",
    "WebSocketDisconnect",
    "WebSocketRejected",
]

habits.add_names(App, habits.APP)
habits.add_names(Request, habits.REQUEST, self="request")
habits.add_names(WebSocket, habits.WEBSOCKET, self="ws")
habits.add_names(Response, habits.RESPONSE)
habits.add_names(testing.TestClient, habits.TEST_CLIENT)
habits.add_names(testing.TestResponse, habits.TEST_RESPONSE)

# A type checker would take every name to be in a module that has this.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        raise habits.missing_name(name, __all__)
