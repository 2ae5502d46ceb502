"""
The hub process: writes what clients publish into the log, then tells those that subscribe to it.

It has one thread and one place that waits. A client that does not read costs nothing but its place in the log: when it
reads again, the log has what it missed. The process sends only messages that it has committed. So it may be killed at
any point, and the next process goes on with the same log.
"""

import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Final, final

from microws.errors import HubUnavailable
from microws.hub.log import HAS_HISTORY, KINDS, Log
from microws.local.wire import (
    ACK,
    ANSWER,
    ASK,
    HELLO,
    LENGTH,
    MAX_FRAME,
    PROTOCOL,
    PROTOCOL_OF,
    PUBLISH,
    READ,
    REQUEST,
    STORED,
    USAGE,
    WELCOME,
    Op,
    frame,
)

__all__ = ["HubProcess"]

# The most that is read from a client before the others have their turn. For a buffer of 128 KiB or more, malloc maps
# memory at each read: that takes 13 µs instead of 1.3.
_MAX_READ: Final = 64 << 10
# The most that is sent to a client before the others have their turn.
_MAX_BYTES: Final = 256 << 10
# Records of the log that are looked at for a client that is behind, before the others have their turn.
_MAX_RECORDS: Final = 4096
# A client that gets nothing is told how far it has the log after this part of the log. Otherwise, after a cut, it would
# seem to have missed what was overwritten.
_TOLD_PARTS: Final = 8
# Seconds between two attempts to accept a client while no descriptor is left.
_ACCEPT_PAUSE: Final = 0.1
# As a number: a look at a member of an enum takes five times as long.
_PUBLISH: Final = int(Op.PUBLISH)


@final
class _Client:
    """
    One client.

    Attributes:
        id: The client's; 0 before ``HELLO``.
        serves: Whether it serves an app, and so answers what others ask.
        prefix: What its names begin with. Only clients with the same one are asked.
        topics: Those that it subscribes to, in UTF-8.
        place: Everything before it was sent, or is not for this client; ``None`` before ``BEGIN``.
        log_id, known: The log that it knows, and the place up to which it has that.
        input, missing: What has come of a frame, and how many bytes are missing.
        output: What its socket has not taken; ``is_blocked`` while this process waits until it takes more.
        requests: Frames that are answered once everything before them was sent.
        number: Of its last message; and ``acknowledged``, the one up to which it was told.
        told: The place up to which it was told that it has the log, apart from records.
        stored: Its last messages with history: number, place, and topic; ``None`` if it gets no record for sure.
    """

    __slots__ = (
        "acknowledged", "id", "input", "is_blocked", "known", "log_id", "missing", "number", "output", "place",
        "prefix", "requests", "serves", "sock", "stored", "told", "topics",
    )  # fmt: skip

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.id = 0
        self.serves = False
        self.prefix = b""
        self.topics: set[bytes] = set()
        self.place: int | None = None
        self.log_id = self.known = 0
        self.input: list[bytes] = []
        self.missing = 0
        self.output = b""
        self.is_blocked = False
        self.requests: list[tuple[int, bytes]] = []
        self.number = self.acknowledged = 0
        self.told = 0
        self.stored: list[tuple[int, int, bytes | None]] = []


@final
class HubProcess:
    """
    Serves the clients of a hub.

    Args:
        listener: A listening Unix socket.
        log: Nobody else writes it.
        supervisor: A socket. A byte on it asks for the end. Its end means that the supervisor has ended; then this
            process ends with the last worker. Other programs would keep the directory from the next server.

    Attributes:
        is_orphan: The supervisor has ended.
    """

    def __init__(self, listener: socket.socket, log: Log, supervisor: socket.socket) -> None:
        self._listener = listener
        self._log = log
        self._supervisor = supervisor
        self.is_orphan: bool = False
        self._is_ending = False
        # When the listener, which waits for a descriptor, is looked at again.
        self._accept_at = inf
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, _Client] = {}
        # Records of this turn with their topics, and the place of the first; and for clients that subscribe to all of
        # these topics, the records in one piece.
        self._batch: list[bytes] = []
        self._batch_topics: list[bytes] = []
        self._batch_place = self._first_end = log.end
        self._all_topics: set[bytes] = set()
        self._whole_batch = b""
        for sock in (listener, supervisor):
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve until the supervisor asks for the end, or has ended with all workers. Closes the log."""
        is_busy = False
        while not self._is_ending and not (self.is_orphan and not self._serves_workers):
            is_busy = self.turn(0 if is_busy else None)
        self._log.close()

    def turn(self, timeout: float | None) -> bool:
        """
        Wait until something happens, and do what follows from it.

        Returns:
            Whether more can be done without waiting.
        """
        self._batch_place = self._log.end
        if self._accept_at < inf:
            timeout = self._accept_later(timeout)
        writable = []
        for key, events in self._selector.select(timeout):
            client: _Client | None = key.data
            if client is None:
                self._accept() if key.fileobj is self._listener else self._follow_supervisor()
                continue
            if events & selectors.EVENT_WRITE:
                writable.append(client)
            if events & selectors.EVENT_READ:
                self._call(self._read, client)
        # Before anything is told: what was told is in the log.
        self._log.commit()
        self._all_topics = set(self._batch_topics)
        self._whole_batch = b"".join(self._batch)
        for client in writable:
            self._flush(client)
        for client in list(self._clients.values()):
            if not client.output and client.place is not None:
                self._call(self._serve, client, client.place)
        self._batch.clear()
        self._batch_topics.clear()
        self._whole_batch = b""
        end = self._log.end
        return any(
            client.place is not None and not client.output and client.place < end for client in self._clients.values()
        )

    @property
    def _serves_workers(self) -> bool:
        return any(client.serves for client in self._clients.values())

    def _call(self, function: Callable[..., None], client: _Client, *args: int) -> None:
        """Call ``function``. A client that has sent what is not of this protocol is dropped, and the others go on."""
        try:
            function(client, *args)
        except (struct.error, ValueError):
            # Otherwise it would come back at once, and send the same again.
            self._send(client, frame(LENGTH, Op.REFUSED))
            self._drop(client)

    # What comes in

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # No descriptor is left. The listener stays readable, and would end each wait at once.
            self._selector.unregister(self._listener)
            self._accept_at = time.monotonic() + _ACCEPT_PAUSE
            return
        if not _is_same_user(sock):
            sock.close()
            return
        sock.setblocking(False)
        client = self._clients[sock.fileno()] = _Client(sock)
        self._selector.register(sock, selectors.EVENT_READ, client)

    def _accept_later(self, timeout: float | None) -> float | None:
        """Listen again, if it is time. Returns for how long to wait otherwise."""
        left = self._accept_at - time.monotonic()
        if left > 0:
            return left if timeout is None else timeout
        self._accept_at = inf
        self._selector.register(self._listener, selectors.EVENT_READ)
        return timeout

    def _follow_supervisor(self) -> None:
        data = b""
        with suppress(OSError):
            data = self._supervisor.recv(16)
        if data:
            self._is_ending = True
        else:
            self.is_orphan = True
            self._selector.unregister(self._supervisor)

    def _read(self, client: _Client) -> None:
        data = b""
        try:
            data = client.sock.recv(_MAX_READ)
        except BlockingIOError:
            return
        except OSError:
            pass
        if not data:
            self._drop(client)
            return
        client.missing -= len(data)
        if client.input:
            client.input.append(data)
            if client.missing > 0:
                return
            data = b"".join(client.input)
        at, size = 0, len(data)
        length = least = LENGTH.size
        while size - at >= least:
            length, op = LENGTH.unpack_from(data, at)
            if not least <= length <= MAX_FRAME:
                raise ValueError(f"expected a frame of {least} to {MAX_FRAME} bytes, got {length}")
            if size - at < length:
                break
            if op == _PUBLISH:
                self._publish(client, data, at)
            elif not self._follow(client, op, data[at : at + length]):
                self._drop(client)
                return
            at += length
        rest = size - at
        client.input = [data[at:]] if rest else []
        client.missing = (length if rest >= least else least) - rest

    def _publish(self, client: _Client, data: bytes, at: int) -> None:
        length, _, kind, topic_size, key_size, conflation_size, number = PUBLISH.unpack_from(data, at)
        if number <= client.number:
            return  # sent again after a cut
        if kind & ~HAS_HISTORY >= len(KINDS):
            raise ValueError(f"expected the kind of a payload, got {kind}")
        client.number = number
        body = data[at + PUBLISH.size : at + length]
        topic = body[:topic_size]
        place, record = self._log.write(client.id, number, kind, topic, key_size, conflation_size, body)
        if record:
            self._batch.append(record)
            self._batch_topics.append(topic)
        if kind & HAS_HISTORY:
            client.stored.append((number, place, topic if record else None))

    def _follow(self, client: _Client, op: int, data: bytes) -> bool:
        """Do what a frame other than ``PUBLISH`` asks for. ``False``: the client speaks another protocol."""
        if op == Op.SUBSCRIBE:
            client.topics.add(data[REQUEST.size :])
            client.requests.append((op, data))
        elif op == Op.UNSUBSCRIBE:
            client.topics.discard(data[REQUEST.size :])
        elif op == Op.HELLO:
            if PROTOCOL_OF.unpack_from(data)[0] != PROTOCOL:
                self._send(client, frame(WELCOME, Op.WELCOME, PROTOCOL, 0, 0, 0, 0))
                return False
            _, _, _, serves, client.id, client.log_id, client.known = HELLO.unpack_from(data)
            client.serves, client.prefix = bool(serves), data[HELLO.size :]
            # The process before this one may have ended before it acknowledged it.
            client.number = self._log.number_of(client.id)
        elif op == Op.BEGIN:
            self._begin(client)
        elif op == Op.ASK:
            self._ask(client, data)
        elif op == Op.REPLY:
            asker = ASK.unpack_from(data)[2]
            for other in self._clients.values():
                if other.id == asker:
                    self._send(other, data)
        else:
            client.requests.append((op, data))
        return True

    def _begin(self, client: _Client) -> None:
        log = self._log
        # What a client knows it has from processes before this one. If that goes further, the tail of the log is lost.
        knows_log = client.log_id == log.id and client.known <= self._first_end
        place = client.place = client.told = client.known if knows_log else log.end
        size = log.size
        self._send(client, frame(WELCOME, Op.WELCOME, PROTOCOL, log.id, size, client.number, place))
        if client.log_id and not knows_log:
            self._send(client, frame(REQUEST, Op.LOST, 0, place))

    def _ask(self, client: _Client, data: bytes) -> None:
        _, _, _, number = ASK.unpack_from(data)
        meant = [other for other in self._clients.values() if other.serves and other.prefix == client.prefix]
        # One that does not read, such as a stopped worker, is left out: questions are not in the log.
        asked = [other for other in meant if len(other.output) < _MAX_BYTES]
        for other in asked:
            self._send(other, frame(ASK, Op.ASKED, client.id, number, tail=data[ASK.size :]))
        left_out = b"%d" % (len(meant) - len(asked))
        self._send(client, frame(ANSWER, Op.ANSWER, number, len(asked), client.known, tail=left_out))

    # What goes out

    def _serve(self, client: _Client, place: int) -> None:
        """Send what ``client`` has not got yet, from ``place`` on, as much as one turn may take."""
        log = self._log
        end = log.end
        output = []
        for number, stored, topic in client.stored:
            if topic not in client.topics and stored >= log.begin:
                output.append(frame(STORED, Op.STORED, number, tail=log.position_at(stored).encode()))
        client.stored.clear()
        if place < end:
            if place < log.begin:
                output.append(frame(REQUEST, Op.LOST, 0, end))
                place = end
            elif place == self._batch_place:
                topics = client.topics
                if self._all_topics <= topics:
                    output.append(self._whole_batch)
                else:
                    batch = zip(self._batch_topics, self._batch, strict=True)
                    output += [record for topic, record in batch if topic in topics]
                place = end
            else:
                place = self._catch_up(client, place, output)
            client.place = place
        if place == end:
            if client.number != client.acknowledged or end - client.told > log.size // _TOLD_PARTS:
                client.acknowledged, client.told = client.number, end
                output.append(frame(ACK, Op.ACK, client.number, end))
            if client.requests:
                output += [self._answer(client, op, data) for op, data in client.requests]
                client.requests.clear()
        if output:
            self._send(client, b"".join(output))

    def _catch_up(self, client: _Client, place: int, output: list[bytes]) -> int:
        """Copy what ``client`` has not got from the log into ``output``. Returns how far that reached."""
        log, topics = self._log, client.topics
        size = 0
        for count, (at, following, topic) in enumerate(log.records(place)):
            if topic in topics:
                output.append(bytes(log.record(at)))
                size += following - at
            elif log.source(at)[0] == client.id:
                # It may have ended before it was told.
                output.append(frame(STORED, Op.STORED, log.source(at)[1], tail=log.position_at(at).encode()))
            if size >= _MAX_BYTES or count >= _MAX_RECORDS:
                return following
        return log.end

    def _answer(self, client: _Client, op: int, data: bytes) -> bytes:
        log = self._log
        if op == Op.READ:
            _, _, topic_size, number, history, ttl, by_key = READ.unpack_from(data)
            topic = data[READ.size : READ.size + topic_size]
            since = data[READ.size + topic_size :].decode()
            found = log.find(topic, since, history=history, ttl=ttl or None, by_key=bool(by_key))
            tail = b"%b\0%d" % (found.position.encode(), found.recovered)
            tail += b"".join(bytes(log.record(place)) for place in found.entries)
            return frame(ANSWER, Op.ANSWER, number, found.place, log.end, tail=tail)
        _, _, size, number = REQUEST.unpack_from(data)
        name = data[REQUEST.size : REQUEST.size + size]
        if op == Op.CLAIM:
            (ttl,) = struct.unpack("=d", data[REQUEST.size + size :])
            try:
                is_made = log.claims.claim(name, ttl, maker=client.id, number=number)
            except HubUnavailable as error:
                return frame(ANSWER, Op.ANSWER, number, -1, log.end, tail=str(error).encode())
            return frame(ANSWER, Op.ANSWER, number, is_made, log.end)
        if op == Op.USAGE:
            return frame(ANSWER, Op.ANSWER, number, 0, log.end, tail=USAGE.pack(*log.usage))
        found = log.find(name, None, history=0)
        return frame(ANSWER, Op.ANSWER, number, found.place, log.end, tail=found.position.encode())

    def _send(self, client: _Client, data: bytes) -> None:
        is_idle = not client.output
        client.output += data
        if is_idle:
            self._flush(client)

    def _flush(self, client: _Client) -> None:
        if not client.output or client.sock.fileno() < 0:
            return
        try:
            sent = client.sock.send(client.output)
        except BlockingIOError:
            sent = 0
        except OSError:
            # Its end is read next.
            client.output = b""
            return
        client.output = client.output[sent:]
        is_blocked = bool(client.output)
        if is_blocked != client.is_blocked:
            client.is_blocked = is_blocked
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if is_blocked else 0)
            self._selector.modify(client.sock, events, client)

    def _drop(self, client: _Client) -> None:
        self._selector.unregister(client.sock)
        del self._clients[client.sock.fileno()]
        client.sock.close()


def _is_same_user(sock: socket.socket) -> bool:
    """Whether the client runs as this user, or as root. The modes of the directory and the socket ask for the same."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid in (0, os.getuid())
