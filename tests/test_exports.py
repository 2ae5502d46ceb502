"""The public names, exactly."""

import importlib
import inspect
import pkgutil
import re

import pytest

import microws
from microws import App, errors

PUBLIC = {
    "URL",
    "App",
    "ClientDisconnect",
    "CloseCode",
    "Codec",
    "EventStream",
    "FeatureUnavailable",
    "FileResponse",
    "HTTPException",
    "Headers",
    "InvalidMessage",
    "JSONResponse",
    "MicrowsError",
    "MultiDict",
    "Overflow",
    "PayloadTypeError",
    "PublishTimeout",
    "Receipt",
    "RedirectResponse",
    "Request",
    "Response",
    "RoutingError",
    "ServerSentEvent",
    "State",
    "StreamingResponse",
    "TooManySubscriptions",
    "UploadFile",
    "WebSocket",
    "WebSocketDisconnect",
    "WebSocketRejected",
}

APP = {
    "add_codec",
    "add_converter",
    "add_middleware",
    "add_route",
    "add_websocket_route",
    "after_request",
    "after_websocket",
    "before_request",
    "before_websocket",
    "delete",
    "error_handler",
    "get",
    "health",
    "hub",
    "include",
    "lifespan",
    "members",
    "mount",
    "on_shutdown",
    "on_startup",
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
    "topic",
    "url_for",
    "websocket_route",
}

# `cli` and `__main__` run the command where they are imported as a program.
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(microws.__path__, "microws.") if module.name != "microws.__main__"
)


def test_the_package_has_these_names_and_no_others():
    assert set(microws.__all__) == PUBLIC
    assert len(microws.__all__) == len(PUBLIC)
    assert all(getattr(microws, name) is not None for name in PUBLIC)


def test_an_app_has_these_names_and_no_others():
    assert {name for name in dir(App) if not name.startswith("_") and hasattr(App, name)} == APP


def test_every_exception_is_public_and_below_one_root():
    assert set(errors.__all__) <= PUBLIC
    assert all(issubclass(getattr(errors, name), microws.MicrowsError) for name in errors.__all__)


def test_the_version_is_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+([ab]\d+|rc\d+|\.dev\d+)?", microws.__version__)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_exports_and_has_it(name):
    module = importlib.import_module(name)
    if hasattr(module, "__path__") and not inspect.getsource(module).count("import "):
        return  # a package that is no more than a place
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, exported) for exported in module.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_has_a_docstring(name):
    assert (getattr(microws, name).__doc__ or "").strip()


@pytest.mark.parametrize("name", sorted(APP))
def test_every_name_of_an_app_has_a_docstring(name):
    assert (getattr(App, name).__doc__ or "").strip()


@pytest.mark.parametrize(
    ("method", "positional"),
    [("add_route", 2), ("route", 1), ("websocket_route", 1), ("get", 1), ("topic", 1), ("publish", 2), ("stream", 1)],
)
def test_everything_after_the_first_parameters_is_keyword_only(method, positional):
    kinds = [parameter.kind for parameter in inspect.signature(getattr(App, method)).parameters.values()][1:]
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds[positional:])
