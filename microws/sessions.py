"""The cookie of ``request.session``, after the view."""

import time

from microws.codec import dumps_json
from microws.requests import SESSION_COOKIE, Request
from microws.responses import Response
from microws.routing import encode_path, root_path

__all__ = ["save_session"]

# RFC 6265 §6.1: browsers keep cookies of 4096 bytes at least, and most of them no more.
_MAX_COOKIE = 4096


def save_session(request: Request, response: Response) -> Response:
    """
    ``response``, or a copy of it that sets or deletes the cookie if the session has changed.

    Args:
        request: Its session was used.

    Raises:
        TypeError, ValueError: JSON does not support a value, or the cookie is too large.
    """
    values = request.session
    text = dumps_json(values)
    if text == request.session_before:
        return response
    # The view may return one response to many clients.
    response = response.with_own_headers()
    path = encode_path(root_path(request.scope)).replace(";", "%3B") or "/"
    is_secure = request.scheme == "https"
    if not values:
        response.delete_cookie(SESSION_COOKIE, path=path, secure=is_secure, httponly=True)
        return response
    data = b"[%d,%b]" % (time.time(), text)
    signed = request.app.signing.session.sign(data, context=root_path(request.scope))
    size = len(SESSION_COOKIE) + len(signed)
    if size > _MAX_COOKIE:
        raise ValueError(
            f"request.session: expected a cookie of at most {_MAX_COOKIE} bytes, got {size}; keep the values in a "
            "database, and their key in the session"
        )
    max_age = request.app.session_max_age
    response.set_cookie(SESSION_COOKIE, signed, max_age=max_age, path=path, secure=is_secure, httponly=True)
    return response
