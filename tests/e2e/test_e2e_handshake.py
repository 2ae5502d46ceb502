"""Handshakes on every server: accepted as the view says, or refused with a real HTTP response."""

import re

import pytest
from servers import PROGRAMS, UPGRADE, read_response, tcp, text_frame
from websockets.exceptions import InvalidStatus

pytestmark = pytest.mark.anyio


async def refusal(client, path, **options):
    with pytest.raises(InvalidStatus) as refused:
        async with client.connect(path, **options):
            pass
    return refused.value.response


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["v1", "v2"], "v2"), (["v0", "v1"], "v1"), (["v0"], None), (None, None)]
)
async def test_the_first_subprotocol_of_the_route_that_the_client_offers_is_chosen(client, offered, chosen):
    async with client.connect("/subprotocol", subprotocols=offered) as ws:
        assert ws.subprotocol == chosen
        assert await ws.recv() == str(chosen)


async def test_headers_travel_both_ways(client):
    async with client.connect("/headers", additional_headers={"X-Question": "how are you?"}) as ws:
        assert ws.response.headers["x-greeting"] == "hello"
        assert ws.response.headers.get_all("set-cookie") == ["a=1", "b=2"]
        assert await ws.recv() == "how are you?"


async def test_one_path_may_have_a_page_and_a_websocket(client):
    assert (await client.http.get("/same")).text == "a page"
    async with client.connect("/same") as ws:
        assert await ws.recv() == "a WebSocket"


async def test_a_rejection_is_a_real_response(client):
    response = await refusal(client, "/reject")
    assert response.status_code == 418
    assert response.body == b'{"error":"a teapot"}'
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-reason"] == "tea"


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/nowhere", 404, b"Not Found"),
        ("/unread", 405, b"Method Not Allowed"),
        ("/raise/401", 401, b"as you wish"),
        ("/nul%00", 400, b"expected a path without NUL"),
        ("/topics/%0A", 400, b"invalid topic: expected a topic without control characters, got '\\n'"),
    ],
)
async def test_a_handshake_is_refused_with_its_status(client, path, status, body):
    response = await refusal(client, path)
    assert (response.status_code, response.body) == (status, body)


async def test_an_error_before_accept_is_500_with_the_id_that_the_log_has(client):
    response = await refusal(client, "/fail")
    assert response.status_code == 500
    [error_id] = re.findall(rb"\(error id (\w+)\)$", response.body)
    client.server.wait_for_line(f"/fail: unexpected error, id {error_id.decode()}")


async def test_a_foreign_page_is_refused(client):
    assert (await refusal(client, "/same", origin="http://evil.example")).status_code == 403
    async with client.connect("/same", origin=client.server.url) as ws:
        assert await ws.recv() == "a WebSocket"


@pytest.mark.parametrize("what", ["subprotocol", "header"])
async def test_accept_with_what_may_not_be_sent_is_a_value_error_in_the_view(client, what):
    """Hypercorn would drop the connection without a response."""
    name = f"{what}-{client.server.name}"
    response = await refusal(client, f"/accept-{what}/{name}", subprotocols=["v1"])
    assert response.status_code == 500
    error = (await client.note(name))["error"]
    assert ("not offered" if what == "subprotocol" else "x-greeting") in error


async def test_a_view_that_does_not_answer_is_503(client):
    response = await refusal(client, "/silent")
    assert response.status_code == 503


async def test_a_client_that_cannot_be_answered_does_no_harm(client):
    async with tcp(client.server) as stream:
        await stream.send((UPGRADE % b"/echo/text").replace(b"13", b"12"))
        status, _, _ = await read_response(stream)
        assert status in (400, 426)


ENGINES = [name for name, program in PROGRAMS.items() if program.has_engine]
UVICORNS = [name for name in PROGRAMS if name.startswith("uvicorn")]


@pytest.mark.parametrize("server", ENGINES, indirect=True, scope="session")
async def test_what_comes_right_behind_the_request_is_kept_by_the_engine(client):
    async with tcp(client.server) as stream:
        await stream.send(UPGRADE % b"/echo/text" + text_frame("early"))
        _, _, rest = await read_response(stream, has_body=False)
        assert (rest or await stream.receive()) == b"\x81\x05early"


@pytest.mark.parametrize("server", UVICORNS, indirect=True, scope="session")
async def test_what_comes_right_behind_the_request_is_lost_on_uvicorn(client):
    """RFC 6455 has clients wait for the 101. Hypercorn: see test_e2e_life."""
    async with tcp(client.server) as stream:
        await stream.send(UPGRADE % b"/echo/text" + text_frame("early"))
        assert b" 101 " in await stream.receive()
        await stream.send(text_frame("later"))
        assert await stream.receive() == b"\x81\x05later"
