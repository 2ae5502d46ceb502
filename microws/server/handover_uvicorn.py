"""Lets uvicorn speak HTTP/1.1, and takes each WebSocket from it: the only file that knows its insides."""

import asyncio
import re
import ssl
import sys
from collections import deque
from collections.abc import Awaitable
from email.utils import formatdate
from functools import partial
from typing import Any, Final

import anyio
import httptools
import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from microws.errors import FeatureUnavailable
from microws.interfaces import Event, Receive, Scope, Send
from microws.server.accepting import AcceptingServer
from microws.server.connections import CLOSE_TIMEOUT, Connections
from microws.server.deadlines import Deadlines
from microws.server.engines import Engines
from microws.server.hypercorn_setup import FIRST_REQUEST_TIMEOUT, HANDSHAKE_TIMEOUT
from microws.server.settings import MAX_HEAD_BYTES
from microws.server.upgrade import final_response, parse_upgrade

__all__ = ["UvicornServer", "check_uvicorn"]

# uvicorn waits for the client only before it sends something: so this, and as much in the transport, may wait for a
# client at the end of a response.
_PIECE_BYTES: Final = 64 << 10

# What this file knows is the same in all of them; older ones do not tell a client of the last response.
_KNOWN: Final = ((0, 53), (1, 0))
_USED_NAMES: Final = ("on_body", "on_headers_complete", "on_response_complete", "shutdown")

_BAD_REQUEST: Final = 400
_TOO_LARGE: Final = 431
_EMPTY: Final = ((b"content-length", b"0"),)


def check_uvicorn(version: str = uvicorn.__version__, protocol: type[asyncio.Protocol] = HttpToolsProtocol) -> None:
    """
    Make sure that this file knows the insides of the uvicorn that is installed.

    Args:
        version: Its own word.
        protocol: Its HTTP/1.1.

    Raises:
        FeatureUnavailable: It does not; the text says which uvicorn to install.
    """
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    missing = [name for name in _USED_NAMES if not hasattr(protocol, name)]
    if not _KNOWN[0] <= numbers < _KNOWN[1] or missing:
        lacking = f", without {', '.join(missing)}" if missing else ""
        raise FeatureUnavailable(
            f"expected uvicorn 0.53 or later, below 1, came {version}{lacking}: "
            "pip install 'microws[uvicorn]', or leave --server uvicorn out"
        )


class UvicornServer(AcceptingServer):
    """
    Lets uvicorn speak HTTP/1.1 on the connections, by httptools. Its own server has no part in it.

    Args:
        app: Called for each request.
        engines: Get the WebSockets.
        state: The lifespan's; each request gets a copy.
        tls: Speak TLS with it, and no HTTP/2.

    Source: uvicorn 0.54, protocols/http/httptools_impl.py and server.py.
    """

    def __init__(
        self,
        app: Connections,
        engines: Engines,
        *,
        state: dict[str, Any],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(app, engines, state=state, tls=tls)
        self._shared = _Shared(engines)
        if tls is not None:
            tls.set_alpn_protocols(["http/1.1"])
        # Silent: what is worth a line is logged by this package.
        self._config = Config(
            self._serve,
            http=_Http,
            ws=_Upgrading,
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(HANDSHAKE_TIMEOUT),
        )
        self._config.load()

    @property
    def open(self) -> int:
        """How many connections there are; one whose client has left is one as long as its app is at work."""
        return super().open + self._shared.open

    async def stop_listening(self) -> None:
        """Refuse new connections, and end each open one after the request that it is at."""
        await super().stop_listening()
        self._shared.shut_down()

    def disconnect(self) -> None:
        """Drop every connection at once. The apps are told that their clients have left."""
        self._shared.disconnect()
        super().disconnect()

    def cancel(self) -> None:
        """Cancel every app that is still at work for a connection."""
        for task in self._shared.tasks:
            task.cancel()
        super().cancel()

    async def _serve_http(self) -> None:
        while True:
            self._shared.set_date()
            await asyncio.sleep(1)

    async def _wait_http_closed(self) -> None:
        await self._shared.wait_closed()

    def _speak_http(self, transport: asyncio.Transport, data: bytes) -> None:
        http = _Http(self._config, self._shared, self._state)
        transport.set_protocol(http)
        http.connection_made(transport)
        if data:
            http.data_received(data)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, partial(_send, send))


class _Shared(ServerState):
    """
    What the connections of a worker share, besides what uvicorn has them share.

    Args:
        engines: Get the WebSockets.

    Attributes:
        is_stopping: No connection gets a further request.
        upgrading: The connections between uvicorn and the engine.
        waiting: How long a client has for a request, and for the next one.
        closing: How long it has to take what was sent last, and to come to the end of a request that was answered.
    """

    def __init__(self, engines: Engines) -> None:
        super().__init__()
        self.engines = engines
        self.is_stopping = False
        self.upgrading: set[_Upgrading] = set()
        self.waiting: Deadlines[_Http] = Deadlines(HANDSHAKE_TIMEOUT, self._close)
        self.closing: Deadlines[_Http] = Deadlines(CLOSE_TIMEOUT, _Http.abort)
        self._all_lost = anyio.Event()

    @property
    def open(self) -> int:
        return max(len(self.connections), len(self.tasks)) + len(self.upgrading)

    def set_date(self) -> None:
        """Have the responses from now on carry this time."""
        self.default_headers = [(b"date", formatdate(usegmt=True).encode())]

    def shut_down(self) -> None:
        """End each connection after the request that it is at."""
        self.is_stopping = True
        for connection in list(self.connections):
            connection.shutdown()

    async def wait_closed(self) -> None:
        while self.connections or self.tasks or self.upgrading:
            if self.tasks:
                await asyncio.wait(self.tasks)
                # Where all of them are done, that has not waited; and it is a turn later that they are taken out.
                await asyncio.sleep(0)
            else:
                self._all_lost = anyio.Event()
                await self._all_lost.wait()

    def disconnect(self) -> None:
        for connection in (*self.connections, *self.upgrading):
            connection.transport.abort()

    def lost(self, connection: "_Http") -> None:
        """Forget a connection, which has ended for uvicorn."""
        self.waiting.stop(connection)
        self.closing.stop(connection)
        if not self.connections:
            self._all_lost.set()

    def _close(self, connection: "_Http") -> None:
        connection.transport.close()
        self.closing.start(connection)


class _Http(HttpToolsProtocol):
    """
    One connection, as long as it speaks HTTP.

    uvicorn has no limit for the size of a head or trailer, nor for the time that one takes to come; it waits for ever
    for a client that does not take the last bytes; and of several requests at a time it tells the newest alone that the
    client has left.

    Source: uvicorn 0.54, protocols/http/httptools_impl.py:121-137,389-395.
    """

    server_state: _Shared

    def __init__(self, config: Config, server_state: _Shared, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        # In the order of their answers.
        self._unanswered: deque[Any] = deque()
        # What has come since the last that was neither part of a head nor of a trailer.
        self._head_bytes = 0
        self._is_last = False
        self.chunk = b""

    @property
    def is_answering(self) -> bool:
        """Whether there is a request without its whole answer."""
        return bool(self._unanswered)

    def abort(self) -> None:
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.server_state.waiting.start(self)
        if self.server_state.is_stopping:
            self.shutdown()

    def shutdown(self) -> None:
        """End the connection after the request that it is at; who has just connected has a moment for the first one."""
        if self.cycle is None and not self._is_last:
            self._is_last = True
            asyncio.get_running_loop().call_later(FIRST_REQUEST_TIMEOUT, self.shutdown)
        elif self in self.server_state.connections:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        self.chunk = data
        self._head_bytes += len(data)
        super().data_received(data)
        self.chunk = b""
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            self._unanswered.append(self.cycle)
            self.server_state.waiting.stop(self)
            self.server_state.closing.stop(self)
            if self.server_state.is_stopping:
                self.shutdown()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        cycle = self._unanswered.popleft()
        super().on_response_complete()
        if not self._unanswered:
            # What is left of a request is discarded as it comes.
            deadlines = self.server_state.closing if cycle.more_body else self.server_state.waiting
            deadlines.start(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        while self._unanswered:
            cycle = self._unanswered.popleft()
            cycle.disconnected = True
            cycle.message_event.set()
        self.server_state.lost(self)

    def _refuse_head(self) -> None:
        if self._unanswered:
            # No place for an answer, in the middle of another one.
            self.transport.abort()
        elif not self.transport.is_closing():
            self.transport.write(final_response(_TOO_LARGE, _EMPTY))
            self.transport.close()


class _HandedOver(Exception):
    """Why a connection has ended for uvicorn, which does not close it then."""


class _Upgrading(asyncio.Protocol):
    """
    Has a connection until uvicorn has let go of it: it sets the protocol of the transport once more, to this, when the
    request has been taken here.

    Args: as uvicorn gives them to the class that it is told of by ``ws=``.
    """

    transport: asyncio.Transport
    _http: _Http

    def __init__(self, config: Config, server_state: _Shared, app_state: dict[str, Any]) -> None:
        self._shared = server_state
        self._state = app_state
        self._request: bytes | None = None
        self._early = b""
        self._is_lost = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._http = transport.get_protocol()
        self._shared.upgrading.add(self)

    def data_received(self, data: bytes) -> None:
        if self._request is not None:
            self._early += data
            return
        self._request = data
        # What came in one piece with the request, uvicorn drops; its parser has just said where that begins.
        end = sys.exception()
        if isinstance(end, httptools.HttpParserUpgrade):
            self._early = self._http.chunk[end.args[0] :]
        asyncio.get_running_loop().call_soon(self._hand_over, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True

    def _hand_over(self, request: bytes) -> None:
        was_answering = self._http.is_answering
        self._shared.upgrading.discard(self)
        self._http.connection_lost(_HandedOver())
        if self._is_lost or self.transport.is_closing():
            return
        if was_answering:
            # The 101 would stand in the middle of another answer.
            self.transport.abort()
            return
        found = parse_upgrade(request)
        if found is None:
            # uvicorn takes some for a handshake that are none, such as a POST.
            self.transport.write(final_response(_BAD_REQUEST, _EMPTY))
            self.transport.close()
        else:
            self._shared.engines.take(self.transport, found[0], self._early, dict(self._state))


def _send(send: Send, event: Event) -> Awaitable[None]:
    # Nearly every event is small, and spared a coroutine.
    return _send_in_pieces(send, event) if len(event.get("body", b"")) > _PIECE_BYTES else send(event)


async def _send_in_pieces(send: Send, event: Event) -> None:
    body = event["body"]
    last = (len(body) - 1) // _PIECE_BYTES * _PIECE_BYTES
    for start in range(0, last, _PIECE_BYTES):
        await send({"type": event["type"], "body": body[start : start + _PIECE_BYTES], "more_body": True})
    await send({**event, "body": body[last:]})
