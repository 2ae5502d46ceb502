"""
Ping-pong: the server receives and sends JSON of two types. It answers a ping with a pong, and a pong with a ping.

This example needs the extra "typed" (msgspec).

    microws run examples/ping_pong.py

Then connect in a second terminal, and type {"type": "ping"}:

    microws connect ws://127.0.0.1:8000/ping-pong

Other messages get an error: try {"type": "pang"}.
"""

from microws import App, Message, WebSocket


class Ping(Message):  # {"type": "ping"}
    pass


class Pong(Message):
    pass


app = App()


@app.websocket_route("/ping-pong", on_invalid="error")
async def ping_pong(ws: WebSocket[Ping | Pong]):
    async with ws:
        async for message in ws:
            match message:
                case Ping():
                    await ws.send(Pong())
                case Pong():
                    await ws.send(Ping())
