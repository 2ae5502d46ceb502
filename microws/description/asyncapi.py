"""The WebSockets of an app as an AsyncAPI document."""

from collections.abc import Iterator
from typing import Any, Final, Literal

from microws.description.answers import close_codes, handshake_errors
from microws.description.model import Credential, Description, MessageType, RouteDescription
from microws.description.names import Names, address_of, parameter_names
from microws.description.schemas import as_draft_7, members_of
from microws.requests import SESSION_COOKIE

__all__ = ["write_asyncapi"]

_SCHEMES: Final[dict[Credential, dict[str, str]]] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "session": {"type": "httpApiKey", "name": SESSION_COOKIE, "in": "cookie"},
    "ticket": {"type": "httpApiKey", "name": "ticket", "in": "query"},
}
_CONTENT_TYPES: Final = {
    "text": "text/plain",
    "bytes": "application/octet-stream",
    "json": "application/json",
    "msgpack": "application/msgpack",
}
_UNTYPED: Final[dict[str, dict[str, Any]]] = {
    "text": {"type": "string"},
    "bytes": {"type": "string", "format": "binary"},
}


def write_asyncapi(description: Description, *, title: str | None, version: str) -> dict[str, Any]:
    """
    Write an AsyncAPI document.

    Args:
        title, version: Of the app. Default: the title of the description.

    Source: https://www.asyncapi.com/docs/reference/specification/v3.0.0
    """
    return _Writer(description).write(title or description.title, version)


class _Writer:
    def __init__(self, description: Description) -> None:
        self._description = description
        self._channel_names, self._message_names = Names(), Names()
        self._messages: dict[str, dict[str, Any]] = {}
        self._operations: dict[str, dict[str, Any]] = {}
        self._credentials: set[Credential] = set()

    def write(self, title: str, version: str) -> dict[str, Any]:
        channels = dict(self._channel(each) for each in self._description.routes if each.kind == "websocket")
        components = {
            "messages": self._messages,
            "schemas": as_draft_7(self._description.schemas),
            "securitySchemes": {name: each for name, each in _SCHEMES.items() if name in self._credentials},
        }
        return {
            "asyncapi": "3.0.0",
            "info": {"title": title, "version": version},
            "channels": channels,
            "operations": self._operations,
            "components": {name: each for name, each in components.items() if each},
        }

    def _channel(self, route: RouteDescription) -> tuple[str, dict[str, Any]]:
        name = self._channel_names.take(route.name or route.view)
        received = self._keys([route.receives], name)
        sent = self._keys([route.sends, *route.delivers], name)
        self._credentials.update(route.credentials)
        self._operation(name, "receive", received, route)
        self._operation(name, "send", sent, route)
        names, facts = parameter_names(route), list(_facts(route))
        return name, {
            "address": address_of(route, names),
            **({"summary": route.summary} if route.summary else {}),
            **({"description": "\n\n".join(facts)} if facts else {}),
            "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in (*received, *sent)},
            **(
                {"parameters": {names[each["name"]]: _parameter(each) for each in route.parameters}}
                if route.parameters
                else {}
            ),
            "bindings": {"ws": {"method": "GET", "query": _query(route), "bindingVersion": "0.1.0"}},
            "x-handshake-errors": {str(status): when for status, when in handshake_errors(route).items()},
            "x-close-codes": close_codes(route),
        }

    def _operation(
        self, channel: str, action: Literal["send", "receive"], messages: list[str], route: RouteDescription
    ) -> None:
        # A view that takes a ticket refuses clients without one, unless it also reads something else.
        credentials = route.credentials if "ticket" in route.credentials else ()
        self._operations[f"{channel}.{action}"] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{channel}"},
            "messages": [{"$ref": f"#/channels/{channel}/messages/{key}"} for key in messages],
            **(
                {"security": [{"$ref": f"#/components/securitySchemes/{each}"} for each in credentials]}
                if credentials
                else {}
            ),
        }

    def _keys(self, types: list[MessageType | None], channel: str) -> list[str]:
        """The names of messages in the document."""
        return list(
            dict.fromkeys(key for each in types if each is not None for key in self._messages_of(each, channel))
        )

    def _messages_of(self, described: MessageType, channel: str) -> Iterator[str]:
        if isinstance(described, str):
            for each in ("text", "bytes") if described == "auto" else (described,):
                yield self._message(each, each, _UNTYPED.get(each, {}))
            return
        encoding = described.get("encoding", "json")
        for member in members_of(described):
            written = (
                member["$ref"].rpartition("/")[2] if "$ref" in member else member.get("title", f"{channel}.message")
            )
            yield self._message(written, encoding, as_draft_7(member))

    def _message(self, name: str, encoding: str, schema: dict[str, Any]) -> str:
        """The name of a message in the document."""
        message = {"name": name, "title": name, "payload": schema}
        if encoding in _CONTENT_TYPES:
            message["contentType"] = _CONTENT_TYPES[encoding]
        else:
            message["description"] = f"As the codec {encoding} of the app encodes it."
        for key, each in self._messages.items():
            if each == message:
                return key
        key = self._message_names.take(name)
        self._messages[key] = message
        return key


def _facts(route: RouteDescription) -> Iterator[str]:
    if route.doc:
        yield route.doc
    if route.login:
        yield "The first message logs in."
    if route.subscribe:
        topics = ", ".join(f"`{topic}`" for topic in route.subscribe)
        yield f"Sends what is published to {topics}. With `?since=POSITION`, first what was missed since then."
    if route.subprotocols:
        yield f"Subprotocols: {', '.join(route.subprotocols)}."
    elif route.subscribe:
        yield "With the subprotocol `microws.v1`, each published message comes with its topic and position."
    optional = [each for each in route.credentials if each != "ticket"]
    if optional:
        yield f"Reads, if the client sends it: {', '.join(optional)}."
    if route.rate:
        yield f"A client may send {route.rate.partition(' ')[0]} messages."


def _parameter(parameter: dict[str, Any]) -> dict[str, str]:
    converter = parameter["converter"]
    text = {"str": "Text.", "path": "The rest of the path."}.get(converter, f"As the converter `{converter}` takes it.")
    return {"description": text}


def _query(route: RouteDescription) -> dict[str, Any]:
    names = [*(["since"] if route.subscribe else []), *(["ticket"] if "ticket" in route.credentials else [])]
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}}
