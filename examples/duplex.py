"""
Duplex: the view counts the lines that its client sends, while a task sends the count once a second.

    microws run examples/duplex.py

A client must offer a subprotocol and send a header. Run the client at the end of this file in a second terminal:

    python examples/duplex.py
"""

from secrets import compare_digest

import anyio
from websockets.sync.client import connect

from microws import App

PROTOCOL = "meter.v1"
AUTHORIZATION = "Bearer let-me-in"

app = App()


@app.websocket_route("/meter", send_type="json", subprotocols=[PROTOCOL])
async def meter(ws):
    if not compare_digest(ws.headers.get("authorization", "").encode(), AUTHORIZATION.encode()):
        await ws.reject(401, "wrong or missing token", headers={"WWW-Authenticate": "Bearer"})
        return
    if PROTOCOL not in ws.subprotocols:
        await ws.reject(400, f"expected the subprotocol {PROTOCOL}")
        return

    lines = 0

    async def report():
        while True:
            await ws.send({"lines": lines})
            await anyio.sleep(1)

    async with ws:
        ws.start_soon(report)
        async for _ in ws:
            lines += 1


def client(url="ws://127.0.0.1:8000/meter"):
    with connect(url, subprotocols=[PROTOCOL], additional_headers={"Authorization": AUTHORIZATION}) as ws:
        for number in range(1000):
            ws.send(f"line {number}")
        for _ in range(3):
            print(ws.recv())


if __name__ == "__main__":
    client()
