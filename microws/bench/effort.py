"""How much of a core this process takes, and how long it waits for one."""

import time
from pathlib import Path
from typing import final

__all__ = ["Effort"]

# Linux: nanoseconds that the main thread has run, and those that it was ready to run and had no core.
_SCHEDULER = Path("/proc/self/schedstat")


@final
class Effort:
    """Measures from when it is made."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = time.process_time()
        self._waited = _waited()

    def shares(self) -> tuple[float, float]:
        """Of the time since then: the shares that this process has worked, and has waited for a core."""
        wall = max(time.perf_counter() - self._wall, 1e-9)
        return (time.process_time() - self._cpu) / wall, (_waited() - self._waited) / wall


def _waited() -> float:
    try:
        return int(_SCHEDULER.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
