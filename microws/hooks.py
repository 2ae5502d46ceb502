"""What an app registers around its views, and how it is called."""

import inspect
import os
from collections.abc import Callable
from typing import Any

from microws.answers import ErrorHandler, ErrorHandlers
from microws.interfaces import ASGIApplication

__all__ = ["HookList", "Hooks", "Middleware", "call_hook", "check_hook", "check_mounted"]


class HookList(list[Callable[..., Any]]):
    """
    Hooks of one kind, in the order of their registration.

    Args:
        decorator: The one of the app that registers them.
        arguments: What they are called with.
    """

    def __init__(self, decorator: str, *arguments: str) -> None:
        super().__init__()
        self._decorator = decorator
        self._arguments = arguments

    def add(self, hook: Callable[..., Any]) -> None:
        """Register ``hook``. Raises ``TypeError`` where it could not be called."""
        check_hook(hook, self._decorator, *self._arguments)
        self.append(hook)


class Hooks:
    """
    What one app registers around its views.

    Attributes:
        handlers: Its error handlers.
        parent: The hooks of the app that includes it.
    """

    def __init__(self) -> None:
        self.handlers = ErrorHandlers()
        self.parent: Hooks | None = None
        self._alone = (self,)
        self.before_request = HookList("before_request", "request")
        self.after_request = HookList("after_request", "request", "response")
        self.before_websocket = HookList("before_websocket", "ws")
        self.after_websocket = HookList("after_websocket", "ws")

    def inwards(self) -> "tuple[Hooks, ...]":
        """These hooks behind those of the including apps, outermost first."""
        return self._alone if self.parent is None else (*self.parent.inwards(), self)

    def outwards(self) -> "tuple[Hooks, ...]":
        """These hooks, then those of the including apps."""
        return self._alone if self.parent is None else (self, *self.parent.outwards())

    def have_before_request(self) -> bool:
        """Whether there is a ``before_request`` hook, here or in an including app."""
        return bool(self.before_request) or (self.parent is not None and self.parent.have_before_request())

    def have_after_request(self) -> bool:
        """Whether there is an ``after_request`` hook, here or in an including app."""
        return bool(self.after_request) or (self.parent is not None and self.parent.have_after_request())

    def have_before_websocket(self) -> bool:
        """Whether there is a ``before_websocket`` hook, here or in an including app."""
        return bool(self.before_websocket) or (self.parent is not None and self.parent.have_before_websocket())

    def have_after_websocket(self) -> bool:
        """Whether there is an ``after_websocket`` hook, here or in an including app."""
        return bool(self.after_websocket) or (self.parent is not None and self.parent.have_after_websocket())

    def add_handler(self, key: type[Exception] | int, handler: ErrorHandler) -> None:
        """Register an error handler. Raises ``TypeError`` and ``ValueError``, as ``ErrorHandlers.check`` does."""
        check_hook(handler, "error_handler", "connection", "error")
        self.handlers.add(key, handler)

    def find_handler(self, error: Exception) -> ErrorHandler | None:
        """The error handler of the innermost app that has one."""
        for hooks in self.outwards():
            if (handler := hooks.handlers.find(error)) is not None:
                return handler
        return None


class Middleware:
    """The ASGI middleware around one app."""

    def __init__(self) -> None:
        self.added: list[tuple[Callable[..., ASGIApplication], dict[str, Any]]] = []
        self._is_in_use = False

    def add(self, middleware: Any, options: dict[str, Any]) -> None:
        """
        Put ``middleware(app, **options)`` inside those that were added before.

        Raises:
            RuntimeError: The app serves already.
            TypeError: ``middleware`` makes no ASGI app.
        """
        if self._is_in_use:
            raise RuntimeError("add middleware before the app serves its first request")
        if not callable(middleware) or inspect.iscoroutinefunction(_called(middleware)):
            raise TypeError(
                "add_middleware takes a class or function that is called as middleware(app, **options) and makes an "
                f"ASGI app, not {middleware!r}; what runs before each view is registered with @app.before_request"
            )
        self.added.append((middleware, options))

    def around(self, app: ASGIApplication) -> ASGIApplication:
        """``app`` in all of them; none may be added afterwards."""
        self._is_in_use = True
        for middleware, options in reversed(self.added):
            app = middleware(app, **options)
        return app


def _called(function: Any) -> Any:
    """What runs when ``function`` is called."""
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function).__call__


def check_hook(hook: Callable[..., Any], decorator: str, *arguments: str) -> None:
    """
    Refuse a hook that could not be called, when it is registered and not when it is needed first.

    Args:
        decorator: The one of the app that registers it.
        arguments: What it will be called with.

    Raises:
        TypeError: It cannot be called, or not with these arguments.
    """
    if not callable(hook):
        raise TypeError(f"@app.{decorator} takes a function, not {hook!r}")
    try:
        signature = inspect.signature(hook, follow_wrapped=False)
    except ValueError:
        # Some functions that are written in C do not tell.
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        name = getattr(hook, "__name__", repr(hook))
        raise TypeError(
            f"{name}{signature} does not fit @app.{decorator}: it is called as {name}({', '.join(arguments)})"
        ) from None


def check_mounted(app: Any, prefix: str) -> None:
    """Raise ``TypeError`` where what is to be mounted at ``prefix`` is no ASGI app."""
    # Calling a class makes an object, which has to be awaited: Starlette's endpoints can be.
    if callable(app) and (not inspect.isclass(app) or hasattr(app, "__await__")):
        return
    if isinstance(app, str | os.PathLike):
        hint = f"the files of a directory are served by app.static({prefix!r}, {str(app)!r})"
    else:
        hint = "an ASGI app is called as app(scope, receive, send)"
    raise TypeError(f"mount takes an ASGI app, not {app!r}: {hint}")


async def call_hook(hook: Callable[..., Any], *args: Any) -> Any:
    """Call a hook or a handler and wait for it; a plain function runs in the event loop's thread."""
    result = hook(*args)
    return await result if inspect.isawaitable(result) else result
