"""Several acceptors of one socket: each stands for a worker, here in one event loop."""

import asyncio
import errno
import os
import resource
import socket
import ssl
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest

from microws.server.acceptor import Acceptor, Share, make_shared_memory
from microws.server.listening import tls_context

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "anyio_backend",
        [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
        ids=["asyncio", "uvloop"],
    ),
]

TLS = Path(__file__).parent / "tls"


class Worker:
    """Sends its number to each client; ``accepted`` counts them."""

    def __init__(self, number, memory=None, **options):
        self.number = number
        self.accepted = 0
        self.open = set()
        self.share = None if memory is None else Share(memory, number)
        self.acceptor = Acceptor(self._make, share=self.share, count_open=lambda: len(self.open), **options)

    def _make(self):
        return _Greeting(self)


class _Greeting(asyncio.Protocol):
    def __init__(self, worker):
        self._worker = worker

    def connection_made(self, transport):
        self._transport = transport
        self._worker.accepted += 1
        self._worker.open.add(self)
        transport.write(bytes([self._worker.number]))

    def connection_lost(self, _):
        self._worker.open.discard(self)


@contextmanager
def shared_memory(places):
    memory = make_shared_memory(places)
    try:
        yield memory
    finally:
        os.close(memory)


@contextmanager
def listening(path=None):
    sock = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
    with sock:
        sock.bind(("127.0.0.1", 0) if path is None else str(path))
        sock.setblocking(False)
        sock.listen(1024)
        yield sock


@asynccontextmanager
async def accepting(sock, *workers):
    for worker in workers:
        await worker.acceptor.start([sock.dup()])
    try:
        with anyio.fail_after(20):
            yield
    finally:
        for worker in workers:
            worker.acceptor.close()


async def greeting(client):
    return (await asyncio.get_running_loop().sock_recv(client, 1))[0]


async def connect(sock, count):
    """So many clients that connect at once and are all greeted."""
    loop = asyncio.get_running_loop()
    clients = [socket.socket(sock.family) for _ in range(count)]
    for client in clients:
        client.setblocking(False)
    await asyncio.gather(*(loop.sock_connect(client, sock.getsockname()) for client in clients))
    await asyncio.gather(*map(greeting, clients))
    return clients


@pytest.mark.parametrize(
    ("batch", "is_unix", "keep"),
    [(1, False, False), (20, False, True), (100, False, False), (20, True, False), (100, True, True)],
)
async def test_each_worker_gets_its_share(batch, is_unix, keep, tmp_path):
    with shared_memory(6) as memory, listening(tmp_path / "app.sock" if is_unix else None) as sock:
        workers = [Worker(number, memory) for number in range(4)]
        clients = []
        async with accepting(sock, *workers):
            for _ in range(200 // batch):
                clients += await connect(sock, batch)
                if not keep:
                    while clients:
                        clients.pop().close()
        for client in clients:
            client.close()
    accepted = [worker.accepted for worker in workers]
    assert sum(accepted) == 200
    # Usually 1.1. If the event loop of this test is delayed, all pauses end together.
    assert max(accepted) <= 2.5 * min(accepted)


async def test_a_worker_that_starts_later_catches_up():
    with shared_memory(2) as memory, listening() as sock:
        old, new = Worker(0, memory), Worker(1, memory)
        async with accepting(sock, old):
            clients = await connect(sock, 50)
            assert old.accepted == 50
            async with accepting(sock, new):
                for _ in range(50):
                    clients += await connect(sock, 1)
        for client in clients:
            client.close()
    assert new.accepted >= 40


@pytest.mark.parametrize("batch", [1, 100])
async def test_the_others_accept_what_a_blocked_worker_leaves(batch):
    with shared_memory(2) as memory, listening() as sock:
        Share(memory, 1).write(0, 1.0)
        worker = Worker(0, memory)
        async with accepting(sock, worker):
            for _ in range(100 // batch):
                for client in await connect(sock, batch):
                    client.close()
    assert worker.accepted == 100


async def test_300_clients_connect_while_the_event_loop_is_blocked():
    with listening() as sock, ExitStack() as clients:
        async with accepting(sock, Worker(0)):
            for _ in range(300):
                client = clients.enter_context(socket.socket())
                client.settimeout(1)
                client.connect(sock.getsockname())


async def test_a_worker_that_has_ended_does_not_count():
    with shared_memory(3) as memory:
        shares = [Share(memory, place) for place in range(3)]
        for share, count in zip(shares, (100, 0, 0), strict=True):
            share.write(count, 1.0)
        assert [share.is_exceeded() for share in shares] == [True, False, False]
        shares[1].leave()
        shares[2].leave()
        assert not shares[0].is_exceeded()


@contextmanager
def no_files_left():
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_without_file_descriptors_a_client_waits():
    loop = asyncio.get_running_loop()
    reported = asyncio.Queue()
    loop.set_exception_handler(lambda _, context: reported.put_nowait(context))
    with shared_memory(2) as memory, listening() as sock, socket.socket() as client:
        worker = Worker(1, memory)
        async with accepting(sock, worker):
            client.setblocking(False)
            with no_files_left():
                await loop.sock_connect(client, sock.getsockname())
                context = await reported.get()
            assert context["message"] == "socket.accept() out of system resource"
            assert context["exception"].errno == errno.EMFILE
            assert await greeting(client) == 1
            assert reported.empty()


async def test_an_acceptor_closed_in_a_pause_stops_accepting():
    loop = asyncio.get_running_loop()
    with shared_memory(2) as memory, listening() as sock:
        Share(memory, 1).write(0, 1.0)
        worker = Worker(0, memory)
        await worker.acceptor.start([sock.dup()])
        clients = await connect(sock, 4)
        accepted = worker.accepted
        with socket.socket() as late:
            late.setblocking(False)
            await loop.sock_connect(late, sock.getsockname())
            worker.acceptor.close()
            worker.acceptor.close()
            await asyncio.sleep(0.05)  # longer than any pause
            assert worker.accepted == accepted
            assert not Share(memory, 1).is_exceeded()
        for client in clients:
            client.close()


@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "alone"])
async def test_a_failed_tls_handshake_is_not_logged(is_shared, caplog):
    loop = asyncio.get_running_loop()
    tls = tls_context(str(TLS / "localhost.pem"), str(TLS / "localhost.key"))
    with shared_memory(1) as memory, listening() as sock:
        worker = Worker(0, memory if is_shared else None, tls=tls)
        async with accepting(sock, worker):
            with socket.socket() as plain:
                plain.setblocking(False)
                await loop.sock_connect(plain, sock.getsockname())
                await loop.sock_sendall(plain, b"GET / HTTP/1.1\r\n\r\n")
                assert (await loop.sock_recv(plain, 1000)).startswith(b"HTTP/1.1 400 ")
            trusted = ssl.create_default_context(cafile=TLS / "localhost.pem")
            stream = await anyio.connect_tcp("localhost", sock.getsockname()[1], ssl_context=trusted)
            assert await stream.receive(1) == b"\0"
            await stream.aclose()
            while worker.open:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
    assert worker.accepted == 1
    assert not caplog.records
