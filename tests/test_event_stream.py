"""Topics as event streams: framed once for all clients, in bounded queues, without a silent loss."""

import asyncio
import gc
import random
import re
import socket
import ssl
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint
from test_streams import OPENING, Server
from websocket_server import ASYNCIO_BACKENDS
from worker_here import serving

from microws import App, EventStream, ServerSentEvent
from microws.hub import Outbox
from microws.server.listening import tls_context

pytestmark = pytest.mark.anyio

TLS = Path(__file__).parent / "tls"
TRUSTING = ssl._create_unverified_context()
GAP = b'event: gap\ndata: {"topic":"t","gap":true}\n\n'
KEEPALIVE = b": keepalive\n\n"


class Client(Server):
    """A client of a response over ASGI. After ``hold``, ``send`` waits until ``go_on``."""

    def __init__(self, *, method="GET"):
        super().__init__(method=method)
        self.ended = False
        self.failure = None
        self._held = None

    async def send(self, event):
        if self.failure is not None:
            raise self.failure
        await super().send(event)
        if self._held is not None:
            await self._held.wait()

    def hold(self):
        self._held = anyio.Event()

    def go_on(self):
        self._held.set()
        self._held = None

    @property
    def bodies(self):
        """The bodies after the opening comment."""
        return [event["body"] for event in self.events[2:]]

    async def run(self, response):
        try:
            await super().run(response)
        finally:
            self.ended = True


@pytest.fixture
async def app():
    app = App()
    with anyio.fail_after(10):
        async with app.running():
            yield app


@pytest.fixture
async def tasks():
    async with anyio.create_task_group() as tasks:
        yield tasks


def outboxes():
    return sum(isinstance(each, Outbox) for each in gc.get_objects())


@pytest.fixture
def no_garbage():
    """Check that no outbox is left to the garbage collector."""
    gc.collect()
    gc.disable()
    before = outboxes()
    yield
    try:
        assert outboxes() == before
    finally:
        gc.enable()


async def connect(tasks, response):
    client = Client()
    tasks.start_soon(client.run, response)
    await client.wait_for(OPENING)
    await anyio.wait_all_tasks_blocked()
    return client


async def leave(app, *clients):
    for client in clients:
        client.leaves.set()
    await anyio.wait_all_tasks_blocked()
    assert all(client.ended for client in clients)
    assert app.hub.statistics().topics == 0


class TestEvents:
    async def test_an_event_is_what_server_sent_event_makes_of_the_message(self, app, tasks):
        client = await connect(tasks, EventStream(app.stream("t", event="news")))
        for value, data in (("one\r\ntwo\r", "one\ntwo\n"), ({"a": 1}, '{"a":1}'), (b"\xff", "/w=="), ("", "")):
            await app.publish("t", value)
            await client.wait_for(ServerSentEvent(data, event="news").encoded)
        await leave(app, client)
        assert not client.complete

    async def test_events_of_one_turn_are_sent_together(self, app, tasks):
        clients = [await connect(tasks, EventStream(app.stream("t", f"t{n}"))) for n in range(3)]
        for number in range(5):
            await app.publish("t", number)
        for client in clients:
            await client.wait_for(b"data: 4\n\n")
        assert [b"".join(client.bodies) for client in clients] == [b"".join(b"data: %d\n\n" % n for n in range(5))] * 3
        await app.publish("t1", "own")
        await clients[1].wait_for(b"own")
        await leave(app, *clients)

    @pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
    async def test_on_asyncio_all_clients_share_the_same_bytes(self, app, tasks):
        clients = [await connect(tasks, EventStream(app.stream("t", f"t{n}"))) for n in range(3)]
        for number in range(5):
            await app.publish("t", number)
        for client in clients:
            await client.wait_for(b"data: 4\n\n")
        assert [len(client.bodies) for client in clients] == [1] * 3
        assert clients[0].bodies[0] is clients[1].bodies[0] is clients[2].bodies[0]
        await leave(app, *clients)

    async def test_each_topic_has_its_own_type(self, app, tasks):
        client = await connect(tasks, EventStream(app.stream("t", "u", event={"t": "a"}.get)))
        await app.publish("t", 1)
        await app.publish("u", 2)
        await client.wait_for(b"event: a\ndata: 1\n\ndata: 2\n\n")
        await leave(app, client)

    async def test_events_larger_than_a_write_keep_their_order(self, app, tasks):
        client = await connect(tasks, EventStream(app.stream("t")))
        sent = deque()
        for number in range(20):
            sent.append(str(number) * 20_000)
            await app.publish("t", sent[-1])
        for text in sent:
            await client.wait_for(text.encode())
        assert b"".join(client.bodies) == b"".join(b"data: %b\n\n" % text.encode() for text in sent)
        await leave(app, client)

    async def test_one_stream_serves_any_number_of_responses(self, app, tasks):
        stream = app.stream("t")
        clients = [await connect(tasks, EventStream(stream)) for _ in range(2)]
        assert (await app.publish("t", 1)).subscribers == 2
        for client in clients:
            await client.wait_for(b"data: 1\n\n")
        await leave(app, *clients)

    async def test_what_is_published_during_the_head_is_sent_after_it(self, app, tasks):
        client = Client()
        client.hold()
        tasks.start_soon(client.run, EventStream(app.stream("t")))
        await anyio.wait_all_tasks_blocked()
        await app.publish("t", 1)
        client.go_on()
        await client.wait_for(OPENING + b"data: 1\n\n")
        await leave(app, client)

    async def test_a_head_request_subscribes_nothing(self, app):
        client = Client(method="HEAD")
        await client.run(EventStream(app.stream("t")))
        assert [event["type"] for event in client.events] == ["http.response.start", "http.response.body"]
        assert app.hub.statistics().topics == 0


class TestSlowClients:
    """While ``send`` waits for a client that does not read, the topic's policy rules what is published."""

    async def publish_to_a_stalled_client(self, app, tasks, *, overflow):
        app.topic("t", queue=3, overflow=overflow)
        client = await connect(tasks, EventStream(app.stream("t")))
        client.hold()
        await app.publish("t", "first")
        await client.wait_for(b"first")
        for number in range(6):
            await app.publish("t", number)
        client.go_on()
        return client

    async def test_close_ends_the_response_so_that_the_browser_reconnects(self, app, tasks):
        client = await self.publish_to_a_stalled_client(app, tasks, overflow="close")
        await anyio.wait_all_tasks_blocked()
        assert client.ended
        assert client.complete
        assert b"data: 5" not in b"".join(client.bodies)
        assert app.hub.statistics().topics == 0
        assert app.hub.statistics().dropped == {"close": 1}

    @pytest.mark.parametrize(
        ("overflow", "expected"),
        [
            ("drop_oldest", [GAP, b"data: 3\n\n", b"data: 4\n\n", b"data: 5\n\n", b"data: last\n\n"]),
            ("drop_newest", [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n", GAP, b"data: last\n\n"]),
            ("latest", [b"data: 5\n\n", b"data: last\n\n"]),
        ],
    )
    async def test_a_policy_that_drops_sends_a_gap_event_and_goes_on(self, app, tasks, overflow, expected):
        client = await self.publish_to_a_stalled_client(app, tasks, overflow=overflow)
        await anyio.wait_all_tasks_blocked()
        await app.publish("t", "last")
        await client.wait_for(b"last")
        assert b"".join(client.bodies[1:]) == b"".join(expected)
        await app.publish("t", "behind")
        await client.wait_for(b"behind")
        await leave(app, client)

    async def test_a_burst_in_one_turn_closes_no_client_that_reads(self, app, tasks):
        app.topic("t", queue=2)
        client = await connect(tasks, EventStream(app.stream("t")))
        for number in range(50):
            await app.publish("t", number)
        await client.wait_for(b"data: 49\n\n")
        assert b"".join(client.bodies) == b"".join(b"data: %d\n\n" % n for n in range(50))
        await leave(app, client)


class TestRetry:
    @pytest.mark.parametrize("is_topic", [True, False])
    async def test_the_stream_begins_with_the_time_until_a_browser_reconnects(self, app, tasks, is_topic):
        client = await connect(tasks, EventStream(app.stream("t") if is_topic else ["x"], retry=1500))
        if is_topic:
            await app.publish("t", "x")
        await client.wait_for(b"data: x\n\n")
        assert client.events[1]["body"] == b":\nretry: 1500\n\n"
        if is_topic:
            await leave(app, client)

    def test_a_negative_time_is_refused(self):
        with pytest.raises(ValueError, match="expected retry to be a number of milliseconds, 0 or more, got -1"):
            EventStream([], retry=-1)


class TestSilence:
    async def test_silence_is_broken_by_comments(self, app, tasks):
        client = await connect(tasks, EventStream(app.stream("t"), keepalive=0.01))
        await client.wait_for(KEEPALIVE * 2)
        await app.publish("t", 1)
        await client.wait_for(b"data: 1\n\n" + KEEPALIVE)
        await leave(app, client)

    async def test_streams_with_different_keepalives_are_independent(self, app, tasks):
        often = await connect(tasks, EventStream(app.stream("t"), keepalive=0.01))
        seldom = await connect(tasks, EventStream(app.stream("t"), keepalive=100))
        await often.wait_for(KEEPALIVE * 3)
        assert seldom.bodies == []
        await leave(app, often, seldom)


class TestTheEnd:
    @pytest.mark.usefixtures("no_garbage")
    async def test_an_ended_stream_leaves_no_garbage(self, app):
        async with anyio.create_task_group() as tasks:
            client = await connect(tasks, EventStream(app.stream("t")))
            await app.publish("t", 1)
            await client.wait_for(b"data: 1\n\n")
            await leave(app, client)

    async def test_an_oserror_of_send_ends_the_stream_quietly(self, app, tasks):
        client = await connect(tasks, EventStream(app.stream("t")))
        client.failure = BrokenPipeError()
        await app.publish("t", 1)
        await anyio.wait_all_tasks_blocked()
        await leave(app, client)

    async def test_any_other_error_of_send_is_raised(self, app):
        client = Client()

        async def run():
            with pytest.raises(LookupError, match="broken"):
                await client.run(EventStream(app.stream("t")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await client.wait_for(OPENING)
            client.failure = LookupError("broken")
            await app.publish("t", 1)
        assert app.hub.statistics().topics == 0

    async def test_a_failed_head_unsubscribes(self, app):
        client = Client()
        client.failure = BrokenPipeError()
        with pytest.raises(BrokenPipeError):
            await client.run(EventStream(app.stream("t")))
        assert app.hub.statistics().topics == 0

    @pytest.mark.parametrize("held", [False, True])
    async def test_a_cancelled_stream_unsubscribes(self, app, held):
        async with anyio.create_task_group() as tasks:
            client = await connect(tasks, EventStream(app.stream("t")))
            if held:
                client.hold()
            await app.publish("t", 1)
            await client.wait_for(b"data: 1\n\n")
            tasks.cancel_scope.cancel()
            await app.publish("t", 2)
        assert not client.complete
        assert app.hub.statistics().topics == 0

    async def test_an_app_that_does_not_run_is_refused_before_the_head(self):
        client = Client()
        with pytest.raises(RuntimeError, match="expected a running app"):
            await client.run(EventStream(App().stream("t")))
        assert client.events == []
        await checkpoint()


class Browser:
    """A client of a real server, which reads the response as it is on the wire."""

    def __init__(self, stream):
        self.stream = stream
        self.data = b""

    async def read_until(self, end):
        while end not in self.data:
            self.data += await self.stream.receive()

    async def read_to_the_end(self):
        async for data in self.stream:
            self.data += data
        return self.body

    @property
    def body(self):
        """The body so far, without the framing of its chunks; after the last chunk it ends with ``b"<end>"``."""
        head, _, rest = self.data.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" not in head.lower():
            return rest
        body = b""
        while b"\r\n" in rest:
            size, _, rest = rest.partition(b"\r\n")
            size = int(size, 16)
            if not size:
                assert rest == b"\r\n"
                return body + b"<end>"
            if len(rest) < size + 2:
                break
            assert rest[size : size + 2] == b"\r\n"
            body, rest = body + rest[:size], rest[size + 2 :]
        return body


@asynccontextmanager
async def browsing(served, *, request=b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", opening=OPENING, secure=False):
    options = {"tls": True, "ssl_context": TRUSTING, "tls_standard_compatible": False} if secure else {}
    async with await anyio.connect_tcp("127.0.0.1", served.port, **options) as stream:
        browser = Browser(stream)
        await stream.send(request)
        await browser.read_until(opening)
        yield browser


def event_app(**options):
    app = App(**options)
    app.add_route(lambda: EventStream(app.stream("t"), keepalive=100), "/")
    return app


async def wait_until(condition):
    while not condition():
        await checkpoint()


def can_connect(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


async def wait_left(app):
    await wait_until(lambda: not app.hub.statistics().topics)


async def fill(app, browser):
    """Publish until the client, which does not read, takes no more. Returns the numbers that were published."""
    number = 0
    while not app.hub.statistics().queued:
        await app.publish("t", f"{number:07}" + "x" * 10_000)
        number += 1
        await checkpoint()
    return number


@pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
class TestOnTheOwnServer:
    """The outbox writes to the connection, as for a WebSocket, without a task or an object for each message."""

    async def test_each_event_is_a_chunk(self):
        app = event_app()
        async with serving(app) as served, browsing(served) as browser:
            for value in ("text", {"a": 1}, "two\nlines"):
                await app.publish("t", value)
            await browser.read_until(b"lines\n\n\r\n")
            head, _, body = browser.data.partition(b"\r\n\r\n")
            assert b"content-type: text/event-stream\r\n" in head
            chunks = [b"2\r\n:\n\r\n", b"c\r\ndata: text\n\n\r\n", b'f\r\ndata: {"a":1}\n\n\r\n']
            assert body == b"".join([*chunks, b"17\r\ndata: two\ndata: lines\n\n\r\n"])

    async def test_http_1_0_has_no_chunks(self):
        app = event_app()
        async with serving(app) as served, browsing(served, request=b"GET / HTTP/1.0\r\n\r\n") as browser:
            async with browsing(served) as other:
                await app.publish("t", "text")
                await other.read_until(b"text\n\n")
            await browser.read_until(b"text\n\n")
            assert b"chunked" not in browser.data
            assert browser.body == OPENING + b"data: text\n\n"

    async def test_many_clients_get_the_same_events_with_one_task_each(self):
        app = event_app()
        async with serving(app) as served, AsyncExitStack() as stack:
            tasks = len(asyncio.all_tasks())
            browsers = [await stack.enter_async_context(browsing(served)) for _ in range(20)]
            assert len(asyncio.all_tasks()) == tasks + 20
            for number in range(100):
                await app.publish("t", number)
            for browser in browsers:
                await browser.read_until(b"data: 99\n\n\r\n")
                assert browser.body == OPENING + b"".join(b"data: %d\n\n" % number for number in range(100))
            assert app.hub.statistics().flush_sizes == {"128": 20}

    async def test_a_client_that_disconnects_is_unsubscribed(self):
        app = event_app()
        async with serving(app) as served:
            async with browsing(served):
                pass
            await wait_left(app)
            async with browsing(served) as browser:
                # A browser's closed tab looks the same.
                await browser.stream.send_eof()
                await wait_left(app)

    @pytest.mark.usefixtures("no_garbage")
    async def test_clients_that_leave_or_are_dropped_leave_no_garbage(self):
        app = event_app()
        app.topic("t", queue=2)
        async with serving(app) as served:
            for _ in range(3):
                async with browsing(served) as browser:
                    await app.publish("t", 1)
                    await browser.read_until(b"data: 1\n\n")
                await wait_left(app)
            async with browsing(served) as browser:
                while app.hub.statistics().topics:
                    await app.publish("t", "x" * 10_000)
                await browser.read_to_the_end()

    async def test_a_drain_ends_the_stream_after_what_was_published(self):
        app = event_app()
        async with serving(app) as served, browsing(served) as browser:
            await app.publish("t", "last")
            served.shutdown.request()
            assert await browser.read_to_the_end() == OPENING + b"data: last\n\n<end>"

    async def test_a_stream_that_begins_during_a_drain_ends_at_once(self):
        app = App()
        goes_on = anyio.Event()

        @app.get("/")
        async def view():
            await goes_on.wait()
            return EventStream(app.stream("t"))

        async with serving(app) as served, await anyio.connect_tcp("127.0.0.1", served.port) as stream:
            await stream.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await wait_until(lambda: goes_on.statistics().tasks_waiting)
            served.shutdown.request()
            # The server has stopped listening.
            await wait_until(lambda: not can_connect(served.port))
            goes_on.set()
            browser = Browser(stream)
            assert await browser.read_to_the_end() == b""
            assert b"HTTP/1.1 200 OK\r\n" in browser.data
            assert app.hub.statistics().topics == 0

    async def test_overflow_close_ends_the_response_and_the_connection(self):
        app = event_app()
        app.topic("t", queue=2)
        async with serving(app) as served, browsing(served) as browser:
            published = await fill(app, browser)
            while app.hub.statistics().topics:
                await app.publish("t", f"{published:07}" + "x" * 10_000)
            body = await browser.read_to_the_end()
            events = body.removeprefix(OPENING).split(b"\n\n")
            assert events.pop() == b"<end>"
            assert [event[:13] for event in events] == [b"data: %07d" % number for number in range(len(events))]
            assert len(events) <= published
            assert app.hub.statistics().dropped == {"close": 1}

    @pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
    async def test_a_policy_that_drops_sends_one_gap_event_and_goes_on(self, overflow):
        app = event_app()
        app.topic("t", queue=2, overflow=overflow)
        async with serving(app) as served, browsing(served) as browser:
            published = await fill(app, browser)
            while app.hub.statistics().dropped.get(overflow, 0) < 3:
                await app.publish("t", f"{published:07}" + "x" * 10_000)
                published += 1
            await browser.read_until(b"data: %07d" % (published - 6))
            await wait_until(lambda: not app.hub.statistics().queued)
            for _ in range(2):
                await app.publish("t", "behind")
            await browser.read_until(b"behind")
            parts = browser.body.removeprefix(OPENING).split(b"\n\n")
            gap = parts.index(GAP.rstrip())
            numbers = [int(part[6:13]) for part in parts[:gap] if part.startswith(b"data: 0")]
            assert numbers == list(range(len(numbers)))
            assert GAP.rstrip() not in parts[gap + 1 :]

    @pytest.mark.parametrize("history", [0, 10])
    async def test_a_loss_is_an_event_that_a_page_sees(self, history):
        app = event_app()
        app.topic("t", history=history)
        async with serving(app) as served, browsing(served) as browser:
            await app.publish("t", "before")
            app.hub.lose()
            await app.publish("t", "behind")
            await browser.read_until(b"behind")
            before, gap, _ = browser.body.removeprefix(OPENING).split(b"\n\n")[-4:-1]
            assert before.endswith(b"data: before")
            assert gap == GAP.rstrip()

    async def test_cors_and_hooks_keep_the_direct_way(self):
        app = event_app(origins=["https://a.example"])
        calls = []

        @app.after_request
        async def mark(request, response):
            request.on_close(calls.append, "closed")
            response.headers["x-marked"] = "yes"

        request = b"GET / HTTP/1.1\r\nhost: x\r\norigin: https://a.example\r\n\r\n"
        async with serving(app) as served:
            tasks = len(asyncio.all_tasks())
            async with browsing(served, request=request) as browser:
                assert len(asyncio.all_tasks()) == tasks + 1
                await app.publish("t", 1)
                await browser.read_until(b"data: 1\n\n")
                assert b"x-marked: yes\r\n" in browser.data
                assert b"access-control-allow-origin: https://a.example\r\n" in browser.data
            await wait_until(lambda: calls)
        assert calls == ["closed"]

    async def test_a_mounted_app_has_the_direct_way(self):
        app, inner = App(), event_app()
        app.mount("/inner", inner)
        async with serving(app) as served:
            tasks = len(asyncio.all_tasks())
            async with browsing(served, request=b"GET /inner/ HTTP/1.1\r\nhost: x\r\n\r\n") as browser:
                assert len(asyncio.all_tasks()) == tasks + 1
                await inner.publish("t", 1)
                await browser.read_until(b"data: 1\n\n")
            await wait_left(inner)

    async def test_middleware_that_wraps_send_sees_every_event(self):
        app = event_app()
        seen = []

        def middleware(asgi):
            async def wrapped(scope, receive, send):
                async def send_and_note(event):
                    seen.append(event.get("body"))
                    await send(event)

                await asgi(scope, receive, send_and_note if scope["type"] == "http" else send)

            return wrapped

        app.add_middleware(middleware)
        async with serving(app) as served, browsing(served) as browser:
            await app.publish("t", 1)
            await browser.read_until(b"data: 1\n\n")
            assert seen == [None, OPENING, b"data: 1\n\n"]

    async def test_a_request_with_a_pending_body_gets_events(self):
        app = App()
        app.add_route(lambda: EventStream(app.stream("t")), "/", methods=["POST"])
        request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n"
        async with serving(app) as served:
            async with browsing(served, request=request) as browser:
                await app.publish("t", 1)
                await browser.read_until(b"data: 1\n\n")
                await browser.stream.send(b"x" * 200_000)
                await app.publish("t", 2)
                await browser.read_until(b"data: 2\n\n")
            await wait_left(app)

    @pytest.mark.parametrize("secure", [False, True])
    async def test_clients_that_come_and_go_get_whole_events_in_order(self, secure):
        app = App()
        app.topic("closes", queue=8)
        app.topic("drops", queue=4, overflow="drop_oldest")
        app.add_route(lambda: EventStream(app.stream("closes", "drops", event=str), keepalive=0.02), "/")
        dice = random.Random(7)

        async def publish(*, task_status):
            with anyio.CancelScope() as scope:
                task_status.started(scope)
                for number in count():
                    await app.publish(dice.choice(["closes", "drops"]), f"{number} " + "x" * dice.randrange(30_000))
                    if number % 16 == 0:
                        await checkpoint()

        async def come_and_go():
            version = dice.choice([b"1.0", b"1.1"])
            async with browsing(
                served, request=b"GET / HTTP/%b\r\nhost: x\r\n\r\n" % version, secure=secure
            ) as browser:
                for _ in range(dice.randrange(20)):
                    with suppress(anyio.EndOfStream):
                        browser.data += await browser.stream.receive()
            last = {}
            events = browser.body.removesuffix(b"<end>").removeprefix(OPENING).split(b"\n\n")
            for event in events[:-1]:
                if event != b": keepalive" and not event.startswith(b"event: gap\n"):
                    topic, data = re.fullmatch(rb"event: (.*)\ndata: (.*)x*", event).groups()
                    number = int(data.split()[0])
                    assert number > last.get(topic, -1)
                    last[topic] = number

        tls = tls_context(str(TLS / "localhost.pem"), str(TLS / "localhost.key")) if secure else None
        async with serving(app, tls=tls) as served, anyio.create_task_group() as tasks:
            publishing = await tasks.start(publish)
            before = len(asyncio.all_tasks())
            for _ in range(5):
                async with anyio.create_task_group() as clients:
                    for _ in range(10):
                        clients.start_soon(come_and_go)
            await wait_until(lambda: len(asyncio.all_tasks()) == before)
            assert app.hub.statistics().topics == 0
            publishing.cancel()

    async def test_the_access_log_has_one_line_at_the_end(self, caplog):
        app = event_app()
        caplog.set_level("INFO", "microws.access")
        async with serving(app) as served:
            async with browsing(served):
                assert not caplog.records
            await wait_until(lambda: any('"GET / HTTP/1.1"' in record.getMessage() for record in caplog.records))
