"""
Which route a path belongs to, and the path of a route. No ``await``, no clock, no socket.

The modules, from the bottom: ``paths``, ``patterns``, ``router``.
"""

from microws.routing.paths import encode_path, path_of, scope_below
from microws.routing.patterns import Converter, Converters, Parameter, Pattern
from microws.routing.router import Kind, Match, Miss, Mounted, Route, Router

__all__ = [
    "Converter",
    "Converters",
    "Kind",
    "Match",
    "Miss",
    "Mounted",
    "Parameter",
    "Pattern",
    "Route",
    "Router",
    "encode_path",
    "path_of",
    "scope_below",
]
