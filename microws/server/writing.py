"""The outgoing side of a connection on a transport, and of a WebSocket there."""

import asyncio
import select
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from microws.deflate import Deflater
from microws.framing import BINARY, PING, PONG, TEXT, encode_frame, encode_head
from microws.state import CLOSED, CONNECTING, OPEN

__all__ = ["Addresses", "Writable", "Writing", "addresses_of", "is_ready", "socket_of"]

# From here on a payload is not copied behind its head.
_BIG_BYTES: Final = 64 << 10


Addresses: TypeAlias = tuple[tuple[str, int] | None, tuple[str, int] | None]


class Writable(asyncio.Protocol):
    """
    A connection that is written to. Of its methods only those that say so wait.

    Attributes:
        is_writable: Whether the client takes what is sent: otherwise it piles up here.
        on_writable: Called when ``is_writable`` has become true again.
        buffered: Bytes that were sent and that the system has not taken yet.
        socket: The descriptor of the connection's socket; ``None`` over TLS, and after the end.
        write: Send bytes that are encoded already. Not after the end.
    """

    __slots__ = ("_change", "_transport", "buffered", "is_writable", "on_writable", "socket", "write")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.is_writable = True
        self.on_writable: Callable[[], None] | None = None
        self._transport = transport
        # The transport's own methods: a broadcast calls them for each connection.
        self.write = transport.write
        self.buffered = transport.get_write_buffer_size
        self.socket: int | None = None
        # Of ``is_writable``, and of what a subclass has its own methods wait for.
        self._change: asyncio.Event | None = None

    @property
    def is_lost(self) -> bool:
        """Whether ``connection_lost`` comes next. Nothing is to be written: asyncio would log it."""
        return self._transport.is_closing()

    async def wait_writable(self) -> None:
        """Wait until the client has taken most of what was sent, or has left."""
        while not self.is_writable and not self._has_ended:
            await self._wait_change()

    @property
    def _has_ended(self) -> bool:
        """Whether nothing more can be sent."""
        return self.socket is None and self._transport.is_closing()

    def pause_writing(self) -> None:
        """What was sent piles up."""
        self.is_writable = False

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        self.is_writable = True
        self._tell_change()
        if self.on_writable is not None:
            self.on_writable()

    async def _wait_change(self) -> None:
        if self._change is None:
            self._change = asyncio.Event()
        await self._change.wait()

    def _tell_change(self) -> None:
        if self._change is not None:
            self._change.set()
            self._change = None


class Writing(Writable):
    """
    Sends frames. Of its methods only those that say so wait.

    Args:
        transport: Of the connection.

    Attributes:
        state: ``CLOSING`` while this side has closed and the client has not yet.
        carried: While middleware is sent a published message: its payload, and the frame of it.
        unwritten: The frames of those that have come through unchanged, and are about to be written to many connections
            at once; ``None`` unless that is under way.
    """

    __slots__ = ("_deflater", "_late_pong", "carried", "state", "unwritten")

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.socket = socket_of(transport)
        self.state = CONNECTING
        self.carried: tuple[str | bytes, bytes, str] | None = None
        self.unwritten: list[bytes] | None = None
        self._deflater: Deflater | None = None
        self._late_pong: bytes | None = None

    def send_message(self, payload: str | bytes) -> None:
        """Send a message; ``is_writable`` says whether the next one should wait. Only while the state is ``OPEN``."""
        if self.is_lost:
            return
        opcode = BINARY
        if isinstance(payload, str):
            payload, opcode = payload.encode(), TEXT
        if self._deflater is not None and (deflated := self._deflater.deflate(payload)) is not None:
            self.write(encode_frame(deflated, opcode, compressed=True))
        elif len(payload) < _BIG_BYTES:
            self.write(encode_frame(payload, opcode))
        else:
            # Not by ``writelines``: asyncio's before 3.12.9 and 3.13.2 never pauses the protocol, CVE-2024-12254.
            self.write(encode_head(len(payload), opcode))
            self.write(payload)

    def takes_carried(self, payload: str | bytes) -> bool:
        """Whether ``payload`` is what is ``carried``, and is written later. If not, what came before it is written."""
        carried = self.carried
        if carried is not None and payload is carried[0] and self.unwritten is not None:
            self.carried = None
            self.unwritten.append(carried[1])
            return True
        self.write_unwritten()
        return False

    def write_unwritten(self) -> None:
        """Write what has come through middleware, here alone."""
        if self.unwritten:
            if not self.is_lost:
                self.write(b"".join(self.unwritten))
            self.unwritten.clear()

    @property
    def _has_ended(self) -> bool:
        return self.state is CLOSED

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        if self._late_pong is not None and self.state is OPEN:
            self._transport.write(encode_frame(self._late_pong, PONG))
        self._late_pong = None
        super().resume_writing()

    def ping(self) -> None:
        """Ask the client for a sign of life."""
        if self.state is OPEN and self.is_writable:
            self._transport.write(encode_frame(b"", PING))

    def _answer(self, payload: bytes) -> None:
        if self.state is not OPEN:
            return
        if self.is_writable:
            self._transport.write(encode_frame(payload, PONG))
        else:
            # RFC 6455 §5.5.3: only the latest ping needs an answer.
            self._late_pong = payload


def socket_of(transport: asyncio.Transport) -> int | None:
    """The descriptor of the socket that gets what is written to ``transport`` as it is."""
    if transport.get_extra_info("sslcontext") is not None:
        return None
    socket = transport.get_extra_info("socket")
    return None if socket is None else socket.fileno()


def addresses_of(transport: asyncio.Transport) -> Addresses:
    """Host and port of the client, and of the server; ``None`` on a Unix socket."""
    return _address(transport.get_extra_info("peername")), _address(transport.get_extra_info("sockname"))


def _address(name: Any) -> tuple[str, int] | None:
    return (name[0], name[1]) if isinstance(name, tuple) else None


def is_ready(transport: asyncio.Transport, event: int) -> bool:
    """Whether the system has news of a connection: ``event`` is one of ``select.POLLIN`` and its kin."""
    socket = transport.get_extra_info("socket")
    if socket is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(socket.fileno(), event)
    return bool(poll.poll(0))
