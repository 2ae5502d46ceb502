"""How log lines name a request."""

from microws.datastructures import mask_secrets
from microws.interfaces import Scope

__all__ = ["logged_target", "method_of", "request_line"]


def request_line(scope: Scope) -> str:
    """
    ``GET /path?query HTTP/1.1``: the path as received, secrets in the query masked.

    ``WebSocket`` stands for the method of a handshake.
    """
    target = logged_target(scope["raw_path"], scope["query_string"])
    return f"{method_of(scope)} {target} HTTP/{scope.get('http_version', '1.1')}"


def method_of(scope: Scope) -> str:
    """The method, ``WebSocket`` for a handshake."""
    return "WebSocket" if scope["type"] == "websocket" else str(scope["method"])


def logged_target(raw_path: bytes, query: bytes) -> str:
    """The target as received, so that a client cannot forge a line, with secrets in the query masked."""
    text = raw_path.decode("latin-1")
    if query:
        text = mask_secrets(f"{text}?{query.decode('latin-1')}")
    return text if text.isascii() and text.isprintable() else text.encode("unicode_escape").decode()
