"""What the server bears, and how little of it is left behind."""

import contextlib
import random
import resource
import selectors
import time
import zlib

import pytest
from byte_client import BINARY, CONTINUATION, LIMIT, PING, PONG, TEXT, ByteClient, close_frame, frame, upgrade
from endurance import LOOPS, MB, PATIENCE, PYTHONS, WHOLE, come_and_go, enduring, share

MIB = 1 << 20

pytestmark = pytest.mark.timeout(300)

on_each_loop = pytest.mark.parametrize("loop", LOOPS)
on_each_python = pytest.mark.parametrize("python", PYTHONS, ids=("this", "another")[: len(PYTHONS)])


# Clients that come and go


def act_at_random(client, dice):
    request = upgrade(dice.choice(["/echo", "/later", "/returns", "/topic", "/ticks", "/nowhere"]))
    match dice.randrange(7):
        case 0:
            return
        case 1:
            client.send(request[: dice.randrange(1, len(request))])
        case 2:
            client.send(request)
        case 3:
            client.send(request + frame("early") * dice.randrange(1, 30))
        case act:
            client.send(request)
            if client.read_head()[0] != 101:
                return
            message = frame("hello" * 20)
            if act == 4:
                client.send(message[: dice.randrange(1, len(message))])
            elif act == 5:
                client.send(message * dice.randrange(1, 30))
            else:
                client.send(close_frame(1000)[: dice.randrange(1, 9)])


@on_each_loop
def test_clients_that_leave_at_random_points_leave_nothing_behind(loop, figure):
    count = share(20_000)
    dice = random.Random(6455)
    with enduring(loop=loop) as process:
        come_and_go(process.port, 100, dice, act_at_random)
        at_rest = process.at_rest()
        seconds = []
        memory = []
        for _ in range(2):
            come_and_go(process.port, count, dice, act_at_random)
            seconds.append(process.seconds_to_rest(at_rest, within=2 * PATIENCE))
            memory.append(process.memory)
        grown = memory[1] - memory[0]
        figure(
            f"2 x {count} clients left, {at_rest} again after {max(seconds):.2f} s, second round {grown / MB:+.1f} MB"
        )
        assert grown <= 5 * MB
        process.stop()


def attack_before_the_101(client):
    client.send(upgrade("/later") + frame("early"))


def attack_a_view_that_returns(client):
    client.open("/returns")
    client.sock.settimeout(0.2)
    with contextlib.suppress(OSError):
        for _ in range(20):
            client.sock.sendall(frame("x") * 200)


@on_each_loop
@pytest.mark.parametrize("attack", [attack_before_the_101, attack_a_view_that_returns], ids=["H1", "H2"])
def test_attacks_leave_nothing_behind(loop, attack, figure):
    count = share(1000)
    with enduring(loop=loop) as process, contextlib.ExitStack() as stack:
        come_and_go(process.port, 100, random.Random(1), act_at_random)
        at_rest = process.at_rest()
        for number in range(count):
            client = stack.enter_context(ByteClient(process.port))
            attack(client)
            if number % 2:
                client.reset()
        stack.close()
        seconds = process.seconds_to_rest(at_rest, within=2 * PATIENCE)
        figure(f"{count} attacks, {at_rest} again after {seconds:.2f} s")
        process.stop()


# Too much


def pour(client, pieces):
    """
    Send them until the server ends the connection, and read at the same time.

    Returns:
        The code of its Close frame, the bytes sent until it came, and the seconds from then to the end.
    """
    sent = 0
    code = closed_at = None
    client.sock.settimeout(0)
    data = memoryview(b"")
    received = b""
    end = time.monotonic() + LIMIT
    with selectors.DefaultSelector() as selector:
        selector.register(client.sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while time.monotonic() < end:
            for _, events in selector.select(LIMIT):
                try:
                    if events & selectors.EVENT_READ:
                        piece = client.sock.recv(1 << 16)
                        received += piece
                        if code is None and len(received) >= 4:
                            assert received[0] == 0x88
                            code, closed_at = int.from_bytes(received[2:4]), time.monotonic()
                        if not piece:
                            return code, sent, time.monotonic() - closed_at
                    if events & selectors.EVENT_WRITE:
                        data = data or memoryview(next(pieces, b""))
                        count = client.sock.send(data)
                        data = data[count:]
                        sent += 0 if code else count
                except BlockingIOError:
                    pass
                except ConnectionError:
                    return code, sent, time.monotonic() - (closed_at or 0)
    raise AssertionError(f"the connection is still there after {LIMIT} s; Close frame: {code}")


def one_frame(size):
    yield frame(size, BINARY)
    yield from (bytes(1 << 16) for _ in range(size >> 16))


def fragments(size):
    yield frame(bytes(1 << 14), BINARY, final=False)
    yield from (frame(bytes(1 << 14), CONTINUATION, final=False) for _ in range(size >> 14))


def messages_of_the_limit(size):
    yield from (frame(bytes(MIB + 1), BINARY) for _ in range(size // MIB))


@on_each_loop
@pytest.mark.parametrize("kind", [one_frame, fragments, messages_of_the_limit])
def test_100_mb_past_the_limit_are_1009_and_take_no_memory(loop, kind, figure):
    with enduring(loop=loop) as process, ByteClient(process.port) as client:
        client.open("/echo")
        process.forget_peak()
        before = process.memory
        code, sent, seconds = pour(client, kind(100 * MB))
        grown = process.peak_memory - before
        figure(f"{code} after {sent / MB:.2f} MB, TCP gone {seconds:.3f} s later, {grown / MB:+.2f} MB")
        assert code == 1009
        assert seconds <= 1 * PATIENCE
        assert grown <= 3 * MB
        process.stop()


@on_each_loop
def test_a_deflate_bomb_takes_twice_the_limit_of_memory_at_most(loop, figure):
    deflate = zlib.compressobj(9, wbits=-15)
    bomb = 176 * (deflate.compress(bytes(MB)) + deflate.flush(zlib.Z_FULL_FLUSH))
    with enduring(loop=loop, app="enduring:compressing") as process, ByteClient(process.port) as client:
        headers = client.open("/echo", "sec-websocket-extensions: permessage-deflate")
        assert headers["sec-websocket-extensions"].startswith("permessage-deflate")
        process.forget_peak()
        before = process.memory
        client.send(frame(bomb.removesuffix(b"\0\0\xff\xff"), TEXT, compressed=True))
        code = client.read_close()[0]
        client.wait_dropped(within=1 * PATIENCE)
        grown = process.peak_memory - before
        figure(f"{len(bomb)} bytes for 176 MB: {code}, {grown / MB:+.2f} MB")
        assert code == 1009
        assert grown <= 2 * MIB
        process.stop()


# The end


def seconds_to_end(process, clients):
    """Until the server has ended, in order, while these clients answer its Close frames."""
    began = time.monotonic()
    process.terminate()
    for client in clients:
        assert client.read_close() == (1012, "service restart")
        client.send(close_frame(1012))
    assert process.wait_ended(within=LIMIT) == 0
    return time.monotonic() - began


@on_each_loop
@on_each_python
def test_every_client_is_told_of_the_end(loop, python, figure):
    count = share(1000)
    with enduring(loop=loop, python=python) as process, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(ByteClient(process.port)) for _ in range(count)]
        for client in clients:
            client.open("/echo")
        seconds = seconds_to_end(process, clients)
        figure(f"{count} clients told, exit after {seconds:.2f} s")
        assert seconds <= 2 * PATIENCE


@on_each_loop
@on_each_python
def test_clients_that_do_not_answer_or_read_do_not_hold_up_the_end(loop, python, figure):
    drain_timeout = 2
    count = share(1000)
    with (
        enduring("--drain-timeout", str(drain_timeout), loop=loop, python=python) as process,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(ByteClient(process.port)) for _ in range(count * 8 // 10)]
        mute = [stack.enter_context(ByteClient(process.port)) for _ in range(count // 10)]
        for client in (*clients, *mute):
            client.open("/echo")
        for _ in range(count // 10):
            client = stack.enter_context(ByteClient(process.port, receive_buffer=4096))
            client.open("/pours")
        seconds = seconds_to_end(process, clients)
        for client in mute:
            assert client.read_close() == (1012, "service restart")
        each = count // 10
        figure(f"{count} clients, {each} mute, {each} not reading, drain {drain_timeout} s: exit after {seconds:.2f} s")
        assert seconds <= drain_timeout + 1 * PATIENCE


# Pings


@on_each_loop
def test_a_client_that_has_vanished_is_dropped(loop, figure):
    """Nothing comes from it any more, neither data nor a FIN."""
    with enduring("--ping-interval", "1", "--ping-timeout", "1", loop=loop) as process:
        at_rest = process.at_rest()
        with ByteClient(process.port) as client:
            client.open("/echo")
            seconds = client.wait_dropped(within=3 * PATIENCE)
            process.seconds_to_rest(at_rest, within=1 * PATIENCE)
        figure(f"interval 1 s, time-out 1 s: dropped after {seconds:.2f} s")
        assert seconds <= 3 * PATIENCE
        process.stop()


def answer_pings(clients, times):
    """Until each has answered so many. What else comes is passed over."""
    answered = dict.fromkeys(clients, 0)
    end = time.monotonic() + 3 * LIMIT
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.sock, selectors.EVENT_READ, client)
        while min(answered.values()) < times:
            assert time.monotonic() < end, f"no pings: {sorted(answered.values())}"
            for key, _ in selector.select(LIMIT):
                client = key.data
                received = client.read_frame()
                if received.opcode == PING:
                    client.send(frame(received.payload, PONG))
                    answered[client] += 1


@on_each_loop
def test_an_event_loop_that_is_held_up_closes_nobody(loop, figure):
    """For twice as long as a client has for its answer."""
    count = share(1000)
    with (
        enduring("--ping-interval", "1", "--ping-timeout", "1", loop=loop) as process,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(ByteClient(process.port)) for _ in range(count)]
        for client in clients:
            client.open("/echo")
        culprit = stack.enter_context(ByteClient(process.port))
        culprit.open("/stalls")
        answer_pings([*clients, culprit], 1)
        culprit.send(frame("2"))
        answer_pings([*clients, culprit], 3)
        for client in clients:
            client.send(frame("still here"))
            assert client.read_message().payload == b"still here"
        figure(f"{count} clients, held up for 2 s: all still there")
        for client in (*clients, culprit):
            client.send(close_frame(1000))
        process.stop()


@pytest.mark.parametrize("loop", ["uvloop"])
def test_pings_are_sent_unasked(loop, figure):
    """Hypercorn sends none (H13)."""
    interval = share(20)
    with enduring(*(() if WHOLE else ("--ping-interval", str(interval))), loop=loop) as process:
        with ByteClient(process.port) as client:
            client.open("/echo")
            client.sock.settimeout(interval + 5)
            began = time.monotonic()
            assert client.read_frame().opcode == PING
            seconds = time.monotonic() - began
        figure(f"the first ping after {seconds:.2f} s")
        assert abs(seconds - interval) <= 1 * PATIENCE
        process.stop()


# No more files


def is_accepted(port, loop):
    with ByteClient(port) as client:
        try:
            client.open("/echo")
        except (AssertionError, OSError):
            # libuv hangs up on whoever connects while no files are left: until it knows that the crowd has gone.
            if loop != "uvloop":
                raise
            return False
    return True


@on_each_loop
def test_a_server_without_files_left_goes_on_and_recovers(loop, figure):
    count = max(share(1000), 300)
    with enduring(loop=loop) as process, contextlib.ExitStack() as stack:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (256, 256))
        clients = [stack.enter_context(ByteClient(process.port)) for _ in range(50)]
        for client in clients:
            client.open("/echo")
        with contextlib.ExitStack() as crowd:
            for _ in range(count):
                crowd.enter_context(ByteClient(process.port)).send(upgrade("/echo"))
            worked = process.cpu_time
            time.sleep(1)
            worked = process.cpu_time - worked
            for client in clients:
                client.send(frame("still here"))
                assert client.read_message().payload == b"still here"
        began = time.monotonic()
        while not is_accepted(process.port, loop):
            assert time.monotonic() - began < LIMIT
        seconds = time.monotonic() - began
        figure(
            f"{count} connects at 256 files: {worked:.2f} s of work in a second, "
            f"accepting again after {seconds:.2f} s, {len(process.server.output)} lines of log"
        )
        assert worked <= 0.2 * PATIENCE
        assert seconds <= 1 * PATIENCE
        process.terminate()
        for client in clients:
            client.send(close_frame(1000))
        assert process.wait_ended(within=LIMIT) == 0
