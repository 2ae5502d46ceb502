"""The client: runs the app's lifespan, and owns every call of the app."""

import secrets
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

import anyio

from microws.hub_url import OPEN_HUB
from microws.interfaces import ASGIApplication, Event, Scope
from microws.testing.calls import AppCall, CallSettings, CallTasks, add_note, end_block
from microws.testing.cookies import CookieJar
from microws.testing.rules import Rules
from microws.testing.scopes import HeaderTypes, QueryTypes, RequestOptions, ScopeFactory, encode_body
from microws.testing.streams import TestResponse, TestStream, request
from microws.testing.websocket import FrameCodec, TestWebSocket

__all__ = ["ClientOptions", "TestClient"]


class ClientOptions(TypedDict, total=False):
    """The options of ``TestClient`` that ``app.test_client`` takes; ``TestClient`` documents them."""

    timeout: float
    base_url: str
    headers: HeaderTypes | None
    client: tuple[str, int] | None
    root_path: str
    lifespan: bool
    raise_errors: bool
    denial: bool
    send_after_disconnect: Literal["raise", "ignore"]


class TestClient:
    """
    Calls an ASGI app in memory, as a strict server does: ``async with TestClient(app) as client``.

    Entering the block runs the app's startup, leaving it the shutdown. Each request and WebSocket calls the app in a
    task of the client. An exception that leaves the app is raised in the test: by the request, by the WebSocket's next
    use, or at the end of a block. So is a breach of ASGI's rules, for which the app's ``send`` raises ``RuntimeError``.
    An ``App`` first answers an unexpected exception of a view or hook, then raises it. The client's next request, or
    the end of its block, raises the exception of a task of ``app.start_soon``.
    After the client has disconnected, the app's ``send`` raises ``OSError``; the test does not get this one.

    Every wait has a limit, and its ``TimeoutError`` says what was missing. The client cancels an app that has not ended
    ``timeout`` seconds after the client has disconnected, and raises ``TimeoutError``. (It cannot end an app that
    blocks the event loop, or that catches every cancellation.)

    ``client.cookies`` keeps the cookies that responses set; the client sends them back.

    Args:
        app: Any ASGI app. One that raises or returns before it receives ``lifespan.startup`` has no lifespan.
        timeout: Seconds for each wait, and for a request as a whole.
        base_url: Scheme, host and port of the server.
        headers: Headers of every request and handshake.
        client: Address and port that the app sees as the client's.
        root_path: Where the app is mounted; paths include it.
        lifespan: Whether to run the lifespan.
        raise_errors: Whether the test gets exceptions that leave the app after its answer, or after its client has
            disconnected. With ``False`` it gets what a client gets: a 500, a close with 1011. An exception that leaves
            the app before its answer is always raised. Default: yes, as ``raise_server_exceptions`` of Starlette.
        denial: Whether to offer the extension ``websocket.http.response``. Without it every rejection is a 403.
        send_after_disconnect: ``raise``: ``send`` raises ``OSError``, as ASGI 2.4 requires of servers. ``ignore``:
            it does nothing, as on Hypercorn, and ``spec_version`` is 2.3.
        codecs: Given the path of a WebSocket, returns the codecs of what the client sends and receives, or ``None``.

    Raises:
        ValueError: ``base_url`` is invalid.
    """

    __test__ = False

    def __init__(
        self,
        app: ASGIApplication,
        *,
        timeout: float = 5.0,
        base_url: str = "http://testserver",
        headers: HeaderTypes | None = None,
        client: tuple[str, int] | None = ("testclient", 50000),
        root_path: str = "",
        lifespan: bool = True,
        raise_errors: bool = True,
        denial: bool = True,
        send_after_disconnect: Literal["raise", "ignore"] = "raise",
        codecs: Callable[[str], tuple[FrameCodec, FrameCodec] | None] | None = None,
    ) -> None:
        self.app = app
        self.cookies: CookieJar = CookieJar()
        self._timeout = timeout
        raise_after_disconnect = send_after_disconnect == "raise"
        self._settings = CallSettings(self._start, self.cookies, raise_errors, raise_after_disconnect)
        self._scopes = ScopeFactory(
            base_url,
            headers=headers,
            client=client,
            root_path=root_path,
            spec_version="2.5" if raise_after_disconnect else "2.3",
        )
        self._has_lifespan = lifespan
        self._denial = denial
        self._codecs = codecs
        self._lifespan: AppCall | None = None
        self._state: dict[str, Any] = {}
        self._tasks: CallTasks | None = None
        self._calls: list[AppCall] = []
        # Exceptions of the app's background tasks that the test has not got.
        self._failures: list[Exception] = []

    async def __aenter__(self) -> Self:
        if self._tasks:
            raise RuntimeError("the client is in use already; make another TestClient(app)")
        tasks = CallTasks()
        await tasks.open()
        self._tasks, self._state = tasks, {}
        if self._has_lifespan:
            scope: Scope = {
                "type": "lifespan",
                "asgi": {"version": "3.0", "spec_version": "2.0"},
                "state": self._state,
                "extensions": {"microws": {"report_error": self._failures.append}}
                if self._settings.raise_errors
                else {},
            }
            # What leaves the lifespan is always kept.
            settings = self._settings._replace(raise_errors=True)
            self._lifespan = AppCall("lifespan", scope, Rules("lifespan"), settings)
            # Whatever the app's hub= is: the test is one process.
            token = OPEN_HUB.set(lambda *_: None)
            tasks.start_soon(self._lifespan.run, self.app, name="lifespan")
            OPEN_HUB.reset(token)
            try:
                await self._startup(self._lifespan)
            except BaseException as error:
                await self._close(error)
                raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await end_block(error, lambda: self._stop(patient=error is None))
        except BaseException as failure:
            await self._close(failure)
            raise
        await self._close(error)

    async def get(self, path: str, **options: Unpack[RequestOptions]) -> TestResponse:
        """``request`` with GET."""
        return await self.request("GET", path, **options)

    async def head(self, path: str, **options: Unpack[RequestOptions]) -> TestResponse:
        """``request`` with HEAD; the response has no body, even if the app sends one."""
        return await self.request("HEAD", path, **options)

    async def options(self, path: str, **options: Unpack[RequestOptions]) -> TestResponse:
        """``request`` with OPTIONS."""
        return await self.request("OPTIONS", path, **options)

    async def post(self, path: str, **options: Unpack[RequestOptions]) -> TestResponse:
        """``request`` with POST."""
        return await self.request("POST", path, **options)

    async def put(self, path: str, **options: Unpack[RequestOptions]) -> TestResponse:
        """``request`` with PUT."""
        return await self.request("PUT", path, **options)

    async def patch(self, path: str, **options: Unpack[RequestOptions]) -> TestResponse:
        """``request`` with PATCH."""
        return await self.request("PATCH", path, **options)

    async def delete(self, path: str, **options: Unpack[RequestOptions]) -> TestResponse:
        """``request`` with DELETE."""
        return await self.request("DELETE", path, **options)

    async def request(self, method: str, path: str, **options: Unpack[RequestOptions]) -> TestResponse:
        """
        Send a request; wait for the whole response and for the app's end. A cancellation disconnects the client.

        Args:
            method: In upper case.
            path: Begins with ``/``; may have a query. Whatever is not percent-encoded is encoded.
            options: See ``RequestOptions``.

        Raises:
            TimeoutError: The response was not complete, or the app had not ended, in time.
            RuntimeError: The app broke ASGI's rules.
            Exception: Whatever left the app.
            TypeError: An unknown option, or more than one of ``json``, ``data`` and ``content``.
        """
        timeout = options.get("timeout", self._timeout)
        return await request(self._http(method, path, options, max_queue=None), timeout)

    def stream(
        self, method: str, path: str, *, max_queue: int | None = None, **options: Unpack[RequestOptions]
    ) -> TestStream:
        """
        Read a response while the app sends it: ``async with client.stream("GET", "/events") as response``.

        Args:
            method: In upper case.
            path: As in ``request``.
            max_queue: Chunks that may wait here before the app's ``send`` waits too: the test is a client that does
                not read. Default: unlimited.
            options: See ``RequestOptions``; ``timeout`` is for each wait.

        Raises:
            TypeError: An unknown option, or more than one of ``json``, ``data`` and ``content``.
        """
        timeout = options.get("timeout", self._timeout)
        return TestStream(self._http(method, path, options, max_queue=max_queue), timeout=timeout)

    def websocket(
        self,
        path: str,
        *,
        headers: HeaderTypes | None = None,
        query: QueryTypes | None = None,
        cookies: Mapping[str, str] | None = None,
        subprotocols: Sequence[str] = (),
        origin: str | None = None,
        timeout: float | None = None,
        max_queue: int | None = None,
    ) -> TestWebSocket:
        """
        Open a WebSocket: ``async with client.websocket("/chat/x") as ws``.

        Entering the block raises ``WebSocketRejected`` if the app rejects the handshake, ``TimeoutError`` if it does
        not answer, ``RuntimeError`` if it returns without an answer, and whatever leaves the app.

        Args:
            path: As in ``request``.
            headers: A mapping or pairs; each name replaces the client's headers of that name.
            query: A string, a mapping or pairs; appended to the query in ``path``.
            cookies: Sent with this handshake in addition to the client's.
            subprotocols: What the client offers, in the order of its preference.
            origin: The ``Origin`` header of a browser. Default: none.
            timeout: Seconds for each wait. Default: the client's.
            max_queue: Messages that may wait here before the app's ``send`` waits too: the test is a client that does
                not read. Default: unlimited.
        """
        offered = list(subprotocols)
        # RFC 6455 §4.1.
        handshake = {
            "connection": "Upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": b64encode(secrets.token_bytes(16)).decode(),
        }
        if offered:
            handshake["sec-websocket-protocol"] = ", ".join(offered)
        if origin is not None:
            handshake["origin"] = origin
        scope = self._scopes.make(
            "websocket",
            path,
            query=query,
            headers=[handshake, self._cookie_header(path, cookies), headers or {}],
            subprotocols=offered,
            extensions={"websocket.http.response": {}} if self._denial else {},
        )
        rules = Rules("handshake" if self._denial else "handshake without denial", subprotocols=offered)
        connect = [{"type": "websocket.connect"}]
        call = AppCall(f"WebSocket {path}", scope, rules, self._settings, inbox=connect, max_queue=max_queue)
        codecs = self._codecs(scope["path"]) if self._codecs else None
        return TestWebSocket(call, codecs=codecs, timeout=self._timeout if timeout is None else timeout)

    def _http(self, method: str, path: str, options: RequestOptions, *, max_queue: int | None) -> AppCall:
        body, body_headers = encode_body(method, options)
        headers = [body_headers, self._cookie_header(path, options.get("cookies")), options.get("headers", {})]
        scope = self._scopes.make(
            "http", path, query=options.get("query"), headers=headers, method=method, extensions={}
        )
        whole = {"type": "http.request", "body": body, "more_body": False}
        return AppCall(
            f"{method} {path}",
            scope,
            Rules("request", method=method),
            self._settings,
            inbox=[whole] if isinstance(body, bytes) else [],
            body=None if isinstance(body, bytes) else body,
            max_queue=max_queue,
        )

    def _start(self, call: AppCall) -> None:
        if self._tasks is None:
            raise RuntimeError("the client is not in use: write `async with TestClient(app) as client:` around it")
        if self._failures:
            raise self._failures.pop(0)
        call.scope["state"] = dict(self._state)
        self._calls = [call for call in self._calls if not call.ended or not call.reported]
        self._tasks.start_soon(call.run, self.app, name=call.name)
        if call.body is not None:
            self._tasks.start_soon(call.feed, name=f"body of {call.name}")
        self._calls.append(call)

    def _cookie_header(self, path: str, cookies: Mapping[str, str] | None) -> dict[str, str]:
        selected = self.cookies.select(path.partition("?")[0], secure=self._scopes.secure) | dict(cookies or {})
        return {"cookie": "; ".join(f"{name}={value}" for name, value in selected.items())} if selected else {}

    async def _startup(self, call: AppCall) -> None:
        # An app that ends before it receives the event has no lifespan, and whatever it raised is expected.
        if await self._ask(call, "startup") or not call.inbox:
            call.raise_error()
        else:
            call.reported = True

    async def _shutdown(self, call: AppCall) -> None:
        if call.ended:
            call.raise_error()
            return
        answered = await self._ask(call, "shutdown")
        await call.wait_ended(self._timeout)
        if not answered:
            raise RuntimeError("lifespan: the app returned without lifespan.shutdown.complete")

    async def _ask(self, call: AppCall, phase: str) -> bool:
        call.answer = None
        call.put({"type": f"lifespan.{phase}"})
        missing = f"lifespan: no answer to lifespan.{phase}"
        await call.wait(lambda: call.answer is not None, timeout=self._timeout, waiting_for=missing)
        # mypy does not know that another task sets it.
        answer: Event | None = call.answer
        if answer is not None and answer["type"].endswith(".failed"):
            # The app usually raises its own exception next, which says more than the message.
            with anyio.move_on_after(self._timeout):
                await call.wait_until(lambda: call.ended)
            call.raise_error()
            raise RuntimeError(f"lifespan: the app's {phase} failed: {answer['message']}")
        return answer is not None

    async def _stop(self, *, patient: bool) -> None:
        for call in self._calls:
            call.disconnect()
        with anyio.move_on_after(self._timeout):
            given_up = [call for call in self._calls if not call.ended and (call.reported or not patient)]
            if given_up:
                # The test knows of these: they may see the disconnect, but the client does not wait for their end.
                await anyio.wait_all_tasks_blocked()
            for call in given_up:
                call.cancel()
            for call in self._calls:
                await call.wait_until(call.is_over)
        errors: list[Exception] = []
        for call in self._calls:
            try:
                call.settle(self._timeout)
            except Exception as error:
                errors.append(error)
        if self._lifespan:
            try:
                await self._shutdown(self._lifespan)
            except Exception as error:
                errors.append(error)
        errors += self._failures
        self._failures.clear()
        if errors:
            for second in errors[1:]:
                add_note(errors[0], second)
            raise errors[0]

    async def _close(self, error: BaseException | None) -> None:
        assert self._tasks is not None
        tasks, self._tasks = self._tasks, None
        self._lifespan, self._calls = None, []
        await tasks.close(error)
