"""Clients that come and go in every way, on every server: what is left of them is nothing."""

import random
from contextlib import suppress

import anyio
import pytest
from raw_websocket import reset
from servers import UPGRADE, tcp, text_frame

pytestmark = pytest.mark.anyio

PATHS = [
    b"/echo/text",
    b"/slow-to-accept",
    b"/topics/leaks",
    b"/ticks/%d",
    b"/returns",
    b"/reject",
    b"/fail",
    b"/silent",
]


async def leave_at_random(server, number, dice):
    """Come as far as chance has it, and leave with a FIN or a RST."""
    path = dice.choice(PATHS)
    request = UPGRADE % (path % number if b"%" in path else path)
    async with tcp(server) as stream:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            # uvicorn's deprecated protocol keeps a task of its own for a client that did not wait for the answer.
            await _act(stream, request, dice, waits=server.name == "uvicorn-websockets")
        if dice.random() < 0.5:
            await reset(stream)


async def _act(stream, request, dice, *, waits):
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
                await stream.send(text_frame("hello") * dice.randrange(1, 30))
            elif dice.random() < 0.5:
                await stream.send(b"\x88\x82\0\0\0\0\x03\xe8")
                await stream.receive()


async def test_200_clients_that_leave_at_random_points_leave_nothing_behind(client):
    dice = random.Random(455)
    async with anyio.create_task_group() as tasks:
        for number in range(200):
            if number % 20 == 0:
                # Some leave while others come.
                await anyio.lowlevel.checkpoint()
            tasks.start_soon(leave_at_random, client.server, number, dice)
    await client.wait_until_at_rest()
