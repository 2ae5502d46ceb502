"""The JSON Schemas of an app: one name for each, however many types are called the same."""

import re
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from microws.codec import FRAME_TYPES, Direction, json_type
from microws.description.model import MessageType
from microws.errors import FeatureUnavailable

__all__ = ["Schemas", "replace_names"]

_PLACE: Final = "#/components/schemas/"


class Schemas:
    """
    Collects schemas.

    Attributes:
        components: By name. A ``$ref`` to one is ``#/components/schemas/NAME``.
    """

    def __init__(self) -> None:
        self.components: dict[str, dict[str, Any]] = {}

    def describe(self, annotation: Any, direction: Direction, encoding: str = "json") -> MessageType | None:
        """
        Describe the type of a message or a body.

        Args:
            annotation: A Python type, or the name of a codec.
            direction: Who sends its values.
            encoding: The name of the codec of a Python type.

        Returns:
            ``None``: there is none, or its values have no schema.
        """
        if annotation is None or isinstance(annotation, str):
            return annotation
        if annotation in FRAME_TYPES:
            return FRAME_TYPES[annotation]
        try:
            schema, components = json_type(annotation).schema(direction)
        except (TypeError, FeatureUnavailable):
            return None  # what a view returns may be of any type
        if "properties" in schema and isinstance(annotation, type):
            # pydantic does not name the outermost one.
            name = re.sub(r"[^\w.-]", "_", annotation.__name__, flags=re.ASCII)
            schema, components = {"$ref": _PLACE + name}, {name: schema, **components}
        names = self._add(components)
        described: dict[str, Any] = {"schema": replace_names(schema, names.__getitem__)}
        return described if encoding == "json" else {**described, "encoding": encoding}

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
