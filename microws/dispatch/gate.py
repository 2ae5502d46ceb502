"""The checks before an app and its middleware: ``App(allowed_hosts=…)`` and CORS."""

from collections.abc import Awaitable

from microws.cors import CORS, RawHeaders
from microws.dispatch.common import pass_body
from microws.dispatch.http import HTTPDispatcher
from microws.dispatch.websocket import WebSocketDispatcher
from microws.handshake import check_host
from microws.interfaces import ASGIApplication, Event, Receive, Scope, Send
from microws.responses import Response
from microws.settings import AppSettings

__all__ = ["guard"]


def guard(
    app: ASGIApplication, *, settings: AppSettings, http: HTTPDispatcher, websocket: WebSocketDispatcher
) -> ASGIApplication:
    """
    Wrap ``app`` in ``App(allowed_hosts=…)`` and ``App(origins=…)``; return ``app`` itself if neither is set.

    Args:
        app: The app within its middleware, so that the middleware's own answers get CORS too.
        settings: The app's.
        http, websocket: Answer refused requests; ``http`` also knows the routes for a preflight.
    """
    hosts, cors = settings.allowed_hosts, settings.cors
    if hosts is None and cors is None:
        return app

    # Not a coroutine: every awaited coroutine between server and view slows down each message.
    def serve(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            return app(scope, receive, send)
        headers = scope["headers"]
        allow: RawHeaders = []
        if cors is not None and kind == "http":
            allow = cors.allow(headers)
            own_send, send = send, _marking(cors, send, allow)
            pass_body(scope, own_send, send)
        if hosts is not None:
            refusal = check_host(headers, allowed=hosts, received=scope.get("microws.received_host"))
            if refusal is not None and not (kind == "http" and http.is_health_check(scope)):
                return (http if kind == "http" else websocket).serve(scope, receive, send, refusal)
        if cors is not None and allow and kind == "http" and scope["method"] == "OPTIONS":
            answer = cors.answer_preflight(headers, http.methods_at(scope))
            if answer is not None:
                return Response(b"", 204, answer)(scope, receive, send)
        return app(scope, receive, send)

    return serve


def _marking(cors: CORS, send: Send, allow: RawHeaders) -> Send:
    """``send`` that adds the CORS headers to the response."""

    def send_marked(event: Event) -> Awaitable[None]:
        if event["type"] == "http.response.start":
            event = {**event, "headers": cors.mark(event.get("headers") or (), allow)}
        return send(event)

    return send_marked
