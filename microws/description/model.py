"""What an app consists of, as data: for its page, its documents, and ``microws routes``."""

from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

__all__ = ["Credential", "Description", "MessageType", "RouteDescription", "RouteKind", "TopicDescription"]

RouteKind: TypeAlias = Literal["http", "sse", "websocket", "mount"]
Credential: TypeAlias = Literal["bearer", "session", "ticket"]
# The name of a codec, such as "text". Or ``{"schema": …}``, a JSON Schema in which ``#/components/schemas/NAME`` is a
# schema of ``Description.schemas``; ``"encoding"`` beside it is a codec other than "json".
MessageType: TypeAlias = str | dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteDescription:
    """
    A route, or a mounted app.

    Attributes:
        kind: ``"sse"`` is an HTTP route whose view returns an ``EventStream``.
        methods: In alphabetical order; none of a WebSocket or mount.
        pattern: With the prefixes of all mounts.
        name: For ``url_for``.
        view: Name of the view, or of the mounted app.
        file, line: Where the view begins; of a directory of files, the directory. ``None``: not known.
        doc: Docstring of the view.
        parameters: Of the path: ``{"name": …, "converter": …, "schema": …}``.
        depth: How many mounts are above.
        max_size: Bytes of a body; of a WebSocket, of a message.
        checks_host: Whether ``App(allowed_hosts=…)`` applies.
        credentials: What the code of the view, of ``login`` and of the hooks before it reads: ``request.bearer``,
            ``request.session``, ``ws.take_ticket()``.
        handled_errors: Statuses whose responses are those of error handlers of the app.
        body, query, returns: Of an HTTP route. ``None``: any, or not known. What a view returns is ``"text"`` for HTML
            and ``"bytes"``, too.
        statuses: Of what the view returns. Empty: it may return others.
        receives, sends: The messages of a WebSocket.
        delivers: What its client gets besides: the messages of the topics of ``subscribe``, as far as ``App.topic``
            knows them, gap markers, and errors for invalid messages.
        subprotocols, subscribe, on_invalid, gaps: As given to ``App.websocket_route``.
        origins: The origins that may connect; ``None``: as ``App(origins=…)`` says.
        rate: ``20/s``, ``rate_excess`` behind it if that is not ``"wait"``. ``None``: no limit.
        login: Whether the first message logs in.
        error_close_code: After an unexpected exception.
        is_docs: Whether it is of the page of ``App.docs``, which is in no document.
    """

    kind: RouteKind
    pattern: str
    methods: tuple[str, ...] = ()
    name: str | None = None
    view: str = ""
    file: str | None = None
    line: int | None = None
    doc: str | None = None
    parameters: tuple[dict[str, Any], ...] = ()
    depth: int = 0
    max_size: int | None = None
    checks_host: bool = False
    credentials: tuple[Credential, ...] = ()
    handled_errors: tuple[int, ...] = ()
    body: MessageType | None = None
    query: MessageType | None = None
    returns: MessageType | None = None
    statuses: tuple[int, ...] = ()
    receives: MessageType | None = None
    sends: MessageType | None = None
    delivers: tuple[MessageType, ...] = ()
    subprotocols: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    on_invalid: str | None = None
    gaps: bool = False
    origins: tuple[str, ...] | None = None
    rate: str | None = None
    login: bool = False
    error_close_code: int | None = None
    is_docs: bool = False

    @property
    def summary(self) -> str | None:
        """The first line of the docstring."""
        return self.doc.partition("\n")[0] if self.doc else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicDescription:
    """
    What ``App.topic`` sets.

    Attributes:
        pattern: A topic in which ``*`` matches any characters.
        queue, overflow, history, ttl: As of ``App.topic``.
        messages: What is published. ``None``: any.
    """

    pattern: str
    queue: int
    overflow: str
    history: int
    ttl: float | None
    messages: MessageType | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """
    An app.

    Attributes:
        title: Name of the app's directory or module.
        routes: In the order of registration; those of mounted apps after the mount.
        topics: Of ``App.topic``.
        limits: ``max_message_size`` and ``max_body_size``, in bytes.
        schemas: JSON Schemas by name.
    """

    title: str
    routes: tuple[RouteDescription, ...]
    topics: tuple[TopicDescription, ...]
    limits: dict[str, int]
    schemas: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """A dict that JSON can represent, in a stable order, without what a route does not have."""
        return {
            "title": self.title,
            "routes": [_fields(route) for route in self.routes],
            "topics": [_fields(topic) for topic in self.topics],
            "limits": self.limits,
            "schemas": self.schemas,
        }


def _fields(described: RouteDescription | TopicDescription) -> dict[str, Any]:
    values = ((field.name, getattr(described, field.name)) for field in fields(described))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values if value is not None}
