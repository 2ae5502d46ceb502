"""``microws schema``: writes the documents of an app, or checks that a file has them."""

import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from microws.app import App
from microws.cli.loading import APP_OPTIONS, NO_APP, load_app
from microws.cli.options import add_options
from microws.cli.usage import Parser, UsageError, option
from microws.description import write_types

__all__ = ["schema", "schema_parser"]

_KIND: Final = option("asyncapi, openapi or types", "asyncapi|openapi|types")


def schema_parser() -> Parser:
    """The parser of ``microws schema``."""
    parser = Parser(
        prog="microws schema",
        usage="microws schema asyncapi|openapi|types [APP] [options]",
        description="Print a document of an app as JSON: microws schema openapi chat:app. asyncapi has the WebSockets, "
        "openapi the HTTP routes, and types is one JSON Schema of all messages and bodies, for TypeScript.",
        epilog="Exit code 0: written, or the file has it; 1: the file does not have it; 2: a mistake in the command; "
        "3: the app cannot be loaded.",
    )
    parser.add_argument("kind", type=_KIND, metavar="KIND", help="asyncapi, openapi or types")
    add_options(parser, ["app"])
    parser.add_argument("--output", metavar="FILE", help="write it to this file")
    parser.add_argument("--check", metavar="FILE", help="compare it with this file, and print how they differ")
    parser.add_argument("--title", metavar="TITLE", help="of the app; default: the name of its file")
    parser.add_argument("--app-version", metavar="VERSION", help="of the app; default: 0")
    add_options(parser, APP_OPTIONS)
    return parser


def schema(flags: Mapping[str, Any]) -> int:
    """
    Print a document of an app, write it to a file, or compare it with one.

    Args:
        flags: The flags that were given, parsed.

    Returns:
        0; 1 if the file does not have it; 3 if the app cannot be loaded.

    Raises:
        UsageError: A mistake in the command, or the app is not an ``App``.
    """
    if "check" in flags and "output" in flags:
        raise UsageError("expected either --check or --output, got both; leave out one of them")
    app = load_app("schema", flags.get("app"), flags)
    if app is None:
        return NO_APP
    document = _document(app, flags)
    if "check" in flags:
        return _check(Path(flags["check"]), document)
    if "output" in flags:
        try:
            Path(flags["output"]).write_text(_text(document), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--output: {flags['output']}: {error.strerror or error}") from None
    else:
        sys.stdout.write(_text(document))
    return 0


def _document(app: App, flags: Mapping[str, Any]) -> dict[str, Any]:
    if flags["kind"] == "types":
        return write_types(app._description())
    write = app.asyncapi if flags["kind"] == "asyncapi" else app.openapi
    return write(title=flags.get("title"), version=flags.get("app_version", "0"))


def _text(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _check(path: Path, document: dict[str, Any]) -> int:
    """Compare the values of a file, which may be formatted in another way."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        sys.stderr.write(f"error: {path}: {error.strerror or error}; write it with --output {path}\n")
        return 1
    except ValueError as error:
        sys.stderr.write(f"error: {path}: expected JSON: {error}\n")
        return 1
    if known == document:
        return 0
    old, new = (_text(each).splitlines(keepends=True) for each in (known, document))
    sys.stdout.writelines(difflib.unified_diff(old, new, str(path), "of the app"))
    sys.stderr.write(f"error: {path} differs from the app; write it again with --output {path}\n")
    return 1
