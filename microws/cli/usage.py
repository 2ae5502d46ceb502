"""The parser of a command, types of its options, and a mistake in a command."""

import argparse
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn

__all__ = ["HEADER", "NON_NEGATIVE_SECONDS", "SECONDS", "SUBPROTOCOL", "Parser", "UsageError", "option"]


class UsageError(Exception):
    """A mistake in the command line. The text is one line."""


class Parser(argparse.ArgumentParser):
    """A command line that raises ``UsageError`` on a mistake, and keeps only the options that were given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
            **options,
        )

    def error(self, message: str) -> NoReturn:
        # As the other texts: the longest name of the option, then what was expected.
        message = re.sub(r"^argument (?:\S+/)?(\S+): ", r"\1: ", message)
        message = re.sub(r"^the following arguments are required: (.*)", r"expected \1, got none", message)
        raise UsageError(f"{message}; see {self.prog} --help")

    @property
    def flags(self) -> list[str]:
        """The flags that exist, except ``-h`` and ``--help``."""
        return [flag for flag in self._option_string_actions if flag not in ("-h", "--help")]


def option(expected: str, pattern: str, convert: Callable[[str], Any] = str) -> Callable[[str], Any]:
    """A type for argparse: what matches ``pattern``, converted."""

    def parse(value: str) -> Any:
        with suppress(ValueError):
            if re.fullmatch(pattern, value, re.ASCII | re.DOTALL):
                return convert(value)
        raise argparse.ArgumentTypeError(f"expected {expected}, got {value!r}")

    return parse


def _header(value: str) -> tuple[str, str]:
    name, _, text = value.partition(":")
    return name, text.strip()


_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# The handshake and the requests set these themselves.
_OWN_HEADERS: Final = r"(?i:upgrade|connection|content-length|transfer-encoding|sec-websocket-)"

SECONDS: Final = option("seconds, more than 0", r"(?=.*[1-9])[0-9]*\.?[0-9]+", float)
NON_NEGATIVE_SECONDS: Final = option("seconds, 0 or more", r"[0-9]*\.?[0-9]+", float)
SUBPROTOCOL: Final = option("one name without spaces and commas (repeat the option for more)", _TOKEN)
HEADER: Final = option(
    "'Name: value' with a name that microws does not set itself", rf"(?!{_OWN_HEADERS}){_TOKEN}:[ -~]*", _header
)
