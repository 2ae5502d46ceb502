"""How long a view may outlive its connection: one that noticed the end may clean up, any other is cancelled."""

import asyncio
import logging
from contextlib import suppress

import anyio
import pytest
import trio
import uvloop
from trio.testing import MockClock
from virtual_clock import VirtualClockLoop
from websocket_server import serving

from microws import App, WebSocketDisconnect

# Without uvloop's, where an hour would take one.
VIRTUAL = ["socket on asyncio", "ASGI on asyncio", "ASGI on trio"]
ALL = [*VIRTUAL, "socket on uvloop", "ASGI on uvloop"]
ON_ASYNCIO = [name for name in ALL if "trio" not in name]


class Life:
    """
    One connection, whose client leaves while the view is at work.

    Args:
        name: Of the transport and of the event loop.

    Attributes:
        second: A second: as long as one on virtual time, much shorter on uvloop.
    """

    def __init__(self, name):
        self._transport, _, self._loop = name.partition(" on ")
        self.second = 0.03 if self._loop == "uvloop" else 1

    def lead(self, view):
        """What became of ``view``: an async function of ``ws`` and of this."""
        if self._loop == "trio":
            return trio.run(self._lead, view, clock=MockClock(autojump_threshold=0))
        loops = {"asyncio": VirtualClockLoop, "uvloop": uvloop.new_event_loop}
        with asyncio.Runner(loop_factory=loops[self._loop]) as runner:
            return runner.run(self._lead(view))

    async def clean_up(self, seconds=8):
        await anyio.sleep(seconds * self.second)

    async def _lead(self, view):
        app = App(close_timeout=5 * self.second)
        result = []
        begun, ended = anyio.Event(), anyio.Event()

        @app.websocket_route("/{name}")
        async def watched(ws, name):
            begun.set()
            try:
                await view(ws, self)
                result.append("returned")
            except anyio.get_cancelled_exc_class():
                result.append("cancelled")
                raise
            finally:
                ended.set()

        if self._transport == "socket":
            async with serving(app, limit=5000) as served, await served.connect() as client:
                await client.open("/room")
                await begun.wait()
                await client.hang_up()
                await ended.wait()
        else:
            async with app.test_client(timeout=5000) as client, client.websocket("/room") as ws:
                await begun.wait()
                await ws.close()
        return result


async def read(ws):
    async for _ in ws:
        pass


async def gathered(ws, life):
    async with ws:
        await asyncio.gather(read(ws), asyncio.Event().wait())


async def in_a_task_group(ws, life):
    async with ws, asyncio.TaskGroup() as tasks:
        tasks.create_task(read(ws))
        tasks.create_task(asyncio.Event().wait())


async def waiting_for_the_first_of_two(ws, life):
    async with ws:
        receiving = asyncio.create_task(read(ws))
        await asyncio.wait([receiving, asyncio.create_task(asyncio.Event().wait())], return_when=asyncio.ALL_COMPLETED)


async def in_a_task_that_waits_for(ws, life):
    async with ws:
        await asyncio.gather(asyncio.wait_for(read(ws), 1000), asyncio.Event().wait())


async def in_a_group_of_anyio(ws, life):
    async with ws, anyio.create_task_group() as tasks:
        tasks.start_soon(read, ws)
        tasks.start_soon(anyio.sleep_forever)


async def in_start_soon(ws, life):
    async with ws:
        ws.start_soon(read, ws)
        await anyio.sleep_forever()


async def closed_by_another_task(ws, life):
    async with ws, anyio.create_task_group() as tasks:
        tasks.start_soon(ws.close, 4000)
        tasks.start_soon(anyio.sleep_forever)


@pytest.mark.parametrize("name", ON_ASYNCIO)
@pytest.mark.parametrize("view", [gathered, in_a_task_group, waiting_for_the_first_of_two, in_a_task_that_waits_for])
def test_an_end_seen_by_an_asyncio_task_does_not_count_for_the_view(view, name):
    assert Life(name).lead(view) == ["cancelled"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("view", [in_a_group_of_anyio, in_start_soon, closed_by_another_task])
def test_an_end_seen_by_another_task_does_not_count_for_the_view(view, name):
    assert Life(name).lead(view) == ["cancelled"]


async def waits_for_a_message(ws, life):
    async with ws:
        with pytest.raises(WebSocketDisconnect):
            await asyncio.wait_for(ws.receive(), 1000)
        await life.clean_up()


async def waits_for_a_coroutine_that_receives(ws, life):
    async def receive():
        return await asyncio.wait_for(ws.receive(), 1000)

    async with ws:
        with pytest.raises(WebSocketDisconnect):
            await asyncio.wait_for(receive(), 1000)
        await life.clean_up()


async def iterates_over_waits(ws, life):
    async def messages():
        while True:
            yield await asyncio.wait_for(ws.receive(), 1000)

    async with ws:
        with pytest.raises(WebSocketDisconnect):
            async for _ in messages():
                pass
        await life.clean_up()


@pytest.mark.parametrize("name", ON_ASYNCIO)
@pytest.mark.parametrize("view", [waits_for_a_message, waits_for_a_coroutine_that_receives, iterates_over_waits])
def test_a_view_notices_the_end_through_wait_for(view, name):
    assert Life(name).lead(view) == ["returned"]


async def iterates(ws, life):
    async with ws:
        await read(ws)
        await life.clean_up()


async def waits_until_it_is_closed(ws, life):
    async with ws:
        await ws.wait_closed()
        await life.clean_up()


async def receives_with_a_time_out(ws, life):
    async with ws:
        with pytest.raises(WebSocketDisconnect):
            await ws.receive(timeout=1000)
        await life.clean_up()


async def sends(ws, life):
    async with ws:
        with suppress(WebSocketDisconnect):
            while True:
                await ws.send("x")
                await anyio.sleep(life.second)
        await life.clean_up()


async def exits_its_block_by_an_error_of_a_task(ws, life):
    async with ws, anyio.create_task_group() as tasks:
        tasks.start_soon(ws.receive)
        tasks.start_soon(anyio.sleep_forever)
    await life.clean_up()


async def exits_its_block_after_a_task(ws, life):
    async with ws, anyio.create_task_group() as tasks:
        tasks.start_soon(read, ws)
    await life.clean_up()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "view",
    [
        iterates,
        waits_until_it_is_closed,
        receives_with_a_time_out,
        sends,
        exits_its_block_by_an_error_of_a_task,
        exits_its_block_after_a_task,
    ],
)
def test_a_view_that_notices_the_end_may_clean_up(view, name):
    assert Life(name).lead(view) == ["returned"]


@pytest.mark.parametrize("name", VIRTUAL)
class TestTheWarning:
    """A view that outlives its connection by a minute is logged."""

    def test_the_warning_names_the_view_the_path_and_the_time(self, name, caplog):
        async def view(ws, life):
            async with ws:
                await read(ws)
            await life.clean_up(1000)

        assert Life(name).lead(view) == ["returned"]
        (record,) = caplog.record_tuples
        assert record[:2] == ("microws.websocket", logging.WARNING)
        assert record[2].startswith(
            "'/room': the view Life._lead.<locals>.watched is still running 60 s after its connection ended; "
        )

    def test_a_view_that_suppresses_its_cancellation_is_logged(self, name, caplog):
        async def view(ws, life):
            async with ws:
                with anyio.CancelScope(shield=True):
                    try:
                        await anyio.sleep(100)
                    except asyncio.CancelledError:
                        await anyio.sleep(100)

        Life(name).lead(view)
        assert ["60 s after" in record.getMessage() for record in caplog.records] == [True]

    def test_a_view_that_runs_59_seconds_is_not_logged(self, name, caplog):
        async def view(ws, life):
            async with ws:
                await read(ws)
            await life.clean_up(59)

        assert Life(name).lead(view) == ["returned"]
        assert caplog.records == []

    def test_a_view_that_runs_on_after_its_own_close_is_logged(self, name, caplog):
        async def view(ws, life):
            async with ws:
                pass
            await life.clean_up(100)

        assert Life(name).lead(view) == ["returned"]
        assert len(caplog.records) == 1
