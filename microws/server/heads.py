"""The heads of requests and responses: how large, of what kind, and the one of a refusal."""

from itertools import chain
from typing import Final

from microws.interfaces import Event, Scope

__all__ = ["as_last", "empty_and_last", "head_size", "is_event_stream", "with_header_list"]

# In a constant, because a union costs more than the check.
_SEQUENCES: Final = (list, tuple)


def head_size(scope: Scope) -> int:
    """Bytes of a request's target and of its fields."""
    headers = scope["headers"]
    separators = len(": \r\n") * len(headers)
    return (
        sum(map(len, chain.from_iterable(headers))) + separators + len(scope["raw_path"]) + len(scope["query_string"])
    )


def empty_and_last(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers of an answer without a body, the connection's last one in HTTP/1."""
    headers = [(b"content-length", b"0")]
    if scope["http_version"].startswith("1"):
        headers.append((b"connection", b"close"))
    return headers


def with_header_list(start: Event) -> Event:
    """
    The event with its headers as a list: each step on its way may read them. An app may also give ``None``, or an
    iterator, which can be read only once.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html, "headers (Iterable[[byte string, byte string]])".
    """
    headers = start.get("headers")
    return start if isinstance(headers, _SEQUENCES) else {**start, "headers": list(headers or ())}


def as_last(start: Event, scope: Scope) -> Event:
    """
    The start of a response, with a list of headers, as that of the connection's last one in HTTP/1.

    A client that is not told may send its next request into the end.

    Source: RFC 9112 §9.6.
    """
    headers = start["headers"]
    if not scope["http_version"].startswith("1") or any(bytes(name).lower() == b"connection" for name, _ in headers):
        return start
    return {**start, "headers": [*headers, (b"connection", b"close")]}


def is_event_stream(start: Event) -> bool:
    """Whether a response that begins so, with a list of headers, is one of server-sent events."""
    for name, value in start["headers"]:
        if bytes(name).lower() == b"content-type":
            return bytes(value).strip().lower().startswith(b"text/event-stream")
    return False
