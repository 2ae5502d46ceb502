"""Runs of the load generator against servers that do well, and servers that do not."""

import asyncio
import json
import ssl
from pathlib import Path

import pytest
import worker_here
from engine_here import ASYNCIO_BACKENDS
from odd_server import echo, measured, plan_for, reflect, serving

from microws import App
from microws.bench.effort import Effort
from microws.bench.report import as_json, as_text
from microws.bench.result import Result
from microws.bench.verdict import problem_with

pytestmark = pytest.mark.anyio

TLS = Path(__file__).parent / "tls"


@pytest.fixture(params=ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
def anyio_backend(request):
    return request.param


def broadcasting():
    """An app with a topic, to which one publishes over a WebSocket and by POST; and an echo."""
    app = App()

    @app.websocket_route("/ws", subscribe="messages")
    async def subscribed(ws):
        async with ws:
            async for message in ws:
                await app.publish("messages", message)

    @app.post("/messages")
    async def post(request):
        receipt = await app.publish("messages", (await request.json())["text"])
        return {"subscribers": receipt.subscribers}, 202

    @app.websocket_route("/echo")
    @app.websocket_route("/bytes", value_type="bytes")
    async def answer(ws):
        async with ws:
            async for message in ws:
                await ws.send(message)

    return app


def clean(result):
    """Whether something was measured, and nothing went wrong."""
    assert problem_with(result) is None
    assert result.tally.errors == 0
    return result.done > 0 and result.seconds > 0


# Servers that do well


@pytest.mark.parametrize("options", [{}, {"in_flight": 4}, {"binary": True}, {"size": 200_000}, {"message": "ping"}])
async def test_an_echo_is_measured(options):
    path = "/bytes" if "binary" in options else "/echo"
    async with worker_here.serving(broadcasting()) as served:
        result = await measured(served.port, path, **options)
    assert clean(result)
    assert result.latencies["answer"].count >= result.done
    assert result.tally.handshakes == 3


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("publish", ["ws://127.0.0.1:{port}/ws", "http://127.0.0.1:{port}/messages"])
async def test_a_fan_out_is_measured(publish, in_flight):
    message = '{"text": "{text}"}'
    async with worker_here.serving(broadcasting()) as served:
        options = {"mode": "fan-out", "publish": publish, "in_flight": in_flight, "message": message}
        result = await measured(served.port, "/ws", **options)
    assert clean(result)
    # At the edges of what is measured a publish may have come to some only.
    assert abs(result.done - 3 * result.sent) <= 3 * (in_flight + 1)
    assert list(result.latencies) == ["delivery", "to the last", *(["POST"] if publish.startswith("http") else [])]
    assert all(histogram.count for histogram in result.latencies.values())


async def test_connects_are_measured():
    async with worker_here.serving(broadcasting()) as served:
        result = await measured(served.port, "/echo", mode="connects")
    assert clean(result)
    assert result.tally.handshakes > result.done


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/echo", {}),
        ("/echo", {"mode": "connects"}),
        ("/ws", {"mode": "fan-out", "publish": "ws://127.0.0.1:{port}/ws"}),
        ("/ws", {"mode": "fan-out", "publish": "http://127.0.0.1:{port}/messages", "message": '{"text": "{text}"}'}),
    ],
)
async def test_by_the_clock_as_many_are_sent_as_were_asked_for(path, options):
    async with worker_here.serving(broadcasting()) as served:
        result = await measured(served.port, path, rate=20, seconds=0.5, connections=20, **options)
    assert clean(result)
    assert 0 < result.sent <= 20 * result.seconds + 2
    assert result.lateness.count > 0
    assert result.tally.unsent == 0


async def test_tls_is_measured_with_a_certificate_that_nobody_vouches_for():
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(TLS / "localhost.pem", TLS / "localhost.key")
    publish = "https://127.0.0.1:{port}/messages"
    async with worker_here.serving(broadcasting(), tls=tls) as served:
        options = {"scheme": "wss", "mode": "fan-out", "publish": publish, "message": '{"text": "{text}"}'}
        trusting = await measured(served.port, "/ws", insecure=True, **options)
        careful = await measured(served.port, "/echo", scheme="wss")
    assert clean(trusting)
    assert not careful.seconds
    assert "certificate not accepted" in problem_with(careful)
    assert problem_with(careful).endswith("; --insecure takes any certificate")


async def test_a_url_with_tls_for_a_server_without_it_and_the_other_way_round_are_told_of():
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(TLS / "localhost.pem", TLS / "localhost.key")
    async with worker_here.serving(worker_here.echo) as served:
        result = await measured(served.port, scheme="wss")
    assert problem_with(result).endswith("; is it ws:// there, without TLS?")
    async with worker_here.serving(worker_here.echo, tls=tls) as served:
        result = await measured(served.port)
    assert problem_with(result).endswith("; is it wss:// there, with TLS?")


async def test_headers_and_subprotocols_are_sent():
    async def view(peer):
        if peer.request.startswith(b"POST"):
            await peer.reader.readexactly(int(peer.header(b"content-length")))
            peer.answer(202)
            return
        peer.accept(b"sec-websocket-protocol: b\r\n")
        while True:
            await peer.receive()

    async with serving(view) as served:
        await measured(
            served.port,
            mode="fan-out",
            publish="http://127.0.0.1:{port}/post?x=%C3%A9",
            message="plain {text}",
            subprotocols=("a", "b"),
            headers=(("X-Key", "k"), ("Host", "example.org")),
            timeout=0.2,
        )
    post, *sockets = served.peers
    assert post.path == "/post?x=%C3%A9"
    assert (post.header(b"x-key"), post.header(b"host")) == (b"k", b"example.org")
    assert post.header(b"content-type") == b"text/plain; charset=utf-8"
    assert {peer.header(b"sec-websocket-protocol") for peer in sockets} == {b"a, b"}
    assert {(peer.header(b"x-key"), peer.header(b"host")) for peer in sockets} == {(b"k", b"example.org")}


async def test_pings_are_answered_and_fragments_put_together():
    async def view(peer):
        peer.accept()
        while True:
            message = (await peer.receive()).encode()
            peer.write(b"\x89\x02hi")
            peer.write(bytes([0x01, 10]) + message[:10] + b"\x89\x00" + bytes([0x80, len(message) - 10]) + message[10:])

    async with serving(view) as served:
        assert clean(await measured(served.port, size=64))


async def test_an_answer_may_have_the_message_within_it():
    async def view(peer):
        peer.accept()
        while True:
            peer.send(json.dumps({"message": await peer.receive(), "at": 12}))

    async with serving(view) as served:
        assert clean(await measured(served.port))


async def test_a_message_without_a_number_counts_whatever_comes_back():
    async def view(peer):
        peer.accept()
        while await peer.receive() == "ping":
            peer.send("pong")

    async with serving(view) as served:
        assert clean(await measured(served.port, message="ping"))


# Servers that do not


def spoiled(change):
    """A view that sends back what ``change(message, turn)`` gives, one after another."""

    async def view(peer):
        peer.accept()
        turn = 0
        while True:
            for answer in change(await peer.receive(), turn):
                peer.send(answer)
            turn += 1

    return view


async def test_answers_that_are_other_messages_are_wrong():
    async with serving(spoiled(lambda message, turn: ["hello"])) as served:
        result = await measured(served.port, timeout=0.1)
    assert result.tally.wrong > 0
    assert result.done == 0
    assert result.tally.lost > 0


async def test_answers_that_are_cut_are_wrong():
    async with serving(spoiled(lambda message, turn: [message[:-1]])) as served:
        result = await measured(served.port)
    assert result.tally.wrong >= result.done > 0
    assert "not as sent" in problem_with(result)


async def test_answers_that_come_twice_are_counted():
    async with serving(spoiled(lambda message, turn: [message, message])) as served:
        result = await measured(served.port)
    assert result.tally.duplicates > 0
    assert "came again, or unasked" in problem_with(result)


async def test_answers_that_do_not_come_are_lost_and_do_not_hold_up_the_rest():
    async with serving(spoiled(lambda message, turn: [] if turn == 0 else [message])) as served:
        result = await measured(served.port, in_flight=2, timeout=0.5, seconds=0.8)
    assert result.tally.lost == 3
    assert result.done > 0
    assert "3 messages lost, or not there within 0.5 s" in problem_with(result)


async def test_answers_that_come_too_late_are_lost_and_said_to_be_late():
    async def view(peer):
        peer.accept()
        first = await peer.receive()
        peer.send(await peer.receive())
        peer.send(first)
        await reflect(peer)

    async with serving(view) as served:
        result = await measured(served.port, timeout=0.5, seconds=0.8)
    assert (result.tally.lost, result.tally.late, result.tally.duplicates) == (3, 3, 0)
    assert "--timeout waits longer" in problem_with(result)


async def test_answers_in_another_order_are_counted():
    async def view(peer):
        peer.accept()
        while True:
            first = await peer.receive()
            peer.send(await peer.receive())
            peer.send(first)

    async with serving(view) as served:
        result = await measured(served.port, in_flight=2)
    assert result.tally.out_of_order > 0
    assert (result.tally.lost, result.tally.duplicates) == (0, 0)
    assert "out of order" in problem_with(result)


async def test_answers_on_the_wrong_connection_are_no_answers():
    peers = []

    async def view(peer):
        peer.accept()
        peers.append(peer)
        while True:
            message = await peer.receive()
            peers[(peers.index(peer) + 1) % len(peers)].send(message)

    async with serving(view) as served:
        result = await measured(served.port, timeout=0.1)
    assert result.tally.duplicates > 0
    assert result.done == 0


async def test_closes_are_counted_with_code_and_reason():
    async def view(peer):
        peer.accept()
        await peer.receive()
        await peer.leave(4000, "no more")

    async with serving(view) as served:
        result = await measured(served.port, seconds=5)
        await served.wait_ended()
    assert result.tally.closes == {(4000, "no more"): 3}
    assert not result.seconds or result.is_cut_short
    assert "3 connections closed by the server: 4000 no more" in problem_with(result)
    # The client answers a Close frame with one of the same code.
    assert {peer.close.code for peer in served.peers} == {4000}


@pytest.mark.parametrize("mode", ["echo", "connects"])
async def test_a_close_without_a_code_and_a_connection_that_breaks_are_counted(mode):
    async def view(peer):
        peer.accept()
        if served.peers.index(peer) == 0:
            await peer.leave(None)
        elif served.peers.index(peer) == 1:
            peer.abort()
        else:
            await reflect(peer)

    async with serving(view) as served:
        result = await measured(served.port, mode=mode)
    assert {code for code, _ in result.tally.closes} == {1005, 1006}
    assert result.done > 0


async def test_a_broken_protocol_is_counted_and_answered():
    async def view(peer):
        peer.accept()
        await peer.receive()
        peer.write(b"\x81\x80abcd")
        while True:
            await peer.receive()

    async with serving(view) as served:
        result = await measured(served.port)
        await served.wait_ended()
    assert result.tally.closes == {(1006, "broken protocol: a frame of a server must not be masked"): 3}
    assert {peer.close.code for peer in served.peers} == {1002}


async def test_a_server_that_does_not_answer_close_is_waited_for_no_longer_than_the_limit():
    async with serving(echo, answers_close=False) as served:
        result = await measured(served.port, timeout=0.2)
    assert result.tally.unanswered_closes == 3
    assert "3 Close frames not answered by closing within 0.2 s" in problem_with(result)


async def test_a_handshake_that_is_refused_is_tried_once_and_told_with_what_the_app_says():
    async def view(peer):
        peer.answer(403, b"members\n only")
        await peer.reader.read()

    async with serving(view) as served:
        result = await measured(served.port, connections=50)
    assert result.tally.refused == {"HTTP 403, 'members only'": 1}
    assert "does the app want a --header" in problem_with(result)


@pytest.mark.parametrize("mode", ["echo", "connects"])
async def test_handshakes_that_are_refused_now_and_then_are_counted(mode):
    async def view(peer):
        if served.peers.index(peer) % 2:
            peer.answer(503, b"<p>busy</p>")
        else:
            await echo(peer)

    async with serving(view) as served:
        result = await measured(served.port, mode=mode, connections=4)
    assert result.tally.refused["HTTP 503"] >= 2
    assert result.done > 0
    assert "HTTP 503; the server's log says more" in problem_with(result)


async def test_many_failures_in_a_row_are_enough():
    async def view(peer):
        if served.peers.index(peer) == 0:
            await echo(peer)
        peer.answer(500)

    async with serving(view) as served:
        result = await measured(served.port, connections=1000)
    assert 64 <= result.tally.refused.total() < 200


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda peer: peer.accept(token=b"x"), "wrong handshake: Sec-WebSocket-Accept does not fit the key"),
        (lambda peer: peer.accept(upgrade=b"h2c"), "wrong handshake: no 'Upgrade: websocket'"),
        (lambda peer: peer.accept(connection=b"close"), "wrong handshake: no 'Connection: Upgrade'"),
        (
            lambda peer: peer.accept(b"sec-websocket-protocol: v9\r\n"),
            "wrong handshake: a subprotocol that was not offered",
        ),
        (
            lambda peer: peer.accept(b"sec-websocket-extensions: permessage-deflate\r\n"),
            "wrong handshake: an extension that was not offered",
        ),
        (lambda peer: peer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "no answer in HTTP"),
        (lambda peer: peer.write(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000), "no answer in HTTP"),
        (lambda peer: peer.write(b"HTTP/1.0 404 No\r\n\r\nnothing here"), "HTTP 404, 'nothing here'"),
        (lambda peer: None, "closed by the server"),
        (lambda peer: peer.abort(), "c"),
    ],
)
async def test_a_handshake_that_is_wrong_is_no_handshake(answer, reason):
    async def view(peer):
        answer(peer)
        await peer.writer.drain()

    async with serving(view) as served:
        result = await measured(served.port)
    ((said, count),) = result.tally.refused.items()
    assert said.startswith(reason)
    assert count == 1


async def test_an_answer_may_come_byte_by_byte_with_a_message_behind_it():
    async def view(peer):
        writes = []
        plain, peer.write = peer.write, writes.append
        peer.accept(b"x: y\r\n")
        peer.write = plain
        for byte in writes[0][:-1]:
            peer.write(bytes([byte]))
            await asyncio.sleep(0)
        peer.write(writes[0][-1:] + b"\x89\x00")
        await reflect(peer)

    async with serving(view) as served:
        assert clean(await measured(served.port))


@pytest.mark.parametrize("has_accepted", [False, True])
async def test_a_server_that_hangs_is_waited_for_no_longer_than_the_limit(has_accepted):
    async def view(peer):
        if has_accepted:
            peer.accept()
        await asyncio.sleep(100)

    async with serving(view) as served:
        result = await measured(served.port, timeout=0.1, open_timeout=10 if has_accepted else 0.1)
    if has_accepted:
        assert result.tally.lost >= 3
        assert result.tally.unanswered_closes == 3
    else:
        assert result.tally.refused == {"no answer within 0.1 s": 1}


async def test_nobody_there_and_no_such_host_are_told_of():
    async with serving(echo) as served:
        port = served.port
    refused = await measured(port)
    assert problem_with(refused).endswith(": connection refused; is the server running there?")
    publish = await measured(port, mode="fan-out", publish="http://127.0.0.1:{port}/")
    assert problem_with(publish).startswith(f"1 connection failed at http://127.0.0.1:{port}/: connection refused")


async def test_a_server_that_does_not_read_is_sent_no_more_than_it_takes():
    async def view(peer):
        peer.accept()
        await asyncio.sleep(100)

    async with serving(view) as served:
        result = await measured(served.port, rate=200, size=1 << 20, timeout=0.3)
    assert result.tally.unsent > 0
    assert result.tally.sent < 50
    assert not result.keeps_up


# Fan-outs that go wrong


def hub_of(deliver):
    """A view behind which whatever comes in goes through ``deliver(peers, message, turn)`` to all."""
    peers = []
    turns = iter(range(1 << 30))

    async def view(peer):
        if peer.request.startswith(b"POST"):
            while True:
                body = await peer.reader.readexactly(int(peer.header(b"content-length")))
                deliver(peers, body.decode(), next(turns))
                peer.answer(202)
                await peer.read_request()
        peer.accept()
        if peer.path == "/sub":
            peers.append(peer)
        while True:
            deliver(peers, await peer.receive(), next(turns))

    return view


def to_all(peers, message):
    for peer in peers:
        peer.send(message)


async def fanned_out(deliver, *, post=False, **options):
    publish = "http://127.0.0.1:{port}/pub" if post else "ws://127.0.0.1:{port}/pub"
    async with serving(hub_of(deliver)) as served:
        return await measured(served.port, "/sub", mode="fan-out", publish=publish, **options)


@pytest.mark.parametrize("post", [False, True])
async def test_copies_that_do_not_come_are_lost_and_do_not_hold_up_the_rest(post):
    def deliver(peers, message, turn):
        to_all(peers[:1] if turn == 0 else peers, message)

    result = await fanned_out(deliver, post=post, timeout=0.5, seconds=0.8)
    assert result.tally.lost == 2
    assert result.done > 0


async def test_copies_that_come_twice_are_counted():
    def deliver(peers, message, turn):
        to_all(peers, message)
        to_all(peers[:1], message)

    result = await fanned_out(deliver)
    assert result.tally.duplicates > 0
    assert result.tally.lost == 0


async def test_copies_in_another_order_are_counted_but_not_where_posts_race():
    def deliver(peers, message, turn):
        if turn % 2:
            to_all(peers, message)
            to_all(peers, kept.pop())
        else:
            kept.append(message)

    kept = []
    result = await fanned_out(deliver, in_flight=2)
    assert result.tally.out_of_order > 0
    assert (result.tally.lost, result.tally.duplicates) == (0, 0)
    kept.clear()
    result = await fanned_out(deliver, in_flight=2, post=True)
    assert clean(result)


async def test_copies_that_are_late_are_lost():
    def deliver(peers, message, turn):
        if turn == 0:
            kept.append(message)
        else:
            to_all(peers, message)
        if turn == 1:
            to_all(peers, kept.pop())

    kept = []
    result = await fanned_out(deliver, timeout=0.5, seconds=0.8)
    assert (result.tally.lost, result.tally.late) == (3, 3)


async def test_copies_that_are_cut_are_wrong_and_what_is_not_of_this_run_is_told_apart():
    def deliver(peers, message, turn):
        to_all(peers, f"[{message[:-1]}]")
        to_all(peers, "somebody joined")
        to_all(peers[:1], message.replace("-0", "-9"))

    result = await fanned_out(deliver)
    assert result.tally.wrong > result.done > 0
    assert result.tally.others > 0
    assert "others" in as_text(result)


async def test_an_app_that_does_not_pass_the_number_on_is_told_what_to_do():
    result = await fanned_out(lambda peers, message, turn: to_all(peers, "news"), timeout=0.1)
    assert result.done == 0
    assert "--message without {text} has messages counted only" in problem_with(result)


async def test_messages_without_numbers_are_counted():
    def deliver(peers, message, turn):
        to_all(peers[1:] if turn == 0 else peers, "news")
        if turn == 1:
            to_all(peers, "news")

    result = await fanned_out(deliver, message="ping", timeout=0.5, seconds=0.8)
    assert (result.tally.lost, result.tally.duplicates) == (1, 3)
    assert result.done > 0


async def test_subscribers_that_are_closed_are_missed_by_nobody():
    def deliver(peers, message, turn):
        if turn == 3:
            peers.pop().abort()
        to_all(peers, message)

    result = await fanned_out(deliver)
    assert result.tally.closes.total() == 1
    assert result.tally.lost == 1
    assert result.done > 0


async def test_a_run_ends_when_nobody_is_left():
    def deliver(peers, message, turn):
        if turn == 3:
            for peer in peers:
                peer.abort()
            peers.clear()
        to_all(peers, message)

    result = await fanned_out(deliver, seconds=15, warm_up=0)
    assert result.is_cut_short
    assert "cut short" in as_text(result)


async def test_posts_that_fail_are_counted_and_waited_for_by_nobody():
    async def view(peer):
        if peer.request.startswith(b"POST"):
            turn = next(turns)
            await peer.reader.readexactly(int(peer.header(b"content-length")))
            if turn % 5 == 0:
                peer.answer(400, b'{"error": "no"}')
            elif turn % 5 == 1:
                return
            elif turn % 5 == 2:
                peer.write(b"nonsense\r\n\r\n")
            elif turn % 5 == 3:
                peer.answer(500, b"", b"connection: close\r\n")
            else:
                await asyncio.sleep(100)
            return
        peer.accept()
        while True:
            await peer.receive()

    turns = iter(range(1000))
    async with serving(view) as served:
        publish = "http://127.0.0.1:{port}/pub"
        result = await measured(served.port, mode="fan-out", publish=publish, timeout=0.1, seconds=0.5)
    assert set(result.tally.failed_publishes) >= {
        """HTTP 400, '{"error": "no"}'""",
        "closed before the answer",
        "no answer in HTTP",
        "HTTP 500",
        "no answer within 0.1 s",
    }
    assert "publishes failed" in problem_with(result)
    assert "not published" in as_text(result)


async def test_posts_go_on_over_new_connections():
    async def view(peer):
        if peer.request.startswith(b"POST"):
            body = await peer.reader.readexactly(int(peer.header(b"content-length")))
            to_all(subscribers, body.decode())
            peer.answer(202, b"", b"connection: close\r\n")
            return
        peer.accept()
        subscribers.append(peer)
        while True:
            await peer.receive()

    subscribers = []
    async with serving(view) as served:
        result = await measured(served.port, mode="fan-out", publish="http://127.0.0.1:{port}/pub", in_flight=2)
    assert clean(result)
    assert len(served.peers) > 10


async def test_posts_to_a_server_that_has_gone_are_counted():
    async def subscribed(peer):
        peer.accept()
        while True:
            await peer.receive()

    def told(progress):
        # The connection that is tried before the run is there.
        gone.stop()

    async with serving(subscribed) as served, serving(echo) as gone:
        publish = f"http://127.0.0.1:{gone.port}/"
        result = await measured(served.port, mode="fan-out", publish=publish, told=told)
    assert result.tally.failed_publishes.total() > 0
    assert result.tally.lost == 0


# Being stopped


async def test_a_run_that_is_stopped_gives_what_there_is_so_far():
    stop = asyncio.Event()

    def told(progress):
        if progress.phase == "measuring":
            stop.set()

    async with serving(echo) as served:
        result = await measured(served.port, stop=stop, told=told, seconds=15)
    assert clean(result)
    assert result.is_interrupted
    assert as_json(result)["interrupted"] is True
    assert "interrupted: this is what there was until then" in as_text(result)


@pytest.mark.parametrize("publish", ["ws://127.0.0.1:{port}/", "http://127.0.0.1:{port}/"])
async def test_a_run_that_is_stopped_with_messages_under_way_counts_none_of_them_as_lost(publish):
    async def view(peer):
        if peer.request.startswith(b"GET"):
            peer.accept()
            while True:
                await peer.receive()
        stop.set()
        await asyncio.sleep(100)

    stop = asyncio.Event()

    def told(progress):
        if progress.phase == "measuring":
            stop.set()

    async with serving(view) as served:
        result = await measured(served.port, mode="fan-out", publish=publish, stop=stop, told=told, seconds=15)
    assert result.tally.errors == 0


async def test_a_run_that_is_stopped_while_it_connects_has_measured_nothing():
    async def view(peer):
        if served.peers.index(peer) > 2:
            stop.set()
            await asyncio.sleep(100)
        await echo(peer)

    stop = asyncio.Event()
    async with serving(view) as served:
        result = await measured(served.port, stop=stop, connections=20, timeout=15)
    assert (result.seconds, result.is_interrupted) == (0, True)
    assert problem_with(result) == "interrupted before anything was measured"


async def test_what_is_told_goes_from_connecting_to_finishing():
    seen = []
    async with serving(spoiled(lambda message, turn: [])) as served:
        await measured(served.port, told=seen.append, timeout=0.3, seconds=0.6, warm_up=0.2)
    phases = list(dict.fromkeys(progress.phase for progress in seen))
    assert phases == ["connecting", "warming up", "measuring", "finishing"]
    assert max(progress.done for progress in seen if progress.phase == "connecting") == 3


# What is said of it


def test_a_generator_that_had_its_core_full_says_that_it_was_the_limit():
    result = Result(plan=plan_for(1), seconds=2.0, done=10, sent=10, cpu=0.93, waited=0.02)
    assert as_json(result)["generator"]["was_the_limit"] is True
    assert "the generator had its core full: the rate is a lower bound" in as_text(result)


def test_a_generator_that_waited_for_a_core_says_so():
    result = Result(plan=plan_for(1), seconds=2.0, done=10, sent=10, cpu=0.4, waited=0.55)
    assert as_json(result)["generator"]["was_the_limit"] is False
    assert "note: the generator waited for a core 55 % of the time" in as_text(result)


def test_a_rate_that_was_not_reached_is_said_to_be_so():
    result = Result(plan=plan_for(1, rate=1000), seconds=2.0, done=100, sent=100, cpu=0.4)
    assert "note: 50.0 a second were sent, not the 1,000 of --rate" in as_text(result)


def test_nothing_is_said_of_a_generator_with_time_to_spare():
    result = Result(plan=plan_for(1), seconds=2.0, done=10, sent=10, cpu=0.4, waited=0.1)
    assert "note" not in as_text(result)


def test_one_who_works_has_a_share_of_a_core():
    effort = Effort()
    for _ in range(1_000_000):
        pass
    cpu, waited = effort.shares()
    assert cpu > 0
    assert waited >= 0


async def test_the_json_of_every_mode_has_the_same_keys():
    keys = set()
    async with worker_here.serving(broadcasting()) as served:
        for mode in ("echo", "fan-out", "connects"):
            publish = "ws://127.0.0.1:{port}/ws" if mode == "fan-out" else None
            path = "/ws" if mode == "fan-out" else "/echo"
            result = await measured(served.port, path, mode=mode, publish=publish)
            told = json.loads(json.dumps(as_json(result)))
            keys.add(tuple(told))
            assert told["count_per_second"] > 0
            assert as_text(result).startswith(f"{mode}  ws://127.0.0.1:")
    assert len(keys) == 1
