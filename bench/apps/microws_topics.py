"""microws, with a topic for each way to treat a subscriber that does not keep up, and what the hub counts."""

from microws import App

app = App()
app.topic("close", overflow="close")
app.topic("drop_oldest", overflow="drop_oldest")
app.topic("drop_newest", overflow="drop_newest")
app.topic("latest", overflow="latest")


@app.route("/json")
async def json_view():
    return {"message": "Hello, World!"}


@app.route("/statistics")
async def statistics():
    return app.hub.statistics()._asdict()


@app.websocket_route("/{topic}/sub", subscribe="{topic}", gaps=True)
async def sub(ws, topic):
    async with ws:
        async for _ in ws:
            pass


@app.websocket_route("/{topic}/pub")
async def pub(ws, topic):
    async with ws:
        async for message in ws:
            if message == "sync":
                await ws.send(message)
            else:
                await ws.publish(topic, message)
