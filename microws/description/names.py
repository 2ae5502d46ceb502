"""Names and paths in the documents of an app."""

import re
from collections.abc import Mapping
from typing import Final

from microws.description.model import RouteDescription
from microws.routing import encode_path

__all__ = ["Names", "address_of", "parameter_names"]

_NOT_ALLOWED: Final = re.compile(r"[^A-Za-z0-9_.-]+")


class Names:
    """Gives names that are not taken, of the characters that all documents allow."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, wanted: str) -> str:
        """A name that is like ``wanted``."""
        base = _NOT_ALLOWED.sub("_", wanted).strip("_") or "unnamed"
        name, number = base, 1
        while name in self._taken:
            number += 1
            name = f"{base}{number}"
        self._taken.add(name)
        return name


def parameter_names(route: RouteDescription) -> dict[str, str]:
    """The names of the parameters of a path in a document."""
    names = Names()
    return {each["name"]: names.take(each["name"]) for each in route.parameters}


def address_of(route: RouteDescription, names: Mapping[str, str]) -> str:
    """
    The path of a route as a template: ``/chat/{room}``.

    Args:
        names: Of its parameters.
    """
    parts = (
        f"{{{names[part[1:-1].partition(':')[0]]}}}" if part.startswith("{") else encode_path(part)
        for part in route.pattern.split("/")
    )
    return "/".join(parts)
