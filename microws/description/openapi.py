"""The HTTP routes of an app as an OpenAPI document."""

from collections.abc import Iterator
from typing import Any, Final

from microws.description.answers import handshake_errors, http_errors
from microws.description.model import Credential, Description, MessageType, RouteDescription
from microws.description.names import Names, address_of
from microws.requests import SESSION_COOKIE

__all__ = ["write_openapi"]

_SCHEMES: Final[dict[Credential, dict[str, str]]] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "session": {"type": "apiKey", "name": SESSION_COOKIE, "in": "cookie"},
    "ticket": {"type": "apiKey", "name": "ticket", "in": "query"},
}
# OpenAPI has no other methods.
_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_ERROR: Final[dict[str, Any]] = {
    "description": "Text, or JSON for clients that prefer it.",
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
        },
        "text/plain": {"schema": {"type": "string"}},
    },
}


def write_openapi(description: Description, *, title: str | None, version: str) -> dict[str, Any]:
    """
    Write an OpenAPI document.

    A WebSocket is a GET that gets 101. Routes with the same path but for their converters are one path here.

    Args:
        title, version: Of the app. Default: the title of the description.

    Source: https://spec.openapis.org/oas/v3.1.0.html
    """
    paths: dict[str, dict[str, Any]] = {}
    names = Names()
    for route in description.routes:
        if route.is_docs:
            continue
        operations = dict(_operations(route, description, names))
        if not operations:
            continue
        own = [each["name"] for each in route.parameters]
        # Templates that differ in the names of parameters are the same path.
        address = address_of(route, {name: f"\0{index}" for index, name in enumerate(own)})
        item = paths.setdefault(address, {"names": own, "operations": {}})
        for method, operation in operations.items():
            for index, parameter in enumerate(operation["parameters"][: len(own)]):
                parameter["name"] = item["names"][index]
            known = item["operations"].get(method)
            item["operations"][method] = operation if known is None else _merge(known, operation)
    credentials = {each for route in description.routes for each in route.credentials}
    components: dict[str, dict[str, Any]] = {
        "responses": {"Error": _ERROR},
        "schemas": description.schemas,
        "securitySchemes": {name: each for name, each in _SCHEMES.items() if name in credentials},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": title or description.title, "version": version},
        "paths": {_written(address, item["names"]): item["operations"] for address, item in paths.items()},
        "components": {name: each for name, each in components.items() if each},
    }


def _written(address: str, names: list[str]) -> str:
    for index, name in enumerate(names):
        address = address.replace(f"{{\0{index}}}", f"{{{name}}}")
    return address


def _operations(
    route: RouteDescription, description: Description, names: Names
) -> Iterator[tuple[str, dict[str, Any]]]:
    if route.kind == "websocket":
        yield "get", _operation(route, description, names.take(route.name or route.view), {"101": _SWITCH}, "GET")
        return
    methods = [each for each in route.methods if each in _METHODS and not (each == "HEAD" and "GET" in route.methods)]
    for method in methods:
        name = route.name or route.view
        name = names.take(name if len(methods) == 1 else f"{name}_{method.lower()}")
        yield method.lower(), _operation(route, description, name, _response(route, method), method)


def _operation(
    route: RouteDescription, description: Description, name: str, response: dict[str, Any], method: str
) -> dict[str, Any]:
    is_websocket = route.kind == "websocket"
    errors = handshake_errors(route) if is_websocket else http_errors(route, method)
    operation: dict[str, Any] = {
        "operationId": name,
        **({"summary": route.summary} if route.summary else {}),
        **({"description": route.doc} if route.doc else {}),
        "parameters": [*map(_path_parameter, route.parameters), *_query_parameters(route, description)],
    }
    if route.body is not None and method not in ("GET", "HEAD", "TRACE"):
        operation["requestBody"] = {"required": True, "content": _content(route.body)}
    operation["responses"] = response | {
        str(status): {
            **({} if status in route.handled_errors else {"$ref": "#/components/responses/Error"}),
            "description": when,
        }
        for status, when in errors.items()
    }
    if route.credentials:
        security: list[dict[str, list[str]]] = [{each: []} for each in route.credentials]
        # A view that takes a ticket refuses clients without one, unless it also reads something else.
        operation["security"] = security if "ticket" in route.credentials else [*security, {}]
    return operation


_SWITCH: Final = {"description": "The WebSocket is open: the AsyncAPI document has its messages."}


def _response(route: RouteDescription, method: str) -> dict[str, Any]:
    if route.kind == "sse" and method == "GET":
        content: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
        return {"200": {"description": "Server-sent events.", "content": content}}
    returned: dict[str, Any] = {"description": "What the view returns."}
    if route.returns is not None and method != "HEAD":
        returned["content"] = _content(route.returns)
    if route.statuses:
        return {str(each): returned if each == 200 else {"description": "Nothing."} for each in route.statuses}
    return {"2XX" if "content" in returned else "default": returned}


def _content(described: MessageType) -> dict[str, Any]:
    if isinstance(described, dict):
        return {"application/json": {"schema": described["schema"]}}
    kinds = {"text": "text/html", "bytes": "application/octet-stream"}
    schema: dict[str, Any] = {"type": "string"}
    return {kinds[each]: {"schema": schema} for each in (kinds if described == "auto" else (described,))}


def _path_parameter(parameter: dict[str, Any]) -> dict[str, Any]:
    described = {"name": parameter["name"], "in": "path", "required": True, "schema": parameter["schema"]}
    if parameter["converter"] == "path":
        return described | {"description": "The rest of the path, with its slashes."}
    return described


def _query_parameters(route: RouteDescription, description: Description) -> Iterator[dict[str, Any]]:
    if route.kind == "websocket" and route.subscribe:
        text = "A position: first what was missed since then."
        yield {"name": "since", "in": "query", "description": text, "schema": {"type": "string"}}
    if not isinstance(route.query, dict):
        return
    schema = route.query["schema"]
    if "$ref" in schema:
        schema = description.schemas[schema["$ref"].rpartition("/")[2]]
    for name, each in schema["properties"].items():
        yield {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": each}


def _merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """One operation for two routes whose paths differ in converters only."""
    merged = first | {
        "parameters": _merge_parameters(first["parameters"], second["parameters"]),
        "responses": _merge_responses(first["responses"], second["responses"]),
    }
    texts = dict.fromkeys(each["description"] for each in (first, second) if "description" in each)
    if texts:
        merged["description"] = "\n\n".join(texts)
    bodies = [each["requestBody"] for each in (first, second) if "requestBody" in each]
    if bodies:
        content = _merge_content(bodies[0]["content"], bodies[-1]["content"])
        merged["requestBody"] = {"required": len(bodies) == 2, "content": content}
    if "security" in first or "security" in second:
        ways = [*first.get("security", [{}]), *second.get("security", [{}])]
        merged["security"] = [way for index, way in enumerate(ways) if way not in ways[:index]]
    return merged


def _merge_parameters(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    others = {(each["in"], each["name"]): each for each in second}
    merged = []
    for each in first:
        other = others.pop((each["in"], each["name"]), None)
        if other is not None:
            each = each | {"schema": _either(each["schema"], other["schema"])}
        if each["in"] == "query":
            each = each | {"required": bool(each.get("required") and other and other.get("required"))}
        merged.append(each)
    return [*merged, *(each | {"required": False} for each in others.values())]


def _merge_responses(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    merged = first | second
    for status in first.keys() & second.keys():
        one, other = first[status], second[status]
        merged[status] = one
        if "content" in one or "content" in other:
            merged[status] = one | {"content": _merge_content(one.get("content", {}), other.get("content", {}))}
    if not ("404" in first and "404" in second):
        merged.pop("404", None)  # what one of them refuses, the other takes
    return merged


def _merge_content(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {
        kind: {"schema": _either(*(each[kind]["schema"] for each in (first, second) if kind in each))}
        for kind in first | second
    }


def _either(first: dict[str, Any], second: dict[str, Any] | None = None) -> dict[str, Any]:
    return first if second in (None, first) else {"anyOf": [*first.get("anyOf", [first]), second]}
