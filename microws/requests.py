"""``Request``, and ``BaseRequest``, which HTTP requests and WebSockets share."""

import re
import time
from collections.abc import AsyncGenerator, Callable
from importlib.util import find_spec
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeAlias, overload
from urllib.parse import quote, unquote_to_bytes

from microws.codec import json_type, loads_json
from microws.cookies import parse_cookies
from microws.datastructures import URL, Headers, MultiDict, State, parse_options, parse_query
from microws.errors import ClientDisconnect, HTTPException, InvalidMessage
from microws.handshake import parse_bearer, split_bearer
from microws.interfaces import Application, Event, Receive, Scope
from microws.routing import encode_path, root_path

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from microws.forms import UploadFile

    # Until Python 3.13, `typing` has no defaults.
    Body = TypeVar("Body", default=Any)
    Query = TypeVar("Query", default=Any)
    T = TypeVar("T")
else:
    from typing import TypeVar

    Body, Query, T = TypeVar("Body"), TypeVar("Query"), TypeVar("T")

__all__ = ["OVER", "SESSION_COOKIE", "Address", "BaseRequest", "Closers", "Request", "no_secret"]

SESSION_COOKIE: Final = "session"

# RFC 3986 §3.3, §3.4: keep the characters of the client, except those that are not allowed in a URL.
_PATH_CHARACTERS = "/%!$&'()*+,;=:@"
_QUERY_CHARACTERS = _PATH_CHARACTERS + "?[]"
_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
# A Content-Length has at most 19 digits; int() raises for numbers over 4,300 digits.
_LENGTH = re.compile(r"[0-9]{1,19}")
# Some other codecs of Python take quadratic time, and Python caches every unknown name without a limit. `re` compiles
# and keeps a `str` at its first use, which few apps have.
_CHARSET = (
    r"(?i)utf-?(8|16|32)|utf-(16|32)[bl]e|(us-)?ascii|latin-?1|iso-8859-([1-9]|1[013-6])|windows-125[0-8]|koi8-[ru]|"
    r"gbk|gb2312|gb18030|big5|euc-(jp|kr)|shift_jis|iso-2022-jp"
)


# The ``closers`` of a request or connection that is over: nothing can be added.
OVER: Final = ()
Closers: TypeAlias = list[tuple[Callable[..., Any], tuple[Any, ...]]] | tuple[()] | None


def no_secret(name: str) -> str:
    """The error of what needs a secret, in an app without one."""
    # `microws dev` makes a secret, but not without this package.
    also = "" if find_spec("itsdangerous") else "; and pip install 'microws[sessions]'"
    return f"{name} needs App(secret=…): 32 random bytes or more, such as os.environ['SECRET']{also}"


class Address(NamedTuple):
    """An IP address and a port."""

    host: str
    port: int


class BaseRequest:
    """
    What an HTTP request and a WebSocket have in common: everything that the client sent before the body or messages.

    Nothing is parsed before it is used. ``headers``, ``query``, ``cookies`` and ``state`` are then kept.

    ``Request`` and ``WebSocket`` set the attributes themselves, because a chain of constructors is slower.

    Attributes:
        scope: The ASGI scope.
        app: The app that the view belongs to.
        path: The path, decoded, without the root path.
        path_params: The converted values of the route parameters.
    """

    __slots__ = ("_cookies", "_headers", "_query", "_state", "app", "closers", "path", "path_params", "scope")

    scope: Scope
    app: Application
    path: str
    path_params: dict[str, Any]
    # The functions of on_close, for the dispatchers.
    closers: Closers
    # ``None`` until used.
    _headers: Headers | None
    _query: MultiDict[str] | None
    _cookies: dict[str, str] | None
    _state: State | None

    @property
    def scheme(self) -> str:
        """``http`` or ``https``; on a WebSocket ``ws`` or ``wss``."""
        default = "ws" if self.scope["type"] == "websocket" else "http"
        return str(self.scope.get("scheme") or default)

    @property
    def url(self) -> URL:
        """The whole URL that the client requested, as far as the server and its proxies know it."""
        return URL(
            scheme=self.scheme,
            netloc=self.headers.get("host") or self._server(),
            path=self._encoded_path(),
            query=quote(self.scope.get("query_string", b""), safe=_QUERY_CHARACTERS),
        )

    @property
    def headers(self) -> Headers:
        """The request's headers."""
        if self._headers is None:
            self._headers = Headers(self.scope["headers"])
        return self._headers

    @property
    def query(self) -> MultiDict[str]:
        """The query string, decoded."""
        if self._query is None:
            self._query = parse_query(self.scope.get("query_string", b""))
        return self._query

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies. Never raises, whatever the client sent."""
        if self._cookies is None:
            # Not from ``headers``: to decode them all takes longer than the rest of reading a session.
            self._cookies = parse_cookies(
                b"; ".join([value for name, value in self.scope["headers"] if name == b"cookie"])
            )
        return self._cookies

    @property
    def bearer(self) -> str | None:
        """
        The token of ``Authorization: Bearer TOKEN``, or of a WebSocket that offers the subprotocols ``bearer, TOKEN``.

        A page opens such a WebSocket with ``new WebSocket(url, ["bearer", token])``, also beside other subprotocols.
        ``accept`` then chooses ``bearer`` if it chooses no other one, and never the token. A token with ``=`` or ``/``
        cannot be a subprotocol: encode it as base64url without padding, or use ``take_ticket``.

        ``None`` if there is no token, or it is malformed: not a token of RFC 6750, or given twice. If the header is
        there, the subprotocols do not count. microws does not check the token, and writes it to no log.

        Source: RFC 6750 §2.1; RFC 6455 §4.1, item 10.
        """
        values = self.headers.getlist("authorization")
        if values:
            return parse_bearer(values[0]) if len(values) == 1 else None
        return split_bearer(self.scope.get("subprotocols") or ())[0]

    @property
    def client(self) -> Address | None:
        """Address of the client; ``None`` if the server does not know it, for example on a Unix socket."""
        client = self.scope.get("client")
        return Address(client[0], client[1]) if client else None

    @property
    def state(self) -> State:
        """
        Values that middleware, hooks and the view share for this connection.

        The initial values are those that the lifespan yielded, which is ASGI's ``state``. The dict in
        ``scope["state"]`` is shared with the middleware around the app. Other connections do not see a name that you
        set here, because the server makes a dict for each.

        Source: https://asgi.readthedocs.io/en/latest/specs/lifespan.html#lifespan-state
        """
        if self._state is None:
            values = self.scope.get("state")
            if values is None:
                values = self.scope["state"] = {}
            self._state = State(values)
        return self._state

    def url_for(self, name: str, /, **params: Any) -> str:
        """
        Return the path of the route with that name, with the root path of this connection, for a link on a page.

        Raises:
            RoutingError: No route has that name, or a parameter is missing or does not fit.
        """
        return encode_path(root_path(self.scope)) + self.app.url_for(name, **params)

    def on_close(self, function: Callable[..., Any], *args: Any) -> None:
        """
        Call ``function(*args)`` when the request or connection is over: after a response, an error or a disconnect.

        A request is over when its response, or the end of its stream, has been sent. A WebSocket is over when the view,
        its hooks and its tasks have ended, and the connection has ended or its Close frame is on the way. The functions
        run one by one, the last one first. Each has ``App(close_timeout=5)`` seconds, during which nothing cancels it.
        If one fails, microws logs that and calls the others.

        Args:
            function: ``async def``, or a plain function, which runs in a worker thread. Its result is ignored.

        Raises:
            RuntimeError: The request or connection is over.
            TypeError: ``function`` cannot be called.

        Source: contextlib.AsyncExitStack, for the order.
        """
        if not callable(function):
            raise TypeError(
                f"expected a function for on_close, got {type(function).__name__}; write on_close(release, slot), not "
                "on_close(release(slot))"
            )
        if self.closers is None:
            self.closers = []
        if isinstance(self.closers, tuple):
            raise RuntimeError("on_close was called after the end: call it in the view or in a hook")
        self.closers.append((function, args))

    def _read_session(self, name: str) -> tuple[bytes, dict[str, Any]]:
        """The session in the client's cookie, as JSON and decoded; empty without a valid cookie."""
        signing = self.app.signing
        if signing is None:
            raise RuntimeError(no_secret(name))
        signed = self.cookies.get(SESSION_COOKIE)
        data = None if signed is None else signing.session.verify(signed, context=root_path(self.scope))
        if data is not None:
            written, text = data[1:-1].split(b",", 1)
            if time.time() - int(written) <= self.app.session_max_age:
                return text, loads_json(text)
        return b"{}", {}

    def _server(self) -> str:
        host, port = self.scope.get("server") or ("localhost", None)
        if port is None:
            return "localhost"
        host = f"[{host}]" if ":" in host else host
        return host if port == _DEFAULT_PORTS.get(self.scheme) else f"{host}:{port}"

    def _encoded_path(self) -> str:
        root, path = root_path(self.scope), self.scope["path"]
        raw = (self.scope.get("raw_path") or b"").partition(b"?")[0]
        # Middleware that rewrites the path does not change raw_path.
        if raw.isascii() and unquote_to_bytes(raw).decode(errors="replace") == path:
            encoded = quote(raw, safe=_PATH_CHARACTERS)
        else:
            encoded = encode_path(path)
        # Some servers put the root path before the path, some do not.
        if path != root and not path.startswith(f"{root}/"):
            encoded = encode_path(root) + encoded
        return encoded


class Request(BaseRequest, Generic[Body, Query]):
    """
    One HTTP request. Its body is read when the view asks for it, by one task at a time.

    ``Request[Vote]`` is one whose ``json()`` is a ``Vote``, and ``Request[Vote, Filter]`` one whose ``typed_query`` is
    a ``Filter`` besides.

    Args:
        receive: ASGI's ``receive``.
        max_body_size: Maximum bytes of the body; 0 allows none, ``None`` is unlimited.

    Attributes:
        body_type: The type of the body, for ``json()``. Default: any.
        typed_query: The query, as a value of the type that the route has for it. Default: ``None``.
    """

    __slots__ = (
        "_body",
        "_chunks",
        "_complete",
        "_consumed",
        "_disconnected",
        "_max_body_size",
        "_receive",
        "_session",
        "_size",
        "body_type",
        "session_before",
        "typed_query",
    )

    if not TYPE_CHECKING:

        def __class_getitem__(cls, types):
            return GenericAlias(cls, types)

    def __init__(
        self,
        scope: Scope,
        app: Application,
        path: str,
        path_params: dict[str, Any],
        receive: Receive,
        max_body_size: int | None,
    ) -> None:
        # The parameters are positional: with keywords, Python takes twice as long to make an object.
        self.scope = scope
        self.app = app
        self.path = path
        self.path_params = path_params
        self._headers = self._query = self._cookies = self._state = None
        self.closers: Closers = None
        # The session that the client sent, as JSON; ``None`` until it is used.
        self.session_before: bytes | None = None
        self.body_type: Any = None
        self.typed_query: Query = None  # type: ignore[assignment]
        self._receive = receive
        self._max_body_size = max_body_size
        self._chunks: list[bytes] = []
        self._size = 0
        self._body: bytes | None = None
        self._complete = False
        self._consumed = False
        self._disconnected = False

    @property
    def method(self) -> str:
        """The method, in upper case."""
        return str(self.scope["method"])

    @property
    def session(self) -> dict[str, Any]:
        """
        Values that the client's later requests and WebSockets have, too: JSON values, by name.

        They are in a cookie that is signed with ``App(secret=…)``: the client can read it, but not change it. The
        response sets the cookie if the values have changed, and deletes it if there are none. The cookie is hidden from
        JavaScript, and not sent with unsafe requests of foreign pages. It is sent over TLS only, if the request was.
        Browsers send it to this app alone, if it is mounted; ``session`` of another app is not this one. It holds 4 KiB
        at most: a larger one is a ``ValueError`` after the view. After ``App(session_max_age=…)`` seconds without a
        change, or if the cookie is not valid, the session is empty. A copy of the cookie is valid until then, even if
        the session was emptied.

        Raises:
            RuntimeError: The app has no secret.

        Source: Flask's and Starlette's sessions; RFC 6265 §6.1.
        """
        if self.session_before is None:
            self.session_before, self._session = self._read_session("request.session")
        return self._session

    async def body(self) -> bytes:
        """
        Return the whole body.

        Waits until the body has arrived. If the wait is cancelled, nothing is lost, and you may call this again.

        Raises:
            HTTPException: 413: the body is larger than ``max_body_size``. Raised before reading if the client declares
                its length.
            ClientDisconnect: The client disconnected before the whole body had arrived.
            RuntimeError: ``stream()`` has read the body.
        """
        if self._body is None:
            self._check_readable("body()")
            while not self._complete:
                self._chunks.append(await self._next_chunk())
            self._body = b"".join(self._chunks)
            self._chunks.clear()
        return self._body

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """
        Iterate over the chunks of the body as they arrive, once. They are not kept. After ``body()`` there is one
        chunk.

        Raises:
            HTTPException: 413, as ``body()``.
            ClientDisconnect: The client disconnected before the whole body had arrived.
            RuntimeError: ``stream()`` has read the body.
        """
        if self._body is not None:
            yield self._body
            return
        self._check_readable("stream()")
        self._consumed = True
        while self._chunks:
            yield self._chunks.pop(0)
        while not self._complete:
            if chunk := await self._next_chunk():
                yield chunk

    async def text(self) -> str:
        """
        Return the body as text, in the charset of Content-Type, by default UTF-8.

        Raises:
            HTTPException: 400: the charset is unknown, or the body is not valid in it; 413, as ``body()``.
            ClientDisconnect, RuntimeError: As ``body()``.
        """
        body = await self.body()
        charset = parse_options(self.headers.get("content-type", ""))[1].get("charset") or "utf-8"
        if not re.fullmatch(_CHARSET, charset):
            raise HTTPException(400, f"unknown charset {charset[:40]!r}; send utf-8")
        try:
            return body.decode(charset)
        except UnicodeError:
            raise HTTPException(400, f"the request's body is not valid {charset}") from None

    @overload
    async def json(self) -> Body: ...

    @overload
    async def json(self, type: type[T]) -> T: ...

    @overload
    async def json(self, type: Any) -> Any: ...

    async def json(self, type: Any = None) -> Any:  # noqa: A002
        """
        Return the body decoded as JSON in UTF-8, whatever Content-Type is.

        Args:
            type: Of the value, in place of that of ``Request[…]``.

        Raises:
            HTTPException: 400: invalid JSON, or not of the type, with the decoder's message, which says where; 413, as
                ``body()``.
            ClientDisconnect, RuntimeError: As ``body()``.
            TypeError: JSON cannot carry ``type``.
            FeatureUnavailable: ``type`` needs msgspec.
        """
        wanted = self.body_type if type is None else type
        body = await self.body()
        try:
            return loads_json(body) if wanted is None else json_type(wanted).decode(body)
        except InvalidMessage as error:
            raise HTTPException(400, str(error)) from None

    async def form(self) -> "MultiDict[str | UploadFile]":
        """
        Return the fields of a form, in order; files are ``UploadFile``.

        Multipart forms (those with files) need the extra ``forms``. A form may have 1,000 fields.

        Raises:
            HTTPException: 415: the body is not a form; 400: the form is invalid; 413, as ``body()``.
            FeatureUnavailable: The form is multipart, and the extra is not installed.
            ClientDisconnect, RuntimeError: As ``body()``.

        Source: https://url.spec.whatwg.org/#urlencoded-parsing, RFC 7578.
        """
        from microws.forms import FORM_TYPES, parse_form  # here, because few apps have forms

        content_type = self.headers.get("content-type", "")
        kind = parse_options(content_type)[0]
        if kind not in FORM_TYPES:
            raise HTTPException(415, f"expected a form ({' or '.join(FORM_TYPES)}), got {kind[:80] or 'no type'}")
        body = await self.body()
        try:
            return parse_form(body, content_type=content_type)
        except ValueError as error:
            raise HTTPException(400, f"invalid form: {error}") from None

    @property
    def body_complete(self) -> bool:
        """Whether the whole body has arrived, read by the view or not."""
        return self._complete

    async def receive_event(self) -> Event:
        """
        Return the next raw ASGI event: a part of the body, which ``body()`` then no longer has, or the disconnect.

        After a disconnect, every call returns that event. Code that calls ``receive`` after the request has must use
        this method instead.
        """
        event = await self._next_event()
        if event["type"] == "http.request":
            self._consumed = True
        return event

    async def drain(self) -> None:
        """Discard the body until it has arrived or the client has disconnected. Has no time-out of its own."""
        while not (self._complete or self._disconnected):
            await self.receive_event()

    async def wait_disconnect(self) -> None:
        """Wait until the client disconnects. The rest of the body is discarded."""
        while not self._disconnected:
            await self.receive_event()

    async def _next_event(self) -> Event:
        # Some servers send the disconnect only once; a second call would never return.
        if self._disconnected:
            return {"type": "http.disconnect"}
        event = await self._receive()
        if event["type"] == "http.disconnect":
            self._disconnected = True
        else:
            self._complete = not event.get("more_body", False)
        return event

    async def _next_chunk(self) -> bytes:
        event = await self._next_event()
        if event["type"] == "http.disconnect":
            raise ClientDisconnect("the client disconnected before its request's body had arrived")
        chunk: bytes = event.get("body", b"")
        self._size += len(chunk)
        self._check_size(self._size)
        return chunk

    def _check_readable(self, method: str) -> None:
        if self._consumed:
            raise RuntimeError(
                f"{method} was called after the request's body had been read in chunks, for example by stream(), which "
                "are not kept; call body() first, then as often as you like"
            )
        length = self.headers.get("content-length", "")
        if _LENGTH.fullmatch(length):
            self._check_size(int(length))
        self._check_size(self._size)

    def _check_size(self, size: int) -> None:
        if self._max_body_size is not None and size > self._max_body_size:
            raise HTTPException(413, f"expected a body of at most {self._max_body_size} bytes")
