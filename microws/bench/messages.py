"""The messages that are sent: each with a number, by which it is known again wherever it comes out."""

import secrets
from typing import final

from microws.framing import BINARY, TEXT, encode_head
from microws.framing.parser import apply_mask

__all__ = ["MIN_TEXT", "PLACE_OF_TEXT", "Messages"]

# What stands in a message of the user's own for the text with the number.
PLACE_OF_TEXT = "{text}"

# "#", six digits that name this run, "-", then the number. ASCII that neither JSON nor HTML nor a URL's query changes
# but for the "#" itself, which is not looked for.
_DIGITS = 12
MIN_TEXT = 1 + 6 + 1 + _DIGITS

_FILLER = b"abcdefghijklmnopqrstuvwxyz"
_MASKED = 0x80


@final
class Messages:
    """
    Makes the messages of one run, as payloads and as frames, and reads their numbers.

    Args:
        template: The message; ``{text}`` in it stands for the numbered text. Without it every message is the same.
        size: Bytes of the numbered text, ``MIN_TEXT`` or more.
        binary: Send binary frames.
    """

    __slots__ = (
        "_after",
        "_before",
        "_filler",
        "_frame_end",
        "_frame_start",
        "_mark",
        "_rotated",
        "is_numbered",
        "size",
    )

    def __init__(self, template: str = PLACE_OF_TEXT, *, size: int, binary: bool = False) -> None:
        before, place, after = template.partition(PLACE_OF_TEXT)
        self.is_numbered = bool(place)
        self._mark = f"{secrets.token_hex(3)}-".encode()
        length = size - MIN_TEXT
        self._filler = (_FILLER * (length // len(_FILLER) + 1))[:length]
        self._before = before.encode()
        self._after = after.encode()
        if self.is_numbered:
            self._before += b"#" + self._mark
            self._after = self._filler + self._after
        self.size = len(self.payload(0))
        # Every frame of a run has the same mask, so that only the number has to be masked anew.
        mask = secrets.token_bytes(4)
        head = encode_head(self.size, BINARY if binary else TEXT)
        head = bytes((head[0], head[1] | _MASKED)) + head[2:]
        masked = apply_mask(self.payload(0), mask)
        start = len(self._before)
        self._frame_start = head + mask + masked[:start]
        self._frame_end = masked[start + (_DIGITS if self.is_numbered else 0) :]
        turn = start % 4
        self._rotated = mask[turn:] + mask[:turn]

    def payload(self, number: int) -> bytes:
        """A message as it is."""
        return b"%b%b%b" % (self._before, b"%012d" % number if self.is_numbered else b"", self._after)

    def frame(self, number: int) -> bytes:
        """A message as a masked frame."""
        if not self.is_numbered:
            return self._frame_start + self._frame_end
        return b"%b%b%b" % (self._frame_start, apply_mask(b"%012d" % number, self._rotated), self._frame_end)

    def number_in(self, payload: bytes) -> int | None:
        """The number of the message of this run that stands somewhere in ``payload``."""
        start = payload.find(self._mark)
        if start < 0:
            return None
        start += len(self._mark)
        digits = payload[start : start + _DIGITS]
        return int(digits) if len(digits) == _DIGITS and digits.isdigit() else None

    def is_whole_in(self, payload: bytes) -> bool:
        """Whether in a ``payload`` that has a number all of the text stands behind it."""
        return payload.startswith(self._filler, payload.find(self._mark) + len(self._mark) + _DIGITS)
