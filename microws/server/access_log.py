"""One line for each answer, and for each end of a WebSocket."""

import logging
import time
from abc import abstractmethod
from typing import Final, NamedTuple, Protocol

from microws.datastructures import mask_secrets
from microws.interfaces import Scope

__all__ = [
    "AccessLog",
    "Answer",
    "AnswerHandler",
    "Ending",
    "format_duration",
    "log_access",
    "log_nothing",
    "request_line",
]

_access = logging.getLogger("microws.access")

_OK: Final = 200


class Ending(NamedTuple):
    """How a WebSocket ended: in words, and its close code where it is known."""

    text: str
    code: int | None = None


class Answer(NamedTuple):
    """
    A line of the access log before it is formatted. Nothing in it is changed later.

    Attributes:
        created: ``time.time()``.
        level: ``logging.INFO`` or ``DEBUG``.
        client, method, raw_path, query_string, http_version: Of the scope; ``WebSocket`` for the method of a handshake.
        status: ``None`` without one.
        duration_ms: Milliseconds since the request.
        ending: Of a WebSocket.
    """

    created: float
    level: int
    client: tuple[str, int] | None
    method: str
    raw_path: bytes
    query_string: bytes
    http_version: str
    status: int | None
    duration_ms: float
    ending: Ending | None

    def parts(self) -> tuple[str, str, str]:
        """The client, the target of the request, and the line."""
        client, target = _client(self.client), _target(self.raw_path, self.query_string)
        outcome = (self.status or "-") if self.ending is None else self.ending.text
        line = f'"{self.method} {target} HTTP/{self.http_version}" {outcome} {format_duration(self.duration_ms)}'
        return client, target, f"{client} {line}"


class AnswerHandler(logging.Handler):
    """A handler that formats answers without a record for each: that takes half the time."""

    @abstractmethod
    def takes_answers(self, level: int) -> bool:
        """Whether it logs answers of this level, and has a formatter for them."""

    @abstractmethod
    def add_answer(self, answer: Answer) -> None:
        """Log an answer."""


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
    answer = Answer(
        time.time(),
        level,
        scope.get("client"),
        _method(scope),
        scope["raw_path"],
        scope["query_string"],
        scope.get("http_version", "1.1"),
        status,
        round((time.perf_counter() - began) * 1000, 1),
        ending,
    )
    handler = _only_handler(level)
    if handler is not None:
        handler.add_answer(answer)
        return
    client, target, line = answer.parts()
    fields: dict[str, object] = {
        "client": client,
        "method": answer.method,
        "path": target,
        "http_version": answer.http_version,
        "status": status,
        "duration_ms": answer.duration_ms,
    }
    if ending is not None:
        fields["close_code"] = ending.code
    # As Logger.info() does, but without looking for the line of code that calls it.
    record = _access.makeRecord(_access.name, level, __file__, 0, "%s", (line,), None, "log_access", {"access": fields})
    _access.handle(record)


def _only_handler(level: int) -> AnswerHandler | None:
    """The handler that takes answers, where no other handler and no filter is to see them."""
    found: AnswerHandler | None = None
    logger: logging.Logger | None = _access
    if _access.filters or _access.disabled:
        return None
    while logger is not None:
        for handler in logger.handlers:
            if found is not None or not isinstance(handler, AnswerHandler) or not handler.takes_answers(level):
                return None
            found = handler
        logger = logger.parent if logger.propagate else None
    return found


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
    target = _target(scope["raw_path"], scope["query_string"])
    return f"{_method(scope)} {target} HTTP/{scope.get('http_version', '1.1')}"


def _method(scope: Scope) -> str:
    return "WebSocket" if scope["type"] == "websocket" else str(scope["method"])


def _target(raw_path: bytes, query: bytes) -> str:
    text = raw_path.decode("latin-1")
    if query:
        text = mask_secrets(f"{text}?{query.decode('latin-1')}")
    return text if text.isascii() and text.isprintable() else text.encode("unicode_escape").decode()


def _client(client: tuple[str, int] | None) -> str:
    if client is None:
        return "unix"
    host, port = client[:2]
    if not port:  # a proxy has told the address alone
        return str(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
