"""
Writes the generated parts of docs/reference.md from the docstrings of the public names and from the options.

::

    python docs/generate_reference.py

A part is between ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``. The rest is written by hand.
"""

import enum
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import microws
import microws.cli
import microws.errors
import microws.hub
import microws.hub_connection
import microws.subscription
import microws.testing
import microws.tickets
from microws.requests import BaseRequest

__all__ = ["CLASSES", "OPTIONS", "generate", "main"]

REFERENCE = Path(__file__).with_name("reference.md")

# Heading -> its classes and functions, in this order.
CLASSES: dict[str, list[Any]] = {
    "App": [microws.App],
    "WebSocket": [microws.WebSocket, microws.tickets.Ticket],
    "Request": [microws.Request, microws.UploadFile],
    "Responses": [
        microws.Response,
        microws.JSONResponse,
        microws.RedirectResponse,
        microws.FileResponse,
        microws.StreamingResponse,
        microws.EventStream,
        microws.ServerSentEvent,
    ],
    "Topics": [
        microws.Receipt,
        microws.Subscribed,
        microws.OpenConnection,
        microws.subscription.Subscription,
        microws.hub.Statistics,
        microws.hub.ClusterStatistics,
    ],
    "Other programs": [
        microws.connect_hub,
        microws.hub_connection.HubConnection,
        microws.hub_connection.BlockingHubConnection,
    ],
    "Types of messages": [microws.Message, microws.MessageError],
    "Codecs": [microws.Codec],
    "Small containers": [microws.Headers, microws.MultiDict, microws.URL, microws.State],
    "Errors": [getattr(microws, name) for name in microws.errors.__all__],
    "Close codes": [microws.CloseCode],
    "Testing": [
        microws.testing.TestClient,
        microws.testing.TestWebSocket,
        microws.testing.TestResponse,
        microws.testing.TestStream,
        microws.testing.ReceivedEvent,
        microws.testing.RequestOptions,
    ],
}

# Only microws creates these objects, so the reference leaves out their arguments.
_NOT_CONSTRUCTED = {
    microws.WebSocket,
    microws.Request,
    microws.UploadFile,
    microws.Receipt,
    microws.Subscribed,
    microws.OpenConnection,
    microws.tickets.Ticket,
    microws.subscription.Subscription,
    microws.hub.Statistics,
    microws.hub.ClusterStatistics,
    microws.hub_connection.HubConnection,
    microws.hub_connection.BlockingHubConnection,
    microws.Message,
    microws.MessageError,
    microws.Codec,
    microws.testing.TestWebSocket,
    microws.testing.TestResponse,
    microws.testing.TestStream,
    microws.testing.RequestOptions,
}

# Used by other modules of microws, but not by apps.
_INTERNAL = {
    microws.WebSocket: {"close_expired", "failure", "finish", "log_in", "reject_with", "run", "subscribe_by_route"},
    microws.Request: {"body_complete", "body_type", "drain", "receive_event"},
    microws.Response: {"with_own_headers"},
    microws.hub_connection.HubConnection: {"close", "open"},
    microws.Codec: {"frames"},
}

_SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Source")
_ARGUMENT_END = re.compile(r", (?![^\[\]]*\])")
_ENTRY = re.compile(r"    (\S[^:]*?): (.*)")


def main() -> None:
    """Rewrite docs/reference.md."""
    REFERENCE.write_text(generate(REFERENCE.read_text(encoding="utf-8")), encoding="utf-8")


def generate(page: str) -> str:
    """Return ``page`` with new generated parts."""
    parts = {"python": _classes, **{_name_of(command): partial(_table, command) for command in OPTIONS}}
    for name, part in parts.items():
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end of {name} -->\n"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n{part()}\n{end}{after}"
    return page


def _classes() -> str:
    parts = []
    for heading, classes in CLASSES.items():
        parts.append(f"## {heading}")
        for cls in classes:
            if cls.__name__ != heading:
                parts.append(f"### {cls.__name__}")
            parts.extend(_class(cls))
    return "\n\n".join(parts) + "\n"


def _class(cls: Any) -> Iterator[str]:
    if inspect.isfunction(cls):
        yield f"```text\n{_wrapped(cls.__name__, _signature(cls))}\n```"
        yield _markdown(cls.__doc__ or "")
        return
    if cls not in _NOT_CONSTRUCTED and (signature := _constructor(cls)) is not None:
        yield f"```text\n{_wrapped(cls.__name__, signature)}\n```"
    yield _markdown(_docstring(cls), without=("Args",) if cls in _NOT_CONSTRUCTED else ())
    if issubclass(cls, enum.IntEnum):
        yield "\n".join(["| name | code |", "|---|---|", *(f"| `{item.name}` | {item.value} |" for item in cls)])
        return
    for name, member in _members(cls):
        if isinstance(member, property):
            text = _markdown(member.__doc__ or "")
            yield f"#### `{name}`\n\n{text}"
        else:
            returned = str(inspect.signature(member).return_annotation)
            is_async = inspect.iscoroutinefunction(member) or "Coroutine[" in returned
            prefix = "await " if is_async else ""
            yield f"#### `{prefix}{name}{_signature(member)}`\n\n{_markdown(member.__doc__ or '')}"


def _docstring(cls: type[Any]) -> str:
    text = inspect.cleandoc(cls.__doc__ or "")
    if issubclass(cls, BaseRequest):
        inherited = inspect.cleandoc(BaseRequest.__doc__ or "").partition("Attributes:\n")[2]
        text += f"\n{inherited}" if "\nAttributes:\n" in text else f"\n\nAttributes:\n{inherited}"
    return text


def _members(cls: type[Any]) -> Iterator[tuple[str, Any]]:
    """The documented methods and properties, including those of base classes that have no section here."""
    described = {described for classes in CLASSES.values() for described in classes} - {cls}
    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("microws") and base not in described:
            members |= vars(base)
    for name, member in members.items():
        if name.startswith("_") or name in _INTERNAL.get(cls, ()) or not member.__doc__:
            continue
        if isinstance(member, property) or inspect.isfunction(member):
            yield name, member


def _constructor(cls: type[Any]) -> str | None:
    is_own = any("__init__" in vars(base) for base in cls.__mro__ if base.__module__.startswith("microws"))
    return _signature(cls) if is_own and not issubclass(cls, enum.Enum) else None


def _signature(function: Callable[..., Any]) -> str:
    """The signature without ``self`` and without types, which the text describes."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=parameter.empty, default=_Written.of(parameter.default))
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


class _Written:
    """A default as a user writes it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text

    @classmethod
    def of(cls, value: Any) -> Any:
        match value:
            case str():
                return cls(f'"{value}"')
            case bytes():
                return cls(f'b"{value.decode()}"')
            case tuple() if value:
                return cls(f"[{', '.join(repr(cls.of(item)) for item in value)}]")
            case type():
                return value if value is inspect.Parameter.empty else cls(value.__name__)
            case enum.IntEnum():
                return cls(str(int(value)))
            case int() if value >= 100_000:
                return cls(f"{value:_}")
        return value


def _wrapped(name: str, signature: str) -> str:
    """A call, with each argument on its own line if one line is too long."""
    if len(name + signature) <= 100:
        return name + signature
    arguments = "".join(f"    {argument},\n" for argument in _ARGUMENT_END.split(signature[1:-1]))
    return f"{name}(\n{arguments})"


def _markdown(docstring: str, *, without: tuple[str, ...] = ()) -> str:
    """A docstring as Markdown: its sections as lists, its examples as fenced blocks."""
    blocks: list[str] = []
    for block in re.split(r"\n{2,}(?=\S)", inspect.cleandoc(docstring)):
        title = block.partition(":")[0]
        if title in _SECTIONS:
            if title not in without:
                blocks.append(_section(title, block.partition(":")[2]))
        elif block.startswith("::\n"):
            blocks.append(_code(textwrap.dedent(block.removeprefix("::\n")).strip("\n")))
        else:
            blocks.append(block)
    return "\n\n".join(_inline(block) for block in blocks if block)


def _section(title: str, body: str) -> str:
    if not body.startswith("\n"):
        return f"**{title}:** {' '.join(body.split())}"
    entries: list[str] = []
    for line in body.strip("\n").split("\n"):
        entry = _ENTRY.fullmatch(line)
        if entry and title != "Returns":
            names = ", ".join(f"`{name.strip()}`" for name in entry[1].split(","))
            entries.append(f"{names}: {entry[2]}")
        elif entries:
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(line.strip())
    if title == "Returns":
        return f"**{title}:** {' '.join(entries)}"
    return "\n".join([f"**{title}:**", "", *(f"- {entry}" for entry in entries)])


def _inline(text: str) -> str:
    return text if text.startswith("```") else re.sub(r"``(.+?)``", r"`\1`", text)


def _code(text: str) -> str:
    return f'```python title="Example"\n{text}\n```'


def _name_of(command: str) -> str:
    return "options" if command == "run" else f"{command} options"


def _table(command: str) -> str:
    return "\n".join(["| option | |", "|---|---|", *OPTIONS[command]]) + "\n"


def _read_options(command: str) -> Iterator[str]:
    for action in microws.cli.command_parser(command)._actions:  # noqa: SLF001
        if action.help not in (None, "==SUPPRESS==", "show this help message and exit"):
            names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar}`"
            value = f" `{action.metavar}`" if action.option_strings and action.metavar else ""
            yield f"| {names}{value} | {action.help} |"


OPTIONS = {
    command: list(_read_options(command))
    for command in ("run", "dev", "routes", "schema", "connect", "publish", "bench")
}
OPTIONS["dev"] = [option for option in OPTIONS["dev"] if option not in OPTIONS["run"]]

if __name__ == "__main__":
    main()
