"""What stands in front of an app: CORS by ``App(origins=…)``, and ``App(allowed_hosts=…)``."""

import logging

import anyio
import httpx
import pytest
from asking import ask, ask_websocket, refusal_of
from raw_websocket import RawWebSocket
from worker_here import serving

from microws import App, EventStream, HTTPException, Response, StreamingResponse

pytestmark = pytest.mark.anyio

PAGE = "https://app.example"
ALLOWED = {"access-control-allow-origin": PAGE, "access-control-allow-credentials": "true"}


def app_of_all(origins=(PAGE,), **settings):
    """An app with each way in which a response can come about."""
    app = App(origins=origins, **settings)

    @app.route("/items", methods=["GET", "POST"])
    async def items(request):
        return {"method": request.method}

    @app.get("/item/{number:int}")
    async def item(number):
        return {"number": number}

    @app.get("/boom")
    async def boom():
        raise KeyError("x")

    @app.get("/denied")
    async def denied():
        raise HTTPException(403, "not yours")

    @app.get("/empty")
    async def empty():
        return None

    async def chunks():
        yield "a"
        yield "b"

    app.add_route(lambda: StreamingResponse(chunks()), "/stream")
    app.add_route(lambda: EventStream(chunks()), "/events")

    @app.get("/own")
    async def own():
        return "public", {"access-control-allow-origin": "*", "vary": "Cookie"}

    @app.websocket_route("/ws")
    async def ws(ws):
        async with ws:
            await ws.send("in")

    @app.websocket_route("/full")
    async def full(ws):
        raise HTTPException(503, "full")

    async def mounted(scope, receive, send):
        headers = ((name, b"1") for name in (b"x-mounted",))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": scope["method"].encode()})

    async def without_headers(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": None})
        await send({"type": "http.response.body"})

    app.mount("/mounted", mounted)
    app.mount("/without_headers", without_headers)
    return app


async def ask_raw(app, path, events, *, headers=()):
    """Call the app with a GET as ASGI has it; ``events`` gets what it sends."""

    async def receive():
        return {"type": "http.request"}

    async def send(event):
        events.append(event)

    scope = {"type": "http", "http_version": "1.0", "method": "GET", "path": path, "headers": list(headers)}
    await app(scope, receive, send)


def cors_of(response):
    """What a response says of CORS, and its ``Vary``."""
    headers = dict(response.headers.items() if hasattr(response.headers, "items") else response.headers)
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}, headers.get("vary")


async def preflight(app, path="/items", method="POST", origin=PAGE, **headers):
    asked = {"origin": origin, "access-control-request-method": method}
    asked |= {name.replace("_", "-"): value for name, value in headers.items()}
    return await ask(app, path, method="OPTIONS", headers=asked)


async def ask_served(port, path, headers):
    """The status and the body of the answer of a server, to a client on this machine."""
    async with httpx.AsyncClient() as client:
        response = await client.get(f"http://127.0.0.1:{port}{path}", headers=headers)
    return response.status_code, response.text


class TestCORS:
    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/items", 200),
            ("/items?x", 200),
            ("/empty", 204),
            ("/stream", 200),
            ("/events", 200),
            ("/static/page.css", 200),
            ("/static/none.css", 404),
            ("/mounted/x", 200),
            ("/without_headers/", 200),
            ("/items/", 308),
            ("/nowhere", 404),
            ("/denied", 403),
            ("/ws", 426),
            ("/a%00", 400),
        ],
    )
    async def test_an_allowed_page_may_read_every_answer(self, path, status, tmp_path):
        (tmp_path / "page.css").write_text("b {}")
        app = app_of_all()
        app.static("/static", tmp_path)
        async with app.test_client() as client:
            response = await client.get(path, headers={"origin": PAGE})
            assert (response.status, cors_of(response)) == (status, (ALLOWED, "Origin"))
            for headers in (
                {"origin": "https://evil.example"},
                {"origin": "null"},
                {},
                {"origin": "http://app.example"},
            ):
                response = await client.get(path, headers=headers)
                assert (response.status, cors_of(response)) == (status, ({}, "Origin"))

    async def test_it_may_read_an_unexpected_error(self):
        with pytest.raises(KeyError):
            await ask_raw(app_of_all(), "/boom", events := [], headers=[(b"origin", PAGE.encode())])
        assert events[0]["status"] == 500
        assert {name.decode(): value.decode() for name, value in events[0]["headers"]}.items() >= ALLOWED.items()

    async def test_it_may_read_a_405(self):
        for method, status in (("POST", 200), ("DELETE", 405)):
            response = await ask(app_of_all(), "/items", method=method, headers={"origin": PAGE})
            assert (response.status, cors_of(response)) == (status, (ALLOWED, "Origin"))
        response = await ask(app_of_all(), "/items", method="POST", headers={"origin": "https://evil.example"})
        assert (response.status, cors_of(response)) == (403, ({}, "Origin"))

    async def test_it_may_read_the_denial_of_a_handshake(self):
        for path, origin, status in (("/full", PAGE, 503), ("/nowhere", PAGE, 404)):
            rejection = await refusal_of(app_of_all(), path, origin=origin)
            assert (rejection.status, cors_of(rejection)) == (status, (ALLOWED, "Origin"))
        rejection = await refusal_of(app_of_all(), "/ws", origin="https://evil.example")
        assert (rejection.status, cors_of(rejection)) == (403, ({}, "Origin"))

    async def test_without_the_setting_no_answer_has_cors_headers(self):
        app = app_of_all(None)
        assert cors_of(await ask(app, "/items", headers={"origin": PAGE})) == ({}, None)
        assert cors_of(await preflight(app)) == ({}, None)
        assert cors_of(await refusal_of(app, "/full")) == ({}, None)

    async def test_an_empty_list_allows_no_page_but_sets_vary(self):
        response = await ask(app_of_all([]), "/items", headers={"origin": PAGE})
        assert (response.status, cors_of(response)) == (200, ({}, "Origin"))

    async def test_a_star_allows_every_page_without_credentials(self):
        for origins in (["*"], ["*", PAGE]):
            for headers in ({"origin": PAGE}, {"origin": "null"}, {}):
                response = await ask(app_of_all(origins), "/items", headers=headers)
                assert cors_of(response) == ({"access-control-allow-origin": "*"}, "Origin")
            allowed, _ = cors_of(await preflight(app_of_all(origins), access_control_request_headers="x-a"))
            assert allowed["access-control-allow-origin"] == "*"
            assert allowed["access-control-allow-headers"] == "x-a"
            assert "access-control-allow-credentials" not in allowed

    async def test_the_answer_repeats_the_origin_of_several(self):
        app = app_of_all(["https://a.example", "http://localhost:5173", "app://x"])
        for origin in ("https://a.example", "http://localhost:5173", "app://x", "https://A.example:443"):
            allowed, _ = cors_of(await ask(app, "/items", headers={"origin": origin}))
            assert allowed["access-control-allow-origin"] == origin
        both = [("origin", "https://a.example"), ("origin", "https://a.example")]
        for headers in (both, {"origin": "https://a.example.evil.example"}, {"origin": "https://a.example, app://x"}):
            assert cors_of(await ask(app, "/items", headers=headers)) == ({}, "Origin")

    async def test_headers_of_the_view_are_kept_and_vary_is_extended(self):
        for origin in (PAGE, "https://evil.example"):
            response = await ask(app_of_all(), "/own", headers={"origin": origin})
            assert cors_of(response) == ({"access-control-allow-origin": "*"}, "Cookie, Origin")

    @pytest.mark.parametrize(
        ("vary", "marked"),
        [
            ("Origin", "Origin"),
            ("accept-encoding, ORIGIN", "accept-encoding, ORIGIN"),
            ("*", "*"),
            ("A, B", "A, B, Origin"),
        ],
    )
    async def test_vary_is_extended_once(self, vary, marked):
        app = App(origins=[PAGE])
        app.add_route(lambda: ("x", {"vary": vary}), "/")
        assert (await ask(app)).headers.getlist("vary") == [marked]

    async def test_answers_and_headers_of_middleware_count(self):
        class Middleware:
            def __init__(self, app):
                self.app = app

            async def __call__(self, scope, receive, send):
                async def send_on(event):
                    if event["type"] == "http.response.start":
                        event["headers"].append((b"access-control-allow-origin", b"https://other.example"))
                    await send(event)

                if scope.get("path") == "/login":
                    await Response("log in", 401)(scope, receive, send)
                else:
                    await self.app(scope, receive, send_on)

        app = app_of_all()
        app.add_middleware(Middleware)
        response = await ask(app, "/login", headers={"origin": PAGE})
        assert (response.status, cors_of(response)) == (401, (ALLOWED, "Origin"))
        response = await ask(app, "/items", headers={"origin": PAGE})
        assert cors_of(response) == ({"access-control-allow-origin": "https://other.example"}, "Origin")
        # It would refuse a preflight, which carries no credentials.
        assert (await preflight(app, "/login")).status == 204


class TestPreflight:
    @pytest.mark.parametrize(
        ("path", "method", "methods"),
        [
            ("/items", "POST", "GET, HEAD, OPTIONS, POST"),
            ("/item/5", "DELETE", "GET, HEAD, OPTIONS"),
            ("/mounted/x", "PATCH", "PATCH"),
            ("/nowhere", "PUT", "PUT"),
            ("/items/", "POST", "POST"),
        ],
    )
    async def test_it_has_the_methods_of_the_path(self, path, method, methods):
        response = await preflight(app_of_all(), path, method)
        assert (response.status, response.body) == (204, b"")
        expected = {**ALLOWED, "access-control-allow-methods": methods, "access-control-max-age": "600"}
        assert cors_of(response) == (expected, "Origin")

    async def test_a_preflight_allows_the_requested_headers(self):
        names = "content-type,x-csrf-token, authorization"
        allowed, _ = cors_of(await preflight(app_of_all(), access_control_request_headers=names))
        assert allowed["access-control-allow-headers"] == names

    async def test_an_invalid_header_name_is_not_allowed(self):
        for names in ("x\x01", "x: y", "é"):
            response = await preflight(app_of_all(), access_control_request_headers=names)
            assert response.status == 204
            assert "access-control-allow-headers" not in response.headers

    async def test_a_preflight_of_another_page_is_an_ordinary_request(self):
        response = await preflight(app_of_all(), origin="https://evil.example")
        assert (response.status, response.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
        assert cors_of(response) == ({}, "Origin")

    async def test_options_without_the_headers_is_an_ordinary_request(self):
        app = app_of_all()
        app.add_route(lambda: "mine", "/mine", methods=["OPTIONS"])
        response = await ask(app, "/mine", method="OPTIONS", headers={"origin": PAGE})
        assert (response.text, cors_of(response)) == ("mine", (ALLOWED, "Origin"))
        response = await ask(app, "/items", method="OPTIONS", headers={"access-control-request-method": "POST"})
        assert (response.headers["allow"], cors_of(response)) == ("GET, HEAD, OPTIONS, POST", ({}, "Origin"))

    async def test_hooks_and_views_do_not_run_for_a_preflight(self):
        app, log = app_of_all(), []
        app.before_request(lambda request: log.append(request.method))
        app.after_request(lambda request, response: log.append(response.status))
        app.add_route(lambda: log.append("view"), "/options", methods=["OPTIONS"])
        for path in ("/items", "/options"):
            assert (await preflight(app, path)).status == 204
        assert log == []

    async def test_an_error_of_a_converter_is_left_to_the_request(self):
        def fail(text):
            raise KeyError(text)

        app = App(origins=[PAGE])
        app.add_converter("bad", "[a-z]+", fail)
        app.add_route(lambda x: x, "/{x:bad}")
        assert (await preflight(app, "/abc")).status == 204

    async def test_only_listed_pages_may_use_a_private_network(self):
        asked = {"access_control_request_private_network": "true"}
        allowed, _ = cors_of(await preflight(app_of_all(), **asked))
        assert allowed["access-control-allow-private-network"] == "true"
        for app, origin in ((app_of_all(["*"]), PAGE), (app_of_all(), "https://evil.example")):
            allowed, _ = cors_of(await preflight(app, origin=origin, **asked))
            assert "access-control-allow-private-network" not in allowed


HOSTS = ["app.example", "*.Users.example", "192.168.0.5", "::1", "localhost."]


class TestAllowedHosts:
    def app(self, hosts=HOSTS, **settings):
        app = app_of_all(None, allowed_hosts=hosts, **settings)
        app.health()
        return app

    @pytest.mark.parametrize(
        "host",
        [
            "app.example", "APP.example:8000", "app.example.", "app.example.:80", "a.users.example",
            "b.a.users.example:1", "192.168.0.5:8000", "[::1]", "[0:0::0:1]:8000", "localhost:5",
        ],
    )  # fmt: skip
    async def test_a_listed_host_is_answered_with_any_port_and_form(self, host):
        assert (await ask(self.app(), "/items", headers={"host": host})).status == 200
        assert await ask_websocket(self.app(), "/ws", headers={"host": host}) == "in"

    @pytest.mark.parametrize(
        "headers",
        [
            [("host", "evil.example")],
            [("host", "evil.example:8000")],
            [("host", "users.example")],
            [("host", "evilusers.example")],
            [("host", "app.example.evil.example")],
            [("host", "127.0.0.1")],
            [("host", "[::2]")],
            [("host", "app.example"), ("host", "app.example")],
            [("host", "app.example, app.example")],
            [("host", "app.example:port")],
            [("host", "app.example:99999")],
            [("host", "user@app.example")],
            [("host", "[::1")],
            [("host", "é.app.example")],
            [("host", "")],
        ],
    )
    @pytest.mark.parametrize("path", ["/items", "/nowhere", "/mounted/x"])
    async def test_any_other_host_is_421_for_both_kinds(self, headers, path, caplog):
        response = await ask(self.app(), path, headers=headers)
        assert (response.status, response.text) == (421, "host not allowed")
        rejection = await refusal_of(self.app(), path, headers=headers)
        assert (rejection.status, rejection.code) == (421, 3421)
        assert [record.levelno for record in caplog.records if "llowed_hosts" in record.message] == [
            logging.WARNING
        ] * 2

    async def test_a_request_without_host_is_421(self, caplog):
        await ask_raw(self.app(), "/items", events := [])
        assert events[0]["status"] == 421
        assert "/items: expected one Host that is in allowed_hosts, got none" in caplog.text

    async def test_the_log_says_what_to_write(self, caplog):
        await ask(self.app(), "/a%0Ab", headers={"host": "Other.example:8000"})
        line = 'App(allowed_hosts=["other.example"])'
        said = f"/a%0Ab: Host 'Other.example:8000' is not in allowed_hosts; to allow it: {line}"
        assert caplog.messages == [said]
        caplog.clear()
        await ask(self.app(), headers={"host": "[2001:DB8::0:1]:8000"})
        assert 'App(allowed_hosts=["[2001:db8::1]"])' in caplog.text

    async def test_only_health_probes_are_answered(self):
        app = self.app()
        for path in ("/healthz", "/readyz"):
            for method in ("GET", "HEAD"):
                assert (await ask(app, path, method=method, headers={"host": "10.0.0.7:8000"})).status == 200
            assert (await ask(app, path, method="POST", headers={"host": "10.0.0.7:8000"})).status == 421
        outer = App(allowed_hosts=["app.example"])
        outer.include(self.app(None), "/in")
        assert (await ask(outer, "/in/healthz", headers={"host": "10.0.0.7:8000"})).status == 200

    async def test_error_handlers_see_a_421_and_hooks_do_not(self):
        app, log = self.app(), []

        def middleware(inner):
            async def record(scope, receive, send):
                if scope["type"] != "lifespan":
                    log.append(scope["type"])
                await inner(scope, receive, send)

            return record

        app.add_middleware(middleware)
        app.before_request(lambda request: log.append("hook"))
        app.before_websocket(lambda ws: log.append("hook"))
        app.error_handler(421)(lambda connection, error: ("elsewhere", 421))
        assert (await ask(app, "/items", headers={"host": "evil.example"})).text == "elsewhere"
        assert (await refusal_of(app, "/ws", headers={"host": "evil.example"})).body == b"elsewhere"
        assert log == []

    async def test_an_error_of_that_handler_is_raised(self):
        app = self.app()
        app.error_handler(421)(lambda connection, error: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await ask_raw(app, "/items", [], headers=[(b"host", b"evil.example")])

    @pytest.mark.parametrize("name", ["x-forwarded-host", "forwarded"])
    @pytest.mark.parametrize(
        "received", ["127.0.0.1:8000", "[::1]", "localhost", "a.localhost:80", "app", "app.example"]
    )
    async def test_the_host_of_a_trusted_proxy_counts(self, name, received, caplog):
        async with serving(self.app(), server="hypercorn") as served:
            for host, status in (("app.example", 200), ("evil.example", 421)):
                forwarded = f"host={host}" if name == "forwarded" else host
                headers = {"host": received, name: forwarded}
                assert (await ask_served(served.port, "/items", headers))[0] == status
        assert "Host 'evil.example' is not in allowed_hosts" in caplog.text

    async def test_a_page_cannot_send_the_headers_of_a_proxy(self, caplog):
        async with serving(self.app()) as served:
            for received in ("evil.example", f"evil.example.:{served.port}"):
                for headers in ({"x-forwarded-host": "app.example"}, {"forwarded": "host=app.example"}):
                    answer = await ask_served(served.port, "/items", {"host": received, **headers})
                    assert answer == (421, "host not allowed")
            async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
                ws = RawWebSocket(stream)
                forged = [("x-forwarded-host", "app.example")]
                rejected = await ws.handshake("/ws", host="evil.example", headers=forged)
                assert rejected.status_code == 421
        assert caplog.text.count("Host 'evil.example") == 5

    async def test_an_untrusted_proxy_is_ignored(self):
        async with serving(self.app(), forwarded_allow_ips="") as served:
            headers = {"host": "evil.example", "x-forwarded-host": "app.example"}
            assert (await ask_served(served.port, "/items", headers))[0] == 421
            headers = {"host": "app.example", "x-forwarded-host": "evil.example"}
            assert (await ask_served(served.port, "/items", headers))[0] == 200

    async def test_by_default_any_host_is_answered(self):
        for hosts in (None, ["*"], ["app.example", "*"]):
            assert (await ask(self.app(hosts), "/items", headers={"host": "evil.example"})).status == 200
        assert (await ask(self.app([]), "/items")).status == 421

    async def test_the_test_client_asks_the_first_host(self):
        for hosts, host in ((HOSTS, "app.example"), (["*.app.example"], "test.app.example"), (None, "testserver")):
            app = App(allowed_hosts=hosts)
            app.add_route(lambda request: request.url.host, "/")
            assert (await ask(app)).text == host
            assert (await ask(app, client={"base_url": f"http://{host}:81"})).text == host

    async def test_a_421_has_cors_headers(self):
        app = app_of_all(allowed_hosts=["app.example"])
        response = await preflight(app, host="evil.example")
        assert (response.status, cors_of(response)) == (421, (ALLOWED, "Origin"))
        response = await ask(app, "/items", headers={"host": "evil.example"})
        assert (response.status, cors_of(response)) == (421, ({}, "Origin"))

    @pytest.mark.parametrize(
        ("hosts", "says"),
        [
            ("app.example", r"takes a list: allowed_hosts=\['app\.example'\]"),
            (["https://app.example:8000/x"], r'not .*; write "app\.example"'),
            (["app.example:8000"], r'write "app\.example"'),
            (["[::1]:8000"], r'write "\[::1\]"'),
            (["*.app.example:80"], r'write "\*\.app\.example"'),
            (["*app.example"], r'write "app\.example"'),
            ([".app.example/"], "without scheme and port"),
            (["bücher.example"], "in ASCII"),
            ([""], r'write "app\.example"'),
        ],
    )
    def test_an_entry_that_matches_no_host_is_an_error(self, hosts, says):
        with pytest.raises(ValueError, match=says):
            App(allowed_hosts=hosts)

    def test_an_entry_must_be_a_str(self):
        with pytest.raises(TypeError, match="allowed_hosts takes str"):
            App(allowed_hosts=[b"app.example"])
