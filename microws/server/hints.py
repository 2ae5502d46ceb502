"""The hint in an error message: the nearest word that exists, or what another server's option is called here."""

import difflib
from collections.abc import Callable, Iterable
from typing import Final

__all__ = ["did_you_mean", "nearest", "option_hint"]

# Options of uvicorn, Hypercorn, Gunicorn, Flask and Quart, and the option here that does the same.
_SAME: Final = {
    "b": "bind",
    "fd": "bind",
    "graceful_timeout": "drain_timeout",
    "h11_max_incomplete_event_size": "max_head_size",
    "h11_max_incomplete_size": "max_head_size",
    "keep_alive_timeout": "keep_alive",
    "p": "port",
    "proxy_headers": "forwarded_allow_ips",
    "ssl_certfile": "certfile",
    "ssl_keyfile": "keyfile",
    "timeout_graceful_shutdown": "drain_timeout",
    "timeout_keep_alive": "keep_alive",
    "uds": "bind",
    "w": "workers",
    "websocket_max_message_size": "max_message_size",
    "ws_max_size": "max_message_size",
}
_NO_RELOAD: Final = "this version does not reload, so start it again after a change"
_NO_HTTP2_WEBSOCKETS: Final = "leave it out: WebSockets are served over HTTP/1.1"
_ONLY_COMMAND: Final = "only the command has it: microws run"
_ADVICE: Final = {
    "app_dir": _ONLY_COMMAND,
    "debug": "write App(debug=True)",
    "env_file": _ONLY_COMMAND,
    "factory": _ONLY_COMMAND,
    "http2_websockets": _NO_HTTP2_WEBSOCKETS,
    "no_http2_websockets": _NO_HTTP2_WEBSOCKETS,
    "reload": _NO_RELOAD,
    "use_reloader": _NO_RELOAD,
}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``word`` was probably meant to be, in whatever case it is written."""
    by_lower = {name.lower(): name for name in sorted(known)}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing where no word is near."""
    near = nearest(word, known)
    return "" if near is None else f"; did you mean {near!r}?"


def option_hint(name: str, known: Iterable[str], *, written: Callable[[str], str] = str) -> str:
    """
    What to write in place of the option ``name``, which does not exist, or nothing where no name is near.

    Args:
        name: With underscores, as a keyword.
        known: The options that exist.
        written: How the user writes an option, such as a flag. Default: as a keyword.
    """
    if name in _ADVICE:
        return f"; {_ADVICE[name]}"
    near = _SAME.get(name) or nearest(name, known)
    return "" if near is None else f"; did you mean {written(near)!r}?"
