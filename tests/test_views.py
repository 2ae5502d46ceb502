"""What a view returns as a response."""

from dataclasses import dataclass
from http import HTTPStatus

import pytest
from asking import ask

from microws import App, JSONResponse, Response
from microws.views import to_response

pytestmark = pytest.mark.anyio


@dataclass
class Point:
    x: int
    y: int


HTML = "text/html; charset=utf-8"


class TestReturnValues:
    @pytest.mark.parametrize(
        ("value", "status", "content_type", "body"),
        [
            ("<p>ü</p>", 200, HTML, "<p>ü</p>".encode()),
            ("", 200, HTML, b""),
            ({"a": 1}, 200, "application/json", b'{"a":1}'),
            ([1, None], 200, "application/json", b"[1,null]"),
            (Point(1, 2), 200, "application/json", b'{"x":1,"y":2}'),
            (b"\x00\xff", 200, "application/octet-stream", b"\x00\xff"),
            (bytearray(b"ab"), 200, "application/octet-stream", b"ab"),
            (memoryview(b"ab"), 200, "application/octet-stream", b"ab"),
            (b"", 200, "application/octet-stream", b""),
            ((b"", {"content-type": "image/png"}), 200, "image/png", b""),
            (None, 204, None, b""),
            (("made", 201), 201, HTML, b"made"),
            (({"a": 1}, HTTPStatus.ACCEPTED), 202, "application/json", b'{"a":1}'),
            ((None, 202), 202, None, b""),
            (("text", {"content-type": "text/plain"}), 200, "text/plain", b"text"),
            (("text", [("Content-Type", "text/plain")]), 200, "text/plain", b"text"),
            ((b"x", 200, {"content-type": "image/png"}), 200, "image/png", b"x"),
            (("x", 404, None), 404, HTML, b"x"),
            ((None, {"x": "y"}), 204, None, b""),
            (JSONResponse({"a": 1}, 418), 418, "application/json", b'{"a":1}'),
        ],
    )
    def test_each_kind_of_value_has_its_status_and_type(self, value, status, content_type, body):
        response = to_response(value)
        assert (response.status, response.headers.get("content-type"), response.body) == (status, content_type, body)

    def test_headers_are_kept_in_number(self):
        response = to_response(("x", 200, [("set-cookie", "a=1"), ("set-cookie", "b=2")]))
        assert response.headers.getlist("set-cookie") == ["a=1", "b=2"]

    def test_a_response_is_itself(self):
        response = Response("x")
        assert to_response(response) is response

    @pytest.mark.parametrize(
        ("value", "complaint"),
        [
            (5, "not int$"),
            (object(), "not object$"),
            (iter([1]), r"return StreamingResponse\(…\) or EventStream\(…\) around it"),
            (App().stream("chat"), r"return StreamingResponse\(…\) or EventStream\(…\) around it"),
            (Point, "not type"),
            ((), r"\(\)"),
            (("x",), r"\(str\)"),
            (("x", "200"), r"\(str, str\)"),
            (("x", True), r"\(str, bool\)"),
            (("x", 200, {}, 1), r"\(str, int, dict, int\)"),
            ((Response("x"), 201), "has its own status and headers: return it alone"),
        ],
    )
    def test_anything_else_is_a_type_error_that_says_what_to_return(self, value, complaint):
        with pytest.raises(TypeError, match=complaint):
            to_response(value)

    async def test_what_was_not_waited_for_says_so(self):
        async def text():
            return "x"

        text = text()
        with pytest.raises(TypeError, match=r"not coroutine; write `await` before the call that made it$"):
            to_response(text)
        text.close()

    @pytest.mark.parametrize("value", [("x", 99), ("x", 600), ("x", 200, {"a\n": "b"}), ("x", {"a": "b\r\nc: d"})])
    def test_a_bad_status_or_header_is_a_value_error(self, value):
        with pytest.raises(ValueError, match=r"status|header"):
            to_response(value)


class TestThroughTheApp:
    async def test_a_plain_view_publishes_from_its_thread(self):
        app = App()

        @app.post("/say")
        def say():
            return {"subscribers": app.publish_from_thread("topic", "hi").subscribers}

        @app.websocket_route("/", subscribe="topic")
        async def listen(ws):
            async with ws:
                async for _ in ws:
                    pass

        async with app.test_client() as client, client.websocket("/") as ws:
            assert (await client.post("/say")).json() == {"subscribers": 1}
            assert await ws.receive() == "hi"

    async def test_publishing_from_a_thread_in_the_loops_own_is_refused(self):
        app = App()

        @app.post("/")
        async def say():
            app.publish_from_thread("topic", "hi")

        app.error_handler(RuntimeError)(lambda request, error: str(error))
        assert "write `await app.publish" in (await ask(app, method="POST")).text
