"""What counts as the app's own failure."""

import asyncio

import pytest

from microws.server.failures import is_failure


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LookupError(), True),
        (SystemExit(3), True),
        (BaseExceptionGroup("", [LookupError(), BaseExceptionGroup("", [SystemExit()])]), True),
        (asyncio.CancelledError(), False),
        (KeyboardInterrupt(), False),
        (BaseExceptionGroup("", [LookupError(), asyncio.CancelledError()]), False),
    ],
)
def test_an_exception_and_a_system_exit_are_failures_and_a_group_of_such(error, expected):
    assert is_failure(error) is expected
