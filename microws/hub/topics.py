"""Topics: valid names, patterns, and how a topic treats a subscriber that does not keep up."""

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import Any, get_args

from microws.codec import FRAME_TYPES, dumps_json, json_type
from microws.hub.published import OverflowPolicy, Published, TopicSettings
from microws.interfaces import Frame

__all__ = [
    "MAX_TOPIC_BYTES",
    "check_settings",
    "check_topic",
    "encode_key",
    "expression_of",
    "gap_announcement",
    "key_of",
    "settings_from_json",
    "settings_to_json",
    "topic_marker",
]

MAX_TOPIC_BYTES = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_topic(topic: object) -> None:
    """
    Refuse an invalid topic.

    Raises:
        TypeError: Not a ``str``.
        ValueError: Empty, over 255 UTF-8 bytes, not encodable, or with control characters.
    """
    if not isinstance(topic, str):
        raise TypeError(f"expected a topic as str, got {type(topic).__name__}")
    if not topic:
        raise ValueError("expected a topic of at least one character, got an empty str")
    if _CONTROL.search(topic):
        raise ValueError(f"expected a topic without control characters, got {topic[:60]!r}")
    try:
        size = len(topic.encode())
    except UnicodeEncodeError:
        raise ValueError(f"expected a topic in valid Unicode, got {topic[:60]!r}") from None
    if size > MAX_TOPIC_BYTES:
        raise ValueError(f"expected a topic of at most {MAX_TOPIC_BYTES} UTF-8 bytes, got {size}")


def topic_marker(topic: str, settings: TopicSettings) -> Published:
    """The gap marker that a client sees: ``{"topic": …, "gap": true}`` as a text frame."""
    return Published(Frame(dumps_json({"topic": topic, "gap": True}), is_text=True), topic, settings, is_gap=True)


def gap_announcement(positions: Mapping[str, str], asked: Collection[str], lost: Collection[str]) -> list[Published]:
    """The gap markers of topics whose missed messages are lost; see ``Announce``."""
    return [topic_marker(topic, TopicSettings()) for topic in lost]


def check_settings(settings: TopicSettings) -> None:
    """
    Refuse invalid settings of a topic.

    Raises:
        TypeError: JSON cannot carry the type.
        ValueError: Another invalid setting.
        FeatureUnavailable: The type needs msgspec.
    """
    queue, overflow, key, history, ttl, value_type = settings
    if overflow not in get_args(OverflowPolicy):
        raise ValueError(f"expected overflow to be one of {', '.join(get_args(OverflowPolicy))}, got {overflow!r}")
    if type(queue) is not int or queue < 1:
        raise ValueError(f"expected queue to be a number of messages, 1 or more, got {queue!r}")
    if key is not None and overflow != "latest":
        raise ValueError(f'expected key= with overflow="latest" only, got it with "{overflow}"')
    if key is not None and not isinstance(key, str) and not callable(key):
        raise ValueError(f"expected key to be a field's name or a function, got {key!r}")
    if type(history) is not int or history < 0:
        raise ValueError(f"expected history to be a number of messages, 0 or more, got {history!r}")
    if ttl is not None and not 0 < ttl < inf:
        raise ValueError(f"expected ttl to be a number of seconds greater than 0, got {ttl!r}")
    if ttl is not None and not history:
        raise ValueError("expected ttl= with history= only: write app.topic(pattern, history=100, ttl=300)")
    if isinstance(value_type, str):
        raise TypeError(f"expected a type as value_type, such as dict[str, int], got {value_type!r}")
    if value_type is not None and value_type not in FRAME_TYPES:
        json_type(value_type)
    if inspect.iscoroutinefunction(key):
        raise ValueError(f"expected key to be a plain function, because publish does not wait for it, got {key!r}")


def encode_key(key: object, topic: str, settings: TopicSettings) -> bytes:
    """
    The key of a message of ``topic``, as the log has it.

    Raises:
        ValueError: An invalid key, or the topic has no history.
    """
    if not settings.history:
        raise ValueError(f"expected a topic with history for key=, got {topic!r}: app.topic(pattern, history=100)")
    if type(key) is not str or not 0 < len(key.encode()) <= MAX_TOPIC_BYTES:
        raise ValueError(f"expected key= as a str of 1 to {MAX_TOPIC_BYTES} UTF-8 bytes, got {key!r}")
    return key.encode()


def settings_to_json(settings: TopicSettings) -> tuple[Any, ...]:
    """The settings for another process; a function and a type stay in this one."""
    queue, overflow, key, history, ttl, _ = settings
    return queue, overflow, True if callable(key) else key, history, ttl


def settings_from_json(fields: Sequence[Any]) -> TopicSettings:
    """What ``settings_to_json`` was given. Without the function, each message has a key of its own."""
    queue, overflow, key, history, ttl = fields
    return TopicSettings(queue, overflow, _own_key if key is True else key, history, ttl)


def _own_key(_value: Any) -> object:
    return object()


# Types of which two values can be compared without failing and without taking long.
_SCALARS = frozenset({str, int, float, bool, bytes, type(None)})


def key_of(settings: TopicSettings, value: Any) -> Any:
    """
    What a published value is conflated by; ``None`` if it does not have the field.

    Outboxes compare keys during a delivery, when some subscribers have the message already. So an error has to be
    raised here, before the delivery: lists and dicts, whose comparison may exceed the recursion limit, become their
    JSON.

    Raises:
        TypeError: A key that is neither hashable nor JSON.
        ValueError: A key that JSON cannot carry.
        Exception: The app's function raised it.
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
    """
    The regular expression of a pattern, in which ``*`` matches any characters.

    The atomic groups (``(?>…)``) look for each part once, without backtracking: no topic takes long to match.
    """
    first, *parts = (re.escape(part) for part in pattern.split("*"))
    between = "".join(f"(?>.*?{part})" for part in parts[:-1])
    last = f".*{parts[-1]}" if parts else ""
    return re.compile(first + between + last, re.DOTALL)
