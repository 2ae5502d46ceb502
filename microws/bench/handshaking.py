"""
The client's side of the handshake: a request that is prepared once, and a strict look at its answer.

A general parser in Python would take ten times as long, and the generator would be slower than the servers it measures.
What refuses a handshake is read by h11.
"""

import base64
import hashlib
import secrets
from collections.abc import Sequence
from typing import final

import h11

from microws.bench.target import Target

__all__ = ["MAX_HEAD", "Handshake", "Refusal", "in_few_words"]

# Bytes of an answer's head.
MAX_HEAD = 1 << 16

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_TEXT = 100


@final
class Handshake:
    """
    Asks one URL for WebSockets.

    Args:
        headers: Further lines of the request; ``Host`` takes the place of the usual one.
        subprotocols: Offered, the best first.

    Source: RFC 6455 §4.1.
    """

    def __init__(
        self, target: Target, *, headers: Sequence[tuple[str, str]] = (), subprotocols: Sequence[str] = ()
    ) -> None:
        self._subprotocols = [name.encode() for name in subprotocols]
        lines = [f"GET {target.path} HTTP/1.1"]
        if not any(name.lower() == "host" for name, _ in headers):
            lines.append(f"Host: {target.authority}")
        lines += ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
        if subprotocols:
            lines.append(f"Sec-WebSocket-Protocol: {', '.join(subprotocols)}")
        lines += [f"{name}: {value}" for name, value in headers]
        self._start = "".join(f"{line}\r\n" for line in lines).encode() + b"Sec-WebSocket-Key: "

    def request(self) -> tuple[bytes, bytes]:
        """A request, and its key."""
        key = base64.b64encode(secrets.token_bytes(16))
        return b"%b%b\r\n\r\n" % (self._start, key), key

    def problem_with(self, head: bytes, key: bytes) -> str | None:
        """What is wrong with the head of a response of status 101; ``None``: nothing."""
        upgrade = connection = accept = b""
        subprotocols: list[bytes] = []
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            name = name.lower()
            if name == b"upgrade":
                upgrade += value.strip().lower()
            elif name == b"connection":
                connection += b"," + value.lower()
            elif name == b"sec-websocket-accept":
                accept += value.strip()
            elif name == b"sec-websocket-protocol":
                subprotocols.append(value.strip())
            elif name == b"sec-websocket-extensions":
                return "wrong handshake: an extension that was not offered"
        if upgrade != b"websocket":
            return "wrong handshake: no 'Upgrade: websocket'"
        if b"upgrade" not in (token.strip() for token in connection.split(b",")):
            return "wrong handshake: no 'Connection: Upgrade'"
        if accept != base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()):
            return "wrong handshake: Sec-WebSocket-Accept does not fit the key"
        if len(subprotocols) > 1 or not set(subprotocols) <= set(self._subprotocols):
            return "wrong handshake: a subprotocol that was not offered"
        return None


@final
class Refusal:
    """An answer that is no 101, as it comes."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._http.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
        self._http.send(h11.EndOfMessage())
        self._status = ""
        self._text = b""

    def feed(self, data: bytes) -> str | None:
        """Take the next bytes, ``b""`` for the end; in a few words what the answer was, when it has come whole."""
        try:
            self._http.receive_data(data)
            while (event := self._http.next_event()) is not h11.NEED_DATA and event is not h11.PAUSED:
                if isinstance(event, h11.Response):
                    self._status = f"HTTP {event.status_code}"
                elif isinstance(event, h11.Data):
                    self._text += event.data[:MAX_HEAD]
                elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                    break
            else:
                return None
        except h11.RemoteProtocolError:
            return self._status or "no answer in HTTP"
        return in_few_words(self._status, self._text)


def in_few_words(status: str, body: bytes) -> str:
    """A response that is an error; with the beginning of its body, unless that is a page."""
    text = " ".join(body[: 4 * _MAX_TEXT].decode(errors="replace").split())[:_MAX_TEXT]
    return f"{status}, {text!r}" if text and text.isprintable() and "<" not in text else status
