"""The app: where views, hooks and settings are registered. What it is asked it hands on."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from microws.binding import bind_topics, bind_view
from microws.codec import Codecs
from microws.connection.bulk_writes import BulkWriter
from microws.datastructures import State
from microws.dispatch import HTTPDispatcher, WebSocketDispatcher, guard
from microws.errors import FeatureUnavailable, RoutingError
from microws.event_stream import EventName, Stream
from microws.files import StaticFiles
from microws.health import Health
from microws.hints import add_hints
from microws.hooks import HookList, Hooks, Middleware, check_mounted
from microws.hub import MAX_MESSAGES, Hub, OverflowPolicy
from microws.interfaces import ASGIApplication, Codec, Receipt, Receive, Scope, Send
from microws.lifespan import Lifespan
from microws.requests import Request
from microws.responses import Response
from microws.routing import Pattern, Router
from microws.server.settings import RunOptions
from microws.settings import AppSettings
from microws.subscription import Subscription
from microws.templates import Templates, directory_of_caller
from microws.threads import Threads
from microws.views import HTTPEndpoint, MountEndpoint, OnInvalid, WebSocketEndpoint, WebSocketRouteOptions
from microws.websocket import WebSocket

if TYPE_CHECKING:
    from microws.testing import ClientOptions, TestClient

__all__ = ["App"]

# Decorators give back what they were given, with its own type.
F = TypeVar("F", bound=Callable[..., Any])
WebSocketView = TypeVar("WebSocketView", bound=Callable[..., Coroutine[Any, Any, Any]])
RequestHook = TypeVar("RequestHook", bound=Callable[[Request], Any])
ResponseHook = TypeVar("ResponseHook", bound=Callable[[Request, Response], Any])
WebSocketHook = TypeVar("WebSocketHook", bound=Callable[[WebSocket], Any])
ErrorHook = TypeVar("ErrorHook", bound=Callable[[Any, Any], Any])
AppHook = TypeVar("AppHook", bound=Callable[[], Any])
Context = TypeVar("Context", bound=Callable[["App"], AsyncIterator[Any] | AbstractAsyncContextManager[Any]])


class App:
    """
    A microws application, and an ASGI one.

    ::

        app = App()

        @app.websocket_route("/chat/{room}", value_type="json", subscribe="chat:{room}")
        async def chat(ws, room):
            async with ws:
                async for message in ws:
                    await ws.publish(f"chat:{room}", message)

    Args:
        max_message_size: Bytes of one incoming message; a larger one closes with 1009. Default 1 MiB, as in
            ``websockets``.
        max_fragments: Fragments of one incoming message, under ``microws run``. Default 1,024.
        receive_queue: Incoming messages that wait for a view before reading pauses. Default 64.
        max_subscriptions: Topics that one WebSocket may be subscribed to; ``ws.subscribe`` raises
            ``TooManySubscriptions`` beyond that. Default 128, as in Centrifugo.
        max_body_size: Bytes of a request's body; a larger one is 413. Default 1 MiB, as in nginx.
        send_timeout: Seconds that one ``ws.send`` waits for a slow client; then it is closed with 1013. Default 10.
        accept_timeout: Seconds that a view has to accept; then it is cancelled and the answer is 503. Default 10, as
            in ``websockets``.
        close_timeout: Seconds that a close waits for what is queued and for the client's answer, that a view has to
            notice that the client has left, and that the source of a stream has to clean up then. Default 5.
        compression: Agree to permessage-deflate where a client offers it, under ``microws run``; what is published goes
            uncompressed. Other servers, and trio, decide by themselves. Default: no, for it takes memory and time.
        origins: Web pages that may connect, send unsafe HTTP methods and read answers (CORS), beside those of the same
            origin: ``["https://app.example"]``. Browsers may send cookies with their requests. ``["*"]`` allows all
            pages, without cookies. Default: the same origin only, without CORS.
        allowed_hosts: Names and addresses that ``Host`` may have, without port: ``["app.example", "*.app.example"]``.
            Other requests are answered with 421, except those of ``health``, but not of a mounted app's ``health``.
            Set it where no proxy checks the name, as on a developer's machine: a page whose name resolves to this
            server (DNS rebinding) has the same origin. Default: any.
        error_close_code: Close code after an unexpected error. Default 1011.
        hub: The backplane. Default ``"memory"``, for one process.
        redirect_slashes: Answer 308 where only the other slash form of a path exists. Default: yes.
        debug: Show unexpected errors to clients. Default: no.
        json_default: Called with each value that JSON has no form for, such as a ``Decimal``, a set or a pydantic
            model, in what views return, ``ws.send``, ``publish``, ``JSONResponse`` and ``ServerSentEvent``. It returns
            a value that JSON has a form for, or raises ``TypeError``, as the ``default`` of ``json.dumps``. Default:
            each of these is a ``TypeError``.
        threads: Worker threads for plain ``def`` views; as many again for plain hooks and error handlers, and for the
            plain generators of streams. What finds them all at work waits. Default 40, as in anyio and Starlette.
        templates: Directory of the templates, relative to the file that creates the app.

    Raises:
        TypeError, ValueError: A setting that cannot be.
        FeatureUnavailable: A setting that this version does not have.
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
        redirect_slashes: bool = True,
        debug: bool = False,
        json_default: Callable[[Any], Any] | None = None,
        threads: int = 40,
        templates: str | Path = "templates",
    ) -> None:
        # First of all: so far the arguments are the only local names.
        self._settings = settings = AppSettings(locals())
        self.close_timeout = close_timeout
        self.max_message_size = max_message_size
        self.threads: Threads = Threads(threads)
        self._directory = directory_of_caller()
        self._parent: App | None = None
        self._router = Router(redirect_slashes=redirect_slashes)
        self._hooks = Hooks()
        self._middleware = Middleware()
        self._codecs = Codecs(json_default)
        self._added_codecs: dict[str, Codec] = {}
        self._hub = Hub(self._codecs, hub, write=BulkWriter().write)
        self._lifespan = Lifespan(self._hub, self._router)
        self.spans_processes: bool = self._hub.spans_processes
        self._state_values: dict[str, Any] = {}
        self._state = State(self._state_values)
        self._templates = Templates(self._directory / templates, url_for=self.url_for)
        self._asgi: ASGIApplication | None = None
        self._http = HTTPDispatcher(self, router=self._router, hooks=self._hooks, settings=settings)
        self._websocket = WebSocketDispatcher(
            self, router=self._router, hooks=self._hooks, hub=self._hub, codecs=self._codecs, settings=settings
        )

    # Views

    def route(self, pattern: str, *, methods: Iterable[str] = ("GET",), name: str | None = None) -> Callable[[F], F]:
        """``add_route`` as a decorator."""
        Pattern.check(pattern)

        def register(view: F) -> F:
            self.add_route(view, pattern, methods=methods, name=name)
            return view

        return register

    def get(self, pattern: str, *, name: str | None = None) -> Callable[[F], F]:
        """``route`` for GET, and with it HEAD."""
        return self.route(pattern, methods=["GET"], name=name)

    def post(self, pattern: str, *, name: str | None = None) -> Callable[[F], F]:
        """``route`` for POST."""
        return self.route(pattern, methods=["POST"], name=name)

    def put(self, pattern: str, *, name: str | None = None) -> Callable[[F], F]:
        """``route`` for PUT."""
        return self.route(pattern, methods=["PUT"], name=name)

    def patch(self, pattern: str, *, name: str | None = None) -> Callable[[F], F]:
        """``route`` for PATCH."""
        return self.route(pattern, methods=["PATCH"], name=name)

    def delete(self, pattern: str, *, name: str | None = None) -> Callable[[F], F]:
        """``route`` for DELETE."""
        return self.route(pattern, methods=["DELETE"], name=name)

    def add_route(
        self, view: Callable[..., Any], pattern: str, *, methods: Iterable[str] = ("GET",), name: str | None = None
    ) -> None:
        """
        Register an HTTP view.

        Args:
            view: ``async def``, or a plain function, which runs in a worker thread. The first parameter that the
                pattern does not name gets the ``Request``; it may have none. Route parameters are passed by name. If a
                decorator takes ``(*args, **kwargs)``, the signature of the function that it wraps decides.
            pattern: Such as ``/users/{id:int}``; see docs/reference.md, "Patterns".
            methods: ``GET`` brings ``HEAD``; ``OPTIONS`` is answered by itself.
            name: For ``url_for``; by default the view's own.

        Raises:
            RoutingError: The pattern is invalid, or another route hides it, or the signature does not fit it
                (``q: str`` where the ``Request`` is passed, or ``x: str`` for ``{x:int}``).
        """
        self._check_registering()
        bound = bind_view(view, Pattern.parse(pattern, self._router.converters), kind="http")
        self._router.add(
            pattern,
            HTTPEndpoint(self._hooks, bound, view),
            kind="http",
            methods=methods,
            name=name,
            default_name=getattr(view, "__name__", None),
        )

    def websocket_route(
        self,
        pattern: str,
        *,
        value_type: Any = "text",
        receive_type: Any = None,
        send_type: Any = None,
        catch_disconnect: bool = True,
        subprotocols: Sequence[str] = (),
        origins: Sequence[str] | None = None,
        subscribe: str | Sequence[str] | None = None,
        gaps: bool = False,
        on_invalid: OnInvalid = "close",
        name: str | None = None,
    ) -> Callable[[WebSocketView], WebSocketView]:
        """
        Decorator: register a WebSocket view.

        It is ``async def``, or a decorator's plain function around one. The first parameter that the pattern does not
        name gets the ``WebSocket``; route parameters are passed by name.

        Args:
            pattern: Such as ``/chat/{room}``; an HTTP view may stand at the same one.
            value_type: ``"text"``, ``"bytes"``, ``"json"``, ``"auto"`` (``str`` for text frames, ``bytes`` for binary
                ones), or a name of ``add_codec``: what ``receive`` returns and ``send`` takes.
            receive_type, send_type: The same for one direction.
            catch_disconnect: ``async for`` just ends and ``async with`` swallows the ``WebSocketDisconnect`` when the
                client leaves. ``False``: both let it through.
            subprotocols: Those that the view speaks; the first that the client offers too is accepted.
            origins: In place of ``App(origins=…)``.
            subscribe: One or several topics to subscribe before the handshake is answered, filled from the route's
                parameters: ``"chat:{room}"``.
            gaps: Send ``{"topic": …, "gap": true}`` where a topic's overflow policy dropped messages. Default: no, and
                then the client does not learn of that.
            on_invalid: What happens on an invalid message. ``"close"`` raises in the view, and closes with 1003 or 1007
                unless the view catches that. ``"skip"`` waits for the next message; it logs the first one that it skips
                and, when the connection ends, how many it skipped.
            name: For ``url_for``; by default the view's own.

        Raises:
            TypeError: The view is not ``async def``.
            RoutingError: The pattern is invalid, or another route hides it, or the signature does not fit it.
            ValueError: Another argument that cannot be.
            FeatureUnavailable: A value type that this version does not have.
        """
        Pattern.check(pattern)

        def register(view: WebSocketView) -> WebSocketView:
            self._check_registering()
            parsed = Pattern.parse(pattern, self._router.converters)
            endpoint = WebSocketEndpoint(
                hooks=self._hooks,
                view=bind_view(view, parsed, kind="websocket"),
                function=view,
                receive_type=value_type if receive_type is None else receive_type,
                send_type=value_type if send_type is None else send_type,
                subprotocols=subprotocols,
                origins=origins,
                topics=bind_topics(subscribe, parsed),
                catch_disconnect=catch_disconnect,
                gaps=gaps,
                on_invalid=on_invalid,
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
        """``websocket_route``, with the same options, without a decorator."""
        self.websocket_route(pattern, **options)(view)

    def add_converter(
        self,
        name: str,
        pattern: str,
        parse: Callable[[str], Any] = str,
        format: Callable[[Any], str] = str,  # noqa: A002
    ) -> None:
        """
        Let patterns say ``{parameter:name}``.

        Args:
            name: Of the converter.
            pattern: Regular expression that the whole decoded segment has to match.
            parse: Makes the value; with ``ValueError`` the route does not match.
            format: Makes the segment of a value again, for ``url_for``.

        Raises:
            RoutingError: The name or the expression cannot be.
        """
        self._check_registering()
        self._router.converters.add(name, pattern, parse, format)

    def add_codec(self, name: str, codec: Codec) -> None:
        """
        Let routes say ``value_type=name``. ``"json"`` may be replaced, for published values too.

        Raises:
            TypeError, ValueError: The name is taken, or ``codec`` is none.
        """
        self._check_registering()
        self._codecs.add(name, codec)
        self._added_codecs[name] = codec

    def mount(self, prefix: str, asgi_app: ASGIApplication, *, origins: bool = True) -> None:
        """
        Hand everything below ``prefix`` that no route answers to another ASGI app.

        Its lifespan runs within this app's: it starts after the start-up hooks, in the order of mounting, and ends
        first, in reverse. If its startup fails, this app does not start. What it puts into the lifespan's state is in
        the ``state`` of its own scopes. An app without a lifespan is served all the same. An ``App`` that is mounted
        shares nothing with this one: it has its own topics, state and hooks.

        Args:
            prefix: Literal text such as ``/admin``; ``""`` or ``/`` takes all.
            asgi_app: Another ``App`` takes over this app's ``origins``, unless it has its own.
            origins: Refuse WebSockets and unsafe HTTP methods from foreign web pages, as for this app's own routes.
                ``False`` leaves that to ``asgi_app``, such as one with CORS or with webhooks of its own; an ``App``
                then does not take over ``origins``. Default: yes.

        Raises:
            RoutingError: The prefix cannot be, or is taken.
            TypeError: ``asgi_app`` is not an ASGI app, or ``origins`` not a ``bool``.
        """
        self._check_registering()
        check_mounted(asgi_app, prefix, origins)
        self._router.mount(prefix, MountEndpoint(asgi_app, origins and not isinstance(asgi_app, App), origins))

    def include(self, other_app: "App", prefix: str = "") -> None:
        """
        Take over all that was registered with another app, as a blueprint.

        Its hooks and error handlers serve its own routes, inside those of this app. Its views see this app as ``app``,
        and its ``publish``, ``subscribe``, ``state`` and ``url_for`` are this app's. Of its settings only
        ``templates`` counts.

        Args:
            other_app: Complete: registering with it afterwards is an error. It may include others, and may be included
                here again with another prefix.
            prefix: Literal text such as ``/admin`` before each of its patterns.

        Raises:
            RoutingError: Two routes that cannot be told apart, or a prefix that cannot be.
            RuntimeError: ``other_app`` is this app, is included elsewhere, or has middleware or a setting that would
                be lost. Only what this app has as well, and defaults, may be set.
            TypeError: ``other_app`` is no ``App``.
            ValueError: Both apps have codecs of one name.
        """
        self._check_registering()
        if not isinstance(other_app, App):
            raise TypeError(f"include takes an App, not {other_app!r}; for another ASGI app write app.mount(prefix, …)")
        if other_app is self or other_app._parent not in (None, self):
            raise RuntimeError("an app is included in one other app only, and never in itself")
        if other_app._middleware.added:
            raise RuntimeError("an included app has no middleware: add it to the including app, or mount this one")
        self._settings.check_included(other_app._settings, App)
        if "{" in prefix:
            raise RoutingError(f"the prefix {prefix!r} has a parameter: write it in each pattern, for the views")
        self._router.include(other_app._router, prefix)
        if other_app._parent is None:
            other_app._parent = self
            self._take_over(other_app)

    def _take_over(self, other_app: "App") -> None:
        self._hooks.include(other_app._hooks)
        self._lifespan.include(other_app._lifespan)
        for name, codec in other_app._added_codecs.items():
            if self._added_codecs.get(name) is not codec:
                self.add_codec(name, codec)
        self._hub.include(other_app._hub)
        self._state_values.update({**other_app._state_values, **self._state_values})

    def static(self, prefix: str, directory: str | Path) -> None:
        """
        Serve the files of a directory below ``prefix``. No file outside of it is served, by whatever path or link.

        Args:
            prefix: Such as ``/static``.
            directory: Relative to the file that creates the app.

        Raises:
            ValueError: There is no such directory.
        """
        self.add_route(StaticFiles(self._directory / directory).static, f"{prefix.rstrip('/')}/{{path:path}}")

    def health(self, *, live: str = "/healthz", ready: str = "/readyz", check: Callable[[], Any] | None = None) -> None:
        """
        Answer the probes of load balancers and of Kubernetes: two routes, which hooks do not see.

        Probes that succeed are in the access log at debug level only.

        Args:
            live: Answers 200 as long as the process answers at all: restart it where this fails.
            ready: Answers 200 from the end of the start-up, and 503 with ``Retry-After`` as soon as the server stops
                or ``check`` fails, so that a load balancer sends no clients.
            check: Called without arguments for each probe of ``ready``; it fails where it raises, returns ``False`` or
                takes over 5 seconds. A plain function runs in a worker thread. Its failure is logged, not sent.

        Raises:
            RoutingError: A pattern that cannot be, or that another route hides.
            TypeError: ``check`` cannot be called without arguments.
        """
        self._check_registering()
        Health(lambda: self._root._lifespan.is_serving, check).register(self._router, live=live, ready=ready)

    def url_for(self, name: str, /, **params: Any) -> str:
        """
        The path of the route of that name.

        Raises:
            RoutingError: No route has that name, or a parameter is missing or does not fit.
        """
        return self._root._router.url_for(name, **params)

    def render(self, template: str, /, **context: Any) -> str:
        """
        Fill a Jinja2 template of the app's template directory; a view may return the text as its page.

        HTML is escaped. ``url_for`` is there; behind a proxy with a root path give ``url_for=request.url_for``.

        Raises:
            FeatureUnavailable: Jinja2 is not installed.
            jinja2.TemplateNotFound: No such template.
        """
        return self._templates.render(template, context)

    # Around the views

    def add_middleware(self, asgi_middleware: Callable[..., ASGIApplication], **options: Any) -> None:
        """
        Wrap the app in plain ASGI middleware; the one added first is outermost.

        Args:
            asgi_middleware: Called as ``asgi_middleware(app, **options)``, where ``app`` is an ``async def`` function
                that takes ``scope``, ``receive`` and ``send``.

        Raises:
            RuntimeError: The app serves already, or is included in another.
            TypeError: What makes no ASGI app.
        """
        self._check_registering()
        self._middleware.add(asgi_middleware, options)

    def before_request(self, hook: RequestHook) -> RequestHook:
        """
        Decorator: call ``hook(request)`` before each HTTP view. What it returns, unless ``None``, is the answer.

        A plain function runs in a worker thread, as do the other hooks around views and the error handlers.
        """
        return self._add_hook(self._hooks.before_request, hook)

    def after_request(self, hook: ResponseHook) -> ResponseHook:
        """
        Decorator: call ``hook(request, response)`` after each HTTP view, also where it or a hook before it failed.

        It may change the response, or return another, because nothing was sent yet. What is to happen after the
        response is given to ``request.on_close``.
        """
        return self._add_hook(self._hooks.after_request, hook)

    def before_websocket(self, hook: WebSocketHook) -> WebSocketHook:
        """Decorator: call ``hook(ws)`` before each WebSocket view. It may reject, or return what to reject with."""
        return self._add_hook(self._hooks.before_websocket, hook)

    def after_websocket(self, hook: WebSocketHook) -> WebSocketHook:
        """
        Decorator: call ``hook(ws)`` once after each WebSocket that a route answered, however it ended.

        Also where a hook before it refused it, and where the view was cancelled; it has ``close_timeout`` seconds.
        """
        return self._add_hook(self._hooks.after_websocket, hook)

    def error_handler(self, key: type[Exception] | int) -> Callable[[ErrorHook], ErrorHook]:
        """
        Decorator: answer an exception class, or a status, by ``handler(request, error)`` or ``handler(ws, error)``.

        For HTTP it returns what a view may return. On a WebSocket it may reject, or send and close; what it leaves
        open is closed as without it.

        Raises:
            TypeError, ValueError: ``key`` is neither, or has a handler already; a handler that takes other arguments.
        """
        self._hooks.handlers.check(key)

        def register(handler: ErrorHook) -> ErrorHook:
            self._check_registering()
            self._hooks.add_handler(key, handler)
            return handler

        return register

    def on_startup(self, hook: AppHook) -> AppHook:
        """
        Decorator: call ``hook()`` before the first request. If it raises, the server does not start.

        It runs in the event loop's thread, ``async def`` or not.
        """
        return self._add_hook(self._lifespan.on_startup, hook)

    def on_shutdown(self, hook: AppHook) -> AppHook:
        """Decorator: call ``hook()`` after the last request."""
        return self._add_hook(self._lifespan.on_shutdown, hook)

    def lifespan(self, context: Context) -> Context:
        """
        Decorator: enter the async context manager ``context(app)`` at start-up, and leave it at shutdown.

        An async generator function with one ``yield`` is taken for one. A mapping that it yields becomes ASGI's
        lifespan state: after ``yield {"db": db}`` views read ``request.state.db`` and ``ws.state.db``.

        Source: https://asgi.readthedocs.io/en/latest/specs/lifespan.html#lifespan-state
        """
        self._check_registering()
        self._lifespan.add_context(context)
        return context

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """
        Run ``function(*args)`` as a background task until it ends or the app shuts down. Its failure is logged.

        Raises:
            RuntimeError: The app is not running, or runs in another event loop.
            TypeError: ``function`` is none, but what it has returned.
        """
        self._root._lifespan.start_soon(function, *args)

    @property
    def state(self) -> State:
        """What the views of the app share."""
        return self._root._state

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
        history: int | None = None,
        ttl: float | None = None,
    ) -> None:
        """
        Settle how the topics that fit ``pattern`` treat a subscriber that does not keep up; the first that fits counts.

        Args:
            pattern: A topic in which ``*`` stands for any characters.
            queue: Most messages of the topic that wait for one subscriber. Default 256.
            overflow: What happens to the next one. ``"close"`` closes that connection with 1013; ``"drop_oldest"``
                and ``"drop_newest"`` drop one; ``"latest"`` keeps only the newest message of each ``key``. A client is
                told of dropped messages only if its route has ``gaps=True``.
            key: With ``"latest"``: a field of the message, or a plain function of it that returns something hashable or
                JSON. If the function fails, ``publish`` raises its exception and delivers nothing. Default: all
                messages have one key.
            history, ttl: Which this version does not have.

        Raises:
            ValueError: A setting that cannot be.
            FeatureUnavailable: ``history`` or ``ttl`` was given.
        """
        if history is not None or ttl is not None:
            raise FeatureUnavailable("this version has no history: use app.topic without history= and ttl=")
        self._check_registering()
        self._hub.configure(pattern, queue=queue, overflow=overflow, key=key)

    async def publish(self, topic: str, value: Any) -> Receipt:
        """
        Send ``value`` to every subscriber of ``topic``, each in the form of its own ``send_type``.

        Never waits for a subscriber: what happens to one that does not keep up is settled by ``topic``.

        Args:
            topic: 1 to 255 UTF-8 bytes without control characters.
            value: ``str``, ``bytes``, or anything that JSON carries. ``bytes`` always is a binary frame.

        Returns:
            ``Receipt(subscribers, id)``: how many subscribers of this process it reached, and its position, which is
            ``None`` without history.

        Raises:
            TypeError, ValueError: The topic is invalid, or JSON cannot carry the value; nothing was delivered.
            RuntimeError: The app is not running, or runs in another event loop; in another thread write
                ``publish_from_thread``.
        """
        return await self.hub.publish(topic, value)

    def publish_from_thread(self, topic: str, value: Any) -> Receipt:
        """
        ``publish`` from a worker thread, such as a plain ``def`` view; blocks the thread until it is done.

        Raises:
            RuntimeError: Called in the event loop's thread, or the app is not running.
        """
        return self.hub.publish_from_thread(topic, value)

    def subscribe(self, *topics: str) -> Subscription:
        """
        Read topics in the app itself: ``async with app.subscribe("chat:1") as messages:``, then ``async for`` over it.

        ``messages.topic`` is the topic of the message that was read last.

        Raises:
            TypeError, ValueError: A topic that cannot be; raised on entering.
            RuntimeError: The app is not running, or runs in another event loop; raised on entering.
        """
        return Subscription(self.hub, self._root._codecs.get("json"), topics)

    def stream(self, *topics: str, event: EventName = None, since: str | None = None) -> Stream:
        """
        Topics as server-sent events: ``return EventStream(app.stream("chat:1"))``.

        What is published once the client has the head of the response is for it.

        Args:
            topics: One or several.
            event: The type of the events, which a browser's ``addEventListener`` names: a ``str``, or a function of the
                topic, called once for each of ``topics``. Default: no type, for a browser's ``onmessage`` and htmx.
            since: A position; this version has no history and takes ``None`` only.

        Raises:
            TypeError, ValueError: An invalid topic or ``event``.
            FeatureUnavailable: ``since`` was given.

        Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#dispatchMessage
        """
        if since is not None:
            raise FeatureUnavailable("this version has no history: use app.stream without since=")
        return Stream(self.hub, self._root._codecs.get("text"), topics, event)

    def members(self, topic: str) -> Any:
        """Presence, which this version does not have: raises ``FeatureUnavailable``."""
        raise FeatureUnavailable("this version has no presence: app.members is not available")

    # Running

    def run(self, host: str | None = None, port: int | None = None, **options: Unpack[RunOptions]) -> None:
        """
        Serve the app until SIGTERM or Ctrl-C, as ``microws run`` does. Blocks; call it in the main thread.

        The rest of the script runs after the shutdown of the app. A view that is still blocked in a thread does not
        keep the process from ending. On trio, and if a view blocks the event loop, the process ends within this call,
        after the functions registered with ``atexit``.

        SIGHUP stops the server as SIGTERM does. When the script has ended, the process runs it again, with new code.

        Args:
            host: Address to listen on; ``"0.0.0.0"`` is every network of this machine. Default 127.0.0.1.
            port: Port to listen on; 0 takes a free one. Default 8000.
            options: The other flags of ``microws run``, as keywords: ``access_log=False``. ``bind`` takes the place of
                host and port: ``bind="unix:/run/app.sock"``. With ``workers`` each worker runs the script again.

        Raises:
            SystemExit: With code 1: the start-up failed, or the server could not listen; the log says why.
            TypeError: An option that does not exist; the text says which was probably meant.
            ValueError: An invalid option; the text says what was expected.
            RuntimeError: ``microws run`` imports the script at this moment, and serves the app then: write
                ``if __name__ == "__main__":`` above the call.
        """
        # An app on another server needs none of these modules.
        from microws.server.worker import run

        if code := run(self, host=host, port=port, **options):
            raise SystemExit(code)

    def test_client(self, **options: "Unpack[ClientOptions]") -> "TestClient":
        """
        An in-memory client for tests: ``async with app.test_client() as client``.

        Args:
            options: Those of ``microws.testing.TestClient``. The default ``base_url`` has the first of
                ``allowed_hosts``.
        """
        # Imported on use: an app in production does not need it.
        from microws.testing import TestClient

        options.setdefault("base_url", f"http://{self._settings.test_host}")
        root_path = options.get("root_path", "")
        return TestClient(self, codecs=lambda path: self._websocket.codecs_of(path, root_path=root_path), **options)

    def running(self) -> AbstractAsyncContextManager[dict[str, Any]]:
        """
        Start the app on entering, and end it on leaving: for an app that another framework serves.

        A server does it by itself. Other frameworks do not do it for an app that is mounted in theirs:

        ::

            @asynccontextmanager
            async def lifespan(fastapi_app):
                async with app.running() as state:
                    yield state

            fastapi_app = FastAPI(lifespan=lifespan)
            fastapi_app.mount("/live", app)

        Enter and leave it in one task.

        Returns:
            A context manager, which yields a dict of what the contexts of ``@app.lifespan`` have yielded.

        Raises:
            RuntimeError: The app runs in another event loop.
            Exception: Whatever its start-up or its shutdown has raised.
        """
        return self._root._lifespan.run(self._root, {"state": {}})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if self._parent is not None:
            raise RuntimeError("this app is included in another one: serve that one")
        if not self._hub.loop.runs:
            # Where no lifespan is served the app runs in the event loop that serves a request.
            self._hub.loop.attach()
        if self._asgi is None:
            app = self._middleware.around(self._serve)
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
        raise RuntimeError(f"microws serves http, websocket and lifespan, not {kind!r}")

    @property
    def _root(self) -> "App":
        """The app that serves: this one, or the outermost of those that include it."""
        return self if self._parent is None else self._parent._root

    def _add_hook(self, hooks: HookList, hook: F) -> F:
        self._check_registering()
        hooks.add(hook)
        return hook

    def _check_registering(self) -> None:
        if self._parent is not None:
            raise RuntimeError("this app is included in another one: register first, include then")


add_hints(App, Request, Response, WebSocket)
