"""The settings of a server: one table for flags, variables, pyproject.toml, ``app.run`` and the documentation."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_network
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypedDict, Unpack, get_args

from microws.errors import FeatureUnavailable
from microws.hints import option_hint
from microws.hub_url import check_hub

__all__ = [
    "SETTINGS",
    "Address",
    "FileDescriptor",
    "InternetAddress",
    "RunOptions",
    "Setting",
    "SettingConflict",
    "Settings",
    "UnixPath",
    "check_setting",
    "parse_address",
    "parse_bool",
    "parse_size",
    "parse_text",
]

_DEFAULT_HOST: Final = "127.0.0.1"
_DEFAULT_PORT: Final = 8000


class InternetAddress(NamedTuple):
    """A host, by name or number, and a port; port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixPath(NamedTuple):
    """The path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


class FileDescriptor(NamedTuple):
    """A bound socket that this process inherits, as from systemd."""

    number: int

    def __str__(self) -> str:
        return f"fd://{self.number}"


Address: TypeAlias = InternetAddress | UnixPath | FileDescriptor


def _hub(value: str) -> str:
    try:
        return check_hub(value)
    except FeatureUnavailable as error:
        raise ValueError(str(error)) from None


_BIND_FORMS = "expected HOST:PORT, [IPV6]:PORT, unix:PATH or fd://N"


def parse_address(text: str) -> Address:
    """
    The address that ``--bind`` names.

    Raises:
        ValueError: It has none of the four forms. A port without a host is refused too: it would be open to every
            network, which few expect.
    """
    if text.startswith("unix:"):
        if path := text.removeprefix("unix:"):
            return UnixPath(path)
    elif match := re.fullmatch(r"fd://([0-9]{1,9})", text):
        return FileDescriptor(int(match[1]))
    elif match := re.fullmatch(r":[0-9]+", text):
        raise ValueError(f"{_BIND_FORMS}, got {text!r}; for every network write '0.0.0.0{text}'")
    elif match := re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\[\]:/\s]+)):([0-9]{1,5})", text):
        return InternetAddress(match[1] or match[2], _PORT(match[3]))
    elif text.isascii() and text.isdigit():
        raise ValueError(f"{_BIND_FORMS}, got {text!r}; for the port alone write --port {text}")
    hint = f"; for the host alone write --host {text}" if re.fullmatch(r"[\w.-]+", text) else ""
    raise ValueError(f"{_BIND_FORMS}, got {text!r}{hint}")


# Values: each function takes what a flag, a variable, TOML or Python gives, and returns the value, or raises a
# ValueError that says what was expected.

_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_TRUE: Final = ("1", "true", "yes", "on")
_FALSE: Final = ("0", "false", "no", "off")
_PROXY_FORMS: Final = 'expected IP addresses, networks such as 10.0.0.0/8, "unix" or "*"'


def parse_size(value: object) -> int:
    """
    Bytes, as a number or with a unit: ``65536``, ``"64KiB"``, ``"1 MiB"``, ``"1.5MB"``.

    Raises:
        ValueError: It is not such a size, or less than one byte.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) *([a-z]*)", str(value).strip().lower(), re.ASCII)
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"expected a size such as 65536, 64KiB or 1MiB, got {value!r}")
        size = int(float(match[1]) * _UNITS[match[2]])
    if size < 1:
        raise ValueError(f"expected at least 1 byte, got {value!r}")
    return size


def _head_size(value: object) -> int:
    # A connection holds this much before it is answered with 431; a browser's head has about 1 KiB.
    if 1 << 10 <= (size := parse_size(value)) <= 1 << 20:
        return size
    raise ValueError(f"expected a size from 1KiB to 1MiB, got {value!r}")


def _integer(what: str, low: int, high: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,5}", str(value)) and low <= int(str(value)) <= high:
            return int(str(value))
        raise ValueError(f"expected {what}, {low} to {high}, got {value!r}")

    return check


_PORT: Final = _integer("a port", 0, 65535)


def _parse_seconds(value: object) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if 0 <= seconds < math.inf:
            return seconds
    raise ValueError(f"expected seconds, 0 or more, got {value!r}")


def parse_bool(value: object) -> bool:
    """
    A switch, as a word or a ``bool``.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and (word := value.strip().lower()) in _TRUE + _FALSE:
        return word in _TRUE
    raise ValueError(f"expected true or false, got {value!r}")


def parse_text(value: object) -> str:
    """
    A text that is not empty and has no NUL.

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, str) and value and "\0" not in value:
        return value
    raise ValueError(f"expected a text that is not empty, got {value!r}")


def _texts(value: object, forms: str) -> tuple[str, ...]:
    texts = value.split(",") if isinstance(value, str) else value
    if isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts):
        return tuple(text.strip() for text in texts)
    raise ValueError(f"{forms}, one or a list of them, got {value!r}")


def _addresses(value: object) -> tuple[str, ...]:
    addresses = _texts(value, _BIND_FORMS)
    for address in addresses:
        parse_address(address)
    return addresses


def _proxies(value: object) -> tuple[str, ...]:
    proxies = tuple(text for text in _texts(value, _PROXY_FORMS) if text)
    for text in proxies:
        if text in ("*", "unix"):
            continue
        try:
            network = ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{_PROXY_FORMS}, got {text!r}") from None
        address = text.partition("/")[0]
        if network.network_address != ip_network(address).network_address:
            raise ValueError(f"{_PROXY_FORMS}, got {text!r}; write '{network}', or '{address}' for the one address")
    return proxies


def _root_path(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"(/[!-~]*)?", value) and not re.search(r"[?#%]", value):
        return value.rstrip("/")
    raise ValueError(f"expected a path that begins with '/', got {value!r}")


def _choice(choices: Any) -> Callable[[object], str]:
    *first, last = names = get_args(choices)

    def check(value: object) -> str:
        if isinstance(value, str) and value.lower() in names:
            return value.lower()
        hint = "; leave it out: microws serves HTTP/1.1 itself" if str(value).lower() == "uvicorn" else ""
        raise ValueError(f"expected {', '.join(first)} or {last}, got {value!r}{hint}")

    return check


def _unix_mode(value: object) -> int:
    text = oct(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if match := re.fullmatch(r"(?:0o?)?([0-7]{1,3})", text):
        return int(match[1], 8)
    raise ValueError(f"expected the octal mode of a socket file, 0 to 0777, got {value!r}; write 660, in TOML 0o660")


# The table


class Setting(NamedTuple):
    """
    A setting: the flag ``--drain-timeout``, the variable ``MICROWS_DRAIN_TIMEOUT``, the key ``drain-timeout`` in
    ``[tool.microws]`` of pyproject.toml, and the keyword ``drain_timeout`` of ``app.run``.

    Attributes:
        default: As a user writes it. ``None``: the setting has no value.
        check: Returns the value, or raises a ``ValueError`` that says what was expected.
        metavar: What the help calls the value; ``None``: a switch.
        text: The description.
    """

    default: Any
    check: Callable[[object], Any]
    metavar: str | None
    text: str

    @property
    def is_repeatable(self) -> bool:
        """Whether the flag may be given several times."""
        return isinstance(self.default, tuple)

    @property
    def help(self) -> str:
        """The description with the default."""
        if self.metavar is None or self.default in (None, "", ()):
            return self.text
        return f"{self.text}; default {self.default}"


def _setting(*values: Any) -> Any:
    """A ``Setting`` as the default of an attribute of another type."""
    return Setting(*values)


def _seconds(default: float, text: str) -> Any:
    return Setting(default, _parse_seconds, "SECONDS", text)


_Server: TypeAlias = Literal["microws", "hypercorn"]
_Loop: TypeAlias = Literal["auto", "asyncio", "uvloop", "trio"]
_LogLevel: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]
_LogFormat: TypeAlias = Literal["text", "json"]


class RunOptions(TypedDict, total=False):
    """The types that ``App.run`` accepts for each setting, besides host and port."""

    hub: str | None
    bind: str | Sequence[str]
    workers: int
    worker_timeout: float
    warn_blocked: float
    server: _Server | None
    loop: _Loop
    certfile: str | None
    keyfile: str | None
    root_path: str
    forwarded_allow_ips: str | Sequence[str]
    ping_interval: float
    ping_timeout: float
    max_message_size: int | str | None
    max_head_size: int | str
    body_timeout: float
    write_timeout: float
    keep_alive: float
    unix_mode: int | str
    stop_delay: float
    drain_timeout: float
    drain_spread: float
    startup_timeout: float
    shutdown_timeout: float
    log_level: _LogLevel
    log_format: _LogFormat
    access_log: bool


class Settings:
    """
    The checked settings of a worker.

    Args:
        host, port: As in ``App.run``.
        options: The other settings. Each may also be the text that the command line takes.

    Raises:
        TypeError: A setting that does not exist.
        ValueError: Names the setting, what was expected and what it got. ``SettingConflict``: two settings contradict
            each other.
    """

    bind: tuple[str, ...] = _setting(
        (), _addresses, "ADDRESS", "HOST:PORT, [IPV6]:PORT, unix:PATH or fd://N; repeat it for several"
    )
    host: str | None = _setting(None, parse_text, "HOST", f"default {_DEFAULT_HOST}; 0.0.0.0: every network")
    port: int | None = _setting(None, _PORT, "PORT", f"default {_DEFAULT_PORT}; 0: any free port")
    # More than 1,024 is a typing mistake, and would overload the machine.
    workers: int = _setting(1, _integer("a number of workers", 1, 1024), "N", "processes that share the port")
    # As in gunicorn. A supervisor does not count the time that the app takes to start.
    worker_timeout: float = _seconds(30, "replace a worker whose event loop is blocked for this long; 0: never")
    # A thread looks at the loop ten times as often.
    warn_blocked: float = _seconds(0, "warn of the line that blocks the event loop for this long; 0: never")
    # The default on trio is hypercorn. It is slower.
    server: _Server = _setting(
        None, _choice(_Server), "SERVER", "microws (default; HTTP/1.1) or hypercorn (HTTP/2, trio)"
    )
    loop: _Loop = _setting(
        "auto", _choice(_Loop), "LOOP", "asyncio, uvloop, trio, or auto: uvloop if installed, else asyncio"
    )
    certfile: str | None = _setting(None, parse_text, "FILE", "PEM certificate; turns TLS on")
    keyfile: str | None = _setting(None, parse_text, "FILE", "its private key, unless that is in the same file")
    # `path` of each scope begins with it, whether the proxy removes it or not (ASGI HTTP specification, `root_path`).
    root_path: str = _setting("", _root_path, "PATH", "prefix of the path at which a proxy serves the app")
    # As in uvicorn, and Unix sockets. An empty list trusts no client.
    forwarded_allow_ips: tuple[str, ...] = _setting(
        "127.0.0.1,::1,unix",
        _proxies,
        "ADDRESSES",
        "proxies whose X-Forwarded-… headers are trusted: addresses, networks, unix for every client of a Unix socket, "
        "* for every client",
    )
    # Both as in `websockets`.
    ping_interval: float = _seconds(20, "between two pings of a WebSocket; 0: no pings")
    ping_timeout: float = _seconds(20, "disconnect a client that does not answer a ping for this long; 0: unlimited")
    max_message_size: int | None = _setting(
        None, parse_size, "SIZE", "of an incoming message, such as 64KiB; default: the limit of the app, or 1MiB"
    )
    # As in h11. nginx allows 8 KiB for a line and 32 KiB in all.
    max_head_size: int = _setting("16KiB", _head_size, "SIZE", "of a request's target and headers, 1KiB to 1MiB")
    # As nginx's `client_body_timeout` and `send_timeout`.
    body_timeout: float = _seconds(
        60, "answer 408 if nothing more of a request's body arrives for this long; 0: unlimited"
    )
    write_timeout: float = _seconds(
        60, "disconnect a client that reads nothing of a response for this long; 0: unlimited"
    )
    # As nginx's `keepalive_timeout`, and longer than the 60 of common load balancers.
    keep_alive: float = _seconds(75, "close a connection after this long without a request; 0: after each response")
    hub: str | None = _setting(
        None,
        _hub,
        "URL",
        "what carries published messages: memory, local, local:PATH or redis://HOST; default: what the app says",
    )
    # The file's owner and group may connect.
    unix_mode: int = _setting("0660", _unix_mode, "MODE", "permissions of the socket file of unix:PATH")
    # For platforms that send requests for a moment after SIGTERM. Ctrl-C has no delay; a second signal ends it.
    stop_delay: float = _seconds(0, "accept for this long after SIGTERM, while /readyz says 503; 0: stop immediately")
    # As `docker stop` waits.
    drain_timeout: float = _seconds(10, "time for requests to finish at shutdown; 0: disconnect them immediately")
    # 10,000 clients then come back at 2,000 a second.
    drain_spread: float = _seconds(5, "time over which clients that speak microws.v1 come back; 0: immediately")
    # Both as in Hypercorn.
    startup_timeout: float = _seconds(60, "for the start-up of the app's lifespan")
    shutdown_timeout: float = _seconds(60, "for the shutdown of the app's lifespan")
    log_level: _LogLevel = _setting("info", _choice(_LogLevel), "LEVEL", "debug, info, warning, error, critical")
    log_format: _LogFormat = _setting("text", _choice(_LogFormat), "FORMAT", "text, json")
    access_log: bool = _setting(True, parse_bool, None, "log a line for each request (default)")

    def __init__(self, *, host: str | None = None, port: int | None = None, **options: Unpack[RunOptions]) -> None:
        given: dict[str, object] = {"host": host, "port": port, **options}
        for name in given:
            if name not in SETTINGS:
                hint = option_hint(name, SETTINGS) or f"; expected one of {', '.join(SETTINGS)}"
                raise TypeError(f"app.run() has no option {name!r}{hint}")
        for name, setting in SETTINGS.items():
            try:
                setattr(self, name, check_setting(name, given.get(name, setting.default)))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if self.bind and (self.host is not None or self.port is not None):
            raise SettingConflict("expected either {bind}, or {host} and {port}, got both; leave out one of them")
        if self.keyfile is not None and self.certfile is None:
            raise SettingConflict("{keyfile}: expected {certfile} too, got the key alone; add the certificate")
        if self.server == "microws" and self.loop == "trio":
            raise SettingConflict(
                "{loop}: expected auto, asyncio or uvloop with the server microws, got 'trio'; for trio set {server} "
                "to hypercorn"
            )
        self.server = self.server or ("hypercorn" if self.loop == "trio" else "microws")
        if self.server != "hypercorn":
            return
        if self.keep_alive == 0:
            raise SettingConflict(
                "{keep_alive}: expected more than 0 seconds with the server hypercorn, which cannot close a connection "
                "after each response, got 0; write 1, or use the server microws"
            )
        # Hypercorn's public API has no such limits.
        for name in ("body_timeout", "ping_timeout", "write_timeout"):
            if getattr(self, name) != SETTINGS[name].default:
                raise SettingConflict(
                    f"{{{name}}}: expected no value with the server hypercorn, which has no such limit, got "
                    f"{getattr(self, name):g}; leave it out, or use the server microws"
                )

    @property
    def addresses(self) -> list[Address]:
        """Where to listen."""
        if self.bind:
            return [parse_address(text) for text in self.bind]
        return [InternetAddress(self.host or _DEFAULT_HOST, _DEFAULT_PORT if self.port is None else self.port)]


SETTINGS: Final[dict[str, Setting]] = {
    name: value for name, value in vars(Settings).items() if isinstance(value, Setting)
}


def check_setting(name: str, value: object) -> Any:
    """
    The checked value of the setting ``name``, from a flag, a variable, TOML or Python.

    Raises:
        ValueError: Says what was expected and what it got, but not ``name``: the caller knows where the value is from.
    """
    setting = SETTINGS[name]
    return None if value is None and setting.default is None else setting.check(value)


class SettingConflict(ValueError):
    """Settings that contradict each other. Its argument is the text, with ``{name}`` for the name of each setting."""

    def __str__(self) -> str:
        return self.naming({name: name for name in SETTINGS})

    def naming(self, places: Mapping[str, str]) -> str:
        """The text with ``places`` for the names of settings: how the user writes each one."""
        return str(self.args[0]).format_map(places)
