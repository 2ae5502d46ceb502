"""The same conversation with one server, held by clients that others have made."""

import asyncio
import base64
import json
import os
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import aiohttp
import anyio.from_thread
import pytest
from websockets.asyncio.client import connect
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode
from websockets.uri import parse_uri

HERE = Path(__file__).parent
NODE = HERE / "node"
CERTIFICATE = HERE.parent / "tls" / "localhost.pem"

# Seconds for what ought to take a fraction of one.
LIMIT = 15


class Conversation(NamedTuple):
    """What a client saw: the subprotocol or ``""``, the messages that came back, and how the connection was closed."""

    subprotocol: str
    received: list[str | bytes]
    code: int
    reason: str


# Each client sends the messages, the next one when the last has come back, then closes with the code and the reason, or
# waits until the server closes.


def websockets(url, *, subprotocols=(), messages=(), close=None):
    """
    Python's ``websockets``, on asyncio.

    Its client in threads may lose a request: two threads use one TLS connection, which Python 3.11 does not lock.
    """

    async def converse():
        options = {"ssl": _tls()} if url.startswith("wss") else {}
        options |= {"proxy": None, "open_timeout": LIMIT, "close_timeout": LIMIT, "max_size": None}
        received = []
        async with asyncio.timeout(LIMIT), connect(url, subprotocols=subprotocols or None, **options) as ws:
            for message in messages:
                await ws.send(message)
                received.append(await ws.recv())
            if close is not None:
                await ws.close(*close)
            else:
                with pytest.raises(ConnectionClosed):
                    await ws.recv()
            return Conversation(ws.subprotocol or "", received, ws.close_code, ws.close_reason)

    with anyio.from_thread.start_blocking_portal() as portal:
        return portal.call(converse)


def aiohttp_client(url, *, subprotocols=(), messages=(), close=None):
    """``aiohttp``, which shows the reason of a close that the server began, and no other."""

    async def converse():
        received = []
        reason = ""
        async with (
            asyncio.timeout(LIMIT),
            aiohttp.ClientSession() as session,
            session.ws_connect(url, protocols=subprotocols, ssl=_tls() if url.startswith("wss") else True) as ws,
        ):
            for message in messages:
                await (ws.send_str(message) if isinstance(message, str) else ws.send_bytes(message))
                received.append((await ws.receive()).data)
            if close is not None:
                await ws.close(code=close[0], message=close[1].encode())
            else:
                end = await ws.receive()
                assert end.type is aiohttp.WSMsgType.CLOSE
                reason = end.extra
        return Conversation(ws.protocol or "", received, ws.close_code, reason)

    # In a thread of its own: the browser's event loop runs in this one.
    with anyio.from_thread.start_blocking_portal() as portal:
        try:
            return portal.call(converse)
        finally:
            # It closes transports later than itself, as its own guide has it: "Graceful shutdown".
            portal.call(asyncio.sleep, 0.25)


def _tls():
    return ssl.create_default_context(cafile=CERTIFICATE)


def node(package):
    """The client that is the WebSocket of a package for Node."""

    def converse(url, *, subprotocols=(), messages=(), close=None):
        answer = subprocess.run(
            ["node", NODE / "main.js", package],
            input=json.dumps(_as_json(url, subprotocols, messages, close)),
            env=os.environ | {"NODE_EXTRA_CA_CERTS": str(CERTIFICATE)},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=2 * LIMIT,
            check=False,
        )
        assert (answer.returncode, answer.stderr) == (0, "")
        return _from_json(json.loads(answer.stdout))

    return converse


def browser(page):
    """The client that is the WebSocket of a browser, in a page of the server's own origin."""
    page.add_script_tag(path=NODE / "converse.js")

    def converse(url, *, subprotocols=(), messages=(), close=None):
        request = _as_json(url, subprotocols, messages, close)
        return _from_json(page.evaluate("request => converse(WebSocket, request)", request))

    return converse


def _as_json(url, subprotocols, messages, close):
    return {
        "url": url,
        "subprotocols": list(subprotocols),
        "messages": [
            {"text": message} if isinstance(message, str) else {"base64": base64.b64encode(message).decode()}
            for message in messages
        ],
        "close": close,
        "limit": LIMIT,
    }


def _from_json(seen):
    received = [
        message["text"] if "text" in message else base64.b64decode(message["base64"]) for message in seen["received"]
    ]
    return Conversation(**seen | {"received": received})


def curl(url, *, subprotocols=(), sent=b""):
    """
    ``curl``, which knows WebSocket from version 8.11 only, and not enough of it to talk: it makes the request, sends
    bytes right behind it, and shows what comes. ``websockets`` makes the one and reads the other.
    """
    protocol = ClientProtocol(parse_uri(url), subprotocols=subprotocols or None, max_size=None)
    request = protocol.connect()
    protocol.send_request(request)
    # What is no body is to have no headers of one.
    headers = [f"{name}: {value}" for name, value in request.headers.raw_items() if name != "Host"]
    headers += ["Content-Length:", "Content-Type:", "Expect:"]
    command = [
        *("curl", "--silent", "--show-error", "--include", "--no-buffer", "--http1.1", "--noproxy", "*"),
        *("--max-time", str(LIMIT), "--cacert", CERTIFICATE),
        *("--request", "GET", "--data-binary", "@-"),
        *(option for header in headers for option in ("--header", header)),
        url.replace("ws", "http", 1),
    ]
    with subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        # It reads all of its input before it connects.
        process.stdin.write(sent)
        process.stdin.close()
        # It does not answer a Close frame: that is the end here.
        while protocol.close_rcvd is None and (data := process.stdout.read(1 << 16)):
            protocol.receive_data(data)
        process.kill()
    protocol.receive_eof()
    assert protocol.handshake_exc is None
    _, *frames = protocol.events_received()
    received = [_message(frame) for frame in frames if frame.opcode in (Opcode.TEXT, Opcode.BINARY)]
    return Conversation(protocol.subprotocol or "", received, protocol.close_code, protocol.close_reason)


def _message(frame):
    assert frame.fin
    return frame.data.decode() if frame.opcode is Opcode.TEXT else bytes(frame.data)
