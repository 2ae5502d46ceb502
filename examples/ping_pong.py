"""
Ping-pong: JSON in, JSON out. A ping is answered by a pong, and a pong by a ping.

    microws run examples/ping_pong.py

Then play, in a second terminal, by typing {"type": "ping"}:

    python -m websockets ws://127.0.0.1:8000/ping-pong
"""

from microws import App

app = App()


@app.websocket_route("/ping-pong", value_type="json")
async def ping_pong(ws):
    async with ws:
        async for message in ws:
            match message:
                case {"type": "ping"}:
                    await ws.send({"type": "pong"})
                case {"type": "pong"}:
                    await ws.send({"type": "ping"})
                case _:
                    await ws.send({"type": "error", "detail": 'send {"type": "ping"} or {"type": "pong"}'})
