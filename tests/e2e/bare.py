"""A plain ASGI app: what a server makes of it is the server's own doing. It tells what it sees on standard output."""

import asyncio
import json
import os
from pathlib import Path


def tell(*words):
    # In one piece: workers share the output.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "http":
        answer = b"not read" if scope["path"] == "/unread" else _statistics()
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
    else:
        tell("a WebSocket for", scope["path"])
        await receive()
        await WEBSOCKETS.get(scope["path"], _echo)(scope, receive, send)


async def starts_slowly(scope, receive, send):
    if scope["type"] == "lifespan":
        await asyncio.sleep(1.5)
    await app(scope, receive, send)


async def _lifespan(receive, send):
    await receive()
    tell("worker", os.getpid(), "starts")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    tell("the lifespan ends")
    await send({"type": "lifespan.shutdown.complete"})


def _statistics():
    """What the process has open while this request is answered."""
    files = len(list(Path("/dev/fd").iterdir()))
    return json.dumps({"pid": os.getpid(), "tasks": len(asyncio.all_tasks()), "files": files}).encode()


async def _echo(scope, receive, send):
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send(event | {"type": "websocket.send"})
    tell("the client closed", scope["query_string"].decode(), event["code"], event.get("reason") or "")


async def _echo_later(scope, receive, send):
    await asyncio.sleep(0.05)
    await _echo(scope, receive, send)


async def _name_worker(scope, receive, send):
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": str(os.getpid())})
    while (event := await receive())["type"] == "websocket.receive":
        await send(event | {"type": "websocket.send"})


async def _return(_scope, _receive, send):
    """Ends while messages wait for it."""
    await send({"type": "websocket.accept"})
    await asyncio.sleep(0.1)


async def _close(_scope, receive, send):
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 1000})
    await receive()


async def _tick(scope, _receive, send):
    """Only sends, a little at a time."""
    await send({"type": "websocket.accept"})
    try:
        while True:
            await send({"type": "websocket.send", "text": "tick"})
            await asyncio.sleep(0.01)
    except OSError:
        tell("send raised", scope["query_string"].decode())


async def _pour(_scope, _receive, send):
    """Only sends, as much as it can."""
    await send({"type": "websocket.accept"})
    while True:
        await send({"type": "websocket.send", "bytes": bytes(1 << 16)})


async def _accept_another_subprotocol(_scope, _receive, send):
    await _accept(send, subprotocol="not-offered")


async def _accept_with_a_bad_header(_scope, _receive, send):
    await _accept(send, headers=[(b"x-greeting", b"hello\r\nx-forged: yes")])


async def _accept(send, **values):
    try:
        await send({"type": "websocket.accept", **values})
    except Exception as error:
        tell("accept raised", type(error).__name__)
        await send({"type": "websocket.http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
        await send({"type": "websocket.http.response.body", "body": b""})


WEBSOCKETS = {
    "/later": _echo_later,
    "/worker": _name_worker,
    "/returns": _return,
    "/close": _close,
    "/tick": _tick,
    "/pour": _pour,
    "/subprotocol": _accept_another_subprotocol,
    "/header": _accept_with_a_bad_header,
}
