"""An API, and the pages of other origins that ask it: ``ORIGINS`` and ``HOSTS`` are what it allows."""

import os

from microws import App, EventStream, HTTPException


def listed(name):
    return os.environ[name].split(",") if name in os.environ else None


app = App(origins=listed("ORIGINS"), allowed_hosts=listed("HOSTS"))
app.state.changes = 0


@app.get("/")
async def page():
    """Where a browser starts from."""
    return "<title>Page</title>"


@app.post("/login")
async def login(request):
    return {}, {"set-cookie": "user=ada; path=/; httponly; samesite=lax"}


@app.route("/items", methods=["GET", "POST", "PUT"])
async def items(request):
    if request.method != "GET":
        app.state.changes += 1
    return {"method": request.method, "user": request.cookies.get("user"), "changes": app.state.changes}


@app.get("/taken")
async def taken():
    raise HTTPException(409, "taken")


async def told(user):
    yield {"user": user}


@app.get("/events")
async def events(request):
    return EventStream(told(request.cookies.get("user")))


@app.websocket_route("/ws")
async def hello(ws):
    async with ws:
        await ws.send("hello")


public = App(origins=["*"])
public.add_route(lambda: {"public": True}, "/", methods=["GET", "PUT"])
app.mount("/public", public)
