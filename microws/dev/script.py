"""``app.run(reload=True)``: a script that serves its app, and that a change runs again."""

import json
import os
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from microws.dev.child import DevOptions, ServeApp, Unloadable, serve_in_child
from microws.dev.defaults import DEFAULTS
from microws.dev.supervisor import develop
from microws.interfaces import ASGIApplication
from microws.server.settings import Settings
from microws.server.worker import check_loading

__all__ = ["main", "run_and_reload"]

# What the supervisor runs, as JSON.
_VARIABLE: Final = "MICROWS_DEV_SCRIPT"
_COMMAND: Final = "from microws.dev.script import main; main()"

# Serves an app in this process, which runs the script.
_serve: ServeApp | None = None


def run_and_reload(app: ASGIApplication, **options: Any) -> int:
    """
    Serve ``app``, and run the script again when a file changes.

    The supervisor takes the place of this process, and a child of it comes to this call again.

    Args:
        app: The app.
        options: As of ``App.run``.

    Returns:
        The exit code, in the child.

    Raises:
        TypeError, ValueError: An invalid option; or the program has no file.
        RunWhileLoading: As from ``run``.
    """
    check_loading()
    if _serve is None:
        _become_supervisor(options)
    return _serve(Path(sys.argv[0]).name, app)


def _become_supervisor(options: dict[str, Any]) -> NoReturn:
    Settings(**options)
    spec, file = sys.modules["__main__"].__spec__, getattr(sys.modules["__main__"], "__file__", None)
    if file is None:
        raise ValueError("reload=True runs the program again, but it has no file; write microws dev APP")
    script = {
        "module": spec and spec.name,
        "file": str(Path(file).absolute()),
        "arguments": sys.argv,
        "options": {**DEFAULTS, **options},
    }
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execve(sys.executable, [sys.executable, "-c", _COMMAND], os.environ | {_VARIABLE: json.dumps(script)})


def main() -> NoReturn:
    """Be the supervisor of the script in the environment, or its child."""
    script = json.loads(os.environ[_VARIABLE])
    settings = Settings(**script["options"])
    folder = Path.cwd() if script["module"] else Path(script["file"]).parent
    serve = partial(serve_in_child, settings, DevOptions(folder), partial(_run, script, folder))
    sys.exit(develop(settings, serve, folder=folder))


def _run(script: dict[str, Any], folder: Path, serve: ServeApp) -> int:
    """Run the script, which comes to ``run_and_reload``. Returns its exit code."""
    global _serve
    codes: list[int] = []

    def serve_once(name: str, app: ASGIApplication) -> int:
        codes.append(serve(name, app))
        return codes[-1]

    _serve = serve_once
    os.environ.pop(_VARIABLE, None)
    sys.argv = script["arguments"]
    sys.path[0] = str(folder)
    run: Callable[..., Any] = runpy.run_path
    target = script["file"]
    if script["module"]:
        run, target = partial(runpy.run_module, alter_sys=True), script["module"]
    try:
        run(target, run_name="__main__")
    except (Exception, SystemExit) as error:
        if codes:
            raise
        raise Unloadable(f"{Path(script['file']).name} failed before app.run()", error) from None
    if not codes:
        raise Unloadable(f"{script['file']} ended without app.run(reload=True)", None)
    return codes[-1]
