"""Responses that our own server sends without ASGI events: the same bytes, and middleware sees its events."""

import pytest
from http_here import serving
from websocket_server import ASYNCIO_BACKENDS

from microws import App, JSONResponse, RedirectResponse, Response

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS),
]


class Shouting(Response):
    """Sends itself in its own way."""

    async def __call__(self, scope, receive, send):
        await send(self._start(content_length=3))
        await send({"type": "http.response.body", "body": b"HEY"})


ANSWERS = {
    "a dict": lambda: {"text": "é"},
    "a page": lambda: "<p>é",
    "bytes": lambda: b"\0\xff",
    "nothing": lambda: None,
    "a status and headers": lambda: ({"made": 1}, 201, {"location": "/a", "date": "Thu, 01 Jan 1970 00:00:00 GMT"}),
    "connection: close": lambda: ("bye", 200, {"connection": "close"}),
    "a redirect": lambda: RedirectResponse("/elsewhere", 303),
    "a text of 1 MiB": lambda: "x" * (1 << 20),
    "a derived class": Shouting,
    "an event stream that is known": lambda: Response("data: 1\n\n", content_type="text/event-stream"),
}


def app_with(answer):
    app = App()

    @app.route("/", methods=["GET", "POST"])
    async def view():
        return answer()

    @app.get("/cookie")
    async def cookie():
        response = JSONResponse({"a": 1})
        response.set_cookie("a", "1")
        return response

    return app


async def exchange(app, request):
    """All that the server sends until it closes, without the date, which may change meanwhile."""
    async with serving(app) as server, await server.connect() as client:
        await client.send(request)
        data = await client.read_rest()
    return [line for line in data.split(b"\r\n") if not line.startswith(b"date: ")]


def passing_on(app, seen):
    async def middleware(scope, receive, send):
        async def send_seen(event):
            seen.append(event["type"])
            await send(event)

        await app(scope, receive, send_seen if scope["type"] == "http" else send)

    return middleware


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_a_response_is_the_same_with_and_without_middleware(answer, method):
    app, seen = app_with(answer), []
    request = f"{method} / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc".encode()
    assert await exchange(app, request) == await exchange(passing_on(app, seen), request)
    assert seen[:2] == ["http.response.start", "http.response.body"]


async def test_added_headers_follow_the_content_type():
    lines = await exchange(app_with(dict), b"GET /cookie HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert lines[1] == b"content-type: application/json"
    assert lines[2].startswith(b"set-cookie: a=1;")
