"""Calling what an app registered: a hook or a handler, ``async def`` or plain."""

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["call_hook"]


async def call_hook(hook: Callable[..., Any], *args: Any) -> Any:
    """Call ``hook`` and wait for it; a plain function runs in the event loop's thread."""
    result = hook(*args)
    return await result if inspect.isawaitable(result) else result
