"""What an app may raise: failures, and the sign that its client has disconnected."""

import logging

from microws.interfaces import Scope, reported_id
from microws.server.request_line import request_line

__all__ = ["ClientDisconnected", "is_client_disconnected", "is_failure", "log_failure"]

_log = logging.getLogger("microws.server")


class ClientDisconnected(OSError):
    """
    ``send`` was called after the connection ended.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html ("a server-specific subclass of OSError").
    """


def is_client_disconnected(error: BaseException | None) -> bool:
    """Whether ``error`` is a ``ClientDisconnected``, was raised because of one, or is a group of only such errors."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_client_disconnected(inner) for inner in error.exceptions)
    while error is not None and not isinstance(error, ClientDisconnected):
        error = error.__cause__ or error.__context__
    return error is not None


def is_failure(error: BaseException) -> bool:
    """
    Whether ``error`` is the app's failure: an ``Exception``, or a ``SystemExit``, which would end the server for all.

    Cancellations and ``KeyboardInterrupt`` are not. A group is a failure if all its exceptions are.

    Source: uvicorn answers a ``SystemExit`` with 500, too.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_failure, error.exceptions))
    return isinstance(error, (Exception, SystemExit))


def log_failure(error: BaseException, scope: Scope, *, has_ended: bool) -> None:
    """
    Log what the app raised, unless the app has logged it itself.

    Args:
        error: What it raised.
        scope: Of the request or WebSocket.
        has_ended: The connection has ended, so that a ``ClientDisconnected`` is not a failure.

    Raises:
        BaseException: ``error`` itself, if it is not a failure, such as a cancellation.
    """
    if not is_failure(error):
        raise error
    if not (reported_id(error) or (has_ended and is_client_disconnected(error))):
        _log.error("the app raised in %s", request_line(scope), exc_info=error)
