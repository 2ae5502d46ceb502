"""One request and its response, as bytes on a socket: bodies, early answers, disconnects, failures of an app."""

import asyncio
import logging
import re
from email.utils import parsedate_to_datetime

import pytest
from http_here import LIMIT, MARK, Recording, idle, post, read_body, request, serving
from websocket_server import ASYNCIO_BACKENDS
from worker_here import failures, respond

pytestmark = pytest.mark.anyio

GET, HEAD = request(), request(first="HEAD / HTTP/1.1")
OLD, KEPT = request(first="GET / HTTP/1.0"), request("Connection: Keep-Alive", first="GET / HTTP/1.0")
LENGTH = (b"content-length", b"4")


@pytest.fixture(params=ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
def anyio_backend(request):
    return request.param


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level(logging.INFO, logger="microws")


def start(status=200, *headers):
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data=b"", *, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


def sending(*events):
    """An app that reads nothing, and sends these events."""

    async def answer(scope, receive, send):
        for event in events:
            await send(event)

    return answer


class Waiting:
    """An app that answers with the path and the body once ``release`` is set."""

    def __init__(self):
        self.release = asyncio.Event()

    async def __call__(self, scope, receive, send):
        sent = await read_body(receive)
        await self.release.wait()
        await respond(send, scope["path"].encode() + sent)


async def unchanged(count):
    """Wait until ``count()`` does not change any more; its value."""
    before = None
    while before != (before := count()):
        await idle()
    return before


# The body of a response

PIECES = [body(b"ab", more=True), body(b"", more=True), body(b"cd", more=True), body()]
CHUNKED = (b"Transfer-Encoding", b"chunked")
CLOSE = (b"Connection", b"close")
FRAMINGS = {
    "a length": (GET, [start(200, LENGTH), *PIECES], {"content-length": "4"}, True),
    "one piece": (GET, [start(), body(b"abcd")], {"content-length": "4"}, True),
    "pieces": (GET, [start(), *PIECES], {"transfer-encoding": "chunked"}, True),
    # ASGI: "the server must ... strip any transfer-encoding".
    "an app's own coding": (GET, [start(200, CHUNKED), *PIECES], {"transfer-encoding": "chunked"}, True),
    "an app's own coding and length": (GET, [start(200, CHUNKED, LENGTH), *PIECES], {"content-length": "4"}, True),
    "an app's close": (
        GET,
        [start(200, LENGTH, CLOSE), *PIECES],
        {"content-length": "4", "connection": "close"},
        False,
    ),
    # RFC 9112 §9.3
    "1.0": (OLD, [start(200, LENGTH), *PIECES], {"content-length": "4"}, False),
    "1.0, pieces": (OLD, [start(), *PIECES], {}, False),
    "1.0, kept": (KEPT, [start(200, LENGTH), *PIECES], {"content-length": "4", "connection": "keep-alive"}, True),
    "1.0, kept, pieces": (KEPT, [start(), *PIECES], {}, False),
}


@pytest.mark.parametrize(("data", "events", "framing", "is_kept"), FRAMINGS.values(), ids=FRAMINGS)
async def test_headers_say_where_a_response_ends(data, events, framing, is_kept):
    async with serving(sending(*events)) as server, await server.connect() as client:
        for _ in range(1 + is_kept):
            answer = await client.ask(data)
            assert (answer.version, answer.status, answer.body) == ("HTTP/1.1", 200, b"abcd")
            assert {name: value for name, value in answer.headers if name != "date"} == framing
        if is_kept:
            client.half_close()
        assert await client.at_end()


async def test_a_piece_of_a_response_is_sent_at_once():
    release = asyncio.Event()

    async def answer(scope, receive, send):
        await send(start())
        await send(body(b"ab", more=True))
        await release.wait()
        await send(body(b"cd"))

    async with serving(answer) as server, await server.connect() as client:
        await client.send(GET)
        await client.read_head()
        assert await client.read_chunk() == b"ab"
        release.set()
        assert [await client.read_chunk(), await client.read_chunk()] == [b"cd", b""]


BODILESS = {
    "HEAD with a length": (HEAD, [start(200, LENGTH), body(b"abcd")], ["4"]),
    "HEAD without a body": (HEAD, [start(200, LENGTH), body()], ["4"]),
    "HEAD without a length": (HEAD, [start(), body(b"ab", more=True), body(b"cd")], None),
    "204": (GET, [start(204), body()], []),
    "204 with a body": (GET, [start(204, LENGTH), body(b"abcd")], []),
    "204 in pieces": (GET, [start(204), body(b"ab", more=True), body(b"cd")], []),
    "304": (GET, [start(304), body()], None),
    "304 with a body": (GET, [start(304, LENGTH), body(b"abcd")], ["4"]),
}


@pytest.mark.parametrize(("data", "events", "lengths"), BODILESS.values(), ids=BODILESS)
async def test_head_204_and_304_have_no_body(data, events, lengths):
    """RFC 9110 §8.6, §9.3.2, §15.3.5, §15.4.5; RFC 9112 §6.3."""
    async with serving(sending(*events)) as server, await server.connect() as client:
        for _ in range(2):
            answer = await client.ask(data, method="HEAD")
            assert answer.status == events[0]["status"]
            if lengths is not None:
                assert answer.values("content-length") == lengths
            if answer.status == 204:
                assert answer.values("transfer-encoding") == []
        client.half_close()
        assert await client.read_to_end() == b""


@pytest.mark.parametrize(
    "pieces", [[b"abc"], [b"a", b"b"], [b""], [b"abcde"], [b"ab", b"cdef"], [b"abcd", b"e"]], ids=repr
)
async def test_a_body_of_another_length_than_announced_ends_the_connection(pieces, caplog):
    app = sending(
        start(200, LENGTH), *[body(piece, more=place < len(pieces) - 1) for place, piece in enumerate(pieces)]
    )
    async with serving(app) as server, await server.connect() as client:
        await client.send(GET, MARK)
        client.half_close()
        data = await client.read_rest()
    head, _, sent = data.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 500 "):
        # Nothing was sent yet: the connection can be used.
        assert len(failures(caplog)) == data.count(b"HTTP/1.1 ") == data.count(b"HTTP/1.1 500 ") == 2
    else:
        # The client must see that the response is not complete, and take nothing else for its rest.
        assert (data.count(b"HTTP/1.1"), len(failures(caplog))) == (1, 1)
        assert b"\r\ncontent-length: 4\r\n" in head + b"\r\n"
        assert b"abcd".startswith(sent)


async def test_send_waits_for_a_client_that_does_not_read():
    sent = 0
    ended = asyncio.Event()

    async def answer(scope, receive, send):
        nonlocal sent
        await send(start())
        try:
            while True:
                await send(body(bytes(64 << 10), more=True))
                sent += 1
        except OSError:
            ended.set()

    async with serving(answer) as server:
        async with await server.connect(buffers=8192) as client:
            await client.send(GET)
            await client.read_head()
            # What the kernel holds, and 64 KiB here.
            assert await unchanged(lambda: sent) < 100
            await client.read_chunk()
        async with asyncio.timeout(LIMIT):
            await ended.wait()


PIECE_TYPES = [bytearray(b"abcdefgh"), memoryview(b"abcdefgh"), memoryview(b"abcdefgh").cast("I")]


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("piece", PIECE_TYPES, ids=["bytearray", "memoryview", "integers"])
async def test_a_body_may_be_any_kind_of_bytes(piece, more):
    pieces = [body(piece, more=more), body(memoryview(b""))] if more else [body(piece)]
    async with serving(sending(start(), *pieces)) as server, await server.connect() as client:
        for _ in range(2):
            assert (await client.ask(GET)).body == b"abcdefgh"


async def test_an_app_may_reuse_its_buffer():
    buffer = bytearray(100_000)

    async def answer(scope, receive, send):
        await send(start())
        for number in range(50):
            buffer[:] = bytes([number]) * len(buffer)
            await send(body(buffer, more=number < 49))

    async with serving(answer) as server, await server.connect(buffers=4096) as client:
        received = (await client.ask(GET)).body
    assert received == b"".join(bytes([number]) * len(buffer) for number in range(50))


# The body of a request

BODY = bytes(range(256)) * 400


def as_chunks(data, size):
    pieces = [data[place : place + size] for place in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize(
    ("data", "step"),
    # A parser that looks for blank lines must not look in bodies.
    [(BODY, 7), (BODY, 1000), (BODY, 1 << 20), (b"\r\n" * 200_000, 1 << 20)],
    ids=["7", "1000", "whole", "blank lines"],
)
async def test_a_request_body_arrives_as_it_was_sent(data, is_chunked, step):
    if is_chunked:
        raw = post("Transfer-Encoding: chunked", body=as_chunks(data, 997 if data is BODY else len(data)))
    else:
        raw = post(f"Content-Length: {len(data)}", body=data)
    step = max(step, len(raw) // 500)

    async def send_all(client):
        for place in range(0, len(raw), step):
            await client.send(raw[place : place + step])
            await asyncio.sleep(0)

    async with serving(Recording()) as server, await server.connect() as client:
        sending = asyncio.ensure_future(send_all(client))
        assert (await client.read_answer()).body == b"POST / " + data
        await sending
        assert (await client.ask(GET)).status == 200


@pytest.mark.parametrize("line", [f"Content-Length: {32 << 20}", "Transfer-Encoding: chunked"])
async def test_reading_pauses_while_the_app_does_not_read_the_body(line):
    release = asyncio.Event()

    async def answer(scope, receive, send):
        await release.wait()
        read = 0
        while (event := await receive())["type"] == "http.request" and event["more_body"]:
            read += len(event["body"])
        await respond(send, b"%d" % (read + len(event["body"])))

    piece = bytes(1 << 20) if line.startswith("C") else b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    sent = 0

    async def send_all(client):
        nonlocal sent
        await client.send(post(line))
        for _ in range(32):
            await client.send(piece)
            sent += 1
        if not line.startswith("C"):
            await client.send(b"0\r\n\r\n")

    async with serving(answer) as server, await server.connect() as client:
        sending = asyncio.ensure_future(send_all(client))
        # What the kernel holds, and 64 KiB here.
        assert await unchanged(lambda: sent) < 24
        release.set()
        assert (await client.read_answer()).body == b"%d" % (32 << 20)
        await sending


async def test_a_body_that_ends_early_is_a_disconnect():
    events = []

    async def answer(scope, receive, send):
        while not events or events[-1]["type"] == "http.request":
            events.append(await receive())

    async with serving(answer) as server, await server.connect() as client:
        await client.send(post("Content-Length: 10", body=b"abcd"))
        client.half_close()
        assert await client.read_rest() == b""
    assert b"".join(event.get("body", b"") for event in events) == b"abcd"


# 100-continue

EXPECT = ("Expect: 100-Continue", "Content-Length: 4")
REFUSING = sending(start(403, LENGTH), body(b"nope"))


@pytest.mark.parametrize("line", ["Content-Length: 4", "Transfer-Encoding: chunked"])
async def test_100_is_sent_when_the_app_first_reads_the_body(line):
    asks = asyncio.Event()

    async def answer(scope, receive, send):
        await asks.wait()
        await respond(send, await read_body(receive))

    async with serving(answer) as server, await server.connect() as client:
        await client.send(post("Expect: 100-continue", line))
        await idle()
        with pytest.raises(BlockingIOError):
            client.sock.recv(1)
        asks.set()
        continues = await client.read_answer()
        assert (continues.status, continues.headers) == (100, [])
        answer = await client.ask(b"abcd" if line.startswith("C") else b"4\r\nabcd\r\n0\r\n\r\n")
        assert (answer.status, answer.body) == (200, b"abcd")
        assert (await client.ask(GET)).status == 200


async def respond_then_read(scope, receive, send):
    await respond(send, b"nope", 403)
    assert (await receive())["type"] == "http.disconnect"


@pytest.mark.parametrize("app", [REFUSING, respond_then_read])
@pytest.mark.parametrize("sent", [b"", b"abcd"], ids=["without the body", "with the body"])
async def test_an_early_answer_replaces_100(app, sent):
    """RFC 9110 §10.1.1: a final status code is sent instead."""
    async with serving(app) as server, await server.connect() as client:
        answers = await client.ask_all(post(*EXPECT, body=sent))
    assert [(answer.status, answer.body) for answer in answers] == [(403, b"nope")]


async def test_a_body_after_an_early_answer_is_not_a_request():
    async with serving(REFUSING) as server, await server.connect() as client:
        assert (await client.ask(post("Expect: 100-continue", f"Content-Length: {len(MARK)}"))).status == 403
        await client.send(MARK)
        client.half_close()
        assert await client.read_rest() == b""


@pytest.mark.parametrize("first", ["POST / HTTP/1.1", "POST / HTTP/1.0"])
async def test_100_is_not_sent_to_1_0_nor_once_the_body_is_there(first):
    """RFC 9110 §10.1.1: a server MAY omit the 100 then."""
    async with serving(Recording()) as server, await server.connect() as client:
        answers = await client.ask_all(post(*EXPECT, body=b"abcd", first=first))
    assert [answer.status for answer in answers if answer.status != 100 or "1.0" in first] == [200]


@pytest.mark.parametrize("line", ["Expect: coffee", "Expect: 100-continue, coffee", "Expect: 100-continued"])
async def test_other_expectations_are_417(line):
    app = Recording()
    async with serving(app) as server, await server.connect() as client:
        answers = await client.ask_all(post(line, "Content-Length: 4", body=b"abcd"), MARK)
    assert answers[0].status == 417
    assert len(answers) == 1 or app.requests[0].target == b"/smuggled"


# Pipelining


async def test_pipelined_requests_are_answered_in_order():
    app = Waiting()
    async with serving(app) as server, await server.connect() as client:
        await client.send(
            request(first="GET /slow HTTP/1.1"),
            post("Content-Length: 4", body=b"abcd"),
            post("Transfer-Encoding: chunked", body=b"4\r\nefgh\r\n0\r\n\r\n"),
            request(first="HEAD /slow HTTP/1.1"),
            request("Connection: close", first="GET /last HTTP/1.1"),
        )
        await idle()
        with pytest.raises(BlockingIOError):
            client.sock.recv(1)
        app.release.set()
        assert [(await client.read_answer()).body for _ in range(3)] == [b"/slow", b"/abcd", b"/efgh"]
        assert (await client.read_answer(method="HEAD")).value("content-length") == "5"
        assert (await client.read_answer()).body == b"/last"
        assert await client.at_end()


async def test_one_pipelined_request_is_served_at_a_time():
    running = 0

    async def answer(scope, receive, send):
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        await respond(send)
        running -= 1

    async with serving(answer) as server, await server.connect() as client:
        await client.send(GET * 100)
        for _ in range(100):
            assert (await client.read_answer()).status == 200


async def test_reading_pauses_while_pipelined_requests_wait():
    count, sent = 50_000, 0

    async def send_all(client):
        nonlocal sent
        for _ in range(count // 1000):
            await client.send(GET * 1000)
            sent += 1000

    app = Waiting()
    async with serving(app) as server, await server.connect(buffers=8192) as client:
        sending = asyncio.ensure_future(send_all(client))
        assert await unchanged(lambda: sent) < count
        app.release.set()
        assert [(await client.read_answer()).status for _ in range(2000)] == [200] * 2000
        sending.cancel()


# Answers before the end of the request


async def test_a_connection_survives_an_answer_before_a_small_body():
    async with serving(sending(start(200, LENGTH), body(b"abcd"))) as server, await server.connect() as client:
        for line, rest in (
            ("Content-Length: 60000", bytes(60_000)),
            ("Transfer-Encoding: chunked", b"ea60\r\n%s\r\n0\r\n\r\n" % bytes(60_000)),
        ):
            assert (await client.ask(post(line))).body == b"abcd"
            await client.send(rest)
            assert (await client.ask(GET)).body == b"abcd"


@pytest.mark.parametrize("line", [f"Content-Length: {50 << 20}", "Transfer-Encoding: chunked"])
async def test_the_answer_before_a_large_body_is_not_lost_by_a_reset(line, monkeypatch):
    """RFC 9112 §9.6: closing a socket with unread data resets the connection."""
    monkeypatch.setattr("microws.server.http1._DISCARD_TIMEOUT", 0.1)
    piece = bytes(1 << 16) if line.startswith("C") else b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    answer = sending(start(413, (b"content-length", b"100000")), body(b"x" * 100_000))
    async with serving(answer) as server, await server.connect() as client:
        await client.send(post(line), piece * 8)
        assert len((await client.read_answer()).body) == 100_000
        await client.send(piece)
        assert await client.at_end()


# Disconnects


async def test_a_half_closed_client_gets_its_answers():
    app = Waiting()
    async with serving(app) as server, await server.connect() as client:
        await client.send(GET, post("Content-Length: 4", body=b"abcd", first="POST /b HTTP/1.1"))
        client.half_close()
        await idle()
        app.release.set()
        assert [answer.body for answer in await client.read_answers()] == [b"/", b"/babcd"]


@pytest.mark.parametrize("cut", [GET[:-2], post("Content-Length: 4", body=b"ab")], ids=["head", "body"])
async def test_a_pipelined_request_that_is_cut_is_not_served(cut):
    app = Waiting()
    async with serving(app) as server, await server.connect() as client:
        await client.send(GET, cut)
        client.half_close()
        await idle()
        app.release.set()
        assert [answer.body for answer in await client.read_answers()] == [b"/"]


async def test_an_invalid_body_after_the_start_of_the_answer_ends_the_connection(caplog):
    ended = asyncio.Event()

    async def answer(scope, receive, send):
        await send(start())
        await send(body(b"ab", more=True))
        assert (await receive())["type"] == "http.disconnect"
        ended.set()

    async with serving(answer) as server, await server.connect() as client:
        await client.send(post("Transfer-Encoding: chunked"))
        await client.read_head()
        await client.send(b"nonsense\r\n", MARK)
        assert b"HTTP/1.1" not in await client.read_rest()
        async with asyncio.timeout(LIMIT):
            await ended.wait()
    assert not failures(caplog)


async def test_a_large_body_that_the_app_does_not_read_leaves_the_connection_usable():
    async with serving(sending(start(200, LENGTH), body(b"abcd"))) as server, await server.connect() as client:
        for _ in range(3):
            await client.send(post("Content-Length: 200000", body=bytes(200_000)))
            assert (await client.read_answer()).body == b"abcd"
        await client.send(post("Content-Length: 200000", body=bytes(200_000)), GET * 2)
        assert [(await client.read_answer()).body for _ in range(3)] == [b"abcd"] * 3


@pytest.mark.parametrize("way", ["half_close", "reset"])
async def test_an_app_that_waits_for_the_disconnect_gets_it(way):
    ended = asyncio.Event()

    async def answer(scope, receive, send):
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await send(start(200, (b"content-type", b"text/event-stream")))
        await send(body(b"data: 1\n\n", more=True))
        assert (await receive())["type"] == "http.disconnect"
        ended.set()

    async with serving(answer) as server, await server.connect() as client:
        await client.send(GET)
        await client.read_head()
        getattr(client, way)()
        async with asyncio.timeout(LIMIT):
            await ended.wait()


async def test_a_pipelined_request_gets_the_disconnect_of_before():
    ended = []

    async def answer(scope, receive, send):
        await receive()
        await send(start())
        await send(body(b"begun", more=True))
        assert (await receive())["type"] == "http.disconnect"
        ended.append(scope["path"])
        await send(body())

    async with serving(answer) as server, await server.connect() as client:
        await client.send(GET, request(first="GET /second HTTP/1.1"))
        client.half_close()
        await client.read_rest()
    assert ended == ["/", "/second"]


async def test_an_app_that_returns_after_the_disconnect_does_not_fail(caplog):
    """As Django does."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def answer(scope, receive, send):
        await receive()
        began.set()
        assert (await receive())["type"] == "http.disconnect"
        ended.set()

    async with serving(answer) as server, await server.connect() as client:
        await client.send(GET)
        async with asyncio.timeout(LIMIT):
            await began.wait()
            client.half_close()
            await ended.wait()
        assert await client.read_rest() == b""
    assert '"GET / HTTP/1.1" - ' in caplog.text
    assert not failures(caplog)


async def test_an_event_stream_with_a_length_ends_with_the_server(caplog):
    begun = asyncio.Event()

    async def answer(scope, receive, send):
        await receive()
        await send(start(200, (b"content-type", b"text/event-stream"), (b"content-length", b"100")))
        await send(body(b"data: 1\n\n", more=True))
        begun.set()
        await receive()

    async with serving(answer) as server, await server.connect() as client:
        await client.send(GET)
        async with asyncio.timeout(LIMIT):
            await begun.wait()
        server.state.is_draining = True
        for exchange in server.state.exchanges:
            exchange.drain()
        assert (await client.read_rest()).endswith(b"data: 1\n\n")
    assert not failures(caplog)


async def test_a_disconnect_within_a_large_response_is_not_a_failure(caplog):
    raised = []

    async def answer(scope, receive, send):
        await send(start())
        try:
            await send(body(bytes(8 << 20)))
        except OSError as error:
            raised.append(error)
            raise

    async with serving(answer) as server:
        for size in (1, 100_000, 3_000_000):
            async with await server.connect(buffers=4096) as client:
                await client.send(GET)
                received = 0
                while received < size:
                    received += len(await client._receive())
                client.reset()
    assert len(raised) == 3
    assert not failures(caplog)


async def test_send_raises_an_oserror_after_the_disconnect():
    """ASGI 2.4."""
    ended = asyncio.Event()

    async def answer(scope, receive, send):
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        await send(start())
        with pytest.raises(OSError):  # noqa: PT011 - the kind is what the specification says
            await send(body(b"x", more=True))
        ended.set()

    async with serving(answer) as server, await server.connect() as client:
        await client.send(GET)
        await idle()
        client.reset()
        async with asyncio.timeout(LIMIT):
            await ended.wait()


async def test_receive_gives_a_disconnect_after_the_answer():
    events = []

    async def answer(scope, receive, send):
        await respond(send)
        events.append(await receive())
        events.append(await receive())

    async with serving(answer) as server, await server.connect() as client:
        assert [(await client.ask(GET)).status for _ in range(2)] == [200, 200]
        await idle()
    assert [event["type"] for event in events] == ["http.request", "http.disconnect"] * 2


# The head of a response


async def test_every_response_has_a_date():
    """RFC 9110 §6.6.1."""
    async with serving(sending(start(200, LENGTH), body(b"abcd"))) as server, await server.connect() as client:
        date = (await client.ask(GET)).value("date")
        assert parsedate_to_datetime(date)
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", date)
        assert (await client.ask(request(host=None))).value("date") is not None


async def test_the_headers_of_an_app_are_sent_in_lower_case_and_its_date_stays():
    date = "Tue, 15 Nov 1994 08:12:31 GMT"
    headers = [(b"X-Two", b"a"), (b"x-two", b"b"), (b"Date", date.encode()), LENGTH]
    async with serving(sending(start(200, *headers), body(b"abcd"))) as server, await server.connect() as client:
        answer = await client.ask(GET)
    assert (answer.values("x-two"), answer.values("date"), answer.values("server")) == (["a", "b"], [date], [])


async def test_headers_may_be_an_iterator_or_missing():
    def app(headers):
        return sending({"type": "http.response.start", "status": 200, **headers}, {"type": "http.response.body"})

    for headers, sent in (({"headers": iter([(b"x-one", b"a"), (b"content-length", b"0")])}, ["a"]), ({}, [])):
        async with serving(app(headers)) as server, await server.connect() as client:
            answer = await client.ask(GET)
            assert (answer.status, answer.values("x-one")) == (200, sent)


BAD_STARTS = {
    "a line break in a value": start(200, (b"x", b"a\r\nset-cookie: b=c")),
    "a line break at the end of a value": start(200, (b"x", b"a\r\n")),
    "LF in a value": start(200, (b"x", b"a\nset-cookie: b=c")),
    "CR in a value": start(200, (b"x", b"a\rset-cookie: b=c")),
    "NUL in a value": start(200, (b"x", b"a\0set-cookie: b=c")),
    "DEL in a value": start(200, (b"x", b"a\x7fset-cookie: b=c")),
    "a line break in a name": start(200, (b"x: y\r\nset-cookie", b"b=c")),
    "a space in a name": start(200, (b"set-cookie ", b"b=c")),
    "a colon in a name": start(200, (b"set-cookie:", b"b=c")),
    "a field in a name": start(200, (b"set-cookie: b", b"c")),
    "an empty name": start(200, (b"", b"set-cookie: b=c")),
    "not ASCII in a name": start(200, ("sét-cookie".encode(), b"b=c")),
    "text for bytes": start(200, ("set-cookie", "b=c")),
    "a line break in content-type": start(200, (b"content-type", b"text/plain\r\nset-cookie: b=c")),
    "a line break in date": start(200, (b"date", b"now\r\nset-cookie: b=c")),
    "an invalid length": start(200, (b"content-length", b"4, set-cookie")),
    "a negative length": start(200, (b"content-length", b"-4"), (b"set-cookie", b"b=c")),
    "two lengths": start(200, LENGTH, (b"content-length", b"5"), (b"set-cookie", b"b=c")),
    "status 99": start(99, (b"set-cookie", b"b=c")),
    "status 101": start(101, (b"set-cookie", b"b=c")),
    "status 1000": start(1000, (b"set-cookie", b"b=c")),
    "status in text": start("200 OK", (b"set-cookie", b"b=c")),
}


@pytest.mark.parametrize("event", BAD_STARTS.values(), ids=BAD_STARTS)
async def test_an_invalid_head_is_answered_with_500_and_logged(event, caplog):
    async with serving(sending(event, body(b"abcd"))) as server, await server.connect() as client:
        answer = await client.ask(GET)
        assert answer.status == 500
        assert "set-cookie" not in str(answer).lower()
        client.half_close()
        assert await client.read_rest() == b""
    assert [record.levelname for record in failures(caplog)] == ["ERROR"]


BAD_EVENTS = {
    "nothing": [],
    "a body first": [body(b"abcd")],
    "a start alone": [start(200, LENGTH)],
    "another type": [{"type": "http.answer"}],
    "a WebSocket's": [{"type": "websocket.accept"}],
    "text as the body": [start(), body("abcd")],
    "no status": [{"type": "http.response.start", "headers": []}],
}


@pytest.mark.parametrize("events", BAD_EVENTS.values(), ids=BAD_EVENTS)
async def test_an_app_that_fails_before_its_answer_is_a_500(events, caplog):
    async with serving(sending(*events)) as server, await server.connect() as client:
        answer = await client.ask(GET)
    assert answer.status == 500
    assert [record.levelname for record in failures(caplog)] == ["ERROR"]


async def test_the_connection_survives_an_app_that_raises(caplog):
    async def answer(scope, receive, send):
        raise LookupError("no such thing")

    async with serving(answer) as server, await server.connect() as client:
        first, second = await client.ask(GET), await client.ask(GET)
    assert (first.status, second.status) == (500, 500)
    assert "no such thing" not in str(first)
    assert len(failures(caplog)) == 2


LATE_FAILURES = {
    "with a length": (GET, [start(200, LENGTH), body(b"ab", more=True)]),
    "in chunks": (GET, [start(), body(b"ab", more=True)]),
}


@pytest.mark.parametrize("raises", [True, False], ids=["raises", "returns"])
@pytest.mark.parametrize(("data", "events"), LATE_FAILURES.values(), ids=LATE_FAILURES)
async def test_a_client_sees_that_an_answer_is_not_complete(data, events, raises, caplog):
    async def answer(scope, receive, send):
        for event in events:
            await send(event)
        if raises:
            raise LookupError

    async with serving(answer) as server, await server.connect() as client:
        await client.send(data, MARK)
        rest = await client.read_rest()
    assert rest.count(b"HTTP/1.1") == 1
    assert not rest.endswith(b"0\r\n\r\n")
    assert rest.partition(b"\r\n\r\n")[2] in (b"ab", b"2\r\nab\r\n")
    assert len(failures(caplog)) == 1


async def test_an_event_at_the_wrong_time_raises_and_changes_nothing(caplog):
    async def answer(scope, receive, send):
        await send(start(200, LENGTH))
        with pytest.raises(RuntimeError):
            await send(start(500))
        await send(body(b"abcd"))
        for event in (start(500), body(b"more")):
            with pytest.raises(RuntimeError):
                await send(event)

    async with serving(answer) as server, await server.connect() as client:
        for _ in range(2):
            answer = await client.ask(GET)
            assert (answer.status, answer.body) == (200, b"abcd")
    assert failures(caplog) == []
