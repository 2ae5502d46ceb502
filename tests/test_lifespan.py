"""The life of an app: start-up, background tasks, shutdown."""

import asyncio
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
import anyio.to_thread
import pytest

from microws import App
from microws.codec import dumps_json

pytestmark = pytest.mark.anyio

PHASES = ("startup", "shutdown")


@asynccontextmanager
async def running(app):
    async with app.test_client() as client:
        yield client


async def events_of(app):
    """The app's lifespan under a server that asks for all of it: the events it sent, and what it raised."""
    asked = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = []

    async def receive():
        return asked.pop(0)

    async def send(event):
        sent.append(event)

    try:
        with anyio.fail_after(5):
            await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    except (Exception, SystemExit) as error:
        return sent, error
    return sent, None


def context(log, name, *, fail=""):
    @asynccontextmanager
    async def manage(app):
        log.append(f"enter {name}")
        if fail == "enter":
            raise LookupError(name)
        try:
            yield
        finally:
            log.append(f"leave {name}")
        if fail == "leave":
            raise LookupError(name)

    return manage


def note(log, text, *, fail=False):
    async def hook():
        log.append(text)
        if fail:
            raise LookupError(text)

    return hook


class TestOrder:
    async def test_contexts_then_hooks_start_in_order_and_end_in_reverse(self):
        app, log = App(), []
        app.lifespan(context(log, "a"))
        app.on_startup(note(log, "start 1"))
        app.lifespan(context(log, "b"))
        app.on_startup(note(log, "start 2"))
        app.on_shutdown(note(log, "stop 1"))
        app.on_shutdown(note(log, "stop 2"))
        assert await events_of(app) == ([{"type": f"lifespan.{phase}.complete"} for phase in PHASES], None)
        up = ["enter a", "enter b", "start 1", "start 2"]
        assert log == [*up, "stop 1", "stop 2", "leave b", "leave a"]

    async def test_a_context_gets_the_app_and_may_be_an_async_generator(self):
        app = App()

        @app.lifespan
        async def connect(given):
            given.state.database = "open"
            yield
            given.state.database = "closed"

        async with running(app):
            assert app.state.database == "open"
        assert app.state.database == "closed"

    async def test_decorators_return_the_function(self):
        app, hook = App(), note([], "called")
        for decorator in (app.on_startup, app.on_shutdown):
            assert decorator(hook) is hook
        made = context([], "a")
        assert app.lifespan(made) is made

    def test_a_lifespan_without_yield_is_an_error_at_registration(self):
        async def start(app):
            pass

        with pytest.raises(TypeError, match=r"^expected an async generator for @app\.lifespan: write a `yield`"):
            App().lifespan(start)


class TestSeveralRuns:
    async def test_two_runs_at_a_time_have_their_own_tasks(self):
        app, log = App(), []
        app.lifespan(context(log, "pool"))
        app.health()

        async def work():
            try:
                await anyio.sleep_forever()
            finally:
                log.append("task ended")

        @app.get("/")
        async def start_another():
            app.start_soon(note(log, "task of a view"))

        app.on_startup(lambda: app.start_soon(work))
        async with running(app) as outer:
            async with running(app) as inner, app.subscribe("t") as messages:
                assert (await inner.get("/")).status == 204
                await anyio.wait_all_tasks_blocked()
                await app.publish("t", "to both")
                assert await anext(messages) == "to both"
            assert log == ["enter pool", "enter pool", "task of a view", "task ended", "leave pool"]
            assert (await outer.get("/readyz")).status == 200
            assert (await outer.get("/")).status == 204
            await anyio.wait_all_tasks_blocked()
            assert (await app.publish("t", "nobody")).subscribers == 0
        assert log[5:] == ["task of a view", "task ended", "leave pool"]

    @pytest.mark.parametrize("backend", ["asyncio", "trio"])
    async def test_a_run_in_another_event_loop_is_an_error(self, backend):
        app = App()

        async def second():
            async with app.test_client():
                pytest.fail("it runs")

        async with running(app), app.subscribe("t") as messages:
            with pytest.raises(
                RuntimeError, match="expected the event loop that this app runs in already, got another"
            ):
                await anyio.to_thread.run_sync(partial(anyio.run, second, backend=backend))
            await app.publish("t", 1)
            assert await anext(messages) == 1


async def end_the_first_before_the_second():
    app = App()
    first = app.test_client()
    await first.__aenter__()
    async with running(app):
        await first.__aexit__(None, None, None)
        app.start_soon(anyio.sleep, 0)
        assert (await app.publish("t", "x")).subscribers == 0
    with pytest.raises(RuntimeError, match="expected a running app"):
        await app.publish("t", "x")


def test_the_first_of_two_runs_may_end_first():
    asyncio.run(end_the_first_before_the_second())


def test_an_app_runs_in_one_event_loop_after_another():
    app, log = App(), []
    app.on_startup(note(log, "up"))

    async def live():
        async with running(app), app.subscribe("t") as messages:
            await app.publish("t", 1)
            assert await anext(messages) == 1
            app.start_soon(anyio.sleep, 0)

    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(live, backend=backend)
    assert log == ["up"] * 3


def test_a_run_in_a_closed_event_loop_does_not_matter():
    app = App()

    async def live():
        async with running(app):
            await app.publish("t", 1)

    abandoned, lifespan = asyncio.new_event_loop(), app.running()
    abandoned.run_until_complete(lifespan.__aenter__())
    for task in asyncio.all_tasks(abandoned):
        task.cancel()
    abandoned.run_until_complete(asyncio.sleep(0))
    abandoned.close()
    asyncio.run(live())
    asyncio.run(live())


class TestState:
    async def test_each_connection_gets_the_yielded_state_of_its_run(self):
        app = App()

        @app.lifespan
        async def database(app):
            yield {"db": "DB", "users": []}

        @app.lifespan
        @asynccontextmanager
        async def cache(app):
            yield {"cache": "C"}

        @app.get("/")
        async def page(request):
            request.state.users.append("ann")
            request.state.db += "!"
            return [request.state.db, request.state.cache, request.state.users]

        @app.websocket_route("/", value_type="json")
        async def feed(ws):
            async with ws:
                await ws.send([ws.state.db, ws.state.cache])

        async with running(app) as client:
            assert (await client.get("/")).json() == ["DB!", "C", ["ann"]]
            async with running(app) as inner:
                assert (await inner.get("/")).json() == ["DB!", "C", ["ann"]]
            assert (await client.get("/")).json() == ["DB!", "C", ["ann", "ann"]]
            async with client.websocket("/") as ws:
                assert await ws.receive() == ["DB", "C"]

    async def test_a_context_that_yields_itself_or_none_adds_no_state(self):
        app = App()

        class Pool:
            async def __aenter__(self):
                return self

            async def __aexit__(self, *args):
                pass

        app.lifespan(lambda app: Pool())
        app.lifespan(context([], "a"))
        async with app.running() as state:
            assert state == {}

    async def test_a_context_and_its_state_must_be_valid(self):
        app, invalid = App(), App()
        invalid.lifespan(lambda app: None)

        @app.lifespan
        async def begin(app):
            yield "DB"

        wrong_state = r'got str: write `yield \{"name": value\}`, which views read as request'
        for each, message in ((app, wrong_state), (invalid, r".")):
            with pytest.raises(TypeError, match=message):
                async with running(each):
                    pytest.fail("it runs")

    async def test_a_server_without_state_is_named(self):
        app = App()

        @app.lifespan
        async def begin(app):
            yield {"db": 1}

        [event], _ = await events_of(app)
        assert event["type"] == "lifespan.startup.failed"
        assert "expected a server that keeps the state of a lifespan" in event["message"]


def asgi_app(log, name, *, state=None, fail=""):
    """An app with a lifespan, which answers requests with its state."""

    async def app(scope, receive, send):
        if scope["type"] == "http":
            body = dumps_json({key: scope["state"][key] for key in sorted(scope["state"])})
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})
            return
        scope["state"].update(state or {})
        for phase in PHASES:
            assert (await receive())["type"] == f"lifespan.{phase}"
            log.append(f"{phase} {name}")
            if fail == phase:
                await send({"type": f"lifespan.{phase}.failed", "message": f"no {name}"})
                return
            await send({"type": f"lifespan.{phase}.complete"})

    return app


async def without_answer(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        raise LookupError("only http")
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def at_scope(scope, receive, send):
    assert scope["type"] == "http", "only http"
    await without_answer(scope, receive, send)


async def returning(scope, receive, send):
    if scope["type"] == "http":
        await without_answer(scope, receive, send)


class TestMountedApps:
    async def test_mounted_apps_start_last_and_end_first(self):
        app, part, log = App(), App(), []
        app.lifespan(context(log, "pool"))
        app.on_startup(note(log, "start"))
        app.on_shutdown(note(log, "stop"))
        one = asgi_app(log, "one")
        app.mount("/one", one)
        app.mount("/again", one)
        part.mount("/two", asgi_app(log, "two"))
        app.include(part, "/part")
        async with running(app):
            log.append("running")
        up = ["enter pool", "start", "startup one", "startup two"]
        assert log == [*up, "running", "shutdown two", "shutdown one", "stop", "leave pool"]

    async def test_a_mounted_app_has_its_own_state(self):
        app = App()

        @app.lifespan
        async def begin(app):
            yield {"db": "outer", "more": 1}

        @app.get("/")
        async def page(request):
            return [request.state.db, "inner" in request.state]

        app.mount("/sub", asgi_app([], "sub", state={"db": "sub", "inner": 2}))
        async with running(app) as client:
            assert (await client.get("/sub/x")).json() == {"db": "sub", "inner": 2, "more": 1}
            assert (await client.get("/")).json() == ["outer", False]

    @pytest.mark.parametrize("phase", PHASES)
    async def test_a_failed_mount_is_named_and_the_others_end(self, phase):
        app, log = App(), []
        app.lifespan(context(log, "pool"))
        app.mount("/one", asgi_app(log, "one"))
        app.mount("/two", asgi_app(log, "two", fail=phase))
        sent, error = await events_of(app)
        assert sent[-1]["type"] == f"lifespan.{phase}.failed"
        assert str(error) == f"the app mounted at /two: its {phase} failed: no two"
        ended = ["shutdown two"] if phase == "shutdown" else []
        assert log == ["enter pool", "startup one", "startup two", *ended, "shutdown one", "leave pool"]

    @pytest.mark.parametrize("mounted", [at_scope, without_answer, returning])
    async def test_a_mounted_app_without_a_lifespan_is_served(self, mounted):
        app = App()
        app.mount("/sub", mounted)
        async with running(app) as client:
            assert (await client.get("/sub/")).status == 204

    async def test_a_mounted_microws_app_shares_nothing(self):
        app, sub, log = App(), App(), []
        sub.lifespan(context(log, "sub"))
        sub.health()

        @sub.websocket_route("/feed", subscribe="news")
        async def feed(ws):
            async with ws:
                await ws.receive()

        @sub.get("/go")
        async def go(request):
            assert request.app is sub
            sub.start_soon(sub.publish, "news", "from sub")

        app.mount("/sub", sub)
        async with running(app) as client, client.websocket("/sub/feed") as ws:
            assert (await client.get("/sub/readyz")).status == 200
            assert (await app.publish("news", "from app")).subscribers == 0
            await client.get("/sub/go")
            assert await ws.receive() == "from sub"
        assert log == ["enter sub", "leave sub"]

    async def test_the_test_gets_errors_of_its_startup_and_background_tasks(self):
        app, sub = App(), App()
        sub.get("/")(lambda: "x")
        sub.on_startup(lambda: sub.start_soon(note([], "boom", fail=True)))
        app.mount("/sub", sub)
        async with running(app) as client:
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(LookupError, match="boom"):
                await client.get("/sub/")
        sub.on_startup(note([], "start", fail=True))
        with pytest.raises(RuntimeError, match="the app mounted at /sub: its startup failed: start") as caught:
            async with running(app):
                pytest.fail("it runs")
        assert isinstance(caught.value.__cause__, LookupError)


class TestRunning:
    async def test_running_yields_the_state_and_raises_the_exception_of_its_block(self):
        app, log = App(), []
        app.on_shutdown(note(log, "down"))

        @app.lifespan
        async def begin(app):
            yield {"db": 1}

        async def block():
            async with app.running() as state:
                assert state == {"db": 1}
                app.start_soon(note(log, "task"))
                await anyio.wait_all_tasks_blocked()
                raise LookupError("block")

        with pytest.raises(LookupError, match=r"^block$"):
            await block()
        assert log == ["task", "down"]

    async def test_running_of_an_included_app_runs_the_including_app(self):
        app, part, log = App(), App(), []
        app.on_startup(note(log, "app"))
        part.on_startup(note(log, "part"))
        app.include(part)
        async with part.running():
            assert log == ["app", "part"]
            await part.publish("t", 1)


class TestFailures:
    @pytest.mark.parametrize("failing", ["b", "start 1"])
    async def test_a_failed_startup_has_the_traceback_and_is_raised(self, failing):
        app, log = App(), []
        app.lifespan(context(log, "a"))
        app.lifespan(context(log, "b", fail="enter" if failing == "b" else ""))
        app.on_startup(note(log, "start 1", fail=failing == "start 1"))
        app.on_startup(note(log, "start 2"))
        app.on_shutdown(note(log, "stop"))
        [event], error = await events_of(app)
        assert event["type"] == "lifespan.startup.failed"
        assert "Traceback" in event["message"]
        assert f"LookupError: {failing}" in event["message"]
        assert "test_lifespan.py" in event["message"]
        assert (type(error), str(error)) == (LookupError, failing)
        started = ["enter a", "enter b"] if failing == "b" else ["enter a", "enter b", "start 1", "leave b"]
        assert log == [*started, "leave a"]

    @pytest.mark.parametrize("error", [SystemExit("no database"), RuntimeError("no database")])
    async def test_any_exception_of_a_startup_has_failed_and_keeps_its_cause(self, error):
        app = App()

        @app.on_startup
        async def start():
            raise error from ConnectionError("refused")

        [event], raised = await events_of(app)
        assert event["type"] == "lifespan.startup.failed"
        assert f"{type(error).__name__}: no database" in event["message"]
        assert "ConnectionError: refused" in event["message"]
        assert raised is error

    @pytest.mark.parametrize("failing", ["stop 1", "stop 2", "a", "b"])
    async def test_after_an_error_at_shutdown_all_others_end(self, failing):
        app, log = App(), []
        for name in ("a", "b"):
            app.lifespan(context(log, name, fail="leave" if name == failing else ""))
        for name in ("stop 1", "stop 2"):
            app.on_shutdown(note(log, name, fail=name == failing))
        sent, error = await events_of(app)
        assert [event["type"] for event in sent] == ["lifespan.startup.complete", "lifespan.shutdown.failed"]
        assert f"LookupError: {failing}" in sent[1]["message"]
        assert str(error) == failing
        assert log == ["enter a", "enter b", "stop 1", "stop 2", "leave b", "leave a"]


class TestBackgroundTasks:
    async def test_a_coroutine_is_an_error_that_says_what_to_write(self):
        app, coroutine = App(), anyio.sleep(1)
        async with app.test_client():
            with pytest.raises(TypeError, match=r"as in start_soon\(tick, 1\), .*; got coroutine$"):
                app.start_soon(coroutine)
        coroutine.close()

    @pytest.mark.parametrize("where", ["lifespan", "on_startup", "view"])
    async def test_a_task_may_be_started_anywhere_and_publishes(self, where):
        app, asked = App(), anyio.Event()

        def start_if(place):
            if place == where:
                app.start_soon(announce)

        async def announce():
            await asked.wait()
            await app.publish("news", "hi")

        @app.lifespan
        async def begin(app):
            start_if("lifespan")
            yield

        @app.on_startup
        async def start():
            start_if("on_startup")

        @app.post("/")
        async def go():
            start_if("view")
            asked.set()

        async with running(app) as client, app.subscribe("news") as messages:
            await client.post("/")
            with anyio.fail_after(5):
                assert await anext(messages) == "hi"

    @pytest.mark.parametrize("fails", [False, True])
    async def test_tasks_end_before_hooks_and_contexts_even_if_the_startup_fails(self, fails):
        app, log = App(), []
        app.lifespan(context(log, "pool"))
        app.on_shutdown(note(log, "stop"))

        async def work():
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    for _ in range(5):
                        await anyio.lowlevel.checkpoint()
                log.append("task ended")

        @app.on_startup
        async def start():
            app.start_soon(work)
            await anyio.wait_all_tasks_blocked()
            if fails:
                raise LookupError

        with suppress(LookupError):
            async with running(app):
                pass
        assert log == ["enter pool", "task ended", *([] if fails else ["stop"]), "leave pool"]

    async def test_an_error_of_a_task_is_logged_and_others_go_on(self, caplog):
        app, log, go = App(), [], anyio.Event()

        async def fail(text):
            raise LookupError(text)

        async def go_on():
            await go.wait()
            log.append("went on")

        async with app.test_client(raise_errors=False):
            app.start_soon(go_on)
            app.start_soon(fail, "boom")
            await anyio.wait_all_tasks_blocked()
            assert "fail failed" in caplog.text
            assert "LookupError: boom" in caplog.text
            go.set()
            await anyio.wait_all_tasks_blocked()
        assert log == ["went on"]

    async def test_before_and_after_its_run_start_soon_is_an_error(self):
        app, errors = App(), []

        def start():
            with pytest.raises(RuntimeError, match="call it in @app"):
                app.start_soon(anyio.sleep, 1)
            errors.append(True)

        start()
        app.on_shutdown(start)
        async with running(app):
            pass
        assert errors == [True, True]
