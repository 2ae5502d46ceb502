"""What a server can be told: one dataclass, and the check of each value."""

import math
import re
from collections.abc import Callable, Sequence
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
        raise ValueError(f"{_BIND_FORMS}, came {text!r}; for every network write '0.0.0.0{text}'")
    elif match := re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\[\]:/\s]+)):([0-9]{1,5})", text):
        return InternetAddress(match[1] or match[2], _port(match[3]))
    elif text.isascii() and text.isdigit():
        raise ValueError(f"{_BIND_FORMS}, came {text!r}; for the port alone write --port {text}")
    raise ValueError(f"{_BIND_FORMS}, came {text!r}")


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
            raise ValueError(f"expected a size such as 65536, 64KiB or 1MiB, came {value!r}")
        size = int(float(match[1]) * _UNITS[match[2]])
    if size < 1:
        raise ValueError(f"expected at least 1 byte, came {value!r}")
    return size


def _port(value: object) -> int:
    if not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,5}", str(value), re.ASCII) and int(str(value)) <= 65535:
        return int(str(value))
    raise ValueError(f"expected a port, 0 to 65535, came {value!r}")


def _workers(value: object) -> int:
    # A number beyond this is a slip of the finger, and would take the machine down.
    if (
        not isinstance(value, bool)
        and re.fullmatch(r"[0-9]{1,4}", str(value), re.ASCII)
        and 1 <= int(str(value)) <= 1024
    ):
        return int(str(value))
    raise ValueError(f"expected a number of workers, 1 to 1024, came {value!r}")


def _seconds(value: object) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if 0 <= seconds < math.inf:
            return seconds
    raise ValueError(f"expected seconds, 0 or more, came {value!r}")


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
    raise ValueError(f"expected true or false, came {value!r}")


def _text(value: object) -> str:
    if isinstance(value, str) and value and "\0" not in value:
        return value
    raise ValueError(f"expected a text that is not empty, came {value!r}")


def _addresses(value: object) -> tuple[str, ...]:
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{_BIND_FORMS}, one or a list of them, came {value!r}")
    addresses = tuple(str(text).strip() for text in texts)
    for address in addresses:
        parse_address(address)
    return addresses


_PROXY_FORMS = 'expected IP addresses, networks such as 10.0.0.0/8, "unix" or "*"'


def _proxies(value: object) -> tuple[str, ...]:
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{_PROXY_FORMS}, one or a list of them, came {value!r}")
    proxies = tuple(text.strip() for text in texts if text.strip())
    for proxy in proxies:
        if proxy not in ("*", "unix"):
            _check_network(proxy)
    return proxies


def _check_network(text: str) -> None:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{_PROXY_FORMS}, came {text!r}") from None
    address = text.partition("/")[0]
    if network.network_address != ip_network(address).network_address:
        raise ValueError(f"{_PROXY_FORMS}, came {text!r}; write '{network}', or '{address}' for the one address")


def _root_path(value: object) -> str:
    if isinstance(value, str) and (value == "" or re.fullmatch(r"/[!-~]*", value)) and not re.search(r"[?#%]", value):
        return value.rstrip("/")
    raise ValueError(f"expected a path that begins with '/', came {value!r}")


def _choice(*choices: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if isinstance(value, str) and value.lower() in choices:
            return value.lower()
        raise ValueError(f"expected {', '.join(choices[:-1])} or {choices[-1]}, came {value!r}")

    return check


def _unix_mode(value: object) -> int:
    text = oct(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if match := re.fullmatch(r"(?:0o?)?([0-7]{1,4})", text, re.ASCII):
        mode = int(match[1], 8)
        if mode <= 0o777:
            return mode
    raise ValueError(f"expected the octal mode of a socket file, 0 to 0777, came {value!r}; write 660, in TOML 0o660")


def _server(value: object) -> str:
    if isinstance(value, str) and value.lower() == "uvicorn":
        raise ValueError("expected microws or hypercorn, came 'uvicorn'; leave it out: microws serves HTTP/1.1 itself")
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
    "max_head_size": parse_size,
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
        ValueError: Says what was expected and what came, but not ``name``: the caller knows where it stood.
    """
    return _CHECKS[name](value)


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
        workers: Processes that share the sockets, 1 by default; more than one are looked after by a supervisor.
        worker_timeout: Seconds without a sign of life from the event loop of one of several workers, after which it is
            killed and replaced; 30 by default, as in gunicorn; 0 waits forever. Not counted while the app starts.
        server: What speaks HTTP. ``"microws"``, HTTP/1.1 on asyncio and uvloop, is the default; ``"hypercorn"`` adds
            HTTP/2, runs on trio too, and is slower. Default on trio: ``"hypercorn"``.
        loop: ``"auto"`` is uvloop where it is installed, else asyncio.
        certfile, keyfile: PEM files; ``certfile`` turns TLS on, and may hold the key too.
        root_path: The prefix below which a proxy has put the app. ``path`` of every scope begins with it, whether the
            proxy removes it or not (ASGI HTTP specification, ``root_path``).
        forwarded_allow_ips: Proxies whose ``Forwarded`` and ``X-Forwarded-…`` headers count: addresses, networks,
            ``"unix"`` for whoever connects over a Unix socket, ``"*"`` for whoever connects. Default: this machine, as
            in uvicorn; an empty list trusts nobody.
        ping_interval: Seconds between the pings of a WebSocket, 20 by default as in ``websockets``; 0 sends none.
        ping_timeout: Seconds that a client has to answer a ping, or to send anything else, 20 by default as in
            ``websockets``; 0 waits for ever.
        max_message_size: Bytes of one incoming message. Default: the app's own, else 1 MiB as in ``websockets``.
        max_head_size: Bytes of a request's target and headers, 16 KiB by default as in h11; more is answered with 431.
        body_timeout: Seconds that a client has for the next piece of a request's body, 60 by default as in nginx
            (``client_body_timeout``), then 408; 0: unlimited.
        write_timeout: Seconds that a client may take nothing of a response before it is disconnected, 60 by default as
            in nginx (``send_timeout``); 0: unlimited.
        keep_alive: Seconds that a connection is kept between two requests; 0: unlimited. Default 75, as in nginx
            (``keepalive_timeout``), which is longer than the 60 of common load balancers.
        unix_mode: Permissions of the socket file of ``unix:PATH``: octal digits as text, such as ``"660"``, or the
            number, such as ``0o660``. Default 0660: the file's owner and group may connect.
        stop_delay: Seconds that the server goes on accepting connections after SIGTERM, while ``/readyz`` already says
            503; 0 by default. For platforms that go on sending requests for a moment. Ctrl-C has no delay, and a second
            signal ends it.
        drain_timeout: Seconds that requests have to finish at shutdown; 10 by default, as ``docker stop`` waits.
        startup_timeout, shutdown_timeout: Seconds for each half of the app's lifespan; 60 by default, as in Hypercorn.
        log_level: ``"debug"``, ``"info"``, ``"warning"``, ``"error"`` or ``"critical"``.
        log_format: ``"text"``, or ``"json"`` for one object a line.
        access_log: One line for each request, and one for each beginning and end of a WebSocket.

    Raises:
        ValueError: Names the setting, what was expected and what came.
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
            raise ValueError("bind takes the place of host and port; give the one or the other")
        if self.keyfile is not None and self.certfile is None:
            raise ValueError("keyfile without certfile: TLS needs the certificate too")
        if self.server == "microws" and self.loop == "trio":
            raise ValueError("loop trio: the server microws runs on asyncio and uvloop only; write --server hypercorn")
        if self.server is None:
            object.__setattr__(self, "server", "hypercorn" if self.loop == "trio" else "microws")
        if self.server == "hypercorn":
            self._check_hypercorn()

    def _check_hypercorn(self) -> None:
        for field in fields(self):
            if field.name in _NOT_ON_HYPERCORN and getattr(self, field.name) != field.default:
                raise ValueError(f"{field.name}: the server hypercorn has no such limit; leave it out")

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
