"""``websocket_route(login=…)``: who gets to the view, and what is delivered before."""

import logging
import threading

import anyio
import pytest

from microws import App, HTTPException

pytestmark = pytest.mark.anyio

USERS = {"anna-token": "anna"}


async def check_token(ws, message):
    return USERS.get(message)


def make_app(login=check_token, *, login_timeout=30.0, **options):
    app = App()
    app.state.views = 0

    @app.websocket_route("/chat/{room}", login=login, login_timeout=login_timeout, subscribe="chat:{room}", **options)
    async def chat(ws, room):
        app.state.views += 1
        async with ws:
            await ws.send(f"hello {ws.state.user}")
            async for message in ws:
                await app.publish(f"chat:{room}", message)

    return app


async def refused(ws):
    """The end of a connection, which got no message."""
    assert [message async for message in ws] == []
    return ws.close_code, ws.close_reason


async def test_the_first_message_logs_in_and_the_view_gets_the_next_ones():
    app = make_app()
    async with app.test_client() as client, client.websocket("/chat/1") as ws:
        await ws.send("anna-token")
        await ws.send("hi")
        assert await ws.receive() == "hello anna"
        assert await ws.receive() == "hi"


@pytest.mark.parametrize("result", [None, False, "", 0, {}])
async def test_a_false_result_closes_before_the_view(result, caplog):
    caplog.set_level(logging.INFO)
    app = make_app(lambda ws, message: result)
    async with app.test_client() as client, client.websocket("/chat/1") as ws:
        await ws.send("a guess")
        assert await refused(ws) == (1008, "log in first")
    assert app.state.views == 0
    assert "'/chat/1': no login with the first message" in caplog.text
    assert "a guess" not in caplog.text


async def test_a_client_that_sends_nothing_is_closed_in_time(caplog):
    caplog.set_level(logging.INFO)
    app = make_app(login_timeout=0.05)
    async with app.test_client() as client, client.websocket("/chat/1") as ws:
        assert await refused(ws) == (1008, "log in first")
    assert app.state.views == 0
    assert "'/chat/1': no login in time" in caplog.text


async def test_a_check_that_does_not_end_counts_too():
    async def check(ws, message):
        await anyio.sleep_forever()

    app = make_app(check, login_timeout=0.05)
    async with app.test_client() as client, client.websocket("/chat/1") as ws:
        await ws.send("anna-token")
        assert await refused(ws) == (1008, "log in first")


async def test_nothing_is_delivered_before_the_login():
    reached, go_on = anyio.Event(), anyio.Event()

    async def check(ws, message):
        reached.set()
        await go_on.wait()
        return message

    app = make_app(check)
    async with app.test_client() as client, client.websocket("/chat/1") as anna, client.websocket("/chat/1") as mallory:
        assert (await app.publish("chat:1", "too early")).subscribers == 0
        await anna.send("anna")
        await reached.wait()
        assert (await app.publish("chat:1", "too early")).subscribers == 0
        go_on.set()
        assert await anna.receive() == "hello anna"
        assert (await app.publish("chat:1", "now")).subscribers == 1
        assert await anna.receive() == "now"
        await mallory.send("")
        assert await refused(mallory) == (1008, "log in first")


async def test_a_client_that_logs_in_gets_what_it_missed():
    app = make_app()
    app.topic("chat:*", history=10)
    async with app.test_client() as client:
        position = await app.position("chat:1")
        await app.publish("chat:1", "missed")
        async with client.websocket(f"/chat/1?since={position}") as ws:
            await ws.send("anna-token")
            assert {await ws.receive(), await ws.receive()} == {"missed", "hello anna"}


async def test_a_hook_that_subscribes_before_the_login_is_an_error():
    app = make_app()

    @app.before_websocket
    async def subscribe(ws):
        await ws.subscribe("chat:1")

    async with app.test_client() as client:
        with pytest.raises(RuntimeError, match=r"^subscribe after the login of the route"):
            async with client.websocket("/chat/1"):
                pass
    assert app.state.views == 0


async def test_hooks_come_before_the_login_and_may_accept_or_reject():
    app = make_app()

    @app.before_websocket
    async def hook(ws):
        if ws.path_params["room"] == "closed":
            raise HTTPException(403)
        await ws.accept(headers={"x-hook": "1"})

    async with app.test_client() as client:
        async with client.websocket("/chat/1") as ws:
            await ws.send("anna-token")
            assert await ws.receive() == "hello anna"
        with pytest.raises(Exception, match="403"):
            async with client.websocket("/chat/closed"):
                pass


async def test_a_plain_check_runs_in_a_worker_thread():
    here = threading.get_ident()
    app = make_app(lambda ws, message: threading.get_ident() != here and message)
    async with app.test_client() as client, client.websocket("/chat/1") as ws:
        await ws.send("anna")
        assert await ws.receive() == "hello anna"


async def test_the_first_message_is_decoded_as_the_route_says():
    app = make_app(lambda ws, message: message["user"], receive_type="json")
    async with app.test_client() as client:
        async with client.websocket("/chat/1") as ws:
            await ws.send({"user": "anna"})
            assert await ws.receive() == "hello anna"
        async with client.websocket("/chat/1") as ws:
            await ws.send_text("{")
            assert (await refused(ws))[0] == 1007
    assert app.state.views == 1


async def test_a_check_may_refuse_with_a_code_of_its_own():
    async def check(ws, message):
        if message == "expired":
            await ws.close(4401, "log in again")
            return
        raise HTTPException(403, "not you")

    async with make_app(check).test_client() as client:
        for message, end in (("expired", (4401, "log in again")), ("mallory", (3403, "not you"))):
            async with client.websocket("/chat/1") as ws:
                await ws.send(message)
                assert await refused(ws) == end


async def test_a_check_that_fails_closes_with_1011():
    app = make_app(lambda ws, message: 1 / 0)
    async with app.test_client(raise_errors=False) as client, client.websocket("/chat/1") as ws:
        await ws.send("anna-token")
        assert (await refused(ws))[0] == 1011
    assert app.state.views == 0


async def test_a_client_that_leaves_before_it_logs_in_is_no_error(caplog):
    ended = []
    app = make_app()

    @app.after_websocket
    async def end(ws):
        ended.append(ws.close_code)

    async with app.test_client() as client, client.websocket("/chat/1"):
        pass
    assert ended == [1000]
    assert app.state.views == 0
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"login": "anna"}, TypeError, r"expected a function for @app\.websocket_route\(login=…\), got 'anna'"),
        ({"login": lambda ws: True}, TypeError, r"does not fit @app\.websocket_route\(login=…\): it is called as"),
        ({"login_timeout": 0}, ValueError, r"^login_timeout: expected a number of seconds greater than 0, got 0"),
    ],
)
def test_an_invalid_login_is_refused_when_the_route_is_registered(options, error, text):
    with pytest.raises(error, match=text):
        make_app(**options)
