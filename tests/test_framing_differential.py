"""
This package's parser and two others return the same messages and the same end for the same bytes.

The others are the sans-I/O cores of websockets and wsproto. ``DIFFERENCES`` lists where they differ. Cases are random
conversations, most of them damaged. A failure names its case, and ``FUZZ_CASE`` set to that name runs only that one.
``FUZZ_CASES`` is the number of cases; ``FUZZ_SEED=random`` creates new ones.
"""

import os
import random
import secrets
from codecs import getincrementaldecoder
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest
from websockets.protocol import SERVER, Protocol
from websockets.protocol import State as WebsocketsState
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from microws.framing.frames import Close, Ping, Pong, Violation
from microws.framing.parser import FrameParser

CASES = int(os.environ.get("FUZZ_CASES", "100000"))
SEED = os.environ.get("FUZZ_SEED", "1")
PARTS = 20

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MAX_FILLER = 4096


class Case(NamedTuple):
    """
    One conversation.

    Attributes:
        cuts: Where the stream is cut for the parser under test.
        is_whole: Whether its last frame is complete. The others may find a violation only at the end of a frame.
    """

    stream: bytes
    cuts: list[int]
    max_message_size: int
    max_fragments: int
    is_whole: bool


class Outcome(NamedTuple):
    """What a parser returns: messages and control frames, and what ended the connection, if anything did."""

    messages: list[str | bytes | Ping | Pong]
    end: Close | Violation | None


# The parsers.


def ours(case: Case, *, cuts: list[int]) -> Outcome:
    parser = FrameParser(max_message_size=case.max_message_size, max_fragments=case.max_fragments)
    found = []
    start = 0
    for stop in [*cuts, len(case.stream)]:
        found += parser.feed(case.stream[start:stop])
        start = stop
    end = found.pop() if found and isinstance(found[-1], Close | Violation) else None
    return Outcome(found, end)


def of_websockets(case: Case) -> Outcome:
    """Its core neither joins fragments nor decodes them."""
    protocol = Protocol(SERVER, state=WebsocketsState.OPEN, max_size=case.max_message_size)
    protocol.receive_data(case.stream)
    messages = []
    pieces = []
    decode: Callable[..., str | bytes] = bytes
    for frame in protocol.events_received():
        if frame.opcode == PING:
            messages.append(Ping(bytes(frame.data)))
        elif frame.opcode == PONG:
            messages.append(Pong(bytes(frame.data)))
        elif frame.opcode != CLOSE:
            if frame.opcode == TEXT:
                decode = getincrementaldecoder("utf-8")().decode
            elif frame.opcode == BINARY:
                decode = lambda data, final: bytes(data)  # noqa: E731
            try:
                pieces.append(decode(frame.data, frame.fin))
            except UnicodeDecodeError as error:
                return Outcome(messages, Violation(1007, str(error)))
            if frame.fin:
                messages.append(pieces[0][:0].join(pieces))
                pieces = []
    if protocol.parser_exc is not None:
        return Outcome(messages, Violation(protocol.close_sent.code, str(protocol.parser_exc)))
    if protocol.close_rcvd is not None:
        code = protocol.close_rcvd.code
        return Outcome(messages, Close(None if code == 1005 else int(code), protocol.close_rcvd.reason))
    return Outcome(messages, None)


def of_wsproto(case: Case) -> Outcome:
    protocol = FrameProtocol(client=False, extensions=[])
    protocol.receive_bytes(case.stream)
    messages = []
    pieces = []
    try:
        for frame in protocol.received_frames():
            if frame.opcode is Opcode.PING:
                messages.append(Ping(frame.payload))
            elif frame.opcode is Opcode.PONG:
                messages.append(Pong(frame.payload))
            elif frame.opcode is Opcode.CLOSE:
                code, reason = frame.payload
                return Outcome(messages, Close(None if code == 1005 else int(code), reason))
            else:
                pieces.append(frame.payload)
                if frame.message_finished:
                    messages.append(pieces[0][:0].join(pieces))
                    pieces = []
    except ParseFailed as error:
        return Outcome(messages, Violation(int(error.code), str(error)))
    return Outcome(messages, None)


# Where the others differ.

NOT_SHORTEST = Violation(1002, "the length of a frame is not in its shortest form")
BAD_CODE = Violation(1002, "a Close frame has a code that may not be sent")
BAD_REASON = Violation(1007, "a close reason is not UTF-8")
LONG_CONTROL = Violation(1002, "a control frame has at most 125 bytes")


def is_violation(end: Close | Violation | None, code: int) -> bool:
    return isinstance(end, Violation) and end.code == code


def next_is_control(longer: Outcome, shorter: Outcome) -> bool:
    """Whether what one parser found and the other did not begins with a control frame."""
    behind = longer.messages[len(shorter.messages) :]
    return isinstance(behind[0], Ping | Pong) if behind else isinstance(longer.end, Close) or longer.end == BAD_REASON


class Difference(NamedTuple):
    """
    A kind of case that another parser judges otherwise.

    Attributes:
        holds: Whether this is one, by the outcome here and the other one.
        example: One in hexadecimal, for messages of at most 60 bytes in 2 frames.
    """

    other: Callable[[Case], Outcome]
    why: str
    holds: Callable[[Outcome, Outcome], bool]
    example: str


DIFFERENCES = [
    Difference(
        of_websockets,
        # RFC 6455 §5.2: "the minimal number of bytes MUST be used to encode the length".
        "websockets accepts a length that is not in its shortest form",
        lambda our, their: our.end in (NOT_SHORTEST, LONG_CONTROL),
        "82 fe 0001 key 61",
    ),
    Difference(
        of_websockets,
        "websockets has no limit for the fragments of a message",
        lambda our, their: is_violation(our.end, 1008),
        "01 80 key 00 80 key 80 80 key",
    ),
    Difference(
        of_websockets,
        "websockets reports the length first if a frame has two violations",
        lambda our, their: is_violation(our.end, 1002) and is_violation(their.end, 1009),
        "c2 bd key" + "61" * 61,
    ),
    Difference(
        of_websockets,
        "websockets reports the reason first if code and reason of a Close frame are invalid",
        lambda our, their: our.end == BAD_CODE and is_violation(their.end, 1007),
        "88 83 key 0000ff",
    ),
    Difference(
        of_websockets,
        # RFC 6455 §5.4: "Control frames MAY be injected in the middle of a fragmented message." §5.5.1 excepts none.
        "websockets refuses a Close frame between fragments",
        lambda our, their: isinstance(our.end, Close) and is_violation(their.end, 1002),
        "01 80 key 88 80 key",
    ),
    Difference(
        of_websockets,
        "websockets counts control frames between fragments as parts of the message",
        lambda our, their: is_violation(their.end, 1009) and next_is_control(our, their),
        "01 bc key" + "61" * 60 + "89 81 key 61",
    ),
    Difference(
        of_wsproto,
        "wsproto has no limit for the size of a message in its core",
        lambda our, their: is_violation(our.end, 1009),
        "82 bd key" + "61" * 61,
    ),
    Difference(
        of_wsproto,
        "wsproto has no limit for the fragments of a message",
        lambda our, their: is_violation(our.end, 1008),
        "01 80 key 00 80 key 80 80 key",
    ),
    Difference(
        of_wsproto,
        "wsproto does not know the close code 1014, which is in the registry of IANA",
        lambda our, their: (
            their.end == Violation(1002, "CLOSE with unknown reserved code")
            and (our.end == BAD_REASON or (isinstance(our.end, Close) and our.end.code == 1014))
        ),
        "88 82 key 03f6",
    ),
]


def compare(case: Case) -> None:
    our = ours(case, cuts=[])
    assert ours(case, cuts=case.cuts) == our, "in pieces the outcome differs"
    assert all(size_of(message) <= case.max_message_size for message in our.messages)
    for other in (of_websockets, of_wsproto):
        their = other(case)
        if code_of(our.end) == code_of(their.end) and our.messages == their.messages:
            continue
        common = min(len(our.messages), len(their.messages))
        assert our.messages[:common] == their.messages[:common], f"{other.__name__}: other messages, {their}"
        is_known = any(known.other is other and known.holds(our, their) for known in DIFFERENCES)
        # They do not check an incomplete frame.
        is_sooner = not case.is_whole and their.end is None and common == len(their.messages)
        assert is_known or is_sooner, f"{other.__name__}: {their}, here {our}"


def size_of(message: str | bytes | Ping | Pong) -> int:
    if isinstance(message, Ping | Pong):
        return 0
    return len(message.encode() if isinstance(message, str) else message)


def code_of(end: Close | Violation | None) -> object:
    """What must be equal: a whole Close frame, or the code of a violation."""
    return end.code if isinstance(end, Violation) else end


# The cases.

GOOD_TEXTS = ["", "a", "Hello", "é" * 30, "€uro", "κόσμε", "\U0001f600", "x" * 64, "x" * 125, "x" * 126, "😀é" * 50]
BAD_TEXTS = [
    b"\xff",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xce\xba\xe1",
    b"good\x80",
    b"\xf8\x88\x80\x80",
]
CODES = [1000, 1001, 1002, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
BAD_CODES = [0, 255, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535]


def make_case(name: str) -> Case:
    rng = random.Random(name)
    stream = rng.randbytes(rng.randrange(40)) if rng.random() < 0.03 else conversation(rng)
    if rng.random() < 0.3:
        stream = damage(rng, stream)
    stream, is_whole = complete(stream)
    if rng.random() < 0.05:
        cuts = list(range(1, len(stream)))
    else:
        cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.randrange(6)))
    max_message_size = rng.choice((60, 130, 400, 400, 100_000, 100_000))
    return Case(stream, cuts, max_message_size, rng.choice((2, 5, 1024, 1024)), is_whole)


def conversation(rng: random.Random) -> bytes:
    frames = []
    for _ in range(rng.choice((1, 1, 2, 3, 4, 6))):
        kind = rng.random()
        if kind < 0.25:
            frames.append(frame(rng, rng.choice((PING, PONG)), rng.randbytes(rng.choice((0, 1, 4, 20, 125)))))
        elif kind < 0.35:
            frames.append(frame(rng, CLOSE, close_payload(rng)))
        elif kind < 0.42:
            opcode = rng.randrange(16)
            frames.append(frame(rng, opcode, rng.randbytes(rng.randrange(130)), first=rng.randrange(16) << 4))
        else:
            is_text = rng.random() < 0.6
            frames += message(rng, TEXT if is_text else BINARY, text(rng) if is_text else binary(rng))
    return b"".join(frames)


def message(rng: random.Random, opcode: int, payload: bytes) -> list[bytes]:
    """A message, whole or in fragments with control frames between them, sometimes without an end."""
    cuts = []
    if rng.random() < 0.5:
        cuts = sorted(rng.randrange(len(payload) + 1) for _ in range(rng.choice((1, 1, 2, 3, 6))))
    places = [0, *cuts, len(payload)]
    frames = []
    for index, (start, stop) in enumerate(pairwise(places)):
        if index and rng.random() < 0.15:
            frames.append(frame(rng, rng.choice((PING, PONG, CLOSE)), b""))
        is_last = index == len(cuts) and rng.random() > 0.03
        frames.append(frame(rng, opcode, payload[start:stop], first=0x80 if is_last else 0))
        opcode = CONTINUATION
    return frames


def text(rng: random.Random) -> bytes:
    payload = "".join(rng.choices(GOOD_TEXTS, k=rng.randrange(3))).encode()
    if rng.random() < 0.1:
        place = rng.randrange(len(payload) + 1)
        payload = payload[:place] + rng.choice(BAD_TEXTS) + payload[place:]
    return payload


def binary(rng: random.Random) -> bytes:
    size = rng.choice((0, 1, 3, 64, 125, 126, 127, 256, rng.randrange(500)))
    if rng.random() < 0.003:
        size = rng.choice((65535, 65536, 66000))
    return rng.randbytes(size)


def close_payload(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(rng.randrange(3))
    code = rng.choice(CODES if kind < 0.8 else BAD_CODES)
    return code.to_bytes(2) + text(rng)[: rng.choice((0, 10, 123, 124))]


def frame(rng: random.Random, opcode: int, payload: bytes, *, first: int = 0x80) -> bytes:
    size = len(payload)
    fitting = 1 if size < 126 else 2 if size < 1 << 16 else 8
    is_odd = rng.random() < 0.03
    form = rng.choice((1, 2, 8)) if is_odd else fitting
    form = max(form, fitting)
    length = bytes([size]) if form == 1 else bytes([126 if form == 2 else 127]) + size.to_bytes(form)
    if is_odd and form == 8 and rng.random() < 0.5:
        length = length[:1] + bytes([rng.choice((0x80, 0x01, 0xFF))]) + length[2:]
    if is_odd and rng.random() < 0.3:
        return bytes([first | opcode]) + length + payload
    key = rng.randbytes(4)
    return bytes([first | opcode, 0x80 | length[0]]) + length[1:] + key + masked(payload, key)


def masked(payload: bytes, key: bytes) -> bytes:
    size = len(payload)
    keys = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(keys)).to_bytes(size)


def damage(rng: random.Random, stream: bytes) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(stream) + 1)
        match rng.randrange(6):
            case 0:
                stream = stream[:place]
            case 1:
                stream = stream[:place] + stream[place + 1 :]
            case 2:
                stream = stream[:place] + rng.randbytes(1) + stream[place:]
            case 3:
                stream = stream[:place] + stream[rng.randrange(len(stream) + 1) :]
            case _ if place < len(stream):
                # Damage heads more often than payloads.
                place = rng.choice((place, place % 16, 0, 1)) % len(stream)
                stream = stream[:place] + bytes([stream[place] ^ (1 << rng.randrange(8))]) + stream[place + 1 :]
    return stream


def complete(stream: bytes) -> tuple[bytes, bool]:
    """``stream`` with its last frame filled up, and whether that is now complete."""
    place = 0
    while place < len(stream):
        if len(stream) == place + 1:
            stream += b"\x80"
        head = stream[place : place + 10].ljust(10, b"\0")
        length = head[1] & 0x7F
        form = {126: 2, 127: 8}.get(length, 0)
        if form:
            length = int.from_bytes(head[2 : 2 + form])
        place += 2 + form + (4 if head[1] & 0x80 else 0) + length
        if place - len(stream) > MAX_FILLER:
            return stream, False
    return stream.ljust(place, b"\0"), True


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(PARTS))
def test_all_parsers_agree_on_random_cases(part):
    seed = secrets.token_hex(4) if SEED == "random" else SEED
    for number in range(CASES // PARTS):
        name = f"{seed}-{part}-{number}"
        case = make_case(name)
        try:
            compare(case)
        except AssertionError as error:
            raise AssertionError(f"FUZZ_CASE={name}, {case}: {error}") from error


def test_all_parsers_agree_on_a_named_case():
    compare(make_case(os.environ.get("FUZZ_CASE", "1-0-0")))


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.why)
def test_each_known_difference_still_exists(difference):
    stream = bytes.fromhex(difference.example.replace("key", "00000000"))
    case = Case(stream, [], max_message_size=60, max_fragments=2, is_whole=True)
    our, their = ours(case, cuts=[]), difference.other(case)
    assert code_of(our.end) != code_of(their.end) or our.messages != their.messages
    assert difference.holds(our, their)
