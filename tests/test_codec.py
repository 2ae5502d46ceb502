"""Values to frames and back."""

import dataclasses
import datetime
import enum
import gc
import json
import math
import sys
import threading
import uuid
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from microws.closing import MAX_REASON_BYTES
from microws.codec import AUTO, BYTES, JSON, MAX_DEPTH, TEXT, Codecs, dumps_json, loads_json
from microws.errors import InvalidMessage, PayloadTypeError
from microws.interfaces import Payload

NAN, INF = math.nan, math.inf


class Colour(enum.Enum):
    RED = "red"
    NOTHING = NAN
    LIST = [2**70]  # noqa: RUF012


class Size(enum.IntEnum):
    SMALL = 1
    HUGE = 2**70


class Level(enum.Enum):
    LOW = None
    HIGH = 2**70


class Word(str):
    __slots__ = ()


class Number(float):
    __slots__ = ()


Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass
class Point:
    x: Any
    _hidden: Any = NAN


@dataclasses.dataclass(slots=True)
class SlottedPoint:
    x: Any


def nested(depth, value=()):
    value = list(value)
    for _ in range(depth - 1):
        value = [value]
    return value


def same(a, b):
    """Equal, and of equal types all the way down: 1 is not 1.0, and -0.0 is not 0.0."""
    return json.dumps(a) == json.dumps(b)


def attempt(function, argument):
    """The result of the call, or its ``ValueError``."""
    try:
        return function(argument)
    except ValueError as error:
        return error


texts = st.text(st.characters(exclude_categories=["Cs"]))
floats = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | floats | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)


odd_keys = st.sampled_from(["null", Word("a"), "\ud800", 1, None, True, ("a",)]) | texts
odd_values = st.recursive(
    st.none()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([2**1024, 2**1024 - 1, "null", "a\ud83d", Word("a"), Number(1.5), b"a", 1j, object(), NAN])
    | st.sampled_from([*Level, *Colour, *Size, datetime.date(2020, 1, 2), uuid.UUID(int=1), Pair(1, 2)]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(odd_keys, inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(odd_keys, inner, max_size=3).map(OrderedDict)
        | inner.map(Point)
        | inner.map(SlottedPoint)
    ),
    max_leaves=8,
)


def is_carried(value):
    """The rule, in a simple form."""
    if isinstance(value, enum.Enum):
        return is_carried(value.value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_carried(key) for key in value) and all(map(is_carried, value.values()))
    if isinstance(value, list) or type(value) is tuple:
        return all(map(is_carried, value))
    if isinstance(value, Point | SlottedPoint):
        return is_carried(value.x)
    if isinstance(value, str):
        return attempt(str.encode, value).__class__ is bytes
    if isinstance(value, int):
        return value < 2**1024 - 2**970
    return math.isfinite(value) if type(value) is float else type(value) in (type(None), datetime.date, uuid.UUID)


def refusal(value):
    """The class of the exception of ``dumps_json``, or ``None``."""
    try:
        dumps_json(value)
    except (TypeError, ValueError) as error:
        return type(error)
    return None


def counting_calls(function, argument):
    """The result of ``function(argument)``, and how many Python functions it called."""
    # The collector would call others in between: finalizers, and Hypothesis's own function in gc.callbacks.
    gc.disable()
    calls = 0

    def profile(frame, event, detail):
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        result = function(argument)
    finally:
        sys.setprofile(before)
        gc.enable()
    return result, calls


class TestDumps:
    @given(values)
    def test_an_encoded_value_decodes_to_the_same_value(self, value):
        assert same(loads_json(dumps_json(value)), value)
        assert same(json.loads(dumps_json(value)), value)

    @given(st.integers(-(2**1030), 2**1030))
    @example(2**63)
    @example(2**64 - 1)
    @example(2**64)
    @example(-(2**63))
    @example(-(2**63) - 1)
    @example(2**1024 - 2**970 - 1)
    @example(2**1024 - 2**970)
    def test_an_integer_is_carried_exactly_or_refused(self, number):
        data = attempt(dumps_json, [number])
        if isinstance(data, ValueError):
            assert str(data) == "value[0] is an integer of more than 308 digits; send it as str"
            assert isinstance(attempt(loads_json, f"[{number}]"), InvalidMessage)
        else:
            assert data == b"[%d]" % number
            assert same(loads_json(data), [number])

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (NAN, "value is nan"),
            (-INF, "value is -inf"),
            ({"a": [0, 1, 2, NAN]}, "value.a[3] is nan"),
            ([None, (1, INF)], "value[1][1] is inf"),
            ({"a b": NAN}, "value['a b'] is nan"),
            (Colour.NOTHING, "value is nan"),
            ([{Word("a"): NAN}], "value[0].a is nan"),
            (OrderedDict(a=NAN), "value.a is nan"),
            ([Point(NAN)], "value[0].x is nan"),
            ([SlottedPoint(NAN)], "value[0].x is nan"),
            ([2**70, NAN], "value[1] is nan"),
        ],
    )
    def test_nan_and_infinity_are_refused_with_their_path(self, value, message):
        with pytest.raises(ValueError, match=r"which JSON cannot represent; send None instead$") as caught:
            dumps_json(value)
        assert str(caught.value).startswith(message)

    def test_an_attribute_is_checked_and_a_hidden_field_is_neither_sent_nor_checked(self):
        point = Point(None)
        assert dumps_json(point) == b'{"x":null}'
        point.extra = NAN
        with pytest.raises(ValueError, match=r"^value\.extra is nan"):
            dumps_json(point)

    @pytest.mark.parametrize(
        "value",
        [
            Colour.RED,
            Size.SMALL,
            Word("a"),
            Point({"a": [1, None]}),
            SlottedPoint((1, "é")),
            OrderedDict(b=1, a=[]),
            datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
            datetime.date(2020, 1, 2),
            uuid.UUID(int=1),
            [True, False, None, -0.0, 1e300, 5e-324, "\x00\x7f\u2028", {}],
        ],
    )
    def test_json_writes_the_same_as_orjson(self, value):
        slow = dumps_json([value, 2**64])
        assert slow == b"[" + dumps_json(value) + b",18446744073709551616]"

    def test_an_enum_member_may_be_a_list_and_a_key_of_a_subclass_of_str(self):
        assert dumps_json({"list": Colour.LIST, "size": Size.HUGE}) == b'{"list":[%d],"size":%d}' % (2**70, 2**70)
        assert dumps_json({Word("a"): 1}) == b'{"a":1}'

    @pytest.mark.parametrize("key", [1, None, True, 1.5, ("a",), b"a"])
    @pytest.mark.parametrize("more", [{}, {"big": 2**70}])
    def test_a_key_that_is_not_a_str_is_refused(self, key, more):
        message = rf"^value\.a has a key of type {type(key).__name__}; a key in JSON is str: use str\(key\)$"
        with pytest.raises(TypeError, match=message):
            dumps_json({"a": {key: 1, **more}})

    @pytest.mark.parametrize("value", [{1}, b"a", bytearray(), 1j, Pair(1, 2), object(), Point, range(3)])
    @pytest.mark.parametrize("more", [0, 2**70])
    def test_a_type_that_json_cannot_represent_is_named(self, value, more):
        with pytest.raises(TypeError, match=rf"^value\.a is of type {type(value).__name__}, which JSON cannot"):
            dumps_json({"more": more, "a": value})

    @pytest.mark.parametrize("value", [["\ud800"], [{"\udfff": 1}], ["a\ud83d"], [Word("\ud800")]])
    def test_a_lone_surrogate_is_refused(self, value):
        with pytest.raises(ValueError, match=r"^value\[0\].* contains a lone surrogate"):
            dumps_json(value)

    def test_encoding_allows_the_depth_that_decoding_does(self):
        value = nested(MAX_DEPTH, [1])
        assert dumps_json(value) == b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH
        assert dumps_json(loads_json(dumps_json(value))) == dumps_json(value)
        siblings = [{}] * 2000 + [2**64]
        assert loads_json(dumps_json(siblings)) == siblings

    def test_a_value_that_is_too_deep_is_refused(self):
        with pytest.raises(
            ValueError, match=r"^JSON is nested at most 1024 levels deep; ….*\[0\] is deeper, or contains itself$"
        ):
            dumps_json(nested(MAX_DEPTH + 1))

    @given(odd_values)
    @example([Level.HIGH, 2**70])
    @example([{"null": None}, NAN])
    @example([Point(None), NAN])
    def test_a_refusal_does_not_depend_on_neighboring_values(self, value):
        # A long integer and a deep list need `json`, and a None needs a check for NaN.
        alone = refusal(value)
        for beside in (2**64, None, nested(300, [None])):
            assert refusal([value, beside]) is alone
        assert alone is (None if is_carried(value) else alone or AssertionError)

    def test_a_value_that_contains_itself_twice_is_refused_as_fast(self):
        value: list[Any] = [Point(0)]
        value += [value, value]
        value[0].x = [value[0], value]
        with pytest.raises(ValueError, match=r"or contains itself$"):
            dumps_json(value)

    def test_an_error_quotes_a_huge_value_only_in_part(self):
        for value in ({"k" * 10_000: NAN}, {"k " * 10_000: NAN}, {"a": {"k" * 10_000: {1: 2}}}):
            with pytest.raises((ValueError, TypeError)) as caught:
                dumps_json(value)
            assert len(str(caught.value)) < 200


def document(item, first="0", size=1 << 17):
    return f"[{first}{f',{item}' * (size // (len(item) + 1))}]"


class TestLargeDocuments:
    """A client must not make the server work long with a large message. Each of these once took seconds."""

    @pytest.mark.parametrize("first", ["0", "null", str(2**64), "[" * 300 + "]" * 300])
    @pytest.mark.parametrize(
        "item",
        ["0", '""', "1.5", "{}", '{"":0}', '{"":[]}', "[]", "[null]", "1e+300", '"null"', str(2**64), f"[{2**64}]"]
        + ["[" * depth + "]" * depth for depth in (253, 254, 1020)]
        + ['{"":' * depth + "0" + "}" * depth for depth in (253, 254, 1020)],
        ids=lambda item: item[:24],
    )
    def test_no_document_needs_a_python_call_for_each_value(self, first, item):
        text = document(item, first)
        value, decoding = counting_calls(loads_json, text)
        data, encoding = counting_calls(dumps_json, value)
        assert data.decode() == text
        # A few for each level.
        assert decoding < 50
        assert encoding < 15 * (MAX_DEPTH + 10)

    def test_the_collector_and_the_recursion_limit_are_restored(self):
        limit = sys.getrecursionlimit()
        for enabled in (True, False):
            (gc.enable if enabled else gc.disable)()
            try:
                dumps_json(loads_json(document("[]", str(2**64))))
                with pytest.raises(TypeError):
                    dumps_json([2**64, object()])
                assert gc.isenabled() is enabled
            finally:
                gc.enable()
        assert sys.getrecursionlimit() == limit

    @pytest.mark.parametrize("function", [lambda: loads_json(document("[]", str(2**64))), lambda: dumps_json([2**64])])
    def test_both_settings_are_restored_with_a_nearly_full_stack(self, function):
        def descend(frames):
            return descend(frames - 1) if frames else function()

        limit = sys.getrecursionlimit()
        outcomes = set()
        for frames in range(limit - 300, limit, 3):
            try:
                outcomes.add(descend(frames) is not None)
            except RecursionError:
                outcomes.add(None)
            assert (sys.getrecursionlimit(), gc.isenabled()) == (limit, True)
        assert outcomes == {True, None}

    def test_a_json_default_may_wait_for_a_thread_that_encodes(self):
        limit = sys.getrecursionlimit()

        def default(value):
            made = []
            thread = threading.Thread(target=lambda: made.append(dumps_json(nested(MAX_DEPTH, [2**64]))), daemon=True)
            thread.start()
            thread.join(10)
            return len(made[0])

        assert dumps_json([2**64, object()], default) == b"[%d,%d]" % (2**64, 2 * MAX_DEPTH + 20)
        assert (sys.getrecursionlimit(), gc.isenabled()) == (limit, True)


class TestLoads:
    @given(st.text() | values.map(json.dumps) | st.text('[]{}",:0123456789.eE+- \\utrnalsf'))
    @example("[1,]")
    @example("1e400")
    @example('{"a":1,"a":2}')
    @example("-0")
    def test_any_text_decodes_as_with_a_strict_json_module_or_is_refused(self, text):
        def refuse(constant):
            raise ValueError(constant)

        value = attempt(loads_json, text)
        if isinstance(value, ValueError):
            assert isinstance(value, InvalidMessage)
            assert str(value).startswith("invalid JSON: ")
            assert len(str(value).encode()) <= MAX_REASON_BYTES
        else:
            assert same(value, json.loads(text, parse_constant=refuse))
            assert same(loads_json(text.encode()), value)

    @given(st.binary() | values.map(dumps_json))
    def test_any_bytes_decode_like_their_text_or_are_refused(self, data):
        value = attempt(loads_json, data)
        assert isinstance(value, InvalidMessage) or same(value, json.loads(data.decode()))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "NaN",
            "[NaN]",
            "Infinity",
            "-Infinity",
            "1e400",
            "-1e400",
            "[1,]",
            "01",
            "1.",
            "'a'",
            "\ufeff1",
            "1 2",
        ],
    )
    def test_invalid_json_is_refused(self, text):
        with pytest.raises(InvalidMessage, match=r"^invalid JSON: "):
            loads_json(text)

    @pytest.mark.parametrize("data", [b"\xff", b'"\xc3"', b"\xef\xbb\xbf1", "1".encode("utf-16"), b'"\xed\xa0\x80"'])
    def test_bytes_that_are_not_utf8_without_bom_are_refused(self, data):
        with pytest.raises(InvalidMessage, match=r"^invalid JSON: "):
            loads_json(data)

    @pytest.mark.parametrize("text", [r'"\ud800"', r'{"\udc00": 1}', r'"\ud800a"', '"\ud800"'])
    @pytest.mark.parametrize("more", ["1", str(2**70)])
    def test_a_lone_surrogate_is_refused(self, text, more):
        with pytest.raises(InvalidMessage):
            loads_json(f"[{text}, {more}]")

    @pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, 10**18, 10**19, -(10**18), -(10**19), 10**300])
    @pytest.mark.parametrize("text", ["{}", "[{}]", '{{"a": {}}}', "[1.5, {} ]"])
    def test_an_integer_beyond_64_bits_is_decoded_exactly(self, number, text):
        value = loads_json(text.format(number))
        assert same(value, json.loads(text.format(number)))
        assert loads_json(text.format(number).encode()) == value

    def test_digits_outside_of_integers_change_nothing(self):
        text = (
            '["12345678901234567890123", 0.12345678901234567890123, 12345678901234567890123e2, "-1234567890123456789"]'
        )
        assert same(loads_json(text), json.loads(text))

    @pytest.mark.parametrize("digits", [310, 5000, 100_000])
    def test_an_integer_beyond_the_range_of_a_double_is_refused(self, digits):
        with pytest.raises(InvalidMessage):
            loads_json("1" * digits)

    def test_lists_and_dicts_may_be_nested_1024_deep(self):
        for inner in ("", str(2**70)):
            text = "[" * MAX_DEPTH + inner + "]" * MAX_DEPTH
            assert dumps_json(loads_json(text)) == text.encode()
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            with pytest.raises(InvalidMessage, match=r"depth"):
                loads_json(opening * (MAX_DEPTH + 1) + "1" + closing * (MAX_DEPTH + 1))


class TestBuiltInCodecs:
    @given(texts)
    def test_text_is_sent_and_received_unchanged(self, text):
        for codec in (TEXT, AUTO):
            assert codec.encode(text) is text
            assert codec.decode(text) is text

    @pytest.mark.parametrize("codec", [TEXT, AUTO], ids=["text", "auto"])
    def test_a_lone_surrogate_is_refused(self, codec):
        with pytest.raises(ValueError, match=r"lone surrogate '\\ud800' at position 2; send bytes instead$"):
            codec.encode("aé\ud800")

    @pytest.mark.parametrize("value", [b"a\xff", bytearray(b"a\xff"), memoryview(b"xa\xffx")[1:3], b""])
    @pytest.mark.parametrize("codec", [BYTES, AUTO], ids=["bytes", "auto"])
    def test_bytes_like_values_are_copied_into_binary_frames(self, codec, value):
        data, expected = codec.encode(value), bytes(value)
        if isinstance(value, bytearray):
            value[:] = b"later"
        assert data == expected
        assert type(data) is bytes
        assert codec.decode(data) == data


@pytest.mark.parametrize(
    ("codec", "expected", "value"),
    [(TEXT, "str in a text", value) for value in ({}, b"a", None, 1)]
    + [(BYTES, "bytes in a bytes", value) for value in ({}, "a", None, 1)]
    + [(AUTO, "str or bytes in an auto", {})],
)
def test_a_value_of_another_type_is_refused_with_what_to_write(codec, expected, value):
    message = f'^expected {expected} route, got {type(value).__name__}; use value_type="json" or ws.send_json$'
    with pytest.raises(TypeError, match=message):
        codec.encode(value)


@pytest.mark.parametrize(("codec", "payload"), [(TEXT, b""), (JSON, b"{}"), (BYTES, "")])
def test_the_other_kind_of_frame_is_refused(codec, payload):
    expected, got = ("text", "binary") if payload != "" else ("binary", "text")
    with pytest.raises(PayloadTypeError, match=rf"^expected a {expected} frame, got a {got} one$"):
        codec.decode(payload)


@given(values)
def test_a_value_travels_in_a_text_frame(value):
    text = JSON.encode(value)
    assert isinstance(text, str)
    assert same(JSON.decode(text), value)


class Reversed:
    """A codec that writes JSON backwards, as binary."""

    frames = "binary"

    def encode(self, value):
        return json.dumps(value).encode()[::-1]

    def decode(self, data):
        return json.loads(data[::-1])


class Doubled:
    """A codec that sends whatever it is given, twice."""

    frames = "any"

    def encode(self, value):
        return value * 2

    def decode(self, data):
        return data + data


class Tagged:
    """A JSON of the app's own, which carries sets."""

    frames = "text"

    def encode(self, value):
        return json.dumps(value, default=lambda item: {"set": sorted(item)})

    def decode(self, data):
        return json.loads(data, object_hook=lambda item: set(item["set"]) if "set" in item else item)


class Failing:
    frames = "text"

    def __init__(self, error):
        self.error = error

    def encode(self, value):
        raise self.error

    def decode(self, data):
        raise self.error


@pytest.fixture
def codecs():
    return Codecs()


class TestCodecs:
    def test_the_built_in_codecs_are_known_by_name(self, codecs):
        for name, codec in {"text": TEXT, "bytes": BYTES, "json": JSON, "auto": AUTO}.items():
            assert codecs.get(name) is codec
            assert codec.name == name

    def test_an_unknown_name_is_refused_with_the_known_and_nearest_names(self, codecs):
        codecs.add("cbor", Doubled())
        message = r"^no value_type 'jsn'; there are 'text', 'bytes', .*'cbor', 'msgpack'; did you mean 'json'\?$"
        with pytest.raises(ValueError, match=message):
            codecs.get("jsn")
        with pytest.raises(ValueError, match=r"'msgpack'$"):
            codecs.get("x" * 10_000)

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            *((name, 'is built in and only "json" may be replaced') for name in ("text", "bytes", "auto", "msgpack")),
            ("cbor", "exists already"),
            ("json", "exists already"),
            ("", "expected a name"),
        ],
    )
    def test_a_name_that_is_taken_or_empty_is_refused(self, codecs, name, problem):
        if problem == "exists already":
            codecs.add(name, Tagged())
        with pytest.raises(ValueError, match=problem):
            codecs.add(name, Tagged())

    def test_an_object_that_is_not_a_codec_is_refused(self, codecs):
        with pytest.raises(TypeError, match=r"^expected a codec with the methods encode and decode, got 'cbor'$"):
            codecs.add(Tagged(), "cbor")

        class Frameless:
            encode = decode = staticmethod(str)

        with pytest.raises(ValueError, match=r'needs an attribute frames = "text" or "binary" or "any"$'):
            codecs.add("cbor", Frameless())
        with pytest.raises(ValueError, match=r'needs an attribute frames = "text"$'):
            codecs.add("json", Doubled())

    def test_an_added_codec_gets_only_the_frames_it_expects(self, codecs):
        for name, codec in {"binary": Reversed(), "any": Doubled(), "text": Tagged()}.items():
            codecs.add(f"my-{name}", codec)
        with pytest.raises(PayloadTypeError, match=r"expected a binary frame"):
            codecs.get("my-binary").decode("1")
        with pytest.raises(PayloadTypeError, match=r"expected a text frame"):
            codecs.get("my-text").decode(b"1")
        assert codecs.get("my-any").decode("1") == "11"
        assert codecs.get("my-any").decode(b"1") == b"11"

    def test_the_type_that_an_added_codec_returns_decides_the_frame(self, codecs):
        codecs.add("doubled", Doubled())
        codec = codecs.get("doubled")
        assert codec.encode("é") == "éé"
        assert codec.encode(bytearray(b"a")) == b"aa"
        with pytest.raises(TypeError, match=r"^expected str or bytes from encode of the codec 'doubled', got int$"):
            codec.encode(1)
        with pytest.raises(ValueError, match=r"lone surrogate"):
            codec.encode("\ud800")

    @pytest.mark.parametrize(
        ("error", "text"),
        [(ValueError("bad"), "bad"), (ValueError(), "invalid message"), (InvalidMessage("own words"), "own words")],
    )
    def test_a_value_error_of_an_added_codec_is_an_invalid_message(self, codecs, error, text):
        codecs.add("failing", Failing(error))
        codec = codecs.get("failing")
        with pytest.raises(InvalidMessage, match=f"^{text}$"):
            codec.decode("a")
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            codec.encode("a")
        assert caught.value is error

    def test_another_error_of_an_added_codec_is_raised(self, codecs):
        codecs.add("failing", Failing(KeyError("cannot")))
        for use in (lambda codec: codec.decode("a"), lambda codec: codec.frame(codecs.payload(1))):
            with pytest.raises(KeyError, match="cannot"):
                use(codecs.get("failing"))


class TestPublishedValues:
    @pytest.mark.parametrize("value", [b"a", bytearray(b"a"), memoryview(b"a")])
    def test_bytes_are_kept_as_a_copy(self, codecs, value):
        assert codecs.payload(value) == Payload("bytes", b"a")
        assert type(codecs.payload(value).data) is bytes

    @pytest.mark.parametrize(
        ("value", "error"), [("\ud800", ValueError), ({"a": NAN}, ValueError), ({"a": {1}}, TypeError), (1j, TypeError)]
    )
    def test_an_invalid_value_raises_in_the_publisher(self, codecs, value, error):
        with pytest.raises(error):
            codecs.payload(value)

    @given(texts, st.binary(), values)
    def test_each_built_in_codec_frames_like_its_send(self, text, binary, value):
        codecs = Codecs()
        assert framed(TEXT, codecs.payload(text)) == framed(AUTO, codecs.payload(text)) == (True, text.encode())
        assert framed(JSON, codecs.payload(text)) == (True, JSON.encode(text).encode())
        assert framed(BYTES, codecs.payload(text)) == (False, text.encode())
        for codec in (TEXT, JSON, AUTO, BYTES):
            assert framed(codec, codecs.payload(binary)) == (False, binary)
        if not isinstance(value, str):
            encoded = dumps_json(value)
            for codec in (TEXT, JSON, AUTO):
                assert framed(codec, codecs.payload(value)) == (True, encoded)
            assert framed(BYTES, codecs.payload(value)) == (False, encoded)

    def test_an_added_codec_encodes_the_value_again_but_never_bytes(self, codecs):
        codecs.add("reversed", Reversed())
        codec = codecs.get("reversed")
        assert framed(codec, codecs.payload({"a": 1})) == (False, b'}1 :"a"{')
        assert framed(codec, codecs.payload("ab")) == (False, b'"ba"')
        assert framed(codec, codecs.payload(b"ab")) == (False, b"ab")

    def test_a_replaced_json_codec_encodes_published_values_too(self, codecs):
        codecs.add("reversed", Reversed())
        codecs.add("json", Tagged())
        payload = codecs.payload({1, 2})
        assert payload == Payload("json", b'{"set": [1, 2]}')
        for name in ("json", "text", "auto"):
            assert framed(codecs.get(name), payload) == (True, b'{"set": [1, 2]}')
        assert framed(codecs.get("json"), codecs.payload("é")) == (True, b'"\\u00e9"')
        assert framed(codecs.get("json"), codecs.payload(b"a")) == (False, b"a")
        with pytest.raises(TypeError, match=r"set is not JSON serializable"):
            codecs.get("reversed").frame(payload)
        assert codecs.get("json").decode('{"set": [1, 2]}') == {1, 2}

    def test_a_replaced_json_codec_must_return_str(self, codecs):
        class Bytes(Tagged):
            def encode(self, value):
                return dumps_json(value)

        codecs.add("json", Bytes())
        with pytest.raises(TypeError, match=r'^expected str from encode of the codec "json", got bytes'):
            codecs.get("json").encode({})


def framed(codec, payload):
    frame = codec.frame(payload)
    return frame.is_text, frame.data
