"""The public names, exactly."""

import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import microws
from microws import App, errors

PROJECT = Path(__file__).parents[1]

APP = {
    "asyncapi",
    "openapi",
    "add_codec",
    "add_converter",
    "add_middleware",
    "add_route",
    "add_websocket_route",
    "after_request",
    "after_websocket",
    "before_request",
    "before_websocket",
    "client_js",
    "connections",
    "count",
    "delete",
    "docs",
    "disconnect",
    "error_handler",
    "get",
    "health",
    "hub",
    "include",
    "lifespan",
    "live",
    "members",
    "metrics",
    "mount",
    "position",
    "on_publish",
    "on_shutdown",
    "on_startup",
    "on_subscribe",
    "patch",
    "post",
    "publish",
    "publish_from_thread",
    "put",
    "render",
    "route",
    "run",
    "running",
    "start_soon",
    "state",
    "static",
    "stream",
    "subscribe",
    "test_client",
    "ticket",
    "topic",
    "url_for",
    "websocket_route",
}

# `cli` and `__main__` run the command where they are imported as a program.
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(microws.__path__, "microws.") if module.name != "microws.__main__"
)


def test_each_public_name_is_the_one_that_type_checkers_see():
    [block] = [node for node in ast.parse(Path(microws.__file__).read_text()).body if isinstance(node, ast.If)][:1]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(seen) == sorted(microws.__all__)
    assert len(set(microws.__all__)) == len(microws.__all__)
    for name, module in seen.items():
        assert getattr(microws, name) is getattr(importlib.import_module(module), name)


def test_dir_and_star_import_have_every_public_name():
    names = {}
    exec("from microws import *", names)
    assert set(microws.__all__) <= names.keys()
    assert set(microws.__all__) <= set(dir(microws))


def imported_by(*arguments):
    command = [sys.executable, "-X", "importtime", *arguments]
    # Under coverage a process would import what coverage needs.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    result = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True, cwd=PROJECT, env=env)
    return set(re.findall(r"^import time:.*\| +(\S+)$", result.stderr, re.MULTILINE))


# What an app does not need before it runs, or only with some features, and what takes long to import.
# anyio imports the module of a name on the name's first use, so annotations with its types are strings.
NOT_FOR_AN_APP = (
    "anyio.abc anyio.from_thread anyio._core._synchronization argparse ctypes decimal difflib email.utils http "
    "mimetypes microws.bench microws.cli microws.connection.aio microws.event_stream microws.files microws.forms "
    "microws.client microws.description microws.docs_page microws.health microws.metrics microws.server.logs "
    "microws.server.settings microws.server.worker microws.streams "
    "microws.testing msgspec pydantic secrets tempfile typing_extensions"
)
AN_APP = """
from microws import App, WebSocket

app = App()

@app.route("/")
async def index(request):
    return "text"

@app.websocket_route("/echo")
async def echo(ws: WebSocket):
    await ws.accept()
"""
NOT_FOR_HELP = "asyncio anyio dataclasses difflib microws.app microws.cli.bench microws.cli.options shlex tomllib"


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["-c", "import microws"], "asyncio anyio orjson typing_extensions microws.app microws.hints microws.testing"),
        (["-c", "from microws import CloseCode, MicrowsError"], "asyncio anyio orjson microws.app microws.testing"),
        (["-c", AN_APP], NOT_FOR_AN_APP),
        (["-m", "microws", "--help"], NOT_FOR_HELP),
        (["-m", "microws", "--version"], NOT_FOR_HELP),
        (["-m", "microws", "run", "--help"], "asyncio anyio microws.app microws.cli.bench microws.cli.run"),
    ],
    ids=["import", "errors", "app", "help", "version", "run-help"],
)
def test_start_up_imports_nothing_that_it_does_not_need(arguments, unwanted):
    assert imported_by(*arguments) & set(unwanted.split()) == set()


def test_an_app_has_exactly_these_public_names():
    assert {name for name in dir(App) if not name.startswith("_") and hasattr(App, name)} == APP


def test_every_exception_is_public_and_a_microws_error():
    assert set(errors.__all__) <= set(microws.__all__)
    assert all(issubclass(getattr(errors, name), microws.MicrowsError) for name in errors.__all__)


def test_the_version_is_a_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+([ab]\d+|rc\d+|\.dev\d+)?", microws.__version__)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_what_it_exports(name):
    module = importlib.import_module(name)
    if hasattr(module, "__path__") and not inspect.getsource(module).count("import "):
        return  # a package that is no more than a place
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, exported) for exported in module.__all__)


@pytest.mark.parametrize("name", sorted(microws.__all__))
def test_every_public_name_has_a_docstring(name):
    assert (getattr(microws, name).__doc__ or "").strip()


@pytest.mark.parametrize("name", sorted(APP))
def test_every_name_of_an_app_has_a_docstring(name):
    assert (getattr(App, name).__doc__ or "").strip()


@pytest.mark.parametrize(
    ("method", "positional"),
    [("add_route", 2), ("route", 1), ("websocket_route", 1), ("get", 1), ("topic", 1), ("publish", 2), ("stream", 1)],
)
def test_only_the_first_parameters_are_positional(method, positional):
    kinds = [parameter.kind for parameter in inspect.signature(getattr(App, method)).parameters.values()][1:]
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds[positional:])
