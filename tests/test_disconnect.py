"""``app.disconnect``: which connections it closes, and what their clients get."""

import re
import time

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
            while app.hub.open:
                await anyio.lowlevel.checkpoint()
        assert not app.hub.disconnects


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "one of topic=, id= and tags"),
        ({"topic": "t", "id": "1"}, TypeError, "one of topic=, id= and tags"),
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


def make_tagged_app():
    app = App()

    @app.websocket_route("/{user}/{device:int}")
    async def tagged(ws, user, device):
        ws.tag(user=user, device=device)
        async with ws:
            async for message in ws:
                if message == "log out":
                    ws.tag(user=None)
                elif message == "slow":
                    await ws.subscribe("t")
                else:
                    ws.tag(user=message)
                await ws.send("done")

    return app


async def test_websockets_are_found_and_closed_by_their_tags():
    app = make_tagged_app()
    async with (
        app.test_client() as client,
        client.websocket("/anna/1") as first,
        client.websocket("/anna/2") as second,
        client.websocket("/ben/1") as other,
    ):
        found = app.connections(user="anna")
        assert [(each.path, each.tags) for each in found] == [
            ("/anna/1", {"user": "anna", "device": 1}),
            ("/anna/2", {"user": "anna", "device": 2}),
        ]
        assert abs(found[0].since - time.time()) < 60
        assert [each.path for each in app.connections(user="anna", device=2)] == ["/anna/2"]
        assert await app.hub.connections(device=1) == app.connections(device=1)
        assert len(app.connections()) == 3
        assert app.connections(user="carl") == app.connections(user="anna", device=3) == []
        assert app.connections(device="1") == []
        assert await app.disconnect(user="anna", code=4403, reason="logged out") == 2
        for ws in (first, second):
            assert await ending_of(ws) == (4403, "logged out")
        assert app.connections(user="anna") == []
        assert await app.disconnect(user="anna") == 0
        assert not other.closed
    assert (len(app.hub.open), app.connections(), app.hub.disconnects) == (0, [], {})


async def test_a_tag_is_replaced_and_removed():
    app = make_tagged_app()
    async with app.test_client() as client, client.websocket("/anna/1") as ws:
        for message, tags in (
            ("ben", {"device": 1, "user": "ben"}),
            ("ben", {"device": 1, "user": "ben"}),
            ("log out", {"device": 1}),
        ):
            await ws.send(message)
            assert await ws.receive() == "done"
            assert [each.tags for each in app.connections()] == [tags]
            assert app.connections(user="anna") == []
            assert len(app.connections(user="ben")) == ("user" in tags)


async def test_a_handshake_is_rejected_by_its_tag():
    app = App()
    log = []

    @app.websocket_route("/", catch_disconnect=False)
    async def view(ws):
        ws.tag(user="anna")
        log.append(await app.disconnect(user="anna", code=4403))
        with pytest.raises(WebSocketDisconnect):
            await ws.accept()

    async with app.test_client() as client:
        with pytest.raises(WebSocketRejected) as caught:
            await client.websocket("/").__aenter__()
        assert caught.value.status == 403
        assert log == [1]
        assert await app.disconnect(user="anna") == 0


async def test_a_connection_says_how_many_messages_are_pending():
    app = make_tagged_app()
    async with app.test_client() as client, client.websocket("/anna/1", max_queue=1) as ws:
        await ws.send("slow")
        assert await ws.receive() == "done"
        for number in range(5):
            await app.publish("t", str(number))
        with anyio.fail_after(5):
            while not app.connections()[0].queued:
                await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("tags", "error", "text"),
    [
        ({"user": 1.5}, TypeError, "expected the tag 'user' as str or int, got float; write str(…)"),
        ({"user": True}, TypeError, "got bool"),
        ({"user": None}, TypeError, "got NoneType"),
        ({"path": "/x"}, ValueError, "expected another name for a tag, got 'path'"),
    ],
)
async def test_invalid_tags_are_refused(tags, error, text):
    app = make_tagged_app()
    async with app.test_client():
        for find in (app.connections, app.hub.connections, app.disconnect):
            with pytest.raises(error, match=re.escape(text)):
                await find(**tags)


async def test_a_connection_that_has_ended_gets_no_tag():
    app = App()
    refused = []

    @app.websocket_route("/")
    async def view(ws):
        with pytest.raises(ValueError, match="got 'code'"):
            ws.tag(code=1)
        with pytest.raises(TypeError, match="list"):
            ws.tag(user="a", device=[])
        assert ws.tags == {}
        async with ws:
            pass
        with pytest.raises(WebSocketDisconnect):
            ws.tag(user="late")
        refused.append(True)

    async with app.test_client() as client, client.websocket("/"):
        pass
    assert refused


@pytest.mark.parametrize("arguments", [{}, {"topic": "t", "user": "a"}, {"id": "1", "user": "a"}])
async def test_disconnect_takes_one_of_topic_id_and_tags(arguments):
    app = make_tagged_app()
    async with app.test_client():
        with pytest.raises(TypeError, match="expected one of topic=, id= and tags such as user="):
            await app.disconnect(**arguments)
