"""What ``microws dev`` puts around an app, in memory: hosts, pages, tracebacks, and what is wrong."""

from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from microws import App, HTTPException, Response, StreamingResponse, WebSocketRejected
from microws.dev.middleware import Development
from microws.dev.problem import SCRIPT, Problem, error_page
from microws.testing import TestClient

HTML = {"accept": "text/html"}
TAG = f'<script src="{SCRIPT}" data-id="'
HERE = Path(__file__).parent
pytestmark = pytest.mark.anyio


def app_with_pages():
    app = App()

    @app.get("/page")
    def page():
        return "<body>x</body></html>"

    @app.get("/unended")
    def unended():
        return "<body>x"

    @app.get("/pieces")
    async def pieces():
        async def parts():
            yield "<body>x"
            yield "</BODY>"

        return StreamingResponse(parts(), content_type="text/html")

    @app.get("/packed")
    def packed(request):
        return Response(b"x", headers={"content-encoding": request.headers.get("accept-encoding", "none")})

    @app.get("/nonce")
    def nonce():
        policy = {"content-security-policy": "script-src 'nonce-abc='"}
        return Response("<body></body>", headers=policy, content_type="text/html")

    @app.get("/refused")
    def refused():
        raise HTTPException(404, "<p>no")

    @app.get("/own")
    def own():
        return Response("own <b>500</b>", 500, content_type="text/html")

    @app.get("/fails")
    def fails():
        raise ValueError("<wrong>")

    @app.websocket_route("/ws")
    async def fail(ws):
        async with ws:
            raise LookupError("in a socket")

    return app


@asynccontextmanager
async def developed(app=None, *, problem=None, hosts=("localhost",), is_stale=bool, problems=None, **options):
    async def follow(development):
        await anyio.sleep_forever()

    development = Development(
        app,
        problem,
        hosts=hosts,
        folder=HERE,
        show_locals=False,
        is_stale=is_stale,
        on_problem=(problems if problems is not None else []).append,
        follow=follow,
    )
    options = {"base_url": "http://localhost", "raise_errors": False} | options
    async with TestClient(development, **options) as client:
        client.development = development
        yield client


@pytest.mark.parametrize("path", ["/page", "/unended", "/pieces"])
async def test_a_page_gets_the_script(path):
    async with developed(app_with_pages()) as client:
        response = await client.get(path, headers=HTML)
        text = response.text
        assert text.count(TAG) == 1
        assert text.lower().rfind("</body>") in (-1, text.find("</script>") + 9)
        assert response.headers.get("content-length", str(len(text))) == str(len(text))
        assert TAG not in (await client.get(path)).text


async def test_only_a_navigation_is_for_a_page():
    async with developed(app_with_pages()) as client:
        for destination, count in (("document", 1), ("iframe", 1), ("empty", 0), ("script", 0)):
            response = await client.get("/page", headers={**HTML, "sec-fetch-dest": destination})
            assert response.text.count(TAG) == count


async def test_a_page_is_not_compressed_and_a_nonce_is_used():
    async with developed(app_with_pages()) as client:
        packed = await client.get("/packed", headers={**HTML, "accept-encoding": "gzip"})
        assert packed.headers["content-encoding"] == "none"
        assert TAG not in packed.text
        assert 'nonce="abc="></script></body>' in (await client.get("/nonce", headers=HTML)).text


async def test_a_traceback_takes_the_place_of_the_response():
    async with developed(app_with_pages()) as client:
        response = await client.get("/fails", headers=HTML)
        assert response.status == 500
        assert "ValueError: &lt;wrong&gt;" in response.text
        assert "GET /fails failed" in response.text
        assert "test_dev_middleware.py:" in response.text
        assert (await client.get("/own", headers=HTML)).text.startswith("own <b>500</b>")
        assert (await client.get("/refused", headers=HTML)).status == 404


async def test_an_exception_elsewhere_is_shown_in_open_pages():
    async with developed(app_with_pages()) as client, client.websocket(SCRIPT) as page:
        assert len(await page.receive()) == 12
        async with client.websocket("/ws"):
            assert "LookupError: in a socket" in await page.receive()
        await client.get("/fails")
        assert "ValueError" in await page.receive()
        client.development.reload_pages()
        assert await page.receive() == "pages"


async def test_a_page_of_another_site_may_not_listen():
    async with developed(app_with_pages()) as client:
        with pytest.raises(WebSocketRejected) as caught:
            async with client.websocket(SCRIPT, headers={"origin": "https://evil.example"}):
                pass
        assert caught.value.status == 403
        async with client.websocket(SCRIPT, headers={"origin": "http://localhost:5173"}) as page:
            assert await page.receive()


async def test_the_script_is_small():
    async with developed(app_with_pages()) as client:
        script = await client.get(SCRIPT)
        assert script.headers["content-type"].startswith("text/javascript")
        assert len(script.body) <= 1024


async def test_another_host_is_refused():
    async with developed(app_with_pages(), base_url="http://evil.example:80") as client:
        response = await client.get("/page")
        assert response.status == 421
        assert "microws dev --allow-host evil.example" in response.text
        with pytest.raises(WebSocketRejected) as caught:
            async with client.websocket("/ws"):
                pass
        assert caught.value.status == 421
    async with developed(app_with_pages(), hosts=None, base_url="http://evil.example") as client:
        assert (await client.get("/page")).status == 200


async def test_a_problem_is_the_answer_to_everything():
    problem = Problem("chat failed while it was imported", ValueError("x"), HERE)
    async with developed(problem=problem) as client:
        response = await client.get("/page")
        assert (response.status, response.text.splitlines()[0]) == (503, problem.line)
        page = await client.get("/page", headers=HTML)
        assert page.status == 503
        assert "default-src 'none'" in page.headers["content-security-policy"]
        async with client.websocket("/ws") as ws:
            with pytest.raises(Exception, match=r"1013 chat failed while it was imported: ValueError: x"):
                await ws.receive()


async def test_a_start_up_that_fails_is_a_problem():
    app = app_with_pages()
    problems = []

    @app.on_startup
    def fail():
        raise OSError("no database")

    async with developed(app, problems=problems) as client:
        [problem] = problems
        assert problem.line.endswith("OSError: no database")
        assert problem.files == {__file__}
        assert (await client.get("/page")).text.startswith("test_dev_middleware.py:")


async def test_an_app_that_says_why_it_does_not_start_is_a_problem():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no\nluck"})

    problems = []
    async with developed(app, problems=problems) as client:
        assert problems[0].line == "the start-up of the app failed: no\nluck"
        assert (await client.get("/")).status == 503


async def test_a_stale_process_sends_a_browser_away():
    async with developed(app_with_pages(), is_stale=lambda: True) as client:
        assert (await client.get("/page")).status == 200
        response = await client.get("/page?x=%20", headers={"sec-fetch-mode": "navigate"})
        assert (response.status, response.headers["location"]) == (307, "/page?x=%20")


def test_causes_and_deep_recursion_are_shown_shortly(monkeypatch):
    def deep(count, password):
        if not count:
            raise KeyError("<script>")
        deep(count - 1, password)

    try:
        try:
            deep(60, "hidden-value")
        except KeyError as error:
            raise RuntimeError("outer") from error
    except RuntimeError as error:
        problem = Problem("GET / failed", error, HERE)
    monkeypatch.setenv("MICROWS_EDITOR_URL", "idea://open?file={file}&line={line}")
    page = error_page(problem, process="p", show_locals=True)
    assert "because of</span> KeyError: &#x27;&lt;script&gt;&#x27;" in page
    assert "62 frames, the innermost 40 are shown" in page
    assert f'href="idea://open?file={__file__}&amp;line=' in page
    assert "hidden, because of its name" in page
    assert "'hidden-value'" not in page
    assert problem.text.startswith("test_dev_middleware.py:")


def test_a_local_whose_repr_fails_or_is_long_is_shown():
    class Bad:
        def __repr__(self):
            raise TypeError

    def fail():
        bad, long = Bad(), "x" * 1000  # noqa: F841
        raise ValueError

    try:
        fail()
    except ValueError as error:
        page = error_page(Problem("t", error, HERE), process="p", show_locals=True)
    assert "repr() raised TypeError" in page
    assert "x" * 199 + "…" in page
    assert "x" * 201 not in page.replace(" ", "")
