"""The in-memory test client against small ASGI apps."""

import math
from functools import partial
from urllib.parse import parse_qs, quote

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import example, given
from hypothesis import strategies as st

from microws import App
from microws.codec import BYTES, JSON, TEXT
from microws.errors import InvalidMessage, PayloadTypeError, WebSocketDisconnect, WebSocketRejected
from microws.testing import CookieJar, ReceivedEvent, TestClient

pytestmark = pytest.mark.anyio

SHORT = 0.05

# Steps of a `scripted` app besides the events that it sends and the exceptions that it raises.
RECEIVE = "receive"
FOREVER = "forever"

OK = {"type": "http.response.start", "status": 200, "headers": []}
STREAM = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
END = {"type": "http.response.body"}
ACCEPT = {"type": "websocket.accept"}
CLOSE = {"type": "websocket.close"}
STARTED = {"type": "lifespan.startup.complete"}
HTTP_DISCONNECT = {"type": "http.disconnect"}


def start(**fields):
    return {**OK, **fields}


def body(data=b"", **fields):
    return {**END, "body": data, **fields}


def chunk(data):
    return body(data, more_body=True)


def text(value):
    return {"type": "websocket.send", "text": value}


def disconnect(code, reason=""):
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


def scripted(*steps, log=None):
    """An app that takes these steps for every request and WebSocket, and logs the events that it receives."""

    async def app(scope, receive, send):
        for step in steps:
            if step == RECEIVE:
                event = await receive()
                if log is not None:
                    log.append(event)
            elif step == FOREVER:
                await anyio.sleep_forever()
            elif isinstance(step, BaseException):
                raise step
            else:
                await send(step)

    return app


def without_lifespan(app):
    async def wrapped(scope, receive, send):
        assert scope["type"] != "lifespan"
        await app(scope, receive, send)

    return wrapped


def client_of(app, **options):
    return TestClient(without_lifespan(app), **options)


def client_of_steps(*steps, log=None, **options):
    return client_of(scripted(*steps, log=log), **options)


def lifespan_app(app, *, state=None, log=None):
    async def wrapped(scope, receive, send):
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        scope["state"].update(state or {})
        for phase in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{phase}"
            if log is not None:
                log.append(phase)
            await send({"type": f"lifespan.{phase}.complete"})

    return wrapped


hello = scripted(start(headers=[(b"content-type", b"text/plain")]), body(b"hello"))


async def echo(scope, receive, send):
    assert await receive() == {"type": "websocket.connect"}
    await send(ACCEPT)
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


def recording(log, *, accept=ACCEPT):
    """An app that accepts, then logs every event."""

    async def app(scope, receive, send):
        await receive()
        await send(accept)
        event = {}
        while event.get("type") != "websocket.disconnect":
            event = await receive()
            log.append(event)

    return app


async def scope_of(path, *, kind="http", client=None, method="GET", **options):
    """The scope that an app gets."""
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        for event in [ACCEPT] if kind == "websocket" else [OK, END]:
            await send(event)

    async with client_of(app, **(client or {})) as test_client:
        if kind == "http":
            await test_client.request(method, path, **options)
        else:
            async with test_client.websocket(path, **options):
                pass
    return scopes[0]


async def open_websocket(client, path="/", **options):
    """Enter and leave the block of a WebSocket."""
    async with client.websocket(path, **options):
        pass


async def open_stream(client, path="/"):
    """Enter and leave the block of a stream."""
    async with client.stream("GET", path):
        pass


class TestRequests:
    async def test_a_response_has_status_headers_and_body(self):
        async with client_of(hello) as client:
            response = await client.get("/")
        assert response.status == 200
        assert response.headers["content-type"] == "text/plain"
        assert (response.body, response.text) == (b"hello", "hello")
        assert repr(response) == "TestResponse(200, b'hello')"

    async def test_each_method_has_a_shorthand(self):
        async def app(scope, receive, send):
            await scripted(OK, body(scope["method"].encode()))(scope, receive, send)

        async with client_of(app) as client:
            for method in ("get", "post", "put", "patch", "delete", "options"):
                assert (await getattr(client, method)("/")).text == method.upper()

    async def test_a_response_to_head_has_no_body(self):
        async with client_of_steps(start(headers=[(b"content-length", b"9")]), body(b"hello")) as client:
            response = await client.head("/")
        assert (response.body, response.headers["content-length"]) == (b"", "9")

    async def test_text_joins_chunks_in_the_charset_of_the_response(self):
        latin = start(headers=[(b"content-type", b"text/plain; charset=latin-1")])
        async with client_of_steps(latin, chunk(b"\xe9"), chunk(b"a"), END) as client:
            assert (await client.get("/")).text == "éa"

    async def test_json_is_decoded_and_invalid_json_is_an_invalid_message(self):
        async with client_of_steps(OK, body(b'{"a": 1}')) as client, client_of_steps(OK, body(b"{")) as other:
            assert (await client.get("/")).json() == {"a": 1}
            response = await other.get("/")
            with pytest.raises(InvalidMessage):
                response.json()

    async def test_receive_waits_after_the_body_until_the_response_is_complete(self):
        events = []

        async def app(scope, receive, send):
            events.append(await receive())
            with anyio.move_on_after(SHORT) as waiting:
                await receive()
            events.append(waiting.cancelled_caught)
            await scripted(OK, END, RECEIVE, RECEIVE, log=events)(scope, receive, send)

        async with client_of(app) as client:
            await client.post("/", content="hi")
        request = {"type": "http.request", "body": b"hi", "more_body": False}
        assert events == [request, True, HTTP_DISCONNECT, HTTP_DISCONNECT]

    async def test_requests_run_at_the_same_time(self):
        arrived = []

        async def app(scope, receive, send):
            arrived.append(scope["path"])
            while len(arrived) < 2:
                await checkpoint()
            await hello(scope, receive, send)

        async with client_of(app) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/a")
            tasks.start_soon(client.get, "/b")


async def chunks_of(*chunks):
    for data in chunks:
        if isinstance(data, Exception):
            raise data
        yield data


class TestRequestBodies:
    @pytest.mark.parametrize(
        ("options", "content_type", "expected"),
        [
            ({"json": {"a": 1}}, b"application/json", b'{"a":1}'),
            ({"json": None}, b"application/json", b"null"),
            (
                {"data": {"a": ["1", "2"], "b": "ü &"}},
                b"application/x-www-form-urlencoded",
                b"a=1&a=2&b=%C3%BC+%26",
            ),
            ({"content": "hé"}, None, "hé".encode()),
            ({"content": "hé".encode()}, None, "hé".encode()),
            ({}, None, b""),
        ],
    )
    async def test_a_body_has_its_type_and_length(self, options, content_type, expected):
        log, scopes = [], []

        async def app(scope, receive, send):
            scopes.append(scope)
            await scripted(RECEIVE, OK, END, log=log)(scope, receive, send)

        async with client_of(app) as client:
            await client.post("/", **options)
        headers = dict(scopes[0]["headers"])
        assert (headers.get(b"content-type"), headers[b"content-length"]) == (content_type, b"%d" % len(expected))
        assert log == [{"type": "http.request", "body": expected, "more_body": False}]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"json": {}, "content": b""}, "one body; got json, content"),
            ({"params": 1}, "^a request has no option 'params'; it takes headers, query, cookies,"),
            ({"max_queue": 1}, "^a request has no option 'max_queue'; it takes headers, query, cookies,"),
        ],
    )
    async def test_wrong_options_are_a_type_error(self, options, message):
        async with client_of(hello) as client:
            with pytest.raises(TypeError, match=message):
                await client.post("/", **options)

    async def test_a_chunk_is_taken_after_the_app_received_the_one_before(self):
        taken, received = [], []

        async def chunks():
            for data in (b"a", b"b", b"c"):
                taken.append(data)
                yield data

        async def app(scope, receive, send):
            assert dict(scope["headers"])[b"transfer-encoding"] == b"chunked"
            more = True
            while more:
                event = await receive()
                received.append(event["body"])
                more = event["more_body"]
                assert len(taken) - len(received) <= 1
            await hello(scope, receive, send)

        async with client_of(app) as client:
            await client.post("/", content=chunks())
        assert received == [b"a", b"b", b"c", b""]

    async def test_a_response_ends_an_endless_body(self):
        closed = []

        async def chunks():
            try:
                while True:
                    yield b"x"
            finally:
                closed.append(True)

        async with client_of(hello) as client:
            response = await client.post("/", content=chunks())
        assert (response.text, closed) == ("hello", [True])

    async def test_the_time_out_of_the_request_ends_a_body_that_never_arrives(self):
        async def chunks():
            await anyio.sleep_forever()
            yield b""

        log = []
        async with client_of_steps(RECEIVE, log=log, timeout=SHORT) as client:
            with pytest.raises(TimeoutError, match="no response start"):
                await client.post("/", content=chunks())
        assert log == [HTTP_DISCONNECT]

    async def test_an_exception_of_a_body_is_raised_and_disconnects(self):
        log = []
        async with client_of_steps(RECEIVE, RECEIVE, log=log) as client:
            with pytest.raises(LookupError, match="no more"):
                await client.post("/", content=chunks_of(b"a", LookupError("no more")))
        assert [event["type"] for event in log] == ["http.request", "http.disconnect"]

    async def test_chunks_must_be_bytes(self):
        class Chunks:
            def __aiter__(self):
                return self

            async def __anext__(self):
                return "text"

        async with client_of_steps(RECEIVE) as client:
            with pytest.raises(TypeError, match="chunks of content= as bytes, got 'text'"):
                await client.post("/", content=Chunks())


class TestScopes:
    async def test_an_http_scope_is_complete(self):
        scope = await scope_of("/a b/%2F?x=1", query={"y": ["ü", 2]}, headers={"X-One": "1"})
        assert scope == {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/a b//",
            "raw_path": b"/a%20b/%2F",
            "query_string": b"x=1&y=%C3%BC&y=2",
            "root_path": "",
            "client": ("testclient", 50000),
            "server": ("testserver", 80),
            "headers": [
                (b"host", b"testserver"),
                (b"user-agent", b"microws-test-client"),
                (b"accept", b"*/*"),
                (b"x-one", b"1"),
            ],
            "extensions": {},
            "state": {},
        }

    async def test_a_websocket_scope_is_a_handshake(self):
        scope = await scope_of("/ws", kind="websocket", subprotocols=["a", "b"], origin="http://o", query="q=ü")
        assert (scope["type"], scope["scheme"], scope["query_string"]) == ("websocket", "ws", b"q=%C3%BC")
        assert scope["subprotocols"] == ["a", "b"]
        assert scope["extensions"] == {"websocket.http.response": {}}
        assert "method" not in scope
        headers = dict(scope["headers"])
        assert (headers[b"upgrade"], headers[b"connection"]) == (b"websocket", b"Upgrade")
        assert headers[b"sec-websocket-version"] == b"13"
        assert len(headers[b"sec-websocket-key"]) == 24
        assert (headers[b"sec-websocket-protocol"], headers[b"origin"]) == (b"a, b", b"http://o")
        names = {name for name, _ in (await scope_of("/ws", kind="websocket"))["headers"]}
        assert not names & {b"origin", b"sec-websocket-protocol"}

    async def test_options_of_the_client_are_in_the_scope(self):
        async def check(path, client, expected, **options):
            scope = await scope_of(path, client=client, **options)
            assert {name: scope[name] for name in expected} == expected
            return dict(scope["headers"])

        secure = {"base_url": "https://example.org:8443/"}
        headers = await check("/", secure, {"scheme": "https", "server": ("example.org", 8443)})
        assert headers[b"host"] == b"example.org:8443"
        await check("/", secure, {"scheme": "wss"}, kind="websocket")
        await check("/a#b?c", {}, {"raw_path": b"/a", "query_string": b""})
        options = {"client": None, "root_path": "/api"}
        headers = await check("/api/x", options, {**options, "path": "/api/x"})
        assert b"content-length" not in headers

    async def test_an_invalid_base_url_or_path_is_a_value_error(self):
        for base_url in ("ftp://x", "testserver", "http://", "http://x/path"):
            with pytest.raises(ValueError, match="expected a base_url such as"):
                TestClient(hello, base_url=base_url)
        async with client_of(hello) as client:
            with pytest.raises(ValueError, match="begins with '/', got 'x'"):
                await client.get("x")

    async def test_headers_of_the_request_replace_the_clients_by_name(self):
        scope = await scope_of(
            "/",
            client={"headers": [("X-A", "1"), ("x-a", "2"), ("User-Agent", "me"), ("x-c", "old")]},
            headers=[("X-B", "3"), ("x-b", "4"), ("X-C", "new")],
        )
        assert scope["headers"][1:] == [
            (b"user-agent", b"me"),
            (b"accept", b"*/*"),
            (b"x-a", b"1"),
            (b"x-a", b"2"),
            (b"x-c", b"new"),
            (b"x-b", b"3"),
            (b"x-b", b"4"),
        ]

    async def test_each_scope_gets_a_copy_of_the_lifespans_state(self):
        states = []

        async def app(scope, receive, send):
            states.append(dict(scope["state"]))
            scope["state"]["mine"] = 1
            await hello(scope, receive, send)

        async with TestClient(lifespan_app(app, state={"db": "x"})) as client:
            await client.get("/")
            await client.get("/")
        assert states == [{"db": "x"}, {"db": "x"}]

    @given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.text(max_size=20))
    def test_any_path_is_encoded_once(self, path, query):
        encoded = "/" + quote(path, safe="/")
        query = query.encode(errors="ignore").decode()
        scope = anyio.run(partial(scope_of, encoded, query={"q": query}))
        assert (scope["path"], scope["raw_path"]) == ("/" + path, encoded.encode())
        assert parse_qs(scope["query_string"].decode(), keep_blank_values=True) == {"q": [query]}


class TestCookies:
    @given(st.text(), st.text())
    @example("a=1", "/")
    def test_a_jar_takes_any_header_and_is_a_mapping(self, set_cookie, path):
        jar = CookieJar()
        jar.store(set_cookie, request_path=path)
        assert len(jar) <= 1
        jar["a"] = "1"
        assert jar["a"] == "1"
        assert repr(jar) == f"CookieJar({dict(jar)})"
        del jar["a"]
        assert "a" not in jar

    async def test_the_client_sends_the_cookies_that_responses_set(self):
        async def app(scope, receive, send):
            sent = dict(scope["headers"]).get(b"cookie", b"")
            await send({**OK, "headers": [(b"set-cookie", b"a=1; Path=/; HttpOnly")]})
            await send({"type": "http.response.body", "body": sent})

        async with client_of(app) as client:
            first = await client.get("/x")
            assert (first.text, first.cookies) == ("", {"a": "1"})
            assert (await client.get("/y")).text == "a=1"
            assert (await client.get("/y", cookies={"b": "2"})).text == "a=1; b=2"
            client.cookies["c"] = "3"
            assert (await client.get("/y", headers={"Cookie": "own"})).text == "own"
            assert (await client.get("/y")).text == "a=1; c=3"

    @pytest.mark.parametrize("accepts", [True, False])
    async def test_a_handshake_sends_and_stores_cookies(self, accepts):
        cookie = [(b"set-cookie", b"b=2")]
        prefix = "websocket.http.response"
        denial = [{"type": f"{prefix}.start", "status": 401, "headers": cookie}, {"type": f"{prefix}.body"}]

        async def app(scope, receive, send):
            assert dict(scope["headers"])[b"cookie"] == b"a=1"
            await scripted(*[{**ACCEPT, "headers": cookie}] if accepts else denial)(scope, receive, send)

        async with client_of(app) as client:
            client.cookies["a"] = "1"
            try:
                await open_websocket(client)
            except WebSocketRejected:
                assert not accepts
            assert client.cookies == {"a": "1", "b": "2"}

    @pytest.mark.parametrize(
        ("set_cookie", "sent_to", "not_sent_to"),
        [
            ("a=1; Path=/in", ["/in", "/in/x"], ["/", "/inside"]),
            ("a=1; Path=/in/", ["/in/", "/in/x"], ["/in"]),
            ("a=1", ["/set/here", "/set"], ["/", "/other"]),
            ("a=1; Path=relative", ["/set/here"], ["/"]),
            ("a=1; Max-Age=60; Path=/", ["/"], []),
            ("a=1; Expires=Thu, 01 Jan 2099 00:00:00 GMT; Path=/", ["/"], []),
            ("a=1; Max-Age=soon; Expires=never; Path=/", ["/"], []),
            ("a=1; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/", ["/"], []),
            ("a=1; Max-Age=0; Path=/", [], ["/"]),
            ("a=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/", [], ["/"]),
            ("=1; Path=/", [], ["/"]),
            ("a=1; Secure; Path=/", [], ["/"]),
        ],
    )
    def test_path_expiry_and_secure_are_honored(self, set_cookie, sent_to, not_sent_to):
        jar = CookieJar()
        jar.store(set_cookie, request_path="/set/here")
        assert bool(jar.select("/", secure=True)) == (set_cookie == "a=1; Secure; Path=/" or "/" in sent_to)
        assert all(jar.select(path, secure=False) == {"a": "1"} for path in sent_to)
        assert not any(jar.select(path, secure=False) for path in not_sent_to)


class TestLifespans:
    async def test_an_app_needs_no_lifespan_and_lifespan_false_leaves_it_out(self):
        async def indifferent(scope, receive, send):
            if scope["type"] == "http":
                await hello(scope, receive, send)

        log = []
        without = TestClient(scripted(RECEIVE, OK, body(b"hello"), log=log), lifespan=False)
        async with TestClient(indifferent) as client, TestClient(hello) as careless, without as other:
            assert [(await each.get("/")).text for each in (client, careless, other)] == ["hello"] * 3
        assert [event["type"] for event in log] == ["http.request"]

    @pytest.mark.parametrize(
        ("steps", "error", "message"),
        [
            ([RECEIVE, LookupError("no database")], LookupError, "^no database$"),
            (
                [RECEIVE, {"type": "lifespan.startup.failed", "message": "no database"}],
                RuntimeError,
                "the app's startup failed: no database",
            ),
            (
                [RECEIVE, STARTED, RECEIVE, {"type": "lifespan.shutdown.failed", "message": "no database"}],
                RuntimeError,
                "the app's shutdown failed: no database",
            ),
            # The exception says more than the message of the event.
            (
                [RECEIVE, {"type": "lifespan.startup.failed", "message": "traceback"}, LookupError("no database")],
                LookupError,
                "^no database$",
            ),
            # The client cancels it.
            ([RECEIVE, {"type": "lifespan.startup.failed"}, RECEIVE], RuntimeError, "startup failed"),
            ([RECEIVE, FOREVER], TimeoutError, r"^lifespan: no answer to lifespan\.startup within 0\.05 s"),
            ([RECEIVE, STARTED, FOREVER], TimeoutError, r"no answer to lifespan\.shutdown"),
            (
                [RECEIVE, STARTED, RECEIVE, {"type": "lifespan.shutdown.complete"}, FOREVER],
                TimeoutError,
                "^lifespan: the app did not end within",
            ),
            ([RECEIVE, STARTED, RECEIVE], RuntimeError, r"returned without lifespan\.shutdown\.complete"),
            ([RECEIVE, STARTED, LookupError("lost")], LookupError, "lost"),
            ([RECEIVE, ACCEPT], RuntimeError, r"expected lifespan\.startup\.complete or .* lifespan=False"),
        ],
    )
    async def test_an_error_of_the_lifespan_is_raised(self, steps, error, message):
        with pytest.raises(error, match=message):
            async with TestClient(scripted(*steps), timeout=SHORT):
                await checkpoint()


@pytest.fixture
async def client():
    async with TestClient(lifespan_app(echo)) as client:
        yield client


class TestTheClient:
    async def test_it_works_as_a_fixture(self, client):
        async with client.websocket("/") as ws:
            await ws.send("hi")
            assert await ws.receive() == "hi"

    async def test_it_can_be_used_in_its_block_only(self):
        client = client_of(hello)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="async with TestClient"):
                await client.get("/")
            async with client:
                with pytest.raises(RuntimeError, match="in use already"):
                    await client.__aenter__()
                assert (await client.get("/")).text == "hello"

    async def test_the_lifespan_is_around_the_block_whose_exception_passes_unchanged(self):
        log = []
        client = TestClient(lifespan_app(scripted(RECEIVE, OK, END, log=log), log=log))

        async def test():
            async with client:
                assert log == ["startup"]
                await client.get("/")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await test()
        assert [log[0], log[1]["type"], *log[2:]] == ["startup", "http.request", "shutdown"]

    async def test_a_cancelled_test_cancels_the_app(self):
        ended = []

        async def app(scope, receive, send):
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(scope["type"])

        with anyio.move_on_after(SHORT) as scope:
            async with client_of(app) as client:
                await client.get("/")
        assert (scope.cancelled_caught, ended) == (True, ["http"])
        await checkpoint()

    async def test_a_cancellation_at_the_end_of_the_client_is_passed_on(self):
        async with TestClient(scripted(RECEIVE, STARTED)):
            """A lifespan may end before its shutdown."""
        with anyio.move_on_after(SHORT) as scope:
            async with TestClient(scripted(RECEIVE, STARTED, FOREVER)):
                pass
        assert scope.cancelled_caught
        await checkpoint()

    async def test_an_app_that_does_not_end_is_cancelled_and_named(self):
        ended = []

        async def app(scope, receive, send):
            try:
                await scripted(ACCEPT, FOREVER)(scope, receive, send)
            finally:
                ended.append(True)

        with pytest.raises(TimeoutError, match=r"WebSocket /x: the app did not end within 0\.05 s"):
            async with client_of(app, timeout=SHORT) as client:
                await open_websocket(client, "/x")
        assert ended == [True]

    async def test_cancelled_requests_are_reported_at_the_end(self):
        async def end_of(*steps, paths):
            client = await client_of_steps(*steps, timeout=2 * SHORT).__aenter__()
            for path in paths:
                with anyio.move_on_after(SHORT):
                    await client.get(path)
            await client.__aexit__(None, None, None)

        with pytest.raises(TimeoutError, match="GET /a: the app did not end") as caught:
            await end_of(FOREVER, paths=("/a", "/b"))
        assert "GET /b: the app did not end" in caught.value.__notes__[0]
        with pytest.raises(LookupError, match="late"):
            await end_of(RECEIVE, RECEIVE, LookupError("late"), paths="/")

    async def test_an_error_at_the_end_is_a_note_on_the_tests_exception(self):
        with pytest.raises(ZeroDivisionError) as caught:
            async with (
                client_of_steps(ACCEPT, RECEIVE, RECEIVE, LookupError("late")) as client,
                client.websocket("/"),
            ):
                raise ZeroDivisionError
        assert "LookupError: late" in caught.value.__notes__[0]

    @pytest.mark.parametrize("max_queue", [0, -1])
    async def test_max_queue_is_at_least_1(self, max_queue):
        async with client_of(hello) as client:
            for use in (partial(client.websocket, "/"), partial(client.stream, "GET", "/")):
                with pytest.raises(ValueError, match="max_queue of at least 1"):
                    use(max_queue=max_queue)


class TestTimeouts:
    @pytest.mark.parametrize(
        ("steps", "use", "message"),
        [
            ([FOREVER], lambda client: client.get("/x"), r"^no response start from GET /x within 0\.05 s$"),
            ([FOREVER], partial(open_stream, path="/x"), r"^no response start from GET /x within 0\.05 s$"),
            ([OK, FOREVER], lambda client: client.get("/x"), r"^no complete response from GET /x within 0\.05 s$"),
            (
                [OK, END, FOREVER],
                lambda client: client.get("/x"),
                "^GET /x: the response is complete, but the app did not end within",
            ),
            (
                [FOREVER],
                partial(open_websocket, path="/x"),
                r"^no answer to the handshake of WebSocket /x within 0\.05 s$",
            ),
            ([ACCEPT, *[RECEIVE] * 9, FOREVER], open_websocket, "did not end"),
            # An app that continues after it has rejected the handshake.
            ([CLOSE, FOREVER], open_websocket, "^WebSocket /: the app did not end"),
        ],
    )
    async def test_a_time_out_names_what_is_missing(self, steps, use, message):
        async with client_of_steps(*steps, timeout=SHORT) as client:
            with pytest.raises(TimeoutError, match=message):
                await use(client)

    async def test_the_time_out_limits_a_response_as_a_whole(self):
        async def app(scope, receive, send):
            await send(OK)
            while True:
                await send(chunk(b"x"))
                await anyio.sleep(SHORT / 10)

        async with client_of(app) as client:
            with pytest.raises(TimeoutError, match=r"^no complete response from GET /x within"):
                await client.get("/x", timeout=SHORT)

    async def test_a_receive_that_timed_out_loses_nothing(self):
        async with client_of(echo, timeout=math.inf) as client, client.websocket("/x", timeout=SHORT) as ws:
            with pytest.raises(TimeoutError, match=r"WebSocket /x: no message within 0\.05 s"):
                await ws.receive()
            with pytest.raises(TimeoutError, match=r"WebSocket /x: no close within 0\.04 s"):
                await ws.wait_closed(timeout=0.04)
            assert (ws.closed, ws.close_code, ws.close_reason) == (False, None, None)
            await ws.send("late")
            assert await ws.receive() == "late"

    async def test_a_time_out_of_0_receives_what_has_arrived(self):
        app = scripted(ACCEPT, text("1"), RECEIVE, RECEIVE)
        async with client_of(app) as client, client.websocket("/") as ws:
            await anyio.wait_all_tasks_blocked()
            assert await ws.receive(timeout=0) == "1"
            with pytest.raises(TimeoutError):
                await ws.receive(timeout=0)


class TestErrorsOfAnApp:
    """Exceptions that an ``App`` answers, then raises."""

    @pytest.fixture
    def app(self):
        app = App()

        async def fail():
            raise LookupError("crash")

        app.get("/view")(fail)

        @app.get("/task")
        async def task():
            app.start_soon(fail)

        @app.websocket_route("/{when}")
        async def view(ws, when):
            if when == "before":
                await fail()
            async with ws:
                if when == "helper":
                    ws.start_soon(fail)
                else:
                    await ws.send("hello")
                if when != "hook":
                    async for _ in ws:
                        if when == "message":
                            await fail()
            if when == "late":
                await fail()

        @app.after_websocket
        async def hook(ws):
            if ws.path == "/hook":
                await fail()

        return app

    @staticmethod
    async def read_stream(client):
        async with client.stream("GET", "/view") as response:
            await response.read()

    @staticmethod
    async def read_all(client, path):
        async with client.websocket(path) as ws:
            await ws.send("x")
            while True:
                await ws.receive()

    @pytest.mark.parametrize(
        ("use", "code"),
        [
            (lambda client: client.get("/view"), None),
            (read_stream, None),
            (partial(open_websocket, path="/before"), None),
            # After its end: by the block of the WebSocket.
            (partial(open_websocket, path="/late"), None),
            (partial(open_websocket, path="/hook"), None),
            # In place of the close that it causes.
            (partial(read_all, path="/message"), 1011),
            (partial(read_all, path="/helper"), 1011),
        ],
    )
    async def test_the_use_that_caused_it_raises_it(self, app, use, code):
        async with app.test_client() as client:
            with pytest.raises(LookupError, match="crash") as caught:
                await use(client)
        assert getattr(caught.value.__context__, "code", None) == code

    async def test_the_end_of_the_block_raises_it_if_the_test_expects_the_close(self, app):
        async with app.test_client() as client:
            ws = await client.websocket("/helper").__aenter__()
            with pytest.raises(WebSocketDisconnect, match="1011"):
                await ws.receive()
            with pytest.raises(LookupError, match="crash"):
                await ws.__aexit__(None, None, None)

    async def test_the_next_request_or_the_end_raises_that_of_a_background_task(self, app):
        async with app.test_client() as client:
            await client.get("/task")
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(LookupError, match="crash"):
                await client.get("/task")
        client = await app.test_client().__aenter__()
        await client.get("/task")
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(LookupError, match="crash"):
            await client.__aexit__(None, None, None)

    async def test_without_raise_errors_the_test_gets_the_answers(self, app, caplog):
        async with app.test_client(raise_errors=False) as client:
            assert (await client.get("/view")).status == 500
            async with client.stream("GET", "/view") as response:
                assert response.status == 500
            with pytest.raises(WebSocketRejected) as refused:
                await open_websocket(client, "/before")
            assert refused.value.status == 500
            for path, code in {"/message": 1011, "/helper": 1011, "/hook": 1000}.items():
                async with client.websocket(path) as ws:
                    await ws.send("x")
                    await ws.wait_closed()
                    assert ws.close_code == code
            await open_websocket(client, "/late")
            await client.get("/task")
            await anyio.wait_all_tasks_blocked()
            await client.get("/task")
        assert caplog.text.count("LookupError: crash") >= 8

    async def test_an_exception_that_a_handler_answers_is_not_raised(self, app):
        @app.error_handler(LookupError)
        async def handle(connection, error):
            return "sorry", 418

        async with app.test_client() as client:
            assert (await client.get("/view")).status == 418


class TestBlocks:
    async def test_a_use_before_the_block_says_what_to_write(self):
        async with client_of_steps(LookupError("not called")) as client:
            ws, stream = client.websocket("/"), client.stream("GET", "/")
            uses = {
                "websocket": [partial(ws.send, "x"), ws.receive, ws.close, ws.wait_closed, partial(anext, ws)],
                "stream": [stream.read, partial(anext, stream.iter_lines()), partial(anext, stream.events())],
            }
            properties = {
                "websocket": [lambda: ws.closed, lambda: ws.close_code, lambda: ws.close_reason, ws.abort],
                "stream": [lambda: stream.status, lambda: stream.headers],
            }
            for method in uses:
                message = rf"^expected an entered block, .* write `async with client\.{method}\(…\) as …:`"
                for use in uses[method]:
                    with pytest.raises(RuntimeError, match=message):
                        await use()
                for get in properties[method]:
                    with pytest.raises(RuntimeError, match=message):
                        get()


async def receive_once(client):
    async with client.websocket("/") as ws:
        await ws.receive()


async def wait_closed(client):
    async with client.websocket("/") as ws:
        await ws.wait_closed()


async def send_late(client):
    async with client.websocket("/") as ws:
        await anyio.wait_all_tasks_blocked()
        await ws.send("x")


class TestErrorsOfAnyApp:
    @pytest.mark.parametrize("raise_errors", [True, False])
    async def test_a_test_is_one_process_whatever_the_hub_of_the_app(self, raise_errors):
        app = App(hub="local:/nowhere")
        async with app.test_client(raise_errors=raise_errors), app.subscribe("t") as messages:
            await app.publish("t", 1)
            assert await anext(messages) == 1
        with pytest.raises(RuntimeError, match="use `microws run`"):
            await app.running().__aenter__()

    @pytest.mark.parametrize("raise_errors", [True, False])
    @pytest.mark.parametrize("use", [lambda client: client.get("/"), open_stream, open_websocket])
    async def test_an_exception_before_the_answer_is_always_raised(self, use, raise_errors):
        async with client_of_steps(LookupError("crash"), raise_errors=raise_errors) as client:
            with pytest.raises(LookupError, match="crash"):
                await use(client)

    @pytest.mark.parametrize("events", [[], [OK], [OK, END]])
    @pytest.mark.parametrize(
        "error",
        [
            pytest.fail.Exception("no"),
            pytest.skip.Exception("no"),
            SystemExit(3),
            TimeoutError("database"),
            ExceptionGroup("several", [LookupError("crash")]),
        ],
    )
    async def test_any_exception_of_the_app_is_raised_itself(self, events, error):
        async with client_of_steps(*events, error) as client:
            with pytest.raises(type(error)) as caught:
                await client.get("/")
        assert caught.value is error

    @pytest.mark.parametrize("use", [receive_once, wait_closed, send_late, open_websocket])
    async def test_the_next_use_of_a_websocket_or_its_end_raises_it(self, use):
        async with client_of_steps(ACCEPT, LookupError("crash")) as client:
            with pytest.raises(LookupError, match="crash"):
                await use(client)

    @pytest.mark.parametrize(
        ("events", "use", "message"),
        [
            ([], lambda client: client.get("/x"), "no response start from GET /x: the app returned"),
            ([], open_websocket, "no answer to the handshake of WebSocket /: the app returned"),
            (
                [OK, chunk(b"")],
                lambda client: client.get("/x"),
                "no complete response from GET /x: the app returned",
            ),
        ],
    )
    async def test_a_missing_or_incomplete_answer_is_a_runtime_error(self, events, use, message):
        async with client_of_steps(*events) as client:
            with pytest.raises(RuntimeError, match=message):
                await use(client)

    async def test_messages_are_received_before_the_exception_then_the_close(self):
        app = scripted(ACCEPT, text("1"), LookupError("crash"))
        async with client_of(app) as client, client.websocket("/") as ws:
            assert await ws.receive() == "1"
            with pytest.raises(LookupError, match="crash"):
                await ws.receive()
            with pytest.raises(WebSocketDisconnect, match="1006"):
                await ws.receive()


class TestStreams:
    async def test_chunks_are_read_as_the_app_sends_them(self):
        more = anyio.Event()

        async def app(scope, receive, send):
            await scripted(STREAM, chunk(b"a"))(scope, receive, send)
            await more.wait()
            await send(body(b"b"))

        async with client_of(app) as client, client.stream("GET", "/") as response:
            assert (response.status, response.headers["content-type"]) == (200, "text/event-stream")
            chunks = response.iter_bytes()
            assert await anext(chunks) == b"a"
            more.set()
            assert [data async for data in chunks] == [b"b"]
            assert await response.read() == b""

    async def test_lines_continue_over_chunks_and_have_three_kinds_of_ends(self):
        data = "ä\r\nb\rc\n\nd".encode()
        chunks = [chunk(data[i : i + 1]) for i in range(len(data))]
        async with client_of_steps(STREAM, *chunks, END) as client, client.stream("GET", "/") as response:
            async for line in response.iter_lines():
                assert line == "ä"
                break
            assert [line async for line in response.iter_lines()] == ["b", "c", "", "d"]
            assert [line async for line in response.iter_lines()] == []

    async def test_leaving_the_block_disconnects_and_waits_for_the_app(self):
        log = []

        async def app(scope, receive, send):
            await scripted(RECEIVE, STREAM, RECEIVE, log=log)(scope, receive, send)
            for _ in range(5):
                await checkpoint()
            log.append("end")

        async with client_of(app) as client:
            await open_stream(client)
            assert log[1:] == [HTTP_DISCONNECT, "end"]

    async def test_max_queue_holds_back_the_app_and_the_last_chunk_is_read(self):
        sent = []

        async def app(scope, receive, send):
            await send(STREAM)
            for number in range(4):
                await send(body(b"%d" % number, more_body=number < 3))
                sent.append(number)

        async with client_of(app) as client, client.stream("GET", "/", max_queue=2) as response:
            await anyio.wait_all_tasks_blocked()
            assert sent == [0, 1]
            await anext(response.iter_bytes())
            await anyio.wait_all_tasks_blocked()
            assert sent == [0, 1, 2]
            assert await response.read() == b"123"

    async def test_each_wait_has_a_limit_and_chunks_are_read_before_an_exception(self):
        app = client_of_steps(RECEIVE, STREAM, RECEIVE)
        async with app as client, client.stream("GET", "/x", timeout=SHORT) as response:
            with pytest.raises(TimeoutError, match=r"no more of the response to GET /x within 0\.05 s"):
                await response.read()
        app = client_of_steps(STREAM, chunk(b"a"), LookupError("crash"))
        async with app as client, client.stream("GET", "/") as response:
            chunks = response.iter_bytes()
            assert await anext(chunks) == b"a"
            with pytest.raises(LookupError, match="crash"):
                await anext(chunks)


async def parse_events(*lines):
    events = body("\n".join([*lines, ""]).encode())
    async with client_of_steps(STREAM, events) as client, client.stream("GET", "/") as response:
        return [event async for event in response.events()]


class TestServerSentEvents:
    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            (
                ["event: a", "data: 1", "data", "data:  2", "", "data:3", ""],
                [ReceivedEvent("1\n\n 2", event="a"), ReceivedEvent("3")],
            ),
            # Without data it is not an event, and its type does not hold for the next one.
            (["event: a", "", "data: 1", ""], [ReceivedEvent("1")]),
            # Id and retry hold for the whole stream; invalid ones are ignored.
            (
                ["id: 1", "retry: 10", "data: a", "", "id: \0", "retry: x", "retry: ²", "data: b", "", "id"],
                [ReceivedEvent("a", id="1", retry=10), ReceivedEvent("b", id="1", retry=10)],
            ),
            ([": data: x", "other: x", "Data: x", ""], []),
            # The end of the stream drops an incomplete event.
            (["data: x"], []),
        ],
    )
    async def test_events_are_parsed(self, lines, expected):
        assert await parse_events(*lines) == expected

    async def test_after_a_break_another_loop_continues(self):
        app = client_of_steps(STREAM, chunk(b'data: {"a": 1}\n\nevent: x\nda'), body(b"ta: 2\n\n"))
        async with app as client, client.stream("GET", "/") as response:
            async for event in response.events():
                assert event.json() == {"a": 1}
                break
            assert [event async for event in response.events()] == [ReceivedEvent("2", event="x")]

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
    def test_any_lines_are_an_event_stream(self, lines):
        assert all(isinstance(event, ReceivedEvent) for event in anyio.run(parse_events, *lines))


class TestWebSockets:
    async def test_the_type_of_a_value_chooses_its_frame(self):
        log = []
        async with client_of(recording(log)) as client, client.websocket("/") as ws:
            for value in ("text", b"", {"a": [1]}, None):
                await ws.send(value)
            await ws.send_json("text")
        assert log[:-1] == [
            {"type": "websocket.receive", "text": "text"},
            {"type": "websocket.receive", "bytes": b""},
            {"type": "websocket.receive", "text": '{"a":[1]}'},
            {"type": "websocket.receive", "text": "null"},
            {"type": "websocket.receive", "text": '"text"'},
        ]

    async def test_messages_are_received_as_they_were_sent_or_are_of_the_wrong_kind(self):
        async with client_of(echo) as client, client.websocket("/x") as ws:
            for send, receive, value in (
                (ws.send, ws.receive, ""),
                (ws.send, ws.receive, b""),
                (ws.send_text, ws.receive_text, "a"),
                (ws.send_bytes, ws.receive_bytes, b"a"),
                (ws.send_json, ws.receive_json, [1]),
                (ws.send, ws.receive_event, "a"),
            ):
                await send(value)
                assert await receive() == (text("a") if receive == ws.receive_event else value)
            await ws.send("text")
            with pytest.raises(PayloadTypeError, match="WebSocket /x: expected a binary frame, got text 'text'"):
                await ws.receive_bytes()
            for receive in (ws.receive_text, ws.receive_json):
                await ws.send(b"data")
                with pytest.raises(PayloadTypeError, match="expected a text frame, got binary b'data'"):
                    await receive()
            await ws.send("{")
            with pytest.raises(InvalidMessage):
                await ws.receive_json()

    async def test_the_codecs_of_a_path_encode_and_decode(self):
        log, paths = [], []

        def codecs(path):
            paths.append(path)
            return {"/json": (JSON, JSON), "/mixed": (BYTES, TEXT)}.get(path)

        async def app(scope, receive, send):
            await scripted(RECEIVE, ACCEPT)(scope, receive, send)
            while (event := await receive())["type"] == "websocket.receive":
                log.append(event)
                await send({**event, "type": "websocket.send"})

        async with client_of(app, codecs=codecs) as client:
            async with client.websocket("/json?q=1") as ws:
                for value in ("hi", {"a": 1}):
                    await ws.send(value)
                    assert await ws.receive() == value
                await ws.send_text("{")
                with pytest.raises(InvalidMessage):
                    await ws.receive()
                await ws.send_bytes(b"published")
                assert await ws.receive() == b"published"
            async with client.websocket("/mixed") as ws:
                await ws.send(b"{")
                assert await ws.receive() == b"{"
                with pytest.raises(TypeError, match="bytes route"):
                    await ws.send("text")
            async with client.websocket("/none") as ws:
                await ws.send("{")
                assert await ws.receive() == "{"
        assert paths == ["/json", "/mixed", "/none"]
        assert log[0] == {"type": "websocket.receive", "text": '"hi"'}
        assert log[-2:] == [
            {"type": "websocket.receive", "bytes": b"{"},
            {"type": "websocket.receive", "text": "{"},
        ]

    async def test_the_apps_close_is_received_after_the_messages_before_it(self):
        log, close = [], {**CLOSE, "code": 4000, "reason": "done"}
        async with client_of_steps(ACCEPT, text("1"), close, RECEIVE, RECEIVE, log=log) as client:
            async with client.websocket("/") as ws:
                await ws.wait_closed()
                assert (ws.closed, ws.close_code, ws.close_reason) == (True, 4000, "done")
                assert await ws.receive() == "1"
                for call in (ws.receive(), ws.receive(), ws.send("x")):
                    with pytest.raises(WebSocketDisconnect, match="4000 done"):
                        await call
                assert await ws.receive_event() == close
            assert log == [{"type": "websocket.connect"}, disconnect(4000, "done")]
            async with client.websocket("/") as ws:
                assert [message async for message in ws] == ["1"]

    async def test_receive_ends_with_the_close_even_if_the_app_continues(self):
        left, log = anyio.Event(), []

        async def app(scope, receive, send):
            await scripted(RECEIVE, ACCEPT, {**CLOSE, "code": 4000})(scope, receive, send)
            await left.wait()
            await scripted(RECEIVE, RECEIVE, log=log)(scope, receive, send)

        async with client_of(app) as client, client.websocket("/") as ws:
            with pytest.raises(WebSocketDisconnect, match="4000"):
                await ws.receive(timeout=1)
            left.set()
        assert log == [disconnect(4000)] * 2

    @pytest.mark.parametrize(("events", "code"), [([CLOSE], 1000), ([{**CLOSE, "reason": None}], 1000), ([], 1006)])
    async def test_a_connection_has_a_close_code_when_it_has_ended(self, events, code):
        async with client_of_steps(ACCEPT, *events) as client, client.websocket("/") as ws:
            await ws.wait_closed()
            assert (ws.close_code, ws.close_reason) == (code, "")
            with pytest.raises(WebSocketDisconnect, match=str(code)):
                await ws.receive()

    @pytest.mark.parametrize(
        ("leave", "code", "reason"),
        [
            (lambda ws: ws.close(), 1000, ""),
            (lambda ws: ws.close(4001, "bye"), 4001, "bye"),
            (lambda ws: ws.close(1005), 1005, ""),
            (lambda ws: ws.abort() or checkpoint(), 1006, ""),
            (lambda ws: checkpoint(), 1000, ""),
        ],
    )
    async def test_the_app_gets_the_code_after_every_message(self, leave, code, reason):
        log = []
        async with client_of(recording(log)) as client, client.websocket("/") as ws:
            await ws.send("last")
            await leave(ws)
        assert log == [{"type": "websocket.receive", "text": "last"}, disconnect(code, reason)]

    async def test_after_its_close_the_client_still_receives_what_had_arrived(self):
        async with client_of(echo) as client, client.websocket("/") as ws:
            for code, reason in ((1006, ""), (1005, "x"), (1000, "x" * 124)):
                with pytest.raises(ValueError, match="clos"):
                    await ws.close(code, reason)
            await ws.send("a")
            await anyio.wait_all_tasks_blocked()
            await ws.close(4000, "bye")
            await ws.close()
            assert await ws.receive() == "a"
            for call in (ws.receive(), ws.send("b")):
                with pytest.raises(WebSocketDisconnect, match="4000 bye"):
                    await call

    async def test_a_cancelled_test_or_the_end_of_the_client_disconnects_without_a_close(self):
        log = []
        async with client_of(recording(log)) as client:
            with anyio.move_on_after(SHORT):
                async with client.websocket("/"):
                    await anyio.sleep_forever()
            await client.websocket("/").__aenter__()
        assert log == [disconnect(1006)] * 2

    async def test_connections_end_in_any_order(self):
        async with client_of(echo) as client:
            a, b = [await client.websocket("/").__aenter__() for _ in range(2)]
            await a.__aexit__(None, None, None)
            await b.send("b")
            assert await b.receive() == "b"
            await b.__aexit__(None, None, None)


class TestSlowClients:
    async def test_max_queue_holds_back_sends_and_the_close_in_order(self):
        log = []

        async def app(scope, receive, send):
            await send(ACCEPT)
            for value in "abc":
                await send(text(value))
                log.append(value)
            await send(CLOSE)

        async with client_of(app) as client, client.websocket("/", max_queue=1) as ws:
            await anyio.wait_all_tasks_blocked()
            assert log == ["a"]
            assert await ws.receive() == "a"
            await anyio.wait_all_tasks_blocked()
            assert log == ["a", "b"]
            assert [message async for message in ws] == ["b", "c"]
            assert ws.close_code == 1000

    @pytest.mark.parametrize("mode", ["raise", "ignore"])
    async def test_a_disconnect_ends_a_waiting_send(self, mode):
        log = []

        async def app(scope, receive, send):
            try:
                await scripted(ACCEPT, *[text("x")] * 3)(scope, receive, send)
                log.append("sent")
            except OSError as error:
                log.append(str(error))

        client = client_of(app, send_after_disconnect=mode)
        async with client, client.websocket("/x", max_queue=1) as ws:
            await anyio.wait_all_tasks_blocked()
            ws.abort()
        assert log == ["sent" if mode == "ignore" else "WebSocket /x: the client has disconnected"]

    async def test_a_waiting_close_that_is_cancelled_does_not_close(self):
        async def app(scope, receive, send):
            with anyio.move_on_after(SHORT):
                await scripted(ACCEPT, text("x"), CLOSE)(scope, receive, send)

        async with client_of(app) as client, client.websocket("/", max_queue=1) as ws:
            await ws.wait_closed()
            assert ws.close_code == 1006


class TestSendAfterDisconnect:
    @staticmethod
    def app(log, *, catch=False, wrap=None):
        """Waits for the disconnect, then sends twice."""

        async def app(scope, receive, send):
            log.append(scope["asgi"]["spec_version"])
            is_http = scope["type"] == "http"
            await scripted(RECEIVE, OK if is_http else ACCEPT, RECEIVE)(scope, receive, send)
            for _ in range(2):
                try:
                    await send(chunk(b"") if is_http else CLOSE)
                    log.append("ignored")
                except OSError as error:
                    log.append(OSError)
                    if not catch:
                        raise wrap(error) if wrap else error from None

        return app

    @pytest.mark.parametrize(
        ("options", "client_options", "logged"),
        [
            ({"catch": True}, {}, ["2.5", OSError, OSError]),
            # It may leave the app, alone or in a group.
            ({}, {}, ["2.5", OSError]),
            ({"wrap": lambda error: ExceptionGroup("tasks", [error])}, {}, ["2.5", OSError]),
            ({}, {"send_after_disconnect": "ignore"}, ["2.3", "ignored", "ignored"]),
        ],
    )
    async def test_send_raises_an_oserror_or_does_nothing(self, options, client_options, logged):
        log = []
        async with client_of(self.app(log, **options), **client_options) as client:
            await open_websocket(client)
            await open_stream(client)
        assert log == logged * 2


class TestRejections:
    @pytest.mark.parametrize(
        ("events", "denial", "expected"),
        [
            ([{**CLOSE, "code": 3404}], True, (403, [], b"", 3404)),
            ([{**CLOSE, "code": 3404}], False, (403, [], b"", 3404)),
            (
                [
                    {"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-a", b"1")]},
                    {"type": "websocket.http.response.body", "body": b"no", "more_body": True},
                    {"type": "websocket.http.response.body", "body": b"pe"},
                ],
                True,
                (401, [("x-a", "1")], b"nope", 3401),
            ),
        ],
    )
    async def test_a_rejection_has_status_headers_body_and_code(self, events, denial, expected):
        extensions, log = [], []

        async def app(scope, receive, send):
            extensions.append(scope["extensions"])
            await scripted(*events, RECEIVE, RECEIVE, log=log)(scope, receive, send)

        async with client_of(app, denial=denial) as client:
            with pytest.raises(WebSocketRejected) as caught:
                await open_websocket(client)
        rejected = caught.value
        assert (rejected.status, rejected.headers, rejected.body, rejected.code) == expected
        assert extensions == [{"websocket.http.response": {}} if denial else {}]
        assert log[1] == disconnect(1006)


class TestBreachesOfTheRules:
    @pytest.mark.parametrize(
        ("events", "message"),
        [
            ([END], "expected http.response.start, the app sent http.response.body"),
            ([OK, OK], "expected http.response.body, the app sent http.response.start"),
            ([OK, END, END], "expected no event now, the app sent http.response.body"),
            ([OK, {"type": "http.response.trailers"}], "expected http.response.body, the app sent"),
            (["text"], "expected a dict with a 'type', the app sent 'text'"),
            ([{}], "expected a dict with a 'type', the app sent {}"),
            ([{"type": "http.response.start"}], "expected a status of 200 to 599, the app sent None"),
            ([start(status=101)], "expected a status of 200 to 599, the app sent 101"),
            ([start(status=True)], "expected 'status' of http.response.start to be int, the app sent True"),
            ([start(status="200")], "expected 'status' of http.response.start to be int, the app sent '200'"),
            ([start(headers=[1])], "expected headers as pairs of bytes, the app sent 1"),
            ([start(headers=[(b"a", b"b", b"c")])], "expected headers as pairs of bytes"),
            ([start(headers=[("a", b"b")])], "expected headers as pairs of bytes"),
            ([start(headers=[(b"a", "b")])], "expected headers as pairs of bytes"),
            ([start(headers=[(b"A", b"b")])], "expected a header name in lower case, the app sent b'A'"),
            ([start(headers=[(b"", b"b")])], "expected a header name in lower case"),
            ([start(headers=[(b"a", b"b\r\nc: d")])], "expected a valid value of the header b'a'"),
            ([start(headers=[(b"a", b" b")])], "expected a valid value of the header b'a'"),
            ([start(headers=[(b"a", b"b ")])], "expected a valid value of the header b'a'"),
            ([start(headers=[(b"content-length", b"x")])], "expected one content-length"),
            ([start(headers=[(b"content-length", b"1"), (b"content-length", b"2")])], "expected one content-length"),
            ([start(headers=[(b"content-length", b"2")]), body(b"abc")], "1 bytes longer than its content-length"),
            ([start(headers=[(b"content-length", b"2")]), body(b"a")], "1 bytes shorter than its content-length"),
            ([start(status=204), body(b"a")], "a response with status 204 has no body"),
            ([OK, body("text")], "expected 'body' of http.response.body to be bytes, the app sent 'text'"),
            ([OK, body(None)], "expected 'body' of http.response.body to be bytes, the app sent None"),
            ([OK, body(more_body=1)], "expected 'more_body' of http.response.body to be bool, the app sent 1"),
        ],
    )
    async def test_of_http(self, events, message):
        async with client_of_steps(*events) as client:
            with pytest.raises(RuntimeError) as caught:
                await client.get("/x")
        assert str(caught.value).startswith("GET /x: ")
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("events", "message"),
        [
            (
                [text("x")],
                "expected websocket.accept or websocket.close or websocket.http.response.start, the app sent",
            ),
            ([ACCEPT, ACCEPT], "expected websocket.send or websocket.close, the app sent websocket.accept"),
            ([{**ACCEPT, "subprotocol": "x"}], "expected a subprotocol of ['a'], the app accepted 'x'"),
            ([{**ACCEPT, "subprotocol": b"a"}], "expected 'subprotocol' of websocket.accept to be str"),
            ([{**ACCEPT, "headers": [(b"Sec-WebSocket-Protocol", b"a")]}], "expected a header name in lower case"),
            ([{**ACCEPT, "headers": [(b"sec-websocket-protocol", b"a")]}], "the app must send subprotocol="),
            ([ACCEPT, {"type": "websocket.send"}], "expected either 'text' or 'bytes'"),
            ([ACCEPT, {"type": "websocket.send", "text": "", "bytes": b""}], "expected either 'text' or 'bytes'"),
            ([ACCEPT, text(b"x")], "expected 'text' of websocket.send to be str"),
            ([ACCEPT, {"type": "websocket.send", "bytes": bytearray()}], "expected 'bytes' of websocket.send to be"),
            ([ACCEPT, text("\ud800")], "expected text that UTF-8 can encode"),
            ([ACCEPT, {**CLOSE, "code": 1006}], "1006"),
            ([ACCEPT, {**CLOSE, "reason": "x" * 124}], "at most 123 UTF-8 bytes"),
            ([ACCEPT, CLOSE, CLOSE], "expected no event now"),
            ([ACCEPT, CLOSE, text("")], "expected no event now"),
            ([CLOSE, ACCEPT], "expected no event now, the app sent websocket.accept"),
            (
                [{"type": "websocket.http.response.start", "status": 401}, ACCEPT],
                "expected websocket.http.response.body, the app sent websocket.accept",
            ),
            ([{"type": "websocket.http.response.start", "status": 99}], "expected a status of 200 to 599"),
        ],
    )
    async def test_of_a_websocket(self, events, message):
        async with client_of_steps(*events) as client:
            with pytest.raises(RuntimeError) as caught:
                async with client.websocket("/x", subprotocols=["a"]):
                    await anyio.wait_all_tasks_blocked()
        assert str(caught.value).startswith("WebSocket /x: ")
        assert message in str(caught.value)

    async def test_of_a_denial_without_the_extension(self):
        async with client_of_steps({"type": "websocket.http.response.start", "status": 401}, denial=False) as client:
            with pytest.raises(RuntimeError, match=r"expected websocket\.accept or websocket\.close, the app sent"):
                await open_websocket(client)

    @pytest.mark.parametrize("use", [receive_once, open_websocket])
    async def test_that_the_app_catches_are_raised_in_the_test(self, use):
        async def app(scope, receive, send):
            with pytest.raises(RuntimeError):
                await send(text("x"))
            await scripted(ACCEPT, RECEIVE, RECEIVE)(scope, receive, send)

        async with client_of(app) as client:
            with pytest.raises(RuntimeError, match=r"the app sent websocket\.send"):
                await use(client)

    async def test_end_the_connection_for_the_test(self):
        async def app(scope, receive, send):
            await send(ACCEPT)
            with pytest.raises(RuntimeError):
                await send(ACCEPT)
            await anyio.sleep_forever()

        async with client_of(app, timeout=SHORT) as client, client.websocket("/") as ws:
            with pytest.raises(RuntimeError, match=r"the app sent websocket\.accept"):
                await ws.receive()
            with pytest.raises(WebSocketDisconnect):
                await ws.receive()

    @pytest.mark.parametrize(
        ("events", "length"),
        [
            # A 304 has the length of the body that it leaves out; headers may be any iterable.
            ([start(status=304, headers=[(b"content-length", b"5")]), END], "5"),
            ([start(headers=((b"content-length", b"2"),)), body(b"ab")], "2"),
        ],
    )
    async def test_a_correct_content_length_is_none(self, events, length):
        async with client_of_steps(*events) as client:
            assert (await client.get("/")).headers["content-length"] == length
