"""Which files an app was loaded from, and which of them have changed since."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias

__all__ = ["LoadedFiles", "Signature", "clock", "files_below", "has_changed", "signature", "signatures"]

# Of a file: times of change, size and inode. ``None``: it does not exist, or may have changed while it was loaded.
Signature: TypeAlias = list[int] | None

# Pages that an app reads itself, beside its modules: it may have read them once.
_PAGES: Final = (".css", ".htm", ".html", ".j2", ".jinja", ".jinja2", ".js", ".mjs", ".svg")

_ENVIRONMENTS: Final = ("__pycache__", "dist-packages", "node_modules", "site-packages")
_MAX_FILES: Final = 20_000
_PACKAGE: Final = f"{Path(__file__).parents[1]}{os.sep}"


def clock() -> int:
    """Now, in nanoseconds, as the system notes it for a file that is written."""
    if hasattr(time, "CLOCK_REALTIME_COARSE"):
        return time.clock_gettime_ns(time.CLOCK_REALTIME_COARSE)
    return time.time_ns()


def signature(path: str) -> Signature:
    """The signature of a file as it is now."""
    try:
        status = os.stat(path)  # noqa: PTH116 - in 1 us, where Path takes 3
    except OSError:
        return None
    # The time of change is later than that of modification if an editor wrote another file and renamed it.
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino]


def signatures(paths: Iterable[str]) -> dict[str, Signature]:
    """The signatures of files as they are now."""
    return {path: signature(path) for path in paths}


def has_changed(path: str, before: Signature) -> bool:
    """Whether a file is not what it was."""
    return before is None or signature(path) != before


def files_below(folder: str, suffixes: tuple[str, ...] = ()) -> Iterator[str]:
    """The files in a folder and below, 20,000 at most; not those of environments and in hidden folders."""
    count = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not _is_environment(name) and not os.path.exists(os.path.join(parent, name, "pyvenv.cfg"))  # noqa: PTH110, PTH118
        ]
        for name in names:
            if not name.startswith(".") and (not suffixes or name.endswith(suffixes)):
                count += 1
                if count > _MAX_FILES:
                    return
                yield os.path.join(parent, name)  # noqa: PTH118


def _is_environment(name: str) -> bool:
    return name.startswith(".") or name in _ENVIRONMENTS


class LoadedFiles:
    """
    The files of an app: its modules below a folder, and the pages beside them.

    Args:
        folder: Of the app.
        before: Signatures of files from before the app was loaded.
        since: ``clock()`` before the app was loaded. A file that was not in ``before`` and was written later counts as
            changed: the app may have loaded either version.

    Attributes:
        files: The signature that each file had when it was loaded.
    """

    def __init__(self, folder: Path, before: Mapping[str, Signature], since: int) -> None:
        self.folder: Path = folder
        self.files: dict[str, Signature] = {}
        self._before = before
        self._since = since
        self._modules = 0
        self._folders: set[str] = set()

    def look(self) -> dict[str, Signature]:
        """The files that were loaded since the last look."""
        if len(sys.modules) == self._modules:
            return {}
        self._modules = len(sys.modules)
        found = {file for module in list(sys.modules.values()) if (file := self._file_of(module)) is not None}
        folders = {os.path.dirname(file) for file in found} - self._folders  # noqa: PTH120
        self._folders |= folders
        for folder in folders:
            found.update(entry.path for entry in os.scandir(folder) if entry.name.endswith(_PAGES))
        return self.add(found)

    def add(self, paths: Iterable[str]) -> dict[str, Signature]:
        """Add files that the app has loaded, or tried to load."""
        added = {path: self._signature(path) for path in paths if path not in self.files}
        self.files.update(added)
        return added

    def changed(self) -> str | None:
        """A file that has changed since it was loaded."""
        return next((path for path, before in self.files.items() if has_changed(path, before)), None)

    def _signature(self, path: str) -> Signature:
        if path in self._before:
            return self._before[path]
        now = signature(path)
        return None if now is not None and max(now[:2]) >= self._since else now

    def _file_of(self, module: object) -> str | None:
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or file.startswith(_PACKAGE):
            return None
        path = Path(file)
        if not path.is_relative_to(self.folder):
            return None
        return None if any(map(_is_environment, path.relative_to(self.folder).parts[:-1])) else file
