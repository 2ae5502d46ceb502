"""The JSON Schemas of an app: one name for each, however many types are called the same."""

import re
from collections.abc import Callable
from itertools import count
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from microws.codec import FRAME_TYPES, Direction, json_type
from microws.description.model import MessageType
from microws.errors import FeatureUnavailable

__all__ = ["Schemas", "as_draft_7", "members_of", "replace_names"]

_PLACE: Final = "#/components/schemas/"

# What a client gets where messages are missing.
_GAP_MARKER: Final[dict[str, Any]] = {
    "title": "GapMarker",
    "description": "Messages of the topic are missing.",
    "type": "object",
    "properties": {"topic": {"type": "string"}, "gap": {"const": True}},
    "required": ["topic", "gap"],
}
_MESSAGE_ERROR: Final[dict[str, Any]] = {
    "title": "MessageError",
    "description": "A message of the client was not valid.",
    "type": "object",
    "properties": {"type": {"const": "error"}, "detail": {"type": "string"}, "path": {"type": "string"}},
    "required": ["type", "detail", "path"],
}


class Schemas:
    """
    Collects schemas.

    Attributes:
        components: By name. A ``$ref`` to one is ``#/components/schemas/NAME``.
    """

    def __init__(self) -> None:
        self.components: dict[str, dict[str, Any]] = {}

    def message(self, annotation: Any, direction: Direction, encoding: str = "json") -> MessageType | None:
        """
        Describe the type of a message.

        Args:
            annotation: A Python type, or the name of a codec. ``str`` and ``bytes`` are frames.
            direction: Who sends its values.
            encoding: The name of the codec of a Python type.

        Returns:
            ``None``: there is no type.
        """
        if annotation is None or isinstance(annotation, str):
            return annotation
        if annotation in FRAME_TYPES:
            return FRAME_TYPES[annotation]
        described = self.json(annotation, direction)
        return described if encoding == "json" else {**described, "encoding": encoding}

    def returned(self, annotation: Any) -> MessageType | None:
        """
        Describe the type of what a view returns.

        Returns:
            ``None``: there is no type, or its values have no schema.
        """
        if annotation is None or annotation in FRAME_TYPES:
            return FRAME_TYPES.get(annotation)
        if any(part in FRAME_TYPES for part in get_args(annotation)) and get_origin(annotation) in (Union, UnionType):
            return None  # some of its values are JSON, others HTML
        try:
            return self.json(annotation, "sent")
        except (TypeError, FeatureUnavailable):
            return None  # of a class that only the app's json_default knows, or without msgspec

    def json(self, annotation: Any, direction: Direction) -> dict[str, Any]:
        """Describe a type as JSON. Raises as ``json_type``."""
        schema, components = json_type(annotation).schema(direction)
        if "properties" in schema and isinstance(annotation, type):
            # pydantic does not name the outermost one.
            name = re.sub(r"[^\w.-]", "_", annotation.__name__, flags=re.ASCII)
            schema, components = {"$ref": _PLACE + name}, {name: schema, **components}
        names = self._add(components)
        return {"schema": replace_names(schema, names.__getitem__)}

    def gap_marker(self) -> MessageType:
        """What a client gets where messages of a topic are missing."""
        return self._own(_GAP_MARKER)

    def message_error(self) -> MessageType:
        """``MessageError``, of which msgspec need not be installed."""
        return self._own(_MESSAGE_ERROR)

    def _own(self, schema: dict[str, Any]) -> MessageType:
        names = self._add({schema["title"]: schema})
        return {"schema": {"$ref": _PLACE + names[schema["title"]]}}

    def _add(self, components: dict[str, dict[str, Any]]) -> dict[str, str]:
        """Add schemas, and return their names here: another one if a different schema has the name."""
        names = {name: name for name in components}
        while True:
            renamed = {names[name]: replace_names(each, names.__getitem__) for name, each in components.items()}
            taken = [
                name for name in components if self.components.get(names[name]) not in (None, renamed[names[name]])
            ]
            if not taken:
                self.components |= renamed
                return names
            for name in taken:
                number = int(names[name].removeprefix(name) or 1)
                names[name] = next(each for n in count(number + 1) if (each := f"{name}{n}") not in names.values())


def replace_names(value: Any, rename: Callable[[str], str], place: str = _PLACE) -> Any:
    """
    A copy of a schema with other names of schemas.

    Args:
        rename: Returns the new name for one.
        place: Where they are in the copy.
    """
    if isinstance(value, dict):
        return {key: replace_names(each, rename, place) for key, each in value.items()}
    if isinstance(value, list):
        return [replace_names(each, rename, place) for each in value]
    if isinstance(value, str) and value.startswith(_PLACE):
        return place + rename(value.removeprefix(_PLACE))
    return value


def members_of(described: MessageType | None) -> list[dict[str, Any]]:
    """The schemas of a union of classes, or the one schema of another type."""
    if not isinstance(described, dict):
        return []
    schema = described["schema"]
    members: list[dict[str, Any]] = schema.get("anyOf") or schema.get("oneOf") or []
    return members if members and all("$ref" in each for each in members) else [schema]


def as_draft_7(schema: Any) -> Any:
    """
    A copy of a JSON Schema of 2020-12, for what knows draft 7 only: AsyncAPI, and tools for other languages.

    The discriminators of OpenAPI are left out: AsyncAPI has other ones, with names of schemas in place of tags.

    Source: https://json-schema.org/draft/2020-12/release-notes (``prefixItems``)
    """
    if isinstance(schema, list):
        return [as_draft_7(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {
        key: as_draft_7(each)
        for key, each in schema.items()
        if not (key == "discriminator" and isinstance(each, dict) and "propertyName" in each)
    }
    if isinstance(copy.get("prefixItems"), list):
        if "items" in copy:
            copy["additionalItems"] = copy.pop("items")
        copy["items"] = copy.pop("prefixItems")
    return copy
