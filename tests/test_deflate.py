"""permessage-deflate, RFC 7692: which offers are accepted, and messages compressed and inflated, each on its own."""

import tracemalloc
import zlib

import pytest
from byte_client import BINARY, CONTINUATION, PING, TEXT, frame
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ProtocolError
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from microws.deflate import Agreement, Deflater, Inflater, negotiate
from microws.framing.frames import Ping, Violation
from microws.framing.parser import FrameParser

ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
CANNOT = Violation(1007, "a compressed message cannot be inflated")


# The handshake.


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; client_max_window_bits=8",
        'permessage-deflate; client_max_window_bits="15"',
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        "permessage-deflate;client_no_context_takeover;client_max_window_bits = 10",
        "  permessage-deflate\t;\tclient_max_window_bits  ",
        ", , permessage-deflate,",
    ],
)
def test_an_offer_is_answered_without_context_takeover(offer):
    agreement = negotiate([offer])
    assert agreement is not None
    assert agreement.header == ANSWER


@pytest.mark.parametrize("bits", range(9, 16))
def test_a_window_that_the_client_asks_for_is_granted(bits):
    agreement = negotiate([f"permessage-deflate; server_max_window_bits={bits}; client_max_window_bits"])
    assert agreement == Agreement(bits)
    assert agreement.header == f"{ANSWER}; server_max_window_bits={bits}"


@pytest.mark.parametrize(
    "parameters",
    [
        "unknown",
        "unknown=1",
        "server_max_window_bits=8",  # zlib cannot deflate with it
        "server_no_context_takeover=1",
        "server_no_context_takeover=true",
        'client_no_context_takeover=""',
        "server_max_window_bits",
        "server_max_window_bits=7",
        "server_max_window_bits=16",
        "server_max_window_bits=010",
        "server_max_window_bits=+9",
        'server_max_window_bits=""',
        'server_max_window_bits=" 9"',
        "server_max_window_bits=٩",
        "client_max_window_bits=7",
        "client_max_window_bits=16",
        "client_max_window_bits=9.0",
        'client_max_window_bits=""',
        "Client_No_Context_Takeover",
        "server_no_context_takeover; server_no_context_takeover",
        "client_no_context_takeover; client_no_context_takeover",
        "client_max_window_bits; client_max_window_bits=10",
        "server_max_window_bits=10; server_max_window_bits=10",
    ],
)
def test_an_offer_with_an_invalid_or_repeated_parameter_is_declined(parameters):
    assert negotiate([f"permessage-deflate; {parameters}"]) is None


def test_the_first_acceptable_offer_is_accepted():
    values = [
        "permessage-bzip2; x=1, x-webkit-deflate-frame",
        "permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=12",
        "permessage-deflate",
    ]
    assert negotiate(values) == Agreement(12)


def test_a_quoted_string_may_have_commas_semicolons_and_escapes():
    assert negotiate(['x; a="permessage-deflate, permessage-deflate; b"; c="\\", permessage-deflate"']) is None
    assert negotiate(['x; a="y, z;"; b, permessage-deflate']) == Agreement()
    assert negotiate([r'permessage-deflate; server_max_window_bits="1\0"']) == Agreement(10)


@pytest.mark.parametrize(
    "value",
    [
        "", ",", "permessage-deflate;", "permessage-deflate; ;client_max_window_bits",
        "permessage-deflate client_max_window_bits", "permessage-deflate; client_max_window_bits=",
        'permessage-deflate; client_max_window_bits="10', "permessage-deflate, =", "permessage-deflate, x y",
        "permessage deflate", "permessage-deflate\n", "Permessage-Deflate",
    ],
)  # fmt: skip
def test_an_invalid_offer_or_one_of_another_extension_is_ignored(value):
    assert negotiate([value]) is None
    assert negotiate([value, "permessage-deflate"]) == Agreement()
    assert negotiate([]) is None


@given(st.lists(st.text(alphabet='permessage-deflate;,= "\\\tclient_max_window_bits=10x'), max_size=3))
def test_any_offer_is_answered_or_ignored(values):
    agreement = negotiate(values)
    assert agreement is None or agreement.header.startswith(ANSWER)


def test_a_long_offer_takes_linear_time():
    # A grammar that tries again from every place would not come back within the time that a test has.
    for value in ("permessage-deflate" + "; a" * 5000 + "\0", 'x; a="' + "\\a" * 8000, "x" + " " * 16000 + "\0"):
        assert negotiate([value]) is None


# Inflation.


def inflate(*payloads):
    return inflate_with(Inflater(), *payloads)


def inflate_with(inflater, *payloads):
    last = len(payloads) - 1
    return b"".join(
        piece for index, payload in enumerate(payloads) for piece in inflater.inflate(payload, is_last=index == last)
    )


def deflated(data, *, bits=15, flush=zlib.Z_SYNC_FLUSH, level=6):
    stream = zlib.compressobj(level, zlib.DEFLATED, -bits)
    return (stream.compress(data) + stream.flush(flush)).removesuffix(b"\0\0\xff\xff")


@pytest.mark.parametrize(
    "payload",
    [
        "f2 48 cd c9 c9 07 00",  # §7.2.3.1: one block
        "00 05 00 fa ff 48 65 6c 6c 6f 00",  # §7.2.3.3: a block that is not compressed
        "f3 48 cd c9 c9 07 00 00",  # §7.2.3.4: a last block, and an empty one
        "f2 48 05 00 00 00 ff ff ca c9 c9 07 00",  # §7.2.3.5: two blocks
    ],
)
def test_the_examples_of_the_rfc_are_inflated(payload):
    assert inflate(bytes.fromhex(payload)) == b"Hello"
    assert inflate(*(bytes([byte]) for byte in bytes.fromhex(payload))) == b"Hello"


def test_an_empty_message_is_one_byte():
    # §7.2.3.6.
    assert inflate(b"\x00") == b""


@pytest.mark.parametrize("payload", ["f2 48", "00 64 00 9b ff 48", "ff", "", "f2 48 cd c9 c9", "f3 48 cd c9 c9 07 00"])
def test_an_invalid_or_truncated_message_is_refused(payload):
    with pytest.raises(zlib.error):
        inflate(bytes.fromhex(payload))


@given(st.binary(max_size=2000), st.integers(9, 15), st.integers(0, 9), st.data())
def test_what_is_deflated_is_inflated_in_pieces_of_any_size(data, bits, level, draw):
    payload = deflated(data, bits=bits, level=level)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    pieces = [payload[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    assert inflate(*pieces) == data


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_each_message_is_inflated_on_its_own(messages):
    inflater = Inflater()
    for message in messages * 10:
        assert inflate_with(inflater, deflated(message)) == message


def test_a_message_that_needs_the_previous_one_is_refused():
    stream = zlib.compressobj(wbits=-15)
    text = b"the same words again and again"
    first, second = (stream.compress(text) + stream.flush(zlib.Z_SYNC_FLUSH) for _ in range(2))
    inflater = Inflater()
    assert inflate_with(inflater, first[:-4]) == text
    with pytest.raises(zlib.error):
        inflate_with(inflater, second[:-4])


def test_a_message_may_end_its_stream_and_begin_another_one():
    ended = deflated(b"a", flush=zlib.Z_FINISH)
    assert inflate(ended, deflated(b"b")) == b"ab"
    assert inflate(ended + deflated(b"b")) == b"ab"
    assert inflate(ended * 15 + b"\x00") == b"a" * 15


def test_a_message_has_at_most_16_streams():
    with pytest.raises(zlib.error, match="16 streams"):
        inflate(b"\x03\x00" * 100_000)


@pytest.mark.parametrize(
    "size", [0, 1, (1 << 16) - 258, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, (1 << 16) + 258, 1 << 17, 1 << 20]
)
def test_a_message_is_inflated_in_small_pieces(size):
    pieces = list(Inflater().inflate(deflated(b"\0" * size), is_last=True))
    assert b"".join(pieces) == b"\0" * size
    assert max(map(len, pieces)) <= 1 << 16


def packed(payload):
    """A compressed message in one frame."""
    return frame(payload, BINARY, compressed=True)


def parser(limit=1 << 20):
    return FrameParser(max_message_size=limit, inflater=Agreement().inflater())


def test_a_bomb_takes_little_more_memory_than_the_limit():
    limit = 1 << 20
    bomb = packed(deflated(b"\0" * (24 << 20)))
    assert len(bomb) < 30_000
    reader = parser(limit)
    tracemalloc.start()
    try:
        assert reader.feed(bomb) == [Violation(1009, f"a message of more than {limit} bytes")]
        assert tracemalloc.get_traced_memory()[1] < 2 * limit
    finally:
        tracemalloc.stop()


def test_a_message_of_the_limit_may_be_longer_when_compressed():
    noise = bytes(index * 7919 % 251 for index in range(1000))
    longer = deflated(noise, level=0)
    assert len(longer) > 1000
    assert parser(1000).feed(packed(longer)) == [noise]
    assert parser(1000).feed(
        frame(longer[:900], BINARY, final=False, compressed=True) + frame(longer[900:], CONTINUATION)
    ) == [noise]


def test_control_frames_between_compressed_fragments_are_fine():
    payload = deflated(b"Hello" * 100)
    stream = (
        frame(payload[:5], BINARY, final=False, compressed=True)
        + frame(b"ping", PING)
        + frame(payload[5:], CONTINUATION)
    )
    assert parser().feed(stream) == [Ping(b"ping"), b"Hello" * 100]


def test_a_corrupt_message_is_refused_at_its_first_byte():
    reader = parser()
    assert reader.feed(packed(b"\xff" * 100)[:7]) == [CANNOT]


def test_compressed_text_must_be_utf8():
    assert parser().feed(frame(deflated("κόσμε".encode()), TEXT, compressed=True)) == ["κόσμε"]
    assert parser().feed(frame(deflated(b"\xff"), TEXT, compressed=True))[0].code == 1007


def test_an_idle_inflater_takes_no_memory():
    inflaters = [Inflater() for _ in range(100)]
    payload = deflated(b"Hello" * 1000)
    tracemalloc.start()
    try:
        for inflater in inflaters:
            inflate_with(inflater, payload)
        assert tracemalloc.get_traced_memory()[0] < 10_000
    finally:
        tracemalloc.stop()


# Compared with another implementation.


def elsewhere(payload):
    """What the websockets package inflates, or ``None`` when it refuses."""
    extension = PerMessageDeflate(True, True, 15, 15)
    try:
        return bytes(extension.decode(Frame(Opcode.BINARY, payload, rsv1=True), max_size=100_000).data)
    except ProtocolError:
        return None


def has_ended(payload):
    """Whether a stream ends in the message. The other implementation does not inflate what follows."""
    stream = zlib.decompressobj(-15)
    try:
        stream.decompress(payload + b"\0\0\xff\xff")
    except zlib.error:
        return False
    return stream.eof


def is_cut_off(payload):
    """Whether the message ends within a block. The other implementation does not see that."""
    stream = zlib.decompressobj(-15)
    try:
        stream.decompress(payload + b"\0\0\xff\xff")
        stream.decompress(b"\x03\x00")
    except zlib.error:
        return True
    return not stream.eof


@given(st.binary(max_size=500), st.integers(9, 15), st.integers(0, 9), st.data())
def test_another_implementation_inflates_to_the_same(data, bits, level, draw):
    damaged = bytearray(deflated(data, bits=bits, level=level))
    for _ in range(draw.draw(st.integers(0, 2))):
        damaged[draw.draw(st.integers(0, len(damaged) - 1))] = draw.draw(st.integers(0, 255))
    payload = bytes(damaged)
    if has_ended(payload):
        return
    theirs = elsewhere(payload)
    assert parser(100_000).feed(packed(payload)) == [CANNOT if theirs is None or is_cut_off(payload) else theirs]


# Deflation.


def test_a_client_can_inflate_a_deflated_message():
    message = b'{"id": 1, "text": "hello"}' * 1000
    payload = Agreement().deflater().deflate(message)
    assert len(payload) < len(message) / 10
    assert elsewhere(payload) == message
    assert inflate(payload) == message


@pytest.mark.parametrize("bits", range(9, 16))
def test_a_message_is_deflated_within_the_agreed_window(bits):
    message = bytes(index * index % 251 for index in range(10_000)) * 3
    payload = Agreement(bits).deflater().deflate(message)
    stream = zlib.decompressobj(-bits)
    assert stream.decompress(payload) == message


def test_a_short_or_incompressible_message_is_not_deflated():
    deflater = Deflater(max_window_bits=15)
    assert deflater.deflate(b"") is None
    assert deflater.deflate(b"a" * 1023) is None
    assert deflater.deflate(b"a" * 1024) is not None
    noise = zlib.compress(bytes(index * index % 65521 % 256 for index in range(20_000)), 9)
    assert len(noise) > 1024
    assert deflater.deflate(noise) is None


@given(st.binary(max_size=100), st.integers(1, 5000))
def test_what_is_deflated_arrives(seed, times):
    message = seed * times
    payload = Deflater(max_window_bits=15).deflate(message)
    if payload is None:
        assert len(message) < 1024 or len(deflated(message, level=1)) >= len(message)
    else:
        assert len(payload) < len(message)
        assert parser().feed(packed(payload)) == [message]
