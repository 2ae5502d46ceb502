"""``microws connect``: talks to a WebSocket, or reads server-sent events."""

import asyncio
import codecs
import io
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import h11
from websockets.headers import build_host
from websockets.uri import WebSocketURI
from wsproto import ConnectionType, WSConnection, events
from wsproto.connection import ConnectionState
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from microws.bench.connection import FAILURES, reason_of
from microws.bench.plan import parse_url
from microws.cli.screen import Screen
from microws.cli.urls import url_option
from microws.cli.usage import HEADER, NON_NEGATIVE_SECONDS, SUBPROTOCOL, Parser, UsageError, option
from microws.closing import CloseCode, check_close
from microws.codec import loads_json
from microws.hints import did_you_mean
from microws.testing.streams import EventParser

__all__ = ["connect", "connect_parser"]

# Seconds for the handshake, for the answer to a Close frame, and for messages after the last one that was sent. The
# last as in wscat.
_CONNECT_TIMEOUT: Final = 10.0
_CLOSE_TIMEOUT: Final = 5.0
_WAIT: Final = 2.0
_COMMANDS: Final = ("/ping", "/close", "/bin")
# Bytes of the body of a refusal that are shown; RFC 6455 §5.5 limits a ping.
_MAX_BODY: Final = 4096
_MAX_PING: Final = 125
# What to do about a refusal.
_HINTS: Final = {
    401: "to log in: -H 'Authorization: Bearer TOKEN'",
    500: "see the server's log",
    503: "try again, or see the server's log",
}


_URL: Final = url_option(
    "a URL such as ws://127.0.0.1:8000/chat, or http://127.0.0.1:8000/events for server-sent events", "(ws|http)s?"
)
_ORIGIN: Final = option("an origin such as https://app.example", r"[!-~]+")


def connect_parser() -> Parser:
    """The parser of ``microws connect``."""
    parser = Parser(
        prog="microws connect",
        usage="microws connect URL [options]",
        description="Talk to a WebSocket: each line is a message. Or read the server-sent events of an http URL.",
        epilog="At the prompt: /ping [TEXT] sends a ping, /close [CODE [REASON]] closes, /bin FILE sends the bytes "
        "of a file, //text sends /text, and Ctrl-D closes. If the input is a pipe, its lines are sent. Exit code 0: "
        "closed with 1000, or the stream ended; 1: closed with another code, refused, or not connected; 2: a mistake "
        "in the command.",
    )
    add = parser.add_argument
    add("url", metavar="URL", type=_URL, help="begins with ws://, wss://, http:// or https://")
    add("-H", "--header", action="append", type=HEADER, metavar="'NAME: VALUE'", help="to send; may be repeated")
    add("-s", "--subprotocol", action="append", type=SUBPROTOCOL, metavar="NAME", help="to offer; may be repeated")
    add("-o", "--origin", type=_ORIGIN, metavar="ORIGIN", help="to send, as browsers do: https://app.example")
    add("-x", "--send", action="append", metavar="MSG", help="send this and read no input; may be repeated")
    wait = "seconds to read after -x or the end of a pipe, default 2; of an event stream: in all, default unlimited"
    add("-w", "--wait", type=NON_NEGATIVE_SECONDS, metavar="SECS", help=wait)
    add("--json", action="store_true", help="send only messages that are JSON")
    add("--binary", action="store_true", help="send binary messages")
    add("--insecure", action="store_true", help="accept any certificate, such as a self-signed one")
    return parser


def connect(flags: Mapping[str, Any]) -> int:
    """
    Talk to a WebSocket or read a stream until it ends. Ctrl-C closes it; a second one ends the command immediately.

    Args:
        flags: The flags that were given, parsed.

    Returns:
        0 after a close with 1000, or the end of a stream; else 1.

    Raises:
        UsageError: A mistake in the command, or in what it has to send.
    """
    url = flags["url"]
    is_stream = url.startswith("http")
    for name in ("subprotocol", "send", "json", "binary") if is_stream else ():
        if name in flags:
            raise UsageError(f"--{name}: expected a URL that begins with ws, got {url}")
    if flags.keys() >= {"json", "binary"}:
        raise UsageError("expected --json or --binary, got both; leave out one of them")
    screen = Screen()
    try:
        return asyncio.run(_read_stream(flags, screen) if is_stream else _Conversation(flags, screen).run())
    except _Refused as refusal:
        screen.error(str(refusal))
    except BrokenPipeError:
        # Whoever read stdout has ended. Python would complain when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (*FAILURES, RemoteProtocolError) as error:
        screen.error(_why_not(error, parse_url(url)))
    finally:
        screen.close()
    return 1


class _Refused(Exception):
    """The server answers, but not with what the command needs. The body may follow the first line."""


class _Conversation:
    """One WebSocket, and who talks to it."""

    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter

    def __init__(self, flags: Mapping[str, Any], screen: Screen) -> None:
        self._flags = flags
        self._uri = parse_url(flags["url"])
        self._screen = screen
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._pinged = 0.0

    async def run(self) -> int:
        """Connect, talk and close; the exit code."""
        async with _connected(self._uri, self._flags) as (self._reader, self._writer):
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                await self._open()
            return await self._talk()

    async def _talk(self) -> int:
        receiver, sender = asyncio.create_task(self._receive()), asyncio.create_task(self._send_all())
        try:
            await asyncio.wait([receiver, sender], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # Ctrl-C. The second one ends the command.
            pass
        sender.cancel()
        await self._write(events.CloseConnection(CloseCode.NORMAL_CLOSURE))
        await asyncio.wait([receiver, sender], timeout=_CLOSE_TIMEOUT)
        if not sender.cancelled():
            sender.result()
        if not receiver.done():
            receiver.cancel()
            raise _Refused(f"the server did not answer the Close frame within {_CLOSE_TIMEOUT:g} seconds")
        code, reason = receiver.result()
        name = f" ({CloseCode(code).name.lower().replace('_', ' ')})" if code in list(CloseCode) else ""
        text = f"closed with {code:d}{name}{reason and ': '}{reason}"
        if code == CloseCode.NORMAL_CLOSURE:
            self._screen.note(text)
            return 0
        self._screen.error(text)
        return 1

    async def _open(self) -> None:
        host, headers = _headers(self._uri, self._flags)
        offered = self._flags.get("subprotocol", [])
        await self._write(events.Request(host, self._uri.resource_name, subprotocols=offered, extra_headers=headers))
        refusal, body = events.RejectConnection(), b""
        while len(body) < _MAX_BODY:
            match await self._next_event():
                case events.AcceptConnection(subprotocol=subprotocol):
                    hint = (
                        "; Ctrl-D closes, /ping, /close and /bin FILE are commands"
                        if self._screen.is_interactive
                        else ""
                    )
                    self._screen.note(f"connected{f' with {subprotocol}' if subprotocol else ''}{hint}")
                    return
                case events.RejectConnection() as refusal:
                    pass
                case events.RejectData(data=data, body_finished=is_whole):
                    body += data
                    if is_whole:
                        break
        raise _refusal("refused the handshake", self._flags["url"], refusal.status_code, refusal.headers, body)

    async def _receive(self) -> tuple[int, str]:
        """Show what arrives; the close code and the reason."""
        parts: list[Any] = []
        while True:
            match await self._next_event():
                case events.Message(data=data, message_finished=is_whole) as message:
                    parts.append(data)
                    if is_whole:
                        self._screen.show(("" if isinstance(message, events.TextMessage) else b"").join(parts))
                        parts.clear()
                case events.Ping() as ping:
                    await self._write(ping.response())
                case events.Pong():
                    self._screen.note(f"pong after {(time.monotonic() - self._pinged) * 1000:.1f} ms")
                case events.CloseConnection(code=code, reason=reason) as close:
                    await self._write(close.response())
                    return code, reason or ""

    async def _next_event(self) -> events.Event:
        while (event := next(self._protocol.events(), None)) is None:
            data = b""
            with suppress(OSError):  # a reset is an end, too
                data = await self._reader.read(1 << 16)
            if not data and self._protocol.state is ConnectionState.CONNECTING:
                raise _Refused("the server closed the connection before it answered the handshake")
            self._protocol.receive_data(data or None)
        return event

    async def _write(self, event: events.Event) -> None:
        """Send an event, unless the connection is closed."""
        with suppress(LocalProtocolError, OSError):
            self._writer.write(self._protocol.send(event))
            await self._writer.drain()

    async def _send_all(self) -> None:
        if self._screen.is_interactive and "send" not in self._flags:
            await _for_each(self._screen.lines(), self._obey)
            return
        for message in self._flags.get("send", ()):
            await self._send(message)
        if "send" not in self._flags:
            await _for_each(_piped_lines(), self._send)
        await asyncio.sleep(self._flags.get("wait", _WAIT))

    async def _send(self, message: str | bytes) -> None:
        if "binary" in self._flags:
            await self._write(events.BytesMessage(os.fsencode(message)))
            return
        try:
            # Python reads other bytes of the terminal and the command line as lone surrogates.
            text = os.fsencode(message).decode()
            if "json" in self._flags:
                loads_json(text)
        except UnicodeDecodeError:
            raise UsageError(f"expected a message in UTF-8, got {message!r:.99}; for bytes: --binary") from None
        except ValueError as error:
            raise UsageError(f"expected a message that is JSON, got {message!r:.99}: {error}") from None
        await self._write(events.TextMessage(text))

    async def _obey(self, line: str) -> None:
        """Do what a line at the prompt says."""
        command, _, rest = line.partition(" ")
        try:
            if command == "/ping":
                self._pinged = time.monotonic()
                await self._write(events.Ping(rest.encode()[:_MAX_PING]))
            elif command == "/close":
                code, _, reason = rest.partition(" ")
                if not (code or "1000").isdecimal():
                    raise UsageError(f"expected /close [CODE [REASON]], got {line!r}")
                check_close(int(code or 1000), reason)
                await self._write(events.CloseConnection(int(code or 1000), reason))
            elif command == "/bin":
                await self._write(events.BytesMessage(Path(rest).expanduser().read_bytes()))  # noqa: ASYNC240
            elif command.startswith("/") and not command.startswith("//"):
                raise UsageError(
                    f"there is no command {command}{did_you_mean(command, _COMMANDS)}; to send it: /{line}"
                )
            elif line:
                await self._send(line.removeprefix("/"))
        except OSError as error:
            self._screen.error(f"/bin FILE: {error.strerror}: {rest!r}")
        except (UsageError, ValueError) as error:
            self._screen.error(str(error))


async def _for_each(lines: Iterator[Any], handle: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    """Read lines in a thread, which ends with the process, and handle one after the other."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def end(error: Exception | None) -> None:
        if error is not None and not ended.done():
            ended.set_exception(error)
        elif not ended.done():
            ended.set_result(None)

    def read() -> None:
        failure = None
        try:
            for line in lines:
                asyncio.run_coroutine_threadsafe(handle(line), loop).result()
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop may be closed
            loop.call_soon_threadsafe(end, failure)

    threading.Thread(target=read, daemon=True).start()
    await ended


def _piped_lines() -> Iterator[bytes]:
    # Not sys.stdin: a thread that waits in its buffer would keep the process from ending.
    rest = b""
    while data := os.read(sys.stdin.fileno(), 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    if rest:
        yield rest


async def _read_stream(flags: Mapping[str, Any], screen: Screen) -> int:
    """Show the events of a stream until it ends; the exit code."""
    uri = parse_url(flags["url"])
    http = h11.Connection(h11.CLIENT)
    host, headers = _headers(uri, flags)
    head = [(b"Host", host.encode()), (b"Accept", b"text/event-stream"), (b"Cache-Control", b"no-store"), *headers]
    async with _connected(uri, flags) as (reader, writer):

        async def next_event() -> Any:
            while (event := http.next_event()) is h11.NEED_DATA:
                http.receive_data(await reader.read(1 << 16))
            return event

        async with asyncio.timeout(_CONNECT_TIMEOUT):
            request = h11.Request(method="GET", target=uri.resource_name, headers=head)
            writer.write((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
            while isinstance(response := await next_event(), h11.InformationalResponse):
                pass
            kind = dict(response.headers).get(b"content-type", b"none").decode()
            if response.status_code != 200 or not kind.startswith("text/event-stream"):
                body = b""
                while len(body) < _MAX_BODY and isinstance(part := await next_event(), h11.Data):
                    body += part.data
                what = f"expected a text/event-stream, got {kind}"
                raise _refusal(what, flags["url"], response.status_code, response.headers, body)
        screen.note("connected; Ctrl-C ends")
        try:
            async with asyncio.timeout(flags.get("wait")) as limit:
                await _show_events(next_event, screen)
        except TimeoutError:
            if not limit.expired():
                raise
        except h11.RemoteProtocolError:
            raise _Refused("the server broke off the stream") from None
    return 0


async def _show_events(next_part: Callable[[], Awaitable[Any]], screen: Screen) -> None:
    parser, rest = EventParser(), ""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")("replace"), translate=True)
    while isinstance(part := await next_part(), h11.Data):
        *lines, rest = (rest + decoder.decode(bytes(part.data))).split("\n")
        for event in filter(None, map(parser.feed, lines)):
            kind = "" if event.event == "message" else event.event
            screen.show(event.data, about=" ".join(filter(None, (kind, event.id))))


@asynccontextmanager
async def _connected(
    uri: WebSocketURI, flags: Mapping[str, Any]
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    tls = ssl.create_default_context() if uri.secure else None
    if tls and "insecure" in flags:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    async with asyncio.timeout(_CONNECT_TIMEOUT):
        reader, writer = await asyncio.open_connection(uri.host, uri.port, ssl=tls)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


def _headers(uri: WebSocketURI, flags: Mapping[str, Any]) -> tuple[str, list[tuple[bytes, bytes]]]:
    """The value of ``Host``, and the other headers of the user."""
    given = [*flags.get("header", ()), *([("Origin", flags["origin"])] if "origin" in flags else [])]
    hosts = [value for name, value in given if name.lower() == "host"]
    others = [(name.encode(), value.encode()) for name, value in given if name.lower() != "host"]
    return (hosts or [build_host(uri.host, uri.port, uri.secure)])[0], others


def _refusal(what: str, url: str, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> _Refused:
    phrase = HTTPStatus(status).phrase if status in list(HTTPStatus) else ""
    location = dict(headers).get(b"location", b"").decode(errors="replace")
    other = _HINTS.get(status, "")
    if url.startswith("ws") and (status == 405 or status < 300):
        other = f"if it has server-sent events: microws connect http{url[2:]}"
    elif url.startswith("http") and status == 426:
        other = f"for a WebSocket: microws connect ws{url[4:]}"
    elif location:
        other = f"it redirects to {location}"
    elif status == 403 and body.startswith(b"origin not allowed"):
        other = "to allow it: App(origins=[…]), as the server's log says"
    elif status == 404:
        method = "WS" if url.startswith("ws") else "GET"
        other = f"to see what is near: microws routes chat:app {method} {urlsplit(url).path or '/'}"
    text = body[:_MAX_BODY].decode(errors="replace").strip()
    return _Refused(f"{status} {phrase}: {what}{other and '; '}{other}" + (text and f"\n{text}"))


def _why_not(error: BaseException, uri: WebSocketURI) -> str:
    """Why there is no connection, and what to do."""
    reason = reason_of(error)
    if "Connect call failed" in str(error):
        reason = "nothing answers there; to start an app: microws run chat:app"
    elif isinstance(error, ssl.SSLCertVerificationError):
        reason += "; to accept any certificate: --insecure"
    elif isinstance(error, ssl.SSLError):
        reason += "; a server without TLS has a URL that begins with ws:// or http://"
    elif isinstance(error, socket.gaierror):
        reason += "; see the name in the URL"
    return f"{build_host(uri.host, uri.port, False)}: {reason}"
