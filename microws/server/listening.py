"""The sockets that a server listens on, and TLS. They are bound before the app starts, and listen after it has."""

import errno
import logging
import os
import socket
import ssl
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO, TypeAlias

if sys.platform != "win32":
    import fcntl

from microws.server.response_head import date_line, response_head
from microws.server.settings import Address, FileDescriptor, InternetAddress, UnixPath

__all__ = ["BACKLOG", "CIPHERS", "ListenError", "Listener", "bind", "tls_context"]

_USE_HTTPS: Final = b"expected TLS, got plain HTTP: use https:// on this port\n"

_log = logging.getLogger("microws.server")

# Connections that wait in the kernel while the worker is busy: Linux's own limit (net.core.somaxconn) since 5.4.
BACKLOG: Final = 4096

# Of TLS 1.2: with forward secrecy.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


class ListenError(Exception):
    """The server cannot listen, or cannot use its certificate. The text is one line, with a hint."""


class Listener:
    """
    A bound socket. Until it listens, a client that connects is refused.

    Args:
        sock: The socket.
        secure: Whether its connections speak TLS; only the URL says so.
        path: The file of a Unix socket that ``close`` removes. Default: it removes none.
        lock: The locked file beside it, which ``close`` removes and closes.

    Attributes:
        sock: As above.
        url: Where clients connect to; the real port if port 0 was asked for.
    """

    def __init__(
        self, sock: socket.socket, *, secure: bool, path: Path | None = None, lock: TextIO | None = None
    ) -> None:
        self.sock = sock
        self._path = path
        self._identity = None if path is None else _identity(path)
        self._lock = lock
        self._kept: socket.socket | None = None
        name = sock.getsockname()
        scheme = "https" if secure else "http"
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            self.url: str = f"{scheme}://{InternetAddress(name[0], name[1])}"
        else:
            self.url = f"{scheme}+unix:{name}" if secure else f"unix:{name}"

    @classmethod
    def take_over(cls, left: Sequence[Any], *, secure: bool) -> "Listener":
        """
        The socket that another program of this process has left: the result of its ``leave``.

        Raises:
            ListenError: The files were closed meanwhile.
        """
        number, path, lock = left
        try:
            sock = socket.socket(fileno=number)
            sock.set_inheritable(False)
            if path is None:
                return cls(sock, secure=secure)
            os.set_inheritable(lock, False)
            return cls(sock, secure=secure, path=Path(path), lock=os.fdopen(lock))
        except OSError as error:
            raise ListenError(f"the listening socket that SIGHUP has left is lost: {_reason(error)}") from None

    def listen(self) -> None:
        """
        Let clients connect from now on.

        Raises:
            ListenError: Another program listens there; some systems report that only now.
        """
        try:
            self.sock.listen(BACKLOG)
        except OSError as error:
            raise ListenError(f"cannot listen on {self.url}: {_reason(error)}; use another one: --port") from None

    def keep(self) -> None:
        """
        Keep the address beyond ``close``, until ``drop``.

        Raises:
            OSError: The socket is closed.
        """
        self._kept = self.sock.dup()

    def drop(self) -> None:
        """Give the address back, if it was only kept."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None
            if self.sock.fileno() < 0:
                self.close()

    def leave(self) -> list[Any]:
        """What ``take_over`` needs in the next program of this process, which inherits the files."""
        assert self._kept is not None
        self._kept.set_inheritable(True)
        if self._path is None or self._lock is None:
            return [self._kept.fileno(), None, None]
        os.set_inheritable(self._lock.fileno(), True)
        return [self._kept.fileno(), str(self._path), self._lock.fileno()]

    def close(self) -> None:
        """Give the address back, unless it is kept."""
        self.sock.close()
        if self._kept is None and self._path is not None and self._lock is not None:
            # A program that does not know the lock may have bound the path in the meantime.
            if self._path.exists() and _identity(self._path) == self._identity:
                self._path.unlink()
            _unlock(self._path, self._lock)
            self._lock = None


def _identity(path: Path) -> tuple[int, int]:
    # The inode alone may have been used again.
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def bind(addresses: Sequence[Address], *, secure: bool = False, unix_mode: int = 0o660) -> list[Listener]:
    """
    Bind the addresses, all or none.

    A host name with several numbers, such as ``localhost``, binds each that this machine has. ``[::]`` accepts IPv4
    connections as well if the system does that, unless an IPv4 address with the same port is asked for, too. With port
    0, all numbers of a name get one port.

    Args:
        addresses: Where to listen.
        secure: Whether TLS will be spoken; only the URLs say so.
        unix_mode: Permissions of the files of Unix sockets, whatever the umask is. By default the user and the group.

    Raises:
        ListenError: In use, not allowed, not an address of this machine, not a socket.
    """
    numbers = {address: _resolve(address) for address in addresses if isinstance(address, InternetAddress)}
    ipv4_ports = {address.port for address, found in numbers.items() if socket.AF_INET in dict(found)}
    listeners: list[Listener] = []
    with ExitStack() as undo:
        for address in addresses:
            match address:
                case InternetAddress():
                    sockets = _bind_internet(address, numbers[address], v6_only=address.port in ipv4_ports)
                    bound: Iterable[Listener] = (Listener(sock, secure=secure) for sock in sockets)
                case UnixPath():
                    bound = [_bind_unix(address, secure=secure, mode=unix_mode)]
                case FileDescriptor():
                    bound = [_inherit(address, secure=secure)]
            for listener in bound:
                undo.callback(listener.close)
                listeners.append(listener)
        undo.pop_all()
    return listeners


class _Context(ssl.SSLContext):
    """Makes an ``_Object``, and tells it where it writes to."""

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **options: Any) -> ssl.SSLObject:
        made = super().wrap_bio(incoming, outgoing, *args, **options)
        assert isinstance(made, _Object)
        made.outgoing = outgoing
        return made


class _Object(ssl.SSLObject):
    """Answers a client that speaks plain HTTP, which would only see that its connection ends."""

    outgoing: ssl.MemoryBIO

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLError as error:
            # OpenSSL recognizes GET, HEAD, POST and PUT.
            if error.reason != "HTTP_REQUEST":
                raise
            fields = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n"
            self.outgoing.write(response_head(400, fields % len(_USE_HTTPS), date_line()) + _USE_HTTPS)
            # The event loop sends what is there, and waits for the client to close.
            raise ssl.SSLWantReadError from None


def tls_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    """
    TLS 1.2 or later with forward secrecy; HTTP/1.1 by ALPN.

    Raises:
        ListenError: A file is missing or not PEM, or the key is encrypted or not that of the certificate.

    Source: RFC 9113 §9.2.
    """
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _Object
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    for flag, path in (("--certfile", certfile), ("--keyfile", keyfile)):
        if path is not None and not Path(path).is_file():
            raise ListenError(f"{flag}: expected a PEM file, got {path!r}, which is not a file")
    key = keyfile or certfile

    def refuse_encrypted() -> NoReturn:
        # OpenSSL would ask for the passphrase on the terminal, where a service waits forever.
        raise ListenError(
            f"expected a key without a passphrase, got {key!r}; decrypt it: openssl pkey -in {key} -out FILE"
        )

    try:
        context.load_cert_chain(certfile, keyfile, password=refuse_encrypted)
        return context
    except ssl.SSLError:
        # OpenSSL itself says only "PEM lib".
        reason = _why_unusable(certfile, key)
    except OSError as error:
        reason = _reason(error)
    raise ListenError(f"cannot use the certificate {certfile!r} with the key {key!r}: {reason}")


def _why_unusable(certfile: str, keyfile: str) -> str:
    for path, kind in ((certfile, "certificate"), (keyfile, "private key")):
        if f"{kind.upper()}-----".encode() not in Path(path).read_bytes():
            return f"no PEM {kind} in {path!r}"
    return "one is damaged, or the key is not that of the certificate"


_Number: TypeAlias = tuple[int, Any]


def _resolve(address: InternetAddress) -> list[_Number]:
    """The families and numbers of a host."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ListenError(
            f"expected a host name that can be resolved, got {address.host!r}: {_reason(error)}"
        ) from None
    return list(dict.fromkeys((info[0], info[4]) for info in found))


def _bind_internet(address: InternetAddress, numbers: Sequence[_Number], *, v6_only: bool) -> Iterator[socket.socket]:
    """A socket for each of the numbers that this machine has."""
    missing: OSError | None = None
    port = address.port
    is_bound = False
    for family, name in numbers:
        # Without the protocol's number asyncio does not set TCP_NODELAY on the connections (asyncio/base_events.py,
        # _set_nodelay): a short message would wait up to 40 ms for the client to confirm the one before.
        with ExitStack() as undo:
            try:
                sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
                if os.name == "posix":  # on Windows, two servers could then listen on the same port
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6 and v6_only:
                    # A socket of its own accepts the IPv4 connections to this port.
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((name[0], port, *name[2:]))
                sock.setblocking(False)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise ListenError(_explain(address, error)) from None
                missing = error
                continue
            undo.pop_all()
        is_bound = True
        port = sock.getsockname()[1]
        yield sock
    if missing is not None and not is_bound:
        raise ListenError(_explain(address, missing))


def _explain(address: InternetAddress, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        other = address.port + 1 if address.port < 65535 else 8000
        return f"{address} is in use: stop the program that listens there, or use another port: --port {other}"
    if error.errno == errno.EACCES:
        return f"not allowed to listen on {address}: ports below 1024 need privileges; use another one: --port 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{address.host} is not an address of this machine; for every network write --host 0.0.0.0"
    return f"cannot listen on {address}: {_reason(error)}"


def _bind_unix(address: UnixPath, *, secure: bool, mode: int) -> Listener:
    if sys.platform == "win32" or not hasattr(socket, "AF_UNIX"):
        raise ListenError(f"cannot listen on {address}: this system has no Unix sockets; use --host and --port")
    path = Path(address.path).absolute()  # the app may change the directory
    with ExitStack() as undo:
        try:
            lock = _lock(address, path)
            undo.callback(_unlock, path, lock)
            _remove_stale(address)
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            # The umask sets the permissions of the file from the start, where ``chmod`` would change them a moment
            # later. A file that another thread makes meanwhile gets no more permissions either.
            umask = os.umask(0o777 & ~mode)
            try:
                sock.bind(address.path)
            finally:
                os.umask(umask)
            sock.setblocking(False)
            listener = Listener(sock, secure=secure, path=path, lock=lock)
        except OSError as error:
            raise ListenError(f"cannot listen on {address}: {_reason(error)}") from None
        undo.pop_all()
    if mode & stat.S_IWOTH:
        _log.warning(
            "every user of this machine can connect to %s (--unix-mode %o), and by default each is trusted like a "
            "proxy; --unix-mode 660 admits the group alone",
            address,
            mode,
        )
    return listener


def _lock(address: UnixPath, path: Path) -> TextIO:
    """
    Keep the path from every other server that asks here, until ``_unlock`` or the end of this process.

    A socket that is bound and does not listen yet looks like one whose program was killed: without the lock, of two
    servers that start at once the second would take the path away from the first.

    Source: PostgreSQL's ``.s.PGSQL.5432.lock``.
    """
    while True:
        file = os.fdopen(os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if isinstance(error, BlockingIOError):
                raise ListenError(_in_use(address)) from None
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), _lock_path(path).lstat()):
                return file
        file.close()  # its owner has removed the file after it was opened here


def _unlock(path: Path, lock: TextIO) -> None:
    _lock_path(path).unlink(missing_ok=True)
    lock.close()


def _lock_path(path: Path) -> Path:
    return Path(f"{path}.lock")


def _remove_stale(address: UnixPath) -> None:
    """Remove the socket of a program that was killed."""
    path = Path(address.path)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(
            f"cannot listen on {address}: expected a socket or nothing there, got another kind of "
            "file; remove it, or use another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError:
            pass  # a full backlog, or no permission: a program listens there
    raise ListenError(_in_use(address))


def _in_use(address: UnixPath) -> str:
    return f"{address} is in use: stop the program that listens there, or use another path"


def _inherit(address: FileDescriptor, *, secure: bool) -> Listener:
    try:
        sock = socket.socket(fileno=address.number)
    except OSError as error:
        raise ListenError(f"{address} is not a socket of this process: {_reason(error)}") from None
    if sock.type != socket.SOCK_STREAM:
        kind = sock.type
        sock.detach()
        raise ListenError(f"{address}: expected a stream socket, got {kind!s}")
    # Otherwise programs that the app starts, and the next program of this process, would keep it open.
    sock.set_inheritable(False)
    sock.setblocking(False)
    return Listener(sock, secure=secure)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
