"""Clients that come and go in every way, on every server: what is left of them is nothing."""

import random
from contextlib import suppress

import anyio
import pytest
from raw_websocket import reset
from servers import PROGRAMS, UPGRADE, tcp, text_frame

pytestmark = pytest.mark.anyio

PATHS = [
    b"/echo/text", b"/slow-to-accept", b"/topics/leaks", b"/ticks/%d", b"/returns", b"/reject", b"/fail", b"/silent",
]  # fmt: skip


async def leave_at_random(server, number, dice):
    """Come as far as chance has it, and leave with a FIN or a RST."""
    path = dice.choice(PATHS)
    request = UPGRADE % (path % number if b"%" in path else path)
    async with tcp(server) as stream:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            # uvicorn's deprecated protocol keeps a task of its own for a client that did not wait for the answer.
            waits = server.name == "uvicorn-websockets"
            # Where a send fails, Hypercorn tells the app of the end before the messages that it has read already, and
            # waits for ever for one of ten to be taken (tcp_server.py:84, task_group.py:34).
            await _act(stream, request, dice, waits=waits, most=9 if server.name == "hypercorn" else 30)
        if dice.random() < 0.5:
            await reset(stream)


async def _act(stream, request, dice, *, waits, most):
    match dice.randrange(6):
        case 0:
            return
        case 1:
            await stream.send(request[: dice.randrange(1, len(request))])
        case 2 if not waits:
            await stream.send(request)
        case act:
            await stream.send(request)
            answer = await stream.receive()
            if b" 101 " not in answer:
                return
            if act == 3:
                await stream.send(text_frame("hello")[: dice.randrange(1, 11)])
            elif act == 4:
                await stream.send(text_frame("hello") * dice.randrange(1, most))
            elif dice.random() < 0.5:
                await stream.send(b"\x88\x82\0\0\0\0\x03\xe8")
                await stream.receive()


@pytest.mark.parametrize("server", [name for name in PROGRAMS if name != "microws-trio"], indirect=True)
async def test_200_clients_that_leave_at_random_points_leave_nothing_behind(client):
    """Hypercorn on trio keeps tasks of some, and ends all connections where it fails for one."""
    dice = random.Random(455)
    async with anyio.create_task_group() as tasks:
        for number in range(200):
            if number % 20 == 0:
                # Some leave while others come.
                await anyio.lowlevel.checkpoint()
            tasks.start_soon(leave_at_random, client.server, number, dice)
    await client.wait_until_at_rest()
