"""A WebSocket client that does only what it is told: it may not answer, not read, or send nonsense."""

import socket
import struct
from contextlib import asynccontextmanager

import anyio
import wsproto
from anyio.abc import SocketAttribute
from wsproto.events import AcceptConnection, CloseConnection, Message, Ping, RejectConnection, RejectData, Request


class RawWebSocket:
    """``stream`` is the TCP connection, for what wsproto would not do."""

    def __init__(self, stream):
        self.stream = stream
        self.events = []
        self._protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)

    async def handshake(self, path="/", host="127.0.0.1", headers=(), subprotocols=()):
        extra = [(name.encode(), value.encode()) for name, value in headers]
        request = Request(host=host, target=path, extra_headers=extra, subprotocols=list(subprotocols))
        await self.stream.send(self._protocol.send(request))
        return await self.next_event(AcceptConnection, RejectConnection)

    async def send(self, event):
        await self.stream.send(self._protocol.send(event))

    async def send_text(self, text):
        await self.send(Message(data=text))

    async def next_event(self, *kinds):
        """The next event of one of these kinds; others are passed over, pings too, unanswered."""
        with anyio.fail_after(10):
            while True:
                while self.events:
                    event = self.events.pop(0)
                    if isinstance(event, kinds):
                        return event
                self._protocol.receive_data(await self.stream.receive())
                self.events += self._protocol.events()

    async def closed(self, *, answer=True):
        """The server's Close frame, answered or not."""
        event = await self.next_event(CloseConnection)
        if answer:
            await self.send(event.response())
        return event.code, event.reason

    async def next_ping(self):
        return await self.next_event(Ping)

    async def rejection(self, reject):
        """Status and body of a handshake that was refused."""
        body = b""
        if reject.has_body:
            while not (data := await self.next_event(RejectData)).body_finished:
                body += data.data
            body += data.data
        return reject.status_code, body


@asynccontextmanager
async def connected(port, path="/", subprotocols=()):
    """A connection whose handshake was accepted. Leaving resets it."""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        ws = RawWebSocket(stream)
        answer = await ws.handshake(path, subprotocols=subprotocols)
        assert isinstance(answer, AcceptConnection), answer
        yield ws


async def reset(stream):
    """Leave at once, with a RST in place of a FIN."""
    linger = struct.pack("ii", 1, 0)
    stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    await stream.aclose()
