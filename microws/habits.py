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

_ON_STARTUP = "@app.on_startup, @app.on_shutdown or @app.lifespan"
_HOOKS = "@app.before_request, @app.after_request or app.add_middleware(asgi_middleware)"
_ADD_ROUTE = "@app.route(pattern) or app.add_route(view, pattern)"
_WEBSOCKET_ROUTE = "@app.websocket_route(pattern) or app.add_websocket_route(view, pattern)"
_HANDLER = "@app.error_handler(ExceptionType) or @app.error_handler(404)"

# Of Flask and Quart, Starlette and FastAPI, aiohttp, Falcon, Bocadillo, Sanic. Names in one string have one advice.
APP = {
    "websocket add_websocket add_api_websocket_route": _WEBSOCKET_ROUTE,
    "add_url_rule add_api_route api_route add_routes add_view router": _ADD_ROUTE,
    "head options": '@app.route(pattern, methods=[…]); "GET" brings HEAD, and OPTIONS is answered by itself',
    "errorhandler register_error_handler exception_handler add_exception_handler add_error_handler exception": _HANDLER,
    "before_serving after_serving while_serving before_first_request on_event add_event_handler on on_cleanup "
    "cleanup_ctx listener before_server_start teardown_appcontext": _ON_STARTUP,
    "middleware middlewares before_app_request teardown_request": _HOOKS,
    "register_blueprint include_router blueprint add_subapp recipe": "app.include(other_app, prefix)",
    "add_static add_static_route static_folder": 'app.static("/static", directory)',
    "add_task add_background_task": "app.start_soon(function, *args)",
    "broadcast emit send": "await app.publish(topic, value)",
    "config ctx extensions": "app.state",
    "logger": "logging.getLogger(__name__)",
    "jinja_env template_filter context_processor": "app.render(template, **context)",
    "url_path_for": "app.url_for(name, **params)",
    "wsgi_app asgi_app": "app itself, which is an ASGI app",
    "serve listen": "app.run(host, port)",
    "test_request_context test_cli_runner": "app.test_client()",
}
_CONNECTION = {
    "args query_params rel_url query_args query_string": "{self}.query",
    "get_param": "{self}.query.get(name)",
    "match_info view_args params kwargs": "{self}.path_params",
    "remote_addr remote remote_address peername": "{self}.client, which has a host and a port, or is None",
    "get_header get_headers": "{self}.headers.get(name)",
    "user_agent": '{self}.headers.get("user-agent")',
    "authorization": '{self}.headers.get("authorization")',
    "host host_url base_url full_path url_root relative_uri uri": "{self}.url",
    "user auth g ctx context": "{self}.state, where a hook may put what the view needs",
    "url_path_for": "{self}.url_for(name, **params)",
}
REQUEST = _CONNECTION | {
    "data get_data content raw_body read bounded_stream": "await request.body()",
    "get_json media get_media": "await request.json()",
    "files values post POST FILES": "await request.form()",
    "GET": "request.query",
    "content_type mimetype is_json": 'request.headers.get("content-type")',
    "content_length": 'request.headers.get("content-length")',
    "is_disconnected": "await request.wait_disconnect()",
    "session": "request.cookies and response.set_cookie(name, value), or ASGI middleware",
}
WEBSOCKET = _CONNECTION | {
    "recv receive_data receive_message get_message": "await ws.receive()",
    "receive_str": "await ws.receive_text()",
    "receive_media": "await ws.receive_json()",
    "send_str": "await ws.send_text(text)",
    "send_data send_message": "await ws.send(value)",
    "send_media": "await ws.send_json(value)",
    "iter_text iter_bytes iter_json iter_data": "async for message in ws",
    "prepare handshake": "await ws.accept()",
    "ready unaccepted application_state client_state open": "ws.accepted and ws.closed",
    "send_denial_response abort": "await ws.reject(status, body)",
    "join join_room enter_room": "await ws.subscribe(topic)",
    "leave leave_room": "await ws.unsubscribe(topic)",
    "emit broadcast": "await ws.publish(topic, value)",
    "ping pong": "microws run --ping-interval; clients that do not answer are disconnected",
    "disconnect": "await ws.close(code, reason)",
    "selected_subprotocol requested_subprotocols": "ws.subprotocol and ws.subprotocols",
    "session": "ws.cookies, or ASGI middleware",
}
RESPONSE = {
    "status_code": "response.status",
    "data content text get_data set_data media": "response.body; another one is a new Response",
    "mimetype content_type media_type": 'response.headers["content-type"]',
    "set_header append_header add_header": "response.headers[name] = value, or response.headers.add(name, value)",
    "raw_headers": "response.headers",
    "json get_json": "json.loads(response.body)",
    "cookies": "response.set_cookie(name, value) and response.delete_cookie(name)",
}
TEST_RESPONSE = {
    "status_code": "response.status",
    "content data get_data": "response.body",
    "get_json": "response.json()",
    "content_type mimetype": 'response.headers["content-type"]',
}
TEST_CLIENT = {
    "websocket_connect ws_connect": "async with client.websocket(path) as ws",
}
MODULE = {
    "Quart Flask FastAPI Starlette Sanic Microws MicroWS": "App",
    "Blueprint APIRouter Router Recipe RouteTableDef": "another App, and app.include(other_app, prefix)",
    "request websocket g current_app session": "the view's first parameter, which has .app and .state",
    "jsonify make_response": "return the dict or list, or (body, status, headers)",
    "JsonResponse ORJSONResponse UJSONResponse json_response": "JSONResponse",
    "HTMLResponse PlainTextResponse": "Response(text, content_type=…); a str that a view returns is HTML",
    "render_template render_template_string": "app.render(template, **context)",
    "abort": "raise HTTPException(status, detail)",
    "HTTPError WebSocketException HTTPNotFound": "HTTPException",
    "redirect": "RedirectResponse(location)",
    "url_for": "app.url_for(name, **params)",
    "send_file send_from_directory": "FileResponse(path)",
    "StaticFiles": 'app.static("/static", directory)',
    "EventSourceResponse": "EventStream",
    "Depends Query Header Cookie Path Body": "request.query, .headers, .cookies, .path_params or await request.json()",
    "BackgroundTasks BackgroundTask": "app.start_soon(function, *args)",
    "TestClient": "app.test_client(), or microws.testing.TestClient",
    "Middleware CORSMiddleware": "app.add_middleware(asgi_middleware); App(origins=[…]) is CORS",
    "WebSocketState": "ws.accepted and ws.closed",
    "ConnectionClosed ConnectionClosedOK WebSocketDisconnected": "WebSocketDisconnect",
    "WebSocketResponse": "@app.websocket_route(pattern); its view gets the WebSocket",
    "WSMsgType": 'value_type="text", "bytes" or "auto" of @app.websocket_route',
    "status": "numbers such as 404, or http.HTTPStatus",
    "run": "app.run(), or the command microws run",
    "stream_with_context": "StreamingResponse(generator)",
}


class Elsewhere:
    """
    A name that other frameworks have: looking it up is an ``AttributeError`` that says what to write.

    Args:
        name: The name.
        advice: What there is instead.
    """

    def __init__(self, name: str, advice: str) -> None:
        self._name = name
        self._advice = advice

    def __get__(self, instance: object, owner: type[Any]) -> NoReturn:
        raise AttributeError(f"{owner.__name__} has no {self._name!r}: use {self._advice}")


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
        advice = close[0]
    text = f"microws has no {name!r}" + (f": use {advice}" if advice else "")
    # `from microws import name` asks for the attribute first, and would throw the text of an AttributeError away.
    is_import = sys._getframe(2).f_code.co_name == "_handle_fromlist"  # noqa: SLF001 - there is no other way to know
    return ImportError(text, name="microws") if is_import and advice else AttributeError(text)


def _each(names: dict[str, str]) -> Iterable[tuple[str, str]]:
    return ((advice, name) for several, advice in names.items() for name in several.split())
