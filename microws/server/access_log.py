"""One line for each answer, and for each end of a WebSocket."""

import logging
import time
from typing import Final, NamedTuple, Protocol

from microws.datastructures import mask_secrets
from microws.interfaces import Scope

__all__ = ["AccessLog", "Ending", "format_duration", "log_access", "log_nothing", "request_line"]

_access = logging.getLogger("microws.access")

_OK: Final = 200


class Ending(NamedTuple):
    """How a WebSocket ended: in words, and its close code where it is known."""

    text: str
    code: int | None = None


class AccessLog(Protocol):
    """``log_access`` or ``log_nothing``."""

    def __call__(self, scope: Scope, status: int | None, began: float, *, ending: Ending | None = None) -> None: ...


def log_access(scope: Scope, status: int | None, began: float, *, ending: Ending | None = None) -> None:
    """
    Log the answer to a request or a handshake, or with ``ending`` the end of a WebSocket.

    At debug level where a probe got what it wants to hear: it comes every second, and somebody reads the log.

    The path is the one on the wire: percent-encoded, so that no client can write a line of its own. Secrets in the
    query are masked, as ``mask_secrets`` says.

    Args:
        scope: Its ASGI scope.
        status: Of the answer; ``None`` where there was none.
        began: ``time.perf_counter()`` when the request came.
        ending: How the WebSocket ended.
    """
    level = logging.DEBUG if status == _OK and scope.get("microws.is_probe") else logging.INFO
    if not _access.isEnabledFor(level):
        return
    duration_ms = round((time.perf_counter() - began) * 1000, 1)
    client, method, target, version = _client(scope), _method(scope), _target(scope), scope.get("http_version", "1.1")
    fields: dict[str, object] = {
        "client": client,
        "method": method,
        "path": target,
        "http_version": version,
        "status": status,
        "duration_ms": duration_ms,
    }
    if ending is None:
        outcome: object = status or "-"
    else:
        outcome = ending.text
        fields["close_code"] = ending.code
    args = (client, f"{method} {target} HTTP/{version}", outcome, format_duration(duration_ms))
    # As Logger.info() does, but without looking for the line of code that calls it: a quarter of the time.
    _access.handle(
        _access.makeRecord(
            _access.name, level, __file__, 0, '%s "%s" %s %s', args, None, "log_access", {"access": fields}
        )
    )


def log_nothing(scope: Scope, status: int | None, began: float, *, ending: Ending | None = None) -> None:
    """The access log is off."""


def format_duration(milliseconds: float) -> str:
    """As people read it: ``12.3ms``, and from a second on ``4.5s``."""
    return f"{milliseconds:.1f}ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f}s"


def request_line(scope: Scope) -> str:
    """
    ``GET /path?query HTTP/1.1``: the path as on the wire, secrets in the query masked.

    ``WebSocket`` stands for the method of a handshake.
    """
    return f"{_method(scope)} {_target(scope)} HTTP/{scope.get('http_version', '1.1')}"


def _method(scope: Scope) -> str:
    return "WebSocket" if scope["type"] == "websocket" else str(scope["method"])


def _target(scope: Scope) -> str:
    text: str = scope["raw_path"].decode("latin-1")
    query: bytes = scope["query_string"]
    if query:
        text = mask_secrets(f"{text}?{query.decode('latin-1')}")
    return text if text.isascii() and text.isprintable() else text.encode("unicode_escape").decode()


def _client(scope: Scope) -> str:
    client = scope.get("client")
    if client is None:
        return "unix"
    host, port = client[:2]
    if not port:  # a proxy has told the address alone
        return str(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
