"""Values to frames and back: text, bytes, JSON, and the codecs that an app adds."""

from microws.codec.codecs import AUTO, BYTES, FRAME_TYPES, JSON, TEXT, ClientCodec, Codecs, MessageCodec
from microws.codec.exact_json import JSON_DEFAULT, MAX_DEPTH, JSONDefault, check_json_default, dumps_json, loads_json
from microws.codec.types import Direction, JSONType, MessageError, json_type, lists_in, name_of_type

__all__ = [
    "AUTO",
    "BYTES",
    "FRAME_TYPES",
    "JSON",
    "JSON_DEFAULT",
    "MAX_DEPTH",
    "TEXT",
    "ClientCodec",
    "Codecs",
    "Direction",
    "JSONDefault",
    "JSONType",
    "MessageCodec",
    "MessageError",
    "check_json_default",
    "dumps_json",
    "json_type",
    "lists_in",
    "loads_json",
    "name_of_type",
]
