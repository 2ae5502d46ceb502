"""What the server makes of a proxy's headers, and what probes are told, as users start it."""

import json

import pytest
from servers import PROGRAMS, Client, failures, started
from websockets.exceptions import InvalidStatus

pytestmark = pytest.mark.anyio

MICROWS = [name for name in PROGRAMS if name.startswith("microws")]

CLIENT = "203.0.113.7"
HEADERS = {
    "x-forwarded-for": f"198.51.100.66, {CLIENT}, 10.0.0.1",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "outer.example",
    "x-forwarded-prefix": "/chat",
}


@pytest.mark.parametrize("name", MICROWS)
async def test_a_trusted_proxy_is_believed(name):
    with started(name, "everything:app", "--forwarded-allow-ips", "127.0.0.1,10.0.0.0/8") as server:
        async with Client.of(server) as client:
            told = (await client.http.get("/where", headers=HEADERS)).json()
            async with client.connect("/where", additional_headers=HEADERS, origin="https://outer.example") as ws:
                told_ws = json.loads(await ws.recv())
        assert told == {"client": CLIENT, "url": "https://outer.example/chat/where", "link": "/chat/where"}
        assert told_ws == {"client": CLIENT, "url": "wss://outer.example/chat/where", "link": "/chat/where"}
        server.wait_for_line(rf' {CLIENT} "GET /chat/where HTTP/1.1" 200 ')
        server.wait_for_line(rf' {CLIENT} "WebSocket /chat/where HTTP/1.1" 101 ')
        assert server.stop() == 0
        assert failures(server) == []


@pytest.mark.parametrize("name", MICROWS)
async def test_nobody_else_is(name):
    with started(name, "everything:app", "--forwarded-allow-ips", "10.0.0.0/8") as server:
        async with Client.of(server) as client:
            told = (await client.http.get("/where", headers=HEADERS)).json()
            async with client.connect("/where", additional_headers=HEADERS) as ws:
                told_ws = json.loads(await ws.recv())
            with pytest.raises(InvalidStatus, match="403"):
                async with client.connect("/where", additional_headers=HEADERS, origin="https://outer.example"):
                    pass
        assert told == {"client": "127.0.0.1", "url": f"{server.url}/where", "link": "/where"}
        assert told_ws == {"client": "127.0.0.1", "url": f"{server.ws_url}/where", "link": "/where"}
        assert server.stop() == 0


async def test_probes_are_answered_on_every_server(client):
    for path in ("/healthz", "/readyz"):
        response = await client.http.get(path)
        assert (response.status_code, response.headers["cache-control"]) == (200, "no-store")
        assert (await client.http.head(path)).status_code == 200
    if client.server.name in MICROWS:
        assert client.server.find_lines(r"/healthz|/readyz") == []
