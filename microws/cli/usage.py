"""The parser of a command, and a mistake in a command."""

import argparse
from typing import Any, NoReturn

__all__ = ["Parser", "UsageError"]


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
        raise UsageError(f"{message}; see {self.prog} --help")

    @property
    def flags(self) -> list[str]:
        """The flags that exist, except ``-h`` and ``--help``."""
        return [flag for flag in self._option_string_actions if flag not in ("-h", "--help")]
