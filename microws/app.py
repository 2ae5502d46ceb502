"""The app: registers views, hooks and settings, and passes requests on to the rest of microws."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack

from microws.codec import Codecs
from microws.connection.bulk_writes import BulkWriter
from microws.datastructures import State
from microws.dispatch import HTTPDispatcher, WebSocketDispatcher, guard
from microws.errors import RoutingError
from microws.hints import add_hints
from microws.hooks import HookList, Hooks, Middleware, check_middleware, check_mounted, wrap
from microws.hub import HISTORY_BYTES, MAX_MESSAGES, Hub, MemoryBackplane, OverflowPolicy, TopicSettings, check_tags
from microws.interfaces import ASGIApplication, Codec, OpenConnection, Receipt, Receive, Scope, Send
from microws.lifespan import Lifespan
from microws.rates import RateExcess, parse_rate
from microws.requests import Request, no_secret
from microws.responses import Response
from microws.routing import Pattern, Router
from microws.settings import AppSettings
from microws.subscription import Subscription
from microws.templates import Templates, file_of_caller
from microws.threads import Threads
from microws.tickets import issue_ticket
from microws.topic_hooks import TopicHooks
from microws.views import HTTPEndpoint, MountEndpoint, OnInvalid, WebSocketEndpoint, WebSocketRouteOptions
from microws.websocket import WebSocket

if TYPE_CHECKING:
    from microws.description import Description, Schemas
    from microws.event_stream import EventName, Stream
    from microws.server.settings import RunOptions
    from microws.signing import Signing
    from microws.testing import ClientOptions, TestClient

__all__ = ["App"]

# Decorators return their argument, with its own type.
F = TypeVar("F", bound=Callable[..., Any])
WebSocketView = TypeVar("WebSocketView", bound=Callable[..., Coroutine[Any, Any, Any]])
RequestHook = TypeVar("RequestHook", bound=Callable[[Request], Any])
ResponseHook = TypeVar("ResponseHook", bound=Callable[[Request, Response], Any])
WebSocketHook = TypeVar("WebSocketHook", bound=Callable[[WebSocket], Any])
ErrorHook = TypeVar("ErrorHook", bound=Callable[[Any, Any], Any])
AppHook = TypeVar("AppHook", bound=Callable[[], Any])
Context = TypeVar("Context", bound=Callable[["App"], AsyncIterator[Any] | AbstractAsyncContextManager[Any]])


# Methods import what few apps need, or none in production.


class App:
    """
    An application: registers views, hooks and settings, and is an ASGI app.

    ::

        app = App()

        @app.websocket_route("/chat/{room}", value_type="json", subscribe="chat:{room}")
        async def chat(ws, room):
            async with ws:
                async for message in ws:
                    await ws.publish(f"chat:{room}", message)

    Args:
        max_message_size: Maximum bytes of an incoming message; a larger one closes with 1009. Default 1 MiB, as in
            ``websockets``.
        max_fragments: Maximum fragments of an incoming message, under ``microws run``. Default 1,024.
        receive_queue: Incoming messages that may be pending for a view before reading pauses. Default 64.
        max_subscriptions: Maximum topics of one WebSocket; with more, ``ws.subscribe`` raises ``TooManySubscriptions``.
            Default 128, as in Centrifugo.
        max_body_size: Maximum bytes of a request's body; a larger one gets 413. Default 1 MiB, as in nginx.
        send_timeout: Seconds that one ``ws.send`` waits for a slow client before it closes with 1013. Default 10.
        accept_timeout: Seconds that a view has to accept. Then it is cancelled, and the response is 503. Default 10, as
            in ``websockets``.
        close_timeout: Seconds that a close waits for the outbox and for the client's Close frame, that a view has to
            notice a disconnect, and that the source of a stream has to clean up after one. Default 5.
        compression: Accept permessage-deflate if a client offers it, under ``microws run``. Published messages are not
            compressed. On other servers, and on trio, compression is up to the server. Default: no, because it takes
            memory and CPU time.
        origins: Origins besides the app's own whose pages may connect, send unsafe HTTP methods and read responses
            (CORS): ``["https://app.example"]``. Browsers may send cookies with their requests. ``["*"]`` allows all
            pages, without cookies. Default: the same origin only, without CORS.
        allowed_hosts: Names and addresses that ``Host`` may have, without port: ``["app.example", "*.app.example"]``.
            Other requests get 421, except those to ``health`` of the outermost app. Set it if no proxy checks the name,
            for example on a developer's machine: a page whose name resolves to this server (DNS rebinding) has the same
            origin. Default: any.
        error_close_code: Close code after an unexpected exception. Default 1011.
        hub: What carries published messages. ``"memory"``: this process alone; with ``--workers``, a hub process that
            ``microws run`` starts brings them to all workers. ``"local"``: always that process, even with one worker.
            ``"local:PATH"``: its socket and log are in this directory, so that clients also resume after a full stop
            and start. ``"redis://HOST"``: a Redis or Valkey, on any server and for any number of machines; see
            ``docs/how-to.md``. ``--hub`` and ``MICROWS_HUB`` override it. Default ``"memory"``.
        history_bytes: The size of the log, which all topics with history share; with a hub process, all topics. The
            oldest messages make room. Default 64 MiB; memory is used as the log fills.
        redirect_slashes: Redirect with 308 if only the other form of a path, with or without a slash at the end,
            exists. Default: yes.
        debug: Show unexpected exceptions to clients. Default: no.
        json_default: Called with each value that JSON does not support, such as a ``Decimal``, a set or a pydantic
            model, in what views return, ``ws.send``, ``publish``, ``JSONResponse`` and ``ServerSentEvent``. It returns
            a value that JSON supports, or raises ``TypeError``, as the ``default`` of ``json.dumps`` does. Default:
            pydantic models are encoded as pydantic does, and all other such values raise ``TypeError``.
        threads: Worker threads for plain ``def`` views. Plain hooks with error handlers, and plain generators of
            streams, have as many. Calls wait while all threads are busy. Default 40, as in anyio and Starlette.
        templates: Directory of the templates, relative to the file that creates the app.
        secret: Signs ``request.session`` and tickets; 32 random bytes or more, for example ``os.environ["SECRET"]``,
            and the same in all workers. Of a list, the first one signs and all verify: to change the secret, put a new
            one before the old one, and remove the old one after ``session_max_age``. It needs ``pip install
            'microws[sessions]'``. Default: none; ``microws dev`` makes one.
        session_max_age: Seconds for which ``request.session`` is valid after its last change. Default 14 days, as in
            Django and Starlette.
        leave_after: Seconds for which a member of a topic stays when its connection breaks off, so that a page that is
            loaded again does not leave. Default 5.
        presence_limit: Of a topic with more members, clients are told only their number. Default 256.

    Raises:
        TypeError, ValueError: A setting is invalid.
        FeatureUnavailable: This version does not have a setting, or ``secret`` needs itsdangerous.
    """

    def __init__(
        self,
        *,
        max_message_size: int = 1 << 20,
        max_fragments: int = 1024,
        receive_queue: int = 64,
        max_subscriptions: int = 128,
        max_body_size: int = 1 << 20,
        send_timeout: float = 10,
        accept_timeout: float = 10,
        close_timeout: float = 5,
        compression: bool = False,
        origins: Sequence[str] | None = None,
        allowed_hosts: Sequence[str] | None = None,
        error_close_code: int = 1011,
        hub: str = "memory",
        history_bytes: int = HISTORY_BYTES,
        redirect_slashes: bool = True,
        debug: bool = False,
        json_default: Callable[[Any], Any] | None = None,
        threads: int = 40,
        templates: str | Path = "templates",
        secret: str | bytes | Sequence[str | bytes] | None = None,
        session_max_age: int = 14 * 24 * 3600,
        leave_after: float = 5,
        presence_limit: int = 256,
    ) -> None:
        # First of all: so far the arguments are the only local names.
        self._settings = settings = AppSettings(locals())
        self.close_timeout = close_timeout
        self.max_message_size = max_message_size
        self.threads: Threads = Threads(threads)
        self.session_max_age = session_max_age
        self.signing: Signing | None = None
        if settings.secret is not None:
            self._sign_with(settings.secret)
        self._file = file_of_caller()
        self._directory = self._file.parent
        self._parent: App | None = None
        self._router = Router(redirect_slashes=redirect_slashes)
        self._hooks = Hooks()
        self.topic_hooks: TopicHooks = TopicHooks()
        self._middleware: list[Middleware] = []
        self._codecs = Codecs(json_default)
        self._added_codecs: dict[str, Codec] = {}
        self.hub_url: str = hub
        self._hub = Hub(self._codecs, MemoryBackplane(history_bytes), write=BulkWriter().write)
        self._hub.presence.leave_after, self._hub.presence.limit = leave_after, presence_limit
        self._lifespan = Lifespan(self._hub, self._router, hub_url=hub, history_bytes=history_bytes)
        self._state_values: dict[str, Any] = {}
        self._state = State(self._state_values)
        self._templates = Templates(self._directory / templates, url_for=self.url_for)
        self._page_folders = [self._directory / templates]
        self._asgi: ASGIApplication | None = None
        self._http = HTTPDispatcher(
            self, router=self._router, hooks=self._hooks, codecs=self._codecs, settings=settings
        )
        self._websocket = WebSocketDispatcher(
            self, router=self._router, hooks=self._hooks, hub=self._hub, codecs=self._codecs, settings=settings
        )

    # Views

    def route(
        self, pattern: str, *, methods: Iterable[str] = ("GET",), query: Any = None, name: str | None = None
    ) -> Callable[[F], F]:
        """Decorator: ``add_route``."""
        Pattern.check(pattern)

        def register(view: F) -> F:
            self.add_route(view, pattern, methods=methods, query=query, name=name)
            return view

        return register

    def get(self, pattern: str, *, query: Any = None, name: str | None = None) -> Callable[[F], F]:
        """``route`` for GET and HEAD."""
        return self.route(pattern, methods=["GET"], query=query, name=name)

    def post(self, pattern: str, *, query: Any = None, name: str | None = None) -> Callable[[F], F]:
        """``route`` for POST."""
        return self.route(pattern, methods=["POST"], query=query, name=name)

    def put(self, pattern: str, *, query: Any = None, name: str | None = None) -> Callable[[F], F]:
        """``route`` for PUT."""
        return self.route(pattern, methods=["PUT"], query=query, name=name)

    def patch(self, pattern: str, *, query: Any = None, name: str | None = None) -> Callable[[F], F]:
        """``route`` for PATCH."""
        return self.route(pattern, methods=["PATCH"], query=query, name=name)

    def delete(self, pattern: str, *, query: Any = None, name: str | None = None) -> Callable[[F], F]:
        """``route`` for DELETE."""
        return self.route(pattern, methods=["DELETE"], query=query, name=name)

    def add_route(
        self,
        view: Callable[..., Any],
        pattern: str,
        *,
        methods: Iterable[str] = ("GET",),
        query: Any = None,
        name: str | None = None,
    ) -> None:
        """
        Register an HTTP view.

        Args:
            view: ``async def``, or a plain function, which runs in a worker thread. The first parameter that is not in
                the pattern gets the ``Request``; a view may leave it out. Route parameters are passed by name. If a
                decorator takes ``(*args, **kwargs)``, the signature of the wrapped function applies.
            pattern: For example ``/users/{id:int}``; see docs/reference.md, "Patterns".
            methods: ``GET`` includes ``HEAD``. microws responds to ``OPTIONS``.
            query: A class of the query, such as a dataclass: ``request.typed_query`` is one. Other queries get 400.
            name: For ``url_for``. Default: the name of the view.

        Raises:
            RoutingError: The pattern is invalid, another route hides it, or the signature does not fit it (``q: str``
                for the ``Request``, or ``x: str`` for ``{x:int}``).
        """
        self._check_registering()
        self._router.add(
            pattern,
            HTTPEndpoint(self._hooks, view, Pattern.parse(pattern, self._router.converters), query=query),
            kind="http",
            methods=methods,
            name=name,
            default_name=getattr(view, "__name__", None),
        )

    def websocket_route(
        self,
        pattern: str,
        *,
        value_type: Any = None,
        receive_type: Any = None,
        send_type: Any = None,
        catch_disconnect: bool = True,
        subprotocols: Sequence[str] = (),
        origins: Sequence[str] | None = None,
        subscribe: str | Sequence[str] | None = None,
        since: Literal["start"] | None = None,
        gaps: bool = False,
        on_invalid: OnInvalid = "close",
        login: Callable[[WebSocket, Any], Any] | None = None,
        login_timeout: float = 5,
        rate: str | None = None,
        rate_excess: RateExcess = "wait",
        name: str | None = None,
    ) -> Callable[[WebSocketView], WebSocketView]:
        """
        Decorator: register a WebSocket view.

        The view is ``async def``, or a plain function of a decorator around one. The first parameter that is not in the
        pattern gets the ``WebSocket``. Route parameters are passed by name.

        Args:
            pattern: For example ``/chat/{room}``. An HTTP view may have the same pattern.
            value_type: What ``receive`` returns and ``send`` takes: ``"text"``, ``"bytes"``, ``"json"``, ``"auto"``
                (``str`` for text frames, ``bytes`` for binary frames), ``"msgpack"``, or a name of ``add_codec``. Or a
                type of messages in JSON: a ``Message``, a dataclass, a ``TypedDict``, a pydantic model, a list or a
                union. Default: the types of the annotation, ``ws: WebSocket[Say | Move, Said]``, else ``"text"``. An
                annotation with ``value_type="msgpack"`` is one of messages in MessagePack.
            receive_type, send_type: The same for one direction.
            catch_disconnect: When the client disconnects, ``async for`` ends and ``async with`` catches the
                ``WebSocketDisconnect``. ``False``: both let it through.
            subprotocols: Those that the view supports; the first one that the client also offers is accepted.
            origins: Replaces ``App(origins=…)`` for this route.
            subscribe: One or several topics to subscribe to before the handshake is complete. Route parameters are
                filled in: ``"chat:{room}"``.
            since: ``"start"``: a client that connects without ``?since=`` first gets all of the history of these
                topics. Default: it gets what is published from then on.
            gaps: Send ``{"topic": …, "gap": true}`` where messages are missing: a topic's overflow policy dropped them,
                or the history does not have them any more. Default: only to a client that names a position by
                ``?since=`` that is not in the history any more.
            on_invalid: What to do with an invalid message. ``"close"`` raises in the view, and closes with 1003 or 1007
                unless the view catches the exception. ``"skip"`` waits for the next message. ``"error"`` does, too, and
                sends a ``MessageError``; 100 invalid messages in a row close with 1008. Both log the first invalid
                message and, when the connection ends, their number.
            login: Called with the WebSocket and its first message, after the hooks and before ``subscribe`` and the
                view: ``async def``, or a plain function, which runs in a worker thread. Its result becomes
                ``ws.state.user``. If that is false, such as ``None``, the connection is closed with 1008, and the view
                is not called. microws accepts the handshake, and sends nothing that is published before the login: a
                hook that subscribes the connection is an error.
            login_timeout: Seconds that the first message and ``login`` may take together. Then the connection is closed
                with 1008. Default 5.
            rate: How many messages of one connection the view gets: ``"20/s"`` or ``"100/min"``. It gets as many at
                once, then one by one (a token bucket). All messages count, also those of ``login`` and invalid ones;
                Ping and Pong frames do not, which have a limit of their own. Default: no limit.
            rate_excess: What happens to more messages. ``"wait"``: they wait, and microws stops reading while
                ``App(receive_queue=…)`` of them do; so the client cannot send more, and its Ping and Close frames wait
                behind its messages. ``"close"`` closes the connection with 1008.
            name: For ``url_for``. Default: the name of the view.

        Raises:
            TypeError: The view is not ``async def``, or JSON cannot carry a type of messages.
            RoutingError: The pattern is invalid, another route hides it, or the signature does not fit it, or the
                annotation contradicts ``value_type``.
            ValueError: Another argument is invalid.
            FeatureUnavailable: A type of messages needs msgspec.
        """
        Pattern.check(pattern)

        def register(view: WebSocketView) -> WebSocketView:
            self._check_registering()
            endpoint = WebSocketEndpoint(
                hooks=self._hooks,
                function=view,
                pattern=Pattern.parse(pattern, self._router.converters),
                value_type=value_type,
                receive_type=receive_type,
                send_type=send_type,
                subprotocols=subprotocols,
                origins=origins,
                subscribe=subscribe,
                since=since,
                catch_disconnect=catch_disconnect,
                gaps=gaps,
                on_invalid=on_invalid,
                login=login,
                login_timeout=login_timeout,
                rate=parse_rate(rate, rate_excess),
            )
            endpoint.codecs(self._codecs)
            self._router.add(
                pattern, endpoint, kind="websocket", name=name, default_name=getattr(view, "__name__", None)
            )
            return view

        return register

    def add_websocket_route(
        self, view: Callable[..., Coroutine[Any, Any, Any]], pattern: str, **options: Unpack[WebSocketRouteOptions]
    ) -> None:
        """``websocket_route`` without a decorator, with the same options."""
        self.websocket_route(pattern, **options)(view)

    def add_converter(
        self,
        name: str,
        pattern: str,
        parse: Callable[[str], Any] = str,
        format: Callable[[Any], str] = str,  # noqa: A002
    ) -> None:
        """
        Add a converter for patterns: ``{parameter:name}``.

        Args:
            name: Name of the converter.
            pattern: Regular expression that the whole decoded segment must match.
            parse: Converts the segment to a value. If it raises ``ValueError``, the route does not match.
            format: Converts a value to the segment, for ``url_for``.

        Raises:
            RoutingError: The name or the expression is invalid.
        """
        self._check_registering()
        self._router.converters.add(name, pattern, parse, format)

    def add_codec(self, name: str, codec: Codec) -> None:
        """
        Add a codec for routes: ``value_type=name``. ``"json"`` replaces the built-in codec, for published values too.

        Raises:
            TypeError, ValueError: The name is taken, or ``codec`` is not a codec.
        """
        self._check_registering()
        self._codecs.add(name, codec)
        self._added_codecs[name] = codec

    def mount(self, prefix: str, asgi_app: ASGIApplication, *, origins: bool = True) -> None:
        """
        Serve another ASGI app below ``prefix``, for paths that no route matches.

        The lifespan of the mounted app runs inside that of this app. It starts after the startup hooks, in the order of
        mounting, and ends first, in reverse order. If its startup fails, this app does not start. Its lifespan state is
        in the ``state`` of its own scopes. An app without a lifespan is served too. A mounted ``App`` has its own
        topics, state and hooks.

        Args:
            prefix: Literal text such as ``/admin``. ``""`` or ``/`` matches all paths.
            asgi_app: An ``App`` uses the ``origins`` of this app, unless it has its own.
            origins: Reject WebSockets and unsafe HTTP methods from foreign web pages, as for this app's own routes.
                With ``False``, ``asgi_app`` checks origins itself, for example with its own CORS or for webhooks. An
                ``App`` then does not use the ``origins`` of this app. Default: yes.

        Raises:
            RoutingError: The prefix is invalid or taken.
            TypeError: ``asgi_app`` is not an ASGI app, or ``origins`` is not a ``bool``.
        """
        self._check_registering()
        check_mounted(asgi_app, prefix, origins)
        self._router.mount(prefix, MountEndpoint(asgi_app, origins and not isinstance(asgi_app, App), origins))

    def live(self, pattern: str) -> None:
        """
        Add a path where clients choose their topics: ``app.live("/live")``, for ``microws.js`` and other clients.

        ``on_subscribe`` and ``on_publish`` say who may subscribe and publish; without them, clients are refused. It
        serves three routes: a WebSocket with the subprotocol ``microws.v1``; by GET, server-sent events for clients
        whose network blocks WebSockets; by POST, what these clients publish. docs/live-protocol.md describes the
        protocol.

        Any other WebSocket route speaks the same protocol with a client that offers the subprotocol, if it has no
        ``subprotocols`` of its own: then the client may choose topics besides.

        Args:
            pattern: Of the three routes. It may have parameters, for hooks: ``connection.path_params``.

        Raises:
            RoutingError: The pattern is invalid, or another route hides it.
        """
        from microws.event_stream import Stream
        from microws.live_views import LiveViews

        def make_stream(*topics: str, since: str | None) -> Stream:
            return Stream(self.hub, self._root._codecs.get("text"), topics, None, since, has_envelope=True)

        views = LiveViews(make_stream, max_topics=self._settings.max_subscriptions)
        self.add_websocket_route(views.socket, pattern)
        self.add_route(views.events, pattern)
        self.add_route(views.publish, pattern, methods=["POST"])

    def client_js(self, pattern: str = "/microws.js") -> None:
        """
        Serve the client of ``app.live`` for browsers, a JavaScript module: ``import { connect } from "/microws.js"``.

        Its types are beside it, in ``/microws.d.ts``. docs/how-to.md, "Live topics in a browser", shows its use.

        Args:
            pattern: Of the module. It ends with ``.js`` and has no parameters.

        Raises:
            RoutingError: The pattern is invalid, or another route hides it.
        """
        from microws.client import ClientFiles

        if not pattern.endswith(".js") or "{" in pattern:
            raise RoutingError(f'expected a pattern such as "/microws.js" for the client, got {pattern!r}')
        files = ClientFiles()
        self.add_route(files.script, pattern)
        self.add_route(files.types, pattern.removesuffix("js") + "d.ts")

    def on_subscribe(self, pattern: str) -> Callable[[F], F]:
        """
        Decorator: say who may subscribe to the topics that match ``pattern``.

        ::

            @app.on_subscribe("chat:{room}")
            async def may_read(connection, room):
                return room in rooms_of(connection.state.user)

        The hook gets the WebSocket, or the request of an event stream, then the parameters in their order. A plain
        function runs in a worker thread. If it returns a true value, the client subscribes. Otherwise, or if no pattern
        matches, it gets the error 4403. ``raise HTTPException(404)`` makes it 4404. The first pattern that matches
        counts.

        Args:
            pattern: A topic, with parameters that match one or more characters other than ``:``.

        Raises:
            RoutingError: The pattern is invalid, or has a hook.
            TypeError: The function does not take these arguments.

        Source: the channel authorization of Laravel.
        """

        def register(hook: F) -> F:
            self._check_registering()
            self.topic_hooks.on_subscribe(pattern, hook)
            return hook

        return register

    def on_publish(self, pattern: str) -> Callable[[F], F]:
        """
        Decorator: say who may publish what to the topics that match ``pattern``.

        ::

            @app.on_publish("chat:{room}")
            async def may_write(connection, room, message):
                return {"from": connection.state.user, "text": message["text"][:500]}

        The hook gets what ``on_subscribe`` gets, and the message: a value of JSON, or ``bytes``. What it returns is
        published, to the client that sent it as well. If it returns ``None``, nothing is published, and the client gets
        the error 4403.

        Args:
            pattern: As for ``on_subscribe``.

        Raises:
            RoutingError, TypeError: As ``on_subscribe``.
        """

        def register(hook: F) -> F:
            self._check_registering()
            self.topic_hooks.on_publish(pattern, hook)
            return hook

        return register

    def include(self, other_app: "App", prefix: str = "") -> None:
        """
        Include everything that is registered with another app, as a blueprint.

        Hooks and error handlers of the other app apply to its own routes, inside those of this app. In its views,
        ``app`` is this app, and so are ``publish``, ``subscribe``, ``state`` and ``url_for``. Of its settings, only
        ``templates`` applies.

        Args:
            other_app: Complete: registering with it afterwards is an error. It may include other apps. You may include
                it again with another prefix.
            prefix: Literal text such as ``/admin`` in front of each of its patterns.

        Raises:
            RoutingError: Two routes match the same paths, or the prefix is invalid.
            RuntimeError: ``other_app`` is this app, is included in another app, or has middleware or a setting that
                would be lost. Its settings must be defaults or equal those of this app.
            TypeError: ``other_app`` is not an ``App``.
            ValueError: Both apps have a codec with the same name.
        """
        self._check_registering()
        if not isinstance(other_app, App):
            raise TypeError(
                f"expected an App to include, got {other_app!r}; for another ASGI app write app.mount(prefix, …)"
            )
        if other_app is self or other_app._parent not in (None, self):
            raise RuntimeError("an app can be included in only one other app, and not in itself")
        if other_app._middleware:
            raise RuntimeError(
                "an included app must not have middleware: add it to the including app, or mount this one"
            )
        self._settings.check_included(other_app._settings, App)
        self._router.include(other_app._router, prefix)
        if other_app._parent is None:
            other_app._parent = self
            self._take_over(other_app)

    def _take_over(self, other_app: "App") -> None:
        self._hooks.include(other_app._hooks)
        self.topic_hooks.include(other_app.topic_hooks)
        self._lifespan.include(other_app._lifespan)
        for name, codec in other_app._added_codecs.items():
            if self._added_codecs.get(name) is not codec:
                self.add_codec(name, codec)
        self._hub.include(other_app._hub)
        self._page_folders.extend(other_app._page_folders)
        self._state_values.update({**other_app._state_values, **self._state_values})

    def static(self, prefix: str, directory: str | Path) -> None:
        """
        Serve the files of a directory below ``prefix``. No path or link leads to files outside of it.

        Args:
            prefix: For example ``/static``.
            directory: Relative to the file that creates the app.

        Raises:
            ValueError: The directory does not exist.
        """
        from microws.files import StaticFiles

        files = StaticFiles(self._directory / directory)
        self.add_route(files.static, f"{prefix.rstrip('/')}/{{path:path}}")
        self._page_folders.append(files.directory)

    def health(
        self,
        *,
        live: str = "/healthz",
        ready: str = "/readyz",
        check: Callable[[], Any] | None = None,
        hub: bool = False,
    ) -> None:
        """
        Add two routes for the probes of load balancers and Kubernetes. Hooks do not see them.

        Successful probes are in the access log at debug level only.

        Args:
            live: Responds with 200 while the process works. Restart the process if this probe fails.
            ready: Responds with 200 from the end of the startup. Responds with 503 and ``Retry-After`` as soon as the
                server stops or ``check`` fails, so that a load balancer sends no clients.
            check: Called without arguments for each probe of ``ready``. It fails if it raises, returns ``False`` or
                takes over 5 seconds. A plain function runs in a worker thread. A failure is logged, not sent.
            hub: Also respond with 503 if the hub process, or Redis, does not answer within half a second. Clients that
                are connected get no messages from other workers then, and new ones cannot subscribe. ``microws run``
                starts a hub process that has ended within milliseconds. Default: no.

        Raises:
            RoutingError: A pattern is invalid, or another route hides it.
            TypeError: ``check`` cannot be called without arguments.
        """
        from microws.health import Health

        self._check_registering()
        has_hub = (lambda: self._root._hub.is_connected()) if hub else None
        Health(lambda: self._root._lifespan.is_serving, check, has_hub=has_hub).register(
            self._router, live=live, ready=ready
        )

    def metrics(self, pattern: str = "/metrics") -> None:
        """
        Add a route with metrics for Prometheus. They are those of all workers, whichever of them responds.

        It has WebSockets, messages, bytes, close codes, subscribers, pending and dropped messages, the time that
        publishing takes, workers that were replaced, and the hub; see docs/how-to.md, "Monitor a server". The route is
        behind the hooks of the app, and open to everybody unless one of them or a proxy restricts it.

        Args:
            pattern: Of the route.

        Raises:
            FeatureUnavailable: prometheus-client is not installed.
            RoutingError: The pattern is invalid, or another route hides it.
        """
        from microws.metrics import Metrics

        metrics = Metrics(lambda: self._root._hub)
        self.add_route(metrics.metrics, pattern)
        self.on_startup(lambda: self.start_soon(metrics.keep_looking))

    def docs(self, pattern: str = "/docs", *, public: bool = False) -> None:
        """
        Add a page that shows the routes of the app with their messages, and tries them: HTTP, WebSocket and events.

        ``microws dev`` adds it by itself, at ``/docs``. There it also shows the hub: topics, what is published to them,
        connections that do not keep up; it publishes, and its links open the source in the editor. The page asks no
        other server. It is behind the hooks of the app.

        Args:
            pattern: Of the page, without parameters.
            public: Serve it outside ``microws dev``, too: to everybody, without the hub and the source. Default: 404.

        Raises:
            RoutingError: The pattern is invalid, or another route hides it.
        """
        from microws.docs_page import DocsPage

        if not pattern.startswith("/") or "{" in pattern or pattern.endswith("/"):
            raise RoutingError(f'expected a pattern such as "/docs" for the page, got {pattern!r}')
        page = DocsPage(lambda: self._root, lambda: self._description().to_json(), public=public)
        self.add_route(page.page, pattern, name=f"docs {pattern}")
        self.add_route(page.part, f"{pattern}/{{name}}", name=f"docs {pattern} part")
        self.add_route(page.publish, f"{pattern}/publish", methods=["POST"], name=f"docs {pattern} publish")

    def asyncapi(self, *, title: str | None = None, version: str = "0") -> dict[str, Any]:
        """
        Return an AsyncAPI 3.0 document of the WebSockets: their messages, parameters, close codes and refusals.

        It is in the view of the app: what it receives, clients send. It has what is known: types by annotation or
        ``value_type``, also those of ``app.topic`` for ``subscribe=``; a bearer token, session or ticket if the code of
        the view or of a hook before it reads one. ``microws schema asyncapi`` writes it to a file.

        Args:
            title: Name of the app. Default: that of its file.
            version: Version of the app.

        Source: https://www.asyncapi.com/docs/reference/specification/v3.0.0
        """
        from microws.description import write_asyncapi

        return write_asyncapi(self._description(), title=title, version=version)

    def openapi(self, *, title: str | None = None, version: str = "0") -> dict[str, Any]:
        """
        Return an OpenAPI 3.1 document of the HTTP routes: their parameters, bodies, responses and errors.

        It has what is known, as ``asyncapi``; the types of bodies, queries and responses are those of annotations. What
        an error handler responds with is not known. A WebSocket is a GET that gets 101. Methods that OpenAPI does not
        have are not in it. ``microws schema openapi`` writes it to a file.

        Args:
            title: Name of the app. Default: that of its file.
            version: Version of the app.

        Source: https://spec.openapis.org/oas/v3.1.0.html
        """
        from microws.description import write_openapi

        return write_openapi(self._description(), title=title, version=version)

    def url_for(self, name: str, /, **params: Any) -> str:
        """
        Return the path of the route with that name.

        Raises:
            RoutingError: No route has that name, or a parameter is missing or does not fit.
        """
        return self._root._router.url_for(name, **params)

    def render(self, template: str, /, **context: Any) -> str:
        """
        Render a Jinja2 template of the app's template directory; a view may return the result.

        HTML is escaped. Templates can call ``url_for``. Behind a proxy with a root path, pass
        ``url_for=request.url_for``.

        Raises:
            FeatureUnavailable: Jinja2 is not installed.
            jinja2.TemplateNotFound: The template does not exist.
        """
        return self._templates.render(template, context)

    # Around the views

    def add_middleware(self, asgi_middleware: Callable[..., ASGIApplication], **options: Any) -> None:
        """
        Wrap the app in plain ASGI middleware; the first one added is outermost.

        Args:
            asgi_middleware: Called as ``asgi_middleware(app, **options)``, where ``app`` is an ``async def`` function
                that takes ``scope``, ``receive`` and ``send``.

        Raises:
            RuntimeError: The app already serves, or is included in another app.
            TypeError: ``asgi_middleware`` does not return an ASGI app.
        """
        self._check_registering()
        if self._asgi is not None:
            raise RuntimeError("add middleware before the app serves its first request")
        check_middleware(asgi_middleware)
        self._middleware.append((asgi_middleware, options))

    def before_request(self, hook: RequestHook) -> RequestHook:
        """
        Decorator: call ``hook(request)`` before each HTTP view. If it does not return ``None``, that is the response.

        A plain function runs in a worker thread, like all hooks around views and the error handlers.
        """
        return self._add_hook(self._hooks.before_request, hook)

    def after_request(self, hook: ResponseHook) -> ResponseHook:
        """
        Decorator: call ``hook(request, response)`` after each HTTP view, even if the view or an earlier hook failed.

        It may change the response or return another, because nothing has been sent. To run code after the response was
        sent, use ``request.on_close``.
        """
        return self._add_hook(self._hooks.after_request, hook)

    def before_websocket(self, hook: WebSocketHook) -> WebSocketHook:
        """
        Decorator: call ``hook(ws)`` before each WebSocket view. It may reject, or return the response to reject with.
        """
        return self._add_hook(self._hooks.before_websocket, hook)

    def after_websocket(self, hook: WebSocketHook) -> WebSocketHook:
        """
        Decorator: call ``hook(ws)`` once after each WebSocket that matched a route, however it ended.

        This includes WebSockets that an earlier hook rejected, and cancelled views. It has ``close_timeout`` seconds.
        """
        return self._add_hook(self._hooks.after_websocket, hook)

    def error_handler(self, key: type[Exception] | int) -> Callable[[ErrorHook], ErrorHook]:
        """
        Decorator: handle an exception class or a status with ``handler(request, error)`` or ``handler(ws, error)``.

        For HTTP, the handler returns what a view may return. On a WebSocket, it may reject, or send and close. If it
        leaves the connection open, microws closes it as without a handler.

        Raises:
            TypeError, ValueError: ``key`` is not a class or status, or has a handler already; or the handler does not
                take these arguments.
        """
        self._hooks.check_handled(key)

        def register(handler: ErrorHook) -> ErrorHook:
            self._check_registering()
            self._hooks.add_handler(key, handler)
            return handler

        return register

    def on_startup(self, hook: AppHook) -> AppHook:
        """
        Decorator: call ``hook()`` before the first request. If it raises, the server does not start.

        It runs in the thread of the event loop, even if it is a plain function.
        """
        return self._add_hook(self._lifespan.on_startup, hook)

    def on_shutdown(self, hook: AppHook) -> AppHook:
        """Decorator: call ``hook()`` after the last request."""
        return self._add_hook(self._lifespan.on_shutdown, hook)

    def lifespan(self, context: Context) -> Context:
        """
        Decorator: enter the async context manager ``context(app)`` at startup, and leave it at shutdown.

        ``context`` may also be an async generator function with one ``yield``. If it yields a mapping, that is ASGI's
        lifespan state: after ``yield {"db": db}``, views read ``request.state.db`` and ``ws.state.db``.

        Source: https://asgi.readthedocs.io/en/latest/specs/lifespan.html#lifespan-state
        """
        self._check_registering()
        self._lifespan.add_context(context)
        return context

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """
        Run ``function(*args)`` as a background task until it ends or the app shuts down. A failure is logged.

        Raises:
            RuntimeError: The app is not running, or runs in another event loop.
            TypeError: ``function`` is not a function, but for example the coroutine that it returned.
        """
        self._root._lifespan.start_soon(function, *args)

    @property
    def state(self) -> State:
        """State that the views of the app share."""
        return self._root._state

    def ticket(self, value: Any, *, path: str, ttl: float = 30) -> str:
        """
        Return a ticket that lets one client into one WebSocket, once: ``ws.take_ticket()`` there returns ``value``.

        For clients that cannot send a header or cookie with a WebSocket: they ask for a ticket in a request, which can,
        and then connect to ``/chat?ticket=…``. It is signed, so that nothing is stored until it is used. The client can
        read ``value``. The logs of microws show ``***`` in its place; those of a proxy may show it, so keep ``ttl``
        short.

        Args:
            value: A JSON value, such as the name of the user.
            path: The path of the WebSocket, as ``ws.path`` there: decoded, and below the mount if the app is mounted.
                Only this app takes the ticket, whatever other apps have the same secret and path.
            ttl: Seconds for which it is valid, and for which its use is remembered. The clocks of two machines may
                differ by 5 seconds.

        Raises:
            TypeError, ValueError: JSON does not support the value, or another argument is invalid.
            RuntimeError: The app has no secret.
        """
        root = self._root
        if root.signing is None:
            raise RuntimeError(no_secret("app.ticket"))
        return issue_ticket(root.signing.ticket, value, path=path, ttl=ttl, mount=root._hub.mount)

    # Topics

    @property
    def hub(self) -> Hub:
        """The topics and subscribers of this process; ``hub.statistics()`` counts them."""
        return self._root._hub

    def topic(
        self,
        pattern: str,
        *,
        queue: int = MAX_MESSAGES,
        overflow: OverflowPolicy = "close",
        key: str | Callable[[Any], Any] | None = None,
        history: int = 0,
        ttl: float | None = None,
        value_type: Any = None,
    ) -> None:
        """
        Set what is published to topics that match ``pattern``, and how they treat a slow subscriber. The first matching
        pattern wins.

        Args:
            pattern: A topic in which ``*`` matches any characters.
            queue: Maximum messages of the topic that are pending for one subscriber. Default 256.
            overflow: What happens to the next message. ``"close"`` closes that connection with 1013. ``"drop_oldest"``
                and ``"drop_newest"`` drop a message. ``"latest"`` keeps only the newest message of each ``key``. A
                client learns about dropped messages only if its route has ``gaps=True``.
            key: With ``"latest"``: a field of the message, or a plain function of it that returns a hashable or JSON
                value. If the function fails, ``publish`` raises its exception and delivers nothing. Default: all
                messages have the same key.
            history: Maximum messages of the topic that a client may have missed and still gets: see ``since`` of
                ``ws.subscribe`` and ``app.stream``. With ``"latest"``: the keys whose newest message is kept. Default:
                none.
            ttl: Seconds for which the client gets them. Default: as long as the log has them.
            value_type: The type of what is published, for the documents; ``microws dev`` and the test client check it.
                Default: any.

        Raises:
            TypeError: JSON cannot carry ``value_type``.
            ValueError: Another setting is invalid.
            FeatureUnavailable: ``value_type`` needs msgspec.
        """
        self._check_registering()
        self._hub.configure(pattern, TopicSettings(queue, overflow, key, history, ttl, value_type))

    async def publish(self, topic: str, value: Any, *, skip: str | None = None, key: str | None = None) -> Receipt:
        """
        Send ``value`` to every subscriber of ``topic``, encoded for its ``send_type``.

        This never waits for a subscriber. ``topic`` sets what happens to a slow one. With several workers, it waits
        until the hub process or Redis has the message, if the topic has history; if not, only while more than 1 MiB is
        on the way.

        Args:
            topic: 1 to 255 UTF-8 bytes without control characters.
            value: ``str``, ``bytes``, or a value that JSON supports. ``bytes`` is always a binary frame.
            skip: The ``ws.id`` of a connection that does not get it. ``ws.publish`` skips its own.
            key: Names the message, on a topic with history: if the history has a message of the topic with this key,
                nothing is published, and the receipt has the position of that message. So a publish may be repeated.
                Default: each call publishes.

        Returns:
            ``Receipt(subscribers, id)``: the number of subscribers of this process that the message reached; with
            several workers, those that there are now, without ``skip``. And its position, which is ``None`` without
            history.

        Raises:
            TypeError, ValueError: The topic or key is invalid, or JSON does not support the value. Nothing was
                delivered.
            RuntimeError: The app is not running, or runs in another event loop. In another thread, use
                ``publish_from_thread``.
            PublishTimeout: The hub process or Redis did not answer within 2 seconds. The message may have been
                published, or may be published later. To publish it once, repeat the call with the same ``key``.
            HubUnavailable: Redis refuses the message, for example because its memory is full. Nothing was published. If
                the call did not wait, because the topic has no history, its subscribers are told that messages were
                lost instead.
        """
        return await self.hub.publish(topic, value, skip=skip, key=key)

    async def position(self, topic: str) -> str:
        """
        Return where a topic with history is now: the position of its last message, for ``since``.

        Read it before the data that a page shows, and send it with the page. A client that subscribes from there gets
        every message that is not in the data.

        Raises:
            TypeError, ValueError: The topic is invalid, or has no history.
        """
        return await self.hub.position(topic)

    def publish_from_thread(self, topic: str, value: Any) -> Receipt:
        """
        ``publish`` from a worker thread, for example in a plain ``def`` view. It blocks until the message is published.

        Raises:
            RuntimeError: Called in the thread of the event loop, or the app is not running.
        """
        return self.hub.publish_from_thread(topic, value)

    def subscribe(self, *topics: str, since: str | Mapping[str, str | None] | None = None) -> Subscription:
        """
        Read topics in the app: ``async with app.subscribe("chat:1") as messages:``, then ``async for`` over
        ``messages``.

        ``messages.topic`` is the topic of the last message that was read, and ``messages.position`` its position.

        Args:
            topics: One or several topics.
            since: As of ``ws.subscribe``. If the history does not have all that was missed, the first read raises
                ``Overflow``.

        Raises:
            TypeError, ValueError: A topic is invalid. Raised on entering.
            RuntimeError: The app is not running, or runs in another event loop. Raised on entering.
        """
        return Subscription(self.hub, self._root._codecs.get("json"), topics, since)

    def stream(self, *topics: str, event: "EventName" = None, since: str | None = None) -> "Stream":
        """
        Return topics as server-sent events: ``return EventStream(app.stream("chat:1"))``.

        The client gets everything that is published after it has received the head of the response.

        Args:
            topics: One or several topics.
            event: The type of the events, for ``addEventListener`` in a browser: a ``str``, or a function of the topic,
                which is called once for each of ``topics``. Default: no type, for ``onmessage`` in a browser and htmx.
            since: The id of an event, for a new client. It first gets what was published after that to topics with
                history; or an event of the type ``gap``, if the history does not have all of it any more. ``"start"``:
                all of the history. Default: nothing. A client that reconnects, and so sends ``Last-Event-ID``, gets
                what was published after that id.

        Raises:
            TypeError, ValueError: A topic or ``event`` is invalid.

        Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#dispatchMessage
        """
        from microws.event_stream import Stream

        return Stream(self.hub, self._root._codecs.get("text"), topics, event, since)

    async def disconnect(
        self,
        *,
        topic: str | None = None,
        id: str | None = None,  # noqa: A002
        code: int = 1000,
        reason: str = "",
        **tags: str | int,
    ) -> int:
        """
        Close connections in all workers: ``await app.disconnect(user="anna", code=4403)`` when she logs out.

        Clients first get what was published before. An event stream has no tags; it ends without code and reason, and a
        browser then requests it again. Blocks of ``app.subscribe`` are not connections and go on. A WebSocket that gets
        its tag later is not closed: check again, after ``ws.tag``, what let the client in.

        Args:
            topic: All connections that subscribe to it.
            id: The one with this ``ws.id``.
            tags: All that have all these tags; see ``ws.tag``. Give one of topic, id and tags.
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999 for your own codes.
            reason: At most 123 bytes in UTF-8.

        Returns:
            The number of connections that were closed. It lacks those of a worker that does not answer within 2
            seconds; then the log says so.

        Raises:
            TypeError, ValueError: An argument is invalid, or not exactly one of topic, id and tags was given.
            RuntimeError: The app is not running, or runs in another event loop.
            PublishTimeout: The hub process does not answer.
        """
        return await self.hub.disconnect(topic=topic, id=id, code=code, reason=reason, **tags)

    def connections(self, **tags: str | int) -> list[OpenConnection]:
        """
        Return the open WebSockets of this worker that have all these tags, the oldest first; those of all workers:
        ``await app.hub.connections(user="anna")``.

        Args:
            tags: See ``ws.tag``. Default: all WebSockets.

        Returns:
            ``OpenConnection(id, path, since, tags, queued)`` for each.

        Raises:
            TypeError, ValueError: A tag is invalid.
        """
        check_tags(tags)
        return list(self.hub.open.describe(tags))

    async def members(self, topic: str) -> dict[str, dict[str, Any]]:
        """
        Return who is on ``topic``, in all workers: the presence of each member by its id.

        A client becomes a member if ``on_subscribe`` returns a dict, or by ``ws.subscribe(topic, presence={…})``. It
        leaves when it unsubscribes, or closes; if its connection breaks off, after ``App(leave_after=…)``. Clients that
        speak ``microws.v1`` are told who joins and leaves, at most four times a second.

        Raises:
            TypeError, ValueError: An invalid topic.
            PublishTimeout: The hub process or Redis does not answer.
        """
        return await self.hub.presence.members(topic)

    async def count(self, topic: str) -> int:
        """Return how many members ``topic`` has; see ``members``."""
        return len(await self.members(topic))

    # Running

    def run(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        reload: bool = False,
        **options: "Unpack[RunOptions]",
    ) -> None:
        """
        Serve the app until SIGTERM or Ctrl-C, like ``microws run``. Blocks; call it in the main thread.

        The rest of the script runs after the shutdown of the app. A view that still blocks in a thread does not keep
        the process from ending. On trio, and if a view blocks the event loop, the process ends within this call, after
        the functions registered with ``atexit``.

        SIGHUP stops the server as SIGTERM does. When the script has ended, the process runs it again, with new code.

        Args:
            host: Address to listen on. ``"0.0.0.0"`` listens on every network of this machine. Default 127.0.0.1.
            port: Port to listen on; 0 is any free port. Default 8000.
            reload: Serve as ``microws dev`` does: run the script again when a file changes. What runs before this call
                runs once more at the start. Default: no.
            options: The other flags of ``microws run``, as keywords: ``access_log=False``. ``bind`` replaces host and
                port: ``bind="unix:/run/app.sock"``. With ``workers``, each worker runs the script again.

        Raises:
            SystemExit: With code 1: the startup failed, or the server could not listen. The log has the reason.
            TypeError: An option does not exist; the text suggests a similar one.
            ValueError: An option is invalid; the text says what was expected.
            RuntimeError: ``microws run`` is importing the script, and will serve the app. Write ``if __name__ ==
                "__main__":`` above the call.
        """
        if reload:
            from microws.dev.script import run_and_reload as run
        else:
            from microws.server.worker import run

        if code := run(self, host=host, port=port, **options):
            raise SystemExit(code)

    def test_client(self, **options: "Unpack[ClientOptions]") -> "TestClient":
        """
        Return an in-memory client for tests: ``async with app.test_client() as client``.

        Args:
            options: Those of ``microws.testing.TestClient``. The default ``base_url`` has the first host of
                ``allowed_hosts``.
        """
        from microws.testing import TestClient

        self._check_values()
        options.setdefault("base_url", f"http://{self._settings.test_host}")
        root_path = options.get("root_path", "")
        return TestClient(self, codecs=lambda path: self._websocket.codecs_of(path, root_path=root_path), **options)

    def running(self, *, mount: str = "") -> AbstractAsyncContextManager[dict[str, Any]]:
        """
        Start the app on entering and stop it on leaving, for an app that another framework serves.

        A server runs the lifespan of an app itself. Other frameworks do not run that of a mounted app:

        ::

            @asynccontextmanager
            async def lifespan(fastapi_app):
                async with app.running() as state:
                    yield state

            fastapi_app = FastAPI(lifespan=lifespan)
            fastapi_app.mount("/live", app)

        Enter and leave it in the same task.

        Args:
            mount: Names the app in the hub process, if several apps run in this way: each has topics of its own.

        Returns:
            A context manager. It yields a dict of everything that the contexts of ``@app.lifespan`` have yielded.

        Raises:
            RuntimeError: The app runs in another event loop.
            ValueError: Another app runs with this ``mount``.
            Exception: The exception of a startup or shutdown hook.
        """
        return self._root._lifespan.run(self._root, {"state": {}, "extensions": {"microws": {"mount": mount}}})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if self._parent is not None:
            raise RuntimeError("this app is included in another one: serve that one")
        if not self._hub.loop.runs:
            # Without a lifespan the app runs in the event loop of its first request.
            self._hub.loop.attach()
        if self._asgi is None:
            app = wrap(self._serve, self._middleware)
            self._asgi = guard(app, settings=self._settings, http=self._http, websocket=self._websocket)
        scope["app"] = self
        await self._asgi(scope, receive, send)

    def _serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        kind = scope["type"]
        if kind == "http":
            return self._http.serve(scope, receive, send)
        if kind == "websocket":
            return self._websocket.serve(scope, receive, send)
        if kind == "lifespan":
            return self._lifespan.serve(scope, receive, send, app=self)
        raise RuntimeError(f"expected a scope of type http, websocket or lifespan, got {kind!r}")

    def _description(self, schemas: "Schemas | None" = None) -> "Description":
        from microws.description import describe

        root = self._root
        # `chat.py` and `chat/app.py` are both the app "chat".
        title = self._directory.name if self._file.stem in ("app", "asgi", "main", "__init__") else self._file.stem
        topics = root._hub.configured
        return describe(title, root._router, settings=root._settings, topics=topics, schemas=schemas)

    def _check_values(self) -> None:
        """Check the types of what is sent and published, in mounted apps too."""
        if not self._codecs.checks:
            self._codecs.checks = True
            for mounted in self._router.mounts:
                if isinstance(mounted.endpoint.app, App):
                    mounted.endpoint.app._check_values()

    def _develop(self, on_hub: Callable[[Hub], None], *, is_mounted: bool = False) -> tuple[list[Path], list[str]]:
        """
        For ``microws dev``: show errors, let every localhost origin pass, leave ``Host`` to the command, and have a
        page that shows the routes.

        Args:
            on_hub: Called with the hub of each app.
            is_mounted: Within another app of microws, whose page shows the routes of both.

        Returns:
            The directories of templates and static files, and what ``allowed_hosts`` has allowed; mounted apps
            included.
        """
        settings = self._settings
        if settings.any_localhost:
            return [], []  # it is mounted twice, or in itself
        folders, hosts = list(self._page_folders), list(settings.allowed_hosts or ())
        settings.debug = settings.any_localhost = True
        self._check_values()
        settings.allowed_hosts = None
        secret = os.environ.get("MICROWS_DEV_SECRET")
        if self.signing is None and secret and find_spec("itsdangerous"):
            self._sign_with([secret.encode()])
        on_hub(self._hub)
        if not is_mounted:
            from microws.docs_page import DocsPage

            if not any(
                isinstance(getattr(each.endpoint.function, "__self__", None), DocsPage) for each in self._router.routes
            ):
                with suppress(RoutingError):  # the app has a page of its own there
                    self.docs()
        for mounted in self._router.mounts:
            if isinstance(mounted.endpoint.app, App):
                more_folders, more_hosts = mounted.endpoint.app._develop(on_hub, is_mounted=True)
                folders += more_folders
                hosts += more_hosts
        return folders, hosts

    def _sign_with(self, secrets: Sequence[bytes]) -> None:
        from microws.signing import Signing

        self.signing = Signing(secrets)

    @property
    def _root(self) -> "App":
        """The app that serves: this one, or the outermost app that includes it."""
        return self if self._parent is None else self._parent._root

    def _add_hook(self, hooks: HookList, hook: F) -> F:
        self._check_registering()
        hooks.add(hook)
        return hook

    def _check_registering(self) -> None:
        if self._parent is not None:
            raise RuntimeError("this app is already included in another one: register before include")


add_hints(App, Request, Response, WebSocket)
