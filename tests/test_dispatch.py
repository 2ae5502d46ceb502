"""The way of a request to its view, and of an error to its answer."""

import asyncio
import re
from contextlib import suppress
from decimal import Decimal

import anyio
import pytest
from anyio.lowlevel import checkpoint
from asking import ask, ask_websocket, ending_of, refusal_of
from worker_here import requesting, serving

from microws import (
    App,
    FileResponse,
    HTTPException,
    InvalidMessage,
    PayloadTypeError,
    Response,
    StreamingResponse,
    WebSocketDisconnect,
    WebSocketRejected,
)
from microws.errors import ClientDisconnect

pytestmark = pytest.mark.anyio

ID = re.compile(r"error id ([0-9a-f]{8})")


class DomainError(Exception):
    """What an app of its own raises."""


def app_that_raises(make_error, **settings):
    """An app whose views all raise: at ``/``, and after accept at ``/accepted`` and ``/block``."""
    app = App(**settings)

    @app.route("/", methods=["GET", "POST"])
    async def page(request):
        raise make_error()

    @app.websocket_route("/")
    async def before_accept(ws):
        raise make_error()

    @app.websocket_route("/accepted")
    async def after_accept(ws):
        await ws.accept()
        raise make_error()

    @app.websocket_route("/block")
    async def in_block(ws):
        async with ws:
            raise make_error()

    return app


def both_kinds():
    app = App()

    @app.get("/http/{name}")
    async def page(name):
        return name

    @app.post("/http/{name}")
    async def change(name):
        return name

    @app.websocket_route("/ws/{name}")
    async def echo(ws, name):
        async with ws:
            await ws.send(name)

    return app


class TestNothingThere:
    async def test_an_unknown_path_is_404(self):
        response = await ask(both_kinds(), "/nowhere")
        assert (response.status, response.text) == (404, "Not Found")
        rejection = await refusal_of(both_kinds(), "/nowhere")
        assert (rejection.status, rejection.body, rejection.code) == (404, b"Not Found", 3404)

    async def test_another_method_is_405_with_allow(self):
        response = await ask(both_kinds(), "/http/x", method="DELETE")
        assert (response.status, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS, POST")

    async def test_a_websocket_where_only_http_is_is_a_405_denial(self):
        rejection = await refusal_of(both_kinds(), "/http/x")
        assert (rejection.status, rejection.code) == (405, 3405)
        assert dict(rejection.headers)["allow"] == "GET, HEAD, OPTIONS, POST"

    async def test_plain_http_where_only_a_websocket_is_is_426(self):
        response = await ask(both_kinds(), "/ws/x")
        assert (response.status, response.headers["upgrade"]) == (426, "websocket")
        assert response.headers["connection"] == "Upgrade"

    async def test_over_http2_the_426_has_no_header_that_is_forbidden_there(self):
        sent = []

        async def receive():
            return {"type": "http.request"}

        async def send(event):
            sent.append(event)

        scope = {"type": "http", "http_version": "2", "method": "GET", "path": "/ws/x", "headers": []}
        await both_kinds()(scope, receive, send)
        assert sent[0]["status"] == 426
        assert not {b"connection", b"upgrade"} & {name for name, _ in sent[0]["headers"]}

    async def test_options_is_answered_with_allow(self):
        response = await ask(both_kinds(), "/http/x", method="OPTIONS")
        assert (response.status, response.body) == (204, b"")
        assert response.headers["allow"] == "GET, HEAD, OPTIONS, POST"

    async def test_a_view_of_its_own_may_answer_options(self):
        app = App()
        app.add_route(lambda: "mine", "/", methods=["OPTIONS"])
        assert (await ask(app, method="OPTIONS")).text == "mine"

    async def test_get_brings_head_without_a_body(self):
        response = await ask(both_kinds(), "/http/abc", method="HEAD")
        assert (response.status, response.body, response.headers["content-length"]) == (200, b"", "3")

    @pytest.mark.parametrize("path", ["/%00", "/http/a%00b", "/ws/a%00b", "/mounted/%00"])
    async def test_a_nul_in_the_path_is_400_for_both_kinds(self, path):
        app = both_kinds()

        async def mounted(scope, receive, send):
            assert scope["type"] == "lifespan", "it gets there"

        app.mount("/mounted", mounted)
        assert (await ask(app, path)).status == 400
        assert (await refusal_of(app, path)).status == 400

    async def test_handlers_by_status_answer_all_of_these(self):
        app = both_kinds()

        @app.error_handler(404)
        async def lost(connection, error):
            return {"lost": connection.path}, 404

        @app.error_handler(405)
        async def wrong(connection, error):
            return "wrong", 405, error.headers

        assert (await ask(app, "/a b")).json() == {"lost": "/a b"}
        assert (await refusal_of(app, "/a b")).body == b'{"lost":"/a b"}'
        assert (await ask(app, "/http/x", method="PUT")).headers["allow"] == "GET, HEAD, OPTIONS, POST"
        assert (await refusal_of(app, "/http/x")).body == b"wrong"


class TestSlashes:
    def app(self, **settings):
        app = App(**settings)
        app.add_route(lambda: "folder", "/folder/")
        app.add_route(lambda: "file", "/file", methods=["GET", "POST"])
        app.add_route(lambda name: name, "/name/{name}/")

        @app.websocket_route("/ws/")
        async def ws(ws):
            await ws.accept()

        return app

    @pytest.mark.parametrize(
        ("path", "location"),
        [
            ("/folder", "/folder/"),
            ("/file/", "/file"),
            ("/folder?a=1&b=%20", "/folder/?a=1&b=%20"),
            ("/name/%2Fevil.example", "/name/%2Fevil.example/"),
            ("/name/%5Cevil", "/name/%5Cevil/"),
            ("/name/ü?ü", "/name/%C3%BC/?%C3%BC"),
        ],
    )
    async def test_where_only_the_other_form_exists_http_is_sent_there(self, path, location):
        response = await ask(self.app(), path)
        assert (response.status, response.headers["location"]) == (308, location)

    async def test_the_root_path_stays_before_it(self):
        response = await ask(self.app(), "/api v1/folder?x=1", client={"root_path": "/api v1"})
        assert response.headers["location"] == "/api%20v1/folder/?x=1"

    async def test_a_post_is_repeated_as_it_was(self):
        assert (await ask(self.app(), "/file/", method="POST")).status == 308

    @pytest.mark.parametrize("query", [b"a=\\evil", b"a=\x00\r\n b", b"\xff", b"%", b"//evil.example"])
    async def test_no_query_string_makes_a_bad_location(self, query):
        sent = []

        async def receive():
            return {"type": "http.request"}

        async def send(event):
            sent.append(event)

        scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/folder", "headers": []}
        await self.app()({**scope, "query_string": query}, receive, send)
        [location] = [value for name, value in sent[0]["headers"] if name == b"location"]
        assert sent[0]["status"] == 308
        assert re.fullmatch(rb"/folder/\?[!-\[\]-~]*", location)

    async def test_it_can_be_turned_off(self):
        assert (await ask(self.app(redirect_slashes=False), "/folder")).status == 404
        assert (await ask(self.app(redirect_slashes=False), "/folder/")).status == 200

    async def test_a_websocket_is_not_sent_anywhere(self):
        assert (await refusal_of(self.app(), "/ws")).status == 404


class TestConverters:
    async def test_a_value_that_its_converter_refuses_does_not_match(self):
        app = both_kinds()
        app.add_route(lambda number: str(number), "/numbers/{number:int}")
        assert (await ask(app, "/numbers/7")).text == "7"
        assert (await ask(app, "/numbers/x")).status == 404

    @pytest.mark.parametrize("path", ["/bad/x", "/bad/x/"])
    async def test_one_that_fails_otherwise_is_a_500_for_both_kinds(self, path, caplog):
        def parse(text):
            raise LookupError("in the converter")

        app = App()
        app.add_converter("bad", ".+", parse=parse)
        app.add_route(lambda value: value, "/bad/{value:bad}")

        @app.websocket_route("/bad/{value:bad}")
        async def view(ws, value):
            await ws.accept()

        response = await ask(app, path)
        rejection = await refusal_of(app, path)
        assert (response.status, rejection.status, rejection.code) == (500, 500, 3500)
        for body in (response.text, rejection.body.decode()):
            assert ID.search(body)[1] in caplog.text
            assert "converter" not in body


class TestErrorTable:
    """The rows of the contract's table of errors, in its three columns."""

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 418, 500, 503, 599])
    async def test_an_http_exception_is_that_response_that_denial_that_close(self, status):
        app = app_that_raises(lambda: HTTPException(status, "why", headers={"x-a": "b"}))
        response = await ask(app)
        assert (response.status, response.text, response.headers["x-a"]) == (status, "why", "b")
        rejection = await refusal_of(app)
        assert (rejection.status, rejection.body, rejection.code) == (status, b"why", 3000 + status)
        assert dict(rejection.headers)["x-a"] == "b"
        for path in ("/accepted", "/block"):
            assert await ending_of(app, path) == (3000 + status, "why")

    async def test_a_client_that_asks_for_json_gets_each_error_as_json(self):
        app, headers = app_that_raises(lambda: HTTPException(409, "taken")), {"accept": "application/json"}
        for path, method, status, error in (
            ("/", "GET", 409, "taken"),
            ("/nowhere", "GET", 404, "Not Found"),
            ("/", "DELETE", 405, "Method Not Allowed"),
            ("/accepted", "GET", 426, "this path is a WebSocket: connect with a WebSocket client"),
        ):
            response = await ask(app, path, method=method, headers=headers)
            assert (response.status, response.headers["content-type"]) == (status, "application/json")
            assert response.json() == {"error": error}
        rejection = await refusal_of(app, headers=headers)
        assert (rejection.status, rejection.body) == (409, b'{"error":"taken"}')
        assert dict(rejection.headers)["content-type"] == "application/json"

    async def test_a_client_that_sends_json_gets_errors_as_json(self):
        app = app_that_raises(lambda: HTTPException(409, "taken"))
        assert (await ask(app, method="POST", json=[])).json() == {"error": "taken"}
        assert (await ask(app, method="POST", content=b"x")).text == "taken"

    async def test_an_exception_with_a_dict_is_that_json_or_its_error_as_the_reason(self):
        app = app_that_raises(lambda: HTTPException(404, {"error": "no such room", "room": 5}))
        response, rejection = await ask(app), await refusal_of(app)
        assert (response.status, response.json()) == (404, {"error": "no such room", "room": 5})
        assert (rejection.status, rejection.body) == (404, b'{"error":"no such room","room":5}')
        for path in ("/accepted", "/block"):
            assert await ending_of(app, path) == (3404, "no such room")

    async def test_what_the_apps_json_default_makes_of_a_value_is_sent_too(self):
        app = app_that_raises(lambda: HTTPException(404, {"price": Decimal("1.5")}), json_default=str)
        assert (await ask(app)).json() == {"price": "1.5"}
        assert (await refusal_of(app)).body == b'{"price":"1.5"}'
        assert await ending_of(app, "/accepted") == (3404, '{"price":"1.5"}')

    async def test_a_mapping_and_pairs_are_headers(self):
        app = app_that_raises(lambda: HTTPException(401, headers=[("set-cookie", "a=1"), ("set-cookie", "b=2")]))
        assert (await ask(app)).headers.getlist("set-cookie") == ["a=1", "b=2"]
        rejection = await refusal_of(app)
        assert [value for name, value in rejection.headers if name == "set-cookie"] == ["a=1", "b=2"]

    @pytest.mark.parametrize("make_error", [lambda: ValueError("secret"), lambda: DomainError("secret")])
    async def test_any_other_is_500_500_and_the_apps_close_code_with_an_id_that_is_in_the_log(self, make_error, caplog):
        for code in (1011, 4999):
            app = app_that_raises(make_error, error_close_code=code)
            response, rejection = await ask(app), await refusal_of(app)
            assert (response.status, rejection.status, rejection.code) == (500, 500, 3500)
            said = [response.text, rejection.body.decode()]
            for path in ("/accepted", "/block"):
                closed_with, reason = await ending_of(app, path)
                assert closed_with == code
                said.append(reason)
            for text in said:
                assert ID.search(text)[1] in caplog.text
                assert not re.search("secret|Error[^ ]|Traceback|py", text.replace("Internal Server Error", ""))
            assert caplog.text.count("unexpected error") == 4
            assert caplog.text.count("Traceback") == 4
            caplog.clear()

    async def test_in_debug_the_page_and_the_reason_say_more(self):
        app = app_that_raises(lambda: ValueError("what is wrong"), debug=True)
        assert "ValueError: what is wrong" in (await ask(app)).text
        assert b"ValueError: what is wrong" in (await refusal_of(app)).body
        assert await ending_of(app, "/accepted") == (1011, "ValueError: what is wrong")

    async def test_messages_of_the_wrong_kind_and_value(self):
        assert (await ending_of(app_that_raises(lambda: PayloadTypeError("x")), "/accepted")) == (1003, "x")
        assert (await ending_of(app_that_raises(lambda: InvalidMessage("x")), "/accepted")) == (1007, "x")

    @pytest.mark.parametrize("path", ["/accepted", "/block"])
    async def test_a_reason_is_cut_at_a_character(self, path):
        app = app_that_raises(lambda: HTTPException(400, "ü" * 200))
        assert await ending_of(app, path) == (3400, "ü" * 61)

    @pytest.mark.parametrize(
        ("error", "code", "words"),
        [(InvalidMessage, 1007, ""), (PayloadTypeError, 1003, ""), (OSError, 1011, "OSError: ")],
    )
    @pytest.mark.parametrize("path", ["/accepted", "/block"])
    async def test_so_are_a_decoder_s_words_and_in_debug_an_error_s(self, path, error, code, words):
        app = app_that_raises(lambda: error("ü" * 200), debug=True)
        reason = words + "ü" * ((123 - len(words)) // 2)
        assert await ending_of(app, path) == (code, reason)

    async def test_without_the_denial_extension_it_is_403_and_the_code_is_still_seen(self):
        client = {"denial": False}
        app = app_that_raises(lambda: HTTPException(402, "pay"))
        rejection = await refusal_of(app, client=client)
        assert (rejection.status, rejection.code) == (403, 3402)
        rejection = await refusal_of(app, "/nowhere", client=client)
        assert (rejection.status, rejection.code) == (403, 3404)

    async def test_a_disconnect_that_leaves_a_view_is_no_error(self, caplog):
        caplog.set_level("DEBUG", logger="microws")
        app = App()

        @app.websocket_route("/{kind}", catch_disconnect=False)
        async def view(ws, kind):
            await ws.accept()
            if kind == "group":
                async with anyio.create_task_group() as tasks:
                    for _ in range(2):
                        tasks.start_soon(ws.receive)
            await ws.receive()

        app.error_handler(Exception)(lambda ws, error: pytest.fail("a handler is called"))
        for kind in ("alone", "group"):
            async with app.test_client() as client, client.websocket(f"/{kind}") as ws:
                await ws.close(4000, "bye")
            levels = {(record.levelname, record.getMessage()) for record in caplog.records if record.name == "microws"}
            assert levels == {("DEBUG", f"/{kind}: the view ended with 4000 bye")}
            caplog.clear()

    @pytest.mark.parametrize("make_status", [404, 500])
    async def test_an_exception_alone_in_a_group_is_that_exception(self, make_status, caplog):
        def make_error():
            error = HTTPException(404, "alone") if make_status == 404 else ValueError("secret")
            return ExceptionGroup("", [ExceptionGroup("", [error])])

        app = app_that_raises(make_error)
        assert (await ask(app)).status == make_status
        assert (await refusal_of(app)).status == make_status
        if make_status == 404:
            assert await ending_of(app, "/block") == (3404, "alone")
            assert not caplog.records

    @pytest.mark.parametrize("call", ["receive", "receive_text", "receive_json"])
    async def test_a_time_out_of_receive_that_no_view_catches_is_one_line_in_the_log(self, call, caplog):
        app = App()

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                await getattr(ws, call)(timeout=0.01)

        line = view.__code__.co_firstlineno + 3
        assert await ending_of(app) == (1011, "no message within 0.01 s")
        [record] = [record for record in caplog.records if record.levelname == "ERROR"]
        assert record.exc_info is None
        assert re.fullmatch(
            rf"/: unexpected TimeoutError, id [0-9a-f]{{8}}, at {re.escape(__file__)}:{line}: "
            r"ws\.receive\(timeout=0\.01\) got no message within 0\.01 s; catch TimeoutError to go on, or leave .*",
            record.getMessage(),
        )

    async def test_several_exceptions_in_a_group_are_an_unexpected_error(self, caplog):
        app = app_that_raises(lambda: ExceptionGroup("several", [HTTPException(404), ValueError("secret")]))
        assert (await ask(app)).status == 500
        assert (await ending_of(app, "/block"))[0] == 1011
        assert "ValueError: secret" in caplog.text

    async def test_an_error_of_a_task_that_ends_the_view_beats_the_disconnect_of_its_sibling(self):
        app = App()

        @app.websocket_route("/")
        async def view(ws):
            async with ws, anyio.create_task_group() as tasks:
                tasks.start_soon(fail)
                await ws.receive()

        async def fail():
            raise HTTPException(409, "conflict")

        assert await ending_of(app) == (3409, "conflict")

    async def test_an_error_after_the_handshake_was_refused_is_logged_too(self, caplog):
        app = App()

        @app.websocket_route("/")
        async def view(ws):
            await ws.reject(402, "pay")
            raise LookupError("behind it")

        rejection = await refusal_of(app)
        assert (rejection.status, rejection.body) == (402, b"pay")
        assert "LookupError: behind it" in caplog.text

    async def test_an_error_after_the_close_is_logged_too(self, caplog):
        app = App()

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                await ws.send("x")
            raise LookupError("behind it")

        assert await ask_websocket(app) == "x"
        assert "LookupError: behind it" in caplog.text

    @pytest.mark.parametrize("headers", [{"bad\n": "x"}, {"content-length": "3"}])
    async def test_an_http_exception_that_cannot_be_sent_is_a_500(self, headers, caplog):
        app = app_that_raises(lambda: HTTPException(401, headers=headers))
        assert (await ask(app)).status == 500
        assert (await refusal_of(app)).status == 500
        assert "header" in caplog.text

    async def test_a_path_writes_no_line_of_its_own_into_the_log(self, caplog):
        app = both_kinds()
        app.before_request(lambda request: 1 / 0)
        await ask(app, "/http/a%0AERROR forged")
        assert "\nERROR forged" not in caplog.text
        assert "/http/a%0AERROR%20forged: unexpected error" in caplog.text


class TestErrorHandlers:
    @pytest.mark.parametrize(
        ("key", "make_error"),
        [
            (DomainError, DomainError),
            (Exception, DomainError),
            (HTTPException, lambda: HTTPException(402)),
            (402, lambda: HTTPException(402)),
            (500, DomainError),
        ],
    )
    async def test_one_answers_for_both_kinds(self, key, make_error):
        app = app_that_raises(make_error)

        @app.error_handler(key)
        async def handler(connection, error):
            return {"path": connection.path, "error": type(error).__name__}, 418

        response, rejection = await ask(app), await refusal_of(app)
        assert (response.status, rejection.status) == (418, 418)
        assert response.json() == {"path": "/", "error": type(make_error()).__name__}
        assert rejection.body == response.body

    async def test_it_may_be_a_plain_function_and_return_whatever_a_view_may(self):
        for answer, status, text in (("x", 200, "x"), (None, 204, ""), (Response("x", 410), 410, "x")):
            app = app_that_raises(DomainError)
            app.error_handler(DomainError)(lambda request, error, answer=answer: answer)
            response = await ask(app)
            assert (response.status, response.text) == (status, text)

    async def test_what_a_handler_of_its_class_answers_is_not_logged_and_what_500s_does_is(self, caplog):
        app = app_that_raises(DomainError)
        app.error_handler(DomainError)(lambda connection, error: "expected")
        await ask(app)
        await refusal_of(app)
        assert not caplog.records
        app = app_that_raises(DomainError)
        app.error_handler(500)(lambda connection, error: ("sorry", 500))
        assert (await ask(app)).text == "sorry"
        assert (await refusal_of(app)).body == b"sorry"
        assert caplog.text.count("DomainError") >= 2
        assert len(caplog.records) == 2

    @pytest.mark.parametrize("path", ["/accepted", "/block"])
    async def test_after_accept_it_may_send_and_close_and_then_the_default_does_nothing(self, path, caplog):
        app = app_that_raises(DomainError)

        @app.error_handler(DomainError)
        async def handler(ws, error):
            await ws.send("sorry")
            await ws.close(4000, "handled")

        async with app.test_client() as client, client.websocket(path) as ws:
            assert await ws.receive() == "sorry"
            with pytest.raises(WebSocketDisconnect) as caught:
                await ws.receive()
        assert (caught.value.code, caught.value.reason) == (4000, "handled")
        assert not caplog.records

    @pytest.mark.parametrize("path", ["/accepted", "/block"])
    async def test_what_it_leaves_open_is_closed_as_without_it(self, path, caplog):
        app = app_that_raises(DomainError)
        app.error_handler(DomainError)(lambda ws, error: "for HTTP")
        assert (await ending_of(app, path))[0] == 1011
        assert "DomainError" in caplog.text
        assert await ending_of(app_that_raises(lambda: HTTPException(404)), path) == (3404, "Not Found")

    async def test_before_accept_it_may_reject(self):
        app = app_that_raises(DomainError)

        @app.error_handler(DomainError)
        async def handler(ws, error):
            await ws.reject(402, "pay")

        rejection = await refusal_of(app)
        assert (rejection.status, rejection.body) == (402, b"pay")

    async def test_before_accept_what_it_leaves_open_is_refused_as_without_it(self, caplog):
        app = app_that_raises(DomainError)
        app.error_handler(DomainError)(lambda ws, error: None)
        assert (await refusal_of(app)).status == 500
        assert "DomainError" in caplog.text

    async def test_an_error_in_it_is_logged_with_the_first_and_answered_once(self, caplog):
        app = app_that_raises(lambda: DomainError("the first"))

        @app.error_handler(DomainError)
        async def handler(connection, error):
            raise LookupError("the second")

        async def check(status, text):
            assert status == 500
            assert ID.search(text)[1] in caplog.text
            assert "DomainError: the first" in caplog.text
            assert "LookupError: the second" in caplog.text
            assert len(caplog.records) == 1
            caplog.clear()

        response = await ask(app)
        await check(response.status, response.text)
        rejection = await refusal_of(app)
        await check(rejection.status, rejection.body.decode())
        for path in ("/accepted", "/block"):
            code, reason = await ending_of(app, path)
            await check(code - 511, reason)

    async def test_it_may_raise_an_http_exception_instead(self, caplog):
        app = app_that_raises(DomainError)

        @app.error_handler(DomainError)
        async def handler(connection, error):
            raise HTTPException(409, "conflict")

        assert (await ask(app)).text == "conflict"
        assert (await refusal_of(app)).body == b"conflict"
        for path in ("/accepted", "/block"):
            assert await ending_of(app, path) == (3409, "conflict")
        assert not caplog.records

    async def test_what_it_returns_has_to_be_an_answer(self, caplog):
        app = app_that_raises(DomainError)
        app.error_handler(DomainError)(lambda connection, error: object())
        assert (await ask(app)).status == 500
        assert (await refusal_of(app)).status == 500
        assert "expected str, bytes, dict" in caplog.text

    async def test_an_answer_of_it_that_cannot_be_sent_gives_way_to_the_default(self, tmp_path):
        app = App()
        app.error_handler(404)(lambda request, error: FileResponse(tmp_path / "absent.html"))
        response = await ask(app, "/nowhere")
        assert (response.status, response.text) == (404, "Not Found")

    async def test_one_whose_client_has_left_is_no_error(self, caplog):
        app = App()

        @app.websocket_route("/")
        async def view(ws):
            await ws.accept()
            try:
                await ws.receive()
            except WebSocketDisconnect:
                raise DomainError from None

        @app.error_handler(DomainError)
        async def handler(ws, error):
            await ws.send("sorry")

        async with app.test_client() as client, client.websocket("/"):
            pass
        assert not caplog.records


class TestResponsesThatFail:
    async def test_before_the_response_has_begun_the_error_is_answered(self, tmp_path):
        app = App()
        app.add_route(lambda: FileResponse(tmp_path / "absent"), "/")
        assert (await ask(app)).status == 404

    async def test_after_it_has_begun_the_error_leaves_the_app_so_that_the_server_aborts(self):
        app = App()

        @app.get("/")
        async def page():
            async def chunks():
                yield "part"
                raise DomainError("within it")

            return StreamingResponse(chunks())

        app.error_handler(DomainError)(lambda request, error: pytest.fail("a handler is called"))
        async with app.test_client() as client, client.stream("GET", "/") as response:
            iterator = response.iter_bytes()
            assert await anext(iterator) == b"part"
            with pytest.raises(DomainError, match="within it"):
                await anext(iterator)

    async def test_a_mounted_app_that_fails_is_answered_before_it_has_begun_and_aborted_after(self, caplog):
        async def mounted(scope, receive, send):
            if scope["path"] == "/mounted/late":
                await send({"type": "http.response.start", "status": 200, "headers": []})
            raise DomainError("secret")

        app = App()
        app.mount("/mounted", mounted)
        assert (await ask(app, "/mounted/early")).status == 500
        with pytest.raises(DomainError):
            await ask(app, "/mounted/late")

    async def test_a_client_that_leaves_within_its_request_is_no_error(self, caplog):
        app = App()
        errors = []

        @app.post("/")
        async def view(request):
            try:
                await request.body()
            except ClientDisconnect as error:
                errors.append(error)
                raise

        async def body():
            yield b"part"
            await anyio.sleep_forever()

        async with app.test_client(timeout=0.1) as client:
            with pytest.raises(TimeoutError):
                await client.post("/", content=body())
        assert len(errors) == 1
        assert not caplog.records

    async def test_a_client_that_leaves_within_request_and_response_is_no_error(self, caplog):
        app = App()

        class Mirror(Response):
            async def __call__(self, scope, receive, send):
                await send(self._start())
                async for chunk in self.request.stream():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})

        @app.post("/")
        async def view(request):
            response = Mirror()
            response.request = request
            return response

        async def body():
            yield b"part"
            await anyio.sleep_forever()

        async with app.test_client() as client, client.stream("POST", "/", content=body()) as response:
            async for chunk in response.iter_bytes():
                assert chunk == b"part"
                break
        assert not caplog.records


class Body:
    """A body of so many chunks, after which its client falls silent or ends."""

    def __init__(self, chunks, *, endless=False):
        self._chunks = chunks
        self._endless = endless

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self._chunks:
            self._chunks -= 1
            return b"x" * 100
        if self._endless:
            await anyio.sleep_forever()
        raise StopAsyncIteration


class TestBodies:
    def app(self, **settings):
        app = App(**settings)

        @app.post("/read")
        async def read(request):
            return str(len(await request.body()))

        @app.post("/ignore")
        async def ignore(request):
            return "ignored"

        @app.post("/json")
        async def json(request):
            return {"value": await request.json()}

        @app.post("/text")
        async def text(request):
            return await request.text()

        @app.post("/form")
        async def form(request):
            return dict(await request.form())

        return app

    @pytest.mark.parametrize(("size", "status"), [(0, 200), (1000, 200), (1001, 413)])
    async def test_one_over_the_limit_is_413(self, size, status):
        app = self.app(max_body_size=1000)
        assert (await ask(app, "/read", method="POST", content=b"x" * size)).status == status

    async def test_the_default_limit_is_a_mebibyte(self):
        for size, status in ((1 << 20, 200), ((1 << 20) + 1, 413)):
            assert (await ask(self.app(), "/read", method="POST", content=b"x" * size)).status == status

    async def test_a_limit_of_0_allows_none(self):
        assert (await ask(self.app(max_body_size=0), "/read", method="POST", content=b"")).status == 200
        assert (await ask(self.app(max_body_size=0), "/read", method="POST", content=b"x")).status == 413

    async def test_a_length_over_the_limit_is_413_at_once(self):
        async with self.app(max_body_size=1000).test_client() as client:
            start = anyio.current_time()
            options = {"content": Body(1, endless=True), "headers": {"content-length": "1001"}}
            async with client.stream("POST", "/read", **options) as response:
                assert response.status == 413
                assert await anext(response.iter_bytes()) == b"the request's body is over 1000 bytes"
                assert anyio.current_time() - start < 0.5

    async def test_one_without_a_length_is_413_as_soon_as_it_is_over(self):
        body = Body(100)
        assert (await ask(self.app(max_body_size=1000), "/read", method="POST", content=body)).status == 413

    @pytest.mark.parametrize("path", ["/ignore", "/read"])
    async def test_the_rest_of_it_is_discarded_before_the_response_ends_so_that_the_client_can_read_it(self, path):
        events = [{"type": "http.request", "body": b"x" * 100, "more_body": True} for _ in range(80)]
        events.append({"type": "http.request", "body": b"", "more_body": False})
        sent = []

        async def receive():
            return events.pop(0)

        async def send(event):
            sent.append((event, len(events)))

        scope = {"type": "http", "http_version": "1.1", "method": "POST", "headers": []}
        with anyio.fail_after(5):
            await self.app(max_body_size=1000)({**scope, "path": path}, receive, send)
        (start, before), (body, _), (end, left) = sent
        assert start["status"] == (200 if path == "/ignore" else 413)
        assert before > 60
        assert body["more_body"]
        assert (end, left) == ({"type": "http.response.body", "body": b""}, 0)

    async def test_a_stream_that_answers_a_body_nobody_reads_is_whole(self):
        app = App()
        app.add_route(lambda: StreamingResponse(iter("abc")), "/", methods=["POST"])
        assert (await ask(app, method="POST", content=Body(3))).text == "abc"

    async def test_a_client_that_leaves_meanwhile_is_no_error(self):
        async def receive():
            return {"type": "http.disconnect"}

        async def send(event):
            pass

        scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/ignore", "headers": []}
        with anyio.fail_after(0.5):
            await self.app()(scope, receive, send)

    async def test_a_mounted_app_reads_its_body_itself(self):
        async def mounted(scope, receive, send):
            assert (await receive())["body"] == b"x"
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"mounted"})

        app = App()
        app.mount("/mounted", mounted)
        with anyio.fail_after(0.5):
            assert (await ask(app, "/mounted/", method="POST", content=b"x")).text == "mounted"

    async def test_a_client_that_sends_no_more_holds_the_app_up_for_a_second_at_most(self):
        app, answered = self.app(), []

        async def send(event):
            if event.get("body") == b"ignored":
                answered.append(anyio.current_time())

        async def serve(headers):
            scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/ignore", "headers": headers}
            await app(scope, anyio.sleep_forever, send)

        start = anyio.current_time()
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for headers in ([], [(b"expect", b"100-continue")]):
                    tasks.start_soon(serve, headers)
        assert len(answered) == 2
        assert max(answered) - start < 0.5
        assert anyio.current_time() - start < 1.5

    async def test_a_request_without_a_body_is_not_waited_for(self):
        async def receive():
            pytest.fail("the app waits for a body")

        async def send(event):
            pass

        app = App()
        app.add_route(lambda: "x", "/")
        scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "headers": []}
        await app(scope, receive, send)

    @pytest.mark.parametrize(
        ("body", "says"),
        [(b"", "invalid JSON"), (b"{", "invalid JSON"), (b"NaN", "invalid JSON"), (b'"\xff"', "invalid JSON")],
    )
    async def test_bad_json_is_400_with_the_decoders_words(self, body, says):
        response = await ask(self.app(), "/json", method="POST", content=body)
        assert response.status == 400
        assert says in response.text

    async def test_json_does_not_look_at_the_content_type(self):
        headers = {"content-type": "text/plain"}
        response = await ask(self.app(), "/json", method="POST", content=b"[1]", headers=headers)
        assert response.json() == {"value": [1]}

    @pytest.mark.parametrize(
        ("content_type", "body"), [("text/plain; charset=nope", b"x"), ("text/plain; charset=ascii", b"\xff")]
    )
    async def test_a_wrong_charset_is_400(self, content_type, body):
        headers = {"content-type": content_type}
        assert (await ask(self.app(), "/text", method="POST", content=body, headers=headers)).status == 400

    async def test_a_form_that_is_none_is_415_and_a_bad_one_400(self):
        assert (await ask(self.app(), "/form", method="POST", content=b"x")).status == 415
        headers = {"content-type": "multipart/form-data"}
        assert (await ask(self.app(), "/form", method="POST", content=b"x", headers=headers)).status == 400
        assert (await ask(self.app(), "/form", method="POST", data={"a": "b"})).json() == {"a": "b"}


UNSAFE = ["POST", "PUT", "PATCH", "DELETE", "PURGE"]
SAFE = ["GET", "HEAD", "OPTIONS"]


FOREIGN = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}


class TestOriginsOfRequests:
    def app(self, **settings):
        app = App(**settings)
        app.add_route(lambda: "done", "/", methods=UNSAFE + SAFE)
        return app

    @pytest.mark.parametrize(
        "headers",
        [
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
            {"sec-fetch-site": "same-site"},
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": "http://testserver:8000"},
            {"origin": "nonsense"},
        ],
    )
    async def test_an_unsafe_method_from_a_foreign_page_is_403_and_a_safe_one_passes(self, headers, caplog):
        async with self.app().test_client() as client:
            for method in UNSAFE:
                caplog.clear()
                response = await client.request(method, "/", headers=headers)
                assert (response.status, response.text) == (403, "origin not allowed")
                assert "App(origins=[" in caplog.text
            for method in SAFE:
                assert (await client.request(method, "/", headers=headers)).status == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"origin": "http://testserver"},
            {"sec-fetch-site": "same-origin", "origin": "http://testserver"},
            {"sec-fetch-site": "same-origin"},
            {"sec-fetch-site": "none"},
        ],
    )
    async def test_our_own_pages_and_clients_that_are_no_browsers_pass(self, headers):
        async with self.app().test_client() as client:
            for method in UNSAFE:
                assert (await client.request(method, "/", headers=headers)).status == 200

    async def test_other_origins_can_be_allowed_and_the_check_turned_off(self):
        headers = {"sec-fetch-site": "cross-site", "origin": "https://app.example"}
        allowed = self.app(origins=["https://app.example"])
        assert (await ask(allowed, method="POST", headers=headers)).status == 200
        foreign = {**headers, "origin": "https://evil.example"}
        assert (await ask(allowed, method="POST", headers=foreign)).status == 403
        assert (await ask(self.app(origins=["*"]), method="POST", headers=foreign)).status == 200

    async def test_hooks_and_view_do_not_run_for_a_foreign_page(self):
        app, log = self.app(), []
        app.before_request(lambda request: log.append("hook"))
        await ask(app, method="POST", headers={"sec-fetch-site": "cross-site"})
        assert log == []


class TestOriginsOfWebSockets:
    def app(self, route_origins=None, **settings):
        app = App(**settings)

        @app.websocket_route("/", origins=route_origins)
        async def view(ws):
            async with ws:
                await ws.send("in")

        return app

    @pytest.mark.parametrize(
        "origin", ["http://evil.example", "null", "http://testserver:8000", "ftp://testserver", "nonsense", ""]
    )
    async def test_a_foreign_page_and_null_get_403_with_both_values_and_the_line_in_the_log(self, origin, caplog):
        rejection = await refusal_of(self.app(), origin=origin)
        assert (rejection.status, rejection.code) == (403, 3403)
        assert repr(origin) in caplog.text
        assert "'testserver'" in caplog.text
        assert "App(origins=[" in caplog.text

    @pytest.mark.parametrize(
        "origin", [None, "http://testserver", "http://TESTSERVER", "https://testserver", "http://testserver:80"]
    )
    async def test_the_same_origin_and_no_origin_pass(self, origin):
        assert await ask_websocket(self.app(), origin=origin) == "in"

    async def test_a_list_allows_these_as_well(self):
        app = self.app(origins=["https://app.example"])
        assert await ask_websocket(app, origin="https://app.example") == "in"
        assert await ask_websocket(app, origin="http://testserver") == "in"
        assert (await refusal_of(app, origin="https://other.example")).status == 403
        assert (await refusal_of(app, origin="null")).status == 403

    async def test_a_star_turns_it_off(self):
        for origin in ("https://other.example", "null", "nonsense"):
            assert await ask_websocket(self.app(origins=["*"]), origin=origin) == "in"

    async def test_a_route_may_have_its_own(self, caplog):
        app = self.app(["https://route.example"], origins=["https://app.example"])
        assert await ask_websocket(app, origin="https://route.example") == "in"
        assert (await refusal_of(app, origin="https://app.example")).status == 403
        assert caplog.messages[-1].endswith('to allow this origin: websocket_route(…, origins=["https://app.example"])')
        assert await ask_websocket(self.app(["*"]), origin="null") == "in"
        assert (await refusal_of(self.app([], origins=["*"]), origin="https://a.example")).status == 403

    async def test_hooks_and_view_do_not_run_for_a_foreign_page(self):
        app, log = self.app(), []
        app.before_websocket(lambda ws: log.append("hook"))
        await refusal_of(app, origin="https://evil.example")
        assert log == []


class TestOriginsOfMounts:
    def app(self, *, mounted=None, mount=None, **settings):
        async def echo(scope, receive, send):
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.accept"})
                await send({"type": "websocket.send", "text": "in"})
                await send({"type": "websocket.close"})
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})

        app = App(**settings)
        app.mount("/m", mounted or echo, **(mount or {}))
        return app

    async def test_a_foreign_page_gets_403_in_front_of_a_mounted_app_too(self, caplog):
        app = self.app()
        for method in UNSAFE:
            response = await ask(app, "/m/x", method=method, headers=FOREIGN)
            assert (response.status, response.text) == (403, "origin not allowed")
        rejection = await refusal_of(app, "/m/x", origin="https://evil.example")
        assert (rejection.status, rejection.code) == (403, 3403)
        assert caplog.text.count('App(origins=["https://evil.example"])') == len(UNSAFE) + 1

    async def test_safe_methods_own_pages_and_clients_that_are_no_browsers_pass(self):
        app = self.app()
        for method in SAFE:
            assert (await ask(app, "/m/x", method=method, headers=FOREIGN)).status == 200
        for headers in ({}, {"origin": "http://testserver"}, {"sec-fetch-site": "same-origin"}):
            assert (await ask(app, "/m/x", method="POST", headers=headers)).status == 200
        for origin in (None, "http://testserver"):
            assert await ask_websocket(app, "/m/x", origin=origin) == "in"

    @pytest.mark.parametrize(
        "settings", [{"origins": ["https://evil.example"]}, {"origins": ["*"]}, {"mount": {"origins": False}}]
    )
    async def test_the_apps_origins_may_pass_and_the_mount_can_turn_the_rule_off(self, settings):
        app = self.app(**settings)
        assert (await ask(app, "/m/x", method="POST", headers=FOREIGN)).text == "done"
        assert await ask_websocket(app, "/m/x", origin="https://evil.example") == "in"

    async def test_an_included_mount_keeps_its_choice(self):
        for origins, status in ((True, 403), (False, 200)):
            app = App()
            app.include(self.app(mount={"origins": origins}), "/in")
            assert (await ask(app, "/in/m/x", method="POST", headers=FOREIGN)).status == status

    async def test_another_app_of_ours_keeps_to_its_own_origins(self):
        for outer, inner, status in ((["*"], [], 403), (None, ["https://evil.example"], 200)):
            app = self.app(mounted=self.inner(origins=inner), origins=outer)
            await self.expect(app, "/m/x", status)

    def inner(self, **settings):
        app = App(**settings)
        app.add_route(lambda: "done", "/x", methods=["POST"])

        @app.websocket_route("/x")
        async def view(ws):
            async with ws:
                await ws.send("in")

        return app

    async def expect(self, app, path, status):
        """What a page of https://evil.example gets, by POST and by WebSocket."""
        assert (await ask(app, path, method="POST", headers=FOREIGN)).status == status
        if status == 200:
            assert await ask_websocket(app, path, origin="https://evil.example") == "in"
        else:
            assert (await refusal_of(app, path, origin="https://evil.example")).status == status

    @pytest.mark.parametrize("between", ["nothing", "an app", "middleware"])
    async def test_one_of_ours_without_origins_takes_over_those_of_the_app_that_mounts_it(self, between):
        mounted, path = self.inner(), "/m/x"
        if between == "an app":
            mounted, path = self.app(mounted=mounted), "/m/m/x"
        elif between == "middleware":
            inner = mounted

            async def mounted(scope, receive, send):
                await inner(dict(scope), receive, send)

        await self.expect(self.app(mounted=mounted, origins=["https://evil.example"]), path, 200)
        await self.expect(self.app(mounted=mounted, origins=["https://app.example"]), path, 403)
        await self.expect(self.app(mounted=mounted), path, 403)

    async def test_a_page_may_send_what_the_answer_to_its_preflight_allows(self):
        app = self.app(mounted=self.inner(), origins=["https://evil.example"])
        question = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        answer = await ask(app, "/m/x", method="OPTIONS", headers=question)
        assert answer.headers["access-control-allow-origin"] == "https://evil.example"
        response = await ask(app, "/m/x", method="POST", headers={"origin": "https://evil.example"})
        assert (response.text, response.headers["access-control-allow-origin"]) == ("done", "https://evil.example")

    async def test_it_takes_over_nothing_where_it_is_mounted_without_the_rule(self):
        alone = {"mount": {"origins": False}}
        await self.expect(self.app(mounted=self.inner(), origins=["*"], **alone), "/m/x", 403)
        around = self.app(mounted=self.app(mounted=self.inner(), **alone), origins=["*"])
        await self.expect(around, "/m/m/x", 403)

    async def test_the_log_says_to_which_app_the_origin_has_to_be_added(self, caplog):
        own = self.inner(origins=[])
        for app, path, where in (
            (self.app(mounted=self.inner(), origins=[]), "/m/x", ""),
            (self.app(mounted=own), "/m/x", " of the app mounted at /m"),
            (self.app(mounted=self.app(mounted=own)), "/m/m/x", " of the app mounted at /m/m"),
            (self.app(mounted=self.app(mounted=self.inner(), origins=[])), "/m/m/x", " of the app mounted at /m"),
            (self.app(mounted=self.inner(), mount={"origins": False}), "/m/x", " of the app mounted at /m"),
        ):
            caplog.clear()
            await self.expect(app, path, 403)
            line = f'to allow this origin: App(origins=["https://evil.example"]){where}'
            assert [message.endswith(line) for message in caplog.messages if "Origin" in message] == [True, True]


class TestSubscribe:
    def app(self, pattern, **options):
        app = App()

        @app.websocket_route(pattern, **options)
        async def view(ws, **params):
            async with ws:
                async for _ in ws:
                    pass

        return app

    async def test_it_takes_effect_before_the_handshake_is_answered(self):
        app = self.app("/chat/{room}", subscribe="chat:{room}")
        async with app.test_client() as client, client.websocket("/chat/a") as ws:
            assert (await app.publish("chat:a", "hi")).subscribers == 1
            assert await ws.receive() == "hi"
        assert app.hub.statistics().subscribers == 0

    async def test_it_may_name_several_and_uses_what_the_converters_make(self):
        app = self.app("/{a:int}/{b}", subscribe=["a:{a}", "b:{b}", "all"])
        async with app.test_client() as client, client.websocket("/007/x%2Fy") as ws:
            for topic in ("a:7", "b:x/y", "all"):
                assert (await app.publish(topic, topic)).subscribers == 1
                assert await ws.receive() == topic

    async def test_braces_of_a_value_are_no_template(self):
        app = self.app("/{room}", subscribe="chat:{room}")
        async with app.test_client() as client, client.websocket("/%7Broom%7D"):
            assert (await app.publish("chat:{room}", "hi")).subscribers == 1

    @pytest.mark.parametrize("room", ["x" * 251, "%0A", "a%7Fb", "%C2%85", "ü" * 126])
    async def test_a_topic_that_cannot_be_is_400_before_accept(self, room):
        app = self.app("/{room}", subscribe="chat:{room}")
        rejection = await refusal_of(app, f"/{room}")
        assert (rejection.status, rejection.code) == (400, 3400)
        assert rejection.body.startswith(b"invalid topic: a topic")
        assert app.hub.statistics().subscribers == 0

    async def test_the_longest_topic_is_255_bytes(self):
        app = self.app("/{room}", subscribe="chat:{room}")
        async with app.test_client() as client, client.websocket("/" + "x" * 250):
            assert (await app.publish("chat:" + "x" * 250, "hi")).subscribers == 1


class TestAskedOfTheServer:
    async def test_a_message_limit_of_the_command_line_wins(self):
        app = App(max_message_size=10)

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                await ws.send(str(len(await ws.receive())))

        def asked(max_message_size):
            async def wrapped(scope, receive, send):
                extensions = {**scope.get("extensions", {}), "microws": {"max_message_size": max_message_size}}
                await app({**scope, "extensions": extensions}, receive, send)

            return wrapped

        async with app.test_client() as client:
            for server, size, closes in ((app, 11, True), (asked(20), 20, False), (asked(20), 21, True)):
                client.app = server
                async with client.websocket("/") as ws:
                    await ws.send("x" * size)
                    if not closes:
                        assert await ws.receive() == str(size)
                        continue
                    with pytest.raises(WebSocketDisconnect) as caught:
                        await ws.receive()
                    assert caught.value.code == 1009


async def test_a_server_that_speaks_of_a_websocket_without_connect_gets_no_answer():
    async def receive():
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(event):
        pytest.fail("an answer")

    scope = {"type": "websocket", "path": "/ws/x", "headers": []}
    await both_kinds()(scope, receive, send)


class TestOnClose:
    """What a view or hook asks to be called when everything is over."""

    async def test_it_is_called_behind_the_response_and_the_last_one_first(self):
        app, log = App(), []

        @app.before_request
        async def before(request):
            request.on_close(log.append, "of the hook")

        @app.after_request
        async def after(request, response):
            log.append("after_request")

        @app.get("/")
        async def view(request):
            async def release(name):
                await checkpoint()
                log.append(name)

            async def source():
                log.append("stream begins")
                yield "x"
                await checkpoint()
                log.append("stream ends")

            request.on_close(release, "async")
            request.on_close(log.append, "plain")
            return StreamingResponse(source())

        async with app.test_client() as client:
            await client.get("/")
        assert log == ["after_request", "stream begins", "stream ends", "plain", "async", "of the hook"]

    @pytest.mark.parametrize(
        "way",
        ["answers", "fails", "denies", "is not found", "breaks off", "is a file that is not there", "is too large"],
    )
    async def test_it_is_called_once_whatever_the_answer(self, way):
        app, log = App(max_body_size=1), []

        @app.error_handler(404)
        async def missing(request, error):
            if way == "is not found":
                request.on_close(log.append, way)
            return "missing", 404

        @app.get("/")
        @app.post("/")
        async def view(request):
            async def source():
                yield "x"
                raise LookupError

            request.on_close(log.append, way)
            if way == "fails":
                raise LookupError
            if way == "denies":
                raise HTTPException(403)
            if way == "breaks off":
                return StreamingResponse(source())
            if way == "is a file that is not there":
                return FileResponse("/nowhere")
            if way == "is too large":
                await request.body()
            return "x"

        with suppress(Exception):
            async with app.test_client() as client:
                path = "/no" if way == "is not found" else "/"
                await client.request("POST" if way == "is too large" else "GET", path, content=b"xx")
        assert log == [way]

    @pytest.mark.parametrize("when", ["before the response", "within the response"])
    async def test_it_is_called_when_the_client_leaves(self, when):
        app, called, closed = App(), anyio.Event(), anyio.Event()

        async def close():
            await checkpoint()
            closed.set()

        @app.get("/")
        async def view(request):
            async def source():
                called.set()
                yield "x"
                await anyio.sleep_forever()

            request.on_close(close)
            if when == "before the response":
                called.set()
                await request.wait_disconnect()
            return StreamingResponse(source())

        async with serving(app) as served:
            async with requesting(served):
                await called.wait()
            await closed.wait()

    async def test_it_is_called_when_the_request_is_cancelled(self):
        app, log, called = App(), [], anyio.Event()
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}

        async def close():
            await checkpoint()
            log.append("closed")

        @app.get("/")
        async def view(request):
            request.on_close(close)
            request.on_close(close)
            called.set()
            await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app, scope, anyio.sleep_forever, anyio.sleep)
            await called.wait()
            tasks.cancel_scope.cancel()
        assert log == ["closed"] * 2

    async def test_a_cancelled_task_of_asyncio_calls_all_of_them_and_stays_cancelled(self, anyio_backend_name):
        if anyio_backend_name != "asyncio":
            return
        app, log, called = App(), [], anyio.Event()
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}

        async def close(number):
            called.set()
            await asyncio.sleep(0.01)
            log.append(number)

        @app.get("/")
        async def view(request):
            request.on_close(log.append, "plain")
            request.on_close(close, 2)
            request.on_close(close, 1)
            return "x"

        async def send(_):
            pass

        task = asyncio.create_task(app(scope, anyio.sleep_forever, send))
        await called.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == [2, "plain"]

    async def test_one_that_fails_or_hangs_keeps_none_from_its_turn(self, caplog):
        app, log = App(close_timeout=0.01), []

        async def note():
            log.append("first")

        async def fail():
            raise LookupError("lost")

        async def hang():
            await anyio.sleep_forever()

        @app.get("/")
        async def view(request):
            request.on_close(note)
            request.on_close(fail)
            request.on_close(hang)
            return "x"

        with suppress(LookupError):
            async with app.test_client() as client:
                assert (await client.get("/")).text == "x"
        assert log == ["first"]
        # On a busy machine the others take as long as the limit too.
        assert re.search(r"/: \S*hang \(\S+test_dispatch\.py:\d+\) of on_close did not end within 0\.01 s", caplog.text)
        assert re.search(r"/: a function of on_close failed, id [0-9a-f]{8}", caplog.text)
        assert "LookupError: lost" in caplog.text

    async def test_its_error_is_raised_out_of_the_app(self):
        app, events = App(), []
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}

        async def fail():
            raise LookupError("lost")

        @app.get("/")
        async def view(request):
            request.on_close(fail)
            return "x"

        async def send(event):
            events.append(event["type"])

        with pytest.raises(LookupError, match="lost"):
            await app(scope, anyio.sleep_forever, send)
        assert events == ["http.response.start", "http.response.body"]

    async def test_it_may_ask_for_more_until_everything_is_over(self):
        app, log, kept = App(), [], []

        @app.get("/")
        async def view(request):
            kept.append(request)
            request.on_close(lambda: request.on_close(log.append, "more"))
            return "x"

        @app.get("/none")
        async def none(request):
            kept.append(request)
            return "x"

        async with app.test_client() as client:
            await client.get("/")
            await client.get("/none")
        assert log == ["more"]
        for request in kept:
            with pytest.raises(RuntimeError, match="everything was over"):
                request.on_close(log.append, "late")

    async def test_what_is_no_function_is_refused_with_the_call_to_write(self):
        app = App()

        @app.get("/")
        async def view(request):
            with pytest.raises(TypeError, match=r"such as on_close\(release, slot\), .*; got NoneType$"):
                request.on_close(print())
            return "x"

        async with app.test_client() as client:
            assert (await client.get("/")).text == "x"


class TestOnCloseOfWebSockets:
    @pytest.mark.parametrize(
        "way", ["returns", "fails", "rejects", "is refused", "hears the client leave", "is cancelled"]
    )
    async def test_it_is_called_once_behind_everything_else(self, way):
        app, log = App(close_timeout=0.05), []

        async def note(step):
            log.append(step)

        @app.before_websocket
        async def before(ws):
            # `async def`: a busy machine may need longer than close_timeout to start a thread.
            ws.on_close(note, "on_close")
            if way == "is refused":
                raise HTTPException(403)

        @app.after_websocket
        async def after(ws):
            log.append("after_websocket")

        @app.websocket_route("/")
        async def view(ws):
            async def help_out():
                try:
                    await anyio.sleep_forever()
                finally:
                    log.append("task")

            if way == "rejects":
                await ws.reject(400)
                return
            await ws.accept()
            ws.start_soon(help_out)
            await checkpoint()
            if way == "fails":
                raise LookupError
            if way == "hears the client leave":
                await ws.wait_closed()
            if way == "is cancelled":
                await anyio.sleep_forever()

        with suppress(WebSocketRejected, WebSocketDisconnect, LookupError):
            async with app.test_client() as client, client.websocket("/") as ws:
                await anyio.wait_all_tasks_blocked()
                await ws.close()
        assert [step for step in log if step != "task"] == ["after_websocket", "on_close"]
        assert log[-1] == "on_close"

    async def test_its_error_is_logged(self, caplog):
        app = App()

        async def fail():
            raise LookupError("lost")

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                ws.on_close(fail)

        with suppress(LookupError):
            async with app.test_client() as client, client.websocket("/") as ws:
                await ws.wait_closed()
        assert "/: a function of on_close failed" in caplog.text
