"""Hooks: what an app registers around its views, in which order they are called, and what they may do."""

import functools
from contextlib import suppress

import anyio
import pytest
from asking import ask, ask_websocket, ending_of, refusal_of

from microws import App, EventStream, HTTPException, Response, WebSocketRejected
from microws.hooks import call_hook, check_hook

pytestmark = pytest.mark.anyio


def app_with_views(log=None):
    app = App()

    @app.route("/{name}", methods=["GET", "POST"])
    async def page(request, name):
        if log is not None:
            log.append("view")
        if name == "fails":
            raise ValueError("secret")
        return name

    @app.websocket_route("/{name}")
    async def echo(ws, name):
        if log is not None:
            log.append("view")
        async with ws:
            await ws.send(name)
            if name == "fails":
                raise ValueError("secret")
            async for message in ws:
                await ws.send(message)

    return app


class TestCallHook:
    async def test_a_hook_is_any_callable(self):
        async def a(x):
            return x + 1

        def plain(x):
            return x + 1

        class Hook:
            async def __call__(self, x):
                return x + 1

        for hook in (a, plain, Hook(), functools.partial(a), lambda x: a(x)):
            assert await call_hook(hook, 1) == 2


class TestWhatCannotBeCalled:
    @pytest.mark.parametrize(
        ("decorator", "call"),
        [
            ("before_request", "two(request)"),
            ("before_websocket", "two(ws)"),
            ("after_websocket", "two(ws)"),
            ("on_startup", "two()"),
            ("on_shutdown", "two()"),
            ("lifespan", "two(app)"),
        ],
    )
    def test_wrong_parameters_are_an_error_at_registration(self, decorator, call):
        async def two(a, b):
            pass

        with pytest.raises(TypeError) as caught:
            getattr(App(), decorator)(two)
        assert str(caught.value) == f"two(a, b) does not fit @app.{decorator}: it is called as {call}"

    def test_it_must_be_a_function_and_an_error_handler_must_take_the_error(self):
        async def not_found(request):
            pass

        with pytest.raises(TypeError, match=r"^not_found\(request\) does not fit @app\.error_handler: it is called as"):
            App().error_handler(404)(not_found)
        with pytest.raises(TypeError, match=r"^expected a function for @app\.before_request, got 3$"):
            App().before_request(3)
        check_hook(dict, "before_request", "request")

    def test_the_hook_itself_is_checked_not_what_it_wraps(self):
        async def hook(request, user):
            pass

        @functools.wraps(hook)
        async def with_user(request):
            await hook(request, "Anna")

        assert App().before_request(with_user) is with_user

    def test_behind_a_decorator_the_wrapped_hook_is_checked(self):
        def passing(function):
            @functools.wraps(function)
            async def wrapper(*args, **kwargs):
                return await function(*args, **kwargs)

            return wrapper

        async def without_arguments():
            """As hooks of Quart are."""

        async def with_more(request, user):
            """Which the decorator may fill."""

        with pytest.raises(TypeError, match=r"it is called as without_arguments\(request\)$"):
            App().before_request(passing(passing(without_arguments)))
        App().before_request(passing(with_more))


class TestHTTP:
    async def test_they_run_in_order_around_the_view_and_after_routing(self):
        log = []
        app = app_with_views(log)
        for name in ("1", "2"):
            app.before_request(lambda request, name=name: log.append(f"before {name} {request.path_params}"))
            app.after_request(lambda request, response, name=name: log.append(f"after {name} {response.status}"))
        assert (await ask(app, "/x")).text == "x"
        assert log == ["before 1 {'name': 'x'}", "before 2 {'name': 'x'}", "view", "after 2 200", "after 1 200"]
        await ask(app, "/not/there")
        await ask(app, "/x", method="DELETE")
        assert len(log) == 5

    @pytest.mark.parametrize(
        ("answer", "status", "text"),
        [("no", 200, "no"), (("no", 401), 401, "no"), ({"a": 1}, 200, '{"a":1}'), (Response("no", 403), 403, "no")],
    )
    async def test_an_answer_of_a_hook_before_the_view_is_sent(self, answer, status, text):
        log = []
        app = app_with_views(log)

        @app.before_request
        async def first(request):
            return answer

        app.before_request(lambda request: log.append("second"))
        app.after_request(lambda request, response: log.append("after"))
        response = await ask(app, "/x")
        assert (response.status, response.text) == (status, text)
        assert log == ["after"]

    async def test_a_hook_after_the_view_may_change_or_replace_the_response(self):
        app = app_with_views()

        @app.after_request
        async def replace(request, response):
            return response.body.decode() + "!", 201, response.headers

        @app.after_request
        def change(request, response):
            response.headers["x-seen"] = "yes"

        response = await ask(app, "/x")
        assert (response.status, response.text, response.headers["x-seen"]) == (201, "x!", "yes")

    async def test_a_hook_after_the_view_sees_the_answer_to_an_error(self, caplog):
        app, seen = app_with_views(), []
        app.before_request(lambda request: object() if request.path == "/wrong" else None)
        app.after_request(lambda request, response: seen.append(response.status))
        await ask(app, "/fails")
        await ask(app, "/x", method="POST", headers={"sec-fetch-site": "cross-site"})
        await ask(app, "/wrong")
        assert seen == [500, 403, 500]
        assert "expected str, bytes, dict" in caplog.text

    @pytest.mark.parametrize("path", ["/x", "/fails"])
    async def test_an_error_after_the_view_is_answered_and_others_run(self, path, caplog):
        app = app_with_views()

        @app.after_request
        async def outer(request, response):
            response.headers["x-outer"] = str(response.status)

        @app.after_request
        async def inner(request, response):
            raise LookupError("in the hook")

        response = await ask(app, path)
        assert (response.status, response.headers["x-outer"]) == (500, "500")
        assert "LookupError: in the hook" in caplog.text
        assert ("ValueError: secret" in caplog.text) == (path == "/fails")
        assert "hook" not in response.text

    async def test_decorators_return_the_function(self):
        app = App()
        for decorator in (app.before_request, app.after_request, app.before_websocket, app.after_websocket):
            assert decorator(print) is print


class TestWebSocket:
    async def test_they_run_in_order_around_the_view_and_after_routing(self):
        log = []
        app = app_with_views(log)
        for name in ("1", "2"):
            app.before_websocket(lambda ws, name=name: log.append(f"before {name} {ws.path_params}"))
            app.after_websocket(lambda ws, name=name: log.append(f"after {name}"))
        assert await ask_websocket(app, "/x") == "x"
        await refusal_of(app, "/not/there")
        assert log == ["before 1 {'name': 'x'}", "before 2 {'name': 'x'}", "view", "after 2", "after 1"]

    @pytest.mark.parametrize(
        ("answer", "status", "body", "content_type"),
        [
            ("no", 200, b"no", "text/html; charset=utf-8"),
            (("no", 401), 401, b"no", "text/html; charset=utf-8"),
            (({"a": 1}, 403, {"x-a": "b"}), 403, b'{"a":1}', "application/json"),
            (Response("no", 402, content_type="text/plain"), 402, b"no", "text/plain"),
        ],
    )
    async def test_an_answer_before_the_view_rejects_the_handshake(self, answer, status, body, content_type):
        log = []
        app = app_with_views(log)

        @app.before_websocket
        async def first(ws):
            return answer

        app.before_websocket(lambda ws: log.append("second"))
        rejection = await refusal_of(app, "/x")
        assert (rejection.status, rejection.body, log) == (status, body, [])
        assert rejection.code == 3000 + status
        assert dict(rejection.headers)["content-type"] == content_type
        if status == 403:
            assert dict(rejection.headers)["x-a"] == "b"

    async def test_a_hook_before_the_view_may_reject_or_raise(self):
        async def reject(ws):
            await ws.reject(402, "pay")

        async def close(ws):
            await ws.close()

        async def refuse(ws):
            raise HTTPException(401, "who?", headers={"www-authenticate": "Basic"})

        for hook, status, body in ((reject, 402, b"pay"), (close, 403, b""), (refuse, 401, b"who?")):
            log = []
            app = app_with_views(log)
            app.before_websocket(hook)
            app.before_websocket(lambda ws, log=log: log.append("second"))
            rejection = await refusal_of(app, "/x")
            assert (rejection.status, rejection.body, log) == (status, body, [])

    async def test_a_hook_before_the_view_may_accept_and_close(self):
        log = []
        app = app_with_views(log)

        @app.before_websocket
        async def authenticate(ws):
            await ws.accept()
            if await ws.receive(timeout=5) != "secret":
                await ws.close(1008, "wrong token")

        assert await ending_of(app, "/x", send="guess") == (1008, "wrong token")
        assert log == []
        async with app.test_client() as client, client.websocket("/x") as ws:
            await ws.send("secret")
            assert await ws.receive() == "x"

    async def test_a_stream_or_a_response_after_accept_is_an_error(self, caplog):
        log = []
        app = app_with_views(log)

        @app.before_websocket
        async def late(ws):
            if ws.path == "/stream":
                return EventStream([])
            await ws.accept()
            return "no", 401

        assert (await ending_of(app, "/x"))[0] == 1011
        assert "to end it, call ws.close()" in caplog.text
        assert (await refusal_of(app, "/stream")).status == 500
        assert "to reject a handshake, got EventStream" in caplog.text
        assert log == []

    @pytest.mark.parametrize("answered", [True, False])
    async def test_an_error_after_the_view_is_logged_and_the_others_still_run(self, answered, caplog):
        app, log = App(), []

        @app.websocket_route("/")
        async def view(ws):
            await ws.accept()
            if answered:
                await ws.close(4000, "bye")

        app.after_websocket(lambda ws: log.append("outer"))

        @app.after_websocket
        async def fail(ws):
            raise LookupError("in the hook")

        code, reason = await ending_of(app)
        assert code == (4000 if answered else 1011)
        assert "hook" not in reason
        assert log == ["outer"]
        assert "LookupError: in the hook" in caplog.text


async def returns(ws):
    async with ws:
        await ws.send("x")


async def raises(ws):
    await ws.accept()
    raise HTTPException(400, "why")


async def rejects(ws):
    await ws.reject(402)


async def waits_for_the_end(ws):
    async with ws:
        async for _ in ws:
            pass


async def sleeps(ws):
    await ws.accept()
    await anyio.sleep_forever()


async def never_accepts(ws):
    await anyio.sleep_forever()


class TestAfterWebSocket:
    """It runs once, however the view ended."""

    def app(self, view, log, **settings):
        app = App(**settings)
        app.add_websocket_route(view, "/")

        @app.after_websocket
        async def after(ws):
            # An await: a hook in a cancelled scope would not come past it.
            await anyio.lowlevel.checkpoint()
            log.append((ws.accepted, ws.close_code))

        return app

    @pytest.mark.parametrize(
        ("view", "accepted", "code"),
        [
            (returns, True, 1000),
            (raises, True, 3400),
            (rejects, False, 3402),
            (waits_for_the_end, True, 4001),
            (sleeps, True, 4001),
            (never_accepts, False, None),
        ],
    )
    async def test_it_runs_once_after_the_view(self, view, accepted, code):
        log = []
        app = self.app(view, log, close_timeout=0.2, accept_timeout=0.05 if view is never_accepts else 5)
        async with app.test_client() as client:
            with suppress(WebSocketRejected):
                async with client.websocket("/") as ws:
                    if code == 4001:
                        await ws.close(4001)
        assert log == [(accepted, code)]

    async def test_it_runs_after_a_hook_that_rejected(self):
        log = []
        app = self.app(returns, log)
        app.before_websocket(lambda ws: ("no", 401))
        await refusal_of(app)
        assert log == [(False, 3401)]

    async def test_a_hook_that_does_not_end_is_cancelled_and_logged(self, caplog):
        app = self.app(returns, [], close_timeout=0.05)
        app.after_websocket(lambda ws: anyio.sleep_forever())
        await ask_websocket(app)
        assert "the after_websocket hooks did not end in time" in caplog.text
