"""Who may subscribe and publish: ``@app.on_subscribe`` and ``@app.on_publish``."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from microws.answers import report
from microws.errors import HTTPException, RoutingError
from microws.hooks import check_hook, in_thread
from microws.hub import check_presence, check_topic
from microws.requests import BaseRequest

__all__ = ["TopicHooks"]

_PARAMETER: Final = re.compile(r"\{([^{}]*)\}")
# What a client has as presence: ``None`` without it.
Presence: TypeAlias = dict[str, Any] | None


class _Hook(NamedTuple):
    pattern: str
    expression: re.Pattern[str]
    function: Callable[..., Any]


class TopicHooks:
    """The hooks of an app. Of those for one topic, the first one is called."""

    def __init__(self) -> None:
        self._on_subscribe: list[_Hook] = []
        self._on_publish: list[_Hook] = []

    def on_subscribe(self, pattern: str, function: Callable[..., Any]) -> None:
        """
        Call ``function(connection, *parameters)`` when a client wants to subscribe to a topic that matches ``pattern``.

        Raises:
            RoutingError: The pattern is invalid, or has a hook.
            TypeError: The function does not take these arguments.
        """
        self._on_subscribe.append(_hook(self._on_subscribe, "on_subscribe", pattern, function))

    def on_publish(self, pattern: str, function: Callable[..., Any]) -> None:
        """Call ``function(connection, *parameters, message)`` when a client wants to publish; see ``on_subscribe``."""
        self._on_publish.append(_hook(self._on_publish, "on_publish", pattern, function, "message"))

    def include(self, other: "TopicHooks") -> None:
        """Add the hooks of an included app after these."""
        self._on_subscribe += other._on_subscribe  # noqa: SLF001 - of the same class
        self._on_publish += other._on_publish  # noqa: SLF001

    async def check_subscribe(self, connection: BaseRequest, topic: str) -> Presence:
        """
        Ask whether the client may subscribe.

        Returns:
            Its presence, if the hook returned a dict.

        Raises:
            HTTPException: It may not.
            ValueError: The topic is invalid.
        """
        check_topic(topic)
        answer = await _call(self._on_subscribe, "subscribe", connection, topic)
        if not answer and not isinstance(answer, dict):
            raise HTTPException(403, f"not allowed to subscribe to {topic[:60]!r}")
        if not isinstance(answer, dict):
            return None
        check_presence(answer)
        return answer

    async def check_publish(self, connection: BaseRequest, topic: str, message: Any) -> Any:
        """
        What is published in place of what the client sent.

        Raises:
            HTTPException: It may not publish this.
            ValueError: As from ``check_subscribe``.
        """
        check_topic(topic)
        value = await _call(self._on_publish, "publish", connection, topic, message)
        if value is None:
            raise HTTPException(403, f"not allowed to publish to {topic[:60]!r}")
        return value


def _hook(hooks: list[_Hook], decorator: str, pattern: str, function: Callable[..., Any], *more: str) -> _Hook:
    if not isinstance(pattern, str):
        raise TypeError(f'expected a pattern such as "chat:{{room}}" for @app.{decorator}, got {pattern!r}')
    try:
        check_topic(pattern)
    except ValueError as error:
        raise RoutingError(f"pattern of @app.{decorator}: {error}") from None
    names = _PARAMETER.findall(pattern)
    literals = _PARAMETER.split(pattern)[::2]
    if any("{" in part or "}" in part for part in literals) or not all(map(str.isidentifier, names)):
        raise RoutingError(f'expected a pattern such as "chat:{{room}}" for @app.{decorator}, got {pattern!r}')
    if len(set(names)) < len(names):
        raise RoutingError(f"the pattern {pattern!r} of @app.{decorator} has a parameter more than once")
    if any(each.pattern == pattern for each in hooks):
        raise RoutingError(f"{pattern!r} has a hook of @app.{decorator} already")
    check_hook(function, f"{decorator}({pattern!r})", "connection", *names, *more)
    return _Hook(pattern, _expression_of(literals), in_thread(function))


def _expression_of(literals: Sequence[str]) -> re.Pattern[str]:
    """
    The expression of the text between parameters, for a reversed topic.

    The first parameter takes as much as it can. From the end, that is the shortest text for the last one, and so on:
    the atomic groups (``(?>…)``) look for each text once, without backtracking, so that no topic takes long to match.
    """
    last, *between = (re.escape(text[::-1]) for text in reversed(literals))
    if not between:
        return re.compile(last)
    *inner, first = between
    return re.compile(last + "".join(f"(?>([^:]+?){text})" for text in inner) + f"([^:]+){first}")


async def _call(hooks: list[_Hook], verb: str, connection: BaseRequest, topic: str, *more: Any) -> Any:
    # Topics of this package itself.
    for hook in hooks if not topic.startswith("$") else ():
        if (match := hook.expression.fullmatch(topic[::-1])) is None:
            continue
        parameters = [each[::-1] for each in reversed(match.groups())]
        try:
            return await hook.function(connection, *parameters, *more)
        except HTTPException:
            raise
        except Exception as error:
            error_id = report(error, connection.path, f"the hook of {hook.pattern!r} failed")
            raise HTTPException(500, f"internal error, error id {error_id}") from None
    raise HTTPException(403, f"no hook lets clients {verb} to {topic[:60]!r}")
