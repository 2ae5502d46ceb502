"""
Claims: names that one caller of all has for a time, such as a ticket that may be used once.

They are in a block of memory that outlives the process that writes it, beside the ring of the log: nothing that is
published overwrites a claim. The time until which a claim holds is written last, by one store of 8 bytes: that makes
the claim. So a process that is killed leaves each claim whole, or not made.
"""

from hashlib import sha256
from heapq import heapify, heappop, heappush
from time import time
from typing import Final, final

from microws.errors import HubUnavailable

__all__ = ["Claims"]

# Bytes of a claim: until when it holds, in Unix seconds; who has made it, and the number of the request; and the
# beginning of the name's hash.
_UNTIL_SIZE: Final = 8
_MAKER_SIZE: Final = 16
_HASH_SIZE: Final = 16
_SIZE: Final = _UNTIL_SIZE + _MAKER_SIZE + _HASH_SIZE
# Claims that may hold at once: one per so many bytes of the ring, and at least so many.
_BYTES_PER_CLAIM: Final = 1 << 10
_MIN_COUNT: Final = 1 << 10


@final
class Claims:
    """
    The claims of all processes. One process at a time may write them, and the next one goes on with them.

    Args:
        memory: A block of ``Claims.block_size(history_bytes)`` bytes; zeros, or what a process has left.
    """

    __slots__ = ("_ends", "_free", "_hashes", "_makers", "_slots", "_untils", "count")

    def __init__(self, memory: memoryview) -> None:
        self.count: int = len(memory) // _SIZE
        makers = self.count * _UNTIL_SIZE
        hashes = makers + self.count * _MAKER_SIZE
        self._untils = memory[:makers].cast("d")
        self._makers = memory[makers:hashes].cast("Q")
        self._hashes = memory[hashes:]
        # Read from the memory at the first claim: the slot of each hash, when each slot becomes free, and free ones.
        self._slots: dict[bytes, int] = {}
        self._ends: list[tuple[float, int]] = []
        self._free: list[int] = []

    @staticmethod
    def block_size(history_bytes: int) -> int:
        """The size of the memory beside a log whose ring has ``history_bytes``."""
        return max(_MIN_COUNT, history_bytes // _BYTES_PER_CLAIM) * _SIZE

    def claim(self, name: bytes, ttl: float, *, maker: int, number: int) -> bool:
        """
        Claim ``name`` for ``ttl`` seconds.

        Args:
            maker, number: Name the request, which may come again.

        Returns:
            Whether this request has made the claim that holds now.

        Raises:
            HubUnavailable: Too many claims hold now.
        """
        now = time()
        if not self._slots and not self._free:
            self._read(now)
        while self._ends and self._ends[0][0] <= now:
            slot = heappop(self._ends)[1]
            del self._slots[self._hash_at(slot)]
            self._free.append(slot)
        hashed = sha256(name).digest()[:_HASH_SIZE]
        known = self._slots.get(hashed)
        if known is not None:
            return (self._makers[2 * known], self._makers[2 * known + 1]) == (maker, number)
        if not self._free:
            raise HubUnavailable(
                f"expected at most {self.count} claims that hold at once, got one more: App(history_bytes=…) sets how "
                "many, one per KiB"
            )
        slot = self._free.pop()
        at = slot * _HASH_SIZE
        self._hashes[at : at + _HASH_SIZE] = hashed
        self._makers[2 * slot] = maker
        self._makers[2 * slot + 1] = number
        self._untils[slot] = now + ttl
        self._slots[hashed] = slot
        heappush(self._ends, (now + ttl, slot))
        return True

    def discard(self) -> None:
        """Make all invalid. Only before the first claim."""
        self._untils.cast("B")[:] = bytes(self._untils.nbytes)

    def close(self) -> None:
        """Release the memory."""
        for view in (self._untils, self._makers, self._hashes):
            view.release()

    def _read(self, now: float) -> None:
        untils = self._untils.tolist()
        self._ends = [(until, slot) for slot, until in enumerate(untils) if until > now]
        self._slots = {self._hash_at(slot): slot for _, slot in self._ends}
        heapify(self._ends)
        # The lowest are used first, so that few pages of the memory are.
        self._free = [slot for slot in reversed(range(self.count)) if untils[slot] <= now]

    def _hash_at(self, slot: int) -> bytes:
        return bytes(self._hashes[slot * _HASH_SIZE : (slot + 1) * _HASH_SIZE])
