"""The fixtures of ``pytest_microws``: each test runs a pytest of its own in another project."""

import os
import re
import subprocess
import sys

import pytest

CHAT = """
from microws import App

app = App()
log = []
other = 1


@app.lifespan
async def life(app):
    log.append("up")
    yield
    log.append("down")


@app.get("/")
async def page():
    return "<h1>chat</h1>"


@app.websocket_route("/echo", subscribe="news")
async def echo(ws):
    async with ws:
        async for message in ws:
            await ws.send(message)


@app.post("/news")
async def news(request):
    await app.publish("news", await request.text())
"""

TESTS = """
import httpx
import pytest
from websockets.sync.client import connect


@pytest.mark.anyio
async def test_client(microws_client):
    assert (await microws_client.get("/")).text == "<h1>chat</h1>"
    async with microws_client.websocket("/echo") as ws:
        await ws.send("hi")
        assert await ws.receive() == "hi"


@pytest.mark.parametrize("_", range(2))
def test_server(microws_server, _):
    assert microws_server.url == f"http://127.0.0.1:{microws_server.port}"
    with connect(f"{microws_server.ws_url}/echo") as ws:
        ws.send("hi")
        assert ws.recv(timeout=5) == "hi"
        assert httpx.post(f"{microws_server.url}/news", content="new").status_code == 204
        assert ws.recv(timeout=5) == "new"


def test_an_open_connection_ends_with_the_server(microws_server):
    global left
    left = connect(f"{microws_server.ws_url}/echo").__enter__()


def test_a_lifespan_is_as_long_as_a_test(microws_app):
    with pytest.raises(Exception, match="1012"):
        left.recv(timeout=5)
    left.close()
    import chat
    assert chat.app is microws_app
    assert chat.log == ["up", "down"] * 5
"""


@pytest.fixture
def project(tmp_path):
    """A project with ``CHAT`` and ``tests/test_chat.py``; runs its tests in the directory ``tests``."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "chat.py").write_text(CHAT)

    def run(tests=TESTS, *options, config='[tool.microws]\napp = "chat:app"', **variables):
        settings = '[tool.pytest.ini_options]\nfilterwarnings = ["error"]\npythonpath = ["."]\n'
        (tmp_path / "pyproject.toml").write_text(f"{config}\n{settings}")
        (tmp_path / "tests/test_chat.py").write_text(tests)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider", *options]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MICROWS_", "PYTEST_"))}
        done = subprocess.run(
            command, cwd=tmp_path / "tests", env=env | variables, capture_output=True, text=True, timeout=50
        )
        assert not done.stderr
        return done.returncode, done.stdout

    return run


def test_the_app_of_the_project_is_tested_in_memory_and_served(project):
    code, output = project()
    assert "6 passed" in output
    assert code == 0


def test_pytest_asyncio_enters_the_client_in_its_auto_mode(project):
    used = 'async def test_it(microws_client):\n    assert (await microws_client.get("/")).status == 200\n'
    loop_scope = "asyncio_default_fixture_loop_scope=function"
    code, output = project(used, "-p", "asyncio", "-o", "asyncio_mode=auto", "-o", loop_scope)
    assert (code, "1 passed" in output) == (0, True)


def test_the_app_may_be_named_by_a_variable_or_by_a_fixture(project):
    used = "def test_it(microws_app):\n    import chat\n    assert microws_app is chat.app\n"
    assert project(used, config="", MICROWS_APP="chat")[0] == 0
    own = "import pytest\n@pytest.fixture\ndef microws_app():\n    from chat import app\n    return app\n\n"
    assert project(own + used, config="")[0] == 0


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ("", r"no APP was named, and there is no app\.py, main\.py, asgi\.py in .*"),
        ('[tool.microws]\napp = "chta:app"', r"no module 'chta' in .*"),
        ('[tool.microws]\napp = "starlette.applications:Starlette()"', r"expected an App as .*, got a Starlette"),
    ],
)
def test_a_missing_app_says_how_to_name_it(project, config, line):
    code, output = project("def test_it(microws_app): pass", config=config)
    hint = (
        r'for tests, write app = "chat:app" below \[tool\.microws\] in pyproject\.toml, or a fixture microws_app that '
    )
    assert re.search(rf"^{line}; {hint}returns the app$", output, re.MULTILINE)
    assert code == 1


def test_a_mistake_in_the_configuration_is_named(project):
    _, output = project("def test_it(microws_app): pass", config='[tool.microws]\nap = "chat:app"')
    assert re.search(r"^pyproject.toml: \[tool.microws\] has no key 'ap'; did you mean 'app'\?$", output, re.MULTILINE)


def test_an_app_that_does_not_start_fails_the_test_with_the_log(project):
    fails = 'import chat\n@chat.app.on_startup\ndef fail():\n    raise LookupError("no database")\n\n'
    code, output = project(f"{fails}def test_it(microws_server): pass")
    assert code == 1
    assert "the app did not start; the captured log says why" in output
    assert "LookupError: no database" in output


def test_other_projects_pay_next_to_nothing(project):
    unused = "import sys\ndef test_it():\n    assert not {'microws', 'anyio'} & {*sys.modules}\n"
    code, output = project(unused, "-p", "no:anyio")
    assert (code, "1 passed" in output) == (0, True)
    command = [sys.executable, "-X", "importtime", "-c", "import pytest; import pytest_microws"]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True).stderr.splitlines()
    names = [line.split()[-1] for line in lines]
    assert names[names.index("pytest") + 1 :] == ["pytest_microws"]
