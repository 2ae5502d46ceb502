"""From ``chat:app``, ``chat``, ``chat:create()`` or ``chat.py`` to an ASGI app; and the hint where that fails."""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from traceback import StackSummary, TracebackException
from types import ModuleType
from typing import Any, Final, NamedTuple

from microws.hints import nearest
from microws.server.loading import RunWhileLoading

__all__ = ["LoadError", "find_app"]

_PLACES: Final = ("app.py", "main.py", "asgi.py")
_USUAL_NAMES: Final = ("app", "application")
_FACTORIES: Final = ("create_app", "make_app", "get_app")
_ASGI_2: Final = (
    "takes one argument, as ASGI 2 apps do; microws serves ASGI 3 apps: async def app(scope, receive, send). asgiref's "
    "guarantee_single_callable() makes one of an ASGI 2 app"
)
_DOTTED: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_NOT_THEIRS: Final = (
    f"{Path(__file__).parents[1]}{os.sep}",
    f"{Path(importlib.__file__).parent}{os.sep}",
    "<frozen importlib",
)


class LoadError(Exception):
    """
    The app cannot be loaded. The text is one line.

    Attributes:
        traceback: The user's own, where their code failed; else empty.
    """

    def __init__(self, message: str, *, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


def find_app(name: str | None, *, factory: bool, app_dir: Path, is_app: Callable[[object], bool]) -> tuple[str, Any]:
    """
    Import and return an app. ``app_dir`` goes first on ``sys.path``, and stays there.

    Args:
        name: ``module:attr``, ``module``, ``module:factory()``, ``path.py``, ``path.py:attr``. ``None``: the one app of
            ``app.py``, ``main.py`` or ``asgi.py`` in ``app_dir``; the first file that has one counts.
        factory: Call what ``name`` names.
        app_dir: Where modules are looked for.
        is_app: Whether an object is an ``App``, which is found without being named. What is named may be any ASGI app.

    Returns:
        The app's name as ``module:attr``, and the app.

    Raises:
        LoadError: Nothing there, nothing that is an ASGI app, or the user's code failed.
    """
    _put_first(app_dir)
    if name is None:
        return _search(app_dir, is_app)
    target = _parse(name, app_dir)
    if factory and target.attribute is None:
        raise LoadError(f"--factory calls what is named: microws run --factory {target.place}:create_app")
    module = _import(target, app_dir)
    if target.attribute is None:
        attribute, app = _choose(module, target, is_app, app_dir)
        return f"{target.module}:{attribute}", app
    found = _get(module, target, is_app, app_dir)
    if factory or target.is_call:
        found = _call(found, target, app_dir)
    _check_asgi(found, module, target, is_app)
    return f"{target.module}:{target.attribute}{'()' if target.is_call else ''}", found


class _Target(NamedTuple):
    """
    What an APP argument names.

    Attributes:
        place: The module as the user wrote it.
        module: Its dotted name.
        attribute: ``None``: the app is to be found.
        is_call: ``module:factory()``.
        file: Where the module must come from, if a path was given.
    """

    place: str
    module: str
    attribute: str | None = None
    is_call: bool = False
    file: Path | None = None


def _parse(name: str, app_dir: Path) -> _Target:
    place, colon, rest = name.partition(":")
    is_call = rest.endswith("()")
    attribute = rest.removesuffix("()") or None
    if not place or (colon and not _DOTTED.fullmatch(attribute or "")):
        raise LoadError(f"APP: expected module:attr, module, module:factory() or path.py, got {name!r}")
    if place.endswith(".py") or "/" in place:
        file = (app_dir / place).absolute()
        if not file.is_file():
            raise LoadError(_missing_file(place, rest, app_dir))
        return _Target(place, _dotted_name(file), attribute, is_call, file)
    if not _DOTTED.fullmatch(place):
        if Path(app_dir, f"{place}.py").is_file():
            hint = f"write its path: microws run {_join(f'{place}.py', rest)}"
        elif Path(app_dir, place).is_dir():
            hint = f"to serve the app in this directory: microws run --app-dir {place}"
        else:
            hint = "for a file write its path, such as chat.py"
        raise LoadError(f"APP: expected the name of a module, got {place!r}; {hint}")
    return _Target(place, place, attribute, is_call)


def _missing_file(place: str, rest: str, app_dir: Path) -> str:
    path = Path(place)
    if (app_dir / path).is_dir():
        return f"{place} is a directory; to serve the app in it: microws run --app-dir {place}"
    near = nearest(path.stem, [found.stem for found in (app_dir / path).parent.glob("*.py")])
    if near is None:
        return f"no file {place}{_elsewhere(f'{path.stem}.py', rest, app_dir)}"
    return f"no file {place}; did you mean '{near}.py'?  microws run {_join(str(path.with_name(f'{near}.py')), rest)}"


def _elsewhere(name: str, rest: str, app_dir: Path) -> str:
    """Where there is a file of that name, in a folder or two below: a hint, or nothing."""
    for pattern in (f"*/{name}", f"*/*/{name}"):
        for file in sorted(app_dir.glob(pattern)):
            place = _shorter(file, app_dir)
            return f"; did you mean {place!r}?  microws run {_join(place, rest)}"
    return ""


def _dotted_name(file: Path) -> str:
    """The name that ``file`` is imported by, once the folder above its outermost package is on ``sys.path``."""
    parts = [file.stem]
    folder = file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    _put_first(folder)
    return ".".join(parts)


def _import(target: _Target, app_dir: Path) -> ModuleType:
    try:
        module = importlib.import_module(target.module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{target.module}.".startswith(f"{error.name}."):
            raise LoadError(_missing_module(target, error.name, app_dir)) from None
        raise _failed(f"{target.place} failed while it was imported", error) from None
    except (Exception, SystemExit) as error:
        raise _failed(f"{target.place} failed while it was imported", error) from None
    if target.file is not None and (module.__file__ is None or not target.file.samefile(module.__file__)):
        raise LoadError(f"{target.place} is hidden by another module {target.module!r}, {module.__file__}: rename it")
    return module


def _missing_module(target: _Target, missing: str, app_dir: Path) -> str:
    parent, _, last = missing.rpartition(".")
    if parent in sys.modules and hasattr(sys.modules[parent], last):
        return f"no module {missing!r}; did you mean an attribute?  microws run {parent}:{last}"
    folder = app_dir.joinpath(*parent.split(".")) if parent else app_dir
    names = [path.stem for path in folder.glob("*.py")] + [path.parent.name for path in folder.glob("*/__init__.py")]
    rest = _attribute(target)
    below = target.module.removeprefix(missing)

    def full(near: str) -> str:
        return _join(f"{parent}.{near}{below}" if parent else f"{near}{below}", rest)

    if missing == app_dir.name and below and Path(app_dir, f"{below[1:].replace('.', '/')}.py").is_file():
        hint = f"; from the directory above:  microws run --app-dir {app_dir.parent} {full(missing)}"
    else:
        hint = _suggest(last, names, full) or _elsewhere(f"{target.module.replace('.', '/')}.py", rest, app_dir)
    return f"no module {missing!r} in {app_dir}{hint}"


def _search(app_dir: Path, is_app: Callable[[object], bool]) -> tuple[str, Any]:
    looked_at = []
    for place in _PLACES:
        if (app_dir / place).is_file():
            looked_at.append(place)
            target = _parse(place, app_dir)
            module = _import(target, app_dir)
            if _apps(module, is_app):
                attribute, app = _choose(module, target, is_app, app_dir)
                return f"{target.module}:{attribute}", app
    where = f"no App in {', '.join(looked_at)}" if looked_at else f"no {', '.join(_PLACES)} in {app_dir}"
    raise LoadError(f"no APP was named, and there is {where}; name it: microws run chat:app")


def _apps(module: ModuleType, is_app: Callable[[object], bool]) -> dict[str, Any]:
    """The apps of a module, each by its first name."""
    apps: dict[str, Any] = {}
    for name, value in vars(module).items():
        if is_app(value) and not any(value is app for app in apps.values()):
            apps[name] = value
    return apps


def _choose(module: ModuleType, target: _Target, is_app: Callable[[object], bool], app_dir: Path) -> tuple[str, Any]:
    """The app of a module that was named alone."""
    for name in _USUAL_NAMES:
        if _why_no_asgi(getattr(module, name, None)) is None:
            return name, getattr(module, name)
    apps = _apps(module, is_app)
    if len(apps) == 1:
        return next(iter(apps.items()))
    shown = _shown(module, app_dir)
    if apps:
        name = next(iter(apps))
        raise LoadError(f"{shown} has {len(apps)} apps, {', '.join(apps)}; name one: microws run {target.place}:{name}")
    for name in _FACTORIES:
        if callable(getattr(module, name, None)):
            raise LoadError(f"{shown} has no app, but a factory: microws run '{target.place}:{name}()'")
    raise LoadError(f"{shown} has no app; it needs a line such as: app = App()")


def _get(module: ModuleType, target: _Target, is_app: Callable[[object], bool], app_dir: Path) -> Any:
    assert target.attribute is not None
    found: Any = module
    path = ""
    for name in target.attribute.split("."):
        if not hasattr(found, name):
            names = _own_names(found)
            owner = _shown(module, app_dir) + (f": {path}" if path else "")

            def full(near: str, path: str = path) -> str:
                call = "()" if target.is_call else ""
                return _join(target.place, f"{path}.{near}{call}" if path else f"{near}{call}")

            hint = _suggest(name, names, full)
            if not hint and not path and len(apps := list(_apps(module, is_app))) == 1:
                hint = f"; its app is {apps[0]!r}:  microws run {target.place}:{apps[0]}"
            raise LoadError(f"{owner} has no attribute {name!r}{hint}")
        found = getattr(found, name)
        path = f"{path}.{name}" if path else name
    return found


def _own_names(owner: Any) -> list[str]:
    """The public attributes of a module or an object. A class that a module imports, such as App, is not meant."""
    return [
        name
        for name, value in getattr(owner, "__dict__", {}).items()
        if not name.startswith("_")
        and not (inspect.isclass(value) and inspect.ismodule(owner) and value.__module__ != owner.__name__)
    ]


def _call(factory: Any, target: _Target, app_dir: Path) -> Any:
    if not callable(factory):
        raise LoadError(
            f"{target.place}: expected a function that returns the app, got {target.attribute!r}, "
            f"{_a(factory)}; leave out ()"
        )
    try:
        app = factory()
    except (Exception, SystemExit) as error:
        raise _failed(f"{target.place}: {target.attribute}() failed", error) from None
    if inspect.iscoroutine(app):
        app.close()
        raise LoadError(
            f"{target.place}: expected a plain function that returns the app, got {target.attribute}, which is async; "
            "write def"
        )
    return app


def _check_asgi(app: Any, module: ModuleType, target: _Target, is_app: Callable[[object], bool]) -> None:
    reason = _why_no_asgi(app)
    if reason is None:
        return
    # The class App stands in the module too.
    same = next((name for name in _apps(module, is_app) if name.lower() == str(target.attribute).lower()), None)
    if same is not None:
        reason += f"; did you mean {same!r}?  microws run {target.place}:{same}"
    elif not target.is_call and callable(app) and _takes(app, 0):
        reason += f"; to serve what it returns: microws run '{target.place}:{target.attribute}()'"
    raise LoadError(f"{target.place}: {target.attribute!r} {reason}")


def _why_no_asgi(app: Any) -> str | None:
    """``None`` for what may be an ASGI app: something to be called with scope, receive and send."""
    if not callable(app):
        return f"is {_a(app)}, not an ASGI app"
    # Calling a class makes an object, which has to be awaited: Starlette's endpoints can be.
    if _takes(app, 3) and (not inspect.isclass(app) or hasattr(app, "__await__")):
        return None
    may_be_factory = _takes(app, 0)
    if inspect.isclass(app):
        is_asgi_2 = not may_be_factory and _takes(app, 1) and inspect.isfunction(app.__call__)
        return _ASGI_2 if is_asgi_2 else "is a class, not an ASGI app"
    if may_be_factory:
        return "is not an ASGI app: it does not take scope, receive and send"
    if _takes(app, 2):
        return "looks like a WSGI app; microws serves ASGI apps"
    return _ASGI_2 if _takes(app, 1) else "is not an ASGI app: it does not take scope, receive and send"


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether ``function`` may be called with so many arguments: it is not refused by its signature."""
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        # Some callables have none that can be found: those written in C, and instances whose __call__ is a slot.
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _failed(message: str, error: BaseException) -> LoadError:
    report = TracebackException.from_exception(error)
    _cut(report)
    if isinstance(error, RunWhileLoading):
        where = f"{Path(report.stack[-1].filename).name}, line {report.stack[-1].lineno}: " if report.stack else ""
        return LoadError(f'{where}{error}; write above the call: if __name__ == "__main__":')
    return LoadError(f"{message}: {type(error).__name__}", traceback="".join(report.format()))


def _cut(report: TracebackException | None) -> None:
    """Leave out the frames of importlib and of this package, which say nothing about the user's mistake."""
    if report is None:
        return
    report.stack = StackSummary.from_list(
        [frame for frame in report.stack if not frame.filename.startswith(_NOT_THEIRS)]
    )
    for inner in (report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())):
        _cut(inner)


def _put_first(folder: Path) -> None:
    path = str(folder.absolute())
    if path in sys.path:
        sys.path.remove(path)
    sys.path.insert(0, path)


def _suggest(word: str, known: list[str], argument: Callable[[str], str]) -> str:
    near = nearest(word, known)
    return "" if near is None else f"; did you mean {near!r}?  microws run {argument(near)}"


def _attribute(target: _Target) -> str:
    return "" if target.attribute is None else f"{target.attribute}{'()' if target.is_call else ''}"


def _join(place: str, attribute: str) -> str:
    if not attribute:
        return place
    argument = f"{place}:{attribute}"
    return f"'{argument}'" if attribute.endswith("()") else argument


def _shown(module: ModuleType, app_dir: Path) -> str:
    if module.__file__ is None:
        return f"the package {module.__name__!r}"
    return _shorter(Path(module.__file__), app_dir)


def _shorter(file: Path, app_dir: Path) -> str:
    return str(file.relative_to(app_dir)) if file.is_relative_to(app_dir) else str(file)


def _a(value: object) -> str:
    kind = type(value).__name__
    return "None" if value is None else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
