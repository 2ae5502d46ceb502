"""What the connections of one route share."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal

from microws.codec import TEXT, Codecs, MessageCodec
from microws.cors import CORS
from microws.hub import Hub, Outbox

__all__ = ["WebSocketOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketOptions:
    """
    What the connections of one route share.

    Attributes:
        hub, codecs: The app's.
        cors: Marks rejections; ``None`` without ``App(origins=…)``.
        make_outbox: Makes the queue of a connection.
        closing_for: The close code and reason for an exception on a path; ``None`` where an error handler has its say.
        receive_codec, send_codec: The route's.
        subprotocols: Those that the route speaks, the preferred one first.
        catch_disconnect, on_invalid: As in ``App.websocket_route``.
        max_subscriptions: As in ``App``.
    """

    hub: Hub
    codecs: Codecs
    cors: CORS | None
    make_outbox: Callable[[], Outbox]
    closing_for: Callable[[str, Exception], tuple[int, str] | None]
    receive_codec: MessageCodec = TEXT
    send_codec: MessageCodec = TEXT
    subprotocols: tuple[str, ...] = ()
    catch_disconnect: bool = True
    on_invalid: Literal["close", "skip"] = "close"
    max_subscriptions: float = inf
