"""Paths: what a scope asks for, decoded, and text encoded for a path again."""

from typing import Any
from urllib.parse import quote, unquote_to_bytes

from microws.interfaces import Scope

__all__ = ["encode_path", "join_path", "path_of", "scope_below"]

# RFC 3986 §3.3: what may stand unencoded in a segment beside the unreserved characters.
_SEGMENT_SAFE = "!$&'()*+,;=:@"
# As a number: asking whether ``bytes`` hold other ``bytes`` takes ten times as long.
_PERCENT = ord("%")


def encode_path(text: str, *, keep_slashes: bool = False) -> str:
    """
    ``text`` percent-encoded for a path: one segment or, with ``keep_slashes``, several. A lone surrogate becomes ``?``.

    Source: RFC 3986 §3.3.
    """
    return quote(text, safe=_SEGMENT_SAFE + "/" if keep_slashes else _SEGMENT_SAFE, errors="replace")


def join_path(segments: list[str]) -> str:
    """The percent-encoded path of decoded segments; a slash inside one is encoded."""
    return "/" + "/".join(encode_path(segment) for segment in segments)


def path_of(scope: Scope) -> tuple[str, list[str] | None]:
    """
    The path of an HTTP or WebSocket scope, decoded once and without ``root_path``, and its segments.

    ``raw_path`` says which slashes were encoded, where it decodes to ``path``; otherwise ``path`` was rewritten and
    counts alone. ``root_path`` is taken off where the path has it: some servers put it there, some do not.

    Returns:
        The path, and its segments where they are not simply what its slashes divide it into: where a segment has an
        encoded slash inside, or for what is no path, such as ``*``, which has none.

    Source: ASGI HTTP specification, "HTTP Connection Scope"; RFC 9110 §4.2.3 (an empty path is ``/``).
    """
    path: str = scope["path"] or "/"
    if path[0] != "/":
        return path, []
    raw: bytes | None = scope.get("raw_path")
    segments = _segments_of(raw, path) if raw and _PERCENT in raw and b"%2f" in raw.lower() else None
    if scope.get("root_path") and (root := _root_path(scope)):
        return _without_root(root, path, segments)
    return path, segments


def _segments_of(raw: bytes, path: str) -> list[str] | None:
    """The segments in a raw path, where it is that of ``path``."""
    try:
        decoded = [unquote_to_bytes(part).decode() for part in raw.partition(b"?")[0].split(b"/")]
    except UnicodeDecodeError:
        return None
    return decoded[1:] if "/".join(decoded) == path else None


def _without_root(root: str, path: str, segments: list[str] | None) -> tuple[str, list[str] | None]:
    all_segments = path.split("/")[1:] if segments is None else segments
    root_segments = root.split("/")[1:]
    if all_segments[: len(root_segments)] != root_segments:
        return path, segments
    below = all_segments[len(root_segments) :] or [""]
    return "/" + "/".join(below), None if segments is None else below


def scope_below(scope: Scope, prefix: str) -> Scope:
    """
    A copy of ``scope`` for the app that is mounted at ``prefix``: ``root_path`` grows by it, and ``path`` has it all.

    Source: ASGI HTTP specification, ``path`` includes ``root_path``.
    """
    root = _root_path(scope)
    below: dict[str, Any] = {**scope, "root_path": root + prefix}
    if root and path_of(scope)[0] == scope["path"]:  # the server left it out
        below["path"] = root + scope["path"]
        if scope.get("raw_path"):
            below["raw_path"] = encode_path(root, keep_slashes=True).encode() + scope["raw_path"]
    return below


def _root_path(scope: Scope) -> str:
    root = (scope.get("root_path") or "").strip("/")
    return f"/{root}" if root else ""
