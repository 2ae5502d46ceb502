"""microws, as its tutorial writes it."""

from microws import App

app = App()


@app.route("/json")
async def json_view():
    return {"message": "Hello, World!"}


@app.websocket_route("/echo")
async def echo(ws):
    async with ws:
        async for message in ws:
            await ws.send(message)


@app.websocket_route("/binary", value_type="bytes")
async def binary(ws):
    async with ws:
        async for message in ws:
            await ws.send(message)


@app.websocket_route("/sub", subscribe="fan")
async def sub(ws):
    async with ws:
        async for _ in ws:
            pass


@app.websocket_route("/pub")
async def pub(ws):
    async with ws:
        async for message in ws:
            await ws.publish("fan", message)


@app.websocket_route("/json/sub", value_type="json", subscribe="json")
async def json_sub(ws):
    async with ws:
        async for _ in ws:
            pass


@app.route("/json/pub", methods=["POST"])
async def json_pub(request):
    receipt = await app.publish("json", await request.json())
    return {"subscribers": receipt.subscribers}, 202
