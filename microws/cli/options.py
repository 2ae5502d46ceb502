"""The options of ``microws run``: from flags, then the environment, then pyproject.toml, then the defaults."""

import argparse
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from microws.cli.bench_options import add_bench
from microws.cli.envfile import read_env_file
from microws.cli.usage import Parser, UsageError
from microws.hints import option_hint
from microws.server.settings import SettingConflict, Settings, check_setting, parse_bool

__all__ = ["Invocation", "UsageError", "build_parser", "flag_of", "option_names", "resolve", "unknown_variables"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Invocation:
    """
    One ``microws run``, with every source taken into account.

    Attributes:
        app: What names the app; ``None``: look for it.
        factory: Call what ``app`` names.
        app_dir: What goes first on ``sys.path``.
        settings: For the server.
    """

    app: str | None
    factory: bool
    app_dir: Path
    settings: Settings


class _Option(NamedTuple):
    """A setting of the server, or of the loading of the app, and the flag that sets it."""

    name: str
    metavar: str | None = None
    help: str = ""
    is_switch: bool = False
    is_repeatable: bool = False

    @property
    def flag(self) -> str:
        return flag_of(self.name)

    @property
    def key(self) -> str:
        return self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return f"{_PREFIX}{self.name.upper()}"


_OPTIONS: Final = (
    _Option(
        "bind", "ADDRESS", "HOST:PORT, [IPV6]:PORT, unix:PATH or fd://N; repeat it for several", is_repeatable=True
    ),
    _Option("host", "HOST", "default 127.0.0.1; 0.0.0.0: every network"),
    _Option("port", "PORT", "default 8000; 0: any free port"),
    _Option("workers", "N", "processes that share the port; default 1"),
    _Option(
        "worker_timeout", "SECONDS", "replace a worker whose event loop is blocked for so long; default 30; 0: never"
    ),
    _Option("server", "SERVER", "microws (default; HTTP/1.1) or hypercorn (HTTP/2, trio)"),
    _Option("loop", "LOOP", "auto (default: uvloop if installed), asyncio, uvloop, trio"),
    _Option("certfile", "FILE", "PEM certificate; turns TLS on"),
    _Option("keyfile", "FILE", "its private key, unless that is in the same file"),
    _Option("root_path", "PATH", "prefix of the path at which a proxy serves the app"),
    _Option(
        "forwarded_allow_ips",
        "ADDRESSES",
        "proxies whose X-Forwarded-… headers are trusted: addresses, networks, unix for every client of a Unix socket, "
        "* for every client; default 127.0.0.1,::1,unix",
    ),
    _Option("ping_interval", "SECONDS", "between two pings of a WebSocket; default 20; 0: no pings"),
    _Option(
        "ping_timeout",
        "SECONDS",
        "disconnect a client that does not answer a ping for so long; default 20; 0: unlimited",
    ),
    _Option(
        "max_message_size", "SIZE", "of an incoming message, such as 64KiB; default: the limit of the app, or 1MiB"
    ),
    _Option("max_head_size", "SIZE", "of a request's target and headers, 1KiB to 1MiB; default 16KiB"),
    _Option(
        "body_timeout",
        "SECONDS",
        "answer 408 if nothing more of a request's body arrives for so long; default 60; 0: unlimited",
    ),
    _Option(
        "write_timeout",
        "SECONDS",
        "disconnect a client that reads nothing of a response for so long; default 60; 0: unlimited",
    ),
    _Option(
        "keep_alive",
        "SECONDS",
        "close a connection without a request after so long; default 75; 0: close it after each response",
    ),
    _Option("unix_mode", "MODE", "permissions of the socket file of unix:PATH; default 0660"),
    _Option(
        "stop_delay",
        "SECONDS",
        "accept for so long after SIGTERM, while /readyz says 503; default 0: stop accepting at once",
    ),
    _Option(
        "drain_timeout",
        "SECONDS",
        "let requests finish for so long at shutdown; default 10; 0: disconnect them immediately",
    ),
    _Option("log_level", "LEVEL", "debug, info (default), warning, error, critical"),
    _Option("log_format", "FORMAT", "text (default), json"),
    _Option("access_log", None, "log a line for each request (default)", is_switch=True),
    _Option("env_file", "FILE", "set missing variables from KEY=VALUE lines"),
    _Option("factory", None, "call the function APP, and serve what it returns", is_switch=True),
    _Option("app_dir", "DIR", "directory of APP; default: the current one"),
)

# No flags: for code and pyproject.toml.
_QUIET_OPTIONS: Final = (_Option("startup_timeout"), _Option("shutdown_timeout"))

_PREFIX: Final = "MICROWS_"

_BY_NAME: Final = {option.name: option for option in (*_OPTIONS, *_QUIET_OPTIONS, _Option("app", "APP"))}


def build_parser(version: str) -> argparse.ArgumentParser:
    """The command line of ``microws``, with every command. A mistake raises ``UsageError``."""
    parser = Parser(
        prog="microws",
        description="The decorator micro-framework for real-time Python.",
        epilog="`microws run chat:app` serves the app of chat.py, `microws bench ws://127.0.0.1:8000/echo` measures "
        "it; `microws run --help` and `microws bench --help` list the options",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"microws {version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    run = commands.add_parser(
        "run",
        help="serve an app",
        usage="microws run [APP] [options]",
        description="Serve an app: microws run chat:app",
        epilog="Every option is also a variable, MICROWS_HOST for --host, and a key of [tool.microws] in "
        "pyproject.toml. A flag beats the environment, which beats pyproject.toml. PORT and WEB_CONCURRENCY count "
        "where MICROWS_PORT and MICROWS_WORKERS are not set.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
    )
    run.add_argument(
        "app",
        nargs="?",
        metavar="APP",
        help="module:attr, module, module:factory(), path.py; left out: the App in app.py, main.py or asgi.py",
    )
    for option in _OPTIONS:
        if option.is_switch:
            run.add_argument(option.flag, action=argparse.BooleanOptionalAction, help=option.help)
        else:
            action = "append" if option.is_repeatable else "store"
            run.add_argument(option.flag, action=action, metavar=option.metavar, help=option.help)
    add_bench(commands)
    return parser


def option_names() -> list[str]:
    """The options that the help names, with underscores, and the opposites of the switches among them."""
    return [option.name for option in _OPTIONS] + [f"no_{option.name}" for option in _OPTIONS if option.is_switch]


def flag_of(name: str) -> str:
    """The flag that sets the option ``name``."""
    return f"--{name.replace('_', '-')}"


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """A line on each variable ``MICROWS_…`` that is not an option: otherwise a misspelt one goes unnoticed."""
    known = {option.variable for option in _BY_NAME.values()} | {"MICROWS_BULK_WRITES"}
    return [
        f"{name} is not an option"
        + option_hint(name.removeprefix(_PREFIX).lower(), _BY_NAME, written=lambda near: _BY_NAME[near].variable)
        for name in sorted(environ)
        if name.startswith(_PREFIX) and name not in known
    ]


def resolve(
    flags: Mapping[str, Any], *, environ: MutableMapping[str, str] | None = None, directory: Path | None = None
) -> Invocation:
    """
    Bring flags, environment and pyproject.toml together.

    Args:
        flags: What ``build_parser`` made of the command line: only what was given.
        environ: Read, and filled up from ``--env-file``. Default: the process's own.
        directory: Where pyproject.toml is. Default: the current one.

    Raises:
        UsageError: An invalid value or an unknown key; names the flag, variable or key of TOML.
    """
    environ = os.environ if environ is None else environ
    directory = Path.cwd() if directory is None else directory
    levels = [_from_flags(flags), _from_environment(environ), _from_pyproject(directory / "pyproject.toml")]
    if (env_file := _find(levels, "env_file")) is not None:
        try:
            variables = read_env_file(_text(env_file))
        except ValueError as error:
            raise UsageError(f"{env_file.where}: {error}") from None
        for key, value in variables.items():
            environ.setdefault(key, value)
        levels[1] = _from_environment(environ)
    app_dir = _find(levels, "app_dir")
    factory = _find(levels, "factory")
    # The contract puts pyproject.toml before MICROWS_APP.
    app = _find([levels[0], levels[2], levels[1]], "app")
    return Invocation(
        app=None if app is None else _text(app),
        factory=factory is not None and _check(factory, parse_bool),
        app_dir=_app_dir(app_dir, directory),
        settings=_settings(levels),
    )


class _Given(NamedTuple):
    """A value, and the flag, variable or key of TOML that it is from."""

    where: str
    value: Any


_Level: TypeAlias = dict[str, _Given]


def _from_flags(flags: Mapping[str, Any]) -> _Level:
    return {name: _Given(_flag(name), value) for name, value in flags.items() if value is not None}


def _flag(name: str) -> str:
    return "APP" if name == "app" else flag_of(name)


def _from_environment(environ: Mapping[str, str]) -> _Level:
    level: _Level = {}
    # What a platform sets for every program gives way to what was meant for this one.
    for variable, name in (("PORT", "port"), ("WEB_CONCURRENCY", "workers")):
        if environ.get(variable):
            level[name] = _Given(variable, environ[variable])
    for name, option in _BY_NAME.items():
        if environ.get(option.variable):
            level[name] = _Given(option.variable, environ[option.variable])
    return level


def _from_pyproject(path: Path) -> _Level:
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            tools = tomllib.load(file).get("tool")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path.name}: {error}") from None
    table = tools.get("microws", {}) if isinstance(tools, dict) else {}
    if not isinstance(table, dict):
        raise UsageError(f"{path.name}: expected a table [tool.microws], got {table!r}")
    level: _Level = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in _BY_NAME:
            hint = option_hint(name, _BY_NAME, written=lambda near: _BY_NAME[near].key)
            raise UsageError(f"{path.name}: [tool.microws] has no key {key!r}{hint}")
        level[name] = _Given(f"{path.name}, [tool.microws] {key}", value)
    return level


def _find(levels: Iterable[_Level], name: str) -> _Given | None:
    return next((level[name] for level in levels if name in level), None)


def _check(given: _Given, check: Callable[[object], Any]) -> Any:
    try:
        return check(given.value)
    except ValueError as error:
        raise UsageError(f"{given.where}: {error}") from None


def _text(given: _Given) -> str:
    if not isinstance(given.value, str) or not given.value:
        raise UsageError(f"{given.where}: expected a text that is not empty, got {given.value!r}")
    return given.value


def _app_dir(given: _Given | None, directory: Path) -> Path:
    if given is None:
        return directory
    path = directory / _text(given)
    if not path.is_dir():
        raise UsageError(f"{given.where}: expected a directory that exists, got {given.value!r}")
    return path


def _settings(levels: Sequence[_Level]) -> Settings:
    values: dict[str, Any] = {}
    for field in fields(Settings):
        if field.name not in ("bind", "host", "port") and (given := _find(levels, field.name)) is not None:
            values[field.name] = _check(given, partial(check_setting, field.name))
    for name, given in _addresses(levels).items():
        values[name] = _check(given, partial(check_setting, name))
    try:
        return Settings(**values)
    except SettingConflict as error:
        places = {name: given.where if (given := _find(levels, name)) else flag_of(name) for name in _BY_NAME}
        raise UsageError(error.naming(places)) from None


def _addresses(levels: Sequence[_Level]) -> _Level:
    """``bind`` or else ``host`` and ``port``: from the first level that has one of them."""
    for index, level in enumerate(levels):
        if (bind := level.get("bind")) is not None:
            for name in ("host", "port"):
                if name in level and level[name].where != "PORT":
                    raise UsageError(
                        f"expected either {bind.where} or {level[name].where}, got both; leave out one of them"
                    )
            return {"bind": bind}
        if "host" in level or "port" in level:
            found = {name: _find(levels[index:], name) for name in ("host", "port")}
            return {name: given for name, given in found.items() if given is not None}
    return {}
