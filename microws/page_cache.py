"""Whether reading a part of a file would wait for a disk."""

import os
import sys

__all__ = ["is_cached"]

_NOWAIT = getattr(os, "RWF_NOWAIT", None) if sys.platform == "linux" else None
# Of no meaning: where the two bytes are put.
_BYTE = [bytearray(1)]


def is_cached(file: int, offset: int, count: int) -> bool:
    """
    Whether the system holds ``count`` bytes of a file in memory, so that reading them does not wait. Never waits.

    Looks at the first and the last byte, at a microsecond each: the system reads files ahead, from the front to the
    end. If a page between them is missing, reading waits for it. ``False`` where the system cannot tell: on other
    systems than Linux, and on some file systems.

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
