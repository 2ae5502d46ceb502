"""Values to frames and back: text, bytes, JSON, and the codecs that an app adds."""

from microws.codec.codecs import AUTO, BYTES, JSON, TEXT, Codecs, MessageCodec
from microws.codec.exact_json import JSON_DEFAULT, MAX_DEPTH, JSONDefault, check_json_default, dumps_json, loads_json

__all__ = [
    "AUTO",
    "BYTES",
    "JSON",
    "JSON_DEFAULT",
    "MAX_DEPTH",
    "TEXT",
    "Codecs",
    "JSONDefault",
    "MessageCodec",
    "check_json_default",
    "dumps_json",
    "loads_json",
]
