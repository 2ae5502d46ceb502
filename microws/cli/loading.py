"""Loads the ``App`` of a command that looks into one."""

import sys
from collections.abc import Mapping
from typing import Any, Final

from microws.app import App
from microws.cli.discovery import LoadError, find_app
from microws.cli.options import resolve
from microws.cli.usage import UsageError
from microws.server.worker import loading

__all__ = ["APP_OPTIONS", "NO_APP", "load_app"]

# Besides APP.
APP_OPTIONS: Final = ("factory", "app_dir", "env_file")
# The exit code if the app cannot be loaded.
NO_APP: Final = 3


def load_app(command: str, name: str | None, flags: Mapping[str, Any]) -> App | None:
    """
    Load an app, or say on stderr why it cannot be loaded.

    Args:
        command: For the texts.
        name: As of ``find_app``.
        flags: With those of ``APP_OPTIONS`` that were given.

    Raises:
        UsageError: A mistake in the command, or the app is not an ``App``.
    """
    given = {option: flags[option] for option in APP_OPTIONS if option in flags}
    invocation = resolve(given if name is None else {"app": name, **given})
    try:
        with loading():
            found, app = find_app(invocation.app, factory=invocation.factory, app_dir=invocation.app_dir)
    except LoadError as error:
        sys.stderr.write(f"{error.traceback}error: {error.naming(command)}\n")
        return None
    if not isinstance(app, App):
        raise UsageError(f"expected an App of microws, whose routes are known, got {found}, a {type(app).__name__}")
    return app
