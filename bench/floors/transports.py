"""
What a fan-out costs on an event loop: one ``transport.write`` for each message and connection, and nothing else.

``python -m bench.floors.transports PORT asyncio|uvloop``. It does as much of the protocol as the load generator needs:
whole, masked frames of less than 64 KiB.
"""

import asyncio
import base64
import hashlib
import sys

import uvloop

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
KEY = b"\r\nSec-WebSocket-Key: "
JSON = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 27\r\n\r\n" + b'{"message":"Hello, World!"}'
)
UPGRADE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n"
)
CLOSE = 8

writes = set()  # of the subscribers


class Connection(asyncio.Protocol):
    """``/sub`` gets what is sent to ``/pub``, any other path its own messages back."""

    def connection_made(self, transport):
        self.transport = transport
        self.write = transport.write
        self.path = None
        self.held = b""

    def connection_lost(self, error):
        writes.discard(self.write)

    def data_received(self, data):
        data = self.held + data
        taken = 0
        while more := self.take_request(data, taken) if self.path is None else self.take_frame(data, taken):
            taken += more
        self.held = data[taken:]

    def take_request(self, data, start):
        """The size of the request at ``start``, which it answers; 0 when it is not complete."""
        end = data.find(b"\r\n\r\n", start)
        if end < 0:
            return 0
        at = data.find(KEY, start, end)
        if at < 0:
            self.write(JSON)
        else:
            at += len(KEY)
            key = data[at : data.index(b"\r", at)]
            self.write(UPGRADE % base64.b64encode(hashlib.sha1(key + GUID).digest()))
            self.path = data[start:end].split(b" ", 2)[1]
            if self.path == b"/sub":
                writes.add(self.write)
        return end + 4 - start

    def take_frame(self, data, start):
        """The size of the frame at ``start``, which it passes on; 0 when it is not complete."""
        if len(data) < start + 6:
            return 0
        head, length = 6, data[start + 1] & 127
        if length == 126:
            head, length = 8, int.from_bytes(data[start + 2 : start + 4], "big")
        content = start + head
        if len(data) < content + length:
            return 0
        mask = (data[content - 4 : content] * (length // 4 + 1))[:length]
        message = int.from_bytes(data[content : content + length], "big") ^ int.from_bytes(mask, "big")
        extended = length.to_bytes(2, "big") if head == 8 else b""
        frame = bytes((data[start], 126 if extended else length)) + extended + message.to_bytes(length, "big")
        if data[start] & 15 == CLOSE:
            self.write(frame)
            self.transport.close()
        elif self.path == b"/pub":
            for write in writes:
                write(frame)
        else:
            self.write(frame)
        return head + length


async def main(port):
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    run = {"asyncio": asyncio.run, "uvloop": uvloop.run}[sys.argv[2]]
    run(main(int(sys.argv[1])))
