"""The directory of a hub, and the process that the supervisor keeps there."""

import errno
import fcntl
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hubs import HISTORY_BYTES, LIMIT, hub_process

from microws.local import directory as directory_module
from microws.local.directory import HubDirectory, HubDirectoryError, socket_path
from microws.local.wire import ANSWER, ASK, HELLO, LENGTH, PROTOCOL, PROTOCOL_OF, PUBLISH, Op, frame
from microws.server import hub_keeper
from microws.server.control import signal_socket

OTHER_HAS_IT = "for this server alone, but another one has it"


def connect(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(LIMIT)
    sock.connect(path)
    return sock


def receive(sock, size):
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data))
    return data


def hello(*, serves=True):
    return frame(HELLO, Op.HELLO, PROTOCOL, serves, 7, 0, 0) + frame(LENGTH, Op.BEGIN)


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def is_served(path):
    with connect(path) as sock:
        sock.send(hello())
        return len(sock.recv(64)) == 40


# The directory


@pytest.mark.parametrize("is_temporary", [False, True], ids=["with a log", "temporary"])
def test_a_second_server_takes_no_directory_from_the_first_one(tmp_path, is_temporary):
    with hub_process(tmp_path / "hub", is_temporary=is_temporary) as hub:
        files = sorted(Path(hub.directory.path).iterdir())
        with pytest.raises(HubDirectoryError, match=OTHER_HAS_IT):
            HubDirectory(hub.directory.path, HISTORY_BYTES)
        assert sorted(Path(hub.directory.path).iterdir()) == files
        assert is_served(hub.path)


def test_the_socket_of_a_killed_server_is_replaced(tmp_path):
    path = tmp_path / "hub"
    path.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(socket_path(str(path)))
    with hub_process(path) as hub:
        assert is_served(hub.path)


@pytest.mark.parametrize("is_temporary", [False, True], ids=["with a log", "temporary"])
def test_no_file_stays_open_and_no_temporary_directory_is_left_if_it_cannot_be_used(tmp_path, is_temporary):
    path = tmp_path / ("x" * 120)
    before = open_files()
    with pytest.raises(HubDirectoryError, match="choose a shorter local:PATH"):
        HubDirectory(str(path), HISTORY_BYTES, is_temporary=is_temporary)
    assert path.exists() != is_temporary
    assert open_files() == before


def test_a_directory_that_others_may_enter_is_refused(tmp_path):
    path = tmp_path / "hub"
    path.mkdir(mode=0o755)
    with pytest.raises(HubDirectoryError, match=r"closed to other users, got mode 755: chmod 700"):
        HubDirectory(str(path), HISTORY_BYTES)


def test_a_log_of_another_version_is_refused(tmp_path):
    path = tmp_path / "hub"
    path.mkdir(mode=0o700)
    (path / "log").write_bytes(b"microws0".ljust(4096, bytes(1)))
    with pytest.raises(HubDirectoryError, match="expected a log of this version of microws in"):
        HubDirectory(str(path), HISTORY_BYTES)


ON_A_FULL_DISK = """
import sys
from pathlib import Path
from microws.interfaces import Payload
from microws.local.directory import HubDirectory, HubDirectoryError

path = Path(sys.argv[1]) / "hub"
try:
    HubDirectory(str(path), 8 << 20)
except HubDirectoryError as error:
    print(error)
directory = HubDirectory(str(path), 64 << 10)
with Path(path.parent, "file").open("wb", buffering=0) as file:
    try:
        while file.write(bytes(1 << 16)):
            pass
    except OSError:
        print("full")
log = directory.log()
payload = Payload("bytes", bytes(1000), "t")
for number in range(200):
    log.append(b"t", payload, publisher=1, number=number)
    log.commit()
print(log.number_of(1))
directory.close()
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="mounts a small file system in a namespace of its own")
def test_a_full_disk_refuses_the_log_at_the_start_and_never_later(tmp_path):
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    in_namespace = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if subprocess.run([*in_namespace, mount], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("may not mount")
    program = f'{mount} && exec "$0" -c "$1" {tmp_path}'
    found = subprocess.run(
        [*in_namespace, program, sys.executable, ON_A_FULL_DISK],
        capture_output=True, text=True, timeout=6 * LIMIT, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert found.stdout.splitlines() == [
        f"cannot use {tmp_path}/hub for the hub: [Errno 28] No space left on device", "full", "199",
    ], found.stderr  # fmt: skip


def test_the_log_survives_its_process_where_the_system_does_not_name_its_run(tmp_path, monkeypatch):
    numbers = iter(range(1, 10))
    monkeypatch.setattr(directory_module, "boot_of_machine", lambda: next(numbers))
    directory = HubDirectory(str(tmp_path / "hub"), HISTORY_BYTES)
    try:
        first = directory.log()
        assert directory.log().id == first.id
    finally:
        directory.close()


def test_windows_imports_the_server():
    program = """
import asyncio, signal, sys, anyio
sys.modules["fcntl"] = sys.modules["termios"] = None
del signal.SIGHUP, signal.pthread_sigmask
sys.platform = "win32"
import microws.server.worker
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=6 * LIMIT)


# The process


@pytest.fixture
def hub(tmp_path):
    with hub_process(tmp_path / "hub", is_temporary=True) as hub:
        yield hub


def test_a_client_of_another_version_is_told_whatever_else_it_sends(hub):
    with connect(hub.path) as sock:
        sock.send(struct.pack("=IHH", 8, Op.HELLO, PROTOCOL + 1))
        assert PROTOCOL_OF.unpack_from(sock.recv(64))[0] == PROTOCOL
        assert sock.recv(64) == b""
    hub.check()
    assert hub.starts == 1


@pytest.mark.parametrize(
    "nonsense",
    [
        struct.pack("=IH", 2, Op.BEGIN),
        frame(LENGTH, Op.HELLO),
        frame(LENGTH, Op.READ),
        frame(LENGTH, Op.ASK),
        frame(LENGTH, Op.PUBLISH),
        PUBLISH.pack(PUBLISH.size, Op.PUBLISH, 0, 3, 60_000, 60_000, 1),
        frame(PUBLISH, Op.PUBLISH, 99, 0, 0, 0, 1),
        frame(PUBLISH, Op.PUBLISH, 0, 1, 0, 0, 1, tail=bytes(HISTORY_BYTES // 4)),
    ],
)
def test_a_client_that_sends_nonsense_is_dropped_alone(hub, nonsense):
    with connect(hub.path) as other, connect(hub.path) as client:
        other.send(hello())
        client.send(hello())
        assert (len(other.recv(64)), len(client.recv(64))) == (40, 40)
        client.sendall(nonsense)
        assert client.recv(64) == frame(LENGTH, Op.REFUSED)
        with suppress(ConnectionResetError):
            assert client.recv(64) == b""
        other.send(frame(LENGTH, Op.BEGIN))
        assert len(other.recv(64)) == 40
    hub.check()
    assert hub.starts == 1


def test_a_client_without_a_descriptor_waits_and_the_process_does_too(tmp_path):
    def run(process):
        resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
        process.run()

    with hub_process(tmp_path / "hub", is_temporary=True, run=run) as hub:
        socks = [connect(hub.path) for _ in range(12)]
        for sock in socks:
            sock.send(hello())
        assert len(socks[0].recv(64)) == 40
        socks[-1].settimeout(0.3)
        before = cpu_time(hub.pid)
        with pytest.raises(TimeoutError):
            socks[-1].recv(64)
        assert cpu_time(hub.pid) - before < 0.1
        for sock in socks[:-1]:
            sock.close()
        socks[-1].settimeout(LIMIT)
        assert len(socks[-1].recv(64)) == 40
        socks[-1].close()


def cpu_time(pid):
    """Seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_signal_to_the_group_reaches_the_supervisor_once(tmp_path, monkeypatch):
    become_child = hub_keeper.become_child

    def interrupted(**options):
        os.kill(os.getpid(), signal.SIGTERM)
        become_child(**options)

    monkeypatch.setattr(hub_keeper, "become_child", interrupted)
    with signal_socket([signal.SIGTERM]) as received:
        with hub_process(tmp_path / "hub", is_temporary=True) as hub:
            assert is_served(hub.path)
        with pytest.raises(BlockingIOError):
            received.recv(1)


def test_a_process_that_cannot_be_started_ends_the_keeper_in_order(hub, monkeypatch, caplog):
    def fail():
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    hub.end()
    monkeypatch.setattr(os, "fork", fail)
    hub.check()
    assert hub.keeper.has_failed
    assert "ended with -9, and no other one can be started: [Errno 11] Resource temporarily" in caplog.text
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("names", [hub_keeper._FILES, "/missing"], ids=["listed", "not listed"])
def test_the_process_keeps_no_file_of_the_supervisor(tmp_path, monkeypatch, names):
    monkeypatch.setattr(hub_keeper, "_FILES", names)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    null = os.open(os.devnull, os.O_RDONLY)
    files = [fcntl.fcntl(null, fcntl.F_DUPFD, number) for number in (null, 300, 4000)]
    try:
        with hub_process(tmp_path / "hub", is_temporary=True) as hub:
            assert is_served(hub.path)
            open_there = []
            for path in Path(f"/proc/{hub.pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # it was closed meanwhile
                    if int(path.name) > 2:
                        open_there.append(path.readlink())
            assert Path(os.devnull) not in open_there
            # The socket of a client that has just left may be among them.
            assert len(open_there) in (5, 6), open_there
    finally:
        for number in (null, *files):
            os.close(number)


def test_the_process_needs_no_stderr(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with hub_process(tmp_path / "hub", is_temporary=True) as hub:
        assert is_served(hub.path)


@pytest.mark.parametrize("serves", [False, True], ids=["another program", "a worker"])
def test_without_its_supervisor_the_process_ends_with_the_last_worker(hub, serves):
    with connect(hub.path) as program, connect(hub.path) as worker:
        program.send(hello(serves=False))
        worker.send(hello(serves=serves))
        assert (len(program.recv(64)), len(worker.recv(64))) == (40, 40)
        hub.keeper._control.close()
        if serves:
            program.send(frame(LENGTH, Op.BEGIN))
            assert len(program.recv(64)) == 40
            worker.close()
        assert program.recv(64) == b""
    assert not Path(hub.path).exists()


def test_a_worker_that_does_not_read_is_not_asked_until_it_does(hub):
    with connect(hub.path) as worker, connect(hub.path) as program:
        worker.send(hello())
        program.send(hello(serves=False))
        assert (len(worker.recv(64)), len(program.recv(64))) == (40, 40)

        def ask():
            program.sendall(frame(ASK, Op.ASK, 7, 1, tail=bytes(64 << 10)))
            answer = receive(program, ANSWER.size + 1)
            return ANSWER.unpack_from(answer)[3], answer[ANSWER.size :]

        questions = 0
        while (answer := ask()) == (1, b"0"):
            questions += 1
        assert answer == (0, b"1")
        # What the socket takes, and 256 KiB.
        assert 4 < questions < 200
        receive(worker, questions * (ASK.size + (64 << 10)))
        assert ask() == (1, b"0")
