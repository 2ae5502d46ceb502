"""
Fixtures for pytest: the app of the project, a test client for it, and a server for browsers.

pytest loads this module in every project whose environment has microws. So it imports nothing that pytest does not, and
is no part of the package: importing that takes time, and would come before a project measures its coverage.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, chdir
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from microws import App
    from microws.testing import TestClient

__all__ = ["LiveServer", "microws_app", "microws_client", "microws_server"]

_HINT = (
    'for tests, write app = "chat:app" below [tool.microws] in pyproject.toml, '
    "or a fixture microws_app that returns the app"
)


class LiveServer(NamedTuple):
    """
    Where an app is served.

    Attributes:
        url: Begins with ``http://`` and has no slash at the end.
        ws_url: The same with ``ws://``.
        port: Of 127.0.0.1.
    """

    url: str
    ws_url: str
    port: int


@pytest.fixture(scope="session")
def microws_app(request: pytest.FixtureRequest) -> "App":
    """The app that ``microws run`` serves in the root directory of the tests. Define it yourself for another one."""
    from microws import App
    from microws.cli.discovery import LoadError, find_app
    from microws.cli.options import resolve
    from microws.cli.usage import UsageError

    try:
        with chdir(request.config.rootpath):
            invocation = resolve({})
            name, app = find_app(invocation.app, factory=invocation.factory, app_dir=invocation.app_dir)
    except LoadError as error:
        pytest.fail(f"{error.traceback}{error}; {_HINT}", pytrace=False)
    except UsageError as error:
        pytest.fail(str(error), pytrace=False)
    if not isinstance(app, App):
        pytest.fail(f"expected an App as {name}, got a {type(app).__name__}; {_HINT}", pytrace=False)
    return app


@pytest.fixture
async def microws_client(microws_app: "App") -> "AsyncIterator[TestClient]":
    """A test client of ``microws_app``, whose lifespan runs for each test."""
    async with microws_app.test_client() as client:
        yield client


@pytest.fixture
def microws_server(microws_app: "App") -> Iterator[LiveServer]:
    """
    ``microws_app`` on a free port of 127.0.0.1, for a browser or another client: a ``LiveServer``.

    It runs in another thread, with a lifespan for each test, and disconnects all clients at the end.
    """
    from functools import partial

    from anyio.from_thread import start_blocking_portal

    from microws.server.control import Shutdown, Stage
    from microws.server.listening import bind
    from microws.server.settings import Settings
    from microws.server.worker import serve

    settings = Settings(port=0, hub="memory", drain_timeout=0)
    [listener] = bind(settings.addresses)
    with ExitStack() as stack:
        stack.callback(listener.close)
        portal = stack.enter_context(start_blocking_portal("asyncio"))
        shutdown = portal.call(Shutdown)
        try:
            ended, _ = portal.start_task(partial(serve, microws_app, settings, listeners=[listener], shutdown=shutdown))
        except RuntimeError:
            pytest.fail("the app did not start; the captured log says why", pytrace=False)
        stack.callback(ended.result)
        stack.callback(portal.call, shutdown.reach, Stage.DRAIN)
        yield LiveServer(listener.url, listener.url.replace("http", "ws", 1), int(listener.url.rpartition(":")[2]))
