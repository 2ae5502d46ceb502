"""
What Hypercorn 0.18 gets wrong, H1 to H24, and ``microws run`` must not: a test of each, byte by byte.

The app is plain ASGI, so that nothing but the server is tried. Bare Hypercorn runs the same tests, and is expected to
fail each that says so: strictly, so that a newer Hypercorn that mends one is noticed.
"""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import zlib
from contextlib import contextmanager, suppress

import h2.config
import h2.connection
import h2.events
import pytest
from byte_client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    LIMIT,
    PING,
    PONG,
    TEXT,
    ByteClient,
    close_frame,
    frame,
    upgrade,
)
from servers import HERE, failures, started

MICROWS = ("microws-asyncio", "microws-uvloop")
# Without a worker process besides, which would outlive the test.
FLAGS = {"hypercorn": ("--config", str(HERE / "hypercorn.toml"), "--workers", "0")}
MIB = 1 << 20

TLS = HERE.parent / "tls"


def row(number, fault=None, *, on=MICROWS):
    """
    Runs a test against each server, as its ``program``.

    Args:
        number: In the table.
        fault: What Hypercorn does; the test fails there. Without: it does right too.
        on: The programs besides Hypercorn; one where a test takes seconds.
    """
    marks = pytest.mark.xfail(strict=True, reason=f"{number}: {fault}", raises=AssertionError) if fault else ()
    return pytest.mark.parametrize("program", [*on, pytest.param("hypercorn", marks=marks)], scope="module")


@contextmanager
def serving(program, app="bare:app", *flags):
    """A server of the test's own."""
    with started(program, app, *FLAGS.get(program, ()), *flags) as server:
        yield server


@pytest.fixture(scope="module")
def server(program):
    """One server for all tests that leave it as it was; a row that Hypercorn fails may leave something there."""
    with serving(program) as server:
        yield server
        if program in MICROWS:
            assert server.stop() == 0
            assert failures(server) == []


@pytest.fixture
def client(server):
    with ByteClient(server.port) as client:
        yield client


def statistics(server):
    """What the app has open, and the process that answers."""
    with ByteClient(server.port) as client:
        client.send(b"GET /statistics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        status, headers = client.read_head()
        assert status == 200
        return json.loads(client.read_bytes(int(headers["content-length"])))


def wait_for(condition, what, *, within=LIMIT):
    """Until the condition is met."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {within} s"
        time.sleep(0.02)


@contextmanager
def leaving_nothing(server):
    """At the end of the block the server has no more tasks and files than before, within 2 s."""
    before = statistics(server)
    yield
    wait_for(lambda: statistics(server).items() <= before.items(), f"the server is as before, {before}", within=2)


def exit_code(server, *, within):
    try:
        return server.wait(within)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the server still runs after {within} s") from None


# H1, H2, H24: what clients leave behind


@row("H1", "tasks and a file are left of a frame that came before the 101 (ws_stream.py:204,238-240)")
def test_h1_clients_that_do_not_wait_for_the_101_leave_nothing_behind(server):
    with leaving_nothing(server):
        for _ in range(20):
            with ByteClient(server.port) as client:
                client.send(upgrade("/later") + frame("early"))
                client.read_head()


@row("H1", "a frame that came before the 101 is refused (ws_stream.py:204)")
def test_h1_what_comes_before_the_101_is_kept(client):
    client.send(upgrade("/later") + frame("early"))
    assert client.read_head()[0] == 101
    client.send(frame("later"))
    assert [client.read_frame().payload for _ in range(2)] == [b"early", b"later"]


@row("H2", "a client that floods an app which has returned leaves tasks and a file (task_group.py:34)")
def test_h2_clients_that_flood_an_app_which_has_returned_leave_nothing_behind(server):
    with leaving_nothing(server):
        for _ in range(5):
            with ByteClient(server.port) as client:
                client.open("/returns")
                with suppress(OSError):
                    client.sock.settimeout(0.5)
                    for _ in range(100):
                        client.sock.sendall(frame("x") * 50)
                client.reset()


@row("H24", "tasks are left of a body that nobody reads (task_group.py:34)")
def test_h24_a_chunked_body_that_the_app_does_not_read_leaves_nothing_behind(server):
    with leaving_nothing(server):
        for _ in range(5):
            with ByteClient(server.port) as client:
                client.send(b"POST /unread HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
                for _ in range(80):
                    client.send(b"1\r\nx\r\n")
                client.send(b"0\r\n\r\n")
                assert client.read_head()[0] == 200


# H3, H8, H9, H11: frames


@row("H3", "the limit counts characters (ws_stream.py:149-151)")
def test_h3_the_limit_of_a_message_counts_bytes(client):
    client.open("/echo")
    client.send(frame("ü" * (MIB // 2 + 1)))
    received = client.read_frame()
    assert (received.opcode, received.payload[:2]) == (CLOSE, b"\x03\xf1")


@row("H3", "after 1009 the connection stays, and what comes is kept (ws_stream.py:312-316)")
def test_h3_after_1009_the_connection_is_gone_within_a_second(client):
    """The client neither answers the Close frame nor stops sending."""
    client.open("/echo")
    # A frame that never ends says how long it is.
    client.send(frame(1 << 40, BINARY))
    client.sock.settimeout(1)
    with suppress(OSError):
        for _ in range(2 * MIB >> 16):
            client.sock.sendall(bytes(1 << 16))
    assert client.read_close()[0] == 1009
    client.wait_dropped(within=1)


@row("H8", "compression is on, and cannot be turned off (ws_stream.py:111-114)")
def test_h8_compression_is_not_agreed_to_unasked(client):
    assert "sec-websocket-extensions" not in client.open(
        "/echo", "sec-websocket-extensions: permessage-deflate; client_max_window_bits"
    )


@row("H9", "a Ping between compressed fragments ends the connection (wsproto extensions.py:239)")
def test_h9_a_ping_may_come_between_compressed_fragments(program):
    app = "bare:app" if program == "hypercorn" else "compressing:app"
    deflate = zlib.compressobj(wbits=-15)
    data = (deflate.compress(b"hello" * 100) + deflate.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")
    with serving(program, app) as server, ByteClient(server.port) as client:
        headers = client.open("/echo", "sec-websocket-extensions: permessage-deflate")
        assert headers["sec-websocket-extensions"].startswith("permessage-deflate")
        client.send(frame(data[:5], TEXT, final=False, compressed=True))
        client.send(frame("p", PING))
        client.send(frame(data[5:], CONTINUATION))
        assert client.read_frame()[:2] == (PONG, b"p")
        opcode, payload, is_compressed = client.read_frame()
        if is_compressed:
            payload = zlib.decompressobj(wbits=-15).decompress(payload + b"\0\0\xff\xff")
        assert (opcode, payload) == (TEXT, b"hello" * 100)


@row("H11", "an invalid frame ends TCP, without a Close frame (ws_stream.py:323)")
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame("x", 3), 1002),
        (frame("x", compressed=True), 1002),
        (b"\x81\x01x", 1002),
        (frame("x", CONTINUATION), 1002),
        (frame("x", final=False) + frame("y"), 1002),
        (frame("x", PING, final=False), 1002),
        (frame("x" * 126, PING), 1002),
        (frame(b"\x03", 8), 1002),
        (close_frame(1005), 1002),
        (frame(b"\xff"), 1007),
        (frame(b"\xc3", final=False) + frame("x", CONTINUATION), 1007),
    ],
    ids=[
        "unknown opcode",
        "RSV1 without compression",
        "no mask",
        "continuation of nothing",
        "message within a message",
        "control frame in fragments",
        "control frame of 126 bytes",
        "close code of one byte",
        "close code that may not be sent",
        "no UTF-8",
        "no UTF-8 across fragments",
    ],
)
def test_h11_an_invalid_frame_is_answered_with_a_close_frame(client, sent, code):
    client.open("/echo")
    client.send(sent)
    assert client.read_close()[0] == code
    client.wait_dropped(within=LIMIT)


# H6, H7, H10, H23: what the app learns, and what the client is answered


@row("H6", "the app never learns the client's close code (ws_stream.py:247-251)")
def test_h6_the_code_and_reason_of_the_client_reach_the_app(server, client):
    client.open("/echo?h6")
    client.send(close_frame(4001, "bye"))
    assert client.read_close() == (4001, "bye")
    assert server.wait_for_line(r"the client closed h6 (.*)")[1] == "4001 bye"


@row("H7", "send does nothing, for ever (ws_stream.py:212)")
def test_h7_send_raises_after_the_client_has_left(server, client):
    client.open("/tick?h7")
    client.reset()
    wait_for(lambda: server.find_lines("send raised h7"), "send raises an OSError", within=2)


@row("H10", "the connection is dropped without a response (ws_stream.py:107,128)")
@pytest.mark.parametrize("path", ["/subprotocol", "/header"])
def test_h10_what_may_not_be_sent_with_accept_is_refused_before_anything_is_sent(server, client, path):
    client.send(upgrade(path, "sec-websocket-protocol: v1"))
    assert client.read_head()[0] == 500
    server.wait_for_line("accept raised ValueError")


@row("H23", "400 (ws_stream.py:82-97)")
@pytest.mark.parametrize("version", [8, 12, 14])
def test_h23_another_version_is_answered_with_426_and_the_right_one(client, version):
    client.send(upgrade("/echo", version=version))
    status, headers = client.read_head()
    assert (status, headers.get("sec-websocket-version")) == (426, "13")


# H12, H14: clients that say nothing. H13, pings that nobody asked for, takes 20 s: see tests/endurance


@row("H12", "a client that does not answer a Close frame stays (ws_stream.py:295)", on=["microws-uvloop"])
def test_h12_a_client_that_does_not_answer_a_close_frame_is_dropped(client):
    client.open("/close")
    assert client.read_close()[0] == 1000
    client.wait_dropped(within=6)


@row("H14", "never looks whether a pong comes (config.py:65)")
def test_h14_a_client_that_answers_no_ping_is_dropped(program):
    flags = ["--websocket-ping-interval", "1"]
    if program != "hypercorn":
        flags = ["--ping-interval", "0.5", "--ping-timeout", "0.5"]
    with serving(program, "bare:app", *flags) as server, ByteClient(server.port) as client:
        client.open("/echo")
        assert client.read_frame().opcode == PING
        client.wait_dropped(within=2)


# H4, H5, H17, H20: how a server begins and ends


@row("H4", "shutdown hangs while a WebSocket is open (asyncio/run.py:164-170)" if sys.version_info >= (3, 12) else None)
def test_h4_a_server_ends_while_a_websocket_is_open(program):
    with serving(program) as server, ByteClient(server.port) as client:
        client.open("/echo")
        server.signal(signal.SIGTERM)
        with contextlib.suppress(AssertionError):  # Hypercorn sends no Close frame
            client.read_close()
            client.send(close_frame(1012))
        assert exit_code(server, within=3) == 0


@row("H5", "a client that does not read blocks the end (tcp_server.py:81-84,118-120)")
def test_h5_a_client_that_does_not_read_does_not_hold_the_end_up(program):
    flags = () if program == "hypercorn" else ("--drain-timeout", "1")
    with serving(program, "bare:app", *flags) as server, ByteClient(server.port, receive_buffer=4096) as client:
        client.open("/pour")
        client.read_frame()
        server.signal(signal.SIGTERM)
        assert exit_code(server, within=3) == 0


@row("H17", "connections are cut, without a Close frame, before the app's shutdown (asyncio/run.py:169-178)")
def test_h17_websockets_are_closed_with_1012_then_the_app_learns_of_it_then_its_lifespan_ends(program):
    with serving(program) as server, ByteClient(server.port) as client:
        client.open("/echo?h17")
        server.signal(signal.SIGTERM)
        assert client.read_close() == (1012, "service restart")
        client.send(close_frame(1012))
        client.wait_dropped(within=2)
        assert exit_code(server, within=2) == 0
        told = server.find_lines("the client closed h17|the lifespan ends")
        assert [match[0] for match in told] == ["the client closed h17", "the lifespan ends"]


@row("H20", "100 connections wait for a busy server, and no more (config.py:64)")
def test_h20_300_connections_wait_for_a_busy_server(server):
    pid = statistics(server)["pid"]
    with contextlib.ExitStack() as stack:
        stack.callback(os.kill, pid, signal.SIGCONT)
        os.kill(pid, signal.SIGSTOP)
        for number in range(300):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(1)
            # The kernel answers, unless too many wait already.
            assert sock.connect_ex(("127.0.0.1", server.port)) == 0, f"{number} connections wait"


# H21: HTTP/2


@row("H21", "any CONNECT becomes a WebSocket (h2.py:326)", on=["microws-uvloop"])
def test_h21_over_http2_a_connect_for_another_protocol_is_no_websocket(program):
    certificate = ("--certfile", TLS / "localhost.pem", "--keyfile", TLS / "localhost.key")
    with serving(program, "bare:app", *map(str, certificate)) as server:
        headers = {
            ":method": "CONNECT",
            ":protocol": "connect-udp",
            ":scheme": "https",
            ":authority": "x",
            ":path": "/h21",
        }
        status = http2_status(server.port, [*headers.items(), ("sec-websocket-version", "13")])
        assert status is None or status >= 400
        assert not server.find_lines("a WebSocket for /h21")


def http2_status(port, headers):
    """The status of the answer to a request without a body; none if its stream, or the connection, is ended."""
    context = ssl.create_default_context(cafile=str(TLS / "localhost.pem"))
    context.set_alpn_protocols(["h2"])
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(validate_outbound_headers=False, header_encoding="utf-8")
    )
    with (
        socket.create_connection(("127.0.0.1", port), LIMIT) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        connection.initiate_connection()
        connection.send_headers(1, headers)
        sock.sendall(connection.data_to_send())
        while data := sock.recv(1 << 16):
            for event in connection.receive_data(data):
                match event:
                    case h2.events.ResponseReceived(headers=received):
                        return int(dict(received)[":status"])
                    case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                        return None
            sock.sendall(connection.data_to_send())
    return None


# H15, H19: workers


@contextmanager
def two_workers(program, app):
    """A server with two workers, and their process ids; it must end well, and none of them is left."""
    with serving(program, app, "--workers", "2") as server:
        try:
            server.wait_for_line(r"worker (\d+) starts", times=2, within=3 * LIMIT)
            yield server, *worker_pids(server)
            server.signal(signal.SIGTERM)
            assert exit_code(server, within=LIMIT) == 0
        finally:
            server.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(LIMIT)
            for pid in worker_pids(server):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def worker_pids(server):
    return [int(match[1]) for match in server.find_lines(r"worker (\d+) starts")]


@row("H15", "they all end, with 0 (run.py:98-106,142-151)", on=["microws-uvloop"])
def test_h15_one_of_two_workers_that_is_killed_is_replaced_and_the_other_goes_on(program):
    with two_workers(program, "bare:app") as (server, killed, other), contextlib.ExitStack() as stack:
        clients = {}
        while other not in clients and len(clients) < 100:
            client = stack.enter_context(ByteClient(server.port))
            client.open("/worker")
            clients.setdefault(int(client.read_frame().payload), client)
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: len(worker_pids(server)) == 3, "another worker starts", within=5)
        clients[other].send(frame("still here"))
        assert clients[other].read_message().payload == b"still here"


@row("H19", "reload ends every worker before a new one starts (run.py:58-62)", on=["microws-uvloop"])
def test_h19_a_reload_lets_nobody_wait(program):
    """The app takes 1.5 s to start."""
    with two_workers(program, "bare:starts_slowly") as (server, *before):
        server.signal(signal.SIGHUP)
        after = set()
        end = time.monotonic() + 3 * LIMIT
        while len(after) < 2 and time.monotonic() < end:
            began = time.monotonic()
            pid = statistics(server)["pid"]
            assert time.monotonic() - began < 1.4
            after |= {pid} - set(before)
        assert len(after) == 2
