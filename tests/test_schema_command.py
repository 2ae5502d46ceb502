"""``microws schema``: prints, writes and checks the documents of an app."""

import json

import pytest

from microws.cli import main

APP = """
from microws import App, Message, WebSocket
app = App()

class Say(Message):
    text: str

@app.websocket_route("/chat")
async def chat(ws: WebSocket[Say]):
    "Grüße."

@app.get("/")
async def page() -> str: ...
"""


@pytest.fixture
def schema(directory, capsys):
    """Run ``microws schema`` in a directory with an app: its exit code, stdout and stderr."""
    (directory / "app.py").write_text(APP, encoding="utf-8")

    def run(*arguments):
        code = main(["schema", *arguments])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("kind", "key", "names"),
    [("asyncapi", "channels", ["chat"]), ("openapi", "paths", ["/chat", "/"]), ("types", "definitions", ["Say"])],
)
def test_document_is_printed(schema, kind, key, names):
    code, printed, errors = schema(kind)
    assert (code, errors) == (0, "")
    assert list(json.loads(printed)[key])[: len(names)] == names


def test_title_and_version_are_of_the_app(schema):
    _, printed, _ = schema("openapi", "app:app", "--title", "Chat", "--app-version", "1.2")
    assert json.loads(printed)["info"] == {"title": "Chat", "version": "1.2"}


def test_file_that_was_written_is_current_until_the_app_changes(schema, directory):
    assert schema("asyncapi", "--output", "api.json") == (0, "", "")
    assert "Grüße." in (directory / "api.json").read_text(encoding="utf-8")
    assert schema("asyncapi", "--check", "api.json") == (0, "", "")
    known = json.loads((directory / "api.json").read_text(encoding="utf-8"))
    (directory / "api.json").write_text(json.dumps(known))
    assert schema("asyncapi", "--check", "api.json") == (0, "", ""), "it may be formatted in another way"
    known["channels"]["chat"]["address"] = "/room"
    (directory / "api.json").write_text(json.dumps(known))
    code, printed, errors = schema("asyncapi", "--check", "api.json")
    assert (code, errors) == (1, "error: api.json differs from the app; write it again with --output api.json\n")
    assert [line for line in printed.splitlines() if line.startswith(("-", "+"))] == [
        "--- api.json",
        "+++ of the app",
        '-      "address": "/room",',
        '+      "address": "/chat",',
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["openapi", "--check", "none.json"], 1, "error: none.json: No such file or directory; write it with --output"),
        (["openapi", "--check", "app.py"], 1, "error: app.py: expected JSON: Expecting value"),
        (["openapi", "--output", "none/api.json"], 2, "error: --output: none/api.json: No such file or directory"),
        (["openapi", "--output", "a", "--check", "b"], 2, "error: expected either --check or --output, got both"),
        (["xml"], 2, "error: KIND: expected asyncapi, openapi or types, got 'xml'"),
        ([], 2, "error: expected KIND, got none"),
        (["openapi", "none:app"], 3, "error: no module 'none' in "),
        (["openapi", "json:dumps"], 3, "error: json: expected an ASGI app"),
    ],
)
def test_mistakes_are_named(schema, arguments, code, error):
    found, printed, errors = schema(*arguments)
    assert (found, printed) == (code, "")
    assert error in errors
