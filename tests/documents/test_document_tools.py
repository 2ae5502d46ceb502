"""Tools that others have made read the documents of apps, and the schemas in them say what the decoders do."""

import importlib
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import node_packages
import pydantic
import pytest
from drawn_apps import apps, exact_types
from drawn_values import changed, values_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator
from msgspec import Meta, Struct
from openapi_spec_validator import OpenAPIV31SpecValidator

from microws import App, InvalidMessage, Message
from microws.cli import main
from microws.codec import json_type
from microws.description.schemas import as_draft_7

pytestmark = [pytest.mark.xdist_group("documents"), pytest.mark.timeout(300)]

# `DOCUMENTS=whole` draws 200 apps; the parser takes most of the time.
APPS = 200 if os.environ.get("DOCUMENTS") == "whole" else 30

ROOT = Path(__file__).parents[2]
NODE = Path(__file__).parent / "node"
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if "App(" in path.read_text())


@pytest.fixture(scope="module")
def asyncapi_errors():
    """A function that returns the errors of an AsyncAPI document: those of its official parser."""
    node_packages.install(NODE)
    command = ["node", "check.js"]
    with subprocess.Popen(command, cwd=NODE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parser:

        def check(document: dict[str, Any]) -> list[str]:
            parser.stdin.write(json.dumps(document) + "\n")
            parser.stdin.flush()
            return json.loads(parser.stdout.readline())

        yield check
        parser.stdin.close()


def openapi_errors(document: dict[str, Any]) -> list[str]:
    return [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()]


def test_tools_find_errors_in_documents(asyncapi_errors):
    app = App()

    @app.websocket_route("/{room}")
    async def chat(ws, room): ...

    document = app.asyncapi()
    del document["channels"]["chat"]["messages"]
    assert asyncapi_errors(document) != []
    document = app.openapi()
    del document["paths"]["/{room}"]["get"]["parameters"]
    assert openapi_errors(document) != []


@pytest.mark.parametrize("name", EXAMPLES)
def test_documents_of_an_example_have_no_errors(name, asyncapi_errors, directory, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    app = importlib.import_module(name).app
    assert asyncapi_errors(app.asyncapi()) == []
    assert openapi_errors(app.openapi()) == []


@pytest.mark.timeout(1200)
@settings(max_examples=APPS, suppress_health_check=list(HealthCheck))
@given(app=apps())
def test_documents_of_drawn_apps_have_no_errors(asyncapi_errors, app):
    assert asyncapi_errors(app.asyncapi()) == []
    assert openapi_errors(app.openapi()) == []


GAME = """
from microws import App, Message, WebSocket

app = App()

class Say(Message):
    text: str

class Said(Message):
    user: str
    text: str

class Move(Message):
    at: tuple[int, str]

app.topic("game:*", value_type=Said)

@app.websocket_route("/game/{room}", subscribe="game:{room}", on_invalid="error")
async def game(ws: WebSocket[Say | Move, Said], room: str): ...
"""

CLIENT = """
declare function show(text: string): void;
export const right: GameReceives[] = [{ type: "say", text: "x" }, { type: "move", at: [1, "x"] }];
// @ts-expect-error
export const unknown: GameReceives = { type: "shout", text: "x" };
// @ts-expect-error
export const wrong: GameReceives = { type: "move", at: [1, 2] };
// @ts-expect-error
export const missing: GameReceives = { type: "say" };
"""


def test_typescript_knows_the_types_as_the_guide_says(directory):
    node_packages.install(NODE)
    (directory / "app.py").write_text(GAME)
    assert main(["schema", "types", "--output", "types.json"]) == 0
    guide = (ROOT / "docs" / "how-to.md").read_text()
    (options,) = re.findall(r"npx json2ts (.*)", guide)
    (client,) = re.findall(r"```ts\n(.*?)```", guide, re.DOTALL)
    (directory / "client.ts").write_text(client + CLIENT)
    programs = NODE / "node_modules" / ".bin"
    subprocess.run([programs / "json2ts", *options.split()], check=True, timeout=60)
    command = [programs / "tsc", "--noEmit", "--strict", "--noUnusedLocals", "false", "--module", "esnext"]
    command += ["--moduleResolution", "bundler", "--target", "es2022", "client.ts"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (answer.returncode, answer.stdout) == (0, "")


class Say(Message):
    text: Annotated[str, Meta(max_length=5)]


class Move(Message):
    x: float
    y: float = 0.0


class Strict(Struct, forbid_unknown_fields=True):
    n: int
    tags: list[str] = []


class Row(Struct, array_like=True):
    a: int
    b: str = ""


class Renamed(Struct, rename="camel"):
    first_name: str


@dataclass
class Vote:
    choice: Annotated[int, Meta(ge=0, lt=10)]
    why: str | None = None


class Poll(TypedDict):
    votes: int
    open: NotRequired[bool]


class Nested(Struct):
    vote: Vote
    polls: dict[str, Poll]
    inner: "Nested | None" = None


class Item(pydantic.BaseModel):
    n: int = pydantic.Field(ge=0)


class Model(pydantic.BaseModel):
    item: Item
    items: list[Item] = []
    name: str | None = None


class Closed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    flag: bool


class Circle(pydantic.BaseModel):
    kind: Literal["circle"]
    x: float


class Text(pydantic.BaseModel):
    kind: Literal["text"]
    x: str


TYPES = [
    *(int, float, str, bool, None, list[int], dict[str, float], tuple[int, str], tuple[int, ...], int | str | None),
    *(Literal["a", "b"], Literal[1, 2, None], Annotated[list[int], Meta(min_length=1, max_length=3)]),
    *(Say | Move, list[Say | Move], Strict, Row, Renamed, Vote, Poll, Nested),
    *(Model, Closed, Item | Closed, Annotated[Circle | Text, pydantic.Field(discriminator="kind")], list[Model]),
]


def check_agreement(annotation: Any, draw: Any, *, count: int) -> None:
    """
    The decoder takes a drawn message if, and only if, it fits the schema.

    With two exceptions, which no drawn message is. ``1.0`` is an integer in JSON Schema, but not in Python; JavaScript
    writes ``1``. And where only one ``Message`` may be, msgspec does not insist on its ``type``.
    """
    rules = json_type(annotation)
    schema, components = rules.schema("received")
    root = {**schema, "components": {"schemas": components}}
    by_schema, by_draft_7 = Draft202012Validator(root), Draft7Validator(as_draft_7(root))
    values = values_of(schema, root)
    for kind in (values, changed(values)):
        for value in draw(st.lists(kind, min_size=count, max_size=count)):
            text = json.dumps(value)
            expected = by_schema.is_valid(value)
            assert by_draft_7.is_valid(value) is expected, text
            assert expected or kind is not values, f"drawn from the schema: {text}"
            problem = ""
            try:
                rules.decode(text)
            except InvalidMessage as error:
                problem = str(error)
            assert (problem == "") is expected, f"{annotation}: {text}: {problem}"


@pytest.mark.parametrize("annotation", TYPES, ids=str)
@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_decoder_and_schema_agree_on_messages(annotation, data):
    check_agreement(annotation, data.draw, count=5)


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(annotation=exact_types, data=st.data())
def test_decoder_and_schema_agree_on_messages_of_drawn_types(annotation, data):
    check_agreement(annotation, data.draw, count=20)
