"""The sockets that a worker listens on: bound before the app starts, answering only after it has."""

import errno
import os
import socket
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from microws.server.settings import Address, FileDescriptor, InternetAddress, UnixPath

__all__ = ["BACKLOG", "ListenError", "Listener", "bind", "tls_context"]

# Connections that the kernel keeps while the worker is busy: Linux's own limit (net.core.somaxconn) since 5.4.
BACKLOG: Final = 4096


class ListenError(Exception):
    """An address, or a certificate, that cannot be had. The text is one line, with a hint."""


class Listener:
    """
    A bound socket. Until it listens, a client that connects is refused.

    Attributes:
        sock: The socket.
        url: How a client names it; the real port where port 0 was asked for.
    """

    def __init__(self, sock: socket.socket, *, secure: bool) -> None:
        self.sock = sock
        name = sock.getsockname()
        scheme = "https" if secure else "http"
        self._file: tuple[Path, tuple[int, int]] | None = None
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            self.url = f"{scheme}://{InternetAddress(name[0], name[1])}"
        else:
            self.url = f"{scheme}+unix:{name}" if secure else f"unix:{name}"

    def owns(self, path: Path) -> None:
        """Remove ``path``, the socket's file, at ``close``."""
        self._file = (path, _identity(path))

    def listen(self) -> None:
        """
        Let clients connect from now on.

        Raises:
            ListenError: Another program listens there; some systems say so only now.
        """
        try:
            self.sock.listen(BACKLOG)
        except OSError as error:
            raise ListenError(f"cannot listen on {self.url}: {_reason(error)}; {_OTHER_PORT}") from None

    def close(self) -> None:
        """Give the address back."""
        self.sock.close()
        if self._file is not None:
            path, identity = self._file
            self._file = None
            # Another process may have taken the path over in the meantime.
            if path.exists() and _identity(path) == identity:
                path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    # The number alone may have been used again.
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def bind(addresses: Sequence[Address], *, secure: bool = False) -> list[Listener]:
    """
    Take the addresses, all or none. A name with several numbers, as ``localhost`` is, takes each that there is.

    Args:
        addresses: Where to listen.
        secure: Whether TLS will be spoken; only the URLs say so.

    Raises:
        ListenError: In use, not allowed, not of this machine, no socket.
    """
    listeners: list[Listener] = []
    try:
        for address in addresses:
            match address:
                case InternetAddress():
                    listeners += _bind_internet(address, secure=secure)
                case UnixPath():
                    listeners.append(_bind_unix(address, secure=secure))
                case FileDescriptor():
                    listeners.append(_inherit(address, secure=secure))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def tls_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    """
    TLS 1.2 or later with forward secrecy; HTTP/2 and HTTP/1.1 by ALPN.

    Raises:
        ListenError: A file is missing, is no PEM, the key is encrypted, or not the certificate's.

    Source: RFC 9113 §9.2.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.set_alpn_protocols(["h2", "http/1.1"])
    for path in filter(None, (certfile, keyfile)):
        if not Path(path).is_file():
            raise ListenError(f"no file {path!r}: --certfile and --keyfile take PEM files")
    key = keyfile or certfile

    def refuse_encrypted() -> NoReturn:
        # OpenSSL would ask for it on the terminal, where a service has nobody to answer.
        raise ListenError(f"the key {key!r} is encrypted: make one that is not: openssl pkey -in {key} -out FILE")

    try:
        context.load_cert_chain(certfile, keyfile, password=refuse_encrypted)
        return context
    except ssl.SSLError:
        # OpenSSL's own words are such as "PEM lib".
        reason = _why_unusable(certfile, key)
    except OSError as error:
        reason = _reason(error)
    raise ListenError(f"cannot use the certificate {certfile!r} with the key {key!r}: {reason}")


def _why_unusable(certfile: str, keyfile: str) -> str:
    for path, kind in ((certfile, "certificate"), (keyfile, "private key")):
        if f"{kind.upper()}-----".encode() not in Path(path).read_bytes():
            return f"no PEM {kind} in {path!r}"
    return "one is damaged, or they do not belong together"


_OTHER_PORT = "take another one with --port"


def _bind_internet(address: InternetAddress, *, secure: bool) -> list[Listener]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ListenError(f"the host {address.host!r} is not known: {_reason(error)}") from None
    listeners: list[Listener] = []
    missing: OSError | None = None
    port = address.port
    for family, name in dict.fromkeys((info[0], info[4]) for info in found):
        sock: socket.socket | None = None
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            if os.name == "posix":  # on Windows, two servers could then listen on the same port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and len(found) > 1:
                # The IPv4 number of the same name has its own socket.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((name[0], port, *name[2:]))
        except OSError as error:
            if sock is not None:
                sock.close()
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for listener in listeners:
                    listener.close()
                raise ListenError(_explain(address, error)) from None
            missing = error
            continue
        sock.setblocking(False)
        listeners.append(Listener(sock, secure=secure))
        port = sock.getsockname()[1]
    if missing is not None and not listeners:
        raise ListenError(_explain(address, missing))
    return listeners


def _explain(address: InternetAddress, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        other = address.port + 1 if address.port < 65535 else 8000
        return f"{address} is in use: stop the program that listens there, or take another port: --port {other}"
    if error.errno == errno.EACCES:
        return f"not allowed to listen on {address}: ports below 1024 are the system's; take another one: --port 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{address.host} is no address of this machine; for every network write --host 0.0.0.0"
    return f"cannot listen on {address}: {_reason(error)}"


def _bind_unix(address: UnixPath, *, secure: bool) -> Listener:
    if not hasattr(socket, "AF_UNIX"):
        raise ListenError(f"cannot listen on {address}: this system has no Unix sockets; use --host and --port")
    path = Path(address.path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise ListenError(f"cannot listen on {address}: the file is there, and is no socket")
            if _answers(address.path):
                raise ListenError(f"{address} is in use: stop the program that listens there, or take another path")
            path.unlink()  # left behind by a program that was killed
        sock.bind(address.path)
        sock.setblocking(False)
        listener = Listener(sock, secure=secure)
        listener.owns(path.absolute())
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {address}: {_reason(error)}") from None
    except ListenError:
        sock.close()
        raise
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # a full backlog, or no permission: somebody is there
    return True


def _inherit(address: FileDescriptor, *, secure: bool) -> Listener:
    try:
        sock = socket.socket(fileno=address.number)
    except OSError as error:
        raise ListenError(f"{address} is no socket that this process has: {_reason(error)}") from None
    if sock.type != socket.SOCK_STREAM:
        kind = sock.type
        sock.detach()
        raise ListenError(f"{address}: expected a stream socket, came {kind!s}")
    sock.setblocking(False)
    return Listener(sock, secure=secure)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
