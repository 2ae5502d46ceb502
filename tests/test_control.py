"""The worker's end of the control socket."""

import json
import os
import signal
import socket

import anyio
import pytest

from microws.server.acceptor import Share, make_shared_memory
from microws.server.control import SHARED_SIGNALS, ControlSocket, HubRequest, Ready, Stage, worker_variable

pytestmark = pytest.mark.anyio


@pytest.fixture
def ends():
    """The supervisor's end, and the worker's."""
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


async def follow(control):
    stages = []
    with anyio.fail_after(5):
        await control.follow_commands(stages.append)
    return stages


async def test_a_worker_follows_commands_until_the_supervisor_has_ended(ends):
    supervisor, worker = ends
    supervisor.send(b"123")
    supervisor.close()
    assert await follow(ControlSocket(worker, [])) == [Stage.DELAY, Stage.DRAIN, Stage.FORCED, Stage.DRAIN]


async def test_a_control_socket_that_is_reset_ends_the_commands(ends):
    supervisor, worker = ends
    worker.send(b"unread data makes the end a reset")
    supervisor.close()
    assert await follow(ControlSocket(worker, [])) == [Stage.DRAIN]


@pytest.mark.parametrize(("path", "directory"), [(None, "/temporary"), ("/run/chat", "/run/chat")])
async def test_all_apps_of_a_worker_have_one_hub(ends, path, directory):
    supervisor, worker = ends
    control = ControlSocket(worker, [], hub="/temporary")
    for asked in (path, None, directory):
        assert control.ask_for_hub(HubRequest(asked, 1 << 20)) == directory
    with pytest.raises(ValueError, match=f"expected one hub for all apps, got local:/other besides local:{directory}"):
        control.ask_for_hub(HubRequest("/other", 1 << 20))
    assert json.loads(supervisor.recv(4096)) == {"hub": [path, 1 << 20]}


async def test_heartbeats_and_limits_follow_ready(ends):
    supervisor, worker = ends
    control = ControlSocket(worker, [])
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(control.send_heartbeats, 0.01)
            control.send_limit(1)
            await anyio.sleep(0.05)
            control.send_ready(Ready("chat:app"))
            control.send_limit(12.5)
            lines = b""
            while not lines.endswith(b"\n\n"):
                await anyio.wait_readable(supervisor)
                lines += supervisor.recv(1000)
            tasks.cancel_scope.cancel()
    ready, limit, heartbeat = lines.split(b"\n")[:3]
    assert (json.loads(ready), limit, heartbeat) == ({"app": "chat:app"}, b"12.5", b"")


@pytest.mark.parametrize("has_ended", [False, True])
async def test_a_supervisor_that_does_not_read_blocks_no_worker(ends, has_ended):
    supervisor, worker = ends
    control = ControlSocket(worker, [])
    if has_ended:
        supervisor.close()
    control.send_ready(Ready("chat:app"))
    for _ in range(10_000):
        control.send_limit(1)


@pytest.mark.usefixtures("_handlers")
async def test_the_programs_of_a_worker_inherit_nothing_of_its_supervisor():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        supervisor, worker = socket.socketpair()
        share = Share(make_shared_memory(2), 0)
        other = Share(share.memory, 1)
        numbers = [worker.detach(), os.dup(listening.fileno())]
        for number in numbers:
            os.set_inheritable(number, True)
        environ = {"HOME": "/"} | worker_variable(numbers[0], numbers[1:], share, "/tmp")
        signal.pthread_sigmask(signal.SIG_BLOCK, SHARED_SIGNALS)
        supervisor.close()  # a supervisor that has ended counts
        control = ControlSocket.from_environment(environ)
        assert environ == {"HOME": "/"}
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(share.memory)
        control.share.write(0, 1.0)
        other.write(99, 1.0)
        assert other.is_exceeded()
        assert not any(os.get_inheritable(number) for number in numbers)
        for number in SHARED_SIGNALS:
            os.kill(os.getpid(), number)  # which does nothing
        assert await follow(control) == [Stage.DRAIN]
        [listener] = control.listeners(secure=False)
        assert listener.url == f"http://127.0.0.1:{listening.getsockname()[1]}"
        listener.close()
        control.close()


@pytest.mark.parametrize("value", ["1 {} 4", "1 {} 3,4 5 0", "1 999999 3 4 0", "nonsense", ""])
def test_a_process_that_inherited_only_the_variable_is_no_worker(value):
    with socket.socket() as other:
        environ = {"MICROWS_SUPERVISOR": value.format(other.fileno())}
        assert ControlSocket.from_environment(environ) is None
    assert environ == {}
