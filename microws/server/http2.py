"""Hypercorn's HTTP/2, on both event loops, without what it gets wrong."""

from contextlib import suppress
from typing import Any, Final

import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hypercorn.events import Closed, Event
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol

__all__ = ["OwnProtocols"]

_CONNECT: Final = b"CONNECT"
_NOT_IMPLEMENTED: Final = b"501"
_ENABLE_CONNECT_PROTOCOL: Final = h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL


class OwnProtocols:
    """
    A part of Hypercorn's TCP server, before it among the bases: what it makes to speak a protocol becomes our own.

    Attributes:
        http1: What speaks HTTP/1.1.
    """

    http1: type[H11Protocol] = H11Protocol
    _wrapper: "_Wrapper"

    @property
    def protocol(self) -> ProtocolWrapper:
        """Of this connection."""
        return self._wrapper

    @protocol.setter
    def protocol(self, wrapper: Any) -> None:
        # Hypercorn has no other place for classes of one's own.
        protocol = vars(wrapper).pop("protocol")
        wrapper.__class__ = _Wrapper
        wrapper.http1 = self.http1
        wrapper.protocol = protocol
        self._wrapper = wrapper


class _Wrapper(ProtocolWrapper):
    http1: type[H11Protocol]
    _protocol: H11Protocol | H2Protocol

    @property
    def protocol(self) -> H11Protocol | H2Protocol:
        return self._protocol

    @protocol.setter
    def protocol(self, protocol: Any) -> None:
        # Set anew where a client turns from HTTP/1.1 to HTTP/2.
        protocol.__class__ = HTTP2 if isinstance(protocol, H2Protocol) else self.http1
        self._protocol = protocol


class HTTP2(H2Protocol):
    """
    HTTP/2 with WebSockets only where the settings say so, with no other CONNECT, and with an end for every app.

    Source: Hypercorn 0.18, protocol/h2.py:111, :143-150 and :326; RFC 8441 §3 and §4.
    """

    config: Any

    async def initiate(self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None) -> None:
        """Begin; with the request that asked for HTTP/2 in HTTP/1.1, if there was one."""
        if headers is not None and dict(headers)[b":method"].upper() == _CONNECT:
            raise h2.exceptions.ProtocolError("CONNECT with an upgrade to HTTP/2")
        if not self.config.http2_websockets:
            # Where it is enabled browsers take it for WebSockets.
            values: dict[Any, int] = {**self.connection.local_settings, _ENABLE_CONNECT_PROTOCOL: 0}
            self.connection.local_settings = h2.settings.Settings(client=False, initial_values=values)
        await super().initiate(headers, settings)

    async def handle(self, event: Event) -> None:
        """What came of the connection, or its end."""
        await super().handle(event)
        if isinstance(event, Closed):
            # Nothing is sent any more, and so nobody else wakes the apps that wait for room.
            for buffer in list(self.stream_buffers.values()):
                await buffer.close()

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        others = []
        refused: set[int] = set()
        for event in events:
            if isinstance(event, h2.events.RequestReceived) and self._is_unwanted(event):
                refused.add(event.stream_id)
                self._refuse(event.stream_id)
            elif getattr(event, "stream_id", None) not in refused:
                others.append(event)
            elif isinstance(event, h2.events.DataReceived):
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        await super()._handle_events(others)

    def _is_unwanted(self, request: h2.events.RequestReceived) -> bool:
        fields = dict(request.headers)
        if fields[b":method"].upper() != _CONNECT:
            return False
        return not self.config.http2_websockets or fields.get(b":protocol", b"").lower() != b"websocket"

    def _refuse(self, stream_id: int) -> None:
        # Unless the client has left the stream.
        with suppress(h2.exceptions.ProtocolError):
            self.connection.send_headers(stream_id, [(b":status", _NOT_IMPLEMENTED)], end_stream=True)
            # It may have more to send, which nobody reads.
            self.connection.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)
