"""HTTP on every server: what the framework answers, and what it leaves unread."""

import json
from contextlib import suppress
from functools import partial

import anyio
import pytest
from servers import LIMIT, PROGRAMS, read_response, tcp, wait_until_dropped

# uvicorn's HTTP is the same with each of its WebSocket protocols.
SERVERS = [name for name in PROGRAMS if name not in ("uvicorn-wsproto", "uvicorn-websockets")]

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("server", SERVERS, indirect=True, scope="session")]

HEAD = b"POST %s HTTP/1.1\r\nhost: x\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


async def test_a_page_is_answered(client):
    response = await client.http.get("/")
    assert (response.status_code, response.text) == (200, "<h1>hello</h1>")
    assert response.headers["content-type"] == "text/html; charset=utf-8"


async def test_head_has_the_headers_of_get_and_no_body(client):
    async with tcp(client.server) as stream:
        await stream.send(
            b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\nGET /same HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        _, headers, rest = await read_response(stream, has_body=False)
        assert headers["content-length"] == str(len("<h1>hello</h1>"))
        # What follows is the next answer.
        assert (await read_response(stream, rest))[2] == b"a page"


@pytest.mark.parametrize(
    ("method", "path", "status", "headers"),
    [
        ("GET", "/nowhere", 404, {}),
        ("POST", "/", 405, {"allow": "GET, HEAD, OPTIONS"}),
        ("OPTIONS", "/", 204, {"allow": "GET, HEAD, OPTIONS"}),
        ("GET", "/echo/text", 426, {"upgrade": "websocket"}),
        ("GET", "/nul%00", 400, {}),
    ],
)
async def test_what_is_not_there_has_its_status(client, method, path, status, headers):
    response = await client.http.request(method, path)
    assert response.status_code == status
    assert {name: response.headers[name] for name in headers} == headers


async def test_an_error_is_500_with_the_id_that_the_log_has(client):
    response = await client.http.get("/fail")
    assert response.status_code == 500
    assert "secret" not in response.text
    error_id = response.text.rpartition(" ")[2].rstrip(")")
    client.server.wait_for_line(f"/fail: unexpected error, id {error_id}")


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_over_the_limit_is_413(client, is_chunked):
    async def chunks(data):
        for start in range(0, len(data), 8192):
            yield data[start : start + 8192]

    for size, status in ((64 << 10, 200), ((64 << 10) + 1, 413)):
        data = bytes(size)
        response = await client.http.post("/body", content=chunks(data) if is_chunked else data)
        assert response.status_code == status


async def test_a_body_that_is_too_long_by_its_own_word_is_413_before_it_comes(client):
    async with tcp(client.server) as stream:
        await stream.send(HEAD % b"/body" + b"content-length: 1000000000\r\n\r\n")
        assert (await read_response(stream))[0] == 413


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_chunked_body_that_no_view_reads_leaves_nothing_behind(client, at_once):
    """Hypercorn's queue of 10 events would block otherwise; the fixture ``client`` checks what is left."""
    chunks = [b"1\r\nx\r\n"] * 80
    async with tcp(client.server) as stream:
        if at_once:
            await stream.send(CHUNKED % b"/unread" + b"".join(chunks) + b"0\r\n\r\n")
        else:
            await stream.send(CHUNKED % b"/unread")
            for chunk in [*chunks, b"0\r\n\r\n"]:
                await stream.send(chunk)
        status, _, body = await read_response(stream)
        assert (status, body) == (200, b"not read")


async def test_a_body_that_does_not_end_is_not_waited_for_and_leaves_nothing_behind(client):
    """The client sends on and on, or no more, for longer than the rest of a body is discarded."""

    async def send(*, on_and_on):
        async with tcp(client.server) as stream:
            await stream.send(CHUNKED % b"/unread" + b"1\r\nx\r\n")
            assert (await read_response(stream))[0] == 200
            if on_and_on:
                with suppress(anyio.BrokenResourceError), anyio.move_on_after(1.5):
                    while True:
                        # Paced: what a slow server has not read by then, it still has to, before the next test.
                        await stream.send(b"1\r\nx\r\n" * 100)
                        await anyio.sleep(0.01)
            else:
                await wait_until_dropped(stream)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(send, on_and_on=True))
        tasks.start_soon(partial(send, on_and_on=False))


async def test_a_post_reaches_50_websockets_and_an_event_stream(client):
    async with anyio.create_task_group() as tasks, client.http.stream("GET", "/events/everyone") as events:
        sockets = []
        leave = anyio.Event()
        got = []

        async def listen():
            async with client.connect("/topics/everyone") as ws:
                sockets.append(ws)
                if len(sockets) == 50:
                    joined.set()
                got.append(json.loads(await ws.recv()))
                await leave.wait()

        joined = anyio.Event()
        for _ in range(50):
            tasks.start_soon(listen)
        await joined.wait()
        lines = events.aiter_lines()
        response = await client.http.post("/publish/everyone", json={"text": "grüße"})
        assert (response.status_code, response.json()) == (202, {"subscribers": 51})
        assert [await anext(lines) for _ in range(3)] == [":", 'data: {"text":"grüße"}', ""]
        leave.set()
    assert got == [{"text": "grüße"}] * 50


async def test_a_foreign_page_may_neither_post_nor_connect(client):
    foreign = {"origin": "http://evil.example"}
    assert (await client.http.post("/publish/x", json=1, headers=foreign)).status_code == 403
    own = {"origin": client.server.url}
    assert (await client.http.post("/publish/x", json=1, headers=own)).status_code == 202


async def test_an_event_stream_ends_with_its_client(client):
    async with client.http.stream("GET", "/events/left") as response:
        assert response.headers["content-type"] == "text/event-stream"
    with anyio.fail_after(LIMIT):
        while (await client.http.post("/publish/left", json=1)).json() != {"subscribers": 0}:
            pass


async def test_a_connection_is_kept_alive(client):
    async with tcp(client.server) as stream:
        for last in (False, False, True):
            field = b"connection: close\r\n" if last else b""
            await stream.send(b"GET /same HTTP/1.1\r\nhost: x\r\n" + field + b"\r\n")
            assert (await read_response(stream))[2] == b"a page"
        await wait_until_dropped(stream)
