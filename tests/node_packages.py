"""Programs of Node that tests run."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["install", "need"]


def need(program: str) -> None:
    """Skip the test if a program is not installed; in CI, fail."""
    if shutil.which(program) is None:
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop(f"{program} is not installed")


def install(folder: Path) -> None:
    """Install what is in the lock file of a folder, once; several processes may come here at the same time."""
    need("node")
    need("npm")
    lock = folder / "package-lock.json"
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        installed = folder / "node_modules" / ".package-lock.json"
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            subprocess.run(["npm", "ci", "--silent"], cwd=folder, check=True, timeout=180)
