"""What a server can be told: one dataclass, and the check of each value."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from ipaddress import ip_network
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypedDict

__all__ = [
    "DEFAULT_HOST",
    "DEFAULT_MAX_MESSAGE_SIZE",
    "DEFAULT_PORT",
    "MAX_HEAD_BYTES",
    "Address",
    "FileDescriptor",
    "InternetAddress",
    "RunOptions",
    "SettingConflict",
    "Settings",
    "UnixPath",
    "check_setting",
    "parse_address",
    "parse_bool",
    "parse_size",
]

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8000
DEFAULT_MAX_MESSAGE_SIZE: Final = 1 << 20

# Of a request's target and its fields: nginx takes 8 KiB a line and 32 KiB in all, h11 16 KiB.
MAX_HEAD_BYTES: Final = 16 << 10
# A browser's head has about 1 KiB. A connection may hold as much as this in memory before it is answered with 431.
_HEAD_BOUNDS: Final = (1 << 10, 1 << 20)


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
    """A socket that the parent process has bound: systemd and other supervisors hand it over."""

    number: int

    def __str__(self) -> str:
        return f"fd://{self.number}"


Address: TypeAlias = InternetAddress | UnixPath | FileDescriptor

_BIND_FORMS = "expected HOST:PORT, [IPV6]:PORT, unix:PATH or fd://N"


def parse_address(text: str) -> Address:
    """
    What ``--bind`` names.

    Raises:
        ValueError: None of the four forms; or no host, which would open the port to every network unasked.
    """
    if text.startswith("unix:"):
        if path := text.removeprefix("unix:"):
            return UnixPath(path)
    elif match := re.fullmatch(r"fd://([0-9]{1,9})", text):
        return FileDescriptor(int(match[1]))
    elif match := re.fullmatch(r":[0-9]+", text):
        raise ValueError(f"{_BIND_FORMS}, got {text!r}; for every network write '0.0.0.0{text}'")
    elif match := re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\[\]:/\s]+)):([0-9]{1,5})", text):
        return InternetAddress(match[1] or match[2], _port(match[3]))
    elif text.isascii() and text.isdigit():
        raise ValueError(f"{_BIND_FORMS}, got {text!r}; for the port alone write --port {text}")
    raise ValueError(f"{_BIND_FORMS}, got {text!r}")


_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}


def parse_size(value: object) -> int:
    """
    Bytes, as a number or with a unit: ``65536``, ``"64KiB"``, ``"1 MiB"``, ``"1.5MB"``.

    Raises:
        ValueError: Not such a size, or less than one byte.
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
    size = parse_size(value)
    if not _HEAD_BOUNDS[0] <= size <= _HEAD_BOUNDS[1]:
        raise ValueError(f"expected a size from 1KiB to 1MiB, got {value!r}")
    return size


def _port(value: object) -> int:
    if not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,5}", str(value), re.ASCII) and int(str(value)) <= 65535:
        return int(str(value))
    raise ValueError(f"expected a port, 0 to 65535, got {value!r}")


def _workers(value: object) -> int:
    # A number beyond this is a slip of the finger, and would take the machine down.
    if (
        not isinstance(value, bool)
        and re.fullmatch(r"[0-9]{1,4}", str(value), re.ASCII)
        and 1 <= int(str(value)) <= 1024
    ):
        return int(str(value))
    raise ValueError(f"expected a number of workers, 1 to 1024, got {value!r}")


def _seconds(value: object) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if 0 <= seconds < math.inf:
            return seconds
    raise ValueError(f"expected seconds, 0 or more, got {value!r}")


_WORDS_FOR_BOOL = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def parse_bool(value: object) -> bool:
    """
    A switch, as a word or as TOML has it.

    Raises:
        ValueError: Neither a yes nor a no.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _WORDS_FOR_BOOL:
        return _WORDS_FOR_BOOL[value.strip().lower()]
    raise ValueError(f"expected true or false, got {value!r}")


def _text(value: object) -> str:
    if isinstance(value, str) and value and "\0" not in value:
        return value
    raise ValueError(f"expected a text that is not empty, got {value!r}")


def _addresses(value: object) -> tuple[str, ...]:
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{_BIND_FORMS}, one or a list of them, got {value!r}")
    addresses = tuple(str(text).strip() for text in texts)
    for address in addresses:
        parse_address(address)
    return addresses


_PROXY_FORMS = 'expected IP addresses, networks such as 10.0.0.0/8, "unix" or "*"'


def _proxies(value: object) -> tuple[str, ...]:
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{_PROXY_FORMS}, one or a list of them, got {value!r}")
    proxies = tuple(text.strip() for text in texts if text.strip())
    for proxy in proxies:
        if proxy not in ("*", "unix"):
            _check_network(proxy)
    return proxies


def _check_network(text: str) -> None:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{_PROXY_FORMS}, got {text!r}") from None
    address = text.partition("/")[0]
    if network.network_address != ip_network(address).network_address:
        raise ValueError(f"{_PROXY_FORMS}, got {text!r}; write '{network}', or '{address}' for the one address")


def _root_path(value: object) -> str:
    if isinstance(value, str) and (value == "" or re.fullmatch(r"/[!-~]*", value)) and not re.search(r"[?#%]", value):
        return value.rstrip("/")
    raise ValueError(f"expected a path that begins with '/', got {value!r}")


def _choice(*choices: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if isinstance(value, str) and value.lower() in choices:
            return value.lower()
        raise ValueError(f"expected {', '.join(choices[:-1])} or {choices[-1]}, got {value!r}")

    return check


def _unix_mode(value: object) -> int:
    text = oct(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if match := re.fullmatch(r"(?:0o?)?([0-7]{1,4})", text, re.ASCII):
        mode = int(match[1], 8)
        if mode <= 0o777:
            return mode
    raise ValueError(f"expected the octal mode of a socket file, 0 to 0777, got {value!r}; write 660, in TOML 0o660")


def _server(value: object) -> str:
    if isinstance(value, str) and value.lower() == "uvicorn":
        raise ValueError("expected microws or hypercorn, got 'uvicorn'; leave it out: microws serves HTTP/1.1 itself")
    return _choice("microws", "hypercorn")(value)


def _optional(check: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda value: None if value is None else check(value)


_CHECKS: dict[str, Callable[[object], Any]] = {
    "bind": _addresses,
    "host": _optional(_text),
    "port": _optional(_port),
    "workers": _workers,
    "worker_timeout": _seconds,
    "server": _optional(_server),
    "loop": _choice("auto", "asyncio", "uvloop", "trio"),
    "certfile": _optional(_text),
    "keyfile": _optional(_text),
    "root_path": _root_path,
    "forwarded_allow_ips": _proxies,
    "ping_interval": _seconds,
    "ping_timeout": _seconds,
    "max_message_size": _optional(parse_size),
    "max_head_size": _head_size,
    "body_timeout": _seconds,
    "write_timeout": _seconds,
    "keep_alive": _seconds,
    "unix_mode": _unix_mode,
    "stop_delay": _seconds,
    "drain_timeout": _seconds,
    "startup_timeout": _seconds,
    "shutdown_timeout": _seconds,
    "log_level": _choice("debug", "info", "warning", "error", "critical"),
    "log_format": _choice("text", "json"),
    "access_log": parse_bool,
}


def check_setting(name: str, value: object) -> Any:
    """
    The value of the setting ``name``, from a flag, a variable, TOML or Python, as ``Settings`` holds it.

    Raises:
        ValueError: Says what was expected and what it got, but not ``name``: the caller knows where the value is from.
    """
    return _CHECKS[name](value)


class SettingConflict(ValueError):
    """
    Settings that contradict each other.

    Args:
        text: With ``{name}`` for the name of each setting.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.format_map({name: name for name in _CHECKS}))
        self._text = text

    def naming(self, places: Mapping[str, str]) -> str:
        """The text with ``places`` for the names of settings: how the user writes each one."""
        return self._text.format_map(places)


# Hypercorn's public API has no such setting.
_NOT_ON_HYPERCORN: Final = ("body_timeout", "ping_timeout", "write_timeout")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """
    How a worker serves. Each value is checked, and may also be the text that the command line takes.

    Args:
        bind: Addresses: ``HOST:PORT``, ``[IPV6]:PORT``, ``unix:PATH``, ``fd://N``. Default: ``host`` and ``port``.
        host: Default 127.0.0.1: reachable from this machine only.
        port: Default 8000; 0 takes a free one.
        workers: Processes that share the sockets, 1 by default; a supervisor starts and replaces more than one.
        worker_timeout: Seconds that the event loop of one of several workers may be blocked before the supervisor kills
            and replaces the worker; 30 by default, as in gunicorn; 0: unlimited. Not counted while the app starts.
        server: What speaks HTTP. ``"microws"``, HTTP/1.1 on asyncio and uvloop, is the default; ``"hypercorn"`` adds
            HTTP/2, runs on trio too, and is slower. Default on trio: ``"hypercorn"``.
        loop: ``"auto"`` is uvloop where it is installed, else asyncio.
        certfile, keyfile: PEM files; ``certfile`` turns TLS on, and may hold the key too.
        root_path: The prefix of the path at which a proxy serves the app. ``path`` of every scope begins with it,
            whether the proxy removes it or not (ASGI HTTP specification, ``root_path``).
        forwarded_allow_ips: Proxies whose ``Forwarded`` and ``X-Forwarded-…`` headers the server trusts: addresses,
            networks, ``"unix"`` for every client of a Unix socket, ``"*"`` for every client. Default: this machine, as
            in uvicorn; an empty list trusts no client.
        ping_interval: Seconds between the pings of a WebSocket, 20 by default as in ``websockets``; 0: no pings.
        ping_timeout: Seconds that a client has to answer a ping, or to send anything else, 20 by default as in
            ``websockets``; 0: unlimited.
        max_message_size: Bytes of one incoming message. Default: the app's own, else 1 MiB as in ``websockets``.
        max_head_size: Bytes of a request's target and headers, 1 KiB to 1 MiB, 16 KiB by default as in h11. A longer
            head is answered with 431.
        body_timeout: Seconds that a client has for the next piece of a request's body, 60 by default as in nginx
            (``client_body_timeout``), then 408; 0: unlimited.
        write_timeout: Seconds that a client may read nothing of a response before the server disconnects it, 60 by
            default as in nginx (``send_timeout``); 0: unlimited.
        keep_alive: Seconds that the server keeps a connection open without a request; 0: it closes the connection after
            each response. Default 75, as in nginx (``keepalive_timeout``), longer than the 60 of common load balancers.
        unix_mode: Permissions of the socket file of ``unix:PATH``: octal digits as text, such as ``"660"``, or the
            number, such as ``0o660``. Default 0660: the file's owner and group may connect.
        stop_delay: Seconds that the server goes on accepting connections after SIGTERM, while ``/readyz`` already says
            503; 0 by default: it stops accepting immediately. For platforms that send requests for a moment after
            SIGTERM. Ctrl-C has no delay, and a second signal ends it.
        drain_timeout: Seconds that requests have to finish at shutdown; 10 by default, as ``docker stop`` waits; 0: the
            server disconnects them immediately.
        startup_timeout, shutdown_timeout: Seconds for each half of the app's lifespan; 60 by default, as in Hypercorn.
        log_level: ``"debug"``, ``"info"``, ``"warning"``, ``"error"`` or ``"critical"``.
        log_format: ``"text"``, or ``"json"`` for one object a line.
        access_log: One line for each request, and one for each beginning and end of a WebSocket.

    Raises:
        ValueError: Names the setting, what was expected and what it got. ``SettingConflict``: two settings contradict
            each other.
    """

    bind: tuple[str, ...] = ()
    host: str | None = None
    port: int | None = None
    workers: int = 1
    worker_timeout: float = 30
    server: Literal["microws", "hypercorn"] | None = None
    loop: Literal["auto", "asyncio", "uvloop", "trio"] = "auto"
    certfile: str | None = None
    keyfile: str | None = None
    root_path: str = ""
    forwarded_allow_ips: tuple[str, ...] = ("127.0.0.1", "::1", "unix")
    ping_interval: float = 20
    ping_timeout: float = 20
    max_message_size: int | None = None
    max_head_size: int = MAX_HEAD_BYTES
    body_timeout: float = 60
    write_timeout: float = 60
    keep_alive: float = 75
    unix_mode: int = 0o660
    stop_delay: float = 0
    drain_timeout: float = 10
    startup_timeout: float = 60
    shutdown_timeout: float = 60
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    log_format: Literal["text", "json"] = "text"
    access_log: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            try:
                object.__setattr__(self, field.name, check_setting(field.name, getattr(self, field.name)))
            except ValueError as error:
                raise ValueError(f"{field.name}: {error}") from None
        if self.bind and (self.host is not None or self.port is not None):
            raise SettingConflict("expected either {bind}, or {host} and {port}, got both; leave out one of them")
        if self.keyfile is not None and self.certfile is None:
            raise SettingConflict("{keyfile}: expected {certfile} too, got the key alone; add the certificate")
        if self.server == "microws" and self.loop == "trio":
            raise SettingConflict(
                "{loop}: expected auto, asyncio or uvloop with the server microws, got 'trio'; for trio set {server} "
                "to hypercorn"
            )
        if self.server is None:
            object.__setattr__(self, "server", "hypercorn" if self.loop == "trio" else "microws")
        if self.server == "hypercorn":
            self._check_hypercorn()

    def _check_hypercorn(self) -> None:
        if self.keep_alive == 0:
            raise SettingConflict(
                "{keep_alive}: expected more than 0 seconds with the server hypercorn, which cannot close a connection "
                "after each response, got 0; write 1, or use the server microws"
            )
        for field in fields(self):
            if field.name in _NOT_ON_HYPERCORN and getattr(self, field.name) != field.default:
                raise SettingConflict(
                    f"{{{field.name}}}: expected no value with the server hypercorn, which has no such limit, got "
                    f"{getattr(self, field.name):g}; leave it out, or use the server microws"
                )

    @property
    def addresses(self) -> list[Address]:
        """Where to listen."""
        if self.bind:
            return [parse_address(text) for text in self.bind]
        port = DEFAULT_PORT if self.port is None else self.port
        return [InternetAddress(DEFAULT_HOST if self.host is None else self.host, port)]


class RunOptions(TypedDict, total=False):
    """``Settings`` as ``App.run`` takes them, besides host and port."""

    bind: str | Sequence[str]
    workers: int
    worker_timeout: float
    server: Literal["microws", "hypercorn"] | None
    loop: Literal["auto", "asyncio", "uvloop", "trio"]
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
    startup_timeout: float
    shutdown_timeout: float
    log_level: Literal["debug", "info", "warning", "error", "critical"]
    log_format: Literal["text", "json"]
    access_log: bool
