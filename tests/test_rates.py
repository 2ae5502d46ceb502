"""``websocket_route(rate=…)``: how many messages the view gets, and what happens to more, on every kind of server."""

import asyncio
from contextlib import asynccontextmanager

import anyio
import pytest
from asgi_client import DISCONNECT, ASGIClient, connected
from byte_client import PING, PONG, close_frame, frame
from hypothesis import given
from hypothesis import strategies as st
from virtual_clock import on_virtual_clock
from websocket_server import serving

from microws import App
from microws.connection.asgi import ASGIConnection
from microws.connection.socket import SocketConnection
from microws.rates import Bucket, parse_rate

MESSAGES = [f"{number}" for number in range(10_000)]


async def view(ws):
    """A view of a route with a limit."""


class Pass:
    """A middleware that does nothing, but is between the server and the app."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        async def send_on(event):
            await send(event)

        await self._app(scope, receive, send_on)


class Counting:
    """
    An app with a view that notes when it gets which message, at ``/``, and one without a limit at ``/echo``.

    Args:
        seconds: For which the view is busy after its first message, and after each other one.

    Attributes:
        got: Messages, with the seconds since the accept.
        ends: Of each view: whether it was cancelled, and the close code.
    """

    def __init__(self, rate, *, seconds=(0, 0), middleware=False, app=None, **options):
        self.app = App(**app or {})
        if middleware:
            self.app.add_middleware(Pass)
        self.got, self.ends, self.connections = [], [], []
        self._seconds = seconds
        self.app.websocket_route("/", rate=rate, **options)(self.count)
        self.app.websocket_route("/echo")(self.echo)

    async def count(self, ws):
        self.connections.append(ws._connection)
        was_cancelled = True
        try:
            async with ws:
                began = asyncio.get_running_loop().time()
                async for message in ws:
                    self.got.append((round(asyncio.get_running_loop().time() - began, 6), message))
                    await asyncio.sleep(self._seconds[len(self.got) > 1])
                was_cancelled = False
        finally:
            self.ends.append((was_cancelled, ws.close_code))

    @staticmethod
    async def echo(ws):
        async with ws:
            async for message in ws:
                await ws.send(message)

    @property
    def messages(self):
        return [message for _, message in self.got]


@asynccontextmanager
async def opened(counting, path="/"):
    """A connection to the app on the microws server."""
    async with serving(counting.app) as server, await server.connect() as client:
        await client.open(path)
        yield server, client


# The options


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"rate": "20"}, ValueError, "got '20'"),
        ({"rate": "0/s"}, ValueError, "got '0/s'"),
        ({"rate": "-1/s"}, ValueError, "got '-1/s'"),
        ({"rate": "1.5/s"}, ValueError, "got '1.5/s'"),
        ({"rate": "20/hour"}, ValueError, r'expected a whole number, "/", and s or min, such as "20/s" or "100/min"'),
        ({"rate": "20/s\n"}, ValueError, r"got '20/s\\n'"),
        ({"rate": "٢/s"}, ValueError, "got '٢/s'"),
        ({"rate": 20}, TypeError, r'such as "20/s" or "100/min", got 20'),
        ({"rate": "20/s", "rate_excess": "drop"}, ValueError, r"""rate_excess="wait" or "close", got 'drop'"""),
        ({"rate_excess": "close"}, ValueError, r"""rate_excess='close' needs a rate, such as rate="20/s\""""),
    ],
)
def test_an_invalid_limit_is_refused_at_registration(options, error, text):
    with pytest.raises(error, match=text):
        App().websocket_route("/", **options)(view)


def test_the_text_for_the_client_names_the_limit():
    rates = [("20/s", "over 20 messages a second"), ("1/min", "over 1 message a minute")]
    assert [parse_rate(text, "close").reason for text, _ in rates] == [reason for _, reason in rates]


# The bucket


@given(st.integers(1, 30), st.sampled_from([1, 60]), st.lists(st.floats(0, 3) | st.just(0.0), max_size=200))
def test_no_period_has_more_than_the_burst_and_what_came_back_in_it(burst, seconds, pauses):
    now, taken = 1000.0, []
    bucket = Bucket(parse_rate(f"{burst}/{'s' if seconds == 1 else 'min'}", "wait"), lambda: now)
    for pause in pauses:
        now += pause
        left = bucket.take()
        if left:
            assert 0 < left <= bucket.interval + 1e-9
            now += left
            assert bucket.take() == 0
        taken.append(now)
    for first, began in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst * (1 + (taken[last] - began) / seconds) + 1e-6


# More messages wait


def socket(counting):
    assert isinstance(counting.connections[0], SocketConnection)


def wrapped(counting):
    assert isinstance(counting.connections[0], ASGIConnection)


@pytest.mark.parametrize("kind", [socket, wrapped])
@on_virtual_clock
async def test_a_flood_waits_and_others_are_not_disturbed(kind):
    counting = Counting("20/s", middleware=kind is wrapped)
    async with opened(counting) as (server, client), await server.connect() as other:
        await other.open("/echo")
        flood = asyncio.ensure_future(client.send(*[frame(message.zfill(1000)) for message in MESSAGES]))
        await asyncio.sleep(0)
        for second in range(1, 4):
            before = asyncio.get_running_loop().time()
            await other.send(frame("hi"))
            assert (await other.read_frame()).payload == b"hi"
            assert asyncio.get_running_loop().time() == before
            await asyncio.sleep(1)
            # The clock is before or behind the last one.
            assert list(map(int, counting.messages)) == list(range(len(counting.got)))
            assert len(counting.got) in (20 * second + 19, 20 * second + 20)
        kind(counting)
        assert not client.server.is_reading()
        flood.cancel()
    assert [when for when, _ in counting.got[:20]] == [0] * 20
    assert [when for when, _ in counting.got[20:40]] == [pytest.approx(number / 20) for number in range(1, 21)]


@pytest.mark.parametrize("middleware", [False, True])
@on_virtual_clock
async def test_pings_are_answered_and_the_end_is_seen_while_messages_wait(middleware):
    counting = Counting("20/s", middleware=middleware)
    async with opened(counting) as (_, client):
        began = asyncio.get_running_loop().time()
        await client.send(*map(frame, MESSAGES[:60]), frame("are you there", PING))
        assert await client.read_frame() == (PONG, b"are you there", False)
        await client.send(close_frame(4000, "bye"))
        assert await client.read_close() == (4000, "bye")
        assert asyncio.get_running_loop().time() == began
        await asyncio.sleep(2.01)
    assert counting.messages == MESSAGES[:60]
    assert counting.ends == [(False, 4000)]


@pytest.mark.parametrize("middleware", [False, True])
@on_virtual_clock
async def test_a_view_gets_no_more_after_the_end_either_and_is_cancelled_in_time(middleware):
    counting = Counting("2/s", middleware=middleware)
    async with opened(counting) as (_, client):
        await client.send(*map(frame, MESSAGES[:60]), close_frame(1000))
        await asyncio.sleep(10)
    assert len(counting.got) in (11, 12)
    assert counting.ends == [(True, 1000)]


@on_virtual_clock
async def test_a_client_that_hangs_up_is_noticed_while_reading_pauses():
    counting = Counting("20/s")
    async with opened(counting) as (_, client):
        flood = asyncio.ensure_future(client.send(*[frame(message.zfill(1000)) for message in MESSAGES]))
        await asyncio.sleep(1)
        assert not client.server.is_reading()
        flood.cancel()
        await asyncio.sleep(0)
        await client.hang_up()
        await asyncio.sleep(0.051)
        assert counting.connections[0].close_code == 1006
        await asyncio.sleep(5)
    assert counting.ends == [(True, 1006)]


@on_virtual_clock
async def test_the_wait_counts_for_a_timeout_which_loses_no_message():
    counting = Counting("1/min")
    got = []

    @counting.app.websocket_route("/slow", rate="1/min")
    async def slow(ws):
        async with ws:
            for _ in range(4):
                try:
                    got.append(await ws.receive(timeout=25))
                except TimeoutError:
                    got.append(None)

    async with opened(counting, "/slow") as (_, client):
        await client.send(frame("one"), frame("two"))
        await asyncio.sleep(100)
    assert got == ["one", None, None, "two"]


@on_virtual_clock
async def test_on_any_asgi_server_a_view_that_sends_while_messages_wait_stays():
    """A view that sends and never receives is closed: it would never see the disconnect."""
    app = App(receive_queue=4)
    got = []

    @app.websocket_route("/", rate="1/min")
    async def chat(ws):
        async with ws:
            ws.start_soon(send_often, ws)
            while True:
                got.append(await ws.receive())

    async def send_often(ws):
        while True:
            await ws.send("x")
            await asyncio.sleep(1)

    client = ASGIClient()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(client.run(app))
        client.put(*MESSAGES[:50])
        await asyncio.sleep(150)
        assert got == MESSAGES[:3]
        assert client.taken <= 3 + 4 + 1 + 1
        assert "close" not in str(client.texts)
        running.cancel()


@pytest.mark.anyio
async def test_messages_wait_on_every_event_loop_also_those_of_a_login():
    app = App()

    async def check(ws, message):
        return message == "log in"

    @app.websocket_route("/", rate="40/s", login=check)
    async def echo(ws):
        async with ws:
            async for message in ws:
                await ws.send(message)

    async with app.test_client() as client, client.websocket("/") as ws:
        began = anyio.current_time()
        await ws.send("log in")
        for message in MESSAGES[:43]:
            await ws.send(message)
        assert [await ws.receive() for _ in range(43)] == MESSAGES[:43]
        # Of 44 messages 40 need not wait.
        assert anyio.current_time() - began >= 4 / 40 - 0.002


# More messages close


@on_virtual_clock
async def test_a_flood_is_closed_and_the_view_gets_what_came_before():
    counting = Counting("20/s", rate_excess="close")
    async with opened(counting) as (_, client):
        await client.send(*map(frame, MESSAGES[:20]))
        await asyncio.sleep(0.051)
        await client.send(frame("20"))
        await asyncio.sleep(0)
        await client.send(*map(frame, MESSAGES[21:1000]))
        assert await client.read_close() == (1008, "over 20 messages a second")
    assert counting.messages == MESSAGES[:21]
    assert counting.ends == [(False, 1008)]


@pytest.mark.anyio
@pytest.mark.parametrize("login", [False, True])
async def test_a_flood_is_closed_on_every_event_loop(login):
    app = App()

    @app.websocket_route("/", rate="3/min", rate_excess="close", login=(lambda ws, message: True) if login else None)
    async def echo(ws):
        async with ws:
            async for message in ws:
                await ws.send(message)

    async with app.test_client() as client, client.websocket("/") as ws:
        for message in MESSAGES[:3]:
            await ws.send(message)
        assert [await ws.receive() for _ in range(3 - login)] == MESSAGES[login:3]
        await ws.send("more")
        assert [message async for message in ws] == []
        assert (ws.close_code, ws.close_reason) == (1008, "over 3 messages a minute")


SLOW = pytest.mark.parametrize("seconds", [(0.25, 0.25), (8, 0)])


@SLOW
@pytest.mark.parametrize("middleware", [False, True])
@on_virtual_clock
async def test_a_client_within_the_limit_stays_while_the_view_is_slow(middleware, seconds):
    """Reading pauses while the view does not keep up. Then many messages arrive at once, which were sent in time."""
    counting = Counting("20/s", seconds=seconds, rate_excess="close", middleware=middleware, app={"receive_queue": 8})
    async with opened(counting) as (_, client):
        for message in MESSAGES[:100]:
            await client.send(frame(message))
            await asyncio.sleep(1 / 15)
        await asyncio.sleep(100 * 0.25)
        assert counting.messages == MESSAGES[:100]
        if not middleware:  # behind which reading is always as slow as the view
            await asyncio.sleep(60)
            await client.send(*map(frame, MESSAGES[:400]))
            assert await client.read_close() == (1008, "over 20 messages a second")


@SLOW
@on_virtual_clock
async def test_on_any_asgi_server_a_client_within_the_limit_stays_while_the_view_is_slow(seconds):
    counting = Counting("20/s", seconds=seconds, rate_excess="close", app={"receive_queue": 8})
    async with connected(counting.app, ASGIClient()) as client:
        for message in MESSAGES[:100]:
            client.put(message)
            await asyncio.sleep(1 / 15)
        await asyncio.sleep(100 * 0.25)
        assert counting.messages == MESSAGES[:100]
        client.put(DISCONNECT)
        await client.wait_ended()
    assert counting.ends == [(False, 1001)]
