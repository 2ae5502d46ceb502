"""What an exception becomes: the registered handler, or the default answer over HTTP and over a WebSocket."""

import json
import re
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from microws import HTTPException, InvalidMessage, PayloadTypeError
from microws.answers import close_for, prefers_json, response_for
from microws.closing import check_close
from microws.codec import JSON_DEFAULT
from microws.datastructures import Headers
from microws.errors import ClientDisconnect
from microws.hooks import Hooks

ID = re.compile(r"error id ([0-9a-f]{8})")


def close(error, *, debug=False, code=1011):
    return close_for(error, path="/x", error_close_code=code, debug=debug)


def respond(error, *, debug=False, as_json=False):
    return response_for(error, path="/x", debug=debug, as_json=as_json)


def test_a_detail_in_place_of_the_status_is_a_type_error():
    with pytest.raises(
        TypeError, match=r"^expected a status such as 404 as HTTPException's first argument, got 'no such room'$"
    ):
        HTTPException("no such room")


@pytest.mark.parametrize("detail", [KeyError("x"), b"x", 5, {"x"}])
def test_a_detail_that_is_neither_text_nor_json_is_a_type_error(detail):
    with pytest.raises(TypeError, match=r"^expected str, dict or list as HTTPException's detail, got "):
        HTTPException(404, detail)


def handler_named(name):
    async def handler(connection, error):
        return name

    return handler


class TestHandlers:
    @pytest.mark.parametrize(
        ("keys", "error", "found"),
        [
            ([HTTPException], HTTPException(404), HTTPException),
            ([HTTPException, 404], HTTPException(404), 404),
            ([HTTPException, 404], HTTPException(403), HTTPException),
            ([Exception, LookupError], KeyError("x"), LookupError),
            ([Exception, LookupError], ValueError("x"), Exception),
            ([Exception, LookupError], HTTPException(404), Exception),
            ([Exception, 500], ValueError("x"), Exception),
            ([404, KeyError], ValueError("x"), None),
            ([404, KeyError], HTTPException(400), None),
            ([500], HTTPException(400), None),
        ],
    )
    def test_the_status_then_the_nearest_class_wins(self, keys, error, found):
        hooks = Hooks()
        handlers = {None: None} | {key: handler_named(key) for key in keys}
        for key in keys:
            hooks.add_handler(key, handlers[key])
        assert hooks.find_handler(error) is handlers[found]

    def test_an_app_that_includes_another_handles_what_the_other_does_not(self):
        outer, inner = Hooks(), Hooks()
        outer.include(inner)
        handlers = {key: handler_named(key) for key in (404, 500)}
        outer.add_handler(404, handlers[404])
        inner.add_handler(500, handlers[500])
        assert inner.find_handler(HTTPException(404)) is handlers[404]
        assert inner.find_handler(ValueError("x")).__wrapped__ is handlers[500]
        assert outer.find_handler(ValueError("x")) is None

    @pytest.mark.anyio
    async def test_the_handler_of_500_gets_a_logged_unexpected_error(self, caplog):
        hooks = Hooks()

        async def handler(connection, error):
            return connection.path, error

        hooks.add_handler(500, handler)
        error = ValueError("x")

        class Connection:
            path = "/a\nb"

        assert await hooks.find_handler(error)(Connection, error) == ("/a\nb", error)
        assert [record.message.partition(",")[0] for record in caplog.records] == ["/a%0Ab: unexpected error"]
        assert caplog.records[0].exc_info[1] is error

    @pytest.mark.anyio
    async def test_an_http_exception_of_500_is_not_logged(self, caplog):
        hooks = Hooks()
        hooks.add_handler(500, handler_named("page"))
        assert await hooks.find_handler(HTTPException(500))(None, None) == "page"
        assert not caplog.records

    @pytest.mark.parametrize("key", [404, KeyError])
    def test_a_handler_is_registered_once(self, key):
        hooks = Hooks()
        hooks.add_handler(key, print)
        with pytest.raises(ValueError, match="has an error handler already"):
            hooks.add_handler(key, print)

    @pytest.mark.parametrize("key", [200, 399, 600, 0, -1])
    def test_a_status_below_400_is_an_error(self, key):
        with pytest.raises(ValueError, match="a status of 400 to 599"):
            Hooks().add_handler(key, print)

    @pytest.mark.parametrize("key", ["404", None, True, KeyboardInterrupt, BaseException, int, KeyError("x")])
    def test_a_key_is_a_status_or_an_exception_class(self, key):
        with pytest.raises(TypeError, match="an exception class or a status"):
            Hooks().add_handler(key, print)


class TestResponses:
    @example("a lone surrogate \udc80")
    @given(st.text(st.characters(exclude_categories=[])))
    def test_any_text_can_be_sent(self, detail):
        assert respond(HTTPException(400, detail)).body == detail.encode(errors="replace")

    def test_an_error_has_one_id_and_is_logged_once(self, caplog):
        error = ValueError("x")
        _, reason = close(error)
        assert ID.search(respond(error).body.decode())[1] == ID.search(reason)[1]
        assert ID.search(respond(ValueError("x")).body.decode())[1] != ID.search(reason)[1]
        assert len(caplog.records) == 2

    def test_a_disconnect_is_not_an_error(self, caplog):
        assert respond(ClientDisconnect("gone")).status == 400
        assert not caplog.records


class TestJSON:
    def test_a_str_is_the_error_of_an_object(self):
        response = respond(HTTPException(404, "no such room", headers={"x-a": "b"}), as_json=True)
        assert (response.status, response.headers["content-type"]) == (404, "application/json")
        assert (json.loads(response.body), response.headers["x-a"]) == ({"error": "no such room"}, "b")

    @pytest.mark.parametrize("as_json", [False, True])
    @pytest.mark.parametrize("detail", [{"error": "no such room", "room": 5}, {}, [], [{"field": "name"}]])
    def test_a_dict_or_list_is_sent_unchanged_to_any_client(self, detail, as_json):
        response = respond(HTTPException(404, detail), as_json=as_json)
        assert (response.status, response.headers["content-type"]) == (404, "application/json")
        assert json.loads(response.body) == detail

    def test_a_str_with_its_own_content_type_is_sent_unchanged(self):
        headers = {"Content-Type": "application/problem+json"}
        response = respond(HTTPException(404, '{"title": "x"}', headers=headers), as_json=True)
        assert response.body == b'{"title": "x"}'
        assert response.headers["content-type"] == "application/problem+json"

    def test_invalid_json_is_a_logged_500_and_a_close(self, caplog):
        for detail in ({"x": object()}, {"x": float("nan")}):
            assert respond(HTTPException(404, detail)).status == 500
            assert close(HTTPException(404, detail))[0] == 1011
        assert caplog.text.count("unexpected error") == 4

    def test_an_error_of_json_default_is_a_logged_500_and_a_close(self, caplog):
        token = JSON_DEFAULT.set(lambda value: {}[value])
        try:
            assert respond(HTTPException(404, {"x": Decimal(1)})).status == 500
            assert close(HTTPException(404, {"x": Decimal(1)}))[0] == 1011
        finally:
            JSON_DEFAULT.reset(token)
        assert caplog.text.count("KeyError") == 2

    def test_an_unexpected_error_has_its_id_and_in_debug_the_traceback(self, caplog):
        body = json.loads(respond(ValueError("secret"), as_json=True).body)
        assert body == {"error": "Internal Server Error", "error_id": body["error_id"]}
        assert f"id {body['error_id']}" in caplog.text
        body = json.loads(respond(ValueError("secret \udc80"), as_json=True, debug=True).body)
        assert "ValueError: secret" in body["traceback"]

    @example("a lone surrogate \udc80")
    @given(st.text(st.characters(exclude_categories=[])))
    def test_any_text_can_be_sent(self, detail):
        body = respond(HTTPException(400, detail), as_json=True).body
        assert json.loads(body) == {"error": detail.encode(errors="replace").decode()}

    @pytest.mark.parametrize(
        ("detail", "reason"),
        [
            ({"error": "no such room", "room": 5}, "no such room"),
            ({"error": "x" * 200}, "x" * 123),
            ({"code": "no_room"}, '{"code":"no_room"}'),
            ({"error": {"code": 5}}, '{"error":{"code":5}}'),
            (["name", "age"], '["name","age"]'),
            ({"errors": ["x" * 60, "y" * 60]}, "Not Found"),
        ],
    )
    def test_a_close_reason_is_the_error_the_json_or_the_phrase(self, detail, reason):
        assert close(HTTPException(404, detail)) == (3404, reason)
        check_close(*close(HTTPException(404, detail)))


class TestPrefersJSON:
    @pytest.mark.parametrize(
        "accept",
        [
            "application/json",
            "APPLICATION/JSON; charset=utf-8",
            "application/json, text/plain, */*",  # axios, Angular
            "application/json, text/javascript, */*; q=0.01",  # jQuery
            "application/problem+json",
            "application/*",
            "text/html;q=0.5, application/json;q=0.9",
            "text/html; q=0, application/json; q=0.001",
            "*/*, application/json;q=0.1",
            "application/json;q=1.000",
        ],
    )
    def test_json_that_is_preferred_to_text(self, accept):
        assert prefers_json(Headers([(b"accept", accept.encode())]))

    @pytest.mark.parametrize(
        "accept",
        [
            "",
            "*/*",  # curl, fetch
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",  # a browser
            "text/html, */*",  # htmx
            "text/html, application/json",
            "text/plain, application/json;q=0.9",
            "text/*, application/json;q=0.5",
            "application/json;q=0",
            "application/json;q=2",
            "application/json;q=x",
            "application/xml, image/svg+xml",
            "text/event-stream",  # EventSource
            ", " * 20_000 + "application/json",
        ],
    )
    def test_no_json_if_text_or_anything_is_accepted(self, accept):
        assert not prefers_json(Headers([(b"accept", accept.encode())]))

    def test_several_accept_headers_are_one_list(self):
        html = (b"accept", b"text/html")
        assert not prefers_json(Headers([html, (b"accept", b"application/json;q=0.9")]))
        assert prefers_json(Headers([(b"accept", b"application/json"), html]))

    @pytest.mark.parametrize(
        ("kind", "is_json"),
        [
            ("application/json", True),
            ("Application/JSON; charset=utf-8", True),
            ("application/vnd.api+json", True),
            ("text/plain", False),
            ("application/x-www-form-urlencoded", False),
        ],
    )
    def test_a_json_request_prefers_json(self, kind, is_json):
        headers = Headers([(b"content-type", kind.encode()), (b"accept", b"text/html")])
        assert prefers_json(headers) is is_json


class TestCloses:
    @example("a lone surrogate \udc80" * 10, False)
    @given(st.text(st.characters(exclude_categories=[])), st.booleans())
    def test_any_reason_can_be_sent(self, text, debug):
        for error in (HTTPException(400, text), PayloadTypeError(text), InvalidMessage(text), ValueError(text)):
            if debug or not isinstance(error, ValueError):
                check_close(*close(error, debug=debug))

    def test_the_cut_leaves_whole_characters(self):
        assert close(HTTPException(400, "ü" * 100)) == (3400, "ü" * 61)
        assert close(HTTPException(400, "x" * 123)) == (3400, "x" * 123)
        assert close(HTTPException(400, "x" * 124)) == (3400, "x" * 123)
