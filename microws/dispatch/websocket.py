"""The way of a WebSocket to its view, and of an error to the end of its connection."""

import asyncio
import logging
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from microws.answers import EXPECTED, allowed, close_for, error_of, prefers_json, response_for
from microws.closing import CloseCode
from microws.codec import JSON_DEFAULT, ClientCodec, Codecs
from microws.connection import AppCall, connect
from microws.connection.tasks import AsyncioTasks, GroupTasks, Tasks, task_group
from microws.counters import COUNTERS, Number
from microws.datastructures import Headers
from microws.dispatch.common import NO_NUL, Dispatcher, close_down, has_header, name_route, refused
from microws.errors import HTTPException, WebSocketDisconnect
from microws.handshake import Refusal, check_handshake_origin, choose_subprotocol, split_bearer
from microws.hooks import Hooks, call_hook
from microws.hub import (
    LIVE_CODEC,
    SUBPROTOCOL,
    Hub,
    Outbox,
    gap_announcement,
    live_announcement,
    running_loop,
    split_positions,
    topic_marker,
)
from microws.interfaces import Application, Receive, Scope, Send, reported_id
from microws.live import LiveWebSocket
from microws.requests import OVER
from microws.responses import Response
from microws.routing import Match, Miss, Mounted, Pattern, Router, encode_path, path_of
from microws.settings import AppSettings
from microws.state import CLOSED
from microws.views import MountEndpoint, WebSocketEndpoint, to_response
from microws.websocket import WebSocket, WebSocketOptions

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

__all__ = ["WebSocketDispatcher"]

_log = logging.getLogger("microws")
_NO_HOOKS = Hooks()


class WebSocketDispatcher(Dispatcher):
    """
    Takes each WebSocket scope to its view.

    Args:
        app, router, hooks, settings: See ``Dispatcher``.
        hub, codecs: Those of the app.
    """

    def __init__(
        self, app: Application, *, router: Router, hooks: Hooks, hub: Hub, codecs: Codecs, settings: AppSettings
    ) -> None:
        super().__init__(app, router=router, hooks=hooks, settings=settings)
        self._hub = hub
        self._codecs = codecs
        self._limits = settings.limits
        self._options: dict[tuple[WebSocketEndpoint, bool], WebSocketOptions] = {}
        self._missing = WebSocketEndpoint(hooks=hooks, function=_no_view, pattern=Pattern("", ()))

    def serve(self, scope: Scope, receive: Receive, send: Send, refusal: Refusal | None = None) -> Awaitable[None]:
        """
        Serve one WebSocket connection, from the handshake until the client has disconnected.

        Args:
            refusal: Why the handshake is refused before routing; an error handler may answer it.

        Raises:
            Exception: An unexpected one of a view, hook or task of ``ws.start_soon``, after it was logged and the
                connection closed.
        """
        path, segments = path_of(scope)
        found = self._find(scope, path, segments) if refusal is None else refused(refusal, path)
        if isinstance(found, Mounted):
            mount: MountEndpoint = found.endpoint
            name_route(scope, found, mount.app, {})
            return mount.app(self._scope_of_mount(scope, found), receive, send)
        converse = self._converse_in_group if running_loop() is None else self._converse
        return converse(scope, receive, send, path, found)

    async def _converse_in_group(
        self, scope: Scope, receive: Receive, send: Send, path: str, found: Match | Exception
    ) -> None:
        async with task_group() as group:
            await self._converse(scope, receive, send, path, found, group)

    async def _converse(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        path: str,
        found: Match | Exception,
        group: "TaskGroup | None" = None,
    ) -> None:
        # The only coroutine between the app's call and the view's: each message passes through all of them.
        if (await receive())["type"] != "websocket.connect":
            return
        unexpected: Exception | None = None
        endpoint: WebSocketEndpoint = self._missing
        params: dict[str, Any] = {}
        if isinstance(found, Match):
            endpoint, params = found.route.endpoint, found.params or {}
            name_route(scope, found.route, endpoint.function, params)
        is_live = False
        if offered := scope.get("subprotocols"):
            is_live = (
                choose_subprotocol(split_bearer(offered)[1], endpoint.subprotocols or (SUBPROTOCOL,)) == SUBPROTOCOL
            )
        options = self._options.get((endpoint, is_live)) or self._make_options(endpoint, is_live=is_live)
        seconds = self._limits.accept_timeout
        if group is None:
            tasks: Tasks = AsyncioTasks(asyncio.get_running_loop(), scope, seconds)
        else:
            tasks = GroupTasks(group, scope, seconds)
        connection = connect(AppCall(scope, receive, send, tasks, self._limits, options.make_outbox, endpoint.rate))
        make = LiveWebSocket if is_live else WebSocket
        ws = make(scope, connection, self._app, path, params, options)
        options.hub.open.add(ws)
        if COUNTERS.is_on:
            COUNTERS.add(Number.CONNECTIONS)
            COUNTERS.add(Number.OPEN)
        try:
            with tasks:
                if self._settings.json_default is not None:
                    JSON_DEFAULT.set(self._settings.json_default)
                if isinstance(found, Exception):
                    unexpected = await self._answer(ws, error=found, hooks=endpoint.hooks)
                else:
                    try:
                        if has_header(scope, b"origin"):
                            self._check_origin_of(ws, endpoint)
                        if (
                            not endpoint.hooks.before_websocket.chain or await self._call_before(ws, endpoint.hooks)
                        ) and (endpoint.login is None or await ws.log_in(endpoint.login, endpoint.login_timeout)):
                            if endpoint.topics:
                                await self._subscribe(ws, endpoint.topics, endpoint.since)
                            returned = await endpoint.view(ws, params)
                            if returned is not None and not (ws.accepted or ws.closed):
                                await _reject(ws, to_response(returned, endpoint.function))
                    except Exception as error:
                        unexpected = await self._answer(ws, error=error, hooks=endpoint.hooks)
                    finally:
                        if endpoint.hooks.after_websocket.chain:
                            failure = await self._call_after(ws, endpoint)
                            unexpected = unexpected or failure
            if connection.state is not CLOSED:
                await ws.finish()
        finally:
            options.hub.open.remove(ws)
            if COUNTERS.is_on:
                COUNTERS.add(Number.OPEN, -1)
                COUNTERS.close(connection.close_code or CloseCode.ABNORMAL_CLOSURE)
            try:
                ending = connection.detach()
                if ending is not None:
                    await ending
            finally:
                if ws.closers:
                    failure = await close_down(ws, seconds=self._limits.close_timeout)
                    unexpected = unexpected or failure
                else:
                    ws.closers = OVER
        unexpected = unexpected or ws.failure
        if unexpected is not None:
            try:
                raise unexpected
            finally:
                # Its traceback refers to this frame, which refers to it.
                del unexpected

    def _find(self, scope: Scope, path: str, segments: list[str] | None) -> Match | Mounted | Exception:
        """The route or mount of a path, or the exception to answer with."""
        try:
            if "\0" in path:
                raise HTTPException(400, NO_NUL)
            found = self._router.resolve("websocket", "GET", path, segments)
            if isinstance(found, Mounted) and found.endpoint.checks_origin and has_header(scope, b"origin"):
                self._check_origin(scope, Headers(scope["headers"]), path)
        except Exception as error:
            return error
        if isinstance(found, Miss):
            return HTTPException(405, headers={"allow": allowed(found)}) if found.allow else HTTPException(404)
        return found

    def _check_origin_of(self, ws: WebSocket, endpoint: WebSocketEndpoint) -> None:
        if endpoint.origins is None:
            self._check_origin(ws.scope, ws.headers, ws.path)
        elif (refusal := check_handshake_origin(ws.headers, allowed=endpoint.origins)) is not None:
            event, _, setting = refusal.log.rpartition("App(")
            raise refused(refusal._replace(log=f"{event}websocket_route(…, {setting}"), ws.path)

    @staticmethod
    async def _call_before(ws: WebSocket, hooks: Hooks) -> bool:
        """Call the hooks before the view. Returns whether the view may run."""
        for hook in hooks.before_websocket.chain:
            result = await call_hook(hook, ws)
            if result is not None and not ws.closed:
                if ws.accepted:
                    raise RuntimeError(
                        "expected None from a hook that accepted, got a response; to end it, call ws.close()"
                    )
                await _reject(ws, to_response(result, hook))
            if ws.closed:
                return False
        return True

    async def _call_after(self, ws: WebSocket, endpoint: WebSocketEndpoint) -> Exception | None:
        # Shielded, because the view may have been cancelled.
        unexpected = None
        with anyio.move_on_after(self._limits.close_timeout, shield=True) as limit:
            for hook in reversed(endpoint.hooks.after_websocket.chain):
                try:
                    await call_hook(hook, ws)
                except Exception as error:
                    failure = await self._answer(ws, error=error, hooks=endpoint.hooks)
                    unexpected = unexpected or failure
        if limit.cancelled_caught:
            _log.warning("%s: the after_websocket hooks did not end in time", encode_path(ws.path))
        return unexpected

    @staticmethod
    async def _subscribe(ws: WebSocket, templates: tuple[str, ...], default: str | None) -> None:
        topics = [template.format(**ws.path_params) for template in templates]
        named = ws.query.get("since") if b"since=" in ws.scope["query_string"] else None
        since = split_positions(topics, named or default)
        try:
            await ws.subscribe_by_route(topics, since)
        except ValueError as error:
            raise HTTPException(400, f"invalid topic: {error}") from None

    async def _answer(self, ws: WebSocket, *, error: Exception, hooks: Hooks) -> Exception | None:
        """
        Reject or close because of an exception.

        Returns:
            An unexpected exception, to be raised once the connection has ended.
        """
        error = error_of(error)
        if isinstance(error, WebSocketDisconnect):
            _log.debug("%s: the view ended with %s", encode_path(ws.path), error)
            return None
        handler = hooks.find_handler(error)
        unexpected = None
        if handler is not None:
            try:
                answer = await call_hook(handler, ws, error)
                if answer is not None and not (ws.accepted or ws.closed):
                    await _reject(ws, to_response(answer, handler))
            except Exception as failure:
                unexpected = await self._answer(ws, error=failure, hooks=_NO_HOOKS)
        if handler is not None and ws.closed:
            pass
        elif ws.accepted:
            # The end of `async with ws` may have closed because of this error. An unexpected one is still to be logged.
            if not (ws.closed and isinstance(error, EXPECTED)):
                await ws.close(*self._close_for(error, ws.path))
        else:
            # Also created for a client that has disconnected, because it logs an unexpected error.
            as_json = prefers_json(ws.headers)
            response = response_for(error, path=ws.path, debug=self._settings.debug, as_json=as_json)
            if not ws.closed:
                await _reject(ws, response)
        return error if unexpected is None and reported_id(error) else unexpected

    def codecs_of(self, path: str, *, root_path: str) -> tuple[ClientCodec, ClientCodec] | None:
        """The codecs for receiving and sending at a path, for a test; ``None`` if no WebSocket view serves it."""
        found = self._resolve("websocket", "GET", {"path": path, "root_path": root_path})
        if not isinstance(found, Match):
            return None
        receive_codec, send_codec = found.route.endpoint.codecs(self._codecs)
        return ClientCodec(receive_codec), ClientCodec(send_codec)

    def _make_options(self, endpoint: WebSocketEndpoint, *, is_live: bool) -> WebSocketOptions:
        hub, codecs = self._hub, self._codecs
        receive_codec, send_codec = endpoint.codecs(codecs)
        has_gaps = endpoint.gaps or is_live
        options = self._options[endpoint, is_live] = WebSocketOptions(
            hub=hub,
            codecs=codecs,
            cors=self._settings.cors,
            make_outbox=partial(Outbox, marker=topic_marker if has_gaps else None, losses=hub.losses),
            closing_for=partial(self._closing_for, endpoint.hooks),
            receive_codec=receive_codec,
            send_codec=send_codec,
            subprotocols=(SUBPROTOCOL,) if is_live else tuple(endpoint.subprotocols),
            catch_disconnect=endpoint.catch_disconnect,
            on_invalid=endpoint.on_invalid,
            max_subscriptions=self._settings.max_subscriptions,
            topic_codec=LIVE_CODEC if is_live else send_codec.untyped,
            announce=live_announcement if is_live else gap_announcement if has_gaps else None,
        )
        return options

    def _closing_for(self, hooks: Hooks, path: str, error: Exception) -> tuple[int, str] | None:
        error = error_of(error)
        if isinstance(error, WebSocketDisconnect) or hooks.find_handler(error) is not None:
            return None
        return self._close_for(error, path)

    def _close_for(self, error: Exception, path: str) -> tuple[int, str]:
        return close_for(error, path=path, error_close_code=self._settings.error_close_code, debug=self._settings.debug)


async def _no_view(ws: WebSocket) -> None:
    """In place of the view of a path that has none."""


async def _reject(ws: WebSocket, response: Response) -> None:
    if type(response).__call__ is not Response.__call__:
        raise TypeError(f"expected a response with a body to reject a handshake, got {type(response).__name__}")
    await ws.reject_with(response)
