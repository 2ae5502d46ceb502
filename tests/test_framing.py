"""RFC 6455 frames without I/O: what the bytes of a client mean, in pieces of any size."""

import importlib
import sys
import time
import tracemalloc
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microws import framing
from microws.framing.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Close,
    Ping,
    Pong,
    Violation,
    encode_close,
    encode_frame,
    encode_head,
)
from microws.framing.parser import FrameParser, apply_mask

CONTINUATION = 0
KEY = b"\x37\xfa\x21\x3d"
LIMIT = 1000

TOO_BIG = Violation(1009, "a message of more than 1000 bytes")
NOT_UTF8 = Violation(1007, "a text message is not UTF-8")


def frame(opcode, payload=b"", *, first=0x80, key=KEY, length=None):
    """A client's frame; ``first`` are the bits before the opcode, ``length`` the bytes that say it, masking bit set."""
    size = len(payload)
    if length is None:
        if size < 126:
            length = bytes([0x80 | size])
        else:
            length = b"\xfe" + size.to_bytes(2) if size < 1 << 16 else b"\xff" + size.to_bytes(8)
    masked = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
    return bytes([first | opcode]) + length + key + masked


def part(opcode, payload=b""):
    """A frame that is not the last one of its message."""
    return frame(opcode, payload, first=0)


def parse(stream, *, cuts=(), **limits):
    """What a new parser makes of ``stream``, given in pieces."""
    parser = FrameParser(**{"max_message_size": LIMIT, **limits})
    places = [0, *sorted(cuts), len(stream)]
    return [found for start, stop in pairwise(places) for found in parser.feed(stream[start:stop])]


def parse_by_bytes(stream, **limits):
    return parse(stream, cuts=range(1, len(stream)), **limits)


EVERY_WAY = pytest.mark.parametrize("parse", [parse, parse_by_bytes], ids=["at once", "byte by byte"])


# The examples of RFC 6455 §5.7.


@EVERY_WAY
@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ("81 85 37fa213d 7f9f4d5158", ["Hello"]),
        ("01 83 37fa213d 7f9f4d 80 82 37fa213d 5b95", ["Hello"]),
        ("89 85 37fa213d 7f9f4d5158", [Ping(b"Hello")]),
        ("8a 85 37fa213d 7f9f4d5158", [Pong(b"Hello")]),
    ],
)
def test_the_examples_of_the_rfc_are_parsed(parse, stream, expected):
    assert parse(bytes.fromhex(stream)) == expected


def test_the_examples_of_the_rfc_are_encoded():
    assert encode_frame(b"Hello", TEXT).hex(" ") == "81 05 48 65 6c 6c 6f"
    assert encode_frame(b"Hello", PING).hex(" ") == "89 05 48 65 6c 6c 6f"
    assert encode_head(256, BINARY).hex(" ") == "82 7e 01 00"
    assert encode_head(65536, BINARY).hex(" ") == "82 7f 00 00 00 00 00 01 00 00"


# Messages.


@EVERY_WAY
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 127, 255, 256, 65535, 65536, 70000])
def test_messages_of_every_length_encoding_arrive(parse, size):
    payload = bytes(index % 251 for index in range(size))
    text = "x" * size
    stream = frame(BINARY, payload) + frame(TEXT, text.encode())
    assert parse(stream, max_message_size=1 << 20) == [payload, text]


def test_many_frames_in_one_piece_arrive_in_order():
    stream = b"".join(frame(TEXT, str(number).encode()) for number in range(100)) + frame(PING) + frame(BINARY, b"x")
    found = parse(stream)
    assert found == [*map(str, range(100)), Ping(b""), b"x"]
    assert {type(message) for message in found} == {str, Ping, bytes}


def test_frames_of_any_length_in_one_piece_arrive_in_order():
    sizes = [1, 125, 126, 127, 255, 256, 257, 1000, 40_000, 65_535, 65_536] * 2
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]
    assert parse(b"".join(frame(BINARY, message) for message in messages), max_message_size=1 << 20) == messages


@EVERY_WAY
def test_control_frames_between_fragments_arrive_before_the_message(parse):
    stream = part(TEXT, b"a") + frame(PING, b"1") + part(CONTINUATION) + frame(PONG, b"2") + frame(CONTINUATION, b"b")
    assert parse(stream + frame(TEXT, b"next")) == [Ping(b"1"), Pong(b"2"), "ab", "next"]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_small_and_large_fragments_keep_their_order(opcode):
    pieces = [b"a", b"b" * 20_000, b"c", b"d", b"e" * 20_000, b"f"]
    stream = part(opcode) + b"".join(part(CONTINUATION, piece) for piece in pieces) + frame(CONTINUATION)
    whole = b"".join(pieces)
    assert parse(stream, max_message_size=1 << 20) == [whole.decode() if opcode == TEXT else whole]


@EVERY_WAY
def test_a_character_may_be_cut_by_a_fragment(parse):
    first, second = "a€".encode()[:2], "a€".encode()[2:]
    assert parse(part(TEXT, first) + part(CONTINUATION) + frame(CONTINUATION, second)) == ["a€"]


def test_no_data_gives_no_message():
    parser = FrameParser(max_message_size=LIMIT)
    assert parser.feed(b"") == []
    assert parser.feed(frame(TEXT, b"a")[:4]) == []
    assert parser.feed(b"") == []
    assert parser.feed(frame(TEXT, b"a")[4:]) == ["a"]


CONTROLS = st.builds(Ping, st.binary(max_size=125)) | st.builds(Pong, st.binary(max_size=125))
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=200)
KEYS = st.binary(min_size=4, max_size=4)


@st.composite
def conversations(draw):
    """What a client sends, and the bytes of that: whole messages and fragments, with pings and pongs between these."""
    expected, stream = [], b""

    def send_controls():
        nonlocal stream
        for control in draw(st.lists(CONTROLS, max_size=2)):
            expected.append(control)
            stream += frame(PING if isinstance(control, Ping) else PONG, control.payload, key=draw(KEYS))

    for message in draw(st.lists(TEXTS | st.binary(max_size=300), max_size=5)):
        opcode, payload = (TEXT, message.encode()) if isinstance(message, str) else (BINARY, message)
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        for start, stop in zip([0, *cuts], [*cuts, len(payload)], strict=True):
            send_controls()
            first = 0x80 if stop == len(payload) and start == (cuts or [0])[-1] else 0
            stream += frame(opcode, payload[start:stop], first=first, key=draw(KEYS))
            opcode = CONTINUATION
            if first:
                break
        expected.append(message)
    send_controls()
    return expected, stream


@given(conversations(), st.data())
def test_what_is_sent_arrives_in_pieces_of_any_size(conversation, data):
    expected, stream = conversation
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    assert parse(stream, cuts=cuts) == expected
    assert parse_by_bytes(stream) == expected


@given(st.binary(max_size=300), st.data())
def test_any_bytes_mean_the_same_in_pieces_of_any_size(stream, data):
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    whole = parse(stream)
    assert parse(stream, cuts=cuts) == parse_by_bytes(stream) == whole
    assert not any(isinstance(found, Close | Violation) for found in whole[:-1])


# Invalid frames.


def wrong(stream, *, code=1002, reason="", **limits):
    """Check that ``stream`` is refused, and so again byte by byte, whatever good follows."""
    for found in (parse(stream, **limits), parse_by_bytes(stream + frame(TEXT, b"more"), **limits)):
        assert isinstance(found[-1], Violation), found
        assert found[-1].code == code
        assert reason in found[-1].reason
        assert len(found[-1].reason.encode()) <= 123


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_a_reserved_opcode_is_refused(opcode):
    wrong(frame(opcode), reason=f"opcode {opcode} is reserved")


@pytest.mark.parametrize("bits", [0x40, 0x20, 0x10, 0x70])
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG, CLOSE])
def test_a_reserved_bit_is_refused(bits, opcode):
    wrong(frame(opcode, first=0x80 | bits), reason="reserved bit")


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, CLOSE])
def test_a_frame_without_a_mask_is_refused(opcode):
    wrong(bytes([0x80 | opcode, 4]) + b"text", reason="must be masked")
    wrong(bytes([0x80 | opcode, 0]) + b"text and more", reason="must be masked")


def test_a_length_that_is_not_in_its_shortest_form_is_refused():
    wrong(frame(TEXT, b"x" * 125, length=b"\xfe\x00\x7d"), reason="shortest form")
    wrong(frame(TEXT, b"x" * 125, length=b"\xff\0\0\0\0\0\0\x00\x7d"), reason="shortest form")
    wrong(frame(TEXT, b"x" * 65535, length=b"\xff\0\0\0\0\0\0\xff\xff"), reason="shortest form")
    # The highest bit must be 0.
    wrong(frame(BINARY, length=b"\xff\x80" + b"\0" * 6 + b"\x01"), reason="shortest form")


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_a_control_frame_has_at_most_125_bytes_and_no_fragments(opcode):
    wrong(part(opcode), reason="no fragments")
    wrong(frame(opcode, b"\x03\xe8" + b"x" * 124), reason="at most 125 bytes")
    assert len(parse(frame(opcode, b"\x03\xe8" + b"x" * 123))) == 1


@pytest.mark.parametrize("first", [0x80, 0x00])
def test_a_continuation_without_a_message_is_refused(first):
    wrong(frame(CONTINUATION, b"x", first=first), reason="continues nothing")
    wrong(part(TEXT) + frame(CONTINUATION) + frame(CONTINUATION, first=first), reason="continues nothing")


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_within_another_is_refused(opcode):
    wrong(part(TEXT, b"x") + frame(opcode, b"x"), reason="begins before")


def test_messages_before_a_violation_are_returned():
    assert parse(frame(TEXT, b"a") + frame(PING) + frame(3)) == [
        "a",
        Ping(b""),
        Violation(1002, "opcode 3 is reserved"),
    ]


def test_nothing_is_parsed_after_a_violation():
    parser = FrameParser(max_message_size=LIMIT)
    assert len(parser.feed(frame(3) + frame(TEXT, b"x"))) == 1
    assert parser.feed(frame(TEXT, b"x")) == []


def test_a_violation_is_found_at_its_first_byte():
    for stream in (
        b"\x83\x80",
        b"\x81\x05",
        b"\xc1\x80",
        b"\x89\xfe",
        b"\x80\x80",
        b"\x81\xfe\x00\x05",
        part(TEXT) + b"\x81\x80",
    ):
        assert parse(stream[:-1]) == []
        assert isinstance(parse(stream)[-1], Violation)


# Close frames.


@EVERY_WAY
@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"", Close(None, "")),
        (b"\x03\xe8", Close(1000, "")),
        (b"\x03\xe8bye", Close(1000, "bye")),
        ((4999).to_bytes(2) + "€".encode() * 41, Close(4999, "€" * 41)),
    ],
)
def test_a_close_frame_has_a_code_and_a_reason_or_none(parse, payload, expected):
    assert parse(frame(CLOSE, payload)) == [expected]


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999])
def test_a_valid_close_code_is_returned(code):
    assert parse(frame(CLOSE, code.to_bytes(2))) == [Close(code, "")]


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_an_invalid_close_code_is_refused(code):
    wrong(frame(CLOSE, code.to_bytes(2)), reason="code that may not be sent")
    wrong(frame(CLOSE, code.to_bytes(2)[1:]), reason="code that may not be sent")  # half a code


def test_a_close_reason_that_is_not_utf8_is_refused():
    wrong(frame(CLOSE, b"\x03\xe8\xce\xba\xe1"), code=1007, reason="a close reason is not UTF-8")


def test_nothing_is_parsed_after_a_close():
    parser = FrameParser(max_message_size=LIMIT)
    assert parser.feed(part(TEXT) + frame(CLOSE) + frame(CONTINUATION)) == [Close(None, "")]
    assert parser.feed(frame(TEXT, b"x")) == []


# Text.

NOT_TEXT = [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xce\xba\xe1\xbd", b"\xf8\x88\x80\x80\x80"]


@pytest.mark.parametrize("payload", NOT_TEXT)
def test_text_that_is_not_utf8_is_refused(payload):
    wrong(frame(TEXT, b"good " + payload), code=1007)
    wrong(part(TEXT, b"good " + payload) + frame(CONTINUATION), code=1007)
    for cut in range(len(payload)):
        wrong(part(TEXT, payload[:cut]) + frame(CONTINUATION, payload[cut:]), code=1007)


@pytest.mark.parametrize("payload", NOT_TEXT)
def test_binary_data_may_have_any_bytes(payload):
    assert parse(frame(BINARY, payload)) == [payload]


def test_invalid_utf8_is_refused_before_its_frame_is_complete():
    good = "κόσμε".encode()
    stream = frame(TEXT, good + b"\xf4\x90\x80\x80 and more")
    seen = 6 + len(good) + 1
    parser = FrameParser(max_message_size=LIMIT)
    assert parser.feed(stream[:seen]) == []
    assert parser.feed(stream[seen : seen + 1]) == [NOT_UTF8]
    assert parse(part(TEXT, b"good") + part(CONTINUATION, b"\xf4\x90")) == [NOT_UTF8]


# Limits.


@EVERY_WAY
def test_a_message_of_exactly_the_limit_is_accepted(parse):
    assert parse(frame(BINARY, b"x" * LIMIT)) == [b"x" * LIMIT]
    assert parse(part(BINARY, b"x" * 600) + frame(CONTINUATION, b"x" * 400)) == [b"x" * LIMIT]


def test_the_limit_of_a_message_is_in_bytes():
    assert parse(frame(TEXT, "€".encode() * 333)) == ["€" * 333]
    assert parse(frame(TEXT, "€".encode() * 334)) == [TOO_BIG]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_over_the_limit_is_refused_by_its_head(opcode):
    for size, head_size in ((1001, 4), (65536, 10)):
        head = frame(opcode, b"x" * size)[:head_size]
        assert parse(head[:-1]) == []
        assert parse(head) == [TOO_BIG]
    assert parse(frame(opcode, b"x" * 1001)) == [TOO_BIG]
    assert parse(frame(opcode, b"xx"), max_message_size=1) == [Violation(1009, "a message of more than 1 bytes")]


def test_a_fragment_that_exceeds_the_limit_is_refused_by_its_head():
    stream = part(TEXT, b"x" * 600) + part(CONTINUATION, b"x" * 400) + part(CONTINUATION)
    assert parse(stream) == []
    assert parse(stream + b"\x80\x81") == [TOO_BIG]


def test_the_limit_holds_per_message_and_not_for_control_frames():
    stream = part(BINARY, b"x" * LIMIT) + frame(PING, b"y" * 125) + frame(CONTINUATION)
    assert parse(stream * 3) == [Ping(b"y" * 125), b"x" * LIMIT] * 3


def test_max_fragments_limits_a_message():
    stream = part(TEXT, b"a") + part(CONTINUATION, b"b")
    assert parse(stream + frame(CONTINUATION, b"c"), max_fragments=3) == ["abc"]
    refused = Violation(1008, "a message of more than 3 frames")
    assert parse(stream + part(CONTINUATION) + frame(CONTINUATION), max_fragments=3) == [refused]
    assert parse((stream + frame(CONTINUATION)) * 2, max_fragments=3) == ["ab", "ab"]


def test_a_message_has_at_most_1024_fragments_by_default():
    stream = part(BINARY) + part(CONTINUATION) * 1022
    assert parse(stream + frame(CONTINUATION)) == [b""]
    assert parse(stream + part(CONTINUATION) + frame(CONTINUATION)) == [
        Violation(1008, "a message of more than 1024 frames")
    ]


# What it costs.


def test_a_message_refused_by_its_size_takes_no_memory():
    parser = FrameParser(max_message_size=LIMIT)
    chunk = b"x" * 65536
    tracemalloc.start()
    try:
        assert parser.feed(frame(BINARY, length=b"\xff" + (1 << 40).to_bytes(8))) == [TOO_BIG]
        for _ in range(100):
            assert parser.feed(chunk) == []
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("last", [frame(CLOSE), frame(3)], ids=["close", "violation"])
def test_a_message_that_never_ends_takes_no_memory(last):
    parser = FrameParser(max_message_size=1 << 20)
    begun = part(BINARY, b"x" * (1 << 16))
    tracemalloc.start()
    try:
        assert parser.feed(begun) == []
        assert tracemalloc.get_traced_memory()[0] > 1 << 16
        assert len(parser.feed(last)) == 1
        assert tracemalloc.get_traced_memory()[0] < 20_000
    finally:
        tracemalloc.stop()


def test_an_idle_parser_takes_little_memory():
    tracemalloc.start()
    try:
        parsers = [FrameParser(max_message_size=LIMIT) for _ in range(1000)]
        for parser in parsers:
            parser.feed(frame(TEXT, b"hello"))
        assert tracemalloc.get_traced_memory()[0] / len(parsers) < 300
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_small_pieces_take_the_same_time_for_any_message_size(opcode):
    pieces = 2_000

    def seconds(size):
        # Masked with zeros: making it takes no time.
        stream = frame(opcode, key=bytes(4), length=b"\xff" + size.to_bytes(8)) + b"x" * size
        head = len(stream) - pieces
        began = time.process_time()
        found = parse(stream, cuts=range(head, len(stream)), max_message_size=size)
        took = time.process_time() - began
        assert [len(message) for message in found] == [size]
        return took

    # To copy 16 MiB for each piece takes some hundred times as long.
    assert seconds(16 << 20) < 16 * max(seconds(1 << 16), 0.02)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_in_small_pieces_takes_memory_of_its_size(opcode):
    size = 1 << 16
    stream = frame(opcode, b"x" * size)
    parser = FrameParser(max_message_size=size)
    tracemalloc.start()
    try:
        for start in range(0, len(stream) - 5, 5):
            assert parser.feed(stream[start : start + 5]) == []
        assert tracemalloc.get_traced_memory()[1] < 3 * size
    finally:
        tracemalloc.stop()


# Compression in frames. tests/test_deflate.py has the rest.


class Doubling:
    """An inflater that doubles each byte, and returns a piece for each."""

    def inflate(self, payload, *, is_last):
        for byte in payload:
            yield bytes([byte]) * 2
        if is_last:
            yield b"."


@EVERY_WAY
def test_a_compressed_message_has_rsv1_on_its_first_frame(parse):
    stream = frame(TEXT, b"ab", first=0xC0) + part(BINARY | 0x40, b"c") + frame(PING, b"p") + frame(CONTINUATION, b"d")
    assert parse(stream, inflater=Doubling()) == ["aabb.", Ping(b"p"), b"ccdd."]


@EVERY_WAY
def test_a_message_may_be_uncompressed_on_a_compressed_connection(parse):
    stream = frame(TEXT, b"ab") + frame(TEXT, b"ab", first=0xC0) + part(TEXT, b"a") + frame(CONTINUATION, b"b")
    assert parse(stream, inflater=Doubling()) == ["ab", "aabb.", "ab"]


def test_other_reserved_bits_are_refused_on_a_compressed_connection():
    wrong(part(TEXT, b"a") + frame(CONTINUATION, first=0xC0), reason="reserved bit", inflater=Doubling())
    wrong(part(TEXT | 0x40, b"a") + frame(CONTINUATION, first=0xC0), reason="reserved bit", inflater=Doubling())
    wrong(frame(PING, first=0xC0), reason="reserved bit", inflater=Doubling())
    for bits in (0x20, 0x10, 0x60):
        wrong(frame(TEXT, first=0x80 | bits), reason="reserved bit", inflater=Doubling())


@EVERY_WAY
def test_the_limit_of_a_message_counts_its_inflated_bytes(parse):
    assert parse(frame(TEXT, b"a" * 499, first=0xC0), inflater=Doubling()) == ["a" * 998 + "."]
    assert parse(frame(TEXT, b"a" * 500, first=0xC0), inflater=Doubling()) == [TOO_BIG]
    stream = part(TEXT | 0x40, b"a" * 499) + part(CONTINUATION, b"a")
    assert parse(stream + frame(CONTINUATION, b"a"), inflater=Doubling()) == [TOO_BIG]


def test_the_limit_of_compressed_bytes_is_slightly_higher():
    head = frame(BINARY, b"x" * 2150, first=0xC0)[:4]
    assert parse(head[:2] + (1000 + 125 + 1024).to_bytes(2), inflater=Doubling()) == []
    assert parse(head, inflater=Doubling()) == [TOO_BIG]


def test_a_message_that_cannot_be_inflated_is_refused():
    class Broken:
        def inflate(self, payload, *, is_last):
            raise zlib.error("invalid block type")

    wrong(frame(TEXT, b"a", first=0xC0), code=1007, reason="cannot be inflated", inflater=Broken())


# Frames of the server.


@given(st.binary(max_size=70000), st.sampled_from([TEXT, BINARY, PING, PONG]), st.booleans())
def test_a_frame_is_its_head_and_its_payload(payload, opcode, compressed):
    whole = encode_frame(payload, opcode, compressed=compressed)
    assert whole == encode_head(len(payload), opcode, compressed=compressed) + payload
    assert whole[0] == 0x80 | (0x40 if compressed else 0) | opcode


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 1 << 20])
def test_a_head_has_the_shortest_form_of_the_length(size):
    head = encode_head(size, BINARY)
    assert len(head) == (2 if size < 126 else 4 if size < 65536 else 10)
    # The client's form of it differs by the masking bit and the key.
    assert parse(bytes([head[0], head[1] | 0x80]) + head[2:] + KEY + b"\0" * size, max_message_size=1 << 20) == [
        bytes(KEY[index % 4] for index in range(size))
    ]


def test_a_close_frame_is_encoded_with_a_code_and_a_reason_or_none():
    assert encode_close(None) == b"\x88\x00"
    assert encode_close(1000) == b"\x88\x02\x03\xe8"
    assert encode_close(1012, "service restart") == b"\x88\x11\x03\xf4service restart"


@pytest.mark.parametrize(("code", "reason"), [(1005, ""), (1006, ""), (999, ""), (5000, ""), (1000, "x" * 124)])
def test_an_invalid_close_frame_is_not_encoded(code, reason):
    with pytest.raises(ValueError, match="close"):
        encode_close(code, reason)


# Without the module in C.


@pytest.fixture
def without_speedups(monkeypatch):
    # What importing it anew puts into its package is taken out again.
    monkeypatch.setattr(framing, "parser", framing.parser)
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    monkeypatch.delitem(sys.modules, "microws.framing.parser")
    return importlib.import_module("microws.framing.parser")


def test_masks_are_removed_in_the_same_way_without_the_c_module(without_speedups):
    assert without_speedups.apply_mask is not apply_mask
    for size in (0, 1, 2, 3, 4, 5, 63, 64, 1000):
        payload = bytes(index % 256 for index in range(size))
        assert without_speedups.apply_mask(payload, KEY) == apply_mask(payload, KEY)
    parser = without_speedups.FrameParser(max_message_size=LIMIT)
    assert parser.feed(frame(TEXT, b"Hello") + frame(BINARY)) == ["Hello", b""]
