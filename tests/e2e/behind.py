"""The app behind a proxy: it says what has reached it."""

from microws import App, EventStream

app = App(max_body_size=1 << 20)

# Method, path and query of every HTTP request so far, but of those that ask for this list.
arrived = []


@app.before_request
async def note(request):
    if request.path != "/arrived":
        arrived.append(f"{request.method} {request.path}?{request.scope['query_string'].decode()}")


@app.get("/arrived")
async def what_arrived():
    return arrived


@app.route("/admin", methods=["GET", "POST"])
async def admin():
    return "for staff only"


@app.get("/scope")
async def scope(request):
    return {
        "client": request.client.host,
        "url": str(request.url),
        "root_path": request.scope["root_path"],
        "http_version": request.scope["http_version"],
    }


@app.post("/body")
async def body(request):
    return {"size": len(await request.body())}


@app.post("/publish")
async def publish(request):
    return {"subscribers": (await app.publish("news", await request.json())).subscribers}


@app.get("/events")
async def events():
    return EventStream(app.stream("news"))


@app.websocket_route("/echo", value_type="auto")
async def echo(ws):
    async with ws:
        async for message in ws:
            await ws.send(message)


@app.websocket_route("/rejects")
async def rejects(ws):
    await ws.reject(403, "not today")
