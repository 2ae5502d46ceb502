"""
``python -m microws.dev.watcher``: says that something has changed in folders, by the system's notifications.

A process of its own, because ``watchfiles`` has threads, and the supervisor forks. Each line of its input is a JSON
list of folders, which replaces the one before. Its output is an empty line for each change.
"""

import json
import os
import sys
from queue import SimpleQueue
from threading import Thread
from typing import Final

from watchfiles import watch

__all__ = ["main"]

# Milliseconds between two looks for notifications, and until a burst of them is told.
_STEP: Final = 10
_DEBOUNCE: Final = 50


class _Folders(SimpleQueue[list[str]]):
    """Lists of folders. As an event, it is set while there is another list."""

    def is_set(self) -> bool:
        return not self.empty()

    def read(self) -> None:
        for line in sys.stdin:
            self.put(json.loads(line))
        os._exit(0)


def main() -> None:
    """Tell of changes until the end of the input."""
    folders = _Folders()
    Thread(target=folders.read, daemon=True).start()
    while True:
        changes = watch(
            *filter(os.path.isdir, folders.get()), watch_filter=None, debounce=_DEBOUNCE, step=_STEP,
            stop_event=folders, recursive=False, rust_timeout=100, yield_on_timeout=True,
            ignore_permission_denied=True,
        )  # fmt: skip
        # The first one also says that something may have changed before this was listening.
        is_first = True
        for change in changes:
            if change or is_first:
                is_first = False
                sys.stdout.write("\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
