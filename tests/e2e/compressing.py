"""An app that compresses."""

from microws import App

app = App(compression=True)


@app.websocket_route("/echo")
async def echo(ws):
    async with ws:
        async for message in ws:
            await ws.send(message)
