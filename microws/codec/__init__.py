"""A value becomes a frame, and a frame a value: text, bytes, JSON, and the codecs that an app adds."""

from microws.codec.codecs import AUTO, BYTES, JSON, TEXT, Codecs, MessageCodec
from microws.codec.exact_json import MAX_DEPTH, dumps_json, loads_json

__all__ = ["AUTO", "BYTES", "JSON", "MAX_DEPTH", "TEXT", "Codecs", "MessageCodec", "dumps_json", "loads_json"]
