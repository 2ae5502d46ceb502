"""A worker's side of its supervisor."""

import os
import signal
import socket

import anyio
import pytest

from microws.server.acceptor import Share, make_shared_memory
from microws.server.supervised import (
    SHARED_SIGNALS,
    Greeting,
    Stage,
    Supervised,
    environment_of_worker,
    parse_greeting,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def ends():
    """The supervisor's end of a line, and the worker's."""
    supervisor, worker = socket.socketpair()
    supervisor.settimeout(5)
    with supervisor, worker:
        yield supervisor, worker


@pytest.fixture
def _handlers():
    before = {number: signal.getsignal(number) for number in SHARED_SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_commands_come_until_the_supervisor_has_ended(ends):
    supervisor, worker = ends
    commands = Supervised(worker, []).commands()
    with anyio.fail_after(5):
        supervisor.send(b"23")
        assert [await anext(commands), await anext(commands)] == [Stage.DRAIN, Stage.AT_ONCE]
        supervisor.close()
        assert [command async for command in commands] == [Stage.DRAIN]


async def test_a_line_that_breaks_has_ended(ends):
    supervisor, worker = ends
    worker.send(b"what nobody reads makes the end a reset")
    supervisor.close()
    with anyio.fail_after(5):
        assert [command async for command in Supervised(worker, []).commands()] == [Stage.DRAIN]


async def test_the_greeting_arrives_and_nobody_may_be_there_to_hear_it(ends):
    supervisor, worker = ends
    supervised = Supervised(worker, [])
    greeting = Greeting("chat:app", None)
    supervised.greet(greeting)
    assert parse_greeting(supervisor.recv(1000)) == greeting
    supervisor.close()
    supervised.greet(greeting)
    supervised.close()


async def test_signs_of_life_and_steps_of_the_end_come_after_the_greeting(ends):
    supervisor, worker = ends
    supervised = Supervised(worker, [])
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervised.beat, 0.01)
            supervised.report_limit(1)
            await anyio.sleep(0.05)
            supervised.greet(Greeting("chat:app", None))
            supervised.report_limit(12.5)
            lines = b""
            while not lines.endswith(b"\n\n"):
                await anyio.wait_readable(supervisor)
                lines += supervisor.recv(1000)
            tasks.cancel_scope.cancel()
    greeting, limit, beat = lines.split(b"\n")[:3]
    assert (parse_greeting(greeting).app, limit, beat) == ("chat:app", b"12.5", b"")


async def test_a_supervisor_that_does_not_read_holds_nobody_up(ends):
    _, worker = ends
    supervised = Supervised(worker, [])
    supervised.greet(Greeting("chat:app", None))
    for _ in range(10_000):
        supervised.report_limit(1)


@pytest.mark.usefixtures("_handlers")
async def test_a_supervisor_that_ended_before_its_worker_looked_has_told_it_to_end():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        supervisor, worker = socket.socketpair()
        environ = environment_of_worker(
            {}, line=worker.detach(), sockets=[os.dup(listening.fileno())], share=Share(make_shared_memory(1), 0)
        )
        supervisor.close()
        supervised = Supervised.from_environment(environ)
        assert supervised is not None
        with anyio.fail_after(5):
            assert [command async for command in supervised.commands()] == [Stage.DRAIN]
        for listener in supervised.listeners(secure=False):
            listener.close()
        supervised.close()


@pytest.mark.usefixtures("_handlers")
def test_what_a_worker_takes_over_does_not_reach_the_programs_that_it_starts():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        supervisor, worker = socket.socketpair()
        share = Share(make_shared_memory(2), 0)
        other = Share(share.memory, 1)
        numbers = [worker.detach(), os.dup(listening.fileno())]
        for number in numbers:
            os.set_inheritable(number, True)
        environ = environment_of_worker({"HOME": "/"}, line=numbers[0], sockets=numbers[1:], share=share)
        signal.pthread_sigmask(signal.SIG_BLOCK, SHARED_SIGNALS)
        supervised = Supervised.from_environment(environ)
        assert environ == {"HOME": "/"}
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(share.memory)
        supervised.share.write(0, 1.0)
        other.write(99, 1.0)
        assert other.is_exceeded()
        assert not any(os.get_inheritable(number) for number in numbers)
        for number in SHARED_SIGNALS:
            os.kill(os.getpid(), number)  # which does nothing
        [listener] = supervised.listeners(secure=False)
        assert listener.url == f"http://127.0.0.1:{listening.getsockname()[1]}"
        listener.close()
        supervised.close()
        supervisor.close()
