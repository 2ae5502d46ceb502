"""No framework: what ASGI itself costs on a server."""

JSON = b'{"message":"Hello, World!"}'
JSON_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(JSON))]

subscribers = set()


async def echo(receive, send):
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"]})


async def binary(receive, send):
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": event["bytes"]})


async def sub(receive, send):
    subscribers.add(send)
    try:
        while (await receive())["type"] == "websocket.receive":
            pass
    finally:
        subscribers.discard(send)


async def pub(receive, send):
    while (event := await receive())["type"] == "websocket.receive":
        message = {"type": "websocket.send", "text": event["text"]}
        for send_to in list(subscribers):
            await send_to(message)


WEBSOCKET_VIEWS = {"/echo": echo, "/binary": binary, "/sub": sub, "/pub": pub}


async def lifespan(receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        view = WEBSOCKET_VIEWS[scope["path"]]
        await receive()
        await send({"type": "websocket.accept"})
        await view(receive, send)
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": JSON_HEADERS})
        await send({"type": "http.response.body", "body": JSON})
    else:
        await lifespan(receive, send)
