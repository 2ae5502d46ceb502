"""What an exception, or a path without a view, becomes: a handler's answer, a response, or a close code."""

import logging
import re
import traceback
from collections.abc import Callable, Iterator
from functools import wraps
from secrets import token_hex
from typing import Any, Final, TypeAlias

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

__all__ = [
    "EXPECTED",
    "ErrorHandler",
    "ErrorHandlers",
    "allowed",
    "answer_miss",
    "close_for",
    "error_of",
    "prefers_json",
    "report",
    "response_for",
]

ErrorHandler: TypeAlias = Callable[[Any, Any], Any]

# Exceptions with a close code of their own, which is all that becomes of them.
EXPECTED: Final = (HTTPException, PayloadTypeError, InvalidMessage, TooManySubscriptions)

_log = logging.getLogger("microws.errors")


class ErrorHandlers:
    """The handlers of one app, by status and by exception class."""

    def __init__(self) -> None:
        self._by_status: dict[int, ErrorHandler] = {}
        self._by_class: dict[type[Exception], ErrorHandler] = {}
        self._of_unexpected: ErrorHandler | None = None

    def check(self, key: type[Exception] | int) -> None:
        """
        Refuse what has no handler or has one already.

        Raises:
            TypeError, ValueError: ``key`` is no status or exception class, or has a handler already.
        """
        if isinstance(key, int) and not isinstance(key, bool):
            if not 400 <= key <= 599:
                raise ValueError(f"error_handler takes a status of 400 to 599, not {key}")
            if key in self._by_status:
                raise ValueError(f"{key} has an error handler already")
        elif isinstance(key, type) and issubclass(key, Exception):
            if key in self._by_class:
                raise ValueError(f"{key.__name__} has an error handler already")
        else:
            raise TypeError(
                f"error_handler takes an exception class or a status, not {key!r}; write @app.error_handler(404)"
            )

    def add(self, key: type[Exception] | int, handler: ErrorHandler) -> None:
        """Register ``handler`` for a status or an exception class. Raises as ``check``."""
        self.check(key)
        if isinstance(key, type):
            self._by_class[key] = handler
            return
        self._by_status[key] = handler
        if key == 500:
            self._of_unexpected = _reporting(handler)

    def find(self, error: Exception) -> ErrorHandler | None:
        """
        The handler of the error's status, else that of its nearest class, else 500's for the unexpected.

        A handler of its class has expected it; 500's has not, so that one finds the error in the log.
        """
        if isinstance(error, HTTPException) and error.status in self._by_status:
            return self._by_status[error.status]
        for base in type(error).__mro__:
            if base in self._by_class:
                return self._by_class[base]
        return None if isinstance(error, HTTPException) else self._of_unexpected


def _reporting(handler: ErrorHandler) -> ErrorHandler:
    @wraps(handler, updated=())
    def report_and_call(connection: Any, error: Exception) -> Any:
        report(error, connection.path)
        return handler(connection, error)

    return report_and_call


def error_of(error: Exception) -> Exception:
    """
    The one exception that task groups have wrapped, or ``error`` itself.

    Beside another exception a ``WebSocketDisconnect`` says nothing: where one task fails, the others learn of the end.
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
    The default response to ``error``. An unexpected one is logged, and shows the client no more than an id.

    Args:
        path: For the log.
        debug: Show the client all of an unexpected error.
        as_json: Whether ``prefers_json`` says so of the request.
    """
    if isinstance(error, HTTPException):
        try:
            return _response_to(error, as_json=as_json)
        except Exception as failure:
            # Its headers, or its JSON, cannot be sent; or the app's json_default fails.
            error = failure
    if isinstance(error, TooManySubscriptions):
        _log.warning("%s: handshake refused with 403: %s", encode_path(path), error)
        return _response_to(HTTPException(403, _too_many(error)), as_json=as_json)
    if isinstance(error, ClientDisconnect):
        # Nobody is there to read it.
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
    """``text`` with ``?`` for each lone surrogate, which UTF-8 cannot carry."""
    return text.encode(errors="replace").decode()


# RFC 9110 §12.4.2.
_WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
# Entries of Accept that are looked at; browsers send eight.
_MAX_RANGES = 32


def prefers_json(headers: Headers) -> bool:
    """
    Whether the client of a request wants an error as JSON and not as plain text.

    It does where the body it sends is JSON, or where its ``Accept`` names JSON with a higher weight than text, or with
    the same weight and before it. ``*/*`` is not enough, and neither is what browsers send for a page.

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
            # The same weight as text counts where JSON was named first, as axios and Angular do.
            json = max(json, float(weight) if float(weight) > text else 0.0)
        elif kind in ("text/plain", "text/html", "text/*"):
            text = max(text, float(weight))
    return json > 0 and json >= text


def _is_json(kind: str) -> bool:
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def answer_miss(request: Request, miss: Miss) -> Response:
    """
    The answer where no HTTP view is.

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
            headers = {}  # RFC 9113 §8.2.2: neither of them may stand in HTTP/2
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
            # Its JSON cannot be sent, or the app's json_default fails.
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
    """What the client is told."""
    return f"more than {error.maximum} subscriptions"


def _reason_of(error: HTTPException) -> str:
    """The close reason for an error: its text, or what fits of its JSON."""
    detail = error.detail
    if isinstance(detail, dict) and isinstance(detail.get("error"), str):
        detail = detail["error"]
    if isinstance(detail, str):
        return truncate_reason(detail)
    encoded = dumps_json(detail)
    # Cut JSON could not be read.
    return encoded.decode() if len(encoded) <= MAX_REASON_BYTES else str(HTTPException(error.status).detail)


def report(error: Exception, path: str, event: str = "unexpected error") -> str:
    """Log ``error``, unless it is in the log; its id there."""
    error_id = reported_id(error)
    if not error_id:
        error_id = token_hex(4)
        mark_reported(error, error_id)
        # Encoded: a path may hold line breaks, and would else write lines of its own into the log.
        shown = encode_path(path)
        if isinstance(error, ReceiveTimeout):
            # What happened is clear, and where: a traceback would say nothing more.
            _log.error("%s: unexpected TimeoutError, id %s, at %s: %s", shown, error_id, _place_of(error), error)
        else:
            _log.error("%s: %s, id %s", shown, event, error_id, exc_info=error)
    return error_id


def _place_of(error: Exception) -> str:
    """The file and line of the app's own code that the error went through last."""
    places = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] not in ("microws", "contextlib")
    ]
    return places[-1] if places else "an unknown line"
