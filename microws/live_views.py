"""``App.live``: the topics that clients choose, over WebSocket, as server-sent events, and published by POST."""

from collections.abc import Callable
from typing import Any

from microws.errors import (
    HTTPException,
    HubUnavailable,
    PublishTimeout,
)
from microws.event_stream import EventStream, Stream
from microws.hub import SUBPROTOCOL
from microws.live import LiveFrame, Malformed, publish_for, refusal_of
from microws.requests import Request
from microws.responses import JSONResponse
from microws.websocket import WebSocket

__all__ = ["LiveViews"]

# 4403 is 403.
_CODES = 4000


class LiveViews:
    """
    The views of one path. ``App.live`` documents them.

    Args:
        make_stream: Returns the events of some topics.
        max_topics: Of one stream.
    """

    def __init__(self, make_stream: Callable[..., Stream], *, max_topics: int) -> None:
        self._make_stream = make_stream
        self._max_topics = max_topics

    async def socket(self, ws: WebSocket, **_: Any) -> None:
        """Serve a WebSocket, whose frames are all for the hub."""
        if SUBPROTOCOL not in ws.subprotocols:
            raise HTTPException(400, f"expected a WebSocket that offers the subprotocol {SUBPROTOCOL}")
        async with ws:
            await ws.wait_closed()

    async def events(self, request: Request, **_: Any) -> EventStream | JSONResponse:
        """Respond with the topics of the query as events."""
        topics = list(dict.fromkeys(request.query.getlist("topic")))
        if not topics:
            raise HTTPException(400, "expected topics: ?topic=chat:1&topic=chat:2")
        if len(topics) > self._max_topics:
            raise HTTPException(400, f"expected at most {self._max_topics} topics, got {len(topics)}")
        for topic in topics:
            try:
                await request.app.topic_hooks.check_subscribe(request, topic)
            except HTTPException as error:
                return _refuse(error, topic=topic)
            except ValueError as error:
                raise HTTPException(400, str(error)) from None
        return EventStream(self._make_stream(*topics, since=request.query.get("since")))

    async def publish(self, request: Request, **_: Any) -> JSONResponse:
        """Publish a frame of the client, and respond with the answer."""
        try:
            frame = LiveFrame(await request.text())
            if frame.verb != "publish":
                raise Malformed('expected {"publish": topic, "data": …}')
            return JSONResponse(await publish_for(request, frame))
        except Malformed as error:
            raise HTTPException(400, str(error)) from None
        except (HTTPException, PublishTimeout, HubUnavailable, TypeError, ValueError) as error:
            return _refuse(error)


def _refuse(error: Exception, **more: str) -> JSONResponse:
    answer = refusal_of(error)
    return JSONResponse(more | answer, answer["error"] - _CODES)
