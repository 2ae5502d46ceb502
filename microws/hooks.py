"""What an app registers around its views, and how it is called."""

import inspect
import os
from collections.abc import Callable
from functools import wraps
from inspect import Parameter
from typing import Any

from microws.answers import ErrorHandler, ErrorHandlers
from microws.callables import is_async, layers_of, name_of, signature_of
from microws.interfaces import ASGIApplication, Receive, Scope, Send

__all__ = ["HookList", "Hooks", "Middleware", "ViewHooks", "call_hook", "check_hook", "check_mounted"]


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


class ViewHooks(HookList):
    """
    Hooks of one kind around the views of an app and of those that it includes.

    Attributes:
        chain: What is called around a view: the hooks of the including apps, outermost first, then these.
    """

    def __init__(self, decorator: str, *arguments: str) -> None:
        super().__init__(decorator, *arguments)
        self.chain: tuple[Callable[..., Any], ...] = ()
        self._outer: tuple[Callable[..., Any], ...] = ()
        self._inner: list[ViewHooks] = []

    def add(self, hook: Callable[..., Any]) -> None:
        """Register ``hook``, to be called in a worker thread if it is a plain function. Raises as ``HookList.add``."""
        check_hook(hook, self._decorator, *self._arguments)
        self.append(_off_the_loop(hook))
        self.put_inside(self._outer)

    def include(self, inner: "ViewHooks") -> None:
        """Have these called around those of an included app, also what is registered later."""
        self._inner.append(inner)
        inner.put_inside(self.chain)

    def put_inside(self, outer: tuple[Callable[..., Any], ...]) -> None:
        """Have these called behind ``outer``."""
        self._outer = outer
        self.chain = (*outer, *self)
        for inner in self._inner:
            inner.put_inside(self.chain)


class Hooks:
    """
    What one app registers around its views.

    Attributes:
        handlers: Its error handlers.
        parent: The hooks of the app that includes it.
    """

    def __init__(self) -> None:
        self.handlers: ErrorHandlers = ErrorHandlers()
        self.parent: Hooks | None = None
        self.before_request: ViewHooks = ViewHooks("before_request", "request")
        self.after_request: ViewHooks = ViewHooks("after_request", "request", "response")
        self.before_websocket: ViewHooks = ViewHooks("before_websocket", "ws")
        self.after_websocket: ViewHooks = ViewHooks("after_websocket", "ws")

    def include(self, other: "Hooks") -> None:
        """Have these around those of an included app too."""
        other.parent = self
        self.before_request.include(other.before_request)
        self.after_request.include(other.after_request)
        self.before_websocket.include(other.before_websocket)
        self.after_websocket.include(other.after_websocket)

    def add_handler(self, key: type[Exception] | int, handler: ErrorHandler) -> None:
        """Register an error handler. Raises ``TypeError`` and ``ValueError``, as ``ErrorHandlers.check`` does."""
        check_hook(handler, "error_handler", "connection", "error")
        self.handlers.add(key, _off_the_loop(handler))

    def find_handler(self, error: Exception) -> ErrorHandler | None:
        """The error handler of the innermost app that has one."""
        handler = self.handlers.find(error)
        return self.parent.find_handler(error) if handler is None and self.parent is not None else handler


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
        if not self.added:
            return app
        inner = app

        # Sentry's and asgiref's detection (OpenTelemetry, ServeStatic) take anything but an `async def` function for
        # an ASGI 2 app, and call it with the scope alone. Sentry's takes a bound method for one too.
        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            await inner(scope, receive, send)

        app = serve
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
    for layer in layers_of(hook):
        try:
            signature = signature_of(layer)
        except ValueError:
            # Some functions that are written in C do not tell.
            continue
        try:
            # A decorator may pass more on, but not less.
            signature.bind(*arguments) if layer is hook else signature.bind_partial(*arguments)
        except TypeError:
            name = name_of(hook)
            raise TypeError(
                f"{name}{signature} does not fit @app.{decorator}: it is called as {name}({', '.join(arguments)})"
            ) from None
        if all(parameter.kind is not Parameter.VAR_POSITIONAL for parameter in signature.parameters.values()):
            return


def check_mounted(app: Any, prefix: str, origins: Any) -> None:
    """Raise ``TypeError`` where what is to be mounted at ``prefix`` is no ASGI app, or ``origins`` is not a bool."""
    if not isinstance(origins, bool):
        raise TypeError(f"mount takes origins=True or False, not {origins!r}: a list is given to App(origins=…)")
    # Calling a class makes an object, which has to be awaited: Starlette's endpoints can be.
    if callable(app) and (not inspect.isclass(app) or hasattr(app, "__await__")):
        return
    if isinstance(app, str | os.PathLike):
        hint = f"the files of a directory are served by app.static({prefix!r}, {str(app)!r})"
    else:
        hint = "an ASGI app is called as app(scope, receive, send)"
    raise TypeError(f"mount takes an ASGI app, not {app!r}: {hint}")


def _off_the_loop(hook: Callable[..., Any]) -> Callable[..., Any]:
    """``hook`` itself if it is ``async def``; else a function that calls it in a worker thread."""
    if is_async(hook):
        return hook

    @wraps(hook, updated=())
    async def call_in_thread(connection: Any, *args: Any) -> Any:
        return await connection.app.threads.run("hooks", hook, connection, *args)

    return call_in_thread


async def call_hook(hook: Callable[..., Any], *args: Any) -> Any:
    """Call a hook or a handler as it was registered, and wait for it."""
    result = hook(*args)
    return await result if inspect.isawaitable(result) else result
