"""
Names from other frameworks: looking one up raises an error that says what to write here.

On a class they are descriptors, because ``__getattr__`` makes Python 3.11 look up every other attribute more slowly.
``hasattr`` does not find them, and type checkers do not see them.
"""

import difflib
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any, NoReturn

__all__ = [
    "APP",
    "MODULE",
    "REQUEST",
    "RESPONSE",
    "TEST_CLIENT",
    "TEST_RESPONSE",
    "WEBSOCKET",
    "Elsewhere",
    "add_names",
    "missing_name",
]

_ON_STARTUP = "use @app.on_startup, @app.on_shutdown or @app.lifespan"
_HOOKS = "use @app.before_request, @app.after_request or app.add_middleware(asgi_middleware)"
_ADD_ROUTE = "use @app.route(pattern) or app.add_route(view, pattern)"
_WEBSOCKET_ROUTE = "use @app.websocket_route(pattern) or app.add_websocket_route(view, pattern)"
_HANDLER = "use @app.error_handler(ExceptionType) or @app.error_handler(404)"

# Of Flask and Quart, Starlette and FastAPI, aiohttp, Falcon, Bocadillo, Sanic. Names in one string have one advice.
APP = {
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
_CONNECTION = {
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
REQUEST = _CONNECTION | {
    "data get_data content raw_body read bounded_stream": "write `await request.body()`",
    "get_json media get_media": "write `await request.json()`",
    "files values post POST FILES": "write `await request.form()`",
    "GET": "use request.query",
    "content_type mimetype is_json": 'use request.headers.get("content-type")',
    "content_length": 'use request.headers.get("content-length")',
    "is_disconnected": "write `await request.wait_disconnect()`",
    "session": "use request.cookies and response.set_cookie(name, value), or add ASGI middleware for sessions",
}
WEBSOCKET = _CONNECTION | {
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
    "session": "use ws.cookies, or add ASGI middleware for sessions",
}
RESPONSE = {
    "status_code": "use response.status",
    "data content text get_data set_data media": "use response.body to read it; to change it, return a new Response",
    "mimetype content_type media_type": 'use response.headers["content-type"]',
    "set_header append_header add_header": "use response.headers[name] = value, or response.headers.add(name, value)",
    "raw_headers": "use response.headers",
    "json get_json": "use json.loads(response.body)",
    "cookies": "use response.set_cookie(name, value) and response.delete_cookie(name)",
}
TEST_RESPONSE = {
    "status_code": "use response.status",
    "content data get_data": "use response.body",
    "get_json": "use response.json()",
    "content_type mimetype": 'use response.headers["content-type"]',
}
TEST_CLIENT = {
    "websocket_connect ws_connect": "write `async with client.websocket(path) as ws`",
}
MODULE = {
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


class Elsewhere:
    """
    A name that other frameworks have: looking it up is an ``AttributeError`` that says what to write.

    Args:
        name: The name.
        advice: What to do instead, as a sentence that begins with a verb.
    """

    def __init__(self, name: str, advice: str) -> None:
        self._name = name
        self._advice = advice

    def __get__(self, instance: object, owner: type[Any]) -> NoReturn:
        raise AttributeError(f"{owner.__name__} has no {self._name!r}: {self._advice}")


class _ElsewhereToo(Elsewhere):
    """The same for setting it, where an object has no attributes but those of its class."""

    def __set__(self, instance: object, value: object) -> NoReturn:
        self.__get__(instance, type(instance))


def add_names(cls: type[Any], names: dict[str, str], *, self: str = "") -> None:
    """
    Let names that ``cls`` does not have say what to write instead.

    Args:
        cls: The class.
        names: Names of one meaning, with blanks between them, and the advice.
        self: What stands for ``{self}`` in an advice.
    """
    for advice, name in _each(names):
        kind = _ElsewhereToo if hasattr(cls, "__slots__") else Elsewhere
        setattr(cls, name, kind(name, advice.replace("{self}", self)))


def missing_name(name: str, public: Iterable[str]) -> Exception:
    """
    What ``microws.name`` and ``from microws import name`` raise.

    Args:
        name: The one that is not there.
        public: Those that are.
    """
    advice = next((advice for advice, known in _each(MODULE) if known == name), "")
    if name.startswith("__") or (not advice and find_spec(f"microws.{name}") is not None):
        # Python's own, or a module that is imported next.
        return AttributeError(f"microws has no {name!r}")
    if not advice and (close := difflib.get_close_matches(name, public, n=1)):
        advice = f"use {close[0]}"
    text = f"microws has no {name!r}" + (f": {advice}" if advice else "")
    # `from microws import name` asks for the attribute first, and would throw the text of an AttributeError away.
    is_import = sys._getframe(2).f_code.co_name == "_handle_fromlist"  # noqa: SLF001 - there is no other way to know
    return ImportError(text, name="microws") if is_import and advice else AttributeError(text)


def _each(names: dict[str, str]) -> Iterable[tuple[str, str]]:
    return ((advice, name) for several, advice in names.items() for name in several.split())
