"""What ``microws bench`` measures: a plan, and the messages that it sends."""

import secrets
from dataclasses import dataclass
from typing import Literal, final

from websockets.exceptions import InvalidURI
from websockets.uri import WebSocketURI, parse_uri

from microws.framing.frames import BINARY, TEXT, encode_head
from microws.framing.parser import apply_mask

__all__ = ["MIN_TEXT", "PLACE_OF_TEXT", "Messages", "Plan", "parse_url"]

# Replaced in --message by the numbered text: "#", six hexadecimal digits that name the stream, "-", twelve digits of
# the number, and letters up to --size. All but "#", which is not searched for, is unchanged by JSON, HTML and URLs.
PLACE_OF_TEXT = "{text}"
MIN_TEXT = 20
_DIGITS = 12


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """
    One run.

    Attributes:
        url: Where the connections go.
        mode: ``echo``: each connection sends messages and waits for their answers. ``fan-out``: one publisher sends,
            and every connection receives. ``connects``: connect, close, repeat.
        publish: ``fan-out``: the URL that the publisher connects to (ws, wss) or POSTs to (http, https).
        connections: Open at the same time.
        seconds: Length of the measurement.
        warm_up: Seconds before it that are not measured.
        in_flight: Unanswered messages of each connection, or of the publisher.
        rate: Open loop: messages, publishes or connects a second. ``None``: closed loop; an answer starts the next one.
        message: What is sent; ``{text}`` in it stands for the numbered text.
        size: Bytes of that text.
        binary: Send binary messages.
        timeout: Seconds for a handshake, a POST and a closing handshake, and until a message counts as lost.
        subprotocol: Offered in each handshake.
        header: Sent with each handshake and POST.
        insecure: Accept any certificate.
    """

    url: str
    mode: Literal["echo", "fan-out", "connects"] = "echo"
    publish: str = ""
    connections: int = 100
    seconds: float = 10.0
    warm_up: float = 1.0
    in_flight: int = 1
    rate: float | None = None
    message: str = PLACE_OF_TEXT
    size: int = 64
    binary: bool = False
    timeout: float = 5.0
    subprotocol: tuple[str, ...] = ()
    header: tuple[tuple[str, str], ...] = ()
    insecure: bool = False

    @property
    def is_numbered(self) -> bool:
        """Whether each message can be recognized by its number."""
        return PLACE_OF_TEXT in self.message

    @property
    def posts(self) -> bool:
        """Whether messages are published by POST."""
        return self.publish.startswith("http")

    @property
    def is_ordered(self) -> bool:
        """Whether messages must arrive in order: concurrent POSTs overtake each other."""
        return not self.posts or (self.rate is None and self.in_flight == 1)


@final
class Messages:
    """Makes the messages of a plan, and finds their numbers in what comes back."""

    def __init__(self, plan: Plan) -> None:
        before, place, after = plan.message.partition(PLACE_OF_TEXT)
        self._filler = (b"abcdefghijklmnopqrstuvwxyz" * (plan.size // 26 + 1))[: plan.size - MIN_TEXT if place else 0]
        self._before = before.encode() + (b"#" if place else b"")
        self._after = self._filler + after.encode()
        self._is_numbered = plan.is_numbered
        self._first_mark = secrets.randbelow(1 << 24)
        self.size: int = len(self.payload(self.mark(0), 0))
        # RFC 6455 §5.3 wants an unpredictable mask for each frame, because hostile scripts may attack proxies. Here are
        # no hostile scripts: one mask saves a call per message.
        self._mask = secrets.token_bytes(4)
        first, length, *rest = encode_head(self.size, BINARY if plan.binary else TEXT)
        self._head = bytes((first, length | 0x80, *rest)) + self._mask

    def mark(self, stream: int) -> bytes:
        """What the messages of one stream have in common, and those of no other stream or run have."""
        return b"%06x-" % ((self._first_mark + stream) % (1 << 24))

    def payload(self, mark: bytes, number: int) -> bytes:
        """The payload of the message with this number."""
        return b"%b%b%b" % (self._before, b"%b%012d" % (mark, number) if self._is_numbered else b"", self._after)

    def frame(self, payload: bytes) -> bytes:
        """The masked frame of a payload."""
        return self._head + apply_mask(payload, self._mask)

    def number_in(self, payload: bytes, mark: bytes) -> tuple[int | None, bool]:
        """The number that is anywhere in ``payload``, if any, and whether the rest of the text follows it."""
        start = payload.find(mark) + len(mark)
        end = start + _DIGITS
        if start < len(mark) or not payload[start:end].isdigit():
            return None, False
        return int(payload[start:end]), payload.startswith(self._filler, end)


def parse_url(url: str) -> WebSocketURI:
    """
    The parts of a ws, wss, http or https URL.

    Raises:
        ValueError: Not such a URL, or one with a name and password, which reports would show.
    """
    try:
        uri = parse_uri((f"ws{url[4:]}" if url.startswith("http") else url).replace(" ", "%20"))
    except InvalidURI as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        reason = "expected a port, 0 to 65535, after the colon" if "Port" in str(error) else error
        raise ValueError(f"{url} isn't a valid URI: {reason}") from None
    if uri.user_info:
        raise ValueError("a name and password belong in --header 'Authorization: Basic …'")
    return uri
