"""What a WebSocket view holds: ``ws``."""

from microws.websocket.options import WebSocketOptions
from microws.websocket.websocket import WebSocket

__all__ = ["WebSocket", "WebSocketOptions"]
