"""
One WebSocket connection below its face.

``surface`` says what a ``WebSocket`` asks of it. There are two: ``direct``, on this package's own server, and the
portable one, over ASGI's ``receive`` and ``send`` on any server. The portable one's reading and sending are independent
of each other: one task at a time is inside ``receive``, and one inside ``send``. Its modules, from the bottom:
``lifeline`` (state and end), ``reading``, ``sending``, ``carrying``, ``portable``.
"""

from microws.transport.choice import make_transport
from microws.transport.surface import Transport

__all__ = ["Transport", "make_transport"]
