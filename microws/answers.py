"""Turn an exception, or a path without a view, into a response or a close code."""

import logging
import re
import traceback
from collections.abc import Iterator
from os import urandom
from typing import Final

from microws.closing import DEFAULT_REASONS, MAX_REASON_BYTES, CloseCode, truncate_reason
from microws.codec import dumps_json
from microws.datastructures import Headers, parse_options
from microws.errors import (
    ClientDisconnect,
    HTTPException,
    InvalidMessage,
    PayloadTypeError,
    ReceiveTimeout,
    TooManySubscriptions,
    WebSocketDisconnect,
)
from microws.interfaces import mark_reported, reported_id
from microws.requests import Request
from microws.responses import JSONResponse, RedirectResponse, Response, TextResponse
from microws.routing import Miss, encode_path, root_path

__all__ = ["EXPECTED", "allowed", "answer_miss", "close_for", "error_of", "prefers_json", "report", "response_for"]

# Exceptions that have a close code, and are not logged.
EXPECTED: Final = (HTTPException, PayloadTypeError, InvalidMessage, TooManySubscriptions)

_log = logging.getLogger("microws.errors")


def error_of(error: Exception) -> Exception:
    """
    The only exception inside the groups of task groups, or ``error`` itself.

    A ``WebSocketDisconnect`` next to another exception is ignored: if one task fails, the others are disconnected.
    """
    leaves = list(_leaves(error))
    others = [leaf for leaf in leaves if not isinstance(leaf, WebSocketDisconnect)]
    if not others:
        return leaves[0]
    return others[0] if len(others) == 1 else error


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def response_for(error: Exception, *, path: str, debug: bool, as_json: bool) -> Response:
    """
    The default response to ``error``. An unexpected error is logged, and the client only gets its id.

    Args:
        path: For the log.
        debug: Send the traceback of an unexpected error to the client.
        as_json: The result of ``prefers_json`` for the request.
    """
    if isinstance(error, HTTPException):
        try:
            return _response_to(error, as_json=as_json)
        except Exception as failure:
            # Its headers or its JSON are invalid, or the app's json_default failed.
            error = failure
    if isinstance(error, TooManySubscriptions):
        _log.warning("%s: handshake refused with 403: %s", encode_path(path), error)
        return _response_to(HTTPException(403, _too_many(error)), as_json=as_json)
    if isinstance(error, ClientDisconnect):
        # The client cannot read it.
        return TextResponse("Bad Request", 400)
    error_id = report(error, path)
    shown = "".join(traceback.format_exception(error)) if debug else None
    if as_json:
        content = {"error": "Internal Server Error", "error_id": error_id}
        return JSONResponse(content if shown is None else {**content, "traceback": _sendable(shown)}, 500)
    return TextResponse(f"Internal Server Error (error id {error_id})" if shown is None else shown, 500)


def _response_to(error: HTTPException, *, as_json: bool) -> Response:
    detail = error.detail
    if not isinstance(detail, str):
        return JSONResponse(detail, error.status, error.headers)
    response = TextResponse(detail, error.status, error.headers)
    if as_json and not any(name.lower() == "content-type" for name, _ in error.headers):
        return JSONResponse({"error": _sendable(detail)}, error.status, error.headers)
    return response


def _sendable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot carry, by ``?``."""
    return text.encode(errors="replace").decode()


# RFC 9110 §12.4.2.
_WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
# Entries of Accept that are read; browsers send eight.
_MAX_RANGES = 32


def prefers_json(headers: Headers) -> bool:
    """
    Whether the client of a request prefers an error as JSON over plain text.

    It does if its body is JSON, or if ``Accept`` names JSON with a higher weight than text, or with the same weight and
    before it. ``*/*`` is not enough, and neither is the ``Accept`` of browsers for a page.

    Source: RFC 9110 §12.4.2, §12.5.1; RFC 6839 §3.1 (``+json``).
    """
    if _is_json(parse_options(headers.get("content-type", ""))[0]):
        return True
    json = text = 0.0
    for entry in ",".join(headers.getlist("accept")).split(",", _MAX_RANGES)[:_MAX_RANGES]:
        kind, options = parse_options(entry)
        weight = options.get("q", "1")
        if not _WEIGHT.fullmatch(weight):
            continue
        if _is_json(kind) or kind == "application/*":
            # With the same weight JSON must come before text, as in the requests of axios and Angular.
            json = max(json, float(weight) if float(weight) > text else 0.0)
        elif kind in ("text/plain", "text/html", "text/*"):
            text = max(text, float(weight))
    return json > 0 and json >= text


def _is_json(kind: str) -> bool:
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def answer_miss(request: Request, miss: Miss) -> Response:
    """
    The response for a path without an HTTP view.

    Raises:
        HTTPException: 404, 405 or 426.

    Source: RFC 9110 §9.3.7 (OPTIONS), §15.5.6 (405), §15.5.22 (426).
    """
    if miss.allow:
        if request.method == "OPTIONS":
            return Response(b"", 204, {"allow": allowed(miss)})
        raise HTTPException(405, headers={"allow": allowed(miss)})
    if miss.websocket:
        headers = {"upgrade": "websocket", "connection": "Upgrade"}
        if not request.scope["http_version"].startswith("1"):
            headers = {}  # RFC 9113 §8.2.2: HTTP/2 allows neither of them
        raise HTTPException(426, "this path is a WebSocket: connect with a WebSocket client", headers=headers)
    if miss.redirect is not None:
        query = request.url.query
        return RedirectResponse(
            encode_path(root_path(request.scope)) + miss.redirect + (f"?{query}" if query else ""), 308
        )
    raise HTTPException(404)


def allowed(miss: Miss) -> str:
    """The value of ``Allow``."""
    return ", ".join(sorted({*miss.allow, "OPTIONS"}))


def close_for(error: Exception, *, path: str, error_close_code: int, debug: bool) -> tuple[int, str]:
    """The default close code and reason for ``error``; an unexpected one is logged."""
    if isinstance(error, HTTPException):
        try:
            return 3000 + error.status, _reason_of(error)
        except Exception as failure:
            # Its JSON is invalid, or the app's json_default failed.
            error = failure
    if isinstance(error, PayloadTypeError):
        return CloseCode.UNSUPPORTED_DATA, truncate_reason(str(error))
    if isinstance(error, InvalidMessage):
        return CloseCode.INVALID_PAYLOAD, truncate_reason(str(error))
    if isinstance(error, TooManySubscriptions):
        _log.warning("%s: closed with 1008: %s", encode_path(path), error)
        return CloseCode.POLICY_VIOLATION, _too_many(error)
    error_id = report(error, path)
    if isinstance(error, ReceiveTimeout):
        return error_close_code, f"no message within {error.seconds:g} s"
    if debug:
        return error_close_code, truncate_reason(f"{type(error).__name__}: {error}")
    return error_close_code, f"{DEFAULT_REASONS[CloseCode.INTERNAL_ERROR]}, error id {error_id}"


def _too_many(error: TooManySubscriptions) -> str:
    return f"more than {error.maximum} subscriptions"


def _reason_of(error: HTTPException) -> str:
    """The close reason for an error: its text, or its JSON if that fits."""
    detail = error.detail
    if isinstance(detail, dict) and isinstance(detail.get("error"), str):
        detail = detail["error"]
    if isinstance(detail, str):
        return truncate_reason(detail)
    encoded = dumps_json(detail)
    # Truncated JSON would be invalid.
    return encoded.decode() if len(encoded) <= MAX_REASON_BYTES else str(HTTPException(error.status).detail)


def report(error: Exception, path: str, event: str = "unexpected error") -> str:
    """Log ``error``, unless it was logged; return its id in the log."""
    error_id = reported_id(error)
    if not error_id:
        error_id = urandom(4).hex()
        mark_reported(error, error_id)
        # Encoded, because line breaks in it would write lines of their own into the log.
        shown = encode_path(path)
        if isinstance(error, ReceiveTimeout):
            # A traceback would add nothing to the place.
            _log.error("%s: unexpected TimeoutError, id %s, at %s: %s", shown, error_id, _place_of(error), error)
        else:
            _log.error("%s: %s, id %s", shown, event, error_id, exc_info=error)
    return error_id


def _place_of(error: Exception) -> str:
    """The last file and line of the app's code in the traceback."""
    places = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] not in ("microws", "contextlib")
    ]
    return places[-1] if places else "an unknown line"
