"""The codecs by which messages travel: text, bytes, JSON, and those that an app adds."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from microws.codec.exact_json import JSONDefault, dumps_json, loads_json
from microws.errors import FeatureUnavailable, InvalidMessage, PayloadTypeError
from microws.hints import did_you_mean
from microws.interfaces import BYTES_LIKE, Codec, Frame, Payload

__all__ = ["AUTO", "BYTES", "JSON", "TEXT", "Codecs", "MessageCodec"]


class MessageCodec(ABC):
    """
    What a connection encodes and decodes its messages with; one instance serves every connection of a value type.

    Attributes:
        name: The ``value_type``.
    """

    name: str

    @abstractmethod
    def encode(self, value: Any) -> str | bytes:
        """
        ``value`` as what ``ws.send`` sends: ``str`` in a text frame, ``bytes`` in a binary one.

        Raises:
            TypeError: A value of a type that does not travel this way; says what does, and what to write instead.
            ValueError: The right type, but a value that cannot be encoded.
        """

    @abstractmethod
    def decode(self, payload: str | bytes) -> Any:
        """
        The value in a message.

        Args:
            payload: ``str`` of a text frame, ``bytes`` of a binary one.

        Raises:
            PayloadTypeError: The wrong one of the two.
            InvalidMessage: It cannot be decoded. The text is fit to be a close reason.
        """

    @abstractmethod
    def frame(self, payload: Payload) -> Frame:
        """
        A published value as the frame of what ``encode`` would make of it, without decoding it first where possible.

        ``bytes`` is a binary frame whatever the codec.

        Raises:
            TypeError, ValueError: Only a codec that an app added: it cannot encode the value.
        """


class _Text(MessageCodec):
    name = "text"

    def encode(self, value: Any) -> str | bytes:
        if not isinstance(value, str):
            raise _wrong_type(value, 'a text route sends str, not {}; use value_type="json" or ws.send_json')
        if not value.isascii():
            _utf8(value)
        return value

    def decode(self, payload: str | bytes) -> Any:
        # Not by _expect_text alone: a call for each message would be a third of this.
        return payload if isinstance(payload, str) else _expect_text(payload)

    def frame(self, payload: Payload) -> Frame:
        return Frame(payload.data, is_text=payload.kind != "bytes")


class _Bytes(MessageCodec):
    name = "bytes"

    def encode(self, value: Any) -> str | bytes:
        if not isinstance(value, BYTES_LIKE):
            raise _wrong_type(value, 'a bytes route sends bytes, not {}; use value_type="json" or ws.send_json')
        # A copy of what can still be changed: it may wait in the outbox.
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
        raise _wrong_type(value, 'an auto route sends str or bytes, not {}; use value_type="json" or ws.send_json')

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


class _Added(MessageCodec):
    """A codec of the app's own, with what it takes and gives checked."""

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
        raise _wrong_type(data, f"encode of the codec {self.name!r} must return str or bytes, not {{}}")

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
    """The app's own JSON: published values were encoded by it, and travel in text frames as they are."""

    def encode(self, value: Any) -> str:
        text = super().encode(value)
        if not isinstance(text, str):
            raise TypeError('encode of the codec "json" must return str, not bytes: JSON travels in text frames')
        return text

    def dump(self, value: Any) -> bytes:
        """``encode`` in UTF-8."""
        return self.encode(value).encode()

    def frame(self, payload: Payload) -> Frame:
        return Frame(payload.data, is_text=True) if payload.kind == "json" else super().frame(payload)


class Codecs:
    """
    The codecs that an app knows by name. ``"json"`` may be replaced, for published values too.

    Args:
        json_default: What ``dumps_json`` takes as ``default``.
    """

    def __init__(self, json_default: JSONDefault | None = None) -> None:
        self._by_name = {each.name: each for each in (TEXT, BYTES, _JSON(json_default) if json_default else JSON, AUTO)}
        self._added: set[str] = set()
        # Without it, not by way of a partial: that takes a quarter of the time.
        self._dump_json: Callable[[Any], bytes] = dumps_json
        if json_default is not None:
            self._dump_json = partial(dumps_json, default=json_default)

    def add(self, name: str, codec: Codec) -> None:
        """
        Make ``codec`` a ``value_type``.

        Args:
            name: A name of its own, or ``"json"`` to replace that codec everywhere.
            codec: Has ``frames``, ``encode`` and ``decode``.

        Raises:
            TypeError: ``codec`` is no codec.
            ValueError: ``name`` is empty, built in or was added before, or a ``"json"`` that does not travel as text.
        """
        if not name:
            raise ValueError('a codec needs a name, such as "cbor"')
        if name in self._added:
            raise ValueError(f"the codec {_cut(name)} was added before; give the second one another name")
        if name in ("text", "bytes", "auto", "msgpack"):
            raise ValueError(f'{name!r} is built in and only "json" may be replaced; use another name')
        if not all(callable(getattr(codec, method, None)) for method in ("encode", "decode")):
            raise TypeError(f"a codec has the methods encode and decode; {_cut(codec)} has not")
        expected = ("text",) if name == "json" else ("text", "binary", "any")
        if getattr(codec, "frames", None) not in expected:
            choice = " or ".join(f'"{frames}"' for frames in expected)
            raise ValueError(f"the codec {_cut(name)} needs an attribute frames = {choice}")
        added = (_AddedJSON if name == "json" else _Added)(name, codec, load_json=self._load_json)
        if isinstance(added, _AddedJSON):
            self._dump_json = added.dump
        self._by_name[name] = added
        self._added.add(name)

    def get(self, value_type: Any) -> MessageCodec:
        """
        The codec of a ``value_type``.

        Raises:
            FeatureUnavailable: ``"msgpack"`` or a type: this version has neither.
            ValueError: No codec has that name; says which there are, and the nearest.
        """
        if not isinstance(value_type, str):
            raise FeatureUnavailable(
                f'this version takes a name as value_type, not {_cut(value_type)}; use value_type="json" and check '
                "the value in the view"
            )
        codec = self._by_name.get(value_type)
        if codec is not None:
            return codec
        if value_type == "msgpack":
            raise FeatureUnavailable(
                'this version has no value_type="msgpack"; add a codec under another name with app.add_codec'
            )
        hint = did_you_mean(value_type, self._by_name)
        raise ValueError(f"no value_type {_cut(value_type)}; there are {', '.join(map(repr, self._by_name))}{hint}")

    def payload(self, value: Any) -> Payload:
        """
        A published value in the canonical form that every process frames by itself.

        Args:
            value: ``bytes``, ``bytearray`` or ``memoryview`` is binary, ``str`` is text, anything else JSON.

        Raises:
            TypeError, ValueError: It cannot be encoded.
        """
        if isinstance(value, str):
            return Payload("text", _utf8(value))
        if isinstance(value, BYTES_LIKE):
            return Payload("bytes", bytes(value))
        return Payload("json", self._dump_json(value))

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
            f"a text message is UTF-8, which cannot carry the lone surrogate {value[error.start]!a} "
            f"at position {error.start}; send bytes instead"
        ) from None


def _wrong_type(value: Any, text: str) -> TypeError:
    return TypeError(text.format(type(value).__name__))


def _cut(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"
