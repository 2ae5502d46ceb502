"""Pages of other origins in Chromium: what ``App(origins=…)`` and ``App(allowed_hosts=…)`` let them do."""

import pytest
from conversing import HERE
from serving import browsing, serving

# One browser for all of them.
pytestmark = pytest.mark.xdist_group("crossing")

APP = str(HERE / "crossing.py")

# Each answers with what the page gets to see, and "blocked" where the browser keeps it from the page.
ASK = """
async ([url, options]) => {
    try {
        const response = await fetch(url, options);
        return [response.status, await response.json()];
    } catch (error) {
        return "blocked";
    }
}
"""
LISTEN = """
([url, withCredentials]) => new Promise((resolve) => {
    const source = new EventSource(url, {withCredentials});
    source.onmessage = (event) => { source.close(); resolve(JSON.parse(event.data)); };
    source.onerror = () => { source.close(); resolve("blocked"); };
})
"""
CONNECT = """
(url) => new Promise((resolve) => {
    const ws = new WebSocket(url);
    ws.onmessage = (event) => resolve(event.data);
    ws.onerror = () => resolve("blocked");
})
"""


@pytest.fixture(scope="module")
def pages():
    """A server of pages."""
    with serving(APP) as server:
        yield server


@pytest.fixture(scope="module")
def api(pages):
    """The server that they ask. One of its neighbours may; browsers resolve ``*.localhost`` to this machine."""
    with serving(APP, ORIGINS=f"http://app.site.localhost:{pages.port}", HOSTS="api.site.localhost") as server:
        yield server


@pytest.fixture(scope="module")
def chromium():
    with browsing() as browser:
        yield browser


@pytest.fixture
def open_page(chromium, pages):
    """Opens a page at a host."""
    with chromium.new_context() as context:

        def open_page(host):
            page = context.new_page()
            page.goto(f"http://{host}.localhost:{pages.port}/")
            return page

        yield open_page


def ask(page, api, path, method="GET", *, credentials="include", headers=None, body=None):
    options = {"method": method, "credentials": credentials, "headers": headers or {}, "body": body}
    return page.evaluate(ASK, [f"http://api.site.localhost:{api.port}{path}", options])


def listen(page, api):
    return page.evaluate(LISTEN, [f"http://api.site.localhost:{api.port}/events", True])


def connect(page, api):
    return page.evaluate(CONNECT, f"ws://api.site.localhost:{api.port}/ws")


def changes(page, api):
    return ask(page, api, "/items")[1]["changes"]


JSON = {"content-type": "application/json", "x-csrf-token": "1"}


def test_a_page_of_the_list_reads_sends_and_listens_with_its_cookie(open_page, api):
    page = open_page("app.site")
    assert ask(page, api, "/items")[1]["user"] is None
    assert ask(page, api, "/login", "POST") == [200, {}]
    assert ask(page, api, "/items")[1]["user"] == "ada"
    for method in ("POST", "PUT"):
        status, told = ask(page, api, "/items", method, headers=JSON, body="{}")
        assert (status, told["method"], told["user"]) == (200, method, "ada")
    assert listen(page, api) == {"user": "ada"}
    assert connect(page, api) == "hello"


def test_it_reads_errors_and_is_told_of_a_method_that_is_not_there(open_page, api):
    page = open_page("app.site")
    assert ask(page, api, "/taken", headers={"accept": "application/json"}) == [409, {"error": "taken"}]
    assert ask(page, api, "/nowhere", "PUT", headers=JSON) == [404, {"error": "Not Found"}]
    assert ask(page, api, "/items", "DELETE") == "blocked"


@pytest.mark.parametrize("host", ["evil", "other.site"])
def test_another_page_reads_nothing_changes_nothing_and_does_not_connect(open_page, api, host):
    friend, page = open_page("app.site"), open_page(host)
    assert ask(friend, api, "/login", "POST") == [200, {}]
    before = changes(friend, api)
    for credentials in ("include", "omit"):
        assert ask(page, api, "/items", credentials=credentials) == "blocked"
        for headers in (JSON, {"content-type": "text/plain"}):
            assert ask(page, api, "/items", "POST", headers=headers, credentials=credentials) == "blocked"
    assert listen(page, api) == "blocked"
    assert connect(page, api) == "blocked"
    page.evaluate("url => fetch(url, {method: 'POST', mode: 'no-cors'})", f"http://api.site.localhost:{api.port}/items")
    assert changes(friend, api) == before


def test_every_page_reads_what_is_public_and_sends_no_cookie(open_page, api):
    page = open_page("evil")
    assert ask(page, api, "/public/", credentials="omit") == [200, {"public": True}]
    assert ask(page, api, "/public/", "PUT", credentials="omit", headers=JSON) == [200, {"public": True}]
    assert ask(page, api, "/public/", credentials="include") == "blocked"


def test_a_page_whose_name_resolves_to_the_server_is_answered_with_421(open_page, api):
    page = open_page("evil")
    rebound = f"http://evil.localhost:{api.port}"
    assert page.goto(rebound).status == 421
    asked = {"headers": {"accept": "application/json"}}
    assert page.evaluate(ASK, [f"{rebound}/items", asked]) == [421, {"error": "host not allowed"}]
    assert page.evaluate(CONNECT, f"ws://evil.localhost:{api.port}/ws") == "blocked"
    api.wait_for_line(r'App\(allowed_hosts=\["evil\.localhost"\]\)')
