"""Topics as event streams: framed once for all clients, bounded, and never with a silent loss."""

from collections import deque

import anyio
import pytest
from anyio.lowlevel import checkpoint

from microws import App, EventStream, ServerSentEvent

pytestmark = pytest.mark.anyio

OPENING = b":\n"
GAP = b": gap\n\n"
KEEPALIVE = b": keepalive\n\n"


class Client:
    """A response over ASGI, as any server asks for it. ``hold`` keeps ``send`` waiting until ``go_on``."""

    def __init__(self, *, method="GET"):
        self.scope = {"type": "http", "method": method, "path": "/", "headers": []}
        self.events = []
        self.leaves = anyio.Event()
        self.ended = False
        self.failure = None
        self._changed = anyio.Event()
        self._held = None

    async def receive(self):
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, event):
        if self.failure is not None:
            raise self.failure
        self.events.append(event)
        self._changed.set()
        self._changed = anyio.Event()
        if self._held is not None:
            await self._held.wait()

    def hold(self):
        self._held = anyio.Event()

    def go_on(self):
        self._held.set()
        self._held = None

    @property
    def bodies(self):
        """Those behind the opening."""
        return [event["body"] for event in self.events[2:]]

    @property
    def complete(self):
        return self.events[-1] == {"type": "http.response.body", "body": b""}

    async def wait_for(self, body):
        while body not in b"".join(event.get("body", b"") for event in self.events):
            await self._changed.wait()

    async def run(self, response):
        try:
            await response(self.scope, self.receive, self.send)
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
    async def test_they_are_what_server_sent_event_makes_of_each_message(self, app, tasks):
        client = await connect(tasks, EventStream(app.stream("t", event="news")))
        for value, data in (("one\r\ntwo\r", "one\ntwo\n"), ({"a": 1}, '{"a":1}'), (b"\xff", "/w=="), ("", "")):
            await app.publish("t", value)
            await client.wait_for(ServerSentEvent(data, event="news").encoded)
        await leave(app, client)
        assert not client.complete

    async def test_those_of_one_turn_leave_together_and_are_framed_once_for_all_clients(self, app, tasks):
        clients = [await connect(tasks, EventStream(app.stream("t", f"t{n}"))) for n in range(3)]
        for number in range(5):
            await app.publish("t", number)
        for client in clients:
            await client.wait_for(b"data: 4\n\n")
        assert [b"".join(client.bodies) for client in clients] == [b"".join(b"data: %d\n\n" % n for n in range(5))] * 3
        await app.publish("t1", "own")
        await clients[1].wait_for(b"own")
        await leave(app, *clients)

    async def test_on_asyncio_all_clients_are_given_the_same_bytes(self, app, tasks, anyio_backend_name):
        if anyio_backend_name != "asyncio":
            return
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

    async def test_one_larger_than_a_write_and_those_behind_it_keep_their_order(self, app, tasks):
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

    async def test_what_is_published_while_the_head_is_being_sent_comes_behind_it(self, app, tasks):
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
    """``send`` waits for a client that does not read; what is published meanwhile is ruled by the topic's policy."""

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

    async def test_close_ends_the_response_so_that_the_browser_comes_back(self, app, tasks):
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
    async def test_where_a_policy_drops_a_comment_says_so_and_the_stream_goes_on(self, app, tasks, overflow, expected):
        client = await self.publish_to_a_stalled_client(app, tasks, overflow=overflow)
        await anyio.wait_all_tasks_blocked()
        await app.publish("t", "last")
        await client.wait_for(b"last")
        assert b"".join(client.bodies[1:]) == b"".join(expected)
        await app.publish("t", "behind")
        await client.wait_for(b"behind")
        await leave(app, client)

    async def test_a_burst_in_one_turn_closes_nobody_who_reads(self, app, tasks):
        app.topic("t", queue=2)
        client = await connect(tasks, EventStream(app.stream("t")))
        for number in range(50):
            await app.publish("t", number)
        await client.wait_for(b"data: 49\n\n")
        assert b"".join(client.bodies) == b"".join(b"data: %d\n\n" % n for n in range(50))
        await leave(app, client)


class TestSilence:
    async def test_it_is_broken_by_comments_and_events_go_on(self, app, tasks):
        client = await connect(tasks, EventStream(app.stream("t"), keepalive=0.01))
        await client.wait_for(KEEPALIVE * 2)
        await app.publish("t", 1)
        await client.wait_for(b"data: 1\n\n" + KEEPALIVE)
        await leave(app, client)

    async def test_streams_with_different_times_share_nothing(self, app, tasks):
        often = await connect(tasks, EventStream(app.stream("t"), keepalive=0.01))
        seldom = await connect(tasks, EventStream(app.stream("t"), keepalive=100))
        await often.wait_for(KEEPALIVE * 3)
        assert seldom.bodies == []
        await leave(app, often, seldom)


class TestTheEnd:
    async def test_a_send_that_says_the_client_has_left_ends_it_quietly(self, app, tasks):
        client = await connect(tasks, EventStream(app.stream("t")))
        client.failure = BrokenPipeError()
        await app.publish("t", 1)
        await anyio.wait_all_tasks_blocked()
        await leave(app, client)

    async def test_a_send_that_fails_otherwise_is_raised_as_it_is(self, app):
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

    async def test_a_head_that_cannot_be_sent_leaves_the_hub(self, app):
        client = Client()
        client.failure = BrokenPipeError()
        with pytest.raises(BrokenPipeError):
            await client.run(EventStream(app.stream("t")))
        assert app.hub.statistics().topics == 0

    @pytest.mark.parametrize("held", [False, True])
    async def test_cancelled_it_leaves_the_hub(self, app, held):
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

    async def test_it_needs_a_running_app_before_anything_is_sent(self):
        client = Client()
        with pytest.raises(RuntimeError, match="expected a running app"):
            await client.run(EventStream(App().stream("t")))
        assert client.events == []
        await checkpoint()
