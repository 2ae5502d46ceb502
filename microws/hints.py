"""
Hints in error messages: the nearest name that exists, or what a name of another framework or server is called here.

A class gets its hints as descriptors, because ``__getattr__`` makes Python 3.11 look up every other attribute more
slowly. ``hasattr`` does not find them, and type checkers do not see them.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

__all__ = ["FOREIGN_NAMES", "ForeignName", "add_hints", "did_you_mean", "missing_name", "nearest", "option_hint"]

# Options of uvicorn, Hypercorn, Gunicorn, Flask and Quart, and the option of microws that does the same.
_SAME_OPTION: Final = {
    "b fd uds": "bind",
    "p": "port",
    "w": "workers",
    "graceful_timeout timeout_graceful_shutdown": "drain_timeout",
    "h11_max_incomplete_event_size h11_max_incomplete_size": "max_head_size",
    "keep_alive_timeout timeout_keep_alive": "keep_alive",
    "proxy_headers": "forwarded_allow_ips",
    "ssl_certfile": "certfile",
    "ssl_keyfile": "keyfile",
    "websocket_max_message_size ws_max_size": "max_message_size",
}
_OPTION_ADVICE: Final = {
    "app_dir env_file factory": "only the command has it: microws run",
    "debug": "write App(debug=True)",
    "http2_websockets no_http2_websockets": "leave it out: WebSockets are served over HTTP/1.1",
    "reload use_reloader": "to reload the app when a file changes: microws dev",
}

_ON_STARTUP = "use @app.on_startup, @app.on_shutdown or @app.lifespan"
_HOOKS = "use @app.before_request, @app.after_request or app.add_middleware(asgi_middleware)"
_ADD_ROUTE = "use @app.route(pattern) or app.add_route(view, pattern)"
_WEBSOCKET_ROUTE = "use @app.websocket_route(pattern) or app.add_websocket_route(view, pattern)"
_HANDLER = "use @app.error_handler(ExceptionType) or @app.error_handler(404)"

_APP: Final = {
    "websocket add_websocket add_api_websocket_route": _WEBSOCKET_ROUTE,
    "add_url_rule add_api_route api_route add_routes add_view router": _ADD_ROUTE,
    "head options": "use @app.route(pattern, methods=[…]); GET includes HEAD, and OPTIONS is answered automatically",
    "errorhandler register_error_handler exception_handler add_exception_handler add_error_handler exception": _HANDLER,
    "before_serving after_serving while_serving before_first_request on_event add_event_handler on on_cleanup "
    "cleanup_ctx listener before_server_start teardown_appcontext": _ON_STARTUP,
    "middleware middlewares before_app_request teardown_request": _HOOKS,
    "register_blueprint include_router blueprint add_subapp recipe": "use app.include(other_app, prefix)",
    "add_static add_static_route static_folder": 'use app.static("/static", directory)',
    "add_task add_background_task": "use app.start_soon(function, *args)",
    "broadcast emit send": "write `await app.publish(topic, value)`",
    "config ctx extensions": "use app.state",
    "logger": "use logging.getLogger(__name__)",
    "jinja_env template_filter context_processor": "use app.render(template, **context)",
    "url_path_for": "use app.url_for(name, **params)",
    "wsgi_app asgi_app": "use the app itself, which is an ASGI app",
    "serve listen": "use app.run(host, port)",
    "test_request_context test_cli_runner": "use app.test_client()",
}
_CONNECTION: Final = {
    "args query_params rel_url query_args query_string": "use {self}.query",
    "get_param": "use {self}.query.get(name)",
    "match_info view_args params kwargs": "use {self}.path_params",
    "remote_addr remote remote_address peername": "use {self}.client, which is None or has .host and .port",
    "get_header get_headers": "use {self}.headers.get(name)",
    "user_agent": 'use {self}.headers.get("user-agent")',
    "authorization": 'use {self}.headers.get("authorization")',
    "host host_url base_url full_path url_root relative_uri uri": "use {self}.url",
    "user auth g ctx context": "use {self}.state; a hook can set attributes on it for the view",
    "url_path_for": "use {self}.url_for(name, **params)",
}
_REQUEST: Final = _CONNECTION | {
    "data get_data content raw_body read bounded_stream": "write `await request.body()`",
    "get_json media get_media": "write `await request.json()`",
    "files values post POST FILES": "write `await request.form()`",
    "GET": "use request.query",
    "content_type mimetype is_json": 'use request.headers.get("content-type")',
    "content_length": 'use request.headers.get("content-length")',
    "is_disconnected": "write `await request.wait_disconnect()`",
}
_WEBSOCKET: Final = _CONNECTION | {
    "recv receive_data receive_message get_message": "write `await ws.receive()`",
    "receive_str": "write `await ws.receive_text()`",
    "receive_media": "write `await ws.receive_json()`",
    "send_str": "write `await ws.send_text(text)`",
    "send_data send_message": "write `await ws.send(value)`",
    "send_media": "write `await ws.send_json(value)`",
    "iter_text iter_bytes iter_json iter_data": "write `async for message in ws`",
    "prepare handshake": "write `await ws.accept()`",
    "ready unaccepted application_state client_state open": "use ws.accepted and ws.closed",
    "send_denial_response abort": "write `await ws.reject(status, body)`",
    "join join_room enter_room": "write `await ws.subscribe(topic)`",
    "leave leave_room": "write `await ws.unsubscribe(topic)`",
    "emit broadcast": "write `await ws.publish(topic, value)`",
    "ping pong": "start the server with --ping-interval; it sends pings itself",
    "disconnect": "write `await ws.close(code, reason)`",
    "selected_subprotocol requested_subprotocols": "use ws.subprotocol and ws.subprotocols",
}
_RESPONSE: Final = {
    "status_code": "use response.status",
    "data content text get_data set_data media": "use response.body to read it; to change it, return a new Response",
    "mimetype content_type media_type": 'use response.headers["content-type"]',
    "set_header append_header add_header": "use response.headers[name] = value, or response.headers.add(name, value)",
    "raw_headers": "use response.headers",
    "json get_json": "use json.loads(response.body)",
    "cookies": "use response.set_cookie(name, value) and response.delete_cookie(name)",
}
_TEST_RESPONSE: Final = {
    "status_code": "use response.status",
    "content data get_data": "use response.body",
    "get_json": "use response.json()",
    "content_type mimetype": 'use response.headers["content-type"]',
}
_TEST_CLIENT: Final = {"websocket_connect ws_connect": "write `async with client.websocket(path) as ws`"}
_MODULE: Final = {
    "Quart Flask FastAPI Starlette Sanic Microws MicroWS": "use App",
    "Blueprint APIRouter Router Recipe RouteTableDef": "use another App and app.include(other_app, prefix)",
    "request websocket g current_app session": "use the first parameter of the view; it has .app and .state",
    "jsonify make_response": "return the dict or list from the view, or (body, status, headers)",
    "JsonResponse ORJSONResponse UJSONResponse json_response": "use JSONResponse",
    "HTMLResponse PlainTextResponse": "use Response(text, content_type=…), or return a str for HTML",
    "render_template render_template_string": "use app.render(template, **context)",
    "abort": "write `raise HTTPException(status, detail)`",
    "HTTPError WebSocketException HTTPNotFound": "use HTTPException",
    "redirect": "return RedirectResponse(location)",
    "url_for": "use app.url_for(name, **params)",
    "send_file send_from_directory": "return FileResponse(path)",
    "StaticFiles": 'use app.static("/static", directory)',
    "EventSourceResponse": "use EventStream",
    "Depends Query Header Cookie Path": "read request.query, .headers, .cookies or .path_params of the request",
    "Body": "write `await request.json()`",
    "BackgroundTasks BackgroundTask": "use app.start_soon(function, *args)",
    "TestClient": "use app.test_client(), or microws.testing.TestClient",
    "Middleware CORSMiddleware": "use app.add_middleware(asgi_middleware), or App(origins=[…]) for CORS",
    "WebSocketState": "use ws.accepted and ws.closed",
    "ConnectionClosed ConnectionClosedOK WebSocketDisconnected": "use WebSocketDisconnect",
    "WebSocketResponse": "use @app.websocket_route(pattern); it passes the WebSocket to the view",
    "WSMsgType": 'use value_type="text", "bytes" or "auto" of @app.websocket_route',
    "status": "use a number such as 404, or http.HTTPStatus.NOT_FOUND",
    "run": "use app.run() or the command microws run",
    "stream_with_context": "return StreamingResponse(generator)",
}
# Class, or ``microws`` itself: names of Flask and Quart, Starlette and FastAPI, aiohttp, Falcon, Bocadillo and Sanic,
# and the advice. Names in one string share one advice; ``{self}`` is the object's usual name.
FOREIGN_NAMES: Final = {
    "App": _APP,
    "Request": _REQUEST,
    "WebSocket": _WEBSOCKET,
    "Response": _RESPONSE,
    "TestClient": _TEST_CLIENT,
    "TestResponse": _TEST_RESPONSE,
    "microws": _MODULE,
}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``word`` is probably meant to be, in upper or lower case."""
    import difflib  # here, because it takes 2 ms, and only errors need it

    by_lower = {name.lower(): name for name in sorted(known)}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing if no name is near."""
    near = nearest(word, known)
    return "" if near is None else f"; did you mean {near!r}?"


def option_hint(name: str, known: Iterable[str], *, written: Callable[[str], str] = str) -> str:
    """
    What to write instead of the unknown option ``name``, or nothing if no name is near.

    Args:
        name: With underscores, as a keyword.
        known: The options that exist.
        written: How the user writes an option, such as a flag. Default: as a keyword.
    """
    if advice := _find(_OPTION_ADVICE, name):
        return f"; {advice}"
    near = _find(_SAME_OPTION, name) or nearest(name, known)
    return "" if near is None else f"; did you mean {written(near)!r}?"


class ForeignName:
    """
    A name of another framework: reading it raises an ``AttributeError`` that says what to write.

    Args:
        name: The name.
        advice: What to write instead: a sentence that begins with a verb.
    """

    def __init__(self, name: str, advice: str) -> None:
        self._name = name
        self._advice = advice

    def __get__(self, instance: object, owner: type[Any]) -> NoReturn:
        # Python gets the name, but not the object: so it appends no "Did you mean: 'after_serving'?" to the advice.
        raise AttributeError(f"{owner.__name__} has no {self._name!r}: {self._advice}", name=self._name)


class _ReadOnlyForeignName(ForeignName):
    """The same for setting it, on a class with ``__slots__``, whose objects take no other attributes."""

    def __set__(self, instance: object, value: object) -> NoReturn:
        self.__get__(instance, type(instance))


def add_hints(*classes: type[Any]) -> None:
    """Let the names of other frameworks in ``FOREIGN_NAMES`` say what to write instead."""
    for cls in classes:
        kind = _ReadOnlyForeignName if hasattr(cls, "__slots__") else ForeignName
        own = "ws" if cls.__name__ == "WebSocket" else cls.__name__.lower()
        for names, advice in FOREIGN_NAMES[cls.__name__].items():
            for name in names.split():
                setattr(cls, name, kind(name, advice.replace("{self}", own)))


def missing_name(name: str, public: Iterable[str]) -> Exception:
    """
    The exception for ``microws.name`` and ``from microws import name``, if there is no such name.

    Args:
        name: The missing name.
        public: The public names.
    """
    advice = _find(_MODULE, name)
    if not advice and not name.startswith("__") and (near := nearest(name, public)):
        advice = f"use {near}"
    text = f"microws has no {name!r}" + (f": {advice}" if advice else "")
    # `from microws import name` asks for the attribute first. Python replaces an AttributeError by its own ImportError,
    # and drops the text, so it gets an ImportError. The caller's name is the only sign of an import.
    is_import = sys._getframe(2).f_code.co_name == "_handle_fromlist"  # noqa: SLF001
    return ImportError(text, name="microws") if is_import and advice else AttributeError(text)


def _find(table: dict[str, str], name: str) -> str:
    """The value of the key that contains the word ``name``, or nothing."""
    return next((value for names, value in table.items() if name in names.split()), "")
