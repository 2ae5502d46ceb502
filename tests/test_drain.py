"""The shutdown of a worker: 1012 for every WebSocket, time for requests, and no client that prevents it."""

import contextlib
import re
import ssl
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.streams.tls import TLSStream
from raw_websocket import connected
from worker_here import echo, failures, lifespan, on_own_server, read_to_the_end, requesting, respond, serving

from microws.server.control import Stage
from microws.server.listening import tls_context

pytestmark = [pytest.mark.anyio, pytest.mark.sockets]

TLS = Path(__file__).parent / "tls"


async def test_every_websocket_gets_1012_then_the_app_shuts_down(caplog):
    caplog.set_level("INFO", logger="microws")
    order = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":

            async def stopped():
                order.append("shutdown")

            await lifespan(receive, send, on_shutdown=stopped)
        else:
            await send({"type": "websocket.accept"})
            while (event := await receive())["type"] != "websocket.disconnect":
                pass
            order.append((event["code"], event["reason"]))
            assert await receive() == event
            await send({"type": "websocket.close", "code": 1000})  # too late, and no error

    async with serving(app) as served, connected(served.port) as a, connected(served.port) as b:
        served.shutdown.request()
        assert await a.closed() == (1012, "service restart")
        assert await b.closed() == (1012, "service restart")
        await served.ended.wait()
    assert order == [(1012, "service restart"), (1012, "service restart"), "shutdown"]
    assert caplog.text.count('HTTP/1.1" closed 1012 ') == 2
    assert served.exit_code == 0


@on_own_server
@pytest.mark.parametrize("spread", [0.0, 5.0])
async def test_clients_of_microws_v1_are_told_when_to_come_back(spread):
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        offered = scope["subprotocols"]
        await send({"type": "websocket.accept", "subprotocol": offered[0] if offered else None})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    async with serving(app, drain_spread=spread) as served, contextlib.AsyncExitStack() as stack:
        live = [await stack.enter_async_context(connected(served.port, subprotocols=["microws.v1"])) for _ in range(20)]
        plain = await stack.enter_async_context(connected(served.port))
        served.shutdown.request()
        reasons = [await ws.closed() for ws in live]
        assert await plain.closed() == (1012, "service restart")
    if not spread:
        assert set(reasons) == {(1012, "service restart")}
        return
    found = [re.fullmatch(r"service restart; retry=(\d\.\d\d)", reason) for _, reason in reasons]
    seconds = [float(match[1]) for match in found]
    assert len(set(seconds)) > 10
    assert max(seconds) <= spread


@on_own_server
async def test_a_new_connection_has_a_second_for_its_request():
    async with serving(echo, drain_timeout=60) as served:
        streams = [await anyio.connect_tcp("127.0.0.1", served.port) for _ in range(2)]
        async with httpx.AsyncClient() as client:
            await client.get(served.url)  # so that the others were accepted
        served.shutdown.request()
        await anyio.sleep(0.2)
        await streams[0].send(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await streams[0].receive()).startswith(b"HTTP/1.1 200 ")
        with anyio.fail_after(3):
            await served.ended.wait()
        for stream in streams:
            await stream.aclose()
    assert served.exit_code == 0


@on_own_server
async def test_a_pending_tls_handshake_has_a_second_to_complete():
    tls = tls_context(str(TLS / "localhost.pem"), str(TLS / "localhost.key"))
    context = ssl.create_default_context(cafile=TLS / "localhost.pem")
    async with (
        serving(echo, tls=tls) as served,
        await anyio.connect_tcp("127.0.0.1", served.port) as slow,
        await anyio.connect_tcp("127.0.0.1", served.port),
    ):
        async with httpx.AsyncClient(verify=context) as client:
            await client.get(f"https://localhost:{served.port}/")  # so that the others were accepted
        served.shutdown.request()
        with anyio.move_on_after(0.3):
            await served.ended.wait()
        assert not served.ended.is_set()
        async with await TLSStream.wrap(
            slow, hostname="localhost", ssl_context=context, standard_compatible=False
        ) as stream:
            await stream.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await stream.receive()).startswith(b"HTTP/1.1 200 ")
        with anyio.fail_after(4):
            await served.ended.wait()
    assert served.exit_code == 0


@on_own_server
async def test_the_app_gets_1012_even_if_the_client_never_answers(caplog):
    told = anyio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await receive()
            assert (await receive())["code"] == 1012
            told.set()

    async with serving(app, drain_timeout=0.5) as served, connected(served.port) as ws:
        served.shutdown.request()
        with anyio.fail_after(0.4):
            await told.wait()
        assert (await ws.closed(answer=False))[0] == 1012
        with anyio.fail_after(1.5):
            await served.ended.wait()
    assert served.exit_code == 0
    assert "connections that did not end in time and are dropped: 1" in caplog.text


async def test_a_websocket_that_the_app_has_closed_keeps_its_code():
    closed = anyio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 4000})
            closed.set()
            while (await receive())["type"] != "websocket.disconnect":
                pass

    async with serving(app) as served, connected(served.port) as ws:
        await closed.wait()
        served.shutdown.request()
        assert (await ws.closed())[0] == 4000


async def answer(receive, send, wait):
    await wait()
    await respond(send, b"done")


async def stream(receive, send, wait):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"a", "more_body": True})
    await wait()
    await send({"type": "http.response.body", "body": b"b", "more_body": True})
    await send({"type": "http.response.body", "body": b"c"})


async def begin_an_event_stream(receive, send, wait):
    await wait()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await receive()


@pytest.mark.parametrize(("respond", "text"), [(answer, "done"), (stream, "abc"), (begin_an_event_stream, "")])
async def test_responses_finish_and_new_connections_are_refused(respond, text):
    begun, go_on = anyio.Event(), anyio.Event()

    async def wait():
        begun.set()
        await go_on.wait()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await receive()
            await respond(receive, send, wait)

    async def stop():
        await begun.wait()
        served.shutdown.request()
        await wait_refused(served.port)
        go_on.set()

    async with serving(app) as served, httpx.AsyncClient() as client, anyio.create_task_group() as tasks:
        tasks.start_soon(stop)
        response = await client.get(served.url)
        assert response.text == text
        # The head of the stream was sent before.
        assert text != "done" or response.headers.get_list("connection") == ["close"]
        await served.ended.wait()
    assert served.exit_code == 0


async def wait_refused(port):
    with anyio.fail_after(5):
        while True:
            try:
                stream = await anyio.connect_tcp("127.0.0.1", port)
            except OSError:
                return
            await stream.aclose()
            await anyio.sleep(0.01)


async def test_the_stop_delay_closes_connections_after_a_response():
    async def ask(stream):
        await stream.send(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        response = b""
        while not response.endswith(b"/x"):
            response += await stream.receive()
        return b"\r\nconnection: close\r\n" in response.lower()

    async with serving(echo, stop_delay=60) as served, await anyio.connect_tcp("127.0.0.1", served.port) as kept:
        assert not await ask(kept)
        served.shutdown.reach(Stage.DELAY)
        async with await anyio.connect_tcp("127.0.0.1", served.port) as new:
            for stream in kept, new:
                assert await ask(stream)
                await read_to_the_end(stream)
        assert not served.ended.is_set()
        served.shutdown.request()
        await served.ended.wait()


async def test_an_idle_connection_is_closed_immediately():
    async with serving(echo) as served, httpx.AsyncClient() as client:
        await client.get(served.url)
        served.shutdown.request()
        with anyio.fail_after(1):
            await served.ended.wait()


@pytest.mark.parametrize("listens", [True, False])
async def test_an_event_stream_ends_immediately_and_cleanly(caplog, listens):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await receive()
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"text/event-stream")]}
            )
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            if listens:
                assert await receive() == {"type": "http.disconnect"}
                assert await receive() == {"type": "http.disconnect"}
            else:
                while True:
                    await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})
                    await anyio.sleep(0.01)

    async with (
        serving(app, drain_timeout=300) as served,
        httpx.AsyncClient() as client,
        client.stream("GET", served.url) as response,
    ):
        chunks = response.aiter_text()
        assert (await anext(chunks)).startswith("data: 1")
        served.shutdown.request()
        async for _ in chunks:  # an end that was cut short would raise
            pass
    assert served.exit_code == 0
    assert not failures(caplog)


@pytest.mark.parametrize("again", [False, True])
async def test_a_pending_request_is_dropped_after_the_drain_or_a_signal(caplog, again):
    begun = anyio.Event()
    order = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":

            async def stopped():
                order.append("shutdown")

            await lifespan(receive, send, on_shutdown=stopped)
        else:
            begun.set()
            try:
                await anyio.sleep_forever()
            finally:
                order.append("cancelled")

    async with serving(app, drain_timeout=300 if again else 0.1) as served, requesting(served):
        await begun.wait()
        served.shutdown.request()
        if again:
            served.shutdown.request()
        with anyio.fail_after(2):
            await served.ended.wait()
    assert order == ["cancelled", "shutdown"]
    assert served.exit_code == 0


async def test_an_app_that_ignores_cancellation_is_abandoned(caplog):
    begun, release = anyio.Event(), anyio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            with anyio.CancelScope(shield=True):
                begun.set()
                await release.wait()

    async with serving(app, drain_timeout=0.1) as served, requesting(served):
        await begun.wait()
        served.shutdown.request()
        with anyio.move_on_after(2):
            await served.ended.wait()
        release.set()


async def test_a_second_request_ends_a_lifespan_shutdown_that_hangs():
    stopping = anyio.Event()

    async def app(scope, receive, send):
        async def hang():
            stopping.set()
            await anyio.sleep_forever()

        await lifespan(receive, send, on_shutdown=hang)

    async with serving(app, shutdown_timeout=300) as served:
        served.shutdown.request()
        await stopping.wait()
        served.shutdown.request()
        with anyio.fail_after(1):
            await served.ended.wait()
    assert served.exit_code == 1
