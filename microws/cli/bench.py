"""``microws bench``: its options, the run, and what it prints."""

import asyncio
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from microws.bench.plan import MIN_TEXT, PLACE_OF_TEXT, Plan
from microws.bench.report import as_json, as_text, problem_with
from microws.bench.run import measure
from microws.cli.urls import url_option
from microws.cli.usage import HEADER, NON_NEGATIVE_SECONDS, SECONDS, SUBPROTOCOL, Parser, UsageError, option
from microws.server.settings import parse_size

__all__ = ["bench", "bench_parser", "bench_plan"]

_POST: Final = f'{{"text": "{PLACE_OF_TEXT}"}}'
_WHAT_TEXT: Final = f"{PLACE_OF_TEXT} stands for a text with the number by which a message is recognized"


def _text_size(value: str) -> int:
    if (size := parse_size(value)) >= MIN_TEXT:
        return size
    raise ValueError


_COUNT: Final = option("a whole number, 1 or more", r"0*[1-9][0-9]{0,8}", int)
_RATE: Final = option("a number a second, more than 0", r"(?=.*[1-9])[0-9]*\.?[0-9]+", float)
_MESSAGE: Final = option(f"{PLACE_OF_TEXT} at most once", r"(?!.*\{text\}.*\{text\}).*")
_SIZE: Final = option(f"a size such as 64 or 16KiB, {MIN_TEXT} bytes or more", r".*", _text_size)
_URL: Final = url_option("a URL such as ws://127.0.0.1:8000/echo", "wss?")
_PUBLISH: Final = url_option("a URL that begins with ws://, wss://, http:// or https://", "(ws|http)s?")
# Flag, type (``None``: a switch), metavar and help.
_OPTIONS: Final = (
    ("--fan-out", None, None, "measure a broadcast: one publisher sends, all connections to URL receive"),
    ("--connects", None, None, "measure connects: connect, send a Close frame, repeat"),
    ("--publish", _PUBLISH, "URL", "with --fan-out: where to publish, by WebSocket or by POST; default: URL"),
    ("--connections", _COUNT, "N", "open at the same time; default 100"),
    ("--seconds", SECONDS, "SECONDS", "length of the measurement; default 10"),
    ("--warm-up", NON_NEGATIVE_SECONDS, "SECONDS", "length of the warm-up before it; default 1"),
    ("--in-flight", _COUNT, "N", "unanswered messages of each connection, or of the publisher; default 1"),
    ("--rate", _RATE, "N", "send N messages a second in all, without waiting for answers"),
    ("--message", _MESSAGE, "TEXT", f"what is sent; {_WHAT_TEXT}. Default: {PLACE_OF_TEXT}; by POST {_POST}"),
    ("--size", _SIZE, "SIZE", f"of that text, as 64 (default) or 16KiB, at least {MIN_TEXT}"),
    ("--binary", None, None, "send binary messages"),
    ("--timeout", SECONDS, "SECONDS", "for a handshake, and until a message counts as lost; default 5"),
    ("--subprotocol", SUBPROTOCOL, "NAME", "to offer; may be repeated"),
    ("--header", HEADER, "'NAME: VALUE'", "to send with each handshake and POST; may be repeated"),
    ("--insecure", None, None, "accept any certificate, such as a self-signed one"),
    ("--json", None, None, "print one JSON object in place of the table"),
)

# Options that exclude each other.
_EXCLUSIVE: Final = (
    ("fan_out", "connects"), ("rate", "in_flight"),
    *(("connects", name) for name in ("in_flight", "message", "size", "binary")),
)  # fmt: skip


def bench_parser() -> Parser:
    """The parser of ``microws bench``."""
    parser = Parser(
        prog="microws bench",
        usage="microws bench URL [options]",
        description="Put load on a WebSocket server and measure its answers. By default each connection sends a "
        "message and waits for its echo.",
        epilog="Exit code 0: measured without an error; 1: something failed or was lost; 2: a mistake in the command.",
    )
    parser.add_argument("url", metavar="URL", type=_URL, help="where to connect to: ws://127.0.0.1:8000/echo")
    for flag, parse, metavar, text in _OPTIONS:
        if parse is None:
            parser.add_argument(flag, action="store_true", help=text)
        else:
            action = "append" if "repeated" in text else "store"
            parser.add_argument(flag, action=action, type=parse, metavar=metavar, help=text)
    return parser


def bench_plan(flags: Mapping[str, Any]) -> Plan:
    """
    The plan that the command line asks for.

    Args:
        flags: The flags that were given, parsed.

    Raises:
        UsageError: Flags that contradict each other.
    """
    given = {name: value for name, value in flags.items() if name not in ("json", "fan_out", "connects")}
    for pair in _EXCLUSIVE:
        if flags.keys() >= set(pair):
            raise UsageError("expected --{} or --{}, got both; leave out one of them".format(*pair).replace("_", "-"))
    if "size" in given and PLACE_OF_TEXT not in given.get("message", PLACE_OF_TEXT):
        raise UsageError(f"--size: expected {PLACE_OF_TEXT} in --message, got none; add it, or leave out --size")
    if "publish" in given and "fan_out" not in flags:
        raise UsageError("--publish: expected --fan-out too, got --publish alone; add --fan-out")
    if "fan_out" in flags and given.setdefault("publish", given["url"]).startswith("http"):
        given.setdefault("message", _POST)
        if "binary" in given:
            raise UsageError("--binary: expected a WebSocket to publish to, got a POST; use --header 'Content-Type: …'")
    given |= {name: tuple(given.get(name, ())) for name in ("subprotocol", "header")}
    return Plan(mode="fan-out" if "fan_out" in flags else "connects" if "connects" in flags else "echo", **given)


def bench(flags: Mapping[str, Any]) -> int:
    """
    Measure; print a table or JSON on stdout, and progress and the error on stderr.

    Ctrl-C ends the run and prints the figures until then; a second one ends it immediately.

    Args:
        flags: The flags that were given, parsed.

    Returns:
        0 when it was measured without an error, else 1.

    Raises:
        UsageError: A mistake in the flags.
    """
    plan = bench_plan(flags)
    _allow_many_files()
    loop_factory = import_module("uvloop").new_event_loop if find_spec("uvloop") else None
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            result = runner.run(measure(plan, _show_status))
    except KeyboardInterrupt:
        _show_status("")
        sys.stderr.write("error: interrupted\n")
        return 1
    _show_status("")
    if "json" in flags:
        print(json.dumps(as_json(result)))
    elif result.seconds:
        print(as_text(result))
    if (problem := problem_with(result)) is None:
        return 0
    sys.stdout.flush()
    sys.stderr.write(f"error: {problem}\n")
    return 1


def _show_status(text: str) -> None:
    """Show ``text`` on a terminal in place of the line before."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _allow_many_files() -> None:
    """Raise the limit of open files, of which each connection is one, as far as the user may."""
    with suppress(ImportError, OSError, ValueError):
        resource = import_module("resource")
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
