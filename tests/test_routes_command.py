"""``microws routes``: the table of an app, which route answers a request, and what nearly did."""

import json

import pytest

from microws.cli import main

CHAT = """
import functools
import microws
from microws import App, EventStream as Events
from admin import app as admin

app = App()

@app.get("/")
async def page(): ...

@app.websocket_route("/chat/{room}")
async def chat(ws, room): ...

@app.route("/chat/{room}", methods=["GET", "POST"])
async def read(room): ...

@app.get("/chat/new")
async def new(): ...

@app.get("/users/{id:int}")
def user(id): ...

@app.get("/news")
async def news():
    return Events(app.stream("news"))

@app.get("/other-news")
async def other_news():
    return microws.EventStream(app.stream("news"))

@app.get("/typed")
async def typed() -> Events: ...

@app.get("/wrapped")
@functools.wraps(page)
async def wrapped(*args): ...

class View:
    async def __call__(self): ...

app.add_route(View(), "/object/")
app.add_route("{path}".format, "/c/{path:path}", methods=["PUT"])
app.static("/static", ".")
app.health()
app.metrics()
app.mount("/admin", admin)

async def raw(scope, receive, send): ...

class Other:
    async def __call__(self, scope, receive, send): ...

app.mount("/raw", raw)
app.mount("/other", Other())
"""

ADMIN = """
from microws import App
app = App()

@app.get("/")
async def index(): ...

@app.websocket_route("/live/")
async def live(ws): ...
"""


@pytest.fixture
def routes(directory, capsys):
    """Run ``microws routes`` in a directory with two apps: its exit code and its lines."""
    (directory / "app.py").write_text(CHAT)
    (directory / "admin.py").write_text(ADMIN)

    def run(*arguments):
        code = main(["routes", *arguments])
        shown = capsys.readouterr()
        return code, (shown.out + shown.err).splitlines()

    return run


def test_all_routes_are_listed_with_their_views_and_places(routes):
    assert routes() == (
        0,
        [
            "GET       /                    page        app.py:9",
            "WS        /chat/{room}         chat        app.py:12",
            "GET,POST  /chat/{room}         read        app.py:15",
            "GET       /chat/new            new         app.py:18",
            "GET       /users/{id:int}      user        app.py:21",
            "SSE       /news                news        app.py:24",
            "SSE       /other-news          other_news  app.py:28",
            "SSE       /typed               typed       app.py:32",
            "GET       /wrapped             page        app.py:9",
            "GET       /object/             View        app.py:40",
            "PUT       /c/{path:path}       format",
            "GET       /static/{path:path}  static      .",
            "GET       /healthz             live",
            "GET       /readyz              ready",
            "GET       /metrics             metrics",
            "MOUNT     /admin               App",
            "  GET     /admin/              index       admin.py:5",
            "  WS      /admin/live/         live        admin.py:8",
            "MOUNT     /raw                 raw         app.py:49",
            "MOUNT     /other               Other",
        ],
    )


def test_an_app_without_routes_says_so(routes, directory):
    (directory / "empty.py").write_text("from microws import App\napp = App()")
    assert routes("empty:app") == (0, ["no routes"])


def test_json_has_absolute_files(routes, directory):
    _, lines = routes("admin:app", "--json")
    assert json.loads("\n".join(lines))[1] == {
        "methods": ["WS"], "path": "/live/", "view": "live", "file": str(directory / "admin.py"), "line": 8, "depth": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["GET", "/"], "GET  /  page  app.py:9"),
        (["/"], "GET  /  page  app.py:9"),
        (["app:app", "/"], "GET  /  page  app.py:9"),
        (["HEAD", "/chat/new"], "GET  /chat/new  new  app.py:18"),
        (["ws", "/chat/x"], "WS  /chat/{room}  chat  app.py:12  room='x'"),
        (["post", "/chat/a b"], "GET,POST  /chat/{room}  read  app.py:15  room='a b'"),
        (["POST", "/chat/a%2Fb?c=/d"], "GET,POST  /chat/{room}  read  app.py:15  room='a/b'"),
        (["PUT", "/c/a/b"], "PUT  /c/{path:path}  format    path='a/b'"),
        (["/users/7"], "GET  /users/{id:int}  user  app.py:21  id=7"),
        (["/admin/"], "GET  /admin/  index  admin.py:5"),
        (["PATCH", "/raw/x"], "MOUNT  /raw  raw  app.py:49  answers all paths below"),
        (["/other/x"], "MOUNT  /other  Other    answers all paths below"),
        (["admin:app", "WS", "/live/"], "WS  /live/  live  admin.py:8"),
    ],
)
def test_the_route_that_answers_is_shown_with_its_parameters(routes, arguments, answer):
    code, lines = routes(*arguments)
    assert (code, lines[0]) == (0, answer)


@pytest.mark.parametrize(
    ("arguments", "result", "near"),
    [
        (["/chats/x"], "404 Not Found", ["expected 'chat', got 'chats'"] * 2),
        (["/users/x"], "404 Not Found", ["expected {id:int}, got 'x'"]),
        (["/users/"], "404 Not Found", ["expected {id:int}, got ''"]),
        (["DELETE", "/users/7"], "405 Method Not Allowed, Allow: GET, HEAD, OPTIONS", ["does not have DELETE"]),
        (["OPTIONS", "/users/7"], "microws responds with 204, Allow: GET, HEAD, OPTIONS", ["does not have OPTIONS"]),
        (["WS", "/users/7"], "405 Method Not Allowed, Allow: GET, HEAD, OPTIONS", ["is HTTP, not a WebSocket"]),
        (["/object"], "308 redirect to /object/", ["ends with a slash"]),
        (["/news/"], "308 redirect to /news", ["ends without a slash"]),
        (["/chat"], "404 Not Found", ["goes on with {room}", "goes on with {room}", "goes on with 'new'"]),
        (["WS", "/admin/live"], "404 Not Found", ["ends with a slash"]),
        (["/admin/live/"], "426 Upgrade Required", ["is a WebSocket, not HTTP"]),
        (["/admni/x"], "404 Not Found", ["expected 'admin', got 'admni'"]),
        (["/typed/x"], "404 Not Found", ["ends before 'x'"]),
        (["/chat/a/b"], "404 Not Found", ["ends before 'b'; {room:path} takes the rest of a path"] * 2),
        (["/nothing/of/that"], "404 Not Found", []),
    ],
)
def test_without_a_route_the_response_and_the_near_ones_are_shown(routes, arguments, result, near):
    code, lines = routes(*arguments)
    assert (code, lines[0].partition(": ")[2]) == (1, result)
    assert len(lines[3:]) == len(near)
    for line, reason in zip(lines[3:], near, strict=True):
        assert line.endswith(reason)


def test_a_route_behind_a_more_specific_one_says_which(routes):
    assert routes("/chat/new")[1][2:] == [
        "nearly:",
        "WS        /chat/{room}  chat  app.py:12  is a WebSocket, not HTTP",
        "GET,POST  /chat/{room}  read  app.py:15  /chat/new comes first: it is more specific",
    ]


def test_an_answer_as_json_has_what_nearly_answers(routes):
    code, lines = routes("--json", "/users/x")
    found = json.loads("\n".join(lines))
    assert (code, found["answer"], found["result"]) == (1, None, "404 Not Found")
    assert [(row["path"], row["why_not"]) for row in found["nearly"]] == [
        ("/users/{id:int}", "expected {id:int}, got 'x'")
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["GET"], 2, "expected a METHOD and a PATH that begins with a slash: microws routes [APP] GET /chat/x"),
        (["GET", "chat"], 2, "expected a METHOD and a PATH that begins with a slash"),
        (["app", "get", "chat"], 2, "expected a METHOD and a PATH that begins with a slash"),
        (["app", "zzz", "/chat"], 2, "expected a METHOD and a PATH that begins with a slash"),
        (["a", "b", "/c", "d"], 2, "unknown argument 'd'; see microws routes --help"),
        (["--jsn"], 2, "unknown argument '--jsn'; did you mean '--json'?"),
        (["app:raw"], 2, "expected an App of microws, whose routes are known, got app:raw, a function"),
        (["ap"], 3, "no module 'ap' in"),
        (["admin:ap"], 3, "admin has no attribute 'ap'; did you mean: microws routes admin:app"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(routes, arguments, code, line):
    shown_code, [shown] = routes(*arguments)
    assert shown_code == code
    assert shown.startswith(f"error: {line}")


def test_a_failed_import_shows_the_frames_of_the_user(routes, directory):
    (directory / "bad.py").write_text("1 / 0")
    code, lines = routes("bad:app")
    assert (code, lines[0], lines[-1]) == (
        3, "Traceback (most recent call last):", "error: bad failed while it was imported: ZeroDivisionError",
    )  # fmt: skip
