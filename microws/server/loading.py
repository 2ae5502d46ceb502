"""Refuses ``app.run()`` while the command ``microws run`` loads the app."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

__all__ = ["RunWhileLoading", "check_not_loading", "loading"]

_is_loading: Final = ContextVar("is_loading", default=False)


class RunWhileLoading(RuntimeError):
    """The code that defines an app serves it, while the command loads the app to serve it."""


@contextmanager
def loading() -> Iterator[None]:
    """Within the block the app is loaded: ``check_not_loading`` raises."""
    token = _is_loading.set(True)
    try:
        yield
    finally:
        _is_loading.reset(token)


def check_not_loading() -> None:
    """
    Make sure that the app is not being loaded by a command that serves it then.

    Raises:
        RunWhileLoading: It is. Without this the app would be served again after Ctrl-C, with other settings.
    """
    if _is_loading.get():
        raise RunWhileLoading(
            "app.run() is called while `microws run` loads the app, which would be served twice; write above the call: "
            'if __name__ == "__main__":'
        )
