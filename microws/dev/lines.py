"""The log of ``microws dev``: one readable line for each request, WebSocket and publish."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TextIO

from microws.closing import CloseCode
from microws.server.logs import AccessEntry, TextFormatter, format_duration
from microws.server.request_line import logged_target
from microws.server.settings import Settings
from microws.server.websockets import ServerWebSocket

__all__ = ["CountingWebSocket", "DevFormatter", "formatter_of", "log_publishes"]

_log = logging.getLogger("microws.access")

# Width of the method and of the target; a longer target moves what follows it.
_METHOD: Final = 7
_TARGET: Final = 36
# Messages of a topic that have a line of their own within so many seconds.
_MAX_PUBLISHES: Final = 10
_PUBLISH_INTERVAL: Final = 1.0
_MAX_TOPICS: Final = 1000

_DIM: Final = "2"
_RED: Final = "31"
_COLORS: Final = {"debug": _DIM, "warning": "33", "error": _RED, "critical": "1;31"}
_BY_CLASS: Final = {"1": "36", "2": "32", "3": "36", "4": "33", "5": _RED}


class DevFormatter(TextFormatter):
    """
    ``12:00:00  GET     /path    200   1.2ms``; other records as ``12:00:00  info    message``.

    Args:
        stream: Colours are used if it is a terminal, unless ``NO_COLOR`` is set.

    Source: https://no-color.org
    """

    default_time_format: str = "%H:%M:%S"

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._has_colors = stream is not None and stream.isatty() and not os.environ.get("NO_COLOR")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        level = record.levelname.lower()
        columns = getattr(record, "columns", None)
        if columns is not None:
            return self._line(record.created, *columns)
        message = f"{level:<{_METHOD}} {record.message}"
        return f"{self._paint(record.asctime, _DIM)}  {self._paint(message, _COLORS.get(level, ''))}"

    def format_entry(self, entry: AccessEntry) -> str:
        """The line of a request, or of a WebSocket that was opened or refused."""
        target = logged_target(entry.raw_path, entry.query_string)
        method = "WS" if entry.method == "WebSocket" else entry.method
        if entry.status == 101 and entry.close_code is not None:
            outcome, color = _close(entry.close_code)
        elif entry.status == 101:
            outcome, color = "open", _BY_CLASS["1"]
        else:
            outcome, color = str(entry.status or "-"), _BY_CLASS.get(str(entry.status or 5)[0], "")
        return self._line(entry.created, method, target, outcome, color, format_duration(entry.duration_ms), "")

    def _line(
        self, created: float, method: str, target: str, outcome: str, color: str, duration: str, more: str
    ) -> str:
        return (
            f"{self._paint(self._format_time(created), _DIM)}  {method:<{_METHOD}} {target:<{_TARGET}} "
            f"{self._paint(f'{outcome:<5}', color)} {duration:>8}  {more}"
        ).rstrip()

    def _format_time(self, created: float) -> str:
        return super()._format_time(created).partition(",")[0]

    def _paint(self, text: str, color: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self._has_colors and color else text


def formatter_of(settings: Settings) -> logging.Formatter | None:
    """The formatter for stderr; ``None`` if the log is JSON."""
    return None if settings.log_format == "json" else DevFormatter(sys.stderr)


def _close(code: int) -> tuple[str, str]:
    is_expected = code in (0, CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY, CloseCode.SERVICE_RESTART, 1005)
    return str(code or "-"), _BY_CLASS["2" if is_expected else "4"]


def _write(*columns: str) -> None:
    _log.info("%s", " ".join(columns), extra={"columns": columns})


class CountingWebSocket(ServerWebSocket):
    """Counts the messages of a connection in both directions, for the line of its end."""

    __slots__ = ("_left", "received", "sent")

    def __init__(self, transport: asyncio.Transport, *arguments: Any) -> None:
        super().__init__(transport, *arguments)
        self.received = self.sent = 0
        # Bytes of a frame that are still to be written.
        self._left = 0
        # So that every message goes through ``write``.
        self.socket = None
        self.write = self._count

    async def receive(self) -> str | bytes | None:
        message = await super().receive()
        self.received += message is not None
        return message

    def _count(self, data: bytes | memoryview) -> None:
        """Count the frames that begin in ``data``, and write it. Source: RFC 6455 §5.2."""
        place = self._left
        while place < len(data) and self.accepted:
            opcode, length = data[place] & 15, data[place + 1] & 127
            self.sent += opcode in (1, 2)
            size = {126: 2, 127: 8}.get(length, 0)
            begin = place + 2 + size
            place = begin + (int.from_bytes(data[place + 2 : begin], "big") if size else length)
        self._left = max(0, place - len(data)) if self.accepted else 0
        self._transport.write(data)

    def log_end(self, code: int) -> None:
        """Log the end, with the number of messages."""
        duration = format_duration((time.perf_counter() - self._began) * 1000)
        target = logged_target(self.scope["raw_path"], self.scope["query_string"])
        if not self.scope.get("microws.is_probe"):
            _write("WS", target, *_close(code), duration, f"in {self.received}, out {self.sent}")


def log_publishes(hub: Any) -> None:
    """Log what is published: at most ten lines for a topic in a second, and how many are left out."""
    publish: Callable[..., Awaitable[Any]] = hub.publish
    # When the second of each topic ends, and how many messages it has had.
    topics: dict[str, tuple[float, int]] = {}

    async def publish_and_log(topic: str, value: Any, **options: Any) -> Any:
        before, began = sum(hub.losses.values()), time.perf_counter()
        receipt = await publish(topic, value, **options)
        end, count = topics.get(topic, (0.0, 0))
        if began < end:
            topics[topic] = end, count + 1
            if count >= _MAX_PUBLISHES:
                return receipt
            count = 0
        else:
            if len(topics) > _MAX_TOPICS:
                topics.clear()
            topics[topic] = began + _PUBLISH_INTERVAL, 1
        dropped = sum(hub.losses.values()) - before
        text = "1 subscriber" if receipt.subscribers == 1 else f"{receipt.subscribers} subscribers"
        text += f", dropped {dropped}" if dropped else ""
        text += f"; {count - _MAX_PUBLISHES} messages before without a line" if count > _MAX_PUBLISHES else ""
        shown = topic.encode("unicode_escape").decode()
        duration = format_duration((time.perf_counter() - began) * 1000)
        _write("PUB", shown, "", _RED if dropped else "", duration, text)
        return receipt

    hub.publish = publish_and_log
