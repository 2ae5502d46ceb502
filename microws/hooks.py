"""What an app registers around its views, and how it is called."""

import inspect
from collections.abc import Callable
from typing import Any

from microws.answers import ErrorHandler, ErrorHandlers

__all__ = ["Hooks", "call_hook"]


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
        self.before_request: list[Callable[..., Any]] = []
        self.after_request: list[Callable[..., Any]] = []
        self.before_websocket: list[Callable[..., Any]] = []
        self.after_websocket: list[Callable[..., Any]] = []

    def inwards(self) -> "tuple[Hooks, ...]":
        """These hooks behind those of the including apps, outermost first."""
        return self._alone if self.parent is None else (*self.parent.inwards(), self)

    def outwards(self) -> "tuple[Hooks, ...]":
        """These hooks, then those of the including apps."""
        return self._alone if self.parent is None else (self, *self.parent.outwards())

    def find_handler(self, error: Exception) -> ErrorHandler | None:
        """The error handler of the innermost app that has one."""
        for hooks in self.outwards():
            if (handler := hooks.handlers.find(error)) is not None:
                return handler
        return None


async def call_hook(hook: Callable[..., Any], *args: Any) -> Any:
    """Call a hook or a handler and wait for it; a plain function runs in the event loop's thread."""
    result = hook(*args)
    return await result if inspect.isawaitable(result) else result
