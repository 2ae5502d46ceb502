"""``microws routes``: lists the routes of an app, or says which of them answers a request."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from microws.answers import allowed
from microws.app import App
from microws.cli.loading import APP_OPTIONS, NO_APP, load_app
from microws.cli.options import add_options
from microws.cli.usage import Parser, UsageError
from microws.description import RouteDescription
from microws.hints import nearest
from microws.routing import Kind, Match, Miss, Mounted, Parameter, Route, Router, encode_path, path_of

__all__ = ["routes", "routes_parser"]

# These are never taken for the name of a module. Any other method has to be in upper case.
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WS")
_MAX_NEAR: Final = 8


def routes_parser() -> Parser:
    """The parser of ``microws routes``."""
    parser = Parser(
        prog="microws routes",
        usage="microws routes [APP] [[METHOD] PATH] [options]",
        description="List the routes of an app: microws routes chat:app. With a path, say which route answers, which "
        "nearly did, and why not: microws routes GET /chat/x",
        epilog="Exit code 0: listed, or a route answers; 1: no route answers; 2: a mistake in the command; 3: the app "
        "cannot be loaded.",
    )
    add_options(parser, ["app"])
    parser.add_argument("method", nargs="?", metavar="METHOD", help="of the request, or WS; default: GET")
    parser.add_argument("path", nargs="?", metavar="PATH", help="of the request, such as /chat/x")
    parser.add_argument("--json", action="store_true", help="print one JSON object or array in place of the table")
    add_options(parser, APP_OPTIONS)
    return parser


def routes(flags: Mapping[str, Any]) -> int:
    """
    Print the routes of an app, or what answers a request.

    Args:
        flags: The flags that were given, parsed.

    Returns:
        0; 1 if no route answers; 3 if the app cannot be loaded.

    Raises:
        UsageError: A mistake in the command, or the app is not an ``App``.
    """
    app_name, method, path = _words([flags[name] for name in ("app", "method", "path") if name in flags])
    app = load_app("routes", app_name, flags)
    if app is None:
        return NO_APP
    if path is None:
        rows = _Rows(app).all
        print(json.dumps([row.as_json() for row in rows], indent=2) if "json" in flags else _table(rows))
        return 0
    answer = _Answer(app, method, path)
    print(json.dumps(answer.as_json(), indent=2) if "json" in flags else answer.as_text())
    return 0 if answer.row else 1


def _words(words: list[str]) -> tuple[str | None, str, str | None]:
    """APP, METHOD and PATH; each of them may be missing."""
    path = words.pop() if words and words[-1].startswith("/") and not Path(words[-1]).is_file() else None
    method = words.pop().upper() if words and (words[-1].isupper() or words[-1].upper() in _METHODS) else None
    if len(words) > 1 or (method and path is None):
        raise UsageError("expected a METHOD and a PATH that begins with a slash: microws routes [APP] GET /chat/x")
    return words[0] if words else None, method or "GET", path


class _Row(NamedTuple):
    """
    A route or a mount.

    Attributes:
        methods: ``WS`` for a WebSocket, ``SSE`` for a GET of an event stream, ``MOUNT`` for a mount.
        path: The pattern, below the prefixes of all mounts.
        view: The name of the view, or of the mounted app.
        file, line: Where it is written; of a directory of files, the directory.
        depth: How many mounts are above.
    """

    methods: list[str]
    path: str
    view: str
    file: str | None
    line: int | None
    depth: int = 0

    @classmethod
    def of(cls, route: RouteDescription) -> "_Row":
        methods = [each for each in route.methods if each != "HEAD" or "GET" not in route.methods]
        if route.kind == "sse":
            methods = ["SSE" if method == "GET" else method for method in methods]
        return cls(
            methods or [{"websocket": "WS"}.get(route.kind, "MOUNT")],
            *(route.pattern, route.view, route.file, route.line, route.depth),
        )

    @property
    def cells(self) -> tuple[str, str, str, str]:
        file = self.file and _shown(Path(self.file))
        place = f"{file}:{self.line}" if self.line else file or ""
        return "  " * self.depth + ",".join(self.methods), self.path, self.view, place

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "file": self.file and str(Path(self.file).absolute())}


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


class _Rows:
    """The rows of an app, by its routes."""

    def __init__(self, app: App) -> None:
        described = app._description().routes
        self.all = [_Row.of(each) for each in described]
        keys = [(each.pattern, each.kind == "mount", each.methods) for each in described]
        self._rows = dict(zip(keys, self.all, strict=True))

    def of(self, found: Route | Mounted, prefix: str) -> _Row:
        if isinstance(found, Mounted):
            row = self._rows[prefix + found.prefix or "/", True, ()]
        else:
            row = self._rows[prefix + found.path, False, tuple(sorted(found.methods))]
        return row._replace(depth=0)


def _table(rows: list[_Row], *, last: list[str] | None = None) -> str:
    """Aligned columns; ``last`` is one more."""
    lines = [(*row.cells, *([last[index]] if last else [])) for index, row in enumerate(rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines) or "no routes"


class _Answer:
    """
    What answers a request.

    Attributes:
        row: The route or mount that answers, or ``None``.
        result: The values of its parameters, or the response without a route.
        near: Routes that nearly answer, and why they do not; the nearest first.
    """

    def __init__(self, app: App, method: str, path: str) -> None:
        raw = encode_path(unquote(urlsplit(path).path)) if "%" not in path else urlsplit(path).path
        scope = {"path": unquote(raw), "raw_path": raw.encode()}
        self.request = f"{method} {raw}"
        self._kind: Kind = "websocket" if method == "WS" else "http"
        self._method = method
        self.near: list[tuple[int, _Row, str]] = []
        self.row: _Row | None = None
        self._rows = _Rows(app)
        self._find(app._router, *path_of(scope), prefix="")
        self.near = sorted(self.near, key=lambda entry: entry[0])[:_MAX_NEAR]

    def _find(self, router: Router, path: str, segments: list[str] | None, *, prefix: str) -> None:
        found = router.resolve(self._kind, self._method, path, segments)
        segments = path.split("/")[1:] if segments is None else segments
        self._add_near(router, segments, found.route if isinstance(found, Match) else None, prefix)
        if isinstance(found, Match):
            self.row = self._rows.of(found.route, prefix)
            self.result = ", ".join(f"{name}={value!r}" for name, value in found.params.items())
        elif isinstance(found, Miss):
            self.result = self._response(found, prefix)
        elif isinstance(found.endpoint.app, App):
            below = segments[found.prefix.count("/") :]
            self._find(found.endpoint.app._router, "/" + "/".join(below), below, prefix=prefix + found.prefix)
        else:
            self.row, self.result = self._rows.of(found, prefix), "answers all paths below"

    def _add_near(self, router: Router, segments: list[str], winner: Route | None, prefix: str) -> None:
        for route in router.routes:
            if route is not winner and (reason := _why_not(route, self._kind, self._method, segments, winner)):
                self.near.append((reason[0], self._rows.of(route, prefix), reason[1]))
        for mounted in router.mounts:
            wrong = _misfits(mounted.prefix.split("/")[1:], segments)
            if len(wrong) == 1 and (reason := _misspelt(*wrong[0])):
                self.near.append((*reason[:1], self._rows.of(mounted, prefix), reason[1]))

    def _response(self, miss: Miss, prefix: str) -> str:
        if miss.allow:
            status = "microws responds with 204" if self._method == "OPTIONS" else "405 Method Not Allowed"
            return f"{status}, Allow: {allowed(miss)}"
        if miss.websocket:
            return "426 Upgrade Required"
        return "404 Not Found" if miss.redirect is None else f"308 redirect to {prefix}{miss.redirect}"

    def as_text(self) -> str:
        if self.row is None:
            text = f"no route answers {self.request}: {self.result}"
        else:
            text = _table([self.row], last=[self.result])
        if not self.near:
            return text
        return f"{text}\n\nnearly:\n" + _table([row for _, row, _ in self.near], last=[why for *_, why in self.near])

    def as_json(self) -> dict[str, Any]:
        return {
            "request": self.request,
            "answer": self.row and self.row.as_json(),
            "result": self.result,
            "nearly": [{**row.as_json(), "why_not": why} for _, row, why in self.near],
        }


def _why_not(
    route: Route, kind: Kind, method: str, segments: list[str], winner: Route | None
) -> tuple[int, str] | None:
    """How far a route is from answering, and why it does not; ``None`` if it has little to do with the request."""
    parts = route.parsed.segments
    end = parts[-1]
    if isinstance(end, Parameter) and end.converter.name == "path" and len(segments) > len(parts):
        segments = [*segments[: len(parts) - 1], "/".join(segments[len(parts) - 1 :])]
    wrong = _misfits(parts, segments)
    longer = len(parts) - len(segments)
    if longer == 0 and not wrong:
        if route.kind != kind:
            return 0, "is a WebSocket, not HTTP" if kind == "http" else "is HTTP, not a WebSocket"
        if winner is None:
            return 0, f"does not have {method}"
        return 1, f"{winner.path} comes first: it is more specific"
    if longer == 0 and len(wrong) == 1:
        return _misspelt(*wrong[0])
    if wrong or abs(longer) != 1:
        return None
    if longer == 1:
        return 3, "ends with a slash" if end == "" else f"goes on with {_written(end)}"
    if segments[-1] == "":
        return 3, "ends without a slash"
    hint = f"; {{{end.name}:path}} takes the rest of a path" if isinstance(end, Parameter) else ""
    return 3, f"ends before {segments[-1]!r}{hint}"


def _misfits(parts: Sequence[str | Parameter], segments: list[str]) -> list[tuple[str | Parameter, str]]:
    """Where the segments of a path do not fit those of a pattern."""
    return [
        (part, segment)
        for part, segment in zip(parts, segments, strict=False)
        if not (part == segment if isinstance(part, str) else part.converter.accepts(segment))
    ]


def _misspelt(part: str | Parameter, segment: str) -> tuple[int, str] | None:
    if isinstance(part, str) and not nearest(segment, [part]):
        return None
    return 2, f"expected {_written(part)}, got {segment!r}"


def _written(part: str | Parameter) -> str:
    if isinstance(part, str):
        return repr(part)
    return f"{{{part.name}}}" if part.converter.name == "str" else f"{{{part.name}:{part.converter.name}}}"
