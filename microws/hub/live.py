"""
``microws.v1``: how published messages look to a WebSocket client that offers this subprotocol.

A message is the text frame ``{"topic": …, "id": …, "data": …}``; the data of a binary message is in ``"base64"``. A
gap marker is ``{"topic": …, "gap": true}``. A subscription begins with ``{"topic": …, "id": …, "recovered": …}`` if the
topic has history. ``id`` is a position, which the client sends as ``since`` when it comes back. Of a message that its
own ``ws.publish`` has published, it gets ``{"topic": …, "id": …}``: otherwise it would get that message then.
"""

from base64 import b64encode
from collections.abc import Collection, Mapping
from typing import Any, Final, final

from microws.codec import dumps_json
from microws.hub.published import Published, TopicSettings
from microws.interfaces import Frame, Payload

__all__ = ["LIVE_CODEC", "SUBPROTOCOL", "live_announcement", "live_frame", "skipped_frame"]

SUBPROTOCOL: Final = "microws.v1"
_NO_TOPIC: Final = TopicSettings()


@final
class _LiveCodec:
    """All connections that speak it share it, so that a message is encoded once for them."""

    def frame(self, payload: Payload) -> Frame:
        kind, data, topic, position = payload
        if kind == "json":
            field = b'"data":' + data
        elif kind == "text":
            field = b'"data":' + dumps_json(data.decode())
        else:
            field = b'"base64":"%b"' % b64encode(data)
        id_field = b"" if position is None else b'"id":"%b",' % position.encode()
        return Frame(b'{"topic":%b,%b%b}' % (dumps_json(topic), id_field, field), is_text=True)


LIVE_CODEC: Final = _LiveCodec()


def skipped_frame(codec: object, payload: Payload) -> Frame | None:
    """What a subscriber with this codec gets in place of a message that it does not get; ``None``: nothing."""
    if codec is not LIVE_CODEC or payload.position is None:
        return None
    return Frame(dumps_json({"topic": payload.topic, "id": payload.position}), is_text=True)


def live_announcement(positions: Mapping[str, str], asked: Collection[str], lost: Collection[str]) -> list[Published]:
    """The beginning of a subscription to topics with history, for the client; see ``Announce``."""
    messages = []
    for topic, position in positions.items():
        is_recovered = topic in asked and topic not in lost
        messages.append(live_frame({"topic": topic, "id": position, "recovered": is_recovered}))
    return messages


def live_frame(values: Mapping[str, Any]) -> Published:
    """A frame for one client, to be queued before what is published from now on. No policy drops it."""
    return Published(Frame(dumps_json(values), is_text=True), "", _NO_TOPIC)
