"""HTTP/1.1 as bytes on a socket: where a request ends, what is refused, and that no request is smuggled."""

import asyncio

import pytest
from byte_client import frame, upgrade
from http_here import MARK, Recording, post, request, serving
from websocket_server import ASYNCIO_BACKENDS

pytestmark = pytest.mark.anyio


@pytest.fixture(params=ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
def anyio_backend(request):
    return request.param


def chunked(body, *lines):
    return post("Transfer-Encoding: chunked", *lines, body=body)


def only_different(outcomes, expected):
    """The rows of a table that end otherwise."""
    return {name: outcome for name, outcome in outcomes.items() if outcome != expected}


END = b"0\r\n\r\n"
DATA = b"4\r\nabcd\r\n"

# RFC 9112 §6.1, §6.3: a message whose length is in doubt is answered with 400, and the connection closed.
DOUBTFUL_LENGTHS = {
    "Content-Length before Transfer-Encoding": post("Content-Length: 4", "Transfer-Encoding: chunked", body=END),
    "Content-Length behind Transfer-Encoding": post("Transfer-Encoding: chunked", "Content-Length: 4", body=END),
    "Content-Length 0 and Transfer-Encoding": post("Content-Length: 0", "Transfer-Encoding: chunked", body=END),
    "two lengths": post("Content-Length: 4", "Content-Length: 5", body=b"abcd"),
    "two equal lengths": post("Content-Length: 4", "Content-Length: 4", body=b"abcd"),
    "a list of equal lengths": post("Content-Length: 4, 4", body=b"abcd"),
    "a list of lengths": post("Content-Length: 4, 5", body=b"abcd"),
    "an empty length": post("Content-Length:", body=b"abcd"),
    **{
        f"Content-Length {value!r}": post(b"Content-Length: " + value, body=b"abcd")
        for value in (
            b"+4", b"-4", b"0x4", b"4 4", b"4;", b"4.0", b"1_0", b"4e0", b'"4"', b"\xb2", "٤".encode(), b"\x0c4",
            b"4\x0b", b"4\0", b"18446744073709551616",
            b"9" * 40,
        )
    },
    **{
        f"Transfer-Encoding {value!r}": post(b"Transfer-Encoding: " + value, body=END)
        for value in (
            b"", b"identity", b"gzip", b"chunked, gzip", b"chunked, chunked", b"chunked, identity", b"chunked,",
            b"xchunked", b"chunkedx", b"chun ked", b'"chunked"', b"chunked;q=1", b"\x0bchunked", b"chunked\x0b",
            b"chunked\0", b"chunked\xa0", b"c\xc5\xbfhunked",
        )
    },
    "two Transfer-Encoding, chunked both": post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=END),
    "two Transfer-Encoding, chunked first": post("Transfer-Encoding: chunked", "Transfer-Encoding: x", body=END),
    "Transfer-Encoding in HTTP/1.0": post("Transfer-Encoding: chunked", body=END, first="POST / HTTP/1.0"),
    "Transfer-Encoding in HTTP/1.0, kept alive": post(
        "Transfer-Encoding: chunked", "Connection: keep-alive", body=END, first="POST / HTTP/1.0"
    ),
    "lengths in doubt behind an Upgrade": post(
        "Upgrade: h2c", "Connection: upgrade", "Content-Length: 4", "Transfer-Encoding: chunked", body=END
    ),
}  # fmt: skip

# RFC 9112 §6.1: 501 for a coding that the server does not decode, whose end it knows nevertheless.
UNKNOWN = {
    "Transfer-Encoding gzip, chunked": post("Transfer-Encoding: gzip, chunked", body=END),
    "Transfer-Encoding gzip,,chunked": post("Transfer-Encoding: gzip,,chunked", body=END),
    "two Transfer-Encoding, chunked last": post("Transfer-Encoding: x", "Transfer-Encoding: chunked", body=END),
    **{
        method: request(first=f"{method} / HTTP/1.1")
        for method in ("BREW", "get", "GETS", "PROPFIND2", "!#$%&'*+-.^_`|~")
    },
    "CONNECT": request(first="CONNECT y:443 HTTP/1.1"),
    "CONNECT with a path": request(first="CONNECT / HTTP/1.1"),
}

# RFC 9112 §2.2, §5.1, §5.2; RFC 9110 §5.1, §5.5.
BAD_FIELDS = {
    "space before the colon": post("Transfer-Encoding : chunked", body=END),
    "tab before the colon": post("Transfer-Encoding\t: chunked", body=END),
    "space before the colon of a length": post("Content-Length : 4", body=b"abcd"),
    "space before a name": post(" Transfer-Encoding: chunked", body=END),
    "a first field that begins with a space": request(" Host: x", host=None),
    "a folded field": post("Transfer-Encoding:", " chunked", body=END),
    "a folded field by a tab": post("X: y", "\tz"),
    "a folded colon": post("Content-Length", " : 4", body=b"abcd"),
    "a line of spaces": post("X: y", "   ", body=END),
    "no colon": post("Transfer-Encoding chunked", body=END),
    "no name": post(": chunked", body=END),
    "space in a name": post("Transfer Encoding: chunked", body=END),
    "LF alone": post(b"X: y\nTransfer-Encoding: chunked", body=END),
    "LF alone everywhere": b"POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n" + END,
    "LF alone behind the head": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\n",
    "CR alone": post(b"X: y\rTransfer-Encoding: chunked", body=END),
    "CR twice": post(b"X: y\r"),
    "CR in a name": post(b"Transfer-\rEncoding: chunked", body=END),
    **{
        f"{control!r} in a value": post(b"X: a" + control + b"b")
        for control in (b"\0", b"\x01", b"\x08", b"\x0b", b"\x0c", b"\x1b", b"\x1f", b"\x7f")
    },
    **{
        f"{char!r} in a name": post(b"X" + char + b"Y: a")
        for char in (b"\0", b"\x01", b"\t", b'"', b"(", b"/", b"@", b"[", b"{", b"\x7f", b"\xe9", b"\xff")
    },
}

# RFC 9112 §2.3, §3, §3.2; RFC 9110 §4.2.4 (userinfo).
BAD_FIRST_LINES = {
    first: request(first=first)
    for first in (
        "GET  / HTTP/1.1", "GET /  HTTP/1.1", "GET\t/\tHTTP/1.1", "GET / HTTP/1.1 ", " GET / HTTP/1.1",
        "GET / x HTTP/1.1", "GET HTTP/1.1", "GET /", "GET / ", "GET", "GET / HTTP/0.9", "GET / HTTP/1.2",
        "GET / HTTP/1.10", "GET / HTTP/1", "GET / HTTP/2.0", "GET / HTTP/3.0", "GET / http/1.1", "GET / RTSP/1.0",
        "SOURCE / ICE/1.0", "PRI * HTTP/2.0", "G@T / HTTP/1.1", "GET a HTTP/1.1", "GET ?a HTTP/1.1",
        "GET * HTTP/1.1", "OPTIONS *a HTTP/1.1", "GET /a#b HTTP/1.1", "GET /a\0b HTTP/1.1", "GET /a\tb HTTP/1.1",
        "GET /a\x01b HTTP/1.1", "GET /a\x7fb HTTP/1.1", "GET /é HTTP/1.1", "GET http:///a HTTP/1.1",
        "GET http://u@y/ HTTP/1.1", "GET http://u:p@y/ HTTP/1.1", "GET http://y:a/ HTTP/1.1",
        "GET http://a b/ HTTP/1.1", "\rGET / HTTP/1.1", "\nGET / HTTP/1.1",
    )
}  # fmt: skip

# RFC 9112 §7.1. The app may have begun to read; it never sees the end of such a body.
BAD_CHUNKS = {
    f"{chunk!r}": chunked(chunk + END)
    for chunk in (
        b"0x4\r\nabcd\r\n", b"+4\r\nabcd\r\n", b"-4\r\nabcd\r\n", b"4_\r\nabcd\r\n", b" 4\r\nabcd\r\n",
        b"4 \r\nabcd\r\n", b"4\t\r\nabcd\r\n", b"\r\nabcd\r\n", b";\r\nabcd\r\n", b"g\r\nabcd\r\n",
        b"4,\r\nabcd\r\n", b"4\nabcd\r\n", b"4\rabcd\r\n", b"4\r\nabcd\n", b"4\r\nabcd\r", b"4\r\nabcd",
        b"4\r\nabcdXX", b"4\r\nabcdX\r\n", b"4\r\nabc\r\n", b"4;a\nabcd\r\n", b"4;a\rb\r\nabcd\r\n",
        b"4;a\0\r\nabcd\r\n", b"4;a\x01\r\nabcd\r\n", b'4;a="\n"\r\nabcd\r\n', b"10000000000000004\r\nabcd\r\n",
        b"4" * 40 + b"\r\nabcd\r\n",
        "٤".encode() + b"\r\nabcd\r\n",
    )
} | {
    f"the end {end!r}": chunked(DATA + end)
    for end in (
        b"0\n\n", b"0\r\n\n", b"0\n\r\n", b"0\r\r\n\r\n", b"0\r\nX: y\n\r\n", b"0\r\nX: y\r\n z\r\n\r\n",
        b"0\r\nX y\r\n\r\n", b"0\r\nX : y\r\n\r\n", b"0\r\nX: \0\r\n\r\n", b"0\r\n: y\r\n\r\n",
    )
}  # fmt: skip

# RFC 9110 §4.2.1 (an empty host), §7.2; RFC 9112 §3.2.
BAD_HOSTS = {
    "no Host": request(host=None),
    "two hosts": request("Host: y"),
    "two equal hosts": request("Host: x"),
    "two hosts in HTTP/1.0": request("Host: y", first="GET / HTTP/1.0"),
    "no Host with an absolute target": request(host=None, first="GET http://x/ HTTP/1.1"),
    **{
        f"Host {host!r}": request(b"Host: " + host, host=None)
        for host in (
            b"", b"a/b", b"u@a", b"a b", b"a,b", b"a, b", b"a#b", b"a?b", b"a\\b", b'"a"', b"<a>", b"a:b", b"a:-1",
            b"a:1:2", b":80", b"::1", b"[::1", b"[::1]x", b"[]", b"\xc3\xa9.example", b"http://a",
        )
    },
}  # fmt: skip

REFUSED = DOUBTFUL_LENGTHS | BAD_FIELDS | BAD_FIRST_LINES | BAD_CHUNKS | BAD_HOSTS


@pytest.mark.parametrize(("requests", "status"), [(REFUSED, 400), (UNKNOWN, 501)], ids=["faulty", "unknown"])
async def test_a_refused_request_is_answered_once_and_ends_the_connection(requests, status):
    app = Recording()
    outcomes = {}
    async with serving(app) as server:
        for name, data in requests.items():
            async with await server.connect() as client:
                answers = await client.ask_all(data, MARK)
            outcomes[name] = [(answer.status, answer.value("connection")) for answer in answers], app.requests.copy()
            app.requests.clear()
    assert only_different(outcomes, ([(status, "close")], [])) == {}


SMUGGLING = {
    "a body": post(f"Content-Length: {len(MARK)}", body=MARK),
    "a body of a GET": request(f"Content-Length: {len(MARK)}", body=MARK),
    "a body of a DELETE": post(f"Content-Length: {len(MARK)}", body=MARK, first="DELETE / HTTP/1.1"),
    "a body of an OPTIONS": post(f"Content-Length: {len(MARK)}", body=MARK, first="OPTIONS / HTTP/1.1"),
    "a length with zeros before it": post(f"Content-Length: 000{len(MARK)}", body=MARK),
    "a length among spaces": post(f"Content-Length: \t {len(MARK)} \t", body=MARK),
    "a length without a space": post(f"Content-Length:{len(MARK)}", body=MARK),
    "another field that looks like a length": post("Content_Length: 4", f"Content-Length: {len(MARK)}", body=MARK),
    "a body in HTTP/1.0": post(f"Content-Length: {len(MARK)}", body=MARK, first="POST / HTTP/1.0"),
    "a chunk": chunked(b"%x\r\n%s\r\n" % (len(MARK), MARK) + END),
    "a chunk, in capitals": post("TRANSFER-ENCODING: CHUNKED", body=b"%X\r\n%s\r\n" % (len(MARK), MARK) + END),
    "a chunk with zeros before its size": chunked(b"000%x\r\n%s\r\n" % (len(MARK), MARK) + END),
    "a chunk with an extension": chunked(b'%x;a=b;c="d\\"e"\r\n%s\r\n' % (len(MARK), MARK) + END),
    "a chunk with a trailer": chunked(b"%x\r\n%s\r\n" % (len(MARK), MARK) + b"00\r\nX: y\r\n\r\n"),
    "a chunk of a GET": request("Transfer-Encoding: chunked", body=b"%x\r\n%s\r\n" % (len(MARK), MARK) + END),
    **{
        f"Upgrade: {protocol}, {method}, {'chunks' if lines else 'a length'}": post(
            *(lines or [f"Content-Length: {len(MARK)}"]),
            f"Upgrade: {protocol}",
            "Connection: Upgrade, HTTP2-Settings",
            "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
            first=f"{method} / HTTP/{version}",
            body=b"%x\r\n%s\r\n" % (len(MARK), MARK) + END if lines else MARK,
        )
        for protocol in ("h2c", "TLS/1.0", "foo", "websockets")
        for method, version in (("POST", "1.1"), ("GET", "1.1"))
        for lines in ([], ["Transfer-Encoding: chunked"])
    },
    "Upgrade: websocket of a POST": post(
        f"Content-Length: {len(MARK)}", "Upgrade: websocket", "Connection: upgrade", body=MARK
    ),
    "Upgrade: h2c in HTTP/1.0": post(
        f"Content-Length: {len(MARK)}",
        "Upgrade: h2c",
        "Connection: upgrade, keep-alive",
        body=MARK,
        first="POST / HTTP/1.0",
    ),
    "Upgrade in the trailer": chunked(
        b"%x\r\n%s\r\n" % (len(MARK), MARK) + b"0\r\nX-Upgrade: h2c\r\nX-Connection: upgrade\r\n\r\n"
    ),
}


@pytest.mark.parametrize("is_whole", [True, False], ids=["at once", "byte by byte"])
async def test_a_request_inside_a_body_is_not_served(is_whole):
    app = Recording()
    outcomes = {}
    async with serving(app) as server:
        for name, data in SMUGGLING.items():
            async with await server.connect() as client:
                for piece in [data] if is_whole else map(bytes, zip(data)):
                    await client.send(piece)
                    await asyncio.sleep(0)
                client.half_close()
                answers = await client.read_answers()
            outcomes[name] = [answer.status for answer in answers], [request.body for request in app.requests]
            app.requests.clear()
    assert only_different(outcomes, ([200], [MARK])) == {}


LAST = {
    "Connection: close": request("Connection: close"),
    "Connection: close in a list": request("Connection: x, Close"),
    "Connection: close in a second field": request("Connection: keep-alive", "Connection: close"),
    "HTTP/1.0": request(first="GET / HTTP/1.0"),
    "HTTP/1.0 without Host": request(first="GET / HTTP/1.0", host=None),
}


BEHIND = {"a request": MARK, "CRLF": b"\r\n", "CRLFs": b"\r\n\r\n", "junk": b"junk", "NULs": bytes(100_000)}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
async def test_bytes_after_a_last_request_are_ignored(behind, caplog):
    app = Recording()
    outcomes = {}
    async with serving(app) as server:
        for name, data in LAST.items():
            async with await server.connect() as client:
                await client.send(data, behind)
                answers = await client.read_answers()
            outcomes[name] = [answer.status for answer in answers], len(app.requests)
            app.requests.clear()
            if "1.0" not in name:
                assert answers[0].value("connection") == "close"
    assert only_different(outcomes, ([200], 1)) == {}
    assert all(record.levelname in ("INFO", "DEBUG") for record in caplog.records)


async def test_an_invalid_request_is_answered_after_the_valid_ones_before():
    app = Recording()
    async with serving(app) as server, await server.connect() as client:
        answers = await client.ask_all(request(), request(), request(host=None), MARK)
    assert [answer.status for answer in answers] == [200, 200, 400]


# Targets, hosts, blank lines


HOSTS = ["x", "x:80", "x:", "x.", "a-b.c_d~e", "127.0.0.1:8000", "[::1]", "[::1]:8000", "xn--9ca.example", "a%41"]


async def test_a_valid_host_is_accepted():
    async with serving(Recording()) as server, await server.connect() as client:
        outcomes = {host: (await client.ask(request(host=host))).status for host in HOSTS}
    assert only_different(outcomes, 200) == {}


ABSOLUTE = {
    "http://real.example/a%20b?c=d": (b"/a%20b", b"c=d", b"real.example"),
    "http://real.example:81/": (b"/", b"", b"real.example:81"),
    "http://real.example": (b"/", b"", b"real.example"),
    "http://real.example?c": (b"/", b"c", b"real.example"),
    "HTTP://[::1]:81/x": (b"/x", b"", b"[::1]:81"),
}


async def test_the_host_of_an_absolute_target_wins():
    """RFC 9112 §3.2.2: a server MUST accept the form, and MUST ignore the received Host."""
    app = Recording()
    async with serving(app) as server, await server.connect() as client:
        for target in ABSOLUTE:
            answer = await client.ask(request(first=f"GET {target} HTTP/1.1", host="other.example"))
            assert answer.status == 200, target
    found = [
        (scope["raw_path"], scope["query_string"], *(value for name, value in scope["headers"] if name == b"host"))
        for scope in app.scopes
    ]
    assert found == list(ABSOLUTE.values())


@pytest.mark.parametrize("target", ["http://real.example/a?b", "ws://real.example/a?b", "/a?b"])
async def test_the_host_of_an_absolute_target_wins_for_websockets_too(target):
    app = Recording()
    async with serving(app) as server, await server.connect() as client:
        await client.send(upgrade("/a?b").replace(b"/a?b", target.encode()))
        assert (await client.read_head())[0] == 101
    [scope] = app.scopes
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a", b"/a", b"b")
    expected = b"x" if target.startswith("/") else b"real.example"
    assert [value for name, value in scope["headers"] if name == b"host"] == [expected]


async def test_options_asterisk_is_answered():
    """RFC 9110 §9.3.7: ``*`` asks for the options of the server, a ping."""
    async with serving(Recording()) as server, await server.connect() as client:
        answer = await client.ask(request(first="OPTIONS * HTTP/1.1"))
        assert answer.status in (200, 204)
        assert (await client.ask(request())).status == 200


async def test_blank_lines_before_a_request_are_ignored():
    """RFC 9112 §2.2."""
    async with serving(Recording()) as server:
        for blank in (b"\r\n", b"\r\n\r\n", b"\r\n" * 10):
            async with await server.connect() as client:
                answers = await client.ask_all(blank, request(), blank, request(), blank)
            assert [answer.status for answer in answers] == [200, 200]


async def test_the_scope_has_what_the_client_sent():
    app = Recording()
    async with serving(app) as server, await server.connect() as client:
        await client.ask(
            request("X-One:  a \t", "x-TWO:", b"X-One: \xe9", first="PATCH /a%2Fb%20%C3%A9?c=%20&d HTTP/1.1")
        )
    [scope] = app.scopes
    assert scope["type"] == "http"
    assert scope["http_version"] == "1.1"
    assert (scope["method"], scope["path"], scope["raw_path"]) == ("PATCH", "/a/b é", b"/a%2Fb%20%C3%A9")
    assert (scope["query_string"], scope["scheme"], scope["root_path"]) == (b"c=%20&d", "http", "")
    assert list(scope["headers"]) == [(b"host", b"x"), (b"x-one", b"a"), (b"x-two", b""), (b"x-one", b"\xe9")]
    assert scope["server"] == ("127.0.0.1", server.port)
    assert scope["client"][0] == "127.0.0.1"


async def test_trailers_are_not_added_to_the_headers():
    app = Recording()
    async with serving(app) as server, await server.connect() as client:
        answers = await client.ask_all(
            chunked(DATA + b"0\r\nX-Forwarded-For: 203.0.113.9\r\nX: y\r\n\r\n"), request("Y: z")
        )
    assert [answer.status for answer in answers] == [200, 200]
    assert [[name for name, _ in request.headers] for request in app.requests] == [
        [b"host", b"transfer-encoding"],
        [b"host", b"y"],
    ]


# Upgrade


HANDSHAKES = {
    "in a list": ("upgrade: websocket", "upgrade: h2c, websocket"),
    "in the second of two fields": ("upgrade: websocket", "upgrade: h2c\r\nupgrade: websocket"),
    "in capitals": ("upgrade: websocket", "UPGRADE: WebSocket"),
    "Connection in a list": ("connection: upgrade", "connection: keep-alive, Upgrade"),
    "Connection in the first of two fields": ("connection: upgrade", "connection: upgrade\r\nconnection: keep-alive"),
    "Connection in the second of two fields": ("connection: upgrade", "connection: keep-alive\r\nconnection: upgrade"),
}


async def test_a_websocket_handshake_is_recognized():
    outcomes = {}
    async with serving(Recording()) as server:
        for name, (line, lines) in HANDSHAKES.items():
            async with await server.connect() as client:
                await client.send(upgrade("/").replace(line.encode(), lines.encode()), frame("hi"))
                status, _ = await client.read_head()
                outcomes[name] = status, (await client.read_frame()).payload if status == 101 else None
    assert only_different(outcomes, (101, b"hi")) == {}


NO_HANDSHAKES = {
    "HTTP/1.0": (b"HTTP/1.1", b"HTTP/1.0"),
    "POST": (b"GET", b"POST"),
    "HEAD": (b"GET", b"HEAD"),
    "another protocol": (b"upgrade: websocket", b"upgrade: h2c"),
    "another protocol that begins so": (b"upgrade: websocket", b"upgrade: websocket2"),
    "no Connection": (b"connection: upgrade\r\n", b""),
    "another Connection": (b"connection: upgrade", b"connection: keep-alive"),
    "another Connection that begins so": (b"connection: upgrade", b"connection: upgraded"),
}


async def test_a_request_without_all_of_a_handshake_is_plain_http():
    """RFC 9110 §7.8."""
    app = Recording()
    outcomes = {}
    async with serving(app) as server:
        for name, (old, new) in NO_HANDSHAKES.items():
            async with await server.connect() as client:
                await client.send(upgrade("/").replace(old, new))
                answer = await client.read_answer(method="HEAD" if new == b"HEAD" else "GET")
                outcomes[name] = answer.status, app.scopes.pop()["type"]
    assert only_different(outcomes, (200, "http")) == {}


async def test_a_request_with_another_upgrade_leaves_the_connection_usable():
    app = Recording()
    async with serving(app) as server, await server.connect() as client:
        for body in (b"", b"abcd"):
            answer = await client.ask(
                post("Upgrade: h2c", "Connection: upgrade", f"Content-Length: {len(body)}", body=body)
            )
            assert answer.body == b"POST / " + body
        await client.open()


async def test_a_pipelined_handshake_waits_for_the_requests_before_it():
    async with serving(Recording()) as server, await server.connect() as client:
        await client.send(request(), post("Content-Length: 4", body=b"abcd"), upgrade("/"), frame("hi"))
        assert (await client.read_answer()).body == b"GET / "
        assert (await client.read_answer()).body == b"POST / abcd"
        assert (await client.read_head())[0] == 101
        assert (await client.read_frame()).payload == b"hi"
