"""Python types as JSON: with msgspec, and with pydantic."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from decimal import Decimal
from functools import partial
from math import nan
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest
from msgspec import Meta, Struct, field
from pydantic import BaseModel, Field, computed_field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from microws import InvalidMessage, Message
from microws.codec import Codecs, dumps_json, json_type
from microws.interfaces import Payload


class Say(Message):
    text: Annotated[str, Meta(max_length=5)]


class Move(Message):
    x: float
    path: list[int] = field(default_factory=list)


class SayHTTPTwice(Message):
    """For its tag."""


class Tree(Struct):
    kids: list["Tree"] = field(default_factory=list)


@dataclass
class Point:
    x: int
    names: dict[str, str] | None = None


@dataclass
class Size:
    width: int


class Options(TypedDict, total=False):
    limit: int


class Price(BaseModel):
    amount: Decimal
    unit: str = Field("EUR", alias="currency")

    @computed_field
    def shown(self) -> str:
        return f"{self.amount} {self.unit}"


class Joined(BaseModel):
    type: Literal["joined"] = "joined"
    seats: list[int] = []


class Left(BaseModel):
    type: Literal["left"] = "left"
    why: str


class Level(BaseModel):
    height: float


@pydantic_dataclass
class Pair:
    a: int


@dataclass
class Mixed:
    price: Price


class Unresolved(Struct):
    a: "Nowhere"  # noqa: F821


MANY_KEYS = json.dumps({**{str(number): 1 for number in range(30)}, "a": ""})
VALUES = [
    (Say | Move, Say("hi"), '{"type":"say","text":"hi"}'),
    (Say | Move, Move(1.5, [1]), '{"type":"move","x":1.5,"path":[1]}'),
    (Tree, Tree([Tree()]), '{"kids":[{"kids":[]}]}'),
    (Point, Point(1, {"a": "b"}), '{"x":1,"names":{"a":"b"}}'),
    (Options, {"limit": 3}, '{"limit":3}'),
    (list[Point], [Point(1)], '[{"x":1,"names":null}]'),
    (dict[str, int], {"a": 2**70}, f'{{"a":{2**70}}}'),
    (Literal["a", "b"], "a", '"a"'),
    (Joined | Left, Left(why="x"), '{"type":"left","why":"x"}'),
    (list[Price], [Price(amount=Decimal("1.50"), currency="CHF")], None),
    (Pair, Pair(1), '{"a":1}'),
]


@pytest.mark.parametrize(("annotation", "value", "text"), VALUES, ids=[str(each[1])[:20] for each in VALUES])
def test_a_value_is_encoded_as_its_type_says_and_decoded_again(annotation, value, text):
    rules = json_type(annotation)
    plain = rules.plain(value)
    data = dumps_json(plain)
    rules.check(value, plain)
    if text is None:
        assert data == b'[{"amount":"1.50","currency":"CHF","shown":"1.50 CHF"}]'
    else:
        assert data.decode() == text
    assert rules.decode(data) == rules.decode(data.decode()) == rules.convert(plain) == value


@pytest.mark.parametrize(
    ("annotation", "text", "detail", "path"),
    [
        (Say | Move, '{"type":"say","text":1}', "Expected `str`, got `int`", "$.text"),
        (Say | Move, '{"type":"say"}', "Object missing required field `text`", "$.text"),
        (Say | Move, '{"type":"move","x":1,"path":[1,"a"]}', "Expected `int`, got `str`", "$.path[1]"),
        (Say | Move, '{"type":"foo"}', "Invalid value 'foo'; expected one of 'say', 'move'", "$.type"),
        (Say | Move, "{}", "Object missing required field `type`; expected one of 'say', 'move'", "$.type"),
        (list[Say | Move], '[{"type":"foo"}]', "Invalid value 'foo'; expected one of 'say', 'move'", "$[0].type"),
        (Point, '{"x":1,"names":{"a":"","b":2,"c":3}}', "Expected `str`, got `int`", "$.names.b"),
        (Point, '{"x":1,"names":{"a b":2}}', "Expected `str`, got `int`", "$.names['a b']"),
        (
            list[dict[str, dict[str, Move]]],
            '[{"a":{"b":{"type":"move"}}}]',
            "Object missing required field `x`",
            "$[0].a.b.x",
        ),
        (dict[str, int], MANY_KEYS, "Expected `int`, got `str`", "$[...]"),
        (Say | Move, "[]", "Expected `object`, got `array`", "$"),
        (Joined | Left, '{"type":"left","why":1}', "Input should be a valid string", "$.why"),
        (Joined | Left, '{"type":"joined","seats":["1"]}', "Input should be a valid integer", "$.seats[0]"),
        (Joined | Left, '{"type":"left"}', "Field required", "$.why"),
        (Price, "[]", "Input should be an object", "$"),
    ],
)
def test_an_error_says_what_is_wrong_and_where(annotation, text, detail, path):
    with pytest.raises(InvalidMessage) as caught:
        json_type(annotation).decode(text)
    assert (caught.value.detail, caught.value.path) == (detail, path)


@pytest.mark.parametrize("annotation", [dict[str, Any], Price, Joined | Left])
@pytest.mark.parametrize(
    "text",
    ["", "{", '"\ud800"', '{"a":NaN}', '{"a":1e400}', '{"a":"\\ud800"}', '{"kids":[' * 5000, b'{"a":"\xff"}', "[01]"],
)
def test_what_is_no_exact_json_is_invalid_with_any_type(annotation, text):
    with pytest.raises(InvalidMessage):
        json_type(annotation).decode(text)


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (Point | Size, r"Point \| Size cannot be .* in a union, write each as a microws.Message, whose tag tells them"),
        (Point | Options, "in a union, write each as a microws.Message"),
        (Point | Say, "in a union, write each as a microws.Message"),
        (dict[int, str], r"a key in JSON is str; write dict\[str, …\]"),
        (list[dict[int, str]], r"a key in JSON is str; write dict\[str, …\]"),
        (object, "write Any in place of object"),
        (Callable[[], int], "Callable has no form in JSON; write a dataclass, a TypedDict or a microws.Message"),
        (Mixed, "Mixed .* Price is a pydantic model: write the type around it as one, too"),
        (Say | Left, "cannot be a type of messages"),
        (Unresolved, "name 'Nowhere' is not defined"),
        (1, "1 cannot be a type of messages"),
    ],
)
def test_a_type_that_cannot_be_exact_is_refused_with_the_reason(annotation, reason):
    with pytest.raises(TypeError, match=reason):
        json_type(annotation)


@pytest.mark.parametrize(
    ("annotation", "value", "problem"),
    [
        (Say, Say(1), r"^expected a value of Say, got Say\(text=1\): Expected `str`, got `int` - at `\$.text`$"),
        (Say, Move(1), r"^expected a value of Say, got Move\(.*Invalid value 'move'"),
        (Point, {"x": "1"}, "^expected a value of Point, got {'x': '1'}: Expected `int`"),
        (Left, Left.model_construct(why=1), r"^expected a value of Left, got Left\(.*Expected `str`"),
        (Joined | Left, {"why": "x"}, "^expected a value of Joined | Left, got {'why': 'x'}"),
    ],
)
def test_a_value_of_another_type_is_found_before_it_is_sent(annotation, value, problem):
    rules = json_type(annotation)
    with pytest.raises(TypeError, match=problem):
        rules.check(value, rules.plain(value))


def test_a_value_that_is_too_deep_is_refused():
    tree = Tree()
    for _ in range(5000):
        tree = Tree([tree])
    with pytest.raises(ValueError, match="not nested so deeply"):
        json_type(Tree).dump(tree)
    with pytest.raises(InvalidMessage, match="nested too deeply"):
        json_type(Tree).decode('{"kids":[' * 5000)
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"kids": [deep]}
    with pytest.raises(InvalidMessage, match="nested too deeply"):
        json_type(Tree).convert(deep)


@pytest.mark.parametrize(
    ("annotation", "value", "problem"),
    [
        (Say | Move, Move(nan), r"^value\.x is nan"),
        (Say | Move, Say("\ud800"), r"^value\.text contains a lone surrogate"),
        (dict[str, Any], {1: 2}, "^value has a key of type int"),
        (Any, Say({1: 2}), r"^value\.text has a key of type int"),
        (Level, Level(height=nan), r"^value\.height is nan"),
    ],
)
def test_a_value_that_json_cannot_represent_is_refused(annotation, value, problem):
    with pytest.raises((TypeError, ValueError), match=problem):
        json_type(annotation).dump(value)


def test_json_default_converts_what_a_type_leaves_open():
    codec = Codecs(lambda value: sorted(value)).get(Any)
    assert codec.encode(Say(frozenset({2, 1}))) == '{"type":"say","text":[1,2]}'
    codec = Codecs(lambda value: str(value.real)).get(Any, encoding="msgpack")
    assert codec.decode(codec.encode([1j])) == ["0.0"]


def test_a_model_has_a_schema_for_each_direction():
    received, _ = json_type(Price).schema("received")
    sent, _ = json_type(Price).schema("sent")
    assert set(received["properties"]) == {"amount", "currency"}
    assert set(sent["properties"]) == {"amount", "currency", "shown"}
    schema, components = json_type(Say | Move).schema("sent", ref_template="#/x/{name}")
    assert schema["anyOf"] == [{"$ref": "#/x/Say"}, {"$ref": "#/x/Move"}]
    assert components["Say"]["properties"]["text"] == {"type": "string", "maxLength": 5}


def test_the_tag_of_a_message_is_its_name_in_snake_case():
    assert SayHTTPTwice.__struct_config__.tag == "say_http_twice"


class TestStructsAndModelsWithoutType:
    def test_they_are_encoded_wherever_they_are(self):
        value = {"a": [Say("x"), Pair(1)], "b": Price(amount=Decimal(1))}
        expected = b'{"a":[{"type":"say","text":"x"},{"a":1}],"b":{"amount":"1","currency":"EUR","shown":"1 EUR"}}'
        assert dumps_json(value) == expected

    def test_json_default_decides_about_models_first(self):
        assert dumps_json([Pair(1), Price(amount=Decimal(1))], lambda _: "mine") == b'[{"a":1},"mine"]'

    @pytest.mark.parametrize(
        ("value", "problem"),
        [
            (Move(nan), r"^value.x is nan"),
            ([None, {"a": Move(nan)}], r"^value\[1\].a.x is nan"),
            ([Move(2**70), Move(nan)], r"^value\[1\].x is nan"),
            ([[nan], Say(None), Level(height=1)], r"^value\[0\]\[0\] is nan"),
            (Say({1: None}), "^value.text has a key of type int"),
            (Say("\ud800"), "^value.text contains a lone surrogate"),
        ],
    )
    def test_what_is_not_exact_is_refused(self, value, problem):
        with pytest.raises((TypeError, ValueError), match=problem):
            dumps_json(value)


class TestMsgPack:
    def test_values_travel_in_binary_frames(self):
        codec = Codecs().get("msgpack")
        value = {"a": [1, b"\xff", None], "b": nan}
        data = codec.encode(value)
        assert isinstance(data, bytes)
        assert str(codec.decode(data)) == str(value)
        assert codec.decode(codec.encode(Say("x"))) == {"type": "say", "text": "x"}
        for invalid in (b"", b"\xc1", b"\x91" * 5000, b"\xa1\xff"):
            with pytest.raises(InvalidMessage):
                codec.decode(invalid)
        with pytest.raises(TypeError, match="expected a binary frame"):
            codec.decode("text")

    def test_what_it_cannot_encode_is_refused(self):
        codec = Codecs().get("msgpack")
        endless: list[Any] = []
        endless.append(endless)
        for value, error in ((2**70, ValueError), (endless, ValueError), (object(), TypeError)):
            with pytest.raises(error):
                codec.encode(value)

    def test_published_values_are_encoded_and_bytes_are_kept(self):
        codec = Codecs().get("msgpack")
        assert codec.decode(codec.frame(Payload("json", b'{"a":1}')).data) == {"a": 1}
        assert codec.decode(codec.frame(Payload("text", b"a")).data) == "a"
        assert codec.frame(Payload("bytes", b"a")).data == b"a"

    def test_a_type_keeps_bytes_as_bytes(self):
        codec = Codecs().get(dict[str, bytes], encoding="msgpack")
        data = codec.encode({"a": b"\xff"})
        assert codec.decode(data) == {"a": b"\xff"}
        assert b"\xff" in data
        with pytest.raises(InvalidMessage, match=r"Expected `bytes`, got `int` - at \$\[\.\.\.\]"):
            codec.decode(b"\x81\xa1a\x01")


WITHOUT_MSGSPEC = """
import sys
sys.modules["msgspec"] = None
from microws import App, FeatureUnavailable, WebSocket

import pydantic
class Model(pydantic.BaseModel): a: int

async def view(ws: WebSocket[dict[str, int]]): ...
async def model(ws: WebSocket[Model]): ...

app = App()
def refused(function):
    try:
        function()
    except FeatureUnavailable as error:
        print(error)
refused(lambda: app.add_websocket_route(view, "/"))
refused(lambda: app.add_websocket_route(view, "/", value_type="msgpack"))
refused(lambda: __import__("microws").Message)
app.add_websocket_route(model, "/")
app.add_route(lambda: {}, "/x")
"""


def test_without_msgspec_an_error_says_what_to_install_and_models_work():
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-c", WITHOUT_MSGSPEC]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=50, env=env, cwd=Path(__file__).parents[1], check=True
    )
    lines = result.stdout.splitlines()
    assert [line.partition(" needs ")[0] for line in lines] == [
        "the type dict[str, int]", 'the value_type "msgpack"', "Message"
    ]  # fmt: skip
    assert all(line.endswith("pip install 'microws[typed]'") for line in lines)


@pytest.mark.parametrize("kind", [lambda fields: TypedDict("Size", dict(fields)), partial(make_dataclass, "Size")])
def test_field_whose_name_is_not_ascii_is_found(kind):
    name = b"gr\xc3\xb6\xc3\x9fe".decode()  # a str of its own, which was never encoded
    assert json_type(kind([(name, int)])).decode('{"größe": 1}') is not None
