"""A page with ``microws.js``, and what it connects to."""

from microws import App, HTTPException, Response

app = App()
app.topic("chat:*", history=1000, ttl=300)

# The token that the app takes; any, if it is None.
valid = {"token": None}
# Tokens of the handshakes so far.
seen = []


@app.get("/")
async def page():
    return Response(
        '<!doctype html><link rel="icon" href="data:,"><script type="module">'
        'import { connect } from "/microws.js"; window.connect = connect</script>',
        content_type="text/html",
    )


@app.before_websocket
async def check_token(ws):
    seen.append(ws.bearer)
    if valid["token"] not in (None, ws.bearer):
        async with ws:
            await ws.close(4401, "expired")


@app.before_request
async def check_request_token(request):
    if request.path == "/live" and valid["token"] not in (None, request.bearer):
        raise HTTPException(401, "expired")


@app.on_subscribe("chat:{room}")
async def may_read(connection, room):
    return room != "secret"


@app.on_subscribe("plain:{name}")
async def may_read_plain(connection, name):
    return True


@app.on_publish("chat:{room}")
async def may_write(connection, room, message):
    return None if message == "bad" else message


app.live("/live")
app.client_js()


@app.post("/say/{topic}")
async def say(request, topic):
    return {"id": (await app.publish(topic, await request.json())).id}


@app.post("/token")
async def set_token(request):
    valid["token"] = await request.json()
    return seen


@app.websocket_route("/closes/{code:int}")
async def closes(ws, code):
    async with ws:
        await ws.close(code, "as the test wants")


@app.websocket_route("/echo", value_type="json")
async def echo(ws):
    async with ws:
        async for message in ws:
            await ws.send({"echo": message})


@app.get("/elsewhere")
async def elsewhere():
    return "another page"
