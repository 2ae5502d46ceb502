"""Finds an ASGI app by ``chat:app``, ``chat``, ``chat:create()`` or ``chat.py``, or says what to write instead."""

import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from glob import escape
from pathlib import Path
from traceback import StackSummary, TracebackException
from types import ModuleType
from typing import Any, Final, NamedTuple, Self

from microws.app import App
from microws.hints import nearest

__all__ = ["LoadError", "find_app"]

_PLACES: Final = ("app.py", "main.py", "asgi.py")
_FACTORIES: Final = ("create_app", "make_app", "get_app")
_PACKAGE: Final = str(Path(__file__).parents[1])


class LoadError(Exception):
    """
    The app cannot be loaded. The text is one line.

    Attributes:
        traceback: Of the user's code, if that failed; else empty.
        error: What it raised then.
    """

    def __init__(self, message: str, *, traceback: str = "", error: BaseException | None = None) -> None:
        super().__init__(message)
        self.traceback = traceback
        self.error = error

    def naming(self, command: str) -> str:
        """The text for another command than ``run``: its hints are lines of that one."""
        return str(self).replace("microws run ", f"microws {command} ")


def find_app(name: str | None, *, factory: bool, app_dir: Path) -> tuple[str, Any]:
    """
    Import and return an app. ``app_dir`` goes first on ``sys.path``, and stays there.

    Args:
        name: ``module:attr``, ``module``, ``module:factory()``, ``path.py``, ``path.py:attr``. ``None``: the ``App`` of
            the first of ``app.py``, ``main.py`` and ``asgi.py`` in ``app_dir`` that has one.
        factory: Call what ``name`` names.
        app_dir: Where modules are looked for.

    Returns:
        The app's name as ``module:attr``, and the app: an ``App``, or another ASGI app if it was named.

    Raises:
        LoadError: There is no such module, attribute or ASGI app, or the user's code failed.
    """
    _put_first(app_dir)
    if name is None:
        places = [place for place in _PLACES if (app_dir / place).is_file()]
        for place in places:
            target = _Target(place, "", "")
            module = _import(target, app_dir)
            if _apps(module):
                return _choose(module, target)
        where = f"no App in {', '.join(places)}" if places else f"no {', '.join(_PLACES)} in {app_dir}"
        raise LoadError(f"no APP was named, and there is {where}; name it: microws run chat:app")
    target = _Target.parse(name)
    if factory and not target.attribute:
        raise LoadError(f"--factory: expected a function, got {name!r}; write: {target.line('create_app')} --factory")
    module = _import(target, app_dir)
    if not target.attribute:
        return _choose(module, target)
    app = _get(module, target)
    if factory or target.call:
        app = _call(app, target)
    if reason := _why_not_asgi(app):
        if inspect.isclass(app) and (apps := _apps(module)):
            reason += f"; did you mean: {target.line(apps[0])}"
        elif not target.call and callable(app) and _takes(app, 0):
            reason += f"; to serve what it returns: {target.line(target.attribute, call='()')}"
        raise LoadError(f"{target.place}: expected an ASGI app, got {target.attribute}, {reason}")
    return f"{module.__name__}:{target.attribute}{target.call}", app


class _Target(NamedTuple):
    """
    What an APP argument names.

    Attributes:
        place: The module, or its file.
        attribute: Empty: the app is to be found.
        call: ``()`` after the attribute, or empty.
    """

    place: str
    attribute: str
    call: str

    @classmethod
    def parse(cls, name: str) -> Self:
        if match := re.fullmatch(r"([^:]+)(?::([^\W\d][\w.]*)(\(\))?)?", name):
            return cls(*match.groups(""))
        raise LoadError(f"APP: expected module:attr, module, module:factory() or path.py, got {name!r}")

    @property
    def is_file(self) -> bool:
        return self.place.endswith(".py") or not all(map(str.isidentifier, self.place.split(".")))

    def line(self, attribute: str, *, place: str = "", call: str = "") -> str:
        """The command to write."""
        return "microws run " + shlex.quote((place or self.place) + (f":{attribute}{call}" if attribute else ""))


def _import(target: _Target, app_dir: Path) -> ModuleType:
    name = target.place
    file = folder = (app_dir / target.place).absolute()
    if target.is_file:
        if file.is_dir():
            raise LoadError(f"{name} is a directory; to serve the app in it: microws run --app-dir {name}")
        if not file.is_file():
            raise LoadError(f"no file {name} in {app_dir}{_suggest(target, app_dir)}")
        while (folder := folder.parent).joinpath("__init__.py").is_file():
            pass
        _put_first(folder)
        name = ".".join(file.relative_to(folder).with_suffix("").parts)
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise LoadError(f"no module {error.name!r} in {app_dir}{_suggest(target, app_dir)}") from None
        raise _failed(f"{target.place} failed while it was imported", error) from None
    if target.is_file and (module.__file__ is None or not file.samefile(module.__file__)):
        raise LoadError(f"{target.place} is hidden by another module {name!r}, {module.__file__}: rename it")
    return module


def _suggest(target: _Target, app_dir: Path) -> str:
    """The line to write instead of a module or file that does not exist, or nothing."""
    separator, suffix = ("/", ".py") if target.is_file else (".", "")
    *parents, last = parts = target.place.removesuffix(suffix).split(separator)
    if hasattr(sys.modules.get(".".join(parents)), last):
        return f"; did you mean: {target.line(last, place='.'.join(parents))}"
    if parts[0] == app_dir.name and app_dir.parent.joinpath(*parts).with_suffix(".py").is_file():
        line = target.line(target.attribute, call=target.call)
        return f"; did you mean: {line} --app-dir {app_dir.parent}"
    folder = app_dir
    while len(parts) > 1 and (folder / parts[0]).is_dir():
        folder /= parts.pop(0)
    near = nearest(parts[0], [path.stem for path in folder.glob("[!._]*") if path.suffix == ".py" or path.is_dir()])
    if near and folder.joinpath(f"{near}.py").is_file():
        del parts[1:]  # what follows the name of a file names no module
    found = [folder.joinpath(near, *parts[1:])] if near else []
    path = escape("/".join([*parents, last]))
    found += [file for depth in ("*", "*/*") for file in app_dir.glob(f"{depth}/{path}.py")]
    if not found:
        return ""
    place = separator.join(found[0].relative_to(app_dir).with_suffix("").parts) + suffix
    return f"; did you mean: {target.line(target.attribute, place=place, call=target.call)}"


def _apps(module: ModuleType) -> list[str]:
    """The names of the apps of a module; of an app with several, the first."""
    first = {id(value): name for name, value in reversed(vars(module).items()) if isinstance(value, App)}
    return [name for name, value in vars(module).items() if first.get(id(value)) == name]


def _choose(module: ModuleType, target: _Target) -> tuple[str, Any]:
    """The app of a module that was named without an attribute."""
    apps = _apps(module)
    usual = [name for name in ("app", "application") if not _why_not_asgi(getattr(module, name, None))]
    if usual or len(apps) == 1:
        name = [*usual, *apps][0]
        return f"{module.__name__}:{name}", getattr(module, name)
    if apps:
        raise LoadError(f"{target.place} has the apps {', '.join(apps)}; name one: {target.line(apps[0])}")
    factory = next((name for name in _FACTORIES if callable(getattr(module, name, None))), None)
    hint = f"to call its factory: {target.line(factory, call='()')}" if factory else "write a line such as: app = App()"
    raise LoadError(f"{target.place} has no app; {hint}")


def _get(module: ModuleType, target: _Target) -> Any:
    found: Any = module
    path = ""
    for name in target.attribute.split("."):
        if not hasattr(found, name):
            # An imported class such as App is not what the user means.
            values = getattr(found, "__dict__", {})
            near = nearest(name, [own for own in values if own[0] != "_" and not isinstance(values[own], type)])
            apps = [near] if near else [] if path else _apps(module)
            hint = f"; did you mean: {target.line(path + apps[0], call=target.call)}" if apps else ""
            raise LoadError(f"{target.place} has no attribute {path + name!r}{hint}")
        found = getattr(found, name)
        path += f"{name}."
    return found


def _call(factory: Any, target: _Target) -> Any:
    if not callable(factory) or inspect.iscoroutinefunction(factory):
        kind = "which is async; write def" if callable(factory) else f"of type {type(factory).__name__}; leave out ()"
        raise LoadError(f"{target.place}: expected a function that returns the app, got {target.attribute}, {kind}")
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise _failed(f"{target.place}: {target.attribute}() failed", error) from None


def _why_not_asgi(app: Any) -> str:
    """Why ``app`` cannot be called with scope, receive and send; empty if it may be an ASGI app."""
    if not callable(app):
        return f"of type {type(app).__name__}"
    # Calling a class makes an object, which the server awaits: Starlette's endpoints can be awaited.
    if inspect.isclass(app) and not hasattr(app, "__await__"):
        return "a class"
    if _takes(app, 3):
        return ""
    if _takes(app, 2) and not _takes(app, 0):
        return "which looks like a WSGI app"
    return "which does not take scope, receive and send, as ASGI 3 apps do"


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether the signature of ``function`` accepts ``count`` arguments."""
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        # Some callables have no signature: those written in C, and instances whose __call__ is a slot.
        return True
    with suppress(TypeError):
        return signature.bind(*range(count)) is not None
    return False


def _failed(message: str, error: BaseException) -> LoadError:
    report = TracebackException.from_exception(error)
    _keep_users_frames(report)
    hint = f"; if it is a package, install it in {sys.prefix}" if isinstance(error, ModuleNotFoundError) else ""
    return LoadError(f"{message}: {type(error).__name__}{hint}", traceback="".join(report.format()), error=error)


def _keep_users_frames(report: TracebackException | None) -> None:
    """Drop the frames of importlib and of this package from a traceback, and from those that it contains."""
    if report is not None:
        report.stack = StackSummary.from_list(
            [each for each in report.stack if "importlib" not in each.filename and _PACKAGE not in each.filename]
        )
        for inner in (report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())):
            _keep_users_frames(inner)


def _put_first(folder: Path) -> None:
    path = str(folder.absolute())
    sys.path[:] = [path, *(other for other in sys.path if other != path)]
