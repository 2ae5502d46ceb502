"""What ``App(hub=)``, ``--hub`` and ``MICROWS_HUB`` take: the name of what carries published messages."""

import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final, NamedTuple, Protocol
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from microws.errors import FeatureUnavailable

__all__ = [
    "HUB_VARIABLE", "INHERITED_VARIABLE", "OPEN_HUB", "HubOpener", "RedisAddress", "check_hub", "directory_of",
    "inherits_hub", "redis_address",
]  # fmt: skip

# The option of a server. Workers also set it, for ``connect_hub`` in the programs that the app starts. The second
# variable has the same value then, so that a server among these programs does not take it for its own option.
HUB_VARIABLE: Final = "MICROWS_HUB"
INHERITED_VARIABLE: Final = "MICROWS_INHERITED_HUB"


class HubOpener(Protocol):
    """Says which hub an app has on this server, and has the server run the hub process that it needs."""

    def __call__(self, url: str, history_bytes: int, name: str, owner: object, /) -> str | None:
        """
        Open the hub.

        Args:
            url, history_bytes: The app's.
            name: Of the app in the hub; empty for the outermost one.
            owner: What has this name alone.

        Returns:
            The path of the hub process's socket, or the URL of Redis; ``None`` if this process is alone.
        """


# That of the server around this. Not in the scope of a lifespan, because another framework may serve the app.
OPEN_HUB: Final[ContextVar[HubOpener | None]] = ContextVar("OPEN_HUB", default=None)

_SERVER: Final = re.compile(r"(redis|valkey)(s?)(\+sentinel|\+cluster)?")
# Also if the scheme or its slashes were forgotten.
_PASSWORD: Final = re.compile(r"(//[^:@/]*:|^[^:@/]*:(?!//)).*(?=@)|(password=)[^&]*")
_HOST: Final = re.compile(r"(\[[^\]]+\]|[^:\[\]]+)(?::(\d{1,5}))?")
_TLS_OPTIONS: Final = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")
_CHOICES: Final = {"ssl_cert_reqs": ("required", "optional", "none"), "ssl_check_hostname": ("true", "false")}
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_MAX_PORT: Final = 65535
# Without colons and with one behind it, no prefix is the beginning of another one's keys.
_PREFIX: Final = re.compile(r"[A-Za-z0-9._-]+")
_NAME: Final = re.compile(r"^(redis|valkey)")
_KNOWN: Final = "memory, local, local:PATH, redis://HOST or unix:///PATH"


class RedisAddress(NamedTuple):
    """
    Where a Redis is, and how to log in. Texts never show its password.

    Attributes:
        shown: The URL without passwords.
        hosts: Host and port; several with Sentinel.
        path: Of the Unix socket.
        service: What Sentinel calls the primary.
        tls: The options of TLS; ``None`` without it.
        prefix: What keys and channels begin with, and a colon.
    """

    shown: str
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    username: str = ""
    password: str = ""
    db: int = 0
    tls: dict[str, str] | None = None
    prefix: str = "microws"
    sentinel_username: str = ""
    sentinel_password: str = ""

    def __repr__(self) -> str:
        return f"RedisAddress({self.shown!r})"


def inherits_hub(environ: Mapping[str, str]) -> bool:
    """Whether ``MICROWS_HUB`` names the hub of a server that started this program, and is not its own option."""
    return environ.get(HUB_VARIABLE) is not None and environ[HUB_VARIABLE] == environ.get(INHERITED_VARIABLE)


def check_hub(url: str) -> str:
    """
    Refuse an invalid ``hub=``.

    Raises:
        FeatureUnavailable: This version does not have that backplane.
        ValueError: There is none of that name, or its URL is invalid.
    """
    scheme, _, path = url.partition(":")
    if url in ("memory", "local") or (scheme == "local" and path):
        return url
    if scheme.lower() == "nats":
        raise FeatureUnavailable(f"this version has no 'nats' backplane; use {_KNOWN}")
    if redis_address(url) is None:
        raise ValueError(f"expected {_KNOWN}, got {_hide(url)!r}")
    return url


def directory_of(url: str) -> str | None:
    """The directory of ``local:PATH``; ``None`` of the others."""
    scheme, _, path = url.partition(":")
    return path or None if scheme == "local" else None


def redis_address(url: str) -> RedisAddress | None:
    """
    Where the Redis of a URL is; ``None`` if the URL is one of another backplane.

    Raises:
        FeatureUnavailable: A Redis Cluster.
        ValueError: An invalid URL.
    """
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    matched = _SERVER.fullmatch(scheme)
    if scheme != "unix" and matched is None:
        return None
    kind = matched and matched.group(3)
    if kind == "+cluster":
        raise FeatureUnavailable(
            "a Redis Cluster cannot carry a hub: use one Redis or Sentinel, or several hubs on several servers"
        )
    try:
        split = urlsplit(url)
        if split.netloc and "@" in url.partition("://")[2][len(split.netloc) :]:
            # What follows may be a part of the password, so no text quotes it.
            raise ValueError("expected /, ?, # and @ as %2F, %3F, %23 and %40 in the user, password and options")
        options = _options(split, is_tls=bool(matched and matched.group(2)), has_sentinel=bool(kind))
        if matched is None:
            return _unix_address(_hide(url), split, options)
        return _address(_hide(url), split, options, is_tls=bool(matched.group(2)), has_sentinel=bool(kind))
    except ValueError as error:
        raise ValueError(f"{error}, in {_hide(url)!r}") from None


def _options(split: SplitResult, *, is_tls: bool, has_sentinel: bool) -> dict[str, str]:
    for part in split.query.split("&") if split.query else ():
        if "=" not in part:
            raise ValueError(f"expected options as name=value, got {part!r}")
    pairs = parse_qsl(split.query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        raise ValueError("expected each option once")
    known = ["prefix", *(["db"] if split.scheme == "unix" else [])]
    known += _TLS_OPTIONS if is_tls else ()
    known += _SENTINEL_OPTIONS if has_sentinel else ()
    for name, value in options.items():
        if name not in known:
            raise ValueError(_unknown(name, split.scheme, known))
        if value not in _CHOICES.get(name, (value,)):
            raise ValueError(f"expected {name} to be one of {', '.join(_CHOICES[name])}, got {value!r}")
    prefix = options.get("prefix", "microws")
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"expected prefix to have letters, digits, '.', '-' and '_' only, got {prefix!r}")
    return options


def _unknown(option: str, scheme: str, known: list[str]) -> str:
    """What is wrong with an option that the scheme does not have."""
    if scheme != "unix":
        if option == "db":
            return "expected the number of the database as redis://HOST/1, got it as an option"
        if option in _TLS_OPTIONS:
            with_tls = _NAME.sub(r"\1s", scheme)
            return f"expected {with_tls}:// for {option}, got {scheme}://"
        if option in _SENTINEL_OPTIONS:
            return f"expected redis+sentinel:// for {option}, got {scheme}://"
    return f"expected the option {' or '.join(known)}, got {option!r}"


def _unix_address(shown: str, split: SplitResult, options: dict[str, str]) -> RedisAddress:
    username, password, host = _login(split)
    if host or not split.path:
        raise ValueError(f"expected unix:///path/of/the/socket, got {'a host' if host else 'no path'}")
    return RedisAddress(
        shown, path=unquote(split.path), username=username, password=password, db=_number(options.pop("db", "0")),
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


def _address(
    shown: str, split: SplitResult, options: dict[str, str], *, is_tls: bool, has_sentinel: bool
) -> RedisAddress:
    username, password, names = _login(split)
    hosts = []
    for name in names.split(","):
        found = _HOST.fullmatch(name)
        if found is None:
            raise ValueError(f"expected HOST, HOST:PORT or [IPV6]:PORT, got {name!r}")
        port = int(found.group(2) or (_SENTINEL_PORT if has_sentinel else _PORT))
        if port > _MAX_PORT:
            raise ValueError(f"expected a port up to {_MAX_PORT}, got {port}")
        hosts.append((found.group(1).strip("[]"), port))
    service, _, db = split.path[1:].partition("/") if has_sentinel else ("", "", split.path[1:])
    if has_sentinel and not service:
        raise ValueError("expected the name of the service, as redis+sentinel://HOST:26379/SERVICE")
    if not has_sentinel and len(hosts) > 1:
        raise ValueError(f"expected one host, got {len(hosts)}: several are for redis+sentinel://")
    tls = {name: options.pop(name) for name in _TLS_OPTIONS if name in options} if is_tls else None
    return RedisAddress(
        shown, tuple(hosts), service=unquote(service), username=username, password=password, db=_number(db or "0"),
        tls=tls, **options,  # type: ignore[arg-type]
    )  # fmt: skip


def _login(split: SplitResult) -> tuple[str, str, str]:
    """User, password, and the hosts."""
    login, _, hosts = split.netloc.rpartition("@")
    username, _, password = login.partition(":")
    return unquote(username), unquote(password), hosts


def _number(db: str) -> int:
    if not db.isdecimal():
        raise ValueError(f"expected the number of a database, 0 or more, got {db!r}")
    return int(db)


def _hide(url: str) -> str:
    return _PASSWORD.sub(r"\1\2***", url)
