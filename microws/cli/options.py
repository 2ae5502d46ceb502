"""The options of ``microws run``, from flags, the environment, pyproject.toml and defaults."""

import argparse
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

from microws.cli.usage import Parser, UsageError
from microws.dev.defaults import DEFAULTS
from microws.handshake import check_hosts_setting
from microws.hints import option_hint
from microws.hub_url import HUB_VARIABLE, INHERITED_VARIABLE, inherits_hub
from microws.server.settings import SETTINGS, Setting, SettingConflict, Settings, check_setting, parse_bool, parse_text

__all__ = [
    "Invocation",
    "add_options",
    "dev_parser",
    "parse_env_file",
    "read_env_file",
    "resolve",
    "run_parser",
    "unknown_variables",
]

_PREFIX: Final = "MICROWS_"


class Invocation(NamedTuple):
    """
    One ``microws run`` or ``microws dev``, from all sources.

    Attributes:
        app: What names the app; ``None``: look for it.
        factory: Call what ``app`` names.
        app_dir: What goes first on ``sys.path``.
        settings: For the server.
        allow_host, show_locals: As of ``microws dev``.
    """

    app: str | None
    factory: bool
    app_dir: Path
    settings: Settings
    allow_host: tuple[str, ...]
    show_locals: bool


_EPILOG: Final = (
    "Every option is also a variable, MICROWS_HOST for --host, and a key of [tool.microws] in pyproject.toml. A flag "
    "overrides the environment, which overrides pyproject.toml."
)


def run_parser() -> Parser:
    """The parser of ``microws run``."""
    return _parser(
        "run",
        [name for name in _OPTIONS if name not in _DEV_ONLY],
        {},
        "Serve an app: microws run chat:app",
        f"{_EPILOG} PORT and WEB_CONCURRENCY apply if MICROWS_PORT and MICROWS_WORKERS are not set.",
    )


def dev_parser() -> Parser:
    """The parser of ``microws dev``."""
    return _parser(
        "dev",
        [name for name in _OPTIONS if name not in _RUN_ONLY],
        DEFAULTS,
        "Serve an app while you write it, and reload it when a file changes: microws dev chat:app",
        f"{_EPILOG} PORT applies if MICROWS_PORT is not set. MICROWS_EDITOR_URL is the link from a traceback to your "
        "editor, such as idea://open?file={file}&line={line}; default vscode://file/{file}:{line}.",
    )


def _parser(command: str, names: Iterable[str], defaults: Mapping[str, Any], description: str, epilog: str) -> Parser:
    parser = Parser(
        prog=f"microws {command}",
        usage=f"microws {command} [APP] [options]",
        description=description,
        epilog=epilog,
    )
    add_options(parser, names, defaults=defaults)
    return parser


def add_options(parser: Parser, names: Iterable[str], *, defaults: Mapping[str, Any] = MappingProxyType({})) -> None:
    """
    Add options of ``microws run``, by their names with underscores.

    Args:
        defaults: That the help shows in place of those of ``microws run``.
    """
    for name in names:
        option = _OPTIONS[name]
        option = option._replace(default=defaults.get(name, option.default))
        if name == "app":
            parser.add_argument(name, nargs="?", metavar=option.metavar, help=option.help)
        elif option.metavar is None:
            parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, help=option.help)
        else:
            action = "append" if option.is_repeatable else "store"
            parser.add_argument(_flag(name), action=action, metavar=option.metavar, help=option.help)


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """A line on each variable ``MICROWS_…`` that is not an option, because a misspelt one is easy to miss."""
    others = ("MICROWS_BULK_WRITES", "MICROWS_EDITOR_URL", "MICROWS_HUB_PASSWORD")
    known = {*map(_variable, _OPTIONS), INHERITED_VARIABLE, *others}
    return [
        f"{name} is not an option" + option_hint(name.removeprefix(_PREFIX).lower(), _OPTIONS, written=_variable)
        for name in sorted(environ)
        if name.startswith(_PREFIX) and name not in known
    ]


def resolve(
    flags: Mapping[str, Any],
    environ: MutableMapping[str, str] = os.environ,
    *,
    defaults: Mapping[str, Any] | None = None,
) -> Invocation:
    """
    Combine flags, environment and the pyproject.toml of the current directory.

    Args:
        flags: The flags that were given, parsed.
        defaults: Of the command, in place of those of the table.
        environ: The environment, to which ``--env-file`` adds the variables that are missing.

    Raises:
        UsageError: An invalid value or an unknown key; names the flag, variable or key.
    """
    flag_level = {name: _Given("APP" if name == "app" else _flag(name), value) for name, value in flags.items()}
    levels = [flag_level, _from_environment(environ), _from_pyproject(Path("pyproject.toml"))]
    levels.append({name: _Given("default", value) for name, value in (defaults or {}).items()})
    inherited = (HUB_VARIABLE,) if inherits_hub(environ) else ()
    for key, value in (_value(levels, "env_file") or {}).items():
        if key not in environ or key in inherited:
            environ[key] = value
    levels[1] = _from_environment(environ)
    return Invocation(
        # The contract puts pyproject.toml before MICROWS_APP.
        app=_value([levels[0], levels[2], levels[1]], "app"),
        factory=_value(levels, "factory"),
        app_dir=_value(levels, "app_dir") or Path.cwd(),
        settings=_settings(levels),
        allow_host=_value(levels, "allow_host"),
        show_locals=_value(levels, "show_locals"),
    )


class _Given(NamedTuple):
    """A value, and the flag, variable or key of TOML that it is from."""

    where: str
    value: Any


_Level: TypeAlias = dict[str, _Given]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return f"{_PREFIX}{name.upper()}"


def _from_environment(environ: Mapping[str, str]) -> _Level:
    # Platforms set the first two for every program. The variables of microws are more specific.
    names = {"PORT": "port", "WEB_CONCURRENCY": "workers"} | {_variable(name): name for name in _OPTIONS}
    if inherits_hub(environ):
        del names[HUB_VARIABLE]
    return {name: _Given(variable, environ[variable]) for variable, name in names.items() if environ.get(variable)}


def _from_pyproject(path: Path) -> _Level:
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            tools = tomllib.load(file).get("tool")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    table = tools.get("microws", {}) if isinstance(tools, dict) else {}
    if not isinstance(table, dict):
        raise UsageError(f"{path}: expected a table [tool.microws], got {table!r}")
    level: _Level = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in _OPTIONS:
            hint = option_hint(name, _OPTIONS, written=lambda near: near.replace("_", "-"))
            raise UsageError(f"{path}: [tool.microws] has no key {key!r}{hint}")
        level[name] = _Given(f"{path}, [tool.microws] {key}", value)
    return level


def _find(levels: Iterable[_Level], name: str) -> _Given | None:
    return next((level[name] for level in levels if name in level), None)


def _value(levels: Iterable[_Level], name: str) -> Any:
    """The checked value of an option, from the first level that has it, or its default."""
    given = _find(levels, name)
    if given is None:
        return _OPTIONS[name].default
    try:
        return check_setting(name, given.value) if name in SETTINGS else _OPTIONS[name].check(given.value)
    except ValueError as error:
        raise UsageError(f"{given.where}: {error}") from None


def _settings(levels: Sequence[_Level]) -> Settings:
    addresses = _addresses(levels)
    of_name = {name: [addresses] if name in ("bind", "host", "port") else levels for name in SETTINGS}
    try:
        return Settings(**{name: _value(of_name[name], name) for name in SETTINGS})
    except SettingConflict as error:
        places = {name: given.where if (given := _find(levels, name)) else _flag(name) for name in SETTINGS}
        raise UsageError(error.naming(places)) from None


def _addresses(levels: Sequence[_Level]) -> _Level:
    """``bind``, or else ``host`` and ``port``, from the first level that has one of them."""
    for index, level in enumerate(levels):
        if (bind := level.get("bind")) is not None:
            for name in ("host", "port"):
                if name in level and level[name].where != "PORT":
                    raise UsageError(
                        f"expected either {bind.where} or {level[name].where}, got both; leave out one of them"
                    )
            return {"bind": bind}
        if "host" in level or "port" in level:
            return {name: given for name in ("host", "port") if (given := _find(levels[index:], name))}
    return {}


_LINE: Final = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", re.ASCII)
_QUOTED: Final = re.compile(r"""(?:'([^']*)'|"((?:[^"\\]|\\.)*)")\s*(?:#.*)?""")
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t"}


def parse_env_file(text: str) -> dict[str, str]:
    """
    The variables of an environment file.

    A line is empty, a comment that begins with ``#``, or ``KEY=VALUE``, with or without ``export`` before it. A value
    in single quotes is literal; in double quotes ``\\n``, ``\\r``, ``\\t`` and a backslash before any other character
    are escapes; without quotes the value ends at `` #`` or the end of the line, and loses the spaces around it. Nothing
    is expanded, and no value spans lines.

    Raises:
        ValueError: An invalid line. The text names the line, but shows no value: it may be a secret.
    """
    variables: dict[str, str] = {}
    for number, raw in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number}: expected KEY=VALUE")
        key, value = match.groups()
        if value[:1] in ("'", '"'):
            quoted = _QUOTED.fullmatch(value)
            if quoted is None:
                raise ValueError(f"line {number}: {key}: expected one value in quotes, with nothing behind it")
            single, double = quoted.groups()
            value = re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), double) if double else single or ""
        else:
            value = re.split(r"(?:^|\s)#", value, maxsplit=1)[0].rstrip()
        if "\0" in value:
            raise ValueError(f"line {number}: {key}: a variable cannot hold a NUL")
        variables[key] = value
    return variables


def read_env_file(path: object) -> dict[str, str]:
    """
    The variables of the file at ``path``, UTF-8.

    Raises:
        ValueError: There is no such file, or it is not UTF-8, or a line is invalid.
    """
    path = parse_text(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    try:
        return parse_env_file(text)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None


def _directory(value: object) -> Path:
    path = Path.cwd() / parse_text(value)
    if path.is_dir():
        return path
    raise ValueError(f"expected a directory that exists, got {value!r}")


def _hosts(value: object) -> tuple[str, ...]:
    hosts = value.split(",") if isinstance(value, str) else value
    if not isinstance(hosts, Sequence):
        raise ValueError(f"expected names and addresses, one or a list of them, got {value!r}")
    check_hosts_setting(hosts)
    return tuple(hosts)


# Options of one of the commands alone.
_DEV_ONLY: Final = ("allow_host", "show_locals")
_RUN_ONLY: Final = (
    "workers", "worker_timeout", "stop_delay", "drain_timeout", "drain_spread", "shutdown_timeout",
)  # fmt: skip

# The options of both commands: those of the app, and the settings of the server.
_OPTIONS: Final = {
    "app": Setting(
        None,
        parse_text,
        "APP",
        "module:attr, module, module:factory(), path.py; left out: the App in app.py, main.py or asgi.py",
    ),
    **SETTINGS,
    "env_file": Setting(None, read_env_file, "FILE", "set missing variables from KEY=VALUE lines"),
    "factory": Setting(False, parse_bool, None, "call the function APP, and serve what it returns"),
    "app_dir": Setting(None, _directory, "DIR", "directory of APP; default: the current one"),
    "allow_host": Setting(
        (),
        _hosts,
        "NAME",
        "answer requests with this Host, too; default: localhost, and this machine if --host says so",
    ),
    "show_locals": Setting(False, parse_bool, None, "show the variables of each frame of a traceback"),
}
