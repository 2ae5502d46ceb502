"""
The command ``microws``.

Each subcommand is a module and a function of the same name, and is imported when it is chosen.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from microws.cli.usage import Parser, UsageError
from microws.version import __version__

__all__ = ["command_parser", "main"]

_COMMANDS = {
    "run": "serve an app",
    "dev": "serve an app while you write it, and reload it when a file changes",
    "routes": "list the routes of an app, or say which one answers a request",
    "schema": "write an AsyncAPI or OpenAPI document of an app, or the JSON Schema of its types",
    "connect": "talk to a WebSocket, or read server-sent events",
    "publish": "publish a message to the clients of a running server",
    "bench": "measure how much a WebSocket server can do",
}
# What other programs call `run`.
_SERVE = ("runserver", "serve", "server", "start", "up")
_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Args:
        arguments: Default: the process's own.

    Returns:
        The exit code: 0 after an orderly end, SIGTERM and Ctrl-C included; 1 if the app did not start, the server could
        not listen, the message was not published, or the measurement failed; 2 for a mistake in the command; 3 if the
        app cannot be loaded.
    """
    try:
        return _run(arguments)
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return _USAGE
    except KeyboardInterrupt:
        return 0


def command_parser(command: str | None) -> Parser:
    """The parser of a command; ``None``: of ``microws`` without one."""
    if command is not None:
        # Of run and dev without what serves an app, which takes longer to import.
        module = import_module(f"microws.cli.{'options' if command in ('run', 'dev') else command}")
        own: Parser = getattr(module, f"{command}_parser")()
        return own
    parser = Parser(
        prog="microws",
        description="The decorator micro-framework for real-time Python.",
        epilog="`microws run chat:app` serves the app of chat.py, `microws bench ws://127.0.0.1:8000/echo` measures "
        "it; `microws run --help` and `microws bench --help` list the options",
    )
    parser.add_argument("--version", action="version", version=f"microws {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, text in _COMMANDS.items():
        commands.add_parser(name, help=text)
    return parser


def _run(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    index = next((index for index, word in enumerate(words) if not word.startswith("-")), len(words))
    before, command, options = words[:index], "".join(words[index : index + 1]), words[index + 1 :]
    parser = command_parser(None)
    # Shows the help or the version, and exits, if one of them is asked for.
    _, unknown = parser.parse_known_args(before)
    if unknown:
        first = unknown[0].partition("=")[0]
        if first in command_parser("run").flags:
            raise UsageError(f"{first} stands before the command; write: {_line('run', words)}")
    if command and command not in _COMMANDS:
        raise _wrong_command(command, words, options)
    if unknown:
        raise UsageError(f"unknown argument {first!r}; see microws {command or 'run'} --help")
    if not command:
        sys.stderr.write(parser.format_help())
        return _USAGE
    flags = _parse(command, options)
    run = getattr(import_module(f"microws.cli.{command}"), command)
    code: int = run(flags, arguments) if command == "run" else run(flags)
    return code


def _parse(command: str, options: list[str]) -> dict[str, object]:
    parser = command_parser(command)
    flags, unknown = parser.parse_known_args(options)
    if not unknown:
        return vars(flags)
    from microws.hints import did_you_mean, option_hint

    word = unknown[0].partition("=")[0]
    other = {"run": "dev", "dev": "run"}.get(command)
    if other is None:
        hint = did_you_mean(word, parser.flags)
        if command == "connect" and not word.startswith("-"):
            hint = f"; to send a message: -x {word}"
    elif word.isdecimal():
        hint = f"; for another port write --port {word}"
    elif (command, word) == ("dev", "--reload"):
        hint = "; leave it out: microws dev always reloads"
    elif word in command_parser(other).flags:
        hint = f"; only microws {other} has it"
    else:
        names = {flag.removeprefix("--").replace("-", "_"): flag for flag in parser.flags}
        name = word.lstrip("-").replace("-", "_")
        hint = option_hint(name, names, written=names.__getitem__) if word.startswith("-") else ""
    raise UsageError(f"unknown argument {word!r}{hint or f'; see microws {command} --help'}")


def _wrong_command(command: str, words: list[str], options: list[str]) -> UsageError:
    """The error for a command that does not exist, with the line to write instead."""
    from microws.hints import did_you_mean

    hint = "" if command in _SERVE else did_you_mean(command, _COMMANDS)
    if not hint:
        is_app = ":" in command or any(map(os.path.isfile, (command, f"{command}.py", f"{command}/__init__.py")))
        hint = _right_command(words if is_app or command.endswith(".py") else options)
    return UsageError(f"there is no command {command!r}{hint}")


def _right_command(words: list[str]) -> str:
    if any("://" in word for word in words):
        return f"; to measure a server: {_line('bench', words)}"
    return f"; to serve an app: {_line('run', words or ['chat:app'])}"


def _line(command: str, words: list[str]) -> str:
    import shlex

    return f"microws {command} {shlex.join(word for word in words if word != command)}"
