"""
What README.md and docs/ show is true: their Python runs, their commands answer as shown, their links lead somewhere.

How a page says what a block is:

- ``python``: runs by itself, with ``await`` where an async function would have it.
- ``python continued``: goes on in the names of the block before it.
- ``python title="chat.py"``: a file of the page's directory; with ``added`` behind it, more of that file; ``diff``
  with a title, a change of it. The page's commands run it. So only the pages that are typed through have files.
- ``python title="Quart"``, or any other title that names no file: not ours, or no whole program; it has to compile.
- ``<!-- check: … -->``: goes on as ``continued``, unseen: it holds what the block before it promises.
- ``console``: ``$`` begins a command, the lines below it are what it prints; ``...`` stands for anything. They are run
  where there are files; elsewhere no output is shown, and only the words are checked.
"""

import ast
import doctest
import importlib.util
import inspect
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import anyio
import pytest

import microws
from microws.cli.bench_options import BENCH_FLAGS
from microws.cli.options import flag_of, option_names

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", PROJECT / "CHANGELOG.md", *(PROJECT / "docs").glob("*.md")]
TYPED_PAGES = [PROJECT / "README.md", PROJECT / "docs/tutorial.md"]

FILES = (".py", ".html")

# Seconds for a program to start, to answer or to end.
PATIENCE = 20

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<fenced>.*?)^(?P=indent)```$|^<!-- check:\n(?P<hidden>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block, or a hidden check."""

    page: Path
    line: int
    info: str
    text: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    @property
    def title(self) -> str:
        found = re.search(r'title="([^"]*)"', self.info)
        return found[1] if found else ""

    @property
    def is_continued(self) -> bool:
        return self.info == "check" or "continued" in self.info.split()

    def __str__(self) -> str:
        return f"{self.page.relative_to(PROJECT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    blocks = []
    for match in _BLOCK.finditer(text):
        info = "check" if match["hidden"] is not None else match["info"].strip()
        # The first line of the text itself: where a traceback counts from.
        line = text.count("\n", 0, match.start()) + 2
        content = match["hidden"] if match["hidden"] is not None else match["fenced"]
        blocks.append(Block(page, line, info, inspect.cleandoc("\n" + content) if match["indent"] else content))
    return blocks


def name_of(page: Path) -> str:
    return page.name


# Python


def compiled(block: Block) -> Any:
    # The lines before it, so that a traceback names the page's own line.
    source = "\n" * (block.line - 1) + block.text
    return compile(source, str(block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


async def run(block: Block, names: dict[str, Any]) -> None:
    """Run a block as its page says that it is run."""
    code = compiled(block)
    result = eval(code, names)
    if code.co_flags & inspect.CO_COROUTINE:
        with anyio.fail_after(PATIENCE):
            await result


def snippets_of(page: Path) -> Iterator[list[Block]]:
    """The blocks that run, each with those that go on in its names."""
    group: list[Block] = []
    for block in blocks_of(page):
        if block.language not in ("python", "check") or block.title:
            continue
        if not block.is_continued:
            if group:
                yield group
            group = []
        group.append(block)
    if group:
        yield group


@pytest.mark.parametrize(
    "snippet", [snippet for page in PAGES for snippet in snippets_of(page)], ids=lambda snippet: str(snippet[0])
)
def test_a_python_block_runs(snippet: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "snippet", "__file__": str(tmp_path / "snippet.py")}

    async def main() -> None:
        for block in snippet:
            await run(block, names)

    anyio.run(main)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_that_is_not_run_compiles_at_least(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "python":
            compiled(block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_begins_its_python_with_a_block_that_stands_alone(page: Path) -> None:
    titles = [block for block in blocks_of(page) if block.language in ("python", "check") and not block.title]
    assert not titles or not titles[0].is_continued


# Files and commands


class Desk:
    """What a reader who types all that a page says has before them: a directory, and programs that run."""

    # Commands that make the room in which the others work; here it is made already.
    PREPARING = ("git clone", "cd ", "mkdir ", "python3 -m venv", ". .venv/bin/activate", "pip install", "make test")

    def __init__(self, page: Path, directory: Path, stack: ExitStack) -> None:
        self._page = page
        self._directory = directory
        self._stack = stack
        self._port = _free_port()
        self._server: subprocess.Popen[str] | None = None
        self._streams: list[tuple[Command, subprocess.Popen[str]]] = []

    def work_through(self) -> None:
        for block in blocks_of(self._page):
            if block.title.endswith(FILES):
                self._write(block)
            for command in commands_of(block):
                self._run(command)
        for command, stream in self._streams:
            assert stream.stdout is not None
            printed = "".join(stream.stdout.readline() for _ in command.shown.splitlines())
            check_printed(command, printed)

    def _write(self, block: Block) -> None:
        path = self._directory / block.title
        if block.language == "diff":
            path.write_text(patched(path.read_text(), block))
        elif "added" in block.info.split():
            path.write_text(f"{path.read_text()}\n\n{block.text}")
        else:
            path.write_text(block.text)

    def _run(self, command: "Command") -> None:
        if command.text == "make run":
            self._serve(command._replace(text=f"microws run {PROJECT / 'examples/broadcast.py'}", shown=""))
        elif command.text.startswith(self.PREPARING):
            return
        elif command.text.startswith("microws run"):
            self._serve(command)
        elif command.text.startswith("curl -N"):
            self._stream(command)
        else:
            arguments = shlex.split(self._here(command.text))
            if arguments[0] == "curl":
                arguments.append("--silent")
            done = self._start(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            check_printed(command, done.communicate(timeout=PATIENCE)[0])

    def _serve(self, command: "Command") -> None:
        if self._server is not None:
            _stop(self._server)
        arguments = shlex.split(self._here(command.text))[1:]
        self._server = self._start([sys.executable, "-m", "microws", *arguments], stderr=subprocess.PIPE)
        assert self._server.stderr is not None
        log = []
        for line in self._server.stderr:
            log.append(line)
            if " serving " in line:
                check_printed(command._replace(shown=self._here(command.shown)), line)
                return
        raise AssertionError(f"{command.text} did not start:\n{''.join(log)}")

    def _stream(self, command: "Command") -> None:
        """A command that goes on printing. It has begun when the headers of its response have come."""
        arguments = [*shlex.split(self._here(command.text)), "--silent", "--dump-header", "/dev/stderr"]
        stream = self._start(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert stream.stderr is not None
        while stream.stderr.readline().strip():
            pass
        self._streams.append((command, stream))

    def _start(self, arguments: list[str], **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(arguments, cwd=self._directory, env=environment(self._port), text=True, **options)
        self._stack.callback(_stop, process)
        return process

    def _here(self, command: str) -> str:
        return re.sub(r"\b8000\b", str(self._port), command)


def patched(text: str, block: Block) -> str:
    lines = [line or " " for line in block.text.splitlines()]
    before = "".join(f"{line[1:]}\n" for line in lines if line[0] != "+")
    after = "".join(f"{line[1:]}\n" for line in lines if line[0] != "-")
    assert text.count(before) == 1, (
        f"{block}: the lines to be changed stand in {block.title} {text.count(before)} times"
    )
    return text.replace(before, after)


class Command(NamedTuple):
    """A line that a reader types, and what is shown below it."""

    text: str
    shown: str
    where: str


def commands_of(block: Block) -> list[Command]:
    commands: list[Command] = []
    if block.language != "console":
        return commands
    for line in block.text.splitlines():
        if line.startswith("$ "):
            commands.append(Command(line.removeprefix("$ "), "", str(block)))
        elif commands and commands[-1].text.endswith("\\"):
            commands[-1] = commands[-1]._replace(text=commands[-1].text.removesuffix("\\") + line.strip())
        elif commands:
            commands[-1] = commands[-1]._replace(shown=commands[-1].shown + line + "\n")
    return commands


def check_printed(command: Command, printed: str) -> None:
    is_same = doctest.OutputChecker().check_output(
        command.shown, printed.rstrip() + "\n", doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert is_same or not command.shown, f"{command.where}: {command.text}\nprints\n{printed}"


def environment(port: int) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PORT": str(port),
        # pytest-asyncio, which the pages do not install, would print a warning.
        "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:asyncio",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(PROJECT),
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


@pytest.mark.parametrize("page", TYPED_PAGES, ids=name_of)
def test_who_types_what_a_page_says_sees_what_it_shows(page: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        Desk(page, tmp_path, stack).work_through()


# Words that must exist


@pytest.mark.parametrize("page", sorted({*PAGES} - {*TYPED_PAGES}), ids=name_of)
def test_only_the_pages_that_are_typed_through_have_files_and_show_what_commands_print(page: Path) -> None:
    for block in blocks_of(page):
        assert not block.title.endswith(FILES), f"{block} would not be tried"
        assert not any(command.shown for command in commands_of(block)), f"{block} would not be tried"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_flag_of_a_command_that_a_page_names_exists(page: Path) -> None:
    known = {
        "run": {*map(flag_of, option_names())},
        "bench": {*BENCH_FLAGS},
    }
    text = page.read_text()
    for command, flags in known.items():
        lines = re.findall(rf"microws {command} [^`\n]*", text)
        assert {flag for line in lines for flag in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", line)} - flags == set()
    assert set(re.findall(r"`(--[a-z][a-z0-9-]*)[^`]*`", text)) - set.union(*known.values()) == set()


@pytest.mark.parametrize("page", [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md"], ids=name_of)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    known = set(re.findall(r"^([a-z][a-z-]*):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text())) - known == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_extra_that_a_page_names_exists(page: Path) -> None:
    known = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for extras in re.findall(r"microws\[([a-z,]+)\]", page.read_text()) for extra in extras.split(",")}
    assert named - set(known) == set()


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = _BLOCK.sub("", page.read_text())
    headings = re.findall(r"^#{1,6} (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in _LINK.findall(_BLOCK.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors_of(linked), f"{page.name}: {target}"


@pytest.mark.parametrize("source", sorted((PROJECT / "microws").rglob("*.py")), ids=name_of)
def test_what_a_docstring_says_of_the_docs_is_there(source: Path) -> None:
    for page, heading in re.findall(r'(docs/[a-z-]+\.md), "([^"]+)"', source.read_text()):
        assert re.search(rf"^#+ {re.escape(heading)}$", (PROJECT / page).read_text(), re.MULTILINE)


# The reference


def load_generator() -> ModuleType:
    specification = importlib.util.spec_from_file_location("generate_reference", PROJECT / "docs/generate_reference.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_docstrings_say_now() -> None:
    page = (PROJECT / "docs/reference.md").read_text()
    assert page == load_generator().generate(page), "run: python docs/generate_reference.py"


def test_the_reference_has_every_public_name() -> None:
    described = {cls.__name__ for classes in load_generator().CLASSES.values() for cls in classes}
    assert set(microws.__all__) - described == set()


# The changelog and the app on the first page


def test_the_changelog_has_this_version() -> None:
    assert re.search(rf"^## {re.escape(microws.__version__)}\b", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_app_on_the_first_page_is_short() -> None:
    app = next(block for block in blocks_of(PROJECT / "README.md") if block.language == "python")
    assert len(app.text.splitlines()) <= 20
