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

from microws.version import __version__ as __version__

# As in `typing`, which takes 4 ms to import; type checkers take the name for true.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from microws.app import App
    from microws.closing import CloseCode
    from microws.codec.message import Message
    from microws.codec.types import MessageError
    from microws.datastructures import URL, Headers, MultiDict, State
    from microws.errors import (
        ClientDisconnect,
        FeatureUnavailable,
        HTTPException,
        HubUnavailable,
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
    from microws.event_stream import EventStream, ServerSentEvent
    from microws.files import FileResponse
    from microws.forms import UploadFile
    from microws.hub_connection import connect_hub
    from microws.interfaces import Codec, OpenConnection, Receipt, Subscribed
    from microws.requests import Request
    from microws.responses import JSONResponse, RedirectResponse, Response
    from microws.streams import StreamingResponse
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
    "HubUnavailable",
    "InvalidMessage",
    "JSONResponse",
    "Message",
    "MessageError",
    "MicrowsError",
    "MultiDict",
    "OpenConnection",
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
    "Subscribed",
    "TooManySubscriptions",
    "UploadFile",
    "WebSocket",
    "WebSocketDisconnect",
    "WebSocketRejected",
    "connect_hub",
]

# Type checkers read the imports above, and take every name to exist in a module that has a `__getattr__`.
if not TYPE_CHECKING:
    # The module of each public name but those in `errors`. The first use of a name imports it, so that an app does not
    # import what it does not need, and `microws --help` nothing of this.
    _MODULES = {
        "app": ("App",),
        "closing": ("CloseCode",),
        "codec.message": ("Message",),
        "codec.types": ("MessageError",),
        "datastructures": ("URL", "Headers", "MultiDict", "State"),
        "event_stream": ("EventStream", "ServerSentEvent"),
        "files": ("FileResponse",),
        "forms": ("UploadFile",),
        "hub_connection": ("connect_hub",),
        "interfaces": ("Codec", "OpenConnection", "Receipt", "Subscribed"),
        "requests": ("Request",),
        "responses": ("JSONResponse", "RedirectResponse", "Response"),
        "streams": ("StreamingResponse",),
        "websocket": ("WebSocket",),
    }

    def __getattr__(name):
        from importlib import import_module

        if name in __all__:
            module = next((module for module, names in _MODULES.items() if name in names), "errors")
            globals()[name] = value = getattr(import_module(f"microws.{module}"), name)
            return value
        from importlib.util import find_spec

        if name.isidentifier() and not name.startswith("__") and find_spec(f"microws.{name}") is not None:
            return import_module(f"microws.{name}")
        from microws.hints import missing_name

        raise missing_name(name, __all__)

    def __dir__():
        return sorted({*globals(), *__all__})
