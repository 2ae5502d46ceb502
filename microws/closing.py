"""Close codes and reasons: which ones may be sent, and the default reasons. RFC 6455 §7.4, the IANA registry."""

from enum import IntEnum

__all__ = ["DEFAULT_REASONS", "MAX_REASON_BYTES", "CloseCode", "check_close", "truncate_reason"]

# RFC 6455 §5.5: a control frame's payload is at most 125 bytes, two of which are the code.
MAX_REASON_BYTES = 123


class CloseCode(IntEnum):
    """The registered close codes. 1005, 1006 and 1015 are reported, but never sent (RFC 6455 §7.4.1)."""

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS_RECEIVED = 1005
    ABNORMAL_CLOSURE = 1006
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


DEFAULT_REASONS = {
    CloseCode.INTERNAL_ERROR: "internal error",
    CloseCode.MESSAGE_TOO_BIG: "message too big",
    CloseCode.SERVICE_RESTART: "service restart",
    CloseCode.TRY_AGAIN_LATER: "too slow",
}


def check_close(code: int, reason: str) -> None:
    """
    Refuse a close code or reason that a Close frame may not have.

    Raises:
        TypeError: ``code`` is not an ``int``.
        ValueError: ``code`` is not one of 1000–1003, 1007–1014 and 3000–4999, or ``reason`` is over 123 UTF-8 bytes or
            not encodable.

    Source: RFC 6455 §5.5, §7.4.
    """
    if not isinstance(code, int):
        raise TypeError(f"expected a number as close code, got {code!r}; the reason comes second: close(1000, reason)")
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise ValueError(
            f"expected a close code of 1000 to 1003, 1007 to 1014, or 3000 to 4999 for your own codes, got {code}"
        )
    try:
        size = len(reason.encode())
    except UnicodeEncodeError:
        raise ValueError(f"expected a close reason for UTF-8, got a lone surrogate in {reason!r}") from None
    if size > MAX_REASON_BYTES:
        raise ValueError(f"expected a close reason of at most {MAX_REASON_BYTES} UTF-8 bytes, got {size}")


def truncate_reason(reason: str) -> str:
    """Cut ``reason`` at a character so that it fits a Close frame; a lone surrogate becomes ``?``."""
    return reason.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")
