"""What a client gets that comes back: over WebSockets and event streams, on this package's server and on any other."""

import json
import socket
import ssl
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from anyio.streams.tls import TLSStream
from raw_websocket import RawWebSocket
from test_streams import OPENING
from websocket_server import ASYNCIO_BACKENDS, TLS
from websockets.asyncio.client import connect
from worker_here import serving
from wsproto.events import CloseConnection, Message

from microws import App, EventStream, Overflow, WebSocketDisconnect
from microws.hub.backplane import MemoryBackplane
from microws.server.listening import tls_context
from microws.testing import TestClient

pytestmark = pytest.mark.anyio


class LateBackplane(MemoryBackplane):
    """Of several processes: ``subscribe`` waits while ``gate`` is there."""

    spans_processes = True
    gate = None

    async def subscribe(self, topic):
        if self.gate is not None:
            await self.gate.wait()
        return await super().subscribe(topic)


def make_app(*, history=5000, **options):
    app = App(**options)
    app.topic("plain")
    app.topic("*", history=history)
    app.views = []

    @app.websocket_route("/ws", subscribe="t")
    async def one(ws):
        app.views.append(ws)
        async with ws:
            await ws.wait_closed()

    @app.websocket_route("/gaps", subscribe=["t", "u"], gaps=True)
    async def two(ws):
        async with ws:
            await ws.wait_closed()

    app.add_route(lambda: EventStream(app.stream("t")), "/events")
    app.add_route(lambda: EventStream(app.stream("t", since="start")), "/all")
    app.add_route(lambda: EventStream(app.stream("t", "u", "plain")), "/several")
    return app


def wrap(app):
    """Add middleware that wraps ``send``."""

    def middleware(inner):
        async def call(scope, receive, send):
            async def send_on(event):
                await send(event)

            await inner(scope, receive, send_on if scope["type"] == "websocket" else send)

        return call

    app.add_middleware(middleware)


@pytest.fixture
async def app():
    return make_app()


@pytest.fixture
async def client(app):
    with anyio.fail_after(10):
        async with TestClient(app) as client:
            yield client


async def publish(app, values, topic="t"):
    return [(await app.publish(topic, value)).id for value in values]


async def wait_until(condition):
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def greeted(ws):
    """The first frame of ``microws.v1``."""
    assert list(json.loads(await ws.receive())) == ["hello"]


class TestWebSockets:
    async def test_since_in_the_query_brings_what_was_missed(self, app, client):
        positions = await publish(app, range(5))
        async with client.websocket("/ws", query={"since": positions[2]}) as ws:
            await publish(app, [5])
            assert [await ws.receive() for _ in range(3)] == ["3", "4", "5"]
        assert app.views[-1].subscribed == (True, positions[2], ())

    async def test_a_route_with_since_start_sends_the_history_to_a_client_that_names_no_position(self, app, client):
        @app.websocket_route("/start", subscribe=["t", "plain"], since="start")
        async def start(ws):
            async with ws:
                await ws.wait_closed()

        positions = await publish(app, range(3))
        for query, expected in (("", ["0", "1", "2"]), ("since=", ["0", "1", "2"]), (f"since={positions[1]}_", ["2"])):
            async with client.websocket(f"/start?{query}") as ws:
                await publish(app, ["behind"], "plain")
                assert [await ws.receive() for _ in (*expected, "behind")] == [*expected, "behind"]

    @pytest.mark.parametrize(("subscribe", "since"), [("t", "1-1.1.1"), (None, "start"), ("t", "")])
    def test_since_of_a_route_is_start_for_topics(self, subscribe, since):
        async def view(ws): ...

        with pytest.raises(ValueError, match="since="):
            App().add_websocket_route(view, "/", subscribe=subscribe, since=since)

    @pytest.mark.parametrize("since", ["x", "_", "1-0.1.1", "€", "start_start"])
    async def test_an_unknown_position_is_told_to_the_view_and_by_gap_markers(self, app, client, since):
        positions = await publish(app, range(5))
        async with client.websocket("/ws", query={"since": since}) as ws:
            await publish(app, [5])
            assert json.loads(await ws.receive()) == {"topic": "t", "gap": True}
            assert await ws.receive() == "5"
        assert app.views[-1].subscribed == (False, positions[4], ("t",))
        async with client.websocket("/gaps", query={"since": "x_x"}) as ws:
            await publish(app, [6])
            got = [json.loads(await ws.receive()) for _ in range(3)]
            assert got == [{"topic": "t", "gap": True}, {"topic": "u", "gap": True}, 6]

    async def test_without_gaps_only_positions_of_the_client_bring_a_marker(self, app, client):
        @app.websocket_route("/view", subscribe="t")
        async def view(ws):
            async with ws:
                assert not (await ws.subscribe("u", since="x")).recovered

        app.add_websocket_route(view, "/plain", subscribe="plain")
        [first, last] = await publish(app, range(2))
        marker = {"topic": "t", "gap": True}
        for path, since, expected in (
            ("/view", "", []),
            ("/view", "start", [0, 1]),
            ("/view", first, [1]),
            ("/view", last, []),
            ("/view", "yesterday", [marker]),
            ("/plain", "yesterday", []),  # without a history the parameter is the app's own
        ):
            async with client.websocket(path, query={"since": since}) as ws:
                assert [json.loads(text) async for text in ws] == expected

    async def test_microws_v1_begins_with_the_position_and_says_whether_it_recovered(self, app, client):
        positions = await publish(app, range(3))
        for since, recovered, expected in (("", False, []), (positions[0], True, [1, 2]), ("x", False, [])):
            async with client.websocket("/ws", query={"since": since}, subprotocols=["microws.v1"]) as ws:
                await greeted(ws)
                first = json.loads(await ws.receive())
                position = positions[0] if recovered else positions[2]
                assert first == {"topic": "t", "id": position, "recovered": recovered}
                for n in expected:
                    assert json.loads(await ws.receive()) == {"topic": "t", "id": positions[n], "data": n}

    @pytest.mark.parametrize("history", [0, 10])
    async def test_an_own_message_does_not_come_when_the_client_is_back(self, history):
        app = App()
        if history:
            app.topic("t", history=history)

        @app.websocket_route("/chat", subscribe="t")
        async def chat(ws):
            async with ws:
                async for text in ws:
                    await ws.publish("t", text)

        async with TestClient(app) as client:
            live = partial(client.websocket, "/chat", subprotocols=["microws.v1"])
            async with live() as one, live() as other, client.websocket("/chat") as plain:
                await greeted(one)
                await greeted(other)
                if history:
                    assert [json.loads(await ws.receive())["recovered"] for ws in (one, other)] == [False, False]
                await other.send('{"data": "from the other"}')
                got = [json.loads(await one.receive())]
                await one.send('{"data": "own"}')
                got += [json.loads(await other.receive()) for _ in range(1 + bool(history))]
                assert [message.get("data") for message in got] == ["from the other", *[None] * bool(history), "own"]
                assert [await plain.receive() for _ in range(2)] == ["from the other", "own"]
                if not history:
                    await other.send('{"data": "next"}')
                    assert json.loads(await one.receive()) == {"topic": "t", "data": "next"}
                    return
                assert got[1] == {"topic": "t", "id": got[0]["id"]}
                assert json.loads(await one.receive()) == {"topic": "t", "id": got[2]["id"]}
                await plain.send("last")
                last = json.loads(await other.receive())
                assert last["data"] == "last"
            async with live(query={"since": got[2]["id"]}) as one:
                await greeted(one)
                assert json.loads(await one.receive())["recovered"]
                assert json.loads(await one.receive()) == last

    @pytest.mark.parametrize(
        ("declared", "chosen"),
        [(["microws.v1"], "microws.v1"), (["microws.v1", "own"], "microws.v1"), (["own", "microws.v1"], "own")],
    )
    async def test_a_route_may_name_microws_v1_among_its_subprotocols(self, app, client, declared, chosen):
        @app.websocket_route("/declared", subscribe="t", subprotocols=declared)
        async def view(ws):
            async with ws:
                await ws.wait_closed()

        async with client.websocket("/declared", subprotocols=["own", "microws.v1"]) as ws:
            assert ws.subprotocol == chosen
            if chosen == "microws.v1":
                await greeted(ws)
            await publish(app, [1])
            first = json.loads(await ws.receive())
            assert (first["recovered"] is False) if chosen == "microws.v1" else (first == 1)

    @pytest.mark.parametrize(
        ("offered", "chosen"),
        [
            (["bearer", "microws.v1"], "bearer"),  # the token of a client that does not speak microws.v1
            (["bearer", "microws.v1", "microws.v1"], "microws.v1"),
            (["microws.v1", "bearer", "microws.v1"], "microws.v1"),
        ],
    )
    async def test_a_token_that_is_called_microws_v1_is_no_subprotocol(self, app, client, offered, chosen):
        bearers = []

        @app.websocket_route("/bearer", subscribe="t")
        async def view(ws):
            bearers.append(ws.bearer)
            async with ws:
                await ws.wait_closed()

        async with client.websocket("/bearer", subprotocols=offered) as ws:
            assert (ws.subprotocol, bearers) == (chosen, ["microws.v1"])
            if chosen == "microws.v1":
                await greeted(ws)
            await publish(app, [1])
            first = json.loads(await ws.receive())
            assert (first["recovered"] is False) if chosen == "microws.v1" else (first == 1)

    async def test_the_end_of_the_connection_ends_subscribe(self, app, client):
        app.hub.use(backplane := LateBackplane())
        ended = []

        @app.websocket_route("/late")
        async def late(ws):
            async with ws:
                try:
                    await ws.subscribe("t", since="start")
                except WebSocketDisconnect as error:
                    ended.append(error.code)
                    raise

        backplane.gate = anyio.Event()
        async with client.websocket("/late") as ws:
            await wait_until(lambda: app.hub.statistics().subscribers)
            await ws.close(4001)
            await wait_until(lambda: not app.hub.statistics().subscribers)
            backplane.gate.set()
        assert ended == [4001]
        assert not app.hub._topics

    @pytest.mark.parametrize("since", [7, ["x"], {"t": 1}])
    async def test_since_of_another_type_is_refused(self, app, client, since):
        errors = []

        @app.websocket_route("/typed")
        async def typed(ws):
            async with ws:
                with pytest.raises(TypeError, match="expected since= as a position"):
                    await ws.subscribe("t", since=since)
                errors.append(app.hub.statistics().topics)

        async with client.websocket("/typed") as ws:
            await ws.wait_closed()
        assert errors == [0]


class TestEvents:
    @staticmethod
    async def read(client, path, count, last_event_id=None):
        headers = {} if last_event_id is None else {"last-event-id": last_event_id}
        async with client.stream("GET", path, headers=headers) as response:
            events = aiter(response.events())
            return [await anext(events) for _ in range(count)]

    async def test_a_client_that_reconnects_gets_what_followed_its_last_event(self, app, client):
        positions = await publish(app, range(5))
        events = await self.read(client, "/events", 2, positions[2])
        assert [(event.data, event.id) for event in events] == [("3", positions[3]), ("4", positions[4])]

    async def test_the_last_event_of_a_client_counts_more_than_since(self, app, client):
        positions = await publish(app, range(4))
        events = await self.read(client, "/all", 2)
        assert [event.data for event in events] == ["0", "1"]
        events = await self.read(client, "/all", 2, positions[1])
        assert [event.data for event in events] == ["2", "3"]

    async def test_a_client_that_comes_too_late_gets_an_event(self, app, client):
        positions = await publish(app, range(3))
        [event] = await self.read(client, "/events", 1, "x")
        assert (event.event, event.json(), event.id) == ("gap", {"topic": "t", "gap": True}, positions[2])

    async def test_ids_of_several_topics_say_what_the_client_has_reached(self, app, client):
        """At every event it may disconnect, and come back with that id."""
        first = {topic: await publish(app, range(600), topic) for topic in "tu"}
        token = f"{first['t'][0]}_{first['u'][0]}_"
        got = {"t": 0, "u": 0}
        while min(got.values()) < 599:
            headers = {"last-event-id": token}
            async with client.stream("GET", "/several", headers=headers, max_queue=1) as response:
                await publish(app, ["now"], "plain")
                count = 0
                async for event in response.events():
                    if event.data == "now":
                        assert event.id in ("", token)
                        continue
                    reached = dict(zip("tu", event.id.split("_"), strict=False))
                    [topic] = [topic for topic in "tu" if reached[topic] != token.split("_")["tu".index(topic)]]
                    assert first[topic].index(reached[topic]) == got[topic] + 1 == int(event.data)
                    got[topic] += 1
                    token = event.id
                    count += 1
                    if count == 301 or min(got.values()) == 599:
                        break
        assert app.hub.statistics().topics == 0

    @pytest.mark.parametrize("topics", [["t"], None])
    async def test_no_id_says_more_than_the_client_has_after_a_loss_meanwhile(self, app, client, topics):
        """Of a stream of several topics, which still gets what it missed."""
        first = {topic: await publish(app, range(600), topic) for topic in "tu"}
        token = f"{first['t'][0]}_{first['u'][0]}_"
        count = 0
        async with client.stream("GET", "/several", headers={"last-event-id": token}, max_queue=1) as response:
            app.hub.lose(topics)
            gaps = set()
            async for event in response.events():
                count += 1
                if event.event == "gap":
                    gaps.add(event.json()["topic"])
                    if gaps >= set(topics or "tu"):
                        break
                else:
                    reached = dict(zip("tu", event.id.split("_"), strict=False))
                    [topic] = [topic for topic in "tu" if reached[topic] != token.split("_")["tu".index(topic)]]
                    assert first[topic].index(reached[topic]) == int(event.data)
                    token = event.id
            [end] = await publish(app, ["end"], "t")
            events = aiter(response.events())
            while (event := await anext(events)).data != "end":
                assert topics is None
            assert event.id.split("_") == [end, first["u"][-1] if topics else "", ""]

    async def test_of_a_topic_whose_position_was_unknown_a_client_is_told(self, app, client):
        positions = await publish(app, range(3))
        [event] = await self.read(client, "/several", 1, f"{positions[2]}__")
        assert (event.event, event.json()) == ("gap", {"topic": "u", "gap": True})
        assert event.id.split("_")[0] == positions[2]


class TestQueues:
    async def test_a_read_that_is_cancelled_while_it_subscribes_again_can_be_repeated(self):
        app = App()
        app.topic("t", queue=1)
        app.hub.use(backplane := LateBackplane())
        with anyio.fail_after(5):
            async with app.running(), app.subscribe("t") as messages:
                await app.publish("t", 1)
                await app.publish("t", 2)
                assert await anext(messages) == 1
                backplane.gate = anyio.Event()
                with anyio.move_on_after(0.01) as limit:
                    await anext(messages)
                assert limit.cancelled_caught
                backplane.gate.set()
                with pytest.raises(Overflow):
                    await anext(messages)
                await app.publish("t", 3)
                assert await anext(messages) == 3


@pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)
class TestSockets:
    """On this package's own server, with a client that reads when the test lets it."""

    TEXT = "x" * 4000

    @asynccontextmanager
    async def connected(self, app, path, **options):
        async with serving(app, drain_timeout=1, **options) as served:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            try:
                sock.connect(("127.0.0.1", served.port))
            except BlockingIOError:
                pass
            await anyio.wait_writable(sock)
            yield served, sock

    @asynccontextmanager
    async def resuming(self, app, count, *, is_secure=False):
        """A WebSocket that has got nothing yet of ``count`` messages, and its outbox."""
        tls = tls_context(str(TLS / "localhost.pem"), str(TLS / "localhost.key")) if is_secure else None
        async with self.connected(app, "/ws", tls=tls) as (served, sock):
            await publish(app, [f"{n} {self.TEXT}" for n in range(count)])
            async with await anyio.abc.SocketStream.from_socket(sock) as stream:
                if is_secure:
                    trusting = ssl.create_default_context(cafile=TLS / "localhost.pem")
                    stream = await TLSStream.wrap(stream, hostname="localhost", ssl_context=trusting)
                ws = RawWebSocket(stream)
                await ws.handshake("/ws?since=start")
                await wait_until(lambda: app.views)
                yield ws, app.views[0]._connection.outbox, served

    @staticmethod
    async def read(ws, *, until=None):
        """The numbers of the messages until the Close frame, or until one; and the close code."""
        numbers, text = [], ""
        while True:
            event = await ws.next_event(Message, CloseConnection)
            if isinstance(event, CloseConnection):
                return numbers, event.code
            text += event.data
            if event.message_finished:
                numbers.append(int(text.split()[0]))
                text = ""
                if numbers[-1] == until:
                    return numbers, None

    @pytest.mark.parametrize(
        ("is_wrapped", "is_secure"), [(False, False), (True, False), (False, True)], ids=["plain", "wrapped", "TLS"]
    )
    async def test_a_slow_client_gets_all_and_the_process_holds_a_part(self, app, is_wrapped, is_secure):
        if is_wrapped:
            wrap(app)
        async with self.resuming(app, 3000, is_secure=is_secure) as (ws, outbox, _):
            await wait_until(lambda: outbox.count)
            await publish(app, ["3000 " + self.TEXT])
            assert outbox.count <= 256
            assert outbox.size < 200_000
            assert await self.read(ws, until=3000) == (list(range(3001)), None)
            await wait_until(lambda: not outbox.count)
            await publish(app, ["3001 " + self.TEXT])
            assert await self.read(ws, until=3001) == ([3001], None)

    async def test_a_client_that_compresses_gets_what_it_missed(self):
        app = make_app(compression=True)
        async with serving(app) as served:
            positions = await publish(app, range(1000))
            async with connect(f"ws://127.0.0.1:{served.port}/ws?since={positions[0]}", proxy=None) as ws:
                assert [extension.name for extension in ws.protocol.extensions] == ["permessage-deflate"]
                assert [int(await ws.recv()) for _ in range(999)] == list(range(1, 1000))
                await app.views[0].send("x" * 1000)
                await publish(app, ["live"])
                assert [await ws.recv() for _ in range(2)] == ["x" * 1000, "live"]

    @pytest.mark.parametrize("is_wrapped", [False, True])
    @pytest.mark.parametrize(("end", "code"), [("close", 4000), ("drain", 1012)])
    async def test_a_close_during_the_replay_does_not_send_the_rest(self, app, is_wrapped, end, code):
        if is_wrapped:
            wrap(app)
        async with self.resuming(app, 5000) as (ws, outbox, served):
            await wait_until(lambda: outbox.count)
            if end == "close":
                app.views[0]._connection.close(4000, "")
            else:
                served.shutdown.request()
                await wait_until(lambda: app.views[0].closed)
            numbers, closed = await self.read(ws)
            assert (closed, numbers) == (code, list(range(len(numbers))))
            assert len(numbers) < 2500

    @pytest.mark.parametrize("is_wrapped", [False, True])
    async def test_a_client_that_falls_out_of_the_window_is_closed_after_what_it_got(self, is_wrapped):
        app = make_app(history=2000)
        if is_wrapped:
            wrap(app)
        async with self.resuming(app, 2000) as (ws, outbox, _):
            await wait_until(lambda: outbox.count)
            await publish(app, [f"{n} {self.TEXT}" for n in range(2000, 7000)])
            numbers, code = await self.read(ws)
            assert (code, numbers) == (1012, list(range(len(numbers))))
            assert 0 < len(numbers) < 2500
            # Nothing follows the Close frame.
            await ws.send(CloseConnection(1012))
            with anyio.fail_after(5), pytest.raises(anyio.EndOfStream):
                await ws.stream.receive()

    async def test_an_event_stream_that_falls_out_of_the_window_gets_an_event(self):
        app = make_app(history=2000)
        async with self.connected(app, "/all") as (_, sock):
            await publish(app, [f"{n} {self.TEXT}" for n in range(2000)])
            async with await anyio.abc.SocketStream.from_socket(sock) as stream:
                await stream.send(b"GET /all HTTP/1.1\r\nhost: x\r\n\r\n")
                await wait_until(lambda: app.hub.statistics().queued)
                await publish(app, [f"{n} {self.TEXT}" for n in range(2000, 7000)])
                data = bytearray()
                while b"data: 6999 " not in data[-100_000:]:
                    data += await stream.receive()
                before, gap, after = data.partition(b'event: gap\ndata: {"topic":"t","gap":true}\n\n')
                assert gap
                numbers = [int(part.split()[0]) for part in before.split(b"data: ")[1:]]
                assert numbers == list(range(len(numbers)))
                numbers = [int(part.split()[0]) for part in after.split(b"data: ")[1:]]
                assert numbers == list(range(numbers[0], 7000))

    async def test_an_event_stream_is_paced_and_its_end_does_not_send_the_rest(self, app):
        async with self.connected(app, "/all") as (served, sock):
            await publish(app, [f"{n} {self.TEXT}" for n in range(5000)])
            async with await anyio.abc.SocketStream.from_socket(sock) as stream:
                await stream.send(b"GET /all HTTP/1.1\r\nhost: x\r\n\r\n")
                await wait_until(lambda: app.hub.statistics().queued)
                assert app.hub.statistics().queued <= 256
                served.shutdown.request()
                await wait_until(lambda: not app.hub.statistics().subscribers)
                data = b""
                async for part in stream:
                    data += part
                assert OPENING in data
                assert 0 < data.count(b"data: ") < 2500
