"""The page that shows the routes of an app: who gets it, and what it is told."""

import gzip
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from microws import App, EventStream
from microws.docs_page import _asset

ASSETS = Path(__file__).parents[1] / "microws" / "docs_page" / "assets"

pytestmark = pytest.mark.anyio


class Development:
    """What ``microws dev`` puts around an app."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            scope["microws.is_development"] = True
        await self.app(scope, receive, send)


def make_app(*, public=False, develops=True, **options):
    app = App(**options)
    if develops:
        app.add_middleware(Development)
    app.topic("chat:*", history=5)

    @app.websocket_route("/chat/{room}", value_type="json", subscribe="chat:{room}")
    async def chat(ws, room):
        """A room."""
        async with ws:
            await ws.wait_closed()

    @app.get("/prices")
    async def prices():
        return EventStream(app.stream("prices"))

    app.docs(public=public)
    return app


async def token_of(client):
    page = await client.get("/docs")
    return {"microws-docs-token": re.search(r'data-token="([^"]+)"', page.text)[1]}


async def test_page_is_served_in_development_only():
    async with make_app(develops=False).test_client() as client:
        response = await client.get("/docs")
        assert response.status == 404
        assert "app.docs(public=True)" in response.text
        assert (await client.get("/docs/page.js")).status == 404
        assert (await client.post("/docs/publish", json={"topic": "a", "text": "b"})).status == 404


async def test_public_page_has_neither_places_nor_the_hub():
    async with make_app(public=True, develops=False).test_client() as client:
        page = await client.get("/docs")
        assert (page.status, 'data-token=""' in page.text) == (200, True)
        described = (await client.get("/docs/app.json")).json()
        assert [route["pattern"] for route in described["routes"]] == ["/chat/{room}", "/prices"]
        assert str(Path(__file__).parent) not in json.dumps(described)
        assert not {"file", "line", "view", "editor"} & set(described["routes"][0])
        for name in ("live.json", "watch?topic=a"):
            assert (await client.get(f"/docs/{name}")).status == 404
        assert (await client.post("/docs/publish", json={"topic": "a", "text": "b"})).status == 404


async def test_routes_have_links_to_the_editor_in_development(monkeypatch):
    monkeypatch.setenv("MICROWS_EDITOR_URL", "idea://open?file={file}&line={line}")
    async with make_app().test_client() as client:
        described = (await client.get("/docs/app.json", headers=await token_of(client))).json()
        assert described["routes"][0]["editor"].startswith(f"idea://open?file={__file__}&line=")
        assert described["title"] == "test_docs_page"


@pytest.mark.parametrize(
    "headers", [{}, {"microws-docs-token": ""}, {"microws-docs-token": "x"}, {"microws-docs-token": "é"}]
)
async def test_nothing_is_told_or_published_without_the_token(headers):
    async with make_app().test_client() as client:
        for name in ("app.json", "live.json", "watch?topic=a"):
            assert (await client.get(f"/docs/{name}", headers=headers)).status == 403
        response = await client.post("/docs/publish", headers=headers, json={"topic": "chat:a", "text": "b"})
        assert response.status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-mode": "cors", "sec-fetch-site": "cross-site"},
        {"sec-fetch-mode": "no-cors"},
    ],
)
async def test_script_of_another_page_does_not_get_the_token(headers):
    # Whatever CORS allows.
    async with make_app(origins=["*"]).test_client() as client:
        response = await client.get("/docs", headers=headers)
        assert response.status == 403
        assert "data-token" not in response.text


async def test_page_is_in_no_frame_and_runs_no_inline_script():
    async with make_app().test_client() as client:
        page = await client.get("/docs", headers={"sec-fetch-mode": "navigate"})
        policy = page.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert re.findall(r"<script[^>]*>", page.text) == ['<script type="module" src="docs/page.js">']


async def test_hub_is_shown_with_its_largest_topics():
    app = make_app()
    async with app.test_client() as client:
        token = await token_of(client)
        async with client.websocket("/chat/a"), client.websocket("/chat/b") as ws, client.websocket("/chat/b"):
            response = await client.post(
                "/docs/publish", headers=token, json={"topic": "chat:b", "text": '{"n": 12345678901234567890}'}
            )
            assert (response.status, response.json()) == (200, {"subscribers": 2})
            assert await ws.receive_text() == '{"n":12345678901234567890}'
            live = (await client.get("/docs/live.json", headers=token)).json()
            assert live["connections"] == 3
            assert live["topics"] == [
                {"name": "chat:b", "subscribers": 2, "messages": 1, "overflow": "close"},
                {"name": "chat:a", "subscribers": 1, "messages": 0, "overflow": "close"},
            ]


async def test_hub_is_shown_with_its_slowest_connections():
    app = make_app()
    async with (
        app.test_client() as client,
        client.websocket("/chat/a", max_queue=1) as ws,
        client.websocket("/chat/b"),
        client.websocket("/chat/a", max_queue=3),
    ):
        for number in range(9):
            await app.publish("chat:a", number)
        live = (await client.get("/docs/live.json", headers=await token_of(client))).json()
        first, second = live["slowest"]
        assert first["queued"] > second["queued"] > 0
        assert (first["path"], first["tags"]) == ("/chat/a", {})
        assert 0 <= live["at"] - first["since"] < 60
        assert await ws.receive() == 0


async def test_hub_is_cut_to_fifty_topics():
    app = make_app(max_subscriptions=200)

    @app.websocket_route("/many")
    async def many(ws):
        await ws.subscribe(*(f"topic:{number}" for number in range(120)))
        async with ws:
            await ws.wait_closed()

    async with app.test_client() as client, client.websocket("/many"):
        live = (await client.get("/docs/live.json", headers=await token_of(client))).json()
        assert len(live["topics"]) == 50


async def test_documents_have_no_token_and_no_places():
    async with make_app(public=True, develops=False).test_client() as client:
        asyncapi = (await client.get("/docs/asyncapi.json")).json()
        openapi = (await client.get("/docs/openapi.json")).json()
        assert (asyncapi["asyncapi"], openapi["openapi"][:3]) == ("3.0.0", "3.1")
        assert "/docs" not in json.dumps([asyncapi, openapi])


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"topic": "", "text": "x"}, "expected a topic of at least one character, got an empty str"),
        ({"topic": "a\0", "text": "x"}, "without control characters"),
        ({"topic": 5, "text": "x"}, "expected topic and text as str"),
        ([], "expected topic and text as str"),
    ],
)
async def test_publishing_says_what_is_wrong(message, error):
    async with make_app().test_client() as client:
        response = await client.post("/docs/publish", headers=await token_of(client), json=message)
        assert error in response.json()["error"]


async def test_text_that_is_not_json_is_published_as_it_is():
    app = make_app()
    async with app.test_client() as client, client.websocket("/chat/a") as ws:
        token = await token_of(client)
        await client.post("/docs/publish", headers=token, json={"topic": "chat:a", "text": "hello {"})
        assert await ws.receive_text() == '"hello {"'


async def test_watching_gets_what_is_published():
    app = make_app()
    async with (
        app.test_client() as client,
        client.stream("GET", "/docs/watch?topic=chat:a", headers=await token_of(client)) as watched,
    ):
        await app.publish("chat:a", {"a": 1})
        assert (await anext(watched.events())).data == '{"a":1}'
        response = await client.get("/docs/watch?topic=%00", headers=await token_of(client))
        assert (response.status, "control characters" in response.text) == (400, True)


async def test_page_has_another_place_in_an_included_and_in_a_mounted_app():
    outer, inner = App(), App()
    inner.add_route(lambda: "", "/in")
    inner.docs("/about", public=True)
    outer.include(inner, prefix="/part")
    async with outer.test_client() as client:
        assert 'data-pattern="/part/about"' in (await client.get("/part/about")).text
        described = (await client.get("/part/about/app.json")).json()
        assert [route["pattern"] for route in described["routes"]] == ["/part/in"]


@pytest.mark.parametrize("pattern", ["docs", "/docs/", "/{docs}", "/"])
def test_pattern_of_the_page_is_plain(pattern):
    with pytest.raises(ValueError, match="expected a pattern such as"):
        App().docs(pattern)


def test_page_is_small():
    sizes = [len(gzip.compress(_asset(name).encode(), 9)) for name in ("page.js", "page.css", "icon.svg")]
    sizes.append(len(gzip.compress((ASSETS / "page.html").read_bytes(), 9)))
    assert sum(sizes) <= 16 << 10


def test_page_names_no_other_server():
    for path in ASSETS.iterdir():
        assert set(re.findall(r"https?://[^\"'\s)]+", path.read_text())) <= {"http://www.w3.org/2000/svg"}


def test_joined_scripts_are_valid(tmp_path):
    node = shutil.which("node")
    if node is None:
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop("the script is checked by Node, which is not installed: apt-get install nodejs")
    script = tmp_path / "page.mjs"
    script.write_text(_asset("page.js"))
    subprocess.run([node, "--check", script], check=True)
