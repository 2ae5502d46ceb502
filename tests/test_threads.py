"""Plain functions run in worker threads, by kind of work, with the context variables of their caller."""

import functools
import threading
from contextlib import asynccontextmanager
from contextvars import ContextVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from asking import ask, refusal_of

from microws import App, EventStream, StreamingResponse
from microws.threads import threads_of

pytestmark = [pytest.mark.anyio, pytest.mark.sockets]

USER: ContextVar[str] = ContextVar("USER", default="nobody")


class Blocking:
    """An app with one thread for each kind of work, and functions of each kind that block until ``release`` is set."""

    def __init__(self, directory, threads=1):
        (directory / "a.txt").write_text("file")
        self.release = threading.Event()
        self.begun = threading.Event()
        app = self.app = App(threads=threads)
        app.static("/static", directory)

        @app.before_request
        def hook(request):
            if "hook" in request.query:
                self.block()

        @app.error_handler(LookupError)
        def handler(request, error):
            if "handler" in request.query:
                self.block()
            return "handled"

        @app.get("/view")
        def view(request):
            if "view" in request.query:
                self.block()
            return "view"

        @app.get("/error")
        async def fail(request):
            raise LookupError

        @app.get("/stream")
        async def stream(request):
            def generate():
                if "stream" in request.query:
                    self.block()
                yield "stream"

            return StreamingResponse(generate())

        @app.get("/async")
        async def async_view():
            return "async"

    def block(self):
        self.begun.set()
        assert self.release.wait(50)

    async def wait_until_begun(self):
        await anyio.to_thread.run_sync(self.begun.wait, 50)

    @asynccontextmanager
    async def blocked(self, path):
        """A client, while a request to ``path`` blocks a thread."""
        async with self.app.test_client() as client, anyio.create_task_group() as tasks:
            try:
                tasks.start_soon(client.get, path)
                await self.wait_until_begun()
                yield client
            finally:
                self.release.set()


class TwoAtATime:
    """How many threads call ``count`` at a time; each waits for another one."""

    def __init__(self):
        self._running, self._most = [], []
        self._both = threading.Barrier(2, timeout=50)

    def count(self):
        self._running.append(None)
        self._most.append(len(self._running))
        self._both.wait()
        self._running.pop()
        self._both.wait()

    async def most_of(self, app):
        async with app.test_client() as client, anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(client.get, "/")
        return max(self._most)


async def nothing():
    """A view without work."""


class TestKinds:
    @pytest.mark.parametrize(
        ("blocked", "others"),
        [
            ("/view?view", ["/async", "/error", "/stream", "/static/a.txt"]),
            ("/stream?stream", ["/async", "/error", "/view", "/static/a.txt"]),
        ],
    )
    async def test_blocked_threads_of_one_kind_do_not_block_other_kinds(self, tmp_path, blocked, others):
        async with Blocking(tmp_path).blocked(blocked) as client:
            answers = [(await client.get(path)).text for path in others]
        assert answers == [
            {"/async": "async", "/error": "handled", "/static/a.txt": "file"}.get(path, path[1:]) for path in others
        ]

    @pytest.mark.parametrize("blocked", ["/async?hook", "/error?handler"])
    async def test_a_hook_that_blocks_does_not_block_the_event_loop(self, tmp_path, blocked):
        blocking = Blocking(tmp_path, threads=2)
        async with blocking.blocked(blocked) as client:
            assert (await client.get("/async")).text == "async"
            assert (await client.get("/view")).text == "view"

    async def test_threads_limits_how_many_views_run_at_a_time(self):
        app, counter = App(threads=2), TwoAtATime()

        @app.get("/")
        def view():
            counter.count()
            return "done"

        assert await counter.most_of(app) == 2

    def test_one_app_may_run_in_several_event_loops(self):
        app = App(threads=1)
        app.add_route(lambda: "done", "/")
        for backend in ("asyncio", "trio", "asyncio"):
            assert anyio.run(ask, app, backend=backend).text == "done"

    async def test_a_stream_outside_an_app_runs_in_shared_threads(self):
        sent = []

        async def send(event):
            sent.append(event.get("body"))

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "app": "Starlette's"}
        await EventStream(iter(["a"]))(scope, anyio.sleep_forever, send)
        assert b"data: a\n\n" in sent

    def test_a_scope_has_the_threads_of_its_app(self):
        app = App()
        assert threads_of({"app": app}) is app.threads
        assert threads_of({}) is threads_of({"app": object()})


class TestHooks:
    @pytest.mark.parametrize("decorate", [lambda hook: hook, functools.lru_cache, lambda hook: functools.partial(hook)])
    async def test_plain_hooks_and_handlers_run_in_a_worker_thread(self, decorate):
        app, threads = App(), []

        def hook(*args):
            threads.append(threading.get_ident())

        def refuse(connection, error):
            threads.append(threading.get_ident())
            return "refused", 418

        for register in (app.before_request, app.after_request, app.before_websocket, app.after_websocket):
            register(decorate(hook))
        app.error_handler(KeyError)(decorate(refuse))

        @app.get("/")
        async def page():
            raise KeyError

        @app.websocket_route("/")
        async def view(ws):
            raise KeyError

        assert (await ask(app)).status == 418
        assert (await refusal_of(app)).status == 418
        assert len(threads) == 6
        assert threading.get_ident() not in threads

    async def test_async_hooks_run_in_the_event_loops_thread(self):
        app, threads = App(), []

        async def hook(*args):
            threads.append(threading.get_ident())

        @functools.wraps(hook)
        def decorated(*args):
            threads.append(threading.get_ident())
            return hook(*args)

        class Hook:
            async def __call__(self, *args):
                threads.append(threading.get_ident())

        for each in (hook, decorated, Hook(), functools.partial(hook)):
            app.before_request(each)
            app.after_request(each)
        app.add_route(lambda: "page", "/")
        assert (await ask(app)).text == "page"
        assert threads == [threading.get_ident()] * 10

    async def test_startup_and_shutdown_hooks_run_in_the_event_loops_thread(self):
        # What they make often belongs to it: SQLite's connections, tasks, signal handlers.
        app, threads = App(), []
        app.on_startup(lambda: threads.append(threading.get_ident()))
        app.on_shutdown(lambda: threads.append(threading.get_ident()))
        async with app.test_client():
            pass
        assert threads == [threading.get_ident()] * 2

    async def test_hooks_of_an_included_app_use_the_outer_apps_threads(self):
        part, app, counter = App(), App(threads=2), TwoAtATime()
        part.before_request(lambda request: counter.count())
        part.get("/")(nothing)
        app.include(part)
        assert await counter.most_of(app) == 2


class TestContext:
    async def test_a_plain_hook_sets_context_variables_for_the_view_and_later_hooks(self):
        app, seen = App(), []

        @app.before_request
        def log_in(request):
            USER.set("Anna")

        @app.get("/async")
        async def view():
            seen.append(USER.get())
            USER.set("Bert")
            return "done"

        @app.get("/plain")
        def plain_view():
            seen.append(USER.get())
            USER.set("Bert")
            return "done"

        @app.after_request
        def after(request, response):
            seen.append(USER.get())

        async with app.test_client() as client:
            for path in ("/async", "/plain"):
                assert (await client.get(path)).status == 200
        assert seen == ["Anna", "Bert"] * 2
        assert USER.get() == "nobody"

    async def test_a_plain_hook_that_raises_sets_context_variables_too(self):
        app = App()

        @app.before_websocket
        def log_in(ws):
            USER.set("Anna")
            raise LookupError

        @app.error_handler(LookupError)
        async def handler(ws, error):
            return USER.get(), 401

        @app.websocket_route("/")
        async def view(ws):
            """Not reached."""

        assert (await refusal_of(app)).body == b"Anna"

    async def test_steps_of_a_plain_generator_share_context_variables(self):
        app = App()

        @app.get("/")
        async def view():
            def count():
                for number in range(3):
                    yield f"{USER.get()} "
                    USER.set(str(number))

            return StreamingResponse(count())

        assert (await ask(app)).text == "nobody 0 1 "
