"""What is called otherwise in other frameworks: each such name says what to write instead."""

import inspect
import subprocess
import sys

import pytest

import microws
from microws import App, JSONResponse, Request, Response, WebSocket, habits
from microws.testing import TestClient, TestResponse

TABLES = {
    App: habits.APP,
    Request: habits.REQUEST,
    WebSocket: habits.WEBSOCKET,
    Response: habits.RESPONSE,
    TestClient: habits.TEST_CLIENT,
    TestResponse: habits.TEST_RESPONSE,
}


def each(table):
    return [name for names in table for name in names.split()]


@pytest.mark.parametrize("cls", TABLES)
def test_every_name_is_an_attribute_error_of_one_line_and_for_hasattr_not_there(cls):
    for name in each(TABLES[cls]):
        assert not hasattr(cls, name)
        with pytest.raises(AttributeError) as caught:
            getattr(cls, name)
        assert str(caught.value).startswith(f"{cls.__name__} has no {name!r}: ")
        assert "\n" not in str(caught.value)
        assert "{" not in str(caught.value).partition("{name}")[0] or "=[" in str(caught.value)


@pytest.mark.parametrize("table", [*TABLES.values(), habits.MODULE])
def test_every_advice_is_a_sentence_with_one_verb(table):
    verbs = ("use", "write", "read", "return", "start")
    for advice in table.values():
        verb, _, rest = advice.partition(" ")
        assert verb in verbs
        assert not rest.startswith(tuple(f"{second} " for second in (*verbs, "await", "raise", "async")))


@pytest.mark.parametrize("table", [*TABLES.values(), habits.MODULE])
def test_no_name_stands_in_a_table_twice(table):
    assert len(set(each(table))) == len(each(table))


@pytest.mark.parametrize("cls", TABLES)
def test_no_name_hides_one_that_there_is(cls):
    own = {
        name for base in cls.__mro__ for name, value in vars(base).items() if not isinstance(value, habits.Elsewhere)
    }
    assert not own.intersection(each(TABLES[cls]))
    assert not set(each(habits.MODULE)).intersection(microws.__all__)


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
def test_the_advice_says_what_to_write(look, advice):
    with pytest.raises(AttributeError) as caught:
        look()
    assert str(caught.value).startswith(advice)


def test_a_websocket_says_ws():
    with pytest.raises(AttributeError, match=r"^WebSocket has no 'query_params': use ws\.query$"):
        WebSocket.query_params  # noqa: B018


def test_setting_one_says_it_too_where_an_object_has_no_attributes_of_its_own():
    with pytest.raises(AttributeError, match=r"^Request has no 'user': use request\.state"):
        request_of(App()).user = "Anna"


def test_an_app_may_have_attributes_of_its_own():
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
def test_an_import_says_it_too(name, text):
    with pytest.raises(ImportError) as caught:
        exec(f"from microws import {name}", {})
    assert str(caught.value) == text
    assert not hasattr(microws, name)


def test_what_is_like_nothing_is_missing_as_in_any_module():
    with pytest.raises(ImportError, match=r"^cannot import name 'xyzzy' from 'microws'"):
        exec("from microws import xyzzy", {})
    assert getattr(microws, "xyzzy", None) is None
    assert getattr(microws, "__wrapped__", None) is None


def test_a_module_that_was_not_imported_yet_can_be_imported_from_the_package():
    # `responses` is like `Response`, and `requests` like `Request`.
    code = "import sys, microws; del sys.modules['microws.requests'], microws.requests; from microws import requests"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


def test_the_members_of_an_object_can_be_listed():
    assert dict(inspect.getmembers(Response("x")))["status"] == 200
    assert dict(inspect.getmembers(App()))["hub"]
