"""The outgoing side of a connection on a transport."""

import asyncio
from collections.abc import Callable

__all__ = ["Writable"]


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
