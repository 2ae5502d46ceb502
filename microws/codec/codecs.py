"""Codecs turn values into messages and back: text, bytes, JSON, and those that an app adds."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from microws.codec.exact_json import JSONDefault, dumps_json, loads_json
from microws.codec.types import JSONType, json_type, name_of_type
from microws.errors import FeatureUnavailable, InvalidMessage, PayloadTypeError
from microws.hints import did_you_mean
from microws.interfaces import BYTES_LIKE, Codec, Frame, Payload

__all__ = ["AUTO", "BYTES", "FRAME_TYPES", "JSON", "TEXT", "ClientCodec", "Codecs", "MessageCodec"]


class MessageCodec(ABC):
    """
    Encodes and decodes the messages of a connection; one instance serves all connections of a value type.

    Attributes:
        name: The ``value_type``.
    """

    name: str

    @property
    def untyped(self) -> "MessageCodec":
        """The codec without its type. All types share it, so that a published message is framed once for them."""
        return self

    @abstractmethod
    def encode(self, value: Any) -> str | bytes:
        """
        Encode ``value`` for ``ws.send``: ``str`` goes into a text frame, ``bytes`` into a binary one.

        Raises:
            TypeError: The codec does not take values of this type; says which ones, and what to write instead.
            ValueError: The type is right, but the value cannot be encoded.
        """

    @abstractmethod
    def decode(self, payload: str | bytes) -> Any:
        """
        Decode a message.

        Args:
            payload: ``str`` of a text frame, ``bytes`` of a binary one.

        Raises:
            PayloadTypeError: The codec expects the other kind of frame.
            InvalidMessage: It cannot be decoded. The text may be used as close reason.
        """

    @abstractmethod
    def frame(self, payload: Payload) -> Frame:
        """
        The frame of a published value, as if by ``encode``, but if possible without decoding it first.

        ``bytes`` become a binary frame with every codec.

        Raises:
            TypeError, ValueError: A codec that an app added cannot encode the value.
        """


class _Text(MessageCodec):
    name = "text"

    def encode(self, value: Any) -> str | bytes:
        if not isinstance(value, str):
            raise _wrong_type(value, 'expected str in a text route, got {}; use value_type="json" or ws.send_json')
        if not value.isascii():
            _utf8(value)
        return value

    def decode(self, payload: str | bytes) -> Any:
        # `_expect_text` alone would do, but its call takes a third of the time.
        return payload if isinstance(payload, str) else _expect_text(payload)

    def frame(self, payload: Payload) -> Frame:
        return Frame(payload.data, is_text=payload.kind != "bytes")


class _Bytes(MessageCodec):
    name = "bytes"

    def encode(self, value: Any) -> str | bytes:
        if not isinstance(value, BYTES_LIKE):
            raise _wrong_type(value, 'expected bytes in a bytes route, got {}; use value_type="json" or ws.send_json')
        # A copy, because the value may be changed while it is in the outbox.
        return bytes(value)

    def decode(self, payload: str | bytes) -> Any:
        return _expect_binary(payload)

    def frame(self, payload: Payload) -> Frame:
        return Frame(payload.data)


class _Auto(_Text):
    name = "auto"

    def encode(self, value: Any) -> str | bytes:
        if isinstance(value, str):
            return TEXT.encode(value)
        if isinstance(value, BYTES_LIKE):
            return BYTES.encode(value)
        raise _wrong_type(
            value, 'expected str or bytes in an auto route, got {}; use value_type="json" or ws.send_json'
        )

    def decode(self, payload: str | bytes) -> Any:
        return payload


class _JSON(MessageCodec):
    name = "json"

    def __init__(self, default: JSONDefault | None = None) -> None:
        self._default = default

    def encode(self, value: Any) -> str | bytes:
        return dumps_json(value, self._default).decode()

    def decode(self, payload: str | bytes) -> Any:
        return loads_json(_expect_text(payload))

    def frame(self, payload: Payload) -> Frame:
        if payload.kind == "text":
            return Frame(dumps_json(payload.data.decode()), is_text=True)
        return Frame(payload.data, is_text=payload.kind == "json")


TEXT: MessageCodec = _Text()
BYTES: MessageCodec = _Bytes()
AUTO: MessageCodec = _Auto()
JSON: MessageCodec = _JSON()

# Types that are the frames themselves, and their ``value_type``.
FRAME_TYPES: Final[dict[Any, str]] = {str: "text", bytes: "bytes", str | bytes: "auto"}


class _MsgPack(MessageCodec):
    """
    MessagePack in binary frames, with msgspec.

    Source: https://github.com/msgpack/msgpack/blob/master/spec.md
    """

    name = "msgpack"

    def __init__(self, default: JSONDefault | None, load_json: Callable[[str], Any]) -> None:
        try:
            import msgspec.msgpack
        except ImportError:
            raise FeatureUnavailable("the value_type \"msgpack\" needs msgspec: pip install 'microws[typed]'") from None
        self._msgspec = msgspec
        self._encoder = msgspec.msgpack.Encoder(enc_hook=default)
        self._decoder = msgspec.msgpack.Decoder()
        self._load_json = load_json

    def encode(self, value: Any) -> bytes:
        try:
            return self._encoder.encode(value)
        except RecursionError:
            raise ValueError("expected a value that is not nested so deeply") from None
        except OverflowError as error:
            raise ValueError(f"MessagePack cannot represent an integer: {error}") from None

    def decode(self, payload: str | bytes) -> Any:
        try:
            return self._decoder.decode(_expect_binary(payload))
        except (self._msgspec.DecodeError, UnicodeError) as error:
            raise InvalidMessage(f"invalid MessagePack: {error}") from None
        except RecursionError:
            raise InvalidMessage("invalid MessagePack: nested too deeply") from None

    def frame(self, payload: Payload) -> Frame:
        if payload.kind == "bytes":
            return Frame(payload.data)
        text = payload.data.decode()
        return Frame(self.encode(text if payload.kind == "text" else self._load_json(text)))


class _Typed(MessageCodec):
    """
    Values of a Python type, in the frames of another codec.

    Args:
        codec: Encodes and decodes dicts, lists, and so on.
        rules: Of the type.
        known: Says whether values are checked before they are sent.
    """

    def __init__(self, codec: MessageCodec, rules: JSONType, known: "Codecs") -> None:
        self.name = codec.name
        self._codec = codec
        self._rules = rules
        self._known = known
        self._default = known.json_default
        self._is_binary = isinstance(codec, _MsgPack)
        self._is_json = isinstance(codec, _JSON)

    @property
    def untyped(self) -> MessageCodec:
        return self._codec

    def encode(self, value: Any) -> str | bytes:
        if self._known.checks:
            self._rules.check(value, self._plain(value))
        return self.encode_unchecked(value)

    def encode_unchecked(self, value: Any) -> str | bytes:
        if self._is_json:
            return self._rules.dump(value, default=self._default).decode()
        return self._codec.encode(self._plain(value))

    def _plain(self, value: Any) -> Any:
        return self._rules.plain(value, default=self._default, is_binary=self._is_binary)

    def decode(self, payload: str | bytes) -> Any:
        if self._is_json:
            return self._rules.decode(payload if isinstance(payload, str) else _expect_text(payload))
        return self._rules.convert(self._codec.decode(payload))

    def frame(self, payload: Payload) -> Frame:
        return self._codec.frame(payload)


class _Added(MessageCodec):
    """A codec that an app added; checks its arguments and results."""

    def __init__(self, name: str, codec: Codec, *, load_json: Callable[[str], Any]) -> None:
        self.name = name
        self._codec = codec
        self._load_json = load_json

    def encode(self, value: Any) -> str | bytes:
        data = self._codec.encode(value)
        if isinstance(data, str):
            return TEXT.encode(data)
        if isinstance(data, BYTES_LIKE):
            return BYTES.encode(data)
        raise _wrong_type(data, f"expected str or bytes from encode of the codec {self.name!r}, got {{}}")

    def decode(self, payload: str | bytes) -> Any:
        if self._codec.frames == "text":
            _expect_text(payload)
        elif self._codec.frames == "binary":
            _expect_binary(payload)
        try:
            return self._codec.decode(payload)
        except InvalidMessage:
            raise
        except ValueError as error:
            raise InvalidMessage(str(error) or "invalid message") from error

    def frame(self, payload: Payload) -> Frame:
        if payload.kind == "bytes":
            return Frame(payload.data)
        text = payload.data.decode()
        return Frame(self.encode(text if payload.kind == "text" else self._load_json(text)))


class _AddedJSON(_Added):
    """The JSON codec that an app added. It has also encoded the published values, so they are not encoded again."""

    def encode(self, value: Any) -> str:
        text = super().encode(value)
        if not isinstance(text, str):
            raise TypeError('expected str from encode of the codec "json", got bytes: JSON travels in text frames')
        return text

    def dump(self, value: Any) -> bytes:
        """``encode`` in UTF-8."""
        return self.encode(value).encode()

    def frame(self, payload: Payload) -> Frame:
        return Frame(payload.data, is_text=True) if payload.kind == "json" else super().frame(payload)


class ClientCodec:
    """A codec of a route as the test client has it: a test also sends, and gets, what is not of the type."""

    def __init__(self, codec: MessageCodec) -> None:
        self._codec = codec

    def encode(self, value: Any) -> str | bytes:
        """``encode`` of the codec, without a check of the type."""
        return self._codec.encode_unchecked(value) if isinstance(self._codec, _Typed) else self._codec.encode(value)

    def decode(self, payload: str | bytes) -> Any:
        """``decode`` of the codec, or without its type what is not of the type."""
        try:
            return self._codec.decode(payload)
        except InvalidMessage:
            if self._codec.untyped is self._codec:
                raise
            return self._codec.untyped.decode(payload)


class Codecs:
    """
    The codecs of an app, by name. ``"json"`` may be replaced, for published values too.

    Args:
        json_default: The ``default`` of ``dumps_json``.

    Attributes:
        json_default: As above.
        checks: Whether values with a type are checked before they are sent; in ``microws dev`` and the test client.
    """

    def __init__(self, json_default: JSONDefault | None = None) -> None:
        self.checks = False
        self.json_default = json_default
        self._typed: dict[tuple[Any, str], MessageCodec] = {}
        self._by_name = {each.name: each for each in (TEXT, BYTES, _JSON(json_default) if json_default else JSON, AUTO)}
        self._added: set[str] = set()
        # Only a partial if it is needed, because that takes a quarter more time.
        self._dump_json: Callable[[Any], bytes] = dumps_json
        if json_default is not None:
            self._dump_json = partial(dumps_json, default=json_default)

    def add(self, name: str, codec: Codec) -> None:
        """
        Make ``codec`` a ``value_type``.

        Args:
            name: A new name, or ``"json"`` to replace that codec everywhere.
            codec: Has ``frames``, ``encode`` and ``decode``.

        Raises:
            TypeError: ``codec`` is not a codec.
            ValueError: ``name`` is empty, built in or taken, or ``codec.frames`` is wrong: ``"json"`` needs ``"text"``.
        """
        if not name:
            raise ValueError('expected a name such as "cbor", got an empty one')
        if name in self._added:
            raise ValueError(f"the codec {name!r} exists already; choose another name")
        if name in ("text", "bytes", "auto", "msgpack"):
            raise ValueError(f'{name!r} is built in and only "json" may be replaced; use another name')
        if not all(callable(getattr(codec, method, None)) for method in ("encode", "decode")):
            raise TypeError(f"expected a codec with the methods encode and decode, got {codec!r}")
        expected = ("text",) if name == "json" else ("text", "binary", "any")
        if getattr(codec, "frames", None) not in expected:
            choice = " or ".join(f'"{frames}"' for frames in expected)
            raise ValueError(f"the codec {name!r} needs an attribute frames = {choice}")
        added = (_AddedJSON if name == "json" else _Added)(name, codec, load_json=self._load_json)
        if isinstance(added, _AddedJSON):
            self._dump_json = added.dump
        self._by_name[name] = added
        self._added.add(name)
        self._typed.clear()

    def get(self, value_type: Any, *, encoding: str = "json") -> MessageCodec:
        """
        The codec of a ``value_type``.

        Args:
            value_type: A name or a type.
            encoding: The name of the codec of a type.

        Raises:
            FeatureUnavailable: ``"msgpack"`` or a type needs msgspec.
            TypeError: JSON cannot carry the type; see ``json_type``.
            ValueError: No codec has that name; names the known ones, and the nearest.
        """
        if not isinstance(value_type, str):
            if value_type in FRAME_TYPES:
                return self._by_name[FRAME_TYPES[value_type]]
            typed = self._typed.get((value_type, encoding))
            if typed is None:
                typed = self._typed[value_type, encoding] = _Typed(self.get(encoding), json_type(value_type), self)
            return typed
        codec = self._by_name.get(value_type)
        if codec is not None:
            return codec
        if value_type == "msgpack":
            msgpack = self._by_name[value_type] = _MsgPack(self.json_default, self._load_json)
            return msgpack
        names = dict.fromkeys([*self._by_name, "msgpack"])
        hint = did_you_mean(value_type, names)
        raise ValueError(f"no value_type {_cut(value_type)}; there are {', '.join(map(repr, names))}{hint}")

    def payload(self, value: Any, topic: str = "", value_type: Any = None) -> Payload:
        """
        Encode a published value in its canonical form, which each process turns into frames.

        Args:
            topic: What it is published to.
            value_type: The type of what is published to it. Default: any.
            value: ``bytes``, ``bytearray`` and ``memoryview`` are binary, ``str`` is text, anything else is JSON.

        Raises:
            TypeError, ValueError: It cannot be encoded.
        """
        if value_type is not None:
            value = self._plain(value, topic, value_type)
        if isinstance(value, str):
            return Payload("text", _utf8(value), topic)
        if isinstance(value, BYTES_LIKE):
            return Payload("bytes", bytes(value), topic)
        return Payload("json", self._dump_json(value), topic)

    def _plain(self, value: Any, topic: str, value_type: Any) -> Any:
        """A value of the type of a topic as ``payload`` takes it."""
        is_frame = isinstance(value, (str, *BYTES_LIKE))
        if value_type in FRAME_TYPES:
            kinds = (*(() if value_type is bytes else (str,)), *(() if value_type is str else BYTES_LIKE))
            if self.checks and not isinstance(value, kinds):
                raise TypeError(f"{topic}: expected {name_of_type(value_type)}, got {_cut(value)}")
            return value
        rules = json_type(value_type)
        # `str` and `bytes` are published as they are.
        plain = value if is_frame else rules.plain(value, default=self.json_default)
        if self.checks:
            try:
                rules.check(value, plain)
            except TypeError as error:
                raise TypeError(f"{topic}: {error}") from None
        return plain

    def _load_json(self, text: str) -> Any:
        return self._by_name["json"].decode(text)


def _expect_text(payload: str | bytes) -> str:
    if not isinstance(payload, str):
        raise PayloadTypeError("expected a text frame, got a binary one")
    return payload


def _expect_binary(payload: str | bytes) -> bytes:
    if isinstance(payload, str):
        raise PayloadTypeError("expected a binary frame, got a text one")
    return payload


def _utf8(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"expected text for UTF-8, got the lone surrogate {value[error.start]!a} at position {error.start}; "
            "send bytes instead"
        ) from None


def _wrong_type(value: Any, text: str) -> TypeError:
    return TypeError(text.format(type(value).__name__))


def _cut(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"
