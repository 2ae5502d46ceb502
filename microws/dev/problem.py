"""Why an app cannot be served: one line for the log, and a page for browsers."""

import html
import linecache
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from microws.datastructures import is_secret, parse_query
from microws.interfaces import Scope

__all__ = ["SCRIPT", "Problem", "editor_link", "error_box", "error_page", "script_tag", "secrets_of"]

# The address of the script and of the WebSocket that reload pages.
SCRIPT: Final = "/.microws/dev.js"

_PACKAGE: Final = str(Path(__file__).parents[1])
# Lines of source before and after the one of a frame; frames that are shown of a deep recursion; characters of a local.
_CONTEXT: Final = 4
_MAX_FRAMES: Final = 40
_MAX_LOCAL: Final = 200
# Characters: shorter texts, such as "Bearer", may be anything.
_MIN_SECRET: Final = 8
_LIBRARY: Final = re.compile(r".*[\\/](site-packages|dist-packages|lib[\\/]python[\d.]+)[\\/]")
_SECRET: Final = re.compile(r"pass|secret|token|ticket|key|auth|cookie|credential|session", re.IGNORECASE)


class _Place(NamedTuple):
    file: str
    line: int
    name: str
    values: dict[str, Any]

    @property
    def is_own(self) -> bool:
        """Whether the file is the app's, and not of a library."""
        return not (self.file.startswith("<") or _LIBRARY.search(self.file))


class Problem(NamedTuple):
    """
    Why an app is not served.

    Attributes:
        title: What failed.
        error: What it raised, if it did.
        folder: Paths below it are shown relative to it.
        secrets: What the client has sent that no variable may show, the longest first.
    """

    title: str
    error: BaseException | None
    folder: Path
    secrets: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """The exception, in one line; else the title."""
        if self.error is None:
            return self.title
        text = str(self.error.msg if isinstance(self.error, SyntaxError) else self.error)
        return " ".join(f"{type(self.error).__name__}: {text}".rstrip(": ").split())

    @property
    def line(self) -> str:
        """File, line and reason."""
        if self.error is None or not (places := list(_places(self.error))):
            return self.reason if self.error is None else f"{self.title}: {self.reason}"
        place = next((place for place in reversed(places) if place.is_own), places[-1])
        return f"{_short(place.file, self.folder)}:{place.line}: {self.reason}"

    @property
    def files(self) -> set[str]:
        """The files of the app that may have to be mended."""
        places = () if self.error is None else _places(self.error)
        return {place.file for place in places if place.is_own and Path(place.file).is_file()}

    @property
    def text(self) -> str:
        """For clients that are not browsers."""
        if self.error is None:
            return f"{self.title}\n"
        frames = [
            f'  File "{place.file}", line {place.line}, in {place.name or "?"}\n'
            f"    {linecache.getline(place.file, place.line).strip()}\n"
            for place in _places(self.error)
        ]
        return f"{self.line}\n\n{self.title}\n{''.join(frames)}"


def _places(error: BaseException) -> Iterator[_Place]:
    """The frames of a traceback, the outermost first; not those of this package and of Python's import."""
    tracebacks: TracebackType | None = error.__traceback__
    for frame, line in traceback.walk_tb(tracebacks):
        file = frame.f_code.co_filename
        if not file.startswith((_PACKAGE, "<frozen ")) and not file.endswith(f"importlib{os.sep}__init__.py"):
            yield _Place(file, line, frame.f_code.co_qualname, frame.f_locals)
    if isinstance(error, SyntaxError) and error.filename:
        yield _Place(error.filename, error.lineno or 1, "", {})


def secrets_of(scope: Scope) -> tuple[str, ...]:
    """Tokens, cookies and other secrets in the headers and in the query of a request, the longest first."""
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    pairs += parse_query(scope["query_string"]).multi_items()
    pieces = {piece for name, value in pairs if is_secret(name) for piece in re.split(r"[\s,;]+", value)}
    pieces |= {piece.partition("=")[2] for piece in pieces}
    return tuple(sorted((piece for piece in pieces if len(piece) >= _MIN_SECRET), key=len, reverse=True))


def _short(file: str, folder: Path) -> str:
    if match := _LIBRARY.search(file):
        return file[match.end() :]
    return os.path.relpath(file, folder) if Path(file).is_relative_to(folder) else file


def script_tag(process: str, nonce: str = "") -> str:
    """
    The script that reloads a page, as an element.

    Args:
        process: Names the process that has made the page.
        nonce: That of the page's content security policy.
    """
    return f'<script src="{SCRIPT}" data-id="{process}"{f" nonce={chr(34)}{nonce}{chr(34)}" if nonce else ""}></script>'


def error_page(problem: Problem, *, process: str, show_locals: bool = False) -> str:
    """
    The page for browsers. Everything that is from the app is escaped.

    Args:
        process: As of ``script_tag``.
        show_locals: Show the variables of each frame.
    """
    box = error_box(problem, show_locals=show_locals)
    return _PAGE.format(title=html.escape(problem.reason), box=box, script=script_tag(process))


def error_box(problem: Problem, *, show_locals: bool = False) -> str:
    """What is laid over a page."""
    parts = [f'<style>{_STYLE}</style><main><div><p class="title">{html.escape(problem.title)}</p>']
    parts.append(f"<h1>{html.escape(problem.reason)}</h1>")
    error, intro, seen = problem.error, "", set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if intro:
            reason = problem._replace(error=error).reason
            parts.append(f'<h2><span class="title">{intro}</span> {html.escape(reason)}</h2>')
        places = list(_places(error))[::-1]
        if len(places) > _MAX_FRAMES:
            parts.append(f"<p class=title>{len(places)} frames, the innermost {_MAX_FRAMES} are shown</p>")
        has_own = any(place.is_own for place in places)
        parts.extend(
            _frame(place, problem, is_open=place.is_own or not has_own, show_locals=show_locals)
            for place in places[:_MAX_FRAMES]
        )
        error, intro = (
            (error.__cause__, "because of") if error.__cause__ is not None else
            (None if error.__suppress_context__ else error.__context__, "while handling")
        )  # fmt: skip
    parts.append('<p class="title">Esc closes this.</p></div></main>')
    return "".join(parts)


def editor_link(file: str, line: int) -> str:
    """The URL that opens a file in the developer's editor."""
    url = os.environ.get("MICROWS_EDITOR_URL") or "vscode://file/{file}:{line}"
    return url.replace("{file}", quote(str(Path(file).absolute()))).replace("{line}", str(line))


def _frame(place: _Place, problem: Problem, *, is_open: bool, show_locals: bool) -> str:
    link = editor_link(place.file, place.line)
    shown = html.escape(f"{_short(place.file, problem.folder)}:{place.line}")
    name = f" in <b>{html.escape(place.name)}</b>" if place.name else ""
    linecache.checkcache(place.file)
    lines = []
    for number in range(max(1, place.line - _CONTEXT), place.line + _CONTEXT + 1):
        if source := linecache.getline(place.file, number):
            mark = ' class="here"' if number == place.line else ""
            lines.append(f"<span{mark}><i>{number:>5}</i> {html.escape(source.rstrip())}\n</span>")
    values = ""
    if show_locals and place.values:
        rows = "".join(
            f"<dt>{html.escape(key)}<dd>{html.escape(_value(key, each, problem.secrets))}"
            for key, each in place.values.items()
        )
        values = f"<dl>{rows}</dl>"
    return (
        f'<details{" open" if is_open else ""}><summary><a href="{html.escape(link)}">{shown}</a>{name}</summary>'
        f"<pre>{''.join(lines)}</pre>{values}</details>"
    )


def _value(name: str, value: object, secrets: tuple[str, ...]) -> str:
    if _SECRET.search(name):
        return "hidden, because of its name"
    try:
        text = repr(value)
    except Exception as error:
        text = f"repr() raised {type(error).__name__}"
    for secret in secrets:
        text = text.replace(secret, "***")
    return text if len(text) <= _MAX_LOCAL else f"{text[:_MAX_LOCAL]}…"


_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><meta name="color-scheme" content="light dark">
<body><p>This page could not be made.</p><div id="microws-error">{box}</div>{script}</body></html>
"""

# Also in a shadow root, which has neither html nor body.
_STYLE: Final = """
main {
  --line: #d8dbe2; --soft: #5b6472; --bad: #b3261e; --mark: #fde9e7; --code: #f6f7f9;
  position: fixed; inset: 0; z-index: 2147483647; overflow: auto; background: #fff; color: #1b1f27;
  font: 16px/1.5 system-ui, sans-serif; text-align: left; color-scheme: light;
}
@media (prefers-color-scheme: dark) {
  main {
    --line: #3a4150; --soft: #9aa4b5; --bad: #ff8a80; --mark: #4a2523; --code: #1b1f27;
    background: #12151b; color: #e6e9ef; color-scheme: dark;
  }
}
main > div { max-width: 70rem; margin: 0 auto; padding: clamp(1rem, 4vw, 3rem) }
h1 { font-size: clamp(1.2rem, 3.5vw, 1.7rem); line-height: 1.3; color: var(--bad); margin: 0 0 1.5rem }
h2 { font-size: 1.05rem; margin: 2rem 0 .8rem }
h1, h2, summary, dd { overflow-wrap: anywhere }
.title { color: var(--soft); font-weight: normal; margin: 0 0 .3rem }
details { border: 1px solid var(--line); border-radius: 8px; margin: 0 0 .8rem; overflow: hidden }
summary { padding: .5rem .9rem; cursor: pointer }
a { color: inherit; text-underline-offset: 3px }
pre, dl { font: 13px/1.55 ui-monospace, Menlo, Consolas, monospace; margin: 0; border-top: 1px solid var(--line) }
pre { background: var(--code); overflow-x: auto; padding: .5rem 0 }
pre span { display: block; width: max-content; min-width: 100%; box-sizing: border-box; padding-right: 1rem }
pre i { color: var(--soft); font-style: normal; user-select: none }
.here { background: var(--mark) }
dl { display: grid; grid-template-columns: fit-content(35%) 1fr; gap: .2rem 1rem; padding: .6rem .9rem }
dt { color: var(--soft); overflow-wrap: anywhere }
dd { margin: 0 }
@media (max-width: 640px) {
  pre span { width: auto; white-space: pre-wrap; overflow-wrap: anywhere; padding-left: 3.5rem; text-indent: -3.5rem }
  dl { grid-template-columns: 1fr; gap: 0 }
  dd { margin: 0 0 .4rem 1rem }
}
"""
