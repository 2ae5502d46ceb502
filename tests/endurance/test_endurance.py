"""What the server bears, and how little of it is left behind."""

import contextlib
import random
import resource
import time

import pytest
from byte_client import LIMIT, PING, ByteClient, close_frame, frame, upgrade
from endurance import LOOPS, PATIENCE, PYTHONS, WHOLE, come_and_go, enduring, share

pytestmark = pytest.mark.timeout(300)

on_each_loop = pytest.mark.parametrize("loop", LOOPS)
on_each_python = pytest.mark.parametrize("python", PYTHONS, ids=("this", "another")[: len(PYTHONS)])


# Clients that come and go


def attack_before_the_101(client):
    client.send(upgrade("/later") + frame("early"))


def attack_a_view_that_returns(client):
    client.open("/returns")
    client.sock.settimeout(0.2)
    with contextlib.suppress(OSError):
        for _ in range(20):
            client.sock.sendall(frame("x") * 200)


@on_each_loop
@pytest.mark.parametrize("attack", [attack_before_the_101, attack_a_view_that_returns], ids=["early frames", "a flood"])
def test_attacks_leave_nothing_behind(loop, attack, figure):
    count = share(1000)
    with enduring(loop=loop) as process, contextlib.ExitStack() as stack:
        come_and_go(process.port, 100, random.Random(1), lambda client, _: attack(client))
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


@pytest.mark.parametrize("loop", ["uvloop"])
def test_pings_are_sent_unasked(loop, figure):
    """Hypercorn sends none."""
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
