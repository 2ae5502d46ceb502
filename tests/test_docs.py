"""
README.md and docs/ are correct: their Python runs, their commands print what is shown, their links resolve.

The info string of a fenced block says how it is tested:

- ``python``: runs by itself; ``await`` is allowed at the top level.
- ``python title="chat.py"``: a file in the reader's directory; the commands of the page use it. With
  ``title="chat.py, at the end"`` the block is appended to that file, and a ``diff`` block changes it. Only the pages in
  ``TYPED_PAGES`` have files.
- ``python title="Quart"``, or another title that is not a file: not a whole program of ours. It must compile.
- ``console``: a command after each ``$``, and below it what it prints; ``...`` stands for any text. The commands of
  ``TYPED_PAGES`` run. On other pages only their options are checked, and they show no output.
- ``<!-- check: … -->``, which readers don't see, tests the block before it with the same names.
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
from microws.cli import command_parser

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", PROJECT / "CHANGELOG.md", *(PROJECT / "docs").glob("*.md")]
TYPED_PAGES = [PROJECT / "README.md", PROJECT / "docs/tutorial.md"]

FILES = (".py", ".html")

# Seconds for a program to start, to respond or to end.
PATIENCE = 20

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<fenced>.*?)^(?P=indent)```$|^<!-- check:\n(?P<hidden>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# PyPI shows README.md without the other files, so its links are absolute. They are checked in this checkout.
_OWN_URL = re.compile(r"https://(?:github\.com|raw\.githubusercontent\.com)/microws/microws(?:/(?:blob|tree))?/main/")


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
    def file(self) -> str:
        """The file that this block writes, appends to or changes."""
        name = self.title.partition(", ")[0]
        return name if name.endswith(FILES) else ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(PROJECT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    blocks = []
    for match in _BLOCK.finditer(text):
        info = "check" if match["hidden"] is not None else match["info"].strip()
        # Tracebacks count from the first line of the text itself.
        line = text.count("\n", 0, match.start()) + 2
        content = match["hidden"] if match["hidden"] is not None else match["fenced"]
        blocks.append(Block(page, line, info, inspect.cleandoc("\n" + content) if match["indent"] else content))
    return blocks


def name_of(page: Path) -> str:
    return page.name


# Python


def compiled(block: Block) -> Any:
    # Blank lines in front make tracebacks name the line of the page.
    source = "\n" * (block.line - 1) + block.text
    return compile(source, str(block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


async def run(block: Block, names: dict[str, Any]) -> None:
    """Run a block, in an event loop if it awaits."""
    code = compiled(block)
    result = eval(code, names)
    if code.co_flags & inspect.CO_COROUTINE:
        with anyio.fail_after(PATIENCE):
            await result


def snippets_of(page: Path) -> Iterator[list[Block]]:
    """The blocks that run, each with its checks."""
    group: list[Block] = []
    for block in blocks_of(page):
        if block.language not in ("python", "check") or block.title:
            continue
        if block.language == "python":
            if group:
                yield group
            group = []
        group.append(block)
    if group:
        yield group


@pytest.mark.parametrize(
    "snippet", [snippet for page in PAGES for snippet in snippets_of(page)], ids=lambda snippet: str(snippet[0])
)
def test_python_block_runs(snippet: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "snippet", "__file__": str(tmp_path / "snippet.py")}

    async def main() -> None:
        for block in snippet:
            await run(block, names)

    anyio.run(main)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_that_does_not_run_compiles(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "python":
            compiled(block)


# Files and commands


class Desk:
    """A reader who types everything on a page: their directory, and the programs that they started."""

    # These commands make an environment, which the test has already.
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
            if block.file:
                self._write(block)
            for command in commands_of(block):
                self._run(command)
        for command, stream in self._streams:
            assert stream.stdout is not None
            printed = "".join(stream.stdout.readline() for _ in command.shown.splitlines())
            check_printed(command, printed)

    def _write(self, block: Block) -> None:
        path = self._directory / block.file
        if block.language == "diff":
            path.write_text(patched(path.read_text(), block))
        elif block.title.endswith(", at the end"):
            path.write_text(f"{path.read_text()}\n\n{block.text}")
        else:
            path.write_text(block.text)

    def _run(self, command: "Command") -> None:
        if command.text == "make run":
            self._serve(command._replace(text=f"microws run {PROJECT / 'examples/broadcast.py'}", shown=""))
        elif command.text.startswith(self.PREPARING):
            return
        elif command.text.startswith(("microws run", "microws dev")):
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
        """Start a command that keeps printing, and wait for the headers of its response."""
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
    assert text.count(before) == 1, f"{block}: expected these lines once in {block.file}, got {text.count(before)}"
    return text.replace(before, after)


class Command(NamedTuple):
    """A line that a reader types, and the output shown below it."""

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
        # A reader has pytest and microws only: no other plugin than anyio's.
        "PYTEST_ADDOPTS": "-p anyio -p no:cacheprovider",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
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
def test_commands_print_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        Desk(page, tmp_path, stack).work_through()


# Names and links


@pytest.mark.parametrize("page", sorted({*PAGES} - {*TYPED_PAGES}), ids=name_of)
def test_page_that_is_not_typed_has_no_files_and_no_output(page: Path) -> None:
    for block in blocks_of(page):
        assert not block.file, f"{block} would not be tested"
        assert not any(command.shown for command in commands_of(block)), f"{block} would not be tested"


COMMANDS = ("run", "dev", "routes", "schema", "connect", "publish", "bench")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_on_the_page_exist(page: Path) -> None:
    known = {command: {*command_parser(command).flags} for command in COMMANDS}
    text = page.read_text()
    for command, flags in known.items():
        lines = re.findall(rf"microws {command} [^`\n]*", text)
        assert {flag for line in lines for flag in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", line)} - flags == set()
    assert set(re.findall(r"`(--[a-z][a-z0-9-]*)[^`]*`", text)) - set.union(*known.values()) == set()


@pytest.mark.parametrize("page", [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md"], ids=name_of)
def test_make_targets_on_the_page_exist(page: Path) -> None:
    known = set(re.findall(r"^([a-z][a-z-]*):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text())) - known == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_extras_on_the_page_exist(page: Path) -> None:
    known = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for extras in re.findall(r"microws\[([a-z,]+)\]", page.read_text()) for extra in extras.split(",")}
    assert named - set(known) == set()


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = _BLOCK.sub("", page.read_text())
    headings = re.findall(r"^#{1,6} (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [*PAGES, *PROJECT.glob("*/README.md")], ids=lambda page: str(page.relative_to(PROJECT))
)
def test_links_and_images_resolve(page: Path) -> None:
    for target in _LINK.findall(_BLOCK.sub("", page.read_text())):
        url, _, anchor = target.partition("#")
        linked = PROJECT / _OWN_URL.sub("", url) if _OWN_URL.match(url) else page.parent / url if url else page
        if re.match(r"[a-z]+:", url) and not _OWN_URL.match(url):
            continue
        assert linked.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors_of(linked), f"{page.name}: {target}"


def test_readme_has_no_relative_links_because_pypi_shows_it_alone() -> None:
    links = _LINK.findall(_BLOCK.sub("", (PROJECT / "README.md").read_text()))
    assert [link for link in links if not link.startswith("https://")] == []


@pytest.mark.parametrize("page", sorted((PROJECT / "docs").glob("*.md")), ids=name_of)
def test_page_of_the_site_links_relatively_to_other_pages_only(page: Path) -> None:
    links = [link.partition("#")[0] for link in _LINK.findall(_BLOCK.sub("", page.read_text())) if ":" not in link]
    assert [link for link in links if "/" in link] == []


@pytest.mark.parametrize("folder", ["microws", "tests", "bench"])
def test_docs_that_the_code_cites_exist(folder: str) -> None:
    for source in (PROJECT / folder).rglob("*.py"):
        for page, heading in re.findall(r'((?:docs|bench)/[A-Za-z-]+\.md)(?:, "([^"]+)")?', source.read_text()):
            headings = re.findall(r"^#+ (.*)$", (PROJECT / page).read_text(), re.MULTILINE)
            assert not heading or heading in headings, f"{source}: {page}, {heading!r}"


# The reference


def load_generator() -> ModuleType:
    specification = importlib.util.spec_from_file_location("generate_reference", PROJECT / "docs/generate_reference.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_reference_is_up_to_date() -> None:
    page = (PROJECT / "docs/reference.md").read_text()
    assert page == load_generator().generate(page), "run: python docs/generate_reference.py"


def test_reference_has_every_public_name() -> None:
    described = {cls.__name__ for classes in load_generator().CLASSES.values() for cls in classes}
    assert set(microws.__all__) - described == set()


# The changelog, and the app in README.md


def test_changelog_has_this_version() -> None:
    assert re.search(rf"^## \[{re.escape(microws.__version__)}\]", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_app_in_the_readme_is_short() -> None:
    app = next(block for block in blocks_of(PROJECT / "README.md") if block.language == "python")
    assert len(app.text.splitlines()) <= 25
