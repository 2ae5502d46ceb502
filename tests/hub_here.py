"""A hub process as a thread, and apps that use it in place of the processes of `microws run --workers`."""

import socket
import threading
from contextlib import asynccontextmanager, contextmanager

import anyio

from microws.hub_url import OPEN_HUB
from microws.local.directory import HubDirectory, socket_path
from microws.local.hub_process import HubProcess
from microws.server.lifespan import LifespanRunner

HISTORY_BYTES = 1 << 20


@contextmanager
def hub_in_thread(path, *, history_bytes=HISTORY_BYTES):
    """A hub process at ``path``. At the end it disconnects its clients."""
    directory = HubDirectory(str(path), history_bytes)
    ours, theirs = socket.socketpair()
    process = HubProcess(directory.listener, directory.log(), theirs)
    thread = threading.Thread(target=process.run)
    thread.start()
    try:
        yield str(path)
    finally:
        ours.send(b"e")
        thread.join(10)
        assert not thread.is_alive()
        for client in process._clients.values():
            client.sock.close()
        ours.close()
        theirs.close()
        directory.close()


@asynccontextmanager
async def serving_from(path, app):
    """The lifespan of ``app``, in the place of a worker that uses the hub at ``path``."""
    lifespan = LifespanRunner(app)
    async with anyio.create_task_group() as tasks:
        token = OPEN_HUB.set(lambda *_: socket_path(path))
        tasks.start_soon(lifespan.run)
        OPEN_HUB.reset(token)
        assert await lifespan.startup(timeout=10)
        try:
            yield app
        finally:
            with anyio.CancelScope(shield=True):
                await lifespan.shutdown(timeout=10)
