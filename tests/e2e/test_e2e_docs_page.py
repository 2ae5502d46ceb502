"""The page of ``microws dev`` in Chromium: the routes, an exchange, the hub."""

import subprocess
import sys

import pytest
from developing import developed
from playwright.sync_api import expect
from serving import LIMIT, browsing

APP = '''
from microws import App, EventStream

app = App()
app.topic("chat:*", history=10)


@app.websocket_route("/chat/{room}", value_type="json", subscribe="chat:{room}", on_invalid="skip")
async def chat(ws, room):
    """A room of the chat.

    What is said there goes to everybody."""
    async with ws:
        await ws.send({"type": "welcome", "room": room, "big": 12345678901234567890})
        async for message in ws:
            if message == "bye":
                await ws.close(4000, "as you say")
            else:
                await ws.send({"type": "said", "text": message["text"], "quote": "it's \\"quoted\\"\\u2028 \\u00e9"})


@app.websocket_route("/bytes", value_type="bytes")
async def binary(ws):
    async with ws:
        async for message in ws:
            await ws.send(message[::-1])


@app.websocket_route("/closed")
async def closed(ws):
    await ws.reject(403)


@app.get("/prices")
async def prices():
    async def events():
        yield {"symbol": "ACME", "price": 1.50}
        yield "two\\nlines"
    return EventStream(events())


@app.post("/items/{n:int}")
async def item(request, n):
    return {"n": n, **await request.json(), "q": request.query.get("q")}, 201


@app.get("/find/{query}/{method}/{größe}")
async def find(request, query, method, größe):
    return [query, method, größe, request.query.get("q")]


@app.get("/text")
async def text():
    return "<b>bold</b>"
'''

CONTRAST = """() => {
  const channel = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b)
  const numbers = color => color.match(/[\\d.]+/g).map(Number)
  const background = element => {
    for (; element; element = element.parentElement) {
      const found = numbers(getComputedStyle(element).backgroundColor)
      if (found.length === 3 || found[3] > 0) return found
    }
  }
  const low = []
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data.trim()).join("")
    if (!text || !element.checkVisibility() || element.disabled || element.className === "skip") continue
    const both = [numbers(getComputedStyle(element).color), background(element)].map(luminance)
    const contrast = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05)
    if (contrast < 4.5) low.push(`${text}: ${contrast.toFixed(2)}`)
  }
  return low
}"""


@pytest.fixture(scope="module")
def chromium():
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with developed(tmp_path_factory.mktemp("docs"), text=APP) as app:
        yield app


@pytest.fixture
def open_page(chromium, app):
    """Opens the page at a route, and fails if it writes to the console or asks another server."""
    problems = []
    contexts = []

    def open_page(route="", *, width=1280, theme="light"):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        contexts.append(context)
        context.set_default_timeout(LIMIT * 1000)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: f":{app.port}/" in request.url or problems.append(request.url))
        page.goto(f"http://localhost:{app.port}/docs#{route}")
        expect(page.locator("main h1")).to_be_visible()
        return page

    open_page.problems = problems
    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def rows(page):
    return page.locator(".log summary .brief").all_inner_texts()


def copied(page):
    page.get_by_role("button", name="Copy as test").click()
    expect(page.locator("#toast")).to_have_text("Copied as a test")
    return page.evaluate("navigator.clipboard.readText()")


def run_test(app, text):
    """Run a copied test as it is, in the project of the app."""
    (app.folder / "pyproject.toml").write_text('[tool.microws]\napp = "chat:app"\n')
    (app.folder / "test_copied.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_copied.py", "-k", "asyncio"]
    done = subprocess.run(command, cwd=app.folder, capture_output=True, text=True, timeout=6 * LIMIT, check=False)
    assert done.returncode == 0, text + done.stdout
    assert "1 passed" in done.stdout


def test_exchange_over_a_websocket_is_a_test(open_page, app):
    page = open_page("/WS/chat/{room}")
    expect(page.locator(".docs")).to_contain_text("A room of the chat.")
    page.get_by_label("room").fill("a b/c")
    page.get_by_role("button", name="Connect").click()
    expect(page.locator(".state")).to_have_text("connected")
    page.get_by_label("Message", exact=True).fill('{\n  "text": "hello \\"you\\""\n}')
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".log .received")).to_have_count(2)
    page.get_by_label("Message", exact=True).fill('"bye"')
    page.keyboard.press("Control+Enter")
    expect(page.locator(".state")).to_have_text("closed by the server, 4000 as you say")
    assert rows(page)[1].startswith("welcome room a b/c big 1234567890123456")
    text = copied(page)
    assert '/chat/a%20b%2Fc"' in text
    assert "12345678901234567890" in text
    run_test(app, text)


def test_binary_exchange_is_a_test(open_page, app):
    page = open_page("/WS/bytes")
    page.get_by_role("button", name="Connect").click()
    page.get_by_label("Message", exact=True).fill("abc")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".log .received")).to_have_count(1)
    assert rows(page)[1:] == ["61 62 63", "63 62 61"]
    run_test(app, copied(page))


@pytest.mark.parametrize(
    ("route", "fill", "status"),
    [("/POST/items/{n:int}", {"n": "7", "query": "q=a%26b"}, "201 in"), ("/GET/text", {}, "200 in")],
)
def test_request_is_a_test(open_page, app, route, fill, status):
    page = open_page(route)
    if fill:
        page.locator("summary", has_text="More").click()
    for name, value in fill.items():
        page.get_by_label(name, exact=True).fill(value)
    if fill:
        page.get_by_label("Body", exact=True).fill('{"a": null, "b": [true, 1e3]}')
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".state")).to_contain_text(status)
    run_test(app, copied(page))


def test_parameter_may_have_the_name_of_another_field(open_page):
    page = open_page("/GET/find/{query}/{method}/{gr\u00f6\u00dfe}")
    for name, value in (("query", "a b"), ("method", "POST"), ("gr\u00f6\u00dfe", "1")):
        page.locator(f'[name="{name}"][data-in="path"]').fill(value)
    page.locator("summary", has_text="More").click()
    page.locator('[name="query"]:not([data-in])').fill("q=x")
    page.click("#go")
    expect(page.locator(".log")).to_contain_text('["a b","POST","1","x"]')


def test_events_are_a_test(open_page, app):
    page = open_page("/SSE/prices")
    page.get_by_role("button", name="Connect").click()
    expect(page.locator(".log .received")).to_have_count(2)
    expect(page.locator(".state")).to_have_text("ended by the server")
    run_test(app, copied(page))


def test_hub_is_watched_and_published_to(open_page, app):
    page = open_page("/live")
    expect(page.get_by_text("No topic has subscribers.")).to_be_visible()
    visitor = open_page("/WS/chat/{room}")
    visitor.get_by_role("button", name="Connect").click()
    expect(visitor.locator(".state")).to_have_text("connected")
    page.get_by_role("button", name="Watch").click()
    expect(page.get_by_label("topic")).to_have_value("chat:room")
    page.get_by_label("Value").fill('{"type": "said", "text": "from the page"}')
    page.get_by_role("button", name="Publish").click()
    expect(page.locator(".row [role=status]")).to_have_text("reached 2 subscribers")
    expect(page.locator(".log .received")).to_have_count(1)
    expect(visitor.locator(".log .received")).to_have_count(2)
    expect(page.locator("tbody tr", has_text="chat:room").locator(".subscribers")).to_have_text("2")
    page.get_by_label("topic").fill("")
    page.get_by_role("button", name="Publish").click()
    expect(page.locator(".row [role=status]")).to_contain_text("expected a topic")


def test_page_works_with_the_keyboard_alone(open_page):
    page = open_page()
    for key in "/item":
        page.keyboard.press(key)
    expect(page.locator("#list a[href^='#/POST']")).to_have_count(1)
    expect(page.locator("#list a[href^='#/WS']")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(page.locator("#find")).not_to_be_focused()
    for _ in range(2):
        page.keyboard.press("k")
        page.keyboard.press("j")
    page.locator("#find").fill("")
    page.keyboard.press("Escape")
    page.evaluate("location.hash = '#/WS/bytes'")
    expect(page.locator("main h1")).to_have_text("/bytes")
    page.keyboard.press("k")
    expect(page.locator("main h1")).to_have_text("/chat/{room}")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".state")).to_have_text("connected")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".log .sent")).to_have_count(1)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400, 320])
def test_page_is_readable_at_every_width(open_page, width, theme):
    for route in ("/WS/chat/{room}", "/live"):
        page = open_page(route, width=width, theme=theme)
        if route != "/live":
            if width < 720:
                page.get_by_role("tab", name="Try it").click()
            page.get_by_role("button", name="Connect").click()
            page.get_by_label("Message", exact=True).fill("{")
            page.get_by_role("button", name="Send").click()
            expect(page.locator(".note")).to_contain_text("Not JSON, sent as it is")
            expect(page.locator(".log .sent")).to_have_count(1)
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_page_reloads_with_the_app(open_page, app):
    page = open_page("/GET/text")
    app.save(APP + '\n\n@app.get("/added")\nasync def added():\n    """It is new."""\n    return ""\n')
    page.locator("#list a", has_text="/added").click()
    expect(page.locator(".docs")).to_contain_text("It is new.")
    # The old page may have asked the new process once.
    assert {each for each in open_page.problems if "403 (Forbidden)" not in each} == set()
    open_page.problems.clear()
