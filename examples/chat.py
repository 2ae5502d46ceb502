"""
Chat: each room has a page and a WebSocket at the same path. The types of messages are checked by mypy and pyright.

This example needs the extras "templates" (Jinja2) and "typed" (msgspec).

    microws run examples/chat.py

Then open http://127.0.0.1:8000/ in two windows. http://127.0.0.1:8000/rooms/tea is another room.
"""

from microws import App, Message, WebSocket


class Joined(Message):  # {"type": "joined", "name": "Ada"}
    name: str


class Said(Message):
    name: str
    text: str


class Left(Message):
    name: str


app = App()
app.topic("room:*", value_type=Joined | Said | Left)
app.client_js()


@app.get("/")
@app.get("/rooms/{room}")
async def page(request, room="lobby"):
    return app.render("chat.html", request=request, room=room, name=name_of(request))


@app.websocket_route("/rooms/{room}", subscribe="room:{room}")
async def chat(ws: WebSocket[str, Joined | Said | Left], room: str):
    name = name_of(ws)
    if not name:
        await ws.reject(400, "expected a name: add ?name=… to the address")
        return
    topic = f"room:{room}"
    async with ws:
        await app.publish(topic, Joined(name))
        try:
            async for text in ws:
                await app.publish(topic, Said(name, text))
        finally:
            await app.publish(topic, Left(name))


def name_of(connection):
    return connection.query.get("name", "").strip()[:32]
