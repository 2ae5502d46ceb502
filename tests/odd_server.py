"""A WebSocket server that does what a test wants of it, right or wrong; and measuring it."""

import asyncio
from contextlib import asynccontextmanager

from wsproto.utilities import generate_accept_token

from microws.bench.plan import Plan
from microws.bench.run import measure
from microws.bench.target import Target
from microws.framing import BINARY, CLOSE, PONG, TEXT, Close, Ping, encode_close, encode_frame
from microws.framing.parser import FrameParser

# Seconds for a whole test.
LIMIT = 20
WS = ("ws", "wss", "http", "https")


class Gone(Exception):
    """The client has sent a Close frame, or nothing more."""


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
                    raise Gone
            data = await self.reader.read(1 << 16)
            if not data:
                raise Gone
            self._incoming += self._parser.feed(data)

    async def leave(self, code=1000, reason=""):
        """Begin to close, and wait for the client to follow."""
        self.write(encode_close(code, reason))
        while True:
            await self.receive()

    def abort(self):
        self.writer.transport.abort()


async def echo(peer):
    """What all of them ought to do."""
    peer.accept()
    await reflect(peer)


async def reflect(peer):
    """The same, after the handshake."""
    while True:
        peer.send(await peer.receive())


class Serving:
    """
    A server that serves.

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
        """Until every view has ended."""
        while self.tasks:
            await asyncio.wait(self.tasks)

    def stop(self):
        """Listen no more, and drop everybody."""
        self._server.close()
        for peer in self.peers:
            peer.abort()


@asynccontextmanager
async def serving(view, *, answers_close=True):
    """``view`` is called with each connection, when its request is there; at its end the connection is closed."""

    async def connected(peer):
        try:
            await peer.read_request()
            await view(peer)
        except Gone:
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
            # Loops close what was aborted in their next turn.
            await asyncio.sleep(0)
    assert not served.failures, repr(served.failures)


def plan_for(port, path="/", **options):
    """A short run."""
    publish = options.pop("publish", None)
    scheme = options.pop("scheme", "ws")
    if publish is not None:
        options["publish"] = Target.parse(publish.format(port=port), schemes=WS)
    target = Target.parse(f"{scheme}://127.0.0.1:{port}{path}", schemes=WS)
    usual = {"connections": 3, "seconds": 0.15, "warm_up": 0.02, "timeout": 5.0, "open_timeout": 10.0}
    return Plan(target=target, **(usual | options))


async def measured(port, path="/", *, stop=None, told=None, **options):
    """The result of a short run."""
    return await measure(plan_for(port, path, **options), told=told or (lambda _: None), stop=stop or asyncio.Event())
