"""
A WebSocket connection: what a ``ws`` stands on.

``connection`` says what every connection does and holds what all have in common. ``socket`` is a connection on this
package's own server, ``asgi`` one on any other, ``wrapped`` one on the own server behind middleware.
"""

from microws.connection.asgi import connect
from microws.connection.connection import AppCall, Connection

__all__ = ["AppCall", "Connection", "connect"]
