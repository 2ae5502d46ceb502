"""The lifespan of a served app: startup before the first client, shutdown after the last."""

import anyio
import httpx
import pytest
from worker_here import fails_with_a_short_message, failures, lifespan, respond, serving, start_only

from microws.server.control import Shutdown
from microws.server.listening import bind
from microws.server.settings import Settings, parse_address
from microws.server.worker import serve

pytestmark = [pytest.mark.anyio, pytest.mark.sockets]


async def test_every_request_gets_a_copy_of_the_lifespans_state():
    seen = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            scope["state"]["answer"] = 42
            await lifespan(receive, send)
        else:
            seen.append(dict(scope["state"]))
            scope["state"]["answer"] = 0
            await respond(send)

    async with serving(app) as served, httpx.AsyncClient() as client:
        await client.get(served.url)
        await client.get(served.url)
    assert seen == [{"answer": 42}, {"answer": 42}]


async def raises_at_the_scope(scope, receive, send):
    assert scope["type"] == "http"
    await respond(send)


async def answers_as_if_it_were_a_request(scope, receive, send):
    await receive()
    await respond(send)


@pytest.mark.parametrize("app", [raises_at_the_scope, answers_as_if_it_were_a_request])
async def test_an_app_without_lifespan_is_served(caplog, app):
    async with serving(app) as served, httpx.AsyncClient() as client:
        assert (await client.get(served.url)).status_code == 200
    assert served.exit_code == 0
    assert not failures(caplog)


async def fails_with_a_message(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "Traceback ...\nLookupError: no database\n"})


async def fails_with_a_message_and_raises(scope, receive, send):
    try:
        await raises(scope, receive, send)
    except LookupError:
        await send({"type": "lifespan.startup.failed", "message": "something"})
        raise


async def raises(scope, receive, send):
    await receive()
    raise LookupError("no database")


async def raises_in_a_group(scope, receive, send):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(raises, scope, receive, send)


@pytest.mark.parametrize("app", [raises, raises_in_a_group])
async def test_an_app_that_raises_at_startup_is_served_with_a_warning(caplog, app):
    async def serves(scope, receive, send):
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
        await respond(send)

    async with serving(serves) as served, httpx.AsyncClient() as client:
        assert (await client.get(served.url)).status_code == 200
    assert served.exit_code == 0
    [record] = failures(caplog)
    assert (record.levelname, record.getMessage().partition(",")[0]) == (
        "WARNING",
        "the app raised at lifespan.startup and is served without a lifespan",
    )
    assert caplog.text.count("LookupError: no database") == 1


@pytest.mark.parametrize("app", [fails_with_a_message, fails_with_a_short_message, fails_with_a_message_and_raises])
async def test_a_failed_startup_is_exit_code_1_and_logged_once(caplog, app):
    assert await start_only(app) == 1
    [record] = failures(caplog)
    assert record.getMessage().startswith("the app's startup failed")
    assert caplog.text.count("LookupError: no database") == 1


async def test_a_startup_that_raises_system_exit_has_failed(caplog):
    async def app(scope, receive, send):
        await receive()
        raise SystemExit("no database")

    assert await start_only(app) == 1
    [record] = failures(caplog)
    assert (record.getMessage(), record.exc_info[0]) == ("the app's startup failed", SystemExit)


async def test_a_startup_that_does_not_end_is_exit_code_1(caplog):
    async def app(scope, receive, send):
        await receive()
        await anyio.sleep_forever()

    assert await start_only(app, startup_timeout=0.05) == 1
    assert "the app's startup did not end within 0.05 s" in caplog.text


async def test_the_port_refuses_clients_until_startup_has_ended():
    refused = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":

            async def connect():
                try:
                    await anyio.connect_tcp("127.0.0.1", port)
                except OSError:
                    refused.append(True)

            await lifespan(receive, send, on_startup=connect)

    [listener] = bind([parse_address("127.0.0.1:0")])
    port = listener.sock.getsockname()[1]
    shutdown = Shutdown()

    async def main(*, task_status):
        assert await serve(app, Settings(), listeners=[listener], shutdown=shutdown, task_status=task_status) == 0

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            await tasks.start(main)
            await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
            shutdown.request()
    listener.close()
    assert refused == [True]


async def test_a_stop_during_startup_is_orderly():
    waiting = anyio.Event()
    shutdown = Shutdown()
    codes = []

    async def app(scope, receive, send):
        waiting.set()
        await anyio.sleep_forever()

    async def main():
        [listener] = bind([parse_address("127.0.0.1:0")])
        codes.append(await serve(app, Settings(), listeners=[listener], shutdown=shutdown))
        listener.close()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(main)
            await waiting.wait()
            shutdown.request()
    assert codes == [0]


async def test_a_port_taken_meanwhile_is_exit_code_1_after_the_shutdown(caplog):
    order = []

    async def app(scope, receive, send):
        async def stopped():
            order.append("shutdown")

        await lifespan(receive, send, on_shutdown=stopped)

    # Two sockets may be bound to the same address until one of them listens.
    [first] = bind([parse_address("127.0.0.1:0")])
    port = first.sock.getsockname()[1]
    [second] = bind([parse_address(f"127.0.0.1:{port}")])
    try:
        first.listen()
        with anyio.fail_after(10):
            assert await serve(app, Settings(), listeners=[second], shutdown=Shutdown()) == 1
    finally:
        first.close()
        second.close()
    assert order == ["shutdown"]
    [record] = failures(caplog)
    assert f"127.0.0.1:{port}" in record.getMessage()


async def fails_at_shutdown(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    raise LookupError("lost")


async def says_that_shutdown_failed(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.failed", "message": "LookupError: lost"})


async def fails_after_shutdown(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        raise LookupError("lost")


@pytest.mark.parametrize("app", [fails_at_shutdown, says_that_shutdown_failed, fails_after_shutdown])
async def test_a_failed_shutdown_is_exit_code_1_and_logged_once(caplog, app):
    async with serving(app) as served:
        pass
    assert served.exit_code == 1
    [record] = failures(caplog)
    assert record.getMessage().startswith("the app's shutdown failed")
    assert caplog.text.count("LookupError: lost") == 1


@pytest.mark.parametrize("answers", [True, False])
async def test_a_shutdown_that_does_not_end_is_exit_code_1(caplog, answers):
    async def app(scope, receive, send):
        if answers:
            await lifespan(receive, send)
        else:
            await lifespan(receive, send, on_shutdown=anyio.sleep_forever)
        await anyio.sleep_forever()

    async with serving(app, shutdown_timeout=0.05) as served:
        pass
    assert served.exit_code == 1
    assert "the app's shutdown did not end within 0.05 s" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
async def test_a_lifespan_that_ends_early_does_not_stop_the_server(caplog, fails):
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            if fails:
                raise LookupError
        else:
            await respond(send)

    async with serving(app) as served, httpx.AsyncClient() as client:
        assert (await client.get(served.url)).status_code == 200
    assert served.exit_code == fails
    assert len(failures(caplog)) == fails


async def test_a_lifespan_may_return_at_shutdown_without_an_answer():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()

    async with serving(app) as served:
        pass
    assert served.exit_code == 0


async def test_an_app_that_waits_for_more_after_its_shutdown_has_ended():
    async def app(scope, receive, send):
        await lifespan(receive, send)
        await receive()

    async with serving(app) as served:
        pass
    assert served.exit_code == 0
