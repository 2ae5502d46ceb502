"""The law of the floors, read from the source: a module imports own modules from strictly lower floors only."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "microws"

# The same table, with the job of each module, stands in CONTRIBUTING.md. A name with a slash is a package, which may
# import within itself.
FLOORS = {
    0: "interfaces errors closing datastructures hints version",
    1: "callables codec/ cookies counters deflate forms framing/ handshake hub_url page_cache rates routing signing "
    "state upgrade",
    2: "annotations bench/ cors hub/ requests responses templates testing/ threads",
    3: "answers connection/ local/ redis_hub/ sessions streams tickets",
    4: "files hooks server/ settings subscription websocket",
    5: "dev/ event_stream hub_connection live topic_hooks views",
    6: "client/ description/ dispatch/ docs_page/ health lifespan live_views metrics",
    7: "app",
    8: "__init__",
    9: "cli/",
    10: "__main__",
}

# Imports of own modules inside a function.
DEFERRED = {
    # Each subcommand is imported when it is chosen.
    "cli -> hints",
    "__init__ -> hints",  # which only a missing name needs
    # Which not every app needs.
    "app -> dev.script",
    "app -> description",
    "app -> client",
    "app -> docs_page",
    "app -> event_stream",
    "app -> files",
    "app -> health",
    "app -> live_views",
    "app -> metrics",
    "app -> server.worker",
    "app -> signing",
    "app -> testing",
    "hub_connection -> redis_hub.backplane",
    "lifespan -> local.client",
    "lifespan -> redis_hub.backplane",
    "requests -> forms",
    "settings -> signing",
    "connection.bulk_writes -> connection.aio",  # with ctypes, which only many sockets of one topic need
    "server.worker -> server.hypercorn",  # which imports Hypercorn, of no use to the default server
}

# Imports of own modules for type checkers only, besides those of `__init__`, which imports a module on first use.
FOR_TYPES = {
    "app -> description",
    "app -> event_stream",
    "app -> server.settings",
    "app -> signing",
    "app -> testing",
    "requests -> forms",
}

# Floors that these packages may import from besides themselves; they know nothing of apps.
OUTSIDE = ("server/", "bench/")
OUTSIDE_FLOORS = (0, 1)
# The connection of a WebSocket, and the hub.
BELOW_THE_SERVER = ("connection/", "hub/", "local/")


class Import(NamedTuple):
    """One import of an own module, by dotted names below ``microws``; the root is ``__init__``."""

    importer: str
    imported: str
    line: int
    is_deferred: bool
    is_for_types: bool

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: imports {self.imported}"


def floor_of(module: str) -> int | None:
    """The floor of ``routing.paths``, by its package, or of ``codec``."""
    return next((floor for floor, rooms in FLOORS.items() if room_of(module) in rooms.split()), None)


def room_of(module: str) -> str:
    first = module.partition(".")[0]
    return f"{first}/" if (PACKAGE / first / "__init__.py").exists() else first


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(module: str) -> Iterator[Import]:
    yield from _walk(module, ast.parse(MODULES[module].read_text()), is_deferred=False, is_for_types=False)


def _walk(module: str, node: ast.AST, *, is_deferred: bool, is_for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            for name in _imported(child):
                yield Import(module, name, child.lineno, is_deferred, is_for_types)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            is_guard = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _walk(
                module, child, is_deferred=is_deferred or is_function, is_for_types=is_for_types or is_guard
            )


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The own modules that a statement imports. ``from package import name`` may mean a module or what is in it."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        assert node.level == 0, f"line {node.lineno}: imports are absolute here"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
        root, _, rest = name.partition(".")
        if root == "microws":
            yield rest if rest in MODULES else rest.rpartition(".")[0] or "__init__"


IMPORTS = [found for module in MODULES for found in imports_of(module)]


def test_the_table_has_exactly_the_modules() -> None:
    rooms = {room for rooms in FLOORS.values() for room in rooms.split()}
    assert {room_of(module) for module in MODULES} == rooms


def test_a_module_is_on_one_floor() -> None:
    rooms = [room for rooms in FLOORS.values() for room in rooms.split()]
    assert sorted(set(rooms)) == sorted(rooms)


def test_contributing_has_the_same_table() -> None:
    rows = re.findall(r"^\| (\d+)[^|]*\|([^|]*)\|", (PROJECT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    written: dict[int, set[str]] = {}
    for floor, rooms in rows:
        written.setdefault(int(floor), set()).update(name.removesuffix(".py") for name in re.findall(r"`(.+?)`", rooms))
    assert written == {floor: set(rooms.split()) for floor, rooms in FLOORS.items()}


def test_a_module_imports_from_strictly_lower_floors_only() -> None:
    wrong = []
    for found in IMPORTS:
        if room_of(found.importer) == room_of(found.imported) and room_of(found.importer).endswith("/"):
            continue
        importer, imported = floor_of(found.importer), floor_of(found.imported)
        if importer is not None and imported is not None and imported >= importer:
            wrong.append(f"{found}: from floor {importer} to floor {imported}")
    assert wrong == []


def test_a_package_has_no_import_cycle() -> None:
    beside = {
        module: {found.imported for found in IMPORTS if found.importer == module and "." in found.imported}
        for module in MODULES
    }
    cycles = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            cycles.append(" -> ".join((*path[path.index(module) :], module)))
            return
        for imported in sorted(beside[module]):
            if room_of(imported) == room_of(module):
                visit(imported, (*path, module))

    for module in MODULES:
        visit(module, ())
    assert cycles == []


def test_a_module_does_not_import_its_own_package() -> None:
    assert [str(found) for found in IMPORTS if found.importer.startswith(f"{found.imported}.")] == []


def test_the_server_and_the_load_generator_know_nothing_of_apps() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if room_of(found.importer) in OUTSIDE
        and room_of(found.imported) != room_of(found.importer)
        and floor_of(found.imported) not in OUTSIDE_FLOORS
        and not (room_of(found.importer) == "server/" and room_of(found.imported) in BELOW_THE_SERVER)
    ]
    assert wrong == []


def test_the_hub_does_not_import_the_server() -> None:
    assert [str(found) for found in IMPORTS if found.importer == "hub" and room_of(found.imported) == "server/"] == []


def test_imports_for_types_are_those_listed() -> None:
    found = [found for found in IMPORTS if found.is_for_types and found.importer != "__init__"]
    assert {f"{each.importer} -> {each.imported}" for each in found} == FOR_TYPES


def test_deferred_imports_are_those_listed() -> None:
    assert {f"{found.importer} -> {found.imported}" for found in IMPORTS if found.is_deferred} == DEFERRED


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_an_all(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    offers = any(
        isinstance(node, ast.Assign) and any(ast.unparse(target) == "__all__" for target in node.targets)
        for node in tree.body
    )
    only_docstring = all(isinstance(node, ast.Expr) for node in tree.body)
    assert offers or only_docstring or module == "__main__"
