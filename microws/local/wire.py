"""
What the hub process and its clients say to each other: frames over a Unix stream socket.

A frame begins with its length and a number that says what it is. A published message that the hub sends is the record
of the log as it stands there (``Log.append``): its number is the kind of the payload, and lower than all others.

A client begins with ``HELLO`` and one ``SUBSCRIBE`` per topic, then ``BEGIN``. The hub answers ``WELCOME``, and from
then on sends the records behind the client's place, in the order of the log, of the topics that it subscribes to. A
client that sends what is not of this protocol gets ``REFUSED``, and is disconnected.
"""

import struct
from enum import IntEnum
from typing import Final

__all__ = [
    "ACK", "ANSWER", "ASK", "HELLO", "LENGTH", "MAX_FRAME", "PROTOCOL", "PROTOCOL_OF", "PUBLISH", "READ", "REQUEST",
    "STORED", "USAGE", "WELCOME", "Op", "frame",
]  # fmt: skip

# Changes with every change of the frames or of the records.
PROTOCOL: Final = 2
# A frame over this length is not one of ours.
MAX_FRAME: Final = 1 << 30


class Op(IntEnum):
    """What a frame is. Lower numbers are records."""

    # From clients.
    HELLO = 1024
    BEGIN = 1025
    PUBLISH = 1026
    SUBSCRIBE = 1027
    UNSUBSCRIBE = 1028
    READ = 1029
    POSITION = 1030
    CLAIM = 1031
    ASK = 1032
    REPLY = 1033
    USAGE = 1034
    # From the hub.
    WELCOME = 2048
    ACK = 2049
    STORED = 2050
    ANSWER = 2051
    LOST = 2052
    ASKED = 2053
    REFUSED = 2054


# Of every frame: its length, and what it is.
LENGTH: Final = struct.Struct("=IH")
# Protocol, whether it serves an app, the client's id, the id of the log that it knows (0: none), and the place after
# the last record that it has. What its names begin with follows.
HELLO: Final = struct.Struct("=IHHIQQQ")
# Protocol; the id of the log, and its size; the last number of the client that the log has; and the place in the log
# after which the records follow.
WELCOME: Final = struct.Struct("=IHHQQQQ")
# The first field of both, which stays where it is: a version of another protocol reads it alone.
PROTOCOL_OF: Final = struct.Struct("=6xH")
# The kind as in a record; lengths of topic, key and conflation key, which follow with the payload; the number.
PUBLISH: Final = struct.Struct("=IHHHHHxxQ")
# A number that the answer repeats, and the length of the topic or key, which follows.
REQUEST: Final = struct.Struct("=IHHQ")
# The same; then history, ttl (0: any), and whether by key. Topic and position follow.
READ: Final = struct.Struct("=IHHQIdH")
# The number up to which the log has all messages of the client, and the place up to which it has the log.
ACK: Final = struct.Struct("=IHxxQQ")
# The number of a message to a topic with history that the client does not subscribe to; its position follows.
STORED: Final = struct.Struct("=IHxxQ")
# Who asks, and the number of the question; what is asked or replied follows.
ASK: Final = struct.Struct("=IHxxQQ")
# The number of the request; the topic's place, a count, or whether the claim was made; and the place up to which the
# client has the log. A position follows, or the error of a claim; of ``READ`` also a zero byte, ``1`` if everything was
# recovered, else ``0``, and the records. Of ``ASK``, the count is of the workers that are asked; the number of the
# others, which do not read, follows.
ANSWER: Final = struct.Struct("=IHxxQqQ")
# What follows the answer to ``USAGE``, a request without a name: bytes of the log in use, and messages dropped.
USAGE: Final = struct.Struct("=QQ")


def frame(head: struct.Struct, op: Op, *fields: float, tail: bytes = b"") -> bytes:
    """A frame with this head and what follows."""
    return head.pack(head.size + len(tail), op, *fields) + tail
