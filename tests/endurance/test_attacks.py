"""Clients that are slow on purpose, or leave in the middle: the others notice nothing, and nothing is left behind."""

import random
import socket
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

import pytest
from byte_client import LIMIT, ByteClient, close_frame, frame, upgrade
from endurance import LOOPS, MB, PATIENCE, TLS_FLAGS, come_and_go, encrypt, enduring, share

pytestmark = pytest.mark.timeout(300)

on_each_loop = pytest.mark.parametrize("loop", LOOPS)

# No settings: the seconds for the head of a request, and for the TLS handshake.
HEAD_LIMIT = 10
# For a client to end a connection that the server has ended while the client was still sending.
CLOSE_LIMIT = 5

HEAD = b"GET /statistics HTTP/1.1\r\nHost: x\r\nX-Slow: "
POST = b"POST /body HTTP/1.1\r\nHost: x\r\n"


def get(path):
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


class Slow(NamedTuple):
    """
    A client that reads nothing.

    Attributes:
        first: What it sends at once.
        then: What it sends byte by byte, over and over.
        is_encrypted: Whether it completes the TLS handshake before.
    """

    first: bytes = b""
    then: bytes = b""
    is_encrypted: bool = False


SLOW = {
    "silent": Slow(),
    "head that stops": Slow(HEAD),
    "head byte by byte": Slow(HEAD, b"x"),
    "fields byte by byte": Slow(HEAD, b"y\r\nX: "),
    "second head": Slow(get("/statistics") + HEAD, b"x"),
    "body that stops": Slow(POST + b"Content-Length: 1000\r\n\r\nx"),
    "body byte by byte": Slow(POST + b"Content-Length: 1000\r\n\r\nx", b"x"),
    "chunked body that stops": Slow(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel"),
    "chunk size byte by byte": Slow(POST + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "unread body": Slow(b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx", b"x"),
    "expects 100": Slow(POST + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n"),
    "response": Slow(get("/large")),
    "file": Slow(get("/file")),
    "stream": Slow(get("/stream")),
    "pipelined responses": Slow(get("/large") * 20),
    "event stream": Slow(get("/events")),
}

# The beginning of a ClientHello, whose record is 512 bytes long.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
SLOW_IN_TLS = {
    "silent": Slow(),
    "handshake that stops": Slow(HELLO),
    "handshake byte by byte": Slow(HELLO, b"\0"),
    "plain head": Slow(HEAD, b"x"),
    "silent behind the handshake": Slow(is_encrypted=True),
    "encrypted head byte by byte": Slow(HEAD, b"x", is_encrypted=True),
    "encrypted response": Slow(get("/large"), is_encrypted=True),
    "encrypted event stream": Slow(get("/events"), is_encrypted=True),
}


@contextmanager
def attacking(process, slow, count):
    """As many of each kind of slow clients: ``(kind, client)``."""
    with ExitStack() as stack:
        attackers = []
        for kind, behaviour in slow.items():
            for _ in range(count):
                client = stack.enter_context(ByteClient(process.port, receive_buffer=4096))
                if behaviour.is_encrypted:
                    encrypt(client)
                client.send(behaviour.first)
                client.sock.setblocking(False)
                attackers.append((kind, client))
        yield attackers


def send_slowly(slow, attackers, publisher, *, seconds):
    """A byte ten times a second, and for the event streams 100 KB."""
    began = time.monotonic()
    turn = 0
    while time.monotonic() - began < seconds:
        for kind, client in attackers:
            if piece := slow[kind].then:
                with suppress(OSError):
                    client.sock.send(piece[turn % len(piece) :][:1])
        publisher.send(frame("x" * 100_000))
        turn += 1
        time.sleep(0.1)


def kinds_connected(attackers):
    """Of the slow clients that the server has not disconnected; nothing is read for it (Linux, ``tcp_info``)."""
    return {
        kind for kind, client in attackers if client.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\1"
    }


def resist(process, slow, *, start=lambda client: None):
    """Seconds for the longest answer to a neighbour, and from the end of all limits to the baseline."""
    with process.neighbours(share(1000), start):
        pass  # what is made once only is there from now on
    at_rest = process.at_rest()
    with attacking(process, slow, max(share(100), 10)) as attackers:
        with process.neighbours(share(1000), start) as neighbours, ByteClient(process.port) as publisher:
            start(publisher)
            publisher.open("/topic")
            send_slowly(slow, attackers, publisher, seconds=HEAD_LIMIT)
        began = time.monotonic()
        while (connected := kinds_connected(attackers)) and time.monotonic() - began < CLOSE_LIMIT + 2 * PATIENCE:
            time.sleep(0.02)
        assert not connected
        process.seconds_to_rest(at_rest, within=CLOSE_LIMIT + 2 * PATIENCE)
        return len(attackers), neighbours, at_rest, time.monotonic() - began


@on_each_loop
def test_clients_that_are_slow_on_purpose_are_disconnected(loop, figure):
    """Slowloris, and its kin: in the head, in the body, and in reading a response."""
    with enduring("--body-timeout", "1", "--write-timeout", "1", "--keep-alive", "5", loop=loop) as process:
        before = process.memory
        count, neighbours, at_rest, seconds = resist(process, SLOW)
        grown = process.memory - before
        figure(
            f"{count} slow clients, {at_rest} again after {seconds:.2f} s, {grown / MB:+.1f} MB, "
            f"{neighbours.answered} requests beside them, {neighbours.longest * 1000:.0f} ms at most"
        )
        process.stop()


@on_each_loop
def test_clients_that_are_slow_in_the_tls_handshake_are_disconnected(loop, figure):
    with enduring(*TLS_FLAGS, "--write-timeout", "1", "--keep-alive", "5", loop=loop) as process:
        count, neighbours, at_rest, seconds = resist(process, SLOW_IN_TLS, start=encrypt)
        figure(
            f"{count} slow clients, {at_rest} again after {seconds:.2f} s, "
            f"{neighbours.answered} requests beside them, {neighbours.longest * 1000:.0f} ms at most"
        )
        process.stop()


# Conversations that end anywhere

MESSAGES = frame("hello" * 20) * 3 + frame("x" * 3000, final=False) + frame("y", 0) + frame("", 9) + close_frame(1000)

CONVERSATIONS = (
    get("/statistics") * 3,
    get("/large"),
    get("/file"),
    get("/stream") + get("/statistics"),
    get("/events"),
    get("/nowhere").replace(b"GET", b"HEAD", 1),
    POST + b"Content-Length: 5000\r\n\r\n" + bytes(5000) + get("/statistics"),
    POST + b"Content-Length: 200000\r\n\r\n" + bytes(200_000),
    POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n%b\r\n" % bytes(1024) * 3 + b"0\r\nX: y\r\n\r\n",
    POST + b"Expect: 100-continue\r\nContent-Length: 500\r\n\r\n" + bytes(500),
    POST.replace(b"body", b"unread") + b"Content-Length: 3000\r\n\r\n" + bytes(3000) + get("/statistics"),
    POST.replace(b"body", b"unread") + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 80 + b"0\r\n\r\n",
    get("/statistics").replace(b"1.1", b"1.0"),
    get("/statistics") + upgrade("/echo") + MESSAGES,
    upgrade("/echo") + MESSAGES,
    upgrade("/topic") + MESSAGES,
    upgrade("/later") + MESSAGES,
    upgrade("/returns") + MESSAGES,
    upgrade("/ticks") + MESSAGES,
    upgrade("/nowhere"),
)


def converse(client, dice):
    """Send a conversation as far as any of its bytes, in one piece or in two; read a little of the answer, or none."""
    conversation = dice.choice(CONVERSATIONS)
    end = dice.randrange(1, len(conversation) + 1)
    middle = dice.randrange(end)
    client.send(conversation[:middle])
    client.send(conversation[middle:end])
    match dice.randrange(4):
        case 0:
            client.sock.shutdown(socket.SHUT_WR)
        case 1:
            client.sock.settimeout(0.01)
            with suppress(OSError):
                client.sock.recv(dice.randrange(1, 5000))
            client.sock.settimeout(LIMIT)


@on_each_loop
def test_clients_that_leave_at_any_byte_leave_nothing_behind(loop, figure):
    count = share(20_000)
    dice = random.Random(9112)
    with enduring("--keep-alive", "5", loop=loop) as process:
        with process.neighbours(share(1000)):
            come_and_go(process.port, 200, dice, converse)
        at_rest = process.at_rest()
        memory = []
        for _ in range(2):
            with process.neighbours(share(1000)) as neighbours:
                come_and_go(process.port, count // 2, dice, converse)
            seconds = process.seconds_to_rest(at_rest, within=CLOSE_LIMIT + 2 * PATIENCE)
            memory.append(process.memory)
        grown = memory[1] - memory[0]
        figure(
            f"{count} clients left, {at_rest} again after {seconds:.2f} s, second half {grown / MB:+.1f} MB, "
            f"{neighbours.answered} requests beside them, {neighbours.longest * 1000:.0f} ms at most"
        )
        assert grown <= 5 * MB
        process.stop()
