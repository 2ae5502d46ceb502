"""Presence: who is on a topic, and who is told."""

import json
import logging

import anyio
import pytest

from microws import App
from microws.hub import presence
from microws.testing import TestClient

pytestmark = pytest.mark.anyio

V1 = ["microws.v1"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(presence, "_TICK", 0.02)


def make_app(**options):
    app = App(**options)

    @app.on_subscribe("room:{room}")
    async def may_enter(connection, room):
        user = connection.query["user"]
        return {"id": user, "name": user.title()} if user else True

    @app.websocket_route("/plain/{user}")
    async def plain(ws, user):
        await ws.subscribe("room:1", presence={"id": user})
        async with ws:
            async for message in ws:
                if message == "leave":
                    await ws.unsubscribe("room:1")
                else:
                    await ws.subscribe("room:1", presence=json.loads(message))

    app.live("/live")
    return app


class Client:
    """A client that speaks ``microws.v1``, in room 1."""

    def __init__(self, client, user, **options):
        self._made = client.websocket(f"/live?user={user}", subprotocols=V1, **options)
        self.members = None
        self.frames = []

    async def __aenter__(self):
        self.ws = await self._made.__aenter__()
        await self.ws.send_json({"subscribe": "room:1"})
        return self

    async def __aexit__(self, *error):
        return await self._made.__aexit__(*error)

    async def follow(self):
        """Take in one frame about members."""
        while True:
            frame = await self.ws.receive_json(timeout=5)
            if {"members", "join", "count"} & frame.keys():
                break
        self.frames.append(frame)
        assert frame["topic"] == "room:1"
        if "members" in frame:
            self.members = frame["members"]
        elif "count" in frame:
            self.members = frame["count"]
        else:
            self.members = {key: value for key, value in self.members.items() if key not in frame["leave"]}
            self.members |= frame["join"]

    async def until(self, names):
        """Follow until these are the members."""
        with anyio.fail_after(5):
            while not isinstance(self.members, dict) or set(self.members) != set(names):
                await self.follow()


async def until(condition):
    with anyio.fail_after(5):
        while not await condition():
            await anyio.lowlevel.checkpoint()


async def test_members_see_each_other_come_and_go():
    app = make_app()
    async with TestClient(app) as client, Client(client, "anna") as anna:
        await anna.until(["anna"])
        assert anna.members == {"anna": {"id": "anna", "name": "Anna"}}
        async with Client(client, "ben") as ben:
            await anna.until(["anna", "ben"])
            await ben.until(["anna", "ben"])
            assert (await app.members("room:1"), await app.count("room:1")) == (anna.members, 2)
            assert [list(frame) for frame in anna.frames] == [["topic", "members"], ["topic", "join", "leave"]]
        # It closed with 1000, so it leaves at once.
        await anna.until(["anna"])
        assert await app.members("room:1") == anna.members
    assert await app.members("room:1") == {}


async def test_two_connections_of_one_id_are_one_member():
    app = make_app()
    async with TestClient(app) as client, Client(client, "anna") as anna, Client(client, "ben") as ben:
        await anna.until(["anna", "ben"])
        async with Client(client, "ben"):
            await until(lambda: _has(app, 3))
        async with Client(client, "carl"):
            await anna.until(["anna", "ben", "carl"])
        await anna.until(["anna", "ben"])
        assert not any("ben" in frame.get("join", {}) for frame in anna.frames[2:])
        await ben.until(["anna", "ben"])


async def _has(app, count):
    return len(app.hub.open) == count


async def test_client_that_comes_back_has_not_left():
    app = make_app(leave_after=60)
    async with TestClient(app) as client, Client(client, "anna") as anna:
        async with Client(client, "ben") as ben:
            await anna.until(["anna", "ben"])
            ben.ws.abort()
        assert await app.count("room:1") == 2
        async with Client(client, "ben") as ben:
            await ben.until(["anna", "ben"])
            await ben.ws.send_json({"unsubscribe": "room:1"})
            await anna.until(["anna"])
        assert [sorted(frame.get("join", {})) for frame in anna.frames if "join" in frame] in ([["ben"], []], [[]])


async def test_client_whose_connection_broke_off_leaves_later():
    app = make_app(leave_after=0.1)
    async with TestClient(app) as client, Client(client, "anna") as anna:
        async with Client(client, "ben") as ben:
            await anna.until(["anna", "ben"])
            ben.ws.abort()
        await anna.until(["anna"])


async def test_view_makes_a_plain_client_a_member():
    app = make_app()
    async with TestClient(app) as client, Client(client, "anna") as anna, client.websocket("/plain/ben") as ben:
        await anna.until(["anna", "ben"])
        await ben.send('{"id": "ben", "typing": true}')
        with anyio.fail_after(5):
            while anna.members["ben"] != {"id": "ben", "typing": True}:
                await anna.follow()
        await ben.send("leave")
        await anna.until(["anna"])
        await app.publish("room:1", "not for it")


async def test_subscriber_without_presence_is_no_member_and_is_told_nothing():
    app = make_app()
    async with TestClient(app) as client, Client(client, "anna") as anna, Client(client, "") as silent:
        await anna.until(["anna"])
        assert list(await silent.ws.receive_json()) == ["hello"]
        await silent.ws.send_json({"n": 1, "subscribe": "room:1"})
        assert (await silent.ws.receive_json())["n"] == 1
        await app.publish("room:1", "hi")
        assert await silent.ws.receive_json() == {"topic": "room:1", "data": "hi"}
        assert await app.count("room:1") == 1


async def test_large_topic_is_a_number():
    app = make_app(presence_limit=1)
    async with TestClient(app) as client, Client(client, "anna") as anna:
        await anna.until(["anna"])
        async with Client(client, "ben"):
            with anyio.fail_after(5):
                while anna.members != 2:
                    await anna.follow()
        await anna.until(["anna"])
        assert "members" in anna.frames[-1]


async def test_slow_client_gets_all_members_when_it_has_caught_up(monkeypatch):
    monkeypatch.setattr(presence, "_SLOW", 0)
    app = make_app()
    async with TestClient(app) as client, Client(client, "anna", max_queue=1) as anna:
        async with Client(client, "ben"), Client(client, "carl"):
            await until(lambda: _has(app, 3))
            await anna.until(["anna", "ben", "carl"])
        await anna.until(["anna"])


@pytest.mark.parametrize("info", ["{}", [], {"x": "y" * 5000}, {"x": object()}])
async def test_invalid_presence_is_refused(info, caplog):
    caplog.set_level(logging.CRITICAL)
    app = App()
    refused = []

    @app.websocket_route("/")
    async def view(ws):
        with pytest.raises((TypeError, ValueError)) as caught:
            await ws.subscribe("t", presence=info)
        refused.append(str(caught.value))
        async with ws:
            pass

    async with TestClient(app) as client, client.websocket("/"):
        pass
    assert len(refused) == 1


async def test_client_cannot_read_what_processes_tell_each_other():
    app = App()
    app.on_subscribe("{everything}")(lambda connection, everything: True)
    app.on_publish("{everything}")(lambda connection, everything, message: message)
    app.live("/live")
    async with TestClient(app) as client, client.websocket("/live", subprotocols=V1) as ws:
        await ws.receive_json()
        await ws.send_json({"n": 1, "subscribe": presence.PRESENCE_TOPIC})
        assert (await ws.receive_json())["error"] == 4403
        await ws.send_json({"n": 2, "publish": presence.PRESENCE_TOPIC, "data": 1})
        assert (await ws.receive_json())["error"] == 4403


async def test_task_ends_with_the_last_member():
    app = make_app()
    async with TestClient(app) as client:
        for _ in range(2):
            async with Client(client, "anna") as anna:
                await anna.until(["anna"])

            async def has_ended():
                return not app.hub.presence._is_running

            await until(has_ended)
            assert app.hub.statistics().topics == 0
