"""microws behind a real proxy, as the how-to guide says: what the proxy denies stays denied."""

import json
import socket
import sys
from contextlib import ExitStack, suppress
from typing import NamedTuple

import httpx
import pytest
from byte_client import LIMIT, ByteClient, upgrade
from proxies import PROXIES, proxying
from servers import HERE
from serving import running
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

# One worker starts each proxy once.
pytestmark = pytest.mark.xdist_group("proxies")

SMUGGLED = b"GET /admin?smuggled HTTP/1.1\r\nHost: app.example\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n"
# A request inside a body, at the beginning and behind each of the sizes in which servers read.
HIDDEN = (SMUGGLED, (b"\r\n" * 2000 + SMUGGLED) * 5, (b"\r\n" * 2000 + SMUGGLED) * 50)


class Behind(NamedTuple):
    """A proxy and the server behind it."""

    port: int
    direct: httpx.Client

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def arrived(self, query):
        """The requests with this query that have reached the app."""
        requests = self.direct.get("/arrived").json()
        return [request.partition("?")[0] for request in requests if request.endswith(f"?{query}")]

    def check_nothing_smuggled(self):
        """No request for /admin has reached the app, and each of the next clients gets its own answer."""
        for number in range(3):
            with ByteClient(self.port) as client:
                client.send(b"GET /scope?%d HTTP/1.1\r\nHost: app.example\r\n\r\n" % number)
                assert read_answer(client)[1]["url"] == f"http://app.example/scope?{number}"
        requests = self.direct.get("/arrived").json()
        assert [request for request in requests if "admin" in request] == []


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """``microws run`` on TCP and on a Unix socket."""
    path = tmp_path_factory.mktemp("server") / "socket"
    binds = ("--bind", "127.0.0.1:0", "--bind", f"unix:{path}")
    with running([sys.executable, "-m", "microws", "run", "behind:app", *binds], cwd=HERE) as server:
        server.path = path
        yield server
        assert server.stop() == 0
        assert server.find_lines("^Traceback| (error|critical) ") == []


@pytest.fixture(scope="module", params=[(name, link) for name in PROXIES for link in ("tcp", "unix")], ids="-".join)
def behind(request, server, tmp_path_factory):
    name, link = request.param
    upstream = {"port": server.port} if link == "tcp" else {"path": server.path}
    with (
        proxying(name, tmp_path_factory.mktemp(name), **upstream) as port,
        httpx.Client(base_url=server.url, trust_env=False, timeout=LIMIT) as direct,
    ):
        yield Behind(port, direct)


def read_answer(client):
    """Status and JSON, or text, of a response with a length."""
    status, headers = client.read_head()
    body = client.read_bytes(int(headers["content-length"])).decode()
    return status, json.loads(body) if headers.get("content-type") == "application/json" else body


def read_to_end(client):
    """Until the proxy ends the connection. A client that hears nothing for a moment sends no more."""
    client.sock.settimeout(0.5)
    with suppress(ConnectionError):
        try:
            while client.sock.recv(1 << 16):
                pass
        except TimeoutError:
            client.sock.settimeout(LIMIT)
            client.sock.shutdown(socket.SHUT_WR)
            while client.sock.recv(1 << 16):
                pass


# What a proxy is there for


def test_a_rule_of_the_proxy_applies(behind):
    for path in ("/admin", "/admin/x", "http://app.example/admin"):
        with ByteClient(behind.port) as client:
            client.send(f"GET {path} HTTP/1.1\r\nHost: app.example\r\n\r\n".encode())
            assert client.read_head()[0] == 403
    behind.check_nothing_smuggled()


def test_the_app_is_told_of_the_client_and_not_of_what_it_claims(behind):
    claims = {
        "forwarded": "for=203.0.113.9; host=forged.example; proto=https",
        "x-forwarded-for": "203.0.113.9",
        "x-forwarded-host": "forged.example",
        "x-forwarded-port": "8443",
        "x-forwarded-prefix": "/forged",
        "x-forwarded-proto": "https",
        "x_forwarded_for": "203.0.113.9",
        "x-real-ip": "203.0.113.9",
    }
    # An address of this machine that is not in --forwarded-allow-ips.
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(transport=transport, base_url=behind.url, headers={"host": "app.example"}) as client:
        assert client.get("/scope", headers=claims).json() == {
            "client": "127.0.0.2",
            "url": "http://app.example/scope",
            "root_path": "",
            "http_version": "1.1",
        }


def test_a_websocket_passes(behind):
    for _ in range(2):  # the second one on a connection that the proxy may have kept
        assert httpx.get(f"{behind.url}/scope", trust_env=False).status_code == 200
        with connect(f"ws://127.0.0.1:{behind.port}/echo", proxy=None, origin=behind.url) as ws:
            for message in ("hello", b"\0" * 100_000):
                ws.send(message)
                assert ws.recv(LIMIT) == message
            ws.close(4000, "bye")
            with pytest.raises(ConnectionClosed):
                ws.recv(LIMIT)
            assert (ws.close_code, ws.close_reason) == (4000, "bye")


def test_a_page_of_another_origin_opens_no_websocket(behind):
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{behind.port}/echo", proxy=None, origin="http://forged.example")


def test_an_event_is_sent_at_once_and_a_closed_page_ends_its_stream(behind):
    with httpx.stream("GET", f"{behind.url}/events", trust_env=False, timeout=LIMIT) as response:
        lines = response.iter_lines()
        for number in range(3):
            while behind.direct.post("/publish", json=number).json() != {"subscribers": 1}:
                pass
            assert next(line for line in lines if line.startswith("data:")) == f"data: {number}"
    # HAProxy notices the closed page when it cannot pass an event on.
    while behind.direct.post("/publish", json="left").json() != {"subscribers": 0}:
        pass


# What gets past a proxy


def test_http2_is_not_reached_through_an_upgrade(behind):
    """CVE-2022-33915 and its kind: a tunnel in HTTP/2 whose requests the proxy does not see."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
    fields = b"\x82\x86" + literal(b"\x04", b"/admin") + literal(b"\x01", b"app.example")
    fields += literal(b"\0" + string(b"x-forwarded-for"), b"203.0.113.9")
    headers = len(fields).to_bytes(3) + bytes((1, 5, 0, 0, 0, 3)) + fields
    for connection in ("Upgrade, HTTP2-Settings", "Upgrade", "close, Upgrade, HTTP2-Settings", None):
        with ByteClient(behind.port) as client:
            lines = ["GET /scope HTTP/1.1", "Host: app.example", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAA"]
            lines += [f"Connection: {connection}"] if connection else []
            client.send(("\r\n".join(lines) + "\r\n\r\n").encode())
            status, answer = read_answer(client)
            assert (status, answer["http_version"]) == (200, "1.1")
            with suppress(AssertionError):
                client.send(preface + headers)
            read_to_end(client)
    with ByteClient(behind.port) as client:
        client.send(preface + headers)
        read_to_end(client)
    behind.check_nothing_smuggled()


def string(value):
    return bytes([len(value)]) + value


def literal(name, value):
    """A header field of HTTP/2 that is in no table (RFC 7541, 6.2.2)."""
    return name + string(value)


@pytest.mark.parametrize("protocol", ["foo", "h2c", "websocket", "websocket, h2c", "WebSocket", "h2c, websocket"])
def test_a_body_behind_an_upgrade_is_a_body(behind, protocol):
    for number, body in enumerate(HIDDEN):
        query = f"{protocol.replace(', ', '-')}-{number}-{behind.port}"
        for connection in ("Upgrade", "Upgrade, close"):
            with ByteClient(behind.port) as client:
                client.send(
                    f"POST /body?{query} HTTP/1.1\r\nHost: app.example\r\nUpgrade: {protocol}\r\n"
                    f"Connection: {connection}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                assert read_answer(client) == (200, {"size": len(body)})
        assert behind.arrived(query) == ["POST /body"] * 2
    behind.check_nothing_smuggled()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (upgrade("/rejects"), 403),
        (upgrade("/nowhere"), 404),
        (upgrade("/echo", version=12), 426),
        (upgrade("/echo", "sec-websocket-key: twice"), 400),
        (upgrade("/echo").replace(b"GET", b"POST", 1), 426),
    ],
    ids=["rejected", "nowhere", "version", "key", "method"],
)
def test_a_handshake_that_is_refused_opens_no_tunnel(behind, request_, status):
    """The proxy must see the answer, and goes on to apply its rules to what follows."""
    with ByteClient(behind.port) as client:
        client.send(request_.replace(b"host: x", b"host: app.example") + SMUGGLED)
        assert client.read_head()[0] == status
        read_to_end(client)
    behind.check_nothing_smuggled()


# Of the framing of a body, as (fields, body). What is read in two ways by two servers hides a request.
CHUNKED = b"0\r\n\r\n" + SMUGGLED
BOTH = f"Content-Length: {len(CHUNKED)}\r\n"
FRAMINGS = [
    *(
        (BOTH + transfer_encoding, CHUNKED)
        for transfer_encoding in (
            "Transfer-Encoding: chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding: identity, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: ,chunked\r\n",
            'Transfer-Encoding: "chunked"\r\n',
            "Transfer-Encoding: chunked;q=1\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
            "Transfer-Encoding:\tchunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Transfer-Encoding\t: chunked\r\n",
            "Transfer-Encoding\x00: chunked\r\n",
            "Transfer-Encoding:\r\n chunked\r\n",
            "Transfer_Encoding: chunked\r\n",
            "X: y\r\n Transfer-Encoding: chunked\r\n",
            "X: y\nTransfer-Encoding: chunked\r\n",
            "X: y\rTransfer-Encoding: chunked\r\n",
            "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
        )
    ),
    ("Transfer-Encoding: chunked\r\n" + BOTH, CHUNKED),
    ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
    *(
        (lengths, SMUGGLED)
        for lengths in (
            f"Content-Length: 0\r\nContent-Length: {len(SMUGGLED)}\r\n",
            f"Content-Length: {len(SMUGGLED)}\r\nContent-Length: 0\r\n",
            f"Content-Length: 0, {len(SMUGGLED)}\r\n",
            f"Content-Length: +{len(SMUGGLED)}\r\n",
            f"Content-Length: 0{len(SMUGGLED)}\r\n",
            f"Content-Length: {len(SMUGGLED):#x}\r\n",
            f"Content-Length : {len(SMUGGLED)}\r\n",
            f"Content-Length:\r\n {len(SMUGGLED)}\r\n",
            f"Content-Length: {(1 << 64) + len(SMUGGLED)}\r\n",
            "Content-Length: -1\r\n",
            f"Connection: Content-Length\r\nContent-Length: {len(SMUGGLED)}\r\n",
        )
    ),
    *(
        ("Transfer-Encoding: chunked\r\n", chunk + SMUGGLED)
        for chunk in (
            b"0x0\r\n\r\n",
            b"+0\r\n\r\n",
            b"-0\r\n\r\n",
            b" 0\r\n\r\n",
            b"0 \r\n\r\n",
            b"0\n\n",
            b"0\r\r\n\r\n",
            b"0;a\n\r\n\r\n",
            b'0;a="\r\n\r\n"\r\n\r\n',
            b"10000000000000000\r\n\r\n",
            b"fffffffffffffff0\r\n\r\n",
            b"1\r\nxx\r\n0\r\n\r\n",
            b"3\r\nxy\r\n0\r\n\r\n",
            b"2\r\nxy0\r\n\r\n",
            b"2\nxy\n0\n\n",
            b"0\r\nContent-Length: 5\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n",
            b"0\r\nX: y\nZ\r\n\r\n",
        )
    ),
]


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_framing_that_can_be_read_in_two_ways_hides_no_request(behind, method):
    with ExitStack() as stack:
        clients = []
        for version in ("1.1", "1.0"):
            for fields, body in FRAMINGS:
                client = stack.enter_context(ByteClient(behind.port))
                head = f"{method} /body?framing HTTP/{version}\r\nHost: app.example\r\n{fields}\r\n"
                with suppress(AssertionError):
                    client.send(head.encode("latin-1") + body)
                    client.send(b"GET /scope?next HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n\r\n")
                clients.append(client)
        for client in clients:
            read_to_end(client)
    behind.check_nothing_smuggled()
