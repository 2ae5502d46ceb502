"""From a request to its view, and from an error to its answer."""

from microws.dispatch.gate import guard
from microws.dispatch.http import HTTPDispatcher
from microws.dispatch.websocket import WebSocketDispatcher

__all__ = ["HTTPDispatcher", "WebSocketDispatcher", "guard"]
