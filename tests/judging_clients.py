"""Clients that check what the hub sends them, on either kind of connection."""

import asyncio
import json
import zlib
from collections import Counter, deque
from math import inf

from byte_client import BINARY, CLOSE, TEXT, close_frame, frame

from microws.connection.asgi import ASGIConnection
from microws.connection.socket import SocketConnection
from microws.hub import MAX_PART_BYTES
from microws.state import State
from microws.upgrade import Upgrade

__all__ = ["MAX_HEAD", "TOPICS", "UNLIMITED", "ASGIEnd", "Client", "Message", "SocketEnd", "value_of"]

TOPICS = {
    "close": {"queue": 8, "overflow": "close"},
    "oldest": {"queue": 3, "overflow": "drop_oldest"},
    "newest": {"queue": 2, "overflow": "drop_newest"},
    "latest": {"queue": 2, "overflow": "latest", "key": "key"},
    "last": {"queue": 1, "overflow": "latest"},
}
# Of a frame's head, and of the head of the 101.
MAX_HEAD = 512
UNLIMITED = 1 << 40


class Message:
    """
    A message that was published or sent. One counter numbers both.

    Attributes:
        returned: Number of the next message when ``ws.send`` returned. This one must arrive before that one.
        is_optional: Whether the send was cancelled or raised, so that the message may arrive or not.
    """

    def __init__(self, number, value, *, topic=None, key=None):
        self.number = number
        self.value = value
        self.topic = topic
        self.key = key
        self.returned = inf
        self.is_optional = False


class Client:
    """
    One connection as its client sees it, and what must arrive.

    Attributes:
        expected: Numbers of the messages published to each topic while it was subscribed.
        sends: Messages that its view has sent.
        got: Received messages, and topics for their gap markers.
        end: The received close code, or the status of a refused handshake.
        was_stalled: Whether it was ever slow, or not yet accepted, while subscribed to a topic.
    """

    def __init__(self, machine, number, *, path, early, is_quick):
        self.machine = machine
        self.path = path
        self.codec, _, gaps = path.partition("-")
        self.has_gaps = bool(gaps)
        self.early = early
        self.go = asyncio.Event()
        self.ws = None
        self.target = f"/{path}?n={number}"
        self.expected = {topic: [] for topic in TOPICS}
        self.subscribed = set()
        self.sends = []
        self.tasks = []
        self.got = []
        self.end = None
        self.has_left = False
        self.is_accepted = False
        self.was_stalled = bool(early) or not is_quick
        self._last_published = self._last_sent = -1

    # Received messages

    def get(self, data, *, is_text):
        """A data frame, or its event."""
        try:
            self._get(data, is_text=is_text)
        except Exception as error:
            # The caller may take the exception for a failure of the network.
            self.machine.failures.append(error)
            raise

    def _get(self, data, *, is_text):
        assert self.is_accepted
        assert self.end is None, "a message after the Close frame"
        value = self._decoded(data, is_text=is_text)
        if isinstance(value, dict) and value.get("gap"):
            assert self.has_gaps
            assert value == {"topic": value["topic"], "gap": True}
            self.got.append(value["topic"])
            return
        message = self.machine.messages[number_of(value)]
        assert value == message.value
        assert is_text is not isinstance(value, bytes)
        self._judge_order(message)
        self.got.append(message)

    def _decoded(self, data, *, is_text):
        if not is_text:
            return data
        if self.codec == "json" or data.startswith("{"):
            return json.loads(data)
        return data

    def _judge_order(self, message):
        number = message.number
        if message.topic is None:
            assert number > self._last_sent, "a send twice, or after a later one"
            assert self._last_published < message.returned, "a send after a message that was published later"
            self._last_sent = number
            return
        assert number > self._last_published, "a message twice, or after a later one"
        assert number > self._last_sent, "a message after a later send"
        for send in self.sends:
            if self._last_sent < send.number and send.returned <= number:
                assert send.is_optional, "a message before an earlier send"
        self._last_published = number

    def get_end(self, code):
        assert self.end is None
        self.end = code

    # Checks

    def is_open(self):
        """Whether published messages reach it."""
        return self.ws is not None and not self.ws.closed

    def is_whole(self):
        """Whether no pending message was dropped: it is connected, or was closed after all of them."""
        if self.has_left or not self.is_accepted:
            return False
        return self.end in (1000, 4000) or (self.end is None and self.is_open())

    def judge(self):
        """Check that each loss has a gap marker. Returns the number of lost messages by policy."""
        lost = Counter()
        if self.is_whole():
            arrived = {message.number for message in self.got if isinstance(message, Message)}
            for send in self.sends:
                assert send.number in arrived or send.is_optional, "a send is lost"
        for topic in TOPICS:
            lost[TOPICS[topic]["overflow"]] += self._judge_topic(topic)
        return lost

    def _judge_topic(self, topic):
        waiting = deque(self.expected[topic])
        lost, was_told, total = [], False, 0
        for item in self.got:
            if item == topic:
                was_told = True
            elif isinstance(item, Message) and item.topic == topic:
                while waiting[0] != item.number:
                    lost.append(waiting.popleft())
                self._judge_loss(topic, lost, was_told=was_told)
                waiting.popleft()
                total += len(lost)
                lost, was_told = [], False
        lost = list(waiting)
        if self.is_whole():
            # Without a later message a gap marker is optional, but it needs a loss.
            assert lost or not was_told
            assert not lost or topic != "close"
        return total + len(lost)

    def _judge_loss(self, topic, lost, *, was_told):
        policy = TOPICS[topic]["overflow"]
        assert lost or not was_told, "a gap marker without a loss"
        if policy == "close":
            assert not lost
        elif policy == "latest":
            lost = [number for number in lost if not self._is_outdated(topic, number)]
        if self.has_gaps:
            assert was_told or not lost, f"a silent loss of {lost}"

    def _is_outdated(self, topic, number):
        """Whether a later message with the same key replaces it."""
        messages = self.machine.messages
        later = [other for other in self.expected[topic] if other > number]
        return any(messages[other].key == messages[number].key for other in later)


class SocketEnd(asyncio.Transport):
    """
    A client as the transport of a socket. It pauses writing above its high-water mark, as uvloop does.

    Args:
        high_water: Bytes.
        chunk: Bytes that the client reads in one turn of the event loop, the first of them at once.
    """

    def __init__(self, client, loop, *, high_water, chunk, inflates):
        super().__init__()
        self.client = client
        self.is_stalled = False
        self._loop = loop
        self._high_water = high_water
        self._chunk = chunk
        self._inflater = zlib.decompressobj(-15) if inflates else None
        self._buffer = bytearray()
        self._largest = 0
        self._last = b""
        self._has_overrun = self._has_close = False
        self._is_paused = self._is_moving = self._has_eof = self._is_closing = self._is_lost = self._is_aborted = False
        self._incoming = bytearray()

    def connect(self, machine):
        fields = {
            "host": "x",
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-version": "13",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        if self._inflater is not None:
            fields["sec-websocket-extensions"] = "permessage-deflate"
        headers = [(name.encode(), value.encode()) for name, value in fields.items()]
        machine.websockets.take(self, Upgrade(self.client.target.encode(), headers, dict(headers)), b"", {})

    # A transport

    def set_protocol(self, protocol):
        self._protocol = protocol

    def is_closing(self):
        return self._is_closing

    def get_write_buffer_size(self):
        return len(self._buffer)

    def pause_reading(self):
        raise AssertionError("paused reading, though the client sends almost nothing")

    def write(self, data):
        assert not self._has_eof
        assert isinstance(data, bytes)
        if not data or self._is_lost or self._is_aborted:
            return
        self._largest = max(self._largest, len(data))
        # The payload of a large send follows its head.
        if self._is_paused and not (len(self._last) == 10 and self._last[1] == 127):
            self._has_overrun = True
        self._last = data
        if not self.is_stalled and not self._buffer:
            taken, data = data[: self._chunk], data[self._chunk :]
            self._feed(taken)
        self._buffer += data
        if self._buffer:
            self._move_soon()
            if len(self._buffer) > self._high_water and not self._is_paused:
                self._is_paused = True
                self._protocol.pause_writing()

    def resume_reading(self):
        """Nothing: the client says too little for a pause."""

    def can_write_eof(self):
        return True

    def write_eof(self):
        self._has_eof = True
        self._move_soon()

    def close(self):
        self._is_closing = True
        self._move_soon()

    def abort(self):
        self._is_aborted = True
        self._buffer.clear()
        self.close()

    # The network

    def _move_soon(self):
        if not self._is_moving and not self._is_lost:
            self._is_moving = True
            self._loop.call_soon(self._move)

    def _move(self):
        self._is_moving = False
        if not self.is_stalled:
            taken = bytes(self._buffer[: self._chunk])
            del self._buffer[: self._chunk]
            self._feed(taken)
            if self._is_paused and len(self._buffer) <= self._high_water // 4:
                self._is_paused = False
                self._protocol.resume_writing()
        if self._buffer:
            if not self.is_stalled:
                self._move_soon()
        elif self._is_closing:
            self._lose()
        elif self._has_eof:
            self._protocol.eof_received()
            self.close()

    def _lose(self):
        if not self._is_lost:
            self._is_lost = True
            self._protocol.connection_lost(None)

    # The client

    def stall(self):
        self.is_stalled = True

    def resume(self):
        self.is_stalled = False
        self._move_soon()

    def say(self, text):
        if not self._is_closing:
            self._protocol.data_received(frame(text))

    def leave(self, *, orderly):
        self.client.has_left = True
        if orderly and not self._is_closing:
            self._protocol.data_received(close_frame(1000))
        else:
            self.abort()

    def _feed(self, data):
        self._incoming += data
        if not self.client.is_accepted and not self._read_head():
            return
        while (received := self._next_frame()) is not None:
            self._take(*received)

    def _read_head(self):
        head, end, rest = bytes(self._incoming).partition(b"\r\n\r\n")
        if end:
            status = int(head.split(b" ")[1])
            if status == 101:
                self.client.is_accepted = True
                self._incoming = bytearray(rest)
            else:
                assert not rest
                self.client.get_end(status)
                self._incoming.clear()
        return self.client.is_accepted

    def _next_frame(self):
        data = self._incoming
        size = data[1] if len(data) > 1 else 0
        start = 2
        if size > 125:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start])
        if len(data) < max(2, start) or len(data) < start + size:
            return None
        assert data[0] & 0x80, "a message in fragments"
        first, payload = data[0], bytes(data[start : start + size])
        del data[: start + size]
        return first, payload

    def _take(self, first, payload):
        if first & 0x40:
            payload = self._inflater.decompress(payload + b"\x00\x00\xff\xff")
        assert not self._has_close, "a frame after the Close frame"
        opcode = first & 15
        if opcode == CLOSE:
            self._has_close = True
            code = int.from_bytes(payload[:2])
            if not self.client.has_left:
                self.client.get_end(code)
                self._loop.call_soon(self._answer, code)
        elif not self.client.has_left:
            assert opcode in (TEXT, BINARY)
            self.client.get(payload.decode() if opcode == TEXT else payload, is_text=opcode == TEXT)

    def _answer(self, code):
        if not self._is_closing:
            self._protocol.data_received(close_frame(code))

    # Checks

    def judge_bounds(self):
        transport = self.client.ws._connection
        assert isinstance(transport, SocketConnection)
        if transport.state is State.OPEN:
            # Only a close may write while writing is paused.
            assert not self._has_overrun
            assert len(self._buffer) <= self._high_water + self._largest + MAX_HEAD
            assert self._largest <= MAX_PART_BYTES + self.client.machine.largest + MAX_HEAD


class ClientDisconnected(OSError):
    """What ``send`` raises after the client has disconnected."""


class ASGIEnd:
    """A client of an ASGI server that buffers one message."""

    def __init__(self, client, loop, *, suspends):
        self.client = client
        self.is_stalled = False
        self._loop = loop
        self._suspends = suspends
        self._is_inside = False
        self._events = deque([{"type": "websocket.connect"}])
        self._changed = asyncio.Event()

    def connect(self, machine):
        path, _, query = self.client.target.partition("?")
        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"host", b"x")],
            "client": None,
            "server": None,
            "subprotocols": [],
            "state": {},
            "extensions": {},
        }
        machine.spawn(machine.app(scope, self._receive, self._send))

    async def _receive(self):
        while not self._events:
            self._changed.clear()
            await self._changed.wait()
        return self._events.popleft()

    async def _send(self, event):
        assert not self._is_inside, "two tasks are inside send at once"
        self._is_inside = True
        try:
            if self._suspends:
                await asyncio.sleep(0)
            while self.is_stalled and not self.client.has_left:
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._is_inside = False
        if self.client.has_left:
            raise ClientDisconnected
        self._take(event)

    def _take(self, event):
        client = self.client
        match event["type"]:
            case "websocket.accept":
                client.is_accepted = True
            case "websocket.close":
                client.get_end(event["code"] if client.is_accepted else 403)
                self._put({"type": "websocket.disconnect", "code": event["code"]})
            case "websocket.send":
                text = event.get("text")
                client.get(event["bytes"] if text is None else text, is_text=text is not None)

    def _put(self, event):
        self._events.append(event)
        self._changed.set()

    def stall(self):
        self.is_stalled = True

    def resume(self):
        self.is_stalled = False
        self._changed.set()

    def say(self, text):
        if not self.client.has_left:
            self._put({"type": "websocket.receive", "text": text})

    def leave(self, *, orderly):
        if not self.client.has_left:
            self.client.has_left = True
            self._put({"type": "websocket.disconnect", "code": 1000 if orderly else 1006})

    def judge_bounds(self):
        assert isinstance(self.client.ws._connection, ASGIConnection)


def value_of(kind, number, size, key):
    """A value to publish: its number, and ``size`` more bytes."""
    if kind == "dict":
        return {"number": number, "key": key, "pad": "x" * size}
    text = f"{number}|" + "x" * size
    return text if kind == "str" else text.encode()


def number_of(value):
    if isinstance(value, dict):
        return value["number"]
    return int(value.partition("|" if isinstance(value, str) else b"|")[0])
