"""``ws.expire``: a connection ends at a time of the clock."""

import gc
import re
import time
from datetime import UTC, datetime, timedelta

import anyio
import pytest
import trio

from microws import App, WebSocketDisconnect, WebSocketRejected
from microws.hub import expiry, running_loop

pytestmark = pytest.mark.anyio


def make_app(*calls, accepts_first=False):
    """An app whose view calls ``ws.expire`` with each of ``calls``, which are functions of the time now."""
    app = App()
    app.state.ended = []

    @app.websocket_route("/", catch_disconnect=False)
    async def view(ws):
        if accepts_first:
            await ws.accept()
        for call in calls:
            at, options = call(time.time())
            ws.expire(at, **options)
        try:
            async with ws:
                await ws.send("open")
                async for message in ws:
                    if message == "never":
                        ws.expire(None)
                    elif message == "again":
                        ws.expire(time.time() + 0.05, code=4000)
                    await ws.send("done")
        except WebSocketDisconnect as error:
            app.state.ended.append((error.code, error.reason))
            raise

    return app


async def ending_of(ws):
    with anyio.fail_after(5), pytest.raises(WebSocketDisconnect) as caught:
        await ws.receive()
    return caught.value.code, caught.value.reason


@pytest.mark.parametrize(
    "at",
    [
        lambda now: now + 0.05,
        lambda now: datetime.now(UTC) + timedelta(seconds=0.05),
    ],
    ids=["seconds", "datetime"],
)
async def test_connection_ends_at_its_time(at):
    app = make_app(lambda now: (at(now), {"reason": "log in again"}))
    async with app.test_client() as client, client.websocket("/") as ws:
        assert await ws.receive() == "open"
        began = time.time()
        assert await ending_of(ws) == (4401, "log in again")
        assert time.time() - began < 2.5
    assert app.state.ended == [(4401, "log in again")]


async def test_connection_whose_time_has_passed_ends_at_once():
    app = make_app(lambda now: (now - 60, {"code": 4001}), accepts_first=True)
    async with app.test_client() as client, client.websocket("/") as ws:
        await ws.wait_closed()
        assert (ws.close_code, ws.close_reason) == (4001, "expired")


async def test_handshake_that_expires_is_rejected():
    app = App()

    @app.websocket_route("/")
    async def view(ws):
        ws.expire(time.time() + 0.02)
        while not ws.closed:
            await anyio.lowlevel.checkpoint()

    async with app.test_client() as client:
        with pytest.raises(WebSocketRejected) as caught:
            await client.websocket("/").__aenter__()
        assert caught.value.status == 403


async def test_time_is_prolonged_shortened_and_taken_back():
    app = make_app(lambda now: (now + 0.05, {}), lambda now: (now + 60, {}))
    async with app.test_client() as client, client.websocket("/") as ws:
        assert await ws.receive() == "open"
        with pytest.raises(TimeoutError):
            await ws.receive(timeout=0.2)
        await ws.send("never")
        assert await ws.receive() == "done"
        await ws.send("again")
        assert await ws.receive() == "done"
        assert await ending_of(ws) == (4000, "expired")


async def test_connections_share_one_timer_or_one_task():
    app = App()

    @app.websocket_route("/", value_type="json")
    async def view(ws):
        async with ws:
            before = await count_tasks()
            ws.expire(time.time() + 60)
            for _ in range(20):
                ws.expire(None)
                ws.expire(time.time() + 50)
            await ws.send(await count_tasks() - before)
            await ws.wait_closed()

    async def count_tasks():
        """Also asyncio's timers."""
        await anyio.wait_all_tasks_blocked()
        if running_loop():
            handles = [each for each in gc.get_objects() if type(each).__name__ == "TimerHandle"]
            return sum("Expiries._look" in repr(each) and not each.cancelled() for each in handles)
        return trio.lowlevel.current_statistics().tasks_living

    async with app.test_client() as client, client.websocket("/") as first:
        assert await first.receive() == 1
        async with client.websocket("/") as second:
            assert await second.receive() == 0


async def test_clock_that_is_set_forward_is_noticed(monkeypatch):
    monkeypatch.setattr(expiry, "_LOOK_INTERVAL", 0.02)
    app = make_app(lambda now: (now + 3600, {}))
    async with app.test_client() as client, client.websocket("/") as ws:
        assert await ws.receive() == "open"
        later = time.time() + 3601
        monkeypatch.setattr(expiry, "time", lambda: later)
        assert await ending_of(ws) == (4401, "expired")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((datetime(2030, 1, 1),), ValueError, "expected a datetime with a time zone"),
        (("2030-01-01",), TypeError, "expected Unix seconds or a datetime with a time zone, got str"),
        ((True,), TypeError, "got bool"),
        (
            (float("inf"),),
            ValueError,
            "expected Unix seconds, got inf; divide milliseconds by 1000; write None for never",
        ),
        ((1_764_560_000_000,), ValueError, "got 1764560000000; divide milliseconds by 1000"),
        ((-(10**400),), ValueError, "expected Unix seconds"),
        ((float("nan"),), ValueError, "got nan"),
        ((1, {"code": 999}), ValueError, "999"),
        ((1, {"reason": "x" * 124}), ValueError, "123"),
    ],
)
async def test_invalid_times_are_refused(arguments, error, text):
    app = App()
    refused = []

    @app.websocket_route("/")
    async def view(ws):
        at, options = arguments if len(arguments) == 2 else (*arguments, {})
        with pytest.raises(error, match=re.escape(text)):
            ws.expire(at, **options)
        refused.append(ws)
        async with ws:
            pass
        with pytest.raises(WebSocketDisconnect):
            ws.expire(time.time())

    async with app.test_client() as client, client.websocket("/"):
        pass
    assert refused


async def test_connection_that_ends_before_its_time_is_forgotten():
    app = make_app(lambda now: (now + 3600, {}))
    async with app.test_client() as client:
        for _ in range(3):
            async with client.websocket("/") as ws:
                assert await ws.receive() == "open"
        assert len(app.hub.open) == 0
        assert [each for each in gc.get_objects() if isinstance(each, expiry.Expiries) and each._entries] == []


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(expiry, "time", lambda: self.now)
        monkeypatch.setattr(expiry, "_LOOK_INTERVAL", 0.02)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_times_are_kept_in_order_with_one_timer(monkeypatch):
    clock, due = Clock(monkeypatch), []
    expiries = expiry.Expiries(due.append)
    for item in range(1000):
        expiries.set(item, 2000 + item % 10)
    for _ in range(50):
        for item in range(0, 1000, 2):
            expiries.set(item, 1500)
    assert len(expiries._entries) <= 2 * len(expiries) + 64
    timers = [each for each in gc.get_objects() if type(each).__name__ == "TimerHandle" and not each.cancelled()]
    assert sum("_look" in repr(each) for each in timers) == 1
    clock.now = 1500.5
    with anyio.fail_after(5):
        while len(due) < 500:
            await anyio.lowlevel.checkpoint()
    assert due == list(range(0, 1000, 2))
    for item in range(1, 1000, 2):
        expiries.remove(item)
        assert len(expiries._entries) <= 2 * len(expiries) + 64
    assert (len(expiries), expiries._entries, expiries._stop_timer) == (0, [], None)


async def test_failure_of_one_does_not_keep_the_others(monkeypatch, caplog):
    clock, due = Clock(monkeypatch), []

    def end(item):
        if item == 1:
            raise ZeroDivisionError
        due.append(item)

    expiries = expiry.Expiries(end)
    for item in range(3):
        expiries.set(item, 2000)
    clock.now = 2000
    with anyio.fail_after(5):
        while len(due) < 2:
            await anyio.lowlevel.checkpoint()
    assert due == [0, 2]
    assert caplog.messages == ["a connection could not be closed at its time"]
