"""How a request reaches its view, and how an error becomes its answer."""

import asyncio
import re
from contextlib import suppress
from decimal import Decimal
from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint
from asking import ask, ask_websocket, call, ending_of, refusal_of
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
AFTER_ACCEPT = ("/accepted", "/block")


class DomainError(Exception):
    """An exception of the app's own."""


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
    app.get("/http/{name}")(lambda name: name)
    app.post("/http/{name}")(lambda name: name)

    @app.websocket_route("/ws/{name}")
    async def echo(ws, name):
        async with ws:
            await ws.send(name)

    return app


async def statuses_of(app, path="/"):
    """The status of a GET and that of a rejected handshake."""
    return (await ask(app, path)).status, (await refusal_of(app, path)).status


def names_of(event):
    return {name for name, _ in event["headers"]}


class TestNoRoute:
    ALLOW = "GET, HEAD, OPTIONS, POST"

    @pytest.mark.parametrize(
        ("method", "path", "status", "body", "headers"),
        [
            ("GET", "/nowhere", 404, b"Not Found", {}),
            ("DELETE", "/http/x", 405, b"Method Not Allowed", {"allow": ALLOW}),
            ("OPTIONS", "/http/x", 204, b"", {"allow": ALLOW}),
            ("HEAD", "/http/abc", 200, b"", {"content-length": "3"}),
            (
                "GET",
                "/ws/x",
                426,
                b"this path is a WebSocket: connect with a WebSocket client",
                {"upgrade": "websocket", "connection": "Upgrade"},
            ),
        ],
    )
    async def test_a_request_gets_its_status_body_and_headers(self, method, path, status, body, headers):
        response = await ask(both_kinds(), path, method=method)
        assert (response.status, response.body) == (status, body)
        assert {name: response.headers[name] for name in headers} == headers

    async def test_over_http2_a_426_has_no_header_that_is_forbidden_there(self):
        [start, *_] = await call(both_kinds(), "/ws/x", http_version="2")
        assert (start["status"], {b"connection", b"upgrade"} & names_of(start)) == (426, set())

    @pytest.mark.parametrize("path", ["/%00", "/http/a%00b", "/ws/a%00b", "/mounted/%00"])
    async def test_a_nul_in_the_path_is_400_for_both_kinds(self, path):
        app = both_kinds()

        async def mounted(scope, receive, send):
            assert scope["type"] == "lifespan", "the request reached it"

        app.mount("/mounted", mounted)
        assert await statuses_of(app, path) == (400, 400)

    async def test_a_handshake_gets_a_denial_and_handlers_by_status_answer(self):
        app = both_kinds()
        rejection = await refusal_of(app, "/nowhere")
        assert (rejection.status, rejection.code, rejection.body) == (404, 3404, b"Not Found")
        rejection = await refusal_of(app, "/http/x")
        assert (rejection.status, rejection.code, dict(rejection.headers)["allow"]) == (405, 3405, self.ALLOW)
        app.error_handler(404)(lambda connection, error: ({"lost": connection.path}, 404))
        app.error_handler(405)(lambda connection, error: ("wrong", 405, error.headers))
        assert (await ask(app, "/a b")).json() == {"lost": "/a b"}
        assert (await refusal_of(app, "/a b")).body == b'{"lost":"/a b"}'
        assert (await ask(app, "/http/x", method="PUT")).headers["allow"] == self.ALLOW
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
        ("path", "root_path", "location"),
        [
            ("/folder", "", "/folder/"),
            ("/file/", "", "/file"),
            ("/folder?a=1&b=%20", "", "/folder/?a=1&b=%20"),
            ("/name/%2Fevil.example", "", "/name/%2Fevil.example/"),
            ("/name/%5Cevil", "", "/name/%5Cevil/"),
            ("/name/ü?ü", "", "/name/%C3%BC/?%C3%BC"),
            ("/api v1/folder?x=1", "/api v1", "/api%20v1/folder/?x=1"),
        ],
    )
    async def test_http_is_redirected_to_the_only_form_that_exists(self, path, root_path, location):
        response = await ask(self.app(), path, client={"root_path": root_path})
        assert (response.status, response.headers["location"]) == (308, location)

    @pytest.mark.parametrize("query", [b"a=\\evil", b"a=\x00\r\n b", b"\xff", b"%", b"//evil.example"])
    async def test_no_query_string_makes_an_invalid_location(self, query):
        [start, *_] = await call(self.app(), "/folder", query_string=query)
        [location] = [value for name, value in start["headers"] if name == b"location"]
        assert start["status"] == 308
        assert re.fullmatch(rb"/folder/\?[!-\[\]-~]*", location)

    async def test_a_post_is_redirected_too_and_the_setting_turns_it_off(self):
        assert (await ask(self.app(), "/file/", method="POST")).status == 308
        app = self.app(redirect_slashes=False)
        assert [(await ask(app, path)).status for path in ("/folder", "/folder/")] == [404, 200]


class TestConverters:
    @pytest.mark.parametrize("path", ["/bad/x", "/bad/x/"])
    async def test_another_exception_of_it_is_a_500_for_both_kinds(self, path, caplog):
        def parse(text):
            raise LookupError("in the converter")

        app = App()
        app.add_converter("bad", ".+", parse=parse)
        app.add_route(lambda value: value, "/bad/{value:bad}")
        app.add_websocket_route(wait, "/bad/{value:bad}")
        response, rejection = await ask(app, path), await refusal_of(app, path)
        assert (response.status, rejection.status, rejection.code) == (500, 500, 3500)
        for body in (response.text, rejection.body.decode()):
            assert ID.search(body)[1] in caplog.text
            assert "converter" not in body


async def wait(ws, **params):
    async with ws:
        async for _ in ws:
            pass


class TestErrors:
    """One error has three answers: a response, a rejection, a close."""

    @pytest.mark.parametrize("status", [400, 404, 418, 500, 599])
    async def test_an_http_exception_is_its_response_its_rejection_its_close(self, status):
        cookies = [("set-cookie", "a=1"), ("set-cookie", "b=2")]
        app = app_that_raises(lambda: HTTPException(status, "why", headers=cookies))
        response, rejection = await ask(app), await refusal_of(app)
        assert (response.status, response.text, response.headers.getlist("set-cookie")) == (
            status,
            "why",
            ["a=1", "b=2"],
        )
        assert (rejection.status, rejection.body, rejection.code) == (status, b"why", 3000 + status)
        assert [header for header in rejection.headers if header in cookies] == cookies
        for path in AFTER_ACCEPT:
            assert await ending_of(app, path) == (3000 + status, "why")

    async def test_a_client_that_accepts_or_sends_json_gets_json(self):
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
        assert (await ask(app, method="POST", json=[])).json() == {"error": "taken"}
        assert (await ask(app, method="POST", content=b"x")).text == "taken"

    @pytest.mark.parametrize(
        ("detail", "body", "reason"),
        [
            ({"error": "no such room", "room": 5}, b'{"error":"no such room","room":5}', "no such room"),
            # What the app's json_default makes of it.
            ({"price": Decimal("1.5")}, b'{"price":"1.5"}', '{"price":"1.5"}'),
        ],
    )
    async def test_a_dict_is_json_and_its_error_the_reason(self, detail, body, reason):
        app = app_that_raises(lambda: HTTPException(404, detail), json_default=str)
        response, rejection = await ask(app), await refusal_of(app)
        assert (response.status, response.body) == (404, body)
        assert (rejection.status, rejection.body) == (404, body)
        for path in AFTER_ACCEPT:
            assert await ending_of(app, path) == (3404, reason)

    @pytest.mark.parametrize("make_error", [lambda: ValueError("secret"), lambda: DomainError("secret")])
    @pytest.mark.parametrize("code", [1011, 4999])
    async def test_any_other_exception_is_500_or_the_apps_code_with_an_id(self, make_error, code, caplog):
        app = app_that_raises(make_error, error_close_code=code)
        response, rejection = await ask(app), await refusal_of(app)
        assert (response.status, rejection.status, rejection.code) == (500, 500, 3500)
        said = [response.text, rejection.body.decode()]
        for path in AFTER_ACCEPT:
            closed_with, reason = await ending_of(app, path)
            assert closed_with == code
            said.append(reason)
        for text in said:
            assert ID.search(text)[1] in caplog.text
            assert not re.search("secret|Error[^ ]|Traceback|py", text.replace("Internal Server Error", ""))
        assert caplog.text.count("unexpected error") == 4
        assert caplog.text.count("Traceback") == 4

    async def test_in_debug_the_answers_say_the_exception(self):
        app = app_that_raises(lambda: ValueError("what is wrong"), debug=True)
        assert "ValueError: what is wrong" in (await ask(app)).text
        assert b"ValueError: what is wrong" in (await refusal_of(app)).body
        assert await ending_of(app, "/accepted") == (1011, "ValueError: what is wrong")

    @pytest.mark.parametrize("path", AFTER_ACCEPT)
    @pytest.mark.parametrize(
        ("make_error", "code", "words"),
        [
            (lambda text: HTTPException(400, text), 3400, ""),
            (InvalidMessage, 1007, ""),
            (PayloadTypeError, 1003, ""),
            (OSError, 1011, "OSError: "),
        ],
    )
    async def test_a_close_reason_is_cut_at_a_character(self, path, make_error, code, words):
        app = app_that_raises(lambda: make_error("ü" * 200), debug=True)
        assert await ending_of(app, path) == (code, words + "ü" * ((123 - len(words)) // 2))
        app = app_that_raises(lambda: make_error("x"), debug=True)
        assert await ending_of(app, path) == (code, words + "x")

    async def test_without_the_denial_extension_a_rejection_is_403_with_its_code(self):
        app = app_that_raises(lambda: HTTPException(402, "pay"))
        for path, code in (("/", 3402), ("/nowhere", 3404)):
            rejection = await refusal_of(app, path, client={"denial": False})
            assert (rejection.status, rejection.code) == (403, code)

    @pytest.mark.parametrize("kind", ["alone", "group"])
    async def test_a_disconnect_that_leaves_a_view_is_not_an_error(self, kind, caplog):
        caplog.set_level("DEBUG", logger="microws")
        app = App()

        @app.websocket_route("/", catch_disconnect=False)
        async def view(ws):
            await ws.accept()
            if kind == "group":
                async with anyio.create_task_group() as tasks:
                    for _ in range(2):
                        tasks.start_soon(ws.receive)
            await ws.receive()

        app.error_handler(Exception)(lambda ws, error: pytest.fail("a handler is called"))
        async with app.test_client() as client, client.websocket("/") as ws:
            await ws.close(4000, "bye")
        levels = {(record.levelname, record.getMessage()) for record in caplog.records if record.name == "microws"}
        assert levels == {("DEBUG", "/: the view ended with 4000 bye")}

    @pytest.mark.parametrize(
        ("errors", "status", "ending"),
        [
            (lambda: [HTTPException(404, "alone")], 404, (3404, "alone")),
            (lambda: [ValueError("secret")], 500, (1011, "internal error")),
            (lambda: [HTTPException(404), ValueError("secret")], 500, (1011, "internal error")),
        ],
    )
    async def test_the_only_exception_of_a_group_is_the_error(self, errors, status, ending, caplog):
        app = app_that_raises(lambda: ExceptionGroup("", [ExceptionGroup("", errors())]))
        assert await statuses_of(app) == (status, status)
        code, reason = await ending_of(app, "/block")
        assert (code, reason.partition(",")[0]) == ending
        assert ("ValueError: secret" in caplog.text) == (status == 500)

    @pytest.mark.parametrize("method", ["receive", "receive_text", "receive_json"])
    async def test_a_time_out_of_receive_is_one_line_in_the_log(self, method, caplog):
        app = App()

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                await getattr(ws, method)(timeout=0.01)

        line = view.__code__.co_firstlineno + 3
        assert await ending_of(app) == (1011, "no message within 0.01 s")
        [record] = [record for record in caplog.records if record.levelname == "ERROR"]
        assert record.exc_info is None
        assert re.fullmatch(
            rf"/: unexpected TimeoutError, id [0-9a-f]{{8}}, at {re.escape(__file__)}:{line}: "
            r"ws\.receive\(timeout=0\.01\) got no message within 0\.01 s; catch TimeoutError to go on, or leave .*",
            record.getMessage(),
        )

    async def test_an_error_of_a_task_beats_the_disconnect_of_its_sibling(self):
        app = App()

        @app.websocket_route("/")
        async def view(ws):
            async with ws, anyio.create_task_group() as tasks:
                tasks.start_soon(fail)
                await ws.receive()

        async def fail():
            raise HTTPException(409, "conflict")

        assert await ending_of(app) == (3409, "conflict")

    async def test_an_error_after_the_rejection_or_close_is_logged(self, caplog):
        app = App()

        @app.websocket_route("/{ends}")
        async def view(ws, ends):
            if ends == "reject":
                await ws.reject(402, "pay")
            else:
                async with ws:
                    await ws.send("x")
            raise LookupError(f"after {ends}")

        rejection = await refusal_of(app, "/reject")
        assert (rejection.status, rejection.body) == (402, b"pay")
        assert await ask_websocket(app, "/close") == "x"
        assert "LookupError: after reject" in caplog.text
        assert "LookupError: after close" in caplog.text

    @pytest.mark.parametrize("headers", [{"bad\n": "x"}, {"a": "b\nc"}, {"content-length": "3"}, ["not a pair"]])
    async def test_an_http_exception_with_an_invalid_header_is_a_500(self, headers, caplog):
        assert await statuses_of(app_that_raises(lambda: HTTPException(401, headers=headers))) == (500, 500)
        assert "header" in caplog.text

    async def test_a_path_cannot_forge_a_line_of_the_log(self, caplog):
        app = both_kinds()
        app.before_request(lambda request: 1 / 0)
        await ask(app, "/http/a%0AERROR forged")
        assert "\nERROR forged" not in caplog.text
        assert "/http/a%0AERROR%20forged: unexpected error" in caplog.text


def handled(make_error=DomainError, *, by, key=DomainError):
    """``app_that_raises`` with an error handler."""
    app = app_that_raises(make_error)
    app.error_handler(key)(by)
    return app


async def reject(ws, error):
    await ws.reject(402, "pay")


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
        async def handler(connection, error):
            return {"path": connection.path, "error": type(error).__name__}, 418

        app = handled(make_error, by=handler, key=key)
        response, rejection = await ask(app), await refusal_of(app)
        assert (response.status, rejection.status) == (418, 418)
        assert response.json() == {"path": "/", "error": type(make_error()).__name__}
        assert rejection.body == response.body

    @pytest.mark.parametrize(
        ("answer", "status", "text"), [("x", 200, "x"), (None, 204, ""), (Response("x", 410), 410, "x")]
    )
    async def test_it_may_return_what_a_view_may(self, answer, status, text, caplog):
        response = await ask(handled(by=lambda request, error: answer))
        assert (response.status, response.text) == (status, text)
        assert await statuses_of(handled(by=lambda connection, error: object())) == (500, 500)
        assert "expected str, bytes, dict" in caplog.text

    async def test_only_an_exception_that_the_handler_of_500_answers_is_logged(self, caplog):
        assert await statuses_of(handled(by=lambda connection, error: ("expected", 400))) == (400, 400)
        assert not caplog.records
        app = handled(by=lambda connection, error: ("sorry", 500), key=500)
        assert (await ask(app)).text == "sorry"
        assert (await refusal_of(app)).body == b"sorry"
        assert caplog.text.count("DomainError") >= 2
        assert len(caplog.records) == 2

    @pytest.mark.parametrize("path", AFTER_ACCEPT)
    async def test_after_accept_it_may_send_and_close(self, path, caplog):
        async def handler(ws, error):
            await ws.send("sorry")
            await ws.close(4000, "handled")

        async with handled(by=handler).test_client() as client, client.websocket(path) as ws:
            assert await ws.receive() == "sorry"
            with pytest.raises(WebSocketDisconnect, match="4000 handled"):
                await ws.receive()
        assert not caplog.records

    @pytest.mark.parametrize("path", AFTER_ACCEPT)
    async def test_an_open_connection_is_closed_as_without_it(self, path, caplog):
        assert (await ending_of(handled(by=lambda ws, error: "for HTTP"), path))[0] == 1011
        assert "DomainError" in caplog.text
        assert await ending_of(app_that_raises(lambda: HTTPException(404)), path) == (3404, "Not Found")

    @pytest.mark.parametrize(("handler", "status"), [(reject, 402), (lambda ws, error: None, 500)])
    async def test_before_accept_it_may_reject(self, handler, status, caplog):
        rejection = await refusal_of(handled(by=handler))
        assert rejection.status == status
        if status == 402:
            assert rejection.body == b"pay"
        else:
            assert "DomainError" in caplog.text

    async def test_an_error_in_it_is_logged_with_the_first_and_answered_once(self, caplog):
        async def handler(connection, error):
            raise LookupError("the second")

        def check(status, text):
            assert status in (500, 1011)
            assert ID.search(text)[1] in caplog.text
            assert "DomainError: the first" in caplog.text
            assert "LookupError: the second" in caplog.text
            assert len(caplog.records) == 1
            caplog.clear()

        async def conflict(connection, error):
            raise HTTPException(409, "conflict")

        app = handled(lambda: DomainError("the first"), by=handler)
        response = await ask(app)
        check(response.status, response.text)
        rejection = await refusal_of(app)
        check(rejection.status, rejection.body.decode())
        for path in AFTER_ACCEPT:
            check(*await ending_of(app, path))
        # An HTTPException is an answer.
        app = handled(by=conflict)
        assert ((await ask(app)).text, (await refusal_of(app)).body) == ("conflict", b"conflict")
        assert [await ending_of(app, path) for path in AFTER_ACCEPT] == [(3409, "conflict")] * 2
        assert not caplog.records

    async def test_if_its_answer_cannot_be_sent_the_default_is(self, tmp_path):
        app = App()
        app.error_handler(404)(lambda request, error: FileResponse(tmp_path / "absent.html"))
        response = await ask(app, "/nowhere")
        assert (response.status, response.text) == (404, "Not Found")

    async def test_a_send_to_a_disconnected_client_is_not_an_error(self, caplog):
        app = App()

        @app.websocket_route("/")
        async def view(ws):
            await ws.accept()
            with suppress(WebSocketDisconnect):
                await ws.receive()
            raise DomainError

        @app.error_handler(DomainError)
        async def handler(ws, error):
            await ws.send("sorry")

        async with app.test_client() as client, client.websocket("/"):
            pass
        assert not caplog.records


class TestResponsesThatFail:
    async def test_an_error_before_the_start_is_answered(self, tmp_path):
        app = App()
        app.add_route(lambda: FileResponse(tmp_path / "absent"), "/")
        assert (await ask(app)).status == 404

    async def test_a_later_error_leaves_the_app_so_that_the_server_aborts(self):
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

    async def test_a_disconnect_within_the_request_is_not_an_error(self, caplog):
        app, errors = App(), []

        @app.post("/")
        async def view(request):
            try:
                await request.body()
            except ClientDisconnect as error:
                errors.append(error)
                raise

        async with app.test_client(timeout=0.1) as client:
            with pytest.raises(TimeoutError):
                await client.post("/", content=Body(1, endless=True))
        assert len(errors) == 1
        assert not caplog.records

    async def test_nor_is_one_within_request_and_response(self, caplog):
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

        body = Body(1, endless=True)
        async with app.test_client() as client, client.stream("POST", "/", content=body) as response:
            async for chunk in response.iter_bytes():
                assert chunk == b"x" * 100
                break
        assert not caplog.records


class Body:
    """A body of so many chunks, after which the client ends it or sends nothing."""

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

        app.post("/ignore")(lambda: "ignored")
        return app

    @pytest.mark.parametrize(
        ("settings", "content", "status"),
        [
            ({"max_body_size": 1000}, b"x" * 1000, 200),
            ({"max_body_size": 1000}, b"x" * 1001, 413),
            # Without a length.
            ({"max_body_size": 1000}, None, 413),
            ({}, b"x" * (1 << 20), 200),
            ({}, b"x" * ((1 << 20) + 1), 413),
        ],
    )
    async def test_a_body_over_the_limit_is_413(self, settings, content, status):
        content = Body(100) if content is None else content
        assert (await ask(self.app(**settings), "/read", method="POST", content=content)).status == status

    @pytest.mark.parametrize(("path", "status"), [("/ignore", 200), ("/read", 413)])
    async def test_the_rest_is_discarded_before_the_response_ends(self, path, status):
        """Otherwise the client might not read the response."""
        events = [{"type": "http.request", "body": b"x" * 100, "more_body": True} for _ in range(80)]
        events.append({"type": "http.request", "body": b"", "more_body": False})
        sent = []

        async def receive():
            return events.pop(0)

        async def send(event):
            sent.append((event, len(events)))

        with anyio.fail_after(5):
            await call(self.app(max_body_size=1000), path, method="POST", receive=receive, send=send)
        (start, before), (body, _), (end, left) = sent
        assert start["status"] == status
        assert before > 60
        assert body["more_body"]
        assert (end, left) == ({"type": "http.response.body", "body": b""}, 0)

    async def test_a_stream_that_answers_an_unread_body_is_complete(self):
        app = App()
        app.add_route(lambda: StreamingResponse(iter("abc")), "/", methods=["POST"])
        assert (await ask(app, method="POST", content=Body(3))).text == "abc"

    async def test_a_disconnect_while_it_is_discarded_is_not_an_error(self):
        async def receive():
            return {"type": "http.disconnect"}

        with anyio.fail_after(0.5):
            await call(self.app(), "/ignore", method="POST", receive=receive)

    async def test_a_client_that_stops_sending_delays_the_end_by_a_second(self):
        answered = []

        async def send(event):
            if event.get("body") == b"ignored":
                answered.append(anyio.current_time())

        async def serve(headers):
            await call(self.app(), "/ignore", method="POST", headers=headers, receive=anyio.sleep_forever, send=send)

        start = anyio.current_time()
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for headers in ([], [(b"expect", b"100-continue")]):
                    tasks.start_soon(serve, headers)
        assert len(answered) == 2
        assert max(answered) - start < 0.5
        assert anyio.current_time() - start < 1.5

    async def test_a_request_without_a_body_is_not_waited_for(self):
        app = App()
        app.add_route(lambda: "x", "/")
        assert len(await call(app, receive=lambda: pytest.fail("the app waits for a body"))) == 2


UNSAFE = ["POST", "PUT", "PATCH", "DELETE", "PURGE"]
SAFE = ["GET", "HEAD", "OPTIONS"]
EVIL = "https://evil.example"
FOREIGN = {"sec-fetch-site": "cross-site", "origin": EVIL}


def guarded(route_origins=None, *, path="/", **settings):
    """An app that answers ``done`` to every method, and sends ``in`` to a WebSocket."""
    app = App(**settings)
    app.add_route(lambda: "done", path, methods=UNSAFE + SAFE)

    @app.websocket_route(path, origins=route_origins)
    async def view(ws):
        async with ws:
            await ws.send("in")

    return app


async def expect(app, path, status):
    """What a page of EVIL gets, by POST and by WebSocket."""
    assert (await ask(app, path, method="POST", headers=FOREIGN)).status == status
    if status == 200:
        assert await ask_websocket(app, path, origin=EVIL) == "in"
    else:
        assert (await refusal_of(app, path, origin=EVIL)).status == status


class TestOriginsOfRequests:
    @pytest.mark.parametrize(
        ("headers", "allowed"),
        [
            (FOREIGN, False),
            ({"origin": EVIL}, False),
            ({}, True),
            ({"origin": "http://testserver"}, True),
            ({"sec-fetch-site": "cross-site", "origin": "https://app.example"}, True),
        ],
    )
    async def test_an_unsafe_method_of_a_foreign_page_is_403(self, headers, allowed, caplog):
        async with guarded(origins=["https://app.example"]).test_client() as client:
            for method in UNSAFE + SAFE:
                caplog.clear()
                response = await client.request(method, "/", headers=headers)
                if allowed or method in SAFE:
                    assert response.status == 200
                else:
                    assert (response.status, response.text) == (403, "origin not allowed")
                    assert "App(origins=[" in caplog.text


class TestOriginsOfWebSockets:
    @pytest.mark.parametrize(
        ("route", "app", "origin", "allowed"),
        [
            (None, None, "http://testserver", True),
            (None, None, EVIL, False),
            (None, ["https://app.example"], "https://app.example", True),
            (None, ["https://app.example"], EVIL, False),
            (["https://route.example"], ["https://app.example"], "https://route.example", True),
            (["https://route.example"], ["https://app.example"], "https://app.example", False),
            (["*"], None, "null", True),
            ([], ["*"], "https://a.example", False),
        ],
    )
    async def test_own_pages_and_listed_origins_are_allowed(self, route, app, origin, allowed, caplog):
        served = guarded(route, **({"origins": app} if app else {}))
        if allowed:
            assert await ask_websocket(served, origin=origin) == "in"
            return
        rejection = await refusal_of(served, origin=origin)
        assert (rejection.status, rejection.code) == (403, 3403)
        where = "App(" if route is None else "websocket_route(…, "
        assert caplog.messages[-1].endswith(f'to allow this origin: {where}origins=["{origin}"])')


async def test_hooks_and_views_do_not_run_for_a_foreign_page():
    app, log = guarded(), []
    app.before_request(lambda request: log.append("hook"))
    app.before_websocket(lambda ws: log.append("hook"))
    await expect(app, "/", 403)
    assert log == []


async def bare_app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "in"})
        await send({"type": "websocket.close"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


def mounting(mounted=bare_app, *, mount=None, **settings):
    app = App(**settings)
    app.mount("/m", mounted, **(mount or {}))
    return app


def inner(**settings):
    return guarded(path="/x", **settings)


ALONE = {"mount": {"origins": False}}


class TestOriginsOfMounts:
    async def test_a_foreign_page_is_403_and_others_are_allowed(self):
        app = mounting()
        await expect(app, "/m/x", 403)
        assert (await ask(app, "/m/x", headers=FOREIGN)).status == 200
        assert (await ask(app, "/m/x", method="POST", headers={"origin": "http://testserver"})).status == 200
        assert await ask_websocket(app, "/m/x", origin="http://testserver") == "in"

    @pytest.mark.parametrize(
        ("app", "path", "where"),
        [
            # The app's origins, or the option of the mount.
            (lambda: mounting(origins=[EVIL]), "/m/x", None),
            (lambda: mounting(origins=["*"]), "/m/x", None),
            (lambda: mounting(**ALONE), "/m/x", None),
            (lambda: mounting(inner(), origins=[]), "/m/x", ""),
            # A mounted app of microws has its own.
            (lambda: mounting(inner(origins=[EVIL])), "/m/x", None),
            (lambda: mounting(inner(origins=[]), origins=["*"]), "/m/x", " of the app mounted at /m"),
            (lambda: mounting(mounting(inner(origins=[]))), "/m/m/x", " of the app mounted at /m/m"),
            (lambda: mounting(mounting(inner(), origins=[])), "/m/m/x", " of the app mounted at /m"),
            # It takes over nothing if it is mounted without the rule.
            (lambda: mounting(inner(), origins=["*"], **ALONE), "/m/x", " of the app mounted at /m"),
            (lambda: mounting(mounting(inner(), **ALONE), origins=["*"]), "/m/m/x", " of the app mounted at /m/m"),
        ],
    )
    async def test_origins_of_the_app_and_of_the_mount_and_the_log(self, app, path, where, caplog):
        """``where`` is None if the page is allowed. Otherwise the log says with it to which app to add the origin."""
        await expect(app(), path, 200 if where is None else 403)
        line = f'to allow this origin: App(origins=["{EVIL}"]){where}'
        told = [message.endswith(line) for message in caplog.messages if "Origin" in message]
        assert told == ([] if where is None else [True, True])

    @pytest.mark.parametrize(("origins", "status"), [(True, 403), (False, 200)])
    async def test_an_included_mount_keeps_its_option(self, origins, status):
        app = App()
        app.include(mounting(mount={"origins": origins}), "/in")
        assert (await ask(app, "/in/m/x", method="POST", headers=FOREIGN)).status == status

    @pytest.mark.parametrize("between", ["nothing", "an app", "middleware"])
    async def test_one_without_origins_takes_over_those_around_it(self, between):
        mounted, path = inner(), "/m/x"
        if between == "an app":
            mounted, path = mounting(mounted), "/m/m/x"
        elif between == "middleware":
            app_inside = mounted

            async def mounted(scope, receive, send):
                await app_inside(dict(scope), receive, send)

        await expect(mounting(mounted, origins=[EVIL]), path, 200)
        await expect(mounting(mounted, origins=["https://app.example"]), path, 403)
        await expect(mounting(mounted), path, 403)

    async def test_a_page_may_send_what_its_preflight_allows(self):
        app = mounting(inner(), origins=[EVIL])
        question = {"origin": EVIL, "access-control-request-method": "POST"}
        answer = await ask(app, "/m/x", method="OPTIONS", headers=question)
        assert answer.headers["access-control-allow-origin"] == EVIL
        response = await ask(app, "/m/x", method="POST", headers={"origin": EVIL})
        assert (response.text, response.headers["access-control-allow-origin"]) == ("done", EVIL)


def subscribing(pattern, subscribe):
    app = App()
    app.add_websocket_route(wait, pattern, subscribe=subscribe)
    return app


class TestSubscribe:
    @pytest.mark.parametrize(
        ("pattern", "subscribe", "path", "topics"),
        [
            ("/chat/{room}", "chat:{room}", "/chat/a", ["chat:a"]),
            # Several, with what the converters make of the parameters.
            ("/{a:int}/{b}", ["a:{a}", "b:{b}", "all"], "/007/x%2Fy", ["a:7", "b:x/y", "all"]),
            # Braces of a value are not a template.
            ("/{room}", "chat:{room}", "/%7Broom%7D", ["chat:{room}"]),
            # The longest topic.
            ("/{room}", "chat:{room}", "/" + "x" * 250, ["chat:" + "x" * 250]),
        ],
    )
    async def test_it_takes_effect_before_the_answer_to_the_handshake(self, pattern, subscribe, path, topics):
        app = subscribing(pattern, subscribe)
        async with app.test_client() as client, client.websocket(path) as ws:
            for topic in topics:
                assert (await app.publish(topic, "hi")).subscribers == 1
                assert await ws.receive() == "hi"
        assert app.hub.statistics().subscribers == 0


@pytest.mark.parametrize(("limit", "size", "code"), [(None, 11, 1009), (20, 20, 1000), (20, 21, 1009)])
async def test_a_message_limit_of_the_server_wins(limit, size, code):
    app = App(max_message_size=10)

    @app.websocket_route("/")
    async def view(ws):
        async with ws:
            await ws.receive()

    async def server(scope, receive, send):
        extensions = {**scope.get("extensions", {}), **({"microws": {"max_message_size": limit}} if limit else {})}
        await app({**scope, "extensions": extensions}, receive, send)

    async with app.test_client() as client:
        client.app = server
        async with client.websocket("/") as ws:
            await ws.send("x" * size)
            await ws.wait_closed()
            assert ws.close_code == code


async def test_a_websocket_that_ends_before_connect_gets_no_answer():
    async def receive():
        return {"type": "websocket.disconnect", "code": 1006}

    assert await call(both_kinds(), "/ws/x", type="websocket", receive=receive) == []


class TestOnClose:
    """The functions that a view or hook registers with ``on_close``."""

    async def test_they_are_called_after_the_response_the_last_one_first(self):
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

    @pytest.mark.parametrize("way", ["answers", "fails", "denies", "lost", "breaks off", "no file", "too large"])
    async def test_they_are_called_once_after_any_answer(self, way):
        app, log = App(max_body_size=1), []

        @app.error_handler(404)
        async def missing(request, error):
            if way == "lost":
                request.on_close(log.append, way)
            return "missing", 404

        async def breaks_off():
            yield "x"
            raise LookupError

        @app.post("/")
        async def view(request):
            request.on_close(log.append, way)
            if way in ("fails", "denies"):
                raise LookupError if way == "fails" else HTTPException(403)
            if way == "too large":
                await request.body()
            answers = {"breaks off": StreamingResponse(breaks_off()), "no file": FileResponse("/nowhere")}
            return answers.get(way, "x")

        with suppress(Exception):
            async with app.test_client() as client:
                await client.post("/no" if way == "lost" else "/", content=b"xx")
        assert log == [way]

    @pytest.mark.parametrize("when", ["before the response", "within the response"])
    async def test_they_are_called_when_the_client_disconnects(self, when):
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

    async def test_a_cancellation_calls_all_and_goes_on(self, anyio_backend_name):
        app, log, called = App(), [], anyio.Event()

        async def close(number):
            called.set()
            await anyio.sleep(0.01)
            log.append(number)

        @app.get("/")
        async def view(request):
            request.on_close(log.append, "plain")
            request.on_close(close, 2)
            request.on_close(close, 1)
            return "x"

        if anyio_backend_name == "asyncio":
            task = asyncio.create_task(call(app, receive=anyio.sleep_forever))
            await called.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert log == [2, "plain"]
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(call, app, receive=anyio.sleep_forever))
                await called.wait()
                tasks.cancel_scope.cancel()
            assert log == [1, 2, "plain"]

    @pytest.mark.parametrize("kind", ["http", "websocket"])
    async def test_all_are_called_even_if_one_fails_or_hangs(self, kind, caplog):
        app, log = App(close_timeout=0.01), []

        async def note():
            log.append("first")

        async def fail():
            raise LookupError("lost")

        async def hang():
            await anyio.sleep_forever()

        def register(connection):
            for function in (note, fail, hang):
                connection.on_close(function)

        app.before_request(register)
        app.before_websocket(register)
        app.get("/")(lambda: "x")
        app.websocket_route("/")(wait)

        async def use():
            async with app.test_client() as client:
                if kind == "http":
                    assert (await client.get("/")).text == "x"
                else:
                    async with client.websocket("/"):
                        pass

        # It leaves the app after the answer.
        with pytest.raises(LookupError, match="lost"):
            await use()
        assert log == ["first"]
        # On a busy machine the others take as long as the limit too.
        assert re.search(r"/: \S*hang \(\S+test_dispatch\.py:\d+\) of on_close did not end within 0\.01 s", caplog.text)
        assert re.search(r"/: a function of on_close failed, id [0-9a-f]{8}", caplog.text)

    async def test_they_may_register_more_functions_until_all_have_been_called(self):
        app, log, kept = App(), [], []

        @app.get("/{more}")
        async def view(request, more):
            kept.append(request)
            if more == "more":
                request.on_close(lambda: request.on_close(log.append, "more"))
            with pytest.raises(TypeError, match=r"got NoneType; write on_close\(release, slot\), not "):
                request.on_close(print())
            return "x"

        async with app.test_client() as client:
            for path in ("/more", "/none"):
                assert (await client.get(path)).status == 200
        assert log == ["more"]
        for request in kept:
            with pytest.raises(RuntimeError, match="after the end"):
                request.on_close(log.append, "late")


class TestOnCloseOfWebSockets:
    @pytest.mark.parametrize("way", ["returns", "fails", "rejects", "is refused", "waits", "is cancelled"])
    async def test_they_are_called_once_after_everything_else(self, way):
        app, log = App(close_timeout=0.05), []

        async def note(step):
            log.append(step)

        @app.before_websocket
        async def before(ws):
            # `async def`: a busy machine may need longer than close_timeout to start a thread.
            ws.on_close(note, "on_close")
            if way == "is refused":
                raise HTTPException(403)

        app.after_websocket(lambda ws: note("after_websocket"))

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
            if way == "waits":
                await ws.wait_closed()
            if way == "is cancelled":
                await anyio.sleep_forever()

        with suppress(WebSocketRejected, WebSocketDisconnect, LookupError):
            async with app.test_client() as client, client.websocket("/") as ws:
                await anyio.wait_all_tasks_blocked()
                await ws.close()
        assert [step for step in log if step != "task"] == ["after_websocket", "on_close"]
        assert log[-1] == "on_close"
