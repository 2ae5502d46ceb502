"""Names of other frameworks, and misspelt ones: each says what to write instead."""

import inspect
import subprocess
import sys

import pytest

import microws
from microws import App, JSONResponse, Request, Response, WebSocket
from microws.hints import FOREIGN_NAMES, ForeignName, did_you_mean
from microws.testing import TestClient, TestResponse

CLASSES = [App, Request, WebSocket, Response, TestClient, TestResponse]


def each(table):
    return [name for names in table for name in names.split()]


@pytest.mark.parametrize("cls", CLASSES)
def test_each_foreign_name_raises_one_line_and_hasattr_does_not_find_it(cls):
    own = {name for base in cls.__mro__ for name, value in vars(base).items() if not isinstance(value, ForeignName)}
    for name in each(FOREIGN_NAMES[cls.__name__]):
        assert name not in own
        assert not hasattr(cls, name)
        with pytest.raises(AttributeError) as caught:
            getattr(cls, name)
        assert str(caught.value).startswith(f"{cls.__name__} has no {name!r}: ")
        assert "\n" not in str(caught.value)
        assert "{self}" not in str(caught.value)


@pytest.mark.parametrize("table", FOREIGN_NAMES.values(), ids=FOREIGN_NAMES)
def test_each_advice_begins_with_one_verb_and_no_name_has_two(table):
    verbs = ("use", "write", "read", "return", "start")
    for advice in table.values():
        verb, _, rest = advice.partition(" ")
        assert verb in verbs
        assert not rest.startswith(tuple(f"{second} " for second in (*verbs, "await", "raise", "async")))
    assert len(set(each(table))) == len(each(table))


def test_no_foreign_name_of_the_package_is_a_public_name():
    assert not set(each(FOREIGN_NAMES["microws"])).intersection(microws.__all__)


@pytest.mark.parametrize(
    ("word", "hint"),
    [("prot", "; did you mean 'port'?"), ("HOST", "; did you mean 'host'?"), ("zzz", ""), ("", "")],
)
def test_did_you_mean_names_the_nearest_word_in_any_case(word, hint):
    assert did_you_mean(word, ["host", "port"]) == hint


def request_of(app):
    return Request({"type": "http", "method": "GET", "headers": []}, app, "/", {}, None, None)


@pytest.mark.parametrize(
    ("look", "advice"),
    [
        (lambda: App().websocket("/ws"), "App has no 'websocket': use @app.websocket_route(pattern)"),
        (lambda: request_of(App()).args["q"], "Request has no 'args': use request.query"),
        (lambda: request_of(App()).query_params, "Request has no 'query_params': use request.query"),
        (lambda: JSONResponse({}).status_code, "JSONResponse has no 'status_code': use response.status"),
        (lambda: microws.WebSocketDisconnected, "microws has no 'WebSocketDisconnected': use WebSocketDisconnect"),
        (lambda: microws.Websocket, "microws has no 'Websocket': use WebSocket"),
        (lambda: microws.jsonify, "microws has no 'jsonify': return the dict or list from the view"),
        (
            lambda: Response("x").text,
            "Response has no 'text': use response.body to read it; to change it, return a new",
        ),
    ],
)
def test_a_foreign_name_says_what_to_write(look, advice):
    with pytest.raises(AttributeError) as caught:
        look()
    assert str(caught.value).startswith(advice)


def test_python_appends_no_guess_to_the_advice():
    program = "import microws; microws.App().before_serving"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=50)
    assert ended.stderr.endswith(": use @app.on_startup, @app.on_shutdown or @app.lifespan\n")


def test_the_advice_of_a_websocket_calls_it_ws():
    with pytest.raises(AttributeError, match=r"^WebSocket has no 'query_params': use ws\.query$"):
        WebSocket.query_params  # noqa: B018


def test_setting_a_foreign_name_raises_too_on_a_class_with_slots():
    with pytest.raises(AttributeError, match=r"^Request has no 'user': use request\.state"):
        request_of(App()).user = "Anna"


def test_an_app_takes_a_foreign_name_as_its_own_attribute():
    app = App()
    app.config = {"a": 1}
    assert app.config == {"a": 1}
    assert not hasattr(App(), "config")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("jsonify", "microws has no 'jsonify': return the dict or list from the view, or (body, status, headers)"),
        ("WebSocketDisconnected", "microws has no 'WebSocketDisconnected': use WebSocketDisconnect"),
        ("HttpException", "microws has no 'HttpException': use HTTPException"),
    ],
)
def test_importing_a_foreign_or_misspelt_name_says_what_to_write(name, text):
    with pytest.raises(ImportError) as caught:
        exec(f"from microws import {name}", {})
    assert str(caught.value) == text
    assert not hasattr(microws, name)


def test_a_name_near_nothing_is_missing_as_in_any_module():
    with pytest.raises(ImportError, match=r"^cannot import name 'xyzzy' from 'microws'"):
        exec("from microws import xyzzy", {})
    assert getattr(microws, "xyzzy", None) is None
    assert getattr(microws, "__wrapped__", None) is None


def test_a_submodule_is_an_attribute_before_it_is_imported():
    # `responses` is near `Response`, and `requests` near `Request`.
    code = "import microws; from microws import requests; assert microws.testing.TestClient; assert microws.responses"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


def test_inspect_lists_the_members_of_an_object():
    assert dict(inspect.getmembers(Response("x")))["status"] == 200
    assert dict(inspect.getmembers(App()))["hub"]
