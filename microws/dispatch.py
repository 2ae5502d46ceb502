"""The way of a request to its view, and of an error to its answer."""

import logging
from functools import partial
from typing import Any, Final

import anyio

from microws.answers import allowed, answer_miss, close_for, error_of, response_for
from microws.codec import Codecs, MessageCodec
from microws.errors import ClientDisconnect, HTTPException, WebSocketDisconnect
from microws.handshake import SAFE_METHODS, Refusal, check_handshake_origin, check_request_origin
from microws.hooks import Hooks, call_hook
from microws.hub import Hub
from microws.interfaces import Application, Event, Receive, Scope, Send
from microws.requests import Request
from microws.responses import Response
from microws.routing import Match, Miss, Mounted, Router, encode_path, path_of, scope_below
from microws.settings import AppSettings
from microws.tasks import on_asyncio
from microws.views import HTTPEndpoint, WebSocketEndpoint, to_response
from microws.websocket import WebSocket, WebSocketOptions

__all__ = ["Dispatcher"]

# Seconds that the rest of a body which no view reads is discarded for.
_DISCARD_TIMEOUT: Final = 1.0

_log = logging.getLogger("microws")


class Dispatcher:
    """
    Takes each ASGI scope to its view.

    Args:
        app: What requests and WebSockets know as their ``app``.
        router: Its endpoints are ``HTTPEndpoint``, ``WebSocketEndpoint`` and mounted ASGI apps.
        hooks: Those of ``app``, which also serve where no route matches.
        hub, codecs: For the WebSockets.
        settings: The app's.
    """

    def __init__(
        self,
        app: Application,
        *,
        router: Router,
        hooks: Hooks,
        hub: Hub,
        codecs: Codecs,
        settings: AppSettings,
    ) -> None:
        self._app = app
        self._router = router
        self._hooks = hooks
        self._hub = hub
        self._codecs = codecs
        self._settings = settings
        self._limits = settings.limits
        self._options: dict[tuple[WebSocketEndpoint | None, int | None], WebSocketOptions] = {}

    # HTTP

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        path, segments = path_of(scope)
        request = Request(
            scope, app=self._app, path=path, path_params={}, receive=receive, max_body_size=self._settings.max_body_size
        )
        answer = _Answer(send, request)
        hooks = self._hooks
        try:
            _refuse_nul(path)
            found = self._router.resolve("http", request.method, segments)
            if isinstance(found, Mounted):
                await found.endpoint(scope_below(scope, found.prefix), receive, answer.send_as_it_is)
                return
            if isinstance(found, Match):
                hooks = found.route.endpoint.hooks
                response = await self._respond(request, found)
            else:
                response = answer_miss(request, found)
            await response(scope, request.receive_event, answer.send)
        except Exception as error:
            await self._send_error(request, answer, error, hooks)

    async def _respond(self, request: Request, found: Match) -> Response:
        endpoint: HTTPEndpoint = found.route.endpoint
        request.path_params = found.params
        try:
            response = to_response(await self._call_view(request, endpoint))
        except Exception as error:
            response = await self._answer_request(request, error, endpoint.hooks)
        for hooks in endpoint.hooks.outwards():
            for hook in reversed(hooks.after_request):
                try:
                    replaced = await call_hook(hook, request, response)
                    response = response if replaced is None else to_response(replaced)
                except Exception as error:
                    response = await self._answer_request(request, error, endpoint.hooks)
        return response

    async def _call_view(self, request: Request, endpoint: HTTPEndpoint) -> Any:
        if request.method not in SAFE_METHODS:
            _raise_refusal(
                check_request_origin(request.method, request.headers, allowed=self._settings.origins), request.path
            )
        for hooks in endpoint.hooks.inwards():
            for hook in hooks.before_request:
                result = await call_hook(hook, request)
                if result is not None:
                    return result
        return await endpoint.view(request, request.path_params)

    async def _answer_request(self, request: Request, error: Exception, hooks: Hooks) -> Response:
        error = error_of(error)
        handler = hooks.find_handler(error)
        if handler is not None:
            try:
                return to_response(await call_hook(handler, request, error))
            except Exception as failure:
                error = error_of(failure)
        return response_for(error, path=request.path, debug=self._settings.debug)

    async def _send_error(self, request: Request, answer: "_Answer", error: Exception, hooks: Hooks) -> None:
        if answer.has_started:
            if isinstance(error_of(error), ClientDisconnect):
                _log.debug("%s: the client left within its response", _shown(request.path))
                return
            # The server then drops the connection: a client must not take a part for the whole.
            raise error
        response = await self._answer_request(request, error, hooks)
        try:
            await response(request.scope, request.receive_event, answer.send)
        except Exception as failure:
            # Such as a handler's FileResponse of a file that is not there.
            await self._send_error(request, answer, failure, _NO_HOOKS)

    # WebSocket

    async def websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket connection, from the handshake until the client has gone."""
        path, segments = path_of(scope)
        found = self._find_websocket(path, segments)
        if isinstance(found, Mounted):
            await found.endpoint(scope_below(scope, found.prefix), receive, send)
            return
        if (await receive())["type"] != "websocket.connect":
            return
        endpoint, params = (found.route.endpoint, found.params) if isinstance(found, Match) else (None, {})
        make = partial(
            WebSocket,
            scope,
            receive,
            send,
            app=self._app,
            path=path,
            path_params=params,
            options=self._options_of(endpoint, _asked_max_message_size(scope)),
        )
        if isinstance(found, Exception):
            view = partial(self._answer_websocket, error=found, hooks=self._hooks)
        else:
            view = partial(self._converse, endpoint=found.route.endpoint)
        if on_asyncio():
            await make(group=None).run(view)
        else:
            async with anyio.create_task_group() as group:
                await make(group=group).run(view)

    def _find_websocket(self, path: str, segments: list[str]) -> Match | Mounted | Exception:
        """What answers, or why nothing does."""
        try:
            _refuse_nul(path)
            found = self._router.resolve("websocket", "GET", segments)
        except Exception as error:
            return error
        if isinstance(found, Miss):
            return HTTPException(405, headers={"allow": allowed(found)}) if found.allow else HTTPException(404)
        return found

    async def _converse(self, ws: WebSocket, *, endpoint: WebSocketEndpoint) -> None:
        try:
            await self._call_websocket_view(ws, endpoint)
        except Exception as error:
            await self._answer_websocket(ws, error=error, hooks=endpoint.hooks)
        finally:
            if any(hooks.after_websocket for hooks in endpoint.hooks.outwards()):
                # Also where the view was cancelled.
                with anyio.move_on_after(self._limits.close_timeout, shield=True) as limit:
                    await self._call_after_websocket(ws, endpoint)
                if limit.cancelled_caught:
                    _log.warning("%s: the after_websocket hooks did not end in time", _shown(ws.path))

    async def _call_websocket_view(self, ws: WebSocket, endpoint: WebSocketEndpoint) -> None:
        if _has_header(ws.scope, b"origin"):
            origins = self._settings.origins if endpoint.origins is None else endpoint.origins
            _raise_refusal(check_handshake_origin(ws.headers, allowed=origins), ws.path)
        for hooks in endpoint.hooks.inwards():
            for hook in hooks.before_websocket:
                result = await call_hook(hook, ws)
                if result is not None and not ws.closed:
                    if ws.accepted:
                        raise RuntimeError("a hook that has accepted ends the connection by ws.close(), not by return")
                    await _reject_with(ws, to_response(result))
                if ws.closed:
                    return
        if endpoint.topics:
            await self._subscribe(ws, endpoint.topics)
        returned = await endpoint.view(ws, ws.path_params)
        if returned is not None and not (ws.accepted or ws.closed):
            await _reject_with(ws, to_response(returned))

    async def _call_after_websocket(self, ws: WebSocket, endpoint: WebSocketEndpoint) -> None:
        for hooks in endpoint.hooks.outwards():
            for hook in reversed(hooks.after_websocket):
                try:
                    await call_hook(hook, ws)
                except Exception as error:
                    await self._answer_websocket(ws, error=error, hooks=endpoint.hooks)

    @staticmethod
    async def _subscribe(ws: WebSocket, templates: tuple[str, ...]) -> None:
        topics = [template.format(**ws.path_params) for template in templates]
        try:
            await ws.subscribe(*topics)
        except ValueError as error:
            raise HTTPException(400, f"invalid topic: {error}") from None

    async def _answer_websocket(self, ws: WebSocket, *, error: Exception, hooks: Hooks) -> None:
        error = error_of(error)
        if isinstance(error, WebSocketDisconnect):
            _log.debug("%s: the view ended with %s", _shown(ws.path), error)
            return
        handler = hooks.find_handler(error)
        if handler is not None:
            try:
                answer = await call_hook(handler, ws, error)
                if answer is not None and not (ws.accepted or ws.closed):
                    await _reject_with(ws, to_response(answer))
            except Exception as failure:
                await self._answer_websocket(ws, error=failure, hooks=_NO_HOOKS)
            if ws.closed:
                return
        if ws.accepted:
            await ws.close(*self._close_for(error, ws.path))
            return
        # Made also where nobody gets it any more: an unexpected error has to be in the log.
        response = response_for(error, path=ws.path, debug=self._settings.debug)
        if not ws.closed:
            await _reject_with(ws, response)

    def codecs_of(self, path: str, *, root_path: str) -> tuple[MessageCodec, MessageCodec] | None:
        """The codecs of what a client sends and receives at a path, where a WebSocket view answers."""
        try:
            found = self._router.resolve("websocket", "GET", path_of({"path": path, "root_path": root_path})[1])
        except Exception:
            # A converter that fails: the handshake will show it.
            return None
        if not isinstance(found, Match):
            return None
        endpoint: WebSocketEndpoint = found.route.endpoint
        return endpoint.codecs(self._codecs)

    def _options_of(self, endpoint: WebSocketEndpoint | None, max_message_size: int | None) -> WebSocketOptions:
        """What the connections of a route share; ``None`` stands for the paths that have no view."""
        options = self._options.get((endpoint, max_message_size))
        if options is None:
            hooks = self._hooks if endpoint is None else endpoint.hooks
            limits = self._limits
            if max_message_size is not None:
                limits = limits._replace(max_message_size=max_message_size)
            options = WebSocketOptions(
                hub=self._hub, codecs=self._codecs, limits=limits, closing_for=partial(self._closing_for, hooks)
            )
            if endpoint is not None:
                receive_codec, send_codec = endpoint.codecs(self._codecs)
                options = options._replace(
                    receive_codec=receive_codec,
                    send_codec=send_codec,
                    subprotocols=tuple(endpoint.subprotocols),
                    catch_disconnect=endpoint.catch_disconnect,
                    gaps=endpoint.gaps,
                    on_invalid=endpoint.on_invalid,
                )
            self._options[endpoint, max_message_size] = options
        return options

    def _closing_for(self, hooks: Hooks, path: str, error: Exception) -> tuple[int, str] | None:
        error = error_of(error)
        if isinstance(error, WebSocketDisconnect) or hooks.find_handler(error) is not None:
            return None
        return self._close_for(error, path)

    def _close_for(self, error: Exception, path: str) -> tuple[int, str]:
        return close_for(error, path=path, error_close_code=self._settings.error_close_code, debug=self._settings.debug)


_NO_HOOKS = Hooks()


class _Answer:
    """ASGI's ``send`` for the response to ``request``, and whether it has begun."""

    __slots__ = ("_request", "_send", "has_started")

    def __init__(self, send: Send, request: Request) -> None:
        self._send = send
        self._request = request
        self.has_started = False

    async def send_as_it_is(self, event: Event) -> None:
        self.has_started = True
        await self._send(event)

    async def send(self, event: Event) -> None:
        """
        Send an event; before the last one, discard what is left of the request's body, for 1 s at most.

        The response leaves at once. But where it ends, servers may drop the connection, and a client that is still
        sending would not get to read it.

        Source: RFC 9112 §9.6.
        """
        self.has_started = True
        is_last = event["type"] == "http.response.body" and not event.get("more_body", False)
        if is_last and not self._request.body_complete and _has_body(self._request.scope):
            await self._send({**event, "more_body": True})
            with anyio.move_on_after(_DISCARD_TIMEOUT) as discarding:
                await self._request.drain()
            event = {"type": "http.response.body", "body": b""}
            if discarding.cancelled_caught:
                await self._send_and_discard(event)
                return
        await self._send(event)

    async def _send_and_discard(self, event: Event) -> None:
        # Hypercorn keeps ten parts of a body, and its last send waits until the app takes one of them.
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._request.wait_disconnect)
            await self._send(event)
            tasks.cancel_scope.cancel()


def _refuse_nul(path: str) -> None:
    # C libraries below a view (a file system, a database) would read another path than the one that was checked.
    if "\0" in path:
        raise HTTPException(400, "a path has no NUL")


def _raise_refusal(refusal: Refusal | None, path: str) -> None:
    if refusal is not None:
        _log.warning("%s: %s", _shown(path), refusal.log)
        raise HTTPException(refusal.status, refusal.detail)


async def _reject_with(ws: WebSocket, response: Response) -> None:
    if type(response).__call__ is not Response.__call__:
        raise TypeError(f"a handshake is refused with a body that is known, not with {type(response).__name__}")
    await ws.reject(response.status, response.body, headers=response.headers.multi_items())


def _shown(path: str) -> str:
    # A path may hold line breaks, and would else write lines of its own into the log.
    return encode_path(path, keep_slashes=True)


def _asked_max_message_size(scope: Scope) -> int | None:
    """What the server was told on its command line, which wins over the app."""
    extension = (scope.get("extensions") or {}).get("microws")
    return None if extension is None else extension.get("max_message_size")


def _has_body(scope: Scope) -> bool:
    """Whether the client sends a body; over HTTP/2 it need not say so."""
    if scope["method"] not in SAFE_METHODS:
        return True
    return _has_header(scope, b"content-length", b"transfer-encoding")


def _has_header(scope: Scope, *names: bytes) -> bool:
    """Whether a request has one of some headers, in less time than ``Headers`` takes to be made."""
    for name, _ in scope["headers"]:  # noqa: SIM110 - any() would make a generator
        if name in names:
            return True
    return False
