"""What ``microws connect`` shows and asks: readable on a terminal, raw in a pipe."""

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import get_terminal_size
from threading import Lock
from types import ModuleType
from typing import Any, Final, TextIO

readline: ModuleType | None = None
termios: ModuleType | None = None
with suppress(ImportError):  # Windows has neither
    import readline
    import termios

__all__ = ["Screen"]

_PROMPT: Final = "> "
_DIM: Final = 2
# What is coloured of a JSON text, by its color: keys, strings, numbers, and the three words.
_JSON_COLORS: Final = {"key": 36, "string": 32, "number": 33, "word": 35}
_JSON_TOKEN: Final = re.compile(
    r'(?P<key>"(?:[^"\\]|\\.)*"(?=:))|(?P<string>"(?:[^"\\]|\\.)*")|(?P<number>-?[0-9][0-9.eE+-]*)'
    r"|(?P<word>true|false|null)"
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Bytes of a binary message that a terminal shows.
_MAX_SHOWN: Final = 256
_MAX_HISTORY: Final = 1000
# Seconds in which readline prepares the terminal, on a busy machine too.
_START_OF_READLINE: Final = 1.0


class Screen:
    """
    Standard input, output and error.

    Attributes:
        is_interactive: Whether a person reads and types, so that there is a prompt.
    """

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self.is_interactive: bool = self._is_terminal and sys.stdin.isatty()
        self._has_color = self._is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._is_prompting = False
        # Held from the look at whether there is a prompt to the end of the output: no prompt begins in between.
        self._lock = Lock()
        self._mode: Any = termios.tcgetattr(sys.stdin) if self.is_interactive and termios else None
        self._history = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "microws/history"
        if self.is_interactive and readline:
            with suppress(OSError):
                readline.read_history_file(self._history)

    def close(self) -> None:
        """Restore the terminal, which may still wait for a line, and keep the history."""
        if self._is_prompting:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()
        if self._mode and termios:
            # A thread that is about to ask for a line would change the terminal after this.
            end = time.monotonic() + _START_OF_READLINE
            while self._is_prompting and termios.tcgetattr(sys.stdin) == self._mode and time.monotonic() < end:
                time.sleep(0.001)
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._mode)
        if self.is_interactive and readline:
            readline.set_history_length(_MAX_HISTORY)
            with suppress(OSError):
                self._history.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(self._history)

    def lines(self) -> Iterator[str]:
        """The lines that a person types, until Ctrl-D."""
        with suppress(EOFError):
            while True:
                with self._lock:
                    self._is_prompting = True
                line = input(_PROMPT)
                self._is_prompting = False
                yield line
        self._is_prompting = False
        print()

    def show(self, message: str | bytes, *, about: str = "") -> None:
        """
        Show a received message.

        Args:
            message: On a terminal, JSON is coloured, and indented if it does not fit in the line, and control
                characters, which could change the terminal, are escaped. In a pipe, text is raw. Bytes are hex.
            about: Shown before it on a terminal.
        """
        if isinstance(message, bytes):
            cut = _MAX_SHOWN if self._is_terminal else len(message)
            message = f"binary, {len(message)} bytes: {message[:cut].hex(' ')}{' …' if cut < len(message) else ''}"
        elif self._is_terminal:
            message = self._readable(message)
        self._print(
            self._paint(f"< {about}{about and ' '}", _DIM) + message if self._is_terminal else message, sys.stdout
        )

    def note(self, text: str) -> None:
        """Say something about the connection; on a terminal only."""
        if self._is_terminal:
            self._print(self._paint(_escaped(text), _DIM), sys.stderr)

    def error(self, text: str) -> None:
        """Say what went wrong."""
        self._print(f"error: {_escaped(text)}", sys.stderr)

    def _readable(self, text: str) -> str:
        with suppress(ValueError, RecursionError):
            if isinstance(value := json.loads(text), dict | list):
                text = json.dumps(value, ensure_ascii=False)
                if len(text) > get_terminal_size().columns - len("< "):
                    text = json.dumps(value, ensure_ascii=False, indent=2)
                return _JSON_TOKEN.sub(
                    lambda found: self._paint(found[0], _JSON_COLORS[found.lastgroup or ""]), _escaped(text)
                )
        return _escaped(text)

    def _paint(self, text: str, color: int) -> str:
        return f"\x1b[{color}m{text}\x1b[m" if self._has_color else text

    def _print(self, text: str, stream: TextIO) -> None:
        """Print above the prompt, and show the prompt again with what is typed so far."""
        with self._lock:
            is_prompting = self._is_prompting
            if is_prompting:
                sys.stdout.write("\r\x1b[K")
                sys.stdout.flush()
            stream.write(f"{text}\n")
            stream.flush()
            if is_prompting:
                typed = readline.get_line_buffer() if readline else ""
                sys.stdout.write(f"{_PROMPT}{typed}")
                sys.stdout.flush()


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
