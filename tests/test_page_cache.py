"""Whether a part of a file is in memory."""

import errno
import os
import sys

import pytest

from microws.page_cache import is_cached

SIZE = 1 << 20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    yield file
    os.close(file)


def can_say(file):
    """Whether the system and this file system know the flag: a tmpfs does not."""
    try:
        os.preadv(file, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return True


def test_a_written_or_read_file_is_cached_until_it_is_dropped(file):
    if sys.platform != "linux" or not can_say(file):
        assert not is_cached(file, 0, 1)
        return
    assert is_cached(file, 0, SIZE)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    assert not is_cached(file, 0, SIZE)
    os.pread(file, SIZE, 0)
    assert is_cached(file, 0, SIZE)


def test_bytes_after_the_end_of_the_file_are_not_cached(file):
    assert not is_cached(file, 0, SIZE + 1)
    assert not is_cached(file, SIZE, 1)
