"""
One WebSocket connection over ASGI.

Reading and sending are independent of each other. One task at a time is inside ASGI's ``receive``, and one inside its
``send``. The modules, from the bottom: ``lifeline`` (state and end), ``reading``, ``sending``, ``portable``. What a
``WebSocket`` asks of any of its transports stands in ``surface``.
"""

from microws.transport.lifeline import Limits, helping
from microws.transport.portable import PortableTransport
from microws.transport.surface import Transport

__all__ = ["Limits", "PortableTransport", "Transport", "helping"]
