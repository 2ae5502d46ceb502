"""Runs of the load generator against servers that answer well, and servers that do not."""

import asyncio
import json
import ssl
from pathlib import Path

import pytest
import worker_here
from odd_server import echo, measured, reflect, serving
from websocket_server import ASYNCIO_BACKENDS

from microws import App
from microws.bench.report import as_json, as_text, problem_with

pytestmark = pytest.mark.anyio

TLS = Path(__file__).parent / "tls"
JSON = '{"text": "{text}"}'
BY_WEBSOCKET = {"mode": "fan-out", "publish": "ws://127.0.0.1:{port}/ws", "message": JSON}
BY_POST = {"mode": "fan-out", "publish": "http://127.0.0.1:{port}/messages", "message": JSON}


on_each_loop = pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)


@pytest.fixture
def anyio_backend():
    return ASYNCIO_BACKENDS["uvloop"]


@pytest.fixture(autouse=True)
def _settled_soon(monkeypatch):
    monkeypatch.setattr("microws.bench.load.SETTLING", 0.05)


def broadcasting():
    """An app with an echo, and with a topic to which clients publish by WebSocket and by POST."""
    app = App()

    @app.websocket_route("/ws", subscribe="messages")
    async def subscribed(ws):
        async with ws:
            async for message in ws:
                await app.publish("messages", message)

    @app.post("/messages")
    async def post(request):
        await app.publish("messages", (await request.json())["text"])
        return {}, 202

    @app.websocket_route("/echo")
    @app.websocket_route("/bytes", value_type="bytes")
    async def answer(ws):
        async with ws:
            async for message in ws:
                await ws.send(message)

    return app


def failures(result, kind="closed"):
    return dict(result.failures[kind])


def is_clean(result):
    """Whether something was measured without an error."""
    assert problem_with(result) is None
    assert result.errors == 0
    return result.done > 0 and result.seconds > 0


# Servers that answer well


@on_each_loop
@pytest.mark.parametrize(
    ("path", "options", "latencies"),
    [
        ("/echo", {}, ["answer"]),
        ("/echo", {"in_flight": 4, "size": 200_000}, ["answer"]),
        ("/bytes", {"binary": True}, ["answer"]),
        ("/echo", {"message": "ping"}, ["answer"]),
        ("/ws", BY_WEBSOCKET | {"in_flight": 3}, ["delivery", "to the last"]),
        ("/ws", BY_POST, ["delivery", "to the last", "POST"]),
        ("/ws", BY_POST | {"in_flight": 3}, ["delivery", "to the last", "POST"]),
        ("/echo", {"mode": "connects"}, ["handshake", "until closed"]),
        ("/echo", {"rate": 40}, ["answer"]),
        ("/echo", {"rate": 40, "mode": "connects"}, ["handshake", "until closed"]),
        ("/ws", BY_WEBSOCKET | {"rate": 40}, ["delivery", "to the last"]),
        ("/ws", BY_POST | {"rate": 40}, ["delivery", "to the last", "POST"]),
    ],
)
async def test_each_mode_is_measured_in_the_closed_and_the_open_loop(path, options, latencies):
    async with worker_here.serving(broadcasting()) as served:
        result = await measured(served.port, path, **options)
    # A busy machine may not send everything that is due.
    assert is_clean(result) or ("rate" in options and set(result.counts) == {"unsent"})
    assert list(result.latencies) == latencies
    assert all(histogram.count for name, histogram in result.latencies.items() if path == "/ws" or name == "answer")
    if "rate" in options:
        assert 0 < result.sent <= 40 * result.seconds + 2
        assert result.lateness.count > 0
    elif "publish" in options:
        # At both ends of the measurement a message may have reached only some subscribers.
        assert abs(result.done - 3 * result.sent) <= 3 * (options.get("in_flight", 1) + 1)
    report = json.loads(json.dumps(as_json(result)))
    assert (report["mode"], report["count"]) == (options.get("mode", "echo"), result.done)
    assert report["count_per_second"] > 0
    assert as_text(result).startswith(f"{report['mode']}  ws://127.0.0.1:{served.port}{path}")


@on_each_loop
async def test_tls_is_measured_with_a_self_signed_certificate_only_if_insecure():
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(TLS / "localhost.pem", TLS / "localhost.key")
    async with worker_here.serving(broadcasting(), tls=tls) as served:
        options = BY_POST | {"scheme": "wss", "publish": "https://127.0.0.1:{port}/messages"}
        insecure = await measured(served.port, "/ws", insecure=True, **options)
        careful = await measured(served.port, "/echo", scheme="wss")
        plain = await measured(served.port)
    async with worker_here.serving(worker_here.echo) as served:
        needless = await measured(served.port, scheme="wss")
    assert is_clean(insecure)
    assert not careful.seconds
    assert problem_with(careful).endswith("; --insecure accepts any certificate")
    assert problem_with(plain).endswith("; is the URL wss:// or https://, with TLS?")
    assert problem_with(needless).endswith("; is the URL ws:// or http://, without TLS?")


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
            publish="http://127.0.0.1:{port}/post?x=%C3%A9 1",
            message="plain {text}",
            subprotocol=("a", "b"),
            header=(("X-Key", "k"), ("Host", "example.org")),
            timeout=0.2,
        )
    post, *sockets = served.peers
    assert post.path == "/post?x=%C3%A9%201"
    assert (post.header(b"x-key"), post.header(b"host")) == (b"k", b"example.org")
    assert post.header(b"content-type") == b"text/plain; charset=utf-8"
    assert {peer.header(b"sec-websocket-protocol") for peer in sockets} == {b"a, b"}
    assert {(peer.header(b"x-key"), peer.header(b"host")) for peer in sockets} == {(b"k", b"example.org")}


async def answer_in_fragments(peer):
    peer.accept()
    while True:
        message = (await peer.receive()).encode()
        peer.write(b"\x89\x02hi")
        peer.write(bytes([0x01, 10]) + message[:10] + b"\x89\x00" + bytes([0x80, len(message) - 10]) + message[10:])


async def answer_within_json(peer):
    peer.accept()
    while True:
        peer.send(json.dumps({"message": await peer.receive(), "at": 12}))


async def accept_byte_by_byte(peer):
    writes = []
    plain, peer.write = peer.write, writes.append
    peer.accept(b"x: y\r\n")
    peer.write = plain
    for byte in writes[0][:-1]:
        peer.write(bytes([byte]))
        await asyncio.sleep(0)
    peer.write(writes[0][-1:] + b"\x89\x00")
    await reflect(peer)


@pytest.mark.parametrize("view", [answer_in_fragments, answer_within_json, accept_byte_by_byte])
async def test_unusual_but_valid_answers_are_measured(view):
    async with serving(view) as served:
        assert is_clean(await measured(served.port))


# Echoes with errors


def answering(change):
    """A view that sends ``change(message, turn)`` for each message."""

    async def view(peer):
        peer.accept()
        turn = 0
        while True:
            for answer in change(await peer.receive(), turn):
                peer.send(answer)
            turn += 1

    return view


async def answer_in_pairs(peer, *, times=1 << 30):
    """Answer each second message before the first one of its pair."""
    peer.accept()
    for _ in range(times):
        first = await peer.receive()
        peer.send(await peer.receive())
        peer.send(first)
    await reflect(peer)


@pytest.mark.parametrize(
    ("view", "options", "counts", "problem"),
    [
        (answering(lambda message, turn: ["hello"]), {"timeout": 0.1}, {"wrong", "lost"}, "not received in time"),
        (answering(lambda message, turn: [message[:-1]]), {}, {"wrong"}, "messages not as sent"),
        (answering(lambda message, turn: [message] * 2), {}, {"duplicates"}, "messages received twice"),
        (answering(lambda message, turn: ["pong"] * 2), {"message": "ping"}, {"duplicates"}, "received twice"),
        (answer_in_pairs, {"in_flight": 2}, {"out_of_order"}, "messages out of order"),
    ],
)
async def test_wrong_answers_are_counted_and_reported(view, options, counts, problem):
    async with serving(view) as served:
        result = await measured(served.port, **options)
    assert {name for name, count in result.counts.items() if count} == counts
    assert result.errors == sum(result.counts.values())
    assert problem in problem_with(result)


async def test_lost_answers_do_not_stop_the_other_messages():
    async with serving(answering(lambda message, turn: [] if turn == 0 else [message])) as served:
        result = await measured(served.port, in_flight=2, timeout=0.3, seconds=0.5)
    assert result.counts["lost"] == 3
    assert result.done > 0
    assert problem_with(result).startswith("messages not received in time (3); ")


async def test_a_late_answer_counts_as_lost_only_once():
    async with serving(lambda peer: answer_in_pairs(peer, times=1)) as served:
        result = await measured(served.port, timeout=0.3, seconds=0.5)
    assert (result.counts["lost"], result.counts["duplicates"]) == (3, 0)


async def test_answers_on_another_connection_are_wrong():
    peers = []

    async def view(peer):
        peer.accept()
        peers.append(peer)
        while True:
            message = await peer.receive()
            peers[(peers.index(peer) + 1) % len(peers)].send(message)

    async with serving(view) as served:
        result = await measured(served.port, timeout=0.1)
    assert result.counts["wrong"] > 0
    assert result.done == 0


# Connections that end


@on_each_loop
async def test_closed_connections_are_counted_and_answered_with_the_same_code():
    async def view(peer):
        peer.accept()
        await peer.receive()
        await peer.leave(4000, "no more")

    async with serving(view) as served:
        result = await measured(served.port, seconds=5)
        await served.wait_ended()
    assert failures(result) == {"4000 no more": 3}
    assert problem_with(result).startswith("connections closed (3): ws://")
    assert "closed        3 × 4000 no more" in as_text(result)
    assert {peer.close.code for peer in served.peers} == {4000}


@on_each_loop
@pytest.mark.parametrize("mode", ["echo", "connects"])
async def test_a_close_without_a_code_and_a_broken_connection_are_counted(mode):
    async def view(peer):
        peer.accept()
        index = served.peers.index(peer)
        if index == 1:
            peer.abort()
        await (peer.leave(None) if index == 0 else reflect(peer))

    async with serving(view) as served:
        result = await measured(served.port, mode=mode)
    assert {text.split()[0] for text in failures(result)} == {"1005", "1006"}
    assert result.done > 0


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"\x81\x80abcd", "incorrect masking"),
        (b"\xc1\x01a", "reserved bits must be 0"),
        (b"\x80\x00", "unexpected continuation frame"),
        (b"\x01\x00\x81\x00", "expected a continuation frame"),
        (b"\x88\x02\x03\xed", "invalid status code"),
    ],
)
async def test_a_protocol_error_of_the_server_fails_the_connection(frame, reason):
    async def view(peer):
        peer.accept()
        await peer.receive()
        peer.write(frame)
        while True:
            await peer.receive()

    async with serving(view) as served:
        result = await measured(served.port, connections=1)
        await served.wait_ended()
    ((text, count),) = failures(result).items()
    assert text.startswith("1006 protocol error: ")
    assert (reason in text, count) == (True, 1)
    assert {peer.close.code for peer in served.peers} == {1002}


async def test_a_server_that_does_not_answer_close_is_aborted_after_the_timeout():
    async with serving(echo, answers_close=False) as served:
        result = await measured(served.port, timeout=0.2)
    assert result.counts["closes_unanswered"] == 3
    assert problem_with(result).startswith("Close frames not answered in time (3)")


# Handshakes that fail


@on_each_loop
@pytest.mark.parametrize(
    ("answer", "reason", "hint"),
    [
        (lambda peer: peer.answer(403, b"members\n only"), "HTTP 403, 'members only'", "may expect a --header"),
        (lambda peer: peer.answer(404, b"<p>nothing</p>"), "HTTP 404", "is the path right?"),
        (lambda peer: peer.write(b"HTTP/1.1 404 No\r\n\r\nnot here"), "HTTP 404, 'not here'", "is the path right?"),
        (lambda peer: peer.accept(token=b"x"), "InvalidHeaderValue: invalid Sec-WebSocket-Accept header: x", ""),
        (lambda peer: peer.accept(upgrade=b"h2c"), "InvalidUpgrade: ", ""),
        (lambda peer: peer.accept(b"sec-websocket-protocol: v9\r\n"), "NegotiationError: no subprotocols", ""),
        (lambda peer: peer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "invalid HTTP response", "with TLS?"),
        (lambda peer: peer.write(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000), "invalid HTTP response", ""),
        (lambda peer: None, "closed by the server", "with TLS?"),
        (lambda peer: peer.abort(), "", ""),
        (lambda peer: asyncio.sleep(100), "no answer in time", "--timeout waits longer"),
    ],
)
async def test_a_failed_first_handshake_ends_the_run_with_its_reason(answer, reason, hint):
    async def view(peer):
        if waiting := answer(peer):
            await waiting
        await peer.writer.drain()

    async with serving(view) as served:
        result = await measured(served.port, connections=50, timeout=0.2)
    ((text, count),) = failures(result, "handshakes_failed").items()
    assert text.startswith(reason)
    assert count == 1
    assert problem_with(result).startswith(f"handshakes refused (1): ws://127.0.0.1:{served.port}/: {text}")
    assert hint in problem_with(result)


@pytest.mark.parametrize("mode", ["echo", "connects"])
async def test_handshakes_that_fail_now_and_then_are_counted(mode):
    async def view(peer):
        if served.peers.index(peer) % 2:
            peer.answer(503)
        else:
            await echo(peer)

    async with serving(view) as served:
        result = await measured(served.port, mode=mode, connections=4)
    assert result.failures["handshakes_failed"]["HTTP 503"] >= 2
    assert result.done > 0
    assert problem_with(result).endswith("HTTP 503; see the server's log")


async def test_64_failed_handshakes_stop_further_attempts():
    async def view(peer):
        if served.peers.index(peer) == 0:
            await echo(peer)
        peer.answer(500)

    async with serving(view) as served:
        result = await measured(served.port, connections=1000)
    assert 64 <= result.failures["handshakes_failed"].total() < 200


@on_each_loop
async def test_a_port_without_a_server_is_reported():
    async with serving(echo) as served:
        port = served.port
    refused = await measured(port)
    assert problem_with(refused).endswith("; is the server running there?")
    publish = await measured(port, **BY_POST)
    assert problem_with(publish).startswith(f"publishes not accepted (1): http://127.0.0.1:{port}/messages: ")
    named = await measured(f"{port}", "/", scheme="ws://nowhere.invalid:1/?", connections=1)
    assert "handshakes refused" in problem_with(named)


async def test_a_server_that_does_not_read_gets_no_more_than_its_buffers_take():
    async def view(peer):
        peer.accept()
        await asyncio.sleep(100)

    async with serving(view) as served:
        result = await measured(served.port, rate=200, size=1 << 20, timeout=0.3)
    assert result.counts["unsent"] > 0
    assert result.sent < 50


# Fan-outs with errors


def hub_of(deliver):
    """A view that passes each message to ``deliver(subscribers, message, turn)``."""
    subscribers = []
    turns = iter(range(1 << 30))

    async def view(peer):
        if peer.request.startswith(b"POST"):
            while True:
                body = await peer.reader.readexactly(int(peer.header(b"content-length")))
                deliver(subscribers, body.decode(), next(turns))
                peer.answer(202)
                await peer.read_request()
        peer.accept()
        if peer.path == "/sub":
            subscribers.append(peer)
        while True:
            deliver(subscribers, await peer.receive(), next(turns))

    return view


def to_all(peers, message):
    for peer in peers:
        peer.send(message)


async def fanned_out(deliver, *, post=False, **options):
    publish = "http://127.0.0.1:{port}/pub" if post else "ws://127.0.0.1:{port}/pub"
    async with serving(hub_of(deliver)) as served:
        return await measured(served.port, "/sub", mode="fan-out", publish=publish, **options)


@pytest.mark.parametrize("post", [False, True])
async def test_lost_copies_are_counted_and_do_not_stop_the_fan_out(post):
    def deliver(peers, message, turn):
        to_all(peers[:1] if turn == 0 else peers, message)

    result = await fanned_out(deliver, post=post, timeout=0.3, seconds=0.5)
    assert result.counts["lost"] == 2
    assert result.done > 0


async def test_duplicate_copies_are_counted():
    def deliver(peers, message, turn):
        to_all(peers, message)
        to_all(peers[:1], message)

    result = await fanned_out(deliver)
    assert result.counts["duplicates"] > 0
    assert result.counts["lost"] == 0


async def test_the_order_of_copies_is_checked_unless_posts_race():
    def deliver(peers, message, turn):
        if turn % 2:
            to_all(peers, message)
            send_kept(peers)
        else:
            kept.append(message)
            # The run may end with this message: then no other one brings it along.
            asyncio.get_running_loop().call_later(0.05, send_kept, peers)

    def send_kept(peers):
        while kept:
            to_all(peers, kept.pop(0))

    kept = []
    result = await fanned_out(deliver, in_flight=2)
    assert result.counts["out_of_order"] > 0
    assert (result.counts["lost"], result.counts["duplicates"]) == (0, 0)
    kept.clear()
    result = await fanned_out(deliver, in_flight=2, post=True)
    assert is_clean(result)
    assert "order not checked" in as_text(result)


async def test_truncated_copies_are_wrong_and_other_messages_of_the_app_are_not():
    def deliver(peers, message, turn):
        to_all(peers, f"[{message[:-1]}]")
        to_all(peers, "somebody joined")

    result = await fanned_out(deliver)
    assert result.counts["wrong"] >= result.done > 0
    assert result.counts["others"] > 0
    assert "others" in as_text(result)


async def test_messages_without_numbers_are_counted():
    def deliver(peers, message, turn):
        to_all(peers[1:] if turn == 0 else peers, "news")

    result = await fanned_out(deliver, message="ping", timeout=0.3, seconds=0.5)
    assert (result.counts["lost"], result.counts["duplicates"]) == (1, 0)
    assert result.done > 0
    assert "only counted" in as_text(result)


async def test_subscribers_that_disconnect_do_not_stop_the_others():
    def deliver(peers, message, turn):
        if turn == 3:
            peers.pop().abort()
        to_all(peers, message)

    result = await fanned_out(deliver)
    assert (result.failures["closed"].total(), result.counts["lost"]) == (1, 1)
    assert result.done > 0


@pytest.mark.parametrize("is_publisher", [False, True])
async def test_a_run_ends_early_when_no_subscriber_or_publisher_is_left(is_publisher):
    def deliver(peers, message, turn):
        if turn == 3:
            for peer in [*peers]:
                peer.abort()
            peers.clear()
        to_all(peers, message)

    async def view(peer):
        peer.accept()
        if peer.path == "/pub":
            await peer.leave(4000)
        await reflect(peer)

    if is_publisher:
        async with serving(view) as served:
            publish = "ws://127.0.0.1:{port}/pub"
            result = await measured(served.port, mode="fan-out", publish=publish, seconds=15)
    else:
        result = await fanned_out(deliver, seconds=15)
    assert result.seconds < 10
    assert result.failures["closed"].total() > 0


@on_each_loop
async def test_failed_posts_are_counted_by_reason():
    async def view(peer):
        if peer.request.startswith(b"POST"):
            turn = next(turns) % 5
            await peer.reader.readexactly(int(peer.header(b"content-length")))
            if turn == 0:
                peer.answer(400, b'{"error": "no"}')
            elif turn == 2:
                peer.write(b"nonsense\r\n\r\n")
            elif turn == 3:
                peer.answer(500, b"", b"connection: close\r\n")
            elif turn == 4:
                await asyncio.sleep(100)
            return
        peer.accept()
        while True:
            await peer.receive()

    turns = iter(range(1000))
    async with serving(view) as served:
        result = await measured(served.port, **BY_POST | {"timeout": 0.1, "seconds": 0.8})
    assert set(failures(result, "publishes_failed")) >= {
        """HTTP 400, '{"error": "no"}'""",
        "closed before the answer",
        "invalid HTTP response",
        "HTTP 500",
        "no answer in time",
    }
    assert "publishes not accepted" in problem_with(result)
    assert "not accepted  " in as_text(result)


async def test_posts_continue_on_new_connections():
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
        result = await measured(served.port, **BY_POST | {"in_flight": 2})
    assert is_clean(result)
    assert len(served.peers) > 10


# Being interrupted


@on_each_loop
@pytest.mark.parametrize("phase", ["connecting", "measuring"])
async def test_a_cancelled_run_returns_the_figures_until_then(phase):
    async def view(peer):
        if phase == "connecting" and served.peers.index(peer) > 2:
            task.cancel()
            await asyncio.sleep(100)
        await echo(peer)

    def status(text):
        statuses.append(text)
        if phase == "measuring" and text.startswith("measuring"):
            task.cancel()

    statuses = []
    async with serving(view) as served:
        task = asyncio.create_task(measured(served.port, connections=5, seconds=15, timeout=15, status=status))
        result = await task
    assert result.is_interrupted
    assert result.errors == 0
    assert bool(result.seconds) == (phase == "measuring")
    assert as_json(result)["interrupted"] is True
    assert "interrupted: these are the figures until then" in as_text(result)
    assert statuses[0] == "connecting  1 of 5"


@pytest.mark.parametrize("publish", ["ws://127.0.0.1:{port}/", "http://127.0.0.1:{port}/"])
async def test_pending_messages_of_a_cancelled_run_are_not_lost(publish):
    async def view(peer):
        if peer.request.startswith(b"GET"):
            peer.accept()
            while True:
                await peer.receive()
                task.cancel()
        task.cancel()
        await asyncio.sleep(100)

    async with serving(view) as served:
        task = asyncio.create_task(measured(served.port, mode="fan-out", publish=publish, seconds=15))
        result = await task
    assert result.errors == 0
