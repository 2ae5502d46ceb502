"""Close codes and reasons."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microws.closing import DEFAULT_REASONS, MAX_REASON_BYTES, CloseCode, check_close, truncate_reason

# RFC 6455 §7.4; 1012 to 1014 are IANA's.
MAY_BE_SENT = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


def test_the_codes_are_the_registered_ones():
    assert {code.name: code.value for code in CloseCode} == {
        "NORMAL_CLOSURE": 1000,
        "GOING_AWAY": 1001,
        "PROTOCOL_ERROR": 1002,
        "UNSUPPORTED_DATA": 1003,
        "NO_STATUS_RECEIVED": 1005,
        "ABNORMAL_CLOSURE": 1006,
        "INVALID_PAYLOAD": 1007,
        "POLICY_VIOLATION": 1008,
        "MESSAGE_TOO_BIG": 1009,
        "MANDATORY_EXTENSION": 1010,
        "INTERNAL_ERROR": 1011,
        "SERVICE_RESTART": 1012,
        "TRY_AGAIN_LATER": 1013,
        "BAD_GATEWAY": 1014,
        "TLS_HANDSHAKE": 1015,
    }


def test_of_all_numbers_those_of_rfc_6455_may_be_sent():
    for code in [-1, 0, *range(990, 1020), *range(2990, 3010), *range(4990, 5010), 65_535, 1 << 70]:
        if code in MAY_BE_SENT:
            check_close(code, "")
        else:
            with pytest.raises(ValueError, match=rf"^expected a close code of .*, got {code}$"):
                check_close(code, "")


@given(st.text(st.characters()))
def test_a_reason_is_taken_as_it_is_or_refused_and_cut_it_is_always_taken(reason):
    cut = truncate_reason(reason)
    check_close(1000, cut)
    try:
        check_close(1000, reason)
    except ValueError:
        assert cut != reason
    else:
        assert cut == reason


@given(st.text(st.characters(), min_size=MAX_REASON_BYTES // 4))
def test_a_reason_is_cut_at_the_last_character_that_fits(reason):
    whole = reason.encode(errors="replace").decode()
    cut = truncate_reason(reason)
    assert whole.startswith(cut)
    if cut != whole:
        assert len((cut + whole[len(cut)]).encode()) > MAX_REASON_BYTES


def test_a_default_reason_may_be_sent():
    for code, reason in DEFAULT_REASONS.items():
        check_close(code, reason)
