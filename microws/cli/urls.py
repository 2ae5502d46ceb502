"""The type of a URL, for the commands that connect to a server."""

import argparse
from collections.abc import Callable

from microws.bench.plan import parse_url
from microws.cli.usage import option

__all__ = ["url_option"]


def url_option(expected: str, schemes: str) -> Callable[[str], str]:
    """
    A type for argparse.

    Args:
        expected: As of ``option``.
        schemes: A regular expression of those that the command takes.
    """
    check = option(expected, rf"({schemes})://.*")

    def parse(value: str) -> str:
        if "://" not in value:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {value!r}; write ws://{value}")
        check(value)
        try:
            parse_url(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return parse
