"""The servers, and a client that speaks to them."""

import re
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import anyio
import httpx
from serving import running
from websockets.asyncio.client import connect

HERE = Path(__file__).parent
# Seconds for what ought to take a fraction of one.
LIMIT = 10

# A handshake as bytes; the path is to be filled in.
UPGRADE = (
    b"GET %s HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def text_frame(text):
    """A short message of a client, as bytes. Its mask is zero."""
    data = text.encode()
    return bytes([0x81, 0x80 | len(data), 0, 0, 0, 0]) + data


class Program(NamedTuple):
    """
    A server's command line, and what is true of it alone.

    Attributes:
        command: To which the app and its address are added.
        bind: The address's flags.
        knows_close: Whether it passes on the client's close code and reason.
        has_engine: Whether its WebSockets are microws's own; otherwise they are Hypercorn's or uvicorn's.
        exit_code: After SIGTERM. uvicorn ends by the signal.
        noise: What it raises by itself, and logs, when a client leaves; a regular expression.
    """

    command: tuple[str, ...]
    bind: tuple[str, ...] = ("--port", "0")
    knows_close: bool = False
    has_engine: bool = False
    exit_code: int = 0
    noise: str = r"(?!)"


def _microws(loop):
    return Program(("microws", "run", "--loop", loop), has_engine=True, knows_close=True)


def _microws_by_hypercorn(loop):
    # It keeps a task of each WebSocket that has ended until its next ping is due.
    command = ("microws", "run", "--server", "hypercorn", "--loop", loop, "--ping-interval", "1", "--keep-alive", "1")
    # On trio it closes a connection while another of its tasks sends on it, and then has to be started again.
    return Program(command, noise=r"trio\.BusyResourceError" if loop == "trio" else r"(?!)")


def _uvicorn(protocol):
    # The protocol "websockets" is deprecated; a warning is no failure here.
    return Program(
        ("uvicorn", "--ws", protocol, "--timeout-keep-alive", "1"),
        knows_close=True,
        exit_code=-15,
        noise=r"RuntimeError: Cannot call write\(\) after write_eof" if protocol == "websockets" else r"(?!)",
    )


PROGRAMS = {
    "microws-asyncio": _microws("asyncio"),
    "microws-uvloop": _microws("uvloop"),
    "microws-hypercorn": _microws_by_hypercorn("auto"),
    "microws-trio": _microws_by_hypercorn("trio"),
    "hypercorn": Program(("hypercorn", "--keep-alive", "1"), bind=("--bind", "127.0.0.1:0")),
    "uvicorn-sansio": _uvicorn("websockets-sansio"),
    "uvicorn-wsproto": _uvicorn("wsproto"),
    "uvicorn-websockets": _uvicorn("websockets"),
}


@contextmanager
def started(name, app="everything:app", *arguments):
    """The server of that name in a process of its own."""
    program = PROGRAMS[name]
    with running([sys.executable, "-m", *program.command, *program.bind, *arguments, app], cwd=HERE) as server:
        server.name = name
        server.program = program
        yield server


def failures(server):
    """The last line of each traceback in the server's log but those that the app raises on purpose."""
    found = []
    is_within = False
    for line in server.output:
        if line.startswith("Traceback "):
            is_within = True
        elif is_within and line and not line.startswith(" "):
            is_within = False
            if not re.match(rf"everything\.Expected\b|{server.program.noise}", line):
                found.append(line)
    return found


class Client:
    """Speaks HTTP and WebSocket to one server."""

    def __init__(self, server, http):
        self.server = server
        self.http = http

    @classmethod
    @asynccontextmanager
    async def of(cls, server):
        """Each of its HTTP requests has a connection of its own."""
        options = {"headers": {"connection": "close"}, "trust_env": False, "verify": False}
        async with httpx.AsyncClient(base_url=server.url, timeout=LIMIT, **options) as http:
            yield cls(server, http)

    def connect(self, path, **options):
        """A WebSocket, as the library ``websockets`` speaks it."""
        options = {"open_timeout": LIMIT, "close_timeout": LIMIT, "proxy": None} | options
        return connect(self.server.ws_url + path, **options)

    async def note(self, name):
        """What the view has noted, or will."""
        return (await self.http.get(f"/notes/{name}")).json()

    async def statistics(self):
        try:
            response = await self.http.get("/statistics")
        except httpx.TransportError:
            # On trio Hypercorn starts again when one connection fails, and answers nothing on the others.
            if self.server.name != "microws-trio":
                raise
            response = await self.http.get("/statistics")
        return response.json()

    async def wait_until_at_rest(self):
        """Until the server has no more open than before the first test: 15 s at most, thrice a client's time to go."""
        at_rest = self.server.at_rest
        statistics = await self.statistics()
        end = time.monotonic() + 15
        while any(statistics[name] > at_rest[name] for name in at_rest) and time.monotonic() < end:
            await anyio.sleep(0.02)
            statistics = await self.statistics()
        assert {name: max(at_rest[name], statistics[name]) for name in at_rest} == at_rest, (statistics, at_rest)

    async def look_at_rest(self):
        """What the server has open when nobody but this client is there; on trio a little more or less."""
        seen = [await self.statistics() for _ in range(20)]
        self.server.at_rest = {name: max(statistics[name] for statistics in seen) for name in seen[0]}


@asynccontextmanager
async def tcp(server):
    """A TCP connection."""
    async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        yield stream


async def read_response(stream, data=b"", *, has_body=True):
    """A response's status, headers and body; with ``has_body=False`` what came behind its head."""
    with anyio.fail_after(LIMIT):
        while b"\r\n\r\n" not in data:
            data += await stream.receive()
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        while has_body and len(rest) < int(headers["content-length"]):
            rest += await stream.receive()
    return int(first.split(" ")[1]), headers, rest


async def wait_until_dropped(stream):
    """Until the server has ended the connection; what it sends before that is not looked at."""
    with anyio.fail_after(LIMIT), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            await stream.receive()
