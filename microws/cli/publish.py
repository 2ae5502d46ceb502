"""``microws publish``: publishes one message to the hub of a running server."""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from microws.cli.usage import Parser, UsageError
from microws.codec import loads_json
from microws.errors import FeatureUnavailable, HubUnavailable, PublishTimeout
from microws.hub_connection import HubConnector, connect_hub
from microws.interfaces import Receipt

__all__ = ["publish", "publish_parser"]

_KINDS: Final = ("json", "text", "file")


def publish_parser() -> Parser:
    """The parser of ``microws publish``."""
    parser = Parser(
        prog="microws publish",
        usage="microws publish TOPIC [VALUE] [options]",
        description="Publish a message to the clients of a running server: microws publish news hello",
        epilog="Prints the position of the message, if its topic has history. Exit code 0: the server has the message; "
        "1: it may or may not have it, or no server answers; 2: a mistake in the command.",
    )
    parser.add_argument("topic", metavar="TOPIC", help="as of app.publish")
    parser.add_argument("value", nargs="?", metavar="VALUE", help="the message")
    parser.add_argument("--text", action="store_true", help="VALUE is text (default)")
    parser.add_argument("--json", action="store_true", help="VALUE is JSON")
    parser.add_argument("--file", metavar="FILE", help="publish the bytes of this file, in place of VALUE; - is stdin")
    parser.add_argument("--key", metavar="KEY", help="publish only if the history has no message with this key")
    parser.add_argument(
        "--hub",
        metavar="URL",
        help="local:PATH, as the log of the server names it, or redis://HOST; default: the variable MICROWS_HUB",
    )
    parser.add_argument("--mount", metavar="PATH", help="where the App of the topic is mounted; default: the outermost")
    return parser


def publish(flags: Mapping[str, Any]) -> int:
    """
    Publish a message; print its position on stdout, if it has one, and the error on stderr.

    Args:
        flags: The flags that were given, parsed.

    Returns:
        0 when the hub process has the message, else 1.

    Raises:
        UsageError: A mistake in the command.
    """
    try:
        value = _value(flags)
        connector = connect_hub(flags.get("hub"), mount=flags.get("mount", ""))
        receipt = asyncio.run(_publish(connector, flags["topic"], value, flags.get("key")))
    except (HubUnavailable, PublishTimeout) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 1
    except (FeatureUnavailable, TypeError, ValueError) as error:
        raise UsageError(str(error)) from None
    if receipt.id is not None:
        try:
            print(receipt.id, flush=True)
        except BrokenPipeError:
            # Python would flush it again at the end. Source: https://docs.python.org/3/library/signal.html#note-on-sigpipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


async def _publish(connector: HubConnector, topic: str, value: Any, key: str | None) -> Receipt:
    async with connector as hub:
        return await hub.publish(topic, value, key=key)


def _value(flags: Mapping[str, Any]) -> Any:
    kinds = [f"--{kind}" for kind in _KINDS if kind in flags]
    if len(kinds) > 1:
        raise UsageError(f"expected {kinds[0]} or {kinds[1]}, got both; leave out one of them")
    if ("value" in flags) == ("file" in flags):
        raise UsageError(f"expected VALUE or --file FILE, got {'both' if 'file' in flags else 'none'}")
    if "file" in flags:
        try:
            return sys.stdin.buffer.read() if flags["file"] == "-" else Path(flags["file"]).read_bytes()
        except OSError as error:
            raise UsageError(f"--file: {flags['file']}: {error.strerror}") from None
    if "json" not in flags:
        return flags["value"]
    try:
        return loads_json(flags["value"])
    except ValueError as error:
        raise UsageError(f"--json: {error}") from None
