"""Mistakes in a command."""

import argparse
from typing import NoReturn

__all__ = ["Parser", "UsageError"]


class UsageError(Exception):
    """The command line is wrong. The text is one line."""


class Parser(argparse.ArgumentParser):
    """A command line in which a mistake raises ``UsageError``."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")
