"""What probes are told: by the test client, and by a server that starts, serves and drains."""

import logging
import signal
import threading

import anyio
import httpx
import pytest
from hub_here import serving_from
from hubs import hub_process
from worker_here import serving

import microws.health
from microws import App, RoutingError

pytestmark = [pytest.mark.anyio, pytest.mark.sockets]


def make_app(**options):
    app = App()
    app.health(**options)
    return app


async def ready(app, path="/readyz"):
    async with app.test_client() as client:
        return await client.get(path)


def messages(caplog, *levels):
    return [record.getMessage() for record in caplog.records if record.levelno in levels]


# The answers


async def test_a_process_that_answers_is_alive_and_ready():
    async with make_app().test_client() as client:
        for path, body in (("/healthz", "alive"), ("/readyz", "ready")):
            response = await client.get(path)
            assert (response.status, response.text) == (200, body)
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["content-type"] == "text/plain; charset=utf-8"
            head = await client.request("HEAD", path)
            assert (head.status, head.body) == (200, b"")
            assert (await client.post(path)).status == 405


async def test_the_paths_are_what_they_are_told_to_be():
    app = make_app(live="/-/live", ready="/-/ready")
    assert (await ready(app, "/-/ready")).status == 200
    assert (await ready(app, "/-/live")).status == 200
    assert (await ready(app, "/readyz")).status == 404
    with pytest.raises(RoutingError, match="/-/live"):
        app.health(live="/-/live", ready="/readyz")


async def test_a_probe_of_any_origin_passes_and_no_hook_asks_it_to_log_in():
    app = make_app()

    @app.before_request
    async def log_in(request):
        return "who are you?", 401

    @app.after_request
    async def decorate(request, response):
        response.headers["x-hook"] = "1"

    async with app.test_client() as client:
        response = await client.get("/readyz", headers={"origin": "null", "sec-fetch-site": "cross-site"})
    assert response.status == 200
    assert "x-hook" not in response.headers


async def test_a_blueprint_may_bring_it_and_asks_the_app_that_serves():
    blueprint = make_app()
    app = App()
    app.include(blueprint, "/admin")
    assert (await ready(app, "/admin/readyz")).status == 200
    with pytest.raises(RuntimeError, match="include"):
        blueprint.health()


# The check


async def fails():
    raise ConnectionError("no database at db.internal")


def fails_in_a_thread():
    assert threading.current_thread() is not threading.main_thread()
    raise ConnectionError("no database at db.internal")


async def says_no():
    return False


class SaysNo:
    async def __call__(self):
        return False


@pytest.mark.parametrize("check", [fails, fails_in_a_thread, says_no, lambda: False, SaysNo(), lambda: says_no()])
async def test_an_app_whose_check_fails_lives_but_is_not_ready(check, caplog):
    app = make_app(check=check)
    response = await ready(app)
    assert (response.status, response.text) == (503, "not ready")
    assert response.headers["retry-after"] == "1"
    assert response.headers["cache-control"] == "no-store"
    assert (await ready(app, "/healthz")).status == 200
    [line] = messages(caplog, logging.WARNING)
    assert line.startswith("not ready: the check of app.health ")


async def passes():
    pass


@pytest.mark.parametrize("check", [passes, lambda: None, lambda: True, lambda: 0, dict, lambda: passes()])
async def test_whatever_a_check_returns_but_false_is_well(check):
    assert (await ready(make_app(check=check))).status == 200


async def test_a_failure_is_logged_once_with_its_reason_and_so_is_its_end(caplog):
    caplog.set_level(logging.INFO, logger="microws")
    is_well = False

    async def check():
        if not is_well:
            await fails()

    app = make_app(check=check)
    async with app.test_client() as client:
        for _ in range(3):
            assert (await client.get("/readyz")).status == 503
        is_well = True
        for _ in range(2):
            assert (await client.get("/readyz")).status == 200
        is_well = False
        assert (await client.get("/readyz")).status == 503
    records = [record for record in caplog.records if record.name == "microws"]
    assert [record.getMessage() for record in records] == [
        "not ready: the check of app.health failed",
        "ready again: the check of app.health passes",
        "not ready: the check of app.health failed",
    ]
    assert "no database at db.internal" in str(records[0].exc_info[1])


async def test_a_check_that_does_not_end_is_given_up(monkeypatch, caplog):
    monkeypatch.setattr(microws.health, "CHECK_TIMEOUT", 0.01)
    assert (await ready(make_app(check=anyio.sleep_forever))).status == 503
    assert len(messages(caplog, logging.WARNING)) == 1


async def test_a_check_that_hangs_in_a_thread_holds_one_thread_however_many_probes_come(monkeypatch):
    monkeypatch.setattr(microws.health, "CHECK_TIMEOUT", 0.05)
    calls = 0
    go_on = threading.Event()

    def check():
        nonlocal calls
        calls += 1
        go_on.wait(5)
        ended.set()

    ended = threading.Event()
    async with make_app(check=check).test_client() as client:
        try:
            for _ in range(5):
                assert (await client.get("/readyz")).status == 503
            assert calls == 1
        finally:
            go_on.set()
        await anyio.to_thread.run_sync(ended.wait, 5)
        with anyio.fail_after(5):
            while (await client.get("/readyz")).status == 503:
                pass


@pytest.mark.parametrize(("check", "message"), [(True, "expected a function"), (lambda request: True, "does not fit")])
def test_what_cannot_be_a_check_is_refused_at_once(check, message):
    with pytest.raises(TypeError, match=message):
        make_app(check=check)


# The life of the app


async def lifespan_of(app, after_start, after_shutdown):
    """On a server that has nothing but a lifespan to tell; runs the app's startup and shutdown."""
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive():
        if len(events) == 1:
            await after_start()
        return events.pop(0)

    async def send(event):
        assert event["type"].endswith(".complete")

    await app({"type": "lifespan"}, receive, send)
    await after_shutdown()


async def status_of(app, **scope):
    sent = []

    async def send(event):
        sent.append(event)

    async def receive():
        await anyio.sleep_forever()

    scope = {"type": "http", "method": "GET", "path": "/readyz", "headers": [], **scope}
    await app(scope, receive, send)
    return sent[0]["status"]


async def test_on_any_server_an_app_is_ready_from_the_end_of_its_startup_to_the_beginning_of_its_shutdown():
    app = make_app()
    seen = []

    async def look():
        seen.append(await status_of(app))

    app.on_startup(look)
    app.on_shutdown(look)
    await look()  # where no lifespan is served
    await lifespan_of(app, look, look)
    assert seen == [200, 503, 200, 503, 503]


async def test_a_server_may_say_that_it_drains():
    app = make_app()
    assert await status_of(app, extensions={"microws": {"is_draining": lambda: True}}) == 503
    assert await status_of(app, extensions={"microws": {"is_draining": lambda: False}}) == 200
    assert await status_of(app, extensions={"microws": {}}) == 200
    assert await status_of(app, extensions=None) == 200


# Over sockets


async def test_who_was_accepted_before_a_drain_is_told_of_it():
    is_asked, may_answer = anyio.Event(), anyio.Event()

    async def check():
        is_asked.set()
        await may_answer.wait()

    responses = []

    async def ask(url):
        async with httpx.AsyncClient() as client:
            responses.append(await client.get(url))

    async with serving(make_app(check=check)) as served, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, f"{served.url}/readyz")
        await is_asked.wait()
        served.shutdown.request()
        may_answer.set()
    [response] = responses
    assert (response.status_code, response.text) == (503, "not ready")
    assert response.headers["retry-after"] == "1"
    assert served.exit_code == 0


async def test_probes_that_succeed_are_in_the_access_log_at_debug_level_only(caplog):
    caplog.set_level(logging.DEBUG, logger="microws.access")
    app = make_app()
    app.health(live="/x", ready="/fails", check=says_no)
    async with serving(app) as served, httpx.AsyncClient() as client:
        for path in ("/readyz", "/healthz", "/fails", "/nothing"):
            await client.get(served.url + path)
    lines = [record for record in caplog.records if record.name == "microws.access"]
    assert [(record.levelname, record.access["path"], record.access["status"]) for record in lines] == [
        ("DEBUG", "/readyz", 200),
        ("DEBUG", "/healthz", 200),
        ("INFO", "/fails", 503),
        ("INFO", "/nothing", 404),
    ]


# The hub process


async def test_an_app_is_ready_without_a_hub_process_in_memory_alone():
    assert (await ready(make_app(hub=True))).status == 200


async def status_without_lifespan(app, path):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://testserver") as client:
        return (await client.get(path)).status_code


async def test_an_app_is_not_ready_while_its_hub_process_does_not_answer(tmp_path, caplog):
    caplog.set_level(logging.INFO, "microws")
    app, other = make_app(hub=True), make_app()

    async def statuses():
        return [await status_without_lifespan(each, "/readyz") for each in (app, other)]

    with hub_process(tmp_path) as hub:
        path = hub.directory.path
        async with serving_from(path, app), serving_from(path, other):
            assert await statuses() == [200, 200]
            hub.signal(signal.SIGSTOP)
            assert await statuses() == [503, 200]
            assert await status_without_lifespan(app, "/healthz") == 200
            assert await statuses() == [503, 200]
            hub.signal(signal.SIGCONT)
            assert await statuses() == [200, 200]
    told = [text for text in messages(caplog, logging.INFO, logging.WARNING) if "ready" in text]
    assert told == ["not ready: the hub does not answer", "ready again: the hub answers"]
