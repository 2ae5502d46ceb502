"""The end of a connection on every server: who closes, who learns of it, and how soon."""

import time

import anyio
import pytest
from raw_websocket import connected, reset
from servers import LIMIT
from websockets.exceptions import ConnectionClosed
from wsproto.events import CloseConnection

pytestmark = pytest.mark.anyio


async def closing(ws):
    """The code and reason of the server's Close frame."""
    with anyio.fail_after(LIMIT), pytest.raises(ConnectionClosed) as closed:
        await ws.recv()
    return closed.value.rcvd.code, closed.value.rcvd.reason


@pytest.fixture
def name(request):
    """What a view may note something under, once."""
    return request.node.name.replace("[", "-").replace("]", "")


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, ""), (4001, "grüße")])
async def test_the_code_and_reason_of_the_client_arrive_where_the_server_passes_them_on(client, name, code, reason):
    async with client.connect(f"/receives/{name}") as ws:
        await ws.close(code, reason)
        # The server's answer.
        assert (ws.close_code, ws.close_reason) == (code, reason)
    expected = {"code": code, "reason": reason}
    if not client.server.program.knows_close:
        expected = {"code": 1006, "reason": ""}
    assert await client.note(name) == expected


async def test_a_client_that_closes_without_a_code_is_1005_or_1006(client, name):
    async with connected(client.server.port, f"/receives/{name}") as ws:
        await ws.stream.send(b"\x88\x80\0\0\0\0")
        assert await ws.closed(answer=False) in [(1005, None), (1005, ""), (None, None)]
    assert (await client.note(name))["code"] == (1005 if client.server.program.knows_close else 1006)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1008, "no"), (4999, "ü" * 61)])
async def test_the_code_and_reason_of_the_view_arrive(client, code, reason):
    async with client.connect("/close") as ws:
        await ws.send(f"{code} {reason}")
        assert await closing(ws) == (code, reason)


async def test_a_view_that_returns_closes_with_1000(client):
    async with client.connect("/returns") as ws:
        assert await closing(ws) == (1000, "")


async def test_an_http_exception_closes_with_3000_and_its_status(client):
    async with client.connect("/raise/403/later") as ws:
        assert await closing(ws) == (3403, "as you wish")


async def test_an_error_closes_with_1011_and_the_id_that_the_log_has(client):
    async with client.connect("/fail/later") as ws:
        await ws.send("go")
        code, reason = await closing(ws)
    assert code == 1011
    assert reason.startswith("internal error, error id ")
    client.server.wait_for_line(f"/fail/later: unexpected error, id {reason.rpartition(' ')[2]}")


async def test_a_view_that_only_sends_learns_at_once_that_the_client_is_gone(client, name):
    """Hypercorn's ``send`` says nothing."""
    async with connected(client.server.port, f"/ticks/{name}") as ws:
        await ws.stream.receive()
        await reset(ws.stream)
        began = time.monotonic()
    assert (await client.note(name))["code"] in (1005, 1006)
    assert time.monotonic() - began < 2


async def test_a_view_that_does_not_use_its_ws_again_is_cancelled(client, name):
    async with client.connect(f"/sleeps/{name}"):
        pass
    began = time.monotonic()
    assert await client.note(name) == {"closed": True}
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("leave", ["reset", "close"])
async def test_a_client_that_floods_a_view_which_has_returned_leaves_nothing_behind(client, leave):
    """Hypercorn's queue of 10 is full then, and its tasks would wait for each other."""
    async with connected(client.server.port, "/returns") as ws:
        with anyio.move_on_after(1):
            try:
                for _ in range(200):
                    await ws.stream.send(b"\x81\x81\0\0\0\0x" * 20)
            except anyio.BrokenResourceError:
                return
        if leave == "reset":
            await reset(ws.stream)
        else:
            await ws.send(CloseConnection(code=1000))
