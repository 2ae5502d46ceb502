"""A worker in this process, and small apps for it."""

import logging
from contextlib import asynccontextmanager

import anyio
import pytest

from microws.server.control import Shutdown
from microws.server.listening import bind
from microws.server.settings import Settings
from microws.server.worker import serve

# For what our own server promises and Hypercorn, which serves on trio, does not.
on_own_server = pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "uvloop"],
)


async def lifespan(receive, send, on_startup=None, on_shutdown=None):
    await receive()
    if on_startup:
        await on_startup()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    if on_shutdown:
        await on_shutdown()
    await send({"type": "lifespan.shutdown.complete"})


async def respond(send, body=b"", status=200, headers=()):
    headers = [(b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(scope, receive, send):
    """Answers HTTP with the path, and a WebSocket with what it says."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "http":
        await respond(send, scope["path"].encode())
    else:
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": event["text"]})


async def fails_with_a_short_message(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "LookupError: no database"})


class Served:
    """A worker that serves."""

    def __init__(self, port, shutdown):
        self.port = port
        self.shutdown = shutdown
        self.exit_code = None
        self.ended = anyio.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(app, *, tls=None, limit=20, **options):
    settings = Settings(**({"port": 0} | options))
    listeners = bind(settings.addresses, secure=tls is not None)
    name = listeners[0].sock.getsockname()
    served = Served(name[1] if isinstance(name, tuple) else None, Shutdown())

    async def main(*, task_status):
        served.exit_code = await serve(
            app, settings, listeners=listeners, shutdown=served.shutdown, tls=tls, task_status=task_status
        )
        served.ended.set()

    try:
        with anyio.fail_after(limit):
            async with anyio.create_task_group() as tasks:
                await tasks.start(main)
                yield served
                if not served.shutdown.requested.is_set():
                    served.shutdown.request()
    finally:
        for listener in listeners:
            listener.close()


async def start_only(app, **options):
    """The exit code of a worker that does not come to serve."""
    settings = Settings(**({"port": 0} | options))
    listeners = bind(settings.addresses)
    try:
        with anyio.fail_after(10):
            return await serve(app, settings, listeners=listeners, shutdown=Shutdown())
    finally:
        for listener in listeners:
            listener.close()


@asynccontextmanager
async def requesting(served):
    """A client that has asked for ``/`` and does not read the answer."""
    async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        await stream.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        yield


async def read_to_the_end(stream):
    with anyio.fail_after(5):
        try:
            while True:
                await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return


def failures(caplog):
    return [record for record in caplog.records if record.levelno >= logging.WARNING]
