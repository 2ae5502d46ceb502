"""
The same bytes through this package's parser of requests and through h11: the same requests, and the same end.

Where this one is stricter, ``STRICTER`` says so, and where it is laxer, ``LAXER``. Cases are random requests one behind
the other, many of them damaged; a failure names its own, and ``FUZZ_CASE`` set to that name runs it alone.
``FUZZ_CASES`` is how many there are; ``FUZZ_SEED=random`` makes them new.
"""

import os
import random
import re
import secrets
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import h11
import pytest
from http_here import request
from test_http1 import REFUSED, SMUGGLING, UNKNOWN

from microws.server.request_parser import Refused, RequestParser

CASES = int(os.environ.get("FUZZ_CASES", "100000"))
SEED = os.environ.get("FUZZ_SEED", "1")
PARTS = 20

MAX_HEAD_SIZE = 2048

# What a request that broke off may go on with.
ENDS = (b"\r\n\r\n", b"x\r\n\r\n", b":\r\n\r\n", b"0\r\n\r\n")


class Request(NamedTuple):
    """A request with its whole body."""

    method: str
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Outcome(NamedTuple):
    """
    What a parser makes of the first request of a stream.

    Attributes:
        request: ``None`` where it is refused or not whole; ``body`` is then what was seen of its body.
        status: Of the answer to a request that is refused, 0 otherwise; h11 says 400 to most.
        rest: What stands behind the request.
        is_handshake: Whether a WebSocket begins there.
        is_last: Whether no request may follow.
    """

    request: Request | None
    body: bytes
    status: int
    rest: bytes
    is_handshake: bool = False
    is_last: bool = False
    detail: str = ""


# What the parsers say.


def ours(stream: bytes, *, cuts: list[int]) -> Outcome:
    parser = RequestParser(MAX_HEAD_SIZE)
    body = b""
    places = [0, *cuts, len(stream)]
    for start, stop in pairwise(places):
        try:
            rest = parser.feed(stream[start:stop])
        except Refused as refusal:
            return Outcome(None, body + b"".join(parser.body), refusal.status, b"", detail=refusal.detail)
        body += b"".join(parser.body)
        parser.body.clear()
        if parser.is_complete:
            head = parser.head
            assert head is not None
            # h11 writes this one small.
            headers = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in head.headers]
            request = Request(head.method, head.target, head.version, headers, body)
            behind = rest + stream[stop:]
            return Outcome(request, body, 0, behind, head.asks_for_websocket, not head.keep_alive)
        assert rest == b"", "bytes are left behind a request that is not complete"
    return Outcome(None, body, 0, b"")


def of_h11(stream: bytes) -> Outcome:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    if not stream:
        return Outcome(None, b"", -1, b"")
    connection.receive_data(stream)
    request = None
    body = b""
    try:
        while (event := connection.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Request):
                version = event.http_version.decode()
                headers = [(bytes(name), bytes(value)) for name, value in event.headers]
                request = Request(event.method.decode(), bytes(event.target), version, headers, b"")
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                return Outcome(request._replace(body=body), body, 0, connection.trailing_data[0])
    except h11.RemoteProtocolError as error:
        return Outcome(None, body, error.error_status_hint, b"", detail=str(error))
    return Outcome(request, body, -1, b"")


# Where they differ.


def head_of(stream: bytes) -> bytes:
    """As h11 sees it, which ends it at a line that is empty but for a CR."""
    found = re.search(rb"\n\r?\n", stream)
    return stream[: found.end()] if found else stream


def values(their: Outcome, name: bytes) -> list[bytes]:
    return [value for key, value in their.request.headers if key == name] if their.request is not None else []


KNOWN_METHODS = re.compile(
    "GET|HEAD|POST|PUT|DELETE|OPTIONS|TRACE|COPY|LOCK|MKCOL|MOVE|PROPFIND|PROPPATCH|SEARCH|UNLOCK|BIND|REBIND|UNBIND|"
    "ACL|REPORT|MKACTIVITY|CHECKOUT|MERGE|M-SEARCH|NOTIFY|SUBSCRIBE|UNSUBSCRIBE|PATCH|PURGE|MKCALENDAR|LINK|UNLINK|"
    "SOURCE|QUERY"
)
HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
ABSOLUTE = re.compile(rb"(?:http|ws)s?://([^/?#]+)([^#]*)", re.IGNORECASE)


def is_valid_target(method: str, target: bytes) -> bool:
    if target == b"*":
        return method == "OPTIONS"
    if target.startswith(b"/"):
        return b"#" not in target
    found = ABSOLUTE.fullmatch(target)
    return bool(found and HOST.fullmatch(found[1]))


class Difference(NamedTuple):
    """
    A kind of request that h11 judges otherwise.

    Attributes:
        holds: Whether this is one, by the stream, the outcome here, and h11's.
        example: One.
    """

    why: str
    holds: Callable[[bytes, Outcome, Outcome], bool]
    example: bytes


G = b"GET / HTTP/1.1\r\nHost: x\r\n"
P = b"POST / HTTP/1.1\r\nHost: x\r\n"
C = P + b"Transfer-Encoding: chunked\r\n\r\n"

STRICTER = [
    Difference(
        # RFC 9112 §5.2: a server MUST reject it, or replace it by spaces.
        "h11 takes a field that is folded",
        lambda stream, our, their: re.search(rb"\n[ \t]", stream) is not None,
        G + b"X: a\r\n b\r\n\r\n",
    ),
    Difference(
        # RFC 9112 §2.2: a recipient MAY recognize a single LF.
        "h11 takes LF without CR",
        lambda stream, our, their: re.search(rb"(?<!\r)\n", stream) is not None,
        G + b"X: a\nY: b\r\n\r\n",
    ),
    Difference(
        # RFC 9110 §5.5: a recipient may retain or reject them; CR, LF and NUL are invalid and dangerous.
        "h11 takes controls in values",
        lambda stream, our, their: re.search(rb"[\x01-\x08\x0b-\x0c\x0e-\x1f\x7f]", stream) is not None,
        G + b"X: a\x01b\r\n\r\n",
    ),
    Difference(
        # RFC 9112 §6.1: "A server MAY reject a request that contains both".
        "h11 takes Content-Length with Transfer-Encoding, and ignores the former",
        lambda stream, our, their: bool(
            values(their, b"transfer-encoding") and re.search(rb"content-length", head_of(stream), re.IGNORECASE)
        ),
        P + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    Difference(
        # RFC 9112 §6.3: "the recipient MUST either reject the message as invalid or replace the duplicated".
        "h11 takes the same Content-Length twice",
        lambda stream, our, their: (
            len(re.findall(rb"\ncontent-length:", head_of(stream), re.IGNORECASE)) > 1
            or re.search(rb"\ncontent-length:[^\n]*,", head_of(stream), re.IGNORECASE) is not None
        ),
        P + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    ),
    Difference(
        "h11 takes a Content-Length of up to 20 digits",
        lambda stream, our, their: any(len(value) > 19 for value in values(their, b"content-length")),
        P + b"Content-Length: 18446744073709551616\r\n\r\n",
    ),
    Difference(
        # RFC 9112 §6.1: "MUST treat the message as if the framing is faulty".
        "h11 takes Transfer-Encoding in HTTP/1.0",
        lambda stream, our, their: their.request.version == "1.0" and bool(values(their, b"transfer-encoding")),
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    Difference(
        # llhttp. RFC 9110 §5.5 lets a tab stand there.
        "h11 takes a tab behind chunked",
        lambda stream, our, their: re.search(rb"\ntransfer-encoding:[^\n]*\t", stream, re.IGNORECASE) is not None,
        P + b"Transfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n",
    ),
    Difference(
        # RFC 9112 §2.3; RFC 9110 §15.6.6.
        "h11 takes every version of one digit, a dot and one digit",
        lambda stream, our, their: their.request.version not in ("1.0", "1.1"),
        b"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
    ),
    Difference(
        # RFC 9112 §3.2.
        "h11 takes every target without spaces",
        lambda stream, our, their: not is_valid_target(their.request.method, their.request.target),
        b"GET a HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    Difference(
        # RFC 9110 §9.1: 501.
        "h11 takes every method that is a token",
        lambda stream, our, their: KNOWN_METHODS.fullmatch(their.request.method) is None and our.status in (400, 501),
        b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    Difference(
        # RFC 9112 §3.2.
        "h11 takes every Host",
        lambda stream, our, their: not all(map(HOST.fullmatch, values(their, b"host"))),
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    ),
    Difference(
        "h11 has no limit for the number of fields",
        lambda stream, our, their: our.status == 431 and len(their.request.headers) > 100,
        G + b"X: y\r\n" * 100 + b"\r\n",
    ),
    Difference(
        "h11 looks at the size of a head only while it is not complete",
        lambda stream, our, their: our.status == 431 and len(head_of(stream)) > MAX_HEAD_SIZE,
        G + b"X: " + b"y" * MAX_HEAD_SIZE + b"\r\n\r\n",
    ),
    Difference(
        # RFC 9110 §10.1.1.
        "h11 leaves other expectations to the server",
        lambda stream, our, their: our.status == 417 and bool(values(their, b"expect")),
        G + b"Expect: coffee\r\n\r\n",
    ),
    Difference(
        # RFC 9112 §7.1 allows no blanks there; many take them.
        "h11 takes blanks behind the size of a chunk",
        lambda stream, our, their: re.search(rb"[0-9A-Fa-f][ \t]+\r\n", stream) is not None,
        C + b"4 \r\nabcd\r\n0\r\n\r\n",
    ),
    Difference(
        # RFC 9112 §7.1.1.
        "h11 takes everything as an extension of a chunk",
        lambda stream, our, their: re.search(rb"[0-9A-Fa-f];", stream) is not None,
        C + b"4;,\r\nabcd\r\n0\r\n\r\n",
    ),
    Difference(
        "h11 takes a chunk of more than 2**64 bytes",
        lambda stream, our, their: re.search(rb"[0-9A-Fa-f]{17,}", stream) is not None,
        C + b"10000000000000000\r\nabcd",
    ),
    Difference(
        # RFC 9110 §6.5.1: such fields must not stand there. RFC 9112 §7.1.2 lets a recipient ignore them.
        "h11 takes fields about the framing in the trailer",
        lambda stream, our, their: (
            re.search(rb"\n(?:content-length|transfer-encoding):", stream[len(head_of(stream)) :], re.IGNORECASE)
            is not None
        ),
        C + b"0\r\nContent-Length: 4\r\n\r\n",
    ),
]

LAXER = [
    Difference(
        # RFC 9112 §2.2: "SHOULD ignore at least one empty line received prior to the request-line".
        "h11 takes no blank line before a request",
        lambda stream, our, their: stream.startswith(b"\r\n"),
        b"\r\n" + G + b"\r\n",
    ),
    Difference(
        # RFC 9112 §7.1 sets no limit; here it is that of a head.
        "h11 takes at most 20 digits for the size of a chunk",
        lambda stream, our, their: re.search(rb"\n0{5,}[0-9A-Fa-f]{16}|\n0{20,}", stream) is not None,
        C + b"000000000000000000004\r\nabcd\r\n0\r\n\r\n",
    ),
]


def as_ours(their: Outcome) -> Outcome:
    """h11 leaves the forms of a target to the server: RFC 9112 §3.2.2."""
    request = their.request
    if request is not None and (found := ABSOLUTE.fullmatch(request.target)):
        others = [field for field in request.headers if field[0] != b"host"]
        target = found[2] if found[2].startswith(b"/") else b"/" + found[2]
        request = request._replace(target=target, headers=[(b"host", found[1]), *others])
    return their._replace(request=request)


def compare_first(stream: bytes, cuts: list[int]) -> Outcome:
    our = ours(stream, cuts=[])
    pieces = ours(stream, cuts=cuts)
    # Of two faults of a request, another one may be seen first.
    same = Outcome(None, b"", 400, b"")
    assert (same if pieces.status else pieces) == (same if our.status else our), f"in pieces: {pieces}, whole: {our}"
    stripped = stream
    while stripped.startswith(b"\r\n"):
        stripped = stripped[2:]
    # A handshake ends behind its head; if it says that it has a body, the engine refuses it.
    their = of_h11(head_of(stripped) if our.is_handshake else stripped)
    if our.request is not None and their.request is not None and (their.status == 0 or our.is_handshake):
        expected = as_ours(their)
        assert our.request == expected.request, f"h11: {expected.request}"
        assert our.is_handshake or our.rest == their.rest, f"h11 leaves {their.rest!r}"
    elif our.status:
        assert their.body.startswith(our.body) or our.body.startswith(their.body), f"h11: {their}"
        # Where h11 has not seen all yet, what it would make of it.
        for end in [b""] if their.status >= 0 else ENDS:
            whole = of_h11(stripped + end)
            is_known = whole.request is not None and any(rule.holds(stripped + end, our, whole) for rule in STRICTER)
            assert is_known or whole.status > 0, f"refused here: {our.detail}; h11: {whole}"
    elif our.request is not None:
        assert any(known.holds(stripped, our, their) for known in LAXER), f"taken here; h11: {their.detail}"
    else:
        # Neither whole nor refused so far.
        assert their.body == our.body or their.status > 0
        assert their.status != 0, f"not whole here; h11: {their}"
        if their.status > 0:
            is_known = any(rule.holds(stripped, our, their) for rule in LAXER)
            assert is_known or is_refused_at_its_end(stream), f"not refused here; h11: {their.detail}"
    return our


def is_refused_at_its_end(stream: bytes) -> bool:
    """Whether what h11 refuses already is refused here as soon as it is whole."""
    return all(ours(stream + end, cuts=[]).request is None for end in ENDS)


def compare(stream: bytes, cut: Callable[[bytes], list[int]]) -> None:
    while stream:
        outcome = compare_first(stream, cut(stream))
        if outcome.request is None or outcome.is_handshake or outcome.is_last:
            return
        assert len(outcome.rest) < len(stream)
        stream = outcome.rest


# The cases.

FIELDS = [
    b"Accept: */*", b"X-Empty:", b"X-Blanks: \t a \t b \t ", b"x-high: \xe9\xff", b"!#$%&'*+-.^_`|~09: a",
    b"Cookie: a=b; c=d", b"Connection: close", b"Connection: x, Upgrade", b"Upgrade: websocket",
    b"Expect: 100-continue", b"Expect: coffee", b"TE: trailers", b"Content-Length: 5", b"Transfer-Encoding: chunked",
]  # fmt: skip
TARGETS = ["/", "/a/b?c=d&e", "/%41%20", "//a", "http://y/z?a", "HTTP://y:80", "ws://y/", '/a"<>^`{|}\\']
GOOD = [
    *SMUGGLING.values(),
    *(request(field) for field in FIELDS),
    *(request(first=f"{method} {target} HTTP/1.1") for method in ("GET", "M-SEARCH") for target in TARGETS),
    *(request(host=host) for host in ("x.example:80", "[::1]:1")),
    request(*["X: y"] * 98),
    request(first="OPTIONS * HTTP/1.1"),
]
ODD = [*REFUSED.values(), *UNKNOWN.values(), request(*["X: y"] * 400)]
SPLICES = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b":", b",", b";", b"0", b"\r\n\r\n", b"GET / HTTP/1.1\r\n", b"\xff",
    b"#",
]  # fmt: skip


def make_case(name: str) -> tuple[bytes, Callable[[bytes], list[int]]]:
    rng = random.Random(name)
    is_odd = rng.random() < 0.5
    stream = b"".join(a_request(rng, is_odd=is_odd) for _ in range(rng.choice((1, 1, 2, 3))))
    if rng.random() < 0.3:
        stream = damage(rng, stream)

    def cut(rest: bytes) -> list[int]:
        if rng.random() < 0.05:
            return list(range(1, len(rest)))
        return sorted(rng.randrange(len(rest) + 1) for _ in range(rng.randrange(6)))

    return stream, cut


def a_request(rng: random.Random, *, is_odd: bool) -> bytes:
    """One of the tables, or two in one: the second one's fields among those of the first."""
    whole = rng.choice(ODD if is_odd and rng.random() < 0.4 else GOOD)
    if rng.random() < 0.5:
        return whole
    head, _, body = whole.partition(b"\r\n\r\n")
    others = rng.choice(ODD if is_odd and rng.random() < 0.2 else GOOD).partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    fields = [line for line in others if is_odd or not line.lower().startswith((b"host", b"content-", b"transfer-"))]
    blank = b"\r\n" * rng.choice((1, 1, 2)) if rng.random() < 0.05 else b""
    return blank + b"\r\n".join((head, *rng.sample(fields, rng.randrange(len(fields) + 1)))) + b"\r\n\r\n" + body


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
            case 4:
                stream = stream[:place] + rng.choice(SPLICES) + stream[place:]
            case _ if place < len(stream):
                stream = stream[:place] + bytes([stream[place] ^ (1 << rng.randrange(8))]) + stream[place + 1 :]
    return stream


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(PARTS))
def test_h11_parses_the_same_requests(part):
    seed = secrets.token_hex(4) if SEED == "random" else SEED
    for number in range(CASES // PARTS):
        name = f"{seed}-{part}-{number}"
        stream, cut = make_case(name)
        try:
            compare(stream, cut)
        except AssertionError as error:
            raise AssertionError(f"FUZZ_CASE={name}, {stream!r}: {error}") from error


def test_h11_parses_the_same_requests_in_the_named_case():
    compare(*make_case(os.environ.get("FUZZ_CASE", "1-0-0")))


@pytest.mark.parametrize("difference", STRICTER, ids=lambda difference: difference.why)
def test_h11_accepts_each_example_of_stricter(difference):
    our, their = ours(difference.example, cuts=[]), of_h11(difference.example)
    assert our.status
    assert their.request is not None
    assert difference.holds(difference.example, our, their)


@pytest.mark.parametrize("difference", LAXER, ids=lambda difference: difference.why)
def test_h11_refuses_each_example_of_laxer(difference):
    our, their = ours(difference.example, cuts=[]), of_h11(difference.example)
    assert our.request is not None
    assert their.status >= 400
    assert difference.holds(difference.example, our, their)
