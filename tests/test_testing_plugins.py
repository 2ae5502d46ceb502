"""The test client as a fixture of other plugins and of unittest: each in a pytest of its own."""

import subprocess
import sys

APP = """
from microws import App, EventStream

def make():
    app, log = App(), []

    @app.lifespan
    async def life(app):
        log.append("up")
        yield
        log.append("down")

    @app.websocket_route("/echo", subscribe="news")
    async def echo(ws):
        async with ws:
            async for message in ws:
                await ws.send(message)

    @app.get("/events")
    async def events():
        return EventStream(app.stream("news"))

    async def use(client, ws):
        await ws.send("hi")
        assert await ws.receive() == "hi"
        async with client.stream("GET", "/events") as response:
            await app.publish("news", "new")
            assert (await anext(response.events())).data == "new"
        assert await ws.receive() == "new"

    return app, log, use
"""

ASYNCIO = """
import pytest, pytest_asyncio
from the_app import make

app, log, use = make()

pytestmark = pytest.mark.asyncio(loop_scope="{scope}")

@pytest_asyncio.fixture(scope="{scope}", loop_scope="{scope}")
async def client():
    async with app.test_client() as client:
        yield client

@pytest_asyncio.fixture(scope="{scope}", loop_scope="{scope}")
async def ws(client):
    async with client.websocket("/echo") as ws:
        yield ws

async def test_one(client, ws):
    await use(client, ws)

async def test_two(client, ws):
    await use(client, ws)

async def test_a_lifespan_is_as_long_as_the_scope():
    assert log == (["up", "down"] * 2 if "{scope}" == "function" else ["up"])
"""

UNITTEST = """
import unittest
from the_app import make

app, log, use = make()

class Test(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.client = await self.enterAsyncContext(app.test_client())
        self.ws = await self.enterAsyncContext(self.client.websocket("/echo"))

    async def test_one(self):
        await use(self.client, self.ws)

    async def test_two(self):
        await use(self.client, self.ws)
"""

ANYIO = """
import pytest
from the_app import make

app, log, use = make()

pytestmark = pytest.mark.anyio

@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param

@pytest.fixture
async def client():
    async with app.test_client() as client:
        yield client

@pytest.fixture
async def ws(client):
    async with client.websocket("/echo") as ws:
        yield ws

async def test_one(client, ws):
    await use(client, ws)
"""

# Fixtures and tests of a function's scope, without any marks: what `asyncio_mode=auto` is for.
AUTO = """
import pytest
from the_app import make

app, log, use = make()

@pytest.fixture
async def client():
    async with app.test_client() as client:
        yield client

@pytest.fixture
async def ws(client):
    async with client.websocket("/echo") as ws:
        yield ws

async def test_one(client, ws):
    await use(client, ws)
"""


def run_pytest(directory, *arguments, **files):
    """What pytest prints for these test files."""
    for name, text in {"the_app": APP, **files}.items():
        (directory / f"{name}.py").write_text(text)
    options = ["-q", "-p", "no:cacheprovider", "-W", "error", "-o", "asyncio_default_fixture_loop_scope=function"]
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=50, check=False).stdout


def test_it_is_a_fixture_of_any_scope_under_pytest_asyncio_and_in_unittest(tmp_path):
    scopes = {f"test_{scope}": ASYNCIO.format(scope=scope) for scope in ("function", "module", "session")}
    printed = run_pytest(tmp_path, **scopes, test_unittest=UNITTEST)
    assert "11 passed" in printed, printed


def test_it_is_a_fixture_under_pytest_asyncio_in_auto_mode(tmp_path):
    printed = run_pytest(tmp_path, "-o", "asyncio_mode=auto", test_auto=AUTO)
    assert "1 passed" in printed, printed


def test_it_is_a_fixture_under_anyio_beside_pytest_asyncio(tmp_path):
    printed = run_pytest(tmp_path, test_anyio=ANYIO)
    assert "2 passed" in printed, printed


def test_a_fixture_in_another_event_loop_than_the_test_is_an_error_that_says_so(tmp_path):
    # anyio's plugin runs the fixture, and pytest-asyncio in auto mode runs the test.
    auto = run_pytest(tmp_path, "-o", "asyncio_mode=auto", test_anyio=ANYIO.replace(', "trio"', ""))
    assert "1 failed" in auto, auto
    assert "RuntimeError: expected the event loop that the test client was entered in" in auto
