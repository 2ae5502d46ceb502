"""The client: it runs the app's lifespan, and owns every call of the app."""

import math
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Literal, Self, TypedDict, Unpack

import anyio

from microws.datastructures import Headers
from microws.interfaces import ASGIApplication, Scope
from microws.testing.calls import AppCall, CallTasks, end_block, note, time_limit
from microws.testing.cookies import CookieJar
from microws.testing.http import HTTPCall, TestResponse, TestStream
from microws.testing.lifespan import LifespanCall
from microws.testing.scopes import (
    BodyOptions,
    HeaderTypes,
    QueryTypes,
    ScopeFactory,
    encode_body,
    websocket_headers,
)
from microws.testing.websocket import FrameCodec, TestWebSocket, WebSocketCall

__all__ = ["ClientOptions", "RequestOptions", "TestClient"]


class ClientOptions(TypedDict, total=False):
    """What ``TestClient`` takes besides the app and its codecs, and documents."""

    timeout: float
    base_url: str
    headers: HeaderTypes | None
    client: tuple[str, int] | None
    root_path: str
    lifespan: bool
    raise_errors: bool
    denial: bool
    send_after_disconnect: Literal["raise", "ignore"]


class RequestOptions(BodyOptions, total=False):
    """
    What every request takes.

    Attributes:
        headers: A mapping or ``(name, value)`` pairs; each name replaces the client's own of that name.
        query: A string, a mapping or pairs; joined to what the path has behind ``?``.
        cookies: Sent with this request besides those of the client.
        timeout: Seconds. Default: the client's.
    """

    headers: HeaderTypes
    query: QueryTypes
    cookies: Mapping[str, str]
    timeout: float


class TestClient:
    """
    Speaks to an ASGI app in memory, as a strict server would: ``async with TestClient(app) as client``.

    Entering runs the app's startup, leaving its shutdown. Each request and WebSocket is a call of the app in a task of
    the client. An exception that leaves the app is raised in the test by the request, by the WebSocket's next use, or
    at the end of a block; so is a breach of ASGI's rules, which the app gets from its ``send`` as ``RuntimeError``.
    An ``App`` answers an unexpected exception of a view or hook first, and raises it then. What leaves a task of
    ``app.start_soon`` is raised by the client's next request or at its end.
    A send of the app to a client that has left raises ``OSError`` in the app, and is no error when it leaves the app.

    Every wait has a limit and says what it waited for. An app that has not ended within ``timeout`` after its client
    left is cancelled, and reported by ``TimeoutError``. (What nothing here can end: an app that blocks the event loop,
    or swallows every cancellation.)

    Cookies that responses set are kept in ``client.cookies`` and sent back.

    Args:
        app: Any ASGI app. One that raises or returns before it takes ``lifespan.startup`` has no lifespan.
        timeout: Seconds that each wait may take, and a request as a whole.
        base_url: Scheme, host and port that the client asks.
        headers: Headers that every request and handshake carries.
        client: Address and port that the app sees as the client's.
        root_path: Where the app is mounted; paths are given with it.
        lifespan: Whether the lifespan is run.
        raise_errors: Whether exceptions are raised in the test that leave the app once it has answered, or its client
            has left. ``False`` shows what a client sees: a 500, a close with 1011. One that leaves the app before it
            has answered is always raised. Default: yes, as ``raise_server_exceptions`` of Starlette.
        denial: Whether the ``websocket.http.response`` extension is offered. Without it a refusal is always 403.
        send_after_disconnect: ``raise``: ``OSError``, as ASGI 2.4 asks of servers. ``ignore``: nothing happens, as on
            Hypercorn; ``spec_version`` is then 2.3.
        codecs: For the path of a WebSocket the codecs of what the client sends and of what it receives, or ``None``.

    Raises:
        ValueError: ``base_url`` is none.
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
        self.cookies = CookieJar()
        self._timeout = timeout
        self._raise_after_disconnect = send_after_disconnect == "raise"
        self._scopes = ScopeFactory(
            base_url=base_url,
            headers=headers,
            client=client,
            root_path=root_path,
            spec_version="2.5" if self._raise_after_disconnect else "2.3",
        )
        self._has_lifespan = lifespan
        self._raise_errors = raise_errors
        self._denial = denial
        self._codecs = codecs
        self._lifespan: LifespanCall | None = None
        self._tasks: CallTasks | None = None
        self._calls: list[AppCall] = []
        # Of the app's background tasks, until they are raised.
        self._failures: list[Exception] = []

    async def __aenter__(self) -> Self:
        if self._tasks:
            raise RuntimeError("the client is in use already; make another TestClient(app)")
        tasks = CallTasks()
        await tasks.open()
        self._tasks = tasks
        if self._has_lifespan:
            self._lifespan = LifespanCall(timeout=self._timeout)
            scope = {
                "type": "lifespan",
                "asgi": {"version": "3.0", "spec_version": "2.0"},
                "state": self._lifespan.state,
                "extensions": {"microws": {"report_error": self._failures.append}} if self._raise_errors else {},
            }
            tasks.start_soon(self._lifespan.run, self.app, scope, name="lifespan")
            try:
                await self._lifespan.startup()
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
        """``request`` with HEAD; the response has no body, whatever the app sends."""
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
        Send a request; wait for the whole response and for the app's end. Cancelled, the client leaves.

        Args:
            method: In upper case.
            path: Begins with ``/``; may carry a query. What is not percent-encoded already is encoded.
            options: See ``RequestOptions``.

        Raises:
            TimeoutError: The response, or the app's end behind it, did not come in time.
            RuntimeError: The app broke ASGI's rules.
            Exception: Whatever left the app.
            TypeError: Another option, or more than one of ``json``, ``data`` and ``content``.
        """
        timeout = options.pop("timeout", self._timeout)
        call, start = self._http(method, path, options, max_queue=None, timeout=math.inf)
        chunks = []
        with call.leaving_on_error(), time_limit(timeout, call.missing):
            await start()
            while (chunk := await call.next_chunk(math.inf)) is not None:
                chunks.append(chunk)
            await call.wait_ended(math.inf)
        return TestResponse(call.status, call.headers, b"".join(chunks))

    def stream(
        self, method: str, path: str, *, max_queue: int | None = None, **options: Unpack[RequestOptions]
    ) -> TestStream:
        """
        Open a response to be read while it comes: ``async with client.stream("GET", "/events") as response``.

        Args:
            method: In upper case.
            path: As in ``request``.
            max_queue: Chunks that may wait here before the app's ``send`` waits too; so a test can be a client that
                does not read. Default: no limit.
            options: See ``RequestOptions``; ``timeout`` is for each wait.

        Raises:
            TypeError: Another option, or more than one of ``json``, ``data`` and ``content``.
        """
        timeout = options.pop("timeout", self._timeout)
        call, start = self._http(method, path, options, max_queue=max_queue, timeout=timeout)
        return TestStream(call, start, timeout=timeout)

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

        Entering the block raises ``WebSocketRejected`` when the app refuses, ``TimeoutError`` when it does not answer,
        ``RuntimeError`` when it returns without an answer, and whatever leaves the app.

        Args:
            path: As in ``request``.
            headers: A mapping or pairs; each name replaces the client's own of that name.
            query: A string, a mapping or pairs; joined to what the path has behind ``?``.
            cookies: Sent with this handshake besides those of the client.
            subprotocols: What the client offers, its favourite first.
            origin: The ``Origin`` header of a browser. Default: none is sent.
            timeout: Seconds for each wait. Default: the client's.
            max_queue: Messages that may wait here before the app's ``send`` waits too; so a test can be a client that
                does not read. Default: no limit.
        """
        timeout = self._timeout if timeout is None else timeout
        own_headers = websocket_headers(subprotocols=list(subprotocols), origin=origin)
        scope = self._scopes.websocket(
            path,
            query=query,
            headers=[own_headers, self._cookie_header(path, cookies), headers or {}],
            subprotocols=list(subprotocols),
            denial=self._denial,
        )
        call = WebSocketCall(
            f"WebSocket {path}",
            subprotocols=list(subprotocols),
            denial=self._denial,
            max_queue=_check_max_queue(max_queue),
            raise_errors=self._raise_errors,
            raise_after_disconnect=self._raise_after_disconnect,
        )
        codecs = self._codecs(scope["path"]) if self._codecs else None
        start = partial(self._start_websocket, call, scope, timeout=timeout)
        return TestWebSocket(call, start, codecs=codecs, timeout=timeout)

    def _http(
        self, method: str, path: str, options: RequestOptions, *, max_queue: int | None, timeout: float
    ) -> tuple[HTTPCall, Callable[[], Awaitable[None]]]:
        headers = options.pop("headers", {})
        query = options.pop("query", None)
        cookies = options.pop("cookies", None)
        body, body_headers = encode_body(method, options)
        scope = self._scopes.http(
            path, method=method, query=query, headers=[body_headers, self._cookie_header(path, cookies), headers]
        )
        call = HTTPCall(
            f"{method} {path}",
            method=method,
            body=body,
            max_queue=_check_max_queue(max_queue),
            raise_errors=self._raise_errors,
            raise_after_disconnect=self._raise_after_disconnect,
        )
        return call, partial(self._start_http, call, scope, body=body, timeout=timeout)

    async def _start_http(
        self, call: HTTPCall, scope: Scope, *, body: bytes | AsyncIterable[bytes], timeout: float
    ) -> None:
        tasks = self._start(call, scope)
        if not isinstance(body, bytes):
            tasks.start_soon(call.feed, body, name=f"body of {call.name}")
        with call.leaving_on_error():
            await call.wait_started(timeout)
        self._store_cookies(call.headers.multi_items(), scope)

    async def _start_websocket(self, call: WebSocketCall, scope: Scope, *, timeout: float) -> None:
        self._start(call, scope)
        with call.leaving_on_error():
            await call.wait_answered(timeout)
            if call.rejection:
                self._store_cookies(call.rejection.headers, scope)
                await call.wait_ended(timeout)
                raise call.rejection
        assert call.accept is not None
        self._store_cookies(Headers(call.accept["headers"]).multi_items(), scope)

    def _start(self, call: AppCall, scope: Scope) -> CallTasks:
        if self._tasks is None:
            raise RuntimeError("the client is not in use: write `async with TestClient(app) as client:` around it")
        if self._failures:
            raise self._failures.pop(0)
        scope["state"] = dict(self._lifespan.state) if self._lifespan else {}
        self._calls = [call for call in self._calls if not call.ended or not call.reported]
        self._tasks.start_soon(call.run, self.app, scope, name=call.name)
        call.is_started = True
        self._calls.append(call)
        return self._tasks

    def _cookie_header(self, path: str, cookies: Mapping[str, str] | None) -> dict[str, str]:
        selected = self.cookies.select(path.partition("?")[0], secure=self._scopes.secure) | dict(cookies or {})
        return {"cookie": "; ".join(f"{name}={value}" for name, value in selected.items())} if selected else {}

    def _store_cookies(self, headers: list[tuple[str, str]], scope: Scope) -> None:
        for name, value in headers:
            if name == "set-cookie":
                self.cookies.store(value, request_path=scope["path"])

    async def _stop(self, *, patient: bool) -> None:
        for call in self._calls:
            call.disconnect()
        with anyio.move_on_after(self._timeout):
            given_up = [call for call in self._calls if not call.ended and (call.reported or not patient)]
            if given_up:
                # The test knows of these: they may see that their client has left, but nobody waits for more.
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
                await self._lifespan.shutdown()
            except Exception as error:
                errors.append(error)
        errors += self._failures
        self._failures.clear()
        if errors:
            for second in errors[1:]:
                note(errors[0], second)
            raise errors[0]

    async def _close(self, error: BaseException | None) -> None:
        assert self._tasks is not None
        tasks, self._tasks = self._tasks, None
        self._lifespan, self._calls = None, []
        await tasks.close(error)


def _check_max_queue(max_queue: int | None) -> int | None:
    if max_queue is not None and max_queue < 1:
        raise ValueError(f"expected max_queue of at least 1, or None for no limit, got {max_queue}")
    return max_queue
