"""
One connection to Redis, for commands and for what is subscribed: so answers and messages come in one order.

In version 3 of Redis' protocol, what was published is told apart from answers by its type.
"""

import os
import re
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from random import sample
from typing import Any, Final, TypeAlias

import anyio
import anyio.abc
import anyio.to_thread

from microws.errors import FeatureUnavailable, HubUnavailable
from microws.hub.backplane import Receiver
from microws.hub.loop import running_loop
from microws.hub_url import RedisAddress
from microws.redis_hub.line import Line, open_line

try:
    import hiredis
except ImportError:
    raise FeatureUnavailable("redis:// needs a package: pip install 'microws[redis]'") from None

__all__ = ["Answer", "Connection", "advice", "connect", "is_refusal", "tls_context", "words_of"]

# What an answer is passed to; of a command that failed it is a ``hiredis.ReplyError``.
Answer: TypeAlias = Callable[[Any], None]

# In errors: in which script it was, and what was not understood.
_DETAILS: Final = re.compile(" script: [0-9a-f]{40}, on .*|, with args beginning with: .*", re.DOTALL)
_CONFIRMATIONS: Final = (b"subscribe", b"unsubscribe")
_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
# What helps when Redis refuses to begin, by words of its refusal.
_RIGHTS: Final = "give the user the rights that the guide lists in 'Run on several machines'"
_WHAT_TO_DO: Final = {
    "WRONGPASS": "check the user and password in the URL, or MICROWS_HUB_PASSWORD",
    "NOPERM": _RIGHTS,
    "script can't": _RIGHTS,
    "ACL failure": _RIGHTS,  # Valkey
    "DB index": "use a lower number of the database, or set more of them as `databases` in Redis",
}
# Seconds for the answer of a Sentinel.
_SENTINEL_TIMEOUT: Final = 0.5
# These errors end by themselves, or on another server.
_NOT_NOW: Final = (
    "NOSCRIPT",
    "EPOCH",
    "BEHIND",
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "BUSY ",
    "TRYAGAIN",
    "ERR max number of clients",
)


# What a stream raises at its end, besides a parser that cannot go on.
_ENDED: Final = (
    anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, hiredis.ProtocolError, ssl.SSLError,
)  # fmt: skip


class Connection:
    """
    A connection after its handshake.

    Attributes:
        is_quiet: Set by others; a message clears it.
        reason: Why it has ended.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._reader = hiredis.Reader()
        self._answers: deque[Answer] = deque()
        self._output: list[bytes] = []
        self._is_woken = False
        self._scope = anyio.CancelScope()
        self._fill: Callable[[], None]
        self._take: Callable[[bytes, bytes], None]
        self._receiver: Receiver
        self.is_quiet = False
        self.reason = ""

    def tell(self, *command: bytes | int) -> None:
        """Send SUBSCRIBE or UNSUBSCRIBE. Each channel is confirmed; if Redis refuses, the connection is cut."""
        self._answers.extend([self._follow_confirmation] * (len(command) - 1))
        self._send(command)

    def post(self, answer: Answer, *command: bytes | int) -> None:
        """Send a command. ``answer`` is called in the order of what arrives."""
        self._answers.append(answer)
        self._send(command)

    def _send(self, command: tuple[bytes | int, ...]) -> None:
        self._output.append(_pack(command))
        self.wake()

    def _follow_confirmation(self, answer: Any) -> None:
        # It is one answer for all channels: from here on, nothing tells which answer belongs to what.
        if isinstance(answer, Exception):
            self.cut(str(answer))

    def wake(self) -> None:
        """Have ``fill`` called, and everything sent, in the next turn of the event loop; on trio, at once."""
        if self._is_woken:
            return
        self._is_woken = True
        loop = running_loop()
        if loop is None:
            self._flush()
        else:
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self.reason:
            return
        self._fill()
        self._is_woken = False
        data = b"".join(self._output)
        self._output.clear()
        self._line.write(data)

    def cut(self, reason: str) -> None:
        """Let ``run`` end."""
        self.reason = self.reason or reason
        self._scope.cancel()

    async def run(self, fill: Callable[[], None], take: Callable[[bytes, bytes], None], receiver: Receiver) -> None:
        """
        Send and receive until the connection ends.

        Args:
            fill: Called before something is sent; may post more.
            take: Called with the channel and the data of each message.
            receiver: Is relaxed while it is busy.
        """
        self._fill, self._take, self._receiver = fill, take, receiver
        with self._scope:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._line.run)
                    while not self.reason:
                        await self._line.read(self._follow)
                        while receiver.is_busy:
                            await receiver.relax()
                            self._follow()
            except* _ENDED as errors:
                self.cut(_reason(errors.exceptions[0]))

    def _follow(self, data: bytes = b"") -> bool:
        """Follow what has arrived. ``False``: there is more, but ``run`` has something to do."""
        reader, take, receiver = self._reader, self._take, self._receiver
        if data:
            reader.feed(data)
        pushed = hiredis.PushNotification
        while (item := reader.gets()) is not False:
            is_pushed = type(item) is pushed
            if is_pushed and item[0] == b"message":
                self.is_quiet = False
                take(item[1], item[2])
                if receiver.is_busy:
                    return False
            elif not is_pushed or item[0] in _CONFIRMATIONS:
                self._answers.popleft()(item)
                if self.reason:
                    return False
        return True

    async def aclose(self) -> None:
        """Close it. Never waits for Redis."""
        await self._line.aclose()

    async def converse(self, *commands: tuple[bytes | int, ...]) -> list[Any]:
        """
        The answers to commands, before ``run``: one to each. That of SUBSCRIBE is its confirmation.

        Raises:
            HubUnavailable: Redis has refused one of them.
            ConnectionError: It cannot answer now.
        """
        answers: list[Any] = []

        def take(data: bytes) -> bool:
            self._reader.feed(data)
            while (item := self._reader.gets()) is not False:
                if isinstance(item, hiredis.ReplyError) and commands[len(answers)][0] != b"CONFIG":
                    if is_refusal(item):
                        raise HubUnavailable(_refusal(words_of(item)))
                    raise ConnectionError(str(item))
                if type(item) is not hiredis.PushNotification or item[0] == b"subscribe":
                    answers.append(item)
            return len(answers) < len(commands)

        self._line.write(b"".join(map(_pack, commands)))
        await self._line.flush()
        await self._line.read(take)
        return answers


def _pack(command: tuple[bytes | int, ...]) -> bytes:
    # Its types say that a command is a tuple of one.
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


def words_of(error: Exception) -> str:
    """An error of Redis without details. Redis 6 says first in which script it was."""
    return _DETAILS.sub("", str(error).rpartition(": -")[2])


def is_refusal(error: Exception) -> bool:
    """Whether Redis' error will not end by itself."""
    return not any(word in str(error) for word in _NOT_NOW)


async def connect(
    address: RedisAddress, tls: ssl.SSLContext | None, prepare: Callable[[Connection], Awaitable[None]]
) -> Connection:
    """
    A connection that has logged in, and has passed ``prepare``. ``aclose`` it.

    Raises:
        HubUnavailable: The server is none that can carry a hub, or has refused the login.
        OSError: No server answers now.
    """
    try:
        connection = Connection(await _open(address, tls))
    except ssl.SSLCertVerificationError as error:
        what = "name the file of its CA with ssl_ca_certs="
        if "not valid for" in error.verify_message:
            what = "use a host that it is valid for"
        raise HubUnavailable(
            f"expected a certificate of Redis that this machine trusts, got: {error.verify_message}; {what}"
        ) from None
    try:
        password = address.password or os.environ.get("MICROWS_HUB_PASSWORD", "")
        has_login = password or address.username
        login = (b"AUTH", (address.username or "default").encode(), password.encode()) if has_login else ()
        [hello] = await connection.converse((b"HELLO", 3, *login, b"SETNAME", b"microws"))
        _check_server(hello)
        await connection.converse((b"SELECT", address.db))
        await prepare(connection)
    except BaseException as error:
        await connection.aclose()
        if isinstance(error, hiredis.ProtocolError):
            raise HubUnavailable("expected Redis, got something that speaks another protocol: check the port") from None
        if isinstance(error, _ENDED):
            raise ConnectionError(_reason(error)) from None
        raise
    return connection


def advice(address: RedisAddress) -> str:
    """What to do if Redis does not answer."""
    if address.path:
        return "check the path of the socket, and that Redis runs"
    what, runs, scheme = "host and port", "Redis runs", "://"
    if address.service:
        what, runs, scheme = "hosts, ports and service", "Sentinel and Redis run", "+sentinel://"
    kind = f"without TLS (with TLS, write rediss{scheme})"
    if address.tls is not None:
        kind = f"with TLS (without, write redis{scheme})"
    return f"check {what}, and that {runs} there {kind}"


async def _open(address: RedisAddress, tls: ssl.SSLContext | None) -> Line:
    host, port = address.hosts[0] if address.hosts else ("", 0)
    if address.service:
        host, port = await anyio.to_thread.run_sync(partial(_ask_sentinels, address), abandon_on_cancel=True)
    try:
        stream = await (anyio.connect_unix(address.path) if address.path else anyio.connect_tcp(host, port))
        return await open_line(stream, tls, host)
    except ssl.SSLError:
        raise
    except OSError as error:
        # anyio tries all addresses of the host.
        cause = error.__cause__
        first = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
        raise ConnectionError(_words(first if isinstance(first, OSError) else error)) from None


def _ask_sentinels(address: RedisAddress) -> tuple[str, int]:
    """Where the primary is."""
    from redis import AuthenticationError, Redis, RedisError, ResponseError

    options = {"socket_timeout": _SENTINEL_TIMEOUT, "socket_connect_timeout": _SENTINEL_TIMEOUT, "retry": None}
    login = {"username": address.sentinel_username or None, "password": address.sentinel_password or None}
    tls = {} if address.tls is None else {"ssl": True, **_redis_options(address.tls)}
    trouble = ""
    # Several that are gone would take all the time if they were always the first ones.
    for host, port in sample(address.hosts, len(address.hosts)):
        where = f"the Sentinel at {host}:{port}"
        try:
            with closing(Redis(host, port, **options | login | tls)) as sentinel:
                primaries: Any = sentinel.sentinel_masters()
        except AuthenticationError:
            raise HubUnavailable(
                f"{where} refused the login; write its user and password as sentinel_username= and sentinel_password="
            ) from None
        except ResponseError as error:
            if "unknown command" in str(error):
                raise HubUnavailable(f"expected a Sentinel at {host}:{port}, got Redis: write redis://HOST") from None
            trouble = f"{where} refused: {error}"
        except (RedisError, UnicodeError) as error:
            cause = error.__context__
            said = _words(cause) if isinstance(cause, OSError) else str(error)
            if isinstance(cause, TimeoutError):
                said = f"it does not answer within {_SENTINEL_TIMEOUT:g} s"
            trouble = trouble or f"{where}: {said}"
        else:
            found = primaries.get(address.service)
            if found and found["is_master"] and not (found["is_sdown"] or found["is_odown"]):
                return str(found["ip"]), int(found["port"])
            names = ", ".join(map(repr, sorted(primaries))) or "none"
            what = "cannot reach" if found else f"knows {names}, not"
            trouble = f"{where} {what} {address.service!r}"
    raise ConnectionError(trouble)


def _redis_options(tls: dict[str, str]) -> dict[str, Any]:
    return {name: value == "true" if name == "ssl_check_hostname" else value for name, value in tls.items()}


def tls_context(options: dict[str, str]) -> ssl.SSLContext:
    """
    The TLS that a URL asks for.

    Raises:
        HubUnavailable: A file is missing or invalid.
    """
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if certfile := options.get("ssl_certfile"):
            context.load_cert_chain(certfile, options.get("ssl_keyfile"))
    except OSError as error:
        files = ", ".join(f"{name}={options[name]}" for name in _FILES if name in options)
        raise HubUnavailable(f"expected certificates for Redis in {files}, got: {_words(error)}") from None
    level = options.get("ssl_cert_reqs", "required")
    context.check_hostname = level == "required" and options.get("ssl_check_hostname") != "false"
    context.verify_mode = getattr(ssl, f"CERT_{level.upper()}")
    return context


def _check_server(hello: dict[bytes, Any]) -> None:
    version = hello[b"version"].decode()
    if hello[b"mode"] == b"cluster":
        raise HubUnavailable(
            "a Redis Cluster cannot carry a hub: use one Redis or Sentinel, or several hubs on several servers"
        )
    if hello[b"mode"] == b"sentinel":
        raise HubUnavailable("expected Redis, got a Sentinel: write redis+sentinel://HOST:26379/SERVICE")
    if int(version.partition(".")[0]) < 6:
        raise HubUnavailable(f"expected Redis 6 or newer, got {version}")


def _refusal(text: str) -> str:
    if "unknown command" in text and "HELLO" in text:
        return "expected Redis 6 or newer, got an older one"
    if text.startswith("NOAUTH"):
        return "Redis refused: it expects a password; write redis://:PASSWORD@HOST, or set MICROWS_HUB_PASSWORD"
    for word, what in _WHAT_TO_DO.items():
        if word in text:
            return f"Redis refused: {text.removesuffix('.')}; {what}"
    return f"Redis refused: {text}"


def _reason(error: BaseException) -> str:
    if isinstance(error, hiredis.ProtocolError):
        return f"it sent what is not of its protocol: {error}"
    cause = error.__cause__
    return _words(cause) if isinstance(cause, OSError) and str(cause) else "it closed the connection"


def _words(error: OSError) -> str:
    """An error without its number."""
    # asyncio's own text says less than the system's. A name that is not found has a negative number.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)
