"""What ``test_entering.py`` serves: tickets, connections of users, and those that end at a time."""

import os

from enduring import statistics

from microws import App

app = App(secret="a secret of the tests, of 32 bytes or more")
app.add_route(statistics, "/statistics")


@app.get("/pid")
async def pid():
    return str(os.getpid())


@app.post("/tickets/{count:int}")
async def tickets(count):
    return [app.ticket(number, path="/ticket", ttl=600) for number in range(count)]


@app.websocket_route("/ticket")
async def enter(ws):
    await ws.take_ticket()
    async with ws:
        await ws.wait_closed()


@app.websocket_route("/of/{user}")
async def of(ws, user):
    ws.tag(user=user)
    async with ws:
        await ws.send(str(os.getpid()))
        await ws.wait_closed()


@app.get("/of/{user}")
async def count(user):
    return str(len(await app.hub.connections(user=user)))


@app.websocket_route("/until")
async def until(ws):
    async with ws:
        async for message in ws:
            ws.expire(float(message))


@app.post("/log-out/{user}")
async def log_out(user):
    return str(await app.disconnect(user=user, code=4403, reason="logged out"))
