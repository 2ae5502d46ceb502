"""From an HTTP request to its view, and from an error to its response."""

import logging
from collections.abc import Awaitable
from typing import Any, Final

import anyio

from microws.answers import allowed, answer_miss, error_of, prefers_json, response_for
from microws.codec import JSON_DEFAULT, Codecs
from microws.dispatch.common import NO_NUL, Dispatcher, close_down, has_header, name_route, pass_body, refused
from microws.errors import ClientDisconnect, HTTPException
from microws.handshake import SAFE_METHODS, Refusal
from microws.hooks import Hooks, call_hook
from microws.interfaces import Application, Event, Receive, Scope, Send, reported_id
from microws.requests import OVER, Request
from microws.responses import Response
from microws.routing import Match, Miss, Mounted, Router, encode_path, path_of
from microws.sessions import save_session
from microws.settings import AppSettings
from microws.views import HTTPEndpoint, MountEndpoint, to_response

__all__ = ["HTTPDispatcher"]

# Seconds for which the rest of a request's body that no view reads is discarded.
_DISCARD_TIMEOUT: Final = 1.0

_log = logging.getLogger("microws")
_NO_HOOKS = Hooks()


class HTTPDispatcher(Dispatcher):
    """
    Takes each HTTP scope to its view.

    Args:
        app, router, hooks, settings: See ``Dispatcher``.
        codecs: Say whether what views return is checked.
    """

    def __init__(
        self, app: Application, *, router: Router, hooks: Hooks, codecs: Codecs, settings: AppSettings
    ) -> None:
        super().__init__(app, router=router, hooks=hooks, settings=settings)
        self._codecs = codecs

    async def serve(self, scope: Scope, receive: Receive, send: Send, refusal: Refusal | None = None) -> None:
        """
        Serve one HTTP request.

        Args:
            refusal: Why it is refused before routing; an error handler may answer it.

        Raises:
            Exception: An unexpected one of a view or hook, after it was logged and answered.
        """
        path, segments = path_of(scope)
        request = Request(scope, self._app, path, {}, receive, self._settings.max_body_size)
        answer = _Answer(send, request)
        hooks = self._hooks
        try:
            if refusal is not None:
                raise refused(refusal, path)
            if "\0" in path:
                raise HTTPException(400, NO_NUL)
            method: str = scope["method"]
            found = self._router.resolve("http", method, path, segments)
            if isinstance(found, Match):
                if found.params:
                    request.path_params = found.params
                endpoint: HTTPEndpoint = found.route.endpoint
                name_route(scope, found.route, endpoint.function, request.path_params)
                hooks = endpoint.hooks
                if self._settings.json_default is not None:
                    JSON_DEFAULT.set(self._settings.json_default)
                try:
                    if method not in SAFE_METHODS:
                        self._check_origin(scope, request.headers, path)
                    response = await _call_before(request, hooks) if hooks.before_request.chain else None
                    if response is None:
                        if endpoint.is_typed:
                            endpoint.prepare(request)
                        returned = await endpoint.view(request, found.params)
                        response = to_response(returned, endpoint.function, endpoint.return_type)
                        if self._codecs.checks and endpoint.return_type is not None:
                            endpoint.check_returned(returned, response)
                except Exception as error:
                    response = await self._answer(answer, error, hooks)
                if hooks.after_request.chain:
                    response = await self._call_after(answer, response, hooks)
                if request.session_before is not None:
                    response = save_session(request, response)
            elif isinstance(found, Mounted):
                mount: MountEndpoint = found.endpoint
                name_route(scope, found, mount.app, {})
                if mount.checks_origin and method not in SAFE_METHODS:
                    self._check_origin(scope, request.headers, path)
                pass_body(scope, send, answer.send_unchanged)
                await mount.app(self._scope_of_mount(scope, found), receive, answer.send_unchanged)
                return
            else:
                response = answer_miss(request, found)
            if answer.is_on_own_server:
                await response(scope, request.receive_event, send)
            else:
                if response.can_be_direct:
                    pass_body(scope, send, answer.send)
                await response(scope, request.receive_event, answer.send)
        except Exception as error:
            await self._send_error(answer, error, hooks)
        finally:
            if request.closers:
                failure = await close_down(request, seconds=self._settings.close_timeout)
                answer.unexpected = answer.unexpected or failure
            else:
                request.closers = OVER
        if answer.unexpected is not None:
            try:
                raise answer.unexpected
            finally:
                # Its traceback holds this frame.
                answer.unexpected = None

    def methods_at(self, scope: Scope) -> str | None:
        """The value of ``Allow`` for a path; ``None`` without a route, or if a mount answers other methods."""
        # No route has the method "", so the answer lists the methods of all routes at the path.
        found = self._resolve("http", "", scope)
        return allowed(found) if isinstance(found, Miss) and found.allow else None

    def is_health_check(self, scope: Scope) -> bool:
        """Whether a route of ``App.health`` answers."""
        found = self._resolve("http", scope["method"], scope)
        return isinstance(found, Match) and found.route.endpoint.is_health_check

    async def _call_after(self, answer: "_Answer", response: Response, hooks: Hooks) -> Response:
        for hook in reversed(hooks.after_request.chain):
            try:
                replaced = await call_hook(hook, answer.request, response)
                response = response if replaced is None else to_response(replaced, hook)
            except Exception as error:
                response = await self._answer(answer, error, hooks)
        return response

    async def _answer(self, answer: "_Answer", error: Exception, hooks: Hooks) -> Response:
        request, error = answer.request, error_of(error)
        if self._settings.json_default is not None:
            JSON_DEFAULT.set(self._settings.json_default)
        handler = hooks.find_handler(error)
        response = None
        if handler is not None:
            try:
                response = to_response(await call_hook(handler, request, error), handler)
            except Exception as failure:
                error = error_of(failure)
        if response is None:
            as_json = prefers_json(request.headers)
            response = response_for(error, path=request.path, debug=self._settings.debug, as_json=as_json)
        if answer.unexpected is None and reported_id(error):
            answer.unexpected = error
        return response

    async def _send_error(self, answer: "_Answer", error: Exception, hooks: Hooks) -> None:
        request = answer.request
        if answer.has_started:
            if isinstance(error_of(error), ClientDisconnect):
                _log.debug("%s: the client disconnected during its response", encode_path(request.path))
                return
            # The server then drops the connection: the client must not take a part for the whole.
            raise error
        response = await self._answer(answer, error, hooks)
        try:
            await response(request.scope, request.receive_event, answer.send)
        except Exception as failure:
            # For example, a handler returned a FileResponse of a file that does not exist.
            await self._send_error(answer, failure, _NO_HOOKS)


async def _call_before(request: Request, hooks: Hooks) -> Response | None:
    """The response of the first ``before_request`` hook that returns one."""
    for hook in hooks.before_request.chain:
        result = await call_hook(hook, request)
        if result is not None:
            return to_response(result, hook)
    return None


class _Answer:
    """
    ASGI's ``send`` for the response to ``request``.

    Attributes:
        is_on_own_server: Whether nothing is between the app and the microws server, which itself makes sure that the
            client can read the response.
        unexpected: The first unexpected exception; raised after it was answered.
    """

    __slots__ = ("_exchange", "_has_started", "_send", "is_on_own_server", "request", "unexpected")

    def __init__(self, send: Send, request: Request) -> None:
        self._send = send
        self.request = request
        self._has_started = False
        self._exchange: Any = request.scope.get("microws.exchange")
        self.is_on_own_server = self._exchange is not None and send == self._exchange.send
        self.unexpected: Exception | None = None

    @property
    def has_started(self) -> bool:
        """Whether the response has begun."""
        return self._exchange.status is not None if self.is_on_own_server else self._has_started

    async def send_unchanged(self, event: Event) -> None:
        self._has_started = True
        await self._send(event)

    def send(self, event: Event) -> Awaitable[None]:
        """Send an event. Before the last one, read what is left of the request's body."""
        self._has_started = True
        if event["type"] != "http.response.body" or event.get("more_body", False) or self.request.body_complete:
            return self._send(event)
        scope = self.request.scope
        # Over HTTP/2 a client need not announce its body.
        if scope["method"] in SAFE_METHODS and not has_header(scope, b"content-length", b"transfer-encoding"):
            return self._send(event)
        return self._send_last(event)

    async def _send_last(self, event: Event) -> None:
        """
        Discard what is left of the request's body, for 1 s at most, before the last event.

        The response itself is sent at once. But when it ends, servers may drop the connection, and a client that is
        still sending could not read it.

        Source: RFC 9112 §9.6.
        """
        await self._send({**event, "more_body": True})
        with anyio.move_on_after(_DISCARD_TIMEOUT) as discarding:
            await self.request.drain()
        # Hypercorn keeps ten parts of a body, and its last send waits until the app takes one of them.
        async with anyio.create_task_group() as tasks:
            if discarding.cancelled_caught:
                tasks.start_soon(self.request.wait_disconnect)
            await self._send({"type": "http.response.body", "body": b""})
            tasks.cancel_scope.cancel()
