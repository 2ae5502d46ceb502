"""Arbitrary requests and messages to an app with all kinds of routes: no 500, no traceback on the wire, no hang."""

import json
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microws import App, EventStream, FileResponse, HTTPException, JSONResponse, RedirectResponse, StreamingResponse
from microws.closing import check_close
from tests import test_sessions, test_tickets

# Each example is a request through the whole app: a fixed few, unless `make fuzz` looks for new ones.
SETTINGS = (
    settings()
    if os.environ.get("HYPOTHESIS_PROFILE") == "long"
    else settings(max_examples=300, derandomize=True, database=None)
)

# No wait is longer; so nothing hangs.
TIMEOUT = 5


def make_app():
    app = App(templates=".", max_body_size=1000, max_message_size=1000, close_timeout=1)
    app.add_converter("hex", "[0-9a-f]+", parse=lambda text: int(text, 16), format=lambda value: f"{value:x}")
    app.static("/static", ".")

    @app.get("/")
    async def home():
        return "<h1>home</h1>"

    @app.route("/echo", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def echo(request):
        return await request.body()

    @app.post("/json")
    async def as_json(request):
        return {"value": await request.json()}

    @app.post("/form")
    async def as_form(request):
        form = await request.form()
        return {"fields": [[name, str(value)] for name, value in form.multi_items()]}

    @app.post("/text")
    async def as_text(request):
        return JSONResponse(await request.text())

    @app.post("/stream")
    async def as_stream(request):
        return str(sum([len(chunk) async for chunk in request.stream()]))

    @app.route("/ignored", methods=["GET", "POST"])
    def ignored():
        return None

    @app.get("/about")
    async def about(request):
        # Everything that a request knows of itself.
        return {
            "url": str(request.url),
            "host": request.url.host,
            "port": request.url.port,
            "path": request.path,
            "query": request.query.multi_items(),
            "cookies": request.cookies,
            "headers": request.headers.multi_items(),
            "client": list(request.client),
        }

    @app.get("/int/{n:int}")
    async def integer(n):
        return {"n": n}

    @app.get("/float/{n:float}")
    async def number(n):
        return {"n": n}

    @app.get("/uuid/{u:uuid}")
    async def uuid(u):
        return {"u": u}

    @app.get("/hex/{h:hex}")
    async def hexadecimal(h):
        return str(h)

    @app.get("/rest/{rest:path}")
    async def rest(rest):
        return [rest]

    @app.get("/slash/{name}/")
    async def slash(request, name):
        return RedirectResponse(request.url_for("name", name="there"))

    @app.get("/name/{name}")
    async def name(name):
        return name, {"x-length": str(len(name))}

    @app.get("/file")
    async def file():
        return FileResponse(__file__)

    @app.get("/chunks")
    async def chunks():
        return StreamingResponse(iter([b"a", b"b"]))

    @app.get("/events")
    async def events():
        return EventStream(iter(["a", {"b": 1}]))

    @app.get("/refused/{detail}")
    async def refused(detail):
        raise HTTPException(418, detail)

    @app.websocket_route("/ws/refused/{detail}")
    async def ws_refused(ws, detail):
        raise HTTPException(418, detail)

    @app.websocket_route("/ws/closed/{detail}")
    async def ws_closed(ws, detail):
        await ws.accept()
        raise HTTPException(418, detail)

    @app.websocket_route("/ws/about", value_type="json")
    async def ws_about(ws):
        async with ws:
            await ws.send(
                {
                    "url": str(ws.url),
                    "query": ws.query.multi_items(),
                    "cookies": ws.cookies,
                    "headers": ws.headers.multi_items(),
                    "subprotocols": ws.subprotocols,
                }
            )
            async for message in ws:
                await ws.send(message)

    @app.websocket_route("/ws/topic/{topic}", value_type="json", subscribe="chat:{topic}")
    async def ws_topic(ws, topic):
        async with ws:
            async for message in ws:
                await app.publish(f"chat:{topic}", message)

    def add_echo(value_type, on_invalid):
        @app.websocket_route(
            f"/ws/{value_type}/{on_invalid}", value_type=value_type, on_invalid=on_invalid, subprotocols=["a", "b"]
        )
        async def ws_echo(ws):
            async with ws:
                async for message in ws:
                    await ws.send(message)

    for value_type in ("text", "bytes", "json", "auto"):
        for on_invalid in ("close", "skip"):
            add_echo(value_type, on_invalid)
    return app


APP = make_app()
HTTP_PATHS = ["/", "/echo", "/json", "/form", "/text", "/stream", "/ignored", "/about", "/file", "/chunks", "/events"]
PREFIXES = ["/int/", "/float/", "/uuid/", "/hex/", "/rest/", "/slash/", "/name/", "/refused/", "/static/", "/ws/topic/"]
ECHOES = [f"/ws/{kind}/{on_invalid}" for kind in ("text", "bytes", "json", "auto") for on_invalid in ("close", "skip")]

# Bytes as a server hands them on: any in a header or a query string, but for those that would end the line.
header_bytes = st.binary(max_size=40).map(lambda data: bytes(byte for byte in data if byte not in b"\r\n\0"))
ODD = [
    "..", ".", "", "\0", "\\", "%", "%2f", "//evil.example", "\n", "{x}", "\u2028", "\U0001f600", "1e999", "٣",
    "9" * 400,
    "9" * 700,
    "00000000-0000-0000-0000-000000000000",
    "x" * 300,
]  # fmt: skip
segments = st.text(max_size=8) | st.sampled_from(ODD)
tails = st.lists(segments, max_size=4).map("/".join)
paths = st.sampled_from(HTTP_PATHS + ECHOES) | st.builds(str.__add__, st.sampled_from([*PREFIXES, "/"]), tails)
methods = st.sampled_from(["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PURGE"])
json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
).map(json.dumps)
bodies = (
    st.binary(max_size=60)
    | json_texts.map(str.encode)
    | st.sampled_from([b"", b"{", b"[" * 900, b"9" * 900, b'"\\ud800"', b"NaN", b"1e999", b"x" * 1001, b"a=b&" * 200])
    | st.builds(lambda field: b"--b\r\n" + field + b"\r\n\r\nx\r\n--b--\r\n", header_bytes)
)
content_types = st.sampled_from(
    [
        b"application/json", b"application/x-www-form-urlencoded", b"multipart/form-data",
        b"multipart/form-data; boundary=b", b'multipart/form-data; boundary="', b"text/plain; charset=utf-16",
        b"text/plain; charset=nope", b"text/plain; charset=zip", b"text/plain; charset=idna", b";",
    ]
)  # fmt: skip
NAMES = [
    b"host", b"cookie", b"origin", b"sec-fetch-site", b"content-type", b"content-length", b"expect", b"range",
    b"if-range", b"if-none-match", b"if-match", b"if-modified-since", b"if-unmodified-since", b"last-event-id",
    b"accept", b"connection", b"upgrade", b"transfer-encoding", b"x-forwarded-for",
]  # fmt: skip
VALUES = [
    b"null", b"cross-site", b"same-origin", b"http://testserver", b"testserver", b"[::1", b"host:99999",
    b'a=b; a="\\377"; =; ;; b', b'a="\\', b"bytes=0-0", b"bytes=-0", b"bytes=5-2",
    b"bytes=" + b"9" * 5000 + b"-",
    b"bytes=0-1,2-3", b"*", b'W/"x", "', b"Sat, 31 Feb 9999 99:99:99 GMT", b"Sat, 01 Jan 0000 00:00:00 GMT",
    b"9" * 30,
    b"-1", b"100-continue", b"websocket", b"chunked", b"\xff\xfe",
]  # fmt: skip
headers = st.lists(
    st.tuples(st.sampled_from(NAMES), header_bytes | st.sampled_from(VALUES))
    | st.tuples(st.just(b"content-type"), content_types),
    max_size=5,
)
queries = st.binary(max_size=40) | st.sampled_from([b"a=1&a=2", b"&&=&%", b"%ff=%00", b"a" * 500, b"a=\\&b=\r\n"])
roots = st.sampled_from(["", "", "/api", "/ü b", "api/", "//x"])
closes = st.tuples(st.integers(1000, 4999) | st.sampled_from([1005, 1006]), st.text(max_size=130))
messages = st.lists(
    st.text(max_size=20) | st.binary(max_size=20) | json_texts | st.sampled_from(["[" * 500, "x" * 1001, "", b""]),
    max_size=4,
)


def scope_of(kind, path, query, headers, *, root, raw, **more):
    """A scope as servers make it, some with ``raw_path`` and some without."""
    scope = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "path": root + path,
        "query_string": query,
        "root_path": root,
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "extensions": {"websocket.http.response": {}} if kind == "websocket" else {},
        "state": {},
        **more,
    }
    if raw is not None:
        scope["raw_path"] = raw
    return scope


def check_wire(data):
    for word in (b"Traceback", b"Internal Server Error", b"internal error", b'File "', b"Error:"):
        assert word not in data


@asynccontextmanager
async def no_hang():
    with anyio.fail_after(TIMEOUT):
        yield


async def http(scope, events):
    """Serve the request as a server does; its status, and all bytes of the answer."""
    sent = []

    async def receive():
        if not events:
            await anyio.sleep_forever()
        return events.pop(0)

    async def send(event):
        sent.append(event)

    async with no_hang():
        await APP(scope, receive, send)
    start, *body = sent
    assert start["type"] == "http.response.start"
    assert not body[-1].get("more_body", False)
    for name, value in start["headers"]:
        assert name == name.lower()
        assert not {*name, *value} & set(b"\r\n\0")
    return start["status"], b"".join(event.get("body", b"") for event in body), dict(start["headers"])


@dataclass
class Served:
    """What an app sent on one WebSocket."""

    status: int = 0
    code: int | None = None
    reason: str = ""
    data: bytes = b""


async def websocket(scope, messages, end):
    """Serve the WebSocket: its client sends the messages, then leaves."""
    served, ended = Served(), anyio.Event()
    events = [{"type": "websocket.connect"}]
    events += [
        {"type": "websocket.receive", "text" if isinstance(message, str) else "bytes": message} for message in messages
    ]

    async def receive():
        if events:
            return events.pop(0)
        await anyio.lowlevel.checkpoint()
        return {"type": "websocket.disconnect", "code": end[0], "reason": end[1]}

    async def send(event):
        match event["type"]:
            case "websocket.accept":
                served.status = 101
            case "websocket.http.response.start":
                served.status = event["status"]
            case "websocket.http.response.body":
                served.data += event["body"]
                ended.set()
            case "websocket.send":
                text = event.get("text")
                served.data += event["bytes"] if text is None else text.encode()
            case "websocket.close":
                check_close(event["code"], event["reason"])
                served.code, served.reason = event["code"], event["reason"]
                ended.set()

    async with no_hang():
        await APP(scope, receive, send)
    return served


def run(function, *args):
    return anyio.run(function, *args)


@SETTINGS
@given(paths, methods, queries, headers, bodies, roots, st.booleans())
def test_no_request_is_a_500(path, method, query, headers, body, root, has_raw):
    raw = (root + path).encode(errors="replace") if has_raw else None
    scope = scope_of("http", path, query, headers, root=root, raw=raw, method=method, scheme="http")
    events = [{"type": "http.request", "body": body, "more_body": False}]
    status, data, _ = run(http, scope, events)
    assert status < 500
    # What the client or a file says may be said.
    if path not in ("/file", "/echo") and not path.startswith("/static/"):
        check_wire(data)


@SETTINGS
@given(st.sampled_from(["/json", "/form", "/text", "/stream", "/echo"]), content_types, st.lists(bodies, max_size=4))
def test_no_body_in_pieces_is_a_500(path, content_type, chunks):
    scope = scope_of("http", path, b"", [(b"content-type", content_type)], root="", raw=None, method="POST")
    events = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    status, _, _ = run(http, scope, [*events, {"type": "http.request", "body": b""}])
    assert status < 500


@SETTINGS
@given(queries, headers)
def test_the_attributes_of_a_request_are_always_valid_json(query, headers):
    scope = scope_of("http", "/about", query, headers, root="", raw=b"/about", method="GET")
    status, data, _ = run(http, scope, [{"type": "http.request"}])
    assert status == 200
    assert set(json.loads(data)) >= {"url", "query", "cookies"}


@SETTINGS
@given(segments, queries, roots)
def test_every_redirect_begins_with_one_slash(name, query, root):
    scope = scope_of("http", f"/slash/{name}", query, [], root=root, raw=None, method="GET")
    status, _, headers = run(http, scope, [{"type": "http.request"}])
    assert status < 500
    if status in (307, 308):
        location = headers[b"location"]
        assert location.startswith(b"/")
        assert not location.startswith((b"//", b"/\\"))
        assert location.isascii()


@SETTINGS
@given(paths | st.sampled_from(ECHOES), queries, headers, messages, closes, roots)
def test_no_handshake_and_no_message_is_an_internal_error(path, query, headers, messages, end, root):
    raw = (root + path).encode(errors="replace")
    scope = scope_of("websocket", path, query, headers, root=root, raw=raw, subprotocols=["b", "c"])
    served = run(websocket, scope, messages, end)
    assert served.status in (101, 400, 403, 404, 405)
    assert served.code not in (1011, 4500)
    check_wire(served.reason.encode())


@SETTINGS
@given(st.sampled_from(ECHOES), messages, closes)
def test_an_echo_answers_or_closes_with_a_code_for_the_message(path, messages, end):
    scope = scope_of("websocket", path, b"", [], root="", raw=path.encode(), subprotocols=[])
    served = run(websocket, scope, messages, end)
    assert served.status == 101
    assert served.code in (None, 1000, 1003, 1007, 1009)
    if path.endswith("skip"):
        assert served.code in (None, 1000, 1009)


@SETTINGS
@given(st.sampled_from(["/refused/", "/ws/refused/", "/ws/closed/"]), segments.filter(lambda text: "/" not in text))
def test_a_refusal_may_contain_any_text(path, detail):
    if path == "/refused/":
        scope = scope_of("http", path + detail, b"", [], root="", raw=None, method="GET")
        status, _, _ = run(http, scope, [{"type": "http.request"}])
        assert status in (418, 400, 404)
        return
    scope = scope_of("websocket", path + detail, b"", [], root="", raw=None, subprotocols=[])
    served = run(websocket, scope, [], (1005, ""))
    assert served.status in (418, 400, 404, 101)
    assert served.code in (None, 3418)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_app_answers_a_plain_request(backend):
    scope = scope_of("http", "/", b"", [], root="", raw=b"/", method="GET")
    status, data, _ = anyio.run(http, scope, [{"type": "http.request"}], backend=backend)
    assert (status, data) == (200, b"<h1>home</h1>")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("count_passed", [test_tickets.count_passed, test_sessions.count_passed])
async def test_none_of_100_000_mutated_tickets_and_cookies_passes(anyio_backend, count_passed):
    assert await count_passed(100_000, seed=1) == 0
