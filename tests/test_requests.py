"""What a client said, as a view sees it; and a request's body, whole, in chunks, too large or never complete."""

from types import SimpleNamespace

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microws.datastructures import URL
from microws.errors import ClientDisconnect, HTTPException
from microws.forms import UploadFile
from microws.requests import Address, Request

pytestmark = pytest.mark.anyio

LEFT = {"type": "http.disconnect"}


class App:
    """What a connection asks of its app."""

    state = SimpleNamespace()

    def url_for(self, name, /, **params):
        return "/" + "/".join([name, *map(str, params.values())])

    async def publish(self, topic, value):
        raise NotImplementedError


def http_scope(**changes):
    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"example.org")],
        "client": ("127.0.0.1", 1234),
        "server": ("127.0.0.1", 8000),
    }
    scope.update(changes)
    return scope


async def nothing():
    raise AssertionError("nothing is to be read here")


def connect(**changes):
    scope = http_scope(**changes)
    return Request(scope, app=App(), path=scope["path"], path_params={}, receive=nothing, max_body_size=None)


@pytest.mark.parametrize(
    ("values", "token"),
    [
        ([], None),
        (["Bearer aB3.-_~+/=="], "aB3.-_~+/=="),
        (["bearer  x"], "x"),
        (["Basic eDp5"], None),
        (["Bearer"], None),
        (["Bearer "], None),
        (["Bearer a b"], None),
        (["Bearer \u00fc"], None),
        (["Bearer =a"], None),
        (["Bearer a", "Bearer a"], None),
    ],
)
def test_a_bearer_token_is_read_from_the_header(values, token):
    request = connect(headers=[(b"authorization", value.encode("latin-1")) for value in values])
    assert request.bearer == token
    assert "aB3" not in repr(request)


def chunks(*bodies):
    """The events of a body in these chunks."""
    events = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    events[-1]["more_body"] = False
    return events


def post(*events, max_body_size=1000, **headers):
    """A request whose ``receive`` gives ``events`` and then fails, so that nothing reads on for ever."""
    remaining = list(events)

    async def receive():
        await anyio.lowlevel.checkpoint()
        assert remaining, "read beyond the body"
        return remaining.pop(0)

    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = http_scope(headers=raw)
    return Request(scope, app=App(), path="/", path_params={}, receive=receive, max_body_size=max_body_size)


class TestConnection:
    def test_headers_query_and_cookies_are_parsed_once(self):
        connection = connect(query_string=b"a=1&a=2", headers=[(b"cookie", b"a=1"), (b"cookie", b"b=2")])
        assert connection.query.getlist("a") == ["1", "2"]
        assert connection.cookies == {"a": "1", "b": "2"}
        assert connection.headers.getlist("Cookie") == ["a=1", "b=2"]
        assert connection.query is connection.query
        assert connection.cookies is connection.cookies
        assert connection.headers is connection.headers

    @given(st.binary(), st.lists(st.binary()))
    def test_any_query_string_and_cookie_header_is_parsed(self, query_string, cookies):
        connection = connect(query_string=query_string, headers=[(b"cookie", cookie) for cookie in cookies])
        assert all(isinstance(value, str) for value in connection.query.values())
        assert all(isinstance(value, str) for value in connection.cookies.values())
        assert connection.url.query.isascii()

    def test_client_is_a_host_and_port_or_none(self):
        client = connect(client=["::1", 5]).client
        assert client == Address("::1", 5) == (client.host, client.port)
        assert connect(client=None).client is None

    def test_scheme_is_the_servers_or_the_default(self):
        assert connect(scheme="https").scheme == "https"
        assert connect(scheme="").scheme == "http"
        assert connect(type="websocket", scheme="").scheme == "ws"

    def test_url_for_begins_with_the_root_path(self):
        assert connect().url_for("chat", room=1) == "/chat/1"
        assert connect(root_path="/ä pi/").url_for("chat") == "/%C3%A4%20pi/chat"
        assert connect(root_path="//evil.example").url_for("chat") == "/evil.example/chat"


class TestURLOfAConnection:
    @pytest.mark.parametrize(
        ("changes", "url"),
        [
            ({}, "http://example.org/"),
            ({"path": "/a b", "raw_path": b"/a%20b", "query_string": b"c=%20"}, "http://example.org/a%20b?c=%20"),
            # An encoded slash stays encoded, and what the client need not have encoded too.
            ({"path": "/a/b", "raw_path": b"/a%2fb"}, "http://example.org/a%2fb"),
            ({"path": "/a", "raw_path": b"/a?b=c"}, "http://example.org/a"),
            # Rewritten by a middleware, or absent.
            ({"path": "/new ü", "raw_path": b"/old"}, "http://example.org/new%20%C3%BC"),
            ({"path": "/a", "raw_path": None}, "http://example.org/a"),
            # With the root path, wherever the server puts it.
            ({"path": "/api/x", "raw_path": b"/api/x", "root_path": "/api"}, "http://example.org/api/x"),
            ({"path": "/x", "raw_path": b"/x", "root_path": "/api/"}, "http://example.org/api/x"),
            ({"path": "/api", "raw_path": b"/api", "root_path": "/api"}, "http://example.org/api"),
            ({"path": "/apix", "raw_path": b"/apix", "root_path": "/api"}, "http://example.org/api/apix"),
            # Without Host: the server's own address.
            ({"headers": []}, "http://127.0.0.1:8000/"),
            ({"headers": [], "server": ("::1", 443), "scheme": "https"}, "https://[::1]/"),
            ({"headers": [], "server": ("/run/socket", None)}, "http://localhost/"),
            ({"headers": [], "server": None}, "http://localhost/"),
            ({"type": "websocket", "scheme": "wss"}, "wss://example.org/"),
            ({"query_string": b'a="<\xff> '}, "http://example.org/?a=%22%3C%FF%3E%20"),
        ],
    )
    def test_the_url_is_what_the_client_asked_for(self, changes, url):
        assert str(connect(**changes).url) == url
        assert isinstance(connect(**changes).url, URL)

    @given(st.text(), st.none() | st.binary(), st.text())
    def test_any_path_makes_a_valid_url(self, path, raw_path, root_path):
        url = str(connect(path=path, raw_path=raw_path, root_path=root_path).url)
        assert url.isascii()
        assert url.isprintable()
        assert " " not in url


class TestState:
    def test_state_begins_with_the_lifespans_and_is_shared_with_middleware(self):
        state = {"started": 1}
        connection = connect(state=state)
        connection.state.user = "ann"
        assert state == {"started": 1, "user": "ann"}
        state["later"] = 2
        assert (connection.state.started, connection.state.later) == (1, 2)
        for connection in (connect(), connect(state=None)):
            assert "started" not in connection.state
            connection.state.user = "ann"
            assert connection.scope["state"] == {"user": "ann"}


class TestBody:
    async def test_a_body_is_read_once_and_kept(self):
        request = post(*chunks(b"a", b"", b"bc"))
        assert request.method == "POST"
        assert not request.body_complete
        assert await request.body() == b"abc"
        assert await request.body() == b"abc"
        assert request.body_complete

    @pytest.mark.parametrize("streams", [False, True])
    async def test_a_cancelled_read_loses_nothing(self, streams):
        send, receive = anyio.create_memory_object_stream(2)
        request = Request(http_scope(), app=App(), path="/", path_params={}, receive=receive.receive, max_body_size=9)
        first, last = chunks(b"a", b"b")
        with send, receive:
            send.send_nowait(first)
            with anyio.move_on_after(0.01) as scope:
                await request.body()
            assert scope.cancelled_caught
            send.send_nowait(last)
            read = [chunk async for chunk in request.stream()] if streams else await request.body()
            assert read == ([b"a", b"b"] if streams else b"ab")

    async def test_a_disconnect_is_raised_every_time(self):
        request, stream = (post(chunks(b"a", b"b")[0], LEFT) for _ in range(2))
        for _ in range(2):
            with pytest.raises(ClientDisconnect):
                await request.body()
        assert not request.body_complete
        chunks_of_it = stream.stream()
        assert await anext(chunks_of_it) == b"a"
        with pytest.raises(ClientDisconnect):
            await anext(chunks_of_it)

    @pytest.mark.parametrize(("limit", "size"), [(0, 0), (2, 2), (None, 5000)])
    async def test_a_body_of_the_limit_is_allowed(self, limit, size):
        request = post(*chunks(b"x" * size), max_body_size=limit, content_length=str(size))
        assert len(await request.body()) == size

    async def test_a_content_length_over_the_limit_is_413_before_reading(self):
        request = post(max_body_size=2, content_length="3")
        for read in (request.body, request.text, request.json, request.stream().__anext__):
            with pytest.raises(HTTPException, match="at most 2 bytes") as caught:
                await read()
            assert caught.value.status == 413

    async def test_a_body_over_the_limit_is_413_immediately(self):
        request = post(*chunks(b"ab", b"c", b"d")[:2], max_body_size=2)
        for _ in range(2):
            with pytest.raises(HTTPException, match="413"):
                await request.body()
        form = post(*chunks(b"a=12"), content_type="application/x-www-form-urlencoded", max_body_size=3)
        with pytest.raises(HTTPException, match="413"):
            await form.form()

    @pytest.mark.parametrize("length", ["", "x", "-1", "9" * 5000, "²"])
    async def test_an_invalid_content_length_is_ignored(self, length):
        assert await post(*chunks(b"a"), content_length=length).body() == b"a"


class TestStream:
    async def test_stream_yields_each_chunk(self):
        request = post(*chunks(b"a", b"", b"b"))
        assert [chunk async for chunk in request.stream()] == [b"a", b"b"]
        assert request.body_complete

    async def test_stream_works_once_and_then_body_is_an_error(self):
        request = post(*chunks(b"a"))
        assert [chunk async for chunk in request.stream()] == [b"a"]
        with pytest.raises(RuntimeError, match="call body\\(\\) first"):
            await request.body()
        with pytest.raises(RuntimeError, match="stream\\(\\) was called after"):
            await anext(request.stream())

    async def test_after_body_stream_yields_one_chunk(self):
        request = post(*chunks(b"a", b"b"))
        await request.body()
        for _ in range(2):
            assert [chunk async for chunk in request.stream()] == [b"ab"]

    async def test_stream_has_the_limit_of_the_body(self):
        request = post(*chunks(b"ab", b"c"), max_body_size=2)
        stream = request.stream()
        assert await anext(stream) == b"ab"
        with pytest.raises(HTTPException, match="413"):
            await anext(stream)


class TestText:
    @pytest.mark.parametrize(
        ("content_type", "encoding"),
        [
            ("", "utf-8"),
            ("text/plain; charset=", "utf-8"),
            ('text/plain; charset="ISO-8859-1"', "latin-1"),
            ("text/plain; charset=utf-16", "utf-16"),
        ],
    )
    async def test_text_has_the_charset_of_its_content_type(self, content_type, encoding):
        assert await post(*chunks("ü".encode(encoding)), content_type=content_type).text() == "ü"

    @pytest.mark.parametrize("charset", ["klingon", "hex", "punycode", "unicode_escape", "x" * 5000, "utf-8\x00"])
    async def test_an_unknown_charset_is_400(self, charset):
        with pytest.raises(HTTPException, match="unknown charset") as caught:
            await post(*chunks(b"a"), content_type=f"text/plain; charset={charset}").text()
        assert caught.value.status == 400
        assert len(caught.value.detail) < 100

    @pytest.mark.parametrize("charset", ["utf-8", "ascii", "utf-16"])
    async def test_a_body_in_another_charset_is_400(self, charset):
        with pytest.raises(HTTPException, match=f"not valid {charset}") as caught:
            await post(*chunks(b"\xff\xff\xd8"), content_type=f"text/plain; charset={charset}").text()
        assert caught.value.status == 400


class TestJSON:
    @pytest.mark.parametrize("content_type", ["application/json", "text/plain; charset=latin-1", ""])
    async def test_json_ignores_the_content_type(self, content_type):
        request = post(*chunks('{"a": "ü"}'.encode()), content_type=content_type)
        assert await request.json() == {"a": "ü"}

    @pytest.mark.parametrize("body", [b"", b"{", b"NaN", b'"\xff"', '"ü"'.encode("latin-1"), '"a"'.encode("utf-16")])
    async def test_invalid_json_is_400_with_the_decoders_message(self, body):
        with pytest.raises(HTTPException, match="invalid JSON: ") as caught:
            await post(*chunks(body)).json()
        assert caught.value.status == 400

    async def test_json_with_a_type_is_a_value_of_it_or_400(self):
        assert await post(*chunks(b'{"a": 1}')).json(type=dict[str, int]) == {"a": 1}
        with pytest.raises(HTTPException, match=r"^400 Expected `int`, got `str` - at \$\.a$"):
            await post(*chunks(b'{"a": "1"}')).json(type=dict[str, int])


class TestForm:
    async def test_an_urlencoded_form_is_its_fields(self):
        form = await post(*chunks(b"a=1&a=", b"2"), content_type="application/x-www-form-urlencoded").form()
        assert form.multi_items() == [("a", "1"), ("a", "2")]

    async def test_a_multipart_form_may_hold_files(self):
        body = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.txt"\r\n\r\nhi\r\n--x--\r\n'
        form = await post(*chunks(body), content_type="multipart/form-data; boundary=x").form()
        file = form["f"]
        assert isinstance(file, UploadFile)
        assert (file.filename, file.content) == ("a.txt", b"hi")

    @pytest.mark.parametrize("content_type", ["", "application/json", "x" * 5000])
    async def test_another_content_type_is_415_before_anything_is_read(self, content_type):
        with pytest.raises(HTTPException, match="expected a form") as caught:
            await post(content_type=content_type).form()
        assert caught.value.status == 415

    @pytest.mark.parametrize(
        ("content_type", "problem"),
        [
            ("multipart/form-data; boundary=x", "invalid form: it ends before"),
            ("multipart/form-data", "expected a boundary in its Content-Type"),
        ],
    )
    async def test_a_malformed_form_is_400(self, content_type, problem):
        with pytest.raises(HTTPException, match=problem) as caught:
            await post(*chunks(b""), content_type=content_type).form()
        assert caught.value.status == 400


class TestTheRest:
    async def test_drain_discards_the_rest_without_a_limit(self):
        request = post(*chunks(b"a" * 600, b"b" * 600), max_body_size=10)
        with pytest.raises(HTTPException):
            await request.body()
        await request.drain()
        assert request.body_complete
        await request.drain()

    async def test_drain_ends_at_a_disconnect(self):
        request = post(chunks(b"a", b"b")[0], LEFT)
        await request.drain()
        assert not request.body_complete
        await request.drain()

    async def test_after_drain_only_a_body_that_was_read_is_there(self):
        request, read = (post(*chunks(b"a")) for _ in range(2))
        await read.body()
        for each in (request, read):
            await each.drain()
        assert await read.body() == b"a"
        with pytest.raises(RuntimeError, match="in chunks"):
            await request.body()

    async def test_wait_disconnect_waits_for_the_disconnect_which_is_repeated(self):
        request = post(*chunks(b"a", b"b"), LEFT)
        for _ in range(2):
            await request.wait_disconnect()
        assert request.body_complete
        assert await request.receive_event() == LEFT

    async def test_receive_event_repeats_the_disconnect(self):
        request = post(*chunks(b"a"), LEFT)
        assert [await request.receive_event() for _ in range(3)] == [*chunks(b"a"), LEFT, LEFT]
