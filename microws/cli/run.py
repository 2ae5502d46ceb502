"""``microws run``: loads an app, and serves it."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from microws.cli.discovery import LoadError, find_app
from microws.cli.options import resolve, unknown_variables
from microws.cli.usage import UsageError
from microws.errors import FeatureUnavailable
from microws.server.control import ControlSocket
from microws.server.renewal import FAILURE, Renewal, this_program
from microws.server.supervisor import supervise
from microws.server.worker import choose_loop, loading
from microws.server.worker import run as serve

__all__ = ["run"]

_USAGE: Final = 2
_NO_APP: Final = 3


def run(flags: Mapping[str, Any], arguments: Sequence[str] | None) -> int:
    """
    Load and serve an app.

    Args:
        flags: The flags that were given, parsed.
        arguments: The command line that a SIGHUP runs again; ``None``: the process's own.

    Returns:
        The exit code, as of ``microws.cli.main``.
    """
    control = ControlSocket.from_environment()
    renewal = Renewal(this_program() if arguments is None else [sys.executable, "-m", "microws", *arguments])
    try:
        invocation = resolve(flags)
        if control is None:
            for line in unknown_variables(os.environ):
                _say(f"warning: {line}")
        choose_loop(invocation.settings)
        if invocation.settings.workers > 1 and control is None:
            # The workers load the app and the settings themselves: both may have changed after a SIGHUP.
            return supervise(invocation.settings, renewal)
        with loading():
            name, app = find_app(invocation.app, factory=invocation.factory, app_dir=invocation.app_dir)
        return serve(app, invocation.settings, name=name, control=control, renewal=renewal)
    except (UsageError, FeatureUnavailable, LoadError) as error:
        _say(f"{getattr(error, 'traceback', '')}error: {error}")
        if renewal.is_renewed:
            _say(f"error: {FAILURE}")
        return _NO_APP if isinstance(error, LoadError) else _USAGE
    finally:
        renewal.close()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
