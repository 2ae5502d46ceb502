"""uvicorn's HTTP/1.1 in our worker: what its own server would do, what it lacks, and the way to the engine."""

import socket
import ssl
import sys
from pathlib import Path

import anyio
import httpx
import pytest
from byte_client import frame, upgrade
from engine_here import ASYNCIO_BACKENDS
from raw_websocket import RawWebSocket, connected, reset
from uvicorn.protocols.http.h11_impl import H11Protocol
from worker_here import echo, failures, lifespan, respond, serving

from microws.cli import main
from microws.errors import FeatureUnavailable
from microws.server import accepting, handover_uvicorn
from microws.server.handover_uvicorn import check_uvicorn
from microws.server.listening import tls_context
from microws.server.settings import Settings

pytestmark = pytest.mark.anyio

TLS = Path(__file__).parent / "tls"
GET = b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
MIB = 1 << 20


@pytest.fixture(params=ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
def anyio_backend(request):
    return request.param


def served_by_uvicorn(app, **options):
    return serving(app, server="uvicorn", **options)


def connect(served):
    return anyio.connect_tcp("127.0.0.1", served.port)


async def read_until(stream, end):
    """What comes, up to ``end``, which it ends with."""
    data = b""
    with anyio.fail_after(5):
        while not data.endswith(end):
            data += await stream.receive()
    return data


async def read_all(stream):
    """What comes until the server ends the connection, in whatever way."""
    data = b""
    with anyio.fail_after(5):
        try:
            while True:
                data += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return data


class Waiting:
    """An app whose requests wait until their clients have left, but ``/now``, which is answered."""

    def __init__(self):
        self.come = []
        self.left = []
        self._changed = anyio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        elif scope["path"] == "/now":
            await respond(send, b"now")
        else:
            self._note(self.come, scope["path"])
            while (await receive())["type"] != "http.disconnect":
                pass
            self._note(self.left, scope["path"])

    def _note(self, paths, path):
        paths.append(path)
        self._changed.set()

    async def wait_for(self, paths, expected):
        with anyio.fail_after(5):
            while paths != expected:
                self._changed = anyio.Event()
                await self._changed.wait()


# Requests


async def test_a_response_has_one_date_and_names_no_server():
    async with served_by_uvicorn(echo) as served, httpx.AsyncClient() as client:
        response = await client.get(f"{served.url}/x")
    assert response.text == "/x"
    assert len(response.headers.get_list("date")) == 1
    assert "server" not in response.headers


@pytest.mark.parametrize("size", [0, 1, (64 << 10), (64 << 10) + 1, 128 << 10, 5 * MIB + 7])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_arrives_whole_whatever_its_size(size, is_chunked):
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        elif is_chunked:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": body})
        else:
            await respond(send, body)

    async with served_by_uvicorn(app) as served, httpx.AsyncClient() as client:
        assert (await client.get(served.url)).content == body * (1 + is_chunked)


async def test_what_is_no_http_is_400_and_no_noise(caplog):
    async with served_by_uvicorn(echo) as served, await connect(served) as stream:
        await stream.send(b"hello\r\n\r\n")
        assert (await read_all(stream)).startswith(b"HTTP/1.1 400 ")
    assert not failures(caplog)


# Limits that uvicorn does not have


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_head_that_grows_beyond_16_kib_is_431(is_first):
    async with served_by_uvicorn(echo) as served, await connect(served) as stream:
        if not is_first:
            await stream.send(GET % b"x")
            await read_until(stream, b"/x")
        await stream.send(b"GET / HTTP/1.1\r\nhost: x\r\nx: ")
        for _ in range(16):
            await stream.send(b"y" * 1024)
        assert (await read_all(stream)).startswith(b"HTTP/1.1 431 ")


async def test_a_trailer_that_grows_beyond_16_kib_ends_the_connection():
    app = Waiting()
    async with served_by_uvicorn(app) as served, await connect(served) as stream:
        await stream.send(POST + b"1\r\nx\r\n0\r\n")
        await app.wait_for(app.come, ["/"])
        for _ in range(16):
            await stream.send(b"x: " + b"y" * 1020 + b"\r\n")
        assert await read_all(stream) == b""
        await app.wait_for(app.left, ["/"])


async def test_a_body_in_pieces_counts_as_no_head():
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        size = 0
        while True:
            event = await receive()
            size += len(event["body"])
            if not event["more_body"]:
                break
        await respond(send, b"%d" % size)

    async with served_by_uvicorn(app) as served, await connect(served) as stream:
        await stream.send(POST)
        for _ in range(50):
            await stream.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
        await stream.send(b"0\r\n\r\n")
        assert (await read_until(stream, b"51200")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET % b"x", GET % b"x" + b"GET / HT"])
async def test_a_client_without_a_request_is_cut_off_in_time(monkeypatch, sent):
    for module in (accepting, handover_uvicorn):
        monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT", 0.2)
    async with served_by_uvicorn(echo) as served, await connect(served) as stream:
        if sent:
            await stream.send(sent)
        await read_all(stream)


async def test_a_request_takes_the_time_that_the_app_takes(monkeypatch):
    monkeypatch.setattr(handover_uvicorn, "HANDSHAKE_TIMEOUT", 0.05)
    monkeypatch.setattr(handover_uvicorn, "CLOSE_TIMEOUT", 0.05)

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            await anyio.sleep(0.3)
            await respond(send, b"at last")

    async with served_by_uvicorn(app) as served, await connect(served) as stream:
        await stream.send(GET % b"")
        assert await read_until(stream, b"at last")


async def test_the_rest_of_a_body_that_was_answered_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(handover_uvicorn, "CLOSE_TIMEOUT", 0.2)
    async with served_by_uvicorn(echo) as served, await connect(served) as stream:
        await stream.send(POST + b"1\r\nx\r\n")
        assert (await read_all(stream)).startswith(b"HTTP/1.1 200 ")


async def test_after_the_rest_of_a_body_that_was_answered_comes_the_next_request():
    async with served_by_uvicorn(echo) as served, await connect(served) as stream:
        await stream.send(POST + b"1\r\nx\r\n")
        await read_until(stream, b"/")
        await stream.send(b"1\r\nx\r\n0\r\n\r\n" + GET % b"next")
        assert (await read_until(stream, b"/next")).startswith(b"HTTP/1.1 200 ")


async def test_a_client_that_does_not_take_the_end_of_a_response_is_dropped(monkeypatch, caplog):
    monkeypatch.setattr(handover_uvicorn, "HANDSHAKE_TIMEOUT", 0.2)
    monkeypatch.setattr(handover_uvicorn, "CLOSE_TIMEOUT", 0.2)
    answered = anyio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            await respond(send, bytes(8 * MIB))
            answered.set()

    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    async with served_by_uvicorn(app) as served:
        sock.connect(("127.0.0.1", served.port))
        async with await anyio.abc.SocketStream.from_socket(sock) as stream:
            await stream.send(GET % b"")
            with anyio.fail_after(10):
                while not answered.is_set():
                    await stream.receive(4096)
            served.shutdown.request()
            with anyio.fail_after(5):
                await served.ended.wait()
    assert not failures(caplog)


# Several requests at a time


async def test_requests_that_come_at_once_are_answered_in_their_order():
    async with served_by_uvicorn(echo) as served, await connect(served) as stream:
        await stream.send(b"".join(GET % b"%d" % number for number in range(20)))
        answers = (await read_until(stream, b"/19")).split(b"HTTP/1.1 200 ")[1:]
        assert [answer.rpartition(b"\r\n\r\n")[2] for answer in answers] == [b"/%d" % number for number in range(20)]


async def test_a_request_learns_that_its_client_has_left_although_others_wait_behind_it():
    app = Waiting()
    async with served_by_uvicorn(app) as served:
        async with await connect(served) as stream:
            await stream.send(GET % b"first" + GET % b"second")
            await app.wait_for(app.come, ["/first"])
        await app.wait_for(app.left, ["/first"])
        assert app.come == ["/first"]


# To the engine and back


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("early", [b"", frame("early"), frame("early")[:5]])
async def test_what_comes_behind_a_handshake_in_one_piece_is_kept(early, is_first):
    async with served_by_uvicorn(echo) as served, await connect(served) as stream:
        if not is_first:
            await stream.send(GET % b"x")
            await read_until(stream, b"/x")
        await stream.send(upgrade("/") + early)
        if not early:
            await stream.send(frame("early"))
        elif len(early) < len(frame("early")):
            await stream.send(frame("early")[5:])
        assert (await read_until(stream, b"\x81\x05early")).startswith(b"HTTP/1.1 101 ")


async def test_a_handshake_may_come_in_pieces():
    async with served_by_uvicorn(echo) as served, await connect(served) as stream:
        for byte in upgrade("/"):
            await stream.send(bytes([byte]))
        await read_until(stream, b"\r\n\r\n")
        await stream.send(frame("hello"))
        assert await read_until(stream, b"\x81\x05hello")


async def test_a_handshake_behind_an_unanswered_request_ends_the_connection():
    """The 101 would stand in the middle of another answer, and the request would never learn that its client left."""
    app = Waiting()
    async with served_by_uvicorn(app) as served, await connect(served) as stream:
        await stream.send(GET % b"first" + upgrade("/"))
        assert await read_all(stream) == b""
        await app.wait_for(app.left, ["/first"])


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    "request_head",
    [
        upgrade("/").replace(b"GET", b"POST"),
        upgrade("/").replace(b"host: x\r\n", b""),
        upgrade("/", "content-length: 1") + b"x",
        upgrade("/", "sec-websocket-key: twice"),
    ],
)
async def test_a_handshake_that_is_none_is_400(request_head, is_first, caplog):
    async with served_by_uvicorn(echo) as served, await connect(served) as stream:
        if not is_first:
            await stream.send(GET % b"x")
            await read_until(stream, b"/x")
        await stream.send(request_head)
        assert (await read_all(stream)).startswith(b"HTTP/1.1 400 ")
    assert not failures(caplog)


async def test_a_request_that_asks_for_another_protocol_is_answered_in_this_one(caplog):
    async with served_by_uvicorn(echo) as served, await connect(served) as stream:
        for _ in range(2):
            await stream.send(b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
            assert (await read_until(stream, b"/x")).startswith(b"HTTP/1.1 200 ")
    assert not failures(caplog)


async def test_a_client_that_resets_behind_its_handshake_does_no_harm(caplog):
    async with served_by_uvicorn(echo) as served:
        for number in range(20):
            stream = await connect(served)
            if number % 2:
                await stream.send(GET % b"x")
                await read_until(stream, b"/x")
            await stream.send(upgrade("/"))
            await reset(stream)
        async with connected(served.port) as ws:
            await ws.send_text("hello")
    assert served.exit_code == 0
    assert not failures(caplog)


# The end


async def test_idle_connections_end_soon_and_requests_have_their_time():
    is_asked = anyio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            is_asked.set()
            await served.shutdown.requested.wait()
            await respond(send, b"done")

    async with served_by_uvicorn(app) as served, await connect(served) as idle, await connect(served) as busy:
        await busy.send(GET % b"")
        await is_asked.wait()
        served.shutdown.request()
        assert await read_all(idle) == b""
        answer = await read_all(busy)
        assert answer.endswith(b"done")
        assert answer.count(b"connection: close\r\n") == 1
        with anyio.fail_after(1):
            await served.ended.wait()
    assert served.exit_code == 0


class Hanging:
    """An app that answers no request. ``ended``: the paths of those that were cancelled."""

    def __init__(self):
        self.is_asked = anyio.Event()
        self.ended = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        self.is_asked.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.ended.append(scope["path"])


async def test_what_does_not_end_in_time_is_dropped_then_cancelled(caplog):
    app = Hanging()
    async with served_by_uvicorn(app, drain_timeout=0.1) as served, await connect(served) as stream:
        await stream.send(GET % b"x")
        await app.is_asked.wait()
        served.shutdown.request()
        assert await read_all(stream) == b""
        with anyio.fail_after(2):
            await served.ended.wait()
    assert app.ended == ["/x"]
    [record] = failures(caplog)
    assert record.message == "connections that did not end in time and are dropped: 1"


async def test_an_app_that_goes_on_without_its_client_is_cancelled_too():
    app = Hanging()
    async with served_by_uvicorn(app, drain_timeout=0.1) as served:
        async with await connect(served) as stream:
            await stream.send(GET % b"x")
            await app.is_asked.wait()
        served.shutdown.request()
        with anyio.fail_after(2):
            await served.ended.wait()
    assert app.ended == ["/x"]


# TLS, Unix sockets, and the choice


async def test_tls_speaks_http_1_alone_and_websockets():
    tls = tls_context(str(TLS / "localhost.pem"), str(TLS / "localhost.key"))
    trusted = ssl.create_default_context(cafile=TLS / "localhost.pem")
    async with served_by_uvicorn(echo, tls=tls) as served:
        async with httpx.AsyncClient(verify=trusted, http2=True) as client:
            response = await client.get(f"https://localhost:{served.port}/x")
            assert (response.text, response.http_version) == ("/x", "HTTP/1.1")
        address = ("localhost", served.port)
        async with await anyio.connect_tcp(*address, ssl_context=trusted, tls_standard_compatible=False) as stream:
            ws = RawWebSocket(stream)
            await ws.handshake()
            served.shutdown.request()
            assert await ws.closed() == (1012, "service restart")
            with anyio.fail_after(3):
                await served.ended.wait()
    assert served.exit_code == 0


async def test_a_unix_socket_is_served(tmp_path):
    path = tmp_path / "app.sock"
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with (
        served_by_uvicorn(echo, bind=f"unix:{path}", port=None),
        httpx.AsyncClient(transport=transport) as client,
    ):
        assert (await client.get("http://x/y")).text == "/y"


def test_uvicorn_does_not_go_with_trio():
    with pytest.raises(ValueError, match="loop trio: the server uvicorn runs on asyncio and uvloop"):
        Settings(server="uvicorn", loop="trio")


def test_uvicorn_with_trio_is_a_mistake_in_the_command(capsys):
    assert main(["run", "chat:app", "--server", "uvicorn", "--loop", "trio"]) == 2
    assert capsys.readouterr().err.startswith("error: loop trio: the server uvicorn runs on asyncio and uvloop")


def test_without_the_extra_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "httptools", None)
    assert main(["run", "chat:app", "--server", "uvicorn"]) == 2
    assert capsys.readouterr().err == "error: the server uvicorn is not installed: pip install 'microws[uvicorn]'\n"


@pytest.mark.parametrize("version", ["0.53.0", "0.54.0", "0.99", "0.55.0rc1"])
def test_this_uvicorn_is_known(version):
    check_uvicorn(version)


@pytest.mark.parametrize("version", ["0.52.4", "1.0.0", "1.0.0a1", "?"])
def test_another_uvicorn_is_refused(version):
    with pytest.raises(FeatureUnavailable, match=r"expected uvicorn 0\.53 or later.*microws\[uvicorn\]"):
        check_uvicorn(version)


def test_a_uvicorn_that_has_other_insides_is_refused():
    with pytest.raises(FeatureUnavailable, match="without on_body, on_headers_complete: "):
        check_uvicorn("0.99", H11Protocol)
