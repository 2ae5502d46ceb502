"""
What users write, as a type checker sees it: `make types` checks it, and nobody runs it.

Each `type: ignore` marks a misuse that has to be an error: where it is none, mypy says that the comment is unused.
"""

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, ParamSpec, TypeVar, assert_type

import httpx
import uvicorn

from microws import (
    URL,
    App,
    ClientDisconnect,
    CloseCode,
    Codec,
    EventStream,
    FeatureUnavailable,
    FileResponse,
    Headers,
    HTTPException,
    HubUnavailable,
    InvalidMessage,
    JSONResponse,
    Message,
    MessageError,
    MicrowsError,
    MultiDict,
    OpenConnection,
    Overflow,
    PayloadTypeError,
    PublishTimeout,
    Receipt,
    RedirectResponse,
    Request,
    Response,
    RoutingError,
    ServerSentEvent,
    State,
    StreamingResponse,
    TooManySubscriptions,
    UploadFile,
    WebSocket,
    WebSocketDisconnect,
    WebSocketRejected,
    connect_hub,
)
from microws.hub_connection import BlockingHubConnection, HubConnection
from microws.interfaces import ASGIApplication, Event, Receive, Scope, Send
from microws.requests import Address
from microws.responses import ResponseHeaders
from microws.testing import ReceivedEvent, TestClient, TestResponse, TestStream, TestWebSocket

P = ParamSpec("P")
T = TypeVar("T")

# One positional argument too many is compared with a keyword; with which one depends on mypy's cache. This fits all.
anything: Any = None

# The app and its settings

app = App()
App(
    max_message_size=1 << 16,
    max_fragments=16,
    receive_queue=8,
    max_body_size=0,
    send_timeout=1,
    accept_timeout=0.5,
    close_timeout=2.5,
    origins=["https://app.example"],
    error_close_code=CloseCode.TRY_AGAIN_LATER,
    redirect_slashes=False,
    debug=True,
    templates=Path("pages"),
)
App(threads=100, json_default=str)
App(json_default="str")  # type: ignore[arg-type]
App(secret="x" * 32, session_max_age=3600)
App(secret=[b"x" * 32, "y" * 32])
App(secret=1)  # type: ignore[arg-type]
ticket: str = app.ticket({"user": "anna"}, path="/chat", ttl=10)
app.ticket("anna")  # type: ignore[call-arg]
app.ticket("anna", "/chat")  # type: ignore[call-arg]
assert_type(app.asyncapi(title="Chat", version="1.2"), dict[str, Any])
assert_type(app.openapi(), dict[str, Any])
app.openapi("Chat")  # type: ignore[call-arg]
App(1024)  # type: ignore[call-arg]
App(origin=["*"])  # type: ignore[call-arg]
App(max_message_size="1MiB")  # type: ignore[arg-type]

# HTTP views: a decorator leaves a view its type


@app.route("/")
async def page(request: Request) -> str:
    return app.render("page.html", title="chat", link=app.url_for("announce", room=1))


@app.route("/announce/{room}", methods=["POST", "PUT"], name="announce")
async def announce(request: Request, room: str) -> tuple[dict[str, int], int]:
    receipt = await app.publish(f"chat:{room}", await request.json())
    return {"subscribers": receipt.subscribers}, 202


@app.get("/plain/{number:int}")
def plain(number: int) -> dict[str, int]:
    assert_type(app.publish_from_thread("numbers", number), Receipt)
    return {"number": number}


@app.post("/change", name="create")
@app.put("/change")
@app.patch("/change")
@app.delete("/change")
async def change() -> None: ...


class Counter:
    async def __call__(self, request: Request) -> str:
        return "1"


assert_type(app.get("/counter")(Counter()), Counter)
app.add_route(page, "/added", methods={"GET"}, name="added")

app.add_route("/added", page)  # type: ignore[arg-type]
app.route("/", ["POST"])  # type: ignore[call-arg]
app.route("/", method="POST")  # type: ignore[call-arg]
app.get("/", methods=["GET"])  # type: ignore[call-arg]
app.get("/")("page")  # type: ignore[type-var]


async def call_views(request: Request) -> None:
    assert_type(await page(request), str)
    assert_type(await announce(request, "x"), tuple[dict[str, int], int])
    assert_type(await announce(request, room="x"), tuple[dict[str, int], int])
    assert_type(plain(1), dict[str, int])
    await page()  # type: ignore[call-arg]
    await announce(request, 1)  # type: ignore[arg-type]


# WebSocket views


@app.websocket_route("/echo")
async def echo(ws: WebSocket) -> None:
    async with ws as same:
        assert_type(same, WebSocket)
        async for message in ws:
            assert_type(message, Any)
            await ws.send(message)


@dataclass
class Point:
    x: int
    y: int


@app.websocket_route(
    "/chat/{room}",
    value_type="json",
    receive_type=Point,
    send_type=Point | None,
    catch_disconnect=False,
    subprotocols=("v2", "v1"),
    origins=["*"],
    subscribe=["chat:{room}", "all"],
    gaps=True,
    on_invalid="skip",
    login=lambda ws, message: message["user"],
    login_timeout=1.5,
    rate="20/s",
    rate_excess="close",
    name="chat",
)
async def chat(ws: WebSocket, room: str) -> int:
    return 1


@app.websocket_route("/untyped/{room}", subscribe="chat:{room}")
async def untyped(ws, room):  # type: ignore[no-untyped-def]
    async with ws:
        await ws.send(room)


def logged(view: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    @functools.wraps(view)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return await view(*args, **kwargs)

    return wrapper


@app.websocket_route("/logged/{room}")
@logged
async def decorated(ws: WebSocket, room: str) -> None: ...


class Game:
    async def play(self, ws: WebSocket) -> None: ...


app.add_websocket_route(Game().play, "/game", value_type="bytes", on_invalid="close")
app.add_websocket_route(functools.partial(chat, room="lobby"), "/lobby")


async def call_websocket_views(ws: WebSocket) -> None:
    assert_type(await chat(ws, room="x"), int)
    await chat(ws)  # type: ignore[call-arg]
    await decorated(ws, 1)  # type: ignore[arg-type]


def no_coroutine(ws: WebSocket) -> None: ...
async def generator(ws: WebSocket) -> AsyncGenerator[str, None]:
    yield ""


app.websocket_route("/")(no_coroutine)  # type: ignore[type-var]
app.websocket_route("/")(generator)  # type: ignore[type-var]
app.websocket_route("/", "json")  # type: ignore[call-arg]
app.websocket_route("/", on_invalid="ignore")  # type: ignore[arg-type]
app.websocket_route("/", login="anna")  # type: ignore[arg-type]
app.websocket_route("/", rate=20)  # type: ignore[arg-type]
app.websocket_route("/", rate="20/s", rate_excess="drop")  # type: ignore[arg-type]
app.websocket_route("/", valuetype="json")  # type: ignore[call-arg]
app.websocket_route("/", catch_disconnect="no")  # type: ignore[arg-type]
app.websocket_route("/", subscribe=1)  # type: ignore[arg-type]
app.websocket_route("/", subscribe="chat", since="start")
app.websocket_route("/", subscribe="chat", since="begin")  # type: ignore[arg-type]
app.websocket_route("/", methods=["GET"])  # type: ignore[call-arg]
app.add_websocket_route(no_coroutine, "/")  # type: ignore[arg-type]
app.add_websocket_route(echo, "/", anything)  # type: ignore[call-arg]
app.add_websocket_route(echo, "/", on_invalid="ignore")  # type: ignore[arg-type]
app.add_websocket_route(echo, "/", valuetype="json")  # type: ignore[call-arg]


# What a view is given


async def connection(request: Request, ws: WebSocket) -> None:
    for each in (request, ws):
        assert_type(each.path, str)
        assert_type(each.scheme, str)
        assert_type(each.url, URL)
        assert_type(each.url.port, int | None)
        assert_type(each.headers, Headers)
        assert_type(each.headers["host"], str)
        assert_type(each.headers.get("host"), str | None)
        assert_type(each.bearer, str | None)
        assert_type(each.query, MultiDict[str])
        assert_type(each.query.get("page", "1"), str)
        assert_type(each.query.getlist("tag"), list[str])
        assert_type(each.query.multi_items(), list[tuple[str, str]])
        assert_type(each.cookies, dict[str, str])
        assert_type(each.client, Address | None)
        assert_type(each.path_params, dict[str, Any])
        assert_type(each.state, State)
        assert_type(each.state.user, Any)
        assert_type(each.url_for("chat", room="x"), str)
        assert_type(await each.app.publish("all", "x"), Receipt)
        assert_type(each.app.state.database, Any)
        assert_type(each.app.url_for("chat", room="x"), str)
        assert_type(each.app.render("page.html", title="x"), str)
        assert_type(each.app.hub.statistics(), Any)
        each.app.start_soon(change)
        each.state.user = "Anna"
        each.headers["host"] = "x"  # type: ignore[index]
        each.url_for(room="x")  # type: ignore[call-arg]
        each.args  # type: ignore[union-attr] # noqa: B018
    if request.client is not None:
        assert_type(request.client.host, str)


async def read(request: Request) -> None:
    assert_type(request.method, str)
    assert_type(await request.body(), bytes)
    assert_type(await request.text(), str)
    assert_type(await request.json(), Any)
    form = await request.form()
    assert_type(form["name"], str | UploadFile)
    if isinstance(file := form["file"], UploadFile):
        assert_type(file.content, bytes)
    async for chunk in request.stream():
        assert_type(chunk, bytes)
    len(request.body())  # type: ignore[arg-type]
    request.json.get("name")  # type: ignore[attr-defined]


# The WebSocket


async def use(ws: WebSocket) -> None:
    assert_type(ws.id, str)
    assert_type(ws.subprotocols, list[str])
    assert_type(ws.subprotocol, str | None)
    assert_type(ws.accepted, bool)
    assert_type(ws.closed, bool)
    assert_type(ws.close_code, int | None)
    assert_type(ws.close_reason, str)

    await ws.accept()
    await ws.accept("v2", headers={"x-room": "1"})
    await ws.accept(headers=[("set-cookie", "a=1"), ("set-cookie", "b=2")])
    await ws.accept("v2", {"x-room": "1"})  # type: ignore[call-arg]
    await ws.reject()
    await ws.reject(401, {"error": "who are you?"}, headers={"www-authenticate": "Bearer"})
    await ws.reject("no")  # type: ignore[arg-type]

    assert_type(await ws.receive(), Any)
    assert_type(await ws.receive(timeout=0.5, type="json"), Any)
    assert_type(await ws.receive_text(), str)
    assert_type(await ws.receive_text(timeout=1), str)
    assert_type(await ws.receive_bytes(), bytes)
    assert_type(await ws.receive_json(), Any)
    assert_type(await ws.receive_event(), Event)
    await ws.receive(1)  # type: ignore[call-overload]
    await ws.receive_text(type="json")  # type: ignore[call-arg]

    await ws.send({"any": "value"})
    await ws.send(b"", type="bytes")
    await ws.send_text("text")
    await ws.send_bytes(memoryview(b"bytes"))
    await ws.send_json([1, None])
    await ws.send_event({"type": "websocket.send", "text": ""})
    await ws.send("x", "text")  # type: ignore[call-overload]
    await ws.send_text(b"")  # type: ignore[arg-type]
    await ws.send_bytes("")  # type: ignore[arg-type]

    await ws.subscribe("a", "b")
    await ws.unsubscribe("a", "b")
    assert_type(await ws.publish("a", {"any": "value"}), Receipt)
    await ws.subscribe(["a", "b"])  # type: ignore[arg-type]

    ws.tag(user="anna", device=5, phone=None)
    ws.tag("anna")  # type: ignore[call-arg]
    ws.tag(user=1.5)  # type: ignore[arg-type]
    ws.expire(datetime.now(UTC), code=4401, reason="log in again")
    ws.expire(1e9)
    ws.expire(None)
    ws.expire("2030-01-01")  # type: ignore[arg-type]

    ws.start_soon(announce, ws, "x")
    await ws.wait_closed()
    ws.on_close(announce, ws, "x")
    ws.on_close(print, 1)
    ws.on_close()  # type: ignore[call-arg]
    ws.start_soon(no_coroutine, ws)  # type: ignore[arg-type]
    ws.start_soon(echo(ws))  # type: ignore[arg-type]

    await ws.close()
    await ws.close(CloseCode.GOING_AWAY, "see you")
    await ws.close("see you")  # type: ignore[arg-type]


async def after_the_block(ws: WebSocket) -> str:
    # A WebSocketDisconnect may have ended the block: what follows it is reached.
    async with ws:
        return await ws.receive_text()
    return "gone"


# Topics

app.topic("chat:*")
app.topic("prices", queue=16, overflow="latest", key="symbol")
app.topic("prices:*", overflow="latest", key=lambda message: message["symbol"])
app.topic("chat:*", 16)  # type: ignore[call-arg]
app.topic("chat:*", overflow="block")  # type: ignore[arg-type]


async def topics() -> None:
    receipt = await app.publish("chat:1", {"any": "value"})
    assert_type(receipt, Receipt)
    assert_type(receipt.subscribers, int)
    assert_type(receipt.id, str | None)
    async with app.subscribe("chat:1", "chat:2") as messages:
        async for message in messages:
            assert_type(message, Any)
    assert_type(await app.disconnect(topic="user:42", code=4001, reason="logged out"), int)
    assert_type(await app.disconnect(id="1"), int)
    assert_type(await app.disconnect(user="anna", device=5, code=4403), int)
    assert_type(app.connections(user="anna"), list[OpenConnection])
    assert_type(await app.hub.connections(), list[OpenConnection])
    app.connections(user=None)  # type: ignore[arg-type]
    await app.disconnect("user:42")  # type: ignore[call-arg]
    assert_type((await app.hub.cluster_statistics()).history_bytes, int)
    assert_type(app.state, State)
    assert_type(app.hub.statistics().topics, int)
    assert_type(app.hub_url, str)
    await app.publish("chat:1")  # type: ignore[call-arg]
    await app.publish(1, "x")  # type: ignore[arg-type]
    async for _ in app.publish("chat:1", "x"):  # type: ignore[attr-defined]
        pass


async def another_program() -> None:
    async with connect_hub("local:/run/chat", mount="/admin", json_default=str) as hub:
        assert_type(hub, HubConnection)
        assert_type(await hub.publish("chat:1", {"any": "value"}, key="1"), Receipt)
        assert_type(await hub.position("chat:1"), str)
        async with hub.subscribe("chat:1", "chat:2", since={"chat:1": "start"}) as messages:
            async for message in messages:
                assert_type(message, Any)
            assert_type(messages.position, str | None)


def cron_job() -> None:
    try:
        with connect_hub() as hub:
            assert_type(hub, BlockingHubConnection)
            assert_type(hub.publish("chat:1", b"any", key="1"), Receipt)
            assert_type(hub.position("chat:1"), str)
            hub.subscribe("chat:1")  # type: ignore[attr-defined]
    except (HubUnavailable, PublishTimeout):
        pass
    connect_hub(mount=1)  # type: ignore[arg-type]


app.health(hub=True)


@app.get("/events")
async def events(request: Request) -> EventStream:
    app.stream("chat:1", "chat:2", event="chat")
    app.stream("chat:1", event=lambda topic: topic.partition(":")[0])
    app.stream("chat:1", event=lambda topic: None if topic == "chat:1" else topic)
    app.stream("chat:1", event=7)  # type: ignore[arg-type]
    app.stream(["chat:1", "chat:2"])  # type: ignore[arg-type]
    return EventStream(app.stream("chat:1"), keepalive=30, retry=1000)


async def topics_of_a_blueprint(request: Request) -> EventStream:
    async with request.app.subscribe("chat:1") as messages:
        async for message in messages:
            assert_type(message, Any)
            assert_type(messages.topic, str)
    assert_type(await request.app.disconnect(topic="chat:1"), int)
    assert_type(request.app.publish_from_thread("chat:1", "x"), Receipt)
    return EventStream(request.app.stream("chat:1", "chat:2", event="chat"))


# Responses


def chunks() -> Iterator[str]:
    yield ""


async def events_of_its_own() -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent("text", event="news", id="7", retry=1000)


def responses() -> None:
    response = Response("<p>", 201, {"x-page": "1"}, content_type="text/html")
    assert_type(response.status, int)
    assert_type(response.body, bytes)
    assert_type(response.headers, ResponseHeaders)
    assert_type(response.headers["x-page"], str)
    response.headers["x-page"] = "2"
    response.headers.add("vary", "accept")
    response.set_cookie("a", "1", max_age=60, secure=True, httponly=True, samesite="strict")
    response.set_cookie("a", "1", expires=datetime.now(UTC))
    response.delete_cookie("a", path="/")
    all_of_them: list[Response] = [
        response,
        JSONResponse({"any": "value"}, 202, [("x-page", "1")]),
        RedirectResponse("/", 303),
        FileResponse(Path("report.pdf"), filename="report.pdf"),
        StreamingResponse(chunks(), content_type="text/plain"),
        EventStream(events_of_its_own(), headers={"x-page": "1"}),
    ]
    as_asgi: list[ASGIApplication] = [*all_of_them]
    assert as_asgi

    Response({"any": "value"})  # type: ignore[arg-type]
    Response("", "404")  # type: ignore[arg-type]
    Response("", 200, {}, "text/html")  # type: ignore[call-arg]
    Response("", status_code=404)  # type: ignore[call-arg]
    Response("", headers={"x-page": 1})  # type: ignore[arg-type]
    response.headers["x-page"] = 1  # type: ignore[assignment]
    response.set_cookie("a", "1", samesite="lenient")  # type: ignore[arg-type]
    response.set_cookie("a", "1", 60)  # type: ignore[call-arg]
    RedirectResponse()  # type: ignore[call-arg]
    FileResponse("report.pdf", 200)  # type: ignore[call-arg]
    StreamingResponse(1)  # type: ignore[arg-type]
    EventStream(events_of_its_own(), {"x-page": "1"})  # type: ignore[call-arg]
    ServerSentEvent("text", "news")  # type: ignore[call-arg]


# Errors


class SoldOut(Exception):
    article: str


@app.error_handler(SoldOut)
async def sold_out(request: Request, error: SoldOut) -> tuple[str, int]:
    return error.article, 409


@app.error_handler(404)
def not_found(connection: Request | WebSocket, error: HTTPException) -> Response:
    return Response(error.detail, error.status)


async def call_error_handlers(request: Request) -> None:
    assert_type(await sold_out(request, SoldOut()), tuple[str, int])
    assert_type(not_found(request, HTTPException(404)), Response)


app.error_handler("404")  # type: ignore[arg-type]
app.error_handler(KeyboardInterrupt)  # type: ignore[arg-type]
app.error_handler(404)(change)  # type: ignore[type-var]


async def errors(ws: WebSocket) -> None:
    try:
        await ws.receive()
    except WebSocketDisconnect as end:
        assert_type(end.code, int)
        assert_type(end.reason, str)
    except (InvalidMessage, RoutingError) as wrong_value:
        a_value_error: ValueError = wrong_value
        raise HTTPException(422, str(a_value_error), headers={"x-page": "1"}) from None
    except PayloadTypeError as wrong_type:
        a_type_error: TypeError = wrong_type
        raise a_type_error from None
    except PublishTimeout as timeout:
        a_timeout: TimeoutError = timeout
        raise a_timeout from None
    except FeatureUnavailable as missing:
        not_implemented: NotImplementedError = missing
        raise not_implemented from None
    except TooManySubscriptions as limit:
        assert_type(limit.maximum, int)
        assert_type(limit.count, int)
    except (ClientDisconnect, Overflow) as other:
        in_one_tree: MicrowsError = other
        raise in_one_tree from None
    HTTPException(404, {"error": "not found"})
    HTTPException(404, b"not found")  # type: ignore[arg-type]
    HTTPException("not found")  # type: ignore[arg-type]
    HTTPException(404, "not found", {})  # type: ignore[call-arg]


# Around the views


@app.before_request
async def check_key(request: Request) -> tuple[str, int] | None:
    return None if "x-key" in request.headers else ("wrong key", 403)


@app.after_request
def no_store(request: Request, response: Response) -> None:
    response.headers["cache-control"] = "no-store"


@app.before_websocket
@app.after_websocket
async def note(ws: WebSocket) -> None: ...


@app.on_startup
@app.on_shutdown
async def connect() -> int:
    app.start_soon(announce, "x")
    return 1


@app.lifespan
@asynccontextmanager
async def database(app: App) -> AsyncIterator[None]:
    app.state.database = "connected"
    yield


@app.lifespan
async def without_a_decorator(app: App) -> AsyncIterator[None]:
    yield


async def call_hooks(request: Request, ws: WebSocket) -> None:
    assert_type(await check_key(request), tuple[str, int] | None)
    no_store(request, Response())
    await note(ws)
    assert_type(await connect(), int)
    async with database(app) as nothing:
        assert_type(nothing, None)
    async for _ in without_a_decorator(app):
        pass


app.before_request(note)  # type: ignore[type-var]
app.before_request(no_store)  # type: ignore[type-var]
app.after_request(check_key)  # type: ignore[type-var]
app.before_websocket(check_key)  # type: ignore[type-var]
app.on_startup(note)  # type: ignore[type-var]
app.on_shutdown("connect")  # type: ignore[type-var]
app.lifespan(connect)  # type: ignore[type-var]


async def serve_elsewhere() -> dict[str, Any]:
    async with app.running() as state:
        return state


app.start_soon(no_coroutine, 1)  # type: ignore[arg-type]


class Middleware:
    def __init__(self, app: ASGIApplication, *, header: str) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def functional(app: ASGIApplication) -> ASGIApplication:
    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return wrapped


app.add_middleware(Middleware, header="x")
app.add_middleware(functional)
app.add_middleware(Middleware(app, header="x"), header="x")  # type: ignore[arg-type]
app.add_middleware(Middleware, "x")  # type: ignore[call-arg]

# Apps in apps, and apps in servers

app.include(App(), "/admin")
app.mount("/inner", App())
app.mount("/wrapped", Middleware(app, header="x"))
app.static("/static", Path("static"))
app.health()
app.health(live="/live", ready="/ready", check=lambda: True)
app.health(check=dict)
app.health("/live")  # type: ignore[call-arg]
app.health(check=1)  # type: ignore[arg-type]
app.metrics()
app.client_js()
app.client_js("/static/microws.js")
app.metrics("/internal/metrics")
app.metrics(1)  # type: ignore[arg-type]
uvicorn.run(app)
httpx.ASGITransport(app=app)
an_asgi_app: ASGIApplication = app

app.include(Middleware(app, header="x"))  # type: ignore[arg-type]
app.mount("/inner", "app")  # type: ignore[arg-type]
app.mount(App(), "/inner")  # type: ignore[arg-type]

# Codecs and converters


class Words:
    frames = "text"

    def encode(self, value: list[str]) -> str:
        return " ".join(value)

    def decode(self, data: str) -> list[str]:
        return data.split()


class Annotated:
    frames: Literal["binary"] = "binary"

    def encode(self, value: Any, /) -> bytes:
        return b""

    def decode(self, data: bytes, /) -> Any: ...


class Constant:
    frames: Final = "binary"

    encode = Annotated.encode
    decode = Annotated.decode


class Derived(Codec):
    frames = "any"

    def encode(self, value: Any, /) -> str | bytes:
        return ""

    def decode(self, data: Any, /) -> Any: ...


class HalfACodec:
    frames = "text"

    def encode(self, value: Any) -> str:
        return ""


for codec in (Annotated(), Derived()):
    app.add_codec("own", codec)
app.add_codec("words", Words())
app.add_codec("constant", Constant())
app.add_codec("half", HalfACodec())  # type: ignore[arg-type]
app.add_codec(Words(), "words")  # type: ignore[arg-type]

app.add_converter("hex", "[0-9a-f]+", lambda text: int(text, 16), hex)
app.add_converter("hex", "[0-9a-f]+", 16)  # type: ignore[arg-type]

# Running


def run() -> None:
    app.run()
    app.run("0.0.0.0", 80)
    app.run(port=0, access_log=False, loop="trio", max_message_size="1MiB")
    app.run(bind=["unix:/run/chat.sock", "fd://3"], certfile="tls.pem", log_format="json")
    app.run(forwarded_allow_ips=["10.0.0.0/8", "unix"])
    app.run(forwarded_allow_ips="*", server="hypercorn", keep_alive=30, max_head_size="8KiB", unix_mode=0o660)
    app.run(server="uvicorn")  # type: ignore[arg-type]
    app.run(8000)  # type: ignore[arg-type]
    app.run(reload=True, port=0)
    app.run(reload="chat")  # type: ignore[arg-type]
    app.run(loop="gevent")  # type: ignore[arg-type]


# Testing


async def test_client() -> None:
    async with app.test_client(timeout=1, root_path="/app", send_after_disconnect="ignore") as client:
        assert_type(client, TestClient)
        client.cookies["a"] = "1"
        response = await client.post("/announce/x", json={"text": "hi"}, headers={"x-key": "1"}, query={"page": 1})
        assert_type(response, TestResponse)
        assert_type(response.status, int)
        assert_type(response.headers, Headers)
        assert_type(response.body, bytes)
        assert_type(response.text, str)
        assert_type(response.json(), Any)
        assert_type(response.cookies, dict[str, str])
        for method in (client.get, client.head, client.options, client.put, client.patch, client.delete):
            assert_type(await method("/"), TestResponse)
        assert_type(await client.request("GET", "/", timeout=1), TestResponse)
        await client.get("/", params={})  # type: ignore[call-arg]
        _: Callable[[str, str], object] = client.get  # type: ignore[assignment]

        async with client.stream("GET", "/events", max_queue=1) as stream:
            assert_type(stream, TestStream)
            async for event in stream.events():
                assert_type(event, ReceivedEvent)
                assert_type(event.json(), Any)
            async for line in stream.iter_lines():
                assert_type(line, str)
            async for chunk in stream.iter_bytes():
                assert_type(chunk, bytes)
            assert_type(await stream.read(), bytes)

        async with (
            client.websocket("/chat/x", subprotocols=["v2"], origin="http://x") as a,
            client.websocket("/y") as b,
        ):
            assert_type(a, TestWebSocket)
            await a.send({"text": "hi"})
            await b.send_text("hi")
            assert_type(await a.receive(timeout=1), Any)
            assert_type(await a.receive_text(), str)
            assert_type(await a.receive_bytes(), bytes)
            assert_type(await a.receive_json(), Any)
            async for message in b:
                assert_type(message, Any)
            await a.close(1000, "done")
            await a.wait_closed(timeout=1)
            assert_type(a.close_code, int | None)
            assert_type(a.subprotocol, str | None)
            await a.receive(1)  # type: ignore[call-arg]
        client.websocket("/chat/x", {"origin": "http://x"})  # type: ignore[call-arg]
    try:
        await client.websocket("/nowhere").__aenter__()
    except WebSocketRejected as refused:
        assert_type(refused.status, int)
        assert_type(refused.code, int)
        assert_type(refused.body, bytes)
        assert_type(refused.headers, list[tuple[str, str]])
    TestClient(app, base_url="https://chat.example", lifespan=False)
    app.test_client(anything)  # type: ignore[call-arg]
    app.test_client(time_out=5)  # type: ignore[call-arg]
    app.test_client(send_after_disconnect="drop")  # type: ignore[arg-type]


# Types of messages; typed_app.py has an app with them


class Said(Message):
    user: str
    text: str = ""


assert_type(Said("anna").text, str)
Said(text="hi")  # type: ignore[call-arg]
Said(1)  # type: ignore[arg-type]

wrong: MessageError = {"type": "error", "detail": "Expected `str`", "path": "$"}
assert_type(wrong["path"], str)
wrong = {"type": "error"}  # type: ignore[typeddict-item]
wrong["type"] = "fault"  # type: ignore[typeddict-item]

app.topic("game:*", value_type=Said)
app.topic("game:*", value_types=Said)  # type: ignore[call-arg]
app.get("/", query=Said)
app.get("/", Said)  # type: ignore[call-arg]
app.websocket_route("/", value_type=Said | list[int], on_invalid="error")


async def typed(ws: WebSocket[Said, int], request: Request[Said]) -> None:
    assert_type(await ws.receive(timeout=1), Said)
    await ws.send(1)
    await ws.send(Said("anna"))  # type: ignore[call-overload]
    assert_type(await request.json(), Said)
    assert_type(request.typed_query, Any)
    assert_type(InvalidMessage("no", path="$.text").path, str)
