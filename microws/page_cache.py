"""Tells whether a part of a file is in memory, so that reading it does not wait for a disk."""

import os
import sys

__all__ = ["is_cached"]

_NOWAIT = getattr(os, "RWF_NOWAIT", None) if sys.platform == "linux" else None
# Receives the bytes, which are not used.
_BYTE = [bytearray(1)]


def is_cached(file: int, offset: int, count: int) -> bool:
    """
    Whether the system holds ``count`` bytes of a file in memory, so that reading them does not wait. Never waits.

    Reads the first and the last byte, at a microsecond each: the system reads files ahead, from front to end. If a
    page between them is missing, reading still waits for it. ``False`` if the system cannot tell: on systems other than
    Linux, and on some file systems.

    Args:
        file: A descriptor open for reading.
        offset: Of the first byte.
        count: At least 1.

    Source: preadv2(2), RWF_NOWAIT.
    """
    if _NOWAIT is None:
        return False
    try:
        return 1 == os.preadv(file, _BYTE, offset, _NOWAIT) == os.preadv(file, _BYTE, offset + count - 1, _NOWAIT)
    except OSError:  # EAGAIN: not in memory; ENOTSUP: the file system does not have the flag, such as a tmpfs
        return False
