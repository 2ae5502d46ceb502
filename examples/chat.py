"""
Chat: each room has a page and a WebSocket at the same path. This example needs the extra "templates" (Jinja2).

    microws run examples/chat.py

Then open http://127.0.0.1:8000/ in two windows. http://127.0.0.1:8000/rooms/tea is another room.
"""

from microws import App

app = App()


@app.get("/")
@app.get("/rooms/{room}")
async def page(request, room="lobby"):
    return app.render("chat.html", request=request, room=room, name=name_of(request))


@app.websocket_route("/rooms/{room}", send_type="json", subscribe="room:{room}")
async def chat(ws, room):
    name = name_of(ws)
    if not name:
        await ws.reject(400, "expected a name: add ?name=… to the address")
        return

    async def publish(**message):
        await app.publish(f"room:{room}", {"name": name, **message})

    async with ws:
        await publish(event="joined")
        try:
            async for text in ws:
                await publish(text=text)
        finally:
            await publish(event="left")


def name_of(connection):
    return connection.query.get("name", "").strip()[:32]
