"""The cookie of ``request.session``, after the view."""

import time
from functools import lru_cache

from microws.codec import dumps_json
from microws.requests import SESSION_COOKIE, Request
from microws.responses import Response
from microws.routing import encode_path, root_path

__all__ = ["save_session"]

# RFC 6265 §6.1: browsers keep cookies of 4096 bytes at least, and most of them no more.
_MAX_COOKIE = 4096


def save_session(request: Request, response: Response) -> Response:
    """
    A copy of ``response`` that tells caches that it depends on the cookie, and sets or deletes that if the session has
    changed.

    Args:
        request: Its session was used.

    Raises:
        TypeError, ValueError: JSON does not support a value, or the cookie is too large.

    Source: RFC 9110 §12.5.5; Django, Flask and Starlette also send ``Vary: Cookie``, and no ``Cache-Control``.
    """
    # The view may return one response to many clients.
    response = response.with_own_headers()
    headers = response.headers
    vary = ",".join(headers.getlist("vary")).lower()
    if not {"cookie", "*"} & {field.strip() for field in vary.split(",")}:
        headers.add_valid("vary", "Cookie")
    values = request.session
    text = dumps_json(values)
    if text == request.session_before:
        return response
    root = root_path(request.scope)
    is_secure = request.scheme == "https"
    if not values:
        response.delete_cookie(SESSION_COOKIE, path=_cookie_path(root), secure=is_secure, httponly=True)
        return response
    signed = request.app.signing.session.sign(b"[%d,%b]" % (time.time(), text), context=root)
    size = len(SESSION_COOKIE) + len(signed)
    if size > _MAX_COOKIE:
        raise ValueError(
            f"request.session: expected a cookie of at most {_MAX_COOKIE} bytes, got {size}; keep the values in a "
            "database, and their key in the session"
        )
    headers.add_valid(
        "set-cookie", f"{SESSION_COOKIE}={signed}{_attributes(root, is_secure, request.app.session_max_age)}"
    )
    return response


def _cookie_path(root: str) -> str:
    return encode_path(root).replace(";", "%3B") or "/"


@lru_cache(maxsize=16)
def _attributes(root: str, is_secure: bool, max_age: int) -> str:
    """What stands behind the value of the cookie."""
    response = Response()
    response.set_cookie(SESSION_COOKIE, "", max_age=max_age, path=_cookie_path(root), secure=is_secure, httponly=True)
    return response.headers["set-cookie"].removeprefix(f"{SESSION_COOKIE}=")
