"""
Ping-pong: the server receives and sends JSON. It answers a ping with a pong, and a pong with a ping.

    microws run examples/ping_pong.py

Then connect in a second terminal, and type {"type": "ping"}:

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
                    await ws.send({"type": "error", "detail": 'expected {"type": "ping"} or {"type": "pong"}'})
