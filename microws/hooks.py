"""What an app registers around its views: hooks, error handlers and middleware."""

import inspect
import os
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter
from typing import Any, TypeAlias

from microws.answers import report
from microws.callables import is_async, layers_of, name_of, signature_of
from microws.errors import HTTPException
from microws.interfaces import ASGIApplication, Receive, Scope, Send

__all__ = [
    "HookList",
    "Hooks",
    "Middleware",
    "call_hook",
    "check_hook",
    "check_middleware",
    "check_mounted",
    "in_thread",
    "wrap",
]

ErrorHandler: TypeAlias = Callable[[Any, Any], Any]
# Called with an ASGI app and these options, it returns the wrapped app.
Middleware: TypeAlias = tuple[Callable[..., ASGIApplication], dict[str, Any]]


class HookList(list[Callable[..., Any]]):
    """
    Hooks of one kind, in the order of their registration.

    Args:
        decorator: The decorator of the app that registers them.
        arguments: The names of their arguments.
    """

    def __init__(self, decorator: str, *arguments: str) -> None:
        super().__init__()
        self._decorator = decorator
        self._arguments = arguments

    def add(self, hook: Callable[..., Any]) -> None:
        """Register ``hook``. Raises ``TypeError`` if it cannot be called with the arguments."""
        check_hook(hook, self._decorator, *self._arguments)
        self.append(hook)


class ViewHooks(HookList):
    """
    Hooks of one kind around the views of an app and of the apps that it includes. Plain functions run in a thread.

    Attributes:
        chain: The hooks around a view of this app: those of the including apps, outermost first, then its own.
    """

    def __init__(self, decorator: str, *arguments: str) -> None:
        super().__init__(decorator, *arguments)
        self.chain: tuple[Callable[..., Any], ...] = ()
        self._outer: ViewHooks | None = None
        self._inner: list[ViewHooks] = []

    def append(self, hook: Callable[..., Any]) -> None:
        """Add a hook that was checked."""
        super().append(in_thread(hook))
        self._update_chain()

    def include(self, inner: "ViewHooks") -> None:
        """Call these hooks, and the ones registered later, around those of an included app."""
        self._inner.append(inner)
        inner._outer = self  # noqa: SLF001 - of the same class
        inner._update_chain()  # noqa: SLF001

    def _update_chain(self) -> None:
        self.chain = (*(self._outer.chain if self._outer else ()), *self)
        for inner in self._inner:
            inner._update_chain()  # noqa: SLF001


class Hooks:
    """
    The hooks and error handlers that one app registers around its views.

    Attributes:
        parent: The hooks of the app that includes it.
    """

    def __init__(self) -> None:
        self.parent: Hooks | None = None
        self._handlers: dict[type[Exception] | int, ErrorHandler] = {}
        self.before_request: ViewHooks = ViewHooks("before_request", "request")
        self.after_request: ViewHooks = ViewHooks("after_request", "request", "response")
        self.before_websocket: ViewHooks = ViewHooks("before_websocket", "ws")
        self.after_websocket: ViewHooks = ViewHooks("after_websocket", "ws")

    def include(self, other: "Hooks") -> None:
        """Call these hooks around those of an included app, too."""
        other.parent = self
        self.before_request.include(other.before_request)
        self.after_request.include(other.after_request)
        self.before_websocket.include(other.before_websocket)
        self.after_websocket.include(other.after_websocket)

    def check_handled(self, key: type[Exception] | int) -> None:
        """
        Refuse an invalid key of an error handler, and one that has a handler already.

        Raises:
            TypeError, ValueError: ``key`` is not a status or exception class, or has a handler already.
        """
        is_status = isinstance(key, int) and not isinstance(key, bool)
        if not is_status and not (isinstance(key, type) and issubclass(key, Exception)):
            raise TypeError(f"expected an exception class or a status, got {key!r}; write @app.error_handler(404)")
        if isinstance(key, int) and not 400 <= key <= 599:
            raise ValueError(f"expected a status of 400 to 599 for error_handler, got {key}")
        if key in self._handlers:
            raise ValueError(f"{key.__name__ if isinstance(key, type) else key} has an error handler already")

    def add_handler(self, key: type[Exception] | int, handler: ErrorHandler) -> None:
        """Register an error handler for a status or an exception class. Raises as ``check_handled``."""
        self.check_handled(key)
        check_hook(handler, "error_handler", "connection", "error")
        self._handlers[key] = in_thread(handler)

    def find_handler(self, error: Exception) -> ErrorHandler | None:
        """
        The error handler of the innermost app that has one for ``error``.

        In one app that is the handler of the error's status, else of its nearest class, else 500's if the error is
        unexpected. An error with a handler of its class is expected. Any other error is logged before 500's handler is
        called.
        """
        status = error.status if isinstance(error, HTTPException) else None
        for key in (status, *type(error).__mro__):
            if key in self._handlers:
                return self._handlers[key]
        if status is None and 500 in self._handlers:
            return _reporting(self._handlers[500])
        return None if self.parent is None else self.parent.find_handler(error)


def _reporting(handler: ErrorHandler) -> ErrorHandler:
    @wraps(handler, updated=())
    def report_and_call(connection: Any, error: Exception) -> Any:
        report(error, connection.path)
        return handler(connection, error)

    return report_and_call


def check_middleware(middleware: Any) -> None:
    """Raise ``TypeError`` unless ``middleware`` can be called with an ASGI app and return one."""
    is_function = inspect.isroutine(middleware) or inspect.isclass(middleware)
    if not callable(middleware) or inspect.iscoroutinefunction(
        middleware if is_function else type(middleware).__call__
    ):
        raise TypeError(
            "expected middleware that is called as middleware(app, **options) and returns an ASGI app, got "
            f"{middleware!r}; to run code before each view, use @app.before_request"
        )


def wrap(app: ASGIApplication, middleware: Sequence[Middleware]) -> ASGIApplication:
    """Put ``app`` into ``middleware``, of which the first is outermost."""
    if not middleware:
        return app
    inner = app

    # Sentry's and asgiref's detection (OpenTelemetry, ServeStatic) take anything but an `async def` function for an
    # ASGI 2 app, and call it with the scope alone. Sentry's also does so with a bound method.
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await inner(scope, receive, send)

    app = serve
    for make, options in reversed(middleware):
        app = make(app, **options)
    return app


def check_hook(hook: Callable[..., Any], decorator: str, *arguments: str) -> None:
    """
    Refuse a hook that cannot be called, when it is registered and not when it is first needed.

    Args:
        decorator: The decorator of the app that registers it.
        arguments: The names of the arguments of its calls.

    Raises:
        TypeError: It cannot be called with these arguments.
    """
    if not callable(hook):
        raise TypeError(f"expected a function for @app.{decorator}, got {hook!r}")
    for layer in layers_of(hook):
        try:
            signature = signature_of(layer)
        except ValueError:
            # Some functions that are written in C have no signature.
            continue
        try:
            # A decorator may pass more arguments on, but not fewer.
            signature.bind(*arguments) if layer is hook else signature.bind_partial(*arguments)
        except TypeError:
            name = name_of(hook)
            raise TypeError(
                f"{name}{signature} does not fit @app.{decorator}: it is called as {name}({', '.join(arguments)})"
            ) from None
        if all(parameter.kind is not Parameter.VAR_POSITIONAL for parameter in signature.parameters.values()):
            return


def check_mounted(app: Any, prefix: str, origins: Any) -> None:
    """Raise ``TypeError`` if the app to be mounted at ``prefix`` is not an ASGI app, or ``origins`` is not a bool."""
    if not isinstance(origins, bool):
        raise TypeError(f"expected origins=True or False of mount, got {origins!r}; App(origins=…) takes a list")
    # Calling a class creates an object, which is then awaited: Starlette's endpoints allow that.
    if callable(app) and (not inspect.isclass(app) or hasattr(app, "__await__")):
        return
    if isinstance(app, str | os.PathLike):
        hint = f"serve the files of a directory with app.static({prefix!r}, {str(app)!r})"
    else:
        hint = "it is called as app(scope, receive, send)"
    raise TypeError(f"expected an ASGI app to mount, got {app!r}; {hint}")


def in_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``hook`` if it is ``async def``; else a function that calls it in a worker thread."""
    if is_async(hook):
        return hook

    @wraps(hook, updated=())
    async def call_in_thread(connection: Any, *args: Any) -> Any:
        return await connection.app.threads.run("hooks", hook, connection, *args)

    return call_in_thread


async def call_hook(hook: Callable[..., Any], *args: Any) -> Any:
    """Call a hook or an error handler, and wait for it."""
    result = hook(*args)
    return await result if inspect.isawaitable(result) else result
