"""``app.live``: clients that choose their topics, over WebSocket, as events and by POST."""

import itertools
import json
from contextlib import nullcontext
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from microws import App, HTTPException, RoutingError, WebSocketRejected
from microws.testing import TestClient
from microws.topic_hooks import TopicHooks

pytestmark = pytest.mark.anyio

V1 = ["microws.v1"]


def make_app(**options):
    app = App(**options)
    app.topic("chat:*", history=10)
    app.state.asked = []

    @app.on_subscribe("chat:{room}")
    async def may_read(connection, room):
        app.state.asked.append(room)
        if room == "missing":
            raise HTTPException(404, "no such room")
        if room == "broken":
            raise ZeroDivisionError
        return room != "secret"

    @app.on_subscribe("plain:{name}:{part}")
    def may_read_plain(connection, name, part):
        return f"{name}/{part}"

    @app.on_publish("chat:{room}")
    async def may_write(connection, room, message):
        return None if message == "bad" else {"text": message}

    @app.on_publish("plain:{name}")
    def may_write_plain(connection, name, message):
        return message

    app.live("/live")
    return app


class Live:
    """A client that speaks ``microws.v1``."""

    def __init__(self, ws):
        self.ws = ws

    async def ask(self, **frame):
        await self.ws.send_text(json.dumps(frame))
        return await self.receive()

    async def receive(self):
        return json.loads(await self.ws.receive_text(timeout=5))

    async def closing(self):
        await self.ws.wait_closed()
        return self.ws.close_code, self.ws.close_reason


@pytest.fixture
async def app():
    return make_app()


@pytest.fixture
async def client(app):
    async with TestClient(app) as client:
        yield client


@pytest.fixture
async def live(client):
    async with client.websocket("/live", subprotocols=V1) as ws:
        live = Live(ws)
        assert set((await live.receive())["hello"]) == {"id", "ping"}
        yield live


# Subscribing


async def test_client_subscribes_and_gets_what_is_published(app, live):
    answer = await live.ask(n=1, subscribe="chat:a")
    assert (answer["n"], answer["recovered"]) == (1, False)
    receipt = await app.publish("chat:a", {"x": 1})
    assert await live.receive() == {"topic": "chat:a", "id": receipt.id, "data": {"x": 1}}
    assert await live.ask(n=2, unsubscribe="chat:a") == {"n": 2}
    await app.publish("chat:a", "not for it")
    assert await live.ask(ping=1) == {}


async def test_client_resumes_a_topic(app, client, live):
    positions = [(await app.publish("chat:a", number)).id for number in range(4)]
    assert await live.ask(n=7, subscribe="chat:a", since=positions[1]) == {
        "n": 7, "id": positions[1], "recovered": True,
    }  # fmt: skip
    assert [(await live.receive())["data"] for _ in range(2)] == [2, 3]
    assert (await live.ask(n=8, subscribe="chat:b", since="unknown"))["recovered"] is False


async def test_topic_without_history_has_no_position(app, live):
    assert await live.ask(n=1, subscribe="plain:a:b") == {"n": 1, "recovered": False}
    await app.publish("plain:a:b", b"\0\1")
    assert await live.receive() == {"topic": "plain:a:b", "base64": "AAE="}


async def test_question_without_number_gets_no_answer(app, live):
    await live.ws.send_text('{"subscribe": "plain:a:b", "else": 1}')
    await live.ws.send_text('{"unknown": true}')
    assert await live.ask(ping=1) == {}
    await app.publish("plain:a:b", 1)
    assert await live.receive() == {"topic": "plain:a:b", "data": 1}


@pytest.mark.parametrize(
    ("topic", "code", "reason"),
    [
        ("chat:secret", 4403, "not allowed to subscribe to 'chat:secret'"),
        ("chat:missing", 4404, "no such room"),
        ("chat:a:b", 4403, "no hook lets clients subscribe to 'chat:a:b'"),
        ("other", 4403, "no hook lets clients subscribe to 'other'"),
        ("", 4400, "expected a topic of at least one character"),
        ("chat:" + "x" * 300, 4400, "expected a topic of at most 255 UTF-8 bytes, got 305"),
        ("chat:a\nb", 4400, "expected a topic without control characters"),
    ],
)
async def test_client_that_may_not_subscribe_is_told(live, topic, code, reason):
    answer = await live.ask(n=3, subscribe=topic)
    assert (answer["n"], answer["error"]) == (3, code)
    assert answer["reason"].startswith(reason)


async def test_no_hook_is_asked_about_an_invalid_topic(client, live, app):
    app.on_publish("chat:{room}:{x}")(lambda connection, room, x, message: app.state.asked.append(room))
    assert (await live.ask(n=1, subscribe="chat:\x00"))["error"] == 4400
    assert (await live.ask(n=2, publish="chat:\x00:x", data=1))["error"] == 4400
    assert (await client.get("/live", query=[("topic", "chat:\x00")])).status == 400
    assert app.state.asked == []


async def test_hook_that_fails_is_logged_and_the_client_gets_an_id(live, caplog):
    answer = await live.ask(n=1, subscribe="chat:broken")
    assert answer["error"] == 4500
    assert answer["reason"].removeprefix("internal error, error id ") in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_client_has_as_many_topics_as_the_app_allows():
    async with make_app(max_subscriptions=2).test_client() as client, client.websocket("/live", subprotocols=V1) as ws:
        live = Live(ws)
        await live.receive()
        answers = [await live.ask(n=number, subscribe=f"plain:{number}:x") for number in range(3)]
        assert [answer.get("error") for answer in answers] == [None, None, 4429]


async def test_client_that_does_not_read_is_not_read_either():
    app = make_app(send_timeout=0.2)
    asked = read = 0
    closed = anyio.Event()

    async def receive():
        nonlocal asked
        await anyio.lowlevel.checkpoint()
        if closed.is_set() or asked == 5000:
            return {"type": "websocket.disconnect", "code": 1013}
        asked += 1
        if asked == 1:
            return {"type": "websocket.connect"}
        # Each subscription has a first frame, though nobody asked for an answer.
        verb = ("subscribe", "unsubscribe")[asked % 2]
        return {"type": "websocket.receive", "text": json.dumps({verb: "chat:a"})}

    async def send(event):
        nonlocal read
        if event["type"] == "websocket.send":
            await anyio.sleep_forever()
        elif event["type"] == "websocket.close":
            read = asked
            closed.set()

    scope = {
        "type": "websocket", "asgi": {"version": "3.0"}, "path": "/live", "raw_path": b"/live", "query_string": b"",
        "root_path": "", "headers": [(b"host", b"x")], "subprotocols": V1, "scheme": "ws",
    }  # fmt: skip
    async with TestClient(app):
        with anyio.fail_after(20):
            await app(scope, receive, send)
    assert 512 < read < 700


async def test_topic_that_the_view_leaves_is_ended_for_the_client(app, client):
    @app.websocket_route("/leaves", value_type="json", subscribe="plain:a")
    async def leaves(ws):
        async with ws:
            async for message in ws:
                await ws.unsubscribe(message)

    async with client.websocket("/leaves", subprotocols=V1) as ws:
        live = Live(ws)
        await live.receive()
        await ws.send_text('{"data": "plain:a"}')
        assert await live.receive() == {"topic": "plain:a", "end": 1000, "reason": "unsubscribed"}


# Publishing


async def test_client_publishes_what_the_hook_returns(live):
    subscribed = await live.ask(n=1, subscribe="chat:a")
    message = await live.ask(n=2, publish="chat:a", data="hi", key="k1")
    answer = await live.receive()
    if "n" in message:
        message, answer = answer, message
    assert message["data"] == {"text": "hi"}
    assert answer == {"n": 2, "id": message["id"]}
    assert message["id"] != subscribed["id"]
    # Again after a cut, with the same key: it is in the history already.
    assert await live.ask(n=3, publish="chat:a", data="hi", key="k1") == {"n": 3, "id": message["id"]}
    assert await live.ask(ping=1) == {}


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ({"publish": "chat:a", "data": "bad"}, 4403),
        ({"publish": "other", "data": 1}, 4403),
        ({"publish": "chat:a", "data": "x", "key": ""}, 4400),
        ({"publish": "chat:a\0", "data": "x"}, 4400),
    ],
)
async def test_client_that_may_not_publish_is_told(live, frame, code):
    assert (await live.ask(n=1, **frame))["error"] == code


async def test_what_a_hook_returns_and_cannot_be_published_is_logged(app, live, caplog):
    app.topic("latest:*", overflow="latest", key=lambda value: value["symbol"], history=1)
    app.on_publish("odd")(lambda connection, message: object())
    app.on_publish("latest:{a}")(lambda connection, a, message: message)
    for topic in ("odd", "latest:a"):
        answer = await live.ask(n=1, publish=topic, data={}, key="k")
        assert answer["error"] == 4500
        assert answer["reason"].removeprefix("internal error, error id ") in caplog.text
    assert "KeyError: 'symbol'" in caplog.text


async def test_bytes_travel_as_base64(app, live):
    async with app.subscribe("plain:a") as messages:
        assert await live.ask(n=1, publish="plain:a", base64="AAE=", key="ignored without history") == {"n": 1}
        assert await anext(messages) == b"\0\1"


# Messages for the view


@pytest.mark.parametrize(
    ("value_type", "sent", "received"),
    [
        ("json", {"data": {"a": [1, None]}}, {"data": {"a": [1, None]}}),
        ("text", {"data": "hi"}, {"data": "hi"}),
        ("bytes", {"base64": "AAE="}, {"base64": "AAE="}),
        ("auto", {"base64": "AAE="}, {"base64": "AAE="}),
        ("msgpack", {"base64": "gaFhAQ=="}, {"base64": "gaFhAQ=="}),
        (dict[str, int], {"data": {"a": 1}}, {"data": {"a": 1}}),
    ],
)
async def test_route_speaks_it_beside_plain_messages(app, client, value_type, sent, received):
    @app.websocket_route("/echo", value_type=value_type)
    async def echo(ws):
        async with ws:
            async for message in ws:
                await ws.send(message)

    async with client.websocket("/echo", subprotocols=V1) as ws:
        live = Live(ws)
        await live.receive()
        assert await live.ask(n=1, subscribe="plain:a:b") == {"n": 1, "recovered": False}
        assert await live.ask(**sent) == received


async def test_invalid_message_is_answered_in_an_envelope(app, client):
    @app.websocket_route("/typed", value_type=dict[str, int], on_invalid="error")
    async def typed(ws):
        async with ws:
            async for message in ws:
                await ws.send(message)

    async with client.websocket("/typed", subprotocols=V1) as ws:
        live = Live(ws)
        await live.receive()
        answer = await live.ask(data={"a": "x"})
        assert (answer["data"]["type"], answer["data"]["path"]) == ("error", "$.a")


# What is malformed


@pytest.mark.parametrize(
    "message",
    [
        "", "x", "1", "[]", '"subscribe"', "{", b"{}", '{"subscribe": 1}', '{"n": -1, "ping": 1}',
        '{"n": 1.5, "ping": 1}',
        '{"n": "1", "ping": 1}', '{"n": true, "ping": 1}', '{"n": 9007199254740992, "ping": 1}',
        '{"subscribe": "chat:a", "since": 1}', '{"unsubscribe": null}', '{"publish": ["chat:a"], "data": 1}',
        '{"publish": "chat:a"}', '{"publish": "chat:a", "base64": "?"}', '{"base64": 1}', '{"data": NaN}',
    ],
)  # fmt: skip
async def test_malformed_frame_ends_the_connection_with_4400(live, message):
    await (live.ws.send_bytes(message) if isinstance(message, bytes) else live.ws.send_text(message))
    code, reason = await live.closing()
    assert (code, bool(reason)) == (4400, True)


async def test_data_of_another_kind_than_the_route_takes_is_malformed(app, client):
    @app.websocket_route("/text")
    async def text(ws):
        async with ws:
            await ws.receive()

    async with client.websocket("/text", subprotocols=V1) as ws:
        await ws.send_text('{"data": 1}')
        assert (await Live(ws).closing())[0] == 4400


async def test_websocket_that_does_not_offer_it_is_refused(client):
    with pytest.raises(WebSocketRejected) as caught:
        await client.websocket("/live").__aenter__()
    assert caught.value.status == 400
    assert "microws.v1" in caught.value.body.decode()


# Events and POST


async def test_events_are_the_same_frames(app, client):
    first = await app.publish("chat:a", 1)
    await app.publish("chat:a", 2)
    query = [("topic", "chat:a"), ("topic", "plain:a:b"), ("since", f"{first.id}_")]
    async with client.stream("GET", "/live", query=query) as response:
        events = response.events()
        begun = (await anext(events)).json()
        assert begun == {"topic": "chat:a", "id": first.id, "recovered": True}
        assert (await anext(events)).json()["data"] == 2
        await app.publish("plain:a:b", "x")
        event = await anext(events)
        assert event.json() == {"topic": "plain:a:b", "data": "x"}
        last = await app.publish("chat:a", 3)
        event = await anext(events)
        assert event.json() == {"topic": "chat:a", "id": last.id, "data": 3}
    async with client.stream("GET", "/live", query=query[:2], headers={"last-event-id": event.id}) as response:
        assert (await anext(response.events())).json()["recovered"] is True


@pytest.mark.parametrize(
    ("query", "status", "answer"),
    [
        ("topic=chat:secret&topic=chat:a", 403, {"topic": "chat:secret", "error": 4403}),
        ("topic=chat:missing", 404, {"topic": "chat:missing", "error": 4404}),
        ("", 400, None),
        ("topic=chat:a&topic=" + "&topic=".join(f"plain:{number}:x" for number in range(128)), 400, None),
    ],
)
async def test_events_that_a_client_may_not_get_are_refused(client, query, status, answer):
    response = await client.get(f"/live?{query}")
    assert response.status == status
    assert answer is None or answer.items() <= response.json().items()


async def test_client_publishes_by_post(app, client):
    async with app.subscribe("chat:a") as messages:
        response = await client.post("/live", json={"publish": "chat:a", "data": "hi", "key": "k"})
        assert await anext(messages) == {"text": "hi"}
        assert (response.status, response.json()) == (200, {"id": messages.position})
    for body, status, answer in (
        ({"publish": "chat:a", "data": "bad"}, 403, {"error": 4403}),
        ({"publish": "chat:a"}, 400, None),
        ({"subscribe": "chat:a"}, 400, None),
        ([], 400, None),
    ):
        response = await client.post("/live", json=body)
        assert response.status == status
        assert answer is None or answer.items() <= response.json().items()


async def test_page_of_another_site_cannot_publish(client):
    headers = {"origin": "https://evil.example"}
    response = await client.post("/live", json={"publish": "chat:a", "data": "hi"}, headers=headers)
    assert response.status == 403
    with pytest.raises(WebSocketRejected):
        await client.websocket("/live", subprotocols=V1, origin="https://evil.example").__aenter__()


# Registering


async def test_path_may_have_parameters_and_hooks_of_included_apps_count():
    app, part = App(), App()

    @part.on_subscribe("{user}")
    async def may_read(connection, user):
        return connection.path_params["user"] == user

    part.live("/of/{user}")
    app.include(part)
    async with TestClient(app) as client, client.websocket("/of/anna", subprotocols=V1) as ws:
        live = Live(ws)
        await live.receive()
        assert "error" not in await live.ask(n=1, subscribe="anna")
        assert (await live.ask(n=2, subscribe="ben"))["error"] == 4403


@pytest.mark.parametrize("pattern", ["", "a{", "a{b", "{a}{a}", "{1}", "{a b}", "a\0", "{}", "x" * 300])
def test_invalid_pattern_is_an_error(pattern):
    with pytest.raises(RoutingError):
        App().on_subscribe(pattern)(lambda *arguments: True)


@pytest.mark.parametrize(
    ("pattern", "topic", "parameters"),
    [
        ("a", "a", ()), ("a", "ab", None), ("{a}", "x", ("x",)), ("{a}", "x:", None), ("a{b}", "a", None),
        ("{a}-{b}", "x-y-z", ("x-y", "z")), ("{a}-{b}", "x--", ("x", "-")), ("{a}-{b}", "-x", None),
        ("{a}{b}", "xyz", ("xy", "z")), ("{a}:{b}-{c}.", "x:y-z.", ("x", "y", "z")), ("{a}:-{b}", "x-:-y", ("x-", "y")),
        # To try where each parameter ends would take years.
        ("-".join(f"{{{name}}}" for name in "abcdefghi"), "-" * 254 + ":", None),
    ],
)  # fmt: skip
async def test_first_parameter_takes_as_much_as_it_can(pattern, topic, parameters):
    hooks, got = TopicHooks(), []

    async def may_read(connection, *values):
        got.append(values)
        return True

    hooks.on_subscribe(pattern, may_read)
    with (
        nullcontext()
        if parameters is not None
        else pytest.raises(HTTPException, match="no hook lets clients subscribe")
    ):
        await hooks.check_subscribe(None, topic)
    assert got == [parameters] * (parameters is not None)


def test_hook_must_take_its_arguments():
    app = App()
    with pytest.raises(TypeError, match=r"does not fit @app.on_publish\('a:\{b\}'\)"):
        app.on_publish("a:{b}")(lambda connection, b: b)
    app.on_subscribe("a")(lambda connection: True)
    with pytest.raises(RoutingError, match="'a' has a hook of"):
        app.on_subscribe("a")(lambda connection: True)
    with pytest.raises(TypeError, match="expected a pattern"):
        app.on_subscribe(lambda connection: True)(lambda connection: True)


# Signs of life


async def test_server_shows_that_it_lives(monkeypatch):
    monkeypatch.setattr("microws.live.BEAT_INTERVAL", 0.05)
    async with make_app().test_client() as client, client.websocket("/live", subprotocols=V1) as ws:
        live = Live(ws)
        assert (await live.receive())["hello"]["ping"] == 0.05
        with anyio.fail_after(5):
            assert [await live.receive() for _ in range(3)] == [{}, {}, {}]


# The frames of docs/live-protocol.md


class Vectors:
    """Plays ``live_vectors.json``: strings that begin with ``*`` stand for any text, the same one for the same name."""

    def __init__(self):
        self.known = {}

    def fill(self, value):
        if isinstance(value, dict):
            return {key: self.fill(each) for key, each in value.items()}
        return self.known.get(value, value) if isinstance(value, str) else value

    def fits(self, expected, got):
        if isinstance(expected, dict):
            return (
                isinstance(got, dict)
                and expected.keys() == got.keys()
                and all(self.fits(expected[key], got[key]) for key in expected)
            )
        if isinstance(expected, str) and expected.startswith("*"):
            return isinstance(got, str) and (expected == "*" or self.known.setdefault(expected, got) == got)
        return expected == got


async def test_server_does_what_the_vectors_say():
    app = App()
    app.topic("kept:*", history=10)
    for pattern in ("kept:{name}", "plain:{name}"):
        app.on_subscribe(pattern)(lambda connection, name: True)
        app.on_publish(pattern)(lambda connection, name, message: message)
    app.live("/live")
    vectors = Vectors()
    async with TestClient(app) as client, client.websocket("/live", subprotocols=V1) as ws:
        for case in json.loads((Path(__file__).parent / "live_vectors.json").read_text()):
            for step in case["steps"]:
                [(what, value)] = step.items()
                if what == "client":
                    await ws.send_text(json.dumps(vectors.fill(value)))
                elif what == "close":
                    await ws.wait_closed()
                    assert ws.close_code == value
                else:
                    expected = value if what == "any order" else [value]
                    got = [json.loads(await ws.receive_text()) for _ in expected]
                    assert any(all(map(vectors.fits, expected, each)) for each in itertools.permutations(got)), (
                        case["name"],
                        got,
                    )
