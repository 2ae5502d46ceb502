"""``microws dev`` in Chromium: pages that reload, and tracebacks."""

import pytest
from developing import APP, developed
from playwright.sync_api import expect
from serving import LIMIT, browsing

PAGES = '''
from microws import Response, StreamingResponse

HEAD = "<!doctype html><html><head><title>T</title></head><body><h1>"


@app.get("/seen/{name}")
def seen(name):
    return HEAD + f"{name} {VERSION}</h1><p>&lt;/body&gt;</p></body></html>"


@app.get("/template")
def template():
    return app.render("page.html")


@app.get("/unended")
def unended():
    return HEAD + "unended</h1>"


@app.get("/text")
def text():
    return {"body": "</body>"}


@app.get("/piecewise")
async def piecewise():
    async def pieces():
        yield HEAD + "pieces</h1>"
        yield "</BODY></html>"

    return StreamingResponse(pieces(), content_type="text/html; charset=utf-8")


@app.get("/packed")
def packed(request):
    import gzip

    body = (HEAD + "packed</h1></body></html>").encode()
    if "gzip" not in request.headers.get("accept-encoding", "") and not request.query:
        return Response(body, content_type="text/html")
    return Response(gzip.compress(body), headers={"content-encoding": "gzip"}, content_type="text/html")


@app.get("/policy/{policy:path}")
def policy(policy):
    body = HEAD + "policy</h1></body></html>"
    return Response(body, headers={"content-security-policy": policy}, content_type="text/html")


def deep(count, password):
    return deep(count - 1, password) if count else {}["<script>document.title='x'</script>"]


@app.get("/fails")
def fails():
    try:
        return deep(2, "-".join("abc"))
    except KeyError as error:
        raise ValueError("<b>wrong</b> & more") from error


@app.websocket_route("/fails")
async def socket_fails(ws):
    async with ws:
        raise RuntimeError("in the socket")


@app.get("/caller")
def caller():
    return HEAD + """caller</h1><script>
      addEventListener("click", () => new WebSocket(location.origin.replace("http", "ws") + "/fails"))
    </script></body></html>"""
'''
TEXT = APP + PAGES
HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
TAG = '<script src="/.microws/dev.js" data-id="'


@pytest.fixture(scope="module")
def browser():
    with browsing() as browser:
        yield browser


@pytest.fixture
def dev(tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "page.html").write_text("<h1>first</h1></body>")
    with developed(tmp_path, "chat:app", "--show-locals", text=TEXT) as running:
        yield running


@pytest.fixture
def page(browser, dev):
    context = browser.new_context(base_url=f"http://127.0.0.1:{dev.port}")
    context.set_default_timeout(LIMIT * 1000)
    yield context.new_page()
    context.close()


def test_a_page_reloads_when_its_code_its_template_or_what_failed_is_saved(page, dev):
    page.goto("/seen/code")
    expect(page.locator("h1")).to_have_text("code 1")
    dev.save(TEXT, before="VERSION = 1\n", after="VERSION = 2\n")
    expect(page.locator("h1")).to_have_text("code 2")
    dev.save(TEXT, before="VERSION = 1\n", after="VERSION = (\n")
    expect(page.locator("h1")).to_have_text("SyntaxError: '(' was never closed")
    dev.save(TEXT, before="VERSION = 1\n", after="VERSION = 3\n")
    expect(page.locator("h1")).to_have_text("code 3")
    page.goto("/template")
    pid = dev.pid
    dev.save("<h1>second</h1>", name="templates/page.html")
    expect(page.locator("h1")).to_have_text("second")
    assert dev.pid == pid


def test_a_connection_from_before_a_save_gets_the_new_code(page, dev):
    for version in range(1, 5):
        dev.save(TEXT, before="VERSION = 1\n", after=f"VERSION = {version}\n")
        response = page.goto("/")
        assert response.json()["version"] == version
    assert response.request.redirected_from is None or response.request.redirected_from.url == response.url


def test_the_script_is_added_before_the_end_of_the_body_only_of_pages(dev):
    for path in ("/seen/x", "/unended", "/piecewise", "/packed"):
        status, body, headers = dev.get(path, **HTML, accept_encoding="gzip")
        assert status == 200
        assert body.count(TAG) == 1, path
        assert "content-encoding" not in headers
        assert headers.get("content-length") in (None, str(len(body)))
        end = body.lower().rfind("</body>")
        assert end < 0 or body[:end].endswith("</script>")
    assert TAG not in dev.get("/text", **HTML)[1]
    for other in ({"accept": "*/*"}, HTML | {"sec-fetch-dest": "empty"}):
        assert TAG not in dev.get("/seen/x", **other)[1]
    # An app that compresses in any case is left alone.
    assert dev.get("/packed?always=1", **HTML)[1] == dev.get("/packed?always=1")[1]
    assert len(dev.get("/.microws/dev.js")[1]) <= 1024


def test_a_head_request_has_the_length_of_the_page(dev):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", dev.port, timeout=LIMIT)
    connection.request("HEAD", "/seen/x", headers=HTML)
    length = connection.getresponse().headers["content-length"]
    connection.close()
    assert length == str(len(dev.get("/seen/x", **HTML)[1]))


@pytest.mark.parametrize(
    "policy", ["default-src 'self'", "script-src 'nonce-abc123' 'strict-dynamic'; connect-src 'self'"]
)
def test_a_page_with_a_content_security_policy_reloads(page, dev, policy):
    dev.save(TEXT, before='"policy</h1>', after='f"policy {VERSION}</h1>')
    page.goto(f"/policy/{policy}")
    expect(page.locator("h1")).to_have_text("policy 1")
    dev.save(TEXT.replace("VERSION = 1\n", "VERSION = 2\n"), before='"policy</h1>', after='f"policy {VERSION}</h1>')
    expect(page.locator("h1")).to_have_text("policy 2")


def test_a_policy_that_allows_no_script_is_kept(page):
    page.goto("/policy/default-src 'none'")
    expect(page.locator("h1")).to_have_text("policy")


def test_a_traceback_is_escaped_has_links_and_closes_with_escape(page, dev):
    page.goto("/fails")
    expect(page.locator("h1")).to_have_text("ValueError: <b>wrong</b> & more")
    assert page.title() == "ValueError: <b>wrong</b> & more"
    expect(page.locator("h2")).to_contain_text("because of KeyError")
    line = TEXT.splitlines().index('        raise ValueError("<b>wrong</b> & more") from error') + 1
    links = [link.get_attribute("href") for link in page.locator("summary a").all()]
    assert links[0] == f"vscode://file/{dev.folder / 'chat.py'}:{line}"
    expect(page.locator(".here").first).to_contain_text("raise ValueError")
    assert "a-b-c" not in page.content()
    expect(page.locator("dl").last).to_contain_text("hidden, because of its name")
    page.keyboard.press("Escape")
    expect(page.locator("h1")).to_have_count(0)
    dev.save(TEXT, before="        return deep(2", after="        return HEAD + '<h1>mended'; deep(2")
    expect(page.locator("h1").last).to_have_text("mended")


def test_other_clients_get_text(dev):
    status, body, headers = dev.get("/fails")
    assert (status, headers["content-type"]) == (500, "text/plain; charset=utf-8")
    assert 'raise ValueError("<b>wrong</b> & more")' in body


def test_an_exception_of_a_websocket_is_laid_over_the_page(page):
    page.goto("/caller")
    page.locator("h1").click()
    box = page.locator("#microws-error")
    expect(box.locator("h1")).to_have_text("RuntimeError: in the socket")
    page.keyboard.press("Escape")
    expect(box).to_have_count(0)
    expect(page.locator("h1")).to_have_text("caller")
