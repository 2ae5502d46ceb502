"""How servers with an app begin and end."""

import contextlib
import signal
import socket
import subprocess
import sys
import time

import anyio
import pytest
from raw_websocket import connected
from servers import HERE, LIMIT, PROGRAMS, UPGRADE, Client, failures, read_response, started, tcp, text_frame
from websockets.exceptions import ConnectionClosed

pytestmark = pytest.mark.anyio

MICROWS = [name for name in PROGRAMS if name.startswith("microws")]


@pytest.mark.parametrize(
    ("name", "exit_code"), [("microws-asyncio", 1), ("microws-trio", 1), ("hypercorn", 0), ("uvicorn-sansio", 3)]
)
def test_an_app_whose_startup_fails_is_never_served(name, exit_code):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = PROGRAMS[name]
    bind = ["--bind", f"127.0.0.1:{port}"] if name == "hypercorn" else ["--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", *program.command, *bind, "cannot_start:app"],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + LIMIT
    with process:
        try:
            while process.poll() is None and time.monotonic() < end:
                with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), 1) as sock:
                    sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                    sock.settimeout(1)
                    assert not sock.recv(1), "it is served"
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
            output = process.stdout.read()
        finally:
            process.kill()
    assert process.returncode == exit_code
    assert "LookupError: no database" in output


@pytest.mark.parametrize("name", MICROWS)
async def test_a_server_that_is_stopped_closes_each_websocket_with_1012_and_exits_with_0(name):
    """Whatever its clients do; lifespan shutdown comes last."""
    with started(name, "everything:app", "--drain-timeout", "1") as server:
        async with Client.of(server) as client, contextlib.AsyncExitStack() as stack:
            sockets = [await stack.enter_async_context(client.connect("/topics/x")) for _ in range(50)]
            events = await stack.enter_async_context(client.http.stream("GET", "/events/x"))
            raw = await stack.enter_async_context(connected(server.port, "/echo/text"))
            idle = await stack.enter_async_context(tcp(server))
            await idle.send(b"GET /same HTTP/1.1\r\nhost: x\r\n\r\n")
            await read_response(idle)
            early = await stack.enter_async_context(tcp(server))
            if server.program.has_engine:
                await early.send(UPGRADE % b"/slow-to-accept" + text_frame("early"))
            else:
                # Hypercorn refuses what comes before the 101. It fails if the view accepts at the same time.
                await early.send(UPGRADE % b"/silent" + text_frame("early"))
                assert (await read_response(early))[0] == 400
            assert (await client.http.post("/publish/x", json="hello")).json() == {"subscribers": 51}
            began = time.monotonic()
            server.signal(signal.SIGTERM)
            assert "hello" in "".join([part async for part in events.aiter_text()])
            assert await raw.closed() == (1012, "service restart")
            for ws in sockets:
                assert await ws.recv() == '"hello"'
                with pytest.raises(ConnectionClosed) as closed:
                    await ws.recv()
                assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "service restart")
            await anyio.to_thread.run_sync(server.wait)
            assert time.monotonic() - began < 3
        assert server.wait() == 0
        assert failures(server) == []
        assert server.find_lines("everything has ended")
