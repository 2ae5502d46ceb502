"""The command ``microws``."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microws import __version__
from microws.app import App
from microws.cli.bench import bench
from microws.cli.bench_options import BENCH_FLAGS
from microws.cli.discovery import LoadError, find_app
from microws.cli.options import build_parser, flag_of, option_names, resolve, unknown_variables
from microws.cli.usage import UsageError
from microws.errors import FeatureUnavailable
from microws.hints import did_you_mean, option_hint
from microws.server.control import ControlSocket
from microws.server.loading import loading
from microws.server.renewal import FAILURE, Renewal, this_program
from microws.server.supervisor import supervise
from microws.server.worker import choose_loop, run

__all__ = ["main"]

_COMMANDS = ("run", "bench")
_COMMANDS_TO_COME = ("connect", "dev")
# What other programs call `run`.
_SERVE = ("runserver", "serve", "server", "start", "up")
_USAGE = 2
_NO_APP = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Args:
        arguments: Default: the process's own.

    Returns:
        The exit code: 0 after an orderly end, SIGTERM and Ctrl-C included; 1 when the app did not start or an address
        could not be had, or when what was measured went wrong; 2 for a mistake in the command; 3 when the app cannot be
        loaded.
    """
    try:
        if arguments is None:
            return _run(sys.argv[1:], this_program())
        return _run(arguments, [sys.executable, "-m", "microws", *arguments])
    except (UsageError, FeatureUnavailable) as error:
        return _report(error)
    except KeyboardInterrupt:
        return 0


def _report(error: UsageError | FeatureUnavailable | LoadError) -> int:
    if isinstance(error, LoadError):
        _say(f"{error.traceback}error: {error}")
        return _NO_APP
    _say(f"error: {error}")
    return _USAGE


def _run(arguments: Sequence[str], command: list[str] | None) -> int:
    _check_command(arguments)
    parser = build_parser(__version__)
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        word = unknown[0].partition("=")[0]
        if known.command == "bench":
            hint = did_you_mean(word, BENCH_FLAGS)
        else:
            hint = (
                option_hint(word.lstrip("-").replace("-", "_"), option_names(), written=flag_of)
                if word[0] == "-"
                else ""
            )
        hint = hint or f"; see microws {known.command or 'run'} --help"
        raise UsageError(f"unknown argument {word!r}{hint}")
    if known.command is None:
        _say(parser.format_help().rstrip())
        return _USAGE
    if known.command == "bench":
        return bench(vars(known))
    control = ControlSocket.from_environment()
    renewal = Renewal(command)
    try:
        return _serve({name: value for name, value in vars(known).items() if name != "command"}, control, renewal)
    except (UsageError, FeatureUnavailable, LoadError) as error:
        code = _report(error)
        if renewal.is_renewed:
            _say(f"error: {FAILURE}")
        return code
    finally:
        renewal.close()


def _serve(flags: Mapping[str, Any], control: ControlSocket | None, renewal: Renewal) -> int:
    invocation = resolve(flags)
    if control is None:
        for line in unknown_variables(os.environ):
            _say(f"warning: {line}")
    choose_loop(invocation.settings)
    if invocation.settings.workers > 1 and control is None:
        # The workers load the app, and read the sources of the settings: both may be others after a SIGHUP.
        return supervise(invocation.settings, renewal)
    with loading():
        name, app = find_app(invocation.app, factory=invocation.factory, app_dir=invocation.app_dir, is_app=_is_app)
    return run(app, invocation.settings, name=name, control=control, renewal=renewal)


def _check_command(arguments: Sequence[str]) -> None:
    """
    Raises:
        UsageError: The command does not exist, or stands behind its options; the line to write instead.
        FeatureUnavailable: The command does not exist yet.
    """
    first = arguments[0].partition("=")[0] if arguments else ""
    if first in map(flag_of, option_names()):
        rest = shlex.join(word for word in arguments if word != "run")
        raise UsageError(f"{first} stands before the command; write: microws run {rest}")
    word = next((word for word in arguments if not word.startswith("-")), None)
    if word is None or word in _COMMANDS:
        return
    if word in _COMMANDS_TO_COME:
        hint = _right_command(arguments[arguments.index(word) + 1 :])
        raise FeatureUnavailable(f"this version has no command {word!r}{hint}")
    hint = "" if word in _SERVE else did_you_mean(word, _COMMANDS)
    if not hint:
        is_argument = "://" in word or _may_be_app(word)
        hint = _right_command(arguments if is_argument else arguments[arguments.index(word) + 1 :])
    raise UsageError(f"there is no command {word!r}{hint}")


def _right_command(arguments: Sequence[str]) -> str:
    if any("://" in word for word in arguments):
        return f"; to measure a server: microws bench {shlex.join(arguments)}"
    return f"; to serve an app: microws run {shlex.join(arguments) or 'chat:app'}"


def _may_be_app(word: str) -> bool:
    return ":" in word or word.endswith(".py") or Path(f"{word}.py").is_file() or Path(word, "__init__.py").is_file()


def _is_app(value: object) -> bool:
    return isinstance(value, App)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
