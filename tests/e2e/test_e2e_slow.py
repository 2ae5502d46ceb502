"""Clients that do not read, on every server: they are closed, and harm nobody else."""

import json
import socket

import anyio
import pytest
from raw_websocket import RawWebSocket, reset
from servers import LIMIT
from wsproto.events import AcceptConnection

pytestmark = pytest.mark.anyio


async def stall(client, path):
    """A client that is accepted, and then reads nothing."""
    # A small window, so that little lies in the kernel.
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", client.server.port))
    stream = await anyio.abc.SocketStream.from_socket(sock)
    answer = await RawWebSocket(stream).handshake(path)
    assert isinstance(answer, AcceptConnection), answer
    return stream


async def test_a_view_that_sends_to_a_client_which_does_not_read_gets_1013(client):
    name = f"pours-{client.server.name}"
    async with await stall(client, f"/pours/{name}") as stream:
        if client.server.name == "microws-trio":
            # Hypercorn shields a send there: the server itself gives it up after 10 s, or when the client leaves.
            await reset(stream)
            assert (await client.note(name))["code"] in (1006, 1013)
        else:
            assert await client.note(name) == {"code": 1013}


async def test_a_subscriber_that_does_not_read_is_closed_with_1013_and_the_others_get_all(client):
    name = f"stalled-{client.server.name}"
    got = {number: [] for number in range(5)}

    async def listen(number):
        async with client.connect("/topics/news", compression=None) as ws:
            ready[number].set()
            async for message in ws:
                message = json.loads(message)
                if message == "the end":
                    return
                got[number].append(message["number"])

    ready = {number: anyio.Event() for number in got}
    async with await stall(client, f"/topics/news/as/{name}"), anyio.create_task_group() as tasks:
        for number in got:
            tasks.start_soon(listen, number)
        for event in ready.values():
            await event.wait()
        last = 0
        with anyio.fail_after(LIMIT):
            while (await client.statistics())["subscribers"] > len(got):
                await client.http.post("/burst/news", json=[last + 1, last + 50, 10_000])
                last += 50
        assert await client.note(name) == {"code": 1013, "reason": "too slow"}
        await client.http.post("/publish/news", json="the end")
    assert list(got.values()) == [list(range(1, last + 1))] * len(got)
