"""FastAPI, whose WebSockets are Starlette's: the same views behind its own routes."""

from fastapi import FastAPI

from bench.apps import starlette_app as views


async def json_view():
    return {"message": "Hello, World!"}


async def json_pub(message: dict):
    return {"subscribers": 0}


app = FastAPI()
app.get("/json")(json_view)
app.post("/json/pub", status_code=202)(json_pub)
app.websocket("/echo")(views.echo)
app.websocket("/sub")(views.sub)
app.websocket("/pub")(views.pub)

queue_app = FastAPI()
queue_app.get("/json")(json_view)
queue_app.websocket("/sub")(views.queue_sub)
queue_app.websocket("/pub")(views.queue_pub)
