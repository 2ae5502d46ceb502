"""The limits of HTTP/1.1 connections: sizes as bytes on a socket, seconds on a virtual clock."""

import asyncio

import pytest
from http_here import MARK, Recording, post, read_body, request, serving
from virtual_clock import VirtualClockLoop, on_virtual_clock
from websocket_server import ASYNCIO_BACKENDS
from worker_here import respond

# Seconds of the virtual clock that a client waits for what must happen.
PATIENCE = 1000


@pytest.fixture(params=ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
def anyio_backend(request):
    return request.param


def head_of(size):
    """A request whose head has so many bytes."""
    return request("X: " + "y" * (size - len(request("X: "))))


def now():
    return asyncio.get_running_loop().time()


# Sizes


@pytest.mark.anyio
async def test_a_head_within_the_limits_is_served():
    app = Recording()
    async with serving(app) as server, await server.connect() as client:
        for data in (head_of(16_000), request(*[f"X{number}: y" for number in range(99)])):
            assert (await client.ask(data)).status == 200
    assert len(app.requests) == 2


LARGE = {
    "one byte more than 16 KiB": head_of(17_000),
    "a long target": request(first=f"GET /{'a' * 17_000} HTTP/1.1"),
    "a long name": request("X" * 17_000 + ": y"),
    "many fields": request(*[f"X{number}: y" for number in range(100)]),
    "the same field many times": request(*["X: y"] * 100),
}


@pytest.mark.anyio
@pytest.mark.parametrize("data", LARGE.values(), ids=LARGE)
async def test_a_head_that_is_too_large_is_refused(data):
    app = Recording()
    async with serving(app) as server, await server.connect() as client:
        answers = await client.ask_all(data, MARK)
    assert [(answer.status, answer.value("connection")) for answer in answers] == [(431, "close")]
    assert app.requests == []


@pytest.mark.anyio
async def test_an_endless_head_is_refused_before_its_end():
    async with serving(Recording()) as server:
        for data in (
            b"GET /" + b"a" * 100_000,
            request()[:-2] + b"X: " + b"y" * 100_000,
            request()[:-2] + b"X: y\r\n" * 20_000,
            b"G" * 100_000,
        ):
            async with await server.connect() as client:
                await client.send(data)
                [answer] = await client.read_answers()
            assert answer.status in (400, 431, 501)


@pytest.mark.anyio
async def test_the_size_of_a_head_can_be_set():
    async with serving(Recording(), max_head_size="64KiB") as server, await server.connect() as client:
        assert (await client.ask(head_of(60_000))).status == 200
    async with serving(Recording(), max_head_size=1024) as server, await server.connect() as client:
        assert (await client.ask(head_of(1000))).status == 200
        assert (await client.ask(head_of(1100))).status == 431


@pytest.mark.anyio
async def test_chunk_extensions_and_trailers_are_limited():
    """Extensions and trailers without end cost time and no memory: CVE-2023-39326."""
    app = Recording()
    for data in (
        b"1;" + b"a" * 100_000 + b"\r\nx\r\n0\r\n\r\n",
        b"0" * 100_000 + b"1\r\nx\r\n0\r\n\r\n",
        b"1\r\nx\r\n0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"1\r\nx\r\n0\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    ):
        async with serving(app) as server, await server.connect() as client:
            await client.send(post("Transfer-Encoding: chunked"), data)
            answer = await client.read_answer()
        assert answer.status in (400, 413, 431)
    assert app.requests == []


# TLS


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT"])
async def test_plain_http_on_a_tls_port_is_answered_with_400(method):
    app = Recording()
    async with serving(app, tls=True) as server, await server.connect() as client:
        answer = await client.ask(request(first=f"{method} / HTTP/1.1"))
    assert (answer.status, answer.value("connection")) == (400, "close")
    assert b"https" in answer.body
    assert answer.body.count(b"\n") <= 1
    assert app.requests == []


@pytest.mark.anyio
async def test_tls_offers_http_1_1_alone():
    async with serving(Recording(), tls=True) as server, await server.connect_tls() as client:
        assert client._writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert (await client.ask(request())).status == 200


@pytest.mark.anyio
async def test_a_slow_client_gets_a_last_answer_whole_over_tls():
    """A transport of TLS that closes gives its client a second, and asyncio's streams do not close it by themselves."""
    async with serving(Long(), tls=True) as server, await server.connect_tls(buffers=16_384) as client:
        await client.send(request())
        received = 0
        while data := await client._receive():
            received += len(data)
            # For 1.2 s in all.
            await asyncio.sleep(1.2 * len(data) / 2_000_000)
        assert received > 2_000_000


# Seconds


def timed(test):
    """Run on a virtual clock, with a server on a Unix socket: ``test(connect, ...)``."""

    def decorate(app, **options):
        def run(tmp_path):
            @on_virtual_clock
            async def whole():
                async with serving(app(), path=tmp_path / "socket", limit=PATIENCE, **options) as server:
                    await test(server)

            whole()

        run.__name__ = test.__name__
        run.__doc__ = test.__doc__
        return run

    return decorate


def on_clock(app=Recording, **options):
    """Run a test that takes a server on a virtual clock."""
    return lambda test: timed(test)(app, **options)


@on_clock()
async def test_a_connection_without_a_request_ends_after_10_seconds(server):
    async with await server.connect() as client:
        began = now()
        assert await client.read_to_end() == b""
        assert 10 <= now() - began < 12


@on_clock()
async def test_blank_lines_do_not_extend_the_time_for_a_request(server):
    async with await server.connect() as client:
        began = now()

        async def trickle():
            while True:
                await client.send(b"\r\n")
                await asyncio.sleep(1)

        sending = asyncio.ensure_future(trickle())
        await client.read_rest()
        sending.cancel()
        assert 10 <= now() - began < 12


@on_clock()
async def test_a_slow_head_is_408_after_10_seconds(server):
    for behind in (False, True):
        async with await server.connect() as client:
            if behind:
                assert (await client.ask(request())).status == 200
                await asyncio.sleep(50)
            began = now()
            data = request("X: " + "y" * 1000)

            async def trickle(client=client, data=data):
                for place in range(len(data)):
                    await client.send(data[place : place + 1])
                    await asyncio.sleep(1)

            sending = asyncio.ensure_future(trickle())
            [answer] = await client.read_answers()
            sending.cancel()
            assert (answer.status, answer.value("connection")) == (408, "close")
            assert 10 <= now() - began < 12


@on_clock()
async def test_a_body_is_408_after_60_seconds_without_a_byte(server):
    for data, piece in (
        (post("Content-Length: 100"), b"x"),
        (post("Transfer-Encoding: chunked"), b"1\r\nx\r\n"),
    ):
        async with await server.connect() as client:
            await client.send(data)
            for _ in range(3):
                await asyncio.sleep(55)
                await client.send(piece)
            began = now()
            [answer] = await client.read_answers()
            assert (answer.status, answer.value("connection")) == (408, "close")
            assert 60 <= now() - began < 65


@on_clock(body_timeout=5)
async def test_body_timeout_sets_the_time_for_the_next_piece(server):
    async with await server.connect() as client:
        began = now()
        await client.send(post("Content-Length: 4", body=b"abc"))
        [answer] = await client.read_answers()
        assert answer.status == 408
        assert 5 <= now() - began < 7


class Late:
    """Answers when its client should have left."""

    async def __call__(self, scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass
        await respond(send, b"late")


@pytest.mark.anyio
async def test_the_access_log_has_the_refusals_of_the_server(caplog):
    caplog.set_level("INFO", logger="microws")
    async with serving(Late(), body_timeout=0.1) as server:
        for data, status in ((post("Content-Length: 4", body=b"abc"), 408), (LARGE["a long target"], 431)):
            async with await server.connect() as client:
                await client.send(data)
                [answer] = await client.read_answers()
                assert answer.status == status
    [first, second] = [record.getMessage() for record in caplog.records if record.name == "microws.access"]
    assert '"POST / HTTP/1.1" 408 ' in first
    assert '... HTTP/1.1" 431 ' in second
    assert len(second) < 400


@on_clock(body_timeout=0)
async def test_body_timeout_0_is_unlimited(server):
    async with await server.connect() as client:
        await client.send(post("Content-Length: 4", body=b"abc"))
        await asyncio.sleep(500)
        await client.send(b"d")
        assert (await client.read_answer()).body == b"POST / abcd"


class Slow:
    """Reads the body after 300 seconds, and answers after 300 more."""

    async def __call__(self, scope, receive, send):
        await asyncio.sleep(300)
        body = await read_body(receive)
        await asyncio.sleep(300)
        await respond(send, b"%d" % len(body))


@on_clock(Slow)
async def test_body_timeout_does_not_run_while_the_app_does_not_read(server):
    size = 4 << 20
    async with await server.connect() as client:
        sending = asyncio.ensure_future(client.send(post(f"Content-Length: {size}", body=bytes(size))))
        assert (await client.read_answer()).body == b"%d" % size
        await sending


@on_clock(Slow)
async def test_an_app_may_answer_after_minutes(server):
    async with await server.connect() as client:
        for _ in range(2):
            assert (await client.ask(request())).status == 200


@on_clock()
async def test_an_idle_connection_ends_after_75_seconds(server):
    async with await server.connect() as client:
        for _ in range(3):
            assert (await client.ask(request())).status == 200
            await asyncio.sleep(70)
        assert (await client.ask(request())).status == 200
        began = now()
        assert await client.read_to_end() == b""
        assert 75 <= now() - began < 80


@on_clock(keep_alive=5)
async def test_keep_alive_sets_the_time_between_requests(server):
    async with await server.connect() as client:
        assert (await client.ask(request())).status == 200
        began = now()
        assert await client.read_to_end() == b""
        assert 5 <= now() - began < 7


@on_clock(keep_alive=0)
async def test_keep_alive_0_closes_after_each_response(server):
    async with await server.connect() as client:
        assert (await client.ask(request())).value("connection") == "close"
        assert await client.at_end()


@on_clock(keep_alive=5)
async def test_a_request_at_the_end_of_keep_alive_is_served(server):
    """The client sends in the very turn of the event loop in which the time is over."""
    for early in (0.2, 0.1, 0.01, 0.001, 0.0001):
        async with await server.connect() as client:
            assert (await client.ask(request())).status == 200
            await asyncio.sleep(5 - early)
            if not (await reads_nothing(client)):
                continue  # the server has ended it already, and the client can see so
            assert (await client.ask(request())).status == 200


async def reads_nothing(client):
    """Whether the connection is open and silent."""
    try:
        return bool(client.sock.recv(1)) and False
    except BlockingIOError:
        return True


async def send_until_cut_off(client):
    """Send a byte each half second."""
    for _ in range(PATIENCE):
        await asyncio.sleep(0.5)
        try:
            await client.send(b"x")
        except ConnectionError:
            return
    pytest.fail("the server still takes what is sent")


class Endless:
    """Sends without end. ``ended`` is set when it gets the disconnect."""

    ended: asyncio.Event

    def __init__(self):
        Endless.ended = asyncio.Event()

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
        except OSError:
            Endless.ended.set()


@on_clock(Endless)
async def test_a_client_that_reads_nothing_for_60_seconds_is_dropped(server):
    async with await server.connect(buffers=8192) as client:
        began = now()
        await client.send(request())
        await asyncio.wait_for(Endless.ended.wait(), PATIENCE)
        assert 60 <= now() - began <= 125


@on_clock(Endless, write_timeout=5)
async def test_a_client_that_reads_slowly_is_not_dropped(server):
    async with await server.connect(buffers=8192) as client:
        await client.send(request())
        for _ in range(20):
            await asyncio.sleep(4)
            # Less than what the system waits for before it asks the server for more.
            assert client.sock.recv(40_000)
        assert not Endless.ended.is_set()
        began = now()
        await asyncio.wait_for(Endless.ended.wait(), PATIENCE)
        assert 5 <= now() - began <= 15


class Waiting:
    """Reads the body after a minute."""

    async def __call__(self, scope, receive, send):
        await asyncio.sleep(60)
        await respond(send, await read_body(receive))


@on_clock(Waiting, body_timeout=5)
async def test_body_timeout_begins_with_100_continue(server):
    async with await server.connect() as client:
        await client.send(post("Content-Length: 2", "Expect: 100-continue"))
        assert (await client.read_head())[0] == 100
        await asyncio.sleep(3)
        await client.send(b"ab")
        assert (await client.read_answer()).body == b"ab"


class Long:
    """Answers with 2 MB before it has read anything, and ends the connection."""

    async def __call__(self, scope, receive, send):
        await respond(send, bytes(2_000_000), 413, [(b"connection", b"close")])


@on_clock(Long)
async def test_a_slow_client_gets_an_early_answer_whole(server):
    async with await server.connect(buffers=8192) as client:
        await client.send(post("Content-Length: 100", body=b"x"))
        received = 0
        while data := await asyncio.get_running_loop().sock_recv(client.sock, 40_000):
            received += len(data)
            await asyncio.sleep(4)
        assert received > 2_000_000


class Refusing:
    """Answers with 413 before it has read anything."""

    async def __call__(self, scope, receive, send):
        await respond(send, b"full", 413)


@on_clock(Refusing)
async def test_an_unread_body_is_discarded_for_a_second(server):
    async with await server.connect() as client:
        began = now()
        assert (await client.ask(post("Content-Length: 100", body=b"x"))).status == 413
        assert await client.at_end()
        assert 1 <= now() - began < 2


@on_clock(Refusing)
async def test_a_client_that_keeps_sending_an_unread_body_is_dropped(server):
    async with await server.connect() as client:
        began = now()
        assert (await client.ask(post(f"Content-Length: {1 << 40}", body=b"x"))).status == 413
        await send_until_cut_off(client)
        assert now() - began < 15


@on_clock()
async def test_a_refused_client_that_keeps_sending_is_dropped(server):
    async with await server.connect() as client:
        began = now()
        await client.send(request(host=None))
        assert (await client.read_answer()).status == 400
        await send_until_cut_off(client)
        assert now() - began < 15


@on_clock()
async def test_a_closed_connection_leaves_no_timer(server):
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    for _ in range(3):
        async with await server.connect() as client:
            assert (await client.ask(post("Content-Length: 4", body=b"abcd"))).status == 200
        await asyncio.sleep(200)
        timers = loop.timers()
    await asyncio.sleep(200)
    assert loop.timers() <= timers <= 4
