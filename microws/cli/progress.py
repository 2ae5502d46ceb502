"""A bar on a terminal."""

from typing import Final, TextIO, final

from microws.bench.run import Progress

__all__ = ["Bar"]

_WIDTH: Final = 24
_CLEAR: Final = "\r\x1b[K"


@final
class Bar:
    """
    Shows how far a run is, in one line that it writes again and again; shows nothing where ``stream`` is no terminal.

    Args:
        words: What the rate counts.
    """

    def __init__(self, stream: TextIO, *, words: str) -> None:
        self._stream = stream
        self._words = words
        self._is_shown = stream.isatty()
        self._line = ""

    def show(self, progress: Progress) -> None:
        """Show this, in place of what was shown before."""
        if self._is_shown and (line := self._line_for(progress)) != self._line:
            self._line = line
            self._write(f"{_CLEAR}{line}")

    def clear(self) -> None:
        """Leave no trace."""
        if self._line:
            self._line = ""
            self._write(_CLEAR)

    def _line_for(self, progress: Progress) -> str:
        if progress.phase == "finishing":
            return f"waiting for {progress.total:,.0f} under way"
        filled = int(_WIDTH * min(1.0, progress.done / progress.total)) if progress.total else _WIDTH
        bar = "█" * filled + "░" * (_WIDTH - filled)
        if progress.phase == "connecting":
            return f"connecting  {bar}  {progress.done:,.0f} of {progress.total:,.0f}"
        rate = f"  {progress.rate:,.0f} {self._words}/s" if progress.rate else ""
        return f"{progress.phase}  {bar}  {progress.done:.0f} of {progress.total:g} s{rate}"

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
