"""Values that a JSON Schema describes, and others that differ from them in one place."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

__all__ = ["changed", "values_of"]

_ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 12)
    | st.sampled_from([1.5, -0.25])
    | st.sampled_from(["", "a", "b", "say", "move", "1", "xyzxyz", "é"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "type", "text", "n", "x", "kind"]), inner, max_size=3)
    ),
    max_leaves=4,
)


def values_of(schema: Any, root: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """
    Draw values of a schema.

    Args:
        root: What ``$ref`` begins at.
    """
    if "$ref" in schema:
        target: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        return st.deferred(lambda: values_of(target, root))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return st.one_of([values_of(each, root) for each in schema[word]])
    match schema.get("type"):
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(*_range(schema, 1))
        case "number":
            step = schema.get("multipleOf", 0.25)
            return st.integers(*_range(schema, step)).map(lambda n: n if n * step == n else n * step)
        case "string":
            if "pattern" in schema:
                text = st.from_regex(schema["pattern"])
                return text.filter(lambda drawn: len(drawn) <= schema.get("maxLength", len(drawn)))
            return st.text(
                st.characters(codec="utf-8"), min_size=schema.get("minLength", 0), max_size=schema.get("maxLength", 9)
            )
        case "array":
            return _arrays(schema, root)
        case "object":
            return _objects(schema, root)
    return _ANY


def _range(schema: Mapping[str, Any], step: float) -> tuple[int, int]:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -1000) + step)
    high = schema.get("maximum", schema.get("exclusiveMaximum", 1000) - step)
    return round(low / step), round(high / step)


def _arrays(schema: Mapping[str, Any], root: Mapping[str, Any]) -> st.SearchStrategy[list[Any]]:
    first = schema.get("prefixItems", [])
    least, most = schema.get("minItems", 0), schema.get("maxItems", len(first) + 3)
    rest = schema.get("items", {})
    if rest is False:
        rest, most = {}, min(most, len(first))

    @st.composite
    def draw_array(draw: Any) -> list[Any]:
        size = draw(st.integers(least, most))
        return [draw(values_of(each, root)) for each in [*first, *[rest] * size][:size]]

    return draw_array()


def _objects(schema: Mapping[str, Any], root: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    properties = {name: values_of(each, root) for name, each in schema.get("properties", {}).items()}
    required = schema.get("required", [])
    others = schema.get("additionalProperties", {})
    known = st.fixed_dictionaries(
        {name: properties[name] for name in required},
        optional={name: each for name, each in properties.items() if name not in required},
    )
    if others is False:
        return known
    names = values_of(schema["propertyNames"], root) if "propertyNames" in schema else st.sampled_from(["p", "q", "é"])
    return st.builds(
        lambda more, some: {**more, **some}, st.dictionaries(names, values_of(others, root), max_size=2), known
    )


@st.composite
def changed(draw: Any, values: st.SearchStrategy[Any]) -> Any:
    """A value that is changed in one place."""
    return _change(draw, draw(values))


def _change(draw: Any, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(_ANY)
    way = draw(st.sampled_from(["inside", "inside", "without", "more"]))
    if isinstance(value, list):
        index = draw(st.integers(0, len(value) - 1))
        changed_item = [_change(draw, value[index])] if way == "inside" else []
        if way == "more":
            return [*value, draw(_ANY)]
        return [*value[:index], *changed_item, *value[index + 1 :]]
    name = draw(st.sampled_from(sorted(value)))
    if way == "inside":
        return value | {name: _change(draw, value[name])}
    if way == "more":
        return value | {draw(st.sampled_from(["extra", "n", "type"])): draw(_ANY)}
    return {key: each for key, each in value.items() if key != name}
