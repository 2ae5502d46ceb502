"""A WebSocket server that answers as a test tells it to, right or wrong; and a short run of ``microws bench``."""

import asyncio
from contextlib import asynccontextmanager

from wsproto.utilities import generate_accept_token

from microws.bench.plan import Plan
from microws.bench.run import measure
from microws.framing.frames import BINARY, CLOSE, PONG, TEXT, Close, Ping, encode_close, encode_frame
from microws.framing.parser import FrameParser

# Seconds for a whole test.
LIMIT = 20


class ClientDisconnected(Exception):
    """The client has sent a Close frame or ended the connection."""


class Peer:
    """The server's side of one connection."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer
        self.request = b""
        self.path = ""
        self.close = None
        self._parser = FrameParser(max_message_size=1 << 24)
        self._incoming = []

    async def read_request(self):
        self.request = await self.reader.readuntil(b"\r\n\r\n")
        self.path = self.request.split(b" ")[1].decode()

    def header(self, name):
        """A header of the request."""
        for line in self.request.split(b"\r\n"):
            key, _, value = line.partition(b":")
            if key.lower() == name:
                return value.strip()
        return None

    def accept(self, extra=b"", *, upgrade=b"websocket", connection=b"Upgrade", token=None):
        token = token or generate_accept_token(self.header(b"sec-websocket-key"))
        self.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: %b\r\nconnection: %b\r\n"
            b"sec-websocket-accept: %b\r\n%b\r\n" % (upgrade, connection, token, extra)
        )

    def write(self, data):
        self.writer.write(data)

    def answer(self, status, body=b"", extra=b""):
        """An HTTP response."""
        self.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), extra, body))

    def send(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        self.write(encode_frame(data, BINARY if isinstance(text, bytes) else TEXT))

    async def receive(self):
        """The next message."""
        while True:
            while self._incoming:
                event = self._incoming.pop(0)
                if isinstance(event, str | bytes):
                    return event
                if isinstance(event, Ping):
                    self.write(encode_frame(event.payload, PONG))
                elif isinstance(event, Close):
                    self.close = event
                    raise ClientDisconnected
            data = await self.reader.read(1 << 16)
            if not data:
                raise ClientDisconnected
            self._incoming += self._parser.feed(data)

    async def leave(self, code=1000, reason=""):
        """Send a Close frame, and wait for the client's."""
        self.write(encode_close(code, reason))
        while True:
            await self.receive()

    def abort(self):
        self.writer.transport.abort()


async def echo(peer):
    """Accept, and send back each message."""
    peer.accept()
    await reflect(peer)


async def reflect(peer):
    """Send back each message."""
    while True:
        peer.send(await peer.receive())


class Serving:
    """
    A running server.

    Attributes:
        peers: Every connection so far.
        failures: What the views raised.
    """

    def __init__(self, server):
        self.port = server.sockets[0].getsockname()[1]
        self.peers = []
        self.failures = []
        self.tasks = set()
        self._server = server

    async def wait_ended(self):
        """Wait until every view has ended."""
        while self.tasks:
            await asyncio.wait(self.tasks)

    def stop(self):
        """Stop listening, and drop all connections."""
        self._server.close()
        for peer in self.peers:
            peer.abort()


@asynccontextmanager
async def serving(view, *, answers_close=True):
    """``view`` is called with each connection after its request; then the connection is closed."""

    async def connected(peer):
        try:
            await peer.read_request()
            await view(peer)
        except ClientDisconnected:
            if peer.close is not None and answers_close:
                peer.write(encode_frame(b"" if peer.close.code is None else peer.close.code.to_bytes(2), CLOSE))
            elif peer.close is not None:
                await asyncio.sleep(LIMIT)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as error:
            served.failures.append(error)
        finally:
            peer.writer.close()

    def start(reader, writer):
        peer = Peer(reader, writer)
        served.peers.append(peer)
        task = asyncio.get_running_loop().create_task(connected(peer))
        served.tasks.add(task)
        task.add_done_callback(served.tasks.discard)

    async with asyncio.timeout(LIMIT):
        server = await asyncio.start_server(start, "127.0.0.1", 0)
        served = Serving(server)
        try:
            yield served
        finally:
            for task in served.tasks:
                task.cancel()
            await asyncio.gather(*served.tasks, return_exceptions=True)
            served.stop()
            # Event loops close aborted transports in their next iteration.
            await asyncio.sleep(0)
    assert not served.failures, repr(served.failures)


def plan_for(port, path="/", *, scheme="ws", publish="", **options):
    """A short run."""
    usual = {"connections": 3, "seconds": 0.15, "warm_up": 0.02, "timeout": 5.0}
    publish = publish.replace("{port}", str(port))
    return Plan(url=f"{scheme}://127.0.0.1:{port}{path}", publish=publish, **(usual | options))


async def measured(port, path="/", *, status=lambda text: None, **options):
    """The result of a short run."""
    return await measure(plan_for(port, path, **options), status)
