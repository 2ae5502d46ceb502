"""A Python type as JSON: what decodes, checks and encodes its values, and its JSON Schema."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias, TypedDict, get_args

from microws.codec.exact_json import JSONDefault, dumps_json, loads_json
from microws.errors import FeatureUnavailable, InvalidMessage

__all__ = ["Direction", "JSONType", "MessageError", "json_type", "lists_in", "name_of_type"]

Direction: TypeAlias = Literal["received", "sent"]

# What msgspec appends to the text of an error.
_PATH: Final = re.compile(r"(.*) - at `(.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`")


# In a path, what msgspec writes for a key of a dict; and the steps of a path: names, indexes, and these keys.
_KEY: Final = "[...]"
_STEP: Final = re.compile(r"[^.\[\]`$]+|\.\.\.")
# The size of a message and the number of keys among which that key is searched for: that takes less than a millisecond.
_MAX_SEARCHED: Final = 4 << 10
_MAX_KEYS: Final = 20


class MessageError(TypedDict):
    """
    What a client gets for an invalid message with ``on_invalid="error"``, as JSON.

    Attributes:
        type: ``"error"``.
        detail: What is wrong with the message.
        path: Where: ``$.text``; ``$`` is the whole message.
    """

    type: Literal["error"]
    detail: str
    path: str


class JSONType(ABC):
    """
    What decodes, checks and encodes the values of one Python type; ``json_type`` returns it.

    Attributes:
        type: The Python type.
    """

    def __init__(self, annotation: Any) -> None:
        self.type = annotation

    @abstractmethod
    def decode(self, data: str | bytes) -> Any:
        """
        Decode a JSON text, and check that it is of the type.

        Raises:
            InvalidMessage: It is not; ``path`` says where.
        """

    @abstractmethod
    def convert(self, value: Any, *, is_text: bool = False) -> Any:
        """
        Make a value of the type of what another codec has decoded.

        Args:
            value: Dicts, lists, and so on.
            is_text: Whether a ``str`` also stands for a number or ``bool``, as in a query.

        Raises:
            InvalidMessage: It is not of the type; ``path`` says where.
        """

    @abstractmethod
    def plain(self, value: Any, *, default: JSONDefault | None = None, is_binary: bool = False) -> Any:
        """
        Make dicts, lists, and so on, of a value, as codecs encode them. It need not be of the type.

        Args:
            default: ``App(json_default=…)``.
            is_binary: Whether ``bytes`` stay ``bytes``. Default: they become base64, if the type does not say how else.

        Raises:
            TypeError, ValueError: It contains what the type cannot encode.
        """

    def dump(self, value: Any, *, default: JSONDefault | None = None) -> bytes:
        """
        Encode a value as JSON, exactly or not at all.

        Args:
            default: As of ``plain``.

        Raises:
            TypeError, ValueError: As ``plain`` and ``dumps_json``.
        """
        return dumps_json(self.plain(value, default=default), default)

    @abstractmethod
    def check(self, value: Any, plain: Any) -> None:
        """
        Check that a value is of the type, as far as a client can tell.

        Args:
            plain: What is sent of it.

        Raises:
            TypeError: It is not; says where.
        """

    @abstractmethod
    def schema(
        self, direction: Direction, *, ref_template: str = "#/components/schemas/{name}"
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        The JSON Schema (2020-12) of the type.

        Args:
            direction: Of the messages: a type with defaults or computed fields may have two schemas.
            ref_template: Of references to the schemas of classes.

        Returns:
            The schema, and those of the classes in it, by name.
        """


@lru_cache(256)
def json_type(annotation: Any) -> JSONType:
    """
    What decodes, checks and encodes the values of a type as JSON.

    Args:
        annotation: A ``msgspec.Struct``, a ``Message``, a dataclass, a ``TypedDict``, a type of the standard library,
            or a union or list of these: all need msgspec. Or a type with a pydantic model, which needs pydantic.

    Raises:
        TypeError: JSON cannot carry the type exactly; says why, and what to write instead.
        FeatureUnavailable: msgspec is not installed.
    """
    if any(map(_is_pydantic, _classes_in(annotation))):
        return _PydanticType(annotation)
    return _MsgspecType(annotation)


def lists_in(rules: JSONType) -> frozenset[str]:
    """
    The fields of a type that are lists or may be.

    Raises:
        TypeError: The type has no fields.
    """
    schema, components = rules.schema("received")
    schema = components[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if "properties" not in schema:
        raise TypeError(
            f"expected a class with a field for each parameter of the query, got {name_of_type(rules.type)}"
        )
    fields = schema["properties"].items()
    return frozenset(
        name for name, each in fields if "array" in [way.get("type") for way in (each, *each.get("anyOf", ()))]
    )


def name_of_type(annotation: Any) -> str:
    """A type as it is written in a program: ``Say | Move``."""
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else _written(annotation)


def _written(annotation: Any) -> str:
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", repr(annotation))


def _classes_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _classes_in(part)


def _is_pydantic(annotation: Any) -> bool:
    return isinstance(annotation, type) and hasattr(annotation, "__pydantic_validator__")


class _MsgspecType(JSONType):
    """With msgspec."""

    def __init__(self, annotation: Any) -> None:
        try:
            import msgspec
            import msgspec.inspect
        except ImportError:
            raise FeatureUnavailable(
                f"the type {name_of_type(annotation)} needs msgspec: pip install 'microws[typed]'"
            ) from None
        super().__init__(annotation)
        self._msgspec = msgspec
        self._encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
        try:
            self._decode = msgspec.json.Decoder(annotation).decode
            info = msgspec.inspect.type_info(annotation)
        except (TypeError, NameError, ValueError) as error:
            raise TypeError(f"{name_of_type(annotation)} cannot be a type of messages: {_advise(error)}") from None
        # Of a dict, or of Any, msgspec would write keys that are not ``str`` as ``str``.
        kinds = (msgspec.inspect.DictType, msgspec.inspect.TypedDictType, msgspec.inspect.AnyType)
        infos = list(_infos_in(info))
        self._has_dicts = any(isinstance(each, kinds) for each in infos)
        for each in infos:
            # In a message, msgspec 0.23 finds no field of a dataclass or TypedDict whose name is not ASCII, until that
            # very str was encoded once.
            msgspec.json.encode([field.name for field in getattr(each, "fields", ())])
            if isinstance(each, msgspec.inspect.CustomType):
                raise TypeError(f"{name_of_type(annotation)} cannot be a type of messages: {_advise_on(each.cls)}")
            if isinstance(each, msgspec.inspect.DictType) and not isinstance(
                each.key_type, msgspec.inspect.StrType | msgspec.inspect.AnyType | msgspec.inspect.LiteralType
            ):
                raise TypeError(
                    f"{name_of_type(annotation)} cannot be a type of messages: a key in JSON is str; write dict[str, …]"
                )
        unions = [each.types for each in infos if isinstance(each, msgspec.inspect.UnionType)] or [(info,)]
        tagged: list[list[Any]] = [
            [each for each in types if getattr(each, "tag", None) is not None] for types in unions
        ]
        # Of several unions, an error does not say which one it is of.
        structs = tagged[0] if len(tagged) == 1 else []
        self._tag_field = structs[0].tag_field if structs else None
        self._tags = ", ".join(repr(each.tag) for each in structs)

    def decode(self, data: str | bytes) -> Any:
        try:
            return self._decode(data)
        except self._msgspec.ValidationError as error:
            text = str(error)
            if _KEY in text and len(data) <= _MAX_SEARCHED:
                with suppress(InvalidMessage):
                    text = self._name_keys(text, loads_json(data))
            raise self._invalid(text) from None
        except (self._msgspec.DecodeError, UnicodeError) as error:
            loads_json(data)  # which says better what is wrong
            raise InvalidMessage(f"invalid JSON: {error}") from None
        except RecursionError:
            raise InvalidMessage("invalid JSON: nested too deeply") from None

    def convert(self, value: Any, *, is_text: bool = False) -> Any:
        try:
            return self._msgspec.convert(value, self.type, strict=not is_text)
        except self._msgspec.ValidationError as error:
            raise self._invalid(str(error)) from None
        except RecursionError:
            raise InvalidMessage("nested too deeply") from None

    def plain(self, value: Any, *, default: JSONDefault | None = None, is_binary: bool = False) -> Any:
        kept = (bytes, bytearray, memoryview) if is_binary else ()
        try:
            return self._msgspec.to_builtins(value, builtin_types=kept, enc_hook=default)
        except RecursionError:
            raise ValueError("expected a value that is not nested so deeply, or does not contain itself") from None

    def dump(self, value: Any, *, default: JSONDefault | None = None) -> bytes:
        if not self._has_dicts:
            try:
                data = self._encode(value)
            except (TypeError, ValueError, RecursionError):
                pass  # it is encoded below, or the error there says more
            else:
                # msgspec writes NaN and Infinity as null.
                if data.find(b"null") < 0:
                    return data
        return super().dump(value, default=default)

    def check(self, value: Any, plain: Any) -> None:
        try:
            self._msgspec.convert(plain, self.type)
        except self._msgspec.ValidationError as error:
            raise _wrong_type(self.type, value, str(error)) from None

    def schema(
        self, direction: Direction, *, ref_template: str = "#/components/schemas/{name}"
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        (schema,), components = self._msgspec.json.schema_components([self.type], ref_template=ref_template)
        return schema, components

    def _name_keys(self, text: str, value: Any) -> str:
        """
        Name the keys of dicts in the path of an error, which msgspec does not.

        Args:
            text: The error.
            value: What it is about. It is changed: only the key in the path is left in a dict.
        """
        found = _PATH.fullmatch(text)
        steps = _STEP.findall(found[2]) if found else []
        if found is None or "..." not in steps:
            return text
        path, node = "$", value
        for step in steps:
            if step == "..." and isinstance(node, dict):
                step = next((key for key in list(node)[:_MAX_KEYS] if self._is_wrong(text, value, node, key)), step)
                path += f".{step}" if step.isidentifier() else f"[{step[:60]!r}]" if step != "..." else "[...]"
            else:
                path += f"[{step}]" if step.isdecimal() or step == "..." else f".{step}"
            try:
                node = node[int(step) if isinstance(node, list) else step]
            except (LookupError, TypeError, ValueError):
                node = None
        return f"{found[1]} - at `{path}`"

    def _is_wrong(self, text: str, value: Any, node: dict[str, Any], key: str) -> bool:
        """Whether the error is about this key of ``node``, a dict in ``value``. Then only the key is left in it."""
        members = dict(node)
        node.clear()
        node[key] = members[key]
        try:
            self._msgspec.convert(value, self.type)
        except self._msgspec.ValidationError as error:
            if str(error) == text:
                return True
        node.clear()
        node.update(members)
        return False

    def _invalid(self, text: str) -> InvalidMessage:
        found = _PATH.fullmatch(text)
        detail, path = found.groups() if found else (text, "$")
        if missing := _MISSING.fullmatch(detail):
            path = f"{path}.{missing[1]}"
        if path == f"$.{self._tag_field}" or (
            text.startswith("Invalid value ") and path.endswith(f".{self._tag_field}")
        ):
            detail = f"{detail}; expected one of {self._tags}"
        return InvalidMessage(detail, path=path)


def _infos_in(info: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """A description of a type by msgspec, and all that are in it."""
    seen = set() if seen is None else seen
    if id(info) in seen:
        return
    seen.add(id(info))
    yield info
    for name in info.__struct_fields__:
        value = getattr(info, name)
        for each in value if isinstance(value, tuple) else (value,):
            if type(each).__module__ == "msgspec.inspect":
                yield from _infos_in(each, seen)


def _advise(error: Exception) -> str:
    text = str(error).replace("__main__.", "")
    if "union" in text:
        text += "; in a union, write each as a microws.Message, whose tag tells them apart, or as a pydantic model"
    return text


def _advise_on(unknown: Any) -> str:
    if unknown is object:
        return "write Any in place of object"
    if _is_pydantic(unknown):
        return f"{unknown.__name__} is a pydantic model: write the type around it as one, too"
    return f"{name_of_type(unknown)} has no form in JSON; write a dataclass, a TypedDict or a microws.Message"


class _PydanticType(JSONType):
    """With pydantic."""

    def __init__(self, annotation: Any) -> None:
        import pydantic

        super().__init__(annotation)
        self._error = pydantic.ValidationError
        try:
            self._adapter: Any = pydantic.TypeAdapter(annotation)
        except (pydantic.PydanticUserError, TypeError, NameError) as error:
            reason = str(error).partition("\n")[0]
            raise TypeError(f"{name_of_type(annotation)} cannot be a type of messages: {reason}") from None

    def decode(self, data: str | bytes) -> Any:
        # pydantic takes NaN, and numbers that no double can hold.
        value = loads_json(data)
        try:
            return self._adapter.validate_json(data, strict=True)
        except self._error as error:
            raise _pydantic_error(error, value) from None

    def convert(self, value: Any, *, is_text: bool = False) -> Any:
        try:
            return self._adapter.validate_python(value)
        except self._error as error:
            raise _pydantic_error(error, value) from None

    def plain(self, value: Any, *, default: JSONDefault | None = None, is_binary: bool = False) -> Any:
        return self._adapter.dump_python(value, mode="json", by_alias=True, warnings="none")

    def check(self, value: Any, plain: Any) -> None:
        try:
            self._adapter.dump_python(value, mode="json", by_alias=True, warnings="error")
        except ValueError as error:
            # The first line is a title.
            problem = str(error).partition("\n")[2].strip()
            raise _wrong_type(self.type, value, problem or str(error)) from None

    def schema(
        self, direction: Direction, *, ref_template: str = "#/components/schemas/{name}"
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        mode = "validation" if direction == "received" else "serialization"
        schema = self._adapter.json_schema(mode=mode, ref_template=ref_template.replace("{name}", "{model}"))
        return schema, schema.pop("$defs", {})


def _pydantic_error(error: Any, value: Any) -> InvalidMessage:
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    # Of a union, those of the members that have another tag say nothing.
    others = {each["loc"][:1] for each in errors if each["type"] == "literal_error"}
    first = next((each for each in errors if each["loc"][:1] not in others), errors[0])
    path = "$"
    for key in first["loc"]:
        # It also names the member of a union, which is not in the value.
        inside = value[key] if isinstance(value, list) and isinstance(key, int) and key < len(value) else None
        if isinstance(value, dict) and isinstance(key, str) and (key in value or key == first["loc"][-1]):
            inside = value.get(key)
            path = f"{path}.{key}"
        elif inside is not None:
            path = f"{path}[{key}]"
        else:
            continue
        value = inside
    return InvalidMessage(first["msg"], path=path)


def _wrong_type(annotation: Any, value: Any, problem: str) -> TypeError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:59]}…"
    return TypeError(f"expected a value of {name_of_type(annotation)}, got {shown}: {problem}")
