"""What is claimed holds for its time, whatever happens to the process that keeps it."""

import sys
from mmap import mmap
from random import Random

import pytest

from microws.errors import HubUnavailable
from microws.hub import claims as module
from microws.hub.claims import Claims
from microws.hub.log import MIN_BYTES

SIZE = Claims.block_size(MIN_BYTES)


class Killed(BaseException):
    """The process ends here."""


class KillAt:
    """In the block, ``claims.py`` is left at the n-th line that it executes."""

    def __init__(self, line):
        self.left = line
        self.is_killed = False

    def _trace(self, frame, event, _):
        if frame.f_code.co_filename != module.__file__:
            return None
        if event == "line":
            self.left -= 1
            if not self.left:
                raise Killed
        return self._trace

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, kind, *_):
        sys.settrace(self._before)
        self.is_killed = kind is Killed
        return self.is_killed


@pytest.fixture
def memory():
    return memoryview(mmap(-1, SIZE))


@pytest.fixture
def clock(monkeypatch):
    """The time, in a list."""
    now = [1e9]
    monkeypatch.setattr(module, "time", lambda: now[0])
    return now


def test_one_request_of_all_makes_a_claim_and_may_come_again(memory):
    claims = Claims(memory)
    assert claims.claim(b"a", 60, maker=1, number=1)
    for maker, number in ((1, 2), (2, 1), (2, 2)):
        assert not claims.claim(b"a", 60, maker=maker, number=number)
        assert claims.claim(b"a", 60, maker=1, number=1)
    assert claims.claim(b"b", 60, maker=2, number=2)


def test_the_next_process_goes_on_with_them(memory, clock):
    Claims(memory).claim(b"long", 60, maker=1, number=1)
    Claims(memory).claim(b"short", 5, maker=1, number=2)
    clock[0] += 4.9
    for name in (b"long", b"short"):
        assert not Claims(memory).claim(name, 60, maker=2, number=1)
    clock[0] += 0.1
    assert Claims(memory).claim(b"short", 60, maker=2, number=1)
    assert not Claims(memory).claim(b"long", 60, maker=2, number=1)


def test_they_agree_with_a_model(memory, clock):
    random = Random(7)
    claims, model = Claims(memory), {}
    for number in range(20_000):
        clock[0] += random.random()
        if random.random() < 0.01:
            claims = Claims(memory)
        name, ttl = b"%d" % random.randrange(2000), random.choice([0.0, 1.0, 100.0, 900.0])
        is_free = model.get(name, 0) <= clock[0]
        assert claims.claim(name, ttl, maker=1, number=number) == is_free
        if is_free:
            model[name] = clock[0] + ttl


def test_too_many_are_refused_until_one_ends(memory, clock):
    claims = Claims(memory)
    assert claims.count == 1024
    for number in range(1024):
        assert claims.claim(b"%d" % number, 10 + number, maker=1, number=number)
    for each in (claims, Claims(memory)):
        with pytest.raises(HubUnavailable, match=r"at most 1024 claims that hold at once.*history_bytes"):
            each.claim(b"one more", 60, maker=1, number=2000)
        assert not each.claim(b"7", 60, maker=1, number=2000)
    clock[0] += 10
    for each in (claims, Claims(memory)):
        assert each.claim(b"one more", 60, maker=1, number=2000)
        with pytest.raises(HubUnavailable):
            each.claim(b"two more", 60, maker=1, number=2001)


def test_their_number_grows_with_the_log():
    sizes = [Claims(memoryview(bytearray(Claims.block_size(mib << 20)))).count for mib in (1, 2, 64)]
    assert sizes == [1024, 2048, 65_536]


@pytest.mark.parametrize("is_full", [False, True], ids=["a slot that is free", "a slot that was used"])
def test_a_kill_at_any_line_forgets_none(clock, is_full):
    line, outcomes = 0, set()
    is_killed = True
    while is_killed:
        line += 1
        memory = memoryview(bytearray(SIZE))
        claims = Claims(memory)
        for number in range(1023 if is_full else 5):
            claims.claim(b"holds %d" % number, 60, maker=1, number=number)
        claims.claim(b"ends", 5, maker=1, number=5000)
        clock[0] += 5
        with (kill := KillAt(line)):
            claims.claim(b"new", 60, maker=2, number=1)
        is_killed = kill.is_killed
        left = Claims(memory)
        for number in range(5):
            assert not left.claim(b"holds %d" % number, 60, maker=3, number=1)
        # Who made the request does not know whether it was killed before or after.
        other = Claims(memoryview(bytearray(memory)))
        outcomes.add(other.claim(b"new", 60, maker=4, number=1))
        assert is_killed or not other.claim(b"new", 60, maker=5, number=1)
        assert left.claim(b"new", 60, maker=2, number=1)
        assert not left.claim(b"new", 60, maker=3, number=1)
        if is_full:
            # Its slot is used by the new one. One more is one too many, and not one that is known.
            with pytest.raises(HubUnavailable):
                left.claim(b"ends", 60, maker=3, number=1)
        else:
            assert left.claim(b"ends", 60, maker=3, number=1)
    assert outcomes == {True, False}
    assert line > 10
