"""The in-memory test client against small ASGI apps."""

import inspect
import math
from functools import partial
from urllib.parse import parse_qs, quote

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from microws import App
from microws.codec import BYTES, JSON, TEXT
from microws.errors import InvalidMessage, PayloadTypeError, WebSocketDisconnect, WebSocketRejected
from microws.testing import CookieJar, ReceivedEvent, TestClient

pytestmark = pytest.mark.anyio

SHORT = 0.1
OK = {"type": "http.response.start", "status": 200, "headers": []}
END = {"type": "http.response.body"}
ACCEPT = {"type": "websocket.accept"}
STREAM = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


def without_lifespan(app):
    async def wrapped(scope, receive, send):
        assert scope["type"] != "lifespan"
        await app(scope, receive, send)

    return wrapped


def client_of(app, **options):
    return TestClient(without_lifespan(app), **options)


def answering(*events):
    """An app that sends these events to whatever comes."""

    async def app(scope, receive, send):
        for event in events:
            await send(event)

    return client_of(app)


async def hello(scope, receive, send):
    await send({**OK, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"hello"})


async def mirror_scope(scope, receive, send):
    """Answers with its scope in a state that the test reads."""
    scope["state"]["scopes"].append(scope)
    await send(ACCEPT if scope["type"] == "websocket" else OK)
    if scope["type"] == "http":
        await send(END)
    else:
        while (await receive())["type"] != "websocket.disconnect":
            pass


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


async def scope_of(path, *, kind="http", client=None, method="GET", **options):
    scopes = []
    app = lifespan_app(mirror_scope, state={"scopes": scopes})
    async with TestClient(app, **(client or {})) as test_client:
        if kind == "http":
            await test_client.request(method, path, **options)
        else:
            async with test_client.websocket(path, **options):
                pass
    return scopes[0]


async def echo(scope, receive, send):
    """Accepts, then sends back each message; logs the disconnect event in the state."""
    assert await receive() == {"type": "websocket.connect"}
    await send(ACCEPT)
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


def recording(log, *, accept=ACCEPT):
    """Accepts, then logs every event."""

    async def app(scope, receive, send):
        await receive()
        await send(accept)
        event = {}
        while event.get("type") != "websocket.disconnect":
            event = await receive()
            log.append(event)

    return app


async def crash(scope, receive, send):
    raise LookupError("crash")


class TestRequests:
    async def test_a_response_has_status_headers_and_body(self):
        async with client_of(hello) as client:
            response = await client.get("/")
        assert response.status == 200
        assert response.headers["content-type"] == "text/plain"
        assert (response.body, response.text) == (b"hello", "hello")
        assert repr(response) == "TestResponse(200, b'hello')"

    @pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete", "options"])
    async def test_each_method_has_its_shorthand(self, method):
        async def app(scope, receive, send):
            await send(OK)
            await send({"type": "http.response.body", "body": scope["method"].encode()})

        async with client_of(app) as client:
            assert (await getattr(client, method)("/")).text == method.upper()

    async def test_the_answer_to_head_has_no_body_whatever_the_app_sends(self):
        async def app(scope, receive, send):
            assert scope["method"] == "HEAD"
            await send({**OK, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"hello"})

        async with client_of(app) as client:
            response = await client.head("/")
        assert (response.body, response.headers["content-length"]) == (b"", "9")

    async def test_a_body_in_chunks_is_joined(self):
        chunk = {"type": "http.response.body", "body": b"a", "more_body": True}
        async with answering(OK, chunk, chunk, END) as client:
            assert (await client.get("/")).body == b"aa"

    async def test_text_follows_the_charset_of_the_content_type(self):
        start = {**OK, "headers": [(b"content-type", b"text/plain; charset=latin-1")]}
        async with answering(start, {"type": "http.response.body", "body": b"\xe9"}) as client:
            assert (await client.get("/")).text == "é"

    async def test_json_is_decoded_and_bad_json_is_an_invalid_message(self):
        async with answering(OK, {"type": "http.response.body", "body": b'{"a": 1}'}) as client:
            assert (await client.get("/")).json() == {"a": 1}
        async with answering(OK, {"type": "http.response.body", "body": b"{"}) as client:
            response = await client.get("/")
            with pytest.raises(InvalidMessage):
                response.json()

    async def test_after_the_request_has_been_read_the_app_waits_and_learns_of_the_complete_response(self):
        events = []

        async def app(scope, receive, send):
            events.append(await receive())
            with anyio.move_on_after(SHORT) as waiting:
                await receive()
            events.append(waiting.cancelled_caught)
            await send(OK)
            await send(END)
            events.extend([await receive(), await receive()])

        async with client_of(app) as client:
            await client.post("/", content="hi")
        disconnect = {"type": "http.disconnect"}
        assert events == [{"type": "http.request", "body": b"hi", "more_body": False}, True, disconnect, disconnect]

    async def test_a_request_body_that_the_app_does_not_read_does_no_harm(self):
        async with client_of(hello) as client:
            assert (await client.post("/", content=b"x" * 100_000)).text == "hello"

    async def test_requests_may_run_at_the_same_time(self):
        arrived = []

        async def app(scope, receive, send):
            arrived.append(scope["path"])
            while len(arrived) < 2:
                await checkpoint()
            await hello(scope, receive, send)

        async with client_of(app) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/a")
            tasks.start_soon(client.get, "/b")


class TestRequestBodies:
    @staticmethod
    async def sent(**options):
        received = []

        async def app(scope, receive, send):
            body = b""
            more = True
            while more:
                event = await receive()
                body += event["body"]
                more = event["more_body"]
            received.extend([dict(scope["headers"]), body])
            await hello(scope, receive, send)

        async with client_of(app) as client:
            await client.post("/", **options)
        return received

    async def test_json_is_encoded(self):
        headers, body = await self.sent(json={"a": 1})
        assert (headers[b"content-type"], headers[b"content-length"], body) == (b"application/json", b"7", b'{"a":1}')

    async def test_json_none_is_null(self):
        assert (await self.sent(json=None))[1] == b"null"

    async def test_data_is_a_form(self):
        headers, body = await self.sent(data={"a": ["1", "2"], "b": "ü &"})
        assert headers[b"content-type"] == b"application/x-www-form-urlencoded"
        assert body == b"a=1&a=2&b=%C3%BC+%26"

    @pytest.mark.parametrize("content", ["hé", "hé".encode()])
    async def test_content_goes_as_it_is(self, content):
        headers, body = await self.sent(content=content)
        assert (headers[b"content-length"], body) == (b"3", "hé".encode())
        assert b"content-type" not in headers

    async def test_a_method_that_expects_a_body_says_that_there_is_none(self):
        assert (await self.sent())[0][b"content-length"] == b"0"
        assert b"content-length" not in dict((await scope_of("/"))["headers"])

    async def test_two_bodies_are_an_error(self):
        async with client_of(hello) as client:
            with pytest.raises(TypeError, match="one body; got json, content"):
                await client.post("/", json={}, content=b"")

    @pytest.mark.parametrize("option", ["params", "files", "body", "max_queue"])
    async def test_an_option_that_there_is_not_is_an_error(self, option):
        async with client_of(hello) as client:
            with pytest.raises(
                TypeError, match=rf"^a request has no option '{option}'; it takes headers, query, cookies,"
            ):
                await client.post("/", **{option: 1})

    async def test_chunks_are_fetched_when_the_app_has_taken_the_one_before(self):
        fetched = []
        taken = []

        async def chunks():
            for chunk in (b"a", b"b", b"c"):
                fetched.append(chunk)
                yield chunk

        async def app(scope, receive, send):
            assert dict(scope["headers"])[b"transfer-encoding"] == b"chunked"
            more = True
            while more:
                event = await receive()
                taken.append(event["body"])
                more = event["more_body"]
                assert len(fetched) - len(taken) <= 1
            await hello(scope, receive, send)

        async with client_of(app) as client:
            await client.post("/", content=chunks())
        assert taken == [b"a", b"b", b"c", b""]

    async def test_a_response_before_the_end_of_an_endless_body_ends_it(self):
        async def chunks():
            try:
                while True:
                    yield b"x"
            finally:
                closed.append(True)

        closed = []
        async with client_of(hello) as client:
            response = await client.post("/", content=chunks())
        assert (response.text, closed) == ("hello", [True])

    async def test_a_body_that_never_comes_ends_with_the_requests_time_out(self):
        async def chunks():
            await anyio.sleep_forever()
            yield b""

        async def app(scope, receive, send):
            assert (await receive())["type"] == "http.disconnect"

        async with client_of(app, timeout=SHORT) as client:
            with pytest.raises(TimeoutError, match="no response start"):
                await client.post("/", content=chunks())

    async def test_a_body_that_fails_is_raised_and_the_app_sees_the_disconnect(self):
        async def chunks():
            yield b"a"
            raise LookupError("no more")

        events = []

        async def app(scope, receive, send):
            events.extend([await receive(), await receive()])

        async with client_of(app) as client:
            with pytest.raises(LookupError, match="no more"):
                await client.post("/", content=chunks())
        assert [event["type"] for event in events] == ["http.request", "http.disconnect"]

    async def test_chunks_that_are_no_bytes_are_an_error(self):
        class Chunks:
            def __aiter__(self):
                return self

            async def __anext__(self):
                return "text"

        async def app(scope, receive, send):
            await receive()

        async with client_of(app) as client:
            with pytest.raises(TypeError, match="chunks of content= as bytes, got 'text'"):
                await client.post("/", content=Chunks())


class TestScopes:
    async def test_an_http_scope_is_complete(self):
        scope = await scope_of("/a b/%2F?x=1", query={"y": ["ü", 2]}, headers={"X-One": "1"})
        headers = scope.pop("headers")
        del scope["state"]
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
            "extensions": {},
        }
        assert headers == [
            (b"host", b"testserver"),
            (b"user-agent", b"microws-test-client"),
            (b"accept", b"*/*"),
            (b"x-one", b"1"),
        ]

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

    async def test_origin_and_subprotocols_are_sent_only_when_given(self):
        names = {name for name, _ in (await scope_of("/ws", kind="websocket"))["headers"]}
        assert not names & {b"origin", b"sec-websocket-protocol"}

    async def test_base_url_gives_scheme_server_and_host(self):
        scope = await scope_of("/", client={"base_url": "https://example.org:8443/"})
        assert (scope["scheme"], scope["server"]) == ("https", ("example.org", 8443))
        assert dict(scope["headers"])[b"host"] == b"example.org:8443"
        assert (await scope_of("/", kind="websocket", client={"base_url": "https://x"}))["scheme"] == "wss"

    @pytest.mark.parametrize("base_url", ["ftp://x", "testserver", "http://", "http://x/path"])
    async def test_a_base_url_that_is_none_is_refused(self, base_url):
        with pytest.raises(ValueError, match="expected a base_url such as"):
            TestClient(hello, base_url=base_url)

    async def test_a_path_begins_with_a_slash(self):
        async with client_of(hello) as client:
            with pytest.raises(ValueError, match="begins with '/', got 'x'"):
                await client.get("x")

    async def test_a_fragment_is_not_sent(self):
        assert (await scope_of("/a#b?c"))["raw_path"] == b"/a"

    async def test_client_address_and_root_path_are_options(self):
        scope = await scope_of("/api/x", client={"client": None, "root_path": "/api"})
        assert (scope["client"], scope["root_path"], scope["path"]) == (None, "/api", "/api/x")

    async def test_headers_of_the_request_replace_those_of_the_client_by_name(self):
        scope = await scope_of(
            "/",
            client={"headers": [("X-A", "1"), ("x-a", "2"), ("User-Agent", "me")]},
            headers=[("X-B", "3"), ("x-b", "4")],
        )
        assert scope["headers"][1:] == [
            (b"user-agent", b"me"),
            (b"accept", b"*/*"),
            (b"x-a", b"1"),
            (b"x-a", b"2"),
            (b"x-b", b"3"),
            (b"x-b", b"4"),
        ]
        scope = await scope_of("/", client={"headers": {"x-a": "1"}}, headers={"X-A": "2"})
        assert (b"x-a", b"2") in scope["headers"]
        assert (b"x-a", b"1") not in scope["headers"]

    async def test_the_lifespans_state_is_copied_into_each_scope(self):
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
    def test_any_header_is_taken(self, set_cookie, path):
        jar = CookieJar()
        jar.store(set_cookie, request_path=path)
        assert len(jar) <= 1

    async def test_cookies_that_a_response_sets_come_back(self):
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

    async def test_a_handshake_sends_and_stores_cookies(self):
        async def app(scope, receive, send):
            assert dict(scope["headers"])[b"cookie"] == b"a=1"
            cookie = (b"set-cookie", b"b=2")
            if scope["path"] == "/no":
                await send({"type": "websocket.http.response.start", "status": 401, "headers": [cookie]})
                await send({"type": "websocket.http.response.body"})
            else:
                await send({**ACCEPT, "headers": [cookie]})

        for path in ("/yes", "/no"):
            async with client_of(app) as client:
                client.cookies["a"] = "1"
                try:
                    async with client.websocket(path):
                        pass
                except WebSocketRejected:
                    assert path == "/no"
                assert client.cookies == {"a": "1", "b": "2"}

    def test_a_jar_is_a_mapping(self):
        jar = CookieJar()
        jar["a"] = "1"
        assert (dict(jar), len(jar), repr(jar)) == ({"a": "1"}, 1, "CookieJar({'a': '1'})")
        del jar["a"]
        assert not jar

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
    def test_path_expiry_and_secure_are_followed(self, set_cookie, sent_to, not_sent_to):
        jar = CookieJar()
        jar.store(set_cookie, request_path="/set/here")
        assert all(jar.select(path, secure=False) == {"a": "1"} for path in sent_to)
        assert not any(jar.select(path, secure=False) for path in not_sent_to)

    def test_a_secure_cookie_travels_over_tls(self):
        jar = CookieJar()
        jar.store("a=1; Secure", request_path="/x")
        assert jar.select("/", secure=True) == {"a": "1"}


class TestLifespans:
    async def test_startup_runs_before_the_first_request_and_shutdown_after_the_last(self):
        log = []

        async def app(scope, receive, send):
            log.append("request")
            await hello(scope, receive, send)

        async with TestClient(lifespan_app(app, log=log)) as client:
            assert log == ["startup"]
            await client.get("/")
        assert log == ["startup", "request", "shutdown"]

    async def test_an_app_without_lifespan_is_fine(self):
        async def indifferent(scope, receive, send):
            if scope["type"] == "http":
                await hello(scope, receive, send)

        async with client_of(hello) as client, TestClient(indifferent) as other, TestClient(hello) as careless:
            assert [(await each.get("/")).text for each in (client, other, careless)] == ["hello"] * 3

    async def test_the_lifespan_can_be_left_out(self):
        async def app(scope, receive, send):
            event = await receive()
            assert event["type"] == "http.request"
            await hello(scope, receive, send)

        async with TestClient(app, lifespan=False) as client:
            assert (await client.get("/")).text == "hello"

    async def test_an_exception_in_startup_is_raised_plain(self):
        async def app(scope, receive, send):
            await receive()
            raise LookupError("no database")

        with pytest.raises(LookupError, match="no database"):
            async with TestClient(app):
                raise AssertionError

    @pytest.mark.parametrize("phase", ["startup", "shutdown"])
    async def test_a_failed_phase_raises_its_message(self, phase):
        async def app(scope, receive, send):
            await receive()
            if phase == "shutdown":
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": f"lifespan.{phase}.failed", "message": "no database"})

        with pytest.raises(RuntimeError, match=f"the app's {phase} failed: no database"):
            async with TestClient(app):
                pass

    async def test_an_exception_behind_startup_failed_says_more_than_the_message(self):
        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "traceback"})
            raise LookupError("no database")

        with pytest.raises(LookupError, match="no database"):
            async with TestClient(app):
                raise AssertionError

    async def test_an_app_that_goes_on_after_startup_failed_is_cancelled(self):
        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.failed"})
            await receive()

        with pytest.raises(RuntimeError, match="startup failed"):
            async with TestClient(app, timeout=SHORT):
                raise AssertionError

    async def test_a_startup_without_answer_times_out(self):
        async def app(scope, receive, send):
            await receive()
            await anyio.sleep_forever()

        with pytest.raises(TimeoutError, match=r"lifespan: no answer to lifespan\.startup within 0\.1 s"):
            async with TestClient(app, timeout=SHORT):
                raise AssertionError

    async def test_a_shutdown_without_answer_times_out(self):
        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await anyio.sleep_forever()

        with pytest.raises(TimeoutError, match=r"no answer to lifespan\.shutdown"):
            async with TestClient(app, timeout=SHORT):
                pass

    async def test_an_app_that_lives_on_after_shutdown_times_out(self):
        async def app(scope, receive, send):
            await lifespan_app(hello)(scope, receive, send)
            await anyio.sleep_forever()

        with pytest.raises(TimeoutError, match="lifespan: the app did not end within"):
            async with TestClient(app, timeout=SHORT):
                pass

    async def test_returning_without_an_answer_to_shutdown_is_an_error(self):
        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()

        with pytest.raises(RuntimeError, match=r"returned without lifespan\.shutdown\.complete"):
            async with TestClient(app):
                pass

    async def test_a_lifespan_that_ends_early_says_why_at_the_end(self):
        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.complete"})
            if fails:
                raise LookupError("lost")

        fails = False
        async with TestClient(app):
            pass
        fails = True
        with pytest.raises(LookupError, match="lost"):
            async with TestClient(app):
                await checkpoint()

    async def test_a_breach_of_the_lifespans_order_names_the_option(self):
        async def app(scope, receive, send):
            await receive()
            await send(ACCEPT)

        with pytest.raises(RuntimeError, match=r"expected lifespan\.startup\.complete or .* got|lifespan=False"):
            async with TestClient(app):
                raise AssertionError


@pytest.fixture
async def client():
    async with TestClient(lifespan_app(echo)) as client:
        yield client


class TestTheClient:
    async def test_it_may_live_in_a_fixture(self, client):
        async with client.websocket("/") as ws:
            await ws.send("hi")
            assert await ws.receive() == "hi"

    async def test_it_is_used_inside_its_block(self):
        client = client_of(hello)
        with pytest.raises(RuntimeError, match="async with TestClient"):
            await client.get("/")
        async with client:
            with pytest.raises(RuntimeError, match="in use already"):
                await client.__aenter__()
            assert (await client.get("/")).text == "hello"
        with pytest.raises(RuntimeError, match="async with TestClient"):
            await client.get("/")
        async with client:
            assert (await client.get("/")).text == "hello"

    async def test_an_exception_of_the_test_passes_plain(self):
        log = []
        with pytest.raises(ZeroDivisionError):
            async with TestClient(lifespan_app(hello, log=log)):
                raise ZeroDivisionError
        assert log == ["startup", "shutdown"]

    async def test_a_test_that_is_cancelled_cancels_the_app(self):
        ended = []

        async def app(scope, receive, send):
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(scope["type"])

        with anyio.move_on_after(SHORT) as scope:
            async with client_of(app) as client:
                await client.get("/")
        assert scope.cancelled_caught
        assert ended == ["http"]
        await checkpoint()

    async def test_a_cancellation_while_the_client_ends_goes_through(self):
        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await anyio.sleep_forever()

        with anyio.move_on_after(SHORT) as scope:
            async with TestClient(app):
                pass
        assert scope.cancelled_caught
        await checkpoint()

    async def test_an_app_that_does_not_end_is_cancelled_and_named(self):
        ended = []

        async def app(scope, receive, send):
            try:
                await send(ACCEPT)
                await anyio.sleep_forever()
            finally:
                ended.append(True)

        with pytest.raises(TimeoutError, match=r"WebSocket /x: the app did not end within 0\.1 s"):
            async with client_of(app, timeout=SHORT) as client, client.websocket("/x"):
                pass
        assert ended == [True]

    async def test_a_request_that_was_abandoned_is_reported_at_the_end(self):
        async def app(scope, receive, send):
            await anyio.sleep_forever()

        client = await client_of(app, timeout=2 * SHORT).__aenter__()
        for path in ("/a", "/b"):
            with anyio.move_on_after(SHORT):
                await client.get(path)
        with pytest.raises(TimeoutError, match="GET /a: the app did not end") as caught:
            await client.__aexit__(None, None, None)
        assert "GET /b: the app did not end" in caught.value.__notes__[0]

    async def test_an_app_that_fails_after_it_was_abandoned_is_reported_at_the_end(self):
        async def app(scope, receive, send):
            await receive()
            assert (await receive())["type"] == "http.disconnect"
            raise LookupError("late")

        client = await client_of(app).__aenter__()
        with anyio.move_on_after(SHORT):
            await client.get("/")
        with pytest.raises(LookupError, match="late"):
            await client.__aexit__(None, None, None)

    async def test_what_fails_at_the_end_is_a_note_under_the_tests_own_exception(self):
        async def app(scope, receive, send):
            await send(ACCEPT)
            await receive()
            assert (await receive())["type"] == "websocket.disconnect"
            raise LookupError("late")

        with pytest.raises(ZeroDivisionError) as caught:
            async with client_of(app) as client, client.websocket("/"):
                raise ZeroDivisionError
        assert "LookupError: late" in caught.value.__notes__[0]

    async def test_what_is_open_when_the_client_ends_is_cut(self):
        log = []
        async with client_of(recording(log)) as client:
            await client.websocket("/").__aenter__()
        assert log == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]

    @pytest.mark.parametrize("max_queue", [0, -1])
    async def test_a_queue_holds_at_least_one(self, max_queue):
        async with client_of(hello) as client:
            with pytest.raises(ValueError, match="max_queue of at least 1"):
                client.websocket("/", max_queue=max_queue)
            with pytest.raises(ValueError, match="max_queue of at least 1"):
                client.stream("GET", "/", max_queue=max_queue)


class TestTimeouts:
    async def test_no_response_start_is_said(self):
        async def app(scope, receive, send):
            await anyio.sleep_forever()

        async with client_of(app, timeout=SHORT) as client:
            with pytest.raises(TimeoutError, match=r"^no response start from GET /x within 0\.1 s$"):
                await client.get("/x")
            with pytest.raises(TimeoutError, match=r"^no response start from GET /x within 0\.1 s$"):
                async with client.stream("GET", "/x"):
                    raise AssertionError

    async def test_a_response_that_never_completes_is_limited_as_a_whole(self):
        async def app(scope, receive, send):
            await send(OK)
            while True:
                await send({**END, "body": b"x", "more_body": True})
                await anyio.sleep(SHORT / 10)

        async with client_of(app) as client:
            with pytest.raises(TimeoutError, match=r"^no complete response from GET /x within 0\.1 s$"):
                await client.get("/x", timeout=SHORT)

    def test_a_wait_lasts_5_seconds_unless_it_is_told_otherwise(self):
        assert inspect.signature(TestClient).parameters["timeout"].default == 5

    async def test_an_app_that_goes_on_after_its_response_is_said(self):
        async def app(scope, receive, send):
            await hello(scope, receive, send)
            await anyio.sleep_forever()

        async with client_of(app, timeout=SHORT) as client:
            with pytest.raises(TimeoutError, match="GET /x: the response is complete, but the app did not end"):
                await client.get("/x")

    async def test_no_answer_to_a_handshake_is_said(self):
        async def app(scope, receive, send):
            await anyio.sleep_forever()

        async with client_of(app, timeout=SHORT) as client:
            with pytest.raises(TimeoutError, match=r"no answer to the handshake of WebSocket /x within 0\.1 s"):
                async with client.websocket("/x"):
                    raise AssertionError

    async def test_no_message_and_no_close_are_said_and_nothing_is_lost(self):
        async with client_of(echo) as client, client.websocket("/x") as ws:
            with pytest.raises(TimeoutError, match=r"WebSocket /x: no message within 0\.1 s"):
                await ws.receive(timeout=SHORT)
            with pytest.raises(TimeoutError, match=r"WebSocket /x: no close within 0\.1 s"):
                await ws.wait_closed(timeout=SHORT)
            await ws.send("late")
            assert await ws.receive() == "late"

    async def test_the_connections_own_time_out_precedes_the_clients(self):
        async with client_of(echo, timeout=math.inf) as client, client.websocket("/", timeout=SHORT) as ws:
            with pytest.raises(TimeoutError):
                await ws.receive()

    async def test_a_time_out_of_zero_takes_what_is_there(self):
        async def app(scope, receive, send):
            await send(ACCEPT)
            await send({"type": "websocket.send", "text": "1"})
            await receive()
            await receive()

        async with client_of(app) as client, client.websocket("/") as ws:
            assert await ws.receive(timeout=1) == "1"
            with pytest.raises(TimeoutError):
                await ws.receive(timeout=0)

    async def test_an_app_that_ignores_its_end_keeps_no_test_waiting(self):
        async def app(scope, receive, send):
            await send(ACCEPT)
            while True:
                await receive()

        async with client_of(app, timeout=SHORT) as client:
            with pytest.raises(TimeoutError, match="did not end"):
                async with client.websocket("/"):
                    pass


class TestErrorsOfAnApp:
    """What an ``App`` has answered, and then raises."""

    @pytest.fixture
    def app(self):
        app = App()

        async def fail(*_):
            raise LookupError("crash")

        @app.get("/view")
        async def view():
            await fail()

        @app.get("/stream")
        async def stream():
            await fail()

        @app.websocket_route("/before")
        async def before(ws):
            await fail()

        @app.websocket_route("/message")
        async def message(ws):
            async with ws:
                await ws.send("hello")
                async for _ in ws:
                    await fail()

        @app.websocket_route("/late")
        async def late(ws):
            async with ws:
                async for _ in ws:
                    pass
            await fail()

        @app.websocket_route("/helper")
        async def helper(ws):
            async with ws:
                ws.start_soon(fail)
                await ws.receive()

        @app.after_websocket
        async def hook(ws):
            if ws.path == "/hook":
                await fail()

        @app.websocket_route("/hook")
        async def hooked(ws):
            async with ws:
                await ws.send("hello")

        @app.get("/task")
        async def task():
            app.start_soon(fail)

        return app

    async def test_a_request_and_a_handshake_raise_them(self, app):
        async with app.test_client() as client:
            with pytest.raises(LookupError, match="crash"):
                await client.get("/view")
            with pytest.raises(LookupError, match="crash"):
                async with client.stream("GET", "/stream") as response:
                    await response.read()
            with pytest.raises(LookupError, match="crash"):
                async with client.websocket("/before"):
                    raise AssertionError

    @pytest.mark.parametrize("path", ["/late", "/hook"])
    async def test_the_block_of_a_websocket_raises_what_the_app_raises_after_its_end(self, app, path):
        async with app.test_client() as client:
            with pytest.raises(LookupError, match="crash"):
                async with client.websocket(path):
                    pass

    @pytest.mark.parametrize("path", ["/message", "/helper"])
    async def test_they_are_raised_in_place_of_the_close_that_they_cause(self, app, path):
        async def read_all(client):
            async with client.websocket(path) as ws:
                await ws.send("x")
                while True:
                    await ws.receive()

        async with app.test_client() as client:
            with pytest.raises(LookupError, match="crash") as caught:
                await read_all(client)
        assert caught.value.__context__.code == 1011

    async def test_a_test_that_expects_the_close_gets_them_at_the_end_of_the_block(self, app):
        async def read_and_see_the_close(client):
            async with client.websocket("/helper") as ws:
                with pytest.raises(WebSocketDisconnect) as closed:
                    await ws.receive()
                assert closed.value.code == 1011

        async with app.test_client() as client:
            with pytest.raises(LookupError, match="crash"):
                await read_and_see_the_close(client)

    async def test_a_background_task_s_is_raised_by_the_next_request_or_at_the_end(self, app):
        async with app.test_client() as client:
            await client.get("/task")
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(LookupError, match="crash"):
                await client.get("/task")

        async def start_task():
            async with app.test_client() as client:
                await client.get("/task")
                await anyio.wait_all_tasks_blocked()

        with pytest.raises(LookupError, match="crash"):
            await start_task()

    async def test_without_raise_errors_only_the_answers_show_them(self, app, caplog):
        async with app.test_client(raise_errors=False) as client:
            assert (await client.get("/view")).status == 500
            async with client.stream("GET", "/stream") as response:
                assert response.status == 500
            with pytest.raises(WebSocketRejected) as refused:
                async with client.websocket("/before"):
                    raise AssertionError
            assert refused.value.status == 500
            for path, code in {"/message": 1011, "/helper": 1011, "/hook": 1000}.items():
                async with client.websocket(path) as ws:
                    await ws.send("x")
                    await ws.wait_closed()
                    assert ws.close_code == code
            async with client.websocket("/late"):
                pass
            await client.get("/task")
            await anyio.wait_all_tasks_blocked()
            await client.get("/task")
        assert caplog.text.count("LookupError: crash") >= 8

    async def test_what_an_error_handler_answers_is_not_raised(self, app):
        @app.error_handler(LookupError)
        async def handle(connection, error):
            return "sorry", 418

        async with app.test_client() as client:
            assert (await client.get("/view")).status == 418

    async def test_an_app_that_has_not_answered_raises_always(self):
        async with client_of(crash, raise_errors=False) as client:
            with pytest.raises(LookupError, match="crash"):
                await client.get("/")


class TestBlocksThatWereNotEntered:
    async def test_every_use_of_a_websocket_says_what_to_write(self):
        async with client_of(crash) as client:
            ws = client.websocket("/")
            uses = [partial(ws.send, "x"), ws.receive, ws.close, ws.wait_closed, partial(anext, ws)]
            for use in uses:
                with pytest.raises(RuntimeError, match=r"write `async with client\.websocket\(…\) as …:`"):
                    await use()
            for name in ("closed", "close_code", "close_reason"):
                with pytest.raises(RuntimeError, match="expected an entered block"):
                    getattr(ws, name)
            with pytest.raises(RuntimeError, match="expected an entered block"):
                ws.abort()

    async def test_every_use_of_a_stream_says_what_to_write(self):
        async with client_of(crash) as client:
            response = client.stream("GET", "/")
            for use in (response.read, partial(anext, response.iter_lines()), partial(anext, response.events())):
                with pytest.raises(RuntimeError, match=r"write `async with client\.stream\(…\) as …:`"):
                    await use()
            for name in ("status", "headers"):
                with pytest.raises(RuntimeError, match="expected an entered block"):
                    getattr(response, name)


class TestAppErrors:
    async def test_an_exception_of_the_app_is_raised_by_the_request(self):
        async with client_of(crash) as client:
            with pytest.raises(LookupError, match="crash"):
                await client.get("/")
            with pytest.raises(LookupError, match="crash"):
                async with client.stream("GET", "/"):
                    raise AssertionError
            with pytest.raises(LookupError, match="crash"):
                async with client.websocket("/"):
                    raise AssertionError

    @pytest.mark.parametrize("outcome", [pytest.fail.Exception("no"), pytest.skip.Exception("no"), SystemExit(3)])
    async def test_what_ends_a_test_is_raised_from_the_app_too(self, outcome):
        async def app(scope, receive, send):
            raise outcome

        async with client_of(app) as client:
            with pytest.raises(type(outcome)) as caught:
                await client.get("/")
        assert caught.value is outcome

    async def test_a_time_out_of_the_app_is_its_own_exception(self):
        async def app(scope, receive, send):
            raise TimeoutError("database")

        async with client_of(app) as client:
            with pytest.raises(TimeoutError, match=r"^database$"):
                await client.get("/")

    async def test_an_exception_in_and_behind_a_response_is_raised_too(self):
        async def app(scope, receive, send):
            await send(OK)
            if scope["path"] == "/behind":
                await send(END)
            raise LookupError("late")

        async with client_of(app) as client:
            for path in ("/in", "/behind"):
                with pytest.raises(LookupError, match="late"):
                    await client.get(path)

    async def test_a_response_that_is_missing_or_cut_short_is_an_error(self):
        async with answering() as client:
            with pytest.raises(RuntimeError, match="no response start from GET /x: the app returned"):
                await client.get("/x")
            with pytest.raises(RuntimeError, match="no answer to the handshake of WebSocket /x: the app returned"):
                async with client.websocket("/x"):
                    raise AssertionError
        async with answering(OK, {**END, "more_body": True}) as client:
            with pytest.raises(RuntimeError, match="no complete response from GET /x: the app returned"):
                await client.get("/x")

    async def test_the_next_receive_raises_what_left_the_app_behind_what_it_sent(self):
        async def app(scope, receive, send):
            await send(ACCEPT)
            await send({"type": "websocket.send", "text": "1"})
            raise LookupError("crash")

        async with client_of(app) as client, client.websocket("/") as ws:
            assert await ws.receive() == "1"
            with pytest.raises(LookupError, match="crash"):
                await ws.receive()
            with pytest.raises(WebSocketDisconnect) as caught:
                await ws.receive()
            assert caught.value.code == 1006

    async def test_send_and_wait_closed_raise_what_left_the_app(self):
        async def app(scope, receive, send):
            await send(ACCEPT)
            raise LookupError("crash")

        async with client_of(app) as client:
            async with client.websocket("/") as ws:
                with pytest.raises(LookupError, match="crash"):
                    await ws.wait_closed()
            async with client.websocket("/") as ws:
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(LookupError, match="crash"):
                    await ws.send("x")

    async def test_the_end_of_the_block_raises_what_left_the_app(self):
        async def app(scope, receive, send):
            await send(ACCEPT)
            raise LookupError("crash")

        async with client_of(app) as client:
            with pytest.raises(LookupError, match="crash"):
                async with client.websocket("/"):
                    pass

    async def test_an_exception_behind_the_apps_close_comes_behind_the_close(self):
        async def app(scope, receive, send):
            await send(ACCEPT)
            await send({"type": "websocket.close", "code": 1011})
            raise LookupError("crash")

        async with client_of(app) as client:
            ws = await client.websocket("/").__aenter__()
            with pytest.raises(WebSocketDisconnect, match="1011"):
                await ws.receive()
            with pytest.raises(LookupError, match="crash"):
                await ws.__aexit__(None, None, None)

    async def test_a_group_of_exceptions_stays_the_apps_own(self):
        async def app(scope, receive, send):
            raise ExceptionGroup("several", [LookupError("crash")])

        async with client_of(app) as client:
            with pytest.raises(ExceptionGroup, match="several"):
                await client.get("/")


class TestStreams:
    async def test_chunks_come_as_the_app_sends_them(self):
        go_on = []

        async def app(scope, receive, send):
            await send(STREAM)
            await send({**END, "body": b"a", "more_body": True})
            while not go_on:
                await checkpoint()
            await send({**END, "body": b"b"})

        async with client_of(app) as client, client.stream("GET", "/") as response:
            assert (response.status, response.headers["content-type"]) == (200, "text/event-stream")
            chunks = response.iter_bytes()
            assert await anext(chunks) == b"a"
            go_on.append(True)
            assert [chunk async for chunk in chunks] == [b"b"]
            assert await response.read() == b""

    async def test_lines_are_joined_over_chunks_and_end_in_any_of_three_ways(self):
        body = "ä\r\nb\rc\n\nd".encode()
        chunks = [{**END, "body": body[i : i + 1], "more_body": True} for i in range(len(body))]
        async with answering(STREAM, *chunks, END) as client, client.stream("GET", "/") as response:
            async for line in response.iter_lines():
                assert line == "ä"
                break
            assert [line async for line in response.iter_lines()] == ["b", "c", "", "d"]
            assert [line async for line in response.iter_lines()] == []

    async def test_events_are_parsed(self):
        async def app(scope, receive, send):
            await send(STREAM)
            await send({**END, "body": b'id: 1\ndata: {"a": 1}\n\n: ping\n\nevent: x\nda', "more_body": True})
            await send({**END, "body": b"ta: 2\n\ndata: cut off"})

        async with client_of(app) as client, client.stream("GET", "/") as response:
            async for event in response.events():
                assert event.json() == {"a": 1}
                break
            rest = [event async for event in response.events()]
        assert rest == [ReceivedEvent("2", event="x", id="1")]

    async def test_leaving_the_block_reaches_the_app_and_waits_for_its_end(self):
        log = []

        async def app(scope, receive, send):
            await receive()
            await send(STREAM)
            log.append(await receive())
            for _ in range(5):
                await checkpoint()
            log.append("end")

        async with client_of(app) as client:
            async with client.stream("GET", "/"):
                pass
            assert log == [{"type": "http.disconnect"}, "end"]

    async def test_a_client_that_does_not_read_holds_the_app_back(self):
        sent = []

        async def app(scope, receive, send):
            await send(STREAM)
            for number in range(10):
                await send({**END, "body": b"x", "more_body": True})
                sent.append(number)

        async with client_of(app) as client, client.stream("GET", "/", max_queue=2) as response:
            await anyio.wait_all_tasks_blocked()
            assert sent == [0, 1]
            await anext(response.iter_bytes())
            await anyio.wait_all_tasks_blocked()
            assert sent == [0, 1, 2]

    async def test_the_last_chunk_is_not_lost_when_it_had_to_wait(self):
        chunk = {**END, "body": b"x", "more_body": True}
        app = answering(STREAM, chunk, {**chunk, "more_body": False})
        async with app as client, client.stream("GET", "/", max_queue=1) as response:
            await anyio.wait_all_tasks_blocked()
            assert await response.read() == b"xx"

    async def test_each_wait_has_a_limit(self):
        async def app(scope, receive, send):
            await receive()
            await send(STREAM)
            await receive()

        async with client_of(app) as client, client.stream("GET", "/x", timeout=SHORT) as response:
            with pytest.raises(TimeoutError, match=r"no more of the response to GET /x within 0\.1 s"):
                await response.read()

    async def test_an_app_that_fails_in_the_middle_is_raised_behind_what_it_sent(self):
        async def app(scope, receive, send):
            await send(STREAM)
            await send({**END, "body": b"a", "more_body": True})
            raise LookupError("crash")

        async with client_of(app) as client, client.stream("GET", "/") as response:
            chunks = response.iter_bytes()
            assert await anext(chunks) == b"a"
            with pytest.raises(LookupError, match="crash"):
                await anext(chunks)


class TestServerSentEvents:
    @staticmethod
    def parse(*lines):
        async def read():
            body = {**END, "body": "\n".join([*lines, ""]).encode()}
            async with answering(STREAM, body) as client, client.stream("GET", "/") as response:
                return [event async for event in response.events()]

        return anyio.run(read)

    def test_data_lines_are_joined_and_the_type_is_not_kept(self):
        assert self.parse("event: a", "data: 1", "data", "data:  2", "", "data:3", "") == [
            ReceivedEvent("1\n\n 2", event="a"),
            ReceivedEvent("3"),
        ]

    def test_an_event_without_data_is_none_and_its_type_is_forgotten(self):
        assert self.parse("event: a", "", "data: 1", "") == [ReceivedEvent("1")]

    def test_id_and_retry_are_kept_and_bad_ones_ignored(self):
        events = self.parse("id: 1", "retry: 10", "data: a", "", "id: \0", "retry: x", "retry: ²", "data: b", "", "id")
        assert events == [ReceivedEvent("a", id="1", retry=10), ReceivedEvent("b", id="1", retry=10)]

    def test_comments_and_unknown_fields_are_ignored(self):
        assert self.parse(": data: x", "other: x", "Data: x", "") == []

    @given(st.lists(st.text()))
    def test_any_lines_are_an_event_stream(self, lines):
        assert all(isinstance(event, ReceivedEvent) for event in self.parse(*lines))


class TestWebSockets:
    async def test_values_travel_by_their_type(self):
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

    async def test_messages_come_as_they_were_sent(self):
        async with client_of(echo) as client, client.websocket("/") as ws:
            await ws.send("")
            assert await ws.receive() == ""
            await ws.send(b"")
            assert await ws.receive() == b""
            await ws.send_text("a")
            assert await ws.receive_text() == "a"
            await ws.send_bytes(b"a")
            assert await ws.receive_bytes() == b"a"
            await ws.send_json([1])
            assert await ws.receive_json() == [1]
            await ws.send("a")
            assert await ws.receive_event() == {"type": "websocket.send", "text": "a"}

    async def test_the_wrong_kind_of_frame_is_an_error(self):
        async with client_of(echo) as client, client.websocket("/x") as ws:
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
        log = []
        paths = []

        def codecs(path):
            paths.append(path)
            return {"/json": (JSON, JSON), "/mixed": (BYTES, TEXT)}.get(path)

        async def app(scope, receive, send):
            await receive()
            await send(ACCEPT)
            while (event := await receive())["type"] == "websocket.receive":
                log.append(event)
                await send({**event, "type": "websocket.send"})

        async with client_of(app, codecs=codecs) as client:
            async with client.websocket("/json?q=1") as ws:
                await ws.send("hi")
                assert await ws.receive() == "hi"
                await ws.send({"a": 1})
                assert await ws.receive() == {"a": 1}
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

    async def test_accept_has_subprotocol_and_headers(self):
        accept = {**ACCEPT, "subprotocol": "b", "headers": [(b"x-a", b"1")]}
        client = client_of(recording([], accept=accept))
        async with client, client.websocket("/", subprotocols=["a", "b"]) as ws:
            assert (ws.subprotocol, ws.accept_headers["X-A"]) == ("b", "1")

    async def test_the_servers_close_ends_receiving_behind_what_came_before(self):
        log = []

        async def app(scope, receive, send):
            await receive()
            await send(ACCEPT)
            await send({"type": "websocket.send", "text": "1"})
            await send({"type": "websocket.close", "code": 4000, "reason": "done"})
            log.append(await receive())

        async with client_of(app) as client:
            async with client.websocket("/") as ws:
                await ws.wait_closed()
                assert (ws.closed, ws.close_code, ws.close_reason) == (True, 4000, "done")
                assert await ws.receive() == "1"
                for call in (ws.receive(), ws.receive(), ws.send("x")):
                    with pytest.raises(WebSocketDisconnect, match="4000 done"):
                        await call
                close = {"type": "websocket.close", "code": 4000, "reason": "done"}
                assert await ws.receive_event() == close
            assert log == [{"type": "websocket.disconnect", "code": 4000, "reason": "done"}]
            async with client.websocket("/") as ws:
                assert [message async for message in ws] == ["1"]

    async def test_the_servers_close_ends_receiving_at_once_though_its_app_goes_on(self):
        left = anyio.Event()

        async def app(scope, receive, send):
            await receive()
            await send(ACCEPT)
            await send({"type": "websocket.close", "code": 4000, "reason": "done"})
            await left.wait()

        async with client_of(app) as client, client.websocket("/") as ws:
            with pytest.raises(WebSocketDisconnect, match="4000 done"):
                await ws.receive(timeout=1)
            left.set()

    async def test_a_close_without_code_or_with_reason_none_is_1000(self):
        for close in ({"type": "websocket.close"}, {"type": "websocket.close", "reason": None}):
            async with answering(ACCEPT, close) as client, client.websocket("/") as ws:
                await ws.wait_closed()
                assert (ws.close_code, ws.close_reason) == (1000, "")

    async def test_an_app_that_returns_without_a_close_breaks_the_connection(self):
        async with answering(ACCEPT) as client, client.websocket("/") as ws:
            with pytest.raises(WebSocketDisconnect) as caught:
                await ws.receive()
            assert caught.value.code == 1006

    async def test_before_the_end_there_is_no_close_code(self):
        async with client_of(echo) as client, client.websocket("/") as ws:
            assert (ws.closed, ws.close_code, ws.close_reason) == (False, None, None)

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
    async def test_the_app_sees_how_the_client_left(self, leave, code, reason):
        log = []
        async with client_of(recording(log)) as client, client.websocket("/") as ws:
            await ws.send("last")
            await leave(ws)
        disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
        assert log == [{"type": "websocket.receive", "text": "last"}, disconnect]

    async def test_after_its_own_close_the_client_still_gets_what_had_come(self):
        async with client_of(echo) as client, client.websocket("/") as ws:
            await ws.send("a")
            await anyio.wait_all_tasks_blocked()
            await ws.close(4000, "bye")
            await ws.close()
            assert await ws.receive() == "a"
            with pytest.raises(WebSocketDisconnect, match="4000 bye"):
                await ws.receive()
            with pytest.raises(WebSocketDisconnect, match="4000 bye"):
                await ws.send("b")

    async def test_a_close_that_may_not_be_sent_is_refused(self):
        async with client_of(echo) as client, client.websocket("/") as ws:
            for code, reason in ((1006, ""), (1005, "x"), (1000, "x" * 124)):
                with pytest.raises(ValueError, match="clos"):
                    await ws.close(code, reason)

    async def test_the_disconnect_comes_again_to_who_asks_again(self):
        log = []

        async def app(scope, receive, send):
            await receive()
            await send(ACCEPT)
            log.extend([await receive(), await receive()])

        async with client_of(app) as client, client.websocket("/"):
            pass
        assert log == [{"type": "websocket.disconnect", "code": 1000, "reason": ""}] * 2

    async def test_a_cancelled_test_vanishes(self):
        log = []
        async with client_of(recording(log)) as client:
            with anyio.move_on_after(SHORT):
                async with client.websocket("/"):
                    await anyio.sleep_forever()
        assert log == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]

    async def test_connections_may_end_in_any_order(self):
        async with client_of(echo) as client:
            a, b = client.websocket("/a"), client.websocket("/b")
            await a.__aenter__()
            await b.__aenter__()
            await a.__aexit__(None, None, None)
            await b.send("b")
            assert await b.receive() == "b"
            await b.__aexit__(None, None, None)


class TestSlowClients:
    async def test_a_client_that_does_not_read_holds_send_and_close_back_in_order(self):
        log = []

        async def app(scope, receive, send):
            await receive()
            await send(ACCEPT)
            for text in "abc":
                await send({"type": "websocket.send", "text": text})
                log.append(text)
            await send({"type": "websocket.close"})

        async with client_of(app) as client, client.websocket("/", max_queue=1) as ws:
            await anyio.wait_all_tasks_blocked()
            assert log == ["a"]
            assert await ws.receive() == "a"
            await anyio.wait_all_tasks_blocked()
            assert log == ["a", "b"]
            assert [message async for message in ws] == ["b", "c"]
            assert ws.close_code == 1000

    async def test_leaving_frees_a_send_that_waits(self):
        errors = []

        async def app(scope, receive, send):
            await receive()
            await send(ACCEPT)
            try:
                while True:
                    await send({"type": "websocket.send", "text": "x"})
            except OSError as error:
                errors.append(str(error))

        async with client_of(app) as client, client.websocket("/x", max_queue=1) as ws:
            await anyio.wait_all_tasks_blocked()
            ws.abort()
        assert errors == ["WebSocket /x: the client has disconnected"]

    async def test_a_close_that_was_cancelled_while_it_waited_has_not_closed(self):
        async def app(scope, receive, send):
            await send(ACCEPT)
            await send({"type": "websocket.send", "text": "x"})
            with anyio.move_on_after(SHORT):
                await send({"type": "websocket.close"})

        async with client_of(app) as client, client.websocket("/", max_queue=1) as ws:
            await ws.wait_closed()
            assert ws.close_code == 1006


class TestSendingToAClientThatHasLeft:
    @staticmethod
    def app(log, *, catch):
        async def app(scope, receive, send):
            log.append(scope["asgi"]["spec_version"])
            await receive()
            last = OK if scope["type"] == "http" else ACCEPT
            await send(last)
            assert (await receive())["type"].endswith(".disconnect")
            event = {**END, "more_body": True} if scope["type"] == "http" else {"type": "websocket.close"}
            for _ in range(2):
                try:
                    await send(event)
                    log.append("ignored")
                except OSError as error:
                    log.append(type(error))
                    if not catch:
                        raise

        return app

    @staticmethod
    async def leave(client):
        async with client.websocket("/"):
            pass
        async with client.stream("GET", "/"):
            pass

    async def test_raises_an_oserror_again_and_again(self):
        log = []
        async with client_of(self.app(log, catch=True)) as client:
            await self.leave(client)
        assert [error == "2.5" or issubclass(error, OSError) for error in log] == [True] * 6

    async def test_the_oserror_may_leave_the_app(self):
        log = []
        async with client_of(self.app(log, catch=False)) as client:
            await self.leave(client)
        assert len(log) == 4

    async def test_the_oserror_may_leave_the_app_in_a_group(self):
        async def app(scope, receive, send):
            await self.app([], catch=False)(scope, receive, wrapped_send(send))

        def wrapped_send(send):
            async def wrapped(event):
                try:
                    await send(event)
                except OSError as error:
                    raise ExceptionGroup("tasks", [error]) from None

            return wrapped

        async with client_of(app) as client:
            await self.leave(client)

    async def test_may_be_ignored_as_some_servers_do(self):
        log = []
        async with client_of(self.app(log, catch=False), send_after_disconnect="ignore") as client:
            await self.leave(client)
        assert log == ["2.3", "ignored", "ignored"] * 2

    async def test_a_send_that_waits_when_the_client_leaves_is_ignored_too(self):
        log = []

        async def app(scope, receive, send):
            await send(ACCEPT)
            for _ in range(3):
                await send({"type": "websocket.send", "text": "x"})
                log.append("sent")

        async with client_of(app, send_after_disconnect="ignore") as client, client.websocket("/", max_queue=1):
            await anyio.wait_all_tasks_blocked()
        assert log == ["sent"] * 3


class TestRefusals:
    async def rejection(self, *events, denial=True):
        extensions = []

        async def app(scope, receive, send):
            extensions.append(scope["extensions"])
            await receive()
            for event in events:
                await send(event)
            assert await receive() == {"type": "websocket.disconnect", "code": 1006, "reason": ""}

        async with client_of(app, denial=denial) as client:
            with pytest.raises(WebSocketRejected) as caught:
                async with client.websocket("/"):
                    raise AssertionError
        assert extensions == [{"websocket.http.response": {}} if denial else {}]
        return caught.value

    async def test_a_close_before_accept_is_403_with_its_code(self):
        rejected = await self.rejection({"type": "websocket.close", "code": 3404})
        assert (rejected.status, rejected.headers, rejected.body, rejected.code) == (403, [], b"", 3404)

    async def test_a_denial_response_has_status_headers_and_body(self):
        prefix = "websocket.http.response"
        rejected = await self.rejection(
            {"type": f"{prefix}.start", "status": 401, "headers": [(b"x-a", b"1")]},
            {"type": f"{prefix}.body", "body": b"no", "more_body": True},
            {"type": f"{prefix}.body", "body": b"pe"},
        )
        assert (rejected.status, rejected.body, rejected.code) == (401, b"nope", 3401)
        assert rejected.headers == [("x-a", "1")]

    async def test_without_the_extension_a_close_still_says_its_code(self):
        assert (await self.rejection({"type": "websocket.close", "code": 3404}, denial=False)).code == 3404

    async def test_without_the_extension_a_denial_is_a_breach(self):
        async def app(scope, receive, send):
            await send({"type": "websocket.http.response.start", "status": 401})

        async with client_of(app, denial=False) as client:
            with pytest.raises(RuntimeError, match=r"expected websocket\.accept or websocket\.close, the app sent"):
                async with client.websocket("/"):
                    raise AssertionError

    async def test_an_app_that_goes_on_after_a_refusal_times_out(self):
        async def app(scope, receive, send):
            await send({"type": "websocket.close"})
            await anyio.sleep_forever()

        async with client_of(app, timeout=SHORT) as client:
            with pytest.raises(TimeoutError, match="WebSocket /: the app did not end"):
                async with client.websocket("/"):
                    raise AssertionError


def start(**fields):
    return {**OK, **fields}


def body(**fields):
    return {**END, **fields}


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
            ([start(headers=[(b"content-length", b"2")]), body(body=b"abc")], "1 bytes longer than its content-length"),
            ([start(headers=[(b"content-length", b"2")]), body(body=b"a")], "1 bytes shorter than its content-length"),
            ([start(status=204), body(body=b"a")], "a response with status 204 has no body"),
            ([OK, body(body="text")], "expected 'body' of http.response.body to be bytes, the app sent 'text'"),
            ([OK, body(body=None)], "expected 'body' of http.response.body to be bytes, the app sent None"),
            ([OK, body(more_body=1)], "expected 'more_body' of http.response.body to be bool, the app sent 1"),
        ],
    )
    async def test_of_http(self, events, message):
        async with answering(*events) as client:
            with pytest.raises(RuntimeError) as caught:
                await client.get("/x")
        assert str(caught.value).startswith("GET /x: ")
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("events", "message"),
        [
            ([{"type": "websocket.send", "text": "x"}], "expected websocket.accept or websocket.close or websocket"),
            ([ACCEPT, ACCEPT], "expected websocket.send or websocket.close, the app sent websocket.accept"),
            ([{**ACCEPT, "subprotocol": "x"}], "expected a subprotocol of ['a'], the app accepted 'x'"),
            ([{**ACCEPT, "subprotocol": b"a"}], "expected 'subprotocol' of websocket.accept to be str"),
            ([{**ACCEPT, "headers": [(b"Sec-WebSocket-Protocol", b"a")]}], "expected a header name in lower case"),
            ([{**ACCEPT, "headers": [(b"sec-websocket-protocol", b"a")]}], "the app must send subprotocol="),
            ([ACCEPT, {"type": "websocket.send"}], "expected either 'text' or 'bytes'"),
            ([ACCEPT, {"type": "websocket.send", "text": "", "bytes": b""}], "expected either 'text' or 'bytes'"),
            ([ACCEPT, {"type": "websocket.send", "text": b"x"}], "expected 'text' of websocket.send to be str"),
            ([ACCEPT, {"type": "websocket.send", "bytes": bytearray()}], "expected 'bytes' of websocket.send to be"),
            ([ACCEPT, {"type": "websocket.send", "text": "\ud800"}], "expected text that UTF-8 can encode"),
            ([ACCEPT, {"type": "websocket.close", "code": 1006}], "1006 may not be sent as a close code"),
            ([ACCEPT, {"type": "websocket.close", "reason": "x" * 124}], "at most 123 UTF-8 bytes"),
            ([ACCEPT, {"type": "websocket.close"}, {"type": "websocket.close"}], "expected no event now"),
            ([ACCEPT, {"type": "websocket.close"}, {"type": "websocket.send", "text": ""}], "expected no event now"),
            ([{"type": "websocket.close"}, ACCEPT], "expected no event now, the app sent websocket.accept"),
            (
                [{"type": "websocket.http.response.start", "status": 401}, ACCEPT],
                "expected websocket.http.response.body, the app sent websocket.accept",
            ),
            ([{"type": "websocket.http.response.start", "status": 99}], "expected a status of 200 to 599"),
        ],
    )
    async def test_of_a_websocket(self, events, message):
        async with answering(*events) as client:
            with pytest.raises(RuntimeError) as caught:
                async with client.websocket("/x", subprotocols=["a"]):
                    await anyio.wait_all_tasks_blocked()
        assert str(caught.value).startswith("WebSocket /x: ")
        assert message in str(caught.value)

    async def test_surface_in_the_test_when_the_app_swallows_them(self):
        async def app(scope, receive, send):
            try:
                await send({"type": "websocket.send", "text": "x"})
            except RuntimeError:
                await send(ACCEPT)
            await receive()
            await receive()

        async with client_of(app) as client:
            with pytest.raises(RuntimeError, match=r"the app sent websocket\.send"):
                async with client.websocket("/") as ws:
                    await ws.receive()
            with pytest.raises(RuntimeError, match=r"the app sent websocket\.send"):
                async with client.websocket("/"):
                    pass

    async def test_a_connection_whose_breach_was_reported_is_over(self):
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

    async def test_bodies_that_are_not_counted_are_no_breach(self):
        async with answering(start(status=304, headers=[(b"content-length", b"5")]), END) as client:
            assert (await client.get("/")).status == 304
        async with answering(start(headers=iter([(b"content-length", b"2")])), body(body=b"ab")) as client:
            assert (await client.get("/")).headers["content-length"] == "2"
