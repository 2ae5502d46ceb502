"""The file that the apps serve; the driver makes it."""

from pathlib import Path

__all__ = ["BIG_FILE", "BIG_FILE_SIZE"]

BIG_FILE = Path(__file__).resolve().parent.parent / "bin" / "file.bin"
BIG_FILE_SIZE = 10_000_000
