"""The options of ``microws bench``: flags alone."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

from microws.bench.messages import MIN_TEXT, PLACE_OF_TEXT
from microws.bench.plan import Plan
from microws.bench.target import Target
from microws.cli.usage import Parser, UsageError
from microws.server.settings import parse_size

__all__ = ["BENCH_FLAGS", "bench_parser", "bench_plan"]

_WS: Final = ("ws", "wss")
_POST: Final = f'{{"text": "{PLACE_OF_TEXT}"}}'
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# The handshake and the body say these themselves.
_OWN_HEADERS: Final = ("upgrade", "connection", "content-length", "transfer-encoding", "sec-websocket-")


def _count(value: str) -> int:
    if re.fullmatch(r"[0-9]{1,9}", value, re.ASCII) and int(value) > 0:
        return int(value)
    raise ValueError(f"expected a number, 1 or more, got {value!r}")


def _number(value: str, unit: str, *, may_be_zero: bool = False) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if 0 < number < math.inf or (number == 0 and may_be_zero):
        return number
    raise ValueError(f"expected {unit}, {'0 or more' if may_be_zero else 'more than 0'}, got {value!r}")


def _seconds(value: str) -> float:
    return _number(value, "seconds")


def _seconds_or_none(value: str) -> float:
    return _number(value, "seconds", may_be_zero=True)


def _rate(value: str) -> float:
    return _number(value, "a number a second")


def _text_size(value: str) -> int:
    size = parse_size(value)
    if size < MIN_TEXT:
        raise ValueError(f"expected at least {MIN_TEXT} bytes, because a message carries its number, got {value!r}")
    return size


def _message(value: str) -> str:
    if value.count(PLACE_OF_TEXT) > 1:
        raise ValueError(f"expected {PLACE_OF_TEXT} once or not at all, got {value!r}")
    return value


def _publish(value: str) -> Target:
    return Target.parse(value, schemes=(*_WS, "http", "https"))


def _subprotocol(value: str) -> str:
    if _TOKEN.fullmatch(value):
        return value
    raise ValueError(f"expected a name without spaces and commas, got {value!r}; for more than one repeat the option")


def _header(value: str) -> tuple[str, str]:
    name, colon, text = value.partition(":")
    if not colon or not _TOKEN.fullmatch(name):
        raise ValueError(f"expected 'Name: value', got {value!r}")
    if name.lower().startswith(_OWN_HEADERS):
        hint = "; write --subprotocol" if name.lower() == "sec-websocket-protocol" else ""
        raise ValueError(f"expected another header, got {name}, which microws sets{hint}")
    text = text.strip()
    if not text.isascii() or not text.isprintable():
        raise ValueError(f"expected a value of printable ASCII, got {text!r}")
    return name, text


class _Option(NamedTuple):
    """An attribute of the plan, and the flag that sets it; without ``check`` a switch."""

    name: str
    metavar: str | None
    help: str
    check: Callable[[str], Any] | None = None
    is_repeatable: bool = False

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"


_OPTIONS: Final = (
    _Option("fan_out", None, "measure a broadcast: one publisher sends, all connections to URL receive"),
    _Option("connects", None, "measure connects: connect, send a Close frame, repeat"),
    _Option("publish", "URL", "with --fan-out: where to publish, by WebSocket or by POST; default: URL", _publish),
    _Option("connections", "N", "open at the same time; default 100", _count),
    _Option("seconds", "SECONDS", "length of the measurement; default 10", _seconds),
    _Option("warm_up", "SECONDS", "length of the warm-up before it; default 1", _seconds_or_none),
    _Option("in_flight", "N", "unanswered messages of each connection, or of the publisher; default 1", _count),
    _Option("rate", "N", "send N messages a second in all, without waiting for answers", _rate),
    _Option(
        "message",
        "TEXT",
        f"what is sent; {PLACE_OF_TEXT} stands for a text with the number by which a message is known again. "
        f"Default: {PLACE_OF_TEXT}; by POST {_POST}",
        _message,
    ),
    _Option("size", "SIZE", f"of that text, as 64 (default) or 16KiB, at least {MIN_TEXT}", _text_size),
    _Option("binary", None, "send binary messages"),
    _Option("timeout", "SECONDS", "for a handshake, and until a message counts as lost; default 5", _seconds),
    _Option("subprotocol", "NAME", "to offer; may be repeated", _subprotocol, is_repeatable=True),
    _Option(
        "header", "'NAME: VALUE'", "to send with each handshake and POST; may be repeated", _header, is_repeatable=True
    ),
    _Option("insecure", None, "accept any certificate, such as a self-signed one"),
    _Option("json", None, "print one JSON object in place of the table"),
)

BENCH_FLAGS: Final = tuple(option.flag for option in _OPTIONS)


def bench_parser() -> Parser:
    """The parser of ``microws bench``."""
    bench = Parser(
        prog="microws bench",
        usage="microws bench URL [options]",
        description="Put load on a server of WebSockets, and measure what comes back. By default every connection "
        "sends a message, and waits for its echo.",
        epilog="Exit code 0: measured, and no error; 1: something failed, or was lost; 2: a mistake in the command.",
    )
    bench.add_argument("url", metavar="URL", help="where to connect to: ws://127.0.0.1:8000/echo")
    for option in _OPTIONS:
        if option.check is None:
            bench.add_argument(option.flag, action="store_true", help=option.help)
        else:
            action = "append" if option.is_repeatable else "store"
            bench.add_argument(option.flag, action=action, metavar=option.metavar, help=option.help)
    return bench


def bench_plan(flags: Mapping[str, Any]) -> Plan:
    """
    What to measure.

    Args:
        flags: What the parser made of the command line: only what was given.

    Raises:
        UsageError: An invalid value, or options that contradict each other.
    """
    given: dict[str, Any] = {}
    for option in _OPTIONS:
        if option.name in flags:
            given[option.name] = _checked(option, flags[option.name])
    _check_company(given)
    try:
        target = Target.parse(flags["url"], schemes=_WS)
    except ValueError as error:
        raise UsageError(f"URL: {error}") from None
    mode: Literal["echo", "fan-out", "connects"] = "echo"
    if given.pop("connects", False):
        mode = "connects"
    elif given.pop("fan_out", False):
        mode = "fan-out"
        publish = given.setdefault("publish", target)
        if not publish.is_websocket:
            if "binary" in given:
                raise UsageError(
                    "--binary: expected a WebSocket to publish to, got a POST; write --header 'Content-Type: …'"
                )
            given.setdefault("message", _POST)
    given.pop("json", None)
    if "timeout" in given:
        given["open_timeout"] = given["timeout"]
    for name, plural in (("subprotocol", "subprotocols"), ("header", "headers")):
        given[plural] = tuple(given.pop(name, ()))
    return Plan(target=target, mode=mode, **given)


def _checked(option: _Option, value: Any) -> Any:
    if option.check is None:
        return value
    try:
        return [option.check(one) for one in value] if option.is_repeatable else option.check(value)
    except ValueError as error:
        raise UsageError(f"{option.flag}: {error}") from None


def _check_company(given: Mapping[str, Any]) -> None:
    """Refuse options that do not go together."""
    if "fan_out" in given and "connects" in given:
        raise UsageError("expected --fan-out or --connects, got both; leave out one of them")
    if "publish" in given and "fan_out" not in given:
        raise UsageError("--publish: expected --fan-out too, got --publish alone; add --fan-out")
    if "rate" in given and "in_flight" in given:
        raise UsageError("expected --rate or --in-flight, got both; leave out one of them")
    for name in ("in_flight", "message", "size", "binary"):
        if name in given and "connects" in given:
            raise UsageError(f"expected --connects or --{name.replace('_', '-')}, got both; leave out one of them")
    if "size" in given and PLACE_OF_TEXT not in given.get("message", PLACE_OF_TEXT):
        raise UsageError(f"--size: expected {PLACE_OF_TEXT} in --message, got none; put it in, or leave out --size")
