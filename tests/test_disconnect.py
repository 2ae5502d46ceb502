"""``app.disconnect``: which connections it closes, and what their clients get."""

import anyio
import pytest

from microws import App, EventStream, WebSocketDisconnect, WebSocketRejected

pytestmark = pytest.mark.anyio


def make_app():
    app = App()
    app.state.ids = []

    @app.websocket_route("/{topic}")
    async def read(ws, topic):
        await ws.subscribe(topic)
        app.state.ids.append(ws.id)
        async with ws:
            await ws.wait_closed()

    @app.websocket_route("/named")
    async def named(ws):
        app.state.ids.append(ws.id)
        async with ws:
            await ws.wait_closed()

    @app.websocket_route("/late")
    async def late(ws):
        app.state.ids.append(ws.id)
        await app.state.answered.wait()
        async with ws:
            await ws.wait_closed()

    @app.get("/events/{topic}")
    async def events(topic):
        return EventStream(app.stream(topic))

    @app.get("/generated/{topic}")
    async def generated(topic):
        async def data():
            async for event in app.stream(topic):
                yield event

        return EventStream(data())

    return app


async def ending_of(ws):
    with anyio.fail_after(5), pytest.raises(WebSocketDisconnect) as caught:
        await ws.receive()
    return caught.value.code, caught.value.reason


async def test_the_websockets_of_a_topic_are_closed_after_what_was_published():
    app = make_app()
    async with app.test_client() as client, client.websocket("/t") as ws, client.websocket("/u") as other:
        await app.publish("t", "bye")
        assert await app.disconnect(topic="t", code=4001, reason="logged out") == 1
        assert await ws.receive() == "bye"
        assert await ending_of(ws) == (4001, "logged out")
        await app.publish("u", "still here")
        assert await other.receive() == "still here"
        assert await app.disconnect(topic="t") == 0


async def test_one_websocket_is_closed_by_its_id_even_if_it_subscribes_to_nothing():
    app = make_app()
    async with app.test_client() as client, client.websocket("/named") as ws, client.websocket("/named") as other:
        assert await app.disconnect(id=app.state.ids[0]) == 1
        assert await ending_of(ws) == (1000, "")
        assert not other.closed
        assert await app.disconnect(id=app.state.ids[0]) == 0
        assert await app.disconnect(id="events-1") == 0
    assert not app.hub.disconnects


async def test_a_websocket_that_is_not_accepted_yet_is_rejected():
    app = make_app()
    app.state.answered = anyio.Event()
    async with app.test_client() as client, anyio.create_task_group() as tasks:

        async def connect():
            with pytest.raises(Exception, match="refused with 403"):
                async with client.websocket("/late"):
                    pass

        tasks.start_soon(connect)
        with anyio.fail_after(5):
            while not app.state.ids:
                await anyio.lowlevel.checkpoint()
            assert await app.disconnect(id=app.state.ids[0]) == 1
            app.state.answered.set()
    assert not app.hub.disconnects


async def test_a_websocket_that_still_gets_what_it_missed_is_closed():
    app = App()
    app.topic("t", history=10)
    subscribed, answered = anyio.Event(), anyio.Event()

    @app.websocket_route("/")
    async def read(ws):
        await ws.subscribe("t", since="start")
        subscribed.set()
        await answered.wait()
        async with ws:
            await ws.wait_closed()

    async with app.test_client() as client, anyio.create_task_group() as tasks:
        await app.publish("t", 1)

        async def connect():
            with pytest.raises(WebSocketRejected):
                await client.websocket("/").__aenter__()

        tasks.start_soon(connect)
        with anyio.fail_after(5):
            await subscribed.wait()
            assert await app.disconnect(topic="t") == 1
            answered.set()


@pytest.mark.parametrize("path", ["/events/t", "/generated/t"])
async def test_an_event_stream_ends_after_what_was_published(path):
    app = make_app()
    async with app.test_client() as client, client.stream("GET", path) as response:
        events = response.events()
        with anyio.fail_after(5):
            while not app.hub.statistics().subscribers:
                await anyio.lowlevel.checkpoint()
            await app.publish("t", "first")
            assert (await anext(events)).data == "first"
            await app.publish("t", "bye")
            assert await app.disconnect(topic="t", code=4001, reason="logged out") == 1
            assert [event.data async for event in events] == ["bye"]
    assert not app.hub.disconnects
    assert app.hub.statistics().subscribers == 0


async def test_a_subscription_of_the_app_itself_goes_on():
    app = make_app()
    async with app.running(), app.subscribe("t") as messages:
        assert await app.disconnect(topic="t") == 0
        await app.publish("t", 1)
        assert await anext(messages) == 1


async def test_ids_are_forgotten_when_connections_end():
    app = make_app()
    async with app.test_client() as client:
        async with client.websocket("/named"), client.websocket("/t"):
            assert sorted(app.hub.disconnects) == sorted(app.state.ids)
        with anyio.fail_after(5):
            while app.hub.connections:
                await anyio.lowlevel.checkpoint()
        assert not app.hub.disconnects


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "topic= or id="),
        ({"topic": "t", "id": "1"}, TypeError, "topic= or id="),
        ({"topic": ""}, ValueError, "at least one character"),
        ({"topic": "t", "code": 1006}, ValueError, "1006"),
        ({"topic": "t", "reason": "r" * 124}, ValueError, "123"),
    ],
)
async def test_an_invalid_argument_is_an_error(arguments, error, message):
    app = make_app()
    async with app.running():
        with pytest.raises(error, match=message):
            await app.disconnect(**arguments)


async def test_an_app_that_does_not_run_is_an_error():
    with pytest.raises(RuntimeError, match="expected a running app"):
        await make_app().disconnect(topic="t")
