"""CORS: which pages of other origins may read a response, and which requests browsers let them send."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from microws.handshake import is_allowed_origin

__all__ = ["CORS", "RawHeaders"]

RawHeaders = list[tuple[bytes, bytes]]

# Seconds that a browser remembers the answer to a preflight. Starlette's default; Chromium takes 7,200 at most.
_MAX_AGE: Final = b"600"
_ALLOW_ORIGIN: Final = b"access-control-allow-origin"
_ALLOW_CREDENTIALS: Final = (b"access-control-allow-credentials", b"true")
# RFC 9110 §5.6.1, §5.6.2: a list of tokens. Anything else in a preflight is not sent back.
_NAMES: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z, \t]+")


class CORS:
    """
    The CORS headers of an app with ``App(origins=…)``.

    Args:
        origins: From ``check_origins_setting``. ``"*"`` lets every page read responses, but without cookies.

    Source: https://fetch.spec.whatwg.org/#http-cors-protocol
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = origins
        self._has_any = "*" in origins

    def allow(self, headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
        """The headers that let the page of a request read the response; empty if it may not."""
        if self._has_any:
            return [(_ALLOW_ORIGIN, b"*")]
        origins = [value for name, value in headers if name == b"origin"]
        if len(origins) != 1 or not is_allowed_origin(origins[0].decode("latin-1"), self._origins):
            return []
        return [(_ALLOW_ORIGIN, origins[0]), _ALLOW_CREDENTIALS]

    @staticmethod
    def mark(headers: Iterable[Any], allow: RawHeaders) -> RawHeaders:
        """
        Add ``Vary: Origin`` to the headers of a response, and ``allow`` unless they have an ``Allow-Origin``.

        Args:
            headers: Pairs, as ASGI has them; iterated once.
            allow: The result of ``allow`` for the request.
        """
        marked: RawHeaders = []
        vary: list[bytes] = []
        is_open = False
        for name, value in headers:
            lower = name.lower()
            if lower == b"vary":
                vary.append(value)
                continue
            is_open = is_open or lower == _ALLOW_ORIGIN
            marked.append((name, value))
        if not {b"origin", b"*"} & {field.strip().lower() for value in vary for field in value.split(b",")}:
            vary.append(b"Origin")
        marked.append((b"vary", b", ".join(vary)))
        return marked if is_open else marked + allow

    def answer_preflight(self, headers: Iterable[tuple[bytes, bytes]], methods: str | None) -> RawHeaders | None:
        """
        The headers that answer a preflight. ``None``: the request is not a preflight.

        Args:
            headers: Of an OPTIONS request from a page that may read the response.
            methods: The methods of the routes at its path. ``None`` allows the method that the preflight names.
        """
        asked = dict(headers)
        method = asked.get(b"access-control-request-method", b"")
        if b"origin" not in asked or not _NAMES.fullmatch(method):
            return None
        answer = [
            (b"access-control-allow-methods", method if methods is None else methods.encode("ascii")),
            (b"access-control-max-age", _MAX_AGE),
        ]
        if _NAMES.fullmatch(names := asked.get(b"access-control-request-headers", b"")):
            answer.append((b"access-control-allow-headers", names))
        # https://wicg.github.io/private-network-access/: a page from the internet asks a server in a private network.
        # ["*"] does not allow that: the responses are public then, but not the network.
        if not self._has_any and asked.get(b"access-control-request-private-network") == b"true":
            answer.append((b"access-control-allow-private-network", b"true"))
        return answer
