"""Tickets: one lets one client in once, and every other one gets the same 401."""

import logging
import random
import time
from contextlib import AsyncExitStack

import anyio
import pytest

from microws import App, HTTPException, HubUnavailable, PublishTimeout, WebSocketRejected
from microws.signing import Signatures
from microws.tickets import issue_ticket, take_ticket
from tests.hub_here import hub_in_thread, serving_from

pytestmark = pytest.mark.anyio

SECRET = "a secret of the tests, of 32 bytes or more"
REFUSED = (401, b"the ticket is not valid: get a new one")
UNKNOWN = (503, b"the ticket cannot be checked now: get a new one, and try again")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/% é\0"


def make_app(secret=SECRET, **settings):
    app = App(secret=secret, **settings)

    async def view(ws):
        ticket = await ws.take_ticket()
        async with ws:
            await ws.send(ticket.value)

    async def room(ws, name):
        await view(ws)

    app.add_websocket_route(view, "/chat", value_type="json")
    app.add_websocket_route(view, "/other", value_type="json", name="other")
    app.add_websocket_route(room, "/room/{name}", value_type="json")
    return app


async def enter(client, path):
    """What the view sends, or the status and body of the refusal."""
    try:
        async with client.websocket(path) as ws:
            return await ws.receive()
    except WebSocketRejected as error:
        return error.status, error.body


def mutations(text, count, seed):
    """``count`` texts that differ from ``text``."""
    source = random.Random(seed)
    while count:
        at, width = source.randrange(len(text) + 1), source.randrange(3)
        letters = "".join(source.choices(ALPHABET, k=source.randrange(3)))
        other = text[:at] + letters + text[at + width :]
        if source.random() < 0.2:
            other = other[: source.randrange(len(other) + 1)]
        if other != text:
            count -= 1
            yield other


async def count_passed(count, seed):
    """How many of ``count`` mutated tickets pass."""
    app = make_app()
    ticket = app.ticket("anna", path="/chat")
    passed = 0
    for other in mutations(ticket, count, seed):
        try:
            await take_ticket(app.signing.ticket, other, path="/chat", hub=app.hub)
        except HTTPException as error:
            passed += (error.status, str(error.detail).encode()) != REFUSED
        else:
            passed += 1
    assert (await take_ticket(app.signing.ticket, ticket, path="/chat", hub=app.hub)).value == "anna"
    return passed


async def test_a_ticket_lets_one_client_in_once():
    app = make_app()
    async with app.test_client() as client:
        ticket = app.ticket({"user": "anna", "rooms": [1, None]}, path="/chat")
        assert await enter(client, f"/chat?ticket={ticket}") == {"user": "anna", "rooms": [1, None]}
        assert await enter(client, f"/chat?ticket={ticket}") == REFUSED
        other = app.ticket("anna", path="/room/a b", ttl=0.5)
        assert await enter(client, f"/room/a%20b?x=1&ticket={other}") == "anna"


async def test_every_other_ticket_gets_the_same_answer():
    app = make_app()
    async with app.test_client() as client:
        ticket = app.ticket("anna", path="/chat")
        session = app.signing.session.sign(b"[1,2]", context="")
        for path in (
            "/chat",
            "/chat?ticket=",
            "/chat?ticket=a.b",
            f"/other?ticket={ticket}",
            f"/room/chat?ticket={ticket}",
            f"/chat?ticket={ticket[:-1]}",
            f"/chat?ticket={ticket}x",
            f"/chat?ticket={make_app('x' * 32).ticket('anna', path='/chat')}",
            f"/chat?ticket={session}",
            f"/chat?Ticket={ticket}",
        ):
            assert await enter(client, path) == REFUSED, path
        # None of these has used it up.
        assert await enter(client, f"/chat?ticket={ticket}") == "anna"


async def test_a_sample_of_mutated_tickets_does_not_pass():
    assert await count_passed(2000, random.randrange(1 << 30)) == 0


@pytest.mark.parametrize(
    ("seconds", "is_valid"), [(-5.5, False), (-4.5, True), (0, True), (29, True), (30.5, False), (3600, False)]
)
async def test_a_ticket_is_valid_for_its_time_and_a_clock_that_is_behind(monkeypatch, seconds, is_valid):
    app = make_app()
    ticket = app.ticket("anna", path="/chat", ttl=30)
    now = time.time()
    monkeypatch.setattr("microws.tickets.time.time", lambda: now + seconds)
    async with app.test_client() as client:
        assert await enter(client, f"/chat?ticket={ticket}") == ("anna" if is_valid else REFUSED)


async def test_a_use_is_remembered_until_the_ticket_is_too_old_on_every_machine(monkeypatch):
    app = make_app()
    ticket = app.ticket("anna", path="/chat", ttl=30)
    claims = []
    claim = app.hub.backplane.claim

    async def keep(key, ttl):
        claims.append((key, ttl))
        return await claim(key, ttl)

    app.hub.backplane.claim = keep
    async with app.test_client() as client:
        assert await enter(client, f"/chat?ticket={ticket}") == "anna"
    [(key, ttl)] = claims
    assert key.startswith("ticket:")
    assert 39 < ttl <= 41


async def test_old_secrets_still_verify_tickets():
    ticket = make_app("an old secret of the tests, of 32 bytes").ticket("anna", path="/chat")
    async with make_app([SECRET, "an old secret of the tests, of 32 bytes"]).test_client() as client:
        assert await enter(client, f"/chat?ticket={ticket}") == "anna"


async def test_without_room_for_one_more_a_ticket_gets_503(caplog):
    app = make_app(history_bytes=1 << 20)
    for number in range(1024):
        assert await app.hub.backplane.claim(f"{number}", 60)
    async with app.test_client() as client:
        ticket = app.ticket("anna", path="/chat")
        assert await enter(client, f"/chat?ticket={ticket}") == UNKNOWN
    assert "/chat: a ticket cannot be checked: expected at most 1024 claims that hold at once" in caplog.text


@pytest.mark.parametrize("error", [PublishTimeout("no answer"), HubUnavailable("no hub")])
async def test_without_an_answer_of_the_hub_a_ticket_gets_503(error, caplog):
    app = make_app()

    async def fail(key, ttl):
        raise error

    app.hub.backplane.claim = fail
    async with app.test_client() as client:
        ticket = app.ticket("anna", path="/chat")
        assert await enter(client, f"/chat?ticket={ticket}") == UNKNOWN
    assert f"/chat: a ticket cannot be checked: {error}" in caplog.text


async def test_a_ticket_that_two_workers_take_at_once_lets_one_in(tmp_path):
    apps = [make_app(), make_app()]
    async with AsyncExitStack() as stack:
        path = stack.enter_context(hub_in_thread(tmp_path / "hub"))
        for app in apps:
            await stack.enter_async_context(serving_from(path, app))
        for _ in range(200):
            ticket = apps[0].ticket("anna", path="/chat")
            results = []

            async def take(app, ticket, results):
                try:
                    results.append((await take_ticket(app.signing.ticket, ticket, path="/chat", hub=app.hub)).value)
                except HTTPException as error:
                    results.append(str(error.status))

            async with anyio.create_task_group() as tasks:
                for app in apps:
                    tasks.start_soon(take, app, ticket, results)
            assert sorted(results) == ["401", "anna"]


async def test_an_app_takes_no_ticket_of_an_app_that_is_mounted_elsewhere():
    outer, inner = make_app(), make_app()
    outer.mount("/live", inner)
    async with outer.test_client() as client:
        of_outer, of_inner = outer.ticket("outer", path="/chat"), inner.ticket("inner", path="/chat")
        assert await enter(client, f"/live/chat?ticket={of_outer}") == REFUSED
        assert await enter(client, f"/chat?ticket={of_inner}") == REFUSED
        assert await enter(client, f"/chat?ticket={of_outer}") == "outer"
        assert await enter(client, f"/live/chat?ticket={of_inner}") == '"inner"'


async def test_an_included_app_issues_tickets_of_the_including_one():
    app, part = make_app(), App()
    app.include(part)
    async with app.test_client() as client:
        assert await enter(client, f"/chat?ticket={part.ticket('anna', path='/chat')}") == "anna"


async def test_a_ticket_is_taken_before_the_handshake_is_accepted():
    app = App(secret=SECRET)

    @app.websocket_route("/")
    async def view(ws):
        async with ws:
            with pytest.raises(RuntimeError, match=r"^take the ticket before the handshake is accepted"):
                await ws.take_ticket()
            await ws.send("refused")

    async with app.test_client() as client, client.websocket("/") as ws:
        assert await ws.receive() == "refused"


async def test_without_a_secret_tickets_say_what_to_write():
    app = App()

    @app.websocket_route("/")
    async def view(ws):
        await ws.take_ticket()

    with pytest.raises(RuntimeError, match=r"^app\.ticket needs App\(secret=…\)"):
        app.ticket("anna", path="/")
    async with app.test_client() as client:
        with pytest.raises(RuntimeError, match=r"^ws\.take_ticket needs App\(secret=…\)"):
            async with client.websocket("/"):
                pass


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"path": "chat"}, r"expected the path of a WebSocket, such as \"/chat\", got 'chat'"),
        ({"path": None}, r"got None"),
        ({"path": "/", "ttl": 0}, r"expected a ttl of seconds greater than 0, got 0"),
        ({"path": "/", "ttl": True}, r"got True"),
        ({"path": "/", "ttl": float("inf")}, r"got inf"),
    ],
)
def test_an_invalid_argument_of_a_ticket_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        make_app().ticket("anna", **options)


def test_a_value_that_is_not_json_is_refused_when_the_ticket_is_issued():
    with pytest.raises(TypeError, match="set"):
        make_app().ticket({1}, path="/")


async def test_no_log_line_has_a_ticket(caplog):
    caplog.set_level(logging.DEBUG)
    app = make_app()

    @app.websocket_route("/fail")
    async def fail(ws):
        await ws.take_ticket()
        raise KeyError(str(ws.url))

    async with app.test_client(raise_errors=False) as client:
        tickets = [app.ticket("anna", path=path) for path in ("/chat", "/other", "/chat")]
        await enter(client, f"/chat?ticket={tickets[0]}")
        await enter(client, f"/chat?ticket={tickets[0]}")
        await enter(client, f"/chat?ticket={tickets[1]}")
        await enter(client, f"/chat?ticket={tickets[2][:-2]}")
    assert "/chat: a ticket was refused: it was used before" in caplog.text
    for ticket in tickets:
        assert ticket[:40] not in caplog.text
        assert ticket[-40:] not in caplog.text


def test_two_tickets_of_one_value_differ():
    signatures = Signatures([SECRET.encode()], b"test")
    issued = {issue_ticket(signatures, "anna", path="/", ttl=30, mount="") for _ in range(100)}
    assert len(issued) == 100
