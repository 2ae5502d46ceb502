"""``microws dev``: serves an app while it is written, and reloads it."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from microws.cli.discovery import LoadError, find_app
from microws.cli.options import Invocation, resolve, unknown_variables
from microws.cli.usage import UsageError
from microws.dev.child import DevOptions, ServeApp, Unloadable, serve_in_child
from microws.dev.defaults import DEFAULTS
from microws.dev.supervisor import develop
from microws.errors import FeatureUnavailable
from microws.server.worker import choose_loop, loading

__all__ = ["dev"]

_USAGE: Final = 2

# What apps import later, imported once by the supervisor.
_PRELOADED: Final = (
    "anyio._backends._asyncio", "jinja2", "microws.event_stream", "microws.files", "microws.forms", "microws.health",
    "microws.testing",
)  # fmt: skip


def dev(flags: Mapping[str, Any]) -> int:
    """
    Serve an app, and reload it when a file changes.

    Args:
        flags: The flags that were given, parsed.

    Returns:
        The exit code, as of ``microws.cli.main``.
    """
    try:
        invocation = resolve(flags, defaults=DEFAULTS)
        for module in (choose_loop(invocation.settings), *_PRELOADED):
            with suppress(ImportError):
                import_module(module)
        options = DevOptions(_folder(invocation), invocation.allow_host, show_locals=invocation.show_locals)
        for line in unknown_variables(os.environ):
            sys.stderr.write(f"warning: {line}\n")
        serve = partial(serve_in_child, invocation.settings, options, partial(_load, invocation))
        return develop(invocation.settings, serve, folder=options.folder)
    except (UsageError, FeatureUnavailable) as error:
        sys.stderr.write(f"error: {error}\n")
        return _USAGE


def _load(invocation: Invocation, serve: ServeApp) -> int:
    try:
        with loading():
            name, app = find_app(invocation.app, factory=invocation.factory, app_dir=invocation.app_dir)
    except LoadError as error:
        raise Unloadable(error.naming("dev"), error.error) from None
    return serve(name, app)


def _folder(invocation: Invocation) -> Path:
    """The folder of the app: the first one on ``sys.path``, or that of a file elsewhere."""
    folder = invocation.app_dir.absolute()
    place = (invocation.app or "").partition(":")[0]
    file = folder / place
    is_elsewhere = place.endswith(".py") and (".." in file.parts or not file.is_relative_to(folder))
    return file.parent if is_elsewhere else folder
