"""microws, as its tutorial writes it."""

from bench.apps.files import BIG_FILE
from microws import App, EventStream, FileResponse

app = App()


@app.get("/json")
async def json_view():
    return {"message": "Hello, World!"}


@app.get("/file")
async def file():
    return FileResponse(BIG_FILE)


@app.get("/events")
async def events():
    return EventStream(app.stream("fan"))


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


@app.post("/json/pub")
async def json_pub(request):
    receipt = await app.publish("json", await request.json())
    return {"subscribers": receipt.subscribers}, 202
