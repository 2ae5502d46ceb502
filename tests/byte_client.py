"""A client that sends and reads bytes, and does nothing on its own. A test fails if it waits for anything in vain."""

import socket
import struct
import time
from contextlib import suppress
from typing import NamedTuple

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "LIMIT",
    "PING",
    "PONG",
    "TEXT",
    "ByteClient",
    "Frame",
    "close_frame",
    "frame",
    "parse_head",
    "upgrade",
]

# Seconds. What a test waits for should take a fraction of one.
LIMIT = 10

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def upgrade(path, *fields, version=13):
    """
    A handshake.

    Args:
        fields: More lines of the head, as ``"x-name: value"``.
    """
    lines = (
        f"GET {path} HTTP/1.1",
        "host: x",
        "upgrade: websocket",
        "connection: upgrade",
        f"sec-websocket-version: {version}",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
        *fields,
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def frame(payload, opcode=TEXT, *, final=True, compressed=False):
    """A client's frame, masked with zeros. ``payload`` is text, bytes, or the length of one that is sent later."""
    data = b"" if isinstance(payload, int) else payload.encode() if isinstance(payload, str) else payload
    length = payload if isinstance(payload, int) else len(data)
    first = opcode | (0x80 if final else 0) | (0x40 if compressed else 0)
    if length < 126:
        head = struct.pack("!BB", first, 0x80 | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", first, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, length)
    return head + bytes(4) + data


def close_frame(code, reason=""):
    """A client's Close frame."""
    return frame(struct.pack("!H", code) + reason.encode(), CLOSE)


class Frame(NamedTuple):
    """A frame of the server."""

    opcode: int
    payload: bytes
    is_compressed: bool


def parse_head(head):
    """Status and headers of a response."""
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}


class ByteClient:
    """
    A TCP connection to 127.0.0.1. Leaving its block closes it.

    Args:
        receive_buffer: Size of the kernel's buffer in bytes; a small one for a client that does not read.

    Raises:
        AssertionError: The expected data did not arrive within ``LIMIT`` seconds, or the connection ended before.
    """

    def __init__(self, port, *, receive_buffer=None):
        self._data = b""
        self.sock = socket.socket()
        self.sock.settimeout(LIMIT)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.connect(("127.0.0.1", port))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def reset(self):
        """Close with a RST in place of a FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def send(self, data):
        """Send all of ``data``. The test fails if the server does not read it or has ended the connection."""
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise AssertionError(f"the server did not read what was sent: {error!r}") from None

    def open(self, path, *fields):
        """Open the WebSocket, which must be accepted. Returns the headers of the response."""
        self.send(upgrade(path, *fields))
        status, headers = self.read_head()
        assert status == 101, f"expected 101 for {path}, got {status}"
        return headers

    def read_head(self):
        """Status and headers of a response."""
        while b"\r\n\r\n" not in self._data:
            self._receive()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        return parse_head(head)

    def read_bytes(self, size):
        """Read exactly ``size`` bytes."""
        while len(self._data) < size:
            self._receive()
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def read_frame(self):
        """The server's next frame."""
        first, second = self.read_bytes(2)
        assert second < 128, "a server must not mask frames"
        length = second
        if length > 125:
            length = int.from_bytes(self.read_bytes(2 if length == 126 else 8))
        return Frame(first & 15, self.read_bytes(length), bool(first & 0x40))

    def read_message(self):
        """The next frame that is not a Ping."""
        while (received := self.read_frame()).opcode == PING:
            pass
        return received

    def read_close(self):
        """Code and reason of the server's Close frame. Frames before it are discarded."""
        while (received := self.read_frame()).opcode != CLOSE:
            pass
        code = int.from_bytes(received.payload[:2]) if received.payload else None
        return code, received.payload[2:].decode()

    def wait_dropped(self, *, within=LIMIT):
        """The seconds until the server has ended the connection. What it sends before is discarded."""
        began = time.monotonic()
        while (left := began + within - time.monotonic()) > 0:
            self.sock.settimeout(left)
            with suppress(TimeoutError):
                try:
                    if not self.sock.recv(1 << 16):
                        return time.monotonic() - began
                except ConnectionError:
                    return time.monotonic() - began
        raise AssertionError(f"the connection is still open after {within} s")

    def _receive(self):
        try:
            data = self.sock.recv(1 << 16)
        except OSError as error:
            raise AssertionError(f"got nothing from the server: {error!r}") from None
        assert data, f"the server ended the connection after {self._data!r}"
        self._data += data
