"""Look into the functions that an app registers: partials, methods, objects with ``__call__``, and decorators."""

import inspect
import sys
from functools import lru_cache, partial
from types import MethodType
from typing import Any

if sys.version_info >= (3, 14):
    import annotationlib

__all__ = ["LRU_CACHE", "describe", "function_of", "is_async", "layers_of", "name_of", "signature_of"]

LRU_CACHE = type(lru_cache(lambda: None))
# Ends the search if __wrapped__ of an object is the object itself.
_MAX_LAYERS = 50


def layers_of(function: Any) -> list[Any]:
    """``function``, the function that it wraps (``__wrapped__``), and so on; all are called in the same way."""
    layers = [function]
    while len(layers) < _MAX_LAYERS and (wrapped := _wrapped(layers[-1])) is not None:
        layers.append(wrapped)
    return layers


def _wrapped(function: Any) -> Any:
    if isinstance(function, partial):
        wrapped = _wrapped(function.func)
        return None if wrapped is None else partial(wrapped, *function.args, **function.keywords)
    if isinstance(function, MethodType):
        wrapped = _wrapped(function.__func__)
        return None if wrapped is None else MethodType(wrapped, function.__self__)
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is None and not inspect.isroutine(function):
        # An object whose class has decorated its __call__.
        call = getattr(function, "__call__", None)  # noqa: B004
        wrapped = _wrapped(call) if isinstance(call, MethodType) else None
    return wrapped if callable(wrapped) else None


def function_of(called: Any) -> Any:
    """The function that runs when ``called`` is called: without partials, methods and ``__call__``."""
    while isinstance(called, partial | MethodType):
        called = called.func if isinstance(called, partial) else called.__func__
    if inspect.isroutine(called) or isinstance(called, LRU_CACHE):
        return called
    call = getattr(called, "__call__", called)  # noqa: B004
    return function_of(call) if isinstance(call, MethodType) else call


def signature_of(function: Any) -> inspect.Signature:
    """
    The signature of ``function`` itself, not of the function that it wraps.

    Raises:
        ValueError: Some functions that are written in C have no signature.
    """
    if sys.version_info >= (3, 14):
        # This evaluates annotations, which may name imports for type checkers only.
        return inspect.signature(function, follow_wrapped=False, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(function, follow_wrapped=False)


def is_async(function: Any) -> bool:
    """Whether ``function`` is ``async def``, or a decorator's plain function around one."""
    return any(inspect.iscoroutinefunction(function_of(layer)) for layer in layers_of(function))


def name_of(function: Any) -> str:
    """The name of a function, or the representation of another object."""
    return getattr(function, "__name__", None) or repr(function)


def describe(function: Any) -> str:
    """The name of a function and its place: ``page (/srv/app.py:12)``."""
    written = function_of(layers_of(function)[-1])
    code = getattr(written, "__code__", None)
    place = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{getattr(written, '__qualname__', None) or name_of(function)}{place}"
