"""One request and its response, as bytes on a socket: bodies, early answers, disconnects, failures of an app."""

import asyncio
import logging
import re
from email.utils import parsedate_to_datetime

import pytest
from engine_here import ASYNCIO_BACKENDS
from http_here import LIMIT, MARK, Recording, read_body, request, serving
from worker_here import failures, lifespan, respond

pytestmark = pytest.mark.anyio

GET, HEAD = request(), request(first="HEAD / HTTP/1.1")
OLD = request(first="GET / HTTP/1.0")
LENGTH = (b"content-length", b"4")


@pytest.fixture(params=ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
def anyio_backend(request):
    return request.param


def post(*lines, body=b"", first="POST / HTTP/1.1"):
    return request(*lines, first=first, body=body)


def answering(function):
    """An app that leaves each request to ``function``."""

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            await function(scope, receive, send)

    return app


def start(status=200, *headers):
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data=b"", *, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


def sending(*events):
    """An app that reads nothing, and sends these events."""

    async def answer(scope, receive, send):
        for event in events:
            await send(event)

    return answering(answer)


async def idle():
    """Let everything in this event loop happen that does not need new data."""
    for _ in range(50):
        await asyncio.sleep(0.001)


# The body of a response


async def test_a_response_with_a_length_keeps_the_connection():
    app = sending(start(200, LENGTH, (b"X-Two", b"a"), (b"x-two", b"b")), body(b"ab", more=True), body(b"cd"))
    async with serving(app) as server, await server.connect() as client:
        for _ in range(2):
            answer = await client.ask(GET)
            assert (answer.version, answer.status, answer.body) == ("HTTP/1.1", 200, b"abcd")
            assert answer.values("x-two") == ["a", "b"]
            assert answer.value("connection") is None
            assert answer.value("transfer-encoding") is None
            assert answer.value("server") is None


async def test_a_response_without_a_length_comes_in_chunks():
    """An empty piece is not the end."""
    app = sending(start(), body(b"ab", more=True), body(b"", more=True), body(b"cd", more=True), body())
    async with serving(app) as server, await server.connect() as client:
        for _ in range(2):
            answer = await client.ask(GET)
            assert (answer.values("transfer-encoding"), answer.value("content-length")) == (["chunked"], None)
            assert answer.body == b"abcd"


async def test_a_piece_leaves_at_once():
    release = asyncio.Event()

    async def answer(scope, receive, send):
        await send(start())
        await send(body(b"ab", more=True))
        await release.wait()
        await send(body(b"cd"))

    async with serving(answering(answer)) as server, await server.connect() as client:
        await client.send(GET)
        await client.read_head()
        assert await client.read_chunk() == b"ab"
        release.set()
        assert [await client.read_chunk(), await client.read_chunk()] == [b"cd", b""]


async def test_a_response_in_one_piece_needs_no_chunks():
    async with serving(sending(start(), body(b"abcd"))) as server, await server.connect() as client:
        answer = await client.ask(GET)
    assert (answer.value("content-length"), answer.body) == ("4", b"abcd")


async def test_http_1_0_gets_no_chunks_and_the_end_of_the_connection():
    app = sending(start(), body(b"ab", more=True), body(b"cd"))
    async with serving(app) as server:
        for lines in ([], ["Connection: keep-alive"]):
            async with await server.connect() as client:
                [answer] = await client.ask_all(request(*lines, first="GET / HTTP/1.0"))
            assert (answer.values("transfer-encoding"), answer.value("content-length")) == ([], None)
            assert answer.body == b"abcd"


async def test_http_1_0_is_closed_unless_it_asks_to_be_kept():
    """RFC 9112 §9.3."""
    kept = request("Connection: Keep-Alive", first="GET / HTTP/1.0")
    async with serving(sending(start(200, LENGTH), body(b"abcd"))) as server:
        async with await server.connect() as client:
            for _ in range(2):
                answer = await client.ask(kept)
                assert (answer.value("connection"), answer.body) == ("keep-alive", b"abcd")
            assert (await client.ask(OLD)).body == b"abcd"
            assert await client.at_end()
        async with await server.connect() as client:
            assert (await client.ask(OLD)).body == b"abcd"
            assert await client.at_end()


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
async def test_no_body_follows_where_none_may(data, events, lengths):
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


@pytest.mark.parametrize("headers", [[], [LENGTH]], ids=["alone", "with a length"])
async def test_an_apps_own_transfer_encoding_is_ignored(headers):
    """ASGI: "the server must ... strip any transfer-encoding"."""
    app = sending(start(200, (b"Transfer-Encoding", b"chunked"), *headers), body(b"ab", more=True), body(b"cd"))
    async with serving(app) as server, await server.connect() as client:
        answer = await client.ask(GET)
        assert answer.body == b"abcd"
        assert len(answer.values("transfer-encoding")) + len(answer.values("content-length")) == 1
        assert (await client.ask(GET)).body == b"abcd"


@pytest.mark.parametrize(
    "pieces", [[b"abc"], [b"a", b"b"], [b""], [b"abcde"], [b"ab", b"cdef"], [b"abcd", b"e"]], ids=repr
)
async def test_a_body_that_is_not_as_long_as_announced_ends_the_connection(pieces, caplog):
    app = sending(
        start(200, LENGTH), *[body(piece, more=place < len(pieces) - 1) for place, piece in enumerate(pieces)]
    )
    async with serving(app) as server, await server.connect() as client:
        await client.send(GET, MARK)
        client.half_close()
        data = await client.read_rest()
    head, _, sent = data.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 500 "):
        # Nothing was sent yet: the connection is as good as before.
        assert len(failures(caplog)) == data.count(b"HTTP/1.1 ") == data.count(b"HTTP/1.1 500 ") == 2
    else:
        # What was announced is not kept: the client must see that, and take nothing else for it.
        assert (data.count(b"HTTP/1.1"), len(failures(caplog))) == (1, 1)
        assert b"\r\ncontent-length: 4\r\n" in head + b"\r\n"
        assert b"abcd".startswith(sent)


async def test_a_large_body_arrives_whole():
    data = bytes(range(256)) * 4000

    async def answer(scope, receive, send):
        await send(start(200, (b"content-length", b"%d" % (2 * len(data)))))
        await send(body(data, more=True))
        await send(body(bytearray(data)))

    async with serving(answering(answer)) as server, await server.connect(buffers=65536) as client:
        assert (await client.ask(GET)).body == data + data


async def test_an_app_waits_for_a_client_that_does_not_read():
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

    async with serving(answering(answer)) as server:
        async with await server.connect(buffers=8192) as client:
            await client.send(GET)
            await client.read_head()
            before = -1
            while before != sent:
                before = sent
                await idle()
            # What the kernel holds, and 64 KiB here.
            assert sent < 100
            await client.read_chunk()
        async with asyncio.timeout(LIMIT):
            await ended.wait()


# The body of a request


BODY = bytes(range(256)) * 400


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("step", [7, 1000, 1 << 20])
async def test_a_body_arrives_as_it_was_sent(is_chunked, step):
    app = Recording()
    if is_chunked:
        pieces = [BODY[place : place + 997] for place in range(0, len(BODY), 997)]
        data = post(
            "Transfer-Encoding: chunked",
            body=b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n",
        )
    else:
        data = post(f"Content-Length: {len(BODY)}", body=BODY)
    step = max(step, len(data) // 2000)
    async with serving(app) as server, await server.connect() as client:
        for place in range(0, len(data), step):
            await client.send(data[place : place + step])
            await asyncio.sleep(0)
        assert (await client.read_answer()).body == b"POST / " + BODY
        assert (await client.ask(GET)).status == 200


async def test_a_body_full_of_blank_lines_arrives_as_it_was_sent():
    """A parser that looks for blank lines must not look in bodies."""
    data = b"\r\n" * 200_000
    async with serving(Recording()) as server, await server.connect() as client:
        for lines, sent in (
            (f"Content-Length: {len(data)}", data),
            ("Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)),
        ):
            sending = asyncio.ensure_future(client.send(post(lines, body=sent)))
            assert (await client.read_answer()).body == b"POST / " + data
            await sending


@pytest.mark.parametrize("line", [f"Content-Length: {32 << 20}", "Transfer-Encoding: chunked"])
async def test_a_client_waits_for_an_app_that_does_not_read(line):
    release = asyncio.Event()

    async def answer(scope, receive, send):
        await release.wait()
        read = 0
        while (event := await receive())["type"] == "http.request" and event["more_body"]:
            read += len(event["body"])
        await respond(send, b"%d" % (read + len(event["body"])))

    piece = bytes(1 << 20) if line.startswith("C") else b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    async with serving(answering(answer)) as server, await server.connect() as client:
        sent = 0

        async def send_all():
            nonlocal sent
            await client.send(post(line))
            for _ in range(32):
                await client.send(piece)
                sent += 1
            if not line.startswith("C"):
                await client.send(b"0\r\n\r\n")

        sending = asyncio.ensure_future(send_all())
        before = -1
        while before != sent:
            before = sent
            await idle()
        # What the kernel holds, and 64 KiB here.
        assert sent < 24
        release.set()
        assert (await client.read_answer()).body == b"%d" % (32 << 20)
        await sending


async def test_a_body_that_ends_too_early_is_a_disconnect():
    disconnects = []

    async def answer(scope, receive, send):
        events = []
        while not events or events[-1]["type"] == "http.request":
            events.append(await receive())
        disconnects.append(b"".join(event.get("body", b"") for event in events))

    async with serving(answering(answer)) as server, await server.connect() as client:
        await client.send(post("Content-Length: 10", body=b"abcd"))
        client.half_close()
        assert await client.read_rest() == b""
    assert disconnects == [b"abcd"]


# 100-continue


EXPECT = ("Expect: 100-Continue", "Content-Length: 4")


@pytest.mark.parametrize("line", ["Content-Length: 4", "Transfer-Encoding: chunked"])
async def test_the_body_is_asked_for_when_the_app_first_wants_it(line):
    asks = asyncio.Event()

    async def answer(scope, receive, send):
        await asks.wait()
        await respond(send, await read_body(receive))

    async with serving(answering(answer)) as server, await server.connect() as client:
        await client.send(post("Expect: 100-continue", line))
        await idle()
        with pytest.raises(BlockingIOError):
            client.sock.recv(1)
        asks.set()
        continues = await client.read_answer()
        assert (continues.status, continues.headers) == (100, [])
        await client.send(b"abcd" if line.startswith("C") else b"4\r\nabcd\r\n0\r\n\r\n")
        answer = await client.read_answer()
        assert (answer.status, answer.body) == (200, b"abcd")
        assert (await client.ask(GET)).status == 200


@pytest.mark.parametrize("sent", [b"", b"abcd"], ids=["without the body", "with the body"])
async def test_an_answer_takes_the_place_of_100(sent):
    """RFC 9110 §10.1.1: a final status code is sent instead."""
    async with serving(sending(start(403, LENGTH), body(b"nope"))) as server, await server.connect() as client:
        answers = await client.ask_all(post(*EXPECT, body=sent))
    assert [(answer.status, answer.body) for answer in answers] == [(403, b"nope")]


async def test_a_body_behind_an_answer_that_took_the_place_of_100_is_no_request():
    app = sending(start(403, LENGTH), body(b"nope"))
    async with serving(app) as server, await server.connect() as client:
        answer = await client.ask(post("Expect: 100-continue", f"Content-Length: {len(MARK)}"))
        assert answer.status == 403
        await client.send(MARK)
        client.half_close()
        assert await client.read_rest() == b""


async def test_an_app_that_reads_after_its_answer_asks_for_no_body():
    async def answer(scope, receive, send):
        await respond(send, b"nope", 403)
        assert (await receive())["type"] == "http.disconnect"

    async with serving(answering(answer)) as server, await server.connect() as client:
        answers = await client.ask_all(post(*EXPECT))
    assert [answer.status for answer in answers] == [403]


async def test_a_body_that_has_come_already_is_not_asked_for():
    """RFC 9110 §10.1.1: a server MAY omit the 100 then."""
    async with serving(Recording()) as server, await server.connect() as client:
        answers = await client.ask_all(post(*EXPECT, body=b"abcd"))
    assert [answer.status for answer in answers if answer.status != 100] == [200]


async def test_http_1_0_gets_no_100():
    async with serving(Recording()) as server, await server.connect() as client:
        answers = await client.ask_all(post(*EXPECT, body=b"abcd", first="POST / HTTP/1.0"))
    assert [answer.status for answer in answers] == [200]


@pytest.mark.parametrize("line", ["Expect: coffee", "Expect: 100-continue, coffee", "Expect: 100-continued"])
async def test_another_expectation_fails(line):
    app = Recording()
    async with serving(app) as server, await server.connect() as client:
        answers = await client.ask_all(post(line, "Content-Length: 4", body=b"abcd"), MARK)
    assert answers[0].status == 417
    assert len(answers) == 1 or app.requests[0].target == b"/smuggled"


# Requests one behind the other


async def test_requests_in_one_packet_are_answered_in_order():
    release = asyncio.Event()

    async def answer(scope, receive, send):
        if scope["path"] == "/slow":
            await release.wait()
        await respond(send, scope["path"].encode() + await read_body(receive))

    async with serving(answering(answer)) as server, await server.connect() as client:
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
        release.set()
        assert [(await client.read_answer()).body for _ in range(3)] == [b"/slow", b"/abcd", b"/efgh"]
        assert (await client.read_answer(method="HEAD")).value("content-length") == "5"
        assert (await client.read_answer()).body == b"/last"
        assert await client.at_end()


async def test_a_request_waits_until_the_one_before_it_is_answered():
    running = 0

    async def answer(scope, receive, send):
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        await respond(send)
        running -= 1

    async with serving(answering(answer)) as server, await server.connect() as client:
        await client.send(GET * 100)
        for _ in range(100):
            assert (await client.read_answer()).status == 200


async def test_reading_pauses_while_requests_wait():
    release = asyncio.Event()

    async def answer(scope, receive, send):
        await release.wait()
        await respond(send)

    count = 200_000
    async with serving(answering(answer)) as server, await server.connect(buffers=8192) as client:
        sent = 0

        async def send_all():
            nonlocal sent
            for _ in range(count // 1000):
                await client.send(GET * 1000)
                sent += 1000

        sending = asyncio.ensure_future(send_all())
        before = -1
        while before != sent:
            before = sent
            await idle()
        assert sent < count
        release.set()
        assert [(await client.read_answer()).status for _ in range(2000)] == [200] * 2000
        sending.cancel()


# Answers that do not wait for the body


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
async def test_the_answer_before_a_large_body_can_be_read_to_its_end(line):
    """A reset before that, because something unread was left, would take the answer away: RFC 9112 §9.6."""
    piece = bytes(1 << 16) if line.startswith("C") else b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    answer = sending(start(413, (b"content-length", b"100000")), body(b"x" * 100_000))
    async with serving(answer) as server, await server.connect() as client:
        await client.send(post(line), piece * 8)
        assert len((await client.read_answer()).body) == 100_000
        await client.send(piece)
        assert await client.at_end()


# A client that leaves


async def test_a_client_that_half_closes_gets_its_answers():
    release = asyncio.Event()

    async def answer(scope, receive, send):
        await read_body(receive)
        await release.wait()
        await respond(send, scope["path"].encode())

    async with serving(answering(answer)) as server, await server.connect() as client:
        await client.send(GET, post("Content-Length: 4", body=b"abcd", first="POST /b HTTP/1.1"))
        client.half_close()
        await idle()
        release.set()
        assert [answer.body for answer in await client.read_answers()] == [b"/", b"/b"]


async def test_a_half_closed_request_that_is_not_whole_is_not_served():
    app = Recording()
    async with serving(app) as server, await server.connect() as client:
        await client.send(GET, GET[:-2])
        client.half_close()
        assert (await client.read_answer()).status == 200
        await client.read_rest()
    assert len(app.requests) == 1


@pytest.mark.parametrize("way", ["half_close", "reset"])
async def test_an_app_that_waits_for_the_disconnect_learns_of_it(way):
    ended = asyncio.Event()

    async def answer(scope, receive, send):
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await send(start(200, (b"content-type", b"text/event-stream")))
        await send(body(b"data: 1\n\n", more=True))
        assert (await receive())["type"] == "http.disconnect"
        ended.set()

    async with serving(answering(answer)) as server, await server.connect() as client:
        await client.send(GET)
        await client.read_head()
        getattr(client, way)()
        async with asyncio.timeout(LIMIT):
            await ended.wait()


async def test_a_request_that_waited_for_its_turn_learns_that_the_client_has_half_closed():
    ended = []

    async def answer(scope, receive, send):
        await receive()
        await send(start())
        await send(body(b"begun", more=True))
        assert (await receive())["type"] == "http.disconnect"
        ended.append(scope["path"])
        await send(body())

    async with serving(answering(answer)) as server, await server.connect() as client:
        await client.send(GET, request(first="GET /second HTTP/1.1"))
        client.half_close()
        await client.read_rest()
    assert ended == ["/", "/second"]


async def test_a_request_behind_another_whose_body_is_cut_is_not_served():
    app = Recording()
    async with serving(app) as server, await server.connect() as client:
        await client.send(GET, post("Content-Length: 4", body=b"ab"))
        client.half_close()
        assert (await client.read_answer()).status == 200
        await client.read_rest()
    assert len(app.requests) == 1


async def test_an_app_that_returns_when_its_client_has_left_is_no_failure(caplog):
    """As Django does."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def answer(scope, receive, send):
        await receive()
        began.set()
        assert (await receive())["type"] == "http.disconnect"
        ended.set()

    caplog.set_level(logging.INFO, logger="microws")
    async with serving(answering(answer), access_log=True) as server, await server.connect() as client:
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

    async with serving(answering(answer)) as server, await server.connect() as client:
        await client.send(GET)
        async with asyncio.timeout(LIMIT):
            await begun.wait()
        server.shutdown.request()
        assert (await client.read_rest()).endswith(b"data: 1\n\n")
    assert not failures(caplog)


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize(
    "piece",
    [bytearray(b"abcdefgh"), memoryview(b"abcdefgh"), memoryview(b"abcdefgh").cast("I")],
    ids=["bytearray", "memoryview", "integers"],
)
async def test_a_body_may_be_any_kind_of_bytes(piece, more):
    pieces = [body(piece, more=more), body(memoryview(b""))] if more else [body(piece)]
    async with serving(sending(start(), *pieces)) as server, await server.connect() as client:
        for _ in range(2):
            await client.send(GET)
            assert (await client.read_answer()).body == b"abcdefgh"
    assert len(piece.tobytes() if isinstance(piece, memoryview) else piece) == 8


async def test_an_app_may_use_its_buffer_again():
    buffer = bytearray(100_000)

    async def answer(scope, receive, send):
        await send(start())
        for number in range(50):
            buffer[:] = bytes([number]) * len(buffer)
            await send(body(buffer, more=number < 49))

    async with serving(answering(answer)) as server, await server.connect(buffers=4096) as client:
        await client.send(GET)
        received = (await client.read_answer()).body
    assert received == b"".join(bytes([number]) * len(buffer) for number in range(50))


async def test_a_client_that_leaves_within_a_large_response_is_no_failure_of_the_app(caplog):
    raised = []

    async def answer(scope, receive, send):
        await send(start())
        try:
            await send(body(bytes(8 << 20)))
        except OSError as error:
            raised.append(error)
            raise

    async with serving(answering(answer)) as server:
        for size in (1, 100_000, 1_000_000, 3_000_000):
            async with await server.connect(buffers=4096) as client:
                await client.send(GET)
                received = 0
                while received < size:
                    received += len(await client._receive())
                client.reset()
    assert len(raised) == 4
    assert not failures(caplog)


async def test_sending_to_a_client_that_has_left_raises():
    """ASGI 2.4: ``send`` raises an ``OSError`` then."""
    ended = asyncio.Event()

    async def answer(scope, receive, send):
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        await send(start())
        with pytest.raises(OSError):  # noqa: PT011 - the kind is what the specification says
            await send(body(b"x", more=True))
        ended.set()

    async with serving(answering(answer)) as server, await server.connect() as client:
        await client.send(GET)
        await idle()
        client.reset()
        async with asyncio.timeout(LIMIT):
            await ended.wait()


async def test_after_the_answer_the_app_is_told_of_a_disconnect():
    events = []

    async def answer(scope, receive, send):
        await respond(send)
        events.append(await receive())
        events.append(await receive())

    async with serving(answering(answer)) as server, await server.connect() as client:
        assert (await client.ask(GET)).status == 200
        assert (await client.ask(GET)).status == 200
    assert [event["type"] for event in events if event["type"] != "http.request"]


# The head of a response


async def test_every_response_has_a_date():
    """RFC 9110 §6.6.1."""
    async with serving(sending(start(200, LENGTH), body(b"abcd"))) as server, await server.connect() as client:
        answer = await client.ask(GET)
        assert parsedate_to_datetime(answer.value("date"))
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer.value("date"))
        assert (await client.ask(request(host=None))).value("date") is not None


async def test_an_apps_own_date_stays():
    app = sending(start(200, LENGTH, (b"Date", b"Tue, 15 Nov 1994 08:12:31 GMT")), body(b"abcd"))
    async with serving(app) as server, await server.connect() as client:
        assert (await client.ask(GET)).values("date") == ["Tue, 15 Nov 1994 08:12:31 GMT"]


async def test_an_app_can_end_the_connection():
    app = sending(start(200, LENGTH, (b"Connection", b"close")), body(b"abcd"))
    async with serving(app) as server, await server.connect() as client:
        await client.send(GET, GET)
        [answer] = await client.read_answers()
    assert answer.values("connection") == ["close"]


async def test_headers_may_be_an_iterator_or_missing():
    app = sending(
        start(200) | {"headers": iter([(b"x-one", b"a"), (b"content-length", b"4")])},
        body(b"abcd"),
    )
    async with serving(app) as server, await server.connect() as client:
        assert (await client.ask(GET)).value("x-one") == "a"
    app = sending({"type": "http.response.start", "status": 200}, {"type": "http.response.body"})
    async with serving(app) as server, await server.connect() as client:
        assert (await client.ask(GET)).status == 200


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
    "a length that is none": start(200, (b"content-length", b"4, set-cookie")),
    "a negative length": start(200, (b"content-length", b"-4"), (b"set-cookie", b"b=c")),
    "two lengths": start(200, LENGTH, (b"content-length", b"5"), (b"set-cookie", b"b=c")),
    "status 99": start(99, (b"set-cookie", b"b=c")),
    "status 101": start(101, (b"set-cookie", b"b=c")),
    "status 1000": start(1000, (b"set-cookie", b"b=c")),
    "status in text": start("200 OK", (b"set-cookie", b"b=c")),
}


@pytest.mark.parametrize("event", BAD_STARTS.values(), ids=BAD_STARTS)
async def test_what_no_server_may_send_is_an_error_of_the_app(event, caplog):
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
async def test_an_app_that_fails_before_its_answer_is_answered_for(events, caplog):
    async with serving(sending(*events)) as server, await server.connect() as client:
        answer = await client.ask(GET)
    assert answer.status == 500
    assert [record.levelname for record in failures(caplog)] == ["ERROR"]


async def test_an_app_that_raises_is_answered_for_and_the_connection_lives(caplog):
    async def answer(scope, receive, send):
        raise LookupError("no such thing")

    async with serving(answering(answer)) as server, await server.connect() as client:
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
async def test_a_client_sees_that_an_answer_broke_off(data, events, raises, caplog):
    async def answer(scope, receive, send):
        for event in events:
            await send(event)
        if raises:
            raise LookupError

    async with serving(answering(answer)) as server, await server.connect() as client:
        await client.send(data, MARK)
        rest = await client.read_rest()
    assert rest.count(b"HTTP/1.1") == 1
    assert not rest.endswith(b"0\r\n\r\n")
    assert rest.partition(b"\r\n\r\n")[2] in (b"ab", b"2\r\nab\r\n")
    assert len(failures(caplog)) == 1


async def test_a_second_start_and_a_late_body_are_errors_that_change_nothing(caplog):
    async def answer(scope, receive, send):
        await send(start(200, LENGTH))
        with pytest.raises(RuntimeError):
            await send(start(500))
        await send(body(b"abcd"))
        for event in (start(500), body(b"more")):
            with pytest.raises(RuntimeError):
                await send(event)

    async with serving(answering(answer)) as server, await server.connect() as client:
        for _ in range(2):
            answer = await client.ask(GET)
            assert (answer.status, answer.body) == (200, b"abcd")
    assert failures(caplog) == []


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level(logging.INFO, logger="microws")
