"""Topics: their names, and how they treat a subscriber that does not keep up."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from microws.codec import dumps_json
from microws.hub.published import OverflowPolicy, Published, TopicSettings, gap_marker
from microws.interfaces import Frame

__all__ = ["MAX_TOPIC_BYTES", "check_topic", "expression_of", "key_of", "settings_of", "topic_marker"]

MAX_TOPIC_BYTES = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_topic(topic: object) -> None:
    """
    Refuse what cannot name a topic.

    Raises:
        TypeError: Not a ``str``.
        ValueError: Empty, over 255 UTF-8 bytes, not encodable, or with control characters.
    """
    if not isinstance(topic, str):
        raise TypeError(f"a topic is a str, not {type(topic).__name__}")
    if not topic:
        raise ValueError("a topic has at least one character")
    if _CONTROL.search(topic):
        raise ValueError(f"a topic has no control characters: {topic[:60]!r}")
    try:
        size = len(topic.encode())
    except UnicodeEncodeError:
        raise ValueError(f"a topic is valid Unicode: {topic[:60]!r}") from None
    if size > MAX_TOPIC_BYTES:
        raise ValueError(f"a topic is at most {MAX_TOPIC_BYTES} UTF-8 bytes; this one has {size}")


def topic_marker(topic: str, settings: TopicSettings) -> Published:
    """The gap marker that a client sees: ``{"topic": …, "gap": true}`` as a text frame."""
    return gap_marker(topic, settings, Frame(dumps_json({"topic": topic, "gap": True}), is_text=True))


def settings_of(queue: int, overflow: OverflowPolicy, key: str | Callable[[Any], Any] | None) -> TopicSettings:
    """
    The settings of a topic, checked.

    Raises:
        ValueError: An invalid setting.
    """
    if overflow not in get_args(OverflowPolicy):
        raise ValueError(f"overflow is one of {', '.join(get_args(OverflowPolicy))}, not {overflow!r}")
    if type(queue) is not int or queue < 1:
        raise ValueError(f"queue is a number of messages, 1 or more, not {queue!r}")
    if key is not None and overflow != "latest":
        raise ValueError(f'key= belongs to overflow="latest", not to "{overflow}"')
    if key is not None and not isinstance(key, str) and not callable(key):
        raise ValueError(f"key is a field's name or a function, not {key!r}")
    if inspect.iscoroutinefunction(key):
        raise ValueError(f"key is called for each message and cannot wait: expected a plain function, got {key!r}")
    return TopicSettings(queue, overflow, key)


# Comparing two of them neither fails nor takes long.
_SCALARS = frozenset({str, int, float, bool, bytes, type(None)})


def key_of(settings: TopicSettings, value: Any) -> Any:
    """
    What a published value is conflated by; ``None`` where it does not have the field.

    Outboxes compare keys in the midst of a delivery, when some subscribers have the message already. So whatever may
    fail does so here: lists and dicts, which may be nested deep, become their JSON.

    Raises:
        TypeError: A key that is neither hashable nor JSON.
        ValueError: A key that JSON cannot carry.
        Exception: Whatever a function of the app raises.
    """
    if callable(settings.key):
        key = settings.key(value)
    else:
        key = value.get(settings.key) if isinstance(value, Mapping) else None
    if type(key) in _SCALARS:
        return key
    try:
        return dumps_json(key)
    except TypeError:
        hash(key)
        return key


def expression_of(pattern: str) -> re.Pattern[str]:
    """What fits a pattern; each part behind a ``*`` is looked for once, so that no topic takes long to match."""
    first, *parts = (re.escape(part) for part in pattern.split("*"))
    between = "".join(f"(?>.*?{part})" for part in parts[:-1])
    last = f".*{parts[-1]}" if parts else ""
    return re.compile(first + between + last, re.DOTALL)
