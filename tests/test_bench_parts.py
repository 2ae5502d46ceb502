"""The parts of the load generator: durations, messages, frames, handshakes, URLs, the clock and what is printed."""

import asyncio
import errno
import json
import math
import socket

import pytest
import wsproto
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from wsproto.events import AcceptConnection, Request

from microws.bench.dialing import Dialer, Line, Refused, reason_of
from microws.bench.effort import Effort
from microws.bench.frames import ServerFrames, masked_close, masked_frame
from microws.bench.handshaking import Handshake, in_few_words
from microws.bench.histogram import Histogram
from microws.bench.messages import MIN_TEXT, Messages
from microws.bench.pace import MAX_BURST, Pace
from microws.bench.plan import Plan
from microws.bench.report import as_json, as_text, counted
from microws.bench.result import Result
from microws.bench.tally import Tally
from microws.bench.target import Target
from microws.bench.verdict import problem_with
from microws.framing import BINARY, PING, Close, Ping, Violation
from microws.framing.parser import FrameParser

WS = ("ws", "wss")

# Durations

durations = st.floats(0, 10_000)


@given(st.lists(durations, min_size=1), st.floats(0.001, 100))
@example([0.0], 50.0)
@example([1e-7 * n for n in range(1000)], 99.9)
def test_a_percentile_is_that_of_the_sorted_list_or_a_little_more(values, percent):
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    exact = sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]
    found = histogram.percentile(percent)
    assert exact - 1e-12 <= found <= exact * (1 + 1 / 128) + 1.01e-7
    assert found <= histogram.max == max(values)
    assert histogram.count == len(values)
    assert histogram.mean == pytest.approx(sum(values) / len(values))


def test_a_histogram_without_durations_has_zeros():
    histogram = Histogram()
    assert (histogram.count, histogram.percentile(50), histogram.max, histogram.mean) == (0, 0, 0, 0)


def test_a_histogram_that_is_cleared_begins_anew_and_below_zero_is_zero():
    histogram = Histogram()
    histogram.record(5)
    histogram.clear()
    histogram.record(-1e-6)
    assert (histogram.count, histogram.max, histogram.percentile(100)) == (1, 0, 0)


# Messages

templates = st.one_of(
    st.just("{text}"), st.tuples(st.text(), st.text()).map("{text}".join).filter(lambda text: text.count("{text}") == 1)
)


@given(templates, st.integers(MIN_TEXT, 500), st.integers(0, 10**12 - 1), st.booleans())
def test_a_message_is_known_by_its_number_wherever_it_stands_and_its_frame_is_read_as_it_is(
    template, size, number, binary
):
    messages = Messages(template, size=size, binary=binary)
    payload = messages.payload(number)
    assert len(payload) == messages.size == size + len(template.encode()) - len("{text}")
    assert messages.number_in(payload) == messages.number_in(b"before" + payload + b"behind") == number
    assert messages.is_whole_in(b"before" + payload)
    expected = payload if binary else payload.decode()
    assert FrameParser(max_message_size=1 << 20).feed(messages.frame(number)) == [expected]


@given(st.text().filter(lambda text: "{text}" not in text), st.integers(0, 9))
def test_a_message_without_a_place_for_the_text_is_always_the_same(template, number):
    messages = Messages(template, size=64)
    assert messages.payload(number) == template.encode()
    assert FrameParser(max_message_size=1 << 20).feed(messages.frame(number)) == [template]
    assert not messages.is_numbered


def test_other_payloads_have_no_number():
    messages, others = Messages(size=64), Messages(size=64)
    payload = messages.payload(7)
    assert others.number_in(payload) is None
    assert messages.number_in(payload[:12]) is None
    assert messages.number_in(payload.replace(b"000007", b"00000x")) is None
    assert not messages.is_whole_in(payload[:-1])


def test_json_strings_keep_the_number():
    messages = Messages('{"text": "{text}"}', size=64)
    value = json.loads(messages.payload(3))
    assert messages.number_in(json.dumps({"event": "said", **value}).encode()) == 3


# Frames

chunks = st.binary(max_size=300) | st.integers(65_530, 65_540).map(bytes)


@st.composite
def conversations(draw):
    """Frames of a server; the messages and pings in them."""
    frames, messages, pings = [], [], []
    for payload in draw(st.lists(chunks, max_size=5)):
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        pieces = [payload[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        for index, piece in enumerate(pieces):
            opcode = Opcode.CONT if index else draw(st.sampled_from([Opcode.TEXT, Opcode.BINARY]))
            frames.append(Frame(opcode, piece, fin=index == len(pieces) - 1))
            for ping in draw(st.lists(st.binary(max_size=125), max_size=1)):
                frames += [Frame(Opcode.PING, ping), Frame(Opcode.PONG, b"")]
                pings.append(ping)
        messages.append(payload)
    return b"".join(frame.serialize(mask=False) for frame in frames), messages, pings


@given(conversations(), st.lists(st.integers(0, 70_000), max_size=6))
def test_the_frames_of_a_server_are_read_however_they_come(conversation, cuts):
    stream, messages, pings = conversation
    parser = ServerFrames()
    found = []
    places = sorted(min(cut, len(stream)) for cut in cuts)
    for start, stop in zip([0, *places], [*places, len(stream)], strict=True):
        found += parser.feed(stream[start:stop])
    assert found == messages
    assert parser.pings == pings
    assert parser.end is None
    assert parser.is_between


def test_frames_may_come_byte_by_byte():
    stream = Frame(Opcode.TEXT, b"a" * 200).serialize(mask=False) + Frame(Opcode.CLOSE, b"\x03\xe8bye").serialize(
        mask=False
    )
    parser = ServerFrames()
    found = [message for byte in stream for message in parser.feed(bytes([byte]))]
    assert found == [b"a" * 200]
    assert parser.end == Close(1000, "bye")


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"\x88\x00", Close(None, "")),
        (b"\x88\x02\x0f\xa0", Close(4000, "")),
        (b"\x88\x02\x03\xed", "a Close frame has a code that may not be sent, or no text"),
        (b"\x88\x01\x03", "a Close frame has a code that may not be sent, or no text"),
        (b"\x88\x03\x03\xe8\xff", "a Close frame has a code that may not be sent, or no text"),
        (b"\x81\x85aaaahello", "a frame of a server must not be masked"),
        (b"\x81\x7e\x00\x05hello", "the length of a frame is not in its shortest form"),
        (b"\x82\x7f" + (5).to_bytes(8), "the length of a frame is not in its shortest form"),
        (b"\x82\x7f" + (1 << 40).to_bytes(8), f"a frame of {1 << 40} bytes"),
        (b"\xc1\x01a", "a reserved bit is set, and no extension was agreed on"),
        (b"\x83\x00", "opcode 3 is reserved"),
        (b"\x09\x00", "a control frame has at most 125 bytes, and no fragments"),
        (b"\x89\x7e\x00\x7e" + bytes(126), "a control frame has at most 125 bytes, and no fragments"),
        (b"\x80\x00", "fragments of messages are mixed up"),
        (b"\x01\x00\x81\x00", "fragments of messages are mixed up"),
    ],
)
def test_the_end_of_a_connection_is_a_close_frame_or_what_is_wrong(data, end):
    parser = ServerFrames()
    assert parser.feed(b"\x81\x02ok" + data) == [b"ok"]
    assert parser.end == (end if isinstance(end, Close) else Violation(1002, end))


def test_a_message_in_fragments_that_grows_beyond_all_measure_is_refused(monkeypatch):
    monkeypatch.setattr("microws.bench.frames.MAX_MESSAGE", 10)
    parser = ServerFrames()
    assert parser.feed(b"\x01\x08aaaaaaaa\x80\x08bbbbbbbb") == []
    assert parser.end == Violation(1002, "a message of more than 10 bytes")


@given(st.binary(max_size=125))
def test_control_frames_of_the_client_are_masked(payload):
    parser = FrameParser(max_message_size=100)
    assert parser.feed(masked_frame(payload, PING)) == [Ping(payload)]
    assert parser.feed(masked_close(1000)) == [Close(1000, "")]
    assert FrameParser(max_message_size=100).feed(masked_close(None)) == [Close(None, "")]


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536])
def test_long_frames_of_the_client_have_long_heads(size):
    data = masked_frame(bytes(size), BINARY)
    assert FrameParser(max_message_size=1 << 20).feed(data) == [bytes(size)]


# Handshakes


@given(st.lists(st.sampled_from(["chat", "v1.json", "mqtt"]), unique=True), st.sampled_from(["/", "/a/b?x=1&y=%20"]))
def test_another_server_takes_the_handshake_and_its_answer_is_taken(subprotocols, path):
    target = Target.parse(f"ws://example.org:8000{path}", schemes=WS)
    handshake = Handshake(target, headers=[("X-Key", "k")], subprotocols=subprotocols)
    request, key = handshake.request()
    server = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    server.receive_data(request)
    (asked,) = server.events()
    assert isinstance(asked, Request)
    assert (asked.host, asked.target, asked.subprotocols) == ("example.org:8000", path, subprotocols)
    assert (b"x-key", b"k") in asked.extra_headers
    answer = server.send(AcceptConnection(subprotocol=subprotocols[-1] if subprotocols else None))
    assert handshake.problem_with(answer.removesuffix(b"\r\n\r\n"), key) is None


def test_a_refusal_is_told_with_the_beginning_of_its_text_but_not_of_a_page():
    assert in_few_words("HTTP 400", b" no\n way ") == "HTTP 400, 'no way'"
    assert in_few_words("HTTP 400", b"") == in_few_words("HTTP 400", b"<html>") == "HTTP 400"
    assert in_few_words("HTTP 400", b"x" * 500) == f"HTTP 400, '{'x' * 100}'"


# URLs


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "authority", "path"),
    [
        ("ws://127.0.0.1:8000/echo", "ws", "127.0.0.1", 8000, "127.0.0.1:8000", "/echo"),
        ("wss://example.org", "wss", "example.org", 443, "example.org", "/"),
        ("ws://example.org:80/a?b=c", "ws", "example.org", 80, "example.org", "/a?b=c"),
        ("ws://[::1]:9/", "ws", "::1", 9, "[::1]:9", "/"),
        (
            "ws://b\u00fccher.example/\u00e4 b?\u00f6",
            "ws",
            "xn--bcher-kva.example",
            80,
            "xn--bcher-kva.example",
            "/%C3%A4%20b?%C3%B6",
        ),
        ("ws://h/%20", "ws", "h", 80, "h", "/%20"),
    ],
)
def test_a_url_is_taken_apart(url, scheme, host, port, authority, path):
    target = Target.parse(url, schemes=WS)
    assert (target.scheme, target.host, target.port, target.authority, target.path) == (
        scheme,
        host,
        port,
        authority,
        path,
    )
    assert target.is_websocket
    assert target.is_secure == (scheme == "wss")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://h:1/x", "did you mean ws://h:1/x ?"),
        ("https://h/x", "did you mean wss://h/x ?"),
        ("localhost:8000/x", "did you mean ws://localhost:8000/x ?"),
        ("/echo", "expected a URL that begins with ws:// or wss://, got '/echo'"),
        ("ftp://h/", "expected a URL that begins with ws:// or wss://, got 'ftp://h/'"),
        ("ws:///x", "'ws:///x' names no host; write ws://127.0.0.1:8000/"),
        ("ws://h:x/", "'ws://h:x/' is no URL: "),
        ("ws://h:99999/", "'ws://h:99999/' is no URL: "),
        ("ws://[::1/", "'ws://[::1/' is no URL: "),
        ("ws://anna:pw@h/", "belong into a header: --header 'Authorization: Basic …'"),
        ("ws://h/#top", "leave out #top"),
        ("ws://\u00fc..example/", "can be no name of a host"),
        ("ws://a..b/", "can be no name of a host"),
    ],
)
def test_what_is_no_url_is_told_with_what_to_write(url, problem):
    with pytest.raises(ValueError, match=r".*") as told:
        Target.parse(url, schemes=WS)
    assert problem in str(told.value)


# Connections


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "closed by the server"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "connection refused"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "connection reset by the server"),
        (OSError(errno.EMFILE, "x"), "too many open files"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "cannot assign requested address"),
        (socket.gaierror(-2, "x"), "unknown host"),
        (OSError("Multiple exceptions"), "Multiple exceptions"),
        (ValueError(), "ValueError"),
    ],
)
def test_why_there_is_no_connection_is_told_in_a_few_words(error, reason):
    assert reason_of(error).startswith(reason)


class Plain(Line):
    """A connection that can be used at once."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self.opened.set_result(None)


def test_a_name_with_two_addresses_is_connected_to_at_the_one_where_somebody_listens():
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            target = Target.parse(f"ws://localhost:{listener.getsockname()[1]}/", schemes=WS)
            dialer = Dialer(target, timeout=10)
            dialer._addresses = ["127.0.0.2", "127.0.0.1"]
            line = await dialer.connect(Plain)
            line.abort()
            await line.ended
            line.write(b"to nobody")
            line.hang_up()
        with pytest.raises(Refused, match=r"^connection refused$"):
            await dialer.connect(Plain)

    asyncio.run(main())


def test_a_connection_that_is_dropped_before_it_is_there_is_dropped_when_it_is():
    async def main():
        server, client = socket.socketpair()
        with server:
            line = Plain()
            line.abort()
            await asyncio.get_running_loop().create_connection(lambda: line, sock=client)
            async with asyncio.timeout(10):
                await line.ended

    asyncio.run(main())


# The clock


def test_what_is_due_is_sent_in_order_and_later_when_it_cannot_be():
    seen = []

    def send(due):
        seen.append(due)
        if len(seen) == 60:
            enough.set()
        return len(seen) % 3 != 0

    async def main():
        pace = Pace(500, send)
        pace.start()
        async with asyncio.timeout(10):
            await enough.wait()
        unsent = pace.stop()
        assert pace.lateness.count == len(set(seen)) - (unsent > 0)

    enough = asyncio.Event()
    asyncio.run(main())
    assert seen == sorted(seen)
    distinct = sorted(set(seen))
    assert distinct[10] - distinct[0] == pytest.approx(10 / 500)


def test_what_could_not_be_sent_is_told_at_the_end():
    async def main():
        pace = Pace(1000, lambda due: False)
        pace.start()
        await asyncio.sleep(0.05)
        assert pace.stop() >= 50

    asyncio.run(main())


def test_however_much_is_due_it_goes_in_small_portions():
    portions = []

    async def main():
        pace = Pace(10_000_000, lambda due: portions.append(due) is None)
        pace.start()
        await asyncio.sleep(0.02)
        before = len(portions)
        assert pace.stop() > 0
        assert len(portions) - before <= MAX_BURST

    asyncio.run(main())


def test_where_the_system_does_not_say_it_nobody_has_waited(monkeypatch, tmp_path):
    monkeypatch.setattr("microws.bench.effort._SCHEDULER", tmp_path / "none")
    assert Effort().shares()[1] == 0


# The lines


def result_of(**options):
    plan = Plan(target=Target.parse("ws://h/", schemes=WS), **options.pop("plan", {}))
    return Result(plan=plan, **({"seconds": 1.0, "done": 5, "sent": 5} | options))


@pytest.mark.parametrize(
    ("tally", "problem"),
    [
        (Tally(), None),
        (
            Tally(lost=2),
            "2 messages lost, or not there within 5 s; does the app drop messages for those that do not keep up?",
        ),
        (Tally(unsent=1), "1 message due by --rate not sent; a smaller --rate, or more --connections"),
        (Tally(unanswered_closes=1), "1 Close frame not answered by closing within 5 s; the server's log says more"),
        (Tally(duplicates=1), "1 message came again, or unasked; does the app publish to all? --fan-out is for that"),
    ],
)
def test_a_problem_is_one_line_with_a_hint(tally, problem):
    assert problem_with(result_of(tally=tally)) == problem


def test_nothing_measured_is_a_problem_too():
    assert problem_with(result_of(done=0)) == "nothing came in the time that was measured; a larger --seconds?"
    lost = Tally(lost=3)
    assert problem_with(result_of(done=0, tally=lost)).endswith(
        "does the app answer each message? --fan-out is for apps that publish"
    )
    fan_out = {"mode": "fan-out", "publish": Target.parse("ws://h/p", schemes=WS)}
    assert problem_with(result_of(done=0, tally=lost, plan=fan_out)).endswith(
        "is this the URL of those who get what --publish publishes?"
    )


def test_every_count_of_errors_is_in_the_table():
    tally = Tally(lost=1001, duplicates=2, out_of_order=3, wrong=4, late=5, others=6, unsent=7, unanswered_closes=8)
    tally.refused["HTTP 503"] = 9
    tally.closes[(1013, "too slow")] = 10
    tally.closes[(1005, "")] = 11
    text = as_text(result_of(tally=tally))
    assert "1,001 lost, 2 duplicates, 3 out of order, 4 wrong, 5 came too late, 6 others, 7 could not be sent" in text
    assert "0 opened, 9 refused, 21 closed, 8 without an answer to Close" in text
    assert "9 × HTTP 503" in text
    assert "10 × 1013 too slow" in text
    assert "11 × 1005 (no reason given)" in text
    errors = as_json(result_of(tally=tally))["errors"]
    assert errors["total"] == tally.errors == 1001 + 2 + 3 + 4 + 7 + 8 + 9 + 21
    assert {"code": 1013, "reason": "too slow", "count": 10} in errors["closed"]


def test_many_kinds_of_reasons_are_cut_short():
    tally = Tally()
    for number in range(9):
        tally.refused[f"HTTP 50{number}"] = 9 - number
    assert "… and for 4 other reasons" in as_text(result_of(tally=tally))


def test_a_generator_that_sent_late_says_so():
    late = Histogram()
    late.record(0.002)
    answers = Histogram()
    answers.record(0.003)
    result = result_of(latencies={"answer": answers}, lateness=late, plan={"rate": 5.0})
    assert "much of these latencies is the generator's own" in as_text(result)
    assert as_json(result)["sent_late_seconds"]["p50"] == pytest.approx(0.002)


def test_numbers_have_their_words():
    assert [counted(number, "publish") for number in (1, 2, 1000)] == ["1 publish", "2 publishes", "1,000 publishes"]
    assert counted(0, "message") == "0 messages"
