"""The app that every client speaks to."""

from microws import App

app = App()


@app.get("/")
async def page():
    """Where a browser starts from: its WebSockets come from this origin."""
    return "<title>Clients</title>"


@app.websocket_route("/echo", value_type="auto", subprotocols=["chat.v2", "chat.v1"])
async def echo(ws):
    async with ws:
        async for message in ws:
            await ws.send(message)


@app.websocket_route("/once", value_type="auto", subprotocols=["chat.v2", "chat.v1"])
async def once(ws):
    """An echo that closes, for clients that only wait."""
    async with ws:
        await ws.send(await ws.receive())
        await ws.close(4001, "bye")


@app.websocket_route("/bye", subprotocols=["chat.v2", "chat.v1"])
async def bye(ws):
    async with ws:
        await ws.close(4001, "bye")


@app.websocket_route("/farewell/{name}")
async def farewell(ws, name):
    """Prints how the client left."""
    async with ws:
        async for _ in ws:
            pass
    print(f"{name} left: {ws.close_code} {ws.close_reason}", flush=True)
