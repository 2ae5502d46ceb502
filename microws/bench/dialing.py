"""TCP connections to one server, with TLS where its URL says so; and one line about why there is none."""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeVar, cast, final

from microws.bench.target import Target

__all__ = ["Dialer", "Line", "Refused", "reason_of"]

_L = TypeVar("_L", bound="Line")


class Refused(Exception):
    """There is no connection. The text is a reason of a few words: equal ones are counted together."""


class Line(asyncio.Protocol):
    """
    One TCP connection.

    Attributes:
        opened: Done when there is something to be used; fails with ``Refused``.
        ended: Done when nothing is left of it.
        is_writable: Whether what is written is taken at once.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.is_writable = True
        self._transport: asyncio.Transport | None = None
        self._is_aborted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's does not inherit from it.
        self._transport = cast("asyncio.Transport", transport)
        if self._is_aborted:
            # Whoever asked for it was cancelled meanwhile.
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.refuse(reason_of(error))
        self.ended.set_result(None)

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True

    def write(self, data: bytes) -> None:
        """Send; what is written after the end is lost."""
        if self._transport is not None:
            self._transport.write(data)

    def refuse(self, reason: str) -> None:
        """It cannot be used, and will be closed; says nothing where it is in use."""
        if not self.opened.done():
            self.opened.set_exception(Refused(reason))

    def hang_up(self) -> None:
        """Close it when all is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop it, with what is not sent."""
        self._is_aborted = True
        if self._transport is not None:
            self._transport.abort()


@final
class Dialer:
    """
    Connects to one server again and again; its name is looked up once.

    Args:
        insecure: Take any certificate.
        timeout: Seconds for one connection, the name, TLS and the handshake above it included.
    """

    def __init__(self, target: Target, *, insecure: bool = False, timeout: float) -> None:
        self.target = target
        self.timeout = timeout
        self._addresses: list[str] = []
        self._tls: ssl.SSLContext | None = None
        if target.is_secure:
            self._tls = ssl.create_default_context()
            if insecure:
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE

    async def connect(self, make: Callable[[], _L]) -> _L:
        """
        A connection that can be used.

        Raises:
            Refused: There is none, or not in time.
        """
        line: _L | None = None

        def remember() -> _L:
            nonlocal line
            line = make()
            return line

        try:
            async with asyncio.timeout(self.timeout):
                await self._dial(remember)
                assert line is not None
                await line.opened
                return line
        except BaseException as error:
            # Cancelled, too: nobody else knows of it.
            if line is not None:
                line.abort()
            if isinstance(error, TimeoutError):
                raise Refused(f"no answer within {self.timeout:g} s") from None
            if isinstance(error, OSError):
                raise Refused(reason_of(error)) from None
            raise

    async def _dial(self, make: Callable[[], Line]) -> None:
        target = self.target
        loop = asyncio.get_running_loop()
        if not self._addresses:
            found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            self._addresses = [str(entry[4][0]) for entry in found]
        options: dict[str, Any] = {}
        if self._tls is not None:
            options = {"ssl": self._tls, "server_hostname": target.host}
        while True:
            try:
                await loop.create_connection(make, self._addresses[0], target.port, **options)
                return
            except ConnectionRefusedError:
                # "localhost" may be ::1 and 127.0.0.1, of which the server has one.
                if len(self._addresses) == 1:
                    raise
                del self._addresses[0]


def reason_of(error: BaseException | None) -> str:
    """What an ``OSError`` says, in a few words."""
    if error is None:
        return "closed by the server"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason.replace('_', ' ').lower()}"
    if isinstance(error, socket.gaierror):
        return "unknown host"
    if isinstance(error, OSError) and error.errno is not None:
        return _WORDS.get(error.errno) or os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


_WORDS = {errno.ECONNREFUSED: "connection refused", errno.ECONNRESET: "connection reset by the server"}
