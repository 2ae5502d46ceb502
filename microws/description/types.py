"""The types of an app as one JSON Schema, from which other tools make types of other languages."""

import re
from typing import Any, Final

from microws.description.model import Description
from microws.description.names import Names
from microws.description.schemas import as_draft_7, members_of, replace_names

__all__ = ["write_types"]

_PLACE: Final = "#/definitions/"
# What is no JSON. Other codecs carry any value.
_FRAMES: Final = frozenset({"text", "bytes", "auto"})


def write_types(description: Description) -> dict[str, Any]:
    """
    Write a JSON Schema, of draft 7, whose ``definitions`` are the types of messages and bodies.

    A WebSocket route ``game`` with types also has ``GameReceives`` and ``GameSends``: all the JSON that it receives and
    sends.

    Source: https://json-schema.org/draft-07
    """
    names = Names()
    types = {names.take(name): each for name, each in description.schemas.items()}
    for route in description.routes:
        base = "".join(word[:1].upper() + word[1:] for word in re.split(r"[\W_]+", route.name or route.view))
        for suffix, described in (("Receives", [route.receives]), ("Sends", [route.sends, *route.delivers])):
            members: list[dict[str, Any]] = []
            for each in described:
                members += [member for member in members_of(each) if member not in members]
            if members and _FRAMES.issuperset(each for each in described if isinstance(each, str)):
                types[names.take(base + suffix)] = {"anyOf": members}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": description.title,
        "definitions": {
            name: replace_names(as_draft_7({**each, "title": name}), str, _PLACE) for name, each in types.items()
        },
    }
